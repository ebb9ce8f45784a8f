//! The Raft leader is killed in the middle of a thousand creates.

use hfcache_tests::pattern::Longest;
use hfcache_tests::{Cluster, measure};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

const FILES: usize = 1_000;
const WRITERS: usize = 4;
/// The leader dies after so many were acknowledged.
const KILL_AT: usize = 300;

/// Creates a file that carries its name as content; an error must not reach the application.
fn create(path: &Path, id: &str) {
    let mut file = File::create_new(path).unwrap_or_else(|why| panic!("create {id}: {why}"));
    file.write_all(id.as_bytes()).unwrap_or_else(|why| panic!("write {id}: {why}"));
    file.sync_all().unwrap_or_else(|why| panic!("sync {id}: {why}"));
}

fn listed(dir: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).expect("list") {
        let entry = entry.expect("list");
        let name = entry.file_name().into_string().expect("plain names");
        let content = fs::read_to_string(entry.path()).unwrap_or_else(|why| panic!("read {name}: {why}"));
        assert!(found.insert(name.clone(), content).is_none(), "{name} is there twice");
    }
    found
}

#[test]
fn every_acknowledged_create_is_there_once() {
    let mut cluster = Cluster::start("leader-kill", 3);
    let leader = cluster.leader();
    let others: Vec<usize> = (0..3).filter(|n| *n != leader).collect();
    fs::create_dir(cluster.path(leader, "d")).expect("make the directory");
    let dirs: Vec<PathBuf> = (0..WRITERS).map(|w| cluster.path(others[w % 2], "d")).collect();
    let acknowledged = AtomicUsize::new(0);
    let worst = thread::scope(|scope| {
        let writers: Vec<_> = dirs
            .iter()
            .enumerate()
            .map(|(w, dir)| {
                let acknowledged = &acknowledged;
                scope.spawn(move || {
                    let mut longest = Longest::default();
                    for i in (w..FILES).step_by(WRITERS) {
                        let id = format!("id-{i:04}");
                        longest.time(|| create(&dir.join(&id), &id));
                        // Made, renamed, and a directory: none of it may be done twice by a retry.
                        if i % 10 == 0 {
                            fs::create_dir(dir.join(format!("dir-{i:04}"))).expect("mkdir");
                            fs::rename(dir.join(format!("dir-{i:04}")), dir.join(format!("renamed-{i:04}")))
                                .expect("rename");
                            fs::remove_dir(dir.join(format!("renamed-{i:04}"))).expect("rmdir");
                        }
                        acknowledged.fetch_add(1, Ordering::Relaxed);
                    }
                    longest
                })
            })
            .collect();
        while acknowledged.load(Ordering::Relaxed) < KILL_AT && !writers.iter().all(|w| w.is_finished()) {
            thread::yield_now();
        }
        cluster.node_mut(leader).kill();
        let at = acknowledged.load(Ordering::Relaxed);
        assert!(at < FILES, "the leader was killed too late to matter");
        println!("  leader killed after {at} creates");
        writers.into_iter().map(|w| w.join().expect("no error reaches the application")).max()
    });
    measure::record("leader_kill", "longest create", worst.unwrap_or_default().0.as_secs_f64(), "s");

    let want: BTreeMap<String, String> =
        (0..FILES).map(|i| format!("id-{i:04}")).map(|id| (id.clone(), id)).collect();
    for node in &others {
        assert!(listed(&cluster.path(*node, "d")) == want, "all creates, each once, on node {node}");
    }
    cluster.node_mut(leader).start();
    cluster.wait_healthy();
    assert!(listed(&cluster.path(leader, "d")) == want, "and on the old leader");
}
