//! The way of a message: redelivery, commits, order, retries, pauses, timers.
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

use std::num::NonZeroU64;
use std::time::Duration;

use sedge_core::board::AckToken;
use sedge_core::forward::{FAN_OUT, HOPS};
use sedge_core::manifest::{Manifest, StateFull, StateScope};
use sedge_core::message::Scope;
use sedge_core::store::{self, LoadId};
use sedge_core::stream::Stream;
use sedge_sim::rig::{Rig, manifest};

fn one() -> Vec<Manifest> {
    vec![manifest("f", "t/#", StateScope::None)]
}

fn one_with_state() -> Vec<Manifest> {
    vec![manifest("f", "t/#", StateScope::Topic)]
}

#[test]
fn acknowledgements_follow_the_commit_in_the_order_of_receipt() {
    let mut rig = Rig::new(one());
    rig.receive("t/1", "o1", 1, false);
    // Nothing comes of this one, but it is not its turn.
    rig.receive("t/2", "-", 2, false);
    rig.receive("t/3", "o3", 3, false);
    rig.work_until(|it| it.commits() == 2);
    assert_eq!(rig.acknowledged(), [0; 0], "before the commit");
    assert!(rig.disk.records.is_empty());
    rig.settle();
    assert_eq!(rig.acknowledged(), [1, 2, 3]);
    let mut payloads = rig.disk.payloads();
    payloads.sort_unstable();
    assert_eq!(payloads, ["o1", "o3"]);
}

#[test]
fn what_has_no_effect_costs_no_commit() {
    let mut rig = Rig::new(one());
    rig.receive("t/1", "-", 1, false);
    rig.receive("elsewhere", "o", 2, false);
    rig.receive("t/#", "o", 3, false);
    rig.work_until(|it| it.board.is_idle());
    assert_eq!(rig.acknowledged(), [1, 2, 3]);
    assert!(rig.requests.is_empty());
    // Their fingerprints go along with the next commit.
    rig.receive("t/1", "o", 4, false);
    rig.settle();
    let ids: Vec<u16> = rig.disk.window.iter().map(|it| it.packet_id).collect();
    assert_eq!(ids.len(), 4, "{ids:?}");
}

#[test]
fn what_a_function_excludes_is_acknowledged_and_goes_to_others() {
    let excluding = Manifest { except: vec!["t/bridge/#".parse().unwrap()], ..manifest("f", "t/#", StateScope::None) };
    let mut rig = Rig::new(vec![excluding, manifest("g", "t/bridge/log", StateScope::None)]);
    for (packet_id, topic) in (1..).zip(["t/bridge", "t/bridge/devices", "t/kitchen/oven", "t/bridge/log"]) {
        rig.receive(topic, "o", packet_id, false);
    }
    rig.settle();
    assert_eq!(rig.acknowledged(), [1, 2, 3, 4]);
    let functions: Vec<_> = rig.disk.records.iter().map(|record| &*record.function).collect();
    assert_eq!(functions, ["f", "g"]);
}

#[test]
fn qos_0_is_recorded_and_not_acknowledged() {
    let mut rig = Rig::new(one());
    rig.receive("t/1", "o", 0, false);
    rig.settle();
    assert_eq!((rig.disk.payloads(), rig.acknowledged().len()), (vec!["o"], 0));
}

#[test]
fn a_message_that_comes_again_runs_once() {
    let mut rig = Rig::new(one_with_state());
    // The first waits for its state, so the second, which is committed, cannot be acknowledged.
    rig.receive("t/1", "c1", 1, false);
    rig.receive("t/2", "c2", 2, false);
    rig.work_until(|it| it.loads() == 2);
    let first = rig.requests.pop_front().unwrap();
    let second_is_first =
        matches!(&first, store::StoreRequest::LoadState { scope, .. } if scope.topic.as_deref() == Some("t/2"));
    let held = if second_is_first { rig.requests.pop_front().unwrap() } else { first };
    if second_is_first {
        rig.requests.push_front(store::StoreRequest::LoadState {
            id: LoadId(1),
            scope: Scope { function: "f".into(), topic: None },
        });
    }
    rig.answer();
    rig.work_until(|it| !it.requests.is_empty());
    rig.answer();
    rig.perform();
    assert_eq!((rig.disk.payloads(), rig.acknowledged().len()), (vec!["c2"], 0));
    rig.reconnect();
    rig.receive("t/1", "c1", 1, true);
    rig.receive("t/2", "c2", 2, true);
    rig.perform();
    assert_eq!(rig.acknowledged(), [0; 0], "the first is still under way");
    rig.requests.push_back(held);
    rig.settle();
    assert_eq!(rig.disk.payloads(), ["c2", "c1"]);
    assert_eq!(rig.acknowledged, [1, 2].map(|packet_id| AckToken { packet_id, connection: 2 }));
    assert_eq!((rig.disk.count("f", Some("t/1")), rig.disk.count("f", Some("t/2"))), (1, 1));
}

