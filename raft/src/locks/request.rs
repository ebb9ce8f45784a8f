//! What one request goes through: locally, in the state, cancelled, undone. May wait, so it holds no guard of
//! the table across an `await`.

use super::table::{Attempt, Place, Told};
use super::{Inner, PROBE, RECALL_PATIENCE};
use hfcache_base::meta::{Lock, LockHolder, LockKind, LockReply, Op, Reply};
use hfcache_base::seam::Unlocked;
use hfcache_base::{Error, InodeId, Kind, Result};
use std::sync::Arc;
use tokio::sync::oneshot;

impl Inner {
    /// One request from beginning to end.
    pub(super) async fn drive(
        self: Arc<Self>,
        id: u64,
        ino: InodeId,
        lock: Lock,
        wait: bool,
        mut answer: oneshot::Sender<Result<()>>,
    ) {
        let mut result = self.decide(ino, lock, wait, &mut answer).await;
        loop {
            // Of a lock that is held early the others will hear: until then they see its former holder.
            if result.is_ok() && self.table.lock().transit.is_early(ino, lock.kind, lock.owner) {
                break;
            }
            let settled = tokio::select! {
                settled = self.settle() => settled,
                () = answer.closed() => break,
            };
            match settled {
                Ok(()) => break,
                // A lock that is held is not given up because of that.
                Err(e) if result.is_ok() && e.kind() == Kind::Unavailable => {}
                Err(e) => {
                    result = Err(e);
                    break;
                }
            }
        }
        match answer.send(result) {
            Ok(()) => {}
            Err(Ok(())) => self.undo(id, ino, lock).await,
            Err(Err(_)) => self.undone(id),
        }
    }

    /// Waits until everything that is known here of locks is known everywhere: only then may it be told.
    pub(super) async fn settle(&self) -> Result<()> {
        match self.replica.newest() {
            0 => Ok(()),
            newest => self.replica.settled(newest).await,
        }
    }

    pub(super) async fn undo(self: &Arc<Self>, id: u64, ino: InodeId, lock: Lock) {
        // Fails only with the session, and then there is nothing left to undo.
        let _ = self.unlock(ino, lock, true).await;
        self.undone(id);
    }

    pub(super) fn undone(&self, id: u64) {
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
            let (session, id, mut told) = {
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
                let told_anyway = matches!(reply, Ok(LockReply::Queued(_) | LockReply::Delegated));
                if matches!(reply, Ok(LockReply::Delegated)) {
                    table.requests.remove(&id);
                } else if !told_anyway && table.requests.remove(&id).is_none() {
                    // It was told of a grant that was meant for a twin of it.
                    table.tell_granted(ino, &lock, Told::Granted);
                }
            }
            match reply? {
                LockReply::Granted => return Ok(()),
                LockReply::Conflict(_) => return Err(Kind::WouldBlock.into()),
                LockReply::Delegated => {
                    if let Ok(told) = told.try_recv() {
                        if heard(Ok(told))? {
                            return Ok(());
                        }
                    } else {
                        self.know(ino);
                    }
                }
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
            () = self.early(id, ino, lock) => return Ok(true),
            () = caller.closed() => {}
        }
        // Withdraws the wait, or gives the lock up if it was granted on the way.
        let withdrawn = self.give_up(ino, lock).await;
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

    pub(super) async fn propose(&self, op: Op) -> Result<Reply> {
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

    /// The state says that an inode is delegated to us. We know of it, unless a snapshot swallowed the
    /// change: then it goes back, to begin anew.
    fn know(self: &Arc<Self>, ino: InodeId) {
        let mut table = self.table.lock();
        if table.session.is_some() && !table.entries.contains_key(&ino) {
            table.adopt(ino);
            self.start_return(&mut table, ino);
        }
    }

    pub(super) fn unlock_here(self: &Arc<Self>, ino: InodeId, lock: Lock) -> Result<Unlocked, Kind> {
        let mut table = self.table.lock();
        if let Some(done) = table.unlock(ino, lock) {
            self.return_if_idle(&mut table, ino);
            return done.map(|()| Unlocked::Here);
        }
        let Some(session) = table.session else { return Ok(Unlocked::Ask) };
        let busy = table.entries.contains_key(&ino)
            || table.is_undoing(ino, &lock)
            || table.asks(ino, lock.kind, lock.owner)
            || table.transit.is_early(ino, lock.kind, lock.owner);
        if busy || table.transit.is_passed(ino, &lock) {
            return Ok(Unlocked::Ask);
        }
        if let Some((asked, unlocked)) = table.transit.pass(ino, &lock) {
            // Who is told needs the table. If nobody waits any more the state is all there is.
            drop(table);
            for tell in asked {
                let _ = tell.send(());
            }
            return Ok(unlocked);
        }
        // All that this node asked for is applied here, so nothing held there is nothing held.
        let free = self.replica.locks(ino).is_ok_and(|record| {
            record.delegated != Some(session) && !record.queue.held.holds(session, lock.kind, lock.owner)
        });
        Ok(if free { Unlocked::Here } else { Unlocked::Ask })
    }

    /// Gives up a range; `undoing` is the request that is being undone itself and waits for no other.
    pub(super) async fn unlock(self: &Arc<Self>, ino: InodeId, lock: Lock, undoing: bool) -> Result<()> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let waits = {
                let mut table = self.table.lock();
                let hidden = if undoing { std::mem::take(&mut table.undoing) } else { Default::default() };
                let done = table.unlock(ino, lock);
                let busy = table.entries.contains_key(&ino)
                    || table.is_undoing(ino, &lock)
                    || table.transit.is_early(ino, lock.kind, lock.owner);
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
            self.give_up(ino, lock).await?;
            // A wait of another thread for the same range was withdrawn in place of the lock itself.
            if waits.iter().any(|(_, exactly)| *exactly) {
                self.give_up(ino, lock).await?;
            }
            let mut table = self.table.lock();
            for (id, _) in waits {
                table.tell(id, Told::Retry);
            }
            return Ok(());
        }
    }

    pub(super) async fn test(self: &Arc<Self>, ino: InodeId, lock: Lock) -> Result<Option<LockHolder>> {
        let since = self.clock.now();
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let (me, returning) = {
                let table = self.table.lock();
                let me = table.session.ok_or(Kind::Fenced)?;
                match table.entries.get(&ino) {
                    Some(e) if e.returning.is_none() => {
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
                self.know(ino);
                continue;
            }
            if self.clock.now().since(since) >= RECALL_PATIENCE {
                return Ok(Some(LockHolder { session: other, lock }));
            }
            // Only its session knows what is held. A shared lock that is not waited for calls it back.
            let probe = Lock { owner: PROBE, exclusive: false, pid: 0, ..lock };
            match self.propose_lock(ino, probe, false).await? {
                LockReply::Granted => self.give_up(ino, probe).await.map(drop)?,
                LockReply::Recalling => {
                    self.await_return(ino, std::future::pending()).await?;
                }
                LockReply::Delegated | LockReply::Conflict(_) | LockReply::Queued(_) => {}
            }
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
