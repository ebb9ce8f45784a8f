//! Locks exclude over all of three nodes, and what is saved under one is seen under the next, while nodes are
//! killed, frozen and unplugged.

use hfcache_jepsen::counter::{self, Run};
use hfcache_jepsen::nemesis;
use hfcache_jepsen::random::Random;
use hfcache_tests::measure;
use std::path::PathBuf;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

const NODES: usize = 3;
const CLIENTS_PER_NODE: usize = 3;
/// A run in which less is done proves nothing. A holder that is killed stops the others for 10 s.
const LEAST: usize = 50;

#[test]
fn a_counter_under_a_lock_counts_under_faults() {
    let mut random = Random::from_environment();
    let mut cluster = nemesis::cluster("jepsen-locks", NODES);
    let run = Run::default();
    let restarts: Vec<AtomicU64> = (0..NODES).map(|_| AtomicU64::new(0)).collect();
    std::fs::create_dir(cluster.path(0, "counter")).expect("make the counter's directory");
    let dirs: Vec<PathBuf> = (0..NODES).map(|n| cluster.path(n, "counter")).collect();
    counter::make(&dirs[0]).expect("make the counter");
    let mut clients: Vec<Box<dyn FnOnce() + Send>> = Vec::new();
    for client in 0..NODES * CLIENTS_PER_NODE {
        let (run, dir) = (&run, &dirs[client % NODES]);
        let random = Random::new(random.below(1 << 30) as u64);
        clients.push(Box::new(move || counter::client(dir, run, random)));
    }
    let struck = nemesis::amid(&mut cluster, &restarts, &mut random, &run.stop, clients);
    cluster.wait_healthy();
    let last = counter::value(&dirs[0]).expect("read the counter");
    for dir in &dirs {
        assert_eq!(counter::value(dir).expect("read the counter"), last, "{}", dir.display());
    }
    let done = run.done.into_inner().unwrap_or_else(PoisonError::into_inner);
    let unknown = run.unknown.load(Ordering::Relaxed);
    println!("  {} counted, {unknown} unknown, the counter says {last}; {struck:?}", done.len());
    measure::record("jepsen", "increments under a lock", done.len() as f64, "");
    if let Some(why) = counter::judge(&done, unknown, last) {
        panic!("{why}");
    }
    assert!(done.len() >= LEAST, "too little was done: {}", done.len());
}
