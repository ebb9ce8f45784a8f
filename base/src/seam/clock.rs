//! Time. Only `node` and the simulator implement it.

use crate::meta::Timestamp;
use async_trait::async_trait;
use std::time::Duration;

/// A point on a clock that never runs backwards and counts from an arbitrary start. Means nothing on
/// another node or after a restart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub Duration);

impl Moment {
    /// This much later.
    #[must_use]
    pub fn after(self, d: Duration) -> Self {
        Self(self.0.saturating_add(d))
    }

    /// Time from `earlier` until this, zero if it is not earlier.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// See the module.
#[async_trait]
pub trait Clock: Send + Sync + 'static {
    /// Now, for durations and deadlines. Cheap enough for every request.
    fn now(&self) -> Moment;
    /// Now, for people and file times; may jump.
    fn wall(&self) -> Timestamp;
    /// Waits.
    async fn sleep(&self, d: Duration);
    /// Makes a quick call after `d`, on a thread of the clock's own, and wakes none before. A clock that has no such
    /// thread makes it at once.
    fn later(&self, _d: Duration, call: Box<dyn FnOnce() + Send>) {
        call();
    }
}
