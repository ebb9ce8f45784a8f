//! Whether a history of registers is linearizable.
//!
//! [`acknowledged`] asks for a part of that: what was answered is seen by every later look, on every node. A look
//! during a write may then see either value, on each node by itself. [`linearizable`] settles that, too: once one
//! look has seen the new value, no later one sees the old. Every value is written at most once, so for that the
//! test of Gibbons and Korach ("Testing shared memories", 1997) is exact and takes `n log n`. All operations on one value form its *zone*, from the first answer to the last
//! call among them. If that is a stretch of time ("forward"), the register must have held the value over all of
//! it; if not ("backward"), one moment between the last call and the first answer is enough. A history is
//! linearizable when no two forward zones overlap, no backward zone lies within a forward one, and no value is
//! read before it is written.

use crate::history::{Ask, Operation, Outcome};
use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug)]
struct Zone {
    value: u64,
    first_answer: u64,
    last_call: u64,
    write_called: u64,
    reads: usize,
}

/// Which read missed a write that was answered before it began, for people; `None` when none did.
pub fn acknowledged(operations: &[Operation]) -> Option<String> {
    for_each_register(operations, missed)
}

/// Why a history is not linearizable, for people; `None` when it is.
pub fn linearizable(operations: &[Operation]) -> Option<String> {
    for_each_register(operations, register)
}

fn for_each_register(operations: &[Operation], judge: fn(&[Operation]) -> Option<String>) -> Option<String> {
    let mut keys: BTreeMap<usize, Vec<Operation>> = BTreeMap::new();
    for o in operations {
        keys.entry(o.key).or_default().push(*o);
    }
    keys.into_iter().find_map(|(key, of_key)| Some(format!("register {key}: {}", judge(&of_key)?)))
}

fn missed(operations: &[Operation]) -> Option<String> {
    let mut writes: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    // When each answered write was answered, and the latest call among all that were answered until then.
    let mut answered: Vec<(u64, u64)> = Vec::new();
    for o in operations {
        let Ask::Write(value) = o.ask else { continue };
        match o.outcome {
            Outcome::Fail => continue,
            Outcome::Info => writes.insert(value, (o.called, u64::MAX)),
            Outcome::Ok(_) => {
                answered.push((o.answered, o.called));
                writes.insert(value, (o.called, o.answered))
            }
        };
    }
    answered.sort_unstable();
    let mut latest = 0;
    for (_, called) in &mut answered {
        latest = latest.max(*called);
        *called = latest;
    }
    operations.iter().find_map(|o| {
        let (Ask::Read, Outcome::Ok(value)) = (o.ask, o.outcome) else { return None };
        let Some(&(called, done)) = writes.get(&value) else {
            return Some(format!("{value} was read at {} but never written", o.answered));
        };
        if o.answered < called {
            return Some(format!("{value} was read at {} and written at {called}", o.answered));
        }
        let before = answered.partition_point(|(at, _)| *at < o.called).checked_sub(1)?;
        let newest = answered[before].1;
        (done < newest).then(|| {
            format!(
                "{value} was read from {} to {}, but a write that began at {newest}, after it was done at {done}, \
                 had been answered",
                o.called, o.answered
            )
        })
    })
}

fn register(operations: &[Operation]) -> Option<String> {
    let mut zones: BTreeMap<u64, Zone> = BTreeMap::new();
    for o in operations {
        let Ask::Write(value) = o.ask else { continue };
        if o.outcome == Outcome::Fail {
            continue;
        }
        let answered = if o.outcome == Outcome::Info { u64::MAX } else { o.answered };
        let zone =
            Zone { value, first_answer: answered, last_call: o.called, write_called: o.called, reads: 0 };
        if zones.insert(value, zone).is_some() {
            return Some(format!("the value {value} was written twice: the test is wrong"));
        }
    }
    for o in operations {
        let (Ask::Read, Outcome::Ok(value)) = (o.ask, o.outcome) else { continue };
        let Some(zone) = zones.get_mut(&value) else {
            return Some(format!("{value} was read at {} but never written", o.answered));
        };
        if o.answered < zone.write_called {
            return Some(format!("{value} was read at {} and written at {}", o.answered, zone.write_called));
        }
        zone.reads += 1;
        zone.first_answer = zone.first_answer.min(o.answered);
        zone.last_call = zone.last_call.max(o.called);
    }
    // A write of unknown outcome that nobody saw may never have happened.
    zones.retain(|_, z| z.reads > 0 || z.first_answer != u64::MAX);
    let (mut forward, backward): (Vec<Zone>, Vec<Zone>) =
        zones.into_values().partition(|z| z.first_answer < z.last_call);
    forward.sort_by_key(|z| z.first_answer);
    for pair in forward.windows(2) {
        if pair[1].first_answer < pair[0].last_call {
            return Some(stale(&pair[0], &pair[1]));
        }
    }
    for inner in &backward {
        // Forward zones do not overlap: only the last that begins before it can hold it.
        let at = forward.partition_point(|z| z.first_answer < inner.last_call);
        if let Some(outer) = at.checked_sub(1).map(|i| &forward[i])
            && inner.first_answer < outer.last_call
        {
            return Some(stale(outer, inner));
        }
    }
    None
}

