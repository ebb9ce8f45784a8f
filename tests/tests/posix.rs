//! Bytes: the calls that Hugging Face clients make, each of them seen from a second node.

use hfcache_tests::pattern::Pattern;
use hfcache_tests::sys::{self, Map, MapKind};
use hfcache_tests::two::{self, Check, Two, errno, read, same_stat, stat, write};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;
use std::thread;
use std::time::Duration;

const CHECKS: &[Check] = &[
    ("close_to_open", close_to_open),
    ("offsets", offsets),
    ("truncate", truncate),
    ("big_file", big_file),
    ("append", append),
    ("unlink_open", unlink_open),
    ("copy_keeps_times", copy_keeps_times),
    ("space", space),
    ("map_read", map_read),
    ("map_write", map_write),
    ("fsync", fsync),
    ("many_opens", many_opens),
    ("sendfile", sendfile),
    ("sqlite", sqlite),
];

#[test]
fn bytes_are_the_same_on_every_node() {
    two::on_cluster("posix", CHECKS);
}

#[test]
fn the_checks_hold_on_the_local_file_system() {
    two::on_local("posix", CHECKS);
}

/// An open that starts after a close returned elsewhere sees those bytes, of every size class.
fn close_to_open(two: &Two) {
    for (i, len) in [0, 1, 4_095, 4_096, 4_097, 65_536, 262_144, 262_145, 1 << 20, (1 << 20) + 1, 17 << 20]
        .into_iter()
        .enumerate()
    {
        let (a, b) = two.both(&format!("f{len}"));
        let pattern = Pattern::new(i as u64, len);
        pattern.write(&a).expect("write");
        pattern.check(&b).expect("read on the other node");
        // And replaced in place, from there.
        let again = Pattern::new(100 + i as u64, len / 2 + 3);
        fs::write(&b, again.bytes()).expect("rewrite on the other node");
        again.check(&a).expect("read on the first node");
        same_stat(&a, &b);
    }
}

/// Writes at any offset, holes, several writers on one file, reads through the same handle.
fn offsets(two: &Two) {
    let (a, b) = two.both("sparse");
    let file = File::options().read(true).write(true).create_new(true).open(&a).expect("create");
    file.write_all_at(b"far", 40 << 20).expect("write far away");
    file.write_all_at(b"near", 10).expect("write at 10");
    file.write_all_at(b"edge", (1 << 20) - 2).expect("write over an edge");
    let mut buf = [0; 4];
    file.read_exact_at(&mut buf, (1 << 20) - 2).expect("read back through the handle");
    assert_eq!(&buf, b"edge");
    drop(file);
    let seen = read(&b);
    assert_eq!(seen.len(), (40 << 20) + 3);
    assert!(seen[..10].iter().chain(&seen[14..(1 << 20) - 2]).all(|b| *b == 0), "holes are zeros");
    assert_eq!((&seen[10..14], &seen[40 << 20..]), (&b"near"[..], &b"far"[..]));
    // Small changes in the middle of what is there, not at any edge, in random order.
    let mut want = seen;
    let file = File::options().write(true).open(&b).expect("open on the other node");
    for i in 0..200u64 {
        let at = (i * 7_919_777) % (want.len() as u64 - 5_000);
        let piece = Pattern::new(i, 1 + i * 23).bytes();
        file.write_all_at(&piece, at).expect("write in the middle");
        want[at as usize..at as usize + piece.len()].copy_from_slice(&piece);
    }
    drop(file);
    assert!(read(&a) == want, "changes in the middle are seen");

    // Threads that write disjoint parts of one new file at once (as Xet's downloader does).
    let (a, b) = two.both("parallel");
    let pattern = Pattern::new(9, 24 << 20);
    let file = File::create_new(&a).expect("create");
    thread::scope(|scope| {
        for part in 0..8u64 {
            let file = &file;
            scope.spawn(move || {
                let mut buf = vec![0; 1 << 20];
                for i in 0..3 {
                    let at = (part * 3 + i) << 20;
                    pattern.fill(at, &mut buf);
                    file.write_all_at(&buf, at).expect("write a part");
                }
            });
        }
    });
    drop(file);
    pattern.check(&b).expect("all parts are there");
}

