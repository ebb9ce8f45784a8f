//! Reading bytes of a chunk: the needed cells from their holders in parallel, and from the other shards where
//! a holder is dead, slow, wrong or without the shard.
//!
//! There is one *lane* per shard. The lanes of needed data cells start at once; a lane in trouble opens
//! others, so that each needed row ends up with `k` cells of whatever shards come first. Within a lane, nodes
//! are asked one after the other: this one, the shard's home, then all others, likely dead ones last.

use crate::codec::{self, Maker};
use crate::local::LocalShards;
use crate::peers::{Peers, cells_len};
use crate::pool::IoPool;
use crate::shard::ShardKey;
use crate::status::Counters;
use bytes::{Bytes, BytesMut};
use futures::stream::{FuturesUnordered, StreamExt};
use hfcache_base::limits::{CALL_DEADLINE, CELL, CHUNK_MAX, FETCHES_IN_FLIGHT_MAX, HEDGE_AFTER};
use hfcache_base::meta::ChunkRef;
use hfcache_base::seam::{Clock, Moment};
use hfcache_base::{ClusterMap, Error, Kind, NodeId, Result, Scheme};
use parking_lot::Mutex;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;

/// How often slow holders are looked for.
const TICK: Duration = Duration::from_millis(40);
/// On a busy network the wait before hedging grows with the usual answer time, up to this.
const HEDGE_MAX: Duration = Duration::from_millis(1_200);

/// See the module.
pub struct Fetcher {
    peers: Arc<Peers>,
    local: Option<Arc<LocalShards>>,
    pool: Arc<IoPool>,
    clock: Arc<dyn Clock>,
    counters: Arc<Counters>,
    permits: Semaphore,
    usual: Mutex<Duration>,
    turn: AtomicUsize,
}

/// One shard of the chunk being read.
struct Lane {
    key: ShardKey,
    /// Rows whose cells the caller wants.
    need: Range<u32>,
    /// Rows to get: the needed ones, and those that help other lanes.
    target: Range<u32>,
    /// Nodes not asked yet.
    nodes: VecDeque<NodeId>,
    /// Where it was found.
    good: Option<NodeId>,
    flying: Vec<(NodeId, Moment)>,
    got: BTreeMap<u32, Bytes>,
    /// The newest answer in one piece, with its first row.
    body: Option<(u32, Bytes)>,
    /// Failed or slow: do not count on it.
    troubled: bool,
    hedges: u32,
}

impl Lane {
    fn lacks(&self) -> Option<Range<u32>> {
        let first = self.target.clone().find(|row| !self.got.contains_key(row))?;
        let last = self.target.clone().rev().find(|row| !self.got.contains_key(row))?;
        Some(first..last + 1)
    }

    fn whole(&self) -> bool {
        self.need.clone().all(|row| self.got.contains_key(&row))
    }
}

/// The bytes of a read, before they are put together.
struct Plan {
    chunk: ChunkRef,
    lanes: Vec<Lane>,
    /// Kinds of failures seen.
    corrupt: bool,
    unreachable: bool,
    last: Option<Error>,
}

impl Plan {
    fn k(&self) -> usize {
        usize::from(self.chunk.scheme.data)
    }

    /// Whether lane `at` has a cell in `row`, or is known to have zeros only.
    fn has(&self, at: usize, row: u32) -> bool {
        let lane = &self.lanes[at];
        lane.got.contains_key(&row)
            || codec::cell_len(self.chunk.scheme, self.chunk.len, lane.key.index.0, row) == 0
    }

    fn solvable(&self, row: u32) -> bool {
        (0..self.lanes.len()).filter(|at| self.has(*at, row)).count() >= self.k()
    }

    fn done(&self) -> bool {
        self.lanes.iter().all(|lane| {
            lane.need.clone().all(|row| lane.got.contains_key(&row) || (self.k() > 1 && self.solvable(row)))
        })
    }

