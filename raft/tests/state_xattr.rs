//! Extended attributes and access control lists: their rules, their limits, and that mode and list are one.

#![expect(clippy::unwrap_used, reason = "a failure ends the test")]

mod state_support;

use hfcache_base::acl;
use hfcache_base::limits::*;
use hfcache_base::meta::*;
use hfcache_base::seam::View as _;
use hfcache_base::{InodeId, Kind, SessionId};
use hfcache_raft::kv::Table;
use state_support::*;

const GONE: InodeId = InodeId(999);
const ANY: XattrMode = XattrMode::Any;

fn set(ino: InodeId, name: &[u8], value: &[u8], mode: XattrMode) -> Op {
    Op::SetXattr { ino, name: name.to_vec(), value: value.to_vec(), mode, kill_sgid: false }
}

fn remove(ino: InodeId, name: &[u8]) -> Op {
    Op::RemoveXattr { ino, name: name.to_vec() }
}

fn get(w: &World, ino: InodeId, name: &[u8]) -> Option<Vec<u8>> {
    w.view().xattr(ino, name).unwrap()
}

fn mode(w: &World, ino: InodeId) -> u32 {
    w.view().attr(ino).unwrap().mode
}

fn rows(w: &World) -> usize {
    w.store.iter().filter(|(table, ..)| *table == Table::Xattr).count()
}

/// A list of (tag, permissions, id), as the kernel writes it.
fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut out = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        out.extend_from_slice(&tag.to_le_bytes());
        out.extend_from_slice(&permissions.to_le_bytes());
        out.extend_from_slice(&id.to_le_bytes());
    }
    out
}

const NONE: u32 = u32::MAX;

/// Owner, one user, group, mask, others.
fn for_user(owner: u16, user: u16, group: u16, mask: u16, other: u16) -> Vec<u8> {
    let named = (2, user, 1_000);
    list(&[(1, owner, NONE), named, (4, group, NONE), (0x10, mask, NONE), (0x20, other, NONE)])
}

fn plain(owner: u16, group: u16, other: u16) -> Vec<u8> {
    list(&[(1, owner, NONE), (4, group, NONE), (0x20, other, NONE)])
}

fn make(parent: InodeId, name: &str, node: NewNode, mode: u32, umask: u32) -> Op {
    let name = name.as_bytes().to_vec();
    Op::Create { parent, name, node, mode, umask, uid: 10, gid: 20, exclusive: true }
}

fn made(w: &mut World, s: SessionId, op: Op) -> InodeId {
    match w.run(s, op).unwrap() {
        Reply::Entry { attr, created: true } => attr.ino,
        other => panic!("{other:?}"),
    }
}

#[test]
fn attributes_are_set_listed_replaced_and_removed() {
    let (mut w, s) = World::new();
    let f = w.file(s, ROOT, "f");
    let other = w.file(s, ROOT, "g");
    let before = w.view().attr(f).unwrap();
    let changes = w.changes(s, set(f, b"user.b", b"1", ANY));
    assert_eq!(changes, [Change::Inode { ino: f, data: false }]);
    let after = w.view().attr(f).unwrap();
    assert!(after.ctime > before.ctime);
    assert_eq!((after.mtime, after.data_version, after.size), (before.mtime, before.data_version, 0));
    w.run(s, set(f, b"user.a", b"", ANY)).unwrap();
    w.run(s, set(f, b"trusted.t", b"\0\xff", ANY)).unwrap();
    w.run(s, set(f, b"security.s\xff", b"x", ANY)).unwrap();
    w.run(s, set(other, b"user.a", b"not this one", ANY)).unwrap();
    let names = [b"security.s\xff".as_slice(), b"trusted.t", b"user.a", b"user.b"];
    assert_eq!(w.view().xattrs(f).unwrap(), names);
    assert_eq!(get(&w, f, b"user.a"), Some(Vec::new()));
    assert_eq!(get(&w, f, b"user.c"), None);
    w.run(s, set(f, b"user.b", b"longer", XattrMode::Replace)).unwrap();
    assert_eq!(get(&w, f, b"user.b"), Some(b"longer".to_vec()));
    for (op, kind) in [
        (set(f, b"user.b", b"", XattrMode::Create), Kind::Exists),
        (set(f, b"user.c", b"", XattrMode::Replace), Kind::NoData),
        (remove(f, b"user.c"), Kind::NoData),
    ] {
        assert_eq!(w.run(s, op.clone()), Err(kind), "{op:?}");
    }
    let changes = w.changes(s, remove(f, b"user.b"));
    assert_eq!(changes, [Change::Inode { ino: f, data: false }]);
    assert_eq!(get(&w, f, b"user.b"), None);
    // They go with the inode, and only with it.
    w.run(s, link(f, ROOT, "h")).unwrap();
    w.run(s, unlink(ROOT, "f")).unwrap();
    assert_eq!(get(&w, f, b"trusted.t"), Some(b"\0\xff".to_vec()));
    w.run(s, unlink(ROOT, "h")).unwrap();
    // Also a file without a name may be given some while it is open.
    w.run(s, set(f, b"user.late", b"1", ANY)).unwrap();
    w.now += 11 * SECOND;
    w.run(SessionId(0), Op::Reap).unwrap();
    assert_eq!(w.view().xattr(f, b"user.a").unwrap_err().kind(), Kind::NotFound);
    assert_eq!(w.view().xattrs(f).unwrap_err().kind(), Kind::NotFound);
    assert_eq!(rows(&w), 1);
}

