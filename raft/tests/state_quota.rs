//! Quotas and rates: what they refuse, and what never is refused.

#![expect(clippy::unwrap_used, reason = "a failure ends the test")]

mod state_support;

use hfcache_base::meta::*;
use hfcache_base::seam::View as _;
use hfcache_base::{InodeId, Kind, SessionId};
use hfcache_raft::kv::{Memory, Table, Write as _};
use hfcache_raft::state::{StateView, apply};
use state_support::*;

fn write(w: &mut World, s: SessionId, ino: InodeId, offset: u64, len: u32) -> Result<Reply, Kind> {
    let chunk = w.chunk(s, len);
    w.run(s, commit(ino, vec![piece(chunk, offset, 0, len)], 0))
}

#[test]
fn bytes_of_a_tree() {
    let (mut w, s) = World::new();
    let a = w.dir(s, ROOT, "a");
    let b = w.dir(s, a, "b");
    let f = w.file(s, b, "f");
    w.run(s, quota(Subject::Tree(a), limit(100, None))).unwrap();
    write(&mut w, s, f, 0, 100).unwrap();
    // To the byte; over itself it does not grow; elsewhere there is no limit.
    assert_eq!(write(&mut w, s, f, 100, 1), Err(Kind::Quota));
    write(&mut w, s, f, 50, 50).unwrap();
    assert_eq!(w.run(s, commit(f, vec![Piece::Inline(vec![0; 101])], 101)), Err(Kind::Quota));
    w.run(s, commit(f, vec![Piece::Inline(vec![0; 100])], 100)).unwrap();
    let g = w.file(s, ROOT, "g");
    write(&mut w, s, g, 0, 1_000).unwrap();
    // A hole is no byte, and less is never refused, even where it is still too much.
    w.run(s, truncate(f, 1 << 40)).unwrap();
    w.run(s, quota(Subject::Tree(a), limit(10, None))).unwrap();
    w.run(s, truncate(f, 90)).unwrap();
    w.run(s, commit(f, vec![Piece::Hole { offset: 80, len: 10 }], 0)).unwrap();
    w.file(s, b, "empty");
    assert_eq!(write(&mut w, s, f, 1_000, 1), Err(Kind::Quota));
    // What went away can be used again.
    w.run(s, unlink(b, "f")).unwrap();
    let h = w.file(s, b, "h");
    write(&mut w, s, h, 0, 10).unwrap();
    // A nameless file is in no tree.
    w.run(s, Op::Unlink { parent: b, name: b"h".to_vec(), hold: true }).unwrap();
    write(&mut w, s, h, 10, 500).unwrap();
}

#[test]
fn inodes_of_a_tree() {
    let (mut w, s) = World::new();
    let a = w.dir(s, ROOT, "a");
    w.run(s, quota(Subject::Tree(a), limit(None, 3))).unwrap();
    let f = w.file(s, a, "f");
    let d = w.dir(s, a, "d");
    for node in [NewNode::File, NewNode::Directory, NewNode::Symlink(b"x".to_vec())] {
        assert_eq!(w.run(s, create(d, "x", node)), Err(Kind::Quota));
    }
    // Another name is no inode; one that exists can be opened.
    w.run(s, link(f, d, "f2")).unwrap();
    let Op::Create { parent, name, node, mode, umask, uid, gid, .. } = create(a, "f", NewNode::File) else {
        unreachable!()
    };
    w.run(s, Op::Create { parent, name, node, mode, umask, uid, gid, exclusive: false }).unwrap();
    assert_eq!(w.run(s, create(a, "f", NewNode::File)), Err(Kind::Exists));
    w.run(s, unlink(a, "f")).unwrap();
    w.run(s, unlink(d, "f2")).unwrap();
    w.file(s, d, "x");
    // The nearest and the farthest directory both count.
    w.run(s, quota(Subject::Tree(ROOT), limit(None, 4))).unwrap();
    assert_eq!(w.run(s, create(ROOT, "y", NewNode::File)), Err(Kind::Quota));
    w.run(s, quota(Subject::Tree(ROOT), Limit::default())).unwrap();
    w.file(s, ROOT, "y");
}

