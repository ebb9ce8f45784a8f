//! Locks, and requests that a signal may end.

use super::{Core, FETCH_DEADLINE, REQUEST_DEADLINE, RETRY_FIRST, RETRY_MAX, logged};
use crate::ops::Reply;
use hfcache_base::meta::Lock;
use hfcache_base::seam::Unlocked;
use hfcache_base::{InodeId, Kind, Result};
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::oneshot;

/// Most requests that wait and can be interrupted.
const CANCELS_MAX: usize = 1 << 16;
/// Interrupts remembered that came before their request.
const EARLY_MAX: usize = 256;

/// Requests that wait, by the kernel's number.
#[derive(Default)]
pub(crate) struct Cancels(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    requests: HashMap<u64, oneshot::Sender<()>>,
    early: VecDeque<u64>,
}

impl Cancels {
    /// Ends a request, or keeps in mind that it is to be ended.
    pub(crate) fn interrupt(&self, unique: u64) {
        let mut waiting = self.0.lock();
        match waiting.requests.remove(&unique) {
            // It may have ended by itself at this moment.
            Some(cancel) => {
                let _ = cancel.send(());
            }
            None => {
                if waiting.early.len() >= EARLY_MAX {
                    waiting.early.pop_front();
                }
                waiting.early.push_back(unique);
            }
        }
    }

    fn enter(&self, unique: u64) -> Result<oneshot::Receiver<()>, Kind> {
        let mut waiting = self.0.lock();
        if let Some(at) = waiting.early.iter().position(|u| *u == unique) {
            waiting.early.remove(at);
            return Err(Kind::Interrupted);
        }
        if waiting.requests.len() >= CANCELS_MAX {
            return Err(Kind::Busy);
        }
        let (send, receive) = oneshot::channel();
        waiting.requests.insert(unique, send);
        Ok(receive)
    }

    fn leave(&self, unique: u64) {
        self.0.lock().requests.remove(&unique);
    }
}

