//! Extended attributes, and access control lists among them: a list and the permission bits say one thing in
//! two ways, and are kept in step here.

use super::key;
use super::machine::{Machine, Step};
use super::record::{Inode, Xattrs};
use crate::kv::Table;
use hfcache_base::acl::{self, Acl};
use hfcache_base::limits::{XATTR_INODE_MAX, XATTR_LIST_MAX, XATTR_VALUE_MAX};
use hfcache_base::meta::{Change, FileKind, Reply, XATTR_CAPABILITY, XattrMode, XattrSpace};
use hfcache_base::{InodeId, Kind, Result};

const SET_GID: u32 = 0o2000;
const PERMISSIONS: u32 = 0o777;

/// What a `SetXattr` asks for.
pub(crate) struct SetXattr<'a> {
    pub name: &'a [u8],
    pub value: &'a [u8],
    pub mode: XattrMode,
    pub kill_sgid: bool,
}

/// What a name stands for on an inode of this kind, if it can have such an attribute.
fn space(kind: FileKind, name: &[u8]) -> Result<XattrSpace, Kind> {
    let space = XattrSpace::of(name)?;
    match (space, kind) {
        // The permission bits of the others say who may use what is behind them, not who may write here.
        (XattrSpace::User, FileKind::File | FileKind::Directory) => Ok(space),
        (XattrSpace::User, _) => Err(Kind::NotPermitted),
        (XattrSpace::Access | XattrSpace::Default, FileKind::Symlink) => Err(Kind::NotSupported),
        (XattrSpace::Default, FileKind::Directory) => Ok(space),
        (XattrSpace::Default, _) => Err(Kind::AccessDenied),
        _ => Ok(space),
    }
}

