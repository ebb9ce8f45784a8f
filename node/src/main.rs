//! The `hfcache` binary: arguments in, exit status out. Everything else is in the library beside it.

use clap::Parser;
use hfcache_node::cli::Cli;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    Cli::parse().run()
}
