//! What a command changed, as caches, waiters and the chunk store are told.

use super::{ChunkRef, Lock};
use crate::{ChunkId, InodeId, SessionId};

/// What a command changed: told to caches, lock waiters and the chunk store of every node after the
/// state that holds it can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A name now means something else, or nothing.
    Entry {
        /// Directory.
        parent: InodeId,
        /// Name.
        name: Vec<u8>,
    },
    /// An inode's attributes changed; `data` if its content did.
    Inode {
        /// The inode.
        ino: InodeId,
        /// Content too.
        data: bool,
    },
    /// An inode lost its last name: whoever has it open must say so ([`Op::Hold`]).
    Orphaned(InodeId),
    /// An inode is gone for ever.
    Reaped(InodeId),
    /// A chunk is part of the namespace, or protected in another way than before.
    ChunkAdded(ChunkRef),
    /// No file refers to the chunk any more.
    ChunkFreed(ChunkId),
    /// Somebody waits for a lock of the inode.
    LockQueued(InodeId),
    /// A waiting lock is held now.
    LockGranted {
        /// Whose session.
        session: SessionId,
        /// The inode.
        ino: InodeId,
        /// The lock.
        lock: Lock,
        /// Granted as a delegation: the session's own table holds it.
        delegated: bool,
    },
    /// The session must return its delegation.
    Recall {
        /// Whose session.
        session: SessionId,
        /// The inode.
        ino: InodeId,
    },
    /// A delegation has come back or its session ended.
    LocksReturned(InodeId),
    /// Members or placement changed.
    Map,
    /// A session ended.
    SessionClosed(SessionId),
    /// How fast users and groups may go.
    Rates,
    /// The access control lists of an inode changed.
    Acl(InodeId),
    /// An inode has another owner or group, or a directory another sticky bit.
    Owner(InodeId),
    /// An inode that was in the trash, or that takes the place of one, has a name again, which the kernel of
    /// no node has asked for. It needs no holder any more.
    Restored {
        /// The inode.
        ino: InodeId,
        /// The directory of the name.
        parent: InodeId,
    },
}

/// A delta of one applied command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Who caused it.
    pub session: SessionId,
    /// What it changed.
    pub changes: Vec<Change>,
}
