//! Every bound and timeout, in one place, checked against each other at compile time.

use std::time::Duration;

/// One kibibyte.
pub const KIB: u64 = 1 << 10;
/// One mebibyte.
pub const MIB: u64 = 1 << 20;
/// One gibibyte.
pub const GIB: u64 = 1 << 30;

// ---- the namespace -------------------------------------------------------------------------------

/// Longest name of a directory entry, in bytes.
pub const NAME_MAX: usize = 255;
/// Longest target of a symbolic link, in bytes (PATH_MAX without its NUL).
pub const SYMLINK_MAX: usize = 4_095;
/// Largest file, in bytes: offsets stay far away from the sign bit.
pub const FILE_SIZE_MAX: u64 = 1 << 62;
/// Most hard links of one inode.
pub const LINK_MAX: u32 = 65_000;
/// Longest name of an extended attribute, its namespace included.
pub const XATTR_NAME_MAX: usize = 255;
/// Longest value of an extended attribute, in bytes. (What Linux takes; it also fits into one command.)
pub const XATTR_VALUE_MAX: usize = 64 * KIB as usize;
/// Most bytes of a list of an inode's extended attributes: their names, each with a NUL.
pub const XATTR_LIST_MAX: usize = 64 * KIB as usize;
/// Most bytes of names and values of all extended attributes of an inode.
pub const XATTR_INODE_MAX: usize = 128 * KIB as usize;
/// Most entries of an access control list: what the kernel reads of one (a page, less its head).
pub const ACL_ENTRIES_MAX: usize = 511;
/// A file of at most this many bytes lives in its inode.
pub const INLINE_MAX: usize = 4 * KIB as usize;
/// Most pieces in one `Commit` command; a larger flush is several commands.
pub const COMMIT_PIECES_MAX: usize = 256;
/// Most extents that one `Clone` command copies; a larger copy is several commands.
pub const CLONE_EXTENTS_MAX: usize = 1_024;
/// Most inodes whose atime one command sets.
pub const TOUCH_MAX: usize = 1_024;
/// Chunk ids handed out in one batch.
pub const CHUNK_ID_BATCH: u32 = 256;
/// An inode with no name and no holder is reaped this long after it lost its last name, so that a node
/// that has it open can say so first.
pub const ORPHAN_GRACE: Duration = Duration::from_secs(10);

/// Most directories that are shared trees.
pub const SHARES_MAX: usize = 1_024;
/// What was deleted at a longer path is not kept in the trash, in bytes (PATH_MAX without its NUL).
pub const TRASH_PATH_MAX: usize = 4_095;
/// Longest that what was deleted is kept.
pub const TRASH_RETENTION_MAX: Duration = Duration::from_secs(3_650 * 86_400);
/// Most entries of the trash: beyond, the oldest go before their time.
pub const TRASH_ENTRIES_MAX: u64 = 1_000_000;
/// Most entries of the trash that one command empties.
pub const TRASH_BATCH_MAX: usize = 1_024;

// ---- chunks and shards ---------------------------------------------------------------------------

/// Largest chunk any version may write.
pub const CHUNK_MAX: u32 = 64 * MIB as u32;
/// The size this version cuts chunks to: large enough that metadata is small, small enough that a writer
/// has several in flight.
pub const CHUNK_TARGET: u32 = 16 * MIB as u32;
/// Chunks up to this size are kept as plain copies (`k = 1`) instead of being erasure-coded.
pub const COPY_MAX: u32 = 256 * KIB as u32;
/// Bytes of one cell: the unit of striping, checksumming, fetching and caching.
pub const CELL: u32 = MIB as u32;
/// Rows of the placement table.
pub const PARTITIONS: u16 = 1_024;
/// Most nodes in a row of the placement table, so most shards of a chunk (8 + 3, and a spare).
pub const PARTITION_WIDTH_MAX: usize = 12;

// ---- sessions, leases and Raft -------------------------------------------------------------------

