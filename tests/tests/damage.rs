//! Disks that rot or are full, and an end in the middle of a write.

use hfcache_tests::pattern::{Pattern, STEP};
use hfcache_tests::{Cluster, Lab, eventually, measure, mounts, sys};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

/// All shard files of a node, by what they begin with, largest first.
fn shards(data: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![data.join("shards")];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().map(|e| e.expect("list")) {
            let path = entry.path();
            if path.is_dir() {
                todo.push(path);
            } else {
                let mut magic = [0; 8];
                let read = File::open(&path).and_then(|f| f.read_exact_at(&mut magic, 0));
                if read.is_ok() && &magic == b"hfshard\n" {
                    found.push((entry.metadata().expect("stat").len(), path));
                }
            }
        }
    }
    found.sort();
    found.into_iter().rev().map(|(_, path)| path).collect()
}

/// Whether reading the whole file needs this shard, so that damage in it is found. Its name is `CHUNK.K.I`: shard I
/// of a code with K data shards. The parity of a code is read only while something else is missing.
fn is_read(shard: &Path) -> bool {
    let name = shard.file_name().and_then(|n| n.to_str()).expect("a plain name");
    let numbers: Vec<u64> = name
        .split('.')
        .map(|n| u64::from_str_radix(n, 16).unwrap_or_else(|_| panic!("the name of a shard: {name}")))
        .collect();
    let [_chunk, data, index] = numbers[..] else { panic!("the name of a shard: {name}") };
    data == 1 || index < data
}

#[test]
fn damaged_shards_are_never_returned_and_are_rebuilt() {
    let mut cluster = Cluster::start("damage", 3);
    let files: Vec<Pattern> = (0..6)
        .map(|i| Pattern::new(i, [40 << 20, 6 << 20, 200_000, 20 << 20, 300_000, 1 << 20][i as usize]))
        .collect();
    for (i, pattern) in files.iter().enumerate() {
        pattern.write(&cluster.path(0, &format!("f{i}"))).expect("write");
    }
    cluster.wait_healthy();
    let mut hurt = shards(cluster.node(1).data());
    assert!(hurt.len() >= 6, "node 2 holds shards: {hurt:?}");
    hurt.retain(|shard| is_read(shard));
    for (i, path) in hurt.iter().enumerate() {
        let file = File::options().read(true).write(true).open(path).expect("open a shard");
        let len = file.metadata().expect("stat").len();
        match i % 3 {
            0 => {
                let at = len - 1 - (len / 3);
                let mut byte = [0];
                file.read_exact_at(&mut byte, at).expect("read");
                file.write_all_at(&[byte[0] ^ 0x10], at).expect("flip a bit");
            }
            1 => file.set_len(len / 2).expect("truncate"),
            _ => file.write_all_at(&[0; 64], 0).expect("wipe the header"),
        }
    }
    cluster.make_cold(2);
    for (i, pattern) in files.iter().enumerate() {
        pattern.check(&cluster.path(2, &format!("f{i}"))).expect("right bytes in spite of the damage");
    }
    // The damaged node itself reads right bytes, too.
    cluster.make_cold(1);
    for (i, pattern) in files.iter().enumerate() {
        pattern.check(&cluster.path(1, &format!("f{i}"))).expect("right bytes on the damaged node");
    }
    let damaged = (0..3).map(|n| cluster.status(n)["redundancy"]["damaged"].as_u64().unwrap_or(0)).max();
    assert!(damaged.unwrap_or(0) > 0, "damage is counted in status: {}", cluster.status(0)["redundancy"]);
    cluster.wait_healthy();
    // Rebuilt for good: another node may go now, and what is left is enough.
    cluster.make_cold(2);
    cluster.wait_healthy();
    cluster.node_mut(0).kill();
    for (i, pattern) in files.iter().enumerate() {
        pattern.check(&cluster.path(2, &format!("f{i}"))).expect("the rebuilt shards serve");
    }
}

