//! Ranges of files: room and holes (fallocate), finding them (lseek), and sharing them (copy_file_range).

use super::Core;
use super::base::Base;
use super::file::{File, Inner};
use super::staging::Dirty;
use super::xattr::keeps_set_id;
use crate::ops::{Caller, Place, Reply};
use hfcache_base::limits::FILE_SIZE_MAX;
use hfcache_base::meta::{Op, Reply as Answer, SetAttr};
use hfcache_base::{Error, InodeId, Kind, Result};
use std::ops::Range;
use std::sync::Arc;

impl Core {
    /// FALLOCATE.
    pub(crate) fn fallocate(
        self: &Arc<Self>,
        caller: Caller,
        ino: InodeId,
        handle: u64,
        offset: u64,
        len: u64,
        mode: u32,
        reply: Reply<()>,
    ) {
        let file = match self.writable_handle(ino, handle) {
            Ok(file) => file,
            Err(kind) => return reply.fail(kind),
        };
        if len == 0 || offset > i64::MAX as u64 || len > i64::MAX as u64 {
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
        self.answer_long(reply, async move {
            core.change_as(caller, &file).await?;
            if file.inner.lock().is_append() {
                core.save(&file).await?;
            }
            file.refresh(&core).await?;
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

    /// The file of a handle that may change it.
    fn writable_handle(&self, ino: InodeId, handle: u64) -> Result<Arc<File>, Kind> {
        let handle = self.table.handle(ino, handle)?;
        if !handle.write {
            return Err(Kind::BadHandle);
        }
        if self.read_only {
            return Err(Kind::ReadOnly);
        }
        Ok(Arc::clone(&handle.file))
    }

    /// The caller is about to change a file, which costs it its set-id bits.
    async fn change_as(self: &Arc<Self>, caller: Caller, file: &File) -> Result<()> {
        if keeps_set_id(caller) || !self.may_be_set_id(file) {
            Ok(())
        } else {
            self.kill_set_id(file.ino).await
        }
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

    /// LSEEK.
    pub(crate) fn seek(
        self: &Arc<Self>,
        ino: InodeId,
        handle: u64,
        offset: u64,
        data: bool,
        reply: Reply<u64>,
    ) {
        let file = match self.table.handle(ino, handle) {
            Ok(handle) => Arc::clone(&handle.file),
            Err(kind) => return reply.fail(kind),
        };
        if file.refresh_now(self) {
            let found = file.inner.lock().seek(offset, data);
            return reply.send(found.map_err(Kind::errno));
        }
        let core = Arc::clone(self);
        self.answer(reply, async move {
            file.refresh(&core).await?;
            let found = file.inner.lock().seek(offset, data);
            found.map_err(Error::from)
        });
    }

    /// COPY_FILE_RANGE: both files show the same chunks afterwards.
    pub(crate) fn copy(
        self: &Arc<Self>,
        caller: Caller,
        from: Place,
        to: Place,
        len: u64,
        reply: Reply<u64>,
    ) {
        let source = match self.table.handle(from.ino, from.handle) {
            Ok(handle) => Arc::clone(&handle.file),
            Err(kind) => return reply.fail(kind),
        };
        let target = match self.writable_handle(to.ino, to.handle) {
            Ok(target) => target,
            Err(kind) => return reply.fail(kind),
        };
        let fits = to.offset.checked_add(len).is_some_and(|end| end <= FILE_SIZE_MAX);
        if !fits || from.offset.checked_add(len).is_none() {
            return reply.fail(Kind::TooLarge);
        }
        let core = Arc::clone(self);
        self.answer_long(reply, async move {
            core.change_as(caller, &target).await?;
            core.save(&source).await?;
            core.save(&target).await?;
            core.clone_range(&target, from, to, len).await
        });
    }

    async fn clone_range(
        self: &Arc<Self>,
        file: &Arc<File>,
        from: Place,
        to: Place,
        len: u64,
    ) -> Result<u64> {
        let _one_at_a_time = file.commit.lock().await;
        let mut done = 0;
        while done < len {
            let op = Op::Clone {
                from: from.ino,
                from_offset: from.offset + done,
                to: to.ino,
                to_offset: to.offset + done,
                len: len - done,
            };
            match self.commit(op).await {
                Ok(Answer::Count(0)) => break,
                Ok(Answer::Count(count)) => done += count,
                Ok(_) => return Err(Kind::Internal.into()),
                // What was done counts; the rest is asked for again.
                Err(_) if done > 0 => break,
                Err(e) => return Err(e),
            }
        }
        if done > 0 {
            // The kernel drops the pages of the range, but not the memory of what version the others are of.
            self.table.pages_wrong(file.ino);
            match self.load(file) {
                Ok((attr, content)) => {
                    file.inner.lock().install(Arc::new(Base::new(attr, content)));
                }
                Err(_) => file.stale.mark(),
            }
        }
        Ok(done)
    }
}

impl Inner {
    /// Whether the byte at an offset is data, and where that may change.
    fn kind_at(&self, at: u64) -> (bool, u64) {
        let committed =
            |at: u64| if at < self.base.size() { self.base.kind_at(at) } else { (false, u64::MAX) };
        let Some(dirty) = &self.dirty else { return committed(at) };
        if dirty.append.is_some() {
            let end = self.base.size();
            return if at < end { (committed(at).0, committed(at).1.min(end)) } else { (true, u64::MAX) };
        }
        let (written, until) = dirty.data.at(at);
        if written {
            return (true, until);
        }
        let (hole, end) = dirty.holes.at(at);
        if hole {
            return (false, until.min(end));
        }
        let (data, change) = committed(at);
        (data, until.min(end).min(change))
    }

    /// The first byte from `offset` on that is data, or that is none.
    fn seek(&self, offset: u64, data: bool) -> Result<u64, Kind> {
        let size = self.size();
        let mut at = offset;
        while at < size {
            let (is_data, until) = self.kind_at(at);
            if is_data == data {
                return Ok(at);
            }
            at = until;
        }
        if data || offset >= size { Err(Kind::NoDevice) } else { Ok(size) }
    }
}
