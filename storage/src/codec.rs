//! Erasure code of chunks, pure. A chunk is cut into cells of [`CELL`] bytes, dealt round robin to the `k`
//! data shards; the `i`-th cells of all data shards are a row, and each parity shard has one cell per row,
//! as long as the row's first (longest) cell. Shorter cells count as filled up with zeros, which are
//! neither stored nor sent.
//!
//! ```text
//! chunk    c0 c1 c2 c3 c4 c5 c6      k = 2, m = 1, the last cell may be short
//! shard 0  c0    c2    c4    c6
//! shard 1     c1    c3    c5    -
//! shard 2  p0    p1    p2    p3      p_r = a * c_2r + b * c_2r+1 in GF(2^8)
//! ```
//!
//! The code is the systematic Vandermonde code of reed-solomon-erasure. A shard depends on `k` and its own
//! index only, not on `m`. The crate is asked for the coefficients (by running it on unit vectors), and its
//! SIMD kernel is applied to the cells where they lie, so nothing is padded and no data cell is copied.

use bytes::Bytes;
use hfcache_base::limits::{CELL, CHUNK_MAX};
use hfcache_base::{Error, Kind, Result, Scheme};
use parking_lot::Mutex;
use reed_solomon_erasure::galois_8::{ReedSolomon, mul_slice_xor};
use std::collections::BTreeMap;
use std::sync::Arc;

/// One cell: its bytes, in pieces, and their checksum.
#[derive(Clone, Debug)]
pub struct Cell {
    /// The bytes, one piece after the other.
    pub parts: Vec<Bytes>,
    /// CRC-32C of all of them.
    pub crc: u32,
}

/// The cells of one shard, in order.
#[derive(Clone, Debug, Default)]
pub struct Shard {
    /// See [`Cell`].
    pub cells: Vec<Cell>,
}

impl Shard {
    /// The checksums of the cells.
    pub fn crcs(&self) -> Vec<u32> {
        self.cells.iter().map(|c| c.crc).collect()
    }

    /// All bytes, in pieces that share memory with the cells.
    pub fn parts(&self) -> Vec<Bytes> {
        self.cells.iter().flat_map(|c| c.parts.iter().cloned()).collect()
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.cells.iter().flat_map(|c| &c.parts).map(Bytes::len).sum()
    }

    /// Whether it has no bytes: a data shard of a chunk with fewer cells than data shards.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Bytes of cell `row` of shard `index` of a chunk of `len` bytes; 0 if there is no such cell.
pub fn cell_len(scheme: Scheme, len: u32, index: u8, row: u32) -> u32 {
    scheme.shard_len(len, index).saturating_sub(row.saturating_mul(CELL)).min(CELL)
}

/// Rows of a chunk of `len` bytes.
pub fn rows(scheme: Scheme, len: u32) -> u32 {
    scheme.shard_len(len, 0).div_ceil(CELL)
}

/// Cuts the next `len` bytes off a list of pieces, sharing memory.
struct Cutter<'a> {
    pieces: std::slice::Iter<'a, Bytes>,
    rest: Bytes,
}

impl<'a> Cutter<'a> {
    fn new(pieces: &'a [Bytes]) -> Self {
        Self { pieces: pieces.iter(), rest: Bytes::new() }
    }

    fn cut(&mut self, mut len: usize) -> Vec<Bytes> {
        let mut parts = Vec::with_capacity(1);
        while len > 0 {
            if self.rest.is_empty() {
                match self.pieces.next() {
                    Some(piece) => self.rest = piece.clone(),
                    None => break,
                }
                continue;
            }
            let part = self.rest.split_to(len.min(self.rest.len()));
            len -= part.len();
            parts.push(part);
        }
        parts
    }
}

fn checksum(parts: &[Bytes]) -> u32 {
    parts.iter().fold(0, |crc, part| crc32c::crc32c_append(crc, part))
}

