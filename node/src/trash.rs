//! `hfcache trash`: what was deleted and is kept, giving it its names back, and emptying it.

use crate::admin::QUORUM_DEADLINE;
use crate::place::{self, Place};
use crate::time;
use hfcache_base::limits::TRASH_BATCH_MAX;
use hfcache_base::meta::{FileKind, Op, Reply, Timestamp, TrashId, Trashed};
use hfcache_base::seam::Meta;
use hfcache_base::{Error, InodeId, Kind, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use tokio::sync::mpsc;

/// Entries looked at in one view.
const PAGE: usize = 1_024;
/// Entries in one line to the command: each has a path of up to 4 KiB, which JSON may make six times as long.
const LINE: usize = 128;
/// Names given back at once.
const CHANGES_MAX: usize = 64;
/// Most entries that one command restores: they are all known before the first is.
const RESTORE_MAX: usize = 1_000_000;

/// An entry, as `trash ls` prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// When it was deleted.
    pub deleted: String,
    /// What it is.
    pub kind: String,
    /// Its bytes; of a directory 0, because what was in it is listed by itself.
    pub size: u64,
    /// Its owner.
    pub uid: u32,
    /// Where it was.
    pub path: String,
}

/// What is in the trash, all told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Files, directories and the rest.
    pub entries: u64,
    /// Bytes that they take, without holes.
    pub bytes: u64,
    /// Seconds for which what is deleted is kept; 0 for not at all.
    pub retention: u64,
}

/// What `trash restore` did, or would do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// Files, links and the rest that have a name again.
    pub files: u64,
    /// Directories that were made again.
    pub directories: u64,
    /// Bytes of those files.
    pub bytes: u64,
    /// What could not be restored.
    pub failed: u64,
}

/// One that could not be restored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// Which.
    pub path: String,
    /// Why not.
    pub why: String,
}

/// How long what is deleted is kept; `set` first.
///
/// # Errors
/// A time that is too long; no quorum.
pub async fn retention(meta: &dyn Meta, set: Option<u64>) -> Result<u64> {
    if let Some(retention) = set {
        meta.commit(Op::SetTrash { retention }).await.map_err(|e| e.context("set trash"))?;
        tracing::info!(seconds = retention, "what is deleted is kept for so long");
    }
    meta.read_point(QUORUM_DEADLINE).await?;
    meta.read_stale().trash_retention()
}

/// A path as it is said on this machine, or from the root of the tree, as it is in the trash.
fn said(place: &Place, path: &Path) -> Result<Vec<u8>> {
    let names = match place.names(path) {
        Ok(names) => names,
        Err(outside) => place::names(path).ok_or(outside)?,
    };
    Ok(names.join(&b'/'))
}

/// How to say a path from the tree's root so that it is understood.
fn shown(place: &Place, path: &[u8]) -> String {
    let text = place.describe(path);
    text.strip_prefix("(tree)").map(str::to_owned).unwrap_or(text)
}

/// Whether a path is another one, or below it.
fn is_at(path: &[u8], above: &[u8]) -> bool {
    match path.strip_prefix(above) {
        Some(rest) => above.is_empty() || rest.is_empty() || rest.first() == Some(&b'/'),
        None => false,
    }
}

/// The path of the directory that a path is in, and the name there.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&[], path),
    }
}

fn names(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|b| *b == b'/').filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect()
}

const fn word(kind: FileKind) -> &'static str {
    match kind {
        FileKind::File => "file",
        FileKind::Directory => "directory",
        FileKind::Symlink => "symlink",
        FileKind::Fifo => "fifo",
        FileKind::Socket => "socket",
        FileKind::CharDevice | FileKind::BlockDevice => "device",
    }
}

/// Goes through the trash, oldest first, page by page.
struct Pages<'a> {
    meta: &'a dyn Meta,
    after: Option<TrashId>,
}

impl<'a> Pages<'a> {
    async fn new(meta: &'a dyn Meta) -> Result<Self> {
        meta.read_point(QUORUM_DEADLINE).await?;
        Ok(Self { meta, after: None })
    }

    async fn next(&mut self) -> Result<Vec<Trashed>> {
        // Others want to be served, too.
        tokio::task::yield_now().await;
        let page = self.meta.read_stale().trash(self.after, PAGE)?;
        self.after = page.last().map(|t| t.id).or(self.after);
        Ok(page)
    }
}

async fn tell(progress: &mpsc::Sender<Value>, what: &impl Serialize) {
    let said = serde_json::to_value(what).unwrap_or_default();
    // Nobody may be listening any more.
    let _ = progress.send(said).await;
}

