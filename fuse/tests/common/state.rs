//! The rules of the namespace, in memory.

use hfcache_base::acl::{self, Acl};
use hfcache_base::meta::{
    Attr, Change, ChunkRef, Content, Extent, FileKind, NewNode, Op, Piece, RenameMode, Reply, SetAttr,
    SetTime, Timestamp, XattrMode, XattrSpace,
};
use hfcache_base::{ChunkId, InodeId, Kind, Result};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone)]
pub struct Inode {
    pub attr: Attr,
    pub content: Content,
    pub target: Vec<u8>,
    pub names: BTreeMap<Vec<u8>, (InodeId, u64)>,
    pub parent: InodeId,
    pub holders: BTreeSet<u64>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

#[derive(Clone)]
pub struct State {
    pub inodes: BTreeMap<InodeId, Inode>,
    next_ino: u64,
    version: u64,
    next_cookie: u64,
    pub next_chunk: u64,
}

type Done = Result<(Reply, Vec<Change>)>;

impl State {
    pub fn new() -> Self {
        let mut state =
            Self { inodes: BTreeMap::new(), next_ino: 1, version: 0, next_cookie: 3, next_chunk: 1 };
        let root = state.new_inode(NewNode::Directory, 0o755, (0, 0), InodeId::ROOT, Timestamp(1));
        assert_eq!(root, InodeId::ROOT);
        state
    }

    fn new_inode(
        &mut self,
        node: NewNode,
        mode: u32,
        who: (u32, u32),
        parent: InodeId,
        now: Timestamp,
    ) -> InodeId {
        let ino = InodeId(self.next_ino);
        self.next_ino += 1;
        self.version += 1;
        let (kind, rdev, target) = match node {
            NewNode::File => (FileKind::File, 0, Vec::new()),
            NewNode::Directory => (FileKind::Directory, 0, Vec::new()),
            NewNode::Symlink(target) => (FileKind::Symlink, 0, target),
            NewNode::Special(kind, rdev) => (kind, rdev, Vec::new()),
        };
        let attr = Attr {
            ino,
            kind,
            mode,
            nlink: if kind == FileKind::Directory { 2 } else { 1 },
            uid: who.0,
            gid: who.1,
            rdev,
            size: target.len() as u64,
            allocated: 0,
            atime: now,
            mtime: now,
            ctime: now,
            data_version: self.version,
        };
        let inode = Inode {
            attr,
            content: Content::default(),
            target,
            names: BTreeMap::new(),
            parent,
            holders: BTreeSet::new(),
            xattrs: BTreeMap::new(),
        };
        self.inodes.insert(ino, inode);
        ino
    }

    pub fn inode(&self, ino: InodeId) -> Result<&Inode> {
        self.inodes.get(&ino).ok_or_else(|| Kind::NotFound.into())
    }

    fn inode_mut(&mut self, ino: InodeId) -> Result<&mut Inode> {
        self.inodes.get_mut(&ino).ok_or_else(|| Kind::NotFound.into())
    }

    pub fn dir(&self, ino: InodeId) -> Result<&Inode> {
        let dir = self.inode(ino)?;
        if dir.attr.kind == FileKind::Directory { Ok(dir) } else { Err(Kind::NotDirectory.into()) }
    }

    pub fn find(&self, parent: InodeId, name: &[u8]) -> Result<InodeId> {
        self.dir(parent)?.names.get(name).map(|(ino, _)| *ino).ok_or_else(|| Kind::NotFound.into())
    }

    fn add_name(&mut self, parent: InodeId, name: Vec<u8>, ino: InodeId, now: Timestamp) -> Change {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let dir = self.inodes.get_mut(&parent).expect("directory");
        dir.names.insert(name.clone(), (ino, cookie));
        (dir.attr.mtime, dir.attr.ctime) = (now, now);
        Change::Entry { parent, name }
    }

    /// One name less for an inode. Chunks of a dead file are freed at once: there is no grace here.
    fn drop_link(&mut self, ino: InodeId, session: u64, hold: bool, changes: &mut Vec<Change>) {
        let inode = self.inodes.get_mut(&ino).expect("inode");
        inode.attr.nlink -= 1;
        changes.push(Change::Inode { ino, data: false });
        if inode.attr.nlink == 0 {
            if hold {
                inode.holders.insert(session);
            }
            changes.push(Change::Orphaned(ino));
        }
    }

