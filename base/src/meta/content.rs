//! A file's bytes: chunks, extents, and pieces that change them.

use crate::{ChunkId, Scheme};
use serde::{Deserialize, Serialize};

/// A chunk as the namespace knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ChunkRef {
    /// Its identity.
    pub id: ChunkId,
    /// Its bytes, at most [`crate::limits::CHUNK_MAX`].
    pub len: u32,
    /// How it is protected.
    pub scheme: Scheme,
}

/// File bytes `[offset, offset + len)` are bytes `[chunk_offset, chunk_offset + len)` of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// Where in the file.
    pub offset: u64,
    /// How many bytes; never 0.
    pub len: u32,
    /// Where in the chunk.
    pub chunk_offset: u32,
    /// The chunk.
    pub chunk: ChunkRef,
}

impl Extent {
    /// First file offset after the extent.
    pub const fn end(&self) -> u64 {
        self.offset + self.len as u64
    }
}

/// The bytes of a file: extents over inline bytes over zeros, cut off at the inode's size.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// Bytes from offset 0 that live in the inode.
    #[serde(with = "serde_bytes")]
    pub inline: Vec<u8>,
    /// In order of offset, not overlapping; what lies between is inline or a hole.
    pub extents: Vec<Extent>,
}

/// A changed range of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Piece {
    /// The whole file is these bytes (at most [`crate::limits::INLINE_MAX`]) and nothing else.
    Inline(#[serde(with = "serde_bytes")] Vec<u8>),
    /// The range of this extent now comes from its chunk.
    Chunk(Extent),
    /// `[offset, offset + len)` reads as zeros.
    Hole {
        /// Where in the file.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
}
