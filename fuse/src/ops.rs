//! What the kernel can ask, in the words of a file system. `kernel` decodes requests into calls of
//! [`FileSystem`]; the file system answers through [`Reply`], at once or later from any task.
//!
//! Methods are called on threads that serve the kernel. They must not block on anything but local disks:
//! what needs the network is moved to a task, and the thread goes on with the next request.

use bytes::Bytes;
use hfcache_base::meta::{Attr, FileKind, Lock, LockKind, NewNode, RenameMode, SetAttr, XattrMode};
use hfcache_base::seam::LocalFile;
use hfcache_base::{InodeId, Kind, Result};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

/// Who asks, and under which number the kernel knows the request.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// The kernel's number of this request; [`FileSystem::interrupt`] names it.
    pub unique: u64,
    /// File-system user of the calling process.
    pub uid: u32,
    /// Its file-system group.
    pub gid: u32,
    /// Its process id, 0 for the kernel itself.
    pub pid: u32,
    /// The permission bits it gives to nothing it makes; known where something is made, else 0.
    pub umask: u32,
}

/// An inode and how long the kernel may believe what it is told about it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Attributes.
    pub attr: Attr,
    /// How long the attributes hold.
    pub attr_ttl: Duration,
    /// How long the name holds.
    pub entry_ttl: Duration,
}

/// How bytes are written.
#[derive(Clone, Copy, Debug, Default)]
pub struct WriteFlags {
    /// The pages come from the page cache (mmap), so the caller is not the writer.
    pub cached: bool,
    /// O_APPEND: the offset is only where the kernel believes the end to be.
    pub append: bool,
    /// The writer may not keep the file's set-id bits.
    pub kill_set_id: bool,
}

/// How an extended attribute is set.
#[derive(Clone, Copy, Debug)]
pub struct XattrFlags {
    /// What if there is one already.
    pub mode: XattrMode,
    /// With an access control list: the caller may not keep the set-group-id bit.
    pub kill_sgid: bool,
}

/// Somewhere in an open file.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The file.
    pub ino: InodeId,
    /// See [`Opened::handle`].
    pub handle: u64,
    /// Byte offset.
    pub offset: u64,
}

/// A file that was opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Opened {
    /// The file system's own number of this open file; comes back with every call on it. Of a file it is given once:
    /// a `flock` is held by it.
    pub handle: u64,
    /// Pages the kernel kept from an earlier open are still right.
    pub keep_cache: bool,
    /// Bypass the page cache.
    pub direct_io: bool,
    /// A close need not be told ([`FileSystem::flush`]): nothing is written through it, and locks that are taken
    /// through it go when the last descriptor is closed.
    pub no_flush: bool,
}

/// Bytes for a READ.
pub enum Data {
    /// In memory, in order.
    Bytes(Vec<Bytes>),
    /// In a local file: the kernel side reads (or splices) them itself. The range is present.
    Local {
        /// Where.
        file: Arc<dyn LocalFile>,
        /// From here.
        offset: u64,
        /// So many.
        len: usize,
    },
}

/// One row for READDIR or READDIRPLUS.
#[derive(Clone, Debug)]
pub struct Row {
    /// Name.
    pub name: Vec<u8>,
    /// Inode.
    pub ino: InodeId,
    /// For `d_type`.
    pub kind: FileKind,
    /// Where the listing goes on after this row.
    pub cookie: u64,
    /// For READDIRPLUS; `None` for `.` and `..`, which the kernel must not count as looked up.
    pub entry: Option<Entry>,
}

/// What `statfs` shows.
#[derive(Clone, Copy, Debug, Default)]
pub struct StatFs {
    /// Bytes in all.
    pub total: u64,
    /// Bytes this caller may still write.
    pub available: u64,
    /// Inodes in use.
    pub inodes: u64,
    /// Inodes that may still be made; `None` for as many as the bytes allow.
    pub inodes_free: Option<u64>,
}

/// What sends an answer: the value or an errno.
type Answer<T> = Box<dyn FnOnce(Result<T, i32>) + Send>;

/// The way to answer a request, once. Dropped without an answer it sends EIO, so that no caller hangs.
pub struct Reply<T>(Option<Answer<T>>);

impl<T> Reply<T> {
    /// A reply that ends in `send`: the value or an errno.
    pub fn new(send: impl FnOnce(Result<T, i32>) + Send + 'static) -> Self {
        Self(Some(Box::new(send)))
    }

    /// Answers.
    pub fn ok(self, value: T) {
        self.send(Ok(value));
    }

    /// Answers with an errno.
    pub fn fail(self, kind: Kind) {
        self.send(Err(kind.errno()));
    }

    /// Answers with a raw result.
    pub fn send(mut self, result: Result<T, i32>) {
        if let Some(send) = self.0.take() {
            send(result);
        }
    }
}

