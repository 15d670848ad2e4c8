//! Schedules of functions: which time is due next, and which has run. A due time becomes a message ([`super::schedule_flow`]).
//!
//! ```text
//! installed, clock unknown ─▶ waits for its time ─▶ due: runs ─▶ committed, with a note of the time that ran
//!                                   ▲                  │ paused, being compiled, or an earlier run is not committed
//!                                   └──────────────────┘
//! ```
//!
//! Schedules go by the wall clock, and only while that is synchronised. Whenever it is looked, the latest due time since the last
//! look runs, if it is younger than `catch_up`: one run makes up for a time when the board was off, or when the clock was set
//! ahead. A time that has run never runs again, also when the clock is set back.

mod ran;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ids::FunctionNo;
use crate::schedule::Times;
use crate::store::StoredSchedule;
use crate::time::Now;
use ran::Ran;

/// A run may always be as late as this: not every board is fast.
const GRACE_MS: u64 = 10_000;
/// The clock may be set at any time, which nobody tells the board.
const LOOK_AT_CLOCK_EVERY: Duration = Duration::from_secs(10);
/// After this long without a clock a person is told.
const AWAIT_CLOCK: Duration = Duration::from_secs(600);

#[derive(Debug, Default)]
pub(crate) struct Schedules {
    installed: BTreeMap<(FunctionNo, Arc<str>), Schedule>,
    /// What the store has, by the names of function and schedule.
    stored: BTreeMap<(Arc<str>, Arc<str>), StoredSchedule>,
    /// Unix time of the next run, and when one that was held up is looked at again.
    next_ms: Option<u64>,
    look_again: Option<Instant>,
    /// Something has changed since these were found.
    is_stale: bool,
    /// What the wall clock showed last.
    clock_ms: u64,
    /// Since when schedules have waited for the clock.
    awaits_clock: Option<Instant>,
    is_told: bool,
}

/// A schedule that a version has.
pub(crate) struct Wanted {
    pub(crate) function: FunctionNo,
    /// The name under which the function's state is stored.
    pub(crate) state_name: Arc<str>,
    pub(crate) name: Arc<str>,
    pub(crate) spec: Arc<str>,
    pub(crate) times: Times,
    pub(crate) catch_up_ms: u64,
}

#[derive(Debug)]
struct Schedule {
    state_name: Arc<str>,
    times: Times,
    catch_up_ms: u64,
    /// When it was installed: what was due before does not run.
    since: Instant,
    known: Known,
    /// The store knows of it.
    is_saved: bool,
    due_ms: Option<u64>,
    /// What was known before the run that is not committed.
    running: Option<Known>,
    look_again: Option<Instant>,
}

/// What a schedule was and is known to have run.
#[derive(Clone, Debug)]
struct Known {
    spec: Arc<str>,
    /// Of what is due later nothing has run, but what `ran` has. `None`: the clock was never right since it was installed.
    seen_ms: Option<u64>,
    ran: Ran,
}

/// A run whose time has come.
#[derive(Debug)]
pub(crate) struct DueRun {
    pub(crate) function: FunctionNo,
    pub(crate) name: Arc<str>,
    pub(crate) due_ms: u64,
    /// To be committed with what comes of it.
    pub(crate) note: StoredSchedule,
}

#[derive(Debug, Default)]
pub(crate) struct Due {
    pub(crate) runs: Vec<DueRun>,
    /// Schedules that the store is to know of.
    pub(crate) notes: Vec<StoredSchedule>,
    /// Functions with a due time that nothing made up for.
    pub(crate) skipped: Vec<(FunctionNo, Arc<str>)>,
}

impl Schedule {
    fn note(&self, name: &Arc<str>) -> StoredSchedule {
        StoredSchedule {
            function: Arc::clone(&self.state_name),
            name: Arc::clone(name),
            spec: Arc::clone(&self.known.spec),
            seen_ms: self.known.seen_ms.unwrap_or(0),
            ran: self.known.ran.ranges().to_vec(),
        }
    }

    /// The first due time after this one that has not run.
    fn next(&self, after_ms: u64) -> Option<u64> {
        let mut due = self.times.next(after_ms);
        while let Some(end) = due.and_then(|due| self.known.ran.end_around(due)) {
            due = self.times.next(end);
        }
        due
    }

    /// The last due time up to this one that has not run, by bisection.
    fn latest(&self, after_ms: u64, until_ms: u64) -> Option<u64> {
        let is_within = |after_ms: u64, until_ms: u64| self.next(after_ms).filter(|due| *due <= until_ms);
        let mut latest = is_within(after_ms, until_ms)?;
        let mut until_ms = until_ms;
        while until_ms - latest > 1000 {
            let middle = latest + (until_ms - latest) / 2;
            match is_within(middle, until_ms) {
                Some(due) => latest = due,
                None => until_ms = middle,
            }
        }
        is_within(latest, until_ms).or(Some(latest))
    }

