//! Numbers for `status` and metrics.

use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, Ordering};

/// How well this node's shards protect the data, as of its last look. Sent between nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redundancy {
    /// Shards this node should hold and does not, or only damaged.
    pub missing: u64,
    /// Shards it holds although others should.
    pub surplus: u64,
    /// Damaged shards found since the start.
    pub corrupt_found: u64,
    /// Shards made good since the start: fetched from an old holder or made from the others.
    pub rebuilt: u64,
    /// Bytes of shards here.
    pub bytes: u64,
    /// Shards here.
    pub shards: u64,
    /// Files in the shard directories that are none.
    pub strangers: u64,
    /// The last full pass found nothing to do, nothing has come up since, and it saw the current map.
    pub idle: bool,
    /// Full passes since the start.
    pub passes: u64,
    /// Epoch of the map in the last full pass.
    pub epoch: u64,
    /// When the last full pass ended, nanoseconds since 1970; 0 for never.
    pub last_pass: i64,
    /// Cells read that had to be made from other shards.
    pub reconstructed: u64,
    /// Reads that asked further holders because one was slow.
    pub hedged: u64,
}

/// Events since the start.
#[derive(Debug, Default)]
pub struct Counters {
    /// See [`Redundancy::corrupt_found`].
    pub corrupt: AtomicU64,
    /// See [`Redundancy::rebuilt`].
    pub rebuilt: AtomicU64,
    /// See [`Redundancy::reconstructed`].
    pub reconstructed: AtomicU64,
    /// See [`Redundancy::hedged`].
    pub hedged: AtomicU64,
    /// See [`Redundancy::strangers`].
    pub strangers: AtomicU64,
    /// Shards that went to another node than their home because that was down, slow or full.
    pub handed_off: AtomicU64,
    /// Chunks that were put again with a smaller scheme.
    pub replanned: AtomicU64,
}

impl Counters {
    /// Counts one.
    pub fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}
