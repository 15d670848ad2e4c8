//! The three streams of committed records: appended by segments, read in order, deleted by watermark, bounded.

use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension};

use super::gaps::{DAMAGED, EXPIRED, FULL, Gaps};
use super::row::{DamagedRow, Encoder, Segment};
use super::stats::Stats;
use super::window::Watermarks;
use super::{Gap, Record, StoredRecord, Stream};
use crate::config::{self, WhenFull};

/// A segment is read, dropped and deleted as a whole: small beside the bounds, large beside a page.
const SEGMENT_BYTES: u64 = 64 << 10;

/// What a record takes beside its strings and payload, at most.
const RECORD_OVERHEAD_BYTES: u64 = 40;

/// More than were ever lost with a damaged file, as the outbox is bounded.
const SKIPPED_IDS: u64 = 1 << 24;

#[derive(Debug)]
pub(super) struct Outbox {
    max_bytes: u64,
    max_age_ms: Option<u64>,
    when_full: WhenFull,
    /// What the receivers have taken, and the last ids given. On disk as of the last transaction.
    marks: Watermarks,
    /// Rows up to these ids are deleted.
    deleted: [u64; 3],
    /// Bytes of the rows, by stream.
    bytes: [u64; 3],
    /// Records that the next transaction adds.
    fresh: [Vec<StoredRecord>; 3],
    fresh_bytes: u64,
    /// Records up to these ids were made before the clock was set: their age is not known.
    ageless: [u64; 3],
    /// Damaged rows that are known of, by stream and key.
    damaged: Vec<(Stream, u64)>,
    encoder: Encoder,
}

struct Statements {
    append: &'static str,
    read: &'static str,
    oldest: &'static str,
    holding: &'static str,
    replace: &'static str,
    size_through: &'static str,
    delete_through: &'static str,
    size: &'static str,
    ends: &'static str,
}

macro_rules! statements {
    ($table:literal) => {
        Statements {
            append: concat!("INSERT INTO ", $table, " VALUES (?1, ?2)"),
            read: concat!("SELECT id, body FROM ", $table, " WHERE id > ?1 ORDER BY id"),
            oldest: concat!("SELECT id, body FROM ", $table, " ORDER BY id LIMIT 1"),
            holding: concat!("SELECT id, body FROM ", $table, " WHERE id >= ?1 ORDER BY id LIMIT 1"),
            replace: concat!("UPDATE ", $table, " SET body = ?2 WHERE id = ?1"),
            size_through: concat!("SELECT sum(length(body)) FROM ", $table, " WHERE id <= ?1"),
            delete_through: concat!("DELETE FROM ", $table, " WHERE id <= ?1"),
            size: concat!("SELECT sum(length(body)) FROM ", $table),
            ends: concat!("SELECT min(id), max(id) FROM ", $table),
        }
    };
}

/// By number of the stream.
const STATEMENTS: [Statements; 3] = [statements!("alert"), statements!("data"), statements!("local")];

impl Outbox {
    pub(super) fn load(
        connection: &Connection,
        settings: &config::Store,
        mut marks: Watermarks,
        ageless: [u64; 3],
    ) -> rusqlite::Result<Self> {
        let mut bytes = [0; 3];
        for (n, statements) in STATEMENTS.iter().enumerate() {
            bytes[n] = connection.query_row(statements.size, (), |row| row.get::<_, Option<u64>>(0))?.unwrap_or(0);
            // A salvaged file may lack the row with the watermarks.
            let (_, last): (Option<u64>, Option<u64>) =
                connection.query_row(statements.ends, (), |row| Ok((row.get(0)?, row.get(1)?)))?;
            marks.last[n] = marks.last[n].max(last.unwrap_or(0)).max(marks.delivered[n]);
        }
        Ok(Self {
            max_bytes: settings.max_bytes.get(),
            max_age_ms: settings.max_age_secs.map(|secs| secs.get().saturating_mul(1000)),
            when_full: settings.when_full,
            marks,
            deleted: [0; 3],
            bytes,
            fresh: Default::default(),
            fresh_bytes: 0,
            ageless,
            damaged: Vec::new(),
            encoder: Encoder::default(),
        })
    }

    pub(super) fn marks(&self) -> &Watermarks {
        &self.marks
    }

    /// Whether records of this size must wait. Records larger than the whole outbox are taken when it is empty.
    pub(super) fn is_full_for(&self, bytes: u64) -> bool {
        let used = self.bytes.iter().sum::<u64>() + self.fresh_bytes;
        self.when_full == WhenFull::Block && bytes > 0 && used > 0 && used + bytes > self.max_bytes
    }

