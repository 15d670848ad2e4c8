//! What must hold of schedules. Knows when they are due and what the clock showed, and nothing of the board.
//!
//! The run of a schedule leaves a record `Y<name>@<due>`. The runs of `again` ask once to run again.

use std::collections::{BTreeMap, BTreeSet};

use sedge_core::manifest::{CatchUp, Manifest};

/// Function, name and period in seconds.
const SCHEDULES: [(&str, &str, u64); 3] = [("f", "tick", 3), ("f", "again", 20), ("sum", "tick", 5)];
const CATCH_UP_SECS: u64 = 25;
/// One that has not run so long after its time ran late.
const LATE_MS: u64 = 5_000;

/// Whether the first run of a schedule asks for another.
pub fn retries(name: &str) -> bool {
    name == "again"
}

/// Gives a function its schedules.
pub fn with_schedules(manifest: Manifest) -> Manifest {
    let own = SCHEDULES.iter().filter(|(function, ..)| **function == *manifest.name);
    let at = own.map(|(_, name, secs)| ((*name).to_owned(), vec![format!("*/{secs} * * * * *")])).collect();
    Manifest { at, catch_up: CatchUp(std::time::Duration::from_secs(CATCH_UP_SECS)), ..manifest }
}

#[derive(Debug, Default)]
pub struct ScheduleModel {
    unix_ms: u64,
    /// The latest that a synchronised clock has shown.
    latest_ms: u64,
    /// Runs by function, name and due time.
    ran: BTreeMap<(&'static str, String, u64), u32>,
    pub ran_late: bool,
    pub was_set_back: bool,
}

impl ScheduleModel {
    pub fn pass(&mut self, unix_ms: u64, synced: bool) {
        self.was_set_back |= synced && self.latest_ms > unix_ms && !self.ran.is_empty();
        self.unix_ms = unix_ms;
        if synced {
            self.latest_ms = self.latest_ms.max(unix_ms);
        }
    }

    /// What came of a run is committed. `run`: `<name>@<due>`. `Err`: why it should not have run.
    pub fn committed(&mut self, function: &'static str, run: &str) -> Result<(), String> {
        let due_ms = run.split_once('@').and_then(|(name, due)| Some((name, unix_ms(due)?)));
        let (name, due_ms) = due_ms.ok_or_else(|| format!("{run} names no time"))?;
        let period = SCHEDULES.iter().find(|(of, known, _)| *of == function && *known == name);
        let (_, _, secs) = period.ok_or_else(|| format!("{function} has no schedule {name}"))?;
        if !due_ms.is_multiple_of(secs * 1000) {
            return Err(format!("{name} of {function} is due every {secs} s, and ran for {due_ms}"));
        }
        if due_ms > self.latest_ms {
            return Err(format!("{name} of {function} was due at {due_ms}, and the clock shows {}", self.latest_ms));
        }
        self.ran_late |= self.unix_ms.saturating_sub(due_ms) > LATE_MS;
        let count = self.ran.entry((function, name.to_owned(), due_ms)).or_default();
        *count += 1;
        if *count > 1 {
            return Err(format!("{name} of {function} ran {count} times for {due_ms}"));
        }
        Ok(())
    }

    /// Times between these, while nothing went wrong, that have not run.
    pub fn lost(&self, after_ms: u64, until_ms: u64) -> Vec<String> {
        let mut lost = Vec::new();
        for (function, name, secs) in SCHEDULES {
            let ran: BTreeSet<u64> = self
                .ran
                .keys()
                .filter(|(of, known, _)| *of == function && known == name)
                .map(|(.., due)| *due)
                .collect();
            let first = (after_ms / 1000 / secs + 1) * secs * 1000;
            let due = (first..=until_ms).step_by(secs as usize * 1000);
            lost.extend(
                due.filter(|due| !ran.contains(due)).map(|due| format!("{name} of {function} never ran for {due}")),
            );
        }
        lost
    }
}

/// Reads the times that the core writes.
fn unix_ms(text: &str) -> Option<u64> {
    let number = |range: std::ops::Range<usize>| text.get(range)?.parse::<u64>().ok();
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second, ms) = (number(11..13)?, number(14..16)?, number(17..19)?, number(20..23)?);
    let is_leap = |year: u64| year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    let months = [31, if is_leap(year) { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let years: u64 = (1970..year).map(|year| if is_leap(year) { 366 } else { 365 }).sum();
    let days = years + months.iter().take(usize::try_from(month).ok()?.checked_sub(1)?).sum::<u64>() + day - 1;
    Some((((days * 24 + hour) * 60 + minute) * 60 + second) * 1000 + ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_counts_once_at_its_time() {
        assert_eq!(unix_ms("2024-03-01T12:00:01.250Z"), Some(1_709_294_401_250));
        let mut model = ScheduleModel::default();
        model.pass(1_709_294_401_250, true);
        assert_eq!(model.committed("f", "tick@2024-03-01T12:00:00.000Z"), Ok(()));
        for run in ["tick@2024-03-01T12:00:00.000Z", "tick@2024-03-01T12:00:03.000Z", "tick@2024-03-01T12:00:01.000Z"] {
            assert!(model.committed("f", run).is_err(), "{run}");
        }
        model.pass(1_709_294_401_250 + 4_000, true);
        let lost = model.lost(1_709_294_399_000, 1_709_294_404_000);
        assert_eq!(lost.len(), 3, "{lost:?}");
        assert!(lost[0].starts_with("tick of f never ran for 1709294403000"), "{lost:?}");
    }
}
