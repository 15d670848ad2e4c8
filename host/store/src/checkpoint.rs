//! Checkpoints: copy the WAL into the database file, concurrently with the writer.
//!
//! A checkpoint within a commit would add tens of milliseconds to it. A second connection on its own thread copies the
//! bulk while the writer appends. The writer copies the short rest itself between two commits; SQLite then restarts the
//! WAL from its beginning, and truncates a file that has grown beyond its usual length (`journal_size_limit`).

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use rusqlite::wal::CheckpointMode;
use rusqlite::{Connection, ErrorCode, MAIN_DB};

use super::folder::{self, PAGE_BYTES};
use super::schema::LoadError;
use super::stats::Stats;

pub(super) const FRAME_BYTES: u64 = PAGE_BYTES + 24;

/// Length at which a checkpoint is due (4 MiB): large enough that hot pages are copied once for many writes, small enough
/// for the page cache of a small board.
const DUE_FRAMES: u64 = (4 << 20) / FRAME_BYTES;

/// Length that the writer copies itself: a few milliseconds, once per 4 MiB.
const SHORT_FRAMES: u64 = (512 << 10) / FRAME_BYTES;

/// Length at which the writer stops waiting for the checkpointer, so that the WAL stays bounded under any load.
const TOO_LONG_FRAMES: u64 = 4 * DUE_FRAMES;

/// Length at which a WAL that cannot be copied (for example: disk full) counts as a failed disk.
const HOPELESS_FRAMES: u64 = 16 * DUE_FRAMES;

#[derive(Debug)]
pub(super) struct Checkpointer {
    /// `None` only in `drop`.
    wake: Option<flume::Sender<()>>,
    running: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Checkpointer {
    pub(super) fn start(path: &Path, stats: Arc<Stats>) -> Result<Self, LoadError> {
        let connection = folder::connect(path)?;
        let (wake, woken) = flume::bounded(1);
        let running = Arc::new(AtomicBool::new(false));
        let thread = {
            let running = running.clone();
            let work = move || {
                stats.checkpoint_bytes.start();
                while let Ok(()) = woken.recv() {
                    if let Err(error) = connection.wal_checkpoint_v2(Some(MAIN_DB), CheckpointMode::PASSIVE) {
                        tracing::warn!(%error, "failed to copy the write-ahead log into the database");
                    }
                    // The thread may end before anybody asks.
                    stats.checkpoint_bytes.get();
                    running.store(false, Ordering::Release);
                }
            };
            std::thread::Builder::new().name("sedge-checkpoint".into()).spawn(work)
        };
        Ok(Self { wake: Some(wake), running, thread: Some(thread.map_err(LoadError::Io)?) })
    }

    /// Starts or performs a checkpoint if one is due. Called by the writer between two commits. Returns the length of
    /// the WAL in frames.
    pub(super) fn after_commit(&self, writer: &Connection) -> rusqlite::Result<u64> {
        let (frames, copied) = writer.wal_checkpoint_v2(Some(MAIN_DB), CheckpointMode::NOOP)?;
        let frames = u64::try_from(frames).unwrap_or(0);
        let rest = frames.saturating_sub(u64::try_from(copied).unwrap_or(0));
        if frames < DUE_FRAMES || rest == 0 || self.running.load(Ordering::Acquire) && frames < TOO_LONG_FRAMES {
            return Ok(frames);
        }
        if rest > SHORT_FRAMES && frames < TOO_LONG_FRAMES {
            self.running.store(true, Ordering::Release);
            if let Some(wake) = &self.wake {
                let _ = wake.try_send(());
            }
            return Ok(frames);
        }
        match writer.wal_checkpoint_v2(Some(MAIN_DB), CheckpointMode::PASSIVE) {
            // The checkpointer is running.
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => Ok(frames),
            Err(error) if frames > HOPELESS_FRAMES => Err(error),
            Err(error) => {
                tracing::warn!(%error, "failed to copy the write-ahead log into the database");
                Ok(frames)
            }
            Ok(_) => Ok(frames),
        }
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        self.wake = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
