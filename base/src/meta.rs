//! The namespace's vocabulary: attributes, content, operations, replies, changes. Shared by the state
//! machine that applies them and by the file system and chunk store that ask for them. Everything here
//! crosses the wire and the Raft log: enums grow at the end only, and a changed field is a new format.

mod attr;
mod change;
mod content;
mod lock;
mod op;
mod share;
mod status;
mod trash;
mod usage;
mod xattr;

pub use attr::{Attr, DirEntry, FileKind, SetAttr, SetTime, Timestamp};
pub use change::{Applied, Change};
pub use content::{ChunkRef, Content, Extent, Piece};
pub use lock::{Lock, LockHolder, LockKind, LockReply};
pub use op::{Command, NewNode, Op, RenameMode, Reply, Token, TokenUse};
pub use share::Share;
pub use status::{RaftStatus, Session, SharedMap, Totals};
pub use trash::{TrashId, Trashed};
pub use usage::{Limit, Quota, Rate, Subject, Usage};
pub use xattr::{XATTR_CAPABILITY, XattrMode, XattrSpace};
