//! Database schema and its migrations.
//!
//! ```text
//! alert, data, local   one row per segment: the records of one stream that one transaction added. Its key is the id
//!                      of the last of them, so that "everything up to this id" is a range of keys
//! sink                 the same for the streams of further sinks, whose number is the key's upper part (see outbox.rs)
//! progress             watermarks, and the fingerprints of the last deliveries (see window.rs)
//! message_id           hashes of publishers' message ids
//! response             answers to requests over HTTP, for repeats (see responses.rs)
//! scope, state         state of functions; a scope is interned to a number
//! dead_letter, parked  ids are never reused: people note them down, and another process adds rows
//! wake                 wakes of functions that wait; the board gives their ids
//! heard                topics whose silence is watched; the board gives their ids
//! schedule             which due times of schedules have run
//! history              results and alerts of the last days, in segments (see history.rs)
//! gap                  lost records not reported upstream yet
//! meta                 store_id, and small values of the daemon
//! ```
//!
//! The only secondary index interns scopes: a second b-tree doubles the bytes written.

use std::io;
use std::path::Path;

use rusqlite::{Connection, ErrorCode, ffi};

use super::OpenError;

/// Layout of this version, kept in `user_version`. Newer files are refused, older ones migrated.
pub const VERSION: u32 = 1 + STEPS.len() as u32;

/// Element n migrates layout n + 1 to n + 2. A released step never changes; [`CREATE`] makes the newest layout.
const STEPS: [&str; 9] = [
    // Sums of state, and of rows in their bodies (see row.rs). Ages are no longer those of the wall clock.
    "ALTER TABLE state ADD COLUMN sum INTEGER; DELETE FROM meta WHERE key = 'ageless';",
    // When state was last written, in hours of running time.
    "ALTER TABLE scope ADD COLUMN used INTEGER NOT NULL DEFAULT 0;",
    "CREATE TABLE IF NOT EXISTS wake (id INTEGER PRIMARY KEY, function TEXT NOT NULL, body BLOB NOT NULL) STRICT;",
    // Answers to requests over HTTP.
    "CREATE TABLE response (
        id INTEGER PRIMARY KEY, hash INTEGER NOT NULL, hour INTEGER NOT NULL, body BLOB NOT NULL
    ) STRICT;",
    "CREATE TABLE IF NOT EXISTS heard (
        id INTEGER PRIMARY KEY, turn INTEGER NOT NULL, function TEXT NOT NULL, body BLOB NOT NULL
    ) STRICT;",
    // Sinks with names: their records, and their watermarks beside those of the first.
    "CREATE TABLE sink (id INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT; ALTER TABLE progress ADD COLUMN sinks BLOB;",
    "CREATE TABLE IF NOT EXISTS schedule (
        function TEXT NOT NULL, name TEXT NOT NULL, body BLOB NOT NULL, PRIMARY KEY (function, name)
    ) STRICT, WITHOUT ROWID;",
    // Rows with traces, which earlier versions cannot read (see row.rs).
    "",
    // Results and alerts of the last days.
    "CREATE TABLE IF NOT EXISTS history (
        id INTEGER PRIMARY KEY, kind INTEGER NOT NULL, hour INTEGER NOT NULL, from_ms INTEGER NOT NULL,
        to_ms INTEGER NOT NULL, body BLOB NOT NULL
    ) STRICT;",
];

