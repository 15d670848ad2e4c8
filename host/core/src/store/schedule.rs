//! Schedules as the store keeps them.

use std::sync::Arc;

/// What is known of the runs of a schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredSchedule {
    pub function: Arc<str>,
    pub name: Arc<str>,
    /// Its expressions and its zone. Times of others are not made up for.
    pub spec: Arc<str>,
    /// Unix time in milliseconds: of what is due later nothing has run, but what `ran` has.
    pub seen_ms: u64,
    /// Due times that have run, as ranges of Unix time in milliseconds in ascending order. Several where the clock jumped.
    pub ran: Vec<(u64, u64)>,
}

/// Memory of a schedule beside its texts, and about its size on disk.
const SCHEDULE_BYTES: usize = 150;

impl StoredSchedule {
    pub(crate) fn bytes(&self) -> usize {
        self.function.len() + self.name.len() + self.spec.len() + 16 * self.ran.len() + SCHEDULE_BYTES
    }
}
