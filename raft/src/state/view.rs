//! The state as readers see it.

use super::key;
use super::lock::LockRecord;
use super::record::{
    self, Body, ChunkRecord, Counters, ExtentRecord, Inode, SessionRecord, TrashRecord, damaged, decode, get,
};
use super::share::Shares;
use crate::kv::{Read, Table};
use hfcache_base::limits::TRASH_ENTRIES_MAX;
use hfcache_base::meta::{
    Attr, ChunkRef, Content, DirEntry, Extent, FileKind, Limit, Quota, Rate, Session, Share, Subject,
    Timestamp, Token, Totals, TrashId, Trashed, Usage,
};
use hfcache_base::seam::View;
use hfcache_base::{ChunkId, ClusterMap, InodeId, Kind, NodeId, Result, SessionId};
use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Included, Unbounded};

/// A [`View`] of a store. `R` is a snapshot of it, or anything else that does not change meanwhile.
pub struct StateView<R> {
    store: R,
}

impl<R: Read> StateView<R> {
    /// Reads this store.
    pub fn new(store: R) -> Self {
        Self { store }
    }

    /// The cluster map; an empty one of epoch 0 before the first node.
    ///
    /// # Errors
    /// Only if the store is damaged.
    pub fn map(&self) -> Result<ClusterMap> {
        record::map(&self.store)
    }

    /// The locks of an inode as the state has them.
    ///
    /// # Errors
    /// Only if the store is damaged.
    pub fn locks(&self, ino: InodeId) -> Result<LockRecord> {
        Ok(get(&self.store, Table::Lock, &key::inode(ino))?.unwrap_or_default())
    }

    /// The node of a live session.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if it has ended; else only if the store is damaged.
    pub fn node_of(&self, session: SessionId) -> Result<NodeId> {
        let record: Option<SessionRecord> = get(&self.store, Table::Session, &key::session(session))?;
        record.map(|s| s.node).ok_or_else(|| Kind::NotFound.into())
    }

    /// Inodes without a name: while there are any, `Reap` is worth proposing.
    ///
    /// # Errors
    /// Only if the store is damaged.
    pub fn has_orphans(&self) -> Result<bool> {
        let mut any = false;
        self.store.scan(Table::Orphan, Unbounded, Unbounded, &mut |_, _| {
            any = true;
            false
        })?;
        Ok(any)
    }

    /// Whether the oldest entry of the trash is due by this time, or there are too many.
    ///
    /// # Errors
    /// Only if the store is damaged.
    pub fn trash_is_due(&self, now: Timestamp) -> Result<bool> {
        let retention: Option<u64> = get(&self.store, Table::Single, key::TRASH)?;
        let due = super::trash::due(retention.unwrap_or_default(), now);
        let entries: Option<u64> = get(&self.store, Table::Single, key::TRASH_ENTRIES)?;
        if entries.unwrap_or_default() > TRASH_ENTRIES_MAX {
            return Ok(true);
        }
        let mut any = false;
        self.store.scan(Table::TrashOrder, Unbounded, Unbounded, &mut |at, _| {
            any = key::trash_id(at).is_none_or(|id| id.at <= due);
            false
        })?;
        Ok(any)
    }

    /// The state's own time: the newest that any command brought.
    ///
    /// # Errors
    /// Only if the store is damaged.
    pub fn time(&self) -> Result<Timestamp> {
        Ok(self.counters()?.time)
    }

    fn counters(&self) -> Result<Counters> {
        Ok(get(&self.store, Table::Single, key::COUNTERS)?.unwrap_or_default())
    }

    fn quota(&self, subject: Subject, used: Usage) -> Result<Option<Quota>> {
        let limit: Option<Limit> = get(&self.store, Table::Limit, &key::subject(subject))?;
        Ok(limit.map(|limit| Quota { subject, limit, used }))
    }

    fn inode(&self, ino: InodeId) -> Result<Inode> {
        match get(&self.store, Table::Inode, &key::inode(ino))? {
            Some(inode) => Ok(inode),
            // Before the first command.
            None if ino == InodeId::ROOT => Ok(super::root()),
            None => Err(Kind::NotFound.into()),
        }
    }

    fn directory(&self, ino: InodeId) -> Result<Inode> {
        let inode = self.inode(ino)?;
        if inode.attr.kind == FileKind::Directory { Ok(inode) } else { Err(Kind::NotDirectory.into()) }
    }

    fn all<T>(
        &self,
        table: Table,
        mut read: impl FnMut(&[u8], &[u8]) -> Result<Option<T>>,
    ) -> Result<Vec<T>> {
        let mut found = Vec::new();
        let mut failed = None;
        self.store.scan(table, Unbounded, Unbounded, &mut |at, value| {
            match read(at, value) {
                Ok(item) => found.extend(item),
                Err(e) => failed = Some(e),
            }
            failed.is_none()
        })?;
        failed.map_or(Ok(found), Err)
    }
}

