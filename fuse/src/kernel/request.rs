//! From the bytes of a request to what it asks. Pure: random bytes may come in, and nothing but
//! [`Malformed`] goes wrong.

use super::abi::{IN_HEADER, Malformed, OFFSET_MAX, Reader, cap, fattr, flag, join_time, op};
use super::xattr::{self, Xattr};
use crate::ops::{Caller, Place, Work, WriteFlags};
use hfcache_base::InodeId;
use hfcache_base::meta::{FileKind, Lock, LockKind, NewNode, RenameMode, SetAttr, SetTime};

/// A request that moves no more bytes than this is served in some microseconds.
const SHORT: u64 = 64 << 10;

/// What stands before every request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Operation code.
    pub opcode: u32,
    /// The kernel's number of the request.
    pub unique: u64,
    /// The inode it is about.
    pub ino: InodeId,
    /// File-system user.
    pub uid: u32,
    /// File-system group.
    pub gid: u32,
    /// Process.
    pub pid: u32,
}

impl Header {
    /// Who asks. An umask is in the request itself, of those that make something.
    pub(super) fn caller(&self) -> Caller {
        Caller { unique: self.unique, uid: self.uid, gid: self.gid, pid: self.pid, umask: 0 }
    }
}

/// The kernel's offer at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InitIn {
    /// Major version.
    pub major: u32,
    /// Minor version.
    pub minor: u32,
    /// Most bytes it wants to read ahead.
    pub max_readahead: u32,
    /// What it can do.
    pub flags: u64,
}

/// Inodes of a BATCH_FORGET.
#[derive(Clone, Copy, Debug)]
pub struct Forgets<'a>(&'a [u8]);

impl Iterator for Forgets<'_> {
    type Item = InodeId;

    fn next(&mut self) -> Option<InodeId> {
        let mut reader = Reader::new(self.0);
        let ino = reader.u64().ok()?;
        reader.u64().ok()?;
        self.0 = reader.rest();
        Some(InodeId(ino))
    }
}

/// One request. The inode it is about is in the [`Header`].
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "operations and arguments carry the names of fuse.h")]
pub enum Request<'a> {
    Lookup {
        name: &'a [u8],
    },
    Forget,
    BatchForget(Forgets<'a>),
    Getattr {
        handle: Option<u64>,
    },
    Setattr {
        handle: Option<u64>,
        set: SetAttr,
    },
    Readlink,
    Access {
        want: u32,
    },
    Make {
        name: &'a [u8],
        node: NewNode,
        mode: u32,
        umask: u32,
    },
    Unlink {
        name: &'a [u8],
    },
    Rmdir {
        name: &'a [u8],
    },
    Rename {
        name: &'a [u8],
        new_parent: InodeId,
        new_name: &'a [u8],
        mode: RenameMode,
    },
    Link {
        ino: InodeId,
        name: &'a [u8],
    },
    Open {
        flags: u32,
    },
    Create {
        name: &'a [u8],
        mode: u32,
        umask: u32,
        flags: u32,
    },
    Read {
        handle: u64,
        offset: u64,
        size: u32,
    },
    Write {
        handle: u64,
        offset: u64,
        flags: WriteFlags,
        data: &'a [u8],
    },
    Flush {
        handle: u64,
        lock_owner: u64,
    },
    Fsync {
        handle: u64,
    },
    Release {
        handle: u64,
        flock_owner: Option<u64>,
    },
    Fallocate {
        handle: u64,
        offset: u64,
        len: u64,
        mode: u32,
    },
    /// `data`: where data is, else where a hole is.
    Seek {
        handle: u64,
        offset: u64,
        data: bool,
    },
    /// `wide`: the answer has 64 bits.
    Copy {
        handle: u64,
        offset: u64,
        to: Place,
        len: u64,
        wide: bool,
    },
    Tmpfile {
        mode: u32,
        umask: u32,
        flags: u32,
    },
    Opendir {
        flags: u32,
    },
    Readdir {
        handle: u64,
        cookie: u64,
        size: u32,
        plus: bool,
    },
    Releasedir {
        handle: u64,
    },
    Statfs,
    Xattr(Xattr<'a>),
    LockTest {
        lock: Lock,
    },
    Lock {
        handle: u64,
        lock: Lock,
        wait: bool,
    },
    Unlock {
        lock: Lock,
    },
    Init(InitIn),
    Interrupt {
        unique: u64,
    },
    /// Nothing to do, and that is well.
    Nothing,
    /// Wants no answer, and nothing to do.
    Silent,
    /// Answered with this errno, without asking the file system.
    Refused(i32),
}

impl Request<'_> {
    /// Whether the kernel waits for an answer.
    pub const fn wants_answer(&self) -> bool {
        !matches!(self, Self::Forget | Self::BatchForget(_) | Self::Interrupt { .. } | Self::Silent)
    }

    /// Whether the thread that serves it is busy for longer than others may wait.
    pub const fn is_long(&self) -> bool {
        match self.work() {
            Some(Work::Read(bytes) | Work::Write(bytes)) => bytes > SHORT,
            _ => matches!(self, Self::Readdir { .. }),
        }
    }

    /// What a limit on its caller counts; `None` for what ends something and so must not wait.
    pub const fn work(&self) -> Option<Work> {
        match self {
            Self::Read { size, .. } => Some(Work::Read(*size as u64)),
            Self::Write { data, .. } => Some(Work::Write(data.len() as u64)),
            Self::Flush { .. }
            | Self::Fsync { .. }
            | Self::Release { .. }
            | Self::Releasedir { .. }
            | Self::Unlock { .. } => None,
            _ => Some(Work::Other),
        }
    }
}

