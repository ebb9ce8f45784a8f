//! Nodes in one process over a network in memory, on real files: links can be cut, nodes killed.

#![expect(clippy::unwrap_used, reason = "a helper of a test may fail the test")]
#![allow(dead_code, reason = "each test uses a part of it")]

use async_trait::async_trait;
use hfcache_base::meta::{NewNode, Op, Reply, Timestamp};
use hfcache_base::seam::{Answer, Call, Clock, Health, Meta, Moment, Net, Rng, Service, ServiceId};
use hfcache_base::{Error, InodeId, Kind, NodeId, Result};
use hfcache_raft::consensus::node::{Consensus, OpenOptions};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub struct RealClock(Instant);

#[async_trait]
impl Clock for RealClock {
    fn now(&self) -> Moment {
        Moment(self.0.elapsed())
    }

    fn wall(&self) -> Timestamp {
        Timestamp(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as i64)
    }

    async fn sleep(&self, d: Duration) {
        tokio::time::sleep(d).await;
    }
}

pub struct Counter(AtomicU64);

impl Rng for Counter {
    fn next_u64(&self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
        hfcache_base::placement::mix(now ^ self.0.fetch_add(1, Ordering::Relaxed))
    }
}

type Services = HashMap<ServiceId, Arc<dyn Service>>;

/// The wires between all nodes.
#[derive(Default)]
pub struct Wires {
    nodes: Mutex<BTreeMap<NodeId, Services>>,
    cut: Mutex<BTreeSet<(NodeId, NodeId)>>,
    /// Calls of a service to a node that do not arrive before they are let go.
    held: Mutex<Vec<(ServiceId, NodeId)>>,
    /// Bytes of bodies that were carried, so that a snapshot can be told from entries.
    pub bodies: AtomicU64,
}

impl Wires {
    /// Nothing passes between a node and all others, and nobody is told.
    pub fn isolate(&self, node: NodeId, others: impl IntoIterator<Item = NodeId>) {
        let mut cut = self.cut.lock();
        for other in others {
            if other != node {
                cut.insert((node, other));
                cut.insert((other, node));
            }
        }
    }

    /// Calls of a service to a node are on their way until [`Wires::let_go`].
    pub fn hold(&self, service: ServiceId, to: NodeId) {
        self.held.lock().push((service, to));
    }

    pub fn let_go(&self) {
        self.held.lock().clear();
    }

    pub fn heal(&self) {
        self.cut.lock().clear();
    }

    fn is_cut(&self, from: NodeId, to: NodeId) -> bool {
        self.cut.lock().contains(&(from, to))
    }
}

pub struct WireNet {
    me: NodeId,
    wires: Arc<Wires>,
}

#[async_trait]
impl Net for WireNet {
    fn me(&self) -> NodeId {
        self.me
    }

    async fn call(&self, to: NodeId, call: Call, deadline: Duration) -> Result<Answer> {
        let served = async {
            if self.wires.is_cut(self.me, to) {
                std::future::pending::<()>().await;
            }
            while self.wires.held.lock().contains(&(call.service, to)) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let service = self.wires.nodes.lock().get(&to).and_then(|s| s.get(&call.service).cloned());
            let service = service.ok_or_else(|| Error::new(Kind::Unavailable, "nobody is there"))?;
            let body = call.body.concat();
            self.wires.bodies.fetch_add(body.len() as u64, Ordering::Relaxed);
            let answer = service.serve(self.me, call.head, body.into()).await;
            if self.wires.is_cut(to, self.me) {
                std::future::pending::<()>().await;
            }
            // Only kind and message cross a wire.
            answer.map_err(|e| Error::new(e.kind(), e.to_string()))
        };
        tokio::time::timeout(deadline, served).await.map_err(|_| Error::from(Kind::TimedOut))?
    }

    fn serve(&self, service: ServiceId, by: Arc<dyn Service>) {
        self.wires.nodes.lock().entry(self.me).or_default().insert(service, by);
    }

    fn health(&self, _: NodeId) -> Health {
        Health::Up
    }

    fn set_members(&self, _: Vec<(NodeId, SocketAddr)>) {}
}

/// A cluster whose nodes come and go.
pub struct Cluster {
    dir: PathBuf,
    pub wires: Arc<Wires>,
    pub clock: Arc<RealClock>,
    rng: Arc<Counter>,
    pub nodes: BTreeMap<NodeId, Arc<Consensus>>,
    pub snapshot_every: u64,
    pub log_keep: u64,
}

static NEXT: AtomicU64 = AtomicU64::new(0);

