//! Versions that take each other's places while messages flow.

use super::*;
use crate::manifest::TrialMode;
use crate::message::Failure;

fn trial(messages: u32, failures: u32) -> Trial {
    Trial { messages: messages.try_into().unwrap(), failures, ..Trial::default() }
}

fn shadow(messages: u32, differences: Option<u32>) -> Trial {
    Trial { mode: TrialMode::Shadow, differences, ..trial(messages, 0) }
}

fn shadow_of(messages: u32) -> Trial {
    shadow(messages, None)
}

/// Publishes elsewhere than the first version, so that one sees which of them ran.
fn second() -> Bytes {
    version("derived/y", "")
}

impl Spine {
    async fn until_said(&mut self, edition: u32, event: impl Fn(&Deployed) -> bool) {
        let started = Instant::now();
        while !self.deployed.iter().any(|(number, said)| *number == edition && event(said)) {
            assert!(started.elapsed() < Duration::from_secs(60), "it never came to that");
            self.answer();
            self.hear(Duration::from_millis(10)).await;
            self.end_turn();
        }
    }

    async fn until_ready(&mut self, edition: u32) {
        self.until_said(edition, |event| *event == Deployed::Ready).await;
    }

    fn has_said(&self, edition: u32, event: &Deployed) -> bool {
        self.deployed.iter().any(|(number, said)| *number == edition && said == event)
    }

    fn failure(&self, edition: u32) -> Option<&Failure> {
        self.deployed.iter().find_map(|(number, said)| match said {
            Deployed::Failed { failure } if *number == edition => Some(failure),
            _ => None,
        })
    }

    /// What was recorded, as the version that did it and the payload.
    fn ran(&self) -> Vec<(char, &str)> {
        let records = self.disk.records.iter();
        records.map(|it| (it.topic.chars().last().unwrap(), str::from_utf8(&it.payload).unwrap())).collect()
    }
}

#[test]
fn messages_in_flight_are_finished_by_the_version_that_began_them() {
    check(|| async {
        let mut spine = Spine::new(one_with_state());
        for n in 1..=5 {
            spine.receive("t/1", &format!("c{n}"), n, false);
        }
        let second = spine.deploy(one_with_state().remove(0), second(), None);
        spine.receive("t/1", "c6", 6, false);
        spine.settle().await;
        spine.until_ready(second).await;
        for n in 7..=9 {
            spine.receive("t/1", &format!("c{n}"), n, false);
        }
        spine.settle().await;
        let ran: String = spine.ran().iter().map(|(version, _)| *version).collect();
        assert_eq!(ran, "xxxxxxyyy");
        assert_eq!(spine.disk.count("f", Some("t/1")), 9, "they share their state");
        assert_eq!(spine.acknowledged(), (1..=9).collect::<Vec<_>>());
    });
}

#[test]
fn a_version_that_traps_on_trial_is_rolled_back_and_loses_no_message() {
    check(|| async {
        let mut spine = Spine::new(one_with_state());
        let bad = spine.deploy(one_with_state().remove(0), version("derived/y", "o"), Some(trial(10, 0)));
        spine.until_ready(bad).await;
        // All of them are with the worker before the first traps.
        for (id, payload) in (1..).zip(["c1", "o2", "c3", "o4", "c5"]) {
            spine.receive("t/1", payload, id, false);
        }
        spine.receive("t/2", "c6", 6, false);
        spine.settle().await;
        let on = |spine: &Spine, numbers: &str| -> Vec<(char, String)> {
            let all = spine.ran().into_iter().map(|(version, payload)| (version, payload.to_owned()));
            all.filter(|(_, payload)| numbers.contains(&payload[1..])).collect()
        };
        let expected = [('y', "c1"), ('x', "o2"), ('x', "c3"), ('x', "o4"), ('x', "c5")];
        assert_eq!(on(&spine, "12345"), expected.map(|(version, payload)| (version, payload.to_owned())));
        assert_eq!(spine.disk.dead_letters, []);
        assert_eq!(spine.disk.count("f", Some("t/1")), 3);
        assert_eq!(spine.failure(bad).unwrap().code, FailureCode::Trap);
        spine.receive("t/2", "o7", 7, false);
        spine.settle().await;
        assert_eq!(spine.ran().last(), Some(&('x', "o7")), "the first version serves again");
        assert_eq!(spine.acknowledged(), [1, 2, 3, 4, 5, 6, 7]);
        assert!(!spine.pipeline.functions()[0].is_quarantined());
    });
}

