//! What clients asked and what they were told.

use std::io::{self, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// What a client asked of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Its value.
    Read,
    /// To have this value.
    Write(u64),
}

/// How it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done; a read saw this value.
    Ok(u64),
    /// Certainly not done.
    Fail,
    /// Perhaps done, now or at any time later.
    Info,
}

/// One operation from call to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// The client.
    pub client: usize,
    /// The register.
    pub key: usize,
    /// The question.
    pub ask: Ask,
    /// The answer.
    pub outcome: Outcome,
    /// Nanoseconds from the start of the run to the call.
    pub called: u64,
    /// Nanoseconds to the answer.
    pub answered: u64,
}

/// All operations of a run. Shared by the clients.
#[derive(Debug)]
pub struct History {
    start: Instant,
    operations: Mutex<Vec<Operation>>,
}

impl Default for History {
    fn default() -> Self {
        Self { start: Instant::now(), operations: Mutex::default() }
    }
}

impl History {
    fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// Carries out an operation and records it.
    pub fn record(&self, client: usize, key: usize, ask: Ask, act: impl FnOnce() -> Outcome) -> Outcome {
        let called = self.now();
        let outcome = act();
        let operation = Operation { client, key, ask, outcome, called, answered: self.now() };
        self.operations.lock().unwrap_or_else(PoisonError::into_inner).push(operation);
        outcome
    }

    /// All so far, in order of their calls.
    pub fn operations(&self) -> Vec<Operation> {
        let mut all = self.operations.lock().unwrap_or_else(PoisonError::into_inner).clone();
        all.sort_by_key(|o| (o.called, o.answered));
        all
    }
}

/// Writes a history as Jepsen keeps it: one map a line, calls and answers in the order in which they came.
/// A client whose operation has an unknown outcome goes on under another process number, as Jepsen demands.
///
/// # Errors
/// Whatever the disk says.
pub fn write_edn(operations: &[Operation], path: &Path) -> io::Result<()> {
    let clients = operations.iter().map(|o| o.client + 1).max().unwrap_or(0);
    let mut process: Vec<usize> = (0..clients).collect();
    let mut lines: Vec<(u64, String)> = Vec::new();
    for o in operations {
        let name = if o.ask == Ask::Read { "read" } else { "write" };
        let value = |v: Option<u64>| v.map_or_else(|| "nil".to_owned(), |v| v.to_string());
        let (asked, told) = match (o.ask, o.outcome) {
            (Ask::Write(v), _) => (Some(v), Some(v)),
            (Ask::Read, Outcome::Ok(v)) => (None, Some(v)),
            (Ask::Read, _) => (None, None),
        };
        let line = |kind: &str, at: u64, v: Option<u64>, process: usize| {
            let value = value(v);
            format!(":time {at} :process {process} :type :{kind} :f :{name} :value [{} {value}]}}", o.key)
        };
        let me = process[o.client];
        lines.push((o.called, line("invoke", o.called, asked, me)));
        let kind = match o.outcome {
            Outcome::Ok(_) => "ok",
            Outcome::Fail => "fail",
            Outcome::Info => {
                process[o.client] += clients;
                "info"
            }
        };
        lines.push((o.answered, line(kind, o.answered, told, me)));
    }
    lines.sort_by_key(|(at, _)| *at);
    let mut file = io::BufWriter::new(std::fs::File::create(path)?);
    for (index, (_, line)) in lines.iter().enumerate() {
        writeln!(file, "{{:index {index} {line}")?;
    }
    file.flush()
}
