//! The data directory of a node: where things are, which format they have, and the lock that lets only
//! one process use them.
//!
//! ```text
//! DATA/hfcache.toml   configuration                 DATA/raft/     log and state of the namespace
//! DATA/format         "hfcache data 2"              DATA/shards/   shards, unless --disk says where
//! DATA/lock           flock, with the holder's pid  DATA/hot/      copies; may be deleted while stopped
//! DATA/identity/      keys and certificates (0700)  DATA/admin.sock
//! ```
//!
//! `format` is written last by `init` and `join`: a directory without it holds no finished node.

use anyhow::{Context, Result, anyhow, bail};
use hfcache_raft::consensus::node::STATE_FILES;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The format this version writes and reads.
pub const FORMAT: u32 = 2;
const FORMAT_WORDS: &str = "hfcache data ";

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataDir(PathBuf);

impl DataDir {
    /// A data directory, which need not be there yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// `hfcache.toml`.
    pub fn config(&self) -> PathBuf {
        self.0.join("hfcache.toml")
    }

    /// Keys and certificates.
    pub fn identity(&self) -> PathBuf {
        self.0.join("identity")
    }

    /// Log and state of the namespace.
    pub fn raft(&self) -> PathBuf {
        self.0.join("raft")
    }

    /// Copies of files, and what is being written.
    pub fn hot(&self) -> PathBuf {
        self.0.join("hot")
    }

    /// `format`.
    pub fn format(&self) -> PathBuf {
        self.0.join("format")
    }

    /// The join token made by `init` before there was a cluster to tell.
    pub fn first_token(&self) -> PathBuf {
        self.0.join("first-token.json")
    }

    /// For how many seconds the cluster is to keep what is deleted, until it knows.
    pub fn first_trash(&self) -> PathBuf {
        self.0.join("first-trash")
    }

    /// Where the members were when this node joined.
    pub fn members(&self) -> PathBuf {
        self.0.join("members.json")
    }

    fn ran_file(&self) -> PathBuf {
        self.0.join("ran")
    }

    /// Notes that the node here has its state on disk: from now on a state that is missing is a loss.
    ///
    /// # Errors
    /// Whatever the disk says.
    pub fn note_ran(&self) -> Result<()> {
        if self.ran_file().exists() {
            return Ok(());
        }
        self.write_atomic(&self.ran_file(), b"this node has run; its state is in raft\n", 0o644)
    }