impl<R: Read + Send> View for StateView<R> {
    fn lookup(&self, parent: InodeId, name: &[u8]) -> Result<Attr> {
        match get::<_, InodeId>(&self.store, Table::Dentry, &key::dentry(parent, name))? {
            Some(ino) => Ok(self.inode(ino).map_err(|_| damaged("a name without its inode"))?.attr),
            // Only now does it matter what the parent is.
            None => self.directory(parent).and_then(|_| Err(Kind::NotFound.into())),
        }
    }

    fn attr(&self, ino: InodeId) -> Result<Attr> {
        Ok(self.inode(ino)?.attr)
    }

    fn parent(&self, dir: InodeId) -> Result<InodeId> {
        Ok(self.directory(dir)?.home)
    }

    fn readdir(&self, dir: InodeId, after: u64, limit: usize) -> Result<Vec<DirEntry>> {
        self.directory(dir)?;
        let mut rows: Vec<(u64, Vec<u8>, Result<InodeId>)> = Vec::new();
        let from = key::dentries(dir, after.saturating_add(1));
        let to = key::inode(InodeId(dir.0.saturating_add(1)));
        self.store.scan(Table::Dentry, Included(&from), Excluded(&to), &mut |at, value| {
            let Some((hash, name)) = key::dentry_parts(at) else {
                rows.push((0, Vec::new(), Err(damaged("key of a dentry"))));
                return false;
            };
            // Names of one hash have one cookie, so they never are on two pages.
            if rows.len() >= limit && rows.last().is_none_or(|(last, ..)| *last != hash) {
                return false;
            }
            rows.push((hash, name.to_vec(), decode(Table::Dentry, value)));
            true
        })?;
        rows.into_iter()
            .map(|(cookie, name, ino)| {
                let attr = self.inode(ino?).map_err(|_| damaged("a name without its inode"))?.attr;
                Ok(DirEntry { name, attr, cookie })
            })
            .collect()
    }

    fn readlink(&self, ino: InodeId) -> Result<Vec<u8>> {
        match self.inode(ino)?.body {
            Body::Symlink { target } => Ok(target),
            _ => Err(Kind::Invalid.into()),
        }
    }

    fn content(&self, ino: InodeId) -> Result<(Attr, Content)> {
        let Inode { attr, body, .. } = self.inode(ino)?;
        let inline = match body {
            Body::File { inline } => inline,
            Body::Directory { .. } => return Err(Kind::IsDirectory.into()),
            Body::Symlink { .. } | Body::Special => return Err(Kind::Invalid.into()),
        };
        let mut found = Vec::new();
        let (from, to) = (key::extent(ino, 0), key::extent(ino, u64::MAX));
        self.store.scan(Table::Extent, Included(&from), Included(&to), &mut |_, value| {
            found.push(decode::<ExtentRecord>(Table::Extent, value));
            true
        })?;
        let mut chunks: BTreeMap<ChunkId, ChunkRef> = BTreeMap::new();
        let mut extents = Vec::with_capacity(found.len());
        for extent in found {
            let ExtentRecord { offset, len, chunk_offset, chunk: id } = extent?;
            let chunk = match chunks.get(&id) {
                Some(chunk) => *chunk,
                None => self.chunk(id)?.ok_or_else(|| damaged("an extent without its chunk"))?,
            };
            chunks.insert(id, chunk);
            extents.push(Extent { offset, len, chunk_offset, chunk });
        }
        Ok((attr, Content { inline, extents }))
    }

    fn chunks(&self, after: ChunkId, limit: usize) -> Result<Vec<ChunkRef>> {
        let mut found = Vec::new();
        self.store.scan(Table::Chunk, Excluded(&key::chunk(after)), Unbounded, &mut |at, value| {
            if found.len() >= limit {
                return false;
            }
            found.push((key::first_number(at), decode::<ChunkRecord>(Table::Chunk, value)));
            true
        })?;
        found
            .into_iter()
            .map(|(id, chunk)| {
                let (id, chunk) = (id.ok_or_else(|| damaged("key of a chunk"))?, chunk?);
                Ok(ChunkRef { id: ChunkId(id), len: chunk.len, scheme: chunk.scheme })
            })
            .collect()
    }

    fn chunk(&self, id: ChunkId) -> Result<Option<ChunkRef>> {
        let chunk: Option<ChunkRecord> = get(&self.store, Table::Chunk, &key::chunk(id))?;
        Ok(chunk.map(|c| ChunkRef { id, len: c.len, scheme: c.scheme }))
    }

    fn chunk_session(&self, id: ChunkId) -> Result<Option<SessionId>> {
        let Some((last, batch)) = record::batch_of(&self.store, id)? else { return Ok(None) };
        let session: Option<SessionRecord> = get(&self.store, Table::Session, &key::session(batch.session))?;
        // A chunk that was part of a file once is not on its way into one.
        let pending = batch.is_used(last, id) == Some(false) && session.is_some();
        Ok(pending.then_some(batch.session))
    }

    fn totals(&self) -> Result<Totals> {
        Ok(self.counters()?.totals)
    }

