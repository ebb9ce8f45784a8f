//! Snapshots: a logical copy of the state, written out only when a node fell behind the log.
//!
//! ```text
//! file:   "hfsnap" [version: u8 = 2]
//!         [len: u32][wire::encode(SnapshotMeta)]
//!         { [key: u32][value: u32][key bytes][value bytes] } …     full keys of the state, in order
//!         [0xffff_ffff][pairs: u64][crc32c of everything before: u32]
//! ```
//!
//! All numbers are little endian. The sender pins one state only while it writes the file, so neither a
//! slow receiver nor a large state stops its service; the receiver fills a new state file and swaps it in.

use crate::consensus::store::{self, Store};
use crate::consensus::types::SnapshotMeta;
use crate::kv_redb::{Reader, Visit, Writer, failed};
use hfcache_base::{Error, Kind, Result, wire};
use redb::{Database, Durability};
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const MAGIC: &[u8; 6] = b"hfsnap";
const VERSION: u8 = 2;
const END: u32 = u32::MAX;
/// Largest key or value that is believed; far above anything the state holds.
const PART_MAX: u32 = 64 << 20;
/// Pairs in one transaction while a state is filled.
const PAIRS_PER_TXN: usize = 100_000;

/// What openraft calls the data of a snapshot.
pub enum Image {
    /// A pinned state of this node, to be written out and sent.
    Live(Reader),
    /// A file that was received; it is removed with this.
    File(TempFile),
    /// No content: says only that the state up to a position is durable.
    Claim,
}

/// A file that goes away with its owner.
pub struct TempFile(PathBuf);

impl TempFile {
    /// Takes a file over.
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_file(&self.0)
            && e.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(error = %e, file = %self.0.display(), "remove snapshot file");
        }
    }
}

/// A writer or reader that sums what passes through.
struct Summed<T> {
    inner: T,
    crc: u32,
}

impl<T: Write> Summed<T> {
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.crc = crc32c::crc32c_append(self.crc, bytes);
        self.inner.write_all(bytes).map_err(Error::io)
    }
}

impl<T: Read> Summed<T> {
    fn take(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.inner.read_exact(bytes).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => Error::new(Kind::Corrupt, "snapshot is cut off"),
            _ => Error::io(e),
        })?;
        self.crc = crc32c::crc32c_append(self.crc, bytes);
        Ok(())
    }

    fn take_u32(&mut self) -> Result<u32> {
        let mut bytes = [0; 4];
        self.take(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn take_vec(&mut self, len: u32) -> Result<Vec<u8>> {
        if len > PART_MAX {
            return Err(Error::new(Kind::Corrupt, format!("snapshot claims a part of {len} bytes")));
        }
        let mut bytes = vec![0; len as usize];
        self.take(&mut bytes)?;
        Ok(bytes)
    }
}

fn length(bytes: &[u8]) -> Result<[u8; 4]> {
    match u32::try_from(bytes.len()) {
        Ok(len) if len <= PART_MAX => Ok(len.to_le_bytes()),
        _ => Err(Error::new(Kind::TooLarge, "state holds a pair that no snapshot can carry")),
    }
}

/// Writes a pinned state to a file; its length. Blocks.
///
/// # Errors
/// Whatever the disk says; the file is worthless then.
pub fn write_file(reader: &Reader, meta: &SnapshotMeta, path: &Path) -> Result<u64> {
    let file = File::create(path).map_err(|e| Error::io(e).context("make snapshot file"))?;
    let mut out = Summed { inner: BufWriter::with_capacity(1 << 20, file), crc: 0 };
    out.put(MAGIC)?;
    out.put(&[VERSION])?;
    let encoded = wire::encode(meta);
    out.put(&length(&encoded)?)?;
    out.put(&encoded)?;
    let mut pairs = 0u64;
    reader.all(&mut |key, value| {
        pairs += 1;
        out.put(&length(key)?)?;
        out.put(&length(value)?)?;
        out.put(key)?;
        out.put(value)
    })?;
    out.put(&END.to_le_bytes())?;
    out.put(&pairs.to_le_bytes())?;
    let crc = out.crc;
    out.put(&crc.to_le_bytes())?;
    let file = out.inner.into_inner().map_err(|e| Error::io(e.into_error()))?;
    Ok(file.metadata().map_err(Error::io)?.len())
}

/// Reads the head of a snapshot file and shows its pairs. Blocks.
fn read_file(path: &Path, pair: &mut Visit<'_>) -> Result<SnapshotMeta> {
    let file = File::open(path).map_err(|e| Error::io(e).context("open snapshot file"))?;
    let mut input = Summed { inner: BufReader::with_capacity(1 << 20, file), crc: 0 };
    let mut head = [0; MAGIC.len() + 1];
    input.take(&mut head)?;
    if &head[..MAGIC.len()] != MAGIC {
        return Err(Error::new(Kind::Corrupt, "not a snapshot file"));
    }
    if head[MAGIC.len()] != VERSION {
        return Err(Error::new(Kind::Version, format!("snapshot version {}", head[MAGIC.len()])));
    }
    let len = input.take_u32()?;
    let meta = wire::decode(&input.take_vec(len)?)?;
    let mut pairs = 0u64;
    loop {
        let key_len = input.take_u32()?;
        if key_len == END {
            break;
        }
        let value_len = input.take_u32()?;
        let key = input.take_vec(key_len)?;
        let value = input.take_vec(value_len)?;
        pairs += 1;
        pair(&key, &value)?;
    }
    let mut count = [0; 8];
    input.take(&mut count)?;
    let crc = input.crc;
    if u64::from_le_bytes(count) != pairs || input.take_u32()? != crc {
        return Err(Error::new(Kind::Corrupt, "snapshot fails its checksum"));
    }
    Ok(meta)
}

/// Puts pairs into a fresh database, some per transaction; the last commit is synced.
struct Filler<'d> {
    db: &'d Database,
    waiting: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Filler<'_> {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        self.waiting.push((key.to_vec(), value.to_vec()));
        if self.waiting.len() >= PAIRS_PER_TXN {
            self.commit(Durability::None, None)?;
        }
        Ok(())
    }

    fn commit(&mut self, durability: Durability, meta: Option<&SnapshotMeta>) -> Result<()> {
        let mut txn = self.db.begin_write().map_err(failed)?;
        txn.set_durability(durability).map_err(failed)?;
        {
            let mut writer = Writer::new(&txn)?;
            for (key, value) in self.waiting.drain(..) {
                writer.put_full(&key, &value)?;
            }
            if let Some(meta) = meta {
                store::set_position(&mut writer, meta.last_log_id)?;
                store::set_membership(&mut writer, &meta.last_membership)?;
            }
        }
        txn.commit().map_err(failed)
    }
}

