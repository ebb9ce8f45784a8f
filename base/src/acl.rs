//! POSIX access control lists: what they mean, and the bytes in which Linux hands them over as the extended
//! attributes [`ACCESS`] and [`DEFAULT`]. Pure; the rules are those of the kernel's `posix_acl.c`.
//!
//! ```text
//! [version: u32 = 2] { [tag: u16][permissions: u16][uid or gid: u32] } …     little endian
//! ```
//!
//! The owner, the group and the others of an access list *are* the permission bits of the mode: a list of
//! these three alone says nothing new and is not kept. With more entries there is a mask, which stands where the
//! mode shows the group.

use crate::Kind;
use crate::limits::ACL_ENTRIES_MAX;

/// The attribute that holds the list by which access is decided.
pub const ACCESS: &[u8] = b"system.posix_acl_access";
/// The attribute of a directory that holds the list which new entries begin with.
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
const HEAD: usize = 4;
const ENTRY: usize = 8;
/// What stands in the place of a uid or gid where there is none.
const NO_ID: u32 = u32::MAX;

/// Whom an entry is about, in the order that a list has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tag {
    /// The owner.
    Owner,
    /// A user.
    User(u32),
    /// The file's group.
    OwningGroup,
    /// A group.
    Group(u32),
    /// The most that users, groups and the file's group get.
    Mask,
    /// Everyone else.
    Other,
}

impl Tag {
    fn from_parts(tag: u16, id: u32) -> Result<Self, Kind> {
        Ok(match tag {
            0x01 => Self::Owner,
            0x02 if id != NO_ID => Self::User(id),
            0x04 => Self::OwningGroup,
            0x08 if id != NO_ID => Self::Group(id),
            0x10 => Self::Mask,
            0x20 => Self::Other,
            _ => return Err(Kind::Invalid),
        })
    }

    const fn parts(self) -> (u16, u32) {
        match self {
            Self::Owner => (0x01, NO_ID),
            Self::User(id) => (0x02, id),
            Self::OwningGroup => (0x04, NO_ID),
            Self::Group(id) => (0x08, id),
            Self::Mask => (0x10, NO_ID),
            Self::Other => (0x20, NO_ID),
        }
    }

    /// Its place in a list: entries of one rank come in any order.
    const fn rank(self) -> u8 {
        match self {
            Self::Owner => 0,
            Self::User(_) => 1,
            Self::OwningGroup => 2,
            Self::Group(_) => 3,
            Self::Mask => 4,
            Self::Other => 5,
        }
    }
}

/// A valid list: owner, group and others once each, and a mask if users or groups are named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acl {
    entries: Vec<(Tag, u32)>,
}

impl Acl {
    /// The list in an attribute's value; `None` for an empty one, which stands for no list at all.
    ///
    /// # Errors
    /// [`Kind::NotSupported`] for another version, [`Kind::ValueTooLong`] for too many entries,
    /// [`Kind::Invalid`] for what is no valid list.
    pub fn parse(value: &[u8]) -> Result<Option<Self>, Kind> {
        let (version, rest) = value.split_first_chunk::<HEAD>().ok_or(Kind::Invalid)?;
        if u32::from_le_bytes(*version) != VERSION {
            return Err(Kind::NotSupported);
        }
        let (parts, []) = rest.as_chunks::<ENTRY>() else { return Err(Kind::Invalid) };
        if parts.is_empty() {
            return Ok(None);
        }
        if parts.len() > ACL_ENTRIES_MAX {
            return Err(Kind::ValueTooLong);
        }
        let mut entries = Vec::with_capacity(parts.len());
        for [t0, t1, p0, p1, id @ ..] in parts {
            let permissions = u16::from_le_bytes([*p0, *p1]);
            if permissions > 7 {
                return Err(Kind::Invalid);
            }
            let tag = Tag::from_parts(u16::from_le_bytes([*t0, *t1]), u32::from_le_bytes(*id))?;
            entries.push((tag, u32::from(permissions)));
        }
        let acl = Self { entries };
        acl.check()?;
        Ok(Some(acl))
    }

