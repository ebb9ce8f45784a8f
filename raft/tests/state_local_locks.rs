//! `LocalLocks` of several nodes over one log that each applies at its own pace: two owners never hold
//! conflicting locks, nobody waits for ever, and cancelled requests leave nothing behind.

#![expect(clippy::unwrap_used, reason = "a failure ends the test")]

mod state_support;

use async_trait::async_trait;
use hfcache_base::Error;
use hfcache_base::meta::*;
use hfcache_base::seam::{Clock, Moment, Unlocked};
use hfcache_base::{InodeId, Kind, Result, SessionId};
use hfcache_raft::kv::Memory;
use hfcache_raft::locks::{LocalLocks, Neighbours, Propose, Replica};
use hfcache_raft::state::{LockRecord, StateView, apply};
use state_support::{Dice, World};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;

/// What Raft agreed on.
#[derive(Default)]
struct Log {
    entries: Mutex<Vec<Command>>,
    grown: Notify,
}

impl Log {
    fn append(&self, command: Command) -> usize {
        let mut entries = self.entries.lock().unwrap();
        entries.push(command);
        self.grown.notify_waiters();
        entries.len()
    }
}

/// One node: its own copy of the state.
struct Node {
    log: Arc<Log>,
    session: SessionId,
    sequence: AtomicU64,
    store: Mutex<Memory>,
    replies: Mutex<BTreeMap<u64, Result<Reply, Kind>>>,
    applied: Notify,
    proposals: AtomicU64,
    leased: bool,
    /// Applies nothing for now.
    paused: AtomicBool,
}

/// Questions from node to node: slow, and not always answered.
#[derive(Default)]
struct Wires {
    reliable: AtomicBool,
    nodes: Mutex<BTreeMap<SessionId, LocalLocks>>,
    asked: AtomicU64,
    passed: AtomicU64,
}

#[async_trait]
impl Neighbours for Wires {
    async fn until_given_up(&self, ino: InodeId, holder: LockHolder, _: LockHolder) -> Result<bool> {
        let mut dice = Dice(self.asked.fetch_add(1, Ordering::Relaxed)).roll();
        let mut below = |n: u64| {
            dice = Dice(dice).roll();
            dice % n
        };
        pause(below(20)).await;
        let there = self.nodes.lock().unwrap().get(&holder.session).cloned();
        let there = there.ok_or_else(|| Error::from(Kind::Unavailable))?;
        let answer = there.until_given_up(ino, holder).await;
        pause(below(20)).await;
        if below(10) == 0 && !self.reliable.load(Ordering::Relaxed) {
            return Err(Kind::Unavailable.into());
        }
        self.passed.fetch_add(u64::from(answer), Ordering::Relaxed);
        Ok(answer)
    }
}

struct Ticks;

#[async_trait]
impl Clock for Ticks {
    fn now(&self) -> Moment {
        Moment::default()
    }
    fn wall(&self) -> Timestamp {
        Timestamp(0)
    }
    async fn sleep(&self, d: Duration) {
        for _ in 0..d.as_millis() * 20 {
            tokio::task::yield_now().await;
        }
    }
}

#[async_trait]
impl Propose for Node {
    async fn propose(&self, op: Op) -> Result<Reply> {
        self.proposals.fetch_add(1, Ordering::Relaxed);
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed) + 1;
        // Forwarding takes its time, and does not keep the order.
        for _ in 0..hfcache_base::placement::mix(sequence ^ self.session.0) % 5 {
            tokio::task::yield_now().await;
        }
        let now = Timestamp(0);
        self.log.append(Command { session: self.session, sequence, acknowledged: 0, now, op });
        loop {
            let applied = self.applied.notified();
            tokio::pin!(applied);
            applied.as_mut().enable();
            if let Some(reply) = self.replies.lock().unwrap().remove(&sequence) {
                return reply.map_err(Into::into);
            }
            applied.await;
        }
    }
}

