//! The few system calls that std has no word for, wrapped so that no test needs `unsafe`.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn path_arg(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Whether this process may do everything.
pub fn is_root() -> bool {
    // SAFETY: takes nothing, touches nothing.
    unsafe { libc::geteuid() == 0 }
}

/// The user this process runs as.
pub fn uid() -> u32 {
    // SAFETY: takes nothing, touches nothing.
    unsafe { libc::geteuid() }
}

/// Sends a signal to one process.
///
/// # Errors
/// ESRCH when it is gone.
pub fn kill(pid: u32, signal: i32) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::ErrorKind::InvalidInput)?;
    assert!(pid > 1, "refuse to signal a group or init");
    // SAFETY: no memory is passed.
    check(unsafe { libc::kill(pid, signal) })
}

/// Detaches a mount whose server may be dead.
///
/// # Errors
/// EPERM for anyone but root; EINVAL when it is no mount point.
pub fn umount_lazy(path: &Path) -> io::Result<()> {
    let path = path_arg(path)?;
    // SAFETY: the string lives over the call.
    check(unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW) })
}

/// Mounts a tmpfs of at most `size` bytes: the cheapest disk that can be full.
///
/// # Errors
/// EPERM for anyone but root.
pub fn mount_tmpfs(at: &Path, size: u64) -> io::Result<()> {
    let at = path_arg(at)?;
    let options = CString::new(format!("size={size},mode=0755")).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: all strings live over the call.
    check(unsafe {
        libc::mount(c"hfcache-test-disk".as_ptr(), at.as_ptr(), c"tmpfs".as_ptr(), 0, options.as_ptr().cast())
    })
}

/// A lock range of `fcntl`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeLock {
    /// F_RDLCK
    Read,
    /// F_WRLCK
    Write,
    /// F_UNLCK
    Free,
}

fn flock_arg(kind: RangeLock, start: i64, len: i64) -> libc::flock {
    // SAFETY: all-zero is a valid `struct flock`.
    let mut arg: libc::flock = unsafe { std::mem::zeroed() };
    arg.l_type = match kind {
        RangeLock::Read => libc::F_RDLCK,
        RangeLock::Write => libc::F_WRLCK,
        RangeLock::Free => libc::F_UNLCK,
    } as libc::c_short;
    arg.l_whence = libc::SEEK_SET as libc::c_short;
    arg.l_start = start;
    arg.l_len = len;
    arg
}

/// Takes or frees a POSIX record lock.
///
/// # Errors
/// EAGAIN or EACCES on a conflict without `wait`.
pub fn range_lock(file: &File, kind: RangeLock, start: i64, len: i64, wait: bool) -> io::Result<()> {
    let arg = flock_arg(kind, start, len);
    let command = if wait { libc::F_SETLKW } else { libc::F_SETLK };
    // SAFETY: `arg` lives over the call, which only reads it.
    check(unsafe { libc::fcntl(file.as_raw_fd(), command, &arg) })
}

/// Whether somebody else's record lock is in the way (F_GETLK).
///
/// # Errors
/// Whatever the file system says.
pub fn range_lock_test(file: &File, kind: RangeLock, start: i64, len: i64) -> io::Result<bool> {
    let mut arg = flock_arg(kind, start, len);
    // SAFETY: `arg` lives over the call, which may write it.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLK, &mut arg) })?;
    Ok(libc::c_int::from(arg.l_type) != libc::F_UNLCK)
}

/// What `statfs` says of a file system.
#[derive(Clone, Copy, Debug)]
pub struct Space {
    /// All of it, in bytes.
    pub total: u64,
    /// What this user may still write, in bytes.
    pub available: u64,
    /// Longest name.
    pub name_max: u64,
}

/// Asks for the space of the file system a path is on.
///
/// # Errors
/// Whatever the file system says.
pub fn space(path: &Path) -> io::Result<Space> {
    let path = path_arg(path)?;
    // SAFETY: all-zero is a valid `struct statvfs`.
    let mut answer: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: string and struct live over the call.
    check(unsafe { libc::statvfs(path.as_ptr(), &mut answer) })?;
    Ok(Space {
        total: answer.f_blocks * answer.f_frsize,
        available: answer.f_bavail * answer.f_frsize,
        name_max: answer.f_namemax,
    })
}

