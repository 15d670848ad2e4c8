//! Jobs called back from a worker, because one before them is to run again first.
//!
//! While a recall lasts, new messages of its key (or of the whole function) wait here. Once every job that was handed out
//! has been answered, all of them start in the order of delivery.

use std::collections::BTreeSet;

use crate::board::ids::UnitId;

/// Jobs that are called back, with the edition that must run them where that is decided.
pub(crate) type Jobs = Vec<(UnitId, Option<u32>)>;

#[derive(Debug, Default)]
pub(crate) struct Recall {
    /// Units whose jobs the workers still have to answer. For a whole function the rollout counts jobs instead.
    outstanding: BTreeSet<UnitId>,
    /// To run first, by the version of this edition.
    again: Vec<(UnitId, u32)>,
    /// Came back without having run.
    returned: Vec<UnitId>,
    /// Never sent to a worker.
    waiting: Vec<UnitId>,
    /// The jobs have waited for too long: they are parked instead of started.
    parks: bool,
}

impl Recall {
    pub(crate) fn new(outstanding: impl IntoIterator<Item = UnitId>, waiting: Vec<UnitId>) -> Self {
        Self { outstanding: outstanding.into_iter().collect(), waiting, ..Self::default() }
    }

    pub(crate) fn to_park(outstanding: impl IntoIterator<Item = UnitId>, waiting: Vec<UnitId>) -> Self {
        Self { parks: true, ..Self::new(outstanding, waiting) }
    }

    pub(crate) fn runs_again(&self) -> bool {
        !self.again.is_empty()
    }

    pub(crate) fn parks(&self) -> bool {
        self.parks
    }

    /// Whether nothing has to be waited for.
    pub(crate) fn is_void(&self) -> bool {
        self.outstanding.is_empty() && self.waiting.is_empty()
    }

    pub(crate) fn is_answered(&self) -> bool {
        self.outstanding.is_empty()
    }

    /// A job of the key was answered. Jobs that were handed out after the recall do not count.
    pub(crate) fn answered(&mut self, unit: UnitId) {
        self.outstanding.remove(&unit);
    }

    pub(crate) fn run_again(&mut self, unit: UnitId, edition: u32) {
        self.again.push((unit, edition));
    }

    pub(crate) fn returned(&mut self, unit: UnitId) {
        self.returned.push(unit);
    }

    /// Has those run by this edition that came back and need not wait.
    pub(crate) fn run_returned(&mut self, edition: u32, needs_no_wait: impl Fn(UnitId) -> bool) {
        let ahead = self.returned.extract_if(.., |unit| needs_no_wait(*unit));
        self.again.extend(ahead.map(|unit| (unit, edition)));
    }

    pub(crate) fn wait(&mut self, units: impl IntoIterator<Item = UnitId>) {
        self.waiting.extend(units);
    }

    /// Adds the jobs of another recall that covers a part of the same.
    pub(crate) fn absorb(&mut self, other: Self) {
        self.again.extend(other.again);
        self.returned.extend(other.returned);
        self.waiting.extend(other.waiting);
    }

    /// All jobs, with the edition that must run them where that is decided.
    pub(crate) fn into_jobs(self) -> Jobs {
        let again = self.again.into_iter().map(|(id, edition)| (id, Some(edition)));
        let fresh = self.returned.into_iter().chain(self.waiting).map(|id| (id, None));
        again.chain(fresh).collect()
    }
}
