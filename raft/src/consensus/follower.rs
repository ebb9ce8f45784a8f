//! This node's side towards the leader, whoever that is: asking it, renewing leases, reporting what was
//! applied, and finding out from where on a read is linearizable.

use crate::consensus::calls::{MetaCall, Proposed, Renewed};
use crate::consensus::leader::Leader;
use crate::consensus::lease::{Held, session_holds};
use crate::consensus::network::Node;
use crate::consensus::store::Store;
use crate::consensus::types::Batch;
use futures::FutureExt;
use futures::future::BoxFuture;
use hfcache_base::limits::{CALL_DEADLINE, LEASE_RENEW, OPERATION_DEADLINE, READ_LEASE};
use hfcache_base::seam::{Call, Clock, Moment, Net, Rng, ServiceId};
use hfcache_base::{Error, Kind, NodeId, Result, SessionId, wire};
use openraft::async_runtime::WatchReceiver;
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot, watch};

/// Shortest pause before the leader is asked again.
const BACKOFF_MIN: Duration = Duration::from_millis(2);
/// Longest pause before the leader is asked again.
const BACKOFF_MAX: Duration = Duration::from_millis(100);
/// Reads that may wait for an answer of the leader; more wait outside.
const READS_WAITING_MAX: usize = 4_096;

/// What became of this node's session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionState {
    /// The session, once it is open.
    pub id: Option<SessionId>,
    /// When the leader was last asked with success.
    pub asked: Moment,
    /// It has ended: this run of the node can never act again.
    pub lost: bool,
    /// The node is ending in order: a session that ends now is no failure.
    pub closing: bool,
}

type ReadWaiter = oneshot::Sender<Result<()>>;

/// See the module.
pub struct Follower {
    me: NodeId,
    net: Arc<dyn Net>,
    clock: Arc<dyn Clock>,
    rng: Arc<dyn Rng>,
    store: Arc<Store>,
    raft: Node,
    leader: Arc<Leader>,
    held: Mutex<Held>,
    session: watch::Sender<SessionState>,
    /// The leader this node follows, as Raft says.
    current: watch::Sender<Option<NodeId>>,
    reads: mpsc::Sender<ReadWaiter>,
    /// The leader may be waiting for a report that nothing else would cause.
    report: Notify,
}

impl Follower {
    /// This node's side, and the queue that [`Follower::run_reads`] serves.
    pub fn new(
        me: NodeId,
        net: Arc<dyn Net>,
        clock: Arc<dyn Clock>,
        rng: Arc<dyn Rng>,
        store: Arc<Store>,
        raft: Node,
        leader: Arc<Leader>,
    ) -> (Self, mpsc::Receiver<ReadWaiter>) {
        let (reads, queue) = mpsc::channel(READS_WAITING_MAX);
        let (session, _) = watch::channel(SessionState::default());
        let (current, _) = watch::channel(None);
        let held = Mutex::new(Held::default());
        let report = Notify::new();
        (Self { me, net, clock, rng, store, raft, leader, held, session, current, reads, report }, queue)
    }

    /// The leader, as far as this node knows, and a way to see it change.
    pub fn current_leader(&self) -> watch::Receiver<Option<NodeId>> {
        self.current.subscribe()
    }

    /// This node's session.
    pub fn session(&self) -> watch::Receiver<SessionState> {
        self.session.subscribe()
    }

    /// The session this node acts for.
    ///
    /// # Errors
    /// [`Kind::Fenced`] when it has ended or may have; [`Kind::Unavailable`] before there is one.
    pub fn live_session(&self) -> Result<SessionId> {
        let state = *self.session.borrow();
        if state.lost {
            return Err(Error::new(Kind::Fenced, "this node's session has ended"));
        }
        let id = state.id.ok_or_else(|| Error::new(Kind::Unavailable, "this node has no session yet"))?;
        if !session_holds(state.asked, self.clock.now()) {
            return Err(Error::new(Kind::Fenced, "this node is cut off from the cluster"));
        }
        Ok(id)
    }

