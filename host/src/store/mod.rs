//! The durable store: one SQLite file, one writer thread, one transaction for all that arrived during the last sync.
//!
//! Nothing here knows MQTT, wasm or upstream. The rest of the daemon sends [`StoreRequest`]s and receives [`StoreEvent`]s; both
//! channels are bounded by what is in flight, which the pipeline bounds.

mod checkpoint;
mod dead_letters;
mod folder;
mod gaps;
mod handle;
mod message_ids;
mod outbox;
mod parked;
mod row;
mod salvage;
mod schema;
mod session;
mod state;
mod state_retention;
mod stats;
#[cfg(test)]
mod tests;
mod window;
mod writer;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::config;
use crate::message::{Failure, Message, Scope, StateWrite, Usage};
use crate::queue;

pub use dead_letters::{DeadLetterFilter, DeadLetters, DeadLettersError};
pub use handle::{SendError, StoreEvents, StoreHandle};
pub use message_ids::MessageIds;
pub use stats::{COMMIT_BUCKETS_US, Stats};

/// Opens the store of a data folder and starts its threads.
#[derive(Debug)]
pub struct Store;

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("data folder {dir} is in use by another sedge{}", pid.map(|pid| format!(" (process {pid})")).unwrap_or_default())]
    Held { dir: PathBuf, pid: Option<u32> },
    #[error("cannot use {path}{}", mend(source))]
    Unusable { path: PathBuf, source: std::io::Error },
    #[error("cannot use database {path}")]
    Database { path: PathBuf, source: rusqlite::Error },
    #[error("database {path} was written by a newer sedge: it has layout {found}, this one knows {}", schema::VERSION)]
    Newer { path: PathBuf, found: u32 },
}

/// What a person can do about a data folder that cannot be used, in brackets.
fn mend(error: &std::io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::ReadOnlyFilesystem => " (mount it for writing, or name another node.data_dir)",
        ErrorKind::PermissionDenied => " (give it to the user that sedge runs as, or name another node.data_dir)",
        ErrorKind::StorageFull => " (free some room)",
        _ => "",
    }
}

impl OpenError {
    fn sqlite(path: &Path, source: rusqlite::Error) -> Self {
        Self::Database { path: path.to_owned(), source }
    }

    fn failure(path: &Path, failure: schema::OpenFailure) -> Self {
        match failure {
            schema::OpenFailure::Newer(found) => Self::Newer { path: path.to_owned(), found },
            schema::OpenFailure::Failed(source) => Self::sqlite(path, source),
            schema::OpenFailure::Damaged(reason) => {
                let damaged = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
                Self::sqlite(path, rusqlite::Error::SqliteFailure(damaged, Some(reason)))
            }
        }
    }
}

impl Store {
    /// `receive_maximum`: deliveries that the broker may have under way, the size of the redelivery window.
    pub fn open(
        settings: &config::Store,
        data_dir: &Path,
        receive_maximum: u16,
    ) -> Result<(StoreHandle, StoreEvents, Recovered), OpenError> {
        let stats = Arc::new(Stats::default());
        let context = writer::StoreContext {
            place: folder::DataFolder::hold(data_dir)?,
            settings: settings.clone(),
            receive_maximum: receive_maximum.into(),
            stats: stats.clone(),
        };
        let (session, recovered) = context.open()?;
        let (request_sender, requests) = queue::bounded(handle::REQUESTS);
        let (event_sender, events) = tokio::sync::mpsc::channel(handle::EVENTS);
        let writer = writer::Writer::new(context, requests, event_sender);
        std::thread::Builder::new()
            .name("sedge-store".into())
            .spawn(move || writer.run(session))
            .map_err(|source| OpenError::Unusable { path: data_dir.to_owned(), source })?;
        let epoch = Arc::new(std::sync::atomic::AtomicU64::new(0));
        Ok((
            StoreHandle { requests: request_sender, epoch: epoch.clone(), stats },
            StoreEvents { events, epoch },
            recovered,
        ))
    }
}

/// All that one delivery (or timer tick, or parked job) leaves behind. It is committed as a whole or not at all.
#[derive(Debug, Default)]
pub struct Commit {
    /// How a redelivery of this message is recognised. `None` for QoS 0 and for jobs that did not come from the broker.
    pub delivery: Option<Fingerprint>,
    /// The publisher's own message id (user property `id`), remembered for `store.message_id_retention_secs`. Like the
    /// fingerprint, it needs no write of its own where the message has no effect.
    pub message_id: Option<Box<str>>,
    pub records: Vec<Record>,
    pub state: Vec<(Scope, Vec<StateWrite>)>,
    pub dead_letters: Vec<DeadLetter>,
    /// ParkedJobs that must run (again) later: a retry, or a message that waits behind one.
    pub park: Vec<Parked>,
    /// Parked jobs that this commit finishes.
    pub unpark: Vec<u64>,
}

/// What tells a redelivered message from a new one with the same packet id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    pub packet_id: u16,
    /// SipHash-1-3 of topic, payload and properties.
    pub digest: u64,
}

