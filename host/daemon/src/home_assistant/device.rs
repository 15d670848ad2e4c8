//! The device that Home Assistant is told of: one description with all components of the board.
//!
//! The format is that of device discovery (Home Assistant 2024.11 and later). Names and texts of functions and messages are
//! data in it and never part of a template.

use std::collections::BTreeMap;

use ring::digest::{SHA256, digest};
use serde_json::{Map, Value, json};

use sedge_core::config::Node;
use sedge_core::text::hex;

/// Characters of a name that Home Assistant shows.
const MAX_NAME: usize = 60;

/// Platforms of components by their ids.
pub(super) type Components = BTreeMap<String, String>;

#[derive(Debug)]
pub(super) struct Device {
    node: String,
    /// `<base>/<node>`.
    base: String,
    id: String,
    pub(super) config_topic: String,
}

/// What the board has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts<'a> {
    pub(super) functions: &'a [&'a str],
    pub(super) sinks: &'a [String],
    /// Ids and names of alerts.
    pub(super) alerts: &'a [(&'a str, &'a str)],
}

impl Device {
    pub(super) fn new(node: &Node, prefix: &str) -> Self {
        let Node { name, base_topic, .. } = node;
        let (level, of) = (id_of(base_topic), id_of(name));
        Self {
            node: name.clone(),
            base: format!("{base_topic}/{name}"),
            config_topic: format!("{prefix}/device/{level}/{of}/config"),
            id: format!("{level}_{of}"),
        }
    }

    pub(super) fn summary_topic(&self) -> String {
        format!("{}/status/summary", self.base)
    }

    pub(super) fn alert_topic(&self, id: &str) -> String {
        format!("{}/status/alerts/{id}", self.base)
    }

    /// The description. `gone`: components that Home Assistant is to remove, which it knows by a platform alone.
    pub(super) fn config(&self, parts: Parts<'_>, gone: &Components) -> Value {
        let mut components = self.components(parts);
        for (id, platform) in gone {
            components.entry(id.clone()).or_insert_with(|| json!({ "platform": platform }));
        }
        let version = env!("CARGO_PKG_VERSION");
        json!({
            "device": {
                "identifiers": [self.id], "name": self.node, "manufacturer": "Sedge", "model": "Function host",
                "sw_version": version,
            },
            "origin": { "name": "Sedge", "sw_version": version },
            "availability": [{
                "topic": format!("{}/status", self.base), "value_template": "{{ value_json.state }}",
                "payload_available": "online", "payload_not_available": "offline",
            }],
            "qos": 1,
            "components": components,
        })
    }

    /// Platforms of the components of a description.
    pub(super) fn platforms(&self, parts: Parts<'_>) -> Components {
        let platform = |component: &Value| component["platform"].as_str().unwrap_or("").to_owned();
        self.components(parts).iter().map(|(id, component)| (id.clone(), platform(component))).collect()
    }

    fn components(&self, parts: Parts<'_>) -> Map<String, Value> {
        let Parts { functions, sinks, alerts } = parts;
        let mut all = self.board();
        all.extend(functions.iter().map(|name| self.function(name)));
        all.extend(sinks.iter().map(|name| self.sink(name)));
        all.extend(alerts.iter().map(|(id, name)| self.alert(id, name)));
        let identify = |(id, mut component): (String, Value)| {
            component["unique_id"] = json!(format!("{}_{id}", self.id));
            (id, component)
        };
        all.into_iter().map(identify).collect()
    }

