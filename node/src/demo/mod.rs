//! The three-node story: real processes of this very program, real mounts, a real SIGKILL.
//!
//! The story runs on the main thread, because a node that is started `--with-parent` ends with the thread
//! that started it. A second thread waits for signals and cleans up wherever the story is then.

mod cache;
mod cluster;
mod model;
mod show;

use crate::preflight;
use crate::status::show::bytes;
use crate::world::RealRng;
use anyhow::{Context, Result, bail, ensure};
use cache::{Found, Manifest};
use cluster::{Cluster, NODES};
use hfcache_base::seam::Rng;
use show::Show;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Longest wait for the cluster to come up or to heal.
const PATIENCE: Duration = Duration::from_secs(90);
/// Disk space that the story takes for each byte of the cache: the shards of three nodes and their hot copies.
const SPACE_FACTOR: u64 = 6;

/// What `hfcache demo` was asked for.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Cache to copy in.
    pub from: Option<PathBuf>,
    /// Leave it running.
    pub keep: bool,
    /// Where.
    pub dir: Option<PathBuf>,
}

/// Tells the story.
///
/// # Errors
/// What is missing on this machine, or where the story went wrong; everything is cleaned up then.
pub fn run(options: Options) -> Result<()> {
    preflight::mount_by().context("the demo mounts three file systems, which cannot be done here")?;
    let source = options.from.as_deref().map(cache::find).transpose()?;
    let dir = make_dir(options.dir.as_deref())?;
    let cluster = Arc::new(Cluster::new(dir.clone(), options.keep)?);
    clean_up_on_signal(cluster.clone())?;
    let show = Show::new();
    show.line(&format!("hfcache {}: three nodes in {}", env!("CARGO_PKG_VERSION"), dir.display()));
    match story(&cluster, source, &show) {
        Ok(()) if options.keep => {
            cluster.release();
            how_to_use(&cluster, &show);
            Ok(())
        }
        Ok(()) => {
            let step = show.step("stop the nodes, unmount, remove everything");
            cluster.clean_up()?;
            step.done("");
            show.summary();
            Ok(())
        }
        // What went wrong is that the nodes were taken away.
        Err(_) if cluster.interrupted.load(Ordering::SeqCst) => loop {
            std::thread::park();
        },
        Err(e) => {
            for (node, tail) in cluster.log_tails() {
                show.line(&format!("--- last words of node {node}:\n{tail}"));
            }
            let cleaned = cluster.clean_up();
            if let Err(e) = cleaned {
                show.line(&format!("clean up: {e:#}"));
            }
            Err(e.context("the demo went wrong (everything was cleaned up)"))
        }
    }
}

fn make_dir(wanted: Option<&Path>) -> Result<PathBuf> {
    let dir = match wanted {
        Some(dir) => crate::config::absolute(dir)?,
        None => {
            std::env::temp_dir().join(format!("hfcache-demo-{:08x}", RealRng::default().next_u64() as u32))
        }
    };
    if let Ok(mut entries) = std::fs::read_dir(&dir) {
        ensure!(entries.next().is_none(), "{} is not empty; name a new directory with --dir", dir.display());
    }
    // Others need not look in; the mounts below have their own permissions.
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(&dir)
        .with_context(|| format!("make {}", dir.display()))?;
    Ok(dir)
}

/// A signal may come while the story waits for a file system that does not answer, so this thread does not
/// ask it to stop: it takes the processes away, and with them every wait.
fn clean_up_on_signal(cluster: Arc<Cluster>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let signals = {
        use tokio::signal::unix::{SignalKind, signal};
        let _inside = runtime.enter();
        [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal)
    };
    let mut signals = signals.into_iter().collect::<std::io::Result<Vec<_>>>().context("wait for signals")?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            let waits = signals.iter_mut().map(|s| Box::pin(s.recv()));
            futures::future::select_all(waits).await;
        });
        cluster.interrupted.store(true, Ordering::SeqCst);
        eprintln!("\nhfcache: stopping and cleaning up");
        if let Err(e) = cluster.clean_up() {
            eprintln!("hfcache: clean up: {e:#}");
        }
        std::process::exit(130);
    })?;
    Ok(())
}