/// Tells what is in the trash, oldest first; with a path, what was there or below.
///
/// # Errors
/// No quorum.
pub async fn list(
    meta: &dyn Meta,
    place: &Place,
    path: Option<&Path>,
    progress: &mpsc::Sender<Value>,
) -> Result<Held> {
    let above = path.map(|path| said(place, path)).transpose()?.unwrap_or_default();
    let mut pages = Pages::new(meta).await?;
    let mut held = Held { retention: meta.read_stale().trash_retention()?, ..Held::default() };
    loop {
        let page = pages.next().await?;
        if page.is_empty() {
            return Ok(held);
        }
        let wanted: Vec<Trashed> = page.into_iter().filter(|t| is_at(&t.path, &above)).collect();
        for some in wanted.chunks(LINE) {
            let lines: Vec<Shown> = some
                .iter()
                .map(|t| Shown {
                    deleted: time::utc(t.id.at),
                    kind: word(t.attr.kind).to_owned(),
                    size: if t.attr.kind == FileKind::Directory { 0 } else { t.attr.size },
                    uid: t.attr.uid,
                    path: shown(place, &t.path),
                })
                .collect();
            held.entries += lines.len() as u64;
            held.bytes += some.iter().map(|t| t.attr.allocated).sum::<u64>();
            tell(progress, &lines).await;
        }
    }
}

/// Empties the trash of what was deleted at a path or below, and before a time; says how much that is.
///
/// # Errors
/// No quorum.
pub async fn empty(
    meta: &dyn Meta,
    place: &Place,
    path: Option<&Path>,
    before: Timestamp,
    dry_run: bool,
    progress: &mpsc::Sender<Value>,
) -> Result<Held> {
    let above = path.map(|path| said(place, path)).transpose()?.unwrap_or_default();
    let mut pages = Pages::new(meta).await?;
    let mut gone = Held { retention: meta.read_stale().trash_retention()?, ..Held::default() };
    loop {
        let page = pages.next().await?;
        let wanted = page.iter().filter(|t| t.id.at <= before && is_at(&t.path, &above));
        let (ids, bytes): (Vec<TrashId>, Vec<u64>) = wanted.map(|t| (t.id, t.attr.allocated)).unzip();
        if !dry_run {
            let_go(meta, ids.clone()).await?;
        }
        gone.entries += ids.len() as u64;
        gone.bytes += bytes.iter().sum::<u64>();
        tell(progress, &gone).await;
        if page.last().is_none_or(|last| last.id.at > before) {
            break;
        }
    }
    if !dry_run {
        tracing::info!(entries = gone.entries, bytes = gone.bytes, "trash emptied");
    }
    Ok(gone)
}

/// Lets go of entries.
///
/// # Errors
/// As a proposal.
pub async fn let_go(meta: &dyn Meta, mut ids: Vec<TrashId>) -> Result<()> {
    while !ids.is_empty() {
        let some = ids[..ids.len().min(TRASH_BATCH_MAX)].to_vec();
        let done = match meta.commit(Op::EmptyTrash(some)).await.map_err(|e| e.context("empty trash"))? {
            Reply::Count(done) if done > 0 => done,
            other => {
                return Err(Error::new(Kind::Internal, format!("emptying the trash answered {other:?}")));
            }
        };
        ids.drain(..ids.len().min(usize::try_from(done).unwrap_or(usize::MAX)));
    }
    Ok(())
}

/// What is to be restored, of each path the newest.
type Newest = BTreeMap<Vec<u8>, Trashed>;

/// Restores what was at a path: the newest deletion, and what was below. With `to` it is put there instead.
///
/// # Errors
/// Nothing of it is in the trash; no quorum. What can't be restored is told, counted, and no error.
pub async fn restore(
    meta: &dyn Meta,
    place: &Place,
    path: &Path,
    to: Option<&Path>,
    dry_run: bool,
    progress: &mpsc::Sender<Value>,
) -> Result<Restored> {
    let from = said(place, path)?;
    let to = to.map(|to| said(place, to)).transpose()?;
    let newest = choose(meta, &from, to.is_none()).await?;
    if !newest.keys().any(|path| is_at(path, &from)) {
        let shown = shown(place, &from);
        return Err(Error::new(
            Kind::NotFound,
            format!("nothing of {shown} is in the trash; `hfcache trash ls` shows what is"),
        ));
    }
    let (dirs, rest): (Vec<_>, Vec<_>) =
        newest.into_values().partition(|t| t.attr.kind == FileKind::Directory);
    let mut work = Restoring {
        meta,
        place,
        from,
        to,
        dry_run,
        progress,
        known: HashMap::new(),
        done: Restored::default(),
    };
    // In the order of their paths, so each directory before what is in it.
    for some in dirs.chunks(CHANGES_MAX) {
        for dir in some {
            work.directory(dir).await?;
        }
        tell(progress, &work.done).await;
    }
    for some in rest.chunks(CHANGES_MAX) {
        work.files(some).await?;
        tell(progress, &work.done).await;
    }
    if !dry_run {
        tracing::info!(path = %path.display(), files = work.done.files, failed = work.done.failed, "restored");
    }
    Ok(work.done)
}

