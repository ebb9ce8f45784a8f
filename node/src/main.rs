//! The `hfcache` binary: arguments in, exit status out. Everything else is in the library beside it.

use clap::Parser;
use hfcache_node::cli::Cli;
use std::process::ExitCode;

fn main() -> ExitCode {
    Cli::parse().run()
}
