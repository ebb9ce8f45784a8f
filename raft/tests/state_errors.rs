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
        let Op::Create { parent, name, node, mode, umask, uid, gid, .. } = create(ROOT, name, NewNode::File)
        else {
            unreachable!()
        };
        Op::Create { parent, name, node, mode, umask, uid, gid, exclusive: false }
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

#[test]
fn links_and_removals_say_what_is_wrong() {
    let (mut w, s) = World::new();
    let f = w.file(s, ROOT, "f");
    let d = w.dir(s, ROOT, "d");
    w.file(s, d, "inside");
    for (op, kind) in [
        (link(f, GONE, "x"), Kind::NotFound),
        (link(f, f, "x"), Kind::NotDirectory),
        (link(GONE, ROOT, "f"), Kind::Exists),
        (link(GONE, ROOT, "x"), Kind::NotFound),
        (link(d, ROOT, "x"), Kind::NotPermitted),
        (link(f, ROOT, &"x".repeat(256)), Kind::NameTooLong),
        (unlink(ROOT, "x"), Kind::NotFound),
        (unlink(ROOT, "d"), Kind::IsDirectory),
        (unlink(f, "x"), Kind::NotDirectory),
        (unlink(ROOT, "."), Kind::Invalid),
        (rmdir(ROOT, "f"), Kind::NotDirectory),
        (rmdir(ROOT, "d"), Kind::NotEmpty),
        (rmdir(ROOT, "x"), Kind::NotFound),
        (rmdir(GONE, "x"), Kind::NotFound),
    ] {
        assert_eq!(w.run(s, op.clone()), Err(kind), "{op:?}");
    }
    let changes = w.changes(s, unlink(ROOT, "f"));
    assert!(changes.contains(&Change::Orphaned(f)));
    assert!(changes.contains(&Change::Entry { parent: ROOT, name: b"f".to_vec() }));
    assert_eq!(w.run(s, link(f, ROOT, "again")), Err(Kind::NotFound));
    w.run(s, unlink(d, "inside")).unwrap();
    w.run(s, rmdir(ROOT, "d")).unwrap();
    // A removed directory that is still open takes nothing in.
    assert_eq!(w.run(s, create(d, "x", NewNode::File)), Err(Kind::NotFound));
    assert_eq!(w.view().readdir(d, 0, 10).unwrap(), []);
    assert_eq!(w.view().attr(d).unwrap().nlink, 0);
}

#[test]
fn an_inode_counts_its_links_only_so_far() {
    let (mut w, s) = World::new();
    let f = w.file(s, ROOT, "f");
    let many = w.dir(s, ROOT, "many");
    // Applied directly: the checks of `World` would copy the whole store each time.
    for n in 1..LINK_MAX {
        let op = Op::Link { ino: f, parent: many, name: n.to_string().into_bytes() };
        let command = w.command(s, op);
        hfcache_raft::state::apply(&mut w.store, &command).unwrap().reply.unwrap();
    }
    let command = w.command(s, link(f, ROOT, "one more"));
    let reply = hfcache_raft::state::apply(&mut w.store, &command).unwrap().reply;
    assert_eq!(reply, Err(Kind::TooManyLinks));
}

