//! Names and attributes: the calls that Hugging Face clients make, each of them seen from a second node.

use hfcache_tests::conformance::setting;
use hfcache_tests::sys;
use hfcache_tests::two::{self, Check, Two, errno, names, read, same_stat, stat, write};
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{
    DirBuilderExt, FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink,
};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const CHECKS: &[Check] = &[
    ("exclusive_create", exclusive_create),
    ("rename", rename),
    ("rename_directory", rename_directory),
    ("rename_flags", rename_flags),
    ("refs_replaced", refs_replaced),
    ("never_stale", never_stale),
    ("directories", directories),
    ("ten_thousand_names", ten_thousand_names),
    ("symlinks", symlinks),
    ("hard_links", hard_links),
    ("owner_and_mode", owner_and_mode),
    ("times", times),
    ("negative_lookups", negative_lookups),
    ("names_and_errors", names_and_errors),
    ("special_files", special_files),
];

#[test]
fn names_are_the_same_on_every_node() {
    two::on_cluster("names", CHECKS);
}

#[test]
fn the_checks_hold_on_the_local_file_system() {
    two::on_local("names", CHECKS);
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

/// One writes and two read in a loop for `HFCACHE_STALE_SECONDS`: nobody sees less than what had returned before
/// he looked, in a file, in a link, and in names that come and go.
fn never_stale(two: &Two) {
    let end = Instant::now() + Duration::from_secs(setting("HFCACHE_STALE_SECONDS", 3));
    let (a, b) = two.both("main");
    let written = AtomicU64::new(0);
    let looks = AtomicU64::new(0);
    write(&a, b"0");
    symlink("0", two.a.join("link")).expect("symlink");
    thread::scope(|scope| {
        let (written, looks, a) = (&written, &looks, &a);
        scope.spawn(move || {
            for i in 1.. {
                let (part, link) = (two.a.join("part"), two.a.join("link.part"));
                write(&part, i.to_string().as_bytes());
                symlink(i.to_string(), &link).expect("symlink");
                File::create_new(two.a.join(format!("name{i}"))).expect("create");
                if i > 1 {
                    fs::remove_file(two.a.join(format!("name{}", i - 1))).expect("unlink");
                }
                fs::rename(&link, two.a.join("link")).expect("replace");
                fs::rename(&part, a).expect("replace");
                written.store(i, Ordering::SeqCst);
                if Instant::now() > end {
                    break;
                }
            }
        });
        for (dir, path) in [(&two.b, &b), (&two.a, a)] {
            scope.spawn(move || {
                while Instant::now() < end {
                    let before = written.load(Ordering::SeqCst);
                    let number = |text: &str| text.parse::<u64>().expect("a number");
                    let seen = number(&String::from_utf8(read(path)).expect("text"));
                    assert!(seen >= before, "a file shows {seen} after {before} was written");
                    let link = fs::read_link(dir.join("link")).expect("readlink");
                    let seen = number(link.to_str().expect("text"));
                    assert!(seen >= before, "a link shows {seen} after {before} was written");
                    let gone = before.saturating_sub(1);
                    assert!(
                        !dir.join(format!("name{gone}")).exists(),
                        "a name shows that was removed before {before}"
                    );
                    looks.fetch_add(3, Ordering::Relaxed);
                }
            });
        }
    });
    let (written, looks) = (written.into_inner(), looks.into_inner());
    println!("  {looks} looks while {written} were written");
    assert!(written > 10 && looks > 100, "too little was done");
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
