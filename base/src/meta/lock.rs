//! Locks and what becomes of a request for one.

use crate::SessionId;
use serde::{Deserialize, Serialize};

/// `flock` or `fcntl`: they do not see each other, as on Linux.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum LockKind {
    /// BSD lock of an open file description; always the whole file.
    Flock,
    /// POSIX record lock of a process.
    Posix,
}

/// A held or wanted lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Lock {
    /// `flock` or `fcntl`.
    pub kind: LockKind,
    /// Who holds it, unique on its node: for `flock` the handle of the open file, for `fcntl` the kernel's owner.
    pub owner: u64,
    /// Exclusive (write) or shared (read).
    pub exclusive: bool,
    /// First byte.
    pub start: u64,
    /// Last byte; `u64::MAX` is the end of the file wherever it is.
    pub end: u64,
    /// The process, for F_GETLK.
    pub pid: u32,
}

/// What became of a lock request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LockReply {
    /// Held, recorded in the state.
    Granted,
    /// The whole inode's locks are this session's to decide until it is recalled; the lock itself is held
    /// in the session's own table.
    Delegated,
    /// Someone else holds this; the request was not queued.
    Conflict(LockHolder),
    /// Someone else holds this; the request waits and [`Change::LockGranted`] will say so.
    Queued(LockHolder),
    /// The delegation of another session is being called back; ask again when it has returned
    /// ([`Change::LocksReturned`]). Only answered to a request that does not wait; others are queued.
    Recalling,
}

/// Who holds a conflicting lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockHolder {
    /// Its session.
    pub session: SessionId,
    /// The lock.
    pub lock: Lock,
}
