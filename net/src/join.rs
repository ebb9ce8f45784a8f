//! Joining: a node without a certificate asks a seed of its token to be admitted.
//!
//! The joiner believes only a server whose CA has the token's fingerprint. It proves that it holds the
//! private key of the public key it shows by signing the whole request. Whether the token is valid is
//! decided by Raft ([`JoinHandler`]); the certificate is signed by the node that was asked.

use crate::bounds::{JOIN_BURST, JOIN_DEADLINE, JOIN_REFILL, JOIN_SOURCES_MAX};
use crate::frame::Type;
use crate::identity::{ClusterId, NodeKey};
use crate::shared::Shared;
use crate::stats::add;
use crate::token::JoinToken;
use crate::{ca, quic, rpc, same_secret, sha256, tls};
use async_trait::async_trait;
use hfcache_base::meta::TokenUse;
use hfcache_base::{Error, Kind, NodeId, Result, wire};
use parking_lot::Mutex;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, UnparsedPublicKey,
};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

/// Longest name or domain.
const NAME_MAX: usize = 255;
const SIGNATURE_CONTEXT: &[u8] = b"hfcache join request 1\0";

/// What a new node says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// For people.
    pub name: String,
    /// Where it will listen.
    pub listen: SocketAddr,
    /// Failure domain.
    pub domain: String,
    /// Gives disks.
    pub storage: bool,
}

/// What the cluster gives to a new node.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinGrant {
    /// The cluster.
    pub cluster: ClusterId,
    /// Who it is from now on.
    pub node: NodeId,
    /// Its certificate (DER).
    pub node_cert: Vec<u8>,
    /// The CA's certificate (DER).
    pub ca_cert: Vec<u8>,
    /// The CA's private key, for storage nodes only.
    pub ca_key: Option<Vec<u8>>,
    /// The key of gossip.
    pub gossip_key: [u8; 32],
    /// All members.
    pub members: Vec<(NodeId, SocketAddr)>,
}

impl fmt::Debug for JoinGrant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinGrant({} of {}, members {:?})", self.node, self.cluster, self.members)
    }
}

/// A request as [`JoinHandler`] gets it: everything that `Op::AddNode` needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinAsk {
    /// What the node says of itself.
    pub request: JoinRequest,
    /// SHA-256 of its public key.
    pub key: [u8; 32],
    /// The token that it showed.
    pub token: TokenUse,
    /// Where the request came from.
    pub from: IpAddr,
}

/// A request that was granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinAdmit {
    /// The id that the cluster gave it.
    pub node: NodeId,
    /// All members, the new one among them.
    pub members: Vec<(NodeId, SocketAddr)>,
}

/// Decides who joins.
#[async_trait]
pub trait JoinHandler: Send + Sync + 'static {
    /// Checks the token and adds the node, both in the replicated state.
    ///
    /// # Errors
    /// [`Kind::Unauthorized`] for a token that is unknown, expired or revoked; it is told to the joiner.
    async fn join(&self, ask: JoinAsk) -> Result<JoinAdmit>;
}

#[derive(Serialize, Deserialize)]
struct Signed {
    cluster: ClusterId,
    token_id: String,
    secret: [u8; 32],
    request: JoinRequest,
    public_key: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
struct Message {
    signed: Vec<u8>,
    signature: Vec<u8>,
}

fn to_sign(signed: &[u8]) -> Vec<u8> {
    [SIGNATURE_CONTEXT, signed].concat()
}

fn encode_request(token: &JoinToken, request: &JoinRequest, key: &NodeKey) -> Result<Vec<u8>> {
    let signed = wire::encode(&Signed {
        cluster: token.cluster,
        token_id: token.id.clone(),
        secret: token.secret,
        request: request.clone(),
        public_key: key.public().to_vec(),
    });
    let random = SystemRandom::new();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, key.pkcs8(), &random)
        .map_err(|_| Error::new(Kind::Corrupt, "the node's private key").context("sign join request"))?;
    let signature = pair
        .sign(&random, &to_sign(&signed))
        .map_err(|_| Error::new(Kind::Internal, "no randomness").context("sign join request"))?;
    Ok(wire::encode(&Message { signed, signature: signature.as_ref().to_vec() }))
}

