//! [`Meta`] as the mount and the chunk store use it.

use crate::consensus::follower::Follower;
use crate::consensus::node::Consensus;
use crate::consensus::propose::Proposer;
use crate::consensus::store::Store;
use crate::kv::{self, Table};
use crate::kv_redb::Reader;
use crate::locks::{LocalLocks, Propose, Replica};
use crate::state::{LockRecord, StateView};
use async_trait::async_trait;
use hfcache_base::limits::CALL_DEADLINE;
use hfcache_base::meta::{Applied, Change, Lock, LockHolder, LockKind, Op, RaftStatus, Reply, SharedMap};
use hfcache_base::seam::{ChangeSink, Meta, Moment, View};
use hfcache_base::{ChunkId, Error, InodeId, Kind, Result};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

/// A state, or a store that could not even be opened for reading: then every look-up says so.
enum State {
    Open(Reader),
    Failed(Kind),
}

impl kv::Read for State {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
        match self {
            Self::Open(reader) => reader.get(table, key),
            Self::Failed(kind) => Err(Error::new(*kind, "open state")),
        }
    }

    fn scan(
        &self,
        table: Table,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<()> {
        match self {
            Self::Open(reader) => reader.scan(table, from, to, visit),
            Self::Failed(kind) => Err(Error::new(*kind, "open state")),
        }
    }
}

impl Consensus {
    fn view(&self) -> Box<dyn View + '_> {
        let state = match self.store.reader() {
            Ok(reader) => State::Open(reader),
            Err(e) => {
                tracing::error!(error = %e, "open state");
                State::Failed(e.kind())
            }
        };
        Box::new(StateView::new(state))
    }
}

#[async_trait]
impl Meta for Consensus {
    fn read_local(&self) -> Option<(Box<dyn View + '_>, Moment)> {
        // What the lease requires was applied before the state is taken …
        let until = self.follower.leased_until()?;
        let view = self.view();
        // … and the lease still held when it was.
        (self.clock.now() < until).then_some((view, until))
    }

    async fn read_point(&self, deadline: Duration) -> Result<()> {
        self.follower.read_point(deadline).await
    }

    fn read_stale(&self) -> Box<dyn View + '_> {
        self.view()
    }

    async fn commit(&self, op: Op) -> Result<Reply> {
        self.proposer.commit(op).await
    }

    async fn chunk_id(&self) -> Result<ChunkId> {
        self.reserve.take().await
    }

    fn lock_local(&self, ino: InodeId, lock: Lock) -> Option<Result<()>> {
        match self.follower.live_session() {
            Ok(_) => self.locks.lock_local(ino, lock),
            Err(e) => Some(Err(e)),
        }
    }

    async fn lock(&self, ino: InodeId, lock: Lock, wait: bool) -> Result<()> {
        self.follower.live_session()?;
        self.locks.lock(ino, lock, wait).await
    }

    fn unlock_local(&self, ino: InodeId, lock: Lock) -> bool {
        self.locks.unlock_local(ino, lock)
    }

    async fn unlock(&self, ino: InodeId, lock: Lock) -> Result<()> {
        self.locks.unlock(ino, lock).await
    }

    async fn lock_test(&self, ino: InodeId, lock: Lock) -> Result<Option<LockHolder>> {
        self.follower.live_session()?;
        self.locks.lock_test(ino, lock).await
    }

    fn lock_held(&self, ino: InodeId, kind: LockKind, owner: u64) -> bool {
        self.locks.lock_held(ino, kind, owner)
    }

    fn map(&self) -> SharedMap {
        self.store.map()
    }

    fn subscribe(&self, sink: Arc<dyn ChangeSink>) {
        self.store.subscribe(sink);
    }

    fn status(&self) -> RaftStatus {
        self.raft_status()
    }
}

/// The lock table's way to Raft.
pub(crate) struct LockPropose(pub Arc<Proposer>);

#[async_trait]
impl Propose for LockPropose {
    async fn propose(&self, op: Op) -> Result<Reply> {
        self.0.commit_patiently(op).await
    }
}

/// The lock table's view of the state.
pub(crate) struct LockReplica {
    pub store: Arc<Store>,
    pub follower: Arc<Follower>,
}

#[async_trait]
impl Replica for LockReplica {
    fn locks(&self, ino: InodeId) -> Result<LockRecord> {
        StateView::new(self.store.reader()?).locks(ino)
    }

    fn leased(&self) -> bool {
        self.follower.leased_until().is_some()
    }

    async fn catch_up(&self) -> Result<()> {
        self.follower.read_point(CALL_DEADLINE).await
    }
}

/// Tells the lock table, and this node's own session, what was applied.
pub(crate) struct LockChanges {
    pub locks: LocalLocks,
    pub follower: Arc<Follower>,
}

impl ChangeSink for LockChanges {
    fn applied(&self, batch: &[Applied]) {
        self.locks.on_applied(batch);
        let Some(mine) = self.follower.session().borrow().id else { return };
        let ended = Change::SessionClosed(mine);
        if batch.iter().any(|one| one.changes.contains(&ended)) {
            self.follower.session_lost();
        }
    }

    fn replaced(&self) {
        self.locks.on_replaced();
    }
}
