//! Runs pjdfstest: the crate of that name, and the suite in C and shell that it was made from.

use super::tools;
use super::verdict::{Outcome, Outcomes};
use crate::node;
use std::fmt::Write as _;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The pinned version.
const VERSION: &str = "0.2.2";
/// On ext4 it takes seconds; longer than this means that a call hangs.
const PATIENCE: Duration = Duration::from_secs(400);
/// The cases that remount the file system are run by themselves: others leave files open behind them, and a
/// file open for writing keeps a file system from being made read-only.
const REMOUNTS: &str = "erofs";

/// The suite puts two directories and a name of 32 letters below, and a socket's path has at most 107 bytes.
const DIR_MAX: usize = 52;

/// The crate's program.
#[derive(Debug)]
pub struct Pjdfstest {
    program: PathBuf,
    scratch: PathBuf,
    other: PathBuf,
}

impl Pjdfstest {
    /// Installs it. Its configuration is written to `scratch`; `other` is a file system of another device.
    pub fn new(scratch: &Path, other: &Path) -> Self {
        let program = tools::from_crates_io("pjdfstest", VERSION);
        Self { program, scratch: scratch.into(), other: other.into() }
    }

    /// All its cases in a directory.
    ///
    /// # Panics
    /// When that has too long a name, or the suite does not run to its end.
    pub fn run(&self, dir: &Path) -> Outcomes {
        let len = dir.as_os_str().len();
        assert!(len <= DIR_MAX, "{} has {len} bytes: with TMPDIR=/tmp sockets fit", dir.display());
        let mut all = self.part(dir, false);
        let remounting = self.part(dir, true);
        assert!(!remounting.is_empty(), "no case has {REMOUNTS} in its name any more");
        all.extend(remounting);
        all
    }

    fn part(&self, dir: &Path, remounts: bool) -> Outcomes {
        let config = self.scratch.join(format!("pjdfstest-{remounts}.toml"));
        std::fs::write(&config, configuration(&self.other, remounts)).expect("write a configuration");
        let mut command = Command::new(&self.program);
        command.arg("-c").arg(&config).arg("-p").arg(dir).env("RUST_BACKTRACE", "0").env("NO_COLOR", "1");
        if remounts {
            command.arg(REMOUNTS);
            // Past the helper of Debian's fuse3, which starts a file system where one is to be remounted.
            stand_in(&self.scratch, "mount", "exec \"$(PATH=${PATH#*:} command -v mount)\" -i \"$@\"");
            command.env("PATH", path_with(&self.scratch));
        }
        let output = node::run(command, PATIENCE)
            .unwrap_or_else(|| panic!("pjdfstest in {} does not end within {PATIENCE:?}", dir.display()));
        let said = String::from_utf8_lossy(&output.stdout);
        let (mut outcomes, total) = parse(&said)
            .unwrap_or_else(|why| panic!("{why}\n{said}{}", String::from_utf8_lossy(&output.stderr)));
        assert_eq!(outcomes.len(), total, "cases that were run and cases that were understood\n{said}");
        if !remounts {
            outcomes.retain(|case, _| !case.contains(REMOUNTS));
        }
        outcomes
    }
}

fn configuration(other: &Path, remounts: bool) -> String {
    let mut text = String::from("[features]\n");
    for feature in ["posix_fallocate", "rename_ctime", "utime_now", "utimensat"] {
        let _ = writeln!(text, "{feature} = {{}}");
    }
    let _ = writeln!(text, "secondary_fs = {:?}", other.display().to_string());
    // Times are kept to the nanosecond, so that a short nap shows a change.
    let _ = writeln!(text, "[settings]\nnaptime = 0.01\nallow_remount = {remounts}");
    // Users that every Debian has.
    text += "[dummy_auth]\nentries = [[\"nobody\", \"nogroup\"], [\"daemon\", \"daemon\"]]\n";
    text
}

/// A script that a suite finds before the program of that name.
fn stand_in(dir: &Path, name: &str, script: &str) {
    let path = dir.join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("write a script");
    std::fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("make it a program");
}

/// The search path with a directory before all others.
fn path_with(dir: &Path) -> String {
    format!("{}:{}", dir.display(), std::env::var("PATH").unwrap_or_default())
}

