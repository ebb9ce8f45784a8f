//! Names that are looked up one after the other in a directory are told to the kernel before it asks for the rest,
//! as Lustre's statahead does: a program that `stat`s or opens all files of a directory by their names would
//! otherwise wait for an answer each time, and the wake-ups cost more than the answers.
//!
//! The kernel takes attributes of many names at once only as the answer to a listing, and only a process can ask
//! for one: a [`Lister`]. So that little is listed for nothing, the first part is small, each further one needs more
//! look-ups as a reason, and where listings do not keep the kernel from asking they become rare.

use super::Core;
use crate::ops::{Listed, Lister, Listing};
use hfcache_base::InodeId;
use hfcache_base::placement::mix;
use hfcache_base::seam::Moment;
use parking_lot::Mutex;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Directories that are watched at once; two that share a slot take turns.
const SLOTS: usize = 64;
/// So many names, looked up one after the other, are a reason to list more of the directory.
const LOOKUPS_FIRST: u32 = 4;
/// So many where listings do not keep the kernel from asking.
const LOOKUPS_MAX: u32 = 1024;
/// Rows of the first listing: about what fits into one READDIRPLUS.
const ROWS_FIRST: u32 = 256;
/// Rows of a listing: some ten milliseconds of a core, some MiB of the kernel's memory.
const ROWS_MAX: u32 = 4096;
/// Nothing is in a hurry in a directory where nothing was looked up for so long.
const QUIET: Duration = Duration::from_millis(50);

/// What is going on in a directory. The rules; time is given.
#[derive(Clone, Debug)]
struct Run {
    dir: InodeId,
    /// When a name was last looked up.
    last: Moment,
    /// Names looked up since the last listing.
    lookups: u32,
    /// So many lead to the next.
    enough: u32,
    /// The next one begins behind this cookie.
    after: u64,
    /// And has so many rows.
    rows: u32,
    /// One is under way.
    asked: bool,
}

impl Run {
    const fn new(dir: InodeId, now: Moment) -> Self {
        let (enough, rows) = (LOOKUPS_FIRST, ROWS_FIRST);
        Self { dir, last: now, lookups: 0, enough, after: 0, rows, asked: false }
    }

    /// A name was found. `true`: it is time to list.
    fn looked_up(&mut self, dir: InodeId, now: Moment) -> bool {
        if self.dir != dir || now.since(self.last) > QUIET {
            *self = Self::new(dir, now);
        }
        self.last = now;
        self.lookups += 1;
        let due = !self.asked && self.lookups >= self.enough;
        self.asked |= due;
        due
    }

    /// The listing is over.
    fn listed(&mut self, dir: InodeId, listed: Listed) {
        if self.dir != dir {
            return;
        }
        self.asked = false;
        self.lookups = 0;
        self.enough = (self.enough * 2).min(LOOKUPS_MAX);
        match listed {
            Listed::Until(cookie) => {
                self.after = cookie;
                self.rows = (self.rows * 4).min(ROWS_MAX);
            }
            // If more is asked for the kernel has lost it, or must not believe it any more.
            Listed::All => (self.after, self.rows) = (0, ROWS_FIRST),
            Listed::Failed => (self.after, self.enough) = (0, LOOKUPS_MAX),
        }
    }
}

/// See the module.
pub(crate) struct Statahead {
    lister: OnceLock<Arc<dyn Lister>>,
    /// By hash of the directory.
    runs: Box<[Mutex<Run>]>,
}

impl Default for Statahead {
    fn default() -> Self {
        let none = Run::new(InodeId(0), Moment(Duration::ZERO));
        Self { lister: OnceLock::new(), runs: (0..SLOTS).map(|_| Mutex::new(none.clone())).collect() }
    }
}

impl Statahead {
    /// From now on this one is asked.
    pub(crate) fn ask(&self, lister: Arc<dyn Lister>) {
        // The first one stays; there is no second mount.
        let _ = self.lister.set(lister);
    }

    fn run(&self, dir: InodeId) -> &Mutex<Run> {
        &self.runs[mix(dir.0) as usize % SLOTS]
    }

    /// What came of a listing.
    pub(crate) fn listed(&self, dir: InodeId, listed: Listed) {
        self.run(dir).lock().listed(dir, listed);
    }
}

impl Core {
    /// A name was found in a directory, and the kernel may keep it.
    pub(crate) fn looked_up(&self, dir: InodeId) {
        let Some(lister) = self.statahead.lister.get() else { return };
        let (after, rows) = {
            let mut run = self.statahead.run(dir).lock();
            if !run.looked_up(dir, self.clock.now()) {
                return;
            }
            (run.after, run.rows)
        };
        // Nothing is told of the path, so it need not be settled. Without one the directory was removed meanwhile.
        let path = self.meta.read_stale().path(dir);
        let asked = path.is_ok_and(|path| lister.ask(&Listing { dir, path, after, rows }));
        if !asked {
            self.statahead.listed(dir, Listed::Failed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIR: InodeId = InodeId(7);

    fn at(ms: u64) -> Moment {
        Moment(Duration::from_millis(ms))
    }

    fn fresh() -> Run {
        Run::new(InodeId(0), at(0))
    }

    /// How many names are looked up until a listing is due.
    fn until_due(run: &mut Run) -> u32 {
        (1..).find(|_| run.looked_up(DIR, at(1))).expect("a listing")
    }

    #[test]
    fn a_directory_is_listed_in_growing_parts() {
        let mut run = fresh();
        let mut parts = Vec::new();
        for cookie in 1..=4 {
            parts.push((until_due(&mut run), run.after, run.rows));
            run.listed(DIR, Listed::Until(cookie));
        }
        assert_eq!(parts, [(4, 0, 256), (8, 1, 1024), (16, 2, 4096), (32, 3, 4096)]);
    }

    #[test]
    fn nothing_is_asked_twice() {
        let mut run = fresh();
        until_due(&mut run);
        assert!((0..100).all(|_| !run.looked_up(DIR, at(2))));
        run.listed(DIR, Listed::All);
        assert_eq!(until_due(&mut run), 8, "what was looked up meanwhile does not count");
        assert_eq!((run.after, run.rows), (0, ROWS_FIRST), "from the start again");
    }

    #[test]
    fn names_looked_up_now_and_then_are_no_reason() {
        let mut run = fresh();
        assert!((0..100).all(|n| !run.looked_up(DIR, at(n * 51))));
        assert!(
            (0..100).all(|n| !run.looked_up(InodeId(n % 2), at(6000))),
            "nor are two directories in turns"
        );
    }

    #[test]
    fn listings_that_do_not_help_become_rare() {
        let mut run = fresh();
        let mut lookups = 0;
        for _ in 0..20 {
            lookups = until_due(&mut run);
            run.listed(DIR, Listed::All);
        }
        assert_eq!(lookups, LOOKUPS_MAX);
        let mut run = fresh();
        until_due(&mut run);
        run.listed(DIR, Listed::Failed);
        assert_eq!(until_due(&mut run), LOOKUPS_MAX);
        // After a while it is tried again.
        assert!(!run.looked_up(DIR, at(1000)));
        assert_eq!(run.enough, LOOKUPS_FIRST);
    }

    #[test]
    fn what_came_of_another_directory_is_nothing_to_this_one() {
        let mut run = fresh();
        until_due(&mut run);
        run.listed(InodeId(8), Listed::Until(9));
        assert!(run.asked);
        assert_eq!(run.after, 0);
    }
}
