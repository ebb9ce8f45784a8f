#![expect(dead_code, clippy::unwrap_used, reason = "each test file uses a part; this is test code")]
//! Several stores in one process: a network in memory with faults, a namespace with just chunks, and disks
//! that can be full. Test code only.

use async_trait::async_trait;
use bytes::Bytes;
use hfcache_base::meta::*;
use hfcache_base::seam::*;
use hfcache_base::*;
use hfcache_storage::{Pace, RealDisk, Redundancy, Store, StoreOptions};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// What goes wrong with calls to a node.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Fault {
    /// Connections are refused.
    pub dead: bool,
    /// Nothing comes back, and after a second the node is suspect: a cut cable.
    pub mute: bool,
    /// Every answer takes this long.
    pub delay: Duration,
    /// A bit of each answer's body is flipped.
    pub flip: bool,
    /// Dies after serving this many more shard writes.
    pub puts_left: Option<u64>,
}

#[derive(Default)]
pub struct World {
    services: Mutex<BTreeMap<(NodeId, u8), Arc<dyn Service>>>,
    faults: Mutex<BTreeMap<NodeId, (Fault, std::time::Duration)>>,
    pub calls: AtomicU64,
    chunks: Mutex<BTreeMap<ChunkId, ChunkRef>>,
    sessions: Mutex<BTreeMap<ChunkId, SessionId>>,
    map: Mutex<SharedMap>,
    sinks: Mutex<BTreeMap<NodeId, Arc<dyn ChangeSink>>>,
}

fn since_start() -> Duration {
    static START: OnceLock<std::time::Instant> = OnceLock::new();
    START.get_or_init(std::time::Instant::now).elapsed()
}

impl World {
    pub fn fault(&self, node: u64, fault: Fault) {
        self.faults.lock().insert(NodeId(node), (fault, since_start()));
    }

    fn faulty(&self, node: NodeId) -> (Fault, Duration) {
        self.faults.lock().get(&node).copied().unwrap_or_default()
    }

    /// What raft's apply would do.
    fn apply(&self, changes: Vec<Change>) {
        let sinks: Vec<_> = self.sinks.lock().values().cloned().collect();
        for sink in sinks {
            sink.applied(&[Applied { session: SessionId(1), changes: changes.clone() }]);
        }
    }

    pub fn commit(&self, chunk: ChunkRef) {
        self.chunks.lock().insert(chunk.id, chunk);
        self.apply(vec![Change::ChunkAdded(chunk)]);
    }

    pub fn free(&self, id: ChunkId) {
        self.chunks.lock().remove(&id);
        self.apply(vec![Change::ChunkFreed(id)]);
    }

    pub fn claim(&self, id: ChunkId, session: Option<SessionId>) {
        match session {
            Some(session) => self.sessions.lock().insert(id, session),
            None => self.sessions.lock().remove(&id),
        };
    }

    pub fn chunk(&self, id: u64) -> ChunkRef {
        self.chunks.lock()[&ChunkId(id)]
    }

    pub fn map(&self) -> SharedMap {
        self.map.lock().clone()
    }

    pub fn change_map(&self, change: impl FnOnce(&mut ClusterMap)) {
        let mut map = ClusterMap::clone(&self.map());
        change(&mut map);
        map.rebuild();
        *self.map.lock() = Arc::new(map);
        self.apply(vec![Change::Map]);
    }
}

struct MemNet {
    me: NodeId,
    world: Arc<World>,
}

#[async_trait]
impl Net for MemNet {
    fn me(&self) -> NodeId {
        self.me
    }

    async fn call(&self, to: NodeId, call: Call, deadline: Duration) -> Result<Answer> {
        self.world.calls.fetch_add(1, Ordering::Relaxed);
        let (fault, _) = self.world.faulty(to);
        if fault.dead || self.world.faulty(self.me).0.dead {
            return Err(Kind::Unavailable.into());
        }
        let silent = || async {
            tokio::time::sleep(deadline).await;
            Err(Error::from(Kind::TimedOut))
        };
        if fault.mute {
            return silent().await;
        }
        let service = self.world.services.lock().get(&(to, call.service as u8)).cloned();
        let Some(service) = service else { return Err(Kind::Unavailable.into()) };
        tokio::time::sleep(fault.delay).await;
        let body = call.body.concat();
        if !body.is_empty()
            && let Some(left) = fault.puts_left
        {
            if left == 0 {
                self.world.fault(to.0, Fault { mute: true, ..Fault::default() });
                return silent().await;
            }
            self.world.fault(to.0, Fault { puts_left: Some(left - 1), ..fault });
        }
        // Served to its end even if the caller gives up, as a real node might.
        let task = tokio::spawn({
            let me = self.me;
            async move { service.serve(me, call.head, body.into()).await }
        });
        let mut answer =
            tokio::time::timeout(deadline, task).await.map_err(|_| Error::from(Kind::TimedOut))?.unwrap()?;
        if self.world.faulty(to).0.mute {
            return silent().await;
        }
        if fault.flip && !answer.body.is_empty() {
            let mut body = answer.body.to_vec();
            let middle = body.len() / 2;
            body[middle] ^= 4;
            answer.body = body.into();
        }
        Ok(answer)
    }