#[test]
fn renames_into_a_limited_tree() {
    let (mut w, s) = World::new();
    let (a, b) = (w.dir(s, ROOT, "a"), w.dir(s, ROOT, "b"));
    let d = w.dir(s, b, "d");
    let f = w.file(s, d, "f");
    write(&mut w, s, f, 0, 60).unwrap();
    w.run(s, quota(Subject::Tree(a), limit(50, 2))).unwrap();
    let into = |from: InodeId, name: &str, mode| rename(from, name, a, "t", mode);
    for mode in [RenameMode::Replace, RenameMode::NoReplace] {
        assert_eq!(w.run(s, into(b, "d", mode)), Err(Kind::Quota));
        assert_eq!(w.run(s, into(d, "f", mode)), Err(Kind::Quota));
    }
    w.run(s, truncate(f, 0)).unwrap();
    assert_eq!(w.run(s, into(b, "d", RenameMode::Replace)), Err(Kind::Quota), "inodes");
    w.run(s, into(d, "f", RenameMode::Replace)).unwrap();
    // In the place of what is there, within the tree, and out of it.
    let g = w.file(s, b, "g");
    write(&mut w, s, g, 0, 50).unwrap();
    w.run(s, into(b, "g", RenameMode::Replace)).unwrap();
    w.run(s, rename(a, "t", a, "u", RenameMode::Replace)).unwrap();
    let big = w.file(s, b, "big");
    write(&mut w, s, big, 0, 51).unwrap();
    assert_eq!(w.run(s, rename(b, "big", a, "u", RenameMode::Exchange)), Err(Kind::Quota));
    w.run(s, truncate(big, 50)).unwrap();
    w.run(s, rename(b, "big", a, "u", RenameMode::Exchange)).unwrap();
    w.run(s, rename(a, "u", b, "out", RenameMode::Replace)).unwrap();
    // A limit goes along with its directory, and away with it.
    w.run(s, rename(ROOT, "a", b, "a", RenameMode::Replace)).unwrap();
    assert_eq!(w.view().quotas().unwrap()[0].subject, Subject::Tree(a));
    w.run(s, rmdir(b, "a")).unwrap();
    assert_eq!(w.view().quotas().unwrap(), []);
}

#[test]
fn users_and_groups() {
    let (mut w, s) = World::new();
    let f = w.file(s, ROOT, "f");
    for subject in [Subject::User(10), Subject::Group(20)] {
        w.run(s, quota(subject, limit(100, 2))).unwrap();
        write(&mut w, s, f, 0, 100).unwrap();
        assert_eq!(write(&mut w, s, f, 100, 1), Err(Kind::Quota), "{subject:?}");
        w.file(s, ROOT, "g");
        assert_eq!(w.run(s, create(ROOT, "h", NewNode::File)), Err(Kind::Quota), "{subject:?}");
        // A nameless file is its owner's until it is freed.
        w.run(s, unlink(ROOT, "g")).unwrap();
        assert_eq!(w.run(s, create(ROOT, "h", NewNode::File)), Err(Kind::Quota), "{subject:?}");
        w.now += 11 * SECOND;
        w.run(SessionId(0), Op::Reap).unwrap();
        w.file(s, ROOT, "h");
        w.run(s, unlink(ROOT, "h")).unwrap();
        w.now += 11 * SECOND;
        w.run(SessionId(0), Op::Reap).unwrap();
        w.run(s, quota(subject, Limit::default())).unwrap();
    }
    // Giving away is checked, also from root to a user, and for each of the two.
    w.run(s, quota(Subject::User(11), limit(99, None))).unwrap();
    w.run(s, quota(Subject::Group(21), limit(None, 0))).unwrap();
    assert_eq!(w.run(s, chown(f, 11, 20)), Err(Kind::Quota));
    assert_eq!(w.run(s, chown(f, 12, 21)), Err(Kind::Quota));
    w.run(s, truncate(f, 99)).unwrap();
    w.run(s, chown(f, 11, 20)).unwrap();
    w.run(s, chown(f, 0, 0)).unwrap();
    write(&mut w, s, f, 0, 500).unwrap();
}

