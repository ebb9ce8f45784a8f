//! A contended `flock` goes from one node to the next without waiting for Raft.
//!
//! The first waiter in the state's queue gets the lock whenever its holder gives it up, in whatever way: nobody can
//! pass it. So the waiter's node asks the holder's node to say when that happens, and believes it at once; the state
//! follows with the unlock that the holder proposes at the same time. Until that is applied here the lock is *early*:
//! its owner holds it, everybody else still reads of the former holder, which comes to the same for exclusive locks,
//! and it is not given up before the state has granted it.
//!
//! Nothing depends on the answer: if it is lost, late or no, the grant comes through the state as ever.

use super::Inner;
use super::table::Table;
use async_trait::async_trait;
use hfcache_base::meta::{Lock, LockHolder, LockKind, Op, Reply};
use hfcache_base::seam::Unlocked;
use hfcache_base::{InodeId, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::sync::oneshot;

/// A waiter asks the holder's node when it has waited this long: most are served before.
const ASK_AFTER: Duration = Duration::from_millis(1);
/// Between two questions of one waiter.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// The unlock of a lock that was passed on follows this much later, if nobody waits behind the next holder: a Raft
/// command keeps every node busy, and the next holder is to run first.
const LOG_AFTER: Duration = Duration::from_millis(1);
/// Most questions that wait for an answer at one node.
const QUESTIONS_MAX: usize = 4_096;

/// The way to the tables of other nodes.
#[async_trait]
pub trait Neighbours: Send + Sync + 'static {
    /// Asks the node of `holder` to answer when it gives up the lock for which `next` waits: `true` when it was given
    /// up after the question arrived, and will not be used again. See [`LocalLocks::until_given_up`].
    ///
    /// # Errors
    /// Transient kinds, also when that takes long.
    ///
    /// [`LocalLocks::until_given_up`]: super::LocalLocks::until_given_up
    async fn until_given_up(&self, ino: InodeId, holder: LockHolder, next: LockHolder) -> Result<bool>;
}

type Owner = (InodeId, LockKind, u64);

fn owner(ino: InodeId, lock: &Lock) -> Owner {
    (ino, lock.kind, lock.owner)
}

/// A node that waits for an unlock here.
struct Asked {
    of: Owner,
    tell: oneshot::Sender<()>,
    /// Others wait behind it.
    more: bool,
}

/// What is on its way from node to node.
#[derive(Default)]
pub(crate) struct Transit {
    /// Locks of ours whose grant has not been applied here.
    early: BTreeMap<InodeId, Lock>,
    /// Unlocks that were proposed and are not applied yet.
    leaving: BTreeMap<u64, Owner>,
    /// Locks that others were told are given up; their unlock is about to be proposed, or was.
    passed: BTreeSet<Owner>,
    /// By number.
    questions: BTreeMap<u64, Asked>,
}

impl Transit {
    /// Whether this owner holds a lock early.
    pub fn is_early(&self, ino: InodeId, kind: LockKind, owner: u64) -> bool {
        self.early.get(&ino).is_some_and(|held| (held.kind, held.owner) == (kind, owner))
    }

    /// Whether some lock of the inode is held early.
    pub fn any_early(&self, ino: InodeId) -> bool {
        self.early.contains_key(&ino)
    }

    /// Inodes with a lock that is held early.
    pub fn all_early(&self) -> Vec<(InodeId, Lock)> {
        self.early.iter().map(|(ino, lock)| (*ino, *lock)).collect()
    }

    /// Whether the owner is giving something up here: his next request waits for that.
    pub fn is_leaving(&self, ino: InodeId, lock: &Lock) -> bool {
        let who = owner(ino, lock);
        self.passed.contains(&who) || self.leaving.values().any(|o| *o == who)
    }

    /// The state has granted a lock; whether it was held early.
    pub fn granted(&mut self, ino: InodeId, lock: &Lock) -> bool {
        let early = self.early.get(&ino) == Some(lock);
        if early {
            self.early.remove(&ino);
        }
        early
    }

    /// The session is over: nothing of it is on its way. What was proposed comes to its end by itself.
    pub fn reset(&mut self) {
        self.early.clear();
        self.passed.clear();
        self.questions.clear();
    }

    /// One more waits for a lock of the inode.
    pub fn queued(&mut self, ino: InodeId) {
        self.questions.values_mut().filter(|asked| asked.of.0 == ino).for_each(|asked| asked.more = true);
    }

    /// A lock is about to be given up. If somebody asked for that he shall be told, and it is passed on; when the log
    /// has to follow.
    pub fn pass(&mut self, ino: InodeId, lock: &Lock) -> Option<(Vec<oneshot::Sender<()>>, Unlocked)> {
        let who = owner(ino, lock);
        let asked = self.questions.extract_if(.., |_, asked| asked.of == who);
        let (tell, more): (Vec<_>, Vec<_>) = asked.map(|(_, asked)| (asked.tell, asked.more)).unzip();
        if tell.is_empty() {
            return None;
        }
        self.passed.insert(who);
        let unlocked = if more.contains(&true) { Unlocked::Ask } else { Unlocked::AskAfter(LOG_AFTER) };
        Some((tell, unlocked))
    }

