//! Loss of power at any step, full disks, and messages in any order: the final state is the same.

use std::collections::BTreeSet;

use proptest::prelude::*;

use crate::deploy::disk::{MODULES, STAGING};
use crate::deploy::testing::board::{Board, CHUNK, install, manifest, module, order};
use sedge_core::deploy::payload::{Module, Order, OrderChange};
use sedge_core::deploy::record::{self, Record};

/// Redelivers the retained messages after a connect and lets time pass.
fn hand_over(board: &mut Board, order: &Order, modules: &[Vec<u8>]) {
    board.handle(sedge_core::deploy::Request::Connected);
    board.send(order);
    for _ in 0..2 {
        modules.iter().for_each(|wasm| board.chunks(wasm));
        board.tick(2);
    }
}

/// The final state: record, modules, staging, active serial.
fn end(board: &mut Board) -> (Record, BTreeSet<String>, BTreeSet<String>, Option<u64>) {
    board.tick(2);
    let bytes = std::fs::read(board.record_path()).unwrap();
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

/// The power fails after each request to the disk was carried out and before its answer. What follows from the answer never
/// happens, and the rest of what is on disk is a state to go on from.
#[test]
fn loss_of_power_before_any_answer_of_the_disk() {
    let orders = [None, Some(OrderChange::Rollback), Some(OrderChange::Remove)];
    for change in orders {
        let order = match &change {
            None => install(&manifest(3, ""), &module(3)),
            Some(change) => order(3, change.clone()),
        };
        let run = |board: &mut Board| {
            board.send(&order);
            board.chunks(&module(3));
            board.tick(2);
        };
        let start = || {
            let mut board = Board::new();
            board.push(1, &module(1));
            board.push(2, &module(2));
            board.tick(2);
            board
        };
        let (expected, requests) = {
            let mut board = start();
            let before = board.disk_requests;
            run(&mut board);
            let requests = board.disk_requests - before;
            (end(&mut board), requests)
        };
        assert!(requests >= 2, "{requests} requests");
        for answered in 0..requests {
            for seed in 0..4 {
                let mut board = start();
                board.disk_requests_max = board.disk_requests + answered;
                run(&mut board);
                board.faults().lose(coin(seed));
                let mut board = board.restart();
                let serving = board.serving();
                assert!(serving == Some(2) || serving == expected.3, "{change:?}, {answered} answers: {serving:?}");
                hand_over(&mut board, &order, &[module(3)]);
                assert_eq!(end(&mut board), expected, "{change:?}, {answered} answers, seed {seed}");
            }
        }
    }
}

/// While the disk works, other requests wait and none overtakes another. Messages beyond the bound are fetched again.
#[test]
fn requests_wait_for_a_slow_disk() {
    let mut board = Board::new();
    board.push(1, &module(1));
    board.tick(2);
    board.is_disk_slow = true;
    board.send(&install(&manifest(2, ""), &module(2)));
    board.chunks(&module(2));
    board.send(&order(3, OrderChange::Rollback));
    board.tick(3);
    assert_eq!((board.serving(), board.report().serial), (Some(1), Some(1)), "nothing is decided yet");
    board.work_off();
    assert_eq!((board.serving(), board.state()), (Some(1), "rolled-back requested".into()));
    assert_eq!(board.report().serial, Some(3));

    board.is_disk_slow = true;
    board.send(&install(&manifest(4, ""), &module(4)));
    for _ in 0..100 {
        board.deliver("sedge/pump-3/deploy/warm", b"junk");
    }
    board.chunks(&module(4));
    let fetched = board.orders_fetched;
    board.work_off();
    assert_eq!(board.state(), "receiving");
    board.tick(10);
    assert_eq!(board.orders_fetched, fetched + 1);
    board.chunks(&module(4));
    assert_eq!((board.serving(), board.state()), (Some(4), "active".into()));
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
fn a_damaged_module_that_cannot_be_removed_is_tried_again_every_second() {
    let mut board = Board::new();
    board.push(1, &module(1));
    board.held = Some(Default::default());
    board.push(2, &module(2));
    let mut cold = manifest(3, "");
    cold.name = "cold".into();
    let cold = Order { function: "cold".into(), ..install(&cold, &module(3)) };
    board.send(&cold);
    board.chunks(&module(3));
    // Queued behind the other one.
    std::fs::write(board.module_path(&module(3)), b"rot").unwrap();
    let faults = board.faults();
    faults.cut_power_at(faults.steps());
    board.release();
    for _ in 0..2 {
        let before = board.disk_requests;
        board.tick(2);
        assert!((2..20).contains(&(board.disk_requests - before)));
        let report = &board.reports["cold"];
        assert_eq!((report.state.as_str(), report.reason.unwrap().as_str()), ("compiling", "disk-failed"));
    }
    let mut board = board.restart();
    hand_over(&mut board, &cold, &[module(2), module(3)]);
    assert_eq!((board.reports["cold"].state.as_str(), board.serving()), ("active", Some(2)));
}

#[test]
fn a_truncated_record_is_set_aside() {
    let mut board = Board::new();
    board.push(1, &module(1));
    board.tick(2);
    let path = board.record_path();
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
    SlowDisk,
    FastDisk,
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
        1 => Just(Event::SlowDisk),
        1 => Just(Event::FastDisk),
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
            board.handle(sedge_core::deploy::Request::Disconnected);
            board.handle(sedge_core::deploy::Request::Connected);
        }
        Event::SlowDisk => board.is_disk_slow = true,
        Event::FastDisk => board.work_off(),
        Event::Wait(secs) => board.tick(secs),
    }
    board
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// Chunks and orders of two pushes are lost, duplicated and reordered, with restarts, power cuts and a disk that answers
    /// late. A version always
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
        board.work_off();
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
