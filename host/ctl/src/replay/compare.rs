//! What differs between a recorded outcome and another.

use anyhow::Context as _;
use sedge_core::message::{FailureCode, StateWrite};
use sedge_core::recording::{Data, Line, OutcomeLine};
use serde_json::{Value, json};

use crate::terminal;

/// Two outcomes that differ.
pub(super) struct Compared {
    /// "outputs", "state", "failure", "fuel", "ends", "not heard".
    pub(super) what: Vec<&'static str>,
    pub(super) recorded: OutcomeLine,
    /// `None`: this version does not get the message.
    pub(super) came: Option<OutcomeLine>,
}

/// Compares the lines of two outcomes, which are not the same text. Returns what differs, and the recorded fuel.
pub(super) fn compare(recorded: &[u8], came: &[u8], is_same: bool) -> anyhow::Result<(Option<Compared>, u64)> {
    let (recorded, came) = (outcome(recorded)?, outcome(came)?);
    let fuel = recorded.fuel;
    let mut what = Vec::new();
    if end(&recorded) != end(&came) {
        what.push("ends");
    } else if !is_same_failure(&recorded, &came) || recorded.retry != came.retry {
        what.push("failure");
    }
    if recorded.outputs.as_deref().unwrap_or_default() != came.outputs.as_deref().unwrap_or_default() {
        what.push("outputs");
    }
    if recorded.state != came.state {
        what.push("state");
    }
    if is_same && fuel != came.fuel {
        what.push("fuel");
    }
    Ok(((!what.is_empty()).then_some(Compared { what, recorded, came: Some(came) }), fuel))
}

