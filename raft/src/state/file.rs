//! Attributes and bytes of one inode: setattr, commit, and the chunks they refer to.

use super::key;
use super::machine::{Machine, Step};
use super::record::{Body, ChunkRecord, ExtentRecord, Inode, batch_of, decode};
use crate::kv::{Read as _, Table};
use hfcache_base::limits::{
    CHUNK_ID_BATCH, CHUNK_MAX, CLONE_EXTENTS_MAX, COMMIT_PIECES_MAX, FILE_SIZE_MAX, INLINE_MAX,
    PARTITION_WIDTH_MAX, TOUCH_MAX,
};
use hfcache_base::meta::{
    Attr, Change, ChunkRef, Extent, FileKind, Piece, Reply, SetAttr, SetTime, Timestamp,
};
use hfcache_base::{ChunkId, InodeId, Kind, Result, Scheme};
use std::collections::BTreeMap;
use std::ops::Bound::Included;
use std::ops::Range;

const STICKY: u32 = 0o1000;
const SET_UID: u32 = 0o4000;
const SET_GID: u32 = 0o2000;
const GROUP_EXEC: u32 = 0o010;

/// What a `Commit` or an `Append` asks for.
pub(crate) struct Commit<'a> {
    pub pieces: &'a [Piece],
    /// Of the file; for an append, how many bytes.
    pub size: u64,
    pub mtime: Option<Timestamp>,
    pub base: Option<u64>,
}

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

