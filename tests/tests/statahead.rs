//! A program that looks names up one after the other does not wait for each: the kernel is told the rest of the
//! directory before it asks.

use hfcache_tests::cluster::Cluster;
use hfcache_tests::two::{atime, stat};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

const FILES: usize = 100;
/// So many are looked up before the rest is known.
const FIRST: usize = 8;
/// Names live for some tenths of a second, which a slow machine may spend elsewhere.
const TRIES: usize = 20;

fn file(dir: &Path, number: usize) -> PathBuf {
    dir.join(format!("file-{number}"))
}

/// How many of the other names are answered while the node is stopped: by the kernel alone.
fn known(cluster: &Cluster, dir: &Path) -> usize {
    for number in 0..FIRST {
        stat(&file(dir, number));
    }
    thread::sleep(Duration::from_millis(30));
    cluster.node(1).pause();
    let (tell, told) = mpsc::channel();
    let dir = dir.to_owned();
    let rest = thread::spawn(move || {
        for number in FIRST..FILES {
            stat(&file(&dir, number));
            // Nobody counts any more.
            let _ = tell.send(());
        }
    });
    let mut known = 0;
    while known < FILES - FIRST && told.recv_timeout(Duration::from_millis(100)).is_ok() {
        known += 1;
    }
    drop(told);
    cluster.node(1).resume();
    rest.join().expect("stat the rest");
    known
}

#[test]
fn the_rest_of_a_directory_is_known_before_it_is_asked_for() {
    let cluster = Cluster::start("statahead", 2);
    if cluster.node(1).log_text().contains("epochs=false") {
        eprintln!("skipped: this kernel keeps no names of ours (Linux 6.16 does)");
        return;
    }
    let mut most = 0;
    for number in 0..TRIES {
        let name = format!("outer/d{number}");
        let made = cluster.path(0, &name);
        fs::create_dir_all(&made).expect("mkdir");
        for number in 0..FILES {
            fs::write(file(&made, number), "").expect("write");
        }
        let dir = cluster.path(1, &name);
        let before = atime(&dir);
        most = most.max(known(&cluster, &dir));
        assert_eq!(atime(&dir), before, "nobody has read {}", dir.display());
        if most == FILES - FIRST {
            return;
        }
    }
    panic!("of {} names that nobody had asked for at most {most} were known", FILES - FIRST);
}
