//! The Raft log on redb, in a file of its own, because redb has one writer per file.
//!
//! ```text
//! table "log":    index: u64          →  wire::encode(Entry)
//! table "meta":   "format"            →  [FORMAT]
//!                 "vote"              →  wire::encode(Vote)
//!                 "committed"         →  wire::encode(LogId), written with whatever is written next
//!                 "purged"            →  wire::encode(LogId); rows up to it may still be there
//! ```
//!
//! One thread writes: it drains its queue, puts everything in one transaction, syncs once and only then
//! reports. The newest entries are kept in memory as well, so that an entry can be read as soon as it was
//! accepted, and so that replication and apply do not read back what was just written. Purged rows are
//! deleted a few at a time, never in the way of an append.

use crate::consensus::types::{Entry, LogId, Types, Vote};
use crate::kv_redb::failed;
use hfcache_base::{Error, Kind, Result, wire};
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{LogIdOptionExt, OptionalSend};
use parking_lot::Mutex;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

const LOG: TableDefinition<'static, u64, &'static [u8]> = TableDefinition::new("log");
const META: TableDefinition<'static, &'static str, &'static [u8]> = TableDefinition::new("meta");
/// Version of the file's layout.
const FORMAT: u8 = 2;
/// Page cache of the file: the log is read back only by nodes that fell behind.
const CACHE_BYTES: usize = 16 << 20;
/// Entries kept in memory behind the newest.
const TAIL_ENTRIES: usize = 8_192;
/// Bytes of entries kept in memory behind the newest.
const TAIL_BYTES: usize = 16 << 20;
/// Writes waiting for the writer thread.
const QUEUE: usize = 1_024;
/// Writes that share a sync.
const GROUP: usize = 512;
/// Purged rows deleted with one sync.
const PURGE_STEP: usize = 2_048;
/// Bytes of entries in one replication request; well under the largest call.
const READ_BYTES: usize = 2 << 20;

enum Job {
    Append { rows: Vec<(u64, Vec<u8>)>, done: IOFlushed<Types> },
    Vote { vote: Vec<u8>, done: oneshot::Sender<io::Result<()>> },
    Truncate { from: u64, done: oneshot::Sender<io::Result<()>> },
    Purge { purged: LogId, done: oneshot::Sender<io::Result<()>> },
}

/// What readers see, ahead of the disk.
#[derive(Default)]
struct Memory {
    vote: Option<Vote>,
    committed: Option<LogId>,
    committed_changed: bool,
    purged: Option<LogId>,
    last: Option<LogId>,
    /// Index of the oldest entry, when there is any.
    first: u64,
    /// Newest entries with their encoded size, without gaps.
    tail: VecDeque<(Entry, usize)>,
    tail_bytes: usize,
    /// Entries up to here are on disk.
    durable: u64,
}

impl Memory {
    fn first_in_tail(&self) -> Option<u64> {
        self.tail.front().map(|(entry, _)| entry.index())
    }

    fn push(&mut self, entry: Entry, size: usize) {
        if self.last == self.purged {
            self.first = entry.index();
        }
        self.last = Some(entry.log_id);
        self.tail.push_back((entry, size));
        self.tail_bytes += size;
    }

    /// Forgets old entries that are on disk.
    fn trim(&mut self) {
        while self.tail.len() > TAIL_ENTRIES || self.tail_bytes > TAIL_BYTES {
            match self.tail.front() {
                Some((entry, size)) if entry.index() <= self.durable => {
                    self.tail_bytes -= size;
                    self.tail.pop_front();
                }
                _ => break,
            }
        }
    }

    fn truncate(&mut self, from: u64) {
        while self.tail.back().is_some_and(|(entry, _)| entry.index() >= from) {
            if let Some((_, size)) = self.tail.pop_back() {
                self.tail_bytes -= size;
            }
        }
    }

    fn purge(&mut self, purged: LogId) {
        while self.tail.front().is_some_and(|(entry, _)| entry.index() <= purged.index) {
            if let Some((_, size)) = self.tail.pop_front() {
                self.tail_bytes -= size;
            }
        }
        self.purged = Some(purged);
        if self.last.is_none_or(|last| last.index <= purged.index) {
            self.last = Some(purged);
        }
    }
}

