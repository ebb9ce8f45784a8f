//! The real `huggingface_hub` from PyPI, unchanged, downloads into the mount.

use hfcache_tests::hf::{self, Hub};
use hfcache_tests::pattern::Pattern;
use hfcache_tests::{Cluster, eventually, node};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

const REPO: &str = "acme/tiny";

/// Files of the repository: of every size class, and one in a folder.
fn files() -> BTreeMap<&'static str, Pattern> {
    BTreeMap::from([
        ("config.json", Pattern::new(1, 700)),
        ("tokenizer.json", Pattern::new(2, 3_000_000)),
        ("vocab.txt", Pattern::new(3, 40_000)),
        ("onnx/model.onnx", Pattern::new(4, 300_000)),
        ("model-00001-of-00002.safetensors", Pattern::new(5, 40 << 20)),
        ("model-00002-of-00002.safetensors", Pattern::new(6, (18 << 20) + 12_345)),
    ])
}

fn make_repo(root: &Path) {
    for (path, content) in files() {
        let path = root.join(REPO).join(path);
        std::fs::create_dir_all(path.parent().expect("a file has a folder"))
            .expect("make a folder of the repository");
        content.write(&path).expect("write a file of the repository");
    }
}

/// Starts a client whose cache is in `cache`, and everything else of it in `home`.
fn client(hub: &Hub, cache: &Path, home: &Path, start: &Path) -> Child {
    hf::script("fetch.py")
        .args([REPO, start.to_str().expect("a plain path")])
        .env("HF_ENDPOINT", hub.endpoint())
        .env("HF_HUB_CACHE", cache)
        .env("HF_HOME", home)
        .env("HF_HUB_DISABLE_XET", "1")
        .env("HF_HUB_DISABLE_TELEMETRY", "1")
        .env("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        .env("HF_HUB_DISABLE_UPDATE_CHECK", "1")
        .env_remove("HF_TOKEN")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start a client")
}

fn outcome(child: Child) -> Value {
    let pid = child.id();
    let output = hfcache_tests::wait::try_within(Duration::from_secs(180), move || child.wait_with_output());
    let Some(output) = output else {
        let _ = hfcache_tests::sys::kill(pid, 9);
        panic!("a client has not ended");
    };
    let output = output.expect("wait for a client");
    assert!(output.status.success(), "a client failed: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("the client prints JSON")
}

/// Two clients at once, one in each cache directory; both must be right, with one download of each file.
fn two_at_once(hub: &Hub, caches: [&Path; 2], scratch: &Path) {
    let start = scratch.join("start");
    let _ = std::fs::remove_file(&start);
    let clients = [0, 1].map(|i| client(hub, caches[i], &scratch.join(format!("home{i}")), &start));
    // Both say that they have imported everything, and wait for the file.
    eventually("both clients are ready", Duration::from_secs(120), || {
        clients.iter().all(|c| start.with_extension(c.id().to_string()).exists())
    });
    std::fs::write(&start, "").expect("say start");
    let seen = clients.map(outcome);
    for outcome in &seen {
        for (path, content) in files() {
            assert_eq!(outcome["files"][path], content.sha256(), "{path} is right");
            let target = outcome["links"][path].as_str().unwrap_or_else(|| panic!("{path} is a link"));
            assert!(target.starts_with("../") && target.contains("/blobs/"), "{path} -> {target}");
        }
        assert_eq!(
            outcome["files"].as_object().map(|f| f.len()),
            Some(files().len()),
            "nothing else is there"
        );
    }
    let counts = hub.counts();
    for path in files().keys() {
        assert_eq!(counts[format!("GET {REPO}/{path}")], 1, "one download of {path}: {counts}");
    }
}

#[test]
fn the_hub_of_these_tests_serves_a_local_cache() {
    let scratch = std::env::temp_dir().join(format!("hfcache-hub-{}", std::process::id()));
    make_repo(&scratch.join("repos"));
    let hub = Hub::start(&scratch.join("repos"));
    let cache = scratch.join("cache");
    two_at_once(&hub, [&cache, &cache], &scratch);
    std::fs::remove_dir_all(scratch).expect("clear away");
}

#[test]
fn two_clients_on_two_mounts_download_once() {
    let cluster = Cluster::start("hf", 3);
    let scratch = cluster.lab().dir("client");
    make_repo(&scratch.join("repos"));
    let hub = Hub::start(&scratch.join("repos"));
    let caches = [cluster.path(0, "hub"), cluster.path(1, "hub")];
    two_at_once(&hub, [&caches[0], &caches[1]], &scratch);

    // A third node finds all of it with no Hub at all.
    let endpoint = hub.endpoint();
    drop(hub);
    let mut offline = hf::script("fetch.py");
    offline.args([REPO, scratch.join("start").to_str().expect("a plain path")]);
    offline.env("HF_ENDPOINT", endpoint).env("HF_HUB_OFFLINE", "1");
    offline.env("HF_HUB_CACHE", cluster.path(2, "hub")).env("HF_HOME", scratch.join("home2"));
    let output = node::run(offline, Duration::from_secs(120)).expect("the offline client ends");
    assert!(output.status.success(), "offline: {}", String::from_utf8_lossy(&output.stderr));
    let seen: Value = serde_json::from_slice(&output.stdout).expect("the client prints JSON");
    for (path, content) in files() {
        assert_eq!(seen["files"][path], content.sha256(), "{path} is right on the third node");
    }
}