/// The newest entry of each path at `from` and below. With `above`, also the directories on the way there.
async fn choose(meta: &dyn Meta, from: &[u8], above: bool) -> Result<Newest> {
    let mut pages = Pages::new(meta).await?;
    let mut newest = Newest::new();
    loop {
        let page = pages.next().await?;
        if page.is_empty() {
            break;
        }
        for entry in page {
            let on_the_way = above && entry.attr.kind == FileKind::Directory && is_at(from, &entry.path);
            if is_at(&entry.path, from) || on_the_way {
                newest.insert(entry.path.clone(), entry);
            }
        }
        if newest.len() > RESTORE_MAX {
            return Err(Error::new(
                Kind::TooLarge,
                format!(
                    "more than {RESTORE_MAX} entries were deleted there; restore one directory of it at a time"
                ),
            ));
        }
    }
    // What was last deleted under a name was no directory any more: what had been in that is not meant.
    let hidden: Vec<Vec<u8>> = newest
        .keys()
        .filter(|path| {
            let mut at = split(path).0;
            while !at.is_empty() && is_at(at, from) {
                if newest.get(at).is_some_and(|t| t.attr.kind != FileKind::Directory) {
                    return true;
                }
                at = split(at).0;
            }
            false
        })
        .cloned()
        .collect();
    for path in hidden {
        newest.remove(&path);
    }
    Ok(newest)
}

struct Restoring<'a> {
    meta: &'a dyn Meta,
    place: &'a Place,
    from: Vec<u8>,
    to: Option<Vec<u8>>,
    dry_run: bool,
    progress: &'a mpsc::Sender<Value>,
    /// Directories that are there, by path; `None` for one that would be made.
    known: HashMap<Vec<u8>, Option<InodeId>>,
    done: Restored,
}

impl Restoring<'_> {
    /// Where an entry goes.
    fn target(&self, path: &[u8]) -> Vec<u8> {
        let Some(to) = &self.to else { return path.to_vec() };
        let below = path.get(self.from.len()..).unwrap_or_default();
        let below = below.strip_prefix(b"/").unwrap_or(below);
        match (to.is_empty(), below.is_empty()) {
            (true, _) => below.to_vec(),
            (_, true) => to.clone(),
            _ => [to, below].join(&b'/'),
        }
    }

    /// The directory of a path. `Ok(None)` if it would be made.
    fn parent(&mut self, dir: &[u8]) -> Result<Option<InodeId>, Kind> {
        if let Some(known) = self.known.get(dir) {
            return Ok(*known);
        }
        let view = self.meta.read_stale();
        let found = place::walk(view.as_ref(), &names(dir)).map_err(|e| e.kind())?;
        if found.kind != FileKind::Directory {
            return Err(Kind::NotDirectory);
        }
        self.known.insert(dir.to_vec(), Some(found.ino));
        Ok(Some(found.ino))
    }

    async fn directory(&mut self, entry: &Trashed) -> Result<()> {
        let path = self.target(&entry.path);
        let (above, name) = split(&path);
        // The root is always there.
        if name.is_empty() {
            return Ok(());
        }
        let parent = match self.parent(above) {
            Ok(parent) => parent,
            Err(kind) => return self.failed(&path, kind).await,
        };
        let there = parent.map(|parent| self.meta.read_stale().lookup(parent, name));
        match there {
            Some(Ok(there)) if there.kind == FileKind::Directory => {
                self.known.insert(path, Some(there.ino));
                return Ok(());
            }
            Some(Ok(_)) => return self.failed(&path, Kind::Exists).await,
            Some(Err(e)) if e.kind() != Kind::NotFound => return Err(e),
            _ => {}
        }
        let made = match parent {
            Some(parent) if !self.dry_run => {
                let op = Op::Restore { id: entry.id, parent, name: name.to_vec() };
                match self.meta.commit(op).await {
                    Ok(Reply::Entry { attr, .. }) => Some(attr.ino),
                    Ok(other) => return Err(Error::new(Kind::Internal, format!("restore: {other:?}"))),
                    Err(e) if is_of_the_entry(e.kind()) => return self.failed(&path, e.kind()).await,
                    Err(e) => return Err(e.context("restore")),
                }
            }
            _ => None,
        };
        self.known.insert(path, made);
        self.done.directories += 1;
        Ok(())
    }

    async fn files(&mut self, entries: &[Trashed]) -> Result<()> {
        let mut tries = Vec::new();
        for entry in entries {
            let path = self.target(&entry.path);
            let (above, name) = split(&path);
            let (parent, name) = (self.parent(above), name.to_vec());
            let (meta, id, dry_run) = (self.meta, entry.id, self.dry_run);
            tries.push(async move {
                let tried = match parent {
                    Err(kind) => Err(kind.into()),
                    Ok(None) => Ok(()),
                    Ok(Some(parent)) if dry_run => match meta.read_stale().lookup(parent, &name) {
                        Ok(_) => Err(Kind::Exists.into()),
                        Err(e) if e.kind() == Kind::NotFound => Ok(()),
                        Err(e) => Err(e),
                    },
                    Ok(Some(parent)) => meta.commit(Op::Restore { id, parent, name }).await.map(|_| ()),
                };
                (path, tried)
            });
        }
        let tried = futures::future::join_all(tries).await;
        for ((path, tried), entry) in tried.into_iter().zip(entries) {
            match tried {
                Ok(()) => {
                    self.done.files += 1;
                    self.done.bytes += entry.attr.size;
                }
                Err(e) if is_of_the_entry(e.kind()) => self.failed(&path, e.kind()).await?,
                Err(e) => return Err(e.context("restore")),
            }
        }
        Ok(())
    }

    async fn failed(&mut self, path: &[u8], kind: Kind) -> Result<()> {
        self.done.failed += 1;
        let why = match kind {
            Kind::Exists => "something of that name is there",
            Kind::NotFound => "its directory is neither there nor in the trash, or it was emptied just now",
            Kind::NotDirectory => "its directory is no directory now",
            Kind::Quota => "a directory's quota does not allow it",
            Kind::Invalid => "that is no name",
            Kind::NameTooLong => "the name is too long",
            _ => "it has too many links",
        };
        let failed = Failed { path: shown(self.place, path), why: why.to_owned() };
        tell(self.progress, &failed).await;
        Ok(())
    }
}

