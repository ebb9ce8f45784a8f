//! The join token: one line of text without a character that a shell or a chat program would change.
//!
//! `hfc1.` and base64url of:
//!
//! ```text
//! version 1 | cluster 16 | id length 1, id | secret 32 | CA fingerprint 32 | expires i64 |
//! seed count 1, each: 4 or 6, address 4 or 16, port 2 | first 8 bytes of SHA-256 of all before
//! ```

use crate::bounds::{TOKEN_SEEDS_MAX, TOKEN_TEXT_MAX};
use crate::identity::{ClusterId, Identity};
use crate::{random, same_secret, sha256};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hfcache_base::meta::{Timestamp, Token, TokenUse};
use hfcache_base::{Error, Kind, Result};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

const PREFIX: &str = "hfc1.";
const VERSION: u8 = 1;
const CHECKSUM: usize = 8;
const ID_MAX: usize = 32;

/// See the module. Whoever holds it may join until it expires or is revoked: `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// The cluster it admits to.
    pub cluster: ClusterId,
    /// Its public name, for `token list` and `token revoke`.
    pub id: String,
    /// What proves that its holder was given it.
    pub secret: [u8; 32],
    /// SHA-256 of the CA's certificate: who to believe.
    pub ca_fingerprint: [u8; 32],
    /// Where to ask; storage nodes, since only they can admit.
    pub seeds: Vec<SocketAddr>,
    /// Not valid from then on; the cluster decides by its own clock.
    pub expires: Timestamp,
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({} of {})", self.id, self.cluster)
    }
}

impl JoinToken {
    /// A new token of this node's cluster.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for no seeds or too many.
    pub fn new(identity: &Identity, seeds: Vec<SocketAddr>, expires: Timestamp) -> Result<Self> {
        if seeds.is_empty() || seeds.len() > TOKEN_SEEDS_MAX {
            let message = format!("a token names 1 to {TOKEN_SEEDS_MAX} addresses, not {}", seeds.len());
            return Err(Error::new(Kind::Invalid, message).context("make token"));
        }
        let id = random::<5>()?.iter().map(|b| format!("{b:02x}")).collect();
        let (cluster, ca_fingerprint) = (identity.cluster(), identity.ca_fingerprint());
        Ok(Self { cluster, id, secret: random()?, ca_fingerprint, seeds, expires })
    }

    /// SHA-256 of the secret: all that the cluster keeps of it.
    pub fn secret_hash(&self) -> [u8; 32] {
        sha256(&self.secret)
    }

    /// The token as the cluster keeps it.
    pub fn record(&self) -> Token {
        Token { id: self.id.clone(), secret_hash: self.secret_hash(), expires: self.expires, revoked: false }
    }

    /// The token as a join shows it.
    pub fn proof(&self) -> TokenUse {
        TokenUse { id: self.id.clone(), secret_hash: self.secret_hash() }
    }

    /// Whether it has expired by a clock. For warnings only: the clock of a new node may be wrong.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        now >= self.expires
    }

    /// Checks that it is a token of this cluster.
    ///
    /// # Errors
    /// [`Kind::Unauthorized`] if not.
    pub fn require_cluster(&self, cluster: ClusterId) -> Result<()> {
        if self.cluster != cluster {
            let message = format!("the token is for cluster {}, this is {cluster}", self.cluster);
            return Err(Error::new(Kind::Unauthorized, message));
        }
        Ok(())
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = vec![VERSION];
        out.extend(self.cluster.0);
        out.push(self.id.len() as u8);
        out.extend(self.id.as_bytes());
        out.extend(self.secret);
        out.extend(self.ca_fingerprint);
        out.extend(self.expires.0.to_le_bytes());
        out.push(self.seeds.len() as u8);
        for seed in &self.seeds {
            match seed.ip() {
                IpAddr::V4(ip) => {
                    out.push(4);
                    out.extend(ip.octets());
                }
                IpAddr::V6(ip) => {
                    out.push(6);
                    out.extend(ip.octets());
                }
            }
            out.extend(seed.port().to_le_bytes());
        }
        let checksum = sha256(&out);
        out.extend(&checksum[..CHECKSUM]);
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(out))
    }
}

fn bad(why: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(Kind::Invalid, why).context("read join token")
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let (head, tail) =
            self.0.split_at_checked(n).ok_or_else(|| bad("it is damaged: it ends too early"))?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }
}

