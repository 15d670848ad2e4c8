//! Connections to a database that a daemon may be using.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::dead_letters::DeadLettersError;
use super::{folder, schema};

/// Opens the database of a data folder beside its daemon.
pub(super) fn open(data_dir: &Path) -> Result<Connection, DeadLettersError> {
    let path = data_dir.join(folder::DATABASE);
    if !path.is_file() {
        return Err(DeadLettersError::Missing(path));
    }
    let connection = checked(folder::set_up(&path)?, path)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    Ok(connection)
}

/// [`open`] for reading alone.
pub(super) fn open_read_only(data_dir: &Path) -> Result<Connection, DeadLettersError> {
    let path = data_dir.join(folder::DATABASE);
    if !path.is_file() {
        return Err(DeadLettersError::Missing(path));
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    checked(Connection::open_with_flags(&path, flags)?, path)
}

/// Waits for the lock if it must, and has the layout of this version.
fn checked(mut connection: Connection, path: PathBuf) -> Result<Connection, DeadLettersError> {
    // A busy daemon holds the lock most of the time, and SQLite does not queue: retry often, for about 10 s.
    connection.busy_handler(Some(|tries| {
        std::thread::sleep(Duration::from_millis(1));
        tries < 10_000
    }))?;
    let found = connection.query_row("PRAGMA user_version", (), |row| row.get(0))?;
    if found != schema::VERSION {
        return Err(DeadLettersError::Version { path, found });
    }
    Ok(connection)
}
