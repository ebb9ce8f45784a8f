//! A sealed gossip datagram:
//!
//! ```text
//! | `hfg1` 4 | sender u64 | generation u64 | salt 16 | counter u64 | sealed message | tag 16 |
//! ```
//!
//! All members share the gossip key, so each run of each node seals with a key of its own, derived from
//! it, the salt, sender and generation: counters may then serve as nonces. The header and the cluster id
//! are authenticated. A receiver opens each counter of a run once, within a window that forgives
//! reordering, and no older run of a node after a newer one.

use crate::bounds::{DATAGRAM_MAX, GOSSIP_SENDERS_MAX};
use crate::identity::ClusterId;
use crate::random;
use hfcache_base::{Error, Kind, NodeId, Result};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Salt};
use std::collections::BTreeMap;

const MAGIC: &[u8; 4] = b"hfg1";
const SALT: usize = 16;
const HEADER: usize = 4 + 8 + 8 + SALT + 8;
const TAG: usize = 16;
/// Longest message that fits a datagram.
pub(super) const MESSAGE_MAX: usize = DATAGRAM_MAX - HEADER - TAG;
/// Counters behind the newest that may still come.
const WINDOW: u64 = 128;

/// One run of one node.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Run {
    sender: NodeId,
    generation: u64,
    salt: [u8; SALT],
}

impl Run {
    fn key(&self, gossip_key: &[u8; 32]) -> Result<LessSafeKey> {
        let info: [&[u8]; 3] =
            [b"hfcache gossip 1", &self.sender.0.to_le_bytes(), &self.generation.to_le_bytes()];
        let secret = Salt::new(HKDF_SHA256, &self.salt).extract(gossip_key);
        let key = secret.expand(&info, &AES_256_GCM).map(UnboundKey::from);
        key.map(LessSafeKey::new).map_err(|_| Error::from(Kind::Internal))
    }

    fn header(&self, counter: u64) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        out[..4].copy_from_slice(MAGIC);
        out[4..12].copy_from_slice(&self.sender.0.to_le_bytes());
        out[12..20].copy_from_slice(&self.generation.to_le_bytes());
        out[20..36].copy_from_slice(&self.salt);
        out[36..].copy_from_slice(&counter.to_le_bytes());
        out
    }

    fn parse(header: &[u8; HEADER]) -> Option<(Self, u64)> {
        let number = |at: usize| header[at..at + 8].try_into().map(u64::from_le_bytes).ok();
        let salt = header[20..36].try_into().ok()?;
        let run = Self { sender: NodeId(number(4)?), generation: number(12)?, salt };
        (&header[..4] == MAGIC).then_some((run, number(36)?))
    }
}

