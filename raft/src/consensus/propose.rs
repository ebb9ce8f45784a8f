//! Proposals of this node: numbered, batched, sent to the leader, repeated until there is an answer.
//!
//! A repeated command has the same (session, sequence), for which the state machine remembers the reply:
//! it takes effect once, however often it is sent.

use crate::consensus::follower::Follower;
use crate::consensus::store::Store;
use crate::consensus::types::Batch;
use hfcache_base::limits::{OPERATION_DEADLINE, PROPOSAL_BATCH_MAX, PROPOSALS_IN_FLIGHT_MAX};
use hfcache_base::meta::{Command, Op, Piece, Reply};
use hfcache_base::seam::{Clock, Moment};
use hfcache_base::{Error, Kind, Result, SessionId};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

/// Batches on their way at once. While all are, the next one grows.
const BATCHES_IN_FLIGHT: usize = 8;
/// Bytes of commands in one batch, as far as they can be guessed.
const BATCH_BYTES: usize = 1 << 20;
/// No node runs for so long.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 86_400);

struct Proposal {
    command: Command,
    until: Moment,
    reply: oneshot::Sender<Result<Reply>>,
    _room: OwnedSemaphorePermit,
}

/// Sequence numbers of a session.
#[derive(Default)]
struct Sequences {
    last: u64,
    outstanding: BTreeSet<u64>,
}

impl Sequences {
    fn next(&mut self) -> u64 {
        self.last += 1;
        self.outstanding.insert(self.last);
        self.last
    }

    /// All replies below this have arrived.
    fn acknowledged(&self) -> u64 {
        self.outstanding.first().copied().unwrap_or(self.last + 1)
    }
}

/// See the module.
pub struct Proposer {
    follower: Arc<Follower>,
    store: Arc<Store>,
    clock: Arc<dyn Clock>,
    sequences: Mutex<Sequences>,
    room: Arc<Semaphore>,
    queue: mpsc::Sender<Proposal>,
}

impl Proposer {
    /// A proposer and the queue that [`Proposer::run`] serves.
    pub fn new(
        follower: Arc<Follower>,
        store: Arc<Store>,
        clock: Arc<dyn Clock>,
    ) -> (Arc<Self>, ProposalQueue) {
        let (queue, proposals) = mpsc::channel(PROPOSALS_IN_FLIGHT_MAX);
        let room = Arc::new(Semaphore::new(PROPOSALS_IN_FLIGHT_MAX));
        let proposer = Self { follower, store, clock, sequences: Mutex::default(), room, queue };
        (Arc::new(proposer), ProposalQueue(proposals))
    }

    /// Proposes an operation of this node's session and waits until it is applied here.
    ///
    /// # Errors
    /// The state machine's answer; [`Kind::TimedOut`]; [`Kind::Fenced`].
    pub async fn commit(&self, op: Op) -> Result<Reply> {
        self.commit_until(op, self.clock.now().after(OPERATION_DEADLINE)).await
    }

    /// As [`Proposer::commit`], but repeats the command until there is an answer or the session is lost:
    /// for operations whose fate must be known.
    ///
    /// # Errors
    /// The state machine's answer; [`Kind::Fenced`].
    pub async fn commit_patiently(&self, op: Op) -> Result<Reply> {
        self.commit_until(op, self.clock.now().after(FOREVER)).await
    }

    async fn commit_until(&self, op: Op, until: Moment) -> Result<Reply> {
        let room = self.room.clone().acquire_owned().await.map_err(|_| Error::from(Kind::Canceled))?;
        let session = self.follower.live_session()?;
        let (reply, answer) = oneshot::channel();
        let now = self.clock.wall();
        {
            // Numbered and queued in one step: a dropped call leaves no number without a proposal.
            let mut sequences = self.sequences.lock();
            let sequence = sequences.next();
            let command = Command { session, sequence, acknowledged: 0, now, op };
            let proposal = Proposal { command, until, reply, _room: room };
            if self.queue.try_send(proposal).is_err() {
                sequences.outstanding.remove(&sequence);
                return Err(Error::new(Kind::Canceled, "node is shutting down"));
            }
        }
        // It may share a batch with one that is repeated for longer.
        let left = until.since(self.clock.now());
        tokio::select! {
            answer = answer => answer.map_err(|_| Error::new(Kind::Canceled, "node is shutting down"))?,
            () = self.clock.sleep(left.min(FOREVER)) => Err(Error::new(Kind::TimedOut, "no quorum answers")),
        }
    }

    /// Proposes an operation of the cluster itself, which may take effect more than once.
    ///
    /// # Errors
    /// As [`Proposer::commit`].
    pub async fn commit_for_cluster(&self, op: Op) -> Result<Reply> {
        let until = self.clock.now().after(OPERATION_DEADLINE);
        let now = self.clock.wall();
        let command = Command { session: SessionId(0), sequence: 0, acknowledged: 0, now, op };
        let replies = self.send(&Batch::new(vec![command]), until).await?;
        match replies.into_iter().next() {
            Some(reply) => reply.map_err(Error::from),
            None => Err(Error::new(Kind::Internal, "a proposal without an answer")),
        }
    }

