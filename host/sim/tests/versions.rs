//! Versions that take each other's places while messages flow.
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

use std::time::Duration;

use sedge_core::board::Input;
use sedge_core::deploy::TrialEvent;
use sedge_core::manifest::{Manifest, StateScope, Trial, TrialMode};
use sedge_core::message::{FailureCode, Scope};
use sedge_core::stream::Stream;
use sedge_core::time::Now;
use sedge_sim::rig::{Rig, manifest};

fn one() -> Vec<Manifest> {
    vec![manifest("f", "t/#", StateScope::None)]
}

fn one_with_state() -> Vec<Manifest> {
    vec![manifest("f", "t/#", StateScope::Topic)]
}

fn trial(messages: u32, failures: u32) -> Trial {
    Trial { messages: messages.try_into().unwrap(), failures, ..Trial::default() }
}

fn shadow(messages: u32, differences: Option<u32>) -> Trial {
    Trial { mode: TrialMode::Shadow, differences, ..trial(messages, 0) }
}

fn shadow_of(messages: u32) -> Trial {
    shadow(messages, None)
}

const FIRST: &str = "derived/x";
/// Publishes elsewhere than the first version, so that one sees which of them ran.
const SECOND: &str = "derived/y";

#[test]
fn messages_in_flight_are_finished_by_the_version_that_began_them() {
    let mut rig = Rig::new(one_with_state());
    for n in 1..=5 {
        rig.receive("t/1", &format!("c{n}"), n, false);
    }
    let second = rig.deploy(one_with_state().remove(0), SECOND, None);
    rig.receive("t/1", "c6", 6, false);
    rig.settle();
    rig.until_ready(second);
    for n in 7..=9 {
        rig.receive("t/1", &format!("c{n}"), n, false);
    }
    rig.settle();
    let ran: String = rig.ran().iter().map(|(version, _)| *version).collect();
    assert_eq!(ran, "xxxxxxyyy");
    assert_eq!(rig.disk.count("f", Some("t/1")), 9, "they share their state");
    assert_eq!(rig.acknowledged(), (1..=9).collect::<Vec<_>>());
}

#[test]
fn a_version_that_traps_on_trial_is_rolled_back_and_loses_no_message() {
    let mut rig = Rig::new(one_with_state());
    let bad = rig.deploy(one_with_state().remove(0), "derived/y o", Some(trial(10, 0)));
    rig.until_ready(bad);
    // All of them are with the worker before the first traps.
    for (id, payload) in (1..).zip(["c1", "o2", "c3", "o4", "c5"]) {
        rig.receive("t/1", payload, id, false);
    }
    rig.receive("t/2", "c6", 6, false);
    rig.settle();
    let on = |rig: &Rig, numbers: &str| -> Vec<(char, String)> {
        let all = rig.ran().into_iter().map(|(version, payload)| (version, payload.to_owned()));
        all.filter(|(_, payload)| numbers.contains(&payload[1..])).collect()
    };
    let expected = [('y', "c1"), ('x', "o2"), ('x', "c3"), ('x', "o4"), ('x', "c5")];
    assert_eq!(on(&rig, "12345"), expected.map(|(version, payload)| (version, payload.to_owned())));
    assert_eq!(rig.disk.dead_letters, []);
    assert_eq!(rig.disk.count("f", Some("t/1")), 3);
    assert_eq!(rig.failure(bad).unwrap().code, FailureCode::Trap);
    rig.receive("t/2", "o7", 7, false);
    rig.settle();
    assert_eq!(rig.ran().last(), Some(&('x', "o7")), "the first version serves again");
    assert_eq!(rig.acknowledged(), [1, 2, 3, 4, 5, 6, 7]);
    assert!(!rig.is_paused());
}

