//! How one mount shows the tree: a part of it, under other user and group numbers, to users with fewer
//! rights. A layer around any [`FileSystem`]; a mount that wants nothing of this does without.
//!
//! ```text
//! ids      numbers of users and groups, on the way in and out; who is squashed
//! rights   the rules of mode bits, for callers whom the kernel takes for somebody else
//! pace     how fast users and groups may go
//! xattr    numbers in access control lists, and who may have which attribute
//! ```
//!
//! The kernel decides by the attributes it is shown and by the caller it knows. Where that caller is squashed
//! it would decide wrongly, so each operation is checked here first. With [`Squash::All`] everybody is, and
//! the kernel must not check at all ([`Export::kernel_checks`]); with [`Squash::Root`] only root is, whom the
//! kernel lets do anything.

mod ids;
mod layer;
mod pace;
mod rights;
mod xattr;

use crate::ops::{Caller, Entry, FileSystem, Notify, Reply, Row};
use hfcache_base::limits::OPERATION_DEADLINE;
use hfcache_base::meta::{Attr, FileKind};
use hfcache_base::seam::{Meta, View};
use hfcache_base::{InodeId, Kind, Result};
pub use ids::{IdMap, Ids, Squash};
pub use pace::Pace;
pub use rights::Who;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle as Runtime;

/// How to show the tree.
#[derive(Clone, Debug)]
pub struct ExportOptions {
    /// The directory that is the mount's root.
    pub root: InodeId,
    /// Users and groups.
    pub ids: Ids,
}

impl ExportOptions {
    /// Whether this shows the tree as it is.
    pub fn is_plain(&self) -> bool {
        self.root == InodeId::ROOT && self.ids.is_plain()
    }
}

/// See the module.
pub struct Export {
    core: Arc<Core>,
}

struct Core {
    inner: Arc<dyn FileSystem>,
    meta: Arc<dyn Meta>,
    runtime: Runtime,
    root: InodeId,
    ids: Ids,
}

impl Export {
    /// A layer around a file system over the same namespace.
    pub fn new(
        options: ExportOptions,
        inner: Arc<dyn FileSystem>,
        meta: Arc<dyn Meta>,
        runtime: Runtime,
    ) -> Arc<Self> {
        let ExportOptions { root, ids } = options;
        Arc::new(Self { core: Arc::new(Core { inner, meta, runtime, root, ids }) })
    }

    /// Whether the kernel is to check permissions with the attributes it is shown (`default_permissions`).
    pub fn kernel_checks(options: &ExportOptions) -> bool {
        options.ids.squash != Squash::All
    }
}

/// Whether whoever is squashed may search a directory, so that the kernel may keep names in it.
#[derive(Clone, Copy)]
struct Searchable(bool);

impl Core {
    /// The inode behind the kernel's number.
    fn ino(&self, shown: InodeId) -> InodeId {
        if shown == InodeId::ROOT { self.root } else { shown }
    }

    /// The kernel's number of an inode.
    fn shown(&self, ino: InodeId) -> InodeId {
        if ino == self.root { InodeId::ROOT } else { ino }
    }

    /// What the inner file system is told of the caller.
    fn caller(&self, caller: Caller) -> Caller {
        let who = self.ids.identity(caller.uid, caller.gid);
        Caller { uid: who.uid, gid: who.gid, ..caller }
    }

    /// Who has to be checked here, if anyone.
    fn squashed(&self, caller: Caller) -> Option<Who> {
        self.ids.is_squashed(caller.uid).then(|| self.ids.identity(caller.uid, caller.gid))
    }

    fn entry(&self, mut entry: Entry, searchable: Searchable) -> Entry {
        entry.attr.ino = self.shown(entry.attr.ino);
        entry.attr.uid = self.ids.users.shown(entry.attr.uid, self.ids.anon.uid);
        entry.attr.gid = self.ids.groups.shown(entry.attr.gid, self.ids.anon.gid);
        // The kernel looks at this bit even where it leaves the rest to us, and knows the caller by another
        // number than the owner.
        if self.ids.squash == Squash::All && entry.attr.kind == FileKind::Directory {
            entry.attr.mode &= !rights::STICKY;
        }
        if !searchable.0 {
            entry.entry_ttl = Duration::ZERO;
        }
        entry
    }

