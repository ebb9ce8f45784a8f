//! Telling the kernel that something it keeps is no longer true.
//!
//! What the kernel does with it, as read in its source and measured on Linux 6.18:
//! - *attributes*: a flag on the inode. It can wait only for an eviction of that very inode that is under
//!   way, and that only for WRITEs of pages dirtied through `mmap`; so a WRITE must never wait for the
//!   thread that sends notices.
//! - *pages*: locks each page, so it waits for READs of it that are under way.
//! - *names*: one counter of the mount ("epoch", Linux 6.16). A name that was looked up under an older
//!   number is looked up again at its next use, whatever its lifetime. Never waits.
//!
//! The epoch is a blunt tool: the kernel does not ask whether an old name still means the same inode, as it
//! does when a lifetime ends, but drops it and looks it up afresh. Measured on Linux 6.18
//! (`tests/kernel_epoch.rs`), after a notice *and* the next lookup of the name by anyone:
//! - Files that are open, mapped or locked go on, and a process inside a directory goes on: a directory gets
//!   its old place back when the lookup is answered.
//! - But *while* that lookup is under way, `getcwd` of processes in that very directory fails with ENOENT.
//!   So lookups must be quick, and notices rare.
//! - `/proc/PID/fd` and `/proc/PID/maps` show an open file as `(deleted)` though it is not.
//! - Something that is mounted at a directory inside our mount is unmounted.
//!
//! A name with no lifetime has none of these troubles: the kernel asks before each use, and keeps its name
//! if the inode is the same. `FUSE_NOTIFY_INVAL_ENTRY` is no way out here: it takes the lock of the
//! directory, which a `create` that waits for the cluster holds.

use super::abi::{Small, cap, notice};
use super::device::Device;
use super::init::Agreed;
use crate::ops::Notify;
use hfcache_base::InodeId;
use rustix::io::Errno;
use std::sync::Arc;
use tracing::{debug, warn};

/// See the module.
pub(super) struct Notifier {
    device: Arc<Device>,
    epochs: bool,
    direct: bool,
}

impl Notifier {
    /// A notifier on this device, which has agreed with the kernel already.
    pub(super) fn new(device: Arc<Device>, agreed: Agreed) -> Self {
        // A kernel without it says EINVAL. To ask is better than to compare versions: distributions carry
        // features back. Nothing has been looked up yet, so that it costs nothing.
        let epochs = device.notice(notice::INC_EPOCH, &[]).is_ok();
        // The kernels that can map such files (Linux 6.6) drop the pages that were written past.
        let direct = agreed.flags & cap::DIRECT_IO_ALLOW_MMAP != 0;
        Self { device, epochs, direct }
    }

    fn inval_inode(&self, ino: InodeId, offset: i64) {
        let mut out = Small::default();
        out.u64(ino.0);
        out.u64(offset as u64);
        // Length: 0 is everything from the offset on.
        out.u64(0);
        match self.device.notice(notice::INVAL_INODE, out.as_slice()) {
            // It does not know the inode, or the mount is gone.
            Ok(()) | Err(Errno::NOENT | Errno::NODEV | Errno::NOTCONN | Errno::PERM) => {}
            Err(error) => debug!(%ino, %error, "invalidate inode"),
        }
    }
}

impl Notify for Notifier {
    fn attr_stale(&self, ino: InodeId) {
        self.inval_inode(ino, -1);
    }

    fn data_stale(&self, ino: InodeId) {
        self.inval_inode(ino, 0);
    }

    fn names_stale(&self) -> bool {
        if !self.epochs {
            return false;
        }
        match self.device.notice(notice::INC_EPOCH, &[]) {
            Ok(()) => true,
            // The mount is gone, and every name with it.
            Err(Errno::NODEV | Errno::NOTCONN | Errno::PERM) => true,
            Err(error) => {
                warn!(%error, "expire names");
                false
            }
        }
    }

    fn can_expire_names(&self) -> bool {
        self.epochs
    }

    fn direct_is_coherent(&self) -> bool {
        self.direct
    }
}
