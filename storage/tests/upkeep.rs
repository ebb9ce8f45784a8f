//! Every node ends up with what it should hold, and nothing is unreadable on the way.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod double;

use double::{Cluster, Fault, pieces};
use hfcache_base::limits::CELL;
use hfcache_base::meta::ChunkRef;
use hfcache_base::seam::Chunks;
use hfcache_base::{ChunkId, ClusterMap, NodeId, NodeState, Scheme, SessionId};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const MIB: usize = 1 << 20;

/// The one file a node has of a chunk, and whether all others have one.
fn file_of(cluster: &Cluster, node: u64, id: u64) -> PathBuf {
    let files = cluster.files(node, id);
    assert_eq!(files.len(), 1, "{files:?}");
    files.into_iter().next().unwrap()
}

fn at_home(cluster: &Cluster, chunk: ChunkRef) {
    let map: Arc<ClusterMap> = cluster.world.map();
    let homes = &map.homes(chunk.id)[..usize::from(chunk.scheme.total())];
    for node in map.nodes.keys() {
        let expected = usize::from(homes.contains(node));
        let files = cluster.files(node.0, chunk.id.0);
        assert_eq!(files.len(), expected, "{chunk:?} homes {homes:?} on {node}: {files:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_was_handed_over_goes_home() {
    let mut cluster = Cluster::new(4).await;
    cluster.kill(2).await;
    let mut chunks = Vec::new();
    for id in 1..=12 {
        chunks.push(cluster.put(1, id, 2 * MIB + 3).await);
        chunks.push(cluster.put(3, 100 + id, 9_000).await);
    }
    assert_eq!(chunks[0].scheme, Scheme { data: 2, parity: 1 });
    let away = chunks.iter().any(|c| {
        let home = cluster.world.map().homes(c.id)[3];
        c.scheme.total() == 3 && !cluster.files(home.0, c.id.0).is_empty()
    });
    assert!(away, "no shard was handed over");
    cluster.start(2, true).await;
    cluster.settle().await;
    for chunk in chunks {
        at_home(&cluster, chunk);
        cluster.check(2, chunk).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_come_and_go_and_everything_stays_readable() {
    let mut cluster = Cluster::new(3).await;
    let mut chunks = Vec::new();
    for id in 1..=10 {
        chunks.push(cluster.put(1, id, 2 * MIB + id as usize).await);
        chunks.push(cluster.put(2, 100 + id, 5_000).await);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let reader = tokio::spawn({
        let (store, chunks, stop) = (cluster.stores[&3].clone(), chunks.clone(), stop.clone());
        async move {
            let mut reads = 0;
            while !stop.load(Ordering::Relaxed) {
                for chunk in &chunks {
                    let got = store.get(*chunk, 0..chunk.len).await.unwrap();
                    assert!(got == double::bytes(chunk.id.0, chunk.len as usize));
                    reads += 1;
                }
            }
            reads
        }
    });
    cluster.join(4).await;
    cluster.settle().await;
    cluster.world.change_map(|map| map.nodes.get_mut(&NodeId(2)).unwrap().state = NodeState::Leaving);
    cluster.settle().await;
    let moved = chunks.iter().filter(|c| !cluster.files(4, c.id.0).is_empty()).count();
    assert!(moved > 0, "nothing moved to the new node");
    for chunk in &chunks {
        at_home(&cluster, *chunk);
        assert!(cluster.files(2, chunk.id.0).is_empty(), "the leaving node still has a shard");
    }
    stop.store(true, Ordering::Relaxed);
    assert!(reader.await.unwrap() > 0);
    cluster.kill(2).await;
    for chunk in &chunks {
        cluster.check(4, *chunk).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_disk_is_filled_again() {
    let mut cluster = Cluster::new(3).await;
    let mut chunks = Vec::new();
    for id in 1..=6 {
        chunks.push(cluster.put(1, id, 3 * MIB + 11).await);
        chunks.push(cluster.put(1, 100 + id, 300).await);
    }
    cluster.kill(2).await;
    std::fs::remove_dir_all(cluster.dir(2)).unwrap();
    cluster.start(2, true).await;
    cluster.settle().await;
    assert!(cluster.stores[&2].redundancy().rebuilt > 0);
    for chunk in &chunks {
        at_home(&cluster, *chunk);
    }
    cluster.kill(1).await;
    for chunk in &chunks {
        cluster.check(2, *chunk).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_anywhere_in_a_shard_file_is_found_and_mended() {
    let cluster = Cluster::new(3).await;
    let mut damages = 0;
    for (id, len) in [(1, 5 * MIB + 9), (2, 16_384)] {
        let chunk = cluster.put(1, id, len).await;
        let node = cluster.world.map().homes(chunk.id)[0].0;
        let path = file_of(&cluster, node, id);
        let good = std::fs::read(&path).unwrap();
        let flips =
            [0, 9, 10, 12, 14, 16, 24, 30, 37, 41, 200, 511, 512, 4_095, 4_096, MIB + 5_000, good.len() - 1];
        let flip = |at: usize| {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            Some(bad)
        };
        let cut = |len: usize| Some(good[..len].to_vec());
        let mut long = good.clone();
        long.push(0);
        let mut cases: Vec<Option<Vec<u8>>> =
            flips.into_iter().filter(|at| *at < good.len()).map(flip).collect();
        cases.extend([cut(0), cut(7), cut(100), cut(512), cut(good.len() - 1), Some(long), None]);
        cases.push(Some(vec![0; good.len()]));
        for (n, bad) in cases.into_iter().enumerate() {
            match bad {
                Some(bad) => std::fs::write(&path, bad).unwrap(),
                None => std::fs::remove_file(&path).unwrap(),
            }
            damages += 1;
            // On the node itself, so that the damage is met.
            cluster.check(node, chunk).await;
            let now = || std::fs::read(&path).is_ok_and(|now| now == good);
            cluster.until(&format!("chunk {id} is mended after case {n}"), |_| now()).await;
            cluster.until("the node knows", |c| c.stores[&node].redundancy().missing == 0).await;
        }
        let found = cluster.stores.values().map(|s| s.redundancy().corrupt_found).sum::<u64>();
        assert_eq!(found, damages);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn remote_damage_is_found_by_the_holder() {
    let cluster = Cluster::new(3).await;
    let chunk = cluster.put(1, 1, 2 * MIB).await;
    let home = cluster.world.map().homes(chunk.id)[0].0;
    let reader = (1..=3).find(|n| *n != home).unwrap();
    let path = file_of(&cluster, home, 1);
    let good = std::fs::read(&path).unwrap();
    let mut bad = good.clone();
    bad[9_000] ^= 1;
    std::fs::write(&path, bad).unwrap();
    cluster.check(reader, chunk).await;
    cluster.until("mended", |_| std::fs::read(&path).is_ok_and(|now| now == good)).await;
    assert!(cluster.stores[&reader].redundancy().reconstructed > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn strange_files_are_left_alone_and_temporary_ones_go() {
    let mut cluster = Cluster::new(1).await;
    let chunk = cluster.put(1, 1, 3_000).await;
    cluster.kill(1).await;
    let dir = cluster.dir(1);
    let shard = file_of(&cluster, 1, 1);
    let home = shard.parent().unwrap().to_owned();
    let strangers = [
        home.join("notes.txt"),
        home.join("ffffffffffffffff.1.0"),
        home.join("00.1.0"),
        dir.join("shards/x"),
    ];
    for stranger in &strangers {
        std::fs::write(stranger, b"what is this").unwrap();
    }
    // The right name with someone else's bytes.
    let false_name = home.join(shard.file_name().unwrap().to_str().unwrap().replace(".1.0", ".2.1"));
    std::fs::copy(&shard, &false_name).unwrap();
    std::fs::write(dir.join("tmp/half"), b"half").unwrap();
    cluster.start(1, true).await;
    cluster.settle().await;
    cluster.check(1, chunk).await;
    assert!(strangers.iter().all(|s| s.exists()));
    assert!(!dir.join("tmp/half").exists());
    assert!(!false_name.exists(), "a shard of a scheme that the chunk does not have");
    assert!(cluster.stores[&1].redundancy().strangers >= 3);
    assert_eq!(cluster.stores[&1].redundancy().shards, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_goes_only_when_nobody_may_still_want_it() {
    let cluster = Cluster::new(3).await;
    let (wanted, orphan, forgotten) = (ChunkId(1), ChunkId(2), ChunkId(3));
    for id in [wanted, orphan, forgotten] {
        cluster.world.claim(id, Some(SessionId(7)));
        cluster.stores[&1].put(id, pieces(id.0, 2 * MIB)).await.unwrap();
    }
    let count = |c: &Cluster, id: ChunkId| (1..=3).map(|n| c.files(n, id.0).len()).sum::<usize>();
    cluster.stores[&1].forget(forgotten);
    cluster.until("forgotten chunks go at once", |c| count(c, forgotten) == 0).await;
    cluster.world.claim(orphan, None);
    cluster.until("orphans go after a while", |c| count(c, orphan) == 0).await;
    let passes = cluster.stores[&1].redundancy().passes;
    cluster.until("two more passes", |c| c.stores[&1].redundancy().passes > passes + 2).await;
    assert_eq!(count(&cluster, wanted), 3, "a live session may still commit it");
    // A committed chunk is not dropped, whoever says so.
    let chunk = ChunkRef { id: wanted, len: 2 * CELL, scheme: Scheme { data: 2, parity: 1 } };
    cluster.world.commit(chunk);
    cluster.stores[&2].forget(wanted);
    cluster.settle().await;
    cluster.check(3, chunk).await;
    assert_eq!(count(&cluster, wanted), 3);
    cluster.world.free(wanted);
    cluster.until("freed chunks go", |c| count(c, wanted) == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_copies_are_made_when_the_cluster_can_afford_them() {
    let mut cluster = Cluster::new(1).await;
    let mut chunk = cluster.put(1, 5, 3 * MIB).await;
    assert_eq!(chunk.scheme, Scheme { data: 1, parity: 0 });
    cluster.join(2).await;
    chunk.scheme.parity = 1;
    cluster.world.commit(chunk);
    cluster.settle().await;
    at_home(&cluster, chunk);
    cluster.kill(1).await;
    cluster.check(2, chunk).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_surplus_shard_stays_while_its_home_is_away() {
    let mut cluster = Cluster::new(4).await;
    cluster.kill(2).await;
    let mut chunks = Vec::new();
    for id in 1..=8 {
        chunks.push(cluster.put(1, id, 2 * MIB).await);
    }
    let files = |c: &Cluster| -> usize {
        chunks.iter().flat_map(|chunk| [1, 3, 4].map(|n| c.files(n, chunk.id.0).len())).sum()
    };
    let before = files(&cluster);
    let passes = cluster.stores[&3].redundancy().passes;
    cluster.until("a few passes", |c| c.stores[&3].redundancy().passes > passes + 2).await;
    assert_eq!(files(&cluster), before);
    // Back, but it can't be spoken with: still no reason to delete.
    cluster.start(2, true).await;
    cluster.world.fault(2, Fault { dead: true, ..Fault::default() });
    let passes = cluster.stores[&3].redundancy().passes;
    cluster.until("a few passes", |c| c.stores[&3].redundancy().passes > passes + 1).await;
    assert!(files(&cluster) >= before);
}
