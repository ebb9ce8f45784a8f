//! Calls over QUIC: one bidirectional stream each, a frame there and a frame back.
//!
//! A caller that gives up resets its side and stops the other; the server sees that and drops the handler.

use crate::bounds;
use crate::frame::{FRAME_LEN, Frame, Type, decode_error, encode_error};
use crate::quic::code;
use crate::shared::Shared;
use crate::stats::add;
use bytes::Bytes;
use hfcache_base::limits::{BULK_FROM, CALL_BODY_MAX, CALL_HEAD_MAX};
use hfcache_base::seam::{Answer, ServiceId};
use hfcache_base::{Error, Kind, NodeId, Result};
use quinn::{Connection, ReadExactError, RecvStream, SendStream, WriteError};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// A stream that is reset when it is dropped before its end.
struct Stream {
    send: SendStream,
    recv: RecvStream,
    done: bool,
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !self.done {
            // An error here means that the stream is closed already.
            let _ = self.send.reset(code::CANCELED);
            let _ = self.recv.stop(code::CANCELED);
        }
    }
}

/// The connection broke: the call may or may not have been served.
pub(crate) fn lost(e: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(Kind::Unavailable, "connection lost").with_source(e)
}

async fn read_frame(recv: &mut RecvStream) -> Result<Frame> {
    let mut bytes = [0; FRAME_LEN];
    recv.read_exact(&mut bytes).await.map_err(|e| match e {
        ReadExactError::FinishedEarly(0) => Error::new(Kind::Unavailable, "the other side gave no answer"),
        ReadExactError::FinishedEarly(_) => Error::new(Kind::Protocol, "the frame is cut short"),
        ReadExactError::ReadError(e) => lost(e),
    })?;
    Frame::decode(&bytes)
}

async fn read_part(recv: &mut RecvStream, len: usize) -> Result<Bytes> {
    let mut whole: Vec<u8> = Vec::new();
    while whole.len() < len {
        let chunk = recv.read_chunk(len - whole.len(), true).await.map_err(lost)?;
        let chunk = chunk.ok_or_else(|| Error::new(Kind::Protocol, "the frame is cut short"))?.bytes;
        if whole.is_empty() {
            if chunk.len() == len {
                return Ok(chunk);
            }
            whole.reserve_exact(len);
        }
        whole.extend_from_slice(&chunk);
    }
    Ok(whole.into())
}

/// The stream ends here. Reading the end also spares a packet that would tell the other side to stop.
async fn read_end(recv: &mut RecvStream) -> Result<()> {
    match recv.read_chunk(1, true).await.map_err(lost)? {
        None => Ok(()),
        Some(_) => Err(Error::new(Kind::Protocol, "bytes after the frame")),
    }
}

async fn write(send: &mut SendStream, frame: Frame, head: Bytes, body: Vec<Bytes>) -> Result<(), WriteError> {
    let mut parts = Vec::with_capacity(2 + body.len());
    parts.push(Bytes::copy_from_slice(&frame.encode()));
    parts.push(head);
    parts.extend(body);
    send.write_all_chunks(&mut parts).await?;
    // Fails only on a stream that is reset, which the reader will see.
    let _ = send.finish();
    Ok(())
}

/// A request of any type, and its answer.
pub(crate) async fn exchange(
    connection: &Connection,
    kind: Type,
    deadline: Duration,
    head: Bytes,
    body: Vec<Bytes>,
) -> Result<Answer> {
    let (send, recv) = connection.open_bi().await.map_err(lost)?;
    let mut stream = Stream { send, recv, done: false };
    let body_len = body.iter().map(Bytes::len).sum();
    if body_len >= BULK_FROM {
        // Pings and Raft must not wait behind it.
        let _ = stream.send.set_priority(-1);
    }
    let frame = Frame { kind, deadline, head: head.len(), body: body_len };
    match write(&mut stream.send, frame, head, body).await {
        // Stopped: the answer is there before the request was read to its end.
        Ok(()) | Err(WriteError::Stopped(_)) => {}
        Err(e) => return Err(lost(e)),
    }
    let frame = read_frame(&mut stream.recv).await?;
    let head = read_part(&mut stream.recv, frame.head).await?;
    match frame.kind {
        Type::Done => {
            let body = read_part(&mut stream.recv, frame.body).await?;
            read_end(&mut stream.recv).await?;
            stream.done = true;
            Ok(Answer { head, body })
        }
        Type::Failed => {
            read_end(&mut stream.recv).await?;
            stream.done = true;
            Err(decode_error(&head))
        }
        other => Err(Error::new(Kind::Protocol, format!("{other:?} is no answer"))),
    }
}

