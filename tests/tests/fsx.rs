//! Random operations on one file, next to the bytes it must have: `HFCACHE_FSX_OPERATIONS` in each mode, from
//! `HFCACHE_SEED`. They are long: `cargo test -p hfcache-tests --test fsx -- --ignored`.

use hfcache_tests::conformance::exerciser::{self, Plan};
use hfcache_tests::conformance::fsx::{Fsx, Mode};
use hfcache_tests::conformance::{seed, setting};
use hfcache_tests::{Cluster, Lab, measure};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Without the environment: enough for many edges, and little enough for every change.
const OPERATIONS: u64 = 8_000;

fn operations() -> u64 {
    setting("HFCACHE_FSX_OPERATIONS", OPERATIONS)
}

/// A busy machine with an unoptimised binary still does this many operations in a second.
fn patience() -> Duration {
    Duration::from_secs(120 + operations() / 20)
}

/// Three nodes, and what shall be done on the mounts of the first two.
fn on_cluster(name: &str, body: impl FnOnce(&Cluster, &Lab, u64) -> Result<(), String>) {
    let lab = Arc::new(Lab::with_patience(name, patience() + Duration::from_secs(120)));
    let mut cluster = Cluster::start_in(&lab, "", 3);
    let seed = seed();
    println!("  {name}: {} operations from HFCACHE_SEED={seed}", operations());
    let start = Instant::now();
    let result = body(&cluster, &lab, seed);
    measure::record(name, "operations", operations() as f64 / start.elapsed().as_secs_f64(), "per s");
    if let Err(why) = result {
        panic!("{name}: {why}");
    }
    cluster.wait_healthy();
    cluster.stop_all();
}

fn by_fsx(name: &str, mode: Mode) {
    on_cluster(name, |cluster, lab, seed| {
        Fsx::new(&lab.dir("scratch")).run(mode, &cluster.path(0, ""), operations(), seed, patience())
    });
}

#[test]
#[ignore = "long; a stage of its own"]
fn buffered() {
    by_fsx("fsx-buffered", Mode::Buffered);
}

#[test]
#[ignore = "long; a stage of its own"]
fn mapped() {
    by_fsx("fsx-mapped", Mode::Mapped);
}

#[test]
#[ignore = "long; a stage of its own"]
fn direct() {
    on_cluster("fsx-direct", |cluster, _, seed| {
        let views = vec![cluster.path(0, "")];
        exerciser::exercise(&Plan { views, direct: true, operations: operations(), seed, sabotage: None })
    });
}

#[test]
#[ignore = "long; a stage of its own"]
fn two_nodes_take_turns() {
    on_cluster("fsx-turns", |cluster, _, seed| {
        let views = vec![cluster.path(0, ""), cluster.path(1, "")];
        exerciser::exercise(&Plan { views, direct: false, operations: operations(), seed, sabotage: None })
    });
}
