//! What reading a configuration asks of the machine.

use std::fs::Metadata;
use std::io;
use std::path::{Path, PathBuf};

/// Access to files and names, given by the caller: this crate has none of its own.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// The beginning of a file, with a limit in bytes.
    pub read: fn(&Path, u64) -> io::Result<Vec<u8>>,
    pub metadata: fn(&Path) -> io::Result<Metadata>,
    /// The paths of a folder's entries.
    pub list: fn(&Path) -> io::Result<Vec<PathBuf>>,
    pub host_name: fn() -> String,
    /// Number of the user that this process runs as.
    pub user: fn() -> u32,
    /// Memory that this process may use.
    pub memory_bytes: fn() -> u64,
}

impl Machine {
    pub fn text(&self, path: &Path) -> io::Result<String> {
        String::from_utf8((self.read)(path, u64::MAX)?)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    pub fn is_file(&self, path: &Path) -> bool {
        (self.metadata)(path).is_ok_and(|metadata| metadata.is_file())
    }

    pub fn is_dir(&self, path: &Path) -> bool {
        (self.metadata)(path).is_ok_and(|metadata| metadata.is_dir())
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test may read clocks and files")]
pub(crate) mod testing {
    use std::fs::{self, File};
    use std::io::Read as _;

    use super::Machine;

    /// The machine that runs the test, under a name of its own.
    pub(crate) const MACHINE: Machine = Machine {
        read: |path, limit| {
            let mut bytes = Vec::new();
            File::open(path)?.take(limit).read_to_end(&mut bytes)?;
            Ok(bytes)
        },
        metadata: |path| fs::metadata(path),
        list: |path| Ok(fs::read_dir(path)?.flatten().map(|entry| entry.path()).collect()),
        host_name: || "board".into(),
        user: || 1000,
        memory_bytes: || 1 << 30,
    };
}
