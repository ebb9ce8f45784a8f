//! One other member: its connection is kept and re-made by one task, which also asks for signs of life.
//!
//! ```text
//! Connecting --ok--> Up --silent for SUSPECT_AFTER--> Suspect --answers--> Up
//!     |  ^            |                                  |
//!   fails '---------- connection lost <------------------'
//!     v
//!   Down: dialed again and again --ok--> Up
//! ```
//!
//! Calls wait only while connecting (at most one attempt); to a suspect or dead peer they fail at once, so
//! that the caller goes elsewhere.

use crate::bulk::BulkPool;
use crate::frame::Type;
use crate::quic::code;
use crate::rpc;
use crate::shared::Shared;
use crate::stats::{PeerStats, add};
use crate::{bounds, ca};
use hfcache_base::limits::{BULK_FROM, CALLS_PER_PEER_MAX, CONNECT_DEADLINE, PING_EVERY, SUSPECT_AFTER};
use hfcache_base::seam::{Answer, Call, Health};
use hfcache_base::{Error, Kind, NodeId, Result};
use parking_lot::Mutex;
use quinn::Connection;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, info};

/// A connection to a peer.
pub(crate) struct Link {
    pub(crate) connection: Connection,
    pub(crate) bulk: Arc<BulkPool>,
}

enum State {
    Connecting,
    Up(Arc<Link>),
    Suspect(Arc<Link>),
    Down,
}

impl State {
    fn link(&self) -> Option<&Arc<Link>> {
        match self {
            Self::Up(link) | Self::Suspect(link) => Some(link),
            Self::Connecting | Self::Down => None,
        }
    }
}

/// See the module.
pub(crate) struct Peer {
    id: NodeId,
    addr: Mutex<SocketAddr>,
    state: watch::Sender<State>,
    /// When it last answered, see [`Shared::now_ms`]; 0 for never.
    heard: AtomicU64,
    nudge: Notify,
    calls: Semaphore,
    keeper: Mutex<Option<AbortHandle>>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.close(b"forgotten");
    }
}

impl Peer {
    pub(crate) fn new(id: NodeId, addr: SocketAddr) -> Self {
        Self {
            id,
            addr: Mutex::new(addr),
            state: watch::Sender::new(State::Connecting),
            heard: AtomicU64::new(0),
            nudge: Notify::new(),
            calls: Semaphore::new(CALLS_PER_PEER_MAX),
            keeper: Mutex::new(None),
        }
    }

    /// Starts the task that keeps the connection.
    pub(crate) fn start(self: &Arc<Self>, shared: &Arc<Shared>) {
        let task = tokio::spawn(keep(shared.clone(), self.clone()));
        if let Some(old) = self.keeper.lock().replace(task.abort_handle()) {
            old.abort();
        }
    }

    /// Ends the connection and the task.
    pub(crate) fn close(&self, why: &[u8]) {
        if let Some(keeper) = self.keeper.lock().take() {
            keeper.abort();
        }
        if let State::Up(link) | State::Suspect(link) = self.state.send_replace(State::Down) {
            link.connection.close(code::BYE, why);
        }
    }

    /// Says where the map has it now.
    pub(crate) fn set_addr(&self, addr: SocketAddr) {
        let old = std::mem::replace(&mut *self.addr.lock(), addr);
        if old != addr {
            self.nudge();
        }
    }

    /// Where the map has it.
    pub(crate) fn addr(&self) -> SocketAddr {
        *self.addr.lock()
    }

    /// There is a reason to try now.
    pub(crate) fn nudge(&self) {
        self.nudge.notify_one();
    }

    /// It answered.
    fn heard(&self, shared: &Shared) {
        self.heard.store(shared.now_ms(), Ordering::Relaxed);
    }

    fn silent_for(&self, shared: &Shared) -> Duration {
        Duration::from_millis(shared.now_ms().saturating_sub(self.heard.load(Ordering::Relaxed)))
    }

