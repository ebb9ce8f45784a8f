//! Runs the crate `fsx`, the file-system exerciser, on one file.

use super::tools;
use crate::node;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The pinned version.
const VERSION: &str = "0.3.2";

/// Operations of one process. It never takes a mapping it reads from away again, so that after more than this
/// it has so many that each call is slow, and in the end may have no more.
const ROUND: u64 = 25_000;

/// How it does input and output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `pread`, `pwrite` and `sendfile`.
    Buffered,
    /// Mostly mappings.
    Mapped,
}

/// The program.
#[derive(Debug)]
pub struct Fsx {
    program: PathBuf,
    scratch: PathBuf,
}

impl Fsx {
    /// Installs it; what it keeps of a failure goes to `scratch`.
    pub fn new(scratch: &Path) -> Self {
        Self { program: tools::from_crates_io("fsx", VERSION), scratch: scratch.into() }
    }

    /// So many operations on a file in a directory that begins anew, with another seed, every 25,000 of them.
    ///
    /// # Errors
    /// With the seed and what it said, when a byte was wrong.
    pub fn run(
        &self,
        mode: Mode,
        dir: &Path,
        operations: u64,
        seed: u64,
        patience: Duration,
    ) -> Result<(), String> {
        let config = self.scratch.join(format!("fsx-{mode:?}.toml"));
        std::fs::write(&config, configuration(mode)).expect("write a configuration");
        for (round, done) in (0..operations).step_by(ROUND as usize).enumerate() {
            let seed = seed.wrapping_add(round as u64);
            self.round(&config, dir, ROUND.min(operations - done), seed, patience)?;
        }
        Ok(())
    }

    fn round(
        &self,
        config: &Path,
        dir: &Path,
        operations: u64,
        seed: u64,
        patience: Duration,
    ) -> Result<(), String> {
        let mut command = Command::new(&self.program);
        command.arg("-f").arg(config).arg("-N").arg(operations.to_string()).arg("-S").arg(seed.to_string());
        command.arg("-P").arg(&self.scratch).arg(dir.join("fsx")).env("NO_COLOR", "1");
        let output = node::run(command, patience)
            .ok_or_else(|| format!("seed {seed} (HFCACHE_SEED): fsx does not end within {patience:?}"))?;
        if output.status.success() {
            return Ok(());
        }
        let said =
            String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        let lines: Vec<&str> = said.lines().collect();
        let first = lines.iter().take(30).copied();
        let last = lines.iter().skip(30.max(lines.len().saturating_sub(60))).copied();
        let told: Vec<&str> = first.chain(last).collect();
        Err(format!("seed {seed} (HFCACHE_SEED): fsx: {}\n{}", output.status, told.join("\n")))
    }
}

fn configuration(mode: Mode) -> String {
    let (maps, plain) = match mode {
        Mode::Buffered => (0, 10),
        Mode::Mapped => (10, 3),
    };
    // A mapping's edge is at a page, so that the file need not be large to have many. An operation of no bytes would
    // be taken for one that is not supported: posix_fallocate says EINVAL to it, everywhere.
    format!(
        "flen = 300000\n[opsize]\nmin = 1\nmax = 65536\n[weights]\nclose_open = 1\ninvalidate = {}\nmapread = {maps}\nmapwrite = \
         {maps}\nread = {plain}\nwrite = {plain}\ntruncate = 3\nfsync = 0.5\nfdatasync = 0.5\nposix_fallocate = \
         1\npunch_hole = 2\nsendfile = {}\nposix_fadvise = 1\ncopy_file_range = 2\n",
        maps / 10,
        plain / 5
    )
}
