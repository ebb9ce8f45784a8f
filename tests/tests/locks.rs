//! `flock` and `fcntl` exclude over nodes, and die with their holder.

use hfcache_tests::conformance::setting;
use hfcache_tests::{Agent, Checks, Cluster, eventually, measure};
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long a waiter is watched before it counts as waiting.
const A_WHILE: Duration = Duration::from_millis(400);
/// A dead node's locks are freed within the session lease, 10 s; leader changes may come on top.
const LEASE_AND_MORE: Duration = Duration::from_secs(40);

fn agent() -> Agent {
    Agent::start(env!("CARGO_BIN_EXE_hfcache-test-agent"))
}

/// The same directory as three nodes see it.
struct Three {
    dirs: [PathBuf; 3],
    /// These are nodes, and not one local directory: figures are worth keeping.
    nodes: bool,
}

impl Three {
    fn path(&self, node: usize, name: &str) -> PathBuf {
        self.dirs[node].join(name)
    }

    fn record(&self, what: &str, value: f64, unit: &str) {
        if self.nodes {
            measure::record("locks", what, value, unit);
        }
    }
}

/// One process on each of two nodes, with the same new file open as `f`.
fn two(three: &Three, name: &str) -> (Agent, Agent) {
    let (mut a, mut b) = (agent(), agent());
    a.ok(&format!("open f {} create", three.path(0, name).display()));
    b.ok(&format!("open f {} create", three.path(1, name).display()));
    (a, b)
}

/// A lock that somebody gave up by closing the file.
fn soon(agent: &mut Agent, ask: &str) {
    eventually(ask, Duration::from_secs(10), || match agent.ask(ask).as_str() {
        "busy" => false,
        said => {
            assert_eq!(said, "ok", "{ask}");
            true
        }
    });
}

