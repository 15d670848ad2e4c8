//! The trace of a message, and of what comes of it.
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

use sedge_core::board::{BoardConfig, Input, SinkEvent};
use sedge_core::forward::{Answer, Destination, HOPS};
use sedge_core::manifest::StateScope;
use sedge_core::message::PublishToken;
use sedge_core::store::{RecordId, StoreEvent, StoredRecord};
use sedge_core::trace::span::attribute as name;
use sedge_core::trace::{Attribute, Span, SpanKind, Step, TRACEPARENT, TRACESTATE};
use sedge_sim::disk::Disk;
use sedge_sim::rig::{Rig, config, manifest, with_requests};

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";

/// Contexts of the records on the disk, as they are sent.
fn traces(rig: &Rig) -> Vec<Option<String>> {
    let parent = |trace: &sedge_core::trace::TraceContext| trace.traceparent(trace.span_id);
    rig.disk.records.iter().map(|record| record.trace.as_deref().map(parent)).collect()
}

#[test]
fn the_trace_of_a_message_goes_on_with_its_outputs_also_after_a_retry_and_a_restart() {
    let functions = || vec![manifest("f", "t/#", StateScope::None)];
    let mut rig = Rig::new(functions());
    let properties = [("id", "1"), (TRACEPARENT, PARENT), (TRACESTATE, "a=1")];
    rig.receive_with("t/1", "o", 1, false, &properties);
    rig.receive_with("t/2", "o", 2, false, &[(TRACEPARENT, "00-0-0-01"), (TRACESTATE, "a=1")]);
    rig.receive("t/3", "o", 3, false);
    rig.settle();
    let mut all = traces(&rig);
    all.sort();
    assert_eq!(all, [None, None, Some(PARENT.to_owned())]);
    let state = rig.disk.records.iter().find_map(|record| record.trace.as_ref()?.state.clone());
    assert_eq!(state.as_deref(), Some("a=1"));

    rig.receive_with("t/4", "t", 4, false, &[(TRACEPARENT, PARENT)]);
    rig.settle();
    assert_eq!(rig.disk.records.len(), 3, "it waits for another run");
    let mut disk = std::mem::take(&mut rig.disk);
    disk.records.clear();
    let mut rig = Rig::over(functions(), disk);
    rig.pass(60);
    rig.settle();
    assert_eq!(traces(&rig), [Some(PARENT.to_owned())]);
}

#[test]
fn a_repeat_of_a_request_under_another_span_takes_no_effect() {
    let mut rig = Rig::new(vec![with_requests(manifest("f", "t/#", StateScope::None))]);
    rig.request(1, "POST /f/1", "o", &[("idempotency-key", "7"), (TRACEPARENT, PARENT)]);
    rig.settle();
    rig.request(2, "POST /f/1", "o", &[("idempotency-key", "7"), (TRACEPARENT, &PARENT.replace("b7", "b8"))]);
    rig.settle();
    assert_eq!(traces(&rig), [Some(PARENT.to_owned())]);
    assert_eq!(rig.responses.len(), 2);
    assert_eq!(rig.responses[0].1, rig.responses[1].1);
}

/// A board that begins a trace of each message.
fn sampled(disk: Disk) -> Rig {
    let functions = vec![with_requests(manifest("f", "t/#", StateScope::None))];
    let mut rig = Rig::configured(functions, disk, BoardConfig { trace_sample: 1.0, ..config() });
    rig.reconnect();
    rig
}

fn steps(spans: &[Span]) -> Vec<&str> {
    spans.iter().map(|span| span.step.as_str()).collect()
}

fn number_of(span: &Span, name: &str) -> Option<u64> {
    span.attributes.iter().find_map(|(key, value)| match value {
        Attribute::Number(number) if *key == name => Some(*number),
        _ => None,
    })
}

