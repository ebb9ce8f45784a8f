//! Appends, clones, nameless files, recorded reads and guarded commits: what each does, and refuses.

mod state_support;

use hfcache_base::limits::*;
use hfcache_base::meta::*;
use hfcache_base::seam::View as _;
use hfcache_base::{ChunkId, InodeId, Kind, SessionId};
use state_support::*;

const GONE: InodeId = InodeId(999);

fn append(w: &mut World, s: SessionId, ino: InodeId, pieces: Vec<Piece>, len: u64) -> Op {
    let token = w.chunk(s, 1).id;
    Op::Append { ino, token, pieces, len, mtime: Some(Timestamp(5)) }
}

fn inline(bytes: &[u8]) -> Vec<Piece> {
    vec![Piece::Inline(bytes.to_vec())]
}

/// Offset, length, offset in the chunk, chunk.
type Shown = (u64, u32, u32, u64);

fn content(w: &World, ino: InodeId) -> (u64, Vec<u8>, Vec<Shown>) {
    let (attr, content) = w.view().content(ino).expect("read a file");
    let extents = content.extents.iter().map(|e| (e.offset, e.len, e.chunk_offset, e.chunk.id.0)).collect();
    (attr.size, content.inline, extents)
}

#[test]
fn an_append_goes_to_the_end_whoever_was_there_before() {
    let (mut w, s) = World::new();
    let other = w.join(2);
    let f = w.file(s, ROOT, "log");
    for (who, text) in [(s, "one "), (other, "two "), (s, "three")] {
        let op = append(&mut w, who, f, inline(text.as_bytes()), text.len() as u64);
        assert!(matches!(w.run(who, op), Ok(Reply::Attr(_))));
    }
    assert_eq!(content(&w, f), (13, b"one two three".to_vec(), vec![]));
    assert_eq!(w.view().attr(f).unwrap().mtime, Timestamp(5));
    // Behind a hole.
    w.run(s, truncate(f, 20)).unwrap();
    let op = append(&mut w, s, f, inline(b"four"), 4);
    w.run(s, op).unwrap();
    assert_eq!(content(&w, f).1, b"one two three\0\0\0\0\0\0\0four");
    // What no longer fits into the inode is to come in chunks, and everything after it too.
    let big = vec![7; INLINE_MAX];
    let op = append(&mut w, s, f, inline(&big), big.len() as u64);
    assert_eq!(w.run(s, op), Err(Kind::Changed));
    let (one, two) = (w.chunk(s, 5_000), w.chunk(other, 100));
    let op = append(&mut w, s, f, vec![piece(one, 0, 0, 5_000)], 5_000);
    w.run(s, op).unwrap();
    let op = append(&mut w, other, f, vec![piece(two, 0, 0, 50), piece(two, 60, 50, 50)], 110);
    w.run(other, op).unwrap();
    let (size, _, extents) = content(&w, f);
    let want = [(24, 5_000, 0, one.id.0), (5_024, 50, 0, two.id.0), (5_084, 50, 50, two.id.0)];
    assert_eq!((size, extents), (5_134, want.to_vec()));
    let op = append(&mut w, s, f, inline(b"x"), 1);
    assert_eq!(w.run(s, op), Err(Kind::Changed));
}

#[test]
fn an_append_takes_effect_once_under_its_token() {
    let (mut w, s) = World::new();
    let other = w.join(2);
    let f = w.file(s, ROOT, "log");
    let op = append(&mut w, s, f, inline(b"once"), 4);
    w.run(s, op.clone()).unwrap();
    // Proposed anew, as after an answer that never came.
    assert_eq!(w.run(s, op.clone()), Err(Kind::Exists));
    assert_eq!(w.run(other, op), Err(Kind::Stale));
    let Op::Append { ino, pieces, len, mtime, .. } = append(&mut w, s, f, inline(b"x"), 1) else {
        unreachable!()
    };
    let unknown = Op::Append { ino, token: ChunkId(1 << 40), pieces, len, mtime };
    assert_eq!(w.run(s, unknown), Err(Kind::Stale));
    assert_eq!(content(&w, f), (4, b"once".to_vec(), vec![]));
}