    /// Opens lanes until every row of a troubled lane can be made without it.
    fn open_others(&mut self, peers: &Peers) {
        let missing: Vec<Range<u32>> =
            self.lanes.iter().filter(|l| l.troubled && !l.whole()).map(|l| l.need.clone()).collect();
        for rows in missing {
            loop {
                let counts = |at: usize, plan: &Self| {
                    let lane = &plan.lanes[at];
                    rows.clone()
                        .all(|row| plan.has(at, row) || (!lane.troubled && lane.target.contains(&row)))
                };
                let sure = (0..self.lanes.len()).filter(|at| counts(*at, self)).count();
                if sure >= self.k() {
                    break;
                }
                let next = (0..self.lanes.len())
                    .filter(|at| !self.lanes[*at].troubled && !counts(*at, self))
                    .min_by_key(|at| (self.lanes[*at].nodes.front().is_none_or(|n| !peers.alive(*n)), *at));
                let Some(at) = next else { break };
                let cells =
                    self.chunk.scheme.shard_len(self.chunk.len, self.lanes[at].key.index.0).div_ceil(CELL);
                let lane = &mut self.lanes[at];
                let (from, to) = (rows.start, rows.end.min(cells));
                lane.target = if lane.target.is_empty() {
                    from..to
                } else {
                    lane.target.start.min(from)..lane.target.end.max(to)
                };
            }
        }
    }
}

impl Fetcher {
    /// Reads through these.
    pub fn new(
        peers: Arc<Peers>,
        local: Option<Arc<LocalShards>>,
        pool: Arc<IoPool>,
        clock: Arc<dyn Clock>,
        counters: Arc<Counters>,
    ) -> Self {
        let permits = Semaphore::new(FETCHES_IN_FLIGHT_MAX);
        let usual = Mutex::new(Duration::ZERO);
        Self { peers, local, pool, clock, counters, permits, usual, turn: AtomicUsize::new(0) }
    }

    /// Bytes of a chunk, verified.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] if all nodes were asked and too few good shards exist; [`Kind::Unavailable`] if
    /// too few answer; both name the chunk. [`Kind::Invalid`] for a range outside of it.
    pub async fn get(&self, chunk: ChunkRef, range: Range<u32>) -> Result<Bytes> {
        let scheme = chunk.scheme;
        let possible = scheme.data > 0 && scheme.data.checked_add(scheme.parity).is_some();
        if range.start > range.end || range.end > chunk.len || chunk.len > CHUNK_MAX || !possible {
            return Err(Error::new(Kind::Invalid, format!("bytes {range:?} of {chunk:?}")));
        }
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let cells = range.start / CELL..range.end.div_ceil(CELL);
        let permits = cells.len().min(FETCHES_IN_FLIGHT_MAX / 2) as u32;
        let _permit = self.permits.acquire_many(permits).await.map_err(|_| Error::from(Kind::Canceled))?;
        let map = self.peers.map()?;
        let mut plan = self.plan(&map, chunk, cells.clone());
        self.run(&mut plan).await?;
        let k = u32::from(chunk.scheme.data);
        if k == 1
            && let Some((row, body)) = plan.lanes[0].body.take()
        {
            let (from, to) =
                (range.start - row.min(cells.start) * CELL, range.end - row.min(cells.start) * CELL);
            if row <= cells.start && to as usize <= body.len() {
                return Ok(body.slice(from as usize..to as usize));
            }
        }
        if plan.lanes.iter().any(|lane| !lane.whole()) {
            plan = self.pool.run(move || reconstruct(plan)).await?;
            Counters::count(&self.counters.reconstructed);
        }
        let mut pieces = Vec::with_capacity(cells.len());
        for cell in cells {
            let piece = plan.lanes[(cell % k) as usize].got.remove(&(cell / k));
            let mut piece = piece.ok_or_else(|| Error::new(Kind::Internal, "a cell got lost"))?;
            let start = cell * CELL;
            piece.truncate((range.end - start).min(CELL) as usize);
            pieces.push(piece.split_off((range.start.max(start) - start) as usize));
        }
        Ok(join(pieces, range.len()))
    }

    /// Everything that is still to do.
    fn plan(&self, map: &ClusterMap, chunk: ChunkRef, cells: Range<u32>) -> Plan {
        let k = u32::from(chunk.scheme.data);
        let copies = k == 1;
        let lanes = if copies { 1 } else { chunk.scheme.total() };
        let lanes = (0..lanes)
            .map(|place| {
                let key = ShardKey::at(chunk.id, chunk.scheme, place);
                // Cells c with c % k == place in the range.
                let at = u32::from(place);
                let row = |cell: u32| (cell + k - 1).saturating_sub(at) / k;
                let need = if at < k { row(cells.start)..row(cells.end) } else { 0..0 };
                Lane {
                    key,
                    target: need.clone(),
                    need,
                    nodes: self.candidates(map, chunk, key),
                    good: None,
                    flying: Vec::new(),
                    got: BTreeMap::new(),
                    body: None,
                    troubled: false,
                    hedges: 0,
                }
            })
            .collect();
        Plan { chunk, lanes, corrupt: false, unreachable: false, last: None }
    }