/// The log. Clones share it.
#[derive(Clone)]
pub struct LogStore {
    db: Arc<Database>,
    memory: Arc<Mutex<Memory>>,
    jobs: mpsc::Sender<Job>,
}

impl LogStore {
    /// Opens or makes a log file and starts its writer, which ends when the last clone is dropped.
    ///
    /// # Errors
    /// [`Kind::Busy`] when another process has it open, [`Kind::Version`] for a newer layout,
    /// [`Kind::Corrupt`] for a damaged file.
    pub fn open(path: &Path) -> Result<Self> {
        let db = crate::consensus::store::open_database(path, CACHE_BYTES)?;
        let memory = load(&db).map_err(|e| e.context(format!("open log {}", path.display())))?;
        let db = Arc::new(db);
        let memory = Arc::new(Mutex::new(memory));
        let (jobs, queue) = mpsc::channel(QUEUE);
        let mut writer = Writer { db: db.clone(), memory: memory.clone(), purging: true };
        std::thread::Builder::new()
            .name("raft-log".to_owned())
            .spawn(move || writer.run(queue))
            .map_err(|e| Error::io(e).context("start log writer"))?;
        Ok(Self { db, memory, jobs })
    }

    /// Whether anything was ever written: a node that voted before must be careful after a restart.
    pub fn is_pristine(&self) -> bool {
        let memory = self.memory.lock();
        memory.vote.is_none() && memory.last.is_none()
    }

    async fn write(&self, job: impl FnOnce(oneshot::Sender<io::Result<()>>) -> Job) -> Result<(), io::Error> {
        let (done, wait) = oneshot::channel();
        self.jobs.send(job(done)).await.map_err(|_| stopped())?;
        wait.await.map_err(|_| stopped())?
    }

    /// Entries `[from, to)` as far as they exist, at least one but not many more than `bytes`.
    fn read(&self, from: u64, to: u64, bytes: usize) -> Result<Vec<Entry>> {
        // Memory first: what leaves it afterwards is on disk before it does.
        let (from, split, tail) = {
            let memory = self.memory.lock();
            let from = from.max(memory.first).max(memory.purged.next_index());
            let to = to.min(memory.last.next_index());
            if from >= to {
                return Ok(Vec::new());
            }
            let split = memory.first_in_tail().unwrap_or(to).clamp(from, to);
            let skip = memory.first_in_tail().map_or(0, |first| from.saturating_sub(first) as usize);
            let mut size = 0;
            let mut tail = Vec::new();
            for (entry, len) in memory.tail.iter().skip(skip).take((to - split) as usize) {
                if size > 0 && size + len > bytes {
                    break;
                }
                size += len;
                tail.push(entry.clone());
            }
            (from, split, tail)
        };
        if from == split {
            return Ok(tail);
        }
        let mut entries = Vec::new();
        let mut size = 0;
        let txn = self.db.begin_read().map_err(failed)?;
        let rows = txn.open_table(LOG).map_err(failed)?;
        for row in rows.range(from..split).map_err(failed)? {
            let (index, value) = row.map_err(failed)?;
            if index.value() != from + entries.len() as u64 {
                // The start may have been purged meanwhile; anything else is a hole.
                let purged = self.memory.lock().purged.next_index();
                if entries.is_empty() && index.value() <= purged {
                    return self.read(purged, to, bytes);
                }
                return Err(Error::new(Kind::Corrupt, format!("log has a hole before {}", index.value())));
            }
            let len = value.value().len();
            if size > 0 && size + len > bytes {
                return Ok(entries);
            }
            size += len;
            entries.push(wire::decode::<Entry>(value.value())?);
        }
        if from + entries.len() as u64 == split {
            if bytes == usize::MAX {
                entries.extend(tail);
            }
            return Ok(entries);
        }
        let purged = self.memory.lock().purged.next_index();
        if purged > from {
            return self.read(purged, to, bytes);
        }
        Err(Error::new(Kind::Corrupt, format!("log ends at {} of {split}", from + entries.len() as u64)))
    }
}

