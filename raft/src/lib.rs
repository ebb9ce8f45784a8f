//! The namespace: one Raft group whose state is the whole file tree, on every node.
//!
//! ```text
//! consensus  openraft, its log and its network, proposals, read leases, membership      (the world)
//! locks      this node's table of the locks it may decide alone
//! state      apply: (state, command) -> (reply, changes); views for readers             (pure)
//! kv         the ordered key-value transaction that state works in; redb behind it
//! ```

pub mod consensus;
pub mod kv;
pub mod kv_redb;
pub mod locks;
pub mod state;
