//! What the cluster says of itself. [`gather`] asks every member, [`assess`] judges (pure), and
//! [`Status`] is what `status --json` prints.

pub mod show;

use crate::facts::{self, Facts, NodeFacts};
use hfcache_base::limits::READDIR_PAGE;
use hfcache_base::meta::{RaftStatus, Totals};
use hfcache_base::seam::{Health, Meta, Net, Space};
use hfcache_base::{ChunkId, ClusterMap, Epoch, NodeId, NodeState, Result, Scheme, SessionId};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How long a member may take to answer.
const FACTS_DEADLINE: Duration = Duration::from_millis(1_500);
/// How long the cluster may take to prove that it has a leader and a quorum.
const QUORUM_DEADLINE: Duration = Duration::from_millis(1_500);

/// How often nodes are asked again that are looking at their shards.
const LOOKS: u32 = 6;
/// Time between two such questions.
const LOOK_EVERY: Duration = Duration::from_millis(60);

/// What `status --json` prints. Fields are only ever added.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// A leader with a quorum exists, every storage node is up, and redundancy is full.
    pub healthy: bool,
    /// Why not, for people.
    pub problems: Vec<String>,
    /// The cluster's name: the fingerprint of its certificate authority.
    pub cluster: String,
    /// Who says this.
    pub node: NodeId,
    /// Whom it follows.
    pub leader: Option<Leader>,
    /// Whether a quorum confirmed that just now.
    pub quorum: bool,
    /// Raft's term.
    pub term: u64,
    /// Newest log index applied on this node.
    pub applied: u64,
    /// Version of the cluster map.
    pub epoch: Epoch,
    /// All members.
    pub nodes: Vec<NodeStatus>,
    /// How well the bytes are protected.
    pub redundancy: Redundancy,
    /// What is stored.
    pub totals: Stored,
    /// Where this node's tree is.
    pub mount: Mounted,
    /// This node's program.
    pub version: String,
}

/// The leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leader {
    /// Its id.
    pub id: NodeId,
    /// Its address.
    pub addr: Option<SocketAddr>,
}

/// How a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Answers.
    Up,
    /// Answered a moment ago.
    Suspect,
    /// Does not answer.
    Down,
    /// Admitted, never started.
    Joined,
    /// On its way out.
    Leaving,
}

/// What a member is in Raft.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Leads.
    Leader,
    /// Votes.
    Voter,
    /// Follows.
    Learner,
    /// Not yet.
    None,
}

/// A member.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub addr: SocketAddr,
    /// Failure domain.
    pub domain: String,
    /// Whether it keeps shards.
    pub storage: bool,
    /// How it is.
    pub state: State,
    /// What it is in Raft.
    pub role: Role,
    /// Bytes of its disks.
    pub capacity: u64,
    /// Bytes of shards there.
    pub used: u64,
    /// What it says of itself, if it answers.
    pub facts: Option<NodeFacts>,
}

/// How well the bytes are protected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redundancy {
    /// Every chunk has every shard its scheme promises, on the node where it belongs.
    pub full: bool,
    /// The scheme of a large chunk written now, as "k+m".
    pub scheme: String,
    /// How many nodes may be lost without losing what is written now.
    pub tolerates: u8,
    /// Shards known to be missing.
    pub missing_shards: u64,
    /// Shards that are not where they belong.
    pub misplaced_shards: u64,
    /// Storage nodes that have not finished comparing what they have with what they should have.
    pub unchecked_nodes: u64,
    /// Storage nodes that do not answer: their shards count as lost for now.
    pub down_nodes: u64,
    /// Bytes on the nodes that do not answer.
    pub at_risk_bytes: u64,
    /// Chunks that will get more copies, because the cluster has grown since they were written.
    pub below_parity: u64,
    /// Chunks that keep an older, weaker scheme than new ones get.
    pub older_scheme: u64,
    /// Damaged cells found since the nodes started.
    pub damaged: u64,
}

