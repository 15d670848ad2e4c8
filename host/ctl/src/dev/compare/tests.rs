use sedge_core::message::{Alert, Output, Severity};

use super::*;

const WAIT: Duration = Duration::from_secs(2);
const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

struct Desk {
    comparison: Comparison<u32>,
    begun: Instant,
    at: Instant,
    count: u32,
}

impl Desk {
    fn new() -> Self {
        let begun = Instant::now();
        Self { comparison: Comparison::new(WAIT, Duration::from_secs(60)), begun, at: begun, count: 0 }
    }

    /// Milliseconds from the beginning.
    fn at(&mut self, ms: u64) -> &mut Self {
        self.at = self.begun + Duration::from_millis(ms);
        self
    }

    fn message(&mut self, topic: &str, properties: &[(&str, &str)], here: &[Answer]) -> &mut Self {
        let properties = properties.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let message = Message { properties, ..Message::new(topic, bytes::Bytes::new(), 0, true) };
        self.count += 1;
        self.comparison.ran(Ran::new(&message, here.to_vec(), Ok(None), self.at), self.count);
        self
    }

    fn echo(&mut self, answer: Answer) -> Option<Answer> {
        self.comparison.answered(Echo { answer, cause: None, trace: None }, self.at)
    }

    fn alert(&mut self, answer: Answer, topic: &str, took_ms: u64, folded: u64) -> Option<Answer> {
        let took = Duration::from_millis(took_ms);
        let cause = Cause { topic: topic.into(), publisher_id: None, took, folded };
        self.comparison.answered(Echo { answer, cause: Some(cause), trace: None }, self.at)
    }

    /// Number and comparison of the next message. Nothing is settled before its time.
    #[track_caller]
    fn settled(&mut self) -> (u32, Compared) {
        let end = self.comparison.next_end().expect("a message waits");
        assert_eq!(self.comparison.settle(end - Duration::from_millis(1)), None);
        match self.comparison.settle(end) {
            Some((number, Settled::Compared(compared))) => (number, compared),
            other => panic!("{other:?}"),
        }
    }
}

fn published(topic: &str, payload: &'static str) -> Answer {
    Answer::publication(topic, payload.into(), None)
}

fn alert(key: &str, status: AlertStatus, value: f64) -> Answer {
    let (severity, summary, labels) = (Severity::Warning, "warm".into(), Vec::new());
    let alert = Alert { key: key.into(), severity, status, summary, value: Some(value), labels, sink: None };
    Answer::of(&Output::Alert(alert)).unwrap()
}

fn firing(key: &str, value: f64) -> Answer {
    alert(key, AlertStatus::Firing, value)
}

fn equal(equal: u64) -> Compared {
    Compared { equal, ..Compared::default() }
}

fn differs(board: Option<Answer>, here: Option<Answer>) -> Compared {
    Compared { differences: vec![Difference { board, here }], ..Compared::default() }
}

#[test]
fn each_message_has_what_is_equal_changed_and_given_by_one_alone() {
    let mut desk = Desk::new();
    desk.at(0).message("s/a", &[], &[published("o/a", "1")]);
    desk.at(5).echo(published("o/a", "1"));
    desk.at(100).message("s/a", &[], &[published("o/a", "2")]);
    desk.at(105).echo(published("o/a", "3"));
    desk.at(200).message("s/b", &[], &[]);
    desk.at(205).echo(published("o/b", "4"));
    desk.at(300).message("s/b", &[], &[published("o/b", "5")]);
    desk.at(400).message("s/b", &[], &[]);
    assert_eq!(desk.settled(), (1, equal(1)));
    assert_eq!(desk.settled(), (2, differs(Some(published("o/a", "3")), Some(published("o/a", "2")))));
    assert_eq!(desk.settled(), (3, differs(Some(published("o/b", "4")), None)));
    assert_eq!(desk.settled(), (4, differs(None, Some(published("o/b", "5")))));
    assert_eq!(desk.settled(), (5, equal(0)));
    let totals =
        Totals { messages: 5, different: 3, equal: 1, changed: 1, only_board: 1, only_here: 1, ..Totals::default() };
    assert_eq!(desk.comparison.totals, totals);
    assert_eq!(desk.comparison.next_end(), None);
}

