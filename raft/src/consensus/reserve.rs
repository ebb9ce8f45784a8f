//! Chunk ids this node may use: taken in batches, and filled up before they run out.

use crate::consensus::propose::Proposer;
use hfcache_base::limits::CHUNK_ID_BATCH;
use hfcache_base::meta::{Op, Reply};
use hfcache_base::{ChunkId, Error, Kind, Result};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Mutex as AsyncMutex;

/// Fewer than this, and the next batch is asked for.
const LOW: u64 = CHUNK_ID_BATCH as u64 / 4;

/// See the module.
pub struct Reserve {
    proposer: Arc<Proposer>,
    ids: Mutex<VecDeque<Range<u64>>>,
    /// Held by the one who asks while others wait.
    asking: AsyncMutex<()>,
    /// A batch is being asked for in the background.
    refilling: AtomicBool,
}

impl Reserve {
    /// An empty reserve.
    pub fn new(proposer: Arc<Proposer>) -> Arc<Self> {
        Arc::new(Self {
            proposer,
            ids: Mutex::default(),
            asking: AsyncMutex::default(),
            refilling: AtomicBool::new(false),
        })
    }

    /// A fresh id.
    ///
    /// # Errors
    /// As a proposal.
    pub async fn take(self: &Arc<Self>) -> Result<ChunkId> {
        loop {
            let (id, left) = self.pop();
            if left < LOW && id.is_some() {
                self.refill_in_background();
            }
            if let Some(id) = id {
                return Ok(id);
            }
            let _asking = self.asking.lock().await;
            if self.left() == 0 {
                self.refill().await?;
            }
        }
    }

    fn pop(&self) -> (Option<ChunkId>, u64) {
        let mut ids = self.ids.lock();
        let mut id = None;
        while let Some(first) = ids.front_mut() {
            id = first.next();
            if id.is_some() {
                break;
            }
            ids.pop_front();
        }
        (id.map(ChunkId), ids.iter().map(|r| r.end - r.start).sum())
    }

    fn left(&self) -> u64 {
        self.ids.lock().iter().map(|r| r.end - r.start).sum()
    }

    async fn refill(&self) -> Result<()> {
        match self.proposer.commit(Op::AllocateChunks { count: CHUNK_ID_BATCH }).await? {
            Reply::Chunks { first, count } => {
                self.ids.lock().push_back(first.0..first.0 + u64::from(count));
                Ok(())
            }
            other => Err(Error::new(Kind::Internal, format!("chunk ids answered with {other:?}"))),
        }
    }

    fn refill_in_background(self: &Arc<Self>) {
        if self.refilling.swap(true, Ordering::AcqRel) {
            return;
        }
        let this = self.clone();
        tokio::spawn(async move {
            if let Err(e) = this.refill().await {
                tracing::warn!(error = %e, "reserve chunk ids");
            }
            this.refilling.store(false, Ordering::Release);
        });
    }
}