    /// A reply that shows what it is given as this mount does.
    fn showing(self: &Arc<Self>, searchable: Searchable, reply: Reply<Entry>) -> Reply<Entry> {
        let core = Arc::clone(self);
        Reply::new(move |result| reply.send(result.map(|entry| core.entry(entry, searchable))))
    }

    fn rows(&self, dir: InodeId, mut rows: Vec<Row>, searchable: Searchable) -> Vec<Row> {
        for row in &mut rows {
            row.ino = self.shown(row.ino);
            // What is above the mount's root is not shown.
            if dir == self.root && row.name == b".." {
                row.ino = InodeId::ROOT;
            }
            row.entry = row.entry.take().map(|entry| self.entry(entry, searchable));
        }
        rows
    }

    /// Whether names of a directory may be kept by the kernel: it finds a kept name without asking, for who
    /// may not search the directory, too. Without squashing it checks that itself.
    fn searchable(&self, view: &dyn View, dir: InodeId) -> Searchable {
        if self.ids.squash == Squash::None {
            return Searchable(true);
        }
        Searchable(view.attr(dir).is_ok_and(|attr| rights::may(&attr, self.ids.anon, rights::SEARCH)))
    }

    /// Looks at the namespace, then calls the inner file system: at once if this node may read without
    /// asking and what it saw may be told, else from a task.
    fn after<T: Send + 'static, V: Send>(
        self: &Arc<Self>,
        reply: Reply<T>,
        check: impl Fn(&Self, &dyn View) -> Result<V> + Send + 'static,
        then: impl FnOnce(&Arc<Self>, V, Reply<T>) + Send + 'static,
    ) {
        let checked = self.meta.read_local().and_then(|(view, _)| {
            let checked = check(self, view.as_ref());
            view.settles_at().is_none().then_some(checked)
        });
        match checked {
            Some(Ok(value)) => then(self, value, reply),
            Some(Err(e)) => reply.fail(e.kind()),
            None => {
                let core = Arc::clone(self);
                self.runtime.spawn(async move {
                    if let Err(e) = core.meta.read_point(OPERATION_DEADLINE).await {
                        return reply.fail(e.kind());
                    }
                    let (checked, settles_at) = {
                        let view = core.meta.read_stale();
                        (check(&core, view.as_ref()), view.settles_at())
                    };
                    if let Some(index) = settles_at
                        && let Err(e) = core.meta.settled(index, OPERATION_DEADLINE).await
                    {
                        return reply.fail(e.kind());
                    }
                    match checked {
                        Ok(value) => then(&core, value, reply),
                        Err(e) => reply.fail(e.kind()),
                    }
                });
            }
        }
    }
}

/// The kernel's numbers, in what it is told.
struct ShownNotify {
    inner: Arc<dyn Notify>,
    core: Arc<Core>,
}

impl ShownNotify {
    /// The tree's own root is not in the mount if another directory is its root.
    fn number(&self, ino: InodeId) -> Option<InodeId> {
        let hidden = ino == InodeId::ROOT && self.core.root != InodeId::ROOT;
        (!hidden).then(|| self.core.shown(ino))
    }
}

impl Notify for ShownNotify {
    fn attr_stale(&self, ino: InodeId) {
        if let Some(ino) = self.number(ino) {
            self.inner.attr_stale(ino);
        }
    }

    fn data_stale(&self, ino: InodeId) {
        if let Some(ino) = self.number(ino) {
            self.inner.data_stale(ino);
        }
    }

    fn names_stale(&self) -> bool {
        self.inner.names_stale()
    }

    fn can_expire_names(&self) -> bool {
        self.inner.can_expire_names()
    }

    fn direct_is_coherent(&self) -> bool {
        self.inner.direct_is_coherent()
    }
}

/// Whether mode bits allow it, as the answer of a check.
fn allowed(attr: &Attr, who: Who, want: u32) -> Result<()> {
    if rights::may(attr, who, want) { Ok(()) } else { Err(Kind::AccessDenied.into()) }
}
