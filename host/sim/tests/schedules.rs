//! Schedules over restarts, failures, changes of the clock and of versions.
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

use std::time::Duration;

use sedge_core::board::Input;
use sedge_core::manifest::{CatchUp, Manifest, StateScope, Trial, TrialMode};
use sedge_sim::disk::Disk;
use sedge_sim::rig::{Rig, manifest};

/// 2026-01-05 at 05:59 in UTC.
const START_MS: u64 = 1_767_592_740_000;
const DAILY: &str = "0 6 * * *";

fn mow(name: &str, at: &[&str]) -> Manifest {
    let at = [(name.to_owned(), at.iter().map(|it| (*it).to_owned()).collect())].into();
    Manifest { at, ..manifest("f", "t/#", StateScope::Topic) }
}

fn rig_over(manifest: Manifest, disk: Disk, unix_ms: u64) -> Rig {
    let mut rig = Rig::at(vec![manifest], disk, Vec::new(), unix_ms);
    rig.settle();
    rig.settle();
    rig
}

fn rig(at: &[&str]) -> Rig {
    rig_over(mow("a", at), Disk::default(), START_MS)
}

/// So much time passes.
fn pass(rig: &mut Rig, seconds: u64) {
    for _ in 0..seconds {
        rig.pass_by_the_clock(1);
        rig.settle();
    }
}

fn restart(rig: &mut Rig, manifest: Manifest, off_secs: u64) -> Rig {
    rig_over(manifest, std::mem::take(&mut rig.disk), rig.unix_ms + off_secs * 1000)
}

/// The times that ran, as hour and minute.
fn ran(rig: &Rig) -> Vec<&str> {
    let runs = rig.disk.records.iter().map(|it| str::from_utf8(&it.payload).unwrap()).filter(|it| it.starts_with('Y'));
    runs.map(|run| run.split_once('T').unwrap().1.get(..8).unwrap()).collect()
}

fn figures(rig: &Rig) -> (u64, u64, u64) {
    let figures = rig.metrics.function(&"f".into());
    (figures.schedules.get(), figures.schedules_late.get(), figures.schedules_skipped.get())
}

#[test]
fn a_schedule_runs_once_at_its_time_and_names_it() {
    let mut rig = rig(&[DAILY, "30 0 6 * * *", "0 6 5 * *"]);
    pass(&mut rig, 59);
    assert_eq!(ran(&rig), [""; 0]);
    pass(&mut rig, 300);
    assert_eq!(ran(&rig), ["06:00:00", "06:00:30"]);
    let first = str::from_utf8(&rig.disk.records[0].payload).unwrap();
    assert_eq!(first, "Ya@2026-01-05T06:00:00.000Z $schedule/a");
    assert_eq!(figures(&rig), (2, 0, 0));
}

#[test]
fn a_restart_runs_nothing_twice_and_makes_up_for_what_fell_into_it() {
    let mut rig = rig(&["*/5 * * * *"]);
    pass(&mut rig, 62);
    assert_eq!(ran(&rig), ["06:00:00"]);
    let mut rig = restart(&mut rig, mow("a", &["*/5 * * * *"]), 0);
    pass(&mut rig, 30);
    assert_eq!(ran(&rig), ["06:00:00"]);
    // Two were due meanwhile, and one run makes up for both.
    let mut rig = restart(&mut rig, mow("a", &["*/5 * * * *"]), 660);
    assert_eq!((ran(&rig), figures(&rig)), (vec!["06:00:00", "06:10:00"], (1, 1, 0)));
    let rig = restart(&mut rig, mow("a", &["*/5 * * * *"]), 0);
    assert_eq!(ran(&rig), ["06:00:00", "06:10:00"]);
}

#[test]
fn what_is_older_than_catch_up_does_not_run() {
    let short = || Manifest { catch_up: CatchUp(Duration::from_secs(600)), ..mow("a", &[DAILY]) };
    let mut rig = rig_over(short(), Disk::default(), START_MS);
    let mut rig = restart(&mut rig, short(), 700);
    assert_eq!((ran(&rig), figures(&rig)), (vec![], (0, 0, 1)));
    pass(&mut rig, 60);
    assert_eq!((ran(&rig), figures(&rig)), (vec![], (0, 0, 1)));
    let rig = restart(&mut rig, short(), 86_400 - 300);
    assert_eq!(ran(&rig), ["06:00:00"], "of the day after");
}

