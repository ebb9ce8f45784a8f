//! The trash: what is kept, what comes back, what goes. `state_model.rs` counts everything again while things
//! come and go through it; here are the rules one by one.

#![expect(clippy::unwrap_used, reason = "a failure ends the test")]

mod state_support;

use hfcache_base::limits::{TRASH_BATCH_MAX, TRASH_ENTRIES_MAX, TRASH_PATH_MAX};
use hfcache_base::meta::*;
use hfcache_base::seam::View as _;
use hfcache_base::{ChunkId, InodeId, Kind, SessionId};
use hfcache_raft::kv::Table;
use state_support::*;

const CLUSTER: SessionId = SessionId(0);
const HOUR: u64 = 3_600;

/// A world that keeps what is deleted for an hour.
fn keeping() -> (World, SessionId) {
    let (mut w, s) = World::new();
    w.run(s, Op::SetTrash { retention: HOUR }).unwrap();
    (w, s)
}

fn trash(w: &World) -> Vec<Trashed> {
    w.view().trash(None, 10_000).unwrap()
}

fn paths(w: &World) -> Vec<String> {
    trash(w).into_iter().map(|t| String::from_utf8(t.path).unwrap()).collect()
}

#[track_caller]
fn of(w: &World, path: &str) -> TrashId {
    trash(w).into_iter().rfind(|t| t.path == path.as_bytes()).unwrap().id
}

fn restore(id: TrashId, parent: InodeId, name: &str) -> Op {
    Op::Restore { id, parent, name: name.as_bytes().to_vec() }
}

/// A file of so many bytes in one chunk.
fn filled(w: &mut World, s: SessionId, dir: InodeId, name: &str, len: u32) -> InodeId {
    let ino = w.file(s, dir, name);
    let chunk = w.chunk(s, len);
    w.run(s, commit(ino, vec![piece(chunk, 0, 0, len)], 0)).unwrap();
    ino
}

fn later(w: &mut World, seconds: i64) {
    w.now += seconds * SECOND;
}

fn reap(w: &mut World) {
    later(w, 11);
    w.run(CLUSTER, Op::Reap).unwrap();
}

fn expire(w: &mut World) -> u64 {
    match w.run(CLUSTER, Op::ExpireTrash).unwrap() {
        Reply::Count(n) => n,
        other => panic!("{other:?}"),
    }
}

fn rows(w: &World, table: Table) -> usize {
    w.store.iter().filter(|(t, ..)| *t == table).count()
}

#[test]
fn nothing_is_kept_unless_the_cluster_is_told_to() {
    let (mut w, s) = World::new();
    assert_eq!(w.view().trash_retention().unwrap(), 0);
    filled(&mut w, s, ROOT, "f", 10);
    w.run(s, unlink(ROOT, "f")).unwrap();
    assert!(trash(&w).is_empty());
    reap(&mut w);
    assert_eq!(w.view().totals().unwrap(), Totals { inodes: 1, bytes: 0, chunks: 0 });
    let most = hfcache_base::limits::TRASH_RETENTION_MAX.as_secs();
    assert_eq!(w.run(s, Op::SetTrash { retention: most + 1 }), Err(Kind::Invalid));
    w.run(s, Op::SetTrash { retention: most }).unwrap();
    assert_eq!(w.view().trash_retention().unwrap(), most);
    // Who has no session sets nothing.
    assert_eq!(w.run(CLUSTER, Op::SetTrash { retention: 0 }), Err(Kind::Fenced));
    w.run(s, Op::SetTrash { retention: 0 }).unwrap();
    assert_eq!(w.view().trash_retention().unwrap(), 0);
}

