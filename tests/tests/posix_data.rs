//! Bytes, deeper: appending from several nodes, holes, clones, nameless files, direct I/O, times of reads.

use hfcache_tests::pattern::Pattern;
use hfcache_tests::sys::{self, Map, MapKind};
use hfcache_tests::two::{self, Check, Two, errno, names, read, stat, write};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

const CHECKS: &[Check] = &[
    ("append_from_two_nodes", append_from_two_nodes),
    ("append_is_read_back", append_is_read_back),
    ("append_after_truncate", append_after_truncate),
    ("append_beside_other_writes", append_beside_other_writes),
    ("append_by_fcntl", append_by_fcntl),
    ("append_alone_is_quick", append_alone_is_quick),
    ("holes_are_found", holes_are_found),
    ("room_and_holes", room_and_holes),
    ("clones", clones),
    ("clone_edges", clone_edges),
    ("nameless", nameless),
    ("small_files_of_two_writers", small_files_of_two_writers),
    ("direct", direct),
    ("truncate_under_a_reader", truncate_under_a_reader),
];

#[test]
fn data_is_posix_on_every_node() {
    two::on_cluster("posix_data", CHECKS);
}

#[test]
fn the_checks_hold_on_the_local_file_system() {
    two::on_local("posix_data", CHECKS);
}

fn appender(path: &Path) -> File {
    File::options().read(true).append(true).create(true).open(path).expect("open to append")
}

/// A record that shows where it ends and whether it is whole.
fn record(writer: usize, number: u64, len: usize) -> Vec<u8> {
    let mut bytes = format!("<{writer} {number} {len} ").into_bytes();
    bytes.extend((0..len).map(|i| b'a' + ((i + number as usize + writer) % 26) as u8));
    bytes.push(b'>');
    bytes
}

/// The records of a log by writer, each checked.
fn records(log: &[u8]) -> BTreeMap<usize, Vec<u64>> {
    let mut found: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
    let mut at = 0;
    while at < log.len() {
        let head: Vec<&[u8]> = log[at..log.len().min(at + 60)].splitn(4, |b| *b == b' ').collect();
        let text = |i: usize| {
            head.get(i).and_then(|h| std::str::from_utf8(h).ok()).unwrap_or_else(|| panic!("torn at {at}"))
        };
        assert!(text(0).starts_with('<'), "torn at {at}: {:?}", String::from_utf8_lossy(&log[at..][..40]));
        let writer: usize = text(0)[1..].parse().expect("a writer");
        let number: u64 = text(1).parse().expect("a number");
        let len: usize = text(2).parse().expect("a length");
        let want = record(writer, number, len);
        assert!(log[at..].starts_with(&want), "record {writer} {number} at {at} is torn");
        found.entry(writer).or_default().push(number);
        at += want.len();
    }
    found
}

/// Processes on two nodes append without a lock: nothing is lost, torn, doubled or out of its writer's order.
fn append_from_two_nodes(two: &Two) {
    const EACH: u64 = 150;
    let (a, b) = two.both("log");
    thread::scope(|scope| {
        for (writer, path) in [&a, &b, &a, &b].into_iter().enumerate() {
            scope.spawn(move || {
                let mut file = appender(path);
                for number in 0..EACH {
                    let len = match number % 10 {
                        0 => 40_000,
                        5 => 0,
                        n => 37 * n as usize,
                    };
                    let bytes = record(writer, number, len);
                    assert_eq!(file.write(&bytes).expect("append"), bytes.len(), "in one piece");
                    match number % 25 {
                        7 => file.sync_data().expect("sync"),
                        20 => file = appender(path),
                        _ => {}
                    }
                }
            });
        }
    });
    let want: Vec<u64> = (0..EACH).collect();
    for path in [&a, &b] {
        let found = records(&read(path));
        assert_eq!(found.len(), 4);
        for (writer, numbers) in found {
            assert_eq!(numbers, want, "of writer {writer}");
        }
    }
}

/// What was appended is seen through the same descriptor and on the same node at once, wherever it went.
fn append_is_read_back(two: &Two) {
    let (a, b) = two.both("log");
    let (mut here, mut there) = (appender(&a), appender(&b));
    let mut want = Vec::new();
    for i in 0..12u64 {
        let text = record(1, i, 10 + 800 * i as usize);
        here.write_all(&text).expect("append");
        want.extend_from_slice(&text);
        assert_eq!(stat(&a).len(), want.len() as u64, "size on the writer's node, step {i}");
        let mut seen = Vec::new();
        here.seek(SeekFrom::Start(0)).expect("seek");
        here.read_to_end(&mut seen).expect("read back");
        assert!(seen == want, "through the same descriptor, step {i}");
        assert!(read(&a) == want, "through another, step {i}");
        here.sync_all().expect("sync");
        assert!(read(&b) == want, "on the other node, step {i}");
        // The other node puts something in between.
        let text = record(2, i, 100);
        there.write_all(&text).expect("append there");
        there.sync_all().expect("sync there");
        want.extend_from_slice(&text);
        assert!(read(&a) == want, "after the other node's, step {i}");
    }
    assert_eq!(records(&want).len(), 2);
}

