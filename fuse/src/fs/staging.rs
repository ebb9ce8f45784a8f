//! Bytes that were written here and are not committed yet: where they lie, and which of them are already
//! on the shard holders.

use super::append::Append;
use hfcache_base::interval::IntervalSet;
use hfcache_base::limits::{CHUNK_TARGET, COMMIT_PIECES_MAX, INLINE_MAX};
use hfcache_base::meta::ChunkRef;
use hfcache_base::seam::{Chunks, LocalFile};
use hfcache_base::{ChunkId, Result};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of one aligned window that is put as one chunk behind a sequential writer.
const WINDOW: u64 = CHUNK_TARGET as u64;

/// Most ranges that share a chunk, so that a piece always fits into one commit.
const RANGES_MAX: usize = COMMIT_PIECES_MAX / 2;

/// Where uncommitted bytes lie. Small files never touch a disk here: they end up in the inode.
#[derive(Clone)]
pub(crate) enum Stage {
    /// In memory, for offsets below [`INLINE_MAX`].
    Memory(Vec<u8>),
    /// In a staging file.
    File(Arc<dyn LocalFile>),
}

impl Stage {
    /// Reads bytes that were written.
    pub(crate) fn read(&self, range: &Range<u64>) -> Result<Vec<u8>> {
        match self {
            Self::Memory(bytes) => Ok(bytes[range.start as usize..range.end as usize].to_vec()),
            Self::File(file) => super::base::read_exact(file.as_ref(), range),
        }
    }
}

/// How far a piece has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PieceState {
    /// Being put.
    Putting,
    /// Durable, not committed.
    Done(ChunkRef),
}

/// Uncommitted ranges that share a chunk: in it they follow each other.
#[derive(Clone, Debug)]
pub(crate) struct PutPiece {
    /// Where in the file, in order.
    pub(crate) ranges: Vec<Range<u64>>,
    /// How far it is.
    pub(crate) state: PieceState,
    /// A commit that names it was proposed and may have taken effect.
    pub(crate) tried: bool,
}

/// See the module.
pub(crate) struct Dirty {
    /// The bytes.
    pub(crate) stage: Stage,
    /// Which bytes of the file the stage has the truth of.
    pub(crate) data: IntervalSet,
    /// Which bytes were turned to zeros.
    pub(crate) holes: IntervalSet,
    /// Pieces by number.
    pub(crate) pieces: HashMap<u64, PutPiece>,
    /// Start → (end, piece): which bytes belong to which piece.
    owned: BTreeMap<u64, (u64, u64)>,
    /// While a flush is on its way: what was written since it began. Its pieces are committed as they were,
    /// and these ranges stay dirty.
    pub(crate) since: Option<IntervalSet>,
    /// Complete windows that wait to be put.
    pub(crate) queue: VecDeque<u64>,
    /// Windows that were put and then written again: they wait for the flush.
    rewritten: BTreeSet<u64>,
    /// Pieces being put.
    pub(crate) putting: usize,
    /// Whether windows are put before the flush asks: off after a failure until the next flush.
    pub(crate) eager: bool,
    /// The file is at least this long.
    pub(crate) end: u64,
    /// Set if all of it belongs to the end of the file, wherever that is when it is committed.
    pub(crate) append: Option<Append>,
}

/// Numbers of pieces. Never used twice, so that a late put finds its own piece or none.
static NEXT_PIECE: AtomicU64 = AtomicU64::new(1);

impl Dirty {
    /// Nothing written yet.
    pub(crate) fn new() -> Self {
        Self {
            stage: Stage::Memory(Vec::new()),
            data: IntervalSet::default(),
            holes: IntervalSet::default(),
            pieces: HashMap::new(),
            owned: BTreeMap::new(),
            since: None,
            queue: VecDeque::new(),
            rewritten: BTreeSet::new(),
            putting: 0,
            eager: true,
            end: 0,
            append: None,
        }
    }

    /// Whether all is committed.
    pub(crate) fn is_clean(&self) -> bool {
        self.data.is_empty() && self.holes.is_empty()
    }

