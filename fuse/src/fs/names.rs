//! Names: looking up, making, removing, moving, listing.

use super::Core;
use super::file::File;
use super::open::good_name;
use crate::ops::{Caller, Entry, Reply, Row};
use hfcache_base::limits::{NAME_MAX, READDIR_PAGE};
use hfcache_base::meta::{Attr, FileKind, NewNode, Op, RenameMode, Reply as Answer};
use hfcache_base::seam::View;
use hfcache_base::{InodeId, Kind, Result};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Cookie of `.`.
const DOT: u64 = 1;
/// Cookie of `..`.
const DOT_DOT: u64 = 2;
/// Bytes of a READDIR row besides its name, roughly.
const ROW: usize = 24 + 8;
/// Bytes of a READDIRPLUS row besides its name, roughly.
const ROW_PLUS: usize = 152 + 8;

impl Core {
    /// LOOKUP.
    pub(crate) fn lookup(self: &Arc<Self>, parent: InodeId, name: &[u8], reply: Reply<Entry>) {
        if name.len() > NAME_MAX {
            return reply.fail(Kind::NameTooLong);
        }
        let name = name.to_vec();
        self.read_names(reply, move |core, view, lease| {
            let attr = match name.as_slice() {
                b"." => view.attr(parent)?,
                b".." => view.attr(view.parent(parent)?)?,
                name => view.lookup(parent, name)?,
            };
            let entry = core.entry(attr, &lease);
            if !entry.entry_ttl.is_zero() {
                core.looked_up(parent);
            }
            Ok(entry)
        });
    }

    /// mkdir, symlink, mknod.
    pub(crate) fn make(
        self: &Arc<Self>,
        caller: Caller,
        parent: InodeId,
        name: &[u8],
        node: NewNode,
        mode: u32,
        reply: Reply<Entry>,
    ) {
        let op = Op::Create {
            parent,
            name: name.to_vec(),
            node,
            mode,
            umask: caller.umask,
            uid: caller.uid,
            gid: caller.gid,
            exclusive: true,
        };
        self.change_entry(name, op, reply);
    }

    /// LINK.
    pub(crate) fn link(self: &Arc<Self>, ino: InodeId, parent: InodeId, name: &[u8], reply: Reply<Entry>) {
        let op = Op::Link { ino, parent, name: name.to_vec() };
        let nameless = self.table.file(ino).filter(|f| f.orphaned.load(Ordering::SeqCst));
        let Some(file) = nameless else { return self.change_entry(name, op, reply) };
        if let Err(e) = self.writable().and_then(|()| good_name(name)) {
            return reply.fail(e.kind());
        }
        // Made without a name (O_TMPFILE): whoever finds the new one finds the bytes too.
        let core = Arc::clone(self);
        self.answer_long(reply, async move {
            core.save(&file).await?;
            let attr = match core.commit(op).await? {
                Answer::Attr(attr) | Answer::Entry { attr, .. } => attr,
                _ => core.view(|view, _| view.attr(ino)).await?,
            };
            core.named_again(&file);
            Ok(core.entry_after(attr))
        });
    }

    fn change_entry(self: &Arc<Self>, name: &[u8], op: Op, reply: Reply<Entry>) {
        if let Err(e) = self.writable().and_then(|()| good_name(name)) {
            return reply.fail(e.kind());
        }
        let core = Arc::clone(self);
        self.answer(reply, async move {
            let ino = if let Op::Link { ino, .. } = &op { Some(*ino) } else { None };
            let attr = match (core.commit(op).await?, ino) {
                (Answer::Attr(attr) | Answer::Entry { attr, .. }, _) => attr,
                (_, Some(ino)) => core.view(|view, _| view.attr(ino)).await?,
                _ => return Err(Kind::Internal.into()),
            };
            Ok(core.entry_after(attr))
        });
    }

    /// UNLINK.
    pub(crate) fn unlink(self: &Arc<Self>, parent: InodeId, name: &[u8], reply: Reply<()>) {
        if let Err(e) = self.writable().and_then(|()| good_name(name)) {
            return reply.fail(e.kind());
        }
        let name = name.to_vec();
        let core = Arc::clone(self);
        self.answer(reply, async move {
            let target = core.open_target(parent, &name);
            let op = Op::Unlink { parent, name, hold: target.is_some() };
            let done = core.commit_name(op).await;
            core.after_hold(target);
            done.map(|_| ())
        });
    }

