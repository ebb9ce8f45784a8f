//! A cluster in memory: one namespace, one chunk store, and any number of nodes with a file system each.
//! Not a mock of answers but the real rules of extents, inline bytes, versions, orphans and locks, strict
//! where the real parts may be lenient: a freed chunk is gone at once, an unput chunk may not be committed,
//! and bytes that are not present in a local file cannot be read.

#![expect(dead_code, reason = "each test binary uses a part of it")]
#![expect(unreachable_pub, reason = "shared by several test binaries")]

pub mod chunks;
pub mod meta;
pub mod state;

use async_trait::async_trait;
use chunks::{MemChunks, Store};
use hfcache_base::InodeId;
use hfcache_base::meta::{Attr, Lock, LockKind, NewNode, RenameMode, SetAttr, Timestamp, XattrMode};
use hfcache_base::seam::{Clock, Moment};
use hfcache_fuse::fs::{Fs, FsOptions};
use hfcache_fuse::ops::{
    Caller, Data, Entry, FileSystem, Notify, Opened, Reply, Row, WriteFlags, XattrFlags,
};
use meta::{Cluster, NodeMeta};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// Time that may run faster than the real one, so that deadlines can be tested.
pub struct FastClock {
    start: Instant,
    factor: u32,
}

#[async_trait]
impl Clock for FastClock {
    fn now(&self) -> Moment {
        Moment(self.start.elapsed() * self.factor)
    }

    fn wall(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Timestamp(since.as_nanos() as i64)
    }

    async fn sleep(&self, d: Duration) {
        tokio::time::sleep(d / self.factor).await;
    }
}

/// What the kernel was told.
#[derive(Default)]
pub struct Told {
    pub attrs: Mutex<Vec<InodeId>>,
    pub data: Mutex<Vec<InodeId>>,
    pub names: AtomicU64,
    pub can_expire_names: AtomicBool,
}

impl Notify for Told {
    fn attr_stale(&self, ino: InodeId) {
        self.attrs.lock().push(ino);
    }

    fn data_stale(&self, ino: InodeId) {
        self.data.lock().push(ino);
    }

    fn names_stale(&self) -> bool {
        self.names.fetch_add(1, Ordering::SeqCst);
        true
    }

    fn can_expire_names(&self) -> bool {
        self.can_expire_names.load(Ordering::SeqCst)
    }

    fn direct_is_coherent(&self) -> bool {
        true
    }
}

/// One node.
pub struct Node {
    pub fs: Arc<Fs>,
    pub meta: Arc<NodeMeta>,
    pub chunks: Arc<MemChunks>,
    pub told: Arc<Told>,
    unique: AtomicU64,
}

/// A cluster and its nodes.
pub struct World {
    pub cluster: Arc<Cluster>,
    pub store: Arc<Store>,
}

impl World {
    pub fn new() -> Self {
        let store = Arc::new(Store::default());
        Self { cluster: Arc::new(Cluster::new(Arc::clone(&store))), store }
    }

    pub fn node(&self) -> Node {
        self.node_with(false, 1)
    }

    pub fn node_with(&self, read_only: bool, speed: u32) -> Node {
        let meta = Arc::new(NodeMeta::new(&self.cluster));
        let chunks = Arc::new(MemChunks::new(&self.store));
        let clock = Arc::new(FastClock { start: Instant::now(), factor: speed });
        meta.set_clock(clock.clone());
        let options =
            FsOptions { read_only, atime: false, clock, runtime: tokio::runtime::Handle::current() };
        let fs = Fs::new(options, meta.clone(), chunks.clone());
        let told = Arc::new(Told::default());
        fs.mounted(told.clone());
        Node { fs, meta, chunks, told, unique: AtomicU64::new(1) }
    }
}

pub type Answer<T> = Result<T, i32>;

/// Sends a request and waits for its answer.
pub async fn ask<T: Send + 'static>(send: impl FnOnce(Reply<T>)) -> Answer<T> {
    let (tell, told) = tokio::sync::oneshot::channel();
    send(Reply::new(move |result| {
        let _ = tell.send(result);
    }));
    told.await.expect("every request is answered")
}

pub fn bytes_of(data: Data) -> Vec<u8> {
    match data {
        Data::Bytes(parts) => parts.concat(),
        Data::Local { file, offset, len } => {
            assert!(file.missing(offset..offset + len as u64).is_empty(), "a local answer is present");
            let mut buf = vec![0; len];
            assert_eq!(file.read_at(&mut buf, offset).expect("read local file"), len);
            buf
        }
    }
}

