//! Data folder: its lock, its file names, and the setup of database connections.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use rustix::fs::{Advice, FlockOperation, fadvise, flock};

use super::OpenError;
use super::schema::LoadError;

/// Wait of a statement for `sedge dead-letters`, which holds the lock for one short transaction.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// A commit writes whole pages, so small pages cost fewer bytes per record. Pages of 1024 bytes save little more and cost
/// more CPU under load, as SQLite writes page by page. `benches/store.rs` measures both.
pub(super) const PAGE_BYTES: u64 = 2048;

/// A longer write-ahead log is truncated when it starts over. A shorter one keeps its length: overwriting a file wears the
/// flash less than growing it again.
const WAL_KEPT_BYTES: u64 = 16 << 20;

/// Permissions of users that are neither owner nor in the group.
const OTHERS: u32 = 0o007;

/// Creates the data folder if it does not exist, and takes it from others: it holds messages, state and a key.
///
/// The group keeps what it was given, for backups.
pub fn prepare(dir: &Path) -> Result<(), OpenError> {
    let unusable = |source| OpenError::Unusable { path: dir.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(unusable)?;
    let mut permissions = std::fs::metadata(dir).map_err(unusable)?.permissions();
    let mode = permissions.mode() & 0o7777;
    if mode & OTHERS == 0 {
        return Ok(());
    }
    permissions.set_mode(mode & !OTHERS);
    std::fs::set_permissions(dir, permissions).map_err(|source| match source.kind() {
        io::ErrorKind::ReadOnlyFilesystem => unusable(source),
        _ => OpenError::Exposed { path: dir.to_owned(), mode, source },
    })?;
    tracing::warn!(path = %dir.display(), mode = format!("{mode:o}"), "other users could read the data folder; they no longer can");
    Ok(())
}

/// Data folder, locked by this process until dropped.
#[derive(Debug)]
pub(super) struct DataFolder {
    dir: PathBuf,
    /// Holds the `flock`, which the kernel releases however the process ends.
    _lock: File,
}

impl DataFolder {
    pub(super) fn lock(dir: &Path) -> Result<Self, OpenError> {
        prepare(dir)?;
        let path = dir.join("lock");
        let mut lock = private_file()
            .read(true)
            .open(&path)
            .map_err(|source| OpenError::Unusable { path: path.clone(), source })?;
        if let Err(error) = flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            if error != rustix::io::Errno::WOULDBLOCK {
                return Err(OpenError::Unusable { path, source: error.into() });
            }
            let mut pid = String::new();
            let pid = lock.read_to_string(&mut pid).ok().and_then(|_| pid.trim().parse().ok());
            return Err(OpenError::Held { dir: dir.to_owned(), pid });
        }
        // The pid serves only the message above, so a full disk is not an error here.
        let _ = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
        Ok(Self { dir: dir.to_owned(), _lock: lock })
    }

    pub(super) fn database(&self) -> PathBuf {
        self.dir.join(DATABASE)
    }

    /// Drops the database from the page cache, whose memory may be what is wrong with it. Best effort.
    pub(super) fn forget_cached(&self) {
        for path in [self.database(), sibling(&self.database(), "-wal")] {
            if let Ok(file) = File::open(path) {
                let _ = fadvise(&file, 0, None, Advice::DontNeed);
            }
        }
    }

    /// Makes renames in the folder durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }

    /// Checks that the disk accepts writes. Cheaper than opening the database, which reads all of it.
    pub(super) fn probe(&self) -> Result<(), OpenError> {
        let path = self.dir.join("probe");
        let write = || {
            let mut file = private_file().truncate(true).open(&path)?;
            file.write_all(&[0x5e; 64 << 10])?;
            file.sync_all()
        };
        let result = write();
        let _ = std::fs::remove_file(&path);
        result.map_err(|source| OpenError::Unusable { path, source })
    }
}

pub(super) const DATABASE: &str = "sedge.db";

/// Path with a suffix to its file name.
pub(super) fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Path that does not exist, made of this one.
pub(super) fn unused(mut path: PathBuf) -> PathBuf {
    while path.exists() {
        path = sibling(&path, "-again");
    }
    path
}

/// Options to write a file of this user alone, which is created if necessary.
pub(super) fn private_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(0o600);
    options
}

/// Opens a database for writing. The file is created first so that it is never readable by others; SQLite gives its
/// companions (`-wal`, `-shm`) the same mode. Closing the connection changes nothing on the disk: the database may prove
/// to be damaged.
pub(super) fn connect(path: &Path) -> Result<Connection, LoadError> {
    private_file().open(path).map_err(LoadError::Io)?;
    let connection = set_up(path)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    Ok(connection)
}

/// Opens an existing database.
///
/// - `synchronous = FULL`: in WAL mode, `NORMAL` may lose the last commits in a power cut.
/// - No automatic checkpoint: it would run within a commit, see [`super::checkpoint`].
/// - No memory map: a read error would be a SIGBUS, and 32-bit boards lack the address space.
pub(super) fn set_up(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "page_size", PAGE_BYTES)?;
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update_and_check(None, "wal_autocheckpoint", 0, |_| Ok(()))?;
    connection.pragma_update_and_check(None, "journal_size_limit", WAL_KEPT_BYTES, |_| Ok(()))?;
    connection.pragma_update(None, "cache_size", -2048)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "foreign_keys", false)?;
    connection.set_prepared_statement_cache_capacity(48);
    Ok(connection)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_folder_that_others_may_read_is_taken_from_them() {
        let parent = tempfile::tempdir().unwrap();
        let mode = |dir: &Path| std::fs::metadata(dir).unwrap().permissions().mode() & 0o7777;
        for (before, after) in [(0o755, 0o750), (0o777, 0o770), (0o701, 0o700), (0o750, 0o750), (0o700, 0o700)] {
            let dir = parent.path().join(format!("{before:o}"));
            std::fs::create_dir(&dir).unwrap();
            std::fs::set_permissions(&dir, PermissionsExt::from_mode(before)).unwrap();
            drop(DataFolder::lock(&dir).unwrap());
            assert_eq!(mode(&dir), after, "{before:o}");
        }
        let new = parent.path().join("a/b");
        drop(DataFolder::lock(&new).unwrap());
        assert_eq!(mode(&new), 0o700);
    }
}
