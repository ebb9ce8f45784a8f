//! The story of `hfcache demo`, and what it promises: three nodes share a cache, one dies, work goes on.

use hfcache_tests::pattern::Pattern;
use hfcache_tests::{Cluster, Lab, eventually, measure, sys};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// A repository in the cache layout of `huggingface_hub`, as it would write it.
struct Repo {
    files: BTreeMap<String, Pattern>,
}

impl Repo {
    fn new(seed: u64) -> Self {
        let sizes = [
            ("config.json", 650),
            ("tokenizer.json", 2_200_000),
            ("model.safetensors", 70 << 20),
            ("README.md", 5_000),
        ];
        Self {
            files: sizes
                .iter()
                .zip(seed..)
                .map(|((n, len), s)| ((*n).to_owned(), Pattern::new(s, *len)))
                .collect(),
        }
    }

    fn write(&self, hub: &Path, name: &str) {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let repo = hub.join(name);
        for dir in ["blobs", "refs", &format!("snapshots/{commit}")] {
            fs::create_dir_all(repo.join(dir)).expect("make a folder of the cache");
        }
        for (file, content) in &self.files {
            let blob = content.sha256();
            let part = repo.join(format!("blobs/{blob}.incomplete"));
            content.write(&part).expect("write a blob");
            fs::rename(&part, repo.join("blobs").join(&blob)).expect("publish a blob");
            let link = repo.join(format!("snapshots/{commit}/{file}"));
            symlink(format!("../../blobs/{blob}"), link).expect("link a blob");
        }
        fs::write(repo.join("refs/main.tmp"), commit).expect("write a ref");
        fs::rename(repo.join("refs/main.tmp"), repo.join("refs/main")).expect("publish a ref");
    }

    fn check(&self, hub: &Path, name: &str) {
        let repo = hub.join(name);
        let commit = fs::read_to_string(repo.join("refs/main")).expect("read a ref");
        for (file, content) in &self.files {
            content
                .check(&repo.join("snapshots").join(&commit).join(file))
                .expect("read a file of the snapshot");
        }
        let listed = fs::read_dir(repo.join("blobs")).expect("list blobs").count();
        assert_eq!(listed, self.files.len());
    }
}

#[test]
fn three_nodes_share_a_cache_and_one_may_die() {
    let mut cluster = Cluster::start("spine", 3);
    let hub = |cluster: &Cluster, node: usize| cluster.path(node, "hub");
    let first = Repo::new(10);
    first.write(&hub(&cluster, 0), "models--acme--first");
    first.check(&hub(&cluster, 1), "models--acme--first");
    first.check(&hub(&cluster, 2), "models--acme--first");

    cluster.node_mut(1).kill();
    first.check(&hub(&cluster, 2), "models--acme--first");
    let second = Repo::new(20);
    second.write(&hub(&cluster, 2), "models--acme--second");
    second.check(&hub(&cluster, 0), "models--acme--second");
    cluster.wait_degraded(0);

    let start = Instant::now();
    cluster.node_mut(1).start();
    cluster.wait_healthy();
    measure::record("spine", "a killed node was back and healthy after", start.elapsed().as_secs_f64(), "s");
    for (repo, name) in [(&first, "models--acme--first"), (&second, "models--acme--second")] {
        repo.check(&hub(&cluster, 1), name);
    }

    // What was written while it was away is whole without any one of the others, too.
    for gone in [0, 2] {
        cluster.make_cold(1);
        cluster.wait_healthy();
        cluster.node_mut(gone).kill();
        second.check(&hub(&cluster, 1), "models--acme--second");
        cluster.node_mut(gone).start();
        cluster.wait_healthy();
    }
    cluster.stop_all();
}

#[test]
fn nodes_join_while_files_are_written() {
    let mut cluster = Cluster::start("join", 3);
    let stop = AtomicBool::new(false);
    let dirs = [cluster.path(0, "w0"), cluster.path(2, "w1")];
    let written: Vec<(usize, u64, Pattern)> = thread::scope(|scope| {
        let writers: Vec<_> = dirs
            .iter()
            .enumerate()
            .map(|(w, dir)| {
                let stop = &stop;
                scope.spawn(move || {
                    fs::create_dir(dir).expect("make a writer's directory");
                    let mut written = Vec::new();
                    for i in 0u64.. {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        let len = [300, 9_000, 700_000, 5 << 20][(i % 4) as usize];
                        let pattern = Pattern::new(w as u64 * 1_000_000 + i, len);
                        pattern.write(&dir.join(format!("f{i}"))).expect("a write fails while a node joins");
                        written.push((w, i, pattern));
                    }
                    written
                })
            })
            .collect();
        for _ in 0..2 {
            cluster.add_node(&[]);
        }
        stop.store(true, Ordering::Relaxed);
        writers.into_iter().flat_map(|w| w.join().expect("a writer")).collect()
    });
    assert!(!written.is_empty());
    // Also what was written while there were fewer nodes gets the redundancy of five.
    cluster.wait_healthy();
    for node in [3, 4] {
        for (w, i, pattern) in &written {
            pattern.check(&cluster.path(node, &format!("w{w}/f{i}"))).expect("read on a new node");
        }
        Pattern::new(7, 3 << 20)
            .write(&cluster.path(node, &format!("from{node}")))
            .expect("write on a new node");
        Pattern::new(7, 3 << 20)
            .check(&cluster.path(0, &format!("from{node}")))
            .expect("read that on an old node");
    }
    eventually("all five vote", Duration::from_secs(60), || {
        let status = cluster.status(0);
        let nodes = status["nodes"].as_array().expect("nodes");
        nodes.iter().filter(|n| matches!(n["role"].as_str(), Some("voter" | "leader"))).count() == 5
    });
    cluster.wait_healthy();
    // Five voters bear two losses.
    cluster.node_mut(0).kill();
    cluster.node_mut(1).kill();
    fs::write(cluster.path(4, "after"), b"two are gone").expect("write with three of five");
    assert_eq!(fs::read(cluster.path(3, "after")).expect("read with three of five"), b"two are gone");
}

