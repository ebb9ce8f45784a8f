//! The answering side of the bulk lane.

use super::lane::Lane;
use super::{HELLO, MAGIC, NONCE, WELCOME, lane_keys};
use crate::bounds::{BULK_GREETING, BULK_SERVED_MAX, BULK_STRANGERS_MAX};
use crate::frame::{Frame, Type, encode_error};
use crate::random;
use crate::rpc::check_answer;
use crate::shared::{SessionKey, Shared};
use crate::stats::add;
use bytes::Bytes;
use hfcache_base::seam::{Answer, ServiceId};
use hfcache_base::{Error, Kind, NodeId, Result};
use quinn::Connection;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

/// Accepts until the task is aborted.
pub(crate) async fn accept(shared: Arc<Shared>, listener: TcpListener) {
    let strangers = Arc::new(Semaphore::new(BULK_STRANGERS_MAX));
    let mut lanes = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = lanes.join_next() => continue,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(e) => {
                // Out of descriptors, most likely: going on at once would only burn CPU.
                warn!(op = "bulk_accept", error = %e, "accept bulk connection");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let permit = strangers.clone().try_acquire_owned().ok().filter(|_| lanes.len() < BULK_SERVED_MAX);
        let Some(permit) = permit else {
            add(&shared.counters.refused, 1);
            continue;
        };
        let shared = shared.clone();
        lanes.spawn(async move {
            let greeted = timeout(BULK_GREETING, greet(&shared, stream)).await;
            drop(permit);
            match greeted.unwrap_or_else(|_| Err(Error::from(Kind::TimedOut))) {
                Ok(member) => serve(&shared, member).await,
                Err(e) => {
                    add(&shared.counters.refused, 1);
                    debug!(op = "bulk_accept", %from, error = %e, "refuse bulk connection");
                }
            }
        });
    }
}

struct Member {
    node: NodeId,
    connection: Connection,
    calls: Arc<Semaphore>,
    lane: Lane,
}

async fn greet(shared: &Shared, mut stream: TcpStream) -> Result<Member> {
    stream.set_nodelay(true).map_err(Error::io)?;
    let mut hello = [0; HELLO];
    stream.read_exact(&mut hello).await.map_err(Error::io)?;
    if &hello[..4] != MAGIC {
        return Err(Error::new(Kind::Protocol, "not a node"));
    }
    let mut key = SessionKey::default();
    key.copy_from_slice(&hello[4..20]);
    let session = shared.session(&key);
    let (node, connection, calls) =
        session.ok_or_else(|| Error::new(Kind::Unauthorized, "no QUIC connection of this name"))?;
    let mut nonces = [0; 2 * NONCE];
    nonces[..NONCE].copy_from_slice(&hello[20..]);
    nonces[NONCE..].copy_from_slice(&random::<NONCE>()?);
    let mut welcome = [0; WELCOME];
    welcome[..4].copy_from_slice(MAGIC);
    welcome[4..].copy_from_slice(&nonces[NONCE..]);
    stream.write_all(&welcome).await.map_err(Error::io)?;
    let (open, seal) = lane_keys(&connection, &nonces)?;
    Ok(Member { node, connection, calls, lane: Lane::new(stream, &seal, &open)? })
}

async fn serve(shared: &Shared, mut member: Member) {
    let connection = member.connection.clone();
    let node = member.node;
    let work = async {
        loop {
            serve_one(shared, &mut member).await?;
        }
    };
    let ended: Result<()> = tokio::select! {
        ended = work => ended,
        _ = connection.closed() => return,
    };
    match ended {
        Err(e) if e.kind() == Kind::Unavailable => {}
        Err(e) => debug!(op = "bulk_serve", %node, error = %e, "end bulk connection"),
        Ok(()) => {}
    }
}

async fn serve_one(shared: &Shared, member: &mut Member) -> Result<()> {
    let Member { node, calls, lane, .. } = member;
    let (frame, head) = lane.receive_head().await?;
    let Type::Call(service) = frame.kind else {
        return Err(Error::new(Kind::Protocol, "only calls take the bulk lane"));
    };
    let answer = answer(shared, *node, calls, lane, frame, service, head).await?;
    let (kind, head, body) = match answer.and_then(check_answer) {
        Ok(answer) => (Type::Done, answer.head, answer.body),
        Err(e) => (Type::Failed, encode_error(&e).into(), Bytes::new()),
    };
    let frame = Frame { kind, deadline: Duration::ZERO, head: head.len(), body: body.len() };
    lane.send(frame, &head, &[body]).await?;
    add(&shared.counters.bulk_bytes_sent, frame.body);
    Ok(())
}

/// The outer error ends the lane, the inner one is the answer.
async fn answer(
    shared: &Shared,
    node: NodeId,
    calls: &Semaphore,
    lane: &mut Lane,
    frame: Frame,
    service: ServiceId,
    head: Bytes,
) -> Result<Result<Answer>> {
    let _permit = calls.acquire().await.map_err(|_| Error::from(Kind::Unavailable))?;
    let _room = shared.room_for(frame.body).await?;
    let body = lane.receive_body(frame.body, &shared.buffers).await?;
    add(&shared.counters.bulk_bytes_received, body.len());
    tokio::select! {
        biased;
        answer = shared.dispatch(node, service, frame.deadline, head, body) => Ok(answer),
        () = lane.disturbed() => {
            add(&shared.counters.calls_canceled, 1);
            Err(Error::new(Kind::Unavailable, "the caller is gone"))
        }
    }
}
