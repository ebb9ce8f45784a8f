//! The words of the FUSE protocol (`<linux/fuse.h>`): numbers, flags, and bounded access to the bytes.
//! All integers are in the machine's own order, as kernel and daemon run on the same machine.

use hfcache_base::meta::{FileKind, Timestamp};

/// Major version of the protocol; the kernel has had no other since 2006.
pub const MAJOR: u32 = 7;
/// The newest minor version this code knows.
pub const MINOR: u32 = 45;
/// The oldest minor version that has all we need (Linux 4.20; RHEL 8 and Linux 5.10 are newer).
pub const MINOR_MIN: u32 = 28;
/// Bytes before the arguments of every request.
pub const IN_HEADER: usize = 40;
/// Bytes before the result in every answer.
pub const OUT_HEADER: usize = 16;
/// Room for the header and arguments of a WRITE beside its data, rounded up to a page.
pub const REQUEST_EXTRA: usize = 4096;
/// What `st_blksize` says: readers like `cp` and Python take it as their buffer size. 256 KiB amortises a
/// request over enough bytes, and a program that allocates such a buffer for a small file does not suffer.
pub const BLKSIZE: u32 = 256 * 1024;
/// The last offset that `fcntl` locks know, meaning "to the end".
pub const OFFSET_MAX: u64 = i64::MAX as u64;

/// Operation codes.
pub mod op {
    #![expect(missing_docs, reason = "the names are those of fuse.h")]
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const GETLK: u32 = 31;
    pub const SETLK: u32 = 32;
    pub const SETLKW: u32 = 33;
    pub const ACCESS: u32 = 34;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const IOCTL: u32 = 39;
    pub const NOTIFY_REPLY: u32 = 41;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const SYNCFS: u32 = 50;
    pub const TMPFILE: u32 = 51;
    pub const COPY_FILE_RANGE_64: u32 = 53;
}

/// What INIT agrees on. Bits from 32 up travel in `flags2`.
pub mod cap {
    #![expect(missing_docs, reason = "the names are those of fuse.h")]
    pub const ASYNC_READ: u64 = 1 << 0;
    pub const POSIX_LOCKS: u64 = 1 << 1;
    pub const ATOMIC_O_TRUNC: u64 = 1 << 3;
    pub const BIG_WRITES: u64 = 1 << 5;
    pub const DONT_MASK: u64 = 1 << 6;
    pub const FLOCK_LOCKS: u64 = 1 << 10;
    pub const DO_READDIRPLUS: u64 = 1 << 13;
    pub const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub const ASYNC_DIO: u64 = 1 << 15;
    pub const PARALLEL_DIROPS: u64 = 1 << 18;
    pub const POSIX_ACL: u64 = 1 << 20;
    pub const ABORT_ERROR: u64 = 1 << 21;
    pub const MAX_PAGES: u64 = 1 << 22;
    pub const CACHE_SYMLINKS: u64 = 1 << 23;
    pub const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub const SETXATTR_EXT: u64 = 1 << 29;
    pub const INIT_EXT: u64 = 1 << 30;
    pub const DIRECT_IO_ALLOW_MMAP: u64 = 1 << 36;
}

/// Which fields of a SETATTR count.
pub mod fattr {
    #![expect(missing_docs, reason = "the names are those of fuse.h")]
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const FH: u32 = 1 << 6;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
    pub const KILL_SUIDGID: u32 = 1 << 11;
}

/// Single bits of requests and answers.
pub mod flag {
    #![expect(missing_docs, reason = "the names are those of fuse.h")]
    pub const GETATTR_FH: u32 = 1 << 0;
    pub const FOPEN_DIRECT_IO: u32 = 1 << 0;
    pub const FOPEN_KEEP_CACHE: u32 = 1 << 1;
    pub const FOPEN_NOFLUSH: u32 = 1 << 5;
    pub const WRITE_CACHE: u32 = 1 << 0;
    pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;
    pub const SETXATTR_ACL_KILL_SGID: u32 = 1 << 0;
    pub const XATTR_CREATE: u32 = 1 << 0;
    pub const XATTR_REPLACE: u32 = 1 << 1;
    pub const RELEASE_FLOCK_UNLOCK: u32 = 1 << 1;
    pub const LK_FLOCK: u32 = 1 << 0;
    pub const RENAME_NOREPLACE: u32 = 1 << 0;
    pub const RENAME_EXCHANGE: u32 = 1 << 1;
    /// Set in the number of an INTERRUPT, which is otherwise that of the interrupted request.
    pub const INT_REQ: u64 = 1;
}

/// Codes of messages that the kernel did not ask for.
pub mod notice {
    #![expect(missing_docs, reason = "the names are those of fuse.h")]
    pub const INVAL_INODE: i32 = 2;
    pub const INC_EPOCH: i32 = 8;
}