#[test]
fn a_publishers_copy_is_acknowledged_with_the_first_and_not_before() {
    let mut rig = Rig::new(one_with_state());
    let id = [("id", "7")];
    rig.receive_with("t/1", "c", 1, false, &id);
    rig.receive_with("t/1", "c", 2, false, &id);
    rig.work_until(|it| it.loads() == 1);
    // The connection breaks, and both come again while the first is still under way.
    rig.reconnect();
    rig.receive_with("t/1", "c", 1, true, &id);
    rig.receive_with("t/1", "c", 2, true, &id);
    rig.perform();
    assert_eq!(rig.acknowledged(), [0; 0]);
    rig.settle();
    assert_eq!(rig.acknowledged, [1, 2].map(|packet_id| AckToken { packet_id, connection: 2 }));
    assert_eq!(rig.disk.count("f", Some("t/1")), 1);
    // A third, long after.
    rig.receive_with("t/1", "c", 3, false, &id);
    rig.settle();
    assert_eq!((rig.acknowledged(), rig.disk.count("f", Some("t/1"))), (vec![1, 2, 3], 1));
}

/// The first came at QoS 0, so that nothing in front of the copy holds up its acknowledgement.
#[test]
fn a_copy_of_what_is_under_way_is_not_acknowledged_when_it_comes_again() {
    let mut rig = Rig::new(one_with_state());
    let id = [("id", "7")];
    rig.receive_with("t/1", "c", 0, false, &id);
    rig.receive_with("t/1", "c", 1, false, &id);
    rig.work_until(|it| it.loads() == 1);
    rig.reconnect();
    rig.receive_with("t/1", "c", 1, true, &id);
    rig.perform();
    assert_eq!(rig.acknowledged(), [0; 0], "before the commit");
    rig.settle();
    assert_eq!((rig.acknowledged(), rig.disk.count("f", Some("t/1"))), (vec![1], 1));
}

#[test]
fn two_functions_share_one_commit_and_one_acknowledgement() {
    let mut rig = Rig::new(vec![manifest("f", "t/#", StateScope::None), manifest("g", "t/1", StateScope::Topic)]);
    rig.receive("t/1", "o", 1, false);
    rig.work_until(|it| it.loads() == 1);
    while rig.work() {}
    rig.perform();
    assert_eq!(rig.requests.len(), 1, "one function alone is no reason to commit");
    assert_eq!(rig.acknowledged(), [0; 0]);
    rig.settle();
    let functions: Vec<&str> = rig.disk.records.iter().map(|it| &*it.function).collect();
    assert_eq!((functions, rig.acknowledged()), (vec!["f", "g"], vec![1]));
    rig.receive("t/1", "x", 2, false);
    rig.settle();
    assert_eq!(rig.disk.reasons(), ["trap", "trap"]);
    assert_eq!(rig.acknowledged(), [1, 2]);
}

