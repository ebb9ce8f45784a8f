//! Which threads wait for requests, and which sit out.
//!
//! Waking a sleeping thread costs more than most requests do: a look-up is answered from memory in some
//! microseconds, and a core that was halted needs tens of them to run again. A client that asks one thing after
//! the other, as `stat` of many names does, would pay that for each. So when requests come in such a *stream*, one
//! thread serves it alone: it answers, and looks for the next request for a moment before it sleeps. The others
//! rest outside of the kernel's queue, where it can't wake them.
//!
//! No request may keep the rest waiting. Who takes one that moves many bytes, or sees another one behind it, calls
//! somebody back first; and one of those who rest watches the stream, and takes over when a request that looked
//! short does not end. While there is no stream at least one thread waits in the kernel beside the one that works.

use parking_lot::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// A thread of a stream looks for the next request for so long: the time of a few wake-ups.
pub(super) const LOOK: Duration = Duration::from_micros(150);
/// So many requests, each within [`LOOK`] of the answer before, make a stream.
const STREAM: u32 = 8;
/// A stream's request that takes longer than one to two of these is no reason to wait.
const WATCH: Duration = Duration::from_millis(2);

/// What a thread does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Sleep in the kernel until a request comes.
    Sleep,
    /// Look for one first, where that keeps no client from running: it is a stream, and nobody else waits.
    Look,
    /// Nothing more: the mount is gone.
    End,
}

/// The rules; time is given.
#[derive(Debug, Default)]
struct State {
    /// Threads that wait for a request, or look for one.
    waiting: usize,
    /// Threads that sit out.
    resting: usize,
    /// So many of them were asked to come back.
    called: usize,
    /// One of them looks after the stream.
    watched: bool,
    /// Requests in a row that came soon after an answer.
    row: u32,
    /// Requests so far.
    taken: u64,
    /// When the last one was handed on or answered.
    answered: Option<Instant>,
    over: bool,
}

impl State {
    const fn streams(&self) -> bool {
        self.row >= STREAM
    }

    /// A thread that waited has a request, and perhaps sees another behind it. `true`: call somebody back.
    fn take(&mut self, now: Instant, crowd: bool) -> bool {
        self.waiting -= 1;
        self.taken += 1;
        let soon = self.answered.is_some_and(|then| now.saturating_duration_since(then) < LOOK);
        self.row = if soon && !crowd { self.row.saturating_add(1) } else { 0 };
        let alone = self.nobody_waits() && !(self.streams() && self.watched);
        (crowd || alone) && self.call()
    }

    /// Nor is on the way.
    const fn nobody_waits(&self) -> bool {
        self.waiting + self.called == 0
    }

    /// Asks one who rests to come back, if there is one.
    const fn call(&mut self) -> bool {
        let one = self.called < self.resting;
        if one {
            self.called += 1;
        }
        one
    }

    /// A thread is done with its request. `None`: it shall rest.
    const fn answer(&mut self, now: Instant) -> Option<Next> {
        self.answered = Some(now);
        if self.streams() && self.waiting > 0 {
            self.resting += 1;
            return None;
        }
        self.waiting += 1;
        Some(if self.streams() { Next::Look } else { Next::Sleep })
    }

    /// One who rests is back at work.
    const fn back(&mut self) {
        self.resting -= 1;
        self.waiting += 1;
    }
}

/// See the module. Shared by the threads of a mount.
#[derive(Debug, Default)]
pub(super) struct Turns {
    state: Mutex<State>,
    wake: Condvar,
}

impl Turns {
    /// The calling thread begins, by waiting for a request.
    pub(super) fn begin(&self) {
        self.state.lock().waiting += 1;
    }

    /// The calling thread waits no longer, and has no request.
    pub(super) fn leave(&self) {
        let mut state = self.state.lock();
        state.waiting -= 1;
        if state.nobody_waits() {
            self.call(&mut state);
        }
    }

    /// The calling thread has a request, and whether there is another behind it.
    pub(super) fn take(&self, crowd: bool) {
        if self.state.lock().take(Instant::now(), crowd) {
            self.wake.notify_one();
        }
    }

    /// The request will take long: the stream is over, and somebody waits in the kernel.
    pub(super) fn long(&self) {
        let mut state = self.state.lock();
        state.row = 0;
        if state.nobody_waits() {
            self.call(&mut state);
        }
    }

    /// Nothing came while a thread looked for it: the stream is over.
    pub(super) fn dry(&self) {
        let mut state = self.state.lock();
        state.row = 0;
        self.call(&mut state);
    }

