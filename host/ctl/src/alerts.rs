//! `sedge alerts`: what fires on a board, and what changed.

use std::io::Write as _;
use std::time::Duration;

use anyhow::bail;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::api::{ApiArgs, query};
use super::printable;
use super::terminal;
use sedge_core::manifest::parse_period;
use sedge_core::time::rfc3339;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct AlertsArgs {
    #[command(subcommand)]
    action: Option<Action>,
    /// Show the latest changes instead of what fires now
    #[arg(long)]
    history: bool,
    #[command(flatten)]
    answer: AnswerArgs,
}

#[derive(Debug, Args)]
struct AnswerArgs {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    api: ApiArgs,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show an alert that fires and its message. With a token: its dead letters
    ///
    ///   sedge alerts show freezer cold-room-2/too-warm --token-file token
    #[command(verbatim_doc_comment)]
    Show(AlertArgs),
    /// Note that you have seen an alert. It goes on firing, and is sent
    ///
    ///   sedge alerts ack freezer cold-room-2/too-warm --token-file token
    #[command(verbatim_doc_comment)]
    Ack(AlertArgs),
    /// Do not send an alert upstream for a time. It is recorded and counted
    ///
    ///   sedge alerts mute freezer cold-room-2/too-warm --for 2h --token-file token
    #[command(verbatim_doc_comment)]
    Mute {
        /// For how long: 30m, 2h, 168h
        #[arg(long = "for", value_name = "TIME", default_value = "1h", value_parser = period)]
        time: Duration,
        #[command(flatten)]
        alert: AlertArgs,
    },
    /// Send a muted alert again
    ///
    ///   sedge alerts unmute freezer cold-room-2/too-warm --token-file token
    #[command(verbatim_doc_comment)]
    Unmute(AlertArgs),
}

/// An alert as the list shows it.
#[derive(Debug, Args)]
struct AlertArgs {
    #[arg(value_name = "FUNCTION")]
    function: String,
    #[arg(value_name = "KEY")]
    key: String,
    #[command(flatten)]
    answer: AnswerArgs,
}

fn period(text: &str) -> Result<Duration, String> {
    parse_period(text).ok_or_else(|| format!("{text:?} is not a time: write 30m, 2h or 168h"))
}

pub fn run(args: &AlertsArgs) -> anyhow::Result<()> {
    match &args.action {
        None => list(args),
        Some(Action::Show(alert)) => show(alert),
        Some(Action::Ack(alert)) => act(alert, "acknowledge", "acknowledged", None),
        Some(Action::Mute { time, alert }) => act(alert, "mute", "muted", Some(time.as_secs())),
        Some(Action::Unmute(alert)) => act(alert, "unmute", "unmuted", None),
    }
}

fn act(alert: &AlertArgs, path: &str, done: &str, seconds: Option<u64>) -> anyhow::Result<()> {
    let AlertArgs { function, key, answer: AnswerArgs { json, api } } = alert;
    let mut body = json!({ "function": function, "key": key });
    if let Some(seconds) = seconds {
        body["seconds"] = json!(seconds);
    }
    let answer = api.api()?.post(&format!("alerts/{path}"), &body)?;
    let mut out = terminal::out();
    if *json {
        return Ok(writeln!(out, "{}", terminal::json(&answer))?);
    }
    let done = if answer["was_muted"] == false { "not muted" } else { done };
    let until = answer["until_ms"].as_u64().map_or_else(String::new, |ms| format!(" until {}", rfc3339(ms)));
    Ok(writeln!(out, "{key} of {function} is {done}{until}")?)
}

fn show(args: &AlertArgs) -> anyhow::Result<()> {
    let AlertArgs { function, key, answer: AnswerArgs { json, api } } = args;
    let api = api.api()?;
    let mut answer = api.get("alerts")?;
    let alerts = answer["firing"].as_array_mut().map(std::mem::take).unwrap_or_default();
    let Some(mut alert) = alerts.into_iter().find(|it| it["function"] == **function && it["key"] == **key) else {
        bail!("{} of {} does not fire: see sedge alerts", printable(key), printable(function));
    };
    let received = alert["received_ms"].as_u64().unwrap_or_default();
    if api.has_token() {
        let received = received.to_string();
        let of = query(&[("topic", alert["topic"].as_str()), ("received_ms", Some(&received))]);
        alert["dead_letters"] = api.get(&format!("dead-letters?{of}"))?["dead_letters"].take();
    }
    let mut out = terminal::out();
    if *json {
        return Ok(writeln!(out, "{}", terminal::json(&alert))?);
    }
    writeln!(out, "{}", firing(&alert))?;
    let id = alert["message_id"].as_str().map_or_else(String::new, |id| format!(", id {id}"));
    writeln!(out, "message: {} at {}{id}", word(&alert, "topic"), rfc3339(received))?;
    match alert["dead_letters"].as_array() {
        None => writeln!(out, "dead letters of it: name a token with --token-file")?,
        Some(letters) if letters.is_empty() => writeln!(out, "dead letters of it: none")?,
        Some(letters) => {
            for letter in letters {
                let (reason, detail) = (word(letter, "reason"), word(letter, "detail"));
                writeln!(out, "dead letter {} of {}: {reason}, {detail}", letter["id"], word(letter, "function"))?;
            }
            writeln!(out, "see one with sedge dead-letters show NUMBER")?;
        }
    }
    Ok(writeln!(out, "what comes next: sedge tail --topic '{}'", word(&alert, "topic"))?)
}

fn list(args: &AlertsArgs) -> anyhow::Result<()> {
    let mut answer = args.answer.api.api()?.get("alerts")?;
    let mut out = terminal::out();
    if args.answer.json {
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
    let seen = alert["acknowledged"]["by"].as_str().map_or_else(String::new, |by| format!(", seen by {by}"));
    let until = alert["muted_until_ms"].as_u64();
    let muted = until.map_or_else(String::new, |ms| format!(", muted until {}", rfc3339(ms)));
    let id = alert["message_id"].as_str().map_or_else(String::new, |id| format!(" (id {id})"));
    let received = alert["received_ms"].as_u64().filter(|ms| *ms > 0);
    let last = received.map_or_else(String::new, |ms| format!(", last by a message of {}{id}", rfc3339(ms)));
    format!(
        "{:<8}  {}  {}  {} of {}  since {}, {} times{last}{seen}{muted}",
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
    let by = alert["by"].as_str().map_or_else(String::new, |by| format!(" by {by}"));
    format!(
        "{}  {:<12}  {:<8}  {}  {} of {}{by}",
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