/// Where a record goes. The number is stored: never change one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Stream {
    /// Upstream, before data.
    Alert = 0,
    /// Upstream.
    Data = 1,
    /// The local broker: what functions publish, and the local echo of alerts.
    Local = 2,
}

impl Stream {
    pub const ALL: [Self; 3] = [Self::Alert, Self::Data, Self::Local];
}

/// One message that waits to be sent. Its id is given by the store when it is committed.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub stream: Stream,
    pub function: Arc<str>,
    pub topic: Box<str>,
    pub payload: Bytes,
    pub content_type: Option<Box<str>>,
    pub retain: bool,
    /// How many functions the message went through, this one included.
    pub hops: u32,
    /// Unix time at the board, in milliseconds.
    pub at_ms: u64,
}

/// A committed record and its number in its stream. Numbers only grow and are never used twice, not even when the
/// stream was emptied and the daemon restarted.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredRecord {
    pub id: u64,
    pub record: Record,
}

#[derive(Clone, Debug, PartialEq)]
pub struct DeadLetter {
    pub function: Arc<str>,
    pub version: Arc<str>,
    pub message: Message,
    pub failure: Failure,
    pub usage: Usage,
    pub at_ms: u64,
}

/// A job that waits in the store, its delivery long acknowledged.
#[derive(Clone, Debug, PartialEq)]
pub struct Parked {
    /// Given by the store, in the order of parking. In a [`Commit`] it is 0, or the number of a job that the same commit
    /// unparks, which keeps its place.
    pub id: u64,
    pub function: Arc<str>,
    pub message: Message,
    /// Unix time in milliseconds. Compared with the wall clock only after a restart; timers run on the monotonic clock.
    pub due_ms: u64,
}

/// Lost records, reported upstream in their place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    pub stream: Stream,
    pub reason: Box<str>,
    pub first_id: u64,
    pub last_id: u64,
    pub records: u64,
    pub bytes: u64,
    pub first_at_ms: u64,
    pub last_at_ms: u64,
}

/// What the rest of the daemon asks of the store. Requests are carried out in the order of sending.
#[derive(Debug)]
pub enum StoreRequest {
    /// Commit all of these, in one transaction with whatever else is waiting.
    Commit { seq: u64, commits: Vec<Commit> },
    /// All state of a scope, as of everything sent before this request.
    LoadState { token: u64, scope: Scope },
    /// Records of a stream with an id above `after`, oldest first, up to about `max_bytes`.
    ReadOutbox { stream: Stream, after: u64, max_bytes: usize },
    /// Upstream (or the local broker) has taken everything up to and including this id.
    Delivered { stream: Stream, through: u64 },
    /// A receiver that will never take this record: it is dropped and becomes part of a gap.
    Refused { stream: Stream, id: u64, reason: Box<str> },
    /// Gaps that were reported upstream and need not be kept.
    GapsReported { through: u64 },
    /// A small durable setting of the daemon itself (the subscriptions of the session, for one).
    SetMeta { key: &'static str, value: Bytes },
    /// The functions that there are now. State of others is kept for `store.state_retention_secs`.
    Installed(Vec<Arc<str>>),
    /// Commit what is waiting, checkpoint, close.
    Close,
}

/// What the store answers. `Committed` come in the order of the requests, and so do `Outbox` after the `Committed` that
/// they are as of. `State` does not wait for the sync: it may come before the `Committed` of writes that it shows. If
/// that commit fails, [`StoreEvent::Failed`] takes back both.
#[derive(Debug)]
pub enum StoreEvent {
    /// Every `Commit` up to and including `seq` is on disk. `stored` holds what they added, in id order per stream.
    Committed {
        seq: u64,
        stored: Vec<StoredRecord>,
        parked: Vec<Parked>,
    },
    State {
        token: u64,
        entries: Vec<(Box<str>, Bytes)>,
    },
    Outbox {
        stream: Stream,
        stored: Vec<StoredRecord>,
        end: bool,
    },
    /// There are lost records to report, up to gap number `through`.
    Gaps {
        through: u64,
        gaps: Vec<Gap>,
    },
    /// ParkedJobs that another process (`sedge dead-letters replay`) put back.
    Parked(Vec<Parked>),
    /// The outbox is full and the policy is to block: nothing is committed until there is room. `false`: there is.
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

/// What the file held when it was opened.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Random, made with the file: record ids are unique together with it.
    pub store_id: String,
    /// Deliveries whose acknowledgement may not have reached the broker, oldest first.
    pub window: Vec<Fingerprint>,
    /// The message ids of the last `store.message_id_retention_secs`.
    pub message_ids: MessageIds,
    pub parked: Vec<Parked>,
    /// Where each stream starts: everything up to and including this id is gone.
    pub delivered: [u64; 3],
    /// The last id given in each stream.
    pub last: [u64; 3],
    pub meta: Vec<(String, Bytes)>,
    /// Set when the file was damaged: where it was moved, and how many rows were saved from it.
    pub moved_aside: Option<MovedAside>,
}

#[derive(Clone, Debug)]
pub struct MovedAside {
    pub moved_to: PathBuf,
    pub rows_saved: u64,
    pub reason: String,
}
