//! Wakes that are set, moved and cancelled while messages are under way, and over failures and restarts.
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

use sedge_core::board::Input;
use sedge_core::manifest::{StateScope, Trial, TrialMode};
use sedge_sim::rig::{Rig, manifest};

/// `w3` sets k0 after 60 ms, `w12` after 90 s; `v3` cancels k0. `w4` sets k1, which asks once for another run, and `w5` k2, whose
/// run sets another. See `sedge_sim::wakes`.
fn rig(state: StateScope) -> Rig {
    let mut rig = Rig::new(vec![manifest("f", "t/#", state)]);
    rig.deploy(manifest("f", "t/#", state), "derived/x+", None);
    rig.settle();
    rig
}

fn receive(rig: &mut Rig, topic: &str, payload: &str, packet_id: u16) {
    rig.receive(topic, payload, packet_id, false);
    rig.settle();
}

fn waiting(rig: &Rig) -> Vec<&str> {
    rig.disk.wakes.values().map(|wake| &*wake.name).collect()
}

/// Time passes until no wake waits.
fn until_woken(rig: &mut Rig) {
    for _ in 0..200 {
        if rig.disk.wakes.is_empty() && rig.disk.parked.is_empty() {
            return;
        }
        rig.pass(1);
        rig.settle();
    }
    panic!("{:?} never run", rig.disk.wakes);
}

#[test]
fn a_wake_runs_with_the_state_of_the_topic_that_set_it_and_is_gone() {
    let mut rig = rig(StateScope::Topic);
    receive(&mut rig, "t/1", "w3", 1);
    assert_eq!((waiting(&rig), rig.disk.payloads()), (vec!["k0"], vec!["w3 t/1"]));
    let figures = rig.metrics.function(&"f".into());
    assert_eq!((figures.wakes_waiting.get(), figures.wakes.get()), (1, 0));
    until_woken(&mut rig);
    assert_eq!(rig.disk.payloads(), ["w3 t/1", "Wk0 t/1"]);
    assert_eq!((figures.wakes_waiting.get(), figures.wakes.get()), (0, 1));
}

#[test]
fn a_wake_that_is_cancelled_or_moved_does_not_run_at_its_time() {
    let mut rig = rig(StateScope::Function);
    receive(&mut rig, "t/1", "w3", 1);
    receive(&mut rig, "t/2", "v6", 2);
    assert_eq!(waiting(&rig), [""; 0], "the function has one state: k0 of one topic is k0 of the other");
    receive(&mut rig, "t/1", "w3", 3);
    receive(&mut rig, "t/2", "w12", 4);
    rig.pass(5);
    rig.settle();
    assert_eq!(waiting(&rig), ["k0"]);
    until_woken(&mut rig);
    assert_eq!(rig.disk.payloads().last(), Some(&"Wk0 t/2"));
    assert_eq!(rig.disk.payloads().iter().filter(|it| it.starts_with('W')).count(), 1);
}

#[test]
fn a_run_may_set_another_wake_or_ask_to_run_again() {
    let mut rig = rig(StateScope::None);
    receive(&mut rig, "t/1", "w5", 1);
    receive(&mut rig, "t/1", "w4", 2);
    until_woken(&mut rig);
    let woken: Vec<_> = rig.disk.payloads().into_iter().filter(|it| it.starts_with('W')).collect();
    assert_eq!(
        (woken.len(), woken.contains(&"Wk1 t/1"), woken.contains(&"Wchained t/1")),
        (3, true, true),
        "{woken:?}"
    );
}

#[test]
fn a_due_wake_that_waits_behind_a_retry_of_its_topic_runs_after_it() {
    let mut rig = rig(StateScope::Topic);
    receive(&mut rig, "t/1", "w3", 1);
    // Runs again after a second; the wake is due before.
    receive(&mut rig, "t/1", "t7", 2);
    rig.pass(0);
    rig.now += std::time::Duration::from_millis(100);
    rig.settle();
    assert_eq!((waiting(&rig).len(), rig.disk.parked.len()), (0, 2), "it is a message of its key");
    until_woken(&mut rig);
    assert_eq!(rig.disk.payloads(), ["w3 t/1", "t7 t/1", "Wk0 t/1"]);
}

#[test]
fn a_wake_survives_a_failure_of_the_disk_and_a_restart_even_if_it_was_running() {
    let mut rig = rig(StateScope::Topic);
    receive(&mut rig, "t/1", "w3", 1);
    rig.pass(1);
    rig.handle(Input::Timeout);
    rig.work();
    rig.fail_disk();
    assert_eq!(waiting(&rig), ["k0"], "its run was not committed");
    let mut rig = Rig::over(vec![manifest("f", "t/#", StateScope::Topic)], std::mem::take(&mut rig.disk));
    until_woken(&mut rig);
    assert_eq!(rig.disk.payloads(), ["w3 t/1", "Wk0 t/1"]);
}