    /// A session was opened for this node by a command that was proposed at `asked`.
    pub fn session_opened(&self, id: SessionId, asked: Moment) {
        self.session.send_modify(|s| {
            s.id = Some(id);
            s.asked = asked;
        });
    }

    /// The session has ended: nothing is served from now on.
    pub fn session_lost(&self) {
        let first = self.session.send_if_modified(|s| !std::mem::replace(&mut s.lost, true));
        if first {
            self.held.lock().give_up();
        }
        if first && !self.session.borrow().closing {
            tracing::error!("this node's session has ended: it refuses all service until it is restarted");
        }
    }

    /// The node is ending: nothing is repeated from now on once [`Follower::closed`] is called as well.
    pub fn closing(&self) {
        self.session.send_modify(|s| s.closing = true);
    }

    /// The node has ended.
    pub fn closed(&self) {
        self.closing();
        self.session_lost();
    }

    /// Until when a state that is read from now on is linearizable without asking anyone.
    pub fn leased_until(&self) -> Option<Moment> {
        self.live_session().ok()?;
        let now = self.clock.now();
        self.held.lock().until(self.store.applied_index(), now)
    }

    /// Follows Raft's idea of the leader until Raft ends.
    pub async fn follow(self: Arc<Self>) {
        let mut metrics = self.raft.server_metrics();
        loop {
            let leader = metrics.borrow_and_update().current_leader.map(NodeId);
            self.current.send_if_modified(|known| std::mem::replace(known, leader) != leader);
            if metrics.changed().await.is_err() {
                return;
            }
        }
    }

    async fn ask<T: DeserializeOwned>(&self, to: NodeId, call: &MetaCall, deadline: Duration) -> Result<T> {
        let answer = self.net.call(to, Call::new(ServiceId::Meta, wire::encode(call)), deadline).await?;
        wire::decode(&answer.head)
    }

    /// One try with one leader; given up as soon as there is another.
    async fn try_with<T>(&self, to: NodeId, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut current = self.current.subscribe();
        tokio::select! {
            done = work => done,
            _ = current.wait_for(|leader| *leader != Some(to)) => Err(Kind::NotLeader.into()),
        }
    }

    /// A pause before the next try, cut short by a new leader.
    pub async fn pause(&self, tries: u32) {
        let mut current = self.current.subscribe();
        current.mark_unchanged();
        let most = BACKOFF_MIN.saturating_mul(1 << tries.min(8)).min(BACKOFF_MAX);
        let part = self.rng.next_u64() % (most.as_micros() as u64 / 2 + 1);
        tokio::select! {
            () = self.clock.sleep(most / 2 + Duration::from_micros(part)) => {}
            _ = current.changed() => {}
        }
    }

    /// One try to have commands committed.
    ///
    /// # Errors
    /// Transient kinds: whether they will be committed is not known then.
    pub async fn propose_once(&self, batch: &Batch) -> Result<Proposed> {
        let leader = self.known_leader()?;
        if leader == self.me {
            return self.leader.propose(batch.clone()).await;
        }
        let call = MetaCall::Propose(batch.clone());
        self.try_with(leader, self.ask(leader, &call, CALL_DEADLINE)).await
    }

    fn known_leader(&self) -> Result<NodeId> {
        let leader = *self.current.borrow();
        leader.ok_or_else(|| Error::new(Kind::Unavailable, "no leader"))
    }

    async fn read_index_once(&self) -> Result<u64> {
        let leader = self.known_leader()?;
        if leader == self.me {
            return self.leader.read_index().await;
        }
        self.try_with(leader, self.ask(leader, &MetaCall::ReadIndex, READ_LEASE)).await
    }

