//! `sedge settings`: changes settings of functions by signed orders, and shows them.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use bytes::Bytes;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::broker::BrokerArgs;
use super::order::{RETAINED_GRACE, function, target_json, with_json_answer};
use super::session::Session;
use super::signing::{KeyArgs, Signer, TargetArgs, WaitArgs};
use crate::terminal::{self, say};
use crate::{paint, printable};
use sedge_core::deploy::payload::{OrderChange, SettingsUpdate};
use sedge_core::deploy::reason::Reason;
use sedge_core::deploy::report::{Report, ReportedSetting, SettingsReport, SettingsState};
use sedge_core::manifest::Manifest;
use sedge_core::settings::TopicText;
use sedge_core::topic::TopicFilter;

const TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub struct SettingsArgs {
    #[command(subcommand)]
    command: SettingsCommand,
}

#[derive(Debug, Subcommand)]
enum SettingsCommand {
    /// Set values on a board or a group, over those of function.toml and boards' files
    ///
    /// A value that the function does not take is refused before anything is sent.
    /// Exits with 0 only when the values are in force on every board.
    ///
    ///   sedge settings set freezer max=-18 --node cellar --key ops.pem
    ///   sedge settings set freezer 'names=["f1","f2"]' --group kitchens
    #[command(verbatim_doc_comment)]
    Set {
        #[arg(value_parser = function)]
        function: String,
        /// Settings and their values, max=-18; lists as JSON, names=["a","b"]
        #[arg(value_name = "NAME=VALUE", required = true, value_parser = pair)]
        values: Vec<(String, String)>,
        #[command(flatten)]
        order: SettingsOrderArgs,
    },
    /// Take back values that were set, so that those below apply again
    ///
    ///   sedge settings unset freezer max --node cellar --key ops.pem
    ///   sedge settings unset freezer --all --group kitchens --key ops.pem
    #[command(verbatim_doc_comment)]
    Unset {
        #[arg(value_parser = function)]
        function: String,
        #[arg(value_name = "NAME", required_unless_present = "all")]
        names: Vec<String>,
        /// Take back all values of the board or group, also those for topics
        #[arg(long, conflicts_with_all = ["names", "topic"])]
        all: bool,
        #[command(flatten)]
        order: SettingsOrderArgs,
    },
    /// Show the settings in force on boards, and where each comes from
    ///
    ///   sedge settings show freezer --node cellar
    ///   sedge settings show freezer --group kitchens --json
    #[command(verbatim_doc_comment)]
    Show {
        #[arg(value_parser = function)]
        function: String,
        #[command(flatten)]
        target: TargetArgs,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        broker: BrokerArgs,
    },
}

