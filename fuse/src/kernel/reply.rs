//! From answers to the bytes the kernel wants. Pure.

use super::abi::{BLKSIZE, OFFSET_MAX, Small, flag, split_time, type_bits};
use crate::ops::{Entry, Opened, Row, StatFs};
use hfcache_base::limits::NAME_MAX;
use hfcache_base::meta::{Attr, Lock};

/// Bytes of a `fuse_entry_out`.
const ENTRY: usize = 128;
/// Bytes of a `fuse_dirent` before the name.
const DIRENT: usize = 24;
/// `statfs` counts in these.
const FRAGMENT: u64 = 4096;

fn attr_into(out: &mut Small, attr: &Attr) {
    let times = [attr.atime, attr.mtime, attr.ctime].map(split_time);
    out.u64(attr.ino.0);
    out.u64(attr.size);
    out.u64(attr.allocated.div_ceil(512));
    for (seconds, _) in times {
        out.u64(seconds);
    }
    for (_, nanos) in times {
        out.u32(nanos);
    }
    out.u32(type_bits(attr.kind) | attr.mode & 0o7777);
    out.u32(attr.nlink);
    out.u32(attr.uid);
    out.u32(attr.gid);
    out.u32(attr.rdev);
    out.u32(BLKSIZE);
    out.u32(0);
}

fn entry_into(out: &mut Small, entry: &Entry) {
    out.u64(entry.attr.ino.0);
    // Generation: an inode number is never used again.
    out.u64(0);
    out.u64(entry.entry_ttl.as_secs());
    out.u64(entry.attr_ttl.as_secs());
    out.u32(entry.entry_ttl.subsec_nanos());
    out.u32(entry.attr_ttl.subsec_nanos());
    attr_into(out, &entry.attr);
}

fn opened_into(out: &mut Small, opened: &Opened) {
    let mut flags = 0;
    if opened.keep_cache {
        flags |= flag::FOPEN_KEEP_CACHE;
    }
    if opened.direct_io {
        flags |= flag::FOPEN_DIRECT_IO;
    }
    if opened.no_flush {
        flags |= flag::FOPEN_NOFLUSH;
    }
    out.u64(opened.handle);
    out.u32(flags);
    out.u32(0);
}

/// For LOOKUP and what makes an inode.
pub(super) fn entry(entry: &Entry) -> Small {
    let mut out = Small::default();
    entry_into(&mut out, entry);
    out
}

/// For GETATTR and SETATTR.
pub(super) fn attr(entry: &Entry) -> Small {
    let mut out = Small::default();
    out.u64(entry.attr_ttl.as_secs());
    out.u32(entry.attr_ttl.subsec_nanos());
    out.u32(0);
    attr_into(&mut out, &entry.attr);
    out
}

/// For OPEN and OPENDIR.
pub(super) fn opened(opened: &Opened) -> Small {
    let mut out = Small::default();
    opened_into(&mut out, opened);
    out
}

/// For CREATE.
pub(super) fn created(entry: &Entry, opened: &Opened) -> Small {
    let mut out = Small::default();
    entry_into(&mut out, entry);
    opened_into(&mut out, opened);
    out
}

/// For WRITE.
pub(super) fn written(size: u32) -> Small {
    let mut out = Small::default();
    out.u32(size);
    out.u32(0);
    out
}

/// For COPY_FILE_RANGE: how much was copied, in 64 bits or as for a WRITE.
pub(super) fn copied(len: u64, wide: bool) -> Small {
    if !wide {
        return written(u32::try_from(len).unwrap_or(u32::MAX));
    }
    let mut out = Small::default();
    out.u64(len);
    out
}

/// For STATFS.
pub(super) fn statfs(stat: &StatFs) -> Small {
    let mut out = Small::default();
    let free = stat.available / FRAGMENT;
    out.u64(stat.total / FRAGMENT);
    out.u64(free);
    out.u64(free);
    // Inodes are made on demand, each at the price of some bytes: the free bytes are the honest bound.
    let inodes = stat.inodes_free.map_or(free, |left| left.min(free));
    out.u64(stat.inodes.saturating_add(inodes));
    out.u64(inodes);
    out.u32(BLKSIZE);
    out.u32(u32::try_from(NAME_MAX).unwrap_or(255));
    out.u32(FRAGMENT as u32);
    for _ in 0..7 {
        out.u32(0);
    }
    out
}

