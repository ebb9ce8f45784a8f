//! Calls between real nodes on loopback.

mod common;

use bytes::Bytes;
use common::*;
use hfcache_base::limits::{CALL_BODY_MAX, CALL_HEAD_MAX};
use hfcache_base::seam::{Call, Health, Net, ServiceId};
use hfcache_base::{Kind, NodeId};
use hfcache_net::{NetConfig, Network, RetryBudget};
use std::sync::atomic::Ordering;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_call_each_other_and_know_who_calls() {
    let nodes = cluster(3, true).await;
    let echoes: Vec<_> = nodes.iter().map(|n| echo(n)).collect();
    for from in &nodes {
        for (to, echo) in nodes.iter().zip(&echoes) {
            let mut call = shards(b"echo");
            call.body = vec![Bytes::from_static(b"one "), Bytes::from_static(b"body")];
            let answer = from.call(to.me(), call, LONG).await.unwrap();
            assert_eq!((&answer.head[..], &answer.body[..]), (&b"echo"[..], &b"one body"[..]));
            assert_eq!(*echo.last_from.lock(), Some(from.me()));
        }
    }
    all_up(&nodes).await;
    assert_eq!(nodes[0].health(NodeId(9)), Health::Unknown);
    for node in &nodes {
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_keep_their_kind_and_say_where() {
    let nodes = cluster(2, true).await;
    echo(&nodes[1]);
    let call = |head: &[u8]| nodes[0].call(NodeId(2), shards(head), LONG);
    let e = call(b"f").await.unwrap_err();
    assert_eq!(e.kind(), Kind::NoSpace);
    assert_eq!(e.to_string(), "call Shards of n2: put shard: disk of the service");
    assert_eq!(call(b"p").await.unwrap_err().kind(), Kind::Unavailable);
    let e = nodes[0].call(NodeId(2), Call::new(ServiceId::Raft, vec![]), LONG).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Unavailable);
    let e = nodes[0].call(NodeId(7), shards(b"e"), LONG).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Unavailable);
    // None of this hurt the connection.
    call(b"e").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_is_given_up_is_dropped_at_the_other_side() {
    let nodes = cluster(2, true).await;
    let served = echo(&nodes[1]);
    // Small calls take QUIC, large ones the bulk lane.
    for (at, body) in [0, 1 << 20].into_iter().enumerate() {
        let mut call = shards(b"h");
        call.body = vec![pattern(body)];
        let e = {
            let hang = nodes[0].call(NodeId(2), call.clone(), Duration::from_millis(300));
            hang.await.unwrap_err()
        };
        assert_eq!(e.kind(), Kind::TimedOut);
        until("the handler is dropped by deadline", || async {
            served.dropped.load(Ordering::SeqCst) == 2 * at + 1
        })
        .await;
        let net = nodes[0].clone();
        let hang = tokio::spawn(async move { net.call(NodeId(2), call, LONG).await });
        until("the handler runs", || async { served.running.load(Ordering::SeqCst) == 1 }).await;
        hang.abort();
        until("the handler is dropped by cancelling", || async {
            served.dropped.load(Ordering::SeqCst) == 2 * at + 2
        })
        .await;
    }
    assert_eq!(served.running.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_large_is_refused_before_it_is_sent() {
    let nodes = cluster(2, true).await;
    echo(&nodes[1]);
    let e = nodes[0].call(NodeId(2), shards(&vec![b'e'; CALL_HEAD_MAX + 1]), LONG).await.unwrap_err();
    assert_eq!(e.kind(), Kind::TooLarge);
    let mut call = shards(b"e");
    call.body = vec![Bytes::from(vec![0; CALL_BODY_MAX]), Bytes::from_static(b"x")];
    assert_eq!(nodes[0].call(NodeId(2), call, LONG).await.unwrap_err().kind(), Kind::TooLarge);
    // A head of many records.
    for bulk_answer in [false, true] {
        let mut call = shards(&pattern(3 << 20));
        call.head = [&b"e"[..], &pattern(3 << 20)].concat().into();
        call.bulk_answer = bulk_answer;
        let answer = nodes[0].call(NodeId(2), call.clone(), LONG).await.unwrap();
        assert_eq!(answer.head, call.head);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_bodies_go_both_ways_on_both_lanes() {
    for bulk in [true, false] {
        let nodes = cluster(2, bulk).await;
        echo(&nodes[1]);
        let whole = pattern(16 << 20);
        let mut call = shards(b"e");
        // In uneven pieces.
        call.body = vec![whole.slice(..7), whole.slice(7..5_000_000), Bytes::new(), whole.slice(5_000_000..)];
        let answer = nodes[0].call(NodeId(2), call, LONG).await.unwrap();
        assert!(answer.body == whole, "bulk {bulk}");
        for len in [0, 1, 65_536, 262_144, 262_145, 3_000_000] {
            let mut call = shards(&[&b"g"[..], &(len as u32).to_le_bytes()].concat());
            call.bulk_answer = true;
            let answer = nodes[0].call(NodeId(2), call, LONG).await.unwrap();
            assert!(answer.body == pattern(len), "bulk {bulk}, {len} bytes");
        }
        let stats = nodes[0].stats();
        if bulk {
            assert!(stats.bulk_bytes_sent == 16 << 20 && stats.stream_bytes_sent == 0, "{stats:?}");
        } else {
            assert!(stats.bulk_bytes_sent == 0 && stats.stream_bytes_sent == 16 << 20, "{stats:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_take_quic_where_tcp_does_not_get_through() {
    let ids = identities(2);
    let caller = Network::start(ids[0].clone(), config("caller")).await.unwrap();
    // Offers no bulk lane: TCP connections to it are refused.
    let served = Network::start(ids[1].clone(), NetConfig { bulk: false, ..config("served") }).await.unwrap();
    let nodes = [caller, served];
    introduce(&nodes);
    echo(&nodes[1]);
    let mut call = shards(b"e");
    call.body = vec![pattern(16 << 20)];
    let answer = nodes[0].call(NodeId(2), call.clone(), LONG).await.unwrap();
    assert!(answer.body == call.body[0]);
    let stats = nodes[0].stats();
    assert!(stats.bulk_fallbacks > 0 && stats.peers[0].bulk_blocked, "{stats:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_calls_run_at_once() {
    let nodes = cluster(2, true).await;
    echo(&nodes[1]);
    let calls = (0..300usize).map(|n| {
        let net = nodes[0].clone();
        tokio::spawn(async move {
            let mut call = shards(&[&b"e"[..], &n.to_le_bytes()].concat());
            call.body = vec![pattern(if n.is_multiple_of(10) { 200_000 + n } else { n })];
            let answer = net.call(NodeId(2), call.clone(), LONG).await.unwrap();
            assert!(answer.head == call.head && answer.body == call.body[0]);
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_peer_fails_calls_at_once_and_is_found_again() {
    let ids = identities(2);
    let one = Network::start(ids[0].clone(), config("one")).await.unwrap();
    let two = Network::start(ids[1].clone(), config("two")).await.unwrap();
    let at = two.listen();
    one.set_members(vec![(NodeId(1), one.listen()), (NodeId(2), at)]);
    echo(&two);
    one.call(NodeId(2), shards(b"e"), LONG).await.unwrap();
    drop(two);
    until("the peer is suspect", || async { one.health(NodeId(2)) == Health::Suspect }).await;
    let e = one.call(NodeId(2), shards(b"e"), LONG).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Unavailable);
    // It comes back at the same address; the ports may be a moment in coming free.
    let back = loop {
        let config = NetConfig { listen: at, generation: 2, ..config("two") };
        match Network::start(ids[1].clone(), config).await {
            Ok(back) => break back,
            Err(e) => assert_eq!(e.kind(), Kind::Busy),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    echo(&back);
    let budget = RetryBudget::new(1_000);
    budget.call(&*one, NodeId(2), shards(b"e"), LONG).await.unwrap();
    until("the peer is up", || async { one.health(NodeId(2)) == Health::Up }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_member_is_cut_off() {
    let nodes = cluster(3, true).await;
    echo(&nodes[0]);
    nodes[1].call(NodeId(1), shards(b"e"), LONG).await.unwrap();
    let left = [nodes[0].clone(), nodes[2].clone()];
    nodes[0].set_members(members(&left));
    until("its calls fail", || async { nodes[1].call(NodeId(1), shards(b"e"), LONG).await.is_err() }).await;
    assert_eq!(nodes[0].health(NodeId(2)), Health::Unknown);
    nodes[2].call(NodeId(1), shards(b"e"), LONG).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_in_use_is_named() {
    let ids = identities(2);
    let one = Network::start(ids[0].clone(), config("one")).await.unwrap();
    // Its own port, and the one whose next is taken by gossip.
    for port in [one.listen().port(), one.listen().port() + 1, one.listen().port() - 1] {
        let listen = std::net::SocketAddr::new(one.listen().ip(), port);
        let started = Network::start(ids[1].clone(), NetConfig { listen, ..config("two") }).await;
        let Err(e) = started else { panic!("two nodes on {listen}") };
        assert_eq!(e.kind(), Kind::Busy, "{e}");
        let said = e.to_string();
        assert!(said.contains("in use") && said.contains(&one.listen().ip().to_string()), "{said}");
    }
    for (listen, kind) in [("0.0.0.0:0", Kind::Invalid), ("127.0.0.1:65535", Kind::Invalid)] {
        let config = NetConfig { listen: listen.parse().unwrap(), ..config("two") };
        let Err(e) = Network::start(ids[1].clone(), config).await else { panic!("a node on {listen}") };
        assert_eq!(e.kind(), kind, "{e}");
    }
}
