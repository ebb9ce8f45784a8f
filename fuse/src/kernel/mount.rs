//! Mounting and unmounting.

use super::abi::cap;
use super::device::Device;
use super::notify::Notifier;
use super::session::Session;
use super::{helper, init, table};
use crate::ops::{FileSystem, Gate, Notify};
use hfcache_base::limits::FUSE_IO_MAX;
use hfcache_base::{Error, Kind, Result};
use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;
use tokio::sync::watch;
use tracing::{info, warn};

/// The file system type in the table of mounts.
const TYPE: &str = "fuse.hfcache";
/// Longest wait for what is under way, before those who still wait are sent away.
const DRAIN: Duration = Duration::from_secs(2);
/// Longest wait for the file system to answer those it was told to interrupt.
const DRAIN_INTERRUPTED: Duration = Duration::from_secs(1);
/// Longest wait for the kernel to let go after an unmount.
const LET_GO: Duration = Duration::from_secs(5);
/// Longest wait for a `statfs` of what is mounted already.
const PROBE: Duration = Duration::from_secs(5);

/// Where and how to mount.
#[derive(Clone)]
pub struct MountOptions {
    /// An empty directory.
    pub point: PathBuf,
    /// The first column of `df`.
    pub fsname: String,
    /// Other users may use the mount. Without root only where `/etc/fuse.conf` has `user_allow_other`;
    /// elsewhere the mount is made without it, with a warning.
    pub allow_other: bool,
    /// No writes.
    pub read_only: bool,
    /// The kernel checks permissions by the attributes it is shown; without, the file system must.
    pub kernel_checks: bool,
    /// Threads that take requests; 0 chooses.
    pub threads: usize,
    /// How far the kernel reads ahead; only root can raise it over 128.
    pub readahead_kib: u32,
    /// The threads run in the context of this runtime, so that the file system can spawn tasks.
    pub runtime: Option<tokio::runtime::Handle>,
    /// Who has to wait, and how long; needs a runtime to wait in.
    pub gate: Option<Arc<dyn Gate>>,
    /// The FUSE device.
    pub device: PathBuf,
}

impl MountOptions {
    /// The usual options for a mount here.
    pub fn new(point: impl Into<PathBuf>) -> Self {
        Self {
            point: point.into(),
            fsname: "hfcache".to_owned(),
            allow_other: true,
            read_only: false,
            kernel_checks: true,
            threads: 0,
            readahead_kib: 4096,
            runtime: None,
            gate: None,
            device: PathBuf::from("/dev/fuse"),
        }
    }

    fn threads(&self) -> usize {
        // Handlers do not wait for the network, so more threads than this only share the same locks.
        let cores = || std::thread::available_parallelism().map_or(4, std::num::NonZero::get);
        if self.threads == 0 { cores().clamp(4, 6) } else { self.threads.min(64) }
    }
}

/// A mounted file system. Unmounted when dropped.
pub struct Mount {
    session: Arc<Session>,
    point: PathBuf,
    /// Device number of the mount.
    number: (u32, u32),
    by_helper: bool,
    done: Mutex<bool>,
}

impl std::fmt::Debug for Mount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mount").field("point", &self.point).finish_non_exhaustive()
    }
}

impl Mount {
    /// Mounts and begins to serve. Blocks for some milliseconds, and longer if a dead mount has to go.
    ///
    /// # Errors
    /// Each says what to do: no device, no permission, a mount point that is missing, no directory, not
    /// empty, or taken.
    pub fn start(options: MountOptions, fs: Arc<dyn FileSystem>) -> Result<Self> {
        let point = prepare(&options.point)?;
        let by_helper = !rustix::process::geteuid().is_root();
        let device = if by_helper { mount_by_helper(&point, &options)? } else { mount(&point, &options)? };
        let served = Self::serve(&point, by_helper, device, &options, fs);
        if served.is_err() {
            // The device is closed by now, so that nothing can hang on it.
            if let Err(error) = detach(&point, by_helper) {
                warn!(point = %point.display(), %error, "unmount after a failed start");
            }
        }
        served
    }

