//! Which nodes hold which partition: a pure function of the old table and the members.
//!
//! Nodes are ranked by rendezvous hashing (Thaler & Ravishankar, 1998): each partition orders all nodes by
//! a hash of (partition, node). A row keeps its order when members change, because a position is a shard
//! index: a node that comes takes the place of its rank, and the one that stood there moves behind the last;
//! where a node went, the last one steps in. So each change moves at most one shard of a chunk, and every
//! node has its fair share of every position.
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
            match old.get(usize::from(partition)) {
                Some(row) if !row.is_empty() => adapt(row, &ranked, width),
                _ => ranked[..width].to_vec(),
            }
        })
        .collect()
}

/// One row for the members in order of rank.
fn adapt(old: &[NodeId], ranked: &[NodeId], width: usize) -> Vec<NodeId> {
    let mut row = old.to_vec();
    // From the back, so that what steps in stays.
    for at in (0..row.len()).rev() {
        if !ranked.contains(&row[at]) {
            row.swap_remove(at);
        }
    }
    for (rank, node) in ranked.iter().enumerate().take(width) {
        if !row.contains(node) && !old.contains(node) {
            let at = rank.min(row.len());
            row.push(*node);
            let last = row.len() - 1;
            row.swap(at, last);
        }
    }
    // A row at full width has lost someone who ranked high, or gained someone who ranks low.
    row.truncate(width);
    for node in ranked {
        if row.len() < width && !row.contains(node) {
            row.push(*node);
        }
    }
    row
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

    /// How many of the first `total` places of each row have another node than before.
    fn moved(before: &[Vec<NodeId>], after: &[Vec<NodeId>], total: usize) -> Vec<usize> {
        let row =
            |(old, new): (&Vec<NodeId>, &Vec<NodeId>)| (0..total).filter(|i| old[*i] != new[*i]).count();
        before.iter().zip(after).map(row).collect()
    }

    #[test]
    fn a_node_that_comes_takes_its_fair_share_and_moves_nothing_else() {
        for n in [3u64, 4, 5, 11, 12, 20] {
            let before = assign(&[], &nodes(n));
            let after = assign(&before, &nodes(n + 1));
            let moves = moved(&before, &after, 3);
            assert!(moves.iter().all(|m| *m <= 1), "{n} nodes");
            let share = moves.iter().sum::<usize>();
            let fair = usize::from(PARTITIONS) * 3 / (n as usize + 1);
            assert!((fair * 3 / 4..=fair * 5 / 4).contains(&share), "{n} nodes: {share} of {fair}");
            for row in &after {
                let new = row.iter().position(|node| *node == NodeId(n + 1));
                assert!(new.is_some() || n as usize + 1 > PARTITION_WIDTH_MAX);
            }
        }
    }

    #[test]
    fn where_a_node_went_one_steps_in_and_the_others_stay() {
        for n in [4u64, 6, 12, 20] {
            let before = assign(&[], &nodes(n));
            let left: Vec<NodeId> = nodes(n).into_iter().filter(|node| *node != NodeId(2)).collect();
            let after = assign(&before, &left);
            for (old, new) in before.iter().zip(&after) {
                assert!(!new.contains(&NodeId(2)));
                assert_eq!(new.len(), left.len().min(PARTITION_WIDTH_MAX));
                let moves = (0..3).filter(|i| old[*i] != new[*i]).count();
                assert_eq!(moves, usize::from(old[..3].contains(&NodeId(2))), "{old:?} {new:?}");
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
