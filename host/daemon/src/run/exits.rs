//! How earlier processes of the daemon ended, in two small files of the data folder.
//!
//! `running.json` is there while a daemon runs, and stays when it does not end in order. `exit` says why it ended: a handler
//! writes to it on SIGABRT, which a failed allocation, a panic and a broken lock raise, and the unit (`ExecStopPost=`) writes
//! what the kernel or the watchdog did. A person's SIGKILL and a loss of power leave nothing there, and do not count.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use sedge_core::board::{CautionConfig, Crash};

const RUNNING: &str = "running.json";
const EXIT: &str = "exit";
/// Ends that are remembered.
const MAX_CRASHES: usize = 16;
/// Words of the unit, as `$SERVICE_RESULT` and `$EXIT_STATUS`, for ends that a message may be the reason of.
const FAULTS: [&str; 8] = ["core-dump", "oom-kill", "watchdog", "ABRT", "SEGV", "BUS", "ILL", "FPE"];

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Running {
    /// The message that is alone under way.
    alone: Option<u64>,
    crashes: Vec<Crash>,
}

pub(super) struct Exits {
    dir: PathBuf,
    running: Running,
}

impl Exits {
    /// Reads how the process before this one ended, and notes that this one runs. `false` tests leave signals alone.
    pub(super) fn open(dir: &Path, handles_signals: bool) -> io::Result<(Self, CautionConfig)> {
        let uptime_ms = uptime_ms();
        let before = fs::read(dir.join(RUNNING)).ok();
        // A damaged note is of a process that did not end in order.
        let before = before.map(|bytes| serde_json::from_slice::<Running>(&bytes).unwrap_or_default());
        let reason = fs::read_to_string(dir.join(EXIT)).unwrap_or_default();
        let mut running = Running::default();
        if let Some(Running { alone, mut crashes }) = before {
            if FAULTS.iter().any(|fault| reason.split_whitespace().any(|word| word == *fault)) {
                tracing::warn!(reason = reason.trim(), "the daemon before this one ended by a fault");
                crashes.push(Crash { at_ms: uptime_ms, alone });
            }
            crashes.drain(..crashes.len().saturating_sub(MAX_CRASHES));
            running.crashes = crashes;
        }
        let exit = File::create(dir.join(EXIT))?;
        if handles_signals {
            note_abort(exit)?;
        }
        let caution = CautionConfig { crashes: running.crashes.clone(), uptime_ms };
        let exits = Self { dir: dir.to_owned(), running };
        exits.write()?;
        Ok((exits, caution))
    }

    pub(super) fn set_alone(&mut self, message: Option<u64>) {
        self.running.alone = message;
        self.try_write();
    }

    /// The loop is over.
    pub(super) fn forget(&mut self) {
        self.running = Running::default();
        self.try_write();
    }

    /// The daemon ends in order.
    pub(super) fn end(self) {
        let _ = fs::remove_file(self.dir.join(RUNNING));
    }

    fn try_write(&self) {
        if let Err(error) = self.write() {
            tracing::warn!(%error, "failed to note which message is under way");
        }
    }

    /// Not synced: a loss of power does not count.
    fn write(&self) -> io::Result<()> {
        let (path, unfinished) = (self.dir.join(RUNNING), self.dir.join("running.tmp"));
        fs::write(&unfinished, serde_json::to_vec(&self.running)?)?;
        fs::rename(unfinished, path)
    }
}

/// Time since the machine was started.
fn uptime_ms() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    time.tv_sec.unsigned_abs() * 1000 + u64::from(time.tv_nsec.unsigned_abs() as u32) / 1_000_000
}

/// Has the process write its end by SIGABRT into a file.
#[expect(unsafe_code, reason = "what runs in a signal handler must be safe there")]
fn note_abort(file: File) -> io::Result<()> {
    let is_noted = AtomicBool::new(false);
    let note = move || {
        // The second time it is `abort` itself that raises the signal, and goes on to end the process.
        if !is_noted.swap(true, Ordering::Relaxed) {
            let _ = rustix::io::write(&file, b"ABRT\n");
            std::process::abort();
        }
    };
    // SAFETY: the handler makes one system call on a descriptor that is never closed, and ends the process by `abort`, which
    // may be called there. It takes no lock and no memory.
    unsafe { signal_hook_registry::register(rustix::process::Signal::ABORT.as_raw(), note) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &Path) -> (Exits, CautionConfig) {
        Exits::open(dir, false).unwrap()
    }

    #[test]
    fn only_ends_by_a_fault_count() {
        let dir = tempfile::tempdir().unwrap();
        let (exits, caution) = open(dir.path());
        assert!(caution.crashes.is_empty(), "the first start");
        exits.end();
        fs::write(dir.path().join(EXIT), "ABRT\n").unwrap();
        assert!(open(dir.path()).1.crashes.is_empty(), "it ended in order all the same");
        // Killed by a person, or without power.
        assert!(open(dir.path()).1.crashes.is_empty());
        fs::write(dir.path().join(EXIT), "signal killed KILL\n").unwrap();
        assert!(open(dir.path()).1.crashes.is_empty());
        for (n, reason) in ["ABRT\n", "oom-kill killed KILL\n", "core-dump dumped SEGV\n", "watchdog killed ABRT\n"]
            .into_iter()
            .enumerate()
        {
            fs::write(dir.path().join(EXIT), reason).unwrap();
            assert_eq!(open(dir.path()).1.crashes.len(), n + 1, "{reason}");
        }
        // A note that is not whole.
        fs::write(dir.path().join(RUNNING), "{").unwrap();
        assert!(open(dir.path()).1.crashes.is_empty());
    }

    #[test]
    fn the_message_that_was_alone_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let (mut exits, _) = open(dir.path());
        exits.set_alone(Some(7));
        drop(exits);
        fs::write(dir.path().join(EXIT), "ABRT\n").unwrap();
        let (mut exits, caution) = open(dir.path());
        assert_eq!(caution.crashes[0].alone, Some(7));
        exits.set_alone(Some(8));
        exits.set_alone(None);
        fs::write(dir.path().join(EXIT), "ABRT\n").unwrap();
        let (mut exits, caution) = open(dir.path());
        assert_eq!(caution.crashes[1].alone, None);
        exits.forget();
        assert!(open(dir.path()).1.crashes.is_empty());
    }
}
