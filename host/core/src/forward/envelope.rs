//! Records as they are sent: a topic, the function's payload, and CloudEvents 1.0 attributes in binary mode.
//!
//! Attributes are user properties in MQTT and headers in HTTP. A record keeps its `id` however often it is sent, so that
//! receivers can drop duplicates. What ends loops among functions is no attribute, and only in MQTT.

use std::borrow::Cow;

use bytes::Bytes;
use serde_json::json;

use crate::store::{Gap, Record, StoredRecord};
use crate::stream::Stream;
use crate::time::rfc3339;

/// User property of publications: how many functions the message passed. The intake reads it to end loops, also those by
/// way of upstream.
pub const HOPS: &str = "sedge-hops";

/// User property of publications: how many further ones the message may cause. A function that needs more fails.
pub const FAN_OUT: &str = "sedge-fan-out";

/// One message to send.
#[derive(Clone, Debug, PartialEq)]
pub struct Envelope {
    pub topic: String,
    pub payload: Bytes,
    pub content_type: Option<Box<str>>,
    pub properties: Vec<(&'static str, Cow<'static, str>)>,
    pub retain: bool,
}

/// Builds envelopes for the records and gaps of one store and receiver.
#[derive(Clone, Debug)]
pub(crate) struct EnvelopeBuilder {
    store_id: Box<str>,
    /// `sedge/<node>`.
    source: Box<str>,
    topic_prefix: Box<str>,
}

impl EnvelopeBuilder {
    /// `topic_prefix`: of upstream. Local publications have none.
    pub(crate) fn new(store_id: &str, node: &str, topic_prefix: &str) -> Self {
        let source = format!("sedge/{node}");
        Self { store_id: store_id.into(), source: source.into(), topic_prefix: topic_prefix.into() }
    }

    pub(crate) fn record(&self, stored: &StoredRecord) -> Envelope {
        let StoredRecord { id, record } = stored;
        let id = format!("{}-{}-{id}", self.store_id, letter(record.stream));
        match record.stream {
            Stream::Alert => self.upstream(id, "io.sedge.alert", record),
            Stream::Data => self.upstream(id, "io.sedge.data", record),
            Stream::Local => Envelope {
                topic: record.topic.to_string(),
                payload: record.payload.clone(),
                content_type: record.content_type.clone(),
                properties: vec![
                    ("id", id.into()),
                    (HOPS, record.hops.to_string().into()),
                    (FAN_OUT, record.fan_out.to_string().into()),
                ],
                retain: record.retain,
            },
        }
    }

    pub(crate) fn gap(&self, gap: &Gap) -> Envelope {
        let letter = letter(gap.stream);
        // No record is lost twice, so no two gaps of a stream begin with the same one.
        let id = format!("{}-g-{letter}-{}-{}", self.store_id, gap.first_id, gap.last_id);
        let payload = json!({
            "stream": gap.stream.as_str(),
            "reason": gap.reason,
            "first_id": format!("{}-{letter}-{}", self.store_id, gap.first_id),
            "last_id": format!("{}-{letter}-{}", self.store_id, gap.last_id),
            "records": gap.records,
            "bytes": gap.bytes,
            "first_at": rfc3339(gap.first_at_ms),
            "last_at": rfc3339(gap.last_at_ms),
        });
        Envelope {
            topic: format!("{}gaps", self.topic_prefix),
            payload: payload.to_string().into(),
            content_type: Some("application/json".into()),
            properties: self.attributes(id, "io.sedge.gap", gap.last_at_ms),
            retain: false,
        }
    }

    fn upstream(&self, id: String, kind: &'static str, record: &Record) -> Envelope {
        let mut properties = self.attributes(id, kind, record.at_ms);
        // Upstream may be, or feed, the broker that this board listens to.
        properties.extend([(HOPS, record.hops.to_string().into()), (FAN_OUT, record.fan_out.to_string().into())]);
        Envelope {
            topic: format!("{}{}", self.topic_prefix, record.topic),
            payload: record.payload.clone(),
            content_type: record.content_type.clone(),
            properties,
            retain: record.retain,
        }
    }

