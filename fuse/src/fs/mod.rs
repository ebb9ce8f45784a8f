//! What every file operation means, over the seams `Meta` and `Chunks`. Knows no kernel: requests come
//! through [`crate::ops::FileSystem`], and notices go out through [`Notify`].
//!
//! Threads that serve the kernel do what needs memory and local disks only; everything else is a task of
//! the runtime. A file that is open here is one [`file::File`], whoever opened it: committed content
//! ([`base::Base`]) under bytes that were written and not yet committed ([`staging::Dirty`]).

mod append;
mod atime;
mod attr;
mod base;
mod changes;
mod file;
mod flush;
mod known;
mod locks;
mod names;
mod open;
mod quota;
mod range;
mod read;
mod staging;
mod statahead;
mod table;
mod write;
mod xattr;

use crate::ops::{
    Caller, Data, Entry, FileSystem, Listed, Lister, Notify, Opened, Place, Reply, Row, StatFs, WriteFlags,
    XattrFlags,
};
use hfcache_base::limits::FETCHES_IN_FLIGHT_MAX;
use hfcache_base::meta::{Attr, Content, Lock, LockKind, NewNode, Op, RenameMode, SetAttr};
use hfcache_base::seam::{Chunks, Clock, Meta, Moment, View};
use hfcache_base::{Error, InodeId, Kind, Result};
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::runtime::Handle as Runtime;
use tokio::sync::Semaphore;

/// The kernel may believe attributes and names no longer than this, however long the lease is.
const TTL_MAX: Duration = Duration::from_millis(700);
/// A read of the namespace without a lease gives up after this.
const READ_POINT_DEADLINE: Duration = Duration::from_secs(25);
/// Bytes that cannot be fetched or put for this long are an error.
const FETCH_DEADLINE: Duration = Duration::from_secs(25);
/// No request but a wait for a lock takes longer than this.
const REQUEST_DEADLINE: Duration = Duration::from_secs(35);
/// Notes of reads are given up if they can't be written down within this at the end.
const READS_AT_END: Duration = Duration::from_secs(2);
/// First pause before something is tried again.
const RETRY_FIRST: Duration = Duration::from_millis(30);
/// Longest pause before something is tried again.
const RETRY_MAX: Duration = Duration::from_millis(500);
/// Cells fetched ahead of readers at once; the rest of [`FETCHES_IN_FLIGHT_MAX`] is for those who wait.
const READAHEADS_MAX: usize = FETCHES_IN_FLIGHT_MAX * 3 / 4;
/// Handle of a directory that was opened with O_NOATIME.
const UNNOTED: u64 = 1;
/// Chunks of all writers that are put at once: each is in memory with its parity.
const PUTS_MAX: usize = 6;

/// How to make an [`Fs`].
pub struct FsOptions {
    /// Refuse every change with EROFS.
    pub read_only: bool,
    /// Keep when inodes were read (relatime).
    pub atime: bool,
    /// For lease ends, deadlines and mtimes.
    pub clock: Arc<dyn Clock>,
    /// Where tasks run.
    pub runtime: Runtime,
}

/// The file system. See the module.
pub struct Fs {
    core: Arc<Core>,
}

/// What could not be saved at [`Fs::shutdown`].
#[derive(Debug)]
pub struct Unsaved {
    /// The file.
    pub ino: InodeId,
    /// Why.
    pub error: Error,
}

/// Everything operations share.
pub(crate) struct Core {
    read_only: bool,
    /// Reads are noted.
    atime: bool,
    reads: atime::Reads,
    clock: Arc<dyn Clock>,
    runtime: Runtime,
    meta: Arc<dyn Meta>,
    chunks: Arc<dyn Chunks>,
    notify: OnceLock<Arc<dyn Notify>>,
    table: table::Table,
    known: known::Known,
    statahead: statahead::Statahead,
    cancels: locks::Cancels,
    stale: changes::StaleQueue,
    under_way: changes::UnderWay,
    /// This node's session, 0 while it has none.
    session: AtomicU64,
    /// It had a session and has lost it.
    fenced: AtomicBool,
    /// Everything was saved for the last time: what becomes of the session is no news.
    over: AtomicBool,
    /// Fetches at once.
    fetches: Semaphore,
    /// Fetches that nobody waits for at once.
    readaheads: Arc<Semaphore>,
    /// Puts at once.
    puts: Semaphore,
}

