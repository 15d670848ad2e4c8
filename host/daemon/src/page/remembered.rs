//! What the page remembers over a restart: a file that is written every ten minutes, if anything changed, and at the end.
//!
//! What a person says of an alert is written at once. Alerts and figures themselves are committed; a power cut costs the page its last minutes.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::alerts::Kept;
use super::charts::Series;
use crate::durable::write_durably;

/// Name of the file in the data folder.
const FILE: &str = "page.json";
/// The bounds on alerts keep what is written below this.
const MAX_BYTES: u64 = 8 << 20;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Remembered {
    pub(super) at_ms: u64,
    pub(super) alerts: Kept,
    pub(super) charts: Series,
}

/// `None`: there is none, or it is not readable, which costs nothing but the past.
pub(super) fn load(data_dir: &Path) -> Option<Remembered> {
    let path = data_dir.join(FILE);
    let read = || -> io::Result<Remembered> {
        if fs::metadata(&path)?.len() > MAX_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(serde_json::from_slice(&fs::read(&path)?)?)
    };
    match read() {
        Ok(remembered) => Some(remembered),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "the page has forgotten alerts and charts of earlier runs");
            None
        }
    }
}

pub(super) fn save(data_dir: &Path, remembered: &Remembered) {
    let path = data_dir.join(FILE);
    if let Err(error) = write(&path, remembered) {
        tracing::debug!(path = %path.display(), %error, "the page's memory was not written");
    }
}

fn write(path: &Path, remembered: &Remembered) -> io::Result<()> {
    write_durably(path, &serde_json::to_vec(remembered)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_loaded_and_noise_is_not() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(load(folder.path()), None);
        let remembered = Remembered { at_ms: 7, alerts: Kept::default(), charts: Series::default() };
        save(folder.path(), &remembered);
        assert_eq!(load(folder.path()), Some(remembered));
        fs::write(folder.path().join(FILE), "{\"at_ms\":").unwrap();
        assert_eq!(load(folder.path()), None);
    }
}
