//! Bytes on disks: codec, shard files, hot copies, fetch, repair and garbage collection.
//!
//! [`Store`] is the chunk store of one node and what the mount sees of it. Below it: [`put`] and [`fetch`]
//! bring shards to their holders and back, [`upkeep`] keeps each node's shards what they should be, [`hot`]
//! holds local files on their way in or out, [`local`] is this node's own shards, [`service`] what nodes
//! say to each other. [`codec`], [`shard`] and [`plan`] are pure.

pub mod codec;
mod direct;
pub mod engine;
pub mod fetch;
pub mod files;
pub mod hot;
pub mod index;
pub mod local;
pub mod pace;
pub mod peers;
pub mod plan;
pub mod pool;
pub mod put;
pub mod service;
pub mod shard;
pub mod status;
pub mod store;
pub mod upkeep;

pub use engine::RealDisk;
pub use pace::Pace;
pub use status::Redundancy;
pub use store::{Store, StoreOptions};
