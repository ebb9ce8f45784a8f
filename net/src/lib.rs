//! The real network: QUIC, mutual TLS, the bulk lane, RPC and gossip.
