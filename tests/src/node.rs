//! One real node: its files, its process, its mount.

use crate::lab::Lab;
use crate::{binary, mounts, netns, sys, wait};
use serde_json::Value;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

/// A node is up when its mount answers; this is how long that may take.
const UP: Duration = Duration::from_secs(60);
/// A command of the program may take this long.
const COMMAND: Duration = Duration::from_secs(60);
/// SIGTERM to exit.
const DOWN: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug)]
pub struct Node {
    name: String,
    dir: PathBuf,
    data: PathBuf,
    addr: SocketAddr,
    namespace: Option<String>,
    user: Option<u32>,
    child: Option<Child>,
}

impl Node {
    /// A node that has not been made yet. Its data is in `data`, or in its own directory.
    pub fn new(
        lab: &Lab,
        name: &str,
        addr: SocketAddr,
        namespace: Option<String>,
        data: Option<PathBuf>,
    ) -> Self {
        let dir = lab.dir(name);
        let data = data.unwrap_or_else(|| dir.join("data"));
        std::fs::create_dir_all(dir.join("mnt")).expect("make the mount point");
        Self { name: name.into(), dir, data, addr, namespace, user: None, child: None }
    }

    /// Its name in the test.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its `--data`.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Its `--mount`.
    pub fn mount(&self) -> PathBuf {
        self.dir.join("mnt")
    }

