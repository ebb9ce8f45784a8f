//! Figures that tests measure on their way. They are printed, and kept as lines of JSON in
//! `target/hfcache-tests/measured.jsonl`; tests do not fail on them, because a busy machine is no defect.

use serde_json::{Value, json};
use std::fs::File;
use std::io::Write;
use std::time::SystemTime;

/// Records one figure.
pub fn record(test: &str, what: &str, value: f64, unit: &str) {
    println!("  measured {test}: {what} = {value:.3} {unit}");
    let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let line: Value = json!({ "at": at, "test": test, "what": what, "value": value, "unit": unit });
    let dir = crate::binary::target_dirs().0.join("hfcache-tests");
    // A figure that can't be kept is no reason to fail a test.
    let kept = std::fs::create_dir_all(&dir)
        .and_then(|()| File::options().create(true).append(true).open(dir.join("measured.jsonl")))
        .and_then(|mut file| writeln!(file, "{line}"));
    if let Err(why) = kept {
        println!("  (could not keep that: {why})");
    }
}
