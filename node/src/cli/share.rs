//! `hfcache share …`.

use super::{Which, say, say_json};
use crate::accounts::Database;
use crate::admin::Request;
use crate::share::{Opened, Shared};
use anyhow::{Context, Result};
use clap::Subcommand;
use std::path::PathBuf;

/// `hfcache share …`.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a directory a shared tree: what a user makes in it, every other user can read, change and delete
    #[command(
        after_help = "Whatever umask or chmod a program uses, files in the tree are readable and writable for all users \
        (or for the members of --group, and nobody else), directories too. What is in the tree already is opened as \
        well, once; a directory that is moved in later is opened by setting the policy again. A tree inside a shared tree \
        may have a policy of its own: the nearest one holds.\n\n\
        EXAMPLES:\n  \
        hfcache share set /hf/hub\n  \
        hfcache share set /hf/hub/models--meta-llama--Llama-3.1-8B --group llama-users\n  \
        hfcache share set /hf/hub --dry-run"
    )]
    Set {
        /// Directory in the mount
        #[arg(value_name = "PATH")]
        path: PathBuf,
        /// Only the members of this group (a name or a number); everything in the tree belongs to it
        #[arg(long, value_name = "GROUP")]
        group: Option<String>,
        /// Leave what is in the tree already as it is
        #[arg(long)]
        keep: bool,
        /// Only say what would be opened
        #[arg(long, conflicts_with = "keep")]
        dry_run: bool,
        #[command(flatten)]
        which: Which,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// List shared trees
    #[command(after_help = "EXAMPLE:\n  hfcache share ls --json")]
    Ls {
        #[command(flatten)]
        which: Which,
        /// Print one JSON array
        #[arg(long)]
        json: bool,
    },
    /// Make a shared tree an ordinary directory again; what is in it keeps its modes
    #[command(after_help = "EXAMPLE:\n  hfcache share clear /hf/hub")]
    Clear {
        /// Directory in the mount
        #[arg(value_name = "PATH")]
        path: PathBuf,
        #[command(flatten)]
        which: Which,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

impl Command {
    pub(super) fn run(self) -> Result<u8> {
        match self {
            Self::Set { path, group, keep, dry_run, which, json } => {
                let group = group.as_deref().map(|g| Database::Group.id(g)).transpose()?;
                let path = Which::path(&path)?;
                let request = Request::ShareSet { path: path.clone(), group, keep, dry_run };
                let answer = which.ask(request)?;
                if json {
                    return say_json(&answer).map(|()| 0);
                }
                let Opened { seen, opened } =
                    serde_json::from_value(answer).context("read the node's answer")?;
                let (path, whose) = (path.display(), whose(group));
                if dry_run {
                    say(format!(
                        "{path} would be shared by {whose}; {opened} of {seen} entries would be opened."
                    ))?;
                } else if keep {
                    say(format!("{path} is shared by {whose}."))?;
                } else {
                    say(format!("{path} is shared by {whose}; {opened} of {seen} entries were opened."))?;
                }
            }
            Self::Ls { which, json } => {
                let answer = which.ask(Request::ShareList)?;
                if json {
                    return say_json(&answer).map(|()| 0);
                }
                let shared: Vec<Shared> = serde_json::from_value(answer).context("read the node's answer")?;
                if shared.is_empty() {
                    say("no shared trees; make one with `hfcache share set PATH`")?;
                }
                for Shared { path, group } in shared {
                    say(format!("{path}  {}", whose(group)))?;
                }
            }
            Self::Clear { path, which, json } => {
                let path = Which::path(&path)?;
                let answer = which.ask(Request::ShareClear { path: path.clone() })?;
                if json {
                    return say_json(&answer).map(|()| 0);
                }
                say(format!(
                    "{} is no shared tree any more; what is in it keeps its modes.",
                    path.display()
                ))?;
            }
        }
        Ok(0)
    }
}

fn whose(group: Option<u32>) -> String {
    group.map_or_else(|| "all users".into(), |gid| format!("group {}", Database::Group.shown(gid)))
}
