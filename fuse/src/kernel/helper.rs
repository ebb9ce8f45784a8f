//! `fusermount3`, which mounts and unmounts for those who are not root.

use super::device::Device;
use hfcache_base::{Error, Kind, Result};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, recvmsg,
    socketpair,
};
use std::io::IoSliceMut;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// FUSE 3's helper, and FUSE 2's.
const NAMES: [&str; 2] = ["fusermount3", "fusermount"];

fn missing() -> Error {
    Error::new(Kind::NotSupported, "fusermount3 is missing: `apt-get install fuse3`, or run as root")
}

/// Runs the helper that is installed.
fn run(prepare: impl Fn(&mut Command) -> Result<()>) -> Result<Output> {
    for name in NAMES {
        let mut command = Command::new(name);
        command.stdin(Stdio::null());
        prepare(&mut command)?;
        match command.output() {
            Ok(output) => return Ok(output),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io(e).context(format!("run {name}"))),
        }
    }
    Err(missing())
}

fn failure(output: &Output, doing: &str) -> Error {
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Error::new(Kind::NotPermitted, format!("fusermount3 refuses to {doing}: {said}"))
}

/// Whether the system allows users to share their mounts with others.
pub(super) fn user_allow_other() -> bool {
    let text = std::fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    text.lines().any(|line| line.trim() == "user_allow_other")
}

/// Mounts, and takes the open device from the helper.
pub(super) fn mount(point: &Path, options: &str) -> Result<Device> {
    let flags = SocketFlags::CLOEXEC;
    let pair = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None);
    let (ours, theirs) = pair.map_err(|e| Error::io(e.into()).context("make a socket pair"))?;
    let output = run(|command| {
        // The helper sends the descriptor through the socket whose number the variable names. As its
        // standard input the socket is inherited by nobody else.
        let theirs = theirs.try_clone().map_err(Error::io)?;
        command.env("_FUSE_COMMFD", "0").stdin(theirs).arg("-o").arg(options).arg("--").arg(point);
        Ok(())
    })?;
    drop(theirs);
    if !output.status.success() {
        return Err(failure(&output, "mount"));
    }
    let mut byte = [0; 1];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(&ours, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)
        .map_err(|e| Error::io(e.into()).context("take the device from fusermount3"))?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message
            && let Some(fd) = descriptors.next()
        {
            return Ok(Device::from_fd(fd));
        }
    }
    Err(Error::new(Kind::Protocol, "fusermount3 sent no device"))
}

/// Unmounts; `lazy` leaves it to those who still use it.
pub(super) fn unmount(point: &Path, lazy: bool) -> Result<()> {
    let output = run(|command| {
        command.arg("-u");
        if lazy {
            command.arg("-z");
        }
        command.arg("--").arg(point);
        Ok(())
    })?;
    if output.status.success() { Ok(()) } else { Err(failure(&output, "unmount")) }
}
