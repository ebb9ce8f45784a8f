//! A file that is open on this node: one, whoever opened it.

use super::Core;
use super::base::Base;
use super::staging::Dirty;
use crate::ops::Reply;
use hfcache_base::limits::WRITER_CHUNKS_IN_FLIGHT;
use hfcache_base::meta::{Attr, Timestamp};
use hfcache_base::seam::{Moment, View};
use hfcache_base::{InodeId, Kind, Result};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::sync::{Notify, Semaphore};

/// Counts changes of the content, so that it is fresh only when what was read after the last of them is in
/// place: until then every reader must read it for himself, not only the first one who noticed.
#[derive(Default)]
pub(crate) struct Stale {
    marked: AtomicU64,
    read: AtomicU64,
}

impl Stale {
    /// The content is another than the one that is known.
    pub(crate) fn mark(&self) {
        self.marked.fetch_add(1, Ordering::SeqCst);
    }

    /// What to tell [`Stale::refreshed`] after reading the content; `None` if that is not needed.
    fn due(&self) -> Option<u64> {
        let marked = self.marked.load(Ordering::SeqCst);
        (self.read.load(Ordering::SeqCst) < marked).then_some(marked)
    }

    /// Whether the content has to be read again.
    pub(crate) fn is_due(&self) -> bool {
        self.due().is_some()
    }

    /// The content was read after this was due, and is in place.
    fn refreshed(&self, due: u64) {
        self.read.fetch_max(due, Ordering::SeqCst);
    }
}

/// See the module.
pub(crate) struct File {
    /// Its inode.
    pub(crate) ino: InodeId,
    /// Whether the content changed since `base` was read.
    pub(crate) stale: Stale,
    /// It has lost its last name.
    pub(crate) orphaned: AtomicBool,
    /// It has no set-id bits, unless its inode has changed since.
    pub(crate) no_set_id: AtomicBool,
    /// The namespace was told to keep it for this node though it has no name.
    pub(crate) held: AtomicBool,
    /// Somebody here has used `fcntl` locks on it since it was opened first.
    pub(crate) fcntl: AtomicBool,
    /// Content. Held for as long as a local write takes, never over an `await`.
    pub(crate) inner: Mutex<Inner>,
    /// Held by whoever changes committed size, mtime or content through this file: one at a time.
    pub(crate) commit: tokio::sync::Mutex<()>,
    /// Some piece was put, or was given up.
    pub(crate) progress: Notify,
    /// Puts of this file at once.
    pub(crate) slots: Semaphore,
}

/// What is known of the bytes.
pub(crate) struct Inner {
    /// As committed.
    pub(crate) base: Arc<Base>,
    /// What was written over it.
    pub(crate) dirty: Option<Dirty>,
    /// When it was last written, if that is not committed.
    pub(crate) mtime: Option<Timestamp>,
    /// An error nobody has been told of yet.
    pub(crate) error: Option<Kind>,
    /// Why the last piece could not be put.
    pub(crate) put_error: Option<Kind>,
    /// So many uncommitted bytes fit into the quotas of this file, when they were looked at last.
    pub(crate) room: Option<(u64, Moment)>,
    /// Writes that are done and wait to be answered: the writer is ahead of the holders.
    pub(crate) waiting: Vec<(Reply<u32>, u32)>,
}

impl Inner {
    /// Size as seen here.
    pub(crate) fn size(&self) -> u64 {
        match self.dirty.as_ref() {
            Some(dirty) if dirty.append.is_some() => self.base.size() + dirty.data.bytes(),
            Some(dirty) => self.base.size().max(dirty.end),
            None => self.base.size(),
        }
    }

    /// Takes newer content. Not while an append is being committed, which may be in it and would be shown
    /// twice: `false` then.
    pub(crate) fn install(&mut self, base: Arc<Base>) -> bool {
        if base.version() <= self.base.version() {
            return true;
        }
        if self.is_committing() {
            return false;
        }
        self.base = base;
        true
    }

    /// Answers the writes that wait.
    pub(crate) fn let_go(&mut self) -> Vec<(Reply<u32>, u32)> {
        std::mem::take(&mut self.waiting)
    }
}

