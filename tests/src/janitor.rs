//! Clears away what aborted test runs of this user left: processes, mounts, namespaces, directories.
//!
//! Every [`crate::lab::Lab`] keeps a lock on the file `alive` in its directory. A directory whose file can
//! be locked belongs to nobody any more.

use crate::{mounts, netns, sys};
use std::fs::File;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The directory all labs of this user are in.
///
/// # Panics
/// When it can't be made, or belongs to somebody else.
pub fn labs_root() -> PathBuf {
    let root = std::env::temp_dir().join(format!("hfcache-tests-{}", sys::uid()));
    if let Err(why) = std::fs::DirBuilder::new().mode(0o755).create(&root) {
        assert_eq!(why.kind(), std::io::ErrorKind::AlreadyExists, "make {}: {why}", root.display());
    }
    let found = std::fs::symlink_metadata(&root).expect("look at the directory of all test clusters");
    assert!(found.is_dir() && found.uid() == sys::uid(), "{} is not our directory", root.display());
    root
}

/// Processes with a path below `root` among their arguments: the nodes of that lab, and no others, because a
/// lab's path is unique.
pub fn processes_of(root: &Path) -> Vec<u32> {
    let needle = format!("{}/", root.display()).into_bytes();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        if pid == std::process::id() || pid <= 1 {
            continue;
        }
        let Ok(arguments) = std::fs::read(entry.path().join("cmdline")) else { continue };
        if arguments.windows(needle.len()).any(|w| w == needle) {
            found.push(pid);
        }
    }
    found
}

/// Ends a lab's processes, detaches its mounts and removes its directory. Never removes anything through a
/// mount that would not go.
pub fn clear(root: &Path) {
    for pid in processes_of(root) {
        let _ = sys::kill(pid, libc::SIGKILL);
    }
    mounts::detach_below(root);
    if mounts::below(root).is_empty() {
        let _ = std::fs::remove_dir_all(root);
    }
}

/// Clears the labs nobody owns. Called with the machine lock held.
pub fn sweep() {
    for entry in std::fs::read_dir(labs_root()).into_iter().flatten().flatten() {
        let root = entry.path();
        if !entry.file_type().is_ok_and(|t| t.is_dir()) {
            continue;
        }
        let abandoned = match File::open(root.join("alive")) {
            Ok(file) => file.try_lock().is_ok(),
            Err(_) => true,
        };
        if abandoned {
            clear(&root);
        }
    }
    netns::sweep();
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn an_abandoned_lab_is_cleared_with_its_processes() {
        let root = labs_root().join(format!("janitor-{}", std::process::id()));
        std::fs::create_dir_all(root.join("n1")).unwrap();
        let mut child = Command::new("tail")
            .arg("-F")
            .arg(root.join("n1/log"))
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        crate::eventually("the process shows up", std::time::Duration::from_secs(20), || {
            processes_of(&root) == [child.id()]
        });
        clear(&root);
        assert!(!child.wait().unwrap().success());
        assert!(!root.exists());
    }
}
