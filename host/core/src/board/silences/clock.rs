//! The time that counts for silence: connected, and with the backlog of the broker read.

use std::time::{Duration, Instant};

/// After a connection, and after the broker had much to send, the backlog counts as read once this has passed.
pub(super) const CATCH_UP: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct Clock {
    pub(super) counted: Duration,
    /// From when time counts. `None`: nobody listens.
    from: Option<Instant>,
    passed: Option<Instant>,
    /// What the store has of it, or of a topic that was heard then.
    pub(super) saved: Duration,
}

impl Clock {
    pub(super) fn pass(&mut self, now: Instant) {
        if let (Some(from), Some(passed)) = (self.from, self.passed) {
            self.counted += now.saturating_duration_since(from.max(passed));
        }
        self.passed = Some(now);
    }

    /// When this much is counted, if everything stays as it is.
    pub(super) fn at(&self, counted: Duration) -> Option<Instant> {
        let (from, passed) = (self.from?, self.passed?);
        Some(from.max(passed) + counted.saturating_sub(self.counted))
    }

    pub(super) fn connected(&mut self, now: Instant) {
        self.from = Some(now + CATCH_UP);
    }

    pub(super) fn disconnected(&mut self) {
        self.from = None;
    }

    /// The broker has much to send: what it says is old.
    pub(super) fn behind(&mut self, now: Instant) {
        if self.from.is_some() {
            self.from = Some(now + CATCH_UP);
        }
    }

    /// So many deliveries are not acknowledged. At Receive Maximum the broker holds others back. From then on, and from the
    /// connection, its backlog is read when for a while it had less than half as many on the way: a busy board has some at all
    /// times.
    pub(super) fn delivered(&mut self, unacknowledged: usize, receive_maximum: usize, now: Instant) {
        let is_catching_up = self.from.is_some_and(|from| from > now);
        let most = if is_catching_up { receive_maximum.div_ceil(2) } else { receive_maximum };
        if unacknowledged >= most {
            self.behind(now);
        }
    }

    /// Takes up what the store has. What is known is newer.
    pub(super) fn restore(&mut self, counted: Duration) {
        self.counted = self.counted.max(counted);
        self.saved = counted;
    }
}