    /// Checks that the state of a node that has run is there. One that began anew in its place would have
    /// forgotten for whom it voted and what it acknowledged, and could make the cluster forget it, too.
    ///
    /// # Errors
    /// Which file is lost, and the way back.
    pub fn check_state(&self) -> Result<()> {
        if !self.ran_file().exists() {
            return Ok(());
        }
        for name in STATE_FILES {
            let path = self.raft().join(name);
            match std::fs::metadata(&path) {
                Ok(file) if file.len() > 0 => {}
                Ok(_) => bail!("{} is damaged: it is empty;\n{}", path.display(), self.way_back()),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                    bail!("{} is missing;\n{}", path.display(), self.way_back())
                }
                Err(e) => return Err(e).with_context(|| format!("look at {}", path.display())),
            }
        }
        Ok(())
    }

    /// What to do about a node whose state is lost or damaged.
    pub fn way_back(&self) -> String {
        format!(
            "this node can't go on without its state. Remove {} and join the cluster anew with a new token: the \
             other nodes have the namespace, and rebuild what this one held. If it was the only node, restore the \
             directory from a backup.",
            self.0.display()
        )
    }

    /// Notes that the node here has left its cluster, for whoever starts it again.
    ///
    /// # Errors
    /// Whatever the disk says.
    pub fn note_left(&self) -> Result<()> {
        self.write_atomic(&self.0.join("left"), b"this node has left its cluster\n", 0o644)
    }

    fn lock_file(&self) -> PathBuf {
        self.0.join("lock")
    }

    /// Makes the directory, readable by its owner only.
    ///
    /// # Errors
    /// Whatever the disk says.
    pub fn create(&self) -> Result<()> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.0)
            .with_context(|| format!("make data directory {}", self.0.display()))
    }

    /// Whether a node lives here, finished or damaged. Keys alone are no node: a join that failed leaves
    /// them, so that its repetition is the same node.
    pub fn holds_node(&self) -> bool {
        self.format().exists() || self.raft().exists()
    }

    /// Refuses a directory in which a node lives already.
    ///
    /// # Errors
    /// If there is one, with how to start it.
    pub fn refuse_node(&self) -> Result<()> {
        if !self.holds_node() {
            return Ok(());
        }
        let dir = self.0.display();
        let who = match crate::config::Config::load(self) {
            Ok(c) => format!("node {:?} ({}, mount {})", c.name, c.listen, c.mount.point.display()),
            Err(_) => "a node".into(),
        };
        bail!(
            "{dir} already holds {who}.\n\
             Start it with `hfcache node run --data {dir}`, or give another --data for a new node."
        )
    }

    /// Says that the directory holds a finished node, and makes all of it survive a power cut.
    ///
    /// # Errors
    /// Whatever the disk says.
    pub fn finish(&self) -> Result<()> {
        self.write_atomic(&self.format(), format!("{FORMAT_WORDS}{FORMAT}\n").as_bytes(), 0o644)
    }

    /// Checks that this program understands what is here.
    ///
    /// # Errors
    /// No node, a newer format, or a damaged `format` file.
    pub fn check(&self) -> Result<()> {
        if self.0.join("left").exists() {
            bail!(
                "the node in {} has left its cluster.\n\
                 Remove the directory; to bring the machine back, join with a new token (`hfcache token create`).",
                self.0.display()
            );
        }
        let path = self.format();
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && !self.holds_node() => bail!(
                "no node is in {}.\nMake one with `hfcache node init` (a new cluster) or `hfcache node join` (an \
                 existing one).",
                self.0.display()
            ),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => bail!(
                "{} is missing, though there is a node's state beside it.\n\
                 If only this file was lost, write it again: echo '{FORMAT_WORDS}{FORMAT}' > {}\n\
                 If more was lost, remove {} and join the cluster anew: the other nodes rebuild what it held.",
                path.display(),
                path.display(),
                self.0.display()
            ),
            Err(e) => return Err(e).with_context(|| format!("read {}", path.display())),
        };
        let version = text.strip_suffix('\n').and_then(|t| t.strip_prefix(FORMAT_WORDS)?.parse::<u32>().ok());
        match version {
            Some(FORMAT) => Ok(()),
            Some(v) if v > FORMAT => bail!(
                "{} has data format {v}; this program knows formats up to {FORMAT}.\n\
                 It was written by a newer hfcache: start that version again. Nothing was changed.",
                self.0.display()
            ),
            Some(v) if v > 0 => bail!(
                "{} has data format {v}; this program knows format {FORMAT} only.\n\
                 It was written by an older hfcache: start that version again, copy the files out of its mount and \
                 into that of a new cluster. Nothing was changed.",
                self.0.display()
            ),
            _ => bail!(
                "{} is damaged: it should read \"{FORMAT_WORDS}{FORMAT}\".\n\
                 If only this file was torn, write it again; if others were too, remove {} and join the cluster \
                 anew: the other nodes rebuild what it held.",
                path.display(),
                self.0.display()
            ),
        }
    }

    /// Takes the directory for this process until the lock is dropped.
    ///
    /// # Errors
    /// If another process has it, with that process's id.
    pub fn lock(&self) -> Result<Lock> {
        let path = self.lock_file();
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let _ = (&file).take(20).read_to_string(&mut pid);
                bail!(
                    "{} is in use by process {} already; two nodes cannot share a data directory.\n\
                     Stop that one first (`kill {}`), or ask it with `hfcache status --data {}`.",
                    self.0.display(),
                    pid.trim(),
                    pid.trim(),
                    self.0.display()
                );
            }
            Err(TryLockError::Error(e)) => return Err(e).with_context(|| format!("lock {}", path.display())),
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .with_context(|| format!("write {}", path.display()))?;
        Ok(Lock { _file: file })
    }

    /// Whether a process has the directory; `None` if this user may not know.
    pub fn in_use(&self) -> Option<bool> {
        match File::open(self.lock_file()) {
            Ok(file) => Some(matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))),
            Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => None,
            Err(_) => Some(false),
        }
    }

    /// The process that has the directory, if one does.
    pub fn holder(&self) -> Option<u32> {
        if self.in_use() != Some(true) {
            return None;
        }
        let mut pid = String::new();
        File::open(self.lock_file()).ok()?.take(20).read_to_string(&mut pid).ok()?;
        pid.trim().parse().ok()
    }

    /// Writes a file so that after a crash it is there whole or not at all.
    ///
    /// # Errors
    /// Whatever the disk says.
    pub fn write_atomic(&self, path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
        let parent = path.parent().ok_or_else(|| anyhow!("{} has no directory", path.display()))?;
        let temporary = path.with_added_extension("tmp");
        let write = || -> std::io::Result<()> {
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            std::fs::rename(&temporary, path)?;
            File::open(parent)?.sync_all()
        };
        write().with_context(|| format!("write {}", path.display()))
    }
}

