//! History: results and alerts of the last days, written with the outcomes that they belong to, and read beside the daemon.
//!
//! ```text
//! row   id of its last entry, kind (0 alert, 1 forward, 2 publication), hour of running time, times of its first and last
//!       entry, and a segment (row.rs) with the entries of one kind that one transaction added
//! ```
//!
//! Old rows, and the oldest of too many bytes, are deleted. Nobody is told: the history is a copy.

use std::path::Path;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Row};

use super::beside;
use super::dead_letters::DeadLettersError;
use super::row::{Encoder, Segment};
use sedge_core::config;
use sedge_core::store::{Record, RecordId, StoredRecord};
use sedge_core::stream::{PerStream, Stream};
use sedge_core::topic::TopicFilter;

/// Size of a row, which is read and deleted as a whole.
const SEGMENT_BYTES: usize = 64 << 10;
/// What a row counts beside its body.
const ROW_BYTES: u64 = 40;
/// Rows that one tick of the store deletes: a few megabytes.
const PIECE_ROWS: u32 = 64;
/// Rows that one statement reads. While it is open, the log in front of the database grows.
const PAGE_ROWS: u32 = 64;

/// The daemon's side of the history.
#[derive(Debug)]
pub(super) struct HistoryTable {
    config: config::History,
    bytes: u64,
    last_id: u64,
    /// By kind.
    fresh: PerStream<Vec<Record>>,
    encoder: Encoder,
}