#[derive(Debug, Args)]
struct SettingsOrderArgs {
    /// Only for messages of this topic, or of topics that this filter matches
    #[arg(long, value_name = "FILTER")]
    topic: Option<TopicFilter>,
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    wait: WaitArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    broker: BrokerArgs,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// A change of one layer.
enum Edit<'a> {
    Set(&'a [(String, String)]),
    Unset(&'a [String]),
    UnsetAll,
}

pub fn run(args: &SettingsArgs) -> anyhow::Result<ExitCode> {
    match &args.command {
        SettingsCommand::Set { function, values, order } => change(function, &Edit::Set(values), order),
        SettingsCommand::Unset { function, all: true, order, .. } => change(function, &Edit::UnsetAll, order),
        SettingsCommand::Unset { function, names, order, .. } => change(function, &Edit::Unset(names), order),
        SettingsCommand::Show { function, target, json, broker } => show(function, target, *json, broker),
    }
}

async fn open(broker: &BrokerArgs, target: &TargetArgs, function: &str, timeout: Duration) -> anyhow::Result<Session> {
    let now = sedge_sandbox::clock::now(false);
    let session =
        Session::open_settings(broker, target.target(), function.into(), now, timeout, RETAINED_GRACE).await?;
    session.check_name()?;
    Ok(session)
}

/// Returns exit code 0 when the change is in force on every board of the target.
fn change(function: &str, edit: &Edit<'_>, args: &SettingsOrderArgs) -> anyhow::Result<ExitCode> {
    with_json_answer(args.json, || {
        let signer = args.key.load()?;
        crate::block_on(async {
            let mut session = open(&args.broker, &args.target, function, args.wait.timeout()).await?;
            let layer = current(&session, &signer);
            let update = edited(layer, edit, args.topic.as_ref(), &session)?;
            check(&update, &session)?;
            let serial = session.now.unix_ms.max(update.base.saturating_add(1));
            let change = OrderChange::Settings(update);
            let order = signer.order(&session.function, &session.target, serial, change, session.now);
            let before = session.members(None).into_iter();
            let before = before.filter_map(|node| Some((Arc::clone(&node), session.report(&node)?.at_ms))).collect();
            let topic = session.topics.settings(&session.target, &session.function);
            session.publish("order", &[(topic, Bytes::from(signer.sign(&order)))]).await?;
            let outcome = match args.wait.no_wait {
                true => None,
                false => Some(follow(&mut session, serial, &before).await?),
            };
            let is_ok = outcome.as_ref().is_none_or(Outcome::is_ok);
            if !args.json {
                tell(&session, serial, outcome.as_ref());
            }
            let answer = json!({
                "ok": is_ok,
                "action": "settings",
                "function": &*session.function,
                "target": target_json(&session.target),
                "serial": serial,
                "key": signer.key_id(),
                "waited": outcome.is_some(),
                "timed_out": outcome.as_ref().is_some_and(|outcome| outcome.timed_out),
                "nodes": outcome.iter().flat_map(|outcome| &outcome.nodes).map(NodeState::as_json).collect::<Vec<_>>(),
            });
            session.client.close().await;
            Ok((is_ok, answer))
        })
    })
}

/// The values that the target has now, and the serial of their order. What boards report is signed by them; of retained
/// orders only one of the own key counts, since anybody may have put others there.
fn current(session: &Session, signer: &Signer) -> SettingsUpdate {
    let own = session.retained_order.as_ref().and_then(|envelope| signer.verify_own(envelope));
    let own = own.filter(|order| order.target == session.target && *order.function == *session.function);
    let own = own.and_then(|order| match order.change {
        OrderChange::Settings(settings) => Some((order.serial, settings)),
        _ => None,
    });
    let reported = session.members(None).into_iter().filter_map(|node| {
        let report = session.report(&node)?;
        let is_accepted =
            |order: &&SettingsReport| order.target == session.target && order.state != SettingsState::Refused;
        let order = report.settings_orders.iter().find(is_accepted)?;
        Some((order.serial?, order.settings.clone()?))
    });
    let latest = reported.max_by_key(|(serial, _)| *serial);
    match (own, latest) {
        (Some((serial, settings)), latest) if latest.as_ref().is_none_or(|(known, _)| serial >= *known) => {
            SettingsUpdate { base: serial, ..settings }
        }
        (_, Some((serial, settings))) => SettingsUpdate { base: serial, ..settings },
        _ => SettingsUpdate::default(),
    }
}

fn edited(
    mut update: SettingsUpdate,
    edit: &Edit<'_>,
    topic: Option<&TopicFilter>,
    session: &Session,
) -> anyhow::Result<SettingsUpdate> {
    let place = topic.map(TopicText::new);
    if let Edit::UnsetAll = edit {
        return Ok(SettingsUpdate { base: update.base, ..SettingsUpdate::default() });
    }
    let values: &mut BTreeMap<String, String> = match &place {
        None => &mut update.all,
        Some(place) => update.topics.entry(place.clone()).or_default(),
    };
    match edit {
        Edit::Set(pairs) => values.extend(pairs.iter().cloned()),
        Edit::Unset(names) => {
            for name in *names {
                if values.remove(name).is_none() {
                    let set: Vec<&str> = values.keys().map(|name| &**name).collect();
                    let set = if set.is_empty() { "nothing".to_owned() } else { set.join(", ") };
                    bail!("{name} is not set by an order for {}: {set} is. Nothing was sent", session.target);
                }
            }
        }
        Edit::UnsetAll => {}
    }
    update.topics.retain(|_, values| !values.is_empty());
    Ok(update)
}

/// Refuses on this computer what a board would refuse, as its report says.
fn check(update: &SettingsUpdate, session: &Session) -> anyhow::Result<()> {
    let mut is_somewhere = false;
    for node in session.members(None) {
        let Some(active) = session.report(&node).and_then(|report| report.active.as_ref()) else { continue };
        is_somewhere = true;
        let Ok(manifest) = Manifest::from_json(active.manifest.to_string().as_bytes(), None) else { continue };
        let all = update.all.iter().chain(update.topics.values().flatten());
        for (name, value) in all {
            if manifest.declaration(name).is_some_and(|declaration| declaration.secret) {
                bail!(
                    "setting {name} is a secret, which is never part of an order: write {name} = {{ file = \"...\" }} into \
                     [functions.settings.{}] of the board. Nothing was sent",
                    session.function
                );
            }
            if let Err(invalid) = manifest.check_setting(name, value) {
                bail!("setting {name} on board {node}: {invalid}. Nothing was sent");
            }
        }
    }
    if !is_somewhere {
        let what = format!(
            "no board of {} reports {}; the order is kept there until it is pushed",
            session.target, session.function
        );
        session.progress.print("note", &what);
    }
    Ok(())
}

struct NodeState {
    node: Arc<str>,
    state: String,
    ok: bool,
    reason: Option<Reason>,
    error: Option<String>,
}

struct Outcome {
    nodes: Vec<NodeState>,
    timed_out: bool,
}

impl Outcome {
    fn is_ok(&self) -> bool {
        !self.nodes.is_empty() && self.nodes.iter().all(|node| node.ok)
    }
}

impl NodeState {
    fn as_json(&self) -> Value {
        json!({ "node": &*self.node, "state": self.state, "ok": self.ok, "reason": self.reason, "error": self.error })
    }
}

/// When each board had reported before the order was sent.
type Before = BTreeMap<Arc<str>, u64>;

/// What the boards of the target say of the order. The second part: whether that is their last word.
fn states(session: &Session, serial: u64, before: &Before) -> Vec<(NodeState, bool)> {
    let members = session.members(None).into_iter();
    let state = |node: Arc<str>| {
        let report = session.report(&node);
        let orders = report.map(|report| &report.settings_orders[..]).unwrap_or_default();
        // A board does not name the order whose signature it does not accept.
        let is_new = report.is_some_and(|report| before.get(&node) != Some(&report.at_ms));
        let is_it = |order: &&SettingsReport| {
            let is_unnamed = order.serial.is_none() && order.state == SettingsState::Refused && is_new;
            order.target == session.target && (order.serial == Some(serial) || is_unnamed)
        };
        let order = orders.iter().rev().find(is_it);
        let Some(order) = order else {
            let is_offline = session.boards.get(&node).is_some_and(|board| board.is_offline());
            let state = if is_offline { "offline" } else { "waiting" };
            return (NodeState { node, state: state.into(), ok: false, reason: None, error: None }, is_offline);
        };
        let ok = matches!(order.state, SettingsState::InForce | SettingsState::Kept);
        let is_last = ok || order.state == SettingsState::Refused;
        let (reason, error) = (order.reason, order.error.clone());
        (NodeState { node, state: order.state.as_str().into(), ok, reason, error }, is_last)
    };
    members.map(state).collect()
}

async fn follow(session: &mut Session, serial: u64, before: &Before) -> anyhow::Result<Outcome> {
    loop {
        let states = states(session, serial, before);
        let is_over = !states.is_empty() && states.iter().all(|(_, is_last)| *is_last);
        let nodes = states.into_iter().map(|(state, _)| state).collect();
        if is_over {
            return Ok(Outcome { nodes, timed_out: false });
        }
        session.check_trust()?;
        let until = session.deadline;
        if session.next_event_until(until).await?.is_none() && Instant::now() >= session.deadline {
            return Ok(Outcome { nodes, timed_out: true });
        }
    }
}

fn tell(session: &Session, serial: u64, outcome: Option<&Outcome>) {
    let Some(outcome) = outcome else {
        say!("ordered     settings of {} for {}, serial {serial}", session.function, session.target);
        return;
    };
    for NodeState { node, state, reason, error, .. } in &outcome.nodes {
        let why = reason.map(|reason| format!("  {reason}: {}", printable(error.as_deref().unwrap_or_default())));
        say!("{:<11} {}{}", state, printable(node), why.unwrap_or_default());
    }
    if outcome.timed_out {
        eprintln!(
            "{}: not all boards have answered; they take the order when they connect",
            paint(crate::RED, "timed out")
        );
    }
}

/// Prints the settings of each board of the target.
fn show(function: &str, target: &TargetArgs, as_json: bool, broker: &BrokerArgs) -> anyhow::Result<ExitCode> {
    with_json_answer(as_json, || {
        crate::block_on(async {
            let session = open(broker, target, function, TIMEOUT).await?;
            let mut boards = Vec::new();
            for node in session.members(None) {
                let Some(report) = session.report(&node) else { continue };
                if !as_json {
                    print(&node, report)?;
                }
                boards.push(json!({
                    "node": &*node,
                    "settings": settings_of(report),
                    "orders": report.settings_orders,
                }));
            }
            if boards.is_empty() {
                bail!("no board of {} reports {function}", session.target);
            }
            session.client.close().await;
            Ok((
                true,
                json!({ "ok": true, "function": function, "target": target_json(&session.target), "nodes": boards }),
            ))
        })
    })
}

/// The settings of `function.toml` with those that are laid over them.
fn settings_of(report: &Report) -> Vec<ReportedSetting> {
    let manifest = report.active.as_ref().and_then(|active| active.manifest["config"].as_object());
    let is_replaced = |name: &str| report.settings.iter().any(|other| other.topic.is_none() && other.name == name);
    let own =
        manifest.into_iter().flatten().filter(|(name, _)| !is_replaced(name)).map(|(name, value)| ReportedSetting {
            name: name.clone(),
            topic: None,
            value: value.as_str().map(str::to_owned),
            from: "function".into(),
        });
    let mut all: Vec<ReportedSetting> = own.chain(report.settings.iter().cloned()).collect();
    all.sort_by(|one, other| (&one.topic, &one.name).cmp(&(&other.topic, &other.name)));
    all
}

fn print(node: &str, report: &Report) -> std::io::Result<()> {
    let mut out = terminal::out();
    writeln!(out, "{} {}", printable(node), printable(&report.function))?;
    for ReportedSetting { name, topic, value, from } in settings_of(report) {
        let value = value.map_or_else(|| "(secret)".to_owned(), |value| printable(&value));
        let topic = topic.map(|topic| format!(", for {}", printable(&topic))).unwrap_or_default();
        writeln!(out, "  {} = {value}, from {}{topic}", printable(&name), printable(&from))?;
    }
    for SettingsReport { target, serial, state, reason, error, .. } in &report.settings_orders {
        let serial = serial.map(|serial| format!(" {serial}")).unwrap_or_default();
        let why = reason.map(|reason| format!(", {reason}: {}", printable(error.as_deref().unwrap_or_default())));
        writeln!(out, "  order{serial} for {}: {state}{}", printable(&target.to_string()), why.unwrap_or_default())?;
    }
    Ok(())
}
