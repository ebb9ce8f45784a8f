//! `hfcache demo`.

use anyhow::Result;
use clap::Args;
use std::path::PathBuf;

/// `hfcache demo`.
#[derive(Debug, Args)]
#[command(
    long_about = "Show a three-node cluster at work on this machine: three real nodes with three mounts share a \
                  Hugging Face cache, node 2 is killed, everything is read again, and node 2 comes back. Needs \
                  /dev/fuse and root (or fusermount3); takes less than a minute and leaves nothing behind.",
    after_help = "EXAMPLES:\n  \
        hfcache demo\n  \
        hfcache demo --from ~/.cache/huggingface/hub --keep"
)]
pub(super) struct Demo {
    /// Hugging Face cache to copy in (the directory with models--*); else a small one is made
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    /// Leave the cluster running at the end, and print how to use and how to stop it
    #[arg(long)]
    keep: bool,
    /// Where to put data and mounts: a directory that is not there or empty [default: a new one in $TMPDIR]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl Demo {
    pub(super) fn run(self) -> Result<u8> {
        crate::demo::run(crate::demo::Options { from: self.from, keep: self.keep, dir: self.dir }).map(|()| 0)
    }
}
