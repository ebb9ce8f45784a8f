//! The lock rules of one inode: pure values, no store. The node's own table decides by the same [`Held`].
//!
//! An inode's locks are in one of two places. **Delegated**: one session decides alone, in memory; the state
//! knows only whom. **Recorded**: `held` and `waiting` are in the state. A request from another session
//! recalls a delegation and waits until it has come back with the locks that are held. A delegation is made
//! only when nobody holds or awaits anything, so two nodes in contention stay with records.
//!
//! Waiters are served in order: nobody passes a waiter that he conflicts with, except one for whom that
//! waiter waits (or neither would ever go on).

use hfcache_base::limits::CALL_HEAD_MAX;
use hfcache_base::meta::{Lock, LockHolder, LockKind, LockReply};
use hfcache_base::{Kind, SessionId};
use serde::{Deserialize, Serialize};

/// Most locks, and most waiters, of one inode. A request over it is answered with [`Kind::NoSpace`].
pub const LOCKS_MAX: usize = 4_096;
const _: () = assert!(LOCKS_MAX * 64 < CALL_HEAD_MAX);

/// A lock request with the range it is meant for: `flock` is always about the whole file.
///
/// # Errors
/// [`Kind::Invalid`] for a range that ends before it starts.
pub fn normal(lock: Lock) -> Result<Lock, Kind> {
    match lock.kind {
        LockKind::Flock => Ok(Lock { start: 0, end: u64::MAX, ..lock }),
        LockKind::Posix if lock.start <= lock.end => Ok(lock),
        LockKind::Posix => Err(Kind::Invalid),
    }
}

/// Whether two locks share a byte and are of one kind.
pub fn overlap(a: &Lock, b: &Lock) -> bool {
    a.kind == b.kind && a.start <= b.end && b.start <= a.end
}

/// Whether two holders are one: the same session, kind and owner.
pub fn same_owner(a: &LockHolder, b: &LockHolder) -> bool {
    a.session == b.session && a.lock.kind == b.lock.kind && a.lock.owner == b.lock.owner
}

/// Whether `a` and `b` cannot both be held.
pub fn conflict(a: &LockHolder, b: &LockHolder) -> bool {
    !same_owner(a, b) && overlap(&a.lock, &b.lock) && (a.lock.exclusive || b.lock.exclusive)
}

/// Locks that are held: ordered, and of one owner never two on the same byte nor two that could be one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Held(Vec<LockHolder>);

impl Held {
    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &LockHolder> {
        self.0.iter()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many records there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The first that is in the way of a request.
    pub fn conflict(&self, ask: &LockHolder) -> Option<LockHolder> {
        self.0.iter().find(|held| conflict(held, ask)).copied()
    }

    /// Whether an owner holds anything of a kind.
    pub fn holds(&self, session: SessionId, kind: LockKind, owner: u64) -> bool {
        self.0.iter().any(|h| h.session == session && h.lock.kind == kind && h.lock.owner == owner)
    }

    /// Gives a lock to its owner, in place of what he had in this range.
    pub fn set(&mut self, new: LockHolder) {
        self.clear(&new);
        let mut new = new;
        self.0.retain(|old| {
            let touches = old.lock.end.checked_add(1) == Some(new.lock.start)
                || new.lock.end.checked_add(1) == Some(old.lock.start);
            let joins = touches && same_owner(old, &new) && old.lock.exclusive == new.lock.exclusive;
            if joins {
                new.lock.start = new.lock.start.min(old.lock.start);
                new.lock.end = new.lock.end.max(old.lock.end);
            }
            !joins
        });
        self.insert(new);
    }

    /// Takes a range from an owner: what he holds beyond it stays.
    pub fn clear(&mut self, range: &LockHolder) {
        let mut rest = Vec::new();
        self.0.retain(|old| {
            if !same_owner(old, range) || !overlap(&old.lock, &range.lock) {
                return true;
            }
            if old.lock.start < range.lock.start {
                rest.push(LockHolder { lock: Lock { end: range.lock.start - 1, ..old.lock }, ..*old });
            }
            if old.lock.end > range.lock.end {
                rest.push(LockHolder { lock: Lock { start: range.lock.end + 1, ..old.lock }, ..*old });
            }
            false
        });
        for part in rest {
            self.insert(part);
        }
    }

    /// Takes everything from a session.
    pub fn drop_session(&mut self, session: SessionId) {
        self.0.retain(|h| h.session != session);
    }

    fn insert(&mut self, new: LockHolder) {
        let order = |h: &LockHolder| (h.lock.kind, h.lock.start, h.session, h.lock.owner);
        let at = self.0.partition_point(|h| order(h) < order(&new));
        self.0.insert(at, new);
    }
}

/// Locks held and awaited, and who is next: what both the state and a node's own table need.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queue {
    /// What is held.
    pub held: Held,
    /// Who waits, in order.
    pub waiting: Vec<LockHolder>,
}

/// What a [`Queue`] says to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Held.
    Granted,
    /// This is in the way, and the request does not wait.
    Conflict(LockHolder),
    /// This is in the way, and the request waits.
    Queued(LockHolder),
}

