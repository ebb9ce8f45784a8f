//! The chunk store of one node: wires the parts together and is what the mount sees.

use crate::fetch::Fetcher;
use crate::files::ShardFiles;
use crate::hot::{Floors, Hot};
use crate::local::LocalShards;
use crate::pace::Pace;
use crate::peers::Peers;
use crate::pool::IoPool;
use crate::put::Putter;
use crate::service::ShardService;
use crate::status::{Counters, Redundancy};
use crate::upkeep::Upkeep;
use async_trait::async_trait;
use bytes::Bytes;
use hfcache_base::limits::{CHUNK_TARGET, MIB};
use hfcache_base::meta::ChunkRef;
use hfcache_base::seam::{Chunks, Clock, Disk, LocalFile, LocalKey, Meta, Net, Rng, ServiceId, Space};
use hfcache_base::{ChunkId, Error, Kind, Result, Scheme};
use parking_lot::RwLock;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

/// What a store needs.
pub struct StoreOptions {
    /// DATA: hot files go to `hot` in it, shards too unless `disks` names other places.
    pub dir: PathBuf,
    /// Directories for shards, each on a disk of its own; empty for `dir`.
    pub disks: Vec<PathBuf>,
    /// Whether this node holds shards.
    pub storage: bool,
    /// The disk.
    pub disk: Arc<dyn Disk>,
    /// The network.
    pub net: Arc<dyn Net>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness, for jitter.
    pub rng: Arc<dyn Rng>,
    /// Threads for calls that block on disks: so many that read, and so many that write and sync.
    pub threads: usize,
    /// Bytes of each disk that are never filled.
    pub reserve: u64,
    /// Hot copies are evicted when less than this is free.
    pub hot_floor: u64,
    /// Times and bounds of the want/have loop.
    pub pace: Pace,
}

impl StoreOptions {
    /// The usual numbers.
    pub fn new(
        dir: PathBuf,
        disk: Arc<dyn Disk>,
        net: Arc<dyn Net>,
        clock: Arc<dyn Clock>,
        rng: Arc<dyn Rng>,
    ) -> Self {
        Self {
            dir,
            disks: Vec::new(),
            storage: true,
            disk,
            net,
            clock,
            rng,
            threads: 8,
            reserve: 64 * MIB,
            hot_floor: 1_024 * MIB,
            pace: Pace::default(),
        }
    }
}

/// See the module.
pub struct Store {
    peers: Arc<Peers>,
    local: Option<Arc<LocalShards>>,
    putter: Putter,
    fetcher: Arc<Fetcher>,
    hot: Arc<Hot>,
    sync: Arc<Upkeep>,
    counters: Arc<Counters>,
    meta: Arc<RwLock<Option<Arc<dyn Meta>>>>,
    /// What files being written must leave free on the shards' disk, beyond the reserve of the shards.
    staging_floor: u64,
    task: parking_lot::Mutex<Option<tokio::task::JoinHandle<()>>>,
}

impl Store {
    /// Opens the directories, lists the shards, and begins to serve them. Reads and writes of chunks work
    /// after [`Store::attach`].
    ///
    /// # Errors
    /// What the disks say.
    pub async fn open(options: StoreOptions) -> Result<Arc<Self>> {
        let StoreOptions { dir, disks, storage, disk, net, clock, rng, threads, reserve, hot_floor, pace } =
            options;
        let pool = Arc::new(IoPool::new("read", threads, threads * 32)?);
        let writers = Arc::new(IoPool::new("write", threads, threads * 32)?);
        let staging_floor = if disks.is_empty() { reserve } else { 0 };
        let counters = Arc::new(Counters::default());
        let meta: Arc<RwLock<Option<Arc<dyn Meta>>>> = Arc::default();
        let (hot, local) = {
            let (clock, counters) = (clock.clone(), counters.clone());
            let threads = pool.clone();
            let open = move || {
                let floors = Floors { evict: hot_floor.max(2 * reserve), refuse: 2 * reserve };
                let hot = Hot::open(disk.clone(), dir.join("hot"), floors)?;
                if !storage {
                    return Ok((hot, None));
                }
                let roots = if disks.is_empty() { vec![dir] } else { disks };
                let victim = Arc::downgrade(&hot);
                let make_room = Box::new(move |root: &std::path::Path, bytes| {
                    victim.upgrade().is_some_and(|hot| hot.evict_for(root, bytes))
                });
                let files = ShardFiles::open(disk, roots, reserve, make_room)?;
                let local = LocalShards::open(files, threads, writers, clock, counters)?;
                Ok((hot, Some(Arc::new(local))))
            };
            pool.run(open).await?
        };
        let peers = Arc::new(Peers::new(net.clone(), meta.clone(), clock.clone()));
        let fetcher =
            Fetcher::new(peers.clone(), local.clone(), pool.clone(), clock.clone(), counters.clone());
        let fetcher = Arc::new(fetcher);
        let putter = Putter {
            peers: peers.clone(),
            local: local.clone(),
            pool: pool.clone(),
            clock: clock.clone(),
            counters: counters.clone(),
        };
        let sync = Arc::new(Upkeep::new(
            peers.clone(),
            local.clone(),
            fetcher.clone(),
            pool,
            clock,
            rng,
            counters.clone(),
            pace,
        ));
        if let Some(local) = &local {
            let status = sync.clone();
            let service = ShardService::new(local.clone(), meta.clone(), move || status.redundancy());
            net.serve(ServiceId::Shards, Arc::new(service));
        }
        let task = parking_lot::Mutex::default();
        Ok(Arc::new(Self { peers, local, putter, fetcher, hot, sync, counters, meta, staging_floor, task }))
    }

