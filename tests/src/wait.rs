//! Waiting for a condition, and walking away from a call that does not come back.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(20);

/// Waits until `condition` holds.
///
/// # Panics
/// When it does not hold within `limit`.
#[track_caller]
pub fn eventually(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < limit, "{what}: not so within {limit:?}");
        thread::sleep(POLL);
    }
}

/// Waits until `probe` has a value.
///
/// # Panics
/// When it has none within `limit`; the message ends with what the last probe said.
#[track_caller]
pub fn until<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match probe() {
            Ok(value) => return value,
            Err(why) => assert!(start.elapsed() < limit, "{what}: not so within {limit:?}: {why}"),
        }
        thread::sleep(POLL);
    }
}

/// Runs something that may block for ever, such as a call on a mount whose daemon is stopped, on a thread of
/// its own and walks away from it after `limit`. The thread ends when the cluster is torn down.
///
/// # Panics
/// When the limit passes, or when `body` panics.
#[track_caller]
pub fn within<T: Send + 'static>(
    limit: Duration,
    what: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> T {
    match try_within(limit, body) {
        Some(value) => value,
        None => panic!("{what}: no answer within {limit:?}"),
    }
}

/// Like [`within`], but `None` when the limit passes.
pub fn try_within<T: Send + 'static>(
    limit: Duration,
    body: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (tell, told) = mpsc::sync_channel(1);
    thread::Builder::new()
        .name("within".into())
        .spawn(move || {
            // The receiver may have walked away; then nobody wants the answer.
            let _ = tell.send(catch_unwind(AssertUnwindSafe(body)));
        })
        .expect("start a thread");
    match told.recv_timeout(limit) {
        Ok(Ok(value)) => Some(value),
        Ok(Err(panic)) => resume_unwind(panic),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_comes_through_and_a_block_is_left() {
        assert_eq!(within(Duration::from_secs(60), "add", || 1 + 1), 2);
        let (keep, blocked) = mpsc::channel::<()>();
        assert!(try_within(Duration::from_millis(10), move || blocked.recv()).is_none());
        drop(keep);
    }

    #[test]
    #[should_panic(expected = "the reason")]
    fn a_panic_comes_through() {
        within(Duration::from_secs(60), "panic", || panic!("the reason"));
    }

    #[test]
    #[should_panic(expected = "pigs fly: not so within 0ns: they walk")]
    fn a_probe_says_why() {
        until::<()>("pigs fly", Duration::ZERO, || Err("they walk".into()));
    }
}
