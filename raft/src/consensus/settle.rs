//! What is applied here and may not be applied everywhere yet.
//!
//! An index is *settled* when every node that may read without asking has applied it, so that every later read
//! sees it. What this node applies beyond that may be looked at, but nobody is told before it is settled: else
//! another node could afterwards still show the state before. [`Unsettled`] knows which things those changes
//! touched; it is a plain value. [`Settling`] shares it between the apply loop, which notes changes and waits for
//! nobody, the readers, and the task that asks the leader.

use hfcache_base::InodeId;
use hfcache_base::meta::{Applied, Change};
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tokio::sync::{Notify, watch};

/// Most changes that are told apart; beyond, everything counts as changed.
const CHANGES_MAX: usize = 1 << 16;

/// Something a reader looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Thing {
    /// An inode: attributes, content, target.
    Inode(InodeId),
    /// What a name means. Names are told apart by a hash: two of one hash wait for each other, which is right
    /// but for a moment longer than needed.
    Name(InodeId, u64),
}

impl Thing {
    /// A name in a directory.
    pub fn name(parent: InodeId, name: &[u8]) -> Self {
        let mut hash = DefaultHasher::new();
        name.hash(&mut hash);
        Self::Name(parent, hash.finish())
    }

    fn changed_by(change: &Change) -> Option<Self> {
        match change {
            Change::Entry { parent, name } => Some(Self::name(*parent, name)),
            Change::Inode { ino, .. }
            | Change::Owner(ino)
            | Change::Orphaned(ino)
            | Change::Reaped(ino)
            | Change::Restored { ino, .. }
            | Change::Acl(ino) => Some(Self::Inode(*ino)),
            // Nothing of these is told to applications as a state that they might compare.
            Change::ChunkAdded(_)
            | Change::ChunkFreed(_)
            | Change::LockQueued(_)
            | Change::LockGranted { .. }
            | Change::Recall { .. }
            | Change::LocksReturned(_)
            | Change::Map
            | Change::SessionClosed(_)
            | Change::Rates => None,
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Unsettled {
    settled: u64,
    /// Everything counts as changed up to here.
    all: u64,
    /// The last index that brought any command.
    newest: u64,
    last: HashMap<Thing, u64>,
    order: VecDeque<(u64, Thing)>,
}

impl Unsettled {
    /// The greatest index known to be settled.
    pub fn settled(&self) -> u64 {
        self.settled
    }

    /// Commands that end with this index are about to be seen here.
    pub fn changed(&mut self, index: u64, batch: &[Applied]) {
        if index <= self.settled {
            return;
        }
        self.newest = self.newest.max(index);
        for thing in batch.iter().flat_map(|one| &one.changes).filter_map(Thing::changed_by) {
            // A batch touches its directories again and again.
            if self.last.insert(thing, index) != Some(index) {
                self.order.push_back((index, thing));
            }
        }
        if self.order.len() > CHANGES_MAX {
            self.all_changed(self.newest);
        }
    }

    /// Another state, as of this index, is about to be seen here.
    pub fn all_changed(&mut self, index: u64) {
        self.newest = self.newest.max(index);
        self.all = self.all.max(index);
        self.last.clear();
        self.order.clear();
    }

    /// Everything up to this index is settled.
    pub fn settle(&mut self, index: u64) {
        self.settled = self.settled.max(index);
        while let Some(&(at, thing)) = self.order.front()
            && at <= self.settled
        {
            self.order.pop_front();
            if self.last.get(&thing) == Some(&at) {
                self.last.remove(&thing);
            }
        }
    }

    /// The index that must be settled before anybody is told what this thing is; `None` if it is.
    pub fn change_of(&self, thing: Thing) -> Option<u64> {
        let last = self.last.get(&thing).copied().max(Some(self.all));
        last.filter(|at| *at > self.settled)
    }

    /// The index that must be settled for everything here to be.
    pub fn newest(&self) -> Option<u64> {
        Some(self.newest).filter(|at| *at > self.settled)
    }
}

/// See the module.
#[derive(Debug)]
pub struct Settling {
    things: Mutex<Unsettled>,
    /// Something may be unsettled: spares readers the lock if not.
    any: AtomicBool,
    settled: watch::Sender<u64>,
    waiting: AtomicUsize,
    wanted: Notify,
}

impl Default for Settling {
    fn default() -> Self {
        let (settled, _) = watch::channel(0);
        Self {
            things: Mutex::default(),
            any: AtomicBool::new(false),
            settled,
            waiting: AtomicUsize::new(0),
            wanted: Notify::new(),
        }
    }
}

impl Settling {
    /// As [`Unsettled::changed`]. To be called before any reader can see the changes.
    pub fn changed(&self, index: u64, batch: &[Applied]) {
        if !batch.is_empty() {
            self.edit(|things| things.changed(index, batch));
        }
    }

    /// As [`Unsettled::all_changed`]. To be called before any reader can see the new state.
    pub fn all_changed(&self, index: u64) {
        self.edit(|things| things.all_changed(index));
    }

    /// As [`Unsettled::settle`]; wakes those who waited for it.
    pub fn settle(&self, index: u64) {
        self.edit(|things| things.settle(index));
        self.settled.send_if_modified(|settled| {
            let more = index > *settled;
            *settled = index.max(*settled);
            more
        });
    }

    fn edit(&self, change: impl FnOnce(&mut Unsettled)) {
        let mut things = self.things.lock();
        change(&mut things);
        self.any.store(things.newest().is_some(), Ordering::SeqCst);
    }

    /// As [`Unsettled::change_of`].
    pub fn change_of(&self, thing: Thing) -> Option<u64> {
        if !self.any.load(Ordering::SeqCst) {
            return None;
        }
        self.things.lock().change_of(thing)
    }

    /// As [`Unsettled::newest`].
    pub fn newest(&self) -> Option<u64> {
        if !self.any.load(Ordering::SeqCst) {
            return None;
        }
        self.things.lock().newest()
    }

    /// Whether an index is known to be settled.
    pub fn is_settled(&self, index: u64) -> bool {
        *self.settled.borrow() >= index
    }

    /// Waits until an index is known to be settled. As long as this future lives the leader is asked.
    pub async fn wait(&self, index: u64) {
        if self.is_settled(index) {
            return;
        }
        let _waiting = Waiting::begin(self);
        let mut settled = self.settled.subscribe();
        // The sender lives as long as `self`.
        let _never = settled.wait_for(|at| *at >= index).await;
    }

    /// Whether anybody waits.
    pub fn is_awaited(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    /// Returns when somebody has begun to wait since the last call.
    pub async fn wanted(&self) {
        self.wanted.notified().await;
    }
}

struct Waiting<'a>(&'a Settling);

impl<'a> Waiting<'a> {
    fn begin(settling: &'a Settling) -> Self {
        settling.waiting.fetch_add(1, Ordering::SeqCst);
        settling.wanted.notify_one();
        Self(settling)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hfcache_base::SessionId;

    const DIR: InodeId = InodeId(7);
    const FILE: InodeId = InodeId(8);

    fn inode(ino: InodeId) -> Change {
        Change::Inode { ino, data: false }
    }

    fn entry(name: &[u8]) -> Change {
        Change::Entry { parent: DIR, name: name.to_vec() }
    }

    fn batch(changes: Vec<Change>) -> [Applied; 1] {
        [Applied { session: SessionId(1), changes }]
    }

    #[test]
    fn only_what_was_touched_waits_and_only_until_it_is_settled() {
        let mut u = Unsettled::default();
        u.changed(5, &batch(vec![entry(b"a"), inode(DIR)]));
        assert_eq!(u.change_of(Thing::name(DIR, b"a")), Some(5));
        assert_eq!(u.change_of(Thing::Inode(DIR)), Some(5));
        assert_eq!(u.change_of(Thing::name(DIR, b"b")), None);
        assert_eq!(u.change_of(Thing::name(FILE, b"a")), None);
        assert_eq!(u.change_of(Thing::Inode(FILE)), None);
        u.settle(4);
        assert_eq!(u.change_of(Thing::Inode(DIR)), Some(5));
        u.settle(5);
        assert_eq!(u.change_of(Thing::Inode(DIR)), None);
        assert_eq!(u.newest(), None);
    }

    #[test]
    fn a_thing_that_changes_again_waits_for_its_last_change() {
        let mut u = Unsettled::default();
        u.changed(5, &batch(vec![inode(FILE)]));
        u.changed(6, &batch(vec![inode(DIR)]));
        u.changed(9, &batch(vec![inode(FILE), inode(FILE)]));
        u.settle(5);
        assert_eq!(u.change_of(Thing::Inode(FILE)), Some(9));
        assert_eq!(u.change_of(Thing::Inode(DIR)), Some(6));
        u.settle(8);
        assert_eq!(u.change_of(Thing::Inode(FILE)), Some(9));
        assert_eq!(u.change_of(Thing::Inode(DIR)), None);
        u.settle(9);
        assert_eq!(u.change_of(Thing::Inode(FILE)), None);
        assert!(u.last.is_empty() && u.order.is_empty(), "nothing is kept: {u:?}");
    }

    #[test]
    fn what_was_settled_before_it_came_here_never_waits_and_settled_never_goes_back() {
        let mut u = Unsettled::default();
        u.settle(10);
        u.settle(3);
        assert_eq!(u.settled(), 10);
        u.changed(10, &batch(vec![inode(FILE)]));
        assert_eq!(u.change_of(Thing::Inode(FILE)), None);
        assert_eq!(u.newest(), None);
        u.changed(11, &batch(vec![inode(FILE)]));
        assert_eq!(u.change_of(Thing::Inode(FILE)), Some(11));
    }

    #[test]
    fn another_state_is_unsettled_as_a_whole() {
        let mut u = Unsettled::default();
        u.all_changed(100);
        assert_eq!(u.change_of(Thing::Inode(FILE)), Some(100));
        u.changed(101, &batch(vec![inode(FILE)]));
        u.settle(100);
        assert_eq!(u.change_of(Thing::Inode(DIR)), None);
        assert_eq!(u.change_of(Thing::Inode(FILE)), Some(101));
    }

    #[test]
    fn commands_that_change_no_name_and_no_inode_count_for_the_whole_only() {
        let mut u = Unsettled::default();
        u.changed(5, &batch(vec![Change::LocksReturned(FILE)]));
        assert_eq!(u.change_of(Thing::Inode(FILE)), None);
        assert_eq!(u.newest(), Some(5));
        u.settle(5);
        assert_eq!(u.newest(), None);
    }

    #[test]
    fn too_many_changes_to_tell_apart_make_everything_wait() {
        let mut u = Unsettled::default();
        for n in 0..=CHANGES_MAX as u64 {
            u.changed(1 + n, &batch(vec![inode(InodeId(1_000 + n))]));
        }
        let newest = 1 + CHANGES_MAX as u64;
        assert_eq!(u.change_of(Thing::Inode(DIR)), Some(newest));
        assert!(u.order.is_empty());
        u.settle(newest);
        assert_eq!(u.change_of(Thing::Inode(DIR)), None);
    }

    /// Against a list of everything that ever happened.
    #[test]
    fn any_run_of_changes_is_told_as_a_full_history_tells_it() {
        let mut dice = 1u64;
        let mut next = |n: u64| {
            dice = hfcache_base::placement::mix(dice);
            dice % n
        };
        let (mut u, mut history, mut settled) = (Unsettled::default(), Vec::new(), 0);
        for index in 1..3_000 {
            let ino = InodeId(next(20));
            u.changed(index, &batch(vec![inode(ino)]));
            history.push((index, ino));
            if next(3) == 0 {
                settled = settled.max(index.saturating_sub(next(12)));
                u.settle(settled);
            }
            for ino in (0..20).map(InodeId) {
                let want = history.iter().rev().find(|(_, i)| *i == ino).map(|(at, _)| *at);
                assert_eq!(u.change_of(Thing::Inode(ino)), want.filter(|at| *at > settled), "at {index}");
            }
        }
    }
}