    /// The bound on what a record adds.
    pub(super) fn weight(record: &Record) -> u64 {
        let strings = record.function.len() + record.topic.len() + record.content_type.as_ref().map_or(0, |s| s.len());
        (record.payload.len() + strings) as u64 + RECORD_OVERHEAD_BYTES
    }

    /// Gives the record its id. It is on disk after the next [`Self::write`] and the commit that follows.
    pub(super) fn push(&mut self, record: Record) {
        self.fresh_bytes += Self::weight(&record);
        let n = record.stream as usize;
        self.marks.last[n] += 1;
        self.fresh[n].push(StoredRecord { id: self.marks.last[n], record });
    }

    pub(super) fn has_fresh(&self) -> bool {
        self.fresh.iter().any(|stored| !stored.is_empty())
    }

    /// Returns whether this is news.
    pub(super) fn delivered(&mut self, stream: Stream, through: u64) -> bool {
        let n = stream as usize;
        // Ids that were never given are not delivered: they would be lost when they are given.
        let through = through.min(self.marks.last[n]);
        let news = through > self.marks.delivered[n];
        self.marks.delivered[n] = self.marks.delivered[n].max(through);
        news
    }

    /// Part of a transaction: appends the new records, deletes what was delivered, keeps the bounds. Returns the new
    /// records that are still there.
    pub(super) fn write(
        &mut self,
        connection: &Connection,
        gaps: &mut Gaps,
        stats: &Stats,
    ) -> rusqlite::Result<Vec<StoredRecord>> {
        let mut fresh = std::mem::take(&mut self.fresh);
        self.fresh_bytes = 0;
        let segment_bytes = SEGMENT_BYTES.min(self.max_bytes / 16);
        for (n, stored) in fresh.iter().enumerate() {
            stats.records.fetch_add(stored.len() as u64, Relaxed);
            let mut rest = &stored[..];
            while !rest.is_empty() {
                let mut bytes = 0;
                let fits = rest.iter().take_while(|stored| {
                    bytes += Self::weight(&stored.record);
                    bytes <= segment_bytes
                });
                let (segment, after) = rest.split_at(fits.count().max(1));
                let row = self.encoder.segment(segment);
                let last_id = segment.last().map(|stored| stored.id);
                connection.prepare_cached(STATEMENTS[n].append)?.execute((last_id, row))?;
                self.bytes[n] += row.len() as u64;
                rest = after;
            }
        }
        for stream in Stream::ALL {
            self.delete_delivered(connection, stream)?;
        }
        if self.when_full == WhenFull::DropOldestData {
            while self.bytes.iter().sum::<u64>() > self.max_bytes && self.drop_oldest_data(connection, gaps)? {}
        }
        for (n, stored) in fresh.iter_mut().enumerate() {
            let delivered = self.marks.delivered[n];
            if stored.first().is_some_and(|first| first.id <= delivered) {
                stored.retain(|stored| stored.id > delivered);
            }
        }
        let [mut stored, data, local] = fresh;
        stored.extend(data);
        stored.extend(local);
        Ok(stored)
    }

    fn delete_delivered(&mut self, connection: &Connection, stream: Stream) -> rusqlite::Result<()> {
        let n = stream as usize;
        let through = self.marks.delivered[n];
        if through <= self.deleted[n] {
            return Ok(());
        }
        let size: Option<u64> =
            connection.prepare_cached(STATEMENTS[n].size_through)?.query_row((through,), |row| row.get(0))?;
        if let Some(size) = size {
            connection.prepare_cached(STATEMENTS[n].delete_through)?.execute((through,))?;
            self.bytes[n] -= size;
        }
        self.deleted[n] = through;
        Ok(())
    }

    /// Data and local publications before alerts. Returns whether there was anything to drop.
    fn drop_oldest_data(&mut self, connection: &Connection, gaps: &mut Gaps) -> rusqlite::Result<bool> {
        let data = self.oldest_at_ms(connection, Stream::Data)?;
        let local = self.oldest_at_ms(connection, Stream::Local)?;
        let stream = match (data, local) {
            (Some(data), Some(local)) if local < data => Stream::Local,
            (Some(_), _) => Stream::Data,
            (None, Some(_)) => Stream::Local,
            (None, None) => Stream::Alert,
        };
        self.drop_oldest(connection, stream, FULL, gaps)
    }

