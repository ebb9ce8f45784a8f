//! Directories as getdents64(2) tells them: with the cookie from which a listing goes on behind each name.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

/// Bytes for one call.
const BUFFER: usize = 256 << 10;
/// Bytes of a `linux_dirent64` before its name.
const HEAD: usize = 19;

/// One name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Without `.` and `..`.
    pub name: OsString,
    /// Inode number.
    pub ino: u64,
    /// A listing that begins here shows what comes after this name.
    pub next: u64,
}

/// An open directory.
#[derive(Debug)]
pub struct Listing {
    dir: File,
    buf: Vec<u8>,
    rows: std::vec::IntoIter<Row>,
}

impl Listing {
    /// From the beginning.
    ///
    /// # Panics
    /// When the directory can't be opened.
    pub fn of(path: &Path) -> Self {
        let dir = File::open(path).unwrap_or_else(|why| panic!("open {}: {why}", path.display()));
        Self::of_open(dir)
    }

    /// From where an open directory is.
    pub fn of_open(dir: File) -> Self {
        Self { dir, buf: vec![0; BUFFER], rows: Vec::new().into_iter() }
    }

    /// From behind the row with this `next`, whoever listed it.
    ///
    /// # Panics
    /// When that is refused.
    pub fn from(path: &Path, cookie: u64) -> Self {
        let mut listing = Self::of(path);
        listing.dir.seek(SeekFrom::Start(cookie)).expect("go to a cookie");
        listing
    }

    fn more(&mut self) -> io::Result<Vec<Row>> {
        // SAFETY: the kernel writes at most `buf.len()` bytes into the buffer.
        let got = unsafe {
            libc::syscall(libc::SYS_getdents64, self.dir.as_raw_fd(), self.buf.as_mut_ptr(), self.buf.len())
        };
        let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
        let (mut rows, mut rest) = (Vec::new(), &self.buf[..got]);
        while rest.len() > HEAD {
            let number = |at: usize| u64::from_ne_bytes(rest[at..at + 8].try_into().expect("eight bytes"));
            let len = usize::from(u16::from_ne_bytes([rest[16], rest[17]]));
            let name = rest[HEAD..len].split(|byte| *byte == 0).next().unwrap_or_default();
            rows.push(Row { name: OsString::from_vec(name.to_vec()), ino: number(0), next: number(8) });
            rest = &rest[len..];
        }
        Ok(rows)
    }
}

impl Iterator for Listing {
    type Item = Row;

    fn next(&mut self) -> Option<Row> {
        loop {
            if let Some(row) = self.rows.next() {
                if row.name != "." && row.name != ".." {
                    return Some(row);
                }
                continue;
            }
            let rows = self.more().expect("list a directory");
            if rows.is_empty() {
                return None;
            }
            self.rows = rows.into_iter();
        }
    }
}
