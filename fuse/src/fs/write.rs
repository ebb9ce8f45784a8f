//! Writing: into the staging file at once; full windows behind the writer go to the shard holders while
//! it writes on.

use super::file::{File, Inner};
use super::staging::{Dirty, PieceState, PutPiece, Stage};
use super::{Core, FETCH_DEADLINE, RETRY_FIRST, RETRY_MAX, logged};
use crate::ops::{Reply, WriteFlags};
use bytes::Bytes;
use hfcache_base::limits::{FILE_SIZE_MAX, WRITER_CHUNKS_IN_FLIGHT};
use hfcache_base::meta::ChunkRef;
use hfcache_base::{ChunkId, Error, InodeId, Kind, Result};
use std::ops::Range;
use std::sync::Arc;

/// A writer waits when so many windows wait behind those that are being put.
const QUEUED_MAX: usize = 2;

/// What a write asks for.
struct Wanted {
    offset: u64,
    append: bool,
    direct: bool,
}

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
        flags: WriteFlags,
        reply: Reply<u32>,
    ) {
        let append = flags.append;
        let handle = match self.table.handle(ino, handle) {
            Ok(handle) if handle.write => handle,
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
        if !append && offset.checked_add(len).is_none_or(|end| end > FILE_SIZE_MAX) {
            return reply.fail(Kind::TooLarge);
        }
        if data.is_empty() {
            return reply.ok(0);
        }
        let wanted = Wanted { offset, append, direct: handle.direct };
        let file = Arc::clone(&handle.file);
        let kill = flags.kill_set_id && self.may_be_set_id(&file);
        let reply = if kill { Some(reply) } else { self.take(&file, &wanted, data, reply) };
        let Some(mut reply) = reply else { return };
        let (core, data) = (Arc::clone(self), data.to_vec());
        self.runtime.spawn(async move {
            if kill {
                if let Err(e) = core.kill_set_id(ino).await {
                    return reply.send(Err(logged(&e)));
                }
                match core.take(&file, &wanted, &data, reply) {
                    Some(again) => reply = again,
                    None => return,
                }
            }
            // Bytes with a place and bytes for the end, which has none yet, are never dirty at the same time.
            loop {
                if let Err(e) = core.save(&file).await {
                    return reply.send(Err(logged(&e)));
                }
                match core.take(&file, &wanted, &data, reply) {
                    Some(again) => reply = again,
                    None => return,
                }
            }
        });
    }

    /// Takes bytes in, and answers. Gives the reply back if other bytes have to be saved first.
    fn take(
        self: &Arc<Self>,
        file: &Arc<File>,
        wanted: &Wanted,
        data: &[u8],
        reply: Reply<u32>,
    ) -> Option<Reply<u32>> {
        let (ino, len) = (file.ino, data.len() as u64);
        let mut inner = file.inner.lock();
        if inner.is_dirty_otherwise(wanted.append) {
            return Some(reply);
        }
        if inner.error == Some(Kind::NoSpace) {
            // A full cluster is told to the writer as soon as it is known.
            inner.error = None;
            reply.fail(Kind::NoSpace);
            return None;
        }
        let (offset, reply) = if wanted.append {
            let end = inner.size();
            if end + len > FILE_SIZE_MAX {
                reply.fail(Kind::TooLarge);
                return None;
            }
            let elsewhere = end != wanted.offset;
            (inner.append_at(), if elsewhere { self.tell_moved(ino, wanted.direct, reply) } else { reply })
        } else {
            (wanted.offset, reply)
        };
        if let Err(e) = self.check_room(ino, &mut inner, offset..offset + len) {
            drop(inner);
            reply.send(Err(logged(&e)));
            return None;
        }
        let dirty = inner.dirty.get_or_insert_with(Dirty::new);
        let unwanted = match dirty.write(self.chunks.as_ref(), offset, data) {
            Ok(unwanted) => unwanted,
            Err(e) => {
                drop(inner);
                tracing::warn!(ino = %ino, error = %e, "write staging file");
                reply.send(Err(logged(&e)));
                return None;
            }
        };
        if wanted.append {
            dirty.append.get_or_insert_default();
        }
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
        self.put_all(file, jobs);
        None
    }

    /// A reply to bytes that landed elsewhere than the kernel believes: the pages it has are wrong.
    fn tell_moved(self: &Arc<Self>, ino: InodeId, direct: bool, reply: Reply<u32>) -> Reply<u32> {
        let core = Arc::clone(self);
        Reply::new(move |result| {
            if direct {
                core.stale.pages_of(ino);
                core.stale.after_pending(Reply::new(move |_| reply.send(result)));
            } else {
                // The writer holds locks of pages until it is answered, for which the notice waits.
                reply.send(result);
                core.stale.pages_of(ino);
            }
        })
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
}