/// Log rotation by copying and truncating: who appends goes on at the new end.
fn append_after_truncate(two: &Two) {
    let (a, b) = two.both("log");
    let mut file = appender(&a);
    for round in 0..4u8 {
        file.write_all(&vec![b'x'; 3_000 * usize::from(round + 1)]).expect("append");
        file.sync_all().expect("sync");
        File::options().write(true).open(&b).expect("open").set_len(0).expect("truncate there");
        file.write_all(b"fresh").expect("append");
        file.sync_all().expect("sync");
        assert_eq!(read(&b), b"fresh");
        // And here, with bytes that are not saved yet.
        file.write_all(b" more").expect("append");
        assert_eq!(read(&a), b"fresh more");
        file.set_len(7).expect("truncate here");
        file.write_all(b"!").expect("append");
        file.sync_all().expect("sync");
        assert_eq!(read(&b), b"fresh m!");
        file.write_all(b"gone").expect("append");
        file.set_len(0).expect("truncate here");
        file.set_len(3).expect("grow");
        file.write_all(b"end").expect("append");
        assert_eq!(read(&a), b"\0\0\0end");
    }
}

/// Appending and writing in places take turns in one file.
fn append_beside_other_writes(two: &Two) {
    let (a, b) = two.both("f");
    let mut log = appender(&a);
    let other = File::options().write(true).open(&a).expect("open");
    let mut want = Vec::new();
    for i in 0..30usize {
        let text = record(0, i as u64, i * 50);
        log.write_all(&text).expect("append");
        want.extend_from_slice(&text);
        let at = want.len() / 2;
        other.write_all_at(b"##", at as u64).expect("write in the middle");
        want[at..at + 2].copy_from_slice(b"##");
        if i % 7 == 3 {
            assert!(read(&a) == want, "on this node, step {i}");
        }
    }
    sys::fallocate(&other, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 3, 5).expect("punch");
    want[3..8].fill(0);
    drop((log, other));
    assert!(read(&b) == want, "on the other node");
}

/// O_APPEND may come and go while a file is open.
fn append_by_fcntl(two: &Two) {
    let (a, b) = two.both("f");
    write(&a, b"0123456789");
    let mut file = File::options().read(true).write(true).open(&a).expect("open");
    file.write_all(b"AB").expect("write at the start");
    sys::set_flags(&file, libc::O_APPEND).expect("set O_APPEND");
    file.write_all(b"CD").expect("append");
    sys::set_flags(&file, 0).expect("clear O_APPEND");
    file.seek(SeekFrom::Start(4)).expect("seek");
    file.write_all(b"EF").expect("write in the middle");
    drop(file);
    assert_eq!(read(&b), b"AB23EF6789CD");
}

/// A log with one writer costs no round trip a line.
fn append_alone_is_quick(two: &Two) {
    const LINES: u32 = 20_000;
    let (a, b) = two.both("log");
    let mut file = appender(&a);
    let start = Instant::now();
    for i in 0..LINES {
        writeln!(file, "2026-01-01 00:00:00 step {i:08} loss 0.123456 lr 0.000100 tokens 123456789")
            .expect("append");
    }
    let took = start.elapsed();
    println!("appended {LINES} lines in {took:?}: {:.0} lines/s", f64::from(LINES) / took.as_secs_f64());
    assert!(took < Duration::from_secs(60), "{took:?} for {LINES} lines");
    drop(file);
    assert_eq!(read(&b).iter().filter(|b| **b == b'\n').count(), LINES as usize);
}

