use super::*;
use crate::facts::ShardFacts;
use hfcache_base::{Node, SessionId};

fn seen(storage: u64, mount_only: u64) -> Seen {
    let mut map = ClusterMap::default();
    for i in 1..=storage + mount_only {
        let id = NodeId(i);
        let state = if i <= storage { NodeState::Active } else { NodeState::Joined };
        let addr = format!("10.0.0.{i}:7946").parse().unwrap();
        let name = format!("node{i}");
        let node =
            Node { id, name, addr, domain: String::new(), storage: i <= storage, capacity: 1 << 40, state };
        map.nodes.insert(id, node);
    }
    map.rebuild();
    let facts = (1..=storage).map(|i| {
        let shards =
            ShardFacts { held: 9, bytes: 900, checked: true, epoch: map.epoch, ..Default::default() };
        (
            NodeId(i),
            NodeFacts {
                mounted: true,
                session: Some(SessionId(i)),
                capacity: 1 << 40,
                shards: Some(shards),
                ..Default::default()
            },
        )
    });
    let facts = facts.collect();
    let raft = RaftStatus {
        leader: Some(NodeId(1)),
        voters: (1..=storage).map(NodeId).collect(),
        epoch: map.epoch,
        ..RaftStatus::default()
    };
    let health = map.nodes.keys().map(|n| (*n, Health::Up)).collect();
    Seen {
        cluster: "c".into(),
        me: NodeId(1),
        map: Arc::new(map),
        raft,
        quorum: true,
        facts,
        health,
        totals: Totals { bytes: 1_800, ..Totals::default() },
        trash: 0,
        space: Space::default(),
        schemes: Schemes::default(),
    }
}

#[test]
fn all_up_is_healthy_and_mount_only_nodes_do_not_count() {
    let status = assess(seen(3, 2));
    assert!(status.healthy && status.redundancy.full, "{:?}", status.problems);
    assert_eq!(status.redundancy.scheme, "2+1");
    assert_eq!(status.nodes[0].role, Role::Leader);
    assert_eq!(status.nodes[1].role, Role::Voter);
    assert_eq!((status.nodes[3].state, status.nodes[3].role), (State::Joined, Role::None));
}

#[test]
fn one_node_alone_is_healthy_and_says_that_it_tolerates_nothing() {
    let status = assess(seen(1, 0));
    assert!(status.healthy);
    assert_eq!((status.redundancy.scheme.as_str(), status.redundancy.tolerates), ("1+0", 0));
}

#[test]
fn a_silent_storage_node_is_suspect_then_down_and_never_healthy() {
    let mut s = seen(3, 0);
    s.facts.remove(&NodeId(2));
    let status = assess(s.clone());
    assert!(!status.healthy && !status.redundancy.full);
    assert_eq!(status.nodes[1].state, State::Suspect);
    assert_eq!(status.redundancy.at_risk_bytes, 900);
    s.health.insert(NodeId(2), Health::Suspect);
    let status = assess(s);
    assert_eq!(status.nodes[1].state, State::Down);
    assert!(status.problems.iter().any(|p| p.contains("node2")), "{:?}", status.problems);
}

#[test]
fn no_leader_or_no_quorum_is_not_healthy() {
    let mut s = seen(3, 0);
    s.quorum = false;
    assert!(!assess(s.clone()).healthy);
    s.raft.leader = None;
    assert!(assess(s).problems[0].contains("no leader"));
}

#[test]
fn redundancy_is_full_only_when_every_node_has_compared_this_map_and_misses_nothing() {
    let change: [fn(&mut Seen); 4] = [
        |s| s.facts.get_mut(&NodeId(3)).unwrap().shards.as_mut().unwrap().missing = 1,
        |s| s.facts.get_mut(&NodeId(3)).unwrap().shards.as_mut().unwrap().checked = false,
        |s| s.facts.get_mut(&NodeId(3)).unwrap().shards.as_mut().unwrap().epoch = Epoch(77),
        |s| s.schemes.below_parity = 4,
    ];
    for change in change {
        let mut s = seen(3, 0);
        change(&mut s);
        let status = assess(s);
        assert!(!status.healthy && !status.redundancy.full);
        assert!(!status.problems.is_empty());
    }
    // Weaker schemes of old chunks are told, but are what was promised when they were written.
    let mut s = seen(4, 0);
    s.schemes.older_scheme = 9;
    assert!(assess(s).healthy);
}

#[test]
fn the_json_has_the_fields_that_scripts_rely_on() {
    let json = serde_json::to_value(assess(seen(3, 1))).unwrap();
    assert_eq!(json["healthy"], true);
    assert_eq!(json["leader"]["id"], 1);
    assert_eq!(json["leader"]["addr"], "10.0.0.1:7946");
    assert_eq!(json["nodes"][3]["state"], "joined");
    assert_eq!(json["nodes"][0]["role"], "leader");
    assert_eq!(json["redundancy"]["full"], true);
    assert_eq!(serde_json::from_value::<Status>(json).unwrap(), assess(seen(3, 1)));
}

#[test]
fn the_table_is_short_and_names_every_node() {
    let mut s = seen(3, 1);
    s.facts.remove(&NodeId(2));
    let text = assess(s).to_string();
    assert!(text.starts_with("DEGRADED"), "{text}");
    for i in 1..=4 {
        assert!(text.contains(&format!("node{i}")), "{text}");
    }
    assert!(text.lines().all(|l| l.chars().count() <= 110), "{text}");
}