    fn sessions(&self) -> Result<Vec<Session>> {
        self.all(Table::Session, |at, value| {
            let id = key::first_number(at).ok_or_else(|| damaged("key of a session"))?;
            let s: SessionRecord = decode(Table::Session, value)?;
            Ok(Some(Session { id: SessionId(id), node: s.node, nonce: s.nonce, opened: s.opened }))
        })
    }

    fn tokens(&self) -> Result<Vec<Token>> {
        self.all(Table::Token, |_, value| decode(Table::Token, value).map(Some))
    }

    fn usage(&self, of: Subject) -> Result<Usage> {
        let Subject::Tree(ino) = of else {
            return Ok(get(&self.store, Table::Account, &key::subject(of))?.unwrap_or_default());
        };
        let inode = self.inode(ino)?;
        Ok(match inode.body {
            Body::Directory { tree } => tree,
            _ => Usage { bytes: inode.attr.allocated, inodes: 1 },
        })
    }

    fn quotas(&self) -> Result<Vec<Quota>> {
        let limits = self.all(Table::Limit, |at, value| {
            let subject = key::subject_of(at).ok_or_else(|| damaged("key of a limit"))?;
            Ok(Some((subject, decode::<Limit>(Table::Limit, value)?)))
        })?;
        limits
            .into_iter()
            .map(|(subject, limit)| Ok(Quota { subject, limit, used: self.usage(subject)? }))
            .collect()
    }

    fn quotas_on(&self, ino: InodeId) -> Result<Vec<Quota>> {
        let mut any = false;
        self.store.scan(Table::Limit, Unbounded, Unbounded, &mut |_, _| {
            any = true;
            false
        })?;
        if !any {
            return Ok(Vec::new());
        }
        let inode = self.inode(ino)?;
        let owners = [Subject::User(inode.attr.uid), Subject::Group(inode.attr.gid)];
        let mut quotas = Vec::new();
        // What has no name is in no directory.
        let mut up = (inode.attr.nlink > 0).then_some(inode);
        while let Some(inode) = up {
            if let Body::Directory { tree } = inode.body {
                quotas.extend(self.quota(Subject::Tree(inode.attr.ino), tree)?);
            }
            up = if inode.attr.ino == InodeId::ROOT { None } else { Some(self.inode(inode.home)?) };
        }
        for owner in owners {
            quotas.extend(self.quota(owner, self.usage(owner)?)?);
        }
        Ok(quotas)
    }

    fn rates(&self) -> Result<Vec<(Subject, Rate)>> {
        self.all(Table::Rate, |at, value| {
            let subject = key::subject_of(at).ok_or_else(|| damaged("key of a rate"))?;
            Ok(Some((subject, decode(Table::Rate, value)?)))
        })
    }

    fn path(&self, dir: InodeId) -> Result<Vec<u8>> {
        if self.directory(dir)?.attr.nlink == 0 {
            return Err(Kind::NotFound.into());
        }
        record::path(&self.store, dir)
    }

    fn xattr(&self, ino: InodeId, name: &[u8]) -> Result<Option<Vec<u8>>> {
        if self.inode(ino)?.xattrs.is_empty() {
            return Ok(None);
        }
        get(&self.store, Table::Xattr, &key::xattr(ino, name))
    }

    fn xattrs(&self, ino: InodeId) -> Result<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        if !self.inode(ino)?.xattrs.is_empty() {
            record::scan_prefix(&self.store, Table::Xattr, &key::inode(ino), &mut |at, _| {
                names.extend(at.get(8..).map(<[u8]>::to_vec));
                true
            })?;
        }
        Ok(names)
    }

    fn shares(&self) -> Result<Vec<(InodeId, Share)>> {
        let shares: Shares = get(&self.store, Table::Single, key::SHARES)?.unwrap_or_default();
        Ok(shares.into_iter().collect())
    }

    fn trash(&self, after: Option<TrashId>, limit: usize) -> Result<Vec<Trashed>> {
        let from = after.map(key::trash_order);
        let from = from.as_ref().map_or(Unbounded, |at| Excluded(at.as_slice()));
        let mut found = Vec::new();
        self.store.scan(Table::TrashOrder, from, Unbounded, &mut |at, _| {
            if found.len() >= limit {
                return false;
            }
            found.push(key::trash_id(at));
            true
        })?;
        found
            .into_iter()
            .map(|id| {
                let id = id.ok_or_else(|| damaged("key of the trash"))?;
                let row: Option<TrashRecord> = get(&self.store, Table::Trash, &key::inode(id.ino))?;
                let path = row.ok_or_else(|| damaged("trash that does not add up"))?.path;
                let attr = self.inode(id.ino).map_err(|_| damaged("trash without its inode"))?.attr;
                Ok(Trashed { id, path, attr })
            })
            .collect()
    }

    fn trash_entries(&self) -> Result<u64> {
        Ok(get(&self.store, Table::Single, key::TRASH_ENTRIES)?.unwrap_or_default())
    }

    fn trash_retention(&self) -> Result<u64> {
        Ok(get(&self.store, Table::Single, key::TRASH)?.unwrap_or_default())
    }
}
