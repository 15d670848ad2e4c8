//! What Home Assistant finds at the local broker.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use crate::harness::client::Client;
use crate::harness::daemon::{Daemon, Setup};
use crate::harness::eventually;
use crate::harness::guest::guest;
use crate::harness::mosquitto::Mosquitto;
use crate::harness::wire::{Hello, Publish};

const PATIENCE: Duration = Duration::from_secs(60);
const DESCRIPTION: &str = "homeassistant/device/sedge/board/config";

/// What the broker retains of the board for Home Assistant, by topic.
fn retained(broker: &Mosquitto) -> BTreeMap<String, Value> {
    let mut visitor = Client::connect(broker.port, &Hello::new("visitor")).expect("connect");
    let filters = ["homeassistant/#", "sedge/board/status/+", "sedge/board/status/alerts/#"];
    visitor.subscribe(&filters).expect("subscribe");
    let messages = std::iter::from_fn(|| visitor.receive(Duration::from_millis(500)).expect("receive"));
    messages.map(|it| (it.topic, serde_json::from_slice(&it.payload).unwrap_or_default())).collect()
}

/// Waits until the description has such components.
fn has(broker: &Mosquitto, is_there: impl Fn(&Value) -> bool) -> bool {
    eventually(PATIENCE, || retained(broker).get(DESCRIPTION).is_some_and(|it| is_there(&it["components"])))
}

fn alerts(components: &Value) -> Vec<&Value> {
    let all = components.as_object().into_iter().flatten();
    all.filter(|(id, _)| id.starts_with("alert_")).map(|(_, component)| component).collect()
}

#[test]
fn home_assistant_finds_the_board_its_functions_and_its_alerts_until_it_is_switched_off() {
    let (broker, cloud) = (Mosquitto::start(), Mosquitto::start());
    let setup = Setup::new(broker.url())
        .upstream(cloud.url())
        .set("home_assistant", "discovery = true")
        .function(&guest("count"));
    let mut daemon = Daemon::start(&setup);
    broker.await_daemon();
    let found = |it: &Value| !it["function_count"].is_null() && !it["sink_upstream"].is_null() && alerts(it).is_empty();
    assert!(has(&broker, found), "{:#?}; log:\n{}", retained(&broker), daemon.log());
    let summary = || retained(&broker)["sedge/board/status/summary"].clone();
    assert!(eventually(PATIENCE, || summary()["sinks"]["upstream"] == true), "{}", summary());

    let mut sensor = broker.client("sensor");
    sensor.publish_all((0..10).map(|n| Publish::new("count/oven", n.to_string()))).unwrap();
    assert!(has(&broker, |it| alerts(it).len() == 1), "{:#?}", retained(&broker));
    let description = retained(&broker).remove(DESCRIPTION).unwrap();
    let alert = alerts(&description["components"])[0];
    let state = retained(&broker)[alert["state_topic"].as_str().unwrap()].clone();
    assert_eq!((&state["firing"], &state["key"]), (&true.into(), &"count/oven/10".into()), "{state}");

    // A broker that has lost what it retained, and Home Assistant that starts.
    sensor.publish(Publish { retain: true, ..Publish::new(DESCRIPTION, "") }).unwrap();
    assert!(eventually(PATIENCE, || !retained(&broker).contains_key(DESCRIPTION)));
    sensor.publish(Publish::new("homeassistant/status", "online")).unwrap();
    assert!(has(&broker, |it| alerts(it).len() == 1), "{:#?}", retained(&broker));

    daemon.terminate();
    let config = std::fs::read_to_string(daemon.config()).unwrap();
    std::fs::write(daemon.config(), config.replace("discovery = true", "discovery = false")).unwrap();
    daemon.resume();
    assert!(eventually(PATIENCE, || retained(&broker).is_empty()), "{:#?}; log:\n{}", retained(&broker), daemon.log());
}
