//! The inodes of a [`super::Memory`].

use super::now;
use hfcache_base::meta::{Attr, FileKind, Lock, NewNode};
use hfcache_base::{InodeId, Kind, Result};
use hfcache_fuse::ops::Caller;
use std::collections::{BTreeMap, HashMap};

/// An inode.
pub struct Node {
    pub attr: Attr,
    pub data: Vec<u8>,
    pub names: BTreeMap<Vec<u8>, (InodeId, u64)>,
    pub locks: Vec<Lock>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

#[derive(Default)]
/// All of them.
pub struct Tree {
    pub nodes: HashMap<InodeId, Node>,
    pub next: u64,
    pub cookie: u64,
}

impl Tree {
    pub fn insert(&mut self, ino: InodeId, kind: FileKind, mode: u32, uid: u32, gid: u32) -> &mut Node {
        let now = now();
        let attr = Attr {
            ino,
            kind,
            mode,
            nlink: 1,
            uid,
            gid,
            rdev: 0,
            size: 0,
            allocated: 0,
            atime: now,
            mtime: now,
            ctime: now,
            data_version: 1,
        };
        let (names, xattrs) = (BTreeMap::new(), BTreeMap::new());
        let node = Node { attr, data: Vec::new(), names, locks: Vec::new(), xattrs };
        self.nodes.entry(ino).insert_entry(node).into_mut()
    }

    pub fn node(&mut self, ino: InodeId) -> Result<&mut Node> {
        self.nodes.get_mut(&ino).ok_or(Kind::Stale.into())
    }

    pub fn child(&mut self, parent: InodeId, name: &[u8]) -> Result<InodeId> {
        let node = self.node(parent)?;
        node.names.get(name).map(|(ino, _)| *ino).ok_or(Kind::NotFound.into())
    }

    pub fn add(&mut self, parent: InodeId, name: &[u8], ino: InodeId) -> Result<()> {
        self.cookie += 1;
        let cookie = self.cookie;
        let dir = self.node(parent)?;
        dir.names.insert(name.to_vec(), (ino, cookie));
        dir.attr.mtime = now();
        Ok(())
    }

    pub fn make(
        &mut self,
        caller: Caller,
        parent: InodeId,
        name: &[u8],
        node: NewNode,
        mode: u32,
    ) -> Result<InodeId> {
        if self.child(parent, name).is_ok() {
            return Err(Kind::Exists.into());
        }
        let ino = InodeId(self.next);
        self.next += 1;
        let kind = match &node {
            NewNode::File => FileKind::File,
            NewNode::Directory => FileKind::Directory,
            NewNode::Symlink(_) => FileKind::Symlink,
            NewNode::Special(kind, _) => *kind,
        };
        let made = self.insert(ino, kind, mode & !caller.umask, caller.uid, caller.gid);
        match node {
            NewNode::Symlink(target) => {
                made.attr.size = target.len() as u64;
                made.data = target;
            }
            NewNode::Special(_, rdev) => made.attr.rdev = rdev,
            NewNode::File | NewNode::Directory => {}
        }
        self.add(parent, name, ino)?;
        Ok(ino)
    }

    pub fn remove(&mut self, parent: InodeId, name: &[u8]) -> Result<()> {
        let ino = self.child(parent, name)?;
        self.node(parent)?.names.remove(name);
        // Open files stay readable: inodes of a test are never freed.
        self.node(ino)?.attr.nlink -= 1;
        Ok(())
    }

    pub fn resize(&mut self, ino: InodeId, size: u64) -> Result<()> {
        let node = self.node(ino)?;
        node.data.resize(usize::try_from(size).unwrap(), 0);
        node.attr.size = size;
        node.attr.allocated = size;
        node.attr.mtime = now();
        node.attr.data_version += 1;
        Ok(())
    }
}
