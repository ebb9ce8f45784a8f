//! The parts of a node, in the order in which they start.

use super::own::Own;
use super::room::Room;
use super::tree::Tree;
use crate::admin::server;
use crate::config::{Atime, Config};
use crate::control::{Admission, Control};
use crate::data::DataDir;
use crate::facts::FactsService;
use crate::guard::{self, Guard};
use crate::place::{self, Place};
use crate::registry::{self, Registered};
use crate::status::Sources;
use crate::stop::Stop;
use crate::world::{RealClock, RealRng};
use crate::{found, notify};
use anyhow::{Context, Result, bail};
use hfcache_base::meta::{Applied, Change, FileKind, Op};
use hfcache_base::seam::{ChangeSink, Chunks, Clock, Health, Meta, Net, Rng, ServiceId, Space};
use hfcache_base::{InodeId, Kind, NodeId};
use hfcache_fuse::export::{Export, ExportOptions, Pace};
use hfcache_fuse::fs::{Fs, FsOptions};
use hfcache_fuse::kernel::{Mount, MountOptions};
use hfcache_fuse::ops::FileSystem;
use hfcache_net::identity::next_generation;
use hfcache_net::{Identity, NetConfig, Network};
use hfcache_raft::consensus::node::{Consensus, Failure, OpenOptions};
use hfcache_storage::engine::RealDisk;
use hfcache_storage::{Store, StoreOptions};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tracing::{info, warn};

/// How long one attempt to hear of a quorum lasts.
const QUORUM_PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked whether a node that lost its session can reach the cluster again.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long a removed node may still talk, so that one that leaves by itself hears the answer and ends as
/// wished.
const REMOVAL_GRACE: Duration = Duration::from_secs(2);

/// See the module. What has not started is `None`.
#[derive(Default)]
pub(super) struct Parts {
    net: Option<Arc<Network>>,
    consensus: Option<Arc<Consensus>>,
    store: Option<Arc<Store>>,
    tree: Tree,
    registered: Option<Registered>,
    tasks: JoinSet<()>,
}

