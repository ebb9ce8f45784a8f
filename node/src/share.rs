//! `hfcache share`: which directories are shared trees, and opening what was in them before.

use crate::admin::QUORUM_DEADLINE;
use crate::place::Place;
use hfcache_base::limits::READDIR_PAGE;
use hfcache_base::meta::{Attr, DirEntry, FileKind, Op, SetAttr, Share};
use hfcache_base::seam::{Meta, View};
use hfcache_base::{Error, InodeId, Kind, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use tokio::sync::mpsc;

/// Changes of modes under way at once.
const CHANGES_MAX: usize = 64;

/// A shared tree, as `share ls` prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shared {
    /// Where it is.
    pub path: String,
    /// Whose it is; `None` for everyone's.
    pub group: Option<u32>,
}

/// What `share set` did, or would do, to what was there before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// Files and directories that were looked at.
    pub seen: u64,
    /// Those whose mode or group was changed.
    pub opened: u64,
}

/// How `share set` treats what is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Existing {
    /// It is left as it is.
    pub keep: bool,
    /// Nothing is changed at all.
    pub dry_run: bool,
}

fn no_directory(path: &Path) -> Error {
    Error::new(
        Kind::NotDirectory,
        format!("{} is no directory; only a directory can be shared", path.display()),
    )
}

/// Makes a directory a shared tree, and opens what is in it.
///
/// # Errors
/// A path that is no directory of this node's mount; no quorum.
pub async fn set(
    meta: &dyn Meta,
    place: &Place,
    path: &Path,
    share: Share,
    existing: Existing,
    progress: &mpsc::Sender<Value>,
) -> Result<Opened> {
    meta.read_point(QUORUM_DEADLINE).await?;
    let dir = place.find(meta.read_stale().as_ref(), path)?;
    if dir.kind != FileKind::Directory {
        return Err(no_directory(path));
    }
    if !existing.dry_run {
        meta.commit(Op::SetShare { dir: dir.ino, share: Some(share) }).await.map_err(|e| match e.kind() {
            Kind::NoSpace => Error::new(
                Kind::NoSpace,
                "there are as many shared trees as there can be; `hfcache share ls` shows them",
            ),
            _ => e.context("share a directory"),
        })?;
        tracing::info!(path = %path.display(), group = ?share.group, "shared tree");
    }
    if existing.keep {
        return Ok(Opened::default());
    }
    open_below(meta, &dir, share, existing.dry_run, progress).await
}

/// Opens what is in a shared tree. A tree in it with a policy of its own is opened by that one.
async fn open_below(
    meta: &dyn Meta,
    top: &Attr,
    share: Share,
    dry_run: bool,
    progress: &mpsc::Sender<Value>,
) -> Result<Opened> {
    let mut shares: BTreeMap<InodeId, Share> = meta.read_stale().shares()?.into_iter().collect();
    shares.insert(top.ino, share);
    let mut done = Opened::default();
    let mut todo = vec![(top.ino, share)];
    while let Some((dir, share)) = todo.pop() {
        let mut after = 0;
        loop {
            let page = match page(meta.read_stale().as_ref(), dir, after) {
                Ok(page) => page,
                // Removed meanwhile.
                Err(e) if matches!(e.kind(), Kind::NotFound | Kind::NotDirectory) => break,
                Err(e) => return Err(e),
            };
            let Some(last) = page.last() else { break };
            after = last.cookie;
            let mut closed = Vec::new();
            for DirEntry { mut attr, .. } in page {
                done.seen += 1;
                let mut policy = share;
                if attr.kind == FileKind::Directory {
                    policy = shares.get(&attr.ino).copied().unwrap_or(share);
                    todo.push((attr.ino, policy));
                }
                let mode = attr.mode;
                if policy.open(&mut attr) {
                    closed.push((attr.ino, mode));
                }
            }
            done.opened += closed.len() as u64;
            if !dry_run {
                open_all(meta, closed).await?;
            }
            let said = serde_json::to_value(done).unwrap_or_default();
            // Nobody may be listening any more.
            let _ = progress.send(said).await;
        }
    }
    Ok(done)
}

fn page(view: &dyn View, dir: InodeId, after: u64) -> Result<Vec<DirEntry>> {
    view.readdir(dir, after, READDIR_PAGE)
}

/// Sets each one's mode to what it is: the state machine makes of it what the policy says, at that moment.
async fn open_all(meta: &dyn Meta, inodes: Vec<(InodeId, u32)>) -> Result<()> {
    for some in inodes.chunks(CHANGES_MAX) {
        let set = |(ino, mode): &(InodeId, u32)| {
            meta.commit(Op::SetAttr { ino: *ino, set: SetAttr { mode: Some(*mode), ..SetAttr::default() } })
        };
        for changed in futures::future::join_all(some.iter().map(set)).await {
            match changed {
                Err(e) if !matches!(e.kind(), Kind::Stale | Kind::NotFound) => {
                    return Err(e.context("open what is in a shared tree"));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// All shared trees.
///
/// # Errors
/// No quorum.
pub async fn list(meta: &dyn Meta, place: &Place) -> Result<Vec<Shared>> {
    meta.read_point(QUORUM_DEADLINE).await?;
    let view = meta.read_stale();
    let mut found = Vec::new();
    for (dir, share) in view.shares()? {
        match view.path(dir) {
            Ok(path) => found.push(Shared { path: place.describe(&path), group: share.group }),
            // Removed, and not yet forgotten.
            Err(e) if e.kind() == Kind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// Makes a shared tree an ordinary one. What is in it stays as open as it is.
///
/// # Errors
/// A path that is no shared tree; no quorum.
pub async fn clear(meta: &dyn Meta, place: &Place, path: &Path) -> Result<()> {
    meta.read_point(QUORUM_DEADLINE).await?;
    let dir = place.find(meta.read_stale().as_ref(), path)?.ino;
    match meta.commit(Op::SetShare { dir, share: None }).await {
        Ok(_) => {
            tracing::info!(path = %path.display(), "no shared tree any more");
            Ok(())
        }
        Err(e) if e.kind() == Kind::NotDirectory => Err(no_directory(path)),
        Err(e) if e.kind() == Kind::NoData => Err(Error::new(
            Kind::NoData,
            format!("{} is no shared tree; `hfcache share ls` shows which there are", path.display()),
        )),
        Err(e) => Err(e.context("unshare a directory")),
    }
}
