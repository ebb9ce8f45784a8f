//! A shared tree: what its policy makes of modes and groups, so that no user shuts out the next.

use super::{Attr, FileKind};
use serde::{Deserialize, Serialize};

const SET_GID: u32 = 0o2000;
const OTHERS: u32 = 0o007;

/// The policy of a directory, for it and everything below. What the owner may, its users may: a umask, a
/// 0600 temporary file or a `chmod 0700` shuts nobody out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Its users are the members of this group, and everything belongs to it; `None`: everyone.
    pub group: Option<u32>,
}

impl Share {
    /// The permission bits of something in the tree, where `mode` is asked for. A directory hands its group
    /// on and is never sticky, so that every user may delete and replace; a file that others may write is
    /// never set-id.
    pub const fn mode(self, kind: FileKind, mode: u32) -> u32 {
        if matches!(kind, FileKind::Symlink) {
            return mode;
        }
        let owner = mode >> 6 & 7;
        let wide = owner << 6 | owner << 3 | owner;
        let bits = (wide | mode & 0o777) & if self.group.is_some() { !OTHERS } else { !0 };
        if matches!(kind, FileKind::Directory) { bits | SET_GID } else { bits }
    }

    /// The group of something in the tree, where `gid` is asked for.
    pub const fn gid(self, gid: u32) -> u32 {
        match self.group {
            Some(group) => group,
            None => gid,
        }
    }

    /// Gives attributes what the policy asks for; says whether that changes them.
    pub fn open(self, attr: &mut Attr) -> bool {
        let (mode, gid) = (self.mode(attr.kind, attr.mode), self.gid(attr.gid));
        let changed = (mode, gid) != (attr.mode, attr.gid);
        (attr.mode, attr.gid) = (mode, gid);
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_owner_may_all_may_or_the_group() {
        let (all, group) = (Share { group: None }, Share { group: Some(7) });
        for (kind, mode, for_all, for_group) in [
            (FileKind::File, 0o600, 0o666, 0o660),
            (FileKind::File, 0o644, 0o666, 0o660),
            (FileKind::File, 0o444, 0o444, 0o440),
            (FileKind::File, 0o700, 0o777, 0o770),
            (FileKind::File, 0o6755, 0o777, 0o770),
            (FileKind::File, 0o007, 0o007, 0),
            (FileKind::File, 0, 0, 0),
            (FileKind::Directory, 0o700, 0o2777, 0o2770),
            (FileKind::Directory, 0o1777, 0o2777, 0o2770),
            (FileKind::Directory, 0o555, 0o2555, 0o2550),
            (FileKind::Socket, 0o755, 0o777, 0o770),
            (FileKind::Symlink, 0o777, 0o777, 0o777),
        ] {
            assert_eq!(all.mode(kind, mode), for_all, "{kind:?} {mode:o}");
            assert_eq!(group.mode(kind, mode), for_group, "{kind:?} {mode:o} for a group");
            assert_eq!(all.mode(kind, for_all), for_all, "twice");
            assert_eq!(group.mode(kind, for_group), for_group, "twice");
        }
        assert_eq!((all.gid(3), group.gid(3)), (3, 7));
    }
}