    /// Frees nameless inodes without holders.
    pub fn reap(&mut self, changes: &mut Vec<Change>) {
        let dead: Vec<InodeId> = self
            .inodes
            .values()
            .filter(|i| i.attr.nlink == 0 && i.holders.is_empty())
            .map(|i| i.attr.ino)
            .collect();
        for ino in dead {
            let inode = self.inodes.remove(&ino).expect("inode");
            changes.push(Change::Reaped(ino));
            self.freed(&inode.content.extents, changes);
        }
    }

    fn freed(&self, before: &[Extent], changes: &mut Vec<Change>) {
        let gone: BTreeSet<ChunkId> = before.iter().map(|e| e.chunk.id).collect();
        let live: BTreeSet<ChunkId> =
            self.inodes.values().flat_map(|i| &i.content.extents).map(|e| e.chunk.id).collect();
        changes.extend(gone.difference(&live).map(|id| Change::ChunkFreed(*id)));
    }

    pub fn apply(&mut self, session: u64, now: Timestamp, op: Op) -> Done {
        let mut changes = Vec::new();
        let reply = match op {
            Op::Create { parent, name, node, mode, umask, uid, gid, exclusive } => {
                if let Ok(ino) = self.find(parent, &name) {
                    let attr = self.inode(ino)?.attr.clone();
                    if exclusive || attr.kind == FileKind::Directory {
                        return Err(Kind::Exists.into());
                    }
                    return Ok((Reply::Entry { attr, created: false }, changes));
                }
                let dir = self.dir(parent)?;
                let gid = if dir.attr.mode & 0o2000 != 0 { dir.attr.gid } else { gid };
                let default = dir.xattrs.get(acl::DEFAULT).cloned();
                let ino = self.new_inode(node, mode & !umask, (uid, gid), parent, now);
                if let Some(default) = default {
                    self.inherit(ino, default, mode)?;
                }
                changes.push(self.add_name(parent, name, ino, now));
                changes.push(Change::Inode { ino: parent, data: false });
                Reply::Entry { attr: self.inode(ino)?.attr.clone(), created: true }
            }
            Op::Link { ino, parent, name } => {
                self.dir(parent)?;
                if self.find(parent, &name).is_ok() {
                    return Err(Kind::Exists.into());
                }
                let inode = self.inode_mut(ino)?;
                inode.attr.nlink += 1;
                let attr = inode.attr.clone();
                changes.push(self.add_name(parent, name, ino, now));
                changes.push(Change::Inode { ino, data: false });
                Reply::Attr(attr)
            }
            Op::Unlink { parent, name, hold } => {
                let ino = self.find(parent, &name)?;
                if self.inode(ino)?.attr.kind == FileKind::Directory {
                    return Err(Kind::IsDirectory.into());
                }
                self.inode_mut(parent)?.names.remove(&name);
                changes.push(Change::Entry { parent, name });
                self.drop_link(ino, session, hold, &mut changes);
                Reply::Done
            }
            Op::Rmdir { parent, name } => {
                let ino = self.find(parent, &name)?;
                if !self.dir(ino)?.names.is_empty() {
                    return Err(Kind::NotEmpty.into());
                }
                self.inode_mut(parent)?.names.remove(&name);
                self.inodes.remove(&ino);
                changes.push(Change::Entry { parent, name });
                Reply::Done
            }
            Op::Rename { parent, name, new_parent, new_name, mode, hold, .. } => {
                self.rename((parent, name), (new_parent, new_name), mode, hold, session, now, &mut changes)?;
                Reply::Done
            }
            Op::SetXattr { ino, name, value, mode, kill_sgid } => {
                let attr = self.set_xattr(ino, name, value, mode, kill_sgid, &mut changes)?;
                Reply::Attr(attr)
            }
            Op::RemoveXattr { ino, name } => {
                let acl = XattrSpace::of(&name)?.is_acl();
                let inode = self.inode_mut(ino)?;
                if inode.xattrs.remove(&name).is_none() && !acl {
                    return Err(Kind::NoData.into());
                }
                if acl {
                    changes.push(Change::Acl(ino));
                }
                changes.push(Change::Inode { ino, data: false });
                Reply::Attr(self.inode(ino)?.attr.clone())
            }
            Op::SetAttr { ino, set } => Reply::Attr(self.set_attr(ino, set, now, &mut changes)?),
            Op::Commit { ino, pieces, size, mtime, base: _ } => {
                Reply::Attr(self.commit(ino, pieces, size, mtime, now, &mut changes)?)
            }
            Op::Hold { ino, hold } => {
                let inode = self.inode_mut(ino)?;
                if hold {
                    inode.holders.insert(session);
                } else {
                    inode.holders.remove(&session);
                }
                Reply::Done
            }
            Op::Reap => {
                self.reap(&mut changes);
                Reply::Done
            }
            _ => return Err(Kind::NotSupported.into()),
        };
        Ok((reply, changes))
    }

