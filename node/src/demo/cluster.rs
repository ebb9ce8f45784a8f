//! Three processes of this program, and their ends.

use crate::admin::{Request, client};
use crate::data::DataDir;
use crate::status::Status;
use crate::{guard, preflight};
use anyhow::{Context, Result, anyhow, bail};
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// Nodes of the story.
pub(super) const NODES: usize = 3;
/// How often something that will become true is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long a node may take to stop before it is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(15);
const LOG_TAIL: usize = 12;

pub(super) struct Cluster {
    dir: PathBuf,
    program: PathBuf,
    keep: bool,
    listen: Vec<SocketAddr>,
    http: Vec<SocketAddr>,
    state: Mutex<State>,
    /// A signal ends the story; who cleans up then also ends the process.
    pub(super) interrupted: AtomicBool,
}

#[derive(Default)]
struct State {
    nodes: [Option<Child>; NODES],
    /// Cleaned up, or left to the user: nothing is started or stopped any more.
    over: bool,
}

impl Cluster {
    pub(super) fn new(dir: PathBuf, keep: bool) -> Result<Self> {
        let program = std::env::current_exe().context("find this program")?;
        let (listen, http) = free_ports(NODES)?;
        Ok(Self {
            dir,
            program,
            keep,
            listen,
            http,
            state: Mutex::default(),
            interrupted: AtomicBool::new(false),
        })
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn program(&self) -> &Path {
        &self.program
    }

    fn home(&self, node: usize) -> PathBuf {
        self.dir.join(format!("node{}", node + 1))
    }

    pub(super) fn data(&self, node: usize) -> DataDir {
        DataDir::new(self.home(node).join("data"))
    }

    pub(super) fn mount(&self, node: usize) -> PathBuf {
        self.home(node).join("mount")
    }

    /// Where clients keep their cache on a node.
    pub(super) fn hub(&self, node: usize) -> PathBuf {
        self.mount(node).join("hub")
    }

    fn log(&self, node: usize) -> PathBuf {
        self.home(node).join("log")
    }

    pub(super) fn pids(&self) -> Vec<u32> {
        self.state.lock().nodes.iter().flatten().map(Child::id).collect()
    }

    /// Runs a command of this program to its end and returns what it printed.
    fn command(&self, args: &[&str]) -> Result<String> {
        let out =
            Command::new(&self.program).args(args).stdin(Stdio::null()).output().context("run hfcache")?;
        if !out.status.success() {
            // A join token is among the arguments, so they are not repeated.
            bail!("`hfcache {}`: {}", args[..2].join(" "), String::from_utf8_lossy(&out.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
    }

    fn make(&self, node: usize, verb: &[&str]) -> Result<()> {
        fs::create_dir_all(self.home(node)).with_context(|| format!("make {}", self.home(node).display()))?;
        let (data, mount) = (self.data(node), self.mount(node));
        let (listen, http) = (self.listen[node].to_string(), self.http[node].to_string());
        let name = format!("node{}", node + 1);
        let (data, mount) = (data.path().to_string_lossy(), mount.to_string_lossy());
        let mut args = vec!["node"];
        args.extend(verb);
        args.extend(["--data", &data, "--mount", &mount, "--listen", &listen, "--http", &http]);
        args.extend(["--name", &name, "--no-run"]);
        self.command(&args).map(drop)
    }

    pub(super) fn init(&self) -> Result<()> {
        self.make(0, &["init"])
    }

    pub(super) fn join(&self, node: usize, token: &str) -> Result<()> {
        self.make(node, &["join", token])
    }

    pub(super) fn token(&self) -> Result<String> {
        let data = self.data(0);
        self.command(&["token", "create", "--data", &data.path().to_string_lossy(), "--ttl", "1h"])
    }

    /// Starts a node and waits until its mount is usable.
    pub(super) fn start(&self, node: usize, patience: Duration) -> Result<()> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log(node))
            .with_context(|| format!("open {}", self.log(node).display()))?;
        let mut command = Command::new(&self.program);
        command.args(["node", "run", "--data"]).arg(self.data(node).path());
        if !self.keep {
            command.arg("--with-parent");
        }
        // A process group of its own: Ctrl-C reaches only the story, which stops the nodes in order.
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        {
            let mut state = self.state.lock();
            if state.over {
                bail!("the story is over");
            }
            state.nodes[node] = Some(command.spawn().context("start a node")?);
        }
        self.wait(patience, &format!("node {} to be ready", node + 1), || {
            self.still_runs(node)?;
            Ok(self.status(node).is_ok_and(|s| s.mount.ready).then_some(()))
        })
    }

    fn still_runs(&self, node: usize) -> Result<()> {
        let mut state = self.state.lock();
        let Some(child) = &mut state.nodes[node] else { bail!("node {} was stopped", node + 1) };
        match child.try_wait()? {
            Some(status) => bail!("node {} ended with {status}", node + 1),
            None => Ok(()),
        }
    }

    fn status(&self, node: usize) -> Result<Status> {
        let value = client::ask(&self.data(node), Request::Status, Duration::from_secs(5), |_| ())?;
        Ok(serde_json::from_value(value)?)
    }

    /// Waits until node 1 says that this many members are up and everything is protected.
    pub(super) fn wait_healthy(&self, members: usize, patience: Duration) -> Result<Status> {
        let mut last = String::new();
        self.wait(patience, "a healthy cluster", || match self.status(0) {
            Ok(status) if status.healthy && status.nodes.len() == members => Ok(Some(status)),
            Ok(status) => {
                last = status.problems.join("; ");
                Ok(None)
            }
            Err(e) => {
                last = format!("{e:#}");
                Ok(None)
            }
        })
        .map_err(|e| if last.is_empty() { e } else { e.context(last.clone()) })
    }

    fn wait<T>(
        &self,
        patience: Duration,
        what: &str,
        mut look: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let start = Instant::now();
        loop {
            if let Some(found) = look()? {
                return Ok(found);
            }
            if start.elapsed() > patience {
                return Err(anyhow!("waited {} s in vain for {what}", patience.as_secs()));
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// SIGKILL.
    pub(super) fn kill(&self, node: usize) -> Result<()> {
        let Some(mut child) = self.state.lock().nodes[node].take() else {
            bail!("node {} does not run", node + 1)
        };
        child.kill().context("kill a node")?;
        child.wait().context("wait for a killed node")?;
        Ok(())
    }

    /// The last lines of every node's log.
    pub(super) fn log_tails(&self) -> Vec<(usize, String)> {
        let tail = |node: usize| {
            let text = fs::read_to_string(self.log(node)).ok()?;
            let lines: Vec<&str> = text.lines().collect();
            Some((node + 1, lines[lines.len().saturating_sub(LOG_TAIL)..].join("\n")))
        };
        (0..NODES).filter_map(tail).collect()
    }

    /// The user has it now.
    pub(super) fn release(&self) {
        self.state.lock().over = true;
    }

    /// Stops the nodes, in order, then by force; unmounts what is left; removes what was made.
    pub(super) fn clean_up(&self) -> Result<()> {
        let mut state = self.state.lock();
        if std::mem::replace(&mut state.over, true) {
            return Ok(());
        }
        for child in state.nodes.iter().flatten() {
            let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
            // A node that has just ended needs no signal; nobody else can have its number before the wait below.
            let _ = pid.map(|pid| kill_process(pid, Signal::TERM));
        }
        let start = Instant::now();
        for child in state.nodes.iter_mut().flatten() {
            while child.try_wait()?.is_none() {
                if start.elapsed() > STOP_PATIENCE {
                    child.kill()?;
                    child.wait()?;
                    break;
                }
                std::thread::sleep(LOOK_EVERY);
            }
        }
        for mount in preflight::mounts().into_iter().rev().filter(|m| m.point.starts_with(&self.dir)) {
            // The guard of a node that was killed may be quicker.
            if let Err(e) = guard::unmount(&mount.point)
                && preflight::mounts().contains(&mount)
            {
                return Err(e);
            }
        }
        // Never into a mount: that would remove what is stored.
        if let Some(mount) = preflight::mounts().iter().find(|m| m.point.starts_with(&self.dir)) {
            bail!("{} is still mounted; unmount it and remove {}", mount.point.display(), self.dir.display());
        }
        fs::remove_dir_all(&self.dir).with_context(|| format!("remove {}", self.dir.display()))
    }
}

/// Addresses on loopback: for each node a UDP and TCP port with the next UDP port free too, and one for the
/// Hub endpoint. They are only looked at, so another program could take one before the node does; the node
/// says so then.
fn free_ports(nodes: usize) -> Result<(Vec<SocketAddr>, Vec<SocketAddr>)> {
    let mut taken = BTreeSet::new();
    let mut find = |span: u16| -> Result<SocketAddr> {
        for _ in 0..1_000 {
            let probe = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port")?;
            let port = probe.local_addr()?.port();
            let ports = port..=port.saturating_add(span);
            let free = ports.clone().all(|p| {
                !taken.contains(&p) && p < u16::MAX && UdpSocket::bind((Ipv4Addr::LOCALHOST, p)).is_ok()
            });
            if free {
                taken.extend(ports);
                return Ok((Ipv4Addr::LOCALHOST, port).into());
            }
        }
        bail!("no free ports on 127.0.0.1")
    };
    let listen = (0..nodes).map(|_| find(1)).collect::<Result<_>>()?;
    let http = (0..nodes).map(|_| find(0)).collect::<Result<_>>()?;
    Ok((listen, http))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_do_not_collide() {
        let (listen, http) = free_ports(3).unwrap();
        let mut all: Vec<u16> = listen.iter().flat_map(|a| [a.port(), a.port() + 1]).collect();
        all.extend(http.iter().map(SocketAddr::port));
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!((all.len(), count), (9, 9));
    }
}
