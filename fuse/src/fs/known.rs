//! What the kernel may have in its caches. Kept small and without locks: a slot may stand for several
//! inodes, which costs a needless notice and never a missing one.

use super::{Core, Lease, TTL_MAX};
use crate::ops::Entry;
use hfcache_base::InodeId;
use hfcache_base::meta::Attr;
use hfcache_base::placement::mix;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const SLOTS: usize = 1 << 16;
/// The kernel counts a lifetime from when it gets the answer, which may be so much later than it was made.
const LATE: Duration = Duration::from_secs(1);

/// See the module. The order of the steps is what makes it right: who hands out attributes notes them
/// first and looks at the counter of changes afterwards; who tells of a change counts first and looks at
/// the notes afterwards. One of the two sees the other.
pub(crate) struct Known {
    /// By hash of the inode number: until when (in ms) the kernel may believe its attributes.
    attrs: Box<[AtomicU64]>,
    /// Until when (in ms) the kernel may believe any name.
    names: AtomicU64,
    /// Batches of changes told so far.
    changes: AtomicU64,
}

impl Default for Known {
    fn default() -> Self {
        Self {
            attrs: (0..SLOTS).map(|_| AtomicU64::new(0)).collect(),
            names: AtomicU64::new(0),
            changes: AtomicU64::new(0),
        }
    }
}

impl Known {
    /// Changes seen so far: to be asked before a view is taken.
    pub(crate) fn seen(&self) -> u64 {
        self.changes.load(Ordering::SeqCst)
    }

    /// Changes are about to be told.
    pub(crate) fn count_change(&self) {
        self.changes.fetch_add(1, Ordering::SeqCst);
    }

    fn slot(&self, ino: InodeId) -> &AtomicU64 {
        &self.attrs[mix(ino.0) as usize % SLOTS]
    }

    /// Whether the kernel may believe attributes of this inode.
    pub(crate) fn has_attr(&self, ino: InodeId, now: Duration) -> bool {
        self.slot(ino).load(Ordering::SeqCst) >= now.as_millis() as u64
    }

    /// Whether the kernel may believe any name.
    pub(crate) fn has_names(&self, now: Duration) -> bool {
        self.names.load(Ordering::SeqCst) >= now.as_millis() as u64
    }
}

impl Core {
    /// Attributes as the kernel gets them: with what was written here and not yet committed, and with a
    /// lifetime that ends with the lease.
    pub(crate) fn entry(&self, mut attr: Attr, lease: &Lease) -> Entry {
        let now = self.clock.now();
        let mut attr_ttl = lease.until.map_or(Duration::ZERO, |until| until.since(now)).min(TTL_MAX);
        let mut entry_ttl = Duration::ZERO;
        if !attr_ttl.is_zero() {
            let end = now.after(attr_ttl + LATE).0.as_millis() as u64;
            self.known.slot(attr.ino).fetch_max(end, Ordering::SeqCst);
            if self.notify.get().is_some_and(|n| n.can_expire_names()) {
                self.known.names.fetch_max(end, Ordering::SeqCst);
                entry_ttl = attr_ttl;
            }
            if self.known.seen() != lease.seen {
                attr_ttl = Duration::ZERO;
                entry_ttl = Duration::ZERO;
            }
        }
        self.reads.overlay(&mut attr);
        if let Some(file) = self.table.file(attr.ino) {
            file.overlay(&mut attr);
        }
        Entry { attr, attr_ttl, entry_ttl }
    }
}
