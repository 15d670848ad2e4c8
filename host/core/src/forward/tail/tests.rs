//! [`Tail`] against a model: everything committed, and a receiver that accepts at random.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::store::Record;
use crate::stream::Stream;

impl Tail {
    /// Whether every committed record is done.
    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty() && self.held >= self.last
    }
}

fn stored(id: u64, size: usize) -> StoredRecord {
    let record = Record {
        stream: Stream::DATA,
        function: "f".into(),
        topic: "t".into(),
        payload: Bytes::from(vec![0; size]),
        content_type: None,
        retain: false,
        hops: 1,
        fan_out: 9,
        clock_synced: true,
        at_ms: 0,
        trace: None,
        is_folded: false,
    };
    StoredRecord { id: RecordId(id), record }
}

fn ids(tail: &mut Tail) -> Vec<u64> {
    std::iter::from_fn(|| tail.next().map(|stored| stored.id.0)).collect()
}

const ROOMY: TailLimits = TailLimits { records: 100, bytes: 1 << 20 };

#[test]
fn fresh_commits_never_need_the_disk() {
    let mut tail = Tail::new(ROOMY, RecordId(7), RecordId(7));
    for id in 8..12 {
        tail.committed(stored(id, 10));
        assert_eq!(tail.load(), None);
    }
    assert_eq!(ids(&mut tail), [8, 9, 10, 11]);
}

#[test]
fn the_watermark_waits_for_the_oldest() {
    let mut tail = Tail::new(ROOMY, RecordId(0), RecordId(0));
    (1..=4).for_each(|id| tail.committed(stored(id, 10)));
    ids(&mut tail);
    assert_eq!(tail.done(RecordId(2)), None);
    assert_eq!(tail.done(RecordId(4)), None);
    assert_eq!(tail.done(RecordId(1)), Some(RecordId(2)));
    assert_eq!(tail.done(RecordId(1)), None, "an answer that comes twice changes nothing");
    assert_eq!(tail.done(RecordId(3)), Some(RecordId(4)));
    assert!(tail.is_empty());
}

/// The record was read again and again while it did not fit.
#[test]
fn a_record_that_does_not_fit_is_loaded_again_once_there_is_room() {
    let window = TailLimits { records: 100, bytes: 4000 };
    let mut tail = Tail::new(window, RecordId(0), RecordId(0));
    tail.committed(stored(1, 1000));
    tail.committed(stored(2, 3000));
    assert!(tail.load().is_some(), "half of the window is free");
    tail.loaded(vec![stored(2, 3000)], true);
    assert_eq!(tail.load(), None);
    assert_eq!(ids(&mut tail), [1]);
    tail.done(RecordId(1));
    assert_eq!(tail.load().map(|load| load.after), Some(RecordId(1)));
    tail.loaded(vec![stored(2, 3000)], true);
    assert_eq!(ids(&mut tail), [2]);
}

#[test]
fn a_broken_connection_repeats_what_was_not_answered_in_order() {
    let mut tail = Tail::new(ROOMY, RecordId(0), RecordId(0));
    (1..=5).for_each(|id| tail.committed(stored(id, 10)));
    for _ in 0..4 {
        tail.next();
    }
    tail.done(RecordId(2));
    tail.rewind();
    assert_eq!(ids(&mut tail), [1, 3, 4, 5]);
}

#[test]
fn a_record_that_was_not_taken_goes_before_new_ones() {
    let mut tail = Tail::new(ROOMY, RecordId(0), RecordId(0));
    (1..=3).for_each(|id| tail.committed(stored(id, 10)));
    ids(&mut tail);
    tail.committed(stored(4, 10));
    tail.requeue(RecordId(2));
    assert_eq!(ids(&mut tail), [2, 4]);
}

