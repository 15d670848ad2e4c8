//! Small files of the data folder that must be whole after a loss of power.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use sedge_sandbox::cache::private;

/// Replaces a file, which only this user can read. What was in it before is there until all of the new one is on disk.
pub(crate) fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let unfinished = path.with_extension("part");
    let mut file = private().truncate(true).open(&unfinished)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&unfinished, path)?;
    // The new name as well.
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}