impl<T> Drop for Reply<T> {
    fn drop(&mut self) {
        if let Some(send) = self.0.take() {
            send(Err(libc::EIO));
        }
    }
}

/// How the file system tells the kernel that something it keeps is no longer true.
pub trait Notify: Send + Sync + 'static {
    /// The attributes of an inode are stale. Never blocks. An inode the kernel does not know is no error.
    fn attr_stale(&self, ino: InodeId);
    /// Attributes and pages of an inode are stale. May block on pages that are being read, so never on a
    /// thread that a request waits for.
    fn data_stale(&self, ino: InodeId);
    /// Every name may be stale. Never blocks; `false` where the kernel cannot do it, and then no name may be
    /// given a lifetime at all.
    fn names_stale(&self) -> bool;
    /// Whether [`Notify::names_stale`] works on this kernel.
    fn can_expire_names(&self) -> bool;
    /// Whether what is written past the page cache is seen through it at once.
    fn direct_is_coherent(&self) -> bool;
}

/// A part of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// The directory.
    pub dir: InodeId,
    /// Its path from the root of the tree, without a slash at either end.
    pub path: Vec<u8>,
    /// It begins behind this cookie; 0 is the start.
    pub after: u64,
    /// So many rows, or some more.
    pub rows: u32,
}

/// What came of a [`Listing`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Listed {
    /// The directory goes on behind this cookie.
    Until(u64),
    /// To its end.
    All,
    /// Nothing.
    Failed,
}

/// Lists directories through the mount, so that the kernel knows their names and attributes. Another process:
/// one that waits for a mount which it serves itself could not be killed.
pub trait Lister: Send + Sync + 'static {
    /// Asks for a listing, and does not wait for it. `false` if there will be none.
    fn ask(&self, listing: &Listing) -> bool;
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// So many bytes.
    Read(u64),
    /// To take so many bytes.
    Write(u64),
    /// Anything else.
    Other,
}

/// Lets callers wait before their requests are handed to the file system.
pub trait Gate: Send + Sync + 'static {
    /// How long this request has to wait. Each is asked about once, in the order in which they come.
    fn wait(&self, caller: Caller, work: Work) -> Duration;
}

