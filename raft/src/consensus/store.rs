//! The state file of this node: readers' snapshots, the write gate, and what is told to others when a
//! batch has been applied.

use crate::consensus::settle::Settling;
use crate::consensus::types::{LogId, StoredMembership};
use crate::kv::{Read, Table, Write};
use crate::kv_redb::{Reader, Writer, failed};
use crate::state::StateView;
use hfcache_base::meta::{Applied, Change, SharedMap};
use hfcache_base::seam::ChangeSink;
use hfcache_base::{Error, Kind, Result, wire};
use parking_lot::RwLock;
use redb::{Database, DatabaseError, Durability};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{Mutex, watch};

/// Page cache of the state file.
const CACHE_BYTES: usize = 96 << 20;
/// Name of the state file in the directory.
pub(crate) const STATE_FILE: &str = "state.redb";
/// A state that is being built from a snapshot.
const NEXT: &str = "state.next.redb";
/// Keys in [`Table::Single`]. The state machine's own keys there never begin with this word.
const APPLIED: &[u8] = b"raft.applied";
const MEMBERSHIP: &[u8] = b"raft.membership";
const FORMAT_KEY: &[u8] = b"raft.format";
/// Version of the state file's layout.
const FORMAT: u8 = 2;
/// How long a file that is still open elsewhere is waited for: a part of this program may be closing it.
const BUSY_TRIES: u32 = 100;

/// Opens or makes a redb file, and looks at every page of it. redb alone believes a file that was closed in
/// order: one that lost its end since then would be found out only when what was there is read.
///
/// # Errors
/// [`Kind::Busy`] when it is open elsewhere, [`Kind::Corrupt`] when damaged.
pub(crate) fn open_database(path: &Path, cache: usize) -> Result<Database> {
    let mut tries = 0;
    loop {
        match Database::builder().set_cache_size(cache).create(path) {
            Ok(db) => return whole(db).map_err(|e| e.context(format!("check {}", path.display()))),
            Err(DatabaseError::DatabaseAlreadyOpen) if tries < BUSY_TRIES => {
                tries += 1;
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(DatabaseError::DatabaseAlreadyOpen) => {
                return Err(Error::new(Kind::Busy, format!("{} is open elsewhere", path.display())));
            }
            Err(e) => return Err(failed(e).context(format!("open {}", path.display()))),
        }
    }
}

/// The database, if every page has the checksum it should have. One that had to be set back is refused: it
/// has forgotten what this node acknowledged.
fn whole(mut db: Database) -> Result<Database> {
    match db.check_integrity() {
        Ok(true) => Ok(db),
        Ok(false) => Err(Error::new(Kind::Corrupt, "it is damaged: pages are missing or changed")),
        Err(e) => Err(failed(e)),
    }
}

/// Makes the names in a directory survive a power cut.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    std::fs::File::open(dir)
        .and_then(|d| d.sync_all())
        .map_err(|e| Error::io(e).context(format!("sync {}", dir.display())))
}

/// The state, shared by the state machine that writes it and everyone who reads.
pub struct Store {
    dir: PathBuf,
    db: RwLock<Arc<Database>>,
    /// Of the newest committed state. Made once for each, as most are asked for very little.
    latest: RwLock<Reader>,
    /// Held while a transaction is written or the file is replaced.
    gate: Mutex<()>,
    /// Something was committed without a sync.
    dirty: AtomicBool,
    applied: watch::Sender<u64>,
    settling: Settling,
    sinks: RwLock<Vec<Arc<dyn ChangeSink>>>,
    map: RwLock<SharedMap>,
}