#[test]
fn a_full_window_falls_behind_and_catches_up_from_disk() {
    let mut tail = Tail::new(TailLimits { records: 4, bytes: 1 << 20 }, RecordId(0), RecordId(0));
    (1..=9).for_each(|id| tail.committed(stored(id, 10)));
    assert_eq!(tail.load(), None, "no room yet");
    assert_eq!(ids(&mut tail), [1, 2, 3, 4]);
    assert!(tail.has_waiting());
    tail.done(RecordId(1));
    tail.done(RecordId(2));
    assert_eq!(tail.load().map(|load| load.after), Some(RecordId(4)));
    assert_eq!(tail.load(), None, "asked once");
    tail.committed(stored(10, 10));
    tail.loaded((5..=10).map(|id| stored(id, 10)).collect(), true);
    assert_eq!(ids(&mut tail), [5, 6], "the window holds four");
    for id in 3..=6 {
        tail.done(RecordId(id));
    }
    assert_eq!(tail.load().map(|load| load.after), Some(RecordId(6)));
    tail.loaded((7..=10).map(|id| stored(id, 10)).collect(), true);
    assert_eq!(ids(&mut tail), [7, 8, 9, 10]);
    for id in 7..=10 {
        tail.done(RecordId(id));
    }
    tail.committed(stored(11, 10));
    assert_eq!(tail.load(), None);
    assert_eq!(ids(&mut tail), [11], "and no load is needed again");
}

#[test]
fn a_record_larger_than_the_window_is_sent_alone() {
    let mut tail = Tail::new(TailLimits { records: 4, bytes: 1_000 }, RecordId(0), RecordId(0));
    tail.committed(stored(1, 5_000));
    tail.committed(stored(2, 5_000));
    assert_eq!(ids(&mut tail), [1]);
    tail.done(RecordId(1));
    assert_eq!(tail.load().map(|load| load.after), Some(RecordId(1)));
    tail.loaded(vec![stored(2, 5_000)], true);
    assert_eq!(ids(&mut tail), [2]);
}

#[test]
fn records_that_the_store_dropped_are_not_waited_for() {
    let mut tail = Tail::new(ROOMY, RecordId(0), RecordId(20));
    assert_eq!(tail.load().map(|load| load.after), Some(RecordId(0)));
    tail.loaded(vec![stored(15, 10)], true);
    assert_eq!(ids(&mut tail), [15]);
    assert_eq!(tail.done(RecordId(15)), Some(RecordId(20)), "there is nothing behind it");
    assert!(tail.is_empty() && !tail.has_waiting());
    assert_eq!(tail.load(), None);
}

#[test]
fn a_reopened_store_is_asked_anew_and_old_answers_do_not_count() {
    for stale_answer_comes in [false, true] {
        let mut tail = Tail::new(ROOMY, RecordId(0), RecordId(9));
        assert_eq!(tail.load().map(|load| load.after), Some(RecordId(0)));
        tail.loaded(vec![stored(1, 10), stored(2, 10), stored(3, 10)], false);
        assert_eq!(tail.load().map(|load| load.after), Some(RecordId(3)));
        tail.reopened(RecordId(1), RecordId(9));
        assert_eq!(tail.load().map(|load| load.after), Some(RecordId(1)));
        if stale_answer_comes {
            tail.loaded(vec![stored(4, 10)], false);
            assert!(ids(&mut tail).is_empty());
            assert_eq!(tail.load().map(|load| load.after), Some(RecordId(1)));
        }
        while ids(&mut tail).is_empty() {
            tail.loaded((2..=9).map(|id| stored(id, 10)).collect(), true);
            assert!(tail.load().is_none_or(|load| load.after == RecordId(1)));
        }
        assert!(!tail.has_waiting());
        assert_eq!((2..=9).filter_map(|id| tail.done(RecordId(id))).last(), Some(RecordId(9)));
        assert!(tail.is_empty());
    }
}

#[test]
fn an_answer_that_comes_twice_adds_nothing() {
    let mut tail = Tail::new(ROOMY, RecordId(0), RecordId(2));
    assert!(tail.load().is_some());
    for _ in 0..2 {
        tail.loaded(vec![stored(1, 10), stored(2, 10)], true);
    }
    assert_eq!(ids(&mut tail), [1, 2]);
}

