//! Identities. Every number that names something is its own type, so that none is passed for another.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($int:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $int);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

id!(
    /// An inode of the namespace: stable for ever, never used again after its file is gone.
    InodeId(u64), "i"
);
id!(
    /// An immutable run of bytes of one file: the unit of placement. Handed out in batches through Raft.
    ChunkId(u64), "c"
);
id!(
    /// A member of the cluster. Also its Raft id. Starts at 1; 0 is nobody.
    NodeId(u64), "n"
);
id!(
    /// One run of one node: the owner of locks and of open-unlinked inodes.
    SessionId(u64), "s"
);
id!(
    /// Version of the [`crate::ClusterMap`].
    Epoch(u64), "e"
);
id!(
    /// Which of the `k + m` shards of a chunk.
    ShardIndex(u8), "sh"
);
id!(
    /// One of the [`crate::limits::PARTITIONS`] rows of the placement table.
    Partition(u16), "p"
);

impl InodeId {
    /// The root directory. FUSE fixes it to 1.
    pub const ROOT: Self = Self(1);
}