/// Asks for inodes of the file system a path is on: in all, and how many more this user may make.
///
/// # Errors
/// Whatever the file system says.
pub fn inodes(path: &Path) -> io::Result<(u64, u64)> {
    let path = path_arg(path)?;
    // SAFETY: all-zero is a valid `struct statvfs`.
    let mut answer: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: string and struct live over the call.
    check(unsafe { libc::statvfs(path.as_ptr(), &mut answer) })?;
    Ok((answer.f_files, answer.f_favail))
}

/// Renames with flags (`RENAME_NOREPLACE`, `RENAME_EXCHANGE`).
///
/// # Errors
/// Whatever the file system says.
pub fn rename_with(from: &Path, to: &Path, flags: u32) -> io::Result<()> {
    let (from, to) = (path_arg(from)?, path_arg(to)?);
    // SAFETY: both strings live over the call.
    check(unsafe { libc::renameat2(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags) })
}

/// Sets access and modification time, each as seconds and nanoseconds; `None` is "now".
///
/// # Errors
/// Whatever the file system says.
pub fn set_times(
    path: &Path,
    access: Option<(i64, i64)>,
    modification: Option<(i64, i64)>,
) -> io::Result<()> {
    let path = path_arg(path)?;
    let spec = |time: Option<(i64, i64)>| match time {
        Some((tv_sec, tv_nsec)) => libc::timespec { tv_sec, tv_nsec },
        None => libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_NOW },
    };
    let times = [spec(access), spec(modification)];
    // SAFETY: string and array live over the call.
    check(unsafe {
        libc::utimensat(libc::AT_FDCWD, path.as_ptr(), times.as_ptr(), libc::AT_SYMLINK_NOFOLLOW)
    })
}

/// Where the next byte is that is data (SEEK_DATA), or that is in a hole (SEEK_HOLE).
///
/// # Errors
/// ENXIO past the end, or past the last data.
pub fn seek(file: &File, from: i64, data: bool) -> io::Result<i64> {
    let whence = if data { libc::SEEK_DATA } else { libc::SEEK_HOLE };
    // SAFETY: no memory is passed.
    let at = unsafe { libc::lseek(file.as_raw_fd(), from, whence) };
    if at < 0 { Err(io::Error::last_os_error()) } else { Ok(at) }
}

/// Allocates, zeros or punches a range; `mode` is fallocate(2)'s.
///
/// # Errors
/// Whatever the file system says.
pub fn fallocate(file: &File, mode: i32, from: i64, len: i64) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::fallocate(file.as_raw_fd(), mode, from, len) })
}

/// Copies a range between two files (copy_file_range), as far as one call comes.
///
/// # Errors
/// Whatever the file system says.
pub fn copy_range(from: &File, at: i64, to: &File, to_at: i64, len: usize) -> io::Result<usize> {
    let (mut at, mut to_at) = (at, to_at);
    // SAFETY: both offsets live over the call.
    let n = unsafe { libc::copy_file_range(from.as_raw_fd(), &mut at, to.as_raw_fd(), &mut to_at, len, 0) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// Gives an open file without a name (O_TMPFILE) a name.
///
/// # Errors
/// ENOENT if it may have none.
pub fn link_open(file: &File, to: &Path) -> io::Result<()> {
    let from = path_arg(format!("/proc/self/fd/{}", file.as_raw_fd()).as_ref())?;
    let to = path_arg(to)?;
    // SAFETY: both strings live over the call.
    check(unsafe {
        libc::linkat(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), libc::AT_SYMLINK_FOLLOW)
    })
}

/// Sets the status flags of a descriptor (F_SETFL).
///
/// # Errors
/// Whatever the file system says.
pub fn set_flags(file: &File, flags: i32) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags) })
}

/// Bytes at an address that O_DIRECT takes anywhere.
///
/// # Panics
/// Never: there is always an aligned part.
pub fn aligned(buf: &mut Vec<u8>, len: usize) -> &mut [u8] {
    buf.resize(len + 4_096, 0);
    let skip = buf.as_ptr().align_offset(4_096);
    &mut buf[skip..skip + len]
}

/// CPU clock ticks of a second, the unit of `/proc/PID/stat`.
pub fn ticks_per_second() -> f64 {
    // SAFETY: takes a constant, touches nothing.
    (unsafe { libc::sysconf(libc::_SC_CLK_TCK) }) as f64
}