/// One function of a message is done, the other is not; meanwhile the first runs on the next message. Whatever it wrote
/// last must be what is stored last.
#[test]
fn state_is_stored_in_the_order_of_the_runs() {
    let mut rig =
        Rig::new(vec![manifest("sum", "t/#", StateScope::Function), manifest("slow", "t/1", StateScope::Topic)]);
    rig.receive("t/1", "c1", 1, false);
    rig.receive("t/2", "c2", 2, false);
    rig.receive("t/3", "c3", 3, false);
    rig.work_until(|it| it.loads() == 2);
    // `sum` gets its state, `slow` does not.
    let slow = rig
        .requests
        .iter()
        .position(|it| matches!(it, store::StoreRequest::LoadState { scope, .. } if &*scope.function == "slow"));
    let slow = rig.requests.remove(slow.unwrap()).unwrap();
    rig.answer();
    while rig.work() {}
    rig.perform();
    assert!(rig.requests.is_empty(), "{:?}", rig.requests);
    rig.requests.push_back(slow);
    rig.settle();
    assert_eq!(rig.disk.count("sum", None), 3);
    assert_eq!(rig.acknowledged(), [1, 2, 3]);
}

#[test]
fn a_retry_keeps_its_place_in_its_key() {
    let mut rig = Rig::new(one_with_state());
    // All are sent to the worker at once, before it is known that the first asks for another run.
    for (id, payload) in (1..).zip(["t1", "o2", "o3"]) {
        rig.receive("t/1", payload, id, false);
    }
    rig.receive("t/2", "o4", 4, false);
    rig.settle();
    assert_eq!(rig.disk.payloads(), ["o4"]);
    assert_eq!(rig.disk.parked.len(), 3);
    assert_eq!(rig.acknowledged(), [1, 2, 3, 4], "the store has them");
    rig.receive("t/1", "o5", 5, false);
    rig.settle();
    assert_eq!(rig.disk.parked.len(), 4);
    assert_eq!(rig.next_due(), Some(rig.now + Duration::from_secs(1)));
    rig.pass(1);
    rig.settle();
    assert_eq!(rig.disk.payloads(), ["o4", "t1", "o2", "o3", "o5"]);
    assert!(rig.disk.parked.is_empty() && rig.next_due().is_none());
    rig.receive("t/1", "o6", 6, false);
    rig.settle();
    assert_eq!(rig.disk.payloads().last(), Some(&"o6"));
}

#[test]
fn retries_end() {
    let mut rig = Rig::new(one());
    rig.receive("t/1", "T", 1, false);
    rig.receive("t/1", "o", 2, false);
    for attempt in 1..=3 {
        rig.settle();
        assert_eq!(rig.disk.dead_letters.len(), usize::from(attempt > 2));
        rig.pass(1);
    }
    assert_eq!(rig.disk.reasons(), ["retries-exhausted"]);
    assert_eq!(rig.disk.dead_letters[0].message.attempt, 3);
    rig.settle();
    assert_eq!((rig.disk.payloads(), rig.disk.parked.len()), (vec!["o"], 0));
}

#[test]
fn what_waits_survives_a_restart_in_its_order() {
    let mut rig = Rig::new(one());
    for (id, payload) in (1..).zip(["t1", "o2", "t3", "o4"]) {
        rig.receive("t/1", payload, id, false);
    }
    rig.settle();
    let mut rig = Rig::over(one(), rig.disk);
    rig.pass(100);
    rig.settle();
    rig.pass(100);
    rig.settle();
    assert_eq!(rig.disk.payloads(), ["t1", "o2", "t3", "o4"]);
    // One that asks for a third run keeps its place, too.
    for (id, payload) in (5..).zip(["T1", "o2"]) {
        rig.receive("t/3", payload, id, false);
    }
    rig.settle();
    rig.pass(1);
    rig.settle();
    let waiting = |rig: &Rig| rig.disk.parked.values().map(|it| it.message.payload.clone()).collect::<Vec<_>>();
    assert_eq!(waiting(&rig), ["T1", "o2"]);
    let mut rig = Rig::over(one(), rig.disk);
    rig.pass(100);
    rig.settle();
    assert_eq!((rig.disk.reasons(), rig.disk.payloads().last()), (vec!["retries-exhausted"], Some(&"o2")));
    rig.disk.dead_letters.clear();
    // A function that is gone leaves its messages to the dead letters.
    rig.receive("t/1", "t", 7, false);
    rig.settle();
    let mut rig = Rig::over(vec![manifest("other", "t/#", StateScope::None)], rig.disk);
    rig.settle();
    assert_eq!((rig.disk.reasons(), rig.disk.parked.len()), (vec!["removed"], 0));
}

