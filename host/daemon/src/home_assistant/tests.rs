//! What is published for Home Assistant, against the keys that its validation takes.

#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use super::device::{alert_component, alert_id};
use super::*;

/// The broker: what it retains, the number of messages, and for how many it has room.
struct Broker {
    retained: RefCell<BTreeMap<String, Bytes>>,
    sent: RefCell<Vec<String>>,
    room: Cell<usize>,
}

impl Default for Broker {
    fn default() -> Self {
        Self { retained: RefCell::default(), sent: RefCell::default(), room: Cell::new(usize::MAX) }
    }
}

impl Publisher for Broker {
    fn publish(&self, publication: Publication<'_>) -> Result<(), Full> {
        self.room.set(self.room.get().checked_sub(1).ok_or(Full)?);
        assert!(publication.retain, "{}", publication.topic);
        self.sent.borrow_mut().push(publication.topic.to_owned());
        match publication.payload.is_empty() {
            true => self.retained.borrow_mut().remove(publication.topic),
            false => self.retained.borrow_mut().insert(publication.topic.to_owned(), publication.payload),
        };
        Ok(())
    }
}

impl Broker {
    fn json(&self, topic: &str) -> Value {
        let retained = self.retained.borrow();
        serde_json::from_slice(retained.get(topic).unwrap_or_else(|| panic!("{topic}: {:?}", retained.keys()))).unwrap()
    }

    fn description(&self) -> Value {
        self.json(CONFIG)
    }

    fn components(&self) -> Vec<String> {
        let of = |(id, it): (&String, &Value)| match it.as_object().unwrap().len() {
            1 => format!("-{id}"),
            _ => id.clone(),
        };
        self.description()["components"].as_object().unwrap().iter().map(of).collect()
    }
}

const CONFIG: &str = "homeassistant/device/sedge/cold-room/config";
const SUMMARY: &str = "sedge/cold-room/status/summary";

/// A board at some time, with its broker and what its store remembers.
struct Rig {
    home: HomeAssistant,
    broker: Broker,
    stats: Arc<Stats>,
    now: Instant,
    noted: Option<Bytes>,
}

fn config(discovery: bool) -> Config {
    let text = format!(
        "[node]\nname = \"cold-room\"\n[upstream]\nurl = \"mqtt://up\"\n[home_assistant]\ndiscovery = {discovery}"
    );
    let (config, problems) = Config::parse(&text, Path::new("sedge.toml"));
    assert!(!problems.has_errors());
    config
}

fn open(discovery: bool, noted: Option<&Bytes>, stats: &Arc<Stats>) -> Option<HomeAssistant> {
    HomeAssistant::new(&config(discovery), noted, &Arc::new(Metrics::new(0)), stats)
}

impl Rig {
    fn new() -> Self {
        let stats = Arc::new(Stats::default());
        let home = open(true, None, &stats).unwrap();
        let mut rig = Self { home, broker: Broker::default(), stats, now: Instant::now(), noted: None };
        rig.home.connected(rig.now);
        rig
    }

    /// The daemon ends and starts again.
    fn restart(self, discovery: bool) -> Option<Self> {
        let home = open(discovery, self.noted.as_ref(), &self.stats)?;
        let mut rig = Self { home, ..self };
        rig.home.connected(rig.now);
        Some(rig)
    }

    /// Time passes, and the broker answers.
    fn pass(&mut self, secs: u64) -> &mut Self {
        for _ in 0..secs {
            self.now += Duration::from_secs(1);
            self.home.flush(&self.broker, self.now);
            for _ in 0..self.home.unanswered {
                self.home.answered(&PublishResult::Accepted);
            }
            self.noted = self.home.take_note().or(self.noted.take());
        }
        self
    }

    fn report(&mut self, function: &str, is_installed: bool) -> &mut Self {
        self.report_as(function, is_installed, "active")
    }

    fn report_as(&mut self, function: &str, is_installed: bool, state: &str) -> &mut Self {
        let version = json!({ "version": "1", "serial": 1, "digest": "00".repeat(32), "manifest": {} });
        let report = json!({
            "function": function, "state": state, "active": is_installed.then_some(version), "previous": null,
            "at_ms": 0, "clock_synced": true,
        });
        self.home.report(&function.into(), &report.to_string().into(), self.now);
        self
    }

