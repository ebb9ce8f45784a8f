//! Measures calls on loopback, both ends in this process:
//! `cargo run --release -p hfcache-net --example lanes [MiB] [bulk|quic|small]`.

use async_trait::async_trait;
use bytes::Bytes;
use hfcache_base::limits::{CHUNK_TARGET, MIB};
use hfcache_base::seam::{Answer, Call, Net, Service, ServiceId};
use hfcache_base::{NodeId, Result};
use hfcache_net::{Identity, JoinGrant, NetConfig, Network, NodeKey};
use std::sync::Arc;
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(60);

/// Swallows bodies, and gives as many bytes as the head asks for.
struct Bodies(Bytes);

#[async_trait]
impl Service for Bodies {
    async fn serve(&self, _from: NodeId, head: Bytes, _body: Bytes) -> Result<Answer> {
        let len = head.first_chunk::<4>().map_or(0, |b| u32::from_le_bytes(*b)) as usize;
        Ok(Answer { head: Bytes::new(), body: self.0.slice(..len) })
    }
}

/// CPU time of this process so far, user and system, as `/proc` counts it (hundredths of a second).
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

async fn pair(bulk: bool) -> Result<[Arc<Network>; 2]> {
    let one = Identity::new_cluster()?;
    let key = NodeKey::generate()?;
    let grant = JoinGrant {
        cluster: one.cluster(),
        node: NodeId(2),
        node_cert: one.issue(NodeId(2), key.public())?,
        ca_cert: one.ca_certificate().to_vec(),
        ca_key: None,
        gossip_key: one.gossip_secret(),
        members: Vec::new(),
    };
    let two = Identity::from_grant(&grant, key)?;
    let config = NetConfig {
        listen: ([127, 0, 0, 1], 0).into(),
        advertise: None,
        name: "bench".into(),
        version: "bench".into(),
        generation: 1,
        bulk,
    };
    let nodes = [Network::start(one, config.clone()).await?, Network::start(two, config).await?];
    let members: Vec<_> = nodes.iter().map(|n| (n.me(), n.listen())).collect();
    for node in &nodes {
        node.set_members(members.clone());
        node.serve(ServiceId::Shards, Arc::new(Bodies(Bytes::from(vec![7; CHUNK_TARGET as usize]))));
    }
    Ok(nodes)
}

async fn run(net: &Arc<Network>, calls: usize, at_once: usize, make: impl Fn() -> Call) -> Result<()> {
    let mut running = futures::stream::FuturesUnordered::new();
    for _ in 0..calls {
        if running.len() == at_once {
            futures::StreamExt::next(&mut running).await.transpose()?;
        }
        let (net, call) = (net.clone(), make());
        running.push(async move { net.call(NodeId(2), call, LONG).await });
    }
    while let Some(answer) = futures::StreamExt::next(&mut running).await {
        answer?;
    }
    Ok(())
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let total: u64 = std::env::args().nth(1).and_then(|a| a.parse().ok()).unwrap_or(1024);
    let only = std::env::args().nth(2);
    let wanted = |name: &str| only.as_deref().is_none_or(|only| only == name);
    println!("{:<34} {:>8} {:>12}", "", "GB/s", "CPU s/GiB");
    for (lane, bulk) in [("bulk", true), ("quic", false)] {
        if !wanted(lane) {
            continue;
        }
        let nodes = pair(bulk).await?;
        for (size, at_once) in
            [(MIB, 1), (MIB, 8), (u64::from(CHUNK_TARGET), 1), (u64::from(CHUNK_TARGET), 3)]
        {
            let calls = (total * MIB / size) as usize;
            let body = Bytes::from(vec![7; size as usize]);
            for (way, put) in [("put", true), ("get", false)] {
                let make = || {
                    let len = if put { 0 } else { size as u32 };
                    let mut call = Call::new(ServiceId::Shards, len.to_le_bytes().to_vec());
                    call.bulk_answer = !put;
                    call.body = if put { vec![body.clone()] } else { Vec::new() };
                    call
                };
                run(&nodes[0], at_once, at_once, make).await?;
                let (began, before) = (Instant::now(), cpu());
                run(&nodes[0], calls, at_once, make).await?;
                let (took, used) = (began.elapsed().as_secs_f64(), cpu() - before);
                let bytes = (calls as u64 * size) as f64;
                let what = format!("{lane}, {way} {} MiB, {at_once} at once", size / MIB);
                println!(
                    "{what:<34} {:>8.2} {:>12.2}",
                    bytes / took / 1e9,
                    used / (bytes / (MIB * 1024) as f64)
                );
            }
        }
    }
    if !wanted("small") {
        return Ok(());
    }
    let nodes = pair(true).await?;
    let make = || Call::new(ServiceId::Shards, 0u32.to_le_bytes().to_vec());
    for at_once in [1, 16] {
        run(&nodes[0], 500, at_once, make).await?;
        let (calls, began, before) = (10_000, Instant::now(), cpu());
        run(&nodes[0], calls, at_once, make).await?;
        let (took, used) = (began.elapsed().as_secs_f64(), cpu() - before);
        let (each, cost) = (took / calls as f64 * 1e6, used / calls as f64 * 1e6);
        println!("small calls, {at_once} at once: {each:.0} us each, {cost:.0} us CPU, both ends");
    }
    Ok(())
}
