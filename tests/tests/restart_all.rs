//! Everything dies at once, and comes back.

use hfcache_tests::pattern::Pattern;
use hfcache_tests::{Cluster, measure};
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// One writer's file: acknowledged when its `write` returned.
type Written = (String, Pattern);

#[test]
fn everything_acknowledged_survives_the_death_of_all() {
    let mut cluster = Cluster::start("restart-all", 3);
    let mut acknowledged: Vec<Written> = Vec::new();
    for round in 0..2u64 {
        let (stop, enough) = (AtomicBool::new(false), Mutex::new(0usize));
        let dirs: Vec<_> = (0..3).map(|n| (n, cluster.path(n, &format!("r{round}n{n}")))).collect();
        let killed = thread::scope(|scope| {
            let writers: Vec<_> = dirs
                .iter()
                .map(|(n, dir)| {
                    let (stop, enough) = (&stop, &enough);
                    scope.spawn(move || {
                        let mut done: Vec<Written> = Vec::new();
                        fs::create_dir(dir).expect("make a writer's directory");
                        for i in 0u64.. {
                            let len = [10, 4_000, 100_000, 3 << 20, 20 << 20][(i % 5) as usize];
                            let pattern = Pattern::new(round << 40 | (*n as u64) << 32 | i, len);
                            match pattern.write(&dir.join(format!("f{i}"))) {
                                Ok(_) => done.push((format!("r{round}n{n}/f{i}"), pattern)),
                                Err(_) if stop.load(Ordering::Relaxed) => break,
                                Err(why) => panic!("write {i} before the kill: {why}"),
                            }
                            *enough.lock().expect("count") += 1;
                        }
                        done
                    })
                })
                .collect();
            while *enough.lock().expect("count") < 45 && !writers.iter().all(|w| w.is_finished()) {
                thread::sleep(Duration::from_millis(5));
            }
            stop.store(true, Ordering::Relaxed);
            cluster.kill_all();
            writers.into_iter().flat_map(|w| w.join().expect("a writer")).collect::<Vec<_>>()
        });
        acknowledged.extend(killed);
        let start = Instant::now();
        cluster.start_all();
        measure::record(
            "restart_all",
            "all killed at once, healthy again after",
            start.elapsed().as_secs_f64(),
            "s",
        );
        for (path, pattern) in &acknowledged {
            for node in 0..3 {
                pattern.check(&cluster.path(node, path)).expect("what was acknowledged is there");
            }
        }
    }
    assert!(acknowledged.len() >= 90);
}

/// After a clean stop and a start everything is as it was, to the nanosecond.
#[test]
fn a_clean_restart_changes_nothing() {
    let mut cluster = Cluster::start("clean-restart", 3);
    let root = cluster.path(0, "d");
    fs::create_dir(&root).expect("mkdir");
    for i in 0..50u64 {
        Pattern::new(i, i * i * 1_000).write(&root.join(format!("f{i}"))).expect("write");
        symlink(format!("f{i}"), root.join(format!("l{i}"))).expect("symlink");
    }
    let stats = |cluster: &Cluster, node: usize| {
        let mut all: Vec<_> = fs::read_dir(cluster.path(node, "d"))
            .expect("list")
            .map(|e| e.expect("list"))
            .map(|e| {
                let m = e.metadata().expect("stat");
                (
                    e.file_name(),
                    m.ino(),
                    m.mode(),
                    m.size(),
                    m.mtime(),
                    m.mtime_nsec(),
                    m.ctime(),
                    m.ctime_nsec(),
                )
            })
            .collect();
        all.sort();
        all
    };
    let before = stats(&cluster, 1);
    assert_eq!(before.len(), 100);
    cluster.stop_all();
    cluster.start_all();
    for node in 0..3 {
        assert!(stats(&cluster, node) == before, "the same on node {node}");
        for i in 0..50u64 {
            Pattern::new(i, i * i * 1_000).check(&cluster.path(node, &format!("d/l{i}"))).expect("read");
        }
    }
}