fn story(cluster: &Cluster, source: Option<Found>, show: &Show) -> Result<()> {
    let step = show.step("make a cluster of one, start it, let two more nodes join");
    cluster.init()?;
    cluster.start(0, PATIENCE)?;
    let token = cluster.token()?;
    for node in 1..NODES {
        cluster.join(node, &token)?;
        cluster.start(node, PATIENCE)?;
    }
    let status = cluster.wait_healthy(NODES, PATIENCE)?;
    step.done(&format!("new data is kept {}: any one node may die", status.redundancy.scheme));

    let (source, manifest) = match source {
        Some(found) => {
            let step = show.step("hash your cache");
            let manifest = Manifest::of(&found.root, &found.entries, &step)?;
            step.done(&format!("{} in {} files", bytes(manifest.bytes()), manifest.files()));
            (found, manifest)
        }
        None => {
            let step = show.step("make a small model: safetensors, tokenizer, config");
            let found = model::generate(&cluster.dir().join("source"))?;
            let manifest = Manifest::of(&found.root, &found.entries, &step)?;
            step.done(&format!("{} in {} files", bytes(manifest.bytes()), manifest.files()));
            (found, manifest)
        }
    };
    enough_space(cluster.dir(), manifest.bytes())?;

    let step = show.step("put it into the cache through node 1");
    let start = Instant::now();
    manifest.copy(&source.root, &cluster.hub(0), &step)?;
    step.done(&rate(manifest.bytes(), start));
    for node in 1..NODES {
        let step = show.step(&format!("read it on node {} and check every hash", node + 1));
        let start = Instant::now();
        manifest.verify(&cluster.hub(node), &step)?;
        step.done(&rate(manifest.bytes(), start));
    }

    let step = show.step("kill node 2 (SIGKILL), read everything on node 3");
    cluster.kill(1)?;
    let start = Instant::now();
    manifest.verify(&cluster.hub(2), &step)?;
    step.done(&rate(manifest.bytes(), start));

    let step = show.step("write through node 1 while node 2 is dead, read it on node 3");
    let fresh = model::generate_update(&cluster.dir().join("update"))?;
    let update = Manifest::of(&fresh.root, &fresh.entries, &step)?;
    update.copy(&fresh.root, &cluster.hub(0), &step)?;
    update.verify(&cluster.hub(2), &step)?;
    step.done(&format!("{}, complete and right", bytes(update.bytes())));

    let step = show.step("start node 2 again, wait until it has caught up");
    cluster.start(1, PATIENCE)?;
    cluster.wait_healthy(NODES, PATIENCE)?;
    step.done("healthy, full redundancy");
    let step = show.step("read everything on node 2");
    manifest.verify(&cluster.hub(1), &step)?;
    update.verify(&cluster.hub(1), &step)?;
    step.done("every hash is right");
    Ok(())
}

fn rate(bytes_moved: u64, start: Instant) -> String {
    let seconds = start.elapsed().as_secs_f64().max(1e-6);
    format!("{} at {}/s", bytes(bytes_moved), bytes((bytes_moved as f64 / seconds) as u64))
}

fn enough_space(dir: &Path, size: u64) -> Result<()> {
    let stat = rustix::fs::statvfs(dir).with_context(|| format!("look at the disk of {}", dir.display()))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let needed = size.saturating_mul(SPACE_FACTOR);
    if free < needed {
        bail!(
            "{} has {} free, and three nodes with this cache need about {}; name a larger disk with --dir",
            dir.display(),
            bytes(free),
            bytes(needed)
        );
    }
    Ok(())
}

fn how_to_use(cluster: &Cluster, show: &Show) {
    let exe = cluster.program().display().to_string();
    show.summary();
    show.line("\nThe cluster is left running. The same tree is at:");
    for node in 0..NODES {
        show.line(&format!("  {}", cluster.mount(node).display()));
    }
    show.line("\nUse it:");
    show.line(&format!("  eval \"$({exe} env --mount {})\"", cluster.mount(0).display()));
    show.line(&format!("  {exe} status --data {}", cluster.data(0).path().display()));
    show.line("\nStop it and remove everything:");
    let pids: Vec<String> = cluster.pids().iter().map(u32::to_string).collect();
    show.line(&format!(
        "  kill {0}; while kill -0 {0} 2>/dev/null; do sleep 0.2; done; rm -r {1}",
        pids.join(" "),
        cluster.dir().display()
    ));
}