#[async_trait]
impl Replica for Node {
    fn locks(&self, ino: InodeId) -> Result<LockRecord> {
        StateView::new(&*self.store.lock().unwrap()).locks(ino)
    }
    fn leased(&self) -> bool {
        self.leased
    }
    async fn catch_up(&self) -> Result<()> {
        Ok(())
    }
}

impl Node {
    /// Applies the log, a few entries at a time.
    async fn follow(self: Arc<Self>, locks: LocalLocks, mut dice: Dice) {
        let mut at = 0;
        loop {
            let grown = self.log.grown.notified();
            tokio::pin!(grown);
            grown.as_mut().enable();
            let batch: Vec<Command> = {
                let entries = self.log.entries.lock().unwrap();
                entries[at..].iter().take(1 + dice.below(3) as usize).cloned().collect()
            };
            if batch.is_empty() || self.paused.load(Ordering::SeqCst) {
                tokio::select! { () = grown => {}, () = pause(50) => {} }
                continue;
            }
            at += batch.len();
            let mut applied = Vec::new();
            let mut replies = Vec::new();
            {
                let mut store = self.store.lock().unwrap();
                for command in &batch {
                    let outcome = apply(&mut *store, command).unwrap();
                    applied.push(outcome.applied);
                    if command.session == self.session {
                        replies.push((command.sequence, outcome.reply));
                    }
                }
            }
            for _ in 0..dice.below(4) {
                tokio::task::yield_now().await;
            }
            locks.on_applied(&applied);
            self.replies.lock().unwrap().extend(replies);
            self.applied.notify_waiters();
            for _ in 0..dice.below(20) {
                tokio::task::yield_now().await;
            }
        }
    }
}

struct Cluster {
    log: Arc<Log>,
    nodes: Vec<(Arc<Node>, LocalLocks)>,
    files: Vec<InodeId>,
    wires: Arc<Wires>,
    followers: Vec<tokio::task::JoinHandle<()>>,
}

impl Cluster {
    fn new(count: u8, leased: bool, seed: u64) -> Self {
        let (mut world, first) = World::new();
        let mut sessions = vec![first];
        sessions.extend((2..=count).map(|n| world.join(n)));
        let files = (0..3).map(|n| world.file(first, state_support::ROOT, &format!("f{n}"))).collect();
        let log = Arc::new(Log::default());
        let wires = Arc::new(Wires::default());
        let mut nodes = Vec::new();
        let mut followers = Vec::new();
        for session in sessions {
            let node = Arc::new(Node {
                log: log.clone(),
                session,
                sequence: AtomicU64::new(1_000),
                store: Mutex::new(world.store.clone()),
                replies: Mutex::default(),
                applied: Notify::new(),
                proposals: AtomicU64::new(0),
                leased,
                paused: AtomicBool::new(false),
            });
            let here = tokio::runtime::Handle::current();
            let locks = LocalLocks::new(node.clone(), node.clone(), wires.clone(), Arc::new(Ticks), here);
            wires.nodes.lock().unwrap().insert(session, locks.clone());
            locks.set_session(Some(session));
            followers.push(tokio::spawn(node.clone().follow(locks.clone(), Dice(seed ^ session.0 << 32))));
            nodes.push((node, locks));
        }
        Self { log, nodes, files, wires, followers }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.followers.iter().for_each(|f| f.abort());
    }
}

fn flock(owner: u64, exclusive: bool) -> Lock {
    Lock { kind: LockKind::Flock, owner, exclusive, start: 0, end: u64::MAX, pid: 1 }
}

fn posix(owner: u64, exclusive: bool, start: u64, end: u64) -> Lock {
    Lock { kind: LockKind::Posix, owner, exclusive, start, end, pid: 1 }
}

/// Node, owner, exclusive.
type Belief = (usize, u64, bool);

/// Who believes to hold what, byte by byte.
#[derive(Default)]
struct Believed(Mutex<BTreeMap<(InodeId, LockKind, u64), Vec<Belief>>>);

