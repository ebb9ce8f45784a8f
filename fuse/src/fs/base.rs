//! Committed content of a file as this node reads it: inline bytes and holes from memory, extents through
//! the local file, into which each missing cell is fetched once, whoever asks.

use super::{Core, FETCH_DEADLINE, RETRY_FIRST, RETRY_MAX};
use bytes::Bytes;
use hfcache_base::limits::CELL;
use hfcache_base::meta::{Attr, ChunkRef, Content, Extent};
use hfcache_base::seam::{LocalFile, LocalKey};
use hfcache_base::{Error, Kind, Result};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use tokio::sync::{OwnedSemaphorePermit, watch};

/// Zeros for holes, without memory of their own.
static ZEROS: [u8; 1 << 20] = [0; 1 << 20];

/// Zeros, in pieces.
pub(crate) fn zeros(len: u64, out: &mut Vec<Bytes>) {
    let mut left = len;
    while left > 0 {
        let n = left.min(ZEROS.len() as u64);
        out.push(Bytes::from_static(&ZEROS[..n as usize]));
        left -= n;
    }
}

/// Reads all of a range that is present.
pub(crate) fn read_exact(file: &dyn LocalFile, range: &Range<u64>) -> Result<Vec<u8>> {
    let mut buf = vec![0; (range.end - range.start) as usize];
    let mut done = 0;
    while done < buf.len() {
        let n = file.read_at(&mut buf[done..], range.start + done as u64)?;
        if n == 0 {
            return Err(Error::new(Kind::Io, format!("local file ends at {}", range.start + done as u64)));
        }
        done += n;
    }
    Ok(buf)
}

/// How a fetch went.
#[derive(Clone)]
enum Landed {
    /// The bytes are in the local file.
    Filled,
    /// The local file could not take them.
    Bytes(Bytes),
    /// There are none.
    Failed(Kind),
}

type Flight = watch::Receiver<Option<Landed>>;

/// The part of a chunk's cell that an extent shows.
struct Cell {
    /// Where in the file.
    file: Range<u64>,
    /// Which chunk.
    chunk: ChunkRef,
    /// Where in the chunk.
    range: Range<u32>,
}

/// Bytes that could not be laid down locally, by their offset in the file.
pub(crate) type Loose = Vec<(u64, Bytes)>;

/// See the module. Immutable: other content is another `Base`.
pub(crate) struct Base {
    /// Attributes of that state; only size and version are used.
    pub(crate) attr: Attr,
    /// The bytes.
    pub(crate) content: Content,
    local: OnceLock<Option<Arc<dyn LocalFile>>>,
    flights: Mutex<HashMap<u64, Flight>>,
}

impl Base {
    /// Content as the namespace has it.
    pub(crate) fn new(attr: Attr, content: Content) -> Self {
        Self { attr, content, local: OnceLock::new(), flights: Mutex::default() }
    }

    /// Content whose bytes were just written here.
    pub(crate) fn with_local(attr: Attr, content: Content, local: Arc<dyn LocalFile>) -> Self {
        Self { attr, content, local: OnceLock::from(Some(local)), flights: Mutex::default() }
    }

    /// The version of the content.
    pub(crate) fn version(&self) -> u64 {
        self.attr.data_version
    }