fn stopped() -> io::Error {
    io::Error::other("log writer has stopped")
}

fn load(db: &Database) -> Result<Memory> {
    let txn = db.begin_write().map_err(failed)?;
    let mut memory = Memory::default();
    {
        let mut meta = txn.open_table(META).map_err(failed)?;
        let log = txn.open_table(LOG).map_err(failed)?;
        let format = meta.get("format").map_err(failed)?.map(|v| v.value().to_vec());
        match format.as_deref() {
            None => {
                meta.insert("format", [FORMAT].as_slice()).map_err(failed)?;
            }
            Some([FORMAT]) => {}
            Some(other) => {
                return Err(Error::new(
                    Kind::Version,
                    format!("log layout {other:?}; this program knows {FORMAT}"),
                ));
            }
        }
        memory.vote = decoded(&meta, "vote")?;
        memory.committed = decoded(&meta, "committed")?;
        memory.purged = decoded(&meta, "purged")?;
        memory.last = memory.purged;
        if let Some((index, value)) = log.last().map_err(failed)?
            && index.value() >= memory.purged.next_index()
        {
            memory.last = Some(wire::decode::<Entry>(value.value())?.log_id);
            memory.durable = index.value();
            let first = log.range(memory.purged.next_index()..).map_err(failed)?.next();
            memory.first = first.transpose().map_err(failed)?.map_or(0, |(index, _)| index.value());
        }
    }
    txn.commit().map_err(failed)?;
    Ok(memory)
}

fn decoded<T: serde::de::DeserializeOwned>(
    meta: &impl ReadableTable<&'static str, &'static [u8]>,
    key: &str,
) -> Result<Option<T>> {
    let value = meta.get(key).map_err(failed)?;
    value.map(|v| wire::decode(v.value())).transpose()
}

struct Writer {
    db: Arc<Database>,
    memory: Arc<Mutex<Memory>>,
    /// Purged rows may be left.
    purging: bool,
}

impl Writer {
    fn run(&mut self, mut queue: mpsc::Receiver<Job>) {
        loop {
            let first = if self.purging {
                match queue.try_recv() {
                    Ok(job) => Some(job),
                    Err(mpsc::error::TryRecvError::Empty) => None,
                    Err(mpsc::error::TryRecvError::Disconnected) => return,
                }
            } else {
                match queue.blocking_recv() {
                    Some(job) => Some(job),
                    None => break,
                }
            };
            let mut jobs: Vec<Job> = first.into_iter().collect();
            while jobs.len() < GROUP
                && let Ok(job) = queue.try_recv()
            {
                jobs.push(job);
            }
            if let Err(e) = self.commit(jobs) {
                // openraft was told through the callbacks and stops this node.
                tracing::error!(error = %e, "write Raft log");
                return;
            }
        }
        // The commit position of an orderly end spares the next start a little work.
        if let Err(e) = self.commit(Vec::new()) {
            tracing::warn!(error = %e, "write Raft log");
        }
    }

    fn commit(&mut self, jobs: Vec<Job>) -> Result<()> {
        let outcome = self.write(&jobs);
        let report = || match &outcome {
            Ok(_) => Ok(()),
            Err(e) => Err(io::Error::other(e.to_string())),
        };
        if let Ok(Some(last)) = &outcome {
            let mut memory = self.memory.lock();
            memory.durable = *last;
            memory.trim();
        }
        for job in jobs {
            match job {
                Job::Append { done, .. } => done.io_completed(report()),
                Job::Vote { done, .. } | Job::Truncate { done, .. } | Job::Purge { done, .. } => {
                    let _gone = done.send(report());
                }
            }
        }
        outcome.map(|_| ())
    }

