//! The alerts that Home Assistant shows: a bounded number of keys, each with its state and what was published of it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::device::{alert_id, alert_name};

/// Alerts that are shown at a time. Each is an entity that Home Assistant keeps, and a part of one message.
pub(super) const MAX_ALERTS: usize = 100;
/// Shortest time between two messages about one alert that neither begins nor ends.
const FIGURES_EVERY: Duration = Duration::from_secs(10);
/// Longest text, and most labels, of an alert that are published.
const MAX_TEXT: usize = 300;
const MAX_LABELS: usize = 32;

/// By their ids.
#[derive(Debug, Default)]
pub(super) struct Alerts {
    kept: BTreeMap<String, Alert>,
    /// Number of the last change.
    changes: u64,
    has_warned: bool,
}

#[derive(Debug)]
struct Alert {
    function: Box<str>,
    name: String,
    is_firing: bool,
    change: u64,
    /// `None`: nothing came of it since the start; the broker has what was published before.
    state: Option<State>,
    published: Option<(State, Instant)>,
}

/// What is published of an alert: its attributes in Home Assistant.
#[derive(Clone, Debug, PartialEq)]
struct State {
    is_firing: bool,
    function: Box<str>,
    key: String,
    severity: String,
    value: Option<f64>,
    summary: String,
    topic: String,
    labels: BTreeMap<String, String>,
    is_muted: bool,
}

/// What is read of an alert as it is published on the local broker.
#[derive(Debug, Deserialize)]
pub(super) struct Echo {
    function: String,
    key: String,
    severity: String,
    status: String,
    summary: String,
    value: Option<f64>,
    topic: String,
    #[serde(default)]
    labels: Vec<(String, String)>,
    #[serde(default)]
    muted: bool,
}

/// An alert as the store remembers it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct NotedAlert {
    pub(super) id: String,
    function: Box<str>,
    name: String,
    is_firing: bool,
}

/// What came of an alert.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Noticed {
    /// It began, ended or changed its severity: publish it before anything else.
    pub(super) urgent: Option<String>,
    pub(super) is_new: bool,
    /// The alert that made room for it.
    pub(super) evicted: Option<String>,
}

impl Alerts {
    pub(super) fn restore(&mut self, noted: &[NotedAlert]) {
        for NotedAlert { id, function, name, is_firing } in noted.iter().take(MAX_ALERTS) {
            let (function, name) = (function.clone(), name.clone());
            let alert = Alert { function, name, is_firing: *is_firing, change: 0, state: None, published: None };
            self.kept.insert(id.clone(), alert);
        }
    }

    pub(super) fn noted(&self) -> Vec<NotedAlert> {
        let noted = |(id, alert): (&String, &Alert)| NotedAlert {
            id: id.clone(),
            function: alert.function.clone(),
            name: alert.name.clone(),
            is_firing: alert.is_firing,
        };
        self.kept.iter().map(noted).collect()
    }

    /// Ids and names.
    pub(super) fn names(&self) -> Vec<(&str, &str)> {
        self.kept.iter().map(|(id, alert)| (&**id, &*alert.name)).collect()
    }

    /// Those whose state is known.
    pub(super) fn known(&self) -> impl Iterator<Item = &String> {
        self.kept.iter().filter(|(_, alert)| alert.state.is_some()).map(|(id, _)| id)
    }

    pub(super) fn notice(&mut self, echo: Echo) -> Noticed {
        let id = alert_id(&echo.function, &echo.key);
        let mut noticed = Noticed::default();
        let is_firing = echo.status == "firing";
        if !self.kept.contains_key(&id) {
            // What never fired here needs no entity.
            if !is_firing {
                return noticed;
            }
            if self.kept.len() >= MAX_ALERTS {
                let oldest = self.kept.iter().filter(|(_, alert)| !alert.is_firing).min_by_key(|(_, it)| it.change);
                noticed.evicted = oldest.map(|(id, _)| id.clone());
                let Some(evicted) = &noticed.evicted else {
                    self.warn();
                    return noticed;
                };
                self.kept.remove(evicted);
            }
            noticed.is_new = true;
            let (function, name) = (echo.function.as_str().into(), alert_name(&echo.function, &echo.key));
            let alert = Alert { function, name, is_firing, change: 0, state: None, published: None };
            self.kept.insert(id.clone(), alert);
        }
        self.changes += 1;
        let alert = self.kept.get_mut(&id).expect("it was there or was added");
        (alert.is_firing, alert.change) = (is_firing, self.changes);
        alert.state = Some(State::from(echo));
        if alert.is_urgent() {
            noticed.urgent = Some(id);
        }
        noticed
    }

    fn warn(&mut self) {
        if !std::mem::replace(&mut self.has_warned, true) {
            tracing::warn!("more than {MAX_ALERTS} alerts fire: Home Assistant is not shown the others");
        }
    }

    /// Removes the alerts of a function. Returns their ids.
    pub(super) fn remove_of(&mut self, function: &str) -> Vec<String> {
        let of: Vec<String> =
            self.kept.iter().filter(|(_, alert)| *alert.function == *function).map(|(id, _)| id.clone()).collect();
        of.iter().for_each(|id| drop(self.kept.remove(id)));
        of
    }

    /// The next alert whose figures have changed, and when it may be published.
    pub(super) fn due(&self) -> Option<(Instant, &String)> {
        let due = self.kept.iter().filter_map(|(id, alert)| {
            let (published, at) = alert.published.as_ref()?;
            (alert.state.as_ref() != Some(published)).then_some((*at + FIGURES_EVERY, id))
        });
        due.min()
    }

    /// What is to be published of an alert.
    pub(super) fn payload(&self, id: &str) -> Option<Bytes> {
        Some(self.kept.get(id)?.state.as_ref()?.to_json())
    }

    pub(super) fn published(&mut self, id: &str, now: Instant) {
        if let Some(alert) = self.kept.get_mut(id) {
            alert.published = alert.state.clone().map(|state| (state, now));
        }
    }
}

impl Alert {
    fn is_urgent(&self) -> bool {
        let grade = |state: &State| (state.is_firing, state.severity.clone(), state.is_muted);
        self.state.as_ref().map(grade) != self.published.as_ref().map(|(state, _)| grade(state))
    }
}

impl From<Echo> for State {
    fn from(echo: Echo) -> Self {
        let Echo { function, key, severity, status, summary, value, topic, labels, muted } = echo;
        let [key, severity, summary, topic] = [key, severity, summary, topic].map(cut);
        Self {
            is_firing: status == "firing",
            function: function.into(),
            key,
            severity,
            value,
            summary,
            topic,
            labels: labels.into_iter().take(MAX_LABELS).map(|(name, value)| (cut(name), cut(value))).collect(),
            is_muted: muted,
        }
    }
}

impl State {
    fn to_json(&self) -> Bytes {
        let json = json!({
            "firing": self.is_firing,
            "function": self.function,
            "key": self.key,
            "severity": self.severity,
            "value": self.value,
            "summary": self.summary,
            "topic": self.topic,
            "labels": self.labels,
            "muted": self.is_muted,
        });
        json.to_string().into()
    }
}

/// The beginning of a text.
pub(super) fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_TEXT));
    text
}