fn truncate(two: &Two) {
    let (a, b) = two.both("f");
    let pattern = Pattern::new(1, 3 << 20);
    pattern.write(&a).expect("write");
    // safetensors grows a new file to its size before it writes.
    for len in [2_500_000u64, 100, 5_000, 9 << 20, 0, 4_096, 70_000] {
        let file = File::options().write(true).open(&a).expect("open");
        let old = read(&b);
        file.set_len(len).expect("truncate");
        drop(file);
        let mut want = old;
        want.resize(len as usize, 0);
        assert!(read(&b) == want, "truncated to {len}");
        assert_eq!(stat(&b).len(), len);
    }
    File::options().write(true).truncate(true).open(&b).expect("open with O_TRUNC");
    assert_eq!(stat(&a).len(), 0);
    let (a, b) = two.both("grown");
    let file = File::create_new(&a).expect("create");
    file.set_len(2 << 20).expect("grow an empty file");
    file.write_all_at(b"tail", (2 << 20) - 4).expect("write its end");
    drop(file);
    let seen = read(&b);
    assert!(seen.len() == 2 << 20 && seen.ends_with(b"tail") && seen[..4_096].iter().all(|b| *b == 0));
}

fn big_file(two: &Two) {
    let (a, b) = two.both("model.safetensors");
    let pattern = Pattern::new(11, (150 << 20) + 1_234_567);
    pattern.write(&a).expect("write");
    pattern.check(&b).expect("read on the other node");
    pattern.check(&b).expect("read again");
    pattern.check(&a).expect("read on the writer's node");
    // Random access, also across the cuts between chunks.
    let file = File::open(&b).expect("open");
    for i in 0..300u64 {
        let at = if i % 3 == 0 { (i % 9) * (16 << 20) } else { i * 524_287 };
        let at = at.saturating_sub(700).min(pattern.len - 2_000);
        let (mut got, mut want) = (vec![0; 2_000], vec![0; 2_000]);
        file.read_exact_at(&mut got, at).expect("read somewhere");
        pattern.fill(at, &mut want);
        assert!(got == want, "bytes at {at}");
    }
}

/// O_APPEND after what others appended.
fn append(two: &Two) {
    let (a, b) = two.both("log");
    for i in 0..20 {
        let path = if i % 2 == 0 { &a } else { &b };
        let mut file = File::options().append(true).create(true).open(path).expect("open to append");
        writeln!(file, "line {i}").expect("append");
    }
    let want: String = (0..20).map(|i| format!("line {i}\n")).collect();
    assert_eq!(String::from_utf8_lossy(&read(&a)), want);
}

fn unlink_open(two: &Two) {
    for (opened_on, name) in [(&two.a, "here"), (&two.b, "there")] {
        let path = opened_on.join(name);
        let pattern = Pattern::new(3, 3_000_000);
        pattern.write(&two.a.join(name)).expect("write");
        let mut file = File::options().read(true).write(true).open(&path).expect("open");
        let map = Map::new(&file, 4_096, MapKind::Read).expect("map");
        fs::remove_file(two.a.join(name)).expect("unlink");
        assert_eq!(errno(fs::symlink_metadata(two.b.join(name))), libc::ENOENT);
        let mut seen = Vec::new();
        file.read_to_end(&mut seen).expect("read what has no name");
        assert!(seen == pattern.bytes(), "unlinked on this node, open {name}");
        assert_eq!(map[..16], pattern.bytes()[..16]);
        file.seek(SeekFrom::Start(0)).expect("seek");
        file.write_all(b"changed").expect("write what has no name");
        file.sync_all().expect("sync what has no name");
        assert_eq!(file.metadata().expect("stat what has no name").nlink(), 0);
        // The name is free again, and is another file.
        write(&path, b"another");
        assert_eq!(read(&two.b.join(name)), b"another");
    }
}

/// `cp -p` and `tar` set the times before they close what they wrote.
fn copy_keeps_times(two: &Two) {
    let (a, b) = two.both("original");
    Pattern::new(5, 2_000_000).write(&a).expect("write");
    sys::set_times(&a, Some((1_500_000_000, 5)), Some((1_500_000_001, 987_654_321))).expect("utimensat");
    let copy = Command::new("cp").arg("-p").arg(&b).arg(two.b.join("copy")).status().expect("run cp");
    assert!(copy.success());
    let seen = stat(&two.a.join("copy"));
    assert_eq!((seen.mtime(), seen.mtime_nsec()), (1_500_000_001, 987_654_321));
    Pattern::new(5, 2_000_000).check(&two.a.join("copy")).expect("the copy is right");
    // Times set through the open file, before its close.
    let (c, d) = two.both("set while open");
    let mut file = File::create_new(&c).expect("create");
    file.write_all(&Pattern::new(6, 300_000).bytes()).expect("write");
    let when = std::time::UNIX_EPOCH + Duration::new(1_400_000_000, 111);
    file.set_modified(when).expect("futimens");
    drop(file);
    assert_eq!(stat(&d).modified().expect("mtime"), when);
}

