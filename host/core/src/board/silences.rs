//! Topics that functions watch for silence, and the time that counts for it.
//!
//! ```text
//!             silent for `after`: call              heard (`back`)
//! speaking ───────────────────────────▶ silent ───────────────────▶ back
//!     ▲                                   │ heard (without `back`)   │ call
//!     └───────────────────────────────────┴──────────────────────────┘
//! ```
//!
//! Time counts while the broker is connected and its backlog is read: it stands still in between, so that nobody is silent
//! only because nobody listened. A row is written for a topic when the one before is older than a part of `silence.after`, with
//! the commit of the message, so that most messages cost no write. After a restart a topic counts as heard as late as it may
//! have been: a call is late by at most that part, and never early.
//!
//! What a call leaves is part of its commit, and the next call about the topic waits until that is sent. A message that comes
//! while a call is under way has a row without the call, and the call's row is replaced by one with the message: whichever of
//! both is committed, the store has what is true of it.

mod clock;
mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ids::{FunctionNo, UnitId};
use super::map::Seeded;
use crate::manifest::Silence;
use crate::store::{HeardId, StoredHeard};
use clock::Clock;
pub(crate) use watch::Heard;
use watch::{Numbers, Started, Watch};

pub(crate) struct Silences {
    clock: Clock,
    functions: BTreeMap<FunctionNo, Watch>,
    /// Of functions that do not watch.
    absent: BTreeMap<Arc<str>, Absent>,
    numbers: Numbers,
    /// Until then nothing is known of the rows in the store, and none is written.
    is_restored: bool,
    seed: Seeded,
}

/// Rows in the store of a function that does not watch.
struct Absent {
    rows: Vec<StoredHeard>,
    /// Only what it watches is to be learned yet.
    is_installed: bool,
}

/// A call to be made, and the row that is committed with it.
#[derive(Debug)]
pub(crate) struct Silent {
    pub(crate) function: FunctionNo,
    pub(crate) topic: Arc<str>,
    /// For so long.
    pub(crate) silent: Duration,
    /// It speaks again.
    pub(crate) is_back: bool,
    pub(crate) row: StoredHeard,
}

