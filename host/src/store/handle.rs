//! The two ends that the rest of the daemon holds.
//!
//! # How nothing is committed on top of a commit that failed
//!
//! When the disk fails, requests may be on their way that were sent in the belief that everything before them is
//! stored. Each request therefore carries an *epoch*. The writer counts its epoch up when it fails and once more when
//! it works again, and discards requests of another epoch. The sender's epoch is set by [`StoreEvents`] at the moment when
//! it hands out an event, to the epoch in which that event was made: so it changes exactly when the daemon hears
//! [`StoreEvent::Failed`] and [`StoreEvent::Reopened`], and what is sent between the two is discarded as well. StoreHandle and events
//! must be used by one thread (or task), else "sent before it was heard" has no meaning.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::TrySendError;

use tokio::sync::mpsc::Receiver;

use super::stats::Stats;
use super::{StoreEvent, StoreRequest};
use crate::queue;

/// Requests that may wait for the writer. The pipeline bounds what is in flight by Receive Maximum (1024 by default),
/// and each delivery has at most a few requests of its own; batching makes them fewer.
pub(super) const REQUESTS: usize = 4096;

/// StoreEvents that may wait for the daemon. The writer waits when there are more; each answers a whole batch.
pub(super) const EVENTS: usize = 256;

#[derive(Clone, Debug)]
pub struct StoreHandle {
    pub(super) requests: queue::Sender<(u64, StoreRequest)>,
    pub(super) epoch: Arc<AtomicU64>,
    pub(super) stats: Arc<Stats>,
}

/// Why a request was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    #[error("the store is closed")]
    Closed,
    /// More is in flight than the pipeline should allow.
    #[error("the store has {REQUESTS} requests waiting")]
    Full,
}

impl StoreHandle {
    /// Never blocks.
    pub fn send(&self, request: StoreRequest) -> Result<(), SendError> {
        self.requests.try_send((self.epoch.load(Ordering::Relaxed), request)).map_err(|error| match error {
            TrySendError::Full(_) => SendError::Full,
            TrySendError::Disconnected(_) => SendError::Closed,
        })
    }

    pub fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }
}

#[derive(Debug)]
pub struct StoreEvents {
    pub(super) events: Receiver<(u64, StoreEvent)>,
    pub(super) epoch: Arc<AtomicU64>,
}

impl StoreEvents {
    /// `None` when the store is gone, after [`StoreEvent::Closed`]. Cancel safe.
    pub async fn recv(&mut self) -> Option<StoreEvent> {
        let received = self.events.recv().await;
        received.map(|event| self.hand_out(event))
    }

    /// As [`Self::recv`], outside of a runtime.
    pub fn blocking_recv(&mut self) -> Option<StoreEvent> {
        let received = self.events.blocking_recv();
        received.map(|event| self.hand_out(event))
    }

    /// The next event, if it is there already.
    pub fn try_recv(&mut self) -> Option<StoreEvent> {
        let received = self.events.try_recv().ok();
        received.map(|event| self.hand_out(event))
    }

    fn hand_out(&self, (epoch, event): (u64, StoreEvent)) -> StoreEvent {
        self.epoch.store(epoch, Ordering::Relaxed);
        event
    }
}
