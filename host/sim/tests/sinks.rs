//! Which sink gets what: an output names one, or its function does, or the board's configuration decides.
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

use sedge_core::manifest::{Manifest, StateScope};
use sedge_core::stream::{SinkId, Stream};
use sedge_sim::rig::{Rig, lane, manifest, recorder};

fn ids() -> [(SinkId, &'static str); 2] {
    [(SinkId::UPSTREAM, "upstream"), (SinkId::new(1).unwrap(), "lake")]
}

/// A board with two sinks, of which `lake` gets what functions forward.
fn rig(functions: Vec<Manifest>) -> Rig {
    let [up, lake] = ids();
    let mut recorder = recorder(&[up, lake]);
    recorder.alerts = vec![up.0];
    recorder.forwards = vec![lake.0];
    Rig::with_sinks(functions, recorder, vec![lane(up.1, up.0, 64), lane(lake.1, lake.0, 64)])
}

fn streams(rig: &Rig) -> Vec<Stream> {
    rig.disk.records.iter().map(|record| record.stream).collect()
}

#[test]
fn outputs_go_to_the_sink_that_they_name_or_that_their_function_names() {
    let (up, lake) = (SinkId::UPSTREAM, SinkId::new(1).unwrap());
    let mut rig = rig(vec![manifest("f", "t/#", StateScope::None)]);
    for (n, payload) in ["a1", "F2", "F3>upstream", "A4>lake", "A5>local"].into_iter().enumerate() {
        rig.receive("t/1", payload, n as u16 + 1, false);
        rig.settle();
    }
    let expected = [
        // By default.
        Stream::LOCAL,
        Stream::alerts(up),
        Stream::data(lake),
        // By their own word.
        Stream::data(up),
        Stream::LOCAL,
        Stream::alerts(lake),
        Stream::LOCAL,
    ];
    assert_eq!(streams(&rig), expected);

    let named = Manifest { sink: Some("lake".to_owned()), ..manifest("f", "t/#", StateScope::None) };
    let mut rig = self::rig(vec![named]);
    for (n, payload) in ["a1", "F2", "F3>upstream"].into_iter().enumerate() {
        rig.receive("t/1", payload, n as u16 + 1, false);
        rig.settle();
    }
    assert_eq!(streams(&rig), [Stream::LOCAL, Stream::alerts(lake), Stream::data(lake), Stream::data(up)]);
}

#[test]
fn an_output_to_a_sink_that_the_board_does_not_have_is_a_dead_letter() {
    let mut rig = rig(vec![manifest("f", "t/#", StateScope::None)]);
    for (n, payload) in ["F1>nowhere", "A2>nowhere", "F3>local"].into_iter().enumerate() {
        rig.receive("t/1", payload, n as u16 + 1, false);
        rig.settle();
    }
    assert_eq!(rig.disk.reasons(), ["not-available"; 3]);
    assert!(rig.disk.records.is_empty());
    let details: Vec<&str> = rig.disk.dead_letters.iter().map(|letter| &*letter.failure.detail).collect();
    assert!(details[0].contains("no sink \"nowhere\"") && details[0].contains("upstream, lake"), "{details:?}");
    assert!(details[2].contains("publish it instead"), "{details:?}");
}
