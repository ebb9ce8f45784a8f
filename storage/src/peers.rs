//! Calls to the shard services of other nodes, and what this node thinks of them.

use crate::codec;
use crate::service::{LIST_MAX, Reply, Request, verify};
use crate::shard::{Header, ShardKey};
use bytes::Bytes;
use hfcache_base::limits::BULK_FROM;
use hfcache_base::meta::{ChunkRef, SharedMap};
use hfcache_base::seam::{Call, Clock, Health, Meta, Moment, Net, ServiceId};
use hfcache_base::{ChunkId, Epoch, Error, Kind, NodeId, Result, wire};
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// How long a node that failed a call is avoided, if it was seen alive since this node started.
const AVOID: Duration = Duration::from_secs(2);
/// The same for a node that was never seen.
const AVOID_UNKNOWN: Duration = Duration::from_secs(30);

/// See the module.
pub struct Peers {
    net: Arc<dyn Net>,
    meta: Arc<RwLock<Option<Arc<dyn Meta>>>>,
    clock: Arc<dyn Clock>,
    avoided: Mutex<HashMap<NodeId, Moment>>,
}

impl Peers {
    /// Speaks through `net`; learns of members from `meta` once that is there.
    pub fn new(net: Arc<dyn Net>, meta: Arc<RwLock<Option<Arc<dyn Meta>>>>, clock: Arc<dyn Clock>) -> Self {
        Self { net, meta, clock, avoided: Mutex::default() }
    }

    /// This node.
    pub fn me(&self) -> NodeId {
        self.net.me()
    }

    /// The namespace.
    ///
    /// # Errors
    /// [`Kind::Unavailable`] while the node is still starting.
    pub fn meta(&self) -> Result<Arc<dyn Meta>> {
        self.meta
            .read()
            .clone()
            .ok_or_else(|| Error::new(Kind::Unavailable, "the namespace is not there yet"))
    }

    /// The newest cluster map.
    ///
    /// # Errors
    /// As [`Peers::meta`].
    pub fn map(&self) -> Result<SharedMap> {
        Ok(self.meta()?.map())
    }

    /// Whether a call is likely to be answered.
    pub fn alive(&self, node: NodeId) -> bool {
        if node == self.me() {
            return true;
        }
        let health = self.net.health(node);
        health != Health::Suspect && !self.avoided(node, health)
    }

    /// Like [`Peers::alive`], and was heard of since this node started.
    pub fn seen_up(&self, node: NodeId) -> bool {
        self.alive(node) && (node == self.me() || self.net.health(node) == Health::Up)
    }

    fn avoided(&self, node: NodeId, health: Health) -> bool {
        let mut avoided = self.avoided.lock();
        let Some(&at) = avoided.get(&node) else { return false };
        let span = if health == Health::Unknown { AVOID_UNKNOWN } else { AVOID };
        let still = self.clock.now().since(at) < span;
        if !still {
            avoided.remove(&node);
        }
        still
    }

    async fn call(
        &self,
        to: NodeId,
        request: &Request,
        body: Vec<Bytes>,
        bulk: bool,
        wait: Duration,
    ) -> Result<(Reply, Bytes)> {
        let mut call = Call::new(ServiceId::Shards, wire::encode(request));
        call.body = body;
        call.bulk_answer = bulk;
        match self.net.call(to, call, wait).await {
            Ok(answer) => Ok((wire::decode(&answer.head)?, answer.body)),
            Err(e) => {
                // These may be refused by a node that is well.
                let refused = matches!(request, Request::Confirm { .. } | Request::Drop(_));
                if !refused && matches!(e.kind(), Kind::TimedOut | Kind::Unavailable) {
                    self.avoided.lock().insert(to, self.clock.now());
                }
                Err(e)
            }
        }
    }

    /// Has a node store a shard; returns when it is synced there.
    ///
    /// # Errors
    /// The holder's own, or that it can't be reached.
    pub async fn put(&self, to: NodeId, header: Header, parts: Vec<Bytes>, wait: Duration) -> Result<()> {
        match self.call(to, &Request::Put(header), parts, false, wait).await?.0 {
            Reply::Stored => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Reads cells of a shard and verifies them. The cells come as one piece.
    ///
    /// # Errors
    /// The holder's own, that it can't be reached, or [`Kind::Corrupt`].
    pub async fn get(
        &self,
        from: NodeId,
        chunk: ChunkRef,
        key: ShardKey,
        first: u32,
        count: u32,
        wait: Duration,
    ) -> Result<(Vec<u32>, Bytes)> {
        let len = cells_len(chunk, key, first, count);
        let request = Request::Get { key, first, count };
        match self.call(from, &request, Vec::new(), len >= BULK_FROM, wait).await? {
            (Reply::Cells { chunk_len, crcs }, body) => {
                if chunk_len != chunk.len || body.len() != len || !verify(&body, &crcs) {
                    return Err(Error::new(Kind::Corrupt, format!("{from} sent bad cells of shard {key}")));
                }
                Ok((crcs, body))
            }
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Which of these shards a node has. With an epoch, shards will be deleted because of the answer, and
    /// there is one only from a node that sees the same map.
    ///
    /// # Errors
    /// As [`Peers::put`].
    pub async fn has(
        &self,
        node: NodeId,
        keys: &[ShardKey],
        by: Option<Epoch>,
        wait: Duration,
    ) -> Result<Vec<bool>> {
        let mut all = Vec::with_capacity(keys.len());
        for part in keys.chunks(LIST_MAX) {
            let keys = part.to_vec();
            let request = match by {
                Some(epoch) => Request::Confirm { epoch, keys },
                None => Request::Has(keys),
            };
            match self.call(node, &request, Vec::new(), false, wait).await?.0 {
                Reply::Has(has) if has.len() == part.len() => all.extend(has),
                other => return Err(unexpected(&other)),
            }
        }
        Ok(all)
    }

    /// Tells a node that these chunks are garbage.
    ///
    /// # Errors
    /// As [`Peers::put`].
    pub async fn drop_chunks(&self, node: NodeId, chunks: &[ChunkId], wait: Duration) -> Result<()> {
        for part in chunks.chunks(LIST_MAX) {
            self.call(node, &Request::Drop(part.to_vec()), Vec::new(), false, wait).await?;
        }
        Ok(())
    }
}

fn unexpected(reply: &Reply) -> Error {
    let mut text = format!("{reply:?}");
    text.truncate(40);
    Error::new(Kind::Protocol, format!("unexpected answer {text}"))
}

/// Bytes of a run of cells of a shard.
pub fn cells_len(chunk: ChunkRef, key: ShardKey, first: u32, count: u32) -> usize {
    (first..first.saturating_add(count))
        .map(|row| codec::cell_len(chunk.scheme, chunk.len, key.index.0, row) as usize)
        .sum()
}
