//! One request, one call of the file system.

use super::reply;
use super::request::{Header, Request};
use super::session::Channel;
use super::xattr::{Fit, Xattr, joined, sized};
use crate::ops::{Caller, Entry, Opened, Place, Reply};
use hfcache_base::InodeId;
use hfcache_base::limits::FUSE_IO_MAX;
use std::sync::Arc;

/// The ways to answer, bound to one request.
struct To<'a> {
    channel: &'a Arc<Channel>,
    unique: u64,
}

impl To<'_> {
    fn entry(&self) -> Reply<Entry> {
        let unique = self.unique;
        self.channel.reply(unique, move |to, entry| to.answer(unique, &[reply::entry(&entry).as_slice()]))
    }

    fn attr(&self) -> Reply<Entry> {
        let unique = self.unique;
        self.channel.reply(unique, move |to, entry| to.answer(unique, &[reply::attr(&entry).as_slice()]))
    }

    fn opened(&self) -> Reply<Opened> {
        let unique = self.unique;
        self.channel.reply(unique, move |to, opened| to.answer(unique, &[reply::opened(&opened).as_slice()]))
    }

    fn created(&self) -> Reply<(Entry, Opened)> {
        let unique = self.unique;
        self.channel.reply(unique, move |to, (entry, opened): (Entry, Opened)| {
            to.answer(unique, &[reply::created(&entry, &opened).as_slice()]);
        })
    }

    /// A value whose length may be all that is wanted.
    fn value(&self, size: u32) -> Reply<Vec<u8>> {
        let unique = self.unique;
        self.channel.reply(unique, move |to, value: Vec<u8>| match sized(value.len(), size) {
            Fit::Length(out) => to.answer(unique, &[out.as_slice()]),
            Fit::Whole => to.answer(unique, &[&value]),
            Fit::TooLong => to.error(unique, libc::ERANGE),
        })
    }

    fn done(&self) -> Reply<()> {
        let unique = self.unique;
        self.channel.reply(unique, move |to, ()| to.answer(unique, &[]))
    }
}

