//! Chunks come back whole whatever single thing goes wrong.

mod double;

use double::{Cluster, Fault, bytes};
use hfcache_base::limits::CELL;
use hfcache_base::seam::Chunks;
use hfcache_base::{ChunkId, Kind, Scheme};
use std::time::Duration;

const MIB: usize = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn every_range_on_every_node() {
    for nodes in [1, 2, 3, 5] {
        let cluster = Cluster::new(nodes).await;
        for (id, len) in [(1, 1), (2, 16_384), (3, MIB - 1), (4, MIB), (5, 3 * MIB + 17), (6, 5 * MIB)] {
            let chunk = cluster.put(1 + id % nodes, id, len).await;
            assert_eq!(chunk.scheme, Scheme::choose(nodes as usize, len as u32));
            let all = bytes(id, len);
            for at in 1..=nodes {
                cluster.check(at, chunk).await;
                for (a, b) in
                    [(0, 0), (0, 1), (len / 3, len / 2), (len - 1, len), (MIB - 1, MIB + 1), (MIB, 2 * MIB)]
                {
                    let (a, b) = (a.min(len), b.min(len));
                    let got = cluster.stores[&at].get(chunk, a as u32..b as u32).await.unwrap();
                    assert!(got == all[a..b], "{chunk:?} {a}..{b} on {at}");
                }
            }
            let bad = cluster.stores[&1].get(chunk, 0..chunk.len + 1).await;
            assert_eq!(bad.unwrap_err().kind(), Kind::Invalid);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_survive_any_one_node() {
    let cluster = Cluster::new(3).await;
    let big = cluster.put(1, 1, 7 * MIB + 5).await;
    let small = cluster.put(1, 2, 20_000).await;
    let faults = [
        Fault { dead: true, ..Fault::default() },
        Fault { mute: true, ..Fault::default() },
        Fault { delay: Duration::from_secs(60), ..Fault::default() },
        Fault { flip: true, ..Fault::default() },
    ];
    for node in 1..=3 {
        for fault in faults {
            cluster.world.fault(node, fault);
            for at in (1..=3).filter(|at| *at != node) {
                for chunk in [big, small] {
                    // A bound on hanging, not a measurement.
                    tokio::time::timeout(Duration::from_secs(30), cluster.check(at, chunk)).await.unwrap();
                }
            }
            cluster.world.fault(node, Fault::default());
            // Whoever failed is avoided for a while; begin the next case without that.
            tokio::time::sleep(Duration::from_millis(2_050)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn too_few_shards_is_an_error_that_names_the_chunk() {
    let mut cluster = Cluster::new(3).await;
    let chunk = cluster.put(1, 77, 3 * MIB).await;
    cluster.kill(2).await;
    cluster.kill(3).await;
    let error = cluster.stores[&1].get(chunk, 0..chunk.len).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.to_string().contains("c77"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_survive_any_one_node() {
    for (round, fault) in [
        Fault { dead: true, ..Fault::default() },
        Fault { mute: true, ..Fault::default() },
        Fault { puts_left: Some(1), ..Fault::default() },
    ]
    .into_iter()
    .enumerate()
    {
        let cluster = Cluster::new(3).await;
        cluster.world.fault(3, fault);
        for n in 0..4 {
            let id = 1 + n + 10 * round as u64;
            let put = cluster.put(1, id, 3 * MIB + 1);
            let chunk = tokio::time::timeout(Duration::from_secs(30), put).await.unwrap();
            cluster.check(1, chunk).await;
            cluster.check(2, chunk).await;
        }
        // Written with one of three away: copies on the two that are left.
        assert_eq!(cluster.world.chunk(4 + 10 * round as u64).scheme, Scheme { data: 1, parity: 1 });
        cluster.world.fault(3, Fault::default());
        cluster.settle().await;
        // Nothing of abandoned plans is left, and any one node may now be lost.
        for n in 0..4 {
            let chunk = cluster.world.chunk(1 + n + 10 * round as u64);
            let files: usize = (1..=3).map(|node| cluster.files(node, chunk.id.0).len()).sum();
            assert_eq!(files, usize::from(chunk.scheme.total()), "{chunk:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_disks_reads_and_writes() {
    let mut cluster = Cluster::new(3).await;
    cluster.start(9, false).await;
    let chunk = cluster.put(9, 5, 4 * MIB).await;
    assert_eq!(chunk.scheme, Scheme { data: 2, parity: 1 });
    cluster.check(9, chunk).await;
    assert!(!cluster.dir(9).join("shards").exists());
    let space = cluster.stores[&9].space();
    assert_eq!(space.total, 2 << 30);
    assert_eq!(space.total - space.free, 4 << 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn full_disks() {
    use std::sync::atomic::Ordering::Relaxed;
    let mut cluster = Cluster::new(3).await;
    let old = cluster.put(1, 1, 3 * MIB).await;
    // One of three: the others can keep the promise of one loss.
    cluster.disks[&2].full.store(true, Relaxed);
    let chunk = cluster.put(1, 2, 3 * MIB).await;
    assert_eq!(chunk.scheme, Scheme { data: 1, parity: 1 });
    cluster.check(3, chunk).await;
    // Two of three: they can't.
    cluster.disks[&3].full.store(true, Relaxed);
    let error = cluster.stores[&1].put(ChunkId(3), double::pieces(3, 3 * MIB)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NoSpace);
    // Reading and deleting go on.
    cluster.check(2, old).await;
    cluster.world.free(old.id);
    cluster.until("freed chunks are deleted", |c| (1..=3).all(|n| c.files(n, 1).is_empty())).await;
    cluster.disks[&2].full.store(false, Relaxed);
    cluster.disks[&3].full.store(false, Relaxed);
    let chunk = cluster.put(1, 4, 3 * MIB).await;
    assert_eq!(chunk.scheme, Scheme { data: 2, parity: 1 });
    // One of four: three copies survive two losses, as promised of four.
    cluster.join(4).await;
    cluster.disks[&1].full.store(true, Relaxed);
    let chunk = cluster.put(2, 5, 3 * MIB).await;
    assert_eq!(chunk.scheme, Scheme { data: 1, parity: 2 });
    cluster.check(1, chunk).await;
}

/// A small file system of its own, if the test may mount one.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(at: &std::path::Path, bytes: usize) -> Option<Self> {
        use rustix::mount::{MountFlags, mount};
        let options = std::ffi::CString::new(format!("size={bytes}")).ok()?;
        mount("tmpfs", at, "tmpfs", MountFlags::empty(), options.as_c_str()).ok()?;
        Some(Self(at.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_really_fills_up() {
    let outer = double::TempDir::new();
    let Some(_disk) = SmallDisk::mount(&outer.0, 24 * MIB) else {
        println!("may not mount here: skipped");
        return;
    };
    let inner = outer.0.join("data");
    std::fs::create_dir(&inner).unwrap();
    let cluster = Cluster::within(double::TempDir(inner), 1).await;
    let store = cluster.stores[&1].clone();
    let key = |version| hfcache_base::seam::LocalKey { ino: hfcache_base::InodeId(2), version };
    store.local(key(1), 8 << 20).unwrap().fill_at(&vec![1; 8 * MIB], 0).unwrap();
    assert_eq!(store.hot_usage(), (1, 8 << 20));
    let mut chunks = Vec::new();
    let error = loop {
        let id = 1 + chunks.len() as u64;
        match store.put(ChunkId(id), double::pieces(id, 3 * MIB)).await {
            Ok(chunk) => {
                cluster.world.commit(chunk);
                chunks.push(chunk);
            }
            Err(e) => break e,
        }
    };
    assert_eq!(error.kind(), Kind::NoSpace);
    // Shards had the room of the hot copy before the disk was called full.
    assert_eq!(store.hot_usage().0, 0);
    assert!(chunks.len() >= 6, "{} chunks of 3 MiB on 24 MiB", chunks.len());
    for chunk in &chunks {
        cluster.check(1, *chunk).await;
    }
    cluster.world.free(chunks[0].id);
    cluster.until("the freed chunk is deleted", |c| c.files(1, 1).is_empty()).await;
    cluster.put(1, 100, 2 * MIB).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_cell_is_read_without_its_neighbours() {
    let cluster = Cluster::new(3).await;
    let chunk = cluster.put(1, 8, 8 * MIB).await;
    let before = cluster.world.calls.load(std::sync::atomic::Ordering::Relaxed);
    cluster.stores[&1].get(chunk, 3 * CELL..4 * CELL).await.unwrap();
    let after = cluster.world.calls.load(std::sync::atomic::Ordering::Relaxed);
    assert!(after - before <= 1, "{} calls", after - before);
}

/// Prints what a byte costs. Run it with `--release -- --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn speed() {
    let cpu = || {
        let usage = std::fs::read_to_string("/proc/self/stat").unwrap();
        let fields: Vec<&str> = usage.rsplit(") ").next().unwrap().split(' ').collect();
        [11, 12].map(|at: usize| fields[at].parse::<u64>().unwrap() as f64 / 100.0)
    };
    let report = |what: &str, bytes: usize, began: std::time::Instant, before: [f64; 2]| {
        let (wall, gib) = (began.elapsed().as_secs_f64(), bytes as f64 / (1u64 << 30) as f64);
        let spent = cpu();
        println!(
            "{what:28} {:6.2} GB/s {:6.2} user + {:.2} system CPU-s/GiB",
            bytes as f64 / wall / 1e9,
            (spent[0] - before[0]) / gib,
            (spent[1] - before[1]) / gib
        );
    };
    for (k, m) in [(2, 1), (4, 2), (8, 3)] {
        let data = [bytes::Bytes::from(bytes(1, 16 * MIB))];
        let (began, before) = (std::time::Instant::now(), cpu());
        for _ in 0..64 {
            hfcache_storage::codec::encode(Scheme { data: k, parity: m }, &data).unwrap();
        }
        report(&format!("encode {k}+{m}"), 64 * 16 * MIB, began, before);
    }
    let cluster = Cluster::new(3).await;
    let data = double::pieces(1, 16 * MIB);
    let (began, before) = (std::time::Instant::now(), cpu());
    let mut chunks = Vec::new();
    for id in 1..=32 {
        let chunk = cluster.stores[&1].put(ChunkId(id), data.clone()).await.unwrap();
        cluster.world.commit(chunk);
        chunks.push(chunk);
    }
    report("put 2+1, all three nodes", 32 * 16 * MIB, began, before);
    let (began, before) = (std::time::Instant::now(), cpu());
    for chunk in &chunks {
        cluster.stores[&1].get(*chunk, 0..chunk.len).await.unwrap();
    }
    report("get 2+1, both ends", 32 * 16 * MIB, began, before);
    cluster.world.fault(2, Fault { dead: true, ..Fault::default() });
    let (began, before) = (std::time::Instant::now(), cpu());
    for chunk in &chunks {
        cluster.stores[&1].get(*chunk, 0..chunk.len).await.unwrap();
    }
    report("get 2+1, one node dead", 32 * 16 * MIB, began, before);
    cluster.world.fault(2, Fault::default());
    tokio::time::sleep(Duration::from_secs(3)).await;
    cluster.world.fault(2, Fault { puts_left: Some(2), ..Fault::default() });
    let mut longest = Duration::ZERO;
    for id in 101..=108 {
        let began = std::time::Instant::now();
        cluster.stores[&1].put(ChunkId(id), data.clone()).await.unwrap();
        longest = longest.max(began.elapsed());
    }
    println!("longest put while a cable is cut {longest:?}");
    cluster.world.fault(2, Fault::default());
    tokio::time::sleep(Duration::from_secs(3)).await;
    let mut longest = Duration::ZERO;
    for (n, chunk) in chunks.iter().enumerate() {
        if n == 3 {
            cluster.world.fault(2, Fault { mute: true, ..Fault::default() });
        }
        let began = std::time::Instant::now();
        cluster.stores[&1].get(*chunk, 0..chunk.len).await.unwrap();
        longest = longest.max(began.elapsed());
    }
    println!("longest get while a cable is cut {longest:?}");
}
