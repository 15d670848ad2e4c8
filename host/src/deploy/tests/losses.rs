//! Loss of power at any step, full disks, and messages in any order: the final state is the same.

use std::collections::BTreeSet;

use proptest::prelude::*;

use crate::deploy::disk::{FUNCTIONS, MODULES, STAGING};
use crate::deploy::payload::{Module, Order, OrderChange};
use crate::deploy::record::{self, Record};
use crate::deploy::testing::board::{Board, CHUNK, FUNCTION, install, manifest, module, order};

/// Redelivers the retained messages after a connect and lets time pass.
fn hand_over(board: &mut Board, order: &Order, modules: &[Vec<u8>]) {
    board.handle(crate::deploy::Request::Connected);
    board.send(order);
    for _ in 0..2 {
        modules.iter().for_each(|wasm| board.chunks(wasm));
        board.tick(2);
    }
}

/// The final state: record, modules, staging, active serial.
fn end(board: &mut Board) -> (Record, BTreeSet<String>, BTreeSet<String>, Option<u64>) {
    board.tick(2);
    let bytes = board.disk().read(FUNCTIONS, &format!("{FUNCTION}.record")).unwrap();
    let record = record::decode(&bytes).expect("the record is whole");
    (record, board.files(MODULES), board.files(STAGING), board.serving())
}

/// Pseudo-random bits.
fn coin(mut seed: u64) -> impl FnMut() -> bool {
    move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        seed >> 40 & 1 == 1
    }
}

/// Version 1 is active, version 2 is pushed. The power fails before each step in turn, and the disk loses some unsynced
/// writes.
#[test]
fn loss_of_power_at_any_step_of_a_push() {
    let push = |board: &mut Board| {
        board.push(2, &module(2));
        board.tick(2);
    };
    let (expected, steps) = {
        let mut board = Board::new();
        board.push(1, &module(1));
        board.tick(2);
        let before = board.faults().steps();
        push(&mut board);
        let steps = board.faults().steps() - before;
        (end(&mut board), steps)
    };
    assert!(steps > 15, "{steps} steps");
    assert_eq!(expected.3, Some(2));
    for step in 0..=steps {
        for seed in 0..8 {
            let mut board = Board::new();
            board.push(1, &module(1));
            board.tick(2);
            let faults = board.faults();
            faults.cut_power_at(faults.steps() + step);
            push(&mut board);
            assert_eq!(faults.is_cut(), step < steps);
            let mut coin = coin(seed);
            match seed {
                0 => faults.lose(|| false),
                1 => faults.lose(|| true),
                _ => faults.lose(&mut coin),
            }
            let mut board = board.restart();
            let serving = board.serving();
            assert!(serving == Some(1) || serving == Some(2), "step {step}, seed {seed}: {serving:?}");
            hand_over(&mut board, &install(&manifest(2, ""), &module(2)), &[module(2)]);
            assert_eq!(end(&mut board), expected, "step {step}, seed {seed}");
        }
    }
}

/// The same for a rollback and a removal.
#[test]
fn loss_of_power_at_any_step_of_other_orders() {
    for (change, before, after) in [(OrderChange::Rollback, Some(2), Some(1)), (OrderChange::Remove, Some(2), None)] {
        for step in 0..12 {
            for seed in 0..4 {
                let mut board = Board::new();
                board.push(1, &module(1));
                board.push(2, &module(2));
                board.tick(2);
                let faults = board.faults();
                faults.cut_power_at(faults.steps() + step);
                board.send(&order(3, change.clone()));
                board.tick(2);
                faults.lose(coin(seed));
                let mut board = board.restart();
                let serving = board.serving();
                assert!(serving == before || serving == after, "{change:?}, step {step}: {serving:?}");
                hand_over(&mut board, &order(3, change.clone()), &[]);
                assert_eq!(board.serving(), after, "{change:?}, step {step}");
            }
        }
    }
}

/// The active version keeps serving, the report names the full disk, and the push succeeds once there is room.
#[test]
fn disk_full_while_staging() {
    let expected = {
        let mut board = Board::new();
        board.push(1, &module(1));
        board.push(2, &module(2));
        end(&mut board)
    };
    let mut seen = BTreeSet::new();
    for room in (0..10_000).step_by(250) {
        let mut board = Board::new();
        board.push(1, &module(1));
        board.tick(2);
        board.faults().set_room(Some(room));
        board.push(2, &module(2));
        let state = board.state();
        assert!(board.serving().is_some());
        if board.serving() == Some(1) {
            assert_eq!(state, "receiving disk-full", "{room} bytes of room");
        }
        seen.insert(state);
        // The push does not time out.
        for _ in 0..5 {
            board.tick(300);
            board.chunks(&module(2));
        }
        assert!(board.state() != "rejected disk-full");
        let crashed = room % 500 == 0;
        let mut board = if crashed { board.restart() } else { board };
        board.faults().set_room(None);
        board.tick(2);
        hand_over(&mut board, &install(&manifest(2, ""), &module(2)), &[module(2)]);
        assert_eq!(end(&mut board), expected, "{room} bytes of room");
    }
    assert!(seen.contains("receiving disk-full") && seen.contains("active"), "{seen:?}");
}

