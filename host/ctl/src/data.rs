//! The data folder of a daemon, as commands on the board name it.

use std::path::PathBuf;

use clap::Args;

use super::ConfigArgs;
use sedge_core::config::Config;

#[derive(Debug, Args)]
pub(crate) struct DataArgs {
    /// Data folder of the daemon [default: node.data_dir of the configuration]
    #[arg(long, value_name = "DIR", conflicts_with = "config")]
    data_dir: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigArgs,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

impl DataArgs {
    pub(crate) fn data_dir(&self) -> anyhow::Result<PathBuf> {
        if let Some(dir) = &self.data_dir {
            return Ok(dir.clone());
        }
        let (config, problems) = Config::inspect(&self.config.path(), &sedge_sandbox::machine::MACHINE);
        if problems.has_errors() {
            return Err(problems.into());
        }
        Ok(config.node.data_dir)
    }
}
