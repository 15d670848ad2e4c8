//! Alerts that a person muted: a file that is on disk before the answer, and what the board is told of it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::answer::Refusal;
use crate::durable::write_durably;
use sedge_core::board::Mute;
use sedge_core::time::Now;

/// Name of the file in the data folder.
const FILE: &str = "mutes.json";
const MAX_FILE_BYTES: u64 = 4 << 20;
/// Alerts that may be muted at a time.
const MAX_MUTES: usize = 500;
/// Longest key. Functions may not have longer ones.
const MAX_KEY_BYTES: usize = 1024;
/// How long an alert may be muted, in seconds.
const SECONDS: std::ops::RangeInclusive<u64> = 60..=31 * 24 * 3600;

#[derive(Debug)]
pub(super) struct Mutes {
    path: PathBuf,
    kept: Mutex<Vec<Kept>>,
    /// Held while the file is written, for which the message loop does not wait.
    writing: Mutex<()>,
    changed: Notify,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Kept {
    function: Box<str>,
    key: Box<str>,
    /// Unix time of the board.
    since_ms: u64,
    until_ms: u64,
    /// Name of the token.
    by: String,
}

impl Kept {
    /// What is left of it. A clock that has gone back, or is not set yet, does not make it longer.
    fn left_ms(&self, now: Now) -> u64 {
        self.until_ms.saturating_sub(now.unix_ms).min(self.until_ms.saturating_sub(self.since_ms))
    }

    fn is(&self, function: &str, key: &str) -> bool {
        *self.function == *function && *self.key == *key
    }
}

impl Mutes {
    pub(super) fn load(data_dir: &Path) -> Self {
        let path = data_dir.join(FILE);
        let kept = read(&path).unwrap_or_else(|error| {
            tracing::error!(path = %path.display(), %error, "muted alerts are sent again: their file cannot be read");
            Vec::new()
        });
        Self { path, kept: Mutex::new(kept), writing: Mutex::new(()), changed: Notify::new() }
    }

    /// What the board is to know.
    pub(super) fn for_board(&self, now: Now) -> Vec<Mute> {
        let mute = |it: &Kept| Mute {
            function: (*it.function).into(),
            key: (*it.key).into(),
            until: now.monotonic + Duration::from_millis(it.left_ms(now)),
        };
        self.lock().iter().map(mute).collect()
    }

    pub(super) async fn changed(&self) -> Vec<Mute> {
        self.changed.notified().await;
        self.for_board(super::now())
    }

