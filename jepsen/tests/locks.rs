//! Locks exclude over all of three nodes, and what is saved under one is seen under the next, while nodes are
//! killed, frozen and unplugged.

use hfcache_jepsen::counter::{self, Line};
use hfcache_jepsen::nemesis;
use hfcache_jepsen::random::Random;
use hfcache_tests::measure;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64};

const NODES: usize = 3;
const CLIENTS_PER_NODE: usize = 3;
/// A run in which less is done proves nothing. A holder that is killed stops the others for 10 s.
const LEAST: usize = 50;
const DIR: &str = "HFCACHE_COUNTER_DIR";
const SEEDS: &str = "HFCACHE_COUNTER_SEEDS";

/// What the test below starts as another process: clients, until its standard input ends.
#[test]
fn clients_for_the_other_test() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let seeds = std::env::var(SEEDS).expect("seeds of clients");
    let seeds: Vec<u64> = seeds.split(' ').map(|seed| seed.parse().expect("a seed")).collect();
    counter::clients(Path::new(&dir), &seeds);
}

fn start_clients(dir: &Path, random: &mut Random) -> Child {
    let seeds: Vec<String> = (0..CLIENTS_PER_NODE).map(|_| random.below(1 << 30).to_string()).collect();
    Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "clients_for_the_other_test", "--nocapture"])
        .env(DIR, dir)
        .env(SEEDS, seeds.join(" "))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start clients")
}

#[test]
fn a_counter_under_a_lock_counts_under_faults() {
    let mut random = Random::from_environment();
    let mut cluster = nemesis::cluster("jepsen-locks", NODES);
    let restarts: Vec<AtomicU64> = (0..NODES).map(|_| AtomicU64::new(0)).collect();
    std::fs::create_dir(cluster.path(0, "counter")).expect("make the counter's directory");
    let dirs: Vec<PathBuf> = (0..NODES).map(|n| cluster.path(n, "counter")).collect();
    counter::make(&dirs[0]).expect("make the counter");
    let mut clients: Vec<Child> = dirs.iter().map(|dir| start_clients(dir, &mut random)).collect();
    let (mut done, mut unknown) = (Vec::new(), 0);
    let listeners: Vec<_> = clients
        .iter_mut()
        .map(|child| {
            let said = BufReader::new(child.stdout.take().expect("piped"));
            std::thread::spawn(move || said.lines().map_while(Result::ok).collect::<Vec<String>>())
        })
        .collect();
    let stop = AtomicBool::new(false);
    let struck = nemesis::amid(&mut cluster, &restarts, &mut random, &stop, Vec::new());
    for child in &mut clients {
        drop(child.stdin.take());
        assert!(child.wait().expect("wait for clients").success(), "clients have failed");
    }
    for listener in listeners {
        // Between them are lines of the test runner.
        for line in listener.join().expect("listen to clients").iter().filter_map(|l| l.parse().ok()) {
            match line {
                Line::Counted(increment) => done.push(increment),
                Line::Unknown => unknown += 1,
            }
        }
    }
    cluster.wait_healthy();
    let last = counter::value(&dirs[0]).expect("read the counter");
    for dir in &dirs {
        assert_eq!(counter::value(dir).expect("read the counter"), last, "{}", dir.display());
    }
    println!("  {} counted, {unknown} unknown, the counter says {last}; {struck:?}", done.len());
    measure::record("jepsen", "increments under a lock", done.len() as f64, "");
    if let Some(why) = counter::judge(&done, unknown, last) {
        panic!("{why}");
    }
    assert!(done.len() >= LEAST, "too little was done: {}", done.len());
}