#[test]
fn a_version_that_keeps_its_terms_is_kept() {
    check(|| async {
        let mut spine = Spine::new(one());
        let second = spine.deploy(one().remove(0), version("derived/y", "a"), Some(trial(4, 1)));
        spine.until_ready(second).await;
        for (id, payload) in (1..).zip(["o1", "a", "r", "o4", "o5"]) {
            spine.receive("t/1", payload, id, false);
        }
        spine.settle().await;
        // Saying no is no failure, and the one trap is allowed: the version before makes its alert.
        assert_eq!(spine.disk.reasons(), ["rejected"]);
        let alerts = spine.disk.records.iter().filter(|it| it.stream == Stream::Alert).count();
        assert_eq!(alerts, 1);
        assert!(spine.has_said(second, &Deployed::Passed));
        spine.receive("t/1", "a", 6, false);
        spine.settle().await;
        assert_eq!(spine.disk.reasons(), ["rejected", "trap"], "nobody stands behind it any more");
        assert_eq!(spine.ran().last(), Some(&('y', "o5")));
    });
}

#[test]
fn a_trial_is_over_when_its_time_is() {
    check(|| async {
        let mut spine = Spine::new(one());
        let second = spine.deploy(one().remove(0), second(), Some(trial(1000, 0)));
        spine.until_ready(second).await;
        assert_eq!(spine.pipeline.next_due(), Some(spine.now + Duration::from_secs(60)));
        spine.pass(59);
        spine.settle().await;
        assert!(!spine.has_said(second, &Deployed::Passed));
        spine.pass(1);
        spine.settle().await;
        spine.end_turn();
        assert!(spine.has_said(second, &Deployed::Passed));
    });
}

#[test]
fn a_first_version_that_fails_leaves_nothing_behind() {
    check(|| async {
        let mut spine = Spine::new(Vec::new());
        let first = spine.deploy(one().remove(0), version("derived/y", "o"), Some(trial(10, 0)));
        spine.until_ready(first).await;
        spine.receive("t/1", "o1", 1, false);
        spine.settle().await;
        assert_eq!(spine.disk.reasons(), ["trap"]);
        assert!(spine.failure(first).is_some());
        spine.receive("t/1", "c2", 2, false);
        spine.settle().await;
        assert_eq!(spine.ran(), []);
        assert_eq!(spine.acknowledged(), [1, 2]);
    });
}

#[test]
fn what_cannot_be_loaded_replaces_nothing() {
    check(|| async {
        let mut spine = Spine::new(one());
        let bad = spine.deploy(one().remove(0), Bytes::from_static(b"no code"), Some(trial(10, 0)));
        spine.until_said(bad, |event| matches!(event, Deployed::NotLoaded { .. })).await;
        spine.receive("t/1", "o1", 1, false);
        spine.settle().await;
        assert_eq!(spine.ran(), [('x', "o1")]);
    });
}

#[test]
fn a_newer_version_takes_over_from_one_on_trial() {
    check(|| async {
        let mut spine = Spine::new(one());
        let second = spine.deploy(one().remove(0), second(), Some(trial(100, 0)));
        spine.until_ready(second).await;
        let third = spine.deploy(one().remove(0), version("derived/z", "o"), Some(trial(100, 0)));
        spine.until_ready(third).await;
        spine.receive("t/1", "o1", 1, false);
        spine.settle().await;
        assert_eq!(spine.ran(), [('x', "o1")], "what is proven stands behind both");
        assert!(spine.failure(third).is_some() && spine.failure(second).is_none());
    });
}

/// Keys, and with them the workers, are others: nothing may be under way while that changes.
#[test]
fn the_scope_of_state_can_change_under_load() {
    check(|| async {
        let mut spine = Spine::new(vec![manifest("f", "t/#", StateScope::Topic)]);
        for (id, payload) in (1..).zip(["t1", "o2", "o3"]) {
            spine.receive("t/1", payload, id, false);
        }
        spine.settle().await;
        assert_eq!(spine.disk.parked.len(), 3);
        for n in 4..=9 {
            spine.receive(&format!("t/{}", n % 3), &format!("o{n}"), n, false);
        }
        let second = spine.deploy(manifest("f", "t/#", StateScope::Function), second(), Some(trial(3, 0)));
        spine.until_ready(second).await;
        for n in 10..=15 {
            spine.receive(&format!("t/{}", n % 3), &format!("o{n}"), n, false);
        }
        spine.settle().await;
        spine.pass(2);
        spine.settle().await;
        assert_eq!(spine.acknowledged(), (1..=15).collect::<Vec<_>>());
        assert!(spine.disk.parked.is_empty());
        for topic in 0..3 {
            let numbers = spine.disk.payloads().iter().map(|it| it[1..].parse::<u16>().unwrap()).collect::<Vec<_>>();
            let of_topic: Vec<u16> = numbers.into_iter().filter(|n| *n > 3 && n % 3 == topic).collect();
            assert!(of_topic.is_sorted() && of_topic.len() == 4, "{of_topic:?}");
        }
    });
}

