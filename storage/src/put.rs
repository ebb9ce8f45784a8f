//! Storing a chunk: as many shards as the scheme has, each synced on a node of its own, whatever happens to
//! the holders meanwhile.
//!
//! Every shard starts at its home. When a holder fails, falls silent or is full, the shard goes to the next
//! live node that has none (handoff; the want/have loop brings it home later). When there is no such node,
//! the chunk is planned anew for the nodes that are left.

use crate::codec::{self, Shard};
use crate::local::LocalShards;
use crate::peers::Peers;
use crate::pool::IoPool;
use crate::shard::{Header, ShardKey};
use crate::status::Counters;
use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt};
use hfcache_base::limits::{CHUNK_MAX, COPY_MAX};
use hfcache_base::meta::ChunkRef;
use hfcache_base::placement::mix;
use hfcache_base::seam::{Clock, Moment};
use hfcache_base::{ChunkId, ClusterMap, Error, Kind, NodeId, Result, Scheme};
use std::collections::{BTreeSet, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// A holder that is alive but takes longer than this, plus the time of a slow disk, gets competition.
const PATIENCE: Duration = Duration::from_millis(1_200);
/// Bytes per second of a slow disk.
const SLOW_DISK: u64 = 20 << 20;
/// The end of every patience.
const DEADLINE: Duration = Duration::from_secs(10);
/// How often holders are looked after.
const TICK: Duration = Duration::from_millis(50);
/// Plans for one chunk. Each failed one excludes a node, so more means that something else is wrong.
const PLANS_MAX: usize = 8;

/// See the module.
pub struct Putter {
    /// Other nodes.
    pub peers: Arc<Peers>,
    /// This node's shards, if it holds any.
    pub local: Option<Arc<LocalShards>>,
    /// Threads for encoding.
    pub pool: Arc<IoPool>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// What happened.
    pub counters: Arc<Counters>,
}

/// What one put has learned.
#[derive(Default)]
struct Learned {
    /// Nodes that failed it.
    out: BTreeSet<NodeId>,
    /// Nodes without room.
    full: BTreeSet<NodeId>,
    /// What is synced already; a later plan may use it.
    stored: HashSet<(ShardKey, NodeId)>,
    last: Option<Error>,
}

/// One shard on its way to one node.
struct Sending {
    place: usize,
    node: NodeId,
    since: Moment,
    /// Someone else has been asked as well.
    overtaken: bool,
}

impl Putter {
    /// Stores a chunk.
    ///
    /// # Errors
    /// [`Kind::NoSpace`] if the nodes with room are too few for the redundancy that the live nodes promise;
    /// [`Kind::Unavailable`] if no node can be reached; [`Kind::Invalid`] for an impossible length.
    pub async fn put(&self, id: ChunkId, data: Vec<Bytes>) -> Result<ChunkRef> {
        let len: usize = data.iter().map(Bytes::len).sum();
        if len == 0 || len > CHUNK_MAX as usize {
            return Err(Error::new(Kind::Invalid, format!("chunk of {len} bytes")));
        }
        let len = len as u32;
        let data = Arc::new(data);
        let mut learned = Learned::default();
        let mut encoded: Option<(Scheme, Vec<Shard>)> = None;
        for plan in 0..PLANS_MAX {
            if plan > 0 {
                Counters::count(&self.counters.replanned);
            }
            let map = self.peers.map()?;
            let live: Vec<NodeId> = map
                .storage_nodes()
                .map(|n| n.id)
                .filter(|n| self.peers.alive(*n) && !learned.out.contains(n))
                .collect();
            let usable: Vec<NodeId> = live.iter().copied().filter(|n| !learned.full.contains(n)).collect();
            let Some(scheme) = scheme_for(live.len(), usable.len(), len) else {
                let (full, live) = (learned.full.len(), live.len());
                let why = format!("no room for chunk {id}: {full} of {live} live nodes are full");
                return Err(Error::new(Kind::NoSpace, why));
            };
            if usable.is_empty() {
                let why = learned.last.unwrap_or_else(|| Error::from(Kind::Unavailable));
                return Err(Error::new(Kind::Unavailable, "no storage node can be reached").with_source(why));
            }
            let shards = match encoded.take() {
                Some((with, shards)) if with == scheme => shards,
                // Copies take only a checksum: less than the way to another thread.
                _ if scheme.data == 1 && len <= COPY_MAX => codec::encode(scheme, &data)?,
                _ => {
                    let data = data.clone();
                    self.pool.run(move || codec::encode(scheme, &data)).await?
                }
            };
            let chunk = ChunkRef { id, len, scheme };
            if self.place(chunk, &shards, places(&map, id, scheme, &usable), &mut learned).await? {
                return Ok(chunk);
            }
            encoded = Some((scheme, shards));
        }
        let why = learned.last.unwrap_or_else(|| Error::from(Kind::Unavailable));
        Err(Error::new(Kind::Unavailable, format!("no place for chunk {id}")).with_source(why))
    }

    /// Brings every shard to a node of its own. `false` if the nodes do not suffice.
    async fn place(
        &self,
        chunk: ChunkRef,
        shards: &[Shard],
        (first, mut spare): (Vec<NodeId>, VecDeque<NodeId>),
        learned: &mut Learned,
    ) -> Result<bool> {
        let mut done = vec![false; shards.len()];
        let mut sending: Vec<Sending> = Vec::new();
        let mut flying = FuturesUnordered::new();
        let mut wanted: VecDeque<(usize, NodeId)> = first.into_iter().enumerate().collect();
        loop {
            while let Some((place, node)) = wanted.pop_front() {
                let key = ShardKey::at(chunk.id, chunk.scheme, place as u8);
                if learned.stored.contains(&(key, node)) {
                    done[place] = true;
                    continue;
                }
                let header = Header::new(key, chunk, shards[place].crcs())?;
                let parts = shards[place].parts();
                sending.push(Sending { place, node, since: self.clock.now(), overtaken: false });
                flying.push(async move { (place, node, key, self.send(node, header, parts).await) });
            }
            if done.iter().all(|d| *d) {
                return Ok(true);
            }
            tokio::select! {
                Some((place, node, key, result)) = flying.next(), if !flying.is_empty() => {
                    let overtaken = sending.iter().any(|s| s.place == place && s.node == node && s.overtaken);
                    sending.retain(|s| !(s.place == place && s.node == node));
                    match result {
                        Ok(()) => {
                            learned.stored.insert((key, node));
                            done[place] = true;
                        }
                        Err(e) => {
                            tracing::warn!(shard = %key, %node, "store shard: {e}");
                            let bad = if e.kind() == Kind::NoSpace { &mut learned.full } else { &mut learned.out };
                            bad.insert(node);
                            learned.last = Some(e);
                            if !done[place] && !overtaken {
                                match self.next(&mut spare) {
                                    Some(next) => wanted.push_back((place, next)),
                                    None if sending.iter().any(|s| s.place == place) => {}
                                    None => return Ok(false),
                                }
                            } else if !done[place] && !sending.iter().any(|s| s.place == place) {
                                return Ok(false);
                            }
                        }
                    }
                }
                () = self.clock.sleep(TICK) => {
                    let now = self.clock.now();
                    for s in sending.iter_mut().filter(|s| !s.overtaken && !done[s.place]) {
                        let dead = !self.peers.alive(s.node);
                        let patience = PATIENCE
                            + Duration::from_millis(1_000 * shards[s.place].len() as u64 / SLOW_DISK);
                        if !dead && now.since(s.since) < patience {
                            continue;
                        }
                        if dead {
                            learned.out.insert(s.node);
                        }
                        match self.next(&mut spare) {
                            Some(next) => {
                                s.overtaken = true;
                                wanted.push_back((s.place, next));
                            }
                            // Nobody else: wait for a slow node, plan anew without a dead one.
                            None if dead => return Ok(false),
                            None => {}
                        }
                    }
                }
            }
        }
    }

    /// The next spare node that is still worth a try.
    fn next(&self, spare: &mut VecDeque<NodeId>) -> Option<NodeId> {
        while let Some(node) = spare.pop_front() {
            if self.peers.alive(node) {
                Counters::count(&self.counters.handed_off);
                return Some(node);
            }
        }
        None
    }

    async fn send(&self, node: NodeId, header: Header, parts: Vec<Bytes>) -> Result<()> {
        match &self.local {
            Some(local) if node == self.peers.me() => local.put(header, parts).await,
            _ => self.peers.put(node, header, parts, DEADLINE).await,
        }
    }
}

/// The scheme when `usable` of `live` nodes have room: survives as many losses as the live nodes promise, with
/// fewer data shards if need be. `None` if even copies would not.
fn scheme_for(live: usize, usable: usize, len: u32) -> Option<Scheme> {
    let scheme = Scheme::choose(usable, len);
    let promised = Scheme::parity_for(live);
    if usable == live || scheme.parity >= promised && usable > 0 {
        return Some(scheme);
    }
    let data = usable.checked_sub(usize::from(promised)).filter(|data| *data > 0)?;
    Some(Scheme { data: (data as u8).min(scheme.data), parity: promised })
}

/// Where each shard goes first, and who else could take one, in order.
fn places(
    map: &ClusterMap,
    id: ChunkId,
    scheme: Scheme,
    usable: &[NodeId],
) -> (Vec<NodeId>, VecDeque<NodeId>) {
    let total = usize::from(scheme.total());
    let row = map.homes(id);
    let mut rest: Vec<NodeId> = usable.iter().copied().filter(|n| !row.contains(n)).collect();
    rest.sort_by_key(|n| mix(id.0 ^ mix(n.0)));
    let later = row.iter().skip(total).copied().filter(|n| usable.contains(n));
    let mut spare: VecDeque<NodeId> = later.chain(rest).collect();
    let mut first = Vec::with_capacity(total);
    for place in 0..total {
        let home = row.get(place).copied().filter(|n| usable.contains(n));
        // There are at least as many usable nodes as shards, so a spare one is there.
        first.extend(home.or_else(|| spare.pop_front()));
    }
    (first, spare)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(nodes: u64) -> ClusterMap {
        let ids: Vec<NodeId> = (1..=nodes).map(NodeId).collect();
        ClusterMap { table: hfcache_base::placement::assign(&[], &ids), ..ClusterMap::default() }
    }

    #[test]
    fn full_nodes_never_lower_the_promise() {
        for live in 1..=14usize {
            for usable in 0..=live {
                for len in [1, 1 << 24] {
                    let promised = Scheme::parity_for(live);
                    match scheme_for(live, usable, len) {
                        Some(s) => {
                            assert!(s.parity >= promised && s.data > 0, "{usable} of {live}: {s}");
                            assert!(usize::from(s.total()) <= usable, "{usable} of {live}: {s}");
                        }
                        None => assert!(usable <= usize::from(promised), "{usable} of {live}"),
                    }
                }
            }
        }
    }

    #[test]
    fn every_shard_gets_a_node_of_its_own_and_homes_come_first() {
        for nodes in 1..=9u64 {
            let map = map(nodes);
            for id in (0..50).map(ChunkId) {
                for lost in 0..=nodes {
                    let usable: Vec<NodeId> = (1..=nodes).map(NodeId).filter(|n| n.0 != lost).collect();
                    if usable.is_empty() {
                        continue;
                    }
                    let scheme = Scheme::choose(usable.len(), 1 << 24);
                    let (first, spare) = places(&map, id, scheme, &usable);
                    assert_eq!(first.len(), usize::from(scheme.total()));
                    let all: BTreeSet<NodeId> = first.iter().chain(&spare).copied().collect();
                    assert_eq!(all.len(), first.len() + spare.len(), "a node twice");
                    assert_eq!(all.len(), usable.len());
                    for (at, node) in first.iter().enumerate() {
                        let home = map.homes(id)[at];
                        assert!(*node == home || home.0 == lost, "{home} passed over");
                    }
                }
            }
        }
    }
}
