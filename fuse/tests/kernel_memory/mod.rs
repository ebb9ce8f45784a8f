//! A small file system in memory, for tests of the kernel side on real mounts.

#![expect(clippy::unwrap_used, reason = "a test that can not go on panics")]
#![expect(dead_code, reason = "each test program uses its own part")]

mod tree;
mod world;

use bytes::Bytes;
use hfcache_base::meta::{FileKind, Lock, LockKind, NewNode, RenameMode, SetAttr, SetTime, Timestamp};
use hfcache_base::meta::{XattrMode, XattrSpace};
use hfcache_base::{InodeId, Kind, Result};
use hfcache_fuse::ops::{
    Caller, Data, Entry, FileSystem, Notify, Opened, Place, Reply, Row, StatFs, WriteFlags, XattrFlags,
};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tree::Tree;
pub use world::*;

/// A `SETLKW` that waits.
struct Waiter {
    ino: InodeId,
    lock: Lock,
    reply: Reply<()>,
}

/// See the module.
pub struct Memory {
    tree: Mutex<Tree>,
    waiters: Mutex<HashMap<u64, Waiter>>,
    /// Answered with each entry and attribute, in milliseconds.
    pub entry_ttl: AtomicU64,
    /// See `entry_ttl`.
    pub attr_ttl: AtomicU64,
    /// LOOKUPs so far.
    pub lookups: AtomicU64,
    /// Each LOOKUP takes so many milliseconds.
    pub slow_lookups: AtomicU64,
    /// LOOKUPs of `held` keep their thread as long as this is locked.
    pub hold: Mutex<()>,
    /// So many LOOKUPs of `held` began.
    pub held: AtomicU64,
    /// READs so far.
    pub reads: AtomicU64,
    /// OPENs so far.
    pub opens: AtomicU64,
    /// Handles given so far.
    handles: AtomicU64,
    /// FLUSHes so far.
    pub flushes: AtomicU64,
    /// Every lock request that came in: who asked, what, and whether it may wait.
    pub asked: Mutex<Vec<(Lock, bool)>>,
    /// Unlocks and the `flock_owner` of releases.
    pub unlocked: Mutex<Vec<Lock>>,
    /// `flock_owner` of releases.
    pub released: Mutex<Vec<Option<u64>>>,
    /// Fallocates so far: offset, length, mode.
    pub fallocated: Mutex<Vec<(u64, u64, u32)>>,
    /// GETXATTRs so far: names.
    pub got: Mutex<Vec<Vec<u8>>>,
    /// SETXATTRs of access control lists so far: whether set-gid is to go.
    pub killed: Mutex<Vec<bool>>,
    /// WRITEs so far: whether set-id bits are to go.
    pub written: Mutex<Vec<bool>>,
    /// READs answer from a local file, as the chunk store does.
    pub local: OnceLock<Arc<dyn hfcache_base::seam::LocalFile>>,
    /// READs wait until interrupted.
    pub stuck_reads: AtomicBool,
    stuck: Mutex<HashMap<u64, Reply<Data>>>,
    /// The way back.
    pub notify: OnceLock<Arc<dyn Notify>>,
    /// `unmounted` was called so often.
    pub unmounts: AtomicU64,
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Timestamp(i64::try_from(since.as_nanos()).unwrap())
}

fn overlap(a: &Lock, b: &Lock) -> bool {
    a.kind == b.kind && a.start <= b.end && b.start <= a.end
}

fn conflict(held: &[Lock], wanted: &Lock) -> Option<Lock> {
    let clash =
        |l: &&Lock| overlap(l, wanted) && l.owner != wanted.owner && (l.exclusive || wanted.exclusive);
    held.iter().find(clash).copied()
}

impl Default for Memory {
    fn default() -> Self {
        let memory = Self {
            tree: Mutex::new(Tree { next: 2, cookie: 10, ..Tree::default() }),
            waiters: Mutex::default(),
            entry_ttl: AtomicU64::new(0),
            attr_ttl: AtomicU64::new(0),
            lookups: AtomicU64::new(0),
            handles: AtomicU64::new(0),
            slow_lookups: AtomicU64::new(0),
            hold: Mutex::default(),
            held: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            opens: AtomicU64::new(0),
            flushes: AtomicU64::new(0),
            asked: Mutex::default(),
            unlocked: Mutex::default(),
            released: Mutex::default(),
            fallocated: Mutex::default(),
            got: Mutex::default(),
            killed: Mutex::default(),
            written: Mutex::default(),
            local: OnceLock::new(),
            stuck_reads: AtomicBool::new(false),
            stuck: Mutex::default(),
            notify: OnceLock::new(),
            unmounts: AtomicU64::new(0),
        };
        memory.tree.lock().insert(InodeId::ROOT, FileKind::Directory, 0o755, 0, 0);
        memory
    }
}

