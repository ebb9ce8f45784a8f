//! Attributes, and sizes of files that are being written.

use super::Core;
use super::base::Base;
use crate::ops::{Entry, Reply};
use hfcache_base::limits::FILE_SIZE_MAX;
use hfcache_base::meta::{Attr, Op, Reply as Answer, SetAttr, SetTime};
use hfcache_base::{InodeId, Kind, Result};
use std::sync::Arc;

impl Core {
    /// GETATTR.
    pub(crate) fn getattr(self: &Arc<Self>, ino: InodeId, reply: Reply<Entry>) {
        self.read_names(reply, move |core, view, lease| Ok(core.entry(view.attr(ino)?, &lease)));
    }

    /// SETATTR.
    pub(crate) fn setattr(self: &Arc<Self>, ino: InodeId, set: SetAttr, reply: Reply<Entry>) {
        if self.read_only {
            return reply.fail(Kind::ReadOnly);
        }
        if set.size.is_some_and(|size| size > FILE_SIZE_MAX) {
            return reply.fail(Kind::TooLarge);
        }
        let core = Arc::clone(self);
        self.answer(reply, async move {
            let attr = core.set_attr(ino, set).await?;
            Ok(core.entry_after(attr))
        });
    }

    /// Sets attributes. A new size takes effect at once, for what is committed and for what is not.
    ///
    /// # Errors
    /// As the namespace says.
    pub(crate) async fn set_attr(self: &Arc<Self>, ino: InodeId, mut set: SetAttr) -> Result<Attr> {
        let open = self.table.file(ino).filter(|_| set.size.is_some() || set.mtime.is_some());
        let Some(file) = open else { return self.propose_attr(ino, set).await };
        let _one_at_a_time = file.commit.lock().await;
        let mut size = set.size;
        if let Some(asked) = size
            && file.inner.lock().is_append()
        {
            if asked > file.inner.lock().base.size() {
                // What was appended has a place before it is cut, or zeros follow it.
                self.save_locked(&file).await?;
            } else {
                size = Some(0);
            }
        }
        let (before, mtime) = {
            let inner = file.inner.lock();
            let cut = inner.dirty.as_ref().is_some_and(|d| set.size.is_some_and(|size| size != d.end));
            if cut && set.mtime.is_none() {
                // The namespace may see no change of size where there is one.
                set.mtime = Some(SetTime::Now);
            }
            (inner.base.version(), inner.mtime)
        };
        let attr = self.propose_attr(ino, set).await?;
        let loaded = self.load(&file);
        let mut inner = file.inner.lock();
        if inner.mtime == mtime {
            inner.mtime = None;
        }
        let unwanted = match (size, inner.dirty.as_mut()) {
            (Some(size), Some(dirty)) => dirty.cut(size),
            _ => Vec::new(),
        };
        if inner.dirty.as_ref().is_some_and(super::staging::Dirty::is_clean) {
            inner.dirty = None;
        }
        match loaded {
            Ok((now, content)) => {
                if now.data_version == attr.data_version {
                    self.table.pages_advance(ino, before, now.data_version);
                }
                inner.install(Arc::new(Base::new(now, content)));
            }
            Err(_) => file.stale.mark(),
        }
        drop(inner);
        self.forget(unwanted);
        Ok(attr)
    }

    async fn propose_attr(&self, ino: InodeId, set: SetAttr) -> Result<Attr> {
        let under_way = self.under_way.attr();
        let answer = self.commit(Op::SetAttr { ino, set }).await;
        under_way.answered(&answer);
        match answer? {
            Answer::Attr(attr) | Answer::Entry { attr, .. } => Ok(attr),
            _ => self.view(|view, _| view.attr(ino)).await,
        }
    }
}
