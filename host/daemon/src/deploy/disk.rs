//! The deploy folder. Its files are whole or absent after a loss of power at any moment.
//!
//! ```text
//! functions/<name>.record     state of a function (see `record`)
//! settings/<name>.record      accepted orders of settings
//! keys.record                 changes of the trusted keys
//! staging/<name>.<digest>     chunks of a module; any of them may be missing or wrong
//! modules/<digest>.wasm       whole modules
//! ```
//!
//! A name appears in `functions` and `modules` only by renaming a synced file. It counts only after the folder was synced.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

#[cfg(test)]
use super::testing::faults::Faults;
use sedge_core::deploy::interface::StoredFile;
use sedge_core::manifest;
use sedge_core::message::Digest;
use sedge_sandbox::cache::private;

pub(crate) const FUNCTIONS: &str = "functions";
/// Accepted orders of settings.
pub(crate) const SETTINGS: &str = "settings";
pub(crate) const STAGING: &str = "staging";
pub(crate) const MODULES: &str = "modules";

const SUFFIX: &str = ".record";
const KEYS: &str = "keys.record";
const UNFINISHED: &str = ".tmp";
const DAMAGED: &str = ".damaged";

#[derive(Debug)]
pub(crate) struct Disk {
    root: PathBuf,
    #[cfg(test)]
    pub(crate) faults: Faults,
}

