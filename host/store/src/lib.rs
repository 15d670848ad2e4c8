//! Durable store: one SQLite file and one writer thread with group commit.
//!
//! The store knows neither MQTT, wasm nor upstream. The daemon sends `StoreRequest`s and receives `StoreEvent`s.
//! Both channels are bounded; the pipeline bounds what is in flight.

pub mod checks;
pub mod handle;
pub mod stats;

mod session;
mod writer;

mod beside;
pub mod dead_letters;
mod gaps;
mod heard;
mod history;
mod message_id_rows;
mod outbox;
mod parked;
mod responses;
mod schedules;
mod sinks;
mod state;
mod state_retention;
mod states;
mod wakes;
mod window;

mod checkpoint;
mod folder;
mod row;
mod running_time;
mod salvage;
pub mod schema;
#[cfg(test)]
mod tests;
mod wal;

use std::io::{Error, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sedge_core::config;
use sedge_core::time::Now;

pub use dead_letters::{DeadLetterFilter, DeadLetters};
pub use folder::prepare;
pub use handle::{SendError, StoreEvents, StoreHandle};
pub use history::{History, HistoryFilter, HistoryKind, HistoryPage, HistoryPlace};
pub use states::{ScopeSize, States};

use sedge_core::store::Recovered;
pub use stats::COMMIT_BUCKETS_US;
pub use stats::Stats;

/// Opens the store of a data folder and starts its threads.
#[derive(Debug)]
pub struct Store;

/// Pauses after a failure of the disk. Shorter in tests.
#[derive(Clone, Copy, Debug)]
struct Pauses {
    /// Before the second look at a database that seems damaged.
    second_look: Duration,
    /// Before the database is opened again. The pause doubles with each failure.
    retry_first: Duration,
    retry_max: Duration,
}

impl Default for Pauses {
    fn default() -> Self {
        Self {
            second_look: Duration::from_secs(2),
            retry_first: Duration::from_secs(1),
            retry_max: Duration::from_secs(30),
        }
    }
}

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("data folder {dir} is in use by another sedge{}", pid.map(|pid| format!(" (process {pid})")).unwrap_or_default())]
    Held { dir: PathBuf, pid: Option<u32> },
    #[error("cannot use {path}{}", hint(source))]
    Unusable { path: PathBuf, source: Error },
    #[error(
        "data folder {path} has mode {mode:o}, so that other users may read messages and keys (chmod 700 it as its owner, or \
         make the user of sedge its owner)"
    )]
    Exposed { path: PathBuf, mode: u32, source: Error },
    #[error("cannot use database {path}")]
    Database { path: PathBuf, source: rusqlite::Error },
    #[error(
        "database {path} was written by a newer sedge: it has layout {found}, this version supports up to {}",
        schema::VERSION
    )]
    Newer { path: PathBuf, found: u32 },
}

/// Fix for a data folder that cannot be used, in parentheses.
pub fn hint(error: &Error) -> &'static str {
    match error.kind() {
        ErrorKind::ReadOnlyFilesystem => " (mount it for writing, or name another node.data_dir)",
        ErrorKind::PermissionDenied => " (make the user of sedge its owner, or name another node.data_dir)",
        ErrorKind::StorageFull => " (free some space)",
        _ => "",
    }
}

impl Store {
    /// `receive_maximum`: deliveries that the broker may have in flight, the size of the redelivery window.
    pub fn open(
        config: &config::Store,
        data_dir: &Path,
        receive_maximum: u16,
        now: Now,
    ) -> Result<(StoreHandle, StoreEvents, Recovered), OpenError> {
        Self::open_with(config, data_dir, receive_maximum, Pauses::default(), now)
    }

    fn open_with(
        config: &config::Store,
        data_dir: &Path,
        receive_maximum: u16,
        pauses: Pauses,
        now: Now,
    ) -> Result<(StoreHandle, StoreEvents, Recovered), OpenError> {
        let stats = Arc::new(Stats::default());
        let context = session::StoreContext {
            folder: folder::DataFolder::lock(data_dir)?,
            config: config.clone(),
            receive_maximum: receive_maximum.into(),
            pauses,
            stats: stats.clone(),
            sinks: std::sync::OnceLock::new(),
        };
        let (session, recovered) = session::Session::open(&context, now)?;
        let (request_sender, requests) = flume::bounded(handle::REQUESTS);
        let (event_sender, events) = tokio::sync::mpsc::channel(handle::EVENTS);
        let writer = writer::Writer::new(context, requests, event_sender, now);
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

/// Reads bytes as rows of the database.
#[cfg(feature = "fuzzing")]
pub fn read_rows(row: &bytes::Bytes) {
    row::read(row);
}
