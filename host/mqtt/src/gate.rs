//! Stops reading from a socket while writing goes on, and knows when something was read last.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

/// Valve in front of reads. Closed, nothing more is read. Open, as much is read as is allowed before what came is received.
#[derive(Debug)]
pub(crate) struct Gate {
    closed: AtomicBool,
    /// Bytes that may be read.
    left: AtomicUsize,
    most: usize,
    /// Time of the first read.
    begin: OnceLock<Instant>,
    /// Time of the last read, in microseconds after `begin`.
    heard_us: AtomicU64,
    waiting: Mutex<Option<Waker>>,
}

impl Gate {
    /// `most`: bytes that may be read at a time. At least the longest packet, or its end would never be read.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            closed: AtomicBool::new(false),
            left: AtomicUsize::new(most),
            most,
            begin: OnceLock::new(),
            heard_us: AtomicU64::new(0),
            waiting: Mutex::default(),
        }
    }

    pub(crate) fn set_closed(&self, closed: bool) {
        if self.closed.swap(closed, Ordering::AcqRel) && !closed {
            self.wake();
        }
    }

    /// Everything that was read has been received.
    pub(crate) fn received(&self) {
        if self.left.swap(self.most, Ordering::AcqRel) == 0 {
            self.wake();
        }
    }

    /// Counts bytes that were read.
    pub(crate) fn has_read(&self, bytes: usize) {
        self.left.store(self.left.load(Ordering::Acquire).saturating_sub(bytes), Ordering::Release);
    }

    fn wake(&self) {
        let waker = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Something was read.
    pub(crate) fn heard(&self, now: Instant) {
        let begin = *self.begin.get_or_init(|| now);
        let after = u64::try_from(now.saturating_duration_since(begin).as_micros()).unwrap_or(u64::MAX);
        self.heard_us.store(after, Ordering::Relaxed);
    }

    /// When something was read last.
    pub(crate) fn heard_at(&self) -> Option<Instant> {
        Some(*self.begin.get()? + Duration::from_micros(self.heard_us.load(Ordering::Relaxed)))
    }

    /// Whether nothing is read now, for whoever does not wait for it.
    pub(crate) fn is_shut(&self) -> bool {
        self.closed.load(Ordering::Acquire) || self.left.load(Ordering::Acquire) == 0
    }

    pub(crate) fn is_closed(&self, cx: &Context<'_>) -> bool {
        let is_closed = || self.closed.load(Ordering::Acquire) || self.left.load(Ordering::Acquire) == 0;
        if !is_closed() {
            return false;
        }
        *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = Some(cx.waker().clone());
        // The gate may have opened before the waker was stored.
        is_closed()
    }
}

impl Default for Gate {
    fn default() -> Self {
        Self::new(usize::MAX)
    }
}
