//! Opening: close-to-open. An open shows everything that was closed before, on any node.

use super::base::Base;
use super::file::File;
use super::xattr::keeps_set_id;
use super::{Core, logged};
use crate::ops::{Caller, Entry, Opened, Reply};
use hfcache_base::limits::NAME_MAX;
use hfcache_base::meta::{Attr, FileKind, NewNode, Op, Reply as Answer, SetAttr, SetTime};
use hfcache_base::seam::View;
use hfcache_base::{Error, InodeId, Kind, Result};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What is opened, as a view had it.
struct Found {
    base: Arc<Base>,
    /// It has no name.
    orphaned: bool,
    /// What [`super::known::Known::seen`] said before the view was taken.
    seen: u64,
}

impl Core {
    /// OPEN.
    pub(crate) fn open(self: &Arc<Self>, caller: Caller, ino: InodeId, flags: u32, reply: Reply<Opened>) {
        let write = flags as i32 & libc::O_ACCMODE != libc::O_RDONLY;
        let truncate = flags as i32 & libc::O_TRUNC != 0;
        if (write || truncate) && self.read_only {
            return reply.fail(Kind::ReadOnly);
        }
        let found = self.view_now(|view, lease| self.find(view, ino, lease.seen));
        match found.map(|found| found.and_then(|found| self.attach(found))) {
            Some(Ok(file)) if !truncate && !file.orphaned.load(Ordering::SeqCst) => {
                reply.ok(self.opened(file, flags));
            }
            Some(Err(e)) => reply.send(Err(logged(&e))),
            attached => {
                let core = Arc::clone(self);
                self.answer(reply, async move {
                    let file = match attached {
                        Some(file) => file?,
                        None => core.find_and_attach(ino).await?,
                    };
                    core.finish_open(file, caller, flags).await
                });
            }
        }
    }

    /// Content as new as the view.
    fn find(&self, view: &dyn View, ino: InodeId, seen: u64) -> Result<Found> {
        let attr = view.attr(ino)?;
        match attr.kind {
            FileKind::File => {}
            FileKind::Directory => return Err(Kind::IsDirectory.into()),
            _ => return Err(Kind::Invalid.into()),
        }
        let orphaned = attr.nlink == 0;
        let known = self.table.file(ino).map(|f| Arc::clone(&f.inner.lock().base));
        let base = match known {
            Some(base) if base.version() == attr.data_version => base,
            _ => {
                let (attr, content) = view.content(ino)?;
                Arc::new(Base::new(attr, content))
            }
        };
        Ok(Found { base, orphaned, seen })
    }

    async fn find_and_attach(&self, ino: InodeId) -> Result<Arc<File>> {
        let found = self.view(|view, lease| self.find(view, ino, lease.seen)).await?;
        self.attach(found)
    }

    /// Counts an open of an inode.
    fn attach(&self, found: Found) -> Result<Arc<File>> {
        let ino = found.base.attr.ino;
        let file = self.attach_base(found.base, found.orphaned, found.seen)?;
        if file.stale.is_due() && !self.meta.read_stale().attr(ino).is_ok_and(|a| a.nlink > 0) {
            // It lost its last name before there was anyone to tell.
            file.orphaned.store(true, Ordering::SeqCst);
        }
        Ok(file)
    }

    fn attach_base(&self, base: Arc<Base>, orphaned: bool, seen: u64) -> Result<Arc<File>> {
        let file = self.table.open(base)?;
        if orphaned {
            file.orphaned.store(true, Ordering::SeqCst);
        }
        if self.known.seen() != seen {
            // A change may have been told before there was anyone to tell.
            file.stale.mark();
        }
        Ok(file)
    }

    /// The handle for a file that was attached.
    fn opened(&self, file: Arc<File>, flags: u32) -> Opened {
        let version = file.inner.lock().base.version();
        let keep_cache = self.table.pages_opened(file.ino, version);
        // Appended bytes may land elsewhere than the kernel believes, so it shall not keep them there.
        let append = flags as i32 & libc::O_APPEND != 0;
        let direct_io = append && self.notify.get().is_some_and(|n| n.direct_is_coherent());
        let reads = flags as i32 & (libc::O_ACCMODE | libc::O_NOATIME) == libc::O_RDONLY;
        if keep_cache && reads {
            self.may_be_read(file.ino);
        }
        let (number, handle) = self.table.add_handle(file, flags, direct_io);
        Opened { handle: number, keep_cache, direct_io, no_flush: !handle.flushed }
    }

