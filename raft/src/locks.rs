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
//! - *A recall before the reply that speaks of a delegation*: delegations are learned from the changes,
//!   which come in order, and never from replies.
//! - *A cancel and a grant*: each request that has to wait is driven by a task of its own, which outlives
//!   its caller, learns what became of it, and undoes it. Until that is done the next request of the
//!   same owner waits.
//! - *A lost session*: everything here is void and every waiter gets [`Kind::Fenced`].

mod hand_over;
mod request;
mod table;

pub use hand_over::Neighbours;

use crate::state::LockRecord;
use crate::state::lock::normal;
use async_trait::async_trait;
use hfcache_base::meta::{Applied, Change, Lock, LockHolder, LockKind, Op, Reply};
use hfcache_base::seam::{Clock, Moment, Unlocked};
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
/// A delegation stays at least this long once it was given: nodes that all want one lock take turns of many
/// locks each instead of handing every single one around.
const TURN: Duration = Duration::from_millis(4);
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
    /// The newest index applied here that is not known to be settled; 0 if all is. See
    /// [`hfcache_base::seam::Meta::settled`].
    fn newest(&self) -> u64 {
        0
    }
    /// Whether an index is settled.
    fn is_settled(&self, _index: u64) -> bool {
        true
    }
    /// Waits until an index is settled.
    ///
    /// # Errors
    /// As [`hfcache_base::seam::Meta::settled`].
    async fn settled(&self, _index: u64) -> Result<()> {
        Ok(())
    }
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct LocalLocks(Arc<Inner>);

