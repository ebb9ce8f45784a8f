//! Making a node: the first of a new cluster, or one more of a cluster that is there. Both end with the
//! `format` file; without it nothing was made, and the command may be repeated.

use crate::config::Config;
use crate::data::DataDir;
use crate::preflight;
use crate::time::later;
use crate::world::RealClock;
use anyhow::{Context, Result, bail};
use hfcache_base::meta::Token;
use hfcache_base::seam::Clock;
use hfcache_base::{Kind, NodeId};
use hfcache_net::{Identity, JoinRequest, JoinToken, NodeKey, request_join};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

/// How long the token is good for that `init` prints.
const FIRST_TOKEN_TTL: Duration = Duration::from_secs(24 * 3_600);

/// What was made.
#[derive(Debug)]
pub struct Made {
    /// The cluster.
    pub cluster: String,
    /// The node.
    pub node: NodeId,
    /// The first join token, of `init` only.
    pub token: Option<String>,
}

/// Makes a cluster of one, which keeps what is deleted for `trash` seconds.
///
/// # Errors
/// A node is there already, the mount point is no good, or whatever the disk says.
pub fn init(data: &DataDir, config: &Config, trash: u64) -> Result<Made> {
    data.create()?;
    let _lock = data.lock()?;
    data.refuse_node()?;
    if Identity::exists(&data.identity()) && !data.first_token().exists() {
        bail!(
            "{} has the keys of a node whose join did not finish.\n\
             Repeat that `hfcache node join`, or remove the directory to make a new cluster.",
            data.path().display()
        );
    }
    prepare(data, config)?;
    let identity = Identity::new_cluster()?;
    let expires = later(RealClock.wall(), FIRST_TOKEN_TTL);
    let token = JoinToken::new(&identity, vec![config.listen], expires)?;
    // The cluster does not run yet: it learns of the token at its first start.
    let record = serde_json::to_vec(&token.record())?;
    data.write_atomic(&data.first_token(), &record, 0o600)?;
    if trash > 0 {
        data.write_atomic(&data.first_trash(), format!("{trash}\n").as_bytes(), 0o644)?;
    }
    identity.save(&data.identity())?;
    config.save(data)?;
    data.finish()?;
    let cluster = identity.cluster().to_string();
    Ok(Made { cluster, node: identity.node(), token: Some(token.to_string()) })
}

/// Joins a cluster.
///
/// # Errors
/// As [`init`]; what is wrong with the token; why nobody admitted this node.
pub fn join(data: &DataDir, config: &Config, token: &str) -> Result<Made> {
    let token: JoinToken = token.parse()?;
    data.create()?;
    let _lock = data.lock()?;
    data.refuse_node()?;
    if Identity::exists(&data.identity()) {
        let there = Identity::load(&data.identity())?;
        if there.cluster() != token.cluster {
            bail!(
                "{} has the keys of a node of cluster {}, but the token is of cluster {}.\n\
                 Give another --data, or remove the directory if that node is of no more use.",
                data.path().display(),
                there.cluster(),
                token.cluster
            );
        }
    }
    prepare(data, config)?;
    let key = NodeKey::load_or_create(&data.identity())?;
    let request = JoinRequest {
        name: config.name.clone(),
        listen: config.listen,
        domain: config.domain.clone(),
        storage: config.storage,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let grant = runtime.block_on(request_join(&token, &request, &key)).map_err(|e| explain(&token, e))?;
    let identity = Identity::from_grant(&grant, key)?;
    identity.save(&data.identity())?;
    save_members(data, &grant.members)?;
    config.save(data)?;
    data.finish()?;
    Ok(Made { cluster: identity.cluster().to_string(), node: identity.node(), token: None })
}

/// What can be known to go wrong later is found before anything is made.
fn prepare(data: &DataDir, config: &Config) -> Result<()> {
    preflight::ready_mount_point(&config.mount.point, true)?;
    if config.mount.point.starts_with(data.path()) || data.path().starts_with(&config.mount.point) {
        bail!(
            "the mount point {} and the data directory {} lie in one another; keep them apart",
            config.mount.point.display(),
            data.path().display()
        );
    }
    for dir in config.shard_dirs(data) {
        std::fs::create_dir_all(&dir).with_context(|| format!("make shard directory {}", dir.display()))?;
    }
    Ok(())
}

fn explain(token: &JoinToken, e: hfcache_base::Error) -> anyhow::Error {
    let hint = match e.kind() {
        Kind::Unauthorized => "\nMake a new one on a node of the cluster: `hfcache token create`.",
        _ if token.is_expired(RealClock.wall()) => {
            "\nBy this machine's clock the token has expired; make a new one: `hfcache token create`."
        }
        Kind::Unavailable | Kind::TimedOut => {
            "\nCheck that a storage node of the cluster runs there and that UDP gets through."
        }
        _ => "",
    };
    anyhow::anyhow!("{e}{hint}")
}

/// Where the members were when this node joined: whom to ask before there is a map.
fn save_members(data: &DataDir, members: &[(NodeId, SocketAddr)]) -> Result<()> {
    data.write_atomic(&data.members(), &serde_json::to_vec(members)?, 0o644)
}

/// What [`join`] left for the first start.
///
/// # Errors
/// A torn file, with the way back.
pub fn load_members(data: &DataDir) -> Result<Vec<(NodeId, SocketAddr)>> {
    let path = data.members();
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).with_context(|| format!("read {}", path.display())),
    };
    serde_json::from_slice(&text).with_context(|| {
        format!(
            "{} is damaged. It lists members as [[id, \"ip:port\"], ...]: write it again with one storage node of \
             the cluster, or remove it if this node has been up before",
            path.display()
        )
    })
}

fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("read {}", path.display())),
    }
}

/// The token that `init` made, until the cluster knows it.
///
/// # Errors
/// Whatever the disk says.
pub fn load_first_token(data: &DataDir) -> Result<Option<Token>> {
    let path = data.first_token();
    let Some(text) = read_if_there(&path)? else { return Ok(None) };
    match serde_json::from_slice(&text) {
        Ok(token) => Ok(Some(token)),
        // Nothing is lost: any number of tokens can be made.
        Err(e) => {
            tracing::warn!(error = %e, file = %path.display(), "forget the first token: make one with `token create`");
            Ok(None)
        }
    }
}

/// For how many seconds a new cluster is to keep what is deleted, until it knows that.
///
/// # Errors
/// Whatever the disk says; a damaged file.
pub fn load_first_trash(data: &DataDir) -> Result<Option<u64>> {
    let path = data.first_trash();
    let Some(text) = read_if_there(&path)? else { return Ok(None) };
    let seconds = std::str::from_utf8(&text).ok().and_then(|text| text.trim().parse().ok());
    seconds.map(Some).with_context(|| {
        format!("{} is damaged; remove it and say `hfcache trash retention` again", path.display())
    })
}