/// The changes of state in the line of an outcome.
pub(crate) fn recorded_writes(line: &[u8]) -> anyhow::Result<Vec<StateWrite>> {
    let write = |(key, value): &(String, Option<String>)| {
        let value = value.as_ref().map(serde_json::to_string).transpose()?;
        let value = value.as_deref().map(serde_json::from_str::<Data<'_>>).transpose()?;
        Ok(StateWrite { key: key.as_str().into(), value: value.map(|data| data.0.into_owned().into()) })
    };
    outcome(line)?.state.iter().map(write).collect()
}

fn outcome(line: &[u8]) -> anyhow::Result<OutcomeLine> {
    match serde_json::from_slice(line).context("an outcome of the recording cannot be read")? {
        Line::Outcome(outcome) => Ok(*outcome),
        _ => anyhow::bail!("an outcome of the recording is something else"),
    }
}

/// The end of a run in words.
fn end(outcome: &OutcomeLine) -> String {
    match (&outcome.failed, &outcome.retry) {
        (Some(failed), _) => format!("failed: {}", failed.reason),
        (None, Some(_)) => "retry".to_owned(),
        (None, None) => "done".to_owned(),
    }
}

/// The text of a trap names a place in the code, which is another in another version.
fn is_same_failure(one: &OutcomeLine, other: &OutcomeLine) -> bool {
    match (&one.failed, &other.failed) {
        (Some(one), Some(other)) => {
            one == other || one.reason == FailureCode::Trap.as_str() && one.reason == other.reason
        }
        (None, None) => true,
        _ => false,
    }
}

impl Compared {
    pub(super) fn not_heard(recorded: &[u8]) -> anyhow::Result<Self> {
        Ok(Self { what: vec!["not heard"], recorded: outcome(recorded)?, came: None })
    }

    /// Alerts of both outcomes.
    pub(super) fn alerts(&self) -> (u64, u64) {
        (self.recorded.alerts(), self.came.as_ref().map_or(0, Alerts::alerts))
    }

    /// Lines for a terminal: `-` was recorded, `+` came.
    pub(super) fn lines(&self) -> Vec<String> {
        let recorded = parts(&self.recorded, &self.what);
        let came = self.came.as_ref().map(|came| parts(came, &self.what)).unwrap_or_default();
        let line = |sign: &str, lines: &[String], others: &[String]| {
            lines.iter().filter(|line| !others.contains(line)).map(|line| format!("{sign} {line}")).collect::<Vec<_>>()
        };
        let mut lines = line("-", &recorded, &came);
        lines.extend(line("+", &came, &recorded));
        if self.came.is_none() {
            lines.push("+ no filter of subscribe in function.toml matches the topic, or except does".to_owned());
        }
        lines
    }

    pub(super) fn as_json(&self) -> Value {
        json!({
            "what": self.what,
            "recorded": parts(&self.recorded, &self.what),
            "came": self.came.as_ref().map(|came| parts(came, &self.what)),
        })
    }
}

trait Alerts {
    fn alerts(&self) -> u64;
}

impl Alerts for OutcomeLine {
    fn alerts(&self) -> u64 {
        let is_alert = |output: &&Value| output.get("kind").and_then(Value::as_str) == Some("alert");
        self.outputs.iter().flatten().filter(is_alert).count() as u64
    }
}

/// What there is to see of an outcome: of those parts that differ.
fn parts(outcome: &OutcomeLine, what: &[&str]) -> Vec<String> {
    let mut parts = Vec::new();
    let is_whole = what.contains(&"ends") || what.contains(&"not heard");
    if is_whole || what.contains(&"failure") {
        parts.push(match (&outcome.failed, &outcome.retry) {
            (Some(failed), _) => format!("failed: {}: {}", failed.reason, failed.detail),
            (None, Some(retry)) => format!("retry after {} ms: {}", retry.after_ms, retry.reason),
            (None, None) => "done".to_owned(),
        });
    }
    if is_whole || what.contains(&"outputs") {
        parts.extend(outcome.outputs.iter().flatten().map(terminal::json));
    }
    if is_whole || what.contains(&"state") {
        parts.extend(outcome.state.iter().map(|(key, value)| match value {
            Some(value) => format!("state {} = {}", json!(key), json!(value)),
            None => format!("state {} removed", json!(key)),
        }));
    }
    if what.contains(&"fuel") {
        parts.push(format!("{} fuel", outcome.fuel));
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    const DONE: &str = r#"{"outcome":{"outputs":[{"kind":"alert","key":"a"}],"state":[["n","1"]],"fuel":10}}"#;

    fn check(recorded: &str, came: &str, is_same: bool, expected: &[&str], lines: &[&str]) {
        let (compared, _) = compare(recorded.as_bytes(), came.as_bytes(), is_same).unwrap();
        let found = compared.as_ref().map(|it| it.what.clone()).unwrap_or_default();
        assert_eq!(found, expected, "{recorded} and {came}");
        assert_eq!(compared.map(|it| it.lines()).unwrap_or_default(), lines);
    }

    #[test]
    fn each_part_that_differs_is_named_and_only_its_lines_are_shown() {
        let other = DONE.replace("\"a\"", "\"b\"");
        let alerts = ["- {\"kind\":\"alert\",\"key\":\"a\"}", "+ {\"kind\":\"alert\",\"key\":\"b\"}"];
        let sorted =
            alerts.map(|line| line.replace("\"kind\":\"alert\",\"key\":\"a\"", "\"key\":\"a\",\"kind\":\"alert\""));
        let sorted =
            sorted.map(|line| line.replace("\"kind\":\"alert\",\"key\":\"b\"", "\"key\":\"b\",\"kind\":\"alert\""));
        check(DONE, &other, true, &["outputs"], &sorted.each_ref().map(|line| &**line));
        let other = DONE.replace("\"1\"", "null");
        check(DONE, &other, true, &["state"], &["- state \"n\" = \"1\"", "+ state \"n\" removed"]);
        let other = DONE.replace("10", "11");
        check(DONE, &other, true, &["fuel"], &["- 10 fuel", "+ 11 fuel"]);
        check(DONE, &other, false, &[], &[]);
    }

    #[test]
    fn failures_are_compared_by_reason_and_text_but_traps_by_reason_only() {
        let failed = |reason: &str, detail: &str| {
            format!(r#"{{"outcome":{{"failed":{{"reason":"{reason}","detail":"{detail}"}},"fuel":10}}}}"#)
        };
        check(&failed("trap", "in a"), &failed("trap", "in b"), false, &[], &[]);
        check(
            &failed("rejected", "no"),
            &failed("rejected", "never"),
            false,
            &["failure"],
            &["- failed: rejected: no", "+ failed: rejected: never"],
        );
        let empty = r#"{"outcome":{"outputs":[],"fuel":10}}"#;
        check(&failed("fuel", "all"), empty, false, &["ends"], &["- failed: fuel: all", "+ done"]);
    }
}