/// What can happen to a tail. Numbers choose among what is possible at that moment.
#[derive(Clone, Debug)]
enum Step {
    Commit {
        records: u8,
        size: usize,
    },
    AnswerLoad {
        records: u8,
    },
    Send,
    Ack(usize),
    Again(usize),
    Break,
    DropOldest,
    /// Of one function, from between others.
    DropOne(usize),
    Restart,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1..6_u8, 0..700_usize).prop_map(|(records, size)| Step::Commit { records, size }),
        3 => (1..8_u8).prop_map(|records| Step::AnswerLoad { records }),
        6 => Just(Step::Send),
        5 => any::<usize>().prop_map(Step::Ack),
        1 => any::<usize>().prop_map(Step::Again),
        1 => Just(Step::Break),
        1 => Just(Step::DropOldest),
        1 => any::<usize>().prop_map(Step::DropOne),
        1 => Just(Step::Restart),
        1 => Just(Step::Reopen),
    ]
}

const SMALL: TailLimits = TailLimits { records: 6, bytes: 3_000 };

/// The store as the tail sees it, and the receiver.
struct Model {
    tail: Tail,
    /// On disk: id and size.
    disk: BTreeMap<u64, usize>,
    last: u64,
    /// Durable in the store.
    watermark: u64,
    load: Option<Load>,
    /// Sent on this connection and not answered.
    under_way: BTreeSet<u64>,
    answered: BTreeSet<u64>,
    /// Records that the receiver asked to see again, or that a broken connection left behind.
    repeat: BTreeSet<u64>,
    sent: BTreeSet<u64>,
    newest_sent: u64,
    dropped: BTreeSet<u64>,
}

impl Model {
    fn new() -> Self {
        Self {
            tail: Tail::new(SMALL, RecordId(0), RecordId(0)),
            disk: BTreeMap::new(),
            last: 0,
            watermark: 0,
            load: None,
            under_way: BTreeSet::new(),
            answered: BTreeSet::new(),
            repeat: BTreeSet::new(),
            sent: BTreeSet::new(),
            newest_sent: 0,
            dropped: BTreeSet::new(),
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Commit { records, size } => {
                for _ in 0..records {
                    self.last += 1;
                    self.disk.insert(self.last, size);
                    self.tail.committed(stored(self.last, size));
                }
            }
            Step::AnswerLoad { records } => self.answer_load(records.into()),
            Step::Send => self.send(),
            Step::Ack(n) => {
                if let Some(id) = pick(&self.under_way, n) {
                    self.ack(id);
                }
            }
            Step::Again(n) => {
                if let Some(id) = pick(&self.under_way, n) {
                    self.under_way.remove(&id);
                    self.repeat.insert(id);
                    self.tail.requeue(RecordId(id));
                }
            }
            Step::Break => {
                self.tail.rewind();
                self.forget_connection();
            }
            Step::DropOldest => {
                // The store makes room; a tail that still holds the record may send it all the same.
                if let Some((id, _)) = self.disk.pop_first() {
                    self.dropped.insert(id);
                    self.watermark = self.watermark.max(id);
                }
            }
            Step::DropOne(n) => {
                if let Some(id) = pick(&self.disk.keys().copied().collect(), n) {
                    self.disk.remove(&id);
                    self.dropped.insert(id);
                    self.tail.dropped(GapId(1), &[(RecordId(id - 1), RecordId(id))]);
                }
            }
            Step::Restart | Step::Reopen => {
                self.disk.retain(|id, _| *id > self.watermark);
                // The request is discarded with all that the closed store had before it.
                self.load = None;
                if matches!(step, Step::Reopen) {
                    self.tail.reopened(RecordId(self.watermark), RecordId(self.last));
                } else {
                    self.tail = Tail::new(SMALL, RecordId(self.watermark), RecordId(self.last));
                }
                self.answered.retain(|id| *id <= self.watermark);
                self.forget_connection();
                self.repeat.clear();
            }
        }
        self.load = self.load.or_else(|| self.tail.load());
        self.check();
    }

    fn answer_load(&mut self, records: usize) {
        let Some(load) = self.load.take() else { return };
        let after = load.after.0.max(self.watermark);
        let found: Vec<_> = self.disk.range(after + 1..).map(|(id, size)| stored(*id, *size)).collect();
        let end = found.len() <= records;
        self.tail.loaded(found.into_iter().take(records).collect(), end);
    }

