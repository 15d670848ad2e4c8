//! Statistics of the store, written by its threads for the metrics.

use std::sync::atomic::{AtomicI32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use sedge_core::store::{DAMAGED, EXPIRED, FULL, REMOVED};
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
    /// Checks for expiry and for changes by other processes.
    pub(crate) ticks: AtomicU64,
    /// Failures of the disk.
    pub failures: AtomicU64,
    /// Databases that were replaced, write-ahead logs that lost commits, and rows other than those of the outbox that were
    /// damaged.
    pub damaged_databases: AtomicU64,
    pub damaged_logs: AtomicU64,
    pub damaged_rows: AtomicU64,
    /// Gauges by stream: records that wait, their bytes as stored, and the time of the oldest (0: none).
    pub outbox_records: PerStream<AtomicU64>,
    pub outbox_bytes: PerStream<AtomicU64>,
    pub outbox_oldest_at_ms: PerStream<AtomicU64>,
    /// Lost records by stream.
    pub dropped: PerStream<Dropped>,
    /// Records that were folded into others, by stream.
    pub thinned: PerStream<AtomicU64>,
    /// Gauges.
    pub dead_letters: AtomicU64,
    pub dead_letter_bytes: AtomicU64,
    /// Dead letters removed by the bounds on bytes and age.
    pub dead_letters_dropped: AtomicU64,
    /// Gauges: parked jobs, and their bytes as stored.
    pub parked: AtomicU64,
    pub parked_bytes: AtomicU64,
    /// Gauge.
    pub history_bytes: AtomicU64,
    /// Gauge: frames of the WAL in use.
    pub wal_bytes: AtomicU64,
    /// Bytes that the writer and the checkpointer wrote to the WAL and the database file. Zero where the kernel does not
    /// count them (`CONFIG_TASK_IO_ACCOUNTING`).
    pub(crate) writer_bytes: ThreadBytes,
    pub(crate) checkpoint_bytes: ThreadBytes,
}

/// Lost records of one stream by reason.
#[derive(Debug, Default)]
pub struct Dropped {
    full: AtomicU64,
    expired: AtomicU64,
    damaged: AtomicU64,
    removed: AtomicU64,
    refused: AtomicU64,
}

impl Dropped {
    /// `reason`: of a gap. What the store does not know is a refusal of the receiver.
    pub(crate) fn of(&self, reason: &str) -> &AtomicU64 {
        match reason {
            FULL => &self.full,
            EXPIRED => &self.expired,
            DAMAGED => &self.damaged,
            REMOVED => &self.removed,
            _ => &self.refused,
        }
    }

    /// Counts by reason.
    pub fn counts(&self) -> [(&'static str, u64); 5] {
        [
            (FULL, &self.full),
            (EXPIRED, &self.expired),
            (DAMAGED, &self.damaged),
            (REMOVED, &self.removed),
            ("refused", &self.refused),
        ]
        .map(|(reason, count)| (reason, count.load(Relaxed)))
    }
}

/// Bytes written by a thread, and by those that had its work before.
#[derive(Debug, Default)]
pub(crate) struct ThreadBytes {
    /// 0: none has started.
    thread: AtomicI32,
    /// Of the threads before.
    before: AtomicU64,
    /// Of this thread, as last read.
    last: AtomicU64,
}

impl ThreadBytes {
    /// The calling thread does the work from now on.
    pub(crate) fn start(&self) {
        self.before.fetch_add(self.last.swap(0, Relaxed), Relaxed);
        self.thread.store(rustix::thread::gettid().as_raw_nonzero().get(), Relaxed);
    }

    /// Reads the figure while the thread lives, so that it is that of the moment; afterwards it is the last one read.
    pub(crate) fn get(&self) -> u64 {
        let thread = self.thread.load(Relaxed);
        let read = || {
            let io = std::fs::read_to_string(format!("/proc/self/task/{thread}/io")).ok()?;
            io.lines().find_map(|line| line.strip_prefix("wchar: "))?.parse().ok()
        };
        if let Some(bytes) = read() {
            self.last.fetch_max(bytes, Relaxed);
        }
        self.before.load(Relaxed) + self.last.load(Relaxed)
    }
}

impl Stats {
    pub fn bytes_written(&self) -> u64 {
        self.writer_bytes.get() + self.checkpoint_bytes.get()
    }

    pub fn committed(&self, took: Duration) {
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.commits.fetch_add(1, Relaxed);
        self.commit_us.fetch_add(took_us, Relaxed);
        self.commit_max_us.fetch_max(took_us, Relaxed);
        self.commit_buckets[COMMIT_BUCKETS_US.partition_point(|bound| *bound < took_us)].fetch_add(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn bytes_written_are_those_of_the_moment_and_outlive_their_thread() {
        let bytes = ThreadBytes::default();
        assert_eq!(bytes.get(), 0);
        let mut file = tempfile::tempfile().unwrap();
        let mut write = |seen: u64| {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    bytes.start();
                    file.write_all(&[0; 4096]).unwrap();
                    assert!(bytes.get() >= seen + 4096, "{}", bytes.get());
                });
            });
        };
        write(0);
        write(4096);
        assert!(bytes.get() >= 8192);
    }
}