    /// Connects the namespace and starts the want/have loop. Needs a runtime.
    pub fn attach(&self, meta: &Arc<dyn Meta>) {
        *self.meta.write() = Some(meta.clone());
        meta.subscribe(self.sync.clone());
        let sync = self.sync.clone();
        let before = self.task.lock().replace(tokio::spawn(async move { sync.run().await }));
        if let Some(before) = before {
            before.abort();
        }
    }

    /// Stops the want/have loop and lets go of the namespace. What was promised is on the disks already.
    pub async fn shutdown(&self) {
        self.sync.stop();
        let task = self.task.lock().take();
        if let Some(task) = task {
            // It ends by itself, or panicked, which was reported then.
            let _ = task.await;
        }
        *self.meta.write() = None;
    }

    /// How well the data is protected as far as this node knows.
    pub fn redundancy(&self) -> Redundancy {
        self.sync.redundancy()
    }

    /// Events since the start.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Hot copies here and their bytes.
    pub fn hot_usage(&self) -> (u64, u64) {
        self.hot.usage()
    }

    /// Bytes of this node's disks for shards, to be reported to the cluster: what writers can fill or is in
    /// shards already. Zero without storage.
    ///
    /// # Errors
    /// During shutdown.
    pub async fn capacity(&self) -> Result<Space> {
        match &self.local {
            Some(local) => {
                let free = local.space().await?.free.saturating_sub(self.staging_floor);
                Ok(Space { total: free.saturating_add(local.index.counts().bytes), free })
            }
            None => Ok(Space::default()),
        }
    }

    /// Looks for missing and surplus shards now, instead of when the next full pass is due.
    pub fn check_now(&self) {
        self.sync.check_now();
    }

    fn cluster_space(&self) -> Result<Space> {
        let meta = self.peers.meta()?;
        let map = meta.map();
        let (mut nodes, mut raw) = (0usize, 0u64);
        for node in map.storage_nodes() {
            nodes += 1;
            raw = raw.saturating_add(node.capacity);
        }
        let scheme = Scheme::choose(nodes, CHUNK_TARGET);
        let net = |bytes: u64| bytes / u64::from(scheme.total()) * u64::from(scheme.data);
        let used = meta.read_stale().totals()?.bytes;
        let total = net(raw).max(used);
        Ok(Space { total, free: total - used })
    }
}

#[async_trait]
impl Chunks for Store {
    async fn put(&self, id: ChunkId, data: Vec<Bytes>) -> Result<ChunkRef> {
        self.putter.put(id, data).await.map_err(|e| e.context(format!("store chunk {id}")))
    }

    async fn get(&self, chunk: ChunkRef, range: Range<u32>) -> Result<Bytes> {
        self.fetcher.get(chunk, range).await
    }

    fn forget(&self, id: ChunkId) {
        self.sync.forget(id);
    }

    fn local(&self, key: LocalKey, len: u64) -> Result<Arc<dyn LocalFile>> {
        Ok(self.hot.local(key, len)?)
    }

    fn stage(&self) -> Result<Arc<dyn LocalFile>> {
        Ok(self.hot.stage()?)
    }

    fn publish(&self, staged: Arc<dyn LocalFile>, key: LocalKey) {
        self.hot.publish(&staged, key);
    }

    fn space(&self) -> Space {
        self.cluster_space().unwrap_or_else(|e: Error| {
            if e.kind() != Kind::Unavailable {
                tracing::warn!("sum up the cluster's space: {e}");
            }
            Space::default()
        })
    }
}
