//! Each operation: whether the caller may, then the inner file system with the cluster's numbers.

use super::rights::{self, READ, SEARCH, WRITE};
use super::{Core, Export, Searchable, ShownNotify, allowed};
use crate::ops::{
    Caller, Data, Entry, FileSystem, Notify, Opened, Place, Reply, Row, StatFs, WriteFlags, XattrFlags,
};
use hfcache_base::meta::{Lock, LockKind, NewNode, RenameMode, SetAttr};
use hfcache_base::seam::View;
use hfcache_base::{InodeId, Kind, Result};
use std::sync::Arc;

impl Core {
    /// Runs `act` if a squashed caller may change names of a directory.
    fn changing_names<T: Send + 'static>(
        self: &Arc<Self>,
        caller: Caller,
        dir: InodeId,
        reply: Reply<T>,
        act: impl FnOnce(&Arc<Self>, Searchable, Reply<T>) + Send + 'static,
    ) {
        let squashed = self.squashed(caller);
        let look = move |core: &Self, view: &dyn View| {
            if let Some(who) = squashed {
                rights::may_change_names(&view.attr(dir)?, who)?;
            }
            Ok(core.searchable(view, dir))
        };
        self.after(reply, look, act);
    }

    /// Runs `act` if a squashed caller may take these names away.
    fn removing<T: Send + 'static>(
        self: &Arc<Self>,
        caller: Caller,
        names: Vec<(InodeId, Vec<u8>)>,
        reply: Reply<T>,
        act: impl FnOnce(&Arc<Self>, Reply<T>) + Send + 'static,
    ) {
        let Some(who) = self.squashed(caller) else { return act(self, reply) };
        let look = move |_: &Self, view: &dyn View| {
            for (dir, name) in &names {
                let dir = view.attr(*dir)?;
                match view.lookup(dir.ino, name) {
                    Ok(there) => rights::may_remove(&dir, &there, who)?,
                    Err(e) if e.kind() == Kind::NotFound => rights::may_change_names(&dir, who)?,
                    Err(e) => return Err(e),
                }
            }
            Ok(())
        };
        self.after(reply, look, move |core, (), reply| act(core, reply));
    }

    /// Runs `act` if a squashed caller has these rights.
    fn having<T: Send + 'static>(
        self: &Arc<Self>,
        caller: Caller,
        ino: InodeId,
        want: u32,
        reply: Reply<T>,
        act: impl FnOnce(&Arc<Self>, Reply<T>) + Send + 'static,
    ) {
        let Some(who) = self.squashed(caller) else { return act(self, reply) };
        let look = move |_: &Self, view: &dyn View| allowed(&view.attr(ino)?, who, want);
        self.after(reply, look, move |core, (), reply| act(core, reply));
    }

    /// Ids of this machine in what is to be set.
    fn stored(&self, mut set: SetAttr) -> SetAttr {
        set.uid = set.uid.map(|uid| self.ids.users.stored(uid, self.ids.anon.uid));
        set.gid = set.gid.map(|gid| self.ids.groups.stored(gid, self.ids.anon.gid));
        set
    }

    /// A file that was there when a `create` came is opened by it: then its own mode counts.
    fn created(
        self: &Arc<Self>,
        caller: Caller,
        flags: u32,
        searchable: Searchable,
        reply: Reply<(Entry, Opened)>,
    ) -> Reply<(Entry, Opened)> {
        let core = Arc::clone(self);
        let squashed = self.squashed(caller);
        Reply::new(move |result: Result<(Entry, Opened), i32>| {
            let (entry, opened) = match result {
                Ok(made) => made,
                Err(errno) => return reply.send(Err(errno)),
            };
            // What belongs to the caller was made by this call, or its owner could have opened it anyway.
            if let Some(who) = squashed
                && entry.attr.uid != who.uid
                && !rights::may(&entry.attr, who, rights::wanted(flags))
            {
                let closed = Reply::new(|_| ());
                core.inner.release(caller, entry.attr.ino, opened.handle, None, closed);
                return reply.fail(Kind::AccessDenied);
            }
            reply.ok((core.entry(entry, searchable), opened));
        })
    }
}