#[test]
fn what_can_be_limited() {
    let (mut w, s) = World::new();
    let f = w.file(s, ROOT, "f");
    let some = limit(1, None);
    for (subject, kind) in [
        (Subject::Tree(InodeId(999)), Kind::NotFound),
        (Subject::Tree(f), Kind::NotDirectory),
        (Subject::User(0), Kind::NotPermitted),
        (Subject::Group(0), Kind::NotPermitted),
        (Subject::User(u32::MAX), Kind::Invalid),
        (Subject::Group(u32::MAX), Kind::Invalid),
    ] {
        assert_eq!(w.run(s, quota(subject, some)), Err(kind), "{subject:?}");
        assert_eq!(w.run(s, quota(subject, Limit::default())), Ok(Reply::Done), "{subject:?}");
    }
    let d = w.dir(s, ROOT, "d");
    w.run(s, rmdir(ROOT, "d")).unwrap();
    assert_eq!(w.run(s, quota(Subject::Tree(d), some)), Err(Kind::NotFound));
    assert_eq!(w.run(SessionId(0), quota(Subject::User(1), some)), Err(Kind::Fenced));
}

#[test]
fn quotas_are_shown() {
    let (mut w, s) = World::new();
    let a = w.dir(s, ROOT, "a");
    let b = w.dir(s, a, "b");
    let f = w.file(s, b, "f");
    write(&mut w, s, f, 0, 60).unwrap();
    assert_eq!(w.view().quotas_on(f).unwrap(), []);
    w.run(s, quota(Subject::Group(20), limit(None, 9))).unwrap();
    w.run(s, quota(Subject::User(10), limit(70, 2))).unwrap();
    w.run(s, quota(Subject::Tree(ROOT), limit(90, None))).unwrap();
    w.run(s, quota(Subject::Tree(b), limit(80, 5))).unwrap();
    let on = w.view().quotas_on(f).unwrap();
    let subjects: Vec<Subject> = on.iter().map(|q| q.subject).collect();
    assert_eq!(subjects, [Subject::Tree(b), Subject::Tree(ROOT), Subject::User(10), Subject::Group(20)]);
    assert_eq!(on[0].used, Usage { bytes: 60, inodes: 2 });
    assert_eq!((on[0].bytes_left(), on[0].inodes_left()), (Some(20), Some(3)));
    assert_eq!((on[1].bytes_left(), on[1].inodes_left()), (Some(30), None));
    // Three inodes are more than two.
    assert_eq!((on[2].bytes_left(), on[2].inodes_left()), (Some(10), Some(0)));
    assert_eq!(w.view().quotas_on(a).unwrap()[0].subject, Subject::Tree(ROOT));
    assert_eq!(w.view().quotas().unwrap().len(), 4);
    // Without a name only the owner's count.
    w.run(s, unlink(b, "f")).unwrap();
    let on = w.view().quotas_on(f).unwrap();
    assert_eq!(on.iter().map(|q| q.subject).collect::<Vec<_>>(), [Subject::User(10), Subject::Group(20)]);
    assert_eq!(w.view().quotas_on(InodeId(999)).unwrap_err().kind(), Kind::NotFound);
}

#[test]
fn rates_are_kept_and_announced() {
    let (mut w, s) = World::new();
    let rate = Rate { read: Some(100), write: None, ops: Some(5) };
    let set = |subject, rate| Op::SetRate { subject, rate };
    let slow = Subject::User(7);
    assert_eq!(w.outcome(s, set(slow, rate)).applied.changes, [Change::Rates]);
    w.run(s, set(Subject::Group(8), Rate { write: Some(1), ..Rate::default() })).unwrap();
    assert_eq!(w.view().rates().unwrap()[0], (slow, rate));
    assert_eq!(w.view().rates().unwrap().len(), 2);
    w.run(s, set(slow, Rate::default())).unwrap();
    assert_eq!(w.view().rates().unwrap().len(), 1);
    for (subject, kind) in [
        (Subject::Tree(ROOT), Kind::Invalid),
        (Subject::User(0), Kind::NotPermitted),
        (Subject::Group(0), Kind::NotPermitted),
        (Subject::User(u32::MAX), Kind::Invalid),
        (Subject::Group(u32::MAX), Kind::Invalid),
    ] {
        assert_eq!(w.run(s, set(subject, rate)), Err(kind), "{subject:?}");
    }
    assert_eq!(w.run(s, set(slow, Rate { ops: Some(0), ..rate })), Err(Kind::Invalid));
}

