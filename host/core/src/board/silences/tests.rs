use std::num::NonZeroU32;

use super::clock::CATCH_UP;
use super::*;
use crate::store::HeardStage;

const F: FunctionNo = FunctionNo(0);
const CALL: UnitId = UnitId(7);

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn topic(name: &str) -> Arc<str> {
    name.into()
}

struct Fixture {
    silences: Silences,
    now: Instant,
    /// As the store has it.
    rows: BTreeMap<u64, StoredHeard>,
    clock_ms: u64,
}

fn silence(after: u64) -> Silence {
    let max_topics = NonZeroU32::new(3).unwrap();
    Silence { after: secs(after), back: true, expect: Vec::new(), names: Vec::new(), max_topics }
}

fn hears(topic: &str) -> bool {
    topic.starts_with("t/")
}

impl Fixture {
    /// Connected, with the backlog read.
    fn new() -> Self {
        let mut silences = Silences::new(Seeded::new(1));
        silences.restore(Vec::new(), 0, |_| None);
        let mut it = Self { silences, now: Instant::now(), rows: BTreeMap::new(), clock_ms: 0 };
        it.watch(&silence(100));
        it.connect();
        it
    }

    fn connect(&mut self) {
        self.silences.pass(self.now);
        self.silences.connected(self.now);
        self.pass(CATCH_UP);
    }

    fn watch(&mut self, silence: &Silence) {
        let (rows, deleted) = self.silences.set(F, &"f".into(), Some(silence), hears);
        self.write(rows);
        deleted.into_iter().for_each(|id| drop(self.rows.remove(&id.0)));
    }

    /// As the store: of two rows the later stays.
    fn write(&mut self, rows: impl IntoIterator<Item = StoredHeard>) {
        for row in rows {
            if self.rows.get(&row.id.0).is_none_or(|it| it.turn < row.turn) {
                self.rows.insert(row.id.0, row);
            }
        }
    }

    /// Time passes in small steps, as on a board.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now = (self.now + Duration::from_millis(500)).min(end);
            self.silences.pass(self.now);
            if let Some(ms) = self.silences.save_clock() {
                self.clock_ms = ms;
            }
        }
    }

    /// A message is committed.
    fn hear(&mut self, name: &str) -> Heard {
        let heard = self.silences.hear(F, &topic(name));
        self.write(heard.row.clone());
        heard
    }

    /// Calls that are due, not committed.
    fn start(&mut self) -> Vec<Silent> {
        let started = self.silences.start_due(usize::MAX, |_| true);
        for it in &started {
            self.silences.begun(F, &it.topic, CALL);
        }
        started
    }

    /// Calls that are due, and committed: topics with the time of silence in seconds, and whether they speak again.
    fn calls(&mut self) -> Vec<(String, u64, bool)> {
        let started = self.start();
        for it in &started {
            self.write([it.row.clone()]);
            self.silences.sent(F, &it.topic);
        }
        started.into_iter().map(|it| (it.topic.to_string(), it.silent.as_secs(), it.is_back)).collect()
    }

    /// Another process with what the store has.
    fn restart(&mut self) {
        self.silences = Silences::new(Seeded::new(2));
        self.silences.restore(self.rows.values().cloned().collect(), self.clock_ms, |_| Some(F));
        self.watch(&silence(100));
        self.connect();
    }

    /// The disk fails and works again: what is not committed does not count.
    fn reopen(&mut self) {
        self.silences.restore(self.rows.values().cloned().collect(), self.clock_ms, |_| Some(F));
    }
}

fn is_silent(name: &str, secs: u64) -> Vec<(String, u64, bool)> {
    vec![(name.to_owned(), secs, false)]
}

fn speaks_again(name: &str, secs: u64) -> Vec<(String, u64, bool)> {
    vec![(name.to_owned(), secs, true)]
}

#[test]
fn a_topic_is_told_once_when_it_was_silent_for_long_enough() {
    let mut it = Fixture::new();
    it.hear("t/1");
    it.pass(secs(60));
    it.hear("t/1");
    it.pass(secs(99));
    assert_eq!(it.calls(), []);
    it.pass(secs(1));
    assert_eq!(it.calls(), is_silent("t/1", 100));
    it.pass(secs(1000));
    assert_eq!(it.calls(), []);
    it.hear("t/1");
    it.pass(secs(1));
    it.hear("t/1");
    assert_eq!(it.calls(), speaks_again("t/1", 1100));
    assert_eq!(it.calls(), []);
    it.pass(secs(100));
    assert_eq!(it.calls(), is_silent("t/1", 100));
}

