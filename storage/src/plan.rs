//! What this node should do about a chunk: want minus have, have minus want. Pure.

use crate::shard::ShardKey;
use hfcache_base::meta::ChunkRef;
use hfcache_base::{ClusterMap, NodeId};

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Should be here and is not.
    pub missing: Option<ShardKey>,
    /// Is here and should be elsewhere: may go when all who should hold a shard say that they do.
    pub surplus: Vec<ShardKey>,
    /// Is of a scheme the chunk does not have: a put that was planned anew left it.
    pub useless: Vec<ShardKey>,
}

impl Verdict {
    /// Nothing to do.
    pub fn is_fine(&self) -> bool {
        *self == Self::default()
    }
}

/// Who should hold which shard of a chunk. Fewer than the scheme has where nodes are too few.
pub fn holders(map: &ClusterMap, chunk: ChunkRef) -> Vec<(NodeId, ShardKey)> {
    let row = map.homes(chunk.id).iter().take(usize::from(chunk.scheme.total()));
    row.zip(0..).map(|(node, place)| (*node, ShardKey::at(chunk.id, chunk.scheme, place))).collect()
}

/// Judges what `me` has of a chunk: `have` are its shards, with whether they are whole.
pub fn judge(map: &ClusterMap, me: NodeId, chunk: ChunkRef, have: &[(ShardKey, bool)]) -> Verdict {
    let holders = holders(map, chunk);
    let want = holders.iter().find(|(node, _)| *node == me).map(|(_, key)| *key);
    let mut verdict = Verdict {
        missing: want.filter(|want| !have.iter().any(|(key, whole)| key == want && *whole)),
        ..Verdict::default()
    };
    // With too few nodes for the scheme, some shard has no home, and what has none may not be dropped.
    let all_have_homes = holders.len() == usize::from(chunk.scheme.total());
    for (key, _) in have {
        if key.data != chunk.scheme.data || key.index.0 >= chunk.scheme.total() {
            verdict.useless.push(*key);
        } else if Some(*key) != want && all_have_homes {
            verdict.surplus.push(*key);
        }
    }
    verdict
}

/// How many more nodes may be lost before the chunk is, as far as the map and `alive` tell; lower is more
/// urgent.
pub fn margin(map: &ClusterMap, chunk: ChunkRef, alive: impl Fn(NodeId) -> bool) -> i32 {
    let good = holders(map, chunk).iter().filter(|(node, _)| alive(*node)).count();
    good as i32 - i32::from(chunk.scheme.data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hfcache_base::{ChunkId, Scheme};

    fn map(row: &[u64]) -> ClusterMap {
        let row: Vec<NodeId> = row.iter().copied().map(NodeId).collect();
        ClusterMap { table: vec![row; 1_024], ..ClusterMap::default() }
    }

    fn chunk(data: u8, parity: u8) -> ChunkRef {
        ChunkRef { id: ChunkId(9), len: 3 << 20, scheme: Scheme { data, parity } }
    }

    fn key(data: u8, index: u8) -> ShardKey {
        ShardKey::at(ChunkId(9), Scheme { data, parity: 1 }, index)
    }

    #[test]
    fn each_place_wants_its_shard() {
        let (map, chunk) = (map(&[3, 1, 2]), chunk(2, 1));
        for (node, index) in [(3, 0), (1, 1), (2, 2)] {
            let v = judge(&map, NodeId(node), chunk, &[]);
            assert_eq!(v.missing, Some(key(2, index)));
            assert!(judge(&map, NodeId(node), chunk, &[(key(2, index), true)]).is_fine());
            // Damaged is missing.
            assert_eq!(judge(&map, NodeId(node), chunk, &[(key(2, index), false)]).missing, v.missing);
        }
        assert!(judge(&map, NodeId(4), chunk, &[]).is_fine());
    }

    #[test]
    fn what_is_elsewhere_at_home_is_surplus() {
        let (map, chunk) = (map(&[3, 1, 2]), chunk(2, 1));
        let v = judge(&map, NodeId(4), chunk, &[(key(2, 1), true)]);
        assert_eq!((v.missing, v.surplus), (None, vec![key(2, 1)]));
        let v = judge(&map, NodeId(1), chunk, &[(key(2, 1), true), (key(2, 0), true), (key(1, 0), true)]);
        assert_eq!((v.missing, v.surplus, v.useless), (None, vec![key(2, 0)], vec![key(1, 0)]));
    }

    #[test]
    fn copies_are_interchangeable() {
        let (map, chunk) = (map(&[3, 1, 2]), chunk(1, 1));
        assert!(judge(&map, NodeId(1), chunk, &[(key(1, 0), true)]).is_fine());
        assert!(judge(&map, NodeId(3), chunk, &[(key(1, 0), true)]).is_fine());
        assert_eq!(judge(&map, NodeId(2), chunk, &[(key(1, 0), true)]).surplus, vec![key(1, 0)]);
    }

    #[test]
    fn a_shard_without_a_home_is_kept() {
        let (map, chunk) = (map(&[3, 1, 2]), chunk(2, 2));
        assert!(judge(&map, NodeId(1), chunk, &[(key(2, 1), true), (key(2, 3), true)]).is_fine());
    }

    #[test]
    fn the_most_endangered_comes_first() {
        let map = map(&[3, 1, 2]);
        let all = |_: NodeId| true;
        assert_eq!(margin(&map, chunk(2, 1), all), 1);
        assert_eq!(margin(&map, chunk(2, 1), |n| n.0 != 1), 0);
        assert_eq!(margin(&map, chunk(1, 0), all), 0);
        assert_eq!(margin(&map, chunk(2, 2), all), 1);
    }
}
