//! The want/have loop: one task that brings what this node holds in line with what it should hold. There is
//! no coordinator: each node reads the namespace and the map and sees to its own shards.
//!
//! *Want minus have* is fetched from whoever has it, or made from the other shards. *Have minus want* is
//! deleted when every node that should hold a shard of the chunk has said that it does. Shards of chunks
//! that the namespace does not know go when the chunk was freed, or when no live session may still commit
//! it and it has been here for a while; that is decided only on a state known to be current.

use crate::codec;
use crate::fetch::Fetcher;
use crate::local::LocalShards;
use crate::pace::Pace;
use crate::peers::Peers;
use crate::plan::{holders, judge, margin};
use crate::pool::IoPool;
use crate::shard::{Header, ShardKey};
use crate::status::{Counters, Redundancy};
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use hfcache_base::limits::CALL_DEADLINE;
use hfcache_base::meta::{Applied, Change, ChunkRef};
use hfcache_base::seam::{ChangeSink, Clock, Meta, Moment, Rng};
use hfcache_base::{ChunkId, Epoch, Error, Kind, NodeId, Result};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Notify;

/// Most events and most unfinished chunks that are remembered; beyond that a full pass finds the rest.
const REMEMBER_MAX: usize = 65_536;
/// Chunks looked at in one step of a full pass.
const PAGE: usize = 1_000;
/// Chunks worked on between two looks at what is new.
const BATCH: usize = 64;

#[derive(Default)]
struct Inbox {
    added: VecDeque<ChunkRef>,
    freed: VecDeque<(ChunkId, Moment)>,
    forgotten: BTreeSet<ChunkId>,
    full_pass: bool,
}

/// What the task has found out; for `status`.
#[derive(Default)]
struct Seen {
    missing: u64,
    surplus: u64,
    busy: bool,
    passes: u64,
    epoch: Epoch,
    last_pass: i64,
}

/// See the module.
pub struct Upkeep {
    peers: Arc<Peers>,
    local: Option<Arc<LocalShards>>,
    fetcher: Arc<Fetcher>,
    pool: Arc<IoPool>,
    clock: Arc<dyn Clock>,
    rng: Arc<dyn Rng>,
    counters: Arc<Counters>,
    pace: Pace,
    inbox: Mutex<Inbox>,
    wake: Notify,
    stopping: AtomicBool,
    seen: Mutex<Seen>,
}

/// What the task keeps between rounds.
struct Round {
    /// Chunks with something missing or surplus here.
    todo: BTreeMap<ChunkId, ChunkRef>,
    next_pass: Moment,
    retry: Duration,
    next_try: Moment,
}

impl Upkeep {
    /// A loop that has not begun.
    pub fn new(
        peers: Arc<Peers>,
        local: Option<Arc<LocalShards>>,
        fetcher: Arc<Fetcher>,
        pool: Arc<IoPool>,
        clock: Arc<dyn Clock>,
        rng: Arc<dyn Rng>,
        counters: Arc<Counters>,
        pace: Pace,
    ) -> Self {
        let inbox = Mutex::new(Inbox { full_pass: true, ..Inbox::default() });
        let seen = Mutex::new(Seen { busy: true, ..Seen::default() });
        let (wake, stopping) = (Notify::new(), AtomicBool::new(false));
        Self { peers, local, fetcher, pool, clock, rng, counters, pace, inbox, wake, stopping, seen }
    }

    /// A chunk that was put is garbage.
    pub fn forget(&self, id: ChunkId) {
        let mut inbox = self.inbox.lock();
        if inbox.forgotten.len() < REMEMBER_MAX {
            inbox.forgotten.insert(id);
        }
        drop(inbox);
        self.wake.notify_one();
    }

    /// Does a full pass next.
    pub fn check_now(&self) {
        self.inbox.lock().full_pass = true;
        self.seen.lock().busy = true;
        self.wake.notify_one();
    }

