//! The chunk store in memory.

use async_trait::async_trait;
use bytes::Bytes;
use hfcache_base::interval::IntervalSet;
use hfcache_base::meta::ChunkRef;
use hfcache_base::seam::{Chunks, LocalFile, LocalKey, Space};
use hfcache_base::{ChunkId, Error, Kind, Result, Scheme};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// All chunks of the cluster.
#[derive(Default)]
pub struct Store {
    pub chunks: Mutex<HashMap<ChunkId, Bytes>>,
}

/// Its face on one node.
pub struct MemChunks {
    store: Arc<Store>,
    pub hot: Mutex<HashMap<LocalKey, Arc<MemFile>>>,
    /// So many of the next puts fail, with this.
    pub put_fails: Mutex<(usize, Option<Kind>)>,
    /// So many of the next gets fail, with this.
    pub get_fails: Mutex<(usize, Option<Kind>)>,
    pub get_delay_ms: AtomicU64,
    pub put_delay_ms: AtomicU64,
    pub gets: AtomicUsize,
    pub puts: AtomicUsize,
    pub putting: AtomicUsize,
    pub putting_most: AtomicUsize,
    pub no_local: AtomicBool,
    pub published: AtomicUsize,
    pub cells: Mutex<HashMap<(ChunkId, u32), usize>>,
}

impl MemChunks {
    pub fn new(store: &Arc<Store>) -> Self {
        Self {
            store: Arc::clone(store),
            hot: Mutex::default(),
            put_fails: Mutex::new((0, None)),
            get_fails: Mutex::new((0, None)),
            get_delay_ms: AtomicU64::new(0),
            put_delay_ms: AtomicU64::new(0),
            gets: AtomicUsize::new(0),
            puts: AtomicUsize::new(0),
            putting: AtomicUsize::new(0),
            putting_most: AtomicUsize::new(0),
            no_local: AtomicBool::new(false),
            published: AtomicUsize::new(0),
            cells: Mutex::default(),
        }
    }
}

fn fault(fails: &Mutex<(usize, Option<Kind>)>) -> Result<()> {
    let mut fails = fails.lock();
    if fails.0 == 0 {
        return Ok(());
    }
    fails.0 -= 1;
    Err(Error::new(fails.1.unwrap_or(Kind::Unavailable), "injected"))
}

#[async_trait]
impl Chunks for MemChunks {
    async fn put(&self, id: ChunkId, data: Vec<Bytes>) -> Result<ChunkRef> {
        self.puts.fetch_add(1, Ordering::SeqCst);
        let now = self.putting.fetch_add(1, Ordering::SeqCst) + 1;
        self.putting_most.fetch_max(now, Ordering::SeqCst);
        let delay = self.put_delay_ms.load(Ordering::SeqCst);
        if delay > 0 {
            tokio::time::sleep(Duration::from_millis(delay)).await;
        }
        self.putting.fetch_sub(1, Ordering::SeqCst);
        fault(&self.put_fails)?;
        let data = Bytes::from(data.concat());
        assert!(!data.is_empty() && data.len() <= hfcache_base::limits::CHUNK_TARGET as usize);
        let len = data.len() as u32;
        self.store.chunks.lock().insert(id, data);
        Ok(ChunkRef { id, len, scheme: Scheme { data: 2, parity: 1 } })
    }

    async fn get(&self, chunk: ChunkRef, range: Range<u32>) -> Result<Bytes> {
        self.gets.fetch_add(1, Ordering::SeqCst);
        *self.cells.lock().entry((chunk.id, range.start)).or_default() += 1;
        let delay = self.get_delay_ms.load(Ordering::SeqCst);
        if delay > 0 {
            tokio::time::sleep(Duration::from_millis(delay)).await;
        }
        fault(&self.get_fails)?;
        let chunks = self.store.chunks.lock();
        let data = chunks.get(&chunk.id).ok_or_else(|| Error::new(Kind::NotFound, "no such chunk"))?;
        Ok(data.slice(range.start as usize..range.end as usize))
    }

    fn forget(&self, id: ChunkId) {
        self.store.chunks.lock().remove(&id);
    }

