//! `sedge status`: boards and their functions, from the messages that the broker retains.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use bytes::Bytes;
use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::boards::{Board, Boards};
use super::broker::BrokerArgs;
use super::follow::{self, progress_text};
use super::known::KnownBoards;
use super::order::{RETAINED_GRACE, target_json, with_json_answer};
use super::signing;
use crate::{printable, terminal};
use sedge_core::deploy::envelope::SignedEnvelope;
use sedge_core::deploy::payload::Order;
use sedge_core::deploy::report::{Report, ReportedSetting, SinkReport};
use sedge_core::deploy::topics::{Target, Topic, Topics};

const TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Only this board
    #[arg(long, value_name = "NAME", value_parser = signing::node)]
    node: Option<String>,
    /// Only the boards of this group
    #[arg(long, value_name = "NAME", conflicts_with = "node")]
    group: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    broker: BrokerArgs,
}

/// Fails when the named board is unknown to the broker.
pub fn run(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    with_json_answer(args.json, || {
        let (boards, orders) = crate::block_on(read(args))?;
        if let Some(node) =
            args.node.as_ref().filter(|node| boards.get(node).is_none_or(|board| *board == Board::default()))
        {
            match boards.near(node) {
                Some(near) => bail!("the broker knows no board {node}; did you mean {near}?"),
                None => bail!("the broker knows no board {node}"),
            }
        }
        let untaken = untaken(args, &orders, &boards);
        let shown: Vec<_> = boards
            .iter()
            .filter(|(name, board)| {
                let is_named = args.node.as_ref().is_none_or(|node| **node == ***name);
                let groups = board.presence.as_ref().map(|presence| &presence.groups[..]).unwrap_or_default();
                is_named && args.group.as_ref().is_none_or(|group| groups.contains(group))
            })
            .collect();
        if !args.json {
            let out = &mut terminal::out();
            print(out, &shown)?;
            print_untaken(out, &untaken, &boards)?;
        }
        let mut answer = as_json(&shown);
        if !untaken.is_empty() {
            answer["orders"] = json!(untaken);
        }
        for (node, board) in &shown {
            for function in &board.unsigned {
                let node = printable(node);
                eprintln!("note: a report of {function} on {node} does not count: the board has not signed it");
            }
        }
        let older = shown.iter().filter(|(_, board)| !board.is_signed && board.presence.is_some());
        let older: Vec<String> = older.map(|(node, _)| printable(node)).collect();
        if !older.is_empty() {
            eprintln!("note: not signed by the board, as older boards do not: {}", older.join(", "));
        }
        let is_trusted = shown.iter().all(|(_, board)| board.distrust.is_none());
        answer["ok"] = json!(is_trusted);
        Ok((is_trusted, answer))
    })
}

type Shown<'a> = [(&'a Arc<str>, &'a Board)];

/// The retained orders by their topics. Unverified.
type Orders = BTreeMap<String, Bytes>;

/// An order that the broker retains and that no board has taken.
#[derive(Debug, Serialize)]
struct Untaken {
    function: Box<str>,
    target: Value,
    #[serde(skip)]
    to: Target,
    action: &'static str,
    serial: u64,
    issued_at_ms: u64,
    expires_at_ms: u64,
}

async fn read(args: &StatusArgs) -> anyhow::Result<(Boards, Orders)> {
    let topics = Topics::new(&args.broker.base());
    let filters = [
        topics.statuses(None),
        topics.reports(args.node.as_deref()),
        topics.deploys(&Target::Node("+".into())),
        topics.deploys(&Target::Group("+".into())),
    ];
    let mut client = args.broker.connect().await?;
    let known = KnownBoards::open(&format!("{}/{}", client.url(), args.broker.base()));
    let (mut boards, mut orders) = (Boards::new(topics.clone(), known), Orders::new());
    let on_message = |topic: &str, payload: &Bytes| match topics.parse(topic) {
        Some(Topic::Deploy { .. }) if payload.is_empty() => orders.remove(topic).is_some(),
        Some(Topic::Deploy { .. }) => orders.insert(topic.to_owned(), payload.clone()).as_ref() != Some(payload),
        _ => boards.record(topic, payload),
    };
    client.read_retained(&filters, RETAINED_GRACE, Instant::now() + TIMEOUT, on_message).await?;
    client.close().await;
    boards.remember();
    Ok((boards, orders))
}