#[test]
fn an_append_says_what_is_wrong() {
    let (mut w, s) = World::new();
    let (f, d) = (w.file(s, ROOT, "f"), w.dir(s, ROOT, "d"));
    let l = w.make(s, ROOT, "l", NewNode::Symlink(b"t".to_vec()));
    let chunk = w.chunk(s, 100);
    for (ino, pieces, len, kind) in [
        (GONE, inline(b"x"), 1, Kind::Stale),
        (d, inline(b"x"), 1, Kind::IsDirectory),
        (l, inline(b"x"), 1, Kind::Invalid),
        (f, vec![], 0, Kind::Invalid),
        (f, inline(b"xy"), 3, Kind::Invalid),
        (f, vec![piece(chunk, 0, 0, 100)], 99, Kind::Invalid),
        (f, vec![piece(chunk, 0, 1, 100)], 100, Kind::Invalid),
        (f, vec![piece(ChunkRef { id: ChunkId(1 << 50), ..chunk }, 0, 0, 100)], 100, Kind::Invalid),
        (f, vec![Piece::Hole { offset: 0, len: u64::MAX }], u64::MAX, Kind::TooLarge),
    ] {
        let op = append(&mut w, s, ino, pieces, len);
        assert_eq!(w.run(s, op.clone()), Err(kind), "{op:?}");
    }
    w.run(s, truncate(f, FILE_SIZE_MAX)).unwrap();
    let op = append(&mut w, s, f, vec![piece(chunk, 0, 0, 100)], 100);
    assert_eq!(w.run(s, op), Err(Kind::TooLarge));
}

#[test]
fn a_commit_made_from_other_content_is_refused() {
    let (mut w, s) = World::new();
    let f = w.file(s, ROOT, "f");
    let version = w.view().attr(f).unwrap().data_version;
    let guarded = |base: u64, bytes: &[u8]| Op::Commit {
        ino: f,
        pieces: inline(bytes),
        size: bytes.len() as u64,
        mtime: None,
        base: Some(base),
    };
    let Reply::Attr(attr) = w.run(s, guarded(version, b"first")).unwrap() else { panic!() };
    assert_eq!(w.run(s, guarded(version, b"late")), Err(Kind::Changed));
    assert_eq!(content(&w, f).1, b"first");
    w.run(s, guarded(attr.data_version, b"next")).unwrap();
    assert_eq!(content(&w, f).1, b"next");
}

#[test]
fn a_clone_shows_the_same_chunks() {
    let (mut w, s) = World::new();
    let (a, b) = (w.file(s, ROOT, "a"), w.file(s, ROOT, "b"));
    let (x, y) = (w.chunk(s, 1_000), w.chunk(s, 1_000));
    w.run(s, commit(a, vec![piece(x, 0, 0, 1_000), piece(y, 2_000, 0, 1_000)], 4_000)).unwrap();
    let clone = |from, from_offset, to, to_offset, len| Op::Clone { from, from_offset, to, to_offset, len };
    // Unaligned, over a hole, into the middle of nothing.
    assert_eq!(w.run(s, clone(a, 990, b, 10, 1_020)), Ok(Reply::Count(1_020)));
    assert_eq!(content(&w, b).2, [(10, 10, 990, x.id.0), (1_020, 10, 0, y.id.0)]);
    assert_eq!(w.view().attr(b).unwrap().size, 1_030);
    assert_eq!(w.view().totals().unwrap().chunks, 2);
    // It ends with its source, and what the source shows later is its own affair.
    assert_eq!(w.run(s, clone(a, 3_900, b, 0, 1_000)), Ok(Reply::Count(100)));
    assert_eq!(w.run(s, clone(a, 4_000, b, 0, 1_000)), Ok(Reply::Count(0)));
    w.run(s, truncate(a, 0)).unwrap();
    assert_eq!(content(&w, b).2, [(1_020, 10, 0, y.id.0)]);
    assert_eq!(w.view().chunks(ChunkId(0), 9).unwrap(), [y]);
    // Within one file.
    assert_eq!(w.run(s, clone(b, 1_000, b, 2_000, 30)), Ok(Reply::Count(30)));
    assert_eq!(content(&w, b).2, [(1_020, 10, 0, y.id.0), (2_020, 10, 0, y.id.0)]);
    for (op, kind) in [
        (clone(b, 1_000, b, 1_029, 30), Kind::Invalid),
        (clone(b, 1_029, b, 1_000, 30), Kind::Invalid),
        (clone(GONE, 0, b, 0, 1), Kind::Stale),
        (clone(b, 0, GONE, 0, 1), Kind::Stale),
        (clone(ROOT, 0, b, 0, 1), Kind::IsDirectory),
        (clone(b, 0, a, FILE_SIZE_MAX, 1), Kind::TooLarge),
        (clone(b, 0, a, u64::MAX, u64::MAX), Kind::TooLarge),
    ] {
        assert_eq!(w.run(s, op.clone()), Err(kind), "{op:?}");
    }
    w.run(s, unlink(ROOT, "b")).unwrap();
    w.now += 11 * SECOND;
    assert!(w.changes(s, Op::Reap).contains(&Change::ChunkFreed(y.id)));
    assert_eq!(w.view().totals().unwrap(), Totals { inodes: 2, bytes: 0, chunks: 0 });
}

