//! This node's table of locks: inodes whose locks were delegated to its session are decided here, in
//! memory; for all others it asks the state, through Raft.
//!
//! # Wiring
//!
//! The consensus part makes one [`LocalLocks`], forwards the lock methods of
//! [`Meta`](hfcache_base::seam::Meta) to the methods of the same names, and calls
//!
//! - [`LocalLocks::set_session`] when the node's session was opened, and with `None` the moment the node
//!   fences itself;
//! - [`LocalLocks::on_applied`] with every applied batch, in order, after the state that holds it can be
//!   read through [`Replica::locks`] and **before** any [`Propose::propose`] of that batch returns;
//! - [`LocalLocks::on_replaced`] after a snapshot replaced the state.
//!
//! None of these may be called with a lock held that [`Replica::locks`] needs.
//!
//! # What may race
//!
//! - *A grant before the reply to its request*: requests are registered before they are proposed.
//! - *A recall before we learned of the delegation*: the recall makes the entry, already closed, and gives
//!   it back; the request finds it closed, waits, and asks again.
//! - *A cancel and a grant*: each request that has to wait is driven by a task of its own, which outlives
//!   its caller, learns what became of it, and undoes it. Until that is done the next request of the
//!   same owner waits.
//! - *A lost session*: everything here is void and every waiter gets [`Kind::Fenced`].

mod table;

use crate::state::LockRecord;
use crate::state::lock::normal;
use async_trait::async_trait;
use hfcache_base::meta::{Applied, Change, Lock, LockHolder, LockKind, LockReply, Op, Reply};
use hfcache_base::seam::Clock;
use hfcache_base::{Error, InodeId, Kind, Result, SessionId};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use table::{Attempt, Place, Table, Told};
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};

/// A recalled delegation with locks held waits this long for a moment without, because giving back
/// nothing lets the next session have the delegation instead of records.
const RECALL_GRACE: Duration = Duration::from_millis(2);
/// A request that does not wait for a lock waits this long for another session's delegation to come back.
/// Longer means that the other node is in trouble; its locks count as held until its session ends.
const RECALL_PATIENCE: Duration = Duration::from_secs(1);
/// Between two attempts to give something back while Raft does not answer.
const RETRY_EVERY: Duration = Duration::from_millis(200);
/// The owner of a request that is only made to recall a delegation. The kernel's owners are hashed
/// pointers; if one should be equal, a test reads one lock less.
const PROBE: u64 = u64::MAX;

/// The way to Raft.
#[async_trait]
pub trait Propose: Send + Sync + 'static {
    /// Proposes an operation of this node's session, waits until it is applied here, and returns its reply.
    /// It has to repeat *the same command* (session and sequence) until there is an answer or the session is
    /// lost: a lock operation whose fate is unknown could take effect later, when it no longer fits.
    ///
    /// # Errors
    /// The state machine's own answer; [`Kind::Fenced`] when the session is lost.
    async fn propose(&self, op: Op) -> Result<Reply>;
}

/// This node's own state.
#[async_trait]
pub trait Replica: Send + Sync + 'static {
    /// The locks of an inode, as applied here.
    ///
    /// # Errors
    /// Only if the store is damaged.
    fn locks(&self, ino: InodeId) -> Result<LockRecord>;
    /// Whether what is applied here is the newest there is: a read lease is held.
    fn leased(&self) -> bool;
    /// Waits until every operation that had returned anywhere before this call is applied here.
    ///
    /// # Errors
    /// As [`hfcache_base::seam::Meta::read_point`].
    async fn catch_up(&self) -> Result<()>;
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct LocalLocks(Arc<Inner>);

struct Inner {
    propose: Arc<dyn Propose>,
    replica: Arc<dyn Replica>,
    clock: Arc<dyn Clock>,
    runtime: Handle,
    table: Mutex<Table>,
    /// Something in the table, or a delegation in the state, has changed.
    changed: Notify,
}

impl LocalLocks {
    /// An empty table without a session. Its tasks run on `runtime`.
    pub fn new(
        propose: Arc<dyn Propose>,
        replica: Arc<dyn Replica>,
        clock: Arc<dyn Clock>,
        runtime: Handle,
    ) -> Self {
        let (table, changed) = (Mutex::new(Table::default()), Notify::new());
        Self(Arc::new(Inner { propose, replica, clock, runtime, table, changed }))
    }

