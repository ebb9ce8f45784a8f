//! What is used, what may be used, and how fast.

use crate::InodeId;
use serde::{Deserialize, Serialize};

/// Whose usage is counted, and who can be given a quota. Users and groups also can be given a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Subject {
    /// A directory and everything below it.
    Tree(InodeId),
    /// Everything that a user owns.
    User(u32),
    /// Everything that belongs to a group.
    Group(u32),
}

/// What is used. An inode is counted once however many names it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Sum of [`Attr::allocated`](super::Attr::allocated): bytes in chunks and inline, without holes.
    pub bytes: u64,
    /// Files, directories, links and the rest.
    pub inodes: u64,
}

/// What may be used; `None` for as much as there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// Most [`Usage::bytes`].
    pub bytes: Option<u64>,
    /// Most [`Usage::inodes`].
    pub inodes: Option<u64>,
}

impl Limit {
    /// Whether it limits nothing.
    pub const fn is_none(&self) -> bool {
        self.bytes.is_none() && self.inodes.is_none()
    }
}

/// A limit and how much of it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// Whose.
    pub subject: Subject,
    /// What may be used.
    pub limit: Limit,
    /// What is used.
    pub used: Usage,
}

impl Quota {
    /// Bytes that may still be allocated; `None` without a limit on them.
    pub fn bytes_left(&self) -> Option<u64> {
        self.limit.bytes.map(|limit| limit.saturating_sub(self.used.bytes))
    }

    /// Inodes that may still be made; `None` without a limit on them.
    pub fn inodes_left(&self) -> Option<u64> {
        self.limit.inodes.map(|limit| limit.saturating_sub(self.used.inodes))
    }
}

/// How fast a user or a group may go on each node; `None` for as fast as it can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// Bytes read in a second.
    pub read: Option<u64>,
    /// Bytes written in a second.
    pub write: Option<u64>,
    /// Requests in a second.
    pub ops: Option<u64>,
}

impl Rate {
    /// Whether it limits nothing.
    pub const fn is_none(&self) -> bool {
        self.read.is_none() && self.write.is_none() && self.ops.is_none()
    }
}
