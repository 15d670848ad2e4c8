use std::time::SystemTime;

use super::*;

const F: FunctionNo = FunctionNo(0);

struct Fixture {
    wakes: Wakes,
    start: Now,
}

impl Fixture {
    fn new() -> Self {
        let start = Now { unix_ms: 1_000_000, ..Now::at(Instant::now(), SystemTime::now(), true) };
        Self { wakes: Wakes::new(Seeded::new(1)), start }
    }

    fn at(&self, ms: u64) -> Now {
        let Now { monotonic, unix_ms, synced } = self.start;
        Now { monotonic: monotonic + Duration::from_millis(ms), unix_ms: unix_ms + ms, synced }
    }

    /// Sets a wake on a topic, or cancels it, and sends the commit.
    fn set(&mut self, topic: &str, name: &str, after_ms: Option<u64>, now: Now) -> Change {
        let (topic, state_name): (Arc<str>, Arc<str>) = (topic.into(), "f".into());
        let setter = Setter {
            function: F,
            state_name: &state_name,
            topic: &topic,
            is_shared: false,
            hops: 0,
            fan_out: 9,
            is_shadow: false,
        };
        let change = self.wakes.set(&setter, &Wake { name: name.into(), after_ms }, now);
        if let Some(set) = &change.set {
            self.wakes.sent(set.id);
        }
        change
    }

    fn due(&mut self, now: Now) -> Vec<(WakeId, String)> {
        let due = self.wakes.start_due(now.monotonic, usize::MAX, |_| true);
        due.into_iter().map(|it| (it.id, format!("{} {}", it.topic, it.name))).collect()
    }
}

fn is_at(wakes: &Wakes) -> Option<Instant> {
    wakes.next_due(|_| true)
}

#[test]
fn a_wake_is_due_once_at_its_time() {
    let mut it = Fixture::new();
    let change = it.set("t/1", "open", Some(50), it.start);
    let stored = change.set.unwrap();
    assert_eq!((stored.due_ms, stored.wait_ms, change.delete), (1_000_050, 50, None));
    assert_eq!(is_at(&it.wakes), Some(it.at(50).monotonic));
    assert_eq!(it.due(it.at(49)), []);
    assert_eq!(it.due(it.at(50)), [(stored.id, "t/1 open".into())]);
    assert_eq!((it.due(it.at(99)), it.wakes.count(F)), (Vec::new(), 1));
    it.wakes.finished(F, stored.id);
    assert_eq!((it.wakes.count(F), is_at(&it.wakes)), (0, None));
}

/// A run that is committed before what set it would leave it in the store.
#[test]
fn a_wake_whose_commit_is_not_sent_is_not_due() {
    let mut it = Fixture::new();
    let (topic, state_name): (Arc<str>, Arc<str>) = ("t/1".into(), "f".into());
    let (function, is_shared, is_shadow) = (F, false, false);
    let setter = Setter { function, state_name: &state_name, topic: &topic, is_shared, hops: 0, fan_out: 9, is_shadow };
    let set = it.wakes.set(&setter, &Wake { name: "open".into(), after_ms: Some(1) }, it.start).set.unwrap();
    assert_eq!((it.due(it.at(9)), is_at(&it.wakes)), (Vec::new(), None));
    it.wakes.sent(set.id);
    assert_eq!(it.due(it.at(9)).len(), 1);
}

#[test]
fn setting_a_name_again_moves_it_on_its_topic_alone() {
    let mut it = Fixture::new();
    let first = it.set("t/1", "open", Some(50), it.start).set.unwrap().id;
    let other = it.set("t/2", "open", Some(60), it.start).set.unwrap().id;
    let moved = it.set("t/1", "open", Some(90), it.start);
    assert_eq!((moved.delete, it.wakes.count(F)), (Some(first), 2));
    assert_eq!(it.due(it.at(89)), [(other, "t/2 open".into())]);
    let cancelled = it.set("t/1", "open", None, it.start);
    assert_eq!((cancelled.set, cancelled.delete), (None, moved.set.map(|it| it.id)));
    assert_eq!(it.set("t/1", "open", None, it.start), Change::default(), "there is none");
    assert_eq!(it.due(it.at(999)), []);
}

#[test]
fn one_that_is_set_while_it_runs_stays_when_the_run_ends() {
    let mut it = Fixture::new();
    let first = it.set("t/1", "open", Some(1), it.start).set.unwrap().id;
    assert_eq!(it.due(it.at(1)).len(), 1);
    let again = it.set("t/1", "open", Some(1), it.at(1));
    assert_eq!(again.delete, Some(first));
    it.wakes.finished(F, first);
    assert_eq!(it.due(it.at(2)), [(again.set.unwrap().id, "t/1 open".into())]);
}

