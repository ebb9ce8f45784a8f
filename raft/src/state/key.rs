//! Keys: numbers big endian, so that byte order is number order. Part of the on-disk format.

use hfcache_base::limits::NAME_MAX;
use hfcache_base::meta::{Subject, Timestamp, TrashId};
use hfcache_base::{ChunkId, InodeId, Kind, NodeId, SessionId, placement};

/// Counters, state time and totals.
pub(crate) const COUNTERS: &[u8] = b"counters";
/// The cluster map.
pub(crate) const MAP: &[u8] = b"map";
/// Which directories are shared trees.
pub(crate) const SHARES: &[u8] = b"shares";

/// For how long what is deleted is kept.
pub(crate) const TRASH: &[u8] = b"trash";

/// How many entries the trash has.
pub(crate) const TRASH_ENTRIES: &[u8] = b"trash-entries";

/// What a session has at an inode.
#[derive(Clone, Copy)]
#[repr(u8)]
pub(crate) enum Item {
    /// Locks, waits or the delegation.
    Lock = 0,
    /// A hold on a nameless inode.
    Hold = 1,
    /// A nameless inode of its own that may get a name.
    Linkable = 2,
}

pub(crate) fn inode(ino: InodeId) -> [u8; 8] {
    ino.0.to_be_bytes()
}

pub(crate) fn chunk(id: ChunkId) -> [u8; 8] {
    id.0.to_be_bytes()
}

pub(crate) fn session(id: SessionId) -> [u8; 8] {
    id.0.to_be_bytes()
}

fn pair(a: u64, b: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&a.to_be_bytes());
    key[8..].copy_from_slice(&b.to_be_bytes());
    key
}

/// An extent by its end.
pub(crate) fn extent(ino: InodeId, end: u64) -> [u8; 16] {
    pair(ino.0, end)
}

pub(crate) fn reply(session: SessionId, sequence: u64) -> [u8; 16] {
    pair(session.0, sequence)
}

pub(crate) fn item(session: SessionId, ino: InodeId, what: Item) -> [u8; 17] {
    let mut key = [what as u8; 17];
    key[..16].copy_from_slice(&pair(session.0, ino.0));
    key
}

/// Whose usage, limit or rate.
pub(crate) fn subject(of: Subject) -> [u8; 9] {
    let (kind, number) = match of {
        Subject::Tree(ino) => (0, ino.0),
        Subject::User(uid) => (1, u64::from(uid)),
        Subject::Group(gid) => (2, u64::from(gid)),
    };
    let mut key = [kind; 9];
    key[1..].copy_from_slice(&number.to_be_bytes());
    key
}

/// Who a subject's key stands for.
pub(crate) fn subject_of(key: &[u8]) -> Option<Subject> {
    let number = u64::from_be_bytes(key.get(1..9)?.try_into().ok()?);
    let id = u32::try_from(number);
    match key.first()? {
        0 => Some(Subject::Tree(InodeId(number))),
        1 => Some(Subject::User(id.ok()?)),
        2 => Some(Subject::Group(id.ok()?)),
        _ => None,
    }
}

/// The names of an inode in one directory.
pub(crate) fn names(ino: InodeId, dir: InodeId) -> [u8; 16] {
    pair(ino.0, dir.0)
}

/// The directory in such a key.
pub(crate) fn names_dir(key: &[u8]) -> Option<InodeId> {
    Some(InodeId(u64::from_be_bytes(key.get(8..16)?.try_into().ok()?)))
}

/// An entry of the trash in the order of deletion. The state's time is never negative here: it is that of the
/// newest command, and an entry before 1970 would only be due too late.
pub(crate) fn trash_order(id: TrashId) -> [u8; 16] {
    pair(id.at.0.max(0).cast_unsigned(), id.ino.0)
}

/// The entry in such a key.
pub(crate) fn trash_id(key: &[u8]) -> Option<TrashId> {
    let at = i64::try_from(first_number(key)?).ok()?;
    let ino = u64::from_be_bytes(key.get(8..16)?.try_into().ok()?);
    (key.len() == 16).then_some(TrashId { at: Timestamp(at), ino: InodeId(ino) })
}

/// The inode of an item's key, and what is there.
pub(crate) fn item_parts(key: &[u8]) -> Option<(InodeId, Item)> {
    let ino = u64::from_be_bytes(key.get(8..16)?.try_into().ok()?);
    match key.get(16..)? {
        [0] => Some((InodeId(ino), Item::Lock)),
        [1] => Some((InodeId(ino), Item::Hold)),
        [2] => Some((InodeId(ino), Item::Linkable)),
        _ => None,
    }
}

/// The number a key begins with.
pub(crate) fn first_number(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(key.get(..8)?.try_into().ok()?))
}

/// Who has this public key.
pub(crate) fn node_key(hash: &[u8; 32]) -> Vec<u8> {
    [b"key/".as_slice(), hash].concat()
}

/// Nonces of the newest sessions of a node.
pub(crate) fn nonces(node: NodeId) -> Vec<u8> {
    [b"nonces/".as_slice(), &node.0.to_be_bytes()].concat()
}

/// An extended attribute.
pub(crate) fn xattr(ino: InodeId, name: &[u8]) -> Vec<u8> {
    [&ino.0.to_be_bytes(), name].concat()
}

/// A row of a directory in which listings go from `hash` on.
pub(crate) fn dentries(parent: InodeId, hash: u64) -> [u8; 16] {
    pair(parent.0, hash)
}

pub(crate) fn dentry(parent: InodeId, name: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(16 + name.len());
    key.extend_from_slice(&dentries(parent, name_hash(name)));
    key.extend_from_slice(name);
    key
}

/// The hash and the name in a dentry's key.
pub(crate) fn dentry_parts(key: &[u8]) -> Option<(u64, &[u8])> {
    let hash = u64::from_be_bytes(key.get(8..16)?.try_into().ok()?);
    Some((hash, key.get(16..)?))
}

/// The place of a name in its directory, also its cookie: 63 bits (the kernel's offsets are signed), never
/// 0, 1 or 2 (start, `.` and `..`) and never the largest (which some programs take for the end).
/// FNV-1a behind the chunk mixer: fixed for ever.
pub(crate) fn name_hash(name: &[u8]) -> u64 {
    let fnv = name
        .iter()
        .fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3));
    (placement::mix(fnv) >> 1).clamp(3, i64::MAX as u64 - 1)
}

/// Whether a name can be stored.
pub(crate) fn check_name(name: &[u8]) -> Result<(), Kind> {
    if name.len() > NAME_MAX {
        return Err(Kind::NameTooLong);
    }
    let special = name.is_empty() || name == b"." || name == b"..";
    if special || name.iter().any(|b| *b == b'/' || *b == 0) {
        return Err(Kind::Invalid);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_hash_is_fixed_for_ever() {
        assert_eq!(name_hash(b""), placement::mix(0xcbf2_9ce4_8422_2325) >> 1);
        for name in [b"a".as_slice(), b"config.json", &[255; 255]] {
            assert!((3..i64::MAX as u64).contains(&name_hash(name)));
        }
        assert_eq!(dentry_parts(&dentry(InodeId(7), b"x")), Some((name_hash(b"x"), b"x".as_slice())));
    }
}
