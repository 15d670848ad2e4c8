//! Copies the WAL into the database file, beside the writer.
//!
//! A checkpoint within a commit would add tens of milliseconds to it. So the bulk is copied by a second connection on
//! a thread of its own, without keeping the writer from appending. What was appended meanwhile is short, and the writer
//! copies it itself between two commits; then nothing in the WAL is needed any more, and SQLite begins it anew from the
//! front. The file is never truncated: writing over it is cheaper for the flash than growing it again.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use rusqlite::wal::CheckpointMode;
use rusqlite::{Connection, ErrorCode, MAIN_DB};

use super::OpenError;
use super::folder::{self, PAGE_BYTES};
use super::stats::{Stats, thread_bytes_written};
use crate::queue;

pub(super) const FRAME_BYTES: u64 = PAGE_BYTES + 24;

/// A WAL of 4 MiB is due: large enough that pages written again and again are copied once, small enough to stay in the
/// page cache of a small board.
const DUE_FRAMES: u64 = (4 << 20) / FRAME_BYTES;

/// What the writer copies itself: a few milliseconds, once for each 4 MiB.
const SHORT_FRAMES: u64 = (512 << 10) / FRAME_BYTES;

/// Where the writer stops waiting for the other thread, so that the WAL is bounded however fast commits come.
const TOO_LONG_FRAMES: u64 = 4 * DUE_FRAMES;

/// Where a WAL that cannot be copied (disk full, say) counts as a failed disk.
const HOPELESS_FRAMES: u64 = 16 * DUE_FRAMES;

#[derive(Debug)]
pub(super) struct Checkpointer {
    /// `None` only while it is dropped.
    wake: Option<queue::Sender<()>>,
    running: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Checkpointer {
    pub(super) fn start(path: &Path, stats: Arc<Stats>) -> Result<Self, OpenError> {
        let connection = folder::connect(path)?;
        let (wake, woken) = queue::bounded(1);
        let running = Arc::new(AtomicBool::new(false));
        let thread = {
            let running = running.clone();
            let before = stats.checkpoint_bytes.load(Ordering::Relaxed);
            let work = move || {
                while let Ok(()) = woken.recv() {
                    if let Err(error) = connection.wal_checkpoint_v2(Some(MAIN_DB), CheckpointMode::PASSIVE) {
                        tracing::warn!(%error, "the write-ahead log could not be copied into the database");
                    }
                    stats.checkpoint_bytes.store(before + thread_bytes_written(), Ordering::Relaxed);
                    running.store(false, Ordering::Release);
                }
            };
            std::thread::Builder::new().name("sedge-checkpoint".into()).spawn(work)
        };
        let thread = thread.map_err(|source| OpenError::Unusable { path: path.to_owned(), source })?;
        Ok(Self { wake: Some(wake), running, thread: Some(thread) })
    }

    /// Called by the writer between two commits. Returns the length of the WAL in frames.
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
            // The other thread is at it.
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => Ok(frames),
            Err(error) if frames > HOPELESS_FRAMES => Err(error),
            Err(error) => {
                tracing::warn!(%error, "the write-ahead log could not be copied into the database");
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