    async fn finish_open(self: &Arc<Self>, file: Arc<File>, caller: Caller, flags: u32) -> Result<Opened> {
        let attached = Attached { core: self, file: Some(file) };
        let Some(file) = attached.file.as_ref() else { return Err(Kind::Internal.into()) };
        if file.orphaned.load(Ordering::SeqCst) && !file.held.swap(true, Ordering::SeqCst) {
            self.meta.commit(Op::Hold { ino: file.ino, hold: true }).await?;
            if self.meta.read_stale().attr(file.ino).is_ok_and(|now| now.nlink > 0) {
                // Restored from the trash before there was anyone to tell.
                self.named_again(file);
            }
        }
        if flags as i32 & libc::O_TRUNC != 0 {
            let kill_suid = !keeps_set_id(caller);
            let mtime = Some(SetTime::Now);
            let set = SetAttr { size: Some(0), mtime, kill_suid, ..SetAttr::default() };
            self.set_attr(file.ino, set).await?;
        }
        Ok(self.opened(attached.keep()?, flags))
    }

    /// CREATE.
    pub(crate) fn create(
        self: &Arc<Self>,
        caller: Caller,
        parent: InodeId,
        name: &[u8],
        mode: u32,
        flags: u32,
        reply: Reply<(Entry, Opened)>,
    ) {
        if let Err(e) = self.writable().and_then(|()| good_name(name)) {
            return reply.fail(e.kind());
        }
        let op = Op::Create {
            parent,
            name: name.to_vec(),
            node: NewNode::File,
            mode,
            umask: caller.umask,
            uid: caller.uid,
            gid: caller.gid,
            exclusive: flags as i32 & libc::O_EXCL != 0,
        };
        let core = Arc::clone(self);
        self.answer(reply, async move {
            let Answer::Entry { attr, created } = core.commit(op).await? else {
                return Err(Error::new(Kind::Internal, "create answered without an entry"));
            };
            let opened = if created {
                let seen = core.known.seen();
                let base = Arc::new(Base::new(attr.clone(), Default::default()));
                let file = core.attach_base(base, false, seen)?;
                // Who changed it before it stood in the table has not been heard.
                let now = core.meta.read_stale().attr(attr.ino);
                match now {
                    Ok(now) if now.data_version == attr.data_version && now.nlink > 0 => {}
                    Ok(now) if now.nlink > 0 => file.stale.mark(),
                    _ => {
                        file.orphaned.store(true, Ordering::SeqCst);
                        core.hold_orphan(attr.ino);
                    }
                }
                core.opened(file, flags)
            } else {
                if attr.kind != FileKind::File {
                    // Made by someone else since the kernel looked: it looks again.
                    return Err(Kind::Stale.into());
                }
                let file = core.find_and_attach(attr.ino).await?;
                core.finish_open(file, caller, flags).await?
            };
            Ok((core.entry_after(attr), opened))
        });
    }

    /// TMPFILE.
    pub(crate) fn tmpfile(
        self: &Arc<Self>,
        caller: Caller,
        parent: InodeId,
        mode: u32,
        flags: u32,
        reply: Reply<(Entry, Opened)>,
    ) {
        if self.read_only {
            return reply.fail(Kind::ReadOnly);
        }
        let nameless = flags as i32 & libc::O_EXCL != 0;
        let Caller { uid, gid, umask, .. } = caller;
        let op = Op::CreateNameless { parent, mode, umask, uid, gid, nameless };
        let core = Arc::clone(self);
        self.answer(reply, async move {
            let Answer::Entry { attr, .. } = core.commit(op).await? else {
                return Err(Error::new(Kind::Internal, "create answered without an entry"));
            };
            let base = Arc::new(Base::new(attr.clone(), Default::default()));
            let file = core.attach_base(base, true, core.known.seen())?;
            // The state noted that this node has it open when it made it.
            file.held.store(true, Ordering::SeqCst);
            let opened = core.opened(file, flags);
            Ok((core.entry_after(attr), opened))
        });
    }

    /// The entry for an inode after a change of it: as it is now, with a lifetime if there is a lease.
    pub(crate) fn entry_after(&self, attr: Attr) -> Entry {
        let now = self.view_now(|view, lease| Ok(self.entry(view.attr(attr.ino)?, &lease)));
        match now {
            Some(Ok(entry)) => entry,
            _ => self.entry(attr, &super::Lease { until: None, seen: 0 }),
        }
    }
}

/// Undoes an attach unless it becomes a handle.
struct Attached<'a> {
    core: &'a Arc<Core>,
    file: Option<Arc<File>>,
}

impl Attached<'_> {
    fn keep(mut self) -> Result<Arc<File>> {
        self.file.take().ok_or_else(|| Kind::Internal.into())
    }
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        if let Some(file) = self.file.take()
            && self.core.table.close(file.ino)
            && file.held.swap(false, Ordering::SeqCst)
        {
            self.core.let_orphan_go(file.ino);
        }
    }
}

/// Refuses names that no directory can hold.
pub(crate) fn good_name(name: &[u8]) -> Result<()> {
    match name {
        _ if name.len() > NAME_MAX => Err(Kind::NameTooLong.into()),
        b"" | b"." | b".." => Err(Kind::Invalid.into()),
        _ if name.contains(&b'/') || name.contains(&0) => Err(Kind::Invalid.into()),
        _ => Ok(()),
    }
}
