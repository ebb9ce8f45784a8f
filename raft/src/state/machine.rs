//! One command at work: the transaction, the counters, what it changes, and typed access to the records.

use super::key;
use super::record::{self, Counters, Inode, Orphan, damaged};
use super::usage::{Journal, Ledger};
use crate::kv::{Read as _, Table, Write as _};
use hfcache_base::meta::{Change, Reply, Timestamp};
use hfcache_base::{Error, InodeId, Kind, Result, SessionId, wire};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Why a command ended early: an answer for its caller, or a store that fails and takes the node with it.
#[derive(Debug)]
pub(crate) enum Fail {
    Kind(Kind),
    Store(Error),
}

impl From<Kind> for Fail {
    fn from(kind: Kind) -> Self {
        Self::Kind(kind)
    }
}

impl From<Error> for Fail {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

/// What the parts of `apply` return. They check everything before they write anything.
pub(crate) type Step<T = Reply> = Result<T, Fail>;

pub(crate) struct Machine<'a> {
    pub txn: &'a mut Journal<'a>,
    pub counters: Counters,
    pub session: SessionId,
    pub changes: Vec<Change>,
    /// Usage, as far as this command has changed it.
    pub ledger: Ledger,
}

impl Machine<'_> {
    pub fn now(&self) -> Timestamp {
        self.counters.time
    }

    pub fn get<T: DeserializeOwned>(&self, table: Table, at: &[u8]) -> Result<Option<T>> {
        record::get(&*self.txn, table, at)
    }

    pub fn put<T: Serialize>(&mut self, table: Table, at: &[u8], value: &T) -> Result<()> {
        self.txn.put(table, at, &wire::encode(value))
    }

    pub fn delete(&mut self, table: Table, at: &[u8]) -> Result<()> {
        self.txn.delete(table, at)
    }

    pub fn changed(&mut self, change: Change) {
        self.changes.push(change);
    }

    /// The next version of some content.
    pub fn next_version(&mut self) -> u64 {
        self.counters.version += 1;
        self.counters.version
    }

    pub fn inode(&self, ino: InodeId) -> Result<Option<Inode>> {
        self.get(Table::Inode, &key::inode(ino))
    }

    /// An inode that something refers to: it must be there.
    pub fn known_inode(&self, ino: InodeId) -> Result<Inode> {
        self.inode(ino)?.ok_or_else(|| damaged("a name without its inode"))
    }

    pub fn orphan(&self, ino: InodeId) -> Result<Option<Orphan>> {
        self.get(Table::Orphan, &key::inode(ino))
    }

    pub fn set_item(&mut self, session: SessionId, ino: InodeId, what: key::Item, there: bool) -> Result<()> {
        let at = key::item(session, ino, what);
        if there {
            self.txn.put(Table::SessionItem, &at, &[])
        } else {
            self.txn.delete(Table::SessionItem, &at)
        }
    }

    /// The keys of a table that begin with `prefix`.
    pub fn keys(&self, table: Table, prefix: &[u8]) -> Result<Vec<Vec<u8>>> {
        let mut keys = Vec::new();
        record::scan_prefix(&*self.txn, table, prefix, &mut |at, _| {
            keys.push(at.to_vec());
            true
        })?;
        Ok(keys)
    }

    /// Whether a key is there.
    pub fn has(&self, table: Table, at: &[u8]) -> Result<bool> {
        Ok(self.txn.get(table, at)?.is_some())
    }
}
