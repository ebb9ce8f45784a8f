//! One error type for every part, and the one table from its kind to an errno.
//!
//! A context is a present-tense verb and its object (`"read shard"`), never "could not …". Errors are
//! logged once, where they are handled.

use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::fmt;

/// Shorthand used everywhere.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, as far as a caller has to decide something by it. Replicated in Raft replies and
/// sent over the wire: add at the end only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Kind {
    /// No such name, inode, chunk or member.
    NotFound,
    /// The name is taken.
    Exists,
    /// A directory was needed.
    NotDirectory,
    /// Anything but a directory was needed.
    IsDirectory,
    /// The directory still has entries.
    NotEmpty,
    /// Only the owner or root may.
    NotPermitted,
    /// The mode bits say no.
    AccessDenied,
    /// An argument that can never be right.
    Invalid,
    /// A name of more than [`crate::limits::NAME_MAX`] bytes.
    NameTooLong,
    /// More hard links than an inode can count.
    TooManyLinks,
    /// No room on enough disks.
    NoSpace,
    /// Over a quota.
    Quota,
    /// An offset or size beyond [`crate::limits::FILE_SIZE_MAX`].
    TooLarge,
    /// A loop of symbolic links or of directories.
    Loop,
    /// Would have to wait and was told not to.
    WouldBlock,
    /// A signal ended the wait.
    Interrupted,
    /// Waiting would never end.
    Deadlock,
    /// The handle is not open, or not open for this.
    BadHandle,
    /// In use.
    Busy,
    /// The mount or the node takes no writes.
    ReadOnly,
    /// Not implemented, on purpose.
    NotSupported,
    /// No such attribute, or no data past this offset.
    NoData,
    /// The inode is gone.
    Stale,
    /// A result that does not fit the caller's buffer.
    Range,
    /// No answer before the deadline.
    TimedOut,
    /// No quorum, no leader, or too few shard holders.
    Unavailable,
    /// This node lost its session and refuses to serve what may be stale.
    Fenced,
    /// Ask the leader instead.
    NotLeader,
    /// Bytes that fail their checksum, or a damaged file.
    Corrupt,
    /// The operating system said no.
    Io,
    /// A credential that is missing, wrong, expired or revoked.
    Unauthorized,
    /// A message that breaks the protocol or a limit.
    Protocol,
    /// The caller went away.
    Canceled,
    /// A broken invariant that was caught in time.
    Internal,
    /// A version of a format or protocol this program does not speak.
    Version,
    /// Not a device or not possible on this kind of file.
    NoDevice,
    /// Rename across file systems.
    CrossDevice,
    /// A value of more than [`crate::limits::XATTR_VALUE_MAX`] bytes.
    ValueTooLong,
    /// The content is no longer the one that a commit was made from: look again, and repeat.
    Changed,
}

impl Kind {
    /// The errno an application sees.
    pub const fn errno(self) -> i32 {
        match self {
            Self::NotFound => libc::ENOENT,
            Self::Exists => libc::EEXIST,
            Self::NotDirectory => libc::ENOTDIR,
            Self::IsDirectory => libc::EISDIR,
            Self::NotEmpty => libc::ENOTEMPTY,
            Self::NotPermitted => libc::EPERM,
            Self::AccessDenied | Self::Unauthorized => libc::EACCES,
            Self::Invalid => libc::EINVAL,
            Self::NameTooLong => libc::ENAMETOOLONG,
            Self::TooManyLinks => libc::EMLINK,
            Self::NoSpace => libc::ENOSPC,
            Self::Quota => libc::EDQUOT,
            Self::TooLarge => libc::EFBIG,
            Self::Loop => libc::ELOOP,
            Self::WouldBlock => libc::EAGAIN,
            Self::Interrupted => libc::EINTR,
            Self::Deadlock => libc::EDEADLK,
            Self::BadHandle => libc::EBADF,
            Self::Busy => libc::EBUSY,
            Self::ReadOnly => libc::EROFS,
            Self::NotSupported => libc::EOPNOTSUPP,
            Self::NoData => libc::ENODATA,
            Self::Stale => libc::ESTALE,
            Self::Range => libc::ERANGE,
            Self::NoDevice => libc::ENXIO,
            Self::CrossDevice => libc::EXDEV,
            Self::ValueTooLong => libc::E2BIG,
            Self::TimedOut
            | Self::Unavailable
            | Self::Fenced
            | Self::NotLeader
            | Self::Corrupt
            | Self::Io
            | Self::Protocol
            | Self::Canceled
            | Self::Changed
            | Self::Internal
            | Self::Version => libc::EIO,
        }
    }

    /// Whether the same call may succeed a little later or at another node.
    pub const fn is_transient(self) -> bool {
        matches!(self, Self::TimedOut | Self::Unavailable | Self::NotLeader | Self::Canceled)
    }
}

/// An error: its kind, one sentence, and what was being done, innermost first.
pub struct Error {
    kind: Kind,
    message: Cow<'static, str>,
    context: Vec<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error with a sentence of its own.
    pub fn new(kind: Kind, message: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, message: message.into(), context: Vec::new(), source: None }
    }

    /// An error of the operating system; ENOSPC, ENOENT and EEXIST keep their meaning.
    pub fn io(source: std::io::Error) -> Self {
        let kind = match source.raw_os_error() {
            Some(libc::ENOSPC) => Kind::NoSpace,
            Some(libc::EDQUOT) => Kind::Quota,
            Some(libc::ENOENT) => Kind::NotFound,
            Some(libc::EEXIST) => Kind::Exists,
            Some(libc::EACCES) => Kind::AccessDenied,
            Some(libc::EPERM) => Kind::NotPermitted,
            Some(libc::EFBIG) => Kind::TooLarge,
            _ if source.kind() == std::io::ErrorKind::TimedOut => Kind::TimedOut,
            _ => Kind::Io,
        };
        Self { kind, message: Cow::Borrowed(""), context: Vec::new(), source: Some(Box::new(source)) }
    }

    /// Attaches the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Says what was being done: a verb and its object.
    #[must_use]
    pub fn context(mut self, doing: impl Into<String>) -> Self {
        self.context.push(doing.into());
        self
    }

    /// The kind, for decisions.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The errno, for the kernel.
    pub fn errno(&self) -> i32 {
        self.kind.errno()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for doing in self.context.iter().rev() {
            write!(f, "{doing}: ")?;
        }
        match (&self.source, self.message.is_empty()) {
            (Some(source), true) => write!(f, "{source}"),
            (Some(source), false) => write!(f, "{}: {source}", self.message),
            (None, true) => write!(f, "{:?}", self.kind),
            (None, false) => write!(f, "{}", self.message),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{:?}] {self}", self.kind)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|s| s.as_ref() as _)
    }
}

impl From<Kind> for Error {
    fn from(kind: Kind) -> Self {
        Self::new(kind, "")
    }
}

impl From<std::io::Error> for Error {
    fn from(source: std::io::Error) -> Self {
        Self::io(source)
    }
}

/// Adds context to any result that can become an [`Error`].
pub trait Context<T> {
    /// Says what was being done if this is an error.
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<Error>> Context<T> for std::result::Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| e.into().context(what()))
    }
}
