//! Files that are made without a name (O_TMPFILE), and may get one.

use super::key::{self, Item};
use super::machine::{Machine, Step};
use super::namespace::SET_GID;
use super::record::{Body, Inode, Orphan, Xattrs};
use crate::kv::Table;
use hfcache_base::meta::{Attr, FileKind, Reply};
use hfcache_base::{InodeId, Result, SessionId};

impl Machine<'_> {
    pub fn create_nameless(
        &mut self,
        parent: InodeId,
        (mode, umask): (u32, u32),
        (uid, gid): (u32, u32),
        nameless: bool,
    ) -> Step {
        let dir = self.directory(parent)?;
        let inherits = dir.attr.mode & SET_GID != 0;
        let (mode, lists) = self.new_mode(&dir, FileKind::File, mode, umask)?;
        let (ino, now) = (InodeId(self.counters.next_inode), self.now());
        let attr = Attr {
            ino,
            kind: FileKind::File,
            mode,
            nlink: 0,
            uid,
            gid: if inherits { dir.attr.gid } else { gid },
            rdev: 0,
            size: 0,
            allocated: 0,
            atime: now,
            mtime: now,
            ctime: now,
            data_version: self.next_version(),
        };
        self.counters.next_inode += 1;
        let body = Body::File { inline: Vec::new() };
        let mut inode = Inode { attr, body, home: parent, xattrs: Xattrs::default() };
        self.give_lists(&mut inode, &lists)?;
        if let Some(share) = self.share_over(parent)? {
            self.open(&mut inode, share)?;
        }
        self.put_inode(&inode)?;
        let orphan = Orphan { since: now, holders: vec![self.session] };
        self.put(Table::Orphan, &key::inode(ino), &orphan)?;
        self.set_item(self.session, ino, Item::Hold, true)?;
        if !nameless {
            self.set_item(self.session, ino, Item::Linkable, true)?;
        }
        Ok(Reply::Entry { attr: inode.attr, created: true })
    }

    /// Whether this session may give an inode without a name its first one.
    pub fn is_linkable(&self, session: SessionId, ino: InodeId) -> Result<bool> {
        self.has(Table::SessionItem, &key::item(session, ino, Item::Linkable))
    }

    /// A nameless inode gets a name: it is no longer held by anyone.
    pub fn adopt_orphan(&mut self, ino: InodeId) -> Result<()> {
        if let Some(orphan) = self.orphan(ino)? {
            for holder in orphan.holders {
                self.set_item(holder, ino, Item::Hold, false)?;
            }
            self.delete(Table::Orphan, &key::inode(ino))?;
        }
        self.set_item(self.session, ino, Item::Linkable, false)?;
        self.counters.totals.inodes += 1;
        Ok(())
    }
}
