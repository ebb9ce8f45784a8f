//! A small Hub in a process of its own, to download from.

use crate::pattern::Pattern;
use crate::wait;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Files of a repository, by path.
pub type Files<'a> = [(&'a str, Pattern)];

/// See the module, and `tests/hf/hub.py`.
#[derive(Debug)]
pub struct Hub {
    child: Child,
    address: String,
    repos: PathBuf,
}

impl Hub {
    /// Serves a directory of repositories: `DIR/NAMESPACE/NAME/FILES`, and `DIR/datasets/NAMESPACE/NAME/FILES`.
    ///
    /// # Panics
    /// When it can't be started.
    pub fn start(repos: &Path) -> Self {
        let ready = repos.with_extension("port");
        let child = Command::new("python3")
            .arg(super::sources().join("hub.py"))
            .arg("--repos")
            .arg(repos)
            .arg("--ready")
            .arg(&ready)
            .stdin(Stdio::null())
            .spawn()
            .expect("start the Hub (it needs python3)");
        let mut hub = Self { child, address: String::new(), repos: repos.to_owned() };
        hub.address = wait::until("the Hub is ready", Duration::from_secs(60), || {
            let text = std::fs::read_to_string(&ready).map_err(|e| e.to_string())?;
            text.strip_suffix('\n').map(str::to_owned).ok_or_else(|| "half written".into())
        });
        hub
    }

    /// Writes the files of a repository, new or over what is there; the Hub takes them as a commit when it starts and
    /// when it is told to with `get("/_reload")`.
    ///
    /// # Panics
    /// When it can't write.
    pub fn put(repos: &Path, repo: &str, files: &Files<'_>) {
        for (path, content) in files {
            let path = repos.join(repo).join(path);
            std::fs::create_dir_all(path.parent().expect("a file has a folder"))
                .expect("make a folder of the repository");
            let _ = std::fs::remove_file(&path);
            content.write(&path).expect("write a file of the repository");
        }
    }

    /// New or other files are the next commit of a repository.
    pub fn commit(&self, repo: &str, files: &Files<'_>) {
        Self::put(&self.repos, repo, files);
        self.get("/_reload");
    }

    /// For `HF_ENDPOINT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What was asked of it, by `"GET NAMESPACE/NAME/PATH"` and the like.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn counts(&self) -> Value {
        let body = self.get("/_counts");
        serde_json::from_str(&body).expect("the Hub's counts are JSON")
    }

    /// One of its counts.
    pub fn count(&self, what: &str) -> u64 {
        self.counts()[what].as_u64().unwrap_or(0)
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
        let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
        assert!(head.contains(" 200 "), "{path}: {head}");
        body.to_owned()
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
