//! Raft's own messages over the network seam.
//!
//! A call's head is `wire::encode(RaftCall)`; the answer's head is `wire::encode` of that call's answer.
//! Pieces of a snapshot travel as bodies.

use crate::consensus::machine::{Machine, StateSnapshot};
use crate::consensus::snapshot::{self, Image, TempFile};
use crate::consensus::types::{SnapshotMeta, Types, Vote};
use async_trait::async_trait;
use bytes::Bytes;
use hfcache_base::limits::{CALL_DEADLINE, MIB};
use hfcache_base::seam::{Answer, Call, Clock, Moment, Net, Service, ServiceId};
use hfcache_base::{Error, Kind, NodeId, Result, wire};
use openraft::error::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{RPCOption, RPCTypes, RaftNetworkFactory, v2::RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, Raft};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::future::Future;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;

/// The Raft node as it is used here.
pub type Node = Raft<Types, Machine>;

/// Bytes of a snapshot in one call.
const PIECE: usize = MIB as usize;
/// How long entries may take to reach a disk on the other side before they are sent again.
const APPEND_DEADLINE: Duration = Duration::from_secs(2);
/// How long the receiver works on a complete snapshot before it answers "not yet".
const INSTALL_POLL: Duration = Duration::from_secs(2);

/// A message of one Raft node to another. Grows at the end only.
#[derive(Serialize, Deserialize)]
enum RaftCall {
    Append(AppendEntriesRequest<Types>),
    Vote(VoteRequest<Types>),
    PreVote(VoteRequest<Types>),
    Transfer(TransferLeaderRequest<Types>),
    /// A snapshot of `len` bytes follows.
    SnapshotStart {
        id: u64,
        vote: Vote,
        meta: SnapshotMeta,
        len: u64,
    },
    /// The body belongs at this offset.
    SnapshotPiece {
        id: u64,
        offset: u64,
    },
    /// Everything was sent. Answered with `None` while it is being installed: ask again.
    SnapshotEnd {
        id: u64,
    },
}

/// Makes senders.
pub struct Network {
    me: NodeId,
    net: Arc<dyn Net>,
    /// Where snapshots are written before they are sent.
    dir: PathBuf,
}

impl Network {
    /// A network for node `me` with a directory for snapshots.
    pub fn new(me: NodeId, net: Arc<dyn Net>, dir: PathBuf) -> Self {
        Self { me, net, dir }
    }

    fn sender(&self, to: u64, patient: bool) -> Sender {
        Sender { me: self.me, to: NodeId(to), net: self.net.clone(), dir: self.dir.clone(), patient }
    }
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Sender;

    async fn new_client(&mut self, to: u64, _: &openraft::EmptyNode) -> Sender {
        self.sender(to, true)
    }

    async fn new_heartbeat_client(&mut self, to: u64, _: &openraft::EmptyNode) -> Sender {
        self.sender(to, false)
    }
}

/// Sends to one node.
pub struct Sender {
    me: NodeId,
    to: NodeId,
    net: Arc<dyn Net>,
    dir: PathBuf,
    /// Carries entries, which may wait for a disk; else a sign of life, which may not.
    patient: bool,
}

static NEXT_SNAPSHOT: AtomicU64 = AtomicU64::new(1);

impl Sender {
    async fn call<T: DeserializeOwned>(
        &self,
        call: &RaftCall,
        body: Vec<Bytes>,
        deadline: Duration,
    ) -> Result<T> {
        let call = Call { body, ..Call::new(ServiceId::Raft, wire::encode(call)) };
        let answer = self.net.call(self.to, call, deadline).await?;
        wire::decode(&answer.head)
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        call: RaftCall,
        deadline: Duration,
    ) -> Result<T, RPCError<Types>> {
        self.call(&call, Vec::new(), deadline).await.map_err(|e| self.rpc_error(&e, deadline))
    }

    fn rpc_error(&self, e: &Error, timeout: Duration) -> RPCError<Types> {
        match e.kind() {
            Kind::TimedOut => RPCError::Timeout(Timeout {
                action: RPCTypes::AppendEntries,
                id: self.me.0,
                target: self.to.0,
                timeout,
            }),
            Kind::Unavailable | Kind::NotFound => RPCError::Unreachable(Unreachable::new(e)),
            _ => RPCError::Network(NetworkError::new(e)),
        }
    }

