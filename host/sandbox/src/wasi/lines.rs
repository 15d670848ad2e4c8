//! The outputs that a program wrote: one JSON object per line, of the form that `sedge invoke --json` prints.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::error::Category;
use wasmtime::Result;

use crate::host::{Exceeded, HostState};
use crate::run::shorten;
use sedge_core::limits::MAX_STATE_WRITES;
use sedge_core::message::{
    Alert, AlertStatus, Failure, FailureCode, Output, Publication, Reply, Severity, Verdict, Wake,
};
use sedge_core::text::printable;

/// Part of a faulty line that the error shows.
const SHOWN_BYTES: usize = 60;

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Line {
    Alert(AlertLine),
    Forward(PublicationLine),
    Publish(PublicationLine),
    Wake(WakeLine),
    Reply(ReplyLine),
    State(StateLine),
    Retry(RetryLine),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AlertLine {
    key: String,
    #[serde(default = "warning")]
    severity: Severity,
    #[serde(default = "firing")]
    status: AlertStatus,
    /// The key, if it is missing.
    summary: Option<String>,
    value: Option<f64>,
    #[serde(default)]
    labels: Labels,
    sink: Option<Box<str>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PublicationLine {
    topic: Box<str>,
    payload: Option<Value>,
    payload_base64: Option<String>,
    content_type: Option<Box<str>>,
    #[serde(default)]
    retain: bool,
    sink: Option<Box<str>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WakeLine {
    name: Box<str>,
    after_ms: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReplyLine {
    status: u16,
    body: Option<Value>,
    body_base64: Option<String>,
    content_type: Option<Box<str>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StateLine {
    key: String,
    /// `null` removes the key. Stored as its JSON text, as scripts do.
    value: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RetryLine {
    after_ms: u64,
    #[serde(default)]
    reason: String,
}

const fn warning() -> Severity {
    Severity::Warning
}

const fn firing() -> AlertStatus {
    AlertStatus::Firing
}

/// Labels of an alert: an object, or a list of pairs.
#[derive(Default)]
struct Labels(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;

        impl<'de> Visitor<'de> for Pairs {
            type Value = Labels;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of labels, or a list of pairs")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Labels, A::Error> {
                let mut labels = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, Value>()? {
                    labels.push((name, text_of(value)));
                }
                Ok(Labels(labels))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Labels, A::Error> {
                let mut labels = Vec::new();
                while let Some((name, value)) = list.next_element::<(String, Value)>()? {
                    labels.push((name, text_of(value)));
                }
                Ok(Labels(labels))
            }

            fn visit_unit<E: de::Error>(self) -> Result<Labels, E> {
                Ok(Labels::default())
            }
        }

        deserializer.deserialize_any(Pairs)
    }
}

/// A string is itself, everything else its JSON text.
fn text_of(value: Value) -> String {
    match value {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

/// Reads the outputs, and writes the state. A line that cannot be read fails the run.
pub(super) fn read(written: &[u8], host: &mut HostState) -> Result<Verdict> {
    let (mut outputs, mut changes) = (Vec::new(), 0);
    for (line, number) in written.split(|byte| *byte == b'\n').zip(1..) {
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        let failed = |what: &str| {
            let shown = String::from_utf8_lossy(&line[..line.len().min(SHOWN_BYTES)]);
            let detail = format!("line {number} of standard output {what}: {}", printable(&shown));
            Ok(Verdict::Failed(Failure { code: FailureCode::Output, detail: shorten(detail) }))
        };
        if line[0] != b'{' {
            return failed("is not a JSON object with an output; messages for people go to standard error");
        }
        match serde_json::from_slice(line).map_err(|error| explain(&error)).and_then(Effect::of) {
            Ok(Effect::Output(output)) => outputs.push(output),
            Ok(Effect::State(key, value)) => {
                // Each line counts, also for the same key: nothing else bounds the time that they take.
                changes += 1;
                if changes > MAX_STATE_WRITES {
                    return Err(Exceeded::StateChanges.into());
                }
                if host.set(&key, value.as_deref().map(str::as_bytes))?.is_err() {
                    return failed(
                        "writes state, and the function has none: set state = \"topic\" or \"function\" in function.toml",
                    );
                }
            }
            Ok(Effect::Retry(RetryLine { after_ms, reason })) => {
                return Ok(Verdict::Retry { after_ms, reason: shorten(reason) });
            }
            Err(what) => return failed(&what),
        }
        // The limit itself is checked for all functions alike. More need not be read to exceed it.
        if outputs.len() > host.limits.outputs {
            break;
        }
    }
    Ok(Verdict::Done(outputs))
}

/// What a line asks for.
enum Effect {
    Output(Output),
    State(String, Option<String>),
    Retry(RetryLine),
}

impl Effect {
    fn of(line: Line) -> Result<Self, String> {
        Ok(match line {
            Line::Alert(it) if it.key.is_empty() => return Err("is an alert with an empty `key`".to_owned()),
            Line::Alert(it) => Self::Output(Output::Alert(Alert {
                summary: it.summary.unwrap_or_else(|| it.key.clone()),
                key: it.key,
                severity: it.severity,
                status: it.status,
                value: it.value,
                labels: it.labels.0,
                sink: it.sink,
            })),
            Line::Forward(it) => Self::Output(Output::Forward(it.publication()?)),
            Line::Publish(it) => Self::Output(Output::Publish(it.publication()?)),
            Line::Wake(it) => Self::Output(Output::Wake(Wake { name: it.name, after_ms: it.after_ms })),
            Line::Reply(it) => {
                let (body, content_type) = content("body", it.body, it.body_base64, it.content_type)?;
                Self::Output(Output::Reply(Reply { status: it.status, content_type, body }))
            }
            Line::State(it) => Self::State(it.key, (!it.value.is_null()).then(|| it.value.to_string())),
            Line::Retry(it) => Self::Retry(it),
        })
    }
}

impl PublicationLine {
    fn publication(self) -> Result<Publication, String> {
        let (payload, content_type) = content("payload", self.payload, self.payload_base64, self.content_type)?;
        Ok(Publication { topic: self.topic, payload, content_type, retain: self.retain, sink: self.sink })
    }
}

/// Text is sent as it is, and everything else as JSON.
fn content(
    name: &str,
    value: Option<Value>,
    base64: Option<String>,
    content_type: Option<Box<str>>,
) -> Result<(Bytes, Option<Box<str>>), String> {
    match (value, base64) {
        (Some(Value::String(text)), None) => Ok((text.into(), content_type)),
        (Some(value), None) => Ok((value.to_string().into(), content_type.or_else(|| Some("application/json".into())))),
        (None, Some(base64)) => match STANDARD.decode(base64) {
            Ok(bytes) => Ok((bytes.into(), content_type)),
            Err(error) => Err(format!("has a `{name}_base64` that is not Base64 ({error})")),
        },
        (None, None) => Err(format!("has neither `{name}` nor `{name}_base64`")),
        (Some(_), Some(_)) => Err(format!("has both `{name}` and `{name}_base64`")),
    }
}

/// The error without the position that `serde_json` appends: its line is always the first.
fn explain(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let what = text.rsplit_once(" at line ").map_or(&*text, |(what, _)| what);
    match error.classify() {
        Category::Data => format!("is not an output ({what})"),
        _ => format!("is not JSON ({what} at column {})", error.column()),
    }
}
