//! How fast users and groups may go on this node. The limits are the namespace's; each node keeps to them by
//! itself, by letting requests wait until those before them have been paid for.

use super::Ids;
use crate::ops::{Caller, Gate, Work};
use hfcache_base::meta::{Applied, Change, Rate, Subject};
use hfcache_base::seam::{ChangeSink, Clock, Meta, Moment};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Who was idle may do as much at once as the limit allows in this time.
const BURST: Duration = Duration::from_millis(250);
/// No request waits longer, however low the limit is.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// What one limit allows. A leaky bucket (ITU-T I.371's virtual scheduling): it knows when everything that
/// was asked for so far will have been paid for.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    paid: Moment,
}

impl Bucket {
    /// How long to wait before doing `amount` more, at `per_second`, which is at least 1.
    fn take(&mut self, amount: u64, per_second: u64, now: Moment) -> Duration {
        let begin = self.paid.max(now);
        let nanos = u128::from(amount) * 1_000_000_000 / u128::from(per_second.max(1));
        let price = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        // Nobody has to pay for longer than he waits at most.
        self.paid = begin.after(price).min(now.after(WAIT_MAX));
        begin.since(now).saturating_sub(BURST)
    }
}

/// A user or a group with a limit.
#[derive(Clone, Copy, Debug, Default)]
struct Meter {
    rate: Rate,
    read: Bucket,
    write: Bucket,
    ops: Bucket,
}

impl Meter {
    fn take(&mut self, work: Work, now: Moment) -> Duration {
        let wait = match self.rate.ops {
            Some(ops) => self.ops.take(1, ops, now),
            None => Duration::ZERO,
        };
        let bytes = match work {
            Work::Read(bytes) => self.rate.read.map(|rate| self.read.take(bytes, rate, now)),
            Work::Write(bytes) => self.rate.write.map(|rate| self.write.take(bytes, rate, now)),
            Work::Other => None,
        };
        wait.max(bytes.unwrap_or_default())
    }
}

/// See the module.
pub struct Pace {
    meta: Arc<dyn Meta>,
    clock: Arc<dyn Clock>,
    ids: Ids,
    /// The limits were changed since they were read.
    stale: AtomicBool,
    /// Somebody is limited at all.
    limited: AtomicBool,
    meters: Mutex<HashMap<Subject, Meter>>,
}

impl Pace {
    /// Keeps callers of a mount to the limits that the namespace has for them, from now on. The numbers of
    /// users and groups are the cluster's, by `ids`.
    pub fn new(meta: Arc<dyn Meta>, clock: Arc<dyn Clock>, ids: Ids) -> Arc<Self> {
        let pace = Arc::new(Self {
            meta,
            clock,
            ids,
            stale: AtomicBool::new(true),
            limited: AtomicBool::new(false),
            meters: Mutex::default(),
        });
        pace.meta.subscribe(Arc::new(Sink(Arc::downgrade(&pace))));
        pace
    }

    fn reload(&self) {
        let rates = match self.meta.read_stale().rates() {
            Ok(rates) => rates,
            Err(error) => {
                // Only of a damaged store, which ends the node anyway.
                tracing::error!(error = %error, "read how fast users may go");
                return;
            }
        };
        let mut meters = self.meters.lock();
        let mut before = std::mem::take(&mut *meters);
        for (subject, rate) in rates {
            let meter = before.remove(&subject).unwrap_or_default();
            meters.insert(subject, Meter { rate, ..meter });
        }
        self.limited.store(!meters.is_empty(), Ordering::Release);
    }
}

impl Gate for Pace {
    fn wait(&self, caller: Caller, work: Work) -> Duration {
        if self.stale.swap(false, Ordering::AcqRel) {
            self.reload();
        }
        if !self.limited.load(Ordering::Acquire) {
            return Duration::ZERO;
        }
        let who = self.ids.identity(caller.uid, caller.gid);
        let now = self.clock.now();
        let mut meters = self.meters.lock();
        let mut take = |subject| meters.get_mut(&subject).map_or(Duration::ZERO, |m| m.take(work, now));
        take(Subject::User(who.uid)).max(take(Subject::Group(who.gid)))
    }
}

/// Does not keep the gate alive.
struct Sink(Weak<Pace>);

impl Sink {
    fn changed(&self) {
        if let Some(pace) = self.0.upgrade() {
            pace.stale.store(true, Ordering::Release);
        }
    }
}

impl ChangeSink for Sink {
    fn applied(&self, batch: &[Applied]) {
        if batch.iter().any(|applied| applied.changes.contains(&Change::Rates)) {
            self.changed();
        }
    }

    fn replaced(&self) {
        self.changed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Moment {
        Moment(Duration::from_millis(ms))
    }

    #[test]
    fn the_mean_is_kept_and_a_burst_goes_unhindered() {
        let mut bucket = Bucket::default();
        // A thousand a second: a quarter of a second's worth at once, then one each millisecond.
        let mut now = at(5_000);
        for _ in 0..250 {
            assert_eq!(bucket.take(1, 1_000, now), Duration::ZERO);
        }
        for _ in 0..2_000 {
            let wait = bucket.take(1, 1_000, now);
            now = now.after(wait);
        }
        assert_eq!(now, at(5_000 + 1_999));
        // Idleness is not saved up.
        now = at(100_000);
        let free = (0..1_000).filter(|_| bucket.take(1, 1_000, now).is_zero()).count();
        assert_eq!(free, 251);
    }

    #[test]
    fn no_request_waits_for_ever() {
        let mut bucket = Bucket::default();
        for _ in 0..10 {
            assert!(bucket.take(u64::MAX, 1, at(1)) <= WAIT_MAX);
        }
        assert!(bucket.take(1, 0, at(1)) <= WAIT_MAX, "a limit of nothing is refused elsewhere");
        let mut meter =
            Meter { rate: Rate { read: Some(10), ops: Some(1), ..Rate::default() }, ..Meter::default() };
        assert_eq!(meter.take(Work::Write(1 << 40), at(0)), Duration::ZERO);
        assert_eq!(meter.take(Work::Read(100), at(0)), Duration::from_millis(750), "by requests");
        assert_eq!(meter.take(Work::Read(1), at(0)), Duration::from_millis(9_750), "by bytes");
    }
}
