//! The leader's side: it answers proposals, read-index questions and lease renewals.

use crate::consensus::calls::{MetaCall, Proposed, Renewed};
use crate::consensus::lease::{CONFIRMED_WITHIN, Grants, Sessions, lengthened, quarantine, shortened};
use crate::consensus::network::Node;
use crate::consensus::store::Store;
use crate::consensus::types::Batch;
use crate::state::StateView;
use async_trait::async_trait;
use bytes::Bytes;
use hfcache_base::limits::{PROPOSAL_BATCH_MAX, READ_LEASE, SUSPECT_AFTER};
use hfcache_base::seam::{Answer, Clock, Moment, Service, View};
use hfcache_base::{Error, Kind, NodeId, Result, SessionId, wire};
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use openraft::error::{ClientWriteError, LinearizableReadError, RaftError};
use openraft::raft::linearizable_read::LinearizerOption;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::watch;

/// How long a question may wait for a quorum to confirm the leader.
const CONFIRM: Duration = Duration::from_millis(400);

/// How long an answer waits for something to be settled; the question is asked again then.
const SETTLE_PATIENCE: Duration = Duration::from_millis(300);

/// One term of this node as leader.
struct Term {
    term: u64,
    grants: Grants,
    sessions: Sessions,
    /// When each node last renewed.
    seen: BTreeMap<NodeId, Moment>,
}

/// See the module.
pub struct Leader {
    raft: Node,
    store: Arc<Store>,
    clock: Arc<dyn Clock>,
    /// How long followers keep a promise not to elect another leader.
    vote_lease: Duration,
    term: Mutex<Option<Term>>,
    /// Moves whenever an answer that waits may be possible.
    moved: watch::Sender<()>,
    /// This node founded the cluster in this run: nobody led before.
    founder: AtomicBool,
}

impl Leader {
    /// The leader's side of a node, idle until the node leads.
    pub fn new(raft: Node, store: Arc<Store>, clock: Arc<dyn Clock>, vote_lease: Duration) -> Self {
        let (moved, _) = watch::channel(());
        Self {
            raft,
            store,
            clock,
            vote_lease,
            term: Mutex::new(None),
            moved,
            founder: AtomicBool::new(false),
        }
    }

    /// This node is about to found a cluster.
    pub fn found(&self) {
        self.founder.store(true, Ordering::Release);
    }

    /// Follows this node's way in and out of leadership until Raft ends.
    pub async fn follow(self: Arc<Self>) {
        let mut metrics = self.raft.server_metrics();
        loop {
            let term = {
                let now = metrics.borrow_and_update();
                (now.state == ServerState::Leader).then(|| now.vote.leader_id.term)
            };
            self.enter(term);
            if metrics.changed().await.is_err() {
                return;
            }
        }
    }

    fn enter(&self, term: Option<u64>) {
        let mut slot = self.term.lock();
        if slot.as_ref().map(|t| t.term) == term {
            return;
        }
        *slot = term.map(|term| {
            let now = self.clock.now();
            let first = self.founder.swap(false, Ordering::AcqRel);
            tracing::info!(term, first, "this node leads");
            let fear = if first { Duration::ZERO } else { quarantine(self.vote_lease) };
            let grants = Grants::new(now.after(fear));
            Term { term, grants, sessions: Sessions::default(), seen: BTreeMap::new() }
        });
        drop(slot);
        self.moved.send_replace(());
    }

    /// Appends commands as one entry and answers when all who may read alone have applied it.
    ///
    /// # Errors
    /// [`Kind::NotLeader`]; [`Kind::Unavailable`] when it is not known whether the entry will be committed.
    pub async fn propose(&self, batch: Batch) -> Result<Proposed> {
        let written = self.raft.client_write(batch).await.map_err(|e| match e {
            RaftError::APIError(ClientWriteError::ForwardToLeader(_)) => Error::from(Kind::NotLeader),
            other => Error::new(Kind::Unavailable, format!("append to Raft log: {other}")),
        })?;
        let index = written.log_id.index;
        self.wait_holders(written.log_id.leader_id.term, index).await?;
        Ok(Proposed { index, replies: written.data })
    }