    fn send(&mut self) {
        let Some(id) = self.tail.next().map(|stored| stored.id.0) else { return };
        assert!(!self.answered.contains(&id), "{id} was taken already");
        assert!(self.under_way.insert(id), "{id} is under way already");
        // In order on a connection, but for what the receiver itself put off.
        if !self.repeat.remove(&id) {
            assert!(id > self.newest_sent, "{id} after {}", self.newest_sent);
            self.newest_sent = id;
        }
        self.sent.insert(id);
    }

    fn ack(&mut self, id: u64) {
        self.under_way.remove(&id);
        self.answered.insert(id);
        if let Some(RecordId(watermark)) = self.tail.done(RecordId(id)) {
            assert!(watermark > 0 && watermark <= self.last);
            for passed in self.disk.range(..=watermark) {
                assert!(self.answered.contains(passed.0), "the watermark {watermark} passed {}", passed.0);
            }
            self.watermark = self.watermark.max(watermark);
            self.disk.retain(|id, _| *id > self.watermark);
        }
    }

    fn forget_connection(&mut self) {
        self.under_way.clear();
        self.repeat.clear();
        self.newest_sent = 0;
    }

    fn check(&self) {
        let held: usize = self
            .tail
            .slots
            .iter()
            .map(|slot| match &slot.state {
                SlotState::Waiting(stored) | SlotState::Sent(stored) => weight(stored),
                SlotState::Done => 0,
            })
            .sum();
        assert_eq!(held, self.tail.bytes);
        assert!(self.tail.slots.len() <= SMALL.records);
        assert!(held <= SMALL.bytes || self.tail.slots.len() == 1);
    }

    /// A patient receiver: everything that is still on disk arrives.
    fn drain(&mut self) {
        for _ in 0..100 * (self.last + 1) {
            self.step(&Step::AnswerLoad { records: 3 });
            self.step(&Step::Send);
            self.step(&Step::Ack(0));
        }
        assert!(self.tail.is_empty(), "{:?}", self.tail);
        assert!(!self.tail.has_waiting());
        assert!(self.disk.is_empty(), "never sent: {:?}", self.disk);
    }
}

fn pick(set: &BTreeSet<u64>, n: usize) -> Option<u64> {
    set.iter().nth(n.checked_rem(set.len())?).copied()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_record_is_sent_in_order_and_the_watermark_never_lies(steps in prop::collection::vec(step(), 0..120)) {
        let mut model = Model::new();
        steps.iter().for_each(|step| model.step(step));
        model.drain();
        for id in 1..=model.last {
            assert!(model.sent.contains(&id) || model.dropped.contains(&id), "{id} was never sent");
        }
    }
}

#[test]
fn a_window_that_has_become_full_is_told_once_with_what_it_holds() {
    let mut tail = Tail::new(TailLimits { records: 4, bytes: 1 << 20 }, RecordId(0), RecordId(0));
    (1..=4).for_each(|id| tail.committed(stored(id, 10)));
    assert_eq!(tail.take_behind(), None);
    (5..=9).for_each(|id| tail.committed(stored(id, 10)));
    assert_eq!((tail.take_behind(), tail.take_behind()), (Some(RecordId(4)), None));
    for id in 1..=4 {
        tail.next();
        tail.done(RecordId(id));
    }
    assert!(tail.load().is_some() && tail.take_behind().is_none(), "the store knows what it reads");
    // It answers with more than there is room for, and has no more.
    tail.loaded((5..=9).map(|id| stored(id, 10)).collect(), true);
    assert_eq!(tail.take_behind(), Some(RecordId(8)));
    for id in 5..=8 {
        tail.next();
        tail.done(RecordId(id));
    }
    assert!(tail.load().is_some());
    tail.loaded(vec![stored(9, 10)], true);
    tail.committed(stored(10, 10));
    assert_eq!((tail.take_behind(), tail.is_waiting(RecordId(10))), (None, true));
}