impl Memory {
    fn handle(&self) -> u64 {
        self.handles.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn entry(&self, tree: &mut Tree, ino: InodeId) -> Result<Entry> {
        let attr = tree.node(ino)?.attr.clone();
        let ttl = |of: &AtomicU64| Duration::from_millis(of.load(Ordering::Relaxed));
        Ok(Entry { attr, attr_ttl: ttl(&self.attr_ttl), entry_ttl: ttl(&self.entry_ttl) })
    }

    fn with<T>(&self, reply: Reply<T>, call: impl FnOnce(&mut Tree) -> Result<T>) {
        let result = call(&mut self.tree.lock());
        reply.send(result.map_err(|e| e.errno()));
    }

    fn unlock_all(&self, ino: InodeId, lock: &Lock) {
        let mut tree = self.tree.lock();
        let node = tree.node(ino).unwrap();
        node.locks.retain(|l| !(l.kind == lock.kind && l.owner == lock.owner && overlap(l, lock)));
        drop(tree);
        // Whoever can go on now does.
        let waiting: Vec<u64> = self.waiters.lock().keys().copied().collect();
        for unique in waiting {
            let Some(waiter) = self.waiters.lock().remove(&unique) else { continue };
            self.lock_or_wait(unique, waiter.ino, waiter.lock, true, waiter.reply);
        }
    }

    fn lock_or_wait(&self, unique: u64, ino: InodeId, lock: Lock, wait: bool, reply: Reply<()>) {
        let mut tree = self.tree.lock();
        let held = &mut tree.node(ino).unwrap().locks;
        if conflict(held, &lock).is_none() {
            held.retain(|l| !(l.kind == lock.kind && l.owner == lock.owner && overlap(l, &lock)));
            held.push(lock);
            reply.ok(());
        } else if wait {
            self.waiters.lock().insert(unique, Waiter { ino, lock, reply });
        } else {
            reply.fail(Kind::WouldBlock);
        }
    }

    /// Lock requests that wait now.
    pub fn waiting(&self) -> usize {
        self.waiters.lock().len()
    }

    /// READs that are held back now.
    pub fn stuck(&self) -> usize {
        self.stuck.lock().len()
    }

    /// Ends the READs that are held back.
    pub fn let_go(&self) {
        self.stuck.lock().clear();
    }

    /// Puts another file at a name, behind the kernel's back.
    pub fn replace(&self, name: &str, content: &[u8]) {
        let mut tree = self.tree.lock();
        let _ = tree.remove(InodeId::ROOT, name.as_bytes());
        let caller = Caller { unique: 0, uid: 0, gid: 0, pid: 0, umask: 0 };
        let ino = tree.make(caller, InodeId::ROOT, name.as_bytes(), NewNode::File, 0o644).unwrap();
        let node = tree.node(ino).unwrap();
        node.data = content.to_vec();
        node.attr.size = content.len() as u64;
    }

    /// Changes bytes of a file, behind the kernel's back.
    pub fn overwrite(&self, name: &str, content: &[u8]) -> InodeId {
        let mut tree = self.tree.lock();
        let ino = tree.child(InodeId::ROOT, name.as_bytes()).unwrap();
        let node = tree.node(ino).unwrap();
        node.data = content.to_vec();
        node.attr.size = content.len() as u64;
        ino
    }
}

impl FileSystem for Memory {
    fn mounted(&self, notify: Arc<dyn Notify>) {
        let _ = self.notify.set(notify);
    }

    fn interrupt(&self, unique: u64) {
        if let Some(waiter) = self.waiters.lock().remove(&unique) {
            waiter.reply.fail(Kind::Interrupted);
        }
        if let Some(reply) = self.stuck.lock().remove(&unique) {
            reply.fail(Kind::Interrupted);
        }
    }

