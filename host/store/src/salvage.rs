//! Salvage of a damaged database: readable rows are copied into a new one, and the file is moved aside, never deleted.
//!
//! ```text
//! sedge.db (damaged) ──readable rows──▶ sedge.db.salvage
//! sedge.db      ──rename──▶ sedge.db.corrupt-<unix time>      (with -wal and -shm)
//! sedge.db.salvage ──rename──▶ sedge.db
//! ```
//!
//! The old file is moved only when the new one is complete, so a power cut at any point starts the salvage over or
//! finds it done.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::config::DbConfig;
use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags, Statement};

use super::OpenError;
use super::folder::{self, DataFolder};
use super::schema::{self, LoadError, TABLES};
use sedge_core::store::MovedAside;
use sedge_core::time::Now;

/// Bisections per table in search of readable rows between damaged pages.
const PROBES: u32 = 32;

/// Finishes what a power cut interrupted. Called before the database is opened.
pub(super) fn resume(folder: &DataFolder) -> Result<(), OpenError> {
    let (database, salvage) = (folder.database(), sibling(&folder.database(), ".salvage"));
    if !salvage.exists() {
        return Ok(());
    }
    // Without a database the copy is complete; otherwise it is partial and the original is still there.
    let result = if database.exists() { fs::remove_file(&salvage) } else { fs::rename(&salvage, &database) };
    result.and_then(|()| folder.sync()).map_err(|source| OpenError::Unusable { path: salvage, source })
}

/// Makes a new database of the readable rows and moves the damaged one aside.
pub(super) fn replace_damaged(folder: &DataFolder, reason: String, now: Now) -> Result<MovedAside, OpenError> {
    let database = folder.database();
    let salvage = sibling(&database, ".salvage");
    let rows_saved = salvage_into(&salvage, &database).map_err(|error| error.at(&salvage))?;
    let moved = || -> io::Result<PathBuf> {
        let mut moved_to = sibling(&database, &format!(".corrupt-{}", now.unix_ms / 1000));
        while moved_to.exists() {
            moved_to = sibling(&moved_to, "-again");
        }
        // The log first: SQLite would apply a log that it finds beside the new database.
        for companion in ["-wal", "-shm"] {
            match fs::rename(sibling(&database, companion), sibling(&moved_to, companion)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::rename(&database, &moved_to)?;
        folder.sync()?;
        fs::rename(&salvage, &database)?;
        folder.sync()?;
        Ok(moved_to)
    };
    let moved_to = moved().map_err(|source| OpenError::Unusable { path: database.clone(), source })?;
    tracing::error!(%reason, moved_to = %moved_to.display(), rows_saved, "the database is damaged: saved readable rows and moved the file aside");
    Ok(MovedAside { moved_to, rows_saved, reason })
}

fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Returns the number of rows saved. The new file has no log of its own, so one rename makes it the database.
fn salvage_into(salvage: &Path, damaged: &Path) -> Result<u64, LoadError> {
    // SQLite would create it readable by others.
    folder::private_file().truncate(true).open(salvage).map_err(LoadError::Io)?;
    let mut new = Connection::open_with_flags(salvage, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    new.pragma_update(None, "page_size", folder::PAGE_BYTES)?;
    new.pragma_update(None, "synchronous", "FULL")?;
    schema::create(&mut new)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let Ok(old) = Connection::open_with_flags(damaged, flags) else { return Ok(0) };
    // The old file is evidence: it stays unchanged, its log included.
    let _ = old.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
    let transaction = new.transaction()?;
    let mut saved = 0;
    for (table, columns, key) in TABLES {
        let count = columns.split(", ").count();
        let places = (1..=count).map(|n| format!("?{n}")).collect::<Vec<_>>().join(", ");
        // `REPLACE`, because the new file has a store_id already and the old one must stay.
        let insert = transaction.prepare(&format!("REPLACE INTO {table} ({columns}) VALUES ({places})"))?;
        let table = TableSalvage { old: &old, table, columns, key, count, insert, probes: PROBES, saved: 0 };
        saved += table.run()?;
    }
    transaction.commit()?;
    Ok(saved)
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
    fn run(mut self) -> rusqlite::Result<u64> {
        if self.key == "key" {
            for order in ["ASC", "DESC"] {
                self.scan(&format!("TRUE ORDER BY {} {order}", self.key))?;
            }
        } else {
            self.range(i64::MIN, i64::MAX)?;
        }
        Ok(self.saved)
    }

    /// Copies from both ends to the first damage, then bisects the rest.
    fn range(&mut self, from: i64, to: i64) -> rusqlite::Result<()> {
        let key = self.key;
        let forward = self.scan(&format!("{key} BETWEEN {from} AND {to} ORDER BY {key}"))?;
        let ScanEnd::Damage { last } = forward else { return Ok(()) };
        let from = last.map_or(from, |last| last.saturating_add(1));
        let backward = self.scan(&format!("{key} BETWEEN {from} AND {to} ORDER BY {key} DESC"))?;
        let ScanEnd::Damage { last } = backward else { return Ok(()) };
        let Some(first) = last else { return self.bisect(from, to) };
        self.bisect(from, first.saturating_sub(1))
    }

    fn bisect(&mut self, from: i64, to: i64) -> rusqlite::Result<()> {
        if from >= to || self.probes == 0 {
            return Ok(());
        }
        self.probes -= 1;
        let middle = from.midpoint(to);
        self.range(from, middle)?;
        self.range(middle + 1, to)
    }

    /// Copies rows to the end or to the first that cannot be read.
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
                // A damaged row can hold a value of another type than its column's.
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
