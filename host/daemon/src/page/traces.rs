//! The latest traces, in memory: a board shows them without a collector.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Page;
use super::answer::{Answer, Refusal};
use sedge_core::trace::span::attribute as name;
use sedge_core::trace::{Attribute, Span, Step, TraceId};

/// Traces that are kept.
const MAX_TRACES: usize = 200;
/// Spans of one trace that are kept: with the bound above at most about 6 MiB, usually a tenth.
const MAX_SPANS: usize = 64;

/// What ended of the latest traces.
#[derive(Debug, Default)]
pub(crate) struct Traces(Mutex<VecDeque<Kept>>);

/// A trace, as far as this board has it.
#[derive(Debug)]
struct Kept {
    id: TraceId,
    spans: Vec<Span>,
    left_out: usize,
}

impl Traces {
    /// Adds spans of one trace.
    pub(super) fn add(&self, spans: Vec<Span>) {
        let Some(id) = spans.first().map(|span| span.trace_id) else { return };
        let mut kept = self.lock();
        // A trace grows while it is young.
        let trace = match kept.iter().rposition(|trace| trace.id == id) {
            Some(at) => &mut kept[at],
            None => {
                if kept.len() >= MAX_TRACES {
                    kept.pop_front();
                }
                kept.push_back(Kept { id, spans: Vec::new(), left_out: 0 });
                kept.back_mut().expect("a trace was added")
            }
        };
        let room = MAX_SPANS.saturating_sub(trace.spans.len());
        trace.left_out += spans.len().saturating_sub(room);
        trace.spans.extend(spans.into_iter().take(room));
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Kept>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The latest first.
    fn list(&self) -> Value {
        json!({ "traces": self.lock().iter().rev().map(Kept::summary).collect::<Vec<_>>() })
    }

    /// The trace of this id, or the latest with a message of this id.
    fn find(&self, id: &str) -> Option<Value> {
        let kept = self.lock();
        let trace = match id.to_ascii_lowercase().parse::<TraceId>() {
            Ok(id) => kept.iter().rev().find(|trace| trace.id == id),
            Err(_) => kept.iter().rev().find(|trace| trace.has_message(id)),
        };
        trace.map(Kept::to_json)
    }
}

impl Kept {
    fn has_message(&self, id: &str) -> bool {
        self.spans.iter().any(|span| span.text_of(name::MESSAGE_ID) == Some(id))
    }

    /// The first receipt, or whatever is there if that is not.
    fn root(&self) -> &Span {
        let root = self.spans.iter().find(|span| span.step == Step::Received);
        root.unwrap_or_else(|| self.spans.first().expect("a trace is kept with its first span"))
    }

    fn summary(&self) -> Value {
        let functions: BTreeSet<&str> = self.spans.iter().filter_map(|span| span.text_of(name::FUNCTION)).collect();
        let root = self.root();
        json!({
            "trace_id": self.id.to_string(),
            "start_us": self.start_ns() / 1000,
            "duration_us": (self.end_ns() - self.start_ns()) / 1000,
            "topic": root.text_of(name::TOPIC),
            "functions": functions,
            "spans": self.spans.len() + self.left_out,
            "result": root.text_of(name::RESULT),
            "error": self.spans.iter().find_map(|span| span.error.as_deref()),
        })
    }

    fn start_ns(&self) -> u64 {
        self.spans.iter().map(|span| span.start_ns).min().unwrap_or(0)
    }

    fn end_ns(&self) -> u64 {
        self.spans.iter().map(|span| span.end_ns).max().unwrap_or(0)
    }

