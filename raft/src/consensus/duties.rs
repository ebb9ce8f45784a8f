//! What a leader does for the cluster besides answering: membership, silent sessions, orphans, the trash, and
//! more copies for chunks that were written when the cluster was small.

use crate::consensus::leader::Leader;
use crate::consensus::membership::{Group, Step, plan};
use crate::consensus::network::Node;
use crate::consensus::propose::Proposer;
use crate::consensus::store::Store;
use crate::kv_redb::Reader;
use crate::state::StateView;
use hfcache_base::limits::CALL_DEADLINE;
use hfcache_base::meta::{Applied, Change, ChunkRef, Op};
use hfcache_base::seam::{ChangeSink, Clock, View};
use hfcache_base::{ChunkId, Error, Kind, NodeId, NodeState, Result, Scheme};
use openraft::ChangeMembers;
use openraft::async_runtime::WatchReceiver;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How often a leader looks around.
const EVERY: Duration = Duration::from_millis(500);
/// Rounds between looks for orphans.
const REAP_ROUNDS: u64 = 6;
/// Commands that empty the trash in one round: it is emptied for hours, if need be, rather than in the way of
/// everybody.
const EXPIRE_COMMANDS: usize = 4;
/// Entries a node may be behind and still count as caught up.
const CAUGHT_UP: u64 = 1_000;
/// Chunks looked at in one round for more copies.
const RAISE_PAGE: usize = 1_024;
/// Most new chunks with too few copies that are remembered; beyond that all are looked at again.
const NEWS_MAX: usize = 65_536;

/// See the module.
pub struct Duties {
    raft: Node,
    store: Arc<Store>,
    clock: Arc<dyn Clock>,
    me: NodeId,
    leader: Arc<Leader>,
    proposer: Arc<Proposer>,
    news: Arc<NewChunks>,
}

/// Chunks that were committed with fewer copies than the cluster can afford. Writers choose by the nodes they
/// see up, so this happens also after the look at all chunks has passed by: while a node joins, or is away.
struct NewChunks {
    store: Arc<Store>,
    few: Mutex<BTreeSet<ChunkId>>,
    /// Not all of them could be remembered.
    more: AtomicBool,
}

impl ChangeSink for NewChunks {
    fn applied(&self, batch: &[Applied]) {
        let mut parity = None;
        for change in batch.iter().flat_map(|a| &a.changes) {
            let Change::ChunkAdded(chunk) = change else { continue };
            let wanted =
                *parity.get_or_insert_with(|| Scheme::parity_for(self.store.map().storage_nodes().count()));
            if chunk.scheme.data == 1 && chunk.scheme.parity < wanted {
                let mut few = self.few.lock();
                if few.len() < NEWS_MAX {
                    few.insert(chunk.id);
                } else {
                    self.more.store(true, Ordering::Relaxed);
                }
            }
        }
    }

    fn replaced(&self) {
        self.more.store(true, Ordering::Relaxed);
    }
}

/// How far the look for chunks with too few copies has come.
#[derive(Default)]
struct Raising {
    /// The parity everything has that was looked at.
    parity: u8,
    after: ChunkId,
    done: bool,
}

impl Duties {
    /// The duties of a node, done while it leads.
    pub fn new(
        raft: Node,
        store: Arc<Store>,
        clock: Arc<dyn Clock>,
        me: NodeId,
        leader: Arc<Leader>,
        proposer: Arc<Proposer>,
    ) -> Self {
        let news =
            Arc::new(NewChunks { store: store.clone(), few: Mutex::default(), more: AtomicBool::new(false) });
        store.subscribe(news.clone());
        Self { raft, store, clock, me, leader, proposer, news }
    }

    /// Does them for ever.
    pub async fn run(self) {
        let mut raising = Raising::default();
        for round in 0u64.. {
            self.clock.sleep(EVERY).await;
            if !self.leader.on_duty() {
                // Who begins to lead looks at everything.
                raising = Raising::default();
                self.news.few.lock().clear();
                continue;
            }
            log_failure("close silent sessions", self.close_sessions().await);
            log_failure("mark nodes active", self.mark_active().await);
            log_failure("change membership", self.change_membership().await);
            if round.is_multiple_of(REAP_ROUNDS) {
                log_failure("free nameless inodes", self.reap().await);
            }
            log_failure("empty the trash", self.expire_trash().await);
            log_failure("add copies", self.raise_parity(&mut raising).await);
        }
    }

    fn view(&self) -> StateView<Reader> {
        StateView::new(self.store.reader())
    }

    async fn close_sessions(&self) -> Result<()> {
        let silent = self.leader.expired_sessions()?;
        if silent.is_empty() {
            return Ok(());
        }
        tracing::warn!(sessions = ?silent, "close sessions of silent nodes");
        self.proposer.commit_for_cluster(Op::CloseSessions(silent)).await?;
        Ok(())
    }

    async fn mark_active(&self) -> Result<()> {
        let running: Vec<NodeId> = self.view().sessions()?.into_iter().map(|s| s.node).collect();
        let map = self.store.map();
        for node in map.nodes.values() {
            if node.state == NodeState::Joined && running.contains(&node.id) {
                let op = Op::UpdateNode {
                    id: node.id,
                    addr: None,
                    capacity: None,
                    state: Some(NodeState::Active),
                };
                self.proposer.commit_for_cluster(op).await?;
            }
        }
        Ok(())
    }

