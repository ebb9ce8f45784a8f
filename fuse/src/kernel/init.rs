//! What the kernel and we agree on at the start.

use super::abi::{MAJOR, MINOR, MINOR_MIN, REQUEST_EXTRA, Small, cap};
use super::device::Device;
use super::request::{self, InitIn, Request};
use hfcache_base::limits::FUSE_IO_MAX;
use hfcache_base::{Error, Kind, Result};
use rustix::event::Timespec;
use rustix::io::Errno;

/// What we want where the kernel offers it. Not among them, on purpose:
/// - `WRITEBACK_CACHE`: written bytes must reach the file system, other nodes wait for them.
/// - `HANDLE_KILLPRIV`, the first version: it does not say whose write may keep set-id bits.
/// - `AUTO_INVAL_DATA`: pages are kept or dropped by version, at open and by notices; a change of mtime,
///   which our own writes cause, must not empty the page cache.
/// - `EXPORT_SUPPORT`: NFS export would look up `.` and `..` by number.
/// - `NO_OPEN_SUPPORT`: every open and close counts here.
/// - `SECURITY_CTX`, `CREATE_SUPP_GROUP`: they add extensions to requests that nothing here needs.
///
/// And among them, with a price:
/// - `HANDLE_KILLPRIV_V2`: who writes, cuts or clones into a file takes its set-id bits and capabilities away,
///   which is up to us then. Without it the kernel asks for `security.capability` before *each* write.
/// - `DONT_MASK`: the caller's umask is applied by the namespace, where no default list takes its place.
const WANTED: u64 = cap::ASYNC_READ
    | cap::POSIX_LOCKS
    | cap::FLOCK_LOCKS
    | cap::ATOMIC_O_TRUNC
    | cap::BIG_WRITES
    | cap::DONT_MASK
    | cap::DO_READDIRPLUS
    | cap::READDIRPLUS_AUTO
    | cap::ASYNC_DIO
    | cap::PARALLEL_DIROPS
    | cap::ABORT_ERROR
    | cap::MAX_PAGES
    | cap::CACHE_SYMLINKS
    | cap::HANDLE_KILLPRIV_V2
    | cap::SETXATTR_EXT
    | cap::INIT_EXT
    | cap::DIRECT_IO_ALLOW_MMAP;

/// What we want where the kernel is to check permissions, which it turns on: it asks for access control lists, and
/// keeps them as long as attributes.
const WANTED_TO_CHECK: u64 = cap::POSIX_ACL;

/// Requests that the kernel may have under way without anyone waiting (readahead, async direct I/O).
const MAX_BACKGROUND: u16 = 64;
/// From so many on it tells writers to slow down.
const CONGESTION: u16 = 48;
/// How long the first request may take; the kernel sends it within `mount`.
const INIT_DEADLINE: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// The outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Agreed {
    /// Minor version of the kernel.
    pub(super) kernel_minor: u32,
    /// Flags.
    pub(super) flags: u64,
}

/// Bytes of the buffer that takes any request.
pub(super) const fn buffer_len() -> usize {
    FUSE_IO_MAX as usize + REQUEST_EXTRA
}

/// Reads the kernel's INIT and answers it. `checks`: the kernel is to check permissions.
pub(super) fn negotiate(device: &Device, checks: bool) -> Result<Agreed> {
    let mut buf = vec![0; buffer_len()];
    loop {
        match device.wait_ready(&INIT_DEADLINE) {
            Ok(false) => return Err(Error::new(Kind::TimedOut, "the kernel does not begin to talk")),
            Ok(true) | Err(Errno::INTR) => {}
            Err(e) => return Err(Error::io(e.into()).context("wait for the kernel's first request")),
        }
        let len = match device.read(&mut buf) {
            Ok(len) => len,
            Err(Errno::INTR | Errno::AGAIN | Errno::NOENT) => continue,
            Err(e) => return Err(Error::io(e.into()).context("read the kernel's first request")),
        };
        let broken = |_| Error::new(Kind::Protocol, "the kernel's first request is not an INIT");
        let (header, body) = request::header(&buf[..len]).map_err(broken)?;
        let Request::Init(offer) = request::decode(&header, body, 0).map_err(broken)? else {
            return Err(broken(super::abi::Malformed));
        };
        if offer.major > MAJOR {
            // It comes back with the version we name.
            let mut out = Small::default();
            out.u32(MAJOR);
            out.u32(MINOR);
            send(device, header.unique, 0, &out)?;
            continue;
        }
        return match agree(&offer, checks) {
            Ok((agreed, out)) => {
                send(device, header.unique, 0, &out)?;
                Ok(agreed)
            }
            Err(e) => {
                send(device, header.unique, libc::EPROTO, &Small::default())?;
                Err(e)
            }
        };
    }
}

fn send(device: &Device, unique: u64, errno: i32, out: &Small) -> Result<()> {
    let done = device.answer(unique, errno, &[out.as_slice()]);
    done.map_err(|e| Error::io(e.into()).context("answer the kernel's first request"))
}

fn agree(offer: &InitIn, checks: bool) -> Result<(Agreed, Small)> {
    if offer.major != MAJOR || offer.minor < MINOR_MIN {
        let InitIn { major, minor, .. } = offer;
        let message = format!(
            "the kernel speaks FUSE {major}.{minor}; hfcache needs {MAJOR}.{MINOR_MIN} (Linux 4.20) or newer"
        );
        return Err(Error::new(Kind::Version, message));
    }
    let flags = offer.flags & if checks { WANTED | WANTED_TO_CHECK } else { WANTED };
    let pages = FUSE_IO_MAX as usize / rustix::param::page_size();
    let mut out = Small::default();
    out.u32(MAJOR);
    out.u32(MINOR.min(offer.minor));
    out.u32(offer.max_readahead);
    out.u32((flags & u64::from(u32::MAX)) as u32);
    out.u16(MAX_BACKGROUND);
    out.u16(CONGESTION);
    out.u32(FUSE_IO_MAX);
    // Times are exact to the nanosecond.
    out.u32(1);
    out.u16(u16::try_from(pages).unwrap_or(u16::MAX).max(1));
    out.u16(0);
    out.u32((flags >> 32) as u32);
    for _ in 0..7 {
        out.u32(0);
    }
    Ok((Agreed { kernel_minor: offer.minor, flags }, out))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(minor: u32, flags: u64) -> InitIn {
        InitIn { major: 7, minor, max_readahead: 131_072, flags }
    }

    #[test]
    fn speaks_no_newer_version_than_the_kernel_and_asks_for_nothing_it_lacks() {
        let (agreed, out) = agree(&offer(32, cap::POSIX_LOCKS | 1 << 16), true).unwrap();
        assert_eq!(agreed.flags, cap::POSIX_LOCKS);
        assert_eq!(out.as_slice().len(), 64);
        assert_eq!(out.as_slice()[4..8], 32_u32.to_ne_bytes());
        let (agreed, out) = agree(&offer(99, u64::MAX), false).unwrap();
        assert_eq!((agreed.flags, WANTED & cap::POSIX_ACL), (WANTED, 0));
        assert_eq!(out.as_slice()[4..8], MINOR.to_ne_bytes());
        assert_eq!(agree(&offer(99, u64::MAX), true).unwrap().0.flags, WANTED | cap::POSIX_ACL);
        assert_eq!(agree(&offer(27, u64::MAX), true).unwrap_err().kind(), Kind::Version);
    }
}
