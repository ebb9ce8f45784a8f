//! Shared trees: what a policy makes of modes and groups, where it holds, and what it refuses.

mod state_support;

use hfcache_base::limits::SHARES_MAX;
use hfcache_base::meta::*;
use hfcache_base::seam::View as _;
use hfcache_base::{InodeId, Kind, SessionId};
use state_support::*;

/// Who makes everything in these tests (see `create`).
const OWNER: u32 = 10;

fn share(dir: InodeId, group: Option<u32>) -> Op {
    Op::SetShare { dir, share: Some(Share { group }) }
}

fn clear(dir: InodeId) -> Op {
    Op::SetShare { dir, share: None }
}

fn made(parent: InodeId, name: &str, node: NewNode, mode: u32) -> Op {
    let Op::Create { parent, name, node, umask, uid, gid, exclusive, .. } = create(parent, name, node) else {
        unreachable!()
    };
    Op::Create { parent, name, node, mode, umask, uid, gid, exclusive }
}

fn moved(from: InodeId, name: &str, to: InodeId, mode: RenameMode, by: u32) -> Op {
    let Op::Rename { parent, name, new_parent, new_name, mode, hold, .. } =
        rename(from, name, to, name, mode)
    else {
        unreachable!()
    };
    Op::Rename { parent, name, new_parent, new_name, mode, hold, uid: by }
}

fn chmod(ino: InodeId, mode: u32) -> Op {
    Op::SetAttr { ino, set: SetAttr { mode: Some(mode), ..SetAttr::default() } }
}

fn chgrp(ino: InodeId, gid: u32) -> Op {
    Op::SetAttr { ino, set: SetAttr { gid: Some(gid), ..SetAttr::default() } }
}

/// Makes something with a mode, and gives its inode.
fn put(w: &mut World, s: SessionId, parent: InodeId, name: &str, node: NewNode, mode: u32) -> InodeId {
    match w.run(s, made(parent, name, node, mode)).expect("it can be made") {
        Reply::Entry { attr, .. } => attr.ino,
        other => panic!("{other:?}"),
    }
}

fn rights(w: &World, ino: InodeId) -> (u32, u32) {
    let attr = w.view().attr(ino).expect("it is there");
    (attr.mode, attr.gid)
}

#[test]
fn no_umask_and_no_chmod_shuts_anybody_out() {
    let (mut w, s) = World::new();
    let hub = put(&mut w, s, ROOT, "hub", NewNode::Directory, 0o1700);
    let reply = w.run(s, share(hub, None)).unwrap();
    assert!(matches!(reply, Reply::Attr(attr) if (attr.ino, attr.mode, attr.gid) == (hub, 0o2777, 20)));
    assert_eq!(w.view().shares().unwrap(), [(hub, Share { group: None })]);
    // umask 077: the reply to the maker says already what it has become.
    let reply = w.run(s, made(hub, "models--x", NewNode::Directory, 0o700)).unwrap();
    let Reply::Entry { attr: repo, created: true } = reply else { panic!("{reply:?}") };
    assert_eq!((repo.mode, repo.gid), (0o2777, 20));
    let blob = put(&mut w, s, repo.ino, "blob", NewNode::File, 0o600);
    assert_eq!(rights(&w, blob), (0o666, 20));
    let lock = put(&mut w, s, repo.ino, "lock", NewNode::File, 0o644);
    assert_eq!(rights(&w, lock), (0o666, 20));
    let link = put(&mut w, s, repo.ino, "link", NewNode::Symlink(b"blob".to_vec()), 0);
    assert_eq!(rights(&w, link), (0o777, 20));
    // chmod can take from all alike, but not from others alone, and not make the tree sticky.
    for (ino, mode, is) in [
        (blob, 0o600, 0o666),
        (blob, 0o6755, 0o777),
        (blob, 0o400, 0o444),
        (repo.ino, 0o700, 0o2777),
        (repo.ino, 0o1755, 0o2777),
        (hub, 0o700, 0o2777),
    ] {
        let reply = w.run(s, chmod(ino, mode)).unwrap();
        assert!(matches!(reply, Reply::Attr(attr) if attr.mode == is), "{mode:o}");
        assert_eq!(rights(&w, ino).0, is, "{mode:o}");
    }
    // Without a group of its own the policy leaves groups alone.
    w.run(s, chgrp(blob, 5)).unwrap();
    assert_eq!(rights(&w, blob), (0o444, 5));
    // Other attributes do not touch the mode.
    w.run(s, truncate(blob, 9)).unwrap();
    assert_eq!(rights(&w, blob), (0o444, 5));
    // Outside, everything is as it was asked for.
    let private = put(&mut w, s, ROOT, "private", NewNode::File, 0o600);
    w.run(s, chmod(private, 0o640)).unwrap();
    assert_eq!(rights(&w, private), (0o640, 20));
}

