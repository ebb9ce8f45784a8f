//! The file system behind real mounts: two nodes of one cluster in memory, seen through the kernel.
//! Needs /dev/fuse and the right to mount; without them it says so and passes.

mod common;

use common::{Draw, Node, World, noise};
use hfcache_fuse::kernel::{Mount, MountOptions};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

struct Mounted {
    points: [PathBuf; 2],
    mounts: Vec<Mount>,
    nodes: [Node; 2],
    _dir: Dir,
}

/// A directory that goes away.
struct Dir(PathBuf);

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir(self.0.join("a"));
        let _ = fs::remove_dir(self.0.join("b"));
        let _ = fs::remove_dir(&self.0);
    }
}

fn mount(world: &World, name: &str) -> Option<Mounted> {
    let dir = Dir(std::env::temp_dir().join(format!("hfcache-{name}-{}", std::process::id())));
    let points = [dir.0.join("a"), dir.0.join("b")];
    let nodes = [world.node(), world.node()];
    let mut mounts = Vec::new();
    for (point, node) in points.iter().zip(&nodes) {
        fs::create_dir_all(point).expect("create mount point");
        match Mount::start(MountOptions::new(point), node.fs.clone()) {
            Ok(mount) => mounts.push(mount),
            Err(e) => {
                eprintln!("skipped: {e}");
                return None;
            }
        }
    }
    Some(Mounted { points, mounts, nodes, _dir: dir })
}

async fn with_mounts(name: &'static str, test: impl FnOnce(&Path, &Path) + Send + 'static) {
    let world = World::new();
    let Some(mounted) = mount(&world, name) else { return };
    let (a, b) = (mounted.points[0].clone(), mounted.points[1].clone());
    let done = tokio::task::spawn_blocking(move || test(&a, &b)).await;
    for mount in &mounted.mounts {
        mount.unmount().expect("unmount");
    }
    for node in &mounted.nodes {
        assert!(node.fs.shutdown().await.is_empty());
    }
    done.expect("test");
}