#[test]
fn a_full_disk_gives_enospc_and_loses_nothing() {
    if !sys::is_root() {
        eprintln!("SKIPPED: small disks are made with mount, which needs root");
        return;
    }
    const DISK: u64 = 400 << 20;
    let lab = Arc::new(Lab::new("full"));
    let mut cluster = Cluster::empty(&lab, "", None);
    for i in 0..3 {
        let disk = lab.dir(&format!("disk{i}"));
        sys::mount_tmpfs(&disk, DISK).expect("mount a small disk");
        cluster.add_node_at(Some(disk.join("data")), &[]);
    }
    cluster.wait_healthy();
    let before = Pattern::new(1_000, 5 << 20);
    before.write(&cluster.path(1, "before")).expect("write while there is room");
    let mut whole: Vec<(u64, Pattern)> = Vec::new();
    let mut full = None;
    for i in 0..200u64 {
        let pattern = Pattern::new(i, 8 << 20);
        match pattern.write(&cluster.path(0, &format!("f{i}"))) {
            Ok(_) => whole.push((i, pattern)),
            Err(why) => {
                full = Some(why);
                break;
            }
        }
    }
    let why = full.expect("the disks become full");
    assert_eq!(why.raw_os_error(), Some(libc::ENOSPC), "{why}");
    let stored = whole.iter().map(|(_, p)| p.len).sum::<u64>();
    measure::record("damage", "stored before ENOSPC, of 3 disks with 400 MiB", stored as f64 / 1e6, "MB");
    assert!(whole.len() >= 10, "only {} files fit", whole.len());
    // Full for large writes; reading, listing and the namespace go on.
    before.check(&cluster.path(2, "before")).expect("what was there is there");
    for (i, pattern) in &whole {
        pattern.check(&cluster.path(1, &format!("f{i}"))).expect("what was acknowledged is there");
    }
    let statfs = sys::space(&cluster.path(0, "")).expect("statfs");
    assert!(statfs.available < 64 << 20, "statfs says it is full: {statfs:?}");
    // Deleting always works, and makes room.
    for entry in fs::read_dir(cluster.path(2, "")).expect("list") {
        let path = entry.expect("list").path();
        if path.file_name().is_some_and(|n| n != "before") {
            fs::remove_file(path).expect("delete while full");
        }
    }
    let again = Pattern::new(77, 30 << 20);
    eventually("there is room again", Duration::from_secs(180), || {
        let path = cluster.path(0, "again");
        let _ = fs::remove_file(&path);
        match again.write(&path) {
            Ok(_) => true,
            Err(why) => {
                assert_eq!(why.kind(), ErrorKind::StorageFull, "{why}");
                thread::sleep(Duration::from_secs(1));
                false
            }
        }
    });
    again.check(&cluster.path(1, "again")).expect("read");
    before.check(&cluster.path(1, "before")).expect("still there");
    // A restart on a disk that was full works.
    cluster.stop_all();
    cluster.start_all();
    again.check(&cluster.path(2, "again")).expect("read after a restart");
}

#[test]
fn sigterm_in_a_write_flushes_or_fails_but_never_tears() {
    let mut cluster = Cluster::start("sigterm", 3);
    for round in 0..3u64 {
        let pattern = Pattern::new(round, 400 << 20);
        let name = format!("big{round}");
        let path = cluster.path(0, &name);
        let written = AtomicU64::new(0);
        let result = thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut file = File::create_new(&path)?;
                let mut buf = vec![0; STEP];
                while written.load(Ordering::Relaxed) < pattern.len {
                    let at = written.load(Ordering::Relaxed);
                    pattern.fill(at, &mut buf);
                    file.write_all(&buf)?;
                    written.store(at + STEP as u64, Ordering::Relaxed);
                }
                file.sync_all()
            });
            while written.load(Ordering::Relaxed) < (30 + 40 * round) << 20 && !writer.is_finished() {
                thread::yield_now();
            }
            cluster.node(0).ask_to_stop();
            writer.join().expect("the writer ends")
        });
        let status = cluster.node_mut(0).wait_end();
        assert!(status.success(), "a clean end, in a write too: {status}");
        assert!(mounts::at(&cluster.node(0).mount()).is_none(), "nothing stays mounted");
        let written = written.load(Ordering::Relaxed);
        let seen = cluster.path(1, &name);
        let len = fs::metadata(&seen).map_or(0, |m| m.len());
        match &result {
            Ok(()) => assert_eq!(len, pattern.len, "what was synced is whole"),
            Err(_) => {
                assert!(len == 0 || len >= written, "half a write: {len} bytes of {written} that were taken")
            }
        }
        if len > 0 {
            Pattern::new(round, len).check(&seen).expect("what is there is right");
        }
        cluster.node_mut(0).start();
        cluster.wait_healthy();
        let _ = fs::remove_file(cluster.path(0, &name));
    }
}

/// A node's memory is bounded, whatever passes through it.
#[test]
fn memory_stays_bounded_while_a_large_file_passes() {
    let cluster = Cluster::start("memory", 3);
    let size =
        std::env::var("HFCACHE_LARGE_MIB").ok().and_then(|m| m.parse::<u64>().ok()).unwrap_or(1_024) << 20;
    let pattern = Pattern::new(1, size);
    pattern.write(&cluster.path(0, "large")).expect("write");
    pattern.check(&cluster.path(1, "large")).expect("read");
    for node in 0..3 {
        let rss = cluster.node(node).peak_rss();
        measure::record(
            "damage",
            &format!("peak RSS of node {node} with {} MiB", size >> 20),
            rss as f64 / 1048576.0,
            "MiB",
        );
        assert!(rss < 512 << 20, "node {node} took {rss} bytes");
    }
}
