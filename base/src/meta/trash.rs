//! What was deleted and is kept for a while.

use super::{Attr, Timestamp};
use crate::InodeId;
use serde::{Deserialize, Serialize};

/// An entry of the trash. Inode numbers are never used twice, but a file that was restored may be deleted
/// again, so only both together name one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TrashId {
    /// When it was deleted, by the state's own time.
    pub at: Timestamp,
    /// The inode that lost its last name then.
    pub ino: InodeId,
}

/// What is in the trash, as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trashed {
    /// Which entry.
    pub id: TrashId,
    /// Its path from the root when it was deleted, without a slash at either end. Any bytes.
    pub path: Vec<u8>,
    /// What it is now, without a name.
    pub attr: Attr,
}