    async fn wait_holders(&self, term: u64, index: u64) -> Result<()> {
        let mut moved = self.moved.subscribe();
        loop {
            moved.mark_unchanged();
            let now = self.clock.now();
            let until = match self.term.lock().as_mut() {
                Some(t) if t.term == term => match t.grants.blocked_until(index, now) {
                    None => return Ok(()),
                    Some(until) => until,
                },
                Some(t) if t.term > term => return Err(Kind::NotLeader.into()),
                // The new term is not noticed here yet.
                _ if self.raft.is_leader() => now.after(READ_LEASE),
                _ => return Err(Kind::NotLeader.into()),
            };
            tokio::select! {
                _ = moved.changed() => {}
                () = self.clock.sleep(until.since(now) + Duration::from_micros(100)) => {}
            }
        }
    }

    /// The greatest index that everyone who may read alone has applied. Waits until that is at least `index`, or
    /// a moment.
    ///
    /// # Errors
    /// [`Kind::NotLeader`].
    pub async fn settled(&self, index: u64) -> Result<u64> {
        let mut moved = self.moved.subscribe();
        let end = self.clock.now().after(SETTLE_PATIENCE);
        loop {
            moved.mark_unchanged();
            let now = self.clock.now();
            let (settled, until) = match self.term.lock().as_mut() {
                // Leases of a later leader are used only by who has applied all that this one has.
                Some(t) => {
                    let settled = t.grants.settled(self.store.applied_index(), now);
                    (settled, t.grants.blocked_until(index, now).unwrap_or(end).min(end))
                }
                None => return Err(Kind::NotLeader.into()),
            };
            if settled >= index || now >= end {
                return Ok(settled);
            }
            tokio::select! {
                _ = moved.changed() => {}
                () = self.clock.sleep(until.since(now) + Duration::from_micros(100)) => {}
            }
        }
    }

    /// The index a linearizable read must wait for, and the term in which that was found out.
    async fn confirm(&self, within: Duration) -> Result<(u64, u64)> {
        let option = LinearizerOption::new(Some(within), true).with_wait_timeout(CONFIRM);
        let linearizer = self.raft.get_read_linearizer(option).await.map_err(|e| match e {
            RaftError::APIError(LinearizableReadError::ForwardToLeader(_)) => Error::from(Kind::NotLeader),
            other => Error::new(Kind::Unavailable, format!("confirm leader: {other}")),
        })?;
        let read = linearizer.read_log_id();
        Ok((read.index(), read.committed_leader_id().term))
    }

    /// The index a linearizable read must wait for.
    ///
    /// # Errors
    /// [`Kind::NotLeader`]; [`Kind::Unavailable`] without a quorum.
    pub async fn read_index(&self) -> Result<u64> {
        Ok(self.confirm(shortened(self.vote_lease)).await?.0)
    }

    /// Keeps a session alive and grants a read lease if that is possible.
    ///
    /// # Errors
    /// [`Kind::NotLeader`]; [`Kind::Unavailable`] without a quorum.
    pub async fn renew(&self, node: NodeId, session: Option<SessionId>, applied: u64) -> Result<Renewed> {
        let (index, term) = self.confirm(CONFIRMED_WITHIN).await?;
        let known = |t: &mut Term, now| session.map(|s| t.sessions.renew(s, now));
        let alive = match self.in_term(term, known)? {
            None => true,
            Some(Some(alive)) => alive,
            // A session that was opened a moment ago, or one that has ended: the state knows.
            Some(None) => {
                self.store.wait_applied(index).await;
                let live = self.live_sessions()?;
                self.in_term(term, |t, now| {
                    t.sessions.reconcile(&live, now);
                    session.and_then(|s| t.sessions.renew(s, now)).unwrap_or(false)
                })?
            }
        };
        self.in_term(term, |t, now| {
            t.seen.insert(node, now);
            // Everything that was answered is applied here, and answers are decided under this same lock.
            let index = index.max(self.store.applied_index());
            let granted = t.grants.renew(node, applied, index, now);
            Renewed { lease: granted.then_some(index), session: alive }
        })
    }

    /// Refuses those who are no members, if this node leads and so must know.
    async fn check_member(&self, node: NodeId) -> Result<()> {
        let member = || self.store.map().nodes.contains_key(&node);
        if !member() {
            let index = self.read_index().await?;
            self.store.wait_applied(index).await;
            if !member() {
                return Err(Error::new(Kind::Unauthorized, format!("{node} is no member")));
            }
        }
        Ok(())
    }

    fn in_term<T>(&self, term: u64, act: impl FnOnce(&mut Term, Moment) -> T) -> Result<T> {
        match self.term.lock().as_mut() {
            Some(t) if t.term == term => Ok(act(t, self.clock.now())),
            _ => Err(Kind::NotLeader.into()),
        }
    }

    fn live_sessions(&self) -> Result<BTreeSet<SessionId>> {
        let view = StateView::new(self.store.reader());
        Ok(view.sessions()?.into_iter().map(|s| s.id).collect())
    }

