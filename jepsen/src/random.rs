//! Choices that a seed repeats.

/// A small generator; good enough to choose faults and keys.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The choices of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// `HFCACHE_SEED`, or a new one from the clock; printed, so that a run can be repeated as far as
    /// processes in real time can be.
    pub fn from_environment() -> Self {
        let given = std::env::var("HFCACHE_SEED").ok().and_then(|s| s.parse().ok());
        let seed = given.unwrap_or_else(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            now.map_or(1, |d| d.subsec_nanos().into())
        });
        println!("  HFCACHE_SEED={seed}");
        Self::new(seed)
    }

    /// Below `limit`, which must not be 0.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 11) % limit as u64) as usize
    }

    /// One of several.
    pub fn pick<'a, T>(&mut self, among: &'a [T]) -> &'a T {
        &among[self.below(among.len())]
    }
}