/// What an operation would do if there were no quotas, and whether one forbids it: some subject grows, and
/// to more than its limit.
fn without_quotas(before: &Memory, command: &Command, quotas: &[Quota]) -> (Result<Reply, Kind>, bool) {
    let mut store = before.clone();
    let limits: Vec<Vec<u8>> = before.iter().filter(|p| p.0 == Table::Limit).map(|p| p.1.to_vec()).collect();
    for at in limits {
        store.delete(Table::Limit, &at).unwrap();
    }
    let reply = apply(&mut store, command).unwrap().reply;
    let view = StateView::new(&store);
    let over = quotas.iter().any(|quota| {
        let now = view.usage(quota.subject).unwrap_or_default();
        let over = |was: u64, now: u64, most: Option<u64>| now > was && most.is_some_and(|most| now > most);
        over(quota.used.bytes, now.bytes, quota.limit.bytes)
            || over(quota.used.inodes, now.inodes, quota.limit.inodes)
    });
    (reply, over)
}

#[test]
fn a_quota_refuses_exactly_what_goes_past_it() {
    let mut refused = 0;
    for seed in 1..=60u64 {
        println!("seed {seed}");
        let (mut w, s) = World::new();
        let mut dice = Dice(seed << 32);
        let mut dirs = vec![ROOT];
        let mut inodes = vec![ROOT];
        for _ in 0..200 {
            let dir = dirs[dice.below(dirs.len() as u64) as usize];
            let other = dirs[dice.below(dirs.len() as u64) as usize];
            let ino = inodes[dice.below(inodes.len() as u64) as usize];
            let (name, new_name) = (format!("n{}", dice.below(4)), format!("n{}", dice.below(4)));
            let kind = dice.below(20);
            let op = match kind {
                0..=2 => create(dir, &name, NewNode::File),
                3..=4 => create(dir, &name, NewNode::Directory),
                5 => link(ino, dir, &name),
                6 => unlink(dir, &name),
                7 => rmdir(dir, &name),
                8..=11 => {
                    let modes = [RenameMode::Replace, RenameMode::Exchange];
                    rename(dir, &name, other, &new_name, modes[dice.below(2) as usize])
                }
                12..=14 => {
                    let chunk = w.chunk(s, 1 + dice.below(30) as u32);
                    commit(ino, vec![piece(chunk, dice.below(30), 0, chunk.len)], 0)
                }
                15 => truncate(ino, dice.below(60)),
                16..=17 => chown(ino, 10 + dice.below(2) as u32, 20 + dice.below(2) as u32),
                _ => {
                    let subjects = [Subject::Tree(dir), Subject::User(10), Subject::Group(21)];
                    let bound = |dice: &mut Dice, most: u64| (!dice.one_in(3)).then(|| dice.below(most));
                    let limit = Limit { bytes: bound(&mut dice, 150), inodes: bound(&mut dice, 12) };
                    quota(subjects[dice.below(3) as usize], limit)
                }
            };
            let quotas = w.view().quotas().unwrap();
            let before = w.store.clone();
            let reply = w.run(s, op.clone());
            let command = w.log.last().unwrap().clone();
            let (free, over) = without_quotas(&before, &command, &quotas);
            let takes_away = matches!(op, Op::Unlink { .. } | Op::Rmdir { .. } | Op::SetQuota { .. });
            let expect = if free.is_ok() && over && !takes_away { Err(Kind::Quota) } else { free };
            assert_eq!(reply, expect, "{op:?} with {quotas:?}");
            refused += u32::from(reply == Err(Kind::Quota));
            if let Ok(Reply::Entry { attr, .. }) = reply {
                inodes.push(attr.ino);
                if attr.kind == FileKind::Directory {
                    dirs.push(attr.ino);
                }
            }
        }
        let mut twin = Memory::new();
        for command in &w.log {
            apply(&mut twin, command).unwrap();
        }
        assert_eq!(twin, w.store);
    }
    assert!(refused > 500, "{refused} refused");
}