/// How long what is read in a view may be believed.
pub(crate) struct Lease {
    /// Until then; `None`: not at all.
    until: Option<Moment>,
    /// What [`known::Known::seen`] said before the view was taken.
    seen: u64,
}

impl Fs {
    /// A file system that is told of changes from now on.
    pub fn new(options: FsOptions, meta: Arc<dyn Meta>, chunks: Arc<dyn Chunks>) -> Arc<Self> {
        let core = Arc::new_cyclic(|core| Core {
            read_only: options.read_only,
            atime: options.atime && !options.read_only,
            reads: atime::Reads::default(),
            clock: options.clock,
            runtime: options.runtime,
            meta,
            chunks,
            notify: OnceLock::new(),
            table: table::Table::default(),
            known: known::Known::default(),
            statahead: statahead::Statahead::default(),
            cancels: locks::Cancels::default(),
            stale: changes::StaleQueue::start(core.clone()),
            under_way: changes::UnderWay::default(),
            session: AtomicU64::new(0),
            fenced: AtomicBool::new(false),
            over: AtomicBool::new(false),
            fetches: Semaphore::new(FETCHES_IN_FLIGHT_MAX),
            readaheads: Arc::new(Semaphore::new(READAHEADS_MAX)),
            puts: Semaphore::new(PUTS_MAX),
        });
        core.meta.subscribe(Arc::new(changes::Sink(Arc::downgrade(&core))));
        changes::watch_session(&core);
        atime::start(&core);
        Arc::new(Self { core })
    }

    /// From now on this one is asked to list directories whose names are looked up one after the other.
    pub fn look_ahead(&self, lister: Arc<dyn Lister>) {
        self.core.statahead.ask(lister);
    }

    /// What came of a listing that the [`Lister`] was asked for.
    pub fn listed(&self, dir: InodeId, listed: Listed) {
        self.core.statahead.listed(dir, listed);
    }

    /// Saves everything that was written and not yet committed. Answers with what could not be saved; it
    /// is logged, too.
    pub async fn shutdown(&self) -> Vec<Unsaved> {
        let unsaved = flush::all(&self.core).await;
        // Worth a moment, not more.
        tokio::select! {
            () = self.core.write_reads() => {}
            () = self.core.clock.sleep(READS_AT_END) => {}
        }
        self.core.over.store(true, Ordering::Relaxed);
        unsaved
    }
}

impl Core {
    /// Spawns a task that answers a request, within its deadline.
    fn answer<T: Send + 'static>(
        self: &Arc<Self>,
        reply: Reply<T>,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) {
        let core = Arc::clone(self);
        self.runtime.spawn(async move {
            let result = core.within(REQUEST_DEADLINE, work).await;
            reply.send(result.map_err(|e| logged(&e)));
        });
    }

    /// Spawns a task that answers a request whose steps have deadlines of their own: how long it takes
    /// depends on how much there is to save.
    fn answer_long<T: Send + 'static>(
        self: &Arc<Self>,
        reply: Reply<T>,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) {
        self.runtime.spawn(async move { reply.send(work.await.map_err(|e| logged(&e))) });
    }

    /// Ends a future that takes too long.
    async fn within<T>(&self, limit: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            biased;
            result = work => result,
            () = self.clock.sleep(limit) => Err(Error::new(Kind::TimedOut, "no answer before the deadline")),
        }
    }

    /// Reads the namespace, if this node may without asking and what is read may be told at once.
    fn view_now<T>(&self, read: impl FnOnce(&dyn View, Lease) -> Result<T>) -> Option<Result<T>> {
        let seen = self.known.seen();
        let (view, until) = self.meta.read_local()?;
        let answer = read(view.as_ref(), Lease { until: Some(until), seen });
        view.settles_at().is_none().then_some(answer)
    }

    /// Reads the namespace; asks for leave if it must, and waits until what was read may be told. `read` shall
    /// have no effects: it may be asked twice.
    async fn view<T>(&self, read: impl Fn(&dyn View, Lease) -> Result<T>) -> Result<T> {
        if let Some(answer) = self.view_now(&read) {
            return answer;
        }
        if self.is_fenced() {
            // For good: the node begins anew when it can reach the others.
            return Err(Kind::Fenced.into());
        }
        let seen = self.known.seen();
        self.within(READ_POINT_DEADLINE, self.meta.read_point(READ_POINT_DEADLINE)).await?;
        let (answer, settles_at) = {
            let view = self.meta.read_stale();
            // Nothing of it may be kept: when it is told the lease has less left, or nothing.
            (read(view.as_ref(), Lease { until: None, seen }), view.settles_at())
        };
        if let Some(index) = settles_at {
            self.within(READ_POINT_DEADLINE, self.meta.settled(index, READ_POINT_DEADLINE)).await?;
        }
        answer
    }

    /// The committed content of a file after a change of it here. What others changed as well may not be told
    /// yet: then the next reader looks, and waits.
    fn load(&self, file: &file::File) -> Result<(Attr, Content)> {
        let view = self.meta.read_stale();
        let loaded = view.content(file.ino);
        if view.settles_at().is_some() {
            file.stale.mark();
        }
        loaded
    }

    /// Answers from the namespace: at once if this node may, else from a task.
    fn read_names<T: Send + 'static>(
        self: &Arc<Self>,
        reply: Reply<T>,
        read: impl Fn(&Self, &dyn View, Lease) -> Result<T> + Send + Sync + 'static,
    ) {
        match self.view_now(|view, lease| read(self, view, lease)) {
            Some(result) => reply.send(result.map_err(|e| logged(&e))),
            None => {
                let core = Arc::clone(self);
                self.answer(reply, async move { core.view(|view, lease| read(&core, view, lease)).await });
            }
        }
    }

    /// Proposes a change of the namespace.
    async fn commit(&self, op: Op) -> Result<hfcache_base::meta::Reply> {
        self.writable()?;
        self.within(REQUEST_DEADLINE, self.meta.commit(op)).await
    }

    fn writable(&self) -> Result<()> {
        if self.read_only { Err(Kind::ReadOnly.into()) } else { Ok(()) }
    }

    /// This node has lost its session: what it knows may be stale, what it holds may be taken.
    fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::Relaxed)
    }
}

