//! The trash: what one node deletes another gives its names back to, and it makes room when there is need.

use hfcache_tests::pattern::Pattern;
use hfcache_tests::two::{read, stat, write};
use hfcache_tests::{Checks, Cluster, Lab, eventually, sys, xattr};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

const SOON: Duration = Duration::from_secs(30);
const NODES: usize = 3;

/// A check by its name.
type Check = hfcache_tests::Check<World>;

struct World {
    cluster: Cluster,
}

/// What `stat` must say as before.
#[derive(Debug, PartialEq)]
struct Seen {
    mode: u32,
    owner: (u32, u32),
    mtime: Option<(i64, i64)>,
    content: Content,
}

#[derive(Debug, PartialEq)]
enum Content {
    Bytes(Vec<u8>),
    Target(PathBuf),
    Names(Vec<String>),
}

fn seen(path: &Path) -> Seen {
    let stat = fs::symlink_metadata(path).unwrap_or_else(|e| panic!("stat {}: {e}", path.display()));
    let content = if stat.is_symlink() {
        Content::Target(fs::read_link(path).expect("read a link"))
    } else if stat.is_dir() {
        Content::Names(hfcache_tests::two::names(path))
    } else {
        Content::Bytes(read(path))
    };
    // A directory's changes with what is put into it.
    let mtime = (!stat.is_dir()).then(|| (stat.mtime(), stat.mtime_nsec()));
    Seen { mode: stat.mode(), owner: (stat.uid(), stat.gid()), mtime, content }
}

fn rm_rf(path: &Path) {
    let status = Command::new("rm").arg("-rf").arg(path).status().expect("run rm");
    assert!(status.success(), "rm -rf {}", path.display());
    assert!(!path.exists());
}

impl World {
    fn path(&self, node: usize, name: &str) -> PathBuf {
        self.cluster.path(node, name)
    }

    fn text(&self, node: usize, name: &str) -> String {
        self.path(node, name).to_str().expect("a plain path").to_owned()
    }

    #[track_caller]
    fn json(&self, node: usize, args: &[&str]) -> Value {
        self.cluster.node(node).json(args)
    }

    fn call(&self, node: usize, args: &[&str]) -> (Option<i32>, String, String) {
        self.cluster.node(node).tell(args)
    }

    fn keep(&self, span: &str) {
        self.json(0, &["trash", "retention", span]);
    }

    /// Paths in the trash below a name, from the mount of a node.
    fn trashed(&self, node: usize, name: &str) -> Vec<String> {
        let listed = self.json(node, &["trash", "ls", &self.text(node, name)]);
        let mount = self.text(node, "");
        let rows = listed["list"].as_array().expect("a list");
        assert_eq!(listed["entries"], rows.len());
        let path = |row: &Value| {
            row["path"].as_str().expect("a path").strip_prefix(&mount).expect("in it").to_owned()
        };
        rows.iter().map(path).collect()
    }

    fn totals(&self) -> Value {
        let totals = &self.cluster.status(0)["totals"];
        json!({"inodes": totals["inodes"], "bytes": totals["bytes"], "chunks": totals["chunks"]})
    }

    /// A tree made through node 1, and what everybody must see of it.
    fn tree(&self, name: &str) -> Vec<(String, Seen)> {
        let top = self.path(0, name);
        fs::create_dir_all(top.join("snapshots/1a2b/deep")).expect("mkdir");
        fs::create_dir(top.join("blobs")).expect("mkdir");
        fs::create_dir(top.join("empty")).expect("mkdir");
        write(&top.join("blobs/small"), b"inline");
        Pattern::new(1, 300_000).write(&top.join("blobs/copied")).expect("write");
        Pattern::new(2, 5 << 20).write(&top.join("blobs/coded")).expect("write");
        symlink("../../blobs/small", top.join("snapshots/1a2b/config.json")).expect("symlink");
        write(&top.join("snapshots/1a2b/deep/f"), &[7; 5_000]);
        xattr::set(&top.join("blobs/small"), "user.note", b"kept").expect("setxattr");
        xattr::set(&top.join("snapshots"), "user.note", b"kept, too").expect("setxattr");
        fs::set_permissions(top.join("blobs/copied"), fs::Permissions::from_mode(0o640)).expect("chmod");
        fs::set_permissions(top.join("snapshots"), fs::Permissions::from_mode(0o2751)).expect("chmod");
        if sys::is_root() {
            chown(top.join("blobs/copied"), Some(4_711), Some(4_712)).expect("chown");
            chown(top.join("empty"), Some(4_711), Some(4_712)).expect("chown");
        }
        let then = SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789);
        File::open(top.join("blobs/coded")).and_then(|f| f.set_modified(then)).expect("set mtime");
        [
            "",
            "/snapshots",
            "/snapshots/1a2b",
            "/snapshots/1a2b/config.json",
            "/snapshots/1a2b/deep",
            "/snapshots/1a2b/deep/f",
            "/blobs",
            "/blobs/small",
            "/blobs/copied",
            "/blobs/coded",
            "/empty",
        ]
        .into_iter()
        .map(|below| (format!("{name}{below}"), seen(&self.path(0, &format!("{name}{below}")))))
        .collect()
    }

    #[track_caller]
    fn all_see(&self, tree: &[(String, Seen)]) {
        for node in 0..NODES {
            for (path, before) in tree {
                assert_eq!(&seen(&self.path(node, path)), before, "{path} on node {}", node + 1);
            }
        }
    }
}

