//! Alerts that were committed: what fires now, and the latest changes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use sedge_core::store::StoredRecord;
use sedge_core::stream::Stream;

/// Keys and events that are kept. The least recent are dropped first.
const MAX_KEYS: usize = 1000;
const MAX_EVENTS: usize = 1000;
/// Longest text that is kept of an alert.
const MAX_TEXT: usize = 300;

#[derive(Debug)]
pub(crate) struct Alerts {
    /// Of the topics under which alerts are published on the local broker.
    prefix: String,
    kept: Mutex<Kept>,
}

/// What is remembered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Kept {
    /// By function and key.
    now: BTreeMap<String, Current>,
    events: VecDeque<Event>,
    left_out: u64,
    /// Number of the last change.
    changes: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Current {
    function: Box<str>,
    key: Box<str>,
    status: Box<str>,
    severity: Box<str>,
    since_ms: u64,
    last_ms: u64,
    count: u64,
    summary: Box<str>,
    value: Option<f64>,
    topic: Box<str>,
    /// When its message came in. 0: not known, from an earlier version.
    #[serde(default)]
    received_ms: u64,
    #[serde(default)]
    message_id: Option<Box<str>>,
    #[serde(default)]
    acknowledged: Option<Acknowledged>,
    /// Number of its last change.
    change: u64,
}

/// Who has seen that it fires.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Acknowledged {
    by: Box<str>,
    at_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Event {
    function: Box<str>,
    key: Box<str>,
    at_ms: u64,
    status: Box<str>,
    severity: Box<str>,
    summary: Box<str>,
    /// The message that caused it, if one did.
    #[serde(default)]
    topic: Option<Box<str>>,
    #[serde(default)]
    received_ms: Option<u64>,
    #[serde(default)]
    message_id: Option<Box<str>>,
    /// Whoever did it, if it was a person.
    #[serde(default)]
    by: Option<Box<str>>,
}

/// What is read of an alert as it is published.
#[derive(Deserialize)]
struct Published {
    key: String,
    status: String,
    severity: String,
    summary: String,
    value: Option<f64>,
    topic: String,
    #[serde(default)]
    received_at_ms: u64,
    message_id: Option<String>,
}

impl Alerts {
    pub(super) fn new(prefix: String) -> Self {
        Self { prefix, kept: Mutex::default() }
    }

    /// Notes the alerts among these records.
    pub(super) fn note(&self, stored: &[StoredRecord]) {
        for StoredRecord { record, .. } in stored {
            if record.stream == Stream::LOCAL
                && record.topic.starts_with(&self.prefix)
                && let Ok(alert) = serde_json::from_slice(&record.payload)
            {
                self.lock().add(&record.function, record.at_ms, alert);
            }
        }
    }

    /// Notes that a person has seen an alert, until it fires anew. `false`: it does not fire.
    pub(super) fn acknowledge(&self, function: &str, key: &str, by: &str, at_ms: u64) -> bool {
        let mut kept = self.lock();
        let Some(current) = kept.now.get_mut(&place(function, key)).filter(|it| it.is_firing()) else { return false };
        current.acknowledged = Some(Acknowledged { by: by.into(), at_ms });
        kept.note_action(function, key, "acknowledged", by, at_ms);
        true
    }

    /// Notes in the history what a person did.
    pub(super) fn note_action(&self, function: &str, key: &str, action: &str, by: &str, at_ms: u64) {
        self.lock().note_action(function, key, action, by, at_ms);
    }

    pub(super) fn kept(&self) -> Kept {
        self.lock().clone()
    }

    /// Number of changes so far.
    pub(super) fn changes(&self) -> u64 {
        self.lock().changes
    }

    pub(super) fn restore(&self, mut kept: Kept) {
        while kept.now.len() > MAX_KEYS {
            kept.now.pop_last();
        }
        kept.events.truncate(MAX_EVENTS);
        *self.lock() = kept;
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn to_json(&self) -> Value {
        let kept = self.lock();
        let mut now: Vec<_> = kept.now.values().filter(|it| it.is_firing()).collect();
        now.sort_by_key(|it| std::cmp::Reverse(it.since_ms));
        let firing: Vec<_> = now
            .into_iter()
            .map(|it| {
                json!({
                    "function": it.function, "key": it.key, "severity": it.severity, "since_ms": it.since_ms,
                    "last_ms": it.last_ms, "count": it.count, "summary": it.summary, "value": it.value, "topic": it.topic,
                    "received_ms": it.received_ms, "message_id": it.message_id,
                    "acknowledged": it.acknowledged,
                })
            })
            .collect();
        json!({ "firing": firing, "events": kept.events.iter().rev().collect::<Vec<_>>(), "left_out": kept.left_out })
    }
}

impl Current {
    fn is_firing(&self) -> bool {
        &*self.status == "firing"
    }
}

impl Kept {
    fn add_event(&mut self, event: Event) {
        self.events.push_back(event);
        if self.events.len() > MAX_EVENTS {
            self.events.pop_front();
        }
    }

