//! A counter in a file, under a lock: who holds the lock reads it, writes one more, and saves that. If the lock
//! excludes and what is saved is seen by the next holder, no number is given twice and none is lost.

use crate::random::Random;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Between two attempts to get the lock.
const POLL: Duration = Duration::from_millis(4);
/// After an error, as long as a client would wait.
const AFTER_ERROR: Duration = Duration::from_millis(50);
/// Digits of the number, so that it is replaced in one step.
const DIGITS: usize = 20;

/// What was counted, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Increment {
    /// What the counter said then.
    pub value: u64,
    /// The lock was held from here,
    pub from: Instant,
    /// to here at least, when the number was saved.
    pub until: Instant,
}

/// What all clients of a run share.
#[derive(Debug, Default)]
pub struct Run {
    /// What was acknowledged.
    pub done: Mutex<Vec<Increment>>,
    /// Increments that may have taken effect.
    pub unknown: AtomicU64,
    /// They are to end.
    pub stop: AtomicBool,
}

/// Makes the counter and its lock.
///
/// # Errors
/// What the file system says.
pub fn make(dir: &Path) -> io::Result<()> {
    fs::write(dir.join("counter"), format!("{:0DIGITS$}", 0))?;
    fs::write(dir.join("lock"), "")
}

/// What the counter says.
///
/// # Errors
/// What the file system says; `InvalidData` when there is no number in it.
pub fn value(dir: &Path) -> io::Result<u64> {
    let text = fs::read_to_string(dir.join("counter"))?;
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, format!("the counter holds {text:?}"));
    if text.len() == DIGITS { text.parse().map_err(|_| damaged()) } else { Err(damaged()) }
}

enum Attempt {
    Counted(Increment),
    /// Nothing was changed.
    Refused(io::Error),
    Unknown,
}

fn attempt(dir: &Path, stop: &AtomicBool) -> Attempt {
    let held = || -> io::Result<Option<File>> {
        let lock = File::options().read(true).write(true).open(dir.join("lock"))?;
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(Some(lock)),
                Err(fs::TryLockError::WouldBlock) if stop.load(Ordering::Relaxed) => return Ok(None),
                Err(fs::TryLockError::WouldBlock) => thread::sleep(POLL),
                Err(fs::TryLockError::Error(why)) => return Err(why),
            }
        }
    };
    let lock = match held() {
        Ok(Some(lock)) => lock,
        Ok(None) => return Attempt::Refused(io::ErrorKind::WouldBlock.into()),
        Err(why) => return Attempt::Refused(why),
    };
    let from = Instant::now();
    let value = match value(dir) {
        Ok(old) => old + 1,
        Err(why) => return Attempt::Refused(why),
    };
    let written = || -> io::Result<()> {
        let file = File::options().write(true).open(dir.join("counter"))?;
        file.write_all_at(format!("{value:0DIGITS$}").as_bytes(), 0)?;
        file.sync_all()
    };
    let written = written();
    let until = Instant::now();
    // Let go only now: a lock that is dropped earlier would not be held until then.
    drop(lock);
    if written.is_ok() { Attempt::Counted(Increment { value, from, until }) } else { Attempt::Unknown }
}

/// One client on one mount, until it is told to stop.
pub fn client(dir: &Path, run: &Run, mut random: Random) {
    while !run.stop.load(Ordering::Relaxed) {
        match attempt(dir, &run.stop) {
            Attempt::Counted(increment) => {
                run.done.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(increment);
                thread::sleep(Duration::from_micros(random.below(5_000) as u64));
            }
            Attempt::Refused(why) => {
                assert_ne!(why.kind(), io::ErrorKind::InvalidData, "under the lock {why}");
                thread::sleep(AFTER_ERROR);
            }
            Attempt::Unknown => {
                run.unknown.fetch_add(1, Ordering::Relaxed);
                thread::sleep(AFTER_ERROR);
            }
        }
    }
}

/// What is wrong with a run at whose end the counter says `last`, if anything is.
pub fn judge(done: &[Increment], unknown: u64, last: u64) -> Option<String> {
    let mut done = done.to_vec();
    done.sort_by_key(|i| (i.value, i.from));
    for pair in done.windows(2) {
        let (one, two) = (pair[0], pair[1]);
        if one.value == two.value {
            return Some(format!("{} was given twice", one.value));
        }
        if two.from < one.until {
            let by = one.until - two.from;
            return Some(format!(
                "who counted {} and who counted {} had the lock at once, {by:?}",
                one.value, two.value
            ));
        }
    }
    let count = done.len() as u64;
    let greatest = done.last().map_or(0, |i| i.value);
    if last < greatest || last < count {
        return Some(format!("the counter ends at {last}; {count} were counted, up to {greatest}"));
    }
    if last > count + unknown {
        return Some(format!(
            "the counter ends at {last} after {count} that were counted and {unknown} that may be"
        ));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, value: u64, from: u64, until: u64) -> Increment {
        let ms = |n| start + Duration::from_millis(n);
        Increment { value, from: ms(from), until: ms(until) }
    }

    #[test]
    fn what_is_wrong_is_found() {
        let start = Instant::now();
        let good = [at(start, 2, 20, 30), at(start, 1, 0, 10), at(start, 4, 30, 50)];
        assert_eq!(judge(&good, 1, 4), None);
        assert_eq!(judge(&good, 2, 5), None);
        assert_eq!(judge(&[], 0, 0), None);
        for (done, unknown, last, word) in [
            (vec![at(start, 1, 0, 10), at(start, 1, 20, 30)], 1, 2, "twice"),
            (vec![at(start, 1, 0, 10), at(start, 2, 9, 30)], 0, 2, "at once"),
            (vec![at(start, 2, 0, 10), at(start, 1, 20, 30)], 0, 2, "at once"),
            (vec![at(start, 1, 0, 10), at(start, 3, 20, 30)], 0, 2, "ends at 2"),
            (vec![at(start, 1, 0, 10)], 1, 3, "ends at 3"),
            (vec![at(start, 1, 0, 10), at(start, 2, 20, 30)], 0, 1, "ends at 1"),
        ] {
            let found = judge(&done, unknown, last).unwrap();
            assert!(found.contains(word), "{found}");
        }
    }
}
