//! What the kernel says while a suite runs: a warning there is a failure even if every case passes.

use std::io::Write as _;
use std::process::Command;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

/// Words of a line that means harm.
const BAD: [&str; 6] = ["BUG:", "WARNING:", "blocked for more than", "Oops", "general protection", "fuse:"];

fn lines() -> Option<Vec<String>> {
    let output = Command::new("dmesg").output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).lines().map(Into::into).collect())
}

/// The kernel's messages up to now.
#[derive(Debug)]
pub struct Messages(Option<Vec<String>>);

impl Messages {
    /// Remembers what was said before.
    pub fn now() -> Self {
        let before = lines();
        if before.is_none() {
            println!("SKIPPED: the kernel's messages can't be read here");
        }
        Self(before)
    }

    /// What was said since, as far as it means harm.
    pub fn harm(&self) -> Vec<String> {
        let Some(before) = &self.0 else { return Vec::new() };
        harm(before, &lines().unwrap_or_default())
    }
}

fn harm(before: &[String], after: &[String]) -> Vec<String> {
    // The ring forgets its oldest lines, so that counting would not do.
    let old: std::collections::BTreeSet<&String> = before.iter().collect();
    after.iter().filter(|l| !old.contains(l) && BAD.iter().any(|b| l.contains(b))).cloned().collect()
}

/// Does something while a line a second goes into the kernel's log. Of two readers of /proc/kmsg that both saw
/// the last message the slower waits for another one, `O_NONBLOCK` or not; stress-ng's `procfs` reads it with
/// several threads, and on a silent machine would never end.
pub fn never_silent<T>(doing: impl FnOnce() -> T) -> T {
    thread::scope(|scope| {
        let (stop, stopped) = mpsc::channel::<()>();
        scope.spawn(move || {
            while stopped.recv_timeout(Duration::from_secs(1)) == Err(RecvTimeoutError::Timeout) {
                let log = std::fs::File::options().write(true).open("/dev/kmsg");
                // Where the log can't be written it most likely can't be read, and then nobody waits for it.
                let _ = log.and_then(|mut log| log.write_all(b"<7>hfcache tests: still at it"));
            }
        });
        let done = doing();
        drop(stop);
        done
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_new_lines_that_mean_harm_count() {
        let say = |lines: &[&str]| lines.iter().map(|&l| l.to_owned()).collect::<Vec<_>>();
        let before = say(&["[1.0] WARNING: old", "[1.1] usb"]);
        let after =
            say(&["[1.1] usb", "[2.0] EXT4-fs mounted", "[2.1] INFO: task x blocked for more than 120 s"]);
        assert_eq!(harm(&before, &after), say(&["[2.1] INFO: task x blocked for more than 120 s"]));
    }
}
