//! What must be so before a node starts, checked before anything is half-started, each with the way to mend
//! it.

use anyhow::{Context, Result, bail};
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// How a process may mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MountBy {
    /// mount(2), as root.
    Root,
    /// The setuid helper.
    Fusermount,
}

/// Finds out how this process may mount.
///
/// # Errors
/// If it may not at all.
pub fn mount_by() -> Result<MountBy> {
    let device = Path::new("/dev/fuse");
    if !device.exists() {
        bail!(
            "/dev/fuse is missing: the kernel has no FUSE here.\n\
             Load it with `modprobe fuse`; in a container, give it the device (--device /dev/fuse) and CAP_SYS_ADMIN."
        );
    }
    let opened = std::fs::OpenOptions::new().read(true).write(true).open(device);
    if rustix::process::geteuid().is_root() {
        return match opened {
            Ok(_) => Ok(MountBy::Root),
            Err(e) => {
                Err(e).context("open /dev/fuse: in a container, give it the device (--device /dev/fuse)")
            }
        };
    }
    if let Err(e) = opened {
        bail!("open /dev/fuse: {e}.\nAs root: `chmod 0666 /dev/fuse`, or run hfcache as root.");
    }
    match find_program("fusermount3") {
        Some(_) => Ok(MountBy::Fusermount),
        None => bail!(
            "fusermount3 is missing, and only root can mount without it.\n\
             Install it (`apt-get install fuse3`, `dnf install fuse3`), or run hfcache as root."
        ),
    }
}

/// Looks a program up in PATH.
pub fn find_program(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(name)).find(|p| p.is_file())
}

/// Whether `/etc/fuse.conf` lets users other than root use `allow_other`.
pub fn user_allow_other() -> bool {
    std::fs::read_to_string("/etc/fuse.conf").is_ok_and(|t| t.lines().any(|l| l.trim() == "user_allow_other"))
}

/// The type of our mounts in the kernel's list.
pub const MOUNT_TYPE: &str = "fuse.hfcache";

/// A mount as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    /// The device number of what is mounted, as `major:minor`.
    pub device: String,
    /// Where.
    pub point: PathBuf,
    /// Its type, such as `fuse.hfcache`.
    pub kind: String,
    /// What is mounted.
    pub source: String,
}

/// All mounts that this process sees; the last one on a point is the visible one.
pub fn mounts() -> Vec<MountEntry> {
    let text = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    parse_mountinfo(&text)
}

fn parse_mountinfo(text: &[u8]) -> Vec<MountEntry> {
    text.split(|b| *b == b'\n').filter_map(parse_mount_line).collect()
}

/// `36 35 98:0 /root /point rw,... - type source options`
fn parse_mount_line(line: &[u8]) -> Option<MountEntry> {
    let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
    let dash = fields.iter().position(|f| *f == b"-")?;
    let text = |f: &[u8]| String::from_utf8_lossy(&unescape(f)).into_owned();
    Some(MountEntry {
        device: text(fields.get(2)?),
        point: PathBuf::from(std::ffi::OsStr::from_bytes(&unescape(fields.get(4)?))),
        kind: text(fields.get(dash + 1)?),
        source: text(fields.get(dash + 2)?),
    })
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        if *first == b'\\'
            && let [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..] = tail
        {
            out.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
            rest = after;
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    out
}

/// What is at a mount point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Point {
    /// An empty directory: good.
    Empty,
    /// Nothing.
    Missing,
    /// The mount of a daemon that is dead: it is cleaned up at start.
    Stale,
}

/// Looks at a mount point.
///
/// # Errors
/// What is there cannot become a mount point.
pub fn mount_point(point: &Path) -> Result<Point> {
    let shown = point.display();
    if let Some(mount) = mounts().into_iter().rev().find(|m| m.point == point) {
        // Before anything looks into it, which could hang.
        if mount.kind == MOUNT_TYPE && hfcache_fuse::kernel::is_dead(point) == Some(true) {
            return Ok(Point::Stale);
        }
        bail!(
            "{shown} is a mount point already ({} {}).\nUnmount it (`umount {shown}`), or name another directory.",
            mount.kind,
            mount.source
        );
    }
    match std::fs::metadata(point) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Point::Missing),
        Err(e) if e.raw_os_error() == Some(libc::ENOTCONN) => return Ok(Point::Stale),
        Err(e) => return Err(e).with_context(|| format!("look at mount point {shown}")),
        Ok(m) if !m.is_dir() => bail!("mount point {shown} is not a directory; name one with --mount"),
        Ok(_) => {}
    }
    let mut entries = std::fs::read_dir(point).with_context(|| format!("list mount point {shown}"))?;
    if let Some(entry) = entries.next() {
        let name = entry.map(|e| e.file_name().to_string_lossy().into_owned()).unwrap_or_default();
        bail!(
            "mount point {shown} is not empty (it has {name:?}), and the mount would hide what is in it.\n\
             Move it away, or name an empty directory."
        );
    }
    Ok(Point::Empty)
}

