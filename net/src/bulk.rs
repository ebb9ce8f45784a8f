//! The bulk lane: TCP connections for large bodies, at a third of the CPU that QUIC takes per byte.
//!
//! Greeting, in plain: the dialer sends `hfB1`, the session key of its QUIC connection (exported, so both
//! ends know it and nobody else) and a nonce; the other side answers `hfB1` and its nonce. Both export one
//! key for each direction from the mutual-TLS QUIC connection, bound to the two nonces: no key is ever used
//! on two TCP connections, and a recorded connection cannot be played again.
//!
//! Then sealed records only (AES-128-GCM, nonce = record counter of the direction):
//!
//! ```text
//! | length of the plain bytes, u32 LE: authenticated | sealed bytes | tag 16 |
//! ```
//!
//! A message is a [`crate::frame`] and its head in records of at most 256 KiB, then the body in records of
//! exactly 256 KiB but the last, so that each is opened in the place where its bytes belong.

mod buffers;
mod lane;
mod pool;
mod serve;

pub(crate) use buffers::Buffers;
pub(crate) use pool::BulkPool;
pub(crate) use serve::accept;

use crate::shared::SessionKey;
use hfcache_base::{Error, Kind, Result};
use quinn::Connection;

const MAGIC: &[u8; 4] = b"hfB1";
const NONCE: usize = 16;
/// Magic, session key, nonce.
const HELLO: usize = 4 + 16 + NONCE;
/// Magic, nonce.
const WELCOME: usize = 4 + NONCE;

fn export(connection: &Connection, out: &mut [u8], label: &str, context: &[u8]) -> Result<()> {
    let done = connection.export_keying_material(out, label.as_bytes(), context);
    done.map_err(|_| Error::new(Kind::Unavailable, "connection has no keys").context("export keys"))
}

/// The name of a QUIC connection on the bulk lane.
pub(crate) fn session_key(connection: &Connection) -> Result<SessionKey> {
    let mut key = SessionKey::default();
    export(connection, &mut key, "EXPORTER-hfcache-bulk-session-1", b"")?;
    Ok(key)
}

/// Keys of one TCP connection: from the dialer, to the dialer.
fn lane_keys(connection: &Connection, nonces: &[u8; 2 * NONCE]) -> Result<([u8; 16], [u8; 16])> {
    let (mut from, mut to) = ([0; 16], [0; 16]);
    export(connection, &mut from, "EXPORTER-hfcache-bulk-dialer-1", nonces)?;
    export(connection, &mut to, "EXPORTER-hfcache-bulk-server-1", nonces)?;
    Ok((from, to))
}
