//! Randomness: identities, jitter, nonces that need only be unlikely. Keys are made in `net`.

/// See the module.
pub trait Rng: Send + Sync + 'static {
    /// 64 random bits.
    fn next_u64(&self) -> u64;
}
