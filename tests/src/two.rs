//! Helpers for checks that do something on one node and look at it on another.

use crate::{Checks, Cluster, within};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A check on one directory; longer means that a call hangs.
const PATIENCE: Duration = Duration::from_secs(150);

/// A check by its name.
pub type Check = (&'static str, fn(&Two));

/// Runs checks on a cluster, each in a new directory of its own.
///
/// # Panics
/// When any has failed.
pub fn on_cluster(name: &str, all: &[Check]) {
    let cluster = Cluster::start(name, 3);
    run(&cluster.path(0, ""), &cluster.path(1, ""), all);
}

/// Runs checks on the local file system, with both views the same: shows that the checks themselves are right.
///
/// # Panics
/// When any has failed.
pub fn on_local(name: &str, all: &[Check]) {
    let root = crate::binary::target_dirs().0.join(format!("hfcache-tests/{name}-{}", std::process::id()));
    fs::create_dir_all(&root).expect("make a local directory");
    run(&root, &root, all);
    fs::remove_dir_all(root).expect("clear away");
}

fn run(a: &Path, b: &Path, all: &[Check]) {
    let mut checks = Checks::default();
    for &(name, body) in all {
        let two = Two { a: a.join(name), b: b.join(name) };
        checks.run(name, || {
            fs::create_dir(&two.a).expect("make the check's directory");
            within(PATIENCE, name, move || body(&two));
        });
    }
    checks.finish();
}

/// The same directory, fresh, seen through two nodes.
#[derive(Clone, Debug)]
pub struct Two {
    /// As one node sees it.
    pub a: PathBuf,
    /// As another does.
    pub b: PathBuf,
}

impl Two {
    /// One name in it, through each.
    pub fn both(&self, name: &str) -> (PathBuf, PathBuf) {
        (self.a.join(name), self.b.join(name))
    }
}

/// The error number of a call that must fail.
///
/// # Panics
/// When it does not.
#[track_caller]
pub fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.expect_err("the call must fail").raw_os_error().expect("an error of the system")
}

/// Writes a file.
///
/// # Panics
/// When that fails.
#[track_caller]
pub fn write(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap_or_else(|why| panic!("write {}: {why}", path.display()));
}

/// Reads a file.
///
/// # Panics
/// When that fails.
#[track_caller]
pub fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|why| panic!("read {}: {why}", path.display()))
}

/// Attributes of what a path names, itself.
///
/// # Panics
/// When that fails.
#[track_caller]
pub fn stat(path: &Path) -> fs::Metadata {
    fs::symlink_metadata(path).unwrap_or_else(|why| panic!("stat {}: {why}", path.display()))
}

/// When it was read last, to the nanosecond.
///
/// # Panics
/// As [`stat`].
pub fn atime(path: &Path) -> (i64, i64) {
    let found = stat(path);
    (found.atime(), found.atime_nsec())
}

/// All names in a directory, sorted.
///
/// # Panics
/// When listing fails.
pub fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .expect("list a directory")
        .map(|e| e.expect("list a directory").file_name().into_string().expect("plain names"))
        .collect();
    names.sort();
    names
}

/// Compares what must be the same on every node.
///
/// # Panics
/// When it is not.
#[track_caller]
pub fn same_stat(a: &Path, b: &Path) {
    let (x, y) = (stat(a), stat(b));
    let of = |m: &fs::Metadata| {
        let times = [(m.mtime(), m.mtime_nsec()), (m.ctime(), m.ctime_nsec())];
        (m.ino(), m.mode(), m.nlink(), m.uid(), m.gid(), m.size(), times)
    };
    assert_eq!(of(&x), of(&y), "{} on two nodes", a.display());
}
