//! What is mounted, read from the kernel's list: asking a mount itself could block for ever.

use crate::sys;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// One line of `/proc/self/mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where.
    pub at: PathBuf,
    /// Its file system type, such as `fuse.hfcache`.
    pub kind: String,
    /// What it calls its source.
    pub source: String,
    /// Its device number, as in `/sys/class/bdi` and `/sys/fs/fuse/connections`.
    pub device: String,
}

/// The kernel writes blanks, tabs, newlines and backslashes as three octal digits.
fn unescape(text: &str) -> PathBuf {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let code =
            text.get(i + 1..i + 4).filter(|_| bytes[i] == b'\\').and_then(|o| u8::from_str_radix(o, 8).ok());
        plain.push(code.unwrap_or(bytes[i]));
        i += if code.is_some() { 4 } else { 1 };
    }
    PathBuf::from(OsString::from_vec(plain))
}

fn parse(line: &str) -> Option<Mount> {
    let (head, tail) = line.split_once(" - ")?;
    let mut head = head.split(' ');
    let device = head.nth(2)?.to_owned();
    let at = unescape(head.nth(1)?);
    let mut tail = tail.split(' ');
    Some(Mount { at, device, kind: tail.next()?.to_owned(), source: tail.next()?.to_owned() })
}

/// Everything that is mounted.
pub fn all() -> Vec<Mount> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").expect("read /proc/self/mountinfo");
    text.lines().filter_map(parse).collect()
}

/// What is mounted at a path, on top if there are several.
pub fn at(path: &Path) -> Option<Mount> {
    all().into_iter().rfind(|m| m.at == path)
}

/// Whether a FUSE file system is mounted at a path.
pub fn is_fuse(path: &Path) -> bool {
    at(path).is_some_and(|m| m.kind == "fuse" || m.kind.starts_with("fuse."))
}

/// Everything mounted at or below a directory, innermost first.
pub fn below(root: &Path) -> Vec<Mount> {
    let mut found: Vec<Mount> = all().into_iter().filter(|m| m.at.starts_with(root)).collect();
    found.reverse();
    found
}

/// Detaches everything at or below a directory, also mounts whose server is dead or hangs.
pub fn detach_below(root: &Path) {
    // Several mounts may lie on one another, and detaching one may bring up the next.
    for _ in 0..4 {
        let found = below(root);
        if found.is_empty() {
            return;
        }
        for mount in found {
            if sys::umount_lazy(&mount.at).is_err() {
                let _ = Command::new("fusermount3")
                    .args(["-u", "-z", "-q"])
                    .arg(&mount.at)
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .status();
            }
        }
    }
}

/// The same command, which finds at `at` what is at `from` for others: nodes that are machines mount at the same path.
pub fn with_bind(from: &Path, at: &Path, command: &Command) -> Command {
    let mut bound = Command::new("unshare");
    if !sys::is_root() {
        bound.arg("--map-root-user");
    }
    bound.args(["--mount", "--propagation", "private", "sh", "-euc"]);
    // Each exec keeps the process id, so that the process that was started is the program.
    bound.arg(r#"mount --bind "$0" "$1"; shift; exec "$@""#).args([from, at]);
    bound.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => bound.env(name, value),
            None => bound.env_remove(name),
        };
    }
    bound
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_taken_apart() {
        let line = r"36 35 0:42 / /tmp/a\040b rw,nosuid shared:1 - fuse.hfcache hfcache rw,user_id=0";
        let mount = parse(line).unwrap();
        assert_eq!(mount.at, Path::new("/tmp/a b"));
        assert_eq!((&*mount.kind, &*mount.source, &*mount.device), ("fuse.hfcache", "hfcache", "0:42"));
    }

    #[test]
    fn proc_is_mounted_and_is_not_fuse() {
        assert_eq!(at(Path::new("/proc")).unwrap().kind, "proc");
        assert!(!is_fuse(Path::new("/proc")));
    }
}
