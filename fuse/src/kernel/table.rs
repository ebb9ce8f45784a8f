//! The table of mounts. Looking something up here never touches a file system, so it can't hang on a dead
//! or slow mount, as `stat` can.

use hfcache_base::{Error, Result};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mounted {
    /// Device number.
    pub(super) major: u32,
    /// Device number.
    pub(super) minor: u32,
    /// Where.
    pub(super) point: PathBuf,
    /// Kind of file system, with its subtype.
    pub(super) kind: String,
}

/// What is visible at `point`: the mount that was made there last.
pub(super) fn top(point: &Path) -> Result<Option<Mounted>> {
    let path = "/proc/self/mountinfo";
    let text = std::fs::read(path).map_err(|e| Error::io(e).context(format!("read {path}")))?;
    Ok(text.split(|&b| b == b'\n').filter_map(parse).rfind(|m| m.point == point))
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`
fn parse(line: &[u8]) -> Option<Mounted> {
    let mut fields = line.split(|&b| b == b' ');
    let device = std::str::from_utf8(fields.nth(2)?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let point = unescape(fields.nth(1)?);
    fields.find(|field| *field == b"-")?;
    let kind = String::from_utf8_lossy(fields.next()?).into_owned();
    Some(Mounted {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        point: PathBuf::from(OsString::from_vec(point)),
        kind,
    })
}

/// Undoes `\040` and the like.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = (first == b'\\')
            .then(|| tail.split_at_checked(3))
            .flatten()
            .and_then(|(digits, after)| Some((std::str::from_utf8(digits).ok()?, after)))
            .and_then(|(digits, after)| Some((u8::from_str_radix(digits, 8).ok()?, after)));
        match octal {
            Some((byte, after)) => {
                out.push(byte);
                rest = after;
            }
            None => {
                out.push(first);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_line_with_and_without_optional_fields() {
        let line =
            br"36 35 0:52 / /mnt/a\040b\134 rw,nosuid shared:1 master:2 - fuse.hfcache hfcache rw,user_id=0";
        let mounted = parse(line).unwrap();
        assert_eq!(mounted.point, Path::new("/mnt/a b\\"));
        assert_eq!((mounted.major, mounted.minor, mounted.kind.as_str()), (0, 52, "fuse.hfcache"));
        assert_eq!(parse(b"36 35 0:52 / / rw - ext4 x rw").unwrap().kind, "ext4");
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"36 35 0:52 / /mnt rw"), None);
    }

    #[test]
    fn finds_proc() {
        assert_eq!(top(Path::new("/proc")).unwrap().unwrap().kind, "proc");
        assert_eq!(top(Path::new("/no such place")).unwrap(), None);
    }
}
