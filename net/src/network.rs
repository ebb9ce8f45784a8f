//! The real [`Net`]: starts and stops everything, keeps the address book, routes calls.

use crate::bounds::{GOSSIP_EVERY, GOSSIP_SENDERS_MAX};
use crate::gossip::{Gossip, GossipConfig, GossipNode, gossip_addr};
use crate::identity::Identity;
use crate::join::JoinHandler;
use crate::peer::Peer;
use crate::quic::{bind_failed, bind_udp, client, code, endpoint};
use crate::shared::Shared;
use crate::stats::{NetStats, add};
use crate::{bulk, server, tls};
use async_trait::async_trait;
use bytes::Bytes;
use hfcache_base::limits::{CALL_BODY_MAX, CALL_HEAD_MAX};
use hfcache_base::seam::{Answer, Call, Health, Net, Service, ServiceId};
use hfcache_base::{Error, Kind, NodeId, Result};
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::info;

/// Ports tried when the system may choose.
const FREE_PORT_TRIES: usize = 32;

/// What a node needs to know to take its place in the network.
#[derive(Clone, Debug)]
pub struct NetConfig {
    /// QUIC on this UDP port, bulk on the same TCP port, gossip on the next UDP port. Port 0 takes free
    /// ones.
    pub listen: SocketAddr,
    /// Where others reach `listen`, if that is an address such as 0.0.0.0.
    pub advertise: Option<SocketAddr>,
    /// For people.
    pub name: String,
    /// The version of the program, for people.
    pub version: String,
    /// Grows with each start: [`crate::identity::next_generation`].
    pub generation: u64,
    /// The bulk lane is offered and used. Off only in tests and behind firewalls that drop its port.
    pub bulk: bool,
}

/// See the module. Dropping it stops everything at once; [`Network::shutdown`] says goodbye first.
pub struct Network {
    shared: Arc<Shared>,
    gossip: Arc<Gossip>,
    listen: SocketAddr,
    tasks: Mutex<JoinSet<()>>,
}

impl Drop for Network {
    fn drop(&mut self) {
        self.stop();
        self.gossip.abort();
    }
}

struct Sockets {
    listen: SocketAddr,
    quic: std::net::UdpSocket,
    bulk: Option<TcpListener>,
}

async fn bind(config: &NetConfig) -> Result<Sockets> {
    let quic = bind_udp("QUIC/UDP", config.listen)?;
    let listen = quic.local_addr().map_err(|e| bind_failed("QUIC/UDP", config.listen, e))?;
    gossip_addr(listen)?;
    let bulk = match config.bulk {
        true => Some(TcpListener::bind(listen).await.map_err(|e| bind_failed("bulk/TCP", listen, e))?),
        false => None,
    };
    Ok(Sockets { listen, quic, bulk })
}

impl Network {
    /// Binds all ports and starts.
    ///
    /// # Errors
    /// [`Kind::Busy`] naming the address if a port is in use.
    pub async fn start(identity: Identity, config: NetConfig) -> Result<Arc<Self>> {
        let mut tries = 0;
        loop {
            let started = Self::start_once(identity.clone(), &config).await;
            match started {
                // The system chose a port whose TCP twin or successor is taken.
                Err(e) if config.listen.port() == 0 && e.kind() == Kind::Busy && tries < FREE_PORT_TRIES => {
                    tries += 1
                }
                started => return started,
            }
        }
    }

    async fn start_once(identity: Identity, config: &NetConfig) -> Result<Arc<Self>> {
        let Sockets { listen, quic, bulk } = bind(config).await?;
        let advertise = config.advertise.unwrap_or(listen);
        if advertise.ip().is_unspecified() {
            let message =
                format!("{listen} says nothing about where other nodes reach this one; give an address");
            return Err(Error::new(Kind::Invalid, message).context("start network"));
        }
        let server = tls::server_config(&identity)?;
        let dialer = client(tls::client_config(&identity)?);
        let endpoint = endpoint(quic, Some(server), identity.node_key())?;
        let shared = Arc::new(Shared::new(identity, endpoint, dialer, config.bulk));
        let gossip = Gossip::start(GossipConfig {
            listen,
            advertise,
            name: config.name.clone(),
            version: config.version.clone(),
            generation: config.generation,
            shared: shared.clone(),
        })
        .await?;
        let gossip = Arc::new(gossip);
        let mut tasks = JoinSet::new();
        tasks.spawn(server::accept(shared.clone()));
        if let Some(listener) = bulk {
            tasks.spawn(bulk::accept(shared.clone(), listener));
        }
        tasks.spawn(follow_gossip(shared.clone(), gossip.clone()));
        info!(op = "listen", addr = %listen, node = %shared.me, "network started");
        Ok(Arc::new(Self { shared, gossip, listen, tasks: Mutex::new(tasks) }))
    }

    /// The address that was bound.
    pub fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// The identity it was started with.
    pub fn identity(&self) -> &Identity {
        &self.shared.identity
    }

    /// Says who decides about joins; until then nobody may join here.
    pub fn serve_joins(&self, by: Arc<dyn JoinHandler>) {
        *self.shared.join.write() = Some(by);
    }

    /// Tells where members probably are before the cluster map is known (from a join, or a saved list).
    /// Nobody is forgotten.
    pub fn hint_members(&self, members: impl IntoIterator<Item = (NodeId, SocketAddr)>) {
        for (node, addr) in members {
            if node == self.shared.me {
                continue;
            }
            let mut peers = self.shared.peers.write();
            peers.entry(node).or_insert_with(|| new_peer(&self.shared, node, addr));
        }
    }