    /// A node has applied up to an index.
    pub fn report(&self, node: NodeId, applied: u64) {
        if let Some(term) = self.term.lock().as_mut() {
            term.grants.report(node, applied);
        }
        self.moved.send_replace(());
    }

    /// A node reads nothing alone any more.
    pub fn give_back(&self, node: NodeId) {
        if let Some(term) = self.term.lock().as_mut() {
            term.grants.give_back(node);
        }
        self.moved.send_replace(());
    }

    /// Lets another voter lead, without a moment in which nobody may answer: first this leader's leases
    /// end, because the next one does not know them. Whether another leads then.
    ///
    /// # Errors
    /// [`Kind::Unavailable`] when no other voter is there; else as Raft.
    pub async fn hand_over(&self, me: NodeId) -> Result<bool> {
        let mut metrics = self.raft.server_metrics();
        let voters =
            metrics.borrow_and_update().membership_config.membership().voter_ids().collect::<Vec<_>>();
        let seen = self.seen();
        let to = voters.into_iter().find(|id| *id != me.0 && seen.contains(&NodeId(*id)));
        let to = to.ok_or_else(|| Error::new(Kind::Unavailable, "no other voter is there"))?;
        // Not taken back in this term: the other may win as long as it has been asked to.
        if let Some(term) = self.term.lock().as_mut() {
            term.grants.close();
        }
        self.clock.sleep(lengthened(READ_LEASE)).await;
        let outcome = self.raft.trigger().transfer_leader(to).await;
        let moved = async {
            while metrics.borrow_and_update().state == ServerState::Leader {
                if metrics.changed().await.is_err() {
                    break;
                }
            }
        };
        let moved = tokio::select! {
            () = moved => true,
            () = self.clock.sleep(READ_LEASE) => false,
        };
        outcome.map_err(|e| Error::new(Kind::Unavailable, e.to_string()))?;
        Ok(moved)
    }

    /// Whether this node leads and old leases have ended: time for a leader's duties.
    pub fn on_duty(&self) -> bool {
        let now = self.clock.now();
        self.term.lock().as_ref().is_some_and(|t| now >= t.grants.quarantine())
    }

    /// Sessions to close because their nodes were silent for too long.
    ///
    /// # Errors
    /// [`Kind::NotLeader`]; else only if the state is damaged.
    pub fn expired_sessions(&self) -> Result<Vec<SessionId>> {
        let live = self.live_sessions()?;
        let now = self.clock.now();
        match self.term.lock().as_mut() {
            Some(t) => {
                t.sessions.reconcile(&live, now);
                Ok(t.sessions.expire(now))
            }
            None => Err(Kind::NotLeader.into()),
        }
    }

    /// Nodes that renewed a moment ago.
    pub fn seen(&self) -> BTreeSet<NodeId> {
        let now = self.clock.now();
        let slot = self.term.lock();
        let seen = slot.iter().flat_map(|t| t.seen.iter());
        seen.filter(|(_, at)| now.since(**at) < SUSPECT_AFTER).map(|(node, _)| *node).collect()
    }

    /// Nodes that hold a read lease.
    pub fn holders(&self) -> Vec<NodeId> {
        let now = self.clock.now();
        self.term.lock().as_ref().map(|t| t.grants.holders(now).collect()).unwrap_or_default()
    }
}

fn answer<T: serde::Serialize>(value: &T) -> Answer {
    Answer { head: wire::encode(value).into(), body: Bytes::new() }
}

#[async_trait]
impl Service for Leader {
    async fn serve(&self, from: NodeId, head: Bytes, _body: Bytes) -> Result<Answer> {
        self.check_member(from).await?;
        Ok(match wire::decode::<MetaCall>(&head)? {
            MetaCall::Propose(batch) => {
                if batch.0.len() > PROPOSAL_BATCH_MAX {
                    return Err(Error::new(Kind::Protocol, "too many commands in one entry"));
                }
                answer(&self.propose(batch).await?)
            }
            MetaCall::ReadIndex => answer(&self.read_index().await?),
            MetaCall::Renew { session, applied } => answer(&self.renew(from, session, applied).await?),
            MetaCall::Applied(index) => {
                self.report(from, index);
                answer(&())
            }
            MetaCall::GiveBack => {
                self.give_back(from);
                answer(&())
            }
            MetaCall::Settled { index, applied } => {
                self.report(from, applied);
                answer(&self.settled(index).await?)
            }
        })
    }
}
