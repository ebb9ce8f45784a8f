//! What can be asked of a file system, and how it is drawn: few names, so that things meet.

use crate::random::Random;
use std::fmt;

/// Files that an actor can have open.
pub(super) const SLOTS: u64 = 2;

/// Something to do. Paths are relative.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Op {
    Create { path: String, mode: u32, exclusive: bool },
    Write { path: String, at: u64, len: usize, fill: u8 },
    Append { path: String, len: usize, fill: u8 },
    Truncate { path: String, len: u64 },
    Punch { path: String, at: u64, len: u64 },
    Copy { from: String, at: u64, to: String, to_at: u64, len: usize },
    Read { path: String },
    Stat { path: String },
    List { path: String },
    Mkdir { path: String, mode: u32 },
    Rmdir { path: String },
    Unlink { path: String },
    Rename { from: String, to: String, flags: u32 },
    Link { from: String, to: String },
    Symlink { target: String, path: String },
    Readlink { path: String },
    Special { path: String, mode: u32 },
    Chmod { path: String, mode: u32 },
    Chown { path: String, uid: Option<u32>, gid: Option<u32> },
    Times { path: String, access: i64, modification: i64 },
    SetXattr { path: String, name: String, value: String, flags: i32 },
    GetXattr { path: String, name: String },
    ListXattr { path: String },
    RemoveXattr { path: String, name: String },
    SetAcl { path: String, default: bool, text: String },
    Open { slot: u64, path: String, write: bool },
    Nameless { slot: u64, path: String },
    HeldWrite { slot: u64, at: u64, len: usize, fill: u8 },
    HeldTruncate { slot: u64, len: u64 },
    HeldStat { slot: u64 },
    HeldLink { slot: u64, path: String },
    Close { slot: u64 },
}

/// Who does what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Index of [`ROLES`](super::ROLES).
    pub role: usize,
    /// What.
    pub op: Op,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let role = super::ROLES[self.role];
        write!(f, "node {} user {}: {:?}", role.view + 1, role.uid, self.op)
    }
}

fn path(random: &mut Random) -> String {
    let depth = random.one(&[1, 1, 1, 2, 2, 3]);
    let mut path: Vec<&str> = (0..depth).map(|_| random.one(&["a", "b", "c"])).collect();
    match random.below(40) {
        0 => path.push("."),
        1 => path.push(".."),
        2 => path.push(""),
        _ => {}
    }
    path.join("/")
}

/// Within a page, at its edges, and over what is kept inline.
fn length(random: &mut Random) -> usize {
    random.one(&[0, 1, 7, 100, 4_095, 4_096, 5_000, 20_000, 100_000])
}

fn offset(random: &mut Random) -> u64 {
    random.one(&[0, 0, 1, 50, 4_096, 8_191, 70_000])
}

fn mode(random: &mut Random) -> u32 {
    random
        .one(&[0o777, 0o666, 0o644, 0o600, 0o000, 0o700, 0o755, 0o1777, 0o2775, 0o4755, 0o6711, 0o070, 0o007])
}

fn attribute(random: &mut Random) -> String {
    random.one(&["user.a", "user.a", "user.b", "trusted.t", "nothing.n", "user."]).into()
}

/// Lists in which users, groups and the mask say different things.
fn list(random: &mut Random) -> String {
    let named = random.one(&["", "u:4711:rw ", "u:4712:- ", "u:4711:r u:4712:rwx "]);
    let groups = random.one(&["", "g:4000:rx ", "g:4711:rw "]);
    let mut one = || random.one(&["-", "r", "rw", "rwx", "rx"]);
    format!("u::{} {named}g::{} {groups}m::{} o::{}", one(), one(), one(), one())
}

impl Step {
    /// The next one.
    pub fn draw(random: &mut Random, roles: usize) -> Self {
        let role = random.below(roles as u64) as usize;
        let slot = random.below(SLOTS);
        let fill = b'a' + random.below(26) as u8;
        let op = match random.below(110) {
            0..8 => Op::Create { path: path(random), mode: mode(random), exclusive: random.below(2) == 0 },
            8..16 => Op::Write { path: path(random), at: offset(random), len: length(random), fill },
            16..20 => Op::Append { path: path(random), len: length(random), fill },
            20..23 => Op::Truncate { path: path(random), len: length(random) as u64 },
            23..25 => Op::Punch { path: path(random), at: offset(random), len: 1 + length(random) as u64 },
            25..27 => Op::Copy {
                from: path(random),
                at: offset(random),
                to: path(random),
                to_at: offset(random),
                len: length(random),
            },
            27..32 => Op::Read { path: path(random) },
            32..37 => Op::Stat { path: path(random) },
            37..40 => Op::List { path: path(random) },
            40..50 => Op::Mkdir { path: path(random), mode: mode(random) },
            50..53 => Op::Rmdir { path: path(random) },
            53..57 => Op::Unlink { path: path(random) },
            57..66 => {
                let flags = random.one(&[0, 0, 0, libc::RENAME_NOREPLACE, libc::RENAME_EXCHANGE]);
                Op::Rename { from: path(random), to: path(random), flags }
            }
            66..70 => Op::Link { from: path(random), to: path(random) },
            70..74 => {
                let up = random.one(&["", "", "../"]);
                Op::Symlink { target: format!("{up}{}", path(random)), path: path(random) }
            }
            74..75 => Op::Readlink { path: path(random) },
            75..77 => {
                let kind = random.one(&[libc::S_IFIFO, libc::S_IFSOCK, libc::S_IFREG]);
                Op::Special { path: path(random), mode: kind | mode(random) }
            }
            77..82 => Op::Chmod { path: path(random), mode: mode(random) },
            82..86 => {
                // Never neither: the kernel answers that itself, and for FUSE it does not look at set-id bits.
                let one = |random: &mut Random| random.one(&[0, 4_711, 4_712, 4_000]);
                let (user, group) = random.one(&[(true, false), (false, true), (true, true)]);
                let (uid, gid) = (one(random), one(random));
                Op::Chown { path: path(random), uid: user.then_some(uid), gid: group.then_some(gid) }
            }
            86..88 => {
                let time = |random: &mut Random| random.one(&[-1, 0, 1, 1_700_000_000, 1 << 33]);
                Op::Times { path: path(random), access: time(random), modification: time(random) }
            }
            88..91 => Op::Open { slot, path: path(random), write: random.below(3) > 0 },
            91..92 => Op::Nameless { slot, path: path(random) },
            92..95 => Op::HeldWrite { slot, at: offset(random), len: length(random), fill },
            95..96 => Op::HeldTruncate { slot, len: length(random) as u64 },
            96..97 => Op::HeldStat { slot },
            97..98 => Op::HeldLink { slot, path: path(random) },
            98..101 => {
                let value = "v".repeat(random.one(&[0, 1, 30, 2_000]));
                let flags = random.one(&[0, 0, libc::XATTR_CREATE, libc::XATTR_REPLACE]);
                Op::SetXattr { path: path(random), name: attribute(random), value, flags }
            }
            101..102 => Op::GetXattr { path: path(random), name: attribute(random) },
            102..103 => Op::ListXattr { path: path(random) },
            103..104 => Op::RemoveXattr { path: path(random), name: attribute(random) },
            104..108 => Op::SetAcl { path: path(random), default: random.below(2) == 0, text: list(random) },
            _ => Op::Close { slot },
        };
        Self { role, op }
    }
}
