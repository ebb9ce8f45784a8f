//! What a client that does not keep to the protocol gets: frames and records made by hand.

use crate::frame::{FRAME_LEN, Frame, Type, decode_error};
use crate::identity::{Identity, NodeKey};
use crate::{NetConfig, Network, bulk, ca, quic, tls};
use async_trait::async_trait;
use bytes::Bytes;
use hfcache_base::limits::{CALL_BODY_MAX, CALL_HEAD_MAX};
use hfcache_base::seam::{Answer, Net, Service, ServiceId};
use hfcache_base::{Kind, NodeId, Result};
use quinn::{Connection, Endpoint};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[derive(Default)]
struct Count(AtomicUsize);

#[async_trait]
impl Service for Count {
    async fn serve(&self, _from: NodeId, head: Bytes, _body: Bytes) -> Result<Answer> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(Answer { head, body: Bytes::new() })
    }
}

struct Target {
    node: Arc<Network>,
    served: Arc<Count>,
}

async fn target() -> Target {
    let config = NetConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        advertise: None,
        name: "target".into(),
        version: "test".into(),
        generation: 1,
        bulk: true,
    };
    let node = Network::start(Identity::new_cluster().unwrap(), config).await.unwrap();
    let served = Arc::new(Count::default());
    node.serve(ServiceId::Shards, served.clone());
    Target { node, served }
}

fn endpoint() -> Endpoint {
    let socket = quic::bind_udp("QUIC/UDP", "127.0.0.1:0".parse().unwrap()).unwrap();
    quic::endpoint(socket, None, b"raw").unwrap()
}

impl Target {
    async fn stranger(&self) -> Connection {
        let identity = self.node.identity();
        let crypto = tls::join_config(identity.cluster(), identity.ca_fingerprint()).unwrap();
        let dial = endpoint().connect_with(quic::client(crypto), self.node.listen(), "join.hfcache");
        dial.unwrap().await.unwrap()
    }

    /// Dials with a certificate of `issuer` for node `id`.
    async fn dial(&self, issuer: &Identity, id: u64) -> Result<Connection, quinn::ConnectionError> {
        let key = NodeKey::generate().unwrap();
        let grant = crate::JoinGrant {
            cluster: issuer.cluster(),
            node: NodeId(id),
            node_cert: issuer.issue(NodeId(id), key.public()).unwrap(),
            ca_cert: issuer.ca_certificate().to_vec(),
            ca_key: None,
            gossip_key: issuer.gossip_secret(),
            members: Vec::new(),
        };
        let member = Identity::from_grant(&grant, key).unwrap();
        let client = quic::client(tls::client_config(&member).unwrap());
        let name = ca::node_name(self.node.me(), issuer.cluster());
        endpoint().connect_with(client, self.node.listen(), &name).unwrap().await
    }

    async fn member(&self) -> Connection {
        self.dial(self.node.identity(), 2).await.unwrap()
    }

    fn served(&self) -> usize {
        self.served.0.load(Ordering::SeqCst)
    }
}

fn call(head: usize, body: usize) -> [u8; FRAME_LEN] {
    Frame { kind: Type::Call(ServiceId::Shards), deadline: Duration::from_secs(9), head, body }.encode()
}

