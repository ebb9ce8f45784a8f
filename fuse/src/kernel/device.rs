//! One descriptor of `/dev/fuse`.

use super::abi::{OUT_HEADER, flag};
use hfcache_base::{Error, Kind, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

/// More parts than this are joined before they are written; the kernel takes at most 1,024.
const PARTS_MAX: usize = 512;

/// A queue of requests. A request that was read here can be answered only here.
#[derive(Debug)]
pub(super) struct Device(OwnedFd);

impl Device {
    /// Opens the device for a new mount.
    pub(super) fn open(path: &Path) -> Result<Self> {
        use rustix::fs::{Mode, OFlags};
        let shown = path.display();
        match rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
            Ok(fd) => Ok(Self(fd)),
            Err(e @ (Errno::NOENT | Errno::NXIO | Errno::NODEV)) => Err(Error::new(
                Kind::NoDevice,
                format!(
                    "{shown} is missing: load the kernel module (`modprobe fuse`), or give the container the \
                     device (`--device /dev/fuse`)"
                ),
            )
            .with_source(std::io::Error::from(e))),
            Err(e @ (Errno::ACCESS | Errno::PERM)) => Err(Error::new(
                Kind::NotPermitted,
                format!("{shown} may not be opened: run as root, or give the container the device"),
            )
            .with_source(std::io::Error::from(e))),
            Err(e) => Err(Error::io(e.into()).context(format!("open {shown}"))),
        }
    }

    /// A device that someone else opened and mounted.
    pub(super) const fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Another queue of the same mount, so that threads do not share one.
    pub(super) fn another(&self, path: &Path) -> Result<Self> {
        /// `FUSE_DEV_IOC_CLONE`
        const CLONE: rustix::ioctl::Opcode = rustix::ioctl::opcode::read::<u32>(229, 0);
        let new = Self::open(path)?;
        let old = u32::try_from(self.0.as_raw_fd()).map_err(|_| Error::from(Kind::BadHandle))?;
        // SAFETY: the call takes a pointer to a 32-bit descriptor number, which `Setter` passes, and writes
        // nothing there.
        let done = unsafe { rustix::ioctl::ioctl(&new.0, rustix::ioctl::Setter::<CLONE, u32>::new(old)) };
        done.map_err(|e| Error::io(e.into()).context("clone the FUSE device"))?;
        Ok(new)
    }

    /// The next request, whole.
    pub(super) fn read(&self, buf: &mut [u8]) -> Result<usize, Errno> {
        rustix::io::read(&self.0, buf)
    }

    /// Sleeps until a request, or the end of the mount, can be read; `false` if that takes longer than `limit`.
    pub(super) fn wait_ready(&self, limit: &Timespec) -> Result<bool, Errno> {
        Ok(poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(limit))? > 0)
    }

    /// Whether a request, or the end of the mount, can be read now.
    pub(super) fn is_ready(&self) -> bool {
        self.wait_ready(&Timespec { tv_sec: 0, tv_nsec: 0 }) == Ok(true)
    }

    /// As [`Device::is_ready`], asked again and again for a while: sleeping would take longer.
    pub(super) fn is_ready_within(&self, limit: Duration) -> bool {
        let start = Instant::now();
        loop {
            if self.is_ready() {
                return true;
            }
            if start.elapsed() >= limit {
                return false;
            }
        }
    }

    /// Answers a request with an errno (0: success) and the parts of a result.
    pub(super) fn answer(&self, unique: u64, errno: i32, parts: &[&[u8]]) -> Result<(), Errno> {
        // The kernel takes 1 to 511 and calls anything else a broken answer.
        let errno = if (0..512).contains(&errno) { errno } else { libc::EIO };
        self.send(unique, -errno, parts)
    }

    /// Lets an INTERRUPT come again.
    pub(super) fn interrupt_later(&self, unique: u64) -> bool {
        self.send(unique | flag::INT_REQ, -libc::EAGAIN, &[]).is_ok()
    }

    /// Tells the kernel something it did not ask for.
    pub(super) fn notice(&self, code: i32, body: &[u8]) -> Result<(), Errno> {
        self.send(0, code, &[body])
    }

    fn send(&self, unique: u64, error: i32, parts: &[&[u8]]) -> Result<(), Errno> {
        if parts.len() > PARTS_MAX {
            let joined = parts.concat();
            return self.send(unique, error, &[&joined]);
        }
        let len = OUT_HEADER + parts.iter().map(|part| part.len()).sum::<usize>();
        let mut header = [0; OUT_HEADER];
        header[..4].copy_from_slice(&u32::try_from(len).map_err(|_| Errno::INVAL)?.to_ne_bytes());
        header[4..8].copy_from_slice(&error.to_ne_bytes());
        header[8..].copy_from_slice(&unique.to_ne_bytes());
        let done = if parts.is_empty() {
            rustix::io::write(&self.0, &header)
        } else if let [part] = parts {
            rustix::io::writev(&self.0, &[IoSlice::new(&header), IoSlice::new(part)])
        } else {
            let mut all = Vec::with_capacity(parts.len() + 1);
            all.push(IoSlice::new(&header));
            all.extend(parts.iter().map(|part| IoSlice::new(part)));
            rustix::io::writev(&self.0, &all)
        };
        done.map(drop)
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