impl Disk {
    pub(crate) fn open(root: PathBuf) -> io::Result<Self> {
        for folder in [FUNCTIONS, SETTINGS, STAGING, MODULES] {
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
        for folder in ["", FUNCTIONS, SETTINGS] {
            for name in disk.list(folder)?.iter().filter(|name| name.ends_with(UNFINISHED)) {
                disk.remove_path(&disk.root.join(folder).join(name))?;
            }
        }
        Ok(disk)
    }

    pub(crate) fn read(&self, file: &StoredFile) -> io::Result<Bytes> {
        fs::read(self.path(file)).map(Bytes::from)
    }

    pub(crate) fn exists(&self, file: &StoredFile) -> bool {
        self.path(file).is_file()
    }

    /// Names of the functions with a record in this folder, sorted.
    pub(crate) fn recorded(&self, folder: &str) -> io::Result<Vec<Arc<str>>> {
        let files = self.list(folder)?;
        let names = files.iter().filter_map(|file| file.strip_suffix(SUFFIX)).filter(|name| manifest::is_name(name));
        Ok(names.map(Arc::from).collect())
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
    pub(crate) fn replace(&self, file: &StoredFile, bytes: &[u8]) -> io::Result<()> {
        let (folder, name) = place(file);
        let unfinished = self.root.join(folder).join(format!("{name}{UNFINISHED}"));
        let written = self.write_unfinished(&unfinished, bytes);
        if written.is_err() {
            // On a full disk it would occupy the room that the next attempt needs.
            let _ = fs::remove_file(&unfinished);
        }
        written?;
        self.rename(&unfinished, &self.path(file))?;
        self.sync_folder(folder)
    }

    /// Writes a chunk without a sync: it may be lost.
    pub(crate) fn write_at(&self, file: &StoredFile, bytes: &[u8], offset: u64) -> io::Result<()> {
        let path = self.path(file);
        #[cfg(test)]
        self.faults.write_at(&path, bytes.len(), offset)?;
        private().truncate(false).open(&path)?.write_all_at(bytes, offset)
    }

    /// Syncs a module that was written in chunks and moves it to its final name.
    pub(crate) fn finish(&self, function: &Arc<str>, digest: Digest) -> io::Result<()> {
        let (source, target) = (StoredFile::Staging(Arc::clone(function), digest), StoredFile::Module(digest));
        let (source, target) = (self.path(&source), self.path(&target));
        self.sync_file(&File::open(&source)?, &source)?;
        self.rename(&source, &target)?;
        self.sync_folder(MODULES)?;
        self.sync_folder(STAGING)
    }

    /// Removes a file without a sync: it may reappear after a loss of power.
    pub(crate) fn remove(&self, file: &StoredFile) -> io::Result<()> {
        self.remove_path(&self.path(file))
    }

    /// Removes all other modules and chunks.
    pub(crate) fn retain(&self, modules: &BTreeSet<Digest>, staging: &BTreeSet<(Arc<str>, Digest)>) -> io::Result<()> {
        let modules = self.retain_in(MODULES, &modules.iter().map(module_name).collect());
        let staging = staging.iter().map(|(function, digest)| staging_name(function, digest)).collect();
        modules.and(self.retain_in(STAGING, &staging))
    }

    fn retain_in(&self, folder: &str, needed: &BTreeSet<String>) -> io::Result<()> {
        let unused = self.list(folder)?.into_iter().filter(|name| !needed.contains(name));
        unused.into_iter().try_for_each(|name| self.remove_path(&self.root.join(folder).join(name)))
    }

    fn remove_path(&self, path: &Path) -> io::Result<()> {
        #[cfg(test)]
        self.faults.remove(path)?;
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Renames a damaged file, for a person to inspect.
    pub(crate) fn set_aside(&self, file: &StoredFile) -> io::Result<()> {
        let (folder, name) = place(file);
        let moved_to = self.root.join(folder).join(format!("{name}{DAMAGED}"));
        fs::rename(self.path(file), &moved_to)?;
        self.sync_folder(folder)?;
        tracing::error!(moved_to = %moved_to.display(), "a damaged file of the deploy folder was set aside");
        Ok(())
    }

    pub(crate) fn path(&self, file: &StoredFile) -> PathBuf {
        let (folder, name) = place(file);
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

/// Folder and name of a file.
fn place(file: &StoredFile) -> (&'static str, String) {
    match file {
        StoredFile::Keys => ("", KEYS.into()),
        StoredFile::Record(function) => (FUNCTIONS, format!("{function}{SUFFIX}")),
        StoredFile::Settings(function) => (SETTINGS, format!("{function}{SUFFIX}")),
        StoredFile::Staging(function, digest) => (STAGING, staging_name(function, digest)),
        StoredFile::Module(digest) => (MODULES, module_name(digest)),
    }
}

/// A function's name contains no dot.
fn staging_name(function: &str, digest: &Digest) -> String {
    format!("{function}.{digest}")
}

fn module_name(digest: &Digest) -> String {
    format!("{digest}.wasm")
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boards_of_every_version_find_their_files() {
        let digest = Digest([0xab; 32]);
        let hex = "ab".repeat(32);
        for (file, path) in [
            (StoredFile::Keys, "keys.record".to_owned()),
            (StoredFile::Record("warm".into()), "functions/warm.record".to_owned()),
            (StoredFile::Staging("warm".into(), digest), format!("staging/warm.{hex}")),
            (StoredFile::Module(digest), format!("modules/{hex}.wasm")),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let disk = Disk::open(dir.path().to_owned()).unwrap();
            disk.replace(&file, b"content").unwrap();
            assert_eq!(fs::read(dir.path().join(path)).unwrap(), b"content");
            assert!(disk.exists(&file));
            disk.remove(&file).unwrap();
            assert!(!disk.exists(&file));
        }
    }

    #[test]
    fn chunks_become_a_module_and_other_files_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path().join("deploy")).unwrap();
        let (warm, digest, other) = (Arc::from("warm"), Digest([1; 32]), Digest([2; 32]));
        let staging = |digest| StoredFile::Staging(Arc::clone(&warm), digest);
        for (offset, chunk) in [(3, b"def"), (0, b"abc")] {
            disk.write_at(&staging(digest), chunk, offset).unwrap();
            disk.write_at(&staging(other), chunk, offset).unwrap();
        }
        disk.finish(&warm, digest).unwrap();
        assert!(!disk.exists(&staging(digest)));
        assert_eq!(disk.read(&StoredFile::Module(digest)).unwrap(), "abcdef");
        disk.retain(&[digest].into(), &[(Arc::clone(&warm), other)].into()).unwrap();
        assert!(disk.exists(&StoredFile::Module(digest)) && disk.exists(&staging(other)));
        disk.retain(&[other].into(), &[(warm, digest)].into()).unwrap();
        assert!(disk.list(MODULES).unwrap().is_empty() && disk.list(STAGING).unwrap().is_empty());
    }

    #[test]
    fn a_full_disk_loses_no_stored_chunk() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path().join("deploy")).unwrap();
        let staged = StoredFile::Staging("warm".into(), Digest([1; 32]));
        disk.faults.set_room(Some(1500));
        disk.write_at(&staged, &[1; 1024], 0).unwrap();
        let error = disk.write_at(&staged, &[2; 1024], 1024).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        disk.faults.set_room(None);
        disk.write_at(&staged, &[2; 1024], 1024).unwrap();
        assert_eq!(disk.read(&staged).unwrap(), [[1; 1024], [2; 1024]].concat());
    }
}