    /// Takes note of the clock: it may be known for the first time, or set back.
    fn look(&mut self, now: Now) {
        let seen_ms = match self.known.seen_ms {
            Some(seen_ms) if seen_ms <= now.unix_ms && self.due_ms.is_some() => return,
            Some(seen_ms) => seen_ms.min(now.unix_ms),
            None => {
                let ago = now.monotonic.saturating_duration_since(self.since);
                now.unix_ms.saturating_sub(u64::try_from(ago.as_millis()).unwrap_or(u64::MAX))
            }
        };
        self.known.seen_ms = Some(seen_ms);
        self.due_ms = self.next(seen_ms);
    }

    /// Begins the latest run that is due. `Err`: all that was due is too old.
    fn begin(&mut self, now: Now) -> Result<u64, ()> {
        let seen_ms = self.known.seen_ms.unwrap_or(now.unix_ms);
        let oldest_ms = now.unix_ms.saturating_sub(self.catch_up_ms.max(GRACE_MS));
        let due = self.latest(seen_ms.max(oldest_ms), now.unix_ms);
        let Some(due_ms) = due else {
            self.known.seen_ms = Some(now.unix_ms);
            self.due_ms = self.next(now.unix_ms);
            return Err(());
        };
        self.running = Some(self.known.clone());
        self.known.seen_ms = Some(due_ms);
        self.known.ran.add(due_ms, |after_ms| self.times.next(after_ms));
        self.due_ms = self.next(due_ms);
        Ok(due_ms)
    }

    /// Whether a run could begin if its time has come.
    fn is_idle(&self, now: Instant) -> bool {
        self.running.is_none() && self.look_again.is_none_or(|at| at <= now)
    }
}

impl Schedules {
    /// Takes up what the store has, in the place of everything that is not certain.
    pub(crate) fn restore(&mut self, stored: Vec<StoredSchedule>) {
        let key = |it: &StoredSchedule| (Arc::clone(&it.function), Arc::clone(&it.name));
        self.stored = stored.into_iter().map(|it| (key(&it), it)).collect();
        let Self { installed, stored, .. } = self;
        for ((_, name), schedule) in installed {
            let spec = Arc::clone(&schedule.known.spec);
            let note = stored.get(&(Arc::clone(&schedule.state_name), Arc::clone(name)));
            (schedule.known, schedule.is_saved) = Known::of(note, spec);
            (schedule.running, schedule.look_again, schedule.due_ms) = (None, None, None);
        }
        self.is_stale = true;
    }

    /// Replaces the schedules of all functions.
    pub(crate) fn set(&mut self, wanted: Vec<Wanted>, now: Now) {
        let mut before = std::mem::take(&mut self.installed);
        for Wanted { function, state_name, name, spec, times, catch_up_ms } in wanted {
            let key = (function, name);
            let schedule = match before.remove(&key) {
                Some(schedule) if schedule.known.spec == spec => {
                    Schedule { times, catch_up_ms, due_ms: None, ..schedule }
                }
                // Another one of the same name: what has run stays known.
                Some(schedule) => {
                    let known = Known { spec, seen_ms: None, ran: schedule.known.ran };
                    let (since, due_ms, is_saved) = (now.monotonic, None, false);
                    Schedule { times, catch_up_ms, known, since, due_ms, is_saved, ..schedule }
                }
                None => {
                    let note = self.stored.get(&(Arc::clone(&state_name), Arc::clone(&key.1)));
                    let (known, is_saved) = Known::of(note, spec);
                    let since = now.monotonic;
                    let (due_ms, running, look_again) = (None, None, None);
                    Schedule { state_name, times, catch_up_ms, since, known, is_saved, due_ms, running, look_again }
                }
            };
            self.installed.insert(key, schedule);
        }
        self.is_stale = true;
    }

    /// How many wait for the clock.
    pub(crate) fn awaiting_clock(&self, now: Now) -> usize {
        if now.synced { 0 } else { self.installed.len() }
    }

    /// Whether a person is to be told, once, that schedules wait for the clock.
    pub(crate) fn is_clock_overdue(&mut self, now: Now) -> bool {
        if now.synced || self.installed.is_empty() {
            (self.awaits_clock, self.is_told) = (None, false);
            return false;
        }
        let since = *self.awaits_clock.get_or_insert(now.monotonic);
        now.monotonic.saturating_duration_since(since) >= AWAIT_CLOCK && !std::mem::replace(&mut self.is_told, true)
    }

    /// How many wait for the clock although a person was told.
    pub(crate) fn overdue(&self, now: Now) -> usize {
        if self.is_told { self.awaiting_clock(now) } else { 0 }
    }