impl HistoryTable {
    pub(super) fn load(connection: &Connection, config: config::History) -> rusqlite::Result<Self> {
        let sql = "SELECT count(*) * ?1 + coalesce(sum(length(body)), 0), coalesce(max(id), 0) FROM history";
        let (bytes, last_id) = connection.query_row(sql, (ROW_BYTES,), |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(Self { config, bytes, last_id, fresh: PerStream::default(), encoder: Encoder::default() })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next [`Self::write`] puts these into the transaction.
    pub(super) fn push(&mut self, entries: Vec<Record>) {
        if self.config.days.is_some() {
            entries.into_iter().for_each(|entry| self.fresh[entry.stream].push(entry));
        }
    }

    /// Appends the new entries, and deletes the oldest of too many bytes. `hour`: of running time.
    pub(super) fn write(&mut self, connection: &Connection, hour: u64) -> rusqlite::Result<()> {
        if Stream::FIRST.iter().all(|kind| self.fresh[*kind].is_empty()) {
            return Ok(());
        }
        let mut fresh = std::mem::take(&mut self.fresh);
        for kind in Stream::FIRST {
            let mut segment: Vec<StoredRecord> = Vec::new();
            let mut bytes = 0;
            for record in std::mem::take(&mut fresh[kind]) {
                if !segment.is_empty() && bytes + record.bytes() > SEGMENT_BYTES {
                    self.append(connection, kind, &std::mem::take(&mut segment), hour)?;
                    bytes = 0;
                }
                bytes += record.bytes();
                self.last_id += 1;
                segment.push(StoredRecord { id: RecordId(self.last_id), record });
            }
            self.append(connection, kind, &segment, hour)?;
        }
        while self.bytes > self.config.max_bytes.get() && self.drop_oldest(connection)? {}
        Ok(())
    }

    fn append(
        &mut self,
        connection: &Connection,
        kind: Stream,
        segment: &[StoredRecord],
        hour: u64,
    ) -> rusqlite::Result<()> {
        let Some(last) = segment.last() else { return Ok(()) };
        let times = || segment.iter().map(|stored| stored.record.at_ms);
        let (from_ms, to_ms) = (times().min().unwrap_or(0), times().max().unwrap_or(0));
        let body = self.encoder.segment(segment);
        connection.prepare_cached("INSERT INTO history VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?.execute((
            last.id.0,
            kind.index(),
            hour,
            from_ms,
            to_ms,
            body,
        ))?;
        self.bytes += body.len() as u64 + ROW_BYTES;
        Ok(())
    }

    /// Returns whether there was anything to drop.
    fn drop_oldest(&mut self, connection: &Connection) -> rusqlite::Result<bool> {
        let sql = "DELETE FROM history WHERE id = (SELECT min(id) FROM history) RETURNING length(body)";
        let dropped: Option<u64> = connection.prepare_cached(sql)?.query_row((), |row| row.get(0)).optional()?;
        self.bytes = self.bytes.saturating_sub(dropped.map_or(0, |bytes| bytes + ROW_BYTES));
        Ok(dropped.is_some())
    }

    /// Rows of hours before this one are too old. Begun hours count.
    fn oldest_hour(&self, hour: u64) -> u64 {
        self.config.days.map_or(u64::MAX, |days| hour.saturating_sub(u64::from(days.get()) * 24))
    }

    pub(super) fn has_expired(&self, connection: &Connection, hour: u64) -> rusqlite::Result<bool> {
        if self.bytes == 0 {
            return Ok(false);
        }
        let sql = "SELECT hour FROM history ORDER BY id LIMIT 1";
        let oldest: Option<u64> = connection.prepare_cached(sql)?.query_row((), |row| row.get(0)).optional()?;
        Ok(oldest.is_some_and(|oldest| oldest < self.oldest_hour(hour)))
    }

    /// Deletes some of the rows that are too old, or all in turn if the history was switched off.
    pub(super) fn drop_expired(&mut self, connection: &Connection, hour: u64) -> rusqlite::Result<()> {
        for _ in 0..PIECE_ROWS {
            if !self.has_expired(connection, hour)? || !self.drop_oldest(connection)? {
                break;
            }
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HistoryKind {
    Alert,
    Forward,
    Publication,
}

impl HistoryKind {
    pub const ALL: [Self; 3] = [Self::Alert, Self::Forward, Self::Publication];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Alert => "alert",
            Self::Forward => "forward",
            Self::Publication => "publish",
        }
    }

    fn stream(self) -> Stream {
        Stream::FIRST[self as usize]
    }
}

/// Selects entries of the history. The default selects all.
#[derive(Clone, Debug, Default)]
pub struct HistoryFilter {
    pub kind: Option<HistoryKind>,
    pub function: Option<String>,
    pub topic: Option<TopicFilter>,
    /// Unix time in milliseconds.
    pub since_ms: Option<u64>,
    /// Entries of this time are not selected.
    pub until_ms: Option<u64>,
}

/// Where a page of the history begins.
#[derive(Clone, Copy, Debug)]
pub enum HistoryPlace {
    /// Oldest first, from the first row behind this one. 0: from the beginning.
    After(u64),
    /// Newest first, from the last row before this one.
    Before(u64),
}

#[derive(Debug)]
pub struct HistoryPage {
    /// For an alert the topic is that of the message, else that of the result. The stream has no meaning.
    pub entries: Vec<(HistoryKind, Record)>,
    /// `None`: these are the last.
    pub next: Option<HistoryPlace>,
}

/// History of a data folder, whether or not a daemon is using it.
#[derive(Debug)]
pub struct History {
    connection: Connection,
}

impl History {
    /// Opens the database for reading alone.
    pub fn open(data_dir: &Path) -> Result<Self, DeadLettersError> {
        Ok(Self { connection: beside::open_read_only(data_dir)? })
    }

    pub fn page(&self, filter: &HistoryFilter, place: HistoryPlace) -> Result<HistoryPage, DeadLettersError> {
        let (place_sql, from) = match place {
            HistoryPlace::After(id) => ("id > ?1 ORDER BY id", id),
            HistoryPlace::Before(id) => ("id < ?1 ORDER BY id DESC", id),
        };
        let sql = format!(
            "SELECT id, kind, body FROM history WHERE to_ms >= ?2 AND from_ms < ?3 AND (?4 IS NULL OR kind = ?4) \
             AND {place_sql} LIMIT {PAGE_ROWS}"
        );
        let most = i64::MAX as u64;
        let (since, until) = (filter.since_ms.unwrap_or(0).min(most), filter.until_ms.unwrap_or(most).min(most));
        let kind = filter.kind.map(|kind| kind.stream().index());
        let mut statement = self.connection.prepare_cached(&sql)?;
        let mut rows = statement.query((from.min(most), since, until, kind))?;
        let mut page = HistoryPage { entries: Vec::new(), next: None };
        let mut count = 0;
        while let Some(row) = rows.next()? {
            count += 1;
            let (id, entries) = decode(row)?;
            let entries = entries.into_iter().filter(|(_, record)| filter.matches(record));
            match place {
                HistoryPlace::After(_) => page.entries.extend(entries),
                HistoryPlace::Before(_) => page.entries.extend(entries.rev()),
            }
            page.next = Some(match place {
                HistoryPlace::After(_) => HistoryPlace::After(id),
                HistoryPlace::Before(_) => HistoryPlace::Before(id),
            });
        }
        page.next = page.next.filter(|_| count == PAGE_ROWS);
        Ok(page)
    }
}

impl HistoryFilter {
    fn matches(&self, record: &Record) -> bool {
        self.function.as_ref().is_none_or(|function| **function == *record.function)
            && self.topic.as_ref().is_none_or(|filter| filter.matches(&record.topic))
            && self.since_ms.is_none_or(|since| record.at_ms >= since)
            && self.until_ms.is_none_or(|until| record.at_ms < until)
    }
}

/// The id of a row and its entries. Damaged ones are left out with a warning.
fn decode(row: &Row<'_>) -> rusqlite::Result<(u64, Vec<(HistoryKind, Record)>)> {
    let (id, kind): (u64, usize) = (row.get(0)?, row.get(1)?);
    let Some(kind) = HistoryKind::ALL.get(kind).copied() else {
        tracing::warn!(id, kind, "skipped a row of the history of an unknown kind");
        return Ok((id, Vec::new()));
    };
    let body = Bytes::copy_from_slice(row.get_ref(2)?.as_blob()?);
    let mut entries = Vec::new();
    let mut is_damaged = false;
    match Segment::decode(&body, kind.stream(), RecordId(id)) {
        Err(_) => is_damaged = true,
        Ok(segment) => {
            for entry in segment {
                match entry {
                    Ok(entry) => entries.push((kind, entry.stored.record)),
                    Err(_) => is_damaged = true,
                }
            }
        }
    }
    if is_damaged {
        tracing::warn!(id, "skipped damaged entries of the history");
    }
    Ok((id, entries))
}
