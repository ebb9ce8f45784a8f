//! Kernel, FUSE, limits, memory.

use super::Finding;
use crate::preflight::{self, MountBy};
use crate::status::show::bytes;
use rustix::process::{Resource, getrlimit};

/// Descriptors that a busy node uses: open files, hot copies, shards, connections.
const FILES_WANTED: u64 = 65_536;
const FILES_NEEDED: u64 = 1_024;
const MEMORY_WANTED: u64 = 1 << 30;

pub(super) fn examine() -> Vec<Finding> {
    let mut found = Vec::new();
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let version = kernel_version(&release);
    found.push(match version {
        Some(v) if v >= (5, 10) => Finding::ok("kernel", release.clone()),
        _ => Finding::fail("kernel", release.clone(), "hfcache needs Linux 5.10 or newer"),
    });
    found.push(fuse());
    let version = version.unwrap_or_default();
    let root = rustix::process::geteuid().is_root();
    found.push(match (version >= (6, 9), root) {
        (true, true) => Finding::ok("passthrough", "this kernel (6.9+) can read hot files at native speed"),
        (true, false) => Finding::warn(
            "passthrough",
            "this kernel could read hot files at native speed, but only for root",
            "run hfcache as root if that matters; else hot files are read through the page cache",
        ),
        (false, _) => Finding::warn(
            "passthrough",
            "this kernel is older than 6.9",
            "nothing has to be done: hot files are read through the page cache, a little slower",
        ),
    });
    found.push(if version >= (6, 16) {
        Finding::ok("name cache", "this kernel (6.16+) may keep names while other nodes change them")
    } else {
        Finding::warn(
            "name cache",
            "this kernel is older than 6.16",
            "nothing has to be done: every path lookup asks hfcache, which costs some microseconds",
        )
    });
    found.push(open_files());
    found.push(memory());
    found
}

fn fuse() -> Finding {
    match preflight::mount_by() {
        Ok(MountBy::Root) => Finding::ok("fuse", "/dev/fuse opens; mounting as root"),
        Ok(MountBy::Fusermount) if preflight::user_allow_other() => {
            Finding::ok("fuse", "/dev/fuse opens; mounting with fusermount3, also for other users")
        }
        Ok(MountBy::Fusermount) => Finding::warn(
            "fuse",
            "/dev/fuse opens; mounting with fusermount3, for this user only",
            "add the line user_allow_other to /etc/fuse.conf, or set mount.allow_other = false in hfcache.toml",
        ),
        Err(e) => Finding::from_error("fuse", &e),
    }
}

/// `6.18.0-1-amd64` is (6, 18).
fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn open_files() -> Finding {
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(u64::MAX);
    let found = if most == u64::MAX { "unlimited".to_owned() } else { format!("at most {most}") };
    let mend = "raise it: `ulimit -Hn 65536`, LimitNOFILE=65536 in a systemd unit, or /etc/security/limits.conf";
    match most {
        n if n < FILES_NEEDED => Finding::fail("open files", found, mend),
        n if n < FILES_WANTED => Finding::warn("open files", found, mend),
        _ => Finding::ok("open files", found),
    }
}

fn memory() -> Finding {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let value = |key: &str| -> Option<u64> {
        let line = text.lines().find_map(|l| l.strip_prefix(key))?;
        line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib << 10)
    };
    let (Some(total), Some(available)) = (value("MemTotal:"), value("MemAvailable:")) else {
        return Finding::warn("memory", "unknown", "mount /proc");
    };
    let found = format!("{} of {} available", bytes(available), bytes(total));
    if available < MEMORY_WANTED {
        Finding::warn("memory", found, "a node takes up to 512 MiB; free some memory")
    } else {
        Finding::ok("memory", found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions_are_read() {
        assert_eq!(kernel_version("6.18.0-1-amd64"), Some((6, 18)));
        assert_eq!(kernel_version("5.10"), Some((5, 10)));
        assert_eq!(kernel_version("4.18.0-553.el8_10.x86_64"), Some((4, 18)));
        assert_eq!(kernel_version("strange"), None);
    }
}
