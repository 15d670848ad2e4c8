//! Alerts that are folded and muted.
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

use std::time::Duration;

use sedge_core::board::{Input, Mute};
use sedge_core::manifest::StateScope;
use sedge_core::stream::Stream;
use sedge_sim::rig::{Rig, manifest};

/// Streams of the alerts that were recorded so far.
fn streams(rig: &Rig) -> Vec<Stream> {
    rig.disk.records.iter().map(|record| record.stream).collect()
}

#[test]
fn a_muted_alert_is_sent_again_after_its_time_without_being_folded() {
    let mut rig = Rig::new(vec![manifest("f", "t/#", StateScope::None)]);
    let until = rig.now + Duration::from_secs(30);
    rig.handle(Input::Mute(vec![Mute { function: "f".into(), key: "a1".into(), until }]));
    let raise = |rig: &mut Rig, number: u16, key: &str| {
        rig.receive("t/1", key, number, false);
        rig.settle();
    };
    raise(&mut rig, 1, "a1");
    assert_eq!(streams(&rig), [Stream::LOCAL], "recorded, and not for upstream");
    raise(&mut rig, 2, "a1");
    assert_eq!(streams(&rig).len(), 1, "repeats are folded as always");
    raise(&mut rig, 3, "a2");
    assert_eq!(streams(&rig)[1..], [Stream::LOCAL, Stream::ALERT], "another key");
    rig.pass(31);
    raise(&mut rig, 4, "a1");
    assert_eq!(streams(&rig)[3..], [Stream::LOCAL, Stream::ALERT], "within the time of folding");
    raise(&mut rig, 5, "a1");
    assert_eq!(streams(&rig).len(), 5);
    assert_eq!(rig.metrics.function(&"f".into()).muted_alerts.get(), 1);
}