pub const ROOT: InodeId = InodeId::ROOT;

pub fn flock(owner: u64, exclusive: bool) -> Lock {
    Lock { kind: LockKind::Flock, owner, exclusive, start: 0, end: u64::MAX, pid: 7 }
}

impl Node {
    pub fn caller(&self) -> Caller {
        let unique = self.unique.fetch_add(2, Ordering::SeqCst);
        Caller { unique, uid: 1000, gid: 1000, pid: 42, umask: 0 }
    }

    pub async fn lookup(&self, parent: InodeId, name: &str) -> Answer<Entry> {
        ask(|r| self.fs.lookup(self.caller(), parent, name.as_bytes(), r)).await
    }

    pub async fn getattr(&self, ino: InodeId) -> Answer<Attr> {
        ask(|r| self.fs.getattr(self.caller(), ino, None, r)).await.map(|e: Entry| e.attr)
    }

    pub async fn create(&self, parent: InodeId, name: &str, flags: i32) -> Answer<(Attr, u64)> {
        self.create_mode(parent, name, flags, 0o644).await.map(|(e, o)| (e.attr, o.handle))
    }

    pub async fn create_mode(
        &self,
        parent: InodeId,
        name: &str,
        flags: i32,
        mode: u32,
    ) -> Answer<(Entry, Opened)> {
        ask(|r| self.fs.create(self.caller(), parent, name.as_bytes(), mode, flags as u32, r)).await
    }

    pub async fn open(&self, ino: InodeId, flags: i32) -> Answer<Opened> {
        ask(|r| self.fs.open(self.caller(), ino, flags as u32, r)).await
    }

    pub async fn read(&self, ino: InodeId, handle: u64, offset: u64, size: u32) -> Answer<Vec<u8>> {
        ask(|r| self.fs.read(self.caller(), ino, handle, offset, size, r)).await.map(bytes_of)
    }

    pub async fn write(&self, ino: InodeId, handle: u64, offset: u64, data: &[u8]) -> Answer<u32> {
        ask(|r| self.fs.write(self.caller(), ino, handle, offset, data, WriteFlags::default(), r)).await
    }

    pub async fn write_all(&self, ino: InodeId, handle: u64, data: &[u8]) {
        for (i, part) in data.chunks(1 << 20).enumerate() {
            let done = self.write(ino, handle, (i as u64) << 20, part).await;
            assert_eq!(done, Ok(part.len() as u32));
        }
    }

    pub async fn flush(&self, ino: InodeId, handle: u64) -> Answer<()> {
        ask(|r| self.fs.flush(self.caller(), ino, handle, 1, r)).await
    }

    pub async fn fsync(&self, ino: InodeId, handle: u64) -> Answer<()> {
        ask(|r| self.fs.fsync(self.caller(), ino, handle, r)).await
    }

    pub async fn release(&self, ino: InodeId, handle: u64) -> Answer<()> {
        ask(|r| self.fs.release(self.caller(), ino, handle, None, r)).await
    }

    /// What close(2) of the last descriptor does.
    pub async fn close(&self, ino: InodeId, handle: u64) -> Answer<()> {
        let flushed = self.flush(ino, handle).await;
        let _ = self.release(ino, handle).await;
        flushed
    }

    pub async fn setattr(&self, ino: InodeId, set: SetAttr) -> Answer<Attr> {
        ask(|r| self.fs.setattr(self.caller(), ino, None, set, r)).await.map(|e: Entry| e.attr)
    }

    pub async fn truncate(&self, ino: InodeId, size: u64) -> Answer<Attr> {
        self.setattr(ino, SetAttr { size: Some(size), ..SetAttr::default() }).await
    }

    pub async fn fallocate(&self, ino: InodeId, handle: u64, offset: u64, len: u64, mode: i32) -> Answer<()> {
        ask(|r| self.fs.fallocate(self.caller(), ino, handle, offset, len, mode as u32, r)).await
    }

    pub async fn make(&self, parent: InodeId, name: &str, node: NewNode, mode: u32) -> Answer<Attr> {
        ask(|r| self.fs.make(self.caller(), parent, name.as_bytes(), node, mode, r))
            .await
            .map(|e: Entry| e.attr)
    }