/// A request that does not follow the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Takes values off the front of a request; never past its end.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Reads from the front of `bytes`.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next `len` bytes.
    ///
    /// # Errors
    /// [`Malformed`] if there are fewer.
    pub fn bytes(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (head, tail) = self.0.split_at_checked(len).ok_or(Malformed)?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, tail) = self.0.split_first_chunk::<N>().ok_or(Malformed)?;
        self.0 = tail;
        Ok(*head)
    }

    /// The next 32 bits.
    ///
    /// # Errors
    /// [`Malformed`] at the end.
    pub fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_ne_bytes)
    }

    /// The next 64 bits.
    ///
    /// # Errors
    /// [`Malformed`] at the end.
    pub fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_ne_bytes)
    }

    /// The bytes up to the next NUL, which is skipped. Never empty.
    ///
    /// # Errors
    /// [`Malformed`] without a NUL, or if nothing is before it.
    pub fn text(&mut self) -> Result<&'a [u8], Malformed> {
        let end = self.0.iter().position(|&b| b == 0).ok_or(Malformed)?;
        let text = self.bytes(end)?;
        self.bytes(1)?;
        if text.is_empty() { Err(Malformed) } else { Ok(text) }
    }

    /// One name in a directory: [`Reader::text`] without a slash.
    ///
    /// # Errors
    /// [`Malformed`] if it is none.
    pub fn name(&mut self) -> Result<&'a [u8], Malformed> {
        let name = self.text()?;
        if name.contains(&b'/') { Err(Malformed) } else { Ok(name) }
    }

    /// What is left.
    pub const fn rest(self) -> &'a [u8] {
        self.0
    }
}

/// The longest answer of fixed size: an entry and an open file (CREATE).
const SMALL: usize = 144;

/// A small answer on the stack.
#[derive(Clone, Copy, Debug)]
pub struct Small {
    bytes: [u8; SMALL],
    len: usize,
}

impl Default for Small {
    fn default() -> Self {
        Self { bytes: [0; SMALL], len: 0 }
    }
}

impl Small {
    /// Appends bytes. What does not fit is a mistake in this crate, found by the tests of the layouts.
    pub fn put(&mut self, bytes: &[u8]) {
        let end = self.len + bytes.len();
        debug_assert!(end <= SMALL, "an answer longer than {SMALL} bytes");
        if let Some(slot) = self.bytes.get_mut(self.len..end) {
            slot.copy_from_slice(bytes);
            self.len = end;
        }
    }

    /// Appends 16 bits.
    pub fn u16(&mut self, value: u16) {
        self.put(&value.to_ne_bytes());
    }

    /// Appends 32 bits.
    pub fn u32(&mut self, value: u32) {
        self.put(&value.to_ne_bytes());
    }

    /// Appends 64 bits.
    pub fn u64(&mut self, value: u64) {
        self.put(&value.to_ne_bytes());
    }

    /// The answer so far.
    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }
}

const NANOS: i64 = 1_000_000_000;

/// Nanoseconds as whole seconds, rounded down, and the positive rest: what `timespec` wants.
pub const fn split_time(time: Timestamp) -> (u64, u32) {
    (time.0.div_euclid(NANOS) as u64, time.0.rem_euclid(NANOS) as u32)
}

/// The reverse of [`split_time`]; what is out of reach becomes the nearest time that is not.
pub fn join_time(seconds: u64, nanos: u32) -> Timestamp {
    let wide = i128::from(seconds as i64) * i128::from(NANOS) + i128::from(nanos);
    let clamped = wide.clamp(i128::from(i64::MIN), i128::from(i64::MAX));
    Timestamp(i64::try_from(clamped).unwrap_or(i64::MAX))
}

/// The file type bits of `st_mode`.
pub const fn type_bits(kind: FileKind) -> u32 {
    match kind {
        FileKind::File => libc::S_IFREG,
        FileKind::Directory => libc::S_IFDIR,
        FileKind::Symlink => libc::S_IFLNK,
        FileKind::Fifo => libc::S_IFIFO,
        FileKind::Socket => libc::S_IFSOCK,
        FileKind::CharDevice => libc::S_IFCHR,
        FileKind::BlockDevice => libc::S_IFBLK,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_survive_and_clamp() {
        for nanos in [0, 1, -1, 999_999_999, -1_000_000_001, i64::MAX, i64::MIN] {
            let (seconds, rest) = split_time(Timestamp(nanos));
            assert!(rest < 1_000_000_000);
            assert_eq!(join_time(seconds, rest), Timestamp(nanos));
        }
        assert_eq!(split_time(Timestamp(-1)), (u64::MAX, 999_999_999));
        assert_eq!(join_time(i64::MAX as u64, 0), Timestamp(i64::MAX));
        assert_eq!(join_time(i64::MIN as u64, 999_999_999), Timestamp(i64::MIN));
    }

    #[test]
    fn reader_stops_at_the_end() {
        let mut reader = Reader::new(b"ab\0c/d\0\0xyz");
        assert_eq!(reader.name(), Ok(&b"ab"[..]));
        let mut same = reader;
        assert_eq!(same.name(), Err(Malformed));
        assert_eq!(reader.text(), Ok(&b"c/d"[..]));
        assert_eq!(reader.text(), Err(Malformed));
        assert_eq!(Reader::new(b"xyz").text(), Err(Malformed));
        assert_eq!(Reader::new(b"xyz").u32(), Err(Malformed));
        assert_eq!(Reader::new(b"xyz").bytes(4), Err(Malformed));
    }
}
