//! Salvage of a damaged database: readable rows are copied into a new one, and the file is moved aside, never deleted.
//!
//! ```text
//! sedge.db (damaged) ──readable rows──▶ sedge.db.salvage
//! sedge.db      ──rename──▶ sedge.db.corrupt-<unix time>      (with -wal and -shm)
//! sedge.db.salvage ──rename──▶ sedge.db
//! ```
//!
//! The old file is moved only when the new one is complete, so a power cut at any point starts the salvage over or
//! finds it done. A read that fails for another reason than damage ends the salvage: nothing is replaced, and it is tried
//! again later.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::config::DbConfig;
use rusqlite::types::Value;
use rusqlite::{Connection, ErrorCode, OpenFlags, Statement, ffi};

use super::OpenError;
use super::folder::{self, DataFolder, sibling};
use super::schema::{self, LoadError, TABLES};
use sedge_core::store::MovedAside;
use sedge_core::time::Now;

/// Key in `meta` of a database that was salvaged: ids must be skipped.
pub(super) const SALVAGED: &str = "salvaged";

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

/// Puts a new database in the place of an empty or missing one, whatever is beside it.
pub(super) fn put_new(folder: &DataFolder) -> Result<(), LoadError> {
    let (database, salvage) = (folder.database(), sibling(&folder.database(), ".salvage"));
    // With it, `resume` takes the other for incomplete.
    folder::private_file().open(&database).map_err(LoadError::Io)?;
    drop(new_database(&salvage)?);
    fs::rename(&salvage, &database).and_then(|()| folder.sync()).map_err(LoadError::Io)
}

/// Makes a new database of the readable rows and moves the damaged one aside.
pub(super) fn replace_damaged(folder: &DataFolder, reason: String, now: Now) -> Result<MovedAside, OpenError> {
    let database = folder.database();
    let salvage = sibling(&database, ".salvage");
    let rows_saved = salvage_into(&salvage, &database).map_err(|error| error.at(&salvage))?;
    let moved = || -> io::Result<PathBuf> {
        let moved_to = folder::unused(sibling(&database, &format!(".corrupt-{}", now.unix_ms / 1000)));
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

/// Whether an error comes from the content of the file. Any other may go away, and what it hides is not lost.
fn is_damage(error: &rusqlite::Error) -> bool {
    match error.sqlite_error() {
        Some(error) => {
            // `SQLITE_ERROR`: the schema lacks the table.
            let of_content = [ffi::SQLITE_CORRUPT, ffi::SQLITE_NOTADB, ffi::SQLITE_TOOBIG, ffi::SQLITE_ERROR];
            of_content.contains(&(error.extended_code & 0xff))
        }
        // A value of another type than its column's, or text that is not UTF-8.
        None => true,
    }
}

/// Makes an empty database. It has no log of its own, so one rename makes it the database of the folder.
fn new_database(path: &Path) -> Result<Connection, LoadError> {
    // SQLite would create it readable by others.
    folder::private_file().truncate(true).open(path).map_err(LoadError::Io)?;
    let mut new = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    new.pragma_update(None, "page_size", folder::PAGE_BYTES)?;
    new.pragma_update(None, "synchronous", "FULL")?;
    schema::create(&mut new)?;
    Ok(new)
}

/// Returns the number of rows saved.
fn salvage_into(salvage: &Path, damaged: &Path) -> Result<u64, LoadError> {
    let mut new = new_database(salvage)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let old = Connection::open_with_flags(damaged, flags)?;
    // The old file is evidence: it stays unchanged, its log included.
    old.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    let transaction = new.transaction()?;
    let mut saved = 0;
    for (table, columns, key) in TABLES {
        let count = columns.split(", ").count();
        // A database of an older layout has no sums, and no times of use.
        let without_newer = columns.replace("sum", "NULL").replace("used", "0").replace("sinks", "NULL");
        let has_all = old.prepare(&format!("SELECT {columns} FROM {table}")).is_ok();
        let read = if has_all { columns } else { &without_newer };
        let places = (1..=count).map(|n| format!("?{n}")).collect::<Vec<_>>().join(", ");
        // `REPLACE`, because the new file has a store_id already and the old one must stay.
        let insert = transaction.prepare(&format!("REPLACE INTO {table} ({columns}) VALUES ({places})"))?;
        let table = TableSalvage { old: &old, table, columns: read, key, count, insert, probes: PROBES, saved: 0 };
        saved += table.run()?;
    }
    transaction.execute("REPLACE INTO meta VALUES (?1, x'')", (SALVAGED,))?;
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

    /// Copies rows to the end or to the first that is damaged.
    fn scan(&mut self, which: &str) -> rusqlite::Result<ScanEnd> {
        let mut last = None;
        match self.copy(which, &mut last) {
            Ok(()) => Ok(ScanEnd::End),
            Err(error) if is_damage(&error) => Ok(ScanEnd::Damage { last }),
            Err(error) => Err(error),
        }
    }

    /// `last`: key of the last row that was read.
    fn copy(&mut self, which: &str, last: &mut Option<i64>) -> rusqlite::Result<()> {
        let sql = format!("SELECT {} FROM {} WHERE {which}", self.columns, self.table);
        let mut statement = self.old.prepare(&sql)?;
        let mut rows = statement.query(())?;
        while let Some(row) = rows.next()? {
            let values: Vec<Value> = (0..self.count).map(|column| row.get(column)).collect::<Result<_, _>>()?;
            if let Some(Value::Integer(id)) = values.first() {
                *last = Some(*id);
            }
            match self.insert.execute(rusqlite::params_from_iter(&values)) {
                Ok(_) => self.saved += 1,
                // A damaged row can hold a value of another type than its column's.
                Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

enum ScanEnd {
    End,
    Damage { last: Option<i64> },
}
