//! Traces through the real program, brokers and receivers.

use std::time::Duration;

use serde_json::Value;

use crate::harness::daemon::{Daemon, Setup};
use crate::harness::guest::{guest, variant};
use crate::harness::mosquitto::Mosquitto;
use crate::harness::upstream::Upstream;
use crate::harness::webhook::Webhook;
use crate::harness::wire::Publish;
use crate::harness::{Site, eventually};

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

/// Holds a request against OTLP in JSON, and returns its spans.
fn spans(body: &str) -> Vec<Value> {
    let request: Value = serde_json::from_str(body).expect("the body is JSON");
    let list = |value: &Value| value.as_array().unwrap_or_else(|| panic!("{value} is a list")).clone();
    let keys = |value: &Value, known: &[&str]| {
        for key in value.as_object().unwrap_or_else(|| panic!("{value} is an object")).keys() {
            assert!(known.contains(&&**key), "{key} is not a field of {value}");
        }
    };
    let check_attribute = |attribute: &Value| {
        keys(attribute, &["key", "value"]);
        assert!(attribute["key"].as_str().is_some_and(|key| !key.is_empty()), "{attribute}");
        let value = attribute["value"].as_object().expect("an AnyValue");
        let is_right = match value.iter().next() {
            Some((kind, value)) if kind == "stringValue" => value.is_string(),
            // 64 bits are text.
            Some((kind, value)) if kind == "intValue" => value.as_str().is_some_and(|it| it.parse::<u64>().is_ok()),
            _ => false,
        };
        assert!(value.len() == 1 && is_right, "{attribute}");
    };
    keys(&request, &["resourceSpans"]);
    let mut spans = Vec::new();
    for of_resource in list(&request["resourceSpans"]) {
        keys(&of_resource, &["resource", "scopeSpans"]);
        let attributes = list(&of_resource["resource"]["attributes"]);
        attributes.iter().for_each(check_attribute);
        let name = attributes.iter().find(|it| it["key"] == "service.name").expect("a service has a name");
        assert_eq!(name["value"]["stringValue"], "sedge");
        for of_scope in list(&of_resource["scopeSpans"]) {
            keys(&of_scope, &["scope", "spans"]);
            keys(&of_scope["scope"], &["name", "version"]);
            spans.extend(list(&of_scope["spans"]));
        }
    }
    let is_id = |value: &Value, digits: usize| {
        let text = value.as_str().unwrap_or("");
        let is_hex = text.bytes().all(|it| it.is_ascii_digit() || (b'a'..=b'f').contains(&it));
        text.len() == digits && is_hex && text.bytes().any(|it| it != b'0')
    };
    let time = |value: &Value| value.as_str().and_then(|it| it.parse::<u64>().ok()).expect("nanoseconds as text");
    for span in &spans {
        keys(
            span,
            &[
                "traceId",
                "spanId",
                "parentSpanId",
                "traceState",
                "name",
                "kind",
                "startTimeUnixNano",
                "endTimeUnixNano",
                "attributes",
                "status",
            ],
        );
        assert!(is_id(&span["traceId"], 32) && is_id(&span["spanId"], 16), "{span}");
        assert!(span.get("parentSpanId").is_none_or(|parent| is_id(parent, 16)), "{span}");
        assert!(span["name"].as_str().is_some_and(|name| !name.is_empty()), "{span}");
        assert!(span["kind"].as_u64().is_some_and(|kind| (1..=5).contains(&kind)), "{span}");
        let (start, end) = (time(&span["startTimeUnixNano"]), time(&span["endTimeUnixNano"]));
        // After 2020: milliseconds would be long before.
        assert!(start <= end && start > 1_577_836_800_000_000_000, "{span}");
        list(&span["attributes"]).iter().for_each(check_attribute);
        keys(&span["status"], &["code", "message"]);
        assert!(span["status"]["code"].as_u64().is_some_and(|code| code <= 2), "{span}");
    }
    spans
}

fn exported(collector: &Webhook) -> Vec<Value> {
    collector.taken().iter().flat_map(|call| spans(&call.body)).collect()
}