#[test]
fn a_version_that_keeps_its_terms_is_kept() {
    let mut rig = Rig::new(one());
    let second = rig.deploy(one().remove(0), "derived/y a", Some(trial(4, 1)));
    rig.until_ready(second);
    for (id, payload) in (1..).zip(["o1", "a", "r", "o4", "o5"]) {
        rig.receive("t/1", payload, id, false);
    }
    rig.settle();
    // Saying no is no failure, and the one trap is allowed: the version before makes its alert.
    assert_eq!(rig.disk.reasons(), ["rejected"]);
    let alerts = rig.disk.records.iter().filter(|it| it.stream == Stream::ALERT).count();
    assert_eq!(alerts, 1);
    assert!(rig.has_said(second, &TrialEvent::Passed));
    rig.receive("t/1", "a", 6, false);
    rig.settle();
    assert_eq!(rig.disk.reasons(), ["rejected", "trap"], "nobody stands behind it any more");
    assert_eq!(rig.ran().last(), Some(&('y', "o5")));
}

/// Lets the time of a trial pass that has begun just now.
fn be_late(rig: &mut Rig, edition: u32) {
    assert_eq!(rig.next_due(), Some(rig.now + Duration::from_secs(60)));
    rig.pass(59);
    rig.settle();
    assert!(!rig.has_said(edition, &TrialEvent::Late));
    rig.pass(1);
    rig.settle();
    rig.perform();
    assert!(rig.has_said(edition, &TrialEvent::Late) && !rig.has_said(edition, &TrialEvent::Passed));
    assert_eq!(rig.next_due(), None, "no clock ends it");
}

#[test]
fn a_trial_that_saw_no_message_in_its_time_is_still_guarded() {
    let mut rig = Rig::new(one());
    let bad = rig.deploy(one().remove(0), "derived/y o", Some(trial(10, 0)));
    rig.until_ready(bad);
    be_late(&mut rig, bad);
    rig.receive("t/1", "o1", 1, false);
    rig.settle();
    assert_eq!(rig.ran(), [('x', "o1")], "the version before runs it");
    assert_eq!(rig.disk.dead_letters, []);
    assert_eq!(rig.failure(bad).unwrap().code, FailureCode::Trap);
}

#[test]
fn a_late_trial_is_passed_with_its_messages() {
    let mut rig = Rig::new(one());
    let second = rig.deploy(one().remove(0), "derived/y a", Some(trial(3, 0)));
    rig.until_ready(second);
    be_late(&mut rig, second);
    for n in 1..=3 {
        assert!(!rig.has_said(second, &TrialEvent::Passed));
        rig.receive("t/1", &format!("o{n}"), n, false);
        rig.settle();
    }
    assert!(rig.has_said(second, &TrialEvent::Passed));
    rig.receive("t/1", "a", 4, false);
    rig.settle();
    assert_eq!(rig.disk.reasons(), ["trap"], "nothing guards it any more");
}

/// Some messages are not all of them: what a trial asks for is its messages.
#[test]
fn a_trial_that_saw_too_few_messages_in_its_time_is_still_guarded() {
    let mut rig = Rig::new(one());
    let second = rig.deploy(one().remove(0), "derived/y a", Some(trial(3, 0)));
    rig.until_ready(second);
    rig.receive("t/1", "o1", 1, false);
    rig.settle();
    rig.pass(60);
    rig.settle();
    rig.perform();
    assert!(rig.has_said(second, &TrialEvent::Late));
    rig.receive("t/1", "a", 2, false);
    rig.settle();
    assert!(rig.failure(second).is_some() && rig.disk.dead_letters.is_empty());
}

#[test]
fn a_late_version_hears_only_its_own_topics_and_the_one_before_gets_its_own_back() {
    let mut rig = Rig::new(one());
    let other = || manifest("f", "u/#", StateScope::None);
    let second = rig.deploy(other(), "derived/y a", Some(trial(3, 0)));
    rig.until_ready(second);
    rig.receive("t/1", "o1", 1, false);
    rig.settle();
    assert_eq!(rig.ran(), [('x', "o1")], "during a trial the fallback keeps its topics");
    be_late(&mut rig, second);
    rig.receive("t/1", "o2", 2, false);
    rig.receive("u/1", "o3", 3, false);
    rig.settle();
    assert_eq!(rig.ran(), [('x', "o1"), ('y', "o3")]);
    rig.receive("u/1", "a", 4, false);
    rig.settle();
    assert!(rig.failure(second).is_some());
    rig.receive("t/1", "o5", 5, false);
    rig.settle();
    assert_eq!(rig.ran().last(), Some(&('x', "o5")));
}