impl Queue {
    /// Whether nothing is held or awaited.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty() && self.waiting.is_empty()
    }

    /// Who would be in the way of a request that comes now.
    pub fn blocker(&self, ask: &LockHolder) -> Option<LockHolder> {
        self.blocker_behind(ask, self.waiting.len())
    }

    /// The same for the waiter at `place`, or for a newcomer.
    fn blocker_behind(&self, ask: &LockHolder, place: usize) -> Option<LockHolder> {
        self.held.conflict(ask).or_else(|| {
            let mut ahead = self.waiting.iter().take(place);
            ahead.find(|w| conflict(w, ask) && !self.waits_for(w, ask)).copied()
        })
    }

    /// Whether `waiter` cannot go on before the owner of `me` gives something up.
    fn waits_for(&self, waiter: &LockHolder, me: &LockHolder) -> bool {
        if !self.held.holds(me.session, me.lock.kind, me.lock.owner) {
            return false;
        }
        let mut seen: Vec<LockHolder> = Vec::new();
        let mut open = vec![*waiter];
        while let Some(w) = open.pop() {
            for held in self.held.iter().filter(|h| conflict(h, &w)) {
                if same_owner(held, me) {
                    return true;
                }
                if !seen.iter().any(|s| same_owner(s, held)) {
                    seen.push(*held);
                    open.extend(self.waiting.iter().filter(|next| same_owner(next, held)));
                }
            }
        }
        false
    }

    fn deadlocks(&self, ask: &LockHolder) -> bool {
        let mut in_the_way = self.held.iter().filter(|h| conflict(h, ask));
        in_the_way.any(|h| self.waiting.iter().any(|w| same_owner(w, h) && self.waits_for(w, ask)))
    }

    /// Asks for a lock. `granted` gets the waiters that may go on because of it.
    ///
    /// # Errors
    /// [`Kind::Deadlock`] if it would wait for itself; [`Kind::NoSpace`] over [`LOCKS_MAX`]. Nothing changes.
    pub fn ask(
        &mut self,
        ask: LockHolder,
        wait: bool,
        granted: &mut Vec<LockHolder>,
    ) -> Result<Verdict, Kind> {
        if self.held.len().max(self.waiting.len()) >= LOCKS_MAX {
            return Err(Kind::NoSpace);
        }
        let Some(holder) = self.blocker(&ask) else {
            self.held.set(ask);
            // It may have given up a stronger one.
            self.serve(granted);
            return Ok(Verdict::Granted);
        };
        match ask.lock.kind {
            LockKind::Posix if wait && self.deadlocks(&ask) => return Err(Kind::Deadlock),
            LockKind::Posix => {}
            // flock(2): a conversion first gives up the old lock, whatever then becomes of the new one.
            LockKind::Flock => {
                self.held.clear(&ask);
                self.serve(granted);
            }
        }
        // Those who waited may be what is in the way now.
        let holder = self.blocker(&ask).unwrap_or(holder);
        if !wait {
            return Ok(Verdict::Conflict(holder));
        }
        self.waiting.push(ask);
        Ok(Verdict::Queued(holder))
    }

    /// Takes one waiter back.
    pub fn withdraw(&mut self, waiter: &LockHolder, granted: &mut Vec<LockHolder>) {
        if let Some(at) = self.waiting.iter().position(|w| w == waiter) {
            self.waiting.remove(at);
            self.serve(granted);
        }
    }

    /// Gives up a range that is held.
    pub fn unlock(&mut self, range: &LockHolder, granted: &mut Vec<LockHolder>) {
        self.held.clear(range);
        self.serve(granted);
    }

    /// Grants what can be granted, in order.
    fn serve(&mut self, granted: &mut Vec<LockHolder>) {
        let mut place = 0;
        while let Some(ask) = self.waiting.get(place).copied() {
            if self.held.len() < LOCKS_MAX && self.blocker_behind(&ask, place).is_none() {
                self.waiting.remove(place);
                self.held.set(ask);
                granted.push(ask);
                // A grant can give up a stronger lock of its owner: those ahead may go on.
                place = 0;
            } else {
                place += 1;
            }
        }
    }
}

/// What somebody has to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// This session must return its delegation.
    Recall(SessionId),
    /// A request waits.
    Queued,
    /// A request that waited is granted; as a delegation if `true` (then also if it did not wait).
    Granted(LockHolder, bool),
    /// The delegation has come back.
    Returned,
}

/// The locks of one inode as the state keeps them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockRecord {
    /// Who decides alone; then nothing is held here.
    pub delegated: Option<SessionId>,
    /// The delegation is being called back.
    pub recalled: bool,
    /// What is held and awaited.
    pub queue: Queue,
}

impl LockRecord {
    /// Whether there is nothing to remember.
    pub fn is_empty(&self) -> bool {
        self.delegated.is_none() && self.queue.is_empty()
    }

