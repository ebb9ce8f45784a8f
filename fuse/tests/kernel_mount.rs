//! Mounting, unmounting, and everything in the way of it.

#![expect(clippy::unwrap_used, reason = "a test that can not go on panics")]

mod kernel_memory;

use hfcache_base::Kind;
use hfcache_fuse::kernel::{Mount, MountOptions};
use hfcache_fuse::ops::FileSystem;
use kernel_memory::{Memory, TempDir, World, eventually, unmounted};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;

fn start(options: MountOptions) -> hfcache_base::Result<Mount> {
    Mount::start(options, Arc::new(Memory::default()) as Arc<dyn FileSystem>)
}

fn refusal(options: MountOptions) -> (Kind, String) {
    let error = start(options).unwrap_err();
    (error.kind(), error.to_string())
}

#[test]
fn says_what_is_wrong_with_a_mount_point() {
    let dir = TempDir::new();
    let (kind, text) = refusal(MountOptions::new(dir.0.join("none")));
    assert!(kind == Kind::NotFound && text.contains("mkdir -p"), "{text}");
    let (kind, text) = refusal(MountOptions::new(dir.0.join("no/parent")));
    assert!(kind == Kind::NotFound && text.contains("mkdir -p"), "{text}");
    fs::write(dir.0.join("file"), b"").unwrap();
    let (kind, text) = refusal(MountOptions::new(dir.0.join("file")));
    assert!(kind == Kind::NotDirectory && text.contains("not a directory"), "{text}");
    let (kind, text) = refusal(MountOptions::new(&dir.0));
    assert!(kind == Kind::NotEmpty && text.contains("not empty"), "{text}");
    assert_eq!(refusal(MountOptions::new("/")).0, Kind::Invalid);
    assert!(unmounted(&dir.0));
}

#[test]
fn says_what_is_wrong_with_the_device() {
    let dir = TempDir::new();
    let mut options = MountOptions::new(&dir.0);
    options.device = "/dev/fuse-that-is-not-there".into();
    let (kind, text) = refusal(options.clone());
    assert!(kind == Kind::NoDevice && text.contains("modprobe fuse") && text.contains("--device"), "{text}");
    // Something that is there but no FUSE device.
    options.device = "/dev/null".into();
    start(options).unwrap_err();
    assert!(unmounted(&dir.0));
}

#[test]
fn a_second_mount_at_the_same_place_is_refused() {
    let world = World::new();
    let (kind, text) = refusal(MountOptions::new(&world.dir.0));
    assert!(kind == Kind::Busy && text.contains("already"), "{text}");
    world.mount.unmount().unwrap();
    world.mount.unmount().unwrap();
    assert!(unmounted(&world.dir.0));
    start(MountOptions::new(&world.dir.0)).unwrap();
    assert!(unmounted(&world.dir.0));
}

#[test]
fn reads_further_ahead_and_shows_its_name() {
    let world = World::with(|options| {
        options.readahead_kib = 2048;
        options.fsname = "hfcache-test".into();
    });
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let shown = world.dir.0.to_str().unwrap();
    let line = text.lines().find(|line| line.contains(shown)).unwrap();
    assert!(line.contains(" - fuse.hfcache hfcache-test "), "{line}");
    for option in ["default_permissions", "allow_other", "max_read=1048576", "nosuid", "nodev"] {
        assert!(line.contains(option), "{line}");
    }
    let number = line.split(' ').nth(2).unwrap();
    let path = format!("/sys/class/bdi/{number}/read_ahead_kb");
    assert_eq!(fs::read_to_string(path).unwrap().trim(), "2048");
}

#[test]
fn a_read_only_mount_refuses_writes() {
    let world = World::with(|options| options.read_only = true);
    let error = fs::write(world.path("f"), b"x").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
}

#[test]
fn one_thread_and_one_queue_serve_too() {
    let world = World::with(|options| options.threads = 1);
    fs::write(world.path("f"), b"x").unwrap();
    assert_eq!(fs::read(world.path("f")).unwrap(), b"x");
}

#[test]
fn an_unmount_from_outside_is_noticed() {
    let world = World::new();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    assert!(!*world.mount.watch().borrow());
    assert!(Command::new("umount").arg(&world.dir.0).status().unwrap().success());
    runtime.block_on(world.mount.ended());
    assert_eq!(world.fs.unmounts.load(Ordering::SeqCst), 1);
    // What someone mounts there next is not ours to unmount.
    assert!(Command::new("mount").args(["-t", "tmpfs", "x"]).arg(&world.dir.0).status().unwrap().success());
    world.mount.unmount().unwrap();
    assert!(!unmounted(&world.dir.0));
    assert!(Command::new("umount").arg(&world.dir.0).status().unwrap().success());
}

#[test]
fn what_is_mounted_over_the_mount_is_not_unmounted() {
    let world = World::new();
    assert!(Command::new("mount").args(["-t", "tmpfs", "x"]).arg(&world.dir.0).status().unwrap().success());
    world.mount.unmount().unwrap();
    assert!(*world.mount.watch().borrow());
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(text.lines().any(|line| line.contains(world.dir.0.to_str().unwrap()) && line.contains("tmpfs")));
}

