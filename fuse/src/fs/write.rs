//! Writing: into the staging file at once; full windows behind the writer go to the shard holders while
//! it writes on.

use super::file::{File, Inner};
use super::staging::{Dirty, PieceState, PutPiece, Stage};
use super::{Core, FETCH_DEADLINE, RETRY_FIRST, RETRY_MAX, logged};
use crate::ops::Reply;
use bytes::Bytes;
use hfcache_base::limits::{FILE_SIZE_MAX, WRITER_CHUNKS_IN_FLIGHT};
use hfcache_base::meta::{ChunkRef, SetAttr};
use hfcache_base::{ChunkId, Error, InodeId, Kind, Result};
use std::ops::Range;
use std::sync::Arc;

/// A writer waits when so many windows wait behind those that are being put.
const QUEUED_MAX: usize = 2;

/// What a task needs to put one piece.
pub(crate) struct PutJob {
    /// Its number.
    pub(crate) id: u64,
    stage: Stage,
    ranges: Vec<Range<u64>>,
}

impl PutJob {
    /// The job for a piece that was just added.
    pub(crate) fn new(dirty: &Dirty, id: u64) -> Option<Self> {
        let ranges = dirty.pieces.get(&id)?.ranges.clone();
        Some(Self { id, stage: dirty.stage.clone(), ranges })
    }
}

impl Inner {
    /// Windows that may be put now.
    fn pump(&mut self) -> Vec<PutJob> {
        let mut jobs = Vec::new();
        if let Some(dirty) = &mut self.dirty {
            while dirty.putting < WRITER_CHUNKS_IN_FLIGHT {
                let Some(id) = dirty.next_window() else { break };
                jobs.extend(PutJob::new(dirty, id));
            }
        }
        jobs
    }

    fn writer_must_wait(&self) -> bool {
        self.dirty.as_ref().is_some_and(|d| d.eager && d.since.is_none() && d.queue.len() > QUEUED_MAX)
    }
}

impl Core {
    /// WRITE.
    pub(crate) fn write(
        self: &Arc<Self>,
        ino: InodeId,
        handle: u64,
        offset: u64,
        data: &[u8],
        reply: Reply<u32>,
    ) {
        let file = match self.table.handle(ino, handle) {
            Ok(handle) if handle.write => Arc::clone(&handle.file),
            Ok(_) => return reply.fail(Kind::BadHandle),
            Err(kind) => return reply.fail(kind),
        };
        let len = data.len() as u64;
        if self.read_only {
            return reply.fail(Kind::ReadOnly);
        }
        if self.is_fenced() {
            return reply.fail(Kind::Fenced);
        }
        if offset.checked_add(len).is_none_or(|end| end > FILE_SIZE_MAX) {
            return reply.fail(Kind::TooLarge);
        }
        if data.is_empty() {
            return reply.ok(0);
        }
        let mut inner = file.inner.lock();
        if inner.error == Some(Kind::NoSpace) {
            // A full cluster is told to the writer as soon as it is known.
            inner.error = None;
            return reply.fail(Kind::NoSpace);
        }
        let dirty = inner.dirty.get_or_insert_with(Dirty::new);
        let unwanted = match dirty.write(self.chunks.as_ref(), offset, data) {
            Ok(unwanted) => unwanted,
            Err(e) => {
                drop(inner);
                tracing::warn!(ino = %ino, error = %e, "write staging file");
                return reply.send(Err(logged(&e)));
            }
        };
        inner.mtime = Some(self.clock.wall());
        let jobs = inner.pump();
        let answer = if inner.writer_must_wait() {
            inner.waiting.push((reply, len as u32));
            None
        } else {
            Some(reply)
        };
        drop(inner);
        if let Some(reply) = answer {
            reply.ok(len as u32);
        }
        self.forget(unwanted);
        self.put_all(&file, jobs);
    }

    /// Chunks that will never be part of a file.
    pub(crate) fn forget(&self, chunks: Vec<ChunkId>) {
        for id in chunks {
            self.chunks.forget(id);
        }
    }

    /// Starts tasks that put pieces.
    pub(crate) fn put_all(self: &Arc<Self>, file: &Arc<File>, jobs: Vec<PutJob>) {
        for job in jobs {
            let (core, file) = (Arc::clone(self), Arc::clone(file));
            self.runtime.spawn(async move {
                let id = job.id;
                let result = core.put(&file, job).await;
                core.put_done(&file, id, result);
            });
        }
    }

