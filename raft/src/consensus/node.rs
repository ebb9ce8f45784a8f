//! One node of the Raft group, put together: it opens the files, starts the tasks, and ends them in order.

use crate::consensus::duties::Duties;
use crate::consensus::follower::Follower;
use crate::consensus::leader::Leader;
use crate::consensus::lease::lengthened;
use crate::consensus::log_store::LogStore;
use crate::consensus::machine::{FLUSH_EVERY, Machine};
use crate::consensus::meta::{LockChanges, LockPropose, LockReplica};
use crate::consensus::neighbours::{Answering, Asking};
use crate::consensus::network::{self, Network, Node, Receiver};
use crate::consensus::propose::Proposer;
use crate::consensus::reserve::Reserve;
use crate::consensus::store::{STATE_FILE, Store};
use crate::locks::LocalLocks;
use hfcache_base::limits::{LOG_KEEP, RAFT_ELECTION_MAX, RAFT_ELECTION_MIN, RAFT_HEARTBEAT, SNAPSHOT_EVERY};
use hfcache_base::meta::{Op, RaftStatus, Reply};
use hfcache_base::seam::{Clock, Moment, Net, Rng, ServiceId};
use hfcache_base::{Error, Kind, NodeId, Result, SessionId};
use openraft::async_runtime::WatchReceiver;

use openraft::{Config, EmptyNode, SnapshotPolicy, StepDownPolicy};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Files of the log and the state in [`OpenOptions::dir`]; both are there once a node has run.
pub const STATE_FILES: [&str; 2] = [LOG_FILE, STATE_FILE];
const LOG_FILE: &str = "log.redb";

/// How long an orderly end waits for others before it goes on without them.
const GOODBYE: Duration = Duration::from_millis(1_500);

/// openraft elects when a follower heard nothing for the vote lease *and* an election timeout, and takes
/// its longest election timeout as the lease. These give [`RAFT_ELECTION_MIN`] to [`RAFT_ELECTION_MAX`]
/// altogether.
const VOTE_LEASE: Duration = Duration::from_millis(RAFT_ELECTION_MAX.as_millis() as u64 / 2);
const ELECTION_MIN: Duration = {
    let rest = RAFT_ELECTION_MIN.as_millis() as u64 - VOTE_LEASE.as_millis() as u64;
    let least = RAFT_HEARTBEAT.as_millis() as u64 + 50;
    Duration::from_millis(if rest > least { rest } else { least })
};

/// What a node needs to take part.
pub struct OpenOptions {
    /// Where the node keeps its log, state and snapshots: DATA/raft.
    pub dir: PathBuf,
    /// This node.
    pub me: NodeId,
    /// The network to the others.
    pub net: Arc<dyn Net>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Jitter and nonces.
    pub rng: Arc<dyn Rng>,
    /// Entries between snapshots.
    pub snapshot_every: u64,
    /// Entries kept behind a snapshot.
    pub log_keep: u64,
}

impl OpenOptions {
    /// Options with the usual limits.
    pub fn new(
        dir: PathBuf,
        me: NodeId,
        net: Arc<dyn Net>,
        clock: Arc<dyn Clock>,
        rng: Arc<dyn Rng>,
    ) -> Self {
        Self { dir, me, net, clock, rng, snapshot_every: SNAPSHOT_EVERY, log_keep: LOG_KEEP }
    }
}

/// Why this node can't go on; the process should end and be started again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Raft or its stores failed.
    Raft(String),
    /// The session has ended: locks and open files of this run are void.
    SessionLost,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Raft(why) => write!(f, "Raft has failed: {why}"),
            Self::SessionLost => write!(f, "this node was silent for too long and its session was ended"),
        }
    }
}

/// The namespace on this node: [`Meta`](hfcache_base::seam::Meta) over Raft.
pub struct Consensus {
    pub(crate) me: NodeId,
    pub(crate) clock: Arc<dyn Clock>,
    rng: Arc<dyn Rng>,
    pub(crate) raft: Node,
    pub(crate) store: Arc<Store>,
    pub(crate) leader: Arc<Leader>,
    pub(crate) follower: Arc<Follower>,
    pub(crate) proposer: Arc<Proposer>,
    pub(crate) reserve: Arc<Reserve>,
    pub(crate) locks: LocalLocks,
    failure: watch::Sender<Option<Failure>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    /// The node has a log: it was a member before.
    had_state: bool,
}