impl FromStr for JoinToken {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        let body = text.strip_prefix(PREFIX).ok_or_else(|| {
            bad(match text.starts_with("hfc") && text.contains('.') {
                true => "it is of another version; use the same hfcache on both nodes",
                false => "it does not begin with \"hfc1.\"; copy the whole line that `hfcache token create` printed",
            })
        })?;
        if text.len() > TOKEN_TEXT_MAX {
            return Err(bad("it is too long"));
        }
        let damaged = "it is damaged: copy the whole line again";
        let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| bad(damaged))?;
        let at = bytes.len().checked_sub(CHECKSUM).ok_or_else(|| bad(damaged))?;
        let (bytes, checksum) = bytes.split_at(at);
        if !same_secret(&sha256(bytes)[..CHECKSUM], checksum) {
            return Err(bad(damaged));
        }
        let mut r = Reader(bytes);
        let version = r.byte()?;
        if version != VERSION {
            let message = format!("it is of version {version}, this program knows {VERSION}");
            return Err(Error::new(Kind::Version, message).context("read join token"));
        }
        let cluster = ClusterId(r.array()?);
        let id_len = usize::from(r.byte()?);
        let id = std::str::from_utf8(r.take(id_len)?).map_err(|_| bad(damaged))?.to_owned();
        if id.is_empty() || id.len() > ID_MAX || !id.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(bad(damaged));
        }
        let (secret, ca_fingerprint) = (r.array()?, r.array()?);
        let expires = Timestamp(i64::from_le_bytes(r.array()?));
        let count = usize::from(r.byte()?);
        if count == 0 || count > TOKEN_SEEDS_MAX {
            return Err(bad(damaged));
        }
        let mut seeds = Vec::with_capacity(count);
        for _ in 0..count {
            let ip: IpAddr = match r.byte()? {
                4 => r.array::<4>()?.into(),
                6 => r.array::<16>()?.into(),
                _ => return Err(bad(damaged)),
            };
            seeds.push(SocketAddr::new(ip, u16::from_le_bytes(r.array()?)));
        }
        if !r.0.is_empty() {
            return Err(bad(damaged));
        }
        Ok(Self { cluster, id, secret, ca_fingerprint, seeds, expires })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> JoinToken {
        let identity = Identity::new_cluster().unwrap();
        let seeds = vec!["10.0.0.1:7000".parse().unwrap(), "[fe80::1]:7001".parse().unwrap()];
        JoinToken::new(&identity, seeds, Timestamp(1_000)).unwrap()
    }

    #[test]
    fn the_line_is_plain_and_comes_back_as_it_was() {
        let token = token();
        let text = token.to_string();
        assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)), "{text}");
        assert_eq!(format!(" {text}\n").parse::<JoinToken>().unwrap(), token);
        assert_eq!(token.proof().secret_hash, token.record().secret_hash);
        assert!(!format!("{token:?}").contains(&text[20..]));
        assert!(token.is_expired(Timestamp(1_000)) && !token.is_expired(Timestamp(999)));
    }

    #[test]
    fn damage_of_any_kind_is_refused_with_a_hint() {
        let text = token().to_string();
        for cut in 0..text.len() {
            assert_eq!(text[..cut].parse::<JoinToken>().unwrap_err().kind(), Kind::Invalid);
        }
        for at in PREFIX.len()..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let e = String::from_utf8(bytes).unwrap().parse::<JoinToken>().unwrap_err();
            assert!(e.to_string().contains("damaged"), "{e}");
        }
        let e = "eyJhbGciOi".parse::<JoinToken>().unwrap_err();
        assert!(e.to_string().contains("does not begin with"), "{e}");
        let e = text.replace("hfc1.", "hfc2.").parse::<JoinToken>().unwrap_err();
        assert!(e.to_string().contains("another version"), "{e}");
        let e = format!("hfc1.{}", "A".repeat(9_999)).parse::<JoinToken>().unwrap_err();
        assert!(e.to_string().contains("too long"), "{e}");
    }

    #[test]
    fn a_foreign_token_is_told_apart() {
        let token = token();
        token.require_cluster(token.cluster).unwrap();
        let e = token.require_cluster(ClusterId([9; 16])).unwrap_err();
        assert_eq!(e.kind(), Kind::Unauthorized);
    }

    #[test]
    fn seeds_are_bounded() {
        let identity = Identity::new_cluster().unwrap();
        let seed: SocketAddr = "[2001:db8::1]:65535".parse().unwrap();
        assert!(JoinToken::new(&identity, vec![], Timestamp(0)).is_err());
        assert!(JoinToken::new(&identity, vec![seed; TOKEN_SEEDS_MAX + 1], Timestamp(0)).is_err());
        let most = JoinToken::new(&identity, vec![seed; TOKEN_SEEDS_MAX], Timestamp(0)).unwrap();
        assert_eq!(most.to_string().parse::<JoinToken>().unwrap(), most);
    }
}
