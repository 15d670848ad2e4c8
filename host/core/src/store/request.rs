//! Requests to the store, its events, and what it recovers when it is opened.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use super::commit::{BatchNo, Commit, DeadLetterId, Fingerprint, Parked};
use super::heard::StoredHeard;
use super::message_ids::MessageIds;
use super::record::{Gap, GapId, RecordId, StoredRecord};
use super::schedule::StoredSchedule;
use super::state::StoredState;
use super::wake::StoredWake;
use crate::message::Scope;
use crate::request::{RequestId, Response};
use crate::stream::{PerStream, SinkId, Stream};

/// Identifies a request to load state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LoadId(pub u64);

/// Request to the store. Requests are carried out in the order of sending.
#[derive(Debug)]
pub enum StoreRequest {
    /// Commits all of these in one transaction, together with whatever else is waiting.
    Commit { batch: BatchNo, commits: Vec<Commit> },
    /// Loads all state of a scope, as of everything sent before this request.
    LoadState { id: LoadId, scope: Scope },
    /// Deletes the state of these topics of a function (`None`: shared by all topics), or all of it if there are none.
    ForgetState { function: Arc<str>, topics: Vec<Option<Arc<str>>> },
    /// Reads the answer that was kept under this message id, for a repeat. Answered by [`StoreEvent::Response`].
    LoadResponse { request: RequestId, message_id: Box<str> },
    /// Reads records with an id above `after`, oldest first, up to about `max_bytes`.
    ReadOutbox { stream: Stream, after: RecordId, max_bytes: usize },
    /// The sender has no record of this stream after `held` in memory, and reads those before it sends them: the store may
    /// fold them meanwhile.
    Behind { stream: Stream, held: RecordId },
    /// The receiver has accepted all records up to and including this id.
    Delivered { stream: Stream, through: RecordId },
    /// The receiver will never accept this record: it is dropped and becomes part of a gap.
    Refused { stream: Stream, id: RecordId, reason: Box<str> },
    /// The gaps that were to be reported to this sink, up to and including this one, were reported and can be deleted.
    GapsReported { sink: SinkId, through: GapId },
    /// The broker has lost the session: what earlier deliveries of it left here is evidence of nothing. Answered by
    /// [`StoreEvent::DeliveriesForgotten`].
    ForgetDeliveries,
    /// Stores a small value of the daemon itself, for example the subscriptions of its session.
    SetMeta { key: &'static str, value: Bytes },
    /// Names all installed functions. State of others is kept for `store.state_retention_secs`.
    Installed(Vec<Arc<str>>),
    /// Drops what is not committed and opens the file again, as after a failure of the disk: the sender's state is in doubt.
    Reopen,
    /// Commits what is waiting, checkpoints and closes.
    Close,
}

/// Answer or notification of the store.
///
/// `Committed` events come in the order of the requests, and so does `Outbox` after the `Committed` that it reflects.
/// `State` does not wait for the sync: it may come before the `Committed` of writes that it shows. If that commit fails,
/// [`StoreEvent::Failed`] revokes both.
#[derive(Debug)]
pub enum StoreEvent {
    /// Every commit up to and including `batch` is on disk. `stored` holds the new records in id order per stream.
    Committed {
        batch: BatchNo,
        stored: Vec<StoredRecord>,
        parked: Vec<Parked>,
        /// Dead letters of requests.
        letters: Vec<(RequestId, DeadLetterId)>,
    },
    /// `None`: no answer is kept any more, or it is damaged.
    Response {
        request: RequestId,
        response: Option<Response>,
    },
    State {
        id: LoadId,
        entries: Vec<(Box<str>, Bytes)>,
    },
    /// `end`: the stream has no records after these.
    Outbox {
        stream: Stream,
        stored: Vec<StoredRecord>,
        end: bool,
    },
    /// Lost records to report to this sink, as gaps in ascending order.
    Gaps {
        sink: SinkId,
        gaps: Vec<(GapId, Gap)>,
    },
    /// No delivery before the request will be recovered any more.
    DeliveriesForgotten,
    /// Records were dropped, as far as the store knows before they were delivered: in each range those after the first id, up to
    /// and including the second. The ranges are in ascending order. Comes before the gap with them.
    Dropped {
        stream: Stream,
        gap: GapId,
        ranges: Vec<(RecordId, RecordId)>,
    },
    /// The state of a function that was away for `store.state_retention_secs` is deleted.
    StateExpired {
        function: Arc<str>,
    },
    /// Jobs that another process (`sedge dead-letters replay`) parked.
    Parked(Vec<Parked>),
    /// Whether the outbox is full under the policy to block. Nothing is committed while it is.
    Blocked(bool),
    /// The disk failed. Nothing after the last `Committed` is stored, everything sent before [`StoreEvent::Reopened`] is
    /// discarded, and the store tries to reopen the file by itself.
    Failed {
        error: String,
    },
    /// The store works again, as if just opened.
    Reopened(Box<Recovered>),
    Closed,
}

/// Content of the file when it was opened.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Random, created with the file. Record ids are unique together with it.
    pub store_id: String,
    /// Deliveries whose acknowledgement may not have reached the broker, oldest first.
    pub window: Vec<Fingerprint>,
    /// Message ids of the last `store.message_id_retention_secs`.
    pub message_ids: MessageIds,
    pub parked: Vec<Parked>,
    /// Wakes in the order of setting.
    pub wakes: Vec<StoredWake>,
    /// Topics whose silence is watched.
    pub heard: Vec<StoredHeard>,
    pub schedules: Vec<StoredSchedule>,
    /// Scopes with state, the least recently used first.
    pub state: Vec<StoredState>,
    /// Those of the configuration, and those that were removed and whose records are kept.
    pub sinks: Vec<StoredSink>,
    /// Watermark of each stream: all records up to and including this id are gone.
    pub delivered: PerStream<RecordId>,
    /// Last id given in each stream.
    pub last: PerStream<RecordId>,
    pub meta: Vec<(String, Bytes)>,
    /// Set if the file was damaged and a new one was made.
    pub moved_aside: Option<MovedAside>,
}

/// A sink, as the store knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredSink {
    pub id: SinkId,
    pub name: Box<str>,
    pub is_removed: bool,
}

impl Recovered {
    /// The number of a sink of the configuration.
    pub fn sink(&self, name: &str) -> Option<SinkId> {
        self.sinks.iter().find(|sink| *sink.name == *name && !sink.is_removed).map(|sink| sink.id)
    }
}

/// Damaged database that was replaced.
#[derive(Clone, Debug)]
pub struct MovedAside {
    pub moved_to: PathBuf,
    pub rows_saved: u64,
    pub reason: String,
}