/// Takes the header off a request that was read whole.
///
/// # Errors
/// [`Malformed`] if it is too short or says another length.
pub fn header(bytes: &[u8]) -> Result<(Header, Reader<'_>), Malformed> {
    let mut reader = Reader::new(bytes);
    let len = reader.u32()?;
    let opcode = reader.u32()?;
    let unique = reader.u64()?;
    let ino = InodeId(reader.u64()?);
    let uid = reader.u32()?;
    let gid = reader.u32()?;
    let pid = reader.u32()?;
    // Length of extensions: none, as none was agreed on.
    reader.u32()?;
    if usize::try_from(len) != Ok(bytes.len()) || bytes.len() < IN_HEADER {
        return Err(Malformed);
    }
    Ok((Header { opcode, unique, ino, uid, gid, pid }, reader))
}

/// Decodes what follows the header, in a mount that has agreed on these flags with the kernel.
///
/// # Errors
/// [`Malformed`] if it does not follow the protocol.
pub fn decode<'a>(header: &Header, mut body: Reader<'a>, agreed: u64) -> Result<Request<'a>, Malformed> {
    let body = &mut body;
    Ok(match header.opcode {
        op::LOOKUP => Request::Lookup { name: body.name()? },
        op::FORGET => Request::Forget,
        op::BATCH_FORGET => batch_forget(body)?,
        op::GETATTR => getattr(body)?,
        op::SETATTR => setattr(body)?,
        op::READLINK => Request::Readlink,
        op::ACCESS => Request::Access { want: body.u32()? },
        op::SYMLINK => {
            let name = body.name()?;
            Request::Make { name, node: NewNode::Symlink(body.text()?.to_vec()), mode: 0o777, umask: 0 }
        }
        op::MKNOD => mknod(body)?,
        op::MKDIR => {
            let (mode, umask) = (body.u32()? & 0o7777, umask(body)?);
            Request::Make { name: body.name()?, node: NewNode::Directory, mode, umask }
        }
        op::UNLINK => Request::Unlink { name: body.name()? },
        op::RMDIR => Request::Rmdir { name: body.name()? },
        op::RENAME => rename(body, false)?,
        op::RENAME2 => rename(body, true)?,
        op::LINK => Request::Link { ino: InodeId(body.u64()?), name: body.name()? },
        op::OPEN => Request::Open { flags: body.u32()? },
        op::CREATE => {
            let flags = body.u32()?;
            let (mode, umask) = (body.u32()? & 0o7777, umask(body)?);
            body.u32()?;
            Request::Create { name: body.name()?, mode, umask, flags }
        }
        op::READ => Request::Read { handle: body.u64()?, offset: body.u64()?, size: body.u32()? },
        op::WRITE => write(body)?,
        op::FLUSH => {
            let handle = body.u64()?;
            body.u64()?;
            Request::Flush { handle, lock_owner: body.u64()? }
        }
        op::FSYNC => Request::Fsync { handle: body.u64()? },
        op::RELEASE => {
            let handle = body.u64()?;
            body.u32()?;
            let unlock = body.u32()? & flag::RELEASE_FLOCK_UNLOCK != 0;
            let _kernels_owner = body.u64()?;
            Request::Release { handle, flock_owner: unlock.then_some(flock_owner(handle)) }
        }
        op::FALLOCATE => Request::Fallocate {
            handle: body.u64()?,
            offset: body.u64()?,
            len: body.u64()?,
            mode: body.u32()?,
        },
        op::LSEEK => {
            let (handle, offset) = (body.u64()?, body.u64()?);
            match i32::try_from(body.u32()?) {
                Ok(libc::SEEK_DATA) => Request::Seek { handle, offset, data: true },
                Ok(libc::SEEK_HOLE) => Request::Seek { handle, offset, data: false },
                _ => Request::Refused(libc::EINVAL),
            }
        }
        op::COPY_FILE_RANGE | op::COPY_FILE_RANGE_64 => copy(body, header.opcode == op::COPY_FILE_RANGE_64)?,
        op::TMPFILE => {
            // What stands for the name is none.
            let flags = body.u32()?;
            Request::Tmpfile { flags, mode: body.u32()? & 0o7777, umask: umask(body)? }
        }
        op::OPENDIR => Request::Opendir { flags: body.u32()? },
        op::READDIR | op::READDIRPLUS => Request::Readdir {
            handle: body.u64()?,
            cookie: body.u64()?,
            size: body.u32()?,
            plus: header.opcode == op::READDIRPLUS,
        },
        op::RELEASEDIR => Request::Releasedir { handle: body.u64()? },
        op::STATFS => Request::Statfs,
        op::SETXATTR => xattr::set(body, agreed & cap::SETXATTR_EXT != 0)?,
        op::GETXATTR => xattr::get(body)?,
        op::LISTXATTR => xattr::list(body)?,
        op::REMOVEXATTR => xattr::remove(body)?,
        op::GETLK => match lock(body)? {
            (_, _, libc::F_UNLCK) => Request::Refused(libc::EINVAL),
            (_, lock, _) => Request::LockTest { lock },
        },
        op::SETLK | op::SETLKW => match lock(body)? {
            (_, lock, libc::F_UNLCK) => Request::Unlock { lock },
            (handle, lock, _) => Request::Lock { handle, lock, wait: header.opcode == op::SETLKW },
        },
        op::INIT => init(body)?,
        op::INTERRUPT => Request::Interrupt { unique: body.u64()? },
        // Names are durable when their operation is answered, so there is nothing left to sync.
        op::FSYNCDIR | op::SYNCFS | op::DESTROY => Request::Nothing,
        op::NOTIFY_REPLY => Request::Silent,
        op::IOCTL => Request::Refused(libc::ENOTTY),
        // ENOSYS once makes the kernel stop asking and take its own way: POLL is always ready, STATX is a GETATTR.
        _ => Request::Refused(libc::ENOSYS),
    })
}