    /// Size in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.attr.size
    }

    /// The local file, if the content needs one and there is room for it.
    pub(crate) fn local(&self, core: &Core) -> Option<&Arc<dyn LocalFile>> {
        if self.content.extents.is_empty() {
            return None;
        }
        let open = || {
            let key = LocalKey { ino: self.attr.ino, version: self.attr.data_version };
            match core.chunks.local(key, self.attr.size) {
                Ok(file) => Some(file),
                Err(e) => {
                    tracing::debug!(ino = %self.attr.ino, error = %e, "read without a hot copy");
                    None
                }
            }
        };
        self.local.get_or_init(open).as_ref()
    }

    fn extents(&self, range: &Range<u64>) -> &[Extent] {
        let all = &self.content.extents;
        let from = all.partition_point(|e| e.end() <= range.start);
        let to = all.partition_point(|e| e.offset < range.end);
        all.get(from..to).unwrap_or(&[])
    }

    /// Whether the byte at an offset is data, and where that may change.
    pub(crate) fn kind_at(&self, at: u64) -> (bool, u64) {
        let inline = self.content.inline.len() as u64;
        let all = &self.content.extents;
        match all.get(all.partition_point(|e| e.end() <= at)) {
            Some(e) if e.offset <= at => (true, e.end()),
            next => {
                let next = next.map_or(u64::MAX, |e| e.offset);
                if at < inline { (true, inline.min(next)) } else { (false, next) }
            }
        }
    }

    /// Whether the range holds bytes of chunks.
    pub(crate) fn has_extents(&self, range: &Range<u64>) -> bool {
        !self.extents(range).is_empty()
    }

    /// Bytes of a range without extents.
    fn plain(&self, range: &Range<u64>, out: &mut Vec<Bytes>) {
        let inline = (self.content.inline.len() as u64).min(self.attr.size);
        let cut = range.end.min(inline).max(range.start);
        if cut > range.start {
            out.push(Bytes::copy_from_slice(&self.content.inline[range.start as usize..cut as usize]));
        }
        zeros(range.end - cut, out);
    }

    /// Appends the bytes of a range, if all of them are here. What lies beyond the end is zeros.
    pub(crate) fn read_now(
        &self,
        core: &Core,
        range: &Range<u64>,
        loose: &Loose,
        out: &mut Vec<Bytes>,
    ) -> Option<Result<()>> {
        let known = range.start..range.end.min(self.attr.size).max(range.start);
        let extents = self.extents(&known);
        if extents.is_empty() {
            self.plain(&known, out);
        } else {
            let local = self.local(core);
            if let Some(local) = local
                && local.missing(known.clone()).is_empty()
            {
                match read_exact(local.as_ref(), &known) {
                    Ok(bytes) => out.push(bytes.into()),
                    Err(e) => return Some(Err(e)),
                }
            } else {
                let mut at = known.start;
                for e in extents {
                    let part = e.offset.max(known.start)..e.end().min(known.end);
                    self.plain(&(at..part.start), out);
                    match extent_now(&part, local, loose, out)? {
                        Ok(()) => at = part.end,
                        Err(e) => return Some(Err(e)),
                    }
                }
                self.plain(&(at..known.end), out);
            }
        }
        zeros(range.end - known.end, out);
        Some(Ok(()))
    }

    /// The cells that show parts of a range which is not here.
    fn cells(&self, core: &Core, range: &Range<u64>) -> Vec<Cell> {
        let missing = match self.local(core) {
            Some(local) => local.missing(range.clone()),
            None => vec![range.clone()],
        };
        let mut cells: Vec<Cell> = Vec::new();
        for gap in missing {
            for e in self.extents(&gap) {
                let (from, to) = (gap.start.max(e.offset), gap.end.min(e.end()));
                let in_chunk = |at: u64| e.chunk_offset + (at - e.offset) as u32;
                let shown = e.chunk_offset..e.chunk_offset + e.len;
                for index in in_chunk(from) / CELL..=(in_chunk(to) - 1) / CELL {
                    let start = shown.start.max(index * CELL);
                    let end = shown.end.min(index.saturating_add(1).saturating_mul(CELL));
                    let at = e.offset + u64::from(start - e.chunk_offset);
                    // Two gaps in one cell are one fetch.
                    if cells.last().is_none_or(|c| c.file.start != at) {
                        let file = at..at + u64::from(end - start);
                        cells.push(Cell { file, chunk: e.chunk, range: start..end });
                    }
                }
            }
        }
        cells
    }

    /// Holes and inline bytes of a file with extents go into the local file too, so that whole ranges can
    /// be read from it.
    fn lay_plain(&self, core: &Core, range: &Range<u64>) {
        let Some(local) = self.local(core) else { return };
        for gap in local.missing(range.clone()) {
            let mut at = gap.start;
            let lay = |part: Range<u64>| -> Result<()> {
                let inline = (self.content.inline.len() as u64).min(self.attr.size);
                let cut = part.end.min(inline).max(part.start);
                if cut > part.start {
                    local.fill_at(&self.content.inline[part.start as usize..cut as usize], part.start)?;
                }
                if part.end > cut { local.zero(cut..part.end) } else { Ok(()) }
            };
            for e in self.extents(&gap) {
                if lay(at..e.offset.max(at)).is_err() {
                    return;
                }
                at = e.end();
            }
            if at < gap.end && lay(at..gap.end).is_err() {
                return;
            }
        }
    }

    /// Waits until a range is here. Returns the bytes that the local file could not take.
    pub(crate) async fn ensure(
        self: &Arc<Self>,
        core: &Arc<Core>,
        range: &Range<u64>,
    ) -> Result<Loose, Kind> {
        let range = range.start..range.end.min(self.attr.size).max(range.start);
        if range.is_empty() || !self.has_extents(&range) {
            return Ok(Loose::new());
        }
        let cells = self.cells(core, &range);
        let flights: Vec<(u64, Flight)> =
            cells.into_iter().map(|c| (c.file.start, self.flight(core, c, None))).collect();
        self.lay_plain(core, &range);
        let mut loose = Loose::new();
        for (at, mut flight) in flights {
            let landed = flight.wait_for(Option::is_some).await.map(|l| l.clone());
            match landed {
                Ok(Some(Landed::Filled)) => {}
                Ok(Some(Landed::Bytes(bytes))) => loose.push((at, bytes)),
                Ok(Some(Landed::Failed(kind))) => return Err(kind),
                // The fetching task was dropped with its runtime.
                Ok(None) | Err(_) => return Err(Kind::Canceled),
            }
        }
        Ok(loose)
    }

    /// Begins to fetch what is missing of a range, as far as there is room among the fetches that nobody
    /// waits for. Returns how far it came.
    pub(crate) fn prefetch(self: &Arc<Self>, core: &Arc<Core>, range: Range<u64>) -> u64 {
        let range = range.start..range.end.min(self.attr.size).max(range.start);
        if range.is_empty() || self.local(core).is_none() {
            return range.end;
        }
        for cell in self.cells(core, &range) {
            if self.flights.lock().contains_key(&cell.file.start) {
                continue;
            }
            let Ok(permit) = Arc::clone(&core.readaheads).try_acquire_owned() else {
                return cell.file.start.max(range.start);
            };
            self.flight(core, cell, Some(permit));
        }
        range.end
    }

    fn flight(self: &Arc<Self>, core: &Arc<Core>, cell: Cell, idle: Option<OwnedSemaphorePermit>) -> Flight {
        let mut flights = self.flights.lock();
        if let Some(flight) = flights.get(&cell.file.start) {
            return flight.clone();
        }
        let (send, flight) = watch::channel(None);
        flights.insert(cell.file.start, flight.clone());
        drop(flights);
        let (base, core) = (Arc::clone(self), Arc::clone(core));
        let runtime = core.runtime.clone();
        runtime.spawn(async move {
            // Taken out also if this task is dropped or panics, so that the next reader tries again.
            let _gone = Departed { base: &base, at: cell.file.start };
            let landed = base.land(&core, &cell).await;
            drop(idle);
            send.send_replace(Some(landed));
        });
        flight
    }

    async fn land(&self, core: &Core, cell: &Cell) -> Landed {
        let _permit = core.fetches.acquire().await;
        let bytes = match fetch(core, cell).await {
            Ok(bytes) => bytes,
            Err(e) => {
                tracing::warn!(ino = %self.attr.ino, chunk = %cell.chunk.id, error = %e, "read chunk");
                return Landed::Failed(e.kind());
            }
        };
        match self.local(core) {
            Some(local) if local.fill_at(&bytes, cell.file.start).is_ok() => Landed::Filled,
            _ => Landed::Bytes(bytes),
        }
    }
}