impl Silences {
    pub(crate) fn new(seed: Seeded) -> Self {
        Self {
            clock: Clock::default(),
            functions: BTreeMap::new(),
            absent: BTreeMap::new(),
            numbers: Numbers::default(),
            is_restored: false,
            seed,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.functions.is_empty()
    }

    // ---- the time that counts ----

    pub(crate) fn pass(&mut self, now: Instant) {
        self.clock.pass(now);
    }

    pub(crate) fn connected(&mut self, now: Instant) {
        self.clock.connected(now);
    }

    pub(crate) fn disconnected(&mut self) {
        self.clock.disconnected();
    }

    /// The broker has much to send: what it says is old.
    pub(crate) fn behind(&mut self, now: Instant) {
        self.clock.behind(now);
    }

    pub(crate) fn delivered(&mut self, unacknowledged: usize, receive_maximum: usize, now: Instant) {
        self.clock.delivered(unacknowledged, receive_maximum, now);
    }

    // ---- functions ----

    /// A function watches, watches otherwise, or not any more. Returns rows to write and to delete.
    pub(crate) fn set(
        &mut self,
        number: FunctionNo,
        name: &Arc<str>,
        silence: Option<&Silence>,
        hears: impl Fn(&str) -> bool,
    ) -> (Vec<StoredHeard>, Vec<HeardId>) {
        if !self.is_restored {
            return (Vec::new(), Vec::new());
        }
        let absent = self.absent.remove(name);
        let Some(silence) = silence else {
            let watched = self.functions.remove(&number).into_iter().flat_map(Watch::into_ids);
            let stored = absent.into_iter().flat_map(|it| it.rows).map(|row| row.id);
            return (Vec::new(), watched.chain(stored).collect());
        };
        let (counted, seed) = (self.clock.counted, self.seed);
        let new = || Watch::new(silence.clone(), Arc::clone(name), seed.map());
        let watch = self.functions.entry(number).or_insert_with(new);
        let was_suspended = std::mem::take(&mut watch.is_suspended);
        let is_anew = was_suspended || absent.as_ref().is_some_and(|it| !it.is_installed);
        for row in absent.into_iter().flat_map(|it| it.rows) {
            watch.restore(row, counted);
        }
        let deleted = watch.configure(silence, hears);
        let mut rows = if is_anew { watch.begin_anew(counted, &mut self.numbers) } else { Vec::new() };
        rows.extend(watch.expect(counted, &mut self.numbers));
        watch.sort();
        self.saved(!rows.is_empty());
        (rows, deleted)
    }

    /// The function is removed: what it watches waits for it.
    pub(crate) fn suspend(&mut self, number: FunctionNo) {
        if let Some(watch) = self.functions.get_mut(&number) {
            watch.is_suspended = true;
        }
    }

    /// Forgets a function that is not installed, which the store has deleted.
    pub(crate) fn forget(&mut self, number: Option<FunctionNo>, name: &str) {
        self.absent.remove(name);
        if let Some(number) = number {
            self.functions.remove(&number);
        }
    }

    /// Takes up what the store has, in the place of everything that is not certain. `find`: functions that are installed.
    pub(crate) fn restore(
        &mut self,
        rows: Vec<StoredHeard>,
        counted_ms: u64,
        find: impl Fn(&str) -> Option<FunctionNo>,
    ) {
        self.is_restored = true;
        let counted_ms = rows.iter().map(|row| row.at_ms).fold(counted_ms, u64::max);
        self.clock.restore(Duration::from_millis(counted_ms));
        self.functions.values_mut().for_each(Watch::forget_saved);
        self.absent.clear();
        for row in rows {
            self.numbers.pass(&row);
            let number = find(&row.function);
            match self.functions.iter_mut().find(|(it, watch)| Some(**it) == number || watch.is_of(&row.function)) {
                Some((_, watch)) => watch.restore(row, self.clock.counted),
                None => {
                    let absent = self.absent.entry(Arc::clone(&row.function));
                    let is_installed = number.is_some();
                    absent.or_insert_with(|| Absent { rows: Vec::new(), is_installed }).rows.push(row);
                }
            }
        }
        self.functions.values_mut().for_each(Watch::sort);
    }

    /// Topics that are watched, and those that are silent.
    pub(crate) fn counts(&self, number: FunctionNo) -> (usize, usize) {
        self.functions.get(&number).filter(|it| !it.is_suspended).map_or((0, 0), Watch::counts)
    }

    // ---- messages ----

    /// A function gets a message of a topic that is no retained one.
    pub(crate) fn hear(&mut self, number: FunctionNo, topic: &Arc<str>) -> Heard {
        let Some(watch) = self.functions.get_mut(&number) else { return Heard::default() };
        let heard = watch.hear(topic, self.clock.counted, &mut self.numbers);
        self.saved(heard.row.is_some());
        heard
    }

    /// A row that is written now says how far the time is.
    fn saved(&mut self, is_written: bool) {
        if is_written {
            self.clock.saved = self.clock.counted;
        }
    }

    // ---- due ----

    /// When something is to be done: a call, or writing how far the time is.
    pub(crate) fn next_due(&self, can_run: impl Fn(FunctionNo) -> bool) -> Option<Instant> {
        let ready = self.functions.iter().filter_map(|(number, watch)| Some((number, watch.next_due()?)));
        let due = ready.filter(|(number, _)| can_run(**number)).map(|(_, due)| due).min();
        due.into_iter().chain(self.next_save()).filter_map(|counted| self.clock.at(counted)).min()
    }

    /// Whether a call is due.
    pub(crate) fn is_due(&self, can_run: impl Fn(FunctionNo) -> bool) -> bool {
        let counted = self.clock.counted;
        self.functions
            .iter()
            .any(|(number, watch)| watch.next_due().is_some_and(|due| due <= counted) && can_run(*number))
    }

    fn next_save(&self) -> Option<Duration> {
        let waiting = self.functions.values().filter(|watch| watch.is_waiting());
        waiting.map(|watch| self.clock.saved + watch.save_every()).min()
    }

    /// The time that counts in milliseconds, if it is to be written.
    pub(crate) fn save_clock(&mut self) -> Option<u64> {
        if self.next_save().is_none_or(|at| at > self.clock.counted) {
            return None;
        }
        self.clock.saved = self.clock.counted;
        Some(self.clock.counted.as_millis() as u64)
    }

    /// Starts calls that are due, as many of each function as may be under way at once. `most`: how many in all.
    pub(crate) fn start_due(&mut self, most: usize, can_run: impl Fn(FunctionNo) -> bool) -> Vec<Silent> {
        let counted = self.clock.counted;
        let mut started = Vec::new();
        for (number, watch) in self.functions.iter_mut().filter(|(number, _)| can_run(**number)) {
            while started.len() < most
                && let Some(Started { topic, silent, is_back, row }) = watch.start(counted, &mut self.numbers)
            {
                started.push(Silent { function: *number, topic, silent, is_back, row });
            }
        }
        started
    }

    /// The unit of a call that was started.
    pub(crate) fn begun(&mut self, number: FunctionNo, topic: &str, unit: UnitId) {
        if let Some(watch) = self.functions.get_mut(&number) {
            watch.begun(topic, unit);
        }
    }

    /// The commit of a call is sent to the store.
    pub(crate) fn sent(&mut self, number: FunctionNo, topic: &Arc<str>) {
        if let Some(watch) = self.functions.get_mut(&number) {
            watch.sent(topic);
        }
    }

    /// A call was not made, and is due again a little later.
    pub(crate) fn postpone(&mut self, number: FunctionNo, topic: &Arc<str>, wait: Duration) {
        let until = self.clock.counted + wait;
        if let Some(watch) = self.functions.get_mut(&number) {
            watch.postpone(topic, until);
        }
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test may read clocks and files")]
mod tests;
