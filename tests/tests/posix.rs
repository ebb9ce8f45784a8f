//! The calls that Hugging Face clients make, each of them seen from a second node.

use hfcache_tests::pattern::Pattern;
use hfcache_tests::sys::{self, Map, MapKind};
use hfcache_tests::{Checks, Cluster, within};
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{
    DirBuilderExt, FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink,
};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// The same directory, fresh, seen through two nodes.
struct Two {
    a: PathBuf,
    b: PathBuf,
}

impl Two {
    fn both(&self, name: &str) -> (PathBuf, PathBuf) {
        (self.a.join(name), self.b.join(name))
    }
}

#[track_caller]
fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.expect_err("the call must fail").raw_os_error().expect("an error of the system")
}

#[track_caller]
fn write(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap_or_else(|why| panic!("write {}: {why}", path.display()));
}

#[track_caller]
fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|why| panic!("read {}: {why}", path.display()))
}

#[track_caller]
fn stat(path: &Path) -> fs::Metadata {
    fs::symlink_metadata(path).unwrap_or_else(|why| panic!("stat {}: {why}", path.display()))
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .expect("list a directory")
        .map(|e| e.expect("list a directory").file_name().into_string().expect("plain names"))
        .collect();
    names.sort();
    names
}

/// What must be the same on every node.
#[track_caller]
fn same_stat(a: &Path, b: &Path) {
    let (x, y) = (stat(a), stat(b));
    let of = |m: &fs::Metadata| {
        let times = [(m.mtime(), m.mtime_nsec()), (m.ctime(), m.ctime_nsec())];
        (m.ino(), m.mode(), m.nlink(), m.uid(), m.gid(), m.size(), times)
    };
    assert_eq!(of(&x), of(&y), "{} on two nodes", a.display());
}

