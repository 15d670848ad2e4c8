//! `sedge remove FUNCTION`: nothing serves its messages any more.

use std::process::ExitCode;

use clap::Args;

use super::follow::Goal;
use super::order::{self, OrderArgs};
use crate::deploy::payload::Change;

#[derive(Debug, Args)]
pub struct RemoveArgs {
    #[arg(value_parser = order::function)]
    function: String,
    #[command(flatten)]
    order: OrderArgs,
}

pub fn run(args: &RemoveArgs) -> anyhow::Result<ExitCode> {
    order::run(&args.order, &args.function, Change::Remove, Goal::REMOVED)
}
