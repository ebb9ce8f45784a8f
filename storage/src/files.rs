//! Shard files on the disks of this node. Everything here blocks; callers are on an [`crate::pool::IoPool`].

use crate::shard::{HEADER_LARGE, Header, ShardKey};
use bytes::Bytes;
use hfcache_base::error::Context;
use hfcache_base::limits::CELL;
use hfcache_base::placement::mix;
use hfcache_base::seam::{Disk, Space};
use hfcache_base::{Error, Kind, Result};
use parking_lot::{Condvar, Mutex};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Makes room for shards at the cost of something less important: asked with a directory and how many
/// bytes are short, says whether it freed any.
pub type MakeRoom = Box<dyn Fn(&Path, u64) -> bool + Send + Sync>;

/// What a look through the directories found.
#[derive(Debug, Default)]
pub struct Scan {
    /// Shards, each with its disk.
    pub shards: Vec<(ShardKey, usize)>,
    /// Files that are no shards. They are left alone.
    pub strangers: u64,
}

/// See the module.
pub struct ShardFiles {
    disk: Arc<dyn Disk>,
    roots: Vec<PathBuf>,
    reserve: u64,
    nonce: AtomicU64,
    made: Mutex<HashSet<PathBuf>>,
    syncs: DirSyncs,
    make_room: MakeRoom,
}

impl ShardFiles {
    /// Prepares directories; each is a disk of its own. `reserve` bytes of each are never filled, so that
    /// the file system can always delete.
    ///
    /// # Errors
    /// What the disks say.
    pub fn open(disk: Arc<dyn Disk>, roots: Vec<PathBuf>, reserve: u64, make_room: MakeRoom) -> Result<Self> {
        if roots.is_empty() || roots.len() > 255 {
            return Err(Error::new(Kind::Invalid, format!("{} disks", roots.len())));
        }
        for root in &roots {
            for dir in ["shards", "tmp"] {
                disk.create_dir(&root.join(dir))?;
            }
            for left in disk.list(&root.join("tmp"))? {
                disk.remove(&left)?;
            }
            disk.sync_dir(root)?;
        }
        let (made, syncs) = (Mutex::default(), DirSyncs::default());
        Ok(Self { disk, roots, reserve, nonce: AtomicU64::new(0), made, syncs, make_room })
    }

    /// Lists all shards by name; no file is opened.
    ///
    /// # Errors
    /// What the disks say.
    pub fn scan(&self) -> Result<Scan> {
        let mut scan = Scan::default();
        for (at, root) in self.roots.iter().enumerate() {
            for dir in self.disk.list(&root.join("shards"))? {
                let dir_name = dir.file_name().and_then(|n| n.to_str()).unwrap_or_default();
                let Ok(files) = self.disk.list(&dir) else {
                    scan.strangers += 1;
                    continue;
                };
                for file in files {
                    match file.file_name().and_then(|n| n.to_str()).and_then(|n| ShardKey::parse(dir_name, n))
                    {
                        Some(key) => scan.shards.push((key, at)),
                        None => scan.strangers += 1,
                    }
                }
            }
        }
        Ok(scan)
    }

    fn dir(&self, at: usize, key: ShardKey) -> PathBuf {
        self.roots[at].join("shards").join(key.directory())
    }

    fn path(&self, at: usize, key: ShardKey) -> PathBuf {
        self.dir(at, key).join(key.file_name())
    }

    /// Bytes of all disks; what is in reserve is not free.
    pub fn space(&self) -> Space {
        let mut all = Space::default();
        for root in &self.roots {
            let one = self.disk.space(root).unwrap_or_default();
            all.total += one.total;
            all.free += one.free.saturating_sub(self.reserve);
        }
        all
    }

    /// Writes a shard so that it survives a power cut, replacing one of the same name; says on which disk.
    /// Every chunk has its own order of disks, so they fill evenly, and full ones are skipped.
    ///
    /// # Errors
    /// [`Kind::NoSpace`] when all disks are full.
    pub fn write(&self, header: &Header, parts: &[Bytes]) -> Result<usize> {
        let mut order: Vec<usize> = (0..self.roots.len()).collect();
        order.sort_by_key(|at| mix(header.key.chunk.0 ^ mix(*at as u64)));
        let need = header.file_len() + 4_096;
        let mut last = Error::new(Kind::NoSpace, "all disks are full");
        for &at in &order {
            if !self.has_room(at, need) {
                continue;
            }
            let written = self.write_to(at, header, parts).or_else(|e| match e.kind() {
                // Someone removed the directory under our feet.
                Kind::NotFound => {
                    self.made.lock().clear();
                    self.write_to(at, header, parts)
                }
                _ => Err(e),
            });
            match written {
                Ok(()) => return Ok(at),
                // One bad disk of several must not stop the node.
                Err(e) => {
                    if e.kind() != Kind::NoSpace {
                        tracing::error!(shard = %header.key, disk = %self.roots[at].display(), "write shard: {e}");
                    }
                    last = e;
                }
            }
        }
        Err(last)
    }

    fn has_room(&self, at: usize, need: u64) -> bool {
        let free = || self.disk.space(&self.roots[at]).map_or(0, |s| s.free);
        let want = need.saturating_add(self.reserve);
        let now = free();
        now >= want || ((self.make_room)(&self.roots[at], want - now) && free() >= want)
    }

