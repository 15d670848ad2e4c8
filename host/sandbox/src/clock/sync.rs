//! Detection of clock synchronisation, from files that time services write.
//!
//! The kernel's own flag (`adjtimex`, `STA_UNSYNC`) is not in any file, and the call needs unsafe code. With a service
//! that is not listed here the clock counts as not synchronised.

use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

enum Trace {
    /// Created when the clock was set, in a folder that a boot empties.
    Exists(&'static str),
    /// Written only while the clock is synchronised, and kept across boots.
    WrittenSinceBoot(&'static str),
}

const TRACES: &[Trace] = &[
    Trace::Exists("run/systemd/timesync/synchronized"),
    // Measured frequency error of the clock. Written about an hour after synchronisation, then every hour.
    Trace::WrittenSinceBoot("var/lib/chrony/chrony.drift"),
    Trace::WrittenSinceBoot("var/lib/chrony/drift"),
    Trace::WrittenSinceBoot("var/lib/ntpsec/ntp.drift"),
    Trace::WrittenSinceBoot("var/lib/ntp/ntp.drift"),
];

/// Looks for the files below `root`.
pub(super) fn synced(root: &Path, unix_ms: u64, uptime: Duration) -> bool {
    let now = Duration::from_millis(unix_ms);
    // Computed from the wall clock: a step moves both.
    let Some(booted) = now.checked_sub(uptime) else { return false };
    let (now, booted) = (UNIX_EPOCH + now, UNIX_EPOCH + booted);
    TRACES.iter().any(|trace| match trace {
        Trace::Exists(path) => root.join(path).exists(),
        Trace::WrittenSinceBoot(path) => {
            let written = root.join(path).metadata().and_then(|metadata| metadata.modified());
            // A file from the future was written before the clock was set back.
            written.is_ok_and(|written| booted < written && written <= now)
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

    use std::fs::{self, File};

    use super::*;

    const NOW_MS: u64 = 1_800_000_000_000;
    const HOUR_MS: u64 = 3_600_000;
    const HOUR: Duration = Duration::from_millis(HOUR_MS);

    fn trace(root: &Path, path: &str, written_ms: u64) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        File::create(&path).unwrap().set_modified(UNIX_EPOCH + Duration::from_millis(written_ms)).unwrap();
    }

    #[test]
    fn a_drift_file_counts_when_it_was_written_since_boot() {
        for drift in ["var/lib/chrony/chrony.drift", "var/lib/ntpsec/ntp.drift"] {
            let root = tempfile::tempdir().unwrap();
            assert!(!synced(root.path(), NOW_MS, 2 * HOUR));
            trace(root.path(), drift, NOW_MS - 3 * HOUR_MS);
            assert!(!synced(root.path(), NOW_MS, 2 * HOUR), "before the boot");
            trace(root.path(), drift, NOW_MS + HOUR_MS);
            assert!(!synced(root.path(), NOW_MS, 2 * HOUR), "by another clock");
            trace(root.path(), drift, NOW_MS - HOUR_MS);
            assert!(synced(root.path(), NOW_MS, 2 * HOUR));
        }
    }

    #[test]
    fn the_file_of_timesyncd_counts_whatever_its_time() {
        let root = tempfile::tempdir().unwrap();
        trace(root.path(), "run/systemd/timesync/synchronized", 0);
        assert!(synced(root.path(), NOW_MS, HOUR));
    }

    #[test]
    fn a_clock_that_shows_less_than_the_uptime_is_not_set() {
        let root = tempfile::tempdir().unwrap();
        trace(root.path(), "var/lib/ntp/ntp.drift", 5000);
        assert!(!synced(root.path(), 5000, HOUR));
    }
}
