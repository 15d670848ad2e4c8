//! What a source is owed once everything that came of its message is on disk.

use std::sync::Arc;

use super::dispatch::Key;
use super::ids::FunctionNo;
use crate::request::RequestId;
use crate::store::{Fingerprint, WakeId};

#[derive(Clone, Debug)]
pub(crate) enum Receipt {
    /// Acknowledge a QoS 1 delivery, when all before it in the window are committed.
    Mqtt { place: u64, fingerprint: Fingerprint },
    /// Answer the request.
    Request(RequestId),
    /// Let the function's timer fire again.
    Tick(FunctionNo),
    /// Remove the message from the front of its key's queue.
    Parked(Key),
    /// Let another wake of the function run, and forget this one unless it was set again.
    Wake { function: FunctionNo, id: WakeId },
    /// Let the next call about this topic be made.
    Silence { function: FunctionNo, topic: Arc<str> },
    /// Let another run of the schedule begin.
    Schedule { function: FunctionNo, name: Arc<str> },
    /// Nothing: a QoS 0 delivery.
    None,
}
