//! The ordered key-value transaction in which the state machine works. Keys of different [`Table`]s never
//! meet; within one they are ordered as bytes. The real one is redb, tests use a `BTreeMap`.

use hfcache_base::Result;
use std::collections::BTreeMap;
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
    /// Inode number, first file offset after the extent → extent. (By its end, so that the extents over a
    /// range are found by one scan forwards.)
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
    /// Session id, inode number, lock or hold → nothing: what a session has in `Lock` and `Orphan`.
    SessionItem = 9,
    /// Token id → token.
    Token = 10,
    /// Last id of a batch of chunk ids → session it was handed to, its length, and which were used.
    ChunkBatch = 11,
    /// Inode number, name → value of an extended attribute.
    Xattr = 12,
    /// User or group → what it uses.
    Account = 20,
    /// Directory, user or group → its limit.
    Limit = 21,
    /// User or group → its rate.
    Rate = 22,
    /// Inode number, directory → how many names of the inode are there; only for inodes with several names.
    Names = 23,
    /// Inode number → when and where it was deleted; it is kept, without a name.
    Trash = 30,
    /// State time, inode number → nothing: what is in `Trash`, oldest first.
    TrashOrder = 31,
    /// Directory → its name. Those that were made before there was this table may have none.
    DirName = 32,
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

impl<R: Read + ?Sized> Read for &R {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
        (**self).get(table, key)
    }

    fn scan(
        &self,
        table: Table,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<()> {
        (**self).scan(table, from, to, visit)
    }
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

/// A store in memory: for tests, models and the simulator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    pairs: BTreeMap<(Table, Vec<u8>), Vec<u8>>,
}

impl Memory {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Every pair, in order of table and key.
    pub fn iter(&self) -> impl Iterator<Item = (Table, &[u8], &[u8])> {
        self.pairs.iter().map(|((table, key), value)| (*table, key.as_slice(), value.as_slice()))
    }
}

impl Read for Memory {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.pairs.get(&(table, key.to_vec())).cloned())
    }

    fn scan(
        &self,
        table: Table,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<()> {
        let from = match from {
            Bound::Unbounded => Bound::Included((table, Vec::new())),
            Bound::Included(key) => Bound::Included((table, key.to_vec())),
            Bound::Excluded(key) => Bound::Excluded((table, key.to_vec())),
        };
        let before_end = |key: &[u8]| match to {
            Bound::Unbounded => true,
            Bound::Included(end) => key <= end,
            Bound::Excluded(end) => key < end,
        };
        for ((at, key), value) in self.pairs.range((from, Bound::Unbounded)) {
            if *at != table || !before_end(key) || !visit(key, value) {
                break;
            }
        }
        Ok(())
    }
}

impl Write for Memory {
    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<()> {
        self.pairs.insert((table, key.to_vec()), value.to_vec());
        Ok(())
    }

    fn delete(&mut self, table: Table, key: &[u8]) -> Result<()> {
        self.pairs.remove(&(table, key.to_vec()));
        Ok(())
    }
}
