//! Several real nodes that form a cluster.

use crate::lab::Lab;
use crate::netns::Network;
use crate::node::{self, Node};
use crate::wait;
use serde_json::Value;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

/// The port every node listens on; nodes differ by address.
const PORT: u16 = 7_946;
/// All members up and full redundancy again after any single change.
pub const HEALTHY: Duration = Duration::from_secs(120);

static ADDRESSES: AtomicU32 = AtomicU32::new(0);

/// A loopback address nobody else uses: all of 127/8 is this machine, so ports never clash, also not with
/// other test processes. Ephemeral ports are not in the way, because those bind other addresses.
fn fresh_loopback() -> IpAddr {
    let n = ADDRESSES.fetch_add(1, Ordering::Relaxed);
    let pid = std::process::id();
    let low = u8::try_from(n % 250 + 1).expect("at most 250");
    let high = u8::try_from(n / 250 % 16).expect("at most 15");
    IpAddr::V4(Ipv4Addr::new(127, (pid >> 4 & 0xfe) as u8 | 1, ((pid & 0x1f) << 3) as u8 | (high & 7), low))
}

/// See the module. Dropping it leaves nothing behind; when a test has failed, the ends of the nodes' logs are
/// printed first.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
    network: Option<Network>,
    prefix: String,
    panics_are_errors: bool,
    // Last, because its drop removes the directory.
    lab: Arc<Lab>,
}

impl Cluster {
    /// `size` nodes on loopback, all healthy, in a lab of their own.
    pub fn start(name: &str, size: usize) -> Self {
        Self::start_in(&Arc::new(Lab::new(name)), "", size)
    }

    /// `size` nodes on loopback in a lab; their names start with `prefix`.
    pub fn start_in(lab: &Arc<Lab>, prefix: &str, size: usize) -> Self {
        let mut cluster = Self::empty(lab, prefix, None);
        cluster.grow_to(size);
        cluster
    }

    /// `size` nodes, each in a network namespace of its own, all healthy.
    ///
    /// # Panics
    /// When there can be no namespaces: ask [`crate::netns::missing`] first.
    pub fn start_in_namespaces(name: &str, size: usize) -> Self {
        let lab = Arc::new(Lab::new(name));
        let mut cluster = Self::empty(&lab, "", Some(Network::new("c")));
        cluster.grow_to(size);
        cluster
    }

    /// No nodes yet.
    pub fn empty(lab: &Arc<Lab>, prefix: &str, network: Option<Network>) -> Self {
        Self {
            nodes: Vec::new(),
            network,
            prefix: prefix.to_owned(),
            panics_are_errors: true,
            lab: lab.clone(),
        }
    }

    /// Adds nodes until there are `size`, and waits until all are healthy.
    pub fn grow_to(&mut self, size: usize) {
        while self.nodes.len() < size {
            self.add_node(&[]);
        }
        self.wait_healthy();
    }

    /// A node that is not in the cluster yet, at an address of its own.
    pub fn new_node(&mut self, data: Option<PathBuf>) -> Node {
        let index = self.nodes.len();
        let (ip, namespace) = match &mut self.network {
            Some(network) => {
                let ip = network.add();
                (ip, Some(network.namespace(network.len() - 1)))
            }
            None => (fresh_loopback(), None),
        };
        let name = format!("{}n{}", self.prefix, index + 1);
        Node::new(&self.lab, &name, SocketAddr::new(ip, PORT), namespace, data)
    }

    /// Makes, joins and starts one more node, and returns its index.
    pub fn add_node(&mut self, extra: &[&str]) -> usize {
        self.add_node_at(None, extra)
    }

