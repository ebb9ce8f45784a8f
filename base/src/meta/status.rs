//! What is known of the whole: sessions, sums, the Raft part.

use super::Timestamp;
use crate::{ClusterMap, Epoch, NodeId, SessionId};
use serde::{Deserialize, Serialize};

/// A session as the state keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Its identity.
    pub id: SessionId,
    /// Its node.
    pub node: NodeId,
    /// See [`Op::OpenSession`].
    pub nonce: u64,
    /// Chunk ids from here up to `chunks_end` were handed out to it last.
    pub opened: Timestamp,
}

/// Sums over the whole namespace, kept exact by `apply`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Inodes, without nameless ones.
    pub inodes: u64,
    /// Bytes in chunks and inline.
    pub bytes: u64,
    /// Chunks referred to.
    pub chunks: u64,
}

/// What the Raft part of a node says of itself; for `status`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RaftStatus {
    /// The leader this node follows, if any.
    pub leader: Option<NodeId>,
    /// Current term.
    pub term: u64,
    /// Newest applied log index.
    pub applied: u64,
    /// Newest log index.
    pub last_log: u64,
    /// Members that vote.
    pub voters: Vec<NodeId>,
    /// Members that only follow.
    pub learners: Vec<NodeId>,
    /// This node's session is alive.
    pub session: Option<SessionId>,
    /// This node may read without asking.
    pub leased: bool,
    /// Map version.
    pub epoch: Epoch,
}

/// A map that is cheap to share.
pub type SharedMap = std::sync::Arc<ClusterMap>;