#[test]
fn a_version_that_was_late_before_a_restart_serves_at_once_and_is_guarded() {
    let mut rig = Rig::new(one());
    let bad = rig.resume(one().remove(0), "derived/y a", trial(3, 0));
    rig.perform();
    for (id, payload) in (1..).zip(["o1", "a"]) {
        rig.receive("t/1", payload, id, false);
    }
    rig.settle();
    assert_eq!(rig.ran()[0], ('y', "o1"), "no message goes to the version before");
    assert!(rig.failure(bad).is_some() && rig.disk.dead_letters.is_empty());
    assert!(!rig.has_said(bad, &TrialEvent::Late));
    // The first version of a function has nothing behind it and serves at once too.
    let mut rig = Rig::new(Vec::new());
    let first = rig.resume(one().remove(0), "derived/y a", trial(2, 0));
    rig.perform();
    rig.receive("t/1", "o1", 1, false);
    rig.settle();
    assert_eq!(rig.ran(), [('y', "o1")]);
    rig.receive("t/1", "a", 2, false);
    rig.settle();
    assert!(rig.failure(first).is_some());
}

#[test]
fn a_late_first_version_stands_behind_the_next() {
    let mut rig = Rig::new(Vec::new());
    let first = rig.deploy(one().remove(0), FIRST, Some(trial(10, 0)));
    rig.until_ready(first);
    be_late(&mut rig, first);
    let second = rig.deploy(one().remove(0), "derived/y o", Some(trial(10, 0)));
    rig.until_ready(second);
    rig.receive("t/1", "o1", 1, false);
    rig.settle();
    assert_eq!(rig.ran(), [('x', "o1")]);
    assert!(rig.failure(second).is_some() && rig.disk.dead_letters.is_empty());
}

#[test]
fn a_shadow_without_messages_is_not_promoted() {
    let mut rig = Rig::new(one());
    let second = rig.deploy(one().remove(0), SECOND, Some(shadow(2, Some(0))));
    rig.until_ready(second);
    be_late(&mut rig, second);
    for n in 1..=2 {
        rig.receive("t/1", &format!("o{n}"), n, false);
    }
    rig.settle();
    rig.perform();
    assert!(rig.failure(second).is_some(), "it was compared when its messages came");
    assert_eq!(rig.ran(), [('x', "o1"), ('x', "o2")]);
}

#[test]
fn a_first_version_that_fails_leaves_nothing_behind() {
    let mut rig = Rig::new(Vec::new());
    let first = rig.deploy(one().remove(0), "derived/y o", Some(trial(10, 0)));
    rig.until_ready(first);
    rig.receive("t/1", "o1", 1, false);
    rig.settle();
    assert_eq!(rig.disk.reasons(), ["trap"]);
    assert!(rig.failure(first).is_some());
    rig.receive("t/1", "c2", 2, false);
    rig.settle();
    assert_eq!(rig.ran(), []);
    assert_eq!(rig.acknowledged(), [1, 2]);
}

#[test]
fn what_cannot_be_loaded_replaces_nothing() {
    let mut rig = Rig::new(one());
    let bad = rig.deploy(one().remove(0), "", Some(trial(10, 0)));
    rig.until_said(bad, |event| matches!(event, TrialEvent::NotLoaded { .. }));
    rig.receive("t/1", "o1", 1, false);
    rig.settle();
    assert_eq!(rig.ran(), [('x', "o1")]);
}

#[test]
fn a_newer_version_takes_over_from_one_on_trial() {
    let mut rig = Rig::new(one());
    let second = rig.deploy(one().remove(0), SECOND, Some(trial(100, 0)));
    rig.until_ready(second);
    let third = rig.deploy(one().remove(0), "derived/z o", Some(trial(100, 0)));
    rig.until_ready(third);
    rig.receive("t/1", "o1", 1, false);
    rig.settle();
    assert_eq!(rig.ran(), [('x', "o1")], "what is proven stands behind both");
    assert!(rig.failure(third).is_some() && rig.failure(second).is_none());
}

