//! The types with which openraft is used here.

use hfcache_base::meta::{Command, Reply};
use hfcache_base::{Kind, NodeId};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::sync::Arc;

openraft::declare_raft_types!(
    /// What openraft is told about the namespace.
    pub Types:
        D = Batch,
        R = Replies,
        NodeId = u64,
        Node = openraft::EmptyNode,
);

/// Raft's identity of a log entry.
pub type LogId = openraft::type_config::alias::LogIdOf<Types>;
/// A log entry.
pub type Entry = openraft::type_config::alias::EntryOf<Types>;
/// A vote.
pub type Vote = openraft::type_config::alias::VoteOf<Types>;
/// Membership and the entry it came with.
pub type StoredMembership = openraft::type_config::alias::StoredMembershipOf<Types>;
/// Position and membership of a snapshot.
pub type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<Types>;

/// One log entry's worth of commands. Cloning is cheap: the log's cache, replication and apply share it.
#[derive(Clone, Debug)]
pub struct Batch(pub Arc<Vec<Command>>);

impl Batch {
    /// Makes a batch of commands.
    pub fn new(commands: Vec<Command>) -> Self {
        Self(Arc::new(commands))
    }
}

impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} commands", self.0.len())
    }
}

impl Serialize for Batch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.as_slice().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Batch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::deserialize(deserializer).map(Self::new)
    }
}

/// The answer to each command of a batch, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replies(pub Vec<Result<Reply, Kind>>);

/// Raft's number of a node.
pub fn raft_id(node: NodeId) -> u64 {
    node.0
}
