//! The tables, and how an older file is brought up to date.
//!
//! ```text
//! alert, data, local   one row a segment: the records of one stream that one transaction added. Its key is the id of
//!                      the last of them, so that "everything up to this id" is a range of keys
//! progress             watermarks, and the fingerprints of the last deliveries (see window.rs)
//! message_id           hashes of the publishers' message ids
//! scope, state         the functions' keys; a scope is interned to a number
//! dead_letter, parked  numbers are never used twice: people write them down, and another process adds rows
//! gap                  lost records that upstream does not know about yet
//! meta                 store_id, and small settings of the daemon
//! ```
//!
//! There is no secondary index but the one that interns scopes: a second b-tree doubles the bytes written.

use rusqlite::{Connection, ErrorCode};

use super::OpenError;

/// Kept in `user_version`. Files of a higher number are refused, lower ones rolled forward.
pub(super) const VERSION: u32 = 1 + STEPS.len() as u32;

/// What makes layout n + 2 of layout n + 1. A step stays as it is for good; [`CREATE`] is what all of them come to.
const STEPS: [&str; 0] = [];

const CREATE: &str = "
CREATE TABLE alert (id INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT;
CREATE TABLE data (id INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT;
CREATE TABLE local (id INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT;
CREATE TABLE progress (id INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT;
CREATE TABLE message_id (id INTEGER PRIMARY KEY, at_secs INTEGER NOT NULL, body BLOB NOT NULL) STRICT;
CREATE TABLE scope (
    id INTEGER PRIMARY KEY, function TEXT NOT NULL, topic TEXT NOT NULL, UNIQUE (function, topic)
) STRICT;
CREATE TABLE state (
    scope INTEGER NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL, PRIMARY KEY (scope, key)
) STRICT, WITHOUT ROWID;
CREATE TABLE dead_letter (
    id INTEGER PRIMARY KEY AUTOINCREMENT, at_ms INTEGER NOT NULL, function TEXT NOT NULL, reason TEXT NOT NULL,
    body BLOB NOT NULL
) STRICT;
CREATE TABLE parked (id INTEGER PRIMARY KEY AUTOINCREMENT, body BLOB NOT NULL) STRICT;
CREATE TABLE gap (
    id INTEGER PRIMARY KEY, stream INTEGER NOT NULL, reason TEXT NOT NULL, first_id INTEGER NOT NULL,
    last_id INTEGER NOT NULL, records INTEGER NOT NULL, bytes INTEGER NOT NULL, first_at_ms INTEGER NOT NULL,
    last_at_ms INTEGER NOT NULL
) STRICT;
CREATE TABLE meta (key TEXT NOT NULL PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO meta VALUES ('store_id', CAST(lower(hex(randomblob(8))) AS BLOB));
";

/// Every table, its columns, and the first column of its key, by which [`super::quarantine`] walks it.
pub(super) const TABLES: [(&str, &str, &str); 11] = [
    ("alert", "id, body", "id"),
    ("data", "id, body", "id"),
    ("local", "id, body", "id"),
    ("progress", "id, body", "id"),
    ("message_id", "id, at_secs, body", "id"),
    ("scope", "id, function, topic", "id"),
    ("state", "scope, key, value", "scope"),
    ("dead_letter", "id, at_ms, function, reason, body", "id"),
    ("parked", "id, body", "id"),
    ("gap", "id, stream, reason, first_id, last_id, records, bytes, first_at_ms, last_at_ms", "id"),
    ("meta", "key, value", "key"),
];

/// Why a file cannot be used as it is.
#[derive(Debug)]
pub(super) enum OpenFailure {
    /// Not a database, or damaged: to be moved_aside.
    Damaged(String),
    Newer(u32),
    Failed(rusqlite::Error),
}

impl From<rusqlite::Error> for OpenFailure {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Damaged(error.to_string()),
            _ => Self::Failed(error),
        }
    }
}

impl From<OpenError> for OpenFailure {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Database { source, .. } => source.into(),
            OpenError::Unusable { source, .. } => Self::Failed(rusqlite::Error::ToSqlConversionFailure(source.into())),
            OpenError::Newer { found, .. } => Self::Newer(found),
            OpenError::Held { .. } => unreachable!("only a folder is held"),
        }
    }
}

/// Checks the whole file and brings its tables up to date.
pub(super) fn prepare(connection: &mut Connection) -> Result<(), OpenFailure> {
    let verdict: String = connection.query_row("PRAGMA quick_check(1)", (), |row| row.get(0))?;
    if verdict != "ok" {
        return Err(OpenFailure::Damaged(verdict));
    }
    create(connection)
}

pub(super) fn create(connection: &mut Connection) -> Result<(), OpenFailure> {
    bring_up_to_date(connection, CREATE, &STEPS)
}

/// All of it or nothing: after a power cut the file has a layout that some version of Sedge knows.
fn bring_up_to_date(connection: &mut Connection, create: &str, steps: &[&str]) -> Result<(), OpenFailure> {
    let newest = 1 + steps.len();
    let found: u32 = connection.query_row("PRAGMA user_version", (), |row| row.get(0))?;
    let missing = match found as usize {
        0 => &[create],
        layout if layout <= newest => &steps[layout - 1..],
        _ => return Err(OpenFailure::Newer(found)),
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
        tracing::info!(from = found, to = newest, "the database has the layout of this version now");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What later versions may need: another column, and rows made over.
    const STEPS: [&str; 2] = [
        "ALTER TABLE gap ADD COLUMN note TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE state ADD COLUMN size INTEGER; UPDATE state SET size = length(value);",
    ];

    fn layout(connection: &Connection) -> u32 {
        connection.query_row("PRAGMA user_version", (), |row| row.get(0)).unwrap()
    }

    fn file_of_layout_1() -> Connection {
        let mut connection = Connection::open_in_memory().unwrap();
        bring_up_to_date(&mut connection, CREATE, &[]).unwrap();
        connection.execute("INSERT INTO state VALUES (1, 'count', x'0102')", ()).unwrap();
        connection
    }

    #[test]
    fn an_older_file_is_rolled_forward_with_what_is_in_it() {
        let mut connection = file_of_layout_1();
        let id = |connection: &Connection| -> Vec<u8> {
            connection.query_row("SELECT value FROM meta WHERE key = 'store_id'", (), |row| row.get(0)).unwrap()
        };
        let before = id(&connection);
        bring_up_to_date(&mut connection, CREATE, &STEPS).unwrap();
        assert_eq!((layout(&connection), id(&connection)), (3, before));
        let size: u32 =
            connection.query_row("SELECT size FROM state WHERE key = 'count'", (), |row| row.get(0)).unwrap();
        assert_eq!(size, 2);
        bring_up_to_date(&mut connection, CREATE, &STEPS).unwrap();
        assert_eq!(layout(&connection), 3, "a second time there is nothing to do");
    }

    #[test]
    fn only_the_steps_that_a_file_lacks_are_made() {
        let mut connection = file_of_layout_1();
        bring_up_to_date(&mut connection, CREATE, &STEPS[..1]).unwrap();
        assert_eq!(layout(&connection), 2);
        // Adding the first column again would fail.
        bring_up_to_date(&mut connection, CREATE, &STEPS).unwrap();
        assert_eq!(layout(&connection), 3);
    }

    #[test]
    fn a_step_that_fails_leaves_the_file_as_it_was() {
        let mut connection = file_of_layout_1();
        let steps = [STEPS[0], "UPDATE no_such_table SET size = 0"];
        assert!(matches!(bring_up_to_date(&mut connection, CREATE, &steps), Err(OpenFailure::Failed(_))));
        assert_eq!(layout(&connection), 1);
        bring_up_to_date(&mut connection, CREATE, &STEPS).unwrap();
        assert_eq!(layout(&connection), 3);
    }

    #[test]
    fn a_file_of_a_newer_sedge_is_refused() {
        let mut connection = file_of_layout_1();
        bring_up_to_date(&mut connection, CREATE, &STEPS).unwrap();
        assert!(matches!(bring_up_to_date(&mut connection, CREATE, &STEPS[..1]), Err(OpenFailure::Newer(3))));
    }
}
