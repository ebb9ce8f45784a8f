//! Extended attributes and access control lists: set on one node, and true on the other from that moment on.

use hfcache_tests::node::run;
use hfcache_tests::sys;
use hfcache_tests::two::{self, Check, Two, errno, read, stat, write};
use hfcache_tests::xattr::{self, ACCESS, DEFAULT, acl, has, has_not, lists, sets as set};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const CHECKS: &[Check] = &[
    ("attributes", attributes),
    ("flags", flags),
    ("sizes", sizes),
    ("names", names),
    ("kinds", kinds),
    ("open_and_nameless", open_and_nameless),
    ("many", many),
    ("whose", whose),
    ("list_and_mode", list_and_mode),
    ("lists_that_are_none", lists_that_are_none),
    ("inherited", inherited),
    ("decides_on_every_node", decides_on_every_node),
    ("masked", masked),
    ("directories", directories),
    ("owners_only", owners_only),
    ("copied", copied),
    ("privileges_go", privileges_go),
];

/// What no local file system must have room for.
const LARGE: &[Check] = &[("large", large)];

const BOB: u32 = 1002;
const CAROL: u32 = 1003;
/// Carol's second group.
const READERS: u32 = 3000;

#[test]
fn attributes_are_the_same_on_every_node() {
    two::on_cluster("xattr", &[CHECKS, LARGE].concat());
}

#[test]
fn the_checks_hold_on_the_local_file_system() {
    two::on_local("xattr", CHECKS);
}

/// Runs a script as a user; what it printed, or failed with. `None` where this process can't be somebody else.
fn as_user(uid: u32, dir: &Path, script: &str) -> Option<Result<String, String>> {
    if !sys::is_root() {
        return None;
    }
    let mut command = Command::new("setpriv");
    let groups = if uid == CAROL { format!("{uid},{READERS}") } else { uid.to_string() };
    command.arg(format!("--reuid={uid}")).arg(format!("--regid={uid}")).arg(format!("--groups={groups}"));
    command.args(["sh", "-euc", script]).current_dir(dir);
    let output = run(command, Duration::from_secs(60)).expect("the script ends");
    let said = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
    let why = String::from_utf8_lossy(&output.stderr).into_owned();
    Some(if output.status.success() { Ok(said) } else { Err(why) })
}

#[track_caller]
fn does(uid: u32, dir: &Path, script: &str) {
    if let Some(Err(why)) = as_user(uid, dir, script) {
        panic!("user {uid}: {script}: {why}");
    }
}

#[track_caller]
fn may_not(uid: u32, dir: &Path, script: &str) {
    match as_user(uid, dir, script) {
        Some(Ok(said)) => panic!("user {uid} could: {script}: {said}"),
        Some(Err(why)) => {
            assert!(why.contains("ermission denied") || why.contains("not permitted"), "{script}: {why}")
        }
        None => {}
    }
}

/// A call of Python's `os` by a user, and the errno it must fail with.
#[track_caller]
fn python(uid: u32, dir: &Path, call: &str, want: i32) {
    let script = format!(
        "exec python3 -c 'import os\ntry: os.{call}\nexcept OSError as e: raise SystemExit(0 if e.errno == {want} else repr(e))\n\
         raise SystemExit(\"it worked\" if {want} else 0)'"
    );
    does(uid, dir, &script);
}