impl Believed {
    fn set(&self, ino: InodeId, node: usize, lock: &Lock, there: bool) {
        let mut bytes = self.0.lock().unwrap();
        let end = if lock.kind == LockKind::Flock { 0 } else { lock.end };
        for byte in lock.start..=end {
            let at = bytes.entry((ino, lock.kind, byte)).or_default();
            at.retain(|(n, o, _)| (*n, *o) != (node, lock.owner));
            if there {
                for other in at.iter() {
                    assert!(!other.2 && !lock.exclusive, "{lock:?} on node {node} beside {other:?}");
                }
                at.push((node, lock.owner, lock.exclusive));
            }
        }
    }
}

async fn pause(n: u64) {
    for _ in 0..n {
        tokio::task::yield_now().await;
    }
}

/// One process: takes and drops locks, and loses patience now and then.
async fn process(
    locks: LocalLocks,
    node: usize,
    (kind, owner): (LockKind, u64),
    files: Vec<InodeId>,
    all: Arc<Believed>,
    seed: u64,
) {
    let mut dice = Dice(seed);
    for _ in 0..40 {
        let ino = files[dice.below(files.len() as u64) as usize];
        let lock = match kind {
            LockKind::Posix => {
                let start = dice.below(6);
                posix(owner, dice.one_in(2), start, start + dice.below(6 - start))
            }
            // Those that are handed over are the exclusive ones.
            LockKind::Flock => flock(owner, !dice.one_in(4)),
        };
        let wait = dice.one_in(2);
        // What is asked for may be granted at any time from now, so a shared lock that is being raised
        // must not be believed any more where it is weaker only.
        let before: Vec<_> = all.0.lock().unwrap().clone().into_iter().collect();
        let had = before.iter().any(|((i, k, _), who)| {
            (*i, *k) == (ino, kind) && who.iter().any(|w| (w.0, w.1) == (node, owner))
        });
        if had {
            // One lock at a time keeps the oracle simple; upgrades are the model test's matter.
            let whole = whole(kind, owner);
            all.set(ino, node, &whole, false);
            if locks.unlock_local(ino, whole) != Unlocked::Here {
                locks.unlock(ino, whole).await.unwrap();
            }
            assert!(!locks.lock_held(ino, kind, owner));
        }
        let patience = dice.below(400);
        let asked = locks.lock(ino, lock, wait);
        let result = tokio::select! { r = asked => Some(r), () = pause(patience) => None };
        match result {
            Some(Ok(())) => {
                all.set(ino, node, &lock, true);
                assert!(locks.lock_held(ino, kind, owner));
            }
            Some(Err(e)) => assert!(matches!(e.kind(), Kind::WouldBlock | Kind::Deadlock), "{e}"),
            None => {}
        }
        pause(dice.below(30)).await;
    }
    for ino in files {
        let whole = whole(kind, owner);
        all.set(ino, node, &whole, false);
        locks.unlock(ino, whole).await.unwrap();
        assert!(!locks.lock_held(ino, kind, owner));
    }
}

/// All that an owner may hold.
fn whole(kind: LockKind, owner: u64) -> Lock {
    match kind {
        LockKind::Posix => posix(owner, false, 0, 6),
        LockKind::Flock => flock(owner, false),
    }
}