    /// Every session that has something here.
    pub fn sessions(&self) -> std::collections::BTreeSet<SessionId> {
        let holders = self.queue.held.iter().chain(&self.queue.waiting).map(|h| h.session);
        holders.chain(self.delegated).collect()
    }

    /// The only holder, if the first waiter gets the lock the moment that one gives it up, whatever else happens,
    /// and if until then nobody can tell which of the two holds it: exclusive `flock`s both.
    pub fn hand_over(&self) -> Option<(LockHolder, LockHolder)> {
        let whole = |h: &&LockHolder| h.lock.kind == LockKind::Flock && h.lock.exclusive;
        let next = self.queue.waiting.first().filter(whole)?;
        let mut held = self.queue.held.iter();
        let holder = held.next().filter(whole).filter(|h| !same_owner(h, next))?;
        (self.delegated.is_none() && held.next().is_none()).then_some((*holder, *next))
    }

    /// Asks for a lock.
    ///
    /// # Errors
    /// As [`Queue::ask`].
    pub fn request(
        &mut self,
        ask: LockHolder,
        wait: bool,
        events: &mut Vec<Event>,
    ) -> Result<LockReply, Kind> {
        if let Some(session) = self.delegated {
            if session == ask.session && !self.recalled {
                return Ok(LockReply::Delegated);
            }
            if wait && self.queue.waiting.len() >= LOCKS_MAX {
                return Err(Kind::NoSpace);
            }
            if !self.recalled {
                self.recalled = true;
                events.push(Event::Recall(session));
            }
            if !wait {
                return Ok(LockReply::Recalling);
            }
            self.queue.waiting.push(ask);
            // What exactly is in the way only that session knows.
            return Ok(LockReply::Queued(LockHolder { session, lock: ask.lock }));
        }
        if self.queue.is_empty() {
            // Told as an event too: its session learns of delegations, recalls and returns in one order.
            self.delegated = Some(ask.session);
            events.push(Event::Granted(ask, true));
            return Ok(LockReply::Delegated);
        }
        let mut granted = Vec::new();
        let verdict = self.queue.ask(ask, wait, &mut granted)?;
        recorded(granted, events);
        Ok(match verdict {
            Verdict::Granted => LockReply::Granted,
            Verdict::Conflict(holder) => LockReply::Conflict(holder),
            Verdict::Queued(holder) => {
                events.push(Event::Queued);
                LockReply::Queued(holder)
            }
        })
    }

    /// Gives up a range, and the waits in it. Exactly the range of a wait withdraws only that wait: an
    /// interrupted upgrade keeps what was held before.
    pub fn release(&mut self, range: LockHolder, events: &mut Vec<Event>) {
        let mut withdrawn = false;
        self.queue.waiting.retain(|w| {
            let gone = same_owner(w, &range) && overlap(&w.lock, &range.lock);
            withdrawn |= gone && (w.lock.start, w.lock.end) == (range.lock.start, range.lock.end);
            !gone
        });
        if !withdrawn {
            self.queue.held.clear(&range);
        }
        self.serve(events);
    }

    /// A delegation comes back with the locks held under it. One that is not there is no error: the
    /// session may have returned it before.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for locks that cannot be held together; [`Kind::NoSpace`] over [`LOCKS_MAX`].
    pub fn give_back(
        &mut self,
        session: SessionId,
        held: &[Lock],
        events: &mut Vec<Event>,
    ) -> Result<(), Kind> {
        if self.delegated != Some(session) {
            return Ok(());
        }
        if held.len() > LOCKS_MAX {
            return Err(Kind::NoSpace);
        }
        let mut records = Held::default();
        for lock in held {
            let holder = LockHolder { session, lock: normal(*lock)? };
            if records.conflict(&holder).is_some() {
                return Err(Kind::Invalid);
            }
            records.set(holder);
        }
        self.queue.held = records;
        self.returned(events);
        Ok(())
    }

    /// A session ended: nothing of it remains.
    pub fn close(&mut self, session: SessionId, events: &mut Vec<Event>) {
        self.queue.held.drop_session(session);
        self.queue.waiting.retain(|w| w.session != session);
        if self.delegated == Some(session) {
            self.returned(events);
        } else {
            self.serve(events);
        }
    }

    fn returned(&mut self, events: &mut Vec<Event>) {
        self.delegated = None;
        self.recalled = false;
        events.push(Event::Returned);
        self.serve(events);
    }

    /// Grants what can be granted; the last one waiting, with nobody else involved, gets the delegation.
    fn serve(&mut self, events: &mut Vec<Event>) {
        if self.delegated.is_some() {
            return;
        }
        if let ([only], true) = (self.queue.waiting.as_slice(), self.queue.held.is_empty()) {
            events.push(Event::Granted(*only, true));
            self.delegated = Some(only.session);
            self.queue.waiting.clear();
            return;
        }
        let mut granted = Vec::new();
        self.queue.serve(&mut granted);
        recorded(granted, events);
    }
}

fn recorded(granted: Vec<LockHolder>, events: &mut Vec<Event>) {
    events.extend(granted.into_iter().map(|holder| Event::Granted(holder, false)));
}