impl FileSystem for Export {
    fn mounted(&self, notify: Arc<dyn Notify>) {
        let core = Arc::clone(&self.core);
        self.core.inner.mounted(Arc::new(ShownNotify { inner: notify, core }));
    }

    fn interrupt(&self, unique: u64) {
        self.core.inner.interrupt(unique);
    }

    fn lookup(&self, caller: Caller, parent: InodeId, name: &[u8], reply: Reply<Entry>) {
        let core = &self.core;
        let (dir, name) = (core.ino(parent), name.to_vec());
        // The kernel knows the way up; nobody gets above the mount's root.
        if name == b".." && dir == core.root {
            return self.getattr(caller, parent, None, reply);
        }
        let squashed = core.squashed(caller);
        let look = move |core: &Core, view: &dyn View| {
            if let Some(who) = squashed {
                allowed(&view.attr(dir)?, who, SEARCH)?;
            }
            Ok(core.searchable(view, dir))
        };
        core.after(reply, look, move |core, searchable, reply| {
            core.inner.lookup(core.caller(caller), dir, &name, core.showing(searchable, reply));
        });
    }

    fn forget(&self, ino: InodeId) {
        self.core.inner.forget(self.core.ino(ino));
    }

    fn getattr(&self, caller: Caller, ino: InodeId, handle: Option<u64>, reply: Reply<Entry>) {
        let core = &self.core;
        let reply = core.showing(Searchable(true), reply);
        core.inner.getattr(core.caller(caller), core.ino(ino), handle, reply);
    }

    fn setattr(&self, caller: Caller, ino: InodeId, handle: Option<u64>, set: SetAttr, reply: Reply<Entry>) {
        let core = &self.core;
        let (ino, set) = (core.ino(ino), core.stored(set));
        let reply = core.showing(Searchable(true), reply);
        let Some(who) = core.squashed(caller) else {
            return core.inner.setattr(core.caller(caller), ino, handle, set, reply);
        };
        let look = move |_: &Core, view: &dyn View| {
            Ok(rights::may_set(&view.attr(ino)?, who, &set, handle.is_some())?)
        };
        core.after(reply, look, move |core, set, reply| {
            core.inner.setattr(core.caller(caller), ino, handle, set, reply);
        });
    }

    fn readlink(&self, caller: Caller, ino: InodeId, reply: Reply<Vec<u8>>) {
        self.core.inner.readlink(self.core.caller(caller), self.core.ino(ino), reply);
    }

    fn getxattr(&self, caller: Caller, ino: InodeId, name: &[u8], reply: Reply<Vec<u8>>) {
        self.core.getxattr(caller, self.core.ino(ino), name, reply);
    }

    fn listxattr(&self, caller: Caller, ino: InodeId, reply: Reply<Vec<Vec<u8>>>) {
        self.core.listxattr(caller, self.core.ino(ino), reply);
    }

    fn setxattr(
        &self,
        caller: Caller,
        ino: InodeId,
        name: &[u8],
        value: &[u8],
        flags: XattrFlags,
        reply: Reply<()>,
    ) {
        self.core.setxattr(caller, self.core.ino(ino), name, value, flags, reply);
    }

    fn removexattr(&self, caller: Caller, ino: InodeId, name: &[u8], reply: Reply<()>) {
        self.core.removexattr(caller, self.core.ino(ino), name, reply);
    }

    fn access(&self, caller: Caller, ino: InodeId, want: u32, reply: Reply<()>) {
        self.core.having(caller, self.core.ino(ino), want & 7, reply, |_, reply| reply.ok(()));
    }

    fn make(
        &self,
        caller: Caller,
        parent: InodeId,
        name: &[u8],
        node: NewNode,
        mode: u32,
        reply: Reply<Entry>,
    ) {
        let (dir, name) = (self.core.ino(parent), name.to_vec());
        self.core.changing_names(caller, dir, reply, move |core, searchable, reply| {
            let reply = core.showing(searchable, reply);
            core.inner.make(core.caller(caller), dir, &name, node, mode, reply);
        });
    }