/// Orders for the chosen boards that nobody has taken.
fn untaken(args: &StatusArgs, orders: &Orders, boards: &Boards) -> Vec<Untaken> {
    let order = |payload: &Bytes| {
        let envelope = SignedEnvelope::parse(payload).ok()?;
        let order = Order::parse(envelope.unverified()).ok()?;
        let is_chosen = match (&order.target, &args.node, &args.group) {
            (Target::Node(node), Some(chosen), _) => **node == **chosen,
            (Target::Group(group), _, Some(chosen)) => **group == **chosen,
            (_, node, group) => node.is_none() && group.is_none(),
        };
        if !is_chosen || boards.is_taken(&order.target, &order.function, order.serial) {
            return None;
        }
        let Order { function, serial, target, issued_at_ms, expires_at_ms, change } = order;
        let (to, target) = (target.clone(), target_json(&target));
        Some(Untaken { function, target, to, action: change.as_str(), serial, issued_at_ms, expires_at_ms })
    };
    orders.values().filter_map(order).collect()
}

fn print_untaken(out: &mut impl Write, orders: &[Untaken], boards: &Boards) -> io::Result<()> {
    if orders.is_empty() {
        return Ok(());
    }
    writeln!(out, "\norders that no board has taken:")?;
    for Untaken { function, to, action, serial, .. } in orders {
        let (flag, name) = match to {
            Target::Node(node) => ("--node", node),
            Target::Group(group) => ("--group", group),
        };
        let near = boards.near(name).filter(|_| matches!(to, Target::Node(_)));
        let hint = near.map(|near| format!(" (did you mean {near}?)")).unwrap_or_default();
        let name = printable(name);
        writeln!(
            out,
            "  {action} {function}, serial {serial}, for {name}{hint}: sedge withdraw {function} {flag} {name}"
        )?;
    }
    Ok(())
}

fn as_json(boards: &Shown<'_>) -> Value {
    let node = |(name, board): &(&Arc<str>, &Board)| {
        let presence = board.presence.as_ref();
        json!({
            "node": &***name,
            "state": presence.map(|presence| &presence.state),
            "version": presence.and_then(|presence| presence.version.as_ref()),
            "groups": presence.map(|presence| &presence.groups[..]).unwrap_or_default(),
            "problem": board.problem(),
            "sinks": presence.map(|presence| &presence.sinks[..]).unwrap_or_default(),
            "signed": board.is_signed,
            "unsigned_reports": board.unsigned.iter().map(|function| &**function).collect::<Vec<_>>(),
            "functions": board.reports.values().collect::<Vec<_>>(),
        })
    };
    json!({ "ok": true, "nodes": boards.iter().map(node).collect::<Vec<_>>() })
}

fn print(out: &mut impl Write, boards: &Shown<'_>) -> io::Result<()> {
    let header = ["NODE", "STATE", "FUNCTION", "SERVES", "SERIAL", "LAST ORDER", "REASON"];
    let mut rows = vec![header.map(str::to_owned)];
    for (name, board) in boards {
        let presence = board.presence.as_ref();
        let state = presence.map_or_else(|| "?".into(), |presence| printable(&presence.state));
        let problem = board.problem().map(printable).unwrap_or_default();
        if board.reports.is_empty() || !problem.is_empty() {
            let empty = String::new;
            rows.push([name.to_string(), state.clone(), empty(), empty(), empty(), empty(), problem]);
        }
        for (function, report) in &board.reports {
            let (version, serial) = match report.active.as_ref().map(|active| &active.version) {
                None => ("-".into(), "-".into()),
                Some(active) => {
                    let code = if active.native_code { ", native code" } else { "" };
                    (printable(&active.version) + code, active.serial.to_string())
                }
            };
            let last_order = report.state.to_string();
            rows.push([
                name.to_string(),
                state.clone(),
                function.to_string(),
                version,
                serial,
                last_order,
                note(report),
            ]);
        }
    }
    terminal::table(out, &rows)?;
    print_sinks(out, boards)?;
    for (name, board) in boards {
        for (function, report) in &board.reports {
            print_settings(out, name, function, report)?;
            for difference in &report.differences {
                writeln!(out, "\n{name} {function} on {}", printable(&difference.topic))?;
                writeln!(out, "  active  {}", printable(&difference.active))?;
                writeln!(out, "  shadow  {}", printable(&difference.candidate))?;
            }
        }
    }
    Ok(())
}