#[test]
fn a_truncated_record_is_set_aside() {
    let mut board = Board::new();
    board.push(1, &module(1));
    board.tick(2);
    let path = board.disk().path(FUNCTIONS, &format!("{FUNCTION}.record"));
    let whole = std::fs::read(&path).unwrap();
    for len in 0..whole.len() {
        std::fs::write(&path, &whole[..len]).unwrap();
        board = board.restart();
        assert_eq!(board.serving(), None, "{len} of {} bytes", whole.len());
        assert_eq!(board.state(), "rejected damaged-record");
        assert!(!path.exists());
    }
    board.push(1, &module(1));
    assert_eq!((board.serving(), board.state()), (Some(1), "active".into()));
    assert_eq!(board.restart().serving(), Some(1));
}

#[derive(Clone, Debug)]
enum Event {
    Order(u64),
    Chunk { of: u64, index: u32 },
    BadChunk { of: u64, index: u32 },
    Junk,
    Restart,
    PowerCut { seed: u64 },
    Reconnect,
    Wait(u64),
}

fn event() -> impl Strategy<Value = Event> {
    let of = 2..4_u64;
    prop_oneof![
        3 => of.clone().prop_map(Event::Order),
        10 => (of.clone(), 0..4_u32).prop_map(|(of, index)| Event::Chunk { of, index }),
        2 => (of, 0..6_u32).prop_map(|(of, index)| Event::BadChunk { of, index }),
        1 => Just(Event::Junk),
        1 => Just(Event::Restart),
        1 => any::<u64>().prop_map(|seed| Event::PowerCut { seed }),
        1 => Just(Event::Reconnect),
        2 => (1..8_u64).prop_map(Event::Wait),
    ]
}

fn happen(mut board: Board, event: &Event) -> Board {
    match *event {
        Event::Order(serial) => board.send(&install(&manifest(serial, ""), &module(serial))),
        Event::Chunk { of, index } => board.chunk(&module(of), index),
        Event::BadChunk { of, index } => {
            let digest = Module::of(&module(of), CHUNK).digest;
            board.raw_chunk(&digest, index, &module(of)[7..1031]);
        }
        Event::Junk => board.deliver("sedge/pump-3/deploy/warm", b"junk"),
        Event::Restart => board = board.restart(),
        Event::PowerCut { seed } => {
            let faults = board.faults();
            faults.cut_power_at(faults.steps() + seed % 6);
            board.chunks(&module(2 + seed % 2));
            board.tick(1);
            faults.lose(coin(seed));
            board = board.restart();
        }
        Event::Reconnect => {
            board.handle(crate::deploy::Request::Disconnected);
            board.handle(crate::deploy::Request::Connected);
        }
        Event::Wait(secs) => board.tick(secs),
    }
    board
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// Chunks and orders of two pushes are lost, duplicated and reordered, with restarts and power cuts. A version always
    /// serves, and after a redelivery the final state is that of an undisturbed push.
    #[test]
    fn any_sequence_ends_in_the_same_state(events in prop::collection::vec(event(), 0..60)) {
        let mut board = Board::new();
        board.push(1, &module(1));
        board.tick(2);
        let mut highest = 1;
        for event in &events {
            board = happen(board, event);
            let serving = board.serving();
            prop_assert!(serving.is_some_and(|serial| serial >= highest), "{serving:?} after {event:?}");
            highest = serving.unwrap_or(highest);
        }
        hand_over(&mut board, &install(&manifest(3, ""), &module(3)), &[module(2), module(3)]);
        let (record, modules, staging, serving) = end(&mut board);
        prop_assert_eq!(serving, Some(3));
        prop_assert_eq!(board.report().state.as_str(), "active");
        prop_assert!(staging.is_empty());
        prop_assert_eq!(modules.len(), 2);
        // The previous version is the first or the second.
        let previous = record.previous.as_ref().map(|previous| previous.serial());
        prop_assert!(previous == Some(1) || previous == Some(2), "{previous:?}");
        let mut again = board.restart();
        prop_assert_eq!(end(&mut again), (record, modules, staging, serving));
    }
}
