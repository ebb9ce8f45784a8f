//! Who gets in: joins, strangers, other clusters, and random bytes at every port.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::*;
use hfcache_base::seam::{Health, Net};
use hfcache_base::{Kind, NodeId};
use hfcache_net::{Identity, NetConfig, Network, NodeKey, request_join};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn first() -> Arc<Network> {
    Network::start(Identity::new_cluster().unwrap(), config("first")).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_joins_with_a_token_and_takes_part() {
    let one = first().await;
    let register = register(&one);
    let key = NodeKey::generate().unwrap();
    let identity = join(&register.token, &key, true).await.unwrap();
    assert_eq!((identity.node(), identity.cluster()), (NodeId(2), one.identity().cluster()));
    assert!(identity.can_issue());
    // Asked again with the same key, it is the same node; a mount-only node gets no CA key.
    assert_eq!(join(&register.token, &key, true).await.unwrap().node(), NodeId(2));
    let third = join(&register.token, &NodeKey::generate().unwrap(), false).await.unwrap();
    assert_eq!((third.node(), third.can_issue()), (NodeId(3), false));
    let two = Network::start(identity, config("two")).await.unwrap();
    two.hint_members([(NodeId(1), one.listen())]);
    echo(&one);
    two.call(NodeId(1), shards(b"e"), LONG).await.unwrap();
    // Who was admitted may admit others, if it has the CA's key.
    let second = common::register(&two);
    assert_eq!(join(&second.token, &NodeKey::generate().unwrap(), true).await.unwrap().node(), NodeId(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_tokens_are_refused_with_the_reason() {
    let one = first().await;
    let register = register(&one);
    let key = NodeKey::generate().unwrap();
    let refused = async |token: &hfcache_net::JoinToken, because: &str| {
        let e = request_join(token, &request(true), &key).await.unwrap_err();
        assert!(e.to_string().contains(because), "{e}");
        e.kind()
    };
    let mut wrong = register.token.clone();
    wrong.secret[0] ^= 1;
    assert_eq!(refused(&wrong, "not known").await, Kind::Unauthorized);
    *register.expired.lock() = true;
    assert_eq!(refused(&register.token, "expired").await, Kind::Unauthorized);
    *register.expired.lock() = false;
    *register.revoked.lock() = true;
    assert_eq!(refused(&register.token, "revoked").await, Kind::Unauthorized);
    *register.revoked.lock() = false;
    // A token of another cluster that names this node's address: the CA is not the pinned one.
    let other = first().await;
    let far = hfcache_base::meta::Timestamp(i64::MAX);
    let foreign = hfcache_net::JoinToken::new(other.identity(), vec![one.listen()], far).unwrap();
    assert_eq!(refused(&foreign, "not of the token's cluster").await, Kind::Unavailable);
    // The right CA, but the wrong cluster id.
    let mut confused = register.token.clone();
    confused.cluster = other.identity().cluster();
    assert_eq!(refused(&confused, "not of the token's cluster").await, Kind::Unavailable);
    // A seed that is not there does not keep it from the next one.
    let mut two_seeds = register.token.clone();
    two_seeds.seeds.insert(0, "127.0.0.1:9".parse().unwrap());
    request_join(&two_seeds, &request(true), &key).await.unwrap();
    assert!(one.stats().joins_granted == 1 && one.stats().joins_asked == 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attempts_to_join_are_limited() {
    let one = first().await;
    let register = register(&one);
    let mut wrong = register.token.clone();
    wrong.secret[0] ^= 1;
    let key = NodeKey::generate().unwrap();
    let mut kinds = Vec::new();
    for _ in 0..100 {
        let e = request_join(&wrong, &request(true), &key).await.unwrap_err();
        kinds.push(e.kind());
        if e.to_string().contains("too many attempts") {
            return;
        }
    }
    panic!("never limited: {kinds:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_another_cluster_gets_no_answer() {
    let (one, other) = (first().await, {
        // The same id as a member would have, from another CA.
        let ids = identities(2);
        Network::start(ids[1].clone(), config("other")).await.unwrap()
    });
    echo(&one);
    one.set_members(vec![(NodeId(1), one.listen()), (NodeId(2), other.listen())]);
    other.hint_members([(NodeId(1), one.listen())]);
    for (from, to) in [(&other, NodeId(1)), (&one, NodeId(2))] {
        let e = from.call(to, shards(b"e"), LONG).await.unwrap_err();
        assert_eq!(e.kind(), Kind::Unavailable, "{e}");
        assert_eq!(from.health(to), Health::Unknown);
    }
    // Nor does its gossip count.
    until("its gossip is dropped", || async { one.stats().gossip_dropped > 0 }).await;
    assert_eq!(one.gossip().borrow().iter().filter(|n| n.node == NodeId(2)).count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_belongs_to_another_node_is_not_believed() {
    let nodes = cluster(3, true).await;
    echo(&nodes[2]);
    // n2 is said to be where n3 listens: the certificate tells.
    nodes[0].set_members(vec![(NodeId(1), nodes[0].listen()), (NodeId(2), nodes[2].listen())]);
    let e = loop {
        match nodes[0].call(NodeId(2), shards(b"e"), LONG).await {
            // The old connection to the real n2 does not serve this.
            Err(e) if e.to_string().contains("not served here") => {
                nodes[1].shutdown().await;
            }
            Err(e) => break e,
            Ok(_) => panic!("n3 answered for n2"),
        }
    };
    assert_eq!(e.kind(), Kind::Unavailable, "{e}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_bytes_at_every_port_do_nothing() {
    let nodes = cluster(2, true).await;
    echo(&nodes[0]);
    let at = nodes[0].listen();
    let gossip = SocketAddr::new(at.ip(), at.port() + 1);
    let udp = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut noise = 1u64;
    let mut bytes = |len: usize| -> Vec<u8> {
        (0..len)
            .map(|_| {
                noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (noise >> 33) as u8
            })
            .collect()
    };
    for len in [0, 1, 3, 20, 60, 1_200, 1_472, 9_000, 60_000] {
        for port in [at, gossip] {
            let _ = udp.send_to(&bytes(len), port).await;
            // Something that begins like ours.
            let _ = udp.send_to(&[&b"hfg1"[..], &bytes(len)].concat(), port).await;
        }
        let mut tcp = tokio::net::TcpStream::connect(at).await.unwrap();
        let _ = tcp.write_all(&[&b"hfB1"[..], &bytes(len)].concat()).await;
        let _ = tcp.shutdown().await;
        let mut answer = Vec::new();
        let _ = tcp.read_to_end(&mut answer).await;
        assert!(answer.is_empty());
    }
    // One that says nothing is closed as well.
    let mut silent = tokio::net::TcpStream::connect(at).await.unwrap();
    assert_eq!(silent.read(&mut [0]).await.unwrap_or(0), 0);
    let mut call = shards(b"e");
    call.body = vec![pattern(1 << 20)];
    let answer = nodes[1].call(NodeId(1), call.clone(), LONG).await.unwrap();
    assert!(answer.body == call.body[0]);
    let stats = nodes[0].stats();
    assert!(stats.refused >= 9 && stats.gossip_dropped >= 9, "{stats:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_find_each_other_by_gossip() {
    let ids = identities(3);
    let mut nodes = Vec::new();
    for identity in ids {
        nodes.push(Network::start(identity, config("gossip")).await.unwrap());
    }
    // Everyone knows only the first.
    for node in &nodes[1..] {
        node.hint_members([(NodeId(1), nodes[0].listen())]);
    }
    nodes[2].publish("load", "7").await.unwrap();
    assert_eq!(nodes[2].publish("long", &"x".repeat(600)).await.unwrap_err().kind(), Kind::TooLarge);
    until("all see all and the hint", || async {
        nodes.iter().all(|n| {
            let live = n.gossip().borrow().clone();
            live.len() == 3
                && live.iter().any(|g| g.node == NodeId(3) && g.hints.get("load").is_some_and(|v| v == "7"))
        })
    })
    .await;
    // The map has an old address of n3; gossip knows better.
    nodes[1].set_members(vec![
        (NodeId(1), nodes[0].listen()),
        (NodeId(2), nodes[1].listen()),
        (NodeId(3), "127.0.0.1:9".parse().unwrap()),
    ]);
    until("n3 is reached where gossip has it", || async { nodes[1].health(NodeId(3)) == Health::Up }).await;
    for node in &nodes {
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shut_down_node_frees_its_ports() {
    let identity = Identity::new_cluster().unwrap();
    let one = Network::start(identity.clone(), config("one")).await.unwrap();
    let listen = one.listen();
    one.shutdown().await;
    drop(one);
    let again = loop {
        match Network::start(identity.clone(), NetConfig { listen, generation: 2, ..config("one") }).await {
            Ok(again) => break again,
            Err(e) => assert_eq!(e.kind(), Kind::Busy),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert_eq!(again.listen(), listen);
}
