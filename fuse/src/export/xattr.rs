//! Extended attributes as a mount shows them: ids in access control lists are the mount's own, and a squashed
//! caller, whom the kernel takes for somebody else, is checked here.

use super::ids::{Ids, Squash};
use super::rights::{self, READ, WRITE, Who};
use super::{Core, allowed};
use crate::ops::{Caller, Reply, XattrFlags};
use hfcache_base::acl::{Acl, Tag};
use hfcache_base::meta::{Attr, FileKind, XattrSpace};
use hfcache_base::seam::View;
use hfcache_base::{InodeId, Kind, Result};
use std::sync::Arc;

/// A list with the mount's own numbers. Entries of users and groups that nobody has here are left out: they
/// decide about nobody.
fn shown(ids: &Ids, value: &[u8]) -> Result<Vec<u8>, Kind> {
    let Some(list) = Acl::parse(value)? else { return Ok(value.to_vec()) };
    let list = list.translated(|tag| match tag {
        Tag::User(id) => ids.users.to_local(id).map(Tag::User),
        Tag::Group(id) => ids.groups.to_local(id).map(Tag::Group),
        other => Some(other),
    });
    Ok(list.to_bytes())
}

/// A list with the cluster's numbers. One about a number that stands for nobody in the cluster is refused: it
/// would be about the anonymous user, and so about many.
fn stored(ids: &Ids, value: &[u8]) -> Result<Vec<u8>, Kind> {
    let Some(list) = Acl::parse(value)? else { return Ok(value.to_vec()) };
    let found = list.entries().len();
    let list = list.translated(|tag| match tag {
        Tag::User(id) => ids.users.to_cluster(id).map(Tag::User),
        Tag::Group(id) => ids.groups.to_cluster(id).map(Tag::Group),
        other => Some(other),
    });
    if list.entries().len() == found { Ok(list.to_bytes()) } else { Err(Kind::Invalid) }
}

/// Whether a squashed caller may read an attribute.
fn may_get(attr: &Attr, who: Who, space: XattrSpace) -> Result<()> {
    match space {
        XattrSpace::User => allowed(attr, who, READ),
        XattrSpace::Trusted => Err(Kind::NoData.into()),
        XattrSpace::Security | XattrSpace::Access | XattrSpace::Default => Ok(()),
    }
}

/// Whether a squashed caller may set or remove an attribute.
fn may_set(attr: &Attr, who: Who, space: XattrSpace) -> Result<()> {
    let owns = who.owns(attr);
    let sticky = attr.kind == FileKind::Directory && attr.mode & rights::STICKY != 0;
    match space {
        XattrSpace::User if sticky && !owns => Err(Kind::NotPermitted.into()),
        XattrSpace::User => allowed(attr, who, WRITE),
        XattrSpace::Access | XattrSpace::Default if owns => Ok(()),
        _ => Err(Kind::NotPermitted.into()),
    }
}

impl Core {
    /// What a name stands for, if this mount has such attributes: with everybody squashed there are no lists.
    fn space(&self, name: &[u8]) -> Result<XattrSpace, Kind> {
        match XattrSpace::of(name)? {
            space if space.is_acl() && self.ids.squash == Squash::All => Err(Kind::NotSupported),
            space => Ok(space),
        }
    }

    pub(super) fn getxattr(
        self: &Arc<Self>,
        caller: Caller,
        ino: InodeId,
        name: &[u8],
        reply: Reply<Vec<u8>>,
    ) {
        let (space, name) = match self.space(name) {
            Ok(space) => (space, name.to_vec()),
            Err(kind) => return reply.fail(kind),
        };
        let squashed = self.squashed(caller);
        let look = move |_: &Self, view: &dyn View| match squashed {
            Some(who) => may_get(&view.attr(ino)?, who, space),
            None => Ok(()),
        };
        let get = move |core: &Arc<Self>, (), reply: Reply<Vec<u8>>| {
            let shows = Arc::clone(core);
            let reply = Reply::new(move |value: Result<Vec<u8>, i32>| {
                let value = value.and_then(|value| {
                    if space.is_acl() { shown(&shows.ids, &value).map_err(Kind::errno) } else { Ok(value) }
                });
                reply.send(value);
            });
            core.inner.getxattr(core.caller(caller), ino, &name, reply);
        };
        if squashed.is_none() { get(self, (), reply) } else { self.after(reply, look, get) }
    }

    pub(super) fn listxattr(self: &Arc<Self>, caller: Caller, ino: InodeId, reply: Reply<Vec<Vec<u8>>>) {
        let core = Arc::clone(self);
        let reply = Reply::new(move |names: Result<Vec<Vec<u8>>, i32>| {
            reply.send(names.map(|mut names| {
                names.retain(|name| core.space(name).is_ok());
                names
            }));
        });
        self.inner.listxattr(self.caller(caller), ino, reply);
    }

    pub(super) fn setxattr(
        self: &Arc<Self>,
        caller: Caller,
        ino: InodeId,
        name: &[u8],
        value: &[u8],
        flags: XattrFlags,
        reply: Reply<()>,
    ) {
        let asked = self.space(name).and_then(|space| {
            let value = if space.is_acl() { stored(&self.ids, value)? } else { value.to_vec() };
            Ok((space, value))
        });
        let (space, value) = match asked {
            Ok(asked) => asked,
            Err(kind) => return reply.fail(kind),
        };
        let name = name.to_vec();
        let set = move |core: &Arc<Self>, kill_sgid: bool, reply: Reply<()>| {
            let flags = XattrFlags { kill_sgid: flags.kill_sgid || kill_sgid, ..flags };
            core.inner.setxattr(core.caller(caller), ino, &name, &value, flags, reply);
        };
        let Some(who) = self.squashed(caller) else { return set(self, false, reply) };
        let look = move |_: &Self, view: &dyn View| {
            let attr = view.attr(ino)?;
            may_set(&attr, who, space)?;
            // The kernel believes that the caller may keep it.
            Ok(who.uid != 0 && who.gid != attr.gid)
        };
        self.after(reply, look, set);
    }

