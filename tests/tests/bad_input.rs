//! What people and strangers get wrong, and how the program answers: a clear refusal, and nothing broken.

use hfcache_tests::pattern::Pattern;
use hfcache_tests::wait::until;
use hfcache_tests::{Checks, Cluster, Lab, Node, eventually, mounts, sys, within};
use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

fn words(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The command failed, did not panic, and said something with one of these words.
#[track_caller]
fn refused(output: &Output, any_of: &[&str]) {
    let said = words(output);
    assert!(!output.status.success(), "this must be refused: {said}");
    assert!(output.status.code().is_some(), "ended by a signal: {said}");
    assert!(!said.contains("panicked at"), "{said}");
    let lower = said.to_lowercase();
    assert!(any_of.iter().any(|w| lower.contains(w)), "none of {any_of:?} in: {said}");
}

/// `node run` must fail, soon, with one of these words.
#[track_caller]
fn run_refused(node: &Node, any_of: &[&str]) {
    refused(&node.call(&["node", "run", "--data", &node.data_arg()]), any_of);
}

/// The other node still works.
#[track_caller]
fn still_works(cluster: &Cluster, name: &str) {
    for (i, len) in [100, 3 << 20].into_iter().enumerate() {
        let pattern = Pattern::new(len, len);
        let (to, from) = (i % cluster.len(), (i + 1) % cluster.len());
        pattern.write(&cluster.path(to, &format!("{name}{len}"))).expect("write");
        pattern.check(&cluster.path(from, &format!("{name}{len}"))).expect("read");
    }
    cluster.wait_healthy();
}

type Check = (&'static str, fn(&mut Cluster));

#[test]
fn what_people_get_wrong_is_refused_with_words() {
    let lab = Arc::new(Lab::new("bad-input"));
    let mut cluster = Cluster::start_in(&lab, "a", 3);
    let checks: &[Check] = &[
        ("wrong_use", wrong_use),
        ("wrong_tokens", wrong_tokens),
        ("expired_token", expired_token),
        ("revoked_token", revoked_token),
        ("random_bytes_at_each_port", random_bytes_at_each_port),
        ("second_start", second_start),
        ("port_in_use", port_in_use),
        ("mount_points", mount_points),
        ("stale_mount", stale_mount),
        ("formats", formats),
        ("configuration", configuration),
        ("torn_state", torn_state),
        ("foreign_cluster", foreign_cluster),
    ];
    let mut done = Checks::default();
    for (name, check) in checks {
        done.run(name, || {
            // One that failed may have left a node stopped; the next begins with all the same.
            cluster.start_all();
            check(&mut cluster);
        });
    }
    done.finish();
}

fn wrong_use(cluster: &mut Cluster) {
    let node = cluster.node(0);
    for args in [
        &["nod"][..],
        &["node", "init"],
        &["status", "--jsno"],
        &["node", "join"],
        &["token", "create", "--ttl", "soon"],
    ] {
        let output = node.call(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", words(&output));
    }
    for args in [
        &["--help"][..],
        &["node", "init", "--help"],
        &["node", "join", "--help"],
        &["status", "--help"],
        &["env", "--help"],
    ] {
        let said = node.call_ok(args);
        assert!(said.contains("EXAMPLE"), "{args:?} has no example: {said}");
    }
    let nobody = cluster.lab().dir("nobody");
    let output = node.call(&["status", "--data", nobody.to_str().expect("a plain path"), "--json"]);
    assert_eq!(output.status.code(), Some(2), "{}", words(&output));
    let env = node.call_ok(&["env", "--data", &node.data_arg()]);
    assert!(
        env.contains("HF_HUB_CACHE") && env.contains(node.mount().to_str().expect("a plain path")),
        "{env}"
    );
}

/// A node of the cluster's network that must not get in.
fn outsider(cluster: &mut Cluster) -> Node {
    let data = cluster.lab().dir("outside").join("data");
    let _ = fs::remove_dir_all(&data);
    cluster.new_node(Some(data))
}

fn wrong_tokens(cluster: &mut Cluster) {
    let token = cluster.node(0).token(&[]);
    let outside = outsider(cluster);
    let mut wrong = vec![
        "x".to_owned(),
        "not a token".into(),
        "-".repeat(40),
        token[..token.len() / 2].into(),
        format!("{token}x"),
    ];
    for at in [0, token.len() / 4, token.len() / 2, token.len() - 2] {
        let mut bytes = token.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        wrong.push(String::from_utf8(bytes).expect("tokens are ASCII"));
    }
    for token in &wrong {
        let joined = outside.join(token, &[]);
        assert!(!joined.status.success(), "joined with {token}: {}", words(&joined));
        assert!(!words(&joined).contains("panicked at"), "{}", words(&joined));
    }
    refused(&outside.join(&wrong[1], &[]), &["token"]);
    assert_eq!(cluster.status(0)["nodes"].as_array().map(Vec::len), Some(3), "nobody got in");
}

fn expired_token(cluster: &mut Cluster) {
    let outside = outsider(cluster);
    let token = cluster.node(1).token(&["--ttl", "1s"]);
    let data = cluster.node(1).data_arg();
    eventually("the token expires", Duration::from_secs(30), || {
        cluster.node(1).call_ok(&["token", "list", "--data", &data]).contains("expired")
    });
    refused(&outside.join(&token, &[]), &["expired"]);
}

fn revoked_token(cluster: &mut Cluster) {
    let outside = outsider(cluster);
    let token = cluster.node(0).token(&[]);
    // Revoked on another node than the one that made it.
    cluster.node(2).call_ok(&["token", "revoke", &token, "--data", &cluster.node(2).data_arg()]);
    refused(&outside.join(&token, &[]), &["revoked"]);
    refused(
        &cluster.node(0).call(&["token", "revoke", "00ff00ff", "--data", &cluster.node(0).data_arg()]),
        &["token"],
    );
}

fn random_bytes_at_each_port(cluster: &mut Cluster) {
    let mut noise = vec![0; 1_200];
    let mut seed = 0;
    let mut fill = move |buf: &mut [u8]| {
        seed += 1;
        Pattern::new(seed, buf.len() as u64).fill(0, buf);
    };
    let udp = UdpSocket::bind("127.0.0.1:0").expect("bind");
    for index in 0..3 {
        let addr = cluster.node(index).addr();
        let gossip = SocketAddr::new(addr.ip(), addr.port() + 1);
        for round in 0..300 {
            let len = [1, 4, 20, 100, 1_200][round % 5];
            fill(&mut noise[..len]);
            if round % 2 == 0 {
                // What looks like a QUIC Initial packet of version 1.
                noise[0] = 0xc3;
                let head = noise.len().min(5).min(len);
                noise[1..head].copy_from_slice(&[0, 0, 0, 1][..head - 1]);
            }
            for to in [addr, gossip] {
                // A full buffer is as good as sent.
                let _ = udp.send_to(&noise[..len], to);
            }
        }
        let mut idle = Vec::new();
        for round in 0..60 {
            let Ok(mut tcp) = TcpStream::connect_timeout(&addr, Duration::from_secs(5)) else { continue };
            fill(&mut noise);
            match round % 4 {
                0 => drop(tcp.write_all(&noise)),
                1 => drop(tcp.write_all(&[0xff; 64])),
                2 => drop(tcp.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")),
                _ => {}
            }
            idle.push(tcp);
        }
        still_works(cluster, &format!("noise{index}-"));
    }
    for index in 0..3 {
        let rss = cluster.node(index).peak_rss();
        assert!(rss < 512 << 20, "node {index} has grown to {rss} bytes");
    }
}

fn second_start(cluster: &mut Cluster) {
    run_refused(cluster.node(1), &["in use"]);
    let mount = cluster.node(1).mount();
    assert!(mounts::is_fuse(&mount), "the first one is not disturbed");
    still_works(cluster, "second-start");
}

fn port_in_use(cluster: &mut Cluster) {
    cluster.node_mut(2).stop();
    let addr = cluster.node(2).addr();
    let gossip = SocketAddr::new(addr.ip(), addr.port() + 1);
    let tcp = TcpListener::bind(addr).expect("take the TCP port");
    run_refused(cluster.node(2), &["in use"]);
    drop(tcp);
    for taken in [addr, gossip] {
        let udp = UdpSocket::bind(taken).expect("take a UDP port");
        run_refused(cluster.node(2), &["in use"]);
        drop(udp);
    }
    cluster.node_mut(2).start();
    cluster.wait_healthy();
}

fn mount_points(cluster: &mut Cluster) {
    cluster.node_mut(2).stop();
    let mount = cluster.node(2).mount();
    fs::write(mount.join("precious"), "x").expect("put something in the way");
    run_refused(cluster.node(2), &["not empty"]);
    assert_eq!(fs::read(mount.join("precious")).expect("it is still there"), b"x");
    fs::remove_dir_all(&mount).expect("remove the mount point");
    fs::write(&mount, "").expect("a file in its place");
    run_refused(cluster.node(2), &["not a directory"]);
    fs::remove_file(&mount).expect("remove the file");
    run_refused(cluster.node(2), &["missing", "no such file"]);
    fs::create_dir(&mount).expect("make the mount point");
    cluster.node_mut(2).start();
    cluster.wait_healthy();
}

fn stale_mount(cluster: &mut Cluster) {
    cluster.node_mut(1).kill();
    let mount = cluster.node(1).mount();
    let dead = mount.clone();
    match within(Duration::from_secs(20), "stat of a dead mount", move || fs::metadata(dead)) {
        Err(why) => assert_eq!(why.raw_os_error(), Some(libc::ENOTCONN)),
        // The node's guard takes it away, at a moment of its own.
        Ok(_) => assert!(!mounts::is_fuse(&mount), "a dead mount does not answer"),
    }
    cluster.node_mut(1).start();
    assert_eq!(mounts::below(&mount).len(), 1, "the dead mount is gone, not covered");
    cluster.wait_healthy();
}

/// A file as it was, put back when this goes, whatever happens meanwhile.
struct PutBack<'a> {
    file: &'a Path,
    good: Vec<u8>,
}

impl Drop for PutBack<'_> {
    fn drop(&mut self) {
        if let Err(why) = fs::write(self.file, &self.good) {
            eprintln!("put {} back: {why}", self.file.display());
        }
    }
}

/// Changes a file of a stopped node, sees it refused with the file's name, and puts it back.
fn damaged(cluster: &Cluster, file: &Path, damage: impl FnOnce(&Path), any_of: &[&str]) {
    let good = PutBack { file, good: fs::read(file).expect("read a file of a node") };
    damage(file);
    let node = cluster.node(2);
    let output = node.call(&["node", "run", "--data", &node.data_arg()]);
    drop(good);
    refused(&output, any_of);
    let name = file.file_name().and_then(|n| n.to_str()).expect("a plain name");
    let said = words(&output);
    assert!(said.contains(name), "{name} is not named: {said}");
}

fn formats(cluster: &mut Cluster) {
    cluster.node_mut(2).stop();
    let format = cluster.node(2).data().join("format");
    damaged(cluster, &format, |f| fs::write(f, "hfcache data 99\n").expect("write"), &["newer"]);
    damaged(cluster, &format, |f| fs::write(f, "hfcache data 1\n").expect("write"), &["older"]);
    damaged(cluster, &format, |f| fs::write(f, "hfcac").expect("write"), &["damaged"]);
    damaged(cluster, &format, |f| fs::remove_file(f).expect("remove"), &["missing"]);
    cluster.node_mut(2).start();
    cluster.wait_healthy();
}

fn configuration(cluster: &mut Cluster) {
    cluster.node_mut(2).stop();
    let config = cluster.node(2).data().join("hfcache.toml");
    let text = fs::read_to_string(&config).expect("read the configuration");
    damaged(cluster, &config, |f| fs::write(f, format!("lisetn = 1\n{text}")).expect("write"), &["lisetn"]);
    damaged(cluster, &config, |f| fs::write(f, &text[..text.len() / 2]).expect("write"), &["hfcache.toml"]);
    damaged(cluster, &config, |f| fs::remove_file(f).expect("remove"), &["missing"]);
    cluster.node_mut(2).start();
    cluster.wait_healthy();
}

/// State files that were torn or lost are named, with the way back; nothing panics, nothing is made up.
fn torn_state(cluster: &mut Cluster) {
    cluster.node_mut(2).stop();
    let raft = cluster.node(2).data().join("raft");
    let mut files: Vec<_> =
        fs::read_dir(&raft).expect("list the state").map(|e| e.expect("list").path()).collect();
    files.retain(|f| f.metadata().is_ok_and(|m| m.is_file() && m.len() > 4_096));
    assert!(!files.is_empty(), "the state is in files");
    let way_back = &["join", "remove", "restore"];
    fs::write(cluster.path(0, "witness"), "seen by all").expect("write a witness");
    for file in &files {
        let scribble = |f: &Path| {
            let mut bytes = fs::read(f).expect("read");
            for at in (0..bytes.len()).step_by(512) {
                bytes[at] ^= 0x55;
            }
            fs::write(f, bytes).expect("write");
        };
        let say = |how: &str| println!("  {how} {}", file.display());
        say("halve");
        halved(cluster, file, way_back);
        say("scribble over");
        damaged(cluster, file, scribble, way_back);
        say("empty");
        damaged(cluster, file, |f| fs::write(f, "").expect("empty"), way_back);
        say("remove");
        damaged(cluster, file, |f| fs::remove_file(f).expect("remove"), way_back);
    }
    cluster.node_mut(2).start();
    cluster.wait_healthy();
}

/// Cuts a state file of a stopped node in half. Room that was never used may have been all that went: then the
/// node runs, and what it shows must be right. Else it refuses, and the file is put back.
fn halved(cluster: &Cluster, file: &Path, any_of: &[&str]) {
    let good = PutBack { file, good: fs::read(file).expect("read a file of a node") };
    let handle = fs::File::options().write(true).open(file).expect("open");
    handle.set_len(good.good.len() as u64 / 2).expect("tear");
    let node = cluster.node(2);
    let said = cluster.lab().root().join("halved.log");
    let log = fs::File::create(&said).expect("make a log");
    let mut command = node.command(&["node", "run", "--data", &node.data_arg()]);
    let mut child = command.stderr(log).spawn().expect("start the node");
    let ended = until("a halved file is refused or whole", Duration::from_secs(60), || {
        if let Some(status) = child.try_wait().expect("look at the node") {
            return Ok(Some(status));
        }
        let healthy = node.call(&["status", "--data", &node.data_arg()]).status.success();
        if healthy { Ok(None) } else { Err("it runs, but is not healthy".into()) }
    });
    match ended {
        Some(status) => {
            let said = fs::read_to_string(&said).expect("read the log");
            assert!(!status.success(), "{said}");
            let name = file.file_name().and_then(|n| n.to_str()).expect("a plain name");
            assert!(said.contains(name), "{name} is not named: {said}");
            assert!(any_of.iter().any(|word| said.contains(word)), "no way back: {said}");
        }
        None => {
            assert_eq!(fs::read(cluster.path(2, "witness")).expect("read the witness"), b"seen by all");
            sys::kill(child.id(), libc::SIGTERM).expect("stop the node");
            child.wait().expect("wait for the node");
            // It has voted and acknowledged since then: the older file must not come back.
            std::mem::forget(good);
        }
    }
}

/// A node of another cluster, at the address of one of ours: neither side takes the other for its own.
fn foreign_cluster(cluster: &mut Cluster) {
    let lab = cluster.lab().clone();
    let mut other = Cluster::start_in(&lab, "b", 1);
    // A token of another cluster, for a directory that has a node of ours.
    let foreign = other.node(0).token(&[]);
    cluster.node_mut(2).stop();
    refused(&cluster.node(2).join(&foreign, &[]), &["already holds"]);
    // And the other way round.
    other.node_mut(0).stop();
    refused(&other.node(0).join(&cluster.node(0).token(&[]), &[]), &["already holds"]);

    let config = other.node(0).data().join("hfcache.toml");
    let ours = fs::read_to_string(&config).expect("read the configuration");
    let stolen = ours.replace(&other.node(0).addr().to_string(), &cluster.node(2).addr().to_string());
    assert_ne!(ours, stolen);
    fs::write(&config, stolen).expect("take the address");
    other.node_mut(0).start();
    fs::write(other.path(0, "foreign"), "x").expect("write there");
    fs::write(cluster.path(0, "ours"), "x").expect("write here");
    cluster.wait_degraded(0);
    assert!(!other.path(0, "ours").exists() && !cluster.path(1, "foreign").exists());
    let status = cluster.status(0);
    let seen = status["nodes"].as_array().expect("nodes");
    assert!(
        seen.len() == 3 && seen.iter().any(|n| n["state"] == "down"),
        "it is not taken for ours: {status}"
    );
    other.node_mut(0).stop();
    drop(other);
    cluster.node_mut(2).start();
    still_works(cluster, "after-foreign");
}
