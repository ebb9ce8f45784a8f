//! A network of namespaces: one for each node, joined by a bridge that leads nowhere, so that a node's cable
//! can be pulled. Needs root and iproute2.

use crate::sys;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};

/// Prefix of all our namespaces; the test's process id follows.
const PREFIX: &str = "hft-";
/// Nodes are `SUBNET.11`, `SUBNET.12`, … The bridge is not connected to the host, so this can't clash.
const SUBNET: &str = "10.77.0";
/// The first node's last number.
const FIRST: u8 = 11;

/// Why there can be no namespaces here; `None` when there can.
pub fn missing() -> Option<String> {
    if !sys::is_root() {
        return Some("network namespaces need root".into());
    }
    let ip = Command::new("ip")
        .arg("-V")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match ip {
        Ok(status) if status.success() => None,
        _ => Some("network namespaces need `ip` (apt-get install iproute2)".into()),
    }
}

fn ip(args: &str) {
    let output = Command::new("ip").args(args.split(' ')).stdin(Stdio::null()).output().expect("run ip");
    assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A program, run in a namespace, with the host's mounts.
pub fn command_in(namespace: &str, program: &Path) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{namespace}")).arg("--").arg(program);
    command
}

/// See the module. Dropping it removes the namespaces.
#[derive(Debug)]
pub struct Network {
    prefix: String,
    nodes: usize,
}

impl Network {
    /// A bridge without nodes.
    ///
    /// # Panics
    /// When it can't be made: see [`missing`].
    pub fn new(tag: &str) -> Self {
        if let Some(why) = missing() {
            panic!("{why}");
        }
        let network = Self { prefix: format!("{PREFIX}{}-{tag}", std::process::id()), nodes: 0 };
        let switch = network.switch();
        ip(&format!("netns add {switch}"));
        ip(&format!("-n {switch} link add br0 type bridge"));
        ip(&format!("-n {switch} link set br0 up"));
        network
    }

    fn switch(&self) -> String {
        format!("{}-sw", self.prefix)
    }

    /// The namespace of a node, counted from 0.
    pub fn namespace(&self, node: usize) -> String {
        format!("{}-n{node}", self.prefix)
    }

    /// Adds a node's namespace and cable, and returns its address.
    pub fn add(&mut self) -> IpAddr {
        let (node, switch) = (self.nodes, self.switch());
        self.nodes += 1;
        let name = self.namespace(node);
        let address = format!("{SUBNET}.{}", usize::from(FIRST) + node);
        ip(&format!("netns add {name}"));
        ip(&format!("-n {name} link add eth0 type veth peer name n{node} netns {switch}"));
        ip(&format!("-n {switch} link set n{node} master br0")); // tidy-allow: a word of ip's
        ip(&format!("-n {switch} link set n{node} up"));
        ip(&format!("-n {name} addr add {address}/24 dev eth0"));
        ip(&format!("-n {name} link set eth0 up"));
        ip(&format!("-n {name} link set lo up"));
        address.parse().expect("an address")
    }

    /// How many nodes it has.
    pub fn len(&self) -> usize {
        self.nodes
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.nodes == 0
    }

    /// Pulls the cable of the node with this address.
    pub fn cut(&self, address: IpAddr) {
        ip(&format!("-n {} link set n{} down", self.switch(), Self::index(address)));
    }

    /// Puts it back.
    pub fn heal(&self, address: IpAddr) {
        ip(&format!("-n {} link set n{} up", self.switch(), Self::index(address)));
    }

    fn index(address: IpAddr) -> usize {
        let IpAddr::V4(address) = address else { panic!("{address} is not of this network") };
        usize::from(address.octets()[3] - FIRST)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for node in 0..self.nodes {
            delete(&self.namespace(node));
        }
        delete(&self.switch());
    }
}

fn delete(namespace: &str) {
    let _ = Command::new("ip")
        .args(["netns", "del", namespace])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status();
}

/// Removes namespaces of test processes that are gone.
pub fn sweep() {
    for entry in std::fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(owner) = name.strip_prefix(PREFIX).and_then(|n| n.split('-').next()) else { continue };
        if owner.parse::<u32>().is_ok() && !Path::new("/proc").join(owner).exists() {
            delete(&name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn reaches(network: &Network, from: usize, to: &str) -> bool {
        let mut command = command_in(&network.namespace(from), Path::new("python3"));
        let connect = "import socket,sys\ns=socket.socket()\ns.settimeout(0.5)\n\
                       try: s.connect((sys.argv[1],9))\nexcept ConnectionRefusedError: sys.exit(0)\n\
                       except OSError: sys.exit(1)";
        command.args(["-c", connect, to]).status().unwrap().success()
    }

    #[test]
    fn a_cable_can_be_pulled_and_put_back() {
        if let Some(why) = missing() {
            eprintln!("SKIPPED: {why}");
            return;
        }
        let mut network = Network::new("self");
        network.add();
        let cable = network.add();
        let other = cable.to_string();
        crate::eventually("the bridge forwards", Duration::from_secs(60), || reaches(&network, 0, &other));
        network.cut(cable);
        assert!(!reaches(&network, 0, &other));
        network.heal(cable);
        crate::eventually("the bridge forwards again", Duration::from_secs(60), || {
            reaches(&network, 0, &other)
        });
    }
}
