//! Settings that change while messages are under way.
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

use sedge_core::deploy::TrialEvent;
use sedge_core::manifest::{StateScope, Trial, TrialMode};
use sedge_sim::rig::{Rig, manifest};

fn rig() -> Rig {
    Rig::new(vec![manifest("f", "t/#", StateScope::None)])
}

/// The setting of each run since the last call.
fn ran(rig: &mut Rig) -> Vec<u64> {
    rig.workers.iter_mut().flat_map(|worker| worker.take_ran()).map(|it| it.setting).collect()
}

#[test]
fn a_change_of_settings_takes_effect_between_two_messages_and_loses_nothing() {
    let mut rig = rig();
    rig.settle();
    rig.receive("t/1", "o1", 1, false);
    rig.perform();
    rig.set("f", 7);
    rig.receive("t/1", "o2", 2, false);
    rig.perform();
    assert!(rig.in_force.is_empty(), "one that was handed out may still have the older");
    rig.settle();
    assert_eq!((ran(&mut rig), &rig.in_force[..]), (vec![0, 7], &[7][..]));
    assert_eq!(rig.acknowledged(), [1, 2]);
}

#[test]
fn a_job_that_waited_for_its_state_has_the_newer_settings_and_state_goes_on() {
    let mut rig = Rig::new(vec![manifest("f", "t/#", StateScope::Topic)]);
    rig.settle();
    rig.receive("t/1", "c1", 1, false);
    rig.work_until(|rig| rig.loads() == 1);
    rig.set("f", 7);
    rig.settle();
    rig.receive("t/1", "c2", 2, false);
    rig.settle();
    assert_eq!((ran(&mut rig), rig.disk.count("f", Some("t/1"))), (vec![7, 7], 2));
}

#[test]
fn settings_outlive_versions_workers_and_a_failure_of_the_disk() {
    let mut rig = rig();
    rig.settle();
    rig.set("f", 7);
    rig.set("not-there", 8);
    rig.settle();
    assert_eq!(rig.in_force, [8, 7], "what nobody runs is in force at once");
    rig.deploy(manifest("f", "t/#", StateScope::None), "derived/y", None);
    rig.receive("t/1", "o1", 1, false);
    rig.settle();
    assert_eq!(ran(&mut rig), [7], "the new version");
    rig.workers.iter_mut().for_each(|worker| worker.die("killed"));
    rig.work();
    rig.receive("t/1", "o2", 2, false);
    rig.settle();
    assert_eq!(ran(&mut rig), [7], "the new worker");
    rig.set("f", 9);
    rig.fail_disk();
    assert!(rig.in_force.contains(&9), "nothing that ran before counts");
    rig.settle();
    rig.receive("t/1", "o3", 3, false);
    rig.settle();
    assert_eq!(ran(&mut rig), [9], "after the failure");
}

#[test]
fn a_change_of_settings_restarts_no_trial() {
    let mut rig = rig();
    rig.settle();
    let trial = Trial { messages: 3.try_into().unwrap(), ..Trial::default() };
    let edition = rig.deploy(manifest("f", "t/#", StateScope::None), "derived/y", Some(trial));
    rig.settle();
    for number in 1..=2 {
        rig.receive("t/1", &format!("o{number}"), number, false);
    }
    rig.settle();
    rig.set("f", 7);
    rig.settle();
    assert!(!rig.deployed.contains(&(edition, TrialEvent::Passed)));
    rig.receive("t/1", "o3", 3, false);
    rig.settle();
    assert_eq!(ran(&mut rig), [0, 0, 7]);
    assert!(rig.deployed.contains(&(edition, TrialEvent::Passed)), "{:?}", rig.deployed);
}

#[test]
fn a_change_of_settings_is_no_difference_of_a_shadow() {
    let mut rig = rig();
    rig.settle();
    let messages = 2.try_into().unwrap();
    let trial = Trial { mode: TrialMode::Shadow, messages, differences: Some(0), ..Trial::default() };
    let edition = rig.deploy(manifest("f", "t/#", StateScope::None), "derived/z", Some(trial));
    rig.settle();
    // Both write to other topics, which is a difference wherever they are compared.
    rig.receive("t/1", "o1", 1, false);
    rig.perform();
    rig.set("f", 7);
    rig.receive("t/1", "o2", 2, false);
    rig.settle();
    let passed = |rig: &Rig| rig.deployed.contains(&(edition, TrialEvent::Passed));
    let failed =
        |rig: &Rig| rig.deployed.iter().any(|(of, event)| *of == edition && matches!(event, TrialEvent::Failed { .. }));
    assert!(!passed(&rig) && !failed(&rig), "they count for nothing: {:?}", rig.deployed);
    for number in 3..=4 {
        rig.receive("t/1", &format!("o{number}"), number, false);
    }
    rig.settle();
    assert!(failed(&rig) || !passed(&rig), "{:?}", rig.deployed);
    let tally = rig.deployed.iter().rev().find_map(|(_, event)| match event {
        TrialEvent::Progress { tally, .. } => Some(*tally),
        _ => None,
    });
    rig.pass(2);
    rig.settle();
    assert!(failed(&rig) || tally.is_some_and(|tally| tally.run <= 2), "{:?}", rig.deployed);
}