    /// Who may have a shard, best first.
    fn candidates(&self, map: &ClusterMap, chunk: ChunkRef, key: ShardKey) -> VecDeque<NodeId> {
        let me = self.peers.me();
        let mut order: Vec<NodeId> = Vec::new();
        if chunk.scheme.data == 1 {
            let mut homes: Vec<NodeId> =
                map.homes(chunk.id).iter().take(usize::from(chunk.scheme.total())).copied().collect();
            if !homes.is_empty() {
                let turn = self.turn.fetch_add(1, Ordering::Relaxed) % homes.len();
                homes.rotate_left(turn);
            }
            order.extend(homes);
        } else {
            order.extend(map.holder(chunk.id, key.index));
        }
        order.extend(map.homes(chunk.id));
        order.extend(map.nodes.values().filter(|n| n.storage).map(|n| n.id));
        let held = self.local.as_ref().and_then(|l| l.index.get(key));
        let mut seen = std::collections::BTreeSet::from([me]);
        order.retain(|n| seen.insert(*n));
        order.sort_by_key(|n| !self.peers.alive(*n));
        match held {
            // A damaged copy may still have the right cells.
            Some(held) if held.damaged => order.push(me),
            Some(_) => order.insert(0, me),
            None => {}
        }
        order.into()
    }

    async fn run(&self, plan: &mut Plan) -> Result<()> {
        let chunk = plan.chunk;
        let mut flying = FuturesUnordered::new();
        loop {
            if plan.done() {
                return Ok(());
            }
            let now = self.clock.now();
            let mut start = Vec::new();
            let mut exhausted = false;
            for (at, lane) in plan.lanes.iter_mut().enumerate() {
                if lane.flying.is_empty() && lane.lacks().is_some() {
                    match lane.good.take().or_else(|| lane.nodes.pop_front()) {
                        Some(node) => start.push((at, node)),
                        None => exhausted |= !std::mem::replace(&mut lane.troubled, true),
                    }
                }
            }
            for (at, node) in start {
                self.launch(&mut plan.lanes[at], at, node, now, &mut flying, chunk);
            }
            if exhausted {
                plan.open_others(&self.peers);
                continue;
            }
            if flying.is_empty() {
                return Err(give_up(plan));
            }
            tokio::select! {
                Some((at, node, rows, took, result)) = flying.next() => {
                    self.landed(plan, at, node, rows, took, result);
                }
                () = self.clock.sleep(TICK) => {
                    for (at, node) in self.hedge(plan) {
                        let now = self.clock.now();
                        self.launch(&mut plan.lanes[at], at, node, now, &mut flying, chunk);
                    }
                }
            }
        }
    }

