//! A node that is cut off for longer than its session lasts has no say any more: its locks are given to others,
//! what it had not saved is refused loudly and never merged, and when the cable is back it begins anew.

use hfcache_tests::{Agent, Cluster, eventually, netns};
use std::fs;
use std::path::Path;
use std::time::Duration;

/// No call on the lonely node takes longer, whatever it waits for.
const BOUNDED: Duration = Duration::from_secs(100);
/// Locks of the lonely node are free by then, on a busy machine, too.
const FREED: Duration = Duration::from_secs(90);

fn text(path: &Path) -> &str {
    path.to_str().expect("plain names")
}

/// What must fail, in bounds, when a node is alone.
#[track_caller]
fn refused(agent: &mut Agent, command: &str) {
    agent.send(command);
    let answer =
        agent.answer_within(BOUNDED).unwrap_or_else(|| panic!("{command}: no answer within {BOUNDED:?}"));
    assert!(answer.starts_with("errno "), "{command} on the lonely node: {answer}");
}

#[test]
fn a_node_that_was_away_for_too_long_is_fenced() {
    if let Some(why) = netns::missing() {
        eprintln!("SKIPPED: {why}");
        return;
    }
    let cluster = Cluster::start_in_namespaces("fence", 3);
    let lonely = (cluster.leader() + 1) % 3;
    let other = (lonely + 1) % 3;
    let here = |name: &str| cluster.path(lonely, name);
    let there = |name: &str| cluster.path(other, name);
    for name in ["locked", "dirty", "appended"] {
        fs::write(here(name), "before").expect("write");
    }
    // Processes that start no others: a child would close, and so save, what it inherits.
    let mut mine = Agent::start(env!("CARGO_BIN_EXE_hfcache-test-agent"));
    let mut theirs = Agent::start(env!("CARGO_BIN_EXE_hfcache-test-agent"));
    // On the node that will be lonely: a lock, and bytes that are not saved.
    mine.ok(&format!("open locked {} w", text(&here("locked"))));
    mine.ok("flock locked ex nb");
    mine.ok("write locked 0 mine!!");
    mine.ok(&format!("open dirty {} w", text(&here("dirty"))));
    mine.ok("write dirty 0 mine!!");
    mine.ok(&format!("open appended {} append", text(&here("appended"))));
    mine.ok("append appended mine!!");
    cluster.cut(lonely);

    // The others get its lock, and write.
    theirs.ok(&format!("open locked {} w", text(&there("locked"))));
    eventually("the lock of the lonely node is free", FREED, || theirs.ask("flock locked ex nb") == "ok");
    theirs.ok("write locked 0 theirs");
    theirs.ok("sync locked");
    theirs.ok(&format!("open dirty {} w", text(&there("dirty"))));
    theirs.ok("write dirty 0 theirs");
    theirs.ok("sync dirty");
    theirs.ok(&format!("open appended {} append", text(&there("appended"))));
    theirs.ok("append appended theirs");
    theirs.ok("sync appended");

    // The lonely node must say so, and within bounds: to who saves, to who writes, to who locks, to who looks.
    refused(&mut mine, "sync locked");
    refused(&mut mine, "sync dirty");
    refused(&mut mine, "sync appended");
    refused(&mut mine, "write locked 0 again!");
    refused(&mut mine, "flock dirty ex nb");
    refused(&mut mine, &format!("open seen {} r", text(&here("locked"))));
    refused(&mut mine, &format!("open new {} new", text(&here("new"))));

    // Back again: it begins anew, and nothing of what was refused is there, on any node.
    cluster.heal(lonely);
    cluster.wait_healthy();
    drop(mine);
    for node in 0..3 {
        for (name, want) in [("locked", "theirs"), ("dirty", "theirs"), ("appended", "beforetheirs")] {
            let found = fs::read_to_string(cluster.path(node, name)).expect("read");
            assert_eq!(found, want, "{name} on node {}", node + 1);
        }
        assert!(!cluster.path(node, "new").exists(), "what was refused is not there");
    }
    let mut again = Agent::start(env!("CARGO_BIN_EXE_hfcache-test-agent"));
    again.ok(&format!("open locked {} w", text(&here("locked"))));
    assert_eq!(again.ask("flock locked ex nb"), "busy", "it is theirs");
    drop(theirs);
    eventually("the lock is free", FREED, || again.ask("flock locked ex nb") == "ok");
    again.ok("write locked 0 again!");
    again.ok("sync locked");
    assert_eq!(fs::read_to_string(there("locked")).expect("read"), "again!");
}