impl Core {
    /// Spawns a task that answers a request without effects, unless a signal ends it.
    pub(crate) fn answer_unless_interrupted<T: Send + 'static>(
        self: &Arc<Self>,
        unique: u64,
        reply: Reply<T>,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) {
        self.cancellable(unique, Some(REQUEST_DEADLINE), reply, work);
    }

    fn cancellable<T: Send + 'static>(
        self: &Arc<Self>,
        unique: u64,
        limit: Option<Duration>,
        reply: Reply<T>,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) {
        let cancel = match self.cancels.enter(unique) {
            Ok(cancel) => cancel,
            Err(kind) => return reply.fail(kind),
        };
        let core = Arc::clone(self);
        self.runtime.spawn(async move {
            let work = async {
                match limit {
                    Some(limit) => core.within(limit, work).await,
                    None => work.await,
                }
            };
            let result = tokio::select! {
                biased;
                result = work => result,
                Ok(()) = cancel => Err(Kind::Interrupted.into()),
            };
            core.cancels.leave(unique);
            reply.send(result.map_err(|e| logged(&e)));
        });
    }

    /// Somebody asks for an `fcntl` lock through a handle: he loses it when he closes any descriptor of the file. Those
    /// opened from now on tell of each close; one that does not tells of the last.
    pub(crate) fn note_fcntl(&self, ino: InodeId, handle: u64, owner: u64) {
        let Ok(handle) = self.table.handle(ino, handle) else { return };
        handle.file.fcntl.store(true, Ordering::SeqCst);
        if !handle.flushed {
            let mut lockers = handle.lockers.lock();
            if !lockers.contains(&owner) {
                lockers.push(owner);
            }
        }
    }

    /// SETLK and SETLKW.
    pub(crate) fn lock(
        self: &Arc<Self>,
        unique: u64,
        ino: InodeId,
        lock: Lock,
        wait: bool,
        reply: Reply<()>,
    ) {
        if self.is_fenced() {
            return reply.fail(Kind::Fenced);
        }
        match self.meta.lock_local(ino, lock) {
            Some(Ok(())) => return self.locked(ino, reply),
            Some(Err(e)) if !(wait && e.kind() == Kind::WouldBlock) => return reply.send(Err(logged(&e))),
            _ => {}
        }
        let core = Arc::clone(self);
        // A wait for a lock ends with the lock or with a signal, however long that takes.
        let limit = (!wait).then_some(REQUEST_DEADLINE);
        let outer = Arc::clone(self);
        // The kernel's pages are made right before the holder hears of its lock.
        let inner = Reply::new(move |result| match result {
            Ok(()) => outer.locked(ino, reply),
            Err(errno) => reply.send(Err(errno)),
        });
        self.cancellable(unique, limit, inner, async move { core.lock_patiently(ino, lock, wait).await });
    }

    /// A waiter outlives a change of the leader: the request is made again.
    async fn lock_patiently(&self, ino: InodeId, lock: Lock, wait: bool) -> Result<()> {
        let mut until = self.clock.now().after(FETCH_DEADLINE);
        let mut pause = RETRY_FIRST;
        loop {
            let asked = self.clock.now();
            let result = self.meta.lock(ino, lock, wait).await;
            if wait && self.clock.now().since(asked) > RETRY_MAX * 4 {
                // It stood in the queue: what failed is new.
                (until, pause) = (self.clock.now().after(FETCH_DEADLINE), RETRY_FIRST);
            }
            match result {
                Err(e) if e.kind().is_transient() && self.clock.now() < until => {
                    self.clock.sleep(pause).await;
                    pause = (pause * 2).min(RETRY_MAX);
                }
                result => return result,
            }
        }
    }

    /// A lock is held: what its last holder wrote is what this one reads.
    fn locked(&self, ino: InodeId, reply: Reply<()>) {
        if self.table.is_open(ino) && self.stale.is_pending() {
            self.stale.after_pending(reply);
        } else {
            reply.ok(());
        }
    }

    /// Gives up a range. What was written under the lock is saved first, so that the next holder sees it.
    pub(crate) fn unlock(self: &Arc<Self>, ino: InodeId, lock: Lock, reply: Reply<()>) {
        let dirty = self
            .table
            .file(ino)
            .filter(|f| f.is_dirty() && !f.orphaned.load(Ordering::SeqCst))
            .filter(|_| self.meta.lock_held(ino, lock.kind, lock.owner));
        if let Some(file) = dirty {
            let core = Arc::clone(self);
            return self.answer_long(reply, async move {
                if let Err(e) = core.save(&file).await {
                    // Unlocking goes on; the error is for the flush that asks about the data.
                    file.inner.lock().error.get_or_insert(e.kind());
                }
                core.give_up(ino, lock).await
            });
        }
        let pause = match self.meta.unlock_local(ino, lock) {
            Unlocked::Here => return reply.ok(()),
            Unlocked::Ask => None,
            Unlocked::AskAfter(pause) => Some(pause),
        };
        let core = Arc::clone(self);
        let ask = move || {
            let asking = Arc::clone(&core);
            core.answer(reply, async move { asking.meta.unlock(ino, lock).await });
        };
        match pause {
            None => ask(),
            Some(pause) => self.clock.later(pause, Box::new(ask)),
        }
    }

    /// Gives up a range.
    pub(crate) async fn give_up(&self, ino: InodeId, lock: Lock) -> Result<()> {
        match self.meta.unlock_local(ino, lock) {
            Unlocked::Here => return Ok(()),
            Unlocked::Ask => {}
            Unlocked::AskAfter(pause) => self.clock.sleep(pause).await,
        }
        self.within(REQUEST_DEADLINE, self.meta.unlock(ino, lock)).await
    }

    /// GETLK.
    pub(crate) fn lock_test(self: &Arc<Self>, ino: InodeId, lock: Lock, reply: Reply<Option<Lock>>) {
        let core = Arc::clone(self);
        self.answer(reply, async move {
            let holder = core.meta.lock_test(ino, lock).await?;
            Ok(holder.map(|h| {
                let here = h.session.0 != 0 && h.session.0 == core.session.load(Ordering::Relaxed);
                Lock { pid: if here { h.lock.pid } else { 0 }, ..h.lock }
            }))
        });
    }
}
