//! Reading, and reading ahead.

use super::base::{Loose, zeros};
use super::file::File;
use super::staging::{Dirty, Stage};
use super::table::Handle;
use super::{Core, FETCH_DEADLINE, RETRY_FIRST, RETRY_MAX};
use crate::ops::{Data, Reply};
use bytes::Bytes;
use hfcache_base::limits::{CELL, MIB, READAHEAD};
use hfcache_base::{Error, InodeId, Kind, Result};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Reads this far from the expected place still belong to a sequential reader: the kernel asks in
/// parallel, and answers overtake each other.
const SLACK: u64 = 4 * MIB;
/// First window of a reader that seems sequential.
const WINDOW_FIRST: u64 = 2 * MIB;

/// How one handle is read.
#[derive(Default)]
pub(crate) struct Readahead {
    /// Where the furthest read ended.
    next: u64,
    /// Where the last read began.
    last: u64,
    /// Distance of the last two reads.
    stride: u64,
    /// Reads in a row that were as far apart.
    strides: u32,
    /// Fetched or asked for up to here.
    until: u64,
    /// How far ahead to go; 0 before the first read.
    window: u64,
}

impl Readahead {
    /// Notes a read; answers which range to fetch ahead of it.
    fn note(&mut self, offset: u64, end: u64) -> Option<Range<u64>> {
        let stride = offset.wrapping_sub(self.last);
        self.strides = if stride == self.stride { self.strides.saturating_add(1) } else { 0 };
        self.stride = stride;
        self.last = offset;
        let near = offset <= self.next.saturating_add(SLACK) && offset.saturating_add(SLACK) >= self.next;
        if near {
            self.window = if self.window == 0 { WINDOW_FIRST } else { (self.window * 2).min(READAHEAD) };
            self.next = self.next.max(end);
            self.until = self.until.max(self.next);
            let target = self.next.saturating_add(self.window);
            // In steps of a cell, so that not every small read looks for work.
            return (target >= self.until.saturating_add(u64::from(CELL))).then_some(self.until..target);
        }
        self.next = end;
        self.until = end;
        self.window = 0;
        // A reader of rows or tensors: the next one is where the last step leads.
        (self.strides >= 2 && stride < u64::MAX / 2)
            .then(|| offset.saturating_add(stride)..end.saturating_add(stride))
    }
}

/// Where the bytes of a read come from.
enum Part {
    /// Written here.
    Stage(Stage, Range<u64>),
    /// Punched here.
    Zero(u64),
    /// Committed.
    Base(Range<u64>),
}

/// A read that was worked out: content does not change under it.
struct Plan {
    base: Arc<super::base::Base>,
    parts: Vec<Part>,
}

impl Plan {
    fn new(file: &File, offset: u64, size: u32) -> Self {
        let inner = file.inner.lock();
        let base = Arc::clone(&inner.base);
        let end = offset.saturating_add(u64::from(size)).min(inner.size());
        if offset >= end {
            return Self { base, parts: Vec::new() };
        }
        let all = offset..end;
        let Some(dirty) = inner.dirty.as_ref().filter(|d| !d.is_clean()) else {
            return Self { base, parts: vec![Part::Base(all)] };
        };
        if dirty.append.is_some() {
            return Self { parts: appended(dirty, base.size(), all), base };
        }
        let mut parts = Vec::new();
        let committed = |range: Range<u64>, parts: &mut Vec<Part>| {
            let mut at = range.start;
            for hole in dirty.holes.within(&range) {
                if at < hole.start {
                    parts.push(Part::Base(at..hole.start));
                }
                parts.push(Part::Zero(hole.end - hole.start));
                at = hole.end;
            }
            if at < range.end {
                parts.push(Part::Base(at..range.end));
            }
        };
        let mut at = all.start;
        for written in dirty.data.within(&all) {
            committed(at..written.start, &mut parts);
            at = written.end;
            parts.push(staged(dirty, written));
        }
        committed(at..all.end, &mut parts);
        Self { base, parts }
    }

    /// The bytes, if all of them are here.
    fn read(&self, core: &Core, loose: &[Loose]) -> Option<Result<Data>> {
        match self.parts.as_slice() {
            [Part::Stage(Stage::File(file), range)] => return Some(Ok(local(file, range))),
            [Part::Base(range)] if self.base.has_extents(range) && range.end <= self.base.size() => {
                if let Some(file) = self.base.local(core)
                    && file.missing(range.clone()).is_empty()
                {
                    return Some(Ok(local(file, range)));
                }
            }
            _ => {}
        }
        let none = Loose::new();
        let mut out: Vec<Bytes> = Vec::new();
        for (i, part) in self.parts.iter().enumerate() {
            match part {
                Part::Stage(stage, range) => match stage.read(range) {
                    Ok(bytes) => out.push(bytes.into()),
                    Err(e) => return Some(Err(e)),
                },
                Part::Zero(len) => zeros(*len, &mut out),
                Part::Base(range) => {
                    match self.base.read_now(core, range, loose.get(i).unwrap_or(&none), &mut out)? {
                        Ok(()) => {}
                        Err(e) => return Some(Err(e)),
                    }
                }
            }
        }
        Some(Ok(Data::Bytes(out)))
    }

    /// Fetches what is missing.
    async fn fetch(&self, core: &Arc<Core>) -> Result<Vec<Loose>, Kind> {
        let fetches = self.parts.iter().map(|part| async move {
            match part {
                Part::Base(range) => self.base.ensure(core, range).await,
                Part::Stage(..) | Part::Zero(_) => Ok(Loose::new()),
            }
        });
        futures::future::try_join_all(fetches).await
    }
}