#[tokio::test]
async fn nobody_holds_what_another_holds_and_all_get_there() {
    let mut passed = 0;
    for seed in 1..=60u64 {
        println!("seed {seed}");
        let cluster = Cluster::new(3, seed % 2 == 0, seed);
        let kind = if seed % 4 < 2 { LockKind::Posix } else { LockKind::Flock };
        let all = Arc::new(Believed::default());
        let mut processes = Vec::new();
        for (n, (_, locks)) in cluster.nodes.iter().enumerate() {
            for owner in 1..=3 {
                let dice = Dice(seed << 16 | (n as u64) << 8 | owner).roll();
                let files = cluster.files.clone();
                processes.push(tokio::spawn(process(
                    locks.clone(),
                    n,
                    (kind, owner),
                    files,
                    all.clone(),
                    dice,
                )));
            }
        }
        for process in processes {
            process.await.unwrap();
        }
        // Requests that were given up may still be on their way out; then nothing is left.
        for (node, locks) in &cluster.nodes {
            for ino in &cluster.files {
                let mut tries = 0;
                while !node.locks(*ino).unwrap().queue.is_empty() {
                    tries += 1;
                    assert!(tries < 100_000, "{ino}: {:?}", node.locks(*ino));
                    pause(1).await;
                }
                for owner in 1..=3 {
                    assert!(!locks.lock_held(*ino, kind, owner));
                }
            }
        }
        passed += cluster.wires.passed.load(Ordering::Relaxed);
    }
    println!("{passed} locks were handed over");
    assert!(passed > 100, "only {passed} locks were handed over from node to node");
}

/// The first node holds the first file, as owner 1, and others wait for it, one after the other: owner 2 on the second
/// node, owner 3 on the third.
async fn queue_up(cluster: &Cluster, others: usize) -> Vec<tokio::task::JoinHandle<Result<()>>> {
    cluster.wires.reliable.store(true, Ordering::Relaxed);
    let ino = cluster.files[0];
    cluster.nodes[0].1.lock(ino, flock(1, true), true).await.unwrap();
    let mut waiters = Vec::new();
    for ((_, locks), owner) in cluster.nodes[1..=others].iter().zip(2..) {
        let locks = locks.clone();
        waiters.push(tokio::spawn(async move { locks.lock(ino, flock(owner, true), true).await }));
        while cluster.nodes[1].0.locks(ino).unwrap().queue.waiting.len() != waiters.len() {
            pause(1).await;
        }
    }
    // The question has to arrive.
    pause(2_000).await;
    waiters
}

#[tokio::test]
async fn the_log_follows_at_once_only_where_more_wait() {
    for others in [1, 2] {
        let cluster = Cluster::new(3, true, 12);
        let waiters = queue_up(&cluster, others).await;
        let (ino, (node, first)) = (cluster.files[0], cluster.nodes[0].clone());
        let before = node.proposals.load(Ordering::Relaxed);
        match first.unlock_local(ino, flock(1, true)) {
            Unlocked::Ask => assert!(others > 1),
            Unlocked::AskAfter(_) => assert_eq!(others, 1),
            Unlocked::Here => panic!("{others} wait for it"),
        }
        let mut waiters = waiters.into_iter();
        waiters.next().unwrap().await.unwrap().unwrap();
        assert_eq!(node.proposals.load(Ordering::Relaxed), before, "it has waited for the log");
        first.unlock(ino, flock(1, true)).await.unwrap();
        waiters.for_each(|waiter| waiter.abort());
    }
}

#[tokio::test]
async fn a_contended_flock_does_not_wait_for_the_log() {
    let cluster = Cluster::new(3, true, 11);
    let mut waiters = queue_up(&cluster, 2).await;
    let ino = cluster.files[0];
    let [(_, first), (late, second), (third_node, third)] = &cluster.nodes[..] else { panic!("three") };
    late.paused.store(true, Ordering::SeqCst);
    assert_ne!(first.unlock_local(ino, flock(1, true)), Unlocked::Here);
    first.unlock(ino, flock(1, true)).await.unwrap();
    waiters.remove(0).await.unwrap().unwrap();
    assert!(late.locks(ino).unwrap().queue.held.iter().all(|h| h.session != late.session), "not early");
    assert!(second.lock_held(ino, LockKind::Flock, 2));
    // Nobody else gets it, on its own node or elsewhere, and giving it up waits for its grant.
    assert_eq!(second.lock(ino, flock(9, true), false).await.unwrap_err().kind(), Kind::WouldBlock);
    assert_eq!(third.lock(ino, flock(9, true), false).await.unwrap_err().kind(), Kind::WouldBlock);
    let given_up = second.clone();
    let given_up = tokio::spawn(async move {
        assert_ne!(given_up.unlock_local(ino, flock(2, true)), Unlocked::Here);
        given_up.unlock(ino, flock(2, true)).await
    });
    pause(2_000).await;
    assert!(!given_up.is_finished() && !waiters[0].is_finished());
    assert!(third_node.locks(ino).unwrap().queue.held.iter().any(|h| h.session == late.session));
    late.paused.store(false, Ordering::SeqCst);
    given_up.await.unwrap().unwrap();
    waiters.remove(0).await.unwrap().unwrap();
    assert!(third.lock_held(ino, LockKind::Flock, 3) && !second.lock_held(ino, LockKind::Flock, 2));
}

