//! Makes room where a disk of this node runs short: the oldest of what is in the trash goes before its time, so
//! that nobody is told that the disks are full while they hold what was deleted.

use crate::time::earlier;
use crate::trash::let_go;
use hfcache_base::limits::{CHUNK_TARGET, GIB, MIB, ORPHAN_GRACE};
use hfcache_base::meta::TrashId;
use hfcache_base::seam::{Clock, Meta, Space};
use hfcache_base::{Result, Scheme};
use hfcache_storage::Store;
use std::sync::Arc;
use std::time::Duration;

/// How often it is looked whether a disk runs short.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Until shards that nobody wants any more are gone: see `freed_delay` of the store.
const TAKES_EFFECT: Duration = Duration::from_secs(8);
/// Least that is kept free by this, if that is not more than half of all: what a writer fills until it helps.
const FLOOR_MIN: u64 = 512 * MIB;
/// Most that is kept free by this, however large the disks are.
const FLOOR_MAX: u64 = 64 * GIB;
/// Most entries that go at once.
const ENTRIES_MAX: usize = 4_096;
/// Entries looked at in one view.
const PAGE: usize = 512;

pub(super) struct Room {
    pub(super) meta: Arc<dyn Meta>,
    pub(super) store: Arc<Store>,
    pub(super) clock: Arc<dyn Clock>,
    /// Hot copies are on the disk of the shards, and give way to them.
    pub(super) with_hot: bool,
}

impl Room {
    /// Looks for ever.
    pub(super) async fn watch(self) {
        let mut oldest = None;
        loop {
            self.clock.sleep(LOOK_EVERY).await;
            if let Err(e) = self.look(&mut oldest).await {
                tracing::debug!(error = %e, "make room");
            }
        }
    }

    async fn look(&self, oldest: &mut Option<TrashId>) -> Result<()> {
        let first = self.meta.read_stale().trash(None, 1)?.first().map(|entry| entry.id);
        let before = std::mem::replace(oldest, first);
        if first.is_none() || self.short().await? == 0 {
            return Ok(());
        }
        if before.is_some() && before != first {
            // Somebody has let go of some: a node that ran short as well, and that helps here, too.
            self.clock.sleep(TAKES_EFFECT).await;
        }
        let short = self.short().await?;
        if short == 0 {
            return Ok(());
        }
        let nodes = self.meta.map().storage_nodes().count();
        let ids = self.oldest(worth(short, nodes))?;
        if ids.is_empty() {
            return Ok(());
        }
        tracing::warn!(entries = ids.len(), short, "a disk runs short: empty the oldest of the trash");
        let_go(self.meta.as_ref(), ids).await?;
        self.clock.sleep(TAKES_EFFECT).await;
        *oldest = None;
        Ok(())
    }

    /// How many bytes are to become free on this node.
    async fn short(&self) -> Result<u64> {
        let mut space = self.store.capacity().await?;
        if self.with_hot {
            let (_, hot) = self.store.hot_usage();
            space = Space { total: space.total.saturating_add(hot), free: space.free.saturating_add(hot) };
        }
        Ok(short(space))
    }

    /// The oldest entries that take so many bytes together. What was deleted just now would be freed no sooner
    /// by letting go of it now.
    fn oldest(&self, wanted: u64) -> Result<Vec<TrashId>> {
        let ripe = earlier(self.clock.wall(), ORPHAN_GRACE);
        let (mut ids, mut bytes): (Vec<TrashId>, u64) = (Vec::new(), 0);
        let view = self.meta.read_stale();
        while bytes < wanted && ids.len() < ENTRIES_MAX {
            let page = view.trash(ids.last().copied(), PAGE)?;
            if page.is_empty() {
                break;
            }
            for entry in page {
                if bytes >= wanted || entry.id.at > ripe {
                    return Ok(ids);
                }
                bytes += entry.attr.allocated;
                ids.push(entry.id);
            }
        }
        Ok(ids)
    }
}

/// How many bytes are to become free, if fewer than a tenth are: half as much again, so that it lasts a while.
fn short(space: Space) -> u64 {
    let floor = (space.total / 10).clamp(FLOOR_MIN, FLOOR_MAX).min(space.total / 2);
    if space.free >= floor { 0 } else { floor + floor / 2 - space.free }
}

/// How many bytes of files so many bytes of shards on each of the nodes are.
fn worth(short: u64, nodes: usize) -> u64 {
    let scheme = Scheme::choose(nodes, CHUNK_TARGET);
    short.saturating_mul(nodes as u64) / u64::from(scheme.total()) * u64::from(scheme.data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_short_when_less_than_a_tenth_is_free() {
        let short_of = |total, free| short(Space { total, free });
        assert_eq!((short_of(0, 0), short_of(100 * GIB, 10 * GIB)), (0, 0));
        assert_eq!(short_of(100 * GIB, 9 * GIB), 6 * GIB);
        assert_eq!((short_of(100_000 * GIB, 64 * GIB), short_of(100_000 * GIB, 63 * GIB)), (0, 33 * GIB));
        assert_eq!((short_of(2 * GIB, GIB / 2), short_of(2 * GIB, GIB / 4)), (0, GIB / 2));
        assert_eq!((short_of(GIB / 2, GIB / 4), short_of(GIB / 2, 0)), (0, 3 * GIB / 8));
    }

    #[test]
    fn shards_on_every_node_are_worth_the_data_in_them() {
        assert_eq!((worth(100, 1), worth(100, 3), worth(60, 6)), (100, 200, 240));
    }
}