/// The caller's umask, of which only permission bits count.
fn umask(body: &mut Reader<'_>) -> Result<u32, Malformed> {
    Ok(body.u32()? & 0o777)
}

fn batch_forget<'a>(body: &mut Reader<'a>) -> Result<Request<'a>, Malformed> {
    let count = usize::try_from(body.u32()?).map_err(|_| Malformed)?;
    body.u32()?;
    let len = count.checked_mul(16).ok_or(Malformed)?;
    Ok(Request::BatchForget(Forgets(body.bytes(len)?)))
}

fn getattr<'a>(body: &mut Reader<'a>) -> Result<Request<'a>, Malformed> {
    let flags = body.u32()?;
    body.u32()?;
    let handle = body.u64()?;
    Ok(Request::Getattr { handle: (flags & flag::GETATTR_FH != 0).then_some(handle) })
}

fn setattr<'a>(body: &mut Reader<'a>) -> Result<Request<'a>, Malformed> {
    let valid = body.u32()?;
    body.u32()?;
    let handle = body.u64()?;
    let size = body.u64()?;
    let _lock_owner = body.u64()?;
    let (atime, mtime, _ctime) = (body.u64()?, body.u64()?, body.u64()?);
    let (atime_nanos, mtime_nanos, _ctime_nanos) = (body.u32()?, body.u32()?, body.u32()?);
    let mode = body.u32()?;
    body.u32()?;
    let (uid, gid) = (body.u32()?, body.u32()?);
    let has = |bit: u32| valid & bit != 0;
    let time = |bit: u32, now: u32, seconds: u64, nanos: u32| {
        if has(now) { Some(SetTime::Now) } else { has(bit).then(|| SetTime::To(join_time(seconds, nanos))) }
    };
    // A new ctime comes only with the write-back cache, which is not asked for.
    let set = SetAttr {
        mode: has(fattr::MODE).then_some(mode & 0o7777),
        uid: has(fattr::UID).then_some(uid),
        gid: has(fattr::GID).then_some(gid),
        size: has(fattr::SIZE).then_some(size),
        atime: time(fattr::ATIME, fattr::ATIME_NOW, atime, atime_nanos),
        mtime: time(fattr::MTIME, fattr::MTIME_NOW, mtime, mtime_nanos),
        kill_suid: has(fattr::KILL_SUIDGID),
    };
    Ok(Request::Setattr { handle: has(fattr::FH).then_some(handle), set })
}

