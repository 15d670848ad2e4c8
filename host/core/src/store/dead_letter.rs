//! JSON of dead letters, as the command line prints them and the page's API answers.

use serde_json::{Value, json};

use super::commit::{DeadLetter, DeadLetterId};
use crate::text::hex;
use crate::time::rfc3339;

impl DeadLetter {
    pub fn to_json(&self, id: DeadLetterId) -> Value {
        let Self { function, version, message, failure, usage, at_ms } = self;
        // Text and hex have different names, so that neither is mistaken for the other.
        let (text, digits) = match str::from_utf8(&message.payload) {
            Ok(text) => (Some(text), None),
            Err(_) => (None, Some(hex(&message.payload))),
        };
        json!({
            "id": id.0,
            "at": rfc3339(*at_ms),
            "function": &**function,
            "version": &**version,
            "reason": failure.code.as_str(),
            "detail": failure.detail,
            "usage": {
                "fuel": usage.fuel,
                "elapsed_us": usage.elapsed_us,
                "memory_bytes": usage.memory_bytes,
                "output_bytes": usage.output_bytes,
            },
            "message": {
                "topic": &*message.topic,
                "payload": text,
                "payload_hex": digits,
                "content_type": message.content_type,
                "properties": message.properties,
                "received_at": rfc3339(message.received_at_ms),
                "clock_synced": message.clock_synced,
                "attempt": message.attempt,
                "retained": message.retained,
                "response_topic": message.response_topic,
                "correlation_data_hex": message.correlation_data.as_deref().map(hex),
            },
        })
    }
}
