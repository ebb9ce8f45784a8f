//! Quotas, usage and `statfs` on two nodes: exact on both, told to the writer at once.

use hfcache_tests::sys::{self, space};
use hfcache_tests::two::{Two, errno, stat, write};
use hfcache_tests::{Checks, Cluster, eventually};
use serde_json::Value;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt, MetadataExt, chown, symlink};
use std::path::Path;
use std::time::Duration;

const MIB: u64 = 1 << 20;
const USER: u32 = 4_711;
/// A node that has just joined has a lease by then.
const LEASE: Duration = Duration::from_secs(30);

struct World {
    cluster: Cluster,
}

impl World {
    fn call(&self, node: usize, args: &[&str]) -> (Option<i32>, String, String) {
        self.cluster.node(node).tell(args)
    }

    #[track_caller]
    fn json(&self, node: usize, args: &[&str]) -> Value {
        self.cluster.node(node).json(args)
    }

    /// Runs a check in a new directory.
    fn check(&self, checks: &mut Checks, name: &'static str, body: fn(&Self, &Two)) {
        let two = Two { a: self.cluster.path(0, name), b: self.cluster.path(1, name) };
        fs::create_dir(&two.a).expect("make the check's directory");
        checks.run(name, || body(self, &two));
    }

    /// What both nodes say that a directory uses.
    fn du(&self, two: &Two) -> (u64, u64) {
        let [a, b] = [(0, &two.a), (1, &two.b)].map(|(node, path)| {
            let used = self.json(node, &["du", text(path)]);
            (used[0]["bytes"].as_u64().expect("bytes"), used[0]["inodes"].as_u64().expect("inodes"))
        });
        assert_eq!(a, b, "du on two nodes");
        a
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

/// Bytes and inodes as `du` of the system would find them, each inode once.
fn walk(at: &Path, seen: &mut std::collections::BTreeSet<u64>) -> (u64, u64) {
    let meta = stat(at);
    if !seen.insert(meta.ino()) {
        return (0, 0);
    }
    let mut sum = (meta.blocks() * 512, 1);
    if meta.is_dir() {
        for entry in fs::read_dir(at).expect("list") {
            let below = walk(&entry.expect("list").path(), seen);
            sum = (sum.0 + below.0, sum.1 + below.1);
        }
    }
    sum
}

fn bytes_are_exact_on_both_nodes(w: &World, two: &Two) {
    w.json(0, &["quota", "set", text(&two.a), "--bytes", "1MiB"]);
    let full = vec![7; MIB as usize];
    write(&two.b.join("f"), &full);
    assert_eq!(w.du(two), (MIB, 2));
    // The writer hears of it at the write, on either node; over what is there goes on.
    for dir in [&two.a, &two.b] {
        // (Before a node has its first lease it is told at the close.)
        eventually("the writer is told at the write", LEASE, || {
            let file = OpenOptions::new().write(true).open(dir.join("f")).expect("open");
            let told = file.write_at(b"x", MIB).map_err(|e| e.raw_os_error());
            if told.is_ok() {
                assert_eq!(errno(file.sync_all()), libc::EDQUOT);
            }
            told == Err(Some(libc::EDQUOT))
        });
        let file = OpenOptions::new().write(true).open(dir.join("f")).expect("open");
        file.write_all_at(&full[..5_000], 100).expect("write over");
        file.sync_all().expect("it does not grow");
        drop(file);
        let new = File::create(dir.join("g")).expect("create");
        let told = (&new).write(b"x").and_then(|_| new.sync_all());
        assert_eq!(errno(told), libc::EDQUOT);
    }
    assert_eq!(w.du(two), (MIB, 3));
    // Away with it, and it can be used again, by the other node at once.
    fs::remove_file(two.a.join("f")).expect("remove");
    write(&two.b.join("g"), &full);
    assert_eq!(w.du(two), (MIB, 2));
    let limit = w.json(1, &["quota", "get", text(&two.b)]);
    assert_eq!((&limit["bytes"]["used"], &limit["bytes"]["limit"]), (&MIB.into(), &MIB.into()));
    w.json(1, &["quota", "clear", text(&two.b)]);
    write(&two.a.join("h"), &full);
}

fn two_writers_share_what_is_left(w: &World, two: &Two) {
    w.json(0, &["quota", "set", text(&two.a), "--bytes", "1MiB"]);
    // Neither has committed anything, so both have room; who comes first takes it.
    let part = vec![1; 700_000];
    let open = |dir: &Path, name: &str| {
        let file = File::create(dir.join(name)).expect("create");
        file.write_all_at(&part, 0).expect("write");
        file
    };
    let (first, second) = (open(&two.a, "first"), open(&two.b, "second"));
    first.sync_all().expect("the first fits");
    assert_eq!(errno(second.sync_all()), libc::EDQUOT);
    drop((first, second));
    assert_eq!(w.du(two), (700_000, 3));
    assert_eq!(stat(&two.a.join("second")).len(), 0);
}

fn inodes_renames_and_links(w: &World, two: &Two) {
    let (q, out) = (two.a.join("q"), two.a.join("out"));
    fs::create_dir(&q).expect("mkdir");
    fs::create_dir(&out).expect("mkdir");
    w.json(1, &["quota", "set", text(&two.b.join("q")), "--bytes", "64KiB", "--inodes", "3"]);
    write(&q.join("one"), b"1");
    fs::create_dir(two.b.join("q/two")).expect("mkdir");
    assert_eq!(errno(File::create(two.b.join("q/three"))), libc::EDQUOT);
    assert_eq!(errno(fs::create_dir(q.join("three"))), libc::EDQUOT);
    assert_eq!(errno(symlink("x", q.join("three"))), libc::EDQUOT);
    fs::hard_link(q.join("one"), q.join("two/again")).expect("another name is no inode");
    fs::remove_file(q.join("two/again")).expect("remove");
    write(&out.join("f"), &[1; 512]);
    assert_eq!(errno(fs::rename(out.join("f"), q.join("f"))), libc::EDQUOT);
    fs::rename(out.join("f"), q.join("one")).expect("in the place of another");
    fs::remove_dir(q.join("two")).expect("rmdir");
    write(&out.join("big"), &[1; 65 << 10]);
    assert_eq!(errno(fs::rename(out.join("big"), q.join("big"))), libc::EDQUOT);
    fs::rename(q.join("one"), out.join("one")).expect("out of it");
    let listed = w.json(0, &["quota", "ls"]);
    let mine = listed.as_array().expect("a list").iter().find(|l| l["path"] == text(&q)).expect("is listed");
    assert_eq!((&mine["inodes"]["used"], &mine["inodes"]["limit"]), (&1.into(), &3.into()));
    fs::remove_dir(&q).expect("a quota goes with its directory");
    assert!(
        w.json(1, &["quota", "ls"]).as_array().expect("a list").iter().all(|l| l["inodes"]["limit"] != 3)
    );
}

fn users(w: &World, two: &Two) {
    let user = USER.to_string();
    w.json(0, &["quota", "set", "--uid", &user, "--bytes", "8KiB", "--inodes", "2"]);
    for (name, len) in [("small", 6 << 10), ("large", 9 << 10), ("empty", 0)] {
        write(&two.a.join(name), &vec![1; len]);
    }
    let give = |name: &str| chown(two.b.join(name), Some(USER), Some(USER));
    assert_eq!(errno(give("large")), libc::EDQUOT);
    give("small").expect("fits");
    give("empty").expect("fits");
    assert_eq!(stat(&two.a.join("small")).uid(), USER);
    write(&two.a.join("more"), b"");
    assert_eq!(errno(give("more")), libc::EDQUOT);
    // Whoever writes: it is the owner's.
    let file = OpenOptions::new().append(true).open(two.a.join("small")).expect("open");
    (&file).write_all(&[1; 2 << 10]).expect("to the byte");
    file.sync_all().expect("to the byte");
    let told = (&file).write(b"x").and_then(|_| file.sync_all());
    assert_eq!(errno(told), libc::EDQUOT);
    drop(file);
    let got = w.json(1, &["quota", "get", "--uid", &user]);
    assert_eq!((&got["bytes"]["used"], &got["inodes"]["used"]), (&(8 << 10).into(), &2.into()));
    w.json(1, &["quota", "clear", "--uid", &user]);
    give("large").expect("no limit any more");
}

fn usage_is_what_a_walk_finds(w: &World, two: &Two) {
    for n in 0..40u32 {
        let dir = two.a.join(format!("d{}/e{}", n % 3, n % 5));
        fs::create_dir_all(&dir).expect("mkdir");
        // Multiples of 512, because a walk sees blocks.
        write(&dir.join(format!("f{n}")), &vec![1; 512 * (n as usize * 7 % 50)]);
    }
    let sparse = File::create(two.b.join("sparse")).expect("create");
    sparse.write_all_at(&[1; 512], 10 * MIB).expect("write");
    drop(sparse);
    fs::hard_link(two.b.join("sparse"), two.b.join("d0/sparse")).expect("link");
    symlink("sparse", two.b.join("link")).expect("symlink");
    fs::rename(two.b.join("d1"), two.b.join("d2/d1")).expect("rename");
    fs::remove_dir_all(two.b.join("d0/e3")).expect("remove");
    let walked = walk(&two.a, &mut Default::default());
    assert_eq!(walk(&two.b, &mut Default::default()), walked);
    assert_eq!(w.du(two), walked);
    let below = Two { a: two.a.join("d2"), b: two.b.join("d2") };
    assert_eq!(w.du(&below), walk(&below.a, &mut Default::default()));
}

fn statfs_tells_of_the_quota(w: &World, two: &Two) {
    let whole = space(&two.a).expect("statfs");
    fs::create_dir_all(two.a.join("q/deep")).expect("mkdir");
    w.json(0, &["quota", "set", text(&two.a.join("q")), "--bytes", "4MiB", "--inodes", "10"]);
    write(&two.a.join("q/deep/f"), &vec![1; MIB as usize]);
    for dir in [&two.a, &two.b] {
        for within in ["q", "q/deep", "q/deep/f"] {
            let seen = space(&dir.join(within)).expect("statfs");
            assert_eq!((seen.total, seen.available), (4 * MIB, 3 * MIB), "{within}");
            assert_eq!(sys::inodes(&dir.join(within)).expect("statfs"), (10, 7), "{within}");
        }
        assert_eq!(space(dir).expect("statfs").total, whole.total);
    }
}

fn wrong_use_is_explained(w: &World, two: &Two) {
    write(&two.a.join("f"), b"x");
    let file = text(&two.a).to_owned() + "/f";
    for (args, code, said) in [
        (vec!["quota", "set", &file, "--bytes", "1MiB"], 1, "no directory"),
        (vec!["quota", "set", "--uid", "0", "--bytes", "1MiB"], 1, "set one on a directory"),
        (vec!["quota", "set", "/", "--bytes", "1MiB"], 1, "not in this node's mount"),
        (vec!["quota", "set", "--uid", "1"], 2, "--bytes"),
        (vec!["quota", "set", "--uid", "1", "--gid", "1", "--inodes", "1"], 2, "cannot be used with"),
        (vec!["quota", "set", "--uid", "1", "--bytes", "much"], 2, "write 4096, 500MB"),
        (vec!["quota", "get"], 2, "--uid"),
        (vec!["du"], 2, "PATH"),
        (vec!["du", "/nowhere"], 1, "not in this node's mount"),
    ] {
        let (status, _, err) = w.call(0, &args);
        assert_eq!(status, Some(code), "{args:?}: {err}");
        assert!(err.contains(said), "{args:?}: {err}");
    }
    let (status, out, _) = w.call(0, &["du", &file]);
    assert_eq!(status, Some(0));
    assert!(out.contains("1 B") && out.contains(&file), "{out}");
}

#[test]
fn quotas_hold_on_every_node() {
    let w = World { cluster: Cluster::start("quota", 2) };
    let mut checks = Checks::default();
    w.check(&mut checks, "bytes", bytes_are_exact_on_both_nodes);
    w.check(&mut checks, "writers", two_writers_share_what_is_left);
    w.check(&mut checks, "inodes", inodes_renames_and_links);
    w.check(&mut checks, "walk", usage_is_what_a_walk_finds);
    w.check(&mut checks, "statfs", statfs_tells_of_the_quota);
    w.check(&mut checks, "wrong", wrong_use_is_explained);
    // Files are given away, which only root can.
    if sys::is_root() {
        w.check(&mut checks, "users", users);
    } else {
        eprintln!("NOT RUN: quotas of users: needs root, to give files away");
    }
    checks.finish();
}