#[tokio::test]
async fn alone_at_a_file_a_node_asks_once() {
    let cluster = Cluster::new(2, true, 5);
    let (node, locks) = &cluster.nodes[0];
    let ino = cluster.files[0];
    assert!(locks.lock_local(ino, flock(1, true)).is_none());
    locks.lock(ino, flock(1, true), false).await.unwrap();
    let asked = node.proposals.load(Ordering::Relaxed);
    for round in 0..100 {
        assert_eq!(locks.unlock_local(ino, flock(1, true)), Unlocked::Here);
        locks.lock_local(ino, flock(1, round % 2 == 0)).unwrap().unwrap();
        assert_eq!(locks.lock_local(ino, flock(2, true)).unwrap().unwrap_err().kind(), Kind::WouldBlock);
    }
    assert_eq!(node.proposals.load(Ordering::Relaxed), asked);
    let holder = locks.lock_test(ino, flock(2, true)).await.unwrap().unwrap();
    assert_eq!((holder.session, holder.lock.owner), (node.session, 1));

    // The other node sees it through a recall; afterwards it is told no from its own replica.
    let (other, there) = &cluster.nodes[1];
    assert_eq!(there.lock_test(ino, flock(9, true)).await.unwrap().unwrap().lock.owner, 1);
    assert_eq!(there.lock(ino, flock(9, true), false).await.unwrap_err().kind(), Kind::WouldBlock);
    let asked = other.proposals.load(Ordering::Relaxed);
    for _ in 0..10 {
        assert_eq!(there.lock(ino, flock(9, true), false).await.unwrap_err().kind(), Kind::WouldBlock);
    }
    assert_eq!(other.proposals.load(Ordering::Relaxed), asked);

    // A waiter gets it when it is given up.
    let (waits, locks2) = (there.clone(), locks.clone());
    let waiter = tokio::spawn(async move { waits.lock(ino, flock(9, true), true).await });
    pause(500).await;
    assert_ne!(locks2.unlock_local(ino, flock(1, true)), Unlocked::Here);
    locks2.unlock(ino, flock(1, true)).await.unwrap();
    waiter.await.unwrap().unwrap();
    assert!(there.lock_held(ino, LockKind::Flock, 9));
    assert_eq!(locks.lock_test(ino, flock(1, false)).await.unwrap().unwrap().lock.owner, 9);
}

#[tokio::test]
async fn a_lost_session_has_no_locks_and_others_go_on() {
    let cluster = Cluster::new(2, false, 9);
    let ino = cluster.files[0];
    let ((node, locks), (_, there)) = (&cluster.nodes[0], &cluster.nodes[1]);
    locks.lock(ino, flock(1, true), true).await.unwrap();
    there.lock(cluster.files[1], flock(5, true), true).await.unwrap();
    let mine = locks.clone();
    let stuck = cluster.files[1];
    let mine = tokio::spawn(async move { mine.lock(stuck, flock(1, true), true).await });
    pause(500).await;
    let op = Op::CloseSessions(vec![node.session]);
    let now = Timestamp(0);
    cluster.log.append(Command { session: SessionId(0), sequence: 0, acknowledged: 0, now, op });
    there.lock(ino, flock(5, true), true).await.unwrap();
    assert_eq!(mine.await.unwrap().unwrap_err().kind(), Kind::Fenced);
    assert_eq!(locks.lock(ino, flock(1, true), true).await.unwrap_err().kind(), Kind::Fenced);
    assert_eq!(locks.lock_local(ino, flock(1, true)).unwrap().unwrap_err().kind(), Kind::Fenced);
    assert!(!locks.lock_held(ino, LockKind::Flock, 1));
    assert_eq!(locks.unlock_local(ino, flock(1, true)), Unlocked::Here);
}

