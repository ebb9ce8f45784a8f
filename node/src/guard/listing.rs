//! Listings of directories of the mount, for the kernel to know their names: what the node asks its guard for.
//! On the pipes a message is its length (two bytes, little endian) and [`wire`]'s encoding.

use crate::place::Place;
use anyhow::{Context, Result, bail};
use hfcache_base::{InodeId, wire};
use hfcache_fuse::ops::{Listed, Lister, Listing};
use parking_lot::Mutex;
use rustix::fs::{AtFlags, Mode, OFlags, RawDir, ResolveFlags, SeekFrom, StatxFlags};
use rustix::io::Errno;
use rustix::pipe::PIPE_BUF;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{ChildStdin, ChildStdout};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Listings under way at once: who asks for more is not helped by waiting for them.
const UNDER_WAY_MAX: usize = 16;
/// Room for rows of one getdents, which is also how much the kernel asks the node for at once.
const PAGE: usize = 32 << 10;

/// A message as it goes through a pipe, whole or not at all.
fn message<T: Serialize>(value: &T) -> Option<Vec<u8>> {
    let body = wire::encode(value);
    let mut out = u16::try_from(body.len()).ok()?.to_le_bytes().to_vec();
    out.extend(body);
    (out.len() <= PIPE_BUF).then_some(out)
}

/// The next message; `None` at the end.
fn receive<T: DeserializeOwned>(from: &mut impl Read) -> Result<Option<T>> {
    let mut len = [0; 2];
    if from.read(&mut len[..1])? == 0 {
        return Ok(None);
    }
    from.read_exact(&mut len[1..])?;
    let len = usize::from(u16::from_le_bytes(len));
    if len > PIPE_BUF {
        bail!("a message of {len} bytes");
    }
    let mut body = vec![0; len];
    from.read_exact(&mut body)?;
    Ok(Some(wire::decode(&body)?))
}

/// The node's end.
#[derive(Debug)]
pub(super) struct Asker {
    place: Place,
    pipe: Mutex<Option<ChildStdin>>,
    under_way: AtomicUsize,
}

impl Asker {
    /// Asks through this pipe.
    ///
    /// # Errors
    /// The kernel's, for setting the pipe up.
    pub(super) fn new(pipe: ChildStdin, place: Place) -> Result<Arc<Self>> {
        // Who asks serves the mount, and waits for nobody.
        rustix::fs::fcntl_setfl(&pipe, OFlags::NONBLOCK).context("set up the pipe to the guard")?;
        Ok(Arc::new(Self { place, pipe: Mutex::new(Some(pipe)), under_way: AtomicUsize::new(0) }))
    }

    /// Closes the pipe.
    pub(super) fn close(&self) {
        drop(self.pipe.lock().take());
    }

    fn send(&self, message: &[u8]) -> bool {
        self.pipe.lock().as_ref().is_some_and(|pipe| rustix::io::write(pipe, message) == Ok(message.len()))
    }

    /// Tells what came of each listing, until the other end is closed.
    pub(super) fn hear(&self, mut from: ChildStdout, told: impl Fn(InodeId, Listed)) {
        while let Ok(Some((dir, listed))) = receive(&mut from) {
            self.under_way.fetch_sub(1, Ordering::Relaxed);
            told(dir, listed);
        }
    }
}

impl Lister for Asker {
    fn ask(&self, listing: &Listing) -> bool {
        let Some(path) = self.place.below(&listing.path) else { return false };
        let path = path.as_os_str().as_bytes().to_vec();
        let Some(message) = message(&Listing { path, ..*listing }) else { return false };
        if self.under_way.fetch_add(1, Ordering::Relaxed) < UNDER_WAY_MAX && self.send(&message) {
            return true;
        }
        self.under_way.fetch_sub(1, Ordering::Relaxed);
        false
    }
}

/// The guard's end: lists what it is asked for until the node closes its end of the pipe.
///
/// # Errors
/// What comes through the pipe makes no sense.
pub(super) fn serve(mut from: impl Read, mut to: impl Write, point: &Path, device: &str) -> Result<()> {
    let mut room = vec![MaybeUninit::uninit(); PAGE];
    while let Some(asked) = receive::<Listing>(&mut from)? {
        let listed = list(point, device, &asked, &mut room).unwrap_or(Listed::Failed);
        let message = message(&(asked.dir, listed)).context("a long answer")?;
        // If nobody hears it the node is gone, and the next look at the pipe says so.
        let _ = to.write_all(&message).and_then(|()| to.flush());
    }
    Ok(())
}