    /// This node's session from now on, or that it has none. Locks of another session are void.
    pub fn set_session(&self, session: Option<SessionId>) {
        let mut table = self.0.table.lock();
        if table.session != session {
            table.reset(session);
            drop(table);
            self.0.changed.notify_waiters();
        }
    }

    /// See [`hfcache_base::seam::Meta::lock_local`]. Pure memory. `Some(Err(WouldBlock))` is a conflict
    /// between processes of this node; a caller that wants to wait goes on with [`LocalLocks::lock`].
    pub fn lock_local(&self, ino: InodeId, lock: Lock) -> Option<Result<()>> {
        match self.0.table.lock().attempt(ino, lock, false) {
            Attempt::Granted => Some(Ok(())),
            Attempt::Conflict => Some(Err(Kind::WouldBlock.into())),
            Attempt::Refused(kind) => Some(Err(kind.into())),
            Attempt::Waits(..) | Attempt::Busy | Attempt::Ask => None,
        }
    }

    /// See [`hfcache_base::seam::Meta::lock`].
    ///
    /// # Errors
    /// [`Kind::WouldBlock`] on a conflict without `wait`; [`Kind::Deadlock`]; else as
    /// [`Propose::propose`].
    pub async fn lock(&self, ino: InodeId, lock: Lock, wait: bool) -> Result<()> {
        let lock = normal(lock)?;
        match self.lock_local(ino, lock) {
            Some(Err(e)) if wait && e.kind() == Kind::WouldBlock => {}
            Some(done) => return done,
            None => {}
        }
        let (answer, told) = oneshot::channel();
        let id = self.0.table.lock().number();
        let asked = Asked { inner: self.0.clone(), id, ino, lock, told: Some(told) };
        let inner = self.0.clone();
        self.0.runtime.spawn(async move { inner.drive(id, ino, lock, wait, answer).await });
        asked.answer().await
    }

    /// See [`hfcache_base::seam::Meta::unlock_local`]. Also `true` when there is nothing to give up.
    pub fn unlock_local(&self, ino: InodeId, lock: Lock) -> bool {
        let Ok(lock) = normal(lock) else { return false };
        self.0.unlock_here(ino, lock).is_some()
    }

    /// See [`hfcache_base::seam::Meta::unlock`]. A caller that goes away does not stop it.
    ///
    /// # Errors
    /// As [`Propose::propose`].
    pub async fn unlock(&self, ino: InodeId, lock: Lock) -> Result<()> {
        let lock = normal(lock)?;
        if let Some(done) = self.0.unlock_here(ino, lock) {
            return done.map_err(Error::from);
        }
        let inner = self.0.clone();
        let task = self.0.runtime.spawn(async move { inner.unlock(ino, lock, false).await });
        task.await.map_err(|e| Error::new(Kind::Canceled, "unlock").with_source(e))?
    }

    /// See [`hfcache_base::seam::Meta::lock_test`].
    ///
    /// # Errors
    /// As [`Propose::propose`].
    pub async fn lock_test(&self, ino: InodeId, lock: Lock) -> Result<Option<LockHolder>> {
        self.0.test(ino, normal(lock)?).await
    }

    /// See [`hfcache_base::seam::Meta::lock_held`]. When in doubt it says yes.
    pub fn lock_held(&self, ino: InodeId, kind: LockKind, owner: u64) -> bool {
        let table = self.0.table.lock();
        let Some(session) = table.session else { return false };
        if table.asks(ino, kind, owner) || table.undoing.values().any(|u| *u == (ino, kind, owner)) {
            return true;
        }
        match table.entries.get(&ino) {
            Some(entry) => entry.queue.held.holds(session, kind, owner),
            None => self.0.replica.locks(ino).map_or(true, |r| r.queue.held.holds(session, kind, owner)),
        }
    }

    /// These commands were applied here; see the module. Returns at once.
    pub fn on_applied(&self, batch: &[Applied]) {
        let changes = batch.iter().flat_map(|a| &a.changes);
        let mut any = false;
        for change in changes {
            any |= self.0.apply(change);
        }
        if any {
            self.0.changed.notify_waiters();
        }
    }

