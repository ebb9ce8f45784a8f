//! The `hfcache` binary.
fn main() {}