    fn write_to(&self, at: usize, header: &Header, parts: &[Bytes]) -> Result<()> {
        let dir = self.dir(at, header.key);
        if !self.made.lock().contains(&dir) {
            self.disk.create_dir(&dir)?;
            self.syncs.sync(&*self.disk, &self.roots[at].join("shards"))?;
            self.made.lock().insert(dir.clone());
        }
        let nonce = self.nonce.fetch_add(1, Ordering::Relaxed);
        let temporary = self.roots[at].join("tmp").join(format!("{}.{nonce:x}", header.key.file_name()));
        let done = self.fill(&temporary, header, parts).and_then(|()| {
            self.disk.rename(&temporary, &self.path(at, header.key))?;
            self.syncs.sync(&*self.disk, &dir)
        });
        if done.is_err() {
            // Best effort: the start of the next run empties this directory anyway.
            let _ = self.disk.remove(&temporary);
        }
        done.doing(|| format!("write shard {}", header.key))
    }

    fn fill(&self, path: &Path, header: &Header, parts: &[Bytes]) -> Result<()> {
        let file = self.disk.open(path, true)?;
        let head = header.encode();
        let all: Vec<&[u8]> = std::iter::once(head.as_slice()).chain(parts.iter().map(|p| &p[..])).collect();
        if header.header_len() == HEADER_LARGE {
            // The page cache of this node is no place for it: whoever reads it keeps a copy of its own.
            file.write_direct(&all, 0)?;
        } else {
            let mut offset = 0;
            for part in all {
                file.write_at(part, offset)?;
                offset += part.len() as u64;
            }
        }
        file.sync()
    }

    /// Reads `count` cells from `first` on, verified.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] for any damage, [`Kind::NotFound`], [`Kind::Invalid`] for cells it can't have.
    pub fn read(&self, at: usize, key: ShardKey, first: u32, count: u32) -> Result<(Header, Vec<u8>)> {
        self.read_inner(at, key, first, count).doing(|| format!("read shard {key}"))
    }

    fn read_inner(&self, at: usize, key: ShardKey, first: u32, count: u32) -> Result<(Header, Vec<u8>)> {
        let file = self.disk.open(&self.path(at, key), false)?;
        let mut head = [0u8; HEADER_LARGE];
        let got = file.read_at(&mut head, 0)?;
        let header = Header::decode(&head[..got])?;
        if header.key != key {
            return Err(Error::new(Kind::Corrupt, format!("the file holds shard {}", header.key)));
        }
        if file.len()? != header.file_len() {
            return Err(Error::new(Kind::Corrupt, "wrong file length"));
        }
        let cells = header.crcs.len() as u32;
        if first > cells || count > cells - first {
            return Err(Error::new(Kind::Invalid, format!("cells {first}+{count} of {cells}")));
        }
        let len: u32 = (first..first + count).map(|row| header.cell_len(row)).sum();
        let mut data = vec![0u8; len as usize];
        let offset = header.header_len() as u64 + u64::from(first) * u64::from(CELL);
        if file.read_at(&mut data, offset)? != data.len() {
            return Err(Error::new(Kind::Corrupt, "short file"));
        }
        for (cell, row) in data.chunks(CELL as usize).zip(first..) {
            if crc32c::crc32c(cell) != header.crcs[row as usize] {
                return Err(Error::new(Kind::Corrupt, format!("cell {row} fails its checksum")));
            }
        }
        Ok((header, data))
    }

    /// Removes a shard. A crash may bring it back, which does no harm.
    ///
    /// # Errors
    /// What the disk says.
    pub fn remove(&self, at: usize, key: ShardKey) -> Result<()> {
        self.disk.remove(&self.path(at, key)).doing(|| format!("remove shard {key}"))
    }
}

/// Directory syncs, grouped: all that arrive while one is running are served by the next.
#[derive(Default)]
struct DirSyncs {
    state: Mutex<HashMap<PathBuf, DirSync>>,
    changed: Condvar,
}

#[derive(Default)]
struct DirSync {
    asked: u64,
    done: u64,
    waiting: u32,
    running: bool,
}

impl DirSyncs {
    fn sync(&self, disk: &dyn Disk, dir: &Path) -> Result<()> {
        let mut state = self.state.lock();
        let entry = state.entry(dir.to_owned()).or_default();
        entry.asked += 1;
        entry.waiting += 1;
        let mine = entry.asked;
        let result = loop {
            let entry = state.entry(dir.to_owned()).or_default();
            if entry.done >= mine {
                break Ok(());
            }
            if entry.running {
                self.changed.wait(&mut state);
                continue;
            }
            entry.running = true;
            let upto = entry.asked;
            drop(state);
            let result = disk.sync_dir(dir);
            state = self.state.lock();
            let entry = state.entry(dir.to_owned()).or_default();
            entry.running = false;
            self.changed.notify_all();
            match result {
                Ok(()) => entry.done = upto,
                // The others try for themselves.
                Err(e) => break Err(e),
            }
        };
        let entry = state.entry(dir.to_owned()).or_default();
        entry.waiting -= 1;
        if entry.waiting == 0 {
            state.remove(dir);
        }
        result
    }
}