/// The directory belongs to this process while this lives.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use hfcache_base::seam::Rng;

    /// A directory that goes with the test.
    pub(crate) struct TempDir(PathBuf);

    impl TempDir {
        pub(crate) fn new() -> Self {
            let name = format!("hfcache-test-{:x}", crate::world::RealRng::default().next_u64());
            let path = std::env::temp_dir().join(name);
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        pub(crate) fn path(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for TempDir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn only_one_may_have_it_and_the_other_learns_who() {
        let dir = TempDir::new();
        let data = DataDir::new(dir.path());
        let lock = data.lock().unwrap();
        assert_eq!(data.holder(), Some(std::process::id()));
        let error = data.lock().unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        drop(lock);
        assert_eq!(data.holder(), None);
        data.lock().unwrap();
    }

    #[test]
    fn other_formats_and_a_torn_one_are_refused() {
        let dir = TempDir::new();
        let data = DataDir::new(dir.path());
        assert!(data.check().unwrap_err().to_string().contains("no node is in"));
        data.finish().unwrap();
        data.check().unwrap();
        std::fs::write(data.format(), format!("{FORMAT_WORDS}{}\n", FORMAT + 1)).unwrap();
        assert!(data.check().unwrap_err().to_string().contains("newer hfcache"));
        std::fs::write(data.format(), "hfcache data 1\n").unwrap();
        assert!(data.check().unwrap_err().to_string().contains("older hfcache"));
        for torn in ["", "hfcache da", "hfcache data 2", "hfcache data 0\n", "\0\0\0"] {
            std::fs::write(data.format(), torn).unwrap();
            let error = data.check().unwrap_err().to_string();
            assert!(error.contains("damaged") && error.contains("format"), "{torn:?}: {error}");
        }
    }

    #[test]
    fn a_state_that_is_gone_is_missed() {
        let dir = TempDir::new();
        let data = DataDir::new(dir.path());
        data.check_state().unwrap();
        std::fs::create_dir(data.raft()).unwrap();
        for name in STATE_FILES {
            std::fs::write(data.raft().join(name), "state").unwrap();
        }
        data.note_ran().unwrap();
        data.check_state().unwrap();
        std::fs::write(data.raft().join(STATE_FILES[1]), "").unwrap();
        let error = data.check_state().unwrap_err().to_string();
        assert!(
            error.contains(STATE_FILES[1]) && error.contains("empty") && error.contains("join"),
            "{error}"
        );
        std::fs::remove_dir_all(data.raft()).unwrap();
        let error = data.check_state().unwrap_err().to_string();
        assert!(error.contains(STATE_FILES[0]) && error.contains("missing"), "{error}");
    }

    #[test]
    fn a_directory_with_a_node_is_refused_and_a_lost_format_file_explained() {
        let dir = TempDir::new();
        let data = DataDir::new(dir.path().join("d"));
        data.refuse_node().unwrap();
        data.create().unwrap();
        std::fs::create_dir(data.identity()).unwrap();
        data.refuse_node().unwrap();
        std::fs::create_dir(data.raft()).unwrap();
        assert!(data.refuse_node().is_err());
        assert!(data.check().unwrap_err().to_string().contains("format is missing"));
        data.finish().unwrap();
        assert!(data.refuse_node().unwrap_err().to_string().contains("hfcache node run --data"));
    }
}
