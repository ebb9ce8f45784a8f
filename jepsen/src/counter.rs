//! A counter in a file, under a lock: who holds the lock reads it, writes one more, and saves that. If the lock
//! excludes and what is saved is seen by the next holder, no number is given twice and none is lost.

use crate::random::Random;
use hfcache_tests::sys;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufRead, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

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
    /// The lock was held from here, by this machine's clock,
    pub from: Duration,
    /// to here at least, when the number was saved.
    pub until: Duration,
}

/// What a client says of an attempt, a line each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// It was acknowledged.
    Counted(Increment),
    /// It may have taken effect.
    Unknown,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Counted(Increment { value, from, until }) => {
                write!(f, "counted {value} {} {}", from.as_nanos(), until.as_nanos())
            }
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

impl FromStr for Line {
    type Err = ();

    /// Fails for what no client says.
    fn from_str(line: &str) -> Result<Self, ()> {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |text: &str| text.parse::<u64>().map_err(|_| ());
        match words[..] {
            ["unknown"] => Ok(Self::Unknown),
            ["counted", value, from, until] => Ok(Self::Counted(Increment {
                value: number(value)?,
                from: Duration::from_nanos(number(from)?),
                until: Duration::from_nanos(number(until)?),
            })),
            _ => Err(()),
        }
    }
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
    let from = sys::monotonic();
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
    let until = sys::monotonic();
    // Let go only now: a lock that is dropped earlier would not be held until then.
    drop(lock);
    if written.is_ok() { Attempt::Counted(Increment { value, from, until }) } else { Attempt::Unknown }
}

fn client(dir: &Path, stop: &AtomicBool, mut random: Random) {
    let tell = |line: Line| {
        // In one piece, and nobody to tell means nothing to do.
        let _gone = io::stdout().lock().write_all(format!("{line}\n").as_bytes());
    };
    while !stop.load(Ordering::Relaxed) {
        match attempt(dir, stop) {
            Attempt::Counted(increment) => {
                tell(Line::Counted(increment));
                thread::sleep(Duration::from_micros(random.below(5_000) as u64));
            }
            Attempt::Refused(why) => {
                assert_ne!(why.kind(), io::ErrorKind::InvalidData, "under the lock {why}");
                thread::sleep(AFTER_ERROR);
            }
            Attempt::Unknown => {
                tell(Line::Unknown);
                thread::sleep(AFTER_ERROR);
            }
        }
    }
}

/// A process of clients on one mount, which tells what they do on its standard output until its standard input
/// ends. A process of its own that starts no other: a child closes what it inherits, and that waits for a mount
/// whose node has just been cut off.
pub fn clients(dir: &Path, seeds: &[u64]) {
    let stop = AtomicBool::new(false);
    // Whatever stands in this line already is none of ours.
    println!();
    thread::scope(|scope| {
        for seed in seeds {
            let stop = &stop;
            scope.spawn(move || client(dir, stop, Random::new(*seed)));
        }
        for _ in io::stdin().lock().lines() {}
        stop.store(true, Ordering::Relaxed);
    });
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

    fn at(value: u64, from: u64, until: u64) -> Increment {
        Increment { value, from: Duration::from_millis(from), until: Duration::from_millis(until) }
    }

    #[test]
    fn lines_come_back() {
        for line in [Line::Unknown, Line::Counted(at(7, 1, 2))] {
            assert_eq!(line.to_string().parse(), Ok(line));
        }
        assert!("counted 1 2".parse::<Line>().is_err() && "".parse::<Line>().is_err());
    }

    #[test]
    fn what_is_wrong_is_found() {
        let good = [at(2, 20, 30), at(1, 0, 10), at(4, 30, 50)];
        assert_eq!(judge(&good, 1, 4), None);
        assert_eq!(judge(&good, 2, 5), None);
        assert_eq!(judge(&[], 0, 0), None);
        for (done, unknown, last, word) in [
            (vec![at(1, 0, 10), at(1, 20, 30)], 1, 2, "twice"),
            (vec![at(1, 0, 10), at(2, 9, 30)], 0, 2, "at once"),
            (vec![at(2, 0, 10), at(1, 20, 30)], 0, 2, "at once"),
            (vec![at(1, 0, 10), at(3, 20, 30)], 0, 2, "ends at 2"),
            (vec![at(1, 0, 10)], 1, 3, "ends at 3"),
            (vec![at(1, 0, 10), at(2, 20, 30)], 0, 1, "ends at 1"),
        ] {
            let found = judge(&done, unknown, last).unwrap();
            assert!(found.contains(word), "{found}");
        }
    }
}
