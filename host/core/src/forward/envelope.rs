//! Records as they are sent: a topic, the function's payload, and CloudEvents 1.0 attributes in binary mode.
//!
//! Attributes are user properties in MQTT and headers in HTTP. A record keeps its `id` however often it is sent, so that
//! receivers can drop duplicates. What ends loops among functions, and the trace of a message, are no attributes.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use serde_json::json;

use crate::fold::{Fold, THINNED};
use crate::store::{Gap, Record, RecordId, Recovered, StoredRecord};
use crate::stream::{SinkId, Stream, StreamKind};
use crate::time::rfc3339;
use crate::trace::{SpanId, TRACEPARENT, TRACESTATE};

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
    /// Unix time of the record in milliseconds, and whether the clock was synchronised then. Receivers are not sent these.
    pub at_ms: u64,
    pub clock_synced: bool,
}

impl Envelope {
    pub fn property(&self, name: &str) -> Option<&str> {
        self.properties.iter().find(|(key, _)| *key == name).map(|(_, value)| &**value)
    }
}

/// Builds envelopes for the records and gaps of one store and receiver.
#[derive(Clone, Debug)]
pub(crate) struct EnvelopeBuilder {
    store_id: Box<str>,
    /// `sedge/<node>`.
    source: Box<str>,
    topic_prefix: Box<str>,
    /// Of all sinks that the store knows.
    names: Vec<(SinkId, Box<str>)>,
}

impl EnvelopeBuilder {
    /// `topic_prefix`: of the sink. Local publications have none.
    pub(crate) fn new(recovered: &Recovered, node: &str, topic_prefix: &str) -> Self {
        let source = format!("sedge/{node}");
        let (store_id, topic_prefix) = (recovered.store_id.as_str().into(), topic_prefix.into());
        let names = recovered.sinks.iter().map(|sink| (sink.id, sink.name.clone())).collect();
        Self { store_id, source: source.into(), topic_prefix, names }
    }

    /// The id of a record, as receivers see it.
    pub(crate) fn id(&self, stream: Stream, id: RecordId) -> String {
        format!("{}-{}-{id}", self.store_id, Letter(stream))
    }

    pub(crate) fn record(&self, stored: &StoredRecord) -> Envelope {
        let StoredRecord { id, record } = stored;
        if let Some(fold) = record.is_folded.then(|| Fold::decode(&record.payload)).flatten() {
            return self.fold(&fold, record);
        }
        let id = self.id(record.stream, *id);
        let mut envelope = match record.stream.kind() {
            StreamKind::Alert => self.upstream(id, "io.sedge.alert", record),
            StreamKind::Data => self.upstream(id, "io.sedge.data", record),
            StreamKind::Local => Envelope {
                topic: record.topic.to_string(),
                payload: record.payload.clone(),
                content_type: record.content_type.clone(),
                properties: vec![
                    ("id", id.into()),
                    (HOPS, record.hops.to_string().into()),
                    (FAN_OUT, record.fan_out.to_string().into()),
                ],
                retain: record.retain,
                at_ms: record.at_ms,
                clock_synced: record.clock_synced,
            },
        };
        if let Some(trace) = &record.trace {
            // What is recorded has a span of its own.
            let span_id = match trace.is_recorded() {
                true => SpanId::of_sending(trace.span_id, record.stream, stored.id),
                false => trace.span_id,
            };
            envelope.properties.push((TRACEPARENT, trace.traceparent(span_id).into()));
            envelope.properties.extend(trace.state.iter().map(|state| (TRACESTATE, state.to_string().into())));
        }
        envelope
    }

    /// The first and the last record say which they are: no other fold of the topic has both.
    fn fold(&self, fold: &Fold, record: &Record) -> Envelope {
        let letter = Letter(record.stream);
        let id = format!("{}-f-{letter}-{}-{}", self.store_id, fold.first_id, fold.last_id);
        let payload = fold.to_json(|id| format!("{}-{letter}-{id}", self.store_id));
        Envelope {
            payload: payload.to_string().into(),
            content_type: Some("application/json".into()),
            ..self.upstream(id, "io.sedge.fold", record)
        }
    }

