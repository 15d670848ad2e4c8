//! A run as a view shows it: every text and payload is cut, and what is left out is counted.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::message::{Alert, Failure, LogLine, Message, Outcome, Output, Publication, Reply, Verdict, Wake};
use crate::text::hex;

/// Bytes that are kept of a whole run.
const ROOM: usize = 16 << 10;
/// Bytes that are kept of its parts.
const PAYLOAD: usize = 4 << 10;
const OUTPUT: usize = 2 << 10;
const STATE_VALUE: usize = 512;
const TEXT: usize = 512;
/// Parts that are kept.
const OUTPUTS: usize = 16;
const WRITES: usize = 32;
const LINES: usize = 32;

/// The beginning of a payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    pub bytes: Box<[u8]>,
    /// Length of the whole.
    pub whole: usize,
}

/// A run, or a message that became a dead letter without one.
#[derive(Clone, Debug)]
pub struct FollowedRun {
    /// The views that it is for.
    pub follows: Vec<u32>,
    pub at_ms: u64,
    pub function: Arc<str>,
    pub version: Box<str>,
    /// The version that serves, if this is the run of a shadow: it has no effect.
    pub shadow_of: Option<Box<str>>,
    pub topic: Arc<str>,
    pub payload: Cut,
    pub content_type: Option<String>,
    /// Unix time when the message came in, in milliseconds, and the id that its publisher gave it.
    pub received_ms: u64,
    pub message_id: Option<Box<str>>,
    pub attempt: u32,
    pub retained: bool,
    /// Functions that the message went through before.
    pub hops: u32,
    pub result: &'static str,
    /// Reason of a dead letter.
    pub reason: Option<&'static str>,
    pub detail: Option<String>,
    pub outputs: Vec<FollowedOutput>,
    pub outputs_left_out: usize,
    /// Changed keys, without a value those that were removed.
    pub writes: Vec<(String, Option<Cut>)>,
    pub writes_left_out: usize,
    pub log: Vec<LogLine>,
    pub log_left_out: usize,
    pub fuel: u64,
    pub elapsed_us: u64,
    pub memory_bytes: u64,
    room: usize,
}

/// An output, or what an output asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FollowedOutput {
    pub kind: &'static str,
    /// Topic, key of an alert, or name of a wake.
    pub to: Option<String>,
    pub content: Option<Cut>,
    /// Whatever else it says, by name.
    pub facts: Vec<(&'static str, String)>,
}

impl FollowedRun {
    pub(super) fn new(
        follows: Vec<u32>,
        function: Arc<str>,
        version: &str,
        message: &Message,
        hops: u32,
        at_ms: u64,
    ) -> Self {
        let mut room = ROOM;
        Self {
            follows,
            at_ms,
            function,
            version: version.into(),
            shadow_of: None,
            topic: Arc::clone(&message.topic),
            payload: cut(&message.payload, PAYLOAD, &mut room),
            content_type: message.content_type.as_deref().map(|kind| text(kind, &mut room)),
            received_ms: message.received_at_ms,
            message_id: message.publisher_id().map(Into::into),
            attempt: message.attempt,
            retained: message.retained,
            hops,
            result: "failed",
            reason: None,
            detail: None,
            outputs: Vec::new(),
            outputs_left_out: 0,
            writes: Vec::new(),
            writes_left_out: 0,
            log: Vec::new(),
            log_left_out: 0,
            fuel: 0,
            elapsed_us: 0,
            memory_bytes: 0,
            room,
        }
    }

    pub(super) fn add_outcome(&mut self, outcome: &Outcome) {
        let usage = &outcome.usage;
        (self.fuel, self.elapsed_us, self.memory_bytes) = (usage.fuel, usage.elapsed_us, usage.memory_bytes);
        match &outcome.verdict {
            Verdict::Done(outputs) => {
                self.result = "done";
                for output in outputs.iter().take(OUTPUTS) {
                    self.outputs.push(FollowedOutput::new(output, &mut self.room));
                }
                self.outputs_left_out = outputs.len().saturating_sub(OUTPUTS);
            }
            Verdict::Retry { after_ms, reason } => {
                self.result = "retry";
                self.detail = Some(format!("in {after_ms} ms: {}", text(reason, &mut self.room)));
            }
            Verdict::Failed(failure) => self.refuse(failure),
        }
        for write in outcome.writes.iter().take(WRITES) {
            let key = text(&write.key, &mut self.room);
            let value = write.value.as_ref().map(|value| cut(value, STATE_VALUE, &mut self.room));
            self.writes.push((key, value));
        }
        self.writes_left_out = outcome.writes.len().saturating_sub(WRITES);
    }

    /// What the function returned has no effect, since the board did not take it.
    pub(super) fn refuse(&mut self, failure: &Failure) {
        self.result = "failed";
        self.reason = Some(failure.code.as_str());
        self.detail = Some(text(&failure.detail, &mut self.room));
    }