fn off_frees_at_once(w: &World) {
    assert_eq!(w.json(2, &["trash", "retention"]), json!({"retention": 0}), "a new cluster keeps nothing");
    let before = w.totals();
    Pattern::new(9, 3 << 20).write(&w.path(0, "gone")).expect("write");
    assert_ne!(w.totals()["chunks"], before["chunks"]);
    fs::remove_file(w.path(1, "gone")).expect("remove");
    let (code, out, _) = w.call(2, &["trash", "ls"]);
    assert!(code == Some(0) && out.contains("0 entries") && out.contains("is off"), "{out}");
    eventually("its chunks are free", SOON, || w.totals()["chunks"] == before["chunks"]);
}

fn a_tree_comes_back_on_every_node(w: &World) {
    w.keep("1h");
    let tree = w.tree("models--a");
    w.all_see(&tree);
    rm_rf(&w.path(1, "models--a"));
    let mut listed = w.trashed(2, "models--a");
    listed.sort();
    let mut want: Vec<String> = tree.iter().map(|(path, _)| path.clone()).collect();
    want.sort();
    assert_eq!(listed, want);
    assert!(w.trashed(2, "models--").is_empty(), "only whole names count");
    // By its path from the root of the tree, too.
    assert_eq!(w.json(2, &["trash", "ls", "/models--a/blobs"])["entries"], 4);
    let (_, out, _) = w.call(0, &["trash", "ls", "/models--a"]);
    assert!(out.contains("models--a/blobs/\n") && out.contains("kept for 1h"), "{out}");
    assert_eq!(w.cluster.status(0)["totals"]["trash"], tree.len());
    let args = ["trash", "restore", &w.text(2, "models--a")];
    let would = w.json(2, &[&args[..], &["--dry-run"]].concat());
    assert!(!w.path(0, "models--a").exists(), "only said");
    let done = w.json(2, &args);
    assert_eq!((&done["files"], &done["directories"], &done["failed"]), (&json!(5), &json!(6), &json!(0)));
    assert_eq!((&would["files"], &would["directories"]), (&done["files"], &done["directories"]));
    w.all_see(&tree);
    assert!(w.trashed(0, "models--a").is_empty());
    for node in 0..NODES {
        xattr::has(&w.path(node, "models--a/blobs/small"), "user.note", b"kept");
        xattr::has(&w.path(node, "models--a/snapshots"), "user.note", b"kept, too");
    }
    // It can be used as before, also from where it was removed.
    write(&w.path(1, "models--a/empty/new"), b"new");
    assert_eq!(read(&w.path(0, "models--a/empty/new")), b"new");
}