/// Whether an error concerns one entry, and others may go on.
const fn is_of_the_entry(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Exists
            | Kind::NotFound
            | Kind::NotDirectory
            | Kind::Quota
            | Kind::Invalid
            | Kind::NameTooLong
            | Kind::TooManyLinks
    )
}

/// A path that is spoken of to a node, without what it may lead to now: a symbolic link may stand where
/// something else was deleted.
pub fn settled(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    match (absolute.parent(), absolute.file_name()) {
        (Some(above), Some(name)) => place::settled(above).join(name),
        _ => absolute,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_above_whole_names_only() {
        for (path, above, is) in [
            ("a/b", "a", true),
            ("a", "a", true),
            ("a", "", true),
            ("ab", "a", false),
            ("a", "a/b", false),
            ("a.b/c", "a", false),
        ] {
            assert_eq!(is_at(path.as_bytes(), above.as_bytes()), is, "{path} {above}");
        }
        assert_eq!(split(b"a/b/c"), (b"a/b".as_slice(), b"c".as_slice()));
        assert_eq!(split(b"a"), (b"".as_slice(), b"a".as_slice()));
        assert_eq!(names(b""), Vec::<Vec<u8>>::new());
    }

    #[test]
    fn what_is_shown_is_understood() {
        for (subdir, path) in [("", "hub/x"), ("team", "team/x"), ("team", "hub/x"), ("team", "team")] {
            let place = Place::new("/no/such/mount".as_ref(), subdir.as_ref());
            let text = shown(&place, path.as_bytes());
            assert_eq!(said(&place, text.as_ref()).unwrap(), path.as_bytes(), "{subdir} {text}");
        }
        let place = Place::new("/no/such/mount".as_ref(), "".as_ref());
        assert_eq!(said(&place, "/hub/x".as_ref()).unwrap(), b"hub/x");
        assert!(said(&place, "/hub/../x".as_ref()).is_err());
    }

    #[test]
    fn the_last_name_of_a_path_is_taken_as_it_is() {
        let dir = crate::data::tests::TempDir::new();
        let real = std::fs::canonicalize(dir.path()).unwrap();
        std::fs::create_dir(real.join("a")).unwrap();
        std::os::unix::fs::symlink("a", real.join("link")).unwrap();
        assert_eq!(settled(&real.join("link")), real.join("link"));
        assert_eq!(settled(&real.join("link/x/y")), real.join("a/x/y"));
        assert_eq!(settled("/".as_ref()), PathBuf::from("/"));
    }
}