    fn serve(&self, service: ServiceId, by: Arc<dyn Service>) {
        self.world.services.lock().insert((self.me, service as u8), by);
    }

    fn health(&self, node: NodeId) -> Health {
        let (fault, since) = self.world.faulty(node);
        if fault.dead || fault.mute {
            let silent = since_start().saturating_sub(since);
            return if silent > limits::SUSPECT_AFTER { Health::Suspect } else { Health::Up };
        }
        Health::Up
    }

    fn set_members(&self, _: Vec<(NodeId, std::net::SocketAddr)>) {}
}

pub struct RealClock;

#[async_trait]
impl Clock for RealClock {
    fn now(&self) -> Moment {
        Moment(since_start())
    }
    fn wall(&self) -> Timestamp {
        Timestamp(std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as i64)
    }
    async fn sleep(&self, d: Duration) {
        tokio::time::sleep(d).await;
    }
}

pub struct Dice(pub AtomicU64);

impl Rng for Dice {
    fn next_u64(&self) -> u64 {
        placement::mix(self.0.fetch_add(1, Ordering::Relaxed))
    }
}

/// A namespace that knows chunks and nothing else.
struct MemMeta {
    me: NodeId,
    world: Arc<World>,
}

struct MemView<'a>(&'a World);

fn no<T>() -> Result<T> {
    Err(Kind::NotSupported.into())
}

impl View for MemView<'_> {
    fn lookup(&self, _: InodeId, _: &[u8]) -> Result<Attr> {
        no()
    }
    fn attr(&self, _: InodeId) -> Result<Attr> {
        no()
    }
    fn parent(&self, _: InodeId) -> Result<InodeId> {
        no()
    }
    fn readdir(&self, _: InodeId, _: u64, _: usize) -> Result<Vec<DirEntry>> {
        no()
    }
    fn readlink(&self, _: InodeId) -> Result<Vec<u8>> {
        no()
    }
    fn content(&self, _: InodeId) -> Result<(Attr, Content)> {
        no()
    }
    fn chunks(&self, after: ChunkId, limit: usize) -> Result<Vec<ChunkRef>> {
        Ok(self.0.chunks.lock().range(ChunkId(after.0 + 1)..).take(limit).map(|(_, c)| *c).collect())
    }
    fn chunk(&self, id: ChunkId) -> Result<Option<ChunkRef>> {
        Ok(self.0.chunks.lock().get(&id).copied())
    }
    fn chunk_session(&self, id: ChunkId) -> Result<Option<SessionId>> {
        Ok(self.0.sessions.lock().get(&id).copied())
    }
    fn totals(&self) -> Result<Totals> {
        let chunks = self.0.chunks.lock();
        let bytes = chunks.values().map(|c| u64::from(c.len)).sum();
        Ok(Totals { inodes: 0, bytes, chunks: chunks.len() as u64 })
    }
    fn sessions(&self) -> Result<Vec<Session>> {
        no()
    }
    fn tokens(&self) -> Result<Vec<Token>> {
        no()
    }
    fn shares(&self) -> Result<Vec<(InodeId, Share)>> {
        no()
    }
}