    /// Ends [`Upkeep::run`] at its next step.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.wake.notify_one();
    }

    fn stopped(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// For `status`.
    pub fn redundancy(&self) -> Redundancy {
        let get = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let held = self.local.as_ref().map(|l| l.index.counts()).unwrap_or_default();
        let quiet = {
            let inbox = self.inbox.lock();
            inbox.added.is_empty() && inbox.freed.is_empty() && !inbox.full_pass
        };
        let epoch = self.peers.map().map(|m| m.epoch).ok();
        let seen = self.seen.lock();
        Redundancy {
            missing: seen.missing.max(held.damaged),
            surplus: seen.surplus,
            corrupt_found: get(&self.counters.corrupt),
            rebuilt: get(&self.counters.rebuilt),
            bytes: held.bytes,
            shards: held.shards,
            strangers: get(&self.counters.strangers),
            idle: quiet
                && !seen.busy
                && held.damaged == 0
                && (self.local.is_none() || epoch == Some(seen.epoch)),
            passes: seen.passes,
            epoch: seen.epoch.0,
            last_pass: seen.last_pass,
            reconstructed: get(&self.counters.reconstructed),
            hedged: get(&self.counters.hedged),
        }
    }

    /// Runs until [`Upkeep::stop`].
    pub async fn run(&self) {
        let now = self.clock.now();
        let mut round =
            Round { todo: BTreeMap::new(), next_pass: now, retry: self.pace.retry_min, next_try: now };
        while !self.stopped() {
            self.forgotten().await;
            if let Some(local) = self.local.clone()
                && let Err(e) = self.step(&local, &mut round).await
            {
                // The namespace may be away for a moment; disks that fail were reported where they did.
                tracing::warn!("look after shards: {e}");
                // In place of the usual rest: what was due is still due, and would be tried without end.
                self.clock.sleep(self.pace.retry_min + self.jitter()).await;
                continue;
            }
            self.rest(&round).await;
        }
    }

    /// Up to half of the shortest wait, so that nodes do not march in step.
    fn jitter(&self) -> Duration {
        self.pace.retry_min.mul_f64((self.rng.next_u64() % 1_000) as f64 / 2_000.0)
    }

    async fn rest(&self, round: &Round) {
        let now = self.clock.now();
        let mut until = round.next_pass;
        if !round.todo.is_empty() {
            until = until.min(round.next_try);
        }
        {
            let inbox = self.inbox.lock();
            if inbox.full_pass || !inbox.added.is_empty() {
                until = until.min(round.next_try.max(now));
            }
            if let Some((_, due)) = inbox.freed.front() {
                until = until.min(*due);
            }
        }
        let damage = async {
            match &self.local {
                Some(local) => local.damage.notified().await,
                None => std::future::pending().await,
            }
        };
        let span = if self.local.is_some() { until.since(now) } else { self.pace.full_pass };
        if !span.is_zero() && !self.stopped() {
            tokio::select! {
                () = self.wake.notified() => {}
                () = damage => {}
                () = self.clock.sleep(span) => {}
            }
        }
    }

    async fn forgotten(&self) {
        let chunks: Vec<ChunkId> = std::mem::take(&mut self.inbox.lock().forgotten).into_iter().collect();
        if chunks.is_empty() {
            return;
        }
        let Ok(map) = self.peers.map() else { return };
        let nodes = map.nodes.values().filter(|n| n.storage).map(|n| n.id);
        // A node that is away keeps them until its grace time has passed.
        stream::iter(nodes.filter(|n| self.peers.seen_up(*n)))
            .for_each_concurrent(8, |node| {
                let chunks = &chunks;
                async move {
                    if let Err(e) = self.peers.drop_chunks(node, chunks, CALL_DEADLINE).await {
                        tracing::debug!(%node, "drop forgotten chunks: {e}");
                    }
                }
            })
            .await;
    }

    async fn step(&self, local: &Arc<LocalShards>, round: &mut Round) -> Result<()> {
        let meta = self.peers.meta()?;
        self.news(local, &*meta, round)?;
        self.free(local, &*meta).await?;
        let now = self.clock.now();
        let asked = std::mem::take(&mut self.inbox.lock().full_pass);
        if asked || now >= round.next_pass {
            self.seen.lock().busy = true;
            if let Err(e) = self.full_pass(local, &*meta, round).await {
                self.inbox.lock().full_pass |= asked;
                return Err(e);
            }
            round.next_pass = self.clock.now().after(self.pace.full_pass);
            round.next_try = self.clock.now();
        }
        if !round.todo.is_empty() && self.clock.now() >= round.next_try {
            let progress = self.work(local, &*meta, round).await?;
            round.retry =
                if progress { self.pace.retry_min } else { (round.retry * 2).min(self.pace.retry_max) };
            round.next_try = self.clock.now().after(round.retry + self.jitter());
        }
        if round.todo.is_empty() {
            let mut seen = self.seen.lock();
            (seen.missing, seen.surplus, seen.busy) = (0, 0, false);
        }
        Ok(())
    }

    fn remember(&self, round: &mut Round, chunk: ChunkRef) {
        if round.todo.len() < REMEMBER_MAX {
            round.todo.insert(chunk.id, chunk);
        } else {
            self.inbox.lock().full_pass = true;
        }
    }

    /// Chunks that were added or damaged since the last round.
    fn news(&self, local: &LocalShards, meta: &dyn Meta, round: &mut Round) -> Result<()> {
        let map = meta.map();
        let (before, now) = (round.todo.len(), self.clock.now());
        let added = std::mem::take(&mut self.inbox.lock().added);
        for chunk in added {
            if !judge(&map, self.peers.me(), chunk, &have(local, chunk)).is_fine() {
                self.remember(round, chunk);
            }
        }
        for key in local.take_damaged() {
            if let Some(chunk) = meta.read_stale().chunk(key.chunk)? {
                self.remember(round, chunk);
            }
        }
        if round.todo.len() > before {
            self.seen.lock().busy = true;
            (round.retry, round.next_try) = (self.pace.retry_min, now);
        }
        Ok(())
    }

    /// Deletes freed chunks whose time has come.
    async fn free(&self, local: &LocalShards, meta: &dyn Meta) -> Result<()> {
        loop {
            let now = self.clock.now();
            let due = {
                let mut inbox = self.inbox.lock();
                match inbox.freed.front() {
                    Some((_, due)) if *due <= now => inbox.freed.pop_front(),
                    _ => None,
                }
            };
            let Some((id, _)) = due else { return Ok(()) };
            let known = meta.read_stale().chunk(id)?.is_some();
            if !known && let Err(e) = local.remove_chunk(id).await {
                // The next full pass tries again.
                tracing::warn!(chunk = %id, "delete freed chunk: {e}");
            }
        }
    }

    async fn full_pass(&self, local: &Arc<LocalShards>, meta: &dyn Meta, round: &mut Round) -> Result<()> {
        // Only on a state that is no older than this moment may "unknown" mean garbage.
        let current = meta.read_point(CALL_DEADLINE).await.is_ok();
        let map = meta.map();
        let mut after = ChunkId(0);
        loop {
            if self.stopped() {
                return Ok(());
            }
            let (chunks, garbage, upto) = {
                let view = meta.read_stale();
                let chunks = view.chunks(after, PAGE)?;
                let upto = match chunks.last() {
                    Some(last) if chunks.len() == PAGE => last.id,
                    _ => ChunkId(u64::MAX),
                };
                let known: HashSet<ChunkId> = chunks.iter().map(|c| c.id).collect();
                let now = self.clock.now();
                let mut garbage = Vec::new();
                for (key, held) in local.index.between(after, upto) {
                    if !known.contains(&key.chunk)
                        && current
                        && now.since(held.since) >= self.pace.grace
                        && view.chunk_session(key.chunk)?.is_none()
                    {
                        garbage.push(key);
                    }
                }
                (chunks, garbage, upto)
            };
            for chunk in chunks {
                let have = have(local, chunk);
                for (key, _) in have.iter().filter(|(key, _)| key.data == chunk.scheme.data) {
                    let len = chunk.scheme.shard_len(chunk.len, key.index.0);
                    if local.index.get(*key).is_some_and(|held| held.len != len) {
                        local.index.update(*key, |held| held.len = len);
                    }
                }
                if judge(&map, self.peers.me(), chunk, &have).is_fine() {
                    round.todo.remove(&chunk.id);
                } else {
                    self.remember(round, chunk);
                }
            }
            for key in garbage {
                tracing::info!(shard = %key, "delete shard of a chunk that no file has");
                local.remove(key).await?;
            }
            after = upto;
            if upto.0 == u64::MAX {
                break;
            }
            tokio::task::yield_now().await;
        }
        let mut seen = self.seen.lock();
        seen.passes += 1;
        seen.epoch = map.epoch;
        seen.last_pass = self.clock.wall().0;
        Ok(())
    }

    /// Works through what is to do, most endangered first; says whether anything got better.
    async fn work(&self, local: &Arc<LocalShards>, meta: &dyn Meta, round: &mut Round) -> Result<bool> {
        let map = meta.map();
        let mut order: Vec<ChunkRef> = round.todo.values().copied().collect();
        order.sort_by_cached_key(|c| (margin(&map, *c, |n| self.peers.alive(n)), c.id));
        let mut progress = false;
        let (mut missing, mut surplus) = (0, 0);
        for batch in order.chunks(BATCH) {
            if self.stopped() {
                return Ok(progress);
            }
            let began = self.clock.now();
            // Freed meanwhile, or given more copies.
            let mut chunks = Vec::with_capacity(batch.len());
            {
                let view = meta.read_stale();
                for chunk in batch {
                    match view.chunk(chunk.id)? {
                        Some(now) => chunks.push(now),
                        None => {
                            round.todo.remove(&chunk.id);
                        }
                    }
                }
            }
            self.repair(local, meta, &chunks).await;
            self.prune(local, meta, &chunks).await;
            let map = meta.map();
            for chunk in chunks {
                let verdict = judge(&map, self.peers.me(), chunk, &have(local, chunk));
                if verdict.is_fine() {
                    round.todo.remove(&chunk.id);
                    progress = true;
                }
                missing += u64::from(verdict.missing.is_some());
                surplus += verdict.surplus.len() as u64;
            }
            let took = self.clock.now().since(began);
            if self.pace.tranquility > 0 && batch.len() == BATCH {
                self.clock.sleep(took * self.pace.tranquility / 100).await;
            }
        }
        let mut seen = self.seen.lock();
        (seen.missing, seen.surplus) = (missing, surplus);
        Ok(progress)
    }

    /// Which nodes have which of these shards, among those that answer.
    async fn locate(
        &self,
        ask: HashMap<NodeId, Vec<ShardKey>>,
        by: Option<Epoch>,
    ) -> HashMap<ShardKey, Vec<NodeId>> {
        let answers: Vec<(Vec<ShardKey>, NodeId, Result<Vec<bool>>)> = stream::iter(ask)
            .map(|(node, keys)| async move {
                let has = self.peers.has(node, &keys, by, CALL_DEADLINE).await;
                (keys, node, has)
            })
            .buffer_unordered(8)
            .collect()
            .await;
        let mut found: HashMap<ShardKey, Vec<NodeId>> = HashMap::new();
        for (keys, node, has) in answers {
            for (key, has) in keys.into_iter().zip(has.unwrap_or_default()) {
                if has {
                    found.entry(key).or_default().push(node);
                }
            }
        }
        found
    }

    async fn repair(&self, local: &Arc<LocalShards>, meta: &dyn Meta, chunks: &[ChunkRef]) {
        let (map, me) = (meta.map(), self.peers.me());
        let missing: Vec<(ChunkRef, ShardKey)> = chunks
            .iter()
            .filter_map(|c| Some((*c, judge(&map, me, *c, &have(local, *c)).missing?)))
            .collect();
        if missing.is_empty() {
            return;
        }
        let keys: Vec<ShardKey> = missing.iter().map(|(_, key)| *key).collect();
        let others = map.nodes.values().filter(|n| n.storage && n.id != me && self.peers.alive(n.id));
        let found = self.locate(others.map(|n| (n.id, keys.clone())).collect(), None).await;
        stream::iter(missing)
            .for_each_concurrent(self.pace.concurrency.max(1), |(chunk, key)| {
                let holders = found.get(&key).cloned().unwrap_or_default();
                async move {
                    if self.stopped() {
                        return;
                    }
                    match self.rebuild(local, chunk, key, holders).await {
                        Ok(()) => {
                            Counters::count(&self.counters.rebuilt);
                            tracing::info!(shard = %key, "shard is back");
                        }
                        Err(e) => tracing::warn!(shard = %key, "rebuild shard: {e}"),
                    }
                }
            })
            .await;
    }

    /// Gets a shard from one that has it, or makes it from the rest of the chunk.
    async fn rebuild(
        &self,
        local: &Arc<LocalShards>,
        chunk: ChunkRef,
        key: ShardKey,
        holders: Vec<NodeId>,
    ) -> Result<()> {
        let cells = chunk.scheme.shard_len(chunk.len, key.index.0).div_ceil(hfcache_base::limits::CELL);
        for node in holders {
            match self.peers.get(node, chunk, key, 0, cells, CALL_DEADLINE).await {
                Ok((crcs, body)) => return local.put(Header::new(key, chunk, crcs)?, vec![body]).await,
                Err(e) => tracing::debug!(shard = %key, %node, "fetch shard: {e}"),
            }
        }
        let data: Bytes = self.fetcher.get(chunk, 0..chunk.len).await?;
        let made = self.pool.run(move || codec::encode(chunk.scheme, &[data])).await?;
        let shard = made
            .into_iter()
            .nth(usize::from(key.index.0))
            .ok_or_else(|| Error::new(Kind::Internal, format!("no shard {key}")))?;
        local.put(Header::new(key, chunk, shard.crcs())?, shard.parts()).await
    }

    /// Deletes what need not be here any more.
    async fn prune(&self, local: &Arc<LocalShards>, meta: &dyn Meta, chunks: &[ChunkRef]) {
        let (map, me) = (meta.map(), self.peers.me());
        let mut ask: HashMap<NodeId, Vec<ShardKey>> = HashMap::new();
        let mut surplus = Vec::new();
        for chunk in chunks {
            let verdict = judge(&map, me, *chunk, &have(local, *chunk));
            for key in verdict.useless {
                report(key, local.remove(key).await);
            }
            let holders = holders(&map, *chunk);
            // While one of them is away it is no use asking the others.
            let askable = holders.iter().all(|(node, _)| self.peers.alive(*node));
            if verdict.surplus.is_empty() || verdict.missing.is_some() || !askable {
                continue;
            }
            for (node, key) in holders.iter().filter(|(node, _)| *node != me) {
                ask.entry(*node).or_default().push(*key);
            }
            surplus.push((holders, verdict.surplus));
        }
        let found = self.locate(ask, Some(map.epoch)).await;
        for (holders, keys) in surplus {
            let confirmed = |(node, key): &(NodeId, ShardKey)| {
                *node == me || found.get(key).is_some_and(|nodes| nodes.contains(node))
            };
            if holders.iter().all(confirmed) {
                for key in keys {
                    report(key, local.give_up(&[key], || meta.map().epoch == map.epoch).await);
                }
            }
        }
    }
}

