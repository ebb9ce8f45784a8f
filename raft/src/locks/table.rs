//! What a node knows of locks that the state does not: a plain value behind one mutex, and no waiting.

use super::hand_over::Transit;
use crate::state::lock::{Queue, Verdict, normal, same_owner};
use hfcache_base::meta::{Lock, LockHolder, LockKind};
use hfcache_base::seam::Moment;
use hfcache_base::{InodeId, Kind, SessionId};
use std::collections::BTreeMap;
use tokio::sync::oneshot;

/// Most inodes whose locks are this node's to decide; over it the longest unused are given back.
pub(crate) const DELEGATIONS_MAX: usize = 4_096;
/// How many are given back at once.
const GIVE_BACK: usize = 64;

/// What a waiting request is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// Held now.
    Granted,
    /// Nothing is known any more: ask again.
    Retry,
    /// The session is gone.
    Fenced,
}

/// An inode that is delegated to this session.
#[derive(Default)]
pub(crate) struct Entry {
    pub queue: Queue,
    /// Called back: no new lock is given, unlocks are still local.
    pub recalled: bool,
    /// Not called back before.
    pub turn: Moment,
    /// Nobody is told of a lock before this index is settled; 0 once it is.
    pub since: u64,
    /// On its way back, under this number: nothing is local until it has arrived.
    pub returning: Option<u64>,
    used: u64,
}

/// Where a request waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the queue of a delegated inode.
    Local,
    /// On its way to the state.
    Proposed,
    /// In the queue in the state.
    State,
}

pub(crate) struct Request {
    pub ino: InodeId,
    pub lock: Lock,
    pub place: Place,
    tell: oneshot::Sender<Told>,
}

/// What became of an attempt.
pub(crate) enum Attempt {
    Granted,
    Conflict,
    Refused(Kind),
    /// It waits here.
    Waits(u64, oneshot::Receiver<Told>),
    /// Something is under way: try again when the table has changed.
    Busy,
    /// The state decides.
    Ask,
}

#[derive(Default)]
pub(crate) struct Table {
    pub session: Option<SessionId>,
    pub entries: BTreeMap<InodeId, Entry>,
    pub requests: BTreeMap<u64, Request>,
    /// Requests whose caller went away and that are being undone: their owner's next one waits for that.
    pub undoing: BTreeMap<u64, (InodeId, LockKind, u64)>,
    pub transit: Transit,
    next: u64,
}

impl Table {
    pub fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Forgets everything: another session, or none.
    pub fn reset(&mut self, session: Option<SessionId>) {
        self.session = session;
        self.entries.clear();
        self.transit.reset();
        for (_, request) in std::mem::take(&mut self.requests) {
            let _ = request.tell.send(Told::Fenced);
        }
    }

    pub fn is_undoing(&self, ino: InodeId, lock: &Lock) -> bool {
        self.undoing.values().any(|u| *u == (ino, lock.kind, lock.owner))
    }

    /// Tries to take a lock without asking anyone.
    pub fn attempt(&mut self, ino: InodeId, lock: Lock, wait: bool) -> Attempt {
        let Some(session) = self.session else { return Attempt::Refused(Kind::Fenced) };
        let lock = match normal(lock) {
            Ok(lock) => lock,
            Err(kind) => return Attempt::Refused(kind),
        };
        if self.is_undoing(ino, &lock)
            || self.transit.is_early(ino, lock.kind, lock.owner)
            || self.transit.is_leaving(ino, &lock)
        {
            return Attempt::Busy;
        }
        let used = self.number();
        let Some(entry) = self.entries.get_mut(&ino) else {
            let taken = self.transit.any_early(ino) && lock.kind == LockKind::Flock && !wait;
            return if taken { Attempt::Conflict } else { Attempt::Ask };
        };
        if entry.recalled || entry.returning.is_some() {
            return Attempt::Busy;
        }
        entry.used = used;
        let ask = LockHolder { session, lock };
        let mut granted = Vec::new();
        let verdict = entry.queue.ask(ask, wait, &mut granted);
        self.grant(ino, &granted);
        match verdict {
            Ok(Verdict::Granted) => Attempt::Granted,
            Ok(Verdict::Conflict(_)) => Attempt::Conflict,
            Ok(Verdict::Queued(_)) => {
                let (id, told) = self.register(ino, lock, Place::Local);
                Attempt::Waits(id, told)
            }
            Err(kind) => Attempt::Refused(kind),
        }
    }

    pub fn register(&mut self, ino: InodeId, lock: Lock, place: Place) -> (u64, oneshot::Receiver<Told>) {
        let id = self.number();
        let (tell, told) = oneshot::channel();
        self.requests.insert(id, Request { ino, lock, place, tell });
        (id, told)
    }

    /// Tells the waiters of a local queue that they hold their locks.
    fn grant(&mut self, ino: InodeId, granted: &[LockHolder]) {
        for holder in granted {
            self.tell_first(ino, &holder.lock, |place| place == Place::Local, Told::Granted);
        }
    }

    /// Tells the oldest request for exactly this lock; `false` if there is none.
    fn tell_first(&mut self, ino: InodeId, lock: &Lock, at: impl Fn(Place) -> bool, told: Told) -> bool {
        let mut of_inode = self.requests.iter();
        let found = of_inode.find(|(_, r)| r.ino == ino && r.lock == *lock && at(r.place)).map(|(id, _)| *id);
        found.is_some_and(|id| self.tell(id, told))
    }

    /// Tells a request to the state for exactly this lock what became of it; `false` if there is none.
    pub fn tell_granted(&mut self, ino: InodeId, lock: &Lock, told: Told) -> bool {
        self.tell_first(ino, lock, |place| place == Place::State, told)
            || self.tell_first(ino, lock, |place| place == Place::Proposed, told)
    }

