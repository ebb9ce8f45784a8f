//! The network between members: calls with a deadline, answered by services. The caller names a member,
//! never an address; who the caller is comes from its certificate, never from its words.

use crate::{NodeId, Result};
use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

/// Who answers a call on the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ServiceId {
    /// openraft's own messages.
    Raft,
    /// The namespace: forwarded proposals, read-index, leases, applied reports.
    Meta,
    /// Shards.
    Shards,
    /// Facts for `status`.
    Status,
    /// Locks that go from node to node.
    Locks,
}

/// A request.
#[derive(Clone, Debug)]
pub struct Call {
    /// Who answers.
    pub service: ServiceId,
    /// The encoded request, at most [`crate::limits::CALL_HEAD_MAX`].
    pub head: Bytes,
    /// Raw bytes that go with it, in pieces that are sent one after the other; together at most
    /// [`crate::limits::CALL_BODY_MAX`].
    pub body: Vec<Bytes>,
    /// An answer with a body of at least [`crate::limits::BULK_FROM`] is expected, so the bulk lane is
    /// the better way even though the request is small.
    pub bulk_answer: bool,
}

impl Call {
    /// A call without a body.
    pub fn new(service: ServiceId, head: Vec<u8>) -> Self {
        Self { service, head: head.into(), body: Vec::new(), bulk_answer: false }
    }

    /// Bytes of the body.
    pub fn body_len(&self) -> usize {
        self.body.iter().map(Bytes::len).sum()
    }
}

/// An answer.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// The encoded answer.
    pub head: Bytes,
    /// Raw bytes that go with it.
    pub body: Bytes,
}

/// What this node last saw of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Answered within [`crate::limits::SUSPECT_AFTER`].
    Up,
    /// Silent for longer: ask it last.
    Suspect,
    /// Never seen.
    Unknown,
}

/// The side that answers.
#[async_trait]
pub trait Service: Send + Sync + 'static {
    /// Answers one call of `from`. The call's body arrives as one piece. Dropped when the caller gives up.
    ///
    /// # Errors
    /// Sent back to the caller with kind and message.
    async fn serve(&self, from: NodeId, head: Bytes, body: Bytes) -> Result<Answer>;
}

/// See the module.
#[async_trait]
pub trait Net: Send + Sync + 'static {
    /// This node.
    fn me(&self) -> NodeId;
    /// Calls a member and waits for its answer, at most `deadline`. A call to this node itself is served
    /// without the network. The future may be dropped: the call is then cancelled.
    ///
    /// # Errors
    /// [`crate::Kind::TimedOut`] or [`crate::Kind::Unavailable`] when no answer came (it may or may not
    /// have been served), else what the service said.
    async fn call(&self, to: NodeId, call: Call, deadline: Duration) -> Result<Answer>;
    /// Says who answers calls to a service from now on.
    fn serve(&self, service: ServiceId, by: Arc<dyn Service>);
    /// What was last seen of a member.
    fn health(&self, node: NodeId) -> Health;
    /// Tells where members are, from the cluster map. Members that are not named are forgotten and their
    /// connections closed.
    fn set_members(&self, members: Vec<(NodeId, std::net::SocketAddr)>);
}
