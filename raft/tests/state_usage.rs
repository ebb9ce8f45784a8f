//! Who uses how much. `state_model.rs` compares every counter with a walk; here are the rules one by one.

#![expect(clippy::unwrap_used, reason = "a failure ends the test")]

mod state_support;

use hfcache_base::meta::*;
use hfcache_base::seam::View as _;
use hfcache_base::{InodeId, Kind, SessionId};
use state_support::*;

fn used(w: &World, of: Subject) -> (u64, u64) {
    let used = w.view().usage(of).unwrap();
    (used.bytes, used.inodes)
}

fn tree(w: &World, dir: InodeId) -> (u64, u64) {
    used(w, Subject::Tree(dir))
}

/// A file of so many bytes in one chunk.
fn filled(w: &mut World, s: SessionId, dir: InodeId, name: &str, len: u32) -> InodeId {
    let ino = w.file(s, dir, name);
    let chunk = w.chunk(s, len);
    w.run(s, commit(ino, vec![piece(chunk, 0, 0, len)], 0)).unwrap();
    ino
}

#[test]
fn a_new_tree_is_its_root() {
    let (w, _) = World::new();
    assert_eq!(tree(&w, ROOT), (0, 1));
    assert_eq!((used(&w, Subject::User(0)), used(&w, Subject::Group(0))), ((0, 1), (0, 1)));
    assert_eq!(used(&w, Subject::User(10)), (0, 0));
    assert_eq!(World::empty().view().usage(Subject::Tree(ROOT)).unwrap(), Usage { bytes: 0, inodes: 1 });
}

#[test]
fn a_directory_counts_itself_and_all_below() {
    let (mut w, s) = World::new();
    let a = w.dir(s, ROOT, "a");
    let b = w.dir(s, a, "b");
    let f = filled(&mut w, s, b, "f", 100);
    w.make(s, b, "link", NewNode::Symlink(b"f".to_vec()));
    assert_eq!((tree(&w, b), tree(&w, a), tree(&w, ROOT)), ((100, 3), (100, 4), (100, 5)));
    assert_eq!(used(&w, Subject::User(10)), (100, 4));
    // Inline bytes count, holes do not; a file answers for itself.
    w.run(s, commit(f, vec![Piece::Inline(vec![1; 7])], 1_000)).unwrap();
    assert_eq!((tree(&w, f), tree(&w, a)), ((7, 1), (7, 4)));
    w.run(s, truncate(f, 3)).unwrap();
    assert_eq!(tree(&w, ROOT), (3, 5));
    // What has no name is in no tree, but its owner's until it is freed.
    w.run(s, unlink(b, "f")).unwrap();
    assert_eq!((tree(&w, ROOT), used(&w, Subject::User(10))), ((0, 4), (3, 4)));
    w.now += 11 * SECOND;
    w.run(SessionId(0), Op::Reap).unwrap();
    assert_eq!(used(&w, Subject::User(10)), (0, 3));
    w.run(s, unlink(b, "link")).unwrap();
    w.run(s, rmdir(a, "b")).unwrap();
    assert_eq!((tree(&w, b), tree(&w, a), tree(&w, ROOT)), ((0, 0), (0, 1), (0, 2)));
    assert_eq!(w.view().usage(Subject::Tree(InodeId(999))).unwrap_err().kind(), Kind::NotFound);
}

#[test]
fn a_shared_chunk_counts_for_each_file_that_shows_it() {
    let (mut w, s) = World::new();
    let (f, g) = (w.file(s, ROOT, "f"), w.file(s, ROOT, "g"));
    let chunk = w.chunk(s, 100);
    w.run(s, commit(f, vec![piece(chunk, 0, 0, 100)], 0)).unwrap();
    w.run(s, commit(g, vec![piece(chunk, 0, 10, 60)], 0)).unwrap();
    assert_eq!(tree(&w, ROOT), (160, 3));
    assert_eq!(w.view().totals().unwrap().bytes, 100);
}