    /// A snapshot replaced the state: what changed in between has to be read from it.
    pub fn on_replaced(&self) {
        self.0.reconcile();
        self.0.changed.notify_waiters();
    }
}

/// A caller who waits for the task of his request. Dropped early, the request is undone.
struct Asked {
    inner: Arc<Inner>,
    id: u64,
    ino: InodeId,
    lock: Lock,
    told: Option<oneshot::Receiver<Result<()>>>,
}

impl Asked {
    async fn answer(mut self) -> Result<()> {
        let Some(told) = self.told.as_mut() else { return Err(Kind::Internal.into()) };
        let answer = told.await;
        self.told = None;
        answer.unwrap_or_else(|_| Err(Kind::Canceled.into()))
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        let Some(mut told) = self.told.take() else { return };
        let (id, ino, lock) = (self.id, self.ino, self.lock);
        self.inner.table.lock().undoing.insert(id, (ino, lock.kind, lock.owner));
        told.close();
        match told.try_recv() {
            Ok(Ok(())) => {
                let inner = self.inner.clone();
                self.inner.runtime.spawn(async move { inner.undo(id, ino, lock).await });
            }
            Ok(Err(_)) | Err(oneshot::error::TryRecvError::Closed) => self.inner.undone(id),
            // The task will find nobody to tell, and undo it.
            Err(oneshot::error::TryRecvError::Empty) => {}
        }
    }
}

impl Inner {
    /// One request from beginning to end.
    async fn drive(
        self: Arc<Self>,
        id: u64,
        ino: InodeId,
        lock: Lock,
        wait: bool,
        mut answer: oneshot::Sender<Result<()>>,
    ) {
        let result = self.decide(ino, lock, wait, &mut answer).await;
        match answer.send(result) {
            Ok(()) => {}
            Err(Ok(())) => self.undo(id, ino, lock).await,
            Err(Err(_)) => self.undone(id),
        }
    }

    async fn undo(self: &Arc<Self>, id: u64, ino: InodeId, lock: Lock) {
        // Fails only with the session, and then there is nothing left to undo.
        let _ = self.unlock(ino, lock, true).await;
        self.undone(id);
    }

    fn undone(&self, id: u64) {
        self.table.lock().undoing.remove(&id);
        self.changed.notify_waiters();
    }

    async fn decide(
        self: &Arc<Self>,
        ino: InodeId,
        lock: Lock,
        wait: bool,
        caller: &mut oneshot::Sender<Result<()>>,
    ) -> Result<()> {
        let since = self.clock.now();
        loop {
            if caller.is_closed() {
                return Err(Kind::Canceled.into());
            }
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let attempt = self.table.lock().attempt(ino, lock, wait);
            match attempt {
                Attempt::Granted => return Ok(()),
                Attempt::Conflict => return Err(Kind::WouldBlock.into()),
                Attempt::Refused(kind) => return Err(kind.into()),
                Attempt::Busy => {
                    tokio::select! { () = &mut changed => {}, () = caller.closed() => {} }
                    continue;
                }
                Attempt::Waits(id, told) => {
                    if self.wait_here(id, told, caller).await? {
                        return Ok(());
                    }
                    continue;
                }
                Attempt::Ask => {}
            }
            if !wait && self.conflicts_surely(ino, &lock)? {
                return Err(Kind::WouldBlock.into());
            }
            let (session, id, told) = {
                let mut table = self.table.lock();
                let (id, told) = table.register(ino, lock, Place::Proposed);
                (table.session, id, told)
            };
            let reply = self.propose_lock(ino, lock, wait).await;
            {
                let mut table = self.table.lock();
                if table.session.is_none() || table.session != session {
                    return Err(Kind::Fenced.into());
                }
                let waits = matches!(reply, Ok(LockReply::Queued(_)));
                if !waits && table.requests.remove(&id).is_none() {
                    // It was told of a grant that was meant for a twin of it.
                    table.tell_granted(ino, &lock);
                }
            }
            match reply? {
                LockReply::Granted => return Ok(()),
                LockReply::Conflict(_) => return Err(Kind::WouldBlock.into()),
                LockReply::Delegated => self.adopt(ino)?,
                LockReply::Queued(_) => {
                    if self.wait_there(id, ino, lock, told, caller).await? {
                        return Ok(());
                    }
                }
                LockReply::Recalling => {
                    if self.clock.now().since(since) >= RECALL_PATIENCE
                        || !self.await_return(ino, caller.closed()).await?
                    {
                        return Err(Kind::WouldBlock.into());
                    }
                }
            }
        }
    }

