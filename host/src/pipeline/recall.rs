//! Calling back jobs that were sent to a worker, because one before them is to be run again first.
//!
//! While a recall lasts, new messages of its key (or of the whole function) wait here. When every job that was out has
//! been answered, all of them start in the order in which they were delivered.

use super::window::UnitId;

#[derive(Debug, Default)]
pub struct Recall {
    /// Jobs of the key that the workers still have to answer. Those of a whole function are counted there.
    pub outstanding: usize,
    /// To be run first, by this version.
    pub again: Vec<(UnitId, u32)>,
    /// They came back without having been run.
    pub returned: Vec<UnitId>,
    /// They were never sent.
    pub waiting: Vec<UnitId>,
}

impl Recall {
    /// Takes in what another recall of a part of the same holds.
    pub fn absorb(&mut self, other: Self) {
        self.again.extend(other.again);
        self.returned.extend(other.returned);
        self.waiting.extend(other.waiting);
    }

    /// All of them, with the version that must run them where that is decided.
    pub fn into_jobs(self) -> Vec<(UnitId, Option<u32>)> {
        let again = self.again.into_iter().map(|(id, edition)| (id, Some(edition)));
        let fresh = self.returned.into_iter().chain(self.waiting).map(|id| (id, None));
        again.chain(fresh).collect()
    }
}
