//! How fast users and groups may go. Only lower bounds of times are judged: a busy machine may always be slower.

use hfcache_tests::node::run;
use hfcache_tests::two::write;
use hfcache_tests::{Checks, Cluster, eventually, sys};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const USER: u32 = 4_711;
const OTHER: u32 = 4_712;
const GROUP: u32 = 5_000;
const MIB: usize = 1 << 20;
/// What may be used up at once, in parts of a second; see `hfcache rate set --help`.
const BURST: Duration = Duration::from_millis(250);

struct World {
    cluster: Cluster,
}

impl World {
    fn call(&self, node: usize, args: &[&str]) -> (Option<i32>, String, String) {
        self.cluster.node(node).tell(args)
    }

    #[track_caller]
    fn json(&self, node: usize, args: &[&str]) -> Value {
        self.cluster.node(node).json(args)
    }

    /// A new directory for everybody, as both nodes show it.
    fn dir(&self, name: &str) -> (PathBuf, PathBuf) {
        let (a, b) = (self.cluster.path(0, name), self.cluster.path(1, name));
        fs::create_dir(&a).expect("mkdir");
        fs::set_permissions(&a, fs::Permissions::from_mode(0o777)).expect("chmod");
        (a, b)
    }
}

fn shell(uid: u32, gid: u32, dir: &Path, script: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.arg(format!("--reuid={uid}")).arg(format!("--regid={gid}")).arg("--clear-groups");
    command.args(["sh", "-euc", script]).current_dir(dir);
    command
}

/// A check by its name.
type Check = hfcache_tests::Check<World>;

/// Runs a script as a user; answers how long that took.
#[track_caller]
fn takes(uid: u32, gid: u32, dir: &Path, script: &str) -> Duration {
    let start = Instant::now();
    let output = run(shell(uid, gid, dir, script), Duration::from_secs(120)).expect("the script ends");
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    start.elapsed()
}

fn spawn(uid: u32, gid: u32, dir: &Path, script: &str) -> Child {
    shell(uid, gid, dir, script).stderr(Stdio::null()).spawn().expect("start a script")
}

fn said_and_listed(world: &World) {
    assert_eq!(world.json(0, &["rate", "ls"]), serde_json::json!([]));
    let set = world.json(0, &["rate", "set", "--uid", "4711", "--read", "10MiB/s", "--ops", "500"]);
    let want = serde_json::json!({"uid": 4711, "gid": null, "read": 10 * MIB, "write": null, "ops": 500});
    assert_eq!(set, want);
    assert_eq!(world.json(1, &["rate", "get", "--uid", "4711"]), want, "on the other node");
    let kept = world.json(1, &["rate", "set", "--uid", "4711", "--ops", "none"]);
    assert_eq!((&kept["read"], &kept["ops"]), (&serde_json::json!(10 * MIB), &Value::Null));
    let (code, out, _) = world.call(0, &["rate", "ls"]);
    assert!(code == Some(0) && out.contains("10.0 MiB/s") && out.contains("no limit"), "{out}");
    assert_eq!(world.json(1, &["rate", "clear", "--uid", "4711"])["read"], Value::Null);
    assert_eq!(world.json(0, &["rate", "ls"]), serde_json::json!([]));
    let (code, _, err) = world.call(0, &["rate", "set", "--uid", "0", "--ops", "5"]);
    assert!(code == Some(1) && err.contains("root"), "{err}");
    for wrong in [
        &["rate", "set", "--uid", "4711"][..],
        &["rate", "set", "--ops", "5"],
        &["rate", "set", "--uid", "4711", "--ops", "0"],
        &["rate", "set", "--uid", "4711", "--read", "fast"],
    ] {
        assert_eq!(world.call(0, wrong).0, Some(2), "{wrong:?}");
    }
}

fn reads_and_writes_wait(world: &World) {
    let (a, b) = world.dir("bytes");
    write(&a.join("f"), &vec![7; 24 * MIB]);
    world.json(0, &["rate", "set", "--uid", "4711", "--read", "8MiB", "--write", "8MiB"]);
    // Every byte once: what the page cache has is not read from here.
    let least = Duration::from_secs(3) - BURST - Duration::from_millis(500);
    assert!(takes(USER, USER, &b, "cat f >/dev/null") >= least);
    assert!(takes(USER, USER, &a, "dd if=/dev/zero of=mine bs=256k count=96 status=none") >= least);
    assert_eq!(fs::read(b.join("mine")).expect("read").len(), 24 * MIB, "slow, and all of it");
    // Somebody else goes on while this one has most of a minute to wait.
    let mut slow = spawn(USER, USER, &a, "dd if=/dev/zero of=slow bs=1M count=400 status=none");
    eventually("he writes", Duration::from_secs(30), || a.join("slow").exists());
    for i in 0..5 {
        takes(OTHER, OTHER, &a, &format!("echo {i} >other; cat other >/dev/null"));
    }
    assert_eq!(slow.try_wait().expect("look at him"), None, "400 MiB at 8 MiB a second are written already");
    slow.kill().expect("kill");
    slow.wait().expect("wait for him");
    world.json(0, &["rate", "clear", "--uid", "4711"]);
}

fn groups_share_one_limit(world: &World) {
    let (a, _) = world.dir("group");
    chown(&a, None, Some(GROUP)).expect("chgrp");
    world.json(1, &["rate", "set", "--gid", "5000", "--ops", "50"]);
    // Each makes a name: at least two requests.
    let script = "for i in $(seq 40); do : >$0.$i; done";
    let start = Instant::now();
    let mut all: Vec<Child> =
        (0..2).map(|n| spawn(USER + n, GROUP, &a, &script.replace("$0", &n.to_string()))).collect();
    for child in &mut all {
        assert!(child.wait().expect("wait").success());
    }
    assert!(
        start.elapsed() >= Duration::from_millis(2 * 2 * 40 * 1000 / 50 - 1_500),
        "{:?}",
        start.elapsed()
    );
    world.json(0, &["rate", "clear", "--gid", "5000"]);
}

fn who_waits_can_be_killed(world: &World) {
    let (a, _) = world.dir("kill");
    write(&a.join("f"), &vec![1; 4 * MIB]);
    let b = world.cluster.path(1, "kill");
    world.json(0, &["rate", "set", "--uid", "4711", "--read", "1000"]);
    let mut reader = spawn(USER, USER, &b, "exec cat f >/dev/null");
    let opened = || {
        let fds = format!("/proc/{}/fd", reader.id());
        let files = fs::read_dir(fds).into_iter().flatten().flatten();
        files.filter_map(|f| fs::read_link(f.path()).ok()).any(|target| target.ends_with("kill/f"))
    };
    eventually("it has the file open", Duration::from_secs(20), opened);
    reader.kill().expect("kill");
    // Sooner than what it asked for would have been served: that takes a minute each.
    eventually("it is gone", Duration::from_secs(30), || reader.try_wait().expect("look").is_some());
    world.json(0, &["rate", "clear", "--uid", "4711"]);
}

#[test]
fn rates_hold_on_every_node() {
    if !sys::is_root() {
        eprintln!("SKIPPED: needs root, to be several users");
        return;
    }
    let world = World { cluster: Cluster::start("rates", 2) };
    let mut checks = Checks::default();
    let all: [Check; 4] = [
        ("said_and_listed", said_and_listed),
        ("reads_and_writes_wait", reads_and_writes_wait),
        ("groups_share_one_limit", groups_share_one_limit),
        ("who_waits_can_be_killed", who_waits_can_be_killed),
    ];
    checks.run_each(&world, &all);
    checks.finish();
}