    fn serve(
        point: &Path,
        by_helper: bool,
        device: Device,
        options: &MountOptions,
        fs: Arc<dyn FileSystem>,
    ) -> Result<Self> {
        let device = Arc::new(device);
        let agreed = init::negotiate(&device, options.kernel_checks)?;
        let mounted = table::top(point)?.filter(|mounted| mounted.kind == TYPE);
        let number = mounted
            .map(|mounted| (mounted.major, mounted.minor))
            .ok_or_else(|| Error::new(Kind::Internal, "the new mount is not in /proc/self/mountinfo"))?;
        let threads = options.threads();
        let mut queues = vec![Arc::clone(&device)];
        while queues.len() < threads {
            match device.another(&options.device) {
                Ok(queue) => queues.push(Arc::new(queue)),
                Err(error) => {
                    // A user may not be able to open the device: then the threads share one queue.
                    info!(%error, queues = queues.len(), "share a queue of requests");
                    break;
                }
            }
        }
        let notifier = Arc::new(Notifier::new(device, agreed));
        info!(
            point = %point.display(),
            protocol = agreed.kernel_minor,
            flags = format_args!("{:#x}", agreed.flags),
            threads,
            queues = queues.len(),
            epochs = notifier.can_expire_names(),
            "mounted"
        );
        for (flag, lost) in [(cap::POSIX_LOCKS, "fcntl locks"), (cap::FLOCK_LOCKS, "flock")] {
            if agreed.flags & flag == 0 {
                warn!("this kernel keeps {lost} to itself: they will not exclude other nodes");
            }
        }
        fs.mounted(notifier);
        let gate = options.gate.clone().zip(options.runtime.clone());
        let session = Session::new(fs, gate, queues, agreed);
        session.spawn(threads, options.runtime.as_ref())?;
        if let Err(error) = raise_readahead(number, options.readahead_kib) {
            info!(%error, "readahead stays at the kernel's default");
        }
        Ok(Self { session, point: point.to_owned(), number, by_helper, done: Mutex::new(false) })
    }

    /// Where it is mounted, without symbolic links.
    pub fn point(&self) -> &Path {
        &self.point
    }

    /// Turns true when the kernel will ask nothing any more: after [`Mount::unmount`], or because someone
    /// else unmounted it.
    pub fn watch(&self) -> watch::Receiver<bool> {
        self.session.watch()
    }

    /// Waits until the kernel will ask nothing any more.
    pub async fn ended(&self) {
        // The sender lives in the session, which `self` holds.
        let _ = self.watch().wait_for(|over| *over).await;
    }

    /// Unmounts. If the mount is in use, what is under way may end (for some seconds), then it goes away
    /// under its users: their open files fail with ENOTCONN. Blocks; the second call does nothing.
    ///
    /// # Errors
    /// The kernel or fusermount3 refuses; the session goes on then.
    pub fn unmount(&self) -> Result<()> {
        let mut done = self.done.lock();
        if *done || self.session.wait_over(Duration::ZERO) {
            return Ok(());
        }
        let ours = |m: &table::Mounted| m.kind == TYPE && (m.major, m.minor) == self.number;
        if table::top(&self.point)?.as_ref().is_some_and(ours) {
            self.take_down()?;
        } else {
            warn!(point = %self.point.display(), "something else is mounted over the mount, or it is gone");
        }
        if !self.session.wait_over(LET_GO) {
            // Another mount namespace or a bind mount still holds it.
            self.abort();
            if !self.session.wait_over(Duration::from_secs(1)) {
                warn!(point = %self.point.display(), "someone still holds the mount; it dies with this process");
                self.session.finish();
            }
        }
        *done = true;
        info!(point = %self.point.display(), "unmounted");
        Ok(())
    }