/// Makes the mount point ready for `init` and `join`, which make a missing one; `run` does not, because a
/// directory that vanished since means that something else is wrong.
///
/// # Errors
/// As [`mount_point`]; a missing one without `create`.
pub fn ready_mount_point(point: &Path, create: bool) -> Result<()> {
    match mount_point(point)? {
        Point::Empty | Point::Stale => Ok(()),
        Point::Missing if create => {
            make(point).with_context(|| format!("make mount point {}", point.display()))
        }
        Point::Missing => bail!(
            "mount point {} is missing.\nMake it (`mkdir -p {}`) and start again.",
            point.display(),
            point.display()
        ),
    }
}

/// Under root nobody else may write into the directory itself: while nothing is mounted, programs must not fill
/// the disk below. The helper of other users needs one that they may write.
fn make(point: &Path) -> std::io::Result<()> {
    if let Some(parent) = point.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let mode = if rustix::process::geteuid().is_root() { 0o555 } else { 0o755 };
    std::fs::DirBuilder::new().mode(mode).create(point)
}

/// Checks that nobody listens where this node will.
///
/// # Errors
/// Which port, and who may have it.
pub fn ports_free(listen: SocketAddr) -> Result<()> {
    let gossip = SocketAddr::new(listen.ip(), listen.port() + 1);
    let help = |what: &str, at: SocketAddr, e: std::io::Error| match e.kind() {
        ErrorKind::AddrInUse => anyhow::anyhow!(
            "{what} port {at} is in use by another program (`ss -lnptu | grep {}` shows which).\n\
             Stop it, or choose another with `listen` in hfcache.toml (--listen at init and join).",
            at.port()
        ),
        ErrorKind::AddrNotAvailable => anyhow::anyhow!(
            "{} is no address of this machine.\nCorrect `listen` in hfcache.toml (--listen at init and join).",
            at.ip()
        ),
        _ => anyhow::Error::from(e).context(format!("listen on {what} {at}")),
    };
    TcpListener::bind(listen).map_err(|e| help("TCP", listen, e))?;
    UdpSocket::bind(listen).map_err(|e| help("UDP", listen, e))?;
    UdpSocket::bind(gossip).map_err(|e| help("UDP", gossip, e))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tests::TempDir;

    #[test]
    fn mountinfo_is_read_with_its_escapes() {
        let text =
            b"36 35 0:52 / /mnt/a\\040b rw,nosuid shared:1 master:2 - fuse.hfcache hfcache rw,user_id=0\n\
                     1 1 8:1 / / rw - ext4 /dev/vda rw\nnonsense\n";
        let mounts = parse_mountinfo(text);
        assert_eq!(mounts.len(), 2);
        assert_eq!((mounts[0].point.as_path(), mounts[0].device.as_str()), (Path::new("/mnt/a b"), "0:52"));
        assert_eq!((mounts[0].kind.as_str(), mounts[0].source.as_str()), ("fuse.hfcache", "hfcache"));
        assert_eq!(unescape(b"a\\9\\0"), b"a\\9\\0");
    }

    #[test]
    fn a_mount_point_must_be_an_empty_directory() {
        let dir = TempDir::new();
        let point = dir.path().join("m");
        assert_eq!(mount_point(&point).unwrap(), Point::Missing);
        assert!(ready_mount_point(&point, false).unwrap_err().to_string().contains("mkdir -p"));
        ready_mount_point(&point, true).unwrap();
        assert_eq!(mount_point(&point).unwrap(), Point::Empty);
        std::fs::write(point.join("x"), "").unwrap();
        assert!(mount_point(&point).unwrap_err().to_string().contains("not empty"));
        assert!(mount_point(&point.join("x")).unwrap_err().to_string().contains("not a directory"));
        assert!(mount_point(Path::new("/proc")).unwrap_err().to_string().contains("already"));
    }

    #[test]
    fn a_port_in_use_is_named() {
        let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
        let error = ports_free(taken.local_addr().unwrap()).unwrap_err().to_string();
        assert!(error.contains("UDP") && error.contains(&taken.local_addr().unwrap().to_string()), "{error}");
        let foreign = ports_free("203.0.113.9:7946".parse().unwrap()).unwrap_err().to_string();
        assert!(foreign.contains("no address of this machine"), "{foreign}");
    }
}