    /// Whether nothing depends on where its bytes are.
    pub(crate) fn is_untouched(&self) -> bool {
        self.is_clean() && self.pieces.is_empty() && self.since.is_none()
    }

    /// Takes bytes in. Returns chunks that are no longer wanted.
    ///
    /// # Errors
    /// The local disk is full or failed; nothing has changed then.
    pub(crate) fn write(&mut self, chunks: &dyn Chunks, offset: u64, bytes: &[u8]) -> Result<Vec<ChunkId>> {
        let end = offset + bytes.len() as u64;
        if let Stage::Memory(memory) = &mut self.stage {
            if end <= INLINE_MAX as u64 {
                if memory.len() < end as usize {
                    memory.resize(end as usize, 0);
                }
                memory[offset as usize..end as usize].copy_from_slice(bytes);
                return Ok(self.wrote(offset..end));
            }
            let file = chunks.stage()?;
            for r in self.data.iter() {
                file.write_at(&memory[r.start as usize..r.end as usize], r.start)?;
            }
            self.stage = Stage::File(file);
        }
        if let Stage::File(file) = &self.stage {
            file.write_at(bytes, offset)?;
        }
        Ok(self.wrote(offset..end))
    }

    fn wrote(&mut self, range: Range<u64>) -> Vec<ChunkId> {
        self.end = self.end.max(range.end);
        self.data.insert(range.clone());
        self.holes.remove(range.clone());
        let unwanted = self.overwritten(&range);
        self.enqueue(&range);
        unwanted
    }

    /// Turns a range to zeros. Returns chunks that are no longer wanted.
    pub(crate) fn punch(&mut self, range: Range<u64>) -> Vec<ChunkId> {
        self.data.remove(range.clone());
        self.holes.insert(range.clone());
        self.overwritten(&range)
    }

    /// Forgets everything from `size` on. Never during a flush. Returns chunks that are no longer wanted.
    pub(crate) fn cut(&mut self, size: u64) -> Vec<ChunkId> {
        self.end = self.end.min(size);
        self.data.remove(size..u64::MAX);
        self.holes.remove(size..u64::MAX);
        self.drop_pieces(&(size..u64::MAX))
    }

    fn overwritten(&mut self, range: &Range<u64>) -> Vec<ChunkId> {
        match &mut self.since {
            Some(since) => {
                since.insert(range.clone());
                Vec::new()
            }
            None => self.drop_pieces(range),
        }
    }

    fn drop_pieces(&mut self, range: &Range<u64>) -> Vec<ChunkId> {
        let hit: BTreeSet<u64> = self
            .owned
            .range(..range.end)
            .rev()
            .take_while(|&(_, &(end, _))| end > range.start)
            .map(|(_, &(_, id))| id)
            .collect();
        hit.into_iter().filter_map(|id| self.drop_piece(id)).collect()
    }

    /// Takes a piece out; its bytes stay dirty. Returns its chunk if that will never be part of a file.
    pub(crate) fn drop_piece(&mut self, id: u64) -> Option<ChunkId> {
        let piece = self.pieces.remove(&id)?;
        for r in &piece.ranges {
            self.owned.remove(&r.start);
            self.rewritten.insert(r.start / WINDOW);
        }
        match piece.state {
            PieceState::Done(chunk) if !piece.tried => Some(chunk.id),
            PieceState::Done(_) => None,
            // Forgotten by the task that puts it, which will not find it here.
            PieceState::Putting => {
                self.putting = self.putting.saturating_sub(1);
                None
            }
        }
    }

    /// Adds a piece that is about to be put. Returns its number.
    pub(crate) fn add_piece(&mut self, ranges: Vec<Range<u64>>) -> u64 {
        let id = NEXT_PIECE.fetch_add(1, Ordering::Relaxed);
        for r in &ranges {
            self.owned.insert(r.start, (r.end, id));
        }
        self.pieces.insert(id, PutPiece { ranges, state: PieceState::Putting, tried: false });
        self.putting += 1;
        id
    }

