//! Consensus: openraft, its log and network, proposals, read leases and membership.

pub mod calls;
pub mod duties;
pub mod follower;
pub mod leader;
pub mod lease;
pub mod log_store;
pub mod machine;
pub mod membership;
mod meta;
pub mod neighbours;
pub mod network;
pub mod node;
pub mod propose;
pub mod reserve;
pub mod settle;
pub mod snapshot;
pub mod store;
pub mod types;