    fn alert(&mut self, function: &str, key: &str, status: &str, value: f64) -> Result<(), Full> {
        let payload = json!({
            "node": "cold-room", "function": function, "version": "1", "topic": "t/1", "key": key, "severity": "critical",
            "status": status, "summary": "too \u{202e}warm", "value": value, "labels": [["room", "2"]], "at_ms": 5,
            "clock_synced": true,
        });
        let envelope = Envelope {
            topic: format!("sedge/cold-room/alerts/{function}"),
            payload: payload.to_string().into(),
            content_type: None,
            properties: Vec::new(),
            retain: false,
            at_ms: 5,
            clock_synced: true,
        };
        self.home.echo(&self.broker, &envelope, self.now)
    }

    fn sent(&self) -> usize {
        self.broker.sent.borrow().len()
    }
}

fn alert_topic(function: &str, key: &str) -> String {
    format!("sedge/cold-room/status/alerts/{}", alert_id(function, key))
}

/// Keys that `DEVICE_DISCOVERY_SCHEMA` and the schemas of platforms of Home Assistant 2026.11.0 take, of those that are used.
/// Unknown keys of a device are an error there.
const TOP: &[&str] = &["availability", "components", "device", "origin", "qos"];
const OF_DEVICE: &[&str] = &["identifiers", "manufacturer", "model", "name", "sw_version"];
const OF_ORIGIN: &[&str] = &["name", "sw_version"];
const OF_AVAILABILITY: &[&str] = &["payload_available", "payload_not_available", "topic", "value_template"];
const OF_ANY: &[&str] = &[
    "availability",
    "device_class",
    "entity_category",
    "icon",
    "json_attributes_template",
    "json_attributes_topic",
    "name",
    "platform",
    "state_topic",
    "unique_id",
    "value_template",
];
const OF_SENSOR: &[&str] = &["state_class", "unit_of_measurement"];

fn keys_are(value: &Value, known: &[&[&str]], required: &[&str]) {
    let object = value.as_object().unwrap();
    for key in object.keys() {
        assert!(known.iter().any(|known| known.contains(&&**key)), "{key} in {value}");
    }
    required.iter().for_each(|key| assert!(object.contains_key(*key), "{key} of {value}"));
}