    fn lookup(&self, _: Caller, parent: InodeId, name: &[u8], reply: Reply<Entry>) {
        self.lookups.fetch_add(1, Ordering::Relaxed);
        assert_ne!(name, b"panic", "a test asks for a panic");
        std::thread::sleep(Duration::from_millis(self.slow_lookups.load(Ordering::Relaxed)));
        if name == b"held" {
            self.held.fetch_add(1, Ordering::SeqCst);
            drop(self.hold.lock());
        }
        self.with(reply, |tree| {
            let ino = tree.child(parent, name)?;
            self.entry(tree, ino)
        });
    }

    fn forget(&self, _: InodeId) {}

    fn getxattr(&self, _: Caller, ino: InodeId, name: &[u8], reply: Reply<Vec<u8>>) {
        self.got.lock().push(name.to_vec());
        self.with(reply, |tree| {
            XattrSpace::of(name)?;
            tree.node(ino)?.xattrs.get(name).cloned().ok_or(Kind::NoData.into())
        });
    }

    fn listxattr(&self, _: Caller, ino: InodeId, reply: Reply<Vec<Vec<u8>>>) {
        self.with(reply, |tree| Ok(tree.node(ino)?.xattrs.keys().cloned().collect()));
    }

    fn setxattr(
        &self,
        _: Caller,
        ino: InodeId,
        name: &[u8],
        value: &[u8],
        flags: XattrFlags,
        reply: Reply<()>,
    ) {
        self.with(reply, |tree| {
            if XattrSpace::of(name)?.is_acl() {
                self.killed.lock().push(flags.kill_sgid);
            }
            let xattrs = &mut tree.node(ino)?.xattrs;
            match (flags.mode, xattrs.contains_key(name)) {
                (XattrMode::Create, true) => return Err(Kind::Exists.into()),
                (XattrMode::Replace, false) => return Err(Kind::NoData.into()),
                _ => {}
            }
            xattrs.insert(name.to_vec(), value.to_vec());
            Ok(())
        });
    }

    fn removexattr(&self, _: Caller, ino: InodeId, name: &[u8], reply: Reply<()>) {
        self.with(reply, |tree| tree.node(ino)?.xattrs.remove(name).map(drop).ok_or(Kind::NoData.into()));
    }

    fn access(&self, _: Caller, _: InodeId, _: u32, reply: Reply<()>) {
        reply.ok(());
    }

    fn getattr(&self, _: Caller, ino: InodeId, _: Option<u64>, reply: Reply<Entry>) {
        self.with(reply, |tree| self.entry(tree, ino));
    }

    fn setattr(&self, _: Caller, ino: InodeId, _: Option<u64>, set: SetAttr, reply: Reply<Entry>) {
        self.with(reply, |tree| {
            if let Some(size) = set.size {
                tree.resize(ino, size)?;
            }
            let time = |set: SetTime| match set {
                SetTime::Now => now(),
                SetTime::To(time) => time,
            };
            let attr = &mut tree.node(ino)?.attr;
            attr.mode = set.mode.unwrap_or(attr.mode);
            attr.uid = set.uid.unwrap_or(attr.uid);
            attr.gid = set.gid.unwrap_or(attr.gid);
            attr.atime = set.atime.map_or(attr.atime, time);
            attr.mtime = set.mtime.map_or(attr.mtime, time);
            attr.ctime = now();
            self.entry(tree, ino)
        });
    }

    fn readlink(&self, _: Caller, ino: InodeId, reply: Reply<Vec<u8>>) {
        self.with(reply, |tree| Ok(tree.node(ino)?.data.clone()));
    }

    fn make(
        &self,
        caller: Caller,
        parent: InodeId,
        name: &[u8],
        node: NewNode,
        mode: u32,
        reply: Reply<Entry>,
    ) {
        self.with(reply, |tree| {
            let ino = tree.make(caller, parent, name, node, mode)?;
            self.entry(tree, ino)
        });
    }

    fn link(&self, _: Caller, ino: InodeId, parent: InodeId, name: &[u8], reply: Reply<Entry>) {
        self.with(reply, |tree| {
            tree.add(parent, name, ino)?;
            tree.node(ino)?.attr.nlink += 1;
            self.entry(tree, ino)
        });
    }

    fn unlink(&self, _: Caller, parent: InodeId, name: &[u8], reply: Reply<()>) {
        self.with(reply, |tree| tree.remove(parent, name));
    }

    fn rmdir(&self, _: Caller, parent: InodeId, name: &[u8], reply: Reply<()>) {
        self.with(reply, |tree| {
            let ino = tree.child(parent, name)?;
            if !tree.node(ino)?.names.is_empty() {
                return Err(Kind::NotEmpty.into());
            }
            tree.remove(parent, name)
        });
    }

