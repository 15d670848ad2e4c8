//! Spans as OTLP in JSON ([opentelemetry-proto](https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding)): ids in hex,
//! enumerations as numbers, whole numbers of 64 bits as text.

use serde_json::{Map, Value, json};

use sedge_core::trace::span::attribute as name;
use sedge_core::trace::{Attribute, Span, Step};

/// `STATUS_CODE_UNSET` and `STATUS_CODE_ERROR`.
const UNSET: u8 = 0;
const ERROR: u8 = 2;

/// The body of an `ExportTraceServiceRequest`.
pub(super) fn request<'s>(node: &str, spans: impl Iterator<Item = &'s Span>) -> Value {
    let version = env!("CARGO_PKG_VERSION");
    let resource =
        [("service.name", "sedge"), ("service.version", version), ("service.instance.id", node), ("host.name", node)];
    json!({
        "resourceSpans": [{
            "resource": { "attributes": resource.map(|(key, value)| text(key, value)) },
            "scopeSpans": [{
                "scope": { "name": "sedge", "version": version },
                "spans": spans.map(span).collect::<Vec<_>>(),
            }],
        }],
    })
}

/// Spans that the collector did not take, by its answer to a request that it took.
pub(super) fn rejected(answer: &[u8]) -> u64 {
    let answer: Value = serde_json::from_slice(answer).unwrap_or_default();
    let rejected = &answer["partialSuccess"]["rejectedSpans"];
    rejected.as_u64().or_else(|| rejected.as_str()?.parse().ok()).unwrap_or(0)
}

fn span(span: &Span) -> Value {
    let mut json = Map::new();
    let mut set = |key: &str, value: Value| drop(json.insert(key.to_owned(), value));
    set("traceId", Value::from(span.trace_id.to_string()));
    set("spanId", Value::from(span.span_id.to_string()));
    if let Some(parent) = span.parent {
        set("parentSpanId", Value::from(parent.to_string()));
    }
    if let Some(state) = &span.state {
        set("traceState", Value::from(&**state));
    }
    set("name", Value::from(title(span)));
    set("kind", Value::from(span.kind as u8));
    set("startTimeUnixNano", Value::from(span.start_ns.to_string()));
    set("endTimeUnixNano", Value::from(span.end_ns.to_string()));
    set("attributes", span.attributes.iter().map(attribute).collect());
    let status = match &span.error {
        None => json!({ "code": UNSET }),
        Some(error) => json!({ "code": ERROR, "message": error }),
    };
    set("status", status);
    Value::Object(json)
}

/// The step, with what it is about where there are few of these.
fn title(span: &Span) -> String {
    let about = match span.step {
        Step::Invoked => span.text_of(name::FUNCTION),
        Step::Sent => span.text_of(name::SINK),
        _ => None,
    };
    about.map_or_else(|| span.step.as_str().to_owned(), |about| format!("{} {about}", span.step.as_str()))
}

fn attribute((key, value): &(&'static str, Attribute)) -> Value {
    match value {
        Attribute::Text(value) => text(key, value),
        Attribute::Number(number) => json!({ "key": key, "value": { "intValue": number.to_string() } }),
    }
}

fn text(key: &str, value: &str) -> Value {
    json!({ "key": key, "value": { "stringValue": value } })
}

#[cfg(test)]
mod tests {
    use sedge_core::trace::{SpanId, SpanKind, TraceId};

    use super::*;

    #[test]
    fn a_span_is_written_as_the_specification_says() {
        let run = Span {
            trace_id: TraceId::new(0x4bf9),
            span_id: SpanId::new(0xb7),
            parent: Some(SpanId::new(1)),
            state: Some("a=1".into()),
            step: Step::Invoked,
            kind: SpanKind::Internal,
            start_ns: 1_700_000_000_123_456_789,
            end_ns: u64::MAX,
            attributes: vec![
                (name::FUNCTION, Attribute::Text("too-warm".into())),
                (name::FUEL, Attribute::Number(u64::MAX)),
            ],
            error: Some("trap".into()),
        };
        let root = Span {
            parent: None,
            state: None,
            error: None,
            step: Step::Received,
            kind: SpanKind::Consumer,
            ..run.clone()
        };
        let request = request("cellar", [&run, &root].into_iter());
        let resource = &request["resourceSpans"][0]["resource"]["attributes"];
        assert_eq!(resource[2], json!({ "key": "service.instance.id", "value": { "stringValue": "cellar" } }));
        let spans = &request["resourceSpans"][0]["scopeSpans"][0]["spans"];
        assert_eq!(
            spans[0],
            json!({
                "traceId": "00000000000000000000000000004bf9", "spanId": "00000000000000b7",
                "parentSpanId": "0000000000000001", "traceState": "a=1", "name": "invoked too-warm", "kind": 1,
                "startTimeUnixNano": "1700000000123456789", "endTimeUnixNano": "18446744073709551615",
                "attributes": [
                    { "key": "sedge.function", "value": { "stringValue": "too-warm" } },
                    { "key": "sedge.fuel", "value": { "intValue": "18446744073709551615" } },
                ],
                "status": { "code": 2, "message": "trap" },
            })
        );
        assert_eq!((&spans[1]["kind"], &spans[1]["status"]), (&json!(5), &json!({ "code": 0 })));
        assert!(spans[1].get("parentSpanId").is_none() && spans[1].get("traceState").is_none());
    }

    #[test]
    fn what_a_collector_rejects_is_read_in_both_spellings() {
        for (answer, expected) in [
            (&b"{}"[..], 0),
            (b"", 0),
            (b"{\"partialSuccess\":{\"rejectedSpans\":\"7\",\"errorMessage\":\"no\"}}", 7),
            (b"{\"partialSuccess\":{\"rejectedSpans\":3}}", 3),
            (b"\xff", 0),
        ] {
            assert_eq!(rejected(answer), expected);
        }
    }
}
