//! What is logged of a connection: each cause of its end once, until a connection has stood for a while.

use std::collections::BTreeSet;
use std::time::Instant;

use sedge_mqtt::STEADY;

/// Causes that are remembered.
const MAX_REASONS: usize = 16;

#[derive(Debug, Default)]
pub(crate) struct ConnectionLog {
    connected_at: Option<Instant>,
    /// The last connection ended soon. Whether this one stands is not known yet.
    is_unsettled: bool,
    /// Causes that were logged since a connection stood.
    reasons: BTreeSet<String>,
}

impl ConnectionLog {
    /// Returns whether to log the connection.
    pub(crate) fn connected(&mut self, now: Instant) -> bool {
        self.connected_at = Some(now);
        !self.is_unsettled
    }

    /// Returns whether to log the end of the connection, or of an attempt, with its reason.
    pub(crate) fn disconnected(&mut self, reason: &str, now: Instant) -> bool {
        self.settle(now);
        self.is_unsettled |= self.connected_at.take().is_some();
        if self.reasons.len() >= MAX_REASONS {
            self.reasons.clear();
        }
        self.reasons.insert(reason.to_owned())
    }

    /// Returns whether to log that the connection stands, as it was not logged before.
    pub(crate) fn settle(&mut self, now: Instant) -> bool {
        if self.connected_at.is_none_or(|at| now.duration_since(at) < STEADY) {
            return false;
        }
        self.connected_at = None;
        self.reasons.clear();
        std::mem::take(&mut self.is_unsettled)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_connection_that_never_stands_is_logged_once() {
        let mut log = ConnectionLog::default();
        let mut now = Instant::now();
        assert!(log.disconnected("refused", now));
        assert!(log.connected(now));
        assert!(log.disconnected("closed", now));
        for _ in 0..10 {
            now += Duration::from_secs(1);
            assert!(!log.connected(now) && !log.settle(now));
            assert!(!log.disconnected("closed", now));
        }
        assert!(!log.connected(now));
        now += STEADY;
        assert!(log.settle(now), "it stands");
        assert!(!log.settle(now));
        assert!(log.disconnected("closed", now), "something new has happened");
        assert!(log.connected(now));
    }

    #[test]
    fn causes_that_take_turns_are_logged_once_each() {
        let mut log = ConnectionLog::default();
        let logged =
            (0..20).filter(|n| log.disconnected(if n % 2 == 0 { "refused" } else { "timeout" }, Instant::now()));
        assert_eq!(logged.count(), 2);
    }
}
