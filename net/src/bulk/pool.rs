//! The calling side of the bulk lane: a few connections to one peer, one call at a time on each.

use super::lane::Lane;
use super::{HELLO, MAGIC, NONCE, WELCOME, lane_keys, session_key};
use crate::bounds::{BULK_CONNECTIONS_MAX, BULK_GREETING, BULK_KEEP, BULK_RETRY};
use crate::frame::{Frame, Type, decode_error};
use crate::shared::Shared;
use crate::stats::add;
use crate::{random, rpc};
use hfcache_base::limits::CONNECT_DEADLINE;
use hfcache_base::seam::{Answer, Call};
use hfcache_base::{Error, Kind, NodeId, Result};
use parking_lot::Mutex;
use quinn::Connection;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};
use tracing::warn;

/// See the module. It lives and dies with one QUIC connection, whose keys it uses.
pub(crate) struct BulkPool {
    peer: NodeId,
    idle: Mutex<Vec<(Instant, Lane)>>,
    slots: Semaphore,
    /// TCP did not get through; only the lifeline tries it then.
    blocked: AtomicBool,
}

impl BulkPool {
    pub(crate) fn new(peer: NodeId) -> Self {
        Self {
            peer,
            idle: Mutex::default(),
            slots: Semaphore::new(BULK_CONNECTIONS_MAX),
            blocked: AtomicBool::new(false),
        }
    }

    /// Whether TCP did not get through lately.
    pub(crate) fn is_blocked(&self) -> bool {
        self.blocked.load(Ordering::Relaxed)
    }

    fn block(&self, connection: &Connection, e: &Error) {
        if connection.close_reason().is_none() && !self.blocked.swap(true, Ordering::Relaxed) {
            warn!(
                op = "bulk_connect", node = %self.peer, error = %e,
                "TCP does not reach the node; large bodies take QUIC, at more CPU. Is a firewall in the way?"
            );
        }
    }

    /// Closes connections that were idle for long.
    pub(crate) fn sweep(&self) {
        self.idle.lock().retain(|(since, _)| since.elapsed() < BULK_KEEP);
    }

    /// Holds a connection that carries nothing and returns when it breaks, as it does at once when the
    /// process of the peer dies. Where TCP does not get through it tries again now and then, so that no
    /// call has to.
    pub(crate) async fn lifeline(&self, shared: &Shared, connection: &Connection) {
        let mut held: Option<Lane> = None;
        loop {
            if held.is_none() || self.is_blocked() {
                match connect(shared, connection).await {
                    Ok(lane) => {
                        self.blocked.store(false, Ordering::Relaxed);
                        held.get_or_insert(lane);
                    }
                    Err(e) => self.block(connection, &e),
                }
            }
            match &held {
                Some(lane) => tokio::select! {
                    () = lane.disturbed() => return,
                    () = sleep(BULK_RETRY) => {}
                },
                None => sleep(BULK_RETRY).await,
            }
        }
    }

    async fn lane(&self, shared: &Shared, connection: &Connection) -> Option<Lane> {
        loop {
            let idle = self.idle.lock().pop();
            match idle {
                Some((_, lane)) if lane.is_quiet() => return Some(lane),
                Some(_) => {}
                None => break,
            }
        }
        match connect(shared, connection).await {
            Ok(lane) => Some(lane),
            Err(e) => {
                self.block(connection, &e);
                None
            }
        }
    }

    /// Makes a call.
    ///
    /// # Errors
    /// The call itself when it was not sent: it may go another way.
    pub(crate) async fn call(
        &self,
        shared: &Shared,
        connection: &Connection,
        call: Call,
        deadline: Duration,
    ) -> Result<Result<Answer>, Call> {
        if self.is_blocked() {
            return Err(call);
        }
        let Ok(_slot) = self.slots.acquire().await else { return Err(call) };
        // Whoever waited behind a peer that died must not dial it one after the other.
        let lane = tokio::select! {
            biased;
            e = connection.closed() => return Ok(Err(rpc::lost(e))),
            lane = self.lane(shared, connection) => lane,
        };
        let Some(mut lane) = lane else { return Err(call) };
        let frame =
            Frame { kind: Type::Call(call.service), deadline, head: call.head.len(), body: call.body_len() };
        let sent = tokio::select! {
            biased;
            sent = lane.send(frame, &call.head, &call.body) => sent,
            e = connection.closed() => return Ok(Err(rpc::lost(e))),
        };
        match sent {
            Ok(()) => {}
            // Its end never left, so the other side cannot have served it.
            Err(e) if e.kind() == Kind::Unavailable => return Err(call),
            Err(e) => return Ok(Err(e)),
        }
        add(&shared.counters.bulk_bytes_sent, frame.body);
        let answer = tokio::select! {
            biased;
            answer = receive(shared, &mut lane) => answer,
            e = connection.closed() => Ok(Err(rpc::lost(e))),
        };
        Ok(match answer {
            Ok(answer) => {
                self.idle.lock().push((Instant::now(), lane));
                answer
            }
            Err(e) => Err(e),
        })
    }
}

/// The outer error is of the lane, the inner one of the service.
async fn receive(shared: &Shared, lane: &mut Lane) -> Result<Result<Answer>> {
    let (frame, head) = lane.receive_head().await?;
    match frame.kind {
        Type::Done => {
            let body = lane.receive_body(frame.body, &shared.buffers).await?;
            add(&shared.counters.bulk_bytes_received, body.len());
            Ok(Ok(Answer { head, body }))
        }
        Type::Failed => Ok(Err(decode_error(&head))),
        other => Err(Error::new(Kind::Protocol, format!("{other:?} is no answer"))),
    }
}

async fn connect(shared: &Shared, connection: &Connection) -> Result<Lane> {
    let at = connection.remote_address();
    let work = async {
        let mut stream = TcpStream::connect(at).await.map_err(Error::io)?;
        stream.set_nodelay(true).map_err(Error::io)?;
        let mut nonces = [0; 2 * NONCE];
        nonces[..NONCE].copy_from_slice(&random::<NONCE>()?);
        let mut hello = [0; HELLO];
        hello[..4].copy_from_slice(MAGIC);
        hello[4..20].copy_from_slice(&session_key(connection)?);
        hello[20..].copy_from_slice(&nonces[..NONCE]);
        stream.write_all(&hello).await.map_err(Error::io)?;
        let mut welcome = [0; WELCOME];
        stream.read_exact(&mut welcome).await.map_err(Error::io)?;
        if &welcome[..4] != MAGIC {
            return Err(Error::new(Kind::Protocol, "not the bulk lane of a node"));
        }
        nonces[NONCE..].copy_from_slice(&welcome[4..]);
        let (seal, open) = lane_keys(connection, &nonces)?;
        Lane::new(stream, &seal, &open)
    };
    let lane = timeout(CONNECT_DEADLINE.min(BULK_GREETING), work).await;
    let lane = lane.unwrap_or_else(|_| Err(Error::from(Kind::TimedOut)));
    let lane = lane.map_err(|e| e.context(format!("open bulk connection to {at}")))?;
    add(&shared.counters.bulk_connections, 1);
    Ok(lane)
}