#[test]
fn what_loses_its_last_name_is_kept_with_its_path() {
    let (mut w, s) = keeping();
    let a = w.dir(s, ROOT, "a");
    let b = w.dir(s, a, "b c");
    let f = filled(&mut w, s, b, "f", 10);
    w.make(s, b, "l", NewNode::Symlink(b"f".to_vec()));
    w.file(s, ROOT, "top");
    w.file(s, ROOT, "new");
    w.run(s, link(f, ROOT, "other")).unwrap();
    w.run(s, unlink(b, "f")).unwrap();
    assert!(trash(&w).is_empty(), "it has another name");
    w.run(s, unlink(ROOT, "other")).unwrap();
    w.run(s, unlink(b, "l")).unwrap();
    w.run(s, rename(ROOT, "new", ROOT, "top", RenameMode::Replace)).unwrap();
    w.run(s, rmdir(a, "b c")).unwrap();
    // A directory takes the place of an empty one, and goes under its new name.
    w.dir(s, ROOT, "empty");
    w.run(s, rename(ROOT, "a", ROOT, "empty", RenameMode::Replace)).unwrap();
    w.file(s, a, "x");
    w.run(s, unlink(a, "x")).unwrap();
    assert_eq!(paths(&w), ["other", "a/b c/l", "top", "a/b c", "empty", "empty/x"]);
    let page = w.view().trash(Some(trash(&w)[3].id), 1).unwrap();
    assert_eq!(page[0].path, b"empty");
    // Its owner has it still, no directory has it.
    assert_eq!(w.view().usage(Subject::User(10)).unwrap(), Usage { bytes: 10, inodes: 8 });
    assert_eq!(w.view().usage(Subject::Tree(ROOT)).unwrap(), Usage { bytes: 0, inodes: 3 });
    reap(&mut w);
    assert_eq!((rows(&w, Table::Orphan), trash(&w).len()), (0, 6));
    assert_eq!(w.view().totals().unwrap(), Totals { inodes: 3, bytes: 10, chunks: 1 });
}

#[test]
fn what_never_had_a_name_and_what_is_too_deep_is_not_kept() {
    let (mut w, s) = keeping();
    let made =
        w.run(s, Op::CreateNameless { parent: ROOT, mode: 0o600, umask: 0, uid: 1, gid: 1, nameless: false });
    let Reply::Entry { attr, .. } = made.unwrap() else { panic!() };
    w.run(s, Op::Hold { ino: attr.ino, hold: false }).unwrap();
    let name = "d".repeat(255);
    let (mut dir, mut depth) = (ROOT, 0);
    while depth + 256 <= TRASH_PATH_MAX {
        dir = w.dir(s, dir, &name);
        depth += 256;
    }
    dir = w.dir(s, dir, &"d".repeat(99));
    let fits = "f".repeat(TRASH_PATH_MAX - depth - 100);
    for name in [&fits, &format!("x{fits}")] {
        w.file(s, dir, name);
        w.run(s, unlink(dir, name)).unwrap();
    }
    assert_eq!(trash(&w).iter().map(|t| t.path.len()).collect::<Vec<_>>(), [TRASH_PATH_MAX]);
    reap(&mut w);
    assert_eq!(rows(&w, Table::Orphan), 0);
}

