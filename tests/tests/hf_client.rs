//! The real `huggingface_hub` from PyPI, unchanged, in two versions, works on the mounts of several nodes.

use hfcache_tests::hf::{self, Client, Files, Hub, Pins};
use hfcache_tests::pattern::{self, Pattern};
use hfcache_tests::{Checks, Cluster, eventually, sys};
use serde_json::Value;
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A repository with files of every size class, and one in a folder.
fn model(seed: u64) -> Vec<(&'static str, Pattern)> {
    vec![
        ("config.json", Pattern::new(seed, 700)),
        ("tokenizer.json", Pattern::new(seed + 1, 3_000_000)),
        ("vocab.txt", Pattern::new(seed + 2, 40_000)),
        ("onnx/model.onnx", Pattern::new(seed + 3, 300_000)),
        ("model-00001-of-00002.safetensors", Pattern::new(seed + 4, 40 << 20)),
        ("model-00002-of-00002.safetensors", Pattern::new(seed + 5, (18 << 20) + 12_345)),
    ]
}

/// A smaller one.
fn small(seed: u64) -> Vec<(&'static str, Pattern)> {
    vec![
        ("config.json", Pattern::new(seed, 500)),
        ("vocab.txt", Pattern::new(seed + 1, 30_000)),
        ("model.safetensors", Pattern::new(seed + 2, 6 << 20)),
    ]
}

const TINY: &str = "acme/tiny";
const OLDER: &str = "acme/older";
const ONE: &str = "acme/one";
const MOVING: &str = "acme/moving";
const KILLED: &str = "acme/killed";
const CUT: &str = "acme/cut";
const FORCED: &str = "acme/forced";
const LISTED: &str = "acme/listed";

/// The commands of `huggingface_hub` 2.x and 1.x on nodes of a cluster, and the Hub they ask.
struct World {
    hub: Hub,
    scratch: PathBuf,
    caches: [PathBuf; 3],
}

impl World {
    fn new(scratch: &Path, caches: [PathBuf; 3]) -> Self {
        let repos = scratch.join("repos");
        let all = [
            (TINY, model(10)),
            (OLDER, model(20)),
            (ONE, vec![("model.safetensors", Pattern::new(30, 24 << 20))]),
            (MOVING, small(40)),
            (KILLED, small(50)),
            (CUT, vec![("model.safetensors", Pattern::new(60, 24 << 20))]),
            (FORCED, small(70)),
            (LISTED, small(80)),
        ];
        for (repo, files) in all {
            Hub::put(&repos, repo, &files);
        }
        Self { hub: Hub::start(&repos), scratch: scratch.to_owned(), caches }
    }

    /// Somebody on a node, at home there.
    fn on(&self, node: usize, pins: Pins) -> Client {
        Client::new(pins, &self.hub, &self.caches[node], &self.scratch.join(format!("home{node}")))
    }

    /// A place in the cache as a node sees it.
    fn at(&self, node: usize, repo: &str, path: &str) -> PathBuf {
        self.caches[node].join(format!("models--{}", repo.replace('/', "--"))).join(path)
    }

    /// One client on each of these nodes, all at once.
    fn together(&self, clients: &[Client], name: &str, args: &[&str]) -> Vec<Value> {
        let start = self.scratch.join(format!("start-{name}"));
        let mut all = args.to_vec();
        all.extend(["--start", start.to_str().expect("a plain path")]);
        let children: Vec<_> = clients.iter().map(|c| c.start_fetch(&all)).collect();
        hf::start_together(&start, &children);
        children.into_iter().map(hf::json_of).collect()
    }

    fn downloaded_once(&self, repo: &str, files: &Files<'_>) {
        let counts = self.hub.counts();
        for (path, _) in files {
            assert_eq!(counts[format!("START {repo}/{path}")], 1, "one download of {repo}/{path}: {counts}");
        }
    }
}

type Check = hfcache_tests::Check<World>;

/// Those that are quick.
const CHECKS: &[Check] = &[
    ("two_clients_on_two_mounts_download_once", two_clients_on_two_mounts_download_once),
    ("a_new_revision_is_seen_whole", a_new_revision_is_seen_whole),
    ("a_killed_download_is_finished_elsewhere", a_killed_download_is_finished_elsewhere),
    ("the_command_line_lists_verifies_and_removes", the_command_line_lists_verifies_and_removes),
    // The last one: it looks back at all the others.
    ("nobody_asked_for_xet", nobody_asked_for_xet),
];

