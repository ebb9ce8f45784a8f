//! The real network behind `base::seam::net`: QUIC with mutual TLS, the bulk lane, RPC, gossip and joining.
//!
//! A node listens on one address IP:PORT: QUIC (calls) on UDP PORT, the bulk lane on TCP PORT, gossip on
//! UDP PORT+1. Who a peer is comes from its certificate; gossip carries hints and decides nothing.

pub mod bounds;
mod bulk;
mod ca;
mod frame;
pub mod gossip;
pub mod identity;
pub mod join;
mod network;
mod peer;
mod quic;
pub mod retry;
mod rpc;
mod server;
mod shared;
pub mod stats;
mod tls;
pub mod token;

pub use identity::{ClusterId, Identity, NodeKey};
pub use join::{JoinAdmit, JoinAsk, JoinGrant, JoinHandler, JoinRequest, request_join};
pub use network::{NetConfig, Network};
pub use retry::RetryBudget;
pub use stats::{NetStats, PeerStats};
pub use token::JoinToken;

#[cfg(test)]
mod raw_tests;

use hfcache_base::{Error, Kind, Result};
use ring::rand::{SecureRandom, SystemRandom};

/// Random bytes for keys and nonces.
pub(crate) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut out = [0; N];
    SystemRandom::new()
        .fill(&mut out)
        .map_err(|_| Error::new(Kind::Io, "no randomness").context("make key"))?;
    Ok(out)
}

/// SHA-256.
pub(crate) fn sha256(data: &[u8]) -> [u8; 32] {
    let digest = ring::digest::digest(&ring::digest::SHA256, data);
    let mut out = [0; 32];
    out.copy_from_slice(digest.as_ref());
    out
}

/// Compares secrets in a time that does not depend on where they differ.
pub(crate) fn same_secret(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0u8, |acc, (x, y)| acc | (x ^ y)) == 0
}