    /// Waits until what is read here is linearizable.
    ///
    /// # Errors
    /// [`Kind::Unavailable`] after the deadline; [`Kind::Fenced`].
    pub async fn read_point(&self, deadline: Duration) -> Result<()> {
        if self.leased_until().is_some() {
            return Ok(());
        }
        if self.session.borrow().lost {
            return Err(Error::new(Kind::Fenced, "this node's session has ended"));
        }
        let wait = async {
            let (done, answer) = oneshot::channel();
            self.reads.send(done).await.map_err(|_| Error::from(Kind::Canceled))?;
            answer.await.map_err(|_| Error::from(Kind::Canceled))?
        };
        tokio::select! {
            point = wait => point,
            () = self.clock.sleep(deadline) => {
                self.live_session()?;
                Err(Error::new(Kind::Unavailable, "no quorum answers"))
            }
        }
    }

    /// Serves waiting reads: one question for all that wait, the next one for those that came meanwhile.
    pub async fn run_reads(self: Arc<Self>, mut queue: mpsc::Receiver<ReadWaiter>) {
        let mut waiting = Vec::new();
        let mut tries = 0;
        loop {
            if waiting.is_empty() {
                let Some(first) = queue.recv().await else { return };
                waiting.push(first);
            }
            while let Ok(more) = queue.try_recv() {
                waiting.push(more);
            }
            waiting.retain(|waiter: &ReadWaiter| !waiter.is_closed());
            if waiting.is_empty() {
                continue;
            }
            match self.read_index_once().await {
                Ok(index) => {
                    tries = 0;
                    let (store, waiting) = (self.store.clone(), std::mem::take(&mut waiting));
                    if store.applied_index() >= index {
                        answer(waiting);
                        continue;
                    }
                    let clock = self.clock.clone();
                    tokio::spawn(async move {
                        // A node that was removed may never get there; its readers gave up long before.
                        tokio::select! {
                            () = store.wait_applied(index) => answer(waiting),
                            () = clock.sleep(OPERATION_DEADLINE) => {}
                        }
                    });
                }
                Err(e) => {
                    tracing::debug!(error = %e, "ask for read index");
                    self.pause(tries).await;
                    tries += 1;
                }
            }
        }
    }

