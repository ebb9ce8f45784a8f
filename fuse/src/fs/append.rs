//! Appending (O_APPEND): bytes for the end of a file, wherever that will be when they are committed.
//!
//! Records that were appended here and not committed yet are one run. In the stage it lies where the end was
//! when its first byte was written; it is shown behind the committed content, also if that has grown since.
//! The state decides where it goes, so that what several nodes append is all there, each record whole.
//! A commit whose outcome is not known is proposed again exactly as it was, under the same token.

use super::Core;
use super::base::Base;
use super::file::{File, Inner};
use super::flush::{Put, keep_local};
use hfcache_base::interval::IntervalSet;
use hfcache_base::limits::{COMMIT_PIECES_MAX, INLINE_MAX};
use hfcache_base::meta::{Attr, Extent, Op, Piece, Reply as Answer, Timestamp};
use hfcache_base::seam::LocalKey;
use hfcache_base::{ChunkId, Error, Kind, Result};
use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

/// What dirty bytes for the end of a file have besides.
#[derive(Default)]
pub(crate) struct Append {
    /// A commit of some is on its way: content that is read now may hold them already.
    pub(crate) committing: bool,
    /// The commit whose outcome is not known.
    pending: Option<Pending>,
}

/// One commit of the front of a run.
#[derive(Clone)]
struct Pending {
    token: ChunkId,
    pieces: Vec<Piece>,
    /// Pieces as the staging knows them.
    ids: Vec<u64>,
    chunks: HashSet<ChunkId>,
    /// Where the bytes lie in the stage.
    run: Range<u64>,
    mtime: Option<Timestamp>,
    /// Version of the content they were appended to.
    version: u64,
}

impl Inner {
    /// Whether there are uncommitted bytes for the end of the file.
    pub(crate) fn is_append(&self) -> bool {
        self.dirty.as_ref().is_some_and(|d| d.append.is_some() && !d.is_clean())
    }

    /// Whether there are uncommitted bytes of the other kind.
    pub(crate) fn is_dirty_otherwise(&self, append: bool) -> bool {
        self.dirty.as_ref().is_some_and(|d| d.append.is_some() != append && !(append && d.is_untouched()))
    }

    /// Whether some are being committed.
    pub(crate) fn is_committing(&self) -> bool {
        self.dirty.as_ref().and_then(|d| d.append.as_ref()).is_some_and(|a| a.committing)
    }

    /// Where the next byte for the end of the file goes in the stage.
    pub(crate) fn append_at(&self) -> u64 {
        let run = self.dirty.as_ref().filter(|d| d.append.is_some()).and_then(|d| d.data.iter().last());
        run.map_or(self.base.size(), |run| run.end)
    }

    fn append_mut(&mut self) -> Option<&mut Append> {
        self.dirty.as_mut().and_then(|d| d.append.as_mut())
    }
}

impl Core {
    /// Commits what was appended before this call. The caller holds `file.commit`.
    pub(crate) async fn save_append(self: &Arc<Self>, file: &Arc<File>) -> Result<()> {
        // As far as it came before the call; the writer goes on meanwhile.
        let until = file.inner.lock().append_at();
        let mut may_inline = true;
        loop {
            let known = file.inner.lock().append_mut().and_then(|a| a.pending.clone());
            let pending = match known {
                Some(pending) => pending,
                None => match self.next_append(file, until, may_inline).await? {
                    Some(pending) => pending,
                    None => return Ok(()),
                },
            };
            if !self.commit_append(file, pending).await? {
                may_inline = false;
            }
        }
    }

    /// The commit of the front of the run; `None` if everything up to `until` is committed.
    async fn next_append(
        self: &Arc<Self>,
        file: &Arc<File>,
        until: u64,
        may_inline: bool,
    ) -> Result<Option<Pending>> {
        let (inline, version, mtime) = {
            let inner = file.inner.lock();
            let Some(dirty) = inner.dirty.as_ref().filter(|_| inner.is_append()) else { return Ok(None) };
            let Some(run) = dirty.data.iter().next().filter(|run| run.start < until) else { return Ok(None) };
            let fits = inner.base.content.extents.is_empty() && inner.size() <= INLINE_MAX as u64;
            let inline = if may_inline && fits { Some((dirty.stage.read(&run)?, run)) } else { None };
            (inline, inner.base.version(), inner.mtime)
        };
        let (pieces, ids, chunks, run) = match inline {
            Some((bytes, run)) => (vec![Piece::Inline(bytes)], Vec::new(), HashSet::new(), run),
            None => front(self.put_rest(file).await?)?,
        };
        let token = self.within(super::FETCH_DEADLINE, self.meta.chunk_id()).await?;
        Ok(Some(Pending { token, pieces, ids, chunks, run, mtime, version }))
    }

