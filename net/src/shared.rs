//! What all tasks of the network share.

use crate::bounds;
use crate::bulk::Buffers;
use crate::identity::Identity;
use crate::join::{JoinHandler, JoinLimiter};
use crate::peer::Peer;
use crate::quic::code;
use crate::stats::{Counters, add};
use bytes::Bytes;
use hfcache_base::limits::CALLS_PER_PEER_MAX;
use hfcache_base::seam::{Answer, Service, ServiceId};
use hfcache_base::{Error, Kind, NodeId, Result};
use parking_lot::{Mutex, RwLock};
use quinn::{ClientConfig, Connection, Endpoint};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

/// Names a QUIC connection on the bulk lane; both of its ends export it from their keys.
pub(crate) type SessionKey = [u8; 16];

/// The connections that one node made to us.
struct FromNode {
    calls: Arc<Semaphore>,
    connections: Vec<(SessionKey, Connection)>,
}

/// Who is a member, as far as this node's copy of the cluster map says.
#[derive(Default)]
struct Members {
    now: BTreeSet<NodeId>,
    gone: BTreeSet<NodeId>,
}

/// See the module.
pub(crate) struct Shared {
    pub(crate) me: NodeId,
    pub(crate) identity: Identity,
    pub(crate) endpoint: Endpoint,
    pub(crate) client: ClientConfig,
    pub(crate) counters: Counters,
    pub(crate) peers: RwLock<BTreeMap<NodeId, Arc<Peer>>>,
    pub(crate) hints: Mutex<BTreeMap<NodeId, SocketAddr>>,
    pub(crate) buffers: Arc<Buffers>,
    pub(crate) join: RwLock<Option<Arc<dyn JoinHandler>>>,
    pub(crate) join_limiter: JoinLimiter,
    /// The bulk lane may be used.
    pub(crate) bulk: bool,
    services: RwLock<HashMap<ServiceId, Arc<dyn Service>>>,
    members: RwLock<Members>,
    incoming: Mutex<HashMap<NodeId, FromNode>>,
    bodies: Semaphore,
    started: Instant,
}

impl Shared {
    pub(crate) fn new(identity: Identity, endpoint: Endpoint, client: ClientConfig, bulk: bool) -> Self {
        Self {
            me: identity.node(),
            identity,
            endpoint,
            client,
            counters: Counters::default(),
            peers: RwLock::default(),
            hints: Mutex::default(),
            buffers: Arc::default(),
            join: RwLock::new(None),
            join_limiter: JoinLimiter::default(),
            bulk,
            services: RwLock::default(),
            members: RwLock::default(),
            incoming: Mutex::default(),
            bodies: Semaphore::new(bounds::BODIES_INBOUND_MAX >> 10),
            started: Instant::now(),
        }
    }

    /// Milliseconds since the start, never 0.
    pub(crate) fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64 + 1
    }

    /// Says who answers calls to a service.
    pub(crate) fn set_service(&self, service: ServiceId, by: Arc<dyn Service>) {
        self.services.write().insert(service, by);
    }

    /// Gives a call to its service, for at most `deadline`.
    pub(crate) async fn dispatch(
        &self,
        from: NodeId,
        service: ServiceId,
        deadline: Duration,
        head: Bytes,
        body: Bytes,
    ) -> Result<Answer> {
        let by = self.services.read().get(&service).cloned();
        let by =
            by.ok_or_else(|| Error::new(Kind::Unavailable, format!("{service:?} is not served here yet")))?;
        add(&self.counters.calls_served, 1);
        tokio::time::timeout(deadline, by.serve(from, head, body))
            .await
            .unwrap_or_else(|_| Err(Error::new(Kind::TimedOut, "the caller's deadline passed")))
    }

    /// Waits until there is room for a body.
    pub(crate) async fn room_for(&self, body: usize) -> Result<SemaphorePermit<'_>> {
        let kib = body.div_ceil(1 << 10) as u32;
        self.bodies.acquire_many(kib).await.map_err(|_| Error::from(Kind::Unavailable))
    }

    /// Notes who is a member now, and returns those who are not any more.
    pub(crate) fn note_members(&self, now: BTreeSet<NodeId>) {
        let mut members = self.members.write();
        let left: Vec<NodeId> = members.now.difference(&now).copied().collect();
        members.gone.extend(left.iter().copied());
        members.gone.retain(|n| !now.contains(n));
        members.now = now;
        drop(members);
        let mut incoming = self.incoming.lock();
        for node in left {
            for (_, connection) in incoming.remove(&node).map(|n| n.connections).unwrap_or_default() {
                connection.close(code::REFUSED, b"not a member any more");
            }
        }
    }

    /// Whether a node with a certificate of the cluster may talk to us. Ids only grow, so one that is
    /// missing below the largest known was removed; a larger one is newer than our map.
    pub(crate) fn admits(&self, node: NodeId) -> bool {
        let members = self.members.read();
        let newest = members.now.last().copied().unwrap_or_default();
        node != self.me && !members.gone.contains(&node) && (members.now.contains(&node) || node > newest)
    }

    /// Keeps a connection that a member made, and gives the bound on its calls.
    pub(crate) fn add_incoming(
        &self,
        node: NodeId,
        key: SessionKey,
        connection: &Connection,
    ) -> Arc<Semaphore> {
        let mut incoming = self.incoming.lock();
        let from = incoming.entry(node).or_insert_with(|| FromNode {
            calls: Arc::new(Semaphore::new(CALLS_PER_PEER_MAX)),
            connections: Vec::new(),
        });
        if from.connections.len() >= bounds::CONNECTIONS_FROM_NODE_MAX {
            let (_, oldest) = from.connections.remove(0);
            oldest.close(code::REPLACED, b"too many connections");
        }
        from.connections.push((key, connection.clone()));
        from.calls.clone()
    }

    /// Forgets a connection that ended.
    pub(crate) fn remove_incoming(&self, node: NodeId, key: SessionKey) {
        let mut incoming = self.incoming.lock();
        if let Some(from) = incoming.get_mut(&node) {
            from.connections.retain(|(k, _)| *k != key);
            if from.connections.is_empty() {
                incoming.remove(&node);
            }
        }
    }

    /// The connection that a bulk connection says it belongs to.
    pub(crate) fn session(&self, key: &SessionKey) -> Option<(NodeId, Connection, Arc<Semaphore>)> {
        let incoming = self.incoming.lock();
        incoming.iter().find_map(|(node, from)| {
            let (_, connection) = from.connections.iter().find(|(k, _)| k == key)?;
            Some((*node, connection.clone(), from.calls.clone()))
        })
    }
}