    pub(super) fn add_log(&mut self, lines: &[LogLine], dropped: u32) {
        for LogLine { level, text: line } in lines.iter().take(LINES) {
            self.log.push(LogLine { level: *level, text: text(line, &mut self.room) });
        }
        self.log_left_out = lines.len().saturating_sub(LINES) + dropped as usize;
    }

    pub fn to_json(&self) -> Value {
        let outputs = self.outputs.iter().map(FollowedOutput::to_json);
        let state =
            self.writes.iter().map(|(key, value)| json!({ "key": key, "value": value.as_ref().map(Cut::to_json) }));
        let log = self.log.iter().map(|line| json!({ "level": level(line.level), "text": line.text }));
        json!({
            "at_ms": self.at_ms,
            "function": &*self.function,
            "version": self.version,
            "shadow_of": self.shadow_of,
            "topic": &*self.topic,
            "payload": self.payload.to_json(),
            "content_type": self.content_type,
            "received_ms": self.received_ms,
            "message_id": self.message_id,
            "attempt": self.attempt,
            "retained": self.retained,
            "hops": self.hops,
            "result": self.result,
            "reason": self.reason,
            "detail": self.detail,
            "outputs": outputs.collect::<Vec<_>>(),
            "outputs_left_out": self.outputs_left_out,
            "state": state.collect::<Vec<_>>(),
            "state_left_out": self.writes_left_out,
            "log": log.collect::<Vec<_>>(),
            "log_left_out": self.log_left_out,
            "fuel": self.fuel,
            "elapsed_us": self.elapsed_us,
            "memory_bytes": self.memory_bytes,
        })
    }
}

impl FollowedOutput {
    fn new(output: &Output, room: &mut usize) -> Self {
        match output {
            Output::Alert(Alert { key, severity, status, summary, value, labels, sink }) => {
                let mut facts = vec![("severity", name(severity)), ("status", name(status))];
                facts.extend(value.map(|value| ("value", value.to_string())));
                facts.extend(sink.as_deref().map(|sink| ("sink", text(sink, room))));
                let labels = labels.iter().take(OUTPUTS);
                facts.extend(
                    labels.map(|(name, value)| ("label", format!("{}={}", text(name, room), text(value, room)))),
                );
                let content = Some(cut(summary.as_bytes(), OUTPUT, room));
                Self { kind: "alert", to: Some(text(key, room)), content, facts }
            }
            Output::Forward(publication) => Self::publication("forward", publication, room),
            Output::Publish(publication) => Self::publication("publish", publication, room),
            Output::Wake(Wake { name, after_ms }) => {
                let when = after_ms.map_or("cancelled".to_owned(), |after_ms| format!("in {after_ms} ms"));
                Self { kind: "wake", to: Some(text(name, room)), content: None, facts: vec![("when", when)] }
            }
            Output::Reply(Reply { status, content_type, body }) => {
                let mut facts = vec![("status", status.to_string())];
                facts.extend(content_type.as_deref().map(|kind| ("content_type", text(kind, room))));
                Self { kind: "reply", to: None, content: Some(cut(body, OUTPUT, room)), facts }
            }
        }
    }

    fn publication(kind: &'static str, publication: &Publication, room: &mut usize) -> Self {
        let Publication { topic, payload, content_type, retain, sink } = publication;
        let mut facts = Vec::new();
        facts.extend(content_type.as_deref().map(|kind| ("content_type", text(kind, room))));
        facts.extend(retain.then(|| ("retain", "true".to_owned())));
        facts.extend(sink.as_deref().map(|sink| ("sink", text(sink, room))));
        Self { kind, to: Some(text(topic, room)), content: Some(cut(payload, OUTPUT, room)), facts }
    }

    fn to_json(&self) -> Value {
        let facts = self.facts.iter().map(|(name, value)| json!({ "name": name, "value": value }));
        json!({
            "kind": self.kind,
            "to": self.to,
            "content": self.content.as_ref().map(Cut::to_json),
            "facts": facts.collect::<Vec<_>>(),
        })
    }
}

impl Cut {
    fn to_json(&self) -> Value {
        let is_cut = self.bytes.len() < self.whole;
        let text = match str::from_utf8(&self.bytes) {
            Ok(text) => Some(text),
            // The cut may go through a character.
            Err(error) if is_cut && error.error_len().is_none() => {
                str::from_utf8(&self.bytes[..error.valid_up_to()]).ok()
            }
            Err(_) => None,
        };
        let hex = text.is_none().then(|| hex(&self.bytes));
        json!({ "text": text, "hex": hex, "bytes": self.whole, "is_cut": is_cut })
    }
}

fn cut(bytes: &[u8], most: usize, room: &mut usize) -> Cut {
    let kept = bytes.len().min(most).min(*room);
    *room -= kept;
    Cut { bytes: bytes[..kept].into(), whole: bytes.len() }
}

