//! Locks and interrupts on a real mount.

#![expect(clippy::unwrap_used, reason = "a test that can not go on panics")]

mod kernel_memory;

use hfcache_base::meta::LockKind;
use kernel_memory::{World, eventually};
use std::collections::HashSet;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;

/// A Python process that runs `code` on the file `sys.argv[1]`, open as `f`. It hears of SIGINT also where whoever
/// started the tests ignores that, as a shell does for what it runs in the background.
fn python(code: &str, path: &std::path::Path) -> Child {
    let code = format!(
        "import fcntl,os,signal,sys,time,struct\n\
         signal.signal(signal.SIGINT,signal.default_int_handler)\n\
         f=open(sys.argv[1],'r+b')\n{code}"
    );
    let mut command = Command::new("python3");
    command.args(["-c", &code]).arg(path).stdin(Stdio::piped()).stderr(Stdio::null());
    command.spawn().unwrap()
}

fn run(code: &str, path: &std::path::Path) -> bool {
    python(code, path).wait().unwrap().success()
}

#[test]
fn flock_and_fcntl_arrive_as_what_they_are() {
    let world = World::new();
    let path = world.path("f");
    fs::write(&path, b"x").unwrap();
    assert!(run("fcntl.flock(f,fcntl.LOCK_EX|fcntl.LOCK_NB)", &path));
    eventually("the flock is dropped with the file", || {
        world.fs.released.lock().iter().filter(|owner| owner.is_some()).count() == 1
    });
    assert!(run("fcntl.lockf(f,fcntl.LOCK_SH,10,5)\nfcntl.lockf(f,fcntl.LOCK_UN,4,6)", &path));
    let asked = world.fs.asked.lock().clone();
    let (flock, wait) = asked[0];
    assert_eq!((flock.kind, flock.exclusive, wait), (LockKind::Flock, true, false));
    assert_eq!((flock.start, flock.end), (0, u64::MAX));
    let (posix, wait) = asked[1];
    assert_eq!((posix.kind, posix.exclusive, wait), (LockKind::Posix, false, true));
    assert_eq!((posix.start, posix.end), (5, 14));
    assert!(posix.pid > 0);
    let unlocked = world.fs.unlocked.lock().clone();
    assert!(unlocked.iter().any(|l| (l.kind, l.start, l.end) == (LockKind::Posix, 6, 9)));
    assert_eq!(Some(flock.owner), world.fs.released.lock().iter().flatten().next().copied());
}

/// The kernel gives its number of an open file to the next one, before the RELEASE of the first is served.
#[test]
fn whoever_opens_the_file_next_is_another_owner() {
    let world = World::new();
    let path = world.path("f");
    fs::write(&path, b"x").unwrap();
    for round in 1..=50 {
        let file = fs::File::open(&path).unwrap();
        file.lock().unwrap();
        drop(file);
        eventually("the flock is dropped with the file", || {
            world.fs.released.lock().iter().flatten().count() == round
        });
    }
    let owners: HashSet<u64> = world.fs.released.lock().iter().flatten().copied().collect();
    assert_eq!(owners.len(), 50);
    let asked: HashSet<u64> = world.fs.asked.lock().iter().map(|(lock, _)| lock.owner).collect();
    assert_eq!(asked, owners);
}

#[test]
fn both_kinds_exclude_only_their_own() {
    let world = World::new();
    let path = world.path("f");
    fs::write(&path, b"x").unwrap();
    let holder = "fcntl.flock(f,fcntl.LOCK_EX)\nfcntl.lockf(f,fcntl.LOCK_EX,1,0)\nsys.stdin.read()";
    let mut holder = python(holder, &path);
    eventually("both are held", || world.fs.asked.lock().len() == 2);
    let refused = "\ntry:\n  X\nexcept BlockingIOError: sys.exit(0)\nsys.exit(1)";
    assert!(run(&refused.replace('X', "fcntl.flock(f,fcntl.LOCK_SH|fcntl.LOCK_NB)"), &path));
    assert!(run(&refused.replace('X', "fcntl.lockf(f,fcntl.LOCK_EX|fcntl.LOCK_NB,1,0)"), &path));
    assert!(run("fcntl.lockf(f,fcntl.LOCK_EX|fcntl.LOCK_NB,1,1)", &path), "another byte is free");
    // F_GETLK names the holder and its range.
    let ask = format!(
        "l=struct.pack('hhqqi4x',fcntl.F_WRLCK,0,0,0,0)\n\
         t,w,s,n,p=struct.unpack('hhqqi4x',fcntl.fcntl(f,fcntl.F_GETLK,l))\n\
         sys.exit(0 if (t,s,n,p)==(fcntl.F_WRLCK,0,1,{}) else 1)",
        holder.id()
    );
    assert!(run(&ask, &path));
    let free = "l=struct.pack('hhqqi4x',fcntl.F_WRLCK,0,7,0,0)\n\
                sys.exit(0 if struct.unpack('hhqqi4x',fcntl.fcntl(f,fcntl.F_GETLK,l))[0]==fcntl.F_UNLCK else 1)";
    assert!(run(free, &path));
    drop(holder.stdin.take());
    assert!(holder.wait().unwrap().success());
    assert!(run("fcntl.flock(f,fcntl.LOCK_EX)\nfcntl.lockf(f,fcntl.LOCK_EX)", &path));
}