/// Calls the file system; the answer goes to the channel the request came from.
pub(super) fn dispatch(channel: &Arc<Channel>, header: &Header, request: Request<'_>) {
    let fs = &*channel.session.fs;
    let unique = header.unique;
    let ino = header.ino;
    let caller = header.caller();
    let to = To { channel, unique };
    match request {
        Request::Lookup { name } => fs.lookup(caller, ino, name, to.entry()),
        Request::Forget => fs.forget(ino),
        Request::BatchForget(inodes) => inodes.for_each(|ino| fs.forget(ino)),
        Request::Getattr { handle } => fs.getattr(caller, ino, handle, to.attr()),
        Request::Setattr { handle, set } => fs.setattr(caller, ino, handle, set, to.attr()),
        Request::Readlink => {
            let reply = channel.reply(unique, move |to, target: Vec<u8>| to.answer(unique, &[&target]));
            fs.readlink(caller, ino, reply);
        }
        Request::Access { want } => fs.access(caller, ino, want, to.done()),
        Request::Make { name, node, mode, umask } => {
            fs.make(Caller { umask, ..caller }, ino, name, node, mode, to.entry());
        }
        Request::Unlink { name } => fs.unlink(caller, ino, name, to.done()),
        Request::Rmdir { name } => fs.rmdir(caller, ino, name, to.done()),
        Request::Rename { name, new_parent, new_name, mode } => {
            fs.rename(caller, ino, name, new_parent, new_name, mode, to.done());
        }
        // The header names the directory here.
        Request::Link { ino: linked, name } => fs.link(caller, linked, ino, name, to.entry()),
        Request::Open { flags } => fs.open(caller, ino, flags, to.opened()),
        Request::Create { name, mode, umask, flags } => {
            fs.create(Caller { umask, ..caller }, ino, name, mode, flags, to.created());
        }
        Request::Tmpfile { mode, umask, flags } => {
            fs.tmpfile(Caller { umask, ..caller }, ino, mode, flags, to.created());
        }
        Request::Read { handle, offset, size } => {
            let reply = channel.reply(unique, move |to, data| to.data(unique, size, data));
            fs.read(caller, ino, handle, offset, size, reply);
        }
        Request::Write { handle, offset, flags, data } => {
            let reply =
                channel.reply(unique, move |to, size| to.answer(unique, &[reply::written(size).as_slice()]));
            fs.write(caller, ino, handle, offset, data, flags, reply);
        }
        Request::Flush { handle, lock_owner } => fs.flush(caller, ino, handle, lock_owner, to.done()),
        Request::Fsync { handle } => fs.fsync(caller, ino, handle, to.done()),
        Request::Release { handle, flock_owner } => fs.release(caller, ino, handle, flock_owner, to.done()),
        Request::Fallocate { handle, offset, len, mode } => {
            fs.fallocate(caller, ino, handle, offset, len, mode, to.done());
        }
        Request::Seek { handle, offset, data } => {
            let reply = channel.reply(unique, move |to, at: u64| to.answer(unique, &[&at.to_ne_bytes()]));
            fs.seek(caller, ino, handle, offset, data, reply);
        }
        Request::Copy { handle, offset, to: target, len, wide } => {
            let len = if wide { len } else { len.min(u64::from(u32::MAX)) };
            let reply = channel.reply(unique, move |to, copied: u64| {
                to.answer(unique, &[reply::copied(copied, wide).as_slice()]);
            });
            fs.copy(caller, Place { ino, handle, offset }, target, len, reply);
        }
        Request::Opendir { flags } => fs.opendir(caller, ino, flags, to.opened()),
        Request::Readdir { handle, cookie, size, plus } => {
            let size = size.min(FUSE_IO_MAX);
            let reply = channel.reply(unique, move |to, rows: Vec<_>| {
                to.packed(unique, |out| reply::rows(out, &rows, size as usize, plus));
            });
            fs.readdir(caller, ino, handle, cookie, size, plus, reply);
        }
        Request::Releasedir { handle } => fs.releasedir(caller, ino, handle, to.done()),
        Request::Statfs => {
            let reply =
                channel.reply(unique, move |to, stat| to.answer(unique, &[reply::statfs(&stat).as_slice()]));
            fs.statfs(caller, ino, reply);
        }
        Request::Xattr(asked) => xattr(&to, caller, ino, &asked),
        Request::LockTest { lock } => {
            let reply = channel.reply(unique, move |to, found: Option<_>| {
                to.answer(unique, &[reply::lock(&lock, found.as_ref()).as_slice()]);
            });
            fs.lock_test(caller, ino, lock, reply);
        }
        Request::Lock { handle, lock, wait } => fs.lock(caller, ino, handle, lock, wait, to.done()),
        Request::Unlock { lock } => fs.unlock(caller, ino, lock, to.done()),
        // Settled before the file system is asked.
        Request::Init(_)
        | Request::Interrupt { .. }
        | Request::Nothing
        | Request::Silent
        | Request::Refused(_) => {}
    }
}

fn xattr(to: &To<'_>, caller: Caller, ino: InodeId, asked: &Xattr<'_>) {
    let fs = &*to.channel.session.fs;
    match *asked {
        Xattr::Set { name, value, flags: Some(flags) } => {
            fs.setxattr(caller, ino, name, value, flags, to.done());
        }
        Xattr::Set { name, flags: None, .. } => {
            // To be made and to be replaced: one of the two is wrong, and nothing is ever set.
            let done = to.done();
            let look = Reply::new(|there: Result<Vec<u8>, i32>| done.send(there.and(Err(libc::EEXIST))));
            fs.getxattr(caller, ino, name, look);
        }
        Xattr::Get { name, size } => fs.getxattr(caller, ino, name, to.value(size)),
        Xattr::List { size } => {
            let value = to.value(size);
            let names = Reply::new(|names: Result<Vec<Vec<u8>>, i32>| value.send(names.map(|n| joined(&n))));
            fs.listxattr(caller, ino, names);
        }
        Xattr::Remove { name } => fs.removexattr(caller, ino, name, to.done()),
    }
}