fn run(shell: &str) {
    let out = Command::new("sh").arg("-ec").arg(shell).output().expect("run sh");
    assert!(out.status.success(), "{shell}\n{}", String::from_utf8_lossy(&out.stderr));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_one_mount_closes_the_other_reads() {
    with_mounts("close", |a, b| {
        for len in [0, 10, 4096, 4097, 1 << 20, (40 << 20) + 13] {
            let data = noise(len as u64, len);
            fs::write(a.join("f"), &data).expect("write");
            assert!(fs::read(b.join("f")).expect("read") == data, "{len}");
            assert!(fs::read(a.join("f")).expect("read") == data, "{len}");
            let (ma, mb) =
                (fs::metadata(a.join("f")).expect("stat"), fs::metadata(b.join("f")).expect("stat"));
            assert_eq!((ma.len(), ma.mtime_nsec(), ma.mtime()), (mb.len(), mb.mtime_nsec(), mb.mtime()));
        }
        for round in 0..200 {
            fs::write(a.join("tmp"), format!("{round:040}")).expect("write");
            fs::rename(a.join("tmp"), a.join("main")).expect("rename");
            assert_eq!(fs::read_to_string(b.join("main")).expect("read"), format!("{round:040}"));
            fs::write(b.join("in-place"), format!("{round}")).expect("write");
            assert_eq!(fs::read_to_string(a.join("in-place")).expect("read"), format!("{round}"));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn tools_see_a_file_system() {
    with_mounts("tools", |a, b| {
        let (a, b) = (a.display(), b.display());
        run(&format!("mkdir -p {a}/m/blobs {a}/m/snapshots/c; ls -la {b}/m"));
        run(&format!("head -c 3000000 /dev/urandom > {a}/m/blobs/e; touch -d @1234567.123456789 {a}/m/blobs/e"));
        run(&format!("cp -p {a}/m/blobs/e {b}/m/copy; cmp {a}/m/copy {b}/m/blobs/e"));
        run(&format!("test \"$(stat -c %.9Y {a}/m/copy)\" = 1234567.123456789"));
        run(&format!("ln -s ../../blobs/e {b}/m/snapshots/c/f; cmp {a}/m/snapshots/c/f {a}/m/copy"));
        run(&format!("cd {a}/m && tar cf - . | (mkdir {b}/t && cd {b}/t && tar xf -); diff -r {a}/m {a}/t"));
        run(&format!("dd if=/dev/zero of={a}/sparse bs=1 count=1 seek=100M 2>/dev/null; cmp {a}/sparse {b}/sparse"));
        run(&format!("test $(stat -c %s {b}/sparse) = 104857601; test $(du -k {b}/sparse | cut -f1) -lt 100"));
        run(&format!("fallocate -l 1M {a}/fa; fallocate -p -o 4096 -l 8192 {a}/t/copy; cmp {a}/t/copy {b}/t/copy"));
        run(&format!("! cmp -s {a}/t/copy {b}/m/copy; truncate -s 5 {a}/t/copy; test $(stat -c %s {b}/t/copy) = 5"));
        run(&format!("for i in $(seq 300); do echo $i > {a}/t/n$i; done; test $(ls {b}/t | wc -l) = 303"));
        run(&format!("rm -r {a}/m {b}/t; test -z \"$(ls {a}/m {a}/t 2>/dev/null)\""));
        run(&format!("for i in 1 2 3 4 5 6; do (for j in $(seq 20); do flock {a}/l sh -c 'n=$(cat {a}/n 2>/dev/null || echo 0); echo $((n+1)) > {a}/n'; done) & (for j in $(seq 20); do flock {b}/l sh -c 'n=$(cat {b}/n 2>/dev/null || echo 0); echo $((n+1)) > {b}/n'; done) & done; wait; test $(cat {a}/n) = 240"));
        run(&format!("df {a} >/dev/null"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn open_files_outlive_their_names() {
    with_mounts("orphans", |a, b| {
        let data = noise(3, 1_000_000);
        fs::write(a.join("f"), &data).expect("write");
        let mut there = File::open(b.join("f")).expect("open");
        let mut here = OpenOptions::new().read(true).write(true).open(a.join("f")).expect("open");
        fs::remove_file(a.join("f")).expect("unlink");
        assert!(File::open(b.join("f")).is_err());
        here.write_all(b"late").expect("write");
        here.seek(SeekFrom::Start(0)).expect("seek");
        let mut start = [0; 4];
        here.read_exact(&mut start).expect("read");
        assert_eq!(&start, b"late");
        let mut all = Vec::new();
        there.read_to_end(&mut all).expect("read");
        assert!(all == data);
        let file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(a.join("s")).expect("create");
        file.set_len(data.len() as u64).expect("ftruncate");
        file.write_all_at(&data[500_000..], 500_000).expect("write");
        file.write_all_at(&data[..500_000], 0).expect("write");
        drop(file);
        fs::rename(a.join("s"), a.join("t")).expect("rename");
        assert!(fs::read(b.join("t")).expect("read") == data);
        symlink("x", a.join("t")).expect_err("exists");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn random_work_through_the_kernel_matches_a_vector_of_bytes() {
    with_mounts("random", |a, b| {
        for seed in 1..=12u64 {
            let mut draw = Draw(seed);
            let mut model: Vec<u8> = Vec::new();
            let points = [a, b];
            let open = |turn: usize| {
                let name = points[turn].join(format!("r{seed}"));
                let mut options = OpenOptions::new();
                options.read(true).write(true).create(true).truncate(false).open(name).expect("open")
            };
            let mut turn = 0;
            let mut file = open(turn);
            for step in 0..150 {
                let what = format!("seed {seed} step {step}");
                match draw.below(10) {
                    0..4 => {
                        let offset = draw.below(2 << 20) as usize;
                        let data = noise(draw.next(), 1 + draw.below(300_000) as usize);
                        file.write_all_at(&data, offset as u64).expect(&what);
                        model.resize(model.len().max(offset + data.len()), 0);
                        model[offset..offset + data.len()].copy_from_slice(&data);
                    }
                    4 => {
                        let size = draw.below(2 << 20);
                        file.set_len(size).expect(&what);
                        model.resize(size as usize, 0);
                    }
                    5 => file.sync_all().expect(&what),
                    6 | 7 => {
                        drop(file);
                        turn = draw.below(2) as usize;
                        file = open(turn);
                    }
                    _ => {
                        let mut all = Vec::new();
                        file.seek(SeekFrom::Start(0)).expect(&what);
                        file.read_to_end(&mut all).expect(&what);
                        let at = all.iter().zip(&model).position(|(x, y)| x != y);
                        assert!(all == model, "{what}: {} for {}, differs at {at:?}", all.len(), model.len());
                    }
                }
                assert_eq!(file.metadata().expect(&what).len(), model.len() as u64, "{what}");
            }
        }
    })
    .await;
}
