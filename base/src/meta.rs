//! The namespace's vocabulary: attributes, content, operations, replies, changes. Shared by the state
//! machine that applies them and by the file system and chunk store that ask for them. Everything here
//! crosses the wire and the Raft log: enums grow at the end only, and a changed field is a new format.

use crate::{ChunkId, ClusterMap, Epoch, InodeId, Node, NodeId, NodeState, Scheme, SessionId};
use serde::{Deserialize, Serialize};

/// Nanoseconds since 1970-01-01 UTC; negative before. Reaches from 1677 to 2262.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

/// What an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FileKind {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Named pipe.
    Fifo,
    /// Unix socket.
    Socket,
    /// Character device.
    CharDevice,
    /// Block device.
    BlockDevice,
}

/// What `stat` shows, and what caches compare.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attr {
    /// Inode number.
    pub ino: InodeId,
    /// What it is.
    pub kind: FileKind,
    /// Permission bits (`0o7777`).
    pub mode: u32,
    /// Names it has; 0 while open but unlinked.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node.
    pub rdev: u32,
    /// Bytes of a file or a link's target; for a directory, the number of its entries.
    pub size: u64,
    /// Bytes that are held by chunks or inline, without holes.
    pub allocated: u64,
    /// Last access as far as it was recorded.
    pub atime: Timestamp,
    /// Last change of content.
    pub mtime: Timestamp,
    /// Last change of content or attributes.
    pub ctime: Timestamp,
    /// Changes exactly when the content changes: what a kept page or a hot copy is valid for.
    pub data_version: u64,
}

/// One row of a directory listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirEntry {
    /// The name, any bytes but `/` and NUL.
    pub name: Vec<u8>,
    /// Its inode and attributes.
    pub attr: Attr,
    /// Where the listing goes on after this row. Stable while the directory changes; never 0, 1 or 2,
    /// which the mount uses for the start, `.` and `..`.
    pub cookie: u64,
}

/// A chunk as the namespace knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ChunkRef {
    /// Its identity.
    pub id: ChunkId,
    /// Its bytes, at most [`crate::limits::CHUNK_MAX`].
    pub len: u32,
    /// How it is protected.
    pub scheme: Scheme,
}

/// File bytes `[offset, offset + len)` are bytes `[chunk_offset, chunk_offset + len)` of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// Where in the file.
    pub offset: u64,
    /// How many bytes; never 0.
    pub len: u32,
    /// Where in the chunk.
    pub chunk_offset: u32,
    /// The chunk.
    pub chunk: ChunkRef,
}

impl Extent {
    /// First file offset after the extent.
    pub const fn end(&self) -> u64 {
        self.offset + self.len as u64
    }
}

/// The bytes of a file: extents over inline bytes over zeros, cut off at the inode's size.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// Bytes from offset 0 that live in the inode.
    pub inline: Vec<u8>,
    /// In order of offset, not overlapping; what lies between is inline or a hole.
    pub extents: Vec<Extent>,
}

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

/// A time in a `setattr`: the proposer's clock, or what the caller gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SetTime {
    /// UTIME_NOW.
    Now,
    /// Exactly this.
    To(Timestamp),
}

/// Which attributes to set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// New size: cuts or grows with a hole. Changes mtime and data_version when it differs.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<SetTime>,
    /// Change time of the content.
    pub mtime: Option<SetTime>,
    /// The caller may not keep set-id bits (the kernel's FATTR_KILL_SUIDGID).
    pub kill_suid: bool,
}

/// A changed range of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Piece {
    /// The whole file is these bytes (at most [`crate::limits::INLINE_MAX`]) and nothing else.
    Inline(Vec<u8>),
    /// The range of this extent now comes from its chunk.
    Chunk(Extent),
    /// `[offset, offset + len)` reads as zeros.
    Hole {
        /// Where in the file.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
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
    /// The kernel's lock owner, unique on its node.
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
        /// Permission bits, the umask already applied.
        mode: u32,
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

/// What a command changed: told to caches, lock waiters and the chunk store of every node after the
/// state that holds it can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A name now means something else, or nothing.
    Entry {
        /// Directory.
        parent: InodeId,
        /// Name.
        name: Vec<u8>,
    },
    /// An inode's attributes changed; `data` if its content did.
    Inode {
        /// The inode.
        ino: InodeId,
        /// Content too.
        data: bool,
    },
    /// An inode lost its last name: whoever has it open must say so ([`Op::Hold`]).
    Orphaned(InodeId),
    /// An inode is gone for ever.
    Reaped(InodeId),
    /// A chunk is part of the namespace, or protected in another way than before.
    ChunkAdded(ChunkRef),
    /// No file refers to the chunk any more.
    ChunkFreed(ChunkId),
    /// A waiting lock is held now.
    LockGranted {
        /// Whose session.
        session: SessionId,
        /// The inode.
        ino: InodeId,
        /// The lock.
        lock: Lock,
        /// Granted as a delegation: the session's own table holds it.
        delegated: bool,
    },
    /// The session must return its delegation.
    Recall {
        /// Whose session.
        session: SessionId,
        /// The inode.
        ino: InodeId,
    },
    /// A delegation has come back or its session ended.
    LocksReturned(InodeId),
    /// Members or placement changed.
    Map,
    /// A session ended.
    SessionClosed(SessionId),
}

/// A delta of one applied command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Who caused it.
    pub session: SessionId,
    /// What it changed.
    pub changes: Vec<Change>,
}

/// A session as the state keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Its identity.
    pub id: SessionId,
    /// Its node.
    pub node: NodeId,
    /// See [`Op::OpenSession`].
    pub nonce: u64,
    /// Chunk ids from here up to `chunks_end` were handed out to it last.
    pub opened: Timestamp,
}

/// Sums over the whole namespace, kept exact by `apply`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Inodes, without nameless ones.
    pub inodes: u64,
    /// Bytes in chunks and inline.
    pub bytes: u64,
    /// Chunks referred to.
    pub chunks: u64,
}

/// What the Raft part of a node says of itself; for `status`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RaftStatus {
    /// The leader this node follows, if any.
    pub leader: Option<NodeId>,
    /// Current term.
    pub term: u64,
    /// Newest applied log index.
    pub applied: u64,
    /// Newest log index.
    pub last_log: u64,
    /// Members that vote.
    pub voters: Vec<NodeId>,
    /// Members that only follow.
    pub learners: Vec<NodeId>,
    /// This node's session is alive.
    pub session: Option<SessionId>,
    /// This node may read without asking.
    pub leased: bool,
    /// Map version.
    pub epoch: Epoch,
}

/// A map that is cheap to share.
pub type SharedMap = std::sync::Arc<ClusterMap>;
