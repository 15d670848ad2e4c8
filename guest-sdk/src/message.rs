use alloc::string::String;
use alloc::vec::Vec;

use crate::{Failure, Message, json, text};

/// Reading what sensors send. A field is found by its name without regard to case, at any depth, the one nearest to the
/// top first; `sensor.temperature` names a member of a member. A payload that is just a value has every name. So
/// `number("temperature")` reads `21.5` (ESPHome), `{"temperature":21.5}` (Zigbee2MQTT) and
/// `{"DS18B20":{"Temperature":21.5}}` (Tasmota).
impl Message {
    /// A number, or a string that holds one. `None` when the message has no such field.
    pub fn number(&self, field: &str) -> Option<f64> {
        json::number(&self.payload, field)
    }

    /// Like [`number`](Self::number), and a message without it is rejected.
    pub fn require_number(&self, field: &str) -> Result<f64, Failure> {
        self.number(field).ok_or_else(|| Failure::reject(text!("the payload has no number \"", field, "\"")))
    }

    /// `true`, `on`, `1` or `false`, `off`, `0`, in any case, quoted or not.
    pub fn boolean(&self, field: &str) -> Option<bool> {
        json::boolean(&self.payload, field)
    }

    /// A string.
    pub fn text(&self, field: &str) -> Option<String> {
        json::text(&self.payload, field)
    }

    /// The value of the first MQTT 5 user property with this name.
    pub fn property(&self, name: &str) -> Option<&str> {
        self.properties.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// One level of the topic, counted from 0.
    pub fn topic_level(&self, level: usize) -> Option<&str> {
        self.topic.split('/').nth(level)
    }

    /// Whether this is a tick of the manifest's `every` and not a message from the broker.
    pub fn is_tick(&self) -> bool {
        self.topic.starts_with("$timer/")
    }

    /// A message as tests need it: everything but topic and payload has its usual value.
    pub fn new(topic: impl Into<String>, payload: impl Into<Vec<u8>>) -> Self {
        Self {
            topic: topic.into(),
            payload: payload.into(),
            content_type: None,
            properties: Vec::new(),
            received_at_ms: 0,
            clock_synced: true,
            attempt: 1,
        }
    }
}
