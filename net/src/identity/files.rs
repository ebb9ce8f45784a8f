//! The files of an identity: written atomically and synced, read with errors that name the way back.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hfcache_base::error::Context;
use hfcache_base::{Error, Kind, Result};
use std::fmt::Display;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// Longest file of an identity.
const FILE_MAX: u64 = 64 << 10;

/// One file of an identity.
#[derive(Clone, Copy, Debug)]
pub(super) enum FileKind {
    CaCert,
    NodeCert,
    NodeKey,
    CaKey,
    GossipKey,
    Cluster,
}

impl FileKind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::CaCert => "ca.crt",
            Self::NodeCert => "node.crt",
            Self::NodeKey => "node.key",
            Self::CaKey => "ca.key",
            Self::GossipKey => "gossip.key",
            Self::Cluster => "cluster.toml",
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::CaCert | Self::NodeCert => "CERTIFICATE",
            Self::NodeKey | Self::CaKey => "PRIVATE KEY",
            Self::GossipKey => "HFCACHE GOSSIP KEY",
            Self::Cluster => "HFCACHE CLUSTER",
        }
    }

    fn mode(self) -> u32 {
        match self {
            Self::NodeKey | Self::CaKey | Self::GossipKey => 0o600,
            Self::CaCert | Self::NodeCert | Self::Cluster => 0o644,
        }
    }

    /// How to get a lost file back.
    fn way_back(self) -> &'static str {
        match self {
            Self::CaCert | Self::GossipKey => {
                "copy it from any other node of the cluster, it is the same there"
            }
            Self::CaKey => {
                "copy it from another storage node, or delete it: this node then only stops admitting new nodes"
            }
            Self::NodeCert | Self::NodeKey | Self::Cluster => {
                "restore it from a backup, or remove this node from the cluster, empty its data directory and join \
                 again with a new token"
            }
        }
    }

    /// The error for a file that is there but cannot be right.
    pub(super) fn damaged(self, dir: &Path, why: &dyn Display) -> Error {
        let path = dir.join(self.name());
        let message = format!("{} is damaged ({why}); {}", path.display(), self.way_back());
        Error::new(Kind::Corrupt, message).context("read identity")
    }
}

/// Makes the directory, for its owner only.
pub(super) fn create_dir(dir: &Path) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(Error::io).doing(|| format!("create {}", dir.display()))
}

/// Replaces a file atomically; when this returns it survives a power cut.
pub(super) fn write_file(dir: &Path, kind: FileKind, content: &[u8]) -> Result<()> {
    replace(dir, kind.name(), kind.mode(), content)
}

fn replace(dir: &Path, name: &str, mode: u32, content: &[u8]) -> Result<()> {
    let (path, new) = (dir.join(name), dir.join(format!(".{name}.new")));
    let write = || {
        // A leftover of an interrupted write may have another mode.
        match fs::remove_file(&new) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(Error::io).doing(|| format!("write {}", path.display()))
}

/// Reads a file.
pub(super) fn read_file(dir: &Path, kind: FileKind) -> Result<Vec<u8>> {
    let path = dir.join(kind.name());
    let read = || {
        if fs::metadata(&path)?.len() > FILE_MAX {
            return Err(std::io::Error::from(ErrorKind::FileTooLarge));
        }
        fs::read(&path)
    };
    match read() {
        Ok(content) => Ok(content),
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let message = format!("{} is missing; {}", path.display(), kind.way_back());
            Err(Error::new(Kind::NotFound, message).context("read identity"))
        }
        Err(e) if e.kind() == ErrorKind::FileTooLarge => Err(kind.damaged(dir, &"it is too long")),
        Err(e) => Err(Error::io(e).context(format!("read {}", path.display()))),
    }
}

/// Writes bytes as PEM.
pub(super) fn write_pem(dir: &Path, kind: FileKind, der: &[u8]) -> Result<()> {
    let label = kind.label();
    let text = STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        out.push_str(line);
        out.push('\n');
        rest = tail;
    }
    out.push_str(&format!("-----END {label}-----\n"));
    write_file(dir, kind, out.as_bytes())
}

/// Reads bytes as PEM; anything but exactly one section of the right kind is damage.
pub(super) fn read_pem(dir: &Path, kind: FileKind) -> Result<Vec<u8>> {
    let text = read_file(dir, kind)?;
    let damaged = |why: &str| kind.damaged(dir, &why);
    let text = std::str::from_utf8(&text).map_err(|_| damaged("it is not text"))?.trim();
    let label = kind.label();
    let body = text
        .strip_prefix(&format!("-----BEGIN {label}-----"))
        .ok_or_else(|| damaged(&format!("it does not begin with BEGIN {label}")))?
        .strip_suffix(&format!("-----END {label}-----"))
        .ok_or_else(|| damaged(&format!("it does not end with END {label}, so it is torn")))?;
    let body: String = body.chars().filter(|c| !c.is_whitespace()).collect();
    STANDARD.decode(body).map_err(|_| damaged("it is not base64"))
}

/// A number that is larger at each start of this node, whatever its clock says; kept in
/// `DIR/generation`. Gossip orders the runs of a node by it.
///
/// # Errors
/// Whatever the disk says. A torn file is no error: the wall clock takes its place.
pub fn next_generation(dir: &Path) -> Result<u64> {
    let path = dir.join("generation");
    let last = match fs::read_to_string(&path) {
        Ok(text) => text.trim().parse::<u64>().unwrap_or(0),
        Err(e) if e.kind() == ErrorKind::NotFound || e.kind() == ErrorKind::InvalidData => 0,
        Err(e) => return Err(Error::io(e).context(format!("read {}", path.display()))),
    };
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let next = last.saturating_add(1).max(wall);
    create_dir(dir)?;
    replace(dir, "generation", 0o644, format!("{next}\n").as_bytes())?;
    Ok(next)
}