    fn to_json(&self) -> Value {
        let mut spans: Vec<&Span> = self.spans.iter().collect();
        spans.sort_by_key(|span| (span.start_ns, span.step));
        json!({
            "trace_id": self.id.to_string(),
            "spans": spans.into_iter().map(span).collect::<Vec<_>>(),
            "spans_left_out": self.left_out,
        })
    }
}

fn span(span: &Span) -> Value {
    let attributes = span.attributes.iter().map(|(name, value)| {
        let value = match value {
            Attribute::Text(text) => text.to_string(),
            Attribute::Number(number) => number.to_string(),
        };
        json!({ "name": name, "value": value })
    });
    json!({
        "span_id": span.span_id.to_string(),
        "parent": span.parent.map(|parent| parent.to_string()),
        "step": span.step.as_str(),
        "kind": span.kind.as_str(),
        "start_us": span.start_ns / 1000,
        "duration_us": (span.end_ns - span.start_ns) / 1000,
        "error": span.error,
        "attributes": attributes.collect::<Vec<_>>(),
    })
}

#[derive(Deserialize)]
pub(super) struct TracesQuery {
    /// Only the one of this trace or message.
    id: Option<String>,
}

/// The latest traces.
pub(super) async fn list(
    State(page): State<Arc<Page>>,
    Query(query): Query<TracesQuery>,
    headers: HeaderMap,
) -> Answer {
    page.access.person(&headers, Instant::now())?;
    let mut all = page.shown.traces.list();
    if let Some(id) = query.id.filter(|id| !id.is_empty()) {
        let found = page.shown.traces.find(&id).map(|trace| trace["trace_id"].clone());
        let traces = all["traces"].as_array_mut().expect("it is a list");
        traces.retain(|trace| found.as_ref() == Some(&trace["trace_id"]));
    }
    Ok(Json(all))
}

/// The spans of a trace, by its id or that of a message.
pub(super) async fn one(State(page): State<Arc<Page>>, Path(id): Path<String>, headers: HeaderMap) -> Answer {
    page.access.person(&headers, Instant::now())?;
    page.shown.traces.find(&id).map(Json).ok_or_else(|| {
        let error = format!("{id} is not among the latest traces of this board");
        let fix =
            format!("the board keeps the latest {MAX_TRACES}; set trace.sample, or send traceparent with the message");
        Refusal::new(StatusCode::NOT_FOUND, error, fix)
    })
}

#[cfg(test)]
mod tests {
    use sedge_core::trace::{SpanId, SpanKind};

    use super::*;

    fn span_of(trace: u128, step: Step, start_ns: u64, attributes: &[(&'static str, &str)]) -> Span {
        Span {
            trace_id: TraceId::new(trace),
            span_id: SpanId::new(start_ns + 1),
            parent: None,
            state: None,
            step,
            kind: SpanKind::Internal,
            start_ns,
            end_ns: start_ns + 2_000,
            attributes: attributes.iter().map(|(name, value)| (*name, Attribute::Text((*value).into()))).collect(),
            error: None,
        }
    }

    #[test]
    fn traces_are_found_by_their_id_and_by_that_of_a_message() {
        let traces = Traces::default();
        traces.add(vec![span_of(1, Step::Received, 5_000, &[(name::MESSAGE_ID, "m-1"), (name::TOPIC, "oven")])]);
        traces.add(vec![span_of(2, Step::Received, 6_000, &[(name::MESSAGE_ID, "m-2")])]);
        // What comes of it comes later, under an id of its own.
        traces.add(vec![span_of(1, Step::Sent, 9_000, &[(name::MESSAGE_ID, "k3-l-7")])]);
        let one = format!("{:032x}", 1);
        for id in ["m-1", "k3-l-7", &one, &one.to_uppercase()] {
            let found = traces.find(id).unwrap_or_else(|| panic!("{id} is not found"));
            let steps: Vec<_> = found["spans"].as_array().unwrap().iter().map(|span| span["step"].clone()).collect();
            assert_eq!((&found["trace_id"], &steps[..]), (&json!(one), &[json!("received"), json!("sent")][..]));
        }
        assert_eq!(traces.find("m-3"), None);
        let list = traces.list();
        assert_eq!(list["traces"][1]["topic"], "oven");
        assert_eq!((&list["traces"][1]["start_us"], &list["traces"][1]["duration_us"]), (&json!(5), &json!(6)));
    }

    #[test]
    fn many_and_long_traces_are_bounded_and_say_what_is_missing() {
        let traces = Traces::default();
        for trace in 0..3 * MAX_TRACES as u128 {
            traces.add(vec![span_of(trace, Step::Received, trace as u64, &[])]);
        }
        assert_eq!(traces.lock().len(), MAX_TRACES);
        assert!(traces.find(&format!("{:032x}", 2 * MAX_TRACES - 1)).is_none(), "the oldest made room");
        (0..100).for_each(|n| traces.add(vec![span_of(u128::MAX, Step::Sent, n, &[])]));
        let trace = traces.find(&"f".repeat(32)).unwrap();
        assert_eq!((trace["spans"].as_array().map(Vec::len), &trace["spans_left_out"]), (Some(64), &json!(36)));
    }
}
