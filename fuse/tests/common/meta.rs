//! The namespace of a cluster in memory, and its face on each node.

use super::chunks::Store;
use super::state::State;
use async_trait::async_trait;
use hfcache_base::meta::{
    Applied, Attr, Change, ChunkRef, Content, DirEntry, FileKind, Lock, LockHolder, LockKind, Op, Piece,
    RaftStatus, Reply, Session, Share, SharedMap, Token, Totals,
};
use hfcache_base::seam::{ChangeSink, Clock, Meta, Moment, Unlocked, View};
use hfcache_base::{ChunkId, InodeId, Kind, Result, SessionId};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::Notify;

/// What all nodes share.
pub struct Cluster {
    pub state: Mutex<Arc<State>>,
    order: Mutex<()>,
    store: Arc<Store>,
    sinks: Mutex<Vec<Arc<dyn ChangeSink>>>,
    locks: Mutex<Vec<(InodeId, SessionId, Lock)>>,
    unlocked: Notify,
    sessions: AtomicU64,
}

impl Cluster {
    pub fn new(store: Arc<Store>) -> Self {
        Self {
            state: Mutex::new(Arc::new(State::new())),
            order: Mutex::default(),
            store,
            sinks: Mutex::default(),
            locks: Mutex::default(),
            unlocked: Notify::new(),
            sessions: AtomicU64::new(1),
        }
    }

    /// Frees what has no name and no holder.
    pub fn reap(&self, clock: &dyn Clock) {
        let _ = self.apply(SessionId(0), clock, Op::Reap);
    }

    fn apply(&self, session: SessionId, clock: &dyn Clock, op: Op) -> Result<Reply> {
        if let Op::Commit { pieces, .. } = &op {
            for piece in pieces {
                if let Piece::Chunk(e) = piece {
                    let chunks = self.store.chunks.lock();
                    assert!(chunks.contains_key(&e.chunk.id), "only durable chunks are committed");
                }
            }
        }
        let _in_order = self.order.lock();
        let mut next = State::clone(&self.state.lock());
        let (reply, changes) = next.apply(session.0, clock.wall(), op)?;
        *self.state.lock() = Arc::new(next);
        for change in &changes {
            if let Change::ChunkFreed(id) = change {
                self.store.chunks.lock().remove(id);
            }
        }
        let sinks = self.sinks.lock().clone();
        for sink in sinks {
            sink.applied(&[Applied { session, changes: changes.clone() }]);
        }
        Ok(reply)
    }
}

/// The namespace as one node sees it.
pub struct NodeMeta {
    cluster: Arc<Cluster>,
    session: SessionId,
    clock: Mutex<Option<Arc<dyn Clock>>>,
    pub leased: AtomicBool,
    pub fenced: AtomicBool,
    /// Nothing that is seen here may be told while this is `false`.
    pub settled: tokio::sync::watch::Sender<bool>,
    /// The next commits fail without effect.
    pub refuse: Mutex<(usize, Option<Kind>)>,
    /// The next commits take effect and time out.
    pub lose_answers: AtomicUsize,
    pub commits: AtomicUsize,
    /// So many commits work, and the one after them fails without effect; 0: none fails.
    countdown: AtomicUsize,
}

impl NodeMeta {
    pub fn new(cluster: &Arc<Cluster>) -> Self {
        Self {
            cluster: Arc::clone(cluster),
            session: SessionId(cluster.sessions.fetch_add(1, Ordering::SeqCst)),
            clock: Mutex::new(None),
            leased: AtomicBool::new(true),
            fenced: AtomicBool::new(false),
            settled: tokio::sync::watch::channel(true).0,
            refuse: Mutex::new((0, None)),
            lose_answers: AtomicUsize::new(0),
            commits: AtomicUsize::new(0),
            countdown: AtomicUsize::new(0),
        }
    }

    pub fn set_clock(&self, clock: Arc<dyn Clock>) {
        *self.clock.lock() = Some(clock);
    }

    /// Lets `good` commits through and refuses the next one.
    pub fn refuse_after(&self, good: usize) {
        self.countdown.store(good + 1, Ordering::SeqCst);
    }

    pub fn clock(&self) -> Arc<dyn Clock> {
        self.clock.lock().clone().expect("clock")
    }