    pub(crate) fn health(&self, shared: &Shared) -> Health {
        let known = self.heard.load(Ordering::Relaxed) > 0;
        match &*self.state.borrow() {
            State::Up(_) => Health::Up,
            _ if !known => Health::Unknown,
            State::Connecting if self.silent_for(shared) < SUSPECT_AFTER => Health::Up,
            State::Connecting | State::Suspect(_) | State::Down => Health::Suspect,
        }
    }

    pub(crate) fn stats(&self, shared: &Shared) -> PeerStats {
        let up = self.health(shared) == Health::Up;
        let state = self.state.borrow();
        let link = state.link();
        PeerStats {
            node: self.id,
            addr: link.map_or_else(|| *self.addr.lock(), |l| l.connection.remote_address()),
            up,
            rtt_us: link.map_or(0, |l| l.connection.rtt().as_micros() as u64),
            bulk_blocked: link.is_some_and(|l| l.bulk.is_blocked()),
        }
    }

    /// The connection, at once if there is one or none is to be had, else when it is made.
    async fn link(&self) -> Result<Arc<Link>> {
        let ready = |state: &State| match state {
            State::Up(link) => Some(Ok(link.clone())),
            State::Suspect(_) => {
                Some(Err(Error::new(Kind::Unavailable, format!("{} does not answer", self.id))))
            }
            State::Down => Some(Err(Error::new(Kind::Unavailable, format!("{} cannot be reached", self.id)))),
            State::Connecting => None,
        };
        if let Some(link) = ready(&self.state.borrow()) {
            return link;
        }
        let mut state = self.state.subscribe();
        let waited = timeout(CONNECT_DEADLINE, state.wait_for(|s| ready(s).is_some())).await;
        match waited {
            Ok(Ok(state)) => ready(&state),
            _ => None,
        }
        .unwrap_or_else(|| {
            Err(Error::new(Kind::Unavailable, format!("{} cannot be reached in time", self.id)))
        })
    }

    /// Makes a call.
    pub(crate) async fn call(&self, shared: &Shared, mut call: Call, deadline: Duration) -> Result<Answer> {
        let _permit = self.calls.acquire().await.map_err(|_| Error::from(Kind::Unavailable))?;
        let mut link = self.link().await?;
        if link.connection.close_reason().is_some() {
            // It broke just now and its keeper has not seen it yet: nothing was sent, so try the next one.
            let mut state = self.state.subscribe();
            let other = |s: &State| s.link().is_none_or(|l| !Arc::ptr_eq(l, &link));
            let _ = timeout(CONNECT_DEADLINE, state.wait_for(other)).await;
            link = self.link().await?;
        }
        let body_len = call.body_len();
        let bulk = shared.bulk && (call.bulk_answer || body_len >= BULK_FROM);
        if bulk {
            match link.bulk.call(shared, &link.connection, call, deadline).await {
                Ok(answer) => return self.answered(shared, answer),
                // The lane is not to be had and nothing was served: QUIC always works.
                Err(unsent) => call = unsent,
            }
            add(&shared.counters.bulk_fallbacks, 1);
        }
        add(&shared.counters.stream_bytes_sent, body_len);
        let answer =
            rpc::exchange(&link.connection, Type::Call(call.service), deadline, call.head, call.body).await;
        if let Ok(answer) = &answer {
            add(&shared.counters.stream_bytes_received, answer.body.len());
        }
        self.answered(shared, answer)
    }

    fn answered(&self, shared: &Shared, answer: Result<Answer>) -> Result<Answer> {
        if answer.is_ok() {
            self.heard(shared);
        }
        answer
    }
}

/// Makes a connection and proves it by a ping: in TLS 1.3 a client learns only from the first answer
/// whether the server accepted its certificate.
async fn dial(shared: &Shared, peer: &Peer, addr: SocketAddr) -> Result<Connection> {
    let name = ca::node_name(peer.id, shared.identity.cluster());
    let connecting = shared
        .endpoint
        .connect_with(shared.client.clone(), addr, &name)
        .map_err(|e| Error::new(Kind::Unavailable, "dial").with_source(e))?;
    let work = async {
        let connection = connecting.await.map_err(rpc::lost)?;
        rpc::ping(&connection).await?;
        Ok(connection)
    };
    timeout(CONNECT_DEADLINE, work).await.unwrap_or_else(|_| Err(Error::new(Kind::TimedOut, "no answer")))
}