    /// Waits in a local queue; `false` to ask again.
    async fn wait_here(
        &self,
        id: u64,
        mut told: oneshot::Receiver<Told>,
        caller: &mut oneshot::Sender<Result<()>>,
    ) -> Result<bool> {
        let answer = tokio::select! {
            biased;
            answer = &mut told => answer,
            () = caller.closed() => {
                if self.table.lock().withdraw(id) {
                    return Err(Kind::Canceled.into());
                }
                // Granted meanwhile: the caller is gone, so it will be undone.
                told.await
            }
        };
        heard(answer)
    }

    /// Waits in the state's queue; `false` to ask again.
    async fn wait_there(
        self: &Arc<Self>,
        id: u64,
        ino: InodeId,
        lock: Lock,
        mut told: oneshot::Receiver<Told>,
        caller: &mut oneshot::Sender<Result<()>>,
    ) -> Result<bool> {
        if let Some(request) = self.table.lock().requests.get_mut(&id) {
            request.place = Place::State;
        }
        tokio::select! {
            biased;
            answer = &mut told => return heard(answer),
            () = caller.closed() => {}
        }
        // Withdraws the wait, or gives the lock up if it was granted on the way.
        let withdrawn = self.propose(Op::Unlock { ino, lock }).await;
        let waiting = self.table.lock().requests.remove(&id).is_some();
        withdrawn?;
        if waiting {
            return Err(Kind::Canceled.into());
        }
        // Granted as a delegation it is held here, where the state's unlock does not reach.
        heard(told.await)
    }

    /// Whether this node's own state is fresh and has a lock in the way. (An owner of a `flock` who converts
    /// it loses the old one even if he does not get the new one, so that goes to the state.)
    fn conflicts_surely(&self, ino: InodeId, lock: &Lock) -> Result<bool> {
        let Some(session) = self.table.lock().session else { return Err(Kind::Fenced.into()) };
        if !self.replica.leased() {
            return Ok(false);
        }
        let record = self.replica.locks(ino)?;
        let converts = record.queue.held.holds(session, lock.kind, lock.owner);
        let ask = LockHolder { session, lock: *lock };
        let conflict = record.delegated.is_none() && record.queue.blocker(&ask).is_some();
        Ok(conflict && !(converts && lock.kind == LockKind::Flock))
    }

    async fn propose_lock(&self, ino: InodeId, lock: Lock, wait: bool) -> Result<LockReply> {
        match self.propose(Op::Lock { ino, lock, wait }).await? {
            Reply::Lock(reply) => Ok(reply),
            other => Err(Error::new(Kind::Internal, format!("a lock was answered with {other:?}"))),
        }
    }

    async fn propose(&self, op: Op) -> Result<Reply> {
        if self.table.lock().session.is_none() {
            return Err(Kind::Fenced.into());
        }
        self.propose.propose(op).await
    }

