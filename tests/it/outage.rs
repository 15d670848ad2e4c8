//! Restarts and outages of the brokers.

use std::time::Duration;

use crate::harness::daemon::{Daemon, NODE, Setup};
use crate::harness::guest::{guest, variant};
use crate::harness::ledger::Ledger;
use crate::harness::mosquitto::Mosquitto;
use crate::harness::upstream::Upstream;
use crate::harness::wire::Publish;
use crate::harness::{Site, eventually};

#[test]
fn nothing_is_lost_or_doubled_when_the_broker_restarts_5_times() {
    let mut site = Site::start();
    let mut ledger = Ledger::default();
    for _ in 0..5 {
        // More than a window, so that the broker stops with messages in flight and others queued.
        site.broker.client("sensors").publish_all(ledger.batch(10, 3000)).unwrap();
        site.broker.restart();
    }
    site.settle(&ledger);
}

#[test]
fn upstream_away_and_back_gets_everything_alerts_first() {
    let mut site = Site::start();
    let mut ledger = Ledger::default();
    let mut sensors = site.broker.client("sensors");
    sensors.publish_all(ledger.batch(5, 100)).unwrap();
    site.settle(&ledger);
    let before = site.upstream.count();

    site.cloud.stop();
    sensors.publish_all(ledger.batch(5, 1000)).unwrap();
    let committed = || site.daemon.metric("sedge_messages_acknowledged_total");
    assert!(eventually(Duration::from_secs(30), || committed() == 1100.0), "{} of 1100 acknowledged", committed());
    // Some may wait in the store for their run.
    let held = || site.daemon.metric("sedge_outbox_records") >= 1000.0;
    assert!(eventually(Duration::from_secs(30), held), "the outbox holds what upstream did not get");

    site.cloud.resume();
    site.settle(&ledger);
    let later = &site.upstream.received()[before..];
    let is_alert = |topic: &str| topic.starts_with(&format!("up/{NODE}/alerts/"));
    let last_alert = later.iter().rposition(|message| is_alert(&message.topic)).expect("alerts were held back");
    let first_data = later.iter().position(|message| !is_alert(&message.topic)).expect("data was held back");
    assert!(last_alert < first_data, "an alert came as number {last_alert}, data as number {first_data}");
    let emptied = eventually(Duration::from_secs(20), || site.daemon.metric("sedge_outbox_records") == 0.0);
    assert!(emptied, "{} records are left", site.daemon.metric("sedge_outbox_records"));
}

#[test]
fn what_waits_for_upstream_survives_a_kill() {
    let mut site = Site::start();
    let mut ledger = Ledger::default();
    site.cloud.stop();
    site.broker.client("sensors").publish_all(ledger.batch(5, 500)).unwrap();
    let committed = || site.daemon.metric("sedge_messages_acknowledged_total");
    assert!(eventually(Duration::from_secs(30), || committed() == 500.0), "{} of 500 acknowledged", committed());
    site.daemon.kill();
    site.daemon.resume();
    site.cloud.resume();
    site.settle(&ledger);
}

/// A function that forwarded megabytes pushed out the data of all others.
#[test]
fn a_function_that_fills_the_outbox_costs_others_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let limits = "\n[limits]\noutput_bytes = 1_048_576\nfuel = 100_000_000\ntimeout_ms = 1_000\n";
    let hog = variant(&guest("attack"), folder.path(), "hog", "hog/#", |manifest| manifest + limits);
    let mut site = Site::start_with(|setup| setup.function(&hog).set("store", "max_bytes = 8_388_608"));
    let mut ledger = Ledger::default();
    let mut sensors = site.broker.client("sensors");
    site.cloud.stop();
    for n in 0..24 {
        sensors.publish_all(ledger.batch(5, 20)).unwrap();
        sensors.publish(Publish::new(&format!("hog/{}", n % 4), "forward 1000000")).unwrap();
    }
    let committed = || site.daemon.metric("sedge_messages_acknowledged_total");
    assert!(eventually(Duration::from_secs(60), || committed() == 504.0), "{} of 504 acknowledged", committed());
    let dropped = || site.daemon.metric_with("sedge_dropped_total", "reason=\"full\"");
    assert!(eventually(Duration::from_secs(60), || dropped() >= 16.0), "{} are dropped", dropped());
    site.daemon.kill();
    site.daemon.resume();
    site.cloud.resume();
    site.settle(&ledger);
}

#[test]
fn the_daemon_starts_and_stays_up_while_the_broker_is_away() {
    let cloud = Mosquitto::start();
    let upstream = Upstream::collect(cloud.port);
    let mut broker = Mosquitto::reserve("");
    let mut daemon = Daemon::prepare(&Setup::new(broker.url()).upstream(cloud.url()).function(&guest("count")));
    daemon.launch();
    let alive = |daemon: &Daemon| daemon.get("/healthz").is_some_and(|(status, _)| status == 200);
    assert!(eventually(Duration::from_secs(30), || alive(&daemon)), "no health; log:\n{}", daemon.log());
    assert!(daemon.is_running());

    broker.resume();
    broker.await_daemon();
    let mut ledger = Ledger::default();
    broker.client("sensors").publish_all(ledger.batch(3, 100)).unwrap();
    let arrived = eventually(Duration::from_secs(30), || ledger.is_complete(&upstream.received()));
    assert!(arrived, "log:\n{}", daemon.log());
    ledger.check(&upstream.received());
}
