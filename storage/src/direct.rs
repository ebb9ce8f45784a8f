//! Writes past the page cache. The kernel takes them only from aligned memory, at aligned offsets, in whole
//! units; bytes are brought into that form in a buffer that each thread keeps, because copying into warm
//! memory is several times cheaper than filling fresh pages of the cache.
//!
//! The kernel keeps both ways coherent: a direct write drops the cached pages it replaces, and writes dirty
//! ones out before. What does not fill a unit at the end is written through the cache, into a page of its own.

use parking_lot::Mutex;
use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;

/// Alignment of memory, offsets and lengths: no disk has larger sectors.
pub const UNIT: usize = 4_096;
/// Bytes in one call: a shard of 8 MiB and its header are two.
const BUFFER: usize = (4 << 20) + UNIT;

thread_local! {
    static BOUNCE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The direct side of one open file.
#[derive(Default)]
pub struct Direct(Mutex<State>);

#[derive(Default)]
enum State {
    #[default]
    Unknown,
    Open(Arc<File>),
    /// The file system can't.
    Refused,
}

impl Direct {
    /// Writes `parts` one after the other from `offset` on; `file` is the same file opened plainly.
    ///
    /// # Errors
    /// What the system says; part of it may have been written.
    pub fn write(&self, file: &File, parts: &[&[u8]], offset: u64) -> io::Result<()> {
        let direct = if offset.is_multiple_of(UNIT as u64) { self.open(file) } else { None };
        let mut sink = Sink { file, direct, at: offset };
        let written = BOUNCE.with_borrow_mut(|memory| {
            if sink.direct.is_some() {
                let buffer = aligned(memory);
                sink.bounce(parts, buffer)
            } else {
                parts.iter().try_for_each(|part| sink.plain(part))
            }
        });
        if sink.direct.is_none() && offset.is_multiple_of(UNIT as u64) {
            *self.0.lock() = State::Refused;
        }
        written
    }

    fn open(&self, file: &File) -> Option<Arc<File>> {
        let mut state = self.0.lock();
        if matches!(*state, State::Unknown) {
            // The descriptor and not the name, which may mean another file by now.
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            let opened = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path);
            // Nothing is lost if it can't: an answer that matters is given again by the plain write.
            *state = opened.map_or(State::Refused, |f| State::Open(Arc::new(f)));
        }
        match &*state {
            State::Open(direct) => Some(direct.clone()),
            State::Unknown | State::Refused => None,
        }
    }
}

/// The aligned part of the memory of this thread.
fn aligned(memory: &mut Vec<u8>) -> &mut [u8] {
    if memory.is_empty() {
        memory.resize(BUFFER + UNIT, 0);
    }
    let skip = memory.as_ptr().align_offset(UNIT);
    &mut memory[skip..skip + BUFFER]
}

/// Where a write has come to.
struct Sink<'a> {
    file: &'a File,
    direct: Option<Arc<File>>,
    at: u64,
}

impl Sink<'_> {
    fn plain(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, self.at)?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn bounce(&mut self, parts: &[&[u8]], buffer: &mut [u8]) -> io::Result<()> {
        let mut filled = 0;
        for part in parts {
            let mut rest = *part;
            while !rest.is_empty() {
                // Large runs that are aligned by themselves need no copy.
                if filled == 0 && rest.len() >= UNIT && rest.as_ptr().addr().is_multiple_of(UNIT) {
                    let (whole, tail) = rest.split_at(rest.len() / UNIT * UNIT);
                    self.whole(whole)?;
                    rest = tail;
                    continue;
                }
                let n = rest.len().min(buffer.len() - filled);
                buffer[filled..filled + n].copy_from_slice(&rest[..n]);
                filled += n;
                rest = &rest[n..];
                if filled == buffer.len() {
                    self.whole(buffer)?;
                    filled = 0;
                }
            }
        }
        let (whole, tail) = buffer[..filled].split_at(filled / UNIT * UNIT);
        self.whole(whole)?;
        self.plain(tail)
    }

    /// Writes aligned bytes in whole units.
    fn whole(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while let Some(direct) = self.direct.as_ref().filter(|_| !bytes.is_empty()) {
            match direct.write_at(bytes, self.at) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    self.at += n as u64;
                    bytes = &bytes[n..];
                    if !n.is_multiple_of(UNIT) {
                        self.direct = None;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // Some file systems open such a file and then refuse, or want more than we know of.
                Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {
                    self.direct = None;
                }
                Err(e) => return Err(e),
            }
        }
        self.plain(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On disks, on a file system in memory, and where direct writes are known to be refused.
    #[test]
    fn what_is_written_is_there_whatever_its_shape() {
        let name = format!("hfcache-direct-{}", std::process::id());
        let dirs = [std::env::temp_dir(), "/var/tmp".into(), "/dev/shm".into()];
        let bytes: Vec<u8> = (0..BUFFER * 2 + 77_777).map(|i| (i % 251) as u8).collect();
        let shapes: [&[usize]; 7] = [
            &[],
            &[1],
            &[UNIT, UNIT * 3],
            &[UNIT, 100, BUFFER, 12_345],
            &[BUFFER, BUFFER],
            &[UNIT, 1 << 20, 1 << 20, 7],
            &[0, BUFFER * 2 + 77_777],
        ];
        for dir in dirs.iter().filter(|d| d.is_dir()) {
            let path = dir.join(&name);
            for (shape, refused, offset) in shapes
                .iter()
                .flat_map(|s| [(s, false, 0), (s, true, 0), (s, false, 8_192), (s, false, 8_191)])
            {
                let file = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .create(true)
                    .truncate(true)
                    .open(&path)
                    .unwrap();
                file.write_all_at(&[9; 10_000], 0).unwrap();
                let direct = Direct(Mutex::new(if refused { State::Refused } else { State::Unknown }));
                let mut parts = Vec::new();
                let mut at = 0;
                for n in *shape {
                    parts.push(&bytes[at..at + n]);
                    at += n;
                }
                direct.write(&file, &parts, offset).unwrap();
                let mut want = vec![9; 10_000];
                want.resize((offset as usize + at).max(10_000), 0);
                want[offset as usize..offset as usize + at].copy_from_slice(&bytes[..at]);
                assert!(std::fs::read(&path).unwrap() == want, "{} {shape:?} at {offset}", dir.display());
            }
            std::fs::remove_file(&path).unwrap();
        }
    }
}
