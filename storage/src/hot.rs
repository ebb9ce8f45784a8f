//! Local files: what writers stage and what readers fetched. Sparse files under `DATA/hot`, each with a map
//! in memory of what is present. Files nobody holds stay as hot copies until their room is needed; shards
//! always win. The directory is emptied at every start: the maps are gone by then, and bytes that
//! nobody committed are nobody's.

use hfcache_base::interval::IntervalSet;
use hfcache_base::limits::MIB;
use hfcache_base::seam::{Disk, DiskFile, LocalFile, LocalKey};
use hfcache_base::{Error, Kind, Result};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// Free space is looked at after this many bytes were written.
const CHECK_EVERY: u64 = 16 * MIB;
/// Most hot copies nobody holds; each costs a descriptor.
const COPIES_MAX: usize = 4_096;

/// What hot files leave free.
#[derive(Clone, Copy, Debug)]
pub struct Floors {
    /// Below this, hot copies that nobody holds are evicted.
    pub evict: u64,
    /// Below this, writing to a local file fails.
    pub refuse: u64,
}

struct HotCopy {
    file: Arc<HotFile>,
    used: u64,
}

#[derive(Default)]
struct State {
    copies: BTreeMap<LocalKey, HotCopy>,
    /// Staging files by the address of their `HotFile`, which is unique while it lives.
    staged: HashMap<usize, Weak<HotFile>>,
    /// Counts up with each use: the order for eviction.
    clock: u64,
}

/// See the module.
pub struct Hot {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    floors: Floors,
    next: AtomicU64,
    written: AtomicU64,
    state: Mutex<State>,
    myself: Weak<Hot>,
}

impl Hot {
    /// Empties the directory and begins.
    ///
    /// # Errors
    /// What the disk says.
    pub fn open(disk: Arc<dyn Disk>, dir: PathBuf, floors: Floors) -> Result<Arc<Self>> {
        disk.create_dir(&dir)?;
        for left in disk.list(&dir)? {
            disk.remove(&left)?;
        }
        Ok(Arc::new_cyclic(|myself| Self {
            disk,
            dir,
            floors,
            next: AtomicU64::new(0),
            written: AtomicU64::new(0),
            state: Mutex::default(),
            myself: myself.clone(),
        }))
    }

    fn make(&self, len: u64) -> Result<Arc<HotFile>> {
        let path = self.dir.join(format!("{:08x}", self.next.fetch_add(1, Ordering::Relaxed)));
        let file = self.disk.open(&path, true).or_else(|e| {
            // Out of space, or out of descriptors: copies nobody holds have both.
            if self.evict(MIB) { self.disk.open(&path, true) } else { Err(e) }
        })?;
        if len > 0 {
            file.set_len(len)?;
        }
        let present = Mutex::new(Presence { ranges: IntervalSet::default(), len });
        Ok(Arc::new(HotFile { file, path, present, writing: Mutex::new(()), hot: self.myself.clone() }))
    }

    /// See [`hfcache_base::seam::Chunks::local`].
    ///
    /// # Errors
    /// What the disk says.
    pub fn local(&self, key: LocalKey, len: u64) -> Result<Arc<HotFile>> {
        if let Some(file) = self.use_copy(key) {
            return Ok(file);
        }
        // Touches the disk and may evict, so not under the lock; nothing that owns a file is dropped under it.
        let made = self.make(len)?;
        let over = {
            let mut state = self.state.lock();
            if state.copies.len() >= COPIES_MAX { oldest_unused(&mut state) } else { None }
        };
        drop(over);
        let mut state = self.state.lock();
        state.clock += 1;
        let used = state.clock;
        let copy = state.copies.entry(key).or_insert_with(|| HotCopy { file: made.clone(), used });
        let file = copy.file.clone();
        drop(state);
        Ok(file)
    }

    fn use_copy(&self, key: LocalKey) -> Option<Arc<HotFile>> {
        let mut state = self.state.lock();
        state.clock += 1;
        let used = state.clock;
        let copy = state.copies.get_mut(&key)?;
        copy.used = used;
        Some(copy.file.clone())
    }

    /// See [`hfcache_base::seam::Chunks::stage`].
    ///
    /// # Errors
    /// [`Kind::NoSpace`] and what the disk says.
    pub fn stage(&self) -> Result<Arc<HotFile>> {
        self.room()?;
        let file = self.make(0)?;
        self.state.lock().staged.insert(Arc::as_ptr(&file).addr(), Arc::downgrade(&file));
        Ok(file)
    }

    /// See [`hfcache_base::seam::Chunks::publish`]. Earlier versions of the file that nobody holds go.
    pub fn publish(&self, staged: &Arc<dyn LocalFile>, key: LocalKey) {
        let address = Arc::as_ptr(staged).cast::<()>().addr();
        let gone: Vec<HotCopy> = {
            let mut state = self.state.lock();
            let Some(file) = state.staged.get(&address).and_then(Weak::upgrade) else {
                return;
            };
            state.clock += 1;
            let used = state.clock;
            let old: Vec<LocalKey> = state
                .copies
                .range(LocalKey { ino: key.ino, version: 0 }..=key)
                .filter(|(_, copy)| Arc::strong_count(&copy.file) == 1)
                .map(|(old, _)| *old)
                .collect();
            let mut gone: Vec<HotCopy> = old.iter().filter_map(|k| state.copies.remove(k)).collect();
            // If a reader already holds a copy of this very content, both stay right; new readers get ours.
            gone.extend(state.copies.insert(key, HotCopy { file, used }));
            gone
        };
        // Removes files, which takes the lock.
        drop(gone);
    }