#[test]
fn a_clone_copies_inline_bytes_only_into_an_inode() {
    let (mut w, s) = World::new();
    let (a, b) = (w.file(s, ROOT, "a"), w.file(s, ROOT, "b"));
    w.run(s, commit(a, inline(b"0123456789"), 10)).unwrap();
    let clone = |to_offset| Op::Clone { from: a, from_offset: 2, to: b, to_offset, len: 5 };
    assert_eq!(w.run(s, clone(3)), Ok(Reply::Count(5)));
    assert_eq!(content(&w, b).1, b"\0\0\x0023456");
    assert_eq!(w.run(s, clone(INLINE_MAX as u64 - 4)), Err(Kind::NotSupported));
    assert_eq!(w.run(s, clone(INLINE_MAX as u64 - 5)), Ok(Reply::Count(5)));
    assert_eq!(content(&w, b).1.len(), INLINE_MAX);
}

#[test]
fn a_clone_of_many_extents_is_cut() {
    let (mut w, s) = World::new();
    let (a, b) = (w.file(s, ROOT, "a"), w.file(s, ROOT, "b"));
    let x = w.chunk(s, 1);
    for part in 0..(CLONE_EXTENTS_MAX as u64 + 10).div_ceil(200) {
        let pieces = (0..200).map(|i| piece(x, (part * 200 + i) * 2, 0, 1)).collect();
        w.run(s, commit(a, pieces, 0)).unwrap();
    }
    let all = Op::Clone { from: a, from_offset: 0, to: b, to_offset: 0, len: 1 << 20 };
    assert_eq!(w.run(s, all), Ok(Reply::Count(CLONE_EXTENTS_MAX as u64 * 2)));
}

#[test]
fn a_nameless_file_lives_with_its_session_or_gets_a_name() {
    let (mut w, s) = World::new();
    let other = w.join(2);
    let d = w.dir(s, ROOT, "d");
    w.run(
        s,
        Op::SetAttr { ino: d, set: SetAttr { mode: Some(0o2777), gid: Some(77), ..SetAttr::default() } },
    )
    .unwrap();
    let make = |nameless| Op::CreateNameless { parent: d, mode: 0o640, umask: 0, uid: 1, gid: 2, nameless };
    let made = |reply| match reply {
        Ok(Reply::Entry { attr, created: true }) => attr,
        other => panic!("{other:?}"),
    };
    let before = w.view().totals().unwrap();
    let attr = made(w.run(s, make(false)));
    assert_eq!((attr.nlink, attr.mode, attr.uid, attr.gid), (0, 0o640, 1, 77));
    assert_eq!(w.view().totals().unwrap(), before);
    let f = attr.ino;
    // Held: it outlives the grace time. Only its own session may name it.
    w.now += 20 * SECOND;
    assert_eq!(w.run(s, Op::Reap), Ok(Reply::Count(0)));
    assert_eq!(w.run(other, link(f, d, "n")), Err(Kind::NotFound));
    assert!(matches!(w.run(s, link(f, d, "n")), Ok(Reply::Entry { attr, .. }) if attr.nlink == 1));
    assert_eq!(w.view().totals().unwrap().inodes, before.inodes + 1);
    // From now on it is a file like any other.
    w.now += 20 * SECOND;
    assert_eq!(w.run(s, Op::Reap), Ok(Reply::Count(0)));
    w.run(other, unlink(d, "n")).unwrap();
    assert_eq!(w.run(s, link(f, d, "again")), Err(Kind::NotFound));
    w.now += 20 * SECOND;
    assert_eq!(w.run(s, Op::Reap), Ok(Reply::Count(1)));
    // One that may never get a name; one that was let go; one whose session ends.
    let never = made(w.run(s, make(true))).ino;
    assert_eq!(w.run(s, link(never, d, "n")), Err(Kind::NotFound));
    let gone = made(w.run(s, make(false))).ino;
    w.run(s, Op::Hold { ino: gone, hold: false }).unwrap();
    assert_eq!(w.run(s, link(gone, d, "n")), Err(Kind::NotFound));
    made(w.run(other, make(false)));
    w.run(SessionId(0), Op::CloseSessions(vec![s, other])).unwrap();
    w.now += 20 * SECOND;
    assert_eq!(w.run(SessionId(0), Op::Reap), Ok(Reply::Count(3)));
    assert!(!w.view().has_orphans().unwrap());
    let s = w.open(hfcache_base::NodeId(1), 9);
    let file = w.file(s, ROOT, "f");
    let make = |parent| Op::CreateNameless { parent, mode: 0, umask: 0, uid: 1, gid: 2, nameless: false };
    assert_eq!(w.run(s, make(file)), Err(Kind::NotDirectory));
    assert_eq!(w.run(s, make(GONE)), Err(Kind::NotFound));
}

