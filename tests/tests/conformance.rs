//! What passes on ext4 passes on the mount, by suites that others wrote. They are long and need root:
//! `cargo test -p hfcache-tests --test conformance -- --ignored`.

use hfcache_tests::conformance::exclusions::Suite;
use hfcache_tests::conformance::kernel::{Messages, never_silent};
use hfcache_tests::conformance::pjdfstest::{InC, Pjdfstest};
use hfcache_tests::conformance::place::Places;
use hfcache_tests::conformance::stress::StressNg;
use hfcache_tests::conformance::verdict::judge;
use hfcache_tests::conformance::{setting, verdict};
use std::thread;
use std::time::Duration;

/// The suite in C on a mount, with some retries of a busy machine.
const LONG: Duration = Duration::from_secs(1500);

fn no_harm(messages: &Messages) {
    let harm = messages.harm();
    assert!(harm.is_empty(), "the kernel said:\n{}", harm.join("\n"));
}

#[test]
#[ignore = "long, and needs root; a stage of its own"]
fn pjdfstest() {
    let places = Places::new("pjd", None);
    let messages = Messages::now();
    let suite = Pjdfstest::new(&places.scratch("suite"), places.other());
    let native = suite.run(&places.ext4("s"));
    let mount = suite.run(&places.mount("s"));
    judge(Suite::Pjdfstest, 390, &native, &mount);
    no_harm(&messages);
    places.finish();
}

#[test]
#[ignore = "long, and needs root and a checkout; a stage of its own"]
fn pjdfstest_in_c() {
    let Some(suite) = InC::from_environment() else {
        println!("SKIPPED: HFCACHE_PJDFSTEST_C names no checkout of pjdfstest");
        return;
    };
    let places = Places::new("pjdc", Some(2 * LONG));
    let scratch = places.scratch("scratch");
    let native = suite.run(&scratch, &places.ext4("suite"), LONG);
    let mount = suite.run(&scratch, &places.mount("suite"), LONG);
    judge(Suite::PjdfstestC, 8_000, &native, &mount);
    places.finish();
}

/// Both places at once: the two share no more than the machine.
#[test]
#[ignore = "long, and needs root; a stage of its own"]
fn stress_ng() {
    let seconds = setting("HFCACHE_STRESS_SECONDS", 2);
    let places = Places::new("stress-ng", Some(Duration::from_secs(1200 + 120 * seconds)));
    let messages = Messages::now();
    let suite = StressNg::find();
    let (ext4, mount) = (places.ext4("suite"), places.mount("suite"));
    let (native, mount): (verdict::Outcomes, verdict::Outcomes) = never_silent(|| {
        thread::scope(|scope| {
            let native = scope.spawn(|| suite.run_all(&ext4, 1));
            let mount = suite.run_all(&mount, seconds);
            (native.join().expect("stress-ng on ext4"), mount)
        })
    });
    judge(Suite::StressNg, 35, &native, &mount);
    no_harm(&messages);
    places.finish();
}