    /// When the first record of the stream's oldest row was made; 0 where the row is damaged.
    fn oldest_at_ms(&self, connection: &Connection, stream: Stream) -> rusqlite::Result<Option<u64>> {
        let mut statement = connection.prepare_cached(STATEMENTS[stream as usize].oldest)?;
        let oldest = statement.query_row((), |row| {
            let id = row.get(0)?;
            let blob = row.get_ref(1)?.as_blob()?;
            // The time is among the first bytes.
            let head = Bytes::copy_from_slice(&blob[..blob.len().min(32)]);
            Ok(Segment::decode(&head, stream, id).map_or(0, |segment| segment.at_ms()))
        });
        oldest.optional()
    }

    fn drop_oldest(
        &mut self,
        connection: &Connection,
        stream: Stream,
        reason: &str,
        gaps: &mut Gaps,
    ) -> rusqlite::Result<bool> {
        let n = stream as usize;
        let Some((id, row)) = one_row(connection, STATEMENTS[n].oldest, ())? else { return Ok(false) };
        if let Some(gap) = lost(stream, reason, id, &row, self.marks.delivered[n], u64::MAX) {
            gaps.add(gap);
        }
        connection.prepare_cached(STATEMENTS[n].delete_through)?.execute((id,))?;
        self.bytes[n] -= row.len() as u64;
        self.deleted[n] = self.deleted[n].max(id);
        self.marks.delivered[n] = self.marks.delivered[n].max(id);
        Ok(true)
    }