/// Asks each seed of the token in turn. The key should be kept from before the first attempt
/// ([`NodeKey::load_or_create`]): asked again with the same key, the cluster gives the same id.
///
/// # Errors
/// What the first seed that answered said, or why none could be reached.
pub async fn request_join(token: &JoinToken, request: &JoinRequest, key: &NodeKey) -> Result<JoinGrant> {
    let message = encode_request(token, request, key)?;
    let mut failures = Vec::new();
    for seed in &token.seeds {
        match timeout(JOIN_DEADLINE, ask(token, *seed, &message)).await {
            Ok(Ok(grant)) => {
                check_grant(token, &grant, key)?;
                return Ok(grant);
            }
            // It was the right cluster, and it said no: the others would say the same.
            Ok(Err(e)) if matches!(e.kind(), Kind::Unauthorized | Kind::Invalid | Kind::Version) => {
                return Err(e.context(format!("join through {seed}")));
            }
            Ok(Err(e)) => failures.push(format!("{seed}: {e}")),
            Err(_) => failures.push(format!("{seed}: no answer")),
        }
    }
    let message = format!("no seed of the token admitted this node ({})", failures.join("; "));
    Err(Error::new(Kind::Unavailable, message).context("join cluster"))
}

async fn ask(token: &JoinToken, seed: SocketAddr, message: &[u8]) -> Result<JoinGrant> {
    let any: IpAddr = match seed {
        SocketAddr::V4(_) => IpAddr::from([0; 4]),
        SocketAddr::V6(_) => IpAddr::from([0; 16]),
    };
    let socket = quic::bind_udp("QUIC/UDP", SocketAddr::new(any, 0))?;
    let endpoint = quic::endpoint(socket, None, &token.secret)?;
    let crypto = tls::join_config(token.cluster, token.ca_fingerprint)?;
    let connecting = endpoint
        .connect_with(quic::client(crypto), seed, "join.hfcache")
        .map_err(|e| Error::new(Kind::Invalid, "dial").with_source(e))?;
    let connection = connecting.await.map_err(|e| match e {
        quinn::ConnectionError::TransportError(e) => {
            let message = "the node there is not of the token's cluster, or not a node at all";
            Error::new(Kind::Unavailable, message).with_source(e)
        }
        e => Error::new(Kind::Unavailable, "cannot be reached").with_source(e),
    })?;
    let answer =
        rpc::exchange(&connection, Type::Join, JOIN_DEADLINE, message.to_vec().into(), Vec::new()).await;
    connection.close(quic::code::BYE, b"");
    wire::decode(&answer?.head).map_err(|e| e.context("read join answer"))
}

fn check_grant(token: &JoinToken, grant: &JoinGrant, key: &NodeKey) -> Result<()> {
    token.require_cluster(grant.cluster)?;
    if !same_secret(&sha256(&grant.ca_cert), &token.ca_fingerprint) {
        return Err(
            Error::new(Kind::Unauthorized, "the CA is not the one of the token").context("check join answer")
        );
    }
    crate::Identity::from_grant(grant, key.clone()).map(drop)
}

/// Answers a join request; the grant is encoded.
pub(crate) async fn serve(shared: &Shared, head: &[u8], from: IpAddr) -> Result<Vec<u8>> {
    add(&shared.counters.joins_asked, 1);
    if !shared.join_limiter.admit(from, Instant::now()) {
        add(&shared.counters.refused, 1);
        return Err(Error::new(Kind::Busy, "too many attempts to join from this address; wait a little"));
    }
    let message: Message = wire::decode(head)?;
    let signed: Signed = wire::decode(&message.signed)?;
    let Signed { cluster, token_id, secret, request, public_key } = signed;
    let unauthorized = |why: &'static str| Error::new(Kind::Unauthorized, why);
    if cluster != shared.identity.cluster() {
        return Err(unauthorized("the token is of another cluster"));
    }
    if public_key.len() != ca::PUBLIC_KEY_LEN {
        return Err(Error::new(Kind::Invalid, "not a P-256 public key"));
    }
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &public_key)
        .verify(&to_sign(&message.signed), &message.signature)
        .map_err(|_| unauthorized("the request is not signed by the key that it shows"))?;
    check_request(&request)?;
    if !shared.identity.can_issue() {
        return Err(Error::new(Kind::NotSupported, "this node keeps no CA key; ask a storage node"));
    }
    let handler = shared.join.read().clone();
    let handler = handler.ok_or_else(|| Error::new(Kind::Unavailable, "this node is still starting"))?;
    let (name, storage) = (request.name.clone(), request.storage);
    let token = TokenUse { id: token_id, secret_hash: sha256(&secret) };
    let ask = JoinAsk { request, key: sha256(&public_key), token, from };
    let admit = handler.join(ask).await.inspect_err(|e| {
        warn!(op = "join", %from, name, error = %e, "refuse to admit node");
    })?;
    let identity = &shared.identity;
    let grant = JoinGrant {
        cluster,
        node: admit.node,
        node_cert: identity.issue(admit.node, &public_key)?,
        ca_cert: identity.ca_cert().to_vec(),
        ca_key: identity.ca_key().filter(|_| storage).cloned(),
        gossip_key: *identity.gossip_key(),
        members: admit.members,
    };
    add(&shared.counters.joins_granted, 1);
    info!(op = "join", node = %admit.node, %from, name, "node admitted");
    Ok(wire::encode(&grant))
}

