//! What the network has done so far, for `status` and metrics.

use hfcache_base::NodeId;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        #[derive(Debug, Default)]
        pub(crate) struct Counters { $(pub(crate) $name: AtomicU64),* }

        /// Counters since the start of this node, and its peers.
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        pub struct NetStats {
            $($(#[$doc])* pub $name: u64,)*
            /// All other members.
            pub peers: Vec<PeerStats>,
        }

        impl Counters {
            pub(crate) fn snapshot(&self) -> NetStats {
                NetStats { $($name: self.$name.load(Ordering::Relaxed),)* peers: Vec::new() }
            }
        }
    };
}

counters! {
    /// Calls made.
    calls_made,
    /// Calls made that failed.
    calls_failed,
    /// Calls of others answered.
    calls_served,
    /// Calls of others that they gave up.
    calls_canceled,
    /// Bytes of bodies sent on the bulk lane.
    bulk_bytes_sent,
    /// Bytes of bodies received on the bulk lane.
    bulk_bytes_received,
    /// Bytes of bodies sent over QUIC.
    stream_bytes_sent,
    /// Bytes of bodies received over QUIC.
    stream_bytes_received,
    /// Bulk connections made.
    bulk_connections,
    /// Bodies that took QUIC because the bulk lane could not be reached.
    bulk_fallbacks,
    /// Connections made.
    connections_made,
    /// Connections accepted from members.
    connections_accepted,
    /// Handshakes, greetings and requests that were refused.
    refused,
    /// Joins asked for by others.
    joins_asked,
    /// Joins granted.
    joins_granted,
    /// Gossip datagrams sent.
    gossip_sent,
    /// Gossip datagrams received and believed.
    gossip_received,
    /// Gossip datagrams dropped: foreign, damaged, replayed or too large.
    gossip_dropped,
}

/// What is known of another member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStats {
    /// The member.
    pub node: NodeId,
    /// Where it is, or was last.
    pub addr: SocketAddr,
    /// Whether it answered within the last second.
    pub up: bool,
    /// Round trip in microseconds, as QUIC measures it; 0 while not connected.
    pub rtt_us: u64,
    /// Whether bodies must take QUIC because TCP does not reach it.
    pub bulk_blocked: bool,
}

pub(crate) fn add(counter: &AtomicU64, n: usize) {
    counter.fetch_add(n as u64, Ordering::Relaxed);
}