#[test]
fn the_spans_of_a_message_tell_its_way_and_end_with_its_acknowledgement() {
    let mut rig = sampled(Disk::default());
    rig.unix_ms = 1000;
    rig.receive("t/1", "o1", 1, false);
    rig.work_until(|rig| rig.commits() == 1);
    assert!(rig.spans.is_empty(), "its commit is under way");
    rig.pass_by_the_clock(2);
    rig.settle();
    assert_eq!(steps(&rig.spans), ["received", "routed", "invoked", "committed", "acknowledged"]);
    let root = &rig.spans[0];
    assert_eq!((root.kind, root.parent, root.text_of(name::TOPIC)), (SpanKind::Consumer, None, Some("t/1")));
    assert_eq!((root.text_of(name::RESULT), root.error.as_deref()), (Some("done"), None));
    assert!(rig.spans[1..].iter().all(|span| span.parent == Some(root.span_id) && span.trace_id == root.trace_id));
    let run = &rig.spans[2];
    assert_eq!((run.text_of(name::FUNCTION), run.text_of(name::VERSION)), (Some("f"), Some("1.0.0")));
    assert!(number_of(run, name::FUEL).is_some());
    let committed = &rig.spans[3];
    assert_eq!((committed.start_ns, committed.end_ns), (1_000_000_000, 3_000_000_000), "the commit took two seconds");
    assert!(rig.spans.iter().all(|span| root.start_ns <= span.start_ns && span.end_ns <= root.end_ns));
    // What it caused belongs to its run.
    let trace = rig.disk.records[0].trace.clone().unwrap();
    assert!(trace.is_recorded() && (trace.trace_id, trace.span_id) == (root.trace_id, run.span_id));
}

