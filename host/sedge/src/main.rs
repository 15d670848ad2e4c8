//! Arguments in, an exit code out: 0 done, 1 failed, 2 wrong usage, 78 wrong configuration.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    sedge::run_worker().unwrap_or_else(|| sedge::run(sedge::Cli::parse()))
}