/// SEEK_DATA and SEEK_HOLE, of bytes that are saved and of bytes that are not, here and there.
fn holes_are_found(two: &Two) {
    let (a, b) = two.both("sparse");
    let file = File::create_new(&a).expect("create");
    file.set_len(64 << 20).expect("grow");
    let (one, two_) = (4 << 20, 40 << 20);
    for at in [one, two_] {
        file.write_all_at(&[7; 1 << 20], at as u64).expect("write");
    }
    let end = 64 << 20;
    let look = |file: &File, what: &str| {
        for (from, data, want) in [
            (0, true, one),
            (0, false, 0),
            (one, true, one),
            (one + 5, false, one + (1 << 20)),
            (one + (1 << 20), true, two_),
            (two_, false, two_ + (1 << 20)),
            (two_ + (1 << 20), false, two_ + (1 << 20)),
        ] {
            assert_eq!(sys::seek(file, from, data).ok(), Some(want), "{what}: {from} {data}");
        }
        assert_eq!(errno(sys::seek(file, two_ + (1 << 20), true)), libc::ENXIO, "{what}");
        assert_eq!(errno(sys::seek(file, end, false)), libc::ENXIO, "{what}");
        assert_eq!(errno(sys::seek(file, end + 1, true)), libc::ENXIO, "{what}");
    };
    look(&file, "not saved");
    file.sync_all().expect("sync");
    look(&file, "saved");
    look(&File::open(&b).expect("open there"), "on the other node");
    sys::fallocate(&file, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, one, 1 << 20)
        .expect("punch");
    assert_eq!(sys::seek(&file, 0, true).expect("seek"), two_, "punched, not saved");
    file.sync_all().expect("sync");
    assert_eq!(sys::seek(&File::open(&b).expect("open"), 0, true).expect("seek"), two_, "punched, saved");
    // A file without holes has one at its end; an empty one has nothing.
    write(&a.with_extension("small"), b"abc");
    let small = File::open(b.with_extension("small")).expect("open");
    assert_eq!((sys::seek(&small, 1, true).ok(), sys::seek(&small, 1, false).ok()), (Some(1), Some(3)));
    let empty = File::create_new(a.with_extension("empty")).expect("create");
    assert_eq!(errno(sys::seek(&empty, 0, true)), libc::ENXIO);
    assert_eq!(errno(sys::seek(&empty, 0, false)), libc::ENXIO);
    // GNU cp keeps holes by it.
    let copy = a.with_extension("copy");
    let done = std::process::Command::new("cp").arg("--sparse=auto").arg(&b).arg(&copy).status();
    assert!(done.expect("run cp").success());
    assert!(stat(&copy).blocks() * 512 <= 2 << 20, "{} blocks", stat(&copy).blocks());
}

fn room_and_holes(two: &Two) {
    let (a, b) = two.both("f");
    let pattern = Pattern::new(3, 3_000_000);
    pattern.write(&a).expect("write");
    let file = File::options().read(true).write(true).open(&b).expect("open");
    let mut want = pattern.bytes();
    // Allocating changes no byte; with KEEP_SIZE not even the size.
    sys::fallocate(&file, libc::FALLOC_FL_KEEP_SIZE, 2_000_000, 9_000_000).expect("allocate, keep size");
    assert_eq!(stat(&a).len(), 3_000_000);
    sys::fallocate(&file, 0, 0, 3_500_000).expect("allocate");
    want.resize(3_500_000, 0);
    assert!(read(&a) == want);
    for (mode, from, len) in [
        (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 100, 1_000_000),
        (libc::FALLOC_FL_ZERO_RANGE, 2_000_001, 77),
        (libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE, 3_400_000, 999_999),
        (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 9_000_000, 10),
    ] {
        sys::fallocate(&file, mode, from, len).expect("zero");
        let (from, end) = ((from as usize).min(want.len()), ((from + len) as usize).min(want.len()));
        want[from..end].fill(0);
        let mut seen = Vec::new();
        (&file).seek(SeekFrom::Start(0)).expect("seek");
        (&file).read_to_end(&mut seen).expect("read");
        assert!(seen == want, "through the descriptor, mode {mode}");
        file.sync_all().expect("sync");
        assert!(read(&a) == want, "on the other node, mode {mode}");
    }
    sys::fallocate(&file, libc::FALLOC_FL_ZERO_RANGE, 3_499_990, 110).expect("zero past the end");
    drop(file);
    want[3_499_990..].fill(0);
    want.resize(3_500_100, 0);
    assert!(read(&a) == want);
    let file = File::options().write(true).open(&a).expect("open");
    assert_eq!(errno(sys::fallocate(&file, 0, 0, 0)), libc::EINVAL);
    assert_eq!(errno(sys::fallocate(&file, 0, -1, 5)), libc::EINVAL);
    assert_eq!(errno(sys::fallocate(&file, 0, i64::MAX - 1, 5)), libc::EFBIG);
    assert_eq!(errno(sys::fallocate(&file, libc::FALLOC_FL_PUNCH_HOLE, 0, 5)), libc::EOPNOTSUPP);
    assert_eq!(errno(file.write_all_at(b"x", i64::MAX as u64 - 1)), libc::EFBIG);
    let reader = File::open(&a).expect("open");
    assert_eq!(errno(sys::fallocate(&reader, 0, 0, 5)), libc::EBADF);
}

