//! Making written bytes durable: put what is not yet on the shard holders, then tell the namespace.
//!
//! All or an error: what could not be committed stays dirty, so that the next flush tries it again.
//! Writes go on meanwhile; what they change is committed as it was when the flush began, and stays dirty.

use super::base::Base;
use super::file::File;
use super::staging::{Dirty, PieceState, Stage};
use super::write::PutJob;
use super::{Core, Unsaved};
use crate::ops::Reply;
use hfcache_base::interval::IntervalSet;
use hfcache_base::limits::{COMMIT_PIECES_MAX, INLINE_MAX, MIB};
use hfcache_base::meta::{Attr, ChunkRef, Content, Extent, Op, Piece, Timestamp};
use hfcache_base::meta::{Lock, LockKind, Reply as Answer};
use hfcache_base::seam::{LocalFile, LocalKey};
use hfcache_base::{ChunkId, Error, InodeId, Kind, Result};
use std::collections::{HashSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Up to so many bytes of a partly rewritten file are copied into its new hot copy.
const CARRY_MAX: u64 = 64 * MIB;
/// So often a small file that others write, too, is put together anew; then what was written goes into a chunk
/// of its own, which depends on nothing.
const INLINE_TRIES: usize = 8;

/// What a flush has to save.
struct Start {
    data: IntervalSet,
    holes: Vec<Range<u64>>,
    size: u64,
    mtime: Option<Timestamp>,
    /// Version of the content under it.
    version: u64,
    /// The whole file, if it belongs into the inode.
    inline: Option<Vec<u8>>,
}

/// Pieces that are on the holders, by number, with the extents that will show them.
pub(crate) type Put = Vec<(u64, Vec<Extent>)>;

/// What of it the namespace has taken.
#[derive(Default)]
struct Saved {
    /// Pieces.
    pieces: Vec<u64>,
    /// Their chunks.
    chunks: HashSet<ChunkId>,
    holes: Vec<Range<u64>>,
    /// The whole file, in its inode.
    inline: bool,
    /// Attributes after the last commit.
    attr: Option<Attr>,
}

impl Core {
    /// FLUSH.
    pub(crate) fn flush(self: &Arc<Self>, ino: InodeId, handle: u64, owner: u64, reply: Reply<()>) {
        let file = match self.table.handle(ino, handle) {
            Ok(handle) => Arc::clone(&handle.file),
            Err(kind) => return reply.fail(kind),
        };
        let locked = self.meta.lock_held(ino, LockKind::Posix, owner);
        // Bytes of a nameless file are only for those who have it open here: they read the staging file.
        let save = file.is_dirty() && !file.orphaned.load(Ordering::SeqCst);
        if !locked && !save {
            let told = file.inner.lock().error.take();
            return reply.send(told.map_or(Ok(()), |kind| Err(kind.errno())));
        }
        let core = Arc::clone(self);
        self.answer_long(reply, async move {
            let saved = if save { core.save(&file).await } else { Ok(()) };
            if locked {
                core.drop_locks(ino, LockKind::Posix, owner).await;
            }
            saved
        });
    }

    /// FSYNC.
    pub(crate) fn fsync(self: &Arc<Self>, ino: InodeId, handle: u64, reply: Reply<()>) {
        let file = match self.table.handle(ino, handle) {
            Ok(handle) => Arc::clone(&handle.file),
            Err(kind) => return reply.fail(kind),
        };
        if !file.is_dirty() {
            let told = file.inner.lock().error.take();
            return reply.send(told.map_or(Ok(()), |kind| Err(kind.errno())));
        }
        let core = Arc::clone(self);
        self.answer_long(reply, async move { core.save(&file).await });
    }

    /// RELEASE.
    pub(crate) fn release(self: &Arc<Self>, ino: InodeId, handle: u64, flock: Option<u64>, reply: Reply<()>) {
        let Some(handle) = self.table.remove_handle(handle) else { return reply.fail(Kind::BadHandle) };
        let file = Arc::clone(&handle.file);
        let lockers = std::mem::take(&mut *handle.lockers.lock());
        drop(handle);
        let flock = flock.filter(|owner| self.meta.lock_held(ino, LockKind::Flock, *owner));
        if flock.is_none() && lockers.is_empty() && !file.is_dirty() && !file.held.load(Ordering::SeqCst) {
            self.closed(&file);
            return reply.ok(());
        }
        let core = Arc::clone(self);
        self.answer_long(reply, async move {
            let orphaned = file.orphaned.load(Ordering::SeqCst);
            let saved = if orphaned { Ok(()) } else { core.save(&file).await };
            if let Some(owner) = flock {
                core.drop_locks(ino, LockKind::Flock, owner).await;
            }
            for owner in lockers {
                core.drop_locks(ino, LockKind::Posix, owner).await;
            }
            if let Err(e) = &saved
                && core.table.opens(ino) > 1
            {
                // Others have it open and will be told.
                file.inner.lock().error.get_or_insert(e.kind());
            }
            core.closed(&file);
            saved
        });
    }

    /// One handle less.
    fn closed(self: &Arc<Self>, file: &Arc<File>) {
        if !self.table.close(file.ino) {
            return;
        }
        let (unwanted, lost, waiting) = {
            let mut inner = file.inner.lock();
            let waiting = inner.let_go();
            match inner.dirty.take() {
                Some(mut dirty) => (dirty.abandon(), dirty.data.bytes(), waiting),
                None => (Vec::new(), 0, waiting),
            }
        };
        for (reply, written) in waiting {
            reply.ok(written);
        }
        if lost > 0 && !file.orphaned.load(Ordering::SeqCst) {
            tracing::error!(ino = %file.ino, bytes = lost, "written bytes were not saved and are lost");
            self.table.pages_wrong(file.ino);
        }
        self.forget(unwanted);
        if file.held.swap(false, Ordering::SeqCst) {
            self.let_orphan_go(file.ino);
        }
    }

    /// Tells the namespace that a nameless inode is no longer open here.
    pub(crate) fn let_orphan_go(self: &Arc<Self>, ino: InodeId) {
        let core = Arc::clone(self);
        self.runtime.spawn(async move {
            match core.meta.commit(Op::Hold { ino, hold: false }).await {
                Err(e) if e.kind() != Kind::NotFound && e.kind() != Kind::Stale => {
                    // The session's end lets it go, too.
                    tracing::warn!(ino = %ino, error = %e, "release orphan");
                }
                _ => {}
            }
            if core.table.is_open(ino) {
                core.hold_orphan(ino);
            }
        });
    }

    async fn drop_locks(&self, ino: InodeId, kind: LockKind, owner: u64) {
        let all = Lock { kind, owner, exclusive: false, start: 0, end: u64::MAX, pid: 0 };
        if let Err(e) = self.give_up(ino, all).await {
            tracing::warn!(ino = %ino, error = %e, "drop locks of a closed file");
        }
    }

    /// Makes everything durable that had been written before this call.
    ///
    /// # Errors
    /// Nothing or not all of it is; the rest stays dirty. Each step has its own deadline.
    pub(crate) async fn save(self: &Arc<Self>, file: &Arc<File>) -> Result<()> {
        let _one_at_a_time = file.commit.lock().await;
        let told = file.inner.lock().error.take();
        let saved = self.save_locked(file).await;
        match (saved, told) {
            (Err(e), _) => {
                tracing::error!(ino = %file.ino, error = %e, "written bytes are not saved");
                Err(e)
            }
            // The flush has mended what an early put could not do.
            (Ok(()), Some(Kind::NoSpace) | None) => Ok(()),
            (Ok(()), Some(kind)) => Err(kind.into()),
        }
    }

    /// As [`Core::save`], for who holds `file.commit`.
    ///
    /// # Errors
    /// As [`Core::save`].
    pub(crate) async fn save_locked(self: &Arc<Self>, file: &Arc<File>) -> Result<()> {
        if !file.is_dirty() {
            return Ok(());
        }
        self.writable()?;
        for tries in 0.. {
            file.refresh_unless_committing(self).await?;
            if file.inner.lock().is_append() {
                return self.save_append(file).await;
            }
            let Some(start) = begin(file, tries < INLINE_TRIES)? else { break };
            let mut saved = Saved::default();
            let result = match &start.inline {
                Some(bytes) => self.commit_inline(file, &start, bytes.clone(), &mut saved).await,
                None => self.commit_chunks(file, &start, &mut saved).await,
            };
            if let Some((stage, version)) = self.end(file, &start, saved, result.is_ok()) {
                self.chunks.publish(stage, LocalKey { ino: file.ino, version });
            }
            match result {
                // The bytes around those that were written have changed: taken from the file as it is now.
                Err(e) if e.kind() == Kind::Changed && start.inline.is_some() => {
                    file.stale.mark();
                }
                result => return result,
            }
        }
        Ok(())
    }

    /// The end of a flush: what was saved becomes the committed content and stops being dirty, in one step,
    /// so that a reader always finds it in one of the two. Answers the staging file if it holds the whole
    /// content of a version.
    fn end(
        self: &Arc<Self>,
        file: &Arc<File>,
        start: &Start,
        saved: Saved,
        complete: bool,
    ) -> Option<(Arc<dyn LocalFile>, u64)> {
        let loaded = match &saved.attr {
            Some(_) => self.load(file).ok(),
            None => None,
        };
        let mut publish = None;
        let mut carry = None;
        let mut unwanted = Vec::new();
        let mut inner = file.inner.lock();
        if let (Some(after), Some((attr, content))) = (&saved.attr, loaded) {
            if attr.data_version == after.data_version {
                self.table.pages_advance(file.ino, start.version, attr.data_version);
            } else {
                self.table.pages_wrong(file.ino);
            }
            let mut base = Base::new(attr, content);
            if let Some(dirty) = inner.dirty.as_mut() {
                dirty.committed(&saved.pieces, &saved.holes);
                if saved.inline {
                    dirty.committed_inline(&start.data);
                    unwanted.extend(dirty.abandon());
                }
                if complete && base.version() == after.data_version {
                    (base, publish, carry) = keep_local(dirty, base, &start.data, &saved.chunks);
                }
            }
            inner.install(Arc::new(base));
        } else if saved.attr.is_some() {
            // Committed and not to be seen: it stays dirty here and is committed once more.
            file.stale.mark();
        }
        if complete && inner.mtime == start.mtime {
            inner.mtime = None;
        }
        if let Some(dirty) = inner.dirty.as_mut() {
            unwanted.extend(dirty.end_flush());
            dirty.eager = true;
            if dirty.is_clean() {
                inner.dirty = None;
            }
        }
        let base = Arc::clone(&inner.base);
        let answered = inner.let_go();
        drop(inner);
        for (reply, written) in answered {
            reply.ok(written);
        }
        self.forget(unwanted);
        if let Some(stage) = carry {
            self.carry(stage, &base, start.data.clone());
        }
        publish
    }

    /// Copies the written part of a file into its new hot copy; the rest is fetched when it is read.
    pub(crate) fn carry(self: &Arc<Self>, stage: Arc<dyn LocalFile>, base: &Arc<Base>, data: IntervalSet) {
        let (core, base) = (Arc::clone(self), Arc::clone(base));
        self.runtime.spawn_blocking(move || {
            let Some(local) = base.local(&core) else { return };
            for run in data.iter() {
                let mut at = run.start;
                while at < run.end {
                    let part = at..run.end.min(at + MIB);
                    let copied = super::base::read_exact(stage.as_ref(), &part)
                        .and_then(|bytes| local.fill_at(&bytes, part.start));
                    if copied.is_err() {
                        return;
                    }
                    at = part.end;
                }
            }
        });
    }

    async fn commit_inline(
        &self,
        file: &File,
        start: &Start,
        bytes: Vec<u8>,
        saved: &mut Saved,
    ) -> Result<()> {
        let attr = self
            .propose(file.ino, vec![Piece::Inline(bytes)], start.size, start.mtime, Some(start.version))
            .await?;
        saved.attr = Some(attr);
        saved.holes.clone_from(&start.holes);
        saved.inline = true;
        Ok(())
    }

    async fn commit_chunks(
        self: &Arc<Self>,
        file: &Arc<File>,
        start: &Start,
        saved: &mut Saved,
    ) -> Result<()> {
        let mut pieces = self.put_rest(file).await?;
        pieces.sort_by_key(|(_, extents)| extents.first().map(|e| e.offset));
        let mut left = VecDeque::from(pieces);
        let mut holes = start.holes.as_slice();
        loop {
            let mut batch: Vec<Piece> = Vec::new();
            let mut ids = Vec::new();
            let mut chunks = Vec::new();
            while let Some((id, extents)) =
                left.pop_front_if(|(_, extents)| batch.len() + extents.len() <= COMMIT_PIECES_MAX)
            {
                chunks.extend(extents.first().map(|e| e.chunk.id));
                batch.extend(extents.into_iter().map(Piece::Chunk));
                ids.push(id);
            }
            let (now, later) = holes.split_at(holes.len().min(COMMIT_PIECES_MAX - batch.len()));
            holes = later;
            batch.extend(now.iter().map(|h| Piece::Hole { offset: h.start, len: h.end - h.start }));
            batch.sort_by_key(offset_of);
            let end = batch.iter().map(end_of).max().unwrap_or(0);
            let done = left.is_empty() && holes.is_empty();
            if let Some(dirty) = file.inner.lock().dirty.as_mut() {
                for id in &ids {
                    if let Some(piece) = dirty.pieces.get_mut(id) {
                        piece.tried = true;
                    }
                }
            }
            let size = if done { start.size.max(end) } else { end };
            saved.attr = Some(self.propose(file.ino, batch, size, start.mtime, None).await?);
            saved.pieces.extend(ids);
            saved.chunks.extend(chunks);
            saved.holes.extend_from_slice(now);
            if done {
                return Ok(());
            }
        }
    }

    async fn propose(
        &self,
        ino: InodeId,
        pieces: Vec<Piece>,
        size: u64,
        mtime: Option<Timestamp>,
        base: Option<u64>,
    ) -> Result<Attr> {
        match self.commit(Op::Commit { ino, pieces, size, mtime, base }).await? {
            Answer::Attr(attr) | Answer::Entry { attr, .. } => Ok(attr),
            _ => self.view(|view, _| view.attr(ino)).await,
        }
    }

    /// Puts what is not put yet, and waits for all of it. Answers every piece with its extents.
    pub(crate) async fn put_rest(self: &Arc<Self>, file: &Arc<File>) -> Result<Put> {
        let mut again = true;
        loop {
            let (jobs, wanted) = {
                let mut inner = file.inner.lock();
                inner.put_error = None;
                let Some(dirty) = inner.dirty.as_mut() else { return Ok(Vec::new()) };
                let groups = dirty.unput();
                let ids: Vec<u64> = groups.into_iter().map(|ranges| dirty.add_piece(ranges)).collect();
                let jobs: Vec<PutJob> = ids.iter().filter_map(|id| PutJob::new(dirty, *id)).collect();
                let wanted: Vec<u64> = dirty.pieces.keys().copied().collect();
                (jobs, wanted)
            };
            let early = wanted.len() > jobs.len();
            self.put_all(file, jobs);
            match self.wait_for(file, &wanted).await {
                // It may be an early put that failed, whose time had run out before the flush began.
                Err(e) if again && early && e.kind().is_transient() => again = false,
                result => return result,
            }
        }
    }

    async fn wait_for(&self, file: &File, wanted: &[u64]) -> Result<Put> {
        loop {
            let progress = file.progress.notified();
            tokio::pin!(progress);
            progress.as_mut().enable();
            if let Some(done) = all_done(file, wanted)? {
                return Ok(done);
            }
            progress.await;
        }
    }
}

/// Looks at the pieces of a flush: `None` while some are on their way.
fn all_done(file: &File, wanted: &[u64]) -> Result<Option<Put>> {
    let inner = file.inner.lock();
    let Some(dirty) = inner.dirty.as_ref() else { return Ok(Some(Vec::new())) };
    let mut done = Vec::with_capacity(wanted.len());
    let mut waiting = false;
    for id in wanted {
        match dirty.pieces.get(id).map(|p| (p.state, &p.ranges)) {
            Some((PieceState::Done(chunk), ranges)) => done.push((*id, extents(chunk, ranges))),
            Some((PieceState::Putting, _)) => waiting = true,
            // It failed. The others go on and are used by the next flush.
            None => {
                let kind = inner.put_error.unwrap_or(Kind::Unavailable);
                return Err(Error::new(kind, "put chunk"));
            }
        }
    }
    Ok((!waiting).then_some(done))
}

fn extents(chunk: ChunkRef, ranges: &[Range<u64>]) -> Vec<Extent> {
    let mut chunk_offset = 0;
    let mut extents = Vec::with_capacity(ranges.len());
    for r in ranges {
        let len = (r.end - r.start) as u32;
        extents.push(Extent { offset: r.start, len, chunk_offset, chunk });
        chunk_offset += len;
    }
    extents
}

fn offset_of(piece: &Piece) -> u64 {
    match piece {
        Piece::Inline(_) => 0,
        Piece::Chunk(extent) => extent.offset,
        Piece::Hole { offset, .. } => *offset,
    }
}

fn end_of(piece: &Piece) -> u64 {
    match piece {
        Piece::Inline(bytes) => bytes.len() as u64,
        Piece::Chunk(extent) => extent.end(),
        Piece::Hole { offset, len } => offset + len,
    }
}

/// Marks the moment from which writes count as later than the flush.
fn begin(file: &File, may_inline: bool) -> Result<Option<Start>> {
    let mut inner = file.inner.lock();
    let (base, mtime) = (Arc::clone(&inner.base), inner.mtime);
    let Some(dirty) = inner.dirty.as_mut().filter(|d| !d.is_clean()) else { return Ok(None) };
    let size = base.size().max(dirty.end);
    let mut start = Start {
        data: dirty.data.clone(),
        holes: dirty.holes.iter().collect(),
        size,
        mtime,
        version: base.version(),
        inline: None,
    };
    // What is neither written nor punched comes from the committed inline bytes; if some of it lies in
    // chunks, the file stays in chunks.
    let mut kept = IntervalSet::default();
    kept.insert(0..size);
    kept.subtract(&dirty.data);
    kept.subtract(&dirty.holes);
    if may_inline && size <= INLINE_MAX as u64 && kept.iter().all(|r| !base.has_extents(&r)) {
        let mut bytes = vec![0; size as usize];
        for r in kept.iter() {
            let end = r.end.min(base.content.inline.len() as u64).min(base.size());
            if r.start < end {
                let part = r.start as usize..end as usize;
                bytes[part.clone()].copy_from_slice(&base.content.inline[part]);
            }
        }
        for r in dirty.data.iter() {
            bytes[r.start as usize..r.end as usize].copy_from_slice(&dirty.stage.read(&r)?);
        }
        start.inline = Some(bytes);
    }
    dirty.since = Some(IntervalSet::default());
    Ok(Some(start))
}

/// What becomes of a staging file whose bytes are committed as the content `base`: it is the hot copy of it,
/// or its part of it is carried into one.
#[expect(clippy::type_complexity, reason = "two staging files, of which there is at most one")]
pub(crate) fn keep_local(
    dirty: &Dirty,
    base: Base,
    data: &IntervalSet,
    chunks: &HashSet<ChunkId>,
) -> (Base, Option<(Arc<dyn LocalFile>, u64)>, Option<Arc<dyn LocalFile>>) {
    let Stage::File(stage) = &dirty.stage else { return (base, None, None) };
    if !dirty.is_clean() || !is_intact(data, &base.content, chunks) {
        return (base, None, None);
    }
    if covers(data, &base) && fill_holes(data, stage.as_ref(), base.size()) {
        let base = Base::with_local(base.attr, base.content, Arc::clone(stage));
        let version = base.version();
        return (base, Some((Arc::clone(stage), version)), None);
    }
    (base, None, (data.bytes() <= CARRY_MAX).then(|| Arc::clone(stage)))
}

/// Whether the content has exactly these chunks where something was written: no one else wrote there between
/// two commits of one flush.
fn is_intact(data: &IntervalSet, content: &Content, chunks: &HashSet<ChunkId>) -> bool {
    let ours = content.extents.iter().filter(|e| chunks.contains(&e.chunk.id));
    let bytes: u64 =
        ours.flat_map(|e| data.within(&(e.offset..e.end()))).map(|part| part.end - part.start).sum();
    bytes == data.bytes()
}

/// Whether all bytes of chunks and of the inode were written here.
fn covers(data: &IntervalSet, base: &Base) -> bool {
    let inline = (base.content.inline.len() as u64).min(base.size());
    data.gaps(&(0..base.size())).iter().all(|gap| gap.start >= inline && !base.has_extents(gap))
}

fn fill_holes(data: &IntervalSet, stage: &dyn LocalFile, size: u64) -> bool {
    stage.set_len(size).is_ok() && data.gaps(&(0..size)).into_iter().all(|gap| stage.zero(gap).is_ok())
}

/// Saves every open file.
pub(crate) async fn all(core: &Arc<Core>) -> Vec<Unsaved> {
    let mut unsaved = Vec::new();
    for file in core.table.files() {
        if file.orphaned.load(Ordering::SeqCst) || !file.is_dirty() {
            continue;
        }
        if let Err(error) = core.save(&file).await {
            unsaved.push(Unsaved { ino: file.ino, error });
        }
    }
    unsaved
}
