//! The lock rules against a map of bytes: who holds what is compared after every step.

#![expect(clippy::unwrap_used, reason = "a failure ends the test")]

mod state_support;

use hfcache_base::limits::FILE_SIZE_MAX;
use hfcache_base::meta::*;
use hfcache_base::{InodeId, Kind, SessionId};
use hfcache_raft::kv::Table;
use hfcache_raft::state::lock::{Queue, Verdict, conflict};
use state_support::*;
use std::collections::BTreeMap;

fn flock(owner: u64, exclusive: bool) -> Lock {
    Lock { kind: LockKind::Flock, owner, exclusive, start: 0, end: u64::MAX, pid: 3 }
}

fn posix(owner: u64, exclusive: bool, start: u64, end: u64) -> Lock {
    Lock { kind: LockKind::Posix, owner, exclusive, start, end, pid: 3 }
}

fn lock(ino: InodeId, lock: Lock, wait: bool) -> Op {
    Op::Lock { ino, lock, wait }
}

/// (kind, byte) → (session, owner) → exclusive.
type Bytes = BTreeMap<(LockKind, u64), BTreeMap<(SessionId, u64), bool>>;

const BYTES: u64 = 8;

fn set(bytes: &mut Bytes, session: SessionId, l: &Lock, to: Option<bool>) {
    for byte in (0..BYTES).filter(|b| l.start <= *b && *b <= l.end) {
        let at = bytes.entry((l.kind, byte)).or_default();
        match to {
            Some(exclusive) => drop(at.insert((session, l.owner), exclusive)),
            None => drop(at.remove(&(session, l.owner))),
        }
    }
}

struct Run {
    world: World,
    ino: InodeId,
    sessions: Vec<SessionId>,
    bytes: Bytes,
    /// The table of the session that decides alone.
    local: Option<(SessionId, Queue)>,
    dice: Dice,
}

impl Run {
    fn any_lock(&mut self) -> Lock {
        let (owner, exclusive) = (1 + self.dice.below(2), self.dice.one_in(2));
        if self.dice.one_in(3) {
            return flock(owner, exclusive);
        }
        let start = self.dice.below(BYTES);
        posix(owner, exclusive, start, start + self.dice.below(BYTES - start))
    }