    /// Like [`Cluster::add_node`], with the data in a directory of the test's choice.
    ///
    /// # Panics
    /// When it can't join.
    pub fn add_node_at(&mut self, data: Option<PathBuf>, extra: &[&str]) -> usize {
        let mut node = self.new_node(data);
        if self.nodes.is_empty() {
            node.init(extra);
        } else {
            let token = self.any_up().token(&[]);
            let joined = node.join(&token, extra);
            assert!(
                joined.status.success(),
                "join {}: {}",
                node.name(),
                String::from_utf8_lossy(&joined.stderr)
            );
        }
        node.start();
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    /// A node that has left is no member any more. It must be the last one, so that the others keep their
    /// indices.
    ///
    /// # Panics
    /// When it is another.
    pub fn forget(&mut self, node: usize) {
        assert_eq!(node + 1, self.nodes.len(), "only the last node can be forgotten");
        self.nodes.pop();
    }

    fn any_up(&self) -> &Node {
        self.nodes.iter().find(|n| n.pid().is_some()).expect("some node runs")
    }

    /// The test's place.
    pub fn lab(&self) -> &Arc<Lab> {
        &self.lab
    }

    /// How many nodes there are.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// A node, counted from 0.
    pub fn node(&self, index: usize) -> &Node {
        &self.nodes[index]
    }

    /// A node, counted from 0.
    pub fn node_mut(&mut self, index: usize) -> &mut Node {
        &mut self.nodes[index]
    }

    /// A path in a node's mount.
    pub fn path(&self, node: usize, relative: &str) -> PathBuf {
        self.nodes[node].path(relative)
    }

    /// Pulls a node's cable.
    ///
    /// # Panics
    /// When the cluster is not in namespaces.
    pub fn cut(&self, node: usize) {
        let network = self.network.as_ref().expect("a cable can be pulled only in namespaces");
        network.cut(self.nodes[node].addr().ip());
    }

    /// Puts it back.
    ///
    /// # Panics
    /// When the cluster is not in namespaces.
    pub fn heal(&self, node: usize) {
        let network = self.network.as_ref().expect("a cable can be put back only in namespaces");
        network.heal(self.nodes[node].addr().ip());
    }

    /// `status --json` of a node.
    ///
    /// # Panics
    /// When it gives none.
    pub fn status(&self, node: usize) -> Value {
        self.nodes[node].status().unwrap_or_else(|| panic!("{} gives no status", self.nodes[node].name())).0
    }

    /// The leader, as the first node that runs and knows one sees it, while it runs.
    pub fn try_leader(&self) -> Option<usize> {
        let seen = self.nodes.iter().filter(|n| n.pid().is_some()).find_map(|n| {
            let (status, _) = n.status()?;
            status["leader"]["addr"].as_str()?.parse::<SocketAddr>().ok()
        })?;
        self.nodes.iter().position(|n| n.addr() == seen && n.pid().is_some())
    }

    /// Waits until there is a leader, and returns its index.
    pub fn leader(&self) -> usize {
        wait::until("a leader is known", HEALTHY, || {
            self.try_leader().ok_or_else(|| "nobody names one".into())
        })
    }

    /// Waits until every node that runs says that all members are up and redundancy is full.
    pub fn wait_healthy(&self) {
        for node in self.nodes.iter().filter(|n| n.pid().is_some()) {
            let members = self.nodes.len();
            wait::until(&format!("{} sees a healthy cluster of {members}", node.name()), HEALTHY, || {
                let (status, code) = node.status().ok_or("no status")?;
                let seen = status["nodes"].as_array().map_or(0, Vec::len);
                if code == 0 && status["healthy"] == true && seen == members {
                    Ok(())
                } else {
                    Err(format!("exit status {code}: {status}"))
                }
            });
        }
    }

    /// Waits until a node that runs says that the cluster is degraded, with exit status 1.
    pub fn wait_degraded(&self, node: usize) {
        let node = &self.nodes[node];
        wait::until(&format!("{} sees a degraded cluster", node.name()), HEALTHY, || {
            let (status, code) = node.status().ok_or("no status")?;
            let degraded = code == 1 && status["healthy"] == false;
            if degraded { Ok(()) } else { Err(format!("exit status {code}: {status}")) }
        });
    }

    /// SIGKILL to all nodes at once.
    pub fn kill_all(&mut self) {
        for node in self.nodes.iter().filter(|n| n.pid().is_some()) {
            node.kill_at_once();
        }
        for node in &mut self.nodes {
            node.kill();
        }
    }

    /// Starts all nodes that do not run, all at once, and waits until they are healthy.
    pub fn start_all(&mut self) {
        for node in self.nodes.iter_mut().filter(|n| n.pid().is_none()) {
            node.spawn();
        }
        for node in &mut self.nodes {
            node.wait_up();
        }
        self.wait_healthy();
    }

    /// Stops a node, forgets its hot copies, and starts it: what it reads next it must fetch.
    pub fn make_cold(&mut self, node: usize) {
        self.nodes[node].stop();
        std::fs::remove_dir_all(self.nodes[node].data().join("hot")).expect("forget the hot copies");
        self.nodes[node].start();
    }

    /// Stops all nodes with SIGTERM, all at once; each must end cleanly.
    ///
    /// # Panics
    /// When one does not.
    pub fn stop_all(&mut self) {
        for node in self.nodes.iter().filter(|n| n.pid().is_some()) {
            node.ask_to_stop();
        }
        for node in self.nodes.iter_mut().filter(|n| n.pid().is_some()) {
            let status = node.wait_end();
            assert!(status.success(), "{} ended with {status}\n{}", node.name(), node::tail(&node.log()));
        }
    }

    /// Nodes' panics are looked for when the cluster is dropped, and fail the test; this turns it off.
    pub fn expect_panics(&mut self) {
        self.panics_are_errors = false;
    }

    fn panicked(&self) -> Option<String> {
        self.nodes.iter().find_map(|n| {
            let text = n.log_text();
            let at = text.find("panicked at")?;
            let end = text[at..].char_indices().nth(600).map_or(text.len(), |(i, _)| at + i);
            Some(format!("{} panicked: {}", n.name(), &text[at..end]))
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let panicked = self.panicked();
        if thread::panicking() || panicked.is_some() {
            node::print_logs(self.lab.name(), self.lab.root());
        }
        for node in self.nodes.iter().filter(|n| n.pid().is_some()) {
            let _ = crate::sys::kill(node.pid().unwrap_or(0), libc::SIGKILL);
        }
        // Only its own: another cluster may live in the same lab.
        let points: Vec<PathBuf> = self.nodes.iter().map(Node::mount).collect();
        self.nodes.clear();
        for point in points {
            crate::mounts::detach_below(&point);
        }
        if let Some(why) = panicked.filter(|_| self.panics_are_errors && !thread::panicking()) {
            panic!("{why}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_addresses_differ_and_are_loopback() {
        let mut seen: Vec<IpAddr> = (0..500).map(|_| fresh_loopback()).collect();
        assert!(seen.iter().all(IpAddr::is_loopback));
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 500);
    }
}