#[test]
fn rename_says_what_is_wrong() {
    use RenameMode::{Exchange, NoReplace, Replace};
    let (mut w, s) = World::new();
    let f = w.file(s, ROOT, "f");
    w.run(s, link(f, ROOT, "same")).unwrap();
    let d = w.dir(s, ROOT, "d");
    let sub = w.dir(s, d, "sub");
    w.dir(s, ROOT, "empty");
    let long = "x".repeat(256);
    for (op, kind) in [
        (rename(ROOT, "x", ROOT, "y", Replace), Kind::NotFound),
        (rename(GONE, "x", ROOT, "y", Replace), Kind::NotFound),
        (rename(ROOT, "f", GONE, "y", Replace), Kind::NotFound),
        (rename(ROOT, "f", f, "y", Replace), Kind::NotDirectory),
        (rename(ROOT, "f", ROOT, &long, Replace), Kind::NameTooLong),
        (rename(ROOT, "f", ROOT, "", Replace), Kind::Invalid),
        (rename(ROOT, ".", ROOT, "y", Replace), Kind::Invalid),
        (rename(ROOT, "f", ROOT, "d", NoReplace), Kind::Exists),
        (rename(ROOT, "f", ROOT, "y", Exchange), Kind::NotFound),
        (rename(ROOT, "d", sub, "y", Replace), Kind::Invalid),
        (rename(ROOT, "d", d, "y", Replace), Kind::Invalid),
        (rename(d, "sub", ROOT, "d", Exchange), Kind::Invalid),
        (rename(ROOT, "d", d, "sub", Exchange), Kind::Invalid),
        (rename(ROOT, "d", ROOT, "f", Replace), Kind::NotDirectory),
        (rename(ROOT, "f", ROOT, "empty", Replace), Kind::IsDirectory),
        (rename(ROOT, "empty", ROOT, "d", Replace), Kind::NotEmpty),
    ] {
        assert_eq!(w.run(s, op.clone()), Err(kind), "{op:?}");
    }
    // Two names of one inode: nothing happens at all.
    assert_eq!(w.changes(s, rename(ROOT, "f", ROOT, "same", Replace)), []);
    assert_eq!(w.view().lookup(ROOT, b"f").unwrap().nlink, 2);
    // A directory over an empty one, from elsewhere.
    let root = w.view().attr(ROOT).unwrap();
    let changes = w.changes(s, rename(d, "sub", ROOT, "empty", Replace));
    assert!(changes.iter().any(|c| matches!(c, Change::Orphaned(_))));
    assert_eq!(w.view().lookup(ROOT, b"empty").unwrap().ino, sub);
    assert_eq!(w.view().parent(sub).unwrap(), ROOT);
    let after = w.view().attr(ROOT).unwrap();
    assert_eq!((after.nlink, after.size), (root.nlink, root.size));
    assert!(after.mtime > root.mtime && after.ctime > root.ctime);
    assert_eq!(w.view().attr(d).unwrap().nlink, 2);
    // A file and a directory change places.
    w.run(s, rename(ROOT, "f", ROOT, "d", Exchange)).unwrap();
    assert_eq!(w.view().lookup(ROOT, b"f").unwrap().ino, d);
    // Held by who has it open.
    let op = Op::Rename {
        parent: ROOT,
        name: b"same".to_vec(),
        new_parent: ROOT,
        new_name: b"d".to_vec(),
        mode: Replace,
        hold: true,
        uid: 10,
    };
    assert_eq!(w.run(s, op), Ok(Reply::Done));
}

