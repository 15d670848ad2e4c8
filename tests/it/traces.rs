//! Traces through the real program, brokers and receivers.

use std::time::Duration;

use crate::harness::daemon::{Daemon, Setup};
use crate::harness::eventually;
use crate::harness::guest::{guest, variant};
use crate::harness::mosquitto::Mosquitto;
use crate::harness::upstream::Upstream;
use crate::harness::webhook::Webhook;
use crate::harness::wire::Publish;

const PATIENCE: Duration = Duration::from_secs(60);
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// A context that nobody samples, so that it goes on as it is.
fn parent() -> String {
    format!("00-{TRACE}-00f067aa0ba902b7-00")
}

/// `misbehave`, which may publish to `count`, and `count`, with an upstream broker and a webhook.
fn chain(broker: &Mosquitto, cloud: &Mosquitto, hook: &Webhook, folder: &std::path::Path) -> Setup {
    let first = variant(&guest("misbehave"), folder, "first", "misbehave/#", |manifest| {
        manifest.replace("allowed/#", "count/#")
    });
    Setup::new(broker.url())
        .upstream(cloud.url())
        .set("sink.hook", "type = \"webhook\"")
        .set("sink.hook", format!("url = {:?}", hook.url))
        .set("sinks", "forwards = [\"hook\", \"upstream\"]")
        .function(&first)
        .function(&guest("count"))
}

#[test]
fn a_trace_goes_through_functions_brokers_and_sinks() {
    let (broker, cloud, folder) = (Mosquitto::start(), Mosquitto::start(), tempfile::tempdir().unwrap());
    let upstream = Upstream::collect(cloud.port);
    let hook = Webhook::start(|_, _| None);
    let daemon = Daemon::start(&chain(&broker, &cloud, &hook, folder.path()));
    broker.await_daemon();
    let mut sensor = broker.client("sensor");
    let with_trace = Publish::new("misbehave/a", "publish count/traced");
    let with_trace = with_trace.with_property("traceparent", &parent()).with_property("tracestate", "a=1");
    sensor.publish(with_trace).unwrap();
    sensor.publish(Publish::new("misbehave/a", "publish count/plain")).unwrap();
    sensor
        .publish(Publish::new("misbehave/a", "publish count/wrong").with_property("traceparent", "00-0-0-00"))
        .unwrap();
    let is_there = || upstream.count() == 3 && hook.taken().len() == 3;
    assert!(eventually(PATIENCE, is_there), "{} {}", upstream.count(), daemon.log());
    for message in upstream.received() {
        let trace = [message.property("traceparent"), message.property("tracestate")];
        let expected = if message.topic.ends_with("traced") { [Some(&*parent()), Some("a=1")] } else { [None; 2] };
        assert_eq!(trace, expected, "{}", message.topic);
    }
    for call in hook.taken() {
        let is_traced = call.header("ce-subject").is_some_and(|topic| topic.ends_with("traced"));
        assert_eq!(call.header("traceparent"), is_traced.then_some(&*parent()));
        assert_eq!(call.header("tracestate"), is_traced.then_some("a=1"));
    }
}
