//! The namespace as the mount and the chunk store see it.

use crate::meta::{
    Applied, Attr, ChunkRef, Content, DirEntry, Lock, LockHolder, LockKind, Op, Quota, RaftStatus, Rate,
    Reply, Session, Share, SharedMap, Subject, Token, Totals, TrashId, Trashed, Usage,
};
use crate::seam::Moment;
use crate::{ChunkId, InodeId, Kind, Result, SessionId};
use async_trait::async_trait;
use std::sync::Arc;
use std::time::Duration;

/// A consistent state of the namespace. Hold it only as long as a few look-ups take: it pins pages of the
/// store, so never across an `await`.
pub trait View: Send {
    /// What was looked at in this view so far may be told to anybody once this index is settled, see
    /// [`Meta::settled`]. `None`: at once. Also an error tells something.
    fn settles_at(&self) -> Option<u64> {
        None
    }
    /// The inode behind a name. `.` and `..` are not stored.
    ///
    /// # Errors
    /// [`Kind::NotFound`]; [`Kind::NotDirectory`].
    fn lookup(&self, parent: InodeId, name: &[u8]) -> Result<Attr>;
    /// An inode's attributes.
    ///
    /// # Errors
    /// [`Kind::NotFound`].
    fn attr(&self, ino: InodeId) -> Result<Attr>;
    /// The directory a directory is in; the root's is the root.
    ///
    /// # Errors
    /// [`Kind::NotFound`]; [`Kind::NotDirectory`].
    fn parent(&self, dir: InodeId) -> Result<InodeId>;
    /// Up to `limit` entries after the one with this cookie (0: from the start).
    ///
    /// # Errors
    /// [`Kind::NotFound`]; [`Kind::NotDirectory`].
    fn readdir(&self, dir: InodeId, after: u64, limit: usize) -> Result<Vec<DirEntry>>;
    /// The target of a symbolic link.
    ///
    /// # Errors
    /// [`Kind::NotFound`]; [`Kind::Invalid`] if it is none.
    fn readlink(&self, ino: InodeId) -> Result<Vec<u8>>;
    /// A file's attributes and bytes, in one state.
    ///
    /// # Errors
    /// [`Kind::NotFound`]; [`Kind::IsDirectory`]; [`Kind::Invalid`].
    fn content(&self, ino: InodeId) -> Result<(Attr, Content)>;
    /// Up to `limit` chunks with ids greater than `after`, in order of id.
    ///
    /// # Errors
    /// Only if the store is damaged.
    fn chunks(&self, after: ChunkId, limit: usize) -> Result<Vec<ChunkRef>>;
    /// A chunk, if a file refers to it.
    ///
    /// # Errors
    /// Only if the store is damaged.
    fn chunk(&self, id: ChunkId) -> Result<Option<ChunkRef>>;
    /// The live session that was handed this chunk id, if it still lives: the chunk may be on its way
    /// into a file.
    ///
    /// # Errors
    /// Only if the store is damaged.
    fn chunk_session(&self, id: ChunkId) -> Result<Option<SessionId>>;
    /// Sums.
    ///
    /// # Errors
    /// Only if the store is damaged.
    fn totals(&self) -> Result<Totals>;
    /// Live sessions.
    ///
    /// # Errors
    /// Only if the store is damaged.
    fn sessions(&self) -> Result<Vec<Session>>;
    /// Join tokens, also expired and revoked ones.
    ///
    /// # Errors
    /// Only if the store is damaged.
    fn tokens(&self) -> Result<Vec<Token>>;
    /// What a subject uses, by counters: one look-up however large it is. An inode that is no directory
    /// answers for itself alone.
    ///
    /// # Errors
    /// [`Kind::NotFound`].
    fn usage(&self, _of: Subject) -> Result<Usage> {
        Err(Kind::NotSupported.into())
    }
    /// Every quota.
    ///
    /// # Errors
    /// Only if the store is damaged.
    fn quotas(&self) -> Result<Vec<Quota>> {
        Ok(Vec::new())
    }
    /// The quotas that the bytes of this inode, and what is made in it, count for: of the directories it is
    /// in, nearest first, then of its owner and its group.
    ///
    /// # Errors
    /// [`Kind::NotFound`].
    fn quotas_on(&self, _ino: InodeId) -> Result<Vec<Quota>> {
        Ok(Vec::new())
    }
    /// Every rate limit.
    ///
    /// # Errors
    /// Only if the store is damaged.
    fn rates(&self) -> Result<Vec<(Subject, Rate)>> {
        Ok(Vec::new())
    }
    /// The path of a directory from the root, without a slash at either end. Takes a look at every name of
    /// the directories above it: for people.
    ///
    /// # Errors
    /// [`Kind::NotFound`]; [`Kind::NotDirectory`].
    fn path(&self, _dir: InodeId) -> Result<Vec<u8>> {
        Err(Kind::NotSupported.into())
    }
    /// The value of an extended attribute, if there is one of that name.
    ///
    /// # Errors
    /// [`crate::Kind::NotFound`].
    fn xattr(&self, _ino: InodeId, _name: &[u8]) -> Result<Option<Vec<u8>>> {
        Err(crate::Kind::NotSupported.into())
    }
    /// The names of all extended attributes, in order.
    ///
    /// # Errors
    /// [`crate::Kind::NotFound`].
    fn xattrs(&self, _ino: InodeId) -> Result<Vec<Vec<u8>>> {
        Err(crate::Kind::NotSupported.into())
    }
    /// Directories that are shared trees, in order of inode.
    ///
    /// # Errors
    /// Only if the store is damaged.
    fn shares(&self) -> Result<Vec<(InodeId, Share)>>;
    /// Up to `limit` entries of the trash after this one, oldest first.
    ///
    /// # Errors
    /// Only if the store is damaged.
    fn trash(&self, _after: Option<TrashId>, _limit: usize) -> Result<Vec<Trashed>> {
        Ok(Vec::new())
    }
    /// How many entries the trash has.
    ///
    /// # Errors
    /// Only if the store is damaged.
    fn trash_entries(&self) -> Result<u64> {
        Ok(0)
    }
    /// For how many seconds what is deleted is kept; 0 for not at all.
    ///
    /// # Errors
    /// Only if the store is damaged.
    fn trash_retention(&self) -> Result<u64> {
        Ok(0)
    }
}