#[test]
fn set_attr_follows_linux() {
    let (mut w, s) = World::new();
    let f = w.file(s, ROOT, "f");
    let d = w.dir(s, ROOT, "d");
    let l = w.make(s, ROOT, "l", NewNode::Symlink(b"t".to_vec()));
    let none = SetAttr::default();
    let set = |ino, set| Op::SetAttr { ino, set };
    for (op, kind) in [
        (truncate(GONE, 1), Kind::Stale),
        (truncate(d, 1), Kind::IsDirectory),
        (truncate(l, 1), Kind::Invalid),
        (truncate(f, FILE_SIZE_MAX + 1), Kind::TooLarge),
        (truncate(f, u64::MAX), Kind::TooLarge),
        (set(f, SetAttr { uid: Some(u32::MAX), ..none.clone() }), Kind::Invalid),
    ] {
        assert_eq!(w.run(s, op.clone()), Err(kind), "{op:?}");
    }
    let mode = |w: &mut World, ino, how: SetAttr| {
        w.run(s, set(ino, how)).unwrap();
        w.view().attr(ino).unwrap().mode
    };
    let all = SetAttr { mode: Some(0o106_755), ..none.clone() };
    let chown = SetAttr { gid: Some(5), ..none.clone() };
    assert_eq!(mode(&mut w, f, all.clone()), 0o6755);
    assert_eq!(mode(&mut w, f, chown.clone()), 0o755);
    assert_eq!(mode(&mut w, f, SetAttr { mode: Some(0o6745), ..none.clone() }), 0o6745);
    assert_eq!(mode(&mut w, f, SetAttr { kill_suid: true, ..none.clone() }), 0o2745);
    assert_eq!(mode(&mut w, d, all), 0o6755);
    assert_eq!(mode(&mut w, d, chown.clone()), 0o6755);
    // Who asks whom it belongs to is told, once.
    let again = Op::SetAttr { ino: f, set: chown };
    assert_eq!(w.changes(s, again), [Change::Inode { ino: f, data: false }]);
    let other = Op::SetAttr { ino: f, set: SetAttr { uid: Some(9), ..none.clone() } };
    assert_eq!(w.changes(s, other), [Change::Owner(f), Change::Inode { ino: f, data: false }]);
    // A set-gid directory hands its group and its bit on.
    let sub = w.dir(s, d, "sub");
    let inside = w.file(s, d, "inside");
    assert_eq!(w.view().attr(sub).unwrap().mode, 0o2644);
    assert_eq!(w.view().attr(inside).unwrap().mode, 0o644);
    assert_eq!((w.view().attr(sub).unwrap().gid, w.view().attr(inside).unwrap().gid), (5, 5));

    let before = w.view().attr(f).unwrap();
    let times =
        SetAttr { atime: Some(SetTime::To(Timestamp(-5))), mtime: Some(SetTime::Now), ..none.clone() };
    w.run(s, set(f, times)).unwrap();
    let after = w.view().attr(f).unwrap();
    assert_eq!((after.atime, after.mtime), (Timestamp(-5), after.ctime));
    assert!(after.ctime > before.ctime && after.data_version == before.data_version);
    assert_eq!(w.changes(s, set(f, none)), []);
    // The same size is no new content; another one is.
    w.run(s, truncate(f, 0)).unwrap();
    assert_eq!(w.view().attr(f).unwrap().data_version, before.data_version);
    assert_eq!(w.changes(s, truncate(f, 9)), [Change::Inode { ino: f, data: true }]);
    let after = w.view().attr(f).unwrap();
    assert!(after.size == 9 && after.allocated == 0 && after.data_version > before.data_version);
}

#[test]
fn malformed_commits_are_refused() {
    let (mut w, s) = World::new();
    let f = w.file(s, ROOT, "f");
    let d = w.dir(s, ROOT, "d");
    let l = w.make(s, ROOT, "l", NewNode::Symlink(b"t".to_vec()));
    let chunk = w.chunk(s, 100);
    let big = ChunkRef { len: CHUNK_MAX + 1, ..chunk };
    let no_scheme = ChunkRef { scheme: hfcache_base::Scheme { data: 0, parity: 1 }, ..chunk };
    let wide = ChunkRef { scheme: hfcache_base::Scheme { data: 200, parity: 200 }, ..chunk };
    let unknown = ChunkRef { id: hfcache_base::ChunkId(9_999), ..chunk };
    let zero = ChunkRef { id: hfcache_base::ChunkId(0), ..chunk };
    let hole = |offset, len| Piece::Hole { offset, len };
    let whole = |c: ChunkRef| piece(c, 0, 0, 100);
    let two = vec![whole(chunk), piece(ChunkRef { len: 99, ..chunk }, 100, 0, 10)];
    let many = (0..257).map(|n| hole(n, 1)).collect();
    for (pieces, size, kind) in [
        (vec![piece(chunk, 0, 0, 0)], 0, Kind::Invalid),
        (vec![piece(chunk, 0, 1, 100)], 0, Kind::Invalid),
        (vec![piece(chunk, 0, u32::MAX, u32::MAX)], 0, Kind::Invalid),
        (vec![whole(big)], 0, Kind::Invalid),
        (vec![whole(ChunkRef { len: 0, ..chunk })], 0, Kind::Invalid),
        (vec![whole(no_scheme)], 0, Kind::Invalid),
        (vec![whole(wide)], 0, Kind::Invalid),
        (vec![whole(unknown)], 0, Kind::Invalid),
        (vec![whole(zero)], 0, Kind::Invalid),
        (vec![piece(chunk, u64::MAX, 0, 100)], 0, Kind::TooLarge),
        (vec![piece(chunk, i64::MAX as u64 - 50, 0, 100)], 0, Kind::TooLarge),
        (vec![piece(chunk, FILE_SIZE_MAX - 99, 0, 100)], 0, Kind::TooLarge),
        (vec![hole(u64::MAX, u64::MAX)], 0, Kind::TooLarge),
        (vec![hole(5, 0)], 0, Kind::Invalid),
        (vec![], FILE_SIZE_MAX + 1, Kind::TooLarge),
        (vec![whole(chunk), piece(chunk, 99, 0, 1)], 0, Kind::Invalid),
        (vec![piece(chunk, 50, 0, 1), piece(chunk, 0, 0, 1)], 0, Kind::Invalid),
        (two, 0, Kind::Invalid),
        (many, 0, Kind::Invalid),
        (vec![Piece::Inline(vec![1; INLINE_MAX + 1])], 5_000, Kind::Invalid),
        (vec![Piece::Inline(vec![1; 10])], 9, Kind::Invalid),
        (vec![Piece::Inline(vec![1; 10]), hole(20, 1)], 30, Kind::Invalid),
    ] {
        let op = commit(f, pieces, size);
        assert_eq!(w.run(s, op.clone()), Err(kind), "{op:?}");
    }
    assert_eq!(w.run(s, commit(d, vec![], 0)), Err(Kind::IsDirectory));
    assert_eq!(w.run(s, commit(l, vec![], 0)), Err(Kind::Invalid));
    assert_eq!(w.run(s, commit(GONE, vec![], 0)), Err(Kind::Stale));
    // The last byte that can be.
    w.run(s, commit(f, vec![piece(chunk, FILE_SIZE_MAX - 100, 0, 100)], 0)).unwrap();
    assert_eq!(w.view().attr(f).unwrap().size, FILE_SIZE_MAX);
    let other = ChunkRef { len: 99, ..chunk };
    assert_eq!(w.run(s, commit(f, vec![piece(other, 0, 0, 9)], 0)), Err(Kind::Invalid));
}