fn config(options: &OpenOptions, had_state: bool) -> Result<Arc<Config>> {
    let config = Config {
        cluster_name: "hfcache".to_owned(),
        heartbeat_interval: RAFT_HEARTBEAT.as_millis() as u64,
        election_timeout_min: ELECTION_MIN.as_millis() as u64,
        election_timeout_max: VOTE_LEASE.as_millis() as u64,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(options.snapshot_every),
        max_in_snapshot_log_to_keep: options.log_keep,
        // A follower further behind than this gets a snapshot, if one is there.
        replication_lag_threshold: options.log_keep.max(options.snapshot_every).saturating_mul(2),
        purge_batch_size: (options.log_keep / 10).max(1),
        max_payload_entries: 512,
        enable_pre_vote: Some(true),
        // A leader that restarts must be elected again: it no longer knows whom it granted leases.
        enable_leader_restore: Some(false),
        // A leader that leaves hands over by itself, after its read leases have ended.
        removed_leader_step_down: StepDownPolicy::Never,
        enable_elect: !had_state,
        backoff: "20ms 50ms 100ms ...400ms".to_owned(),
        ..Config::default()
    };
    let config = config.validate().map_err(|e| Error::new(Kind::Internal, e.to_string()))?;
    Ok(Arc::new(config))
}

impl Consensus {
    /// Opens a node's files and starts it. A new node waits to be added by a leader, or for
    /// [`Consensus::initialize`].
    ///
    /// # Errors
    /// [`Kind::Busy`] when the files are open elsewhere, [`Kind::Version`], [`Kind::Corrupt`], or whatever
    /// the disk says.
    pub async fn open(options: OpenOptions) -> Result<Arc<Self>> {
        let snapshots = options.dir.join("snapshots");
        let (dir, cleaned) = (options.dir.clone(), snapshots.clone());
        let (log, store) = tokio::task::spawn_blocking(move || {
            std::fs::create_dir_all(&dir)
                .map_err(|e| Error::io(e).context(format!("make {}", dir.display())))?;
            network::clean_dir(&cleaned)?;
            Ok::<_, Error>((LogStore::open(&dir.join(LOG_FILE))?, Arc::new(Store::open(&dir)?)))
        })
        .await
        .map_err(|e| Error::new(Kind::Internal, "open Raft files").with_source(e))??;
        let had_state = !log.is_pristine();
        let OpenOptions { me, ref net, ref clock, ref rng, .. } = options;
        let factory = Network::new(me, net.clone(), snapshots.clone());
        let machine = Machine::new(store.clone());
        let raft = Node::new(me.0, config(&options, had_state)?, factory, log, machine)
            .await
            .map_err(|e| Error::new(Kind::Io, e.to_string()).context("start Raft"))?;

        let leader = Arc::new(Leader::new(raft.clone(), store.clone(), clock.clone(), VOTE_LEASE));
        let (follower, reads) = Follower::new(
            me,
            net.clone(),
            clock.clone(),
            rng.clone(),
            store.clone(),
            raft.clone(),
            leader.clone(),
        );
        let follower = Arc::new(follower);
        let (proposer, proposals) = Proposer::new(follower.clone(), store.clone(), clock.clone());
        let locks = LocalLocks::new(
            Arc::new(LockPropose(proposer.clone())),
            Arc::new(LockReplica { store: store.clone(), follower: follower.clone() }),
            Arc::new(Asking::new(net.clone(), store.clone())),
            clock.clone(),
            tokio::runtime::Handle::current(),
        );
        store.subscribe(Arc::new(LockChanges { locks: locks.clone(), follower: follower.clone() }));
        let (failure, _) = watch::channel(None);
        let this = Arc::new(Self {
            me,
            clock: clock.clone(),
            rng: rng.clone(),
            reserve: Reserve::new(proposer.clone()),
            raft,
            store,
            leader,
            follower,
            proposer,
            locks,
            failure,
            tasks: Mutex::default(),
            had_state,
        });
        let silent_until =
            if had_state { clock.now().after(lengthened(VOTE_LEASE)) } else { Moment::default() };
        let receiver = Receiver::new(this.raft.clone(), snapshots, clock.clone(), silent_until);
        net.serve(ServiceId::Raft, Arc::new(receiver));
        net.serve(ServiceId::Meta, this.leader.clone());
        let (locks, store) = (this.locks.clone(), this.store.clone());
        net.serve(ServiceId::Locks, Arc::new(Answering { locks, store }));
        this.start_tasks(proposals, reads);
        Ok(this)
    }

