//! Extended attributes in the protocol: what a request asks for, and answers that say their size first. Pure.

use super::abi::{Malformed, Reader, Small, flag};
use super::request::Request;
use crate::ops::XattrFlags;
use hfcache_base::limits::{XATTR_NAME_MAX, XATTR_VALUE_MAX};
use hfcache_base::meta::XattrMode;

/// One request about an extended attribute.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "operations and arguments carry the names of fuse.h")]
pub enum Xattr<'a> {
    /// `flags: None`: the attribute must be there and must not (XATTR_CREATE with XATTR_REPLACE).
    Set {
        name: &'a [u8],
        value: &'a [u8],
        flags: Option<XattrFlags>,
    },
    /// `size`: so many bytes there is room for; 0 asks how many are needed.
    Get {
        name: &'a [u8],
        size: u32,
    },
    /// `size` as for `Get`.
    List {
        size: u32,
    },
    Remove {
        name: &'a [u8],
    },
}

/// An attribute's name, if it is not too long for any.
fn name<'a>(body: &mut Reader<'a>) -> Result<Result<&'a [u8], Request<'a>>, Malformed> {
    let name = body.text()?;
    Ok(if name.len() > XATTR_NAME_MAX { Err(Request::Refused(libc::ERANGE)) } else { Ok(name) })
}

/// Decodes a SETXATTR; `extended`: its arguments have flags of their own.
pub(super) fn set<'a>(body: &mut Reader<'a>, extended: bool) -> Result<Request<'a>, Malformed> {
    let size = usize::try_from(body.u32()?).map_err(|_| Malformed)?;
    let how = body.u32()?;
    let own = if extended {
        let own = body.u32()?;
        body.u32()?;
        own
    } else {
        0
    };
    let name = match name(body)? {
        Ok(name) => name,
        Err(refused) => return Ok(refused),
    };
    let value = body.bytes(size)?;
    if size > XATTR_VALUE_MAX {
        return Ok(Request::Refused(libc::E2BIG));
    }
    let both = flag::XATTR_CREATE | flag::XATTR_REPLACE;
    let mode = match how {
        0 => Some(XattrMode::Any),
        flag::XATTR_CREATE => Some(XattrMode::Create),
        flag::XATTR_REPLACE => Some(XattrMode::Replace),
        _ if how == both => None,
        _ => return Ok(Request::Refused(libc::EINVAL)),
    };
    let kill_sgid = own & flag::SETXATTR_ACL_KILL_SGID != 0;
    let flags = mode.map(|mode| XattrFlags { mode, kill_sgid });
    Ok(Request::Xattr(Xattr::Set { name, value, flags }))
}

/// Decodes a GETXATTR.
pub(super) fn get<'a>(body: &mut Reader<'a>) -> Result<Request<'a>, Malformed> {
    let size = body.u32()?;
    body.u32()?;
    Ok(match name(body)? {
        Ok(name) => Request::Xattr(Xattr::Get { name, size }),
        Err(refused) => refused,
    })
}

/// Decodes a LISTXATTR.
pub(super) fn list<'a>(body: &mut Reader<'a>) -> Result<Request<'a>, Malformed> {
    let size = body.u32()?;
    body.u32()?;
    Ok(Request::Xattr(Xattr::List { size }))
}

/// Decodes a REMOVEXATTR.
pub(super) fn remove<'a>(body: &mut Reader<'a>) -> Result<Request<'a>, Malformed> {
    Ok(match name(body)? {
        Ok(name) => Request::Xattr(Xattr::Remove { name }),
        Err(refused) => refused,
    })
}

/// The names of a list, each with a NUL.
pub(super) fn joined(names: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::with_capacity(names.iter().map(|name| name.len() + 1).sum());
    for name in names {
        out.extend_from_slice(name);
        out.push(0);
    }
    out
}

/// What a value of `len` bytes is answered with, where there is room for `size`.
#[derive(Debug)]
pub(super) enum Fit {
    /// Only how long it is.
    Length(Small),
    /// The value.
    Whole,
    /// ERANGE.
    TooLong,
}

pub(super) fn sized(len: usize, size: u32) -> Fit {
    let Ok(len) = u32::try_from(len) else { return Fit::TooLong };
    if size == 0 {
        let mut out = Small::default();
        out.u32(len);
        out.u32(0);
        Fit::Length(out)
    } else if len > size {
        Fit::TooLong
    } else {
        Fit::Whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_asks_for_the_length_and_too_little_is_no_answer() {
        let Fit::Length(out) = sized(70_000, 0) else { panic!("no length") };
        assert_eq!(out.as_slice(), [70_000u32.to_ne_bytes(), [0; 4]].concat());
        assert!(matches!(sized(5, 4), Fit::TooLong));
        assert!(matches!(sized(5, 5), Fit::Whole));
        assert!(matches!(sized(0, 1), Fit::Whole));
        assert_eq!(joined(&[b"user.a".to_vec(), b"user.b".to_vec()]), b"user.a\0user.b\0");
        assert!(joined(&[]).is_empty());
    }
}
