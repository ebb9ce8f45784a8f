//! Logs: events on stderr, as text or as JSON lines. `HFCACHE_LOG` wins over `--log`, which wins over the
//! configuration. No event carries a token, a key or, above DEBUG, a path of a user.

use crate::config::LogFormat;
use anyhow::{Context, Result};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;

/// The variable that sets the level.
pub const LEVEL_VARIABLE: &str = "HFCACHE_LOG";

/// Libraries that say more than an operator wants at `info`.
const QUIET: &str =
    "openraft=error,quinn=warn,quinn_proto=warn,rustls=warn,chitchat=warn,redb=warn,fuser=warn";

/// Starts logging.
///
/// # Errors
/// A filter that cannot be parsed.
pub fn start(level: &str, format: LogFormat) -> Result<()> {
    let chosen = std::env::var(LEVEL_VARIABLE).ok().filter(|v| !v.is_empty()).unwrap_or_else(|| level.into());
    let filter = filter(&chosen)?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_span_events(FmtSpan::NONE)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    // A second start in one process (tests) keeps the first.
    let _ = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    Ok(())
}

/// A bare level is for hfcache; the libraries below stay at warnings unless the filter names them.
fn filter(level: &str) -> Result<EnvFilter> {
    let text = if level.contains(['=', ',']) || !matches!(level, "info" | "warn" | "error") {
        level.to_owned()
    } else {
        format!("{level},{QUIET}")
    };
    EnvFilter::try_new(&text)
        .with_context(|| format!("log level {level:?}: say error, warn, info, debug, trace or a filter"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_filters_are_understood_and_nonsense_is_not() {
        for good in ["info", "debug", "info,hfcache_raft=trace", "warn"] {
            filter(good).unwrap();
        }
        assert!(filter("info,=x=y").is_err());
    }
}