fn nothing_that_is_there_is_overwritten(w: &World) {
    let (code, _, err) = w.call(0, &["trash", "restore", &w.text(0, "never")]);
    assert!(code == Some(1) && err.contains("trash ls"), "{err}");
    let d = w.path(0, "there");
    fs::create_dir_all(d.join("sub")).expect("mkdir");
    for name in ["one", "two", "sub/three"] {
        write(&d.join(name), name.as_bytes());
    }
    rm_rf(&w.path(1, "there"));
    fs::create_dir(&d).expect("mkdir");
    write(&d.join("one"), b"another");
    let (code, out, err) = w.call(2, &["trash", "restore", &w.text(2, "there")]);
    assert_eq!(code, Some(1), "{out}{err}");
    assert!(
        err.contains("there/one: something of that name is there") && out.contains("2 files"),
        "{out}{err}"
    );
    assert_eq!((read(&d.join("one")), read(&d.join("two"))), (b"another".to_vec(), b"two".to_vec()));
    assert_eq!(read(&w.path(2, "there/sub/three")), b"sub/three");
    // The other one can be put elsewhere: next to it, but not where there is no directory.
    let one = w.text(1, "there/one");
    let (code, _, err) = w.call(1, &["trash", "restore", &one, "--to", &w.text(1, "nowhere/one")]);
    assert!(code == Some(1) && err.contains("directory"), "{err}");
    w.json(1, &["trash", "restore", &one, "--to", &w.text(1, "there/one.old")]);
    assert_eq!(read(&w.path(0, "there/one.old")), b"one");
    // What was written over is kept as well, each version; the newest comes back.
    for text in ["first", "second", "third"] {
        write(&d.join("tmp"), text.as_bytes());
        fs::rename(d.join("tmp"), d.join("ref")).expect("rename");
    }
    assert_eq!(w.trashed(2, "there/ref").len(), 2);
    w.json(2, &["trash", "restore", &w.text(2, "there/ref"), "--to", &w.text(2, "there/before")]);
    assert_eq!(read(&w.path(1, "there/before")), b"second");
}

fn missing_directories_come_along(w: &World) {
    let deep = w.path(0, "x/y/z");
    fs::create_dir_all(&deep).expect("mkdir");
    fs::set_permissions(w.path(0, "x/y"), fs::Permissions::from_mode(0o711)).expect("chmod");
    write(&deep.join("wanted"), b"wanted");
    write(&deep.join("other"), b"other");
    rm_rf(&w.path(2, "x"));
    let done = w.json(1, &["trash", "restore", &w.text(1, "x/y/z/wanted")]);
    assert_eq!((&done["files"], &done["directories"]), (&json!(1), &json!(3)));
    assert_eq!(read(&w.path(2, "x/y/z/wanted")), b"wanted");
    assert_eq!(stat(&w.path(2, "x/y")).mode() & 0o7777, 0o711);
    assert!(!w.path(2, "x/y/z/other").exists());
    w.json(1, &["trash", "restore", &w.text(1, "x/y/z/other")]);
    assert_eq!(read(&w.path(0, "x/y/z/other")), b"other");
}

fn open_files_stay_open_and_save_again(w: &World) {
    // Removed and restored by the node where it is open, or by another.
    for (remover, restorer) in [(0, 0), (0, 1), (1, 0), (1, 2)] {
        let name = format!("open{remover}{restorer}");
        let path = w.path(0, &name);
        write(&path, b"0123456789");
        let mut file = File::options().read(true).append(true).open(&path).expect("open");
        fs::remove_file(w.path(remover, &name)).expect("remove");
        let mut text = String::new();
        file.read_to_string(&mut text).expect("read what has no name");
        assert_eq!(text, "0123456789");
        w.json(restorer, &["trash", "restore", &w.text(restorer, &name)]);
        eventually("its node knows", SOON, || file.metadata().expect("fstat").nlink() == 1);
        file.write_all(b"more").expect("write");
        drop(file);
        for node in 0..NODES {
            assert_eq!(read(&w.path(node, &name)), b"0123456789more", "{name} on node {}", node + 1);
        }
        fs::remove_file(&path).expect("it can be removed again");
        for node in 0..NODES {
            assert!(!w.path(node, &name).exists(), "{name} on node {}", node + 1);
        }
    }
}

