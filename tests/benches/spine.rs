//! What the spine can do, next to the local file system in the same run.
//!
//! ```text
//! cargo bench -p hfcache-tests                       three storage nodes, two that only mount; prints a table
//! cargo bench -p hfcache-tests -- --out FILE.json    and keeps the figures
//!     --mib N     size of the large file (1024)      --files N   small files (10000)
//! ```
//!
//! Bytes are written through one mount and read through another. "Cold" is after the reader has lost its hot
//! copies and the machine its page cache, so that bytes come from the disks of three nodes. All nodes share
//! this machine's processors with the benchmark itself.

use hfcache_tests::pattern::{Pattern, STEP};
use hfcache_tests::{Agent, Cluster, Lab, sys};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

const SMALL: u64 = 16_384;
const LOCK_ROUNDS: usize = 2_000;
const HANDOFFS: usize = 30;
const POLLS: usize = 2_000;

struct Options {
    out: Option<PathBuf>,
    mib: u64,
    files: usize,
}

fn options() -> Options {
    let mut options = Options { out: None, mib: 1_024, files: 10_000 };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().unwrap_or_else(|| panic!("{word} needs a value"));
        match word.as_str() {
            "--out" => options.out = Some(value().into()),
            "--mib" => options.mib = value().parse().expect("--mib is a number"),
            "--files" => options.files = value().parse().expect("--files is a number"),
            // What cargo bench adds.
            "--bench" => {}
            other => panic!("no such option: {other} (there are --out FILE, --mib N, --files N)"),
        }
    }
    options
}

/// One system under test.
trait System {
    fn write_dir(&self) -> PathBuf;
    fn read_dir(&self) -> PathBuf;
    /// The reader knows nothing any more.
    fn make_cold(&mut self);
    /// CPU seconds of its processes so far.
    fn cpu(&self) -> f64;
    /// The highest resident memory of any of its processes, in bytes.
    fn rss(&self) -> u64;
}

fn drop_page_cache() {
    let _ = std::process::Command::new("sync").status();
    if fs::write("/proc/sys/vm/drop_caches", "3").is_err() {
        println!("(the page cache can't be dropped without root: cold figures are too good)");
    }
}

struct Native(PathBuf);

impl System for Native {
    fn write_dir(&self) -> PathBuf {
        self.0.clone()
    }
    fn read_dir(&self) -> PathBuf {
        self.0.clone()
    }
    fn make_cold(&mut self) {
        drop_page_cache();
    }
    fn cpu(&self) -> f64 {
        0.0
    }
    fn rss(&self) -> u64 {
        0
    }
}

const WRITER: usize = 3;
const READER: usize = 4;

struct Ours {
    cluster: Cluster,
    /// CPU of readers that were restarted.
    gone: f64,
}

impl System for Ours {
    fn write_dir(&self) -> PathBuf {
        self.cluster.path(WRITER, "bench")
    }
    fn read_dir(&self) -> PathBuf {
        self.cluster.path(READER, "bench")
    }
    fn make_cold(&mut self) {
        self.gone += self.cluster.node(READER).cpu_seconds();
        self.cluster.make_cold(READER);
        drop_page_cache();
    }
    fn cpu(&self) -> f64 {
        self.gone + (0..self.cluster.len()).map(|n| self.cluster.node(n).cpu_seconds()).sum::<f64>()
    }
    fn rss(&self) -> u64 {
        (0..self.cluster.len()).map(|n| self.cluster.node(n).peak_rss()).max().unwrap_or(0)
    }
}

/// Figures in the order in which they were taken: metric, unit, value.
type Figures = Vec<(&'static str, &'static str, f64)>;

fn timed<T>(body: impl FnOnce() -> T) -> (T, f64) {
    let start = Instant::now();
    let value = body();
    (value, start.elapsed().as_secs_f64())
}

/// Reads a file to its end and looks at the first bytes of each step, so that checking costs next to nothing.
fn read_stamped(path: &Path, pattern: Pattern) {
    let mut file = File::open(path).expect("open the large file");
    let mut buf = vec![0; STEP];
    let mut want = [0; 32];
    let mut at = 0;
    while at < pattern.len {
        let n = STEP.min((pattern.len - at) as usize);
        file.read_exact(&mut buf[..n]).expect("read the large file");
        pattern.fill(at, &mut want);
        assert!(buf[..32] == want, "wrong bytes at {at}");
        at += n as u64;
    }
}