    /// Proposes a commit; `false` if it is to be made of chunks.
    async fn commit_append(self: &Arc<Self>, file: &Arc<File>, pending: Pending) -> Result<bool> {
        {
            let mut inner = file.inner.lock();
            if let Some(dirty) = inner.dirty.as_mut() {
                for id in &pending.ids {
                    if let Some(piece) = dirty.pieces.get_mut(id) {
                        piece.tried = true;
                    }
                }
            }
            if let Some(append) = inner.append_mut() {
                append.committing = true;
                append.pending = Some(pending.clone());
            }
        }
        // If this future is dropped the state of the commit is unknown, as if it had failed.
        let guard = Committing { file };
        let op = Op::Append {
            ino: file.ino,
            token: pending.token,
            pieces: pending.pieces.clone(),
            len: pending.run.end - pending.run.start,
            mtime: pending.mtime,
        };
        let attr = match self.commit(op).await {
            Ok(Answer::Attr(attr) | Answer::Entry { attr, .. }) => Some(attr),
            Ok(_) => None,
            Err(e) => match e.kind() {
                // It took effect when it was proposed before.
                Kind::Exists => None,
                Kind::Changed => {
                    drop(guard);
                    if let Some(append) = file.inner.lock().append_mut() {
                        append.pending = None;
                    }
                    return Ok(false);
                }
                kind => {
                    drop(guard);
                    let unknown = kind.is_transient() || kind == Kind::Fenced;
                    if let Some(append) = file.inner.lock().append_mut()
                        && !unknown
                    {
                        append.pending = None;
                    }
                    return Err(e);
                }
            },
        };
        self.appended(file, &pending, attr);
        drop(guard);
        Ok(true)
    }

    /// A commit took effect: its bytes become committed content and stop being dirty, in one step.
    fn appended(self: &Arc<Self>, file: &Arc<File>, pending: &Pending, attr: Option<Attr>) {
        let loaded = self.load(file);
        let (mut publish, mut carry, mut unwanted) = (None, None, Vec::new());
        let mut data = IntervalSet::default();
        data.insert(pending.run.clone());
        let mut inner = file.inner.lock();
        if let Some(dirty) = inner.dirty.as_mut() {
            dirty.appended(&pending.ids, pending.run.end);
            if matches!(pending.pieces[..], [Piece::Inline(_)]) {
                unwanted = dirty.abandon();
            }
            dirty.append = Some(Append::default());
            dirty.eager = true;
        }
        match loaded {
            Ok((now, content)) => {
                let mut base = Base::new(now, content);
                match (&attr, inner.dirty.as_ref()) {
                    (Some(attr), dirty) if attr.data_version == base.version() => {
                        self.table.pages_advance(file.ino, pending.version, base.version());
                        // The stage has its bytes where the file has them.
                        if attr.size == pending.run.end
                            && let Some(dirty) = dirty
                        {
                            (base, publish, carry) = keep_local(dirty, base, &data, &pending.chunks);
                        }
                    }
                    _ => self.table.pages_wrong(file.ino),
                }
                inner.install(Arc::new(base));
            }
            Err(_) => file.stale.mark(),
        }
        if inner.mtime == pending.mtime {
            inner.mtime = None;
        }
        if inner.dirty.as_ref().is_some_and(|d| d.is_clean()) {
            inner.dirty = None;
        }
        let base = Arc::clone(&inner.base);
        let answered = inner.let_go();
        drop(inner);
        for (reply, written) in answered {
            reply.ok(written);
        }
        self.forget(unwanted);
        if let Some((stage, version)) = publish {
            self.chunks.publish(stage, LocalKey { ino: file.ino, version });
        }
        if let Some(stage) = carry {
            self.carry(stage, &base, data);
        }
    }
}

/// Ends the time in which content may hold what is still dirty.
struct Committing<'a> {
    file: &'a File,
}

impl Drop for Committing<'_> {
    fn drop(&mut self) {
        if let Some(append) = self.file.inner.lock().append_mut() {
            append.committing = false;
        }
    }
}

type Front = (Vec<Piece>, Vec<u64>, HashSet<ChunkId>, Range<u64>);

/// The first pieces of a run that fit into one commit, with offsets from its start.
fn front(mut put: Put) -> Result<Front> {
    put.sort_by_key(|(_, extents)| extents.first().map(|e| e.offset));
    let start = put.first().and_then(|(_, extents)| extents.first()).map_or(0, |e| e.offset);
    let (mut pieces, mut ids, mut chunks, mut end) = (Vec::new(), Vec::new(), HashSet::new(), start);
    for (id, extents) in put {
        if pieces.len() + extents.len() > COMMIT_PIECES_MAX {
            break;
        }
        for extent in extents {
            if extent.offset != end {
                return Err(Error::new(Kind::Internal, "a gap in what was appended"));
            }
            end = extent.end();
            chunks.insert(extent.chunk.id);
            pieces.push(Piece::Chunk(Extent { offset: extent.offset - start, ..extent }));
        }
        ids.push(id);
    }
    if pieces.is_empty() {
        return Err(Error::new(Kind::Internal, "nothing of what was appended was put"));
    }
    Ok((pieces, ids, chunks, start..end))
}
