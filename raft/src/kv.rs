//! The ordered key-value transaction in which the state machine works. Keys of different [`Table`]s never
//! meet; within one they are ordered as bytes. The real one is redb, tests use a `BTreeMap`.

use hfcache_base::Result;
use std::ops::Bound;

/// A part of the state. The number is the first byte of every key on disk: fixed for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Table {
    /// Single values: counters, the cluster map, totals, Raft's own applied position and membership.
    Single = 0,
    /// Inode number → inode.
    Inode = 1,
    /// Directory, hash of the name, name → dentry.
    Dentry = 2,
    /// Inode number, file offset → extent.
    Extent = 3,
    /// Chunk id → chunk, with its reference count.
    Chunk = 4,
    /// Inode number without a name → since when, and who holds it.
    Orphan = 5,
    /// Session id → session.
    Session = 6,
    /// Session id, sequence → reply.
    Reply = 7,
    /// Inode number → locks, waiters and delegation.
    Lock = 8,
    /// Session id, inode number → nothing: what a session has in `Lock` and `Orphan`.
    SessionItem = 9,
    /// Token id → token.
    Token = 10,
    /// First id of a batch of chunk ids → session it was handed to, and its length.
    ChunkBatch = 11,
}

/// Reading.
pub trait Read {
    /// The value of a key.
    ///
    /// # Errors
    /// Only if the store fails or is damaged.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>>;
    /// Shows the pairs of a range in order until `visit` says `false`.
    ///
    /// # Errors
    /// Only if the store fails or is damaged.
    fn scan(
        &self,
        table: Table,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<()>;
}

/// Writing. What was put is seen by later reads of the same transaction.
pub trait Write: Read {
    /// Sets a key.
    ///
    /// # Errors
    /// Only if the store fails.
    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<()>;
    /// Removes a key; one that is not there is no error.
    ///
    /// # Errors
    /// Only if the store fails.
    fn delete(&mut self, table: Table, key: &[u8]) -> Result<()>;
}