/// Removes a flight when its task ends.
struct Departed<'a> {
    base: &'a Base,
    at: u64,
}

impl Drop for Departed<'_> {
    fn drop(&mut self) {
        self.base.flights.lock().remove(&self.at);
    }
}

/// Gets a cell, again and again while that may help: one node may die under it.
async fn fetch(core: &Core, cell: &Cell) -> Result<Bytes> {
    let until = core.clock.now().after(FETCH_DEADLINE);
    let mut pause = RETRY_FIRST;
    loop {
        let left = until.since(core.clock.now());
        let got = core.within(left, core.chunks.get(cell.chunk, cell.range.clone())).await;
        let error = match got {
            Ok(bytes) if bytes.len() == cell.range.len() => return Ok(bytes),
            Ok(bytes) => Error::new(Kind::Corrupt, format!("{} bytes of {}", bytes.len(), cell.range.len())),
            Err(e) => e,
        };
        if !error.kind().is_transient() || core.clock.now().after(pause) >= until {
            return Err(error);
        }
        core.clock.sleep(pause).await;
        pause = (pause * 2).min(RETRY_MAX);
    }
}

/// Appends part of an extent out of the local file and out of loose bytes.
fn extent_now(
    part: &Range<u64>,
    local: Option<&Arc<dyn LocalFile>>,
    loose: &Loose,
    out: &mut Vec<Bytes>,
) -> Option<Result<()>> {
    let mut at = part.start;
    while at < part.end {
        if let Some((from, bytes)) =
            loose.iter().find(|(from, bytes)| *from <= at && at < from + bytes.len() as u64)
        {
            let end = part.end.min(from + bytes.len() as u64);
            out.push(bytes.slice((at - from) as usize..(end - from) as usize));
            at = end;
            continue;
        }
        let next = loose.iter().map(|(from, _)| *from).filter(|from| *from > at).min().unwrap_or(part.end);
        let run = at..part.end.min(next);
        let local = local?;
        if !local.missing(run.clone()).is_empty() {
            return None;
        }
        match read_exact(local.as_ref(), &run) {
            Ok(bytes) => out.push(bytes.into()),
            Err(e) => return Some(Err(e)),
        }
        at = run.end;
    }
    Some(Ok(()))
}
