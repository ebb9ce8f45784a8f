//! Attributes and bytes of one inode: setattr, commit, and the chunks they refer to.

use super::key;
use super::machine::{Machine, Step};
use super::record::{Body, ChunkRecord, ExtentRecord, Inode, batch_of, decode};
use crate::kv::{Read as _, Table};
use hfcache_base::limits::{
    CHUNK_ID_BATCH, CHUNK_MAX, COMMIT_PIECES_MAX, FILE_SIZE_MAX, INLINE_MAX, PARTITION_WIDTH_MAX,
};
use hfcache_base::meta::{Change, ChunkRef, Extent, FileKind, Piece, Reply, SetAttr, SetTime, Timestamp};
use hfcache_base::{ChunkId, InodeId, Kind, Result, Scheme};
use std::collections::BTreeMap;
use std::ops::Bound::Included;
use std::ops::Range;

const SET_UID: u32 = 0o4000;
const SET_GID: u32 = 0o2000;
const GROUP_EXEC: u32 = 0o010;

/// Extents that a command adds (with their chunk) or takes away, by chunk.
#[derive(Default)]
struct Delta {
    refs: BTreeMap<ChunkId, i64>,
    fresh: BTreeMap<ChunkId, ChunkRef>,
}

impl Delta {
    fn count(&mut self, chunk: ChunkId, by: i64) {
        *self.refs.entry(chunk).or_default() += by;
    }
}