    fn try_lock(&self, ino: InodeId, lock: Lock) -> Result<(), LockHolder> {
        let mut locks = self.cluster.locks.lock();
        if let Some(holder) = conflict(&locks, ino, self.session, &lock) {
            return Err(holder);
        }
        remove_range(&mut locks, ino, self.session, &lock);
        locks.push((ino, self.session, lock));
        Ok(())
    }

    fn drop_lock(&self, ino: InodeId, lock: Lock) {
        remove_range(&mut self.cluster.locks.lock(), ino, self.session, &lock);
        self.cluster.unlocked.notify_waiters();
    }
}

fn conflict(
    locks: &[(InodeId, SessionId, Lock)],
    ino: InodeId,
    session: SessionId,
    lock: &Lock,
) -> Option<LockHolder> {
    locks
        .iter()
        .find(|(i, s, l)| {
            *i == ino
                && l.kind == lock.kind
                && (*s, l.owner) != (session, lock.owner)
                && (l.exclusive || lock.exclusive)
                && l.start <= lock.end
                && lock.start <= l.end
        })
        .map(|(_, session, lock)| LockHolder { session: *session, lock: *lock })
}

fn remove_range(locks: &mut Vec<(InodeId, SessionId, Lock)>, ino: InodeId, session: SessionId, lock: &Lock) {
    let mut kept = Vec::new();
    for (i, s, l) in locks.drain(..) {
        let mine = i == ino && s == session && l.kind == lock.kind && l.owner == lock.owner;
        if !mine || l.end < lock.start || l.start > lock.end {
            kept.push((i, s, l));
            continue;
        }
        if l.start < lock.start {
            kept.push((i, s, Lock { end: lock.start - 1, ..l }));
        }
        if l.end > lock.end {
            kept.push((i, s, Lock { start: lock.end + 1, ..l }));
        }
    }
    *locks = kept;
}

struct Snapshot(Arc<State>, Option<u64>);

impl View for Snapshot {
    fn settles_at(&self) -> Option<u64> {
        self.1
    }

    fn lookup(&self, parent: InodeId, name: &[u8]) -> Result<Attr> {
        self.attr(self.0.find(parent, name)?)
    }

    fn attr(&self, ino: InodeId) -> Result<Attr> {
        Ok(self.0.inode(ino)?.attr.clone())
    }

    fn parent(&self, dir: InodeId) -> Result<InodeId> {
        Ok(self.0.dir(dir)?.parent)
    }

    fn readdir(&self, dir: InodeId, after: u64, limit: usize) -> Result<Vec<DirEntry>> {
        let mut rows: Vec<DirEntry> = Vec::new();
        for (name, (ino, cookie)) in &self.0.dir(dir)?.names {
            if *cookie > after {
                rows.push(DirEntry { name: name.clone(), attr: self.attr(*ino)?, cookie: *cookie });
            }
        }
        rows.sort_by_key(|r| r.cookie);
        rows.truncate(limit);
        Ok(rows)
    }

    fn readlink(&self, ino: InodeId) -> Result<Vec<u8>> {
        let inode = self.0.inode(ino)?;
        if inode.attr.kind != FileKind::Symlink {
            return Err(Kind::Invalid.into());
        }
        Ok(inode.target.clone())
    }

    fn content(&self, ino: InodeId) -> Result<(Attr, Content)> {
        let inode = self.0.inode(ino)?;
        Ok((inode.attr.clone(), inode.content.clone()))
    }

    fn chunks(&self, _: ChunkId, _: usize) -> Result<Vec<ChunkRef>> {
        Ok(self.0.chunk_refs())
    }

    fn chunk(&self, id: ChunkId) -> Result<Option<ChunkRef>> {
        Ok(self.0.chunk_refs().into_iter().find(|c| c.id == id))
    }

    fn chunk_session(&self, _: ChunkId) -> Result<Option<SessionId>> {
        Ok(None)
    }

    fn totals(&self) -> Result<Totals> {
        Ok(Totals { inodes: self.0.inodes.len() as u64, bytes: 0, chunks: 0 })
    }

    fn sessions(&self) -> Result<Vec<Session>> {
        Ok(Vec::new())
    }

    fn tokens(&self) -> Result<Vec<Token>> {
        Ok(Vec::new())
    }