impl File {
    /// A file with committed content and nothing else.
    pub(crate) fn new(ino: InodeId, base: Arc<Base>) -> Self {
        Self {
            ino,
            stale: Stale::default(),
            orphaned: AtomicBool::new(false),
            no_set_id: AtomicBool::new(false),
            held: AtomicBool::new(false),
            fcntl: AtomicBool::new(false),
            inner: Mutex::new(Inner {
                base,
                dirty: None,
                mtime: None,
                error: None,
                put_error: None,
                room: None,
                waiting: Vec::new(),
            }),
            commit: tokio::sync::Mutex::new(()),
            progress: Notify::new(),
            slots: Semaphore::new(WRITER_CHUNKS_IN_FLIGHT),
        }
    }

    /// Whether there are uncommitted bytes.
    pub(crate) fn is_dirty(&self) -> bool {
        self.inner.lock().dirty.as_ref().is_some_and(|d| !d.is_clean())
    }

    /// Puts what was written here over committed attributes.
    pub(crate) fn overlay(&self, attr: &mut Attr) {
        let inner = self.inner.lock();
        if let Some(dirty) = inner.dirty.as_ref().filter(|d| !d.is_clean()) {
            attr.size = match &dirty.append {
                // It may be in these attributes already.
                Some(append) if append.committing => attr.size.max(inner.base.size() + dirty.data.bytes()),
                Some(_) => attr.size + dirty.data.bytes(),
                None => attr.size.max(dirty.end),
            };
            attr.allocated = attr.allocated.max((attr.allocated + dirty.data.bytes()).min(attr.size));
        }
        if let Some(mtime) = inner.mtime {
            attr.mtime = mtime;
            attr.ctime = attr.ctime.max(mtime);
        }
    }

    /// The committed content, if it is not the one that is known.
    fn newer(&self, view: &dyn View) -> Result<Option<Arc<Base>>> {
        let known = self.inner.lock().base.version();
        if view.attr(self.ino)?.data_version == known {
            return Ok(None);
        }
        let (attr, content) = view.content(self.ino)?;
        Ok(Some(Arc::new(Base::new(attr, content))))
    }

    /// Shows newer content from now on.
    fn take(&self, newer: Option<Arc<Base>>) -> Result<()> {
        let Some(base) = newer else { return Ok(()) };
        if self.inner.lock().install(base) { Ok(()) } else { Err(Kind::WouldBlock.into()) }
    }

    /// Makes the content as new as any that had been committed before this call, if that needs no waiting.
    pub(crate) fn refresh_now(&self, core: &Core) -> bool {
        if core.is_fenced() {
            return false;
        }
        let Some(due) = self.stale.due() else { return true };
        let newer = core.view_now(|view, _| self.newer(view));
        let done = newer.is_some_and(|newer| newer.and_then(|newer| self.take(newer)).is_ok());
        if done {
            self.stale.refreshed(due);
        }
        done
    }

    /// Makes the content as new as any that had been committed before this call.
    pub(crate) async fn refresh(&self, core: &Core) -> Result<()> {
        loop {
            match self.refresh_unless_committing(core).await {
                Err(e) if e.kind() == Kind::WouldBlock => drop(self.commit.lock().await),
                result => return result,
            }
        }
    }

    /// As [`File::refresh`]; [`Kind::WouldBlock`] while an append is being committed.
    pub(crate) async fn refresh_unless_committing(&self, core: &Core) -> Result<()> {
        let due = match self.stale.due() {
            None if !core.is_fenced() => return Ok(()),
            due => due,
        };
        let newer = core.view(|view, _| self.newer(view)).await?;
        self.take(newer)?;
        if let Some(due) = due {
            self.stale.refreshed(due);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Stale;

    #[test]
    fn all_readers_find_it_stale_until_one_has_read_what_came_last() {
        let stale = Stale::default();
        assert_eq!(stale.due(), None);
        stale.mark();
        let (one, two) = (stale.due().unwrap(), stale.due().unwrap());
        stale.mark();
        stale.refreshed(one);
        assert!(stale.due().is_some(), "changed again since");
        let three = stale.due().unwrap();
        stale.refreshed(three);
        stale.refreshed(two);
        assert_eq!(stale.due(), None);
    }
}
