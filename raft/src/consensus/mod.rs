//! Consensus: openraft, its log and network, proposals, read leases and membership.

pub mod log_store;
pub mod machine;
pub mod network;
pub mod snapshot;
pub mod store;
pub mod types;