#[test]
fn a_file_comes_back_as_it_was() {
    let (mut w, s) = keeping();
    let d = w.dir(s, ROOT, "d");
    let f = filled(&mut w, s, d, "f", 10);
    let xattr = |name: &[u8]| Op::SetXattr {
        ino: f,
        name: name.to_vec(),
        value: b"v".to_vec(),
        mode: XattrMode::Any,
        kill_sgid: false,
    };
    w.run(s, xattr(b"user.a")).unwrap();
    let (before, content) = w.view().content(f).unwrap();
    w.run(s, unlink(d, "f")).unwrap();
    let id = of(&w, "d/f");
    for (op, error) in [
        (restore(id, InodeId(999), "f"), Kind::NotFound),
        (restore(id, f, "f"), Kind::NotDirectory),
        (restore(id, d, ""), Kind::Invalid),
        (restore(id, ROOT, "d"), Kind::Exists),
        (restore(TrashId { at: Timestamp(id.at.0 - 1), ..id }, d, "f"), Kind::NotFound),
        (restore(TrashId { ino: d, ..id }, d, "f"), Kind::NotFound),
    ] {
        assert_eq!(w.run(s, op.clone()), Err(error), "{op:?}");
    }
    reap(&mut w);
    let changes = w.changes(s, restore(id, d, "f"));
    assert!(changes.contains(&Change::Entry { parent: d, name: b"f".to_vec() }));
    assert!(changes.contains(&Change::Restored { ino: f, parent: d }));
    let (after, same) = w.view().content(f).unwrap();
    assert_eq!(Attr { ctime: before.ctime, ..after.clone() }, before);
    assert!(same == content && after.ctime > before.ctime);
    assert_eq!(w.view().xattr(f, b"user.a").unwrap(), Some(b"v".to_vec()));
    assert_eq!(w.view().lookup(d, b"f").unwrap().ino, f);
    assert_eq!(w.view().attr(d).unwrap().size, 1);
    assert!(trash(&w).is_empty());
    assert_eq!(w.view().usage(Subject::Tree(d)).unwrap(), Usage { bytes: 10, inodes: 2 });
    assert_eq!(w.view().totals().unwrap(), Totals { inodes: 3, bytes: 10, chunks: 1 });
    // Once more, elsewhere: an entry is one deletion.
    w.run(s, unlink(d, "f")).unwrap();
    assert_eq!(w.run(s, restore(id, ROOT, "g")), Err(Kind::NotFound));
    w.run(s, restore(of(&w, "d/f"), ROOT, "g")).unwrap();
    assert_eq!(
        (w.view().lookup(ROOT, b"g").unwrap().ino, w.view().usage(Subject::Tree(d)).unwrap().bytes),
        (f, 0)
    );
    reap(&mut w);
    assert_eq!(expire(&mut w), 0);
    assert_eq!(w.view().attr(f).unwrap().nlink, 1);
}

#[test]
fn a_tree_comes_back_directories_first() {
    let (mut w, s) = keeping();
    let a = w.dir(s, ROOT, "a");
    let b = w.dir(s, a, "b");
    let f = filled(&mut w, s, b, "f", 10);
    let l = w.make(s, b, "l", NewNode::Symlink(b"f".to_vec()));
    let mode = SetAttr { mode: Some(0o2750), uid: Some(7), gid: Some(8), ..SetAttr::default() };
    w.run(s, Op::SetAttr { ino: b, set: mode }).unwrap();
    let label = Op::SetXattr {
        ino: b,
        name: b"user.a".to_vec(),
        value: b"v".to_vec(),
        mode: XattrMode::Any,
        kill_sgid: false,
    };
    w.run(s, label).unwrap();
    w.run(s, Op::SetShare { dir: b, share: Some(Share { group: Some(8) }) }).unwrap();
    let before = w.view().attr(b).unwrap();
    for name in ["f", "l"] {
        w.run(s, unlink(b, name)).unwrap();
    }
    w.run(s, rmdir(a, "b")).unwrap();
    w.run(s, rmdir(ROOT, "a")).unwrap();
    // A removed directory takes nothing.
    assert_eq!(w.run(s, restore(of(&w, "a/b/f"), b, "f")), Err(Kind::NotFound));
    let back = |w: &mut World, path: &str, parent, name| match w.run(s, restore(of(w, path), parent, name)) {
        Ok(Reply::Entry { attr, .. }) => attr,
        other => panic!("{other:?}"),
    };
    let a2 = back(&mut w, "a", ROOT, "a").ino;
    let b2 = back(&mut w, "a/b", a2, "b");
    assert!(a2 != a && b2.ino != b, "kernels remember the old ones as removed");
    assert_eq!((b2.mode, b2.uid, b2.gid, b2.size, b2.nlink), (before.mode, 7, 8, 0, 2));
    assert_eq!(w.view().xattr(b2.ino, b"user.a").unwrap(), Some(b"v".to_vec()));
    let shares: Vec<InodeId> = w.view().shares().unwrap().into_iter().map(|(dir, _)| dir).collect();
    assert!(shares.contains(&b2.ino));
    assert_eq!(back(&mut w, "a/b/f", b2.ino, "f").ino, f);
    assert_eq!(back(&mut w, "a/b/l", b2.ino, "l").ino, l);
    assert_eq!(w.view().readlink(l).unwrap(), b"f");
    assert_eq!(w.view().path(b2.ino).unwrap(), b"a/b");
    assert_eq!(w.view().attr(a2).unwrap().nlink, 3);
    reap(&mut w);
    assert!(trash(&w).is_empty() && w.view().attr(b).is_err());
    assert_eq!(w.view().shares().unwrap().len(), 1);
    assert_eq!(w.view().usage(Subject::Tree(ROOT)).unwrap(), Usage { bytes: 10, inodes: 5 });
    assert_eq!(w.view().totals().unwrap(), Totals { inodes: 5, bytes: 10, chunks: 1 });
}

