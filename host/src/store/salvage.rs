//! What happens to a damaged database: it is moved aside, never deleted, and what can be read of it goes into a new one.
//!
//! ```text
//! sedge.db (damaged) ──readable rows──▶ sedge.db.salvage
//! sedge.db      ──rename──▶ sedge.db.corrupt-<unix time>      (with -wal and -shm)
//! sedge.db.salvage ──rename──▶ sedge.db
//! ```
//!
//! The old file leaves its place only when the new one is complete, so a power cut at any point starts this over or
//! finds it done.

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::config::DbConfig;
use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags, Statement};

use super::folder::DataFolder;
use super::schema::{self, TABLES};
use super::{MovedAside, OpenError};

/// How often the rows between two damaged pages are searched for more readable ones.
const PROBES: u32 = 32;

/// Finishes what a power cut interrupted. Called before the database is opened.
pub(super) fn resume(place: &DataFolder) -> Result<(), OpenError> {
    let (database, salvage) = (place.database(), sibling(&place.database(), ".salvage"));
    if !salvage.exists() {
        return Ok(());
    }
    // With the database gone, the copy is complete; otherwise it is half of one, of a file that is still there.
    let result = if database.exists() { fs::remove_file(&salvage) } else { fs::rename(&salvage, &database) };
    result.and_then(|()| place.sync()).map_err(|source| OpenError::Unusable { path: salvage, source })
}

pub(super) fn replace_damaged(place: &DataFolder, reason: String) -> Result<MovedAside, OpenError> {
    let database = place.database();
    let salvage = sibling(&database, ".salvage");
    let rows_saved = salvage_into(&salvage, &database).map_err(|error| OpenError::sqlite(&salvage, error))?;
    let moved = || -> io::Result<PathBuf> {
        let unix_time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let mut moved_to = sibling(&database, &format!(".corrupt-{unix_time}"));
        while moved_to.exists() {
            moved_to = sibling(&moved_to, "-again");
        }
        // The log first: beside a new database it would be taken for that one's.
        for companion in ["-wal", "-shm"] {
            match fs::rename(sibling(&database, companion), sibling(&moved_to, companion)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::rename(&database, &moved_to)?;
        place.sync()?;
        fs::rename(&salvage, &database)?;
        place.sync()?;
        Ok(moved_to)
    };
    let moved_to = moved().map_err(|source| OpenError::Unusable { path: database.clone(), source })?;
    tracing::error!(%reason, moved_to = %moved_to.display(), rows_saved, "the database was damaged and was moved aside");
    Ok(MovedAside { moved_to, rows_saved, reason })
}

fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Returns how many rows could be read. The new file has no log of its own, so that one rename makes it the database.
fn salvage_into(salvage: &Path, damaged: &Path) -> rusqlite::Result<u64> {
    let _ = fs::remove_file(salvage);
    // Made here so that it is for this user alone.
    create_private(salvage).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
    let mut new = Connection::open_with_flags(salvage, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    new.pragma_update(None, "page_size", super::folder::PAGE_BYTES)?;
    new.pragma_update(None, "synchronous", "FULL")?;
    if let Err(schema::OpenFailure::Failed(error)) = schema::create(&mut new) {
        return Err(error);
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let Ok(old) = Connection::open_with_flags(damaged, flags) else { return Ok(0) };
    // The old file is evidence: not even its log is to be copied into it.
    let _ = old.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
    let transaction = new.transaction()?;
    let mut saved = 0;
    for (table, columns, key) in TABLES {
        let count = columns.split(", ").count();
        let places = (1..=count).map(|n| format!("?{n}")).collect::<Vec<_>>().join(", ");
        // The new file has a store_id already; the old one is the better.
        let insert = transaction.prepare(&format!("REPLACE INTO {table} ({columns}) VALUES ({places})"))?;
        let walk = TableSalvage { old: &old, table, columns, key, count, insert, probes: PROBES, saved: 0 };
        saved += walk.all()?;
    }
    transaction.commit()?;
    Ok(saved)
}

fn create_private(path: &Path) -> io::Result<fs::File> {
    fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path)
}

/// Copies one table around its damaged pages.
struct TableSalvage<'a> {
    old: &'a Connection,
    table: &'a str,
    columns: &'a str,
    key: &'a str,
    count: usize,
    insert: Statement<'a>,
    probes: u32,
    saved: u64,
}

impl TableSalvage<'_> {
    fn all(mut self) -> rusqlite::Result<u64> {
        if self.key == "key" {
            for order in ["ASC", "DESC"] {
                self.scan(&format!("TRUE ORDER BY {} {order}", self.key))?;
            }
        } else {
            self.range(i64::MIN, i64::MAX)?;
        }
        Ok(self.saved)
    }

    /// From both ends to the first damage, then from the middle of what is left.
    fn range(&mut self, from: i64, to: i64) -> rusqlite::Result<()> {
        let key = self.key;
        let forward = self.scan(&format!("{key} BETWEEN {from} AND {to} ORDER BY {key}"))?;
        let ScanEnd::Damage { last } = forward else { return Ok(()) };
        let from = last.map_or(from, |last| last.saturating_add(1));
        let backward = self.scan(&format!("{key} BETWEEN {from} AND {to} ORDER BY {key} DESC"))?;
        let ScanEnd::Damage { last } = backward else { return Ok(()) };
        let Some(first) = last else { return self.halves(from, to) };
        self.halves(from, first.saturating_sub(1))
    }

    fn halves(&mut self, from: i64, to: i64) -> rusqlite::Result<()> {
        if from >= to || self.probes == 0 {
            return Ok(());
        }
        self.probes -= 1;
        let middle = from.midpoint(to);
        self.range(from, middle)?;
        self.range(middle + 1, to)
    }

    /// Stops at the end of the rows or at the first that cannot be read.
    fn scan(&mut self, which: &str) -> rusqlite::Result<ScanEnd> {
        let mut last = None;
        let sql = format!("SELECT {} FROM {} WHERE {which}", self.columns, self.table);
        let Ok(mut statement) = self.old.prepare(&sql) else { return Ok(ScanEnd::Damage { last }) };
        let Ok(mut rows) = statement.query(()) else { return Ok(ScanEnd::Damage { last }) };
        loop {
            let row = match rows.next() {
                Ok(Some(row)) => row,
                Ok(None) => return Ok(ScanEnd::End),
                Err(_) => return Ok(ScanEnd::Damage { last }),
            };
            let values: Result<Vec<Value>, _> = (0..self.count).map(|column| row.get(column)).collect();
            let Ok(values) = values else { return Ok(ScanEnd::Damage { last }) };
            if let Some(Value::Integer(id)) = values.first() {
                last = Some(*id);
            }
            match self.insert.execute(rusqlite::params_from_iter(&values)) {
                Ok(_) => self.saved += 1,
                // A value of another type than its column's: this row is damaged too.
                Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::ConstraintViolation) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

enum ScanEnd {
    End,
    Damage { last: Option<i64> },
}