/// Keys, and with them the workers, are others: nothing may be under way while that changes.
#[test]
fn the_scope_of_state_can_change_under_load() {
    let mut rig = Rig::new(vec![manifest("f", "t/#", StateScope::Topic)]);
    for (id, payload) in (1..).zip(["t1", "o2", "o3"]) {
        rig.receive("t/1", payload, id, false);
    }
    rig.settle();
    assert_eq!(rig.disk.parked.len(), 3);
    for n in 4..=9 {
        rig.receive(&format!("t/{}", n % 3), &format!("o{n}"), n, false);
    }
    let second = rig.deploy(manifest("f", "t/#", StateScope::Function), SECOND, Some(trial(3, 0)));
    rig.until_ready(second);
    for n in 10..=15 {
        rig.receive(&format!("t/{}", n % 3), &format!("o{n}"), n, false);
    }
    rig.settle();
    rig.pass(2);
    rig.settle();
    assert_eq!(rig.acknowledged(), (1..=15).collect::<Vec<_>>());
    assert!(rig.disk.parked.is_empty());
    for topic in 0..3 {
        let numbers = rig.disk.payloads().iter().map(|it| it[1..].parse::<u16>().unwrap()).collect::<Vec<_>>();
        let of_topic: Vec<u16> = numbers.into_iter().filter(|n| *n > 3 && n % 3 == topic).collect();
        assert!(of_topic.is_sorted() && of_topic.len() == 4, "{of_topic:?}");
    }
}

#[test]
fn a_failed_trial_with_another_scope_gives_everything_back() {
    let mut rig = Rig::new(vec![manifest("f", "t/#", StateScope::Topic)]);
    let bad = "derived/y o";
    let bad = rig.deploy(manifest("f", "t/#", StateScope::Function), bad, Some(trial(100, 50)));
    rig.until_ready(bad);
    for n in 1..=12 {
        let letter = if n == 4 { 'o' } else { 'c' };
        rig.receive(&format!("t/{}", n % 3), &format!("{letter}{n}"), n, false);
    }
    rig.settle();
    assert!(rig.failure(bad).is_some(), "where messages cannot change hands, no failure is tolerated");
    assert_eq!(rig.disk.dead_letters, []);
    assert_eq!(rig.disk.payloads().len(), 12);
    assert_eq!(rig.acknowledged(), (1..=12).collect::<Vec<_>>());
}

#[test]
fn a_shadow_has_no_effect_and_its_differences_are_reported() {
    let mut rig = Rig::new(one_with_state());
    rig.receive("t/1", "c1", 1, false);
    rig.settle();
    let shadow = rig.deploy(one_with_state().remove(0), SECOND, Some(shadow(3, None)));
    rig.until_ready(shadow);
    for (id, payload) in (2..).zip(["c2", "r", "x", "t5"]) {
        rig.receive("t/1", payload, id, false);
    }
    rig.settle();
    rig.pass(2);
    rig.settle();
    assert_eq!(rig.ran(), [('x', "c1"), ('x', "c2"), ('x', "t5")]);
    assert_eq!(rig.disk.reasons(), ["rejected", "trap"], "those of the active version alone");
    assert_eq!(rig.disk.count("f", Some("t/1")), 2);
    let own = rig.disk.state.keys().find(|scope| scope.function.starts_with("f~")).unwrap().function.clone();
    assert_eq!(rig.disk.count(&own, Some("t/1")), 2, "it began with the state of the active version");
    let last = rig.deployed.iter().rev().find_map(|(_, event)| match event {
        TrialEvent::Progress { tally, samples } => Some((*tally, samples.clone())),
        _ => None,
    });
    let (tally, samples) = last.unwrap();
    assert_eq!(tally.different, 1, "{tally:?} {samples:?}");
    assert_eq!((&*samples[0].active, &*samples[0].candidate), ("publish derived/x c2", "publish derived/y c2"));
    // It ends when a person says so, and leaves the active version as it was.
    rig.pass(1000);
    rig.settle();
    assert!(rig.failure(shadow).is_none() && !rig.has_said(shadow, &TrialEvent::Passed));
    rig.handle(Input::DropCandidate { function: "f".into(), edition: shadow });
    rig.receive("t/1", "c9", 9, false);
    rig.settle();
    assert_eq!(rig.ran().last(), Some(&('x', "c9")));
    assert_eq!(rig.disk.count(&own, Some("t/1")), 2);
    // The same module again begins with the state of now, not with what its first trial left.
    let again = rig.deploy(one_with_state().remove(0), SECOND, Some(shadow_of(3)));
    rig.until_ready(again);
    rig.receive("t/1", "c10", 10, false);
    rig.settle();
    let trials = |it: &&Scope| it.function.starts_with("f~");
    let counts: Vec<u64> =
        rig.disk.state.keys().filter(trials).map(|it| rig.disk.count(&it.function, Some("t/1"))).collect();
    assert!(counts.contains(&4) && counts.len() == 2, "{counts:?}");
}

