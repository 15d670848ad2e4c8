//! Changes of version under load, at a rate that a debug build handles beside other tests. `make bench` does the same with
//! 5,000 messages per second.

use sedge_core::deploy::reason::Reason;
use sedge_core::deploy::report::DeployState;
use serde_json::json;

use super::{FUNCTION, Yard};
use crate::harness::eventually;
use crate::harness::guest::{guest, variant};
use crate::harness::mosquitto::Mosquitto;
use crate::harness::traffic::Traffic;
use crate::harness::upstream::Upstream;

const PER_SECOND: usize = if cfg!(debug_assertions) { 1500 } else { 5000 };
const TRIAL_MESSAGES: usize = PER_SECOND / 2;

/// A yard whose function does not publish locally, and the records upstream.
struct Stream {
    yard: Yard,
    upstream: Upstream,
    _cloud: Mosquitto,
    _folder: tempfile::TempDir,
}

impl Stream {
    fn start() -> Self {
        let cloud = Mosquitto::start();
        let upstream = Upstream::collect(cloud.port);
        let folder = tempfile::tempdir().expect("make a folder");
        let quiet = |manifest: String| manifest.replace("\"v1\"", "\"\"");
        let function = variant(&guest(FUNCTION), folder.path(), FUNCTION, "count/#", quiet);
        let yard = Yard::start_with(|mut setup| {
            setup.functions = vec![function];
            setup.upstream(cloud.url())
        });
        Self { yard, upstream, _cloud: cloud, _folder: folder }
    }

    /// Waits until this number of further messages has arrived upstream.
    fn flows(&self, messages: usize) {
        let goal = self.upstream.count() + messages;
        assert!(eventually(super::PATIENCE, || self.upstream.count() >= goal), "{}", self.yard.daemon.counters());
    }

    /// Checks that every message arrived once, in order, counted by one state.
    fn settle(&self, traffic: Traffic) {
        let ledger = traffic.stop();
        if !eventually(super::PATIENCE, || ledger.is_complete(&self.upstream.received())) {
            eprintln!("what the daemon counts:\n{}", self.yard.daemon.counters());
        }
        ledger.check(&self.upstream.received());
        assert_eq!(self.yard.daemon.metric("sedge_dead_letters_total"), 0.0);
    }

    fn push(&self, serial: u64, change: impl FnOnce(&mut serde_json::Value)) {
        let wasm = self.yard.other_module(serial as u8);
        self.yard.send_chunks(&wasm);
        self.yard.send(&self.yard.install_of(serial, &wasm, |manifest| {
            manifest["config"]["label"] = json!("");
            manifest["trial"] = json!({ "messages": TRIAL_MESSAGES, "secs": 60 });
            change(manifest);
        }));
    }
}

#[test]
fn every_message_is_handled_once_and_in_order_while_versions_are_swapped() {
    let stream = Stream::start();
    let traffic = Traffic::start_at(stream.yard.broker.port, 20, PER_SECOND);
    stream.flows(PER_SECOND / 3);
    for serial in 2..5 {
        stream.push(serial, |_| {});
        stream.yard.await_state(serial, DeployState::Active);
        stream.flows(PER_SECOND / 3);
    }
    assert_eq!(stream.yard.ask(&["rollback", FUNCTION]).0, Some(0));
    stream.flows(PER_SECOND / 3);
    stream.settle(traffic);
}

#[test]
fn a_candidate_that_traps_loses_nothing() {
    let stream = Stream::start();
    let traffic = Traffic::start_at(stream.yard.broker.port, 20, PER_SECOND);
    stream.flows(PER_SECOND / 3);
    for serial in 2..4 {
        stream.push(serial, |manifest| manifest["config"]["trap"] = json!("50"));
        let report = stream.yard.await_state(serial, DeployState::RolledBack);
        assert_eq!(report.reason, Some(Reason::FailedTrial));
        assert_eq!(report.active.unwrap().version.serial, 1);
        stream.flows(PER_SECOND / 3);
    }
    // An exceeded limit counts like a trap.
    stream.push(4, |manifest| manifest["limits"]["fuel"] = json!(1000));
    assert_eq!(stream.yard.await_state(4, DeployState::RolledBack).reason, Some(Reason::FailedTrial));
    stream.flows(PER_SECOND / 3);
    stream.settle(traffic);
}

#[test]
fn a_shadow_takes_nothing_from_the_stream() {
    let stream = Stream::start();
    let traffic = Traffic::start_at(stream.yard.broker.port, 20, PER_SECOND);
    stream.flows(PER_SECOND / 3);
    stream.push(2, |it| {
        it["trial"] = json!({ "mode": "shadow", "messages": TRIAL_MESSAGES, "secs": 60, "differences": 0 })
    });
    stream.yard.await_state(2, DeployState::Active);
    stream.flows(PER_SECOND / 3);
    stream.settle(traffic);
}

#[test]
fn a_board_that_is_killed_on_trial_handles_every_message_once() {
    let mut stream = Stream::start();
    let traffic = Traffic::start_at(stream.yard.broker.port, 20, PER_SECOND);
    for serial in 2..4 {
        stream.push(serial, |it| it["trial"] = json!({ "messages": 4 * PER_SECOND, "secs": 60 }));
        stream.yard.await_state(serial, DeployState::Trial);
        stream.yard.daemon.kill();
        stream.yard.daemon.resume();
        stream.flows(PER_SECOND / 3);
    }
    stream.yard.await_state(3, DeployState::Active);
    stream.settle(traffic);
}
