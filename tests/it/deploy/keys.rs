//! Trusted keys change while the board runs, and old ones stop working at once.

use std::fs;

use rustix::process::Signal;
use sedge_core::deploy::payload::{KeyUpdate, OrderChange};
use sedge_core::deploy::reason::Reason;
use sedge_core::deploy::report::DeployState;
use sedge_core::deploy::topics::{KEYS, Topics};
use serde_json::json;

use super::{PATIENCE, Yard, new_key, public};
use crate::harness::daemon::NODE;
use crate::harness::eventually;

#[test]
fn a_key_that_a_reload_takes_away_stops_working_at_once() {
    let yard = Yard::start();
    let wasm = yard.other_module(b'k');
    // One order is in progress when its key is removed.
    yard.send(&yard.install_of(2, &wasm, |_| {}));
    yard.await_state(2, DeployState::Receiving);

    let next = new_key(yard.folder.path(), "next");
    let config = fs::read_to_string(yard.daemon.config()).unwrap();
    fs::write(yard.daemon.config(), config.replace("ops.pub.pem", "next.pub.pem")).unwrap();
    yard.daemon.signal(Signal::HUP);
    yard.refused(Reason::UnknownKey, "no longer trusted");
    yard.send_chunks(&wasm);
    yard.send(&yard.install_of(3, &wasm, |_| {}));
    yard.refused(Reason::UnknownKey, &yard.key.public().id().to_string()[..16]);

    let yard = Yard { key: next, ..yard };
    yard.send(&yard.install_of(4, &wasm, |_| {}));
    yard.await_active(4);
    let keys = yard.await_report_of(KEYS, |report| report.keys.is_some()).keys.unwrap();
    assert_eq!(keys.iter().map(|key| key.id).collect::<Vec<_>>(), [yard.key.public().id()]);
}

#[test]
fn a_key_that_a_reload_brings_makes_an_order_good_that_was_not() {
    let yard = Yard::start();
    let ops = fs::read(public(yard.folder.path(), "ops")).unwrap();
    let next = new_key(yard.folder.path(), "next");
    let yard = Yard { key: next, ..yard };
    yard.send_chunks(&yard.module());
    yard.send(&yard.install(2));
    yard.refused(Reason::UnknownKey, "does not trust");
    assert!(!ops.is_empty());
    let more = format!("\n[deploy.keys.next]\nfile = {:?}\n", public(yard.folder.path(), "next"));
    let config = fs::read_to_string(yard.daemon.config()).unwrap();
    fs::write(yard.daemon.config(), config + &more).unwrap();
    yard.daemon.signal(Signal::HUP);
    yard.await_active(2);
}

#[test]
fn a_configuration_with_a_mistake_leaves_the_keys_as_they_are() {
    let yard = Yard::start();
    let config = fs::read_to_string(yard.daemon.config()).unwrap();
    fs::write(yard.daemon.config(), config.replace("ops.pub.pem", "gone.pub.pem")).unwrap();
    yard.daemon.signal(Signal::HUP);
    assert!(eventually(PATIENCE, || yard.daemon.log().contains("the previous one stays")), "{}", yard.daemon.log());
    yard.send_chunks(&yard.module());
    yard.send(&yard.install(2));
    yard.await_active(2);
}

#[test]
fn a_signed_change_of_the_keys_counts_at_once_and_over_a_restart() {
    let yard = Yard::start_with(|setup| setup.set("deploy.keys.ops", "keys = true"));
    let next = new_key(yard.folder.path(), "next");
    let file = public(yard.folder.path(), "next");
    let (code, answer) = yard.ask(&["trust", file.to_str().unwrap(), "--keys"]);
    assert_eq!((code, &answer["nodes"][0]["state"]), (Some(0), &json!("active")), "{answer}");
    assert_eq!(yard.push(&yard.source("v2", |toml| toml)).0, Some(0), "the old key still works");
    yard.serves("v2");

    let old = yard.key.public().id();
    fs::rename(yard.folder.path().join("next.pem"), yard.key_file()).unwrap();
    let mut yard = Yard { key: next, ..yard };
    let (code, answer) = yard.ask(&["trust", "--revoke", &old.to_string()]);
    assert_eq!(code, Some(0), "{answer}");
    let (code, answer) = yard.push(&yard.source("v3", |toml| toml));
    assert_eq!(code, Some(0), "{answer}");
    yard.serves("v3");
    yard.daemon.terminate();
    yard.daemon.resume();
    yard.serves("v3");
    let keys = yard.await_report_of(KEYS, |report| report.keys.is_some()).keys.unwrap();
    assert!(keys.iter().all(|key| key.id != old), "the configuration still names it, and it is revoked: {keys:?}");
}

