//! Extended attributes, access control lists and set-id bits between two nodes.

mod common;

use common::{Node, ROOT, World, ask, until};
use hfcache_base::acl;
use hfcache_base::limits::XATTR_VALUE_MAX;
use hfcache_base::meta::{SetAttr, XattrMode};
use hfcache_base::seam::Meta;
use hfcache_fuse::ops::{Caller, FileSystem, WriteFlags};
use std::sync::atomic::Ordering;

const ANY: XattrMode = XattrMode::Any;
const RW: i32 = libc::O_RDWR;

/// Owner, user 1000, group, mask, others.
fn list(user: u16, mask: u16) -> Vec<u8> {
    let none = u32::MAX;
    let mut out = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in
        [(1u16, 6u16, none), (2, user, 1_000), (4, 4, none), (0x10, mask, none), (0x20, 0, none)]
    {
        out.extend_from_slice(&tag.to_le_bytes());
        out.extend_from_slice(&permissions.to_le_bytes());
        out.extend_from_slice(&id.to_le_bytes());
    }
    out
}

fn told(node: &Node, ino: hfcache_base::InodeId) -> usize {
    node.told.attrs.lock().iter().filter(|told| **told == ino).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_set_here_is_there() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    let ino = a.put(ROOT, "f", b"x").await;
    assert_eq!(a.setxattr(ino, "user.a", b"1", XattrMode::Create).await, Ok(()));
    assert_eq!(b.getxattr(ino, "user.a").await, Ok(b"1".to_vec()));
    assert_eq!(b.setxattr(ino, "user.a", b"2", XattrMode::Create).await, Err(libc::EEXIST));
    assert_eq!(b.setxattr(ino, "user.b", b"2", XattrMode::Replace).await, Err(libc::ENODATA));
    assert_eq!(a.setxattr(ino, "trusted.t", b"", ANY).await, Ok(()));
    // What is root's is not shown to others.
    assert_eq!(b.listxattr(ino).await, Ok(vec![b"user.a".to_vec()]));
    let root = Caller { uid: 0, ..b.caller() };
    assert_eq!(
        ask(|r| b.fs.listxattr(root, ino, r)).await,
        Ok(vec![b"trusted.t".to_vec(), b"user.a".to_vec()])
    );
    assert_eq!(b.removexattr(ino, "user.a").await, Ok(()));
    assert_eq!(a.getxattr(ino, "user.a").await, Err(libc::ENODATA));
    assert_eq!(a.removexattr(ino, "user.a").await, Err(libc::ENODATA));
    for (name, errno) in [("user.", libc::EINVAL), ("other.x", libc::EOPNOTSUPP), ("", libc::ERANGE)] {
        assert_eq!(a.getxattr(ino, name).await, Err(errno), "{name}");
        assert_eq!(a.setxattr(ino, name, b"", ANY).await, Err(errno), "{name}");
        assert_eq!(a.removexattr(ino, name).await, Err(errno), "{name}");
    }
    let commits = a.meta.commits.load(Ordering::SeqCst);
    let huge = vec![0; XATTR_VALUE_MAX + 1];
    assert_eq!(a.setxattr(ino, "user.a", &huge, ANY).await, Err(libc::E2BIG));
    assert_eq!(a.meta.commits.load(Ordering::SeqCst), commits, "it is not even asked for");
    let read_only = world.node_with(true, 1);
    assert_eq!(read_only.setxattr(ino, "user.a", b"", ANY).await, Err(libc::EROFS));
    assert_eq!(read_only.removexattr(ino, "trusted.t").await, Err(libc::EROFS));
    a.meta.leased.store(false, Ordering::SeqCst);
    assert_eq!(a.getxattr(ino, "trusted.t").await, Ok(Vec::new()), "without a lease, too");
}

