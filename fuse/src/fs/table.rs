//! Inodes that are open on this node, open handles, and which version the kernel's pages are of.

use super::base::Base;
use super::file::File;
use super::read::Readahead;
use hfcache_base::{Error, InodeId, Kind, Result};
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Most open handles.
const HANDLES_MAX: usize = 1 << 20;
/// Most inodes whose pages are remembered over opens; beyond, the kernel's cache is dropped at open.
const PAGES_MAX: usize = 1 << 17;

/// One open(2).
pub(crate) struct Handle {
    /// What is open.
    pub(crate) file: Arc<File>,
    /// Opened for writing.
    pub(crate) write: bool,
    /// Its bytes go past the page cache.
    pub(crate) direct: bool,
    /// That it was read is noted, or shall not be (O_NOATIME).
    pub(crate) noted: AtomicBool,
    /// How it is read.
    pub(crate) readahead: Mutex<Readahead>,
    /// The kernel tells of every close.
    pub(crate) flushed: bool,
    /// Who took `fcntl` locks through it, if the kernel tells of no close.
    pub(crate) lockers: Mutex<Vec<u64>>,
}

struct Open {
    file: Arc<File>,
    handles: usize,
}

/// See the module. Its locks are leaves: nothing is called while one is held.
#[derive(Default)]
pub(crate) struct Table {
    files: RwLock<HashMap<InodeId, Open>>,
    handles: RwLock<HashMap<u64, Arc<Handle>>>,
    next: AtomicU64,
    pages: Mutex<HashMap<InodeId, u64>>,
}

impl Table {
    /// The open file of an inode.
    pub(crate) fn file(&self, ino: InodeId) -> Option<Arc<File>> {
        self.files.read().get(&ino).map(|o| Arc::clone(&o.file))
    }

    /// Whether an inode is open here.
    pub(crate) fn is_open(&self, ino: InodeId) -> bool {
        self.files.read().contains_key(&ino)
    }

    /// All open files.
    pub(crate) fn files(&self) -> Vec<Arc<File>> {
        self.files.read().values().map(|o| Arc::clone(&o.file)).collect()
    }

    /// The file of an inode, opened once more, with this content or what it had if that is newer.
    ///
    /// # Errors
    /// Too many handles.
    pub(crate) fn open(&self, base: Arc<Base>) -> Result<Arc<File>> {
        if self.handles.read().len() >= HANDLES_MAX {
            return Err(Error::new(Kind::Busy, "too many open files"));
        }
        let ino = base.attr.ino;
        let mut files = self.files.write();
        let open = files
            .entry(ino)
            .or_insert_with(|| Open { file: Arc::new(File::new(ino, Arc::clone(&base))), handles: 0 });
        open.handles += 1;
        let file = Arc::clone(&open.file);
        drop(files);
        if !file.inner.lock().install(base) {
            file.stale.mark();
        }
        Ok(file)
    }

    /// Undoes one [`Table::open`]. Answers whether that was the last: the file is no longer here.
    pub(crate) fn close(&self, ino: InodeId) -> bool {
        let mut files = self.files.write();
        let Some(open) = files.get_mut(&ino) else { return false };
        open.handles = open.handles.saturating_sub(1);
        if open.handles == 0 {
            files.remove(&ino);
            return true;
        }
        false
    }

    /// How many handles an inode has here.
    pub(crate) fn opens(&self, ino: InodeId) -> usize {
        self.files.read().get(&ino).map_or(0, |o| o.handles)
    }

    /// A handle for a file that was [`Table::open`]ed.
    pub(crate) fn add_handle(&self, file: Arc<File>, flags: u32, direct: bool) -> (u64, Arc<Handle>) {
        let mode = flags as i32 & libc::O_ACCMODE;
        let flushed = mode != libc::O_RDONLY || file.fcntl.load(Ordering::SeqCst);
        let handle = Handle {
            file,
            write: mode == libc::O_WRONLY || mode == libc::O_RDWR,
            direct,
            noted: AtomicBool::new(flags as i32 & libc::O_NOATIME != 0),
            readahead: Mutex::default(),
            flushed,
            lockers: Mutex::default(),
        };
        let (id, handle) = (self.next.fetch_add(1, Ordering::Relaxed) + 1, Arc::new(handle));
        self.handles.write().insert(id, Arc::clone(&handle));
        (id, handle)
    }

    /// An open handle of this inode.
    ///
    /// # Errors
    /// [`Kind::BadHandle`].
    pub(crate) fn handle(&self, ino: InodeId, id: u64) -> Result<Arc<Handle>, Kind> {
        let handle = self.handles.read().get(&id).map(Arc::clone).ok_or(Kind::BadHandle)?;
        if handle.file.ino == ino { Ok(handle) } else { Err(Kind::BadHandle) }
    }

    /// Takes a handle out.
    pub(crate) fn remove_handle(&self, id: u64) -> Option<Arc<Handle>> {
        self.handles.write().remove(&id)
    }

    /// An open will show this version. Answers whether the pages that the kernel kept are of it.
    pub(crate) fn pages_opened(&self, ino: InodeId, version: u64) -> bool {
        let mut pages = self.pages.lock();
        if pages.len() >= PAGES_MAX {
            pages.clear();
        }
        pages.insert(ino, version) == Some(version)
    }

    /// This node's own change made one version of another; the kernel's pages went along with it.
    pub(crate) fn pages_advance(&self, ino: InodeId, from: u64, to: u64) {
        let mut pages = self.pages.lock();
        if pages.get(&ino) == Some(&from) {
            pages.insert(ino, to);
        } else {
            pages.remove(&ino);
        }
    }

    /// The kernel's pages of an inode may be wrong.
    pub(crate) fn pages_wrong(&self, ino: InodeId) {
        self.pages.lock().remove(&ino);
    }

    /// The kernel's pages may all be wrong.
    pub(crate) fn all_pages_wrong(&self) {
        self.pages.lock().clear();
    }
}