#[test]
fn a_group_keeps_a_repository_to_itself() {
    let (mut w, s) = World::new();
    let hub = w.dir(s, ROOT, "hub");
    w.run(s, share(hub, None)).unwrap();
    let gated = put(&mut w, s, hub, "models--gated", NewNode::Directory, 0o755);
    w.run(s, share(gated, Some(77))).unwrap();
    assert_eq!(rights(&w, gated), (0o2770, 77));
    let dir = put(&mut w, s, gated, "blobs", NewNode::Directory, 0o755);
    let blob = put(&mut w, s, dir, "blob", NewNode::File, 0o644);
    assert_eq!((rights(&w, dir), rights(&w, blob)), ((0o2770, 77), (0o660, 77)));
    // Nobody gives it to another group or to everybody.
    w.run(s, chgrp(blob, 20)).unwrap();
    w.run(s, chmod(blob, 0o666)).unwrap();
    assert_eq!(rights(&w, blob), (0o660, 77));
    // The nearest policy holds; the open tree is all around.
    let open = put(&mut w, s, hub, "open", NewNode::File, 0o600);
    assert_eq!(rights(&w, open), (0o666, 20));
    // A chown of a directory keeps the policy, too.
    w.run(s, chgrp(gated, 20)).unwrap();
    assert_eq!(rights(&w, gated), (0o2770, 77));
}

#[test]
fn what_its_owner_moves_in_is_opened() {
    let (mut w, s) = World::new();
    let hub = w.dir(s, ROOT, "hub");
    w.run(s, share(hub, Some(77))).unwrap();
    // A temporary file beside it, a whole directory, and one by root.
    put(&mut w, s, ROOT, "tmp", NewNode::File, 0o600);
    let mine = put(&mut w, s, ROOT, "mine", NewNode::File, 0o600);
    let dir = put(&mut w, s, ROOT, "dir", NewNode::Directory, 0o700);
    let below = put(&mut w, s, dir, "below", NewNode::File, 0o600);
    let by_root = put(&mut w, s, ROOT, "root", NewNode::File, 0o600);
    for (name, by) in [("mine", OWNER), ("dir", OWNER), ("root", 0)] {
        w.run(s, moved(ROOT, name, hub, RenameMode::Replace, by)).unwrap();
    }
    assert_eq!((rights(&w, mine), rights(&w, by_root)), ((0o660, 77), (0o660, 77)));
    assert_eq!(rights(&w, dir), (0o2770, 77));
    // What was in the directory is opened when it is changed, and what is made there at once.
    assert_eq!(rights(&w, below), (0o600, 20));
    w.run(s, chmod(below, 0o600)).unwrap();
    assert_eq!(rights(&w, below), (0o660, 77));
    let fresh = put(&mut w, s, dir, "fresh", NewNode::File, 0o600);
    assert_eq!(rights(&w, fresh), (0o660, 77));
    // Someone else who may rename it, because the directory lets him, does not get to read it by that.
    let secret = put(&mut w, s, ROOT, "secret", NewNode::File, 0o600);
    w.run(s, moved(ROOT, "secret", hub, RenameMode::Replace, 99)).unwrap();
    assert_eq!(rights(&w, secret), (0o600, 20));
    // Nor by a link.
    let held = put(&mut w, s, ROOT, "held", NewNode::File, 0o600);
    w.run(s, link(held, hub, "linked")).unwrap();
    w.run(s, chmod(held, 0o600)).unwrap();
    assert_eq!(rights(&w, held), (0o600, 20));
    // Both sides of an exchange.
    put(&mut w, s, ROOT, "secret", NewNode::File, 0o600);
    w.run(s, moved(ROOT, "secret", hub, RenameMode::Exchange, OWNER)).unwrap();
    assert_eq!(rights(&w, w.view().lookup(hub, b"secret").unwrap().ino), (0o660, 77));
    // What leaves keeps what it has, and is free again.
    w.run(s, moved(hub, "mine", ROOT, RenameMode::Replace, OWNER)).unwrap();
    assert_eq!(rights(&w, mine), (0o660, 77));
    w.run(s, chmod(mine, 0o600)).unwrap();
    assert_eq!(rights(&w, mine), (0o600, 77));
}