/// What is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// Files, directories and links.
    pub inodes: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Chunks.
    pub chunks: u64,
    /// Entries of the trash: their bytes and chunks are among these.
    #[serde(default)]
    pub trash: u64,
    /// Bytes the cluster can hold, net of redundancy.
    pub capacity: u64,
    /// Bytes that can still be written, net of redundancy.
    pub free: u64,
}

/// A mount.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mounted {
    /// Where.
    pub path: PathBuf,
    /// Whether it is usable.
    pub ready: bool,
    /// This node's session, if alive.
    pub session: Option<SessionId>,
    /// Whether this node may read without asking.
    pub leased: bool,
}

/// How chunks compare with what new ones would get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Schemes {
    /// See [`Redundancy::below_parity`].
    pub below_parity: u64,
    /// See [`Redundancy::older_scheme`].
    pub older_scheme: u64,
    /// Most shards of any chunk: as many nodes are needed to keep it whole.
    pub widest: u8,
}

/// Everything that is judged.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The cluster's name.
    pub cluster: String,
    /// Who looks.
    pub me: NodeId,
    /// The map.
    pub map: Arc<ClusterMap>,
    /// Raft.
    pub raft: RaftStatus,
    /// Whether a quorum answered.
    pub quorum: bool,
    /// What every member that answers said.
    pub facts: BTreeMap<NodeId, NodeFacts>,
    /// What the network last saw of the others.
    pub health: BTreeMap<NodeId, Health>,
    /// Sums.
    pub totals: Totals,
    /// Entries of the trash.
    pub trash: u64,
    /// Disks.
    pub space: Space,
    /// Schemes.
    pub schemes: Schemes,
}

/// What [`gather`] needs of the node.
pub struct Sources {
    /// The cluster's name.
    pub cluster: String,
    /// The namespace.
    pub meta: Arc<dyn Meta>,
    /// The network.
    pub net: Arc<dyn Net>,
    /// This node.
    pub own: Arc<dyn Facts>,
    /// Bytes of the cluster's disks.
    pub space: Arc<dyn Fn() -> Space + Send + Sync>,
    /// The last count of schemes, with the log index and the epoch it is for.
    schemes: Mutex<Option<(u64, Epoch, Schemes)>>,
}

impl Sources {
    /// Nothing is asked yet.
    pub fn new(
        cluster: String,
        meta: Arc<dyn Meta>,
        net: Arc<dyn Net>,
        own: Arc<dyn Facts>,
        space: Arc<dyn Fn() -> Space + Send + Sync>,
    ) -> Self {
        Self { cluster, meta, net, own, space, schemes: Mutex::new(None) }
    }

    /// Counts chunks by scheme, page by page so that no view is held for long; kept until something changes.
    pub(crate) fn schemes(&self, applied: u64, map: &ClusterMap) -> Result<Schemes> {
        if let Some((at, epoch, counted)) = *self.schemes.lock()
            && (at, epoch) == (applied, map.epoch)
        {
            return Ok(counted);
        }
        let wanted = Scheme::parity_for(map.storage_nodes().count());
        let mut counted = Schemes::default();
        let mut after = ChunkId(0);
        loop {
            let page = self.meta.read_stale().chunks(after, READDIR_PAGE)?;
            for scheme in page.iter().map(|c| c.scheme) {
                counted.widest = counted.widest.max(scheme.total());
                match scheme {
                    Scheme { parity, .. } if parity >= wanted => {}
                    Scheme { data: 1, .. } => counted.below_parity += 1,
                    _ => counted.older_scheme += 1,
                }
            }
            match page.last() {
                Some(last) if page.len() == READDIR_PAGE => after = last.id,
                _ => break,
            }
        }
        *self.schemes.lock() = Some((applied, map.epoch, counted));
        Ok(counted)
    }
}