fn write_stamped(path: &Path, pattern: Pattern) {
    // Made before the clock runs; only the stamps differ from step to step.
    thread_local! { static BODY: Vec<u8> = Pattern::new(4_711, STEP as u64).bytes(); }
    let mut buf = BODY.with(Clone::clone);
    let mut file = File::create_new(path).expect("create the large file");
    let mut at = 0;
    while at < pattern.len {
        pattern.fill(at, &mut buf[..32]);
        file.write_all(&buf).expect("write the large file");
        at += STEP as u64;
    }
    file.sync_all().expect("sync the large file");
}

fn big(system: &mut dyn System, mib: u64, figures: &mut Figures) {
    let pattern = Pattern::new(1, mib << 20);
    let (gib, mb) = (mib as f64 / 1_024.0, (mib << 20) as f64 / 1e6);
    let (to, from) = (system.write_dir().join("big"), system.read_dir().join("big"));
    let before = system.cpu();
    let ((), seconds) = timed(|| write_stamped(&to, pattern));
    figures.push(("write, fsync, close", "MB/s", mb / seconds));
    figures.push(("write: daemons' CPU", "s/GiB", (system.cpu() - before) / gib));
    system.make_cold();
    let before = system.cpu();
    let ((), seconds) = timed(|| read_stamped(&from, pattern));
    figures.push(("cold read", "MB/s", mb / seconds));
    figures.push(("cold read: daemons' CPU", "s/GiB", (system.cpu() - before) / gib));
    let ((), seconds) = timed(|| read_stamped(&from, pattern));
    figures.push(("second read", "MB/s", mb / seconds));
    drop_page_cache();
    let ((), seconds) = timed(|| read_stamped(&from, pattern));
    figures.push(("third read, page cache dropped", "MB/s", mb / seconds));
    figures.push(("peak RSS of a daemon", "MiB", system.rss() as f64 / 1_048_576.0));
    fs::remove_file(to).expect("remove the large file");
}

fn small(system: &mut dyn System, files: usize, figures: &mut Figures) {
    let (to, from) = (system.write_dir().join("small"), system.read_dir().join("small"));
    let name = |i: usize| format!("d{:02}/f{i:05}", i % 20);
    let payload = Pattern::new(2, SMALL).bytes();
    fs::create_dir(&to).expect("mkdir");
    (0..20).for_each(|d| fs::create_dir(to.join(format!("d{d:02}"))).expect("mkdir"));
    let rate = |seconds: f64| files as f64 / seconds;
    let ((), seconds) = timed(|| {
        for i in 0..files {
            let mut file = File::create_new(to.join(name(i))).expect("create");
            file.write_all(&payload).expect("write");
        }
    });
    figures.push(("create 16 KiB files", "files/s", rate(seconds)));
    system.make_cold();
    let ((), seconds) = timed(|| {
        for i in 0..files {
            assert_eq!(fs::metadata(from.join(name(i))).expect("stat").len(), SMALL);
        }
    });
    figures.push(("cold stat", "files/s", rate(seconds)));
    let read_all = || {
        for i in 0..files {
            assert!(fs::read(from.join(name(i))).expect("read") == payload);
        }
    };
    system.make_cold();
    let ((), seconds) = timed(read_all);
    figures.push(("cold open, read, close", "files/s", rate(seconds)));
    let ((), seconds) = timed(read_all);
    figures.push(("the same, warm", "files/s", rate(seconds)));
    let ((), seconds) = timed(|| fs::remove_dir_all(&to).expect("remove the tree"));
    figures.push(("remove the tree", "files/s", rate(seconds)));
}

fn percentile(values: &mut [f64], part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * part) as usize]
}

