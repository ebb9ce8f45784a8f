//! How commands talk to the node that runs: `DATA/admin.sock`, for its owner only. One JSON object a line.
//!
//! ```text
//! >  {"v":1,"op":"token-create","ttl_seconds":86400}
//! <  {"v":1,"progress":{...}}          any number of times
//! <  {"v":1,"ok":{...}}  or  {"v":1,"error":{"kind":"NotFound","message":"..."}}
//! ```
//!
//! A connection carries one request. Both ends refuse another version and a line over [`LINE_MAX`].

pub mod client;
pub mod server;

use crate::rate;
use crate::usage::{Bound, Whose};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The version of this protocol.
pub const VERSION: u32 = 1;
/// Longest line, in bytes.
pub const LINE_MAX: usize = 4 << 20;
/// Longest wait for a quorum before a request fails.
pub const QUORUM_DEADLINE: Duration = Duration::from_secs(5);
/// Connections served at once.
pub const CONNECTIONS_MAX: usize = 32;
const SOCKET: &str = "admin.sock";

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Request {
    /// Are you there?
    Ping,
    /// How is the cluster?
    Status,
    /// Make a join token.
    TokenCreate {
        /// How long it is good for.
        ttl_seconds: u64,
    },
    /// All join tokens, without their secrets.
    TokenList,
    /// Refuse a token from now on.
    TokenRevoke {
        /// Its public name, or the token itself.
        id: String,
    },
    /// Take this node out of the cluster.
    Leave {
        /// Even if redundancy is lost by it.
        force: bool,
        /// Only say what would happen.
        dry_run: bool,
    },
    /// Stop as at SIGTERM.
    Stop,
    /// Make a directory a shared tree.
    ShareSet {
        /// Its path in the mount.
        path: PathBuf,
        /// Whose it is; everyone's without.
        group: Option<u32>,
        /// Leave what is there already as it is.
        keep: bool,
        /// Only say what would happen.
        dry_run: bool,
    },
    /// All shared trees.
    ShareList,
    /// Make a shared tree an ordinary directory.
    ShareClear {
        /// Its path in the mount.
        path: PathBuf,
    },
    /// What do these use?
    Du {
        /// Paths in the mount.
        paths: Vec<PathBuf>,
    },
    /// Limit what may be used.
    QuotaSet {
        /// By whom.
        whose: Whose,
        /// Bytes.
        bytes: Bound,
        /// Inodes.
        inodes: Bound,
    },
    /// What does one use, and what may it?
    QuotaGet {
        /// Who.
        whose: Whose,
    },
    /// All quotas.
    QuotaList,
    /// Limit how fast one may go.
    RateSet {
        /// Who.
        whose: Whose,
        /// How fast.
        change: rate::Change,
    },
    /// How fast may one go?
    RateGet {
        /// Who.
        whose: Whose,
    },
    /// All rates.
    RateList,
    /// What is in the trash? Its entries come before the answer.
    TrashList {
        /// Only what was there or below.
        path: Option<PathBuf>,
    },
    /// Give what was deleted its names back.
    TrashRestore {
        /// What.
        path: PathBuf,
        /// Where to, if not where it was.
        to: Option<PathBuf>,
        /// Only say what would happen.
        dry_run: bool,
    },
    /// Delete for good what is in the trash.
    TrashEmpty {
        /// Only what was there or below.
        path: Option<PathBuf>,
        /// Only what was deleted so long ago.
        older_seconds: u64,
        /// Only say what would happen.
        dry_run: bool,
    },
    /// For how long is kept what is deleted?
    TrashRetention {
        /// For so many seconds from now on; 0 for not at all.
        set: Option<u64>,
    },
}

#[derive(Debug, Serialize, Deserialize)]
struct Envelope {
    v: u32,
    #[serde(flatten)]
    request: Request,
}

/// A line from the node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Line {
    /// How far it is.
    Progress(Value),
    /// The answer.
    Ok(Value),
    /// Why not.
    Error(Failure),
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// [`hfcache_base::Kind`] as a word.
    pub kind: String,
    /// A sentence.
    pub message: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    v: u32,
    #[serde(flatten)]
    line: Line,
}

/// The path by which a socket is bound and found. A Unix address has room for 107 bytes only, and a data
/// directory may lie deeper, so the way goes through the open directory.
fn short_path(data: &Path) -> std::io::Result<(OwnedFd, PathBuf)> {
    let dir = File::options().read(true).custom_flags(libc::O_DIRECTORY | libc::O_PATH).open(data)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd()));
    Ok((dir.into(), path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_look_as_documented() {
        let envelope = Envelope { v: 1, request: Request::TokenCreate { ttl_seconds: 60 } };
        let text = serde_json::to_string(&envelope).unwrap();
        assert_eq!(text, r#"{"v":1,"op":"token-create","ttl_seconds":60}"#);
        assert_eq!(serde_json::from_str::<Envelope>(&text).unwrap().request, envelope.request);
        let answer = Answer { v: 1, line: Line::Ok(serde_json::json!({"a": 1})) };
        assert_eq!(serde_json::to_string(&answer).unwrap(), r#"{"v":1,"ok":{"a":1}}"#);
    }
}