#[test]
fn a_mount_in_use_goes_away_under_its_users() {
    let world = World::new();
    fs::write(world.path("f"), b"x").unwrap();
    let mut file = fs::File::open(world.path("f")).unwrap();
    let mut waiter = Command::new("python3")
        .args([
            "-c",
            "import fcntl,sys\na=open(sys.argv[1]);b=open(sys.argv[1])\nfcntl.flock(a,2)\nfcntl.flock(b,2)",
        ])
        .arg(world.path("f"))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("a lock waits", || world.fs.waiting() == 1);
    world.mount.unmount().unwrap();
    assert!(unmounted(&world.dir.0));
    assert!(*world.mount.watch().borrow());
    assert_eq!(world.fs.unmounts.load(Ordering::SeqCst), 1);
    assert!(!waiter.wait().unwrap().success());
    let error = file.write(b"y").and_then(|_| file.read(&mut [0; 10])).unwrap_err();
    assert!([Some(libc::ENOTCONN), Some(libc::EBADF), Some(libc::EIO)].contains(&error.raw_os_error()));
}

/// What a test starts as another process: a daemon that serves until its standard input ends.
#[test]
fn a_daemon_for_other_tests() {
    let Some(point) = std::env::var_os("HFCACHE_TEST_DAEMON") else { return };
    let mount = start(MountOptions::new(point)).unwrap();
    println!("ready");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    mount.unmount().unwrap();
    println!("done");
}

/// Starts this test program again, with another program before it, as the daemon above.
fn daemon(program: &Path, before: &[&str], point: &Path) -> Child {
    let mut line: Vec<&std::ffi::OsStr> = before.iter().map(std::ffi::OsStr::new).collect();
    line.push(program.as_os_str());
    let mut command = Command::new(line[0]);
    command.args(&line[1..]).args(["--exact", "a_daemon_for_other_tests", "--nocapture"]);
    command.env("HFCACHE_TEST_DAEMON", point).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("ready")), "the daemon starts");
    // Drain what it says later.
    std::thread::spawn(move || lines.for_each(drop));
    child
}

#[test]
fn the_mount_of_a_dead_daemon_is_taken_away() {
    let program = std::env::current_exe().unwrap();
    let dir = TempDir::new();
    let mut child = daemon(&program, &[], &dir.0);
    fs::write(dir.0.join("f"), b"x").unwrap();
    // Held open over the death, so that only a lazy unmount works.
    let held = fs::File::open(dir.0.join("f")).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(fs::metadata(&dir.0).unwrap_err().raw_os_error(), Some(libc::ENOTCONN));
    let mount = start(MountOptions::new(&dir.0)).unwrap();
    assert_eq!(fs::read_dir(&dir.0).unwrap().count(), 0);
    mount.unmount().unwrap();
    assert!(unmounted(&dir.0));
    drop(held);
}

/// Lets users open `/dev/fuse`, as the udev rules of every distribution do; a bare container may not.
struct OpenDevice(fs::Permissions);

impl OpenDevice {
    fn new() -> Self {
        let before = fs::metadata("/dev/fuse").unwrap().permissions();
        fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(0o666)).unwrap();
        Self(before)
    }
}

impl Drop for OpenDevice {
    fn drop(&mut self) {
        let _ = fs::set_permissions("/dev/fuse", self.0.clone());
    }
}

#[test]
fn a_user_mounts_through_fusermount3() {
    let _device = OpenDevice::new();
    let place = TempDir::new();
    fs::set_permissions(&place.0, fs::Permissions::from_mode(0o755)).unwrap();
    let program = place.0.join("daemon");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let dir = TempDir::new();
    std::os::unix::fs::chown(&dir.0, Some(65_534), Some(65_534)).unwrap();
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let mut child = daemon(&program, &nobody, &dir.0);
    let as_nobody = |script: &str| {
        let [program, options @ ..] = nobody;
        let status = Command::new(program).args(options).args(["sh", "-c", script]).current_dir("/").status();
        status.unwrap().success()
    };
    let shown = dir.0.display();
    // The root of the test's file system belongs to root.
    assert!(as_nobody(&format!("ls {shown} && df {shown} && ! touch {shown}/f 2>/dev/null")));
    // A user's mount is for that user alone.
    assert!(
        fs::metadata(&dir.0).is_err()
            || fs::read_to_string("/etc/fuse.conf").unwrap().contains("\nuser_allow_other")
    );
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    assert!(unmounted(&dir.0));
    // Dead, and then in use at the end.
    let mut child = daemon(&program, &nobody, &dir.0);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!unmounted(&dir.0));
    let mut child = daemon(&program, &nobody, &dir.0);
    let [nobody_program, options @ ..] = nobody;
    let script = format!("cd {shown} && echo inside && cat");
    let mut user = Command::new(nobody_program)
        .args(options)
        .args(["sh", "-c", &script])
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = [0; 7];
    user.stdout.take().unwrap().read_exact(&mut line).unwrap();
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    assert!(unmounted(&dir.0));
    drop(user.stdin.take());
    user.wait().unwrap();
}
