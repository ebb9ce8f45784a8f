//! The state machine as openraft drives it: batches of entries become one transaction each.
//!
//! A transaction is seen by readers at once but synced only every [`FLUSH_EVERY`], because the log is
//! durable already; a restart applies again what was lost. What a snapshot claims to contain is synced
//! before it claims so, because the log may be purged up to there.

use crate::consensus::snapshot::{self, Image};
use crate::consensus::store::{self, Store};
use crate::consensus::types::{Batch, Entry, LogId, Replies, SnapshotMeta, StoredMembership, Types};
use crate::kv_redb::Writer;
use crate::state;
use futures::{Stream, TryStreamExt};
use hfcache_base::meta::Applied;
use hfcache_base::{Error, Kind, Result};
use openraft::storage::{ApplyResponder, EntryResponder, RaftSnapshotBuilder, RaftStateMachine, Snapshot};
use openraft::{EntryPayload, OptionalSend};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long an applied entry may wait for its sync.
pub const FLUSH_EVERY: Duration = Duration::from_millis(200);
/// Commands in one transaction: long replays let readers see progress and never hold the runtime long.
const COMMANDS_PER_TXN: usize = 1_024;

/// openraft's snapshot of this state.
pub type StateSnapshot = openraft::type_config::alias::SnapshotOf<Types, Image>;

/// See the module.
pub struct Machine {
    store: Arc<Store>,
    /// A snapshot was made in this run, so there is one to show.
    has_snapshot: Arc<AtomicBool>,
}

impl Machine {
    /// The state machine of a state.
    pub fn new(store: Arc<Store>) -> Self {
        Self { store, has_snapshot: Arc::new(AtomicBool::new(false)) }
    }

    /// Applies some entries in one transaction; answers are sent when it is committed.
    async fn apply_some(&self, entries: Vec<EntryResponder<Types>>) -> Result<()> {
        let (entries, responders): (Vec<Entry>, Vec<Option<ApplyResponder<Types>>>) =
            entries.into_iter().unzip();
        let replies = self
            .store
            .write(|writer| {
                let mut replies = Vec::with_capacity(entries.len());
                let mut applied = Vec::new();
                let mut at = None;
                for entry in &entries {
                    replies.push(apply_entry(writer, entry, &mut applied)?);
                    at = Some(entry.log_id);
                }
                store::set_position(writer, at)?;
                Ok((replies, applied, at))
            })
            .await?;
        for (responder, replies) in responders.into_iter().zip(replies) {
            if let Some(responder) = responder {
                responder.send(replies);
            }
        }
        Ok(())
    }
}

fn apply_entry(writer: &mut Writer<'_>, entry: &Entry, applied: &mut Vec<Applied>) -> Result<Replies> {
    match &entry.payload {
        EntryPayload::Blank => Ok(Replies::default()),
        EntryPayload::Membership(membership) => {
            let stored = StoredMembership::new(Some(entry.log_id), membership.clone());
            store::set_membership(writer, &stored)?;
            Ok(Replies::default())
        }
        EntryPayload::Normal(Batch(commands)) => {
            let mut replies = Vec::with_capacity(commands.len());
            for command in commands.iter() {
                let outcome = state::apply(writer, command)?;
                replies.push(outcome.reply);
                applied.push(outcome.applied);
            }
            Ok(Replies(replies))
        }
    }
}

fn weight(entry: &Entry) -> usize {
    match &entry.payload {
        EntryPayload::Normal(Batch(commands)) => commands.len().max(1),
        _ => 1,
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = Image;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let reader = self.store.reader();
        store::position(&reader).map_err(io::Error::other)
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        let mut some = Vec::new();
        let mut commands = 0;
        while let Some(next) = entries.try_next().await? {
            commands += weight(&next.0);
            some.push(next);
            if commands >= COMMANDS_PER_TXN {
                commands = 0;
                self.apply_some(std::mem::take(&mut some)).await.map_err(io::Error::other)?;
                tokio::task::yield_now().await;
            }
        }
        if some.is_empty() {
            return Ok(());
        }
        self.apply_some(some).await.map_err(io::Error::other)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder { store: self.store.clone(), has_snapshot: self.has_snapshot.clone() }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, image: Image) -> Result<(), io::Error> {
        snapshot::install(&self.store, meta, image).await.map_err(io::Error::other)?;
        self.has_snapshot.store(true, Ordering::Release);
        tracing::info!(at = ?meta.last_log_id, "state replaced by a snapshot");
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<StateSnapshot>, io::Error> {
        if !self.has_snapshot.load(Ordering::Acquire) {
            return Ok(None);
        }
        current(&self.store).map(Some).map_err(io::Error::other)
    }
}

/// The newest state as a snapshot: the pages are pinned until it is dropped or written out.
fn current(store: &Store) -> Result<StateSnapshot> {
    let reader = store.reader();
    let (last_log_id, last_membership) = store::position(&reader)?;
    let meta = SnapshotMeta { last_log_id, last_membership };
    Ok(Snapshot { meta, snapshot: Image::Live(reader) })
}

/// Makes a snapshot. The state is durable by itself, so that is no more than a sync; a copy is written
/// out only when a node needs one.
pub struct Builder {
    store: Arc<Store>,
    has_snapshot: Arc<AtomicBool>,
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = Image;

    async fn build_snapshot(&mut self) -> Result<StateSnapshot, io::Error> {
        let position = {
            let reader = self.store.reader();
            store::position(&reader).map_err(io::Error::other)?
        };
        self.store.flush().await.map_err(io::Error::other)?;
        self.has_snapshot.store(true, Ordering::Release);
        let (last_log_id, last_membership) = position;
        Ok(Snapshot { meta: SnapshotMeta { last_log_id, last_membership }, snapshot: Image::Claim })
    }
}

/// The error for an image that holds nothing to send or install.
pub(crate) fn no_image() -> Error {
    Error::new(Kind::Internal, "snapshot without content")
}
