//! A directory of `HFCACHE_LARGE_DIR` names, on the node that made them and on one that joined afterwards.

use hfcache_tests::conformance::setting;
use hfcache_tests::listing::{Listing, Row};
use hfcache_tests::{Cluster, Lab, measure, sys};
use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Who makes the names.
const MAKERS: u64 = 4;
/// So many names of a listing are looked at more closely.
const SAMPLES: usize = 200;

fn count() -> u64 {
    setting("HFCACHE_LARGE_DIR", 5_000)
}

fn rate(what: &str, of: u64, since: Instant) {
    measure::record("large-dir", what, of as f64 / since.elapsed().as_secs_f64(), "per s");
}

/// Every name once, each with an inode and a cookie of its own.
fn listed(dir: &Path, what: &str) -> Vec<Row> {
    let start = Instant::now();
    let rows: Vec<Row> = Listing::of(dir).collect();
    rate(what, rows.len() as u64, start);
    let names: HashSet<&OsString> = rows.iter().map(|row| &row.name).collect();
    let inodes: HashSet<u64> = rows.iter().map(|row| row.ino).collect();
    let cookies: HashSet<u64> = rows.iter().map(|row| row.next).collect();
    for (what, found) in [("name", names.len()), ("inode", inodes.len()), ("cookie", cookies.len())] {
        assert_eq!(found, rows.len(), "each {what} once");
    }
    rows
}

#[test]
fn a_large_directory_is_listed_with_stable_cookies_on_every_node() {
    let names = count();
    let lab = Arc::new(Lab::with_patience("large-dir", Duration::from_secs(300 + names / 100)));
    let mut cluster = Cluster::start_in(&lab, "", 1);
    let made = cluster.path(0, "large");
    fs::create_dir(&made).expect("mkdir");
    let start = Instant::now();
    thread::scope(|scope| {
        for maker in 0..MAKERS {
            let made = &made;
            scope.spawn(move || {
                for n in (maker..names).step_by(MAKERS as usize) {
                    sys::make_node(&made.join(format!("name-{n}")), libc::S_IFREG | 0o644).expect("mknod");
                }
            });
        }
    });
    rate("names made", names, start);

    let start = Instant::now();
    let other = cluster.add_node(&[]);
    cluster.wait_healthy();
    measure::record("large-dir", "a node joins and is healthy after", start.elapsed().as_secs_f64(), "s");
    let there = cluster.path(other, "large");
    let (before, rows) = (listed(&made, "listed, first node"), listed(&there, "listed, new node"));
    assert_eq!(rows.len() as u64, names);
    assert!(before == rows, "the same names, inodes and cookies, in the same order, on both");
    assert_eq!(fs::metadata(&there).expect("stat").len(), names);

    // What comes and goes moves no cookie of what stays, and a cookie of what is gone leads to what came after it.
    let step = (rows.len() / SAMPLES).max(2);
    for (n, row) in rows.iter().enumerate().filter(|(n, _)| n % step == 1) {
        fs::remove_file(there.join(&row.name)).expect("unlink");
        fs::write(made.join(format!("new-{n}")), b"").expect("create");
    }
    let left = |row: &&Row| !row.name.as_encoded_bytes().starts_with(b"new-");
    for (n, row) in rows.iter().enumerate().filter(|(n, _)| n % step < 2) {
        let stays = rows[n + 1..].iter().enumerate().find(|(m, _)| (n + 1 + m) % step != 1);
        for dir in [&made, &there] {
            let next = Listing::from(dir, row.next).find(|row| left(&row));
            assert_eq!(next.as_ref(), stays.map(|(_, row)| row), "behind {row:?} in {}", dir.display());
        }
    }
    let after = listed(&there, "listed, after changes");
    let known: HashMap<&OsString, &Row> = rows.iter().map(|row| (&row.name, row)).collect();
    assert!(
        after.iter().filter(left).all(|row| known.get(&row.name) == Some(&row)),
        "what stays is as before"
    );
    assert_eq!(after.len(), rows.len(), "as many came as went");
    cluster.stop_all();
}