    fn link(&self, caller: Caller, ino: InodeId, parent: InodeId, name: &[u8], reply: Reply<Entry>) {
        let (ino, dir, name) = (self.core.ino(ino), self.core.ino(parent), name.to_vec());
        self.core.changing_names(caller, dir, reply, move |core, searchable, reply| {
            core.inner.link(core.caller(caller), ino, dir, &name, core.showing(searchable, reply));
        });
    }

    fn unlink(&self, caller: Caller, parent: InodeId, name: &[u8], reply: Reply<()>) {
        let (dir, name) = (self.core.ino(parent), name.to_vec());
        self.core.removing(caller, vec![(dir, name.clone())], reply, move |core, reply| {
            core.inner.unlink(core.caller(caller), dir, &name, reply);
        });
    }

    fn rmdir(&self, caller: Caller, parent: InodeId, name: &[u8], reply: Reply<()>) {
        let (dir, name) = (self.core.ino(parent), name.to_vec());
        self.core.removing(caller, vec![(dir, name.clone())], reply, move |core, reply| {
            core.inner.rmdir(core.caller(caller), dir, &name, reply);
        });
    }

    fn rename(
        &self,
        caller: Caller,
        parent: InodeId,
        name: &[u8],
        new_parent: InodeId,
        new_name: &[u8],
        mode: RenameMode,
        reply: Reply<()>,
    ) {
        let (from, to) = (self.core.ino(parent), self.core.ino(new_parent));
        let (name, new_name) = (name.to_vec(), new_name.to_vec());
        let names = vec![(from, name.clone()), (to, new_name.clone())];
        self.core.removing(caller, names, reply, move |core, reply| {
            core.inner.rename(core.caller(caller), from, &name, to, &new_name, mode, reply);
        });
    }

    fn create(
        &self,
        caller: Caller,
        parent: InodeId,
        name: &[u8],
        mode: u32,
        flags: u32,
        reply: Reply<(Entry, Opened)>,
    ) {
        let (dir, name) = (self.core.ino(parent), name.to_vec());
        self.core.changing_names(caller, dir, reply, move |core, searchable, reply| {
            let reply = core.created(caller, flags, searchable, reply);
            core.inner.create(core.caller(caller), dir, &name, mode, flags, reply);
        });
    }

    fn open(&self, caller: Caller, ino: InodeId, flags: u32, reply: Reply<Opened>) {
        let ino = self.core.ino(ino);
        self.core.having(caller, ino, rights::wanted(flags), reply, move |core, reply| {
            core.inner.open(core.caller(caller), ino, flags, reply);
        });
    }

    fn read(&self, c: Caller, ino: InodeId, handle: u64, offset: u64, size: u32, reply: Reply<Data>) {
        self.core.inner.read(self.core.caller(c), self.core.ino(ino), handle, offset, size, reply);
    }

    fn write(
        &self,
        c: Caller,
        ino: InodeId,
        handle: u64,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
        reply: Reply<u32>,
    ) {
        // The kernel believes of squashed root that it may keep set-id bits.
        let kill_set_id = flags.kill_set_id || (self.core.squashed(c).is_some() && !flags.cached);
        let flags = WriteFlags { kill_set_id, ..flags };
        self.core.inner.write(self.core.caller(c), self.core.ino(ino), handle, offset, data, flags, reply);
    }

    fn flush(&self, c: Caller, ino: InodeId, handle: u64, lock_owner: u64, reply: Reply<()>) {
        self.core.inner.flush(self.core.caller(c), self.core.ino(ino), handle, lock_owner, reply);
    }

    fn fsync(&self, c: Caller, ino: InodeId, handle: u64, reply: Reply<()>) {
        self.core.inner.fsync(self.core.caller(c), self.core.ino(ino), handle, reply);
    }

