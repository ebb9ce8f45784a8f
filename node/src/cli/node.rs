//! `hfcache node …`.

use super::{PATIENCE, Which, say, say_json};
use crate::admin::Request;
use crate::admin::client::Trouble;
use crate::config::{self, Config, LogFormat};
use crate::data::DataDir;
use crate::status::show::bytes;
use crate::{found, leave, log, preflight, run};
use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// `hfcache node …`.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a new cluster with this node as its first
    #[command(after_help = "Prints the line with which other nodes join, then runs in the foreground.\n\n\
        EXAMPLES:\n  \
        hfcache node init --data /var/lib/hfcache --mount /hf\n  \
        hfcache node init --data /var/lib/hfcache --mount /hf --listen 10.0.0.1:7946 --no-run\n  \
        hfcache node init --data /var/lib/hfcache --mount /hf --trash 1d")]
    Init {
        #[command(flatten)]
        make: Make,
        /// For how long the cluster keeps what is deleted: 12h, 7d; or off
        #[arg(long, value_name = "SPAN", default_value = "off", value_parser = super::trash::retention)]
        trash: u64,
    },
    /// Join a cluster with a token from `hfcache token create`
    #[command(after_help = "Repeating a join that failed half-way is safe: it is the same node.\n\n\
        EXAMPLES:\n  \
        hfcache node join hfc1.AbC... --data /var/lib/hfcache --mount /hf\n  \
        hfcache node join hfc1.AbC... --data /var/lib/hfcache --mount /hf --no-storage")]
    Join {
        /// Join token
        #[arg(value_name = "TOKEN")]
        token: String,
        #[command(flatten)]
        make: Make,
        /// Give no disk: only mount the tree
        #[arg(long, conflicts_with = "disk")]
        no_storage: bool,
    },
    /// Run a node that was made before
    #[command(
        after_help = "Ends at SIGTERM or SIGINT: what was written is made durable, the tree is unmounted, and \
        the exit status is 0. A second signal ends it at once.\n\n\
        EXAMPLE:\n  hfcache node run --data /var/lib/hfcache"
    )]
    Run {
        /// Data directory of the node
        #[arg(long, value_name = "DIR")]
        data: PathBuf,
        #[command(flatten)]
        logs: Logs,
        /// End when the process that started this one does
        #[arg(long, hide = true)]
        with_parent: bool,
    },
    /// Say how the node of this machine, and its cluster, is (as `hfcache status`)
    #[command(after_help = "Exit status: 0 healthy, 1 degraded, 2 unreachable.\n\n\
        EXAMPLE:\n  hfcache node status --data /var/lib/hfcache --json")]
    Status(super::status::Status),
    /// Take this node out of its cluster: hand its shards over, be forgotten, stop
    #[command(
        after_help = "Interrupting this command does not end the leaving: it goes on until `hfcache node leave` \
        is said again and ends it.\n\n\
        EXAMPLES:\n  hfcache node leave --dry-run\n  hfcache node leave --data /var/lib/hfcache"
    )]
    Leave {
        #[command(flatten)]
        which: Which,
        /// Leave even if redundancy is lost by it
        #[arg(long)]
        force: bool,
        /// Only say what would happen
        #[arg(long)]
        dry_run: bool,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

/// What `init` and `join` need to know.
#[derive(Clone, Debug, Args)]
pub(super) struct Make {
    /// Directory for everything the node keeps; made if missing
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Directory where the tree appears; made if missing, else it must be empty
    #[arg(long, value_name = "DIR")]
    mount: PathBuf,
    /// Address where the other nodes reach this one; gossip takes the next port [default: this machine's first
    /// address that is not loopback, port 7946]
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<SocketAddr>,
    /// Address of the Hub endpoint; kept for later, this version serves nothing there
    #[arg(long, value_name = "IP:PORT", default_value = config::DEFAULT_HTTP)]
    http: SocketAddr,
    /// Name for people [default: the host name]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Failure domain: nodes of one domain (rack, room) may fail together
    #[arg(long, value_name = "NAME", default_value = "")]
    domain: String,
    /// Directory for shards, one a disk; may be repeated [default: DATA/shards]
    #[arg(long, value_name = "DIR")]
    disk: Vec<PathBuf>,
    /// Refuse every change in this node's mount
    #[arg(long)]
    read_only: bool,
    /// Show only this directory of the tree, which must be there
    #[arg(long, value_name = "PATH")]
    subdir: Option<PathBuf>,
    /// Whose rights to take away: the anonymous user's (mount.anon_uid) are left
    #[arg(long, value_name = "WHO", value_enum, default_value_t)]
    squash: config::Squash,
    /// Only make the node; `hfcache node run --data DIR` starts it
    #[arg(long)]
    no_run: bool,
    /// Print one JSON object instead of words
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    logs: Logs,
}

/// How to log.
#[derive(Clone, Debug, Args)]
pub(super) struct Logs {
    /// Level of the log on stderr: error, warn, info, debug, trace, or a filter; HFCACHE_LOG wins
    #[arg(long, value_name = "LEVEL")]
    log: Option<String>,
    /// Form of the log
    #[arg(long, value_name = "FORM", value_enum)]
    log_format: Option<LogFormat>,
}

impl Logs {
    fn start(&self, config: &config::Log) -> Result<()> {
        let level = self.log.as_deref().unwrap_or(&config.level);
        log::start(level, self.log_format.unwrap_or(config.format))
    }
}

impl Make {
    fn config(&self, storage: bool) -> Result<Config> {
        let disks = self.disk.iter().map(|d| config::absolute(d)).collect::<Result<_>>()?;
        let others = rustix::process::geteuid().is_root() || preflight::user_allow_other();
        let mut mount = config::Mount::plain(config::absolute(&self.mount)?, others);
        mount.read_only = self.read_only;
        mount.subdir = self.subdir.clone().unwrap_or_default();
        mount.squash = self.squash;
        let config = Config {
            name: self.name.clone().unwrap_or_else(config::host_name),
            domain: self.domain.clone(),
            listen: self.listen.unwrap_or_else(config::default_listen),
            http: self.http,
            storage,
            disks,
            mount,
            log: config::Log::default(),
        };
        // The same checks as at every start, before anything is made.
        Config::parse(&toml::to_string(&config)?)
    }

    fn data(&self) -> Result<DataDir> {
        Ok(DataDir::new(config::absolute(&self.data)?))
    }

    fn run(&self, data: &DataDir) -> Result<u8> {
        let config = Config::load(data)?;
        self.logs.start(&config.log)?;
        run::run(data, config)
    }
}

impl Command {
    pub(super) fn run(self) -> Result<u8> {
        match self {
            Self::Init { make, trash } => init(&make, trash),
            Self::Join { token, make, no_storage } => join(&token, &make, !no_storage),
            Self::Run { data, logs, with_parent } => {
                if with_parent {
                    run::end_with_parent()?;
                }
                let data = DataDir::new(config::absolute(&data)?);
                data.check()?;
                let config = Config::load(&data)?;
                logs.start(&config.log)?;
                run::run(&data, config)
            }
            Self::Status(status) => status.run(),
            Self::Leave { which, force, dry_run, json } => leave_cluster(&which, force, dry_run, json),
        }
    }
}

fn init(make: &Make, trash: u64) -> Result<u8> {
    let (data, config) = (make.data()?, make.config(true)?);
    let made = found::init(&data, &config, trash)?;
    let token = made.token.unwrap_or_default();
    let join =
        format!("hfcache node join {token} --data {} --mount {}", shell(&make.data), shell(&make.mount));
    if make.json {
        say_json(&serde_json::json!({
            "cluster": made.cluster, "node": made.node, "token": token, "join": join,
        }))?;
    } else {
        say(format!("Made cluster {} with this node ({}, {}).", made.cluster, config.name, config.listen))?;
        say("On each further node run (the token is a secret, good for 24 hours):\n")?;
        say(format!("  {join}\n"))?;
        if config.listen.ip().is_loopback() {
            say(
                "Other machines cannot reach 127.0.0.1: give --listen IP:PORT for a cluster of several machines.",
            )?;
        }
        if make.no_run {
            say(format!("Start this node:\n\n  hfcache node run --data {}", shell(data.path())))?;
        }
    }
    if make.no_run { Ok(0) } else { make.run(&data) }
}

fn join(token: &str, make: &Make, storage: bool) -> Result<u8> {
    let (data, config) = (make.data()?, make.config(storage)?);
    let made = found::join(&data, &config, token)?;
    if make.json {
        say_json(&serde_json::json!({ "cluster": made.cluster, "node": made.node }))?;
    } else {
        say(format!(
            "Joined cluster {} as node {} ({}, {}).",
            made.cluster, made.node, config.name, config.listen
        ))?;
        if make.no_run {
            say(format!("Start it:\n\n  hfcache node run --data {}", shell(data.path())))?;
        }
    }
    if make.no_run { Ok(0) } else { make.run(&data) }
}

/// Quoted for a shell where that is needed.
fn shell(path: &std::path::Path) -> String {
    let text = path.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.into_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

fn leave_cluster(which: &Which, force: bool, dry_run: bool, json: bool) -> Result<u8> {
    let data = which.resolve()?;
    let bar = ProgressBar::new_spinner();
    bar.set_style(ProgressStyle::with_template("{spinner} {msg} {elapsed}")?);
    bar.set_message("leave the cluster");
    bar.enable_steady_tick(Duration::from_millis(100));
    let mut most = 0;
    let request = Request::Leave { force, dry_run };
    let answer = crate::admin::client::ask(&data, request, PATIENCE, |value| {
        let Ok(now) = serde_json::from_value::<leave::Progress>(value) else { return };
        most = most.max(now.missing);
        bar.set_message(match (now.missing, now.unchecked) {
            (0, n) => format!("{n} nodes compare their shards with the new map"),
            (left, _) => format!("hand over shards: {} of {most} done", most - left),
        });
    });
    bar.finish_and_clear();
    let answer = match answer {
        Ok(answer) => answer,
        Err(Trouble::Unreachable(why)) => {
            eprintln!("hfcache: {why}");
            return Ok(2);
        }
        Err(trouble) => return Err(trouble.into()),
    };
    if json {
        return say_json(&answer).map(|()| 0);
    }
    let plan: leave::Plan = serde_json::from_value(answer).context("read the node's answer")?;
    let what = format!("{} shards ({})", plan.shards, bytes(plan.bytes));
    if dry_run {
        say(format!("Leaving would hand over {what} to {} storage nodes.", plan.remaining))?;
        if plan.storage {
            say(format!("New data would be kept {} instead of {}.", plan.scheme_after, plan.scheme_now))?;
        }
        if let Some(objection) = plan.objection {
            say(format!("It would be refused without --force: {objection}."))?;
        }
    } else {
        say(format!("Left the cluster; {what} were handed over. The node stops now."))?;
        say(format!("Its directory is of no more use: rm -r {}", shell(data.path())))?;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_quoted_only_where_needed() {
        assert_eq!(shell("/var/lib/hfcache".as_ref()), "/var/lib/hfcache");
        assert_eq!(shell("/a b".as_ref()), "'/a b'");
        assert_eq!(shell("it's".as_ref()), "'it'\\''s'");
    }
}
