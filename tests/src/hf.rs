//! The Python side: a virtual environment with the real `huggingface_hub`, and a small Hub to download from.

use crate::{binary, node, wait};
use serde_json::Value;
use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Making the environment downloads packages.
const INSTALL: Duration = Duration::from_secs(240);

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("hf")
}

/// The Python of an environment with what `tests/hf/requirements.txt` pins, made in the target directory when
/// there is none for exactly these pins yet.
///
/// # Panics
/// When it can't be made: no `python3 -m venv`, or no package index.
pub fn python() -> PathBuf {
    let requirements = sources().join("requirements.txt");
    let pins = crate::pattern::sha256_file(&requirements).expect("read the pinned requirements");
    let base = binary::target_dirs().0.join("hfcache-tests");
    std::fs::create_dir_all(&base).expect("make a directory for the environment");
    let guard = File::create(base.join("venv.lock")).expect("make the environment's lock");
    guard.lock().expect("wait for the environment");
    let venv = base.join(format!("venv-{}", &pins[..12]));
    let (python, complete) = (venv.join("bin/python"), venv.join("complete"));
    if !complete.is_file() {
        let _ = std::fs::remove_dir_all(&venv);
        let mut make = Command::new("python3");
        make.args(["-m", "venv"]).arg(&venv);
        must(make, "make a virtual environment (apt-get install python3-venv)");
        let mut install = Command::new(&python);
        install
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"])
            .arg(requirements);
        must(install, "install huggingface_hub");
        File::create(complete).expect("mark the environment as complete");
    }
    python
}

fn must(command: Command, what: &str) {
    let output = node::run(command, INSTALL).unwrap_or_else(|| panic!("{what}: no end within {INSTALL:?}"));
    assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A program of `tests/hf`, run by that Python.
pub fn script(name: &str) -> Command {
    let mut command = Command::new(python());
    command.arg(sources().join(name));
    command
}

/// A small Hub in a process of its own.
#[derive(Debug)]
pub struct Hub {
    child: Child,
    address: String,
}

impl Hub {
    /// Serves a directory of repositories: `DIR/NAMESPACE/NAME/FILES`.
    ///
    /// # Panics
    /// When it can't be started.
    pub fn start(repos: &Path) -> Self {
        let ready = repos.with_extension("port");
        let child = Command::new("python3")
            .arg(sources().join("hub.py"))
            .arg("--repos")
            .arg(repos)
            .arg("--ready")
            .arg(&ready)
            .stdin(Stdio::null())
            .spawn()
            .expect("start the Hub (it needs python3)");
        let mut hub = Self { child, address: String::new() };
        hub.address = wait::until("the Hub is ready", Duration::from_secs(30), || {
            let text = std::fs::read_to_string(&ready).map_err(|e| e.to_string())?;
            text.strip_suffix('\n').map(str::to_owned).ok_or_else(|| "half written".into())
        });
        hub
    }

    /// For `HF_ENDPOINT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What was asked of it: `{"GET /path": count}`, complete answers only.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn counts(&self) -> Value {
        let body = self.get("/_counts");
        serde_json::from_str(&body).expect("the Hub's counts are JSON")
    }

    /// Body of a plain GET.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).expect("connect to the Hub");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("set a timeout");
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").expect("ask the Hub");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("hear the Hub");
        answer.split_once("\r\n\r\n").expect("an HTTP answer").1.to_owned()
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
