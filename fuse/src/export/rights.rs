//! What mode bits allow, as Linux reads them. Pure.

use hfcache_base::Kind;
use hfcache_base::meta::{Attr, FileKind, SetAttr, SetTime};

/// May read, or list.
pub(super) const READ: u32 = 4;
/// May write, or change names.
pub(super) const WRITE: u32 = 2;
/// May search a directory, or execute a file.
pub(super) const SEARCH: u32 = 1;

/// Names of a directory may be taken away by their owners only.
pub(super) const STICKY: u32 = 0o1000;
const SET_ID: u32 = 0o6000;
const SET_GID: u32 = 0o2000;
/// An open that is the start of a program, which needs no right to read.
const EXECUTE: u32 = 0x20;

/// A user and his only group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Who {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl Who {
    /// Whether this is the owner, or root.
    pub(super) fn owns(self, attr: &Attr) -> bool {
        self.uid == 0 || self.uid == attr.uid
    }
}

/// Whether mode bits allow all of `want`.
pub(super) fn may(attr: &Attr, who: Who, want: u32) -> bool {
    if who.uid == 0 {
        // Root may all but start a program that nobody may.
        let program = attr.kind == FileKind::File && want & SEARCH != 0;
        return !program || attr.mode & 0o111 != 0;
    }
    let class = if who.uid == attr.uid {
        6
    } else if who.gid == attr.gid {
        3
    } else {
        0
    };
    attr.mode >> class & want == want
}

/// What open(2)'s flags ask for.
pub(super) fn wanted(flags: u32) -> u32 {
    let mode = match flags as i32 & libc::O_ACCMODE {
        libc::O_RDONLY if flags & EXECUTE != 0 => SEARCH,
        libc::O_RDONLY => READ,
        libc::O_WRONLY => WRITE,
        _ => READ | WRITE,
    };
    if flags as i32 & libc::O_TRUNC != 0 { mode | WRITE } else { mode }
}

/// Whether names of a directory may be changed.
pub(super) fn may_change_names(dir: &Attr, who: Who) -> Result<(), Kind> {
    if may(dir, who, WRITE | SEARCH) { Ok(()) } else { Err(Kind::AccessDenied) }
}

/// Whether a name may be taken from a directory.
pub(super) fn may_remove(dir: &Attr, there: &Attr, who: Who) -> Result<(), Kind> {
    may_change_names(dir, who)?;
    if dir.mode & STICKY != 0 && !who.owns(there) && !who.owns(dir) {
        return Err(Kind::NotPermitted);
    }
    Ok(())
}