#[test]
fn a_chunk_is_of_its_session_and_lives_once() {
    let (mut w, s) = World::new();
    let t = w.join(2);
    let f = w.file(s, ROOT, "f");
    let chunk = w.chunk(s, 10);
    assert_eq!(w.view().chunk_session(chunk.id).unwrap(), Some(s));
    assert_eq!(w.run(t, commit(f, vec![piece(chunk, 0, 0, 10)], 0)), Err(Kind::Stale));
    let changes = w.changes(s, commit(f, vec![piece(chunk, 0, 0, 10)], 0));
    assert_eq!(changes, [Change::ChunkAdded(chunk), Change::Inode { ino: f, data: true }]);
    assert_eq!(w.view().chunk_session(chunk.id).unwrap(), None);
    assert_eq!(w.view().chunk(chunk.id).unwrap(), Some(chunk));
    let changes = w.changes(s, truncate(f, 0));
    assert_eq!(changes, [Change::ChunkFreed(chunk.id), Change::Inode { ino: f, data: true }]);
    assert_eq!(w.run(s, commit(f, vec![piece(chunk, 0, 0, 10)], 0)), Err(Kind::Stale));
    // More copies of what is a copy already, never fewer.
    let copy = w.chunk(s, 10);
    w.run(s, commit(f, vec![piece(copy, 0, 0, 10)], 0)).unwrap();
    let raise = |parity| Op::RaiseParity { chunks: vec![copy.id, chunk.id], parity };
    assert_eq!(w.run(SessionId(0), raise(12)), Err(Kind::Invalid));
    assert_eq!(w.run(SessionId(0), raise(1)), Ok(Reply::Count(0)));
    assert_eq!(w.run(SessionId(0), raise(2)), Ok(Reply::Count(1)));
    let (_, content) = w.view().content(f).unwrap();
    assert_eq!(content.extents[0].chunk.scheme.parity, 2);
    // All that a closed session had reserved is free.
    let late = w.chunk(s, 10);
    w.run(SessionId(0), Op::CloseSessions(vec![s])).unwrap();
    assert_eq!(w.view().chunk_session(late.id).unwrap(), None);
    assert_eq!(w.run(s, commit(f, vec![piece(late, 0, 0, 10)], 0)), Err(Kind::Fenced));
    for count in [0, CHUNK_ID_BATCH + 1] {
        assert_eq!(w.run(t, Op::AllocateChunks { count }), Err(Kind::Invalid));
    }
}
