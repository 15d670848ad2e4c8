//! Receivers upstream that decline, refuse or fail.

use std::time::{Duration, Instant};

use crate::harness::daemon::{Daemon, NODE, Setup};
use crate::harness::eventually;
use crate::harness::guest::guest;
use crate::harness::mosquitto::Mosquitto;
use crate::harness::upstream::Upstream;
use crate::harness::webhook::Webhook;
use crate::harness::wire::Publish;

#[test]
fn a_topic_that_upstream_does_not_allow_holds_up_its_stream_for_a_while_and_then_is_a_gap() {
    let broker = Mosquitto::start();
    let acl = tempfile::NamedTempFile::new().unwrap();
    let rules = ["topic read #", "topic write up/board/gaps", "topic write up/board/count/good"];
    std::fs::write(acl.path(), rules.join("\n")).unwrap();
    // Mosquitto 2.0.11 closes the connection on a denied publish if its queue has no limit.
    let cloud = Mosquitto::start_with(&format!("max_queued_messages 10000\nacl_file {}", acl.path().display()));
    let upstream = Upstream::collect(cloud.port);
    let setup = Setup::new(broker.url()).upstream(cloud.url()).function(&guest("count"));
    let daemon = Daemon::start(&setup.set("upstream", "give_up_secs = 2"));
    broker.await_daemon();
    let mut sensor = broker.client("sensor");
    let publish = |topic: &str, n: u32| Publish::new(&format!("count/{topic}"), n.to_string());
    sensor.publish(publish("forbidden", 1)).unwrap();
    let held = || daemon.metric("sedge_forward_errors_total") >= 1.0;
    assert!(eventually(Duration::from_secs(20), held), "log:\n{}", daemon.log());
    let held_since = Instant::now();
    sensor.publish_all([publish("good", 1), publish("forbidden", 2), publish("good", 2)]).unwrap();
    let good = format!("up/{NODE}/count/good");
    let arrived = || upstream.received().iter().filter(|message| message.topic == good).count();
    assert!(eventually(Duration::from_secs(20), || arrived() == 1 || arrived() == 2), "{:?}", upstream.received());
    assert!(held_since.elapsed() >= Duration::from_secs(1), "one that came later overtook the one that is held");
    let lost = || daemon.metric_with("sedge_dropped_total", "refused");
    assert!(eventually(Duration::from_secs(20), || lost() == 2.0 && arrived() == 2), "{}", daemon.counters());
    let told = || {
        let received = upstream.received();
        let gaps = received.iter().filter(|message| message.topic == format!("up/{NODE}/gaps"));
        gaps.filter_map(|gap| gap.text().split_once("\"records\":")?.1.split(',').next()?.parse::<u32>().ok())
            .sum::<u32>()
    };
    assert!(eventually(Duration::from_secs(20), || told() == 2), "{:?}", upstream.received());
    assert!(daemon.log().contains("not-authorized"));
}

#[test]
fn a_webhook_gets_every_record_in_order_with_its_attributes_and_one_that_it_fails_over_again() {
    let broker = Mosquitto::start();
    // First unavailable, then a failure on one record, then success.
    let webhook = Webhook::start(|_, call| match call {
        1 => Some(503),
        4 => Some(500),
        _ => None,
    });
    let setup = Setup::new(broker.url()).upstream(webhook.url.clone()).function(&guest("count"));
    let daemon = Daemon::start(&setup);
    broker.await_daemon();
    broker.client("sensor").publish_all((1..=20).map(|n| Publish::new("count/a", n.to_string()))).unwrap();
    // 20 records, and an alert for every tenth.
    let all = eventually(Duration::from_secs(20), || webhook.taken().len() == 22);
    assert!(all, "{:?}; log:\n{}", webhook.taken(), daemon.log());
    let taken = webhook.taken();
    let of_kind = |kind: &'static str| taken.iter().filter(move |call| call.header("ce-type") == Some(kind));
    let data: Vec<String> = of_kind("io.sedge.data").map(|call| call.body.clone()).collect();
    assert_eq!(data, (1..=20).map(|n| format!("{n} {n}")).collect::<Vec<_>>());
    let alerts: Vec<&str> = of_kind("io.sedge.alert").filter_map(|call| call.header("ce-subject")).collect();
    assert_eq!(alerts, ["up/board/alerts/count"; 2]);
    for call in &taken {
        assert_eq!(call.header("ce-specversion"), Some("1.0"));
        assert_eq!(call.header("ce-source"), Some("sedge/board"));
        assert!(call.header("ce-id").is_some() && call.header("ce-time").is_some(), "{call:?}");
    }
    assert_eq!(daemon.metric("sedge_forward_errors_total"), 2.0);
}
