//! The cluster map: members, and which nodes hold which partition. It lives in Raft and is versioned by
//! its epoch; the table is stored, never recomputed on reading, so two versions of the program agree.

use crate::limits::PARTITIONS;
use crate::{ChunkId, Epoch, NodeId, Partition, ShardIndex, placement};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// What the cluster has decided about a member. Whether it answers right now is not decided by Raft.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeState {
    /// Admitted, never seen running.
    Joined,
    /// A member.
    Active,
    /// On its way out: takes no new shards, gives away those it has.
    Leaving,
}

/// A member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its identity, also in its certificate.
    pub id: NodeId,
    /// A name for people: the host name unless told otherwise.
    pub name: String,
    /// Where it listens: QUIC on this UDP port, the bulk lane on the same TCP port, gossip on the next
    /// UDP port.
    pub addr: SocketAddr,
    /// Failure domain (rack, room …); nodes of one domain may fail together.
    pub domain: String,
    /// Whether it gives disks.
    pub storage: bool,
    /// Bytes its disks have for the cache.
    pub capacity: u64,
    /// See [`NodeState`].
    pub state: NodeState,
}

impl Node {
    /// Whether shards may be placed on it.
    pub fn takes_shards(&self) -> bool {
        self.storage && self.state != NodeState::Leaving
    }
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterMap {
    /// Grows by one with every change.
    pub epoch: Epoch,
    /// All members.
    pub nodes: BTreeMap<NodeId, Node>,
    /// For each partition the nodes that hold it, shard `i` on the `i`-th. Empty before the first storage
    /// node.
    pub table: Vec<Vec<NodeId>>,
}

impl ClusterMap {
    /// The partition of a chunk: fixed for ever.
    pub fn partition(chunk: ChunkId) -> Partition {
        Partition((placement::mix(chunk.0) % u64::from(PARTITIONS)) as u16)
    }

    /// The nodes of a chunk's partition, in shard order.
    pub fn homes(&self, chunk: ChunkId) -> &[NodeId] {
        self.table.get(usize::from(Self::partition(chunk).0)).map_or(&[], Vec::as_slice)
    }

    /// The node that should hold one shard of a chunk.
    pub fn holder(&self, chunk: ChunkId, shard: ShardIndex) -> Option<NodeId> {
        self.homes(chunk).get(usize::from(shard.0)).copied()
    }

    /// Which shard of a chunk of `total` shards `node` should hold.
    pub fn shard_of(&self, chunk: ChunkId, total: u8, node: NodeId) -> Option<ShardIndex> {
        let homes = self.homes(chunk);
        let at = homes.iter().take(usize::from(total)).position(|n| *n == node)?;
        Some(ShardIndex(at as u8))
    }

    /// Members that take shards.
    pub fn storage_nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values().filter(|n| n.takes_shards())
    }

    /// Makes the table fit the members and counts the epoch up. Called by `apply` after each change.
    pub fn rebuild(&mut self) {
        let nodes: Vec<NodeId> = self.storage_nodes().map(|n| n.id).collect();
        self.table = placement::assign(&self.table, &nodes);
        self.epoch.0 += 1;
    }
}
