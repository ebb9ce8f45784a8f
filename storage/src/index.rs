//! Which shards this node has: in memory, rebuilt from the directory listings at every start.

use crate::shard::ShardKey;
use hfcache_base::seam::Moment;
use hfcache_base::{ChunkId, ShardIndex};
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::ops::Bound;

/// What is known of a shard without opening its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Which disk.
    pub disk: usize,
    /// Bytes of the shard; 0 until they are known.
    pub len: u32,
    /// When this run first saw it.
    pub since: Moment,
    /// Found damaged: counts as missing, but its good cells are still of use.
    pub damaged: bool,
}

/// Counts of an [`Index`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Shards.
    pub shards: u64,
    /// Bytes of those whose length is known.
    pub bytes: u64,
    /// Damaged ones among them.
    pub damaged: u64,
}

#[derive(Default)]
struct State {
    shards: BTreeMap<ShardKey, Held>,
    counts: Counts,
}

impl State {
    fn count(&mut self, held: Held, sign: i64) {
        self.counts.shards = self.counts.shards.wrapping_add_signed(sign);
        self.counts.bytes = self.counts.bytes.wrapping_add_signed(sign * i64::from(held.len));
        self.counts.damaged = self.counts.damaged.wrapping_add_signed(sign * i64::from(held.damaged));
    }
}

/// See the module.
#[derive(Default)]
pub struct Index(RwLock<State>);

fn first_of(chunk: ChunkId) -> ShardKey {
    ShardKey { chunk, data: 0, index: ShardIndex(0) }
}

fn last_of(chunk: ChunkId) -> ShardKey {
    ShardKey { chunk, data: u8::MAX, index: ShardIndex(u8::MAX) }
}

impl Index {
    /// Adds or replaces; gives back what was there.
    pub fn insert(&self, key: ShardKey, held: Held) -> Option<Held> {
        let mut state = self.0.write();
        let old = state.shards.insert(key, held);
        if let Some(old) = old {
            state.count(old, -1);
        }
        state.count(held, 1);
        old
    }

    /// Removes.
    pub fn remove(&self, key: ShardKey) -> Option<Held> {
        let mut state = self.0.write();
        let old = state.shards.remove(&key);
        if let Some(old) = old {
            state.count(old, -1);
        }
        old
    }

    /// Looks up.
    pub fn get(&self, key: ShardKey) -> Option<Held> {
        self.0.read().shards.get(&key).copied()
    }

    /// Whether a shard is here and as far as known whole.
    pub fn has(&self, key: ShardKey) -> bool {
        self.get(key).is_some_and(|held| !held.damaged)
    }

    /// Changes what is known of a shard, if it is there.
    pub fn update(&self, key: ShardKey, change: impl FnOnce(&mut Held)) {
        let mut state = self.0.write();
        if let Some(mut held) = state.shards.get(&key).copied() {
            state.count(held, -1);
            change(&mut held);
            state.count(held, 1);
            state.shards.insert(key, held);
        }
    }

    /// All shards of a chunk.
    pub fn of_chunk(&self, chunk: ChunkId) -> Vec<(ShardKey, Held)> {
        self.0.read().shards.range(first_of(chunk)..=last_of(chunk)).map(|(k, h)| (*k, *h)).collect()
    }

    /// Up to `limit` shards after `after`, in order.
    pub fn page(&self, after: Option<ShardKey>, limit: usize) -> Vec<(ShardKey, Held)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.0.read().shards.range((from, Bound::Unbounded)).take(limit).map(|(k, h)| (*k, *h)).collect()
    }

    /// All shards of chunks after `after` up to and with `upto`.
    pub fn between(&self, after: ChunkId, upto: ChunkId) -> Vec<(ShardKey, Held)> {
        if upto <= after {
            return Vec::new();
        }
        let range = (Bound::Excluded(last_of(after)), Bound::Included(last_of(upto)));
        self.0.read().shards.range(range).map(|(k, h)| (*k, *h)).collect()
    }

    /// Sums.
    pub fn counts(&self) -> Counts {
        self.0.read().counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(chunk: u64, index: u8) -> ShardKey {
        ShardKey { chunk: ChunkId(chunk), data: 2, index: ShardIndex(index) }
    }

    fn held(len: u32) -> Held {
        Held { disk: 0, len, since: Moment::default(), damaged: false }
    }

    #[test]
    fn counts_follow_every_change() {
        let index = Index::default();
        index.insert(key(1, 0), held(10));
        index.insert(key(1, 1), held(5));
        index.insert(key(1, 1), held(6));
        index.insert(key(2, 0), held(0));
        index.update(key(2, 0), |h| h.len = 4);
        index.update(key(2, 0), |h| h.damaged = true);
        assert_eq!(index.counts(), Counts { shards: 3, bytes: 20, damaged: 1 });
        assert!(!index.has(key(2, 0)) && index.has(key(1, 0)));
        index.remove(key(1, 0));
        index.remove(key(1, 0));
        index.remove(key(2, 0));
        assert_eq!(index.counts(), Counts { shards: 1, bytes: 6, damaged: 0 });
    }

    #[test]
    fn ranges_are_by_chunk() {
        let index = Index::default();
        for (c, i) in [(1, 0), (2, 1), (2, 2), (5, 0)] {
            index.insert(key(c, i), held(1));
        }
        assert_eq!(index.of_chunk(ChunkId(2)).len(), 2);
        assert_eq!(index.between(ChunkId(1), ChunkId(2)).len(), 2);
        assert_eq!(index.between(ChunkId(2), ChunkId(u64::MAX)).len(), 1);
        assert_eq!(index.between(ChunkId(5), ChunkId(5)).len(), 0);
        assert_eq!(index.page(Some(key(2, 1)), 1)[0].0, key(2, 2));
    }
}