fn check_request(request: &JoinRequest) -> Result<()> {
    let plain = |text: &str| text.len() <= NAME_MAX && !text.chars().any(char::is_control);
    if request.name.is_empty() || !plain(&request.name) || !plain(&request.domain) {
        return Err(Error::new(Kind::Invalid, "a name or domain that is empty, too long or not plain text"));
    }
    if request.listen.ip().is_unspecified() || request.listen.port() == 0 || request.listen.port() == u16::MAX
    {
        let message = format!("other nodes cannot reach {}; say --listen IP:PORT", request.listen);
        return Err(Error::new(Kind::Invalid, message));
    }
    Ok(())
}

/// A bucket of attempts for each address.
#[derive(Default)]
pub(crate) struct JoinLimiter {
    sources: Mutex<HashMap<IpAddr, (u32, Instant)>>,
}

impl JoinLimiter {
    fn admit(&self, from: IpAddr, now: Instant) -> bool {
        let mut sources = self.sources.lock();
        if sources.len() >= JOIN_SOURCES_MAX && !sources.contains_key(&from) {
            let full = JOIN_REFILL * JOIN_BURST;
            sources.retain(|_, (_, at)| now.saturating_duration_since(*at) < full);
            if sources.len() >= JOIN_SOURCES_MAX {
                return false;
            }
        }
        let (left, at) = sources.entry(from).or_insert((JOIN_BURST, now));
        let earned = (now.saturating_duration_since(*at).as_millis() / JOIN_REFILL.as_millis()) as u32;
        if earned > 0 {
            *left = left.saturating_add(earned).min(JOIN_BURST);
            *at = now;
        }
        let admitted = *left > 0;
        *left = left.saturating_sub(1);
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_of_one_address_are_limited_and_come_back() {
        let limiter = JoinLimiter::default();
        let (one, two) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let now = Instant::now();
        for _ in 0..JOIN_BURST {
            assert!(limiter.admit(one, now));
        }
        assert!(!limiter.admit(one, now));
        assert!(limiter.admit(two, now));
        assert!(limiter.admit(one, now + JOIN_REFILL));
        assert!(!limiter.admit(one, now + JOIN_REFILL));
        for n in 0..2 * JOIN_SOURCES_MAX {
            let n = n as u32;
            limiter.admit(IpAddr::from(n.to_be_bytes()), now);
        }
        assert!(limiter.sources.lock().len() <= JOIN_SOURCES_MAX);
    }

    #[test]
    fn requests_are_checked() {
        let good = JoinRequest {
            name: "node-2".into(),
            listen: "10.0.0.2:7000".parse().unwrap(),
            domain: String::new(),
            storage: true,
        };
        check_request(&good).unwrap();
        for bad in [
            JoinRequest { name: String::new(), ..good.clone() },
            JoinRequest { name: "a\nb".into(), ..good.clone() },
            JoinRequest { domain: "d".repeat(256), ..good.clone() },
            JoinRequest { listen: "0.0.0.0:7000".parse().unwrap(), ..good.clone() },
            JoinRequest { listen: "10.0.0.2:0".parse().unwrap(), ..good },
        ] {
            assert_eq!(check_request(&bad).unwrap_err().kind(), Kind::Invalid);
        }
    }
}
