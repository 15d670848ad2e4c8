//! Arguments and environment of a program: the message without its payload, the settings and the state.

use std::fmt::Write as _;

use serde::de::IgnoredAny;

use crate::host::HostState;
use sedge_core::message::Message;

/// Texts in the layout that programs expect: each ends with a byte 0.
#[derive(Default)]
pub(super) struct Texts {
    bytes: Vec<u8>,
    /// Where each begins.
    starts: Vec<u32>,
}

impl Texts {
    /// Adds a text. One with a byte 0 cannot be passed and is left out.
    fn push(&mut self, text: &str) {
        if text.contains('\0') {
            return;
        }
        self.starts.push(self.bytes.len() as u32);
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes.push(0);
    }

    /// Adds a variable. A name that is empty or has `=` would be read as another.
    fn push_variable(&mut self, name: &str, value: &str) {
        if !name.is_empty() && !name.contains('=') {
            self.push(&format!("{name}={value}"));
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &str> {
        let text = |bytes| str::from_utf8(bytes).expect("only texts were added");
        self.bytes.split(|byte| *byte == 0).take(self.starts.len()).map(text)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn starts(&self) -> &[u32] {
        &self.starts
    }
}

/// Returns the name of the function and the topic.
pub(super) fn arguments(name: &str, message: &Message) -> Texts {
    let mut texts = Texts::default();
    texts.push(name);
    texts.push(&message.topic);
    texts
}

/// Names that begin so are the board's own. A setting cannot have one, and so cannot pass for a part of the message.
const OWN: &str = "SEDGE_";

pub(super) fn of(message: &Message, host: &HostState) -> Texts {
    let mut texts = Texts::default();
    texts.push_variable("SEDGE_TOPIC", &message.topic);
    texts.push_variable("SEDGE_RECEIVED_AT_MS", &message.received_at_ms.to_string());
    texts.push_variable("SEDGE_CLOCK_SYNCED", &message.clock_synced.to_string());
    texts.push_variable("SEDGE_ATTEMPT", &message.attempt.to_string());
    texts.push_variable("SEDGE_RETAINED", &message.retained.to_string());
    if let Some(content_type) = &message.content_type {
        texts.push_variable("SEDGE_CONTENT_TYPE", content_type);
    }
    if let Some(topic) = &message.response_topic {
        texts.push_variable("SEDGE_RESPONSE_TOPIC", topic);
    }
    if let Some(data) = &message.correlation_data {
        let hex = data.iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        texts.push_variable("SEDGE_CORRELATION_DATA", &hex);
    }
    // The sender chooses the names, and may repeat them. Programs read the first.
    for (name, value) in &message.properties {
        texts.push_variable(&format!("SEDGE_PROPERTY_{name}"), value);
    }
    if host.limits.state_bytes > 0 {
        texts.push_variable("SEDGE_STATE", &state(host));
    }
    for (name, value) in host.settings.iter().filter(|(name, _)| !name.starts_with(OWN)) {
        texts.push_variable(name, value);
    }
    texts
}

/// Returns the state of the scope as one JSON object. A value that is not JSON is a string, and one that is not text is left out.
fn state(host: &HostState) -> String {
    let mut object = String::from("{");
    for (key, value) in host.view.stored() {
        let Ok(value) = str::from_utf8(value) else { continue };
        let separator = if object.len() > 1 { "," } else { "" };
        let _ = match serde_json::from_str::<IgnoredAny>(value) {
            Ok(_) => write!(object, "{separator}{}:{}", quoted(key), value.trim_ascii()),
            Err(_) => write!(object, "{separator}{}:{}", quoted(key), quoted(value)),
        };
    }
    object.push('}');
    object
}

fn quoted(text: &str) -> serde_json::Value {
    text.into()
}