    /// Repeats until there is an answer and it is applied here.
    async fn send(&self, batch: &Batch, until: Moment) -> Result<Vec<Result<Reply, Kind>>> {
        let mut tries = 0;
        let mut session = self.follower.session();
        // The cluster's own operations go on while this node's session ends, until the node does.
        let own = batch.0.first().is_some_and(|c| c.session != SessionId(0));
        loop {
            let left = until.since(self.clock.now());
            if left.is_zero() {
                return Err(Error::new(Kind::TimedOut, "no quorum answers"));
            }
            let once = async {
                let proposed = self.follower.propose_once(batch).await?;
                if proposed.replies.0.len() != batch.0.len() {
                    return Err(Error::new(Kind::Protocol, "another number of answers than proposals"));
                }
                // It was answered because it is.
                self.store.settling().settle(proposed.index);
                self.store.wait_applied(proposed.index).await;
                Ok(proposed.replies.0)
            };
            let done = tokio::select! {
                done = once => done,
                () = self.clock.sleep(left.min(OPERATION_DEADLINE)) => Err(Kind::TimedOut.into()),
                _ = session.wait_for(|s| s.lost && (own || s.closing)) => {
                    return Err(Error::new(Kind::Fenced, "this node's session has ended"));
                }
            };
            match done {
                Ok(replies) => return Ok(replies),
                // Said before anything was appended, and would be said again.
                Err(e) if matches!(e.kind(), Kind::Unauthorized | Kind::Protocol | Kind::Version) => {
                    return Err(e);
                }
                Err(e) => tracing::debug!(error = %e, tries, "propose"),
            }
            self.follower.pause(tries).await;
            tries += 1;
        }
    }

    /// Sends what is proposed, for ever.
    pub async fn run(self: Arc<Self>, queue: ProposalQueue) {
        let mut queue = queue.0;
        let slots = Arc::new(Semaphore::new(BATCHES_IN_FLIGHT));
        let mut left_over: Option<Proposal> = None;
        loop {
            let first = match left_over.take() {
                Some(proposal) => proposal,
                None => match queue.recv().await {
                    Some(proposal) => proposal,
                    None => return,
                },
            };
            let Ok(slot) = slots.clone().acquire_owned().await else { return };
            let mut bytes = weight(&first.command.op);
            let mut proposals = vec![first];
            while proposals.len() < PROPOSAL_BATCH_MAX
                && let Ok(more) = queue.try_recv()
            {
                bytes += weight(&more.command.op);
                if bytes > BATCH_BYTES {
                    left_over = Some(more);
                    break;
                }
                proposals.push(more);
            }
            let this = self.clone();
            tokio::spawn(async move {
                this.send_all(proposals).await;
                drop(slot);
            });
        }
    }

    async fn send_all(&self, proposals: Vec<Proposal>) {
        let acknowledged = self.sequences.lock().acknowledged();
        let until = proposals.iter().map(|p| p.until).max().unwrap_or_default();
        let mut commands = Vec::with_capacity(proposals.len());
        let mut waiting = Vec::with_capacity(proposals.len());
        for mut proposal in proposals {
            proposal.command.acknowledged = acknowledged;
            waiting.push((proposal.command.sequence, proposal.reply, proposal._room));
            commands.push(proposal.command);
        }
        let outcome = self.send(&Batch::new(commands), until).await;
        {
            let mut sequences = self.sequences.lock();
            for (sequence, ..) in &waiting {
                sequences.outstanding.remove(sequence);
            }
        }
        match outcome {
            Ok(replies) => {
                for ((_, waiter, _room), reply) in waiting.into_iter().zip(replies) {
                    if reply == Err(Kind::Fenced) {
                        self.follower.session_lost();
                    }
                    let _gone = waiter.send(reply.map_err(Error::from));
                }
            }
            Err(e) => {
                for (_, waiter, _room) in waiting {
                    let _gone = waiter.send(Err(Error::new(e.kind(), e.to_string())));
                }
            }
        }
    }
}

/// Proposals that wait for [`Proposer::run`].
pub struct ProposalQueue(mpsc::Receiver<Proposal>);

/// About how many bytes an operation has in the log.
fn weight(op: &Op) -> usize {
    let inside = match op {
        Op::Commit { pieces, .. } | Op::Append { pieces, .. } => pieces
            .iter()
            .map(|piece| match piece {
                Piece::Inline(bytes) => bytes.len(),
                Piece::Chunk(_) | Piece::Hole { .. } => 40,
            })
            .sum(),
        Op::RaiseParity { chunks, .. } => chunks.len() * 9,
        Op::Touch(reads) => reads.len() * 18,
        Op::CloseSessions(sessions) => sessions.len() * 9,
        Op::ReturnDelegation { held, .. } => held.len() * 40,
        Op::SetXattr { name, value, .. } => name.len() + value.len(),
        _ => 600,
    };
    64 + inside
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numbers_below_every_outstanding_one_are_acknowledged() {
        let mut sequences = Sequences::default();
        assert_eq!(sequences.acknowledged(), 1);
        let (one, two, three) = (sequences.next(), sequences.next(), sequences.next());
        assert_eq!((one, two, three), (1, 2, 3));
        sequences.outstanding.remove(&two);
        assert_eq!(sequences.acknowledged(), 1);
        sequences.outstanding.remove(&one);
        assert_eq!(sequences.acknowledged(), 3);
        sequences.outstanding.remove(&three);
        assert_eq!(sequences.acknowledged(), 4);
    }
}
