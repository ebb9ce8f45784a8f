//! What people run on a shared cache besides `huggingface_hub`, unchanged: `datasets`, `safetensors`, a training job's
//! input, and the Rust crate `hf-hub`, on the mounts of several nodes.

use hfcache_tests::hf::{self, Client, Files, Hub, Pins};
use hfcache_tests::pattern::Pattern;
use hfcache_tests::{Check, Checks, Cluster, measure, mounts};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const IMAGES: u64 = 2_000;
const WORKERS: u64 = 16;
const EPOCHS: u64 = 2;

fn run<W>(world: &W, checks: &[Check<W>]) {
    let mut results = Checks::default();
    results.run_each(world, checks);
    results.finish();
}

/// A directory of this machine that is there as long as the test takes.
struct Local(PathBuf);

impl Local {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
        fs::create_dir_all(path.join("same")).expect("make a local directory");
        Self(path)
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

// --- datasets, safetensors, images ---

/// A dataset on the Hub.
const ROWS: &str = "acme/rows";

/// Users of data on nodes. Each sees his node's mount at the same path, as on machines: `datasets` finds what it has
/// prepared by absolute paths.
struct Users {
    mounts: [PathBuf; 3],
    at: PathBuf,
    scratch: PathBuf,
    hub: Hub,
    /// Figures of a local directory are of no interest.
    measured: bool,
}

const OF_DATA: &[Check<Users>] = &[
    ("a_dataset_is_prepared_and_mapped_for_all_nodes", a_dataset_is_prepared_and_mapped_for_all_nodes),
    ("two_nodes_at_once_prepare_a_dataset_once", two_nodes_at_once_prepare_a_dataset_once),
    ("a_dataset_of_the_hub_is_there_offline", a_dataset_of_the_hub_is_there_offline),
    ("tensors_are_right_through_a_mapping", tensors_are_right_through_a_mapping),
    ("a_mapping_of_replaced_tensors_stays_whole", a_mapping_of_replaced_tensors_stays_whole),
    ("worker_processes_read_small_images", worker_processes_read_small_images),
];

#[test]
#[ignore = "takes long; a stage of its own in .ci/run"]
fn users_share_data_over_nodes() {
    // What takes long the first time: not while other tests wait for their turn.
    Pins::Data.program("python");
    let cluster = Cluster::start("data", 3);
    let mounts = [0, 1, 2].map(|n| cluster.path(n, ""));
    run(&Users::new(mounts, cluster.lab().dir("same"), cluster.lab().dir("users"), true), OF_DATA);
}

/// The checks are right.
#[test]
#[ignore = "takes long; a stage of its own in .ci/run"]
fn the_checks_of_data_hold_on_the_local_file_system() {
    Pins::Data.program("python");
    let local = Local::new("hfcache-data");
    let root = local.0.join("root");
    fs::create_dir(&root).expect("make a local directory");
    let mounts = [root.clone(), root.clone(), root];
    run(&Users::new(mounts, local.0.join("same"), local.0.clone(), false), OF_DATA);
}

impl Users {
    fn new(mounts: [PathBuf; 3], at: PathBuf, scratch: PathBuf, measured: bool) -> Self {
        let repos = scratch.join("repos");
        let mut make = hf::script(Pins::Data, "data_user.py");
        make.arg(repos.join("datasets").join(ROWS)).args(["make", "parquet"]);
        hf::json(make);
        Self { mounts, at, scratch, hub: Hub::start(&repos), measured }
    }

    /// A script that somebody on a node runs.
    fn command(&self, node: usize, script: &str, path: &str, args: &[&str]) -> Command {
        let mut command = hf::script(Pins::Data, script);
        command.arg(self.at.join(path)).args(args);
        self.at_home(node, command)
    }

    /// The same with a dataset of the Hub, with and without a network.
    fn of_hub(&self, node: usize, online: bool) -> Value {
        let mut command = hf::script(Pins::Data, "data_user.py");
        command.args([ROWS, "use", "hub"]);
        if online {
            command.env("HF_HUB_OFFLINE", "0").env("HF_ENDPOINT", self.hub.endpoint());
        }
        hf::json(self.at_home(node, command))
    }

