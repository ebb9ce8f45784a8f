//! Extended attributes on a real mount: sizes, flags, and what writers pay for capabilities.

mod kernel_memory;

use kernel_memory::World;
use rustix::fs::{Mode, XattrFlags};
use rustix::io::Errno;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};

const NONE: XattrFlags = XattrFlags::empty();

#[test]
fn values_and_lists_tell_their_size() {
    let world = World::new();
    let path = world.path("f");
    fs::write(&path, b"").unwrap();
    let value = vec![3u8; 65_536];
    rustix::fs::setxattr(&path, "user.big", &value, NONE).unwrap();
    let get = |len: usize| {
        let mut room = vec![0u8; len];
        rustix::fs::getxattr(&path, "user.big", room.as_mut_slice()).map(|got| (got, room))
    };
    assert_eq!(get(65_535).unwrap_err(), Errno::RANGE);
    assert_eq!(get(65_536).unwrap(), (65_536, value));
    let more = vec![0; 65_537];
    assert_eq!(rustix::fs::setxattr(&path, "user.big", &more, NONE), Err(Errno::TOOBIG));
    rustix::fs::setxattr(&path, "user.empty", b"", NONE).unwrap();
    let list = |len: usize| {
        let mut room = vec![0u8; len];
        rustix::fs::listxattr(&path, room.as_mut_slice()).map(|got| (got, room))
    };
    assert_eq!(list(19).unwrap_err(), Errno::RANGE);
    assert_eq!(list(20).unwrap().1, b"user.big\0user.empty\0");
    rustix::fs::removexattr(&path, "user.big").unwrap();
    assert_eq!(rustix::fs::removexattr(&path, "user.big"), Err(Errno::NODATA));
    assert_eq!(get(10).unwrap_err(), Errno::NODATA);
}

#[test]
fn flags_reach_the_file_system() {
    let world = World::new();
    let path = world.path("f");
    fs::write(&path, b"").unwrap();
    let set = |flags| rustix::fs::setxattr(&path, "user.a", b"x", flags);
    let both = XattrFlags::CREATE | XattrFlags::REPLACE;
    assert_eq!(set(XattrFlags::REPLACE), Err(Errno::NODATA));
    assert_eq!(set(both), Err(Errno::NODATA));
    set(XattrFlags::CREATE).unwrap();
    assert_eq!(set(XattrFlags::CREATE), Err(Errno::EXIST));
    assert_eq!(set(both), Err(Errno::EXIST));
    set(XattrFlags::REPLACE).unwrap();
    // A list whose setter is in the file's group, or root.
    let list = [
        2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 4, 0, 4, 0, 255, 255, 255, 255, 32, 0, 4, 0, 255, 255,
        255, 255,
    ];
    rustix::fs::setxattr(&path, "system.posix_acl_access", &list, NONE).unwrap();
    assert_eq!(*world.fs.killed.lock(), [false]);
}

#[test]
fn the_umask_is_left_to_the_file_system() {
    let world = World::new();
    let old = rustix::process::umask(Mode::from_raw_mode(0o027));
    fs::create_dir(world.path("d")).unwrap();
    rustix::process::umask(old);
    assert_eq!(fs::metadata(world.path("d")).unwrap().mode() & 0o7777, 0o750);
}

/// The kernel wants to know of capabilities before a write, but not before each.
#[test]
fn a_write_costs_one_request() {
    let world = World::new();
    let file = fs::File::create(world.path("f")).unwrap();
    for i in 0..200 {
        file.write_all_at(b"bytes", i * 5).unwrap();
    }
    drop(file);
    let asked = world.fs.got.lock().iter().filter(|name| *name == b"security.capability").count();
    let writes = world.fs.written.lock().len();
    assert_eq!(writes, 200);
    assert!(asked <= 5, "{asked} requests for capabilities beside {writes} writes");
    // Root may keep set-id bits.
    assert!(world.fs.written.lock().iter().all(|kills| !kills));
}