fn emptied_by_hand(w: &World) {
    let before = w.totals();
    Pattern::new(5, 2 << 20).write(&w.path(0, "e1")).expect("write");
    Pattern::new(6, 2 << 20).write(&w.path(0, "e2")).expect("write");
    fs::remove_file(w.path(0, "e1")).expect("remove");
    fs::remove_file(w.path(0, "e2")).expect("remove");
    let (code, _, err) = w.call(1, &["trash", "empty"]);
    assert!(code == Some(2) && err.contains("--yes"), "{err}");
    let would = w.json(1, &["trash", "empty", &w.text(1, "e1"), "--dry-run"]);
    assert_eq!((&would["entries"], &would["bytes"]), (&json!(1), &json!(2 << 20)));
    assert_eq!(w.json(1, &["trash", "empty", "--older-than", "1h", "--yes"])["entries"], 0);
    let gone = w.json(1, &["trash", "empty", &w.text(1, "e1"), "--yes"]);
    assert_eq!(gone["entries"], 1);
    assert_eq!((w.trashed(2, "e1").len(), w.trashed(2, "e2").len()), (0, 1));
    w.json(2, &["trash", "empty", "--yes"]);
    assert_eq!(w.json(0, &["trash", "ls"])["entries"], 0);
    eventually("its chunks are free", SOON, || w.totals()["chunks"] == before["chunks"]);
}

fn old_ones_go_by_themselves(w: &World) {
    let before = w.totals();
    w.keep("3s");
    Pattern::new(7, 4 << 20).write(&w.path(2, "old")).expect("write");
    fs::remove_file(w.path(1, "old")).expect("remove");
    assert_eq!(w.trashed(0, "old").len(), 1);
    eventually("it is not kept any longer", SOON, || w.trashed(0, "old").is_empty());
    eventually("its chunks are free", SOON, || w.totals() == before);
    // Off lets go of everything.
    w.keep("1h");
    write(&w.path(0, "last"), &[1; 100_000]);
    fs::remove_file(w.path(0, "last")).expect("remove");
    assert_eq!(w.trashed(1, "last").len(), 1);
    w.keep("off");
    eventually("the trash is empty", SOON, || w.json(2, &["trash", "ls"])["entries"] == 0);
    for wrong in
        [&["trash", "retention", "long"][..], &["trash", "retention", "4000d"], &["trash", "restore"]]
    {
        assert_eq!(w.call(0, wrong).0, Some(2), "{wrong:?}");
    }
}

#[test]
fn what_was_deleted_comes_back_or_goes() {
    let w = World { cluster: Cluster::start("trash", NODES) };
    let mut checks = Checks::default();
    let all: [Check; 7] = [
        ("off_frees_at_once", off_frees_at_once),
        ("a_tree_comes_back_on_every_node", a_tree_comes_back_on_every_node),
        ("nothing_that_is_there_is_overwritten", nothing_that_is_there_is_overwritten),
        ("missing_directories_come_along", missing_directories_come_along),
        ("open_files_stay_open_and_save_again", open_files_stay_open_and_save_again),
        ("emptied_by_hand", emptied_by_hand),
        ("old_ones_go_by_themselves", old_ones_go_by_themselves),
    ];
    checks.run_each(&w, &all);
    checks.finish();
}

#[test]
fn the_trash_makes_room_before_the_disks_are_full() {
    if !sys::is_root() {
        eprintln!("SKIPPED: small disks are made with mount, which needs root");
        return;
    }
    const DISK: u64 = 400 << 20;
    const FILE: u64 = 8 << 20;
    let lab = Arc::new(Lab::new("trash-full"));
    let mut cluster = Cluster::empty(&lab, "", None);
    for i in 0..NODES {
        let disk = lab.dir(&format!("disk{i}"));
        sys::mount_tmpfs(&disk, DISK).expect("mount a small disk");
        // The first one makes the cluster.
        let extra: &[&str] = if i == 0 { &["--trash", "1d"] } else { &[] };
        cluster.add_node_at(Some(disk.join("data")), extra);
    }
    cluster.wait_healthy();
    assert_eq!(cluster.node(1).json(&["trash", "retention"]), json!({"retention": 86_400}));
    let kept = Pattern::new(1_000, 5 << 20);
    kept.write(&cluster.path(1, "kept")).expect("write");
    // More than the disks hold passes through, never more than a few files of it with names.
    let mut written = 0;
    for i in 0..90u64 {
        let path = cluster.path((i % 3) as usize, "passing");
        let _ = fs::remove_file(&path);
        Pattern::new(i, FILE).write(&path).unwrap_or_else(|e| panic!("file {i}, after {written} bytes: {e}"));
        written += FILE;
        thread::sleep(Duration::from_millis(400));
    }
    let listed = cluster.node(0).json(&["trash", "ls"]);
    let left = listed["entries"].as_u64().expect("a number");
    assert!(left > 0 && left < 89, "the oldest went, and not all: {left}");
    kept.check(&cluster.path(2, "kept")).expect("what has a name stays");
}