/// The others.
const MORE: &[Check] = &[
    ("the_older_client_shares_with_the_newer", the_older_client_shares_with_the_newer),
    ("one_file_on_all_nodes_at_once", one_file_on_all_nodes_at_once),
    ("a_cut_download_goes_on_where_it_was", a_cut_download_goes_on_where_it_was),
    ("blobs_replaced_from_two_nodes_stay_whole", blobs_replaced_from_two_nodes_stay_whole),
    ("nobody_asked_for_xet", nobody_asked_for_xet),
];

fn run(world: &World, checks: &[Check]) {
    let mut results = Checks::default();
    results.run_each(world, checks);
    results.finish();
}

fn on_nodes(name: &str, checks: &[Check]) {
    let cluster = Cluster::start(name, 3);
    let caches = [0, 1, 2].map(|n| cluster.path(n, "hub"));
    run(&World::new(&cluster.lab().dir("client"), caches), checks);
}

fn on_a_local_cache(name: &str, checks: &[Check]) {
    let scratch = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
    let cache = scratch.join("cache");
    fs::create_dir_all(&scratch).expect("make a local directory");
    run(&World::new(&scratch, [cache.clone(), cache.clone(), cache]), checks);
    fs::remove_dir_all(scratch).expect("clear away");
}

#[test]
fn clients_share_a_cache_over_nodes() {
    on_nodes("hf", CHECKS);
}

#[test]
#[ignore = "takes long; a stage of its own in .ci/run"]
fn more_clients_share_a_cache_over_nodes() {
    on_nodes("hf-more", MORE);
}

/// The Hub of these tests is one.
#[test]
fn the_first_check_holds_on_a_local_cache() {
    on_a_local_cache("hfcache-hub", &CHECKS[..1]);
}

/// And the checks are right.
#[test]
#[ignore = "takes long; a stage of its own in .ci/run"]
fn all_checks_hold_on_a_local_cache() {
    on_a_local_cache("hfcache-hub-quick", CHECKS);
    on_a_local_cache("hfcache-hub-more", MORE);
}

fn two_clients_on_two_mounts_download_once(world: &World) {
    let files = model(10);
    for seen in world.together(&[0, 1].map(|n| world.on(n, Pins::Hub2)), "tiny", &[TINY]) {
        hf::check_snapshot(&seen, &files);
    }
    world.downloaded_once(TINY, &files);
    // A third node finds all of it with no Hub at all.
    hf::check_snapshot(&world.on(2, Pins::Hub2).offline().fetch(&[TINY]), &files);
}

fn the_older_client_shares_with_the_newer(world: &World) {
    let files = model(20);
    for seen in world.together(&[0, 1].map(|n| world.on(n, Pins::Hub1)), "older", &[OLDER]) {
        hf::check_snapshot(&seen, &files);
    }
    world.downloaded_once(OLDER, &files);
    hf::check_snapshot(&world.on(2, Pins::Hub2).fetch(&[OLDER]), &files);
    hf::check_snapshot(&world.on(2, Pins::Hub1).offline().fetch(&[OLDER]), &files);
    world.downloaded_once(OLDER, &files);
}

fn one_file_on_all_nodes_at_once(world: &World) {
    let clients = [0, 1, 2, 0].map(|n| world.on(n, if n == 2 { Pins::Hub1 } else { Pins::Hub2 }));
    let files = [("model.safetensors", Pattern::new(30, 24 << 20))];
    for seen in world.together(&clients, "one", &[ONE, "--file", "model.safetensors"]) {
        hf::check_snapshot(&seen, &files);
    }
    world.downloaded_once(ONE, &files);
    let left = fs::read_dir(world.at(1, ONE, "blobs")).expect("list the blobs").count();
    assert_eq!(left, 1, "nothing half is left");
}

