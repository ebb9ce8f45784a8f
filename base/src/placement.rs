//! Which nodes hold which partition: a pure function of the old table and the members.
//!
//! Nodes are chosen by rendezvous hashing (Thaler & Ravishankar, 1998): each partition ranks all nodes by
//! a hash of (partition, node) and takes the first few, so a node that comes or goes moves only its own
//! share. A node that stays keeps its position in the row, because the position is the shard index.
//! The result is stored in the map, so this function may change; [`mix`] may not, it places chunks.

use crate::NodeId;
use crate::limits::{PARTITION_WIDTH_MAX, PARTITIONS};

/// The finaliser of splitmix64 (Steele, Lea & Flood, 2014): part of the on-disk format, fixed for ever.
pub const fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The new table for these storage nodes, moving as little as possible of `old`.
pub fn assign(old: &[Vec<NodeId>], nodes: &[NodeId]) -> Vec<Vec<NodeId>> {
    let width = nodes.len().min(PARTITION_WIDTH_MAX);
    (0..PARTITIONS)
        .map(|partition| {
            let mut ranked = nodes.to_vec();
            ranked.sort_by_key(|n| std::cmp::Reverse((mix(mix(u64::from(partition)) ^ n.0), n.0)));
            ranked.truncate(width);
            let mut row: Vec<Option<NodeId>> = vec![None; width];
            if let Some(before) = old.get(usize::from(partition)) {
                for (at, node) in before.iter().take(width).enumerate() {
                    if let Some(rank) = ranked.iter().position(|n| n == node) {
                        row[at] = Some(ranked.remove(rank));
                    }
                }
            }
            let mut rest = ranked.into_iter();
            row.into_iter().filter_map(|place| place.or_else(|| rest.next())).collect()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(n: u64) -> Vec<NodeId> {
        (1..=n).map(NodeId).collect()
    }

    #[test]
    fn rows_are_full_and_never_name_a_node_twice() {
        for n in 1..=20 {
            for row in assign(&[], &nodes(n)) {
                let mut seen = row.clone();
                seen.sort();
                seen.dedup();
                assert_eq!(seen.len(), row.len());
                assert_eq!(row.len(), (n as usize).min(PARTITION_WIDTH_MAX));
            }
        }
    }

    #[test]
    fn a_node_that_stays_keeps_its_shard_index() {
        let before = assign(&[], &nodes(3));
        let after = assign(&before, &nodes(4));
        for (old, new) in before.iter().zip(&after) {
            assert_eq!(old[..], new[..3]);
        }
        let without: Vec<NodeId> = [1, 3, 4].map(NodeId).to_vec();
        let shrunk = assign(&after, &without);
        for (old, new) in after.iter().zip(&shrunk) {
            for (i, node) in new.iter().enumerate() {
                assert!(
                    old[i] == *node || old[i] == NodeId(2) || old.iter().position(|n| n == node) >= Some(3)
                );
            }
        }
    }

    #[test]
    fn the_first_place_is_shared_evenly() {
        let table = assign(&[], &nodes(5));
        for node in nodes(5) {
            let first = table.iter().filter(|row| row[0] == node).count();
            assert!((130..=280).contains(&first), "{node} is first in {first} of 1024 rows");
        }
    }

    #[test]
    fn the_chunk_hash_is_fixed_for_ever() {
        assert_eq!(mix(0), 0xe220_a839_7b1d_cdaf);
        assert_eq!(mix(1), 0x910a_2dec_8902_5cc1);
    }
}
