//! `sedge rollback FUNCTION`: back to the version before, or out of a trial.

use std::process::ExitCode;

use clap::Args;

use super::follow::Goal;
use super::order::{self, OrderArgs};
use crate::deploy::payload::Change;

#[derive(Debug, Args)]
pub struct RollbackArgs {
    #[arg(value_parser = order::function)]
    function: String,
    #[command(flatten)]
    order: OrderArgs,
}

pub fn run(args: &RollbackArgs) -> anyhow::Result<ExitCode> {
    order::run(&args.order, &args.function, Change::Rollback, Goal::ROLLED_BACK)
}
