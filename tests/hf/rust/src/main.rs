//! What a user of the crate `hf-hub` runs: download a repository into `HF_HUB_CACHE` and hash what is there.
//!
//! `hub-user older|newer REPO [--offline] [--start FILE] NAME...`
//!
//! `older` is hf-hub 0.5, which takes file by file, `newer` is 1.0, which takes the whole repository; the names are all of
//! its files. With `--offline` only the cache is asked. With `--start` it makes `FILE.PID` when it is ready and waits until
//! `FILE` exists, so that several begin at once. Prints one JSON object:
//! `{"files": {NAME: sha256}, "links": {NAME: target}}`

use hf_hub_newer::HFClient;
use hf_hub_older::api::sync::ApiBuilder;
use hf_hub_older::{Cache, Repo};
use serde_json::{Map, json};
use sha2::{Digest, Sha256};
use std::error::Error;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Looks at a file in a directory that others may be at.
///
/// hf-hub 1.0 removes the link of a file that it has, and makes it again, whenever it has waited for somebody else's
/// download of it. Who is done first may find no link for a moment, on any file system.
fn patiently<T>(mut look: impl FnMut() -> std::io::Result<T>) -> std::io::Result<T> {
    for _ in 0..100 {
        match look() {
            Err(why) if why.kind() == ErrorKind::NotFound => std::thread::sleep(Duration::from_millis(20)),
            other => return other,
        }
    }
    look()
}

fn sha256(path: &Path) -> Result<String> {
    let mut file = patiently(|| File::open(path))?;
    let (mut digest, mut buf) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buf)? {
            0 => return Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            n => digest.update(&buf[..n]),
        }
    }
}

struct User {
    endpoint: String,
    cache: PathBuf,
    repo: String,
    names: Vec<String>,
    offline: bool,
    start: Option<PathBuf>,
}

impl User {
    fn ready(&self) -> Result<()> {
        if let Some(start) = &self.start {
            File::create(format!("{}.{}", start.display(), std::process::id()))?;
            while !start.exists() {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(())
    }

    /// Where the files are, in the order of their names.
    fn older(&self) -> Result<Vec<PathBuf>> {
        let cache = Cache::new(self.cache.clone());
        if self.offline {
            let repo = cache.repo(Repo::model(self.repo.clone()));
            let path =
                |name: &String| repo.get(name).ok_or_else(|| format!("the cache has no {name}").into());
            return self.names.iter().map(path).collect();
        }
        let builder = ApiBuilder::from_cache(cache).with_endpoint(self.endpoint.clone()).with_token(None);
        let repo = builder.with_progress(false).build()?.model(self.repo.clone());
        self.ready()?;
        let listed = repo.info()?.siblings;
        if listed.len() != self.names.len() {
            return Err(format!("the Hub lists {} files", listed.len()).into());
        }
        self.names.iter().map(|name| Ok(repo.get(name)?)).collect()
    }

    fn newer(&self) -> Result<Vec<PathBuf>> {
        let client = HFClient::builder().endpoint(&self.endpoint).cache_dir(&self.cache).build_sync()?;
        let (owner, name) = self.repo.split_once('/').ok_or("a repository is OWNER/NAME")?;
        let repo = client.model(owner, name);
        self.ready()?;
        let snapshot = repo.snapshot_download().local_files_only(self.offline).send()?;
        Ok(self.names.iter().map(|name| snapshot.join(name)).collect())
    }
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let version = args.next().ok_or("which version?")?;
    let mut user = User {
        endpoint: std::env::var("HF_ENDPOINT")?,
        cache: std::env::var("HF_HUB_CACHE")?.into(),
        repo: args.next().ok_or("which repository?")?,
        names: Vec::new(),
        offline: false,
        start: None,
    };
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--start" => user.start = Some(args.next().ok_or("--start of which file?")?.into()),
            "--offline" => user.offline = true,
            _ => user.names.push(arg),
        }
    }
    let found = match version.as_str() {
        "older" => user.older()?,
        "newer" => user.newer()?,
        other => return Err(format!("no version {other}").into()),
    };
    let (mut files, mut links) = (Map::new(), Map::new());
    for (name, path) in user.names.iter().zip(found) {
        links.insert(name.clone(), json!(patiently(|| fs::read_link(&path))?));
        files.insert(name.clone(), json!(sha256(&path)?));
    }
    println!("{}", json!({ "files": files, "links": links }));
    Ok(())
}
