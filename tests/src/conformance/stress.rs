//! Runs the file-system class of stress-ng: every stressor for some seconds, with its own verification.

use super::verdict::{Outcome, Outcomes};
use super::{calls, tools};
use crate::wait;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// What a stressor may take past its time: clearing away is part of it.
const PATIENCE: Duration = Duration::from_secs(90);
/// Amounts that fit the time, where the default is a gibibyte.
const SIZES: [(&str, &str); 5] = [
    ("hdd", "--hdd-bytes=16M"),
    ("iomix", "--iomix-bytes=16M"),
    ("fallocate", "--fallocate-bytes=16M"),
    ("copy-file", "--copy-file-bytes=128M"),
    ("sync-file", "--sync-file-bytes=16M"),
];

/// The program.
#[derive(Debug)]
pub struct StressNg(PathBuf);

impl StressNg {
    /// Finds it.
    ///
    /// # Panics
    /// When it is not installed.
    pub fn find() -> Self {
        Self(tools::from_debian("stress-ng", "stress-ng"))
    }

    /// The names of the class's stressors.
    ///
    /// # Panics
    /// When it names none.
    pub fn stressors(&self) -> Vec<String> {
        let output = Command::new(&self.0).args(["--class", "filesystem?"]).output().expect("run stress-ng");
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text += &String::from_utf8_lossy(&output.stderr);
        let list = text.lines().find_map(|l| l.split_once("stressors:").map(|(_, list)| list.to_owned()));
        let list = list.unwrap_or_else(|| panic!("stress-ng names no stressors: {text}"));
        list.split_whitespace().map(Into::into).collect()
    }

    /// One stressor in a directory.
    pub fn run(&self, name: &str, dir: &Path, seconds: u64) -> Outcome {
        let mut command = Command::new(&self.0);
        command
            .arg(format!("--{name}"))
            .arg("1")
            .args(["--pathological", "--verify", "--timeout", &format!("{seconds}s"), "--temp-path"])
            .arg(dir)
            .args(SIZES.iter().filter(|(of, _)| *of == name).map(|(_, size)| size))
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let child = command.spawn().expect("start stress-ng");
        let pid = child.id();
        let limit = Duration::from_secs(seconds) + PATIENCE;
        let Some(output) =
            wait::try_within(limit, move || child.wait_with_output().expect("wait for stress-ng"))
        else {
            calls::kill_group(pid);
            return Outcome::Failed(format!("no end within {limit:?}"));
        };
        let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
        said += &String::from_utf8_lossy(&output.stderr);
        outcome(output.status.code(), &said)
    }

    /// All of them in a directory.
    pub fn run_all(&self, dir: &Path, seconds: u64) -> Outcomes {
        self.stressors()
            .into_iter()
            .map(|name| {
                let place = dir.join(&name);
                std::fs::create_dir(&place).expect("make a directory for a stressor");
                let outcome = self.run(&name, &place, seconds);
                (name, outcome)
            })
            .collect()
    }
}

fn outcome(code: Option<i32>, said: &str) -> Outcome {
    let telling: Vec<&str> = said.lines().filter(|l| !l.contains("info:") && !l.contains("debug:")).collect();
    let telling = telling.join("; ");
    match code {
        Some(0) => Outcome::Passed,
        // No resources for it; or not for this machine.
        Some(3 | 4) => Outcome::Skipped(
            said.lines().find(|l| l.contains("skip")).unwrap_or("no reason given").to_owned(),
        ),
        Some(code) => Outcome::Failed(format!("exit status {code}: {telling}")),
        None => Outcome::Failed(format!("ended by a signal: {telling}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_status_decides() {
        assert_eq!(outcome(Some(0), "stress-ng: info: passed"), Outcome::Passed);
        assert!(matches!(outcome(Some(4), "x"), Outcome::Skipped(_)));
        let bad = "stress-ng: info: [1] x\nstress-ng: fail: [2] xattr: wrong";
        assert_eq!(
            outcome(Some(2), bad),
            Outcome::Failed("exit status 2: stress-ng: fail: [2] xattr: wrong".into())
        );
    }
}