    /// Renews session and lease for ever.
    pub async fn run_renewals(self: Arc<Self>) {
        let mut current = self.current.subscribe();
        loop {
            let asked = self.clock.now();
            let leader = *current.borrow_and_update();
            if let Some(leader) = leader {
                match self.try_with(leader, self.renew_once(leader)).await {
                    Ok(renewed) => self.renewed(asked, renewed),
                    Err(e) if e.kind() == Kind::Unauthorized => {
                        tracing::warn!(error = %e, %leader, "renew lease");
                        if self.session.borrow().id.is_some() {
                            self.session_lost();
                        }
                    }
                    Err(e) => tracing::debug!(error = %e, %leader, "renew lease"),
                }
            }
            let rest = LEASE_RENEW.saturating_sub(self.clock.now().since(asked));
            tokio::select! {
                () = self.clock.sleep(rest.max(Duration::from_millis(5))) => {}
                changed = current.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn renew_once(&self, leader: NodeId) -> Result<(Option<SessionId>, u64, Renewed)> {
        let session = self.session.borrow().id;
        let applied = self.store.applied_index();
        let renewed = if leader == self.me {
            self.leader.renew(self.me, session, applied).await?
        } else {
            self.ask(leader, &MetaCall::Renew { session, applied }, READ_LEASE).await?
        };
        Ok((session, applied, renewed))
    }

    fn renewed(&self, asked: Moment, (session, applied, renewed): (Option<SessionId>, u64, Renewed)) {
        if session.is_some() {
            if !renewed.session {
                return self.session_lost();
            }
            self.session.send_if_modified(|s| {
                s.asked = asked.max(s.asked);
                false
            });
        }
        if let Some(index) = renewed.lease
            && !self.session.borrow().lost
        {
            self.held.lock().granted(asked, index);
            if self.store.applied_index() > applied || self.store.settling().newest().is_some() {
                // Applied while the grant was on its way, and not reported for want of a lease.
                self.report.notify_one();
            }
        }
    }

    /// Tells the leader at once what was applied, while it may be waiting for that, and asks it what of that is
    /// settled. The question tells it, too, so that one call is enough as long as one thing happens at a time.
    pub async fn run_reports(self: Arc<Self>) {
        let mut applied = self.store.applied();
        let mut telling: Option<BoxFuture<'static, Result<()>>> = None;
        let mut asking: Option<BoxFuture<'static, Result<Option<u64>>>> = None;
        let (mut tells, mut asks) = (0, 0);
        let mut due = true;
        loop {
            let index = *applied.borrow_and_update();
            let leader = *self.current.borrow();
            if let Some(leader) = leader {
                if leader == self.me {
                    self.leader.report(self.me, index);
                    due = false;
                }
                let is_heard = leader == self.me || self.held.lock().any(self.clock.now());
                let settling = self.store.settling();
                if asking.is_none()
                    && let Some(newest) = settling.newest()
                    && (is_heard || settling.is_awaited())
                {
                    let this = self.clone();
                    asking =
                        Some(async move { this.settled_once(leader, newest, index).await.map(Some) }.boxed());
                    due = false;
                }
                if due && is_heard && telling.is_none() {
                    let this = self.clone();
                    let call = MetaCall::Applied(index);
                    telling = Some(
                        async move { this.try_with(leader, this.ask(leader, &call, READ_LEASE)).await }
                            .boxed(),
                    );
                    due = false;
                }
            }
            tokio::select! {
                changed = applied.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    due = true;
                }
                () = self.report.notified() => due = true,
                () = self.store.settling().wanted() => {}
                told = whenever(&mut telling) => {
                    telling = None;
                    tells = if told.is_ok() { 0 } else { tells + 1 };
                    if let Err(e) = told {
                        tracing::debug!(error = %e, "report applied index");
                        due = true;
                        let this = self.clone();
                        telling = Some(async move { this.pause(tells).await; Ok(()) }.boxed());
                    }
                }
                answer = whenever(&mut asking) => {
                    asking = None;
                    match answer {
                        Ok(settled) => {
                            if let Some(settled) = settled {
                                asks = 0;
                                self.store.settling().settle(settled);
                            }
                        }
                        Err(e) => {
                            tracing::debug!(error = %e, "ask what is settled");
                            // It may not have been told what was applied either.
                            due = true;
                            let (this, tries) = (self.clone(), asks);
                            asks += 1;
                            asking = Some(async move { this.pause(tries).await; Ok(None) }.boxed());
                        }
                    }
                }
            }
        }
    }

    async fn settled_once(&self, leader: NodeId, index: u64, applied: u64) -> Result<u64> {
        if leader == self.me {
            return self.leader.settled(index).await;
        }
        self.try_with(leader, self.ask(leader, &MetaCall::Settled { index, applied }, READ_LEASE)).await
    }

    /// Waits until everyone who may read alone has applied an index: then it may be told.
    ///
    /// # Errors
    /// [`Kind::Unavailable`] after the deadline; [`Kind::Fenced`].
    pub async fn settled(&self, index: u64, deadline: Duration) -> Result<()> {
        let mut session = self.session.subscribe();
        let fenced = || Error::new(Kind::Fenced, "this node's session has ended");
        tokio::select! {
            biased;
            () = self.store.settling().wait(index) => Ok(()),
            _ = session.wait_for(|s| s.lost) => Err(fenced()),
            () = self.clock.sleep(deadline) => {
                self.live_session()?;
                Err(Error::new(Kind::Unavailable, "no quorum answers"))
            }
        }
    }

    /// Gives the lease back, so that nobody waits for this node any more.
    pub async fn give_back(&self) {
        self.held.lock().give_up();
        let Some(leader) = *self.current.borrow() else { return };
        if leader == self.me {
            self.leader.give_back(self.me);
        } else if let Err(e) = self.ask::<()>(leader, &MetaCall::GiveBack, READ_LEASE).await {
            tracing::debug!(error = %e, "give lease back");
        }
    }
}

/// What a future answers, if there is one.
async fn whenever<T>(future: &mut Option<BoxFuture<'static, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

fn answer(waiting: Vec<ReadWaiter>) {
    for waiter in waiting {
        let _gone = waiter.send(Ok(()));
    }
}