    /// Evicts unused copies, oldest first, until `bytes` were freed; `false` if none could be.
    pub fn evict(&self, bytes: u64) -> bool {
        let mut freed = 0;
        let mut any = false;
        while freed < bytes {
            let Some(copy) = oldest_unused(&mut self.state.lock()) else { break };
            freed += copy.file.present.lock().ranges.bytes();
            any = true;
            // The last owner removes the file.
            drop(copy);
        }
        any
    }

    /// Like [`Hot::evict`], if the hot files are on the file system of this directory's disk.
    pub fn evict_for(&self, root: &Path, bytes: u64) -> bool {
        self.dir.starts_with(root) && self.evict(bytes)
    }

    /// Keeps the floors.
    fn room(&self) -> Result<()> {
        let free = self.disk.space(&self.dir)?.free;
        if free < self.floors.evict {
            self.evict(self.floors.evict - free);
        }
        if free < self.floors.refuse && self.disk.space(&self.dir)?.free < self.floors.refuse {
            return Err(Error::new(Kind::NoSpace, "the disk of the hot files is full"));
        }
        Ok(())
    }

    /// Accounts for bytes about to be written.
    fn charge(&self, bytes: u64) -> Result<()> {
        let before = self.written.fetch_add(bytes, Ordering::Relaxed);
        if before / CHECK_EVERY != (before + bytes) / CHECK_EVERY { self.room() } else { Ok(()) }
    }

    /// Hot copies and the bytes in them, held ones too.
    pub fn usage(&self) -> (u64, u64) {
        let state = self.state.lock();
        let bytes = state.copies.values().map(|c| c.file.present.lock().ranges.bytes()).sum();
        (state.copies.len() as u64, bytes)
    }
}

fn oldest_unused(state: &mut State) -> Option<HotCopy> {
    let unused = state.copies.iter().filter(|(_, c)| Arc::strong_count(&c.file) == 1);
    let key = unused.min_by_key(|(_, c)| c.used).map(|(k, _)| *k)?;
    state.copies.remove(&key)
}

struct Presence {
    ranges: IntervalSet,
    len: u64,
}

/// One local file. Its name goes with its last owner.
pub struct HotFile {
    file: Box<dyn DiskFile>,
    path: PathBuf,
    present: Mutex<Presence>,
    /// Held while bytes are written, so that a fill sees each gap as it is. Readers never take it.
    writing: Mutex<()>,
    hot: Weak<Hot>,
}

impl HotFile {
    /// Writes, and once more after making room if the disk was full.
    fn write(&self, data: &[u8], offset: u64) -> Result<()> {
        let hot = self.hot.upgrade();
        if let Some(hot) = &hot {
            hot.charge(data.len() as u64)?;
        }
        match self.file.write_at(data, offset) {
            Err(e) if e.kind() == Kind::NoSpace && hot.is_some_and(|h| h.evict(data.len() as u64)) => {
                self.file.write_at(data, offset)
            }
            other => other,
        }
    }

    fn mark(&self, range: Range<u64>) {
        let mut present = self.present.lock();
        present.len = present.len.max(range.end);
        present.ranges.insert(range);
    }
}

fn range_of(data: &[u8], offset: u64) -> Result<Range<u64>> {
    let end = offset.checked_add(data.len() as u64).filter(|end| *end <= hfcache_base::limits::FILE_SIZE_MAX);
    Ok(offset..end.ok_or_else(|| Error::from(Kind::TooLarge))?)
}

impl LocalFile for HotFile {
    fn missing(&self, range: Range<u64>) -> Vec<Range<u64>> {
        self.present.lock().ranges.gaps(&range)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.file.read_at(buf, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        let range = range_of(data, offset)?;
        let _writing = self.writing.lock();
        self.write(data, offset)?;
        self.mark(range);
        Ok(())
    }

    fn fill_at(&self, data: &[u8], offset: u64) -> Result<()> {
        let range = range_of(data, offset)?;
        let _writing = self.writing.lock();
        for gap in self.missing(range) {
            let part = &data[(gap.start - offset) as usize..(gap.end - offset) as usize];
            self.write(part, gap.start)?;
            self.mark(gap);
        }
        Ok(())
    }

    fn zero(&self, range: Range<u64>) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let _writing = self.writing.lock();
        let end = self.file.len()?;
        if range.end > end {
            self.file.set_len(range.end)?;
        }
        if range.start < end {
            let inside = range.start..range.end.min(end);
            match self.file.punch(inside.start, inside.end - inside.start) {
                Err(e) if e.kind() == Kind::NotSupported => {
                    let zeros = vec![0u8; MIB as usize];
                    let mut at = inside.start;
                    while at < inside.end {
                        let n = (inside.end - at).min(MIB);
                        self.write(&zeros[..n as usize], at)?;
                        at += n;
                    }
                }
                other => other?,
            }
        }
        self.mark(range);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<()> {
        let _writing = self.writing.lock();
        let mut present = self.present.lock();
        // Nothing may be read between the cut and the mark.
        self.file.set_len(len)?;
        let old = std::mem::replace(&mut present.len, len);
        present.ranges.remove(len..u64::MAX);
        present.ranges.insert(old..len.max(old));
        Ok(())
    }

    fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_fd()
    }
}

impl Drop for HotFile {
    fn drop(&mut self) {
        let Some(hot) = self.hot.upgrade() else { return };
        hot.state.lock().staged.remove(&(&raw const *self).addr());
        if let Err(e) = hot.disk.remove(&self.path) {
            tracing::warn!("remove hot file: {e}");
        }
    }
}
