//! Registers in the file system. A write makes a new file, or symbolic link, and renames it over the register; a
//! read looks the name up and reads what it finds. Names are linearizable, so the registers must be.

use crate::history::{Ask, History, Outcome};
use crate::random::Random;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

/// Registers of a run: few, so that nodes meet at them. Even ones are files, odd ones links.
pub const KEYS: usize = 2;
/// The longest pause after an operation. Most are shorter, and no two clients go in step: a client that calls
/// while its node stands still must not have called before it did.
const THINK_MAX_US: usize = 16_000;
/// After an error, as long as a client would wait.
const AFTER_ERROR: Duration = Duration::from_millis(50);

fn is_link(key: usize) -> bool {
    key % 2 == 1
}

fn damaged(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the register holds {text:?}"))
}

/// What all clients of a run share.
#[derive(Debug, Default)]
pub struct Run {
    /// What they did.
    pub history: History,
    /// The next value nobody has written.
    pub values: AtomicU64,
    /// They are to end.
    pub stop: AtomicBool,
}

/// Reads a register through a mount.
///
/// # Errors
/// What the file system says; `InvalidData` when there is no number in it.
pub fn read(dir: &Path, key: usize) -> io::Result<u64> {
    let path = dir.join(format!("r{key}"));
    let text = if is_link(key) {
        fs::read_link(path)?.to_string_lossy().into_owned()
    } else {
        fs::read_to_string(path)?
    };
    text.parse().map_err(|_| damaged(&text))
}

/// Writes a register through a mount. What it says is certain, or [`Outcome::Info`].
pub fn write(dir: &Path, key: usize, value: u64) -> Outcome {
    let temporary = dir.join(format!("t{key}-{value}"));
    let text = value.to_string();
    let made = if is_link(key) { symlink(&text, &temporary) } else { fs::write(&temporary, &text) };
    if made.is_err() {
        // The register was not touched.
        return Outcome::Fail;
    }
    match fs::rename(&temporary, dir.join(format!("r{key}"))) {
        Ok(()) => Outcome::Ok(value),
        Err(_) => Outcome::Info,
    }
}

/// One client on one mount, until it is told to stop. `restarts` is raised before the mount's node is killed,
/// and again once it is back: in between the path may lead to the bare mount point.
pub fn client(me: usize, dir: &Path, run: &Run, restarts: &AtomicU64, mut random: Random) {
    let Run { history, values, stop } = run;
    while !stop.load(Ordering::Relaxed) {
        let before = restarts.load(Ordering::SeqCst);
        let key = random.below(KEYS);
        let outcome = if random.below(5) < 2 {
            let value = values.fetch_add(1, Ordering::Relaxed);
            history.record(me, key, Ask::Write(value), || write(dir, key, value))
        } else {
            history.record(me, key, Ask::Read, || match read(dir, key) {
                Ok(value) => Outcome::Ok(value),
                Err(why) => {
                    assert_ne!(why.kind(), io::ErrorKind::InvalidData, "register {key}: {why}");
                    let mounted = before.is_multiple_of(2) && restarts.load(Ordering::SeqCst) == before;
                    let missing = why.kind() == io::ErrorKind::NotFound;
                    assert!(!(mounted && missing), "register {key} is missing: {why}");
                    Outcome::Fail
                }
            })
        };
        let think = Duration::from_micros(random.below(THINK_MAX_US) as u64);
        thread::sleep(if matches!(outcome, Outcome::Ok(_)) { think } else { AFTER_ERROR });
    }
}