/// A node that gives no disk sees everything and holds nothing.
#[test]
fn a_node_without_storage_mounts_only() {
    let mut cluster = Cluster::start("mount-only", 2);
    let client = cluster.add_node(&["--no-storage"]);
    let pattern = Pattern::new(3, 30 << 20);
    pattern.write(&cluster.path(client, "written-by-client")).expect("write");
    pattern.check(&cluster.path(0, "written-by-client")).expect("read on a storage node");
    pattern.write(&cluster.path(0, "written-by-storage")).expect("write");
    pattern.check(&cluster.path(client, "written-by-storage")).expect("read on the client");
    cluster.node_mut(client).kill();
    pattern.check(&cluster.path(1, "written-by-client")).expect("nothing was held by the client alone");
    // Started anew with no hot copies, it has nothing, and reads everything.
    fs::remove_dir_all(cluster.node(client).data().join("hot")).expect("hot copies may go while stopped");
    cluster.node_mut(client).start();
    pattern.check(&cluster.path(client, "written-by-client")).expect("read with no hot copy");
}

/// A node leaves in good order: what it held is on the others before it goes.
#[test]
fn a_node_leaves_and_takes_nothing_with_it() {
    let mut cluster = Cluster::start("leave", 4);
    let files: Vec<Pattern> = (0..12).map(|i| Pattern::new(i, (i + 1) * 1_300_000)).collect();
    for (i, pattern) in files.iter().enumerate() {
        pattern.write(&cluster.path(i % 4, &format!("f{i}"))).expect("write");
    }
    cluster.wait_healthy();
    let plan = cluster.node(3).call_ok(&[
        "node",
        "leave",
        "--data",
        &cluster.node(3).data_arg(),
        "--dry-run",
        "--json",
    ]);
    assert!(plan.contains("scheme_after"), "{plan}");
    // Four nodes bear two losses, three bear one: leaving lowers a promise, so it must be meant.
    let said = cluster.node(3).call(&["node", "leave", "--data", &cluster.node(3).data_arg()]);
    assert!(!said.status.success(), "a lower redundancy must be agreed to");
    cluster.node(3).call_ok(&["node", "leave", "--data", &cluster.node(3).data_arg(), "--force"]);
    cluster.forget(3);
    cluster.wait_healthy();
    for (i, pattern) in files.iter().enumerate() {
        pattern.check(&cluster.path(i % 3, &format!("f{i}"))).expect("read after a node has left");
    }
    cluster.node_mut(0).kill();
    for (i, pattern) in files.iter().enumerate() {
        pattern.check(&cluster.path(1 + i % 2, &format!("f{i}"))).expect("and after another has died");
    }
}

/// Makes /dev/fuse as udev would, for as long as this lives: on a machine without udev only root may open it.
struct OpenDevice(fs::Permissions);

impl OpenDevice {
    const PATH: &str = "/dev/fuse";

    fn new() -> Self {
        let before = fs::metadata(Self::PATH).expect("look at /dev/fuse").permissions();
        fs::set_permissions(Self::PATH, fs::Permissions::from_mode(0o666)).expect("open /dev/fuse to all");
        Self(before)
    }
}

impl Drop for OpenDevice {
    fn drop(&mut self) {
        let _ = fs::set_permissions(Self::PATH, self.0.clone());
    }
}

/// A user who is not root mounts through fusermount3.
#[test]
fn a_node_runs_as_an_ordinary_user() {
    if !sys::is_root() {
        return; // Then all the other tests show it.
    }
    // fusermount3 wants a user with a name: "nobody" is on every system.
    const USER: u32 = 65_534;
    let _open = OpenDevice::new();
    let lab = Arc::new(Lab::new("user"));
    let mut cluster = Cluster::empty(&lab, "", None);
    let mut node = cluster.new_node(None);
    node.run_as(USER);
    node.init(&[]);
    node.start();
    let mount = node.mount();
    let mut script = node.program(Path::new("sh"));
    let body = "set -e; cd \"$0\"; mkdir d; echo hello >d/f; ln -s f d/l; cat d/l; mv d/f d/g; stat -c %u:%s d/g; rm -r d; ls";
    script.args(["-c", body]).arg(&mount);
    let output = hfcache_tests::node::run(script, Duration::from_secs(60)).expect("the script ends");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(said, format!("hello\n{USER}:6\n"), "{}", String::from_utf8_lossy(&output.stderr));
    node.stop();
    node.start();
    // Killed, its mount stays behind; the next start must be able to clear it away as that user.
    node.kill();
    node.start();
    node.stop();
}