fn copy_all(from: &File, at: i64, to: &File, to_at: i64, len: usize) -> usize {
    let mut done = 0;
    while done < len {
        match sys::copy_range(from, at + done as i64, to, to_at + done as i64, len - done).expect("copy") {
            0 => break,
            n => done += n,
        }
    }
    done
}

/// copy_file_range: of saved bytes and of others, aligned or not, over bytes that are there.
fn clones(two: &Two) {
    let (a, b) = two.both("source");
    let pattern = Pattern::new(9, 20_000_000);
    pattern.write(&a).expect("write");
    let source = File::options().read(true).write(true).open(&b).expect("open");
    let mut want = pattern.bytes();
    // Not saved when it is cloned.
    source.write_all_at(b"changed", 1_000_000).expect("write");
    want[1_000_000..1_000_007].copy_from_slice(b"changed");
    let target =
        File::options().read(true).write(true).create_new(true).open(two.b.join("whole")).expect("create");
    target.write_all_at(&[1; 5_000], 19_999_000).expect("write");
    assert_eq!(copy_all(&source, 0, &target, 0, want.len() + 1_000), want.len());
    let mut whole = want.clone();
    whole.resize(20_004_000, 1);
    let mut seen = Vec::new();
    (&target).read_to_end(&mut seen).expect("read");
    assert!(seen == whole, "through the descriptor");
    assert!(read(&two.a.join("whole")) == whole, "on the other node");
    // Unaligned, into the middle; and within one file.
    let target = File::options().read(true).write(true).open(two.a.join("whole")).expect("open");
    let source = File::open(&a).expect("open");
    assert_eq!(copy_all(&source, 123, &target, 3_000_001, 2_000_003), 2_000_003);
    whole[3_000_001..5_000_004].copy_from_slice(&want[123..2_000_126]);
    assert_eq!(copy_all(&target, 7, &target, 10_000_000, 1_000_000), 1_000_000);
    whole.copy_within(7..1_000_007, 10_000_000);
    assert!(read(&two.b.join("whole")) == whole, "parts");
    // The source goes, its bytes stay where they were cloned to.
    drop((source, target));
    fs::remove_file(&a).expect("unlink");
    assert!(read(&two.b.join("whole")) == whole, "after the source is gone");
}

fn clone_edges(two: &Two) {
    let (a, b) = two.both("small");
    write(&a, b"0123456789");
    let source = File::open(&b).expect("open");
    let target =
        File::options().read(true).write(true).create_new(true).open(two.b.join("t")).expect("create");
    // Small files lie in their inodes; far away they can't.
    assert_eq!(copy_all(&source, 2, &target, 3, 5), 5);
    assert_eq!(read(&two.a.join("t")), b"\0\0\x0023456");
    assert_eq!(copy_all(&source, 0, &target, 1_000_000, 99), 10);
    target.sync_all().expect("sync what was copied byte for byte");
    let seen = read(&two.a.join("t"));
    assert_eq!((seen.len(), &seen[1_000_000..]), (1_000_010, &b"0123456789"[..]));
    assert_eq!(sys::copy_range(&source, 10, &target, 0, 5).expect("copy at the end"), 0);
    assert_eq!(errno(sys::copy_range(&target, 0, &target, 50, 100)), libc::EINVAL, "overlap");
    assert_eq!(errno(sys::copy_range(&source, 0, &source, 50, 10)), libc::EBADF, "not open for writing");
    assert_eq!(
        sys::copy_range(&source, 0, &target, i64::MAX - 3, 100).err().and_then(|e| e.raw_os_error()),
        Some(libc::EFBIG)
    );
}

