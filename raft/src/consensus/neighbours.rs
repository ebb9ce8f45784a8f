//! What nodes ask one another, not the leader: when a lock is given up. See [`crate::locks::Neighbours`].
//!
//! A call's head is `wire::encode(UntilGivenUp)`; the answer's head is `wire::encode` of a `bool`.

use crate::consensus::store::Store;
use crate::locks::{LocalLocks, Neighbours};
use crate::state::StateView;
use async_trait::async_trait;
use bytes::Bytes;
use hfcache_base::limits::OPERATION_DEADLINE;
use hfcache_base::meta::LockHolder;
use hfcache_base::seam::{Answer, Call, Net, Service, ServiceId};
use hfcache_base::{Error, InodeId, Kind, NodeId, Result, wire};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Most questions of this node that wait for an answer. Locks of other waiters are granted by the state alone.
const QUESTIONS_MAX: usize = 64;

/// Answered with `true` when `holder`, of the node that is asked, has given up the lock for which `next`, of the
/// node that asks, waits.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct UntilGivenUp {
    ino: InodeId,
    holder: LockHolder,
    next: LockHolder,
}

/// The way to other nodes.
pub(crate) struct Asking {
    net: Arc<dyn Net>,
    store: Arc<Store>,
    questions: Semaphore,
}

impl Asking {
    pub(crate) fn new(net: Arc<dyn Net>, store: Arc<Store>) -> Self {
        Self { net, store, questions: Semaphore::new(QUESTIONS_MAX) }
    }
}

#[async_trait]
impl Neighbours for Asking {
    async fn until_given_up(&self, ino: InodeId, holder: LockHolder, next: LockHolder) -> Result<bool> {
        let Ok(_question) = self.questions.try_acquire() else { return Ok(false) };
        let node = StateView::new(self.store.reader()).node_of(holder.session)?;
        let ask = UntilGivenUp { ino, holder, next };
        let call = Call::new(ServiceId::Locks, wire::encode(&ask));
        wire::decode(&self.net.call(node, call, OPERATION_DEADLINE).await?.head)
    }
}

/// Answers other nodes.
pub(crate) struct Answering {
    pub locks: LocalLocks,
    pub store: Arc<Store>,
}

#[async_trait]
impl Service for Answering {
    async fn serve(&self, from: NodeId, head: Bytes, _body: Bytes) -> Result<Answer> {
        let UntilGivenUp { ino, holder, next } = wire::decode(&head)?;
        if StateView::new(self.store.reader()).node_of(next.session)? != from {
            return Err(Error::new(Kind::Unauthorized, "a lock for another node"));
        }
        let given_up = self.locks.until_given_up(ino, holder).await;
        Ok(Answer { head: wire::encode(&given_up).into(), body: Bytes::new() })
    }
}
