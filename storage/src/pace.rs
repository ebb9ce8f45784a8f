//! How hard the want/have loop works.

use std::time::Duration;

/// Times and bounds of [`crate::upkeep`].
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Between two full passes when nothing happens.
    pub full_pass: Duration,
    /// First wait before a failed chunk is tried again; doubles up to `retry_max`.
    pub retry_min: Duration,
    /// See `retry_min`.
    pub retry_max: Duration,
    /// A shard of an unknown chunk is kept at least this long.
    pub grace: Duration,
    /// A freed chunk is deleted after this, so that reads that have begun can end.
    pub freed_delay: Duration,
    /// Chunks repaired at once.
    pub concurrency: usize,
    /// After each batch the loop rests this many hundredths of the time the batch took.
    pub tranquility: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            full_pass: Duration::from_secs(600),
            retry_min: Duration::from_secs(1),
            retry_max: Duration::from_secs(30),
            grace: Duration::from_secs(600),
            freed_delay: Duration::from_secs(5),
            concurrency: 2,
            tranquility: 50,
        }
    }
}
