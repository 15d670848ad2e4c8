//! The folder of deploying, and how files in it are made to be whole or not there, whenever the power fails.
//!
//! ```text
//! functions/<name>.record     what is known of a function (see `record`)
//! keys.record                 changes of the trusted keys
//! staging/<name>.<digest>     chunks of a module; any of them may be missing or wrong
//! modules/<digest>.wasm       whole modules
//! ```
//!
//! A name appears in `functions` and `modules` only by a rename of a file that was synced, and counts only when the
//! folder was synced after.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

#[cfg(test)]
use super::faults::Faults;
use super::reason::Reason;

pub const FUNCTIONS: &str = "functions";
pub const STAGING: &str = "staging";
pub const MODULES: &str = "modules";

const UNFINISHED: &str = ".tmp";
const DAMAGED: &str = ".damaged";

#[derive(Debug)]
pub struct Disk {
    root: PathBuf,
    #[cfg(test)]
    pub faults: Faults,
}

impl Disk {
    pub fn open(root: PathBuf) -> io::Result<Self> {
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

    pub fn read(&self, folder: &str, name: &str) -> io::Result<Vec<u8>> {
        fs::read(self.path(folder, name))
    }

    pub fn exists(&self, folder: &str, name: &str) -> bool {
        self.path(folder, name).is_file()
    }

    /// The names of files, in order.
    pub fn list(&self, folder: &str) -> io::Result<Vec<String>> {
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

    /// Makes a file hold these bytes: all of them, or what it held before.
    pub fn replace(&self, folder: &str, name: &str, bytes: &[u8]) -> io::Result<()> {
        let path = self.path(folder, name);
        let unfinished = self.path(folder, &format!("{name}{UNFINISHED}"));
        let written = self.write_unfinished(&unfinished, bytes);
        if written.is_err() {
            // On a full disk it would take what the next attempt needs.
            let _ = fs::remove_file(&unfinished);
        }
        written?;
        self.rename(&unfinished, &path)?;
        self.sync_folder(folder)
    }

    /// Writes a chunk. Neither it nor its file are sure to be there later.
    pub fn write_at(&self, folder: &str, name: &str, bytes: &[u8], offset: u64) -> io::Result<()> {
        let path = self.path(folder, name);
        #[cfg(test)]
        self.faults.write_at(&path, bytes.len(), offset)?;
        private().truncate(false).open(&path)?.write_all_at(bytes, offset)
    }

    /// Makes what was written in chunks a whole file under another name.
    pub fn finish(&self, from: (&str, &str), to: (&str, &str)) -> io::Result<()> {
        let (source, target) = (self.path(from.0, from.1), self.path(to.0, to.1));
        self.sync_file(&File::open(&source)?, &source)?;
        self.rename(&source, &target)?;
        self.sync_folder(to.0)?;
        self.sync_folder(from.0)
    }

    /// It may be there again after a loss of power.
    pub fn remove(&self, folder: &str, name: &str) -> io::Result<()> {
        let path = self.path(folder, name);
        #[cfg(test)]
        self.faults.remove(&path)?;
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Out of the way, for a person to look at.
    pub fn set_aside(&self, folder: &str, name: &str) -> io::Result<PathBuf> {
        let aside = self.path(folder, &format!("{name}{DAMAGED}"));
        fs::rename(self.path(folder, name), &aside)?;
        self.sync_folder(folder)?;
        Ok(aside)
    }

    pub fn path(&self, folder: &str, name: &str) -> PathBuf {
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

/// What to call a failure of the disk.
pub fn reason(error: &io::Error) -> Reason {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Reason::DiskFull,
        _ => Reason::DiskFailed,
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create(true).mode(0o600);
    options
}
