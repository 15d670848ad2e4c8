//! Outbox: the three streams of committed records, appended in segments, read in order, deleted by watermark, bounded.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Row};

use super::gaps::Gaps;
use super::row::{self, Encoder, Entry, RECORD_MIN_BYTES, Segment};
use super::running_time::Ages;
use super::stats::Stats;
use super::window::Watermarks;
use sedge_core::config::{self, WhenFull};
use sedge_core::store::{DAMAGED, FULL, Gap, Record, RecordId, StoreEvent, StoredRecord};
use sedge_core::stream::Stream;

/// Size of a segment, which is read, dropped and deleted as a whole: small beside the bounds, large beside a page.
const SEGMENT_BYTES: u64 = 64 << 10;

/// Upper bound on the size of a record beside its strings and payload.
const RECORD_OVERHEAD_BYTES: u64 = 40;

/// Ids skipped where rows may be lost: more than can be lost with a damaged file, as the outbox is bounded.
pub(super) const SKIPPED_IDS: u64 = 1 << 24;

#[derive(Debug)]
pub(super) struct Outbox {
    max_bytes: u64,
    when_full: WhenFull,
    /// On disk as of the last transaction.
    marks: Watermarks,
    /// Rows up to these ids are deleted.
    deleted: [RecordId; 3],
    /// Size of the rows by stream.
    bytes: [u64; 3],
    /// Records that the next transaction adds.
    fresh: [Vec<StoredRecord>; 3],
    fresh_bytes: u64,
    ages: Ages<3>,
    /// Rows with damaged records that were read and not reported, by stream and key.
    damaged: Vec<(Stream, RecordId)>,
    /// Records that were dropped and of which the daemon was not told yet.
    dropped: Vec<StoreEvent>,
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
    last: &'static str,
    before: &'static str,
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
            last: concat!("SELECT max(id) FROM ", $table),
            before: concat!("SELECT max(id) FROM ", $table, " WHERE id < ?1"),
        }
    };
}

/// Indexed by stream.
const STATEMENTS: [Statements; 3] = [statements!("alert"), statements!("data"), statements!("local")];

impl Outbox {
    pub(super) fn load(
        connection: &Connection,
        config: &config::Store,
        mut marks: Watermarks,
        ages: Option<&[u8]>,
    ) -> rusqlite::Result<Self> {
        let mut bytes = [0; 3];
        for (n, statements) in STATEMENTS.iter().enumerate() {
            bytes[n] = connection.query_row(statements.size, (), |row| row.get::<_, Option<u64>>(0))?.unwrap_or(0);
            // A salvaged file may lack the row with the watermarks.
            let last: Option<u64> = connection.query_row(statements.last, (), |row| row.get(0))?;
            marks.last[n] = marks.last[n].max(RecordId(last.unwrap_or(0))).max(marks.delivered[n]);
        }
        Ok(Self {
            max_bytes: config.max_bytes.get(),
            when_full: config.when_full,
            marks,
            deleted: [RecordId(0); 3],
            bytes,
            fresh: Default::default(),
            fresh_bytes: 0,
            ages: Ages::new(config.max_age_secs.map(|secs| Duration::from_secs(secs.get())), ages),
            damaged: Vec::new(),
            dropped: Vec::new(),
            encoder: Encoder::default(),
        })
    }

    pub(super) fn marks(&self) -> &Watermarks {
        &self.marks
    }

    /// Whether records of this size must wait. Records larger than the whole outbox are accepted when it is empty.
    pub(super) fn is_full_for(&self, bytes: u64) -> bool {
        let used = self.bytes.iter().sum::<u64>() + self.fresh_bytes;
        self.when_full == WhenFull::Block && bytes > 0 && used > 0 && used + bytes > self.max_bytes
    }

    /// Returns an upper bound on the stored size of a record.
    pub(super) fn weight(record: &Record) -> u64 {
        let strings = record.function.len() + record.topic.len() + record.content_type.as_ref().map_or(0, |s| s.len());
        (record.payload.len() + strings) as u64 + RECORD_OVERHEAD_BYTES
    }

    /// Gives the record its id. The next [`Self::write`] puts it into the transaction.
    pub(super) fn push(&mut self, record: Record) {
        self.fresh_bytes += Self::weight(&record);
        let n = record.stream as usize;
        self.marks.last[n].0 += 1;
        self.fresh[n].push(StoredRecord { id: self.marks.last[n], record });
    }

    /// Records that were dropped since the last call.
    pub(super) fn take_dropped(&mut self) -> Vec<StoreEvent> {
        std::mem::take(&mut self.dropped)
    }