struct Inner {
    propose: Arc<dyn Propose>,
    replica: Arc<dyn Replica>,
    neighbours: Arc<dyn Neighbours>,
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
        neighbours: Arc<dyn Neighbours>,
        clock: Arc<dyn Clock>,
        runtime: Handle,
    ) -> Self {
        let (table, changed) = (Mutex::new(Table::default()), Notify::new());
        Self(Arc::new(Inner { propose, replica, neighbours, clock, runtime, table, changed }))
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
        let mut table = self.0.table.lock();
        if let Some(entry) = table.entries.get_mut(&ino).filter(|e| e.since > 0) {
            if !self.0.replica.is_settled(entry.since) {
                // Others may not know yet that it is ours.
                return None;
            }
            entry.since = 0;
        }
        match table.attempt(ino, lock, false) {
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

    /// See [`hfcache_base::seam::Meta::unlock_local`]. Also done when there is nothing to give up.
    pub fn unlock_local(&self, ino: InodeId, lock: Lock) -> Unlocked {
        // An error is for the one who waits.
        normal(lock).and_then(|lock| self.0.unlock_here(ino, lock)).unwrap_or(Unlocked::Ask)
    }

    /// See [`hfcache_base::seam::Meta::unlock`]. A caller that goes away does not stop it.
    ///
    /// # Errors
    /// As [`Propose::propose`].
    pub async fn unlock(&self, ino: InodeId, lock: Lock) -> Result<()> {
        let lock = normal(lock)?;
        if self.0.unlock_here(ino, lock)? == Unlocked::Here {
            return Ok(());
        }
        let inner = self.0.clone();
        let task = self.0.runtime.spawn(async move { inner.unlock(ino, lock, false).await });
        task.await.map_err(|e| Error::new(Kind::Canceled, "unlock").with_source(e))?
    }

    /// Answers another node, which waits for a lock that `holder` has by this node's session: `true` when that lock
    /// is given up, `false` when this can't be told.
    pub async fn until_given_up(&self, ino: InodeId, holder: LockHolder) -> bool {
        self.0.until_given_up(ino, holder).await
    }

    /// See [`hfcache_base::seam::Meta::lock_test`].
    ///
    /// # Errors
    /// As [`Propose::propose`].
    pub async fn lock_test(&self, ino: InodeId, lock: Lock) -> Result<Option<LockHolder>> {
        let holder = self.0.test(ino, normal(lock)?).await?;
        self.0.settle().await?;
        Ok(holder)
    }

    /// See [`hfcache_base::seam::Meta::lock_held`]. When in doubt it says yes.
    pub fn lock_held(&self, ino: InodeId, kind: LockKind, owner: u64) -> bool {
        let table = self.0.table.lock();
        let Some(session) = table.session else { return false };
        if table.transit.is_early(ino, kind, owner)
            || table.asks(ino, kind, owner)
            || table.undoing.values().any(|u| *u == (ino, kind, owner))
        {
            return true;
        }
        match table.entries.get(&ino) {
            Some(entry) => entry.queue.held.holds(session, kind, owner),
            None => self.0.replica.locks(ino).map_or(true, |r| r.queue.held.holds(session, kind, owner)),
        }
    }

    /// These commands were applied here; see the module. Returns at once.
    pub fn on_applied(&self, batch: &[Applied]) {
        let mut any = false;
        for applied in batch {
            for change in &applied.changes {
                any |= self.0.apply(applied.session, change);
            }
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
            Ok(Err(_)) => self.inner.undone(id),
            // Closed by us before there was an answer: the task will find nobody to tell, and undo it.
            Err(_) => {}
        }
    }
}

impl Inner {
    /// One change of the state; whether somebody may wait for it.
    fn apply(self: &Arc<Self>, by: SessionId, change: &Change) -> bool {
        let mut table = self.table.lock();
        let me = table.session;
        match change {
            Change::LockGranted { session, ino, lock, delegated } if Some(*session) == me => {
                let early = table.transit.granted(*ino, lock);
                if !*delegated {
                    if !early && !table.tell_granted(*ino, lock, Told::Granted) {
                        let (inner, ino, lock) = (self.clone(), *ino, *lock);
                        self.runtime.spawn(async move { inner.give_up(ino, lock).await });
                    }
                } else if table.entries.contains_key(ino) {
                    // It is being returned already, with what was held: this one has to ask again.
                    table.tell_granted(*ino, lock, Told::Retry);
                } else {
                    let known = early || table.tell_granted(*ino, lock, Told::Granted);
                    let holder = LockHolder { session: *session, lock: *lock };
                    let turn = self.clock.now().after(TURN);
                    let since = self.replica.newest();
                    let entry = table.adopt(*ino);
                    entry.turn = turn;
                    entry.since = since;
                    if known {
                        entry.queue.held.set(holder);
                    }
                    for surplus in table.surplus() {
                        self.start_return(&mut table, surplus);
                    }
                }
            }
            Change::LockQueued(ino) => {
                table.transit.queued(*ino);
                return false;
            }
            Change::Recall { session, ino } if Some(*session) == me => self.recall(&mut table, *ino),
            // Ours has arrived: what the state grants after it counts again.
            Change::LocksReturned(ino) if Some(by) == me => table.forget(*ino),
            Change::LocksReturned(_) => {}
            Change::Reaped(ino) => table.forget(*ino),
            Change::SessionClosed(session) if Some(*session) == me => table.reset(None),
            Change::SessionClosed(_) => {}
            _ => return false,
        }
        true
    }

    fn recall(self: &Arc<Self>, table: &mut Table, ino: InodeId) {
        // Unknown here it was granted in a snapshot.
        let entry = table.adopt(ino);
        if entry.recalled || entry.returning.is_some() {
            return;
        }
        let left = entry.turn.since(self.clock.now());
        if !left.is_zero() {
            let inner = self.clone();
            self.runtime.spawn(async move {
                inner.clock.sleep(left).await;
                let mut table = inner.table.lock();
                // It may have gone back meanwhile; one that came again then has a short turn.
                if let Some(entry) = table.entries.get_mut(&ino) {
                    entry.turn = Moment::default();
                    inner.recall(&mut table, ino);
                }
            });
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

    /// Gives a delegation back. The entry stays, closed, until that was applied: a second return with what is
    /// held now could meet a delegation of later.
    fn start_return(self: &Arc<Self>, table: &mut Table, ino: InodeId) {
        let Some((number, held)) = table.start_return(ino) else { return };
        let inner = self.clone();
        self.runtime.spawn(async move {
            let still = |table: &Table| table.entries.get(&ino).is_some_and(|e| e.returning == Some(number));
            while still(&inner.table.lock()) {
                let op = Op::ReturnDelegation { ino, held: held.clone() };
                match inner.propose(op).await {
                    Ok(_) => {
                        // Still there if the state knew of no delegation.
                        let mut table = inner.table.lock();
                        if still(&table) {
                            table.forget(ino);
                        }
                        break;
                    }
                    Err(e) if e.kind() == Kind::Fenced => break,
                    Err(e) => tracing::warn!(op = "return delegation", %ino, error = %e, "retried"),
                }
                inner.clock.sleep(RETRY_EVERY).await;
            }
            inner.changed.notify_waiters();
        });
    }

    /// Compares what is here with the state.
    fn reconcile(self: &Arc<Self>) {
        let mut table = self.table.lock();
        let Some(me) = table.session else { return };
        self.reconcile_early(&mut table);
        let inodes: Vec<InodeId> = table.entries.keys().copied().collect();
        for ino in inodes {
            match self.replica.locks(ino) {
                // A return that is under way ends by itself.
                Ok(_) if table.entries.get(&ino).is_some_and(|e| e.returning.is_some()) => {}
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
