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
    /// Threads that read, and threads that write and sync: a slow sync must not hold up reads.
    readers: Arc<IoPool>,
    writers: Arc<IoPool>,
    clock: Arc<dyn Clock>,
    counters: Arc<Counters>,
    /// Rung when a shard turns out damaged.
    pub damage: Notify,
    damaged: Mutex<BTreeSet<ShardKey>>,
    /// See [`LocalShards::confirm`].
    gate: Mutex<()>,
}

impl LocalShards {
    /// Lists what is there.
    ///
    /// # Errors
    /// What the disks say.
    pub fn open(
        files: ShardFiles,
        readers: Arc<IoPool>,
        writers: Arc<IoPool>,
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
        Ok(Self {
            files,
            index,
            readers,
            writers,
            clock,
            counters,
            damage: Notify::new(),
            damaged: Mutex::default(),
            gate: Mutex::default(),
        })
    }

    /// Stores a shard, synced.
    ///
    /// # Errors
    /// [`Kind::NoSpace`] and whatever the disks say.
    pub async fn put(&self, header: Header, parts: Vec<Bytes>) -> Result<()> {
        let (files, index, since) = (self.files.clone(), self.index.clone(), self.clock.now());
        self.writers
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
        let read = self.readers.run(move || files.read(held.disk, key, first, count)).await;
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
        self.writers
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

    /// Which shards are here, said to someone who will delete others because of it. `same_map` tells whether
    /// this node sees the map that the asker decides by; if not, there is no answer.
    ///
    /// Two nodes on different maps could else each rely on the other and both delete. Here an answer and a
    /// [`LocalShards::give_up`] exclude each other, and both hold for one map only: a node that said yes by
    /// a newer map can't go on with a deletion by an older one.
    ///
    /// # Errors
    /// [`Kind::Unavailable`] on another map.
    pub fn confirm(&self, keys: &[ShardKey], same_map: impl FnOnce() -> bool) -> Result<Vec<bool>> {
        let _gate = self.gate.lock();
        if !same_map() {
            return Err(Error::new(Kind::Unavailable, "this node sees another cluster map"));
        }
        Ok(keys.iter().map(|key| self.index.has(*key)).collect())
    }

    /// Removes shards that others have confirmed, if this node still sees the map they were asked by.
    ///
    /// # Errors
    /// As [`LocalShards::remove`]; [`Kind::Unavailable`] on another map.
    pub async fn give_up(&self, keys: &[ShardKey], same_map: impl FnOnce() -> bool) -> Result<()> {
        let taken: Vec<(ShardKey, Held)> = {
            let _gate = self.gate.lock();
            if !same_map() {
                return Err(Error::new(Kind::Unavailable, "the cluster map has changed"));
            }
            keys.iter().filter_map(|key| Some((*key, self.index.remove(*key)?))).collect()
        };
        for (key, held) in taken {
            let files = self.files.clone();
            let removed = self.writers.run(move || files.remove(held.disk, key)).await;
            if removed.is_err() {
                self.index.insert(key, held);
            }
            removed?;
        }
        Ok(())
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
        self.readers.run(move || Ok(files.space())).await
    }
}