    /// A path in its mount.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.mount().join(relative)
    }

    /// Its `--listen`.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where its output goes.
    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// What it has said so far.
    pub fn log_text(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.log()).unwrap_or_default()).into_owned()
    }

    /// Belongs to, and runs as, another user from now on; only root can ask for that.
    ///
    /// # Panics
    /// When its directory can't be given to that user.
    pub fn run_as(&mut self, user: u32) {
        for path in [self.dir.clone(), self.mount()] {
            std::os::unix::fs::chown(path, Some(user), Some(user)).expect("give a directory to a user");
        }
        self.user = Some(user);
    }

    /// A program, run where and as whom this node runs.
    pub fn program(&self, program: &Path) -> Command {
        match (&self.namespace, self.user) {
            (Some(name), _) => netns::command_in(name, program),
            (None, Some(user)) => {
                let mut command = Command::new("setpriv");
                command.arg(format!("--reuid={user}")).arg(format!("--regid={user}")).arg("--clear-groups");
                command.arg(program);
                command
            }
            (None, None) => Command::new(program),
        }
    }

    /// `hfcache`, run where and as whom this node runs.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.program(binary::hfcache());
        command.args(args).stdin(Stdio::null()).current_dir(&self.dir);
        command
    }

    /// Runs a command of the program to its end.
    ///
    /// # Panics
    /// When it does not end.
    pub fn call(&self, args: &[&str]) -> Output {
        let command = self.command(args);
        let what = format!("hfcache {}", args.join(" "));
        run(command, COMMAND).unwrap_or_else(|| panic!("{}: {what}: no end within {COMMAND:?}", self.name))
    }

    /// Runs a command of the program that must succeed, and returns what it printed, without the last newline.
    ///
    /// # Panics
    /// When it fails, with what it said.
    pub fn call_ok(&self, args: &[&str]) -> String {
        let output = self.call(args);
        assert!(
            output.status.success(),
            "{}: hfcache {}: {}\n{}{}",
            self.name,
            args.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).expect("the program prints UTF-8").trim_end().to_owned()
    }

    /// Runs a command of the program about this node: its exit status, what it printed, what it complained of.
    ///
    /// # Panics
    /// When it does not end.
    pub fn tell(&self, args: &[&str]) -> (Option<i32>, String, String) {
        let data = self.data_arg();
        let output = self.call(&[args, &["--data", &data]].concat());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }

    /// The facts that a command about this node prints.
    ///
    /// # Panics
    /// When it fails, or prints no JSON.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        let (code, out, err) = self.tell(&[args, &["--json"]].concat());
        assert_eq!(code, Some(0), "{}: hfcache {args:?}: {err}", self.name);
        serde_json::from_str(&out).expect("it prints JSON")
    }

    /// Makes a cluster of this one node, without starting it.
    pub fn init(&self, extra: &[&str]) {
        let listen = self.addr.to_string();
        let (data, mount) = (self.data_arg(), self.mount());
        let mount = mount.to_str().expect("a plain path");
        let mut args =
            vec!["node", "init", "--data", &data, "--mount", mount, "--listen", &listen, "--no-run"];
        args.extend(extra);
        self.call_ok(&args);
    }

    /// Joins a cluster, without starting.
    pub fn join(&self, token: &str, extra: &[&str]) -> Output {
        let listen = self.addr.to_string();
        let (data, mount) = (self.data_arg(), self.mount());
        let mount = mount.to_str().expect("a plain path");
        let mut args =
            vec!["node", "join", token, "--data", &data, "--mount", mount, "--listen", &listen, "--no-run"];
        args.extend(extra);
        self.call(&args)
    }

    /// Prints a join token.
    pub fn token(&self, extra: &[&str]) -> String {
        let data = self.data_arg();
        let mut args = vec!["token", "create", "--data", &data];
        args.extend(extra);
        self.call_ok(&args)
    }

    /// `--data`, as text.
    pub fn data_arg(&self) -> String {
        self.data.to_str().expect("a plain path").to_owned()
    }

    /// Starts the daemon and does not wait for it.
    ///
    /// # Panics
    /// When it runs already.
    pub fn spawn(&mut self) {
        assert!(self.pid().is_none(), "{} runs already", self.name);
        let log = File::options().create(true).append(true).open(self.log()).expect("open the log of a node");
        let mut command = self.command(&["node", "run", "--data", &self.data_arg()]);
        command.stdout(log.try_clone().expect("share the log")).stderr(log);
        self.child = Some(command.spawn().expect("start hfcache"));
    }

    /// Starts the daemon and waits until its mount answers.
    ///
    /// # Panics
    /// When it ends, or is not up in time.
    pub fn start(&mut self) {
        self.spawn();
        self.wait_up();
    }

    /// Waits until its mount answers.
    ///
    /// # Panics
    /// When the daemon ends, or is not up in time.
    pub fn wait_up(&mut self) {
        let start = Instant::now();
        loop {
            let ended = self.child.as_mut().and_then(|c| c.try_wait().expect("look at a child"));
            assert!(ended.is_none(), "{} ended while starting: {ended:?}\n{}", self.name, tail(&self.log()));
            if mounts::is_fuse(&self.mount()) {
                // Also a root test may not look into a mount of another user.
                let mut look = self.program(Path::new("ls"));
                look.arg(self.mount());
                let seen = run(look, UP).is_some_and(|o| o.status.success());
                // The dead mount of an earlier run may have gone just before the look, which then saw the directory
                // below.
                if seen && mounts::is_fuse(&self.mount()) {
                    return;
                }
            }
            assert!(start.elapsed() < UP, "{} is not up after {UP:?}\n{}", self.name, tail(&self.log()));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Its process, while it has one.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    fn signal(&self, signal: i32) {
        let pid = self.pid().expect("the node runs");
        sys::kill(pid, signal).expect("signal a node");
    }

    /// SIGKILL, and waits for its end; but not for ever, should it be stuck in the kernel.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let start = Instant::now();
            while matches!(child.try_wait(), Ok(None)) {
                if start.elapsed() > DOWN {
                    eprintln!("{} (process {}) can't be killed", self.name, child.id());
                    return;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }

    /// SIGKILL, without waiting.
    pub fn kill_at_once(&self) {
        self.signal(libc::SIGKILL);
    }

    /// SIGSTOP: alive, and silent.
    pub fn pause(&self) {
        self.signal(libc::SIGSTOP);
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.signal(libc::SIGCONT);
    }

    /// SIGTERM, without waiting.
    pub fn ask_to_stop(&self) {
        self.signal(libc::SIGTERM);
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn wait_end(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("the node runs");
        let start = Instant::now();
        loop {
            if let Some(status) = child.try_wait().expect("look at a child") {
                return status;
            }
            if start.elapsed() > DOWN {
                let _ = child.kill();
                let _ = child.wait();
                panic!("{} has not ended {DOWN:?} after it was asked to\n{}", self.name, tail(&self.log()));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// SIGTERM, and waits for a clean end: exit status 0 and nothing mounted any more.
    ///
    /// # Panics
    /// When the end is not clean.
    pub fn stop(&mut self) {
        self.ask_to_stop();
        let status = self.wait_end();
        assert!(status.success(), "{} ended with {status}\n{}", self.name, tail(&self.log()));
        assert!(mounts::at(&self.mount()).is_none(), "{} left its mount behind", self.name);
    }

    /// `status --json`, and the exit status it came with; `None` when there is no answer.
    pub fn status(&self) -> Option<(Value, i32)> {
        let output = run(self.command(&["status", "--data", &self.data_arg(), "--json"]), COMMAND)?;
        let status = serde_json::from_slice(&output.stdout).ok()?;
        Some((status, output.status.code()?))
    }

    /// Resident memory of the daemon at its highest, in bytes.
    pub fn peak_rss(&self) -> u64 {
        let text = self.proc("status");
        let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or("0 kB");
        line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap_or(0) * 1024
    }

    /// CPU seconds the daemon has used.
    pub fn cpu_seconds(&self) -> f64 {
        let text = self.proc("stat");
        let fields: Vec<&str> = text.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
        (ticks(11) + ticks(12)) / sys::ticks_per_second()
    }

    fn proc(&self, file: &str) -> String {
        let pid = self.pid().unwrap_or(0);
        std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs a command to its end; `None`, and the process killed, when it does not end within `limit`.
pub fn run(mut command: Command, limit: Duration) -> Option<Output> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().expect("start a process");
    let pid = child.id();
    let output = wait::try_within(limit, move || child.wait_with_output().expect("wait for a process"));
    if output.is_none() {
        let _ = sys::kill(pid, libc::SIGKILL);
    }
    output
}

/// The last lines of a file.
pub fn tail(path: &Path) -> String {
    const LINES: usize = 40;
    let text = String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(LINES);
    format!("--- last lines of {}\n{}\n", path.display(), lines[from..].join("\n"))
}

/// Prints the ends of all nodes' logs below a failed test's directory, and keeps all of them in
/// `target/hfcache-tests/failed/NAME`.
pub fn print_logs(name: &str, root: &Path) {
    let kept = binary::target_dirs().0.join("hfcache-tests/failed").join(name);
    let _ = std::fs::create_dir_all(&kept);
    for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
        let log = entry.path().join("log");
        if log.is_file() {
            eprintln!("{}", tail(&log));
            let _ = std::fs::copy(&log, kept.join(entry.file_name()).with_extension("log"));
        }
    }
    eprintln!("the whole logs are in {}", kept.display());
}
