//! `sedge top`: a board at a glance, in a terminal.

use std::io::Write as _;

use clap::Args;
use serde_json::{Value, json};

use super::api::{self, Api, ApiArgs, items};
use super::printable;
use super::terminal::{self, say};
use sedge_core::time::rfc3339;

#[derive(Debug, Args)]
pub struct TopArgs {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    api: ApiArgs,
}

pub fn run(args: &TopArgs) -> anyhow::Result<()> {
    let api = args.api.api()?;
    let seen = Seen::ask(&api)?;
    if args.json {
        let Seen { board, functions, alerts } = &seen;
        say!("{}", terminal::json(&json!({ "board": board, "functions": functions, "alerts": alerts })));
        return Ok(());
    }
    seen.print()
}

/// What the board said last.
struct Seen {
    board: Value,
    functions: Vec<Value>,
    alerts: Vec<Value>,
}

impl Seen {
    fn ask(api: &Api) -> anyhow::Result<Self> {
        let list = |mut answer: Value, name: &str| match answer[name].take() {
            Value::Array(list) => list,
            _ => Vec::new(),
        };
        let board = api.get("board")?;
        let mut functions = list(api.get("functions")?, "functions");
        // Those that take the most of their share first.
        functions.sort_by(|one, other| share(other).total_cmp(&share(one)));
        Ok(Self { board, functions, alerts: list(api.get("alerts")?, "firing") })
    }

    fn head(&self) -> Vec<String> {
        let Self { board, .. } = self;
        let up = |link: &Value| if link["connected"] == true { "connected" } else { "away" };
        let sinks: Vec<_> =
            items(&board["sinks"]).map(|sink| format!(", sink {} {}", words(&sink["name"]), up(sink))).collect();
        let messages = &board["figures"]["messages"];
        let minute = board["charts"]["minutes"]["messages"].as_array().and_then(|it| it.last()).and_then(Value::as_u64);
        let problems: Vec<_> = items(&board["problems"]).map(|it| words(&it["what"])).collect();
        let well = if problems.is_empty() { "all is well".to_owned() } else { problems.join("; ") };
        vec![
            format!("{}  {}  {well}", words(&board["node"]), rfc3339(board["time_ms"].as_u64().unwrap_or_default())),
            format!(
                "broker {}{}; outbox {} records, {} bytes",
                up(&board["broker"]),
                if sinks.is_empty() { ", no sink".to_owned() } else { sinks.concat() },
                board["outbox"]["records"],
                board["outbox"]["bytes"]
            ),
            format!(
                "messages {} in all, {} in the last minute, {} under way, {} parked; {} dead letters",
                messages["received"],
                minute.map_or_else(|| "-".to_owned(), |count| count.to_string()),
                messages["in_flight"],
                messages["parked"],
                board["dead_letters"]
            ),
        ]
    }

    fn function_rows(&self) -> Vec<[String; 8]> {
        let heads = ["FUNCTION", "VERSION", "STATE", "RUNS", "DEAD", "p50/p99 ms", "SHARE", "PAUSED"];
        let row = |it: &Value| {
            let figures = &it["figures"];
            if figures.is_null() {
                let mut row: [String; 8] = Default::default();
                (row[0], row[2]) = (words(&it["name"]), words(&it["report"]["state"]));
                return row;
            }
            let ms = |share: &str| figures["duration_us"][share].as_f64().map(|us| format!("{:.1}", us / 1000.0));
            let state =
                if figures["quarantined"] == true { "paused".to_owned() } else { words(&it["report"]["state"]) };
            [
                words(&it["name"]),
                words(&it["report"]["active"]["version"]),
                state,
                figures["invocations"].to_string(),
                figures["dead_letters"].to_string(),
                [ms("p50"), ms("p99")].map(|it| it.unwrap_or_else(|| "-".to_owned())).join(" / "),
                format!("{:.0} %", share(it) * 100.0),
                figures["paused_topics"].to_string(),
            ]
        };
        std::iter::once(heads.map(str::to_owned)).chain(self.functions.iter().map(row)).collect()
    }

    fn alert_rows(&self) -> Vec<[String; 4]> {
        let heads = ["SEVERITY", "ALERT", "TOPIC", "SINCE"];
        let row = |it: &Value| {
            let muted = if it["muted_until_ms"].is_null() { "" } else { " (muted)" };
            [
                words(&it["severity"]),
                format!("{}{muted}", words(&it["summary"])),
                words(&it["topic"]),
                rfc3339(it["since_ms"].as_u64().unwrap_or_default()),
            ]
        };
        std::iter::once(heads.map(str::to_owned)).chain(self.alerts.iter().map(row)).collect()
    }

    fn print(&self) -> anyhow::Result<()> {
        let mut out = terminal::out();
        for line in self.head() {
            writeln!(out, "{line}")?;
        }
        writeln!(out)?;
        terminal::table(&mut out, &self.function_rows())?;
        if !self.alerts.is_empty() {
            writeln!(out)?;
            terminal::table(&mut out, &self.alert_rows())?;
        }
        Ok(())
    }
}

fn share(function: &Value) -> f64 {
    function["figures"]["share_used"].as_f64().unwrap_or_default()
}

/// Text without what a terminal would act on.
fn words(value: &Value) -> String {
    printable(api::words(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_board_is_shown_with_what_it_says_and_nothing_that_moves_the_cursor() {
        let figures = json!({
            "share_used": 0.5, "invocations": 7, "dead_letters": 1, "duration_us": { "p50": 1500.0, "p99": null },
            "quarantined": true, "paused_topics": 3,
        });
        let seen = Seen {
            board: json!({
                "node": "greenhouse\u{1b}[2J", "time_ms": 0, "broker": { "connected": true },
                "sinks": [{ "name": "upstream", "connected": true }, { "name": "lake", "connected": false }],
                "outbox": { "records": 2, "bytes": 30 }, "dead_letters": 1, "problems": [{ "what": "the broker is away" }],
                "figures": { "messages": { "received": 9, "in_flight": 0, "parked": 0 } },
                "charts": { "minutes": { "messages": [1, 5] } },
            }),
            functions: vec![
                json!({ "name": "freezer", "figures": figures, "report": { "state": "active", "active": { "version": "1.2.0" } } }),
                json!({ "name": "new", "figures": null, "report": { "state": "receiving" } }),
            ],
            alerts: vec![json!({
                "severity": "critical", "summary": "too\u{7} warm", "topic": "oven/1", "since_ms": 0, "muted_until_ms": 5,
            })],
        };
        let rows = [seen.function_rows().concat(), seen.alert_rows().concat()].map(|cells| cells.join("\n"));
        let shown = [seen.head().join("\n"), rows.join("\n")].join("\n");
        for expected in [
            "greenhouse\\u{1b}[2J  1970-01-01T00:00:00.000Z  the broker is away",
            "broker connected, sink upstream connected, sink lake away; outbox 2 records, 30 bytes",
            "9 in all, 5 in the last minute",
            "freezer",
            "1.5 / -",
            "paused",
            "receiving",
            "critical",
            "too\\u{7} warm (muted)",
        ] {
            assert!(shown.contains(expected), "{expected}:\n{shown}");
        }
        assert!(!shown.contains(['\u{1b}', '\u{7}']));
    }
}
