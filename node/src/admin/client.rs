//! The commands' side of the admin socket.

use super::{Answer, Envelope, Failure, LINE_MAX, Line, Request, VERSION, short_path};
use crate::data::DataDir;
use serde_json::Value;
use std::fmt;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Why there is no answer.
#[derive(Debug)]
pub enum Trouble {
    /// Nobody answers at the socket.
    Unreachable(String),
    /// The node said no.
    Refused(Failure),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(why) => f.write_str(why),
            Self::Refused(failure) => f.write_str(&failure.message),
        }
    }
}

impl std::error::Error for Trouble {}

/// Asks the node of a data directory. `patience` is the longest silence between two lines.
///
/// # Errors
/// See [`Trouble`].
pub fn ask(
    data: &DataDir,
    request: Request,
    patience: Duration,
    mut progress: impl FnMut(Value),
) -> Result<Value, Trouble> {
    let mut stream = connect(data)?;
    let lost = |e: std::io::Error| Trouble::Unreachable(lost_words(data, &e));
    stream.set_read_timeout(Some(patience)).map_err(lost)?;
    stream.set_write_timeout(Some(patience)).map_err(lost)?;
    let text = serde_json::to_string(&Envelope { v: VERSION, request })
        .map_err(|e| Trouble::Unreachable(format!("encode request: {e}")))?;
    stream.write_all(format!("{text}\n").as_bytes()).map_err(lost)?;
    let mut lines = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        let read = lines.by_ref().take(LINE_MAX as u64 + 1).read_until(b'\n', &mut line).map_err(lost)?;
        if read == 0 || line.last() != Some(&b'\n') {
            return Err(lost(ErrorKind::UnexpectedEof.into()));
        }
        let answer: Answer = serde_json::from_slice(&line)
            .map_err(|e| Trouble::Unreachable(format!("the node answered something strange: {e}")))?;
        if answer.v != VERSION {
            return Err(Trouble::Unreachable(format!(
                "the node speaks version {} of the admin protocol, this command version {VERSION}: use the same \
                 hfcache as the node",
                answer.v
            )));
        }
        match answer.line {
            Line::Progress(value) => progress(value),
            Line::Ok(value) => return Ok(value),
            Line::Error(failure) => return Err(Trouble::Refused(failure)),
        }
    }
}

fn connect(data: &DataDir) -> Result<UnixStream, Trouble> {
    let shown = data.path().display();
    let (_dir, path) = short_path(data.path())
        .map_err(|e| Trouble::Unreachable(format!("open data directory {shown}: {e}")))?;
    UnixStream::connect(path).map_err(|e| {
        Trouble::Unreachable(match (e.kind(), data.holder()) {
            (ErrorKind::PermissionDenied, _) => {
                format!("the node in {shown} belongs to another user: run this command as that user or as root")
            }
            (_, Some(pid)) => format!("the node in {shown} (process {pid}) is starting or stopping: {e}"),
            (_, None) if !data.holds_node() => format!("no node is in {shown}"),
            (_, None) => format!("the node in {shown} is not running; start it: hfcache node run --data {shown}"),
        })
    })
}

fn lost_words(data: &DataDir, e: &std::io::Error) -> String {
    match e.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            format!("the node in {} does not answer in time", data.path().display())
        }
        _ => format!("the node in {} hung up: {e}", data.path().display()),
    }
}
