//! Random operations of several users on two nodes, next to ext4: the same answers, the same trees.
//!
//! `HFCACHE_SEED` and `HFCACHE_DIFFERENTIAL_RUNS` choose others. What fails is told as short as it can be made;
//! when it is mended it belongs into [`kept`].

use hfcache_tests::conformance::place::Places;
use hfcache_tests::conformance::setting;
use hfcache_tests::differential::{Op, Step, World, draw, told};
use hfcache_tests::sys;

/// The first seed without the environment: a change is judged by the same operations as the one before.
const FIRST: u64 = 1;
/// Runs, each of another seed.
const RUNS: u64 = 40;
/// Operations of a run: enough for files to meet, and few enough to be understood.
const STEPS: usize = 80;

/// What found something once, as short as it was made then.
fn kept() -> Vec<Vec<Step>> {
    let step = |role, op| Step { role, op };
    let path = || "a".to_owned();
    // Who appends takes set-id bits away like everybody who writes.
    let appended = vec![
        step(1, Op::Create { path: path(), mode: 0o600, exclusive: false }),
        step(0, Op::Chmod { path: path(), mode: 0o4755 }),
        step(1, Op::Append { path: path(), len: 4_096, fill: b'g' }),
    ];
    vec![appended]
}

fn judge(world: &World, seed: u64) {
    let steps = draw(seed, STEPS);
    if let Err(difference) = world.run(&format!("run{seed}"), &steps) {
        let first = difference.why.clone();
        let (steps, difference) = world.shrink(steps, difference);
        panic!(
            "HFCACHE_SEED={seed} HFCACHE_DIFFERENTIAL_RUNS=1: {first}\nas short as it can be made:\n{}{}",
            told(&steps),
            difference.why
        );
    }
}

#[test]
fn nodes_and_ext4_answer_the_same() {
    if !sys::is_root() {
        eprintln!("SKIPPED: needs root, to be several users and to mount an ext4 image");
        return;
    }
    let places = Places::new("differential", None);
    let mount = places.mount("d");
    let second = places.cluster().path(1, "d");
    let world = World { views: [mount.clone(), second], ext4: places.ext4("d") };
    // That a difference would be found, and made short: on the one side there is a file more.
    std::fs::create_dir(mount.join("elsewhere")).expect("mkdir");
    let apart = World { views: [mount.join("elsewhere"), mount.join("elsewhere")], ext4: world.ext4.clone() };
    std::fs::create_dir(world.ext4.join("there")).expect("mkdir");
    let mut steps = draw(1, 30);
    steps.push(Step { role: 0, op: Op::Stat { path: "../there".into() } });
    let found = apart.run("self", &steps).expect_err("a difference is found");
    let (short, _) = apart.shrink(steps, found);
    assert_eq!(short.len(), 1, "{}", told(&short));

    for (number, steps) in kept().iter().enumerate() {
        if let Err(difference) = world.run(&format!("kept{number}"), steps) {
            panic!("found once, and again:\n{}{}", told(steps), difference.why);
        }
    }
    let first = setting("HFCACHE_SEED", FIRST);
    let runs = setting("HFCACHE_DIFFERENTIAL_RUNS", RUNS);
    println!("{runs} runs of {STEPS} operations from HFCACHE_SEED={first}");
    for seed in first..first + runs {
        judge(&world, seed);
    }
    places.finish();
}