impl Parts {
    /// Starts everything; returns when the mount is usable.
    pub(super) async fn start(
        &mut self,
        data: &DataDir,
        config: Config,
        identity: Identity,
        stop: &Stop,
    ) -> Result<()> {
        let clock: Arc<dyn Clock> = Arc::new(RealClock);
        let rng: Arc<dyn Rng> = Arc::new(RealRng::default());
        let me = identity.node();
        info!(node = %me, name = config.name, cluster = %identity.cluster(), version = env!("CARGO_PKG_VERSION"), "start");

        let network = Network::start(
            identity.clone(),
            NetConfig {
                listen: config.listen,
                advertise: None,
                name: config.name.clone(),
                version: env!("CARGO_PKG_VERSION").into(),
                generation: next_generation(&data.identity())?,
                bulk: true,
            },
        )
        .await?;
        self.net = Some(network.clone());
        network.hint_members(found::load_members(data)?);
        let net: Arc<dyn Net> = network.clone();

        let options = OpenOptions::new(data.raft(), me, net.clone(), clock.clone(), rng.clone());
        let consensus = Consensus::open(options).await.map_err(|e| {
            let damaged =
                !matches!(e.kind(), Kind::Busy | Kind::Version | Kind::NoSpace | Kind::NotPermitted);
            let help =
                if damaged { format!(".\nIf it is damaged: {}", data.way_back()) } else { String::new() };
            anyhow::anyhow!("{e:#}{help}").context("open the namespace")
        })?;
        data.note_ran()?;
        self.consensus = Some(consensus.clone());
        let meta: Arc<dyn Meta> = consensus.clone();
        let leaving = Arc::default();
        self.follow_map(me, &meta, &net, stop);
        self.watch_consensus(&consensus, &meta, &net, stop);

        let mut options = StoreOptions::new(
            data.path().into(),
            Arc::new(RealDisk),
            net.clone(),
            clock.clone(),
            rng.clone(),
        );
        options.storage = config.storage;
        options.disks = config.disks.iter().map(|d| data.path().join(d)).collect();
        let store = Store::open(options).await.context("open chunk store")?;
        self.store = Some(store.clone());

        let own = Arc::new(Own {
            meta: meta.clone(),
            store: store.clone(),
            clock: clock.clone(),
            storage: config.storage,
            mount: config.mount.point.clone(),
            mounted: AtomicBool::new(false),
            started: clock.now(),
            space: Mutex::new(Space::default()),
        });
        self.tasks.spawn(own.clone().watch_disks());
        net.serve(ServiceId::Status, Arc::new(FactsService(own.clone())));
        let space = {
            let store = store.clone();
            Arc::new(move || store.space())
        };
        let cluster = identity.cluster().to_string();
        let sources = Arc::new(Sources::new(cluster, meta.clone(), net.clone(), own.clone(), space));
        let control = Control {
            sources,
            identity: Arc::new(identity.clone()),
            clock: clock.clone(),
            stop: stop.clone(),
            leaving,
            tree: self.tree.clone(),
            data: data.clone(),
            place: Place::new(&config.mount.point, &config.mount.subdir),
        };
        let socket = server::bind(data.path())?;
        self.tasks.spawn(async move {
            if let Err(e) = server::serve(socket, Arc::new(control)).await {
                warn!(error = format!("{e:#}"), "serve admin socket");
            }
        });

        if data.first_token().exists() {
            found_cluster(&consensus, data, &config, &identity).await?;
        }
        wait_for_cluster(&consensus, &meta).await?;
        store.attach(&meta);
        network.serve_joins(Arc::new(Admission { meta: meta.clone(), clock: clock.clone() }));
        announce(&meta, &store, me, &config).await;
        if let Some(retention) = found::load_first_trash(data)? {
            meta.commit(Op::SetTrash { retention }).await.context("set for how long the trash is kept")?;
            std::fs::remove_file(data.first_trash()).context("remove first-trash")?;
        }

        if config.storage {
            let (meta, store, clock) = (meta.clone(), store.clone(), clock.clone());
            let room = Room { meta, store, clock, with_hot: config.disks.is_empty() };
            self.tasks.spawn(room.watch());
        }

        let chunks: Arc<dyn Chunks> = store.clone();
        self.mount(data, &config, &meta, chunks, &clock, stop).await?;
        own.mounted.store(true, Ordering::Relaxed);
        self.registered = Some(registry::register(&registry::Entry {
            pid: std::process::id(),
            data: data.path().into(),
            mount: config.mount.point.clone(),
            name: config.name.clone(),
        }));
        info!(mount = %config.mount.point.display(), listen = %config.listen, "ready");
        notify::say("READY=1");
        Ok(())
    }

    /// Tells the network where the members are, whenever that changes; a node that is none any more ends.
    fn follow_map(&mut self, me: NodeId, meta: &Arc<dyn Meta>, net: &Arc<dyn Net>, stop: &Stop) {
        let changed = Arc::new(Notify::new());
        meta.subscribe(Arc::new(MapSink(changed.clone())));
        let (meta, net, stop) = (meta.clone(), net.clone(), stop.clone());
        self.tasks.spawn(async move {
            let mut known: BTreeMap<NodeId, SocketAddr> = BTreeMap::new();
            loop {
                let now: BTreeMap<_, _> = meta.map().nodes.values().map(|n| (n.id, n.addr)).collect();
                // A new node has no map until it hears of the leader's.
                if now.is_empty() {
                    changed.notified().await;
                    continue;
                }
                let gone: Vec<NodeId> = known.keys().filter(|n| !now.contains_key(n)).copied().collect();
                if gone.is_empty() {
                    net.set_members(now.iter().map(|(n, a)| (*n, *a)).collect());
                    known = now;
                    changed.notified().await;
                    continue;
                }
                // Who left by itself still has to hear that it was heard.
                known.extend(now);
                net.set_members(known.iter().map(|(n, a)| (*n, *a)).collect());
                tokio::time::sleep(REMOVAL_GRACE).await;
                if gone.contains(&me) {
                    stop.broken("this node was removed from its cluster");
                }
                for node in gone {
                    known.remove(&node);
                }
            }
        });
    }

