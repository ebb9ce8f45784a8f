//! Threads that take requests from the kernel until the mount is gone.

use super::abi::Malformed;
use super::device::Device;
use super::dispatch::dispatch;
use super::inflight::{InFlight, Interrupt};
use super::init::{Agreed, buffer_len};
use super::request::{self, Header, Request};
use super::turns::{LOOK, Next, Turns};
use crate::ops::{Data, FileSystem, Gate, Reply, Work};
use hfcache_base::limits::FUSE_IO_MAX;
use hfcache_base::{Error, Result};
use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::runtime::Handle as Runtime;
use tokio::sync::watch;
use tracing::{debug, error, warn};

/// Buffers for READs of local files that are kept for the next one.
const SCRATCH_KEPT: usize = 8;
/// How often a request that has to wait is looked after: its caller may be killed.
const WAIT_STEP: Duration = Duration::from_millis(100);

/// What all threads of a mount share.
pub(super) struct Session {
    pub(super) fs: Arc<dyn FileSystem>,
    pub(super) inflight: InFlight,
    /// Flags that were agreed on with the kernel.
    agreed: u64,
    gate: Option<(Arc<dyn Gate>, Runtime)>,
    queues: Vec<Arc<Device>>,
    turns: Turns,
    /// A client can run while a thread looks for its next request.
    more_cores: bool,
    scratch: Mutex<Vec<Vec<u8>>>,
    threads: AtomicUsize,
    over: Mutex<bool>,
    over_changed: Condvar,
    over_watch: watch::Sender<bool>,
}

/// One queue of requests, and the way back for their answers.
pub(super) struct Channel {
    pub(super) session: Arc<Session>,
    device: Arc<Device>,
}

impl Session {
    /// A session over these queues, at least one.
    pub(super) fn new(
        fs: Arc<dyn FileSystem>,
        gate: Option<(Arc<dyn Gate>, Runtime)>,
        queues: Vec<Arc<Device>>,
        agreed: Agreed,
    ) -> Arc<Self> {
        Arc::new(Self {
            fs,
            inflight: InFlight::default(),
            gate,
            agreed: agreed.flags,
            queues,
            turns: Turns::default(),
            more_cores: std::thread::available_parallelism().is_ok_and(|cores| cores.get() > 1),
            scratch: Mutex::default(),
            threads: AtomicUsize::new(0),
            over: Mutex::new(false),
            over_changed: Condvar::new(),
            over_watch: watch::Sender::new(false),
        })
    }

    /// Starts `threads` threads, spread over the queues.
    pub(super) fn spawn(
        self: &Arc<Self>,
        threads: usize,
        runtime: Option<&tokio::runtime::Handle>,
    ) -> Result<()> {
        // Counted beforehand: the first thread may see the end before the last one has started.
        self.threads.store(threads, Ordering::Release);
        for (number, device) in self.queues.iter().cycle().take(threads).enumerate() {
            let channel = Arc::new(Channel { session: Arc::clone(self), device: Arc::clone(device) });
            let runtime = runtime.cloned();
            let work = move || {
                let _context = runtime.as_ref().map(tokio::runtime::Handle::enter);
                channel.work();
            };
            if let Err(e) = std::thread::Builder::new().name(format!("fuse-{number}")).spawn(work) {
                if self.threads.fetch_sub(threads - number, Ordering::AcqRel) == threads - number {
                    self.finish();
                }
                if number == 0 {
                    return Err(Error::io(e).context("start a thread for the mount"));
                }
                warn!(error = %e, started = number, "start a thread for the mount");
                return Ok(());
            }
        }
        Ok(())
    }

    /// Ends the session, once.
    pub(super) fn finish(&self) {
        if std::mem::replace(&mut *self.over.lock(), true) {
            return;
        }
        if catch_unwind(AssertUnwindSafe(|| self.fs.unmounted())).is_err() {
            error!("the file system panicked at the end of the mount");
        }
        self.over_watch.send_replace(true);
        let _guard = self.over.lock();
        self.over_changed.notify_all();
    }

    /// Turns true when the kernel will ask nothing any more.
    pub(super) fn watch(&self) -> watch::Receiver<bool> {
        self.over_watch.subscribe()
    }

