//! Calls at a later time that wake no thread before: a task that sleeps is first put to sleep by one, which may
//! take the core from those in a hurry; and tokio's timers count whole milliseconds.

use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Must be quick: they are made one after the other.
pub(super) type Call = Box<dyn FnOnce() + Send>;

/// Calls by their time (CLOCK_MONOTONIC) and, of several at one time, in order.
#[derive(Default)]
struct Calls {
    waiting: BTreeMap<(Duration, u64), Call>,
    number: u64,
}

/// A timer of the kernel, and the thread that sleeps in it.
struct Timer {
    timer: OwnedFd,
    calls: Mutex<Calls>,
}

fn now() -> Duration {
    super::reading(ClockId::Monotonic)
}

impl Timer {
    fn start() -> std::io::Result<Arc<Self>> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?;
        let timer = Arc::new(Self { timer, calls: Mutex::default() });
        let thread = Arc::clone(&timer);
        std::thread::Builder::new().name("later".to_owned()).spawn(move || thread.run())?;
        Ok(timer)
    }

    fn set(&self, at: Duration) -> Result<(), Errno> {
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let at = Timespec { tv_sec: at.as_secs().cast_signed(), tv_nsec: at.subsec_nanos().into() };
        let once = Itimerspec { it_interval: zero, it_value: at };
        timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &once).map(drop)
    }

    fn add(&self, after: Duration, call: Call) {
        let at = now() + after;
        let mut calls = self.calls.lock();
        calls.number += 1;
        let key = (at, calls.number);
        calls.waiting.insert(key, call);
        let first = calls.waiting.first_key_value().is_some_and(|(first, _)| *first == key);
        // While the lock is held: else the time of an earlier call could be overwritten.
        let set = if first { self.set(at) } else { Ok(()) };
        let early = set.is_err().then(|| calls.waiting.remove(&key)).flatten();
        drop(calls);
        if let Some(call) = early {
            call();
        }
    }

    fn run(&self) {
        loop {
            let mut times = [0; 8];
            match rustix::io::read(&self.timer, &mut times) {
                Ok(_) | Err(Errno::INTR) => {}
                // It has no other errors; what is still to come comes now.
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
            for call in self.due() {
                if catch_unwind(AssertUnwindSafe(call)).is_err() {
                    tracing::error!("a call that was to come later panicked");
                }
            }
        }
    }

    fn due(&self) -> Vec<Call> {
        let mut calls = self.calls.lock();
        let later = calls.waiting.split_off(&(now(), u64::MAX));
        let due = std::mem::replace(&mut calls.waiting, later);
        if let Some(((at, _), _)) = calls.waiting.first_key_value()
            && let Err(error) = self.set(*at)
        {
            tracing::error!(%error, "set a timer");
        }
        due.into_values().collect()
    }
}

/// Makes a call after this time, or at once where the kernel has no timer for it.
pub(super) fn later(after: Duration, call: Call) {
    static TIMER: OnceLock<Option<Arc<Timer>>> = OnceLock::new();
    let start = || Timer::start().inspect_err(|error| tracing::warn!(%error, "start a timer")).ok();
    match TIMER.get_or_init(start) {
        Some(timer) => timer.add(after, call),
        None => call(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn calls_come_in_the_order_of_their_times_and_never_early() {
        let (tell, told) = mpsc::channel();
        let start = now();
        for ms in [30, 10, 20, 10, 0] {
            let tell = tell.clone();
            later(Duration::from_millis(ms), Box::new(move || tell.send((ms, now())).unwrap()));
        }
        let came: Vec<(u64, Duration)> = (0..5).map(|_| told.recv().unwrap()).collect();
        assert_eq!(came.iter().map(|(ms, _)| *ms).collect::<Vec<_>>(), [0, 10, 10, 20, 30]);
        assert!(came.iter().all(|(ms, at)| *at >= start + Duration::from_millis(*ms)));
    }

    #[test]
    fn a_call_that_panics_is_not_the_last_one() {
        let (tell, told) = mpsc::channel();
        later(Duration::from_millis(1), Box::new(|| panic!("on purpose")));
        later(Duration::from_millis(2), Box::new(move || tell.send(()).unwrap()));
        told.recv().unwrap();
    }
}