    pub fn tell(&mut self, id: u64, told: Told) -> bool {
        // Whoever dropped the other end undoes it: he finds the request gone.
        self.requests.remove(&id).map(|r| r.tell.send(told)).is_some()
    }

    /// Gives up a range under a delegation. `None` if the state has to be asked or something is under way.
    pub fn unlock(&mut self, ino: InodeId, lock: Lock) -> Option<Result<(), Kind>> {
        let Some(session) = self.session else { return Some(Ok(())) };
        let lock = match normal(lock) {
            Ok(lock) => lock,
            Err(kind) => return Some(Err(kind)),
        };
        if self.is_undoing(ino, &lock) {
            return None;
        }
        let entry = self.entries.get_mut(&ino).filter(|e| e.returning.is_none())?;
        let mut granted = Vec::new();
        entry.queue.unlock(&LockHolder { session, lock }, &mut granted);
        self.grant(ino, &granted);
        Some(Ok(()))
    }

    /// Takes a request back from a local queue; `false` if it was answered before.
    pub fn withdraw(&mut self, id: u64) -> bool {
        let Some(request) = self.requests.remove(&id) else { return false };
        if let (Some(session), Some(entry)) = (self.session, self.entries.get_mut(&request.ino)) {
            let mut granted = Vec::new();
            entry.queue.withdraw(&LockHolder { session, lock: request.lock }, &mut granted);
            self.grant(request.ino, &granted);
        }
        true
    }

    /// The inode's locks are ours from now on.
    pub fn adopt(&mut self, ino: InodeId) -> &mut Entry {
        let used = self.number();
        self.entries.entry(ino).or_insert(Entry { used, ..Entry::default() })
    }

    /// Closes a delegated inode and says what is held there; `None` if that was done before.
    pub fn start_return(&mut self, ino: InodeId) -> Option<(u64, Vec<Lock>)> {
        let number = self.number();
        let entry = self.entries.get_mut(&ino).filter(|e| e.returning.is_none())?;
        entry.returning = Some(number);
        entry.queue.waiting.clear();
        let held = entry.queue.held.iter().map(|h| h.lock).collect();
        self.retry_local(ino);
        Some((number, held))
    }

    /// A delegation is gone.
    pub fn forget(&mut self, ino: InodeId) {
        self.entries.remove(&ino);
        self.retry_local(ino);
    }

    fn retry_local(&mut self, ino: InodeId) {
        let local = |r: &Request| r.ino == ino && r.place == Place::Local;
        let ids: Vec<u64> = self.requests.iter().filter(|(_, r)| local(r)).map(|(id, _)| *id).collect();
        for id in ids {
            self.tell(id, Told::Retry);
        }
    }

    /// Delegations to give back because there are too many: unused ones, oldest first.
    pub fn surplus(&self) -> Vec<InodeId> {
        if self.entries.len() <= DELEGATIONS_MAX {
            return Vec::new();
        }
        let idle =
            self.entries.iter().filter(|(_, e)| e.queue.is_empty() && !e.recalled && e.returning.is_none());
        let mut idle: Vec<(u64, InodeId)> = idle.map(|(ino, e)| (e.used, *ino)).collect();
        idle.sort_unstable();
        idle.into_iter().take(GIVE_BACK).map(|(_, ino)| ino).collect()
    }

    /// Requests of an owner that wait in the state in this range; `true` for exactly this range.
    pub fn waits_in(&self, ino: InodeId, lock: &Lock) -> Vec<(u64, bool)> {
        let me = LockHolder { session: SessionId(0), lock: *lock };
        let mine = self.requests.iter().filter(|(_, r)| {
            let other = LockHolder { session: SessionId(0), lock: r.lock };
            r.ino == ino && r.place == Place::State && same_owner(&me, &other)
        });
        let mine = mine.filter(|(_, r)| r.lock.start <= lock.end && lock.start <= r.lock.end);
        mine.map(|(id, r)| (*id, (r.lock.start, r.lock.end) == (lock.start, lock.end))).collect()
    }

    /// The request that has waited longest in the state's queue.
    pub fn oldest_wait(&self, ino: InodeId) -> Option<u64> {
        self.requests.iter().find(|(_, r)| r.ino == ino && r.place == Place::State).map(|(id, _)| *id)
    }

    /// Whether an owner has asked the state for anything that is not decided.
    pub fn asks(&self, ino: InodeId, kind: LockKind, owner: u64) -> bool {
        self.requests.values().any(|r| (r.ino, r.lock.kind, r.lock.owner) == (ino, kind, owner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_delegations_go_back_oldest_first() {
        let mut table = Table { session: Some(SessionId(1)), ..Table::default() };
        for n in 1..=DELEGATIONS_MAX as u64 {
            table.adopt(InodeId(n));
        }
        assert!(table.surplus().is_empty());
        let lock = Lock { kind: LockKind::Flock, owner: 1, exclusive: true, start: 0, end: u64::MAX, pid: 1 };
        // One is held, one was used just now.
        assert!(matches!(table.attempt(InodeId(1), lock, false), Attempt::Granted));
        assert!(matches!(table.attempt(InodeId(2), lock, false), Attempt::Granted));
        assert_eq!(table.unlock(InodeId(2), lock), Some(Ok(())));
        table.adopt(InodeId(99_999));
        let surplus = table.surplus();
        assert_eq!(surplus.first(), Some(&InodeId(3)));
        assert_eq!(surplus.len(), GIVE_BACK);
    }
}