    /// Waits until another session's delegation has come back; `false` when patience or the caller is gone.
    async fn await_return(&self, ino: InodeId, gone: impl Future<Output = ()>) -> Result<bool> {
        let patience = self.clock.sleep(RECALL_PATIENCE);
        tokio::pin!(patience, gone);
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let me = self.table.lock().session;
            if me.is_none() {
                return Err(Kind::Fenced.into());
            }
            let delegated = self.replica.locks(ino)?.delegated;
            if delegated.is_none() || delegated == me {
                return Ok(true);
            }
            tokio::select! {
                () = &mut changed => {}
                () = &mut patience => return Ok(false),
                () = &mut gone => return Ok(false),
            }
        }
    }

    /// The state has delegated an inode to us, it says; what it says now counts.
    fn adopt(self: &Arc<Self>, ino: InodeId) -> Result<()> {
        let mut table = self.table.lock();
        if table.session.is_none() || table.entries.contains_key(&ino) {
            return Ok(());
        }
        let record = self.replica.locks(ino)?;
        if record.delegated != table.session {
            return Ok(());
        }
        table.adopt(ino);
        if record.recalled {
            self.start_return(&mut table, ino);
        }
        for surplus in table.surplus() {
            self.start_return(&mut table, surplus);
        }
        Ok(())
    }

    fn unlock_here(self: &Arc<Self>, ino: InodeId, lock: Lock) -> Option<Result<(), Kind>> {
        let mut table = self.table.lock();
        if let Some(done) = table.unlock(ino, lock) {
            self.return_if_idle(&mut table, ino);
            return Some(done);
        }
        let session = table.session?;
        let busy = table.entries.contains_key(&ino)
            || table.is_undoing(ino, &lock)
            || table.asks(ino, lock.kind, lock.owner);
        if busy {
            return None;
        }
        // All that this node asked for is applied here, so nothing held there is nothing held.
        let record = self.replica.locks(ino).ok()?;
        let free =
            record.delegated != Some(session) && !record.queue.held.holds(session, lock.kind, lock.owner);
        free.then_some(Ok(()))
    }

    /// Gives up a range; `undoing` is the request that is being undone itself and waits for no other.
    async fn unlock(self: &Arc<Self>, ino: InodeId, lock: Lock, undoing: bool) -> Result<()> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let waits = {
                let mut table = self.table.lock();
                let hidden = if undoing { std::mem::take(&mut table.undoing) } else { Default::default() };
                let done = table.unlock(ino, lock);
                let busy = table.entries.contains_key(&ino) || table.is_undoing(ino, &lock);
                if undoing {
                    table.undoing = hidden;
                }
                if let Some(done) = done {
                    self.return_if_idle(&mut table, ino);
                    return done.map_err(Error::from);
                }
                if busy { None } else { Some(table.waits_in(ino, &lock)) }
            };
            let Some(waits) = waits else {
                changed.await;
                continue;
            };
            self.propose(Op::Unlock { ino, lock }).await?;
            // A wait of another thread for the same range was withdrawn in place of the lock itself.
            if waits.iter().any(|(_, exactly)| *exactly) {
                self.propose(Op::Unlock { ino, lock }).await?;
            }
            let mut table = self.table.lock();
            for (id, _) in waits {
                table.tell(id, Told::Retry);
            }
            return Ok(());
        }
    }

    async fn test(self: &Arc<Self>, ino: InodeId, lock: Lock) -> Result<Option<LockHolder>> {
        let since = self.clock.now();
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let (me, returning) = {
                let table = self.table.lock();
                let me = table.session.ok_or(Kind::Fenced)?;
                match table.entries.get(&ino) {
                    Some(e) if !e.returning => {
                        return Ok(e.queue.held.conflict(&LockHolder { session: me, lock }));
                    }
                    entry => (me, entry.is_some()),
                }
            };
            if returning {
                changed.await;
                continue;
            }
            if !self.replica.leased() {
                self.replica.catch_up().await?;
            }
            let record = self.replica.locks(ino)?;
            let Some(other) = record.delegated else {
                return Ok(record.queue.held.conflict(&LockHolder { session: me, lock }));
            };
            if other == me {
                self.adopt(ino)?;
                continue;
            }
            if self.clock.now().since(since) >= RECALL_PATIENCE {
                return Ok(Some(LockHolder { session: other, lock }));
            }
            // Only its session knows what is held. A shared lock that is not waited for calls it back.
            let probe = Lock { owner: PROBE, exclusive: false, pid: 0, ..lock };
            match self.propose_lock(ino, probe, false).await? {
                LockReply::Granted => self.propose(Op::Unlock { ino, lock: probe }).await.map(drop)?,
                LockReply::Recalling => {
                    self.await_return(ino, std::future::pending()).await?;
                }
                LockReply::Delegated | LockReply::Conflict(_) | LockReply::Queued(_) => {}
            }
        }
    }

    /// One change of the state; whether somebody may wait for it.
    fn apply(self: &Arc<Self>, change: &Change) -> bool {
        let mut table = self.table.lock();
        let me = table.session;
        match change {
            Change::LockGranted { session, ino, lock, delegated } if Some(*session) == me => {
                let known = table.tell_granted(*ino, lock);
                if *delegated {
                    let holder = LockHolder { session: *session, lock: *lock };
                    let entry = table.adopt(*ino);
                    if known {
                        entry.queue.held.set(holder);
                    }
                    for surplus in table.surplus() {
                        self.start_return(&mut table, surplus);
                    }
                } else if !known {
                    let (inner, ino, lock) = (self.clone(), *ino, *lock);
                    self.runtime.spawn(async move { inner.propose(Op::Unlock { ino, lock }).await });
                }
            }
            Change::Recall { session, ino } if Some(*session) == me => self.recall(&mut table, *ino),
            Change::LocksReturned(ino) => {
                if table.entries.get(ino).is_some_and(|e| e.returning) {
                    table.forget(*ino);
                }
            }
            Change::Reaped(ino) => table.forget(*ino),
            Change::SessionClosed(session) if Some(*session) == me => table.reset(None),
            Change::SessionClosed(_) => {}
            _ => return false,
        }
        true
    }

    fn recall(self: &Arc<Self>, table: &mut Table, ino: InodeId) {
        // Unknown here it is a delegation whose reply is still on its way.
        let ours = |record: LockRecord| record.delegated == table.session;
        if !table.entries.contains_key(&ino) && !self.replica.locks(ino).is_ok_and(ours) {
            return;
        }
        let entry = table.adopt(ino);
        if entry.recalled || entry.returning {
            return;
        }
        entry.recalled = true;
        if entry.queue.held.is_empty() {
            return self.start_return(table, ino);
        }
        let inner = self.clone();
        self.runtime.spawn(async move {
            inner.clock.sleep(RECALL_GRACE).await;
            let mut table = inner.table.lock();
            // It may have gone back meanwhile, and come again.
            if table.entries.get(&ino).is_some_and(|e| e.recalled) {
                inner.start_return(&mut table, ino);
            }
        });
    }

    fn return_if_idle(self: &Arc<Self>, table: &mut Table, ino: InodeId) {
        if table.entries.get(&ino).is_some_and(|e| e.recalled && e.queue.held.is_empty()) {
            self.start_return(table, ino);
        }
    }

    /// Gives a delegation back; the entry goes when the state says that it has arrived.
    fn start_return(self: &Arc<Self>, table: &mut Table, ino: InodeId) {
        let session = table.session;
        let Some(held) = table.start_return(ino) else { return };
        let inner = self.clone();
        self.runtime.spawn(async move {
            let still = || {
                let table = inner.table.lock();
                table.session == session && table.entries.get(&ino).is_some_and(|e| e.returning)
            };
            while still() {
                let op = Op::ReturnDelegation { ino, held: held.clone() };
                match inner.propose(op).await {
                    Ok(_) => break,
                    Err(e) if e.kind() == Kind::Fenced => break,
                    Err(e) => tracing::warn!(op = "return delegation", %ino, error = %e, "retried"),
                }
                inner.clock.sleep(RETRY_EVERY).await;
            }
        });
    }

    /// Compares what is here with the state.
    fn reconcile(self: &Arc<Self>) {
        let mut table = self.table.lock();
        let Some(me) = table.session else { return };
        let inodes: Vec<InodeId> = table.entries.keys().copied().collect();
        for ino in inodes {
            match self.replica.locks(ino) {
                Ok(record) if record.delegated != Some(me) => table.forget(ino),
                Ok(record) if record.recalled => self.recall(&mut table, ino),
                Ok(_) => {}
                Err(e) => tracing::error!(op = "reconcile locks", %ino, error = %e, "read state"),
            }
        }
        let waits: Vec<(u64, InodeId, Lock)> = {
            let in_state = table.requests.iter().filter(|(_, r)| r.place == Place::State);
            in_state.map(|(id, r)| (*id, r.ino, r.lock)).collect()
        };
        for (id, ino, lock) in waits {
            let holder = LockHolder { session: me, lock };
            let Ok(record) = self.replica.locks(ino) else { continue };
            if record.queue.waiting.contains(&holder) {
                continue;
            }
            // Held or not: asking again for what one holds is answered at once.
            table.tell(id, Told::Retry);
        }
    }
}

/// What a waiting request was told; `false` to ask again.
fn heard(told: Result<Told, oneshot::error::RecvError>) -> Result<bool> {
    match told {
        Ok(Told::Granted) => Ok(true),
        Ok(Told::Retry) => Ok(false),
        Ok(Told::Fenced) | Err(_) => Err(Kind::Fenced.into()),
    }
}