#[test]
fn a_shadow_is_promoted_or_dropped_by_its_rule() {
    for (code, passes) in [(FIRST, true), (SECOND, false)] {
        let mut rig = Rig::new(one());
        let shadow = rig.deploy(one().remove(0), code, Some(shadow(2, Some(1))));
        rig.until_ready(shadow);
        for (id, payload) in (1..).zip(["o1", "o2", "o3"]) {
            rig.receive("t/1", payload, id, false);
        }
        rig.settle();
        rig.perform();
        assert_eq!(rig.has_said(shadow, &TrialEvent::Passed), passes);
        assert_eq!(rig.failure(shadow).is_some(), !passes);
        assert_eq!(rig.ran().len(), 3);
    }
}

#[test]
fn a_removed_function_hears_nothing_and_can_come_back() {
    let mut rig = Rig::new(one());
    rig.receive("t/1", "t1", 1, false);
    rig.receive("t/2", "o2", 2, false);
    rig.settle();
    rig.receive("t/2", "o3", 3, false);
    rig.handle(Input::Remove { function: "f".into() });
    rig.receive("t/2", "o4", 4, false);
    rig.settle();
    assert_eq!(rig.disk.payloads(), ["o2", "o3"], "what was handed out is finished");
    rig.pass(1);
    rig.settle();
    assert_eq!((rig.disk.reasons(), rig.disk.parked.len()), (vec!["removed"], 0));
    let back = rig.deploy(one().remove(0), SECOND, None);
    rig.until_ready(back);
    rig.receive("t/2", "o5", 5, false);
    rig.settle();
    assert_eq!(rig.ran().last(), Some(&('y', "o5")));
    assert_eq!(rig.acknowledged(), [1, 2, 3, 4, 5]);
}

#[test]
fn the_series_of_a_removed_function_leave_the_metrics_page() {
    let mut rig = Rig::new(one());
    let page = |rig: &Rig| rig.metrics.render(Now { monotonic: rig.now, unix_ms: 0, synced: true });
    rig.receive("t/2", "o1", 1, false);
    rig.settle();
    assert!(page(&rig).contains("function=\"f\""));
    rig.handle(Input::Remove { function: "f".into() });
    assert!(!page(&rig).contains("function=\"f\""), "{}", page(&rig));
    let back = rig.deploy(one().remove(0), SECOND, None);
    rig.until_ready(back);
    rig.receive("t/2", "o2", 2, false);
    rig.settle();
    let page = page(&rig);
    assert!(page.contains("sedge_function_invocations_total{function=\"f\"} 1\n"), "it counts anew: {page}");
}

#[test]
fn a_shadow_that_a_person_judges_does_not_keep_the_board_busy() {
    let mut rig = Rig::new(one_with_state());
    let second = rig.deploy(one_with_state().remove(0), SECOND, Some(shadow_of(5)));
    rig.until_ready(second);
    rig.pass(3600);
    rig.handle(Input::Timeout);
    rig.settle();
    assert!(rig.next_due().is_none_or(|due| due > rig.now), "its time is over, and nothing follows from that");
}