    fn take_down(&self) -> Result<()> {
        let busy = if self.by_helper {
            helper::unmount(&self.point, false).is_err()
        } else {
            match rustix::mount::unmount(&self.point, UnmountFlags::NOFOLLOW) {
                Ok(()) | Err(Errno::INVAL | Errno::NOENT) => false,
                Err(Errno::BUSY) => true,
                Err(e) => {
                    return Err(Error::io(e.into()).context(format!("unmount {}", self.point.display())));
                }
            }
        };
        if !busy {
            return Ok(());
        }
        if !self.session.inflight.wait_idle(DRAIN) {
            self.session.interrupt_all();
            self.session.inflight.wait_idle(DRAIN_INTERRUPTED);
        }
        if self.by_helper {
            helper::unmount(&self.point, true)?;
            self.abort();
            return Ok(());
        }
        // FORCE ends the connection, so that open files can't keep it alive for ever.
        let flags = UnmountFlags::NOFOLLOW | UnmountFlags::FORCE | UnmountFlags::DETACH;
        match rustix::mount::unmount(&self.point, flags) {
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
            Err(e) => Err(Error::io(e.into()).context(format!("unmount {}", self.point.display()))),
        }
    }

    /// Ends the connection through its control file, where that is mounted; its owner may.
    fn abort(&self) {
        let path = format!("/sys/fs/fuse/connections/{}/abort", self.number.1);
        if let Err(error) = std::fs::write(&path, "1") {
            info!(%error, path, "end the FUSE connection");
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = self.unmount() {
            warn!(point = %self.point.display(), %error, "unmount");
        }
    }
}

/// The mount point, checked, with a dead mount of ours taken away.
fn prepare(wanted: &Path) -> Result<PathBuf> {
    let shown = wanted.display();
    let point = resolve(wanted)?;
    // Daemons that died one after the other may have left a pile.
    for _ in 0..16 {
        let Some(mounted) = table::top(&point)? else { break };
        let dead = match is_dead(&point) {
            Some(dead) => dead,
            None => {
                let message = format!("the {} mount at {shown} does not answer: unmount it", mounted.kind);
                return Err(Error::new(Kind::Busy, message));
            }
        };
        match (mounted.kind == TYPE, dead) {
            (true, true) => {
                info!(point = %point.display(), "take away the mount of a daemon that died");
                detach(&point, !rustix::process::geteuid().is_root())?;
            }
            (true, false) => {
                return Err(Error::new(Kind::Busy, format!("an hfcache is mounted at {shown} already")));
            }
            (false, true) => {
                let message = format!("a dead {} mount is at {shown}: unmount it", mounted.kind);
                return Err(Error::new(Kind::Busy, message));
            }
            (false, false) => break,
        }
    }
    let point = std::fs::canonicalize(&point).map_err(|e| missing(wanted, e))?;
    let meta = std::fs::metadata(&point).map_err(|e| missing(wanted, e))?;
    if !meta.is_dir() {
        return Err(Error::new(Kind::NotDirectory, format!("mount point {shown} is not a directory")));
    }
    let mut entries = std::fs::read_dir(&point).map_err(|e| Error::io(e).context(format!("list {shown}")))?;
    if entries.next().is_some() {
        let message =
            format!("mount point {shown} is not empty: its files would be hidden. Choose another one");
        return Err(Error::new(Kind::NotEmpty, message));
    }
    Ok(point)
}

fn missing(point: &Path, e: std::io::Error) -> Error {
    let shown = point.display();
    if e.kind() == std::io::ErrorKind::NotFound {
        return Error::new(
            Kind::NotFound,
            format!("mount point {shown} is missing: make it with `mkdir -p {shown}`"),
        );
    }
    Error::io(e).context(format!("look at mount point {shown}"))
}

/// The path without symbolic links, found without touching what may be mounted there.
fn resolve(wanted: &Path) -> Result<PathBuf> {
    let absolute = std::path::absolute(wanted).map_err(|e| missing(wanted, e))?;
    let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
        return Err(Error::new(Kind::Invalid, format!("{} can't be a mount point", wanted.display())));
    };
    let path = std::fs::canonicalize(parent).map_err(|e| missing(wanted, e))?.join(name);
    if table::top(&path)?.is_some() {
        return Ok(path);
    }
    match std::fs::read_link(&path) {
        Ok(target) => resolve_link(wanted, &path, &target),
        Err(_) => Ok(path),
    }
}