#[test]
fn without_back_a_topic_that_speaks_again_is_watched_again() {
    let mut it = Fixture::new();
    it.watch(&Silence { back: false, ..silence(100) });
    it.hear("t/1");
    it.pass(secs(100));
    assert_eq!(it.calls(), is_silent("t/1", 100));
    it.hear("t/1");
    it.pass(secs(99));
    assert_eq!(it.calls(), []);
    it.pass(secs(1));
    assert_eq!(it.calls(), is_silent("t/1", 100));
}

#[test]
fn most_messages_cost_no_row() {
    let mut it = Fixture::new();
    let mut rows = 0;
    for _ in 0..1000 {
        rows += usize::from(it.hear("t/1").row.is_some());
        it.pass(secs(1));
    }
    assert_eq!(rows, 200, "one in 5 s, a twentieth of 100 s");
}

#[test]
fn time_without_a_connection_and_with_a_backlog_does_not_count() {
    let mut it = Fixture::new();
    it.hear("t/1");
    it.pass(secs(50));
    it.silences.disconnected();
    it.pass(secs(1000));
    it.connect();
    it.pass(secs(49));
    for _ in 0..100 {
        it.silences.behind(it.now);
        it.pass(secs(1));
    }
    assert_eq!(it.calls(), []);
    it.pass(secs(1));
    assert_eq!(it.calls(), is_silent("t/1", 100));
}

#[test]
fn a_busy_board_counts_time_once_its_backlog_was_read() {
    let mut it = Fixture::new();
    it.hear("t/1");
    it.silences.disconnected();
    it.pass(secs(10));
    it.silences.connected(it.now);
    let mut read = |unacknowledged, most| {
        for _ in 0..most {
            it.silences.delivered(unacknowledged, 20, it.now);
            it.pass(Duration::from_millis(500));
        }
        it.calls().len()
    };
    assert_eq!(read(12, 1000), 0, "it may be a backlog: many are on the way at all times");
    assert_eq!(read(9, 4), 0);
    assert_eq!(read(19, 150), 0, "less than 100 s");
    assert_eq!(read(20, 1000), 0, "the broker holds back what does not fit");
    assert_eq!(read(1, 60), 1);
}

#[test]
fn after_a_restart_a_call_is_late_by_at_most_a_tenth_and_never_early() {
    for (heard_again, off) in [(0, 0), (0, 3), (1, 0), (4, 0), (4, 40), (4, 95), (6, 2), (30, 60)] {
        let mut it = Fixture::new();
        it.hear("t/1");
        it.pass(secs(heard_again));
        it.hear("t/1");
        it.pass(secs(off));
        assert_eq!(it.calls(), []);
        it.restart();
        let mut left = 0;
        while it.calls().is_empty() {
            it.pass(Duration::from_millis(500));
            left += 500;
            assert!(left < 200_000, "it is never told");
        }
        let (waited, least) = (left + off * 1000, 100_000);
        // The time until the backlog counts as read is no connected time.
        assert!((least..=least * 11 / 10 + 500).contains(&waited), "{heard_again} {off}: {waited} ms");
    }
}

#[test]
fn what_was_told_stays_told_over_a_restart_and_what_was_not_committed_is_told_again() {
    let mut it = Fixture::new();
    it.hear("t/1");
    it.pass(secs(100));
    assert_eq!(it.start().len(), 1, "its commit is lost");
    it.reopen();
    assert_eq!(it.calls().len(), 1);
    it.restart();
    it.pass(secs(500));
    assert_eq!(it.calls(), []);
    it.hear("t/1");
    assert_eq!(it.start().len(), 1, "its commit is lost");
    it.restart();
    assert_eq!(it.calls(), speaks_again("t/1", 600));
    it.restart();
    assert_eq!(it.calls(), []);
}

#[test]
fn a_topic_that_speaks_while_it_is_told_is_told_again_afterwards_and_the_store_knows_in_any_order() {
    for (call_first, is_lost) in [(true, false), (false, false), (true, true), (false, true)] {
        let mut it = Fixture::new();
        it.hear("t/1");
        it.pass(secs(100));
        let call = it.start().remove(0);
        let heard = it.silences.hear(F, &topic("t/1"));
        let (unit, row) = heard.of_call.unwrap();
        assert_eq!((unit, &*call.topic, it.calls().len()), (CALL, "t/1", 0), "one call at a time");
        // Only the first of both commits, or both.
        let (of_call, of_message) = ([row], heard.row.unwrap());
        if call_first {
            it.write(of_call);
            it.write((!is_lost).then_some(of_message));
        } else {
            it.write([of_message]);
            it.write(of_call.into_iter().filter(|_| !is_lost));
        }
        it.restart();
        let calls = it.calls();
        match !call_first && is_lost {
            // It was not told that it is silent.
            true => assert_eq!(calls, []),
            false => assert_eq!(calls, speaks_again("t/1", 100)),
        }
        it.pass(secs(110));
        assert_eq!(it.calls().len(), 1);
    }
}

