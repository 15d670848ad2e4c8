//! `sedge run`: the daemon.

use clap::Args;

use super::ConfigArgs;
use crate::config::Config;
use crate::{daemon, telemetry};

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    config: ConfigArgs,
}

pub(crate) fn run(args: &RunArgs) -> anyhow::Result<()> {
    let (config, mut problems) = Config::inspect(&args.config.path());
    let (functions, more) = config.functions.load();
    problems.extend(more);
    if problems.has_errors() {
        return Err(problems.into());
    }
    telemetry::log::init(&config.log.level)?;
    for warning in problems.warnings() {
        tracing::warn!(at = %warning.at, key = warning.key, hint = warning.hint, "{}", warning.what);
    }
    daemon::run(&args.config.path(), config, functions)?;
    Ok(())
}