    fn absorb(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::LockGranted { session, lock, delegated, .. } => {
                    set(&mut self.bytes, session, &lock, Some(lock.exclusive));
                    if delegated {
                        assert!(self.local.is_none());
                        let mut queue = Queue::default();
                        queue.held.set(LockHolder { session, lock });
                        self.local = Some((session, queue));
                    }
                }
                Change::LocksReturned(_) => self.local = None,
                _ => {}
            }
        }
    }

    fn do_lock(&mut self, session: SessionId) {
        let (ask, wait) = (self.any_lock(), self.dice.one_in(2));
        let held_before = self.record().queue.held.clone();
        let outcome = self.world.outcome(session, lock(self.ino, ask, wait));
        let flock = ask.kind == LockKind::Flock;
        let reply = match outcome.reply {
            Ok(Reply::Lock(reply)) => reply,
            Err(Kind::Deadlock) => {
                assert!(wait && !flock && held_before.holds(session, ask.kind, ask.owner));
                return;
            }
            other => panic!("{other:?}"),
        };
        let news = !outcome.applied.changes.is_empty();
        match reply {
            LockReply::Granted => set(&mut self.bytes, session, &ask, Some(ask.exclusive)),
            LockReply::Delegated if !news => {
                // Already ours: the local table decides, without waiting to keep this simple.
                let (owner, queue) = self.local.as_mut().unwrap();
                assert_eq!(*owner, session);
                let verdict = queue.ask(LockHolder { session, lock: ask }, false, &mut Vec::new()).unwrap();
                match verdict {
                    Verdict::Granted => set(&mut self.bytes, session, &ask, Some(ask.exclusive)),
                    _ if flock => set(&mut self.bytes, session, &ask, None),
                    _ => {}
                }
            }
            LockReply::Delegated => {}
            LockReply::Conflict(holder) => {
                assert!(!wait && conflict(&holder, &LockHolder { session, lock: ask }));
                if flock {
                    set(&mut self.bytes, session, &ask, None);
                }
            }
            LockReply::Queued(_) if self.local.is_none() && flock => {
                set(&mut self.bytes, session, &ask, None)
            }
            LockReply::Queued(_) => assert!(wait),
            LockReply::Recalling => assert!(!wait && self.record().recalled),
        }
        self.absorb(outcome.applied.changes);
    }

    fn do_unlock(&mut self, session: SessionId) {
        let range = self.any_lock();
        if let Some((owner, queue)) = self.local.as_mut()
            && *owner == session
        {
            queue.unlock(&LockHolder { session, lock: range }, &mut Vec::new());
            set(&mut self.bytes, session, &range, None);
            return;
        }
        let same = |w: &LockHolder| {
            (w.session, w.lock.kind, w.lock.owner, w.lock.start, w.lock.end)
                == (session, range.kind, range.owner, range.start, range.end)
        };
        let withdraws = self.record().queue.waiting.iter().any(same);
        let op = Op::Unlock { ino: self.ino, lock: range };
        let changes = self.world.changes(session, op);
        if !withdraws {
            set(&mut self.bytes, session, &range, None);
        }
        self.absorb(changes);
    }

    fn record(&self) -> hfcache_raft::state::LockRecord {
        self.world.view().locks(self.ino).unwrap()
    }

    fn do_return(&mut self) {
        let Some((session, queue)) = self.local.clone() else { return };
        let held = queue.held.iter().map(|h| h.lock).collect();
        let changes = self.world.changes(session, Op::ReturnDelegation { ino: self.ino, held });
        assert!(changes.contains(&Change::LocksReturned(self.ino)));
        self.absorb(changes);
    }

    fn do_close(&mut self) {
        let which = self.dice.below(3) as usize;
        let session = self.sessions[which];
        for at in self.bytes.values_mut() {
            at.retain(|(s, _), _| *s != session);
        }
        let changes = self.world.changes(SessionId(0), Op::CloseSessions(vec![session]));
        self.absorb(changes);
        let node = hfcache_base::NodeId(which as u64 + 1);
        let nonce = self.dice.roll();
        self.sessions[which] = self.world.open(node, nonce);
    }

    fn check(&self) {
        let record = self.record();
        assert_eq!(record.delegated, self.local.as_ref().map(|(s, _)| *s));
        assert!(record.delegated.is_none() || record.queue.held.is_empty());
        assert_eq!(record.recalled, record.delegated.is_some() && record.recalled);
        assert!(record.recalled || record.delegated.is_none() || record.queue.waiting.is_empty());
        // Byte for byte the same holders, and none in another's way.
        let held = self.local.as_ref().map_or(&record.queue.held, |(_, q)| &q.held);
        let mut bytes = Bytes::new();
        for h in held.iter() {
            set(&mut bytes, h.session, &h.lock, Some(h.lock.exclusive));
        }
        let solid = |b: &Bytes| -> Bytes { b.clone().into_iter().filter(|(_, at)| !at.is_empty()).collect() };
        assert_eq!(solid(&bytes), solid(&self.bytes));
        for at in self.bytes.values() {
            assert!(at.len() <= 1 || at.values().all(|exclusive| !exclusive), "{at:?}");
        }
        // Whoever waits has a reason to.
        if record.delegated.is_none() {
            for (n, w) in record.queue.waiting.iter().enumerate() {
                let reason = held.conflict(w).is_some()
                    || record.queue.waiting[..n].iter().any(|ahead| conflict(ahead, w));
                assert!(reason, "{w:?} waits for nothing in {record:?}");
            }
        }
        // A session that ends finds all it has.
        let items = self.world.store.iter().filter(|(t, ..)| *t == Table::SessionItem).count();
        assert_eq!(items, record.sessions().len());
    }
}

