//! A Hugging Face cache on disk: found, listed with its hashes, copied as `huggingface_hub` writes it, and
//! checked.

use super::show::Step;
use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

const PIECE: usize = 4 << 20;
const REPOS: [&str; 3] = ["models--", "datasets--", "spaces--"];

/// A cache and the repositories in it.
pub(super) struct Found {
    pub(super) root: PathBuf,
    pub(super) entries: Vec<PathBuf>,
}

/// Finds the repositories: in the directory itself, or in its `hub`.
pub(super) fn find(dir: &Path) -> Result<Found> {
    let given = fs::canonicalize(dir).with_context(|| format!("look at {}", dir.display()))?;
    for root in [given.clone(), given.join("hub")] {
        let Ok(listing) = fs::read_dir(&root) else { continue };
        let mut entries: Vec<PathBuf> = listing
            .filter_map(|e| e.ok().map(|e| PathBuf::from(e.file_name())))
            .filter(|n| REPOS.iter().any(|p| n.to_string_lossy().starts_with(p)))
            .collect();
        entries.sort();
        if !entries.is_empty() {
            return Ok(Found { root, entries });
        }
    }
    bail!(
        "{} is no Hugging Face cache: it has no models--*, datasets--* or spaces--*.\n\
         The usual one is ~/.cache/huggingface/hub; or leave --from out, then a small model is made.",
        dir.display()
    )
}

enum What {
    Directory,
    File { len: u64, sha256: [u8; 32] },
    Link(PathBuf),
}

/// Everything in a cache, directories before what is in them.
pub(super) struct Manifest(Vec<(PathBuf, What)>);

impl Manifest {
    /// Lists and hashes.
    pub(super) fn of(root: &Path, entries: &[PathBuf], step: &Step<'_>) -> Result<Self> {
        let mut list = Vec::new();
        let mut todo: Vec<PathBuf> = entries.iter().rev().cloned().collect();
        while let Some(path) = todo.pop() {
            let full = root.join(&path);
            let meta = fs::symlink_metadata(&full).with_context(|| format!("look at {}", full.display()))?;
            if meta.is_dir() {
                let listing = fs::read_dir(&full).with_context(|| format!("list {}", full.display()))?;
                for entry in listing {
                    todo.push(path.join(entry?.file_name()));
                }
                list.push((path, What::Directory));
            } else if meta.is_symlink() {
                let target = fs::read_link(&full).with_context(|| format!("read link {}", full.display()))?;
                list.push((path, What::Link(target)));
            } else if meta.is_file() {
                let (len, sha256) = hash(&full, step)?;
                warn_if_damaged(&full, &sha256);
                list.push((path, What::File { len, sha256 }));
            }
        }
        Ok(Self(list))
    }

    pub(super) fn bytes(&self) -> u64 {
        self.0.iter().map(|(_, w)| if let What::File { len, .. } = w { *len } else { 0 }).sum()
    }

    pub(super) fn files(&self) -> usize {
        self.0.iter().filter(|(_, w)| matches!(w, What::File { .. })).count()
    }

    /// Copies as the Hub's client does: a file is written beside its place and renamed, links come last.
    pub(super) fn copy(&self, from: &Path, to: &Path, step: &Step<'_>) -> Result<()> {
        step.expect(self.bytes());
        fs::create_dir_all(to).with_context(|| format!("make {}", to.display()))?;
        for (path, what) in &self.0 {
            let target = to.join(path);
            match what {
                What::Directory => fs::create_dir_all(&target),
                What::File { .. } => copy_file(&from.join(path), &target, step),
                What::Link(_) => continue,
            }
            .with_context(|| format!("write {}", target.display()))?;
        }
        for (path, what) in &self.0 {
            if let What::Link(link) = what {
                let target = to.join(path);
                symlink(link, &target).with_context(|| format!("link {}", target.display()))?;
            }
        }
        Ok(())
    }

    /// Checks that everything is there, and right to the last bit.
    pub(super) fn verify(&self, at: &Path, step: &Step<'_>) -> Result<()> {
        step.expect(self.bytes());
        for (path, what) in &self.0 {
            let full = at.join(path);
            match what {
                What::Directory => {
                    let meta = fs::symlink_metadata(&full).with_context(|| format!("look at {}", full.display()))?;
                    ensure!(meta.is_dir(), "{} is no directory", full.display());
                }
                What::Link(target) => {
                    let found = fs::read_link(&full).with_context(|| format!("read link {}", full.display()))?;
                    ensure!(&found == target, "{} points to {}", full.display(), found.display());
                }
                What::File { len, sha256 } => {
                    let (found_len, found) = hash(&full, step)?;
                    ensure!(found_len == *len, "{} has {found_len} bytes instead of {len}", full.display());
                    ensure!(&found == sha256, "{} has wrong bytes", full.display());
                }
            }
        }
        Ok(())
    }
}

fn hash(path: &Path, step: &Step<'_>) -> Result<(u64, [u8; 32])> {
    let read = || -> std::io::Result<(u64, [u8; 32])> {
        let mut file = File::open(path)?;
        let mut hash = Sha256::new();
        let mut buf = vec![0; PIECE];
        let mut len = 0;
        loop {
            let n = file.read(&mut buf)?;
            if n == 0 {
                return Ok((len, hash.finalize().into()));
            }
            hash.update(&buf[..n]);
            len += n as u64;
            step.advance(n as u64);
        }
    };
    read().with_context(|| format!("read {}", path.display()))
}

fn copy_file(from: &Path, to: &Path, step: &Step<'_>) -> std::io::Result<()> {
    let temporary = to.with_added_extension("incomplete");
    let mut source = File::open(from)?;
    let mut target = File::create(&temporary)?;
    let mut buf = vec![0; PIECE];
    loop {
        let n = source.read(&mut buf)?;
        if n == 0 {
            break;
        }
        target.write_all(&buf[..n])?;
        step.advance(n as u64);
    }
    target.sync_all()?;
    drop(target);
    fs::rename(&temporary, to)
}

/// A large blob's name is its SHA-256. The user's own cache may have been damaged long ago; the story tells
/// the same bytes then.
fn warn_if_damaged(path: &Path, sha256: &[u8; 32]) {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let blob = path.parent().is_some_and(|p| p.ends_with("blobs"));
    if blob && name.len() == 64 && name != super::model::hex(sha256) {
        eprintln!("hfcache: {} is damaged: its name is not its SHA-256", path.display());
    }
}
