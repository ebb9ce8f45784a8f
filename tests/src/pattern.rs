//! Contents that can be made, and checked, at any offset without keeping them: byte runs from a seed.

use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// How much is read or written by one call.
pub const STEP: usize = 1 << 20;

/// Content with a seed and a length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// Two contents with different seeds differ in about every byte.
    pub seed: u64,
    /// Bytes.
    pub len: u64,
}

fn word(seed: u64, index: u64) -> u64 {
    let mut x = index.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ seed.wrapping_mul(0xD1B5_4A32_D192_ED03);
    x = (x ^ (x >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    x ^ (x >> 29)
}

impl Pattern {
    /// A content.
    pub const fn new(seed: u64, len: u64) -> Self {
        Self { seed, len }
    }

    /// Its bytes from `offset` on.
    pub fn fill(&self, offset: u64, buf: &mut [u8]) {
        let mut at = offset;
        let mut rest = buf;
        while !rest.is_empty() {
            let skip = (at % 8) as usize;
            let bytes = word(self.seed, at / 8).to_le_bytes();
            let n = rest.len().min(8 - skip);
            rest[..n].copy_from_slice(&bytes[skip..skip + n]);
            rest = &mut rest[n..];
            at += n as u64;
        }
    }

    /// All of it; for small ones.
    pub fn bytes(&self) -> Vec<u8> {
        let mut all = vec![0; self.len as usize];
        self.fill(0, &mut all);
        all
    }

    /// Its sha256, in hex.
    pub fn sha256(&self) -> String {
        let mut digest = Sha256::new();
        let mut buf = vec![0; STEP];
        let mut at = 0;
        while at < self.len {
            let n = STEP.min((self.len - at) as usize);
            self.fill(at, &mut buf[..n]);
            digest.update(&buf[..n]);
            at += n as u64;
        }
        hex(&digest.finalize())
    }

    /// Writes it to a new file, syncs and closes it, and returns the longest that one call took.
    ///
    /// # Errors
    /// The first error of any call.
    pub fn write(&self, path: &Path) -> io::Result<Duration> {
        let mut longest = Longest::default();
        let mut file = longest.time(|| File::create_new(path))?;
        let mut buf = vec![0; STEP];
        let mut at = 0;
        while at < self.len {
            let n = STEP.min((self.len - at) as usize);
            self.fill(at, &mut buf[..n]);
            longest.time(|| file.write_all(&buf[..n]))?;
            at += n as u64;
        }
        longest.time(|| file.sync_all())?;
        longest.time(|| drop(file));
        Ok(longest.0)
    }

    /// Reads a file to its end, compares every byte, and returns the longest that one call took.
    ///
    /// # Errors
    /// The first error of any call; `InvalidData` that names the offset of the first wrong byte.
    pub fn check(&self, path: &Path) -> io::Result<Duration> {
        let mut longest = Longest::default();
        let mut file = longest.time(|| File::open(path))?;
        let (mut buf, mut want) = (vec![0; STEP], vec![0; STEP]);
        let mut at = 0;
        loop {
            let n = longest.time(|| file.read(&mut buf))?;
            if n == 0 {
                break;
            }
            self.fill(at, &mut want[..n]);
            if let Some(i) = (0..n).find(|&i| buf[i] != want[i]) {
                let at = at + i as u64;
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("{}: wrong byte at {at}", path.display()),
                ));
            }
            at += n as u64;
        }
        if at != self.len {
            let why = format!("{}: {at} bytes instead of {}", path.display(), self.len);
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        Ok(longest.0)
    }
}

/// The longest of some calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Longest(pub Duration);

impl Longest {
    /// Times one call.
    pub fn time<T>(&mut self, call: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let value = call();
        self.0 = self.0.max(start.elapsed());
        value
    }
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Sha256 of a file, in hex.
///
/// # Errors
/// Whatever reading says.
pub fn sha256_file(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut digest = Sha256::new();
    let mut buf = vec![0; STEP];
    loop {
        let n = file.read(&mut buf)?;
        if n == 0 {
            return Ok(hex(&digest.finalize()));
        }
        digest.update(&buf[..n]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_the_same_from_every_offset_and_differs_by_seed() {
        let pattern = Pattern::new(7, 5_000);
        let all = pattern.bytes();
        for offset in [0, 1, 7, 8, 9, 4_095, 4_993] {
            let mut part = vec![0; (all.len() - offset).min(100)];
            pattern.fill(offset as u64, &mut part);
            assert_eq!(part, all[offset..offset + part.len()]);
        }
        assert_ne!(Pattern::new(8, 5_000).bytes(), all);
    }

    #[test]
    fn a_file_is_written_and_checked_and_a_wrong_byte_is_found() {
        let path = std::env::temp_dir().join(format!("hfcache-pattern-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let pattern = Pattern::new(1, 3 * STEP as u64 + 17);
        pattern.write(&path).unwrap();
        pattern.check(&path).unwrap();
        assert_eq!(sha256_file(&path).unwrap(), pattern.sha256());
        let mut bytes = pattern.bytes();
        bytes[STEP + 5] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert!(
            pattern.check(&path).unwrap_err().to_string().ends_with(&format!("wrong byte at {}", STEP + 5))
        );
        std::fs::write(&path, &pattern.bytes()[1..]).unwrap();
        assert!(pattern.check(&path).is_err());
        std::fs::remove_file(&path).unwrap();
    }
}