#[test]
fn a_description_has_what_home_assistant_asks_for_and_nothing_that_it_refuses() {
    let mut rig = Rig::new();
    rig.report("freezer", true).report("old", true).report("_keys", true).report("unknown", false);
    rig.alert("freezer", "room/{{ 7 * 7 }}\u{202e}", "firing", 8.5).unwrap();
    rig.pass(5).report("old", false).pass(5);
    let description = rig.broker.description();
    if let Some(path) = std::env::var_os("SEDGE_WRITE_HOME_ASSISTANT") {
        let retained = rig.broker.retained.borrow();
        let retained: Vec<_> =
            retained.iter().map(|(topic, payload)| (topic, String::from_utf8_lossy(payload))).collect();
        std::fs::write(path, serde_json::to_vec(&retained).unwrap()).unwrap();
    }
    keys_are(&description, &[TOP], &["device", "origin", "components"]);
    keys_are(&description["device"], &[OF_DEVICE], &["identifiers"]);
    keys_are(&description["origin"], &[OF_ORIGIN], &["name"]);
    description["availability"].as_array().unwrap().iter().for_each(|it| keys_are(it, &[OF_AVAILABILITY], &["topic"]));
    let alert = alert_component(&alert_id("freezer", "room/{{ 7 * 7 }}\u{202e}"));
    let expected =
        [&*alert, "connected", "dead_letters", "function_freezer", "-function_old", "problem", "sink_upstream"];
    assert_eq!(rig.broker.components(), expected);
    let components = description["components"].as_object().unwrap();
    let mut ids = BTreeSet::new();
    for (id, component) in components.iter().filter(|(id, _)| *id != "function_old") {
        assert!(id.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-'), "{id}");
        match component["platform"].as_str().unwrap() {
            "binary_sensor" => {
                keys_are(component, &[OF_ANY], &["state_topic", "unique_id", "name"]);
                assert!(["connectivity", "problem"].contains(&component["device_class"].as_str().unwrap()), "{id}");
            }
            "sensor" => keys_are(component, &[OF_ANY, OF_SENSOR], &["state_topic", "unique_id", "name"]),
            other => panic!("{other}"),
        }
        assert!(component.get("entity_category").is_none_or(|it| *it == "diagnostic"), "{id}");
        ids.insert(component["unique_id"].as_str().unwrap());
    }
    assert_eq!(ids.len(), components.len() - 1);
    // Texts of messages are in names and states, and in no template.
    assert_eq!(components[&alert]["name"], "freezer: room/{{ 7 * 7 }}");
    assert!(!components.values().any(|it| it["value_template"].to_string().contains("room")));
    let state = rig.broker.json(&alert_topic("freezer", "room/{{ 7 * 7 }}\u{202e}"));
    let [firing, severity, value, room] =
        [&state["firing"], &state["severity"], &state["value"], &state["labels"]["room"]];
    assert_eq!((firing, severity, value, room), (&json!(true), &json!("critical"), &json!(8.5), &json!("2")));
    assert_eq!(rig.broker.json(SUMMARY), json!({ "sinks": {}, "dead_letters": 0, "problems": {} }));
}

#[test]
fn only_changes_are_published() {
    let mut rig = Rig::new();
    rig.report("freezer", true).pass(10);
    let before = rig.sent();
    rig.report("freezer", true).pass(120);
    assert_eq!(rig.sent(), before, "{:?}", rig.broker.sent);
    rig.stats.dead_letters.store(3, Relaxed);
    rig.pass(5);
    assert_eq!((rig.sent(), &rig.broker.json(SUMMARY)["dead_letters"]), (before + 1, &json!(3)));
    rig.alert("freezer", "a", "firing", 1.0).unwrap();
    rig.pass(10);
    let before = rig.sent();
    for n in 0..50 {
        rig.alert("freezer", "a", "firing", f64::from(n)).unwrap();
        rig.pass(1);
    }
    assert_eq!(rig.sent() - before, 5, "figures are published every ten seconds");
    rig.pass(10);
    assert_eq!(rig.broker.json(&alert_topic("freezer", "a"))["value"], json!(49.0), "the last one is not lost");
    rig.home.connected(rig.now);
    rig.pass(5);
    let again = rig.broker.sent.borrow()[before + 6..].to_vec();
    assert_eq!(again, [&*alert_topic("freezer", "a"), SUMMARY, CONFIG], "a new connection");
    assert!(rig.home.heard(b"homeassistant/status", b"online", false, rig.now));
    assert_eq!(rig.pass(5).sent(), before + 12, "Home Assistant has started");
    assert!(rig.home.heard(b"homeassistant/status", b"offline", false, rig.now));
    assert!(!rig.home.heard(b"homeassistant/status/x", b"online", false, rig.now));
    assert_eq!(rig.pass(5).sent(), before + 12);
}

#[test]
fn a_function_that_is_paused_for_topics_or_whose_latest_version_was_refused_has_a_problem() {
    let mut rig = Rig::new();
    rig.report("door", true).report_as("freezer", true, "rolled-back").pass(5);
    assert_eq!(rig.broker.json(SUMMARY)["problems"], json!({ "freezer": "rolled-back" }));
    rig.home.metrics.function(&"door".into()).paused_topics.set(2);
    rig.report("freezer", true).pass(5);
    let expected = json!({ "door": "paused for 2 topics, because it kept failing" });
    assert_eq!(rig.broker.json(SUMMARY)["problems"], expected);
    rig.home.metrics.function(&"door".into()).paused_topics.set(0);
    rig.pass(5);
    assert_eq!(rig.broker.json(SUMMARY)["problems"], json!({}));
}

#[test]
fn what_goes_is_withdrawn_by_its_platform_also_after_a_restart() {
    let mut rig = Rig::new();
    rig.report("freezer", true).report("door", true);
    rig.alert("freezer", "a", "firing", 1.0).unwrap();
    rig.pass(5).report("freezer", false).pass(5);
    let gone = format!("-{}", alert_component(&alert_id("freezer", "a")));
    for expected in [&*gone, "-function_freezer", "function_door"] {
        assert!(rig.broker.components().iter().any(|id| id == expected), "{expected}: {:?}", rig.broker.components());
    }
    assert!(!rig.broker.retained.borrow().contains_key(&alert_topic("freezer", "a")));

    let mut rig = rig.restart(true).unwrap();
    rig.pass(5);
    assert!(rig.broker.components().contains(&"function_door".to_owned()), "its report may still come");
    assert!(!rig.broker.components().contains(&"-function_freezer".to_owned()), "that was withdrawn");
    rig.pass(40);
    assert!(rig.broker.components().contains(&"-function_door".to_owned()), "it was removed while the daemon was off");
}

#[test]
fn discovery_that_is_switched_off_leaves_nothing_at_the_broker() {
    let mut rig = Rig::new();
    rig.report("freezer", true);
    rig.alert("freezer", "a", "firing", 1.0).unwrap();
    rig.pass(5);
    assert_eq!(rig.broker.retained.borrow().len(), 3);
    let mut rig = rig.restart(false).unwrap();
    rig.pass(5);
    assert!(rig.broker.retained.borrow().is_empty(), "{:?}", rig.broker.retained);
    assert!(rig.restart(false).is_none(), "and then it costs nothing");
    assert!(open(false, None, &Arc::default()).is_none());
}

#[test]
fn the_echo_of_an_alert_that_begins_waits_until_there_is_room_for_both() {
    let mut rig = Rig::new();
    rig.pass(5);
    rig.broker.room.set(0);
    assert_eq!(rig.alert("freezer", "a", "firing", 1.0), Err(Full));
    rig.broker.room.set(usize::MAX);
    assert_eq!(rig.alert("freezer", "a", "firing", 1.0), Ok(()));
    rig.broker.room.set(0);
    assert_eq!(rig.alert("freezer", "a", "firing", 2.0), Ok(()), "figures may come later");
    assert_eq!(rig.alert("freezer", "a", "resolved", 2.0), Err(Full));
    rig.broker.room.set(usize::MAX);
    assert_eq!(rig.alert("freezer", "a", "resolved", 2.0), Ok(()));
    assert_eq!(rig.broker.json(&alert_topic("freezer", "a"))["firing"], json!(false));
}

#[test]
fn alerts_are_bounded_and_those_that_fire_keep_their_places() {
    let mut rig = Rig::new();
    for n in 0..alerts::MAX_ALERTS {
        rig.alert("freezer", &format!("key {n}"), "firing", 1.0).unwrap();
    }
    rig.alert("freezer", "one too many", "firing", 1.0).unwrap();
    rig.pass(5);
    let count = |rig: &Rig, mark: &str| {
        rig.broker.components().iter().filter(|id| id.starts_with(&format!("{mark}alert_"))).count()
    };
    assert_eq!((count(&rig, ""), count(&rig, "-")), (alerts::MAX_ALERTS, 0));
    assert!(!rig.broker.retained.borrow().contains_key(&alert_topic("freezer", "one too many")));
    rig.alert("freezer", "never fired", "resolved", 1.0).unwrap();
    rig.alert("freezer", "key 7", "resolved", 1.0).unwrap();
    rig.alert("freezer", "one too many", "firing", 1.0).unwrap();
    rig.pass(5);
    assert_eq!((count(&rig, ""), count(&rig, "-")), (alerts::MAX_ALERTS, 1));
    assert!(!rig.broker.retained.borrow().contains_key(&alert_topic("freezer", "key 7")), "it made room");
    assert!(rig.broker.retained.borrow().contains_key(&alert_topic("freezer", "one too many")));
    let bytes = rig.broker.retained.borrow()[CONFIG].len();
    assert!(bytes < 64 << 10, "{bytes} bytes");
}

#[test]
fn names_that_home_assistant_does_not_take_stay_apart() {
    let device = |name: &str| Device::new(&sedge_core::config::Node::new(name), "homeassistant").config_topic;
    assert_eq!(device("pump-3"), "homeassistant/device/sedge/pump-3/config");
    assert_ne!(device("pump.3"), device("pump 3"));
    for name in ["pump.3", "Kühlraum", "a b"] {
        let topic = device(name);
        let id = topic.split('/').nth(3).unwrap();
        assert!(id.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-'), "{topic}");
    }
}
