//! What is counted, for the metrics.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::reason::Reason;

#[derive(Debug, Default)]
pub struct Figures {
    accepted: AtomicU64,
    refused: Refused,
    chunks_taken: AtomicU64,
    chunks_refused: AtomicU64,
    /// Messages that came faster than they were looked at.
    flooded: AtomicU64,
}

#[derive(Debug)]
struct Refused([AtomicU64; Reason::ALL.len()]);

impl Default for Refused {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Figures {
    pub(super) fn accepted(&self) {
        self.accepted.fetch_add(1, Relaxed);
    }

    pub(super) fn refused(&self, reason: Reason) {
        self.refused.0[reason as usize].fetch_add(1, Relaxed);
    }

    pub(super) fn chunk(&self, is_good: bool) {
        if is_good { &self.chunks_taken } else { &self.chunks_refused }.fetch_add(1, Relaxed);
    }

    pub(super) fn flooded(&self) {
        self.flooded.fetch_add(1, Relaxed);
    }

    pub fn orders_accepted(&self) -> u64 {
        self.accepted.load(Relaxed)
    }

    pub fn orders_refused(&self, reason: Reason) -> u64 {
        self.refused.0[reason as usize].load(Relaxed)
    }

    pub fn chunks_taken(&self) -> u64 {
        self.chunks_taken.load(Relaxed)
    }

    pub fn chunks_refused(&self) -> u64 {
        self.chunks_refused.load(Relaxed)
    }

    pub fn messages_flooded(&self) -> u64 {
        self.flooded.load(Relaxed)
    }
}
