//! A message takes effect once, in order, and is acknowledged only then.

use std::time::Duration;

use crate::harness::Site;
use crate::harness::client::Client;
use crate::harness::daemon::{Daemon, NODE, Setup};
use crate::harness::eventually;
use crate::harness::guest::{guest, variant};
use crate::harness::ledger::Ledger;
use crate::harness::mosquitto::Mosquitto;
use crate::harness::wire::{Hello, Publish};

#[test]
fn every_message_reaches_state_and_upstream_once_and_in_order() {
    let site = Site::start();
    let mut ledger = Ledger::default();
    site.broker.client("sensors").publish_all(ledger.batch(7, 2000)).unwrap();
    site.settle(&ledger);
    let acknowledged =
        eventually(Duration::from_secs(10), || site.daemon.metric("sedge_messages_acknowledged_total") == 2000.0);
    assert!(acknowledged, "{} acknowledged", site.daemon.metric("sedge_messages_acknowledged_total"));
    assert_eq!(site.daemon.metric("sedge_dead_letters_total"), 0.0);
}

#[test]
fn identical_payloads_are_different_messages() {
    let site = Site::start();
    let same = (0..50).map(|_| Publish::new("count/same", "x"));
    site.broker.client("sensor").publish_all(same).unwrap();
    let last = format!("x {}", 50);
    assert!(eventually(Duration::from_secs(20), || site.upstream.received().iter().any(|m| m.text() == last)));
}

#[test]
fn a_message_id_that_the_publisher_sets_makes_repeats_one_message() {
    let site = Site::start();
    let mut sensor = site.broker.client("sensor");
    for _ in 0..3 {
        sensor.publish(Publish::new("count/ids", "1").with_property("id", "reading-1")).unwrap();
    }
    sensor.publish(Publish::new("count/ids", "2").with_property("id", "reading-2")).unwrap();
    let mut ledger = Ledger::default();
    ledger.next("ids");
    ledger.next("ids");
    site.settle(&ledger);
}

#[test]
fn messages_that_come_while_the_daemon_is_down_wait_in_its_session() {
    let mut site = Site::start();
    site.daemon.terminate();
    let mut ledger = Ledger::default();
    site.broker.client("sensors").publish_all(ledger.batch(3, 500)).unwrap();
    site.daemon.resume();
    site.settle(&ledger);
}

#[test]
fn two_functions_on_one_topic_each_see_every_message() {
    let folder = tempfile::tempdir().unwrap();
    let other = variant(&guest("count"), folder.path(), "second", "count/#", |manifest| manifest);
    let broker = Mosquitto::start();
    let daemon = Daemon::start(&Setup::new(broker.url()).function(&guest("count")).function(&other));
    broker.await_daemon();
    broker.client("sensor").publish_all((0..100).map(|n| Publish::new("count/a", n.to_string()))).unwrap();
    for function in ["count", "second"] {
        let label = format!("function=\"{function}\"");
        let ran = || daemon.metric_with("sedge_function_invocations_total", &label);
        assert!(eventually(Duration::from_secs(20), || ran() == 100.0), "{function} ran {} times", ran());
    }
}

#[test]
fn alerts_are_echoed_on_the_local_broker() {
    let site = Site::start();
    let mut listener = site.broker.client("listener");
    listener.subscribe(&[&format!("sedge/{NODE}/alerts/count")]).unwrap();
    let mut ledger = Ledger::default();
    site.broker.client("sensor").publish_all(ledger.batch(1, 10)).unwrap();
    let alert = listener.receive(Duration::from_secs(20)).unwrap().expect("an alert");
    assert!(alert.text().contains("count/s0/10"), "{alert:?}");
    site.settle(&ledger);
}

#[test]
fn the_status_topic_says_whether_the_board_is_online() {
    let mut site = Site::start();
    let status = |site: &Site| {
        let mut visitor = Client::connect(site.broker.port, &Hello::new("visitor")).unwrap();
        visitor.subscribe(&[&format!("sedge/{NODE}/status")]).unwrap();
        visitor.receive(Duration::from_secs(2)).unwrap().map(|message| message.text()).unwrap_or_default()
    };
    let says = |site: &Site, word: &str| eventually(Duration::from_secs(20), || status(site).contains(word));
    assert!(says(&site, "online"), "{:?}", status(&site));
    site.daemon.kill();
    assert!(says(&site, "offline"), "the last will says {:?}", status(&site));
    site.daemon.resume();
    assert!(says(&site, "online"), "{:?}", status(&site));
    site.daemon.terminate();
    assert!(says(&site, "offline"), "after a clean stop {:?}", status(&site));
}