    pub(super) fn has_fresh(&self) -> bool {
        self.fresh.iter().any(|stored| !stored.is_empty())
    }

    /// Returns whether the watermark moved.
    pub(super) fn delivered(&mut self, stream: Stream, through: RecordId) -> bool {
        let n = stream as usize;
        // Ids that were not given yet are never delivered: their records would be lost.
        let through = through.min(self.marks.last[n]);
        let moved = through > self.marks.delivered[n];
        self.marks.delivered[n] = self.marks.delivered[n].max(through);
        moved
    }

    /// Appends the new records, deletes delivered ones, and enforces the bounds. Returns the new
    /// records that are still there.
    pub(super) fn write(&mut self, connection: &Connection, gaps: &mut Gaps) -> rusqlite::Result<Vec<StoredRecord>> {
        let mut fresh = std::mem::take(&mut self.fresh);
        self.fresh_bytes = 0;
        let segment_bytes = SEGMENT_BYTES.min(self.max_bytes / 16);
        for (n, stored) in fresh.iter().enumerate() {
            let mut rest = &stored[..];
            while !rest.is_empty() {
                let mut bytes = 0;
                let fits = rest.iter().take_while(|stored| {
                    bytes += Self::weight(&stored.record);
                    bytes <= segment_bytes
                });
                let (segment, after) = rest.split_at(fits.count().max(1));
                let row = self.encoder.segment(segment);
                let last_id = segment.last().expect("a segment has at least one record").id.0;
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
            connection.prepare_cached(STATEMENTS[n].size_through)?.query_row((through.0,), |row| row.get(0))?;
        if let Some(size) = size {
            connection.prepare_cached(STATEMENTS[n].delete_through)?.execute((through.0,))?;
            self.bytes[n] -= size;
        }
        self.deleted[n] = through;
        Ok(())
    }

    /// Drops data and local publications before alerts. Returns whether there was anything to drop.
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

    /// Returns the time of the first record of the oldest row; 0 if the row is damaged.
    fn oldest_at_ms(&self, connection: &Connection, stream: Stream) -> rusqlite::Result<Option<u64>> {
        let mut statement = connection.prepare_cached(STATEMENTS[stream as usize].oldest)?;
        let oldest = statement.query_row((), |row| Ok(row::segment_at_ms(row.get_ref(1)?.as_blob()?)));
        oldest.optional()
    }

    /// Returns whether there was anything to drop.
    pub(super) fn drop_oldest(
        &mut self,
        connection: &Connection,
        stream: Stream,
        reason: &str,
        gaps: &mut Gaps,
    ) -> rusqlite::Result<bool> {
        let n = stream as usize;
        let Some((id, mut row)) = one_row(connection, STATEMENTS[n].oldest, ())? else { return Ok(false) };
        if !is_intact(&row, stream, id) {
            self.damaged.push((stream, id));
            self.rewrite_damaged(connection, gaps, None)?;
            row = one_row(connection, STATEMENTS[n].oldest, ())?.map_or(row, |(_, row)| row);
        }
        if let Some(gap) = lost(stream, reason, id, &row, self.marks.delivered[n], RecordId(u64::MAX)) {
            gaps.add(gap);
        }
        connection.prepare_cached(STATEMENTS[n].delete_through)?.execute((id.0,))?;
        self.bytes[n] -= row.len() as u64;
        self.deleted[n] = self.deleted[n].max(id);
        self.dropped.push(StoreEvent::Dropped { stream, after: self.marks.delivered[n], through: id });
        self.marks.delivered[n] = self.marks.delivered[n].max(id);
        Ok(true)
    }

    /// Remembers, by its last ids, how old the outbox is. Returns the value to store if there is a new one.
    pub(super) fn mark_age(&mut self, now: Duration) -> Option<Vec<u8>> {
        self.ages.mark(now, self.marks.last.map(|id| id.0))
    }

    /// Streams whose oldest row is older than `store.max_age_secs`, by running time.
    pub(super) fn expired(&self, connection: &Connection, now: Duration) -> rusqlite::Result<Vec<Stream>> {
        let mut expired = Vec::new();
        for (stream, through) in Stream::ALL.into_iter().zip(self.ages.expired_through(now)) {
            if through <= self.marks.delivered[stream as usize].0 {
                continue;
            }
            let mut statement = connection.prepare_cached(STATEMENTS[stream as usize].oldest)?;
            let oldest: Option<u64> = statement.query_row((), |row| row.get(0)).optional()?;
            if oldest.is_some_and(|id| id <= through) {
                expired.push(stream);
            }
        }
        Ok(expired)
    }

    /// Called where rows may be lost: they may have held higher ids than any known one.
    pub(super) fn skip_ids(&mut self) {
        for n in 0..3 {
            self.marks.last[n].0 += SKIPPED_IDS;
            if self.bytes[n] == 0 {
                self.marks.delivered[n] = self.marks.last[n];
            }
        }
    }

    /// Drops a record that its receiver will never accept.
    pub(super) fn refuse(
        &mut self,
        connection: &Connection,
        stream: Stream,
        id: RecordId,
        reason: &str,
        gaps: &mut Gaps,
    ) -> rusqlite::Result<()> {
        let n = stream as usize;
        if id <= self.marks.delivered[n] {
            return Ok(());
        }
        let Some((last_id, row)) = one_row(connection, STATEMENTS[n].holding, (id.0,))? else { return Ok(()) };
        let (records, refused) = intact(&row, stream, last_id);
        let is_there = records.iter().any(|stored| stored.id == id) && !refused.contains(&id);
        if !is_there {
            return Ok(());
        }
        if let Some(gap) = lost(stream, reason, last_id, &row, RecordId(id.0 - 1), id) {
            gaps.add(gap);
        }
        self.damaged.push((stream, last_id));
        self.rewrite_damaged(connection, gaps, Some(id))
    }

    /// Returns committed records after `after`, and whether these are the last.
    pub(super) fn read(
        &mut self,
        connection: &Connection,
        stream: Stream,
        after: RecordId,
        max_bytes: usize,
    ) -> rusqlite::Result<(Vec<StoredRecord>, bool)> {
        let n = stream as usize;
        let after = after.max(self.marks.delivered[n]);
        let mut stored = Vec::new();
        let mut bytes = 0;
        let mut statement = connection.prepare_cached(STATEMENTS[n].read)?;
        let mut rows = statement.query((after.0,))?;
        while let Some(row) = rows.next()? {
            if bytes >= max_bytes {
                return Ok((stored, false));
            }
            let last_id = RecordId(row.get(0)?);
            let row = Bytes::copy_from_slice(row.get_ref(1)?.as_blob()?);
            let segment = Segment::decode(&row, stream, last_id);
            let mut has_damage = segment.is_err();
            for entry in segment.into_iter().flatten() {
                match entry {
                    Ok(entry) if entry.stored.id > after && !entry.refused => {
                        bytes += entry.stored.record.payload.len() + entry.stored.record.topic.len();
                        stored.push(entry.stored);
                    }
                    Ok(_) => {}
                    Err(_) => has_damage = true,
                }
            }
            if has_damage && !self.damaged.contains(&(stream, last_id)) {
                self.damaged.push((stream, last_id));
            }
        }
        Ok((stored, true))
    }

    /// Whether damaged records were read, for [`Self::rewrite_damaged`].
    pub(super) fn has_damaged(&self) -> bool {
        !self.damaged.is_empty()
    }

    /// Makes a gap of the damaged records that were read, and marks them as refused in their rows: they are reported once.
    /// `refused`: another record to mark.
    pub(super) fn rewrite_damaged(
        &mut self,
        connection: &Connection,
        gaps: &mut Gaps,
        refused: Option<RecordId>,
    ) -> rusqlite::Result<()> {
        for (stream, last_id) in std::mem::take(&mut self.damaged) {
            let n = stream as usize;
            let Some((_, row)) = one_row(connection, STATEMENTS[n].holding, (last_id.0,))? else { continue };
            let (mut records, mut marked) = intact(&row, stream, last_id);
            marked.extend(refused);
            let before: Option<u64> = connection.query_row(STATEMENTS[n].before, (last_id.0,), |row| row.get(0))?;
            let first_id = match records.first() {
                // The ids are part of the sums: the row has the number of records that it says.
                Some(_) => Segment::decode(&row, stream, last_id).map_or(last_id, |segment| segment.first_id()),
                None => {
                    let most = (row.len() as u64 / RECORD_MIN_BYTES).max(1);
                    let before = before.unwrap_or(0).max(self.marks.delivered[n].0).max(last_id.0.saturating_sub(most));
                    RecordId(before.min(last_id.0.saturating_sub(1)) + 1)
                }
            };
            let mut gap = empty_gap(stream, DAMAGED);
            let place = |at_ms| Record {
                stream,
                function: "".into(),
                topic: "".into(),
                payload: Bytes::new(),
                content_type: None,
                retain: false,
                hops: 0,
                fan_out: 0,
                at_ms,
            };
            for id in (first_id.0..=last_id.0).map(RecordId) {
                if let Err(at) = records.binary_search_by_key(&id, |stored| stored.id) {
                    let at_ms = at.checked_sub(1).map_or(0, |before| records[before].record.at_ms);
                    records.insert(at, StoredRecord { id, record: place(at_ms) });
                    marked.push(id);
                    if id > self.marks.delivered[n] {
                        count(&mut gap, id, 0, at_ms);
                    }
                }
            }
            let body = self.encoder.segment_with(&records, |id| marked.contains(&id));
            connection.prepare_cached(STATEMENTS[n].replace)?.execute((last_id.0, body))?;
            self.bytes[n] = self.bytes[n] - row.len() as u64 + body.len() as u64;
            if gap.records > 0 {
                gaps.add(gap);
            }
        }
        Ok(())
    }

    pub(super) fn update_ages(&self, connection: &Connection, stats: &Stats) -> rusqlite::Result<()> {
        for stream in Stream::ALL {
            let oldest = self.oldest_at_ms(connection, stream)?.unwrap_or(0);
            stats.outbox_oldest_at_ms[stream].store(oldest, Relaxed);
        }
        Ok(())
    }

    pub(super) fn update_stats(&self, stats: &Stats) {
        for stream in Stream::ALL {
            let n = stream as usize;
            stats.outbox_records[stream].store(self.marks.last[n].0 - self.marks.delivered[n].0, Relaxed);
            stats.outbox_bytes[stream].store(self.bytes[n], Relaxed);
        }
    }
}

fn one_row(
    connection: &Connection,
    sql: &str,
    params: impl rusqlite::Params,
) -> rusqlite::Result<Option<(RecordId, Bytes)>> {
    let mut statement = connection.prepare_cached(sql)?;
    let decode = |row: &Row<'_>| Ok((RecordId(row.get(0)?), Bytes::copy_from_slice(row.get_ref(1)?.as_blob()?)));
    statement.query_row(params, decode).optional()
}

/// Returns the gap that the loss of a row's records leaves: those after `after` up to `through` that were not lost before.
fn lost(
    stream: Stream,
    reason: &str,
    last_id: RecordId,
    row: &Bytes,
    after: RecordId,
    through: RecordId,
) -> Option<Gap> {
    let mut gap = empty_gap(stream, reason);
    let segment = Segment::decode(row, stream, last_id);
    let mut next = segment.as_ref().map_or(last_id, Segment::first_id);
    for entry in segment.into_iter().flatten() {
        let id = next;
        next.0 += 1;
        if id <= after || id > through {
            continue;
        }
        match entry {
            Ok(entry) if entry.refused => {}
            Ok(Entry { stored, .. }) => count(&mut gap, id, stored.record.payload.len(), stored.record.at_ms),
            Err(_) => {
                let at_ms = gap.last_at_ms;
                count(&mut gap, id, 0, at_ms);
            }
        }
    }
    // Only the number of records in the damaged rest of a row is known, from the ids.
    for id in next.max(RecordId(after.0 + 1)).0..=last_id.min(through).0 {
        let at_ms = gap.last_at_ms;
        count(&mut gap, RecordId(id), 0, at_ms);
    }
    (gap.records > 0).then_some(gap)
}

fn empty_gap(stream: Stream, reason: &str) -> Gap {
    Gap {
        stream,
        reason: reason.into(),
        first_id: RecordId(u64::MAX),
        last_id: RecordId(0),
        records: 0,
        bytes: 0,
        first_at_ms: u64::MAX,
        last_at_ms: 0,
    }
}

/// Adds a record to a gap.
fn count(gap: &mut Gap, id: RecordId, bytes: usize, at_ms: u64) {
    gap.first_id = gap.first_id.min(id);
    gap.last_id = gap.last_id.max(id);
    gap.records += 1;
    gap.bytes += bytes as u64;
    gap.first_at_ms = gap.first_at_ms.min(at_ms);
    gap.last_at_ms = gap.last_at_ms.max(at_ms);
}

fn is_intact(row: &Bytes, stream: Stream, last_id: RecordId) -> bool {
    Segment::decode(row, stream, last_id).is_ok_and(|mut segment| segment.all(|entry| entry.is_ok()))
}

/// Returns the intact records of a row, and the ids of those that were refused.
fn intact(row: &Bytes, stream: Stream, last_id: RecordId) -> (Vec<StoredRecord>, Vec<RecordId>) {
    let entries = Segment::decode(row, stream, last_id).into_iter().flatten().flatten();
    let mut refused = Vec::new();
    let record = |entry: Entry| {
        refused.extend(entry.refused.then_some(entry.stored.id));
        entry.stored
    };
    let records = entries.map(record).collect();
    (records, refused)
}
