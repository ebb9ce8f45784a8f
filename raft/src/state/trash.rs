//! The trash: what lost its last name and is kept for a while, if the cluster is told to.
//!
//! ```text
//! deleted    an orphan, held by who has it open     reaped as ever; what is in the trash loses its orphan
//!            and a row of the trash                 record only, and the row alone keeps the inode
//! let go     the row goes                           freed at once, or by the reaper if it is an orphan still
//! restored   both go, and there is a name again
//! ```
//!
//! So what the reaper looks through stays as short as it was, and whoever opens such an inode again (by a
//! descriptor he still has) makes it an orphan again. Usage goes on counting it for its owner, as that of
//! every inode without a name, and for no directory.

use super::key::{self, Item, check_name};
use super::machine::{Machine, Step};
use super::record::{self, Body, Inode, Orphan, TrashRecord, damaged};
use crate::kv::{Read as _, Table, Write as _};
use hfcache_base::limits::{TRASH_BATCH_MAX, TRASH_ENTRIES_MAX, TRASH_PATH_MAX, TRASH_RETENTION_MAX};
use hfcache_base::meta::{Change, Reply, Timestamp, TrashId, Usage};
use hfcache_base::{InodeId, Kind, Result};
use std::ops::Bound::Unbounded;

/// A command that empties the trash ends after about so many changes: a large file has thousands of chunks,
/// and other commands wait meanwhile.
const CHANGES_MAX: usize = 16_384;

/// What was deleted at this time or before is not to be kept any more.
pub(crate) fn due(retention: u64, now: Timestamp) -> Timestamp {
    if retention == 0 {
        return Timestamp(i64::MAX);
    }
    let nanos = i64::try_from(u128::from(retention) * 1_000_000_000).unwrap_or(i64::MAX);
    Timestamp(now.0.saturating_sub(nanos))
}

