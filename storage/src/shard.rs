//! The shard file: one shard of one chunk. Little endian; every byte is covered by a checksum.
//!
//! ```text
//!      0  8   magic "hfshard\n"         tells a shard from any other file; the newline shows text-mode damage
//!      8  2   format version (1)        first, so that a later program knows what follows
//!     10  2   header length             512 up to COPY_MAX bytes of shard, else 4096
//!     12  1   k                         the shard's content depends on k and its index
//!     13  1   m at the time of writing  for people only: copies may be added later
//!     14  1   shard index               0 for every copy (k = 1): copies are interchangeable
//!     15  1   0
//!     16  8   chunk id                  a file under a wrong name is found out
//!     24  4   chunk length
//!     28  4   shard length              follows from the above; kept to find damage early
//!     32  4   cell length (1 MiB)
//!     36  4   number of cells n         at most 64, so the table always fits
//!     40  4n  CRC-32C of each cell      a reader checks just the cells it reads
//!    ...      0
//!   -4   4   CRC-32C of the header up to here
//!    ---      cells, one after the other, to the end of the file
//! ```
//!
//! A large shard's header is a page, so that its cells are aligned to pages in the page cache and for direct
//! IO. A small one's is 512 bytes, so that a chunk of 16 KiB takes five 4 KiB units of the file system
//! (1.25 times its size) and not six.
//!
//! A shard is written under a temporary name, synced, renamed, and its directory synced, so a name that is
//! there after a crash has all its bytes. It is `shards/PARTITION/CHUNK.K.INDEX`, all in hexadecimal. `k`
//! is in the name because a writer that loses a holder may put the same chunk again with another scheme, and
//! a late shard of the first attempt must not be taken for one of the second.

use hfcache_base::limits::{CELL, CHUNK_MAX, COPY_MAX};
use hfcache_base::meta::ChunkRef;
use hfcache_base::{ChunkId, ClusterMap, Error, Kind, Result, Scheme, ShardIndex};
use serde::{Deserialize, Serialize};
use std::fmt;

const MAGIC: &[u8; 8] = b"hfshard\n";
/// The version this program writes.
pub const VERSION: u16 = 1;
/// Header of a small shard.
pub const HEADER_SMALL: usize = 512;
/// Header of every other shard; also the most that must be read to know a header.
pub const HEADER_LARGE: usize = 4_096;
const TABLE: usize = 40;
/// Most cells of a shard: a plain copy of the largest chunk.
pub const CELLS_MAX: usize = (CHUNK_MAX / CELL) as usize;

const _: () = assert!(TABLE + 4 * CELLS_MAX + 4 <= HEADER_SMALL);

/// Names a shard in the whole cluster. Copies (`k = 1`) all have index 0: any of them is as good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ShardKey {
    /// The chunk.
    pub chunk: ChunkId,
    /// Data shards of its scheme.
    pub data: u8,
    /// Which of the shards.
    pub index: ShardIndex,
}

impl ShardKey {
    /// What is kept for place `place` of a chunk's row.
    pub fn at(chunk: ChunkId, scheme: Scheme, place: u8) -> Self {
        let index = if scheme.data == 1 { 0 } else { place };
        Self { chunk, data: scheme.data, index: ShardIndex(index) }
    }

    /// Name of its file.
    pub fn file_name(self) -> String {
        format!("{:016x}.{:x}.{:x}", self.chunk.0, self.data, self.index.0)
    }

    /// Name of its directory.
    pub fn directory(self) -> String {
        format!("{:03x}", ClusterMap::partition(self.chunk).0)
    }

    /// The key a file in directory `dir` is named after, if it is a shard's name at all.
    pub fn parse(dir: &str, name: &str) -> Option<Self> {
        let mut parts = name.split('.');
        let (chunk, data, index) = (parts.next()?, parts.next()?, parts.next()?);
        let key = Self {
            chunk: ChunkId(u64::from_str_radix(chunk, 16).ok()?),
            data: u8::from_str_radix(data, 16).ok()?,
            index: ShardIndex(u8::from_str_radix(index, 16).ok()?),
        };
        // Compared with the one right spelling: no sign, no capitals, no other directory.
        (parts.next().is_none() && key.data > 0 && key.file_name() == name && key.directory() == dir)
            .then_some(key)
    }
}

