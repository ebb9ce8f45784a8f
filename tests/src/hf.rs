//! The real clients of the Hugging Face Hub in pinned versions, Python's in virtual environments, and a small Hub that
//! they download from.

mod hub;
mod hub_user;

pub use hub::{Files, Hub};
pub use hub_user::hub_user;

use crate::{binary, eventually, node, sys, wait};
use serde_json::Value;
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

/// Making an environment downloads packages.
const INSTALL: Duration = Duration::from_secs(420);
/// A client may take this long.
const CLIENT: Duration = Duration::from_secs(180);

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("hf")
}

/// An environment: what a file in `tests/hf` pins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pins {
    /// `huggingface_hub` 2.x.
    Hub2,
    /// `huggingface_hub` 1.x.
    Hub1,
    /// `datasets`, `safetensors` and `pillow`.
    Data,
}

impl Pins {
    fn file(self) -> &'static str {
        match self {
            Self::Hub2 => "hub2.txt",
            Self::Hub1 => "hub1.txt",
            Self::Data => "data.txt",
        }
    }

    /// A program of the environment (`python`, `hf`). The environment is made in the target directory when there is
    /// none for exactly these pins yet.
    ///
    /// # Panics
    /// When it can't be made: no `python3 -m venv`, or no package index.
    pub fn program(self, name: &str) -> PathBuf {
        let requirements = sources().join(self.file());
        let pins = crate::pattern::sha256_file(&requirements).expect("read the pinned requirements");
        let base = binary::target_dirs().0.join("hfcache-tests");
        std::fs::create_dir_all(&base).expect("make a directory for the environment");
        let venv = base.join(format!("venv-{}", &pins[..12]));
        let guard = File::create(venv.with_extension("lock")).expect("make the environment's lock");
        guard.lock().expect("wait for the environment");
        let complete = venv.join("complete");
        if !complete.is_file() {
            let _ = std::fs::remove_dir_all(&venv);
            let mut make = Command::new(system_python());
            make.args(["-m", "venv"]).arg(&venv);
            must(make, "make a virtual environment (apt-get install python3-venv)");
            let mut install = Command::new(venv.join("bin/python"));
            install
                .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"])
                .arg(&requirements);
            must(install, &format!("install what {} pins, from a package index", requirements.display()));
            File::create(complete).expect("mark the environment as complete");
        }
        venv.join("bin").join(name)
    }
}

/// The system's own, if there is one: other users can run it, too.
fn system_python() -> &'static str {
    let own = "/usr/bin/python3";
    if Path::new(own).exists() { own } else { "python3" }
}

