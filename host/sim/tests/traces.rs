//! The trace of a message, and of what comes of it.
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

use sedge_core::manifest::StateScope;
use sedge_core::trace::{TRACEPARENT, TRACESTATE};
use sedge_sim::rig::{Rig, manifest, with_requests};

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
