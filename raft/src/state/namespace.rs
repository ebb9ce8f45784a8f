//! Names: create, link, unlink, rmdir, rename. Errors come in the order in which Linux finds them.

use super::key::{self, check_name};
use super::machine::{Machine, Step};
use super::record::{Body, Inode, Orphan, Xattrs};
use crate::kv::Table;
use hfcache_base::limits::{LINK_MAX, SYMLINK_MAX};
use hfcache_base::meta::{Attr, Change, FileKind, NewNode, RenameMode, Reply, Usage};
use hfcache_base::{InodeId, Kind, Result};

/// Set-group-id: a directory that has it hands its group on.
pub(crate) const SET_GID: u32 = 0o2000;

/// What a `Create` asks for.
pub(crate) struct Create<'a> {
    pub parent: InodeId,
    pub name: &'a [u8],
    pub node: &'a NewNode,
    pub mode: u32,
    pub umask: u32,
    pub uid: u32,
    pub gid: u32,
    pub exclusive: bool,
}

/// What a `Rename` asks for.
pub(crate) struct Rename<'a> {
    pub from: (InodeId, &'a [u8]),
    pub to: (InodeId, &'a [u8]),
    pub mode: RenameMode,
    pub hold: bool,
    pub uid: u32,
}

impl Machine<'_> {
    /// A directory that names can be put into or taken from.
    pub fn directory(&self, ino: InodeId) -> Step<Inode> {
        let inode = self.inode(ino)?.ok_or(Kind::NotFound)?;
        if inode.attr.kind != FileKind::Directory {
            return Err(Kind::NotDirectory.into());
        }
        // A removed directory that is still open somewhere is empty for ever.
        if inode.attr.nlink == 0 {
            return Err(Kind::NotFound.into());
        }
        Ok(inode)
    }

    fn named(&self, parent: InodeId, name: &[u8]) -> Result<Option<InodeId>> {
        self.get(Table::Dentry, &key::dentry(parent, name))
    }

    pub fn put_name(&mut self, parent: InodeId, name: &[u8], ino: InodeId) -> Result<()> {
        self.put(Table::Dentry, &key::dentry(parent, name), &ino)
    }

    /// A directory has this name now.
    pub fn name_directory(&mut self, dir: InodeId, name: &[u8]) -> Result<()> {
        self.put(Table::DirName, &key::inode(dir), &name)
    }

    /// Reads, changes and writes an inode, and says so.
    pub fn edit(&mut self, ino: InodeId, change: impl FnOnce(&mut Inode)) -> Result<()> {
        let mut inode = self.known_inode(ino)?;
        change(&mut inode);
        inode.attr.ctime = self.now();
        self.put_inode(&inode)?;
        self.changed(Change::Inode { ino, data: false });
        Ok(())
    }

    /// A name of an inode moved. A shared tree opens what its owner, or root, moves there.
    fn edit_home(&mut self, ino: InodeId, from: InodeId, to: InodeId, by: u32) -> Result<()> {
        let mut now = self.known_inode(ino)?;
        self.move_home(&mut now, from, to)?;
        if let Some(share) = self.share_over(to)?
            && (by == 0 || by == now.attr.uid)
        {
            self.open(&mut now, share)?;
        }
        self.edit(ino, |inode| *inode = now)
    }

    /// Counts entries and subdirectories of a directory whose names changed.
    pub fn edit_directory(&mut self, ino: InodeId, entries: i64, subdirectories: i32) -> Result<()> {
        let (now, version) = (self.now(), self.next_version());
        self.edit(ino, |dir| {
            dir.attr.size = dir.attr.size.saturating_add_signed(entries);
            dir.attr.nlink = dir.attr.nlink.saturating_add_signed(subdirectories);
            dir.attr.mtime = now;
            dir.attr.data_version = version;
        })
    }

    pub fn create(&mut self, ask: &Create<'_>) -> Step {
        let dir = self.directory(ask.parent)?;
        check_name(ask.name)?;
        if let Some(ino) = self.named(ask.parent, ask.name)? {
            let attr = self.known_inode(ino)?.attr;
            return match (ask.node, ask.exclusive, attr.kind) {
                (NewNode::File, false, FileKind::File) => Ok(Reply::Entry { attr, created: false }),
                (NewNode::File, false, FileKind::Directory) => Err(Kind::IsDirectory.into()),
                // The kernel saw no name here, or it would have followed the link or opened the pipe: it
                // looks again when it is told that its view is stale.
                (NewNode::File, false, _) => Err(Kind::Stale.into()),
                _ => Err(Kind::Exists.into()),
            };
        }
        let (kind, body, rdev) = new_body(ask.node)?;
        let is_dir = kind == FileKind::Directory;
        if is_dir && dir.attr.nlink == u32::MAX {
            return Err(Kind::TooManyLinks.into());
        }
        let inherits = dir.attr.mode & SET_GID != 0;
        let (mut mode, lists) = self.new_mode(&dir, kind, ask.mode, ask.umask)?;
        if is_dir && inherits {
            mode |= SET_GID;
        }
        let ino = InodeId(self.counters.next_inode);
        let now = self.now();
        let attr = Attr {
            ino,
            kind,
            mode,
            nlink: if is_dir { 2 } else { 1 },
            uid: ask.uid,
            gid: if inherits { dir.attr.gid } else { ask.gid },
            rdev,
            size: if let Body::Symlink { target } = &body { target.len() as u64 } else { 0 },
            allocated: 0,
            atime: now,
            mtime: now,
            ctime: now,
            data_version: self.next_version(),
        };
        self.counters.next_inode += 1;
        self.counters.totals.inodes += 1;
        let mut inode = Inode { attr, body, home: ask.parent, xattrs: Xattrs::default() };
        self.give_lists(&mut inode, &lists)?;
        if let Some(share) = self.share_over(ask.parent)? {
            self.open(&mut inode, share)?;
        }
        self.put_inode(&inode)?;
        self.put_name(ask.parent, ask.name, ino)?;
        if is_dir {
            self.name_directory(ino, ask.name)?;
        }
        self.changed(Change::Entry { parent: ask.parent, name: ask.name.to_vec() });
        self.edit_directory(ask.parent, 1, i32::from(is_dir))?;
        Ok(Reply::Entry { attr: inode.attr, created: true })
    }

    pub fn link(&mut self, ino: InodeId, parent: InodeId, name: &[u8]) -> Step {
        self.directory(parent)?;
        check_name(name)?;
        if self.named(parent, name)?.is_some() {
            return Err(Kind::Exists.into());
        }
        let mut inode = self.inode(ino)?.ok_or(Kind::NotFound)?;
        if inode.attr.kind == FileKind::Directory {
            return Err(Kind::NotPermitted.into());
        }
        match inode.attr.nlink {
            // Without a name it is only waiting to be freed, unless it was made so (O_TMPFILE).
            0 if !self.is_linkable(self.session, ino)? => return Err(Kind::NotFound.into()),
            LINK_MAX.. => return Err(Kind::TooManyLinks.into()),
            _ => {}
        }
        if inode.attr.nlink == 0 {
            self.adopt_orphan(ino)?;
        }
        self.put_name(parent, name, ino)?;
        self.changed(Change::Entry { parent, name: name.to_vec() });
        self.add_name(&mut inode, parent)?;
        self.edit(ino, |old| {
            old.attr.nlink += 1;
            old.home = inode.home;
        })?;
        self.edit_directory(parent, 1, 0)?;
        let attr = self.known_inode(ino)?.attr;
        Ok(Reply::Entry { attr, created: false })
    }

    pub fn unlink(&mut self, parent: InodeId, name: &[u8], hold: bool) -> Step {
        self.directory(parent)?;
        check_name(name)?;
        let ino = self.named(parent, name)?.ok_or(Kind::NotFound)?;
        if self.known_inode(ino)?.attr.kind == FileKind::Directory {
            return Err(Kind::IsDirectory.into());
        }
        self.drop_name(parent, name)?;
        self.drop_link(parent, name, ino, hold)?;
        self.edit_directory(parent, -1, 0)?;
        Ok(Reply::Done)
    }

    pub fn rmdir(&mut self, parent: InodeId, name: &[u8]) -> Step {
        self.directory(parent)?;
        check_name(name)?;
        let ino = self.named(parent, name)?.ok_or(Kind::NotFound)?;
        let attr = self.known_inode(ino)?.attr;
        if attr.kind != FileKind::Directory {
            return Err(Kind::NotDirectory.into());
        }
        if attr.size != 0 {
            return Err(Kind::NotEmpty.into());
        }
        self.drop_name(parent, name)?;
        self.drop_link(parent, name, ino, false)?;
        self.edit_directory(parent, -1, -1)?;
        Ok(Reply::Done)
    }

    fn drop_name(&mut self, parent: InodeId, name: &[u8]) -> Result<()> {
        self.delete(Table::Dentry, &key::dentry(parent, name))?;
        self.changed(Change::Entry { parent, name: name.to_vec() });
        Ok(())
    }

    /// Takes one name in `dir` from an inode, or from a directory its only one. The last one makes it an
    /// orphan, and may put it into the trash.
    fn drop_link(&mut self, dir: InodeId, name: &[u8], ino: InodeId, hold: bool) -> Result<()> {
        let mut now = self.known_inode(ino)?;
        self.remove_name(&mut now, dir)?;
        let left = if now.is_directory() { 0 } else { now.attr.nlink.saturating_sub(1) };
        self.edit(ino, |inode| {
            inode.attr.nlink = left;
            inode.home = now.home;
        })?;
        if left > 0 {
            return Ok(());
        }
        self.counters.totals.inodes -= 1;
        let holders = if hold { vec![self.session] } else { Vec::new() };
        if hold {
            self.set_item(self.session, ino, key::Item::Hold, true)?;
        }
        let orphan = Orphan { since: self.now(), holders };
        self.put(Table::Orphan, &key::inode(ino), &orphan)?;
        self.changed(Change::Orphaned(ino));
        if now.is_directory() {
            self.delete(Table::DirName, &key::inode(ino))?;
        }
        self.keep(dir, name, ino)
    }

    pub fn rename(&mut self, ask: &Rename<'_>) -> Step {
        let ((parent, name), (new_parent, new_name)) = (ask.from, ask.to);
        self.directory(parent)?;
        let new_dir = self.directory(new_parent)?;
        check_name(name)?;
        check_name(new_name)?;
        let across = parent != new_parent;
        let ino = self.named(parent, name)?.ok_or(Kind::NotFound)?;
        let target = self.named(new_parent, new_name)?;
        match (ask.mode, target) {
            (RenameMode::NoReplace, Some(_)) => return Err(Kind::Exists.into()),
            (RenameMode::Exchange, None) => return Err(Kind::NotFound.into()),
            _ => {}
        }
        let is_dir = self.known_inode(ino)?.attr.kind == FileKind::Directory;
        if is_dir && across && self.is_below(new_parent, ino)? {
            return Err(Kind::Invalid.into());
        }
        let Some(target) = target else {
            if is_dir && across && new_dir.attr.nlink == u32::MAX {
                return Err(Kind::TooManyLinks.into());
            }
            return self.move_name(ask, ino, is_dir, None);
        };
        if target == ino {
            // Two names of one inode: POSIX wants both to stay.
            return Ok(Reply::Done);
        }
        let there = self.known_inode(target)?.attr;
        let target_is_dir = there.kind == FileKind::Directory;
        if ask.mode == RenameMode::Exchange {
            if target_is_dir && across && self.is_below(parent, target)? {
                return Err(Kind::Invalid.into());
            }
            return self.exchange(ask, (ino, is_dir), (target, target_is_dir));
        }
        match (is_dir, target_is_dir) {
            (true, false) => return Err(Kind::NotDirectory.into()),
            (false, true) => return Err(Kind::IsDirectory.into()),
            (true, true) if there.size != 0 => return Err(Kind::NotEmpty.into()),
            _ => {}
        }
        self.move_name(ask, ino, is_dir, Some(target))
    }

    /// Everything was checked: `ino` leaves its old name and takes the new one from `target`, which is a
    /// directory exactly if `ino` is one.
    fn move_name(&mut self, ask: &Rename<'_>, ino: InodeId, is_dir: bool, target: Option<InodeId>) -> Step {
        let ((parent, name), (new_parent, new_name)) = (ask.from, ask.to);
        self.drop_name(parent, name)?;
        self.put_name(new_parent, new_name, ino)?;
        self.changed(Change::Entry { parent: new_parent, name: new_name.to_vec() });
        if let Some(target) = target {
            self.drop_link(new_parent, new_name, target, ask.hold)?;
        }
        if is_dir {
            self.name_directory(ino, new_name)?;
        }
        self.edit_home(ino, parent, new_parent, ask.uid)?;
        let (dirs, fresh) = (i32::from(is_dir), target.is_none());
        if parent == new_parent {
            self.edit_directory(parent, if fresh { 0 } else { -1 }, if fresh { 0 } else { -dirs })?;
        } else {
            self.edit_directory(parent, -1, -dirs)?;
            self.edit_directory(new_parent, i64::from(fresh), if fresh { dirs } else { 0 })?;
        }
        Ok(Reply::Done)
    }

    fn exchange(&mut self, ask: &Rename<'_>, one: (InodeId, bool), other: (InodeId, bool)) -> Step {
        let ((parent, name), (new_parent, new_name)) = (ask.from, ask.to);
        self.put_name(parent, name, other.0)?;
        self.put_name(new_parent, new_name, one.0)?;
        for ((ino, is_dir), name) in [(other, name), (one, new_name)] {
            if is_dir {
                self.name_directory(ino, name)?;
            }
        }
        self.changed(Change::Entry { parent, name: name.to_vec() });
        self.changed(Change::Entry { parent: new_parent, name: new_name.to_vec() });
        self.edit_home(one.0, parent, new_parent, ask.uid)?;
        self.edit_home(other.0, new_parent, parent, ask.uid)?;
        if parent == new_parent {
            self.edit_directory(parent, 0, 0)?;
        } else {
            let moved = i32::from(one.1) - i32::from(other.1);
            self.edit_directory(parent, 0, -moved)?;
            self.edit_directory(new_parent, 0, moved)?;
        }
        Ok(Reply::Done)
    }

    /// Whether `dir` is `above` or somewhere below it.
    fn is_below(&self, dir: InodeId, above: InodeId) -> Result<bool> {
        let mut at = dir;
        while at != above {
            if at == InodeId::ROOT {
                return Ok(false);
            }
            at = self.known_inode(at)?.home;
        }
        Ok(true)
    }
}

fn new_body(node: &NewNode) -> Result<(FileKind, Body, u32), Kind> {
    Ok(match node {
        NewNode::File => (FileKind::File, Body::File { inline: Vec::new() }, 0),
        NewNode::Directory => (FileKind::Directory, Body::Directory { tree: Usage::default() }, 0),
        NewNode::Symlink(target) => match target.len() {
            0 => return Err(Kind::NotFound),
            _ if target.contains(&0) => return Err(Kind::Invalid),
            1..=SYMLINK_MAX => (FileKind::Symlink, Body::Symlink { target: target.clone() }, 0),
            _ => return Err(Kind::NameTooLong),
        },
        NewNode::Special(kind, rdev) => match kind {
            FileKind::Fifo | FileKind::Socket => (*kind, Body::Special, 0),
            FileKind::CharDevice | FileKind::BlockDevice => (*kind, Body::Special, *rdev),
            FileKind::File | FileKind::Directory | FileKind::Symlink => return Err(Kind::Invalid),
        },
    })
}