    /// Everything of all users is in the one directory, not only the data: many set nothing but HF_HOME.
    fn at_home(&self, node: usize, mut command: Command) -> Command {
        command.env("HF_HOME", self.at.join("home")).env("HF_DATASETS_CACHE", self.at.join("home/datasets"));
        command.env("CALLS", self.calls(node));
        mounts::with_bind(&self.mounts[node], &self.at, &command)
    }

    fn json(&self, node: usize, script: &str, path: &str, args: &[&str]) -> Value {
        hf::json(self.command(node, script, path, args))
    }

    /// Where a node's users note that the mapped function was called.
    fn calls(&self, node: usize) -> PathBuf {
        self.scratch.join(format!("calls-{node}"))
    }

    /// From now on they are counted from 0.
    fn forget_calls(&self) {
        for node in 0..3 {
            let _ = fs::remove_file(self.calls(node));
        }
    }

    fn start_file(&self, name: &str) -> PathBuf {
        self.scratch.join(format!("start-{name}"))
    }

    /// All files of the cache as a node sees them, without the locks: inode, size, mtime, and what it holds.
    fn cached(&self, node: usize) -> BTreeMap<PathBuf, (u64, u64, i64, i64)> {
        let root = self.mounts[node].join("home");
        let (mut found, mut todo) = (BTreeMap::new(), vec![root.clone()]);
        while let Some(dir) = todo.pop() {
            for entry in fs::read_dir(&dir).expect("list the cache") {
                let path = entry.expect("list the cache").path();
                let seen = fs::symlink_metadata(&path).expect("look at a file of the cache");
                if seen.is_dir() {
                    todo.push(path);
                } else if path.extension().is_none_or(|e| e != "lock") {
                    let short = path.strip_prefix(&root).expect("it is below").to_owned();
                    found.insert(short, (seen.ino(), seen.size(), seen.mtime(), seen.mtime_nsec()));
                }
            }
        }
        found
    }
}

#[track_caller]
fn same_content(seen: &Value, made: &Value) {
    for field in ["rows", "content", "mapped"] {
        assert_eq!(seen[field], made[field], "{field}: {seen}");
    }
}

fn a_dataset_is_prepared_and_mapped_for_all_nodes(users: &Users) {
    let made = users.json(0, "data_user.py", "source", &["make"]);
    for kind in ["json", "csv", "parquet"] {
        users.forget_calls();
        let first = users.json(0, "data_user.py", "source", &["use", kind]);
        same_content(&first, &made);
        assert_eq!(first["generated"], 1, "{kind}: {first}");
        assert!(first["calls"].as_u64() > Some(0), "{kind}: {first}");
        let before = users.cached(0);
        assert!(before.keys().filter(|p| p.extension().is_some_and(|e| e == "arrow")).count() >= 2);
        for node in if kind == "json" { vec![1, 2] } else { vec![1] } {
            let again = users.json(node, "data_user.py", "source", &["use", kind]);
            same_content(&again, &made);
            assert_eq!(again["generated"], 0, "node {node} finds the prepared {kind}: {again}");
            assert_eq!(again["calls"], 0, "node {node} finds the mapped {kind}: {again}");
            assert_eq!(again["arrow"], first["arrow"], "the same files, to the nanosecond");
            assert_eq!(users.cached(node), before, "nothing was written");
        }
    }
}

fn two_nodes_at_once_prepare_a_dataset_once(users: &Users) {
    let made = users.json(2, "data_user.py", "at-once", &["make"]);
    for kind in ["json", "parquet"] {
        users.forget_calls();
        let start = users.start_file(kind);
        let args = ["use", kind, "--start", start.to_str().expect("a plain path")];
        let children = [0, 1].map(|n| hf::start(users.command(n, "data_user.py", "at-once", &args)));
        hf::start_together(&start, &children);
        let seen = children.map(hf::json_of);
        for one in &seen {
            same_content(one, &made);
        }
        let times = |field: &str| seen.iter().filter_map(|s| s[field].as_u64()).sum::<u64>();
        assert_eq!(times("generated"), 1, "one prepares {kind}, the other waits for it: {seen:?}");
        let prepared = format!("{kind}-train.arrow");
        assert_eq!(seen[0]["arrow"][&prepared], seen[1]["arrow"][&prepared]);
        // Mapping is not under a lock: either may do it, and the last one's file stays.
        assert!(times("calls") > 0, "{seen:?}");
        users.forget_calls();
        let later = users.json(2, "data_user.py", "at-once", &["use", kind]);
        same_content(&later, &made);
        assert_eq!((&later["generated"], &later["calls"]), (&0.into(), &0.into()), "{later}");
        assert_eq!(later["arrow"][&prepared], seen[0]["arrow"][&prepared]);
        let half = users.cached(2).into_keys().filter(|p| p.to_string_lossy().contains("incomplete")).count();
        assert_eq!(half, 0, "nothing half is left");
    }
}

fn a_dataset_of_the_hub_is_there_offline(users: &Users) {
    users.forget_calls();
    let first = users.of_hub(0, true);
    assert_eq!(first["generated"], 1, "{first}");
    users.forget_calls();
    for (node, online) in [(1, false), (2, true), (0, false)] {
        let again = users.of_hub(node, online);
        same_content(&again, &first);
        assert_eq!((&again["generated"], &again["calls"]), (&0.into(), &0.into()), "node {node}: {again}");
        assert_eq!(again["arrow"], first["arrow"], "the same files");
    }
    let counts = users.hub.counts();
    for part in 0..2 {
        assert_eq!(counts[format!("START datasets/{ROWS}/parquet/part-{part}.parquet")], 1, "{counts}");
    }
}

fn tensors_are_right_through_a_mapping(users: &Users) {
    let file = "model.safetensors";
    let saved = users.json(0, "tensors_user.py", file, &["save", "1"]);
    for node in [1, 0, 2] {
        let read = users.json(node, "tensors_user.py", file, &["read"]);
        assert_eq!(read["tensors"], saved["tensors"], "on node {node}");
        if users.measured && node == 1 {
            let per_second =
                |v: &Value| v["bytes"].as_f64().unwrap_or(0.0) / v["seconds"].as_f64().unwrap_or(1.0);
            measure::record("clients", "tensors mapped on another node", per_second(&read) / 1e6, "MB/s");
        }
    }

    // As the ranks of a job do: many fault in the same pages at once.
    let file = "ranks.safetensors";
    let saved = users.json(0, "tensors_user.py", file, &["save", "4"]);
    let start = users.start_file("ranks");
    let args = ["hold", "--start", start.to_str().expect("a plain path")];
    let ranks: Vec<_> =
        (0..8).map(|rank| hf::start(users.command(1 + rank % 2, "tensors_user.py", file, &args))).collect();
    hf::start_together(&start, &ranks);
    for rank in ranks {
        assert_eq!(hf::json_of(rank)["tensors"], saved["tensors"]);
    }
}

fn a_mapping_of_replaced_tensors_stays_whole(users: &Users) {
    let file = "replaced.safetensors";
    let old = users.json(0, "tensors_user.py", file, &["save", "2"]);
    // These have only seen the header: the tensors are read from a file that has no name any more.
    let start = users.start_file("tensors");
    let args = ["hold", "--start", start.to_str().expect("a plain path")];
    let holders = [1, 2, 0].map(|n| hf::start(users.command(n, "tensors_user.py", file, &args)));
    hf::wait_ready(&start, &holders);
    let new = users.json(0, "tensors_user.py", file, &["save", "3"]);
    assert_ne!(old["tensors"], new["tensors"]);
    for node in [1, 2, 0] {
        let read = users.json(node, "tensors_user.py", file, &["read"]);
        assert_eq!(read["tensors"], new["tensors"], "who opens it on node {node} reads the new ones");
    }
    hf::start_together(&start, &holders);
    for held in holders.map(hf::json_of) {
        assert_eq!(held["tensors"], old["tensors"], "who has it open reads the old ones");
    }
}

fn worker_processes_read_small_images(users: &Users) {
    let writers = 4;
    let part = |i: u64| (IMAGES / writers * i).to_string();
    let children = (0..writers)
        .map(|i| hf::start(users.command(0, "images_user.py", "images", &["make", &part(i), &part(i + 1)])));
    for child in children.collect::<Vec<_>>() {
        hf::must_say(&hf::end(child));
    }
    let numbers = [IMAGES, WORKERS, EPOCHS].map(|n| n.to_string());
    let args = ["read", &numbers[0], &numbers[1], &numbers[2]];
    let seen = users.json(1, "images_user.py", "images", &args);
    assert_eq!(seen["wrong"], Value::Array(Vec::new()), "{seen}");
    for (name, epoch) in ["first", "second"].iter().zip(seen["epochs"].as_array().expect("a list")) {
        assert_eq!(epoch["images"], IMAGES);
        if users.measured {
            let rate = IMAGES as f64 / epoch["seconds"].as_f64().expect("a time");
            measure::record(
                "clients",
                &format!("images by {WORKERS} workers, {name} epoch"),
                rate,
                "images/s",
            );
        }
    }
}

// --- the crate hf-hub ---

/// A repository with files under and over the size of LFS files, and one in a folder.
fn model(seed: u64) -> Vec<(&'static str, Pattern)> {
    vec![
        ("config.json", Pattern::new(seed, 600)),
        ("vocab.txt", Pattern::new(seed + 1, 50_000)),
        ("onnx/model.onnx", Pattern::new(seed + 2, 200_000)),
        ("model.safetensors", Pattern::new(seed + 3, (9 << 20) + 77)),
    ]
}

/// hf-hub 0.5 and 1.0.
const VERSIONS: [&str; 2] = ["older", "newer"];
const FIRST: [&str; 2] = ["acme/first-older", "acme/first-newer"];
const AT_ONCE: [&str; 2] = ["acme/at-once-older", "acme/at-once-newer"];
const OF_PYTHON: &str = "acme/of-python";
const MIXED: &str = "acme/mixed";

/// The crate's users on nodes, and the Hub they ask.
struct Crates {
    hub: Hub,
    scratch: PathBuf,
    caches: [PathBuf; 3],
}

const OF_CRATES: &[Check<Crates>] = &[
    ("a_crates_download_serves_all_nodes", a_crates_download_serves_all_nodes),
    ("a_download_of_python_is_found_by_crates", a_download_of_python_is_found_by_crates),
    ("crates_on_two_nodes_at_once_are_both_right", crates_on_two_nodes_at_once_are_both_right),
    ("python_and_a_crate_at_once_are_both_right", python_and_a_crate_at_once_are_both_right),
];

fn prepare_crates() {
    hf::hub_user();
    Pins::Hub2.program("python");
}

#[test]
#[ignore = "takes long; a stage of its own in .ci/run"]
fn crates_share_a_cache_over_nodes() {
    prepare_crates();
    let cluster = Cluster::start("crates", 3);
    let caches = [0, 1, 2].map(|n| cluster.path(n, "hub"));
    run(&Crates::new(&cluster.lab().dir("client"), caches), OF_CRATES);
}

/// The checks are right, and the Hub of these tests is one for the crates.
#[test]
#[ignore = "takes long; a stage of its own in .ci/run"]
fn the_checks_of_crates_hold_on_a_local_cache() {
    prepare_crates();
    let local = Local::new("hfcache-crates");
    let cache = local.0.join("cache");
    run(&Crates::new(&local.0, [cache.clone(), cache.clone(), cache]), OF_CRATES);
}

impl Crates {
    fn new(scratch: &Path, caches: [PathBuf; 3]) -> Self {
        let repos = scratch.join("repos");
        let all = FIRST.iter().chain(&AT_ONCE).chain([&OF_PYTHON, &MIXED]);
        for (repo, seed) in all.zip((100..).step_by(10)) {
            Hub::put(&repos, repo, &model(seed));
        }
        Self { hub: Hub::start(&repos), scratch: scratch.to_owned(), caches }
    }