    pub(crate) fn gap(&self, gap: &Gap) -> Envelope {
        let letter = Letter(gap.stream);
        // No record is lost or folded twice, so no two gaps of a stream begin with the same one. What was folded can be lost.
        let kind = if *gap.reason == *THINNED { 't' } else { 'g' };
        let id = format!("{}-{kind}-{letter}-{}-{}", self.store_id, gap.first_id, gap.last_id);
        let mut payload = json!({
            "stream": gap.stream.as_str(),
            "reason": gap.reason,
            "first_id": format!("{}-{letter}-{}", self.store_id, gap.first_id),
            "last_id": format!("{}-{letter}-{}", self.store_id, gap.last_id),
            "records": gap.records,
            "bytes": gap.bytes,
            "first_at": rfc3339(gap.first_at_ms),
            "last_at": rfc3339(gap.last_at_ms),
        });
        if let Some((_, name)) = self.names.iter().find(|(sink, _)| Some(*sink) == gap.stream.sink()) {
            payload["sink"] = json!(name);
        }
        Envelope {
            topic: format!("{}gaps", self.topic_prefix),
            payload: payload.to_string().into(),
            content_type: Some("application/json".into()),
            properties: self.attributes(id, "io.sedge.gap", gap.last_at_ms),
            retain: false,
            at_ms: gap.last_at_ms,
            clock_synced: true,
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
            at_ms: record.at_ms,
            clock_synced: record.clock_synced,
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

/// Part of ids that names the stream: `a`, `d` or `l`, with the number of the sink unless that is `upstream`.
struct Letter(Stream);

impl fmt::Display for Letter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.as_str()[..1])?;
        match self.0.sink() {
            None | Some(SinkId::UPSTREAM) => Ok(()),
            Some(sink) => write!(f, "{}", sink.index()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::StoredSink;
    use crate::trace::TraceContext;

    fn recovered() -> Recovered {
        Recovered { store_id: "k3".into(), ..Recovered::default() }
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
            clock_synced: true,
            at_ms: 1_386_656_700_250,
            trace: None,
            is_folded: false,
        };
        StoredRecord { id: RecordId(42), record }
    }

    #[test]
    fn upstream_records_carry_cloudevents_attributes() {
        let envelope =
            EnvelopeBuilder::new(&recovered(), "cellar", "up/cellar/").record(&stored(Stream::ALERT, "alerts/f"));
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
        let envelope = EnvelopeBuilder::new(&recovered(), "cellar", "site/7/").record(&stored(Stream::DATA, "raw"));
        assert_eq!(envelope.topic, "site/7/raw");
        assert_eq!((envelope.property("id"), envelope.property("type")), (Some("k3-d-42"), Some("io.sedge.data")));
    }

    #[test]
    fn ids_of_a_named_sink_are_its_own_and_its_gaps_have_its_name() {
        let sink = SinkId::new(3).unwrap();
        let stored_sink = StoredSink { id: sink, name: "lake".into(), is_removed: false };
        let builder = EnvelopeBuilder::new(&Recovered { sinks: vec![stored_sink], ..recovered() }, "cellar", "p/");
        let envelope = builder.record(&stored(Stream::data(sink), "raw"));
        assert_eq!((envelope.property("id"), envelope.property("type")), (Some("k3-d3-42"), Some("io.sedge.data")));
        let gap = Gap {
            stream: Stream::alerts(sink),
            reason: "full".into(),
            first_id: RecordId(1),
            last_id: RecordId(2),
            records: 2,
            bytes: 9,
            first_at_ms: 0,
            last_at_ms: 0,
        };
        let envelope = builder.gap(&gap);
        assert_eq!(envelope.property("id"), Some("k3-g-a3-1-2"));
        let payload: serde_json::Value = serde_json::from_slice(&envelope.payload).unwrap();
        assert_eq!((&payload["sink"], &payload["stream"]), (&json!("lake"), &json!("alert")));
    }

    #[test]
    fn local_publications_keep_their_topic_and_count_hops() {
        let envelope = EnvelopeBuilder::new(&recovered(), "cellar", "x/").record(&stored(Stream::LOCAL, "derived/t"));
        assert_eq!(envelope.topic, "derived/t");
        assert!(envelope.retain);
        assert_eq!(envelope.properties, [("id", "k3-l-42".into()), (HOPS, "3".into()), (FAN_OUT, "70".into())]);
    }

    #[test]
    fn a_record_of_a_trace_says_so_wherever_it_goes() {
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let trace = TraceContext::of(&[(TRACEPARENT, parent), (TRACESTATE, "a=1")]).map(Arc::new);
        for stream in Stream::FIRST {
            let mut stored = stored(stream, "t");
            stored.record.trace.clone_from(&trace);
            let envelope = EnvelopeBuilder::new(&recovered(), "cellar", "x/").record(&stored);
            assert_eq!((envelope.property(TRACEPARENT), envelope.property(TRACESTATE)), (Some(parent), Some("a=1")));
        }
    }

    #[test]
    fn a_fold_is_sent_as_json_under_the_ids_that_it_is_of() {
        let number = |id, payload: &'static str| {
            let StoredRecord { record, .. } = stored(Stream::DATA, "t");
            StoredRecord { id: RecordId(id), record: Record { payload: payload.into(), ..record } }
        };
        let mut fold = Fold::of(&number(42, "20")).unwrap();
        fold.add(Fold::of(&number(44, "22")).unwrap());
        let first = stored(Stream::DATA, "t");
        let record = Record { payload: fold.encode().into(), content_type: None, is_folded: true, ..first.record };
        let builder = EnvelopeBuilder::new(&recovered(), "cellar", "up/cellar/");
        let envelope = builder.record(&StoredRecord { record, ..first });
        assert_eq!((envelope.property("id"), envelope.property("type")), (Some("k3-f-d-42-44"), Some("io.sedge.fold")));
        assert_eq!((&*envelope.topic, envelope.content_type.as_deref()), ("up/cellar/t", Some("application/json")));
        let payload: serde_json::Value = serde_json::from_slice(&envelope.payload).unwrap();
        assert_eq!((&payload["records"], &payload["last_id"]), (&json!(2), &json!("k3-d-44")));
        assert_eq!(payload["fields"]["value"]["mean"], json!(21.0));
    }

    #[test]
    fn a_gap_says_what_was_lost() {
        let gap = Gap {
            stream: Stream::DATA,
            reason: "full".into(),
            first_id: RecordId(812),
            last_id: RecordId(990),
            records: 179,
            bytes: 35_800,
            first_at_ms: 1_000,
            last_at_ms: 61_000,
        };
        let builder = EnvelopeBuilder::new(&recovered(), "cellar", "up/cellar/");
        // Both can be about the same records.
        let thinned = builder.gap(&Gap { reason: THINNED.into(), ..gap.clone() });
        assert_eq!(thinned.property("id"), Some("k3-t-d-812-990"));
        let envelope = builder.gap(&gap);
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
