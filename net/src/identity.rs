//! Who this node is: the files that `node init` or `node join` leave behind.
//!
//! ```text
//! DIR/ca.crt        the cluster CA's certificate (PEM)
//! DIR/node.crt      this node's certificate (PEM); its name is n<id>.<cluster>.hfcache
//! DIR/node.key      this node's private key (PEM, PKCS#8), 0600
//! DIR/ca.key        the CA's private key, 0600; only where new nodes may be admitted
//! DIR/gossip.key    the key of gossip (PEM), 0600
//! DIR/cluster.toml  version, cluster id, node id, fingerprint of the CA; written last
//! DIR/generation    counts the starts of this node
//! ```
//!
//! Each file is replaced atomically and synced, and all are checked against each other when read: a file
//! of another cluster or node is as good as a torn one.

mod files;

use crate::{ca, join, random, sha256, tls};
use files::{FileKind, read_pem, write_file, write_pem};
use hfcache_base::error::Context;
use hfcache_base::{Error, Kind, NodeId, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::Path;
use std::str::FromStr;

pub use files::next_generation;

/// A cluster: 128 random bits, made by `node init`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClusterId(pub [u8; 16]);

impl ClusterId {
    /// A new one.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn random() -> Result<Self> {
        Ok(Self(random()?))
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ClusterId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bytes = unhex(text).and_then(|b| b.try_into().ok());
        bytes
            .map(Self)
            .ok_or_else(|| Error::new(Kind::Invalid, "a cluster id is 32 lowercase hexadecimal digits"))
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|p| Some(digit(*p.first()?)? << 4 | digit(*p.get(1)?)?)).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// A node's key pair before it has a certificate. Kept in the identity directory from before the first
/// attempt to join, so that a repeated attempt is the same node.
#[derive(Clone)]
pub struct NodeKey {
    pkcs8: Vec<u8>,
    public: Vec<u8>,
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeKey({})", hex(&self.hash()[..8]))
    }
}

impl NodeKey {
    /// A new one.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn generate() -> Result<Self> {
        Self::from_pkcs8(ca::new_key()?)
    }

    fn from_pkcs8(pkcs8: Vec<u8>) -> Result<Self> {
        let public = ca::public_key(&pkcs8)?;
        Ok(Self { pkcs8, public })
    }

    /// The key in the directory, made and saved there if it has none.
    ///
    /// # Errors
    /// A damaged file, or whatever the disk says.
    pub fn load_or_create(dir: &Path) -> Result<Self> {
        let path = dir.join("node.key");
        if path.try_exists().map_err(Error::io).doing(|| format!("look for {}", path.display()))? {
            return Self::from_pkcs8(read_pem(dir, FileKind::NodeKey)?)
                .map_err(|e| FileKind::NodeKey.damaged(dir, &e));
        }
        let key = Self::generate()?;
        files::create_dir(dir)?;
        write_pem(dir, FileKind::NodeKey, &key.pkcs8)?;
        Ok(key)
    }

    /// The public key: an uncompressed P-256 point.
    pub fn public(&self) -> &[u8] {
        &self.public
    }

    /// SHA-256 of the public key: what the cluster knows a node by.
    pub fn hash(&self) -> [u8; 32] {
        sha256(&self.public)
    }

    pub(crate) fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }
}

/// See the module.
#[derive(Clone)]
pub struct Identity {
    cluster: ClusterId,
    node: NodeId,
    ca_cert: Vec<u8>,
    node_cert: Vec<u8>,
    key: NodeKey,
    ca_key: Option<Vec<u8>>,
    gossip_key: [u8; 32],
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({} of {})", self.node, self.cluster)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClusterFile {
    version: u32,
    cluster: String,
    node: u64,
    ca_sha256: String,
}

/// The version of `cluster.toml` this program writes.
const CLUSTER_FILE_VERSION: u32 = 1;