#[test]
fn locks_are_what_a_map_of_bytes_says() {
    for seed in 1..=60u64 {
        println!("seed {seed}");
        let (mut world, one) = World::new();
        let sessions = vec![one, world.join(2), world.join(3)];
        let ino = world.file(one, ROOT, "f");
        let (bytes, local, dice) = (Bytes::new(), None, Dice(seed << 32));
        let mut run = Run { world, ino, sessions, bytes, local, dice };
        for _ in 0..200 {
            let session = run.sessions[run.dice.below(3) as usize];
            match run.dice.below(12) {
                0..=5 => run.do_lock(session),
                6..=9 => run.do_unlock(session),
                10 => run.do_return(),
                _ if run.dice.one_in(4) => run.do_close(),
                _ => run.do_return(),
            }
            run.check();
        }
    }
}

/// Two sessions with records: each holds something, so nothing is delegated.
fn contended() -> (World, SessionId, SessionId, InodeId) {
    let (mut w, a) = World::new();
    let b = w.join(2);
    let f = w.file(a, ROOT, "f");
    assert_eq!(w.run(a, lock(f, posix(9, false, 900, 900), false)), Ok(Reply::Lock(LockReply::Delegated)));
    assert_eq!(w.run(b, lock(f, posix(9, false, 900, 900), false)), Ok(Reply::Lock(LockReply::Recalling)));
    w.run(a, Op::ReturnDelegation { ino: f, held: vec![posix(9, false, 900, 900)] }).unwrap();
    assert_eq!(w.run(b, lock(f, posix(9, false, 900, 900), false)), Ok(Reply::Lock(LockReply::Granted)));
    (w, a, b, f)
}

#[test]
fn a_delegation_comes_back_and_moves_on() {
    let (mut w, a) = World::new();
    let b = w.join(2);
    let f = w.file(a, ROOT, "f");
    let granted = Change::LockGranted { session: a, ino: f, lock: flock(1, true), delegated: true };
    assert_eq!(w.changes(a, lock(f, flock(1, true), true)), [granted]);
    let recall = Change::Recall { session: a, ino: f };
    assert_eq!(w.changes(b, lock(f, flock(2, true), true)), [recall]);
    assert_eq!(w.changes(b, lock(f, flock(3, true), false)), []);
    let granted = Change::LockGranted { session: b, ino: f, lock: flock(2, true), delegated: true };
    let back = Op::ReturnDelegation { ino: f, held: vec![] };
    assert_eq!(w.changes(a, back.clone()), [Change::LocksReturned(f), granted]);
    assert_eq!(w.changes(a, back), []);
    // Held locks come back as records; nonsense does not come back at all.
    w.run(a, lock(f, flock(1, true), true)).unwrap();
    let clash = vec![flock(1, true), flock(2, true)];
    assert_eq!(w.run(b, Op::ReturnDelegation { ino: f, held: clash }), Err(Kind::Invalid));
    let empty = vec![posix(1, true, 5, 4)];
    assert_eq!(w.run(b, Op::ReturnDelegation { ino: f, held: empty }), Err(Kind::Invalid));
    let held = vec![flock(2, true)];
    assert_eq!(w.changes(b, Op::ReturnDelegation { ino: f, held }), [Change::LocksReturned(f)]);
    let granted = Change::LockGranted { session: a, ino: f, lock: flock(1, true), delegated: true };
    assert_eq!(w.changes(b, Op::Unlock { ino: f, lock: flock(2, true) }), [granted]);
    // A session that ends gives its delegation back as well.
    w.run(b, lock(f, flock(7, false), true)).unwrap();
    let changes = w.changes(SessionId(0), Op::CloseSessions(vec![a]));
    let granted = Change::LockGranted { session: b, ino: f, lock: flock(7, false), delegated: true };
    assert_eq!(changes, [Change::SessionClosed(a), Change::LocksReturned(f), granted]);
}