impl Store {
    /// Opens or makes the state in a directory.
    ///
    /// # Errors
    /// [`Kind::Busy`], [`Kind::Version`], [`Kind::Corrupt`], or whatever the disk says.
    pub fn open(dir: &Path) -> Result<Self> {
        let _left_over = std::fs::remove_file(dir.join(NEXT));
        let db = open_database(&dir.join(STATE_FILE), CACHE_BYTES)?;
        check_format(&db).map_err(|e| e.context(format!("open {}", dir.join(STATE_FILE).display())))?;
        let (applied, _) = watch::channel(0);
        let latest = RwLock::new(Reader::new(&db)?);
        let store = Self {
            dir: dir.to_owned(),
            latest,
            db: RwLock::new(Arc::new(db)),
            gate: Mutex::new(()),
            dirty: AtomicBool::new(false),
            applied,
            settling: Settling::default(),
            sinks: RwLock::new(Vec::new()),
            map: RwLock::default(),
        };
        if let Some(at) = store.refresh()? {
            // How much of it others have is not known yet.
            store.settling.all_changed(at.index);
        }
        Ok(store)
    }

    /// A consistent, unchanging state: the newest committed one.
    pub fn reader(&self) -> Reader {
        self.latest.read().clone()
    }

    /// Where the state's files are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The newest applied log index, and a way to wait for the next.
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    /// The newest applied log index.
    pub fn applied_index(&self) -> u64 {
        *self.applied.borrow()
    }

    /// What of it may not be applied everywhere yet.
    pub fn settling(&self) -> &Settling {
        &self.settling
    }

    /// Waits until an index is applied here.
    pub async fn wait_applied(&self, index: u64) {
        let mut applied = self.applied.subscribe();
        // The sender lives as long as `self`.
        let _never = applied.wait_for(|at| *at >= index).await;
    }

    /// The cluster map of the newest state.
    pub fn map(&self) -> SharedMap {
        self.map.read().clone()
    }

    /// Tells a sink of every change from now on.
    pub fn subscribe(&self, sink: Arc<dyn ChangeSink>) {
        self.sinks.write().push(sink);
    }

    /// Forgets all sinks: they may hold this state themselves.
    pub fn unsubscribe_all(&self) {
        self.sinks.write().clear();
    }

