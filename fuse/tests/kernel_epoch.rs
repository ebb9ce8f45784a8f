//! FUSE_NOTIFY_INC_EPOCH on this kernel: what it does to names, and to those who use them.

#![expect(clippy::unwrap_used, reason = "a test that can not go on panics")]

mod kernel_memory;

use kernel_memory::World;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;

const HOUR: u64 = 3_600_000;

/// A world whose names the kernel keeps for an hour; `None` on a kernel that can't expire them (before 6.16),
/// where the file system gives names no lifetime.
fn world() -> Option<World> {
    let world = World::new();
    let notify = world.fs.notify.get().unwrap();
    if !notify.can_expire_names() {
        assert!(!notify.names_stale());
        return None;
    }
    world.fs.entry_ttl.store(HOUR, Ordering::Relaxed);
    world.fs.attr_ttl.store(HOUR, Ordering::Relaxed);
    Some(world)
}

fn expire(world: &World) {
    assert!(world.fs.notify.get().unwrap().names_stale());
}

#[test]
fn names_are_looked_up_again_after_a_notice_and_not_before() {
    let Some(world) = world() else { return };
    let path = world.path("f");
    fs::write(&path, b"old").unwrap();
    fs::metadata(&path).unwrap();
    let lookups = || world.fs.lookups.load(Ordering::Relaxed);
    let before = lookups();
    for _ in 0..10 {
        fs::metadata(&path).unwrap();
    }
    assert_eq!(lookups(), before, "the name is kept");
    world.fs.replace("f", b"new content");
    assert_eq!(fs::metadata(&path).unwrap().len(), 3, "nobody told the kernel");
    expire(&world);
    assert_eq!(fs::metadata(&path).unwrap().len(), 11);
    assert_eq!(lookups(), before + 1);
    for _ in 0..10 {
        fs::metadata(&path).unwrap();
    }
    assert_eq!(lookups(), before + 1, "it is kept again");
}

#[test]
fn those_inside_and_open_files_go_on() {
    let Some(world) = world() else { return };
    fs::create_dir_all(world.path("a/b/c")).unwrap();
    fs::write(world.path("a/b/c/f"), b"content").unwrap();
    let open = fs::File::open(world.path("a/b/c/f")).unwrap();
    let ino = open.metadata().unwrap().ino();
    let script = "import os,sys\nos.chdir(sys.argv[1]); start=os.getcwd()\n\
                  for line in sys.stdin:\n  assert os.getcwd()==start, os.getcwd()\n  \
                  assert os.listdir('.')==['f'] and open('f').read()=='content' and open('../c/f').read()\n  \
                  print('well', flush=True)\n";
    let mut child = Command::new("python3")
        .args(["-c", script])
        .arg(world.path("a/b/c"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    for round in 0..20 {
        expire(&world);
        // From outside, so that the names above it are looked up by someone else, or by nobody.
        if round % 2 == 0 {
            assert_eq!(fs::metadata(world.path("a/b/c/f")).unwrap().ino(), ino);
        }
        input.write_all(b"go\n").unwrap();
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(line, "well\n", "round {round}");
        assert_eq!(open.metadata().unwrap().ino(), ino);
        assert_eq!(
            std::io::read_to_string(&mut fs::File::open(world.path("a/b/c/f")).unwrap()).unwrap(),
            "content"
        );
    }
    drop(input);
    assert!(child.wait().unwrap().success());
    assert_eq!(std::io::read_to_string(&open).unwrap(), "content");
}

#[test]
fn notices_amid_traffic_do_no_harm() {
    let Some(world) = world() else { return };
    fs::create_dir_all(world.path("d/e")).unwrap();
    let world = Arc::new(world);
    let workers: Vec<_> = (0..3)
        .map(|worker| {
            let world = Arc::clone(&world);
            std::thread::spawn(move || {
                for round in 0..300 {
                    let path = world.path(&format!("d/e/{worker}-{round}"));
                    fs::write(&path, b"x").unwrap();
                    let other = path.with_extension("moved");
                    fs::rename(&path, &other).unwrap();
                    assert!(!path.exists());
                    assert_eq!(fs::read(&other).unwrap(), b"x");
                    if round % 2 == 0 {
                        fs::remove_file(&other).unwrap();
                    }
                }
            })
        })
        .collect();
    while workers.iter().any(|worker| !worker.is_finished()) {
        expire(&world);
        std::thread::yield_now();
    }
    for worker in workers {
        worker.join().unwrap();
    }
    assert_eq!(fs::read_dir(world.path("d/e")).unwrap().count(), 450);
}

/// What the kernel does beside (the module `kernel::notify` tells of it). Run by hand on a new kernel, with
/// `--ignored --nocapture`.
#[test]
#[ignore = "findings about the running kernel, not promises of ours"]
fn findings() {
    let Some(world) = world() else { return };
    fs::create_dir_all(world.path("d/inner")).unwrap();
    fs::write(world.path("f"), b"x").unwrap();
    let open = fs::File::open(world.path("f")).unwrap();
    let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&open));
    let shown = || fs::read_link(&link).unwrap().display().to_string();
    assert!(!shown().contains("(deleted)"));
    expire(&world);
    println!("open file after the notice: {}", shown());
    fs::metadata(world.path("f")).unwrap();
    println!("open file after another lookup: {}", shown());
    // A directory in use, while someone else looks its name up again and the answer takes its time.
    fs::create_dir(world.path("cwd")).unwrap();
    let script = "import os,sys,time\nos.chdir(sys.argv[1]); print('in', flush=True); sys.stdin.readline()\n\
                  lost=0\nfor _ in range(100):\n  time.sleep(0.005)\n  try: os.getcwd()\n  \
                  except FileNotFoundError: lost+=1\nprint(lost)\n";
    let mut child = Command::new("python3")
        .args(["-c", script])
        .arg(world.path("cwd"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(output.next().unwrap().unwrap(), "in");
    expire(&world);
    world.fs.slow_lookups.store(200, Ordering::Relaxed);
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    fs::metadata(world.path("cwd")).unwrap();
    world.fs.slow_lookups.store(0, Ordering::Relaxed);
    println!(
        "getcwd failed {} of 100 times, 5 ms apart, around a lookup of 200 ms",
        output.next().unwrap().unwrap()
    );
    child.wait().unwrap();
    let inner = world.path("d/inner");
    assert!(Command::new("mount").args(["-t", "tmpfs", "inner"]).arg(&inner).status().unwrap().success());
    expire(&world);
    let device = || fs::metadata(&inner).unwrap().dev();
    let outside = fs::metadata(world.path("d")).unwrap().dev();
    println!("a mount inside survives a notice: {}", device() != outside);
    let _ = Command::new("umount").arg(&inner).stderr(Stdio::null()).status();
}
