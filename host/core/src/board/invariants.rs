//! How often invariants break. A daemon whose state is wrong again and again is better started anew.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

const WITHIN: Duration = Duration::from_secs(60);
const MOST: usize = 3;

#[derive(Debug, Default)]
pub(crate) struct Invariants(VecDeque<Instant>);

impl Invariants {
    /// Counts a broken invariant. `true`: this was the third within a minute.
    pub(crate) fn broken(&mut self, now: Instant) -> bool {
        self.0.push_back(now);
        while self.0.front().is_some_and(|at| now.duration_since(*at) > WITHIN) {
            self.0.pop_front();
        }
        self.0.len() >= MOST
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test may read clocks and files")]
mod tests {
    use super::*;

    #[test]
    fn the_third_within_a_minute_is_one_too_many() {
        let start = Instant::now();
        let mut invariants = Invariants::default();
        assert!(!invariants.broken(start));
        assert!(!invariants.broken(start + Duration::from_secs(59)));
        assert!(!invariants.broken(start + Duration::from_secs(61)));
        assert!(invariants.broken(start + Duration::from_secs(70)));
    }
}