fn space(two: &Two) {
    for dir in [&two.a, &two.b] {
        let space = sys::space(dir).expect("statfs");
        assert!(space.total >= space.available && space.available > 0, "{space:?}");
        assert_eq!(space.name_max, 255);
    }
    let (a, b) = two.both("f");
    Pattern::new(1, 1_000_000).write(&a).expect("write");
    let blocks = stat(&b).blocks() * 512;
    assert!((1_000_000..1_100_000).contains(&blocks), "du sees what is allocated: {blocks}");
}

fn map_read(two: &Two) {
    let (a, b) = two.both("model.safetensors");
    let pattern = Pattern::new(21, 20_000_000);
    pattern.write(&a).expect("write");
    let want = pattern.bytes();
    for path in [&b, &a] {
        let file = File::open(path).expect("open");
        let map = Map::new(&file, want.len(), MapKind::Read).expect("map");
        // Threads that fault far apart at once, as many ranks do.
        thread::scope(|scope| {
            for part in 0..8 {
                let (map, want) = (&map[..], &want[..]);
                scope.spawn(move || {
                    for page in (part..want.len() / 4_096).step_by(8) {
                        let at = page * 4_096;
                        assert!(map[at..at + 8] == want[at..at + 8], "page {page}");
                    }
                });
            }
        });
        drop(file);
        assert!(map[..] == want[..], "a mapping outlives its descriptor");
    }
}

fn map_write(two: &Two) {
    let (a, b) = two.both("f");
    let pattern = Pattern::new(22, 1_000_000);
    pattern.write(&a).expect("write");
    let file = File::open(&b).expect("open");
    let mut private = Map::new(&file, 1_000_000, MapKind::PrivateWrite).expect("map privately");
    private[..4].copy_from_slice(b"mine");
    drop((private, file));
    pattern.check(&a).expect("a private change stays private");
    let file = File::options().read(true).write(true).open(&b).expect("open");
    let mut shared = Map::new(&file, 1_000_000, MapKind::SharedWrite).expect("map shared");
    shared[500_000..500_004].copy_from_slice(b"ours");
    shared.sync().expect("msync");
    drop(shared);
    file.sync_all().expect("fsync");
    drop(file);
    let mut want = pattern.bytes();
    want[500_000..500_004].copy_from_slice(b"ours");
    assert!(read(&a) == want, "a shared change reaches the other node");
}

/// What was synced is there for others while the writer still has it open.
fn fsync(two: &Two) {
    let (a, b) = two.both("f");
    let mut file = File::create_new(&a).expect("create");
    let mut want = Vec::new();
    for i in 0..12u64 {
        let piece = Pattern::new(i, 1 + i * i * 30_000).bytes();
        file.write_all(&piece).expect("write");
        if i % 2 == 0 { file.sync_all() } else { file.sync_data() }.expect("sync");
        want.extend_from_slice(&piece);
        assert!(read(&b) == want, "synced bytes are seen, step {i}");
    }
    File::open(&two.a).expect("open a directory").sync_all().expect("sync a directory");
}

/// Locks and downloads open the same few names thousands of times; nothing may pile up.
fn many_opens(two: &Two) {
    write(&two.a.join("f"), b"x");
    thread::scope(|scope| {
        for dir in [&two.a, &two.b, &two.a, &two.b] {
            scope.spawn(move || {
                for _ in 0..300 {
                    assert_eq!(read(&dir.join("f")), b"x");
                }
            });
        }
    });
}

/// `hf download --local-dir` of a cached file, and `cp` on today's systems.
fn sendfile(two: &Two) {
    let (a, b) = two.both("f");
    let pattern = Pattern::new(31, 9_000_001);
    pattern.write(&a).expect("write");
    let out = std::env::temp_dir().join(format!("hfcache-posix-{}", std::process::id()));
    fs::copy(&b, &out).expect("copy out of the mount");
    pattern.check(&out).expect("the copy is right");
    fs::copy(&out, two.b.join("back")).expect("copy into the mount");
    fs::remove_file(&out).expect("clear away");
    fs::copy(two.b.join("back"), two.b.join("within")).expect("copy within the mount");
    pattern.check(&two.a.join("within")).expect("that copy is right");
}

/// SQLite (trackio, tools) needs ranges of fcntl locks, and reads what others wrote.
fn sqlite(two: &Two) {
    let (a, b) = two.both("t.db");
    let insert = "import sqlite3,sys\nc=sqlite3.connect(sys.argv[1],timeout=60)\n\
                  c.execute('create table if not exists t(x)')\n\
                  for i in range(10):\n c.execute('insert into t values(?)',(i,))\n c.commit()\n\
                  print(c.execute('select count(*) from t').fetchone()[0])";
    for (i, path) in [&a, &b, &a].into_iter().enumerate() {
        let out = Command::new("python3").args(["-c", insert]).arg(path).output().expect("run python3");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        assert_eq!(String::from_utf8_lossy(&out.stdout).trim(), (10 * (i + 1)).to_string());
    }
}