    async fn send_snapshot(
        &self,
        vote: Vote,
        snapshot: StateSnapshot,
    ) -> Result<SnapshotResponse<Types>, Error> {
        let id = NEXT_SNAPSHOT.fetch_add(1, Ordering::Relaxed);
        let meta = snapshot.meta;
        let Image::Live(reader) = snapshot.snapshot else {
            return Err(crate::consensus::machine::no_image());
        };
        let file = TempFile::new(self.dir.join(format!("out-{}-{id}", self.to.0)));
        let (path, head) = (file.path().to_owned(), meta.clone());
        let len = blocking(move || snapshot::write_file(&reader, &head, &path)).await?;
        tracing::info!(to = %self.to, bytes = len, at = ?meta.last_log_id, "send snapshot");
        self.call::<()>(&RaftCall::SnapshotStart { id, vote, meta, len }, Vec::new(), CALL_DEADLINE).await?;
        let mut input = File::open(file.path()).map_err(Error::io)?;
        let mut offset = 0;
        while offset < len {
            let size = (len - offset).min(PIECE as u64) as usize;
            let (back, piece) = blocking(move || {
                let mut piece = vec![0; size];
                input.read_exact(&mut piece).map_err(Error::io)?;
                Ok((input, piece))
            })
            .await?;
            input = back;
            let call = RaftCall::SnapshotPiece { id, offset };
            self.call::<()>(&call, vec![piece.into()], CALL_DEADLINE).await?;
            offset += size as u64;
        }
        loop {
            let answer: Option<SnapshotResponse<Types>> =
                self.call(&RaftCall::SnapshotEnd { id }, Vec::new(), CALL_DEADLINE).await?;
            if let Some(answer) = answer {
                return Ok(answer);
            }
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Error::new(Kind::Internal, "work on snapshot").with_source(e))?
}

impl RaftNetworkV2<Types> for Sender {
    type SnapshotData = Image;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        let deadline = if self.patient { APPEND_DEADLINE } else { option.hard_ttl() };
        self.ask(RaftCall::Append(rpc), deadline).await
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.ask(RaftCall::Vote(rpc), option.hard_ttl()).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.ask(RaftCall::PreVote(rpc), option.hard_ttl()).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: StateSnapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = self.send_snapshot(vote, snapshot) => sent.map_err(|e| {
                tracing::warn!(to = %self.to, error = %e, "send snapshot");
                // Always with a pause before the next try: a snapshot is expensive.
                StreamingError::Unreachable(Unreachable::new(&e))
            }),
        }
    }

    async fn transfer_leader(
        &mut self,
        rpc: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        self.ask(RaftCall::Transfer(rpc), option.hard_ttl()).await
    }
}

type Installed = watch::Receiver<Option<Result<SnapshotResponse<Types>, String>>>;

/// A snapshot on its way in.
struct Incoming {
    from: NodeId,
    id: u64,
    vote: Vote,
    meta: SnapshotMeta,
    len: u64,
    arrived: u64,
    /// Taken while a piece is written, and when all is there.
    file: Option<(File, TempFile)>,
    installing: Option<Installed>,
}

/// Answers Raft's messages.
pub struct Receiver {
    raft: Node,
    dir: PathBuf,
    clock: Arc<dyn Clock>,
    /// This node may have promised its vote to a leader before it restarted: until then it keeps still.
    silent_until: Moment,
    incoming: Mutex<Option<Incoming>>,
}

impl Receiver {
    /// The receiving side of a node.
    pub fn new(raft: Node, dir: PathBuf, clock: Arc<dyn Clock>, silent_until: Moment) -> Self {
        Self { raft, dir, clock, silent_until, incoming: Mutex::new(None) }
    }

    fn may_vote(&self) -> Result<()> {
        if self.clock.now() < self.silent_until {
            return Err(Error::new(Kind::Unavailable, "restarted a moment ago: may have promised its vote"));
        }
        Ok(())
    }

    async fn start(&self, incoming: Incoming, path: PathBuf) -> Result<()> {
        let mut incoming = incoming;
        let file = blocking(move || {
            let file = File::create(&path).map_err(|e| Error::io(e).context("make snapshot file"))?;
            Ok((file, TempFile::new(path)))
        })
        .await?;
        incoming.file = Some(file);
        // An earlier transfer that was given up goes away with its file.
        *self.incoming.lock() = Some(incoming);
        Ok(())
    }

    async fn piece(&self, from: NodeId, id: u64, offset: u64, body: Bytes) -> Result<()> {
        let (mut file, temp) = {
            let mut slot = self.incoming.lock();
            let incoming = expected(&mut slot, from, id)?;
            if offset != incoming.arrived || offset + body.len() as u64 > incoming.len {
                return Err(Error::new(Kind::Protocol, "piece of a snapshot out of place"));
            }
            incoming
                .file
                .take()
                .ok_or_else(|| Error::new(Kind::Protocol, "two pieces of a snapshot at once"))?
        };
        let len = body.len() as u64;
        let back = blocking(move || {
            file.write_all(&body).map_err(|e| Error::io(e).context("write snapshot file"))?;
            Ok((file, temp))
        })
        .await?;
        let mut slot = self.incoming.lock();
        let incoming = expected(&mut slot, from, id)?;
        incoming.arrived += len;
        incoming.file = Some(back);
        Ok(())
    }

