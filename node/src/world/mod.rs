//! The real clock and the real randomness.

mod later;

use async_trait::async_trait;
use hfcache_base::meta::Timestamp;
use hfcache_base::seam::{Clock, Moment, Rng};
use ring::rand::SecureRandom;
use rustix::time::{ClockId, clock_gettime};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What a clock that counts from the start of the machine says.
fn reading(clock: ClockId) -> Duration {
    let t = clock_gettime(clock);
    Duration::new(t.tv_sec.unsigned_abs(), t.tv_nsec.unsigned_abs() as u32)
}

/// The machine's clocks. Moments come from CLOCK_BOOTTIME and not from `Instant`: that one stands still
/// while a machine sleeps, and a node that wakes up must know that its leases ran out meanwhile.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealClock;

#[async_trait]
impl Clock for RealClock {
    fn now(&self) -> Moment {
        Moment(reading(ClockId::Boottime))
    }

    fn wall(&self) -> Timestamp {
        let nanos = match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(d) => i64::try_from(d.as_nanos()).unwrap_or(i64::MAX),
            Err(e) => i64::try_from(e.duration().as_nanos()).map_or(i64::MIN, |n| -n),
        };
        Timestamp(nanos)
    }

    async fn sleep(&self, d: Duration) {
        tokio::time::sleep(d).await;
    }

    fn later(&self, d: Duration, call: Box<dyn FnOnce() + Send>) {
        later::later(d, call);
    }
}

/// The kernel's random numbers.
#[derive(Clone, Debug)]
pub struct RealRng(ring::rand::SystemRandom);

impl Default for RealRng {
    fn default() -> Self {
        Self(ring::rand::SystemRandom::new())
    }
}

impl RealRng {
    /// Fills a buffer.
    ///
    /// # Panics
    /// If the kernel has no random numbers: nothing that is made then would be safe.
    #[expect(clippy::expect_used, reason = "without randomness there are no identities")]
    pub fn fill(&self, buf: &mut [u8]) {
        self.0.fill(buf).expect("the kernel's random numbers");
    }
}

impl Rng for RealRng {
    fn next_u64(&self) -> u64 {
        let mut buf = [0; 8];
        self.fill(&mut buf);
        u64::from_le_bytes(buf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_runs_forward_and_the_wall_is_after_2024() {
        let clock = RealClock;
        let first = clock.now();
        assert!(clock.now() >= first);
        assert!(clock.wall().0 > 1_704_067_200_000_000_000);
    }

    #[test]
    fn random_numbers_differ() {
        let rng = RealRng::default();
        assert_ne!(rng.next_u64(), rng.next_u64());
    }
}
