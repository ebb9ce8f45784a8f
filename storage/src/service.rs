//! What nodes say to each other about shards, and the side that answers.

use crate::local::LocalShards;
use crate::shard::{CELLS_MAX, Header, ShardKey};
use crate::status::Redundancy;
use async_trait::async_trait;
use bytes::Bytes;
use hfcache_base::limits::CELL;
use hfcache_base::seam::{Answer, Meta, Service};
use hfcache_base::{ChunkId, Epoch, Error, Kind, NodeId, Result, wire};
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Most keys or chunks in one request.
pub const LIST_MAX: usize = 4_096;

/// A request. Enums grow at the end only.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    /// Store this shard; its cells are the body. Answered when it is synced.
    Put(Header),
    /// Read cells; they are the body of the answer.
    Get {
        /// Of this shard.
        key: ShardKey,
        /// The first.
        first: u32,
        /// How many.
        count: u32,
    },
    /// Which of these are here, whole.
    Has(Vec<ShardKey>),
    /// These chunks will never be part of a file.
    Drop(Vec<ChunkId>),
    /// Shards here after a key, in order.
    List {
        /// From the start without.
        after: Option<ShardKey>,
        /// At most [`LIST_MAX`].
        limit: u32,
    },
    /// How well data is protected as far as this node knows.
    Status,
    /// Like `Has`, by someone who will delete shards if the answer is yes.
    Confirm {
        /// The map that the asker decides by; on another one there is no answer.
        epoch: Epoch,
        /// Which.
        keys: Vec<ShardKey>,
    },
}

/// An answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Reply {
    /// To `Put`.
    Stored,
    /// To `Get`.
    Cells {
        /// Length of the whole chunk.
        chunk_len: u32,
        /// Checksums of the cells in the body.
        crcs: Vec<u32>,
    },
    /// To `Has` and `Confirm`, in the order of the request.
    Has(Vec<bool>),
    /// To `Drop`: how many shards went.
    Dropped(u64),
    /// To `List`: shards and their lengths, 0 where not known.
    List(Vec<(ShardKey, u32)>),
    /// To `Status`.
    Status(Box<Redundancy>),
}

/// Whether a body is the cells that these checksums belong to.
pub fn verify(cells: &[u8], crcs: &[u32]) -> bool {
    cells.len().div_ceil(CELL as usize) == crcs.len()
        && cells.chunks(CELL as usize).zip(crcs).all(|(cell, crc)| crc32c::crc32c(cell) == *crc)
}

/// Answers calls to the shard service.
pub struct ShardService {
    local: Arc<LocalShards>,
    meta: Arc<RwLock<Option<Arc<dyn Meta>>>>,
    status: Box<dyn Fn() -> Redundancy + Send + Sync>,
}

impl ShardService {
    /// Serves these shards.
    pub fn new(
        local: Arc<LocalShards>,
        meta: Arc<RwLock<Option<Arc<dyn Meta>>>>,
        status: impl Fn() -> Redundancy + Send + Sync + 'static,
    ) -> Self {
        Self { local, meta, status: Box::new(status) }
    }

    fn meta(&self) -> Result<Arc<dyn Meta>> {
        self.meta.read().clone().ok_or_else(|| Error::new(Kind::Unavailable, "still starting"))
    }

    /// The chunks of a list that no file refers to as far as this node knows.
    fn unused(&self, chunks: Vec<ChunkId>) -> Result<Vec<ChunkId>> {
        let meta = self.meta()?;
        let view = meta.read_stale();
        let mut unused = Vec::new();
        for chunk in chunks {
            if view.chunk(chunk)?.is_none() {
                unused.push(chunk);
            }
        }
        Ok(unused)
    }

    async fn answer(&self, request: Request, body: Bytes) -> Result<(Reply, Bytes)> {
        let too_long = |n: usize| Error::new(Kind::Protocol, format!("{n} entries in one request"));
        let reply = match request {
            Request::Put(header) => {
                header.check().map_err(|why| Error::new(Kind::Protocol, why))?;
                if body.len() != header.shard_len() as usize || !verify(&body, &header.crcs) {
                    return Err(Error::new(Kind::Protocol, "the shard's bytes fail their checksums"));
                }
                self.local.put(header, vec![body]).await?;
                Reply::Stored
            }
            Request::Get { key, first, count } => {
                if count as usize > CELLS_MAX {
                    return Err(too_long(count as usize));
                }
                let (header, cells) = self.local.get(key, first, count).await?;
                let crcs = header.crcs.iter().skip(first as usize).take(count as usize).copied().collect();
                return Ok((Reply::Cells { chunk_len: header.chunk_len, crcs }, cells));
            }
            Request::Has(keys) if keys.len() <= LIST_MAX => {
                Reply::Has(keys.into_iter().map(|key| self.local.index.has(key)).collect())
            }
            Request::Drop(chunks) if chunks.len() <= LIST_MAX => {
                let mut dropped = 0;
                for chunk in self.unused(chunks)? {
                    dropped += self.local.remove_chunk(chunk).await?;
                }
                Reply::Dropped(dropped)
            }
            Request::Confirm { epoch, keys } if keys.len() <= LIST_MAX => {
                let meta = self.meta()?;
                Reply::Has(self.local.confirm(&keys, || meta.map().epoch == epoch)?)
            }
            Request::Confirm { keys, .. } => return Err(too_long(keys.len())),
            Request::Has(keys) => return Err(too_long(keys.len())),
            Request::Drop(chunks) => return Err(too_long(chunks.len())),
            Request::List { after, limit } => {
                let page = self.local.index.page(after, (limit as usize).min(LIST_MAX));
                Reply::List(page.into_iter().map(|(key, held)| (key, held.len)).collect())
            }
            Request::Status => Reply::Status(Box::new((self.status)())),
        };
        Ok((reply, Bytes::new()))
    }
}

#[async_trait]
impl Service for ShardService {
    async fn serve(&self, from: NodeId, head: Bytes, body: Bytes) -> Result<Answer> {
        let request = wire::decode(&head).map_err(|e| e.context(format!("read request of {from}")))?;
        let (reply, body) = self.answer(request, body).await?;
        Ok(Answer { head: wire::encode(&reply).into(), body })
    }
}