    async fn end(&self, from: NodeId, id: u64) -> Result<Option<SnapshotResponse<Types>>> {
        let mut installed = {
            let mut slot = self.incoming.lock();
            let incoming = expected(&mut slot, from, id)?;
            match &incoming.installing {
                Some(running) => running.clone(),
                None => {
                    if incoming.arrived != incoming.len {
                        return Err(Error::new(Kind::Protocol, "snapshot ends too early"));
                    }
                    let (_, temp) = incoming
                        .file
                        .take()
                        .ok_or_else(|| Error::new(Kind::Protocol, "snapshot ends within a piece"))?;
                    let (done, running) = watch::channel(None);
                    incoming.installing = Some(running.clone());
                    let raft = self.raft.clone();
                    let (vote, meta) = (incoming.vote, incoming.meta.clone());
                    // In a task of its own: the caller may give up and ask again.
                    tokio::spawn(async move {
                        let snapshot = StateSnapshot { meta, snapshot: Image::File(temp) };
                        let result = raft.install_full_snapshot(vote, snapshot).await;
                        done.send_replace(Some(result.map_err(|e| e.to_string())));
                    });
                    running
                }
            }
        };
        let Ok(waited) = tokio::time::timeout(INSTALL_POLL, installed.wait_for(Option::is_some)).await else {
            return Ok(None);
        };
        let result = waited.map_err(|_| Error::new(Kind::Unavailable, "install snapshot"))?.clone();
        self.incoming.lock().take_if(|incoming| incoming.id == id);
        result.transpose().map_err(|why| Error::new(Kind::Io, why).context("install snapshot"))
    }
}

fn expected(slot: &mut Option<Incoming>, from: NodeId, id: u64) -> Result<&mut Incoming> {
    slot.as_mut()
        .filter(|incoming| incoming.from == from && incoming.id == id)
        .ok_or_else(|| Error::new(Kind::NotFound, "no such snapshot is on its way"))
}

/// A vote names its candidate or leader: nobody may speak for another.
fn check_sender(from: NodeId, vote: &Vote) -> Result<()> {
    if vote.leader_id.node_id != from.0 {
        return Err(Error::new(Kind::Unauthorized, format!("{from} speaks for n{}", vote.leader_id.node_id)));
    }
    Ok(())
}

fn answer<T: Serialize>(value: &T) -> Answer {
    Answer { head: wire::encode(value).into(), body: Bytes::new() }
}

fn raft_failed(e: impl std::fmt::Display) -> Error {
    Error::new(Kind::Unavailable, format!("Raft: {e}"))
}

#[async_trait]
impl Service for Receiver {
    async fn serve(&self, from: NodeId, head: Bytes, body: Bytes) -> Result<Answer> {
        match wire::decode::<RaftCall>(&head)? {
            RaftCall::Append(rpc) => {
                check_sender(from, &rpc.vote)?;
                Ok(answer(&self.raft.append_entries(rpc).await.map_err(raft_failed)?))
            }
            RaftCall::Vote(rpc) => {
                check_sender(from, &rpc.vote)?;
                self.may_vote()?;
                Ok(answer(&self.raft.vote(rpc).await.map_err(raft_failed)?))
            }
            RaftCall::PreVote(rpc) => {
                check_sender(from, &rpc.vote)?;
                self.may_vote()?;
                Ok(answer(&self.raft.pre_vote(rpc).await.map_err(raft_failed)?))
            }
            RaftCall::Transfer(rpc) => {
                check_sender(from, rpc.from_leader())?;
                self.may_vote()?;
                Ok(answer(&self.raft.handle_transfer_leader(rpc).await.map_err(raft_failed)?))
            }
            RaftCall::SnapshotStart { id, vote, meta, len } => {
                check_sender(from, &vote)?;
                let path = self.dir.join(format!("in-{}-{id}", from.0));
                let incoming =
                    Incoming { from, id, vote, meta, len, arrived: 0, file: None, installing: None };
                self.start(incoming, path).await?;
                Ok(answer(&()))
            }
            RaftCall::SnapshotPiece { id, offset } => {
                self.piece(from, id, offset, body).await?;
                Ok(answer(&()))
            }
            RaftCall::SnapshotEnd { id } => Ok(answer(&self.end(from, id).await?)),
        }
    }
}

/// Makes the directory for snapshots and removes what a crash left in it.
///
/// # Errors
/// Whatever the disk says.
pub fn clean_dir(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(|e| Error::io(e).context(format!("make {}", dir.display())))?;
    for entry in std::fs::read_dir(dir).map_err(Error::io)? {
        let path = entry.map_err(Error::io)?.path();
        std::fs::remove_file(&path)
            .map_err(|e| Error::io(e).context(format!("remove {}", path.display())))?;
    }
    Ok(())
}
