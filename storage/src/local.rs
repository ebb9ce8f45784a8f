//! The shards of this node: files, index and threads together. Damage is noticed here, whoever reads.

use crate::files::ShardFiles;
use crate::index::{Held, Index};
use crate::pool::IoPool;
use crate::shard::{Header, ShardKey};
use crate::status::Counters;
use bytes::Bytes;
use hfcache_base::seam::{Clock, Space};
use hfcache_base::{ChunkId, Error, Kind, Result};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::Notify;

/// See the module.
pub struct LocalShards {
    files: Arc<ShardFiles>,
    /// What is here.
    pub index: Arc<Index>,
    pool: Arc<IoPool>,
    clock: Arc<dyn Clock>,
    counters: Arc<Counters>,
    /// Rung when a shard turns out damaged.
    pub damage: Notify,
    damaged: Mutex<BTreeSet<ShardKey>>,
}

impl LocalShards {
    /// Lists what is there.
    ///
    /// # Errors
    /// What the disks say.
    pub fn open(
        files: ShardFiles,
        pool: Arc<IoPool>,
        clock: Arc<dyn Clock>,
        counters: Arc<Counters>,
    ) -> Result<Self> {
        let scan = files.scan()?;
        let index = Index::default();
        for (key, disk) in scan.shards {
            let held = Held { disk, len: 0, since: clock.now(), damaged: false };
            if let Some(old) = index.insert(key, held) {
                // A crash between the two halves of a move from a full disk to another; both are whole.
                tracing::warn!(shard = %key, "the same shard is on two disks; one is removed");
                files.remove(old.disk, key)?;
            }
        }
        if scan.strangers > 0 {
            tracing::warn!(files = scan.strangers, "the shard directories hold files that are no shards");
        }
        counters.strangers.store(scan.strangers, Ordering::Relaxed);
        let (files, index) = (Arc::new(files), Arc::new(index));
        Ok(Self { files, index, pool, clock, counters, damage: Notify::new(), damaged: Mutex::default() })
    }

    /// Stores a shard, synced.
    ///
    /// # Errors
    /// [`Kind::NoSpace`] and whatever the disks say.
    pub async fn put(&self, header: Header, parts: Vec<Bytes>) -> Result<()> {
        let (files, index, since) = (self.files.clone(), self.index.clone(), self.clock.now());
        self.pool
            .run(move || {
                let disk = files.write(&header, &parts)?;
                // On the thread that wrote, so that a caller who gives up leaves no unknown file.
                let held = Held { disk, len: header.shard_len(), since, damaged: false };
                match index.insert(header.key, held) {
                    Some(old) if old.disk != disk => files.remove(old.disk, header.key),
                    _ => Ok(()),
                }
            })
            .await
    }

    /// Reads cells, verified.
    ///
    /// # Errors
    /// [`Kind::NotFound`]; [`Kind::Corrupt`], which is also counted, logged and queued for repair.
    pub async fn get(&self, key: ShardKey, first: u32, count: u32) -> Result<(Header, Bytes)> {
        let held =
            self.index.get(key).ok_or_else(|| Error::new(Kind::NotFound, format!("no shard {key} here")))?;
        let files = self.files.clone();
        let read = self.pool.run(move || files.read(held.disk, key, first, count)).await;
        match read {
            Ok((header, data)) => Ok((header, data.into())),
            Err(e) => {
                // Gone or moved to another disk while it was read, or a fair refusal: no damage.
                let same = self.index.get(key).is_some_and(|now| now.disk == held.disk);
                let damage = matches!(e.kind(), Kind::Corrupt | Kind::Io | Kind::NotFound);
                if same && damage {
                    self.mark_damaged(key, &e);
                }
                Err(e)
            }
        }
    }

    fn mark_damaged(&self, key: ShardKey, why: &Error) {
        let mut fresh = false;
        self.index.update(key, |held| fresh = !std::mem::replace(&mut held.damaged, true));
        if fresh {
            Counters::count(&self.counters.corrupt);
            tracing::error!(shard = %key, "damaged shard, to be rebuilt: {why}");
            self.damaged.lock().insert(key);
            self.damage.notify_one();
        }
    }

    /// Shards found damaged since the last call.
    pub fn take_damaged(&self) -> BTreeSet<ShardKey> {
        std::mem::take(&mut *self.damaged.lock())
    }

    /// Removes a shard.
    ///
    /// # Errors
    /// What the disk says; the shard then stays in the index.
    pub async fn remove(&self, key: ShardKey) -> Result<()> {
        let (files, index) = (self.files.clone(), self.index.clone());
        self.pool
            .run(move || {
                let Some(held) = index.remove(key) else { return Ok(()) };
                let removed = files.remove(held.disk, key);
                if removed.is_err() {
                    index.insert(key, held);
                }
                removed
            })
            .await
    }

    /// Removes all shards of a chunk; says how many.
    ///
    /// # Errors
    /// What the disk says.
    pub async fn remove_chunk(&self, chunk: ChunkId) -> Result<u64> {
        let all = self.index.of_chunk(chunk);
        for (key, _) in &all {
            self.remove(*key).await?;
        }
        Ok(all.len() as u64)
    }

    /// Bytes of the disks.
    ///
    /// # Errors
    /// If no thread is left to ask them.
    pub async fn space(&self) -> Result<Space> {
        let files = self.files.clone();
        self.pool.run(move || Ok(files.space())).await
    }
}
