//! The board or the broker stops in the middle of a push.

use std::time::Duration;

use sedge_core::deploy::digest;
use sedge_core::deploy::payload::Module;
use sedge_core::deploy::report::{DeployState, Progress, Report};
use sedge_core::deploy::topics::Topics;
use serde_json::json;

use super::{CHUNK, PATIENCE, Yard, chunk};
use crate::harness::eventually;
use crate::harness::wire::Publish;

#[test]
fn a_board_that_is_killed_while_chunks_arrive_continues_with_those_it_has() {
    let mut yard = Yard::start();
    let wasm = yard.other_module(b'r');
    let chunks = Module::of(&wasm, CHUNK).chunks.len() as u32;
    yard.send(&yard.install_of(2, &wasm, |_| {}));
    yard.await_state(2, DeployState::Receiving);
    for index in 0..chunks - 1 {
        yard.publish(piece(&wasm, index));
        let has = |it: &Report| matches!(it.progress, Some(Progress::Chunks { received, .. }) if received == index + 1);
        // The broker retains no chunks, so chunks that the board forgets would be missing.
        yard.await_report(|it| it.serial == Some(2) && has(it));
        yard.daemon.kill();
        yard.daemon.resume();
        yard.serves("v1");
        // The board fetches chunks again.
        yard.await_report(|it| it.serial == Some(2) && has(it));
        yard.broker.await_subscription("sedge/blob/", index as usize + 2);
    }
    yard.publish(piece(&wasm, chunks - 1));
    yard.await_active(2);
}

#[test]
fn a_board_that_is_killed_at_any_moment_of_a_push_ends_with_the_new_version() {
    let mut yard = Yard::start();
    let mut serial = 1;
    // A debug build needs about 200 ms from the order to the trial.
    for wait_ms in [0, 5, 20, 60, 150] {
        serial += 1;
        let wasm = yard.other_module(serial as u8);
        yard.send_chunks(&wasm);
        yard.send(&yard.install_of(serial, &wasm, |_| {}));
        std::thread::sleep(Duration::from_millis(wait_ms));
        yard.daemon.kill();
        yard.daemon.resume();
        yard.await_state(serial, DeployState::Active);
        yard.serves(&format!("v{serial}"));
    }
}

#[test]
fn a_trial_begins_anew_after_the_board_was_killed() {
    let mut yard = Yard::start();
    yard.send_chunks(&yard.module());
    let trial = json!({ "messages": 2, "secs": 60 });
    yard.send(&yard.install_of(2, &yard.module(), |manifest| manifest["trial"] = trial));
    yard.await_state(2, DeployState::Trial);
    yard.serves("v2");
    kill_on_trial(&mut yard);
    for _ in 0..2 {
        yard.serves("v2");
    }
    yard.await_active(2);
}

#[test]
fn a_shadow_begins_anew_after_the_board_was_killed() {
    let mut yard = Yard::start();
    yard.send_chunks(&yard.module());
    yard.send(&yard.install_of(2, &yard.module(), |it| it["trial"] = json!({ "mode": "shadow", "messages": 2 })));
    yard.await_state(2, DeployState::Trial);
    yard.serves("v1");
    kill_on_trial(&mut yard);
    yard.serves("v1");
    yard.await_report(|it| it.state == DeployState::Trial && !it.differences.is_empty());
    assert_eq!(yard.ask(&["promote", "edition"]).0, Some(0));
    yard.serves("v2");
}

#[test]
fn a_push_continues_when_the_broker_comes_back() {
    let mut yard = Yard::start();
    let wasm = yard.other_module(b'm');
    let chunks = Module::of(&wasm, CHUNK).chunks.len() as u32;
    yard.send(&yard.install_of(2, &wasm, |_| {}));
    yard.send_chunk(&wasm, 0, &chunk(&wasm, 0));
    yard.await_report(|it| matches!(it.progress, Some(Progress::Chunks { received: 1, .. })));
    yard.broker.restart();
    for index in 1..chunks {
        yard.send_chunk(&wasm, index, &chunk(&wasm, index));
    }
    yard.await_active(2);
}

#[test]
fn a_board_without_a_broker_runs_what_it_last_ran_and_learns_the_rest_later() {
    let mut yard = Yard::start();
    yard.send_chunks(&yard.module());
    yard.send(&yard.install(2));
    yard.await_active(2);
    yard.daemon.terminate();
    // Ordered while the board is offline.
    yard.send(&yard.install(3));
    yard.broker.stop();
    yard.daemon.resume();
    let log = yard.daemon.log();
    let installed = "function installed function=\"edition\" version=\"1.0.2\"";
    assert_eq!(log.matches(installed).count(), 1, "{log}");
    yard.broker.resume();
    yard.await_active(3);
}

#[test]
fn retained_orders_that_come_again_change_nothing() {
    let mut yard = Yard::start();
    yard.send_chunks(&yard.module());
    yard.send(&yard.install(2));
    yard.await_active(2);
    for _ in 0..2 {
        yard.broker.restart();
        yard.serves("v2");
        yard.daemon.terminate();
        yard.daemon.resume();
        yard.serves("v2");
    }
    let log = yard.daemon.log();
    assert_eq!(log.matches("order accepted").count(), 1, "{log}");
    assert_eq!(log.matches("order refused").count(), 0, "{log}");
    assert_eq!(log.matches("version deployed").count(), 1, "{log}");
}

/// Returns when the trial has started over.
fn kill_on_trial(yard: &mut Yard) {
    yard.daemon.kill();
    let before = yard.history().len();
    yard.daemon.resume();
    let anew = |it: &Report| matches!(it.progress, Some(Progress::Trial { run: 0, .. }));
    let begun = eventually(PATIENCE, || yard.history()[before..].iter().any(anew));
    assert!(begun, "{:#?}", yard.history());
}

/// Published without the retain flag.
fn piece(wasm: &[u8], index: u32) -> Publish {
    Publish::new(&Topics::new("sedge").blob(&digest(wasm), index), chunk(wasm, index))
}