#[test]
fn a_retry_waits_no_longer_than_its_delay_where_the_clock_boots_in_the_past() {
    let mut rig = Rig::new(one());
    rig.receive("t/1", "t1", 1, false);
    rig.receive("t/1", "o2", 2, false);
    rig.settle();
    // The clock was right when it was parked; the board boots in 1970.
    for job in rig.disk.parked.values_mut().filter(|job| job.wait_ms > 0) {
        job.due_ms += 1_800_000_000_000;
    }
    let mut rig = Rig::over(one(), rig.disk);
    rig.settle();
    assert_eq!((rig.disk.payloads().len(), rig.disk.parked.len()), (0, 2), "not before its time");
    rig.pass(1);
    rig.settle();
    assert_eq!(rig.disk.payloads(), ["t1", "o2"]);
}

#[test]
fn a_topic_over_which_a_function_keeps_failing_is_paused_until_it_works() {
    let mut rig = Rig::new(one());
    for id in 1..=3 {
        rig.receive("t/1", "x", id, false);
        rig.settle();
    }
    assert_eq!(rig.paused_topics("f"), 1);
    rig.receive("t/1", "o4", 4, false);
    rig.settle();
    assert_eq!(rig.disk.reasons(), ["trap", "trap", "trap", "quarantined"]);
    let detail = &rig.disk.dead_letters[3].failure.detail;
    assert_eq!(detail, "f is paused for this topic because it kept failing, last: trap: unreachable");
    // The first message after the pause is the probe. It asks for another run, which is a probe as well.
    rig.pass(11);
    rig.receive("t/1", "t5", 5, false);
    rig.settle();
    assert_eq!(rig.paused_topics("f"), 1);
    rig.pass(1);
    rig.settle();
    assert_eq!(rig.paused_topics("f"), 0);
    assert_eq!(rig.disk.payloads(), ["t5"]);
    assert_eq!(rig.acknowledged(), [1, 2, 3, 4, 5]);
    assert!(rig.paused.is_empty(), "other topics were not affected");
}

/// A publisher silenced a function for all topics with a few messages over which every function fails.
#[test]
fn a_sender_cannot_pause_a_function_for_others() {
    let mut rig = Rig::new(one());
    let mut id = 0;
    for round in 0..10 {
        for topic in 0..5 {
            id += 1;
            rig.receive(&format!("t/evil/{topic}"), "x", id, false);
        }
        rig.settle();
        id += 1;
        rig.receive(&format!("t/{round}"), "o", id, false);
        rig.settle();
    }
    assert_eq!(rig.paused_topics("f"), 5);
    assert_eq!(rig.disk.payloads(), ["o"; 10]);
}

#[test]
fn a_function_that_fails_over_several_topics_is_paused_until_one_works() {
    let mut rig = Rig::new(one());
    let mut id = 0;
    for topic in ["t/1", "t/2", "t/3"] {
        assert!(!rig.is_paused());
        for _ in 0..3 {
            id += 1;
            rig.receive(topic, "x", id, false);
            rig.settle();
        }
    }
    assert!(rig.is_paused());
    // Once is enough for another topic now.
    rig.receive("t/4", "x", 10, false);
    rig.settle();
    assert_eq!(rig.paused_topics("f"), 4);
    rig.receive("t/5", "o", 11, false);
    rig.settle();
    assert!(!rig.is_paused());
    assert_eq!((rig.paused_topics("f"), rig.paused.clone()), (4, vec![true, false]));
}

#[test]
fn saying_no_is_no_misbehaviour() {
    let mut rig = Rig::new(one());
    for id in 1..=10 {
        rig.receive("t/1", "r", id, false);
    }
    rig.settle();
    assert_eq!(rig.disk.reasons(), ["rejected"; 10]);
    assert!(!rig.is_paused());
}