/// The errno of an error; those that nobody expects are logged, as the application only sees EIO.
fn logged(error: &Error) -> i32 {
    let errno = error.errno();
    if errno == libc::EIO {
        tracing::warn!(error = %error, kind = ?error.kind(), "request failed");
    }
    errno
}

impl FileSystem for Fs {
    fn mounted(&self, notify: Arc<dyn Notify>) {
        // A second mount of the same Fs does not happen; the first one's notices stay.
        let _ = self.core.notify.set(notify);
    }

    fn interrupt(&self, unique: u64) {
        self.core.cancels.interrupt(unique);
    }

    fn lookup(&self, _: Caller, parent: InodeId, name: &[u8], reply: Reply<Entry>) {
        self.core.lookup(parent, name, reply);
    }

    fn forget(&self, _: InodeId) {}

    fn getattr(&self, _: Caller, ino: InodeId, _: Option<u64>, reply: Reply<Entry>) {
        self.core.getattr(ino, reply);
    }

    fn setattr(&self, _: Caller, ino: InodeId, _: Option<u64>, set: SetAttr, reply: Reply<Entry>) {
        self.core.setattr(ino, set, reply);
    }

    fn readlink(&self, _: Caller, ino: InodeId, reply: Reply<Vec<u8>>) {
        self.core.read_names(reply, move |core, view, _| {
            let target = view.readlink(ino)?;
            core.was_read(view, ino);
            Ok(target)
        });
    }

    fn getxattr(&self, _: Caller, ino: InodeId, name: &[u8], reply: Reply<Vec<u8>>) {
        self.core.getxattr(ino, name, reply);
    }

    fn listxattr(&self, caller: Caller, ino: InodeId, reply: Reply<Vec<Vec<u8>>>) {
        self.core.listxattr(caller, ino, reply);
    }

    fn setxattr(
        &self,
        _: Caller,
        ino: InodeId,
        name: &[u8],
        value: &[u8],
        flags: XattrFlags,
        reply: Reply<()>,
    ) {
        self.core.setxattr(ino, name, value, flags, reply);
    }

    fn removexattr(&self, _: Caller, ino: InodeId, name: &[u8], reply: Reply<()>) {
        self.core.removexattr(ino, name, reply);
    }

    fn access(&self, _: Caller, _: InodeId, _: u32, reply: Reply<()>) {
        reply.send(Err(libc::ENOSYS));
    }

    fn make(&self, c: Caller, parent: InodeId, name: &[u8], node: NewNode, mode: u32, reply: Reply<Entry>) {
        self.core.make(c, parent, name, node, mode, reply);
    }

    fn link(&self, _: Caller, ino: InodeId, parent: InodeId, name: &[u8], reply: Reply<Entry>) {
        self.core.link(ino, parent, name, reply);
    }