/// Whose an inode is, and whether that matters for names and attributes in it (the sticky bit).
fn owners(attr: &Attr) -> (u32, u32, bool) {
    (attr.uid, attr.gid, attr.kind == FileKind::Directory && attr.mode & STICKY != 0)
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
        let before = owners(&inode.attr);
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
        let opened = match self.share_of(&inode)? {
            Some(share) if set.mode.is_some() || owner_changed => share.open(&mut inode.attr),
            _ => false,
        };
        if set.mode.is_some() || opened {
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
        if before != owners(&inode.attr) {
            self.changed(Change::Owner(ino));
        }
        self.changed(Change::Inode { ino, data });
        Ok(Reply::Attr(inode.attr))
    }

    /// A file, to change its bytes.
    pub fn file(&self, ino: InodeId) -> Step<Inode> {
        let inode = self.inode(ino)?.ok_or(Kind::Stale)?;
        match inode.attr.kind {
            FileKind::File => Ok(inode),
            FileKind::Directory => Err(Kind::IsDirectory.into()),
            _ => Err(Kind::Invalid.into()),
        }
    }

    pub fn commit(&mut self, ino: InodeId, ask: &Commit<'_>) -> Step {
        let mut inode = self.file(ino)?;
        let end = check_pieces(ask.pieces, ask.size)?;
        let fresh = self.check_chunks(ask.pieces)?;
        if ask.base.is_some_and(|version| version != inode.attr.data_version) {
            return Err(Kind::Changed.into());
        }
        let mut delta = Delta { fresh, ..Delta::default() };
        self.lay(&mut inode, ask.pieces, 0, &mut delta)?;
        self.settle(delta)?;
        let inline = matches!(ask.pieces, [Piece::Inline(_)]);
        let new_size = if inline { ask.size } else { inode.attr.size.max(end) };
        let data = !ask.pieces.is_empty() || new_size != inode.attr.size;
        self.written(&mut inode, new_size, ask.mtime, data)
    }

    pub fn append(&mut self, ino: InodeId, token: ChunkId, ask: &Commit<'_>) -> Step {
        let mut inode = self.file(ino)?;
        let start = inode.attr.size;
        let len = ask.size;
        if len == 0 || check_pieces(ask.pieces, len)? != len {
            return Err(Kind::Invalid.into());
        }
        let end = start.checked_add(len).filter(|end| *end <= FILE_SIZE_MAX).ok_or(Kind::TooLarge)?;
        let fresh = self.check_chunks(ask.pieces)?;
        match batch_of(&*self.txn, token)? {
            Some((last, batch)) if batch.session == self.session => {
                if batch.is_used(last, token) != Some(false) {
                    return Err(Kind::Exists.into());
                }
            }
            _ => return Err(Kind::Stale.into()),
        }
        let mut delta = Delta { fresh, ..Delta::default() };
        if let [Piece::Inline(bytes)] = ask.pieces {
            if bytes.len() as u64 != len {
                return Err(Kind::Invalid.into());
            }
            if end > INLINE_MAX as u64 || !self.extents_over(ino, &(0..u64::MAX), 1)?.is_empty() {
                return Err(Kind::Changed.into());
            }
            self.spend(token)?;
            self.put_inline(&mut inode, start, bytes);
        } else {
            self.spend(token)?;
            self.lay(&mut inode, ask.pieces, start, &mut delta)?;
        }
        self.settle(delta)?;
        self.written(&mut inode, end, ask.mtime, true)
    }

    /// Puts pieces into a file, `shift` bytes further than they say.
    fn lay(&mut self, inode: &mut Inode, pieces: &[Piece], shift: u64, delta: &mut Delta) -> Result<()> {
        for piece in pieces {
            match piece {
                Piece::Inline(bytes) => {
                    self.clear(inode, 0..u64::MAX, delta)?;
                    self.put_inline(inode, 0, bytes);
                }
                Piece::Chunk(extent) => {
                    let record = from_extent(extent);
                    let record = ExtentRecord { offset: record.offset + shift, ..record };
                    self.clear(inode, record.offset..record.end(), delta)?;
                    self.add_extent(inode, record, delta)?;
                }
                Piece::Hole { offset, len } => {
                    self.clear(inode, offset + shift..offset + shift + len, delta)?;
                }
            }
        }
        Ok(())
    }

    /// Writes bytes into the inode, over what is there and behind zeros if that is shorter.
    pub fn put_inline(&mut self, inode: &mut Inode, offset: u64, bytes: &[u8]) {
        let Body::File { inline } = &mut inode.body else { return };
        let (from, to) = (offset as usize, offset as usize + bytes.len());
        let before = inline.len();
        if before < to {
            inline.resize(to, 0);
        }
        inline[from..to].copy_from_slice(bytes);
        let more = (inline.len() - before) as u64;
        inode.attr.allocated += more;
        self.counters.totals.bytes += more;
    }

    /// The last step of everything that changes bytes.
    fn written(&mut self, inode: &mut Inode, size: u64, mtime: Option<Timestamp>, data: bool) -> Step {
        inode.attr.size = size;
        inode.attr.ctime = self.counters.time;
        if let Some(mtime) = mtime {
            inode.attr.mtime = mtime;
        }
        if data {
            inode.attr.data_version = self.next_version();
            self.kill_capability(inode)?;
        }
        self.put_inode(inode)?;
        self.changed(Change::Inode { ino: inode.attr.ino, data });
        Ok(Reply::Attr(inode.attr.clone()))
    }

    /// Makes a range of `to` show the chunks and inline bytes of a range of `from`.
    pub fn clone_range(&mut self, from: (InodeId, u64), to: (InodeId, u64), len: u64) -> Step {
        let source = self.file(from.0)?;
        let mut target = self.file(to.0)?;
        let len = len.min(source.attr.size.saturating_sub(from.1));
        if len == 0 {
            return Ok(Reply::Count(0));
        }
        let to_end = to.1.checked_add(len).filter(|end| *end <= FILE_SIZE_MAX).ok_or(Kind::TooLarge)?;
        if from.0 == to.0 && from.1 < to_end && to.1 < from.1 + len {
            return Err(Kind::Invalid.into());
        }
        let mut wanted = from.1..from.1 + len;
        let mut extents = self.extents_over(from.0, &wanted, CLONE_EXTENTS_MAX + 1)?;
        if extents.len() > CLONE_EXTENTS_MAX
            && let Some(next) = extents.pop()
        {
            wanted.end = next.offset;
        }
        let place = |at: u64| to.1 + (at - wanted.start);
        let inline: &[u8] = if let Body::File { inline } = &source.body { inline } else { &[] };
        let held = inline.len() as u64;
        let inline = &inline[wanted.start.min(held) as usize..wanted.end.min(held) as usize];
        if !inline.is_empty() && to.1 + inline.len() as u64 > INLINE_MAX as u64 {
            return Err(Kind::NotSupported.into());
        }
        let end = place(wanted.end);
        let mut delta = Delta::default();
        self.clear(&mut target, to.1..end, &mut delta)?;
        if !inline.is_empty() {
            self.put_inline(&mut target, to.1, inline);
        }
        for extent in extents {
            let (start, stop) = (extent.offset.max(wanted.start), extent.end().min(wanted.end));
            let cut = (start - extent.offset) as u32;
            let part = ExtentRecord {
                offset: place(start),
                len: (stop - start) as u32,
                chunk_offset: extent.chunk_offset + cut,
                chunk: extent.chunk,
            };
            self.add_extent(&mut target, part, &mut delta)?;
        }
        self.settle(delta)?;
        let (size, now) = (target.attr.size.max(end), self.now());
        self.written(&mut target, size, Some(now), true)?;
        Ok(Reply::Count(wanted.end - wanted.start))
    }

    pub fn touch(&mut self, reads: &[(InodeId, Timestamp)]) -> Step {
        if reads.len() > TOUCH_MAX {
            return Err(Kind::Invalid.into());
        }
        let mut touched = 0;
        for (ino, read) in reads {
            let Some(mut inode) = self.inode(*ino)? else { continue };
            if !inode.attr.atime_due(*read) {
                continue;
            }
            inode.attr.atime = *read;
            self.put_inode(&inode)?;
            self.changed(Change::Inode { ino: *ino, data: false });
            touched += 1;
        }
        Ok(Reply::Count(touched))
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
        for old in self.extents_over(inode.attr.ino, &range, usize::MAX)? {
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

    /// The first extents that touch a range, at most `most`.
    fn extents_over(&self, ino: InodeId, range: &Range<u64>, most: usize) -> Result<Vec<ExtentRecord>> {
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
                inside && found.len() < most
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
        self.spend(chunk.id)?;
        self.counters.totals.chunks += 1;
        self.counters.totals.bytes += u64::from(chunk.len);
        self.changed(Change::ChunkAdded(*chunk));
        Ok(())
    }

    /// An id that was handed out has been used.
    fn spend(&mut self, id: ChunkId) -> Result<()> {
        if let Some((last, mut batch)) = batch_of(&*self.txn, id)? {
            batch.mark(last, id);
            let at = key::chunk(ChunkId(last));
            if batch.is_spent() {
                self.delete(Table::ChunkBatch, &at)?;
            } else {
                self.put(Table::ChunkBatch, &at, &batch)?;
            }
        }
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
        if inode.is_directory() {
            self.forget_share(ino)?;
        }
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
