//! Which nodes run on this machine, so that `--data` may be left out where there is only one. Every running
//! node keeps one small file in `/run/hfcache` (root) or `$XDG_RUNTIME_DIR/hfcache`; a file whose node is
//! gone means nothing, because the data directory's lock decides.

use crate::data::DataDir;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A running node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its process.
    pub pid: u32,
    /// Its data directory.
    pub data: PathBuf,
    /// Its mount.
    pub mount: PathBuf,
    /// Its name.
    pub name: String,
}

/// The entry of this process; removed when dropped.
#[derive(Debug)]
pub struct Registered(Option<PathBuf>);

impl Drop for Registered {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn directories() -> Vec<PathBuf> {
    let mut all = vec![PathBuf::from("/run/hfcache")];
    if let Some(dir) = std::env::var_os("XDG_RUNTIME_DIR").filter(|d| !d.is_empty()) {
        all.push(PathBuf::from(dir).join("hfcache"));
    }
    all
}

/// Adds this node. A machine where that cannot be done only loses the convenience.
pub fn register(entry: &Entry) -> Registered {
    for dir in directories() {
        match write(&dir, entry) {
            Ok(path) => return Registered(Some(path)),
            Err(e) => tracing::debug!(error = %e, dir = %dir.display(), "register node"),
        }
    }
    Registered(None)
}

fn write(dir: &Path, entry: &Entry) -> std::io::Result<PathBuf> {
    std::fs::create_dir_all(dir)?;
    let path = dir.join(format!("{}.json", std::process::id()));
    let temporary = path.with_added_extension("tmp");
    std::fs::write(&temporary, serde_json::to_vec(entry)?)?;
    std::fs::rename(&temporary, &path)?;
    Ok(path)
}

/// The nodes that run here now, as far as this user may know.
pub fn running() -> Vec<Entry> {
    running_in(&directories())
}

fn running_in(directories: &[PathBuf]) -> Vec<Entry> {
    let mut found: Vec<Entry> = Vec::new();
    for file in directories.iter().filter_map(|d| std::fs::read_dir(d).ok()).flatten().flatten() {
        if file.path().extension().is_none_or(|e| e != "json") {
            continue;
        }
        let Ok(text) = std::fs::read(file.path()) else { continue };
        let Ok(entry) = serde_json::from_slice::<Entry>(&text) else { continue };
        if alive(&entry) && !found.contains(&entry) {
            found.push(entry);
        }
    }
    found.sort_by(|a, b| a.data.cmp(&b.data));
    found
}

/// The lock of the data directory decides where this user may look at it; else the process must be there.
fn alive(entry: &Entry) -> bool {
    match DataDir::new(&entry.data).in_use() {
        Some(in_use) => in_use,
        None => Path::new("/proc").join(entry.pid.to_string()).exists(),
    }
}

/// The data directory that a command means: the given one, else that of the only node that runs here.
///
/// # Errors
/// If none or several run here.
pub fn resolve(data: Option<&Path>) -> Result<DataDir> {
    if let Some(data) = data {
        return Ok(DataDir::new(crate::config::absolute(data)?));
    }
    let nodes = running();
    match nodes.as_slice() {
        [one] => Ok(DataDir::new(&one.data)),
        [] => bail!(
            "no running node was found on this machine.\n\
             Start it with `hfcache node run --data DIR`, or name its directory with --data."
        ),
        several => {
            let list: Vec<String> =
                several.iter().map(|e| format!("  --data {}  ({})", e.data.display(), e.name)).collect();
            Err(anyhow::anyhow!("{}", list.join("\n"))).context("several nodes run on this machine; say which:")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tests::TempDir;

    #[test]
    fn only_nodes_that_hold_their_directory_are_running() {
        let (dir, registry) = (TempDir::new(), TempDir::new());
        let entry = Entry { pid: 1, data: dir.path().into(), mount: "/mnt".into(), name: "a".into() };
        write(registry.path(), &entry).unwrap();
        std::fs::write(registry.path().join("torn.json"), "{\"da").unwrap();
        let places = [registry.path().to_path_buf()];
        assert_eq!(running_in(&places), vec![]);
        let lock = DataDir::new(dir.path()).lock().unwrap();
        assert_eq!(running_in(&places), vec![entry]);
        drop(lock);
        assert_eq!(running_in(&places), vec![]);
    }
}
