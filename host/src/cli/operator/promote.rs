//! `sedge promote FUNCTION`: a shadow takes the place of the version that it ran beside.

use std::process::ExitCode;

use clap::Args;

use super::follow::Goal;
use super::order::{self, OrderArgs};
use crate::deploy::payload::Change;

#[derive(Debug, Args)]
pub struct PromoteArgs {
    #[arg(value_parser = order::function)]
    function: String,
    #[command(flatten)]
    order: OrderArgs,
}

pub fn run(args: &PromoteArgs) -> anyhow::Result<ExitCode> {
    order::run(&args.order, &args.function, Change::Promote, Goal::INSTALLED)
}