/// Makes a snapshot this node's state.
///
/// # Errors
/// [`Kind::Corrupt`] for a damaged one, or whatever the disk says; the old state stays then.
pub async fn install(store: &Arc<Store>, meta: &SnapshotMeta, image: Image) -> Result<()> {
    let meta = meta.clone();
    store
        .replace(move |db| {
            let mut filler = Filler { db, waiting: Vec::new() };
            match image {
                Image::Live(reader) => reader.all(&mut |key, value| filler.put(key, value))?,
                Image::File(file) => {
                    let inside = read_file(file.path(), &mut |key, value| filler.put(key, value))?;
                    if inside != meta {
                        return Err(Error::new(Kind::Corrupt, "snapshot is not the one that was announced"));
                    }
                }
                Image::Claim => return Err(crate::consensus::machine::no_image()),
            }
            filler.commit(Durability::Immediate, Some(&meta))
        })
        .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::{Read as _, Table, Write as _};

    fn sample() -> Database {
        let db = Database::builder().create_with_backend(redb::backends::InMemoryBackend::new()).unwrap();
        let txn = db.begin_write().unwrap();
        {
            let mut writer = Writer::new(&txn).unwrap();
            for n in 0..500u32 {
                writer.put(Table::Inode, &n.to_be_bytes(), &vec![n as u8; (n % 97) as usize]).unwrap();
            }
            writer.put(Table::Single, b"", b"").unwrap();
        }
        txn.commit().unwrap();
        db
    }

    #[test]
    fn what_is_written_is_read_and_damage_is_refused() {
        let dir = std::env::temp_dir().join(format!("hfcache-snap-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("one");
        let reader = Reader::new(&sample()).unwrap();
        let meta = SnapshotMeta::default();
        let len = write_file(&reader, &meta, &path).unwrap();
        let mut seen = Vec::new();
        let mut collect = |k: &[u8], v: &[u8]| {
            seen.push((k.to_vec(), v.to_vec()));
            Ok(())
        };
        assert_eq!(read_file(&path, &mut collect).unwrap(), meta);
        assert_eq!(seen.len(), 501);
        assert_eq!(reader.get(Table::Inode, &seen[100].0[1..]).unwrap().unwrap(), seen[100].1);

        let good = std::fs::read(&path).unwrap();
        assert_eq!(good.len() as u64, len);
        for at in [0, 6, 9, 40, good.len() / 2, good.len() - 13, good.len() - 1] {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            std::fs::write(&path, &bad).unwrap();
            assert!(read_file(&path, &mut |_, _| Ok(())).is_err(), "flipped byte {at}");
            std::fs::write(&path, &good[..at]).unwrap();
            assert!(read_file(&path, &mut |_, _| Ok(())).is_err(), "cut at {at}");
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