#[test]
fn what_was_due_before_the_first_installation_does_not_run() {
    let mut rig = rig_over(mow("a", &[DAILY]), Disk::default(), START_MS + 120_000);
    pass(&mut rig, 60);
    assert_eq!(ran(&rig), [""; 0]);
    // A new name, and the same name with another time.
    rig.deploy(mow("b", &[DAILY]), "derived/x+", None);
    rig.settle();
    pass(&mut rig, 60);
    rig.deploy(mow("b", &["1 6 * * *"]), "derived/x+", None);
    rig.settle();
    pass(&mut rig, 60);
    assert_eq!(ran(&rig), [""; 0]);
    rig.deploy(mow("b", &["5 6 * * *"]), "derived/x+", None);
    rig.settle();
    pass(&mut rig, 120);
    assert_eq!(ran(&rig), ["06:05:00"]);
}

#[test]
fn a_schedule_waits_while_the_clock_is_not_synchronised_and_runs_once_then() {
    let mut rig = rig(&["* * * * *"]);
    rig.synced = false;
    pass(&mut rig, 150);
    assert_eq!(ran(&rig), [""; 0]);
    assert_eq!(rig.metrics.schedules_awaiting_clock.get(), 1);
    rig.synced = true;
    pass(&mut rig, 1);
    assert_eq!((ran(&rig), rig.metrics.schedules_awaiting_clock.get()), (vec!["06:01:00"], 0));
    assert_eq!(figures(&rig), (1, 1, 0));
}

#[test]
fn a_board_that_boots_without_the_time_makes_up_for_what_was_due_since_it_was_installed() {
    let mut rig = rig(&[DAILY]);
    let mut rig = {
        let mut rig = Rig::at(Vec::new(), std::mem::take(&mut rig.disk), Vec::new(), 0);
        rig.synced = false;
        rig.deploy(mow("a", &[DAILY]), "derived/x+", None);
        rig.settle();
        pass(&mut rig, 60);
        rig
    };
    assert_eq!(ran(&rig), [""; 0]);
    (rig.unix_ms, rig.synced) = (START_MS + 180_000, true);
    pass(&mut rig, 1);
    assert_eq!(ran(&rig), ["06:00:00"]);
    // Installed while the clock was wrong: what was due before that does not run, and what was due since does.
    let mut rig = Rig::at(Vec::new(), Disk::default(), Vec::new(), 0);
    rig.synced = false;
    rig.deploy(mow("a", &["0,2 6 * * *"]), "derived/x+", None);
    rig.settle();
    pass(&mut rig, 90);
    (rig.unix_ms, rig.synced) = (START_MS + 200_000, true);
    pass(&mut rig, 1);
    assert_eq!(ran(&rig), ["06:02:00"]);
}

#[test]
fn a_clock_that_is_set_ahead_runs_one_late_and_set_back_none_twice() {
    let mut rig = rig(&["* * * * *"]);
    pass(&mut rig, 61);
    rig.unix_ms += 1_800_000;
    pass(&mut rig, 1);
    assert_eq!((ran(&rig), figures(&rig)), (vec!["06:00:00", "06:30:00"], (2, 1, 0)));
    // Back to where it was: what has run does not run again, and what was passed over runs at its time.
    rig.unix_ms -= 1_800_000;
    pass(&mut rig, 118);
    assert_eq!(ran(&rig), ["06:00:00", "06:30:00", "06:01:00", "06:02:00"]);
    rig.unix_ms -= 300_000;
    pass(&mut rig, 295);
    assert_eq!(ran(&rig)[4..], ["05:58:00", "05:59:00"]);
    let mut rig = restart(&mut rig, mow("a", &["* * * * *"]), 0);
    pass(&mut rig, 70);
    assert_eq!(ran(&rig)[6..], ["06:03:00"]);
}

#[test]
fn a_clock_that_is_a_year_ahead_does_not_end_a_schedule() {
    let mut rig = rig(&[DAILY]);
    rig.unix_ms += 365 * 86_400_000;
    pass(&mut rig, 61);
    assert_eq!(ran(&rig), ["06:00:00"]);
    rig.unix_ms -= 365 * 86_400_000 + 60_000;
    let mut rig = restart(&mut rig, mow("a", &[DAILY]), 0);
    pass(&mut rig, 61);
    assert_eq!(ran(&rig), ["06:00:00"; 2], "of the right year");
}