/// A nudge that comes while an attempt already takes longer than any on a healthy network.
async fn awakened(peer: &Peer) {
    sleep(PING_EVERY / 3).await;
    peer.nudge.notified().await;
}

async fn keep(shared: Arc<Shared>, peer: Arc<Peer>) {
    let mut turn = 0usize;
    let mut reported = false;
    let mut restarted = false;
    loop {
        let mut addrs = vec![*peer.addr.lock()];
        addrs.extend(shared.hints.lock().get(&peer.id).filter(|hint| **hint != addrs[0]));
        let addr = addrs[turn % addrs.len()];
        let began = Instant::now();
        let dialed = tokio::select! {
            biased;
            dialed = dial(&shared, &peer, addr) => dialed,
            // It dials us, so it is there now: do not wait for the next repetition of a lost packet. Once
            // only, or two nodes that dial each other might go on for ever.
            () = awakened(&peer), if !restarted => {
                restarted = true;
                continue;
            }
        };
        restarted = false;
        match dialed {
            Ok(connection) => {
                add(&shared.counters.connections_made, 1);
                debug!(op = "connect", node = %peer.id, %addr, "connected");
                reported = false;
                peer.heard(&shared);
                let bulk = Arc::new(BulkPool::new(peer.id));
                observe(&shared, &peer, Arc::new(Link { connection, bulk })).await;
                peer.state.send_replace(State::Connecting);
            }
            Err(e) => {
                turn += 1;
                if !reported && turn >= addrs.len() {
                    info!(op = "connect", node = %peer.id, %addr, error = %e, "cannot reach node; trying on");
                    reported = true;
                }
                if turn >= addrs.len() {
                    peer.state.send_replace(State::Down);
                }
                // An attempt that failed by its deadline has waited long enough.
                tokio::select! {
                    () = sleep_until(began + PING_EVERY) => {}
                    () = peer.nudge.notified() => {}
                }
            }
        }
    }
}

/// Asks a connected peer for signs of life until the connection is lost.
async fn observe(shared: &Shared, peer: &Peer, link: Arc<Link>) {
    let connection = &link.connection;
    peer.state.send_replace(State::Up(link.clone()));
    let mut lifeline = std::pin::pin!(link.bulk.lifeline(shared, connection));
    let mut held = shared.bulk;
    loop {
        // The kernel of a killed process closes its TCP connections at once, long before QUIC is sure.
        let urgent = tokio::select! {
            _ = connection.closed() => return,
            () = sleep(PING_EVERY) => false,
            () = &mut lifeline, if held => true,
        };
        held &= !urgent;
        link.bulk.sweep();
        let silent = peer.silent_for(shared);
        if silent < PING_EVERY && !urgent {
            continue;
        }
        let patience = match urgent {
            true => bounds::LIFELINE_PATIENCE,
            false => SUSPECT_AFTER.saturating_sub(silent).max(PING_EVERY / 2),
        };
        let mut ping = std::pin::pin!(rpc::ping(connection));
        let answer = tokio::select! {
            biased;
            answer = &mut ping => answer,
            () = sleep(patience) => {
                debug!(op = "ping", node = %peer.id, urgent, "silent: suspect");
                peer.state.send_replace(State::Suspect(link.clone()));
                match urgent {
                    true => Err(Error::from(Kind::TimedOut)),
                    // QUIC repeats the ping, or ends the connection after its idle time.
                    false => ping.await,
                }
            }
        };
        if let Err(e) = answer {
            debug!(op = "ping", node = %peer.id, error = %e, "connection lost");
            connection.close(code::REPLACED, b"no answer");
            return;
        }
        peer.heard(shared);
        if matches!(&*peer.state.borrow(), State::Suspect(_)) {
            peer.state.send_replace(State::Up(link.clone()));
        }
    }
}

const _: () = assert!(bounds::CONNECTION_IDLE.as_millis() > PING_EVERY.as_millis() * 3);