    fn board(&self) -> Vec<(String, Value)> {
        let status = format!("{}/status", self.base);
        let connected = json!({
            "platform": "binary_sensor", "name": "Connected", "device_class": "connectivity",
            "entity_category": "diagnostic", "state_topic": status,
            "value_template": "{{ 'ON' if value_json.state == 'online' else 'OFF' }}",
            // A board that is away is off, not unknown.
            "availability": [],
        });
        let problem = json!({
            "platform": "binary_sensor", "name": "Problem", "device_class": "problem", "entity_category": "diagnostic",
            "state_topic": status, "value_template": "{{ 'ON' if value_json.problem is defined else 'OFF' }}",
            "json_attributes_topic": status,
            "json_attributes_template": "{{ {'problem': value_json.problem | default(none)} | tojson }}",
        });
        let dead_letters = json!({
            "platform": "sensor", "name": "Dead letters", "icon": "mdi:email-alert", "state_class": "measurement",
            "unit_of_measurement": "messages", "entity_category": "diagnostic", "state_topic": self.summary_topic(),
            "value_template": "{{ value_json.dead_letters }}",
        });
        [("connected", connected), ("problem", problem), ("dead_letters", dead_letters)].map(owned).into()
    }

    /// Attributes as the board reports them. An empty report, which removes one, is a template's `undefined`. `name` has no
    /// characters that a template could take for its own.
    fn function(&self, name: &str) -> (String, Value) {
        let topic = format!("{}/functions/{name}", self.base);
        let component = json!({
            "platform": "binary_sensor", "name": format!("Function {name}"), "device_class": "problem",
            "entity_category": "diagnostic", "state_topic": self.summary_topic(), "json_attributes_topic": topic,
            "value_template": format!("{{{{ 'ON' if '{name}' in value_json.problems else 'OFF' }}}}"),
            "json_attributes_template": "{% set it = value_json | default({}) %}{{ {'deploy_state': it.state | \
                default(none), 'version': (it.active | default({}, true)).version | default(none), 'reason': \
                it.reason | default(none), 'error': it.error | default(none)} | tojson }}",
        });
        (format!("function_{name}"), component)
    }

    /// A name of a sink is as harmless.
    fn sink(&self, name: &str) -> (String, Value) {
        let component = json!({
            "platform": "binary_sensor", "name": format!("Sink {name}"), "device_class": "connectivity",
            "entity_category": "diagnostic", "state_topic": self.summary_topic(),
            "value_template": format!("{{{{ 'ON' if value_json.sinks['{name}'] else 'OFF' }}}}"),
        });
        (format!("sink_{name}"), component)
    }

    fn alert(&self, id: &str, name: &str) -> (String, Value) {
        let topic = self.alert_topic(id);
        let component = json!({
            "platform": "binary_sensor", "name": name, "device_class": "problem", "state_topic": topic,
            "value_template": "{{ 'ON' if value_json.firing else 'OFF' }}", "json_attributes_topic": topic,
        });
        (alert_component(id), component)
    }
}

pub(super) fn alert_component(id: &str) -> String {
    format!("alert_{id}")
}

fn owned((id, component): (&str, Value)) -> (String, Value) {
    (id.to_owned(), component)
}

/// The id of an alert: its key may hold anything, and ids are levels of topics.
pub(super) fn alert_id(function: &str, key: &str) -> String {
    short_hash(&format!("{function}\0{key}"))
}

/// Name of an alert: what Home Assistant shows, without characters that would reorder it.
pub(super) fn alert_name(function: &str, key: &str) -> String {
    let printable = |c: &char| !sedge_core::text::is_unprintable(*c);
    let name = match key {
        "" => function.to_owned(),
        key => format!("{function}: {key}"),
    };
    name.chars().filter(printable).take(MAX_NAME).collect()
}

/// Home Assistant takes letters, digits, `-` and `_` in the topic. Names that have others stay apart by a hash.
fn id_of(name: &str) -> String {
    let is_good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if name.chars().all(is_good) {
        return name.to_owned();
    }
    let shown: String = name.chars().map(|c| if is_good(c) { c } else { '_' }).take(MAX_NAME).collect();
    format!("{shown}-{}", short_hash(name))
}

fn short_hash(text: &str) -> String {
    hex(&digest(&SHA256, text.as_bytes()).as_ref()[..8])
}