/// Sends a signal to a process that waits in the mount, and sees it go.
fn goes_away(world: &World, code: &str, signal: rustix::process::Signal, waits: impl Fn() -> bool) {
    let mut waiter = python(code, &world.path("f"));
    eventually("the process waits", &waits);
    let pid = rustix::process::Pid::from_child(&waiter);
    rustix::process::kill_process(pid, signal).unwrap();
    // Without an answer to INTERRUPT it would stay in the kernel, and this for ever.
    assert!(!waiter.wait().unwrap().success());
    eventually("the request is gone too", || !waits());
}

#[test]
fn a_killed_waiter_goes_away() {
    let world = World::new();
    let path = world.path("f");
    fs::write(&path, b"x").unwrap();
    let mut holder =
        python("fcntl.flock(f,fcntl.LOCK_EX)\nfcntl.lockf(f,fcntl.LOCK_EX)\nsys.stdin.read()", &path);
    eventually("both are held", || world.fs.asked.lock().len() == 2);
    for code in ["fcntl.flock(f,fcntl.LOCK_EX)", "fcntl.lockf(f,fcntl.LOCK_EX)"] {
        for signal in [rustix::process::Signal::KILL, rustix::process::Signal::INT] {
            goes_away(&world, code, signal, || world.fs.waiting() == 1);
        }
    }
    drop(holder.stdin.take());
    holder.wait().unwrap();
    assert!(run("fcntl.flock(f,fcntl.LOCK_EX|fcntl.LOCK_NB)", &path));
}

#[test]
fn a_killed_reader_goes_away() {
    let world = World::new();
    fs::write(world.path("f"), vec![0; 1 << 20]).unwrap();
    // Pages are read on behalf of all who want them, so no signal interrupts the READ; but who waits for
    // one can be killed, as with a local disk. Not so with O_DIRECT and ASYNC_DIO: that one has to wait for
    // the file system's own deadline.
    let alone = "os.posix_fadvise(f.fileno(),0,0,os.POSIX_FADV_RANDOM)\nos.pread(f.fileno(),10,70000)";
    let ahead = "os.pread(f.fileno(),500000,0)";
    for code in [alone, ahead] {
        let signal = rustix::process::Signal::KILL;
        world.fs.notify.get().unwrap().data_stale(hfcache_base::InodeId(2));
        world.fs.stuck_reads.store(true, Ordering::Relaxed);
        let mut reader = python(code, &world.path("f"));
        eventually("the process waits", || world.fs.stuck() >= 1);
        rustix::process::kill_process(rustix::process::Pid::from_child(&reader), signal).unwrap();
        eventually(&format!("{code:?} {signal:?} goes away"), || reader.try_wait().unwrap().is_some());
        world.fs.stuck_reads.store(false, Ordering::Relaxed);
        world.fs.let_go();
    }
}

#[test]
fn many_waiters_that_are_killed_at_once_all_go_away() {
    let world = World::new();
    let path = world.path("f");
    fs::write(&path, b"x").unwrap();
    let mut holder = python("fcntl.flock(f,fcntl.LOCK_EX)\nsys.stdin.read()", &path);
    eventually("it is held", || world.fs.asked.lock().len() == 1);
    let mut waiters: Vec<Child> = (0..20).map(|_| python("fcntl.flock(f,fcntl.LOCK_EX)", &path)).collect();
    // Not all of them wait already: some are killed on the way.
    eventually("some wait", || world.fs.waiting() >= 5);
    for waiter in &mut waiters {
        waiter.kill().unwrap();
    }
    for waiter in &mut waiters {
        waiter.wait().unwrap();
    }
    eventually("nobody waits", || world.fs.waiting() == 0);
    drop(holder.stdin.take());
    holder.wait().unwrap();
}