/// How often every node reports to the leader: renews its session and its read lease.
pub const LEASE_RENEW: Duration = Duration::from_millis(200);
/// How long a read lease lasts, counted by the holder from when it asked and by the leader from when it
/// answered.
pub const READ_LEASE: Duration = Duration::from_millis(800);
/// Two clocks may differ in rate by at most this many parts per thousand.
pub const CLOCK_DRIFT_PER_MILLE: u32 = 10;
/// A session whose node was not heard for this long is expired, and its locks with it.
pub const SESSION_LEASE: Duration = Duration::from_secs(10);
/// Raft heartbeat interval.
pub const RAFT_HEARTBEAT: Duration = Duration::from_millis(200);
/// Shortest Raft election timeout.
pub const RAFT_ELECTION_MIN: Duration = Duration::from_millis(900);
/// Longest Raft election timeout.
pub const RAFT_ELECTION_MAX: Duration = Duration::from_millis(1_500);
/// Log entries kept behind a snapshot, so that a slow follower rarely needs one.
pub const LOG_KEEP: u64 = 100_000;
/// A snapshot is built after this many entries.
pub const SNAPSHOT_EVERY: u64 = 100_000;
/// Most commands in one log entry.
pub const PROPOSAL_BATCH_MAX: usize = 256;
/// Most commands of this node waiting for the leader; more wait outside.
pub const PROPOSALS_IN_FLIGHT_MAX: usize = 4_096;
/// A namespace operation that has no answer after this long fails with EIO.
pub const OPERATION_DEADLINE: Duration = Duration::from_secs(30);

// ---- the network ---------------------------------------------------------------------------------

/// Largest head of a call: the serialized request or answer without its bulk body.
pub const CALL_HEAD_MAX: usize = 16 * MIB as usize;
/// Largest body of a call.
pub const CALL_BODY_MAX: usize = CHUNK_MAX as usize;
/// Bodies from this size on travel on the bulk lane.
pub const BULK_FROM: usize = 64 * KIB as usize;
/// Plain bytes in one sealed record of the bulk lane.
pub const BULK_RECORD: usize = 256 * KIB as usize;
/// A call without a deadline of its own.
pub const CALL_DEADLINE: Duration = Duration::from_secs(5);
/// A bulk transfer that moves no byte for this long has failed.
pub const BULK_IDLE: Duration = Duration::from_millis(1_500);
/// Time to set up a connection.
pub const CONNECT_DEADLINE: Duration = Duration::from_millis(1_000);
/// How often each peer is asked for a sign of life.
pub const PING_EVERY: Duration = Duration::from_millis(300);
/// A peer that was silent for this long is suspect: it is asked last.
pub const SUSPECT_AFTER: Duration = Duration::from_millis(1_000);
/// How long a shard fetch may take before another holder or parity is asked as well.
pub const HEDGE_AFTER: Duration = Duration::from_millis(400);
/// Calls served at once for one peer.
pub const CALLS_PER_PEER_MAX: usize = 1_024;

// ---- the mount -----------------------------------------------------------------------------------

/// Largest READ or WRITE the kernel may send.
pub const FUSE_IO_MAX: u32 = MIB as u32;
/// How far ahead of a sequential reader cells are fetched.
pub const READAHEAD: u64 = 16 * MIB;
/// Chunks of one writer that may be on their way to the shard holders at once.
pub const WRITER_CHUNKS_IN_FLIGHT: usize = 3;
/// Cells being fetched at once by one node.
pub const FETCHES_IN_FLIGHT_MAX: usize = 64;
/// Entries in one page of a directory listing.
pub const READDIR_PAGE: usize = 1_024;

const _: () = {
    assert!(CHUNK_TARGET <= CHUNK_MAX);
    assert!(CHUNK_TARGET.is_multiple_of(CELL));
    assert!(INLINE_MAX < COPY_MAX as usize);
    assert!(XATTR_VALUE_MAX < XATTR_INODE_MAX);
    // A leader that is cut off stops granting leases before anyone else may be elected.
    assert!(READ_LEASE.as_millis() < RAFT_ELECTION_MIN.as_millis());
    assert!(LEASE_RENEW.as_millis() * 3 < READ_LEASE.as_millis());
    assert!(RAFT_HEARTBEAT.as_millis() * 3 < RAFT_ELECTION_MIN.as_millis());
    assert!(READ_LEASE.as_millis() < SESSION_LEASE.as_millis());
    assert!(ORPHAN_GRACE.as_millis() >= SESSION_LEASE.as_millis());
    assert!(BULK_RECORD <= CALL_BODY_MAX);
};
