//! Stops reading from a socket while writing goes on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Waker};

/// Valve in front of reads. Closed, nothing more is read.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    closed: AtomicBool,
    waiting: Mutex<Option<Waker>>,
}

impl Gate {
    pub(crate) fn set_closed(&self, closed: bool) {
        if self.closed.swap(closed, Ordering::AcqRel) && !closed {
            let waker = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    pub(crate) fn is_closed(&self, cx: &Context<'_>) -> bool {
        if !self.closed.load(Ordering::Acquire) {
            return false;
        }
        *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = Some(cx.waker().clone());
        // The gate may have opened before the waker was stored.
        self.closed.load(Ordering::Acquire)
    }
}
