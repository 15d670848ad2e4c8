//! The pause of a function that keeps failing: longer each time, so that it does not take the time of the others. Its
//! messages become dead letters meanwhile, which can be replayed after a fix.

use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug)]
pub struct PauseConfig {
    /// Failures in a row before the function is paused.
    pub after: u32,
    pub first: Duration,
    pub max: Duration,
}

#[derive(Debug)]
pub(crate) struct Pause {
    config: PauseConfig,
    failures: u32,
    length: Duration,
    until: Option<Instant>,
    /// The pause is over and one message is let through as a probe.
    probing: bool,
}

/// A change to report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Paused(Duration),
    Released,
}

impl Pause {
    pub(crate) fn new(config: PauseConfig) -> Self {
        Self { config, failures: 0, length: config.first, until: None, probing: false }
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.until.is_some()
    }

    /// Whether a message may run now. After a pause one is let through; the others wait for its outcome.
    pub(crate) fn admits(&mut self, now: Instant) -> bool {
        if self.is_closed(now) {
            return false;
        }
        self.probing = self.is_paused();
        true
    }

    /// Whether a message would not run now.
    pub(crate) fn is_closed(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until || self.probing)
    }

    /// The probe has neither succeeded nor failed: the next message is the probe.
    pub(crate) fn undecided(&mut self) {
        self.probing = false;
    }

    pub(crate) fn succeeded(&mut self) -> Option<Change> {
        self.failures = 0;
        self.until.take()?;
        self.probing = false;
        self.length = self.config.first;
        Some(Change::Released)
    }

    pub(crate) fn failed(&mut self, now: Instant) -> Option<Change> {
        self.failures = self.failures.saturating_add(1);
        let again = self.probing;
        let first = self.until.is_none() && self.failures >= self.config.after;
        if !again && !first {
            return None;
        }
        if again {
            self.length = (self.length * 2).min(self.config.max);
        }
        self.probing = false;
        self.until = Some(now + self.length);
        Some(Change::Paused(self.length))
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test may read clocks and files")]
mod tests {
    use super::*;

    const CONFIG: PauseConfig = PauseConfig { after: 3, first: Duration::from_secs(10), max: Duration::from_secs(30) };

    #[test]
    fn pauses_grow_until_it_works_again() {
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        let mut pause = Pause::new(CONFIG);
        assert_eq!(pause.failed(at(0)), None);
        assert_eq!(pause.failed(at(0)), None);
        assert_eq!(pause.failed(at(0)), Some(Change::Paused(Duration::from_secs(10))));
        // What was under way when it was paused changes nothing.
        assert_eq!(pause.failed(at(0)), None);
        assert!(!pause.admits(at(9)));
        assert!(pause.admits(at(10)));
        assert!(!pause.admits(at(10)), "one probe at a time");
        assert_eq!(pause.failed(at(11)), Some(Change::Paused(Duration::from_secs(20))));
        assert!(pause.admits(at(31)));
        pause.undecided();
        assert!(pause.is_closed(at(30)) && !pause.is_closed(at(31)));
        assert!(pause.admits(at(31)) && pause.is_closed(at(31)), "the next is the probe");
        assert_eq!(pause.failed(at(31)), Some(Change::Paused(Duration::from_secs(30))));
        assert!(pause.admits(at(61)));
        assert_eq!(pause.succeeded(), Some(Change::Released));
        assert!(pause.admits(at(61)) && pause.admits(at(61)));
    }

    #[test]
    fn a_success_in_between_starts_the_count_over() {
        let now = Instant::now();
        let mut pause = Pause::new(CONFIG);
        for _ in 0..10 {
            assert_eq!(pause.failed(now), None);
            assert_eq!(pause.failed(now), None);
            assert_eq!(pause.succeeded(), None);
        }
        assert!(!pause.is_paused());
    }
}
