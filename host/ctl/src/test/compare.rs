//! What was expected beside what came.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::Context as _;
use sedge_core::message::Verdict;
use sedge_sandbox::{Run, ScopeState};
use serde_json::{Map, Value as Json, json};

use super::case::{self, Expect};
use crate::runner::{output_json, text_or_hex};
use crate::terminal;

/// A line of a comparison.
#[derive(Debug)]
pub(super) enum Difference {
    Same(String),
    Expected(String),
    Came(String),
}

impl Difference {
    pub(super) fn expected(&self) -> Option<&str> {
        match self {
            Self::Expected(line) => Some(line),
            Self::Same(_) | Self::Came(_) => None,
        }
    }

    pub(super) fn came(&self) -> Option<&str> {
        match self {
            Self::Came(line) => Some(line),
            Self::Same(_) | Self::Expected(_) => None,
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Same(line) => write!(f, "  {line}"),
            Self::Expected(line) => write!(f, "- {line}"),
            Self::Came(line) => write!(f, "+ {line}"),
        }
    }
}

/// Compares a run with what was expected of it. One entry for each kind of result that differs.
pub(super) fn compare(
    expect: Option<&Expect>,
    run: &Run,
    state: &ScopeState,
) -> anyhow::Result<impl Iterator<Item = (String, Vec<Difference>)>> {
    let none = Expect::default();
    let expect = expect.unwrap_or(&none);
    let mut found = Vec::new();
    let mut differ = |what: &str, lines: Option<Vec<Difference>>| {
        found.extend(lines.map(|lines| (format!("{what} differ (- expected, + came)"), lines)));
    };
    differ("ends", verdicts(expect, run));
    if let Some(outputs) = &expect.outputs {
        let expected = outputs.iter().map(|output| {
            let fields = output.iter().map(|(name, value)| Ok((name.clone(), case::json(value)?)));
            fields.collect::<anyhow::Result<Map<String, Json>>>()
        });
        let expected: Vec<_> = expected.collect::<Result<_, _>>().context("outputs")?;
        differ("outputs", output_lines(&expected, &outputs_of(run)));
    }
    if let Some(entries) = &expect.state {
        let expected = entries.iter().map(|(key, value)| Ok((key.clone(), text_or_hex(&case::bytes(value)?))));
        let expected: BTreeMap<_, _> = expected.collect::<anyhow::Result<_>>().context("state")?;
        let came = state.entries().map(|(key, value)| (key.to_owned(), text_or_hex(value))).collect();
        differ("states", state_lines(&expected, &came));
    }
    if let Some(log) = &expect.log {
        let came: Vec<String> = run.log.iter().map(|line| line.text.clone()).collect();
        differ("log lines", (log != &came).then(|| all(log, &came)));
    }
    Ok(found.into_iter())
}

/// What the run returned, as `sedge invoke --json` prints it.
pub(super) fn outputs_of(run: &Run) -> Vec<Json> {
    match &run.outcome.verdict {
        Verdict::Done(outputs) => outputs.iter().map(output_json).collect(),
        Verdict::Retry { .. } | Verdict::Failed(_) => Vec::new(),
    }
}

/// The end of a run in words: "done", "failed: rejected", "retry after 1000 ms".
fn verdicts(expect: &Expect, run: &Run) -> Option<Vec<Difference>> {
    let (came, detail) = match &run.outcome.verdict {
        Verdict::Done(_) => ("done".to_owned(), None),
        Verdict::Retry { after_ms, reason } => (format!("retry after {after_ms} ms"), Some(reason)),
        Verdict::Failed(failure) => (format!("failed: {}", failure.code.as_str()), Some(&failure.detail)),
    };
    let expected = match (&expect.failure, expect.retry_after_ms) {
        (Some(reason), _) => format!("failed: {reason}"),
        (None, Some(after_ms)) => format!("retry after {after_ms} ms"),
        (None, None) => "done".to_owned(),
    };
    let is_same_detail = expect.detail.as_ref().is_none_or(|expected| Some(expected) == detail);
    if came == expected && is_same_detail {
        return None;
    }
    let line = |end: &str, detail: Option<&String>| match detail {
        Some(detail) => format!("{end}: {detail}"),
        None => end.to_owned(),
    };
    Some(vec![Difference::Expected(line(&expected, expect.detail.as_ref())), Difference::Came(line(&came, detail))])
}

fn output_lines(expected: &[Map<String, Json>], came: &[Json]) -> Option<Vec<Difference>> {
    let is_same = |(expected, came): (&Map<String, Json>, &Json)| {
        expected.iter().all(|(name, value)| is_equal(value, came.get(name).unwrap_or(&Json::Null), name))
    };
    if expected.len() == came.len() && expected.iter().zip(came).all(is_same) {
        return None;
    }
    let mut lines = Vec::new();
    for n in 0..expected.len().max(came.len()) {
        let (expected, came) = (expected.get(n), came.get(n));
        let text = |fields: &Map<String, Json>| terminal::json(&fields);
        // Of what came, the fields that were asked for.
        let shown = came.map(|came| match expected {
            Some(expected) => expected.keys().map(|name| (name.clone(), came[name.as_str()].clone())).collect(),
            None => without_nulls(came),
        });
        if let (Some(pair), Some(shown)) = (expected.zip(came), &shown)
            && is_same(pair)
        {
            lines.push(Difference::Same(text(shown)));
            continue;
        }
        lines.extend(expected.map(|it| Difference::Expected(text(it))));
        lines.extend(shown.as_ref().map(|it| Difference::Came(text(it))));
    }
    Some(lines)
}

pub(super) fn without_nulls(output: &Json) -> Map<String, Json> {
    let fields = output.as_object().into_iter().flatten();
    fields.filter(|(_, value)| !value.is_null()).map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// A payload that is expected as JSON is compared as JSON, numbers by their value.
fn is_equal(expected: &Json, came: &Json, name: &str) -> bool {
    match (expected, came) {
        (Json::String(one), Json::String(other)) => one == other,
        (_, Json::String(text)) if matches!(name, "payload" | "body") => {
            serde_json::from_str(text).is_ok_and(|came: Json| is_equal(expected, &came, ""))
        }
        (Json::Number(one), Json::Number(other)) => one == other || one.as_f64() == other.as_f64(),
        (Json::Array(one), Json::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| is_equal(one, other, ""))
        }
        (Json::Object(one), Json::Object(other)) => {
            one.len() == other.len()
                && one.iter().all(|(key, one)| other.get(key).is_some_and(|other| is_equal(one, other, "")))
        }
        _ => expected == came,
    }
}

fn state_lines(expected: &BTreeMap<String, String>, came: &BTreeMap<String, String>) -> Option<Vec<Difference>> {
    if expected == came {
        return None;
    }
    let line = |(key, value): (&String, &String)| format!("{key} = {}", json!(value));
    let keys: std::collections::BTreeSet<_> = expected.keys().chain(came.keys()).collect();
    let mut lines = Vec::new();
    for key in keys {
        match (expected.get_key_value(key), came.get_key_value(key)) {
            (Some(one), Some(other)) if one == other => lines.push(Difference::Same(line(one))),
            (one, other) => {
                lines.extend(one.map(|it| Difference::Expected(line(it))));
                lines.extend(other.map(|it| Difference::Came(line(it))));
            }
        }
    }
    Some(lines)
}

fn all(expected: &[String], came: &[String]) -> Vec<Difference> {
    let expected = expected.iter().map(|line| Difference::Expected(line.clone()));
    expected.chain(came.iter().map(|line| Difference::Came(line.clone()))).collect()
}