    fn rename(
        &self,
        _: Caller,
        parent: InodeId,
        name: &[u8],
        new_parent: InodeId,
        new_name: &[u8],
        mode: RenameMode,
        reply: Reply<()>,
    ) {
        self.with(reply, |tree| {
            let ino = tree.child(parent, name)?;
            let target = tree.child(new_parent, new_name).ok();
            match (mode, target) {
                (RenameMode::NoReplace, Some(_)) => return Err(Kind::Exists.into()),
                (RenameMode::Exchange, None) => return Err(Kind::NotFound.into()),
                (RenameMode::Exchange, Some(other)) => {
                    tree.add(parent, name, other)?;
                    return tree.add(new_parent, new_name, ino);
                }
                (RenameMode::Replace, Some(_)) => tree.remove(new_parent, new_name)?,
                (_, None) => {}
            }
            tree.node(parent)?.names.remove(name);
            tree.add(new_parent, new_name, ino)
        });
    }

    fn create(
        &self,
        caller: Caller,
        parent: InodeId,
        name: &[u8],
        mode: u32,
        _: u32,
        reply: Reply<(Entry, Opened)>,
    ) {
        let handle = self.handle();
        self.with(reply, |tree| {
            let ino = tree.make(caller, parent, name, NewNode::File, mode)?;
            let opened = Opened { handle, ..Opened::default() };
            Ok((self.entry(tree, ino)?, opened))
        });
    }

    fn open(&self, _: Caller, ino: InodeId, flags: u32, reply: Reply<Opened>) {
        self.opens.fetch_add(1, Ordering::SeqCst);
        let handle = self.handle();
        self.with(reply, |tree| {
            if flags & libc::O_TRUNC as u32 != 0 {
                tree.resize(ino, 0)?;
            }
            let no_flush = flags as i32 & libc::O_ACCMODE == libc::O_RDONLY;
            Ok(Opened { handle, keep_cache: true, no_flush, ..Opened::default() })
        });
    }

    fn read(&self, caller: Caller, ino: InodeId, _: u64, offset: u64, size: u32, reply: Reply<Data>) {
        self.reads.fetch_add(1, Ordering::Relaxed);
        if self.stuck_reads.load(Ordering::Relaxed) {
            self.stuck.lock().insert(caller.unique, reply);
            return;
        }
        self.with(reply, |tree| {
            let node = tree.node(ino)?;
            let len = usize::try_from(node.attr.size).unwrap();
            let start = usize::try_from(offset).unwrap().min(len);
            let end = (start + size as usize).min(len);
            if let Some(file) = self.local.get() {
                return Ok(Data::Local { file: Arc::clone(file), offset, len: end - start });
            }
            // In two parts, so that both ways to answer are used.
            let middle = start + (end - start) / 2;
            let part = |range: std::ops::Range<usize>| Bytes::copy_from_slice(&node.data[range]);
            Ok(Data::Bytes(vec![part(start..middle), part(middle..end)]))
        });
    }

    fn write(
        &self,
        _: Caller,
        ino: InodeId,
        _: u64,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
        reply: Reply<u32>,
    ) {
        self.written.lock().push(flags.kill_set_id);
        self.with(reply, |tree| {
            let end = offset as usize + data.len();
            let node = tree.node(ino)?;
            if let Some(file) = self.local.get() {
                file.write_at(data, offset)?;
            } else {
                if node.data.len() < end {
                    node.data.resize(end, 0);
                }
                node.data[offset as usize..end].copy_from_slice(data);
            }
            if flags.kill_set_id {
                node.attr.mode &= !0o6000;
            }
            node.attr.size = node.attr.size.max(end as u64);
            node.attr.allocated = node.attr.size;
            node.attr.mtime = now();
            Ok(u32::try_from(data.len()).unwrap())
        });
    }

    fn flush(&self, _: Caller, ino: InodeId, _: u64, lock_owner: u64, reply: Reply<()>) {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        let kind = LockKind::Posix;
        let all = Lock { kind, owner: lock_owner, exclusive: false, start: 0, end: u64::MAX, pid: 0 };
        if self.lock_held(ino, kind, lock_owner) {
            self.unlock_all(ino, &all);
        }
        reply.ok(());
    }

    fn fsync(&self, _: Caller, _: InodeId, _: u64, reply: Reply<()>) {
        reply.ok(());
    }

