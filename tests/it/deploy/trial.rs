//! Versions on trial: live, with the previous version as the fallback, and as shadows.

use std::time::Duration;

use sedge_core::deploy::payload::OrderChange;
use sedge_core::deploy::reason::Reason;
use sedge_core::deploy::report::{DeployState, Progress};
use serde_json::json;

use super::{PATIENCE, Yard};
use crate::harness::eventually;
use crate::harness::wire::Publish;

#[test]
fn a_version_that_traps_is_rolled_back_and_the_one_before_runs_the_message_again() {
    let yard = Yard::start();
    let dir = yard.source("v2", |toml| toml.replace("[config]", "[config]\ntrap = 7").replace("secs = 1", "secs = 60"));
    let push = yard.begin_push(&dir);
    yard.await_report(|it| it.state == DeployState::Trial);
    yard.publish(Publish::new("count/a", "7"));
    let (code, answer) = super::answer(&push.wait_with_output().unwrap());
    assert_eq!((code, &answer["nodes"][0]["reason"]), (Some(1), &json!("failed-trial")), "{answer}");
    assert!(answer["nodes"][0]["error"].as_str().unwrap().contains("trap"), "{answer}");
    let said = || yard.said.received();
    assert!(eventually(PATIENCE, || said().iter().any(|it| it.topic == "said/v1" && it.text() == "7")), "{:?}", said());
    assert_eq!(yard.daemon.metric("sedge_dead_letters_total"), 0.0);
    yard.serves("v1");
    let report = yard.await_report(|it| it.state == DeployState::RolledBack);
    assert_eq!(report.active.unwrap().version.serial, 1);
}

#[test]
fn a_first_version_that_traps_leaves_nothing() {
    let yard = Yard::start();
    assert_eq!(yard.ask(&["remove", "edition"]).0, Some(0));
    let dir = yard.source("v2", |toml| toml.replace("[config]", "[config]\ntrap = 7").replace("secs = 1", "secs = 60"));
    let push = yard.begin_push(&dir);
    yard.await_report(|it| it.state == DeployState::Trial);
    yard.publish(Publish::new("count/a", "7"));
    let (code, answer) = super::answer(&push.wait_with_output().unwrap());
    assert_eq!((code, &answer["nodes"][0]["active"]), (Some(1), &json!(null)), "{answer}");
    // There is no fallback to run the message again: it becomes a dead letter.
    assert!(
        eventually(PATIENCE, || yard.daemon.metric("sedge_dead_letters_total") == 1.0),
        "{}",
        yard.daemon.counters()
    );
    assert_eq!(yard.push(&yard.source("v3", |toml| toml)).0, Some(0));
    yard.serves("v3");
}

#[test]
fn failures_that_the_manifest_allows_do_not_end_a_trial() {
    let yard = Yard::start();
    yard.send_chunks(&yard.module());
    yard.send(&yard.install_of(2, &yard.module(), |manifest| {
        manifest["config"]["trap"] = json!("7");
        manifest["trial"] = json!({ "messages": 3, "secs": 60, "failures": 1 });
    }));
    yard.await_state(2, DeployState::Trial);
    for number in ["1007", "1008", "1009"] {
        yard.publish(Publish::new("count/a", number));
    }
    let report = yard.await_state(2, DeployState::Active);
    assert_eq!(report.active.unwrap().version.serial, 2);
    let runs_again = || yard.said.received().iter().any(|it| it.topic == "said/v1" && it.text() == "1008");
    // 1008 = 7 * 144.
    assert!(eventually(PATIENCE, runs_again), "{:?}", yard.said.received());
    assert_eq!(yard.daemon.metric("sedge_dead_letters_total"), 0.0);
    yard.serves("v2");
}

#[test]
fn a_shadow_is_compared_shown_and_promoted() {
    let yard = Yard::start();
    let dir = yard.source("v2", |toml| toml);
    let (code, answer) = yard.ask(&["push", dir.to_str().unwrap(), "--mode", "shadow"]);
    assert_eq!((code, &answer["nodes"][0]["state"]), (Some(0), &json!("trial")), "{answer}");
    for _ in 0..3 {
        yard.serves("v1");
    }
    let report = yard.await_report(|it| !it.differences.is_empty());
    assert_eq!(report.state, DeployState::Trial);
    let counted = |report: &sedge_core::deploy::report::Report| {
        matches!(report.progress, Some(Progress::Trial { run: 3, failed: 0, different: 3, .. }))
    };
    yard.await_report(counted);
    let status = yard.command(&["status"]).output().unwrap();
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.contains("publish said/v1") && status.contains("publish said/v2"), "{status}");
    // The shadow has its own state: its counts are not in the count upstream.
    let (code, answer) = yard.ask(&["promote", "edition"]);
    assert_eq!((code, &answer["nodes"][0]["state"]), (Some(0), &json!("active")), "{answer}");
    yard.serves("v2");
    assert!(yard.said.received().iter().filter(|it| it.topic == "said/v2").count() == 1, "a shadow is not heard");
}

#[test]
fn a_shadow_that_says_the_same_is_promoted_by_rule_and_another_is_not() {
    let yard = Yard::start();
    yard.send_chunks(&yard.module());
    let shadow = json!({ "mode": "shadow", "messages": 2, "secs": 60, "differences": 0 });
    yard.send(&yard.install_of(2, &yard.module(), |manifest| manifest["trial"] = shadow.clone()));
    yard.await_state(2, DeployState::Trial);
    for _ in 0..2 {
        yard.serves("v1");
    }
    let report = yard.await_state(2, DeployState::RolledBack);
    assert_eq!(report.reason, Some(Reason::FailedTrial));
    yard.serves("v1");

    // Another module: a shadow's state is stored under the digest, and outlives the shadow.
    let other = yard.other_module(b's');
    yard.send_chunks(&other);
    yard.send(&yard.install_of(3, &other, |manifest| {
        manifest["trial"] = shadow;
        manifest["config"]["label"] = json!("v1");
    }));
    yard.await_state(3, DeployState::Trial);
    for _ in 0..2 {
        yard.serves("v1");
    }
    yard.await_state(3, DeployState::Active);
    yard.serves("v1");
}

#[test]
fn a_rollback_ends_a_shadow_and_a_newer_push_takes_its_place() {
    let yard = Yard::start();
    yard.send_chunks(&yard.module());
    let shadow = |serial| yard.install_of(serial, &yard.module(), |it| it["trial"] = json!({ "mode": "shadow" }));
    yard.send(&shadow(2));
    yard.await_state(2, DeployState::Trial);
    yard.send(&shadow(3));
    yard.await_state(3, DeployState::Trial);
    yard.serves("v1");
    yard.send(&yard.order(4, OrderChange::Rollback));
    let report = yard.await_report(|it| it.state == DeployState::RolledBack && it.serial == Some(4));
    assert_eq!(report.active.unwrap().version.serial, 1);
    yard.serves("v1");
    yard.send(&yard.order(5, OrderChange::Promote));
    let report = yard.await_report(|it| it.reason == Some(Reason::NoTrial));
    assert_eq!(report.active.unwrap().version.serial, 1);
    yard.send(&yard.install(6));
    yard.await_active(6);
}

#[test]
fn a_version_that_gets_no_message_is_active_after_its_time() {
    let yard = Yard::start();
    yard.send_chunks(&yard.module());
    let begun = std::time::Instant::now();
    yard.send(&yard.install(2));
    yard.await_state(2, DeployState::Active);
    assert!(begun.elapsed() >= Duration::from_secs(1), "after {:?}", begun.elapsed());
    yard.serves("v2");
}