#[test]
fn a_failed_trial_with_another_scope_gives_everything_back() {
    check(|| async {
        let mut spine = Spine::new(vec![manifest("f", "t/#", StateScope::Topic)]);
        let bad = version("derived/y", "o");
        let bad = spine.deploy(manifest("f", "t/#", StateScope::Function), bad, Some(trial(100, 50)));
        spine.until_ready(bad).await;
        for n in 1..=12 {
            let letter = if n == 4 { 'o' } else { 'c' };
            spine.receive(&format!("t/{}", n % 3), &format!("{letter}{n}"), n, false);
        }
        spine.settle().await;
        assert!(spine.failure(bad).is_some(), "where messages cannot change hands, no failure is tolerated");
        assert_eq!(spine.disk.dead_letters, []);
        assert_eq!(spine.disk.payloads().len(), 12);
        assert_eq!(spine.acknowledged(), (1..=12).collect::<Vec<_>>());
    });
}

#[test]
fn a_shadow_has_no_effect_and_its_differences_are_told() {
    check(|| async {
        let mut spine = Spine::new(one_with_state());
        spine.receive("t/1", "c1", 1, false);
        spine.settle().await;
        let shadow = spine.deploy(one_with_state().remove(0), second(), Some(shadow(3, None)));
        spine.until_ready(shadow).await;
        for (id, payload) in (2..).zip(["c2", "r", "x", "t5"]) {
            spine.receive("t/1", payload, id, false);
        }
        spine.settle().await;
        spine.pass(2);
        spine.settle().await;
        assert_eq!(spine.ran(), [('x', "c1"), ('x', "c2"), ('x', "t5")]);
        assert_eq!(spine.disk.reasons(), ["rejected", "trap"], "those of the active version alone");
        assert_eq!(spine.disk.count("f", Some("t/1")), 2);
        let own = spine.disk.state.keys().find(|scope| scope.function.starts_with("f~")).unwrap().function.clone();
        assert_eq!(spine.disk.count(&own, Some("t/1")), 2, "it began with the state of the active version");
        let last = spine.deployed.iter().rev().find_map(|(_, event)| match event {
            Deployed::Progress { tally, samples } => Some((*tally, samples.clone())),
            _ => None,
        });
        let (tally, samples) = last.unwrap();
        assert_eq!(tally.different, 1, "{tally:?} {samples:?}");
        assert_eq!((&*samples[0].active, &*samples[0].candidate), ("publish derived/x c2", "publish derived/y c2"));
        // It ends when a person says so, and leaves the active version as it was.
        spine.pass(1000);
        spine.settle().await;
        assert!(spine.failure(shadow).is_none() && !spine.has_said(shadow, &Deployed::Passed));
        spine.pipeline.drop_candidate("f", shadow, spine.now, 0);
        spine.receive("t/1", "c9", 9, false);
        spine.settle().await;
        assert_eq!(spine.ran().last(), Some(&('x', "c9")));
        assert_eq!(spine.disk.count(&own, Some("t/1")), 2);
        // The same module again begins with the state of now, not with what its first trial left.
        let again = spine.deploy(one_with_state().remove(0), second(), Some(shadow_of(3)));
        spine.until_ready(again).await;
        spine.receive("t/1", "c10", 10, false);
        spine.settle().await;
        let trials = |it: &&Scope| it.function.starts_with("f~");
        let counts: Vec<u64> =
            spine.disk.state.keys().filter(trials).map(|it| spine.disk.count(&it.function, Some("t/1"))).collect();
        assert!(counts.contains(&4) && counts.len() == 2, "{counts:?}");
    });
}

#[test]
fn a_shadow_is_judged_by_its_rule() {
    check(|| async {
        for (code, passes) in [(function(), true), (second(), false)] {
            let mut spine = Spine::new(one());
            let shadow = spine.deploy(one().remove(0), code, Some(shadow(2, Some(1))));
            spine.until_ready(shadow).await;
            for (id, payload) in (1..).zip(["o1", "o2", "o3"]) {
                spine.receive("t/1", payload, id, false);
            }
            spine.settle().await;
            spine.end_turn();
            assert_eq!(spine.has_said(shadow, &Deployed::Passed), passes);
            assert_eq!(spine.failure(shadow).is_some(), !passes);
            assert_eq!(spine.ran().len(), 3);
        }
    });
}

#[test]
fn a_removed_function_hears_nothing_and_can_come_back() {
    check(|| async {
        let mut spine = Spine::new(one());
        spine.receive("t/1", "t1", 1, false);
        spine.receive("t/2", "o2", 2, false);
        spine.settle().await;
        spine.receive("t/2", "o3", 3, false);
        spine.pipeline.remove_function("f", spine.now);
        spine.receive("t/2", "o4", 4, false);
        spine.settle().await;
        assert_eq!(spine.disk.payloads(), ["o2", "o3"], "what was handed out is finished");
        spine.pass(1);
        spine.settle().await;
        assert_eq!((spine.disk.reasons(), spine.disk.parked.len()), (vec!["removed"], 0));
        let back = spine.deploy(one().remove(0), second(), None);
        spine.until_ready(back).await;
        spine.receive("t/2", "o5", 5, false);
        spine.settle().await;
        assert_eq!(spine.ran().last(), Some(&('y', "o5")));
        assert_eq!(spine.acknowledged(), [1, 2, 3, 4, 5]);
    });
}