    fn xattr(&self, ino: InodeId, name: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.0.inode(ino)?.xattrs.get(name).cloned())
    }

    fn xattrs(&self, ino: InodeId) -> Result<Vec<Vec<u8>>> {
        Ok(self.0.inode(ino)?.xattrs.keys().cloned().collect())
    }

    fn shares(&self) -> Result<Vec<(InodeId, Share)>> {
        Ok(Vec::new())
    }
}

#[async_trait]
impl Meta for NodeMeta {
    fn read_local(&self) -> Option<(Box<dyn View + '_>, Moment)> {
        if !self.leased.load(Ordering::SeqCst) || self.fenced.load(Ordering::SeqCst) {
            return None;
        }
        let until = self.clock().now().after(Duration::from_millis(800));
        Some((self.read_stale(), until))
    }

    async fn read_point(&self, _: Duration) -> Result<()> {
        tokio::task::yield_now().await;
        if self.fenced.load(Ordering::SeqCst) { Err(Kind::Fenced.into()) } else { Ok(()) }
    }

    fn read_stale(&self) -> Box<dyn View + '_> {
        let settles_at = (!*self.settled.borrow()).then_some(1);
        Box::new(Snapshot(Arc::clone(&self.cluster.state.lock()), settles_at))
    }

    async fn settled(&self, _: u64, _: Duration) -> Result<()> {
        let mut settled = self.settled.subscribe();
        settled.wait_for(|settled| *settled).await.map(drop).map_err(|_| Kind::Canceled.into())
    }

    async fn commit(&self, op: Op) -> Result<Reply> {
        self.commits.fetch_add(1, Ordering::SeqCst);
        tokio::task::yield_now().await;
        if self.fenced.load(Ordering::SeqCst) {
            return Err(Kind::Fenced.into());
        }
        {
            let mut refuse = self.refuse.lock();
            if refuse.0 > 0 {
                refuse.0 -= 1;
                return Err(refuse.1.unwrap_or(Kind::Unavailable).into());
            }
        }
        if self.countdown.load(Ordering::SeqCst) > 0 && self.countdown.fetch_sub(1, Ordering::SeqCst) == 1 {
            return Err(Kind::Unavailable.into());
        }
        let reply = self.cluster.apply(self.session, self.clock().as_ref(), op);
        if self.lose_answers.load(Ordering::SeqCst) > 0 {
            self.lose_answers.fetch_sub(1, Ordering::SeqCst);
            return Err(Kind::TimedOut.into());
        }
        reply
    }

    async fn chunk_id(&self) -> Result<ChunkId> {
        let _in_order = self.cluster.order.lock();
        let mut state = self.cluster.state.lock();
        let mut next = State::clone(&state);
        next.next_chunk += 1;
        let id = ChunkId(next.next_chunk);
        *state = Arc::new(next);
        Ok(id)
    }

    fn lock_local(&self, _: InodeId, _: Lock) -> Option<Result<()>> {
        None
    }

    async fn lock(&self, ino: InodeId, lock: Lock, wait: bool) -> Result<()> {
        loop {
            let unlocked = self.cluster.unlocked.notified();
            tokio::pin!(unlocked);
            unlocked.as_mut().enable();
            match self.try_lock(ino, lock) {
                Ok(()) => return Ok(()),
                Err(_) if wait => unlocked.await,
                Err(_) => return Err(Kind::WouldBlock.into()),
            }
        }
    }

    fn unlock_local(&self, _: InodeId, _: Lock) -> Unlocked {
        Unlocked::Ask
    }

    async fn unlock(&self, ino: InodeId, lock: Lock) -> Result<()> {
        self.drop_lock(ino, lock);
        Ok(())
    }

    async fn lock_test(&self, ino: InodeId, lock: Lock) -> Result<Option<LockHolder>> {
        Ok(conflict(&self.cluster.locks.lock(), ino, self.session, &lock))
    }

    fn lock_held(&self, ino: InodeId, kind: LockKind, owner: u64) -> bool {
        let locks = self.cluster.locks.lock();
        locks.iter().any(|(i, s, l)| *i == ino && *s == self.session && l.kind == kind && l.owner == owner)
    }

    fn map(&self) -> SharedMap {
        SharedMap::default()
    }

    fn subscribe(&self, sink: Arc<dyn ChangeSink>) {
        self.cluster.sinks.lock().push(sink);
    }

    fn status(&self) -> RaftStatus {
        let session = (!self.fenced.load(Ordering::SeqCst)).then_some(self.session);
        RaftStatus { session, ..RaftStatus::default() }
    }
}
