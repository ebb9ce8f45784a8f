//! The FUSE protocol: device, mount, requests and replies. It speaks with the kernel itself, without a
//! FUSE library (docs/adr/0001-own-fuse-protocol.md says why), and knows no file.
//!
//! ```text
//! Mount ── mount.rs    mount(2) or fusermount3, stale mounts, unmounting      table.rs  /proc/self/mountinfo
//!   └─ Session         worker threads, requests in flight, panics, the end    init.rs   what is agreed on
//!        ├─ Turns      which threads wait for requests, and which sit out
//!        ├─ Device     one descriptor of /dev/fuse: read a request, write an answer
//!        ├─ request.rs bytes → Request (pure)       reply.rs  answers → bytes (pure)     xattr.rs  both
//!        ├─ dispatch   Request → one call of ops::FileSystem, with a Reply that writes to the device
//!        └─ notify.rs  what the kernel keeps is no longer true
//! ```
//!
//! Every byte that comes from the kernel goes through [`abi::Reader`], which is bounded; what can't be
//! decoded is answered with EIO and logged.

pub mod abi;
mod device;
mod dispatch;
mod helper;
mod inflight;
mod init;
mod mount;
mod notify;
mod reply;
pub mod request;
mod session;
mod table;
mod turns;
pub mod xattr;

pub use mount::{Mount, MountOptions, is_dead};