    fn release(&self, c: Caller, ino: InodeId, handle: u64, flock_owner: Option<u64>, reply: Reply<()>) {
        self.core.inner.release(self.core.caller(c), self.core.ino(ino), handle, flock_owner, reply);
    }

    fn fallocate(
        &self,
        c: Caller,
        ino: InodeId,
        handle: u64,
        offset: u64,
        len: u64,
        mode: u32,
        reply: Reply<()>,
    ) {
        self.core.inner.fallocate(self.core.caller(c), self.core.ino(ino), handle, offset, len, mode, reply);
    }

    fn seek(&self, c: Caller, ino: InodeId, handle: u64, offset: u64, data: bool, reply: Reply<u64>) {
        self.core.inner.seek(self.core.caller(c), self.core.ino(ino), handle, offset, data, reply);
    }

    fn copy(&self, c: Caller, from: Place, to: Place, len: u64, reply: Reply<u64>) {
        // Only files can be copied, and no file is the mount's root.
        self.core.inner.copy(self.core.caller(c), from, to, len, reply);
    }

    fn tmpfile(&self, caller: Caller, parent: InodeId, mode: u32, flags: u32, reply: Reply<(Entry, Opened)>) {
        let dir = self.core.ino(parent);
        self.core.changing_names(caller, dir, reply, move |core, searchable, reply| {
            let shown = Arc::clone(core);
            let reply = Reply::new(move |made: Result<(Entry, Opened), i32>| {
                reply.send(made.map(|(entry, opened)| (shown.entry(entry, searchable), opened)));
            });
            core.inner.tmpfile(core.caller(caller), dir, mode, flags, reply);
        });
    }

    fn opendir(&self, caller: Caller, ino: InodeId, flags: u32, reply: Reply<Opened>) {
        let ino = self.core.ino(ino);
        self.core.having(caller, ino, READ, reply, move |core, reply| {
            core.inner.opendir(core.caller(caller), ino, flags, reply);
        });
    }

    fn readdir(
        &self,
        caller: Caller,
        ino: InodeId,
        handle: u64,
        cookie: u64,
        size: u32,
        plus: bool,
        reply: Reply<Vec<Row>>,
    ) {
        let dir = self.core.ino(ino);
        let look = move |core: &Core, view: &dyn View| Ok(core.searchable(view, dir));
        self.core.after(reply, look, move |core, searchable, reply| {
            let shown = Arc::clone(core);
            let reply = Reply::new(move |rows: Result<Vec<Row>, i32>| {
                reply.send(rows.map(|rows| shown.rows(dir, rows, searchable)));
            });
            core.inner.readdir(core.caller(caller), dir, handle, cookie, size, plus, reply);
        });
    }

    fn releasedir(&self, c: Caller, ino: InodeId, handle: u64, reply: Reply<()>) {
        self.core.inner.releasedir(self.core.caller(c), self.core.ino(ino), handle, reply);
    }

    fn statfs(&self, c: Caller, ino: InodeId, reply: Reply<StatFs>) {
        self.core.inner.statfs(self.core.caller(c), self.core.ino(ino), reply);
    }

    fn lock(&self, c: Caller, ino: InodeId, handle: u64, lock: Lock, wait: bool, reply: Reply<()>) {
        self.core.inner.lock(self.core.caller(c), self.core.ino(ino), handle, lock, wait, reply);
    }

    fn unlock(&self, c: Caller, ino: InodeId, lock: Lock, reply: Reply<()>) {
        self.core.inner.unlock(self.core.caller(c), self.core.ino(ino), lock, reply);
    }

    fn lock_test(&self, c: Caller, ino: InodeId, lock: Lock, reply: Reply<Option<Lock>>) {
        self.core.inner.lock_test(self.core.caller(c), self.core.ino(ino), lock, reply);
    }

    fn lock_held(&self, ino: InodeId, kind: LockKind, owner: u64) -> bool {
        self.core.inner.lock_held(self.core.ino(ino), kind, owner)
    }

    fn unmounted(&self) {
        self.core.inner.unmounted();
    }
}

const _: () = assert!(READ | WRITE | SEARCH == 7);
