//! `sedge withdraw`: removes an order from the broker before a board takes it.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use bytes::Bytes;
use clap::Args;
use serde_json::json;

use super::broker::BrokerArgs;
use super::order::{RETAINED_GRACE, target_json, with_json_answer};
use super::session::Session;
use super::signing::TargetArgs;
use crate::terminal::say;
use sedge_core::deploy::topics::KEYS;
use sedge_core::manifest;

const TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub struct WithdrawArgs {
    /// Name of the function, or _keys for a change of the trusted keys
    #[arg(value_parser = function)]
    function: String,
    #[command(flatten)]
    target: TargetArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    broker: BrokerArgs,
}

fn function(text: &str) -> Result<String, String> {
    match text == KEYS || manifest::is_name(text) {
        true => Ok(text.to_owned()),
        false => Err("a function's name has 1 to 64 of a to z, 0 to 9 and -".into()),
    }
}

/// Fails if the broker retains no such order.
pub fn run(args: &WithdrawArgs) -> anyhow::Result<ExitCode> {
    with_json_answer(args.json, || {
        crate::block_on(async {
            let (target, function) = (args.target.target(), args.function.as_str().into());
            let now = sedge_sandbox::clock::now(false);
            let mut session = Session::open(&args.broker, target, function, now, TIMEOUT, RETAINED_GRACE).await?;
            if session.retained_order.is_none() {
                bail!("the broker retains no order of {} for {}", session.function, session.target);
            }
            let topic = session.topics.deploy(&session.target, &session.function);
            session.publish("order", &[(topic, Bytes::new())]).await?;
            if !args.json {
                say!("withdrawn   {} for {}: boards that have taken it keep it", session.function, session.target);
            }
            let answer = json!({ "ok": true, "function": &*session.function, "target": target_json(&session.target) });
            session.client.close().await;
            Ok((true, answer))
        })
    })
}