impl Machine<'_> {
    pub fn set_attr(&mut self, ino: InodeId, set: &SetAttr) -> Step {
        let mut inode = self.inode(ino)?.ok_or(Kind::Stale)?;
        let is_file = inode.attr.kind == FileKind::File;
        if let Some(size) = set.size {
            match inode.attr.kind {
                FileKind::File if size <= FILE_SIZE_MAX => {}
                FileKind::File => return Err(Kind::TooLarge.into()),
                FileKind::Directory => return Err(Kind::IsDirectory.into()),
                _ => return Err(Kind::Invalid.into()),
            }
        }
        if set.uid == Some(u32::MAX) || set.gid == Some(u32::MAX) {
            return Err(Kind::Invalid.into());
        }
        if *set == SetAttr::default() {
            return Ok(Reply::Attr(inode.attr));
        }
        let now = self.now();
        let attr = &mut inode.attr;
        attr.ctime = now;
        if let Some(uid) = set.uid {
            attr.uid = uid;
        }
        if let Some(gid) = set.gid {
            attr.gid = gid;
        }
        let owner_changed = set.uid.is_some() || set.gid.is_some();
        let is_dir = attr.kind == FileKind::Directory;
        if let Some(mode) = set.mode {
            attr.mode = mode & 0o7777;
        } else if owner_changed && !is_dir {
            kill_set_id(&mut attr.mode);
        }
        if set.kill_suid && is_file {
            kill_set_id(&mut attr.mode);
        }
        if set.mode.is_some() {
            self.chmod_acl(&mut inode)?;
        }
        if !is_dir && (owner_changed || set.size.is_some() || set.kill_suid) {
            self.kill_capability(&mut inode)?;
        }
        let data = set.size.is_some_and(|size| size != inode.attr.size);
        if let (true, Some(size)) = (data, set.size) {
            let mut delta = Delta::default();
            self.clear(&mut inode, size..u64::MAX, &mut delta)?;
            self.settle(delta)?;
            inode.attr.size = size;
            inode.attr.mtime = now;
            inode.attr.data_version = self.next_version();
        }
        let time = |t: SetTime| match t {
            SetTime::Now => now,
            SetTime::To(t) => t,
        };
        if let Some(t) = set.atime {
            inode.attr.atime = time(t);
        }
        if let Some(t) = set.mtime {
            inode.attr.mtime = time(t);
        }
        self.put_inode(&inode)?;
        self.changed(Change::Inode { ino, data });
        Ok(Reply::Attr(inode.attr))
    }

    pub fn commit(&mut self, ino: InodeId, pieces: &[Piece], size: u64, mtime: Option<Timestamp>) -> Step {
        let mut inode = self.inode(ino)?.ok_or(Kind::Stale)?;
        match inode.attr.kind {
            FileKind::File => {}
            FileKind::Directory => return Err(Kind::IsDirectory.into()),
            _ => return Err(Kind::Invalid.into()),
        }
        let end = check_pieces(pieces, size)?;
        let mut delta = Delta { fresh: self.check_chunks(pieces)?, ..Delta::default() };
        for piece in pieces {
            match piece {
                Piece::Inline(bytes) => {
                    self.clear(&mut inode, 0..u64::MAX, &mut delta)?;
                    inode.attr.allocated = bytes.len() as u64;
                    self.counters.totals.bytes += bytes.len() as u64;
                    inode.body = Body::File { inline: bytes.clone() };
                }
                Piece::Chunk(extent) => {
                    self.clear(&mut inode, extent.offset..extent.end(), &mut delta)?;
                    self.add_extent(&mut inode, from_extent(extent), &mut delta)?;
                }
                Piece::Hole { offset, len } => self.clear(&mut inode, *offset..offset + len, &mut delta)?,
            }
        }
        self.settle(delta)?;
        let attr = &mut inode.attr;
        let new_size = if let [Piece::Inline(_)] = pieces { size } else { attr.size.max(end) };
        let data = !pieces.is_empty() || new_size != attr.size;
        attr.size = new_size;
        attr.ctime = self.counters.time;
        if let Some(mtime) = mtime {
            attr.mtime = mtime;
        }
        if data {
            inode.attr.data_version = self.next_version();
        }
        self.put_inode(&inode)?;
        self.changed(Change::Inode { ino, data });
        Ok(Reply::Attr(inode.attr))
    }

    /// The chunks that these pieces bring into the namespace. Each must have been handed to this session
    /// and never have been part of a file: a chunk that was freed is being deleted.
    fn check_chunks(&self, pieces: &[Piece]) -> Step<BTreeMap<ChunkId, ChunkRef>> {
        let mut lens = BTreeMap::new();
        let mut fresh = BTreeMap::new();
        for piece in pieces {
            let Piece::Chunk(Extent { chunk, .. }) = piece else { continue };
            if let Some(len) = lens.insert(chunk.id, chunk.len) {
                if len != chunk.len {
                    return Err(Kind::Invalid.into());
                }
                continue;
            }
            if let Some(known) = self.get::<ChunkRecord>(Table::Chunk, &key::chunk(chunk.id))? {
                if known.len != chunk.len {
                    return Err(Kind::Invalid.into());
                }
                continue;
            }
            if chunk.id.0 == 0 || chunk.id.0 >= self.counters.next_chunk {
                return Err(Kind::Invalid.into());
            }
            match batch_of(&*self.txn, chunk.id)? {
                Some((last, batch))
                    if batch.session == self.session && batch.is_used(last, chunk.id) == Some(false) => {}
                _ => return Err(Kind::Stale.into()),
            }
            fresh.insert(chunk.id, *chunk);
        }
        Ok(fresh)
    }

    /// Makes a range read as zeros: cuts extents out of it, and inline bytes.
    fn clear(&mut self, inode: &mut Inode, range: Range<u64>, delta: &mut Delta) -> Result<()> {
        for old in self.extents_over(inode.attr.ino, &range)? {
            self.delete(Table::Extent, &key::extent(inode.attr.ino, old.end()))?;
            inode.attr.allocated -= u64::from(old.len);
            delta.count(old.chunk, -1);
            if old.offset < range.start {
                let len = (range.start - old.offset) as u32;
                self.add_extent(inode, ExtentRecord { len, ..old }, delta)?;
            }
            if old.end() > range.end {
                let cut = (range.end - old.offset) as u32;
                let (len, chunk_offset) = (old.len - cut, old.chunk_offset + cut);
                let rest = ExtentRecord { offset: range.end, len, chunk_offset, ..old };
                self.add_extent(inode, rest, delta)?;
            }
        }
        let Body::File { inline } = &mut inode.body else { return Ok(()) };
        let held = inline.len() as u64;
        let (from, to) = (range.start.min(held) as usize, range.end.min(held) as usize);
        if from < to {
            let before = inline.len();
            if to == before {
                inline.truncate(from);
            } else {
                inline[from..to].fill(0);
            }
            let cut = (before - inline.len()) as u64;
            inode.attr.allocated -= cut;
            self.counters.totals.bytes -= cut;
        }
        Ok(())
    }

    fn add_extent(&mut self, inode: &mut Inode, extent: ExtentRecord, delta: &mut Delta) -> Result<()> {
        inode.attr.allocated += u64::from(extent.len);
        delta.count(extent.chunk, 1);
        self.put(Table::Extent, &key::extent(inode.attr.ino, extent.end()), &extent)
    }

    fn extents_over(&self, ino: InodeId, range: &Range<u64>) -> Result<Vec<ExtentRecord>> {
        let mut found = Vec::new();
        let from = key::extent(ino, range.start.saturating_add(1));
        self.txn.scan(
            Table::Extent,
            Included(&from),
            Included(&key::extent(ino, u64::MAX)),
            &mut |_, value| {
                let extent = decode::<ExtentRecord>(Table::Extent, value);
                let inside = extent.as_ref().map_or(true, |e| e.offset < range.end);
                if inside {
                    found.push(extent);
                }
                inside
            },
        )?;
        found.into_iter().collect()
    }

    /// Brings the reference counts up to date, once for each chunk of a command.
    fn settle(&mut self, delta: Delta) -> Result<()> {
        for (id, by) in delta.refs {
            let at = key::chunk(id);
            let old = self.get::<ChunkRecord>(Table::Chunk, &at)?;
            let mut record = match (old, delta.fresh.get(&id)) {
                (Some(record), _) => record,
                (None, Some(new)) => {
                    self.adopt(new)?;
                    ChunkRecord { len: new.len, scheme: new.scheme, refs: 0 }
                }
                (None, None) => return Err(super::record::damaged("an extent without its chunk")),
            };
            record.refs = record.refs.saturating_add_signed(by);
            if record.refs == 0 {
                self.delete(Table::Chunk, &at)?;
                self.counters.totals.chunks -= 1;
                self.counters.totals.bytes -= u64::from(record.len);
                self.changed(Change::ChunkFreed(id));
            } else if by != 0 {
                self.put(Table::Chunk, &at, &record)?;
            }
        }
        Ok(())
    }

    /// A chunk is part of a file for the first and only time.
    fn adopt(&mut self, chunk: &ChunkRef) -> Result<()> {
        if let Some((last, mut batch)) = batch_of(&*self.txn, chunk.id)? {
            batch.mark(last, chunk.id);
            let at = key::chunk(ChunkId(last));
            if batch.is_spent() {
                self.delete(Table::ChunkBatch, &at)?;
            } else {
                self.put(Table::ChunkBatch, &at, &batch)?;
            }
        }
        self.counters.totals.chunks += 1;
        self.counters.totals.bytes += u64::from(chunk.len);
        self.changed(Change::ChunkAdded(*chunk));
        Ok(())
    }

    /// Frees an inode that nothing refers to, and its bytes.
    pub fn free(&mut self, mut inode: Inode) -> Result<()> {
        let ino = inode.attr.ino;
        let mut delta = Delta::default();
        self.clear(&mut inode, 0..u64::MAX, &mut delta)?;
        self.settle(delta)?;
        self.free_xattrs(&inode)?;
        self.delete_inode(ino)?;
        self.changed(Change::Reaped(ino));
        Ok(())
    }

    pub fn allocate_chunks(&mut self, count: u32) -> Step {
        if count == 0 || count > CHUNK_ID_BATCH {
            return Err(Kind::Invalid.into());
        }
        let first = ChunkId(self.counters.next_chunk);
        self.counters.next_chunk += u64::from(count);
        let last = ChunkId(self.counters.next_chunk - 1);
        let batch = super::record::ChunkBatch::new(self.session, count);
        self.put(Table::ChunkBatch, &key::chunk(last), &batch)?;
        Ok(Reply::Chunks { first, count })
    }

    pub fn raise_parity(&mut self, chunks: &[ChunkId], parity: u8) -> Step {
        if usize::from(parity) >= PARTITION_WIDTH_MAX {
            return Err(Kind::Invalid.into());
        }
        let mut raised = 0;
        for id in chunks {
            let at = key::chunk(*id);
            let Some(mut record) = self.get::<ChunkRecord>(Table::Chunk, &at)? else { continue };
            if record.scheme.data != 1 || record.scheme.parity >= parity {
                continue;
            }
            record.scheme.parity = parity;
            self.put(Table::Chunk, &at, &record)?;
            self.changed(Change::ChunkAdded(ChunkRef { id: *id, len: record.len, scheme: record.scheme }));
            raised += 1;
        }
        Ok(Reply::Count(raised))
    }
}