#[test]
fn late_publications_find_the_message_that_is_answered_alike_or_on_their_topic() {
    let mut desk = Desk::new();
    desk.at(0).message("s/a", &[], &[published("o/a", "1")]);
    desk.at(10).message("s/b", &[], &[published("o/b", "2")]);
    desk.at(20).message("s/c", &[], &[]);
    desk.at(30).echo(published("o/a", "1"));
    desk.at(30).echo(published("o/b", "7"));
    assert_eq!(desk.settled(), (1, equal(1)));
    assert_eq!(desk.settled(), (2, differs(Some(published("o/b", "7")), Some(published("o/b", "2")))));
    assert_eq!(desk.settled(), (3, equal(0)));
}

#[test]
fn publications_of_a_burst_are_paired_in_order() {
    let mut desk = Desk::new();
    for here in ["1", "b", "c", "4"] {
        desk.message("s", &[], &[published("o", here)]);
    }
    for board in ["1", "2", "3", "4"] {
        assert_eq!(desk.at(20).echo(published("o", board)), None);
    }
    assert_eq!(desk.settled(), (1, equal(1)));
    assert_eq!(desk.settled(), (2, differs(Some(published("o", "2")), Some(published("o", "b")))));
    assert_eq!(desk.settled(), (3, differs(Some(published("o", "3")), Some(published("o", "c")))));
    assert_eq!(desk.settled(), (4, equal(1)));
}

#[test]
fn an_alert_belongs_to_the_message_of_its_topic_and_time_whatever_came_meanwhile() {
    let mut desk = Desk::new();
    desk.at(0).message("s/a", &[], &[]);
    desk.at(900).message("s/a", &[], &[firing("k", 2.0)]);
    desk.at(950).message("s/b", &[], &[]);
    // The board took 940 ms for the first.
    assert_eq!(desk.at(960).alert(firing("k", 1.0), "s/a", 940, 0), None);
    assert_eq!(desk.settled(), (1, differs(Some(firing("k", 1.0)), None)));
    let (number, compared) = desk.settled();
    assert_eq!((number, compared.folded), (2, vec!["k".to_owned()]), "the board would fold it");
    assert_eq!(desk.settled(), (3, equal(0)));
    // A retry or a wake, long after its message; a topic that is not heard here; the id of another message.
    desk.at(5_000).message("s/a", &[("id", "7")], &[]);
    for (topic, took_ms) in [("s/a", 60_000), ("s/x", 1), ("s/a", 1)] {
        assert_eq!(desk.at(5_001).alert(firing("l", 1.0), topic, took_ms, 0), Some(firing("l", 1.0)));
    }
    assert_eq!((desk.settled(), desk.comparison.totals.unplaced), ((4, equal(0)), 3));
}

#[test]
fn a_trace_names_the_message() {
    let mut desk = Desk::new();
    desk.at(0).message("s/a", &[("traceparent", TRACE)], &[]);
    desk.at(10).message("s/a", &[], &[published("o", "1")]);
    let trace = TraceContext::of(&[("traceparent", TRACE)]).map(|trace| trace.trace_id);
    let echo = Echo { answer: published("o", "1"), cause: None, trace };
    assert_eq!(desk.comparison.answered(echo, desk.at), None);
    assert_eq!(desk.settled(), (1, differs(Some(published("o", "1")), None)));
    assert_eq!(desk.settled(), (2, differs(None, Some(published("o", "1")))));
}

#[test]
fn an_echo_answers_one_message_only() {
    let mut desk = Desk::new();
    desk.at(0).message("s", &[], &[published("o", "1")]);
    desk.at(10).message("s", &[], &[published("o", "1")]);
    desk.at(20).echo(published("o", "1"));
    let (first, second) = (desk.settled(), desk.settled());
    assert_eq!([first.1, second.1], [equal(1), differs(None, Some(published("o", "1")))]);
    assert_eq!(desk.at(30).echo(published("o", "1")), Some(published("o", "1")), "no message waits any more");
}

