//! Who is in the Raft group and who votes: a pure plan from the cluster map and what the leader sees.
//!
//! Every member of the cluster is in the group. Voters are 1, 3 or 5, storage nodes before others, spread
//! over failure domains, and grow only by nodes that are caught up and were heard a moment ago. A voter that
//! is down stays one; it is replaced when it was removed from the cluster. Voters that remain are never
//! taken out, so no step tolerates fewer failures than the one before.

use hfcache_base::{ClusterMap, Node, NodeId, NodeState};
use std::collections::BTreeSet;

/// One change of the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// These follow from now on.
    AddLearners(BTreeSet<NodeId>),
    /// Exactly these vote from now on.
    SetVoters(BTreeSet<NodeId>),
    /// These are no longer told anything.
    Remove(BTreeSet<NodeId>),
}

/// The group as it is.
#[derive(Clone, Debug, Default)]
pub struct Group {
    /// Voters.
    pub voters: BTreeSet<NodeId>,
    /// Those who only follow.
    pub learners: BTreeSet<NodeId>,
    /// Caught up, and heard of a moment ago.
    pub ready: BTreeSet<NodeId>,
}

/// How many nodes vote among so many.
fn wanted(nodes: usize) -> usize {
    match nodes {
        0..=2 => 1,
        3 | 4 => 3,
        _ => 5,
    }
}