#[test]
fn what_cannot_be_is_refused() {
    let (mut w, s) = World::new();
    let f = w.file(s, ROOT, "f");
    let d = w.dir(s, ROOT, "d");
    let l = w.make(s, ROOT, "l", NewNode::Symlink(b"t".to_vec()));
    let p = w.make(s, ROOT, "p", NewNode::Special(FileKind::Fifo, 0));
    let user = |len: usize| [b"user.".as_slice(), &vec![b'n'; len - 5]].concat();
    let lists = [acl::ACCESS, acl::DEFAULT];
    for (op, kind) in [
        (set(GONE, b"user.a", b"", ANY), Kind::Stale),
        (remove(GONE, b"user.a"), Kind::Stale),
        (set(f, b"", b"", ANY), Kind::Range),
        (set(f, &user(256), b"", ANY), Kind::Range),
        (remove(f, &user(256)), Kind::Range),
        (set(f, b"user.a\0b", b"", ANY), Kind::Invalid),
        (set(f, b"user.", b"", ANY), Kind::Invalid),
        (set(f, b"trusted.", b"", ANY), Kind::Invalid),
        (set(f, b"user", b"", ANY), Kind::NotSupported),
        (set(f, b"nobody.knows", b"", ANY), Kind::NotSupported),
        (set(f, b"system.posix_acl", b"", ANY), Kind::NotSupported),
        (set(f, b"system.posix_acl_accessx", b"", ANY), Kind::NotSupported),
        (set(f, b"\xff\xfe", b"", ANY), Kind::NotSupported),
        (remove(f, b"os2.x"), Kind::NotSupported),
        (set(f, b"user.a", &vec![0; XATTR_VALUE_MAX + 1], ANY), Kind::ValueTooLong),
        (set(f, acl::ACCESS, &vec![0; XATTR_VALUE_MAX + 1], ANY), Kind::ValueTooLong),
        (set(l, b"user.a", b"", ANY), Kind::NotPermitted),
        (set(p, b"user.a", b"", ANY), Kind::NotPermitted),
        (set(l, acl::ACCESS, &plain(7, 7, 7), ANY), Kind::NotSupported),
        (set(l, acl::DEFAULT, &plain(7, 7, 7), ANY), Kind::NotSupported),
        (set(f, acl::DEFAULT, &plain(7, 7, 7), ANY), Kind::AccessDenied),
        (set(p, acl::DEFAULT, &plain(7, 7, 7), ANY), Kind::AccessDenied),
        (set(f, acl::ACCESS, b"", ANY), Kind::Invalid),
        (set(f, acl::ACCESS, &[2, 0, 0, 0, 1], ANY), Kind::Invalid),
        (set(f, acl::ACCESS, &[1, 0, 0, 0], ANY), Kind::NotSupported),
        (set(d, acl::DEFAULT, &list(&[(1, 7, NONE)]), ANY), Kind::Invalid),
        (set(d, acl::DEFAULT, &list(&[(1, 7, NONE), (4, 9, NONE), (0x20, 7, NONE)]), ANY), Kind::Invalid),
    ] {
        assert_eq!(w.run(s, op.clone()), Err(kind), "{op:?}");
    }
    assert_eq!(rows(&w), 0);
    for op in [set(l, b"trusted.a", b"", ANY), set(p, b"security.a", b"", ANY), set(d, b"user.a", b"", ANY)] {
        w.run(s, op).unwrap();
    }
    w.run(s, set(f, &user(255), &vec![7; XATTR_VALUE_MAX], ANY)).unwrap();
    // No list is the list of the mode: nothing to remove is no error.
    for name in lists {
        assert_eq!(w.changes(s, remove(d, name)), []);
    }
}

