//! Brings the suites onto this machine: crates in a pinned version below `target/tools`, Debian's packages by
//! the hand of whoever runs the tests.

use crate::binary::target_dirs;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The program of a crate on crates.io, installed below `target/tools` if it is not there yet.
///
/// # Panics
/// When it can't be installed.
pub fn from_crates_io(name: &str, version: &str) -> PathBuf {
    let root = target_dirs().0.join("tools");
    std::fs::create_dir_all(&root).expect("make target/tools");
    let guard = File::create(root.join("lock")).expect("make the lock of target/tools");
    guard.lock().expect("wait for the lock of target/tools");
    let program = root.join("bin").join(name);
    let list = std::fs::read_to_string(root.join(".crates.toml")).unwrap_or_default();
    if list.contains(&format!("\"{name} {version} ")) && program.is_file() {
        return program;
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    // Away from the work tree, whose flags make static binaries of our own crates; without optimisation, because
    // building takes longer than what it would save.
    command
        .current_dir("/")
        .args(["install", "--quiet", "--locked", "--debug", "--version", &format!("={version}"), "--root"])
        .arg(&root)
        .arg(name);
    for (variable, _) in std::env::vars_os() {
        if variable.to_str().is_some_and(|n| n.starts_with("CARGO_PKG_") || n.starts_with("CARGO_MANIFEST")) {
            command.env_remove(&variable);
        }
    }
    let installed = command.status().expect("run cargo install");
    assert!(installed.success() && program.is_file(), "cargo install {name} {version}: {installed}");
    program
}

/// A program of a Debian package.
///
/// # Panics
/// When it is not installed, with what to do about it.
pub fn from_debian(name: &str, package: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    let found = dirs.map(|dir| dir.join(name)).find(|p| p.is_file());
    found.unwrap_or_else(|| panic!("{name} is missing: apt-get install {package}"))
}

/// Runs a program that must succeed.
///
/// # Panics
/// When it does not, with what it said.
pub fn call(program: &Path, args: &[&str]) {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output().expect("start a program");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{} {}: {said}", program.display(), args.join(" "));
}
