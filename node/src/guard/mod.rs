//! A small process beside every node that takes the mount away when the node dies without a word (SIGKILL, out
//! of memory). Else a dead mount stays: every access fails with ENOTCONN, and even `mkdir -p` of the mount point
//! in a start script does.
//!
//! The node holds one end of a pipe; when it is gone the guard reads the end of the file. A node that starts
//! at that moment cleans up as well, so both do it under a lock, and the guard looks whether the mount on top
//! is still the one it was made for.
//!
//! Until then it lists directories of the mount when the node asks for it ([`listing`]), which the node can't do
//! itself: a process that waits for a mount which it serves can't be killed.

mod listing;

use crate::data::DataDir;
use crate::place::Place;
use crate::preflight::{self, MountEntry};
use anyhow::{Context, Result, bail};
use hfcache_base::InodeId;
use hfcache_fuse::ops::{Listed, Lister};
use listing::Asker;
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long the kernel may take to notice that the node is gone.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The guard of a mount, from the node's side. Dropped after the node has unmounted.
#[derive(Debug)]
pub struct Guard {
    child: Child,
    asker: Arc<Asker>,
    hears: Option<JoinHandle<()>>,
}

impl Guard {
    /// Starts one for the mount that is at `point` now, and shows of the tree what `place` says. What comes of the
    /// listings that [`Guard::lister`] is asked for is told to `told`.
    ///
    /// # Errors
    /// Nothing is mounted there, or no process can be started.
    pub fn start(
        data: &DataDir,
        point: &Path,
        place: Place,
        told: impl Fn(InodeId, Listed) + Send + 'static,
    ) -> Result<Self> {
        let mounted = top(point).context("the new mount is not listed")?;
        let mut child = Command::new("/proc/self/exe")
            .arg0("hfcache")
            .args(["guard", "--device", &mounted.device, "--point"])
            .arg(point)
            .arg("--data")
            .arg(data.path())
            // Not in the way of who waits for the end of the node's output, and not hit by its Ctrl-C.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("start the guard of the mount")?;
        let (input, output) =
            child.stdin.take().zip(child.stdout.take()).context("the pipes of the guard")?;
        let asker = Asker::new(input, place)?;
        let hearing = Arc::clone(&asker);
        let hears = std::thread::Builder::new().name("guard".to_owned());
        let hears =
            hears.spawn(move || hearing.hear(output, told)).context("start a thread for the guard")?;
        Ok(Self { child, asker, hears: Some(hears) })
    }

    /// Who lists directories of the mount, for as long as the guard lives.
    pub fn lister(&self) -> Arc<dyn Lister> {
        Arc::clone(&self.asker) as _
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // It finds nothing to do and ends.
        self.asker.close();
        if let Err(e) = self.child.wait() {
            tracing::debug!(error = %e, "wait for the guard of the mount");
        }
        // Its pipe is closed now.
        let _ = self.hears.take().map(JoinHandle::join);
    }
}

/// Only one at a time looks at what is mounted and changes it: a node that mounts, or a guard.
///
/// # Errors
/// Whatever the disk says.
pub fn lock(data: &DataDir) -> Result<File> {
    let path = data.path().join("mount.lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| format!("open {}", path.display()))?;
    file.lock().with_context(|| format!("lock {}", path.display()))?;
    Ok(file)
}

/// What is visible at a mount point.
fn top(point: &Path) -> Option<MountEntry> {
    preflight::mounts().into_iter().rev().find(|m| m.point == point)
}

/// The guard's own life: waits for the end of the node, then unmounts what it left.
///
/// # Errors
/// The kernel refuses.
pub fn watch(data: &DataDir, point: &Path, device: &str) -> Result<()> {
    let mut node = std::io::stdin().lock();
    if let Err(e) = listing::serve(&mut node, std::io::stdout().lock(), point, device) {
        // Its first duty does not depend on it.
        eprintln!("hfcache: listings for the node: {e:#}");
        std::io::copy(&mut node, &mut std::io::sink()).context("wait for the end of the node")?;
    }
    let start = Instant::now();
    loop {
        let held = lock(data)?;
        let ours = top(point).is_some_and(|m| m.kind == preflight::MOUNT_TYPE && m.device == device);
        if !ours {
            return Ok(());
        }
        if matches!(rustix::fs::statfs(point), Err(Errno::NOTCONN | Errno::CONNABORTED)) {
            return unmount(point);
        }
        drop(held);
        if start.elapsed() > PATIENCE {
            bail!("{} is still served by somebody", point.display());
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Takes a mount away, whoever looks at it.
///
/// # Errors
/// The kernel or the helper refuses.
pub fn unmount(point: &Path) -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return rustix::mount::unmount(point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
            .with_context(|| format!("unmount {}", point.display()));
    }
    let helper = Command::new("fusermount3").args(["-u", "-z", "--"]).arg(point).output();
    let out = helper.context("run fusermount3")?;
    if !out.status.success() {
        bail!("unmount {}: {}", point.display(), String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(())
}