fn stale(outer: &Zone, inner: &Zone) -> String {
    format!(
        "{} was there from {} at the latest until {} at the earliest, but so was {} at {}",
        outer.value, outer.first_answer, outer.last_call, inner.value, inner.first_answer
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    fn op(ask: Ask, outcome: Outcome, called: u64, answered: u64) -> Operation {
        Operation { client: 0, key: 0, ask, outcome, called, answered }
    }

    fn write(value: u64, called: u64, answered: u64) -> Operation {
        op(Ask::Write(value), Outcome::Ok(value), called, answered)
    }

    fn read(value: u64, called: u64, answered: u64) -> Operation {
        op(Ask::Read, Outcome::Ok(value), called, answered)
    }

    #[test]
    fn good_histories_pass() {
        assert_eq!(linearizable(&[]), None);
        assert_eq!(
            linearizable(&[write(1, 0, 1), read(1, 2, 3), write(2, 4, 9), read(1, 5, 6), read(2, 6, 8)]),
            None
        );
        // A write whose outcome is unknown may be seen late, or never.
        let lost = op(Ask::Write(2), Outcome::Info, 2, 3);
        assert_eq!(linearizable(&[write(1, 0, 1), lost, read(1, 4, 5), read(2, 50, 60)]), None);
        assert_eq!(linearizable(&[write(1, 0, 1), lost, read(1, 4, 5)]), None);
    }

    #[test]
    fn bad_histories_are_found() {
        for bad in [
            vec![write(1, 0, 1), write(2, 2, 3), read(1, 4, 5)],
            vec![write(1, 0, 1), write(2, 2, 9), read(2, 3, 4), read(1, 5, 6)],
            vec![write(1, 0, 1), read(7, 2, 3)],
            vec![read(1, 0, 1), write(1, 2, 3)],
            vec![write(1, 0, 1), op(Ask::Write(2), Outcome::Fail, 2, 3), read(2, 4, 5)],
            vec![write(1, 0, 1), write(2, 2, 20), read(2, 3, 4), read(1, 5, 6), read(2, 7, 8)],
        ] {
            assert!(linearizable(&bad).is_some(), "{bad:?}");
        }
    }

    #[test]
    fn what_was_answered_must_be_seen_and_what_was_not_may_be() {
        // Two nodes disagree while 2 is being written: nothing that was answered is missed, but it is not linearizable.
        let during = [write(1, 0, 1), write(2, 2, 9), read(2, 3, 4), read(1, 5, 6)];
        assert_eq!(acknowledged(&during), None);
        assert!(linearizable(&during).is_some());
        let lost = op(Ask::Write(2), Outcome::Info, 2, 3);
        assert_eq!(
            acknowledged(&[write(1, 0, 1), lost, read(1, 4, 5), read(2, 50, 60), read(1, 70, 71)]),
            None
        );
        for bad in [
            vec![write(1, 0, 1), write(2, 2, 3), read(1, 4, 5)],
            vec![write(1, 0, 1), write(2, 2, 9), read(2, 3, 4), read(1, 10, 11)],
            vec![write(1, 0, 1), write(2, 2, 9), write(3, 3, 4), read(1, 5, 6)],
            vec![write(1, 0, 1), read(7, 2, 3)],
            vec![read(1, 0, 1), write(1, 2, 3)],
            vec![write(1, 0, 1), op(Ask::Write(2), Outcome::Fail, 2, 3), read(2, 4, 5)],
        ] {
            assert!(acknowledged(&bad).is_some(), "{bad:?}");
        }
    }

    /// Tries every order: slow, and certainly right.
    fn by_force(left: &[Operation], now: u64) -> bool {
        if left.iter().all(|o| o.outcome == Outcome::Info) {
            return true;
        }
        let first_answer = left.iter().filter(|o| o.outcome != Outcome::Info).map(|o| o.answered).min();
        (0..left.len()).filter(|&i| left[i].called <= first_answer.unwrap_or(u64::MAX)).any(|i| {
            let rest: Vec<Operation> =
                left.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, o)| *o).collect();
            match (left[i].ask, left[i].outcome) {
                (Ask::Read, Outcome::Ok(v)) => v == now && by_force(&rest, now),
                (Ask::Read, _) => by_force(&rest, now),
                (Ask::Write(v), _) => by_force(&rest, v),
            }
        })
    }

    #[test]
    fn small_histories_are_judged_as_by_trying_all_orders() {
        let mut random = Random::new(5);
        let (mut good, mut bad) = (0, 0);
        for _ in 0..20_000 {
            let mut history = vec![write(0, 0, 1)];
            for value in 1..=2 + random.below(5) as u64 {
                // Distinct times, so that "before" is never a matter of taste.
                let mut times =
                    [2 + random.below(40) as u64 * 16 + value, 2 + random.below(40) as u64 * 16 + value + 8];
                times.sort_unstable();
                history.push(match random.below(5) {
                    0 => op(Ask::Write(value), Outcome::Info, times[0], times[1]),
                    1 => write(value, times[0], times[1]),
                    _ => read(random.below(value as usize + 1) as u64, times[0], times[1]),
                });
            }
            let written: Vec<u64> = history
                .iter()
                .filter_map(|o| if let Ask::Write(v) = o.ask { Some(v) } else { None })
                .collect();
            history.retain(|o| match (o.ask, o.outcome) {
                (Ask::Read, Outcome::Ok(v)) => written.contains(&v),
                _ => true,
            });
            let want = by_force(&history, u64::MAX);
            assert_eq!(linearizable(&history).is_none(), want, "{history:?}");
            assert!(
                !want || acknowledged(&history).is_none(),
                "linearizable, yet something was missed: {history:?}"
            );
            *(if want { &mut good } else { &mut bad }) += 1;
        }
        assert!(good > 1_000 && bad > 1_000, "{good} good, {bad} bad");
    }
}