    /// Mutes an alert, or changes for how long it is. Returns the end.
    pub(super) fn add(&self, function: &str, key: &str, seconds: u64, by: &str, now: Now) -> Result<u64, Refusal> {
        let wrong = |error: String, fix: &str| Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, error, fix));
        if !SECONDS.contains(&seconds) {
            return wrong(format!("{seconds} s"), "mute for a minute to 31 days");
        }
        if function.is_empty() || function.len() > MAX_KEY_BYTES || key.len() > MAX_KEY_BYTES {
            return wrong("no alert is called that".into(), "send function and key as the list of alerts has them");
        }
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = self.lock().clone();
        next.retain(|it| it.left_ms(now) > 0 && !it.is(function, key));
        if next.len() >= MAX_MUTES {
            let error = format!("{MAX_MUTES} alerts are muted, which is the most");
            return Err(Refusal::new(StatusCode::CONFLICT, error, "unmute some, or push a version that raises fewer"));
        }
        let until_ms = now.unix_ms + seconds * 1000;
        let since_ms = now.unix_ms;
        next.push(Kept { function: function.into(), key: key.into(), since_ms, until_ms, by: by.to_owned() });
        self.replace(next)?;
        Ok(until_ms)
    }

    /// Whether it was muted.
    pub(super) fn remove(&self, function: &str, key: &str) -> Result<bool, Refusal> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.lock().clone();
        let next: Vec<_> = before.iter().filter(|it| !it.is(function, key)).cloned().collect();
        let was_muted = next.len() < before.len();
        if was_muted {
            self.replace(next)?;
        }
        Ok(was_muted)
    }

    /// On disk first: what is answered stays over a loss of power.
    fn replace(&self, next: Vec<Kept>) -> Result<(), Refusal> {
        write(&self.path, &next).map_err(|error| {
            let error = format!("{} cannot be written: {error}", self.path.display());
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, error, "make room on the disk and try again")
        })?;
        *self.lock() = next;
        self.changed.notify_one();
        Ok(())
    }

    pub(super) fn to_json(&self, now: Now) -> Value {
        let kept = self.lock();
        let muted = kept.iter().filter(|it| it.left_ms(now) > 0).map(|it| {
            json!({
                "function": *it.function, "key": *it.key, "since_ms": it.since_ms,
                "until_ms": now.unix_ms + it.left_ms(now), "by": it.by,
            })
        });
        muted.collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(path: &Path) -> io::Result<Vec<Kept>> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() > MAX_FILE_BYTES => Err(io::ErrorKind::FileTooLarge.into()),
        Ok(_) => {
            let mut kept: Vec<Kept> = serde_json::from_slice(&fs::read(path)?)?;
            kept.truncate(MAX_MUTES);
            Ok(kept)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn write(path: &Path, kept: &[Kept]) -> io::Result<()> {
    write_durably(path, &serde_json::to_vec(kept)?)
}

#[cfg(test)]
mod tests {
    use std::time::{Instant, SystemTime};

    use super::*;

    fn at(seconds: u64) -> Now {
        Now { unix_ms: seconds * 1000, ..Now::at(Instant::now(), SystemTime::now(), true) }
    }

    fn left(mutes: &Mutes, now: Now) -> Vec<(String, u64)> {
        let mute = |it: Mute| (it.key.to_string(), it.until.duration_since(now.monotonic).as_secs());
        mutes.for_board(now).into_iter().map(mute).collect()
    }

    #[test]
    fn muted_alerts_stay_muted_over_a_restart_and_no_longer_than_they_should() {
        let folder = tempfile::tempdir().unwrap();
        let mutes = Mutes::load(folder.path());
        assert_eq!(mutes.add("f", "a", 600, "anna", at(1000)).unwrap(), 1_600_000);
        mutes.add("f", "b", 60, "anna", at(1000)).unwrap();
        assert!(mutes.remove("f", "b").unwrap() && !mutes.remove("f", "b").unwrap());
        let again = Mutes::load(folder.path());
        assert_eq!(left(&again, at(1100)), [("a".to_owned(), 500)]);
        assert_eq!(left(&again, at(5)), [("a".to_owned(), 600)], "a clock that is not set");
        assert_eq!(again.to_json(at(1600)), json!([]));
        again.add("f", "a", 60, "ben", at(1100)).unwrap();
        assert_eq!(left(&again, at(1100)), [("a".to_owned(), 60)], "once, as it was said last");
    }

    #[test]
    fn times_keys_and_their_number_are_bounded_and_a_damaged_file_mutes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mutes = Mutes::load(folder.path());
        for (function, key, seconds) in
            [("f", "a", 59), ("f", "a", u64::MAX), ("", "a", 60), ("f", &*"k".repeat(2000), 60)]
        {
            let refusal = mutes.add(function, key, seconds, "anna", at(1)).expect_err(function);
            assert_eq!(refusal.status, StatusCode::UNPROCESSABLE_ENTITY);
        }
        *mutes.lock() = (0..MAX_MUTES)
            .map(|n| Kept {
                function: "f".into(),
                key: n.to_string().into(),
                since_ms: 0,
                until_ms: 9_000,
                by: String::new(),
            })
            .collect();
        assert_eq!(mutes.add("f", "new", 60, "anna", at(1)).unwrap_err().status, StatusCode::CONFLICT);
        mutes.add("f", "new", 60, "anna", at(10)).expect("those whose time is over make room");
        fs::write(folder.path().join(FILE), "{").unwrap();
        assert_eq!(Mutes::load(folder.path()).to_json(at(1)), json!([]));
    }
}
