//! The cluster's own certificate authority: ECDSA P-256, and certificates that outlive every cluster,
//! because the clocks of an isolated cluster may be wrong. A node is put out by taking it off the cluster
//! map, not by waiting for a date.

use crate::identity::ClusterId;
use hfcache_base::{Error, Kind, NodeId, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm, date_time_ymd,
};
use rustls::pki_types::PrivatePkcs8KeyDer;

/// Length of an uncompressed P-256 point.
pub(crate) const PUBLIC_KEY_LEN: usize = 65;

fn failed(doing: &str, e: rcgen::Error) -> Error {
    Error::new(Kind::Internal, "certificate").with_source(e).context(doing)
}

/// Makes a key pair; the private key is PKCS#8.
pub(crate) fn new_key() -> Result<Vec<u8>> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|e| failed("make key", e))?;
    Ok(key.serialize_der())
}

fn key_pair(pkcs8: &[u8]) -> Result<KeyPair> {
    let der = PrivatePkcs8KeyDer::from(pkcs8);
    KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256)
        .map_err(|e| failed("read private key", e))
}

/// The public key of a private one: an uncompressed point.
pub(crate) fn public_key(pkcs8: &[u8]) -> Result<Vec<u8>> {
    Ok(key_pair(pkcs8)?.public_key_raw().to_vec())
}

/// Parameters of the CA certificate. They depend on nothing but the cluster id, so the issuer is the
/// same on every node that has the key.
fn authority(cluster: ClusterId) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, format!("hfcache cluster {cluster}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.not_before = date_time_ymd(1975, 1, 1);
    params.not_after = date_time_ymd(4096, 1, 1);
    params
}

/// Signs a cluster's CA certificate (DER) with its own key.
pub(crate) fn new_authority(cluster: ClusterId, ca_key: &[u8]) -> Result<Vec<u8>> {
    let key = key_pair(ca_key)?;
    let cert = authority(cluster).self_signed(&key).map_err(|e| failed("make CA certificate", e))?;
    Ok(cert.der().to_vec())
}

/// The name of a node in its certificate.
pub(crate) fn node_name(node: NodeId, cluster: ClusterId) -> String {
    format!("n{}.{cluster}.hfcache", node.0)
}

/// The node and cluster that a certificate name says.
pub(crate) fn parse_node_name(name: &str) -> Option<(NodeId, ClusterId)> {
    let mut parts = name.split('.');
    let (node, cluster, suffix) = (parts.next()?, parts.next()?, parts.next()?);
    if suffix != "hfcache" || parts.next().is_some() {
        return None;
    }
    let node = node.strip_prefix('n')?.parse().ok().filter(|id| *id != 0)?;
    Some((NodeId(node), cluster.parse().ok()?))
}

struct PublicPoint<'a>(&'a [u8]);

impl PublicKeyData for PublicPoint<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

/// Signs a node certificate (DER) over a public key.
pub(crate) fn issue(cluster: ClusterId, ca_key: &[u8], node: NodeId, public_key: &[u8]) -> Result<Vec<u8>> {
    if public_key.len() != PUBLIC_KEY_LEN || public_key[0] != 4 {
        return Err(
            Error::new(Kind::Invalid, "not an uncompressed P-256 public key").context("issue certificate")
        );
    }
    let mut params =
        CertificateParams::new(vec![node_name(node, cluster)]).map_err(|e| failed("issue certificate", e))?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("hfcache node {node}"));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.not_before = date_time_ymd(1975, 1, 1);
    params.not_after = date_time_ymd(4096, 1, 1);
    let issuer = Issuer::new(authority(cluster), key_pair(ca_key)?);
    let cert =
        params.signed_by(&PublicPoint(public_key), &issuer).map_err(|e| failed("issue certificate", e))?;
    Ok(cert.der().to_vec())
}