    async fn put(&self, file: &File, job: PutJob) -> Result<ChunkRef> {
        let _mine = file.slots.acquire().await;
        let _all = self.puts.acquire().await;
        let read = move || -> Result<Vec<Bytes>> {
            job.ranges.iter().map(|r| job.stage.read(r).map(Bytes::from)).collect()
        };
        let data = self
            .runtime
            .spawn_blocking(read)
            .await
            .map_err(|e| Error::new(Kind::Canceled, "read staging file").with_source(e))??;
        let mut pause = RETRY_FIRST;
        let until = self.clock.now().after(FETCH_DEADLINE);
        let mut id = None;
        loop {
            let left = until.since(self.clock.now());
            let attempt = async {
                let id = match id {
                    Some(id) => id,
                    None => *id.insert(self.meta.chunk_id().await?),
                };
                self.chunks.put(id, data.clone()).await
            };
            let error = match self.within(left, attempt).await {
                Ok(chunk) => return Ok(chunk),
                Err(e) => e,
            };
            if !error.kind().is_transient() || self.clock.now().after(pause) >= until {
                if let Some(id) = id {
                    self.chunks.forget(id);
                }
                return Err(error);
            }
            self.clock.sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    fn put_done(self: &Arc<Self>, file: &Arc<File>, id: u64, result: Result<ChunkRef>) {
        let mut inner = file.inner.lock();
        let piece: Option<&mut PutPiece> = inner.dirty.as_mut().and_then(|d| d.pieces.get_mut(&id));
        let mut unwanted = Vec::new();
        let mut failed = None;
        match (result, piece) {
            (Ok(chunk), Some(piece)) => {
                piece.state = PieceState::Done(chunk);
                if let Some(dirty) = &mut inner.dirty {
                    dirty.putting = dirty.putting.saturating_sub(1);
                }
            }
            (Ok(chunk), None) => unwanted.push(chunk.id),
            (Err(e), piece) => {
                if piece.is_some() {
                    inner.put_error = Some(e.kind());
                    if let Some(dirty) = &mut inner.dirty {
                        dirty.drop_piece(id);
                        // The flush will try again, and say so if it fails.
                        dirty.eager = false;
                        dirty.queue.clear();
                        if dirty.since.is_none() && e.kind() == Kind::NoSpace {
                            inner.error = Some(Kind::NoSpace);
                        }
                    }
                }
                failed = Some(e);
            }
        }
        let jobs = inner.pump();
        let answered = if inner.writer_must_wait() { Vec::new() } else { inner.let_go() };
        drop(inner);
        if let Some(error) = failed {
            tracing::warn!(ino = %file.ino, error = %error, "put chunk");
        }
        for (reply, written) in answered {
            reply.ok(written);
        }
        self.forget(unwanted);
        self.put_all(file, jobs);
        file.progress.notify_waiters();
    }

    /// FALLOCATE.
    pub(crate) fn fallocate(
        self: &Arc<Self>,
        ino: InodeId,
        handle: u64,
        offset: u64,
        len: u64,
        mode: u32,
        reply: Reply<()>,
    ) {
        let file = match self.table.handle(ino, handle) {
            Ok(handle) if handle.write => Arc::clone(&handle.file),
            Ok(_) => return reply.fail(Kind::BadHandle),
            Err(kind) => return reply.fail(kind),
        };
        if self.read_only {
            return reply.fail(Kind::ReadOnly);
        }
        if len == 0 {
            return reply.fail(Kind::Invalid);
        }
        let Some(end) = offset.checked_add(len).filter(|end| *end <= FILE_SIZE_MAX) else {
            return reply.fail(Kind::TooLarge);
        };
        let keep = mode & libc::FALLOC_FL_KEEP_SIZE as u32 != 0;
        let rest = mode & !(libc::FALLOC_FL_KEEP_SIZE as u32);
        let zero = match rest as i32 {
            0 => false,
            libc::FALLOC_FL_PUNCH_HOLE if keep => true,
            libc::FALLOC_FL_ZERO_RANGE => true,
            _ => return reply.fail(Kind::NotSupported),
        };
        let core = Arc::clone(self);
        self.answer(reply, async move {
            if !keep && end > file.inner.lock().size() {
                // Room is promised by no one: bytes are placed when they are written.
                core.set_attr(ino, SetAttr { size: Some(end), ..SetAttr::default() }).await?;
            }
            if zero {
                core.punch(&file, offset..end);
            }
            Ok(())
        });
    }

    fn punch(&self, file: &File, range: Range<u64>) {
        let mut inner = file.inner.lock();
        let size = inner.size();
        let range = range.start..range.end.min(size).max(range.start);
        if range.is_empty() {
            return;
        }
        let dirty = inner.dirty.get_or_insert_with(Dirty::new);
        let unwanted = dirty.punch(range);
        inner.mtime = Some(self.clock.wall());
        drop(inner);
        self.forget(unwanted);
    }
}