/// All `k + m` shards of a chunk. Data cells share memory with `data`.
///
/// # Errors
/// [`Kind::Invalid`] for an empty chunk, one over [`CHUNK_MAX`], or an impossible scheme.
pub fn encode(scheme: Scheme, data: &[Bytes]) -> Result<Vec<Shard>> {
    let len: usize = data.iter().map(Bytes::len).sum();
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    if len == 0 || len > CHUNK_MAX || scheme.data == 0 {
        return Err(Error::new(Kind::Invalid, format!("chunk of {len} bytes as {scheme}")));
    }
    let k = usize::from(scheme.data);
    let mut shards = vec![Shard::default(); k];
    let mut cutter = Cutter::new(data);
    for cell in 0..len.div_ceil(CELL) {
        let parts = cutter.cut((len - cell * CELL).min(CELL) as usize);
        let crc = checksum(&parts);
        shards[cell as usize % k].cells.push(Cell { parts, crc });
    }
    if k == 1 {
        let copy = shards[0].clone();
        shards.resize(usize::from(scheme.total()), copy);
        return Ok(shards);
    }
    let given: Vec<u8> = (0..scheme.data).collect();
    for parity in scheme.data..scheme.total() {
        let maker = Maker::new(scheme, parity, &given)?;
        let mut cells = Vec::with_capacity(rows(scheme, len) as usize);
        for row in 0..rows(scheme, len) {
            let mut out = vec![0u8; cell_len(scheme, len, parity, row) as usize];
            for (shard, &factor) in shards[..k].iter().zip(&maker.factors) {
                let mut at = 0;
                for part in shard.cells.get(row as usize).iter().flat_map(|c| &c.parts) {
                    add_scaled(factor, part, &mut out[at..at + part.len()]);
                    at += part.len();
                }
            }
            let crc = crc32c::crc32c(&out);
            cells.push(Cell { parts: vec![out.into()], crc });
        }
        shards.push(Shard { cells });
    }
    Ok(shards)
}

/// Makes cells of one shard from cells of `k` others.
#[derive(Clone, Debug)]
pub struct Maker {
    factors: Vec<u8>,
}

impl Maker {
    /// How shard `wanted` follows from the `k` shards `given`.
    ///
    /// # Errors
    /// [`Kind::Invalid`] unless `given` are `k` different shards of the scheme.
    pub fn new(scheme: Scheme, wanted: u8, given: &[u8]) -> Result<Self> {
        let (k, total) = (usize::from(scheme.data), usize::from(scheme.total()));
        let distinct = given.iter().collect::<std::collections::BTreeSet<_>>().len();
        if given.len() != k
            || distinct != k
            || given.iter().any(|g| *g >= scheme.total())
            || wanted >= scheme.total()
        {
            return Err(Error::new(Kind::Invalid, format!("shard {wanted} of {scheme} from {given:?}")));
        }
        if k == 1 {
            return Ok(Self { factors: vec![1] });
        }
        let unit = |at: usize| {
            let mut v = vec![0u8; k];
            v[at] = 1;
            v
        };
        if let Some(at) = given.iter().position(|g| *g == wanted) {
            return Ok(Self { factors: unit(at) });
        }
        let mut shards: Vec<Option<Vec<u8>>> = vec![None; total];
        for (at, index) in given.iter().enumerate() {
            shards[usize::from(*index)] = Some(unit(at));
        }
        code(scheme)?
            .reconstruct(&mut shards)
            .map_err(|e| Error::new(Kind::Internal, format!("decode {scheme}: {e:?}")))?;
        let factors = shards.swap_remove(usize::from(wanted)).unwrap_or_default();
        Ok(Self { factors })
    }

    /// The cell of `len` bytes in the row of these cells, which come in the order of `given`. Cells shorter
    /// than `len` count as filled up with zeros.
    pub fn cell(&self, cells: &[&[u8]], len: usize) -> Vec<u8> {
        let mut out = vec![0u8; len];
        for (cell, &factor) in cells.iter().zip(&self.factors) {
            let used = cell.len().min(len);
            add_scaled(factor, &cell[..used], &mut out[..used]);
        }
        out
    }
}

/// `out += factor * cell`. The crate's kernel can't take an empty slice.
fn add_scaled(factor: u8, cell: &[u8], out: &mut [u8]) {
    if !cell.is_empty() && factor != 0 {
        mul_slice_xor(factor, cell, out);
    }
}

