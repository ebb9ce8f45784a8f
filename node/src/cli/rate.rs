//! `hfcache rate …`.

use super::{Which, one_or_all, owner_name, say, say_json};
use crate::accounts::Database;
use crate::admin::Request;
use crate::rate::{Change, Shown};
use crate::size;
use crate::status::show::bytes as human;
use crate::usage::{Bound, Whose};
use anyhow::Result;
use clap::{Args, Subcommand};

/// Whose rate.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct Target {
    /// User (a name or a number): limits what the user's processes do
    #[arg(long, value_name = "USER")]
    uid: Option<String>,
    /// Group (a name or a number): limits processes whose primary group it is, all together
    #[arg(long, value_name = "GROUP")]
    gid: Option<String>,
}

impl Target {
    fn whose(&self) -> Result<Whose> {
        Ok(match (&self.uid, &self.gid) {
            (Some(user), _) => Whose::Uid(Database::Passwd.id(user)?),
            (_, Some(group)) => Whose::Gid(Database::Group.id(group)?),
            _ => anyhow::bail!("say whose rate: --uid or --gid"),
        })
    }
}

fn bytes_bound(text: &str) -> Result<Bound, String> {
    let text = text.strip_suffix("/s").unwrap_or(text);
    if text == "none" { Ok(Bound::Lift) } else { size::parse(text).and_then(most) }
}

fn ops_bound(text: &str) -> Result<Bound, String> {
    let text = text.strip_suffix("/s").unwrap_or(text);
    match text {
        "none" => Ok(Bound::Lift),
        _ => text
            .parse()
            .map_err(|_| format!("{text:?} is no number of requests, and not none"))
            .and_then(most),
    }
}

fn most(rate: u64) -> Result<Bound, String> {
    if rate == 0 { Err("a rate of 0 would wait for ever".into()) } else { Ok(Bound::Most(rate)) }
}

/// `hfcache rate …`.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Limit how fast a user or a group may go
    #[command(
        group = clap::ArgGroup::new("what").required(true).multiple(true).args(["read", "write", "ops"]),
        after_help = "Each node keeps to it by itself: on ten nodes a user may go ten times as fast. What is over the limit \
        waits, and fails with nothing. Bytes that the kernel has in its page cache are not counted. A limit that is not \
        named stays as it is.\n\n\
        EXAMPLES:\n  \
        hfcache rate set --uid alice --read 500MiB --write 200MiB\n  \
        hfcache rate set --gid students --ops 2000\n  \
        hfcache rate set --uid alice --write none"
    )]
    Set {
        #[command(flatten)]
        target: Target,
        /// Most bytes read in a second: 500MB, 1GiB; or none
        #[arg(long, value_name = "SIZE", value_parser = bytes_bound)]
        read: Option<Bound>,
        /// Most bytes written in a second; or none
        #[arg(long, value_name = "SIZE", value_parser = bytes_bound)]
        write: Option<Bound>,
        /// Most requests in a second, of any kind; or none
        #[arg(long, value_name = "N", value_parser = ops_bound)]
        ops: Option<Bound>,
        #[command(flatten)]
        which: Which,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Show how fast a user or a group may go
    #[command(after_help = "EXAMPLE:\n  hfcache rate get --uid alice --json")]
    Get {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        which: Which,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// List rates
    #[command(after_help = "EXAMPLE:\n  hfcache rate ls --json")]
    Ls {
        #[command(flatten)]
        which: Which,
        /// Print one JSON array
        #[arg(long)]
        json: bool,
    },
    /// Take all limits of a user's or a group's speed away
    #[command(after_help = "EXAMPLE:\n  hfcache rate clear --gid students")]
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
            Self::Set { target, read, write, ops, which, json } => {
                let or_keep = |bound: Option<Bound>| bound.unwrap_or(Bound::Keep);
                let change = Change { read: or_keep(read), write: or_keep(write), ops: or_keep(ops) };
                (Request::RateSet { whose: target.whose()?, change }, which, json)
            }
            Self::Clear { target, which, json } => {
                let change = Change { read: Bound::Lift, write: Bound::Lift, ops: Bound::Lift };
                (Request::RateSet { whose: target.whose()?, change }, which, json)
            }
            Self::Get { target, which, json } => (Request::RateGet { whose: target.whose()? }, which, json),
            Self::Ls { which, json } => (Request::RateList, which, json),
        };
        let all = request == Request::RateList;
        let answer = which.ask(request)?;
        if json {
            return say_json(&answer).map(|()| 0);
        }
        let rates: Vec<Shown> = one_or_all(answer, all)?;
        if rates.is_empty() {
            say("no rates; set one with `hfcache rate set --uid USER --read SIZE`")?;
            return Ok(0);
        }
        say(format!("{:>14}  {:>14}  {:>12}  WHOSE", "READ", "WRITE", "REQUESTS"))?;
        for rate in rates {
            let whose = owner_name(rate.uid, rate.gid);
            let (read, write) = (per_second(rate.read, human), per_second(rate.write, human));
            let ops = per_second(rate.ops, |n| n.to_string());
            say(format!("{read:>14}  {write:>14}  {ops:>12}  {whose}"))?;
        }
        Ok(0)
    }
}

fn per_second(limit: Option<u64>, show: impl Fn(u64) -> String) -> String {
    limit.map_or_else(|| "no limit".into(), |limit| format!("{}/s", show(limit)))
}