fn must(command: Command, what: &str) {
    let output = node::run(command, INSTALL).unwrap_or_else(|| panic!("{what}: no end within {INSTALL:?}"));
    assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A program of `tests/hf` that needs no package, run by the system's Python.
pub fn plain_script(name: &str) -> Command {
    let mut command = Command::new(system_python());
    command.arg(sources().join(name));
    command
}

/// A program of `tests/hf` run by an environment's Python, told that there is no Hub.
pub fn script(pins: Pins, name: &str) -> Command {
    let mut command = Command::new(pins.program("python"));
    command.arg(sources().join(name)).env("HF_HUB_OFFLINE", "1").env("NO_COLOR", "1").env_remove("HF_TOKEN");
    command
}

/// One who uses the Hub: with a cache, and everything else of his in a home.
#[derive(Clone, Debug)]
pub struct Client {
    pins: Pins,
    endpoint: String,
    cache: PathBuf,
    home: PathBuf,
    offline: bool,
    token: Option<String>,
    prefix: Vec<String>,
    more: Vec<(String, OsString)>,
}

impl Client {
    /// A client of a Hub.
    pub fn new(pins: Pins, hub: &Hub, cache: &Path, home: &Path) -> Self {
        Self {
            pins,
            endpoint: hub.endpoint(),
            cache: cache.to_owned(),
            home: home.to_owned(),
            offline: false,
            token: None,
            prefix: Vec::new(),
            more: Vec::new(),
        }
    }

    /// The same, told that there is no Hub.
    pub fn offline(&self) -> Self {
        Self { offline: true, ..self.clone() }
    }

    /// The same, with a token.
    pub fn with_token(&self, token: &str) -> Self {
        Self { token: Some(token.into()), ..self.clone() }
    }

    /// The same, run by a command (`setpriv`, `unshare`).
    pub fn run_by(&self, prefix: &[&str]) -> Self {
        Self { prefix: prefix.iter().map(|&p| p.to_owned()).collect(), ..self.clone() }
    }

    /// The same, with one more variable.
    pub fn with_env(&self, name: &str, value: impl Into<OsString>) -> Self {
        let mut more = self.more.clone();
        more.push((name.to_owned(), value.into()));
        Self { more, ..self.clone() }
    }

    /// Its cache.
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = match self.prefix.split_first() {
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
            None => Command::new(program),
        };
        command
            .env("HF_ENDPOINT", &self.endpoint)
            .env("HF_HUB_CACHE", &self.cache)
            .env("HF_HOME", &self.home)
            .env("HF_HUB_DISABLE_TELEMETRY", "1")
            .env("HF_HUB_DISABLE_PROGRESS_BARS", "1")
            .env("HF_HUB_DISABLE_UPDATE_CHECK", "1")
            .env("HF_HUB_OFFLINE", if self.offline { "1" } else { "0" })
            .env("NO_COLOR", "1")
            .env_remove("HF_TOKEN")
            .stdin(Stdio::null());
        command.envs(self.more.iter().map(|(name, value)| (name, value)));
        if let Some(token) = &self.token {
            command.env("HF_TOKEN", token);
        }
        command
    }

    /// A program of `tests/hf`.
    pub fn script(&self, name: &str, args: &[&str]) -> Command {
        let mut command = self.command(&self.pins.program("python"));
        command.arg(sources().join(name)).args(args);
        command
    }

    /// The command line `hf`.
    pub fn hf(&self, args: &[&str]) -> Command {
        let mut command = self.command(&self.pins.program("hf"));
        command.args(args);
        command
    }

    /// The crate `hf-hub` instead of Python: see `tests/hf/rust`.
    pub fn hub_user(&self, args: &[&str]) -> Command {
        let mut command = self.command(hub_user());
        command.args(args);
        command
    }

    /// `fetch.py`, to its end.
    pub fn fetch(&self, args: &[&str]) -> Value {
        json(self.script("fetch.py", args))
    }

    /// Starts `fetch.py`.
    ///
    /// # Panics
    /// When it can't be started.
    pub fn start_fetch(&self, args: &[&str]) -> Child {
        start(self.script("fetch.py", args))
    }
}

/// Starts a program whose output is kept.
///
/// # Panics
/// When it can't be started.
pub fn start(mut command: Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("start a client")
}

/// The end of a program.
///
/// # Panics
/// When it does not end.
pub fn end(child: Child) -> Output {
    let pid = child.id();
    let output = wait::try_within(CLIENT, move || child.wait_with_output());
    let Some(output) = output else {
        let _ = sys::kill(pid, libc::SIGKILL);
        panic!("a client has not ended within {CLIENT:?}");
    };
    output.expect("wait for a client")
}

/// What a program has printed; it must have succeeded.
///
/// # Panics
/// When it failed, with what it said.
pub fn must_say(output: &Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "a client failed: {}\n{out}{err}", output.status);
    out.into_owned()
}

/// What a program must print, in JSON.
///
/// # Panics
/// When it fails or prints something else.
pub fn json_of(child: Child) -> Value {
    let said = must_say(&end(child));
    serde_json::from_str(&said).unwrap_or_else(|why| panic!("no JSON ({why}): {said}"))
}

/// Runs a program that prints JSON.
pub fn json(command: Command) -> Value {
    json_of(start(command))
}

/// Lets programs that were given `--start FILE` begin at once, when all are ready: importing takes longest.
///
/// # Panics
/// When one does not get ready.
pub fn start_together(start: &Path, children: &[Child]) {
    wait_ready(start, children);
    File::create(start).expect("say start");
}

/// Waits until they are.
///
/// # Panics
/// When one does not get ready.
pub fn wait_ready(start: &Path, children: &[Child]) {
    eventually("all clients are ready", Duration::from_secs(120), || {
        children.iter().all(|c| {
            let mut ready = start.as_os_str().to_owned();
            ready.push(format!(".{}", c.id()));
            Path::new(&ready).exists()
        })
    });
}

/// Holds what `fetch.py` printed against what is to be there.
///
/// # Panics
/// When it differs.
#[track_caller]
pub fn check_snapshot(seen: &Value, files: &Files<'_>) {
    for (path, content) in files {
        assert_eq!(seen["files"][path], content.sha256(), "{path} is right");
        let target = seen["links"][path].as_str().unwrap_or_else(|| panic!("{path} is a link: {seen}"));
        assert!(target.starts_with("../") && target.contains("/blobs/"), "{path} -> {target}");
    }
    assert_eq!(seen["files"].as_object().map(|f| f.len()), Some(files.len()), "nothing else is there");
}
