//! The mounted tree of a running node.

use crate::guard::Guard;
use anyhow::{Context, Result, bail};
use hfcache_fuse::fs::Fs;
use hfcache_fuse::kernel::Mount;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tracing::error;

/// Where the tree is put once it is mounted, for those who may have to take it down.
#[derive(Clone, Default)]
pub struct Tree(Arc<Inner>);

/// Without a guard where none could be started.
type Mounted = (Arc<Fs>, Arc<Mount>, Option<Guard>);

#[derive(Default)]
struct Inner {
    mounted: Mutex<Option<Mounted>>,
    /// The end of the mount is wanted.
    ending: AtomicBool,
}

impl Tree {
    /// It is mounted now.
    pub(super) fn put(&self, fs: Arc<Fs>, mount: Arc<Mount>, guard: Option<Guard>) {
        *self.0.mounted.lock() = Some((fs, mount, guard));
    }

    /// Whether the end of the mount is no surprise.
    pub(super) fn ending(&self) -> bool {
        self.0.ending.load(Ordering::SeqCst)
    }

    /// Unmounts, then makes everything durable that was written. Nothing new can come in between. The
    /// second call does nothing.
    ///
    /// # Errors
    /// The kernel refuses, or files that could not be saved.
    pub async fn take_down(&self) -> Result<()> {
        self.0.ending.store(true, Ordering::SeqCst);
        let Some((fs, mount, guard)) = self.0.mounted.lock().take() else { return Ok(()) };
        let unmount = move || {
            let unmounted = mount.unmount();
            drop(guard);
            unmounted
        };
        let unmounted = tokio::task::spawn_blocking(unmount).await.context("unmount")?;
        // Even if the kernel refused: what was written must be saved.
        let unsaved = fs.shutdown().await;
        unmounted?;
        if let Some(first) = unsaved.first() {
            for file in &unsaved {
                error!(ino = %file.ino, error = %file.error, "save file");
            }
            bail!("{} files could not be saved (the first: {})", unsaved.len(), first.error);
        }
        Ok(())
    }
}
