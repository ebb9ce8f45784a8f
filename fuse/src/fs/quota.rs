//! Quotas as the mount feels them: what `statfs` shows, and a writer that is told at once. The namespace has
//! the last word when the bytes are committed; here nothing is refused that it would take.

use super::file::Inner;
use super::{Core, logged};
use crate::ops::{Reply, StatFs};
use hfcache_base::interval::IntervalSet;
use hfcache_base::meta::{Content, Quota, Subject};
use hfcache_base::{InodeId, Kind, Result};
use std::ops::Range;
use std::time::Duration;

/// Room that was seen is believed for so long: more of it is told at once, as nothing is refused without a
/// new look; less of it a little late, which the commit makes up for.
const ROOM_TTL: Duration = Duration::from_millis(100);

impl Core {
    /// STATFS: the quota that leaves least room, if that is less than there is.
    pub(crate) fn statfs(&self, ino: InodeId, reply: Reply<StatFs>) {
        let space = self.chunks.space();
        let view = self.meta.read_stale();
        let totals = match view.totals() {
            Ok(totals) => totals,
            Err(e) => return reply.send(Err(logged(&e))),
        };
        // What is gone has no quota.
        let quotas = view.quotas_on(ino).unwrap_or_default();
        drop(view);
        let mut stat =
            StatFs { total: space.total, available: space.free, inodes: totals.inodes, inodes_free: None };
        // An owner's quota says nothing of what others can make here.
        let trees: Vec<&Quota> = quotas.iter().filter(|q| matches!(q.subject, Subject::Tree(_))).collect();
        if let Some((limit, left)) =
            trees.iter().filter_map(|q| Some((q.limit.bytes?, q.bytes_left()?))).min_by_key(|(_, left)| *left)
            && left <= stat.available
        {
            stat.total = limit;
            stat.available = left;
        }
        if let Some((used, left)) =
            trees.iter().filter_map(|q| Some((q.used.inodes, q.inodes_left()?))).min_by_key(|(_, left)| *left)
        {
            stat.inodes = used;
            stat.inodes_free = Some(left);
        }
        reply.ok(stat);
    }

    /// Whether a quota has room for a write, with all that was written to this file before and is not
    /// committed.
    ///
    /// # Errors
    /// [`Kind::Quota`].
    pub(crate) fn check_room(&self, ino: InodeId, inner: &mut Inner, range: Range<u64>) -> Result<()> {
        let now = self.clock.now();
        let known = inner.room.filter(|(_, until)| now < *until).map(|(room, _)| room);
        if known == Some(u64::MAX) {
            return Ok(());
        }
        let dirty = inner.dirty.as_ref();
        // No less than what the write adds.
        let most = dirty.map_or(0, |d| d.data.bytes()).saturating_add(range.end - range.start);
        if known.is_some_and(|room| most <= room) {
            return Ok(());
        }
        // Without a lease what is seen may be old, and while a flush is on its way some of what is dirty may
        // be counted already: then the commit decides.
        let Some((view, _)) = self.meta.read_local() else { return Ok(()) };
        if inner.is_committing() || dirty.is_some_and(|d| d.since.is_some()) {
            return Ok(());
        }
        let quotas = view.quotas_on(ino).unwrap_or_default();
        let room = quotas.iter().filter_map(Quota::bytes_left).min().unwrap_or(u64::MAX);
        inner.room = Some((room, now.after(ROOM_TTL)));
        if most <= room {
            return Ok(());
        }
        let Ok((_, content)) = view.content(ino) else { return Ok(()) };
        let (mut data, holes) = dirty.map(|d| (d.data.clone(), d.holes.clone())).unwrap_or_default();
        data.insert(range);
        let freed = allocated(&content, &data) + allocated(&content, &holes);
        if data.bytes().saturating_sub(freed) > room {
            return Err(Kind::Quota.into());
        }
        Ok(())
    }
}

/// How many bytes of these ranges are allocated already: no more is freed when they are written.
fn allocated(content: &Content, ranges: &IntervalSet) -> u64 {
    let inline = std::iter::once(0..content.inline.len() as u64);
    let held = content.extents.iter().map(|e| e.offset..e.end()).chain(inline);
    held.flat_map(|held| ranges.within(&held)).map(|r| r.end - r.start).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hfcache_base::meta::{ChunkRef, Extent};
    use hfcache_base::{ChunkId, Scheme};

    #[test]
    fn bytes_that_are_there_are_not_counted_again() {
        let chunk = ChunkRef { id: ChunkId(1), len: 10, scheme: Scheme { data: 1, parity: 1 } };
        let extent = |offset| Extent { offset, len: 10, chunk_offset: 0, chunk };
        let content = Content { inline: vec![0; 4], extents: vec![extent(10), extent(30)] };
        let count = |ranges: &[Range<u64>]| {
            let mut set = IntervalSet::default();
            ranges.iter().for_each(|r| set.insert(r.clone()));
            allocated(&content, &set)
        };
        assert_eq!(count(&[]), 0);
        assert_eq!(count(&[0..50, 50..100]), 24);
        assert_eq!(count(&[2..3, 5..9, 15..32]), 1 + 5 + 2);
        assert_eq!(count(&[20..30, 40..50]), 0);
    }
}