    fn start_tasks(
        self: &Arc<Self>,
        proposals: crate::consensus::propose::ProposalQueue,
        reads: tokio::sync::mpsc::Receiver<tokio::sync::oneshot::Sender<Result<()>>>,
    ) {
        let duties = Duties::new(
            self.raft.clone(),
            self.store.clone(),
            self.clock.clone(),
            self.me,
            self.leader.clone(),
            self.proposer.clone(),
        );
        let mut tasks = self.tasks.lock();
        tasks.push(tokio::spawn(self.leader.clone().follow()));
        tasks.push(tokio::spawn(self.follower.clone().follow()));
        tasks.push(tokio::spawn(self.follower.clone().run_renewals()));
        tasks.push(tokio::spawn(self.follower.clone().run_reports()));
        tasks.push(tokio::spawn(self.follower.clone().run_reads(reads)));
        tasks.push(tokio::spawn(self.proposer.clone().run(proposals)));
        tasks.push(tokio::spawn(duties.run()));
        let (raft, clock, store) = (self.raft.clone(), self.clock.clone(), self.store.clone());
        tasks.push(tokio::spawn(flush_often(store, clock.clone(), self.failure.clone())));
        tasks.push(tokio::spawn(watch_raft(raft.clone(), self.failure.clone())));
        tasks.push(tokio::spawn(watch_session(
            self.follower.session(),
            self.locks.clone(),
            self.failure.clone(),
        )));
        if self.had_state {
            tasks.push(tokio::spawn(async move {
                clock.sleep(lengthened(VOTE_LEASE)).await;
                raft.runtime_config().elect(true);
            }));
        }
    }

    /// Founds a cluster of this node alone and admits it as its first member.
    ///
    /// # Errors
    /// [`Kind::Exists`] when this node is or was a member of a cluster; as a proposal.
    pub async fn initialize(&self, add: Op) -> Result<hfcache_base::Node> {
        if !self.store.map().nodes.is_empty() {
            return Err(Error::new(Kind::Exists, "this node already belongs to a cluster"));
        }
        // A node with a log but no member died while it founded its cluster: it goes on from there.
        if !self.had_state {
            self.leader.found();
            let members = BTreeMap::from([(self.me.0, EmptyNode::default())]);
            let founded = self.raft.initialize(members).await;
            founded.map_err(|e| Error::new(Kind::Exists, e.to_string()).context("found cluster"))?;
        }
        match self.proposer.commit_for_cluster(add).await? {
            Reply::Node(node) if node.id == self.me => Ok(*node),
            other => Err(Error::new(Kind::Internal, format!("first node answered with {other:?}"))),
        }
    }

    /// Opens this run's session, waiting for the cluster as long as it takes.
    ///
    /// # Errors
    /// [`Kind::NotFound`] when this node is no member any more; [`Kind::Fenced`].
    pub async fn open_session(&self) -> Result<SessionId> {
        let nonce = self.rng.next_u64();
        loop {
            let asked = self.clock.now();
            match self.proposer.commit_for_cluster(Op::OpenSession { node: self.me, nonce }).await {
                Ok(Reply::Session(id)) => {
                    self.locks.set_session(Some(id));
                    self.follower.session_opened(id, asked);
                    tracing::info!(session = %id, "session is open");
                    return Ok(id);
                }
                Ok(other) => {
                    return Err(Error::new(Kind::Internal, format!("session answered with {other:?}")));
                }
                Err(e) if e.kind().is_transient() => {
                    tracing::warn!(error = %e, "open session; the cluster does not answer yet");
                }
                Err(e) => return Err(e.context("open session")),
            }
        }
    }

    /// Proposes an operation of the cluster itself, one that may safely take effect twice: members, tokens.
    /// Needs no session.
    ///
    /// # Errors
    /// As [`Meta::commit`](hfcache_base::seam::Meta::commit).
    pub async fn commit_for_cluster(&self, op: Op) -> Result<Reply> {
        self.proposer.commit_for_cluster(op).await
    }

    /// Becomes `Some` when this node can't go on; the process should end then.
    pub fn failure(&self) -> watch::Receiver<Option<Failure>> {
        self.failure.subscribe()
    }