#[test]
fn a_run_that_asks_for_another_attempt_waits_in_the_store() {
    let mut rig = rig_over(mow("again", &["0 6 * * *"]), Disk::default(), START_MS);
    pass(&mut rig, 60);
    assert_eq!((ran(&rig).len(), rig.disk.parked.len()), (0, 1));
    let mut rig = restart(&mut rig, mow("again", &["0 6 * * *"]), 0);
    pass(&mut rig, 3);
    assert_eq!((ran(&rig), rig.disk.parked.len()), (vec!["06:00:00"], 0));
}

#[test]
fn while_its_topic_is_paused_a_schedule_waits() {
    let mut rig = rig_over(mow("bad", &["* * * * * *"]), Disk::default(), START_MS);
    pass(&mut rig, 8);
    assert_eq!((rig.disk.reasons(), rig.paused_topics("f")), (vec!["trap"; 3], 1));
    // After the pause it is tried again.
    pass(&mut rig, 8);
    assert_eq!(rig.disk.reasons(), ["trap"; 4]);
}

#[test]
fn a_run_that_a_failing_disk_has_lost_takes_place_again() {
    let mut rig = rig(&[DAILY]);
    rig.pass_by_the_clock(60);
    rig.handle(Input::Timeout);
    rig.perform();
    rig.work();
    rig.fail_disk();
    assert_eq!(ran(&rig), [""; 0]);
    rig.settle();
    pass(&mut rig, 2);
    assert_eq!(ran(&rig), ["06:00:00"]);
}

#[test]
fn a_version_on_trial_that_fails_over_a_schedule_costs_no_run() {
    let mut rig = rig(&["* * * * *"]);
    let trial = Trial { mode: TrialMode::Live, failures: 5, ..Trial::default() };
    rig.deploy(mow("a", &["* * * * *"]), "derived/y+ Y", Some(trial.clone()));
    rig.settle();
    pass(&mut rig, 60);
    assert_eq!((ran(&rig), rig.disk.reasons()), (vec!["06:00:00"], vec![]));
    // One without the schedule leaves it to the version before.
    rig.deploy(manifest("f", "t/#", StateScope::Topic), "derived/y+", Some(trial));
    rig.settle();
    pass(&mut rig, 60);
    assert_eq!(ran(&rig), ["06:00:00", "06:01:00"]);
}

#[test]
fn a_shadow_runs_beside_and_has_no_effect() {
    let mut rig = rig(&["* * * * *"]);
    let trial = Trial { mode: TrialMode::Shadow, ..Trial::default() };
    let edition = rig.deploy(mow("a", &["* * * * *"]), "derived/y+", Some(trial));
    rig.until_ready(edition);
    pass(&mut rig, 120);
    assert_eq!(ran(&rig), ["06:00:00", "06:01:00"]);
    assert!(rig.disk.records.iter().all(|it| it.topic.ends_with('x')));
}

#[test]
fn a_run_waits_for_the_end_of_a_pause_although_a_shadow_runs_beside() {
    let mut rig = rig_over(mow("bad", &["* * * * * *"]), Disk::default(), START_MS);
    let trial = Trial { mode: TrialMode::Shadow, ..Trial::default() };
    let edition = rig.deploy(mow("bad", &["* * * * * *"]), "derived/y+", Some(trial));
    rig.until_ready(edition);
    pass(&mut rig, 20);
    assert!(rig.disk.reasons().iter().all(|it| *it == "trap"), "{:?}", rig.disk.reasons());
}

#[test]
fn the_schedules_of_a_removed_function_do_not_run() {
    let mut rig = rig(&[DAILY]);
    rig.handle(Input::Remove { function: "f".into() });
    pass(&mut rig, 90);
    assert_eq!((ran(&rig), rig.metrics.schedules_awaiting_clock.get()), (vec![], 0));
    rig.deploy(mow("a", &[DAILY]), "derived/x+", None);
    rig.settle();
    pass(&mut rig, 2);
    assert_eq!(ran(&rig), ["06:00:00"], "it fell into a time when the function was away");
}

#[test]
fn the_board_wakes_for_a_schedule_and_looks_at_the_clock_meanwhile() {
    let mut rig = rig(&[DAILY]);
    let wait = |rig: &Rig| rig.next_due().unwrap().saturating_duration_since(rig.now);
    assert_eq!(wait(&rig), Duration::from_secs(10));
    pass(&mut rig, 57);
    rig.handle(Input::Timeout);
    assert_eq!(wait(&rig), Duration::from_secs(3));
    let rig = rig_over(manifest("f", "t/#", StateScope::Topic), Disk::default(), START_MS);
    assert_eq!(rig.next_due(), None);
}
