//! Calls about silent topics, with messages under way and over failures.
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use sedge_core::board::{AckToken, BrokerEvent, Delivery, Input};
use sedge_core::manifest::{Manifest, Silence, StateScope, Trial, TrialMode};
use sedge_sim::rig::{Rig, manifest};

fn watching(after: u64, expect: &[&str]) -> Manifest {
    let expect = expect.iter().map(|topic| (*topic).to_owned()).collect();
    let silence = Silence { back: true, expect, ..Silence::after(Duration::from_secs(after)) };
    Manifest { silence: Some(silence), ..manifest("f", "t/#", StateScope::Topic) }
}

/// Connected, with the backlog read.
fn rig(manifest: Manifest) -> Rig {
    let mut rig = Rig::new(vec![manifest.clone()]);
    rig.deploy(manifest, "derived/x+", None);
    connect(&mut rig);
    rig
}

fn connect(rig: &mut Rig) {
    rig.reconnect();
    rig.settle();
    pass(rig, 1);
}

fn pass(rig: &mut Rig, seconds: u64) {
    for _ in 0..seconds {
        rig.pass(1);
        rig.handle(Input::Timeout);
        rig.settle();
    }
}

/// Topics speak, a few at a time.
fn hear(rig: &mut Rig, topics: std::ops::Range<u32>) {
    for topic in topics {
        let packet_id = (topic % 1000 + 1) as u16;
        rig.receive(&format!("t/{topic}"), "-", packet_id, false);
        if topic.is_multiple_of(4) {
            rig.settle();
        }
    }
    rig.settle();
}

/// The power is cut: another process has what is on the disk.
fn cut_power(rig: &mut Rig, manifest: Manifest) {
    let mut next = Rig::over(vec![manifest], std::mem::take(&mut rig.disk));
    next.now = rig.now;
    connect(&mut next);
    *rig = next;
}

/// How often each topic was told to be silent.
fn told(rig: &Rig) -> BTreeMap<String, u32> {
    let mut told = BTreeMap::new();
    for topic in rig.disk.payloads().into_iter().filter_map(|it| it.strip_prefix("S ")) {
        *told.entry(topic.to_owned()).or_default() += 1;
    }
    told
}

fn once(topics: std::ops::Range<u32>) -> BTreeMap<String, u32> {
    topics.map(|topic| (format!("t/{topic}"), 1)).collect()
}

#[test]
fn a_silent_topic_is_told_with_its_state_and_when_it_speaks_again() {
    let mut rig = rig(watching(60, &[]));
    rig.receive("t/1", "c1", 1, false);
    rig.receive("t/2", "c2", 2, false);
    pass(&mut rig, 40);
    rig.receive("t/2", "c3", 3, false);
    pass(&mut rig, 25);
    // It asks for one retry first.
    assert_eq!(rig.disk.payloads(), ["c1 t/1", "c2 t/2", "c3 t/2", "S t/1"]);
    rig.receive("t/1", "c4", 4, false);
    rig.settle();
    assert_eq!(rig.disk.payloads()[4..], ["c4 t/1", "B t/1"]);
    assert_eq!(rig.disk.dead_letters.len(), 0);
}

#[test]
fn a_topic_that_speaks_while_its_call_waits_for_a_retry_is_told_in_order() {
    let mut rig = rig(watching(60, &["t/1"]));
    for _ in 0..60 {
        rig.pass(1);
        rig.handle(Input::Timeout);
        rig.perform();
    }
    rig.receive("t/1", "o1", 1, false);
    while rig.work() {}
    rig.receive("t/1", "o2", 2, false);
    pass(&mut rig, 5);
    assert_eq!(rig.disk.payloads(), ["S t/1", "o1 t/1", "o2 t/1", "B t/1"]);
}

#[test]
fn a_retained_message_is_no_sign_of_life() {
    let mut rig = rig(watching(60, &["t/2"]));
    pass(&mut rig, 50);
    let delivery = Delivery {
        topic: Bytes::from_static(b"t/2"),
        payload: Bytes::from_static(b"o1"),
        content_type: None,
        properties: Vec::new(),
        response_topic: None,
        correlation_data: None,
        subscriptions: Vec::new(),
        dup: false,
        retained: true,
        ack: Some(AckToken { packet_id: 1, connection: rig.connection }),
    };
    rig.handle(Input::Broker(BrokerEvent::Delivery(delivery)));
    rig.settle();
    pass(&mut rig, 12);
    assert_eq!(rig.disk.payloads(), ["o1 t/2", "S t/2"]);
}

#[test]
fn of_a_thousand_topics_fifty_fall_silent_and_fifty_are_told_over_a_restart_and_a_loss_of_power() {
    let watching = watching(100, &[]);
    let mut rig = rig(watching.clone());
    hear(&mut rig, 0..1000);
    for cuts_power in [false, true, false, true, false] {
        pass(&mut rig, 24);
        hear(&mut rig, 50..1000);
        if cuts_power {
            cut_power(&mut rig, watching.clone());
        }
    }
    // Both cuts make a call late, by a tenth at most.
    assert_eq!(told(&rig), once(0..50));
    let figures = rig.metrics.function(&"f".into());
    assert_eq!((rig.disk.heard.len(), figures.silent_topics.get()), (1000, 50));
    hear(&mut rig, 0..1000);
    pass(&mut rig, 5);
    assert_eq!(figures.silent_topics.get(), 0);
    assert_eq!((told(&rig), rig.disk.payloads().iter().filter(|it| it.starts_with("B ")).count()), (once(0..50), 50));
}

