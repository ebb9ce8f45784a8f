//! The kernel side on a real mount: names, attributes, bytes.

mod kernel_memory;

use kernel_memory::World;
use rustix::fs::{AtFlags, CWD, FallocateFlags, Mode, OFlags, RenameFlags, Timespec, Timestamps};
use std::fs;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{
    DirEntryExt, FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink,
};
use std::sync::atomic::Ordering;

/// What a training job does with each of its files.
#[test]
fn a_warm_open_read_and_close_wait_for_one_request() {
    let world = World::new();
    for ttl in [&world.fs.entry_ttl, &world.fs.attr_ttl] {
        ttl.store(60_000, Ordering::SeqCst);
    }
    fs::write(world.path("f"), b"bytes").unwrap();
    assert_eq!(fs::read(world.path("f")).unwrap(), b"bytes");
    let count = || {
        [&world.fs.lookups, &world.fs.opens, &world.fs.reads, &world.fs.flushes]
            .map(|n| n.load(Ordering::SeqCst))
    };
    let before = count();
    let mut buf = [0; 9];
    for _ in 0..10 {
        let mut file = fs::File::open(world.path("f")).unwrap();
        assert_eq!(file.read(&mut buf).unwrap(), 5);
    }
    let made: Vec<u64> = count().iter().zip(before).map(|(now, then)| now - then).collect();
    assert_eq!(made, [0, 10, 0, 0], "LOOKUP, OPEN, READ, FLUSH");
}

#[test]
fn names_are_made_moved_and_removed() {
    let world = World::new();
    let at = |name: &str| world.path(name);
    fs::create_dir(at("d")).unwrap();
    fs::write(at("d/a"), b"one").unwrap();
    fs::hard_link(at("d/a"), at("d/b")).unwrap();
    assert_eq!(fs::metadata(at("d/b")).unwrap().nlink(), 2);
    symlink("../d/./a", at("d/s")).unwrap();
    assert_eq!(fs::read_link(at("d/s")).unwrap().as_os_str(), "../d/./a");
    assert_eq!(fs::read(at("d/s")).unwrap(), b"one");
    fs::write(at("c"), b"two").unwrap();
    let rename = |from: &str, to: &str, flags| rustix::fs::renameat_with(CWD, at(from), CWD, at(to), flags);
    assert_eq!(rename("c", "d/a", RenameFlags::NOREPLACE), Err(rustix::io::Errno::EXIST));
    rename("c", "d/a", RenameFlags::EXCHANGE).unwrap();
    assert_eq!(fs::read(at("c")).unwrap(), b"one");
    assert_eq!(rename("c", "d/a", RenameFlags::WHITEOUT), Err(rustix::io::Errno::INVAL));
    fs::rename(at("c"), at("d/a")).unwrap();
    assert_eq!(fs::read(at("d/a")).unwrap(), b"one");
    assert_eq!(fs::remove_dir(at("d")).unwrap_err().kind(), ErrorKind::DirectoryNotEmpty);
    for name in ["d/a", "d/b", "d/s"] {
        fs::remove_file(at(name)).unwrap();
    }
    fs::remove_dir(at("d")).unwrap();
    assert_eq!(fs::metadata(at("d")).unwrap_err().kind(), ErrorKind::NotFound);
    let excl = || fs::OpenOptions::new().write(true).create_new(true).open(at("x"));
    excl().unwrap();
    assert_eq!(excl().unwrap_err().kind(), ErrorKind::AlreadyExists);
    let mode = Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(CWD, at("p"), rustix::fs::FileType::Fifo, mode, 0).unwrap();
    assert!(fs::metadata(at("p")).unwrap().file_type().is_fifo());
    let device = rustix::fs::makedev(300, 70_000);
    rustix::fs::mknodat(CWD, at("n"), rustix::fs::FileType::CharacterDevice, mode, device).unwrap();
    assert_eq!(fs::metadata(at("n")).unwrap().rdev(), device);
    let unnamed = rustix::fs::open(&world.dir.0, OFlags::TMPFILE | OFlags::RDWR, mode);
    assert_eq!(unnamed.unwrap_err(), rustix::io::Errno::OPNOTSUPP);
    assert_eq!(fs::File::open(&world.dir.0).unwrap().sync_all().ok(), Some(()));
}

