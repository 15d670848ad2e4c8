use std::time::{Duration, Instant};

use super::*;
use crate::schedule::Zone;

const F: FunctionNo = FunctionNo(0);
const HOUR_MS: u64 = 3_600_000;

fn wanted(name: &str, expressions: &[&str]) -> Wanted {
    Wanted {
        function: F,
        state_name: "f".into(),
        name: name.into(),
        spec: expressions.join("; ").into(),
        times: Times::new(expressions, Zone::utc()).unwrap(),
        catch_up_ms: HOUR_MS,
    }
}

struct Rig {
    schedules: Schedules,
    now: Now,
    notes: Vec<StoredSchedule>,
}

impl Rig {
    fn new(wanted: Vec<Wanted>) -> Self {
        let now = Now { monotonic: Instant::now(), unix_ms: 1_767_592_740_000, synced: true };
        let mut schedules = Schedules::default();
        schedules.set(wanted, now);
        Self { schedules, now, notes: Vec::new() }
    }

    fn pass(&mut self, secs: u64) {
        self.now.monotonic += Duration::from_secs(secs);
        self.now.unix_ms += secs * 1000;
    }

    /// Begins what is due, and commits it. The due times, in seconds before now.
    fn run(&mut self) -> Vec<u64> {
        let due = self.start(true);
        let ran = due.runs.iter().map(|run| (self.now.unix_ms - run.due_ms) / 1000).collect();
        for run in due.runs {
            self.schedules.finished(run.function, &run.name);
            self.notes.push(run.note);
        }
        ran
    }

    fn start(&mut self, can_run: bool) -> Due {
        if !self.schedules.is_due(self.now) {
            return Due::default();
        }
        let again = self.now.monotonic + Duration::from_secs(1);
        let due = self.schedules.start_due(self.now, usize::MAX, again, |_| can_run);
        self.notes.extend(due.notes.iter().cloned());
        due
    }
}

#[test]
fn of_many_times_that_were_missed_the_latest_runs() {
    for (expression, off, expected) in [
        ("* * * * * *", 3000, 0),
        ("*/7 * * * * *", 3055, 6),
        ("0 0-29 * * * *", 2000, 200),
        ("* 0-10 6 * * *", 3000, 2281),
        ("0 6 * * *", 3000, 2940),
        ("0 6,7 * * *", 3661, 1),
    ] {
        let mut rig = Rig::new(vec![wanted("a", &[expression])]);
        rig.run();
        rig.pass(off);
        let expected: Vec<u64> = [expected].into();
        assert_eq!(rig.run(), expected, "{expression}");
        assert_eq!(rig.run(), [0; 0], "{expression}");
    }
}

#[test]
fn while_a_run_is_not_committed_the_next_waits() {
    let mut rig = Rig::new(vec![wanted("a", &["* * * * * *"])]);
    rig.run();
    rig.pass(1);
    let first = rig.start(true).runs;
    assert_eq!(first.len(), 1);
    rig.pass(5);
    assert_eq!(rig.start(true).runs.len(), 0);
    rig.schedules.finished(F, &first[0].name);
    assert_eq!(rig.run(), [0], "one for those that were due meanwhile");
}

#[test]
fn a_function_that_cannot_run_is_looked_at_again() {
    let mut rig = Rig::new(vec![wanted("a", &["0 6 * * *"])]);
    rig.run();
    rig.pass(61);
    assert_eq!(rig.start(false).runs.len(), 0);
    assert!(!rig.schedules.is_due(rig.now));
    assert_eq!(rig.schedules.poll_timeout(rig.now), Some(rig.now.monotonic + Duration::from_secs(1)));
    rig.pass(1);
    assert_eq!(rig.run(), [2]);
}

#[test]
fn a_run_that_did_not_take_place_runs_later() {
    let mut rig = Rig::new(vec![wanted("a", &["0 6 * * *"])]);
    rig.run();
    rig.pass(60);
    let run = rig.start(true).runs.remove(0);
    rig.schedules.postpone(F, &run.name, rig.now.monotonic + Duration::from_secs(1));
    assert_eq!(rig.run(), [0; 0]);
    rig.pass(1);
    assert_eq!(rig.run(), [1]);
    rig.pass(1);
    assert_eq!(rig.run(), [0; 0]);
}

#[test]
fn what_the_store_has_counts_for_the_same_times_alone() {
    let mut rig = Rig::new(vec![wanted("a", &["0 6 * * *"]), wanted("b", &["0 6 * * *"])]);
    rig.run();
    assert_eq!(rig.notes.len(), 2, "the store knows of both before they are due");
    let notes = std::mem::take(&mut rig.notes);
    let mut rig = Rig { schedules: Schedules::default(), ..rig };
    rig.pass(120);
    rig.schedules.restore(notes);
    rig.schedules.set(vec![wanted("a", &["0 6 * * *"]), wanted("b", &["0 6 * * *", "0 7 * * *"])], rig.now);
    assert_eq!(rig.run(), [60]);
}

#[test]
fn when_the_disk_works_again_only_what_is_committed_has_run() {
    let mut rig = Rig::new(vec![wanted("a", &["* * * * *"])]);
    rig.run();
    rig.pass(61);
    assert_eq!(rig.run(), [1]);
    let notes = rig.notes.clone();
    rig.pass(60);
    assert_eq!(rig.run(), [1]);
    rig.schedules.restore(vec![notes.last().unwrap().clone()]);
    assert_eq!(rig.run(), [1], "it was not committed");
    // Even the first note may be lost.
    rig.schedules.restore(Vec::new());
    assert_eq!(rig.run(), [1]);
}

#[test]
fn another_expression_forgets_nothing_that_has_run() {
    let mut rig = Rig::new(vec![wanted("a", &["0 6 * * *"])]);
    rig.run();
    rig.pass(61);
    assert_eq!(rig.run(), [1]);
    rig.schedules.set(vec![wanted("a", &["0 6 * * *", "30 6 * * *"])], rig.now);
    rig.now.unix_ms -= 30_000;
    assert_eq!(rig.run(), [0; 0]);
    rig.pass(31);
    assert_eq!(rig.run(), [0; 0]);
}

#[test]
fn a_person_is_told_once_that_schedules_wait_for_the_clock() {
    let mut rig = Rig::new(vec![wanted("a", &["0 6 * * *"])]);
    assert!(!rig.schedules.is_clock_overdue(rig.now));
    rig.now.synced = false;
    assert!(!rig.schedules.is_clock_overdue(rig.now));
    assert_eq!(rig.schedules.awaiting_clock(rig.now), 1);
    rig.pass(599);
    assert!(!rig.schedules.is_clock_overdue(rig.now));
    rig.pass(1);
    assert!(rig.schedules.is_clock_overdue(rig.now));
    assert!(!rig.schedules.is_clock_overdue(rig.now));
    rig.now.synced = true;
    assert!(!rig.schedules.is_clock_overdue(rig.now));
    rig.now.synced = false;
    assert!(!rig.schedules.is_clock_overdue(rig.now));
    rig.pass(600);
    assert!(rig.schedules.is_clock_overdue(rig.now));
}
