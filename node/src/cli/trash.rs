//! `hfcache trash …`.

use super::{Which, say, say_json};
use crate::accounts::Database;
use crate::admin::Request;
use crate::status::show::bytes as human;
use crate::time;
use crate::trash::{Failed, Held, Restored, Shown, settled};
use anyhow::{Context, Result, bail};
use clap::Subcommand;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Seconds for which what is deleted is kept; 0 for `off`.
pub(super) fn retention(text: &str) -> Result<u64, String> {
    match text {
        "off" => Ok(0),
        _ => time::parse_span(text).map(|span| span.as_secs()).map_err(|why| format!("{why}; or off")),
    }
}

/// `hfcache trash …`.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List what was deleted and is kept, newest last
    #[command(
        after_help = "A path is one in the mount, or one from the root of the tree. A directory is listed, as \
        everything that was in it.\n\n\
        EXAMPLES:\n  \
        hfcache trash ls\n  \
        hfcache trash ls /hf/hub/models--gpt2 --json"
    )]
    Ls {
        /// Only what was there, or below
        #[arg(value_name = "PATH")]
        path: Option<PathBuf>,
        #[command(flatten)]
        which: Which,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Give what was deleted its names back
    #[command(
        after_help = "Restored is what was deleted last at PATH, and if that was a directory all that was deleted below and is \
        kept still, of each name the newest; directories above that are gone are made again, too. A file comes back as \
        it was, owner, mode, times and attributes included; of a file with several hard links the last name comes \
        back. Nothing that is there is overwritten: it is named, the rest is restored, and the exit status is 1.\n\n\
        EXAMPLES:\n  \
        hfcache trash restore /hf/hub/models--gpt2 --dry-run\n  \
        hfcache trash restore /hf/hub/models--gpt2\n  \
        hfcache trash restore /hf/hub/models--gpt2 --to /hf/hub/gpt2-as-it-was"
    )]
    Restore {
        /// What was deleted
        #[arg(value_name = "PATH")]
        path: PathBuf,
        /// Put it there instead; the directory above must be there
        #[arg(long, value_name = "PATH")]
        to: Option<PathBuf>,
        /// Only say what would be restored
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        which: Which,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Delete for good what is in the trash
    #[command(
        after_help = "There is no way back, so it wants --yes, or --dry-run. Space that was taken on the disks \
        is free some ten seconds later.\n\n\
        EXAMPLES:\n  \
        hfcache trash empty --dry-run\n  \
        hfcache trash empty /hf/hub/models--gpt2 --yes\n  \
        hfcache trash empty --older-than 12h --yes"
    )]
    Empty {
        /// Only what was there, or below
        #[arg(value_name = "PATH")]
        path: Option<PathBuf>,
        /// Only what was deleted so long ago: 90s, 30m, 24h, 7d
        #[arg(long, value_name = "SPAN", value_parser = time::parse_span)]
        older_than: Option<Duration>,
        /// Only say what would be deleted
        #[arg(long)]
        dry_run: bool,
        /// Do it
        #[arg(long, required_unless_present = "dry_run", conflicts_with = "dry_run")]
        yes: bool,
        #[command(flatten)]
        which: Which,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Show or set for how long the cluster keeps what is deleted
    #[command(
        after_help = "Off in a new cluster: what is in a cache can be downloaded again, and people delete to make room. While it \
        is on, what was deleted takes room, and counts for its owner's quota, until the time is over or a disk runs \
        short, or there are a million entries; then the oldest goes first. A new time holds for what is in the trash already. Turning it off deletes for good what is in the trash.\n\n\
        EXAMPLES:\n  \
        hfcache trash retention\n  \
        hfcache trash retention 1d\n  \
        hfcache trash retention off"
    )]
    Retention {
        /// 90s, 30m, 24h, 7d; or off
        #[arg(value_name = "SPAN", value_parser = retention)]
        set: Option<u64>,
        #[command(flatten)]
        which: Which,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

/// A path as it may be shown on a terminal: anybody can give a file a name that would change what root sees there.
fn plain(path: &str) -> String {
    let escaped = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    path.chars().map(escaped).collect()
}

/// A path as the node is asked about it.
fn path(path: &Path) -> Result<PathBuf> {
    let settled = settled(path);
    if settled.to_str().is_none() {
        bail!("{} is no UTF-8; name a directory above it", settled.display());
    }
    Ok(settled)
}

fn one_or_none(said: Option<&PathBuf>) -> Result<Option<PathBuf>> {
    said.map(|said| path(said)).transpose()
}

fn kept(retention: u64) -> String {
    match retention {
        0 => "the trash is off; `hfcache trash retention 1d` turns it on".into(),
        seconds => format!("what is deleted is kept for {}", time::span(seconds)),
    }
}

fn much(entries: u64, bytes: u64) -> String {
    format!("{entries} {} ({})", if entries == 1 { "entry" } else { "entries" }, human(bytes))
}

impl Command {
    pub(super) fn run(self) -> Result<u8> {
        match self {
            Self::Ls { path, which, json } => list(path.as_ref(), &which, json),
            Self::Restore { path: from, to, dry_run, which, json } => {
                let to = one_or_none(to.as_ref())?;
                restore(Request::TrashRestore { path: path(&from)?, to, dry_run }, dry_run, &which, json)
            }
            Self::Empty { path, older_than, dry_run, yes: _, which, json } => {
                let path = one_or_none(path.as_ref())?;
                let older_seconds = older_than.map_or(0, |span| span.as_secs());
                let answer = which.ask(Request::TrashEmpty { path, older_seconds, dry_run })?;
                if json {
                    return say_json(&answer).map(|()| 0);
                }
                let gone: Held = serde_json::from_value(answer).context("read the node's answer")?;
                let much = much(gone.entries, gone.bytes);
                say(if dry_run {
                    format!("Would delete for good: {much}.")
                } else {
                    format!("Deleted for good: {much}.")
                })?;
                Ok(0)
            }
            Self::Retention { set, which, json } => {
                let answer = which.ask(Request::TrashRetention { set })?;
                if json {
                    return say_json(&answer).map(|()| 0);
                }
                let seconds = answer["retention"].as_u64().context("read the node's answer")?;
                say(if seconds == 0 { "off".into() } else { time::span(seconds) })?;
                Ok(0)
            }
        }
    }
}

fn list(path: Option<&PathBuf>, which: &Which, json: bool) -> Result<u8> {
    let path = one_or_none(path)?;
    let mut all: Vec<Value> = Vec::new();
    let mut names: BTreeMap<u32, String> = BTreeMap::new();
    let mut trouble = None;
    let answer = which.ask_watching(Request::TrashList { path }, |page| {
        let told = if json { keep(&mut all, page) } else { show(page, &mut names) };
        trouble = trouble.take().or(told.err());
    })?;
    if let Some(trouble) = trouble {
        return Err(trouble);
    }
    if json {
        let mut answer = answer;
        answer["list"] = Value::Array(all);
        return say_json(&answer).map(|()| 0);
    }
    let held: Held = serde_json::from_value(answer).context("read the node's answer")?;
    say(format!("{} in the trash; {}", much(held.entries, held.bytes), kept(held.retention)))?;
    Ok(0)
}

fn keep(all: &mut Vec<Value>, page: Value) -> Result<()> {
    match page {
        Value::Array(rows) => all.extend(rows),
        other => bail!("the node told something strange: {other}"),
    }
    Ok(())
}

fn show(page: Value, names: &mut BTreeMap<u32, String>) -> Result<()> {
    if names.is_empty() {
        say(format!("{:<20}  {:>10}  {:<12}  PATH", "DELETED", "SIZE", "OWNER"))?;
    }
    for row in serde_json::from_value::<Vec<Shown>>(page).context("read the node's answer")? {
        let owner = names.entry(row.uid).or_insert_with(|| Database::Passwd.shown(row.uid));
        let is_dir = row.kind == "directory";
        let (size, slash) = if is_dir { ("-".into(), "/") } else { (human(row.size), "") };
        say(format!("{:<20}  {size:>10}  {owner:<12}  {}{slash}", row.deleted, plain(&row.path)))?;
    }
    Ok(())
}

fn restore(request: Request, dry_run: bool, which: &Which, json: bool) -> Result<u8> {
    let mut failed: Vec<Value> = Vec::new();
    let mut answer = which.ask_watching(request, |one| {
        // Between these it tells how far it is.
        let Ok(Failed { path, why }) = serde_json::from_value(one.clone()) else { return };
        if json {
            failed.push(one);
        } else {
            eprintln!("hfcache: {}: {why}", plain(&path));
        }
    })?;
    let done: Restored = serde_json::from_value(answer.clone()).context("read the node's answer")?;
    let code = u8::from(done.failed > 0);
    if json {
        answer["failures"] = json!(failed);
        return say_json(&answer).map(|()| code);
    }
    let Restored { files, directories, bytes, failed } = done;
    let what = format!("{files} files ({}) and {directories} directories", human(bytes));
    let left = if failed == 0 { String::new() } else { format!("; {failed} not") };
    say(format!("{} {what}{left}.", if dry_run { "Would restore" } else { "Restored" }))?;
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_nothing_to_a_terminal() {
        assert_eq!(plain("/hf/ü b\u{1b}[2J\n"), "/hf/ü b\\u{1b}[2J\\n");
    }

    #[test]
    fn spans_of_retention() {
        assert_eq!((retention("off"), retention("1d"), retention("90s")), (Ok(0), Ok(86_400), Ok(90)));
        assert!(retention("0s").is_err() && retention("on").unwrap_err().contains("or off"));
    }
}
