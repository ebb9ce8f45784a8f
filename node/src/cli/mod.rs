//! What is typed and what is printed: one file a noun. Facts go to stdout, words and logs to stderr.
//! Exit status: 0 done, 1 failed, 2 wrong use (and for `status`: 1 degraded, 2 unreachable).

mod config;
mod demo;
mod doctor;
mod env;
mod node;
mod quota;
mod rate;
mod share;
mod status;
mod token;
mod trash;

use crate::accounts::Database;
use crate::admin::Request;
use crate::admin::client::{self, Trouble};
use crate::data::DataDir;
use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Longest silence of the node before a command gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// One Hugging Face cache for all nodes of an isolated cluster.
#[derive(Debug, Parser)]
#[command(
    name = "hfcache",
    version,
    about = "One Hugging Face cache for all nodes of an isolated cluster",
    long_about = "One Hugging Face cache for all nodes of an isolated cluster: the same tree is mounted on every node, \
                  its bytes are erasure-coded over their disks, and a node may die.",
    arg_required_else_help = true,
    after_help = "EXAMPLES:\n  \
        hfcache demo                                            see a three-node cluster work, on this machine\n  \
        hfcache node init --data /var/lib/hfcache --mount /hf   make a cluster of one; prints the join line\n  \
        hfcache node join TOKEN --data DIR --mount /hf          on each further node\n  \
        eval \"$(hfcache env)\"                                   use it from Python, unchanged"
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make, join, run and take out a node
    #[command(subcommand)]
    Node(node::Command),
    /// Make, list and revoke join tokens
    #[command(subcommand)]
    Token(token::Command),
    /// Make directories that no user can close to the next
    #[command(subcommand)]
    Share(share::Command),
    /// Limit what directories, users and groups may use
    #[command(subcommand)]
    Quota(quota::Command),
    /// Limit how fast users and groups may go
    #[command(subcommand)]
    Rate(rate::Command),
    /// List, restore and empty what was deleted
    #[command(subcommand)]
    Trash(trash::Command),
    /// Say what directories use, without walking them
    Du(quota::Du),
    /// Say how the cluster is
    Status(status::Status),
    /// Show a three-node cluster at work on this machine
    Demo(demo::Demo),
    /// Print the environment for Hugging Face clients
    Env(env::Env),
    /// Find what will not work on this machine, and how to mend it
    Doctor(doctor::Doctor),
    /// Show the configuration and explain it
    #[command(subcommand)]
    Config(config::Command),
    /// Take a mount away when its node dies, list directories of it until then; started by the node itself
    #[command(hide = true)]
    Guard {
        /// Data directory of the node
        #[arg(long)]
        data: PathBuf,
        /// Mount point
        #[arg(long)]
        point: PathBuf,
        /// Device number of the mount
        #[arg(long)]
        device: String,
    },
}

/// Which node a command means.
#[derive(Clone, Debug, Args)]
struct Which {
    /// Data directory of the node; may be left out where one node runs on this machine
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

impl Which {
    fn resolve(&self) -> Result<DataDir> {
        crate::registry::resolve(self.data.as_deref())
    }

    /// A path in the mount as the node is asked about it: the node runs elsewhere, so without `..`, symbolic
    /// links and the current directory.
    fn path(path: &Path) -> Result<PathBuf> {
        let settled = crate::place::settled(path);
        if settled.to_str().is_none() {
            bail!("{} is no UTF-8; name a directory above it", settled.display());
        }
        Ok(settled)
    }

    fn ask(&self, request: Request) -> Result<Value> {
        Ok(self.ask_watching(request, |_| ())?)
    }

    fn ask_watching(&self, request: Request, progress: impl FnMut(Value)) -> Result<Value, Trouble> {
        let data = self.resolve().map_err(|e| Trouble::Unreachable(format!("{e:#}")))?;
        client::ask(&data, request, PATIENCE, progress)
    }
}

/// What a node answers that was asked for one, or for `all`.
fn one_or_all<T: DeserializeOwned>(answer: Value, all: bool) -> Result<Vec<T>> {
    let answer = if all { answer } else { Value::Array(vec![answer]) };
    serde_json::from_value(answer).context("read the node's answer")
}

/// A user or a group, by name where there is one.
fn owner_name(uid: Option<u32>, gid: Option<u32>) -> String {
    match uid {
        Some(uid) => format!("user {}", Database::Passwd.shown(uid)),
        None => format!("group {}", Database::Group.shown(gid.unwrap_or_default())),
    }
}

impl Cli {
    /// Does what was asked and says how it went.
    pub fn run(self) -> ExitCode {
        let result = match self.command {
            Command::Node(c) => c.run(),
            Command::Token(c) => c.run(),
            Command::Share(c) => c.run(),
            Command::Quota(c) => c.run(),
            Command::Rate(c) => c.run(),
            Command::Trash(c) => c.run(),
            Command::Du(c) => c.run(),
            Command::Status(c) => c.run(),
            Command::Demo(c) => c.run(),
            Command::Env(c) => c.run(),
            Command::Doctor(c) => c.run(),
            Command::Config(c) => c.run(),
            Command::Guard { data, point, device } => {
                crate::guard::watch(&DataDir::new(data), &point, &device).map(|()| 0)
            }
        };
        match result {
            Ok(code) => ExitCode::from(code),
            // The reader of a pipe went away: nothing to tell anybody.
            Err(e) if is_broken_pipe(&e) => ExitCode::SUCCESS,
            Err(e) => {
                eprintln!("hfcache: {e:#}");
                ExitCode::FAILURE
            }
        }
    }
}

fn is_broken_pipe(e: &anyhow::Error) -> bool {
    e.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}

/// Prints a line on stdout; unlike `println!` it does not panic when nobody reads.
fn say(text: impl std::fmt::Display) -> Result<()> {
    writeln!(std::io::stdout(), "{text}")?;
    Ok(())
}

fn say_json(value: &impl Serialize) -> Result<()> {
    say(serde_json::to_string_pretty(value)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn each(command: &clap::Command, path: &str, visit: &mut dyn FnMut(&clap::Command, &str)) {
        let path = format!("{path} {}", command.get_name());
        visit(command, &path);
        for sub in command.get_subcommands().filter(|c| c.get_name() != "help" && !c.is_hide_set()) {
            each(sub, &path, visit);
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_an_example_and_every_argument_a_word_of_help() {
        each(&Cli::command(), "", &mut |command, path| {
            assert!(command.get_about().is_some(), "{path}");
            if !command.has_subcommands() || path == " hfcache" {
                let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(after.contains("EXAMPLE") && after.contains("hfcache "), "{path}: {after:?}");
            }
            for arg in command.get_arguments().filter(|a| !a.is_hide_set()) {
                assert!(arg.get_help().is_some(), "{path} {}", arg.get_id());
            }
        });
    }

    #[test]
    fn commands_that_print_facts_have_json() {
        each(&Cli::command(), "", &mut |command, path| {
            let runs = ["run", "demo"].contains(&command.get_name());
            if !command.has_subcommands() && !runs {
                assert!(command.get_arguments().any(|a| a.get_id() == "json"), "{path}");
            }
        });
    }
}
