//! System calls of the exerciser that std has no word for.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

fn check(result: i64) -> io::Result<u64> {
    u64::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn offset(value: u64) -> io::Result<i64> {
    i64::try_from(value).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// What `fallocate` shall do with a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Have room for it; the file grows to its end.
    Allocate,
    /// The same, and the file does not grow.
    AllocateKeep,
    /// Read as zeros, and take no room.
    Punch,
    /// Read as zeros; the file grows to its end.
    Zero,
    /// The same, and the file does not grow.
    ZeroKeep,
}

/// `fallocate`.
///
/// # Errors
/// EOPNOTSUPP where the file system can't; ENOSPC.
pub fn fallocate(file: &File, what: Space, at: u64, len: u64) -> io::Result<()> {
    let mode = match what {
        Space::Allocate => 0,
        Space::AllocateKeep => libc::FALLOC_FL_KEEP_SIZE,
        Space::Punch => libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
        Space::Zero => libc::FALLOC_FL_ZERO_RANGE,
        Space::ZeroKeep => libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
    };
    let (at, len) = (offset(at)?, offset(len)?);
    // SAFETY: no memory is passed; the descriptor is open.
    check(unsafe { libc::fallocate(file.as_raw_fd(), mode, at, len) }.into()).map(|_| ())
}

/// Copies within or between files of one file system, and returns how much was copied.
///
/// # Errors
/// Whatever the file system says.
pub fn copy_range(from: &File, from_at: u64, to: &File, to_at: u64, len: usize) -> io::Result<usize> {
    let (mut from_at, mut to_at) = (offset(from_at)?, offset(to_at)?);
    let (from, to) = (from.as_raw_fd(), to.as_raw_fd());
    // SAFETY: both offsets live over the call; the descriptors are open.
    let copied = unsafe { libc::copy_file_range(from, &mut from_at, to, &mut to_at, len, 0) };
    check(copied as i64).map(|n| n as usize)
}

/// The next offset from `at` on with data, or in a hole; `None` past the last.
///
/// # Errors
/// Whatever the file system says, but ENXIO.
pub fn seek(file: &File, at: u64, data: bool) -> io::Result<Option<u64>> {
    let whence = if data { libc::SEEK_DATA } else { libc::SEEK_HOLE };
    // SAFETY: no memory is passed; the descriptor is open.
    match check(unsafe { libc::lseek(file.as_raw_fd(), offset(at)?, whence) }) {
        Ok(found) => Ok(Some(found)),
        Err(why) if why.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        Err(why) => Err(why),
    }
}

/// SIGKILL to the process group that a process leads.
pub fn kill_group(leader: u32) {
    if let Ok(pid) = libc::pid_t::try_from(leader)
        && pid > 1
    {
        // SAFETY: no memory is passed.
        unsafe { libc::kill(-pid, libc::SIGKILL) };
    }
}
