//! The daemon's ends of the store's two channels.
//!
//! # Nothing is committed on top of a failed commit
//!
//! When the disk fails, requests may be in flight that assume everything before them to be stored. Each request carries
//! an *epoch*. The writer increments its epoch when it fails and when it works again, and discards requests of other
//! epochs. [`StoreEvents`] sets the sender's epoch when it hands out an event, to the epoch in which that event was
//! made. It changes exactly when the daemon learns of [`StoreEvent::Failed`] and [`StoreEvent::Reopened`]; requests sent
//! in between are discarded as well. One thread (or task) must use both handle and events.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flume::TrySendError;
use tokio::sync::mpsc::Receiver;

use super::stats::Stats;
use sedge_core::store::{StoreEvent, StoreRequest};

/// Capacity for requests. The pipeline bounds what is in flight by Receive Maximum (1024 by default), and each delivery
/// has at most a few requests of its own; batching makes them fewer.
pub(super) const REQUESTS: usize = 4096;

/// Capacity for events. The writer waits when it is exhausted; each event answers a whole batch.
pub(super) const EVENTS: usize = 256;

#[derive(Clone, Debug)]
pub struct StoreHandle {
    pub requests: flume::Sender<(u64, StoreRequest)>,
    pub epoch: Arc<AtomicU64>,
    pub stats: Arc<Stats>,
}

/// Why a request was not accepted.
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
    pub events: Receiver<(u64, StoreEvent)>,
    pub epoch: Arc<AtomicU64>,
}

impl StoreEvents {
    /// `None` when the store is gone, after [`StoreEvent::Closed`]. Cancel safe.
    pub async fn recv(&mut self) -> Option<StoreEvent> {
        let received = self.events.recv().await;
        received.map(|event| self.hand_out(event))
    }

    /// Like [`Self::recv`], outside of a runtime.
    pub fn blocking_recv(&mut self) -> Option<StoreEvent> {
        let received = self.events.blocking_recv();
        received.map(|event| self.hand_out(event))
    }

    /// Returns the next event if it is there already.
    pub fn try_recv(&mut self) -> Option<StoreEvent> {
        let received = self.events.try_recv().ok();
        received.map(|event| self.hand_out(event))
    }

    fn hand_out(&self, (epoch, event): (u64, StoreEvent)) -> StoreEvent {
        self.epoch.store(epoch, Ordering::Relaxed);
        event
    }
}