    fn attributes(&self, id: String, kind: &'static str, at_ms: u64) -> Vec<(&'static str, Cow<'static, str>)> {
        vec![
            ("specversion", "1.0".into()),
            ("id", id.into()),
            ("source", self.source.to_string().into()),
            ("type", kind.into()),
            ("time", rfc3339(at_ms).into()),
        ]
    }
}

const fn letter(stream: Stream) -> char {
    match stream {
        Stream::Alert => 'a',
        Stream::Data => 'd',
        Stream::Local => 'l',
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::RecordId;

    impl Envelope {
        pub fn property(&self, name: &str) -> Option<&str> {
            self.properties.iter().find(|(key, _)| *key == name).map(|(_, value)| &**value)
        }
    }

    fn stored(stream: Stream, topic: &str) -> StoredRecord {
        let record = Record {
            stream,
            function: "f".into(),
            topic: topic.into(),
            payload: "{}".into(),
            content_type: Some("application/json".into()),
            retain: true,
            hops: 3,
            fan_out: 70,
            at_ms: 1_386_656_700_250,
        };
        StoredRecord { id: RecordId(42), record }
    }

    #[test]
    fn upstream_records_carry_cloudevents_attributes() {
        let envelope = EnvelopeBuilder::new("k3", "cellar", "up/cellar/").record(&stored(Stream::Alert, "alerts/f"));
        assert_eq!(envelope.topic, "up/cellar/alerts/f");
        let properties: Vec<_> = envelope.properties.iter().map(|(key, value)| (*key, &**value)).collect();
        assert_eq!(
            properties,
            [
                ("specversion", "1.0"),
                ("id", "k3-a-42"),
                ("source", "sedge/cellar"),
                ("type", "io.sedge.alert"),
                ("time", "2013-12-10T06:25:00.250Z"),
                ("sedge-hops", "3"),
                ("sedge-fan-out", "70"),
            ]
        );
        let envelope = EnvelopeBuilder::new("k3", "cellar", "site/7/").record(&stored(Stream::Data, "raw"));
        assert_eq!(envelope.topic, "site/7/raw");
        assert_eq!((envelope.property("id"), envelope.property("type")), (Some("k3-d-42"), Some("io.sedge.data")));
    }

    #[test]
    fn local_publications_keep_their_topic_and_count_hops() {
        let envelope = EnvelopeBuilder::new("k3", "cellar", "x/").record(&stored(Stream::Local, "derived/t"));
        assert_eq!(envelope.topic, "derived/t");
        assert!(envelope.retain);
        assert_eq!(envelope.properties, [("id", "k3-l-42".into()), (HOPS, "3".into()), (FAN_OUT, "70".into())]);
    }

    #[test]
    fn a_gap_says_what_was_lost() {
        let gap = Gap {
            stream: Stream::Data,
            reason: "full".into(),
            first_id: RecordId(812),
            last_id: RecordId(990),
            records: 179,
            bytes: 35_800,
            first_at_ms: 1_000,
            last_at_ms: 61_000,
        };
        let envelope = EnvelopeBuilder::new("k3", "cellar", "up/cellar/").gap(&gap);
        assert_eq!(envelope.topic, "up/cellar/gaps");
        assert_eq!(envelope.property("id"), Some("k3-g-d-812-990"));
        let payload: serde_json::Value = serde_json::from_slice(&envelope.payload).unwrap();
        assert_eq!(
            payload,
            json!({
                "stream": "data", "reason": "full", "first_id": "k3-d-812", "last_id": "k3-d-990", "records": 179,
                "bytes": 35_800, "first_at": "1970-01-01T00:00:01.000Z", "last_at": "1970-01-01T00:01:01.000Z",
            })
        );
    }
}
