//! The program of `tests/hf/rust`, which uses the crate `hf-hub`.

use crate::{binary, node};
use serde_json::Value;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

/// Its first build downloads and compiles some 300 crates.
const BUILD: Duration = Duration::from_secs(900);

static PROGRAM: OnceLock<PathBuf> = OnceLock::new();

/// The program, built with exactly what its Cargo.lock pins, once per test process.
///
/// # Panics
/// When it can't be built: no crates.io, most likely.
pub fn hub_user() -> &'static Path {
    PROGRAM.get_or_init(build)
}

fn build() -> PathBuf {
    let base = binary::target_dirs().0.join("hfcache-tests");
    std::fs::create_dir_all(&base).expect("make a directory for the build");
    let guard = File::create(base.join("hub-user.lock")).expect("make the build lock");
    guard.lock().expect("wait for the build lock");
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .current_dir(super::sources().join("rust"))
        .args(["build", "--locked", "--quiet", "--message-format", "json", "--target-dir"])
        .arg(base.join("hub-user"));
    // What the test runner set is about another package.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|n| n.starts_with("CARGO_PKG_") || n.starts_with("CARGO_MANIFEST")) {
            command.env_remove(&name);
        }
    }
    let built = node::run(command, BUILD).unwrap_or_else(|| panic!("hub-user is not built within {BUILD:?}"));
    assert!(
        built.status.success(),
        "build tests/hf/rust with crates from crates.io: {}",
        String::from_utf8_lossy(&built.stderr)
    );
    // Where it is depends on how cargo is configured.
    String::from_utf8_lossy(&built.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find_map(|message| Some(PathBuf::from(message["executable"].as_str()?)))
        .expect("cargo tells where it has put the program")
}