#[test]
fn calls_of_hugging_face_clients() {
    let cluster = Cluster::start("posix", 3);
    let mut checks = Checks::default();
    let mut check = |name: &str, body: fn(&Two)| {
        let two = Two { a: cluster.path(0, name), b: cluster.path(1, name) };
        checks.run(name, || {
            fs::create_dir(&two.a).expect("make the check's directory");
            within(Duration::from_secs(150), name, move || body(&two));
        });
    };
    check("close_to_open", close_to_open);
    check("offsets", offsets);
    check("truncate", truncate);
    check("big_file", big_file);
    check("exclusive_create", exclusive_create);
    check("append", append);
    check("rename", rename);
    check("rename_directory", rename_directory);
    check("rename_flags", rename_flags);
    check("refs_replaced", refs_replaced);
    check("unlink_open", unlink_open);
    check("directories", directories);
    check("ten_thousand_names", ten_thousand_names);
    check("symlinks", symlinks);
    check("hard_links", hard_links);
    check("owner_and_mode", owner_and_mode);
    check("times", times);
    check("copy_keeps_times", copy_keeps_times);
    check("space", space);
    check("map_read", map_read);
    check("map_write", map_write);
    check("fsync", fsync);
    check("negative_lookups", negative_lookups);
    check("names_and_errors", names_and_errors);
    check("special_files", special_files);
    check("many_opens", many_opens);
    check("sendfile", sendfile);
    check("sqlite", sqlite);
    checks.finish();
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

/// O_EXCL has one winner over all nodes, for each of many names.
fn exclusive_create(two: &Two) {
    const NAMES: usize = 100;
    let wins: Vec<AtomicUsize> = (0..NAMES).map(|_| AtomicUsize::new(0)).collect();
    thread::scope(|scope| {
        for dir in [&two.a, &two.b, &two.a, &two.b] {
            let wins = &wins;
            scope.spawn(move || {
                for (i, won) in wins.iter().enumerate() {
                    match File::options()
                        .write(true)
                        .create_new(true)
                        .mode(0o664)
                        .open(dir.join(format!("lock{i}")))
                    {
                        Ok(_) => {
                            won.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(why) => assert_eq!(why.kind(), ErrorKind::AlreadyExists, "{why}"),
                    }
                }
            });
        }
    });
    assert!(wins.iter().all(|w| w.load(Ordering::Relaxed) == 1), "{wins:?}");
    // The same for mkdir and symlink.
    let made: usize =
        [&two.a, &two.b].map(|d| usize::from(fs::create_dir(d.join("dir")).is_ok())).iter().sum();
    let linked: usize =
        [&two.a, &two.b].map(|d| usize::from(symlink("t", d.join("link")).is_ok())).iter().sum();
    assert_eq!((made, linked), (1, 1));
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

fn rename(two: &Two) {
    let (blob_a, blob_b) = two.both("blob");
    let (part_a, _) = two.both("blob.12345678.incomplete");
    write(&blob_a, b"old");
    let held = File::open(&blob_b).expect("open the old file on the other node");
    write(&part_a, b"new and longer");
    fs::rename(&part_a, &blob_a).expect("rename over");
    assert_eq!(read(&blob_b), b"new and longer");
    assert_eq!(names(&two.b), ["blob"]);
    let mut old = String::new();
    (&held).read_to_string(&mut old).expect("the replaced file is still readable where it is open");
    assert_eq!(old, "old");
    // A symlink over a file, and a file over a symlink.
    symlink("../elsewhere", two.a.join("s")).expect("symlink");
    fs::rename(two.a.join("s"), &blob_a).expect("rename a link over a file");
    assert_eq!(fs::read_link(&blob_b).expect("readlink"), Path::new("../elsewhere"));
    write(&part_a, b"file again");
    fs::rename(&part_a, &blob_a).expect("rename a file over a link");
    assert_eq!(read(&blob_b), b"file again");
    assert_eq!(errno(fs::rename(two.b.join("nothing"), two.b.join("x"))), libc::ENOENT);
    fs::rename(&blob_a, &blob_a).expect("rename to itself");
    assert_eq!(read(&blob_b), b"file again");
}

/// `datasets` renames a whole directory while files in it are open.
fn rename_directory(two: &Two) {
    let (a, b) = two.both("ds.incomplete");
    fs::create_dir_all(a.join("deep/er")).expect("make directories");
    write(&a.join("deep/er/data.arrow"), b"rows");
    let mut open =
        File::options().append(true).open(b.join("deep/er/data.arrow")).expect("open on the other node");
    let (to_a, to_b) = two.both("ds");
    fs::create_dir(&to_a).expect("an empty target");
    fs::rename(&a, &to_a).expect("rename over an empty directory");
    open.write_all(b" and more").expect("write through the open file");
    drop(open);
    assert_eq!(read(&to_a.join("deep/er/data.arrow")), b"rows and more");
    assert!(!b.exists() && to_b.join("deep").is_dir());
    assert_eq!(errno(fs::rename(&to_a, to_a.join("deep/inside"))), libc::EINVAL);
    fs::create_dir_all(a.join("x")).expect("a full directory");
    assert_eq!(errno(fs::rename(&to_b, &b)), libc::ENOTEMPTY);
}

fn rename_flags(two: &Two) {
    let ((x_a, x_b), (y_a, y_b)) = (two.both("x"), two.both("y"));
    write(&x_a, b"x");
    write(&y_a, b"y");
    assert_eq!(errno(sys::rename_with(&x_a, &y_a, libc::RENAME_NOREPLACE)), libc::EEXIST);
    sys::rename_with(&x_b, &y_b, libc::RENAME_EXCHANGE).expect("exchange");
    assert_eq!((read(&x_a), read(&y_a)), (b"y".to_vec(), b"x".to_vec()));
    sys::rename_with(&x_a, &two.a.join("z"), libc::RENAME_NOREPLACE).expect("rename to a free name");
    assert_eq!(names(&two.b), ["y", "z"]);
}

/// `refs/main` is replaced by rename: readers everywhere see the old or the new one, at once, never none.
fn refs_replaced(two: &Two) {
    let (a, b) = two.both("main");
    write(&a, b"0");
    for i in 1..60u32 {
        let part = two.a.join(format!("main.{i:08x}.tmp"));
        write(&part, i.to_string().as_bytes());
        fs::rename(&part, &a).expect("replace");
        assert_eq!(read(&b), i.to_string().as_bytes(), "a replaced ref is never seen stale");
    }
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

fn directories(two: &Two) {
    let (a, b) = two.both("d");
    fs::DirBuilder::new().mode(0o750).create(&a).expect("mkdir");
    assert_eq!(stat(&b).mode() & 0o7777, 0o750);
    assert_eq!(errno(fs::create_dir(&b)), libc::EEXIST);
    write(&b.join("f"), b"");
    assert_eq!(errno(fs::remove_dir(&a)), libc::ENOTEMPTY);
    assert_eq!(errno(fs::remove_dir(a.join("f"))), libc::ENOTDIR);
    assert_eq!(errno(fs::remove_file(&a)), libc::EISDIR);
    fs::remove_file(a.join("f")).expect("unlink");
    fs::remove_dir(&b).expect("rmdir");
    assert_eq!(errno(fs::symlink_metadata(&a)), libc::ENOENT);
    let nlink = stat(&two.a).nlink();
    fs::create_dir(&a).expect("mkdir again");
    assert_eq!(stat(&two.b).nlink(), nlink + 1);
    let deep = (0..30).fold(PathBuf::from("deep"), |p, i| p.join(format!("level{i}")));
    fs::create_dir_all(two.a.join(&deep)).expect("make a deep path");
    assert!(two.b.join(&deep).is_dir());
    fs::remove_dir_all(two.b.join("deep")).expect("remove a deep tree");
    assert!(!two.a.join("deep").exists());
}

fn ten_thousand_names(two: &Two) {
    const COUNT: usize = 10_000;
    thread::scope(|scope| {
        for part in 0..8 {
            let dir = if part % 2 == 0 { &two.a } else { &two.b };
            scope.spawn(move || {
                for i in (part..COUNT).step_by(8) {
                    File::create_new(dir.join(format!("file-{i:05}"))).expect("create");
                }
            });
        }
    });
    let want: Vec<String> = (0..COUNT).map(|i| format!("file-{i:05}")).collect();
    assert!(names(&two.a) == want && names(&two.b) == want, "each name once");
    // A listing that others change on the way shows every name that stays, once.
    let mut listing = fs::read_dir(&two.b).expect("list");
    let mut seen: Vec<String> = Vec::new();
    for i in 0..COUNT {
        if i % 100 == 0 {
            fs::remove_file(two.a.join(format!("file-{i:05}"))).expect("unlink while it is listed");
        }
        match listing.next() {
            Some(entry) => seen.push(entry.expect("list").file_name().into_string().expect("plain names")),
            None => break,
        }
    }
    seen.extend(listing.map(|e| e.expect("list").file_name().into_string().expect("plain names")));
    seen.sort();
    let total = seen.len();
    seen.dedup();
    assert_eq!(total, seen.len(), "no name twice");
    let stay = want.iter().enumerate().filter(|(i, _)| i % 100 != 0).map(|(_, n)| n);
    assert!(stay.clone().all(|n| seen.binary_search(n).is_ok()), "no name missing");
    assert_eq!(names(&two.b).len(), stay.count());
}

fn symlinks(two: &Two) {
    let long = "x/".repeat(2_000);
    for (i, target) in
        ["../../blobs/abcdef", "./..//odd/", "/absolute/path", "does not exist", "ünï\u{7f}", &long]
            .iter()
            .enumerate()
    {
        let (a, b) = two.both(&format!("link{i}"));
        symlink(target, &a).expect("symlink");
        assert_eq!(fs::read_link(&b).expect("readlink").to_str(), Some(*target), "kept byte for byte");
        assert_eq!(stat(&b).len(), target.len() as u64);
        assert_eq!(errno(symlink("other", &b)), libc::EEXIST);
        same_stat(&a, &b);
    }
    // The layout of the cache: a link in a snapshot to a blob beside it.
    fs::create_dir_all(two.a.join("m/blobs")).expect("mkdir");
    fs::create_dir_all(two.a.join("m/snapshots/c0ffee")).expect("mkdir");
    write(&two.a.join("m/blobs/e1"), b"weights");
    symlink("../../blobs/e1", two.a.join("m/snapshots/c0ffee/model.bin")).expect("symlink");
    assert_eq!(read(&two.b.join("m/snapshots/c0ffee/model.bin")), b"weights");
    let open = File::options()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(two.b.join("m/snapshots/c0ffee/model.bin"));
    assert_eq!(errno(open), libc::ELOOP);
    symlink("loop", two.a.join("loop")).expect("symlink");
    assert_eq!(errno(fs::metadata(two.b.join("loop"))), libc::ELOOP);
    let kinds: Vec<bool> = fs::read_dir(&two.b)
        .expect("list")
        .map(|e| e.expect("list"))
        .filter(|e| e.file_name().to_string_lossy().starts_with("link"))
        .map(|e| e.file_type().expect("kind").is_symlink())
        .collect();
    assert!(kinds.len() == 6 && kinds.iter().all(|k| *k), "a listing says what is a link");
}

fn hard_links(two: &Two) {
    let ((a, _), (link_a, link_b)) = (two.both("f"), two.both("g"));
    write(&a, b"one file");
    fs::hard_link(&a, &link_a).expect("link");
    assert_eq!((stat(&link_b).nlink(), stat(&link_b).ino()), (2, stat(&a).ino()));
    fs::remove_file(&a).expect("unlink");
    assert_eq!(read(&link_b), b"one file");
    assert_eq!(stat(&link_b).nlink(), 1);
}

fn owner_and_mode(two: &Two) {
    let (a, b) = two.both("f");
    write(&a, b"x");
    for mode in [0o600, 0o444, 0o4755, 0o2711, 0o644] {
        fs::set_permissions(&a, fs::Permissions::from_mode(mode)).expect("chmod");
        assert_eq!(stat(&b).mode() & 0o7777, mode);
        same_stat(&a, &b);
    }
    let made =
        File::options().write(true).create_new(true).mode(0o666).open(two.a.join("umask")).expect("create");
    drop(made);
    assert_eq!(stat(&two.b.join("umask")).mode() & 0o7777 & !0o666, 0, "no bits the caller did not ask for");
    if !sys::is_root() {
        return;
    }
    std::os::unix::fs::chown(&a, Some(1_234), Some(5_678)).expect("chown");
    assert_eq!((stat(&b).uid(), stat(&b).gid()), (1_234, 5_678));
    std::os::unix::fs::lchown(&b, None, Some(99)).expect("chgrp");
    assert_eq!((stat(&a).uid(), stat(&a).gid()), (1_234, 99));
    // A directory with the setgid bit hands its group to what is made in it.
    let (dir_a, dir_b) = two.both("shared");
    fs::create_dir(&dir_a).expect("mkdir");
    std::os::unix::fs::chown(&dir_a, None, Some(4_321)).expect("chgrp");
    fs::set_permissions(&dir_a, fs::Permissions::from_mode(0o2775)).expect("chmod g+s");
    write(&dir_b.join("f"), b"");
    fs::create_dir(dir_b.join("d")).expect("mkdir");
    assert_eq!(stat(&dir_a.join("f")).gid(), 4_321);
    assert_eq!((stat(&dir_a.join("d")).gid(), stat(&dir_a.join("d")).mode() & 0o2000), (4_321, 0o2000));
    // Another user may not write what is not theirs.
    let denied = Command::new("setpriv")
        .args(["--reuid=1234", "--regid=1234", "--clear-groups", "touch"])
        .arg(two.b.join("umask"))
        .output()
        .expect("run setpriv");
    assert!(!denied.status.success(), "permissions hold for other users");
}

/// Times are the same to the nanosecond on every node, and stay when nothing changed.
fn times(two: &Two) {
    let (a, b) = two.both("f");
    write(&a, b"x");
    same_stat(&a, &b);
    for (sec, nsec) in [(1_700_000_000, 123_456_789), (0, 1), (-86_400, 999_999_999), (4_102_444_800, 0)] {
        sys::set_times(&a, Some((sec + 5, nsec)), Some((sec, nsec))).expect("utimensat");
        let seen = stat(&b);
        assert_eq!(
            (seen.mtime(), seen.mtime_nsec(), seen.atime(), seen.atime_nsec()),
            (sec, nsec, sec + 5, nsec)
        );
        same_stat(&a, &b);
    }
    let (link_a, link_b) = two.both("link");
    symlink("f", &link_a).expect("symlink");
    sys::set_times(&link_a, Some((77, 7)), Some((78, 8))).expect("utimensat of a link");
    assert_eq!((stat(&link_b).mtime(), stat(&link_b).mtime_nsec()), (78, 8));
    // Reading, opening and closing leave mtime alone; so does a close long after the last write.
    let file = File::options().read(true).write(true).open(&b).expect("open");
    file.write_all_at(b"yy", 0).expect("write");
    file.sync_all().expect("sync");
    let written = stat(&a);
    sys::set_times(&b, None, Some((1_600_000_000, 42))).expect("utimensat while open");
    drop(file);
    drop(File::open(&a).expect("open"));
    assert_eq!((stat(&a).mtime(), stat(&a).mtime_nsec()), (1_600_000_000, 42), "close does not touch mtime");
    assert!(stat(&a).ctime() >= written.ctime());
    same_stat(&a, &b);
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

/// A name that was not there is seen as soon as it is.
fn negative_lookups(two: &Two) {
    for i in 0..50 {
        let (a, b) = two.both(&format!("n{i}"));
        for _ in 0..3 {
            assert_eq!(errno(fs::symlink_metadata(&b)), libc::ENOENT);
        }
        write(&a, b"");
        assert!(b.exists(), "a new name is seen at once");
        fs::remove_file(&a).expect("unlink");
        assert!(!b.exists(), "and so is its end");
    }
}

fn names_and_errors(two: &Two) {
    let long = "n".repeat(255);
    write(&two.a.join(&long), b"long");
    assert_eq!(read(&two.b.join(&long)), b"long");
    assert_eq!(errno(File::create(two.a.join("n".repeat(256)))), libc::ENAMETOOLONG);
    for odd in [" ", "a\nb", "ünïcödé", "*?[", "-rf", "...", "\u{1f917}"] {
        write(&two.a.join(odd), odd.as_bytes());
        assert_eq!(read(&two.b.join(odd)), odd.as_bytes());
    }
    write(&two.a.join("f"), b"");
    assert_eq!(errno(fs::metadata(two.b.join("f/x"))), libc::ENOTDIR);
    assert_eq!(errno(File::options().write(true).open(&two.b)), libc::EISDIR);
    assert_eq!(errno(fs::read_dir(two.b.join("f"))), libc::ENOTDIR);
    assert_eq!(errno(fs::read_link(two.b.join("f"))), libc::EINVAL);
    assert_eq!(errno(File::open(two.b.join("none"))), libc::ENOENT);
    // Nobody fails because of attributes that are not kept.
    let list = Command::new("ls").arg("-lZa").arg(&two.b).output().expect("run ls");
    assert!(list.status.success(), "{}", String::from_utf8_lossy(&list.stderr));
}

fn special_files(two: &Two) {
    let (a, b) = two.both("pipe");
    let made = Command::new("mkfifo").arg(&a).status().expect("run mkfifo");
    assert!(made.success() && stat(&b).file_type().is_fifo());
    fs::remove_file(&b).expect("unlink");
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