fn mknod<'a>(body: &mut Reader<'a>) -> Result<Request<'a>, Malformed> {
    let mode = body.u32()?;
    let rdev = body.u32()?;
    let umask = umask(body)?;
    body.u32()?;
    let name = body.name()?;
    let node = match mode & libc::S_IFMT {
        0 | libc::S_IFREG => NewNode::File,
        libc::S_IFIFO => NewNode::Special(FileKind::Fifo, 0),
        libc::S_IFSOCK => NewNode::Special(FileKind::Socket, 0),
        libc::S_IFCHR => NewNode::Special(FileKind::CharDevice, rdev),
        libc::S_IFBLK => NewNode::Special(FileKind::BlockDevice, rdev),
        _ => return Ok(Request::Refused(libc::EINVAL)),
    };
    Ok(Request::Make { name, node, mode: mode & 0o7777, umask })
}

fn rename<'a>(body: &mut Reader<'a>, flagged: bool) -> Result<Request<'a>, Malformed> {
    let new_parent = InodeId(body.u64()?);
    let flags = if flagged {
        let flags = body.u32()?;
        body.u32()?;
        flags
    } else {
        0
    };
    let mode = match flags {
        0 => RenameMode::Replace,
        flag::RENAME_NOREPLACE => RenameMode::NoReplace,
        flag::RENAME_EXCHANGE => RenameMode::Exchange,
        _ => return Ok(Request::Refused(libc::EINVAL)),
    };
    Ok(Request::Rename { name: body.name()?, new_parent, new_name: body.name()?, mode })
}

fn write<'a>(body: &mut Reader<'a>) -> Result<Request<'a>, Malformed> {
    let handle = body.u64()?;
    let offset = body.u64()?;
    let size = usize::try_from(body.u32()?).map_err(|_| Malformed)?;
    let bits = body.u32()?;
    let cached = bits & flag::WRITE_CACHE != 0;
    let kill_set_id = bits & flag::WRITE_KILL_SUIDGID != 0;
    let _lock_owner = body.u64()?;
    // As the descriptor has it at this moment: it may be changed by fcntl.
    let append = body.u32()? & libc::O_APPEND as u32 != 0 && !cached;
    body.u32()?;
    let flags = WriteFlags { cached, append, kill_set_id };
    Ok(Request::Write { handle, offset, flags, data: body.bytes(size)? })
}

fn copy<'a>(body: &mut Reader<'a>, wide: bool) -> Result<Request<'a>, Malformed> {
    let (handle, offset) = (body.u64()?, body.u64()?);
    let to = Place { ino: InodeId(body.u64()?), handle: body.u64()?, offset: body.u64()? };
    let len = body.u64()?;
    // No flags are known.
    match body.u64()? {
        0 => Ok(Request::Copy { handle, offset, to, len, wide }),
        _ => Ok(Request::Refused(libc::EINVAL)),
    }
}

/// Who holds a `flock` through an open file. The kernel's own number for him is that of the open file in its memory,
/// which the next one that is opened may get, before the RELEASE of the last one is served: then that would take the
/// lock from it. A handle is given once.
const fn flock_owner(handle: u64) -> u64 {
    handle
}

/// The handle, a lock and its type.
fn lock(body: &mut Reader<'_>) -> Result<(u64, Lock, i32), Malformed> {
    let handle = body.u64()?;
    let owner = body.u64()?;
    let (start, end) = (body.u64()?, body.u64()?);
    let kind = i32::try_from(body.u32()?).map_err(|_| Malformed)?;
    let pid = body.u32()?;
    let flock = body.u32()? & flag::LK_FLOCK != 0;
    if !matches!(kind, libc::F_RDLCK | libc::F_WRLCK | libc::F_UNLCK) || start > end {
        return Err(Malformed);
    }
    let lock = Lock {
        kind: if flock { LockKind::Flock } else { LockKind::Posix },
        owner: if flock { flock_owner(handle) } else { owner },
        exclusive: kind == libc::F_WRLCK,
        start,
        end: if end >= OFFSET_MAX { u64::MAX } else { end },
        pid,
    };
    Ok((handle, lock, kind))
}

fn init<'a>(body: &mut Reader<'a>) -> Result<Request<'a>, Malformed> {
    let (major, minor) = (body.u32()?, body.u32()?);
    let max_readahead = body.u32()?;
    let low = u64::from(body.u32()?);
    // Before 7.36 there is nothing behind the first flags, and without INIT_EXT it means nothing.
    let extended = low & cap::INIT_EXT != 0;
    let high = if extended { u64::from(body.u32()?) } else { 0 };
    Ok(Request::Init(InitIn { major, minor, max_readahead, flags: low | high << 32 }))
}