/// The disk fails while the one message that may show that a function works again is under way.
#[test]
fn a_probe_that_is_lost_does_not_close_the_function_for_ever() {
    let mut rig = Rig::new(one());
    for id in 1..=3 {
        rig.receive("t/1", "x", id, false);
    }
    rig.settle();
    rig.pass(11);
    rig.receive("t/1", "o", 4, false);
    rig.fail_disk();
    rig.receive("t/1", "o", 4, true);
    rig.settle();
    assert_eq!(rig.disk.payloads(), ["o"]);
    assert_eq!(rig.paused_topics("f"), 0);
}

#[test]
fn timers_call_their_function_also_to_see_whether_it_works_again() {
    let every = |manifest: Manifest| Manifest { every: Some(Duration::from_secs(5)), ..manifest };
    let mut rig = Rig::new(Vec::new());
    // Traps over everything, ticks included.
    rig.deploy(every(manifest("clock", "t/#", StateScope::Topic)), "derived/x -o", None);
    let ran = |rig: &Rig| rig.metrics.function(&"clock".into()).invocations.get();
    rig.settle();
    assert_eq!(ran(&rig), 0);
    rig.pass(5);
    rig.settle();
    assert_eq!(ran(&rig), 1);
    // What was missed is not made up for.
    rig.pass(50);
    rig.settle();
    assert_eq!(ran(&rig), 2);
    rig.pass(5);
    rig.settle();
    assert_eq!((ran(&rig), rig.paused_topics("clock")), (3, 1));
    rig.pass(5);
    rig.settle();
    assert_eq!(ran(&rig), 3, "it is paused");
    rig.pass(6);
    rig.settle();
    assert_eq!(ran(&rig), 4, "after the pause a tick is the probe");
    rig.receive("t/1", "c", 1, false);
    rig.settle();
    assert_eq!(ran(&rig), 5, "topics are not paused with the timer");
}

#[test]
fn what_is_too_large_or_goes_round_in_circles_is_not_run() {
    let mut rig = Rig::new(one());
    rig.receive("t/1", &"o".repeat(1997), 1, false);
    rig.receive("t/1", &"o".repeat(2001), 2, false);
    rig.receive_with("t/1", "o", 3, false, &[(HOPS, "3")]);
    rig.receive_with("t/1", "o", 4, false, &[(HOPS, "4")]);
    rig.receive_with("t/1", "o", 5, false, &[(HOPS, "4294967295")]);
    rig.settle();
    let mut reasons = rig.disk.reasons();
    reasons.sort_unstable();
    assert_eq!(reasons, ["payload-too-large", "too-many-hops", "too-many-hops"]);
    let details: Vec<&str> = rig.disk.dead_letters.iter().map(|it| it.failure.detail.as_str()).collect();
    assert!(details.contains(&"2001 bytes, the limit is 2000 (mqtt.max_payload_bytes)"), "{details:?}");
    let mut hops: Vec<u32> = rig.disk.records.iter().map(|it| it.hops).collect();
    hops.sort_unstable();
    assert_eq!((hops, rig.acknowledged()), (vec![1, 4], vec![1, 2, 3, 4, 5]));
}

#[test]
fn a_message_too_large_beside_its_payload_is_not_run_and_pauses_no_topic() {
    let mut rig = Rig::new(vec![manifest("f", "#", StateScope::None)]);
    let long = "l".repeat(1025);
    let many = vec![("", ""); 65];
    let value = "v".repeat(1997);
    for id in 0..10 {
        rig.receive(&long, "o", 4 * id + 1, false);
        rig.receive_with("t/1", "o", 4 * id + 2, false, &many);
        rig.receive_with("t/1", "o", 4 * id + 3, false, &[("", &value)]);
        // Each at its limit.
        rig.receive_with("t/1", "o", 4 * id + 4, false, &many[1..]);
    }
    rig.receive(&long[1..], "o", 41, false);
    rig.receive_with("t/1", "o", 42, false, &[("", &value[1..])]);
    rig.settle();
    assert_eq!(rig.disk.payloads(), ["o"; 12]);
    assert!(!rig.is_paused());
    let letter = |reason: &str| {
        let found = rig.disk.dead_letters.iter().filter(|it| it.failure.code.as_str() == reason).collect::<Vec<_>>();
        assert_eq!(found.len(), 10, "{reason}");
        found[0].clone()
    };
    let too_long = letter("topic-too-long");
    let detail = "the topic has 1025 bytes, the limit is 1024; the dead letter has its beginning";
    assert_eq!((&*too_long.failure.detail, &*too_long.message.topic), (detail, &long[1..]));
    let properties = letter("too-many-properties");
    let detail = "65 user properties, the limit is 64; the dead letter has the first 64";
    assert_eq!((&*properties.failure.detail, properties.message.properties.len()), (detail, 64));
    let detail = "2001 bytes: payload 1, topic and properties 2000; the limit for all is 2000 (mqtt.max_payload_bytes)";
    assert_eq!(letter("payload-too-large").failure.detail, detail);
    assert_eq!(rig.acknowledged().len(), 42);
}