#[test]
fn a_topic_that_speaks_while_its_return_is_told_is_told_no_second_time() {
    let mut it = Fixture::new();
    it.hear("t/1");
    it.pass(secs(100));
    assert_eq!(it.calls().len(), 1);
    it.hear("t/1");
    assert!(it.start()[0].is_back);
    it.pass(secs(10));
    let heard = it.hear("t/1");
    assert_eq!(heard.row.unwrap().stage, HeardStage::Back { silent_ms: 100_000 });
    it.write([heard.of_call.unwrap().1]);
    it.silences.sent(F, &topic("t/1"));
    it.restart();
    it.pass(secs(95));
    assert_eq!(it.calls(), []);
    it.pass(secs(15));
    assert!(!it.calls()[0].2);
}

#[test]
fn a_call_that_is_put_off_is_made_later() {
    let mut it = Fixture::new();
    it.hear("t/1");
    it.pass(secs(100));
    assert_eq!((it.start().len(), it.silences.counts(F)), (1, (1, 1)));
    it.silences.postpone(F, &topic("t/1"), secs(5));
    assert_eq!((it.calls(), it.silences.counts(F)), (Vec::new(), (1, 0)));
    it.pass(secs(5));
    assert_eq!(it.calls(), is_silent("t/1", 105));
    it.hear("t/1");
    assert_eq!(it.start().len(), 1);
    it.silences.postpone(F, &topic("t/1"), secs(5));
    it.restart();
    assert_eq!(it.calls(), speaks_again("t/1", 105));
}

#[test]
fn topics_that_are_expected_are_watched_from_the_start_and_no_more_than_may_be() {
    let mut it = Fixture::new();
    let expecting = Silence { expect: vec!["t/{name}".into()], names: vec!["1".into(), "2".into()], ..silence(10) };
    it.watch(&expecting);
    it.hear("t/2");
    it.hear("t/3");
    assert!(it.hear("t/4").is_too_many && !it.hear("t/5").is_too_many, "told once");
    it.pass(secs(10));
    let topics: Vec<String> = it.calls().into_iter().map(|(topic, ..)| topic).collect();
    assert_eq!(topics, ["t/1", "t/2", "t/3"]);
    assert_eq!((it.silences.counts(F), it.rows.len()), ((3, 3), 3));
}

#[test]
fn nothing_is_written_before_it_is_known_what_the_store_has() {
    let expecting = Silence { expect: vec!["t/1".into()], ..silence(100) };
    let mut silences = Silences::new(Seeded::new(1));
    let (rows, deleted) = silences.set(F, &"f".into(), Some(&expecting), hears);
    assert_eq!((rows.len(), deleted.len(), silences.is_empty()), (0, 0, true));
    let known = StoredHeard {
        id: HeardId(4),
        turn: 9,
        function: "f".into(),
        topic: "t/2".into(),
        at_ms: 0,
        slack_ms: 0,
        stage: HeardStage::Silent,
    };
    let twice = StoredHeard { id: HeardId(6), turn: 8, ..known.clone() };
    silences.restore(vec![known, twice], 0, |_| None);
    let (rows, deleted) = silences.set(F, &"f".into(), Some(&expecting), hears);
    assert_eq!((rows[0].id, rows[0].turn, deleted), (HeardId(7), 10, vec![HeardId(4)]));
    assert_eq!(silences.counts(F), (2, 1));
}

#[test]
fn a_function_that_was_away_begins_anew_and_one_that_watches_no_more_forgets() {
    let mut it = Fixture::new();
    it.hear("t/1");
    it.pass(secs(90));
    it.silences.suspend(F);
    it.pass(secs(90));
    assert_eq!((it.calls(), it.silences.counts(F)), (Vec::new(), (0, 0)));
    it.watch(&silence(100));
    it.pass(secs(99));
    assert_eq!(it.calls(), []);
    it.restart();
    it.pass(secs(1));
    assert_eq!(it.calls(), [], "also after a restart");
    it.pass(secs(10));
    assert_eq!(it.calls().len(), 1);
    // A process in which it is installed later than the store is read.
    it.silences = Silences::new(Seeded::new(2));
    it.hear("t/2");
    it.silences.restore(it.rows.values().cloned().collect(), 1_000_000, |_| None);
    it.watch(&silence(100));
    it.connect();
    assert_eq!(it.calls(), []);
    let (rows, deleted) = it.silences.set(F, &"f".into(), None, |_| true);
    assert_eq!((rows.len(), deleted.len(), it.silences.is_empty()), (0, 1, true));
}