    /// All nodes that gossip, whenever one comes, goes or says something new.
    pub fn gossip(&self) -> watch::Receiver<Vec<GossipNode>> {
        self.gossip.live()
    }

    /// Publishes a small fact about this node in gossip.
    ///
    /// # Errors
    /// [`Kind::TooLarge`] beyond the bounds of gossip.
    pub async fn publish(&self, key: &str, value: &str) -> Result<()> {
        self.gossip.publish(key, value).await
    }

    /// What it has done so far.
    pub fn stats(&self) -> NetStats {
        let mut stats = self.shared.counters.snapshot();
        stats.peers = self.shared.peers.read().values().map(|p| p.stats(&self.shared)).collect();
        stats
    }

    fn stop(&self) {
        for peer in std::mem::take(&mut *self.shared.peers.write()).into_values() {
            peer.close(b"the node stops");
        }
        self.shared.endpoint.close(code::BYE, b"the node stops");
        self.tasks.lock().abort_all();
    }

    /// Says goodbye to all peers and frees all ports.
    pub async fn shutdown(&self) {
        self.stop();
        self.gossip.shutdown().await;
        let mut tasks = std::mem::take(&mut *self.tasks.lock());
        while tasks.join_next().await.is_some() {}
        // Peers that do not answer any more are not waited for.
        let _ = timeout(Duration::from_millis(500), self.shared.endpoint.wait_idle()).await;
        info!(op = "stop", node = %self.shared.me, "network stopped");
    }

    async fn call_member(&self, to: NodeId, call: Call, deadline: Duration) -> Result<Answer> {
        if call.head.len() > CALL_HEAD_MAX || call.body_len() > CALL_BODY_MAX {
            return Err(Error::new(Kind::TooLarge, "a call beyond the limits"));
        }
        if to == self.shared.me {
            let body = match <[Bytes; 1]>::try_from(call.body) {
                Ok([body]) => body,
                Err(pieces) => pieces.concat().into(),
            };
            return self.shared.dispatch(to, call.service, deadline, call.head, body).await;
        }
        let peer = self.shared.peers.read().get(&to).cloned();
        let peer = peer.ok_or_else(|| Error::new(Kind::Unavailable, format!("{to} is not known here")))?;
        match timeout(deadline, peer.call(&self.shared, call, deadline)).await {
            Ok(answer) => answer,
            Err(_) => Err(Error::new(Kind::TimedOut, format!("{to} gave no answer in {deadline:?}"))),
        }
    }
}

fn new_peer(shared: &Arc<Shared>, node: NodeId, addr: SocketAddr) -> Arc<Peer> {
    let peer = Arc::new(Peer::new(node, addr));
    peer.start(shared);
    peer
}

/// Takes addresses from gossip, and greets members that do not gossip yet.
async fn follow_gossip(shared: Arc<Shared>, gossip: Arc<Gossip>) {
    let mut live = gossip.live();
    let mut ticks = interval(GOSSIP_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut turn = 0usize;
    loop {
        tokio::select! {
            changed = live.changed() => {
                if changed.is_err() {
                    return;
                }
                let now = live.borrow_and_update().clone();
                learn_addresses(&shared, now);
            }
            _ = ticks.tick() => {
                shared.buffers.shrink();
                let known: Vec<NodeId> = live.borrow().iter().map(|n| n.node).collect();
                let silent: Vec<SocketAddr> = {
                    let peers = shared.peers.read();
                    peers.iter().filter(|(id, _)| !known.contains(id)).map(|(_, p)| p.addr()).collect()
                };
                if !silent.is_empty() {
                    turn += 1;
                    gossip.greet(silent[turn % silent.len()]);
                }
            }
        }
    }
}

fn learn_addresses(shared: &Shared, now: Vec<GossipNode>) {
    let mut hints = shared.hints.lock();
    // A node that is silent may still be where it was; one that is not in the map may be soon.
    hints.retain(|node, _| shared.admits(*node));
    for said in now.into_iter().filter(|said| shared.admits(said.node)).take(GOSSIP_SENDERS_MAX) {
        if hints.insert(said.node, said.addr) == Some(said.addr) {
            continue;
        }
        if let Some(peer) = shared.peers.read().get(&said.node)
            && peer.addr() != said.addr
        {
            peer.nudge();
        }
    }
}

#[async_trait]
impl Net for Network {
    fn me(&self) -> NodeId {
        self.shared.me
    }

    async fn call(&self, to: NodeId, call: Call, deadline: Duration) -> Result<Answer> {
        let service = call.service;
        add(&self.shared.counters.calls_made, 1);
        self.call_member(to, call, deadline).await.map_err(|e| {
            add(&self.shared.counters.calls_failed, 1);
            e.context(format!("call {service:?} of {to}"))
        })
    }

    fn serve(&self, service: ServiceId, by: Arc<dyn Service>) {
        self.shared.set_service(service, by);
    }

    fn health(&self, node: NodeId) -> Health {
        if node == self.shared.me {
            return Health::Up;
        }
        self.shared.peers.read().get(&node).map_or(Health::Unknown, |p| p.health(&self.shared))
    }

    fn set_members(&self, members: Vec<(NodeId, SocketAddr)>) {
        self.shared.note_members(members.iter().map(|(node, _)| *node).collect());
        let mut peers = self.shared.peers.write();
        peers.retain(|node, peer| {
            let stays = members.iter().any(|(member, _)| member == node);
            if !stays {
                peer.close(b"not a member any more");
            }
            stays
        });
        for (node, addr) in members {
            if node == self.shared.me {
                continue;
            }
            peers.entry(node).or_insert_with(|| new_peer(&self.shared, node, addr)).set_addr(addr);
        }
    }
}