/// Told of every applied command, in order, on every node, before the command counts as applied here.
/// Must return at once: it runs inside the apply loop. It may send attribute notices to the kernel, and
/// must hand everything that can block to a task of its own.
pub trait ChangeSink: Send + Sync + 'static {
    /// These commands were applied and can be read.
    fn applied(&self, batch: &[Applied]);
    /// The state was replaced by a snapshot: nothing cached is worth anything.
    fn replaced(&self);
}

/// What became of [`Meta::unlock_local`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unlocked {
    /// It is given up.
    Here,
    /// [`Meta::unlock`] has to follow: another node may have been told already.
    Ask,
    /// So too, but this much later: another node was told, and the next holder shall run first.
    AskAfter(Duration),
}

/// See the module. All futures may be dropped at any `await`; a dropped `commit` may still take effect.
#[async_trait]
pub trait Meta: Send + Sync + 'static {
    /// The newest state, if this node may read it without asking anyone: it holds a read lease. The
    /// moment says until when what is read stays linearizable, for caches with an expiry. What is read may be
    /// told when it is settled, see [`View::settles_at`].
    fn read_local(&self) -> Option<(Box<dyn View + '_>, Moment)>;
    /// Waits until this node may read; then [`Meta::read_stale`] shows every operation that had returned
    /// anywhere before this call.
    ///
    /// # Errors
    /// [`Kind::Unavailable`] without a quorum within the deadline; [`Kind::Fenced`].
    async fn read_point(&self, deadline: Duration) -> Result<()>;
    /// The newest state this node has, however old that is.
    fn read_stale(&self) -> Box<dyn View + '_>;
    /// Waits until a log index is settled: from then on no node shows a state from before it. What a view
    /// showed must not be told before its [`View::settles_at`] is: it may be the effect of an operation that is
    /// still under way, which another node does not show yet.
    ///
    /// # Errors
    /// [`Kind::Unavailable`] without a quorum within the deadline; [`Kind::Fenced`].
    async fn settled(&self, _index: u64, _deadline: Duration) -> Result<()> {
        Ok(())
    }
    /// Proposes an operation, waits until it is applied here, and returns its reply. Repeats it until
    /// there is an answer or [`crate::limits::OPERATION_DEADLINE`] has passed; it takes effect at most once.
    ///
    /// # Errors
    /// The state machine's own answer; [`Kind::TimedOut`], [`Kind::Unavailable`];
    /// [`Kind::Fenced`] when this node's session has ended.
    async fn commit(&self, op: Op) -> Result<Reply>;
    /// One fresh chunk id out of this session's reserve.
    ///
    /// # Errors
    /// As [`Meta::commit`].
    async fn chunk_id(&self) -> Result<ChunkId>;
    /// Takes a lock, if that can be decided on this node at once. `None`: use [`Meta::lock`].
    fn lock_local(&self, ino: InodeId, lock: Lock) -> Option<Result<()>>;
    /// Takes a lock (or changes a held one), waiting for it if `wait`. Dropping the future cancels the wait;
    /// a lock that was granted meanwhile is given back.
    ///
    /// # Errors
    /// [`Kind::WouldBlock`] on a conflict without `wait`; else as [`Meta::commit`].
    async fn lock(&self, ino: InodeId, lock: Lock, wait: bool) -> Result<()>;
    /// Gives up a range, as far as that can be done on this node at once.
    fn unlock_local(&self, ino: InodeId, lock: Lock) -> Unlocked;
    /// Gives up a range.
    ///
    /// # Errors
    /// As [`Meta::commit`].
    async fn unlock(&self, ino: InodeId, lock: Lock) -> Result<()>;
    /// Who would be in the way of this lock (F_GETLK).
    ///
    /// # Errors
    /// As [`Meta::commit`].
    async fn lock_test(&self, ino: InodeId, lock: Lock) -> Result<Option<LockHolder>>;
    /// Whether this owner holds any lock of this kind here: if not, closing needs no [`Meta::unlock`].
    fn lock_held(&self, ino: InodeId, kind: LockKind, owner: u64) -> bool;
    /// The cluster map as of the newest applied state.
    fn map(&self) -> SharedMap;
    /// Asks to be told of every change from now on.
    fn subscribe(&self, sink: Arc<dyn ChangeSink>);
    /// For `status`.
    fn status(&self) -> RaftStatus;
}