fn a_new_revision_is_seen_whole(world: &World) {
    let (a, b) = (world.on(0, Pins::Hub2), world.on(1, Pins::Hub2));
    let before = a.fetch(&[MOVING]);
    let refs = world.at(1, MOVING, "refs/main");
    let read = |path: &Path| fs::read_to_string(path).unwrap_or_else(|why| panic!("refs/main: {why}"));
    let old = read(&refs);
    assert_eq!(Path::new(before["snapshot"].as_str().expect("a path")).file_name(), Some(old.as_ref()));

    let changed = ("config.json", Pattern::new(48, 501));
    world.hub.commit(MOVING, &[changed]);
    let over = AtomicBool::new(false);
    let (after, looks) = std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut seen = Vec::new();
            while !over.load(Ordering::SeqCst) {
                let now = read(&refs);
                assert_eq!(now.len(), 40, "refs/main is never torn: {now:?}");
                seen.push(now);
            }
            seen
        });
        let after = a.fetch(&[MOVING]);
        over.store(true, Ordering::SeqCst);
        (after, watch.join().expect("refs/main is always there and whole"))
    });
    let new = read(&refs);
    assert_ne!(old, new);
    let switched = looks.iter().position(|l| *l == new).unwrap_or(looks.len());
    assert!(looks[..switched].iter().all(|l| *l == old) && looks[switched..].iter().all(|l| *l == new));

    let mut files = small(40);
    files[0] = changed;
    hf::check_snapshot(&after, &files);
    hf::check_snapshot(&b.offline().fetch(&[MOVING]), &files);
    hf::check_snapshot(&b.offline().fetch(&[MOVING, "--revision", &old]), &small(40));
    assert_eq!(world.hub.count(&format!("START {MOVING}/config.json")), 2);
    assert_eq!(world.hub.count(&format!("START {MOVING}/model.safetensors")), 1, "it has not changed");
}

fn a_killed_download_is_finished_elsewhere(world: &World) {
    let files = small(50);
    let (a, b) = (world.on(0, Pins::Hub2), world.on(1, Pins::Hub2));
    world.hub.get("/_pace?bytes=2000000");
    let killed = a.start_fetch(&[KILLED]);
    let (big, vocab) = (format!("BYTES {KILLED}/model.safetensors"), format!("GET {KILLED}/vocab.txt"));
    eventually("the download is half done", Duration::from_secs(60), || {
        world.hub.count(&big) > 2 << 20 && world.hub.count(&vocab) == 1
    });
    // The other one comes while the first is at it, and so waits for its locks.
    let waits = b.start_fetch(&[KILLED]);
    std::thread::sleep(Duration::from_millis(1500));
    sys::kill(killed.id(), libc::SIGKILL).expect("kill the first client");
    world.hub.get("/_pace?bytes=0");
    hf::check_snapshot(&hf::json_of(waits), &files);
    drop(hf::end(killed));
    let counts = world.hub.counts();
    assert_eq!(counts[format!("START {KILLED}/model.safetensors")], 2, "{counts}");
    assert_eq!(counts[format!("START {KILLED}/vocab.txt")], 1, "what was whole is kept: {counts}");
    hf::check_snapshot(&a.offline().fetch(&[KILLED]), &files);
}

fn a_cut_download_goes_on_where_it_was(world: &World) {
    let files = [("model.safetensors", Pattern::new(60, 24 << 20))];
    world.hub.get(&format!("/_cut?file={CUT}/model.safetensors&after=15000000&times=1"));
    hf::check_snapshot(&world.on(0, Pins::Hub2).fetch(&[CUT]), &files);
    let counts = world.hub.counts();
    assert_eq!(counts[format!("START {CUT}/model.safetensors")], 2, "{counts}");
    // The client writes in pieces of 10 MiB, and goes on after the last whole one.
    assert_eq!(counts[format!("BYTES {CUT}/model.safetensors")], (14 << 20) + 15_000_000, "{counts}");
    hf::check_snapshot(&world.on(1, Pins::Hub2).offline().fetch(&[CUT]), &files);
}

