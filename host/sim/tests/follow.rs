//! Runs for views while messages are under way.
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use sedge_core::board::{Follow, Input, MAX_FOLLOWS};
use sedge_core::forward::HOPS;
use sedge_core::manifest::{StateScope, Trial, TrialMode};
use sedge_core::topic::TopicFilter;
use sedge_sim::rig::{Rig, manifest};

fn follow(id: u32, function: Option<&str>, topic: Option<&str>) -> (Follow, Arc<AtomicU64>) {
    let left_out = Arc::new(AtomicU64::new(0));
    let topic = topic.map(|topic| TopicFilter::parse(topic).unwrap());
    (Follow { id, function: function.map(Into::into), topic, left_out: Arc::clone(&left_out) }, left_out)
}

fn open(rig: &mut Rig, follows: Vec<Follow>) {
    rig.handle(Input::Follow(follows));
    rig.perform();
}

/// Views, topic, payload, result and keys written of each run.
fn lines(rig: &Rig) -> Vec<String> {
    let line = |run: &sedge_core::board::FollowedRun| {
        let keys: Vec<_> = run.writes.iter().map(|(key, _)| key.as_str()).collect();
        let payload = String::from_utf8_lossy(&run.payload.bytes);
        format!("{:?} {} {payload} {} {}", run.follows, run.topic, run.result, keys.join(","))
    };
    rig.followed.iter().map(line).collect()
}

#[test]
fn a_run_is_shown_once_it_is_on_disk() {
    let mut rig = Rig::new(vec![manifest("f", "t/#", StateScope::Topic)]);
    rig.receive("t/1", "c0", 1, false);
    rig.settle();
    assert!(rig.followed.is_empty(), "nobody looks");
    open(&mut rig, vec![follow(1, None, None).0]);
    rig.receive("t/1", "c1", 2, false);
    rig.work_until(|rig| rig.commits() == 1);
    assert!(rig.followed.is_empty(), "its commit is under way");
    rig.fail_disk();
    rig.receive("t/1", "c1", 2, true);
    rig.settle();
    assert_eq!(lines(&rig), ["[1] t/1 c1 done n"], "once, although it ran twice");
    let shown = &rig.followed[0];
    assert_eq!((shown.outputs[0].kind, shown.outputs[0].to.as_deref()), ("publish", Some("derived/x")));
    open(&mut rig, Vec::new());
    rig.receive("t/1", "c2", 3, false);
    rig.settle();
    assert_eq!(rig.followed.len(), 1);
}

#[test]
fn a_view_has_the_runs_of_its_function_and_topics() {
    let functions = ["f", "g"].map(|name| manifest(name, "t/#", StateScope::None));
    let mut rig = Rig::new(functions.into());
    open(&mut rig, vec![follow(1, Some("f"), None).0, follow(2, None, Some("t/+/b")).0, follow(3, Some("h"), None).0]);
    for (number, topic) in [(1, "t/a"), (2, "t/a/b")] {
        rig.receive(topic, "n", number, false);
        rig.settle();
    }
    let mut lines = lines(&rig);
    lines.sort();
    assert_eq!(lines, ["[1, 2] t/a/b n done ", "[1] t/a n done ", "[2] t/a/b n done "]);
}

#[test]
fn retries_failures_and_messages_that_never_run_are_shown_as_what_they_are() {
    let mut rig = Rig::new(vec![manifest("f", "t/#", StateScope::None)]);
    open(&mut rig, vec![follow(1, None, None).0]);
    for (number, payload) in [(1, "r"), (2, "t"), (3, "E")] {
        rig.receive(&format!("t/{number}"), payload, number, false);
        rig.settle();
    }
    rig.receive_with("t/4", "n", 4, false, &[(HOPS, "9")]);
    rig.settle();
    let ends: Vec<_> = rig.followed.iter().map(|run| (run.result, run.reason.unwrap_or("-"))).collect();
    assert_eq!(ends, [("failed", "rejected"), ("retry", "-"), ("failed", "not-allowed"), ("failed", "too-many-hops")]);
    assert_eq!(rig.followed[3].hops, 9);
}

#[test]
fn the_runs_of_a_shadow_are_marked_as_such_and_count_within_the_bound_of_the_view() {
    let mut rig = Rig::new(vec![manifest("f", "t/#", StateScope::Topic)]);
    let mut second = manifest("f", "t/#", StateScope::Topic);
    second.version = "2.0.0".into();
    let messages = 100.try_into().unwrap();
    let trial = Trial { mode: TrialMode::Shadow, messages, failures: 10, ..Trial::default() };
    let shadow = rig.deploy(second, "derived/y", Some(trial));
    rig.until_ready(shadow);
    open(&mut rig, vec![follow(1, Some("f"), None).0]);
    for (number, payload) in (1..).zip(["c1", "r"]) {
        rig.receive("t/1", payload, number, false);
        rig.settle();
    }
    let mut runs: Vec<_> = rig
        .followed
        .iter()
        .map(|run| (&*run.version, run.shadow_of.as_deref(), run.result, run.writes.len()))
        .collect();
    runs.sort();
    let [first, second] = ["1.0.0", "2.0.0"];
    let of_first = [(first, None, "done", 1), (first, None, "failed", 0)];
    let of_second = [(second, Some(first), "done", 1), (second, Some(first), "failed", 0)];
    assert_eq!(runs, [of_first, of_second].concat());
    for number in 3..=14 {
        rig.receive("t/1", "n", number, false);
        rig.settle();
    }
    assert_eq!(rig.followed.len(), 20, "both kinds count");
}

#[test]
fn a_view_is_sampled_under_load_and_counts_what_it_leaves_out() {
    let mut rig = Rig::new(vec![manifest("f", "t/#", StateScope::None)]);
    let (busy, left_out) = follow(1, None, Some("t/busy"));
    let (quiet, none_left_out) = follow(2, None, Some("t/quiet"));
    open(&mut rig, vec![busy, quiet]);
    let burst = |rig: &mut Rig| {
        for number in 1..=19 {
            rig.receive("t/busy", "n", number, false);
        }
        rig.receive("t/quiet", "n", 20, false);
        rig.settle();
    };
    (0..3).for_each(|_| burst(&mut rig));
    let of = |rig: &Rig, view: u32| rig.followed.iter().filter(|run| run.follows == [view]).count();
    assert_eq!((of(&rig, 1), left_out.load(Relaxed)), (20, 37));
    assert_eq!((of(&rig, 2), none_left_out.load(Relaxed)), (3, 0), "each view has a rate of its own");
    assert_eq!(rig.acknowledged().len(), 60, "no message waits for a view");
    rig.pass(1);
    burst(&mut rig);
    assert_eq!((of(&rig, 1), left_out.load(Relaxed)), (30, 46));
}

#[test]
fn more_views_than_there_may_be_are_not_followed() {
    let mut rig = Rig::new(vec![manifest("f", "t/#", StateScope::None)]);
    open(&mut rig, (0..2 * MAX_FOLLOWS as u32).map(|id| follow(id, None, None).0).collect());
    rig.receive("t/1", "n", 1, false);
    rig.settle();
    assert_eq!(rig.followed[0].follows.len(), MAX_FOLLOWS);
}
