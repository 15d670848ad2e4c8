//! Orders without a module: `rollback`, `promote`, `remove` and `trust` sign one, publish it and follow it.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use bytes::Bytes;
use clap::Args;
use serde_json::{Value, json};

use super::broker::BrokerArgs;
use super::follow::{self, Follow, Goal, OrderOutcome};
use super::session::Session;
use super::signing::{KeyArgs, Signer, TargetArgs, WaitArgs};
use crate::terminal::{self, say};
use sedge_core::deploy::payload::{Order, OrderChange};
use sedge_core::deploy::topics::{KEYS, Target};
use sedge_core::manifest;

/// How long to wait for retained messages from brokers that send them after the answer to the subscription.
pub(crate) const RETAINED_GRACE: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(crate) struct OrderArgs {
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    key: KeyArgs,
    /// Serial of the order instead of one above the highest that a board has reported
    #[arg(long, value_name = "N")]
    serial: Option<u64>,
    #[command(flatten)]
    wait: WaitArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    broker: BrokerArgs,
}

#[derive(Debug, Args)]
pub struct FunctionOrderArgs {
    #[arg(value_parser = function)]
    function: String,
    #[command(flatten)]
    order: OrderArgs,
}

/// Parses the name of a function on a command line.
pub(super) fn function(text: &str) -> Result<String, String> {
    match manifest::is_name(text) {
        true => Ok(text.to_owned()),
        false => Err("a function's name has 1 to 64 of a to z, 0 to 9 and -".into()),
    }
}

/// Returns to the previous version, or aborts a trial.
pub fn rollback(args: &FunctionOrderArgs) -> anyhow::Result<ExitCode> {
    run(&args.order, &args.function, OrderChange::Rollback, follow::ROLLED_BACK)
}

/// Replaces the active version by its shadow.
pub fn promote(args: &FunctionOrderArgs) -> anyhow::Result<ExitCode> {
    run(&args.order, &args.function, OrderChange::Promote, follow::INSTALLED)
}

pub fn remove(args: &FunctionOrderArgs) -> anyhow::Result<ExitCode> {
    run(&args.order, &args.function, OrderChange::Remove, follow::REMOVED)
}

/// Returns exit code 0 when every board of the target has carried the order out.
pub(crate) fn run(args: &OrderArgs, function: &str, change: OrderChange, goal: Goal) -> anyhow::Result<ExitCode> {
    with_json_answer(args.json, || {
        let signer = args.key.load()?;
        crate::block_on(send(args, function.into(), change, goal, &signer))
    })
}

async fn send(
    args: &OrderArgs,
    function: Arc<str>,
    change: OrderChange,
    goal: Goal,
    signer: &Signer,
) -> anyhow::Result<(bool, Value)> {
    let target = args.target.target();
    let mut session = Session::open(
        &args.broker,
        target,
        function,
        sedge_sandbox::clock::now(false),
        args.wait.timeout(),
        RETAINED_GRACE,
    )
    .await?;
    session.check_name()?;
    let serial = match args.serial {
        Some(serial) => serial,
        None => next_serial(&session, signer)?,
    };
    let order = signer.order(&session.function, &session.target, serial, change, session.now);
    let follow = Follow::new(&session, serial, goal);
    let outcome = publish(&mut session, &signer.sign(&order), follow, &args.wait).await?;
    let answer = answer(&session, &order, signer, outcome.as_ref(), args.json);
    session.client.close().await;
    Ok((outcome.is_none_or(|outcome| outcome.is_ok()), answer))
}

/// Publishes an order, and follows it to its end unless `--no-wait` was given.
pub(crate) async fn publish(
    session: &mut Session,
    envelope: &[u8],
    follow: Follow,
    wait: &WaitArgs,
) -> anyhow::Result<Option<OrderOutcome>> {
    let topic = session.topics.deploy(&session.target, &session.function);
    session.publish("order", &[(topic, Bytes::copy_from_slice(envelope))]).await?;
    if wait.no_wait { Ok(None) } else { follow.run(session).await.map(Some) }
}

/// Returns one above the serials that boards and broker know. Key orders take the time, as nobody numbers them by hand.
fn next_serial(session: &Session, signer: &Signer) -> anyhow::Result<u64> {
    let retained = session.retained_order.as_ref().and_then(|envelope| signer.verify_own(envelope));
    let highest = session.highest_used_serial().max(retained.map(|order| order.serial));
    let next = highest.map(|highest| highest.saturating_add(1));
    match next {
        next if *session.function == *KEYS => Ok(session.now.unix_ms.max(next.unwrap_or(0))),
        Some(next) => Ok(next),
        None => bail!(
            "nothing is known of {} on {}: no board has reported it, and the broker retains no order of this key for \
             it; use --serial to send the order all the same",
            session.function,
            session.target
        ),
    }
}

/// Prints the outcome for people unless `as_json`, and returns it for programs.
pub(crate) fn answer(
    session: &Session,
    order: &Order,
    signer: &Signer,
    outcome: Option<&OrderOutcome>,
    as_json: bool,
) -> Value {
    if !as_json {
        match outcome {
            Some(outcome) => follow::lines(outcome, session).iter().for_each(|line| say!("{line}")),
            None => say!("ordered     {} for {}, serial {}", session.function, session.target, order.serial),
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

pub(crate) fn target_json(target: &Target) -> Value {
    match target {
        Target::Node(node) => json!({ "node": &**node }),
        Target::Group(group) => json!({ "group": &**group }),
    }
}

/// Runs a command. With `--json` its answer, or its error, is printed as one JSON object.
pub(crate) fn with_json_answer(
    as_json: bool,
    command: impl FnOnce() -> anyhow::Result<(bool, Value)>,
) -> anyhow::Result<ExitCode> {
    let result = command();
    if as_json {
        match &result {
            Ok((_, answer)) => say!("{}", terminal::json(answer)),
            Err(error) => say!("{}", terminal::json(&json!({ "ok": false, "error": format!("{error:#}") }))),
        }
    }
    result.map(|(ok, _)| if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