/// The kernel keeps lists as long as attributes, so it is told whenever one changes.
#[tokio::test(flavor = "multi_thread")]
async fn the_kernel_forgets_a_list_that_changes() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    let ino = a.put(ROOT, "f", b"x").await;
    let access = std::str::from_utf8(acl::ACCESS).expect("text");
    for round in 0..3 {
        a.getattr(ino).await.expect("getattr");
        b.getattr(ino).await.expect("getattr");
        let (here, there) = (told(&a, ino), told(&b, ino));
        match round {
            0 => assert_eq!(a.setxattr(ino, access, &list(4, 4), ANY).await, Ok(())),
            1 => {
                let set = SetAttr { mode: Some(0o660), ..SetAttr::default() };
                a.setattr(ino, set).await.expect("chmod");
                assert_eq!(b.getxattr(ino, access).await, Ok(list(4, 6)));
            }
            _ => assert_eq!(a.removexattr(ino, access).await, Ok(())),
        }
        // Before the change was answered, on both.
        assert!(told(&a, ino) > here && told(&b, ino) > there, "round {round}");
    }
}

/// The kernel asks the owner it knows before it lets anybody set a list, and learns of a new one by a look-up only.
#[tokio::test(flavor = "multi_thread")]
async fn names_are_looked_up_again_when_an_owner_changes() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    for node in [&a, &b] {
        node.told.can_expire_names.store(true, Ordering::SeqCst);
    }
    let ino = a.put(ROOT, "f", b"x").await;
    b.lookup(ROOT, "f").await.expect("lookup");
    let before = b.told.names.load(Ordering::SeqCst);
    a.setattr(ino, SetAttr { mode: Some(0o600), ..SetAttr::default() }).await.expect("chmod");
    assert_eq!(b.told.names.load(Ordering::SeqCst), before, "its owner is the same");
    a.setattr(ino, SetAttr { uid: Some(7), ..SetAttr::default() }).await.expect("chown");
    assert!(b.told.names.load(Ordering::SeqCst) > before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_takes_set_id_bits_away() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    let ino = a.put(ROOT, "f", b"program").await;
    let chmod = |mode| SetAttr { mode: Some(mode), ..SetAttr::default() };
    let mode = async |node: &Node| node.getattr(ino).await.expect("getattr").mode;
    let kills = WriteFlags { kill_set_id: true, ..WriteFlags::default() };
    let h = b.open(ino, RW).await.expect("open").handle;
    let write = async |flags| ask(|r| b.fs.write(b.caller(), ino, h, 0, b"P", flags, r)).await;
    assert_eq!(write(kills).await, Ok(1));
    let commits = b.meta.commits.load(Ordering::SeqCst);
    for _ in 0..5 {
        assert_eq!(write(kills).await, Ok(1));
    }
    assert_eq!(b.meta.commits.load(Ordering::SeqCst), commits, "nothing to take away");
    for (before, after) in [(0o6755, 0o755), (0o4711, 0o711), (0o2745, 0o2745), (0o2755, 0o755)] {
        a.setattr(ino, chmod(before)).await.expect("chmod");
        // Who may keep them does.
        assert_eq!(write(WriteFlags::default()).await, Ok(1));
        assert_eq!(mode(&a).await, before);
        let knew = told(&b, ino);
        assert_eq!(write(kills).await, Ok(1));
        assert_eq!((mode(&a).await, mode(&b).await), (after, after), "{before:o}");
        assert!(before == after || told(&b, ino) > knew, "the kernel there believes the old mode");
    }
    // As whom the caller is known where there is no flag.
    let root = Caller { uid: 0, ..b.caller() };
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    for who in [root, b.caller()] {
        let left = if who.uid == 0 { 0o4755 } else { 0o755 };
        a.setattr(ino, chmod(0o4755)).await.expect("chmod");
        assert_eq!(ask(|r| b.fs.fallocate(who, ino, h, 0, 1, punch as u32, r)).await, Ok(()));
        assert_eq!(mode(&a).await, left, "fallocate");
        a.setattr(ino, chmod(0o4755)).await.expect("chmod");
        let opened = ask(|r| b.fs.open(who, ino, (RW | libc::O_TRUNC) as u32, r)).await;
        b.close(ino, opened.expect("open").handle).await.expect("close");
        assert_eq!(mode(&a).await, left, "O_TRUNC");
    }
    b.close(ino, h).await.expect("close");
    until("it is closed", || a.meta.read_stale().attr(ino).is_ok()).await;
}
