//! The chunk store as the mount sees it: durable chunks, and local files that hold bytes on their way in
//! or out.

use crate::meta::ChunkRef;
use crate::seam::Space;
use crate::{ChunkId, InodeId, Result};
use async_trait::async_trait;
use bytes::Bytes;
use std::ops::Range;
use std::sync::Arc;

/// What a local file is a copy of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LocalKey {
    /// The file.
    pub ino: InodeId,
    /// [`crate::meta::Attr::data_version`] of the bytes.
    pub version: u64,
}

/// A sparse local file with a map of what is present. All calls are local and quick: they may be made on
/// a thread that serves the kernel.
pub trait LocalFile: Send + Sync {
    /// Which bytes of the range are not here, in order.
    fn missing(&self, range: Range<u64>) -> Vec<Range<u64>>;
    /// Reads present bytes.
    ///
    /// # Errors
    /// Whatever the disk says.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize>;
    /// Writes bytes and marks them present.
    ///
    /// # Errors
    /// [`crate::Kind::NoSpace`].
    fn write_at(&self, data: &[u8], offset: u64) -> Result<()>;
    /// Like [`LocalFile::write_at`], but only where nothing is present: bytes that were fetched never
    /// replace bytes that were written meanwhile.
    ///
    /// # Errors
    /// [`crate::Kind::NoSpace`].
    fn fill_at(&self, data: &[u8], offset: u64) -> Result<()>;
    /// Marks a range as zeros.
    ///
    /// # Errors
    /// Whatever the disk says.
    fn zero(&self, range: Range<u64>) -> Result<()>;
    /// Cuts, or grows with present zeros.
    ///
    /// # Errors
    /// Whatever the disk says.
    fn set_len(&self, len: u64) -> Result<()>;
    /// The descriptor, for passthrough.
    fn as_fd(&self) -> Option<std::os::fd::BorrowedFd<'_>>;
}

/// See the module.
#[async_trait]
pub trait Chunks: Send + Sync + 'static {
    /// Stores a chunk: chooses a scheme from the nodes that are up, encodes, sends the shards, and
    /// returns when as many of them are synced as the scheme promises. A holder that fails on the way is
    /// replaced. `data` may be in pieces.
    ///
    /// # Errors
    /// [`crate::Kind::NoSpace`] when the holders are full; [`crate::Kind::Unavailable`] when too few answer.
    async fn put(&self, id: ChunkId, data: Vec<Bytes>) -> Result<ChunkRef>;
    /// Bytes of a chunk, verified. Cell-aligned ranges cost least.
    ///
    /// # Errors
    /// [`crate::Kind::Corrupt`] when too few good shards exist; [`crate::Kind::Unavailable`] when too few
    /// answer.
    async fn get(&self, chunk: ChunkRef, range: Range<u32>) -> Result<Bytes>;
    /// A chunk that was put will never be part of a file: its shards may go.
    fn forget(&self, id: ChunkId);
    /// The local file for this content, made if there is none. Kept while anyone holds it; afterwards
    /// a hot copy that may be evicted.
    ///
    /// # Errors
    /// [`crate::Kind::NoSpace`].
    fn local(&self, key: LocalKey, len: u64) -> Result<Arc<dyn LocalFile>>;
    /// A local file that belongs to nobody but the caller: a writer's staging file.
    ///
    /// # Errors
    /// [`crate::Kind::NoSpace`].
    fn stage(&self) -> Result<Arc<dyn LocalFile>>;
    /// A staging file whose bytes are committed now: it becomes the hot copy of this content.
    fn publish(&self, staged: Arc<dyn LocalFile>, key: LocalKey);
    /// Bytes of the whole cluster's disks, as `statfs` shows them: net of redundancy.
    fn space(&self) -> Space;
}