    /// Whether a record is older than it may be. Asked once in a while, not for every commit.
    pub(super) fn has_expired(&self, connection: &Connection, now_ms: u64) -> rusqlite::Result<bool> {
        for stream in Stream::ALL {
            if self.expired(connection, stream, now_ms)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn expired(&self, connection: &Connection, stream: Stream, now_ms: u64) -> rusqlite::Result<bool> {
        let Some(max_age_ms) = self.max_age_ms else { return Ok(false) };
        let n = stream as usize;
        let mut statement = connection.prepare_cached(STATEMENTS[n].oldest)?;
        let at = statement.query_row((), |row| {
            let id: u64 = row.get(0)?;
            let row = Bytes::copy_from_slice(row.get_ref(1)?.as_blob()?);
            // The segment goes when its newest record is too old. A damaged one is never too old.
            let newest = Segment::decode(&row, stream, id).ok().and_then(Iterator::last).and_then(Result::ok);
            Ok((id, newest.map_or(u64::MAX, |entry| entry.stored.record.at_ms)))
        });
        let expired = |(id, at_ms): (u64, u64)| id > self.ageless[n] && at_ms.saturating_add(max_age_ms) < now_ms;
        Ok(at.optional()?.is_some_and(expired))
    }

    /// Part of a transaction.
    pub(super) fn expire(&mut self, connection: &Connection, now_ms: u64, gaps: &mut Gaps) -> rusqlite::Result<()> {
        for stream in Stream::ALL {
            while self.expired(connection, stream, now_ms)? {
                self.drop_oldest(connection, stream, EXPIRED, gaps)?;
            }
        }
        Ok(())
    }

    /// After a salvage: rows that could not be read may have held higher ids than any that is known.
    pub(super) fn skip_ids(&mut self) {
        for n in 0..3 {
            self.marks.last[n] += SKIPPED_IDS;
            if self.bytes[n] == 0 {
                self.marks.delivered[n] = self.marks.last[n];
            }
        }
    }

    /// The clock was set: what was recorded until now carries times of another clock. Returns what to remember.
    pub(super) fn clock_was_set(&mut self) -> [u64; 3] {
        self.ageless = self.marks.last;
        self.ageless
    }

    /// Part of a transaction: a record that its receiver will never take.
    pub(super) fn refuse(
        &mut self,
        connection: &Connection,
        stream: Stream,
        id: u64,
        reason: &str,
        gaps: &mut Gaps,
    ) -> rusqlite::Result<()> {
        let n = stream as usize;
        if id <= self.marks.delivered[n] {
            return Ok(());
        }
        let Some((last_id, row)) = one_row(connection, STATEMENTS[n].holding, (id,))? else { return Ok(()) };
        let entry = Segment::decode(&row, stream, last_id)
            .ok()
            .and_then(|mut segment| segment.find_map(|entry| entry.ok().filter(|entry| entry.stored.id == id)));
        if let Some(entry) = entry.filter(|entry| !entry.refused) {
            connection.prepare_cached(STATEMENTS[n].replace)?.execute((last_id, entry.refuse(&row)))?;
            if let Some(gap) = lost(stream, reason, last_id, &row, id - 1, id) {
                gaps.add(gap);
            }
        }
        Ok(())
    }

    /// Committed records after `after`, and whether these are the last.
    pub(super) fn read(
        &mut self,
        connection: &Connection,
        stream: Stream,
        after: u64,
        max_bytes: usize,
        gaps: &mut Gaps,
    ) -> rusqlite::Result<(Vec<StoredRecord>, bool)> {
        let n = stream as usize;
        let after = after.max(self.marks.delivered[n]);
        let mut stored = Vec::new();
        let mut bytes = 0;
        let mut statement = connection.prepare_cached(STATEMENTS[n].read)?;
        let mut rows = statement.query((after,))?;
        while let Some(row) = rows.next()? {
            if bytes >= max_bytes {
                return Ok((stored, false));
            }
            let last_id = row.get(0)?;
            let row = Bytes::copy_from_slice(row.get_ref(1)?.as_blob()?);
            let mut good_through = after;
            let mut read = || {
                for entry in Segment::decode(&row, stream, last_id)? {
                    let entry = entry?;
                    good_through = good_through.max(entry.stored.id);
                    if entry.stored.id > after && !entry.refused {
                        bytes += entry.stored.record.payload.len() + entry.stored.record.topic.len();
                        stored.push(entry.stored);
                    }
                }
                Ok::<_, DamagedRow>(())
            };
            if let Err(damage) = read()
                && !self.damaged.contains(&(stream, last_id))
            {
                tracing::error!(?stream, row = last_id, %damage, "a row of the outbox is damaged: its records are lost");
                self.damaged.push((stream, last_id));
                if let Some(gap) = lost(stream, DAMAGED, last_id, &row, good_through, u64::MAX) {
                    gaps.add(gap);
                }
            }
        }
        Ok((stored, true))
    }

    pub(super) fn gauge(&self, connection: &Connection, stats: &Stats) -> rusqlite::Result<()> {
        for stream in Stream::ALL {
            let n = stream as usize;
            let oldest = self.oldest_at_ms(connection, stream)?.unwrap_or(0);
            stats.outbox_oldest_at_ms[n].store(oldest, Relaxed);
        }
        Ok(())
    }

    pub(super) fn count(&self, stats: &Stats) {
        for n in 0..3 {
            stats.outbox_records[n].store(self.marks.last[n] - self.marks.delivered[n], Relaxed);
            stats.outbox_bytes[n].store(self.bytes[n], Relaxed);
        }
    }
}

fn one_row(
    connection: &Connection,
    sql: &str,
    params: impl rusqlite::Params,
) -> rusqlite::Result<Option<(u64, Bytes)>> {
    let mut statement = connection.prepare_cached(sql)?;
    statement.query_row(params, |row| Ok((row.get(0)?, Bytes::copy_from_slice(row.get_ref(1)?.as_blob()?)))).optional()
}

/// The gap that losing the records of a row leaves: those after `after` up to `through` that were not lost before.
fn lost(stream: Stream, reason: &str, last_id: u64, row: &Bytes, after: u64, through: u64) -> Option<Gap> {
    let mut gap = Gap {
        stream,
        reason: reason.into(),
        first_id: u64::MAX,
        last_id: 0,
        records: 0,
        bytes: 0,
        first_at_ms: u64::MAX,
        last_at_ms: 0,
    };
    let mut readable_through = 0;
    let segment = Segment::decode(row, stream, last_id);
    let first_id = segment.as_ref().map_or(last_id, Segment::first_id);
    for entry in segment.into_iter().flatten().map_while(Result::ok) {
        let id = entry.stored.id;
        readable_through = id;
        if id <= after || id > through || entry.refused {
            continue;
        }
        let at_ms = entry.stored.record.at_ms;
        gap.first_id = gap.first_id.min(id);
        gap.last_id = gap.last_id.max(id);
        gap.records += 1;
        gap.bytes += entry.stored.record.payload.len() as u64;
        gap.first_at_ms = gap.first_at_ms.min(at_ms);
        gap.last_at_ms = gap.last_at_ms.max(at_ms);
    }
    // The rest of a damaged row: how many is known from the ids, their sizes and times are not.
    let unreadable_after = readable_through.max(after).max(first_id.saturating_sub(1));
    if unreadable_after < last_id.min(through) {
        gap.first_id = gap.first_id.min(unreadable_after + 1);
        gap.last_id = last_id.min(through);
        gap.records += gap.last_id - unreadable_after;
        gap.first_at_ms = gap.first_at_ms.min(gap.last_at_ms);
    }
    (gap.records > 0).then_some(gap)
}