#[test]
fn few_of_a_function_run_at_once_and_the_others_wait_their_turn() {
    let mut it = Fixture::new();
    for number in 0..1000 {
        it.set(&format!("t/{number}"), "open", Some(1), it.start);
    }
    let mut ran = 0;
    loop {
        let due = it.due(it.at(5));
        assert!(due.len() <= MAX_STARTED);
        if due.is_empty() {
            break;
        }
        assert_eq!(is_at(&it.wakes), None, "no time helps");
        ran += due.len();
        due.into_iter().for_each(|(id, _)| it.wakes.finished(F, id));
    }
    assert_eq!((ran, it.wakes.count(F)), (1000, 0));
}

#[test]
fn the_count_is_that_after_all_changes() {
    let mut it = Fixture::new();
    it.set("t/1", "a", Some(1), it.start);
    let (topic, state_name): (Arc<str>, Arc<str>) = ("t/1".into(), "f".into());
    let (function, is_shared, is_shadow) = (F, false, false);
    let setter = Setter { function, state_name: &state_name, topic: &topic, is_shared, hops: 0, fan_out: 9, is_shadow };
    let count = |asked: &[(&str, Option<u64>)]| {
        let wakes: Vec<Wake> =
            asked.iter().map(|(name, after_ms)| Wake { name: (*name).into(), after_ms: *after_ms }).collect();
        it.wakes.count_with(&setter, wakes.iter())
    };
    assert_eq!(count(&[("a", Some(5)), ("b", Some(5)), ("b", Some(6)), ("c", None)]), 2);
    assert_eq!(count(&[("a", None), ("b", Some(5)), ("b", None)]), 0);
}

/// The wake of another process, and what its times are at a start.
fn after_restart(wait_ms: u64, clock_synced: bool, now: Now, is_known: bool) -> (Wakes, u64) {
    let mut it = Fixture::new();
    let stored = it.set("t/1", "open", Some(wait_ms), Now { synced: clock_synced, ..it.start }).set.unwrap();
    let mut wakes = Wakes::new(Seeded::new(2));
    wakes.restore(vec![stored], |_| is_known.then_some(F), now);
    let wait = is_at(&wakes).map_or(0, |due| due.duration_since(now.monotonic).as_millis() as u64);
    (wakes, wait)
}

#[test]
fn a_restart_goes_by_the_wall_clock_if_that_was_and_is_right_and_begins_anew_otherwise() {
    let at = |unix_ms, synced| Now { unix_ms, ..Now::at(Instant::now(), SystemTime::now(), synced) };
    assert_eq!(after_restart(500, true, at(1_000_200, true), true).1, 300);
    assert_eq!(after_restart(500, true, at(9_000_000, true), true).1, 0, "it was due while the board was off");
    assert_eq!(after_restart(500, true, at(1, true), true).1, 500, "the clock was set back");
    assert_eq!(after_restart(500, false, at(1_000_200, true), true).1, 500);
    let (mut wakes, wait) = after_restart(500, true, at(0, false), true);
    assert_eq!(wait, 500);
    // The time service answers 100 ms after the start.
    let now = at(1_000_450, true);
    wakes.clock_synced(now);
    assert_eq!(is_at(&wakes), Some(now.monotonic + Duration::from_millis(50)));
}

#[test]
fn wakes_of_a_function_that_is_not_there_wait_for_it() {
    let now = Now::at(Instant::now(), SystemTime::now(), false);
    let (mut wakes, _) = after_restart(500, false, now, false);
    assert_eq!((is_at(&wakes), wakes.count(F)), (None, 0));
    wakes.adopt("g", FunctionNo(1));
    wakes.adopt("f", F);
    assert_eq!((is_at(&wakes), wakes.count(F)), (Some(now.monotonic + Duration::from_millis(500)), 1));
    wakes.forget(Some(F), "f");
    assert_eq!((is_at(&wakes), wakes.count(F)), (None, 0));
}

#[test]
fn when_the_disk_works_again_the_time_that_passed_counts() {
    let mut it = Fixture::new();
    let stored = it.set("t/1", "open", Some(50), it.start).set.unwrap();
    let lost = it.set("t/1", "lost", Some(50), it.start).set.unwrap();
    let now = Now { unix_ms: 7, synced: false, ..it.at(40) };
    it.wakes.restore(vec![stored.clone()], |_| Some(F), now);
    assert_eq!(is_at(&it.wakes), Some(it.at(50).monotonic));
    assert_eq!(it.due(it.at(50)), [(stored.id, "t/1 open".into())]);
    let next = it.set("t/1", "next", Some(50), it.start).set.unwrap().id;
    assert!(next > lost.id, "a number is given once");
}
