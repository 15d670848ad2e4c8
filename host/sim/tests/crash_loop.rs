//! A message that ends the daemon becomes a dead letter, in the end.

use sedge_core::board::Crash;
use sedge_core::manifest::{Manifest, StateScope};
use sedge_sim::disk::Disk;
use sedge_sim::rig::{Rig, manifest};

fn one() -> Vec<Manifest> {
    vec![manifest("f", "t/#", StateScope::None)]
}

fn crash(alone: Option<u64>) -> Crash {
    Crash { at_ms: 59_000, alone }
}

/// Starts the daemon again and again while it gets a message and ends over it.
fn end_three_times(mut rig: Rig, crashes: &mut Vec<Crash>, receive: impl Fn(&mut Rig)) -> Rig {
    for _ in 0..3 {
        receive(&mut rig);
        rig.perform();
        assert!(rig.board.is_cautious() && rig.board.is_full(), "one at a time");
        assert!(rig.alone.is_some(), "noted before it runs");
        crashes.push(crash(rig.alone));
        rig = Rig::after(one(), rig.disk, crashes.clone());
    }
    rig
}

#[test]
fn a_message_that_ends_the_daemon_again_and_again_becomes_a_dead_letter() {
    let mut crashes = vec![crash(None); 3];
    let rig = Rig::after(one(), Disk::default(), crashes.clone());
    let mut rig = end_three_times(rig, &mut crashes, |rig| rig.receive("t/1", "o-deadly", 1, false));
    // Another message of the same topic is not to blame, and comes first.
    rig.receive("t/1", "o2", 2, false);
    rig.settle();
    assert_eq!((rig.disk.payloads(), rig.alone), (vec!["o2"], None));
    rig.receive("t/1", "o-deadly", 1, true);
    rig.settle();
    assert_eq!(rig.disk.reasons(), ["daemon-crashed"]);
    assert!(!rig.board.is_cautious(), "the loop is over");
    assert_eq!(rig.acknowledged(), [2, 1]);
}

/// The same for one that waits in the store.
#[test]
fn a_parked_message_that_ends_the_daemon_becomes_a_dead_letter() {
    let mut rig = Rig::new(one());
    rig.receive("t/1", "T-deadly", 1, false);
    rig.receive("t/2", "T-other", 2, false);
    while rig.disk.parked.len() < 2 {
        rig.perform();
        rig.work();
        rig.answer();
    }
    let mut crashes = vec![crash(None); 3];
    let rig = Rig::after(one(), rig.disk, crashes.clone());
    let mut rig = end_three_times(rig, &mut crashes, |rig| {
        rig.pass(100);
        rig.handle(sedge_core::board::Input::Timeout);
    });
    rig.pass(100);
    rig.settle();
    assert_eq!(rig.disk.reasons(), ["daemon-crashed"]);
    assert!(!rig.board.is_cautious());
}

#[test]
fn two_ends_and_ends_long_ago_are_no_loop() {
    let rig = Rig::after(one(), Disk::default(), vec![crash(None); 2]);
    assert!(!rig.board.is_cautious());
    let mut rig = Rig::after(one(), Disk::default(), vec![crash(None); 3]);
    rig.receive("t/1", "o", 1, false);
    rig.settle();
    rig.pass(601);
    rig.settle();
    assert!(!rig.board.is_cautious(), "it ran for ten minutes");
    rig.receive("t/1", "o", 2, false);
    rig.receive("t/1", "o", 3, false);
    assert!(!rig.board.is_full());
}
