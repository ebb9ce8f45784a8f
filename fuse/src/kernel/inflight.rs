//! Requests that were read and not answered yet: what an INTERRUPT may name, and what shutdown waits for.

use parking_lot::{Condvar, Mutex};
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const SHARDS: usize = 16;

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// The file system is being called and may not know the request yet.
    Calling { interrupted: bool },
    /// The file system has it.
    Called,
}

/// What to do about an INTERRUPT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interrupt {
    /// Tell the file system.
    Tell,
    /// The thread that is calling the file system will.
    Noted,
    /// Not known: answered already, or read by a thread that has not come this far. Ask the kernel to send
    /// it again; it does only in the second case.
    Later,
}

/// See the module. Sharded, as every request passes here.
#[derive(Default)]
pub(super) struct InFlight {
    shards: [Mutex<HashMap<u64, State>>; SHARDS],
    count: AtomicUsize,
    idle_lock: Mutex<()>,
    idle: Condvar,
}

impl InFlight {
    fn shard(&self, unique: u64) -> &Mutex<HashMap<u64, State>> {
        // The lowest bit of the number marks interrupts.
        &self.shards[(unique >> 1) as usize % SHARDS]
    }

    /// A request is about to be handed to the file system.
    pub(super) fn begin(&self, unique: u64) {
        let state = State::Calling { interrupted: false };
        if self.shard(unique).lock().insert(unique, state).is_none() {
            self.count.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// The file system was called. `true` if it has to be told now that the request was interrupted.
    pub(super) fn called(&self, unique: u64) -> bool {
        match self.shard(unique).lock().get_mut(&unique) {
            Some(state) => std::mem::replace(state, State::Called) == State::Calling { interrupted: true },
            None => false,
        }
    }

    /// The request was answered.
    pub(super) fn end(&self, unique: u64) {
        let known = self.shard(unique).lock().remove(&unique).is_some();
        if known && self.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            let _guard = self.idle_lock.lock();
            self.idle.notify_all();
        }
    }

    /// The kernel no longer waits for this one.
    pub(super) fn interrupt(&self, unique: u64) -> Interrupt {
        match self.shard(unique).lock().get_mut(&unique) {
            None => Interrupt::Later,
            Some(State::Called) => Interrupt::Tell,
            Some(State::Calling { interrupted }) => {
                *interrupted = true;
                Interrupt::Noted
            }
        }
    }

    /// Whether the kernel no longer waits for a request that the file system does not have yet.
    pub(super) fn is_interrupted(&self, unique: u64) -> bool {
        self.shard(unique).lock().get(&unique) == Some(&State::Calling { interrupted: true })
    }

    /// Interrupts everything; answers with what the file system has.
    pub(super) fn interrupt_all(&self) -> Vec<u64> {
        let mut called = Vec::new();
        for shard in &self.shards {
            for (unique, state) in shard.lock().iter_mut() {
                match state {
                    State::Called => called.push(*unique),
                    State::Calling { interrupted } => *interrupted = true,
                }
            }
        }
        called
    }

    /// Waits until everything is answered; `false` if that takes longer than `limit`.
    pub(super) fn wait_idle(&self, limit: Duration) -> bool {
        let mut guard = self.idle_lock.lock();
        let busy = |(): &mut ()| self.count.load(Ordering::Acquire) > 0;
        !self.idle.wait_while_for(&mut guard, busy, limit).timed_out() || !busy(&mut ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_is_never_lost() {
        let table = InFlight::default();
        assert_eq!(table.interrupt(8), Interrupt::Later);
        table.begin(8);
        assert_eq!(table.interrupt(8), Interrupt::Noted);
        assert!(table.called(8));
        assert_eq!(table.interrupt(8), Interrupt::Tell);
        assert_eq!(table.interrupt_all(), [8]);
        assert!(!table.wait_idle(Duration::ZERO));
        table.end(8);
        table.end(8);
        assert_eq!(table.interrupt(8), Interrupt::Later);
        assert!(table.wait_idle(Duration::from_secs(60)));
    }

    #[test]
    fn an_answer_may_come_before_the_call_returns() {
        let table = InFlight::default();
        table.begin(2);
        table.end(2);
        assert!(!table.called(2));
        assert!(table.interrupt_all().is_empty());
    }
}
