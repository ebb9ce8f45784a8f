//! What a node says of itself to the others, for `status`. JSON, so that nodes of different versions
//! understand each other: what one does not know has its default.

use async_trait::async_trait;
use bytes::Bytes;
use hfcache_base::meta::Timestamp;
use hfcache_base::seam::{Answer, Call, Net, Service, ServiceId};
use hfcache_base::{Epoch, Error, Kind, NodeId, Result, SessionId};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Largest answer that is believed.
const FACTS_MAX: usize = 256 << 10;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeFacts {
    /// Its program.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// How long it runs.
    pub uptime_seconds: u64,
    /// Where its mount is.
    pub mount: PathBuf,
    /// Whether the mount is usable.
    pub mounted: bool,
    /// Its session, if alive.
    pub session: Option<SessionId>,
    /// Whether it may read without asking.
    pub leased: bool,
    /// Newest log index it has applied.
    pub applied: u64,
    /// Its clock when it answered.
    pub wall: Timestamp,
    /// Bytes its disks have for the cache.
    pub capacity: u64,
    /// Bytes that may still be written there.
    pub free: u64,
    /// Its shards; nothing for a node without storage.
    pub shards: Option<ShardFacts>,
}

/// What a storage node knows of the shards it should hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ShardFacts {
    /// Shards here.
    pub held: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Shards that should be here and are not yet.
    pub missing: u64,
    /// Shards that belong elsewhere and are kept until they are there.
    pub surplus: u64,
    /// Whether all chunks have been compared with all shards for the map of `epoch`, and nothing is left to do or
    /// to look at. Briefly unset while new chunks come in.
    pub checked: bool,
    /// The map that was compared with.
    pub epoch: Epoch,
    /// Damaged cells found since the start.
    pub damaged: u64,
    /// Shards fetched or rebuilt since the start.
    pub rebuilt: u64,
}

/// Tells what this node knows of itself.
pub trait Facts: Send + Sync + 'static {
    /// Now; must not block.
    fn facts(&self) -> NodeFacts;
}

/// Answers [`ServiceId::Status`].
pub struct FactsService(pub Arc<dyn Facts>);

#[async_trait]
impl Service for FactsService {
    async fn serve(&self, _from: NodeId, _head: Bytes, _body: Bytes) -> Result<Answer> {
        let head = serde_json::to_vec(&self.0.facts())
            .map_err(|e| Error::new(Kind::Internal, "encode facts").with_source(e))?;
        Ok(Answer { head: head.into(), body: Bytes::new() })
    }
}

/// Asks a member.
///
/// # Errors
/// No answer in time, or one that makes no sense.
pub async fn ask(net: &dyn Net, node: NodeId, deadline: Duration) -> Result<NodeFacts> {
    let answer = net.call(node, Call::new(ServiceId::Status, b"{}".to_vec()), deadline).await?;
    if answer.head.len() > FACTS_MAX {
        return Err(Error::new(Kind::Protocol, format!("facts of {} bytes", answer.head.len())));
    }
    serde_json::from_slice(&answer.head)
        .map_err(|e| Error::new(Kind::Protocol, "decode facts").with_source(e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_of_another_version_are_understood() {
        let old: NodeFacts = serde_json::from_str(r#"{"version":"0.0.9"}"#).unwrap();
        assert_eq!(old, NodeFacts { version: "0.0.9".into(), ..NodeFacts::default() });
        let new = r#"{"version":"9","colour":"red","shards":{"held":3,"speed":1}}"#;
        let new: NodeFacts = serde_json::from_str(new).unwrap();
        assert_eq!(new.shards.unwrap().held, 3);
    }
}
