//! `hfcache status`.

use super::{Which, say, say_json};
use crate::admin::Request;
use anyhow::Result;
use clap::Args;

/// `hfcache status`.
#[derive(Debug, Args)]
#[command(after_help = "Exit status: 0 healthy, 1 degraded, 2 unreachable.\n\n\
    EXAMPLES:\n  \
    hfcache status\n  \
    hfcache status --data /var/lib/hfcache --json | jq .healthy\n  \
    until hfcache status >/dev/null; do sleep 1; done      wait until the cluster is healthy")]
pub(super) struct Status {
    #[command(flatten)]
    which: Which,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(super) fn run(self) -> Result<u8> {
        let answer = self.which.ask_watching(Request::Status, |_| ());
        let value = match answer {
            Ok(value) => value,
            Err(trouble) => {
                if self.json {
                    say_json(&serde_json::json!({ "healthy": false, "error": trouble.to_string() }))?;
                }
                eprintln!("hfcache: {trouble}");
                return Ok(2);
            }
        };
        let healthy = value["healthy"] == true;
        if self.json {
            // As the node said it: a newer node's fields are not lost.
            say_json(&value)?;
        } else {
            say(serde_json::from_value::<crate::status::Status>(value)?)?;
        }
        Ok(u8::from(!healthy))
    }
}