#[test]
fn a_rename_moves_what_is_below() {
    let (mut w, s) = World::new();
    let (a, b) = (w.dir(s, ROOT, "a"), w.dir(s, ROOT, "b"));
    let d = w.dir(s, a, "d");
    let e = w.dir(s, d, "e");
    filled(&mut w, s, e, "f", 50);
    w.run(s, rename(a, "d", b, "d", RenameMode::Replace)).unwrap();
    assert_eq!((tree(&w, a), tree(&w, b), tree(&w, ROOT)), ((0, 1), (50, 4), (50, 6)));
    // Into one another's place, with different weights.
    let x = w.dir(s, a, "x");
    filled(&mut w, s, x, "f", 9);
    w.run(s, rename(a, "x", b, "d", RenameMode::Exchange)).unwrap();
    assert_eq!((tree(&w, a), tree(&w, b)), ((50, 4), (9, 3)));
    // Over an empty directory and over a file: what was there is in no tree any more.
    let empty = w.dir(s, b, "empty");
    w.run(s, rename(a, "x", b, "empty", RenameMode::Replace)).unwrap();
    assert_eq!((tree(&w, a), tree(&w, b), tree(&w, empty)), ((0, 1), (59, 6), (0, 0)));
    filled(&mut w, s, a, "one", 1);
    filled(&mut w, s, b, "two", 2);
    w.run(s, rename(a, "one", b, "two", RenameMode::Replace)).unwrap();
    assert_eq!((tree(&w, a), tree(&w, b), tree(&w, ROOT)), ((0, 1), (60, 7), (60, 9)));
}

#[test]
fn an_inode_with_many_names_has_one_home() {
    let (mut w, s) = World::new();
    let dirs: Vec<InodeId> = ["a", "b", "c"].iter().map(|name| w.dir(s, ROOT, name)).collect();
    let f = filled(&mut w, s, dirs[2], "f", 10);
    w.run(s, link(f, dirs[2], "f2")).unwrap();
    w.run(s, link(f, dirs[0], "f")).unwrap();
    w.run(s, link(f, dirs[1], "f")).unwrap();
    let homes = |w: &World| dirs.iter().map(|d| tree(w, *d).0).collect::<Vec<_>>();
    assert_eq!((homes(&w), tree(&w, ROOT)), (vec![0, 0, 10], (10, 5)));
    // It stays while its home has a name of it …
    w.run(s, unlink(dirs[2], "f")).unwrap();
    assert_eq!(homes(&w), [0, 0, 10]);
    // … goes along with the last one there …
    w.run(s, rename(dirs[2], "f2", dirs[1], "f2", RenameMode::Replace)).unwrap();
    assert_eq!(homes(&w), [0, 10, 0]);
    // … and else to the directory with the lowest number.
    w.run(s, unlink(dirs[1], "f")).unwrap();
    assert_eq!(homes(&w), [0, 10, 0]);
    w.run(s, unlink(dirs[1], "f2")).unwrap();
    assert_eq!(homes(&w), [10, 0, 0]);
    w.run(s, rename(dirs[0], "f", dirs[2], "f", RenameMode::NoReplace)).unwrap();
    assert_eq!((homes(&w), tree(&w, ROOT)), (vec![0, 0, 10], (10, 5)));
    w.run(s, unlink(dirs[2], "f")).unwrap();
    assert_eq!((homes(&w), tree(&w, ROOT)), (vec![0, 0, 0], (0, 4)));
}

#[test]
fn an_owner_change_moves_usage() {
    let (mut w, s) = World::new();
    let f = filled(&mut w, s, ROOT, "f", 10);
    w.run(s, chown(f, 11, 21)).unwrap();
    assert_eq!((used(&w, Subject::User(10)), used(&w, Subject::User(11))), ((0, 0), (10, 1)));
    assert_eq!((used(&w, Subject::Group(20)), used(&w, Subject::Group(21))), ((0, 0), (10, 1)));
    assert_eq!(tree(&w, ROOT), (10, 2));
}

#[test]
fn a_directory_knows_its_path() {
    let (mut w, s) = World::new();
    let a = w.dir(s, ROOT, "a");
    let b = w.dir(s, a, "b c");
    let f = w.file(s, b, "f");
    assert_eq!(w.view().path(ROOT).unwrap(), b"");
    assert_eq!(w.view().path(b).unwrap(), b"a/b c");
    assert_eq!(w.view().path(f).unwrap_err().kind(), Kind::NotDirectory);
    w.run(s, unlink(b, "f")).unwrap();
    w.run(s, rmdir(a, "b c")).unwrap();
    assert_eq!(w.view().path(b).unwrap_err().kind(), Kind::NotFound);
}
