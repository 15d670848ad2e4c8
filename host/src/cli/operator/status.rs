//! `sedge status`: the boards and what runs on them, from what the broker keeps.

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use bytes::Bytes;
use clap::Args;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::boards::{Board, Boards};
use super::follow::{self, progress_text};
use super::order::{RETAINED_GRACE, with_json_answer};
use super::remote::{BrokerArgs, Remote};
use super::{printable, signing};
use crate::deploy::topics::Topics;

const TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Only this board
    #[arg(long, value_name = "NAME", value_parser = signing::node)]
    pub node: Option<String>,
    /// Only the boards of this group
    #[arg(long, value_name = "NAME", conflicts_with = "node")]
    pub group: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub broker: BrokerArgs,
}

/// Exit code 1 when a board that was asked for has said nothing.
pub fn run(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    with_json_answer(args.json, || {
        let boards = super::block_on(read(args))?;
        if let Some(node) = args.node.as_ref().filter(|_| boards.iter().next().is_none()) {
            bail!("the broker knows nothing of a board {node}");
        }
        let shown: Vec<_> = boards
            .iter()
            .filter(|(_, board)| {
                let groups = board.presence.as_ref().map(|presence| &presence.groups[..]).unwrap_or_default();
                args.group.as_ref().is_none_or(|group| groups.contains(group))
            })
            .collect();
        if !args.json {
            print(&mut io::stdout().lock(), &shown)?;
        }
        Ok((true, as_json(&shown)))
    })
}

type Shown<'a> = [(&'a Arc<str>, &'a Board)];

async fn read(args: &StatusArgs) -> anyhow::Result<Boards> {
    let topics = Topics::new(&args.broker.base());
    let node = args.node.as_deref();
    let filters = [topics.statuses(node), topics.reports(node)];
    let mut boards = Boards::new(topics);
    let mut remote = Remote::connect(&args.broker).await?;
    let on_message = |topic: &str, payload: &Bytes| boards.record(topic, payload);
    remote.read_retained(&filters, RETAINED_GRACE, Instant::now() + TIMEOUT, on_message).await?;
    remote.close().await;
    Ok(boards)
}

fn as_json(boards: &Shown<'_>) -> Value {
    let node = |(name, board): &(&Arc<str>, &Board)| {
        let presence = board.presence.as_ref();
        json!({
            "node": &***name,
            "state": presence.map(|presence| &presence.state),
            "version": presence.and_then(|presence| presence.version.as_ref()),
            "groups": presence.map(|presence| &presence.groups[..]).unwrap_or_default(),
            "problem": presence.and_then(|presence| presence.problem.as_ref()),
            "functions": board.reports.values().collect::<Vec<_>>(),
        })
    };
    json!({ "ok": true, "nodes": boards.iter().map(node).collect::<Vec<_>>() })
}

fn print(out: &mut impl Write, boards: &Shown<'_>) -> io::Result<()> {
    let mut rows = vec![["NODE", "IS", "FUNCTION", "SERVES", "SERIAL", "LAST ORDER", "WHY"].map(str::to_owned)];
    for (name, board) in boards {
        let is = board.presence.as_ref().map_or_else(|| "?".into(), |presence| printable(&presence.state));
        let problem =
            board.presence.as_ref().and_then(|presence| presence.problem.as_deref()).map(printable).unwrap_or_default();
        if board.reports.is_empty() || !problem.is_empty() {
            let none = String::new;
            rows.push([name.to_string(), is.clone(), none(), none(), none(), none(), problem]);
        }
        for (function, report) in &board.reports {
            let active = report.active.as_ref().map(|active| &active.version);
            let why = match (follow::why(report.reason, report.error.as_deref()), &report.keys) {
                (why, Some(keys)) if why.is_empty() => {
                    Some(keys.iter().map(|key| printable(&key.name)).collect::<Vec<_>>().join(", "))
                }
                (why, _) if why.is_empty() => report.progress.filter(|_| !report.state.is_final()).map(progress_text),
                (why, _) => Some(why),
            };
            rows.push([
                name.to_string(),
                is.clone(),
                function.to_string(),
                active.map_or_else(
                    || "-".into(),
                    |active| {
                        let code = if active.native_code { ", native code" } else { "" };
                        printable(&active.version) + code
                    },
                ),
                active.map_or_else(|| "-".into(), |active| active.serial.to_string()),
                report.state.to_string(),
                why.unwrap_or_default(),
            ]);
        }
    }
    table(out, &rows)?;
    for (name, board) in boards {
        for (function, report) in &board.reports {
            for difference in &report.differences {
                writeln!(out, "\n{name} {function} on {}", printable(&difference.topic))?;
                writeln!(out, "  active  {}", printable(&difference.active))?;
                writeln!(out, "  shadow  {}", printable(&difference.candidate))?;
            }
        }
    }
    Ok(())
}

/// Columns as wide as their widest entry.
fn table<const N: usize>(out: &mut impl Write, rows: &[[String; N]]) -> io::Result<()> {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    for row in rows {
        let line: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        writeln!(out, "{}", line.join("  ").trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_row_for_each_function_of_each_board() {
        let mut boards = Boards::new(Topics::new("sedge"));
        boards.record("sedge/a/status", br#"{"state":"online","groups":["pumps"]}"#);
        boards.record("sedge/b/status", br#"{"state":"offline"}"#);
        let digest = "0".repeat(64);
        let report = json!({
            "function": "warm", "state": "rejected", "reason": "expired", "error": "it expired", "serial": 8,
            "active": { "version": "1.2.0", "serial": 7, "digest": digest, "manifest": {} }, "previous": null,
            "at_ms": 0, "clock_synced": true,
            "differences": [{ "topic": "t", "active": "1", "candidate": "\u{1b}[2J" }],
        });
        boards.record("sedge/a/functions/warm", report.to_string().as_bytes());
        let shown: Vec<_> = boards.iter().collect();
        let mut out = Vec::new();
        print(&mut out, &shown).unwrap();
        let expected = "\
NODE  IS       FUNCTION  SERVES  SERIAL  LAST ORDER  WHY
a     online   warm      1.2.0   7       rejected    expired: it expired
b     offline

a warm on t
  active  1
  shadow  \\u{1b}[2J
";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
        let json = as_json(&shown);
        assert_eq!(json["nodes"][0]["functions"][0]["active"]["serial"], 7);
        assert_eq!(json["nodes"][0]["groups"][0], "pumps");
        assert_eq!(json["nodes"][1]["state"], "offline");
    }
}