fn mode(path: &Path) -> u32 {
    stat(path).mode() & 0o7777
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

fn attributes(two: &Two) {
    let (a, b) = two.both("f");
    write(&a, b"bytes");
    lists(&b, &[]);
    has_not(&b, "user.a");
    set(&a, "user.a", b"1");
    has(&b, "user.a", b"1");
    set(&b, "user.a", b"longer than before");
    has(&a, "user.a", b"longer than before");
    set(&b, "user.empty", b"");
    has(&a, "user.empty", b"");
    set(&a, "user.zeros", &[0, 1, 0, 255, 0]);
    has(&b, "user.zeros", &[0, 1, 0, 255, 0]);
    for path in [&a, &b] {
        lists(path, &["user.a", "user.empty", "user.zeros"]);
    }
    let before = stat(&b);
    xattr::remove(&a, "user.a").expect("remove");
    has_not(&b, "user.a");
    assert_eq!(errno(xattr::remove(&b, "user.a")), libc::ENODATA);
    lists(&b, &["user.empty", "user.zeros"]);
    // They change no byte and no mtime, only ctime.
    let after = stat(&b);
    assert_eq!(after.mtime_nsec(), before.mtime_nsec());
    assert!((after.ctime(), after.ctime_nsec()) >= (before.ctime(), before.ctime_nsec()));
    assert_eq!(read(&b), b"bytes");
    // They belong to the inode, under every name.
    fs::hard_link(&a, two.a.join("g")).expect("link");
    fs::rename(&a, two.a.join("h")).expect("rename");
    lists(&two.b.join("g"), &["user.empty", "user.zeros"]);
    fs::remove_file(two.b.join("g")).expect("remove");
    has(&two.b.join("h"), "user.empty", b"");
    // And a new file begins without.
    fs::remove_file(two.b.join("h")).expect("remove");
    write(&two.b.join("h"), b"");
    lists(&two.a.join("h"), &[]);
}

fn flags(two: &Two) {
    let (a, b) = two.both("f");
    write(&a, b"");
    let both = libc::XATTR_CREATE | libc::XATTR_REPLACE;
    let with = |path, flags| xattr::set_with(path, "user.x", b"new", flags);
    assert_eq!(errno(with(&b, libc::XATTR_REPLACE)), libc::ENODATA);
    assert_eq!(errno(with(&b, both)), libc::ENODATA);
    with(&a, libc::XATTR_CREATE).expect("create");
    assert_eq!(errno(with(&b, libc::XATTR_CREATE)), libc::EEXIST);
    assert_eq!(errno(with(&b, both)), libc::EEXIST);
    with(&b, libc::XATTR_REPLACE).expect("replace");
    assert_eq!(errno(with(&a, 4)), libc::EINVAL);
    has(&a, "user.x", b"new");
}

/// A size of zero asks, one that is too small is told.
fn sizes(two: &Two) {
    let (a, b) = two.both("f");
    write(&a, b"");
    let value = vec![b'v'; 1_500];
    set(&a, "user.value", &value);
    assert_eq!(xattr::get_into(&b, "user.value", 0).expect("ask").len(), 1_500);
    assert_eq!(errno(xattr::get_into(&b, "user.value", 1_499)), libc::ERANGE);
    assert!(xattr::get_into(&b, "user.value", 1_500).expect("get") == value);
    set(&b, "user.other", b"");
    let len = "user.value\0user.other\0".len();
    assert_eq!(xattr::list_into(&a, 0).expect("ask").0, len);
    assert_eq!(errno(xattr::list_into(&a, len - 1)), libc::ERANGE);
    assert_eq!(xattr::list_into(&a, len).expect("list").1, ["user.other", "user.value"]);
    assert_eq!(errno(xattr::set(&a, "user.big", &vec![0; (64 << 10) + 1])), libc::E2BIG);
    has_not(&b, "user.big");
}

fn large(two: &Two) {
    let (a, b) = two.both("f");
    write(&a, b"");
    let value: Vec<u8> = (0..64u32 << 10).map(|i| (i % 251) as u8).collect();
    set(&a, "user.big", &value);
    has(&b, "user.big", &value);
    // What all of an inode take together is bounded, too, and nothing is half set.
    assert_eq!(errno(xattr::set(&b, "user.more", &value)), libc::ENOSPC);
    lists(&a, &["user.big"]);
    set(&b, "user.more", &value[..60 << 10]);
    has(&a, "user.more", &value[..60 << 10]);
    set(&a, "user.big", b"small");
    has(&b, "user.big", b"small");
}

fn names(two: &Two) {
    let (a, b) = two.both("f");
    write(&a, b"");
    let longest = format!("user.{}", "n".repeat(250));
    set(&a, &longest, b"x");
    has(&b, &longest, b"x");
    assert_eq!(errno(xattr::set(&a, &format!("{longest}n"), b"x")), libc::ERANGE);
    assert_eq!(errno(xattr::set(&a, "", b"x")), libc::ERANGE);
    for (name, want) in [
        ("user.", libc::EINVAL),
        ("user", libc::EOPNOTSUPP),
        ("other.name", libc::EOPNOTSUPP),
        ("system.other", libc::EOPNOTSUPP),
    ] {
        assert_eq!(errno(xattr::set(&a, name, b"x")), want, "set {name:?}");
        assert_eq!(errno(xattr::get(&b, name)), want, "get {name:?}");
        assert_eq!(errno(xattr::remove(&b, name)), want, "remove {name:?}");
    }
    set(&a, "user.ä/ö \n\u{1F600}", b"x");
    has(&b, "user.ä/ö \n\u{1F600}", b"x");
    assert_eq!(errno(xattr::get(&two.b.join("none"), "user.x")), libc::ENOENT);
}

/// Which kinds of inode have which attributes.
fn kinds(two: &Two) {
    let (dir, dir_b) = two.both("d");
    fs::create_dir(&dir).expect("mkdir");
    set(&dir, "user.d", b"of a directory");
    has(&dir_b, "user.d", b"of a directory");
    let (link, link_b) = two.both("l");
    symlink("d", &link).expect("symlink");
    let fifo = two.a.join("p");
    assert!(Command::new("mkfifo").arg(&fifo).status().expect("run mkfifo").success());
    for special in [&link, &fifo] {
        assert_eq!(errno(xattr::set(special, "user.x", b"x")), libc::EPERM, "{}", special.display());
        assert_eq!(errno(xattr::get(special, "user.x")), libc::ENODATA, "{}", special.display());
    }
    assert_eq!(errno(xattr::set(&link, ACCESS, &acl("u::r g::r o::r"))), libc::EOPNOTSUPP);
    assert_eq!(errno(xattr::set(&fifo, DEFAULT, &acl("u::r g::r o::r"))), libc::EACCES);
    lists(&link_b, &[]);
    if sys::is_root() {
        set(&link, "trusted.t", b"of the link");
        has(&link_b, "trusted.t", b"of the link");
        has_not(&dir_b, "trusted.t");
    }
    // A directory goes with its attributes.
    fs::remove_dir(&dir_b).expect("rmdir");
    assert_eq!(errno(xattr::get(&dir, "user.d")), libc::ENOENT);
}

fn open_and_nameless(two: &Two) {
    let (a, b) = two.both("f");
    write(&a, b"bytes");
    let file = File::open(&a).expect("open");
    fs::remove_file(&b).expect("remove");
    xattr::set_open(&file, "user.late", b"late").expect("set");
    assert_eq!(xattr::get_open(&file, "user.late").expect("get"), b"late");
}

/// Lists of names of many attributes, changed from both nodes in turns.
fn many(two: &Two) {
    let (a, b) = two.both("f");
    write(&a, b"");
    for i in 0..30 {
        let path = if i % 2 == 0 { &a } else { &b };
        set(path, &format!("user.name-{i}"), format!("value {i}").as_bytes());
    }
    for i in (0..30).step_by(3) {
        xattr::remove(&b, &format!("user.name-{i}")).expect("remove");
    }
    let mut want: Vec<String> = (0..30).filter(|i| i % 3 != 0).map(|i| format!("user.name-{i}")).collect();
    want.sort();
    for path in [&a, &b] {
        assert_eq!(xattr::list(path).expect("list"), want);
        for i in (0..30).filter(|i| i % 3 != 0) {
            has(path, &format!("user.name-{i}"), format!("value {i}").as_bytes());
        }
    }
}

/// Who may see and set what.
fn whose(two: &Two) {
    if !sys::is_root() {
        return;
    }
    let (a, b) = two.both("f");
    write(&a, b"");
    chmod(&a, 0o644);
    set(&a, "user.u", b"u");
    set(&a, "trusted.t", b"t");
    set(&a, "security.s", b"s");
    has(&b, "trusted.t", b"t");
    lists(&b, &["security.s", "trusted.t", "user.u"]);
    python(BOB, &two.b, "getxattr(\"f\", \"user.u\")", 0);
    does(
        BOB,
        &two.b,
        "test \"$(python3 -c 'import os; print(sorted(set(os.listxattr(\"f\")) - {\"security.selinux\"}))')\" = \"['security.s', 'user.u']\"",
    );
    python(BOB, &two.b, "getxattr(\"f\", \"trusted.t\")", libc::ENODATA);
    python(BOB, &two.b, "setxattr(\"f\", \"trusted.t\", b\"x\")", libc::EPERM);
    python(BOB, &two.b, "setxattr(\"f\", \"security.s\", b\"x\")", libc::EPERM);
    python(BOB, &two.b, "setxattr(\"f\", \"user.u\", b\"x\")", libc::EACCES);
    python(BOB, &two.b, "removexattr(\"f\", \"user.u\")", libc::EACCES);
    chmod(&a, 0o606);
    python(BOB, &two.b, "setxattr(\"f\", \"user.u\", b\"his\")", 0);
    has(&a, "user.u", b"his");
    chmod(&a, 0o600);
    python(BOB, &two.b, "getxattr(\"f\", \"user.u\")", libc::EACCES);
    // In a directory that is sticky, only its owner.
    let dir = two.a.join("d");
    fs::create_dir(&dir).expect("mkdir");
    chmod(&dir, 0o1777);
    python(BOB, &two.b, "setxattr(\"d\", \"user.u\", b\"x\")", libc::EPERM);
}

/// The mode and the list say one thing.
fn list_and_mode(two: &Two) {
    let (a, b) = two.both("f");
    write(&a, b"");
    chmod(&a, 0o640);
    let list = acl("u::rw u:1002:rw g::r m::rw o::-");
    set(&a, ACCESS, &list);
    has(&b, ACCESS, &list);
    assert_eq!(mode(&b), 0o660, "the mask is shown as the group");
    lists(&b, &[ACCESS]);
    // chmod changes the mask, from any node.
    chmod(&b, 0o604);
    has(&a, ACCESS, &acl("u::rw u:1002:rw g::r m::- o::r"));
    assert_eq!(mode(&a), 0o604);
    chmod(&a, 0o750);
    has(&b, ACCESS, &acl("u::rwx u:1002:rw g::r m::rx o::-"));
    // A list that the mode says all of is none.
    set(&b, ACCESS, &acl("u::rw g::r o::-"));
    has_not(&a, ACCESS);
    assert_eq!(mode(&a), 0o640);
    lists(&a, &[]);
    // And one that is taken away leaves the mode.
    set(&a, ACCESS, &list);
    xattr::remove(&b, ACCESS).expect("remove");
    has_not(&a, ACCESS);
    assert_eq!(mode(&a), 0o660);
    xattr::remove(&b, ACCESS).expect("no list is a list");
    // Flags mean nothing for lists.
    xattr::set_with(&a, ACCESS, &list, libc::XATTR_REPLACE).expect("set");
    has(&b, ACCESS, &list);
    assert_eq!(errno(xattr::get_into(&b, ACCESS, 8)), libc::ERANGE);
    assert_eq!(xattr::get_into(&b, ACCESS, 0).expect("ask").len(), list.len());
}

fn lists_that_are_none(two: &Two) {
    let (a, b) = two.both("f");
    write(&a, b"");
    chmod(&a, 0o644);
    for bad in [
        "u::rw",
        "u::rw u:1002:r g::r o::r",
        "g::r u::rw o::r",
        "u::rw u::rw g::r o::r",
        "u::rw g::r m::r m::r o::r",
    ] {
        assert_eq!(errno(xattr::set(&a, ACCESS, &acl(bad))), libc::EINVAL, "{bad}");
    }
    let good = acl("u::rw g::r o::r");
    for cut in [1, 3, 5, good.len() - 1] {
        assert_eq!(errno(xattr::set(&b, ACCESS, &good[..cut])), libc::EINVAL, "cut at {cut}");
    }
    let mut other = good;
    other[0] = 3;
    assert_eq!(errno(xattr::set(&b, ACCESS, &other)), libc::EOPNOTSUPP);
    assert_eq!(errno(xattr::set(&b, DEFAULT, &acl("u::rw g::r o::r"))), libc::EACCES, "of a file");
    assert_eq!(mode(&b), 0o644);
    lists(&a, &[]);
}

/// A default list takes the place of the umask, in what is made on the other node.
fn inherited(two: &Two) {
    let (dir, dir_b) = two.both("d");
    fs::create_dir(&dir).expect("mkdir");
    let list = acl("u::rwx u:1002:rwx g::rx m::rwx o::-");
    set(&dir, DEFAULT, &list);
    assert_eq!(mode(&dir_b) & 0o700, 0o700);
    has(&dir_b, DEFAULT, &list);
    has_not(&dir_b, ACCESS);
    let script =
        "umask 077; echo x >f; mkdir s; echo y >s/g; ln -s f l; mkfifo p; umask 0; echo z >h; mkdir t";
    let made = Command::new("sh").args(["-euc", script]).current_dir(&dir_b).status().expect("run sh");
    assert!(made.success());
    let file = acl("u::rw u:1002:rwx g::rx m::rw o::-");
    for name in ["f", "s/g", "p", "h"] {
        has(&dir.join(name), ACCESS, &file);
        has_not(&dir.join(name), DEFAULT);
        assert_eq!(mode(&dir.join(name)), 0o660, "{name}");
    }
    for name in ["s", "t"] {
        has(&dir.join(name), ACCESS, &list);
        has(&dir.join(name), DEFAULT, &list);
        assert_eq!(mode(&dir.join(name)), 0o770, "{name}");
    }
    lists(&dir.join("l"), &[]);
    // With a short list: modes, and no lists.
    set(&dir, DEFAULT, &acl("u::rwx g::rx o::x"));
    let script = "umask 077; echo x >short; mkdir short-d";
    let made = Command::new("sh").args(["-euc", script]).current_dir(&dir_b).status().expect("run sh");
    assert!(made.success());
    assert_eq!((mode(&dir.join("short")), mode(&dir.join("short-d"))), (0o640, 0o751));
    has_not(&dir.join("short"), ACCESS);
    // Without: the umask, as ever.
    xattr::remove(&dir, DEFAULT).expect("remove");
    let script = "umask 027; echo x >plain; mkdir plain-d; mkfifo plain-p; mknod plain-n p";
    let made = Command::new("sh").args(["-euc", script]).current_dir(&dir_b).status().expect("run sh");
    assert!(made.success());
    let modes = ["plain", "plain-d", "plain-p", "plain-n"].map(|name| mode(&dir.join(name)));
    assert_eq!(modes, [0o640, 0o750, 0o640, 0o640]);
}

/// From the moment that a list is set on one node, it decides on the other, whatever the kernel there has kept.
fn decides_on_every_node(two: &Two) {
    let (a, b) = two.both("f");
    write(&a, b"for some\n");
    chmod(&a, 0o640);
    let (open, shut) = (acl("u::rw u:1002:r g::- m::r o::-"), acl("u::rw u:1002:- g::r m::r o::-"));
    for round in 0..12 {
        // The node that is asked has looked a moment ago.
        set(&a, ACCESS, &open);
        does(BOB, &two.b, "cat f");
        may_not(BOB, &two.b, "echo x >>f");
        may_not(CAROL, &two.b, "cat f");
        set(&a, ACCESS, &shut);
        may_not(BOB, &two.b, "cat f");
        // And the other way about, by what there is to take a list away.
        set(&b, ACCESS, &open);
        does(BOB, &two.a, "cat f");
        match round % 3 {
            0 => xattr::remove(&b, ACCESS).expect("remove"),
            1 => chmod(&b, 0o600),
            _ => set(&b, ACCESS, &acl("u::rw g::- o::-")),
        }
        may_not(BOB, &two.a, "cat f");
        chmod(&b, 0o644);
        does(BOB, &two.a, "cat f");
        chmod(&b, 0o640);
    }
}

/// Groups, and the mask over them.
fn masked(two: &Two) {
    let (a, b) = two.both("f");
    write(&a, b"for some\n");
    set(&a, ACCESS, &acl("u::rw g::- g:3000:rw m::rw o::-"));
    does(CAROL, &two.b, "cat f; echo x >>f");
    may_not(BOB, &two.b, "cat f");
    chmod(&a, 0o640);
    does(CAROL, &two.b, "cat f");
    may_not(CAROL, &two.b, "echo x >>f");
    chmod(&a, 0o600);
    may_not(CAROL, &two.b, "cat f");
    // Everyone but one.
    set(&b, ACCESS, &acl("u::rw u:1002:- g::r m::r o::r"));
    may_not(BOB, &two.a, "cat f");
    does(CAROL, &two.a, "cat f");
}

/// Lists of directories on the way, which the kernel looks at again and again.
fn directories(two: &Two) {
    fs::create_dir_all(two.a.join("d/e")).expect("mkdir");
    write(&two.a.join("d/e/f"), b"deep\n");
    chmod(&two.a.join("d/e/f"), 0o644);
    chmod(&two.a.join("d/e"), 0o755);
    for _ in 0..6 {
        set(&two.a.join("d"), ACCESS, &acl("u::rwx u:1002:x g::- m::x o::-"));
        does(BOB, &two.b, "cat d/e/f");
        may_not(BOB, &two.b, "ls d");
        may_not(CAROL, &two.b, "cat d/e/f");
        set(&two.a.join("d"), ACCESS, &acl("u::rwx u:1003:rx g::- m::rx o::-"));
        may_not(BOB, &two.b, "cat d/e/f");
        does(CAROL, &two.b, "cat d/e/f; ls d");
    }
    // Who may write into it makes and removes names.
    set(&two.a.join("d"), ACCESS, &acl("u::rwx u:1002:rwx g::- m::rwx o::-"));
    does(BOB, &two.b, "echo x >d/new; mv d/new d/other; rm d/other; mkdir d/mine; rmdir d/mine");
    may_not(CAROL, &two.b, "echo x >d/new");
}

/// Only the owner may set a list, and his set-gid bit goes if the group is not his.
fn owners_only(two: &Two) {
    if !sys::is_root() {
        return;
    }
    let (a, _) = two.both("f");
    write(&a, b"");
    chmod(&a, 0o666);
    let list: String =
        acl("u::rwx u:1003:r g::rx m::rx o::-").iter().map(|b| format!("\\x{b:02x}")).collect();
    let call = format!("setxattr(\"f\", \"{ACCESS}\", b\"{list}\")");
    python(BOB, &two.b, &call, libc::EPERM);
    python(BOB, &two.b, &format!("removexattr(\"f\", \"{ACCESS}\")"), libc::EPERM);
    chown(&a, Some(BOB), Some(0)).expect("chown");
    chmod(&a, 0o2755);
    python(BOB, &two.b, &call, 0);
    assert_eq!(mode(&a), 0o750, "set-gid is gone: he is not in the group");
    chown(&a, Some(BOB), Some(BOB)).expect("chown");
    chmod(&a, 0o2755);
    python(BOB, &two.b, &call, 0);
    assert_eq!(mode(&a), 0o2750);
}

/// Programs that copy files take everything along.
fn copied(two: &Two) {
    let (from, from_b) = two.both("from");
    fs::create_dir(&from).expect("mkdir");
    write(&from.join("f"), b"bytes");
    let (list, default) = (acl("u::rw u:1002:r g::r m::r o::-"), acl("u::rwx u:1002:rx g::rx m::rx o::-"));
    set(&from.join("f"), ACCESS, &list);
    set(&from.join("f"), "user.note", b"kept");
    set(&from, DEFAULT, &default);
    set(&from, "user.dir", b"too");
    let elsewhere = std::env::temp_dir().join(format!("hfcache-xattr-{}", std::process::id()));
    fs::create_dir_all(&elsewhere).expect("make a directory elsewhere");
    let to = two.b.join("to");
    let cp = |from: &Path, to: &Path| {
        let output = Command::new("cp").arg("-a").arg(from).arg(to).output().expect("run cp");
        assert!(output.status.success(), "cp -a: {}", String::from_utf8_lossy(&output.stderr));
    };
    cp(&from_b, &to);
    let check = |dir: &Path| {
        has(&dir.join("f"), ACCESS, &list);
        has(&dir.join("f"), "user.note", b"kept");
        has(dir, DEFAULT, &default);
        has(dir, "user.dir", b"too");
        assert_eq!(mode(&dir.join("f")), 0o640);
    };
    check(&two.a.join("to"));
    // Away, and back, where that file system has them at all.
    if xattr::set(&elsewhere, "user.try", b"").is_ok() && xattr::set(&elsewhere, DEFAULT, &default).is_ok() {
        cp(&from_b, &elsewhere.join("away"));
        check(&elsewhere.join("away"));
        cp(&elsewhere.join("away"), &two.b.join("back"));
        check(&two.a.join("back"));
    }
    fs::remove_dir_all(elsewhere).expect("clear away");
}

/// Set-id bits and capabilities go when the file is changed.
fn privileges_go(two: &Two) {
    if !sys::is_root() {
        return;
    }
    let (a, b) = two.both("f");
    write(&a, b"program");
    // Version 2, CAP_NET_RAW permitted and effective.
    let cap: Vec<u8> = [0x0200_0001u32, 1 << 13, 0, 0, 0].iter().flat_map(|w| w.to_le_bytes()).collect();
    let name = "security.capability";
    for how in ["write", "truncate", "O_TRUNC", "chown"] {
        chmod(&a, 0o6755);
        set(&a, name, &cap);
        has(&b, name, &cap);
        let file = File::options().write(true).open(&b).expect("open");
        match how {
            "write" => file.write_all_at(b"P", 0).expect("write"),
            "truncate" => file.set_len(3).expect("cut"),
            "O_TRUNC" => write(&b, b"other"),
            _ => chown(&b, Some(0), Some(0)).expect("chown"),
        }
        drop(file);
        has_not(&a, name);
        // Root keeps set-id bits, but for a chown.
        assert_eq!(mode(&a), if how == "chown" { 0o755 } else { 0o6755 }, "{how}");
    }
    // Others do not, whatever the kernel had kept of the file.
    for script in [
        "printf x >>f",
        "printf x 1<>f",
        ": >f",
        "truncate -s 5 f",
        "fallocate -l 100 f",
        "dd if=/dev/zero of=f bs=1 count=1 conv=notrunc status=none",
    ] {
        chmod(&a, 0o6777);
        set(&a, name, &cap);
        assert_eq!(mode(&b), 0o6777);
        does(BOB, &two.b, &format!("{script}; stat -c %a f >/dev/null"));
        assert_eq!((mode(&b), mode(&a)), (0o777, 0o777), "{script}");
        has_not(&a, name);
    }
    // A descriptor that was there before.
    chmod(&a, 0o777);
    let script =
        "exec 5<>f; printf 1 >&5; touch opened; while test -e opened; do sleep 0.01; done; printf 2 >&5";
    let dir = two.b.clone();
    chmod(&two.a, 0o777);
    let other = std::thread::spawn(move || as_user(BOB, &dir, script));
    hfcache_tests::eventually("it is open", Duration::from_secs(20), || two.a.join("opened").exists());
    chmod(&a, 0o4777);
    set(&a, name, &cap);
    fs::remove_file(two.a.join("opened")).expect("go on");
    other.join().expect("joined").expect("is root").expect("writes");
    assert_eq!(mode(&a), 0o777);
    has_not(&a, name);
}