#[async_trait]
impl Meta for MemMeta {
    fn read_local(&self) -> Option<(Box<dyn View + '_>, Moment)> {
        Some((self.read_stale(), Moment::default()))
    }
    async fn read_point(&self, _: Duration) -> Result<()> {
        Ok(())
    }
    fn read_stale(&self) -> Box<dyn View + '_> {
        Box::new(MemView(&self.world))
    }
    async fn commit(&self, _: Op) -> Result<Reply> {
        no()
    }
    async fn chunk_id(&self) -> Result<ChunkId> {
        no()
    }
    fn lock_local(&self, _: InodeId, _: Lock) -> Option<Result<()>> {
        None
    }
    async fn lock(&self, _: InodeId, _: Lock, _: bool) -> Result<()> {
        no()
    }
    fn unlock_local(&self, _: InodeId, _: Lock) -> Unlocked {
        Unlocked::Ask
    }
    async fn unlock(&self, _: InodeId, _: Lock) -> Result<()> {
        no()
    }
    async fn lock_test(&self, _: InodeId, _: Lock) -> Result<Option<LockHolder>> {
        no()
    }
    fn lock_held(&self, _: InodeId, _: LockKind, _: u64) -> bool {
        false
    }
    fn map(&self) -> SharedMap {
        self.world.map()
    }
    fn subscribe(&self, sink: Arc<dyn ChangeSink>) {
        self.world.sinks.lock().insert(self.me, sink);
    }
    fn status(&self) -> RaftStatus {
        RaftStatus::default()
    }
}

/// The real disk, until it is said to be full.
#[derive(Default)]
pub struct FullableDisk {
    pub full: AtomicBool,
}

struct FullableFile(Box<dyn DiskFile>, Arc<FullableDisk>);

impl DiskFile for FullableFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.0.read_at(buf, offset)
    }
    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        if self.1.full.load(Ordering::Relaxed) {
            return Err(Kind::NoSpace.into());
        }
        self.0.write_at(data, offset)
    }
    fn write_direct(&self, parts: &[&[u8]], offset: u64) -> Result<()> {
        if self.1.full.load(Ordering::Relaxed) {
            return Err(Kind::NoSpace.into());
        }
        self.0.write_direct(parts, offset)
    }
    fn sync(&self) -> Result<()> {
        self.0.sync()
    }
    fn len(&self) -> Result<u64> {
        self.0.len()
    }
    fn set_len(&self, len: u64) -> Result<()> {
        self.0.set_len(len)
    }
    fn punch(&self, offset: u64, len: u64) -> Result<()> {
        self.0.punch(offset, len)
    }
}

pub struct SharedDisk(pub Arc<FullableDisk>);

impl Disk for SharedDisk {
    fn open(&self, path: &Path, create: bool) -> Result<Box<dyn DiskFile>> {
        Ok(Box::new(FullableFile(RealDisk.open(path, create)?, self.0.clone())))
    }
    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        RealDisk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> Result<()> {
        RealDisk.remove(path)
    }
    fn create_dir(&self, path: &Path) -> Result<()> {
        RealDisk.create_dir(path)
    }
    fn list(&self, path: &Path) -> Result<Vec<PathBuf>> {
        RealDisk.list(path)
    }
    fn sync_dir(&self, path: &Path) -> Result<()> {
        RealDisk.sync_dir(path)
    }
    fn space(&self, path: &Path) -> Result<Space> {
        RealDisk.space(path)
    }
}

/// A directory that is gone at the end.
pub struct TempDir(pub PathBuf);