fn locks(system: &mut dyn System, figures: &mut Figures) {
    let (here, there) = (system.write_dir().join("lock"), system.read_dir().join("lock"));
    let file = File::create(&here).expect("make the lock file");
    let mut each: Vec<f64> = (0..LOCK_ROUNDS)
        .map(|_| timed(|| file.lock().and_then(|()| file.unlock()).expect("lock and unlock")).1 * 1e6)
        .collect();
    figures.push(("flock + unlock, nobody else", "us, median", percentile(&mut each, 0.5)));
    figures.push(("flock + unlock, nobody else", "us, p99", percentile(&mut each, 0.99)));

    let mut waiter = Agent::start(env!("CARGO_BIN_EXE_hfcache-test-agent"));
    waiter.ok(&format!("open f {} rw", there.display()));
    let mut handoffs: Vec<f64> = (0..HANDOFFS)
        .map(|_| {
            file.lock().expect("lock");
            waiter.send("flock f ex");
            assert_eq!(waiter.answer_within(Duration::from_millis(50)), None, "the waiter waits");
            let ((), seconds) = timed(|| {
                file.unlock().expect("unlock");
                assert_eq!(waiter.answer(), "ok");
            });
            waiter.ok("flock f un");
            seconds * 1e3
        })
        .collect();
    figures.push(("handoff to a waiter elsewhere", "ms, median", percentile(&mut handoffs, 0.5)));

    file.lock().expect("lock");
    let other = File::options().write(true).open(&there).expect("open");
    let ((), seconds) = timed(|| (0..POLLS).for_each(|_| assert!(other.try_lock().is_err(), "it is held")));
    figures.push(("contended LOCK_NB elsewhere", "per s", POLLS as f64 / seconds));
    file.unlock().expect("unlock");

    let ((), seconds) = timed(|| {
        thread::scope(|scope| {
            for path in [&here, &there] {
                scope.spawn(move || {
                    let file = File::options().write(true).open(path).expect("open");
                    for _ in 0..200 {
                        file.lock().expect("lock");
                        file.unlock().expect("unlock");
                    }
                });
            }
        });
    });
    figures.push(("two nodes in a lock loop", "locks/s", 400.0 / seconds));
}

fn run(system: &mut dyn System, options: &Options) -> Figures {
    fs::create_dir_all(system.write_dir()).expect("make the benchmark's directory");
    let mut figures = Figures::new();
    big(system, options.mib, &mut figures);
    small(system, options.files, &mut figures);
    locks(system, &mut figures);
    figures
}

fn machine() -> Value {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo").lines().find_map(|l| l.strip_prefix("model name\t: ").map(str::to_owned));
    let kernel = read("/proc/sys/kernel/osrelease").trim().to_owned();
    json!({ "cpu": cpu, "cpus": thread::available_parallelism().map_or(0, |n| n.get()), "kernel": kernel })
}

fn main() {
    let options = options();
    assert!(options.mib > 0 && options.files > 0, "sizes must not be 0");
    let lab = Arc::new(Lab::with_patience("bench", Duration::from_secs(3_600)));
    let mut native = Native(lab.dir("native"));
    let theirs = run(&mut native, &options);
    let mut cluster = Cluster::start_in(&lab, "", 3);
    cluster.add_node(&["--no-storage"]);
    cluster.add_node(&["--no-storage"]);
    cluster.wait_healthy();
    let mut ours = Ours { cluster, gone: 0.0 };
    let figures = run(&mut ours, &options);

    println!("\n| | hfcache | local file system | |\n|---|---:|---:|---|");
    let mut rows = Vec::new();
    for ((what, unit, value), (_, _, native)) in figures.iter().zip(&theirs) {
        println!("| {what} | {value:.1} | {native:.1} | {unit} |");
        rows.push(json!({ "metric": what, "unit": unit, "hfcache": value, "native": native }));
    }
    println!(
        "\n{} MiB, {} files; 3 storage nodes and 2 that mount, all on this machine; root: {}",
        options.mib,
        options.files,
        sys::is_root()
    );
    if let Some(out) = &options.out {
        let all =
            json!({ "machine": machine(), "mib": options.mib, "files": options.files, "figures": rows });
        fs::write(out, format!("{all:#}\n")).expect("write the figures");
        println!("figures are in {}", out.display());
    }
}