    /// Whether a lock was passed on, so that it has to be given up in the state, too.
    pub fn is_passed(&self, ino: InodeId, lock: &Lock) -> bool {
        self.passed.contains(&owner(ino, lock))
    }
}

/// A question that is taken back when nobody waits for its answer any more.
struct Question<'a> {
    inner: &'a Inner,
    number: u64,
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        self.inner.table.lock().transit.questions.remove(&self.number);
    }
}

impl Inner {
    /// See [`super::LocalLocks::until_given_up`].
    pub(super) async fn until_given_up(&self, ino: InodeId, holder: LockHolder) -> bool {
        let (tell, told) = oneshot::channel();
        let number = {
            let mut table = self.table.lock();
            if table.session != Some(holder.session) || table.transit.questions.len() >= QUESTIONS_MAX {
                return false;
            }
            let number = table.number();
            let more = self.replica.locks(ino).is_ok_and(|record| record.queue.waiting.len() > 1);
            table.transit.questions.insert(number, Asked { of: owner(ino, &holder.lock), tell, more });
            number
        };
        let _question = Question { inner: self, number };
        told.await.is_ok()
    }

    /// Waits until the lock that request `id` waits for is held early.
    pub(super) async fn early(&self, id: u64, ino: InodeId, lock: Lock) {
        self.clock.sleep(ASK_AFTER).await;
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let (session, oldest) = {
                let table = self.table.lock();
                (table.session, table.oldest_wait(ino) == Some(id))
            };
            let Some(session) = session else { return std::future::pending().await };
            let me = LockHolder { session, lock };
            // Of many that wait here only one can be the first, and most likely it is the oldest.
            let record = if oldest { self.replica.locks(ino).ok() } else { None };
            let first = record.and_then(|record| record.hand_over());
            let Some((holder, _)) = first.filter(|(_, next)| *next == me) else {
                changed.await;
                continue;
            };
            match self.neighbours.until_given_up(ino, holder, me).await {
                Ok(true) if self.take_early(id, ino, holder, me) => return,
                Ok(_) => {}
                Err(error) => tracing::debug!(%ino, %error, "ask the holder of a lock"),
            }
            self.clock.sleep(ASK_EVERY).await;
        }
    }

    /// The holder has given its lock up for the request `id`; whether that can be relied on here.
    fn take_early(&self, id: u64, ino: InodeId, holder: LockHolder, me: LockHolder) -> bool {
        // With a lease everything is applied here that the holder did before.
        if !self.replica.leased() {
            return false;
        }
        let Ok(record) = self.replica.locks(ino) else { return false };
        let mut table = self.table.lock();
        // An unlock of the same owner could take the place in the queue with it.
        let stands = table.session == Some(me.session)
            && record.hand_over() == Some((holder, me))
            && !table.transit.is_leaving(ino, &me.lock)
            && !table.transit.any_early(ino);
        // The grant may have come in between: then the request is gone, and was told.
        let early = stands && table.requests.remove(&id).is_some();
        if early {
            table.transit.early.insert(ino, me.lock);
        }
        early
    }

    /// Gives a lock, or a place in the queue, up in the state. What is held early waits for its grant first: until
    /// then the place in the queue is all that this session has.
    pub(super) async fn give_up(&self, ino: InodeId, lock: Lock) -> Result<Reply> {
        let number = loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut table = self.table.lock();
                if !table.transit.is_early(ino, lock.kind, lock.owner) {
                    let number = table.number();
                    table.transit.leaving.insert(number, owner(ino, &lock));
                    break number;
                }
            }
            changed.await;
        };
        let done = self.propose(Op::Unlock { ino, lock }).await;
        {
            let mut table = self.table.lock();
            table.transit.leaving.remove(&number);
            table.transit.passed.remove(&owner(ino, &lock));
        }
        self.changed.notify_waiters();
        done
    }

    /// Compares what is held early with a state that came as a snapshot.
    pub(super) fn reconcile_early(&self, table: &mut Table) {
        let Some(session) = table.session else { return };
        for (ino, lock) in table.transit.all_early() {
            let me = LockHolder { session, lock };
            match self.replica.locks(ino) {
                Ok(record) if record.queue.waiting.contains(&me) => {}
                Ok(record) => {
                    table.transit.granted(ino, &lock);
                    if record.delegated == Some(session) {
                        table.adopt(ino).queue.held.set(me);
                    }
                }
                Err(e) => tracing::error!(op = "reconcile locks", %ino, error = %e, "read state"),
            }
        }
    }
}
