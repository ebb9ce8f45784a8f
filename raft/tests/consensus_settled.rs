//! While a change is on its way to one node, no other node tells of it: who asks there waits until all show it.

#![expect(clippy::unwrap_used, reason = "a helper of a test may fail the test")]

mod consensus_harness;

use consensus_harness::{Cluster, create, lookup};
use hfcache_base::meta::{Lock, LockKind};
use hfcache_base::seam::{Meta, ServiceId};
use hfcache_base::{InodeId, NodeId};
use hfcache_raft::consensus::node::Consensus;
use std::sync::Arc;

/// What was to be seen apart may not be, if this machine is slow: a lease ended too early. Then once more.
const ATTEMPTS: usize = 40;

/// A cluster of three whose first is the leader, the second quick, and the third about to be slow.
async fn three() -> (Cluster, [Arc<Consensus>; 3], NodeId) {
    let cluster = Cluster::founded(3).await;
    cluster.wait_leased().await;
    let leader = cluster.leader().unwrap();
    let mut others = cluster.nodes.keys().copied().filter(|id| *id != leader);
    let (quick, slow) = (others.next().unwrap(), others.next().unwrap());
    let nodes = [leader, quick, slow].map(|id| cluster.nodes[&id].clone());
    (cluster, nodes, slow)
}

fn shows(node: &Consensus, name: &str) -> bool {
    node.read_stale().lookup(InodeId::ROOT, name.as_bytes()).is_ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_is_told_by_no_node_before_all_show_it() {
    let (cluster, [leader, quick, slow], slow_id) = three().await;
    leader.commit(create("old")).await.unwrap();
    lookup(&quick, "old").await.unwrap();
    let mut apart = 0;
    for n in 0..ATTEMPTS {
        cluster.wait_leased().await;
        let name = format!("new{n}");
        cluster.wires.hold(ServiceId::Raft, slow_id);
        let writer = tokio::spawn({
            let (leader, name) = (leader.clone(), name.clone());
            async move { leader.commit(create(&name)).await }
        });
        cluster.wait("the quick node", || shows(&quick, &name)).await;
        // The slow one may read alone and shows the state before, so nobody may tell of the one after.
        let is_apart =
            slow.read_local().is_some_and(|(view, _)| view.lookup(InodeId::ROOT, name.as_bytes()).is_err());
        if is_apart {
            apart += 1;
            // What has not changed is told at once.
            let unchanged = {
                let view = quick.read_stale();
                view.lookup(InodeId::ROOT, b"old").unwrap();
                view.settles_at()
            };
            assert_eq!(unchanged, None);
        }
        let told = [lookup(&quick, &name).await, lookup(&leader, &name).await];
        if let Some((view, _)) = slow.read_local() {
            view.lookup(InodeId::ROOT, name.as_bytes()).expect("it was told before this node showed it");
        }
        cluster.wires.let_go();
        assert!(told.iter().all(Result::is_ok), "{told:?}");
        writer.await.unwrap().unwrap();
        lookup(&slow, &name).await.unwrap();
        if apart > 2 {
            return;
        }
    }
    panic!("the nodes were never apart");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_that_was_let_go_is_told_by_no_node_before_all_show_it() {
    let (cluster, [leader, quick, slow], slow_id) = three().await;
    leader.commit(create("file")).await.unwrap();
    let ino = lookup(&leader, "file").await.unwrap();
    let lock = |owner: u64| Lock {
        kind: LockKind::Posix,
        owner,
        exclusive: true,
        start: owner * 10,
        end: owner * 10 + 9,
        pid: 1,
    };
    // Held by several nodes, the locks are in the state.
    quick.lock(ino, lock(2), true).await.unwrap();
    slow.lock(ino, lock(3), true).await.unwrap();
    let others = |node: &Arc<Consensus>| {
        let node = node.clone();
        async move { node.lock_test(ino, Lock { owner: 9, ..lock(1) }).await.unwrap().is_some() }
    };
    let mut apart = 0;
    for _ in 0..ATTEMPTS {
        leader.lock(ino, lock(1), true).await.unwrap();
        assert!(others(&quick).await && others(&slow).await);
        cluster.wait_leased().await;
        cluster.wires.hold(ServiceId::Raft, slow_id);
        let at = quick.applied_index();
        let unlock = tokio::spawn({
            let leader = leader.clone();
            async move { leader.unlock(ino, lock(1)).await }
        });
        cluster.wait("the quick node", || quick.applied_index() > at).await;
        apart += usize::from(slow.read_local().is_some());
        let told = others(&quick).await;
        if !told && slow.read_local().is_some() {
            assert!(!others(&slow).await, "it was told to be free before this node showed it");
        }
        cluster.wires.let_go();
        unlock.await.unwrap().unwrap();
        assert!(!others(&slow).await && !others(&quick).await);
        if apart > 2 {
            return;
        }
    }
    panic!("the nodes were never apart");
}