#[test]
fn commits_are_divided_where_they_are_large() {
    let mut rig = Rig::new(one());
    for id in 1..=40 {
        rig.receive(&format!("t/{id}"), "b", id, false);
    }
    // Jobs wait for room until the commits are on disk.
    rig.perform();
    let mut largest = 0;
    while rig.disk.records.len() < 40 {
        assert!(rig.work() || !rig.requests.is_empty(), "{}", rig.board.describe());
        while let Some(request) = rig.requests.front() {
            let store::StoreRequest::Commit { commits, .. } = request else { panic!("{request:?}") };
            largest = largest.max(commits.len());
            assert!(commits.iter().map(store::Commit::bytes).sum::<usize>() <= 1 << 20);
            rig.answer();
            rig.perform();
        }
    }
    assert!(largest > 5, "{largest}");
    assert_eq!(rig.acknowledged(), (1..=40).collect::<Vec<u16>>());
}

/// From one message, 29,333 were received in half a minute, with no end in sight.
#[test]
fn two_functions_that_answer_each_other_run_out() {
    let mut rig = Rig::new(vec![manifest("f", "t/#", StateScope::None), manifest("g", "t/#", StateScope::None)]);
    let budgets = |rig: &Rig| rig.disk.records.iter().map(|it| it.fan_out).collect::<Vec<u32>>();
    rig.receive("t/1", "o", 1, false);
    rig.receive_with("t/2", "o", 2, false, &[(FAN_OUT, "1000000")]);
    rig.settle();
    assert_eq!(budgets(&rig), [49; 4], "half of 100 for each function, and one is spent");
    rig.disk.records.clear();
    rig.receive_with("t/1", "o", 3, false, &[(FAN_OUT, "1")]);
    rig.receive_with("t/2", "o", 4, false, &[(FAN_OUT, "0")]);
    rig.receive_with("t/3", "-", 5, false, &[(FAN_OUT, "0")]);
    rig.settle();
    assert_eq!((budgets(&rig), rig.disk.reasons()), (vec![0], vec!["fan-out"; 3]));
    assert!(!rig.is_paused());
    assert_eq!(rig.acknowledged(), [1, 2, 3, 4, 5]);
}

#[test]
fn a_function_publishes_only_where_it_may() {
    let mut rig = Rig::new(one_with_state());
    for (id, payload) in (1..).zip(["#1", "e2", "c3", "E4", "c5"]) {
        rig.receive("t/1", payload, id, false);
    }
    rig.settle();
    assert_eq!(rig.disk.reasons(), ["invalid-topic", "not-allowed", "not-allowed"]);
    assert!(rig.disk.dead_letters[2].failure.detail.contains("\"elsewhere\""));
    assert_eq!(rig.disk.payloads(), ["c3", "c5"]);
    // What the run that failed had counted is forgotten, by the disk and by the worker.
    assert_eq!(rig.disk.count("f", Some("t/1")), 2);
}

#[test]
fn repeated_alerts_are_folded() {
    let mut rig = Rig::new(one());
    for id in 1..=3 {
        rig.receive("t/1", "a", id, false);
    }
    rig.settle();
    let streams: Vec<Stream> = rig.disk.records.iter().map(|it| it.stream).collect();
    assert_eq!(streams, [Stream::LOCAL, Stream::ALERT]);
    assert_eq!((&*rig.disk.records[0].topic, &*rig.disk.records[1].topic), ("sedge/board/alerts/f", "alerts/f"));
    rig.pass(60);
    rig.receive("t/1", "a", 4, false);
    rig.settle();
    assert_eq!(rig.disk.records.len(), 4);
    assert!(rig.disk.payloads()[3].contains("\"folded\":2"), "{:?}", rig.disk.payloads());
    assert_eq!(rig.acknowledged(), [1, 2, 3, 4]);
}