    pub async fn mkdir(&self, parent: InodeId, name: &str) -> Answer<InodeId> {
        self.make(parent, name, NewNode::Directory, 0o755).await.map(|a| a.ino)
    }

    pub async fn symlink(&self, parent: InodeId, name: &str, target: &str) -> Answer<InodeId> {
        self.make(parent, name, NewNode::Symlink(target.into()), 0o777).await.map(|a| a.ino)
    }

    pub async fn getxattr(&self, ino: InodeId, name: &str) -> Answer<Vec<u8>> {
        ask(|r| self.fs.getxattr(self.caller(), ino, name.as_bytes(), r)).await
    }

    pub async fn listxattr(&self, ino: InodeId) -> Answer<Vec<Vec<u8>>> {
        ask(|r| self.fs.listxattr(self.caller(), ino, r)).await
    }

    pub async fn setxattr(&self, ino: InodeId, name: &str, value: &[u8], mode: XattrMode) -> Answer<()> {
        let flags = XattrFlags { mode, kill_sgid: false };
        ask(|r| self.fs.setxattr(self.caller(), ino, name.as_bytes(), value, flags, r)).await
    }

    pub async fn removexattr(&self, ino: InodeId, name: &str) -> Answer<()> {
        ask(|r| self.fs.removexattr(self.caller(), ino, name.as_bytes(), r)).await
    }

    pub async fn readlink(&self, ino: InodeId) -> Answer<Vec<u8>> {
        ask(|r| self.fs.readlink(self.caller(), ino, r)).await
    }

    pub async fn unlink(&self, parent: InodeId, name: &str) -> Answer<()> {
        ask(|r| self.fs.unlink(self.caller(), parent, name.as_bytes(), r)).await
    }

    pub async fn rmdir(&self, parent: InodeId, name: &str) -> Answer<()> {
        ask(|r| self.fs.rmdir(self.caller(), parent, name.as_bytes(), r)).await
    }

    pub async fn rename(&self, from: (InodeId, &str), to: (InodeId, &str)) -> Answer<()> {
        let mode = RenameMode::Replace;
        let (a, b) = (from.1.as_bytes(), to.1.as_bytes());
        ask(|r| self.fs.rename(self.caller(), from.0, a, to.0, b, mode, r)).await
    }

    pub async fn list(&self, dir: InodeId, size: u32, plus: bool) -> Vec<Row> {
        let mut all: Vec<Row> = Vec::new();
        loop {
            let cookie = all.last().map_or(0, |r| r.cookie);
            let page = ask(|r| self.fs.readdir(self.caller(), dir, 0, cookie, size, plus, r)).await;
            let page: Vec<Row> = page.expect("list directory");
            if page.is_empty() {
                return all;
            }
            all.extend(page);
        }
    }

    pub async fn lock(&self, ino: InodeId, lock: Lock, wait: bool) -> Answer<()> {
        ask(|r| self.fs.lock(self.caller(), ino, 0, lock, wait, r)).await
    }

    pub async fn unlock(&self, ino: InodeId, lock: Lock) -> Answer<()> {
        ask(|r| self.fs.unlock(self.caller(), ino, lock, r)).await
    }

    /// Writes a whole file under a new name.
    pub async fn put(&self, parent: InodeId, name: &str, data: &[u8]) -> InodeId {
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC;
        let (attr, handle) = self.create(parent, name, flags).await.expect("create file");
        self.write_all(attr.ino, handle, data).await;
        self.close(attr.ino, handle).await.expect("close file");
        attr.ino
    }

    /// Reads a whole file by its name.
    pub async fn get(&self, parent: InodeId, name: &str) -> Answer<Vec<u8>> {
        let attr = self.lookup(parent, name).await?.attr;
        let opened = self.open(attr.ino, libc::O_RDONLY).await?;
        let mut all = Vec::new();
        loop {
            let part = self.read(attr.ino, opened.handle, all.len() as u64, 1 << 20).await?;
            if part.is_empty() {
                break;
            }
            all.extend(part);
        }
        self.close(attr.ino, opened.handle).await?;
        Ok(all)
    }
}

/// Bytes that differ everywhere.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut draw = Draw(seed);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend(draw.next().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Random numbers with a seed.
pub struct Draw(pub u64);

impl Draw {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// Waits until something is so.
pub async fn until(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(60), "never so: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