    fn local(&self, key: LocalKey, len: u64) -> Result<Arc<dyn LocalFile>> {
        if self.no_local.load(Ordering::SeqCst) {
            return Err(Kind::NoSpace.into());
        }
        let mut hot = self.hot.lock();
        let file = hot.entry(key).or_insert_with(|| Arc::new(MemFile::new(len)));
        assert_eq!(file.0.lock().bytes.len() as u64, len, "one content has one length");
        Ok(file.clone())
    }

    fn stage(&self) -> Result<Arc<dyn LocalFile>> {
        Ok(Arc::new(MemFile::new(0)))
    }

    fn publish(&self, staged: Arc<dyn LocalFile>, key: LocalKey) {
        self.published.fetch_add(1, Ordering::SeqCst);
        // A copy, so that a later write to the staging file would be noticed as not being here.
        let mut len = 0;
        while staged.read_at(&mut [0], len).is_ok_and(|n| n == 1) {
            len += 1 << 12;
        }
        while len > 0 && staged.read_at(&mut [0], len - 1).is_ok_and(|n| n == 0) {
            len -= 1;
        }
        let mut bytes = vec![0; len as usize];
        assert!(staged.missing(0..len).is_empty(), "only whole files are published");
        assert_eq!(staged.read_at(&mut bytes, 0).expect("read staging file"), bytes.len());
        let file = MemFile::new(len);
        file.fill_at(&bytes, 0).expect("fill hot copy");
        self.hot.lock().insert(key, Arc::new(file));
    }

    fn space(&self) -> Space {
        Space { total: 1 << 40, free: 1 << 39 }
    }
}

#[derive(Default)]
struct Bytewise {
    bytes: Vec<u8>,
    present: IntervalSet,
}

/// A sparse file.
pub struct MemFile(Mutex<Bytewise>);

impl MemFile {
    fn new(len: u64) -> Self {
        Self(Mutex::new(Bytewise { bytes: vec![0; len as usize], present: IntervalSet::default() }))
    }
}

impl LocalFile for MemFile {
    fn missing(&self, range: Range<u64>) -> Vec<Range<u64>> {
        self.0.lock().present.gaps(&range)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let file = self.0.lock();
        let end = (offset + buf.len() as u64).min(file.bytes.len() as u64);
        if offset >= end {
            return Ok(0);
        }
        if !file.present.contains(&(offset..end)) {
            return Err(Error::new(Kind::Io, format!("{offset}..{end} is not present")));
        }
        let n = (end - offset) as usize;
        buf[..n].copy_from_slice(&file.bytes[offset as usize..end as usize]);
        Ok(n)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        let mut file = self.0.lock();
        let end = offset + data.len() as u64;
        if (file.bytes.len() as u64) < end {
            file.bytes.resize(end as usize, 0);
        }
        file.bytes[offset as usize..end as usize].copy_from_slice(data);
        file.present.insert(offset..end);
        Ok(())
    }

    fn fill_at(&self, data: &[u8], offset: u64) -> Result<()> {
        let mut file = self.0.lock();
        let end = offset + data.len() as u64;
        assert!(end <= file.bytes.len() as u64, "fills lie inside the file");
        for gap in file.present.gaps(&(offset..end)) {
            let part = (gap.start - offset) as usize..(gap.end - offset) as usize;
            file.bytes[gap.start as usize..gap.end as usize].copy_from_slice(&data[part]);
        }
        file.present.insert(offset..end);
        Ok(())
    }

    fn zero(&self, range: Range<u64>) -> Result<()> {
        let mut file = self.0.lock();
        assert!(range.end <= file.bytes.len() as u64, "zeros lie inside the file");
        file.bytes[range.start as usize..range.end as usize].fill(0);
        file.present.insert(range);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<()> {
        let mut file = self.0.lock();
        let old = file.bytes.len() as u64;
        file.bytes.resize(len as usize, 0);
        file.present.remove(len..u64::MAX);
        if len > old {
            file.present.insert(old..len);
        }
        Ok(())
    }

    fn as_fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        None
    }
}