#[test]
fn a_policy_goes_with_its_directory() {
    let (mut w, s) = World::new();
    let (a, b) = (w.dir(s, ROOT, "a"), w.dir(s, ROOT, "b"));
    let hub = w.dir(s, a, "hub");
    w.run(s, share(hub, None)).unwrap();
    w.run(s, moved(a, "hub", b, RenameMode::Replace, OWNER)).unwrap();
    let file = put(&mut w, s, hub, "f", NewNode::File, 0o600);
    assert_eq!(rights(&w, file), (0o666, 20));
    // A directory that is moved out is free, with all that is in it.
    let inner = put(&mut w, s, hub, "inner", NewNode::Directory, 0o700);
    let deep = put(&mut w, s, inner, "deep", NewNode::File, 0o600);
    w.run(s, moved(hub, "inner", a, RenameMode::Replace, OWNER)).unwrap();
    w.run(s, chmod(deep, 0o600)).unwrap();
    assert_eq!(rights(&w, deep), (0o600, 20));
    // Cleared: nothing that is there changes, and nothing new is opened.
    w.run(s, clear(hub)).unwrap();
    assert_eq!(w.view().shares().unwrap(), []);
    assert_eq!(rights(&w, file), (0o666, 20));
    w.run(s, chmod(file, 0o600)).unwrap();
    assert_eq!(rights(&w, file), (0o600, 20));
    // Removed for good: the policy is gone, too.
    let gone = w.dir(s, ROOT, "gone");
    w.run(s, share(gone, None)).unwrap();
    w.run(s, rmdir(ROOT, "gone")).unwrap();
    w.now += 3_600 * SECOND;
    w.run(SessionId(0), Op::Reap).unwrap();
    assert_eq!(w.view().shares().unwrap(), []);
}

#[test]
fn the_whole_tree_can_be_shared() {
    let (mut w, s) = World::new();
    w.run(s, share(ROOT, None)).unwrap();
    assert_eq!(rights(&w, ROOT), (0o2777, 0));
    let file = put(&mut w, s, ROOT, "f", NewNode::File, 0o600);
    assert_eq!(rights(&w, file), (0o666, 0));
}

#[test]
fn a_hard_link_whose_directory_is_gone_is_in_no_shared_tree() {
    let (mut w, s) = World::new();
    let hub = w.dir(s, ROOT, "hub");
    let dir = w.dir(s, hub, "dir");
    w.run(s, share(hub, None)).unwrap();
    let file = put(&mut w, s, dir, "f", NewNode::File, 0o600);
    w.run(s, link(file, ROOT, "other")).unwrap();
    w.run(s, unlink(dir, "f")).unwrap();
    w.run(s, rmdir(hub, "dir")).unwrap();
    w.now += 3_600 * SECOND;
    w.run(SessionId(0), Op::Reap).unwrap();
    w.run(s, chmod(file, 0o600)).unwrap();
    assert_eq!(rights(&w, file), (0o600, 20));
}

#[test]
fn what_cannot_be_is_refused() {
    let (mut w, s) = World::new();
    let dir = w.dir(s, ROOT, "dir");
    let file = w.file(s, ROOT, "file");
    for (op, kind) in [
        (share(InodeId(999), None), Kind::NotFound),
        (share(file, None), Kind::NotDirectory),
        (share(dir, Some(u32::MAX)), Kind::Invalid),
        (clear(InodeId(999)), Kind::NotFound),
        (clear(dir), Kind::NoData),
    ] {
        assert_eq!(w.run(s, op.clone()), Err(kind), "{op:?}");
    }
    // Set twice is once; there is a most, and it can be got below again.
    w.run(s, share(dir, None)).unwrap();
    w.run(s, share(dir, Some(1))).unwrap();
    assert_eq!(w.view().shares().unwrap(), [(dir, Share { group: Some(1) })]);
    for i in 1..SHARES_MAX {
        let dir = w.dir(s, ROOT, &format!("d{i}"));
        w.run(s, share(dir, None)).unwrap();
    }
    let more = w.dir(s, ROOT, "more");
    assert_eq!(w.run(s, share(more, None)), Err(Kind::NoSpace));
    w.run(s, clear(dir)).unwrap();
    w.run(s, share(more, None)).unwrap();
}
