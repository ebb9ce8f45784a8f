//! The way out of a cluster: say so, wait until the others hold what this node held, be forgotten.

use crate::facts;
use crate::status::{Sources, show};
use hfcache_base::limits::CHUNK_TARGET;
use hfcache_base::meta::Op;
use hfcache_base::{ClusterMap, Error, Kind, NodeId, NodeState, Result, Scheme};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// How often the others are asked how far they are.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// How long one of them may take to answer.
const FACTS_DEADLINE: Duration = Duration::from_secs(2);

/// What leaving would mean.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Who leaves.
    pub node: NodeId,
    /// Whether it keeps shards.
    pub storage: bool,
    /// Storage nodes that remain.
    pub remaining: u64,
    /// The scheme of new data today, as "k+m".
    pub scheme_now: String,
    /// The scheme of new data afterwards.
    pub scheme_after: String,
    /// Shards to hand over.
    pub shards: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Why this needs `--force`.
    pub objection: Option<String>,
}

/// How far it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Shards that the others still have to fetch or rebuild.
    pub missing: u64,
    /// Nodes that have not compared their shards with the new map yet.
    pub unchecked: u64,
}

/// What leaving means; pure. `widest` is the number of shards of the widest chunk.
pub fn plan(map: &ClusterMap, node: NodeId, widest: u8, shards: u64, bytes: u64) -> Plan {
    let storage = map.nodes.get(&node).is_some_and(|n| n.storage);
    let taking: Vec<NodeId> = map.storage_nodes().map(|n| n.id).collect();
    let remaining = taking.iter().filter(|n| **n != node).count();
    // Counted with this node even if it said already that it leaves: the promise is the one of before.
    let with = remaining + usize::from(storage);
    let (before, after) = (Scheme::choose(with, CHUNK_TARGET), Scheme::choose(remaining, CHUNK_TARGET));
    let objection = if !storage {
        None
    } else if remaining == 0 {
        Some("no other storage node remains: everything that is stored would be lost".into())
    } else if Scheme::parity_for(remaining) < Scheme::parity_for(with) {
        Some(format!(
            "{remaining} storage nodes remain: only {} node losses would be survived instead of {}",
            Scheme::parity_for(remaining),
            Scheme::parity_for(with)
        ))
    } else if usize::from(widest) > remaining {
        Some(format!(
            "{remaining} storage nodes remain, but there are chunks of {widest} shards, each on a node of its own: \
             they would be left with fewer"
        ))
    } else {
        None
    };
    Plan {
        node,
        storage,
        remaining: remaining as u64,
        scheme_now: before.to_string(),
        scheme_after: after.to_string(),
        shards,
        bytes,
        objection,
    }
}

/// Leaves; `last` takes the tree down, because nothing can be saved any more afterwards. The caller stops the
/// node then.
///
/// # Errors
/// [`Kind::Invalid`] with the objection without `force`; [`Kind::NotSupported`] for the last member; what
/// the cluster says.
pub async fn leave<F: Future<Output = Result<()>>>(
    sources: &Arc<Sources>,
    force: bool,
    dry_run: bool,
    progress: &mpsc::Sender<Value>,
    last: impl FnOnce() -> F,
) -> Result<Plan> {
    let me = sources.net.me();
    sources.meta.read_point(Duration::from_secs(5)).await.map_err(|e| {
        e.context("leave the cluster: it has no quorum, so it cannot agree to that now; try again when it has")
    })?;
    let map = sources.meta.map();
    let (here, for_map, applied) = (sources.clone(), map.clone(), sources.meta.status().applied);
    let schemes = tokio::task::spawn_blocking(move || here.schemes(applied, &for_map))
        .await
        .map_err(|e| Error::new(Kind::Internal, "count chunks").with_source(e))??;
    let own = sources.own.facts().shards.unwrap_or_default();
    let plan = plan(&map, me, schemes.widest, own.held, own.bytes);
    if map.nodes.len() <= 1 {
        return Err(Error::new(
            Kind::NotSupported,
            "this is the only member: stop the node and remove its data directory instead",
        ));
    }
    if dry_run {
        return Ok(plan);
    }
    if let Some(objection) = plan.objection.as_ref().filter(|_| !force) {
        return Err(Error::new(Kind::Invalid, format!("{objection}. Add a node first, or say --force.")));
    }
    tracing::info!(shards = plan.shards, bytes = %show::bytes(plan.bytes), "leave the cluster");
    let leaving = Op::UpdateNode { id: me, addr: None, capacity: None, state: Some(NodeState::Leaving) };
    sources.meta.commit(leaving).await?;
    if plan.storage && plan.remaining > 0 {
        wait_until_handed_over(sources, me, progress).await;
    }
    last().await?;
    match sources.meta.commit(Op::RemoveNode(me)).await {
        Ok(_) => {}
        // The answer may be lost, because it is given to a node that is no member any more.
        Err(_) if !sources.meta.map().nodes.contains_key(&me) => {}
        Err(e) => return Err(e.context("leave the cluster")),
    }
    tracing::info!("left the cluster");
    Ok(plan)
}