impl Machine<'_> {
    pub fn set_xattr(&mut self, ino: InodeId, ask: &SetXattr<'_>) -> Step {
        let mut inode = self.inode(ino)?.ok_or(Kind::Stale)?;
        let space = space(inode.attr.kind, ask.name)?;
        if ask.value.len() > XATTR_VALUE_MAX {
            return Err(Kind::ValueTooLong.into());
        }
        if !space.is_acl() {
            let there = self.xattr(&inode, ask.name)?.is_some();
            match ask.mode {
                XattrMode::Create if there => return Err(Kind::Exists.into()),
                XattrMode::Replace if !there => return Err(Kind::NoData.into()),
                _ => {}
            }
            self.put_xattr(&mut inode, ask.name, ask.value)?;
            return self.xattr_changed(inode, false);
        }
        let list = Acl::parse(ask.value)?;
        match (space, list) {
            (XattrSpace::Access, Some(list)) => {
                self.put_acl(&mut inode, &list)?;
                let attr = &mut inode.attr;
                attr.mode = attr.mode & !PERMISSIONS | list.mode();
                if ask.kill_sgid {
                    attr.mode &= !SET_GID;
                }
            }
            (_, Some(list)) => self.put_xattr(&mut inode, acl::DEFAULT, &list.to_bytes())?,
            (_, None) => self.delete_xattr(&mut inode, ask.name)?,
        }
        self.xattr_changed(inode, true)
    }

    pub fn remove_xattr(&mut self, ino: InodeId, name: &[u8]) -> Step {
        let mut inode = self.inode(ino)?.ok_or(Kind::Stale)?;
        let space = space(inode.attr.kind, name)?;
        if self.xattr(&inode, name)?.is_none() {
            // No list is a list, too: that of the permission bits.
            let gone = space.is_acl();
            return if gone { Ok(Reply::Attr(inode.attr)) } else { Err(Kind::NoData.into()) };
        }
        self.delete_xattr(&mut inode, name)?;
        self.xattr_changed(inode, space.is_acl())
    }

    fn xattr_changed(&mut self, mut inode: Inode, acl: bool) -> Step {
        if acl && let Some(share) = self.share_of(&inode)? {
            self.open(&mut inode, share)?;
        }
        inode.attr.ctime = self.now();
        self.put_inode(&inode)?;
        let ino = inode.attr.ino;
        if acl {
            self.changed(Change::Acl(ino));
        }
        self.changed(Change::Inode { ino, data: false });
        Ok(Reply::Attr(inode.attr))
    }

    fn xattr(&self, inode: &Inode, name: &[u8]) -> Result<Option<Vec<u8>>> {
        if inode.xattrs.is_empty() {
            return Ok(None);
        }
        self.get(Table::Xattr, &key::xattr(inode.attr.ino, name))
    }

    /// Sets an attribute and counts it. The caller writes the inode.
    fn put_xattr(&mut self, inode: &mut Inode, name: &[u8], value: &[u8]) -> Step<()> {
        let mut sums = inode.xattrs;
        if let Some(old) = self.xattr(inode, name)? {
            sums.take(name, &old);
        }
        sums.add(name, value);
        let list = sums.names as usize;
        if list > XATTR_LIST_MAX || list + sums.values as usize > XATTR_INODE_MAX {
            return Err(Kind::NoSpace.into());
        }
        inode.xattrs = sums;
        self.put(Table::Xattr, &key::xattr(inode.attr.ino, name), &value)?;
        Ok(())
    }

    /// Removes an attribute, if it is there. The caller writes the inode.
    fn delete_xattr(&mut self, inode: &mut Inode, name: &[u8]) -> Result<()> {
        if let Some(old) = self.xattr(inode, name)? {
            inode.xattrs.take(name, &old);
            self.delete(Table::Xattr, &key::xattr(inode.attr.ino, name))?;
        }
        Ok(())
    }

    /// Keeps an access list, or nothing where the permission bits say all of it.
    fn put_acl(&mut self, inode: &mut Inode, list: &Acl) -> Step<()> {
        if list.is_mode() {
            return Ok(self.delete_xattr(inode, acl::ACCESS)?);
        }
        self.put_xattr(inode, acl::ACCESS, &list.to_bytes())
    }

    fn acl(&self, inode: &Inode, name: &[u8]) -> Result<Option<Acl>> {
        let Some(value) = self.xattr(inode, name)? else { return Ok(None) };
        Acl::parse(&value).map_err(|_| super::record::damaged("an access control list"))
    }

    /// The access list follows permission bits that were set. The caller writes the inode.
    pub fn chmod_acl(&mut self, inode: &mut Inode) -> Result<()> {
        let Some(mut list) = self.acl(inode, acl::ACCESS)? else { return Ok(()) };
        list.set_mode(inode.attr.mode);
        // It is as long as before, so that it fits.
        self.put(Table::Xattr, &key::xattr(inode.attr.ino, acl::ACCESS), &list.to_bytes())?;
        self.changed(Change::Acl(inode.attr.ino));
        Ok(())
    }

    /// A file that was changed gives its program no privileges any more. The caller writes the inode.
    pub fn kill_capability(&mut self, inode: &mut Inode) -> Result<()> {
        self.delete_xattr(inode, XATTR_CAPABILITY)
    }

    /// The permission bits of a new inode in `dir`, and the lists it begins with; see [`Machine::give_lists`].
    pub fn new_mode(&self, dir: &Inode, kind: FileKind, mode: u32, umask: u32) -> Result<(u32, Lists)> {
        if kind == FileKind::Symlink {
            return Ok((PERMISSIONS, Lists::default()));
        }
        let mode = mode & 0o7777;
        let Some(default) = self.acl(dir, acl::DEFAULT)? else {
            return Ok((mode & !(umask & PERMISSIONS), Lists::default()));
        };
        let access = default.inherit(mode);
        let mode = mode & !PERMISSIONS | access.mode();
        let default = (kind == FileKind::Directory).then_some(default);
        Ok((mode, Lists { access: (!access.is_mode()).then_some(access), default }))
    }

    /// Puts the lists of a new inode, which are no larger than those of its directory. The caller writes the
    /// inode.
    pub fn give_lists(&mut self, inode: &mut Inode, lists: &Lists) -> Result<()> {
        for (name, list) in [(acl::ACCESS, &lists.access), (acl::DEFAULT, &lists.default)] {
            let Some(list) = list else { continue };
            let value = list.to_bytes();
            inode.xattrs.add(name, &value);
            self.put(Table::Xattr, &key::xattr(inode.attr.ino, name), &value)?;
        }
        Ok(())
    }

    /// Drops all attributes of an inode that goes.
    pub fn free_xattrs(&mut self, inode: &Inode) -> Result<()> {
        if inode.xattrs.is_empty() {
            return Ok(());
        }
        for at in self.keys(Table::Xattr, &key::inode(inode.attr.ino))? {
            self.delete(Table::Xattr, &at)?;
        }
        Ok(())
    }
}

/// What a new inode gets of its directory's default list.
#[derive(Default)]
pub(crate) struct Lists {
    access: Option<Acl>,
    default: Option<Acl>,
}

impl Xattrs {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.names == 0
    }

    fn add(&mut self, name: &[u8], value: &[u8]) {
        self.names += name.len() as u32 + 1;
        self.values += value.len() as u32;
    }

    fn take(&mut self, name: &[u8], value: &[u8]) {
        self.names = self.names.saturating_sub(name.len() as u32 + 1);
        self.values = self.values.saturating_sub(value.len() as u32);
    }
}