#[test]
fn after_a_disk_failure_nothing_uncommitted_counts() {
    let mut rig = Rig::new(one_with_state());
    rig.receive("t/1", "c1", 1, false);
    rig.settle();
    rig.receive("t/1", "c2", 2, false);
    rig.receive("t/1", "t3", 3, false);
    rig.work_until(|it| it.commits() == 2);
    assert_eq!(rig.acknowledged(), [1]);
    rig.fail_disk();
    assert!(rig.board.is_idle() && rig.acknowledged.is_empty());
    rig.receive("t/1", "c2", 2, true);
    rig.receive("t/1", "t3", 3, true);
    rig.settle();
    rig.pass(1);
    rig.settle();
    assert_eq!(rig.disk.payloads(), ["c1", "c2", "t3"]);
    assert_eq!((rig.disk.count("f", Some("t/1")), rig.acknowledged()), (2, vec![2, 3]));
}

#[test]
fn a_refused_run_leaves_nothing_in_the_worker() {
    let mut sum = manifest("sum", "t/#", StateScope::Function);
    // One scope with a counter, and 600 bytes.
    sum.limits.state_total_bytes = NonZeroU64::new(1200);
    let mut rig = Rig::new(vec![sum]);
    for (packet_id, payload) in ["c1", "S2", "S4", "c5", "S1", "c7"].into_iter().enumerate() {
        rig.receive("t/1", payload, packet_id as u16 + 1, false);
    }
    rig.settle();
    assert_eq!(rig.disk.reasons(), ["state-full"]);
    assert_eq!(rig.disk.count("sum", None), 3);
    assert_eq!(rig.acknowledged(), [1, 2, 3, 4, 5, 6]);
    assert_eq!(rig.disk.payloads().len(), 5, "the refused run published nothing");
    let letter = &rig.disk.dead_letters[0].failure.detail;
    assert!(letter.contains("limits.state_total_bytes"), "{letter}");
}

/// Also a run that is refused for another reason than its state.
#[test]
fn a_run_with_too_many_publications_leaves_nothing_in_the_worker() {
    let mut rig = Rig::new(vec![manifest("sum", "t/#", StateScope::Function)]);
    rig.receive("t/1", "c1", 1, false);
    rig.receive_with("t/1", "c2", 2, false, &[("sedge-fan-out", "0")]);
    rig.receive("t/1", "c3", 3, false);
    rig.settle();
    assert_eq!(rig.disk.reasons(), ["fan-out"]);
    assert_eq!(rig.disk.count("sum", None), 2);
}

#[test]
fn the_topic_that_was_not_used_for_longest_is_forgotten_in_the_worker_too() {
    let mut f = manifest("f", "t/#", StateScope::Topic);
    f.limits.state_total_bytes = NonZeroU64::new(1300);
    f.state_full = StateFull::ForgetOldest;
    let mut rig = Rig::new(vec![f.clone()]);
    let mut packet_id = 0;
    let mut count = |rig: &mut Rig, topic: &str| {
        packet_id += 1;
        rig.receive(topic, &format!("c{packet_id}"), packet_id, false);
        rig.settle();
    };
    for topic in ["t/1", "t/2", "t/1", "t/3", "t/2"] {
        count(&mut rig, topic);
    }
    assert_eq!(rig.disk.reasons(), [""; 0]);
    let counts = |rig: &Rig| ["t/1", "t/2", "t/3"].map(|topic| rig.disk.count("f", Some(topic)));
    assert_eq!(counts(&rig), [0, 1, 1], "t/2 made room for t/3, then t/1 for t/2");
    // After a restart the bound holds as before.
    let mut rig = Rig::over(vec![f], std::mem::take(&mut rig.disk));
    count(&mut rig, "t/1");
    assert_eq!(counts(&rig).iter().sum::<u64>(), 2);
}