    /// RMDIR.
    pub(crate) fn rmdir(self: &Arc<Self>, parent: InodeId, name: &[u8], reply: Reply<()>) {
        if let Err(e) = self.writable().and_then(|()| good_name(name)) {
            return reply.fail(e.kind());
        }
        let op = Op::Rmdir { parent, name: name.to_vec() };
        let core = Arc::clone(self);
        self.answer(reply, async move { core.commit_name(op).await.map(|_| ()) });
    }

    /// RENAME.
    pub(crate) fn rename(
        self: &Arc<Self>,
        uid: u32,
        from: (InodeId, &[u8]),
        to: (InodeId, &[u8]),
        mode: RenameMode,
        reply: Reply<()>,
    ) {
        if let Err(e) = self.writable().and_then(|()| good_name(from.1)).and_then(|()| good_name(to.1)) {
            return reply.fail(e.kind());
        }
        let (parent, name) = (from.0, from.1.to_vec());
        let (new_parent, new_name) = (to.0, to.1.to_vec());
        let core = Arc::clone(self);
        self.answer(reply, async move {
            let target = match mode {
                RenameMode::Replace => core.open_target(new_parent, &new_name),
                RenameMode::NoReplace | RenameMode::Exchange => None,
            };
            let hold = target.is_some();
            let op = Op::Rename { parent, name, new_parent, new_name, mode, hold, uid };
            let done = core.commit_name(op).await;
            core.after_hold(target);
            done.map(|_| ())
        });
    }

    /// Proposes a change of a name that is there.
    async fn commit_name(&self, op: Op) -> Result<Answer> {
        let under_way = self.under_way.name();
        let answer = self.commit(op).await;
        under_way.answered(&answer);
        answer
    }

    /// The file behind a name that is about to go, if it is open here. Only a first guess: who opens it
    /// later is told by `Change::Orphaned`.
    fn open_target(&self, parent: InodeId, name: &[u8]) -> Option<Arc<File>> {
        let attr = self.meta.read_stale().lookup(parent, name).ok()?;
        let file = self.table.file(attr.ino)?;
        // Noted before it is true, so that the change itself does not ask to hold it once more.
        file.held.store(true, Ordering::SeqCst);
        Some(file)
    }

    /// A name was to go with `hold`: if it went and was the last one, this node holds the inode now.
    fn after_hold(self: &Arc<Self>, target: Option<Arc<File>>) {
        let Some(file) = target else { return };
        if self.meta.read_stale().attr(file.ino).is_ok_and(|a| a.nlink > 0) {
            file.held.store(false, Ordering::SeqCst);
            return;
        }
        file.orphaned.store(true, Ordering::SeqCst);
        // Closed meanwhile, by a close that came too early to let go of what was not yet held.
        if !self.table.is_open(file.ino) {
            self.let_orphan_go(file.ino);
        }
    }

    /// READDIR and READDIRPLUS; `noted` if it counts as read.
    pub(crate) fn readdir(
        self: &Arc<Self>,
        ino: InodeId,
        noted: bool,
        cookie: u64,
        size: u32,
        plus: bool,
        reply: Reply<Vec<Row>>,
    ) {
        self.read_names(reply, move |core, view, lease| {
            match core.list(view, ino, cookie, size, plus, &lease) {
                // Removed while it is open: an empty listing, as on every file system.
                Err(e) if e.kind() == Kind::NotFound => Ok(Vec::new()),
                rows => {
                    if noted && cookie == 0 && rows.is_ok() {
                        core.was_read(view, ino);
                    }
                    rows
                }
            }
        });
    }

    fn list(
        &self,
        view: &dyn View,
        ino: InodeId,
        cookie: u64,
        size: u32,
        plus: bool,
        lease: &super::Lease,
    ) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        let special = |name: &[u8], ino, cookie| Row {
            name: name.to_vec(),
            ino,
            kind: FileKind::Directory,
            cookie,
            entry: None,
        };
        if cookie < DOT {
            rows.push(special(b".", ino, DOT));
        }
        if cookie < DOT_DOT {
            rows.push(special(b"..", view.parent(ino)?, DOT_DOT));
        }
        let limit = (size as usize / if plus { ROW_PLUS } else { ROW } + 1).min(READDIR_PAGE);
        let after = if cookie <= DOT_DOT { 0 } else { cookie };
        for found in view.readdir(ino, after, limit)? {
            let Attr { ino, kind, .. } = found.attr;
            let entry = plus.then(|| self.entry(found.attr, lease));
            rows.push(Row { name: found.name, ino, kind, cookie: found.cookie, entry });
        }
        Ok(rows)
    }
}
