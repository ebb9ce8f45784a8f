//! A running node: builds the parts, and owns the order of start and stop.
//!
//! ```text
//! start   lock → identity → ports → network → namespace → chunk store → member → mount → ready
//! stop    admin socket → mount (in-flight calls may end) → dirty files → namespace → store → network → lock
//! ```
//!
//! The mount goes first at the end, so that nothing new comes in while what was written is made durable. A
//! call of write(2) that was answered is in the file; one that was not has failed for its caller.

mod own;
mod parts;
mod room;
mod tree;

pub use tree::Tree;

use crate::config::Config;
use crate::data::DataDir;
use crate::stop::{End, Stop};
use crate::{notify, preflight};
use anyhow::{Context, Result, anyhow};
use hfcache_net::Identity;
use parts::Parts;
use rustix::process::{Resource, Rlimit, Signal, getrlimit, set_parent_process_death_signal, setrlimit};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

/// A node that has not stopped by then is ended.
const STOP_DEADLINE: Duration = Duration::from_secs(45);
/// The same where a part has died, and there is less to hope for.
const BROKEN_DEADLINE: Duration = Duration::from_secs(15);
/// Time for what is left on the runtime after everything was stopped.
const RUNTIME_DEADLINE: Duration = Duration::from_secs(2);
const WORKERS_MAX: usize = 16;

/// From now on this process gets SIGTERM when the thread that started it ends.
///
/// # Errors
/// Whatever the kernel says.
pub fn end_with_parent() -> Result<()> {
    set_parent_process_death_signal(Some(Signal::TERM)).context("ask to end with the parent process")
}

/// Runs a node until it is told to stop; returns the exit status.
///
/// # Errors
/// What stands in the way of starting, with the way to mend it; nothing is half-started then.
pub fn run(data: &DataDir, config: Config) -> Result<u8> {
    data.check()?;
    data.check_state()?;
    let lock = data.lock()?;
    let identity = Identity::load(&data.identity())?;
    preflight::mount_by()?;
    preflight::ready_mount_point(&config.mount.point, false)?;
    preflight::ports_free(config.listen)?;
    raise_open_files();
    let workers =
        std::thread::available_parallelism().map_or(2, std::num::NonZero::get).clamp(2, WORKERS_MAX);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .thread_name("hfcache")
        .enable_all()
        .build()
        .context("start runtime")?;
    let result = runtime.block_on(live(data, config, identity));
    // A task that hangs on a disk must not keep the process.
    runtime.shutdown_timeout(RUNTIME_DEADLINE);
    drop(lock);
    match result? {
        After::Exit => Ok(0),
        After::Restart => Err(start_afresh(data)),
    }
}

/// What comes after a node has stopped in order.
enum After {
    Exit,
    Restart,
}

/// Replaces this process by a fresh one with the same id; returns only if that fails. No state of the old one
/// can be left over then, whoever may have held on to it.
fn start_afresh(data: &DataDir) -> anyhow::Error {
    let mut command = Command::new("/proc/self/exe");
    let mut said = std::env::args_os().skip(1);
    // `node run` again as it was said; `init` and `join` have done their part.
    if said.next().is_some_and(|a| a == "node") && said.next().is_some_and(|a| a == "run") {
        command.args(std::env::args_os().skip(1));
    } else {
        command.args(["node", "run", "--data"]).arg(data.path());
    }
    if let Some(name) = std::env::args_os().next() {
        command.arg0(name);
    }
    anyhow::Error::from(command.exec()).context("start afresh")
}

async fn live(data: &DataDir, config: Config, identity: Identity) -> Result<After> {
    let stop = Stop::default();
    listen_for_signals(&stop)?;
    let mut parts = Parts::default();
    let started = tokio::select! {
        started = parts.start(data, config, identity, &stop) => started,
        _ = stop.wait() => Ok(()),
    };
    let end = match started {
        Ok(()) => stop.wait().await,
        Err(e) => End::Broken(format!("{e:#}")),
    };
    notify::say(if matches!(end, End::Restart(_)) { "RELOADING=1" } else { "STOPPING=1" });
    let deadline = match &end {
        End::Wished(why) => {
            info!(why, "stop");
            STOP_DEADLINE
        }
        End::Restart(why) => {
            warn!(why, "start afresh");
            BROKEN_DEADLINE
        }
        End::Broken(_) => BROKEN_DEADLINE,
    };
    let stopped = tokio::time::timeout(deadline, parts.stop()).await;
    let clean = match stopped {
        Ok(stopped) => stopped.context("stop"),
        Err(_) => Err(anyhow!(
            "the node did not stop within {} s and was ended; what was acknowledged is safe",
            deadline.as_secs()
        )),
    };
    match end {
        // Printed by the command, once.
        End::Broken(why) => {
            if let Err(e) = clean {
                warn!(error = format!("{e:#}"), "stop a node that broke");
            }
            Err(anyhow!(why))
        }
        End::Restart(_) => {
            if let Err(e) = clean {
                warn!(error = format!("{e:#}"), "stop before starting afresh");
            }
            Ok(After::Restart)
        }
        End::Wished(_) => {
            clean?;
            info!("stopped");
            Ok(After::Exit)
        }
    }
}

/// The first signal asks, the second does not wait.
fn listen_for_signals(stop: &Stop) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let stop = stop.clone();
    tokio::spawn(async move {
        let mut first = true;
        loop {
            let name = tokio::select! {
                Some(()) = terminate.recv() => "SIGTERM",
                Some(()) = interrupt.recv() => "SIGINT",
                else => return,
            };
            if !std::mem::replace(&mut first, false) {
                warn!(signal = name, "second signal: end at once");
                std::process::exit(130);
            }
            stop.request(name);
        }
    });
    Ok(())
}

/// As many open files as this process may have.
fn raise_open_files() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(e) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        warn!(error = %e, "raise the limit of open files");
    }
}