    /// Runs `change` in one transaction that later readers see at once, and that is on disk after the
    /// next [`Store::flush`]. Afterwards sinks are told and the applied index moves.
    ///
    /// # Errors
    /// Whatever the disk or `change` says; nothing has changed then.
    pub async fn write<T>(
        &self,
        change: impl FnOnce(&mut Writer<'_>) -> Result<(T, Vec<Applied>, Option<LogId>)>,
    ) -> Result<T> {
        let _gate = self.gate.lock().await;
        let db = self.db.read().clone();
        let mut txn = db.begin_write().map_err(failed)?;
        txn.set_durability(Durability::None).map_err(failed)?;
        let (value, applied, at) = {
            let mut writer = Writer::new(&txn)?;
            change(&mut writer)?
        };
        if let Some(at) = at {
            // Before anyone can see it.
            self.settling.changed(at.index, &applied);
        }
        txn.commit().map_err(failed)?;
        *self.latest.write() = Reader::new(&db)?;
        self.dirty.store(true, Ordering::Release);
        if applied.iter().any(|one| one.changes.contains(&Change::Map)) {
            self.refresh_map(self.reader())?;
        }
        if !applied.is_empty() {
            for sink in self.sinks.read().iter() {
                sink.applied(&applied);
            }
        }
        if let Some(at) = at {
            self.applied.send_replace(at.index);
        }
        Ok(value)
    }

    /// Makes everything written so far survive a power cut.
    ///
    /// # Errors
    /// Whatever the disk says.
    pub async fn flush(self: &Arc<Self>) -> Result<()> {
        if !self.dirty.load(Ordering::Acquire) {
            return Ok(());
        }
        let _gate = self.gate.lock().await;
        self.dirty.store(false, Ordering::Release);
        let db = self.db.read().clone();
        let synced = tokio::task::spawn_blocking(move || {
            let mut txn = db.begin_write().map_err(failed)?;
            txn.set_durability(Durability::Immediate).map_err(failed)?;
            txn.commit().map_err(failed)
        })
        .await
        .map_err(|e| Error::new(Kind::Internal, "sync state").with_source(e))?;
        if synced.is_err() {
            self.dirty.store(true, Ordering::Release);
        }
        synced
    }

    /// Replaces the whole state by what `fill` writes, atomically: a crash leaves the old or the new one.
    /// Readers that have the old state keep it until they drop it.
    ///
    /// # Errors
    /// Whatever the disk or `fill` says; the old state stays then.
    pub async fn replace(
        self: &Arc<Self>,
        fill: impl FnOnce(&Database) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let _gate = self.gate.lock().await;
        let (next, file, dir) = (self.dir.join(NEXT), self.dir.join(STATE_FILE), self.dir.clone());
        let db = tokio::task::spawn_blocking(move || {
            let _left_over = std::fs::remove_file(&next);
            let db = open_database(&next, CACHE_BYTES)?;
            fill(&db)?;
            check_format(&db)?;
            std::fs::rename(&next, &file).map_err(|e| Error::io(e).context("replace state file"))?;
            sync_dir(&dir)?;
            Ok::<_, Error>(db)
        })
        .await
        .map_err(|e| Error::new(Kind::Internal, "replace state").with_source(e))??;
        let reader = Reader::new(&db)?;
        if let (Some(at), _) = position(&reader)? {
            // Before anyone can see it.
            self.settling.all_changed(at.index);
        }
        *self.db.write() = Arc::new(db);
        *self.latest.write() = reader;
        self.dirty.store(false, Ordering::Release);
        let at = self.refresh()?;
        for sink in self.sinks.read().iter() {
            sink.replaced();
        }
        if let Some(at) = at {
            self.applied.send_replace(at.index);
        }
        Ok(())
    }

    /// Reads map and position of a state that was not reached by [`Store::write`].
    fn refresh(&self) -> Result<Option<LogId>> {
        let reader = self.reader();
        let (at, _) = position(&reader)?;
        self.refresh_map(reader)?;
        self.applied.send_if_modified(|index| {
            // Waiters are woken by the caller, after sinks were told.
            *index = at.map_or(0, |at| at.index).max(*index);
            false
        });
        Ok(at)
    }

    fn refresh_map(&self, reader: Reader) -> Result<()> {
        let map = StateView::new(reader).map()?;
        *self.map.write() = Arc::new(map);
        Ok(())
    }
}

/// Refuses a state file of another layout and marks a new one.
fn check_format(db: &Database) -> Result<()> {
    let txn = db.begin_write().map_err(failed)?;
    {
        let mut writer = Writer::new(&txn)?;
        match writer.get(Table::Single, FORMAT_KEY)?.as_deref() {
            None => writer.put(Table::Single, FORMAT_KEY, &[FORMAT])?,
            Some([FORMAT]) => {}
            Some(other) => {
                return Err(Error::new(
                    Kind::Version,
                    format!("state layout {other:?}; this program knows {FORMAT}"),
                ));
            }
        }
    }
    txn.commit().map_err(failed)
}

/// The log entry up to which a state was made, and the membership then.
///
/// # Errors
/// Only if the state is damaged.
pub fn position(state: &dyn Read) -> Result<(Option<LogId>, StoredMembership)> {
    let at = state.get(Table::Single, APPLIED)?.map(|v| wire::decode(&v)).transpose()?;
    let membership = state.get(Table::Single, MEMBERSHIP)?.map(|v| wire::decode(&v)).transpose()?;
    Ok((at.flatten(), membership.unwrap_or_default()))
}

/// Records the log entry that was applied last.
///
/// # Errors
/// Only if the store fails.
pub fn set_position(state: &mut dyn Write, at: Option<LogId>) -> Result<()> {
    state.put(Table::Single, APPLIED, &wire::encode(&at))
}

/// Records the membership of an applied entry.
///
/// # Errors
/// Only if the store fails.
pub fn set_membership(state: &mut dyn Write, membership: &StoredMembership) -> Result<()> {
    state.put(Table::Single, MEMBERSHIP, &wire::encode(membership))
}
