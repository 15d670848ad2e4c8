//! Whether the daemon lives and whether it can do its work, as `/healthz` and `/readyz` tell it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Alive: the message loop moved lately. Ready: nothing is on the list of missing parts. An absent broker or upstream is
/// neither: the board is made to run without them.
#[derive(Debug)]
pub struct Health {
    start: Instant,
    /// A message loop that stands still for longer is called dead.
    limit: Duration,
    /// Milliseconds after `start`, or [`NEVER`].
    beat_ms: AtomicU64,
    missing: Mutex<BTreeMap<&'static str, String>>,
}

/// A start that compiles many functions on a slow board takes minutes. How many is for the supervisor to say.
const NEVER: u64 = u64::MAX;

impl Health {
    /// Counts as alive until the first beat, which begins the measure.
    pub fn new(now: Instant, limit: Duration) -> Self {
        Self { start: now, limit, beat_ms: AtomicU64::new(NEVER), missing: Mutex::default() }
    }

    /// The message loop calls this on every turn, and at least a few times within the limit.
    pub fn beat(&self, now: Instant) {
        self.beat_ms.store(self.since_start(now), Relaxed);
    }

    /// `Err` with the time since the last beat when that is too long.
    pub fn alive(&self, now: Instant) -> Result<(), Duration> {
        let beat_ms = self.beat_ms.load(Relaxed);
        let silent = Duration::from_millis(self.since_start(now).saturating_sub(beat_ms));
        if silent > self.limit { Err(silent) } else { Ok(()) }
    }

    /// A part without which no message is processed: `store`, `functions`. The reason is for a person.
    pub fn missing(&self, part: &'static str, reason: impl Into<String>) {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner).insert(part, reason.into());
    }

    pub fn ready(&self, part: &'static str) {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner).remove(part);
    }

    pub fn all_missing(&self) -> BTreeMap<&'static str, String> {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn since_start(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.start).as_millis()).unwrap_or(NEVER)
    }
}