    /// What a new inode gets of its directory's default list, which takes the place of the umask.
    fn inherit(&mut self, ino: InodeId, default: Vec<u8>, mode: u32) -> Result<()> {
        let Some(list) = Acl::parse(&default)? else { return Ok(()) };
        let inode = self.inode_mut(ino)?;
        if inode.attr.kind == FileKind::Symlink {
            return Ok(());
        }
        let access = list.inherit(mode);
        inode.attr.mode = mode & !0o777 | access.mode();
        if !access.is_mode() {
            inode.xattrs.insert(acl::ACCESS.to_vec(), access.to_bytes());
        }
        if inode.attr.kind == FileKind::Directory {
            inode.xattrs.insert(acl::DEFAULT.to_vec(), default);
        }
        Ok(())
    }

    fn set_xattr(
        &mut self,
        ino: InodeId,
        name: Vec<u8>,
        value: Vec<u8>,
        mode: XattrMode,
        kill_sgid: bool,
        changes: &mut Vec<Change>,
    ) -> Result<Attr> {
        let space = XattrSpace::of(&name)?;
        let inode = self.inode_mut(ino)?;
        if !space.is_acl() {
            match (mode, inode.xattrs.contains_key(&name)) {
                (XattrMode::Create, true) => return Err(Kind::Exists.into()),
                (XattrMode::Replace, false) => return Err(Kind::NoData.into()),
                _ => {}
            }
            inode.xattrs.insert(name, value);
        } else {
            let list = Acl::parse(&value)?;
            if let (XattrSpace::Access, Some(list)) = (space, &list) {
                let keep = if kill_sgid { 0o5000 } else { 0o7000 };
                inode.attr.mode = inode.attr.mode & keep | list.mode();
            }
            match list {
                Some(list) if space == XattrSpace::Default || !list.is_mode() => {
                    inode.xattrs.insert(name, value);
                }
                _ => drop(inode.xattrs.remove(&name)),
            }
            changes.push(Change::Acl(ino));
        }
        changes.push(Change::Inode { ino, data: false });
        Ok(self.inode(ino)?.attr.clone())
    }

    fn rename(
        &mut self,
        from: (InodeId, Vec<u8>),
        to: (InodeId, Vec<u8>),
        mode: RenameMode,
        hold: bool,
        session: u64,
        now: Timestamp,
        changes: &mut Vec<Change>,
    ) -> Result<()> {
        let ino = self.find(from.0, &from.1)?;
        self.dir(to.0)?;
        let target = self.find(to.0, &to.1).ok();
        if target == Some(ino) {
            return Ok(());
        }
        if let Some(target) = target {
            if mode == RenameMode::NoReplace {
                return Err(Kind::Exists.into());
            }
            let is_dir = |s: &Self, i| s.inode(i).is_ok_and(|n| n.attr.kind == FileKind::Directory);
            match (is_dir(self, ino), is_dir(self, target)) {
                (true, false) => return Err(Kind::NotDirectory.into()),
                (false, true) => return Err(Kind::IsDirectory.into()),
                (true, true) if !self.inode(target)?.names.is_empty() => return Err(Kind::NotEmpty.into()),
                (true, true) => drop(self.inodes.remove(&target)),
                (false, false) => self.drop_link(target, session, hold, changes),
            }
        }
        self.inode_mut(from.0)?.names.remove(&from.1);
        changes.push(Change::Entry { parent: from.0, name: from.1 });
        self.inode_mut(ino)?.parent = to.0;
        changes.push(self.add_name(to.0, to.1, ino, now));
        changes.push(Change::Inode { ino, data: false });
        Ok(())
    }

