//! Whether something has set the clock since the board booted, by the traces that time services leave.
//!
//! The kernel knows (`adjtimex`, `STA_UNSYNC`) and has no file that says so, and the call is not to be had without unsafe
//! code. A service that is not listed here leaves the answer at a cautious no.

use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, clock_gettime};

enum Trace {
    /// Made when the clock was set, in a folder that a boot empties.
    Exists(&'static str),
    /// Written only while the clock is synchronised, and kept over boots.
    WrittenSinceBoot(&'static str),
}

const TRACES: &[Trace] = &[
    Trace::Exists("run/systemd/timesync/synchronized"),
    // The measured error of the clock's frequency. Written after about an hour of being synchronised, then every hour.
    Trace::WrittenSinceBoot("var/lib/chrony/chrony.drift"),
    Trace::WrittenSinceBoot("var/lib/chrony/drift"),
    Trace::WrittenSinceBoot("var/lib/ntpsec/ntp.drift"),
    Trace::WrittenSinceBoot("var/lib/ntp/ntp.drift"),
];

pub fn synced() -> bool {
    let uptime = Duration::from_secs(clock_gettime(ClockId::Boottime).tv_sec.try_into().unwrap_or(0));
    synced_below(Path::new("/"), SystemTime::now(), uptime)
}

fn synced_below(root: &Path, now: SystemTime, uptime: Duration) -> bool {
    // By the clock of now: a step moves both.
    let Some(booted) = now.checked_sub(uptime) else { return false };
    TRACES.iter().any(|trace| match trace {
        Trace::Exists(path) => root.join(path).exists(),
        Trace::WrittenSinceBoot(path) => {
            let written = root.join(path).metadata().and_then(|metadata| metadata.modified());
            // One from the future was written before the clock was set back.
            written.is_ok_and(|written| booted < written && written <= now)
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

    use std::fs::{self, File};

    use super::*;

    fn trace(root: &Path, path: &str, written: SystemTime) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        File::create(&path).unwrap().set_modified(written).unwrap();
    }

    #[test]
    fn a_drift_file_counts_when_it_was_written_since_boot() {
        let (now, hour) = (SystemTime::now(), Duration::from_secs(3600));
        for drift in ["var/lib/chrony/chrony.drift", "var/lib/ntpsec/ntp.drift"] {
            let root = tempfile::tempdir().unwrap();
            assert!(!synced_below(root.path(), now, 2 * hour));
            trace(root.path(), drift, now - 3 * hour);
            assert!(!synced_below(root.path(), now, 2 * hour), "before the boot");
            trace(root.path(), drift, now + hour);
            assert!(!synced_below(root.path(), now, 2 * hour), "by another clock");
            trace(root.path(), drift, now - hour);
            assert!(synced_below(root.path(), now, 2 * hour));
        }
    }

    #[test]
    fn timesyncd_says_so() {
        let root = tempfile::tempdir().unwrap();
        trace(root.path(), "run/systemd/timesync/synchronized", SystemTime::UNIX_EPOCH);
        assert!(synced_below(root.path(), SystemTime::now(), Duration::from_secs(10)));
    }

    #[test]
    fn a_clock_that_says_less_than_the_uptime_is_not_set() {
        let root = tempfile::tempdir().unwrap();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(5);
        trace(root.path(), "var/lib/ntp/ntp.drift", now);
        assert!(!synced_below(root.path(), now, Duration::MAX));
    }
}
