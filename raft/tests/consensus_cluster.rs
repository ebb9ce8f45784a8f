//! Three and more nodes on real files: any node commits, any node reads what was answered anywhere, and
//! nothing that was answered is lost or done twice.

#![expect(clippy::unwrap_used, reason = "a helper of a test may fail the test")]

mod consensus_harness;

use consensus_harness::{Cluster, create, lookup};
use hfcache_base::limits::{READ_LEASE, SESSION_LEASE};
use hfcache_base::meta::{Op, Reply};
use hfcache_base::seam::{Meta, View};
use hfcache_base::{InodeId, Kind, NodeId};
use hfcache_raft::consensus::node::Failure;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

fn names(view: &dyn View) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut after = 0;
    loop {
        let page = view.readdir(InodeId::ROOT, after, 500).unwrap();
        let Some(last) = page.last() else { return names };
        after = last.cookie;
        for entry in page {
            assert!(names.insert(String::from_utf8(entry.name).unwrap()), "a name twice");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_node_commits_and_all_see_it_at_once() {
    let cluster = Cluster::founded(3).await;
    cluster.wait_leased().await;
    for round in 0..30 {
        for (id, node) in &cluster.nodes {
            let name = format!("f{round}-{}", id.0);
            node.commit(create(&name)).await.unwrap();
            for other in cluster.nodes.values() {
                // The first look must find it: no retry.
                lookup(other, &name).await.unwrap();
            }
        }
    }
    let error = cluster.node(2).commit(create("f0-1")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Exists);
    assert_eq!(cluster.node(3).map().nodes.len(), 3);
    let ids: Vec<_> = futures::future::join_all((0..600).map(|_| cluster.node(2).chunk_id())).await;
    let ids: BTreeSet<_> = ids.into_iter().map(|id| id.unwrap()).collect();
    assert_eq!(ids.len(), 600, "a chunk id was handed out twice");
    cluster
        .wait("active nodes", || {
            cluster.node(1).map().nodes.values().all(|n| n.state == hfcache_base::NodeState::Active)
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_may_die_in_the_middle_of_a_thousand_creates() {
    let mut cluster = Cluster::founded(3).await;
    let leader = cluster.leader().unwrap();
    let writers: Vec<_> = cluster.nodes.iter().filter(|(id, _)| **id != leader).collect();
    let done = Arc::new(AtomicU64::new(0));
    let mut tasks = Vec::new();
    for (w, (_, node)) in writers.into_iter().enumerate() {
        for lane in 0..10 {
            let (node, done) = (node.clone(), done.clone());
            tasks.push(tokio::spawn(async move {
                let mut acknowledged = Vec::new();
                for n in 0..50 {
                    let name = format!("w{w}-{lane}-{n}");
                    // O_EXCL: a create that took effect twice would say that the name exists.
                    match node.commit(create(&name)).await.unwrap() {
                        Reply::Entry { created: true, .. } => acknowledged.push(name),
                        other => panic!("{other:?}"),
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
                acknowledged
            }));
        }
    }
    cluster.wait("half of the creates", || done.load(Ordering::Relaxed) >= 300).await;
    let killed = Instant::now();
    cluster.kill(leader).await;
    let before = done.load(Ordering::Relaxed);
    cluster.wait("creates to go on", || done.load(Ordering::Relaxed) > before + 40).await;
    println!("writes went on {:?} after the leader was killed", killed.elapsed());
    let mut acknowledged = BTreeSet::new();
    for task in tasks {
        acknowledged.extend(task.await.unwrap());
    }
    assert_eq!(acknowledged.len(), 1_000);
    for node in cluster.nodes.values() {
        node.read_point(Duration::from_secs(10)).await.unwrap();
        assert_eq!(names(&*node.read_stale()), acknowledged);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_acknowledged_survives_a_restart_of_all() {
    let mut cluster = Cluster::founded(3).await;
    let mut expected = BTreeSet::new();
    for n in 0..60u64 {
        let name = format!("f{n}");
        cluster.node(1 + n % 3).commit(create(&name)).await.unwrap();
        expected.insert(name);
    }
    cluster.kill_all().await;
    for n in 1..=3 {
        let node = cluster.open(n).await;
        assert!(node.had_state());
    }
    for n in 1..=3 {
        cluster.node(n).open_session().await.unwrap();
    }
    for node in cluster.nodes.values() {
        node.read_point(Duration::from_secs(10)).await.unwrap();
        assert_eq!(names(&*node.read_stale()), expected);
    }
    cluster.node(2).commit(create("after")).await.unwrap();
    assert_eq!(
        cluster.node(1).initialize(consensus_harness::add_node(1)).await.unwrap_err().kind(),
        Kind::Exists
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_comes_late_gets_a_snapshot_while_writes_go_on() {
    let mut cluster = Cluster::new();
    cluster.snapshot_every = 50;
    cluster.log_keep = 10;
    cluster.found(1).await;
    for n in 0..300 {
        cluster.node(1).commit(create(&format!("f{n}"))).await.unwrap();
    }
    let before = cluster.wires.bodies.load(Ordering::Relaxed);
    let first = cluster.node(1).clone();
    let writer = tokio::spawn(async move {
        for n in 300..400 {
            first.commit(create(&format!("f{n}"))).await.unwrap();
        }
    });
    let late = cluster.join(2).await;
    writer.await.unwrap();
    late.read_point(Duration::from_secs(10)).await.unwrap();
    assert_eq!(names(&*late.read_stale()).len(), 400);
    assert!(cluster.wires.bodies.load(Ordering::Relaxed) > before, "no snapshot was sent");
    late.commit(create("by the late one")).await.unwrap();
    lookup(cluster.node(1), "by the late one").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_waits_for_a_silent_lease_holder_and_no_longer() {
    let cluster = Cluster::founded(3).await;
    cluster.wait_leased().await;
    let leader = cluster.leader().unwrap();
    let silent = cluster.nodes.keys().copied().find(|id| *id != leader).unwrap();
    let holder = cluster.nodes[&silent].clone();
    // It has a lease when the wire is cut, and may read until that ends.
    let (_, until) = loop {
        if let Some(leased) = holder.read_local() {
            break leased;
        }
        tokio::task::yield_now().await;
    };
    cluster.wires.isolate(silent, cluster.nodes.keys().copied());
    cluster.nodes[&leader].commit(create("new")).await.unwrap();
    // Whoever still reads alone must see it; the holder cannot, so it must not read any more.
    if let Some((view, _)) = holder.read_local() {
        view.lookup(InodeId::ROOT, b"new").unwrap();
    }
    let now = hfcache_base::seam::Clock::now(&*cluster.clock);
    assert!(now >= until, "answered {:?} before the holder's lease ended", until.since(now));
    // From then on nobody waits for it.
    let start = Instant::now();
    for n in 0..20 {
        cluster.nodes[&leader].commit(create(&format!("more{n}"))).await.unwrap();
    }
    println!("20 writes without the silent holder took {:?}", start.elapsed());
    let error = holder.read_point(READ_LEASE).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    cluster.wires.heal();
    lookup(&holder, "more19").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_cut_off_fences_itself_before_its_session_ends() {
    let cluster = Cluster::founded(3).await;
    cluster.wait_leased().await;
    let leader = cluster.leader().unwrap();
    let cut = cluster.nodes.keys().copied().find(|id| *id != leader).unwrap();
    let node = cluster.nodes[&cut].clone();
    let session = node.status().session.unwrap();
    cluster.wires.isolate(cut, cluster.nodes.keys().copied());
    let alive = |id| cluster.nodes[&leader].read_stale().sessions().unwrap().iter().any(|s| s.id == id);
    let start = Instant::now();
    loop {
        let fenced = node.status().session.is_none();
        if !alive(session) {
            assert!(fenced, "the session ended before its node knew");
            break;
        }
        assert!(start.elapsed() < SESSION_LEASE * 3, "the session never ended");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(start.elapsed() >= SESSION_LEASE - Duration::from_millis(500));
    assert_eq!(node.commit(create("never")).await.unwrap_err().kind(), Kind::Fenced);
    assert!(node.read_local().is_none());
    cluster.wires.heal();
    let mut failure = node.failure();
    let why = failure.wait_for(Option::is_some).await.unwrap().clone();
    assert_eq!(why, Some(Failure::SessionLost));
    assert_eq!(node.commit(create("never")).await.unwrap_err().kind(), Kind::Fenced);
    // The other nodes never noticed.
    cluster.nodes[&leader].commit(create("still")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn voters_grow_and_a_removed_one_is_replaced() {
    let mut cluster = Cluster::founded(3).await;
    cluster.join(4).await;
    let first = cluster.node(1).clone();
    cluster.wait("a learner", || first.status().learners == [NodeId(4)]).await;
    let leader = cluster.leader().unwrap();
    // The leader itself leaves: the hardest of the three.
    let gone = leader;
    let first = cluster.nodes.iter().find(|(id, _)| **id != gone && **id != NodeId(4)).unwrap().1.clone();
    first.commit(Op::RemoveNode(gone)).await.unwrap();
    cluster
        .wait("the replacement", || {
            let status = first.status();
            status.voters.len() == 3 && status.voters.contains(&NodeId(4)) && !status.voters.contains(&gone)
        })
        .await;
    cluster.wait("the removed one to be out", || first.status().learners.is_empty()).await;
    cluster.nodes[&NodeId(4)].commit(create("by the new voter")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orderly_end_of_the_leader_is_hardly_noticed() {
    let mut cluster = Cluster::founded(3).await;
    cluster.wait_leased().await;
    let leader = cluster.leader().unwrap();
    let other = cluster.nodes.iter().find(|(id, _)| **id != leader).unwrap().1.clone();
    let node = cluster.nodes.remove(&leader).unwrap();
    node.shutdown().await.unwrap();
    let start = Instant::now();
    other.commit(create("after")).await.unwrap();
    println!("first write after the leader's orderly end took {:?}", start.elapsed());
    let sessions = other.read_stale().sessions().unwrap();
    assert!(sessions.iter().all(|s| s.node != leader), "its session is still there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures"]
async fn speed() {
    let cluster = Cluster::founded(3).await;
    cluster.wait_leased().await;
    let leader = cluster.leader().unwrap();
    let follower = cluster.nodes.iter().find(|(id, _)| **id != leader).unwrap().1.clone();
    for (who, node) in [("leader", cluster.nodes[&leader].clone()), ("follower", follower.clone())] {
        let mut times = Vec::new();
        for n in 0..500 {
            let start = Instant::now();
            node.commit(create(&format!("{who}{n}"))).await.unwrap();
            times.push(start.elapsed());
        }
        times.sort();
        println!("one proposer on {who}: p50 {:?}, p99 {:?}", times[250], times[495]);
    }
    for lanes in [16u64, 256] {
        let start = Instant::now();
        let tasks: Vec<_> = (0..lanes)
            .map(|lane| {
                let node = follower.clone();
                tokio::spawn(async move {
                    for n in 0..(20_000 / lanes) {
                        node.commit(create(&format!("l{lanes}-{lane}-{n}"))).await.unwrap();
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        println!("{lanes} proposers on follower: {:.0}/s", 20_000.0 / start.elapsed().as_secs_f64());
    }
    let start = Instant::now();
    for _ in 0..200_000 {
        follower.read_local().unwrap().0.lookup(InodeId::ROOT, b"leader7").unwrap();
    }
    println!("leased look-ups on one thread: {:.0}/s", 200_000.0 / start.elapsed().as_secs_f64());
}