/// Shortened with an ellipsis.
fn text(whole: &str, room: &mut usize) -> String {
    let kept = whole.floor_char_boundary(whole.len().min(TEXT).min(*room));
    *room -= kept;
    let ellipsis = if kept < whole.len() { "…" } else { "" };
    format!("{}{ellipsis}", &whole[..kept])
}

/// The name of a variant as it is published.
fn name(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

fn level(level: tracing::Level) -> String {
    level.as_str().to_lowercase()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::message::{AlertStatus, Severity, StateGrowth, StateWrite, Usage};

    fn run(payload: &[u8], outputs: Vec<Output>, writes: Vec<StateWrite>) -> FollowedRun {
        let message = Message::new("oven/1", Bytes::copy_from_slice(payload), 7, true);
        let mut run = FollowedRun::new(vec![1], "f".into(), "1.0.0", &message, 2, 9);
        let (growth, usage) = (StateGrowth::default(), Usage { fuel: 5, ..Usage::default() });
        run.add_outcome(&Outcome { verdict: Verdict::Done(outputs), writes, growth, usage, drawn: None });
        run
    }

    fn publish(topic: &str, payload: Vec<u8>) -> Output {
        let (topic, payload) = (topic.into(), payload.into());
        Output::Publish(Publication { topic, payload, content_type: None, retain: true, sink: None })
    }

    #[test]
    fn a_run_of_any_size_is_shown_within_its_bound_and_says_what_is_missing() {
        let outputs = (0..1000).map(|n| publish(&format!("t/{n}"), vec![b'x'; 100_000])).collect();
        let writes = (0..1000).map(|n| StateWrite { key: format!("{n}").into(), value: Some(vec![0; 100_000].into()) });
        let mut run = run(&vec![b'y'; 1 << 20], outputs, writes.collect());
        run.add_log(&vec![LogLine { level: tracing::Level::INFO, text: "z".repeat(5000) }; 500], 3);
        let json = run.to_json();
        assert!(json.to_string().len() < 3 * ROOM, "{}", json.to_string().len());
        assert_eq!(
            (json["payload"]["bytes"].as_u64(), &json["payload"]["is_cut"]),
            (Some(1 << 20), &Value::Bool(true))
        );
        let left_out = ["outputs_left_out", "state_left_out", "log_left_out"].map(|name| json[name].as_u64().unwrap());
        assert_eq!(left_out, [1000 - 16, 1000 - 32, 500 - 32 + 3]);
    }

    #[test]
    fn text_stays_text_when_a_cut_goes_through_a_character_and_other_bytes_are_hex() {
        let shown = run("ü".repeat(PAYLOAD).as_bytes(), Vec::new(), Vec::new()).to_json();
        assert!(shown["payload"]["text"].as_str().is_some_and(|text| text.starts_with("üü")), "{shown}");
        let odd = run(format!("a{}", "ü".repeat(PAYLOAD)).as_bytes(), Vec::new(), Vec::new()).to_json();
        assert_eq!(odd["payload"]["text"].as_str().map(str::len), Some(PAYLOAD - 1));
        let bytes = run(&[0xff, 0x00], Vec::new(), Vec::new()).to_json();
        assert_eq!((&bytes["payload"]["text"], &bytes["payload"]["hex"]), (&Value::Null, &json!("ff00")));
    }

    #[test]
    fn each_output_says_where_it_goes() {
        let alert = Output::Alert(Alert {
            key: "warm".into(),
            severity: Severity::Critical,
            status: AlertStatus::Firing,
            summary: "too warm".into(),
            value: Some(81.5),
            labels: vec![("room".into(), "2".into())],
            sink: None,
        });
        let wake = Output::Wake(Wake { name: "later".into(), after_ms: None });
        let reply = Output::Reply(Reply { status: 201, content_type: None, body: "made".into() });
        let removed = StateWrite { key: "old".into(), value: None };
        let shown = run(b"1", vec![alert, publish("t", b"p".to_vec()), wake, reply], vec![removed]).to_json();
        let fact = |n: usize, name: &str| {
            let facts = shown["outputs"][n]["facts"].as_array().unwrap();
            facts.iter().find(|fact| fact["name"] == name).map(|fact| fact["value"].as_str().unwrap().to_owned())
        };
        assert_eq!(fact(0, "severity").as_deref(), Some("critical"));
        assert_eq!(fact(0, "label").as_deref(), Some("room=2"));
        assert_eq!(fact(1, "retain").as_deref(), Some("true"));
        assert_eq!(fact(2, "when").as_deref(), Some("cancelled"));
        assert_eq!(fact(3, "status").as_deref(), Some("201"));
        assert_eq!(shown["outputs"][0]["content"]["text"], "too warm");
        assert_eq!(shown["state"][0], json!({ "key": "old", "value": null }));
        assert_eq!((&shown["received_ms"], &shown["message_id"]), (&json!(7), &Value::Null));
        assert_eq!((&shown["hops"], &shown["fuel"], &shown["result"]), (&json!(2), &json!(5), &json!("done")));
    }
}