    /// What to do when the namespace cannot go on. A lost session is no damage: the node starts afresh, as
    /// soon as it can reach the others. Until then the mount stays and answers with errors, because without
    /// it programs would write into the empty directory below.
    fn watch_consensus(
        &mut self,
        consensus: &Arc<Consensus>,
        meta: &Arc<dyn Meta>,
        net: &Arc<dyn Net>,
        stop: &Stop,
    ) {
        let mut failure = consensus.failure();
        let (meta, net, stop, tree) = (meta.clone(), net.clone(), stop.clone(), self.tree.clone());
        self.tasks.spawn(async move {
            let Ok(failure) = failure.wait_for(Option::is_some).await.map(|f| f.clone()) else { return };
            match failure {
                None => {}
                // Given back by this node itself, which ends.
                Some(Failure::SessionLost) if tree.ending() => {}
                Some(Failure::Raft(why)) => stop.broken(format!("Raft has failed: {why}")),
                Some(Failure::SessionLost) => {
                    warn!("this node's session has ended: all calls fail until the cluster can be reached");
                    let me = net.me();
                    while !reaches_majority(meta.as_ref(), net.as_ref(), me) {
                        tokio::time::sleep(LOOK_EVERY).await;
                    }
                    stop.restart("its session has ended, and the cluster can be reached again");
                }
            }
        });
    }

    async fn mount(
        &mut self,
        data: &DataDir,
        config: &Config,
        meta: &Arc<dyn Meta>,
        chunks: Arc<dyn Chunks>,
        clock: &Arc<dyn Clock>,
        stop: &Stop,
    ) -> Result<()> {
        let runtime = tokio::runtime::Handle::current();
        let read_only = config.mount.read_only;
        let export = ExportOptions { root: shown_root(meta.as_ref(), config)?, ids: config.mount.ids()? };
        let atime = config.mount.atime == Atime::Relatime;
        let options = FsOptions { read_only, atime, clock: clock.clone(), runtime: runtime.clone() };
        let fs = Fs::new(options, meta.clone(), chunks);
        let mut options = MountOptions::new(&config.mount.point);
        options.allow_other = config.mount.allow_other;
        options.read_only = read_only;
        options.kernel_checks = Export::kernel_checks(&export);
        options.runtime = Some(runtime.clone());
        options.gate = Some(Pace::new(meta.clone(), clock.clone(), export.ids.clone()));
        let serving: Arc<dyn FileSystem> = match export.is_plain() {
            true => fs.clone(),
            false => Export::new(export, fs.clone(), meta.clone(), runtime),
        };
        let data = data.clone();
        let place = Place::new(&config.mount.point, &config.mount.subdir);
        let ahead = fs.clone();
        let mount = move || -> Result<_> {
            let _one = guard::lock(&data)?;
            let mount = Mount::start(options, serving)?;
            let guard =
                Guard::start(&data, mount.point(), place, move |dir, listed| ahead.listed(dir, listed));
            let guard = guard.inspect_err(|e| {
                warn!(error = format!("{e:#}"), "without a guard a dead mount stays if this node is killed");
            });
            Ok((Arc::new(mount), guard.ok()))
        };
        let (mount, guard) = tokio::task::spawn_blocking(mount).await.context("mount")??;
        if let Some(guard) = &guard {
            fs.look_ahead(guard.lister());
        }
        let mut ended = mount.watch();
        self.tree.put(fs, mount, guard);
        let (tree, stop, point) = (self.tree.clone(), stop.clone(), config.mount.point.clone());
        self.tasks.spawn(async move {
            // Whatever ended it, also the loss of its sender: nothing is served any more.
            let _ = ended.wait_for(|over| *over).await;
            if !tree.ending() {
                stop.broken(format!("{} was unmounted by somebody else", point.display()));
            }
        });
        Ok(())
    }

    /// Stops what has started, last things first.
    pub(super) async fn stop(&mut self) -> Result<()> {
        self.registered = None;
        let saved = self.tree.take_down().await;
        if let Some(store) = &self.store {
            store.shutdown().await;
        }
        let mut closed = Ok(());
        if let Some(consensus) = &self.consensus {
            closed = consensus.shutdown().await;
        }
        if let Some(net) = &self.net {
            net.shutdown().await;
        }
        self.tasks.shutdown().await;
        saved?;
        closed.context("close the namespace")
    }
}

