//! What other nodes change: told to the kernel before this node reports it as applied, so that no one can
//! have seen the change confirmed and still find the old attributes here.

use super::file::File;
use super::{Core, RETRY_MAX};
use crate::ops::Reply;
use hfcache_base::meta::{Applied, Change, Op};
use hfcache_base::seam::ChangeSink;
use hfcache_base::{InodeId, Kind, Result};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Most notices that wait for the kernel; beyond, all open files are told.
const NOTICES_MAX: usize = 1 << 14;
/// How often the session is looked at.
const SESSION_EVERY: Duration = Duration::from_millis(500);

/// The end of the namespace's subscription that does not keep the file system alive.
pub(crate) struct Sink(pub(crate) Weak<Core>);

impl ChangeSink for Sink {
    fn applied(&self, batch: &[Applied]) {
        if let Some(core) = self.0.upgrade() {
            core.applied(batch);
        }
    }

    fn replaced(&self) {
        if let Some(core) = self.0.upgrade() {
            core.known.count_change();
            core.everything_is_stale();
        }
    }
}

/// Changes of this node's own that are on their way and that the kernel hears of by their answer: of names that it
/// may keep, and of attributes. Other nodes show them before that answer is here, so from when they are applied
/// the kernel must ask for such things, as if another node had changed them.
#[derive(Default)]
pub(crate) struct UnderWay {
    names: AtomicUsize,
    attrs: AtomicUsize,
}

impl UnderWay {
    /// A name that is there is about to go, or to mean something else.
    pub(crate) fn name(&self) -> OwnChange<'_> {
        OwnChange::begin(&self.names)
    }

    /// Attributes are about to be set.
    pub(crate) fn attr(&self) -> OwnChange<'_> {
        OwnChange::begin(&self.attrs)
    }
}

/// One of [`UnderWay`]. One that has no certain end stays under way for ever: it may take effect at any time.
pub(crate) struct OwnChange<'a>(&'a AtomicUsize);

impl<'a> OwnChange<'a> {
    fn begin(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }

