//! Push, status, rollback and removal.

use std::fs;

use serde_json::{Value, json};

use super::Yard;
use crate::harness::guest::{guest, variant};

#[test]
fn a_push_ends_with_the_new_version_at_work() {
    let yard = Yard::start();
    yard.serves("v1");
    assert_eq!(yard.daemon.metric("sedge_sessions_lost_total"), 0.0, "a board's first session was never lost");
    let (code, answer) = yard.push(&yard.source("v2", |toml| toml));
    assert_eq!((code, &answer["counts"]), (Some(0), &json!({ "active": 1 })), "{answer}");
    yard.serves("v2");

    let (code, status) = yard.ask(&["status"]);
    assert_eq!(code, Some(0), "{status}");
    let [_, edition] = &status["nodes"][0]["functions"].as_array().unwrap()[..] else { panic!("{status}") };
    assert_eq!((&edition["state"], &edition["active"]["serial"]), (&json!("active"), &answer["serial"]));
    assert_eq!((&status["nodes"][0]["state"], &edition["previous"]["serial"]), (&json!("online"), &json!(1)));

    // The same push again: nothing is sent and nothing changes.
    let accepted = yard.daemon.metric("sedge_deploy_orders_accepted_total");
    let (code, again) = yard.push(&yard.source("v2", |toml| toml));
    assert_eq!((code, &again["serial"], &again["chunks"]["sent"]), (Some(0), &answer["serial"], &json!(0)), "{again}");
    assert_eq!(yard.daemon.metric("sedge_deploy_orders_accepted_total"), accepted);
}

#[test]
fn a_rollback_returns_to_the_version_before_and_a_second_one_comes_back() {
    let yard = Yard::start();
    assert_eq!(yard.push(&yard.source("v2", |toml| toml)).0, Some(0));
    yard.serves("v2");
    for label in ["v1", "v2"] {
        let (code, answer) = yard.ask(&["rollback", "edition"]);
        assert_eq!((code, &answer["nodes"][0]["state"]), (Some(0), &json!("rolled-back")), "{answer}");
        yard.serves(label);
    }
}

#[test]
fn what_is_removed_hears_nothing_until_it_is_pushed_again() {
    let yard = Yard::start();
    let (code, answer) = yard.ask(&["remove", "edition"]);
    assert_eq!((code, &answer["nodes"][0]["active"]), (Some(0), &Value::Null), "{answer}");
    yard.publish(crate::harness::wire::Publish::new("count/probe", "unheard"));
    let (code, answer) = yard.ask(&["rollback", "edition"]);
    assert_eq!((code, &answer["nodes"][0]["reason"]), (Some(1), &json!("not-installed")), "{answer}");
    assert_eq!(yard.push(&yard.source("v2", |toml| toml)).0, Some(0));
    yard.serves("v2");
    assert!(yard.said.received().iter().all(|message| message.text() != "unheard"));
}

#[test]
fn a_group_is_pushed_to_and_its_pieces_are_removed_when_asked() {
    let yard = Yard::start();
    let dir = yard.source("v2", |toml| toml);
    let (code, dry) = yard.ask(&["push", dir.to_str().unwrap(), "--group", "pumps", "--dry-run"]);
    assert_eq!((code, &dry["nodes"][0]["node"]), (Some(0), &json!("board")), "{dry}");
    yard.serves("v1");
    let (code, answer) = yard.ask(&["push", dir.to_str().unwrap(), "--group", "pumps", "--prune"]);
    assert_eq!((code, &answer["counts"]), (Some(0), &json!({ "active": 1 })), "{answer}");
    assert_eq!(answer["removed"], answer["module"]["chunks"]);
    yard.serves("v2");
}

#[test]
fn a_second_function_beside_the_first_is_as_good() {
    let yard = Yard::start();
    let short = |manifest: String| manifest + "\n[trial]\nsecs = 1\n";
    let other = variant(&guest("misbehave"), yard.folder.path(), "other", "other/#", short);
    let (code, answer) = yard.push(&other);
    assert_eq!((code, &answer["nodes"][0]["state"]), (Some(0), &json!("active")), "{answer}");
    yard.serves("v1");
    let (code, answer) = yard.ask(&["remove", "other"]);
    assert_eq!(code, Some(0), "{answer}");
    yard.serves("v1");
}

#[test]
fn modules_that_nothing_needs_are_deleted_from_the_board() {
    let yard = Yard::start();
    let modules = yard.daemon.data().join("deploy/modules");
    for (serial, tag) in [(2, b'a'), (3, b'b'), (4, b'c')] {
        let wasm = yard.other_module(tag);
        yard.send_chunks(&wasm);
        yard.send(&yard.install_of(serial, &wasm, |_| {}));
        yard.await_active(serial);
    }
    let left = || fs::read_dir(&modules).unwrap().count();
    assert!(
        crate::harness::eventually(super::PATIENCE, || left() == 2),
        "{} modules: one runs, one is before it",
        left()
    );
    assert_eq!(fs::read_dir(yard.daemon.data().join("deploy/staging")).unwrap().count(), 0);
}
