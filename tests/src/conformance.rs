//! Suites that others wrote to judge file systems, run on a local ext4 and on the mount of a node.
//!
//! The measure is ext4 on the same machine: what passes there must pass on the mount. Each exception is in
//! [`exclusions`], with its reason, and must still be one.

pub mod calls;
pub mod exclusions;
pub mod exerciser;
pub mod fsx;
pub mod kernel;
pub mod pjdfstest;
pub mod place;
pub mod stress;
pub mod tools;
pub mod verdict;

/// A number from the environment, or the default.
///
/// # Panics
/// When it is set and no number.
pub fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} must be a number, and is {text:?}")),
        Err(_) => default,
    }
}

/// The seed of a run: `HFCACHE_SEED`, or the time. Who draws from it prints it.
pub fn seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |d| d.as_nanos());
    setting("HFCACHE_SEED", now as u64 % 1_000_000_000)
}