/// What a write or a chown by someone without the right does, the Linux way: set-gid without group-execute
/// is not a privilege but the mark of mandatory locks, and stays.
fn kill_set_id(mode: &mut u32) {
    *mode &= !SET_UID;
    if *mode & GROUP_EXEC != 0 {
        *mode &= !SET_GID;
    }
}

fn from_extent(extent: &Extent) -> ExtentRecord {
    ExtentRecord {
        offset: extent.offset,
        len: extent.len,
        chunk_offset: extent.chunk_offset,
        chunk: extent.chunk.id,
    }
}

fn valid_scheme(scheme: Scheme) -> bool {
    scheme.data > 0 && usize::from(scheme.data) + usize::from(scheme.parity) <= PARTITION_WIDTH_MAX
}

/// Checks pieces by themselves; answers how long the file is at least afterwards.
fn check_pieces(pieces: &[Piece], size: u64) -> Result<u64, Kind> {
    if pieces.len() > COMMIT_PIECES_MAX {
        return Err(Kind::Invalid);
    }
    if size > FILE_SIZE_MAX {
        return Err(Kind::TooLarge);
    }
    let (mut last, mut end) = (0, size);
    for piece in pieces {
        let (offset, len) = match piece {
            Piece::Inline(bytes) => {
                if pieces.len() != 1 || bytes.len() > INLINE_MAX || bytes.len() as u64 > size {
                    return Err(Kind::Invalid);
                }
                continue;
            }
            Piece::Chunk(extent) => {
                let chunk = extent.chunk;
                if chunk.len == 0 || chunk.len > CHUNK_MAX || !valid_scheme(chunk.scheme) {
                    return Err(Kind::Invalid);
                }
                if u64::from(extent.chunk_offset) + u64::from(extent.len) > u64::from(chunk.len) {
                    return Err(Kind::Invalid);
                }
                (extent.offset, u64::from(extent.len))
            }
            Piece::Hole { offset, len } => (*offset, *len),
        };
        if len == 0 {
            return Err(Kind::Invalid);
        }
        let stop = offset.checked_add(len).filter(|stop| *stop <= FILE_SIZE_MAX).ok_or(Kind::TooLarge)?;
        if offset < last {
            return Err(Kind::Invalid);
        }
        last = stop;
        if matches!(piece, Piece::Chunk(_)) {
            end = end.max(stop);
        }
    }
    Ok(end)
}