impl TempDir {
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let shm = std::env::var_os("HFCACHE_TEST_DIR").map_or_else(|| "/dev/shm".into(), PathBuf::from);
        let base = if shm.is_dir() { shm } else { std::env::temp_dir() };
        let dir = base.join(format!(
            "hfcache-store-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        ));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub struct Cluster {
    pub world: Arc<World>,
    pub stores: BTreeMap<u64, Arc<Store>>,
    pub disks: BTreeMap<u64, Arc<FullableDisk>>,
    dir: TempDir,
}

impl Cluster {
    pub async fn new(nodes: u64) -> Self {
        Self::within(TempDir::new(), nodes).await
    }

    /// With all directories in this one.
    pub async fn within(dir: TempDir, nodes: u64) -> Self {
        let mut cluster =
            Self { world: Arc::default(), stores: BTreeMap::new(), disks: BTreeMap::new(), dir };
        for node in 1..=nodes {
            cluster.join(node).await;
        }
        cluster
    }

    pub async fn join(&mut self, node: u64) {
        // First the node, then the map: nobody calls a node that is not there yet.
        self.start(node, true).await;
        self.world.change_map(|map| {
            let id = NodeId(node);
            let member = Node {
                id,
                name: format!("node-{node}"),
                addr: "127.0.0.1:1".parse().unwrap(),
                domain: String::new(),
                storage: true,
                capacity: 1 << 30,
                state: NodeState::Active,
            };
            map.nodes.insert(id, member);
        });
    }

    pub fn dir(&self, node: u64) -> PathBuf {
        self.dir.0.join(node.to_string())
    }

    pub async fn start(&mut self, node: u64, storage: bool) {
        let net = Arc::new(MemNet { me: NodeId(node), world: self.world.clone() });
        let disk = self.disks.entry(node).or_default().clone();
        let mut options = StoreOptions::new(
            self.dir(node),
            Arc::new(SharedDisk(disk)),
            net,
            Arc::new(RealClock),
            Arc::new(Dice(AtomicU64::new(node))),
        );
        options.storage = storage;
        options.threads = 2;
        options.reserve = 1 << 20;
        options.hot_floor = 1 << 20;
        options.pace = Pace {
            retry_min: Duration::from_millis(20),
            retry_max: Duration::from_millis(50),
            grace: Duration::from_millis(100),
            freed_delay: Duration::from_millis(10),
            full_pass: Duration::from_millis(300),
            ..Pace::default()
        };
        self.world.fault(node, Fault::default());
        let store = Store::open(options).await.unwrap();
        let meta: Arc<dyn Meta> = Arc::new(MemMeta { me: NodeId(node), world: self.world.clone() });
        store.attach(&meta);
        self.stores.insert(node, store);
    }

    /// The network as a node sees it.
    pub fn net(&self, node: u64) -> Arc<dyn Net> {
        Arc::new(MemNet { me: NodeId(node), world: self.world.clone() })
    }

    /// As after SIGKILL: nobody answers any more. The files stay.
    pub async fn kill(&mut self, node: u64) {
        self.world.fault(node, Fault { dead: true, ..Fault::default() });
        self.world.sinks.lock().remove(&NodeId(node));
        self.world.services.lock().retain(|(id, _), _| id.0 != node);
        if let Some(store) = self.stores.remove(&node) {
            store.shutdown().await;
        }
    }

    pub async fn put(&self, at: u64, id: u64, len: usize) -> ChunkRef {
        let chunk = self.stores[&at].put(ChunkId(id), pieces(id, len)).await.unwrap();
        self.world.commit(chunk);
        chunk
    }

    /// Reads all of a chunk on a node and compares.
    pub async fn check(&self, at: u64, chunk: ChunkRef) {
        let got = self.stores[&at].get(chunk, 0..chunk.len).await.unwrap();
        assert!(got == bytes(chunk.id.0, chunk.len as usize), "{chunk:?} read on {at}");
    }

    /// Files of shards of a chunk on a node.
    pub fn files(&self, node: u64, id: u64) -> BTreeSet<PathBuf> {
        let dir = self.dir(node).join("shards").join(format!("{:03x}", ClusterMap::partition(ChunkId(id)).0));
        let Ok(entries) = std::fs::read_dir(dir) else { return BTreeSet::new() };
        let prefix = format!("{id:016x}.");
        entries
            .map(|e| e.unwrap().path())
            .filter(|p| p.file_name().unwrap().to_str().unwrap().starts_with(&prefix))
            .collect()
    }

    /// Waits until every store says that it has nothing to do.
    pub async fn settle(&self) {
        for store in self.stores.values() {
            store.check_now();
        }
        self.until("all is where it belongs", |c| {
            c.stores.values().all(|s| {
                let Redundancy { idle, missing, surplus, .. } = s.redundancy();
                idle && missing + surplus == 0
            })
        })
        .await;
    }

    pub async fn until(&self, what: &str, done: impl Fn(&Self) -> bool) {
        for _ in 0..3_000 {
            if done(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let states: Vec<_> = self.stores.iter().map(|(n, s)| (n, s.redundancy())).collect();
        panic!("never: {what}: {states:#?}");
    }
}

pub fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed;
    let mut out = vec![0u8; len];
    for part in out.chunks_mut(8) {
        x = placement::mix(x);
        part.copy_from_slice(&x.to_le_bytes()[..part.len()]);
    }
    out
}

pub fn pieces(seed: u64, len: usize) -> Vec<Bytes> {
    let mut rest = Bytes::from(bytes(seed, len));
    let mut out = Vec::new();
    while !rest.is_empty() {
        let n = rest.len().min(700_001);
        out.push(rest.split_to(n));
    }
    out
}
