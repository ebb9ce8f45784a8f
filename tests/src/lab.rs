//! A place for one test: its directory, the lock that keeps other cluster tests away, and a watchdog.

use crate::{janitor, mounts, sys};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// A test that takes longer than this hangs: its nodes are killed, so that blocked calls return.
const PATIENCE: Duration = Duration::from_secs(600);
/// What the test may then still take to fall over, before the whole test process is ended.
const LAST_WORDS: Duration = Duration::from_secs(30);

static NEXT: AtomicU32 = AtomicU32::new(0);

#[derive(Debug, Default)]
struct Watch {
    over: Mutex<bool>,
    bell: Condvar,
}

impl Watch {
    /// Whether the test was over within `limit`.
    fn wait(&self, limit: Duration) -> bool {
        let over = self.over.lock().unwrap_or_else(PoisonError::into_inner);
        *self.bell.wait_timeout_while(over, limit, |over| !*over).unwrap_or_else(PoisonError::into_inner).0
    }

    fn end(&self) {
        *self.over.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.bell.notify_all();
    }
}

/// See the module. Dropping it kills every process that was started in it, detaches its mounts and removes
/// its directory.
#[derive(Debug)]
pub struct Lab {
    name: String,
    root: PathBuf,
    watch: Arc<Watch>,
    _alive: File,
    _turn: File,
}

impl Lab {
    /// Waits for its turn on this machine, clears what earlier runs left, and makes an empty directory.
    ///
    /// # Panics
    /// When this machine can't mount FUSE file systems, with what to do about it.
    pub fn new(name: &str) -> Self {
        Self::with_patience(name, PATIENCE)
    }

    /// Like [`Lab::new`], for a test that may take longer.
    ///
    /// # Panics
    /// As [`Lab::new`].
    pub fn with_patience(name: &str, patience: Duration) -> Self {
        if let Err(why) = File::options().read(true).write(true).open("/dev/fuse") {
            panic!(
                "cluster tests need /dev/fuse, which can't be opened here: {why} (load the fuse module; in a container add --device /dev/fuse --cap-add SYS_ADMIN)"
            );
        }
        let labs = janitor::labs_root();
        let turn = File::create(labs.join("turn")).expect("make the turn file");
        turn.lock().expect("wait for the turn of this test");
        janitor::sweep();
        let root =
            labs.join(format!("{name}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        std::fs::create_dir(&root).expect("make the test's directory");
        let alive = File::create(root.join("alive")).expect("make the alive file");
        alive.lock().expect("lock the alive file");
        let watch = Arc::new(Watch::default());
        spawn_watchdog(name.to_owned(), root.clone(), watch.clone(), patience);
        Self { name: name.to_owned(), root, watch, _alive: alive, _turn: turn }
    }

    /// The test's directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A directory in it, made now.
    ///
    /// # Panics
    /// When it can't be made.
    pub fn dir(&self, name: &str) -> PathBuf {
        let dir = self.root.join(name);
        std::fs::create_dir_all(&dir).expect("make a directory of the test");
        dir
    }

    /// What the test is called.
    pub fn name(&self) -> &str {
        &self.name
    }
}

fn spawn_watchdog(name: String, root: PathBuf, watch: Arc<Watch>, patience: Duration) {
    let body = move || {
        if watch.wait(patience) {
            return;
        }
        eprintln!("WATCHDOG: {name} has not ended after {patience:?}; its nodes are killed now");
        crate::node::print_logs(&name, &root);
        for pid in janitor::processes_of(&root) {
            let _ = sys::kill(pid, libc::SIGKILL);
        }
        mounts::detach_below(&root);
        if !watch.wait(LAST_WORDS) {
            eprintln!("WATCHDOG: {name} still hangs; the test process ends here");
            std::process::exit(101);
        }
    };
    thread::Builder::new().name("watchdog".into()).spawn(body).expect("start the watchdog");
}

impl Drop for Lab {
    fn drop(&mut self) {
        janitor::clear(&self.root);
        self.watch.end();
    }
}