/// The next step, if one is due.
pub fn plan(map: &ClusterMap, group: &Group) -> Option<Step> {
    let known = |id: &NodeId| group.voters.contains(id) || group.learners.contains(id);
    let new: BTreeSet<NodeId> = map.nodes.keys().copied().filter(|id| !known(id)).collect();
    if !new.is_empty() {
        return Some(Step::AddLearners(new));
    }
    let stays = |id: &NodeId| map.nodes.get(id).is_some_and(|n| n.state != NodeState::Leaving);
    let mut voters: BTreeSet<NodeId> = group.voters.iter().copied().filter(stays).collect();
    let removed = voters.len() < group.voters.len();
    let mut candidates: Vec<&Node> = group
        .learners
        .iter()
        .filter(|id| group.ready.contains(id) && stays(id))
        .filter_map(|id| map.nodes.get(id))
        .collect();
    // Mount-only nodes are there for majorities of three, not to make five.
    let storage = voters.iter().filter_map(|id| map.nodes.get(id)).filter(|n| n.storage).count()
        + candidates.iter().filter(|n| n.storage).count();
    let all = voters.len() + candidates.len();
    let target = wanted(storage).max(wanted(all.min(4))).max(wanted(voters.len()));
    while voters.len() < target {
        let used: Vec<&str> =
            voters.iter().filter_map(|id| map.nodes.get(id)).map(|n| n.domain.as_str()).collect();
        let best = candidates.iter().enumerate().min_by_key(|(_, n)| {
            let shared = used.iter().filter(|d| **d == n.domain).count();
            (!n.storage, shared, n.id)
        });
        let Some((at, _)) = best else { break };
        voters.insert(candidates.remove(at).id);
    }
    // One more voter than 1 or 3 tolerates nothing more and needs one more answer.
    let useful = voters.len() % 2 == 1 || removed;
    if !voters.is_empty() && voters != group.voters && useful {
        return Some(Step::SetVoters(voters));
    }
    let gone: BTreeSet<NodeId> =
        group.learners.iter().copied().filter(|id| !map.nodes.contains_key(id)).collect();
    (!gone.is_empty()).then_some(Step::Remove(gone))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(ids: impl IntoIterator<Item = u64>) -> BTreeSet<NodeId> {
        ids.into_iter().map(NodeId).collect()
    }

    fn map(nodes: &[(u64, &str, bool)]) -> ClusterMap {
        let mut map = ClusterMap::default();
        for (id, domain, storage) in nodes {
            let node = Node {
                id: NodeId(*id),
                name: format!("node{id}"),
                addr: ([127, 0, 0, 1], 7000).into(),
                domain: (*domain).to_owned(),
                storage: *storage,
                capacity: 0,
                state: NodeState::Active,
            };
            map.nodes.insert(node.id, node);
        }
        map
    }

    fn uniform(n: u64) -> ClusterMap {
        let nodes: Vec<(u64, &str, bool)> = (1..=n).map(|id| (id, "d", true)).collect();
        map(&nodes)
    }

    fn group(voters: &[u64], learners: &[u64], ready: &[u64]) -> Group {
        Group {
            voters: ids(voters.iter().copied()),
            learners: ids(learners.iter().copied()),
            ready: ids(ready.iter().copied()),
        }
    }

    #[test]
    fn voters_grow_from_one_to_three_to_five_and_no_further() {
        assert_eq!(plan(&uniform(2), &group(&[1], &[], &[1])), Some(Step::AddLearners(ids([2]))));
        assert_eq!(plan(&uniform(2), &group(&[1], &[2], &[1, 2])), None);
        let three = Some(Step::SetVoters(ids([1, 2, 3])));
        assert_eq!(plan(&uniform(3), &group(&[1], &[2, 3], &[1, 2, 3])), three);
        assert_eq!(plan(&uniform(4), &group(&[1, 2, 3], &[4], &[1, 2, 3, 4])), None);
        let five = Some(Step::SetVoters(ids([1, 2, 3, 4, 5])));
        assert_eq!(plan(&uniform(5), &group(&[1, 2, 3], &[4, 5], &[1, 2, 3, 4, 5])), five);
        assert_eq!(plan(&uniform(9), &group(&[1, 2, 3, 4, 5], &[6, 7, 8, 9], &[6, 7, 8, 9])), None);
    }

    #[test]
    fn only_ready_nodes_become_voters() {
        assert_eq!(plan(&uniform(3), &group(&[1], &[2, 3], &[1, 2])), None);
    }

    #[test]
    fn a_voter_that_is_down_stays_and_a_removed_one_is_replaced() {
        assert_eq!(plan(&uniform(4), &group(&[1, 2, 3], &[4], &[1, 2, 4])), None);
        let mut map = uniform(4);
        map.nodes.remove(&NodeId(3));
        let replaced = Some(Step::SetVoters(ids([1, 2, 4])));
        assert_eq!(plan(&map, &group(&[1, 2, 3], &[4], &[1, 2, 4])), replaced);
        let left = group(&[1, 2, 4], &[3], &[1, 2, 4]);
        assert_eq!(plan(&map, &left), Some(Step::Remove(ids([3]))));
    }

    #[test]
    fn a_removed_voter_without_a_replacement_just_goes() {
        let mut map = uniform(3);
        map.nodes.remove(&NodeId(3));
        assert_eq!(plan(&map, &group(&[1, 2, 3], &[], &[1, 2])), Some(Step::SetVoters(ids([1, 2]))));
        assert_eq!(plan(&map, &group(&[1, 2], &[], &[1, 2])), None);
    }

    #[test]
    fn storage_nodes_and_other_domains_come_first() {
        let map = map(&[(1, "a", true), (2, "a", true), (3, "a", false), (4, "b", true), (5, "c", true)]);
        let step = plan(&map, &group(&[1], &[2, 3, 4, 5], &[1, 2, 3, 4, 5]));
        assert_eq!(step, Some(Step::SetVoters(ids([1, 4, 5]))));
    }

    #[test]
    fn mount_only_nodes_help_to_three_but_not_to_five() {
        let map = map(&[(1, "a", true), (2, "a", false), (3, "a", false), (4, "a", false), (5, "a", false)]);
        let step = plan(&map, &group(&[1], &[2, 3, 4, 5], &[1, 2, 3, 4, 5]));
        assert_eq!(step, Some(Step::SetVoters(ids([1, 2, 3]))));
    }

    #[test]
    fn nobody_left_is_no_plan() {
        assert_eq!(plan(&ClusterMap::default(), &group(&[1], &[], &[1])), None);
    }
}
