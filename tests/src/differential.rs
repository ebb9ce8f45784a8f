//! The same operations on a mount and on ext4, by the same callers: the answers and the trees must be the same.
//!
//! ```text
//! op      what can be asked, and how it is drawn
//! actor   threads that do it: each a user with an umask and open files of his own, at home on one node
//! tree    what is there in the end
//! ```
//!
//! One operation follows the other, whoever does it, so that there is only one right answer. What fails is made
//! as short as possible before it is told.

mod actor;
mod op;
mod tree;

pub use op::{Op, Step};

use crate::random::Random;
use actor::Actor;
use std::fmt::Write as _;
use std::path::PathBuf;

/// Who does something: on which node, as whom, with which umask.
#[derive(Clone, Copy, Debug)]
pub struct Role {
    /// Which view.
    pub view: usize,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Other groups, one at most.
    pub more: Option<u32>,
    /// Bits that new files do not get.
    pub umask: u32,
}

/// Root on both nodes, and two users who share a group, one on each.
pub const ROLES: [Role; 4] = [
    Role { view: 0, uid: 0, gid: 0, more: None, umask: 0o022 },
    Role { view: 1, uid: 4_711, gid: 4_711, more: Some(4_000), umask: 0o002 },
    Role { view: 0, uid: 4_712, gid: 4_000, more: None, umask: 0o027 },
    Role { view: 1, uid: 0, gid: 0, more: None, umask: 0 },
];

/// Where it is done: one tree through two nodes, and a tree on ext4.
#[derive(Clone, Debug)]
pub struct World {
    /// Directories for everything, through each node.
    pub views: [PathBuf; 2],
    /// The same on ext4.
    pub ext4: PathBuf,
}

/// What differed.
#[derive(Clone, Debug)]
pub struct Difference {
    /// The step, or all of them for the trees.
    pub after: usize,
    /// In words.
    pub why: String,
}

impl World {
    /// Does steps in a directory of this name, which is removed afterwards.
    ///
    /// # Errors
    /// The first difference.
    ///
    /// # Panics
    /// When the directory can't be made.
    pub fn run(&self, name: &str, steps: &[Step]) -> Result<(), Difference> {
        let dirs = [self.views[0].join(name), self.views[1].join(name), self.ext4.join(name)];
        tree::fresh(&dirs[0]);
        tree::fresh(&dirs[2]);
        let result = self.compare(&dirs, steps);
        tree::remove(&dirs[0]);
        tree::remove(&dirs[2]);
        result
    }

    fn compare(&self, dirs: &[PathBuf; 3], steps: &[Step]) -> Result<(), Difference> {
        let actors: Vec<Actor> = ROLES.iter().map(|r| Actor::start(*r, &dirs[r.view], &dirs[2])).collect();
        for (number, step) in steps.iter().enumerate() {
            let (mount, ext4) = actors[step.role].does(&step.op);
            if mount != ext4 {
                let why = format!("{step}\n  on the mount: {mount:?}\n  on ext4:      {ext4:?}");
                return Err(Difference { after: number, why });
            }
        }
        drop(actors);
        let (first, second, native) = (tree::of(&dirs[0]), tree::of(&dirs[1]), tree::of(&dirs[2]));
        let mut why = String::new();
        for (name, seen) in [("the first node", &first), ("the second node", &second)] {
            for line in tree::difference(seen, &native) {
                let _ = writeln!(why, "{name}: {line}");
            }
        }
        if why.is_empty() { Ok(()) } else { Err(Difference { after: steps.len(), why }) }
    }

    /// Leaves out whatever a difference does not need.
    pub fn shrink(&self, steps: Vec<Step>, difference: Difference) -> (Vec<Step>, Difference) {
        let (mut steps, mut difference) = (steps, difference);
        steps.truncate(difference.after + 1);
        let mut part = steps.len() / 2;
        let mut tries = 0;
        while part > 0 {
            let mut at = 0;
            while at < steps.len() {
                let mut fewer = steps.clone();
                fewer.drain(at..(at + part).min(steps.len()));
                tries += 1;
                match self.run(&format!("shrink{tries}"), &fewer) {
                    Err(still) => {
                        fewer.truncate(still.after + 1);
                        (steps, difference) = (fewer, still);
                    }
                    Ok(()) => at += part,
                }
            }
            part /= 2;
        }
        (steps, difference)
    }
}

/// The steps of a seed.
pub fn draw(seed: u64, count: usize) -> Vec<Step> {
    let mut random = Random::new(seed);
    (0..count).map(|_| Step::draw(&mut random, ROLES.len())).collect()
}

/// For people.
pub fn told(steps: &[Step]) -> String {
    steps.iter().fold(String::new(), |mut text, step| {
        let _ = writeln!(text, "  {step}");
        text
    })
}
