//! Many users on one cache: shared trees, and what a mount shows to whom. With real users of this machine, so
//! only root can run these.

use hfcache_tests::node::{Node, run};
use hfcache_tests::two::{errno, stat, write};
use hfcache_tests::xattr::{self, ACCESS, DEFAULT, acl};
use hfcache_tests::{Checks, Cluster, sys};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const ALICE: Person = Person { uid: 1001, groups: "1001,3000" };
const BOB: Person = Person { uid: 1002, groups: "1002" };
const ROOT: Person = Person { uid: 0, groups: "0" };
/// A group with Alice in it, and without Bob.
const READERS: u32 = 3000;

/// A user, whose own group has his number.
#[derive(Clone, Copy)]
struct Person {
    uid: u32,
    groups: &'static str,
}

impl Person {
    /// Runs a script in a directory; answers with what it printed, or failed with.
    fn tries(self, dir: &Path, script: &str) -> Result<String, String> {
        let mut command = Command::new("setpriv");
        command.arg(format!("--reuid={}", self.uid)).arg(format!("--regid={}", self.uid));
        command.arg(format!("--groups={}", self.groups)).args(["sh", "-euc", script]).current_dir(dir);
        if self.uid == 0 {
            command = Command::new("sh");
            command.args(["-euc", script]).current_dir(dir);
        }
        let output = run(command, Duration::from_secs(60)).expect("the script ends");
        let said = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
        if output.status.success() {
            Ok(said)
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    #[track_caller]
    fn does(self, dir: &Path, script: &str) -> String {
        self.tries(dir, script).unwrap_or_else(|why| panic!("user {}: {script}: {why}", self.uid))
    }

    #[track_caller]
    fn may_not(self, dir: &Path, script: &str, why: &str) {
        match self.tries(dir, script) {
            Ok(said) => panic!("user {} could: {script}: {said}", self.uid),
            Err(said) => assert!(said.contains(why), "user {}: {script}: {said}", self.uid),
        }
    }
}

/// A check by its name.
type Check = (&'static str, fn(&mut World));

/// Two nodes of a cluster.
struct World {
    cluster: Cluster,
}

impl World {
    fn node(&self, index: usize) -> &Node {
        self.cluster.node(index)
    }

    /// A directory as each of the nodes shows it.
    fn both(&self, name: &str) -> (PathBuf, PathBuf) {
        (self.cluster.path(0, name), self.cluster.path(1, name))
    }

    /// A new directory of one user.
    fn dir(&self, name: &str, owner: Person, mode: u32) -> (PathBuf, PathBuf) {
        let (a, b) = self.both(name);
        fs::create_dir(&a).expect("mkdir");
        chown(&a, Some(owner.uid), Some(owner.uid)).expect("chown");
        fs::set_permissions(&a, fs::Permissions::from_mode(mode)).expect("chmod");
        (a, b)
    }

    /// `hfcache …` on a node.
    fn call(&self, node: usize, args: &[&str]) -> String {
        let data = self.node(node).data_arg();
        let mut all = args.to_vec();
        all.extend(["--data", &data]);
        self.node(node).call_ok(&all)
    }

    /// `hfcache … --json` on a node.
    fn json(&self, node: usize, args: &[&str]) -> Value {
        self.node(node).json(args)
    }

    /// What `hfcache …` says when it fails.
    fn refused(&self, node: usize, args: &[&str]) -> String {
        let data = self.node(node).data_arg();
        let mut all = args.to_vec();
        all.extend(["--data", &data]);
        let output = self.node(node).call(&all);
        assert_eq!(output.status.code(), Some(1), "hfcache {args:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Runs the second node with these keys of `[mount]`, besides the usual ones.
    fn remount(&mut self, keys: &str) {
        let node = self.cluster.node_mut(1);
        let file = node.data().join("hfcache.toml");
        let kept = file.with_extension("kept");
        if !kept.exists() {
            fs::copy(&file, &kept).expect("keep the configuration");
        }
        let key = |line: &str| line.split(" =").next().unwrap_or_default().to_owned();
        let given: Vec<String> = keys.lines().map(key).collect();
        let before = fs::read_to_string(kept).expect("read the configuration");
        let others: Vec<&str> = before.lines().filter(|line| !given.contains(&key(line))).collect();
        let text = others.join("\n").replace("[mount]", &format!("[mount]\n{keys}"));
        fs::write(&file, text).expect("write the configuration");
        node.stop();
        node.start();
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("plain names")
}

/// Nothing that a user does keeps the next one out, whichever node either is on.
fn shared_tree(world: &mut World) {
    let (a, b) = world.dir("hub", ALICE, 0o700);
    // What was there before is opened, too.
    ALICE.does(&a, "umask 077; mkdir old; echo old >old/f; chmod 1700 old");
    BOB.may_not(&b, "cat old/f", "Permission denied");
    let seen = world.json(0, &["share", "set", text(&a), "--dry-run"]);
    assert_eq!((seen["seen"].as_u64(), seen["opened"].as_u64()), (Some(2), Some(2)));
    BOB.may_not(&b, "cat old/f", "Permission denied");
    let opened = world.json(1, &["share", "set", text(&b)]);
    assert_eq!(opened, seen);
    assert_eq!(BOB.does(&b, "cat old/f; rm -r old; ls"), "old");
    // A client with a private umask: directories, a lock, a temporary file of mode 0600, a rename, a link.
    ALICE.does(
        &a,
        "umask 077; mkdir -p models--x/blobs models--x/refs; exec 9>lock; flock -n 9; \
         touch models--x/blobs/tmp; chmod 0600 models--x/blobs/tmp; echo bytes >models--x/blobs/tmp; \
         mv models--x/blobs/tmp models--x/blobs/b; chmod 0600 models--x/blobs/b; chmod 0700 models--x; \
         ln -s blobs/b models--x/link; echo 1 >models--x/refs/main",
    );
    assert_eq!(stat(&b.join("models--x/blobs/b")).mode() & 0o7777, 0o666);
    assert_eq!(stat(&b.join("models--x")).mode() & 0o7777, 0o2777);
    assert_eq!(
        BOB.does(
            &b,
            "umask 077; exec 9<>lock; flock -n 9; cat models--x/link; echo more >>models--x/blobs/b; \
             echo 2 >models--x/refs/main.tmp; mv models--x/refs/main.tmp models--x/refs/main; mkdir models--x/mine"
        ),
        "bytes"
    );
    // And back: read what he wrote, use what he made, delete all of it.
    assert_eq!(
        ALICE.does(&a, "cat models--x/refs/main models--x/link; touch models--x/mine/f; rm -r models--x; ls"),
        "2\nbytes\nmore\nlock"
    );
    // A file from elsewhere in the tree, moved in by its owner; and by another, who gets nothing by it.
    let (out_a, out_b) = world.dir("out", ALICE, 0o777);
    ALICE.does(&out_a, "umask 077; echo mine >f; echo secret >s; mv f ../hub/f");
    assert_eq!(BOB.does(&b, "cat f"), "mine");
    BOB.does(&out_b, "mv s ../hub/s");
    BOB.may_not(&b, "cat s", "Permission denied");
    // Nothing is opened outside.
    ALICE.does(&out_a, "umask 077; echo x >private");
    BOB.may_not(&out_b, "cat private", "Permission denied");
}

/// A gated repository inside a shared tree is for its group only.
fn gated_group(world: &mut World) {
    let (a, b) = world.dir("gate", ALICE, 0o755);
    world.call(0, &["share", "set", text(&a)]);
    ALICE.does(&a, "mkdir gated; echo weights >gated/early");
    let (gated_a, gated_b) = (a.join("gated"), b.join("gated"));
    let said = world.call(0, &["share", "set", text(&gated_a), "--group", "3000"]);
    assert!(said.contains("group 3000") && said.contains("1 of 1 entries"), "{said}");
    ALICE.does(&gated_a, "echo more >late; chmod 666 late; chgrp 1001 late; mkdir -m 777 d; touch d/f");
    for name in ["early", "late", "d/f"] {
        let found = stat(&gated_b.join(name));
        assert_eq!((found.mode() & 0o7777, found.gid()), (0o660, READERS), "{name}");
    }
    let dir = stat(&gated_b.join("d"));
    assert_eq!((dir.mode() & 0o7777, dir.gid()), (0o2770, READERS));
    BOB.may_not(&b, "ls gated", "Permission denied");
    BOB.may_not(&b, "cat gated/late", "Permission denied");
    let member = Person { uid: 1003, groups: "3000" };
    assert_eq!(member.does(&gated_b, "umask 077; cat early late; echo by >by"), "weights\nmore");
    assert_eq!(ALICE.does(&gated_a, "cat by; rm by"), "by");
    // Both are listed, by each node with its own paths.
    let list = world.json(1, &["share", "ls"]);
    let entry = |path: &Path| {
        list.as_array().and_then(|l| l.iter().find(|s| s["path"] == text(path))).cloned().unwrap_or_default()
    };
    assert_eq!(entry(&b)["group"], Value::Null);
    assert!(entry(&b).is_object(), "{list}");
    assert_eq!(entry(&gated_b)["group"], READERS);
    world.call(1, &["share", "clear", text(&gated_b)]);
    let again = world.refused(0, &["share", "clear", text(&gated_a)]);
    assert!(again.contains("no shared tree"), "{again}");
    assert!(world.refused(0, &["share", "set", "/"]).contains("is not in this node's mount"));
    assert!(world.refused(0, &["share", "set", text(&gated_a.join("early"))]).contains("no directory"));
    assert!(world.refused(0, &["share", "set", text(&gated_a), "--group", "no-such"]).contains("no-such"));
}

/// Every change is refused, by the kernel and by the daemon.
fn read_only(world: &mut World) {
    let (a, b) = world.dir("ro", ALICE, 0o755);
    write(&a.join("f"), b"there\n");
    world.remount("read_only = true");
    assert_eq!(BOB.does(&b, "cat f; ls; grep -q ' ro,' /proc/self/mountinfo; flock -s f true"), "there\nf");
    for script in
        ["echo x >f", "touch new", "rm f", "mkdir d", "mv f g", "ln -s x y", "chmod 600 f", "truncate -s 0 f"]
    {
        ROOT.may_not(&b, script, "Read-only file system");
    }
    // Root can take the kernel's part away, not the daemon's.
    let mount = world.node(1).mount();
    ROOT.does(Path::new("/"), &format!("mount -i -o remount,rw '{}'", text(&mount)));
    ROOT.may_not(&b, "echo x >f", "Read-only file system");
    ROOT.may_not(&b, "rm f", "Read-only file system");
    assert_eq!(errno(xattr::set(&b.join("f"), "user.x", b"")), libc::EROFS);
    assert_eq!(errno(xattr::set(&b.join("f"), ACCESS, &acl("u::rw g::r o::-"))), libc::EROFS);
    xattr::set(&a.join("f"), "user.x", b"1").expect("set on the other node");
    assert_eq!(xattr::get(&b.join("f"), "user.x").expect("get"), b"1");
    assert_eq!(errno(xattr::remove(&b.join("f"), "user.x")), libc::EROFS);
    // What others change is seen.
    write(&a.join("g"), b"new");
    assert_eq!(BOB.does(&b, "cat g"), "new");
}

/// The mount's root is a directory of the tree, and nothing above it is there.
fn subdir(world: &mut World) {
    let (a, _) = world.dir("team", ALICE, 0o777);
    fs::create_dir(a.join("part")).expect("mkdir");
    fs::set_permissions(a.join("part"), fs::Permissions::from_mode(0o777)).expect("chmod");
    write(&a.join("part/f"), b"inside\n");
    write(&a.join("secret"), b"outside");
    world.remount("subdir = \"/team/part\"");
    let mount = world.node(1).mount();
    assert_eq!(
        BOB.does(&mount, "cat f; ls -a; mkdir d; echo deep >d/g; mv d/g d/h; cat d/../f"),
        "inside\n.\n..\nf\ninside"
    );
    // The way up from the mount's root leads out of the mount.
    assert_ne!(stat(&mount.join("..")).dev(), stat(&mount).dev());
    assert!(!mount.join("../secret").exists() && !mount.join("secret").exists());
    assert_eq!(fs::read(a.join("part/d/h")).expect("read"), b"deep\n");
    let root = fs::read_dir(&mount).expect("list").count();
    assert_eq!(root, 2);
    ROOT.does(&mount, "df . >/dev/null; stat . >/dev/null");
    // Paths of this mount in commands, also of other nodes.
    world.call(1, &["share", "set", text(&mount.join("d"))]);
    assert_eq!(stat(&a.join("part/d")).mode() & 0o7777, 0o2777);
    let list = world.json(0, &["share", "ls"]).to_string();
    assert!(list.contains(text(&a.join("part/d"))), "{list}");
    assert!(world.json(1, &["share", "ls"]).to_string().contains("(tree)/hub"));
    // A directory that is not there is no mount.
    let node = world.cluster.node_mut(1);
    let file = node.data().join("hfcache.toml");
    let config = fs::read_to_string(&file).expect("read the configuration");
    fs::write(&file, config.replace("/team/part", "/team/gone")).expect("write the configuration");
    node.stop();
    let output = node.call(&["node", "run", "--data", &node.data_arg()]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("/team/gone is not in the tree"), "{said}");
    fs::write(&file, config).expect("write the configuration");
    node.start();
}

/// Root of this machine is nobody.
fn squash_root(world: &mut World) {
    let (a, b) = world.dir("sq", ALICE, 0o755);
    ALICE.does(&a, "umask 077; echo mine >private; echo all >public; chmod 644 public; mkdir dir; echo in >dir/f; chmod 644 dir/f");
    fs::create_dir(a.join("open")).expect("mkdir");
    fs::set_permissions(a.join("open"), fs::Permissions::from_mode(0o1777)).expect("chmod");
    ALICE.does(&a, "echo x >open/hers");
    world.remount("squash = \"root\"\nanon_uid = 4001\nanon_gid = 4002");
    // Attributes: by the mode, and what is root's is not for him.
    for (name, value) in [("user.x", "x"), ("trusted.x", "x"), ("security.x", "x")] {
        xattr::set(&a.join("private"), name, value.as_bytes()).expect("set");
    }
    xattr::set(&a.join("public"), "user.x", b"x").expect("set");
    assert_eq!(errno(xattr::get(&b.join("private"), "user.x")), libc::EACCES);
    assert_eq!(errno(xattr::get(&b.join("private"), "trusted.x")), libc::ENODATA);
    assert_eq!(xattr::list(&b.join("private")).expect("list"), ["security.x", "user.x"]);
    assert_eq!(xattr::get(&b.join("public"), "user.x").expect("get"), b"x");
    for (name, why) in [("user.x", libc::EACCES), ("trusted.x", libc::EPERM), ("security.x", libc::EPERM)] {
        assert_eq!(errno(xattr::set(&b.join("public"), name, b"y")), why, "{name}");
        assert_eq!(errno(xattr::remove(&b.join("public"), name)), why, "{name}");
    }
    let list = acl("u::rw u:1002:rw g::r m::rw o::-");
    assert_eq!(errno(xattr::set(&b.join("public"), ACCESS, &list)), libc::EPERM);
    assert_eq!(errno(xattr::remove(&b.join("public"), ACCESS)), libc::EPERM);
    write(&b.join("open/own"), b"");
    xattr::set(&b.join("open/own"), ACCESS, &list).expect("he owns it");
    xattr::set(&b.join("open/own"), "user.x", b"x").expect("he owns it");
    assert_eq!(xattr::list(&a.join("open/own")).expect("list"), [ACCESS, "user.x"]);
    // A list is kept to for everybody else.
    BOB.does(&b, "echo x >>open/own");
    fs::remove_file(b.join("open/own")).expect("remove");
    // Alice first, so that the kernel knows the names.
    assert_eq!(ALICE.does(&b, "cat private dir/f; echo more >>private; ls -l dir >/dev/null"), "mine\nin");
    assert_eq!(ROOT.does(&b, "cat public"), "all");
    for script in
        ["cat private", "echo x >public", "cat dir/f", "ls dir", "touch new", "rm public", "mkdir d"]
    {
        ROOT.may_not(&b, script, "Permission denied");
    }
    for script in ["chmod 777 public", "chown 0 public", "rm -f open/hers"] {
        ROOT.may_not(&b, script, "Operation not permitted");
    }
    ROOT.does(&b, "umask 022; echo r >open/r; mkdir open/d; chmod 600 open/r; cat open/r; mv open/r open/q; rm -r open/d");
    let made = stat(&a.join("open/q"));
    assert_eq!((made.uid(), made.gid(), made.mode() & 0o7777), (4001, 4002, 0o600));
    assert_eq!(stat(&b.join("open/q")).uid(), 4001);
}

/// Everybody is one and the same user.
fn squash_all(world: &mut World) {
    let (a, b) = world.dir("all", ALICE, 0o755);
    ALICE.does(
        &a,
        "echo hers >hers; echo none >private; chmod 600 private; mkdir dir; chmod 700 dir; echo in >dir/f",
    );
    fs::create_dir(a.join("open")).expect("mkdir");
    fs::set_permissions(a.join("open"), fs::Permissions::from_mode(0o1777)).expect("chmod");
    world.remount("squash = \"all\"\nanon_uid = 4001\nanon_gid = 4002");
    // What one makes, the other may use as its owner; sticky directories, too.
    BOB.does(&b.join("open"), "umask 077; echo b >f; mkdir d; echo deep >d/g");
    assert_eq!(
        ALICE.does(
            &b.join("open"),
            "cat f d/g; chmod 640 f; touch -d 2001-01-01 f; mv f g; rm -r d; test -w g; ls"
        ),
        "b\ndeep\ng"
    );
    let made = stat(&a.join("open/g"));
    assert_eq!(
        (made.uid(), made.gid(), made.mode() & 0o7777, made.mtime()),
        (4001, 4002, 0o640, 978_307_200)
    );
    // Attributes by the mode, and no lists.
    let list = acl("u::rw u:4001:rw g::r m::rw o::r");
    xattr::set(&a.join("hers"), ACCESS, &list).expect("set");
    xattr::set(&a.join("hers"), "user.x", b"x").expect("set");
    assert_eq!(xattr::list(&b.join("hers")).expect("list"), ["user.x"]);
    assert_eq!(errno(xattr::get(&b.join("hers"), ACCESS)), libc::EOPNOTSUPP);
    assert_eq!(errno(xattr::set(&b.join("open/g"), ACCESS, &list)), libc::EOPNOTSUPP);
    assert_eq!(errno(xattr::set(&b.join("open"), DEFAULT, &list)), libc::EOPNOTSUPP);
    assert_eq!(xattr::get(&b.join("hers"), "user.x").expect("get"), b"x");
    assert_eq!(errno(xattr::set(&b.join("hers"), "user.x", b"y")), libc::EACCES);
    xattr::set(&b.join("open/g"), "user.x", b"y").expect("his own");
    // And nobody is Alice, not even she.
    for who in [ALICE, BOB, ROOT] {
        assert_eq!(who.does(&b, "cat hers"), "hers");
        for script in [
            "cat private",
            "cat dir/f",
            "ls dir",
            "test -r private || cat private",
            "echo x >hers",
            "touch new",
        ] {
            who.may_not(&b, script, "ermission denied");
        }
        who.may_not(&b, "cd dir", "can't cd");
        who.may_not(&b, "chmod 666 hers", "Operation not permitted");
    }
}

/// Numbers that differ between this machine and the cluster.
fn maps(world: &mut World) {
    let (a, b) = world.dir("ids", ALICE, 0o777);
    // Of the cluster: Alice is 5001, and her group 5101; 1001 is somebody else.
    write(&a.join("theirs"), b"not hers");
    chown(a.join("theirs"), Some(1001), Some(1001)).expect("chown");
    fs::set_permissions(a.join("theirs"), fs::Permissions::from_mode(0o600)).expect("chmod");
    write(&a.join("hers"), b"hers\n");
    chown(a.join("hers"), Some(5001), Some(5101)).expect("chown");
    fs::set_permissions(a.join("hers"), fs::Permissions::from_mode(0o600)).expect("chmod");
    world.remount("users = [\"1001:5001\"]\ngroups = [\"1001:5101:2\"]");
    assert_eq!(
        ALICE.does(&b, "cat hers; stat -c %u:%g hers; ls -ln hers | cut -d ' ' -f 3,4"),
        "hers\n1001:1001\n1001 1001"
    );
    ALICE.may_not(&b, "cat theirs", "Permission denied");
    assert_eq!(stat(&b.join("theirs")).uid(), 65_534, "nobody's here");
    ALICE.does(&b, "umask 077; echo new >new; chgrp 1001 new");
    let made = stat(&a.join("new"));
    assert_eq!((made.uid(), made.gid()), (5001, 5101));
    ROOT.does(&b, "touch given; chown 1001:1002 given");
    let given = stat(&a.join("given"));
    assert_eq!((given.uid(), given.gid()), (5001, 5102));
    // Numbers in access control lists, too. Who is nobody here is in no list.
    xattr::set(&b.join("given"), ACCESS, &acl("u::- u:1001:rw g::- g:1002:r m::rw o::-")).expect("set");
    let stored = acl("u::- u:5001:rw g::- g:5102:r m::rw o::-");
    assert_eq!(xattr::get(&a.join("given"), ACCESS).expect("get"), stored);
    xattr::set(&a.join("new"), ACCESS, &acl("u::rw u:7:r u:1001:rw u:5001:r g::- m::r o::-")).expect("set");
    let shown = xattr::get(&b.join("new"), ACCESS).expect("get");
    assert_eq!(shown, acl("u::rw u:7:r u:1001:r g::- m::r o::-"));
    assert_eq!(
        errno(xattr::set(&b.join("given"), ACCESS, &acl("u::- u:5001:rw g::- m::rw o::-"))),
        libc::EINVAL
    );
    chown(a.join("new"), Some(0), Some(0)).expect("chown");
    ALICE.does(&b, "cat new");
    Person { uid: 5001, groups: "5001" }.may_not(&b, "cat new", "Permission denied");
    BOB.may_not(&b, "cat new", "Permission denied");
    // Who is not named is who he is; and this machine's 5001 is not the cluster's.
    BOB.does(&b, "touch his");
    assert_eq!(stat(&a.join("his")).uid(), 1002);
    let other = Person { uid: 5001, groups: "5001" };
    other.may_not(&b, "cat hers", "Permission denied");
    // What he makes is nobody's, so that he may not even set its times.
    other.does(&b, ": >others");
    assert_eq!(stat(&a.join("others")).uid(), 65_534);
}

#[test]
fn many_users_share_one_cache() {
    if !sys::is_root() {
        eprintln!("SKIPPED: needs root, to be several users");
        return;
    }
    let mut world = World { cluster: Cluster::start("users", 2) };
    let mut checks = Checks::default();
    let all: [Check; 7] = [
        ("shared_tree", shared_tree),
        ("gated_group", gated_group),
        ("read_only", read_only),
        ("subdir", subdir),
        ("squash_root", squash_root),
        ("squash_all", squash_all),
        ("maps", maps),
    ];
    for (name, check) in all {
        checks.run(name, || check(&mut world));
    }
    checks.finish();
}
