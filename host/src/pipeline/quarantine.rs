//! A function that keeps failing is paused, for longer each time, so that it does not take the time of the others. Its
//! messages become dead letters meanwhile: kept, and replayed when it is mended.

use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Failures in a row.
    pub after: u32,
    pub first: Duration,
    pub max: Duration,
}

#[derive(Debug)]
pub struct Quarantine {
    settings: Settings,
    failures: u32,
    pause: Duration,
    until: Option<Instant>,
    /// The pause is over and one message is tried.
    probing: bool,
}

/// A change worth telling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Paused(Duration),
    Released,
}

impl Quarantine {
    pub fn new(settings: Settings) -> Self {
        Self { settings, failures: 0, pause: settings.first, until: None, probing: false }
    }

    pub fn is_paused(&self) -> bool {
        self.until.is_some()
    }

    /// Whether a message may be run now. After a pause one is let through; the others wait for how it ends.
    pub fn admits(&mut self, now: Instant) -> bool {
        if self.is_closed(now) {
            return false;
        }
        self.probing = self.is_paused();
        true
    }

    /// Whether a message would be run now.
    pub fn is_closed(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until || self.probing)
    }

    /// The message that was let through has neither succeeded nor failed: the next may show it.
    pub fn undecided(&mut self) {
        self.probing = false;
    }

    pub fn succeeded(&mut self) -> Option<Change> {
        self.failures = 0;
        self.until.take()?;
        self.probing = false;
        self.pause = self.settings.first;
        Some(Change::Released)
    }

    pub fn failed(&mut self, now: Instant) -> Option<Change> {
        self.failures = self.failures.saturating_add(1);
        let again = self.probing;
        let first = self.until.is_none() && self.failures >= self.settings.after;
        if !again && !first {
            return None;
        }
        if again {
            self.pause = (self.pause * 2).min(self.settings.max);
        }
        self.probing = false;
        self.until = Some(now + self.pause);
        Some(Change::Paused(self.pause))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: Settings = Settings { after: 3, first: Duration::from_secs(10), max: Duration::from_secs(30) };

    #[test]
    fn pauses_grow_until_it_works_again() {
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        let mut quarantine = Quarantine::new(SETTINGS);
        assert_eq!(quarantine.failed(at(0)), None);
        assert_eq!(quarantine.failed(at(0)), None);
        assert_eq!(quarantine.failed(at(0)), Some(Change::Paused(Duration::from_secs(10))));
        // What was under way when it was paused changes nothing.
        assert_eq!(quarantine.failed(at(0)), None);
        assert!(!quarantine.admits(at(9)));
        assert!(quarantine.admits(at(10)));
        assert!(!quarantine.admits(at(10)), "one probe at a time");
        assert_eq!(quarantine.failed(at(11)), Some(Change::Paused(Duration::from_secs(20))));
        assert!(quarantine.admits(at(31)));
        quarantine.undecided();
        assert!(quarantine.is_closed(at(30)) && !quarantine.is_closed(at(31)));
        assert!(quarantine.admits(at(31)) && quarantine.is_closed(at(31)), "the next is the probe");
        assert_eq!(quarantine.failed(at(31)), Some(Change::Paused(Duration::from_secs(30))));
        assert!(quarantine.admits(at(61)));
        assert_eq!(quarantine.succeeded(), Some(Change::Released));
        assert!(quarantine.admits(at(61)) && quarantine.admits(at(61)));
    }

    #[test]
    fn a_success_in_between_starts_the_count_over() {
        let now = Instant::now();
        let mut quarantine = Quarantine::new(SETTINGS);
        for _ in 0..10 {
            assert_eq!(quarantine.failed(now), None);
            assert_eq!(quarantine.failed(now), None);
            assert_eq!(quarantine.succeeded(), None);
        }
        assert!(!quarantine.is_paused());
    }
}