#[test]
fn a_quota_of_a_directory_holds_for_what_comes_back() {
    let (mut w, s) = keeping();
    let d = w.dir(s, ROOT, "d");
    filled(&mut w, s, d, "f", 10);
    w.run(s, unlink(d, "f")).unwrap();
    w.run(s, quota(Subject::Tree(d), limit(9, None))).unwrap();
    assert_eq!(w.run(s, restore(of(&w, "d/f"), d, "f")), Err(Kind::Quota));
    w.run(s, restore(of(&w, "d/f"), ROOT, "f")).unwrap();
}

#[test]
fn what_was_kept_long_enough_goes_and_is_counted_no_more() {
    let (mut w, s) = keeping();
    let f = filled(&mut w, s, ROOT, "f", 10);
    w.dir(s, ROOT, "d");
    w.run(s, unlink(ROOT, "f")).unwrap();
    w.run(s, rmdir(ROOT, "d")).unwrap();
    later(&mut w, 1_800);
    filled(&mut w, s, ROOT, "young", 5);
    w.run(s, unlink(ROOT, "young")).unwrap();
    reap(&mut w);
    let due = |w: &World| w.view().trash_is_due(Timestamp(w.now)).unwrap();
    assert!(!due(&w));
    assert_eq!(expire(&mut w), 0);
    later(&mut w, 1_790);
    assert!(due(&w));
    let outcome = w.outcome(CLUSTER, Op::ExpireTrash);
    assert_eq!(outcome.reply, Ok(Reply::Count(2)));
    // Freed at once: it had been without a name, and closed, for long.
    assert!(outcome.applied.changes.contains(&Change::Reaped(f)));
    assert!(outcome.applied.changes.iter().any(|c| matches!(c, Change::ChunkFreed(_))));
    assert_eq!(paths(&w), ["young"]);
    assert_eq!(w.view().usage(Subject::User(10)).unwrap(), Usage { bytes: 5, inodes: 1 });
    // Off: everything is due.
    w.run(s, Op::SetTrash { retention: 0 }).unwrap();
    assert!(due(&w));
    assert_eq!(expire(&mut w), 1);
    assert_eq!(w.view().usage(Subject::User(10)).unwrap(), Usage::default());
    assert_eq!(w.view().totals().unwrap(), Totals { inodes: 1, bytes: 0, chunks: 0 });
    for table in [Table::Trash, Table::TrashOrder, Table::Orphan, Table::Xattr, Table::Extent, Table::DirName]
    {
        assert_eq!(rows(&w, table), 0, "{table:?}");
    }
    assert_eq!(w.view().chunks(ChunkId(0), 10).unwrap(), []);
    assert_eq!(w.view().trash_entries().unwrap(), 0);
}