fn list(point: &Path, device: &str, asked: &Listing, room: &mut [MaybeUninit<u8>]) -> Result<Listed, Errno> {
    let options = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(point, options | OFlags::PATH, Mode::empty())?;
    let found =
        rustix::fs::statx(&root, "", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, StatxFlags::empty())?;
    // Something else may have been mounted there, or nothing may be left.
    if format!("{}:{}", found.stx_dev_major, found.stx_dev_minor) != device {
        return Ok(Listed::Failed);
    }
    let path = if asked.path.is_empty() { b"." } else { asked.path.as_slice() };
    // What was a directory when it was asked for may be anything by now. This look does not count as a read.
    let inside = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let options = options | OFlags::RDONLY | OFlags::NOATIME;
    let dir = rustix::fs::openat2(&root, OsStr::from_bytes(path), options, Mode::empty(), inside)?;
    if asked.after > 0 {
        rustix::fs::seek(&dir, SeekFrom::Start(asked.after))?;
    }
    let mut rows = RawDir::new(&dir, room);
    let mut left = asked.rows;
    let mut cookie = asked.after;
    // What has come with the last page is known, and the rest of it costs nothing.
    while left > 0 || !rows.is_buffer_empty() {
        match rows.next() {
            Some(row) => cookie = row?.next_entry_cookie(),
            None => return Ok(Listed::All),
        }
        left = left.saturating_sub(1);
    }
    Ok(Listed::Until(cookie))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tests::TempDir;
    use std::os::linux::fs::MetadataExt;

    fn asked(path: &str, after: u64, rows: u32) -> Listing {
        Listing { dir: InodeId(5), path: path.into(), after, rows }
    }

    fn device(point: &Path) -> String {
        let dev = point.metadata().unwrap().st_dev();
        format!("{}:{}", rustix::fs::major(dev), rustix::fs::minor(dev))
    }

    /// What a guard answers.
    fn answers(point: &Path, device: &str, all: &[Listing]) -> Vec<(InodeId, Listed)> {
        let input: Vec<u8> = all.iter().flat_map(|l| message(l).unwrap()).collect();
        let mut output = Vec::new();
        serve(input.as_slice(), &mut output, point, device).unwrap();
        let mut rest = output.as_slice();
        std::iter::from_fn(|| receive(&mut rest).unwrap()).collect()
    }

    #[test]
    fn a_directory_is_listed_from_where_the_last_listing_ended() {
        let dir = TempDir::new();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        for n in 0..2000 {
            std::fs::write(dir.path().join(format!("a/b/a-rather-long-name-{n}")), "").unwrap();
        }
        let device = device(dir.path());
        let mut parts = 0;
        let mut after = 0;
        loop {
            parts += 1;
            match answers(dir.path(), &device, &[asked("a/b", after, 100)])[..] {
                [(InodeId(5), Listed::Until(cookie))] => after = cookie,
                [(InodeId(5), Listed::All)] => break,
                ref other => panic!("{other:?}"),
            }
        }
        assert!((3..=21).contains(&parts), "{parts} parts of 100 rows or a page");
        assert_eq!(answers(dir.path(), &device, &[asked("", 0, 100)])[..], [(InodeId(5), Listed::All)]);
    }

    #[test]
    fn nothing_but_directories_of_the_mount_is_listed() {
        let dir = TempDir::new();
        std::fs::create_dir(dir.path().join("in")).unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        std::os::unix::fs::symlink("in", dir.path().join("link")).unwrap();
        let all = ["file", "link", "link/..", "..", "/", "gone", "in"].map(|path| asked(path, 0, 9));
        let mut wanted = vec![(InodeId(5), Listed::Failed); 6];
        wanted.push((InodeId(5), Listed::All));
        assert_eq!(answers(dir.path(), &device(dir.path()), &all), wanted);
        assert_eq!(answers(dir.path(), "0:0", &all[6..]), [(InodeId(5), Listed::Failed)]);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let good = message(&asked("a", 0, 1)).unwrap();
        let serve = |input: &[u8]| serve(input, Vec::new(), Path::new("/"), "0:0");
        assert!(serve(&good).is_ok());
        for cut in 1..good.len() {
            assert!(serve(&good[..cut]).is_err(), "{cut}");
        }
        assert!(serve(&[0xff; 300]).is_err());
        assert!(serve(&[5, 0, 9, 9, 9, 9, 9]).is_err());
    }

    #[test]
    fn long_paths_are_left_out() {
        assert!(message(&asked(&"d/".repeat(2000), 0, 1)).is_some());
        assert!(message(&asked(&"d/".repeat(2100), 0, 1)).is_none());
    }
}
