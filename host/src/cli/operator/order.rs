//! Signs an order without a module, publishes it and follows it: what `rollback`, `remove`, `promote` and `trust` share.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use bytes::Bytes;
use clap::Args;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::follow::{self, Follow, Goal, OrderOutcome};
use super::remote::BrokerArgs;
use super::session::Session;
use super::signing::{KeyArgs, Signer, TargetArgs, WaitArgs};
use crate::deploy::payload::{Change, Order};
use crate::deploy::topics::{KEYS, Target};
use crate::manifest;
use crate::time;

/// Brokers that send what they keep at their leisure do it within this time.
pub const RETAINED_GRACE: Duration = Duration::from_millis(200);

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
pub fn run(args: &OrderArgs, function: &str, change: Change, goal: Goal) -> anyhow::Result<ExitCode> {
    with_json_answer(args.json, || {
        let signer = args.key.load()?;
        super::block_on(session(args, function.into(), change, goal, &signer))
    })
}

async fn session(
    args: &OrderArgs,
    function: Arc<str>,
    change: Change,
    goal: Goal,
    signer: &Signer,
) -> anyhow::Result<(bool, Value)> {
    let deadline = Instant::now() + args.wait.timeout();
    let mut session = Session::open(&args.broker, args.target.target(), function, deadline, RETAINED_GRACE).await?;
    let serial = match args.serial {
        Some(serial) => serial,
        None => next_serial(&session, signer)?,
    };
    let order = signer.order(&session.function, serial, &session.target, change);
    let follow = Follow::new(&session, serial, goal);
    publish(&mut session, &signer.sign(&order)).await?;
    let outcome = match args.wait.no_wait {
        true => None,
        false => Some(follow.run(&mut session).await?),
    };
    let answer = answer(&session, &order, signer, outcome.as_ref(), args.json);
    session.remote.close().await;
    Ok((outcome.is_none_or(|outcome| outcome.is_ok()), answer))
}

pub async fn publish(session: &mut Session, envelope: &[u8]) -> anyhow::Result<()> {
    let topic = session.topics.deploy(&session.target, &session.function);
    session.publish("order", &[(topic, Bytes::copy_from_slice(envelope))]).await
}

/// One above what boards and broker know of. Keys are nobody's to number by hand, so theirs is the time.
fn next_serial(session: &Session, signer: &Signer) -> anyhow::Result<u64> {
    let reported = session.boards.highest_used(&session.target, &session.function);
    let retained_order =
        session.retained_order.as_ref().and_then(|envelope| signer.verify_own(envelope)).map(|order| order.serial);
    match reported.max(retained_order) {
        highest if *session.function == *KEYS => {
            Ok(time::now_ms().max(highest.map_or(0, |highest| highest.saturating_add(1))))
        }
        Some(highest) => Ok(highest.saturating_add(1)),
        None => bail!(
            "nothing is known of {} on {}: no board has reported it, and the broker keeps no order of this key for it; \
             with --serial it is ordered all the same",
            session.function,
            session.target
        ),
    }
}

/// Prints what a person reads, or returns what a program does.
pub fn answer(
    session: &Session,
    order: &Order,
    signer: &Signer,
    outcome: Option<&OrderOutcome>,
    as_json: bool,
) -> Value {
    if !as_json {
        match outcome {
            Some(outcome) => follow::lines(outcome, session).iter().for_each(|line| println!("{line}")),
            None => println!("ordered     {} for {}, serial {}", session.function, session.target, order.serial),
        }
    }
    json!({
        "ok": outcome.is_none_or(OrderOutcome::is_ok),
        "action": order.change.as_str(),
        "function": &*session.function,
        "serial": order.serial,
        "target": target_json(&session.target),
        "key": signer.key_id(),
        "expires_at_ms": order.expires_at_ms,
        "waited": outcome.is_some(),
        "timed_out": outcome.is_some_and(|outcome| outcome.timed_out),
        "counts": outcome.map(OrderOutcome::counts).unwrap_or_default(),
        "nodes": outcome.map(|outcome| &outcome.nodes[..]).unwrap_or_default(),
    })
}

pub fn target_json(target: &Target) -> Value {
    match target {
        Target::Node(node) => json!({ "node": &**node }),
        Target::Group(group) => json!({ "group": &**group }),
    }
}

/// Runs a command whose answer is one JSON object on standard output when that is asked for, also when it fails.
pub fn with_json_answer(
    as_json: bool,
    command: impl FnOnce() -> anyhow::Result<(bool, Value)>,
) -> anyhow::Result<ExitCode> {
    let result = command();
    if as_json {
        match &result {
            Ok((_, answer)) => println!("{answer}"),
            Err(error) => println!("{}", json!({ "ok": false, "error": format!("{error:#}") })),
        }
    }
    result.map(|(ok, _)| if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