    fn group(&self) -> Option<Group> {
        let metrics = self.raft.metrics().borrow_watched().clone();
        let membership = metrics.membership_config.membership();
        let replication = metrics.replication.as_ref()?;
        let last = metrics.last_log_index.unwrap_or(0);
        let seen = self.leader.seen();
        let ready = replication
            .iter()
            .filter(|(_, at)| at.as_ref().is_some_and(|at| at.index + CAUGHT_UP >= last))
            .map(|(id, _)| NodeId(*id))
            .filter(|id| seen.contains(id))
            .collect();
        Some(Group {
            voters: membership.voter_ids().map(NodeId).collect(),
            learners: membership.learner_ids().map(NodeId).collect(),
            ready,
        })
    }

    async fn change_membership(&self) -> Result<()> {
        let metrics = self.raft.metrics().borrow_watched().clone();
        if metrics.membership_config.membership().get_joint_config().len() > 1 {
            // A leader died, or gave up waiting, between the two steps of a change: the second is due.
            return self.change(ChangeMembers::AddVoterIds(BTreeSet::new())).await;
        }
        let Some(group) = self.group() else { return Ok(()) };
        let Some(step) = plan(&self.store.map(), &group) else { return Ok(()) };
        if matches!(&step, Step::SetVoters(voters) if !voters.contains(&self.me)) && group.voters.len() > 1 {
            // The next leader takes this one out.
            tracing::info!("hand leadership over: this node leaves");
            self.leader.hand_over(self.me).await?;
            return Ok(());
        }
        tracing::info!(?step, "change membership");
        let raw = |ids: BTreeSet<NodeId>| ids.into_iter().map(|id| id.0).collect::<BTreeSet<u64>>();
        let change = match step {
            Step::AddLearners(ids) => {
                let nodes: BTreeMap<u64, openraft::EmptyNode> =
                    ids.into_iter().map(|id| (id.0, openraft::EmptyNode::default())).collect();
                ChangeMembers::AddNodes(nodes)
            }
            Step::SetVoters(ids) => ChangeMembers::ReplaceAllVoters(raw(ids)),
            Step::Remove(ids) => ChangeMembers::RemoveNodes(raw(ids)),
        };
        self.change(change).await
    }

    async fn change(&self, change: ChangeMembers<u64, openraft::EmptyNode>) -> Result<()> {
        tokio::select! {
            // A voter that goes stays a learner until the next step removes it.
            changed = self.raft.change_membership(change, true) => {
                changed.map_err(|e| Error::new(Kind::Unavailable, e.to_string()))?;
                Ok(())
            }
            () = self.clock.sleep(CALL_DEADLINE) => Err(Error::new(Kind::TimedOut, "no quorum answers")),
        }
    }

    async fn reap(&self) -> Result<()> {
        if self.view().has_orphans()? {
            self.proposer.commit_for_cluster(Op::Reap).await?;
        }
        Ok(())
    }

    async fn expire_trash(&self) -> Result<()> {
        for _ in 0..EXPIRE_COMMANDS {
            if !self.view().trash_is_due(self.clock.wall())? {
                break;
            }
            self.proposer.commit_for_cluster(Op::ExpireTrash).await?;
        }
        Ok(())
    }

    /// Looks at what is new, and at one page of all chunks, if copies may be missing.
    async fn raise_parity(&self, raising: &mut Raising) -> Result<()> {
        let parity = Scheme::parity_for(self.store.map().storage_nodes().count());
        if parity == 0 {
            return Ok(());
        }
        if parity > raising.parity || self.news.more.swap(false, Ordering::Relaxed) {
            *raising = Raising { parity, ..Raising::default() };
        }
        let raised = self.raise_new(parity).await;
        if raised.is_err() {
            self.news.more.store(true, Ordering::Relaxed);
        }
        raised?;
        if raising.done {
            return Ok(());
        }
        let page = self.view().chunks(raising.after, RAISE_PAGE)?;
        self.add_copies(page.iter().copied(), raising.parity).await?;
        match page.last() {
            Some(last) => raising.after = last.id,
            None => raising.done = true,
        }
        Ok(())
    }

    async fn raise_new(&self, parity: u8) -> Result<()> {
        let ids: Vec<ChunkId> = {
            let mut few = self.news.few.lock();
            let rest = few.iter().nth(RAISE_PAGE).copied().map(|first| few.split_off(&first));
            std::mem::replace(&mut *few, rest.unwrap_or_default()).into_iter().collect()
        };
        if ids.is_empty() {
            return Ok(());
        }
        let view = self.view();
        let mut chunks = Vec::with_capacity(ids.len());
        for id in ids {
            chunks.extend(view.chunk(id)?);
        }
        drop(view);
        self.add_copies(chunks.into_iter(), parity).await
    }

    async fn add_copies(&self, chunks: impl Iterator<Item = ChunkRef>, parity: u8) -> Result<()> {
        let few = chunks.filter(|c| c.scheme.data == 1 && c.scheme.parity < parity);
        let chunks: Vec<ChunkId> = few.map(|c| c.id).collect();
        if !chunks.is_empty() {
            tracing::info!(chunks = chunks.len(), parity, "add copies");
            self.proposer.commit_for_cluster(Op::RaiseParity { chunks, parity }).await?;
        }
        Ok(())
    }
}

fn log_failure(doing: &str, outcome: Result<()>) {
    if let Err(e) = outcome {
        if e.kind().is_transient() {
            tracing::debug!(error = %e, "{doing}");
        } else {
            tracing::warn!(error = %e, "{doing}");
        }
    }
}