impl Machine<'_> {
    fn trash_retention(&self) -> Result<u64> {
        Ok(self.get(Table::Single, key::TRASH)?.unwrap_or_default())
    }

    pub fn set_trash(&mut self, retention: u64) -> Step {
        if retention > TRASH_RETENTION_MAX.as_secs() {
            return Err(Kind::Invalid.into());
        }
        if retention == 0 {
            self.delete(Table::Single, key::TRASH)?;
        } else {
            self.put(Table::Single, key::TRASH, &retention)?;
        }
        Ok(Reply::Done)
    }

    pub fn is_in_trash(&self, ino: InodeId) -> Result<bool> {
        self.has(Table::Trash, &key::inode(ino))
    }

    /// An inode has lost its last name, which was in `dir`: keeps it, if that is wanted.
    pub fn keep(&mut self, dir: InodeId, name: &[u8], ino: InodeId) -> Result<()> {
        if self.trash_retention()? == 0 {
            return Ok(());
        }
        let mut path = record::path(&*self.txn, dir)?;
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        if path.len() > TRASH_PATH_MAX {
            return Ok(());
        }
        let at = Timestamp(self.now().0.max(0));
        self.put(Table::Trash, &key::inode(ino), &TrashRecord { at, path })?;
        self.count_trash(1)?;
        self.txn.put(Table::TrashOrder, &key::trash_order(TrashId { at, ino }), &[])
    }

    /// Takes an entry out; `false` if it is not there.
    fn take(&mut self, id: TrashId) -> Result<bool> {
        let at = key::inode(id.ino);
        match self.get::<TrashRecord>(Table::Trash, &at)? {
            Some(row) if row.at == id.at => {}
            _ => return Ok(false),
        }
        self.delete(Table::Trash, &at)?;
        self.delete(Table::TrashOrder, &key::trash_order(id))?;
        self.count_trash(-1)?;
        Ok(true)
    }

    fn trash_entries(&self) -> Result<u64> {
        Ok(self.get(Table::Single, key::TRASH_ENTRIES)?.unwrap_or_default())
    }

    fn count_trash(&mut self, by: i64) -> Result<()> {
        let entries = self.trash_entries()?.checked_add_signed(by);
        match entries.ok_or_else(|| damaged("trash that does not add up"))? {
            0 => self.delete(Table::Single, key::TRASH_ENTRIES),
            entries => self.put(Table::Single, key::TRASH_ENTRIES, &entries),
        }
    }

    /// The trash keeps this inode no more.
    fn let_go(&mut self, ino: InodeId) -> Result<()> {
        if self.orphan(ino)?.is_some() {
            // Open somewhere, or not long without a name: the reaper's.
            return Ok(());
        }
        if self.forget_locks(ino)? {
            let inode = self.known_inode(ino)?;
            return self.free(inode);
        }
        let orphan = Orphan { since: self.now(), holders: Vec::new() };
        self.put(Table::Orphan, &key::inode(ino), &orphan)
    }

    pub fn expire_trash(&mut self) -> Step {
        let due = due(self.trash_retention()?, self.now());
        let surplus = self.trash_entries()?.saturating_sub(TRASH_ENTRIES_MAX);
        let mut found = Vec::new();
        self.txn.scan(Table::TrashOrder, Unbounded, Unbounded, &mut |at, _| {
            let id = key::trash_id(at);
            let wanted = (found.len() as u64) < surplus || id.is_none_or(|id| id.at <= due);
            if wanted {
                found.push(id);
            }
            wanted && found.len() < TRASH_BATCH_MAX
        })?;
        let ids = found.into_iter().collect::<Option<Vec<_>>>().ok_or_else(|| damaged("key of the trash"))?;
        self.empty(&ids)
    }

    pub fn empty_trash(&mut self, ids: &[TrashId]) -> Step {
        if ids.len() > TRASH_BATCH_MAX {
            return Err(Kind::Invalid.into());
        }
        self.empty(ids)
    }

    fn empty(&mut self, ids: &[TrashId]) -> Step {
        let mut done = 0;
        for id in ids {
            if self.changes.len() >= CHANGES_MAX {
                break;
            }
            if self.take(*id)? {
                self.let_go(id.ino)?;
            }
            done += 1;
        }
        Ok(Reply::Count(done))
    }

    pub fn restore(&mut self, id: TrashId, parent: InodeId, name: &[u8]) -> Step {
        let dir = self.directory(parent)?;
        check_name(name)?;
        if self.has(Table::Dentry, &key::dentry(parent, name))? {
            return Err(Kind::Exists.into());
        }
        match self.get::<TrashRecord>(Table::Trash, &key::inode(id.ino))? {
            Some(row) if row.at == id.at => {}
            _ => return Err(Kind::NotFound.into()),
        }
        let old = self.known_inode(id.ino)?;
        if old.is_directory() && dir.attr.nlink == u32::MAX {
            return Err(Kind::TooManyLinks.into());
        }
        self.take(id)?;
        if old.is_directory() {
            self.restore_directory(old, parent, name)
        } else {
            self.restore_file(id.ino, parent, name)
        }
    }

    fn restore_file(&mut self, ino: InodeId, parent: InodeId, name: &[u8]) -> Step {
        self.adopt_orphan(ino)?;
        self.put_name(parent, name, ino)?;
        self.changed(Change::Entry { parent, name: name.to_vec() });
        self.edit(ino, |inode| {
            inode.attr.nlink = 1;
            inode.home = parent;
        })?;
        self.changed(Change::Restored { ino, parent });
        self.edit_directory(parent, 1, 0)?;
        Ok(Reply::Entry { attr: self.known_inode(ino)?.attr, created: false })
    }

    fn restore_directory(&mut self, old: Inode, parent: InodeId, name: &[u8]) -> Step {
        let (gone, ino) = (old.attr.ino, InodeId(self.counters.next_inode));
        self.counters.next_inode += 1;
        self.counters.totals.inodes += 1;
        let mut inode = Inode { home: parent, body: Body::Directory { tree: Usage::default() }, ..old };
        inode.attr.ino = ino;
        inode.attr.nlink = 2;
        inode.attr.size = 0;
        inode.attr.ctime = self.now();
        inode.attr.data_version = self.next_version();
        // The old one's go with it.
        for at in self.keys(Table::Xattr, &key::inode(gone))? {
            let Some(value) = self.txn.get(Table::Xattr, &at)? else { continue };
            self.txn.put(Table::Xattr, &key::xattr(ino, at.get(8..).unwrap_or_default()), &value)?;
        }
        self.pass_share(gone, ino)?;
        self.put_inode(&inode)?;
        self.put_name(parent, name, ino)?;
        self.name_directory(ino, name)?;
        self.changed(Change::Entry { parent, name: name.to_vec() });
        self.changed(Change::Restored { ino, parent });
        self.edit_directory(parent, 1, 1)?;
        self.let_go(gone)?;
        Ok(Reply::Entry { attr: inode.attr, created: true })
    }

    /// Somebody opens an inode that only the trash keeps.
    pub fn hold_trashed(&mut self, ino: InodeId) -> Result<()> {
        let orphan = Orphan { since: self.now(), holders: vec![self.session] };
        self.put(Table::Orphan, &key::inode(ino), &orphan)?;
        self.set_item(self.session, ino, Item::Hold, true)
    }
}