    pub(super) fn removexattr(self: &Arc<Self>, caller: Caller, ino: InodeId, name: &[u8], reply: Reply<()>) {
        let (space, name) = match self.space(name) {
            Ok(space) => (space, name.to_vec()),
            Err(kind) => return reply.fail(kind),
        };
        let remove = move |core: &Arc<Self>, (), reply: Reply<()>| {
            core.inner.removexattr(core.caller(caller), ino, &name, reply);
        };
        let Some(who) = self.squashed(caller) else { return remove(self, (), reply) };
        let look = move |_: &Self, view: &dyn View| may_set(&view.attr(ino)?, who, space);
        self.after(reply, look, remove);
    }
}

#[cfg(test)]
mod tests {
    use super::super::ids::IdMap;
    use super::*;
    use hfcache_base::meta::Timestamp;

    fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut out = 2u32.to_le_bytes().to_vec();
        for (tag, permissions, id) in entries {
            out.extend_from_slice(&tag.to_le_bytes());
            out.extend_from_slice(&permissions.to_le_bytes());
            out.extend_from_slice(&id.to_le_bytes());
        }
        out
    }

    fn with(named: &[(u16, u16, u32)]) -> Vec<u8> {
        const NONE: u32 = u32::MAX;
        let (users, groups): (Vec<_>, Vec<_>) = named.iter().partition(|(tag, ..)| *tag == 2);
        let head = std::iter::once((1, 7, NONE)).chain(users).chain([(4, 5, NONE)]).chain(groups);
        list(&head.chain([(0x10, 7, NONE), (0x20, 0, NONE)]).collect::<Vec<_>>())
    }

    fn ids() -> Ids {
        Ids {
            users: IdMap::new([(1001, 5001)]).unwrap(),
            groups: IdMap::new([(100, 5100)]).unwrap(),
            ..Ids::default()
        }
    }

    #[test]
    fn ids_of_lists_go_both_ways() {
        let (here, there) =
            (with(&[(2, 6, 1001), (2, 4, 7), (8, 1, 100)]), with(&[(2, 6, 5001), (2, 4, 7), (8, 1, 5100)]));
        assert_eq!(stored(&ids(), &here), Ok(there.clone()));
        assert_eq!(shown(&ids(), &there), Ok(here));
    }

    #[test]
    fn who_is_nobody_here_is_in_no_list() {
        // The cluster's 1001 is not this machine's, and nobody here is him.
        let there = with(&[(2, 6, 1001), (2, 4, 7), (8, 1, 100)]);
        assert_eq!(shown(&ids(), &there), Ok(with(&[(2, 4, 7)])));
        // And this machine's 5001 is not the cluster's.
        assert_eq!(stored(&ids(), &with(&[(2, 6, 5001)])), Err(Kind::Invalid));
        assert_eq!(stored(&ids(), &with(&[(8, 6, 5100)])), Err(Kind::Invalid));
        let none = list(&[]);
        assert_eq!(stored(&ids(), &none), Ok(none.clone()));
        assert_eq!(shown(&ids(), b"\x02"), Err(Kind::Invalid));
    }

    #[test]
    fn the_squashed_have_the_rights_of_the_mode() {
        let start = Timestamp(0);
        let mut attr = Attr {
            ino: InodeId(5),
            kind: FileKind::File,
            mode: 0o640,
            nlink: 1,
            uid: 1,
            gid: 9,
            rdev: 0,
            size: 0,
            allocated: 0,
            atime: start,
            mtime: start,
            ctime: start,
            data_version: 1,
        };
        let kind = |result: Result<()>| result.err().map(|e| e.kind());
        let (owner, member, other) = (Who { uid: 1, gid: 1 }, Who { uid: 2, gid: 9 }, Who { uid: 3, gid: 3 });
        let get = |who, space| kind(may_get(&attr, who, space));
        assert_eq!((get(owner, XattrSpace::User), get(member, XattrSpace::User)), (None, None));
        assert_eq!(get(other, XattrSpace::User), Some(Kind::AccessDenied));
        assert_eq!(get(owner, XattrSpace::Trusted), Some(Kind::NoData));
        assert_eq!(get(other, XattrSpace::Access), None);
        let set = |who, space| kind(may_set(&attr, who, space));
        assert_eq!(set(owner, XattrSpace::User), None);
        assert_eq!(set(member, XattrSpace::User), Some(Kind::AccessDenied));
        assert_eq!((set(owner, XattrSpace::Access), set(owner, XattrSpace::Default)), (None, None));
        assert_eq!(set(member, XattrSpace::Access), Some(Kind::NotPermitted));
        for space in [XattrSpace::Trusted, XattrSpace::Security] {
            assert_eq!(set(owner, space), Some(Kind::NotPermitted));
        }
        (attr.kind, attr.mode) = (FileKind::Directory, 0o1777);
        let set = |who, space| kind(may_set(&attr, who, space));
        assert_eq!(
            (set(owner, XattrSpace::User), set(other, XattrSpace::User)),
            (None, Some(Kind::NotPermitted))
        );
    }
}
