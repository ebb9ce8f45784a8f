//! How fast the kernel side is, with a file system that costs nothing. Run by hand:
//! `cargo test -p hfcache-fuse --test kernel_speed -- --ignored --nocapture`

#![expect(clippy::unwrap_used, reason = "a test that can not go on panics")]

mod kernel_memory;

use hfcache_base::seam::LocalFile;
use hfcache_base::{Error, Result};
use kernel_memory::{TempDir, World};
use std::fs;
use std::io::{Read, Write};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

struct Local(fs::File);

impl LocalFile for Local {
    fn missing(&self, _: Range<u64>) -> Vec<Range<u64>> {
        Vec::new()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.0.read_at(buf, offset).map_err(Error::io)
    }
    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        self.0.write_all_at(data, offset).map_err(Error::io)
    }
    fn fill_at(&self, data: &[u8], offset: u64) -> Result<()> {
        self.write_at(data, offset)
    }
    fn zero(&self, _: Range<u64>) -> Result<()> {
        Ok(())
    }
    fn set_len(&self, len: u64) -> Result<()> {
        self.0.set_len(len).map_err(Error::io)
    }
    fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.as_fd())
    }
}

/// CPU seconds of the mount's threads.
fn daemon_cpu() -> f64 {
    let mut ticks = 0;
    for task in fs::read_dir("/proc/self/task").unwrap() {
        let Ok(stat) = fs::read_to_string(task.unwrap().path().join("stat")) else { continue };
        let Some((head, tail)) = stat.rsplit_once(')') else { continue };
        if head.contains("(fuse-") {
            let fields: Vec<&str> = tail.split(' ').collect();
            ticks += fields[12].parse::<u64>().unwrap() + fields[13].parse::<u64>().unwrap();
        }
    }
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

fn measure(what: &str, unit: &str, amount: f64, run: impl FnOnce()) {
    let (cpu, start) = (daemon_cpu(), Instant::now());
    run();
    let seconds = start.elapsed().as_secs_f64();
    let cpu = daemon_cpu() - cpu;
    println!("{what:40} {:10.2} {unit}/s   daemon CPU-s per {unit}: {:.6}", amount / seconds, cpu / amount);
}

#[test]
#[ignore = "a measurement, not a test"]
fn speed() {
    let threads = std::env::var("HFCACHE_THREADS").ok().and_then(|n| n.parse().ok()).unwrap_or(0);
    let world = World::with(|options| options.threads = threads);
    fs::create_dir(world.path("d")).unwrap();
    let name = |number: u32| world.path(&format!("d/{number}"));
    let count = 20_000;
    measure("create + write 16 KiB + close", "file", f64::from(count), || {
        let data = [7; 16 * 1024];
        for number in 0..count {
            fs::File::create(name(number)).unwrap().write_all(&data).unwrap();
        }
    });
    for (what, ttl) in
        [("stat, nothing kept (2 LOOKUPs, 1 GETATTR)", 0), ("stat, kept by the kernel", 3_600_000)]
    {
        world.fs.entry_ttl.store(ttl, Ordering::Relaxed);
        world.fs.attr_ttl.store(ttl, Ordering::Relaxed);
        (0..count).for_each(|number| assert!(name(number).metadata().unwrap().is_file()));
        let before = world.fs.lookups.load(Ordering::Relaxed);
        measure(what, "stat", f64::from(count), || {
            (0..count).for_each(|number| assert!(name(number).metadata().unwrap().is_file()));
        });
        println!("  lookups: {}", world.fs.lookups.load(Ordering::Relaxed) - before);
    }
    let shm = TempDir::new();
    let backing = format!("/dev/shm/{}", shm.0.file_name().unwrap().display());
    let file = fs::File::options().read(true).write(true).create_new(true).open(&backing).unwrap();
    fs::remove_file(&backing).unwrap();
    assert!(world.fs.local.set(Arc::new(Local(file))).is_ok());
    let big = world.path("big");
    let (mib, gib) = (1_024, 1.0);
    let mut buf = vec![1; 1 << 20];
    for round in ["first (allocates)", "again"] {
        measure(&format!("write 1 MiB, {round}"), "GiB", gib, || {
            let mut file = fs::File::options().write(true).create(true).truncate(false).open(&big).unwrap();
            (0..mib).for_each(|_| file.write_all(&buf).unwrap());
        });
    }
    for round in ["cold page cache", "cold page cache", "hot page cache"] {
        if round.starts_with("cold") {
            let ino = std::os::unix::fs::MetadataExt::ino(&fs::metadata(&big).unwrap());
            world.fs.notify.get().unwrap().data_stale(hfcache_base::InodeId(ino));
        }
        let reads = world.fs.reads.load(Ordering::Relaxed);
        measure(&format!("read 1 MiB, {round}"), "GiB", gib, || {
            let mut file = fs::File::open(&big).unwrap();
            (0..mib).for_each(|_| file.read_exact(&mut buf).unwrap());
        });
        println!("  READs: {}", world.fs.reads.load(Ordering::Relaxed) - reads);
    }
}
