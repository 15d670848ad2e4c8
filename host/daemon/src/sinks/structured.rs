//! Records in the JSON format of CloudEvents 1.0 (structured mode): one object with its attributes and its data.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value};

use sedge_core::forward::Envelope;

/// The object of a record. JSON stays JSON, other text is a string, and bytes are base64.
pub(crate) fn event(envelope: &Envelope) -> Value {
    let mut event = Map::new();
    // What ends loops among functions is no attribute: those have letters and digits only.
    for (name, value) in envelope.properties.iter().filter(|(name, _)| !name.contains('-')) {
        event.insert((*name).to_owned(), Value::from(&**value));
    }
    event.insert("subject".to_owned(), Value::from(&*envelope.topic));
    if let Some(kind) = &envelope.content_type {
        event.insert("datacontenttype".to_owned(), Value::from(&**kind));
    }
    let (key, data) = data(envelope);
    event.insert(key.to_owned(), data);
    Value::Object(event)
}

fn data(envelope: &Envelope) -> (&'static str, Value) {
    if envelope.content_type.as_deref().is_none_or(is_json)
        && let Ok(value) = serde_json::from_slice(&envelope.payload)
    {
        return ("data", value);
    }
    match str::from_utf8(&envelope.payload) {
        // Of a payload that says to be JSON and is not, each byte counts.
        Ok(text) if envelope.content_type.as_deref().is_none_or(|kind| !is_json(kind)) => ("data", Value::from(text)),
        _ => ("data_base64", Value::from(BASE64_STANDARD.encode(&envelope.payload))),
    }
}

fn is_json(kind: &str) -> bool {
    let kind = kind.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("application/json") || kind.to_ascii_lowercase().ends_with("+json")
}
