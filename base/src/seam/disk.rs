//! A disk. Calls block, so they run on threads that may wait. Torn writes, rot and ENOSPC are legal
//! answers, and what was not synced may be gone after a crash.

use crate::Result;
use std::path::{Path, PathBuf};

/// Bytes of a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// All.
    pub total: u64,
    /// What may still be written.
    pub free: u64,
}

/// An open file.
pub trait DiskFile: Send + Sync {
    /// Reads up to `buf.len()` bytes at `offset`; fewer only at the end of the file.
    ///
    /// # Errors
    /// Whatever the disk says.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize>;
    /// Writes all of `data` at `offset`.
    ///
    /// # Errors
    /// [`crate::Kind::NoSpace`] when full; part of it may have been written.
    fn write_at(&self, data: &[u8], offset: u64) -> Result<()>;
    /// Writes `parts` one after the other from `offset` on, past the page cache as far as the file system and
    /// alignment allow, and as [`DiskFile::write_at`] for the rest. For large content that nobody here reads
    /// soon: filling fresh pages of the cache costs more than the disk does. Must not overlap a write that
    /// another thread makes at the same time.
    ///
    /// # Errors
    /// As [`DiskFile::write_at`].
    fn write_direct(&self, parts: &[&[u8]], offset: u64) -> Result<()> {
        let mut at = offset;
        for part in parts {
            self.write_at(part, at)?;
            at += part.len() as u64;
        }
        Ok(())
    }
    /// Makes content and length survive a power cut.
    ///
    /// # Errors
    /// Whatever the disk says; nothing written since the last sync may be relied on then.
    fn sync(&self) -> Result<()>;
    /// Length in bytes.
    ///
    /// # Errors
    /// Whatever the disk says.
    fn len(&self) -> Result<u64>;
    /// Whether it holds nothing.
    ///
    /// # Errors
    /// Whatever the disk says.
    fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Cuts, or grows with a hole.
    ///
    /// # Errors
    /// Whatever the disk says.
    fn set_len(&self, len: u64) -> Result<()>;
    /// Gives the space of a range back; it reads as zeros.
    ///
    /// # Errors
    /// [`crate::Kind::NotSupported`] where the file system can't.
    fn punch(&self, offset: u64, len: u64) -> Result<()>;
    /// The descriptor, where there is one (passthrough needs it).
    fn as_fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        None
    }
}

/// See the module.
pub trait Disk: Send + Sync + 'static {
    /// Opens a file for reading and writing; `create` makes it, or empties it if it is there.
    ///
    /// # Errors
    /// [`crate::Kind::NotFound`] without `create`.
    fn open(&self, path: &Path, create: bool) -> Result<Box<dyn DiskFile>>;
    /// Replaces `to` by `from` atomically.
    ///
    /// # Errors
    /// Whatever the disk says.
    fn rename(&self, from: &Path, to: &Path) -> Result<()>;
    /// Removes a file; one that is not there is no error.
    ///
    /// # Errors
    /// Whatever the disk says.
    fn remove(&self, path: &Path) -> Result<()>;
    /// Makes a directory and its parents.
    ///
    /// # Errors
    /// Whatever the disk says.
    fn create_dir(&self, path: &Path) -> Result<()>;
    /// The entries of a directory, in no order; empty if it is not there.
    ///
    /// # Errors
    /// Whatever the disk says.
    fn list(&self, path: &Path) -> Result<Vec<PathBuf>>;
    /// Makes the names in a directory survive a power cut.
    ///
    /// # Errors
    /// Whatever the disk says.
    fn sync_dir(&self, path: &Path) -> Result<()>;
    /// How full it is.
    ///
    /// # Errors
    /// Whatever the disk says.
    fn space(&self, path: &Path) -> Result<Space>;
}