    /// Waits for the end; `false` if that takes longer than `limit`.
    pub(super) fn wait_over(&self, limit: Duration) -> bool {
        let mut over = self.over.lock();
        self.over_changed.wait_while_for(&mut over, |_| !*self.over_watch.borrow(), limit);
        *self.over_watch.borrow()
    }

    /// Asks the file system to end everything that is still waiting.
    pub(super) fn interrupt_all(&self) {
        for unique in self.inflight.interrupt_all() {
            self.fs.interrupt(unique);
        }
    }

    /// How long a caller has to wait, and where.
    fn has_to_wait(&self, header: &Header, work: Work) -> Option<(Duration, &Runtime)> {
        let (gate, runtime) = self.gate.as_ref()?;
        let wait = gate.wait(header.caller(), work);
        (!wait.is_zero()).then_some((wait, runtime))
    }

    fn interrupt(&self, unique: u64) {
        match self.inflight.interrupt(unique) {
            Interrupt::Tell => self.fs.interrupt(unique),
            Interrupt::Noted => {}
            Interrupt::Later => {
                // Only the queue that the interrupted request was read from knows it.
                let again = self.queues.iter().any(|queue| queue.interrupt_later(unique));
                if again {
                    std::thread::yield_now();
                }
            }
        }
    }

    fn scratch(&self) -> Vec<u8> {
        self.scratch.lock().pop().unwrap_or_default()
    }

    fn keep_scratch(&self, buf: Vec<u8>) {
        let mut kept = self.scratch.lock();
        if kept.len() < SCRATCH_KEPT {
            kept.push(buf);
        }
    }
}