fn report(key: ShardKey, gone: Result<()>) {
    match gone {
        Ok(()) => tracing::debug!(shard = %key, "surplus shard is gone"),
        Err(e) => tracing::warn!(shard = %key, "delete surplus shard: {e}"),
    }
}

fn have(local: &LocalShards, chunk: ChunkRef) -> Vec<(ShardKey, bool)> {
    local.index.of_chunk(chunk.id).into_iter().map(|(key, held)| (key, !held.damaged)).collect()
}

impl ChangeSink for Upkeep {
    fn applied(&self, batch: &[Applied]) {
        if self.local.is_none() {
            return;
        }
        let mut inbox = self.inbox.lock();
        let mut news = false;
        for change in batch.iter().flat_map(|a| &a.changes) {
            match change {
                Change::ChunkAdded(chunk) if inbox.added.len() < REMEMBER_MAX => {
                    inbox.added.push_back(*chunk)
                }
                Change::ChunkFreed(id) if inbox.freed.len() < REMEMBER_MAX => {
                    let due = self.clock.now().after(self.pace.freed_delay);
                    inbox.freed.push_back((*id, due));
                }
                Change::ChunkAdded(_) | Change::ChunkFreed(_) | Change::Map => inbox.full_pass = true,
                _ => continue,
            }
            news = true;
        }
        drop(inbox);
        if news {
            self.wake.notify_one();
        }
    }

    fn replaced(&self) {
        self.check_now();
    }
}
