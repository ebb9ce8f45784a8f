//! Attributes: what `stat` shows, what a listing shows, what can be set.

use crate::InodeId;
use serde::{Deserialize, Serialize};

/// Nanoseconds since 1970-01-01 UTC; negative before. Reaches from 1677 to 2262.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

/// What an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FileKind {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Named pipe.
    Fifo,
    /// Unix socket.
    Socket,
    /// Character device.
    CharDevice,
    /// Block device.
    BlockDevice,
}

/// What `stat` shows, and what caches compare.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attr {
    /// Inode number.
    pub ino: InodeId,
    /// What it is.
    pub kind: FileKind,
    /// Permission bits (`0o7777`).
    pub mode: u32,
    /// Names it has; 0 while open but unlinked.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node.
    pub rdev: u32,
    /// Bytes of a file or a link's target; for a directory, the number of its entries.
    pub size: u64,
    /// Bytes that are held by chunks or inline, without holes.
    pub allocated: u64,
    /// Last access as far as it was recorded.
    pub atime: Timestamp,
    /// Last change of content.
    pub mtime: Timestamp,
    /// Last change of content or attributes.
    pub ctime: Timestamp,
    /// Changes exactly when the content changes: what a kept page or a hot copy is valid for.
    pub data_version: u64,
}

/// An atime that is newer than the last change is renewed after this long.
const ATIME_EVERY: i64 = 24 * 3_600 * 1_000_000_000;

impl Attr {
    /// Whether a read at this time belongs into atime, by the rules of `relatime`: only the first one after a
    /// change, and one a day.
    pub fn atime_due(&self, read: Timestamp) -> bool {
        read > self.atime
            && read > self.ctime
            && (self.atime <= self.mtime || self.atime <= self.ctime || self.atime_is_old(read))
    }

    /// Whether atime is a day older than this read.
    pub fn atime_is_old(&self, read: Timestamp) -> bool {
        read.0.saturating_sub(self.atime.0) >= ATIME_EVERY
    }
}

/// One row of a directory listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirEntry {
    /// The name, any bytes but `/` and NUL.
    pub name: Vec<u8>,
    /// Its inode and attributes.
    pub attr: Attr,
    /// Where the listing goes on after this row. Stable while the directory changes; never 0, 1 or 2,
    /// which the mount uses for the start, `.` and `..`.
    pub cookie: u64,
}

/// A time in a `setattr`: the proposer's clock, or what the caller gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SetTime {
    /// UTIME_NOW.
    Now,
    /// Exactly this.
    To(Timestamp),
}

/// Which attributes to set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// New size: cuts or grows with a hole. Changes mtime and data_version when it differs.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<SetTime>,
    /// Change time of the content.
    pub mtime: Option<SetTime>,
    /// The caller may not keep set-id bits (the kernel's FATTR_KILL_SUIDGID).
    pub kill_suid: bool,
}
