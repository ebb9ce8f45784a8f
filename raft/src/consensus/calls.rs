//! What nodes ask of the leader, and what it answers.
//!
//! A call's head is `wire::encode(MetaCall)`; the answer's head is `wire::encode` of that call's answer.

use crate::consensus::types::{Batch, Replies};
use hfcache_base::SessionId;
use serde::{Deserialize, Serialize};

/// A question to the leader. Grows at the end only.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum MetaCall {
    /// Appends these commands as one entry; answered with [`Proposed`] when everyone who may read alone
    /// has applied them.
    Propose(Batch),
    /// Answered with an index: a state that holds everything up to it holds all that was answered before
    /// the question.
    ReadIndex,
    /// Keeps the session alive and asks for a read lease; answered with [`Renewed`].
    Renew {
        /// The asking node's session.
        session: Option<SessionId>,
        /// What it has applied.
        applied: u64,
    },
    /// The asking node has applied up to here. Answered with nothing.
    Applied(u64),
    /// The asking node reads nothing alone any more. Answered with nothing.
    GiveBack,
    /// Answered with the greatest index that is settled: everyone who may read alone has applied it. The answer
    /// waits until that is at least `index`, or a moment if it does not come to that.
    Settled {
        /// What the asking node waits for.
        index: u64,
        /// What it has applied.
        applied: u64,
    },
}

/// What became of proposed commands.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Proposed {
    /// Where they are in the log.
    pub index: u64,
    /// Their answers.
    pub replies: Replies,
}

/// What became of a renewal.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Renewed {
    /// A read lease was granted; it may be used once this index is applied.
    pub lease: Option<u64>,
    /// The session is alive. `false` is for ever.
    pub session: bool,
}
