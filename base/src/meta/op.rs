//! Operations, as they are proposed, and their replies.

use super::{
    Attr, FileKind, Limit, Lock, LockReply, Piece, Rate, SetAttr, Share, Subject, Timestamp, TrashId,
    XattrMode,
};
use crate::{ChunkId, InodeId, Node, NodeId, NodeState, SessionId};
use serde::{Deserialize, Serialize};

/// What to make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NewNode {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link with this target, kept byte for byte.
    Symlink(Vec<u8>),
    /// A pipe, socket or device.
    Special(FileKind, u32),
}

/// How a `rename` treats what stands at the new name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RenameMode {
    /// Replace it by POSIX's rules.
    Replace,
    /// Fail with [`crate::Kind::Exists`].
    NoReplace,
    /// Swap the two.
    Exchange,
}

/// An operation on the namespace or the cluster, as proposed. Time and identity are added by the
/// proposer ([`Command`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Makes a name and an inode. With `exclusive` unset and a file there, answers with that file.
    Create {
        /// Directory.
        parent: InodeId,
        /// Name in it.
        name: Vec<u8>,
        /// What.
        node: NewNode,
        /// Permission bits, the umask not yet applied.
        mode: u32,
        /// The caller's umask: a default access control list of the directory takes its place.
        umask: u32,
        /// Owner.
        uid: u32,
        /// Group (a set-gid directory overrides it).
        gid: u32,
        /// O_EXCL.
        exclusive: bool,
    },
    /// Makes another name for an inode that is not a directory.
    Link {
        /// The inode.
        ino: InodeId,
        /// Directory.
        parent: InodeId,
        /// Name in it.
        name: Vec<u8>,
    },
    /// Removes a name that is not a directory.
    Unlink {
        /// Directory.
        parent: InodeId,
        /// Name in it.
        name: Vec<u8>,
        /// The proposing session has the inode open: keep it if this was its last name.
        hold: bool,
    },
    /// Removes an empty directory.
    Rmdir {
        /// Directory.
        parent: InodeId,
        /// Name in it.
        name: Vec<u8>,
    },
    /// Moves a name.
    Rename {
        /// Old directory.
        parent: InodeId,
        /// Old name.
        name: Vec<u8>,
        /// New directory.
        new_parent: InodeId,
        /// New name.
        new_name: Vec<u8>,
        /// What to do with the target.
        mode: RenameMode,
        /// The proposing session has the target open: keep it if this was its last name.
        hold: bool,
        /// Who moves it: a shared tree opens to its users only what its owner, or root, moves there.
        uid: u32,
    },
    /// Sets attributes.
    SetAttr {
        /// The inode.
        ino: InodeId,
        /// Which.
        set: SetAttr,
    },
    /// Makes new bytes part of a file. The chunks are durable already.
    Commit {
        /// The file.
        ino: InodeId,
        /// Changed ranges, at most [`crate::limits::COMMIT_PIECES_MAX`], in order of offset.
        pieces: Vec<Piece>,
        /// The file is at least this long afterwards (exactly this for [`Piece::Inline`]).
        size: u64,
        /// When the last byte was written; `None` leaves mtime alone.
        mtime: Option<Timestamp>,
        /// The `data_version` these pieces were made from: refused with [`crate::Kind::Changed`] if the
        /// content is another by now. `None` where they hold nothing but what was written.
        base: Option<u64>,
    },
    /// Reserves `count` chunk ids for the proposing session.
    AllocateChunks {
        /// At most [`crate::limits::CHUNK_ID_BATCH`].
        count: u32,
    },
    /// The session has this nameless inode open (hold) or no longer (release).
    Hold {
        /// The inode.
        ino: InodeId,
        /// Hold or release.
        hold: bool,
    },
    /// Frees nameless inodes without holders that are older than the grace time.
    Reap,
    /// Begins a session for a node; ends the node's earlier one. Proposed with session 0.
    OpenSession {
        /// The node.
        node: NodeId,
        /// Random, so that a repeated proposal finds its session.
        nonce: u64,
    },
    /// Ends sessions: their locks, delegations and holds go. Proposed by the leader or the node itself.
    CloseSessions(Vec<SessionId>),
    /// Asks for a lock; see [`LockReply`].
    Lock {
        /// The inode.
        ino: InodeId,
        /// What is wanted.
        lock: Lock,
        /// Queue behind a conflict and be told by [`Change::LockGranted`].
        wait: bool,
    },
    /// Gives up a range of a lock held in the state, and cancels this owner's wait in it.
    Unlock {
        /// The inode.
        ino: InodeId,
        /// Kind, owner and range; `exclusive` does not matter.
        lock: Lock,
    },
    /// Gives back the delegation of an inode's locks, with those that are held now.
    ReturnDelegation {
        /// The inode.
        ino: InodeId,
        /// Locks held by local processes.
        held: Vec<Lock>,
    },
    /// Admits a node. Repeated with the same public key it answers with the same id.
    AddNode {
        /// For people.
        name: String,
        /// Where it listens.
        addr: std::net::SocketAddr,
        /// Failure domain.
        domain: String,
        /// Gives disks.
        storage: bool,
        /// SHA-256 of its public key.
        key: [u8; 32],
        /// Admitted by this token, which must be valid; `None` only for the first node.
        token: Option<TokenUse>,
    },
    /// Changes what is known of a node; `None` leaves a field.
    UpdateNode {
        /// The node.
        id: NodeId,
        /// Where it listens.
        addr: Option<std::net::SocketAddr>,
        /// Bytes of disk for the cache.
        capacity: Option<u64>,
        /// What the cluster decides about it.
        state: Option<NodeState>,
    },
    /// Forgets a node.
    RemoveNode(NodeId),
    /// Adds a join token.
    CreateToken(Token),
    /// Refuses a join token from now on. Answers [`crate::Kind::NotFound`] for an unknown one.
    RevokeToken(String),
    /// Gives these `k = 1` chunks as many copies as the cluster now affords (`parity`).
    RaiseParity {
        /// Chunks.
        chunks: Vec<ChunkId>,
        /// New `m`; lower than the old one is ignored.
        parity: u8,
    },
    /// Limits what a directory tree, a user or a group may use. A limit below what is used refuses growth.
    SetQuota {
        /// Whose.
        subject: Subject,
        /// The new limit; [`Limit::default`] takes it away.
        limit: Limit,
    },
    /// Limits how fast a user or a group may go.
    SetRate {
        /// Whose; a tree has none.
        subject: Subject,
        /// The new rate; [`Rate::default`] takes it away.
        rate: Rate,
    },
    /// Sets an extended attribute. An access control list also sets the permission bits.
    SetXattr {
        /// The inode.
        ino: InodeId,
        /// Name with its namespace.
        name: Vec<u8>,
        /// Value, at most [`crate::limits::XATTR_VALUE_MAX`].
        #[serde(with = "serde_bytes")]
        value: Vec<u8>,
        /// What if there is one.
        mode: XattrMode,
        /// With an access control list: the caller may not keep the set-group-id bit.
        kill_sgid: bool,
    },
    /// Removes an extended attribute.
    RemoveXattr {
        /// The inode.
        ino: InodeId,
        /// Name with its namespace.
        name: Vec<u8>,
    },
    /// Puts bytes at the end of a file, wherever that is when this is applied. Answers the attributes: the
    /// bytes are the last `len` of the file.
    Append {
        /// The file.
        ino: InodeId,
        /// An unused chunk id of the proposing session, spent by this: proposed again under the same one it
        /// is refused with [`crate::Kind::Exists`] if it took effect before.
        token: ChunkId,
        /// As for `Commit`, with offsets counted from the end of the file. [`Piece::Inline`] holds all `len`
        /// bytes, and is refused with [`crate::Kind::Changed`] where they no longer fit into the inode.
        pieces: Vec<Piece>,
        /// By so much the file grows.
        len: u64,
        /// When the last byte was written; `None` leaves mtime alone.
        mtime: Option<Timestamp>,
    },
    /// Makes a range of a file hold what a range of a file holds, without copying chunks. Answers
    /// [`Reply::Count`] with the bytes that were cloned: fewer at the end of the source, or where its extents
    /// are many. [`crate::Kind::NotSupported`] where bytes would have to be copied.
    Clone {
        /// The source.
        from: InodeId,
        /// Where in it.
        from_offset: u64,
        /// The target; may be the source, if the ranges do not overlap.
        to: InodeId,
        /// Where in it.
        to_offset: u64,
        /// How many bytes.
        len: u64,
    },
    /// Makes a file without a name, open in the proposing session, which alone may give it one (`Link`).
    CreateNameless {
        /// Directory whose set-gid bit and default list count.
        parent: InodeId,
        /// Permission bits.
        mode: u32,
        /// Bits that are not given, unless the directory has a default list.
        umask: u32,
        /// Owner.
        uid: u32,
        /// Group (a set-gid directory overrides it).
        gid: u32,
        /// It may never get a name (O_EXCL).
        nameless: bool,
    },
    /// Records when inodes were read, at most [`crate::limits::TOUCH_MAX`]. One that is gone, or changed since,
    /// or whose atime is not due ([`Attr::atime_due`]) is left out. Answers [`Reply::Count`].
    Touch(Vec<(InodeId, Timestamp)>),
    /// Makes a directory a shared tree, or one no more (`None`). What is in it already stays as it is.
    SetShare {
        /// The directory.
        dir: InodeId,
        /// The policy.
        share: Option<Share>,
    },
    /// Keeps what is deleted from now on for so many seconds; 0 keeps nothing, and what is kept already is due.
    SetTrash {
        /// At most [`crate::limits::TRASH_RETENTION_MAX`].
        retention: u64,
    },
    /// Lets go of what has been in the trash for longer than it is to be kept, or is there beyond
    /// [`crate::limits::TRASH_ENTRIES_MAX`], oldest first, at most [`crate::limits::TRASH_BATCH_MAX`] entries. Answers [`Reply::Count`]; more may be left.
    ExpireTrash,
    /// Lets go of these entries of the trash, at most [`crate::limits::TRASH_BATCH_MAX`]; one that is not there
    /// is left out. Answers [`Reply::Count`] with how many of them, from the first on, were dealt with: not
    /// all, where much hangs on them.
    EmptyTrash(Vec<TrashId>),
    /// Gives what is in the trash a name again. A directory gets a new inode, because kernels remember the old
    /// one as removed, and is empty; anything else comes back as it is.
    Restore {
        /// Which entry.
        id: TrashId,
        /// Directory.
        parent: InodeId,
        /// Name in it, which must be free.
        name: Vec<u8>,
    },
}

