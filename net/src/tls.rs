//! TLS 1.3 only, ring only, our own CA as the only root, certificates on both sides.
//!
//! rustls compares certificates with its clock: a node whose clock stands before `not_before` or after
//! `not_after` would refuse everyone. Dates decide nothing here, so it is given a clock that stands still
//! inside the validity of every certificate that we issue; tickets, the only other use of that clock,
//! are off, and so is 0-RTT, whose data could be replayed.

use crate::identity::{ClusterId, Identity};
use crate::{ca, same_secret, sha256};
use hfcache_base::{Error, Kind, NodeId, Result};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring as provider};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::time_provider::TimeProvider;
use rustls::{
    CipherSuite, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
};
use std::sync::Arc;
use std::time::Duration;

/// What both sides must speak.
const ALPN: &[u8] = b"hfcache/1";

/// 2026-01-01: inside the validity of every certificate of every cluster.
const CERTIFICATE_TIME: UnixTime = UnixTime::since_unix_epoch(Duration::from_secs(1_767_225_600));

#[derive(Debug)]
struct StandingClock;

impl TimeProvider for StandingClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(CERTIFICATE_TIME)
    }
}

fn crypto() -> Arc<CryptoProvider> {
    let mut crypto = provider::default_provider();
    // AES-128-GCM first: the cheapest cipher with hardware help, and QUIC needs it anyway.
    crypto.cipher_suites.sort_by_key(|s| s.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    Arc::new(crypto)
}

fn failed(e: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(Kind::Internal, "TLS configuration").with_source(e).context("set up TLS")
}

fn roots(ca: &[u8]) -> Result<Arc<RootCertStore>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(ca.to_vec())).map_err(failed)?;
    Ok(Arc::new(roots))
}

fn own_chain(identity: &Identity) -> Vec<CertificateDer<'static>> {
    // The CA goes along so that a joiner, who knows only its fingerprint, can check the chain.
    vec![
        CertificateDer::from(identity.node_cert().to_vec()),
        CertificateDer::from(identity.ca_cert().to_vec()),
    ]
}

fn own_key(identity: &Identity) -> PrivateKeyDer<'static> {
    PrivateKeyDer::from(PrivatePkcs8KeyDer::from(identity.node_key().to_vec()))
}

/// The side that accepts. Clients without a certificate get in, and are told apart by [`peer_of`].
pub(crate) fn server_config(identity: &Identity) -> Result<Arc<QuicServerConfig>> {
    let crypto = crypto();
    let clients = WebPkiClientVerifier::builder_with_provider(roots(identity.ca_cert())?, crypto.clone())
        .allow_unauthenticated()
        .build()
        .map_err(failed)?;
    let mut config = ServerConfig::builder_with_details(crypto, Arc::new(StandingClock))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(failed)?
        .with_client_cert_verifier(clients)
        .with_single_cert(own_chain(identity), own_key(identity))
        .map_err(failed)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(Arc::new(QuicServerConfig::try_from(config).map_err(failed)?))
}

/// The side that dials another member.
pub(crate) fn client_config(identity: &Identity) -> Result<Arc<QuicClientConfig>> {
    let mut config = ClientConfig::builder_with_details(crypto(), Arc::new(StandingClock))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(failed)?
        .with_root_certificates(roots(identity.ca_cert())?)
        .with_client_auth_cert(own_chain(identity), own_key(identity))
        .map_err(failed)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(QuicClientConfig::try_from(config).map_err(failed)?))
}

/// The side that joins: anonymous, and sure of the server by the CA's fingerprint.
pub(crate) fn join_config(cluster: ClusterId, ca_fingerprint: [u8; 32]) -> Result<Arc<QuicClientConfig>> {
    let crypto = crypto();
    let verifier =
        PinnedAuthority { cluster, ca_fingerprint, algorithms: crypto.signature_verification_algorithms };
    let mut config = ClientConfig::builder_with_details(crypto, Arc::new(StandingClock))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(failed)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(QuicClientConfig::try_from(config).map_err(failed)?))
}

/// The node and cluster that a certificate names. Whether it may be believed was checked before.
pub(crate) fn names_of(cert: &CertificateDer<'_>) -> Result<(NodeId, ClusterId)> {
    let bad = |why: &'static str| Error::new(Kind::Unauthorized, why).context("read certificate");
    let cert = webpki::EndEntityCert::try_from(cert).map_err(|_| bad("not a certificate"))?;
    let mut names = cert.valid_dns_names();
    let (Some(name), None) = (names.next(), names.next()) else {
        return Err(bad("a node certificate has exactly one name"));
    };
    ca::parse_node_name(name).ok_or_else(|| bad("not the name of a node"))
}

/// Checks that a certificate was issued by this CA, and says for whom.
pub(crate) fn verify_issued(cert: &[u8], ca: &[u8]) -> Result<(NodeId, ClusterId)> {
    let der = CertificateDer::from(cert);
    let parsed = ParsedCertificate::try_from(&der).map_err(not_ours)?;
    let algorithms = provider::default_provider().signature_verification_algorithms;
    verify_server_cert_signed_by_trust_anchor(&parsed, &*roots(ca)?, &[], CERTIFICATE_TIME, algorithms.all)
        .map_err(not_ours)?;
    names_of(&der)
}

fn not_ours(e: rustls::Error) -> Error {
    Error::new(Kind::Unauthorized, "not issued by this cluster's CA")
        .with_source(e)
        .context("check certificate")
}

/// The public key in a certificate, as it stands at the end of its SubjectPublicKeyInfo.
pub(crate) fn public_key_of(cert: &[u8]) -> Result<Vec<u8>> {
    let der = CertificateDer::from(cert);
    let parsed = ParsedCertificate::try_from(&der).map_err(not_ours)?;
    let spki = parsed.subject_public_key_info();
    let spki = spki.as_ref();
    let from = spki.len().checked_sub(ca::PUBLIC_KEY_LEN);
    let from =
        from.ok_or_else(|| Error::new(Kind::Unauthorized, "not a P-256 key").context("check certificate"))?;
    Ok(spki[from..].to_vec())
}

/// Who is on the other side of a connection: `None` for an anonymous client.
pub(crate) fn peer_of(connection: &quinn::Connection) -> Result<Option<(NodeId, ClusterId)>> {
    let Some(identity) = connection.peer_identity() else { return Ok(None) };
    let chain = identity
        .downcast::<Vec<CertificateDer<'static>>>()
        .map_err(|_| Error::new(Kind::Internal, "unknown kind of peer identity"))?;
    chain.first().map(names_of).transpose()
}

/// Accepts a server whose chain holds the CA with the pinned fingerprint and whose certificate was issued
/// by it for a node of the cluster.
#[derive(Debug)]
struct PinnedAuthority {
    cluster: ClusterId,
    ca_fingerprint: [u8; 32],
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let refused = || rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let ca = intermediates
            .iter()
            .find(|c| same_secret(&sha256(c), &self.ca_fingerprint))
            .ok_or_else(refused)?;
        let (_, cluster) = verify_issued(end_entity, ca).map_err(|_| refused())?;
        if cluster != self.cluster {
            return Err(refused());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("only TLS 1.3 is spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
