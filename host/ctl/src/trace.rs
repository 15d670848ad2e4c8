//! `sedge trace`: the way of one message through a board.

use std::collections::BTreeMap;

use anyhow::bail;
use clap::Args;
use serde_json::Value;

use super::api::{ApiArgs, items, words};
use super::printable;
use super::terminal::{self, say};
use sedge_core::text::query_value;
use sedge_core::time::rfc3339;

#[derive(Debug, Args)]
pub struct TraceArgs {
    /// Id of a trace, or of a message: user property `id`, or that of a record [default: list the latest traces]
    id: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    api: ApiArgs,
}

pub fn run(args: &TraceArgs) -> anyhow::Result<()> {
    let api = args.api.api()?;
    let Some(id) = &args.id else {
        let list = api.get("traces")?;
        match args.json {
            true => say!("{}", terminal::json(&list)),
            false => show_list(&list),
        }
        return Ok(());
    };
    if id.is_empty() {
        bail!("the id is empty: name a trace or a message, or leave it out to list the latest traces");
    }
    let trace = api.get(&format!("traces/{}", query_value(id)))?;
    match args.json {
        true => say!("{}", terminal::json(&trace)),
        false => lines(&trace).iter().for_each(|line| say!("{line}")),
    }
    Ok(())
}

fn show_list(list: &Value) {
    let traces: Vec<&Value> = items(&list["traces"]).collect();
    if traces.is_empty() {
        eprintln!("no message was recorded yet: set trace.sample, or send a message with traceparent");
    }
    for trace in traces {
        let functions: Vec<&str> = items(&trace["functions"]).map(words).collect();
        say!(
            "{}  {}  {}  {}  {}  {}",
            rfc3339(number(&trace["start_us"]) / 1000),
            words(&trace["trace_id"]),
            words(&trace["topic"]),
            functions.join(","),
            millis(number(&trace["duration_us"])),
            trace["error"].as_str().unwrap_or(words(&trace["result"])),
        );
    }
}

/// A line for each span, below the one that caused it.
fn lines(trace: &Value) -> Vec<String> {
    let spans: Vec<&Value> = items(&trace["spans"]).collect();
    let mut below: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
    let is_known = |id: &str| spans.iter().any(|span| words(&span["span_id"]) == id);
    for span in &spans {
        let parent = Some(words(&span["parent"])).filter(|id| is_known(id)).unwrap_or("");
        below.entry(parent).or_default().push(span);
    }
    let start_us = spans.iter().map(|span| number(&span["start_us"])).min().unwrap_or(0);
    let mut lines = vec![format!("trace {}  {}", words(&trace["trace_id"]), rfc3339(start_us / 1000))];
    let mut waiting: Vec<(usize, &Value)> =
        below.remove("").unwrap_or_default().into_iter().rev().map(|it| (0, it)).collect();
    while let Some((depth, span)) = waiting.pop() {
        lines.push(line(span, depth, start_us));
        let children = below.remove(words(&span["span_id"])).unwrap_or_default();
        waiting.extend(children.into_iter().rev().map(|it| (depth + 1, it)));
    }
    if number(&trace["spans_left_out"]) > 0 {
        lines.push(format!("... {} more spans are not kept", trace["spans_left_out"]));
    }
    lines
}

fn line(span: &Value, depth: usize, start_us: u64) -> String {
    let attribute = |it: &Value| {
        let name = words(&it["name"]);
        let short = name.strip_prefix("sedge.").or(name.strip_prefix("messaging.")).unwrap_or(name);
        format!("{short}={}", words(&it["value"]))
    };
    let mut attributes: Vec<String> = items(&span["attributes"]).map(attribute).collect();
    attributes.splice(..0, span["error"].as_str().map(|error| format!("error={error}")));
    let step = format!("{:indent$}{}", "", words(&span["step"]), indent = 2 * depth);
    let (begin, took) = (millis(number(&span["start_us"]) - start_us), millis(number(&span["duration_us"])));
    printable(&format!("{begin:>12}  {step:<16} {took:>12}  {}", attributes.join(" ")))
}

fn millis(micros: u64) -> String {
    format!("{}.{:03} ms", micros / 1000, micros % 1000)
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn spans_stand_below_what_caused_them_and_nothing_moves_the_cursor() {
        let span = |id: &str, parent: Value, step: &str, start_us: u64, attributes: Value| {
            json!({
                "span_id": id, "parent": parent, "step": step, "kind": "internal", "start_us": start_us,
                "duration_us": 1500, "error": null, "attributes": attributes,
            })
        };
        let topic = json!([{ "name": "messaging.destination.name", "value": "oven\u{1b}[2J" }]);
        let mut failed = span("3", json!("1"), "invoked", 2_000, json!([{ "name": "sedge.fuel", "value": "7" }]));
        failed["error"] = json!("trap");
        let spans = json!([
            span("1", json!("f0"), "received", 1_000, topic),
            failed,
            span("4", json!("3"), "sent", 3_000, json!([])),
            span("2", json!("1"), "committed", 2_500, json!([])),
        ]);
        let lines = lines(&json!({ "trace_id": "ab", "spans": spans, "spans_left_out": 2 }));
        let expected = [
            "trace ab  1970-01-01T00:00:00.001Z",
            "    0.000 ms  received             1.500 ms  destination.name=oven\\u{1b}[2J",
            "    1.000 ms    invoked            1.500 ms  error=trap fuel=7",
            "    2.000 ms      sent             1.500 ms  ",
            "    1.500 ms    committed          1.500 ms  ",
            "... 2 more spans are not kept",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn a_board_that_sends_a_circle_is_shown_to_an_end() {
        let span = |id: &str, parent: &str| json!({ "span_id": id, "parent": parent, "step": "sent" });
        let trace = json!({ "trace_id": "ab", "spans": [span("1", "2"), span("2", "1"), span("3", "")] });
        assert_eq!(lines(&trace).len(), 2);
    }
}