async fn wait_until_handed_over(sources: &Arc<Sources>, me: NodeId, progress: &mpsc::Sender<Value>) {
    loop {
        let map = sources.meta.map();
        let others: Vec<NodeId> = map.storage_nodes().map(|n| n.id).filter(|n| *n != me).collect();
        let asked = others.iter().map(|n| facts::ask(sources.net.as_ref(), *n, FACTS_DEADLINE));
        let mut now = Progress { missing: 0, unchecked: 0 };
        for answer in futures::future::join_all(asked).await {
            match answer.ok().and_then(|f| f.shards) {
                Some(s) if s.checked && s.epoch == map.epoch => now.missing += s.missing,
                Some(s) => {
                    now.missing += s.missing;
                    now.unchecked += 1;
                }
                None => now.unchecked += 1,
            }
        }
        if now.missing == 0 && now.unchecked == 0 {
            return;
        }
        // Nobody has to watch: a full queue or a client that went away is no reason to stop.
        if let Ok(value) = serde_json::to_value(now) {
            let _ = progress.try_send(value);
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hfcache_base::Node;

    fn map(storage: u64, mount_only: u64) -> ClusterMap {
        let mut map = ClusterMap::default();
        for i in 1..=storage + mount_only {
            let node = Node {
                id: NodeId(i),
                name: format!("n{i}"),
                addr: format!("10.0.0.{i}:1").parse().unwrap(),
                domain: String::new(),
                storage: i <= storage,
                capacity: 1,
                state: NodeState::Active,
            };
            map.nodes.insert(node.id, node);
        }
        map.rebuild();
        map
    }

    #[test]
    fn leaving_is_refused_only_where_something_would_be_lost() {
        let cases = [
            (map(1, 0), 1, 1, true),
            (map(2, 0), 1, 2, true),
            (map(3, 0), 1, 2, false),
            (map(3, 0), 1, 3, true),
            (map(4, 0), 1, 4, true),
            (map(5, 0), 1, 4, false),
            (map(5, 0), 1, 5, true),
            (map(3, 1), 4, 3, false),
        ];
        for (i, (map, node, widest, refused)) in cases.into_iter().enumerate() {
            let plan = plan(&map, NodeId(node), widest, 0, 0);
            assert_eq!(plan.objection.is_some(), refused, "case {i}: {plan:?}");
        }
    }

    #[test]
    fn a_node_that_has_said_it_leaves_is_judged_as_before() {
        let mut map = map(3, 0);
        if let Some(node) = map.nodes.get_mut(&NodeId(2)) {
            node.state = NodeState::Leaving;
        }
        map.rebuild();
        let plan = plan(&map, NodeId(2), 3, 1, 1);
        assert_eq!((plan.scheme_now.as_str(), plan.scheme_after.as_str()), ("2+1", "1+1"));
        assert!(plan.objection.is_some());
    }
}
