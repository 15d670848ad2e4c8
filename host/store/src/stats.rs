//! Statistics of the store, written by its threads for the metrics.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use sedge_core::stream::PerStream;

/// Upper bounds of [`Stats::commit_buckets`] in microseconds. The last bucket has none.
pub const COMMIT_BUCKETS_US: [u64; 11] =
    [250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000];

/// Counters since the start of the process; gauges as of the last commit.
#[derive(Debug, Default)]
pub struct Stats {
    /// Transactions, each with one sync of the WAL.
    pub commits: AtomicU64,
    /// Duration of `COMMIT`: writing the WAL and syncing it.
    pub commit_us: AtomicU64,
    pub commit_max_us: AtomicU64,
    /// Commits by duration, not cumulative; see [`COMMIT_BUCKETS_US`].
    pub commit_buckets: [AtomicU64; COMMIT_BUCKETS_US.len() + 1],
    /// Failures of the disk.
    pub failures: AtomicU64,
    /// Gauges by stream: records that wait, their bytes as stored, and the time of the oldest (0: none).
    pub outbox_records: PerStream<AtomicU64>,
    pub outbox_bytes: PerStream<AtomicU64>,
    pub outbox_oldest_at_ms: PerStream<AtomicU64>,
    /// Lost records by reason: the outbox was full, the record too old, refused by the receiver, damaged on disk.
    pub dropped_full: AtomicU64,
    pub dropped_expired: AtomicU64,
    pub dropped_refused: AtomicU64,
    pub dropped_damaged: AtomicU64,
    /// Gauges.
    pub dead_letters: AtomicU64,
    pub dead_letter_bytes: AtomicU64,
    /// Dead letters removed by the bounds on bytes and age.
    pub dead_letters_dropped: AtomicU64,
    /// Gauges: parked jobs, and their bytes as stored.
    pub parked: AtomicU64,
    pub parked_bytes: AtomicU64,
    /// Gauge: frames of the WAL in use.
    pub wal_bytes: AtomicU64,
    /// Bytes that the writer and the checkpointer wrote to the WAL and the database file. Zero where the kernel does not
    /// count them (`CONFIG_TASK_IO_ACCOUNTING`).
    pub(crate) writer_bytes: AtomicU64,
    pub(crate) checkpoint_bytes: AtomicU64,
}

impl Stats {
    pub fn bytes_written(&self) -> u64 {
        self.writer_bytes.load(Relaxed) + self.checkpoint_bytes.load(Relaxed)
    }

    pub fn committed(&self, took: Duration) {
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.commits.fetch_add(1, Relaxed);
        self.commit_us.fetch_add(took_us, Relaxed);
        self.commit_max_us.fetch_max(took_us, Relaxed);
        self.commit_buckets[COMMIT_BUCKETS_US.partition_point(|bound| *bound < took_us)].fetch_add(1, Relaxed);
    }
}

/// Returns the bytes that the calling thread has written so far.
pub(super) fn thread_bytes_written() -> u64 {
    let read = || {
        let io = std::fs::read_to_string("/proc/thread-self/io").ok()?;
        io.lines().find_map(|line| line.strip_prefix("wchar: "))?.parse().ok()
    };
    read().unwrap_or(0)
}