#[test]
fn reads_are_recorded_by_the_rules_of_relatime() {
    let (mut w, s) = World::new();
    let f = w.file(s, ROOT, "f");
    let times = |w: &World| {
        let attr = w.view().attr(f).unwrap();
        (attr.atime.0, attr.ctime.0, attr.data_version)
    };
    let (made, ctime, version) = times(&w);
    let touch = |at: i64| Op::Touch(vec![(GONE, Timestamp(at)), (f, Timestamp(at))]);
    // Not newer than the last change: the read may have been before it.
    assert_eq!(w.run(s, touch(made)), Ok(Reply::Count(0)));
    assert_eq!(w.run(s, touch(made + SECOND)), Ok(Reply::Count(1)));
    assert_eq!(times(&w), (made + SECOND, ctime, version));
    let day = 24 * 3_600 * SECOND;
    assert_eq!(w.run(s, touch(made + day)), Ok(Reply::Count(0)));
    assert_eq!(w.run(s, touch(made + SECOND + day)), Ok(Reply::Count(1)));
    // After a change the next read counts; an atime that someone sets is exact.
    w.now += 2 * day;
    w.run(s, truncate(f, 5)).unwrap();
    let now = w.now + SECOND;
    assert_eq!(w.run(s, touch(now)), Ok(Reply::Count(1)));
    let exact = SetAttr { atime: Some(SetTime::To(Timestamp(3))), ..SetAttr::default() };
    w.run(s, Op::SetAttr { ino: f, set: exact }).unwrap();
    assert_eq!(w.run(s, touch(w.now - 1)), Ok(Reply::Count(0)));
    assert_eq!(times(&w).0, 3);
    assert_eq!(w.run(s, Op::Touch(vec![(f, Timestamp(0)); TOUCH_MAX + 1])), Err(Kind::Invalid));
}

/// How large a directory: `HFCACHE_LARGE_DIR` entries.
fn large() -> u64 {
    std::env::var("HFCACHE_LARGE_DIR").ok().and_then(|n| n.parse().ok()).unwrap_or(100_000)
}

#[test]
fn a_large_directory_is_listed_whole_while_it_changes() {
    let (mut w, s) = World::new();
    let count = large();
    for n in 0..count {
        // Not through `World::run`, which copies the whole state at each step.
        let command = w.command(s, create(ROOT, &format!("entry-{n}"), NewNode::File));
        hfcache_raft::state::apply(&mut w.store, &command).unwrap().reply.unwrap();
    }
    assert_eq!(w.view().attr(ROOT).unwrap().size, count);
    let (mut seen, mut after, mut pages) = (0, 0, 0);
    loop {
        let page = w.view().readdir(ROOT, after, READDIR_PAGE).unwrap();
        assert!(page.len() <= READDIR_PAGE + 8, "a page is bounded: {}", page.len());
        assert!(page.windows(2).all(|p| p[0].cookie <= p[1].cookie), "in order");
        let Some(last) = page.last() else { break };
        assert!(page.iter().all(|row| row.cookie > after), "no row twice");
        seen += page.iter().filter(|row| row.name.starts_with(b"entry-")).count() as u64;
        after = last.cookie;
        pages += 1;
        // What comes and goes meanwhile moves no cookie of the others.
        let op = create(ROOT, &format!("new-{pages}"), NewNode::File);
        let command = w.command(s, op);
        hfcache_raft::state::apply(&mut w.store, &command).unwrap().reply.unwrap();
        if pages > 1 {
            let command = w.command(s, unlink(ROOT, &format!("new-{}", pages - 1)));
            hfcache_raft::state::apply(&mut w.store, &command).unwrap().reply.unwrap();
        }
    }
    assert_eq!(seen, count);
}