#[test]
fn a_version_on_trial_that_fails_over_a_wake_costs_none() {
    let mut rig = rig(StateScope::Topic);
    receive(&mut rig, "t/1", "w3", 1);
    let trial = Trial { mode: TrialMode::Live, failures: 5, ..Trial::default() };
    // Traps on what it is sent, and sets no wake with it.
    rig.deploy(manifest("f", "t/#", StateScope::Topic), "derived/y+ wW", Some(trial));
    rig.settle();
    receive(&mut rig, "t/2", "w6", 2);
    until_woken(&mut rig);
    let mut payloads = rig.disk.payloads();
    payloads.sort_unstable();
    assert_eq!(payloads, ["Wk0 t/1", "Wk0 t/2", "w3 t/1", "w6 t/2"]);
}

#[test]
fn the_wakes_of_a_shadow_have_no_effect_and_end_with_it() {
    let mut rig = rig(StateScope::Topic);
    let trial = Trial { mode: TrialMode::Shadow, ..Trial::default() };
    let edition = rig.deploy(manifest("f", "t/#", StateScope::Topic), "derived/y+", Some(trial));
    rig.until_ready(edition);
    receive(&mut rig, "t/1", "w12", 1);
    assert_eq!(waiting(&rig), ["k0"], "of the active version alone");
    rig.handle(Input::DropCandidate { function: "f".into(), edition });
    until_woken(&mut rig);
    rig.pass(100);
    rig.settle();
    assert_eq!(rig.disk.payloads(), ["w12 t/1", "Wk0 t/1"]);
}

#[test]
fn wakes_of_a_removed_function_wait_until_it_is_back() {
    let mut rig = rig(StateScope::Topic);
    receive(&mut rig, "t/1", "w3", 1);
    rig.handle(Input::Remove { function: "f".into() });
    rig.pass(100);
    rig.settle();
    assert_eq!(waiting(&rig), ["k0"]);
    let mut rig = Rig::over(Vec::new(), std::mem::take(&mut rig.disk));
    rig.pass(100);
    rig.settle();
    assert_eq!(waiting(&rig), ["k0"]);
    rig.deploy(manifest("f", "t/#", StateScope::Topic), "derived/x+", None);
    until_woken(&mut rig);
    assert_eq!(rig.disk.payloads(), ["w3 t/1", "Wk0 t/1"]);
    assert!(rig.disk.dead_letters.is_empty());
}

#[test]
fn a_wake_of_another_state_scope_is_dropped() {
    let mut rig = rig(StateScope::Topic);
    receive(&mut rig, "t/1", "w3", 1);
    rig.deploy(manifest("f", "t/#", StateScope::Function), "derived/x+", None);
    rig.settle();
    until_woken(&mut rig);
    assert_eq!(rig.disk.payloads(), ["w3 t/1"]);
}

#[test]
fn while_a_topic_is_paused_its_wakes_wait() {
    let mut rig = rig(StateScope::Topic);
    receive(&mut rig, "t/1", "w3", 1);
    for number in 2..5 {
        receive(&mut rig, "t/1", &format!("x{number}"), number);
    }
    assert_eq!(rig.paused_topics("f"), 1);
    rig.pass(5);
    rig.settle();
    assert_eq!(waiting(&rig), ["k0"]);
    until_woken(&mut rig);
    assert_eq!(rig.disk.payloads(), ["w3 t/1", "Wk0 t/1"]);
    assert_eq!(rig.disk.reasons(), ["trap"; 3]);
}

#[test]
fn a_function_has_no_more_wakes_than_it_may() {
    let mut rig = rig(StateScope::Topic);
    for number in 0..101 {
        receive(&mut rig, &format!("t/{number}"), "w12", number + 1);
    }
    assert_eq!((rig.disk.wakes.len(), rig.disk.reasons()), (100, vec!["too-many-wakes"]));
    assert!(rig.disk.dead_letters[0].failure.detail.contains("101 wakes would wait for f, the limit is 100"));
    receive(&mut rig, "t/7", "w12", 102);
    assert_eq!(rig.disk.reasons().len(), 1, "moving one is no further one");
    until_woken(&mut rig);
    assert_eq!(rig.disk.payloads().iter().filter(|it| it.starts_with('W')).count(), 100);
}