#[test]
fn an_inode_has_room_for_so_much_and_gets_it_back() {
    let (mut w, s) = World::new();
    let f = w.file(s, ROOT, "f");
    w.run(s, set(f, b"user.a", &vec![1; XATTR_VALUE_MAX], ANY)).unwrap();
    w.run(s, set(f, b"user.b", &vec![2; XATTR_VALUE_MAX - 14], ANY)).unwrap();
    assert_eq!(w.run(s, set(f, b"user.c", b"", ANY)), Err(Kind::NoSpace));
    assert_eq!(w.run(s, set(f, b"user.b", &vec![2; XATTR_VALUE_MAX - 13], ANY)), Err(Kind::NoSpace));
    // Shorter ones make room.
    w.run(s, set(f, b"user.a", b"1", XattrMode::Replace)).unwrap();
    w.run(s, set(f, b"user.c", &vec![3; 1_000], ANY)).unwrap();
    for name in w.view().xattrs(f).unwrap() {
        w.run(s, remove(f, &name)).unwrap();
    }
    assert_eq!((rows(&w), w.view().xattrs(f).unwrap().len()), (0, 0));
    // Names alone: 256 bytes each in the list.
    let name = |n: usize| format!("user.{n:0>250}").into_bytes();
    for n in 0..XATTR_LIST_MAX / 256 {
        let command = w.command(s, set(f, &name(n), b"", ANY));
        hfcache_raft::state::apply(&mut w.store, &command).unwrap().reply.unwrap();
    }
    assert_eq!(w.run(s, set(f, b"user.one more", b"", ANY)), Err(Kind::NoSpace));
    let list: usize = w.view().xattrs(f).unwrap().iter().map(|n| n.len() + 1).sum();
    assert_eq!(list, XATTR_LIST_MAX);
}

#[test]
fn mode_and_list_are_one() {
    let (mut w, s) = World::new();
    let f = w.file(s, ROOT, "f");
    let chmod = |mode| Op::SetAttr { ino: f, set: SetAttr { mode: Some(mode), ..SetAttr::default() } };
    w.run(s, chmod(0o6640)).unwrap();
    let changes = w.changes(s, set(f, acl::ACCESS, &for_user(7, 6, 4, 6, 0), ANY));
    assert_eq!(changes, [Change::Acl(f), Change::Inode { ino: f, data: false }]);
    assert_eq!(mode(&w, f), 0o6760, "the mask shows as the group");
    let changes = w.changes(s, chmod(0o751));
    assert_eq!(changes, [Change::Acl(f), Change::Inode { ino: f, data: false }]);
    assert_eq!(get(&w, f, acl::ACCESS), Some(for_user(7, 6, 4, 5, 1)));
    assert_eq!(w.view().xattrs(f).unwrap(), [acl::ACCESS]);
    // A list that says no more than a mode is not kept.
    w.run(s, set(f, acl::ACCESS, &plain(6, 4, 0), ANY)).unwrap();
    assert_eq!((mode(&w, f), get(&w, f, acl::ACCESS), rows(&w)), (0o640, None, 0));
    // Removed, or replaced by an empty one: the mode stays.
    for gone in [remove(f, acl::ACCESS), set(f, acl::ACCESS, &list(&[]), ANY)] {
        w.run(s, set(f, acl::ACCESS, &for_user(6, 6, 6, 4, 4), ANY)).unwrap();
        w.run(s, gone).unwrap();
        assert_eq!((mode(&w, f), get(&w, f, acl::ACCESS)), (0o644, None));
    }
    w.run(s, chmod(0o2755)).unwrap();
    let (name, value) = (acl::ACCESS.to_vec(), for_user(7, 7, 7, 7, 7));
    w.run(s, Op::SetXattr { ino: f, name, value, mode: ANY, kill_sgid: true }).unwrap();
    assert_eq!(mode(&w, f), 0o777);
    // What is no permission of the list is left alone by a chmod without one.
    w.run(s, remove(f, acl::ACCESS)).unwrap();
    assert_eq!(w.changes(s, chmod(0o1600)), [Change::Inode { ino: f, data: false }]);
}

