//! `hfcache doctor`.

use super::{Which, say, say_json};
use crate::doctor::{Level, Options, examine};
use anyhow::Result;
use clap::Args;

/// `hfcache doctor`.
#[derive(Debug, Args)]
#[command(after_help = "Exit status: 1 if anything fails; warnings do not count.\n\n\
    EXAMPLES:\n  \
    hfcache doctor                                 before the first node is made\n  \
    hfcache doctor --data /var/lib/hfcache --json  with that node's configuration")]
pub(super) struct Doctor {
    #[command(flatten)]
    which: Which,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Doctor {
    pub(super) fn run(self) -> Result<u8> {
        // Without a node there is still a machine to look at.
        let data = match &self.which.data {
            Some(_) => Some(self.which.resolve()?),
            None => self.which.resolve().ok(),
        };
        let findings = examine(&Options { data });
        let failed = findings.iter().any(|f| f.level == Level::Fail);
        if self.json {
            say_json(&serde_json::json!({ "ok": !failed, "checks": findings }))?;
        } else {
            for finding in &findings {
                say(format!("{:<4}  {:<12} {}", finding.level.word(), finding.check, finding.found))?;
                if let Some(mend) = &finding.mend {
                    say(format!("{:<18} -> {mend}", ""))?;
                }
            }
        }
        Ok(u8::from(failed))
    }
}
