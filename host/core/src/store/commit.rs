//! Effects of messages, which are committed as a whole or not at all.

use std::fmt;
use std::sync::Arc;

use super::heard::{HeardId, StoredHeard};
use super::record::Record;
use super::schedule::StoredSchedule;
use super::wake::{StoredWake, WakeId};
use crate::message::{Failure, Message, Scope, StateWrite, Usage};
use crate::request::{RequestId, Response};

/// Size above which commits are divided among transactions. What one message caused is never divided.
pub const COMMIT_BYTES: usize = 4 << 20;

/// Number of a commit request, in the order of sending.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct BatchNo(pub u64);

/// All effects of one delivery, timer tick or parked job.
#[derive(Debug, Default)]
pub struct Commit {
    /// Identifies a redelivery of this message. `None` for QoS 0 and for jobs that did not come from the broker.
    pub delivery: Option<Fingerprint>,
    /// The publisher's own message id (user property `id`), remembered for `store.message_id_retention_secs`. Like the
    /// fingerprint, it causes no write of its own if the message has no effect.
    pub message_id: Option<Box<str>>,
    pub records: Vec<Record>,
    pub state: Vec<(Scope, Vec<StateWrite>)>,
    pub dead_letters: Vec<DeadLetter>,
    /// Jobs to run later: a retry, or a message that waits behind one.
    pub park: Vec<Parked>,
    /// Parked jobs that this commit finishes.
    pub unpark: Vec<ParkedId>,
    /// Wakes that it sets.
    pub wakes: Vec<StoredWake>,
    /// Wakes that it runs, moves or cancels. Some may not be in the store any more.
    pub unwake: Vec<WakeId>,
    /// Schedules whose runs it is about.
    pub schedules: Vec<StoredSchedule>,
    /// The request that it answers: its dead letters are named in [`super::StoreEvent::Committed`].
    pub request: Option<RequestId>,
    /// The answer, kept for repeats with the same `message_id`.
    pub response: Option<Response>,
    /// Topics whose silence is watched, as they are now.
    pub heard: Vec<StoredHeard>,
    /// Topics that are not watched any more.
    pub unheard: Vec<HeardId>,
    /// Results and alerts for the history. Their stream says their kind: one of [`crate::stream::Stream::FIRST`].
    pub history: Vec<Record>,
}

impl Commit {
    /// Whether anything beside fingerprints and records must be written.
    pub fn has_effect(&self) -> bool {
        !(self.state.is_empty()
            && self.dead_letters.is_empty()
            && self.park.is_empty()
            && self.unpark.is_empty()
            && self.wakes.is_empty()
            && self.unwake.is_empty()
            && self.heard.is_empty()
            && self.unheard.is_empty()
            && self.history.is_empty()
            && self.schedules.is_empty())
            || self.response.is_some()
    }

    /// About the size on disk.
    pub fn bytes(&self) -> usize {
        let state = self.state.iter().flat_map(|(_, writes)| writes).map(StateWrite::bytes);
        self.records.iter().map(Record::bytes).sum::<usize>()
            + state.sum::<usize>()
            + self.dead_letters.iter().map(DeadLetter::bytes).sum::<usize>()
            + self.park.iter().map(|parked| parked.message.bytes()).sum::<usize>()
            + self.wakes.iter().map(StoredWake::bytes).sum::<usize>()
            + self.schedules.iter().map(StoredSchedule::bytes).sum::<usize>()
            + self.response.as_ref().map_or(0, Response::bytes)
            + self.heard.iter().map(StoredHeard::bytes).sum::<usize>()
            + self.history.iter().map(Record::bytes).sum::<usize>()
    }
}

/// Distinguishes a redelivered message from a new one with the same packet id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    pub packet_id: u16,
    /// SipHash-1-3 of topic, payload, content type, properties, response topic and correlation data.
    pub digest: u64,
}

/// Number of a dead letter, given in the order of insertion and never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeadLetterId(pub u64);

impl fmt::Display for DeadLetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Message that no function could process.
#[derive(Clone, Debug, PartialEq)]
pub struct DeadLetter {
    pub function: Arc<str>,
    pub version: Arc<str>,
    pub message: Arc<Message>,
    pub failure: Failure,
    pub usage: Usage,
    pub at_ms: u64,
}

impl DeadLetter {
    /// About the size on disk.
    pub(crate) fn bytes(&self) -> usize {
        self.message.bytes() + self.failure.detail.len()
    }
}

/// Number of a parked job, given in the order of parking and never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParkedId(pub u64);

impl ParkedId {
    /// Stands for "not given yet" in a [`Commit`].
    pub const NEW: Self = Self(0);
}

/// Job that waits in the store; its delivery is acknowledged.
#[derive(Clone, Debug, PartialEq)]
pub struct Parked {
    /// In a [`Commit`]: [`ParkedId::NEW`], or the id of a job that the same commit unparks, which keeps its place.
    pub id: ParkedId,
    pub function: Arc<str>,
    pub message: Arc<Message>,
    /// Unix time in milliseconds. Compared with the wall clock only after a restart; timers run on the monotonic clock.
    pub due_ms: u64,
    /// Time from parking until due: the longest wait after a restart, whatever the wall clock says then.
    pub wait_ms: u64,
}
