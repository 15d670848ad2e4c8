//! The size of a message: bounds that hold before a function runs.
//!
//! What a sender controls beside the payload must not break a function's own limits: its failures would pause the function
//! for every sender.

use std::sync::Arc;

use bytes::Bytes;

use super::input::Delivery;
use crate::message::{Failure, FailureCode, Message};

/// Longest topic of a message that functions run on.
pub(crate) const MAX_TOPIC_BYTES: usize = 1024;
/// Most user properties of a message that functions run on.
pub(crate) const MAX_PROPERTIES: usize = 64;

/// Payloads above this are mostly all of the buffer that they were read into.
const DETACHED_BYTES: usize = 64 << 10;

/// A payload that does not keep alive the buffer of a whole read, of which it is a small part and which nobody counts.
pub(crate) fn detached(payload: Bytes) -> Bytes {
    if payload.len() > DETACHED_BYTES { payload } else { Bytes::copy_from_slice(&payload) }
}

/// The topic as a message keeps it: all of it, or the beginning of one that is too long.
pub(crate) fn bounded_topic(topic: &Arc<str>) -> Arc<str> {
    if topic.len() <= MAX_TOPIC_BYTES {
        Arc::clone(topic)
    } else {
        topic[..topic.floor_char_boundary(MAX_TOPIC_BYTES)].into()
    }
}

/// Sizes of the parts of a message.
#[derive(Clone, Copy, Debug)]
struct Parts {
    topic: usize,
    payload: usize,
    /// Content type, response topic and correlation data.
    attributes: usize,
    properties: usize,
    properties_bytes: usize,
}

/// Why no function runs on a message of this size, with the figure.
pub(crate) fn refuse(delivery: &Delivery, max_payload_bytes: usize) -> Option<Failure> {
    let parts = Parts {
        topic: delivery.topic.len(),
        payload: delivery.payload.len(),
        attributes: [&delivery.content_type, &delivery.response_topic]
            .into_iter()
            .flatten()
            .map(String::len)
            .sum::<usize>()
            + delivery.correlation_data.as_ref().map_or(0, |data| data.len()),
        properties: delivery.properties.len(),
        properties_bytes: delivery.properties.iter().map(|(name, value)| name.len() + value.len()).sum(),
    };
    parts.refuse(max_payload_bytes)
}

/// [`refuse`] for a message that was admitted before.
pub(crate) fn refuse_message(message: &Message, max_payload_bytes: usize) -> Option<Failure> {
    let parts = Parts {
        topic: message.topic.len(),
        payload: message.payload.len(),
        attributes: [&message.content_type, &message.response_topic]
            .into_iter()
            .flatten()
            .map(|it| it.len())
            .sum::<usize>()
            + message.correlation_data.as_ref().map_or(0, |data| data.len()),
        properties: message.properties.len(),
        properties_bytes: message.properties.iter().map(|(name, value)| name.len() + value.len()).sum(),
    };
    parts.refuse(max_payload_bytes)
}

impl Parts {
    fn refuse(self, limit: usize) -> Option<Failure> {
        let Self { topic, payload, attributes, properties, properties_bytes } = self;
        let all = topic + payload + attributes + properties_bytes;
        if all <= limit && topic <= MAX_TOPIC_BYTES && properties <= MAX_PROPERTIES {
            return None;
        }
        let (code, detail) = if topic > MAX_TOPIC_BYTES {
            let detail = format!(
                "the topic has {topic} bytes, the limit is {MAX_TOPIC_BYTES}; the dead letter has its beginning"
            );
            (FailureCode::TopicTooLong, detail)
        } else if properties > MAX_PROPERTIES {
            let detail = format!(
                "{properties} user properties, the limit is {MAX_PROPERTIES}; the dead letter has the first \
                 {MAX_PROPERTIES}"
            );
            (FailureCode::TooManyProperties, detail)
        } else if payload > limit {
            let detail = format!("{payload} bytes, the limit is {limit} (mqtt.max_payload_bytes)");
            (FailureCode::PayloadTooLarge, detail)
        } else {
            let rest = all - payload;
            let detail = format!(
                "{all} bytes: payload {payload}, topic and properties {rest}; the limit for all is {limit} \
                 (mqtt.max_payload_bytes)"
            );
            (FailureCode::PayloadTooLarge, detail)
        };
        Some(Failure { code, detail })
    }
}