/// Where the records of the boards go, as of their last status.
fn print_sinks(out: &mut impl Write, boards: &Shown<'_>) -> io::Result<()> {
    let mut rows = vec![["NODE", "SINK", "CONNECTION", "WAITING"].map(str::to_owned)];
    for (name, board) in boards {
        for SinkReport { name: sink, connected, records } in board.presence.iter().flat_map(|it| &it.sinks) {
            let connection = if *connected { "connected" } else { "away" };
            rows.push([name.to_string(), printable(sink), connection.to_owned(), records.to_string()]);
        }
    }
    if rows.len() == 1 {
        return Ok(());
    }
    writeln!(out)?;
    terminal::table(out, &rows)
}

/// Settings that the board or an operator has laid over those of the function.
fn print_settings(out: &mut impl Write, node: &str, function: &str, report: &Report) -> io::Result<()> {
    if !report.settings.is_empty() {
        writeln!(out, "\n{node} {function} settings")?;
    }
    for ReportedSetting { name, topic, value, from } in &report.settings {
        let value = value.as_ref().map_or_else(|| "(secret)".to_owned(), |value| printable(value));
        let topic = topic.as_ref().map(|topic| format!(", for {}", printable(topic))).unwrap_or_default();
        writeln!(out, "  {} = {value}, from {}{topic}", printable(name), printable(from))?;
    }
    Ok(())
}

/// The reason of a failure; else the trusted keys, or the progress of an order.
fn note(report: &Report) -> String {
    let reason = follow::reason_text(report.reason, report.error.as_deref());
    match &report.keys {
        _ if !reason.is_empty() => reason,
        None if report.proven == Some(false) => follow::guard_text(report).unwrap_or_default(),
        Some(keys) => keys.iter().map(|key| printable(&key.name)).collect::<Vec<_>>().join(", "),
        None => report.progress.filter(|_| !report.state.is_final()).map(progress_text).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_row_per_function_and_board() {
        let mut boards = Boards::new(Topics::new("sedge"), KnownBoards::default());
        boards.record("sedge/a/status", br#"{"state":"online","groups":["pumps"],"sinks":[{"name":"upstream","connected":true,"records":0},{"name":"lake\u001b","connected":false,"records":1204}]}"#);
        boards.record("sedge/b/status", br#"{"state":"offline"}"#);
        let digest = "0".repeat(64);
        let report = json!({
            "function": "warm", "state": "rejected", "reason": "expired", "error": "it expired", "serial": 8,
            "active": { "version": "1.2.0", "serial": 7, "digest": digest, "manifest": {} }, "previous": null,
            "at_ms": 0, "clock_synced": true,
            "differences": [{ "topic": "t", "active": "1", "candidate": "\u{1b}[2J" }],
            "settings": [
                { "name": "max", "value": "-18.5", "from": "board" },
                { "name": "max", "value": "-20\u{1b}", "from": "node", "topic": "s/7" },
                { "name": "token", "from": "board" },
            ],
        });
        boards.record("sedge/a/functions/warm", report.to_string().as_bytes());
        let shown: Vec<_> = boards.iter().collect();
        let mut out = Vec::new();
        print(&mut out, &shown).unwrap();
        let expected = "\
NODE  STATE    FUNCTION  SERVES  SERIAL  LAST ORDER  REASON
a     online   warm      1.2.0   7       rejected    expired: it expired
b     offline

NODE  SINK        CONNECTION  WAITING
a     upstream    connected   0
a     lake\\u{1b}  away        1204

a warm settings
  max = -18.5, from board
  max = -20\\u{1b}, from node, for s/7
  token = (secret), from board

a warm on t
  active  1
  shadow  \\u{1b}[2J
";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
        let json = as_json(&shown);
        assert_eq!(json["nodes"][0]["functions"][0]["active"]["serial"], 7);
        assert_eq!(json["nodes"][0]["groups"][0], "pumps");
        assert_eq!(json["nodes"][0]["sinks"][1]["records"], 1204);
        assert_eq!(json["nodes"][1]["sinks"], json!([]));
        assert_eq!(json["nodes"][1]["state"], "offline");
    }
}