/// For GETLK: the lock in the way, or none.
pub(super) fn lock(asked: &Lock, found: Option<&Lock>) -> Small {
    let mut out = Small::default();
    let lock = found.unwrap_or(asked);
    let kind = match found {
        None => libc::F_UNLCK,
        Some(lock) if lock.exclusive => libc::F_WRLCK,
        Some(_) => libc::F_RDLCK,
    };
    out.u64(lock.start.min(OFFSET_MAX));
    out.u64(lock.end.min(OFFSET_MAX));
    out.put(&kind.to_ne_bytes());
    out.u32(lock.pid);
    out
}

/// Packs rows for READDIR or READDIRPLUS until one does not fit into `size` bytes.
pub(super) fn rows(out: &mut Vec<u8>, rows: &[Row], size: usize, plus: bool) {
    for row in rows {
        let head = if plus { ENTRY } else { 0 } + DIRENT;
        let len = (head + row.name.len()).next_multiple_of(8);
        if out.len() + len > size {
            return;
        }
        let end = out.len() + len;
        if plus {
            match &row.entry {
                Some(known) => out.extend_from_slice(entry(known).as_slice()),
                // Node 0: the kernel takes the name and looks nothing up.
                None => out.resize(out.len() + ENTRY, 0),
            }
        }
        out.extend_from_slice(&row.ino.0.to_ne_bytes());
        out.extend_from_slice(&row.cookie.to_ne_bytes());
        out.extend_from_slice(&u32::try_from(row.name.len()).unwrap_or(0).to_ne_bytes());
        out.extend_from_slice(&(type_bits(row.kind) >> 12).to_ne_bytes());
        out.extend_from_slice(&row.name);
        out.resize(end, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hfcache_base::InodeId;
    use hfcache_base::meta::{FileKind, LockKind, Timestamp};
    use std::time::Duration;

    fn sample() -> Entry {
        let attr = Attr {
            ino: InodeId(7),
            kind: FileKind::File,
            mode: 0o644,
            nlink: 1,
            uid: 1,
            gid: 2,
            rdev: 0,
            size: 5,
            allocated: 513,
            atime: Timestamp(-1),
            mtime: Timestamp(0),
            ctime: Timestamp(1),
            data_version: 0,
        };
        Entry { attr, attr_ttl: Duration::from_millis(1_500), entry_ttl: Duration::ZERO }
    }

    #[test]
    fn answers_have_the_kernels_sizes() {
        let open = Opened { handle: 1, keep_cache: true, ..Opened::default() };
        assert_eq!(entry(&sample()).as_slice().len(), ENTRY);
        assert_eq!(attr(&sample()).as_slice().len(), 104);
        assert_eq!(opened(&open).as_slice().len(), 16);
        assert_eq!(created(&sample(), &open).as_slice().len(), 144);
        assert_eq!(written(1).as_slice().len(), 8);
        assert_eq!(statfs(&StatFs::default()).as_slice().len(), 80);
        let asked =
            Lock { kind: LockKind::Posix, owner: 1, exclusive: true, start: 0, end: u64::MAX, pid: 0 };
        assert_eq!(lock(&asked, None).as_slice().len(), 24);
        assert_eq!(lock(&asked, Some(&asked)).as_slice()[8..16], OFFSET_MAX.to_ne_bytes());
    }

    #[test]
    fn rows_are_aligned_and_end_before_the_one_that_does_not_fit() {
        let row = |name: &str, entry| Row {
            name: name.into(),
            ino: InodeId(3),
            kind: FileKind::Directory,
            cookie: 9,
            entry,
        };
        let list = [row(".", None), row("12345678", Some(sample())), row("123456789", None)];
        let mut out = Vec::new();
        rows(&mut out, &list, 32 + 32 + 40, false);
        assert_eq!(out.len(), 32 + 32 + 40);
        out.clear();
        rows(&mut out, &list, 32 + 32 + 39, false);
        assert_eq!(out.len(), 64);
        out.clear();
        rows(&mut out, &list, 4096, true);
        assert_eq!(out.len(), 3 * ENTRY + 32 + 32 + 40);
        assert!(out[..ENTRY].iter().all(|&b| b == 0));
        assert_eq!(out[ENTRY + 20], 4);
    }
}