impl fmt::Display for ShardKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}k{}", self.chunk, self.index, self.data)
    }
}

/// What a shard file says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Which shard it is.
    pub key: ShardKey,
    /// Length of the whole chunk.
    pub chunk_len: u32,
    /// `m` when it was written.
    pub parity: u8,
    /// Checksum of each cell.
    pub crcs: Vec<u32>,
}

impl Header {
    /// A header, checked.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if the numbers can't be true together.
    pub fn new(key: ShardKey, chunk: ChunkRef, crcs: Vec<u32>) -> Result<Self> {
        let header = Self { key, chunk_len: chunk.len, parity: chunk.scheme.parity, crcs };
        header.check().map_err(|why| Error::new(Kind::Invalid, format!("shard {key}: {why}")))?;
        Ok(header)
    }

    /// Whether the numbers fit together; for what came from a disk or a wire.
    ///
    /// # Errors
    /// What does not fit.
    pub fn check(&self) -> Result<(), &'static str> {
        if self.chunk_len == 0 || self.chunk_len > CHUNK_MAX {
            return Err("impossible chunk length");
        }
        if self.key.data == 0 || usize::from(self.key.data) + usize::from(self.parity) > 255 {
            return Err("impossible scheme");
        }
        let total = if self.key.data == 1 { 1 } else { self.key.data + self.parity };
        if self.key.index.0 >= total {
            return Err("impossible shard index");
        }
        if self.crcs.len() != (self.shard_len() as usize).div_ceil(CELL as usize) {
            return Err("wrong number of cells");
        }
        Ok(())
    }

    /// The scheme as far as it matters to this shard.
    pub fn scheme(&self) -> Scheme {
        Scheme { data: self.key.data, parity: self.parity }
    }

    /// Bytes of the shard.
    pub fn shard_len(&self) -> u32 {
        self.scheme().shard_len(self.chunk_len, self.key.index.0)
    }

    /// Bytes before the first cell.
    pub fn header_len(&self) -> usize {
        if self.shard_len() <= COPY_MAX { HEADER_SMALL } else { HEADER_LARGE }
    }

    /// Bytes of the whole file.
    pub fn file_len(&self) -> u64 {
        self.header_len() as u64 + u64::from(self.shard_len())
    }

    /// The first bytes of the file.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.header_len());
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&(self.header_len() as u16).to_le_bytes());
        out.extend_from_slice(&[self.key.data, self.parity, self.key.index.0, 0]);
        out.extend_from_slice(&self.key.chunk.0.to_le_bytes());
        for n in [self.chunk_len, self.shard_len(), CELL, self.crcs.len() as u32] {
            out.extend_from_slice(&n.to_le_bytes());
        }
        for crc in &self.crcs {
            out.extend_from_slice(&crc.to_le_bytes());
        }
        out.resize(self.header_len() - 4, 0);
        let crc = crc32c::crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads a header out of the first bytes of a file.
    ///
    /// # Errors
    /// [`Kind::Version`] for a later format, [`Kind::Corrupt`] for anything else that is not a header.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        Self::parse(bytes).ok_or_else(|| Error::new(Kind::Corrupt, "damaged shard header"))?
    }

    fn parse(bytes: &[u8]) -> Option<Result<Self>> {
        let half = |at: usize| Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        if bytes.get(..8)? != MAGIC {
            return None;
        }
        let header_len = usize::from(half(10)?);
        if !(HEADER_SMALL..=HEADER_LARGE).contains(&header_len)
            || crc32c::crc32c(bytes.get(..header_len - 4)?) != word(header_len - 4)?
        {
            return None;
        }
        // Behind the checksum, so that a flipped bit is damage and not a format of the future.
        let version = half(8)?;
        if version != VERSION {
            return Some(Err(Error::new(
                Kind::Version,
                format!("shard format {version}; this program reads {VERSION}"),
            )));
        }
        let count = word(36)? as usize;
        if count > CELLS_MAX || word(32)? != CELL {
            return None;
        }
        let header = Self {
            key: ShardKey {
                chunk: ChunkId(u64::from_le_bytes(bytes.get(16..24)?.try_into().ok()?)),
                data: *bytes.get(12)?,
                index: ShardIndex(*bytes.get(14)?),
            },
            chunk_len: word(24)?,
            parity: *bytes.get(13)?,
            crcs: (0..count).map(|i| word(TABLE + 4 * i)).collect::<Option<_>>()?,
        };
        let good = header.check().is_ok()
            && header.header_len() == header_len
            && header.shard_len() == word(28)?
            && header.encode() == bytes.get(..header_len)?;
        good.then_some(Ok(header))
    }

    /// Bytes of cell `row`.
    pub fn cell_len(&self, row: u32) -> u32 {
        crate::codec::cell_len(self.scheme(), self.chunk_len, self.key.index.0, row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(len: u32, data: u8, index: u8) -> Header {
        let scheme = Scheme { data, parity: 1 };
        let chunk = ChunkRef { id: ChunkId(0x1234_5678_9abc), len, scheme };
        let key = ShardKey::at(chunk.id, scheme, index);
        let cells = scheme.shard_len(len, key.index.0).div_ceil(CELL);
        Header::new(key, chunk, (0..cells).map(|i| i * 77).collect()).unwrap()
    }

    #[test]
    fn what_is_written_is_read() {
        for (len, data, index) in
            [(1, 1, 0), (16_384, 1, 1), (CHUNK_MAX, 1, 1), (CELL * 16, 2, 2), (CELL, 2, 1)]
        {
            let h = header(len, data, index);
            assert_eq!(Header::decode(&h.encode()).unwrap(), h);
            let mut more = h.encode();
            more.resize(more.len() + 5_000, 9);
            assert_eq!(Header::decode(&more).unwrap(), h);
        }
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let good = header(3 * CELL + 1, 2, 0).encode();
        for at in 0..good.len() {
            for bit in [0, 5] {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                assert_eq!(Header::decode(&bad).unwrap_err().kind(), Kind::Corrupt, "byte {at}");
            }
        }
        for cut in 0..good.len() {
            assert!(Header::decode(&good[..cut]).is_err());
        }
    }

    #[test]
    fn a_later_format_is_not_called_damage() {
        let mut later = header(16_384, 1, 0).encode();
        later[8] = 2;
        let end = later.len() - 4;
        let crc = crc32c::crc32c(&later[..end]);
        later[end..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Header::decode(&later).unwrap_err().kind(), Kind::Version);
    }

    #[test]
    fn names_are_read_back_and_nothing_else_is() {
        let key = ShardKey { chunk: ChunkId(77), data: 2, index: ShardIndex(1) };
        let (dir, name) = (key.directory(), key.file_name());
        assert_eq!(ShardKey::parse(&dir, &name), Some(key));
        for bad in ["", "x", "..", "lost+found", "4d.2.1", "000000000000004D.2.1", "000000000000004d.0.0"] {
            assert_eq!(ShardKey::parse(&dir, bad), None, "{bad}");
        }
        assert_eq!(ShardKey::parse("fff", &name), None);
        assert_eq!(ShardKey::parse(&dir, &format!("{name}.1")), None);
    }

    #[test]
    fn a_small_chunk_wastes_little() {
        let units = header(16_384, 1, 0).file_len().div_ceil(4_096);
        assert_eq!(units, 5);
    }

    /// The first bytes ever released; must be readable for ever.
    #[test]
    fn golden() {
        let bytes = header(16_384, 1, 0).encode();
        let hex: String = bytes[..44].iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            "68667368617264 0a 0100 0002 01 01 00 00 bc9a785634120000 00400000 00400000 00001000 01000000 00000000"
                .replace(' ', "")
        );
    }
}