pub fn add_node(n: u64) -> Op {
    Op::AddNode {
        name: format!("node{n}"),
        addr: ([127, 0, 0, 1], 7000 + n as u16).into(),
        domain: format!("rack{n}"),
        storage: true,
        key: [n as u8; 32],
        token: (n > 1).then(|| hfcache_base::meta::TokenUse { id: "t".into(), secret_hash: [9; 32] }),
    }
}

pub fn create(name: &str) -> Op {
    Op::Create {
        parent: InodeId::ROOT,
        name: name.as_bytes().to_vec(),
        node: NewNode::File,
        mode: 0o644,
        umask: 0,
        uid: 0,
        gid: 0,
        exclusive: true,
    }
}

impl Cluster {
    pub fn new() -> Self {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("hfcache-cluster-{}-{n}", std::process::id()));
        let _old = std::fs::remove_dir_all(&dir);
        Self {
            dir,
            wires: Arc::default(),
            clock: Arc::new(RealClock(Instant::now())),
            rng: Arc::new(Counter(AtomicU64::new(n << 32))),
            nodes: BTreeMap::new(),
            snapshot_every: hfcache_base::limits::SNAPSHOT_EVERY,
            log_keep: hfcache_base::limits::LOG_KEEP,
        }
    }

    pub fn dir_of(&self, n: u64) -> PathBuf {
        self.dir.join(n.to_string())
    }

    pub async fn open(&mut self, n: u64) -> Arc<Consensus> {
        let me = NodeId(n);
        let net = Arc::new(WireNet { me, wires: self.wires.clone() });
        let mut options = OpenOptions::new(self.dir_of(n), me, net, self.clock.clone(), self.rng.clone());
        options.snapshot_every = self.snapshot_every;
        options.log_keep = self.log_keep;
        let node = Consensus::open(options).await.unwrap();
        self.nodes.insert(me, node.clone());
        node
    }

    /// Founds a cluster with this many nodes, each with a session, and waits until all that should vote do.
    pub async fn founded(nodes: u64) -> Self {
        let mut cluster = Self::new();
        cluster.found(nodes).await;
        cluster
    }

    pub async fn found(&mut self, nodes: u64) {
        let first = self.open(1).await;
        first.initialize(add_node(1)).await.unwrap();
        first.open_session().await.unwrap();
        let token = hfcache_base::meta::Token {
            id: "t".into(),
            secret_hash: [9; 32],
            expires: Timestamp(i64::MAX),
            revoked: false,
        };
        first.commit(Op::CreateToken(token)).await.unwrap();
        for n in 2..=nodes {
            self.join(n).await;
        }
        let voters = match nodes {
            0..=2 => 1,
            3 | 4 => 3,
            _ => 5,
        };
        self.wait("voters", || first.status().voters.len() == voters).await;
    }

    pub async fn join(&mut self, n: u64) -> Arc<Consensus> {
        let any = self.nodes.values().next().unwrap().clone();
        match any.commit_for_cluster(add_node(n)).await.unwrap() {
            Reply::Node(node) => assert_eq!(node.id, NodeId(n)),
            other => panic!("{other:?}"),
        }
        let node = self.open(n).await;
        node.open_session().await.unwrap();
        node
    }

    /// Ends a node without a word to anyone.
    pub async fn kill(&mut self, node: NodeId) {
        self.wires.nodes.lock().remove(&node);
        let consensus = self.nodes.remove(&node).unwrap();
        consensus.stop().await;
    }

    pub async fn kill_all(&mut self) {
        for id in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.kill(id).await;
        }
    }

    pub fn node(&self, n: u64) -> &Arc<Consensus> {
        &self.nodes[&NodeId(n)]
    }

    pub fn leader(&self) -> Option<NodeId> {
        let leaders: BTreeSet<_> = self.nodes.values().map(|n| n.status().leader).collect();
        match leaders.len() {
            1 => leaders.into_iter().next().flatten().filter(|l| self.nodes.contains_key(l)),
            _ => None,
        }
    }

    pub async fn wait(&self, what: &str, done: impl Fn() -> bool) {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < Duration::from_secs(60), "waited too long for {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub async fn wait_leased(&self) {
        self.wait("leases", || self.nodes.values().all(|n| n.status().leased)).await;
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.dir);
    }
}

/// Looks a name up in the root as the mount does: waiting for a read point if the node has no lease, and until
/// what it saw may be told.
pub async fn lookup(node: &Consensus, name: &str) -> Result<InodeId> {
    if node.read_local().is_none() {
        node.read_point(Duration::from_secs(10)).await?;
    }
    let (found, settles_at) = {
        let view = node.read_stale();
        (view.lookup(InodeId::ROOT, name.as_bytes()).map(|a| a.ino), view.settles_at())
    };
    if let Some(index) = settles_at {
        node.settled(index, Duration::from_secs(10)).await?;
    }
    found
}