fn blobs_replaced_from_two_nodes_stay_whole(world: &World) {
    let files = small(70);
    let first = world.on(0, Pins::Hub2).fetch(&[FORCED]);
    let commit = fs::read_to_string(world.at(2, FORCED, "refs/main")).expect("read refs/main");
    let path = world.at(2, FORCED, &format!("snapshots/{commit}/model.safetensors"));
    hf::check_snapshot(&first, &files);
    let wanted = files[2].1.sha256();
    let mut open = File::open(&path).expect("open the file that will be replaced");
    let over = AtomicBool::new(false);
    let looks = std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut looks = 0;
            while !over.load(Ordering::SeqCst) {
                match pattern::sha256_file(&path) {
                    Ok(seen) => assert_eq!(seen, wanted, "never half, never other bytes"),
                    // The client removes a link before it makes it again.
                    Err(why) => assert_eq!(why.kind(), std::io::ErrorKind::NotFound, "{why}"),
                }
                looks += 1;
            }
            looks
        });
        let args = [FORCED, "--force", "--times", "3"];
        let seen = world.together(&[0, 1].map(|n| world.on(n, Pins::Hub2)), "forced", &args);
        over.store(true, Ordering::SeqCst);
        for seen in seen {
            hf::check_snapshot(&seen, &files);
        }
        watch.join().expect("every look is right")
    });
    assert!(looks > 3, "{looks} looks");
    let mut bytes = Vec::new();
    open.rewind().and_then(|()| open.read_to_end(&mut bytes)).expect("read what was replaced");
    assert!(bytes == files[2].1.bytes(), "an open file is what it was");
    assert_eq!(fs::read_dir(world.at(2, FORCED, "blobs")).expect("list the blobs").count(), files.len());
}

fn the_command_line_lists_verifies_and_removes(world: &World) {
    let (a, b) = (world.on(0, Pins::Hub2), world.on(1, Pins::Hub2));
    a.fetch(&[LISTED]);
    let id = format!("model/{LISTED}");
    let listed = |client: &Client| {
        let list = hf::json(client.hf(&["cache", "ls", "--format", "json"]));
        // Without the times, which are told as "a minute ago".
        let same = ["id", "repo_id", "repo_type", "size", "refs"];
        let found = list.as_array().expect("a list").iter().find(|r| r["id"] == id)?;
        Some(same.map(|field| found[field].clone()))
    };
    let of_b = listed(&b).expect("the other node lists it");
    assert_eq!(Some(&of_b), listed(&a).as_ref(), "both list the same");
    hf::must_say(&hf::end(hf::start(b.hf(&["cache", "verify", LISTED]))));

    // Somebody damages a blob; the other node's client finds it.
    let commit = fs::read_to_string(world.at(0, LISTED, "refs/main")).expect("read refs/main");
    let vocab = world.at(0, LISTED, &format!("snapshots/{commit}/vocab.txt"));
    let mut bytes = fs::read(&vocab).expect("read a file");
    bytes[12_345] ^= 1;
    fs::write(&vocab, &bytes).expect("damage a file");
    let verified = hf::end(hf::start(b.hf(&["cache", "verify", LISTED])));
    let said = String::from_utf8_lossy(&verified.stderr) + String::from_utf8_lossy(&verified.stdout);
    assert!(!verified.status.success() && said.contains("vocab.txt"), "the damage is found: {said}");

    // Removed on one node while it is open on another.
    let path = world.at(2, LISTED, &format!("snapshots/{commit}/model.safetensors"));
    let mut open = File::open(&path).expect("open a file that will be removed");
    hf::must_say(&hf::end(hf::start(a.hf(&["cache", "rm", &id, "--yes"]))));
    assert_eq!(listed(&b), None, "the other node lists it no more");
    for node in 0..3 {
        let gone = fs::metadata(world.at(node, LISTED, "")).expect_err("the repository is gone");
        assert_eq!(gone.kind(), std::io::ErrorKind::NotFound);
    }
    let mut all = Vec::new();
    open.read_to_end(&mut all).expect("read what was removed");
    assert!(all == small(80)[2].1.bytes(), "an open file is what it was");
    hf::check_snapshot(&b.fetch(&[LISTED]), &small(80));
}

fn nobody_asked_for_xet(world: &World) {
    let counts = world.hub.counts();
    let asked: Vec<&String> = counts.as_object().expect("an object").keys().collect();
    assert!(!asked.iter().any(|a| a.contains("xet")), "{asked:?}");
    for home in 0..2 {
        let kept = world.scratch.join(format!("home{home}/xet"));
        let chunks = fs::read_dir(kept).into_iter().flatten().flatten().filter(|e| e.path().is_dir());
        assert_eq!(chunks.filter(|e| e.file_name() != "logs").count(), 0, "plain HTTP, all of it");
    }
}