#[test]
fn attributes_and_times_are_exact() {
    let world = World::new();
    let path = world.path("f");
    let old = rustix::process::umask(Mode::from_raw_mode(0o027));
    fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o6777).open(&path).unwrap();
    rustix::process::umask(old);
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o6750);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o1640)).unwrap();
    std::os::unix::fs::chown(&path, Some(12), Some(34)).unwrap();
    let meta = fs::metadata(&path).unwrap();
    assert_eq!((meta.mode(), meta.uid(), meta.gid()), (libc::S_IFREG | 0o1640, 12, 34));
    let times = [(-1, 999_999_999), (-2_000_000_000, 1), (0, 0), (4_102_444_800, 123_456_789)];
    for (seconds, nanos) in times {
        let time = Timespec { tv_sec: seconds, tv_nsec: nanos };
        let both = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, &path, &both, AtFlags::empty()).unwrap();
        let meta = fs::metadata(&path).unwrap();
        assert_eq!((meta.mtime(), meta.mtime_nsec()), (seconds, nanos));
        assert_eq!((meta.atime(), meta.atime_nsec()), (seconds, nanos));
    }
    let now = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
    let omit = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
    let only = Timestamps { last_access: omit, last_modification: now };
    rustix::fs::utimensat(CWD, &path, &only, AtFlags::empty()).unwrap();
    let meta = fs::metadata(&path).unwrap();
    assert_eq!(meta.atime(), 4_102_444_800);
    assert!(meta.mtime() > 1_700_000_000 && meta.mtime() < 4_102_444_800);
    fs::File::options().write(true).open(&path).unwrap().set_len(1_000).unwrap();
    let meta = fs::metadata(&path).unwrap();
    assert_eq!((meta.len(), meta.blocks(), meta.blksize()), (1_000, 2, 256 * 1024));
    let space = rustix::fs::statvfs(&path).unwrap();
    assert_eq!(space.f_blocks * space.f_frsize, 1 << 40);
    assert_eq!(space.f_bavail * space.f_frsize, 1 << 39);
    assert_eq!(space.f_namemax, 255);
}

#[test]
fn set_id_bits_go_when_another_user_writes() {
    let world = World::new();
    let path = world.path("f");
    fs::write(&path, b"x").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o6777)).unwrap();
    let status = std::process::Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c"])
        .arg(format!("echo more >> {}", path.display()))
        .status();
    assert!(status.unwrap().success());
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o777);
}

#[test]
fn bytes_come_back() {
    let world = World::new();
    let path = world.path("f");
    let content: Vec<u8> = (0..5_000_011_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(&path, &content).unwrap();
    world.fs.notify.get().unwrap().data_stale(hfcache_base::InodeId(fs::metadata(&path).unwrap().ino()));
    assert!(fs::read(&path).unwrap() == content);
    let mut file = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    file.write_all_at(b"patch", 3_000_000).unwrap();
    let mut some = [0; 7];
    file.read_exact_at(&mut some, 2_999_999).unwrap();
    assert_eq!(&some[1..6], b"patch");
    file.seek(SeekFrom::Start(5_000_010)).unwrap();
    let mut rest = Vec::new();
    file.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, content[5_000_010..]);
    assert_eq!(rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0)).unwrap(), 5_000_011);
    assert_eq!(rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(7)).unwrap(), 7);
    let past = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(5_000_011));
    assert_eq!(past.unwrap_err(), rustix::io::Errno::NXIO);
    // The kernel's own way where we have none.
    let copy = fs::File::create(world.path("copy")).unwrap();
    let copied = std::io::copy(&mut fs::File::open(&path).unwrap(), &mut &copy).unwrap();
    assert_eq!(copied, 5_000_011);
    let mut append = fs::OpenOptions::new().append(true).open(&path).unwrap();
    append.write_all(b"tail").unwrap();
    drop(append);
    assert_eq!(fs::metadata(&path).unwrap().len(), 5_000_015);
    fs::File::create(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 10, 90).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 100);
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, punch, 1, 2).unwrap();
    assert_eq!(*world.fs.fallocated.lock(), [(10, 90, 0), (1, 2, punch.bits())]);
}