fn nonce(counter: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

fn aad(cluster: ClusterId, header: &[u8; HEADER]) -> Aad<[u8; 16 + HEADER]> {
    let mut out = [0; 16 + HEADER];
    out[..16].copy_from_slice(&cluster.0);
    out[16..].copy_from_slice(header);
    Aad::from(out)
}

/// Which counters of a run were seen.
#[derive(Default)]
struct Seen {
    next: u64,
    /// Bit `i`: `next - 1 - i` was seen.
    bits: u128,
}

impl Seen {
    fn is_new(&self, counter: u64) -> bool {
        match self.next.checked_sub(1).and_then(|newest| newest.checked_sub(counter)) {
            None => true,
            Some(back) => back < WINDOW && self.bits & (1 << back) == 0,
        }
    }

    fn note(&mut self, counter: u64) {
        if counter >= self.next {
            let ahead = counter - self.next + 1;
            self.bits = if ahead < WINDOW { self.bits << ahead } else { 0 };
            self.next = counter + 1;
        }
        self.bits |= 1 << (self.next - 1 - counter);
    }
}

struct Known {
    run: Run,
    key: LessSafeKey,
    seen: Seen,
}

/// Seals what this node sends and opens what it receives.
pub(super) struct Sealer {
    gossip_key: [u8; 32],
    cluster: ClusterId,
    run: Run,
    key: LessSafeKey,
    counter: u64,
    senders: BTreeMap<NodeId, Known>,
}

impl Sealer {
    pub(super) fn new(gossip_key: [u8; 32], cluster: ClusterId, me: NodeId, generation: u64) -> Result<Self> {
        let run = Run { sender: me, generation, salt: random()? };
        let key = run.key(&gossip_key)?;
        Ok(Self { gossip_key, cluster, run, key, counter: 0, senders: BTreeMap::new() })
    }

    /// Seals a message into a datagram.
    pub(super) fn seal(&mut self, message: &[u8]) -> Result<Vec<u8>> {
        if message.len() > MESSAGE_MAX {
            return Err(Error::new(Kind::TooLarge, format!("a gossip message of {} bytes", message.len())));
        }
        let header = self.run.header(self.counter);
        let mut out = Vec::with_capacity(HEADER + message.len() + TAG);
        out.extend_from_slice(&header);
        out.extend_from_slice(message);
        let nonce = nonce(self.counter);
        self.counter += 1;
        let tag = self.key.seal_in_place_separate_tag(nonce, aad(self.cluster, &header), &mut out[HEADER..]);
        let tag = tag.map_err(|_| Error::new(Kind::Internal, "seal datagram"))?;
        out.extend_from_slice(tag.as_ref());
        Ok(out)
    }

    /// Opens a datagram in place: `None` for one that is foreign, damaged or seen before.
    pub(super) fn open<'a>(&mut self, datagram: &'a mut [u8]) -> Option<(NodeId, &'a [u8])> {
        let (header, sealed) = datagram.split_first_chunk_mut::<HEADER>()?;
        let (run, counter) = Run::parse(header)?;
        if run.sender == self.run.sender || counter == u64::MAX {
            return None;
        }
        let aad = aad(self.cluster, header);
        if let Some(known) = self.senders.get_mut(&run.sender) {
            if known.run == run {
                if !known.seen.is_new(counter) {
                    return None;
                }
                let plain = known.key.open_in_place(nonce(counter), aad, sealed).ok()?;
                known.seen.note(counter);
                return Some((run.sender, plain));
            }
            if run.generation <= known.run.generation {
                return None;
            }
        } else if self.senders.len() >= GOSSIP_SENDERS_MAX {
            return None;
        }
        let key = run.key(&self.gossip_key).ok()?;
        let plain = key.open_in_place(nonce(counter), aad, sealed).ok()?;
        let mut seen = Seen::default();
        seen.note(counter);
        self.senders.insert(run.sender, Known { run, key, seen });
        Some((run.sender, plain))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: ClusterId = ClusterId([7; 16]);

    fn sealer(node: u64, generation: u64) -> Sealer {
        Sealer::new([1; 32], CLUSTER, NodeId(node), generation).unwrap()
    }

    #[test]
    fn a_datagram_is_opened_once_in_any_order() {
        let (mut one, mut two) = (sealer(1, 1), sealer(2, 1));
        let mut sent: Vec<_> = (0..200u32).map(|n| one.seal(&n.to_le_bytes()).unwrap()).collect();
        sent.swap(3, 60);
        for datagram in &sent {
            assert!(two.open(&mut datagram.clone()).is_some());
        }
        for datagram in &sent {
            assert!(two.open(&mut datagram.clone()).is_none());
        }
        let last = one.seal(b"last").unwrap();
        assert_eq!(two.open(&mut last.clone()).unwrap(), (NodeId(1), &b"last"[..]));
        // Its own words, sent back, are not news.
        assert!(one.open(&mut last.clone()).is_none());
    }

    #[test]
    fn an_older_run_is_refused_after_a_newer_one() {
        let mut two = sealer(2, 1);
        let (mut old, mut new) = (sealer(1, 5), sealer(1, 6));
        assert!(two.open(&mut old.seal(b"a").unwrap()).is_some());
        let late = old.seal(b"b").unwrap();
        assert!(two.open(&mut new.seal(b"c").unwrap()).is_some());
        assert!(two.open(&mut late.clone()).is_none());
        // A run that claims a known generation with another salt is no known run.
        assert!(two.open(&mut sealer(1, 6).seal(b"d").unwrap()).is_none());
    }

    #[test]
    fn foreign_and_damaged_datagrams_are_dropped() {
        let mut two = sealer(2, 1);
        let mut stranger = Sealer::new([2; 32], CLUSTER, NodeId(1), 1).unwrap();
        assert!(two.open(&mut stranger.seal(b"x").unwrap()).is_none());
        let mut other = Sealer::new([1; 32], ClusterId([8; 16]), NodeId(1), 1).unwrap();
        assert!(two.open(&mut other.seal(b"x").unwrap()).is_none());
        let good = sealer(1, 1).seal(b"message").unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(two.open(&mut bad).is_none(), "byte {at}");
            assert!(two.open(&mut good[..at].to_vec()).is_none(), "cut to {at}");
        }
        // None of this spoilt the sender's place.
        assert!(two.open(&mut good.clone()).is_some());
    }

    #[test]
    fn a_message_that_fits_no_datagram_is_refused() {
        let mut one = sealer(1, 1);
        assert_eq!(one.seal(&vec![0; MESSAGE_MAX]).unwrap().len(), DATAGRAM_MAX);
        assert_eq!(one.seal(&vec![0; MESSAGE_MAX + 1]).unwrap_err().kind(), Kind::TooLarge);
    }
}