/// A mount point that is itself a symbolic link; one level of it may lead to a dead mount.
fn resolve_link(wanted: &Path, link: &Path, target: &Path) -> Result<PathBuf> {
    let joined = link.parent().unwrap_or(Path::new("/")).join(target);
    let (Some(parent), Some(name)) = (joined.parent(), joined.file_name()) else {
        return Ok(link.to_owned());
    };
    Ok(std::fs::canonicalize(parent).map_err(|e| missing(wanted, e))?.join(name))
}

/// Whether the server of a mount is gone; `None` if it does not answer. Asks with `statfs`, on a thread of its own:
/// that always goes to the server, while the kernel may answer a `stat` for a dead one from what it remembers.
pub fn is_dead(point: &Path) -> Option<bool> {
    let (send, receive) = mpsc::sync_channel(1);
    let point = point.to_owned();
    let look = move || {
        let asked = rustix::fs::statfs(&point);
        let _ = send.send(matches!(asked, Err(Errno::NOTCONN | Errno::CONNABORTED)));
    };
    std::thread::Builder::new().name("probe-mount".to_owned()).spawn(look).ok()?;
    receive.recv_timeout(PROBE).ok()
}

/// Takes a dead mount away, whoever has files open in it.
fn detach(point: &Path, by_helper: bool) -> Result<()> {
    if by_helper {
        return helper::unmount(point, true);
    }
    rustix::mount::unmount(point, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)
        .map_err(|e| Error::io(e.into()).context(format!("unmount {}", point.display())))
}

fn mount(point: &Path, options: &MountOptions) -> Result<Device> {
    let device = Device::open(&options.device)?;
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let mut data = format!(
        "fd={},rootmode=40000,user_id={uid},group_id={gid},max_read={FUSE_IO_MAX}",
        device.as_fd().as_raw_fd()
    );
    if options.kernel_checks {
        data.push_str(",default_permissions");
    }
    if options.allow_other {
        data.push_str(",allow_other");
    }
    let data = CString::new(data).map_err(|_| Error::from(Kind::Invalid))?;
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
    if options.read_only {
        flags |= MountFlags::RDONLY;
    }
    match rustix::mount::mount(options.fsname.as_str(), point, TYPE, flags, data.as_c_str()) {
        Ok(()) => Ok(device),
        Err(e @ (Errno::PERM | Errno::ACCESS)) => Err(Error::new(
            Kind::NotPermitted,
            "the kernel refuses to mount: it needs CAP_SYS_ADMIN (in a container `--cap-add SYS_ADMIN`, and \
             AppArmor must allow mount), or run as a user who is not root, with fusermount3 installed",
        )
        .with_source(std::io::Error::from(e))),
        Err(e @ Errno::NODEV) => Err(Error::new(Kind::NoDevice, "this kernel has no FUSE: `modprobe fuse`")
            .with_source(std::io::Error::from(e))),
        Err(e) => Err(Error::io(e.into()).context(format!("mount at {}", point.display()))),
    }
}

fn mount_by_helper(point: &Path, options: &MountOptions) -> Result<Device> {
    if !options.device.exists() {
        // Says what is missing better than the helper does.
        Device::open(&options.device)?;
    }
    if options.fsname.contains(',') {
        return Err(Error::new(Kind::Invalid, "a comma in the name of the file system"));
    }
    let mut text = format!("fsname={},subtype=hfcache,nosuid,nodev,max_read={FUSE_IO_MAX}", options.fsname);
    if options.kernel_checks {
        text.push_str(",default_permissions");
    }
    if options.read_only {
        text.push_str(",ro");
    }
    if options.allow_other {
        if helper::user_allow_other() {
            match helper::mount(point, &format!("{text},allow_other")) {
                Ok(device) => return Ok(device),
                Err(error) => warn!(%error, "mount for all users; try for this one only"),
            }
        } else {
            warn!("only this user can use the mount: `user_allow_other` is not in /etc/fuse.conf");
        }
    }
    helper::mount(point, &text)
}

fn raise_readahead((major, minor): (u32, u32), kib: u32) -> Result<()> {
    let path = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    std::fs::write(&path, kib.to_string()).map_err(|e| Error::io(e).context(format!("write {path}")))
}