pub(super) const CREATE: &str = "
CREATE TABLE alert (id INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT;
CREATE TABLE data (id INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT;
CREATE TABLE local (id INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT;
CREATE TABLE sink (id INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT;
CREATE TABLE progress (id INTEGER PRIMARY KEY, body BLOB NOT NULL, sinks BLOB) STRICT;
CREATE TABLE message_id (id INTEGER PRIMARY KEY, at_secs INTEGER NOT NULL, body BLOB NOT NULL) STRICT;
CREATE TABLE response (
    id INTEGER PRIMARY KEY, hash INTEGER NOT NULL, hour INTEGER NOT NULL, body BLOB NOT NULL
) STRICT;
CREATE TABLE scope (
    id INTEGER PRIMARY KEY, function TEXT NOT NULL, topic TEXT NOT NULL, used INTEGER NOT NULL DEFAULT 0,
    UNIQUE (function, topic)
) STRICT;
CREATE TABLE state (
    scope INTEGER NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL, sum INTEGER, PRIMARY KEY (scope, key)
) STRICT, WITHOUT ROWID;
CREATE TABLE dead_letter (
    id INTEGER PRIMARY KEY AUTOINCREMENT, at_ms INTEGER NOT NULL, function TEXT NOT NULL, reason TEXT NOT NULL,
    body BLOB NOT NULL
) STRICT;
CREATE TABLE parked (id INTEGER PRIMARY KEY AUTOINCREMENT, body BLOB NOT NULL) STRICT;
CREATE TABLE wake (id INTEGER PRIMARY KEY, function TEXT NOT NULL, body BLOB NOT NULL) STRICT;
CREATE TABLE heard (
    id INTEGER PRIMARY KEY, turn INTEGER NOT NULL, function TEXT NOT NULL, body BLOB NOT NULL
) STRICT;
CREATE TABLE schedule (
    function TEXT NOT NULL, name TEXT NOT NULL, body BLOB NOT NULL, PRIMARY KEY (function, name)
) STRICT, WITHOUT ROWID;
CREATE TABLE history (
    id INTEGER PRIMARY KEY, kind INTEGER NOT NULL, hour INTEGER NOT NULL, from_ms INTEGER NOT NULL,
    to_ms INTEGER NOT NULL, body BLOB NOT NULL
) STRICT;
CREATE TABLE gap (
    id INTEGER PRIMARY KEY, stream INTEGER NOT NULL, reason TEXT NOT NULL, first_id INTEGER NOT NULL,
    last_id INTEGER NOT NULL, records INTEGER NOT NULL, bytes INTEGER NOT NULL, first_at_ms INTEGER NOT NULL,
    last_at_ms INTEGER NOT NULL
) STRICT;
CREATE TABLE meta (key TEXT NOT NULL PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO meta VALUES ('store_id', CAST(lower(hex(randomblob(8))) AS BLOB));
";

/// Every table, its columns, and the first column of its key, which orders its [`super::salvage`].
pub(super) const TABLES: [(&str, &str, &str); 17] = [
    ("alert", "id, body", "id"),
    ("data", "id, body", "id"),
    ("local", "id, body", "id"),
    ("sink", "id, body", "id"),
    ("progress", "id, body, sinks", "id"),
    ("message_id", "id, at_secs, body", "id"),
    ("response", "id, hash, hour, body", "id"),
    ("scope", "id, function, topic, used", "id"),
    ("state", "scope, key, value, sum", "scope"),
    ("dead_letter", "id, at_ms, function, reason, body", "id"),
    ("parked", "id, body", "id"),
    ("wake", "id, function, body", "id"),
    ("heard", "id, turn, function, body", "id"),
    ("schedule", "function, name, body", "function"),
    ("history", "id, kind, hour, from_ms, to_ms, body", "id"),
    ("gap", "id, stream, reason, first_id, last_id, records, bytes, first_at_ms, last_at_ms", "id"),
    ("meta", "key, value", "key"),
];

/// Why a database cannot be loaded.
#[derive(Debug)]
pub(super) enum LoadError {
    /// Not a database, or damaged: to be salvaged.
    Damaged(String),
    Newer(u32),
    Io(io::Error),
    Failed(rusqlite::Error),
}

impl From<rusqlite::Error> for LoadError {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::Error::{FromSqlConversionFailure, IntegralValueOutOfRange, InvalidColumnType, Utf8Error};
        match (error.sqlite_error_code(), &error) {
            (Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase), _)
            | (
                None,
                FromSqlConversionFailure(..) | IntegralValueOutOfRange(..) | InvalidColumnType(..) | Utf8Error(..),
            ) => Self::Damaged(error.to_string()),
            _ => Self::Failed(error),
        }
    }
}

impl LoadError {
    pub(super) fn at(self, path: &Path) -> OpenError {
        let path = path.to_owned();
        match self {
            Self::Newer(found) => OpenError::Newer { path, found },
            Self::Io(source) => OpenError::Unusable { path, source },
            Self::Failed(source) => OpenError::Database { path, source },
            Self::Damaged(reason) => {
                let damaged = ffi::Error::new(ffi::SQLITE_CORRUPT);
                OpenError::Database { path, source: rusqlite::Error::SqliteFailure(damaged, Some(reason)) }
            }
        }
    }
}

/// Checks the whole file.
pub(super) fn check(connection: &Connection) -> Result<(), LoadError> {
    let verdict: String = connection.query_row("PRAGMA quick_check(1)", (), |row| row.get(0))?;
    match failed_read(&verdict) {
        Some(code) => Err(LoadError::Failed(rusqlite::Error::SqliteFailure(ffi::Error::new(code), Some(verdict)))),
        None if verdict == "ok" => Ok(()),
        None => Err(LoadError::Damaged(verdict)),
    }
}

/// Code of a failed read, which SQLite reports as a line of its verdict: "unable to get the page. error code=266", or
/// without a code "failed to get page 7" and "Failed to read ptrmap key=7".
fn failed_read(verdict: &str) -> Option<i32> {
    let code = verdict.split_once("error code=").map(|(_, code)| code.trim_end().parse().unwrap_or(ffi::SQLITE_IOERR));
    match code {
        Some(code) => (![ffi::SQLITE_CORRUPT, ffi::SQLITE_NOTADB].contains(&(code & 0xff))).then_some(code),
        None => {
            (verdict.contains("ailed to get page") || verdict.contains("ailed to read")).then_some(ffi::SQLITE_IOERR)
        }
    }
}

/// Migrates to the newest layout.
pub(super) fn create(connection: &mut Connection) -> Result<(), LoadError> {
    migrate(connection, CREATE, &STEPS)
}

/// Leaves out ids of rows that may have been lost. People note them down.
pub(super) fn skip_row_ids(connection: &Connection, count: u64) -> rusqlite::Result<()> {
    for table in ["dead_letter", "parked"] {
        let known = connection.execute("UPDATE sqlite_sequence SET seq = seq + ?1 WHERE name = ?2", (count, table))?;
        if known == 0 {
            connection.execute("INSERT INTO sqlite_sequence VALUES (?1, ?2)", (table, count))?;
        }
    }
    Ok(())
}

/// Runs in one transaction: after a power cut the file has the layout of some version.
fn migrate(connection: &mut Connection, create: &str, steps: &[&str]) -> Result<(), LoadError> {
    let newest = 1 + steps.len();
    let found: u32 = connection.query_row("PRAGMA user_version", (), |row| row.get(0))?;
    let missing = match found as usize {
        0 => &[create],
        layout if layout <= newest => &steps[layout - 1..],
        _ => return Err(LoadError::Newer(found)),
    };
    if missing.is_empty() {
        return Ok(());
    }
    let transaction = connection.transaction()?;
    for step in missing {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "user_version", newest as u32)?;
    transaction.commit()?;
    if found > 0 {
        tracing::info!(from = found, to = newest, "migrated the database to the layout of this version");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Examples of later migrations: a new column, and rewritten rows.
    const STEPS: [&str; 2] = [
        "ALTER TABLE gap ADD COLUMN note TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE state ADD COLUMN size INTEGER; UPDATE state SET size = length(value);",
    ];

    fn layout(connection: &Connection) -> u32 {
        connection.query_row("PRAGMA user_version", (), |row| row.get(0)).unwrap()
    }

    fn file_of_layout_1() -> Connection {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection, CREATE, &[]).unwrap();
        connection.execute("INSERT INTO state VALUES (1, 'count', x'0102', NULL)", ()).unwrap();
        connection
    }

    #[test]
    fn an_older_file_is_migrated_with_its_rows() {
        let mut connection = file_of_layout_1();
        let id = |connection: &Connection| -> Vec<u8> {
            connection.query_row("SELECT value FROM meta WHERE key = 'store_id'", (), |row| row.get(0)).unwrap()
        };
        let before = id(&connection);
        migrate(&mut connection, CREATE, &STEPS).unwrap();
        assert_eq!((layout(&connection), id(&connection)), (3, before));
        let size: u32 =
            connection.query_row("SELECT size FROM state WHERE key = 'count'", (), |row| row.get(0)).unwrap();
        assert_eq!(size, 2);
        migrate(&mut connection, CREATE, &STEPS).unwrap();
        assert_eq!(layout(&connection), 3, "a second run changes nothing");
    }

    #[test]
    fn only_missing_steps_run() {
        let mut connection = file_of_layout_1();
        migrate(&mut connection, CREATE, &STEPS[..1]).unwrap();
        assert_eq!(layout(&connection), 2);
        // Adding the first column again would fail.
        migrate(&mut connection, CREATE, &STEPS).unwrap();
        assert_eq!(layout(&connection), 3);
    }

    #[test]
    fn a_failed_step_leaves_the_file_unchanged() {
        let mut connection = file_of_layout_1();
        let steps = [STEPS[0], "UPDATE no_such_table SET size = 0"];
        assert!(matches!(migrate(&mut connection, CREATE, &steps), Err(LoadError::Failed(_))));
        assert_eq!(layout(&connection), 1);
        migrate(&mut connection, CREATE, &STEPS).unwrap();
        assert_eq!(layout(&connection), 3);
    }

    #[test]
    fn a_file_of_a_newer_sedge_is_refused() {
        let mut connection = file_of_layout_1();
        migrate(&mut connection, CREATE, &STEPS).unwrap();
        assert!(matches!(migrate(&mut connection, CREATE, &STEPS[..1]), Err(LoadError::Newer(3))));
    }
}