/// How a file is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapKind {
    /// Private, to be read.
    Read,
    /// Private, to be changed: the file stays as it is.
    PrivateWrite,
    /// Shared, to be changed.
    SharedWrite,
}

/// A mapped file.
#[derive(Debug)]
pub struct Map {
    at: *mut libc::c_void,
    len: usize,
    kind: MapKind,
}

// SAFETY: the mapping belongs to this value alone.
unsafe impl Send for Map {}

impl Map {
    /// Maps the first `len` bytes.
    ///
    /// # Errors
    /// ENODEV where the file system does not allow it.
    pub fn new(file: &File, len: usize, kind: MapKind) -> io::Result<Self> {
        let (protection, flags) = match kind {
            MapKind::Read => (libc::PROT_READ, libc::MAP_PRIVATE),
            MapKind::PrivateWrite => (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE),
            MapKind::SharedWrite => (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED),
        };
        // SAFETY: a new mapping at an address of the kernel's choice; the descriptor is open.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, file.as_raw_fd(), 0) };
        if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Self { at, len, kind }) }
    }

    /// Waits until a shared mapping's bytes are in the file (`MS_SYNC`).
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn sync(&self) -> io::Result<()> {
        // SAFETY: exactly the mapped range.
        check(unsafe { libc::msync(self.at, self.len, libc::MS_SYNC) })
    }
}

impl Deref for Map {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the range is mapped readable until drop; tests do not truncate mapped files.
        unsafe { std::slice::from_raw_parts(self.at.cast(), self.len) }
    }
}

impl DerefMut for Map {
    fn deref_mut(&mut self) -> &mut [u8] {
        assert_ne!(self.kind, MapKind::Read, "write through a read-only mapping");
        // SAFETY: as above, and mapped writable.
        unsafe { std::slice::from_raw_parts_mut(self.at.cast(), self.len) }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: exactly the mapped range, which nobody uses any more.
        unsafe { libc::munmap(self.at, self.len) };
    }
}

/// Makes this thread, and no other, a user's, for good, with an umask of its own.
///
/// # Errors
/// EPERM for anyone but root.
pub fn become_user(uid: u32, gid: u32, more: Option<u32>, umask: u32) -> io::Result<()> {
    let groups: Vec<u32> = more.into_iter().collect();
    // SAFETY: no memory is passed.
    check(unsafe { libc::unshare(libc::CLONE_FS) })?;
    // The wrappers of libc would change all threads.
    // SAFETY: the groups live over the call, which only reads them; the others are passed no memory.
    let set = unsafe {
        libc::umask(umask);
        [
            libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()),
            libc::syscall(libc::SYS_setresgid, gid, gid, gid),
            libc::syscall(libc::SYS_setresuid, uid, uid, uid),
        ]
    };
    if set == [0; 3] { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EPERM)) }
}

/// Makes a pipe, a socket or a file (mknod); `mode` has the kind.
///
/// # Errors
/// Whatever the file system says.
pub fn make_node(path: &Path, mode: u32) -> io::Result<()> {
    let path = path_arg(path)?;
    // SAFETY: the string lives over the call.
    check(unsafe { libc::mknod(path.as_ptr(), mode, 0) })
}

/// Time since this machine started, the same for all its processes.
pub fn monotonic() -> std::time::Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the struct lives over the call, which can't fail with a clock that is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    std::time::Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_bytes_reach_the_file_and_private_ones_do_not() {
        let path = std::env::temp_dir().join(format!("hfcache-map-{}", std::process::id()));
        std::fs::write(&path, vec![b'a'; 8192]).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let mut private = Map::new(&file, 8192, MapKind::PrivateWrite).unwrap();
        private[0] = b'p';
        let mut shared = Map::new(&file, 8192, MapKind::SharedWrite).unwrap();
        shared[1] = b's';
        shared.sync().unwrap();
        assert_eq!(&std::fs::read(&path).unwrap()[..3], b"asa");
        assert_eq!(&Map::new(&file, 8192, MapKind::Read).unwrap()[..3], b"asa");
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn space_of_the_temporary_directory_is_plausible() {
        let space = space(&std::env::temp_dir()).unwrap();
        assert!(space.total >= space.available && space.name_max >= 255);
    }
}
