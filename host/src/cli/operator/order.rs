//! Signs an order without a module, publishes it and follows it: what `rollback`, `remove`, `promote` and `trust` share.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use bytes::Bytes;
use clap::Args;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::follow::{self, Aim, Follow, Outcome};
use super::remote::BrokerArgs;
use super::signing::{KeyArgs, Signer, TargetArgs, WaitArgs};
use super::talk::Talk;
use crate::deploy::payload::{Change, Order};
use crate::deploy::topics::{KEYS, Target};
use crate::manifest;
use crate::time;

/// Brokers that send what they keep at their leisure do it within this time.
pub const QUIET: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub struct OrderArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    #[command(flatten)]
    pub key: KeyArgs,
    /// Number of the order instead of one above the highest that a board has reported
    #[arg(long, value_name = "N")]
    pub serial: Option<u64>,
    #[command(flatten)]
    pub wait: WaitArgs,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub broker: BrokerArgs,
}

/// A function's name on the command line.
pub fn function(text: &str) -> Result<String, String> {
    match manifest::is_name(text) {
        true => Ok(text.to_owned()),
        false => Err("a function's name has 1 to 64 of a to z, 0 to 9 and -".into()),
    }
}

/// Exit code 0 when every board of the target has carried it out.
pub fn run(args: &OrderArgs, function: &str, change: Change, aim: Aim) -> anyhow::Result<ExitCode> {
    answered(args.json, || {
        let signer = args.key.load()?;
        super::block_on(talk(args, function.into(), change, aim, &signer))
    })
}

async fn talk(
    args: &OrderArgs,
    function: Arc<str>,
    change: Change,
    aim: Aim,
    signer: &Signer,
) -> anyhow::Result<(bool, Value)> {
    let deadline = Instant::now() + args.wait.timeout();
    let mut talk = Talk::open(&args.broker, args.target.target(), function, deadline, QUIET).await?;
    let serial = match args.serial {
        Some(serial) => serial,
        None => next_serial(&talk, signer)?,
    };
    let order = signer.order(&talk.function, serial, &talk.target, change);
    let follow = Follow::begin(&talk, serial, aim);
    publish(&mut talk, &signer.sign(&order)).await?;
    let outcome = match args.wait.no_wait {
        true => None,
        false => Some(follow.run(&mut talk).await?),
    };
    let answer = answer(&talk, &order, signer, outcome.as_ref(), args.json);
    talk.remote.close().await;
    Ok((outcome.is_none_or(|outcome| outcome.is_ok()), answer))
}

pub async fn publish(talk: &mut Talk, envelope: &[u8]) -> anyhow::Result<()> {
    let topic = talk.topics.deploy(&talk.target, &talk.function);
    talk.publish("order", &[(topic, Bytes::copy_from_slice(envelope))]).await
}

/// One above what boards and broker know of. Keys are nobody's to number by hand, so theirs is the time.
fn next_serial(talk: &Talk, signer: &Signer) -> anyhow::Result<u64> {
    let reported = talk.boards.highest_used(&talk.target, &talk.function);
    let standing = talk.standing.as_ref().and_then(|envelope| signer.own(envelope)).map(|order| order.serial);
    match reported.max(standing) {
        highest if *talk.function == *KEYS => {
            Ok(time::now_ms().max(highest.map_or(0, |highest| highest.saturating_add(1))))
        }
        Some(highest) => Ok(highest.saturating_add(1)),
        None => bail!(
            "nothing is known of {} on {}: no board has reported it, and the broker keeps no order of this key for it; \
             with --serial it is ordered all the same",
            talk.function,
            talk.target
        ),
    }
}

/// Prints what a person reads, or returns what a program does.
pub fn answer(talk: &Talk, order: &Order, signer: &Signer, outcome: Option<&Outcome>, as_json: bool) -> Value {
    if !as_json {
        match outcome {
            Some(outcome) => follow::lines(outcome, talk).iter().for_each(|line| println!("{line}")),
            None => println!("ordered     {} for {}, serial {}", talk.function, talk.target, order.serial),
        }
    }
    json!({
        "ok": outcome.is_none_or(Outcome::is_ok),
        "action": order.change.as_str(),
        "function": &*talk.function,
        "serial": order.serial,
        "target": target_json(&talk.target),
        "key": signer.key_id(),
        "expires_at_ms": order.expires_at_ms,
        "waited": outcome.is_some(),
        "timed_out": outcome.is_some_and(|outcome| outcome.timed_out),
        "counts": outcome.map(Outcome::counts).unwrap_or_default(),
        "nodes": outcome.map(|outcome| &outcome.fates[..]).unwrap_or_default(),
    })
}

pub fn target_json(target: &Target) -> Value {
    match target {
        Target::Node(node) => json!({ "node": &**node }),
        Target::Group(group) => json!({ "group": &**group }),
    }
}

/// Runs a command whose answer is one JSON object on standard output when that is asked for, also when it fails.
pub fn answered(as_json: bool, command: impl FnOnce() -> anyhow::Result<(bool, Value)>) -> anyhow::Result<ExitCode> {
    let result = command();
    if as_json {
        match &result {
            Ok((_, answer)) => println!("{answer}"),
            Err(error) => println!("{}", json!({ "ok": false, "error": format!("{error:#}") })),
        }
    }
    result.map(|(ok, _)| if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
