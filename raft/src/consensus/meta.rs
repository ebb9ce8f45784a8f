//! [`Meta`] as the mount and the chunk store use it.

use crate::consensus::follower::Follower;
use crate::consensus::node::Consensus;
use crate::consensus::propose::Proposer;
use crate::consensus::settle::{Settling, Thing};
use crate::consensus::store::Store;
use crate::kv;
use crate::locks::{LocalLocks, Propose, Replica};
use crate::state::{LockRecord, StateView};
use async_trait::async_trait;
use hfcache_base::limits::CALL_DEADLINE;
use hfcache_base::meta::{
    Applied, Attr, Change, ChunkRef, Content, DirEntry, Lock, LockHolder, LockKind, Op, Quota, RaftStatus,
    Rate, Reply, Session, Share, SharedMap, Subject, Token, Totals, TrashId, Trashed, Usage,
};
use hfcache_base::seam::{ChangeSink, Meta, Moment, Unlocked, View};
use hfcache_base::{ChunkId, InodeId, Result, SessionId};
use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

impl Consensus {
    fn view(&self) -> Box<dyn View + '_> {
        Box::new(Watched {
            view: StateView::new(self.store.reader()),
            settling: self.store.settling(),
            settles_at: Cell::new(None),
        })
    }
}

/// A view that notes what was looked at and is not settled. Changes are noted before they can be seen, so a
/// thing that has changed in this view is either known as unsettled when it is looked at, or settled by then.
struct Watched<'a, R> {
    view: StateView<R>,
    settling: &'a Settling,
    settles_at: Cell<Option<u64>>,
}

impl<R> Watched<'_, R> {
    fn look(&self, thing: Thing) {
        if let Some(at) = self.settling.change_of(thing) {
            self.settles_at.set(self.settles_at.get().max(Some(at)));
        }
    }

    /// For what is put together from many things.
    fn look_at_all(&self) {
        self.settles_at.set(self.settles_at.get().max(self.settling.newest()));
    }
}

impl<R: kv::Read + Send> View for Watched<'_, R> {
    fn settles_at(&self) -> Option<u64> {
        self.settles_at.get()
    }

    fn lookup(&self, parent: InodeId, name: &[u8]) -> Result<Attr> {
        self.look(Thing::name(parent, name));
        let found = self.view.lookup(parent, name);
        // Without the name it matters what the parent is.
        self.look(Thing::Inode(found.as_ref().map_or(parent, |attr| attr.ino)));
        found
    }

    fn attr(&self, ino: InodeId) -> Result<Attr> {
        self.look(Thing::Inode(ino));
        self.view.attr(ino)
    }

    fn parent(&self, dir: InodeId) -> Result<InodeId> {
        self.look(Thing::Inode(dir));
        self.view.parent(dir)
    }

    fn readdir(&self, dir: InodeId, after: u64, limit: usize) -> Result<Vec<DirEntry>> {
        // Every change of its names changes its times.
        self.look(Thing::Inode(dir));
        let rows = self.view.readdir(dir, after, limit);
        for row in rows.iter().flatten() {
            self.look(Thing::Inode(row.attr.ino));
        }
        rows
    }

    fn readlink(&self, ino: InodeId) -> Result<Vec<u8>> {
        self.look(Thing::Inode(ino));
        self.view.readlink(ino)
    }

    fn content(&self, ino: InodeId) -> Result<(Attr, Content)> {
        self.look(Thing::Inode(ino));
        self.view.content(ino)
    }

    fn chunks(&self, after: ChunkId, limit: usize) -> Result<Vec<ChunkRef>> {
        self.view.chunks(after, limit)
    }

    fn chunk(&self, id: ChunkId) -> Result<Option<ChunkRef>> {
        self.view.chunk(id)
    }

    fn chunk_session(&self, id: ChunkId) -> Result<Option<SessionId>> {
        self.view.chunk_session(id)
    }

    fn totals(&self) -> Result<Totals> {
        self.look_at_all();
        self.view.totals()
    }

    fn sessions(&self) -> Result<Vec<Session>> {
        self.look_at_all();
        self.view.sessions()
    }

    fn tokens(&self) -> Result<Vec<Token>> {
        self.look_at_all();
        self.view.tokens()
    }

    fn usage(&self, of: Subject) -> Result<Usage> {
        self.look_at_all();
        self.view.usage(of)
    }

    fn quotas(&self) -> Result<Vec<Quota>> {
        self.look_at_all();
        self.view.quotas()
    }

    fn quotas_on(&self, ino: InodeId) -> Result<Vec<Quota>> {
        self.look_at_all();
        self.view.quotas_on(ino)
    }

    fn rates(&self) -> Result<Vec<(Subject, Rate)>> {
        self.look_at_all();
        self.view.rates()
    }

    fn path(&self, dir: InodeId) -> Result<Vec<u8>> {
        self.look_at_all();
        self.view.path(dir)
    }

    fn xattr(&self, ino: InodeId, name: &[u8]) -> Result<Option<Vec<u8>>> {
        self.look(Thing::Inode(ino));
        self.view.xattr(ino, name)
    }

    fn xattrs(&self, ino: InodeId) -> Result<Vec<Vec<u8>>> {
        self.look(Thing::Inode(ino));
        self.view.xattrs(ino)
    }

    fn shares(&self) -> Result<Vec<(InodeId, Share)>> {
        self.look_at_all();
        self.view.shares()
    }

    fn trash(&self, after: Option<TrashId>, limit: usize) -> Result<Vec<Trashed>> {
        self.look_at_all();
        self.view.trash(after, limit)
    }

    fn trash_entries(&self) -> Result<u64> {
        self.look_at_all();
        self.view.trash_entries()
    }

    fn trash_retention(&self) -> Result<u64> {
        self.look_at_all();
        self.view.trash_retention()
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

    async fn settled(&self, index: u64, deadline: Duration) -> Result<()> {
        self.follower.settled(index, deadline).await
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

    fn unlock_local(&self, ino: InodeId, lock: Lock) -> Unlocked {
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
        StateView::new(self.store.reader()).locks(ino)
    }

    fn leased(&self) -> bool {
        self.follower.leased_until().is_some()
    }

    async fn catch_up(&self) -> Result<()> {
        self.follower.read_point(CALL_DEADLINE).await
    }

    fn newest(&self) -> u64 {
        self.store.settling().newest().unwrap_or(0)
    }

    fn is_settled(&self, index: u64) -> bool {
        self.store.settling().is_settled(index)
    }

    async fn settled(&self, index: u64) -> Result<()> {
        self.follower.settled(index, CALL_DEADLINE).await
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