    /// Somebody on a node, at home there; Python's side of him is the newer `huggingface_hub`.
    fn on(&self, node: usize) -> Client {
        Client::new(Pins::Hub2, &self.hub, &self.caches[node], &self.scratch.join(format!("home{node}")))
    }

    /// A download by the crate.
    fn command(&self, node: usize, version: &str, repo: &str, more: &[&str]) -> Command {
        let mut args = vec![version, repo];
        args.extend(model(0).iter().map(|(name, _)| *name));
        args.extend(more);
        self.on(node).hub_user(&args)
    }

    fn json(&self, node: usize, version: &str, repo: &str, more: &[&str]) -> Value {
        hf::json(self.command(node, version, repo, more))
    }

    /// How often each file was sent.
    fn sent(&self, repo: &str, files: &Files<'_>) -> Vec<u64> {
        let counts = self.hub.counts();
        let count = |path: &str| counts[format!("START {repo}/{path}")].as_u64().unwrap_or(0);
        files.iter().map(|(path, _)| count(path)).collect()
    }

    /// What is left of a repository's blobs besides them.
    fn half(&self, node: usize, repo: &str) -> Vec<String> {
        let blobs = self.caches[node].join(format!("models--{}/blobs", repo.replace('/', "--")));
        let names =
            fs::read_dir(blobs).expect("list the blobs").map(|e| e.expect("list the blobs").file_name());
        let names = names.map(|name| name.to_string_lossy().into_owned());
        names.filter(|name| name.ends_with(".incomplete") || name.ends_with(".part")).collect()
    }
}

fn a_crates_download_serves_all_nodes(crates: &Crates) {
    for (which, version) in VERSIONS.iter().enumerate() {
        let (repo, files) = (FIRST[which], model(100 + 10 * which as u64));
        hf::check_snapshot(&crates.json(0, version, repo, &[]), &files);
        assert_eq!(crates.sent(repo, &files), [1; 4], "{version}");
        // The same on the other nodes, with a Hub and without; by the other version; and by Python.
        hf::check_snapshot(&crates.json(1, version, repo, &[]), &files);
        hf::check_snapshot(&crates.json(2, version, repo, &["--offline"]), &files);
        for other in VERSIONS {
            hf::check_snapshot(&crates.json(1, other, repo, &["--offline"]), &files);
            hf::check_snapshot(&crates.json(2, other, repo, &[]), &files);
        }
        hf::check_snapshot(&crates.on(2).offline().fetch(&[repo]), &files);
        hf::check_snapshot(&crates.on(1).fetch(&[repo]), &files);
        assert_eq!(crates.sent(repo, &files), [1; 4], "{version}: nobody downloads it again");
    }
}

fn a_download_of_python_is_found_by_crates(crates: &Crates) {
    let files = model(140);
    hf::check_snapshot(&crates.on(0).fetch(&[OF_PYTHON]), &files);
    for version in VERSIONS {
        hf::check_snapshot(&crates.json(1, version, OF_PYTHON, &["--offline"]), &files);
        hf::check_snapshot(&crates.json(2, version, OF_PYTHON, &[]), &files);
    }
    assert_eq!(crates.sent(OF_PYTHON, &files), [1; 4], "nobody downloads it again");
}

fn crates_on_two_nodes_at_once_are_both_right(crates: &Crates) {
    for (which, version) in VERSIONS.iter().enumerate() {
        let (repo, files) = (AT_ONCE[which], model(120 + 10 * which as u64));
        let start = crates.scratch.join(format!("start-{version}"));
        let more = ["--start", start.to_str().expect("a plain path")];
        let children = [0, 1].map(|node| hf::start(crates.command(node, version, repo, &more)));
        hf::start_together(&start, &children);
        for seen in children.map(hf::json_of) {
            hf::check_snapshot(&seen, &files);
        }
        // Neither version looks again when it has waited for the lock: it downloads, and replaces what is there.
        assert!(crates.sent(repo, &files).iter().all(|n| (1..=2).contains(n)), "{version}");
        assert_eq!(crates.half(2, repo), Vec::<String>::new(), "{version}: nothing half is left");
        hf::check_snapshot(&crates.json(2, version, repo, &["--offline"]), &files);
    }
}

/// hf-hub 1.0 and `huggingface_hub` take the same lock file.
fn python_and_a_crate_at_once_are_both_right(crates: &Crates) {
    let files = model(150);
    let start = crates.scratch.join("start-mixed");
    let more = ["--start", start.to_str().expect("a plain path")];
    let of_python = crates.on(1).start_fetch(&[MIXED, more[0], more[1]]);
    let children = [hf::start(crates.command(0, "newer", MIXED, &more)), of_python];
    hf::start_together(&start, &children);
    for seen in children.map(hf::json_of) {
        hf::check_snapshot(&seen, &files);
    }
    assert!(crates.sent(MIXED, &files).iter().all(|n| (1..=2).contains(n)));
    assert_eq!(crates.half(2, MIXED), Vec::<String>::new(), "nothing half is left");
    hf::check_snapshot(&crates.json(2, "older", MIXED, &["--offline"]), &files);
}