    fn unlink(&self, _: Caller, parent: InodeId, name: &[u8], reply: Reply<()>) {
        self.core.unlink(parent, name, reply);
    }

    fn rmdir(&self, _: Caller, parent: InodeId, name: &[u8], reply: Reply<()>) {
        self.core.rmdir(parent, name, reply);
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
        self.core.rename(caller.uid, (parent, name), (new_parent, new_name), mode, reply);
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
        self.core.create(caller, parent, name, mode, flags, reply);
    }

    fn open(&self, caller: Caller, ino: InodeId, flags: u32, reply: Reply<Opened>) {
        self.core.open(caller, ino, flags, reply);
    }

    fn read(&self, c: Caller, ino: InodeId, handle: u64, offset: u64, size: u32, reply: Reply<Data>) {
        self.core.read(c.unique, ino, handle, offset, size, reply);
    }

    fn write(
        &self,
        _: Caller,
        ino: InodeId,
        handle: u64,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
        reply: Reply<u32>,
    ) {
        self.core.write(ino, handle, offset, data, flags, reply);
    }

    fn flush(&self, _: Caller, ino: InodeId, handle: u64, lock_owner: u64, reply: Reply<()>) {
        self.core.flush(ino, handle, lock_owner, reply);
    }

    fn fsync(&self, _: Caller, ino: InodeId, handle: u64, reply: Reply<()>) {
        self.core.fsync(ino, handle, reply);
    }

    fn release(&self, _: Caller, ino: InodeId, handle: u64, flock_owner: Option<u64>, reply: Reply<()>) {
        self.core.release(ino, handle, flock_owner, reply);
    }

    fn fallocate(
        &self,
        caller: Caller,
        ino: InodeId,
        handle: u64,
        offset: u64,
        len: u64,
        mode: u32,
        reply: Reply<()>,
    ) {
        self.core.fallocate(caller, ino, handle, offset, len, mode, reply);
    }

    fn seek(&self, _: Caller, ino: InodeId, handle: u64, offset: u64, data: bool, reply: Reply<u64>) {
        self.core.seek(ino, handle, offset, data, reply);
    }

    fn copy(&self, caller: Caller, from: Place, to: Place, len: u64, reply: Reply<u64>) {
        self.core.copy(caller, from, to, len, reply);
    }

    fn tmpfile(&self, caller: Caller, parent: InodeId, mode: u32, flags: u32, reply: Reply<(Entry, Opened)>) {
        self.core.tmpfile(caller, parent, mode, flags, reply);
    }

    fn opendir(&self, _: Caller, _: InodeId, flags: u32, reply: Reply<Opened>) {
        // Listings go on from stable cookies: all there is to an open directory is whether it counts as read.
        let handle = if flags as i32 & libc::O_NOATIME == 0 { 0 } else { UNNOTED };
        reply.ok(Opened { handle, ..Opened::default() });
    }

    fn readdir(
        &self,
        _: Caller,
        ino: InodeId,
        handle: u64,
        cookie: u64,
        size: u32,
        plus: bool,
        reply: Reply<Vec<Row>>,
    ) {
        self.core.readdir(ino, handle != UNNOTED, cookie, size, plus, reply);
    }

    fn releasedir(&self, _: Caller, _: InodeId, _: u64, reply: Reply<()>) {
        reply.ok(());
    }

    fn statfs(&self, _: Caller, ino: InodeId, reply: Reply<StatFs>) {
        self.core.statfs(ino, reply);
    }

    fn lock(&self, c: Caller, ino: InodeId, handle: u64, lock: Lock, wait: bool, reply: Reply<()>) {
        if lock.kind == LockKind::Posix {
            self.core.note_fcntl(ino, handle, lock.owner);
        }
        self.core.lock(c.unique, ino, lock, wait, reply);
    }

    fn unlock(&self, _: Caller, ino: InodeId, lock: Lock, reply: Reply<()>) {
        self.core.unlock(ino, lock, reply);
    }

    fn lock_test(&self, _: Caller, ino: InodeId, lock: Lock, reply: Reply<Option<Lock>>) {
        self.core.lock_test(ino, lock, reply);
    }

    fn lock_held(&self, ino: InodeId, kind: LockKind, owner: u64) -> bool {
        self.core.meta.lock_held(ino, kind, owner)
    }

    fn unmounted(&self) {
        let core = Arc::clone(&self.core);
        self.core.runtime.spawn(async move { flush::all(&core).await });
    }
}
