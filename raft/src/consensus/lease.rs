//! The rules of read leases and session leases: who may read, who must have applied, who is silent.
//! Pure: every function is told the time.
//!
//! A holder may read alone while its lease lasts. The leader answers a write only when every holder whose
//! lease may still last has applied it, so no holder can miss a write that anyone was told of. The holder
//! counts a lease from the moment it asked, on its own clock and a little shorter; the leader from the
//! moment it answered, so the leader's count never ends first. A new leader does not know the leases of
//! the one before, so it grants and answers nothing until they must have ended.

use hfcache_base::limits::{CLOCK_DRIFT_PER_MILLE, READ_LEASE, SESSION_LEASE};
use hfcache_base::seam::Moment;
use hfcache_base::{NodeId, SessionId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// What is left of a time when the other clock may be the slower one.
pub const fn shortened(d: Duration) -> Duration {
    Duration::from_micros(d.as_micros() as u64 / 1_000 * (1_000 - CLOCK_DRIFT_PER_MILLE as u64))
}

/// What a time may become when the other clock may be the slower one.
pub const fn lengthened(d: Duration) -> Duration {
    Duration::from_micros(d.as_micros() as u64 / 1_000 * (1_000 + CLOCK_DRIFT_PER_MILLE as u64))
}

/// A leader grants a lease only when a quorum confirmed it at most this long ago.
pub const CONFIRMED_WITHIN: Duration = Duration::from_millis(300);

/// How long after it won a leader must fear the leases of the one before. That one was last confirmed
/// at some moment C, so it granted nothing after C + [`CONFIRMED_WITHIN`]; and the voters who confirmed
/// it let nobody else win before C + `vote_lease`. (A leader that hands over first lets its leases end.)
pub fn quarantine(vote_lease: Duration) -> Duration {
    lengthened(READ_LEASE + CONFIRMED_WITHIN).saturating_sub(shortened(vote_lease))
}

/// Grants that wait for this node to catch up; more than are ever alive at once.
const PENDING_MAX: usize = 8;

/// The leases this node holds.
#[derive(Debug, Default)]
pub struct Held {
    active: Option<Moment>,
    /// Until when, and what must be applied here first.
    pending: VecDeque<(Moment, u64)>,
}

impl Held {
    /// A grant arrived: it may be used when `index` is applied here.
    pub fn granted(&mut self, asked: Moment, index: u64) {
        if self.pending.len() == PENDING_MAX {
            self.pending.pop_front();
        }
        self.pending.push_back((asked.after(shortened(READ_LEASE)), index));
    }

    /// Until when this node may read a state that holds everything up to `applied`.
    pub fn until(&mut self, applied: u64, now: Moment) -> Option<Moment> {
        let mut active = self.active;
        self.pending.retain(|(until, index)| {
            if *index <= applied {
                active = active.max(Some(*until));
            }
            *index > applied && *until > now
        });
        self.active = active.filter(|until| *until > now);
        self.active
    }

    /// Whether the leader may be waiting for this node.
    pub fn any(&self, now: Moment) -> bool {
        self.active.is_some_and(|until| until > now) || self.pending.iter().any(|(until, _)| *until > now)
    }

    /// Reads nothing alone from now on.
    pub fn give_up(&mut self) {
        *self = Self::default();
    }
}

#[derive(Clone, Copy, Debug)]
struct Grant {
    until: Moment,
    applied: u64,
}

/// The leases a leader has granted.
#[derive(Debug)]
pub struct Grants {
    /// Leases of earlier leaders may last until then.
    quarantine: Moment,
    holders: BTreeMap<NodeId, Grant>,
    /// What a node must have applied by its next renewal: one that does not keep up gets no lease, so that
    /// it cannot hold up everyone's writes for longer than a lease.
    targets: BTreeMap<NodeId, u64>,
    /// Everyone who may read alone has applied up to here.
    settled: u64,
    /// This leader is about to hand over: it grants nothing more.
    closed: bool,
}

impl Grants {
    /// For a leader that must fear the leases of earlier ones until `quarantine`.
    pub fn new(quarantine: Moment) -> Self {
        Self { quarantine, holders: BTreeMap::new(), targets: BTreeMap::new(), settled: 0, closed: false }
    }

    /// Grants nothing from now on.
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// Until when nothing is granted or answered.
    pub fn quarantine(&self) -> Moment {
        self.quarantine
    }

    /// A node asks for a lease when the leader's newest applied index is `index`; whether it gets one. It
    /// may use it when it has applied `index`.
    pub fn renew(&mut self, node: NodeId, applied: u64, index: u64, now: Moment) -> bool {
        self.report(node, applied);
        let target = *self.targets.entry(node).or_insert(index);
        if applied < target || now < self.quarantine || self.closed {
            return false;
        }
        self.targets.insert(node, index);
        let grant = Grant { until: now.after(READ_LEASE), applied };
        self.holders
            .entry(node)
            .and_modify(|g| *g = Grant { until: grant.until.max(g.until), applied: applied.max(g.applied) })
            .or_insert(grant);
        true
    }

    /// A node has applied up to an index.
    pub fn report(&mut self, node: NodeId, applied: u64) {
        if let Some(grant) = self.holders.get_mut(&node) {
            grant.applied = grant.applied.max(applied);
        }
    }

    /// A node reads nothing alone any more.
    pub fn give_back(&mut self, node: NodeId) {
        self.holders.remove(&node);
        self.targets.remove(&node);
    }

    /// Until when at the latest a write at `index` must not be answered, if it must not be now.
    pub fn blocked_until(&mut self, index: u64, now: Moment) -> Option<Moment> {
        if now < self.quarantine {
            return Some(self.quarantine);
        }
        self.holders.retain(|_, grant| grant.until > now);
        self.holders.values().filter(|grant| grant.applied < index).map(|grant| grant.until).max()
    }

    /// The greatest index that every node which may read alone has applied, when the leader itself has applied
    /// `applied`. It never goes back: a lease that is granted later is used only by who has applied at least
    /// what the leader had by then.
    pub fn settled(&mut self, applied: u64, now: Moment) -> u64 {
        if now >= self.quarantine {
            self.holders.retain(|_, grant| grant.until > now);
            let slowest = self.holders.values().map(|grant| grant.applied).fold(applied, u64::min);
            self.settled = self.settled.max(slowest);
        }
        self.settled
    }

    /// Nodes with a lease.
    pub fn holders(&self, now: Moment) -> impl Iterator<Item = NodeId> {
        self.holders.iter().filter(move |(_, grant)| grant.until > now).map(|(node, _)| *node)
    }
}

/// When a leader last heard of each session.
#[derive(Debug, Default)]
pub struct Sessions {
    heard: BTreeMap<SessionId, Moment>,
    /// Being closed: cannot be renewed any more.
    closing: BTreeSet<SessionId>,
}

impl Sessions {
    /// Brings in which sessions are alive in the state; the timer of an unknown one starts now.
    pub fn reconcile(&mut self, live: &BTreeSet<SessionId>, now: Moment) {
        self.heard.retain(|session, _| live.contains(session));
        self.closing.retain(|session| live.contains(session));
        for session in live {
            self.heard.entry(*session).or_insert(now);
        }
    }

    /// A session's node has spoken. `None`: this leader does not know the session.
    pub fn renew(&mut self, session: SessionId, now: Moment) -> Option<bool> {
        let heard = self.heard.get_mut(&session)?;
        if self.closing.contains(&session) {
            return Some(false);
        }
        *heard = now.max(*heard);
        Some(true)
    }

    /// Sessions that were silent for too long; they cannot be renewed from now on.
    pub fn expire(&mut self, now: Moment) -> Vec<SessionId> {
        let silent = self.heard.iter().filter(|(_, heard)| now.since(**heard) >= SESSION_LEASE);
        let silent: Vec<SessionId> = silent.map(|(session, _)| *session).collect();
        self.closing.extend(&silent);
        silent
    }
}

/// Whether a node that last asked successfully at `asked` may go on acting for its session.
pub fn session_holds(asked: Moment, now: Moment) -> bool {
    now.since(asked) < shortened(SESSION_LEASE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);

    fn at(ms: u64) -> Moment {
        Moment(Duration::from_millis(ms))
    }

    #[test]
    fn a_lease_is_used_only_after_catching_up_and_never_to_its_full_length() {
        let mut held = Held::default();
        held.granted(at(1_000), 7);
        assert_eq!(held.until(6, at(1_001)), None);
        assert!(held.any(at(1_001)));
        assert_eq!(held.until(7, at(1_002)), Some(at(1_792)));
        assert_eq!(held.until(7, at(1_792)), None);
        assert!(!held.any(at(1_792)));
    }

    #[test]
    fn a_renewal_that_is_ahead_does_not_take_the_old_lease_away() {
        let mut held = Held::default();
        held.granted(at(0), 5);
        assert!(held.until(5, at(1)).is_some());
        held.granted(at(200), 9);
        assert_eq!(held.until(5, at(300)), Some(at(792)));
        assert_eq!(held.until(9, at(300)), Some(at(992)));
        held.give_up();
        assert_eq!(held.until(9, at(301)), None);
    }

    #[test]
    fn a_write_waits_for_every_holder_or_the_end_of_its_lease() {
        let mut grants = Grants::new(at(0));
        assert!(grants.renew(A, 5, 5, at(10)));
        assert!(grants.renew(B, 5, 5, at(20)));
        assert_eq!(grants.blocked_until(5, at(30)), None);
        assert_eq!(grants.blocked_until(6, at(30)), Some(at(820)));
        grants.report(B, 6);
        assert_eq!(grants.blocked_until(6, at(30)), Some(at(810)));
        assert_eq!(grants.blocked_until(6, at(810)), None, "A's lease has run out");
        assert_eq!(grants.blocked_until(7, at(815)), Some(at(820)));
        grants.give_back(B);
        assert_eq!(grants.blocked_until(7, at(815)), None);
    }

    #[test]
    fn the_leaders_count_of_a_lease_ends_after_the_holders_even_with_drift() {
        // The holder asked at 0 on its clock; the leader answered at once; the holder's clock is 1 % slow.
        let holder_until = Moment(Duration::ZERO).after(shortened(READ_LEASE));
        let real = holder_until.0.as_micros() * 1_010 / 1_000;
        assert!(real <= READ_LEASE.as_micros());
    }

    #[test]
    fn a_new_leader_grants_and_answers_nothing_until_old_leases_have_ended() {
        let mut grants = Grants::new(at(5_400));
        assert!(!grants.renew(A, 9, 9, at(5_100)));
        assert_eq!(grants.blocked_until(1, at(5_100)), Some(grants.quarantine()));
        assert!(grants.renew(A, 9, 9, grants.quarantine()));
    }

    #[test]
    fn no_lease_outlives_the_quarantine_of_the_next_leader() {
        let vote_lease = Duration::from_millis(750);
        // Confirmed at 0, granted at the last moment, by the slowest clock; the next one won by the fastest.
        let lease_ends = lengthened(CONFIRMED_WITHIN) + lengthened(READ_LEASE);
        let free = shortened(vote_lease) + quarantine(vote_lease);
        assert!(lease_ends <= free, "{lease_ends:?} > {free:?}");
    }

    #[test]
    fn a_leader_that_hands_over_grants_nothing_more() {
        let mut grants = Grants::new(at(0));
        assert!(grants.renew(A, 5, 5, at(0)));
        grants.close();
        assert!(!grants.renew(A, 5, 5, at(200)));
        assert_eq!(grants.blocked_until(6, at(799)), Some(at(800)));
        assert_eq!(grants.blocked_until(6, at(800)), None);
    }

    #[test]
    fn settled_is_what_every_holder_and_the_leader_have_applied() {
        let mut grants = Grants::new(at(0));
        assert_eq!(grants.settled(4, at(0)), 4, "nobody reads alone");
        assert!(grants.renew(A, 5, 5, at(10)));
        assert!(grants.renew(B, 5, 5, at(20)));
        grants.report(A, 9);
        assert_eq!(grants.settled(9, at(30)), 5);
        grants.report(B, 7);
        assert_eq!(grants.settled(9, at(30)), 7);
        assert_eq!(grants.blocked_until(7, at(30)), None);
        assert!(grants.blocked_until(8, at(30)).is_some());
        grants.report(B, 12);
        assert_eq!(grants.settled(8, at(30)), 8, "the leader must have it, too");
        assert_eq!(grants.settled(12, at(810)), 12, "A's lease has run out");
    }

    #[test]
    fn settled_stays_settled_when_a_node_comes_back_from_far_behind() {
        let mut grants = Grants::new(at(0));
        assert_eq!(grants.settled(50, at(0)), 50);
        assert!(!grants.renew(A, 3, 50, at(1)));
        assert!(grants.renew(A, 50, 60, at(2)), "to be used when 60 is applied there");
        assert_eq!(grants.settled(60, at(3)), 50);
        assert!(grants.renew(B, 60, 60, at(3)));
        assert_eq!(grants.settled(60, at(4)), 50);
        grants.give_back(A);
        assert_eq!(grants.settled(60, at(5)), 60);
    }

    #[test]
    fn a_new_leader_settles_nothing_until_old_leases_have_ended() {
        let mut grants = Grants::new(at(400));
        assert_eq!(grants.settled(9, at(399)), 0);
        assert_eq!(grants.settled(9, at(400)), 9);
    }

    #[test]
    fn a_node_that_does_not_keep_up_loses_its_lease() {
        let mut grants = Grants::new(at(0));
        assert!(!grants.renew(A, 1, 100, at(0)), "must first show that it can catch up");
        assert!(grants.renew(A, 100, 150, at(200)));
        assert!(!grants.renew(A, 120, 300, at(400)), "did not reach 150");
        assert_eq!(grants.blocked_until(300, at(999)), Some(at(1_000)));
        assert_eq!(grants.blocked_until(300, at(1_000)), None);
        assert!(grants.renew(A, 150, 300, at(1_000)));
    }

    #[test]
    fn sessions_expire_when_silent_and_cannot_come_back() {
        let (one, two) = (SessionId(1), SessionId(2));
        let mut sessions = Sessions::default();
        assert_eq!(sessions.renew(one, at(0)), None);
        sessions.reconcile(&[one, two].into(), at(0));
        assert_eq!(sessions.renew(one, at(9_000)), Some(true));
        assert_eq!(sessions.expire(at(9_999)), []);
        assert_eq!(sessions.expire(at(10_000)), [two]);
        assert_eq!(sessions.renew(two, at(10_001)), Some(false));
        sessions.reconcile(&[one].into(), at(10_002));
        assert_eq!(sessions.renew(two, at(10_003)), None);
    }

    #[test]
    fn a_node_fences_itself_before_its_leader_gives_up_on_it() {
        assert!(session_holds(at(0), at(9_899)));
        assert!(!session_holds(at(0), at(9_900)));
    }
}