#[test]
fn the_trace_of_a_sender_goes_on_and_its_sampling_is_followed() {
    let mut rig = Rig::new(vec![manifest("f", "t/#", StateScope::None)]);
    rig.reconnect();
    let asked = format!("{}01", &PARENT[..53]);
    rig.receive_with("t/1", "o", 1, false, &[(TRACEPARENT, &asked), (TRACESTATE, "a=1")]);
    rig.receive_with("t/2", "o", 2, false, &[(TRACEPARENT, PARENT)]);
    rig.receive("t/3", "o", 3, false);
    rig.settle();
    assert_eq!(steps(&rig.spans), ["received", "routed", "invoked", "committed", "acknowledged"]);
    let root = &rig.spans[0];
    assert_eq!(root.trace_id.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(root.parent.map(|span| span.to_string()).as_deref(), Some("00f067aa0ba902b7"));
    assert!(rig.spans.iter().all(|span| span.state.as_deref() == Some("a=1")));
    assert_eq!((rig.metrics.traces.get(), rig.metrics.traces_left_out.get()), (1, 0));
}

#[test]
fn a_dead_letter_is_recorded_although_nobody_asked_for_its_trace() {
    let mut rig = Rig::new(vec![manifest("f", "t/#", StateScope::None)]);
    rig.reconnect();
    rig.unix_ms = 5000;
    rig.receive("t/1", "x", 1, false);
    rig.unix_ms = 7000;
    rig.settle();
    assert_eq!(steps(&rig.spans), ["received", "routed", "invoked", "committed", "acknowledged"]);
    let (root, run) = (&rig.spans[0], &rig.spans[2]);
    assert_eq!((root.error.as_deref(), run.error.as_deref()), (Some("trap"), Some("trap")));
    assert_eq!((root.text_of(name::RESULT), run.text_of(name::RESULT)), (Some("dead-letter"), Some("failed")));
    assert_eq!(root.start_ns, 5_000_000_000, "it begins with the receipt");
    rig.spans.clear();
    // One that never runs.
    rig.receive_with("t/2", "o", 2, false, &[(HOPS, "9"), (TRACEPARENT, PARENT)]);
    rig.settle();
    assert_eq!(steps(&rig.spans), ["received", "routed", "committed", "acknowledged"]);
    assert_eq!(rig.spans[0].error.as_deref(), Some("too-many-hops"));
    assert_eq!(rig.spans[0].trace_id.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
}

#[test]
fn a_retry_goes_on_under_the_same_trace_also_after_a_restart() {
    let mut rig = sampled(Disk::default());
    rig.receive("t/1", "t", 1, false);
    rig.settle();
    assert_eq!(steps(&rig.spans), ["received", "routed", "invoked", "committed", "acknowledged"]);
    let (first, received) = (rig.spans[0].clone(), rig.spans[0].span_id);
    assert_eq!((first.text_of(name::RESULT), rig.spans[2].text_of(name::RESULT)), (Some("waiting"), Some("retry")));
    let mut rig = sampled(std::mem::take(&mut rig.disk));
    rig.pass(60);
    rig.settle();
    assert_eq!(steps(&rig.spans), ["resumed", "routed", "invoked", "committed"]);
    assert_eq!((rig.spans[0].trace_id, rig.spans[0].parent), (first.trace_id, Some(received)));
    assert_eq!(number_of(&rig.spans[2], name::ATTEMPT), Some(2));
    let trace = rig.disk.records[0].trace.clone().unwrap();
    assert_eq!((trace.trace_id, trace.span_id), (first.trace_id, rig.spans[2].span_id));
}

#[test]
fn a_request_ends_with_its_answer_and_qos_0_with_its_commit() {
    let mut rig = sampled(Disk::default());
    rig.request(1, "POST /f/1", "o", &[]);
    rig.settle();
    assert_eq!(steps(&rig.spans), ["received", "routed", "invoked", "committed", "acknowledged"]);
    assert_eq!(rig.spans[0].kind, SpanKind::Server);
    rig.spans.clear();
    rig.receive("t/1", "o", 0, false);
    rig.settle();
    assert_eq!(steps(&rig.spans), ["received", "routed", "invoked", "committed"]);
}

#[test]
fn a_wake_goes_on_under_the_trace_of_the_message_that_set_it() {
    let mut rig = Rig::new(vec![manifest("f", "t/#", StateScope::Topic)]);
    rig.receive_with("t/1", "w3", 1, false, &[(TRACEPARENT, PARENT), (TRACESTATE, "a=1")]);
    rig.settle();
    assert_eq!(rig.disk.wakes.len(), 1);
    // Also after a restart.
    let mut disk = std::mem::take(&mut rig.disk);
    disk.records.clear();
    let mut rig = Rig::over(vec![manifest("f", "t/#", StateScope::Topic)], disk);
    rig.pass(3600);
    rig.handle(Input::Timeout);
    rig.settle();
    let record = rig.disk.records.first().expect("the wake has run");
    assert_eq!(traces(&rig)[0].as_deref(), Some(PARENT));
    assert_eq!(record.trace.as_ref().unwrap().state.as_deref(), Some("a=1"));
}

#[test]
fn a_connection_that_breaks_ends_the_traces_that_wait_for_it() {
    let mut rig = sampled(Disk::default());
    // The first holds up the acknowledgement of the second.
    rig.receive("t/1", "o1", 1, false);
    rig.work_until(|rig| rig.commits() == 1);
    let first = rig.requests.pop_front().unwrap();
    rig.receive("t/2", "-", 2, false);
    rig.perform();
    while rig.work() {}
    assert!(rig.spans.is_empty());
    rig.reconnect();
    assert_eq!(rig.spans.last().unwrap().error.as_deref(), Some("connection-lost"));
    rig.spans.clear();
    rig.requests.push_back(first);
    rig.receive("t/1", "o1", 1, true);
    rig.settle();
    assert_eq!(rig.spans.last().map(|span| (span.step, span.error.clone())), Some((Step::Acknowledged, None)));
}

#[test]
fn what_senders_and_errors_ask_for_is_bounded_and_counted() {
    let mut rig = Rig::new(vec![manifest("f", "t/#", StateScope::None)]);
    rig.reconnect();
    for round in 0..20 {
        for packet_id in 1..=20 {
            rig.receive(&format!("t/{packet_id}"), &format!("r{round}"), packet_id, false);
        }
        rig.settle();
    }
    assert_eq!((rig.metrics.traces.get(), rig.metrics.traces_left_out.get()), (100, 300));
    rig.pass(1);
    rig.receive("t/1", "r", 1, false);
    rig.settle();
    assert_eq!(rig.metrics.traces.get(), 101);
    // What the board chooses by itself has no such bound.
    let mut rig = sampled(Disk::default());
    for _ in 0..20 {
        (1..=20).for_each(|packet_id| rig.receive("t/1", "o", packet_id, false));
        rig.settle();
    }
    assert_eq!((rig.metrics.traces.get(), rig.metrics.traces_left_out.get()), (400, 0));
}

#[test]
fn boards_choose_the_same_part_of_the_traces() {
    let chosen = |sample: f64, seed: u64| {
        let config = BoardConfig { trace_sample: sample, seed, ..config() };
        let mut rig = Rig::configured(vec![manifest("f", "t/#", StateScope::None)], Disk::default(), config);
        rig.reconnect();
        for _ in 0..100 {
            (1..=20).for_each(|packet_id| rig.receive("t/1", "o", packet_id, false));
            rig.settle();
        }
        rig.spans.iter().filter(|span| span.step == Step::Received).map(|span| span.trace_id).collect::<Vec<_>>()
    };
    let some = chosen(0.1, 7);
    assert!((150..250).contains(&some.len()), "{} of 2000", some.len());
    let others = chosen(0.1, 8);
    assert!(others.iter().all(|id| !some.contains(id)), "another seed, other numbers");
    assert_eq!(chosen(0.0, 7).len(), 0);
    // The lower bits decide, so that a board with a larger part has the others' too.
    let is_chosen = |id: &sedge_core::trace::TraceId| (id.number() as u64) << 8 >> 8 < (1 << 56) / 10 + 1;
    assert!(some.iter().chain(&others).all(is_chosen));
}

#[test]
fn a_record_is_sent_under_its_own_span_until_its_receiver_has_it() {
    let mut rig = sampled(Disk::default());
    rig.receive("t/1", "f", 1, false);
    rig.settle();
    let run = rig.spans[2].clone();
    rig.spans.clear();
    rig.sends.clear();
    let record = rig.disk.records[0].clone();
    rig.handle(Input::Sink { destination: Destination::UPSTREAM, event: SinkEvent::Connected });
    let stored = vec![StoredRecord { id: RecordId(1), record }];
    let (batch, parked, letters) = (Default::default(), Vec::new(), Vec::new());
    rig.handle(Input::Store(StoreEvent::Committed { batch, stored, parked, letters }));
    rig.perform();
    let (token, parent) =
        rig.sends.pop().map(|(token, it)| (token, it.property(TRACEPARENT).unwrap().to_owned())).unwrap();
    let mut answer = |token: PublishToken, answer: Answer| {
        rig.pass_by_the_clock(1);
        let event = SinkEvent::Answered { token, answer };
        rig.handle(Input::Sink { destination: Destination::UPSTREAM, event });
        rig.perform();
        rig.pass_by_the_clock(60);
        rig.handle(Input::Timeout);
        rig.perform();
        (std::mem::take(&mut rig.spans), rig.sends.pop())
    };
    let (spans, again) = answer(token, Answer::Retry { reason: "busy".into(), after: None });
    assert!(spans.is_empty());
    let (token, envelope) = again.unwrap();
    assert_eq!(envelope.property(TRACEPARENT), Some(&*parent), "a repeat is the same span");
    let (spans, _) = answer(token, Answer::Accepted);
    assert_eq!(steps(&spans), ["sent"]);
    assert_eq!((spans[0].parent, spans[0].kind), (Some(run.span_id), SpanKind::Producer));
    assert_eq!(parent, format!("00-{}-{}-01", run.trace_id, spans[0].span_id));
    assert_eq!((spans[0].text_of(name::SINK), spans[0].end_ns - spans[0].start_ns), (Some("upstream"), 1_000_000_000));
}