#[test]
fn entries_are_emptied_by_name_and_a_batch_is_bounded() {
    let (mut w, s) = keeping();
    for n in 0..5 {
        filled(&mut w, s, ROOT, &n.to_string(), 3);
        w.run(s, unlink(ROOT, &n.to_string())).unwrap();
    }
    reap(&mut w);
    let wrong = TrashId { at: Timestamp(1), ..of(&w, "4") };
    let ids = vec![of(&w, "1"), of(&w, "3"), wrong, of(&w, "1")];
    assert_eq!(w.run(CLUSTER, Op::EmptyTrash(ids.clone())), Ok(Reply::Count(4)));
    assert_eq!(paths(&w), ["0", "2", "4"]);
    assert_eq!(w.run(s, Op::EmptyTrash(ids)), Ok(Reply::Count(4)));
    assert_eq!(w.run(s, Op::EmptyTrash(vec![wrong; TRASH_BATCH_MAX + 1])), Err(Kind::Invalid));
    assert_eq!(w.view().totals().unwrap().bytes, 9);
    for n in 0..TRASH_BATCH_MAX {
        w.file(s, ROOT, &format!("x{n}"));
        w.run(s, unlink(ROOT, &format!("x{n}"))).unwrap();
    }
    w.run(s, Op::SetTrash { retention: 0 }).unwrap();
    assert_eq!(expire(&mut w), TRASH_BATCH_MAX as u64);
    assert_eq!(expire(&mut w), 3);
    reap(&mut w);
    assert_eq!(w.view().usage(Subject::User(10)).unwrap(), Usage::default());
}

#[test]
fn beyond_a_million_entries_the_oldest_go() {
    let (mut w, s) = keeping();
    for name in ["a", "b", "c"] {
        w.file(s, ROOT, name);
        w.run(s, unlink(ROOT, name)).unwrap();
    }
    assert_eq!(w.view().trash_entries().unwrap(), 3);
    assert_eq!(expire(&mut w), 0);
    // As if there were so many more.
    let many = hfcache_base::wire::encode(&(TRASH_ENTRIES_MAX + 2));
    hfcache_raft::kv::Write::put(&mut w.store, Table::Single, b"trash-entries", &many).unwrap();
    assert!(w.view().trash_is_due(Timestamp(w.now)).unwrap());
    assert_eq!(expire(&mut w), 2);
    assert_eq!((paths(&w), w.view().trash_entries().unwrap()), (vec!["c".to_owned()], TRASH_ENTRIES_MAX));
    assert!(!w.view().trash_is_due(Timestamp(w.now)).unwrap());
}

#[test]
fn an_open_file_outlives_the_trash_and_the_trash_outlives_a_session() {
    let (mut w, s) = keeping();
    let two = w.join(2);
    let f = filled(&mut w, s, ROOT, "f", 10);
    let g = filled(&mut w, s, ROOT, "g", 10);
    w.run(s, Op::Unlink { parent: ROOT, name: b"f".to_vec(), hold: true }).unwrap();
    w.run(two, Op::Unlink { parent: ROOT, name: b"g".to_vec(), hold: true }).unwrap();
    // Emptied while it is open: it goes when it is closed.
    let id = of(&w, "f");
    w.run(s, Op::EmptyTrash(vec![id])).unwrap();
    reap(&mut w);
    assert!(w.view().attr(f).is_ok());
    w.run(s, Op::Hold { ino: f, hold: false }).unwrap();
    reap(&mut w);
    assert!(w.view().attr(f).is_err());
    // Its holder's end is not the end of what is in the trash.
    w.run(CLUSTER, Op::CloseSessions(vec![two])).unwrap();
    reap(&mut w);
    assert_eq!((rows(&w, Table::Orphan), w.view().attr(g).unwrap().nlink), (0, 0));
    // Opened again by a descriptor that somebody has, and the trash lets go meanwhile.
    w.run(s, Op::Hold { ino: g, hold: true }).unwrap();
    later(&mut w, 3_600);
    assert_eq!(expire(&mut w), 1);
    reap(&mut w);
    assert!(w.view().attr(g).is_ok());
    w.run(s, Op::Hold { ino: g, hold: false }).unwrap();
    reap(&mut w);
    assert_eq!(w.view().totals().unwrap(), Totals { inodes: 1, bytes: 0, chunks: 0 });
    assert_eq!(rows(&w, Table::SessionItem), 0);
}

