//! How a chunk is protected: `k` data shards and `m` parity shards, or `m + 1` plain copies (`k = 1`).

use crate::limits::{CELL, COPY_MAX};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The code of one chunk, recorded with it for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Scheme {
    /// Data shards (`k`). 1 means every shard is a plain copy of the chunk.
    pub data: u8,
    /// Parity shards (`m`): how many shards may be lost.
    pub parity: u8,
}

impl Scheme {
    /// `k + m`.
    pub const fn total(self) -> u8 {
        self.data + self.parity
    }

    /// How many node losses new data must survive in a cluster of this many storage nodes.
    pub const fn parity_for(nodes: usize) -> u8 {
        match nodes {
            0 | 1 => 0,
            2 | 3 => 1,
            4..=10 => 2,
            _ => 3,
        }
    }

    /// The scheme for a new chunk of `len` bytes when `nodes` storage nodes can take a shard. Never puts
    /// two shards on one node; falls back to copies where there are too few nodes for a code.
    pub const fn choose(nodes: usize, len: u32) -> Self {
        let parity = Self::parity_for(nodes);
        let data = if len <= COPY_MAX {
            1
        } else {
            match nodes {
                0..=2 => 1,
                3 | 4 => 2,
                5 => 3,
                6..=10 => 4,
                _ => 8,
            }
        };
        Self { data, parity }
    }

    /// Bytes of data in shard `index` of a chunk of `len` bytes; parity shards are as long as shard 0.
    /// Cells go round robin: cell `c` of the chunk is cell `c / k` of shard `c % k`.
    pub const fn shard_len(self, len: u32, index: u8) -> u32 {
        let k = self.data as u32;
        let index = if k == 1 || index >= self.data { 0 } else { index as u32 };
        let cells = len.div_ceil(CELL);
        if cells == 0 {
            return 0;
        }
        // Cells this shard holds, and whether its last one is the chunk's last, which may be short.
        let mine = (cells + k - 1 - index) / k;
        if mine == 0 {
            return 0;
        }
        let last = (mine - 1) * k + index;
        let tail = if last == cells - 1 { len - last * CELL } else { CELL };
        (mine - 1) * CELL + tail
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.data, self.parity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shard_lengths_add_up_to_the_chunk() {
        for k in 1..=8u8 {
            let scheme = Scheme { data: k, parity: 2 };
            for len in [0, 1, CELL - 1, CELL, CELL + 1, 5 * CELL + 7, 16 * CELL, 17 * CELL - 1] {
                let sum: u32 = (0..k).map(|i| scheme.shard_len(len, i)).sum();
                assert_eq!(sum, len, "k={k} len={len}");
                assert_eq!(scheme.shard_len(len, k), scheme.shard_len(len, 0));
            }
        }
    }

    #[test]
    fn a_cluster_never_needs_more_shards_than_nodes() {
        for nodes in 1..40 {
            for len in [1, COPY_MAX, COPY_MAX + 1, CELL * 16] {
                let s = Scheme::choose(nodes, len);
                assert!(usize::from(s.total()) <= nodes.max(1), "{nodes} nodes: {s}");
                assert_eq!(s.parity, Scheme::parity_for(nodes));
            }
        }
    }
}
