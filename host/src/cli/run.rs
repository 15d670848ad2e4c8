//! `sedge run`: the daemon.

use std::process::ExitCode;

use clap::Args;

use super::ConfigArgs;
use crate::config::Config;
use crate::{daemon, telemetry};

#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
}

pub fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let (config, mut problems) = Config::inspect(&args.config.path());
    let (functions, more) = config.functions.load_present();
    problems.extend(more);
    if problems.has_errors() {
        return Err(problems.into());
    }
    telemetry::log::init(&config.log.level)?;
    for warning in problems.warnings() {
        tracing::warn!(at = %warning.at, key = warning.key, mend = warning.mend, "{}", warning.what);
    }
    daemon::run(&args.config.path(), config, functions)?;
    Ok(ExitCode::SUCCESS)
}