/// Whether attributes may be set, and which: a set-group-id bit goes if the group is not one's own. With
/// `open`, the caller has the file open for writing, so the right to change its size was checked then.
pub(super) fn may_set(attr: &Attr, who: Who, set: &SetAttr, open: bool) -> Result<SetAttr, Kind> {
    let mut set = set.clone();
    let owns = who.owns(attr);
    if let Some(mode) = &mut set.mode {
        // The kernel does this for everyone who writes to a file that is set-id.
        let clears = *mode & !SET_ID == attr.mode & !SET_ID && *mode & !attr.mode == 0;
        if !owns && !(clears && (open || may(attr, who, WRITE))) {
            return Err(Kind::NotPermitted);
        }
        let own_group = who.uid == 0 || who.gid == set.gid.unwrap_or(attr.gid);
        if !own_group && attr.kind != FileKind::Directory {
            *mode &= !SET_GID;
        }
    }
    if set.uid.is_some_and(|uid| who.uid != 0 && !(owns && uid == attr.uid)) {
        return Err(Kind::NotPermitted);
    }
    if set.gid.is_some_and(|gid| who.uid != 0 && !(owns && (gid == attr.gid || gid == who.gid))) {
        return Err(Kind::NotPermitted);
    }
    if set.size.is_some() && !open && !may(attr, who, WRITE) {
        return Err(Kind::AccessDenied);
    }
    // The kernel believes that the caller may keep them.
    set.kill_suid |= set.size.is_some() && who.uid != 0;
    // Cutting a file brings its own times.
    if set.size.is_none() {
        let times = [set.atime, set.mtime];
        if !owns && times.iter().any(|t| matches!(t, Some(SetTime::To(_)))) {
            return Err(Kind::NotPermitted);
        }
        if !owns && times.iter().any(Option::is_some) && !may(attr, who, WRITE) {
            return Err(Kind::AccessDenied);
        }
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hfcache_base::InodeId;
    use hfcache_base::meta::Timestamp;

    const ROOT: Who = Who { uid: 0, gid: 0 };
    const OWNER: Who = Who { uid: 1, gid: 9 };
    const MEMBER: Who = Who { uid: 2, gid: 1 };
    const OTHER: Who = Who { uid: 3, gid: 3 };

    fn attr(kind: FileKind, mode: u32) -> Attr {
        let start = Timestamp(0);
        Attr {
            ino: InodeId(5),
            kind,
            mode,
            nlink: 1,
            uid: 1,
            gid: 1,
            rdev: 0,
            size: 0,
            allocated: 0,
            atime: start,
            mtime: start,
            ctime: start,
            data_version: 1,
        }
    }

    fn file(mode: u32) -> Attr {
        attr(FileKind::File, mode)
    }

    #[test]
    fn the_first_class_that_fits_decides() {
        for (mode, want, owner, member, other, root) in [
            (0o640, READ, true, true, false, true),
            (0o640, WRITE, true, false, false, true),
            (0o077, READ, false, true, true, true),
            (0o604, READ, true, false, true, true),
            (0o711, SEARCH, true, true, true, true),
            (0o600, SEARCH, false, false, false, false),
            (0o000, READ | WRITE, false, false, false, true),
        ] {
            let file = file(mode);
            for (who, expected) in [(OWNER, owner), (MEMBER, member), (OTHER, other), (ROOT, root)] {
                assert_eq!(may(&file, who, want), expected, "{mode:o} {want} {who:?}");
            }
        }
        assert!(may(&attr(FileKind::Directory, 0), ROOT, SEARCH));
    }

    #[test]
    fn flags_of_open() {
        let flags = |f: i32| wanted(f as u32);
        assert_eq!(flags(libc::O_RDONLY), READ);
        assert_eq!(flags(libc::O_WRONLY | libc::O_APPEND), WRITE);
        assert_eq!(flags(libc::O_RDWR), READ | WRITE);
        assert_eq!(flags(libc::O_RDONLY | libc::O_TRUNC), READ | WRITE);
        assert_eq!(wanted(EXECUTE), SEARCH);
    }

    #[test]
    fn the_sticky_bit_keeps_what_is_others() {
        let (plain, sticky) = (attr(FileKind::Directory, 0o777), attr(FileKind::Directory, 0o1777));
        let theirs = Attr { uid: 8, ..file(0o666) };
        assert_eq!(may_remove(&plain, &theirs, OTHER), Ok(()));
        assert_eq!(may_remove(&sticky, &theirs, OTHER), Err(Kind::NotPermitted));
        assert_eq!(may_remove(&sticky, &theirs, Who { uid: 8, gid: 8 }), Ok(()));
        assert_eq!(may_remove(&sticky, &theirs, OWNER), Ok(()));
        assert_eq!(may_remove(&sticky, &theirs, ROOT), Ok(()));
        assert_eq!(may_remove(&attr(FileKind::Directory, 0o755), &theirs, OTHER), Err(Kind::AccessDenied));
    }

    #[test]
    fn attributes_are_their_owners() {
        let set = |change: fn(&mut SetAttr)| {
            let mut set = SetAttr::default();
            change(&mut set);
            set
        };
        let denied = |who, set: &SetAttr, mode| may_set(&file(mode), who, set, false).err();
        let chmod = set(|s| s.mode = Some(0o600));
        assert_eq!(
            (denied(OWNER, &chmod, 0), denied(OTHER, &chmod, 0o666)),
            (None, Some(Kind::NotPermitted))
        );
        let drop_set_id = set(|s| s.mode = Some(0o755));
        assert_eq!(denied(OTHER, &drop_set_id, 0o4755), Some(Kind::NotPermitted));
        assert!(may_set(&file(0o4755), OTHER, &drop_set_id, true).is_ok(), "by writing to it");
        assert_eq!(denied(OTHER, &set(|s| s.mode = Some(0o777)), 0o4777), None);
        // The group is not the owner's own.
        let set_gid = set(|s| s.mode = Some(0o2755));
        assert_eq!(may_set(&file(0o755), OWNER, &set_gid, false).unwrap().mode, Some(0o755));
        assert_eq!(may_set(&file(0o755), ROOT, &set_gid, false).unwrap().mode, Some(0o2755));
        let chown = set(|s| s.uid = Some(2));
        assert_eq!((denied(OWNER, &chown, 0o777), denied(ROOT, &chown, 0)), (Some(Kind::NotPermitted), None));
        assert_eq!(denied(OWNER, &set(|s| s.uid = Some(1)), 0), None);
        assert_eq!(denied(OWNER, &set(|s| s.gid = Some(9)), 0), None);
        assert_eq!(denied(OWNER, &set(|s| s.gid = Some(8)), 0), Some(Kind::NotPermitted));
        assert_eq!(denied(MEMBER, &set(|s| s.gid = Some(1)), 0o777), Some(Kind::NotPermitted));
        let cut = set(|s| s.size = Some(0));
        assert_eq!(
            (denied(OTHER, &cut, 0o644), denied(OTHER, &cut, 0o646)),
            (Some(Kind::AccessDenied), None)
        );
        assert!(may_set(&file(0o644), OTHER, &cut, true).is_ok());
        let touch = set(|s| s.mtime = Some(SetTime::Now));
        assert_eq!(
            (denied(OTHER, &touch, 0o644), denied(OTHER, &touch, 0o646)),
            (Some(Kind::AccessDenied), None)
        );
        let back = set(|s| s.mtime = Some(SetTime::To(Timestamp(0))));
        assert_eq!((denied(OTHER, &back, 0o666), denied(OWNER, &back, 0)), (Some(Kind::NotPermitted), None));
    }
}
