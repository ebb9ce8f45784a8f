//! Names are linearizable over all of three nodes, while nodes are killed, frozen and unplugged.

use hfcache_jepsen::history::{Ask, Operation, Outcome, write_edn};
use hfcache_jepsen::random::Random;
use hfcache_jepsen::register::Run;
use hfcache_jepsen::{check, nemesis, register};
use hfcache_tests::{binary, measure};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

const NODES: usize = 3;
const CLIENTS_PER_NODE: usize = 5;

fn keep(operations: &[Operation]) -> PathBuf {
    let dir = binary::target_dirs().0.join("hfcache-tests");
    std::fs::create_dir_all(&dir).expect("make a directory for histories");
    let path = dir.join("register.edn");
    write_edn(operations, &path).expect("write the history");
    path
}

#[test]
fn names_are_linearizable_under_faults() {
    let mut random = Random::from_environment();
    let mut cluster = nemesis::cluster("jepsen", NODES);
    let run = Run::default();
    let restarts: Vec<AtomicU64> = (0..NODES).map(|_| AtomicU64::new(0)).collect();
    std::fs::create_dir(cluster.path(0, "registers")).expect("make the registers' directory");
    let dirs: Vec<PathBuf> = (0..NODES).map(|n| cluster.path(n, "registers")).collect();
    for key in 0..register::KEYS {
        let value = run.values.fetch_add(1, Ordering::Relaxed);
        let outcome = run.history.record(0, key, Ask::Write(value), || register::write(&dirs[0], key, value));
        assert_eq!(outcome, Outcome::Ok(value), "make register {key}");
    }
    let mut clients: Vec<Box<dyn FnOnce() + Send>> = Vec::new();
    for client in 0..NODES * CLIENTS_PER_NODE {
        let (run, dir, restarts) = (&run, &dirs[client % NODES], &restarts[client % NODES]);
        let random = Random::new(random.below(1 << 30) as u64);
        clients.push(Box::new(move || register::client(client, dir, run, restarts, random)));
    }
    let struck = nemesis::amid(&mut cluster, &restarts, &mut random, &run.stop, clients);
    cluster.wait_healthy();
    // All is well again: every node must tell the same.
    for key in 0..register::KEYS {
        let seen: Vec<Outcome> = (0..NODES)
            .map(|n| {
                run.history.record(n, key, Ask::Read, || {
                    register::read(&dirs[n], key).map_or(Outcome::Fail, Outcome::Ok)
                })
            })
            .collect();
        assert!(
            matches!(seen[0], Outcome::Ok(_)) && seen.iter().all(|s| *s == seen[0]),
            "register {key}: {seen:?}"
        );
    }
    let operations = run.history.operations();
    let kept = keep(&operations);
    let count = |wanted: fn(&Operation) -> bool| operations.iter().filter(|o| wanted(o)).count();
    let reads = count(|o| o.ask == Ask::Read && matches!(o.outcome, Outcome::Ok(_)));
    let writes = count(|o| o.ask != Ask::Read && matches!(o.outcome, Outcome::Ok(_)));
    let unknown = count(|o| o.outcome == Outcome::Info);
    println!(
        "  {reads} reads and {writes} writes done, {unknown} writes unknown, of {}; {struck:?}; {}",
        operations.len(),
        kept.display()
    );
    measure::record("jepsen", "operations of the register history", operations.len() as f64, "");

    // The second implies the first, whose findings are plainer to read.
    if let Some(why) = check::acknowledged(&operations) {
        panic!("an acknowledged write was missed: {why}; the history is in {}", kept.display());
    }
    if let Some(why) = check::linearizable(&operations) {
        panic!("not linearizable: {why}; the history is in {}", kept.display());
    }
    // A run in which nothing happened proves nothing.
    assert!(reads > 500 && writes > 200, "too little was done: {reads} reads, {writes} writes");
}