    /// The newest applied log index.
    pub fn applied_index(&self) -> u64 {
        self.store.applied_index()
    }

    /// Whether this node's files said at start that it belongs to a cluster.
    pub fn had_state(&self) -> bool {
        self.had_state
    }

    /// Nodes that hold a read lease, if this node leads.
    pub fn lease_holders(&self) -> Vec<NodeId> {
        self.leader.holders()
    }

    pub(crate) fn raft_status(&self) -> RaftStatus {
        let metrics = self.raft.metrics().borrow_watched().clone();
        let membership = metrics.membership_config.membership();
        RaftStatus {
            leader: metrics.current_leader.map(NodeId),
            term: metrics.current_term,
            applied: self.store.applied_index(),
            last_log: metrics.last_log_index.unwrap_or(0),
            voters: membership.voter_ids().map(NodeId).collect(),
            learners: membership.learner_ids().map(NodeId).collect(),
            session: self.follower.live_session().ok(),
            leased: self.follower.leased_until().is_some(),
            epoch: self.store.map().epoch,
        }
    }

    /// Ends this node in order: its session and lease are given back, leadership is handed over, and
    /// everything is on disk.
    ///
    /// # Errors
    /// Whatever the disk says; the log still has everything then.
    pub async fn shutdown(&self) -> Result<()> {
        self.follower.closing();
        if let Ok(session) = self.follower.live_session() {
            let goodbye = self.proposer.commit_for_cluster(Op::CloseSessions(vec![session]));
            if tokio::time::timeout(GOODBYE, goodbye).await.is_err() {
                tracing::warn!("close session: the cluster does not answer");
            }
        }
        self.follower.give_back().await;
        self.hand_over().await;
        self.stop().await;
        self.store.flush().await
    }

    /// Ends this node at once, as a crash would, but frees its files.
    pub async fn stop(&self) {
        self.follower.closed();
        if let Err(e) = self.raft.shutdown().await {
            tracing::warn!(error = %e, "stop Raft");
        }
        let tasks = std::mem::take(&mut *self.tasks.lock());
        for task in &tasks {
            task.abort();
        }
        for task in tasks {
            let _aborted = task.await;
        }
        self.store.unsubscribe_all();
    }

    /// Lets another voter lead, so that the cluster need not notice this node's end by silence.
    async fn hand_over(&self) {
        if *self.follower.current_leader().borrow() != Some(self.me) {
            return;
        }
        match self.leader.hand_over(self.me).await {
            Ok(true) => {}
            Ok(false) => tracing::info!("leadership was not taken over in time"),
            Err(e) => tracing::info!(error = %e, "hand leadership over"),
        }
    }
}

async fn flush_often(store: Arc<Store>, clock: Arc<dyn Clock>, failure: watch::Sender<Option<Failure>>) {
    loop {
        clock.sleep(FLUSH_EVERY).await;
        if let Err(e) = store.flush().await {
            tracing::error!(error = %e, "sync state");
            failure.send_replace(Some(Failure::Raft(format!("sync state: {e}"))));
            return;
        }
    }
}

/// A Raft core that panicked or lost its store never recovers.
async fn watch_raft(raft: Node, failure: watch::Sender<Option<Failure>>) {
    let mut metrics = raft.metrics();
    loop {
        let state = metrics.borrow_and_update().running_state.clone();
        let why = match state {
            Err(openraft::error::Fatal::Stopped) => return,
            Err(fatal) => Some(fatal.to_string()),
            Ok(()) => None,
        };
        let gone = why.is_none() && metrics.changed().await.is_err();
        let why = match (why, gone) {
            (Some(why), _) => why,
            // The core ended without a word.
            (None, true) => "the core has ended".to_owned(),
            (None, false) => continue,
        };
        tracing::error!(%why, "Raft has failed");
        failure.send_replace(Some(Failure::Raft(why)));
        return;
    }
}

async fn watch_session(
    mut session: watch::Receiver<crate::consensus::follower::SessionState>,
    locks: LocalLocks,
    failure: watch::Sender<Option<Failure>>,
) {
    if session.wait_for(|s| s.lost).await.is_ok() {
        locks.set_session(None);
        if !session.borrow().closing {
            failure.send_replace(Some(Failure::SessionLost));
        }
    }
}
