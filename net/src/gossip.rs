//! Gossip: who is alive and where, as hints. Nothing here decides who may do what; the certificate does.
//!
//! chitchat does the gossiping; here its messages are sealed with the cluster's gossip key.

mod datagram;
mod transport;

use crate::bounds::{GOSSIP_EVERY, GOSSIP_HINT_MAX, GOSSIP_HINTS_MAX};
use crate::quic::{bind_failed, bind_udp};
use crate::shared::Shared;
use chitchat::{
    ChitchatConfig, ChitchatHandle, ChitchatId, FailureDetectorConfig, NodeState, spawn_chitchat,
};
use datagram::Sealer;
use hfcache_base::{Error, Kind, NodeId, Result};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use transport::SealedTransport;

/// What a node publishes of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GossipNode {
    /// The node, as it says.
    pub node: NodeId,
    /// Where it listens, as it says.
    pub addr: SocketAddr,
    /// For people.
    pub name: String,
    /// The version of its program.
    pub version: String,
    /// Whatever else it publishes.
    pub hints: BTreeMap<String, String>,
}

/// See the module.
pub(crate) struct Gossip {
    handle: Mutex<Option<ChitchatHandle>>,
    chitchat: Arc<tokio::sync::Mutex<chitchat::Chitchat>>,
    live: watch::Receiver<Vec<GossipNode>>,
    follower: AbortHandle,
}

pub(crate) struct GossipConfig {
    pub(crate) listen: SocketAddr,
    /// Where others reach the node's QUIC port.
    pub(crate) advertise: SocketAddr,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) generation: u64,
    pub(crate) shared: Arc<Shared>,
}

const PREFIX: &str = "hint:";

/// The gossip port belongs to the QUIC port.
pub(crate) fn gossip_addr(addr: SocketAddr) -> Result<SocketAddr> {
    let port = addr.port().checked_add(1);
    let port =
        port.ok_or_else(|| Error::new(Kind::Invalid, format!("{addr}: the next port is needed too")))?;
    Ok(SocketAddr::new(addr.ip(), port))
}

fn read_node(id: &ChitchatId, state: &NodeState) -> Option<GossipNode> {
    let node = NodeId(id.node_id.strip_prefix('n')?.parse().ok()?);
    let text = |key: &str| state.get(key).unwrap_or_default().to_owned();
    let hints =
        state.key_values().filter_map(|(k, v)| Some((k.strip_prefix(PREFIX)?.to_owned(), v.to_owned())));
    let hints = hints.take(GOSSIP_HINTS_MAX).collect();
    Some(GossipNode {
        node,
        addr: state.get("addr")?.parse().ok()?,
        name: text("name"),
        version: text("version"),
        hints,
    })
}

impl Gossip {
    pub(crate) async fn start(config: GossipConfig) -> Result<Self> {
        let identity = &config.shared.identity;
        let (cluster, me) = (identity.cluster(), identity.node());
        let listen = gossip_addr(config.listen)?;
        let socket = bind_udp("gossip/UDP", listen)?;
        let socket =
            tokio::net::UdpSocket::from_std(socket).map_err(|e| bind_failed("gossip/UDP", listen, e))?;
        let sealer = Sealer::new(*identity.gossip_key(), cluster, me, config.generation)?;
        let transport = SealedTransport::new(socket, sealer, config.shared.clone());
        let chitchat_id =
            ChitchatId::new(format!("n{}", me.0), config.generation, gossip_addr(config.advertise)?);
        let settings = ChitchatConfig {
            chitchat_id,
            cluster_id: cluster.to_string(),
            gossip_interval: GOSSIP_EVERY,
            listen_addr: listen,
            // Whoever the cluster map names is greeted by [`Gossip::greet`].
            seed_nodes: Vec::new(),
            failure_detector_config: FailureDetectorConfig {
                initial_interval: GOSSIP_EVERY * 2,
                max_interval: GOSSIP_EVERY * 8,
                // Dead generations count against the size of a datagram.
                dead_node_grace_period: Duration::from_secs(600),
                ..FailureDetectorConfig::default()
            },
            marked_for_deletion_grace_period: Duration::from_secs(600),
            catchup_callback: None,
            extra_liveness_predicate: None,
        };
        let facts = vec![
            ("addr".to_owned(), config.advertise.to_string()),
            ("name".to_owned(), config.name),
            ("version".to_owned(), config.version),
        ];
        let handle = spawn_chitchat(settings, facts, &transport)
            .await
            .map_err(|e| Error::new(Kind::Io, format!("{e:#}")).context("start gossip"))?;
        let chitchat = handle.chitchat();
        let mut nodes = chitchat.lock().await.live_nodes_watcher();
        let (live_tx, live) = watch::channel(Vec::new());
        let follower = tokio::spawn(async move {
            loop {
                let now = nodes.borrow_and_update().iter().filter_map(|(id, s)| read_node(id, s)).collect();
                live_tx.send_replace(now);
                if nodes.changed().await.is_err() {
                    return;
                }
            }
        });
        Ok(Self { handle: Mutex::new(Some(handle)), chitchat, live, follower: follower.abort_handle() })
    }

    /// All nodes that gossip, this one too, whenever one comes, goes or says something new.
    pub(crate) fn live(&self) -> watch::Receiver<Vec<GossipNode>> {
        self.live.clone()
    }

    /// Gossips with the node that listens at `addr`, live or not.
    pub(crate) fn greet(&self, addr: SocketAddr) {
        if let (Some(handle), Ok(addr)) = (&*self.handle.lock(), gossip_addr(addr)) {
            // Fails only when gossip has ended.
            let _ = handle.gossip(addr);
        }
    }

    /// Publishes a hint.
    pub(crate) async fn publish(&self, key: &str, value: &str) -> Result<()> {
        if key.len() + value.len() > GOSSIP_HINT_MAX {
            return Err(Error::new(Kind::TooLarge, format!("a hint of more than {GOSSIP_HINT_MAX} bytes")));
        }
        let mut chitchat = self.chitchat.lock().await;
        let state = chitchat.self_node_state();
        let key = format!("{PREFIX}{key}");
        if state.get(&key).is_none() && state.num_key_values() >= GOSSIP_HINTS_MAX + 3 {
            return Err(Error::new(Kind::TooLarge, format!("more than {GOSSIP_HINTS_MAX} hints")));
        }
        state.set(key, value);
        Ok(())
    }

    pub(crate) async fn shutdown(&self) {
        self.follower.abort();
        let handle = self.handle.lock().take();
        if let Some(handle) = handle {
            // It may have ended by itself; the port is free either way.
            let _ = tokio::time::timeout(Duration::from_secs(1), handle.shutdown()).await;
        }
    }

    pub(crate) fn abort(&self) {
        self.follower.abort();
        if let Some(handle) = self.handle.lock().take() {
            handle.abort();
        }
    }
}
