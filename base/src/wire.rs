//! Serialization, in one place. Every encoded value starts with a format byte, so that a later version
//! can change the codec; every decode is bounded, so that no length on the wire or on a disk is believed.
//!
//! Format 2: bincode 2.0.1, `config::standard()` (little endian, variable-length integers). Format 1 was the
//! same with other fields.

use crate::{Error, Kind, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The format this version writes.
pub const FORMAT: u8 = 2;

/// Longest encoded value that [`decode`] accepts, in bytes.
const DECODE_MAX: usize = 64 << 20;

/// Encodes a value behind its format byte.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    let mut out = vec![FORMAT];
    let written = bincode::serde::encode_into_std_write(value, &mut out, bincode::config::standard());
    // Writing to memory fails only for types that serde cannot describe, which no test would survive.
    assert!(written.is_ok(), "encode: {written:?}");
    out
}

/// Decodes a value that fills all of `bytes`.
///
/// # Errors
/// [`Kind::Version`] for an unknown format byte, [`Kind::Protocol`] for anything else that is not exactly
/// one encoded value.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let (&format, body) = bytes.split_first().ok_or_else(|| Error::new(Kind::Protocol, "empty message"))?;
    if format != FORMAT {
        return Err(Error::new(Kind::Version, format!("format {format}; this program speaks {FORMAT}")));
    }
    if body.len() > DECODE_MAX {
        return Err(Error::new(Kind::Protocol, format!("message of {} bytes", body.len())));
    }
    let config = bincode::config::standard().with_limit::<DECODE_MAX>();
    let (value, used) = bincode::serde::decode_from_slice(body, config)
        .map_err(|e| Error::new(Kind::Protocol, "decode message").with_source(e))?;
    if used != body.len() {
        return Err(Error::new(Kind::Protocol, format!("{} bytes after the message", body.len() - used)));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out() {
        let value = (7u64, "name".to_owned(), vec![1u8, 2, 3]);
        assert_eq!(decode::<(u64, String, Vec<u8>)>(&encode(&value)).unwrap(), value);
    }

    /// So that a field may change from one to the other without a new format.
    #[test]
    fn bytes_in_one_piece_are_written_as_one_after_the_other() {
        for len in [0, 1, 250, 251, 65_536] {
            let bytes: Vec<u8> = (0..len).map(|i| (i % 256) as u8).collect();
            let piece = serde_bytes::ByteBuf::from(bytes.clone());
            assert_eq!(encode(&piece), encode(&bytes));
            assert_eq!(decode::<serde_bytes::ByteBuf>(&encode(&bytes)).unwrap(), piece);
        }
    }

    #[test]
    fn damage_is_an_error_and_never_a_panic() {
        let good = encode(&(7u64, vec![0u8; 100], "x".to_owned()));
        for cut in 0..good.len() {
            assert!(decode::<(u64, Vec<u8>, String)>(&good[..cut]).is_err());
        }
        let mut long = good.clone();
        long.push(0);
        assert_eq!(decode::<(u64, Vec<u8>, String)>(&long).unwrap_err().kind(), Kind::Protocol);
        let mut other = good;
        other[0] = 9;
        assert_eq!(decode::<(u64, Vec<u8>, String)>(&other).unwrap_err().kind(), Kind::Version);
        // A claimed length of 2^60 bytes is refused before anything is allocated.
        assert!(decode::<Vec<u8>>(&[FORMAT, 253, 0, 0, 0, 0, 0, 0, 0, 16]).is_err());
    }
}
