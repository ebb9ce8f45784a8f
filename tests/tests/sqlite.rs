//! SQLite, which trusts `fcntl` locks, `fsync` and what the file shows under a lock, on several nodes at once.

use hfcache_tests::{Checks, Cluster, eventually, hf, sys};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Transactions of each process.
const EACH: u64 = 8;
/// A dead process's locks are free at once; the rest is what a busy machine takes.
const SOON: Duration = Duration::from_secs(20);

/// The same directory as three nodes see it.
struct Three([PathBuf; 3]);

impl Three {
    fn on(&self, node: usize, name: &str, args: &[&str]) -> Command {
        let mut command = hf::plain_script("sqlite_user.py");
        command.arg(self.0[node].join(name)).args(args);
        command
    }

    fn do_on(&self, node: usize, name: &str, args: &[&str]) -> String {
        hf::must_say(&hf::end(hf::start(self.on(node, name, args))))
    }

    fn read(&self, node: usize, name: &str) -> Value {
        serde_json::from_str(&self.do_on(node, name, &["read"])).expect("it prints JSON")
    }
}

type Check = hfcache_tests::Check<Three>;

const CHECKS: &[Check] = &[
    ("transactions_of_three_nodes_all_count", transactions_of_three_nodes_all_count),
    ("a_killed_writer_is_rolled_back_elsewhere", a_killed_writer_is_rolled_back_elsewhere),
];

fn run(three: &Three) {
    let mut checks = Checks::default();
    checks.run_each(three, CHECKS);
    checks.finish();
}

#[test]
fn sqlite_works_on_several_nodes() {
    let cluster = Cluster::start("sqlite", 3);
    run(&Three([0, 1, 2].map(|n| cluster.path(n, ""))));
}

#[test]
fn the_checks_hold_on_the_local_file_system() {
    let root = std::env::temp_dir().join(format!("hfcache-sqlite-{}", std::process::id()));
    std::fs::create_dir(&root).expect("make a local directory");
    run(&Three([root.clone(), root.clone(), root.clone()]));
    std::fs::remove_dir_all(root).expect("clear away");
}

fn journal_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-journal");
    name.into()
}

fn transactions_of_three_nodes_all_count(three: &Three) {
    let db = "counter.db";
    three.do_on(0, db, &["make"]);
    let each = EACH.to_string();
    // Two processes on two of the nodes, one on the third: locks are taken over within a node and between nodes.
    let writers = [(0, "a"), (1, "b"), (0, "c"), (1, "d"), (2, "e")];
    let children = writers.map(|(node, who)| hf::start(three.on(node, db, &["add", who, &each])));
    for child in children {
        hf::must_say(&hf::end(child));
    }
    let notes: serde_json::Map<_, _> = writers.iter().map(|(_, who)| ((*who).into(), json!(EACH))).collect();
    for node in 0..3 {
        assert_eq!(three.read(node, db), json!([EACH * 5, notes, "ok"]), "as node {node} sees it");
        assert!(!journal_of(&three.0[node].join(db)).exists(), "no journal is left");
    }
}

fn a_killed_writer_is_rolled_back_elsewhere(three: &Three) {
    let db = "killed.db";
    three.do_on(0, db, &["make"]);
    three.do_on(1, db, &["add", "first", "3"]);
    let mut dying = hf::start(three.on(0, db, &["die", "killed"]));
    let mut said = String::new();
    BufReader::new(dying.stdout.take().expect("its output is a pipe"))
        .read_line(&mut said)
        .expect("hear the writer");
    assert_eq!(said, "held\n");
    // Who comes now waits for the lock, until the writer is dead.
    let waits = hf::start(three.on(1, db, &["add", "second", "2"]));
    std::thread::sleep(Duration::from_millis(700));
    sys::kill(dying.id(), libc::SIGKILL).expect("kill the writer");
    let killed = Instant::now();
    let _ = dying.wait();
    hf::must_say(&hf::end(waits));
    assert!(killed.elapsed() < SOON, "the lock of a killed writer was held {:?}", killed.elapsed());
    let whole = json!([5, { "first": 3, "second": 2 }, "ok"]);
    for node in [1, 2, 0] {
        assert_eq!(three.read(node, db), whole, "as node {node} sees it");
    }
    eventually("no journal is left", Duration::from_secs(5), || !journal_of(&three.0[2].join(db)).exists());
}
