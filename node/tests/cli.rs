//! The command line as scripts meet it: the real binary, its exit status, what it prints.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::PathBuf;
use std::process::{Command, Output};

fn hfcache(args: &[&str]) -> Output {
    // No node of this machine may be found by accident.
    Command::new(env!("CARGO_BIN_EXE_hfcache")).args(args).env_remove("XDG_RUNTIME_DIR").output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("hfcache-cli-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn at(&self, name: &str) -> String {
        self.0.join(name).to_string_lossy().into_owned()
    }

    /// A node that was made and never started.
    fn init(&self) -> Output {
        hfcache(&[
            "node",
            "init",
            "--data",
            &self.at("data"),
            "--mount",
            &self.at("mnt"),
            "--listen",
            "127.0.0.1:17946",
            "--name",
            "one",
            "--no-run",
        ])
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn wrong_use_exits_with_2() {
    let wrong: [&[&str]; 12] = [
        &[],
        &["dance"],
        &["node"],
        &["node", "run"],
        &["node", "init", "--data", "/x"],
        &["node", "join", "--data", "/x", "--mount", "/y"],
        &["node", "init", "--data", "/x", "--mount", "/y", "--listen", "nowhere"],
        &["token", "create", "--ttl", "soon"],
        &["status", "--colour"],
        &["node", "init", "--data", "/x", "--mount", "/y", "--trash", "soon"],
        &["trash", "empty"],
        &["env", "--shell", "cmd"],
    ];
    for args in wrong {
        let out = hfcache(args);
        assert_eq!(out.status.code(), Some(2), "{args:?}: {}", text(&out.stderr));
        assert!(!out.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn every_help_has_an_example() {
    let commands: [&[&str]; 18] = [
        &[],
        &["node", "init"],
        &["node", "join"],
        &["node", "run"],
        &["node", "status"],
        &["node", "leave"],
        &["token", "create"],
        &["token", "list"],
        &["token", "revoke"],
        &["trash", "ls"],
        &["trash", "restore"],
        &["trash", "empty"],
        &["trash", "retention"],
        &["status"],
        &["demo"],
        &["env"],
        &["doctor"],
        &["config", "show"],
    ];
    for command in commands {
        let out = hfcache(&[command, &["--help"]].concat());
        assert_eq!(out.status.code(), Some(0), "{command:?}");
        assert!(text(&out.stdout).contains("EXAMPLE"), "{command:?}");
    }
}

#[test]
fn a_node_is_made_once_and_knows_itself() {
    let dir = Dir::new("init");
    let out = dir.init();
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    assert!(text(&out.stdout).contains("hfcache node join hfc1."), "{}", text(&out.stdout));
    assert!(dir.0.join("mnt").is_dir());

    let again = dir.init();
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again.stderr).contains("already holds node \"one\""), "{}", text(&again.stderr));

    let show = hfcache(&["config", "show", "--data", &dir.at("data")]);
    assert!(text(&show.stdout).contains("listen = \"127.0.0.1:17946\""), "{}", text(&show.stdout));
    let json = hfcache(&["config", "show", "--data", &dir.at("data"), "--json"]);
    assert!(text(&json.stdout).contains("\"listen\": \"127.0.0.1:17946\""));

    let env = hfcache(&["env", "--data", &dir.at("data")]);
    assert!(text(&env.stdout).contains(&format!("export HF_HUB_CACHE='{}/hub'", dir.at("mnt"))));
    let env = hfcache(&["env", "--mount", "/hf", "--json"]);
    assert!(text(&env.stdout).contains("\"HF_HUB_CACHE\": \"/hf/hub\""));
}

#[test]
fn a_node_that_does_not_run_is_unreachable() {
    let dir = Dir::new("unreachable");
    assert!(dir.init().status.success());
    let out = hfcache(&["status", "--data", &dir.at("data"), "--json"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stdout).contains("\"healthy\": false"), "{}", text(&out.stdout));
    assert!(text(&out.stderr).contains("hfcache node run --data"), "{}", text(&out.stderr));
    let out = hfcache(&["token", "create", "--data", &dir.at("data")]);
    assert_eq!((out.status.code(), out.stdout.len()), (Some(1), 0));
    let out = hfcache(&["status", "--data", &dir.at("nowhere")]);
    assert_eq!(out.status.code(), Some(2));
}

#[test]
fn damage_is_named_with_the_way_back() {
    let dir = Dir::new("damage");
    assert!(dir.init().status.success());
    let data = dir.at("data");
    let run = || hfcache(&["node", "run", "--data", &data]);

    let config = std::fs::read_to_string(dir.0.join("data/hfcache.toml")).unwrap();
    std::fs::write(dir.0.join("data/hfcache.toml"), format!("colour = \"red\"\n{config}")).unwrap();
    let out = run();
    assert_eq!(out.status.code(), Some(1));
    let said = text(&out.stderr);
    assert!(said.contains("colour") && said.contains("line 1") && said.contains("hfcache.toml"), "{said}");
    std::fs::write(dir.0.join("data/hfcache.toml"), &config[..config.len() / 2]).unwrap();
    assert!(text(&run().stderr).contains("hfcache.toml"));
    std::fs::write(dir.0.join("data/hfcache.toml"), &config).unwrap();

    let format = std::fs::read_to_string(dir.0.join("data/format")).unwrap();
    for (number, age) in [("99", "newer"), ("1", "older")] {
        std::fs::write(dir.0.join("data/format"), format!("hfcache data {number}\n")).unwrap();
        let said = text(&run().stderr);
        assert!(said.contains(&format!("format {number}")) && said.contains(age), "{said}");
    }
    std::fs::write(dir.0.join("data/format"), format).unwrap();

    std::fs::write(dir.0.join("data/identity/cluster.toml"), "vers").unwrap();
    let out = run();
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("cluster.toml"), "{}", text(&out.stderr));
}

#[test]
fn a_second_process_on_a_data_directory_is_refused() {
    let dir = Dir::new("second");
    assert!(dir.init().status.success());
    let lock = std::fs::File::options().write(true).open(dir.0.join("data/lock")).unwrap();
    lock.lock().unwrap();
    let out = hfcache(&["node", "run", "--data", &dir.at("data")]);
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("in use by process"), "{}", text(&out.stderr));
}

#[test]
fn what_would_fail_at_the_start_is_said_before_it() {
    let dir = Dir::new("start");
    assert!(dir.init().status.success());
    let run = || {
        let out = hfcache(&["node", "run", "--data", &dir.at("data")]);
        assert_eq!(out.status.code(), Some(1));
        text(&out.stderr)
    };
    std::fs::remove_dir(dir.0.join("mnt")).unwrap();
    let said = run();
    assert!(said.contains("mkdir -p") || said.contains("/dev/fuse"), "{said}");
    std::fs::create_dir(dir.0.join("mnt")).unwrap();
    std::fs::write(dir.0.join("mnt/file"), "").unwrap();
    let said = run();
    assert!(said.contains("not empty") || said.contains("/dev/fuse"), "{said}");
    std::fs::remove_file(dir.0.join("mnt/file")).unwrap();
    let _taken = std::net::UdpSocket::bind("127.0.0.1:17947").unwrap();
    let said = run();
    assert!(said.contains("127.0.0.1:17947") || said.contains("/dev/fuse"), "{said}");
}

#[test]
fn a_bad_token_is_refused_with_words() {
    let dir = Dir::new("token");
    let join = |token: &str| {
        let (data, mnt) = (dir.at("data"), dir.at("mnt"));
        let out = hfcache(&[
            "node",
            "join",
            token,
            "--data",
            &data,
            "--mount",
            &mnt,
            "--listen",
            "127.0.0.1:17950",
            "--no-run",
        ]);
        assert_eq!(out.status.code(), Some(1));
        text(&out.stderr)
    };
    assert!(join("rubbish").contains("token"));
    assert!(join("hfc1.AAAA").contains("damaged"));
    assert!(!dir.0.join("data/format").exists());
}

#[test]
fn doctor_examines_this_machine() {
    let out = hfcache(&["doctor", "--json"]);
    assert!(matches!(out.status.code(), Some(0 | 1)), "{}", text(&out.stderr));
    assert!(text(&out.stdout).contains("\"check\": \"kernel\""));
}
