//! `hfcache rate`: how fast users and groups may go on each node.

use crate::admin::QUORUM_DEADLINE;
use crate::usage::{Bound, Whose};
use hfcache_base::meta::{Op, Rate, Subject};
use hfcache_base::seam::{Meta, View};
use hfcache_base::{Error, Kind, Result};
use serde::{Deserialize, Serialize};

/// Changes of a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Bytes read in a second.
    pub read: Bound,
    /// Bytes written in a second.
    pub write: Bound,
    /// Requests in a second.
    pub ops: Bound,
}

/// A rate, as `rate ls` and `rate get` print it. One of the first two is set; a limit that is not is `None`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// Of a user.
    pub uid: Option<u32>,
    /// Of a group.
    pub gid: Option<u32>,
    /// Bytes read in a second.
    pub read: Option<u64>,
    /// Bytes written in a second.
    pub write: Option<u64>,
    /// Requests in a second.
    pub ops: Option<u64>,
}

fn shown(subject: Subject, rate: Rate) -> Shown {
    let (uid, gid) = match subject {
        Subject::User(uid) => (Some(uid), None),
        Subject::Group(gid) => (None, Some(gid)),
        // The namespace refuses these.
        Subject::Tree(_) => (None, None),
    };
    Shown { uid, gid, read: rate.read, write: rate.write, ops: rate.ops }
}

fn subject(whose: &Whose) -> Result<Subject> {
    match whose {
        Whose::Uid(uid) => Ok(Subject::User(*uid)),
        Whose::Gid(gid) => Ok(Subject::Group(*gid)),
        Whose::Path(_) => {
            Err(Error::new(Kind::Invalid, "users and groups have rates, directories have none"))
        }
    }
}

fn rate_of(view: &dyn View, subject: Subject) -> Result<Rate> {
    let found = view.rates()?.into_iter().find(|(of, _)| *of == subject);
    Ok(found.map(|(_, rate)| rate).unwrap_or_default())
}

/// How fast someone may go.
///
/// # Errors
/// No quorum.
pub async fn get(meta: &dyn Meta, whose: &Whose) -> Result<Shown> {
    let subject = subject(whose)?;
    meta.read_point(QUORUM_DEADLINE).await?;
    Ok(shown(subject, rate_of(meta.read_stale().as_ref(), subject)?))
}

/// Every rate.
///
/// # Errors
/// No quorum.
pub async fn list(meta: &dyn Meta) -> Result<Vec<Shown>> {
    meta.read_point(QUORUM_DEADLINE).await?;
    let rates = meta.read_stale().rates()?;
    Ok(rates.into_iter().map(|(subject, rate)| shown(subject, rate)).collect())
}

/// Changes a rate; answers with it as it is now.
///
/// # Errors
/// Who can have none; a rate of 0; no quorum.
pub async fn set(meta: &dyn Meta, whose: &Whose, change: Change) -> Result<Shown> {
    let subject = subject(whose)?;
    meta.read_point(QUORUM_DEADLINE).await?;
    let old = rate_of(meta.read_stale().as_ref(), subject)?;
    let rate = Rate {
        read: change.read.onto(old.read),
        write: change.write.onto(old.write),
        ops: change.ops.onto(old.ops),
    };
    meta.commit(Op::SetRate { subject, rate }).await.map_err(refused)?;
    tracing::info!(?whose, ?rate, "rate set");
    get(meta, whose).await
}

fn refused(error: Error) -> Error {
    match error.kind() {
        kind @ Kind::NotPermitted => {
            Error::new(kind, "user 0 and group 0 can have no rate: what root runs keeps the machine going")
        }
        kind @ Kind::Invalid => Error::new(kind, "a rate of 0 would wait for ever; take rights away instead"),
        _ => error.context("set rate"),
    }
}