    /// The namespace has answered.
    pub(crate) fn answered<T>(self, answer: &Result<T>) {
        let unknown = answer.as_ref().is_err_and(|e| e.kind().is_transient() || e.kind() == Kind::Fenced);
        if !unknown {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

enum Notice {
    /// Pages and attributes.
    Data(InodeId),
    /// Attributes once more: the kernel may have been about to learn the inode from an answer that was on
    /// its way when it was told the first time.
    AttrAgain(InodeId),
    /// Pages of all open files.
    All,
    /// An answer that must come after all of these.
    Then(Reply<()>),
}

/// Notices that may block, on a thread that no request waits for.
pub(crate) struct StaleQueue {
    send: SyncSender<Notice>,
    pending: Arc<AtomicU64>,
    overflow: Arc<AtomicBool>,
}

impl StaleQueue {
    /// Starts the thread; it ends with the file system.
    pub(crate) fn start(core: Weak<Core>) -> Self {
        let (send, receive) = sync_channel(NOTICES_MAX);
        let pending = Arc::new(AtomicU64::new(0));
        let overflow = Arc::new(AtomicBool::new(false));
        let (left, lost) = (Arc::clone(&pending), Arc::clone(&overflow));
        std::thread::spawn(move || notify(&core, &receive, &left, &lost));
        Self { send, pending, overflow }
    }

    fn push(&self, notice: Notice) {
        self.pending.fetch_add(1, Ordering::SeqCst);
        match self.send.try_send(notice) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                // The thread is busy with the queue, so it will see this.
                self.overflow.store(true, Ordering::SeqCst);
                self.pending.fetch_sub(1, Ordering::SeqCst);
            }
            Err(TrySendError::Disconnected(_)) => {
                self.pending.fetch_sub(1, Ordering::SeqCst);
            }
        }
    }

    /// Has the kernel drop the pages of an inode.
    pub(crate) fn pages_of(&self, ino: InodeId) {
        self.push(Notice::Data(ino));
    }

    /// Whether the kernel has still to be told something.
    pub(crate) fn is_pending(&self) -> bool {
        self.pending.load(Ordering::SeqCst) > 0
    }

    /// Answers after everything that waits now.
    pub(crate) fn after_pending(&self, reply: Reply<()>) {
        self.pending.fetch_add(1, Ordering::SeqCst);
        if let Err(TrySendError::Full(back) | TrySendError::Disconnected(back)) =
            self.send.try_send(Notice::Then(reply))
        {
            self.pending.fetch_sub(1, Ordering::SeqCst);
            if let Notice::Then(reply) = back {
                reply.ok(());
            }
        }
    }
}

fn notify(core: &Weak<Core>, receive: &Receiver<Notice>, pending: &AtomicU64, overflow: &AtomicBool) {
    while let Ok(notice) = receive.recv() {
        let Some(core) = core.upgrade() else { return };
        let kernel = core.notify.get();
        let all = || {
            for file in core.table.files() {
                if let Some(kernel) = kernel {
                    kernel.data_stale(file.ino);
                }
            }
        };
        match notice {
            Notice::Data(ino) => {
                if let Some(kernel) = kernel
                    && core.table.is_open(ino)
                {
                    kernel.data_stale(ino);
                }
            }
            Notice::AttrAgain(ino) => {
                if let Some(kernel) = kernel {
                    kernel.attr_stale(ino);
                }
            }
            Notice::All => all(),
            Notice::Then(reply) => reply.ok(()),
        }
        if overflow.swap(false, Ordering::SeqCst) {
            all();
        }
        pending.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Core {
    fn applied(self: &Arc<Self>, batch: &[Applied]) {
        self.known.count_change();
        let own = self.session.load(Ordering::Relaxed);
        let now = self.clock.now().0;
        // Among processes of one node the kernel's own order is enough.
        let others = || self.meta.map().nodes.len() != 1;
        let own_names = self.under_way.names.load(Ordering::SeqCst) > 0 && others();
        let own_attrs = self.under_way.attrs.load(Ordering::SeqCst) > 0 && others();
        let mut names = false;
        for applied in batch {
            // Sessions are never used twice: an old number here only means a needless notice.
            let remote = applied.session.0 != own || own == 0;
            for change in &applied.changes {
                match change {
                    Change::Inode { ino, data } => {
                        self.inode_changed(*ino, *data, remote, own_attrs, now);
                    }
                    // The kernel asks whom an inode belongs to without a look whether what it knows is stale;
                    // it learns that when it looks a name up.
                    Change::Owner(ino) => names |= remote && self.known.has_attr(*ino, now),
                    // The kernel keeps lists with the attributes, and forgets them together.
                    Change::Acl(ino) => self.attr_changed(*ino, remote, now),
                    Change::Entry { .. } => names |= remote || own_names,
                    Change::Orphaned(ino) => self.orphaned(*ino),
                    Change::Restored { ino, parent } => {
                        // The kernel hears of it by no answer, also where this node asked for it.
                        names = true;
                        self.restored(*ino, now);
                        self.attr_changed(*parent, true, now);
                    }
                    Change::Reaped(ino) => self.table.pages_wrong(*ino),
                    _ => {}
                }
            }
        }
        if names
            && self.known.has_names(now)
            && let Some(kernel) = self.notify.get()
        {
            kernel.names_stale();
        }
    }

    fn inode_changed(&self, ino: InodeId, data: bool, remote: bool, own: bool, now: Duration) {
        if remote && data {
            if let Some(file) = self.table.file(ino) {
                file.stale.mark();
                self.stale.push(Notice::Data(ino));
            }
            self.table.pages_wrong(ino);
        }
        if let Some(file) = self.table.file(ino) {
            file.no_set_id.store(false, Ordering::SeqCst);
        }
        if remote || data || own {
            self.attr_changed(ino, remote, now);
        }
    }

    fn attr_changed(&self, ino: InodeId, remote: bool, now: Duration) {
        if self.known.has_attr(ino, now)
            && let Some(kernel) = self.notify.get()
        {
            kernel.attr_stale(ino);
            if remote {
                self.stale.push(Notice::AttrAgain(ino));
            }
        }
    }

    fn orphaned(self: &Arc<Self>, ino: InodeId) {
        if let Some(file) = self.table.file(ino) {
            file.orphaned.store(true, Ordering::SeqCst);
            self.hold_orphan(ino);
        }
    }

    /// What is open here is saved again, and needs no holder.
    fn restored(&self, ino: InodeId, now: Duration) {
        if let Some(file) = self.table.file(ino) {
            file.orphaned.store(false, Ordering::SeqCst);
            file.held.store(false, Ordering::SeqCst);
        }
        self.attr_changed(ino, true, now);
    }

    /// An open file that was thought nameless has a name, as this node's state says.
    pub(crate) fn named_again(self: &Arc<Self>, file: &File) {
        file.orphaned.store(false, Ordering::SeqCst);
        file.held.store(false, Ordering::SeqCst);
        if self.meta.read_stale().attr(file.ino).is_ok_and(|now| now.nlink == 0) {
            // Unlinked again meanwhile, which nobody heard who thought it nameless.
            file.orphaned.store(true, Ordering::SeqCst);
            self.hold_orphan(file.ino);
        }
    }

    /// Tells the namespace that a nameless inode is open here.
    pub(crate) fn hold_orphan(self: &Arc<Self>, ino: InodeId) {
        let core = Arc::clone(self);
        self.runtime.spawn(async move {
            let Some(file) = core.table.file(ino) else { return };
            if file.held.swap(true, Ordering::SeqCst) {
                return;
            }
            if let Err(e) = core.meta.commit(Op::Hold { ino, hold: true }).await {
                tracing::warn!(ino = %ino, error = %e, "hold orphan");
                file.held.store(false, Ordering::SeqCst);
            }
            // Closed meanwhile: nobody else will let go.
            if !core.table.is_open(ino) && file.held.swap(false, Ordering::SeqCst) {
                core.let_orphan_go(ino);
            }
        });
    }

    fn everything_is_stale(&self) {
        self.table.all_pages_wrong();
        for file in self.table.files() {
            file.stale.mark();
        }
        self.stale.push(Notice::All);
        if let Some(kernel) = self.notify.get() {
            kernel.names_stale();
        }
    }
}

/// Follows this node's session: which changes are its own, and whether it has lost it.
pub(crate) fn watch_session(core: &Arc<Core>) {
    look_at_session(core);
    let weak = Arc::downgrade(core);
    let clock = Arc::clone(&core.clock);
    core.runtime.spawn(async move {
        loop {
            clock.sleep(SESSION_EVERY).await;
            let Some(core) = weak.upgrade().filter(|core| !core.over.load(Ordering::Relaxed)) else { return };
            look_at_session(&core);
        }
    });
}

fn look_at_session(core: &Arc<Core>) {
    let session = core.meta.status().session.map_or(0, |s| s.0);
    let before = core.session.swap(session, Ordering::Relaxed);
    if session == before {
        return;
    }
    if session == 0 {
        tracing::error!("session lost: files are refused until there is a new one");
        core.fenced.store(true, Ordering::Relaxed);
    } else if core.fenced.swap(false, Ordering::Relaxed) || before != 0 {
        tracing::warn!("new session: locks of the old one are gone");
        core.everything_is_stale();
    }
}

const _: () = assert!(SESSION_EVERY.as_millis() <= RETRY_MAX.as_millis());