#[test]
fn waiters_are_served_in_order() {
    let (mut w, a, b, f) = contended();
    let ask = |w: &mut World, s, l| match w.run(s, lock(f, l, true)) {
        Ok(Reply::Lock(reply)) => reply,
        other => panic!("{other:?}"),
    };
    assert_eq!(ask(&mut w, a, flock(1, false)), LockReply::Granted);
    assert_eq!(ask(&mut w, b, flock(1, false)), LockReply::Granted);
    assert!(matches!(ask(&mut w, a, flock(2, true)), LockReply::Queued(_)));
    // Shared, but behind one who waits for both to end.
    assert!(matches!(ask(&mut w, b, flock(3, false)), LockReply::Queued(_)));
    assert_eq!(w.changes(a, Op::Unlock { ino: f, lock: flock(1, true) }), []);
    let granted = |session, lock| Change::LockGranted { session, ino: f, lock, delegated: false };
    let changes = w.changes(b, Op::Unlock { ino: f, lock: flock(1, true) });
    assert_eq!(changes, [granted(a, flock(2, true))]);
    let changes = w.changes(a, Op::Unlock { ino: f, lock: flock(2, true) });
    assert_eq!(changes, [granted(b, flock(3, false))]);
}

#[test]
fn an_interrupted_upgrade_keeps_the_lock() {
    let (mut w, a, b, f) = contended();
    w.run(a, lock(f, posix(1, false, 0, 9), false)).unwrap();
    w.run(b, lock(f, posix(1, false, 0, 9), false)).unwrap();
    let queued = w.run(a, lock(f, posix(1, true, 0, 9), true));
    assert!(matches!(queued, Ok(Reply::Lock(LockReply::Queued(_)))));
    // The other one upgrading too would wait for ever.
    assert_eq!(w.run(b, lock(f, posix(1, true, 0, 9), true)), Err(Kind::Deadlock));
    w.run(a, Op::Unlock { ino: f, lock: posix(1, true, 0, 9) }).unwrap();
    let conflict = w.run(b, lock(f, posix(1, true, 0, 9), false));
    assert!(matches!(conflict, Ok(Reply::Lock(LockReply::Conflict(h))) if h.session == a));
    w.run(a, Op::Unlock { ino: f, lock: posix(1, true, 0, 9) }).unwrap();
    assert_eq!(w.run(b, lock(f, posix(1, true, 0, 9), false)), Ok(Reply::Lock(LockReply::Granted)));
}

#[test]
fn malformed_locks_are_refused() {
    let (mut w, a, _, f) = contended();
    assert_eq!(w.run(a, lock(f, posix(1, true, 9, 8), true)), Err(Kind::Invalid));
    assert_eq!(w.run(a, Op::Unlock { ino: f, lock: posix(1, true, 9, 8) }), Err(Kind::Invalid));
    assert_eq!(w.run(a, lock(InodeId(99), flock(1, true), true)), Err(Kind::Stale));
    assert_eq!(w.run(a, Op::Unlock { ino: InodeId(99), lock: flock(1, true) }), Ok(Reply::Done));
    // The ends of the range neither overflow nor meet.
    for (start, end) in [(u64::MAX, u64::MAX), (0, 0), (FILE_SIZE_MAX, u64::MAX), (1, u64::MAX - 1)] {
        let reply = w.run(a, lock(f, posix(9, true, start, end), false)).unwrap();
        let free = !(start <= 900 && 900 <= end);
        assert_eq!(reply == Reply::Lock(LockReply::Granted), free, "{start}..={end}");
    }
    w.run(a, Op::Unlock { ino: f, lock: posix(9, true, 0, u64::MAX) }).unwrap();
    let record = w.view().locks(f).unwrap();
    assert_eq!(record.queue.held.len(), 1);
}