/// The cases, and how many there should be.
fn parse(said: &str) -> Result<(Outcomes, usize), String> {
    let mut outcomes = Outcomes::new();
    let mut last: Option<String> = None;
    let mut total = None;
    for line in said.lines() {
        if let Some(summary) = line.strip_prefix("Summary: ") {
            total = summary.rsplit(", ").next().and_then(|t| t.strip_suffix(" total")?.parse().ok());
            break;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let outcome = match words[..] {
            [] => continue,
            [_, "ok"] => Outcome::Passed,
            [_, "FAILED"] => Outcome::Failed(String::new()),
            [_, "skipped"] => Outcome::Skipped(String::new()),
            _ => {
                let reason = last.as_ref().and_then(|case| outcomes.get_mut(case));
                if let Some(Outcome::Failed(why) | Outcome::Skipped(why)) = reason {
                    let gap = if why.is_empty() { "" } else { " " };
                    *why += &format!("{gap}{}", words.join(" "));
                }
                continue;
            }
        };
        if outcomes.insert(words[0].to_owned(), outcome).is_some() {
            return Err(format!("two cases are called {}", words[0]));
        }
        last = Some(words[0].to_owned());
    }
    Ok((outcomes, total.ok_or("the run has no summary")?))
}

/// The suite in C, in a checkout that is built already (`autoreconf -ifs && ./configure && make`).
#[derive(Debug)]
pub struct InC(PathBuf);

impl InC {
    /// The checkout that `HFCACHE_PJDFSTEST_C` names, if it names one.
    ///
    /// # Panics
    /// When there is none where it says.
    pub fn from_environment() -> Option<Self> {
        let root = PathBuf::from(std::env::var_os("HFCACHE_PJDFSTEST_C")?);
        let built = root.join("pjdfstest").is_file() && root.join("tests").is_dir();
        assert!(built, "HFCACHE_PJDFSTEST_C: {} is no checkout of pjdfstest that is built", root.display());
        Some(Self(root))
    }

    /// All its assertions in a directory.
    pub fn run(&self, scratch: &Path, dir: &Path, patience: Duration) -> Outcomes {
        let mut command = Command::new("prove");
        command.args(["-r", "-v", "-m"]).arg(self.0.join("tests")).current_dir(dir);
        // The suite asks `df` for the type, and asks less of a type it does not know: both shall answer the same.
        stand_in(scratch, "df", "echo Filesystem Type\necho suite ext4");
        command.env("PATH", path_with(scratch));
        let output = node::run(command, patience)
            .unwrap_or_else(|| panic!("pjdfstest in {} does not end within {patience:?}", dir.display()));
        let outcomes = parse_prove(&String::from_utf8_lossy(&output.stdout));
        assert!(!outcomes.is_empty(), "prove: {}", String::from_utf8_lossy(&output.stderr));
        outcomes
    }
}

/// Each assertion of each file, as `rename/00.t:17`.
fn parse_prove(said: &str) -> Outcomes {
    let mut outcomes = Outcomes::new();
    let mut file = String::new();
    for line in said.lines() {
        let (head, tail) = line.split_once(' ').unwrap_or((line, ""));
        if let Some((_, name)) = line.split_once("/tests/")
            && let Some((name, _)) = name.split_once(".t ..")
        {
            file = format!("{name}.t");
            continue;
        }
        let (outcome, rest) = match head {
            "ok" => (Outcome::Passed, tail),
            "not" => (Outcome::Failed(tail.to_owned()), tail.strip_prefix("ok ").unwrap_or("")),
            _ => continue,
        };
        let number: String = rest.chars().take_while(char::is_ascii_digit).collect();
        if number.is_empty() {
            continue;
        }
        let undone = rest.to_ascii_uppercase();
        let skipped = undone.contains("# TODO") || undone.contains("# SKIP");
        let outcome = if skipped { Outcome::Skipped(rest.to_owned()) } else { outcome };
        outcomes.insert(format!("{file}:{number}"), outcome);
    }
    outcomes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_crate_prints_is_understood() {
        let said = "chmod::a        ok\nchmod::b::fifo   FAILED\n\tassertion failed\n  left: 1\n\
                    open::c   skipped\n\trequires x\n\nSummary: 1 failed, 1 skipped, 1 passed, 0 expected failures, 3 total\n";
        let (outcomes, total) = parse(said).unwrap();
        assert_eq!(total, 3);
        assert_eq!(outcomes["chmod::a"], Outcome::Passed);
        assert_eq!(outcomes["chmod::b::fifo"], Outcome::Failed("assertion failed left: 1".into()));
        assert_eq!(outcomes["open::c"], Outcome::Skipped("requires x".into()));
        assert!(parse("chmod::a ok\n").is_err(), "a run that was cut short is no run");
    }

    #[test]
    fn what_prove_prints_is_understood() {
        let said = "/x/tests/chmod/00.t ..\n1..3\nok 1\nnot ok 2 - tried 'x', got y\nok 3 # TODO later\nFailed\n\
                    /x/tests/open/01.t .. ok\nok 1\n";
        let outcomes = parse_prove(said);
        assert_eq!(outcomes["chmod/00.t:1"], Outcome::Passed);
        assert_eq!(outcomes["chmod/00.t:2"], Outcome::Failed("ok 2 - tried 'x', got y".into()));
        assert!(matches!(outcomes["chmod/00.t:3"], Outcome::Skipped(_)));
        assert_eq!(outcomes["open/01.t:1"], Outcome::Passed);
    }
}
