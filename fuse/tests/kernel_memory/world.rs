//! A mounted [`Memory`], and what tests need around it.

use super::Memory;
use hfcache_fuse::kernel::{Mount, MountOptions};
use hfcache_fuse::ops::FileSystem;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// An empty directory in `/tmp`, gone when dropped.
pub struct TempDir(pub PathBuf);

impl TempDir {
    /// A new one.
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("hfcache-kernel-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path.canonicalize().unwrap())
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        // Whatever a failed test left mounted here.
        while mounts().iter().any(|point| point == &self.0) {
            let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
        }
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Every mount point there is now.
pub fn mounts() -> Vec<PathBuf> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    text.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from).collect()
}

/// A mounted [`Memory`]. Unmounted before its directory goes.
pub struct World {
    /// The file system.
    pub fs: Arc<Memory>,
    /// The mount.
    pub mount: Mount,
    /// Where.
    pub dir: TempDir,
}

impl World {
    /// Mounts.
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    /// Mounts with other options.
    pub fn with(change: impl FnOnce(&mut MountOptions)) -> Self {
        let dir = TempDir::new();
        let fs = Arc::new(Memory::default());
        let mut options = MountOptions::new(&dir.0);
        change(&mut options);
        let mount = Mount::start(options, Arc::clone(&fs) as Arc<dyn FileSystem>).unwrap();
        Self { fs, mount, dir }
    }

    /// A path in the mount.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.0.join(name)
    }
}

/// Waits until something is so, and gives up after 20 seconds.
pub fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    for _ in 0..20_000 {
        if so() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("never: {what}");
}

/// Whether nothing is mounted here.
pub fn unmounted(path: &Path) -> bool {
    !mounts().iter().any(|point| point == path)
}