#[test]
fn repeats_that_the_board_folds_are_no_difference_and_are_counted_against_its_own() {
    let mut desk = Desk::new();
    desk.at(0).message("s", &[], &[firing("k", 1.0)]);
    desk.at(5).alert(firing("k", 1.0), "s", 4, 3);
    assert_eq!(desk.settled(), (1, equal(1)), "what it folded before is not known");
    for (ms, value) in [(10_000, 2.0), (59_000, 3.0)] {
        desk.at(ms).message("s", &[], &[firing("k", value)]);
        let (_, compared) = desk.settled();
        assert_eq!(compared, Compared { folded: vec!["k".into()], ..Compared::default() });
    }
    // Its time is over, or the status is another: the board would have said it.
    desk.at(60_000).message("s", &[], &[firing("k", 4.0)]);
    assert_eq!(desk.settled().1, differs(None, Some(firing("k", 4.0))));
    desk.at(61_000).message("s", &[], &[alert("k", AlertStatus::Resolved, 0.0)]);
    assert_eq!(desk.settled().1, differs(None, Some(alert("k", AlertStatus::Resolved, 0.0))));
    desk.at(62_000).message("s", &[], &[firing("other", 1.0)]);
    assert_eq!(desk.settled().1, differs(None, Some(firing("other", 1.0))));
    // It folded one repeat, and here were two.
    desk.at(63_000).message("s", &[], &[firing("k", 5.0)]);
    desk.at(63_005).alert(firing("k", 5.0), "s", 4, 1);
    let folds = vec![("k".to_owned(), 1, 2)];
    assert_eq!(desk.settled().1, Compared { equal: 1, folds, ..Compared::default() });
    assert_eq!(desk.comparison.totals.folded, 2);
}

#[test]
fn what_cannot_be_compared_says_so_in_its_place() {
    let mut desk = Desk::new();
    desk.at(0).message("s", &[], &[]);
    let retained = Message::new("s", bytes::Bytes::new(), 0, true);
    desk.comparison.ran(Ran::new(&retained, Vec::new(), Err("retained"), desk.at), 9);
    desk.at(10).message("s", &[], &[published("o", "1")]);
    assert_eq!(desk.settled().0, 1, "the second waits for the first");
    assert_eq!(desk.comparison.settle(desk.at), Some((9, Settled::NotCompared("retained"))));
    desk.comparison.stop("broken");
    assert_eq!(desk.comparison.settle(desk.at), Some((2, Settled::NotCompared("broken"))));
    assert_eq!(desk.comparison.totals, Totals { messages: 1, not_compared: 2, ..Totals::default() });
}

#[test]
fn what_was_recorded_is_compared_at_once() {
    let mut comparison = Comparison::new(Duration::ZERO, Duration::ZERO);
    let (message, at) = (Message::new("s", bytes::Bytes::new(), 0, true), Instant::now());
    // Twice: a recording has alerts from before they are folded.
    for (here, expected) in [(vec![firing("k", 1.0)], equal(1)), (Vec::new(), differs(Some(firing("k", 1.0)), None))] {
        comparison.ran(Ran::new(&message, here, Ok(Some(vec![firing("k", 1.0)])), at), ());
        assert_eq!(comparison.settle(at), Some(((), Settled::Compared(expected))));
    }
    comparison.ran(Ran::new(&message, vec![firing("k", 1.0)], Ok(Some(Vec::new())), at), ());
    assert_eq!(comparison.settle(at), Some(((), Settled::Compared(differs(None, Some(firing("k", 1.0)))))));
}

#[test]
fn messages_that_wait_are_bounded() {
    let mut desk = Desk::new();
    for _ in 0..=MAX_OPEN {
        desk.message("s", &[], &[]);
    }
    assert!(matches!(desk.comparison.settle(desk.at), Some((1, Settled::NotCompared(_)))));
}
