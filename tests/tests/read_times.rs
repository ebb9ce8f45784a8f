//! When files were read, by the rules of `relatime`, as two nodes tell it.

use hfcache_tests::listing::Listing;
use hfcache_tests::two::{self, Check, Two, atime, read, stat, write};
use hfcache_tests::{eventually, sys};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, symlink};
use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime};

const CHECKS: &[Check] = &[
    ("once_after_a_change", once_after_a_change),
    ("once_a_day", once_a_day),
    ("directories_and_links", directories_and_links),
    ("not_for_who_does_not_want_it", not_for_who_does_not_want_it),
    ("what_is_set_stays", what_is_set_stays),
];

/// What was read is known to the other nodes by then.
const TOLD: Duration = Duration::from_secs(20);
const DAY: Duration = Duration::from_secs(24 * 3_600);

#[test]
fn reads_are_kept_as_relatime_says() {
    two::on_cluster("read_times", CHECKS);
}

fn others(path: &Path) -> [(i64, i64); 2] {
    let found = stat(path);
    [(found.mtime(), found.mtime_nsec()), (found.ctime(), found.ctime_nsec())]
}

/// Waits until both nodes tell the same; answers what.
#[track_caller]
fn told(a: &Path, b: &Path) -> (i64, i64) {
    let here = atime(a);
    eventually("both nodes tell when it was read", TOLD, || atime(b) == here);
    assert_eq!(atime(a), here);
    here
}

fn once_after_a_change(two: &Two) {
    let (a, b) = two.both("f");
    for round in 0..3u8 {
        write(&a, &vec![round; 100_000]);
        let (before, changed) = (atime(&b), others(&b));
        assert!(before <= changed[1], "round {round}");
        assert_eq!(read(&b), vec![round; 100_000]);
        let first = atime(&b);
        assert!(
            first > changed[0] && first > changed[1],
            "round {round}: the reader's node tells it at once"
        );
        assert_eq!(told(&b, &a), first);
        // Again, on each node, past the page cache or not: too soon to count.
        read(&a);
        read(&b);
        assert_eq!((atime(&a), atime(&b)), (first, first), "round {round}");
        assert_eq!(
            (others(&a), others(&b)),
            (changed, changed),
            "round {round}: reading changes nothing else"
        );
    }
}

fn once_a_day(two: &Two) {
    let (a, b) = two.both("f");
    write(&a, b"bytes");
    read(&a);
    let old = SystemTime::now() - 2 * DAY;
    File::options()
        .write(true)
        .open(&a)
        .expect("open")
        .set_times(fs::FileTimes::new().set_accessed(old))
        .expect("set");
    let set = atime(&b);
    read(&b);
    assert!(atime(&b) > set);
    told(&b, &a);
}

fn directories_and_links(two: &Two) {
    let (a, b) = two.both("d");
    fs::create_dir(&a).expect("mkdir");
    write(&a.join("f"), b"");
    symlink("f", a.join("link")).expect("symlink");
    let (dir, link) = (atime(&b), atime(&b.join("link")));
    assert_eq!(two::names(&b), ["f", "link"]);
    assert_eq!(fs::read_link(b.join("link")).expect("readlink"), Path::new("f"));
    assert!(atime(&b) > dir && atime(&b.join("link")) > link);
    told(&b, &a);
    told(&b.join("link"), &a.join("link"));
}

fn not_for_who_does_not_want_it(two: &Two) {
    let (a, b) = two.both("f");
    write(&a, b"bytes");
    let before = atime(&b);
    let file =
        OpenOptions::new().read(true).custom_flags(libc::O_NOATIME | libc::O_DIRECT).open(&b).expect("open");
    assert_eq!(std::io::read_to_string(&file).expect("read"), "bytes");
    // Opening and looking are no reads.
    drop(File::open(&b).expect("open"));
    stat(&b);
    assert_eq!(atime(&b), before);
    let never_listed = atime(&two.b);
    let dir = OpenOptions::new().read(true).custom_flags(libc::O_NOATIME).open(&two.b).expect("open");
    assert_eq!(Listing::of_open(dir).filter(|row| row.name == "f").count(), 1);
    assert_eq!(atime(&two.b), never_listed);
    // Those bytes went past the page cache, so that the next reader is heard.
    read(&b);
    assert!(atime(&b) > before);
    told(&b, &a);
}

/// A time that is set just after a read is not overwritten when the read is written down.
fn what_is_set_stays(two: &Two) {
    let (a, b) = two.both("f");
    write(&a, b"bytes");
    read(&b);
    sys::set_times(&a, Some((1_000_000_000, 123_456_789)), Some((1_000_000_001, 7))).expect("set times");
    let set = (1_000_000_000, 123_456_789);
    assert_eq!((atime(&a), atime(&b)), (set, set));
    // Longer than notes are kept.
    thread::sleep(Duration::from_secs(5));
    assert_eq!((atime(&a), atime(&b)), (set, set));
}