    /// Whether [`Self::start_due`] has anything to do.
    pub(crate) fn is_due(&self, now: Now) -> bool {
        now.synced
            && !self.installed.is_empty()
            && (self.is_stale
                || self.next_ms.is_some_and(|next_ms| next_ms <= now.unix_ms)
                || self.look_again.is_some_and(|at| at <= now.monotonic)
                || now.unix_ms < self.clock_ms)
    }

    /// When the next is due.
    pub(crate) fn poll_timeout(&self, now: Now) -> Option<Instant> {
        if self.installed.is_empty() {
            return None;
        }
        let look = now.monotonic + LOOK_AT_CLOCK_EVERY;
        if !now.synced {
            return Some(look);
        }
        if self.is_stale {
            return Some(now.monotonic);
        }
        let wait = |next_ms: u64| Duration::from_millis(next_ms.saturating_sub(now.unix_ms)).min(LOOK_AT_CLOCK_EVERY);
        let next = self.next_ms.map(|next_ms| now.monotonic + wait(next_ms));
        [next, self.look_again, Some(look)].into_iter().flatten().min()
    }

    /// Begins runs that are due, `most` at once. The clock is synchronised. `can_run`: whether the function can.
    pub(crate) fn start_due(
        &mut self,
        now: Now,
        most: usize,
        again: Instant,
        can_run: impl Fn(FunctionNo) -> bool,
    ) -> Due {
        let mut due = Due::default();
        (self.next_ms, self.look_again, self.is_stale, self.clock_ms) = (None, None, false, now.unix_ms);
        let Self { installed, stored, next_ms, look_again, .. } = self;
        for ((function, name), schedule) in installed {
            schedule.look(now);
            if schedule.is_idle(now.monotonic) && due.runs.len() < most {
                if !std::mem::replace(&mut schedule.is_saved, true) {
                    due.notes.push(schedule.note(name));
                }
                let is_due = schedule.due_ms.is_some_and(|due_ms| due_ms <= now.unix_ms);
                schedule.look_again = (is_due && !can_run(*function)).then_some(again);
                if is_due && schedule.look_again.is_none() {
                    match schedule.begin(now) {
                        Ok(due_ms) => {
                            let (function, name, note) = (*function, Arc::clone(name), schedule.note(name));
                            due.runs.push(DueRun { function, name, due_ms, note });
                        }
                        Err(()) => due.skipped.push((*function, Arc::clone(name))),
                    }
                }
            }
            if schedule.running.is_none() {
                match schedule.look_again {
                    Some(at) => *look_again = Some(look_again.map_or(at, |it| it.min(at))),
                    None => *next_ms = [*next_ms, schedule.due_ms].into_iter().flatten().min(),
                }
            }
        }
        for note in due.notes.iter().chain(due.runs.iter().map(|run| &run.note)) {
            stored.insert((Arc::clone(&note.function), Arc::clone(&note.name)), note.clone());
        }
        due
    }

    /// What came of a run is committed.
    pub(crate) fn finished(&mut self, function: FunctionNo, name: &Arc<str>) {
        if let Some(schedule) = self.installed.get_mut(&(function, Arc::clone(name))) {
            schedule.running = None;
            self.is_stale = true;
        }
    }

    /// A run did not take place, and waits again.
    pub(crate) fn postpone(&mut self, function: FunctionNo, name: &Arc<str>, until: Instant) {
        let Some(schedule) = self.installed.get_mut(&(function, Arc::clone(name))) else { return };
        let Some(before) = schedule.running.take() else { return };
        // Of another version with other times nothing has run since.
        if before.spec == schedule.known.spec {
            schedule.known = before;
            schedule.due_ms = None;
        }
        schedule.look_again = Some(until);
        let key = (Arc::clone(&schedule.state_name), Arc::clone(name));
        let note = schedule.note(name);
        self.stored.insert(key, note);
        self.is_stale = true;
    }

    /// The store has deleted what it had of a function. It is told again of those that are installed.
    pub(crate) fn forget(&mut self, function: &str) {
        self.stored.retain(|(name, _), _| **name != *function);
        for schedule in self.installed.values_mut().filter(|it| *it.state_name == *function) {
            (schedule.is_saved, self.is_stale) = (false, true);
        }
    }
}

impl Known {
    /// What the store knows of a schedule, and whether that is of these times.
    fn of(note: Option<&StoredSchedule>, spec: Arc<str>) -> (Self, bool) {
        let ran = Ran::new(note.map(|note| &note.ran[..]).unwrap_or_default());
        match note.filter(|note| note.spec == spec) {
            Some(note) => (Self { spec, seen_ms: Some(note.seen_ms), ran }, true),
            None => (Self { spec, seen_ms: None, ran }, false),
        }
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test may read clocks and files")]
mod tests;