#[test]
fn of_five_hundred_sensors_that_fall_silent_at_once_none_is_lost() {
    let mut rig = rig(watching(60, &[]));
    hear(&mut rig, 0..500);
    pass(&mut rig, 61);
    assert_eq!((told(&rig), rig.disk.dead_letters.len()), (once(0..500), 0));
}

#[test]
fn a_clock_that_jumps_makes_nobody_silent() {
    let mut rig = rig(watching(60, &[]));
    hear(&mut rig, 0..10);
    pass(&mut rig, 50);
    for unix_ms in [0, 4_000_000_000_000, 1_000] {
        let now = sedge_core::time::Now { monotonic: rig.now, unix_ms, synced: unix_ms > 0 };
        rig.board.handle(Input::Timeout, now);
        rig.settle();
    }
    assert_eq!(told(&rig), BTreeMap::new());
}

#[test]
fn while_a_topic_is_paused_the_call_about_it_waits() {
    let mut rig = rig(watching(30, &[]));
    for packet_id in 1..=3 {
        rig.receive("t/1", "x1", packet_id, false);
        rig.settle();
    }
    assert_eq!((rig.paused_topics("f"), rig.disk.dead_letters.len()), (1, 3));
    for packet_id in 4..40 {
        pass(&mut rig, 1);
        rig.receive("t/2", "x2", packet_id, false);
        rig.settle();
    }
    let letters = rig.disk.dead_letters.len();
    assert_eq!(told(&rig), BTreeMap::from([("t/1".to_owned(), 1)]), "its pause is over");
    assert!(rig.paused_topics("f") > 0);
    // Now the other falls silent while it is paused.
    rig.receive("t/2", "x2", 100, false);
    rig.settle();
    pass(&mut rig, 90);
    assert_eq!(told(&rig), BTreeMap::from([("t/1".to_owned(), 1), ("t/2".to_owned(), 1)]));
    assert!(rig.disk.dead_letters.len() <= letters + 1);
    assert!(rig.disk.dead_letters.iter().all(|it| &*it.message.topic == "t/1" || &*it.message.topic == "t/2"));
}

#[test]
fn a_version_on_trial_that_fails_over_a_call_costs_none_and_a_shadow_gets_none() {
    for mode in [TrialMode::Live, TrialMode::Shadow] {
        let manifest = watching(60, &[]);
        let mut rig = rig(manifest.clone());
        rig.receive("t/2", "o1", 1, false);
        rig.settle();
        let trial = Trial { messages: 5.try_into().unwrap(), failures: 0, mode, ..Trial::default() };
        let edition = rig.deploy(manifest, "derived/x+ W", Some(trial));
        rig.until_ready(edition);
        pass(&mut rig, 65);
        assert_eq!(rig.disk.payloads(), ["o1 t/2", "S t/2"], "{mode:?}");
        assert_eq!(rig.disk.dead_letters.len(), 0);
    }
}

#[test]
fn a_version_that_watches_nothing_is_not_called_and_one_that_is_given_up_costs_nothing() {
    let watching = watching(60, &[]);
    let mut rig = rig(watching.clone());
    rig.receive("t/2", "o1", 1, false);
    rig.settle();
    let trial = Trial { messages: 5.try_into().unwrap(), ..Trial::default() };
    let edition = rig.deploy(Manifest { silence: None, ..watching.clone() }, "derived/x+", Some(trial));
    rig.until_ready(edition);
    pass(&mut rig, 100);
    assert_eq!(rig.disk.payloads(), ["o1 t/2"]);
    rig.handle(Input::DropCandidate { function: "f".into(), edition });
    pass(&mut rig, 5);
    assert_eq!(rig.disk.payloads(), ["o1 t/2", "S t/2"]);
    rig.deploy(Manifest { silence: None, ..watching }, "derived/x+", None);
    rig.settle();
    assert_eq!(rig.disk.heard.len(), 0);
}

#[test]
fn what_a_removed_function_watches_waits_for_it() {
    let watching = watching(60, &[]);
    let mut rig = rig(watching.clone());
    hear(&mut rig, 0..2);
    pass(&mut rig, 50);
    rig.handle(Input::Remove { function: "f".into() });
    pass(&mut rig, 50);
    assert_eq!((rig.disk.payloads().len(), rig.disk.heard.len()), (0, 2));
    rig.deploy(watching, "derived/x+", None);
    pass(&mut rig, 55);
    assert_eq!(told(&rig), BTreeMap::new());
    pass(&mut rig, 10);
    assert_eq!(told(&rig), once(0..2));
}

#[test]
fn a_message_that_is_not_committed_is_heard_when_it_comes_again() {
    let mut rig = rig(watching(60, &["t/2"]));
    pass(&mut rig, 50);
    rig.receive("t/2", "o1", 1, false);
    rig.perform();
    rig.fail_disk();
    pass(&mut rig, 5);
    rig.receive("t/2", "o1", 1, true);
    pass(&mut rig, 58);
    assert_eq!(rig.disk.payloads(), ["o1 t/2"]);
    pass(&mut rig, 5);
    assert_eq!(rig.disk.payloads(), ["o1 t/2", "S t/2"]);
}
