//! Finds the `hfcache` binary that belongs to the running tests, and builds it if need be.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

static BINARY: OnceLock<PathBuf> = OnceLock::new();

/// The binary under test: `HFCACHE_BIN`, or the one of the same profile next to the test executable. The
/// latter is brought up to date first, once per test process, so that no test ever judges yesterday's code.
///
/// # Panics
/// When there is none and it can't be built.
pub fn hfcache() -> &'static Path {
    BINARY.get_or_init(|| match std::env::var_os("HFCACHE_BIN") {
        Some(path) => {
            let path = PathBuf::from(path);
            assert!(path.is_file(), "HFCACHE_BIN names no file: {}", path.display());
            path
        }
        None => build(),
    })
}

/// Root of the work tree.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests are a directory of the workspace")
}

/// `target/`, wherever it was moved to; and the directory of this profile in it.
pub fn target_dirs() -> (PathBuf, PathBuf) {
    let exe = std::env::current_exe().expect("find the running test");
    // TARGET[/TRIPLE]/PROFILE/deps/NAME-HASH, or TARGET[/TRIPLE]/PROFILE/NAME for a binary.
    let mut profile = exe.parent().expect("a file has a directory");
    if profile.ends_with("deps") {
        profile = profile.parent().expect("deps is in the profile's directory");
    }
    let up = profile.parent().expect("a profile is in the target directory");
    let target = if up.join("CACHEDIR.TAG").is_file() && up.join(".rustc_info.json").is_file() {
        up
    } else {
        up.parent().unwrap_or(up)
    };
    (target.to_owned(), profile.to_owned())
}

fn build() -> PathBuf {
    let (target, profile_dir) = target_dirs();
    let binary = profile_dir.join("hfcache");
    let profile = match profile_dir.file_name().and_then(|n| n.to_str()) {
        Some("debug") | None => "dev",
        Some(other) => other,
    };
    let guard = File::create(target.join("hfcache-tests.lock")).expect("make the build lock");
    guard.lock().expect("wait for the build lock");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // With the workspace selected, features are those of the run that built this test: nothing is built twice.
    let mut command = Command::new(cargo);
    command.current_dir(workspace()).args([
        "build",
        "--workspace",
        "--bin",
        "hfcache",
        "--quiet",
        "--profile",
        profile,
    ]);
    // Test runners set these for the test; for a build of another package they would only force a rebuild.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|n| n.starts_with("CARGO_PKG_") || n.starts_with("CARGO_MANIFEST")) {
            command.env_remove(&name);
        }
    }
    let built = command.status().expect("run cargo build");
    assert!(built.success(), "cargo build of hfcache failed: {built}");
    assert!(binary.is_file(), "cargo built no {}", binary.display());
    binary
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_directory_is_found() {
        let (target, profile) = target_dirs();
        assert!(profile.starts_with(&target));
        assert!(target.join("CACHEDIR.TAG").is_file(), "{}", target.display());
        assert!(workspace().join("deny.toml").is_file());
    }
}
