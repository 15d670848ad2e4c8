//! Exponential backoff with jitter, so that a fleet of boards does not reconnect in step.

use std::time::Duration;

/// Pauses that double from `first` to `max`. Each is shortened at random, to no less than half.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    next: Duration,
    /// xorshift64, never 0.
    random: u64,
}

impl Backoff {
    pub fn new(first: Duration, max: Duration, seed: u64) -> Self {
        let first = first.min(max);
        Self { first, max, next: first, random: seed | 1 }
    }

    /// Returns the pause after another failure.
    pub fn failed(&mut self) -> Duration {
        let full = self.next;
        self.next = full.saturating_mul(2).min(self.max);
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        full.mul_f64(0.5 + (self.random >> 11) as f64 / (1_u64 << 54) as f64)
    }

    pub fn succeeded(&mut self) {
        self.next = self.first;
    }

    pub fn max(&self) -> Duration {
        self.max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_limit_and_reset_on_success() {
        for seed in 0..200 {
            let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(10), seed);
            for full in [1.0, 2.0, 4.0, 8.0, 10.0, 10.0] {
                let pause = backoff.failed().as_secs_f64();
                assert!((full / 2.0..=full).contains(&pause), "{pause} of {full}");
            }
            backoff.succeeded();
            assert!(backoff.failed() <= Duration::from_secs(1));
        }
    }

    #[test]
    fn pauses_differ_between_seeds() {
        let pause = |seed| Backoff::new(Duration::from_secs(60), Duration::from_secs(60), seed).failed();
        let mut pauses: Vec<_> =
            (0..100).map(|n: u64| pause(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).as_secs()).collect();
        pauses.sort_unstable();
        pauses.dedup();
        assert!(pauses.len() > 15, "{pauses:?}");
    }
}