/// Bytes that were written here.
fn staged(dirty: &Dirty, range: Range<u64>) -> Part {
    // A copy of what lies in memory, as it may change under a slow read.
    let stage = match &dirty.stage {
        Stage::Memory(bytes) => Stage::Memory(bytes[..range.end as usize].to_vec()),
        Stage::File(file) => Stage::File(Arc::clone(file)),
    };
    Part::Stage(stage, range)
}

/// The parts of a read of a file whose uncommitted bytes follow the committed ones, whose end is at `size`.
fn appended(dirty: &Dirty, size: u64, all: Range<u64>) -> Vec<Part> {
    let mut parts = Vec::new();
    if all.start < size {
        parts.push(Part::Base(all.start..all.end.min(size)));
    }
    let start = dirty.data.iter().next().map_or(0, |run| run.start);
    let written = all.start.max(size)..all.end;
    if !written.is_empty() {
        parts.push(staged(dirty, start + (written.start - size)..start + (written.end - size)));
    }
    parts
}

fn local(file: &Arc<dyn hfcache_base::seam::LocalFile>, range: &Range<u64>) -> Data {
    Data::Local { file: Arc::clone(file), offset: range.start, len: (range.end - range.start) as usize }
}

impl Core {
    /// READ: at once from memory and local disks, else from a task.
    pub(crate) fn read(
        self: &Arc<Self>,
        unique: u64,
        ino: InodeId,
        handle: u64,
        offset: u64,
        size: u32,
        reply: Reply<Data>,
    ) {
        let handle = match self.table.handle(ino, handle) {
            Ok(handle) => handle,
            Err(kind) => return reply.fail(kind),
        };
        if !handle.noted.swap(true, Ordering::Relaxed) {
            self.was_read(self.meta.read_stale().as_ref(), ino);
        }
        if handle.file.refresh_now(self) {
            let plan = Plan::new(&handle.file, offset, size);
            let now = plan.read(self, &[]);
            self.read_ahead(&handle, &plan.base, offset, size);
            match now {
                Some(Ok(data)) => return reply.ok(data),
                Some(Err(e)) => {
                    // The local copy may be gone or damaged; the shard holders have the bytes too.
                    tracing::warn!(ino = %ino, error = %e, "read local file");
                }
                None => {}
            }
        }
        let core = Arc::clone(self);
        self.answer_unless_interrupted(unique, reply, async move {
            core.read_slowly(&handle.file, offset, size).await
        });
    }

    fn read_ahead(self: &Arc<Self>, handle: &Handle, base: &Arc<super::base::Base>, offset: u64, size: u32) {
        if base.content.extents.is_empty() {
            return;
        }
        let mut readahead = handle.readahead.lock();
        let end = offset.saturating_add(u64::from(size)).min(base.size());
        if offset >= end {
            return;
        }
        if let Some(ahead) = readahead.note(offset, end) {
            let sequential = readahead.window > 0;
            let came = base.prefetch(self, ahead);
            if sequential {
                readahead.until = came;
            }
        }
    }

    async fn read_slowly(self: &Arc<Self>, file: &Arc<File>, offset: u64, size: u32) -> Result<Data> {
        let until = self.clock.now().after(FETCH_DEADLINE);
        let mut pause = RETRY_FIRST;
        loop {
            let error = match self.read_once(file, offset, size).await {
                Ok(data) => return Ok(data),
                Err(e) => e,
            };
            let before = file.inner.lock().base.version();
            // The chunks may be gone because the file has other content by now.
            file.stale.mark();
            let refreshed = file.refresh(self).await;
            let changed = refreshed.is_ok() && file.inner.lock().base.version() != before;
            let again = changed || error.kind().is_transient();
            if !again || self.clock.now() >= until {
                tracing::error!(ino = %file.ino, offset, size, error = %error, "read file");
                return Err(error);
            }
            if !changed {
                self.clock.sleep(pause).await;
                pause = (pause * 2).min(RETRY_MAX);
            }
        }
    }

    async fn read_once(self: &Arc<Self>, file: &Arc<File>, offset: u64, size: u32) -> Result<Data> {
        file.refresh(self).await?;
        let plan = Plan::new(file, offset, size);
        let loose = plan.fetch(self).await.map_err(|kind| Error::new(kind, "fetch chunk"))?;
        plan.read(self, &loose).unwrap_or_else(|| Err(Error::new(Kind::Canceled, "bytes went away")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequential_reader_gets_a_growing_window() {
        let mut r = Readahead::default();
        let mut furthest = 0;
        for i in 0..64u64 {
            let at = i * 128 * 1024;
            if let Some(ahead) = r.note(at, at + 128 * 1024) {
                assert!(ahead.start >= furthest, "nothing is asked for twice");
                assert!(ahead.end <= at + 128 * 1024 + READAHEAD);
                furthest = ahead.end;
                r.until = ahead.end;
            }
        }
        assert!(furthest >= 63 * 128 * 1024 + READAHEAD - 2 * MIB);
    }

    #[test]
    fn a_random_reader_gets_nothing_and_a_strided_one_the_next_row() {
        let mut r = Readahead::default();
        for at in [900 * MIB, 20 * MIB, 500 * MIB, 70 * MIB, 333 * MIB] {
            assert_eq!(r.note(at, at + 4096), None);
        }
        let mut r = Readahead::default();
        let mut last = None;
        for i in 1..8u64 {
            last = r.note(i * 64 * MIB, i * 64 * MIB + 4096);
        }
        assert_eq!(last, Some(8 * 64 * MIB..8 * 64 * MIB + 4096));
    }
}
