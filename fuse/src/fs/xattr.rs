//! Extended attributes, and the privileges that a file loses when it is changed.

use super::Core;
use super::file::File;
use crate::ops::{Caller, Reply, XattrFlags};
use hfcache_base::limits::XATTR_VALUE_MAX;
use hfcache_base::meta::{Attr, Op, SetAttr, XattrSpace};
use hfcache_base::{InodeId, Kind, Result};
use std::sync::Arc;
use std::sync::atomic::Ordering;

const SET_UID: u32 = 0o4000;
const SET_GID: u32 = 0o2000;
const GROUP_EXEC: u32 = 0o010;

/// Whether what a caller changes keeps its set-id bits. (By CAP_FSETID, which not every request tells of.)
pub(crate) const fn keeps_set_id(caller: Caller) -> bool {
    caller.uid == 0
}

/// Whether a file has set-id bits to lose. Set-gid without group-execute is the mark of mandatory locks.
const fn is_set_id(attr: &Attr) -> bool {
    attr.mode & SET_UID != 0 || attr.mode & (SET_GID | GROUP_EXEC) == SET_GID | GROUP_EXEC
}

impl Core {
    /// GETXATTR.
    pub(crate) fn getxattr(self: &Arc<Self>, ino: InodeId, name: &[u8], reply: Reply<Vec<u8>>) {
        if let Err(kind) = XattrSpace::of(name) {
            return reply.fail(kind);
        }
        let name = name.to_vec();
        self.read_names(reply, move |_, view, _| view.xattr(ino, &name)?.ok_or(Kind::NoData.into()));
    }

    /// LISTXATTR: what is root's is for root to know.
    pub(crate) fn listxattr(self: &Arc<Self>, caller: Caller, ino: InodeId, reply: Reply<Vec<Vec<u8>>>) {
        let root = caller.uid == 0;
        self.read_names(reply, move |_, view, _| {
            let mut names = view.xattrs(ino)?;
            names.retain(|name| root || XattrSpace::of(name) != Ok(XattrSpace::Trusted));
            Ok(names)
        });
    }

    /// SETXATTR.
    pub(crate) fn setxattr(
        self: &Arc<Self>,
        ino: InodeId,
        name: &[u8],
        value: &[u8],
        flags: XattrFlags,
        reply: Reply<()>,
    ) {
        // The namespace would say the same; what is too large need not travel for that.
        let refused = if value.len() > XATTR_VALUE_MAX { Err(Kind::ValueTooLong) } else { Ok(()) };
        if let Err(kind) = refused.and(XattrSpace::of(name).map(drop)) {
            return reply.fail(kind);
        }
        let XattrFlags { mode, kill_sgid } = flags;
        let op = Op::SetXattr { ino, name: name.to_vec(), value: value.to_vec(), mode, kill_sgid };
        self.change_xattr(op, reply);
    }

    /// REMOVEXATTR.
    pub(crate) fn removexattr(self: &Arc<Self>, ino: InodeId, name: &[u8], reply: Reply<()>) {
        if let Err(kind) = XattrSpace::of(name) {
            return reply.fail(kind);
        }
        self.change_xattr(Op::RemoveXattr { ino, name: name.to_vec() }, reply);
    }

    fn change_xattr(self: &Arc<Self>, op: Op, reply: Reply<()>) {
        let core = Arc::clone(self);
        self.answer(reply, async move { core.commit(op).await.map(drop) });
    }

    /// Whether a file may have set-id bits, as far as this node knows without asking. Most have none, and that
    /// is remembered until the inode changes.
    pub(crate) fn may_be_set_id(&self, file: &File) -> bool {
        if file.no_set_id.load(Ordering::SeqCst) {
            return false;
        }
        let seen = self.known.seen();
        let Some((view, _)) = self.meta.read_local() else { return true };
        match view.attr(file.ino) {
            Ok(attr) if is_set_id(&attr) => true,
            Ok(_) => {
                file.no_set_id.store(true, Ordering::SeqCst);
                // Changed since: whoever tells of a change counts first and then forgets what is remembered.
                if self.known.seen() != seen {
                    file.no_set_id.store(false, Ordering::SeqCst);
                }
                false
            }
            // The write will say so.
            Err(_) => false,
        }
    }

    /// Takes the set-id bits off a file that is about to be changed by someone who may not keep them.
    ///
    /// # Errors
    /// As the namespace says.
    pub(crate) async fn kill_set_id(self: &Arc<Self>, ino: InodeId) -> Result<()> {
        if self.view(|view, _| Ok(is_set_id(&view.attr(ino)?))).await? {
            self.set_attr(ino, SetAttr { kill_suid: true, ..SetAttr::default() }).await?;
            // After a write the kernel looks at size and times only.
            if let Some(kernel) = self.notify.get() {
                kernel.attr_stale(ino);
            }
        }
        Ok(())
    }
}
