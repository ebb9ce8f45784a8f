//! Where a suite is run: an ext4 file system made for it, or the mount of a node of a cluster.

use super::tools;
use crate::{Cluster, Lab, janitor, mounts, sys};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Enough for every suite; the image is sparse.
const IMAGE_BYTES: u64 = 4 << 30;
/// What a suite may take on a busy machine, with both places.
const PATIENCE: Duration = Duration::from_secs(1800);

/// A cluster of three nodes and an ext4 file system, side by side.
#[derive(Debug)]
pub struct Places {
    ext4: PathBuf,
    other: PathBuf,
    cluster: Option<Cluster>,
    lab: std::sync::Arc<Lab>,
}

impl Places {
    /// Makes both.
    ///
    /// # Panics
    /// Without root: the suites change users and mount file systems.
    pub fn new(name: &str, patience: Option<Duration>) -> Self {
        assert!(
            sys::is_root(),
            "{name} needs root: it changes users, makes devices, and mounts an ext4 image"
        );
        let lab = std::sync::Arc::new(Lab::with_patience(name, patience.unwrap_or(PATIENCE)));
        let image = lab.root().join("ext4.img");
        let file = std::fs::File::create_new(&image).expect("make the image");
        file.set_len(IMAGE_BYTES).expect("size the image");
        let image = image.to_str().expect("a plain path");
        tools::call(&tools::from_debian("mkfs.ext4", "e2fsprogs"), &["-q", "-F", image]);
        let (ext4, other) = (lab.dir("e4"), lab.dir("other"));
        let at = ext4.to_str().expect("a plain path");
        tools::call(&tools::from_debian("mount", "mount"), &["-o", "loop", image, at]);
        sys::mount_tmpfs(&other, 64 << 20).expect("mount a tmpfs");
        let cluster = Some(Cluster::start_in(&lab, "", 3));
        Self { ext4, other, cluster, lab }
    }

    /// A new directory on ext4.
    pub fn ext4(&self, name: &str) -> PathBuf {
        fresh(&self.ext4, name)
    }

    /// The same on the mount of the first node.
    pub fn mount(&self, name: &str) -> PathBuf {
        fresh(&self.cluster().path(0, ""), name)
    }

    /// A file system that is neither.
    pub fn other(&self) -> &Path {
        &self.other
    }

    /// A place for files of the test itself.
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.lab.dir(name)
    }

    /// The cluster.
    ///
    /// # Panics
    /// After [`Places::finish`].
    pub fn cluster(&self) -> &Cluster {
        self.cluster.as_ref().expect("the cluster runs")
    }

    /// Every node still runs, the cluster is healthy, and all end cleanly when they are asked to.
    ///
    /// # Panics
    /// When any of that is not so.
    pub fn finish(mut self) {
        let mut cluster = self.cluster.take().expect("the cluster runs");
        cluster.wait_healthy();
        cluster.stop_all();
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        self.cluster = None;
        // A suite that hangs may still hold them.
        for pid in janitor::processes_of(self.lab.root()) {
            let _ = sys::kill(pid, libc::SIGKILL);
        }
        mounts::detach_below(&self.ext4);
        mounts::detach_below(&self.other);
    }
}

fn fresh(root: &Path, name: &str) -> PathBuf {
    let dir = root.join(name);
    std::fs::create_dir(&dir).unwrap_or_else(|why| panic!("make {}: {why}", dir.display()));
    dir
}