    fn set_attr(
        &mut self,
        ino: InodeId,
        set: SetAttr,
        now: Timestamp,
        changes: &mut Vec<Change>,
    ) -> Result<Attr> {
        self.version += 1;
        let version = self.version;
        let inode = self.inode_mut(ino)?;
        let before = inode.content.extents.clone();
        let attr = &mut inode.attr;
        let owner = (attr.uid, attr.gid);
        attr.mode = set.mode.unwrap_or(attr.mode);
        if set.kill_suid && attr.kind == FileKind::File {
            attr.mode &= if attr.mode & 0o010 == 0 { !0o4000 } else { !0o6000 };
        }
        attr.uid = set.uid.unwrap_or(attr.uid);
        attr.gid = set.gid.unwrap_or(attr.gid);
        let mut data = false;
        if let Some(size) = set.size.filter(|size| *size != attr.size) {
            data = true;
            (attr.size, attr.mtime, attr.data_version) = (size, now, version);
            let content = &mut inode.content;
            content.inline.truncate(usize::try_from(size).unwrap_or(usize::MAX));
            punch(&mut content.extents, size, u64::MAX);
        }
        let time = |t: SetTime| if let SetTime::To(t) = t { t } else { now };
        if let (Some(mode), Some(value)) = (set.mode, inode.xattrs.get_mut(acl::ACCESS))
            && let Some(mut list) = Acl::parse(value)?
        {
            list.set_mode(mode);
            *value = list.to_bytes();
            changes.push(Change::Acl(ino));
        }
        inode.attr.atime = set.atime.map_or(inode.attr.atime, time);
        inode.attr.mtime = set.mtime.map_or(inode.attr.mtime, time);
        inode.attr.ctime = now;
        inode.count();
        let attr = inode.attr.clone();
        if owner != (attr.uid, attr.gid) {
            changes.push(Change::Owner(ino));
        }
        changes.push(Change::Inode { ino, data });
        self.freed(&before, changes);
        Ok(attr)
    }

    fn commit(
        &mut self,
        ino: InodeId,
        pieces: Vec<Piece>,
        size: u64,
        mtime: Option<Timestamp>,
        now: Timestamp,
        changes: &mut Vec<Change>,
    ) -> Result<Attr> {
        assert!(pieces.len() <= hfcache_base::limits::COMMIT_PIECES_MAX, "a commit is bounded");
        self.version += 1;
        let version = self.version;
        let inode = self.inode_mut(ino)?;
        let before = inode.content.extents.clone();
        let mut last = 0;
        inode.attr.size = inode.attr.size.max(size);
        for piece in pieces {
            let content = &mut inode.content;
            match piece {
                Piece::Inline(bytes) => {
                    assert!(bytes.len() <= hfcache_base::limits::INLINE_MAX && bytes.len() as u64 == size);
                    inode.attr.size = size;
                    *content = Content { inline: bytes, extents: Vec::new() };
                }
                Piece::Chunk(e) => {
                    assert!(e.offset >= last && e.len > 0, "pieces are in order");
                    assert!(e.chunk_offset + e.len <= e.chunk.len && e.end() <= inode.attr.size);
                    last = e.end();
                    punch(&mut content.extents, e.offset, e.end());
                    content.extents.push(e);
                    content.extents.sort_by_key(|e| e.offset);
                }
                Piece::Hole { offset, len } => {
                    assert!(offset >= last && len > 0, "pieces are in order");
                    last = offset + len;
                    punch(&mut content.extents, offset, offset + len);
                    let end = content.inline.len().min((offset + len) as usize);
                    if (offset as usize) < end {
                        content.inline[offset as usize..end].fill(0);
                    }
                }
            }
        }
        inode.attr.mtime = mtime.unwrap_or(inode.attr.mtime);
        inode.attr.ctime = now;
        inode.attr.data_version = version;
        inode.count();
        let attr = inode.attr.clone();
        changes.push(Change::Inode { ino, data: true });
        self.freed(&before, changes);
        Ok(attr)
    }

    /// Every chunk that a file refers to.
    pub fn chunk_refs(&self) -> Vec<ChunkRef> {
        self.inodes.values().flat_map(|i| &i.content.extents).map(|e| e.chunk).collect()
    }
}

impl Inode {
    fn count(&mut self) {
        let inline = self.content.inline.len() as u64;
        self.attr.allocated = inline + self.content.extents.iter().map(|e| u64::from(e.len)).sum::<u64>();
    }
}

/// Takes a range out of extents.
fn punch(extents: &mut Vec<Extent>, start: u64, end: u64) {
    let mut kept = Vec::new();
    for e in extents.drain(..) {
        if e.end() <= start || e.offset >= end {
            kept.push(e);
            continue;
        }
        if e.offset < start {
            kept.push(Extent { len: (start - e.offset) as u32, ..e });
        }
        if e.end() > end {
            let cut = (end - e.offset) as u32;
            kept.push(Extent {
                offset: end,
                len: e.len - cut,
                chunk_offset: e.chunk_offset + cut,
                chunk: e.chunk,
            });
        }
    }
    *extents = kept;
}