/// O_TMPFILE: a file without a name that gets one, or goes.
fn nameless(two: &Two) {
    let open = |flags: i32| {
        File::options().read(true).write(true).mode(0o640).custom_flags(libc::O_TMPFILE | flags).open(&two.a)
    };
    let mut file = open(0).expect("open without a name");
    assert_eq!(file.metadata().expect("stat").nlink(), 0);
    let pattern = Pattern::new(4, 2_000_000);
    file.write_all(&pattern.bytes()).expect("write");
    let mut seen = Vec::new();
    file.seek(SeekFrom::Start(0)).expect("seek");
    file.read_to_end(&mut seen).expect("read");
    assert!(seen == pattern.bytes());
    assert!(names(&two.b).is_empty(), "nobody sees it");
    sys::link_open(&file, &two.a.join("named")).expect("give it a name");
    pattern.check(&two.b.join("named")).expect("whole as soon as it has a name");
    assert_eq!(file.metadata().expect("stat").nlink(), 1);
    file.write_all_at(b"later", 10).expect("write");
    drop(file);
    assert_eq!(&read(&two.b.join("named"))[10..15], b"later");
    fs::remove_file(two.b.join("named")).expect("unlink on the other node");
    assert!(names(&two.a).is_empty());
    // Again: the name goes while it is open.
    let file = open(0).expect("open without a name");
    file.write_all_at(b"x", 0).expect("write");
    sys::link_open(&file, &two.a.join("again")).expect("give it a name");
    fs::remove_file(two.b.join("again")).expect("unlink");
    let mut one = [0];
    file.read_exact_at(&mut one, 0).expect("read");
    assert_eq!(&one, b"x");
    let never = open(libc::O_EXCL).expect("open without a name");
    assert_eq!(errno(sys::link_open(&never, &two.a.join("never"))), libc::ENOENT);
}

/// Two nodes rewrite parts of one small file at the same moment: no old byte comes back.
fn small_files_of_two_writers(two: &Two) {
    for round in 0..10u8 {
        let (a, b) = two.both(&format!("f{round}"));
        write(&a, &[0; 1_000]);
        thread::scope(|scope| {
            for (path, at) in [(&a, 0), (&b, 500)] {
                scope.spawn(move || {
                    let file = File::options().write(true).open(path).expect("open");
                    for i in 1..=10u8 {
                        file.write_all_at(&[i; 500], at).expect("write a half");
                        file.sync_all().expect("sync");
                    }
                });
            }
        });
        for path in [&a, &b] {
            assert!(read(path) == [10; 1_000], "round {round}: {:?}", &read(path)[490..510]);
        }
    }
}

/// O_DIRECT, aligned or not, sees and is seen by mappings and by other descriptors.
fn direct(two: &Two) {
    let (a, b) = two.both("f");
    let pattern = Pattern::new(8, 3_000_000);
    pattern.write(&a).expect("write");
    let mut want = pattern.bytes();
    let file = File::options().read(true).write(true).custom_flags(libc::O_DIRECT).open(&b).expect("open");
    let plain = File::options().read(true).write(true).open(&b).expect("open");
    let mut map = Map::new(&plain, want.len(), MapKind::SharedWrite).expect("map");
    assert!(map[..] == want[..]);
    let mut memory = Vec::new();
    let buf = sys::aligned(&mut memory, 8_192);
    file.read_exact_at(buf, 4_096).expect("read past the cache");
    assert!(buf[..] == want[4_096..12_288]);
    buf.fill(b'd');
    file.write_all_at(buf, 1 << 20).expect("write past the cache");
    want[1 << 20..(1 << 20) + 8_192].fill(b'd');
    assert!(map[..] == want[..], "the mapping sees it");
    // What is written through the mapping is seen past the cache.
    map[2 << 20..(2 << 20) + 100].fill(b'm');
    want[2 << 20..(2 << 20) + 100].fill(b'm');
    let buf = sys::aligned(&mut memory, 4_096);
    file.read_exact_at(buf, 2 << 20).expect("read past the cache");
    assert!(buf[..] == want[2 << 20..(2 << 20) + 4_096], "what was mapped is read past the cache");
    // ext4 refuses offsets and lengths that do not fit a block; this file system takes any.
    if file.write_all_at(b"odd", 12_345).is_ok() {
        want[12_345..12_348].copy_from_slice(b"odd");
        let mut seen = [0; 7];
        file.read_exact_at(&mut seen, 12_343).expect("read at an odd place");
        assert_eq!(seen, want[12_343..12_350]);
    }
    assert!(map[..] == want[..]);
    drop(map);
    drop((file, plain));
    assert!(read(&a) == want, "on the other node");
}

/// A file that is open on one node is cut and grown on the other.
fn truncate_under_a_reader(two: &Two) {
    let (a, b) = two.both("f");
    let pattern = Pattern::new(6, 2_000_000);
    pattern.write(&a).expect("write");
    let mut want = pattern.bytes();
    let reader = File::open(&b).expect("open");
    for len in [1_000_000usize, 10, 3_000_000, 0, 5_000] {
        File::options().write(true).open(&a).expect("open").set_len(len as u64).expect("truncate");
        want.resize(len, 0);
        assert_eq!(reader.metadata().expect("stat").len(), len as u64);
        let mut seen = Vec::new();
        (&reader).seek(SeekFrom::Start(0)).expect("seek");
        (&reader).read_to_end(&mut seen).expect("read");
        assert!(seen == want, "cut to {len} while it is open there");
    }
}
