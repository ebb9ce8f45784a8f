//! Bounds that only the network knows; those that others share are in `base::limits`.

use hfcache_base::limits;
use std::time::Duration;

/// Streams a peer may have open: its calls, and room for pings beside them.
pub const STREAMS_PER_PEER_MAX: u32 = limits::CALLS_PER_PEER_MAX as u32 + 16;
/// A connection on which nothing arrived for this long is closed; calls on it fail.
pub const CONNECTION_IDLE: Duration = Duration::from_millis(1_600);
/// First guess of the round trip: how soon a lost first packet is sent again.
pub const INITIAL_RTT: Duration = Duration::from_millis(50);
/// Bytes one stream may have on the way.
pub const STREAM_WINDOW: u32 = 8 << 20;
/// Bytes one connection may have on the way.
pub const CONNECTION_WINDOW: u32 = 16 << 20;
/// Largest UDP payload. Ten of them must fit one 64 KiB send, or the kernel drops them without a word.
pub const UDP_PAYLOAD_MAX: u16 = 6_500;
/// Socket buffers asked for; the kernel gives what its limits allow.
pub const UDP_SOCKET_BUFFER: usize = 4 << 20;
/// Handshakes under way at once, before anyone is known.
pub const HANDSHAKES_MAX: usize = 256;
/// Connections kept from one node; older ones are closed.
pub const CONNECTIONS_FROM_NODE_MAX: usize = 4;
/// Anonymous connections (joins) at once.
pub const ANONYMOUS_MAX: usize = 32;
/// How long an anonymous connection may live.
pub const ANONYMOUS_LIFE: Duration = Duration::from_secs(30);
/// Join attempts of one address that are answered at once; then one more each [`JOIN_REFILL`].
pub const JOIN_BURST: u32 = 32;
/// See [`JOIN_BURST`].
pub const JOIN_REFILL: Duration = Duration::from_secs(1);
/// Addresses whose join attempts are counted.
pub const JOIN_SOURCES_MAX: usize = 1_024;
/// Largest join request or answer.
pub const JOIN_MAX: usize = 1 << 20;
/// Largest join request of an anonymous client.
pub const JOIN_REQUEST_MAX: usize = 16 << 10;
/// One attempt to join at one seed.
pub const JOIN_DEADLINE: Duration = Duration::from_secs(15);
/// Longest error message on the wire.
pub const MESSAGE_MAX: usize = 4 << 10;
/// Bodies of all calls being received or served at once: a sender beyond it waits.
pub const BODIES_INBOUND_MAX: usize = 128 << 20;

/// Bulk connections to one peer; more calls wait.
pub const BULK_CONNECTIONS_MAX: usize = 8;
/// A bulk connection that was idle this long is closed by the side that made it.
pub const BULK_KEEP: Duration = Duration::from_secs(30);
/// How long after a bulk connection failed all bodies go over QUIC, before it is tried again.
pub const BULK_RETRY: Duration = Duration::from_secs(10);
/// A peer whose idle TCP connection broke is as good as dead if a ping takes longer than this.
pub const LIFELINE_PATIENCE: Duration = Duration::from_millis(250);
/// Time for the greeting of a bulk connection.
pub const BULK_GREETING: Duration = Duration::from_millis(1_000);
/// Bulk connections that have not proved yet who they are.
pub const BULK_STRANGERS_MAX: usize = 128;
/// Bulk connections served at once.
pub const BULK_SERVED_MAX: usize = 8_192;
/// How long a receiver that answers pings may take no byte: it may wait for its disks. One that does not
/// answer loses its QUIC connection long before, and its bulk connections with it.
pub const BULK_STALL: Duration = Duration::from_secs(8);
/// Memory kept for received bodies between calls.
pub const BUFFERS_KEPT_MAX: usize = 48 << 20;
/// Plain bytes that are sealed together with what follows instead of being sent alone.
pub const BULK_GATHER: usize = limits::BULK_RECORD + 4_096;

/// How often nodes gossip.
pub const GOSSIP_EVERY: Duration = Duration::from_millis(500);
/// Largest UDP datagram.
pub const DATAGRAM_MAX: usize = 65_507;
/// Senders whose counters are remembered.
pub const GOSSIP_SENDERS_MAX: usize = 8_192;
/// Longest gossip hint, key and value together.
pub const GOSSIP_HINT_MAX: usize = 512;
/// Most hints one node publishes.
pub const GOSSIP_HINTS_MAX: usize = 16;

/// Most seed addresses in a join token.
pub const TOKEN_SEEDS_MAX: usize = 16;
/// Longest join token.
pub const TOKEN_TEXT_MAX: usize = 1_024;

const _: () = {
    assert!(CONNECTION_IDLE.as_millis() > limits::SUSPECT_AFTER.as_millis());
    assert!(CONNECTION_IDLE.as_millis() < 3_000);
    assert!(UDP_PAYLOAD_MAX as usize * 10 <= DATAGRAM_MAX);
    assert!(BODIES_INBOUND_MAX >= limits::CALL_BODY_MAX);
};
