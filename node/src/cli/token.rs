//! `hfcache token …`.

use super::{Which, say, say_json};
use crate::admin::Request;
use crate::time;
use anyhow::{Context, Result};
use clap::Subcommand;
use serde_json::Value;
use std::time::Duration;

/// `hfcache token …`.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Print a new join token
    #[command(after_help = "The token is a secret: who has it can join the cluster until it expires or is revoked.\n\n\
        EXAMPLES:\n  \
        hfcache token create --ttl 2h\n  \
        ssh node2 hfcache node join \"$(hfcache token create)\" --data /var/lib/hfcache --mount /hf")]
    Create {
        #[command(flatten)]
        which: Which,
        /// How long it is good for: 90s, 30m, 24h, 7d
        #[arg(long, default_value = "24h", value_parser = time::parse_span)]
        ttl: Duration,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// List join tokens, without their secrets
    #[command(after_help = "EXAMPLE:\n  hfcache token list --json")]
    List {
        #[command(flatten)]
        which: Which,
        /// Print one JSON array
        #[arg(long)]
        json: bool,
    },
    /// Refuse a join token from now on
    #[command(after_help = "EXAMPLE:\n  hfcache token revoke 3f9a12bc")]
    Revoke {
        /// Its public name from `token list`, or the token itself
        #[arg(value_name = "ID")]
        id: String,
        #[command(flatten)]
        which: Which,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

impl Command {
    pub(super) fn run(self) -> Result<u8> {
        match self {
            Self::Create { which, ttl, json } => {
                let answer = which.ask(Request::TokenCreate { ttl_seconds: ttl.as_secs() })?;
                if json {
                    return say_json(&answer).map(|()| 0);
                }
                say(answer["token"].as_str().context("the node answered without a token")?)?;
            }
            Self::List { which, json } => {
                let answer = which.ask(Request::TokenList)?;
                if json {
                    return say_json(&answer).map(|()| 0);
                }
                let tokens = answer.as_array().map(Vec::as_slice).unwrap_or_default();
                if tokens.is_empty() {
                    say("no tokens; make one with `hfcache token create`")?;
                } else {
                    say("ID        STATE    EXPIRES")?;
                }
                for token in tokens {
                    let text = |key: &str| token.get(key).and_then(Value::as_str).unwrap_or("?");
                    say(format!("{:<8}  {:<7}  {}", text("id"), text("state"), text("expires")))?;
                }
            }
            Self::Revoke { which, id, json } => {
                let answer = which.ask(Request::TokenRevoke { id })?;
                if json {
                    return say_json(&answer).map(|()| 0);
                }
                say(format!("revoked {}", answer["revoked"].as_str().unwrap_or_default()))?;
            }
        }
        Ok(0)
    }
}