/// The code of a scheme; made once, because making it inverts a matrix.
fn code(scheme: Scheme) -> Result<Arc<ReedSolomon>> {
    static CODES: Mutex<BTreeMap<(u8, u8), Arc<ReedSolomon>>> = Mutex::new(BTreeMap::new());
    let mut codes = CODES.lock();
    if let Some(code) = codes.get(&(scheme.data, scheme.parity)) {
        return Ok(code.clone());
    }
    let code = ReedSolomon::new(usize::from(scheme.data), usize::from(scheme.parity))
        .map_err(|e| Error::new(Kind::Invalid, format!("scheme {scheme}: {e:?}")))?;
    let code = Arc::new(code);
    codes.insert((scheme.data, scheme.parity), code.clone());
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(len: usize, seed: u64) -> Vec<u8> {
        let mut x = seed | 1;
        let mut out = vec![0u8; len];
        for chunk in out.chunks_mut(8) {
            x = hfcache_base::placement::mix(x);
            chunk.copy_from_slice(&x.to_le_bytes()[..chunk.len()]);
        }
        out
    }

    /// Cuts into uneven pieces that cross cell borders.
    fn pieces(data: &[u8], seed: u64) -> Vec<Bytes> {
        let whole = Bytes::copy_from_slice(data);
        let (mut at, mut x, mut out) = (0, seed, Vec::new());
        while at < whole.len() {
            x = hfcache_base::placement::mix(x);
            let n = (1 + x as usize % (CELL as usize * 3 / 2)).min(whole.len() - at);
            out.push(whole.slice(at..at + n));
            at += n;
        }
        out
    }

    fn flat(shard: &Shard, row: usize) -> Vec<u8> {
        shard.cells.get(row).map_or_else(Vec::new, |c| c.parts.concat())
    }

    fn check(scheme: Scheme, len: u32) {
        let data = bytes(len as usize, u64::from(len));
        let shards = encode(scheme, &pieces(&data, u64::from(len) + 7)).unwrap();
        assert_eq!(shards.len(), usize::from(scheme.total()));
        for (i, shard) in shards.iter().enumerate() {
            assert_eq!(shard.len(), scheme.shard_len(len, i as u8) as usize, "{scheme} {len} shard {i}");
            for (row, cell) in shard.cells.iter().enumerate() {
                let flat = cell.parts.concat();
                assert_eq!(crc32c::crc32c(&flat), cell.crc);
                assert_eq!(flat.len() as u32, cell_len(scheme, len, i as u8, row as u32));
            }
        }
        let k = usize::from(scheme.data);
        let joined: Vec<u8> =
            (0..len.div_ceil(CELL) as usize).flat_map(|c| flat(&shards[c % k], c / k)).collect();
        assert!(joined == data, "{scheme} {len}");
        // Every choice of k shards gives every other shard.
        for mask in 0u32..1 << scheme.total() {
            if mask.count_ones() != u32::from(scheme.data) {
                continue;
            }
            let given: Vec<u8> = (0..scheme.total()).filter(|i| mask & (1 << i) != 0).collect();
            for wanted in (0..scheme.total()).filter(|i| mask & (1 << i) == 0) {
                let maker = Maker::new(scheme, wanted, &given).unwrap();
                let row = rows(scheme, len).saturating_sub(1) as usize;
                let from: Vec<Vec<u8>> = given.iter().map(|g| flat(&shards[usize::from(*g)], row)).collect();
                let from: Vec<&[u8]> = from.iter().map(Vec::as_slice).collect();
                let made = maker.cell(&from, cell_len(scheme, len, wanted, row as u32) as usize);
                assert!(
                    made == flat(&shards[usize::from(wanted)], row),
                    "{scheme} {len} {wanted} of {given:?}"
                );
            }
        }
    }

    #[test]
    fn any_k_shards_give_every_other_shard() {
        for (data, parity) in [(1, 0), (1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (3, 2), (4, 2)] {
            let scheme = Scheme { data, parity };
            for len in [1, 4097, CELL - 1, CELL, CELL + 1, 3 * CELL + 5] {
                check(scheme, len);
            }
        }
        check(Scheme { data: 4, parity: 2 }, 8 * CELL);
        check(Scheme { data: 8, parity: 3 }, 2 * CELL + 1);
    }

    #[test]
    fn a_parity_shard_does_not_depend_on_how_many_there_are() {
        let data = [Bytes::from(bytes(CELL as usize + 9, 3))];
        let few = encode(Scheme { data: 2, parity: 1 }, &data).unwrap();
        let many = encode(Scheme { data: 2, parity: 3 }, &data).unwrap();
        assert_eq!(few[2].crcs(), many[2].crcs());
    }

    #[test]
    fn data_cells_are_not_copied() {
        let data = Bytes::from(bytes(4 * CELL as usize, 5));
        let shards = encode(Scheme { data: 2, parity: 1 }, std::slice::from_ref(&data)).unwrap();
        assert_eq!(shards[1].cells[1].parts[0].as_ptr(), data[3 * CELL as usize..].as_ptr());
    }

    #[test]
    fn nonsense_is_refused() {
        let s = Scheme { data: 2, parity: 1 };
        assert!(encode(s, &[]).is_err());
        assert!(encode(Scheme { data: 0, parity: 1 }, &[Bytes::from_static(b"x")]).is_err());
        assert!(Maker::new(s, 0, &[1]).is_err());
        assert!(Maker::new(s, 0, &[1, 1]).is_err());
        assert!(Maker::new(s, 0, &[1, 3]).is_err());
        assert!(Maker::new(s, 3, &[1, 2]).is_err());
    }
}