    fn call(&self, state: &mut State) {
        if state.call() {
            self.wake.notify_one();
        }
    }

    /// The calling thread is done with its request. May rest for as long as it is not needed.
    pub(super) fn answer(&self) -> Next {
        let mut state = self.state.lock();
        state.answer(Instant::now()).unwrap_or_else(|| self.rest(&mut state))
    }

    fn rest(&self, state: &mut MutexGuard<'_, State>) -> Next {
        loop {
            if state.over {
                return Next::End;
            }
            if state.called > 0 {
                state.called -= 1;
                break;
            }
            if state.watched || !state.streams() {
                self.wake.wait(state);
                continue;
            }
            state.watched = true;
            let taken = state.taken;
            let quiet = self.wake.wait_for(state, WATCH).timed_out() && state.taken == taken;
            state.watched = false;
            if quiet && state.nobody_waits() && state.streams() {
                state.row = 0;
                break;
            }
        }
        state.back();
        Next::Sleep
    }

    /// The mount is gone: nobody rests any more.
    pub(super) fn end(&self) {
        self.state.lock().over = true;
        self.wake.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::thread;

    /// So many requests, one after the other, each taken by whoever waits; answers with what the last one does.
    fn stream(state: &mut State, now: &mut Instant, requests: u32) -> Option<Next> {
        let mut last = None;
        for _ in 0..requests {
            *now += LOOK / 2;
            assert!(!state.take(*now, false));
            last = state.answer(*now);
            state.watched |= last.is_none();
        }
        last
    }

    fn two() -> Arc<Turns> {
        let turns = Arc::new(Turns::default());
        turns.begin();
        turns.begin();
        turns
    }

    fn four() -> (State, Instant) {
        (State { waiting: 4, ..State::default() }, Instant::now())
    }

    #[test]
    fn a_stream_is_served_by_one_and_watched_by_another() {
        let (mut state, mut now) = four();
        assert_eq!(stream(&mut state, &mut now, STREAM), Some(Next::Sleep));
        assert_eq!(stream(&mut state, &mut now, 3), None);
        assert_eq!((state.waiting, state.resting), (1, 3));
        assert_eq!(stream(&mut state, &mut now, 100), Some(Next::Look));
        // Unwatched, it may not be left to one.
        state.watched = false;
        assert!(state.take(now, false));
    }

    #[test]
    fn requests_far_apart_are_no_stream() {
        let (mut state, mut now) = four();
        for _ in 0..100 {
            now += LOOK;
            assert!(!state.take(now, false));
            assert_eq!(state.answer(now), Some(Next::Sleep));
        }
        assert_eq!(state.waiting, 4);
    }

    #[test]
    fn a_crowd_calls_one_after_the_other_back() {
        let (mut state, mut now) = four();
        stream(&mut state, &mut now, STREAM + 3);
        for _ in 0..3 {
            assert!(state.take(now, true));
            state.answer(now);
        }
        assert!(!state.take(now, true), "all were called");
        assert!(!state.streams());
    }

    #[test]
    fn after_a_stream_somebody_waits_beside_the_one_that_works() {
        let (mut state, mut now) = four();
        stream(&mut state, &mut now, STREAM + 4);
        now += Duration::from_secs(1);
        assert!(state.take(now, false), "the only one that waited has it");
        assert_eq!(state.called, 1);
    }

    /// Threads with a stream; the last one to serve it does not come back.
    #[test]
    fn who_watches_takes_over_from_one_that_does_not_end() {
        let turns = two();
        let now = Instant::now();
        {
            let mut state = turns.state.lock();
            state.answered = Some(now);
            state.row = STREAM + 1;
        }
        turns.state.lock().take(now, false);
        let other = Arc::clone(&turns);
        let watcher = thread::spawn(move || other.answer());
        while !turns.state.lock().watched {
            thread::yield_now();
        }
        // Taken by this thread, which never answers.
        turns.state.lock().take(now, false);
        assert_eq!(watcher.join().unwrap(), Next::Sleep);
        assert_eq!(turns.state.lock().waiting, 1);
    }

    #[test]
    fn nobody_rests_at_the_end() {
        let turns = two();
        turns.state.lock().row = STREAM;
        let other = Arc::clone(&turns);
        let resting = thread::spawn(move || other.answer());
        turns.end();
        assert_eq!(resting.join().unwrap(), Next::End);
    }
}
