//! The frame that every request and every answer begins with, on both lanes:
//!
//! ```text
//!  0        1        2        3        4               8               12              16
//!  +--------+--------+--------+--------+---------------+---------------+---------------+------+------+
//!  | version| type   | service| flags  | deadline, ms  | head, bytes   | body, bytes   | head | body |
//!  +--------+--------+--------+--------+---------------+---------------+---------------+------+------+
//! ```
//!
//! Numbers are little endian. Version first, so that a later version can say anything behind it; both
//! lengths before any byte they count, so that a frame is refused before memory is spent on it.

use crate::bounds::{JOIN_MAX, MESSAGE_MAX};
use hfcache_base::limits::{CALL_BODY_MAX, CALL_HEAD_MAX};
use hfcache_base::seam::ServiceId;
use hfcache_base::{Error, Kind, Result, wire};
use std::time::Duration;

/// The version of the frame.
pub(crate) const VERSION: u8 = 1;
/// Bytes of the frame's fixed part.
pub(crate) const FRAME_LEN: usize = 16;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    /// A request to a service.
    Call(ServiceId),
    /// A sign of life is asked for.
    Ping,
    /// A request to join; the only one an anonymous client may make.
    Join,
    /// The answer.
    Done,
    /// The head is an encoded kind and message.
    Failed,
}

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: Type,
    /// How long the caller waits, from the moment it sent this.
    pub(crate) deadline: Duration,
    pub(crate) head: usize,
    pub(crate) body: usize,
}

impl Frame {
    pub(crate) fn encode(&self) -> [u8; FRAME_LEN] {
        let (kind, service) = match self.kind {
            Type::Call(service) => (1, service_code(service)),
            Type::Ping => (2, 0),
            Type::Join => (3, 0),
            Type::Done => (128, 0),
            Type::Failed => (129, 0),
        };
        let mut out = [0; FRAME_LEN];
        out[..3].copy_from_slice(&[VERSION, kind, service]);
        let deadline = u32::try_from(self.deadline.as_millis()).unwrap_or(u32::MAX);
        out[4..8].copy_from_slice(&deadline.to_le_bytes());
        out[8..12].copy_from_slice(&(self.head as u32).to_le_bytes());
        out[12..16].copy_from_slice(&(self.body as u32).to_le_bytes());
        out
    }

    pub(crate) fn decode(bytes: &[u8; FRAME_LEN]) -> Result<Self> {
        if bytes[0] != VERSION {
            let message = format!("frame version {}; this program speaks {VERSION}", bytes[0]);
            return Err(Error::new(Kind::Version, message));
        }
        let number = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let kind = match bytes[1] {
            1 => Type::Call(service_of(bytes[2])?),
            2 => Type::Ping,
            3 => Type::Join,
            128 => Type::Done,
            129 => Type::Failed,
            other => return Err(Error::new(Kind::Protocol, format!("frame type {other}"))),
        };
        let (head, body) = (number(8) as usize, number(12) as usize);
        let (head_max, body_max) = match kind {
            Type::Call(_) | Type::Done => (CALL_HEAD_MAX, CALL_BODY_MAX),
            Type::Join => (JOIN_MAX, 0),
            Type::Failed => (2 * MESSAGE_MAX, 0),
            Type::Ping => (0, 0),
        };
        if head > head_max || body > body_max {
            return Err(Error::new(
                Kind::Protocol,
                format!("frame with a head of {head} and a body of {body} bytes"),
            ));
        }
        Ok(Self { kind, deadline: Duration::from_millis(number(4).into()), head, body })
    }
}

fn service_code(service: ServiceId) -> u8 {
    match service {
        ServiceId::Raft => 1,
        ServiceId::Meta => 2,
        ServiceId::Shards => 3,
        ServiceId::Status => 4,
        ServiceId::Locks => 5,
    }
}

fn service_of(code: u8) -> Result<ServiceId> {
    Ok(match code {
        1 => ServiceId::Raft,
        2 => ServiceId::Meta,
        3 => ServiceId::Shards,
        4 => ServiceId::Status,
        5 => ServiceId::Locks,
        other => return Err(Error::new(Kind::NotSupported, format!("service {other}"))),
    })
}

/// Encodes an error for the other side: its kind and its whole sentence.
pub(crate) fn encode_error(e: &Error) -> Vec<u8> {
    let mut message = e.to_string();
    if message.len() > MESSAGE_MAX {
        let end = (0..=MESSAGE_MAX).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
        message.truncate(end);
    }
    wire::encode(&(e.kind(), message))
}

/// Decodes what [`encode_error`] wrote. A kind that this version does not know is an internal error.
pub(crate) fn decode_error(head: &[u8]) -> Error {
    match wire::decode::<(Kind, String)>(head) {
        Ok((kind, message)) => Error::new(kind, message),
        Err(_) => Error::new(Kind::Internal, "an error that this version cannot read"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_as_they_were() {
        for kind in [Type::Call(ServiceId::Shards), Type::Done] {
            let frame = Frame { kind, deadline: Duration::from_millis(1_500), head: 77, body: CALL_BODY_MAX };
            assert_eq!(Frame::decode(&frame.encode()).unwrap(), frame);
        }
    }

    #[test]
    fn what_is_too_long_or_unknown_is_refused() {
        let frame = |kind, head, body| Frame { kind, deadline: Duration::ZERO, head, body }.encode();
        for bad in [
            frame(Type::Done, CALL_HEAD_MAX + 1, 0),
            frame(Type::Call(ServiceId::Raft), 0, CALL_BODY_MAX + 1),
            frame(Type::Ping, 1, 0),
            frame(Type::Join, 1, 1),
            frame(Type::Failed, 1 << 20, 0),
        ] {
            assert_eq!(Frame::decode(&bad).unwrap_err().kind(), Kind::Protocol);
        }
        let mut other = frame(Type::Ping, 0, 0);
        other[0] = 2;
        assert_eq!(Frame::decode(&other).unwrap_err().kind(), Kind::Version);
        for first in 0..=255u8 {
            let _ = Frame::decode(&[first; FRAME_LEN]);
        }
    }

    #[test]
    fn errors_keep_kind_and_sentence() {
        let e = Error::new(Kind::NoSpace, "x".repeat(MESSAGE_MAX + 10)).context("put shard");
        let back = decode_error(&encode_error(&e));
        assert_eq!(back.kind(), Kind::NoSpace);
        assert!(back.to_string().starts_with("put shard: xxx"));
        assert_eq!(decode_error(b"rubbish").kind(), Kind::Internal);
    }
}