/// See the module. `handle` is what [`Opened::handle`] said; `ino` is always one the kernel was told of.
pub trait FileSystem: Send + Sync + 'static {
    /// The mount is up.
    fn mounted(&self, notify: Arc<dyn Notify>);
    /// The kernel no longer waits for this request: end it soon, with EINTR if it has had no effect.
    fn interrupt(&self, unique: u64);
    /// Looks a name up.
    fn lookup(&self, caller: Caller, parent: InodeId, name: &[u8], reply: Reply<Entry>);
    /// The kernel no longer keeps this inode. A hint: it may know it again by the time this is read.
    fn forget(&self, ino: InodeId);
    /// Attributes, through an open file if there is one.
    fn getattr(&self, caller: Caller, ino: InodeId, handle: Option<u64>, reply: Reply<Entry>);
    /// Sets attributes, through an open file if there is one.
    fn setattr(&self, caller: Caller, ino: InodeId, handle: Option<u64>, set: SetAttr, reply: Reply<Entry>);
    /// Target of a symbolic link.
    fn readlink(&self, caller: Caller, ino: InodeId, reply: Reply<Vec<u8>>);
    /// The value of an extended attribute, whole; [`Kind::NoData`] if there is none of that name.
    fn getxattr(&self, caller: Caller, ino: InodeId, name: &[u8], reply: Reply<Vec<u8>>);
    /// The names of all extended attributes that the caller may know of.
    fn listxattr(&self, caller: Caller, ino: InodeId, reply: Reply<Vec<Vec<u8>>>);
    /// Sets an extended attribute. An access control list sets the permission bits, too.
    fn setxattr(
        &self,
        caller: Caller,
        ino: InodeId,
        name: &[u8],
        value: &[u8],
        flags: XattrFlags,
        reply: Reply<()>,
    );
    /// Removes an extended attribute.
    fn removexattr(&self, caller: Caller, ino: InodeId, name: &[u8], reply: Reply<()>);
    /// Whether the caller may do these things (access(2)'s bits). Only asked where the kernel does not decide
    /// by itself; ENOSYS says that it may.
    fn access(&self, caller: Caller, ino: InodeId, want: u32, reply: Reply<()>);
    /// Makes anything but an open file: mkdir, symlink, mknod. Of `mode`, the caller's umask is not yet taken off.
    fn make(
        &self,
        caller: Caller,
        parent: InodeId,
        name: &[u8],
        node: NewNode,
        mode: u32,
        reply: Reply<Entry>,
    );
    /// Makes a hard link.
    fn link(&self, caller: Caller, ino: InodeId, parent: InodeId, name: &[u8], reply: Reply<Entry>);
    /// Removes a name of anything but a directory.
    fn unlink(&self, caller: Caller, parent: InodeId, name: &[u8], reply: Reply<()>);
    /// Removes an empty directory.
    fn rmdir(&self, caller: Caller, parent: InodeId, name: &[u8], reply: Reply<()>);
    /// Moves a name.
    fn rename(
        &self,
        caller: Caller,
        parent: InodeId,
        name: &[u8],
        new_parent: InodeId,
        new_name: &[u8],
        mode: RenameMode,
        reply: Reply<()>,
    );
    /// Makes a file and opens it; `flags` are open(2)'s, and `mode` as in [`FileSystem::make`].
    fn create(
        &self,
        caller: Caller,
        parent: InodeId,
        name: &[u8],
        mode: u32,
        flags: u32,
        reply: Reply<(Entry, Opened)>,
    );
    /// Opens a file; `flags` are open(2)'s without O_CREAT, O_EXCL and O_NOCTTY.
    fn open(&self, caller: Caller, ino: InodeId, flags: u32, reply: Reply<Opened>);
    /// Reads up to `size` bytes; fewer only at the end of the file.
    fn read(&self, caller: Caller, ino: InodeId, handle: u64, offset: u64, size: u32, reply: Reply<Data>);
    /// Writes.
    fn write(
        &self,
        caller: Caller,
        ino: InodeId,
        handle: u64,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
        reply: Reply<u32>,
    );
    /// A descriptor was closed: what was written through it is durable when this is answered. Drops the
    /// owner's `fcntl` locks.
    fn flush(&self, caller: Caller, ino: InodeId, handle: u64, lock_owner: u64, reply: Reply<()>);
    /// Makes a file durable.
    fn fsync(&self, caller: Caller, ino: InodeId, handle: u64, reply: Reply<()>);
    /// The last descriptor is gone. `flock_owner` is set if `flock` locks have to be dropped.
    fn release(&self, caller: Caller, ino: InodeId, handle: u64, flock_owner: Option<u64>, reply: Reply<()>);
    /// Allocates, or punches a hole; `mode` is fallocate(2)'s.
    fn fallocate(
        &self,
        caller: Caller,
        ino: InodeId,
        handle: u64,
        offset: u64,
        len: u64,
        mode: u32,
        reply: Reply<()>,
    );
    /// The first byte from `offset` on that is data, or the first that is in a hole; the end of the file
    /// counts as a hole.
    fn seek(&self, caller: Caller, ino: InodeId, handle: u64, offset: u64, data: bool, reply: Reply<u64>);
    /// Copies bytes between open files, or within one; answers how many.
    fn copy(&self, caller: Caller, from: Place, to: Place, len: u64, reply: Reply<u64>);
    /// Makes a file without a name in a directory's file system, and opens it; `flags` are open(2)'s.
    fn tmpfile(&self, caller: Caller, parent: InodeId, mode: u32, flags: u32, reply: Reply<(Entry, Opened)>);
    /// Opens a directory; `flags` are open(2)'s.
    fn opendir(&self, caller: Caller, ino: InodeId, flags: u32, reply: Reply<Opened>);
    /// Lists from a cookie (0: the start). With `plus` the kernel takes attributes too. The kernel side packs
    /// as many rows as fit into `size` bytes and drops the rest, so reference counts are never exact: inode
    /// numbers are stable for ever and nothing may depend on them.
    fn readdir(
        &self,
        caller: Caller,
        ino: InodeId,
        handle: u64,
        cookie: u64,
        size: u32,
        plus: bool,
        reply: Reply<Vec<Row>>,
    );
    /// Closes a directory.
    fn releasedir(&self, caller: Caller, ino: InodeId, handle: u64, reply: Reply<()>);
    /// How full it is, as far as a quota lets what is in `ino` grow.
    fn statfs(&self, caller: Caller, ino: InodeId, reply: Reply<StatFs>);
    /// Takes a lock; `wait` for F_SETLKW and a blocking flock.
    fn lock(&self, caller: Caller, ino: InodeId, handle: u64, lock: Lock, wait: bool, reply: Reply<()>);
    /// Gives up a range of a lock.
    fn unlock(&self, caller: Caller, ino: InodeId, lock: Lock, reply: Reply<()>);
    /// Who would be in the way: `None` for nobody. The pid of another node's process is 0.
    fn lock_test(&self, caller: Caller, ino: InodeId, lock: Lock, reply: Reply<Option<Lock>>);
    /// Whether close and release need to drop locks of this kind at all.
    fn lock_held(&self, ino: InodeId, kind: LockKind, owner: u64) -> bool;
    /// The mount is gone; nothing will be asked any more.
    fn unmounted(&self);
}
