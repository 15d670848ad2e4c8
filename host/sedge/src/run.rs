//! `sedge run`: the daemon.

use clap::Args;

use sedge_core::config::Config;
use sedge_ctl::ConfigArgs;
use sedge_daemon::run as daemon;

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    config: ConfigArgs,
}

pub(crate) fn run(args: &RunArgs) -> anyhow::Result<()> {
    let (config, mut problems) = Config::inspect(&args.config.path(), &sedge_sandbox::machine::MACHINE);
    let (functions, more) = config.functions.load(&config.sinks, &sedge_sandbox::machine::MACHINE);
    problems.extend(more);
    if problems.has_errors() {
        return Err(problems.into());
    }
    sedge_daemon::telemetry::log::init(&config.log.level)?;
    for warning in problems.warnings() {
        tracing::warn!(at = %warning.at, key = warning.key, hint = warning.hint, "{}", warning.what);
    }
    daemon::run(&args.config.path(), config, functions)?;
    Ok(())
}
