//! Each operation's errors, in the order in which Linux finds them, and its small print.

mod state_support;

use hfcache_base::limits::*;
use hfcache_base::meta::*;
use hfcache_base::seam::View as _;
use hfcache_base::{InodeId, Kind, SessionId};
use state_support::*;

const GONE: InodeId = InodeId(999);

fn special(kind: FileKind) -> NewNode {
    NewNode::Special(kind, 5)
}

#[test]
fn names_are_made_and_found() {
    let (mut w, s) = World::new();
    let d = w.dir(s, ROOT, "d");
    let f = w.file(s, d, "f");
    assert_eq!(w.view().lookup(d, b"f").unwrap().ino, f);
    assert_eq!(w.view().lookup(d, b"g").unwrap_err().kind(), Kind::NotFound);
    assert_eq!(w.view().lookup(f, b"g").unwrap_err().kind(), Kind::NotDirectory);
    assert_eq!(w.view().lookup(GONE, b"g").unwrap_err().kind(), Kind::NotFound);
    let root = w.view().attr(ROOT).unwrap();
    assert_eq!((root.nlink, root.size), (3, 1));
    let attr = w.view().attr(d).unwrap();
    assert_eq!((attr.nlink, attr.size, attr.mode, attr.uid, attr.gid), (2, 1, 0o644, 10, 20));
    assert_eq!(w.view().parent(d).unwrap(), ROOT);
    assert_eq!(w.view().parent(f).unwrap_err().kind(), Kind::NotDirectory);
    assert_eq!(w.view().totals().unwrap(), Totals { inodes: 3, bytes: 0, chunks: 0 });
}

#[test]
fn create_says_what_is_wrong() {
    let (mut w, s) = World::new();
    let f = w.file(s, ROOT, "f");
    w.dir(s, ROOT, "d");
    w.make(s, ROOT, "l", NewNode::Symlink(b"../x".to_vec()));
    let long = "n".repeat(256);
    let target = |len: usize| NewNode::Symlink(vec![b'x'; len]);
    for (op, kind) in [
        (create(GONE, &long, NewNode::File), Kind::NotFound),
        (create(f, &long, NewNode::File), Kind::NotDirectory),
        (create(ROOT, &long, NewNode::File), Kind::NameTooLong),
        (create(ROOT, "", NewNode::File), Kind::Invalid),
        (create(ROOT, ".", NewNode::Directory), Kind::Invalid),
        (create(ROOT, "..", NewNode::Directory), Kind::Invalid),
        (create(ROOT, "a/b", NewNode::File), Kind::Invalid),
        (create(ROOT, "a\0b", NewNode::File), Kind::Invalid),
        (create(ROOT, "f", NewNode::File), Kind::Exists),
        (create(ROOT, "d", NewNode::Directory), Kind::Exists),
        (create(ROOT, "n", target(0)), Kind::NotFound),
        (create(ROOT, "n", target(4_096)), Kind::NameTooLong),
        (create(ROOT, "n", NewNode::Symlink(vec![0])), Kind::Invalid),
        (create(ROOT, "n", special(FileKind::File)), Kind::Invalid),
        (create(ROOT, "n", special(FileKind::Directory)), Kind::Invalid),
        (create(ROOT, "n", special(FileKind::Symlink)), Kind::Invalid),
    ] {
        assert_eq!(w.run(s, op.clone()), Err(kind), "{op:?}");
    }
    let open = |name: &str| {
        let Op::Create { parent, name, node, mode, uid, gid, .. } = create(ROOT, name, NewNode::File) else {
            unreachable!()
        };
        Op::Create { parent, name, node, mode, uid, gid, exclusive: false }
    };
    let reply = w.run(s, open("f")).unwrap();
    assert!(matches!(reply, Reply::Entry { attr, created: false } if attr.ino == f));
    assert_eq!(w.run(s, open("d")), Err(Kind::IsDirectory));
    assert_eq!(w.run(s, open("l")), Err(Kind::Stale));
    w.file(s, ROOT, &"n".repeat(255));
    w.make(s, ROOT, "long", target(SYMLINK_MAX));
    let l = w.view().lookup(ROOT, b"l").unwrap();
    assert_eq!((l.size, l.mode, l.kind), (4, 0o777, FileKind::Symlink));
    assert_eq!(w.view().readlink(l.ino).unwrap(), b"../x");
    assert_eq!(w.view().readlink(f).unwrap_err().kind(), Kind::Invalid);
    let pipe = w.make(s, ROOT, "p", special(FileKind::Fifo));
    assert_eq!(w.view().attr(pipe).unwrap().rdev, 0);
    let device = w.make(s, ROOT, "c", special(FileKind::CharDevice));
    assert_eq!(w.view().attr(device).unwrap().rdev, 5);
    assert_eq!(w.run(SessionId(0), create(ROOT, "x", NewNode::File)), Err(Kind::Fenced));
    assert_eq!(w.run(SessionId(77), create(ROOT, "x", NewNode::File)), Err(Kind::Fenced));
}