#[test]
fn a_default_list_takes_the_place_of_the_umask() {
    let (mut w, s) = World::new();
    let d = made(&mut w, s, make(ROOT, "d", NewNode::Directory, 0o777, 0o027));
    assert_eq!(mode(&w, d), 0o750);
    let changes = w.changes(s, set(d, acl::DEFAULT, &for_user(7, 7, 5, 7, 0), ANY));
    assert_eq!(changes, [Change::Acl(d), Change::Inode { ino: d, data: false }]);
    assert_eq!(mode(&w, d), 0o750, "the directory's own access stays");

    let f = made(&mut w, s, make(d, "f", NewNode::File, 0o666, 0o077));
    assert_eq!(mode(&w, f), 0o660);
    assert_eq!(get(&w, f, acl::ACCESS), Some(for_user(6, 7, 5, 6, 0)));
    assert_eq!(get(&w, f, acl::DEFAULT), None);
    let sub = made(&mut w, s, make(d, "sub", NewNode::Directory, 0o777, 0o077));
    assert_eq!(mode(&w, sub), 0o770);
    assert_eq!(get(&w, sub, acl::ACCESS), Some(for_user(7, 7, 5, 7, 0)));
    assert_eq!(get(&w, sub, acl::DEFAULT), Some(for_user(7, 7, 5, 7, 0)));
    let pipe = made(&mut w, s, make(sub, "p", NewNode::Special(FileKind::Fifo, 0), 0o600, 0));
    assert_eq!(get(&w, pipe, acl::ACCESS), Some(for_user(6, 7, 5, 0, 0)));
    let l = w.make(s, sub, "l", NewNode::Symlink(b"t".to_vec()));
    assert_eq!((mode(&w, l), w.view().xattrs(l).unwrap().len()), (0o777, 0));

    // A short default list leaves no access list.
    w.run(s, set(d, acl::DEFAULT, &plain(7, 5, 1), ANY)).unwrap();
    let g = made(&mut w, s, make(d, "g", NewNode::File, 0o666, 0o077));
    assert_eq!((mode(&w, g), w.view().xattrs(g).unwrap().len()), (0o640, 0));
    w.run(s, remove(d, acl::DEFAULT)).unwrap();
    let h = made(&mut w, s, make(d, "h", NewNode::File, 0o2666, 0o7022));
    assert_eq!(mode(&w, h), 0o2644, "a umask is of permissions only");
}

#[test]
fn capabilities_go_with_content_and_owner() {
    let (mut w, s) = World::new();
    let f = w.file(s, ROOT, "f");
    let cap = b"security.capability";
    let none = SetAttr::default();
    for (how, stays) in [
        (SetAttr { mode: Some(0o755), ..none.clone() }, true),
        (SetAttr { mtime: Some(SetTime::Now), ..none.clone() }, true),
        (SetAttr { uid: Some(5), ..none.clone() }, false),
        (SetAttr { gid: Some(5), ..none.clone() }, false),
        (SetAttr { size: Some(0), ..none.clone() }, false),
        (SetAttr { kill_suid: true, ..none.clone() }, false),
    ] {
        w.run(s, set(f, cap, b"powers", ANY)).unwrap();
        w.run(s, set(f, b"user.a", b"", ANY)).unwrap();
        w.run(s, Op::SetAttr { ino: f, set: how.clone() }).unwrap();
        assert_eq!(get(&w, f, cap).is_some(), stays, "{how:?}");
        assert!(get(&w, f, b"user.a").is_some());
    }
    // Whoever wrote the bytes, and however they got there.
    let source = w.file(s, ROOT, "source");
    let write = |ino| Op::Commit {
        ino,
        pieces: vec![Piece::Inline(b"new".to_vec())],
        size: 3,
        mtime: None,
        base: None,
    };
    w.run(s, write(source)).unwrap();
    let clone = Op::Clone { from: source, from_offset: 0, to: f, to_offset: 0, len: 3 };
    for op in [write(f), clone] {
        w.run(s, set(f, cap, b"powers", ANY)).unwrap();
        w.run(s, op.clone()).unwrap();
        assert_eq!(get(&w, f, cap), None, "{op:?}");
        assert!(get(&w, f, b"user.a").is_some());
    }
}
