//! What the tables hold, and reading it. Values are [`base::wire`](hfcache_base::wire) values: a field can
//! only be added with a new format byte.

use super::key;
use crate::kv::{Read, Table};
use hfcache_base::error::Context as _;
use hfcache_base::meta::{Attr, Timestamp, Totals, Usage};
use hfcache_base::{ChunkId, ClusterMap, Error, InodeId, Kind, NodeId, Result, Scheme, SessionId, wire};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Numbers that only grow, the state's own time, and the sums.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counters {
    pub time: Timestamp,
    pub next_inode: u64,
    pub next_chunk: u64,
    pub next_session: u64,
    pub next_node: u64,
    /// The newest `data_version`.
    pub version: u64,
    pub totals: Totals,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            time: Timestamp(0),
            next_inode: InodeId::ROOT.0 + 1,
            next_chunk: 1,
            next_session: 1,
            next_node: 1,
            version: 1,
            totals: Totals { inodes: 1, bytes: 0, chunks: 0 },
        }
    }
}

/// An inode: what `stat` shows, where it is, and what only its kind has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Inode {
    pub attr: Attr,
    pub body: Body,
    /// The directory whose usage it is part of: the one it has its name in, or one of those.
    pub home: InodeId,
    /// What it has in `Xattr`.
    pub xattrs: Xattrs,
}

/// How much an inode has in `Xattr`: mostly nothing, and then nobody looks there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Xattrs {
    /// Bytes of all names, each with a NUL.
    pub names: u32,
    /// Bytes of all values.
    pub values: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Body {
    File {
        #[serde(with = "serde_bytes")]
        inline: Vec<u8>,
    },
    /// `tree` is what the directory and everything below it use.
    Directory {
        tree: Usage,
    },
    Symlink {
        target: Vec<u8>,
    },
    Special,
}

/// File bytes `[offset, offset + len)`; the chunk's length and scheme are with the chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ExtentRecord {
    pub offset: u64,
    pub len: u32,
    pub chunk_offset: u32,
    pub chunk: ChunkId,
}

impl ExtentRecord {
    pub fn end(&self) -> u64 {
        self.offset + u64::from(self.len)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ChunkRecord {
    pub len: u32,
    pub scheme: Scheme,
    /// Extents that refer to it; never 0.
    pub refs: u64,
}

/// An inode without a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Orphan {
    pub since: Timestamp,
    pub holders: Vec<SessionId>,
}

/// Where an inode in the trash had its last name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TrashRecord {
    pub at: Timestamp,
    /// From the root, without a slash at either end.
    pub path: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SessionRecord {
    pub node: NodeId,
    pub nonce: u64,
    pub opened: Timestamp,
    /// Replies below are forgotten, and commands with such numbers refused.
    pub floor: u64,
}

/// Chunk ids `last - count + 1 ..= last` that were handed to a session. Gone when all were used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ChunkBatch {
    pub session: SessionId,
    pub count: u32,
    /// One bit for each id that was part of a file once: it never may again.
    pub used: Vec<u64>,
}

impl ChunkBatch {
    pub fn new(session: SessionId, count: u32) -> Self {
        Self { session, count, used: vec![0; count.div_ceil(64) as usize] }
    }

    /// Where an id has its bit, if it belongs to the batch whose last id is `last`.
    fn bit(&self, last: u64, id: ChunkId) -> Option<(usize, u64)> {
        let back = last.checked_sub(id.0)?;
        (back < u64::from(self.count)).then_some(((back / 64) as usize, 1 << (back % 64)))
    }

    pub fn is_used(&self, last: u64, id: ChunkId) -> Option<bool> {
        let (word, bit) = self.bit(last, id)?;
        Some(self.used.get(word)? & bit != 0)
    }

    pub fn mark(&mut self, last: u64, id: ChunkId) {
        if let Some((word, bit)) = self.bit(last, id)
            && let Some(word) = self.used.get_mut(word)
        {
            *word |= bit;
        }
    }

    pub fn is_spent(&self) -> bool {
        self.used.iter().map(|w| w.count_ones()).sum::<u32>() == self.count
    }
}

/// A record, decoded. One that does not decode is damage.
pub(crate) fn get<R: Read + ?Sized, T: DeserializeOwned>(
    store: &R,
    table: Table,
    at: &[u8],
) -> Result<Option<T>> {
    store.get(table, at)?.map(|bytes| decode(table, &bytes)).transpose()
}

pub(crate) fn decode<T: DeserializeOwned>(table: Table, bytes: &[u8]) -> Result<T> {
    wire::decode(bytes).map_err(|e| {
        let kind = if e.kind() == Kind::Version { Kind::Version } else { Kind::Corrupt };
        Error::new(kind, "damaged record").with_source(e).context(format!("read {table:?} of the state"))
    })
}

/// The batch that a chunk id was handed out in, with its last id.
pub(crate) fn batch_of<R: Read + ?Sized>(store: &R, id: ChunkId) -> Result<Option<(u64, ChunkBatch)>> {
    use std::ops::Bound::{Included, Unbounded};
    let mut found = None;
    store.scan(Table::ChunkBatch, Included(&key::chunk(id)), Unbounded, &mut |at, value| {
        found = Some((key::first_number(at), decode::<ChunkBatch>(Table::ChunkBatch, value)));
        false
    })?;
    let Some((last, batch)) = found else { return Ok(None) };
    let batch = batch?;
    let last = last.ok_or_else(|| damaged("key of a chunk batch"))?;
    Ok(batch.is_used(last, id).is_some().then_some((last, batch)))
}

pub(crate) fn map<R: Read + ?Sized>(store: &R) -> Result<ClusterMap> {
    Ok(get(store, Table::Single, key::MAP)?.unwrap_or_default())
}

/// The path of a directory that has a name, from the root, without a slash at either end.
pub(crate) fn path<R: Read + ?Sized>(store: &R, dir: InodeId) -> Result<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = Vec::new();
    let mut at = dir;
    while at != InodeId::ROOT {
        let inode: Inode = get(store, Table::Inode, &key::inode(at))?
            .ok_or_else(|| damaged("a directory that is not there"))?;
        names.push(name_of(store, at, inode.home)?);
        at = inode.home;
    }
    names.reverse();
    Ok(names.join(&b'/'))
}

/// The name of a directory. One from before there were such records is found by a look at all its siblings.
fn name_of<R: Read + ?Sized>(store: &R, dir: InodeId, parent: InodeId) -> Result<Vec<u8>> {
    if let Some(name) = get(store, Table::DirName, &key::inode(dir))? {
        return Ok(name);
    }
    let wanted = wire::encode(&dir);
    let mut name = None;
    scan_prefix(store, Table::Dentry, &key::inode(parent), &mut |key, value| {
        if value == wanted {
            name = key::dentry_parts(key).map(|(_, name)| name.to_vec());
        }
        name.is_none()
    })?;
    name.ok_or_else(|| damaged("a directory without its name"))
}

pub(crate) fn damaged(what: &'static str) -> Error {
    Error::new(Kind::Corrupt, what).context("read state")
}

/// The pairs whose keys begin with `prefix` (8 bytes) as far as `visit` wants them.
pub(crate) fn scan_prefix<R: Read + ?Sized>(
    store: &R,
    table: Table,
    prefix: &[u8],
    visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
) -> Result<()> {
    use std::ops::Bound::{Included, Unbounded};
    store
        .scan(table, Included(prefix), Unbounded, &mut |at, value| at.starts_with(prefix) && visit(at, value))
        .doing(|| format!("scan {table:?} of the state"))
}