impl Identity {
    /// A new cluster, and this its first node.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn new_cluster() -> Result<Self> {
        let (cluster, node) = (ClusterId::random()?, NodeId(1));
        let ca_key = ca::new_key()?;
        let ca_cert = ca::new_authority(cluster, &ca_key)?;
        let key = NodeKey::generate()?;
        let node_cert = ca::issue(cluster, &ca_key, node, key.public())?;
        let identity =
            Self { cluster, node, ca_cert, node_cert, key, ca_key: Some(ca_key), gossip_key: random()? };
        identity.check()?;
        Ok(identity)
    }

    /// What a join came to.
    ///
    /// # Errors
    /// When the grant is not for this key or does not fit together.
    pub fn from_grant(grant: &join::JoinGrant, key: NodeKey) -> Result<Self> {
        let identity = Self {
            cluster: grant.cluster,
            node: grant.node,
            ca_cert: grant.ca_cert.clone(),
            node_cert: grant.node_cert.clone(),
            key,
            ca_key: grant.ca_key.clone(),
            gossip_key: grant.gossip_key,
        };
        identity.check().map_err(|e| e.context("check join answer"))?;
        Ok(identity)
    }

    /// All parts belong together.
    fn check(&self) -> Result<()> {
        let (node, cluster) = tls::verify_issued(&self.node_cert, &self.ca_cert)?;
        let bad = |what: &'static str| Err(Error::new(Kind::Unauthorized, what));
        if (node, cluster) != (self.node, self.cluster) {
            return bad("the node certificate is for another node or cluster");
        }
        if tls::public_key_of(&self.node_cert)? != self.key.public {
            return bad("the node certificate is for another key");
        }
        if let Some(ca_key) = &self.ca_key
            && tls::public_key_of(&self.ca_cert)? != ca::public_key(ca_key)?
        {
            return bad("the CA key is not the one of the CA certificate");
        }
        Ok(())
    }

    /// Whether the directory holds a complete identity.
    pub fn exists(dir: &Path) -> bool {
        dir.join(FileKind::Cluster.name()).exists()
    }

    /// Writes all files; `cluster.toml` last, so that it stands for a complete set.
    ///
    /// # Errors
    /// Whatever the disk says.
    pub fn save(&self, dir: &Path) -> Result<()> {
        files::create_dir(dir)?;
        write_pem(dir, FileKind::CaCert, &self.ca_cert)?;
        write_pem(dir, FileKind::NodeCert, &self.node_cert)?;
        write_pem(dir, FileKind::NodeKey, self.key.pkcs8())?;
        if let Some(ca_key) = &self.ca_key {
            write_pem(dir, FileKind::CaKey, ca_key)?;
        }
        write_pem(dir, FileKind::GossipKey, &self.gossip_key)?;
        let file = ClusterFile {
            version: CLUSTER_FILE_VERSION,
            cluster: self.cluster.to_string(),
            node: self.node.0,
            ca_sha256: hex(&self.ca_fingerprint()),
        };
        let text = toml::to_string(&file)
            .map_err(|e| Error::new(Kind::Internal, "encode cluster.toml").with_source(e))?;
        write_file(dir, FileKind::Cluster, text.as_bytes())
    }

    /// Reads what [`Self::save`] wrote and checks that it belongs together.
    ///
    /// # Errors
    /// Names the missing, torn or foreign file and the way back.
    pub fn load(dir: &Path) -> Result<Self> {
        let text = files::read_file(dir, FileKind::Cluster)?;
        let text = String::from_utf8(text).map_err(|e| FileKind::Cluster.damaged(dir, &e))?;
        let table: toml::Table = toml::from_str(&text).map_err(|e| FileKind::Cluster.damaged(dir, &e))?;
        let version = table.get("version").and_then(toml::Value::as_integer);
        if version != Some(CLUSTER_FILE_VERSION.into()) {
            let said = version.map_or("none".to_owned(), |v| v.to_string());
            let message = format!(
                "{} has version {said}, this program knows {CLUSTER_FILE_VERSION}; use a newer hfcache",
                dir.join(FileKind::Cluster.name()).display()
            );
            return Err(Error::new(Kind::Version, message).context("read identity"));
        }
        let file: ClusterFile = toml::from_str(&text).map_err(|e| FileKind::Cluster.damaged(dir, &e))?;
        let cluster: ClusterId =
            file.cluster.parse().map_err(|e: Error| FileKind::Cluster.damaged(dir, &e))?;
        let ca_cert = read_pem(dir, FileKind::CaCert)?;
        if hex(&sha256(&ca_cert)) != file.ca_sha256 {
            return Err(FileKind::CaCert.damaged(dir, &"it is not the CA that cluster.toml names"));
        }
        let node_cert = read_pem(dir, FileKind::NodeCert)?;
        let key = NodeKey::from_pkcs8(read_pem(dir, FileKind::NodeKey)?)
            .map_err(|e| FileKind::NodeKey.damaged(dir, &e))?;
        let ca_key = match dir.join(FileKind::CaKey.name()).exists() {
            true => Some(read_pem(dir, FileKind::CaKey)?),
            false => None,
        };
        if let Some(ca_key) = &ca_key {
            ca::public_key(ca_key).map_err(|e| FileKind::CaKey.damaged(dir, &e))?;
        }
        let gossip_key: [u8; 32] = read_pem(dir, FileKind::GossipKey)?
            .try_into()
            .map_err(|_| FileKind::GossipKey.damaged(dir, &"it is not 32 bytes long"))?;
        let identity = Self { cluster, node: NodeId(file.node), ca_cert, node_cert, key, ca_key, gossip_key };
        identity.check().map_err(|e| FileKind::NodeCert.damaged(dir, &e))?;
        Ok(identity)
    }

    /// The cluster.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// This node.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// This node's key pair.
    pub fn key(&self) -> &NodeKey {
        &self.key
    }

    /// Whether this node has the CA's key, so may admit others.
    pub fn can_issue(&self) -> bool {
        self.ca_key.is_some()
    }

    /// SHA-256 of the CA's certificate, for join tokens.
    pub fn ca_fingerprint(&self) -> [u8; 32] {
        sha256(&self.ca_cert)
    }

    /// Signs a certificate for a node.
    ///
    /// # Errors
    /// [`Kind::NotSupported`] where this node has no CA key, [`Kind::Invalid`] for a bad public key.
    pub fn issue(&self, node: NodeId, public_key: &[u8]) -> Result<Vec<u8>> {
        let ca_key = self.ca_key.as_ref().ok_or_else(|| {
            Error::new(Kind::NotSupported, "this node keeps no CA key; ask a storage node")
                .context("issue certificate")
        })?;
        ca::issue(self.cluster, ca_key, node, public_key)
    }

    /// The CA's certificate (DER).
    pub fn ca_certificate(&self) -> &[u8] {
        &self.ca_cert
    }

    /// The key of gossip, which every member has.
    pub fn gossip_secret(&self) -> [u8; 32] {
        self.gossip_key
    }

    pub(crate) fn ca_cert(&self) -> &[u8] {
        &self.ca_cert
    }

    pub(crate) fn node_cert(&self) -> &[u8] {
        &self.node_cert
    }

    pub(crate) fn node_key(&self) -> &[u8] {
        self.key.pkcs8()
    }

    pub(crate) fn ca_key(&self) -> Option<&Vec<u8>> {
        self.ca_key.as_ref()
    }

    pub(crate) fn gossip_key(&self) -> &[u8; 32] {
        &self.gossip_key
    }
}

#[cfg(test)]
mod tests;