#[test]
fn what_is_restored_while_it_is_open_has_no_holder_any_more() {
    let (mut w, s) = keeping();
    let f = filled(&mut w, s, ROOT, "f", 10);
    w.run(s, Op::Unlink { parent: ROOT, name: b"f".to_vec(), hold: true }).unwrap();
    w.run(s, restore(of(&w, "f"), ROOT, "f")).unwrap();
    assert_eq!((rows(&w, Table::Orphan), rows(&w, Table::SessionItem)), (0, 0));
    w.run(s, Op::Hold { ino: f, hold: false }).unwrap();
    reap(&mut w);
    assert_eq!(w.view().attr(f).unwrap().nlink, 1);
}

#[test]
fn a_locked_inode_is_the_reapers() {
    let (mut w, s) = keeping();
    let f = filled(&mut w, s, ROOT, "f", 10);
    let lock = Lock { kind: LockKind::Flock, owner: 1, exclusive: true, start: 0, end: u64::MAX, pid: 1 };
    w.run(s, Op::Lock { ino: f, lock, wait: false }).unwrap();
    w.run(s, unlink(ROOT, "f")).unwrap();
    w.run(s, Op::SetTrash { retention: 0 }).unwrap();
    assert_eq!(expire(&mut w), 1);
    reap(&mut w);
    w.run(CLUSTER, Op::CloseSessions(vec![s])).unwrap();
    reap(&mut w);
    assert!(w.view().attr(f).is_err());
    assert_eq!(rows(&w, Table::Lock), 0);
}

#[test]
fn locks_stay_with_who_has_them() {
    let (mut w, s) = keeping();
    let two = w.join(2);
    let f = w.file(s, ROOT, "f");
    let lock = Lock { kind: LockKind::Flock, owner: 1, exclusive: true, start: 0, end: u64::MAX, pid: 1 };
    let ask = |wait| Op::Lock { ino: f, lock, wait };
    assert_eq!(w.run(s, ask(false)), Ok(Reply::Lock(LockReply::Delegated)));
    w.run(s, unlink(ROOT, "f")).unwrap();
    reap(&mut w);
    assert_eq!(rows(&w, Table::Orphan), 0);
    w.run(s, restore(of(&w, "f"), ROOT, "f")).unwrap();
    // The first session still decides about them by itself, and was not told otherwise.
    assert_eq!(w.run(two, ask(false)), Ok(Reply::Lock(LockReply::Recalling)));
}

#[test]
fn directories_from_before_their_names_were_kept_are_found() {
    let (mut w, s) = keeping();
    let a = w.dir(s, ROOT, "a");
    w.dir(s, ROOT, "z");
    let b = w.dir(s, a, "b");
    w.file(s, b, "f");
    let names: Vec<Vec<u8>> =
        w.store.iter().filter(|(t, ..)| *t == Table::DirName).map(|(_, k, _)| k.to_vec()).collect();
    assert_eq!(names.len(), 3);
    for at in names {
        hfcache_raft::kv::Write::delete(&mut w.store, Table::DirName, &at).unwrap();
    }
    w.run(s, unlink(b, "f")).unwrap();
    assert_eq!(paths(&w), ["a/b/f"]);
    assert_eq!(w.view().path(b).unwrap(), b"a/b");
}

#[test]
fn damaged_rows_are_errors() {
    for (table, key, value) in [
        (Table::TrashOrder, vec![1, 2, 3], Vec::new()),
        (Table::TrashOrder, vec![255; 16], Vec::new()),
        (Table::TrashOrder, vec![0; 16], Vec::new()),
        (Table::Single, b"trash".to_vec(), vec![9, 9]),
    ] {
        let (mut w, s) = keeping();
        w.file(s, ROOT, "f");
        hfcache_raft::kv::Write::put(&mut w.store, table, &key, &value).unwrap();
        let command = w.command(s, Op::ExpireTrash);
        let applied = hfcache_raft::state::apply(&mut w.store.clone(), &command);
        let listed = w.view().trash(None, 10);
        let told = w.view().trash_retention();
        assert!(applied.is_err() || listed.is_err() || told.is_err(), "{table:?} {key:?}");
    }
}
