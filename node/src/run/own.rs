//! What this node knows of itself, for the others.

use crate::facts::{Facts, NodeFacts, ShardFacts};
use hfcache_base::Epoch;
use hfcache_base::seam::{Clock, Meta, Moment, Space};
use hfcache_storage::Store;
use parking_lot::Mutex;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How often the disks are asked how full they are.
const LOOK_EVERY: Duration = Duration::from_secs(5);

pub(super) struct Own {
    pub(super) meta: Arc<dyn Meta>,
    pub(super) store: Arc<Store>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) storage: bool,
    pub(super) mount: PathBuf,
    pub(super) mounted: AtomicBool,
    pub(super) started: Moment,
    pub(super) space: Mutex<Space>,
}

impl Own {
    /// Keeps [`Own::space`] fresh.
    pub(super) async fn watch_disks(self: Arc<Self>) {
        loop {
            match self.store.capacity().await {
                Ok(space) => *self.space.lock() = space,
                Err(e) => tracing::debug!(error = %e, "look at the disks"),
            }
            self.clock.sleep(LOOK_EVERY).await;
        }
    }
}

impl Facts for Own {
    fn facts(&self) -> NodeFacts {
        let raft = self.meta.status();
        let space = *self.space.lock();
        let shards = self.storage.then(|| {
            let r = self.store.redundancy();
            ShardFacts {
                held: r.shards,
                bytes: r.bytes,
                missing: r.missing,
                surplus: r.surplus,
                checked: r.passes > 0 && r.idle,
                epoch: Epoch(r.epoch),
                damaged: r.corrupt_found,
                rebuilt: r.rebuilt,
            }
        });
        NodeFacts {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            uptime_seconds: self.clock.now().since(self.started).as_secs(),
            mount: self.mount.clone(),
            mounted: self.mounted.load(Ordering::Relaxed),
            session: raft.session,
            leased: raft.leased,
            applied: raft.applied,
            wall: self.clock.wall(),
            capacity: space.total,
            free: space.free,
            shards,
        }
    }
}