#[test]
fn a_collector_gets_the_way_of_each_message_as_its_specification_says() {
    let (broker, cloud, folder) = (Mosquitto::start(), Mosquitto::start(), tempfile::tempdir().unwrap());
    let upstream = Upstream::collect(cloud.port);
    let hook = Webhook::start(|_, _| None);
    // It is busy at first.
    let collector = Webhook::start(|_, calls| (calls == 1).then_some(503));
    let token = folder.path().join("token");
    std::fs::write(&token, "Bearer abc\n").unwrap();
    std::fs::set_permissions(&token, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let setup = chain(&broker, &cloud, &hook, folder.path())
        .set("trace", format!("otlp = {:?}", collector.url))
        .set("trace", format!("authorization_file = {token:?}"));
    let daemon = Daemon::start(&setup);
    broker.await_daemon();
    let mut sensor = broker.client("sensor");
    let sampled = format!("{}01", parent().trim_end_matches("00"));
    sensor.publish(Publish::new("misbehave/a", "publish count/traced").with_property("traceparent", &sampled)).unwrap();
    sensor.publish(Publish::new("misbehave/b", "trap <secret>")).unwrap();
    let of_trace = || exported(&collector).into_iter().filter(|span| span["traceId"] == TRACE).collect::<Vec<_>>();
    // Received twice, routed twice, run twice, committed and acknowledged; sent to the local broker, upstream and hook.
    let is_there = || of_trace().len() == 2 * 5 + 3;
    assert!(eventually(PATIENCE, is_there), "{:#?}\n{}", of_trace(), daemon.log());
    let all = of_trace();
    let of = |name: &str| all.iter().filter(|span| span["name"] == name).collect::<Vec<_>>();
    let sender = Value::from("00f067aa0ba902b7");
    let first = of("received").into_iter().find(|span| span["parentSpanId"] == sender).expect("below its sender");
    // Each is below another, up to the sender: through the broker as well.
    for span in &all {
        let mut at = span;
        let mut steps = 0;
        while at["parentSpanId"] != sender {
            let parent = &at["parentSpanId"];
            at = all.iter().find(|it| it["spanId"] == *parent).unwrap_or_else(|| panic!("{parent} is missing"));
            steps += 1;
            assert!(steps < 10);
        }
        assert_eq!(at["spanId"], first["spanId"]);
    }
    assert_eq!((of("sent local").len(), of("sent upstream").len(), of("sent hook").len()), (1, 1, 1));
    assert!(!of("invoked first").is_empty() && !of("invoked count").is_empty());
    // Receivers go on below the span of sending.
    let received = upstream.received();
    let parent = received[0].property("traceparent").and_then(|it| it.split('-').nth(2)).map(str::to_owned);
    assert_eq!(of("sent upstream")[0]["spanId"].as_str(), parent.as_deref());

    // What fails is recorded although nobody asked for it, without what it says.
    let is_failed = |span: &Value| span["status"]["code"] == 2 && span["status"]["message"] == "trap";
    assert!(eventually(PATIENCE, || exported(&collector).iter().filter(|it| is_failed(it)).count() == 2));
    assert!(collector.taken().iter().all(|call| !call.body.contains("secret")));
    assert!(collector.taken().iter().all(|call| call.header("authorization") == Some("Bearer abc")));
    let figures = || daemon.metric("sedge_spans_exported_total") as usize == exported(&collector).len();
    assert!(eventually(PATIENCE, figures), "{}", daemon.counters());
    assert!(
        daemon.log().contains("takes no traces") && daemon.log().contains("takes traces again"),
        "{}",
        daemon.log()
    );
}

#[test]
fn a_collector_that_is_away_or_never_answers_holds_up_nothing_and_is_counted() {
    // Its port accepts, and nobody reads.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let away = crate::harness::mosquitto::free_port();
    for port in [silent.local_addr().unwrap().port(), away] {
        let site = Site::start_with(|setup| {
            setup.set("trace", "sample = 1").set("trace", format!("otlp = \"http://127.0.0.1:{port}/v1/traces\""))
        });
        let mut sensor = site.broker.client("sensor");
        sensor.publish_all((1..=3000).map(|n| Publish::new("count/a", n.to_string()))).unwrap();
        assert!(eventually(PATIENCE, || site.upstream.count() == 3300), "{}", site.daemon.counters());
        let dropped = || site.daemon.metric_with("sedge_spans_dropped_total", "reason=\"queue-full\"") > 1000.0;
        assert!(eventually(PATIENCE, dropped), "{}", site.daemon.counters());
        assert_eq!(site.daemon.metric("sedge_spans_exported_total"), 0.0);
    }
}