    fn launch<'a>(
        &'a self,
        lane: &mut Lane,
        at: usize,
        node: NodeId,
        now: Moment,
        flying: &mut FuturesUnordered<futures::future::BoxFuture<'a, Landed>>,
        chunk: ChunkRef,
    ) {
        let Some(rows) = lane.lacks() else { return };
        lane.flying.push((node, now));
        let key = lane.key;
        flying.push(Box::pin(async move {
            let result = self.cells(node, chunk, key, rows.clone()).await;
            (at, node, rows, self.clock.now().since(now), result)
        }));
    }

    async fn cells(&self, node: NodeId, chunk: ChunkRef, key: ShardKey, rows: Range<u32>) -> Result<Bytes> {
        let count = rows.end - rows.start;
        match &self.local {
            Some(local) if node == self.peers.me() => {
                let (header, cells) = local.get(key, rows.start, count).await?;
                if header.chunk_len != chunk.len || cells.len() != cells_len(chunk, key, rows.start, count) {
                    return Err(Error::new(Kind::Corrupt, format!("shard {key} is of another chunk")));
                }
                Ok(cells)
            }
            _ => Ok(self.peers.get(node, chunk, key, rows.start, count, CALL_DEADLINE).await?.1),
        }
    }

    fn landed(
        &self,
        plan: &mut Plan,
        at: usize,
        node: NodeId,
        rows: Range<u32>,
        took: Duration,
        result: Result<Bytes>,
    ) {
        let lane = &mut plan.lanes[at];
        if let Some(flight) = lane.flying.iter().position(|(n, _)| *n == node) {
            lane.flying.swap_remove(flight);
        }
        match result {
            Ok(mut body) => {
                lane.body = Some((rows.start, body.clone()));
                for row in rows {
                    let len = body.len().min(CELL as usize);
                    lane.got.entry(row).or_insert(body.split_to(len));
                }
                lane.good = Some(node);
                let mut usual = self.usual.lock();
                *usual = (*usual * 7 + took) / 8;
            }
            Err(e) => {
                match e.kind() {
                    Kind::NotFound => {}
                    Kind::Corrupt | Kind::Io => {
                        plan.corrupt = true;
                        tracing::warn!(shard = %lane.key, %node, "read cells: {e}");
                    }
                    _ => {
                        plan.unreachable = true;
                        tracing::debug!(shard = %lane.key, %node, "read cells: {e}");
                    }
                }
                plan.last = Some(e);
                lane.troubled = true;
                plan.open_others(&self.peers);
            }
        }
    }

    /// Looks for slow holders; says what to ask in addition.
    fn hedge(&self, plan: &mut Plan) -> Vec<(usize, NodeId)> {
        let now = self.clock.now();
        let patience = (*self.usual.lock() * 4).clamp(HEDGE_AFTER, HEDGE_MAX);
        let copies = plan.k() == 1;
        let mut more = Vec::new();
        let mut trouble = false;
        for (at, lane) in plan.lanes.iter_mut().enumerate() {
            let Some(newest) = lane.flying.iter().map(|(_, since)| *since).max() else { continue };
            let waited = now.since(newest);
            let dead = lane.flying.iter().all(|(node, _)| !self.peers.alive(*node));
            // Each further hedge waits once more, so that a slow network is not flooded.
            let due = if copies { patience } else { patience * (lane.hedges + 1) };
            if lane.lacks().is_none() || (waited < due && !(dead && waited >= TICK)) {
                continue;
            }
            lane.hedges += 1;
            if lane.hedges == 1 {
                Counters::count(&self.counters.hedged);
            }
            trouble |= !std::mem::replace(&mut lane.troubled, true);
            if (copies || lane.hedges > 1)
                && let Some(node) = lane.nodes.pop_front()
            {
                more.push((at, node));
            }
        }
        if trouble {
            plan.open_others(&self.peers);
        }
        more
    }
}

type Landed = (usize, NodeId, Range<u32>, Duration, Result<Bytes>);

fn give_up(plan: &mut Plan) -> Error {
    let chunk = plan.chunk.id;
    // A node that does not answer may have what is missing; if all did, the bytes are gone.
    let (kind, what) = if plan.unreachable {
        (Kind::Unavailable, "too few holders answer")
    } else if plan.corrupt {
        (Kind::Corrupt, "too few good shards are left")
    } else {
        (Kind::Corrupt, "too few shards are left")
    };
    let error = Error::new(kind, format!("read chunk {chunk} ({}): {what}", plan.chunk.scheme));
    tracing::error!(%chunk, scheme = %plan.chunk.scheme, "{what}");
    match plan.last.take() {
        Some(last) => error.with_source(last),
        None => error,
    }
}

/// Makes the needed cells that did not come.
fn reconstruct(mut plan: Plan) -> Result<Plan> {
    let scheme: Scheme = plan.chunk.scheme;
    let mut makers: BTreeMap<(u8, Vec<u8>), Maker> = BTreeMap::new();
    for at in 0..plan.lanes.len() {
        for row in plan.lanes[at].need.clone() {
            if plan.lanes[at].got.contains_key(&row) {
                continue;
            }
            let given: Vec<u8> =
                (0..plan.lanes.len()).filter(|g| plan.has(*g, row)).take(plan.k()).map(|g| g as u8).collect();
            let wanted = at as u8;
            let maker = match makers.entry((wanted, given.clone())) {
                std::collections::btree_map::Entry::Occupied(e) => e.into_mut(),
                std::collections::btree_map::Entry::Vacant(e) => {
                    e.insert(Maker::new(scheme, wanted, &given)?)
                }
            };
            let from: Vec<&[u8]> = given
                .iter()
                .map(|g| plan.lanes[usize::from(*g)].got.get(&row).map_or(&[][..], |cell| &cell[..]))
                .collect();
            let cell = maker.cell(&from, codec::cell_len(scheme, plan.chunk.len, wanted, row) as usize);
            plan.lanes[at].got.insert(row, cell.into());
        }
    }
    Ok(plan)
}

/// One buffer of all pieces.
fn join(mut pieces: Vec<Bytes>, len: usize) -> Bytes {
    if pieces.len() == 1 {
        return pieces.pop().unwrap_or_default();
    }
    let mut all = BytesMut::with_capacity(len);
    for piece in pieces {
        all.extend_from_slice(&piece);
    }
    all.freeze()
}
