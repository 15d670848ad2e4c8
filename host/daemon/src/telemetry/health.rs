//! Liveness and readiness of the daemon, as `/healthz` and `/readyz` report them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Alive: the message loop moved within the limit. Ready: no part is missing. An absent broker or upstream affects
/// neither, since the board is made to run without them.
#[derive(Debug)]
pub(crate) struct Health {
    start: Instant,
    /// Longest time between two beats of a live message loop.
    limit: Duration,
    /// Time of the last beat in milliseconds after `start`, or [`NEVER`].
    beat_ms: AtomicU64,
    missing: Mutex<BTreeMap<&'static str, String>>,
}

/// No beat yet. Start-up may compile for minutes on a slow board; the supervisor limits it.
const NEVER: u64 = u64::MAX;

impl Health {
    /// Alive until the first beat, whatever the time.
    pub(crate) fn new(now: Instant, limit: Duration) -> Self {
        Self { start: now, limit, beat_ms: AtomicU64::new(NEVER), missing: Mutex::default() }
    }

    /// Records a sign of life. Called on every iteration of the message loop, at least a few times within the limit.
    pub(crate) fn beat(&self, now: Instant) {
        self.beat_ms.store(self.since_start(now), Relaxed);
    }

    /// Fails with the time since the last beat when that exceeds the limit.
    pub(crate) fn alive(&self, now: Instant) -> Result<(), Duration> {
        let beat_ms = self.beat_ms.load(Relaxed);
        let silent = Duration::from_millis(self.since_start(now).saturating_sub(beat_ms));
        if silent > self.limit { Err(silent) } else { Ok(()) }
    }

    /// Marks a part as missing without which no message is processed: `store`, `functions`. The reason is for a person.
    pub(crate) fn missing(&self, part: &'static str, reason: impl Into<String>) {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner).insert(part, reason.into());
    }

    pub(crate) fn ready(&self, part: &'static str) {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner).remove(part);
    }

    pub(crate) fn all_missing(&self) -> BTreeMap<&'static str, String> {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn since_start(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.start).as_millis()).unwrap_or(NEVER)
    }
}