/// The directory that this node's mount shows.
fn shown_root(meta: &dyn Meta, config: &Config) -> Result<InodeId> {
    let subdir = &config.mount.subdir;
    let names = place::names(subdir).unwrap_or_default();
    let shown = subdir.display();
    match place::walk(meta.read_stale().as_ref(), &names) {
        Ok(attr) if attr.kind == FileKind::Directory => Ok(attr.ino),
        Ok(_) => bail!("mount.subdir = {shown} is no directory of the tree"),
        Err(e) if matches!(e.kind(), Kind::NotFound | Kind::NotDirectory) => bail!(
            "mount.subdir = {shown} is not in the tree: make that directory in the mount of another node, or take \
             the key out of hfcache.toml"
        ),
        Err(e) => Err(e).context("look for mount.subdir"),
    }
}

/// Wakes whoever follows the map.
struct MapSink(Arc<Notify>);

impl ChangeSink for MapSink {
    fn applied(&self, batch: &[Applied]) {
        if batch.iter().flat_map(|a| &a.changes).any(|c| matches!(c, Change::Map)) {
            self.0.notify_one();
        }
    }

    fn replaced(&self) {
        self.0.notify_one();
    }
}

/// Whether this node hears of so many voters that it can have a leader.
fn reaches_majority(meta: &dyn Meta, net: &dyn Net, me: NodeId) -> bool {
    let voters = meta.status().voters;
    let heard = voters.iter().filter(|v| **v == me || net.health(**v) == Health::Up).count();
    heard > voters.len() / 2
}

/// The first start of a cluster's first node; repeated after a crash until the first token is known.
async fn found_cluster(
    consensus: &Arc<Consensus>,
    data: &DataDir,
    config: &Config,
    identity: &Identity,
) -> Result<()> {
    let add = Op::AddNode {
        name: config.name.clone(),
        addr: config.listen,
        domain: config.domain.clone(),
        storage: config.storage,
        key: identity.key().hash(),
        token: None,
    };
    if consensus.had_state() {
        consensus.commit_for_cluster(add).await.context("found cluster")?;
    } else {
        consensus.initialize(add).await?;
    }
    if let Some(token) = found::load_first_token(data)? {
        consensus.commit_for_cluster(Op::CreateToken(token)).await.context("create the first token")?;
    }
    std::fs::remove_file(data.first_token())
        .with_context(|| format!("remove {}", data.first_token().display()))?;
    info!("cluster founded");
    Ok(())
}

/// Waits until this node has a session and may read, however long the others take.
async fn wait_for_cluster(consensus: &Arc<Consensus>, meta: &Arc<dyn Meta>) -> Result<()> {
    match consensus.open_session().await {
        Ok(_) => {}
        Err(e) if e.kind() == Kind::NotFound => bail!(
            "this node is no member of its cluster any more: it left, or was removed.\n\
             To bring the machine back, join with a new token and a new, empty data directory."
        ),
        Err(e) => return Err(e.into()),
    }
    loop {
        match meta.read_point(QUORUM_PATIENCE).await {
            Ok(()) => return Ok(()),
            Err(e) if e.kind().is_transient() => warn!(error = %e, "wait for a quorum"),
            Err(e) => return Err(e).context("read the namespace"),
        }
    }
}

/// Tells the cluster what has changed of this node since it ran last.
async fn announce(meta: &Arc<dyn Meta>, store: &Store, me: NodeId, config: &Config) {
    let capacity = match store.capacity().await {
        Ok(space) => space.total,
        Err(e) => {
            warn!(error = %e, "look at the disks");
            return;
        }
    };
    let Some(known) = meta.map().nodes.get(&me).cloned() else { return };
    let addr = (known.addr != config.listen).then_some(config.listen);
    // What other programs write and delete on the same disks is no news.
    let capacity = (known.capacity.abs_diff(capacity) > known.capacity / 50).then_some(capacity);
    if addr.is_none() && capacity.is_none() {
        return;
    }
    if let Err(e) = meta.commit(Op::UpdateNode { id: me, addr, capacity, state: None }).await {
        warn!(error = %e, "tell the cluster of this node's address and disks");
    }
}