/// Asks every member and judges. Where nothing is wrong but that a node is looking at its shards just now, as
/// it does for a moment with every new chunk, it is asked again before that counts.
///
/// # Errors
/// Only if this node's own state is damaged.
pub async fn gather(sources: &Arc<Sources>) -> Result<Status> {
    let mut tries = 0;
    loop {
        let status = gather_once(sources).await?;
        let r = &status.redundancy;
        let only_looking = r.unchecked_nodes > 0 && r.missing_shards == 0 && r.down_nodes == 0;
        tries += 1;
        if !only_looking || tries == LOOKS {
            return Ok(status);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn gather_once(sources: &Arc<Sources>) -> Result<Status> {
    let quorum = sources.meta.read_point(QUORUM_DEADLINE).await.is_ok();
    let map = sources.meta.map();
    let me = sources.net.me();
    let asked = map
        .nodes
        .keys()
        .filter(|n| **n != me)
        .map(|n| async { (*n, facts::ask(sources.net.as_ref(), *n, FACTS_DEADLINE).await) });
    let mut all: BTreeMap<NodeId, NodeFacts> = BTreeMap::new();
    for (node, answer) in futures::future::join_all(asked).await {
        match answer {
            Ok(facts) => drop(all.insert(node, facts)),
            Err(e) => tracing::debug!(%node, error = %e, "ask for facts"),
        }
    }
    all.insert(me, sources.own.facts());
    let raft = sources.meta.status();
    let here = sources.clone();
    let (for_map, applied) = (map.clone(), raft.applied);
    let counted = tokio::task::spawn_blocking(move || -> Result<(Totals, u64, Schemes)> {
        let (totals, trash) = {
            let view = here.meta.read_stale();
            (view.totals()?, view.trash_entries()?)
        };
        Ok((totals, trash, here.schemes(applied, &for_map)?))
    });
    let (totals, trash, schemes) = counted.await.map_err(|e| {
        hfcache_base::Error::new(hfcache_base::Kind::Internal, "count chunks").with_source(e)
    })??;
    let health = map.nodes.keys().map(|n| (*n, sources.net.health(*n))).collect();
    Ok(assess(Seen {
        cluster: sources.cluster.clone(),
        me,
        map,
        raft,
        quorum,
        facts: all,
        health,
        totals,
        trash,
        space: (sources.space)(),
        schemes,
    }))
}

/// Judges.
pub fn assess(seen: Seen) -> Status {
    let leader = seen.raft.leader.map(|id| Leader { id, addr: seen.map.nodes.get(&id).map(|n| n.addr) });
    let nodes: Vec<NodeStatus> = seen.map.nodes.values().map(|n| member(n, &seen)).collect();
    let redundancy = redundancy(&seen, &nodes);
    let mut problems = Vec::new();
    if leader.is_none() {
        problems.push("no leader: fewer than half of the voters answer".into());
    } else if !seen.quorum {
        problems.push("no quorum: this node is cut off, or fewer than half of the voters answer".into());
    }
    for node in nodes.iter().filter(|n| n.storage) {
        match node.state {
            State::Up => {}
            State::Suspect => {
                problems.push(format!("{} ({}) was not heard for a moment", node.name, node.addr))
            }
            State::Down => problems.push(format!("{} ({}) does not answer", node.name, node.addr)),
            State::Joined => problems.push(format!("{} ({}) was never started", node.name, node.addr)),
            State::Leaving => problems.push(format!("{} ({}) is leaving", node.name, node.addr)),
        }
    }
    // It answers and holds shards, but its mount does not serve: it is starting, or was cut off for so long that
    // it has to begin afresh.
    let serves = |n: &&NodeStatus| n.facts.as_ref().is_none_or(|f| f.mounted && f.session.is_some());
    let idle: Vec<_> = nodes.iter().filter(|n| n.storage && !serves(n)).collect();
    for node in &idle {
        problems.push(format!("{} ({}) is starting and serves no files yet", node.name, node.addr));
    }
    if redundancy.missing_shards > 0 {
        problems.push(format!("{} shards are missing and being rebuilt", redundancy.missing_shards));
    }
    if redundancy.below_parity > 0 {
        problems.push(format!("{} chunks are getting more copies", redundancy.below_parity));
    }
    if redundancy.unchecked_nodes > 0 {
        problems.push(format!("{} nodes are still comparing their shards", redundancy.unchecked_nodes));
    }
    let own = seen.facts.get(&seen.me).cloned().unwrap_or_default();
    Status {
        healthy: leader.is_some()
            && seen.quorum
            && redundancy.full
            && idle.is_empty()
            && nodes.iter().all(|n| !n.storage || n.state == State::Up),
        problems,
        cluster: seen.cluster,
        node: seen.me,
        leader,
        quorum: seen.quorum,
        term: seen.raft.term,
        applied: seen.raft.applied,
        epoch: seen.map.epoch,
        nodes,
        redundancy,
        totals: Stored {
            inodes: seen.totals.inodes,
            bytes: seen.totals.bytes,
            chunks: seen.totals.chunks,
            trash: seen.trash,
            capacity: seen.space.total,
            free: seen.space.free,
        },
        mount: Mounted {
            path: own.mount,
            ready: own.mounted,
            session: seen.raft.session,
            leased: seen.raft.leased,
        },
        version: env!("CARGO_PKG_VERSION").into(),
    }
}

fn member(node: &hfcache_base::Node, seen: &Seen) -> NodeStatus {
    let facts = seen.facts.get(&node.id);
    let state = match (node.state, facts, seen.health.get(&node.id)) {
        (NodeState::Leaving, Some(_), _) => State::Leaving,
        (_, Some(_), _) => State::Up,
        (NodeState::Joined, None, _) => State::Joined,
        (_, None, Some(Health::Up)) => State::Suspect,
        (_, None, _) => State::Down,
    };
    let role = if seen.raft.leader == Some(node.id) {
        Role::Leader
    } else if seen.raft.voters.contains(&node.id) {
        Role::Voter
    } else if seen.raft.learners.contains(&node.id) {
        Role::Learner
    } else {
        Role::None
    };
    NodeStatus {
        id: node.id,
        name: node.name.clone(),
        addr: node.addr,
        domain: node.domain.clone(),
        storage: node.storage,
        state,
        role,
        capacity: facts.map_or(node.capacity, |f| f.capacity),
        used: facts.and_then(|f| f.shards.as_ref()).map_or(0, |s| s.bytes),
        facts: facts.cloned(),
    }
}

fn redundancy(seen: &Seen, nodes: &[NodeStatus]) -> Redundancy {
    let storage: Vec<_> = nodes.iter().filter(|n| n.storage).collect();
    let shards = || storage.iter().filter_map(|n| n.facts.as_ref()?.shards.as_ref());
    let takes = seen.map.storage_nodes().count();
    let scheme = Scheme::choose(takes, hfcache_base::limits::CHUNK_TARGET);
    let down: Vec<_> = storage.iter().filter(|n| n.facts.is_none()).collect();
    // What a silent node holds is not known; its share of what is stored is a fair guess.
    let held: u64 = shards().map(|s| s.bytes).sum();
    let answering = (storage.len() - down.len()) as u64;
    let at_risk_bytes = held.checked_div(answering).unwrap_or(seen.totals.bytes) * down.len() as u64;
    let unchecked = shards().filter(|s| !s.checked || s.epoch != seen.map.epoch).count() as u64;
    let mut r = Redundancy {
        full: false,
        scheme: scheme.to_string(),
        tolerates: scheme.parity,
        missing_shards: shards().map(|s| s.missing).sum(),
        misplaced_shards: shards().map(|s| s.surplus).sum(),
        unchecked_nodes: unchecked,
        down_nodes: down.len() as u64,
        at_risk_bytes,
        below_parity: seen.schemes.below_parity,
        older_scheme: seen.schemes.older_scheme,
        damaged: shards().map(|s| s.damaged).sum(),
    };
    r.full = takes > 0 && down.is_empty() && r.missing_shards == 0 && unchecked == 0 && r.below_parity == 0;
    r
}

#[cfg(test)]
mod tests;
