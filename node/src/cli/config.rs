//! `hfcache config …`.

use super::{Which, say, say_json};
use crate::config::{Config, KEYS};
use anyhow::Result;
use clap::Subcommand;

/// `hfcache config …`.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show every key of a node's hfcache.toml with its value, its default and what it is for
    #[command(after_help = "Change a value in DATA/hfcache.toml and restart the node.\n\n\
        EXAMPLES:\n  hfcache config show\n  hfcache config show --data /var/lib/hfcache --json")]
    Show {
        #[command(flatten)]
        which: Which,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

impl Command {
    pub(super) fn run(self) -> Result<u8> {
        let Self::Show { which, json } = self;
        let data = which.resolve()?;
        let config = Config::load(&data)?;
        if json {
            return say_json(&config).map(|()| 0);
        }
        say(format!("# {}", data.config().display()))?;
        let table: toml::Table = toml::from_str(&toml::to_string(&config)?)?;
        for key in KEYS {
            let mut value = None;
            let mut at = Some(&table);
            for part in key.name.split('.') {
                value = at.and_then(|t| t.get(part));
                at = value.and_then(toml::Value::as_table);
            }
            let shown = value.map_or_else(String::new, ToString::to_string);
            let default = match key.default {
                "" => "must be given".to_owned(),
                default => format!("default {default}"),
            };
            say(format!("\n{} = {shown}    ({default})\n    {}", key.name, key.about))?;
        }
        Ok(0)
    }
}
