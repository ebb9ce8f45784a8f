//! The words every part of hfcache shares: identities, errors, limits, wire frames, the cluster map,
//! the namespace's vocabulary, and the seams through which the parts meet.
//!
//! This crate does no I/O, reads no clock and draws no randomness. The parts above it (`net`, `raft`,
//! `storage`, `fuse`) never import each other; they meet in [`seam`], and `node` wires them together.

pub mod acl;
pub mod error;
pub mod id;
pub mod interval;
pub mod limits;
pub mod map;
pub mod meta;
pub mod placement;
pub mod scheme;
pub mod seam;
pub mod wire;

pub use error::{Error, Kind, Result};
pub use id::{ChunkId, Epoch, InodeId, NodeId, Partition, SessionId, ShardIndex};
pub use map::{ClusterMap, Node, NodeState};
pub use scheme::Scheme;