    fn check(&self) -> Result<(), Kind> {
        let once = |rank| self.entries.iter().filter(|(tag, _)| tag.rank() == rank).count();
        let sorted = self.entries.is_sorted_by_key(|(tag, _)| tag.rank());
        let named = once(1) + once(3) > 0;
        let mask = once(4);
        let whole = once(0) == 1 && once(2) == 1 && once(5) == 1 && mask <= 1 && (mask == 1 || !named);
        if sorted && whole { Ok(()) } else { Err(Kind::Invalid) }
    }

    /// The attribute's value.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD + ENTRY * self.entries.len());
        out.extend_from_slice(&VERSION.to_le_bytes());
        for (tag, permissions) in &self.entries {
            let (tag, id) = tag.parts();
            out.extend_from_slice(&tag.to_le_bytes());
            out.extend_from_slice(&(*permissions as u16).to_le_bytes());
            out.extend_from_slice(&id.to_le_bytes());
        }
        out
    }

    /// Its entries.
    pub fn entries(&self) -> &[(Tag, u32)] {
        &self.entries
    }

    /// The list with other users and groups; entries for which there is `None` are left out. `change` keeps what
    /// kind of entry each is.
    #[must_use]
    pub fn translated(&self, change: impl Fn(Tag) -> Option<Tag>) -> Self {
        let entries = self.entries.iter();
        let entries = entries.filter_map(|(tag, permissions)| {
            let new = change(*tag)?;
            (new.rank() == tag.rank()).then_some((new, *permissions))
        });
        Self { entries: entries.collect() }
    }

    /// Whether the permission bits say all of it.
    pub fn is_mode(&self) -> bool {
        self.entries.len() == 3
    }

    fn find(&mut self, wanted: Tag) -> Option<&mut u32> {
        self.entries.iter_mut().find(|(tag, _)| *tag == wanted).map(|(_, permissions)| permissions)
    }

    fn permissions(&self, wanted: Tag) -> Option<u32> {
        self.entries.iter().find(|(tag, _)| *tag == wanted).map(|(_, permissions)| *permissions)
    }

    /// The nine permission bits that a file with this list shows.
    pub fn mode(&self) -> u32 {
        let of = |tag| self.permissions(tag).unwrap_or(0);
        let group = self.permissions(Tag::Mask).unwrap_or_else(|| of(Tag::OwningGroup));
        of(Tag::Owner) << 6 | group << 3 | of(Tag::Other)
    }

    /// `chmod`: the bits for the group go to the mask where there is one.
    pub fn set_mode(&mut self, mode: u32) {
        self.edit_classes(|_, shift| mode >> shift & 7);
    }

    /// What a new entry with these bits begins with in a directory that has this default list: the list cut
    /// down to the bits, and the bits cut down to the list. The umask plays no part.
    #[must_use]
    pub fn inherit(&self, mode: u32) -> Self {
        let mut access = self.clone();
        access.edit_classes(|old, shift| old & (mode >> shift));
        access
    }

    /// Changes the entries that the mode shows, given what they are and where the mode has them.
    fn edit_classes(&mut self, change: impl Fn(u32, u32) -> u32) {
        let group = if self.permissions(Tag::Mask).is_some() { Tag::Mask } else { Tag::OwningGroup };
        for (tag, shift) in [(Tag::Owner, 6), (group, 3), (Tag::Other, 0)] {
            if let Some(permissions) = self.find(tag) {
                *permissions = change(*permissions, shift);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut out = 2u32.to_le_bytes().to_vec();
        for (tag, permissions, id) in entries {
            out.extend_from_slice(&tag.to_le_bytes());
            out.extend_from_slice(&permissions.to_le_bytes());
            out.extend_from_slice(&id.to_le_bytes());
        }
        out
    }

    const LONG: [(u16, u16, u32); 6] =
        [(1, 7, NO_ID), (2, 6, 1_000), (4, 5, NO_ID), (8, 4, 50), (0x10, 6, NO_ID), (0x20, 1, NO_ID)];

    #[test]
    fn a_list_survives_and_shows_its_mask_as_the_group() {
        let acl = Acl::parse(&raw(&LONG)).unwrap().unwrap();
        assert_eq!(acl.to_bytes(), raw(&LONG));
        assert_eq!(acl.mode(), 0o761);
        assert!(!acl.is_mode());
        let short = Acl::parse(&raw(&[(1, 6, NO_ID), (4, 4, 7), (0x20, 0, NO_ID)])).unwrap().unwrap();
        assert!(short.is_mode());
        assert_eq!(short.mode(), 0o640);
        assert_eq!(Acl::parse(&raw(&[])), Ok(None));
    }

    #[test]
    fn chmod_changes_the_mask_and_leaves_the_group() {
        let mut acl = Acl::parse(&raw(&LONG)).unwrap().unwrap();
        acl.set_mode(0o100_742);
        assert_eq!(acl.mode(), 0o742);
        assert_eq!(acl.permissions(Tag::OwningGroup), Some(5));
        let mut short = Acl::parse(&raw(&[(1, 6, 0), (4, 4, 0), (0x20, 0, 0)])).unwrap().unwrap();
        short.set_mode(0o751);
        assert_eq!((short.mode(), short.is_mode()), (0o751, true));
    }

    #[test]
    fn a_new_entry_gets_what_both_list_and_bits_allow() {
        let list = Acl::parse(&raw(&LONG)).unwrap().unwrap();
        let access = list.inherit(0o666);
        assert_eq!(access.mode(), 0o660);
        assert_eq!(access.permissions(Tag::User(1_000)), Some(6));
        assert_eq!(access.permissions(Tag::OwningGroup), Some(5));
        let short = Acl::parse(&raw(&[(1, 7, 0), (4, 5, 0), (0x20, 5, 0)])).unwrap().unwrap();
        let access = short.inherit(0o666);
        assert_eq!((access.mode(), access.is_mode()), (0o644, true));
    }

    #[test]
    fn other_numbers_leave_a_valid_list() {
        let acl = Acl::parse(&raw(&LONG)).unwrap().unwrap();
        let other = acl.translated(|tag| match tag {
            Tag::User(id) => Some(Tag::User(id + 1)),
            Tag::Group(_) => None,
            tag => Some(tag),
        });
        assert_eq!(other.permissions(Tag::User(1_001)), Some(6));
        assert_eq!(Acl::parse(&other.to_bytes()), Ok(Some(other.clone())));
        assert_eq!((other.entries().len(), other.mode()), (5, acl.mode()));
    }

    #[test]
    fn what_is_no_list_is_refused() {
        let (owner, group, other) = ((1, 7, NO_ID), (4, 5, NO_ID), (0x20, 5, NO_ID));
        let (user, mask) = ((2, 7, 1), (0x10, 7, NO_ID));
        for bad in [
            vec![owner],
            vec![owner, group],
            vec![group, owner, other],
            vec![owner, owner, group, other],
            vec![owner, group, other, other],
            vec![owner, user, group, other],
            vec![owner, group, mask, mask, other],
            vec![owner, group, user, mask, other],
            vec![owner, (2, 7, NO_ID), group, mask, other],
            vec![owner, group, (8, 7, NO_ID), mask, other],
            vec![owner, group, (3, 7, 1), other],
            vec![(1, 8, NO_ID), group, other],
            vec![(1, 0x107, NO_ID), group, other],
        ] {
            assert_eq!(Acl::parse(&raw(&bad)), Err(Kind::Invalid), "{bad:?}");
        }
        let good = raw(&[owner, group, other]);
        for cut in 0..good.len() {
            // Whole entries missing are no valid list either; none at all is no list.
            assert_ne!(Acl::parse(&good[..cut]).ok().flatten().map(|a| a.to_bytes()), Some(good.clone()));
            assert_eq!(Acl::parse(&good[..cut]).is_ok(), cut == HEAD, "{cut}");
        }
        let mut other_version = good.clone();
        other_version[0] = 1;
        assert_eq!(Acl::parse(&other_version), Err(Kind::NotSupported));
        let mut many = vec![owner];
        many.extend((0..ACL_ENTRIES_MAX as u32).map(|id| (2, 7, id)));
        many.extend([group, mask, other]);
        assert_eq!(Acl::parse(&raw(&many)), Err(Kind::ValueTooLong));
    }
}
