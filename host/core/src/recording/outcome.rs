//! The line of an outcome. The same outcome is always the same text, so that a replay compares bytes and reads the line only
//! where they differ.
//!
//! ```text
//! {"outcome":{"outputs":[..],"state":[["key","value"],["gone",null]],"fuel":2103}}
//! {"outcome":{"retry":{"after_ms":500,"reason":"busy"},"fuel":730}}
//! {"outcome":{"failed":{"reason":"rejected","detail":"not a number"},"fuel":730}}
//! ```

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Data;
use crate::message::{Alert, Outcome, Output, Publication, StateWrite, Verdict};

const FUEL: &[u8] = b",\"fuel\":";
const FAILED: &[u8] = b"{\"outcome\":{\"failed\":";

/// An outcome as it is read, to be shown.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct OutcomeLine {
    pub outputs: Option<Vec<Value>>,
    #[serde(default)]
    pub state: Vec<(String, Option<String>)>,
    pub retry: Option<RetryLine>,
    pub failed: Option<FailedLine>,
    pub fuel: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryLine {
    pub after_ms: u64,
    pub reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedLine {
    pub reason: String,
    pub detail: String,
}

/// The line without what follows the fuel.
pub fn without_fuel(line: &[u8]) -> &[u8] {
    let at = line.windows(FUEL.len()).rposition(|window| window == FUEL);
    at.map_or(line, |at| &line[..at])
}

/// Whether the line is that of a failure.
pub fn has_failed(line: &[u8]) -> bool {
    line.starts_with(FAILED)
}

/// Appends the line of an outcome, with its line feed.
pub fn outcome_of(outcome: &Outcome, lines: &mut Vec<u8>) {
    lines.extend_from_slice(b"{\"outcome\":");
    let fields = match &outcome.verdict {
        Verdict::Done(outputs) => VerdictFields::Done {
            outputs: outputs.iter().map(OutputLine::of).collect(),
            state: writes(&outcome.writes),
            fuel: outcome.usage.fuel,
        },
        Verdict::Retry { after_ms, reason } => VerdictFields::Retry {
            retry: RetryLine { after_ms: *after_ms, reason: reason.clone() },
            fuel: outcome.usage.fuel,
        },
        Verdict::Failed(failure) => VerdictFields::Failed {
            failed: FailedLine { reason: failure.code.as_str().to_owned(), detail: failure.detail.clone() },
            fuel: outcome.usage.fuel,
        },
    };
    serde_json::to_writer(&mut *lines, &fields).expect("an outcome has only string keys");
    lines.extend_from_slice(b"}\n");
}

/// By key: another version may write the same in another order.
fn writes(writes: &[StateWrite]) -> Vec<(&str, Option<Data<'_>>)> {
    let mut writes: Vec<_> = writes.iter().map(|write| (&*write.key, write.value.as_deref().map(Data::of))).collect();
    writes.sort_by_key(|(key, _)| *key);
    writes
}

#[derive(Serialize)]
#[serde(untagged)]
enum VerdictFields<'a> {
    Done {
        outputs: Vec<OutputLine<'a>>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        state: Vec<(&'a str, Option<Data<'a>>)>,
        fuel: u64,
    },
    Retry {
        retry: RetryLine,
        fuel: u64,
    },
    Failed {
        failed: FailedLine,
        fuel: u64,
    },
}

#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum OutputLine<'a> {
    Alert {
        #[serde(flatten)]
        alert: &'a Alert,
        #[serde(skip_serializing_if = "Option::is_none")]
        sink: Option<&'a str>,
    },
    Forward(PublicationLine<'a>),
    Publish(PublicationLine<'a>),
    Wake {
        name: &'a str,
        after_ms: Option<u64>,
    },
    Reply {
        status: u16,
        #[serde(skip_serializing_if = "Option::is_none")]
        content_type: Option<&'a str>,
        body: Data<'a>,
    },
}

#[derive(Serialize)]
struct PublicationLine<'a> {
    topic: &'a str,
    payload: Data<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<&'a str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    retain: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    sink: Option<&'a str>,
}

impl<'a> OutputLine<'a> {
    fn of(output: &'a Output) -> Self {
        let publication = |it: &'a Publication| PublicationLine {
            topic: &it.topic,
            payload: Data::of(&it.payload),
            content_type: it.content_type.as_deref(),
            retain: it.retain,
            sink: it.sink.as_deref(),
        };
        match output {
            Output::Alert(alert) => Self::Alert { alert, sink: alert.sink.as_deref() },
            Output::Forward(it) => Self::Forward(publication(it)),
            Output::Publish(it) => Self::Publish(publication(it)),
            Output::Wake(it) => Self::Wake { name: &it.name, after_ms: it.after_ms },
            Output::Reply(it) => {
                Self::Reply { status: it.status, content_type: it.content_type.as_deref(), body: Data::of(&it.body) }
            }
        }
    }
}
