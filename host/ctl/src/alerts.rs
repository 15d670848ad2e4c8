//! `sedge alerts`: what fires on a board, and what changed.

use std::io::Write as _;

use clap::Args;
use serde_json::Value;

use super::api::ApiArgs;
use super::terminal;
use sedge_core::time::rfc3339;

#[derive(Debug, Args)]
pub struct AlertsArgs {
    /// Show the latest changes instead of what fires now
    #[arg(long)]
    history: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    api: ApiArgs,
}

pub fn run(args: &AlertsArgs) -> anyhow::Result<()> {
    let mut answer = args.api.api()?.get("alerts")?;
    let mut out = terminal::out();
    if args.json {
        return Ok(writeln!(out, "{}", terminal::json(&answer))?);
    }
    let list = answer[if args.history { "events" } else { "firing" }].take();
    let lines = list.as_array().map_or(&[][..], Vec::as_slice);
    if lines.is_empty() {
        writeln!(out, "{}", if args.history { "no alert has changed yet" } else { "no alert fires" })?;
    }
    for alert in lines {
        writeln!(out, "{}", if args.history { change(alert) } else { firing(alert) })?;
    }
    if answer["left_out"].as_u64() > Some(0) {
        writeln!(out, "{} more fire and are not kept", answer["left_out"])?;
    }
    Ok(())
}

fn firing(alert: &Value) -> String {
    format!(
        "{:<8}  {}  {}  {} of {}  since {}, {} times",
        word(alert, "severity"),
        word(alert, "summary"),
        word(alert, "topic"),
        word(alert, "key"),
        word(alert, "function"),
        rfc3339(alert["since_ms"].as_u64().unwrap_or_default()),
        alert["count"]
    )
}

fn change(alert: &Value) -> String {
    format!(
        "{}  {:<8}  {:<8}  {}  {} of {}",
        rfc3339(alert["at_ms"].as_u64().unwrap_or_default()),
        word(alert, "status"),
        word(alert, "severity"),
        word(alert, "summary"),
        word(alert, "key"),
        word(alert, "function")
    )
}

fn word<'a>(alert: &'a Value, name: &str) -> &'a str {
    alert[name].as_str().unwrap_or("")
}