    /// Queues the windows that a write has made complete.
    fn enqueue(&mut self, range: &Range<u64>) {
        if !self.eager || self.since.is_some() {
            return;
        }
        for window in range.start / WINDOW..=(range.end - 1) / WINDOW {
            // Only behind the writer: a write that ends inside the window has more to come.
            if range.end >= (window + 1) * WINDOW
                && self.wants_window(window)
                && !self.queue.contains(&window)
            {
                self.queue.push_back(window);
            }
        }
    }

    fn wants_window(&self, window: u64) -> bool {
        let all = window * WINDOW..(window + 1) * WINDOW;
        !self.rewritten.contains(&window) && self.data.contains(&all) && self.unowned(&all) == [all]
    }

    /// The next window to put before anyone asks, as a piece.
    pub(crate) fn next_window(&mut self) -> Option<u64> {
        if self.since.is_some() || !self.eager {
            return None;
        }
        while let Some(window) = self.queue.pop_front() {
            if self.wants_window(window) {
                let all = window * WINDOW..(window + 1) * WINDOW;
                return Some(self.add_piece(Vec::from([all])));
            }
        }
        None
    }

    /// Parts of a range that belong to no piece.
    fn unowned(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let mut taken = IntervalSet::default();
        for (&start, &(end, _)) in self.owned.range(..range.end).rev() {
            if end <= range.start {
                break;
            }
            taken.insert(start..end);
        }
        taken.gaps(range)
    }

    /// Dirty bytes that belong to no piece, in groups of at most one chunk each. A run is cut at window
    /// borders; small runs share a chunk.
    pub(crate) fn unput(&self) -> Vec<Vec<Range<u64>>> {
        let mut groups = Vec::new();
        let mut group: Vec<Range<u64>> = Vec::new();
        let mut bytes = 0;
        for run in self.data.iter() {
            for free in self.unowned(&run) {
                let mut at = free.start;
                while at < free.end {
                    let end = free.end.min((at / WINDOW + 1) * WINDOW);
                    if (bytes + (end - at) > WINDOW || group.len() == RANGES_MAX) && !group.is_empty() {
                        groups.push(std::mem::take(&mut group));
                        bytes = 0;
                    }
                    bytes += end - at;
                    group.push(at..end);
                    at = end;
                }
            }
        }
        if !group.is_empty() {
            groups.push(group);
        }
        groups
    }

    /// These pieces and holes are committed: what was not written since is clean.
    pub(crate) fn committed(&mut self, pieces: &[u64], holes: &[Range<u64>]) {
        let since = self.since.clone().unwrap_or_default();
        for id in pieces {
            if let Some(piece) = self.pieces.remove(id) {
                for r in piece.ranges {
                    self.owned.remove(&r.start);
                    for clean in since.gaps(&r) {
                        self.data.remove(clean);
                    }
                }
            }
        }
        for hole in holes {
            for clean in since.gaps(hole) {
                self.holes.remove(clean);
            }
        }
    }

    /// The first `pieces` of an appended run, up to `end`, are committed.
    pub(crate) fn appended(&mut self, pieces: &[u64], end: u64) {
        for id in pieces {
            if let Some(piece) = self.pieces.remove(id) {
                for r in piece.ranges {
                    self.owned.remove(&r.start);
                }
            }
        }
        self.data.remove(0..end);
    }

    /// These bytes are committed in the inode: what was not written since is clean.
    pub(crate) fn committed_inline(&mut self, data: &IntervalSet) {
        let since = self.since.clone().unwrap_or_default();
        for r in data.iter() {
            for clean in since.gaps(&r) {
                self.data.remove(clean);
            }
        }
    }

    /// A flush is over. Pieces that were overwritten meanwhile are worth nothing. Returns chunks that are
    /// no longer wanted.
    pub(crate) fn end_flush(&mut self) -> Vec<ChunkId> {
        let since = self.since.take().unwrap_or_default();
        since.iter().flat_map(|r| self.drop_pieces(&r)).collect()
    }

    /// Everything that was put and will not be committed.
    pub(crate) fn abandon(&mut self) -> Vec<ChunkId> {
        let ids: Vec<u64> = self.pieces.keys().copied().collect();
        ids.into_iter().filter_map(|id| self.drop_piece(id)).collect()
    }
}
