//! `sedge tail`: what functions of a board get and return, as it happens.

use std::time::Duration;

use anyhow::bail;
use clap::Args;
use serde_json::{Value, json};

use super::api::{ApiArgs, items, query, words};
use super::printable;
use super::terminal::{self, say};
use sedge_core::time::rfc3339;

/// Pause before a stream that broke is opened again.
const AGAIN: Duration = Duration::from_secs(2);
const SHOWN_CHARS: usize = 200;

#[derive(Debug, Args)]
pub struct TailArgs {
    /// Only runs of this function
    #[arg(long, value_name = "NAME")]
    function: Option<String>,
    /// Only runs for topics that match this filter
    #[arg(long, value_name = "FILTER")]
    topic: Option<String>,
    /// End after so many runs
    #[arg(long, value_name = "NUMBER")]
    count: Option<u64>,
    /// Print a JSON object for each run, and for each change in the number of those left out
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    api: ApiArgs,
}

/// Runs until Ctrl-C, or until it has shown enough.
pub fn run(args: &TailArgs) -> anyhow::Result<()> {
    let api = args.api.api()?;
    let path = format!("live?{}", query(&[("function", args.function.as_deref()), ("topic", args.topic.as_deref())]));
    let mut shown = 0;
    let mut events = api.events(&path)?;
    loop {
        let mut left_out = 0;
        for event in &mut events {
            let (name, data) = match event {
                Ok(event) => event,
                Err(error) => {
                    eprintln!("{error:#}");
                    break;
                }
            };
            match name.as_str() {
                "run" => {
                    match args.json {
                        true => say!("{}", terminal::json(&data)),
                        false => show(&data),
                    }
                    shown += 1;
                    if args.count.is_some_and(|count| shown >= count) {
                        return Ok(());
                    }
                }
                "left-out" if data["left_out"].as_u64() > Some(left_out) => {
                    let before = std::mem::replace(&mut left_out, data["left_out"].as_u64().unwrap_or_default());
                    match args.json {
                        true => say!("{}", terminal::json(&json!({ "left_out": left_out }))),
                        false => eprintln!("{} more were left out: too many came", left_out - before),
                    }
                }
                "end" => bail!("{}: {}", words(&data["error"]), words(&data["fix"])),
                _ => {}
            }
        }
        eprintln!("the stream broke; trying again");
        events = loop {
            std::thread::sleep(AGAIN);
            match api.events(&path) {
                Ok(events) => break events,
                Err(error) => eprintln!("{}", printable(&format!("{error:#}"))),
            }
        };
    }
}

fn show(run: &Value) {
    say!("{}", head(run));
    if let Some(detail) = run["detail"].as_str() {
        say!("  why      {}", printable(detail));
    }
    for output in items(&run["outputs"]) {
        let facts: Vec<_> =
            items(&output["facts"]).map(|fact| format!("{}={}", words(&fact["name"]), words(&fact["value"]))).collect();
        say!(
            "  {:<8} {}  {}  {}",
            words(&output["kind"]),
            words(&output["to"]),
            cut(&output["content"]),
            facts.join(" ")
        );
    }
    for entry in items(&run["state"]) {
        match entry["value"].is_null() {
            true => say!("  state    {} removed", words(&entry["key"])),
            false => say!("  state    {} = {}", words(&entry["key"]), cut(&entry["value"])),
        }
    }
    for line in items(&run["log"]) {
        say!("  log      {} {}", words(&line["level"]), words(&line["text"]));
    }
    for (name, what) in [("outputs_left_out", "outputs"), ("state_left_out", "keys"), ("log_left_out", "log lines")] {
        if run[name].as_u64() > Some(0) {
            say!("  ...      {} more {what}", run[name]);
        }
    }
    if let Some(id) = run["message_id"].as_str() {
        say!("  message  {id}, received {}", rfc3339(run["received_ms"].as_u64().unwrap_or_default()));
    }
    say!("  used     fuel {}, {} µs, hops {}, attempt {}", run["fuel"], run["elapsed_us"], run["hops"], run["attempt"]);
}

/// When, which version, which message, and what came of it.
fn head(run: &Value) -> String {
    let result = run["reason"].as_str().or(run["result"].as_str()).unwrap_or("?");
    let shadow = run["shadow_of"].as_str().map_or_else(String::new, |version| format!(" (shadow of {version})"));
    format!(
        "{}  {} {}{shadow}  {}  {}  {}",
        rfc3339(run["at_ms"].as_u64().unwrap_or_default()),
        words(&run["function"]),
        words(&run["version"]),
        words(&run["topic"]),
        result,
        cut(&run["payload"]),
    )
}

/// The beginning of a payload, with the size of one that is not whole.
fn cut(payload: &Value) -> String {
    let (text, is_hex) = match (payload["text"].as_str(), payload["hex"].as_str()) {
        (Some(text), _) => (text, false),
        (None, Some(hex)) => (hex, true),
        (None, None) => return String::new(),
    };
    let shown: String = text.chars().take(SHOWN_CHARS).collect();
    let prefix = if is_hex { "0x" } else { "" };
    match payload["is_cut"] == true || shown.len() < text.len() {
        true => format!("{prefix}{shown}… ({} bytes)", payload["bytes"]),
        false => format!("{prefix}{shown}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_run_of_a_shadow_says_which_version_serves() {
        let mut run = json!({
            "at_ms": 0, "function": "f", "version": "2.0.0", "shadow_of": "1.0.0", "topic": "t", "result": "done",
            "payload": { "text": "7", "is_cut": false },
        });
        assert_eq!(head(&run), "1970-01-01T00:00:00.000Z  f 2.0.0 (shadow of 1.0.0)  t  done  7");
        run["shadow_of"] = Value::Null;
        assert_eq!(head(&run), "1970-01-01T00:00:00.000Z  f 2.0.0  t  done  7");
    }
}