/// Sends bytes on a stream and reads the kind of the error that comes back.
async fn refused(connection: &Connection, bytes: &[u8]) -> Kind {
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    // The other side may stop reading at any moment.
    let _ = send.write_all(bytes).await;
    let _ = send.finish();
    let answer = recv.read_to_end(1 << 20).await.unwrap();
    let (frame, head) = answer.split_first_chunk::<FRAME_LEN>().unwrap();
    let frame = Frame::decode(frame).unwrap();
    assert_eq!((frame.kind, frame.head), (Type::Failed, head.len()));
    decode_error(head).kind()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_may_only_join() {
    let target = target().await;
    let stranger = target.stranger().await;
    let ping = Frame { kind: Type::Ping, deadline: Duration::ZERO, head: 0, body: 0 }.encode();
    assert_eq!(refused(&stranger, &[&call(1, 0)[..], b"x"].concat()).await, Kind::Unauthorized);
    assert_eq!(refused(&stranger, &ping).await, Kind::Unauthorized);
    let join = |head| Frame { kind: Type::Join, deadline: Duration::ZERO, head, body: 0 }.encode();
    assert_eq!(refused(&stranger, &join(1 << 19)).await, Kind::Unauthorized);
    assert_eq!(refused(&stranger, &join(1 << 21)).await, Kind::Protocol);
    assert_eq!(refused(&stranger, &[&join(5)[..], b"hello"].concat()).await, Kind::Version);
    // Nor does it have keys for the bulk lane: its connection is nobody's session.
    let mut tcp = TcpStream::connect(target.node.listen()).await.unwrap();
    let key = bulk::session_key(&stranger).unwrap();
    tcp.write_all(&[&b"hfB1"[..], &key, &[0; 16]].concat()).await.unwrap();
    assert_eq!(tcp.read(&mut [0; 20]).await.unwrap_or(0), 0);
    assert_eq!(target.served(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_beyond_the_limits_are_refused() {
    let target = target().await;
    let member = target.member().await;
    assert_eq!(refused(&member, &call(CALL_HEAD_MAX + 1, 0)).await, Kind::Protocol);
    assert_eq!(refused(&member, &call(0, CALL_BODY_MAX + 1)).await, Kind::Protocol);
    let mut other = call(0, 0);
    other[0] = 9;
    assert_eq!(refused(&member, &other).await, Kind::Version);
    other = call(0, 0);
    other[2] = 99;
    assert_eq!(refused(&member, &other).await, Kind::NotSupported);
    // Cut short, and too long.
    assert_eq!(refused(&member, &call(0, 0)[..7]).await, Kind::Protocol);
    assert_eq!(refused(&member, &[&call(5, 0)[..], b"abc"].concat()).await, Kind::Protocol);
    assert_eq!(refused(&member, &[&call(1, 1)[..], b"abc"].concat()).await, Kind::Protocol);
    assert_eq!(
        refused(&member, &Frame { kind: Type::Done, deadline: Duration::ZERO, head: 0, body: 0 }.encode())
            .await,
        Kind::Protocol
    );
    assert_eq!(target.served(), 0);
    // The connection is as good as before.
    crate::rpc::ping(&member).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_ca_or_a_removed_node_is_refused() {
    let target = target().await;
    let other = Identity::new_cluster().unwrap();
    assert!(target.dial(&other, 2).await.is_err(), "the server's CA is not the one of the dialer");
    let own = target.node.identity().clone();
    target
        .node
        .set_members(vec![(NodeId(1), target.node.listen()), (NodeId(5), "127.0.0.1:9".parse().unwrap())]);
    // Below the largest known id and not in the map: removed. Above it: newer than this node's map.
    for (id, admitted) in [(3, false), (1, false), (5, true), (6, true)] {
        let connection = target.dial(&own, id).await.unwrap();
        assert_eq!(crate::rpc::ping(&connection).await.is_ok(), admitted, "n{id}");
    }
    // A certificate under the right names but another CA.
    let forged = {
        let key = ca::new_key().unwrap();
        let cert = ca::new_authority(own.cluster(), &key).unwrap();
        let node_key = NodeKey::generate().unwrap();
        let node_cert = ca::issue(own.cluster(), &key, NodeId(6), node_key.public()).unwrap();
        assert!(tls::verify_issued(&node_cert, own.ca_certificate()).is_err());
        let grant = crate::JoinGrant {
            cluster: own.cluster(),
            node: NodeId(6),
            node_cert,
            ca_cert: cert,
            ca_key: None,
            gossip_key: own.gossip_secret(),
            members: Vec::new(),
        };
        Identity::from_grant(&grant, node_key).unwrap()
    };
    let client = quic::client(tls::client_config(&forged).unwrap());
    let name = ca::node_name(NodeId(1), own.cluster());
    assert!(endpoint().connect_with(client, target.node.listen(), &name).unwrap().await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bulk_connection_without_the_keys_is_closed() {
    let target = target().await;
    let member = target.member().await;
    crate::rpc::ping(&member).await.unwrap();
    let key = bulk::session_key(&member).unwrap();
    // Who saw a greeting knows the session key, but not what the records are sealed with.
    for record in [&[0u8; 40][..], &[255; 40], &[16, 0, 0, 0, 1, 2, 3], &[0, 0, 4, 0]] {
        let mut tcp = TcpStream::connect(target.node.listen()).await.unwrap();
        tcp.write_all(&[&b"hfB1"[..], &key, &[0; 16]].concat()).await.unwrap();
        let mut welcome = [0; 20];
        tcp.read_exact(&mut welcome).await.unwrap();
        assert_eq!(&welcome[..4], b"hfB1");
        tcp.write_all(record).await.unwrap();
        tcp.shutdown().await.unwrap();
        assert_eq!(tcp.read(&mut [0; 64]).await.unwrap_or(0), 0);
    }
    // No two greetings make the same keys, so a recorded connection opens nothing.
    let mut nonces = Vec::new();
    for _ in 0..2 {
        let mut tcp = TcpStream::connect(target.node.listen()).await.unwrap();
        tcp.write_all(&[&b"hfB1"[..], &key, &[0; 16]].concat()).await.unwrap();
        let mut welcome = [0; 20];
        tcp.read_exact(&mut welcome).await.unwrap();
        nonces.push(welcome);
    }
    assert_ne!(nonces[0], nonces[1]);
    assert_eq!(target.served(), 0);
}
