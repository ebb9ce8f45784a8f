//! Local files: presence, fills that never overwrite, publishing, eviction.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod double;

use double::{Cluster, FullableDisk, SharedDisk, TempDir, bytes};
use hfcache_base::limits::MIB;
use hfcache_base::seam::{Chunks, LocalFile, LocalKey};
use hfcache_base::{InodeId, Kind};
use hfcache_storage::hot::{Floors, Hot};
use std::sync::Arc;
use std::sync::atomic::Ordering;

const NONE: Floors = Floors { evict: 0, refuse: 0 };

fn key(ino: u64, version: u64) -> LocalKey {
    LocalKey { ino: InodeId(ino), version }
}

fn files(dir: &TempDir) -> usize {
    std::fs::read_dir(dir.0.join("hot")).unwrap().count()
}

fn open(dir: &TempDir, floors: Floors) -> (Arc<Hot>, Arc<FullableDisk>) {
    let disk = Arc::new(FullableDisk::default());
    (Hot::open(Arc::new(SharedDisk(disk.clone())), dir.0.join("hot"), floors).unwrap(), disk)
}

#[test]
fn a_file_behaves_like_bytes_with_a_presence() {
    let dir = TempDir::new();
    let (hot, _) = open(&dir, NONE);
    for seed in 0..40u64 {
        let file = hot.local(key(seed, 1), 0).unwrap();
        let mut model: Vec<Option<u8>> = Vec::new();
        let mut x = seed;
        for step in 0..80u64 {
            x = hfcache_base::placement::mix(x);
            let (at, len) = ((x % 9_000) as usize, (x >> 16) as usize % 3_000);
            let data = bytes(step, len);
            let end = at + len;
            let kind = x >> 40 & 7;
            if kind < 7 && model.len() < end && len > 0 {
                model.resize(end, None);
            }
            match kind {
                0..=2 => {
                    file.write_at(&data, at as u64).unwrap();
                    for (m, d) in model[at.min(end)..].iter_mut().zip(&data) {
                        *m = Some(*d);
                    }
                }
                3 | 4 => {
                    file.fill_at(&data, at as u64).unwrap();
                    for (m, d) in model.iter_mut().skip(at).zip(&data) {
                        m.get_or_insert(*d);
                    }
                }
                5 | 6 => {
                    file.zero(at as u64..end as u64).unwrap();
                    model.iter_mut().skip(at).take(len).for_each(|m| *m = Some(0));
                }
                _ => {
                    file.set_len(at as u64).unwrap();
                    model.resize(at, Some(0));
                }
            }
            let mut all = vec![0xee; model.len()];
            assert_eq!(file.read_at(&mut all, 0).unwrap(), model.len());
            let missing = file.missing(0..model.len() as u64);
            for (n, m) in model.iter().enumerate() {
                assert_eq!(
                    missing.iter().any(|r| r.contains(&(n as u64))),
                    m.is_none(),
                    "{seed} {step} at {n}"
                );
                assert!(m.is_none_or(|m| m == all[n]), "{seed} {step} at {n}");
            }
        }
    }
}

#[test]
fn staged_files_become_hot_copies() {
    let dir = TempDir::new();
    let (hot, _) = open(&dir, NONE);
    let old = hot.local(key(1, 1), 10).unwrap();
    old.fill_at(b"0123456789", 0).unwrap();
    drop(old);
    let staged: Arc<dyn LocalFile> = hot.stage().unwrap();
    staged.write_at(b"new bytes", 0).unwrap();
    hot.publish(&staged, key(1, 2));
    // The earlier version is gone, as nobody held it.
    assert_eq!(files(&dir), 1);
    let found = hot.local(key(1, 2), 9).unwrap();
    assert!(found.missing(0..9).is_empty());
    let mut buf = [0; 9];
    assert_eq!(found.read_at(&mut buf, 0).unwrap(), 9);
    assert_eq!(&buf, b"new bytes");
    // One that is thrown away leaves nothing behind.
    let discarded = hot.stage().unwrap();
    assert_eq!(files(&dir), 2);
    drop(discarded);
    assert_eq!(files(&dir), 1);
    drop((staged, found));
    assert_eq!(hot.usage(), (1, 9));
    assert!(hot.evict(1));
    assert_eq!((files(&dir), hot.usage()), (0, (0, 0)));
    assert!(!hot.evict(1));
}

#[test]
fn the_oldest_unused_copy_goes_first_and_held_ones_stay() {
    let dir = TempDir::new();
    let (hot, _) = open(&dir, NONE);
    for ino in 1..=3 {
        hot.local(key(ino, 1), 4).unwrap().fill_at(b"abcd", 0).unwrap();
    }
    let held = hot.local(key(1, 1), 4).unwrap();
    hot.local(key(2, 1), 4).unwrap();
    assert!(hot.evict(4));
    assert!(hot.local(key(2, 1), 4).unwrap().missing(0..4).is_empty());
    assert!(!hot.local(key(3, 1), 4).unwrap().missing(0..4).is_empty(), "the oldest was 3");
    assert!(hot.evict(1 << 40));
    assert!(held.missing(0..4).is_empty());
}

#[test]
fn a_full_disk_is_no_space() {
    let dir = TempDir::new();
    let (hot, disk) = open(&dir, NONE);
    let staged = hot.stage().unwrap();
    staged.write_at(b"fits", 0).unwrap();
    disk.full.store(true, Ordering::Relaxed);
    assert_eq!(staged.write_at(b"x", 4).unwrap_err().kind(), Kind::NoSpace);
    assert_eq!(staged.fill_at(b"x", 4).unwrap_err().kind(), Kind::NoSpace);
    assert_eq!(staged.missing(0..5), vec![4..5u64]);
    disk.full.store(false, Ordering::Relaxed);
    staged.write_at(b"x", 4).unwrap();
    // Below the floor nothing is staged at all: the rest belongs to the shards.
    let dir = TempDir::new();
    let (hot, _) = open(&dir, Floors { evict: 1 << 60, refuse: 1 << 60 });
    assert_eq!(hot.stage().err().unwrap().kind(), Kind::NoSpace);
    let file = hot.local(key(1, 1), 64 * MIB).unwrap();
    let big = vec![1; 17 * MIB as usize];
    assert_eq!(file.fill_at(&big, 0).unwrap_err().kind(), Kind::NoSpace);
}

#[tokio::test(flavor = "multi_thread")]
async fn through_the_store_and_over_a_restart() {
    let mut cluster = Cluster::new(1).await;
    let store = cluster.stores[&1].clone();
    let staged = store.stage().unwrap();
    staged.write_at(b"hello", 0).unwrap();
    store.publish(staged.clone(), key(7, 1));
    assert!(store.local(key(7, 1), 5).unwrap().missing(0..5).is_empty());
    drop((store, staged));
    cluster.kill(1).await;
    cluster.start(1, true).await;
    assert_eq!(cluster.stores[&1].local(key(7, 1), 5).unwrap().missing(0..5), vec![0..5u64]);
    assert_eq!(std::fs::read_dir(cluster.dir(1).join("hot")).unwrap().count(), 1);
}