#[test]
fn direct_and_unlinked_files_work() {
    let world = World::new();
    let path = world.path("f");
    fs::write(&path, vec![7; 3 << 20]).unwrap();
    let direct = OFlags::DIRECT | OFlags::RDONLY;
    let file = fs::File::from(rustix::fs::open(&path, direct, Mode::empty()).unwrap());
    fs::remove_file(&path).unwrap();
    let mut all = vec![0; 3 << 20];
    file.read_exact_at(&mut all, 0).unwrap();
    assert!(all.iter().all(|&b| b == 7));
    assert_eq!(file.metadata().unwrap().nlink(), 0);
}

#[test]
fn ten_thousand_entries_are_listed_once_each() {
    let world = World::new();
    let dir = world.path("d");
    fs::create_dir(&dir).unwrap();
    for number in 0..10_000 {
        let name = format!("{number:0width$}", width = 5 + number % 40);
        rustix::fs::mknodat(CWD, dir.join(name), rustix::fs::FileType::RegularFile, Mode::RUSR, 0).unwrap();
    }
    let list = || fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap());
    let mut names: Vec<_> = list().map(|entry| entry.file_name()).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 10_000);
    // With attributes: READDIRPLUS is what the kernel chooses after a lookup in the listing.
    let inodes: std::collections::HashSet<u64> = list()
        .map(|entry| {
            let meta = entry.metadata().unwrap();
            assert_eq!(meta.ino(), entry.ino());
            assert!(entry.file_type().unwrap().is_file());
            meta.ino()
        })
        .collect();
    assert_eq!(inodes.len(), 10_000);
}

#[test]
fn a_mapped_file_is_read_and_written() {
    let world = World::new();
    let path = world.path("f");
    fs::write(&path, vec![1; 100_000]).unwrap();
    let script = "import mmap,sys\n\
                  f=open(sys.argv[1],'r+b'); m=mmap.mmap(f.fileno(),0)\n\
                  assert m[:]==bytes([1])*100000\n\
                  m[50000:50004]=b'abcd'; m.flush(); m.close(); f.close()\n";
    let status = std::process::Command::new("python3").args(["-c", script]).arg(&path).status().unwrap();
    assert!(status.success());
    assert_eq!(&fs::read(&path).unwrap()[49_999..50_005], b"\x01abcd\x01");
}

#[test]
fn a_panic_of_the_file_system_is_an_error_of_one_call() {
    let world = World::with(|options| options.threads = 1);
    for _ in 0..3 {
        let error = fs::metadata(world.path("panic")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
    }
    assert!(fs::metadata(&world.dir.0).unwrap().is_dir());
}

#[test]
fn kept_pages_stay_until_a_notice() {
    let world = World::new();
    let path = world.path("f");
    fs::write(&path, b"first").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"first");
    assert_eq!(fs::read(&path).unwrap(), b"first");
    let reads = world.fs.reads.load(Ordering::Relaxed);
    assert!(reads <= 1, "the pages of our own write or first read are kept: {reads}");
    let ino = world.fs.overwrite("f", b"other");
    assert_eq!(fs::read(&path).unwrap(), b"first", "nobody told the kernel");
    world.fs.notify.get().unwrap().data_stale(ino);
    assert_eq!(fs::read(&path).unwrap(), b"other");
    // Attributes alone.
    world.fs.attr_ttl.store(3_600_000, Ordering::Relaxed);
    assert_eq!(fs::metadata(&path).unwrap().len(), 5);
    // Opened before, as a lookup by name brings new attributes with it.
    let file = fs::File::open(&path).unwrap();
    world.fs.overwrite("f", b"longer than before");
    assert_eq!(file.metadata().unwrap().len(), 5);
    world.fs.notify.get().unwrap().attr_stale(ino);
    assert_eq!(file.metadata().unwrap().len(), 18);
    // An inode that the kernel does not know is no error.
    world.fs.notify.get().unwrap().attr_stale(hfcache_base::InodeId(999_999));
}
