//! The end of a crash loop. A message that ends the daemon comes again, and ends the next one.
//!
//! After three ends that may be a message's fault, within minutes, the next daemon takes messages one at a time and notes each
//! before it has any effect. The one that was alone under way in three such ends becomes a dead letter.

use std::hash::{Hash as _, Hasher as _};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher13;

use crate::message::Message;

/// Ends after which messages are taken one at a time, and ends of which one message is guilty.
const CRASHES: usize = 3;
/// Ends this far apart have nothing to do with each other. Without an end for so long the caution is over.
const WITHIN: Duration = Duration::from_secs(600);

/// An end of the daemon by SIGABRT, a fault or lack of memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Crash {
    /// Time since the machine was started, in milliseconds.
    pub at_ms: u64,
    /// The message that was alone under way.
    pub alone: Option<u64>,
}

/// What is known of earlier ends of the daemon.
#[derive(Clone, Debug, Default)]
pub struct CautionConfig {
    /// In order.
    pub crashes: Vec<Crash>,
    /// Time since the machine was started, in milliseconds.
    pub uptime_ms: u64,
}

pub(crate) struct Caution {
    crashes: Vec<Crash>,
    until: Option<Instant>,
    alone: Option<u64>,
}

impl Caution {
    pub(crate) fn new(config: &CautionConfig, now: Instant) -> Self {
        // Times of an earlier run of the machine may be later than now.
        let within_ms = WITHIN.as_millis() as u64;
        let is_recent = |crash: &&Crash| config.uptime_ms.checked_sub(crash.at_ms).is_some_and(|age| age <= within_ms);
        let is_on = config.crashes.iter().filter(is_recent).count() >= CRASHES;
        Self { crashes: config.crashes.clone(), until: is_on.then(|| now + WITHIN), alone: None }
    }

    /// Whether messages are taken one at a time.
    pub(crate) fn is_on(&self) -> bool {
        self.until.is_some()
    }

    pub(crate) fn until(&self) -> Option<Instant> {
        self.until
    }

    pub(crate) fn end(&mut self) {
        self.until = None;
    }

    /// Notes the message that is under way. `true`: that is another than before.
    pub(crate) fn set_alone(&mut self, message: Option<u64>) -> bool {
        std::mem::replace(&mut self.alone, message) != message
    }

    /// Whether the daemon ended often enough while this message was alone under way.
    pub(crate) fn is_guilty(&self, message: u64) -> bool {
        self.crashes.iter().filter(|crash| crash.alone == Some(message)).count() >= CRASHES
    }
}

/// Recognises a message when it comes again.
pub(crate) fn fingerprint(message: &Message) -> u64 {
    let mut hasher = SipHasher13::new();
    let Message { topic, payload, content_type, properties, .. } = message;
    (topic, payload, content_type, properties).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test may read clocks and files")]
mod tests {
    use super::*;

    fn caution(ends: &[u64], uptime_ms: u64) -> Caution {
        let crashes = ends.iter().map(|at_ms| Crash { at_ms: *at_ms, alone: None }).collect();
        Caution::new(&CautionConfig { crashes, uptime_ms }, Instant::now())
    }

    #[test]
    fn three_ends_within_minutes_are_a_loop() {
        assert!(!caution(&[], 1_000).is_on());
        assert!(!caution(&[1_000, 2_000], 3_000).is_on());
        assert!(caution(&[1_000, 2_000, 3_000], 4_000).is_on());
        assert!(!caution(&[1_000, 2_000, 1_000_000], 1_001_000).is_on(), "two of them are long ago");
        assert!(!caution(&[1_000_000, 1_001_000, 1_002_000], 5_000).is_on(), "before the machine was started");
    }

    #[test]
    fn only_a_message_that_was_alone_three_times_is_guilty() {
        let crash = |alone| Crash { at_ms: 1, alone };
        let crashes = vec![crash(None), crash(Some(7)), crash(Some(8)), crash(Some(7)), crash(None), crash(Some(7))];
        let caution = Caution::new(&CautionConfig { crashes, uptime_ms: 2 }, Instant::now());
        assert!(caution.is_guilty(7) && !caution.is_guilty(8));
    }
}