    fn note_action(&mut self, function: &str, key: &str, action: &str, by: &str, at_ms: u64) {
        self.changes += 1;
        let of = self.now.get(&place(function, key));
        let (severity, summary) = of.map_or_else(Default::default, |it| (it.severity.clone(), it.summary.clone()));
        let (key, by) = (cut(key.to_owned()), Some(by.into()));
        let (function, status) = (function.into(), action.into());
        let (topic, received_ms, message_id) = (None, None, None);
        self.add_event(Event { function, key, at_ms, status, severity, summary, topic, received_ms, message_id, by });
    }

    fn add(&mut self, function: &str, at_ms: u64, alert: Published) {
        let Published { key, status, severity, summary, value, topic, received_at_ms: received_ms, message_id } = alert;
        let [key, status, severity, summary] = [key, status, severity, summary].map(cut);
        // Whole: what else is known of the message is found by it.
        let (topic, message_id): (Box<str>, Option<Box<str>>) = (topic.into(), message_id.map(Into::into));
        self.changes += 1;
        let place = place(function, &key);
        let before = self.now.get(&place).filter(|before| before.status == status);
        let (since_ms, count) = before.map_or((at_ms, 0), |before| (before.since_ms, before.count));
        let acknowledged = before.and_then(|before| before.acknowledged.clone());
        let is_change = before.is_none();
        if is_change {
            let (key, severity, summary, status) = (key.clone(), severity.clone(), summary.clone(), status.clone());
            let (topic, received_ms, message_id) = (Some(topic.clone()), Some(received_ms), message_id.clone());
            let (function, by) = (function.into(), None);
            self.add_event(Event {
                function,
                key,
                at_ms,
                status,
                severity,
                summary,
                topic,
                received_ms,
                message_id,
                by,
            });
        }
        let current = Current {
            function: function.into(),
            key,
            status,
            severity,
            since_ms,
            last_ms: at_ms,
            count: count + 1,
            summary,
            value,
            topic,
            received_ms,
            message_id,
            acknowledged,
            change: self.changes,
        };
        self.now.insert(place, current);
        if self.now.len() > MAX_KEYS {
            // Resolved ones first.
            let oldest = self.now.iter().min_by_key(|(_, it)| (it.is_firing(), it.change));
            if let Some((place, is_firing)) = oldest.map(|(place, it)| (place.clone(), it.is_firing())) {
                self.left_out += u64::from(is_firing);
                self.now.remove(&place);
            }
        }
    }
}

/// No function has a slash in its name.
fn place(function: &str, key: &str) -> String {
    format!("{function}/{key}")
}

fn cut(text: String) -> Box<str> {
    let end = text.floor_char_boundary(MAX_TEXT);
    if end < text.len() { format!("{}…", &text[..end]).into() } else { text.into() }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use sedge_core::store::{Record, RecordId};

    use super::*;

    fn alert(id: u64, topic: &str, key: &str, status: &str) -> StoredRecord {
        let alert = json!({
            "key": key, "status": status, "severity": "warning", "summary": "too warm", "value": 81.5, "topic": "oven/1",
        });
        let record = Record {
            stream: Stream::LOCAL,
            function: "warm".into(),
            topic: topic.into(),
            payload: Bytes::from(alert.to_string()),
            content_type: None,
            retain: false,
            hops: 1,
            fan_out: 1,
            clock_synced: true,
            at_ms: id * 1000,
            trace: None,
            is_folded: false,
        };
        StoredRecord { id: RecordId(id), record }
    }

    #[test]
    fn what_fires_is_shown_since_when_and_repeats_are_counted() {
        let alerts = Alerts::new("sedge/board/alerts/".into());
        let topic = "sedge/board/alerts/warm";
        let other = alert(3, "elsewhere/warm", "c", "firing");
        alerts.note(&[alert(1, topic, "a", "firing"), alert(2, topic, "b", "firing"), other]);
        alerts.note(&[alert(4, topic, "a", "firing"), alert(5, topic, "b", "resolved")]);
        let shown = alerts.to_json();
        assert_eq!(shown["firing"].as_array().unwrap().len(), 1, "{shown}");
        let firing = &shown["firing"][0];
        assert_eq!((&firing["key"], &firing["since_ms"], &firing["count"]), (&json!("a"), &json!(1000), &json!(2)));
        let events: Vec<_> = shown["events"].as_array().unwrap().iter().map(|it| (&it["key"], &it["status"])).collect();
        assert_eq!(
            events,
            [(&json!("b"), &json!("resolved")), (&json!("b"), &json!("firing")), (&json!("a"), &json!("firing"))]
        );
    }

    #[test]
    fn keys_are_bounded_and_those_that_fire_stay_longest() {
        let alerts = Alerts::new("sedge/board/alerts/".into());
        let topic = "sedge/board/alerts/warm";
        alerts.note(&[alert(1, topic, "old", "firing"), alert(2, topic, "done", "resolved")]);
        for id in 0..MAX_KEYS as u64 {
            alerts.note(&[alert(10 + id, topic, &format!("k{id}"), "firing")]);
        }
        let shown = alerts.to_json();
        assert_eq!(shown["firing"].as_array().unwrap().len(), MAX_KEYS);
        assert_eq!(shown["left_out"], 1);
        assert!(!shown["firing"].as_array().unwrap().iter().any(|it| it["key"] == "old"));
        assert_eq!(shown["events"].as_array().unwrap().len(), MAX_EVENTS);
    }
}
