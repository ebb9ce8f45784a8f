//! A process of its own that holds files open, locked and mapped on behalf of a test, so that it can be
//! killed. It speaks lines: one command in, one answer out.

use crate::sys::{self, Map, MapKind, RangeLock};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

/// A call that may not block is waited for this long.
const ANSWER: Duration = Duration::from_secs(60);

/// The test's end of such a process. Dropping it kills the process.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    commands: ChildStdin,
    answers: Receiver<String>,
}

impl Agent {
    /// Starts one. `program` is `env!("CARGO_BIN_EXE_hfcache-test-agent")`, which only tests know.
    ///
    /// # Panics
    /// When it can't be started.
    pub fn start(program: &str) -> Self {
        let mut child = Command::new(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start the test agent");
        let commands = child.stdin.take().expect("piped");
        let answers_in = BufReader::new(child.stdout.take().expect("piped"));
        let (tell, answers) = sync_channel(64);
        thread::spawn(move || {
            for line in answers_in.lines().map_while(Result::ok) {
                if tell.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, commands, answers }
    }

    /// Sends a command and does not wait for its answer.
    ///
    /// # Panics
    /// When the process is gone.
    pub fn send(&mut self, command: &str) {
        writeln!(self.commands, "{command}").expect("tell the agent");
    }

    /// The answer to a command that was sent, if it comes within `limit`.
    ///
    /// # Panics
    /// When the process is gone.
    pub fn answer_within(&self, limit: Duration) -> Option<String> {
        match self.answers.recv_timeout(limit) {
            Ok(answer) => Some(answer),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => panic!("the agent has ended"),
        }
    }

    /// The answer to a command that was sent.
    ///
    /// # Panics
    /// When none comes.
    #[track_caller]
    pub fn answer(&self) -> String {
        self.answer_within(ANSWER).unwrap_or_else(|| panic!("the agent gave no answer within {ANSWER:?}"))
    }

    /// Sends a command and waits for its answer.
    #[track_caller]
    pub fn ask(&mut self, command: &str) -> String {
        self.send(command);
        self.answer()
    }

    /// Sends a command whose answer must be `ok`.
    ///
    /// # Panics
    /// When it is not.
    #[track_caller]
    pub fn ok(&mut self, command: &str) {
        let answer = self.ask(command);
        assert_eq!(answer, "ok", "{command}");
    }

    /// SIGKILL, and waits for its end: nothing of it is left in the kernel then.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let pid = self.child.id();
        // A process that waits in a dead mount can't even be killed; the test must not hang with it.
        let start = std::time::Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if start.elapsed() > ANSWER {
                eprintln!("test agent {pid} can't be killed");
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.end();
    }
}

#[derive(Default)]
struct Held {
    files: HashMap<String, File>,
    maps: HashMap<String, Map>,
}

/// The other end: what the agent's `main` calls. Ends with its standard input.
///
/// # Errors
/// When the test is gone.
pub fn serve() -> io::Result<()> {
    let mut held = Held::default();
    let mut out = io::stdout();
    for line in io::stdin().lines() {
        let words: Vec<String> = line?.split_whitespace().map(str::to_owned).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let answer = match held.carry_out(&words) {
            Ok(text) => text,
            Err(why) if why.kind() == io::ErrorKind::WouldBlock => "busy".into(),
            Err(why) => match why.raw_os_error() {
                Some(code) => format!("errno {code}"),
                None => format!("error {why}"),
            },
        };
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}

impl Held {
    fn file(&self, id: &str) -> io::Result<&File> {
        self.files.get(id).ok_or_else(|| io::Error::other(format!("no file {id} is open")))
    }

    fn carry_out(&mut self, words: &[&str]) -> io::Result<String> {
        let number =
            |text: &str| text.parse::<i64>().map_err(|_| io::Error::other(format!("{text} is no number")));
        match *words {
            ["open", id, path, how] => {
                let mut options = File::options();
                options.read(true).write(how != "r");
                match how {
                    "create" => options.create(true),
                    "new" => options.create_new(true),
                    "append" => options.append(true).create(true),
                    _ => &mut options,
                };
                self.files.insert(id.into(), options.mode(0o644).open(Path::new(path))?);
            }
            ["close", id] => drop(self.files.remove(id)),
            ["flock", id, "ex"] => self.file(id)?.lock()?,
            ["flock", id, "sh"] => self.file(id)?.lock_shared()?,
            ["flock", id, "ex", "nb"] => self.file(id)?.try_lock()?,
            ["flock", id, "sh", "nb"] => self.file(id)?.try_lock_shared()?,
            ["flock", id, "un"] => self.file(id)?.unlock()?,
            ["range", id, kind, start, len, ref rest @ ..] => {
                let kind = match kind {
                    "read" => RangeLock::Read,
                    "write" => RangeLock::Write,
                    _ => RangeLock::Free,
                };
                let wait = rest != ["nb"] && rest != ["test"];
                if rest == ["test"] {
                    let taken = sys::range_lock_test(self.file(id)?, kind, number(start)?, number(len)?)?;
                    return Ok(if taken { "taken" } else { "free" }.into());
                }
                sys::range_lock(self.file(id)?, kind, number(start)?, number(len)?, wait)?;
            }
            ["write", id, at, text] => self.file(id)?.write_all_at(text.as_bytes(), number(at)? as u64)?,
            ["append", id, text] => self.file(id)?.write_all(text.as_bytes())?,
            ["read", id, at, len] => {
                let mut buf = vec![0; number(len)? as usize];
                let n = self.file(id)?.read_at(&mut buf, number(at)? as u64)?;
                return Ok(format!("bytes {}", String::from_utf8_lossy(&buf[..n])));
            }
            ["sync", id] => self.file(id)?.sync_all()?,
            ["map", id, len] => {
                let map = Map::new(self.file(id)?, number(len)? as usize, MapKind::Read)?;
                self.maps.insert(id.into(), map);
            }
            ["mapped", id, at] => {
                let map = self.maps.get(id).ok_or_else(|| io::Error::other("not mapped"))?;
                return Ok(format!("byte {}", map[number(at)? as usize]));
            }
            _ => return Err(io::Error::other(format!("no such command: {}", words.join(" ")))),
        }
        Ok("ok".into())
    }
}