impl Channel {
    fn work(self: &Arc<Self>) {
        let turns = &self.session.turns;
        let mut buf = vec![0; buffer_len()];
        let mut next = Next::Sleep;
        turns.begin();
        while next != Next::End {
            let looks = next == Next::Look && self.session.more_cores;
            if looks && !self.device.is_ready_within(LOOK) {
                turns.dry();
            }
            next = match self.device.read(&mut buf) {
                Ok(len) => {
                    turns.take(self.device.is_ready());
                    self.handle(&buf[..len]);
                    turns.answer()
                }
                // NOENT: the request was taken back while it was being read.
                Err(Errno::INTR | Errno::AGAIN | Errno::NOENT) => Next::Sleep,
                Err(error) => {
                    turns.leave();
                    if matches!(error, Errno::NODEV | Errno::CONNABORTED) {
                        turns.end();
                    } else {
                        error!(%error, "read a request from the kernel");
                    }
                    break;
                }
            }
        }
        if self.session.threads.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.session.finish();
        }
    }

    /// One request, from bytes to the call that answers it now or later.
    fn handle(self: &Arc<Self>, bytes: &[u8]) {
        let (header, body) = match request::header(bytes) {
            Ok(parts) => parts,
            Err(Malformed) => return warn!(len = bytes.len(), "the kernel sent a request without a header"),
        };
        match request::decode(&header, body, self.session.agreed) {
            Err(Malformed) => {
                warn!(
                    opcode = header.opcode,
                    len = bytes.len(),
                    "the kernel sent a request that makes no sense"
                );
                self.error(header.unique, libc::EIO);
            }
            Ok(Request::Interrupt { unique }) => self.guarded(&header, || self.session.interrupt(unique)),
            Ok(Request::Nothing) => self.answer(header.unique, &[]),
            Ok(Request::Refused(errno)) => self.error(header.unique, errno),
            Ok(Request::Init(_)) => self.error(header.unique, libc::EIO),
            Ok(request) if request.wants_answer() => {
                if request.is_long() {
                    self.session.turns.long();
                }
                self.session.inflight.begin(header.unique);
                match request.work().and_then(|work| self.session.has_to_wait(&header, work)) {
                    Some((wait, runtime)) => self.serve_later(header.unique, bytes.to_vec(), wait, runtime),
                    None => self.serve(&header, request),
                }
            }
            Ok(request) => self.guarded(&header, || dispatch(self, &header, request)),
        }
    }

    fn serve(self: &Arc<Self>, header: &Header, request: Request<'_>) {
        self.guarded(header, || dispatch(self, header, request));
        if self.session.inflight.called(header.unique) {
            self.guarded(header, || self.session.fs.interrupt(header.unique));
        }
    }

    /// Serves a request after a while, or as soon as its caller no longer waits for it.
    fn serve_later(self: &Arc<Self>, unique: u64, bytes: Vec<u8>, wait: Duration, runtime: &Runtime) {
        let channel = Arc::clone(self);
        runtime.spawn(async move {
            let mut left = wait;
            while !left.is_zero() && !channel.session.inflight.is_interrupted(unique) {
                let step = left.min(WAIT_STEP);
                tokio::time::sleep(step).await;
                left -= step;
            }
            // It was understood when it came.
            if let Ok((header, body)) = request::header(&bytes)
                && let Ok(request) = request::decode(&header, body, channel.session.agreed)
            {
                channel.serve(&header, request);
            }
        });
    }

    /// Calls the file system. If it panics the request is answered with EIO, by the drop of its
    /// [`Reply`], and the thread goes on.
    fn guarded(&self, header: &Header, call: impl FnOnce()) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(call)) {
            let text = panic.downcast_ref::<&str>().copied();
            let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("");
            error!(opcode = header.opcode, ino = %header.ino, panic = text, "the file system panicked");
        }
    }

    /// The way to answer request `unique`: `send` writes a good result.
    pub(super) fn reply<T: 'static>(
        self: &Arc<Self>,
        unique: u64,
        send: impl FnOnce(&Self, T) + Send + 'static,
    ) -> Reply<T> {
        let channel = Arc::clone(self);
        Reply::new(move |result| {
            match result {
                Ok(value) => send(&channel, value),
                Err(errno) => channel.error(unique, errno),
            }
            channel.session.inflight.end(unique);
        })
    }

    /// Sends a good result.
    pub(super) fn answer(&self, unique: u64, parts: &[&[u8]]) {
        self.sent(unique, self.device.answer(unique, 0, parts));
    }

    /// Sends an errno.
    pub(super) fn error(&self, unique: u64, errno: i32) {
        let errno = if errno == 0 { libc::EIO } else { errno };
        self.sent(unique, self.device.answer(unique, errno, &[]));
    }

    fn sent(&self, unique: u64, done: Result<(), Errno>) {
        match done {
            // NOENT: nobody waits for this request any more. NODEV, PERM: the mount is gone.
            Ok(()) | Err(Errno::NOENT | Errno::NODEV | Errno::PERM) => {}
            Err(error) => warn!(unique, %error, "answer a request"),
        }
    }

    /// Sends the bytes of a READ, never more than `size`.
    pub(super) fn data(&self, unique: u64, size: u32, data: Data) {
        let size = size.min(FUSE_IO_MAX) as usize;
        match data {
            Data::Bytes(parts) => {
                let mut left = size;
                let mut cut = Vec::with_capacity(parts.len());
                for part in &parts {
                    let part = &part[..part.len().min(left)];
                    left -= part.len();
                    if !part.is_empty() {
                        cut.push(part);
                    }
                }
                self.answer(unique, &cut);
            }
            Data::Local { file, offset, len } => {
                let len = len.min(size);
                let mut buf = self.session.scratch();
                if buf.len() < len {
                    buf.resize(len, 0);
                }
                match read_full(&mut buf[..len], |part, done| file.read_at(part, offset + done)) {
                    Ok(got) => self.answer(unique, &[&buf[..got]]),
                    Err(e) => {
                        warn!(error = %e, "read a local file");
                        self.error(unique, e.errno());
                    }
                }
                self.session.keep_scratch(buf);
            }
        }
    }

    /// Sends what `fill` puts into a buffer.
    pub(super) fn packed(&self, unique: u64, fill: impl FnOnce(&mut Vec<u8>)) {
        let mut buf = self.session.scratch();
        buf.clear();
        fill(&mut buf);
        self.answer(unique, &[&buf]);
        self.session.keep_scratch(buf);
    }
}

/// Reads until the buffer is full or the file ends.
fn read_full(buf: &mut [u8], mut read: impl FnMut(&mut [u8], u64) -> Result<usize>) -> Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match read(&mut buf[done..], done as u64)? {
            0 => break,
            got => done += got.min(buf.len() - done),
        }
    }
    if done < buf.len() {
        debug!(wanted = buf.len(), got = done, "a local file ends early");
    }
    Ok(done)
}