    fn release(&self, _: Caller, ino: InodeId, _: u64, flock_owner: Option<u64>, reply: Reply<()>) {
        self.released.lock().push(flock_owner);
        if let Some(owner) = flock_owner {
            let all =
                Lock { kind: LockKind::Flock, owner, exclusive: false, start: 0, end: u64::MAX, pid: 0 };
            self.unlock_all(ino, &all);
        }
        reply.ok(());
    }

    fn fallocate(&self, _: Caller, ino: InodeId, _: u64, offset: u64, len: u64, mode: u32, reply: Reply<()>) {
        self.fallocated.lock().push((offset, len, mode));
        self.with(reply, |tree| {
            let size = tree.node(ino)?.attr.size;
            if mode == 0 && offset + len > size { tree.resize(ino, offset + len) } else { Ok(()) }
        });
    }

    fn seek(&self, _: Caller, ino: InodeId, _: u64, offset: u64, data: bool, reply: Reply<u64>) {
        // Nothing here has holes, but for what is behind every file's end.
        self.with(reply, |tree| {
            let size = tree.node(ino)?.attr.size;
            match offset < size {
                true => Ok(if data { offset } else { size }),
                false => Err(Kind::NoDevice.into()),
            }
        });
    }

    fn copy(&self, _: Caller, _: Place, _: Place, _: u64, reply: Reply<u64>) {
        reply.fail(Kind::NotSupported);
    }

    fn tmpfile(&self, _: Caller, _: InodeId, _: u32, _: u32, reply: Reply<(Entry, Opened)>) {
        reply.fail(Kind::NotSupported);
    }

    fn opendir(&self, _: Caller, ino: InodeId, _: u32, reply: Reply<Opened>) {
        reply.ok(Opened { handle: ino.0, ..Opened::default() });
    }

    fn readdir(
        &self,
        _: Caller,
        ino: InodeId,
        _: u64,
        cookie: u64,
        _: u32,
        plus: bool,
        reply: Reply<Vec<Row>>,
    ) {
        self.with(reply, |tree| {
            let mut rows = Vec::new();
            for (at, name) in [(1, "."), (2, "..")] {
                if cookie < at {
                    let name = name.as_bytes().to_vec();
                    rows.push(Row { name, ino, kind: FileKind::Directory, cookie: at, entry: None });
                }
            }
            let names = tree.node(ino)?.names.iter();
            let mut found: Vec<_> = names.map(|(name, (ino, at))| (*at, name.clone(), *ino)).collect();
            found.retain(|(at, ..)| *at > cookie);
            found.sort();
            for (cookie, name, ino) in found.into_iter().take(1_000) {
                let entry = self.entry(tree, ino)?;
                rows.push(Row { name, ino, kind: entry.attr.kind, cookie, entry: plus.then_some(entry) });
            }
            Ok(rows)
        });
    }

    fn releasedir(&self, _: Caller, _: InodeId, _: u64, reply: Reply<()>) {
        reply.ok(());
    }

    fn statfs(&self, _: Caller, _: InodeId, reply: Reply<StatFs>) {
        reply.ok(StatFs { total: 1 << 40, available: 1 << 39, inodes: 5, inodes_free: None });
    }

    fn lock(&self, caller: Caller, ino: InodeId, _: u64, lock: Lock, wait: bool, reply: Reply<()>) {
        self.asked.lock().push((lock, wait));
        self.lock_or_wait(caller.unique, ino, lock, wait, reply);
    }

    fn unlock(&self, _: Caller, ino: InodeId, lock: Lock, reply: Reply<()>) {
        self.unlocked.lock().push(lock);
        self.unlock_all(ino, &lock);
        reply.ok(());
    }

    fn lock_test(&self, _: Caller, ino: InodeId, lock: Lock, reply: Reply<Option<Lock>>) {
        self.with(reply, |tree| Ok(conflict(&tree.node(ino)?.locks, &lock)));
    }

    fn lock_held(&self, ino: InodeId, kind: LockKind, owner: u64) -> bool {
        let mut tree = self.tree.lock();
        tree.node(ino).unwrap().locks.iter().any(|l| l.kind == kind && l.owner == owner)
    }

    fn unmounted(&self) {
        self.waiters.lock().clear();
        self.stuck.lock().clear();
        self.unmounts.fetch_add(1, Ordering::SeqCst);
    }
}