#[tokio::test]
async fn a_recall_waits_for_a_moment_without_locks() {
    let cluster = Cluster::new(2, true, 3);
    let ino = cluster.files[0];
    let ((node, locks), (other, there)) = (&cluster.nodes[0], &cluster.nodes[1]);
    locks.lock(ino, flock(1, true), false).await.unwrap();
    let waits = there.clone();
    let waiter = tokio::spawn(async move { waits.lock(ino, flock(5, true), true).await });
    while !node.locks(ino).unwrap().recalled {
        pause(1).await;
    }
    pause(3).await;
    if locks.unlock_local(ino, flock(1, true)) == Unlocked::Here {
        waiter.await.unwrap().unwrap();
        // With nothing held and one waiter, the delegation itself has moved.
        assert_eq!(other.locks(ino).unwrap().delegated, Some(other.session));
    } else {
        locks.unlock(ino, flock(1, true)).await.unwrap();
        waiter.await.unwrap().unwrap();
    }
    assert!(there.lock_held(ino, LockKind::Flock, 5));
}

#[tokio::test]
async fn one_thread_unlocks_while_another_waits_for_the_same_range() {
    let cluster = Cluster::new(2, false, 4);
    let ino = cluster.files[0];
    let ((node, locks), (_, there)) = (&cluster.nodes[0], &cluster.nodes[1]);
    locks.lock(ino, posix(1, false, 0, 9), true).await.unwrap();
    there.lock(ino, posix(2, false, 0, 9), true).await.unwrap();
    let upgrades = locks.clone();
    let upgrade = tokio::spawn(async move { upgrades.lock(ino, posix(1, true, 0, 9), true).await });
    while node.locks(ino).unwrap().queue.waiting.is_empty() {
        pause(1).await;
    }
    pause(200).await;
    locks.unlock(ino, posix(1, false, 0, 9)).await.unwrap();
    assert!(!node.locks(ino).unwrap().queue.held.holds(node.session, LockKind::Posix, 1));
    // The waiter has asked again, and gets it when the other node is done.
    while node.locks(ino).unwrap().queue.waiting.is_empty() {
        pause(1).await;
    }
    there.unlock(ino, posix(2, false, 0, 9)).await.unwrap();
    upgrade.await.unwrap().unwrap();
    assert!(locks.lock_held(ino, LockKind::Posix, 1));
}

#[tokio::test]
async fn an_interrupted_wait_leaves_what_was_held() {
    let cluster = Cluster::new(2, true, 8);
    let ino = cluster.files[0];
    let ((node, locks), (_, there)) = (&cluster.nodes[0], &cluster.nodes[1]);
    locks.lock(ino, posix(1, false, 0, 9), true).await.unwrap();
    there.lock(ino, posix(2, false, 0, 9), true).await.unwrap();
    tokio::select! {
        r = locks.lock(ino, posix(1, true, 0, 9), true) => panic!("{r:?}"),
        () = async {
            while node.locks(ino).unwrap().queue.waiting.is_empty() {
                pause(1).await;
            }
        } => {}
    }
    while !node.locks(ino).unwrap().queue.waiting.is_empty() {
        pause(1).await;
    }
    pause(200).await;
    assert!(locks.lock_held(ino, LockKind::Posix, 1));
    let refused = there.lock(ino, posix(2, true, 0, 9), false).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::WouldBlock);
}
