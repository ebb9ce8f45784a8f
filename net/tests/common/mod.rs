//! Nodes of one cluster on loopback, for tests.
#![expect(dead_code, reason = "each test file uses a part")]
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use async_trait::async_trait;
use bytes::Bytes;
use hfcache_base::seam::{Answer, Call, Health, Net, Service, ServiceId};
use hfcache_base::{Error, Kind, NodeId, Result};
use hfcache_net::{
    Identity, JoinAdmit, JoinAsk, JoinHandler, JoinRequest, JoinToken, NetConfig, Network, NodeKey,
    request_join,
};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Far more than anything takes.
pub const LONG: Duration = Duration::from_secs(20);

pub fn config(name: &str) -> NetConfig {
    NetConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        advertise: None,
        name: name.into(),
        version: "test".into(),
        generation: 1,
        bulk: true,
    }
}

/// Waits until a condition holds.
pub async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, wait).await.unwrap_or_else(|_| panic!("waited in vain until {what}"));
}

/// Identities of `n` nodes of one cluster.
pub fn identities(n: u64) -> Vec<Identity> {
    let first = Identity::new_cluster().unwrap();
    let others: Vec<Identity> = (2..=n)
        .map(|id| {
            let key = NodeKey::generate().unwrap();
            let grant = hfcache_net::JoinGrant {
                cluster: first.cluster(),
                node: NodeId(id),
                node_cert: first.issue(NodeId(id), key.public()).unwrap(),
                ca_cert: first.ca_certificate().to_vec(),
                ca_key: None,
                gossip_key: first.gossip_secret(),
                members: Vec::new(),
            };
            Identity::from_grant(&grant, key).unwrap()
        })
        .collect();
    std::iter::once(first).chain(others).collect()
}

/// Starts `n` nodes that know each other.
pub async fn cluster(n: u64, bulk: bool) -> Vec<Arc<Network>> {
    let mut nodes = Vec::new();
    for (at, identity) in identities(n).into_iter().enumerate() {
        let config = NetConfig { bulk, ..config(&format!("node-{}", at + 1)) };
        nodes.push(Network::start(identity, config).await.unwrap());
    }
    introduce(&nodes);
    nodes
}

pub fn members(nodes: &[Arc<Network>]) -> Vec<(NodeId, SocketAddr)> {
    nodes.iter().map(|n| (n.me(), n.listen())).collect()
}

pub fn introduce(nodes: &[Arc<Network>]) {
    for node in nodes {
        node.set_members(members(nodes));
    }
}

pub async fn all_up(nodes: &[Arc<Network>]) {
    for a in nodes {
        for b in nodes {
            until("all nodes are up", || async { a.health(b.me()) == Health::Up }).await;
        }
    }
}

/// Answers according to the first byte of the head.
#[derive(Default)]
pub struct Echo {
    pub running: AtomicUsize,
    pub dropped: AtomicUsize,
    pub last_from: Mutex<Option<NodeId>>,
}

struct Running<'a>(&'a Echo, bool);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
        if !self.1 {
            self.0.dropped.fetch_add(1, Ordering::SeqCst);
        }
    }
}

#[async_trait]
impl Service for Echo {
    async fn serve(&self, from: NodeId, head: Bytes, body: Bytes) -> Result<Answer> {
        self.running.fetch_add(1, Ordering::SeqCst);
        let mut running = Running(self, false);
        *self.last_from.lock() = Some(from);
        let answer = match head.first() {
            Some(b'h') => std::future::pending().await,
            Some(b'f') => Err(Error::new(Kind::NoSpace, "disk of the service").context("put shard")),
            Some(b'g') => {
                let len = u32::from_le_bytes(head[1..5].try_into().unwrap()) as usize;
                Ok(Answer { head, body: pattern(len) })
            }
            Some(b'p') => panic!("the service panics, as it was told to"),
            _ => Ok(Answer { head, body }),
        };
        running.1 = true;
        answer
    }
}

/// Bytes that differ from place to place.
pub fn pattern(len: usize) -> Bytes {
    (0..len).map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8).collect::<Vec<u8>>().into()
}

pub fn echo(node: &Network) -> Arc<Echo> {
    let echo = Arc::new(Echo::default());
    node.serve(ServiceId::Shards, echo.clone());
    echo
}

pub fn shards(head: &[u8]) -> Call {
    Call::new(ServiceId::Shards, head.to_vec())
}

/// A cluster's answer to joins, without Raft.
pub struct Register {
    pub token: JoinToken,
    pub next: AtomicUsize,
    pub known: Mutex<BTreeMap<[u8; 32], NodeId>>,
    pub revoked: Mutex<bool>,
    pub expired: Mutex<bool>,
    pub members: Vec<(NodeId, SocketAddr)>,
}

#[async_trait]
impl JoinHandler for Register {
    async fn join(&self, ask: JoinAsk) -> Result<JoinAdmit> {
        let refuse = |why: &'static str| Err(Error::new(Kind::Unauthorized, why));
        if ask.token != self.token.proof() {
            return refuse("the token is not known");
        }
        if *self.revoked.lock() {
            return refuse("the token is revoked");
        }
        if *self.expired.lock() {
            return refuse("the token has expired");
        }
        let mut known = self.known.lock();
        let node =
            *known.entry(ask.key).or_insert_with(|| NodeId(self.next.fetch_add(1, Ordering::SeqCst) as u64));
        Ok(JoinAdmit { node, members: self.members.clone() })
    }
}

pub fn register(node: &Network) -> Arc<Register> {
    let far = hfcache_base::meta::Timestamp(i64::MAX);
    let token = JoinToken::new(node.identity(), vec![node.listen()], far).unwrap();
    let register = Arc::new(Register {
        token,
        next: AtomicUsize::new(2),
        known: Mutex::default(),
        revoked: Mutex::new(false),
        expired: Mutex::new(false),
        members: vec![(node.me(), node.listen())],
    });
    node.serve_joins(register.clone());
    register
}

pub fn request(storage: bool) -> JoinRequest {
    JoinRequest {
        name: "newcomer".into(),
        listen: "127.0.0.1:7000".parse().unwrap(),
        domain: "rack-1".into(),
        storage,
    }
}

pub async fn join(token: &JoinToken, key: &NodeKey, storage: bool) -> Result<Identity> {
    let grant = request_join(token, &request(storage), key).await?;
    Identity::from_grant(&grant, key.clone())
}
