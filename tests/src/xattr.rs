//! Extended attributes and access control lists, as the system calls have them.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The attribute with the list by which access is decided.
pub const ACCESS: &str = "system.posix_acl_access";
/// The attribute with the list that new entries of a directory begin with.
pub const DEFAULT: &str = "system.posix_acl_default";
/// Room for any value.
const ROOM: usize = 1 << 17;

fn args(path: &Path, name: &str) -> io::Result<(CString, CString)> {
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
    Ok((CString::new(path.as_os_str().as_bytes()).map_err(invalid)?, CString::new(name).map_err(invalid)?))
}

fn length(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// `lsetxattr`: sets an attribute of what a path names, itself; `flags` are XATTR_CREATE and XATTR_REPLACE.
///
/// # Errors
/// Whatever the file system says.
pub fn set_with(path: &Path, name: &str, value: &[u8], flags: i32) -> io::Result<()> {
    let (path, name) = args(path, name)?;
    // SAFETY: strings and value live over the call, which reads them only.
    let done =
        unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), flags) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// [`set_with`] without flags.
///
/// # Errors
/// Whatever the file system says.
pub fn set(path: &Path, name: &str, value: &[u8]) -> io::Result<()> {
    set_with(path, name, value, 0)
}

/// `lgetxattr` into `size` bytes; how many there are.
///
/// # Errors
/// Whatever the file system says.
pub fn get_into(path: &Path, name: &str, size: usize) -> io::Result<Vec<u8>> {
    let (path, name) = args(path, name)?;
    let mut value = vec![0; size];
    // SAFETY: strings live over the call, and it writes no more than `size` bytes.
    let len =
        length(unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), size) })?;
    value.resize(len, 0);
    Ok(value)
}

/// An attribute of what a path names, itself.
///
/// # Errors
/// ENODATA; whatever else the file system says.
pub fn get(path: &Path, name: &str) -> io::Result<Vec<u8>> {
    get_into(path, name, ROOM)
}

/// `fsetxattr` without flags.
///
/// # Errors
/// Whatever the file system says.
pub fn set_open(file: &File, name: &str, value: &[u8]) -> io::Result<()> {
    let (_, name) = args(Path::new(""), name)?;
    // SAFETY: name and value live over the call, which reads them only.
    let done =
        unsafe { libc::fsetxattr(file.as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `fgetxattr`.
///
/// # Errors
/// ENODATA; whatever else the file system says.
pub fn get_open(file: &File, name: &str) -> io::Result<Vec<u8>> {
    let (_, name) = args(Path::new(""), name)?;
    let mut value = vec![0; ROOM];
    // SAFETY: the name lives over the call, and it writes no more than `ROOM` bytes.
    let len =
        length(unsafe { libc::fgetxattr(file.as_raw_fd(), name.as_ptr(), value.as_mut_ptr().cast(), ROOM) })?;
    value.truncate(len);
    Ok(value)
}

/// `llistxattr` into `size` bytes; how many there are, and the names.
///
/// # Errors
/// Whatever the file system says.
pub fn list_into(path: &Path, size: usize) -> io::Result<(usize, Vec<String>)> {
    let (path, _) = args(path, "")?;
    let mut names = vec![0u8; size];
    // SAFETY: the string lives over the call, and it writes no more than `size` bytes.
    let len = length(unsafe { libc::llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), size) })?;
    names.truncate(len);
    let names = names.split(|b| *b == 0).filter(|n| !n.is_empty());
    let mut names: Vec<String> = names.map(|n| String::from_utf8_lossy(n).into_owned()).collect();
    names.sort();
    Ok((len, names))
}

/// Names of all attributes, sorted, without those that a security module adds.
///
/// # Errors
/// Whatever the file system says.
pub fn list(path: &Path) -> io::Result<Vec<String>> {
    let (_, mut names) = list_into(path, ROOM)?;
    names.retain(|n| n != "security.selinux");
    Ok(names)
}

/// `lremovexattr`.
///
/// # Errors
/// ENODATA; whatever else the file system says.
pub fn remove(path: &Path, name: &str) -> io::Result<()> {
    let (path, name) = args(path, name)?;
    // SAFETY: strings live over the call.
    let done = unsafe { libc::lremovexattr(path.as_ptr(), name.as_ptr()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The value of an access control list, written like `u::rw u:1001:r g::r m::rw o::-`.
///
/// # Panics
/// When it is not written so.
pub fn acl(text: &str) -> Vec<u8> {
    let mut out = 2u32.to_le_bytes().to_vec();
    for entry in text.split_whitespace() {
        let parts: Vec<&str> = entry.split(':').collect();
        let &[kind, who, rights] = parts.as_slice() else { panic!("{entry} is no entry of a list") };
        let tag: u16 = match (kind, who) {
            ("u", "") => 0x01,
            ("u", _) => 0x02,
            ("g", "") => 0x04,
            ("g", _) => 0x08,
            ("m", "") => 0x10,
            ("o", "") => 0x20,
            _ => panic!("{entry} is no entry of a list"),
        };
        let bit = |letter, value: u16| if rights.contains(letter) { value } else { 0 };
        out.extend_from_slice(&tag.to_le_bytes());
        out.extend_from_slice(&(bit('r', 4) | bit('w', 2) | bit('x', 1)).to_le_bytes());
        let id: u32 = if who.is_empty() { u32::MAX } else { who.parse().expect("a number") };
        out.extend_from_slice(&id.to_le_bytes());
    }
    out
}

/// Sets an attribute.
///
/// # Panics
/// When that fails.
#[track_caller]
pub fn sets(path: &Path, name: &str, value: &[u8]) {
    set(path, name, value).unwrap_or_else(|why| panic!("set {name} of {}: {why}", path.display()));
}

/// An attribute must have this value.
///
/// # Panics
/// When it has another, or is not there.
#[track_caller]
pub fn has(path: &Path, name: &str, value: &[u8]) {
    let found = get(path, name).unwrap_or_else(|why| panic!("{name} of {}: {why}", path.display()));
    assert!(found == value, "{name} of {}: {found:?}", path.display());
}

/// An attribute must not be there.
///
/// # Panics
/// When it is.
#[track_caller]
pub fn has_not(path: &Path, name: &str) {
    assert_eq!(crate::two::errno(get(path, name)), libc::ENODATA, "{name} of {}", path.display());
}

/// These must be all attributes there are.
///
/// # Panics
/// When there are others.
#[track_caller]
pub fn lists(path: &Path, want: &[&str]) {
    assert_eq!(list(path).expect("list"), want, "{}", path.display());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_written_as_the_kernel_wants_it() {
        let value = acl("u::rw u:1001:rx g::- m::rwx o::r");
        assert_eq!(value.len(), 4 + 5 * 8);
        assert_eq!(value[..12], [2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255]);
        assert_eq!(value[12..20], [2, 0, 5, 0, 0xe9, 3, 0, 0]);
    }
}
