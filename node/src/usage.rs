//! `hfcache du` and `hfcache quota`: what is used and what may be used.

use crate::admin::QUORUM_DEADLINE;
use crate::place::Place;
use hfcache_base::meta::{Limit, Op, Quota, Subject, Usage};
use hfcache_base::seam::{Meta, View};
use hfcache_base::{Error, Kind, Result};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Whose quota a command means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Whose {
    /// A directory's, by its path in the mount.
    Path(PathBuf),
    /// A user's.
    Uid(u32),
    /// A group's.
    Gid(u32),
}

/// What becomes of one of the two limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bound {
    /// It stays.
    Keep,
    /// It goes.
    Lift,
    /// So much, and no more.
    Most(u64),
}

impl Bound {
    /// What is the limit now, after `old`.
    pub fn onto(self, old: Option<u64>) -> Option<u64> {
        match self {
            Self::Keep => old,
            Self::Lift => None,
            Self::Most(most) => Some(most),
        }
    }
}

/// One line of `du`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Used {
    /// What was asked about.
    pub path: PathBuf,
    /// Bytes that are allocated.
    pub bytes: u64,
    /// Files, directories and the rest, itself included.
    pub inodes: u64,
}

/// How much of something is used, of how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gauge {
    /// So much is used.
    pub used: u64,
    /// So much may be; `None` for as much as there is.
    pub limit: Option<u64>,
}

/// A quota, as `quota ls` and `quota get` print it. One of the first three is set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// Of a directory.
    pub path: Option<String>,
    /// Of a user.
    pub uid: Option<u32>,
    /// Of a group.
    pub gid: Option<u32>,
    /// Bytes.
    pub bytes: Gauge,
    /// Files, directories and the rest.
    pub inodes: Gauge,
}

fn shown(place: &Place, view: &dyn View, subject: Subject, limit: Limit, used: Usage) -> Result<Shown> {
    let (path, uid, gid) = match subject {
        Subject::Tree(dir) => (Some(place.describe(&view.path(dir)?)), None, None),
        Subject::User(uid) => (None, Some(uid), None),
        Subject::Group(gid) => (None, None, Some(gid)),
    };
    let bytes = Gauge { used: used.bytes, limit: limit.bytes };
    let inodes = Gauge { used: used.inodes, limit: limit.inodes };
    Ok(Shown { path, uid, gid, bytes, inodes })
}

fn subject(place: &Place, view: &dyn View, whose: &Whose) -> Result<Subject> {
    Ok(match whose {
        Whose::Path(path) => Subject::Tree(place.find(view, path)?.ino),
        Whose::Uid(uid) => Subject::User(*uid),
        Whose::Gid(gid) => Subject::Group(*gid),
    })
}

fn limit_of(view: &dyn View, subject: Subject) -> Result<Limit> {
    let quota: Option<Quota> = view.quotas()?.into_iter().find(|q| q.subject == subject);
    Ok(quota.map(|q| q.limit).unwrap_or_default())
}

/// What each path uses, all at one moment.
///
/// # Errors
/// A path that is not in this node's mount; no quorum.
pub async fn du(meta: &dyn Meta, place: &Place, paths: &[PathBuf]) -> Result<Vec<Used>> {
    meta.read_point(QUORUM_DEADLINE).await?;
    let view = meta.read_stale();
    let one = |path: &PathBuf| {
        let used = view.usage(Subject::Tree(place.find(view.as_ref(), path)?.ino))?;
        Ok(Used { path: path.clone(), bytes: used.bytes, inodes: used.inodes })
    };
    paths.iter().map(one).collect()
}

/// What someone uses and may use.
///
/// # Errors
/// A path that is not in this node's mount; no quorum.
pub async fn get(meta: &dyn Meta, place: &Place, whose: &Whose) -> Result<Shown> {
    meta.read_point(QUORUM_DEADLINE).await?;
    let view = meta.read_stale();
    let view = view.as_ref();
    let subject = subject(place, view, whose)?;
    shown(place, view, subject, limit_of(view, subject)?, view.usage(subject)?)
}

/// Every quota.
///
/// # Errors
/// No quorum.
pub async fn list(meta: &dyn Meta, place: &Place) -> Result<Vec<Shown>> {
    meta.read_point(QUORUM_DEADLINE).await?;
    let view = meta.read_stale();
    let view = view.as_ref();
    view.quotas()?.into_iter().map(|q| shown(place, view, q.subject, q.limit, q.used)).collect()
}

/// Changes a quota; answers with it as it is now.
///
/// # Errors
/// Who can have none; a path that is not in this node's mount; no quorum.
pub async fn set(
    meta: &dyn Meta,
    place: &Place,
    whose: &Whose,
    bytes: Bound,
    inodes: Bound,
) -> Result<Shown> {
    meta.read_point(QUORUM_DEADLINE).await?;
    let (subject, old) = {
        let view = meta.read_stale();
        let subject = subject(place, view.as_ref(), whose)?;
        (subject, limit_of(view.as_ref(), subject)?)
    };
    let limit = Limit { bytes: bytes.onto(old.bytes), inodes: inodes.onto(old.inodes) };
    meta.commit(Op::SetQuota { subject, limit }).await.map_err(|e| refused(e, whose))?;
    tracing::info!(?whose, ?limit, "quota set");
    get(meta, place, whose).await
}

fn refused(error: Error, whose: &Whose) -> Error {
    match (error.kind(), whose) {
        (kind @ Kind::NotDirectory, Whose::Path(path)) => {
            let above = path.parent().unwrap_or(Path::new("/")).display();
            let path = path.display();
            Error::new(
                kind,
                format!("{path} is no directory; a quota is set on a directory, for instance {above}"),
            )
        }
        (kind @ Kind::NotPermitted, _) => Error::new(
            kind,
            "user 0 and group 0 can have no quota; set one on a directory, which holds for root too",
        ),
        _ => error.context("set quota"),
    }
}
