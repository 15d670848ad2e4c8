//! A rate with a burst.

use std::time::{Duration, Instant};

#[derive(Clone)]
pub(super) struct Rate {
    /// When all that was admitted so far would have been admitted at a steady rate.
    paid_until: Instant,
}

impl Rate {
    pub(super) fn new(now: Instant) -> Self {
        Self { paid_until: now }
    }

    /// Whether there is room for one more: one in each `every`, and as many at once as within `burst`.
    pub(super) fn admit(&mut self, every: Duration, burst: Duration, now: Instant) -> bool {
        let paid_until = self.paid_until.max(now) + every;
        let has_room = paid_until <= now + burst;
        if has_room {
            self.paid_until = paid_until;
        }
        has_room
    }
}