    /// Writes all jobs in one transaction; the last index on disk if that changed.
    fn write(&mut self, jobs: &[Job]) -> Result<Option<u64>> {
        let committed = {
            let mut memory = self.memory.lock();
            let changed = std::mem::take(&mut memory.committed_changed);
            if changed { memory.committed } else { None }
        };
        if jobs.is_empty() && committed.is_none() && !self.purging {
            return Ok(None);
        }
        let mut txn = self.db.begin_write().map_err(failed)?;
        txn.set_durability(Durability::Immediate).map_err(failed)?;
        let mut last = None;
        {
            let mut log = txn.open_table(LOG).map_err(failed)?;
            let mut meta = txn.open_table(META).map_err(failed)?;
            for job in jobs {
                match job {
                    Job::Append { rows, .. } => {
                        for (index, entry) in rows {
                            log.insert(index, entry.as_slice()).map_err(failed)?;
                            last = Some(*index);
                        }
                    }
                    Job::Vote { vote, .. } => {
                        meta.insert("vote", vote.as_slice()).map_err(failed)?;
                    }
                    Job::Truncate { from, .. } => {
                        log.retain_in(*from.., |_, _| false).map_err(failed)?;
                        let kept = last.unwrap_or_else(|| self.memory.lock().durable);
                        last = Some(kept.min(from.saturating_sub(1)));
                    }
                    Job::Purge { purged, .. } => {
                        meta.insert("purged", wire::encode(purged).as_slice()).map_err(failed)?;
                        self.purging = true;
                    }
                }
            }
            if let Some(committed) = committed {
                meta.insert("committed", wire::encode(&committed).as_slice()).map_err(failed)?;
            }
            if self.purging {
                let purged: Option<LogId> = decoded(&meta, "purged")?;
                self.purging = delete_some(&mut log, purged.next_index())?;
            }
        }
        txn.commit().map_err(failed)?;
        Ok(last)
    }
}

/// Deletes a few rows below `end`; whether there may be more.
fn delete_some(log: &mut redb::Table<'_, u64, &'static [u8]>, end: u64) -> Result<bool> {
    let mut rows = Vec::new();
    for row in log.range(..end).map_err(failed)?.take(PURGE_STEP) {
        rows.push(row.map_err(failed)?.0.value());
    }
    for index in &rows {
        log.remove(index).map_err(failed)?;
    }
    Ok(rows.len() == PURGE_STEP)
}

fn span(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let from = match range.start_bound() {
        Bound::Included(n) => *n,
        Bound::Excluded(n) => n.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let to = match range.end_bound() {
        Bound::Included(n) => n.saturating_add(1),
        Bound::Excluded(n) => *n,
        Bound::Unbounded => u64::MAX,
    };
    (from, to)
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let (from, to) = span(&range);
        self.read(from, to, usize::MAX).map_err(io::Error::other)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        self.read(start, end, READ_BYTES).map_err(io::Error::other)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.memory.lock().vote)
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        let memory = self.memory.lock();
        Ok(LogState { last_purged_log_id: memory.purged, last_log_id: memory.last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let encoded = wire::encode(vote);
        self.write(|done| Job::Vote { vote: encoded, done }).await?;
        self.memory.lock().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        let mut memory = self.memory.lock();
        memory.committed = committed;
        memory.committed_changed = true;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.memory.lock().committed)
    }

    async fn append<I>(&mut self, entries: I, done: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<(Entry, Vec<u8>)> = entries
            .into_iter()
            .map(|entry| {
                let bytes = wire::encode(&entry);
                (entry, bytes)
            })
            .collect();
        let mut rows = Vec::with_capacity(entries.len());
        {
            let mut memory = self.memory.lock();
            for (entry, bytes) in entries {
                rows.push((entry.index(), bytes));
                let size = rows.last().map_or(0, |(_, bytes)| bytes.len());
                memory.push(entry, size);
            }
        }
        self.jobs.send(Job::Append { rows, done }).await.map_err(|_| stopped())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let from = last.next_index();
        {
            let mut memory = self.memory.lock();
            memory.truncate(from);
            memory.last = memory.last.min(last).max(memory.purged);
        }
        self.write(|done| Job::Truncate { from, done }).await
    }

    async fn purge(&mut self, purged: LogId) -> Result<(), io::Error> {
        self.memory.lock().purge(purged);
        self.write(|done| Job::Purge { purged, done }).await
    }
}
