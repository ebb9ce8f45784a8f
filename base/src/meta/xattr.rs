//! Extended attributes: which names there can be.

use crate::acl;
use crate::limits::XATTR_NAME_MAX;
use crate::{Kind, Result};
use serde::{Deserialize, Serialize};

/// Privileges that a program gets from its file: dropped by whoever changes the file.
pub const XATTR_CAPABILITY: &[u8] = b"security.capability";

/// How a `setxattr` treats what the name has already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum XattrMode {
    /// Sets it anyway.
    Any,
    /// Fails with [`Kind::Exists`] if it has a value (XATTR_CREATE).
    Create,
    /// Fails with [`Kind::NoData`] if it has none (XATTR_REPLACE).
    Replace,
}

/// What the name of an extended attribute stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XattrSpace {
    /// `user.`: for whoever may read or write the file.
    User,
    /// `trusted.`: for root.
    Trusted,
    /// `security.`: for the kernel's modules.
    Security,
    /// The list by which access is decided.
    Access,
    /// The list that new entries of a directory begin with.
    Default,
}

impl XattrSpace {
    /// What this name stands for.
    ///
    /// # Errors
    /// [`Kind::Range`] for an empty name or one that is too long, [`Kind::NotSupported`] for an unknown
    /// namespace, [`Kind::Invalid`] for a namespace alone and for a NUL.
    pub fn of(name: &[u8]) -> Result<Self, Kind> {
        if name.is_empty() || name.len() > XATTR_NAME_MAX {
            return Err(Kind::Range);
        }
        if name.contains(&0) {
            return Err(Kind::Invalid);
        }
        match name {
            acl::ACCESS => return Ok(Self::Access),
            acl::DEFAULT => return Ok(Self::Default),
            _ => {}
        }
        let spaces =
            [(b"user.".as_slice(), Self::User), (b"trusted.", Self::Trusted), (b"security.", Self::Security)];
        for (prefix, space) in spaces {
            match name.strip_prefix(prefix) {
                Some([]) => return Err(Kind::Invalid),
                Some(_) => return Ok(space),
                None => {}
            }
        }
        Err(Kind::NotSupported)
    }

    /// Whether it holds an access control list.
    pub const fn is_acl(self) -> bool {
        matches!(self, Self::Access | Self::Default)
    }
}