#[test]
fn orders_of_a_revoked_key_that_were_carried_out_are_no_news() {
    let yard = Yard::start_with(|setup| setup.set("deploy.keys.ops", "keys = true"));
    yard.send_chunks(&yard.module());
    yard.send(&yard.install(2));
    yard.await_active(2);
    // The key's last order revokes the key itself; the broker retains all three.
    let update = KeyUpdate { trust: Vec::new(), revoke: vec![yard.key.public().id()], force: true };
    let mut order = yard.order(sedge_sandbox::clock::now_ms(), OrderChange::Keys(update));
    order.function = KEYS.into();
    yard.send(&order);
    yard.await_report_of(KEYS, |report| report.keys.as_ref().is_some_and(Vec::is_empty));
    let refused = || yard.daemon.metric("sedge_deploy_orders_refused_total");
    assert_eq!(refused(), 0.0, "{}", yard.daemon.log());
    let reports = yard.history().len();
    let mut yard = yard;
    yard.daemon.terminate();
    yard.daemon.resume();
    assert!(eventually(PATIENCE, || yard.history().len() > reports), "it reports again");
    yard.serves("v2");
    yard.send(&yard.install(3));
    yard.refused_beside(Reason::UnknownKey, "trusts no key", 2);
    assert_eq!(yard.daemon.metric("sedge_deploy_orders_refused_total"), 1.0, "only the new one is refused");
}

#[test]
fn a_key_that_may_not_change_keys_does_not() {
    let yard = Yard::start();
    new_key(yard.folder.path(), "next");
    let file = public(yard.folder.path(), "next");
    let (code, answer) = yard.ask(&["trust", file.to_str().unwrap()]);
    assert_eq!((code, &answer["nodes"][0]["reason"]), (Some(1), &json!("key-not-allowed")), "{answer}");
    yard.serves("v1");
}

#[test]
fn status_and_reports_are_believed_only_if_the_board_has_signed_them() {
    let mut yard = Yard::start();
    assert_eq!(yard.push(&yard.source("v2", |toml| toml)).0, Some(0));
    let known = yard.folder.path().join("sedge/known_boards");
    let text = fs::read_to_string(&known).unwrap();
    assert!(text.lines().count() == 1 && text.ends_with(&format!(" {NODE}\n")), "{text}");
    let (_, status) = yard.ask(&["status"]);
    assert_eq!(
        (&status["nodes"][0]["signed"], &status["nodes"][0]["functions"][1]["state"]),
        (&json!(true), &json!("active"))
    );

    // A forged report does not count, and does not hide that the board says something else.
    let mut forged = status["nodes"][0]["functions"][1].clone();
    forged["active"]["version"] = json!("9.9.9");
    yard.retain(&Topics::new("sedge").report(NODE, "edition"), forged.to_string());
    let (code, status) = yard.ask(&["status"]);
    assert_eq!(code, Some(0), "{status}");
    assert!(
        !status.to_string().contains("9.9.9") && status["nodes"][0]["unsigned_reports"] == json!(["edition"]),
        "{status}"
    );

    // A board that was set up anew has another key.
    yard.daemon.terminate();
    fs::remove_file(yard.daemon.data().join("board.key")).unwrap();
    yard.daemon.resume();
    let changed = |answer: &serde_json::Value| answer.to_string().contains("has another key than");
    assert!(eventually(PATIENCE, || changed(&yard.ask(&["status"]).1)), "{}", yard.ask(&["status"]).1);
    let (code, answer) = yard.push(&yard.source("v3", |toml| toml));
    let error = answer["error"].as_str().unwrap();
    assert!(
        code == Some(1) && error.contains(known.to_str().unwrap()) && error.contains("remove the line"),
        "{answer}"
    );
    yard.serves("v2");
    fs::remove_file(&known).unwrap();
    assert_eq!(yard.push(&yard.source("v3", |toml| toml)).0, Some(0));
    yard.serves("v3");
}