type Check = (&'static str, fn(&Three, &str));

const CHECKS: &[Check] = &[
    ("flock_excludes", flock_excludes),
    ("flock_shared", flock_shared),
    ("flock_converts", flock_converts),
    ("fcntl_excludes", fcntl_excludes),
    ("fcntl_ranges", fcntl_ranges),
    ("fcntl_closes_release", fcntl_closes_release),
    ("fcntl_through_a_reader", fcntl_through_a_reader),
    ("kinds_are_apart", kinds_are_apart),
    ("waiter_is_served", waiter_is_served),
    ("waiters_in_turn", waiters_in_turn),
    ("holder_process_killed", holder_process_killed),
    ("waiter_process_killed", waiter_process_killed),
    ("contended_polls", contended_polls),
    ("counter_under_lock", counter_under_lock),
    ("many_locks", many_locks),
];

#[test]
fn locks_exclude_over_nodes_and_die_with_their_holder() {
    let mut cluster = Cluster::start("locks", 3);
    let three = Three { dirs: [0, 1, 2].map(|n| cluster.path(n, "")), nodes: true };
    let mut checks = Checks::default();
    for (name, body) in CHECKS {
        checks.run(name, || body(&three, name));
    }
    checks.run("polls_write_no_log", || polls_write_no_log(&cluster, &three));
    checks.run("holder_node_killed", || holder_node_killed(&mut cluster, &three));
    checks.run("leader_killed", || leader_killed(&mut cluster, &three));
    checks.finish();
}

#[test]
fn the_checks_hold_on_the_local_file_system() {
    let root = std::env::temp_dir().join(format!("hfcache-locks-{}", std::process::id()));
    std::fs::create_dir(&root).expect("make a local directory");
    let three = Three { dirs: [root.clone(), root.clone(), root.clone()], nodes: false };
    let mut checks = Checks::default();
    for (name, body) in CHECKS {
        checks.run(name, || body(&three, name));
    }
    checks.finish();
    std::fs::remove_dir_all(root).expect("clear away");
}

fn flock_excludes(three: &Three, name: &str) {
    let (mut a, mut b) = two(three, name);
    for _ in 0..5 {
        a.ok("flock f ex nb");
        assert_eq!(b.ask("flock f ex nb"), "busy");
        assert_eq!(b.ask("flock f sh nb"), "busy");
        a.ok("flock f un");
        b.ok("flock f ex nb");
        assert_eq!(a.ask("flock f ex nb"), "busy");
        b.ok("close f");
        // The kernel tells a FUSE file system of a closed file without waiting for the answer, so only an unlock
        // is known to everyone when it returns; a close is a moment later.
        soon(&mut a, "flock f ex nb");
        a.ok("flock f un");
        b.ok(&format!("open f {} create", three.path(1, name).display()));
    }
    // Two opens on the same node exclude each other as well.
    b.ok(&format!("open g {} rw", three.path(1, name).display()));
    b.ok("flock f ex nb");
    assert_eq!(b.ask("flock g ex nb"), "busy");
}

fn flock_shared(three: &Three, name: &str) {
    let (mut a, mut b) = two(three, name);
    a.ok("flock f sh nb");
    b.ok("flock f sh nb");
    assert_eq!(a.ask("flock f ex nb"), "busy");
    b.ok("flock f un");
    a.ok("flock f ex nb");
    assert_eq!(b.ask("flock f sh nb"), "busy");
}

fn flock_converts(three: &Three, name: &str) {
    let (mut a, mut b) = two(three, name);
    a.ok("flock f ex nb");
    a.ok("flock f sh nb");
    b.ok("flock f sh nb");
    // Two that both want more: neither may get it while the other holds.
    assert_eq!(a.ask("flock f ex nb"), "busy");
    b.ok("close f");
    a.ok("flock f ex");
}

fn fcntl_excludes(three: &Three, name: &str) {
    let (mut a, mut b) = two(three, name);
    for _ in 0..5 {
        a.ok("range f write 0 0 nb");
        assert_eq!(b.ask("range f write 0 0 nb"), "busy");
        assert_eq!(b.ask("range f read 5 1 nb"), "busy");
        assert_eq!(b.ask("range f write 0 0 test"), "taken");
        a.ok("range f free 0 0");
        assert_eq!(b.ask("range f write 0 0 test"), "free");
        b.ok("range f write 0 0 nb");
        assert_eq!(a.ask("range f write 0 0 nb"), "busy");
        b.ok("range f free 0 0");
    }
}

fn fcntl_ranges(three: &Three, name: &str) {
    let (mut a, mut b) = two(three, name);
    a.ok("range f write 0 100 nb");
    b.ok("range f write 100 100 nb");
    assert_eq!(b.ask("range f read 99 1 nb"), "busy");
    assert_eq!(a.ask("range f write 199 1 nb"), "busy");
    // Freeing the middle leaves both ends locked.
    a.ok("range f free 40 20");
    b.ok("range f write 40 20 nb");
    assert_eq!(b.ask("range f write 39 1 nb"), "busy");
    assert_eq!(b.ask("range f write 60 1 nb"), "busy");
    // From write to read in a part.
    a.ok("range f read 0 10 nb");
    b.ok("range f read 0 10 nb");
    assert_eq!(a.ask("range f write 0 10 nb"), "busy");
    assert_eq!(b.ask("range f read 9 2 nb"), "busy");
}

/// POSIX: closing any descriptor of the file gives up all of the process's record locks on it.
fn fcntl_closes_release(three: &Three, name: &str) {
    let (mut a, mut b) = two(three, name);
    a.ok("range f write 0 0 nb");
    a.ok(&format!("open g {} rw", three.path(0, name).display()));
    a.ok("close g");
    b.ok("range f write 0 0");
}

/// The same for a descriptor that can only read: of a file where nobody has used such locks before, and of one
/// where somebody has.
fn fcntl_through_a_reader(three: &Three, name: &str) {
    let (mut a, mut b) = two(three, name);
    for _ in 0..2 {
        a.ok(&format!("open g {} r", three.path(0, name).display()));
        a.ok("range g read 0 9 nb");
        b.ok("range f read 0 9 nb");
        b.ok("range f free 0 9");
        assert_eq!(b.ask("range f write 0 0 nb"), "busy");
        a.ok("close g");
        b.ok("range f write 0 0");
        b.ok("range f free 0 0");
    }
    a.ok(&format!("open g {} r", three.path(0, name).display()));
    a.ok("range f write 0 0 nb");
    a.ok("close g");
    b.ok("range f write 0 0");
}

/// `flock` and `fcntl` do not see each other.
fn kinds_are_apart(three: &Three, name: &str) {
    let (mut a, mut b) = two(three, name);
    a.ok("flock f ex nb");
    b.ok("range f write 0 0 nb");
    assert_eq!(b.ask("flock f ex nb"), "busy");
    assert_eq!(a.ask("range f write 0 0 nb"), "busy");
}

fn waiter_is_served(three: &Three, name: &str) {
    let mut worst = Duration::ZERO;
    for (take, free) in [("flock f ex", "flock f un"), ("range f write 0 0", "range f free 0 0")] {
        for _ in 0..5 {
            let (mut a, mut b) = two(three, name);
            a.ok(take);
            b.send(take);
            assert_eq!(b.answer_within(A_WHILE), None, "a waiter waits");
            let start = Instant::now();
            a.send(free);
            assert_eq!(b.answer(), "ok");
            worst = worst.max(start.elapsed());
            assert_eq!(a.answer(), "ok");
            assert_eq!(a.ask(&format!("{take} nb")), "busy", "the waiter holds it now");
        }
    }
    three.record("slowest of ten handoffs to another node", worst.as_secs_f64() * 1e3, "ms");
}

fn waiters_in_turn(three: &Three, name: &str) {
    let (mut a, mut b) = two(three, name);
    a.ok("flock f ex");
    let mut more: Vec<Agent> = (0..4).map(|_| agent()).collect();
    for (i, waiter) in more.iter_mut().enumerate() {
        waiter.ok(&format!("open f {} rw", three.path(i % 3, name).display()));
        waiter.send("flock f ex");
    }
    b.send("flock f ex");
    a.ok("close f");
    let mut waiting: Vec<Agent> = more.into_iter().chain([b]).collect();
    // Whoever gets it lets it go; in the end all have had it, one at a time.
    let start = Instant::now();
    while !waiting.is_empty() {
        assert!(start.elapsed() < Duration::from_secs(60), "{} waiters were never served", waiting.len());
        let served: Vec<usize> = (0..waiting.len())
            .filter(|&i| waiting[i].answer_within(Duration::from_millis(10)).as_deref() == Some("ok"))
            .collect();
        assert!(served.len() <= 1, "{} hold an exclusive lock at once", served.len());
        for i in served {
            waiting.remove(i).ok("close f");
        }
    }
}

fn holder_process_killed(three: &Three, name: &str) {
    for take in ["flock f ex", "range f write 0 0"] {
        let (mut a, mut b) = two(three, name);
        a.ok(take);
        b.send(take);
        assert_eq!(b.answer_within(A_WHILE), None);
        let start = Instant::now();
        a.kill();
        assert_eq!(b.answer(), "ok", "a dead process's lock is free");
        three.record("a killed process's lock was free after", start.elapsed().as_secs_f64() * 1e3, "ms");
    }
}

fn waiter_process_killed(three: &Three, name: &str) {
    for take in ["flock f ex", "range f write 0 0"] {
        let (mut a, mut b) = two(three, name);
        a.ok(take);
        b.send(take);
        assert_eq!(b.answer_within(A_WHILE), None);
        let start = Instant::now();
        b.kill();
        assert!(start.elapsed() < Duration::from_secs(30), "a waiting process can be killed");
        // The dead waiter does not get the lock afterwards.
        a.ok("close f");
        let mut third = agent();
        third.ok(&format!("open f {} rw", three.path(2, name).display()));
        eventually("a dead waiter holds nothing", Duration::from_secs(20), || {
            third.ask(&format!("{take} nb")) == "ok"
        });
    }
}

/// filelock polls: many attempts that fail, on every node, while one holds. They must be cheap, and must
/// change nothing.
fn contended_polls(three: &Three, name: &str) {
    let (mut a, _) = two(three, name);
    a.ok("flock f ex");
    let polls = AtomicU64::new(0);
    let start = Instant::now();
    thread::scope(|scope| {
        for node in [1, 2, 1, 2] {
            let (polls, path) = (&polls, three.path(node, name));
            scope.spawn(move || {
                for _ in 0..250 {
                    let file = File::options().read(true).write(true).open(&path).expect("open");
                    assert!(file.try_lock().is_err(), "it is held on another node");
                    polls.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let rate = polls.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64();
    three.record("contended polls (open, flock, close)", rate, "per s");
    a.ok("flock f un");
}

/// A thousand failed polls are no thousand log entries: that is what makes them cheap for everybody.
fn polls_write_no_log(cluster: &Cluster, three: &Three) {
    let applied = || cluster.status(0)["applied"].as_u64().expect("status tells the log index");
    let before = applied();
    contended_polls(three, "polls_write_no_log");
    let written = applied() - before;
    assert!(written < 500, "1,000 polls wrote {written} log entries");
}

/// The proof of exclusion: a counter that only its lock protects, raised on three nodes at once.
/// `HFCACHE_COUNTER_CLIENTS` on each node raise a number `HFCACHE_COUNTER_ROUNDS` times each.
fn counter_under_lock(three: &Three, name: &str) {
    let clients = setting("HFCACHE_COUNTER_CLIENTS", 2);
    let rounds = setting("HFCACHE_COUNTER_ROUNDS", 30);
    std::fs::write(three.path(0, &format!("{name}.value")), "0").expect("start at 0");
    File::create(three.path(0, &format!("{name}.lock"))).expect("make the lock file");
    thread::scope(|scope| {
        for client in 0..3 * clients {
            scope.spawn(move || {
                let node = client as usize % 3;
                let value = three.path(node, &format!("{name}.value"));
                let lock = File::options()
                    .write(true)
                    .open(three.path(node, &format!("{name}.lock")))
                    .expect("open");
                for _ in 0..rounds {
                    lock.lock().expect("lock");
                    let old: u64 = std::fs::read_to_string(&value).expect("read").parse().expect("a number");
                    std::fs::write(&value, (old + 1).to_string()).expect("write");
                    lock.unlock().expect("unlock");
                }
            });
        }
    });
    let end = std::fs::read_to_string(three.path(1, &format!("{name}.value"))).expect("read");
    assert_eq!(end, (3 * clients * rounds).to_string(), "no update is lost");
}

fn many_locks(three: &Three, name: &str) {
    let (mut a, mut b) = (agent(), agent());
    for i in 0..200 {
        a.ok(&format!("open f{i} {} create", three.path(0, &format!("{name}{i}")).display()));
        a.ok(&format!("flock f{i} ex nb"));
    }
    for i in (0..200).step_by(7) {
        b.ok(&format!("open f{i} {} rw", three.path(1, &format!("{name}{i}")).display()));
        assert_eq!(b.ask(&format!("flock f{i} ex nb")), "busy");
    }
    a.kill();
    for i in (0..200).step_by(7) {
        b.ok(&format!("flock f{i} ex"));
    }
}

/// A node that dies takes its locks with it, within the session lease.
fn holder_node_killed(cluster: &mut Cluster, three: &Three) {
    let (mut a, mut b) = two(three, "node-killed");
    let (mut c, mut d) = two(three, "node-killed-fcntl");
    a.ok("flock f ex");
    c.ok("range f write 0 0");
    b.send("flock f ex");
    d.send("range f write 0 0");
    assert_eq!((b.answer_within(A_WHILE), d.answer_within(A_WHILE)), (None, None));
    let start = Instant::now();
    cluster.node_mut(0).kill();
    for waiter in [&b, &d] {
        let answer = waiter.answer_within(LEASE_AND_MORE);
        assert_eq!(answer.as_deref(), Some("ok"), "a dead node's lock is freed");
    }
    three.record("a killed node's locks were free after", start.elapsed().as_secs_f64(), "s");
    drop((a, c));
    cluster.node_mut(0).start();
    cluster.wait_healthy();
}

/// Locks outlive the leader: nobody else gets what is held, and it can still be given up.
fn leader_killed(cluster: &mut Cluster, three: &Three) {
    let leader = cluster.leader();
    let [holder, other] = [1, 2].map(|i| (leader + i) % 3);
    let (mut a, mut b) = (agent(), agent());
    a.ok(&format!("open f {} create", three.path(holder, "leader").display()));
    b.ok(&format!("open f {} create", three.path(other, "leader").display()));
    a.ok("flock f ex");
    assert_eq!(b.ask("flock f ex nb"), "busy");
    b.send("flock f ex");
    assert_eq!(b.answer_within(A_WHILE), None);
    cluster.node_mut(leader).kill();
    // The holder's node lives: over more than a session lease nobody may take the lock from it.
    assert_eq!(b.answer_within(Duration::from_secs(13)), None, "the lock survives the leader");
    a.ok("flock f un");
    assert_eq!(b.answer_within(LEASE_AND_MORE).as_deref(), Some("ok"));
    cluster.node_mut(leader).start();
    cluster.wait_healthy();
}