/// Asks for a sign of life.
pub(crate) async fn ping(connection: &Connection) -> Result<()> {
    exchange(connection, Type::Ping, Duration::ZERO, Bytes::new(), Vec::new()).await.map(drop)
}

/// Answers one stream of a member.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    from: NodeId,
    calls: Arc<Semaphore>,
    (send, recv): (SendStream, RecvStream),
) {
    let mut stream = Stream { send, recv, done: false };
    let answer = match read_frame(&mut stream.recv).await {
        Ok(Frame { kind: Type::Ping, .. }) => Some(Ok(Answer::default())),
        Ok(frame @ Frame { kind: Type::Call(service), .. }) => {
            serve_call(&shared, from, &calls, service, frame, &mut stream).await
        }
        Ok(_) => Some(Err(Error::new(Kind::Protocol, "members make calls"))),
        Err(e) if e.kind() == Kind::Unavailable => return,
        Err(e) => {
            add(&shared.counters.refused, 1);
            Some(Err(e))
        }
    };
    let Some(answer) = answer else { return };
    if let Ok(answer) = &answer {
        add(&shared.counters.stream_bytes_sent, answer.body.len());
    }
    respond(stream, answer).await;
}

/// `None` when the caller gave up.
async fn serve_call(
    shared: &Shared,
    from: NodeId,
    calls: &Semaphore,
    service: ServiceId,
    frame: Frame,
    stream: &mut Stream,
) -> Option<Result<Answer>> {
    let work = async {
        let _permit = calls.acquire().await.map_err(|_| Error::from(Kind::Unavailable))?;
        let head = read_part(&mut stream.recv, frame.head).await?;
        let _room = shared.room_for(frame.body).await?;
        let body = read_part(&mut stream.recv, frame.body).await?;
        read_end(&mut stream.recv).await?;
        add(&shared.counters.stream_bytes_received, body.len());
        shared.dispatch(from, service, frame.deadline, head, body).await
    };
    tokio::select! {
        biased;
        answer = work => Some(answer),
        _ = stream.send.stopped() => {
            add(&shared.counters.calls_canceled, 1);
            None
        }
    }
}

/// Checks that an answer may be sent.
pub(crate) fn check_answer(answer: Answer) -> Result<Answer> {
    if answer.head.len() > CALL_HEAD_MAX || answer.body.len() > CALL_BODY_MAX {
        return Err(Error::new(Kind::Protocol, "the answer is too large to be sent"));
    }
    Ok(answer)
}

async fn respond(mut stream: Stream, answer: Result<Answer>) {
    let (kind, head, body) = match answer.and_then(check_answer) {
        Ok(answer) => (Type::Done, answer.head, answer.body),
        Err(e) => (Type::Failed, encode_error(&e).into(), Bytes::new()),
    };
    if body.len() >= BULK_FROM {
        let _ = stream.send.set_priority(-1);
    }
    let frame = Frame { kind, deadline: Duration::ZERO, head: head.len(), body: body.len() };
    if write(&mut stream.send, frame, head, vec![body]).await.is_ok() {
        // What was not read of the request is not wanted any more.
        let _ = stream.recv.stop(code::CANCELED);
        stream.done = true;
    }
}

/// Answers the one request that an anonymous client may make.
pub(crate) async fn serve_stranger(
    shared: Arc<Shared>,
    (send, recv): (SendStream, RecvStream),
    at: std::net::IpAddr,
) {
    let mut stream = Stream { send, recv, done: false };
    let answer = async {
        let frame = read_frame(&mut stream.recv).await?;
        if frame.kind != Type::Join || frame.head > bounds::JOIN_REQUEST_MAX {
            add(&shared.counters.refused, 1);
            return Err(Error::new(Kind::Unauthorized, "a client without a certificate may only join"));
        }
        let head = read_part(&mut stream.recv, frame.head).await?;
        read_end(&mut stream.recv).await?;
        let grant = crate::join::serve(&shared, &head, at).await?;
        Ok(Answer { head: grant.into(), body: Bytes::new() })
    }
    .await;
    respond(stream, answer).await;
}
