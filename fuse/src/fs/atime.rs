//! When inodes were read, by the rules of `relatime`. Reads are noted in memory and written down for many
//! inodes at once, so that no reader waits for a command; until then this node shows what it noted.
//!
//! What the kernel answers from its own pages is not heard here. A file that is opened for reading while its
//! pages may be kept counts as read once a day, so that what is in use never looks forgotten.

use super::Core;
use hfcache_base::InodeId;
use hfcache_base::limits::TOUCH_MAX;
use hfcache_base::meta::{Attr, Op, Timestamp};
use hfcache_base::seam::View;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// How often what was noted is written down.
const WRITE_EVERY: Duration = Duration::from_secs(2);
/// Most notes; what is read beyond, while none can be written down, is not noted.
const NOTES_MAX: usize = 1 << 16;

/// Reads that are not written down yet.
#[derive(Default)]
pub(crate) struct Reads {
    notes: Mutex<BTreeMap<InodeId, Timestamp>>,
    /// How many notes there are, so that nobody locks them for nothing.
    count: AtomicUsize,
}

impl Reads {
    fn note(&self, ino: InodeId, read: Timestamp) {
        let mut notes = self.notes.lock();
        if notes.len() < NOTES_MAX {
            // The first one counts, as it would if it were written down at once.
            notes.entry(ino).or_insert(read);
        }
        self.count.store(notes.len(), Ordering::Release);
    }

    fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    fn some(&self) -> Vec<(InodeId, Timestamp)> {
        self.notes.lock().iter().take(TOUCH_MAX).map(|(ino, read)| (*ino, *read)).collect()
    }

    fn written(&self, done: &[(InodeId, Timestamp)]) {
        let mut notes = self.notes.lock();
        for (ino, _) in done {
            notes.remove(ino);
        }
        self.count.store(notes.len(), Ordering::Release);
    }

    /// Shows what was noted of an inode.
    pub(crate) fn overlay(&self, attr: &mut Attr) {
        if self.is_empty() {
            return;
        }
        let read = self.notes.lock().get(&attr.ino).copied();
        // By the same rule as when it is written down: a change since then has made it void.
        if let Some(read) = read.filter(|read| attr.atime_due(*read)) {
            attr.atime = read;
        }
    }
}

impl Core {
    /// Bytes, entries or the target of an inode were read just now.
    /// However new the view is: whether a note is due is decided again when it is written down.
    pub(crate) fn was_read(&self, view: &dyn View, ino: InodeId) {
        self.note_read(view, ino, Attr::atime_due);
    }

    /// A file whose pages the kernel has was opened to be read.
    pub(crate) fn may_be_read(&self, ino: InodeId) {
        self.note_read(self.meta.read_stale().as_ref(), ino, Attr::atime_is_old);
    }

    fn note_read(&self, view: &dyn View, ino: InodeId, due: fn(&Attr, Timestamp) -> bool) {
        if !self.atime {
            return;
        }
        let now = self.clock.wall();
        if view.attr(ino).is_ok_and(|attr| due(&attr, now)) {
            self.reads.note(ino, now);
        }
    }

    /// Writes down what was noted. What can't be now is tried again.
    pub(crate) async fn write_reads(&self) {
        while !self.reads.is_empty() {
            let some = self.reads.some();
            if let Err(error) = self.commit(Op::Touch(some.clone())).await {
                tracing::debug!(error = %error, "write down when files were read");
                if error.kind().is_transient() {
                    return;
                }
            }
            self.reads.written(&some);
        }
    }
}

/// Writes down notes as long as the file system lives.
pub(crate) fn start(core: &Arc<Core>) {
    if !core.atime {
        return;
    }
    let weak = Arc::downgrade(core);
    let clock = Arc::clone(&core.clock);
    core.runtime.spawn(async move {
        loop {
            clock.sleep(WRITE_EVERY).await;
            let Some(core) = weak.upgrade().filter(|core| !core.over.load(Ordering::Relaxed)) else { return };
            core.write_reads().await;
        }
    });
}
