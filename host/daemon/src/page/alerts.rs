//! Alerts that were committed since the start: what fires now, and the latest changes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use serde::Deserialize;
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

#[derive(Debug, Default)]
struct Kept {
    /// By function and key.
    now: BTreeMap<(Box<str>, Box<str>), Current>,
    events: VecDeque<Event>,
    left_out: u64,
}

#[derive(Debug)]
struct Current {
    status: Box<str>,
    severity: Box<str>,
    since_ms: u64,
    last_ms: u64,
    count: u64,
    summary: Box<str>,
    value: Option<f64>,
    topic: Box<str>,
    /// In the order of the last change.
    order: u64,
}

#[derive(Debug)]
struct Event {
    function: Box<str>,
    key: Box<str>,
    at_ms: u64,
    status: Box<str>,
    severity: Box<str>,
    summary: Box<str>,
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
}

impl Alerts {
    pub(super) fn new(prefix: String) -> Self {
        Self { prefix, kept: Mutex::default() }
    }

    /// Notes the alerts among these records.
    pub(crate) fn note(&self, stored: &[StoredRecord]) {
        for StoredRecord { id, record } in stored {
            if record.stream == Stream::Local
                && record.topic.starts_with(&self.prefix)
                && let Ok(alert) = serde_json::from_slice(&record.payload)
            {
                self.kept.lock().unwrap_or_else(PoisonError::into_inner).add(
                    &record.function,
                    id.0,
                    record.at_ms,
                    alert,
                );
            }
        }
    }

    pub(super) fn to_json(&self) -> Value {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let mut now: Vec<_> = kept.now.iter().filter(|(_, it)| &*it.status == "firing").collect();
        now.sort_by_key(|(_, it)| std::cmp::Reverse(it.since_ms));
        let firing: Vec<_> = now
            .into_iter()
            .map(|((function, key), it)| {
                json!({
                    "function": function, "key": key, "severity": it.severity, "since_ms": it.since_ms,
                    "last_ms": it.last_ms, "count": it.count, "summary": it.summary, "value": it.value, "topic": it.topic,
                })
            })
            .collect();
        let events: Vec<_> = kept
            .events
            .iter()
            .rev()
            .map(|it| {
                json!({
                    "function": it.function, "key": it.key, "at_ms": it.at_ms, "status": it.status,
                    "severity": it.severity, "summary": it.summary,
                })
            })
            .collect();
        json!({ "firing": firing, "events": events, "left_out": kept.left_out })
    }
}

impl Kept {
    fn add(&mut self, function: &str, order: u64, at_ms: u64, alert: Published) {
        let Published { key, status, severity, summary, value, topic } = alert;
        let [key, status, severity, summary, topic] = [key, status, severity, summary, topic].map(cut);
        let place = (function.into(), key.clone());
        let before = self.now.remove(&place);
        let is_same = before.as_ref().is_some_and(|before| before.status == status);
        if !is_same {
            let (key, severity, summary, status) = (key, severity.clone(), summary.clone(), status.clone());
            self.events.push_back(Event { function: function.into(), key, at_ms, status, severity, summary });
            if self.events.len() > MAX_EVENTS {
                self.events.pop_front();
            }
        }
        let (since_ms, count) = before.filter(|_| is_same).map_or((at_ms, 0), |before| (before.since_ms, before.count));
        let count = count + 1;
        let current = Current { status, severity, since_ms, last_ms: at_ms, count, summary, value, topic, order };
        self.now.insert(place, current);
        if self.now.len() > MAX_KEYS {
            // Resolved ones first.
            let oldest = self.now.iter().min_by_key(|(_, it)| (&*it.status == "firing", it.order));
            if let Some((place, current)) = oldest {
                self.left_out += u64::from(&*current.status == "firing");
                let place = place.clone();
                self.now.remove(&place);
            }
        }
    }
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
            stream: Stream::Local,
            function: "warm".into(),
            topic: topic.into(),
            payload: Bytes::from(alert.to_string()),
            content_type: None,
            retain: false,
            hops: 1,
            fan_out: 1,
            at_ms: id * 1000,
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