/// The secret part of a join as the state machine checks it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenUse {
    /// Which token.
    pub id: String,
    /// SHA-256 of the secret that was shown.
    pub secret_hash: [u8; 32],
}

/// A join token as the cluster keeps it: the secret itself is known only to who holds the token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Short public name.
    pub id: String,
    /// SHA-256 of the secret.
    pub secret_hash: [u8; 32],
    /// Not valid from then on.
    pub expires: Timestamp,
    /// Refused since someone said so.
    pub revoked: bool,
}

/// An operation with everything `apply` needs: it knows no clock and no identity of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// Who asks; 0 for the cluster itself (not remembered, so only for idempotent operations).
    pub session: SessionId,
    /// Counts up within the session; a repeated number gets the remembered reply.
    pub sequence: u64,
    /// All replies below this number have arrived and may be forgotten.
    pub acknowledged: u64,
    /// The proposer's wall clock. The state machine never lets its own time run backwards by it.
    pub now: Timestamp,
    /// What to do.
    pub op: Op,
}

/// The answer to an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Done.
    Done,
    /// The inode as it is now. `created` is false when a `Create` found it there.
    Entry {
        /// Attributes.
        attr: Attr,
        /// Made by this operation.
        created: bool,
    },
    /// The inode as it is now.
    Attr(Attr),
    /// Reserved chunk ids `[first, first + count)`.
    Chunks {
        /// First id.
        first: ChunkId,
        /// How many.
        count: u32,
    },
    /// A session.
    Session(SessionId),
    /// A member.
    Node(Box<Node>),
    /// What became of a lock request.
    Lock(LockReply),
    /// How many.
    Count(u64),
}
