//! `hfcache quota …` and `hfcache du`.

use super::{Which, one_or_all, owner_name, say, say_json};
use crate::accounts::Database;
use crate::admin::Request;
use crate::size;
use crate::status::show::bytes as human;
use crate::usage::{Bound, Gauge, Shown, Used, Whose};
use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Whose quota.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct Target {
    /// Directory in the mount: limits it and everything below
    #[arg(value_name = "PATH")]
    path: Option<PathBuf>,
    /// User (a name or a number): limits what the user owns
    #[arg(long, value_name = "USER")]
    uid: Option<String>,
    /// Group (a name or a number): limits what belongs to the group
    #[arg(long, value_name = "GROUP")]
    gid: Option<String>,
}

impl Target {
    fn whose(&self) -> Result<Whose> {
        Ok(match (&self.path, &self.uid, &self.gid) {
            (Some(path), ..) => Whose::Path(Which::path(path)?),
            (_, Some(user), _) => Whose::Uid(Database::Passwd.id(user)?),
            (.., Some(group)) => Whose::Gid(Database::Group.id(group)?),
            _ => anyhow::bail!("say whose quota: a PATH, --uid or --gid"),
        })
    }
}

fn bytes_bound(text: &str) -> Result<Bound, String> {
    if text == "none" { Ok(Bound::Lift) } else { size::parse(text).map(Bound::Most) }
}

fn inodes_bound(text: &str) -> Result<Bound, String> {
    match text {
        "none" => Ok(Bound::Lift),
        _ => text
            .parse()
            .map(Bound::Most)
            .map_err(|_| format!("{text:?} is no number of inodes, and not none")),
    }
}

/// `hfcache quota …`.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Limit what a directory, a user or a group may use
    #[command(
        after_help = "What would go past a limit fails with EDQUOT (\"Disk quota exceeded\"); deleting always works. A limit \
        that is not named stays as it is.\n\n\
        EXAMPLES:\n  \
        hfcache quota set /hf/hub --bytes 10TiB\n  \
        hfcache quota set --uid alice --bytes 500GiB --inodes 1000000\n  \
        hfcache quota set --gid students --inodes none"
    )]
    Set {
        #[command(flatten)]
        target: Target,
        /// Most bytes: 4096, 500MB, 10GiB, 1.5TiB; or none
        #[arg(long, value_name = "SIZE", value_parser = bytes_bound, required_unless_present = "inodes")]
        bytes: Option<Bound>,
        /// Most files, directories and links; or none
        #[arg(long, value_name = "N", value_parser = inodes_bound)]
        inodes: Option<Bound>,
        #[command(flatten)]
        which: Which,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Show what a directory, a user or a group uses and may use
    #[command(after_help = "EXAMPLES:\n  hfcache quota get /hf/hub\n  hfcache quota get --uid alice --json")]
    Get {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        which: Which,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// List quotas
    #[command(after_help = "EXAMPLE:\n  hfcache quota ls --json")]
    Ls {
        #[command(flatten)]
        which: Which,
        /// Print one JSON array
        #[arg(long)]
        json: bool,
    },
    /// Take both limits of a directory, a user or a group away
    #[command(after_help = "EXAMPLES:\n  hfcache quota clear /hf/hub\n  hfcache quota clear --gid students")]
    Clear {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        which: Which,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

impl Command {
    pub(super) fn run(self) -> Result<u8> {
        let (request, which, json) = match self {
            Self::Set { target, bytes, inodes, which, json } => {
                let (bytes, inodes) = (bytes.unwrap_or(Bound::Keep), inodes.unwrap_or(Bound::Keep));
                (Request::QuotaSet { whose: target.whose()?, bytes, inodes }, which, json)
            }
            Self::Clear { target, which, json } => {
                let whose = target.whose()?;
                (Request::QuotaSet { whose, bytes: Bound::Lift, inodes: Bound::Lift }, which, json)
            }
            Self::Get { target, which, json } => (Request::QuotaGet { whose: target.whose()? }, which, json),
            Self::Ls { which, json } => (Request::QuotaList, which, json),
        };
        let all = request == Request::QuotaList;
        let answer = which.ask(request)?;
        if json {
            return say_json(&answer).map(|()| 0);
        }
        let quotas: Vec<Shown> = one_or_all(answer, all)?;
        if quotas.is_empty() {
            say("no quotas; set one with `hfcache quota set PATH --bytes SIZE`")?;
            return Ok(0);
        }
        say(format!("{:>22}  {:>22}  WHOSE", "BYTES", "INODES"))?;
        for quota in quotas {
            let whose = match &quota {
                Shown { path: Some(path), .. } => path.clone(),
                Shown { uid, gid, .. } => owner_name(*uid, *gid),
            };
            let (bytes, inodes) = (of(quota.bytes, human), of(quota.inodes, |n| n.to_string()));
            say(format!("{bytes:>22}  {inodes:>22}  {whose}"))?;
        }
        Ok(0)
    }
}

fn of(gauge: Gauge, show: impl Fn(u64) -> String) -> String {
    let limit = gauge.limit.map_or_else(|| "no limit".into(), &show);
    format!("{} of {limit}", show(gauge.used))
}

/// `hfcache du`.
#[derive(Debug, Args)]
#[command(
    after_help = "Answered from counters, in one look-up a path, however much is below it. Counted are the bytes that \
    are allocated, so without holes, of what was closed or synced.\n\n\
    EXAMPLES:\n  \
    hfcache du /hf/hub\n  \
    hfcache du /hf/hub/* --bytes | sort -n"
)]
pub(super) struct Du {
    /// Files and directories in the mount
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,
    /// Print exact numbers of bytes
    #[arg(long, short)]
    bytes: bool,
    #[command(flatten)]
    which: Which,
    /// Print one JSON array
    #[arg(long)]
    json: bool,
}

impl Du {
    pub(super) fn run(self) -> Result<u8> {
        let paths = self.paths.iter().map(|path| Which::path(path)).collect::<Result<_>>()?;
        let answer = self.which.ask(Request::Du { paths })?;
        if self.json {
            return say_json(&answer).map(|()| 0);
        }
        let used: Vec<Used> = serde_json::from_value(answer).context("read the node's answer")?;
        for (said, used) in self.paths.iter().zip(used) {
            let bytes = if self.bytes { used.bytes.to_string() } else { human(used.bytes) };
            say(format!("{bytes:>12}  {:>10}  {}", used.inodes, said.display()))?;
        }
        Ok(0)
    }
}
