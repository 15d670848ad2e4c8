//! The deploy folder. Its files are whole or absent after a loss of power at any moment.
//!
//! ```text
//! functions/<name>.record     state of a function (see `record`)
//! keys.record                 changes of the trusted keys
//! staging/<name>.<digest>     chunks of a module; any of them may be missing or wrong
//! modules/<digest>.wasm       whole modules
//! ```
//!
//! A name appears in `functions` and `modules` only by renaming a synced file. It counts only after the folder was synced.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

#[cfg(test)]
use super::testing::faults::Faults;

pub(crate) const FUNCTIONS: &str = "functions";
pub(crate) const STAGING: &str = "staging";
pub(crate) const MODULES: &str = "modules";

const UNFINISHED: &str = ".tmp";
const DAMAGED: &str = ".damaged";

#[derive(Debug)]
pub(crate) struct Disk {
    root: PathBuf,
    #[cfg(test)]
    pub faults: Faults,
}

impl Disk {
    pub(crate) fn open(root: PathBuf) -> io::Result<Self> {
        for folder in [FUNCTIONS, STAGING, MODULES] {
            fs::create_dir_all(root.join(folder))?;
        }
        sync_folder(&root)?;
        if let Some(parent) = root.parent() {
            sync_folder(parent)?;
        }
        let disk = Self {
            root,
            #[cfg(test)]
            faults: Faults::default(),
        };
        for folder in ["", FUNCTIONS] {
            for name in disk.list(folder)?.iter().filter(|name| name.ends_with(UNFINISHED)) {
                disk.remove(folder, name)?;
            }
        }
        Ok(disk)
    }

    pub(crate) fn read(&self, folder: &str, name: &str) -> io::Result<Vec<u8>> {
        fs::read(self.path(folder, name))
    }

    pub(crate) fn exists(&self, folder: &str, name: &str) -> bool {
        self.path(folder, name).is_file()
    }

    /// Names of the files, sorted.
    pub(crate) fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.root.join(folder))? {
            let entry = entry?;
            if entry.file_type()?.is_file()
                && let Ok(name) = entry.file_name().into_string()
            {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// Replaces the contents of a file atomically.
    pub(crate) fn replace(&self, folder: &str, name: &str, bytes: &[u8]) -> io::Result<()> {
        let path = self.path(folder, name);
        let unfinished = self.path(folder, &format!("{name}{UNFINISHED}"));
        let written = self.write_unfinished(&unfinished, bytes);
        if written.is_err() {
            // On a full disk it would occupy the room that the next attempt needs.
            let _ = fs::remove_file(&unfinished);
        }
        written?;
        self.rename(&unfinished, &path)?;
        self.sync_folder(folder)
    }

    /// Writes a chunk without a sync: it may be lost.
    pub(crate) fn write_at(&self, folder: &str, name: &str, bytes: &[u8], offset: u64) -> io::Result<()> {
        let path = self.path(folder, name);
        #[cfg(test)]
        self.faults.write_at(&path, bytes.len(), offset)?;
        private().truncate(false).open(&path)?.write_all_at(bytes, offset)
    }

    /// Syncs a file that was written in chunks and moves it to its final name.
    pub(crate) fn finish(&self, from: (&str, &str), to: (&str, &str)) -> io::Result<()> {
        let (source, target) = (self.path(from.0, from.1), self.path(to.0, to.1));
        self.sync_file(&File::open(&source)?, &source)?;
        self.rename(&source, &target)?;
        self.sync_folder(to.0)?;
        self.sync_folder(from.0)
    }

    /// Removes a file without a sync: it may reappear after a loss of power.
    pub(crate) fn remove(&self, folder: &str, name: &str) -> io::Result<()> {
        let path = self.path(folder, name);
        #[cfg(test)]
        self.faults.remove(&path)?;
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Renames a damaged file, for a person to inspect.
    pub(crate) fn set_aside(&self, folder: &str, name: &str) -> io::Result<PathBuf> {
        let aside = self.path(folder, &format!("{name}{DAMAGED}"));
        fs::rename(self.path(folder, name), &aside)?;
        self.sync_folder(folder)?;
        Ok(aside)
    }

    pub(crate) fn path(&self, folder: &str, name: &str) -> PathBuf {
        self.root.join(folder).join(name)
    }

    fn write_unfinished(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        #[cfg(test)]
        self.faults.create(path, bytes.len())?;
        let mut file = private().truncate(true).open(path)?;
        file.write_all(bytes)?;
        self.sync_file(&file, path)
    }

    fn sync_file(&self, file: &File, _path: &Path) -> io::Result<()> {
        #[cfg(test)]
        self.faults.sync(_path)?;
        file.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        #[cfg(test)]
        self.faults.rename(from, to)?;
        fs::rename(from, to)
    }

    fn sync_folder(&self, folder: &str) -> io::Result<()> {
        let path = self.root.join(folder);
        #[cfg(test)]
        self.faults.sync_folder(&path)?;
        sync_folder(&path)
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Options for writing a file that only this user may read.
pub(crate) fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create(true).mode(0o600);
    options
}
