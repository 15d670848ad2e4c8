//! Outbox: the streams of committed records, appended in segments, read in order, deleted by watermark, bounded per sink.
//!
//! The streams of the first sink and of the local broker have tables of their own. Those of all others share one: the upper
//! bits of its keys are the number of the stream.

mod fair;
mod thin;

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Row};

use super::gaps::Gaps;
use super::row::{self, Encoder, Entry, RECORD_MIN_BYTES, Segment};
use super::running_time::Ages;
use super::stats::Stats;
use super::window::Watermarks;
use fair::Holdings;
use sedge_core::config::{self, SinkShare, WhenFull};
use sedge_core::fold::Fold;
use sedge_core::store::{DAMAGED, FULL, Gap, GapId, Record, RecordId, StoreEvent, StoredRecord};
use sedge_core::stream::{PerStream, STREAMS, SinkId, Stream};
use thin::Thinning;

/// Size of a segment, which is read, dropped and deleted as a whole: small beside the bounds, large beside a page.
const SEGMENT_BYTES: u64 = 64 << 10;

/// Upper bound on the size of a record beside its strings and payload.
const RECORD_OVERHEAD_BYTES: u64 = 40;

/// Ids skipped where rows may be lost: more than can be lost with a damaged file, as the outbox is bounded.
pub(super) const SKIPPED_IDS: u64 = 1 << 24;

/// Bits of a key that are the id, where streams share a table.
const ID_BITS: u32 = 48;

#[derive(Debug)]
pub(super) struct Outbox {
    shares: Vec<Share>,
    /// On disk as of the last transaction.
    marks: Watermarks,
    /// Rows up to these ids are deleted.
    deleted: PerStream<RecordId>,
    /// Size of the rows by stream.
    bytes: PerStream<u64>,
    /// Records that the next transaction adds, by stream, and their size.
    fresh: PerStream<Vec<StoredRecord>>,
    fresh_bytes: PerStream<u64>,
    ages: Ages<STREAMS>,
    /// Rows with damaged records that were read and not reported, by stream and key.
    damaged: Vec<(Stream, RecordId)>,
    /// Records that were dropped and of which the daemon was not told yet.
    dropped: Vec<StoreEvent>,
    /// Records that this transaction dropped from between others.
    dropped_between: Vec<(Stream, RecordId)>,
    /// By stream, while its share is nearly full.
    holdings: PerStream<Option<Box<Holdings>>>,
    encoder: Encoder,
    thinning: Thinning,
}

/// What one sink may have. The first one's includes what waits for the local broker.
#[derive(Clone, Debug)]
struct Share {
    streams: Vec<Stream>,
    /// Alerts are dropped last.
    alerts: Option<Stream>,
    max_bytes: u64,
    when_full: WhenFull,
}

struct Statements {
    append: &'static str,
    read: &'static str,
    oldest: &'static str,
    holding: &'static str,
    replace: &'static str,
    size_through: &'static str,
    delete_through: &'static str,
    last: &'static str,
}

/// `?1` and `?2` are the bounds of the keys, where a statement has both.
macro_rules! statements {
    ($table:literal) => {
        Statements {
            append: concat!("INSERT INTO ", $table, " VALUES (?1, ?2)"),
            read: concat!("SELECT id, body FROM ", $table, " WHERE id > ?1 AND id <= ?2 ORDER BY id"),
            oldest: concat!("SELECT id, body FROM ", $table, " WHERE id > ?1 AND id <= ?2 ORDER BY id LIMIT 1"),
            holding: concat!("SELECT id, body FROM ", $table, " WHERE id >= ?1 AND id <= ?2 ORDER BY id LIMIT 1"),
            replace: concat!("UPDATE ", $table, " SET body = ?2 WHERE id = ?1"),
            size_through: concat!("SELECT sum(length(body)) FROM ", $table, " WHERE id > ?1 AND id <= ?2"),
            delete_through: concat!("DELETE FROM ", $table, " WHERE id > ?1 AND id <= ?2"),
            last: concat!("SELECT max(id) FROM ", $table, " WHERE id > ?1 AND id <= ?2"),
        }
    };
}

const STATEMENTS: [Statements; 4] =
    [statements!("alert"), statements!("data"), statements!("local"), statements!("sink")];

fn statements(stream: Stream) -> &'static Statements {
    &STATEMENTS[stream.index().min(3)]
}

/// Key before those of a stream's records.
fn base(stream: Stream) -> u64 {
    if stream.index() < 3 { 0 } else { (stream.index() as u64) << ID_BITS }
}

/// Last key that a record of the stream can have.
fn end(stream: Stream) -> u64 {
    if stream.index() < 3 { i64::MAX as u64 } else { base(stream) | ((1 << ID_BITS) - 1) }
}

fn key(stream: Stream, id: RecordId) -> u64 {
    base(stream).saturating_add(id.0).min(end(stream))
}

fn all(stream: Stream) -> (u64, u64) {
    (base(stream), end(stream))
}

fn through(stream: Stream, id: RecordId) -> (u64, u64) {
    (base(stream), key(stream, id))
}

impl Outbox {
    /// Without shares: see [`Self::set_shares`].
    pub(super) fn load(
        connection: &Connection,
        config: &config::Store,
        mut marks: Watermarks,
        ages: Option<&[u8]>,
        ages_of_three: Option<&[u8]>,
    ) -> rusqlite::Result<Self> {
        let mut bytes = PerStream::default();
        for stream in Stream::all() {
            let statements = statements(stream);
            let size: Option<u64> = connection.query_row(statements.size_through, all(stream), |row| row.get(0))?;
            bytes[stream] = size.unwrap_or(0);
            // A salvaged file may lack the row with the watermarks.
            let last: Option<u64> = connection.query_row(statements.last, all(stream), |row| row.get(0))?;
            let last = RecordId(last.map_or(0, |key| key - base(stream)));
            marks.last[stream] = marks.last[stream].max(last).max(marks.delivered[stream]);
        }
        let max_age = config.max_age_secs.map(|secs| Duration::from_secs(secs.get()));
        let ages = match (ages, ages_of_three) {
            // Written before sinks had names.
            (None, Some(_)) => Ages::<3>::new(max_age, ages_of_three).widen(),
            _ => Ages::new(max_age, ages),
        };
        Ok(Self {
            shares: Vec::new(),
            marks,
            deleted: PerStream::default(),
            bytes,
            fresh: PerStream::default(),
            fresh_bytes: PerStream::default(),
            ages,
            damaged: Vec::new(),
            dropped: Vec::new(),
            dropped_between: Vec::new(),
            holdings: PerStream::default(),
            encoder: Encoder::default(),
            thinning: Thinning::default(),
        })
    }

    /// `sinks`: those of the configuration with their limits. Without any, the local broker has all of it.
    pub(super) fn set_shares(&mut self, config: &config::Store, sinks: &[(SinkId, SinkShare)]) {
        let share = |(n, (sink, share)): (usize, &(SinkId, SinkShare))| {
            let mut streams = vec![Stream::alerts(*sink), Stream::data(*sink)];
            streams.extend((n == 0).then_some(Stream::LOCAL));
            let SinkShare { max_bytes, when_full, .. } = *share;
            Share { streams, alerts: Some(Stream::alerts(*sink)), max_bytes, when_full }
        };
        self.shares = sinks.iter().enumerate().map(share).collect();
        if sinks.is_empty() {
            let (max_bytes, when_full) = (config.max_bytes.get(), config.when_full);
            self.shares.push(Share { streams: vec![Stream::LOCAL], alerts: None, max_bytes, when_full });
        }
    }

    pub(super) fn marks(&self) -> &Watermarks {
        &self.marks
    }

    /// Whether the store holds records of a sink.
    pub(super) fn has_records(&self, sink: SinkId) -> bool {
        [Stream::alerts(sink), Stream::data(sink)].into_iter().any(|stream| self.bytes[stream] > 0)
    }

    /// Whether these records must wait. Records larger than the whole share are accepted when it is empty.
    pub(super) fn is_full_for<'r>(&self, records: impl Iterator<Item = &'r Record> + Clone) -> bool {
        self.shares.iter().filter(|share| share.when_full == WhenFull::Block).any(|share| {
            let of_share = records.clone().filter(|record| share.streams.contains(&record.stream));
            let bytes: u64 = of_share.map(Self::weight).sum();
            let fresh: u64 = share.streams.iter().map(|stream| self.fresh_bytes[*stream]).sum();
            let used = self.used(share) + fresh;
            bytes > 0 && used > 0 && used + bytes > share.max_bytes
        })
    }

    /// Bytes on disk of what a share counts.
    fn used(&self, share: &Share) -> u64 {
        share.streams.iter().map(|stream| self.bytes[*stream]).sum()
    }

    fn share_of(&self, stream: Stream) -> Option<&Share> {
        self.shares.iter().find(|share| share.streams.contains(&stream))
    }

    /// Returns an upper bound on the stored size of a record.
    pub(super) fn weight(record: &Record) -> u64 {
        let strings = record.function.len() + record.topic.len() + record.content_type.as_ref().map_or(0, |s| s.len());
        let trace = record.trace.as_ref().map_or(0, |trace| trace.bytes());
        (record.payload.len() + strings + trace) as u64 + RECORD_OVERHEAD_BYTES
    }

    /// Gives the record its id. The next [`Self::write`] puts it into the transaction.
    pub(super) fn push(&mut self, record: Record) {
        let stream = record.stream;
        self.fresh_bytes[stream] += Self::weight(&record);
        self.marks.last[stream].0 += 1;
        self.fresh[stream].push(StoredRecord { id: self.marks.last[stream], record });
    }

    /// Records that were dropped since the last call.
    pub(super) fn take_dropped(&mut self) -> Vec<StoreEvent> {
        std::mem::take(&mut self.dropped)
    }

    pub(super) fn has_fresh(&self) -> bool {
        self.fresh.values().iter().any(|stored| !stored.is_empty())
    }

    /// Returns whether the watermark moved.
    pub(super) fn delivered(&mut self, stream: Stream, through: RecordId) -> bool {
        // Ids that were not given yet are never delivered: their records would be lost.
        let through = through.min(self.marks.last[stream]);
        let moved = through > self.marks.delivered[stream];
        self.marks.delivered[stream] = self.marks.delivered[stream].max(through);
        moved
    }

    /// Appends the new records, deletes delivered ones, and enforces the bounds. Returns the new
    /// records that are still there.
    pub(super) fn write(&mut self, connection: &Connection, gaps: &mut Gaps) -> rusqlite::Result<Vec<StoredRecord>> {
        let mut fresh = std::mem::take(&mut self.fresh);
        let added = std::mem::take(&mut self.fresh_bytes);
        self.dropped_between.clear();
        for stream in Stream::all() {
            self.append(connection, stream, &fresh[stream])?;
            self.delete_delivered(connection, stream)?;
        }
        for n in 0..self.shares.len() {
            let share = &self.shares[n];
            let used = self.used(share);
            if used < share.max_bytes / 2 {
                share.streams.iter().for_each(|stream| self.holdings[*stream] = None);
            } else if share.when_full != WhenFull::Block && used > share.max_bytes / 8 * 7 {
                let added = share.streams.iter().map(|stream| added[*stream]).sum();
                self.make_room(connection, share.clone(), added, gaps)?;
            }
        }
        self.dropped_between.sort_unstable();
        let mut all = Vec::new();
        for stream in Stream::all() {
            let stored = std::mem::take(&mut fresh[stream]);
            let delivered = self.marks.delivered[stream];
            let dropped = &self.dropped_between;
            let is_left = |id| id > delivered && dropped.binary_search(&(stream, id)).is_err();
            match stored.first() {
                None => {}
                // Most transactions add records of one stream.
                Some(first) if first.id > delivered && all.is_empty() && dropped.is_empty() => all = stored,
                Some(_) => all.extend(stored.into_iter().filter(|stored| is_left(stored.id))),
            }
        }
        Ok(all)
    }

    fn append(&mut self, connection: &Connection, stream: Stream, stored: &[StoredRecord]) -> rusqlite::Result<()> {
        // Nearly all streams of nearly all transactions.
        if stored.is_empty() {
            return Ok(());
        }
        let mut rest = stored;
        while !rest.is_empty() {
            let (segment, after) = self.split_segment(stream, rest);
            let row = self.encoder.segment(segment);
            let last_id = segment.last().expect("a segment has at least one record").id;
            connection.prepare_cached(statements(stream).append)?.execute((key(stream, last_id), row))?;
            self.bytes[stream] += row.len() as u64;
            if let Some(holdings) = &mut self.holdings[stream] {
                holdings.appended(stream, segment[0].id, last_id, row);
            }
            rest = after;
        }
        Ok(())
    }

    /// Splits the records of the next segment from those behind it. It has at least one.
    fn split_segment<'a>(
        &self,
        stream: Stream,
        records: &'a [StoredRecord],
    ) -> (&'a [StoredRecord], &'a [StoredRecord]) {
        let most = self.share_of(stream).map_or(SEGMENT_BYTES, |it| SEGMENT_BYTES.min(it.max_bytes / 16));
        let mut bytes = 0;
        let fits = records.iter().take_while(|stored| {
            bytes += Self::weight(&stored.record);
            bytes <= most
        });
        records.split_at(fits.count().max(1))
    }

    fn delete_delivered(&mut self, connection: &Connection, stream: Stream) -> rusqlite::Result<()> {
        let delivered = self.marks.delivered[stream];
        if delivered <= self.deleted[stream] {
            return Ok(());
        }
        let (statements, range) = (statements(stream), through(stream, delivered));
        if let Some(holdings) = &mut self.holdings[stream] {
            let mut statement = connection.prepare_cached(statements.read)?;
            let mut rows = statement.query(range)?;
            while let Some(row) = rows.next()? {
                let (last_id, row) = segment_row(stream, row)?;
                holdings.remove(stream, last_id, &row);
            }
        }
        let size: Option<u64> =
            connection.prepare_cached(statements.size_through)?.query_row(range, |row| row.get(0))?;
        if let Some(size) = size {
            connection.prepare_cached(statements.delete_through)?.execute(range)?;
            self.bytes[stream] -= size;
        }
        self.deleted[stream] = delivered;
        Ok(())
    }

    /// Drops the oldest row of these streams. Returns whether there was anything to drop.
    fn drop_oldest_of(
        &mut self,
        connection: &Connection,
        streams: &[Stream],
        gaps: &mut Gaps,
    ) -> rusqlite::Result<bool> {
        let mut oldest: Option<(u64, Stream)> = None;
        for stream in streams.iter().copied() {
            let at_ms = self.oldest_at_ms(connection, stream)?;
            if at_ms.is_some_and(|at_ms| oldest.is_none_or(|(other, _)| at_ms < other)) {
                oldest = at_ms.map(|at_ms| (at_ms, stream));
            }
        }
        match oldest {
            Some((_, stream)) => self.drop_oldest(connection, stream, FULL, gaps),
            None => Ok(false),
        }
    }

    /// Returns the time of the first record of the oldest row; 0 if the row is damaged.
    fn oldest_at_ms(&self, connection: &Connection, stream: Stream) -> rusqlite::Result<Option<u64>> {
        let mut statement = connection.prepare_cached(statements(stream).oldest)?;
        let oldest = statement.query_row(all(stream), |row| Ok(row::segment_at_ms(row.get_ref(1)?.as_blob()?)));
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
        let Some((id, row)) = oldest_row(connection, stream)? else { return Ok(false) };
        let row = self.without_damage(connection, stream, id, row, gaps)?;
        let delivered = self.marks.delivered[stream];
        let gap = lost(stream, reason, id, &row, delivered, RecordId(u64::MAX)).map(|gap| gaps.add(gap));
        self.replace_row(connection, stream, id, &row, None)?;
        self.deleted[stream] = self.deleted[stream].max(id);
        if delivered < id {
            self.marks.delivered[stream] = id;
            self.tell_dropped(stream, gap.unwrap_or_default(), delivered, id);
        }
        Ok(true)
    }

    /// Makes a gap of the damaged records of a row. Returns the row without them.
    fn without_damage(
        &mut self,
        connection: &Connection,
        stream: Stream,
        last_id: RecordId,
        row: Bytes,
        gaps: &mut Gaps,
    ) -> rusqlite::Result<Bytes> {
        if is_intact(&row, stream, last_id) {
            return Ok(row);
        }
        self.damaged.push((stream, last_id));
        self.rewrite_damaged(connection, gaps, None)?;
        Ok(row_holding(connection, stream, last_id)?.map_or(row, |(_, row)| row))
    }

    /// `None`: the row is deleted.
    fn replace_row(
        &mut self,
        connection: &Connection,
        stream: Stream,
        last_id: RecordId,
        row: &Bytes,
        body: Option<Vec<u8>>,
    ) -> rusqlite::Result<()> {
        let key = key(stream, last_id);
        if let Some(holdings) = &mut self.holdings[stream] {
            holdings.remove(stream, last_id, row);
            body.iter().for_each(|body| holdings.put(stream, last_id, body));
        }
        self.bytes[stream] = self.bytes[stream] - row.len() as u64 + body.as_ref().map_or(0, Vec::len) as u64;
        match body {
            Some(body) => connection.prepare_cached(statements(stream).replace)?.execute((key, body))?,
            None => connection.prepare_cached(statements(stream).delete_through)?.execute((key - 1, key))?,
        };
        Ok(())
    }

    /// The daemon is told with the next events that the records after `after` up to `through` were dropped.
    fn tell_dropped(&mut self, stream: Stream, gap: GapId, after: RecordId, through: RecordId) {
        self.thinning.dropped(stream, after, through, self.marks.last[stream]);
        if let Some(StoreEvent::Dropped { stream: of, gap: known, ranges }) = self.dropped.last_mut()
            && (*of, *known) == (stream, gap)
            && let Some((_, end)) = ranges.last_mut().filter(|(_, end)| *end <= after)
        {
            match *end == after {
                true => *end = through,
                false => ranges.push((after, through)),
            }
            return;
        }
        self.dropped.push(StoreEvent::Dropped { stream, gap, ranges: vec![(after, through)] });
    }

    /// Remembers, by its last ids, how old the outbox is. Returns the value to store if there is a new one.
    pub(super) fn mark_age(&mut self, now: Duration) -> Option<Vec<u8>> {
        self.ages.mark(now, self.marks.last.values().map(|id| id.0))
    }

    /// Streams whose oldest row is older than `store.max_age_secs`, by running time.
    pub(super) fn expired(&self, connection: &Connection, now: Duration) -> rusqlite::Result<Vec<Stream>> {
        let mut expired = Vec::new();
        for (stream, through) in Stream::all().zip(self.ages.expired_through(now)) {
            if through <= self.marks.delivered[stream].0 {
                continue;
            }
            let mut statement = connection.prepare_cached(statements(stream).oldest)?;
            let oldest: Option<u64> = statement.query_row(all(stream), |row| row.get(0)).optional()?;
            if oldest.is_some_and(|oldest| oldest <= key(stream, RecordId(through))) {
                expired.push(stream);
            }
        }
        Ok(expired)
    }

    /// Called where rows may be lost: they may have held higher ids than any known one.
    pub(super) fn skip_ids(&mut self) {
        for stream in Stream::all() {
            let is_used = self.marks.last[stream].0 > 0 || self.share_of(stream).is_some();
            if !is_used && !Stream::FIRST.contains(&stream) {
                continue;
            }
            self.marks.last[stream].0 += SKIPPED_IDS;
            if self.bytes[stream] == 0 {
                self.marks.delivered[stream] = self.marks.last[stream];
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
        if id <= self.marks.delivered[stream] {
            return Ok(());
        }
        let Some((last_id, row)) = row_holding(connection, stream, id)? else { return Ok(()) };
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
        let after = after.max(self.marks.delivered[stream]);
        let mut stored = Vec::new();
        let mut bytes = 0;
        let mut statement = connection.prepare_cached(statements(stream).read)?;
        let mut rows = statement.query((key(stream, after), end(stream)))?;
        while let Some(row) = rows.next()? {
            if bytes >= max_bytes {
                self.thinning.holds(stream, stored.last().map_or(after, |stored: &StoredRecord| stored.id));
                return Ok((stored, false));
            }
            let (last_id, row) = segment_row(stream, row)?;
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
        self.thinning.holds_all(stream);
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
            let Some((_, row)) = row_holding(connection, stream, last_id)? else { continue };
            let (mut records, mut marked) = intact(&row, stream, last_id);
            marked.extend(refused);
            let before = key_before(connection, stream, last_id)?.unwrap_or_default();
            let segment = Segment::decode(&row, stream, last_id).ok();
            let thinned = segment.as_ref().filter(|segment| segment.is_thinned());
            let first_id = match records.first() {
                // The ids are part of the sums: the row has the number of records that it says.
                Some(_) => segment.as_ref().map_or(last_id, Segment::first_id),
                None => {
                    let most = (row.len() as u64 / RECORD_MIN_BYTES).max(1);
                    let before = before.max(self.marks.delivered[stream]).0.max(last_id.0.saturating_sub(most));
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
                clock_synced: true,
                at_ms,
                trace: None,
                is_folded: false,
            };
            let body = if let Some(segment) = thinned {
                // Ids are missing there anyway: damaged records need no place.
                for _ in records.len() as u64..segment.left() {
                    count(&mut gap, last_id, 0, row::segment_at_ms(&row));
                    gap.first_id = gap.first_id.min(segment.first_id());
                }
                self.encoder.thinned_segment(&records, |id| marked.contains(&id)).to_vec()
            } else {
                for id in (first_id.0..=last_id.0).map(RecordId) {
                    if let Err(at) = records.binary_search_by_key(&id, |stored| stored.id) {
                        let at_ms = at.checked_sub(1).map_or(0, |before| records[before].record.at_ms);
                        records.insert(at, StoredRecord { id, record: place(at_ms) });
                        marked.push(id);
                        if id > self.marks.delivered[stream] {
                            count(&mut gap, id, 0, at_ms);
                        }
                    }
                }
                self.encoder.segment_with(&records, |id| marked.contains(&id)).to_vec()
            };
            self.replace_row(connection, stream, last_id, &row, Some(body))?;
            if gap.records > 0 {
                gaps.add(gap);
            }
        }
        Ok(())
    }

    pub(super) fn update_ages(&self, connection: &Connection, stats: &Stats) -> rusqlite::Result<()> {
        for stream in Stream::all() {
            let oldest = match self.bytes[stream] {
                0 => 0,
                _ => self.oldest_at_ms(connection, stream)?.unwrap_or(0),
            };
            stats.outbox_oldest_at_ms[stream].store(oldest, Relaxed);
        }
        Ok(())
    }

    pub(super) fn update_stats(&self, stats: &Stats) {
        for stream in Stream::all() {
            let last = self.marks.last[stream];
            let ids = last.0 - self.marks.delivered[stream].0;
            let counted = self.holdings[stream].as_ref().and_then(|holdings| holdings.records(last));
            // Not every id has a record where some were dropped from between others.
            let waiting = counted.map_or(ids, |records| records.min(ids));
            stats.outbox_records[stream].store(waiting, Relaxed);
            stats.outbox_bytes[stream].store(self.bytes[stream], Relaxed);
        }
    }
}

/// The last id of a row, and its body.
type SegmentRow = Option<(RecordId, Bytes)>;

fn oldest_row(connection: &Connection, stream: Stream) -> rusqlite::Result<SegmentRow> {
    one_row(connection, stream, statements(stream).oldest, all(stream))
}

/// The last key before this one.
fn key_before(connection: &Connection, stream: Stream, last_id: RecordId) -> rusqlite::Result<Option<RecordId>> {
    let earlier = through(stream, RecordId(last_id.0.saturating_sub(1)));
    let before: Option<u64> =
        connection.prepare_cached(statements(stream).last)?.query_row(earlier, |row| row.get(0))?;
    Ok(before.map(|key| RecordId(key - base(stream))))
}

/// The row with a record.
fn row_holding(connection: &Connection, stream: Stream, id: RecordId) -> rusqlite::Result<SegmentRow> {
    one_row(connection, stream, statements(stream).holding, (key(stream, id), end(stream)))
}

fn one_row(connection: &Connection, stream: Stream, sql: &str, range: (u64, u64)) -> rusqlite::Result<SegmentRow> {
    let mut statement = connection.prepare_cached(sql)?;
    statement.query_row(range, |row| segment_row(stream, row)).optional()
}

fn segment_row(stream: Stream, row: &Row<'_>) -> rusqlite::Result<(RecordId, Bytes)> {
    let id = RecordId(row.get::<_, u64>(0)? - base(stream));
    Ok((id, Bytes::copy_from_slice(row.get_ref(1)?.as_blob()?)))
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
    let mut segment = Segment::decode(row, stream, last_id).ok();
    let mut next = segment.as_ref().map_or(last_id, Segment::first_id);
    while let Some(entry) = segment.as_mut().and_then(Iterator::next) {
        let id = entry.as_ref().map_or(next, |entry| entry.stored.id);
        next = RecordId(id.0 + 1);
        if id <= after || id > through {
            continue;
        }
        match entry {
            Ok(entry) if entry.refused => {}
            Ok(Entry { stored, .. }) => count_record(&mut gap, &stored),
            Err(_) => {
                let at_ms = gap.last_at_ms;
                count(&mut gap, id, 0, at_ms);
            }
        }
    }
    // Only the number of records in the damaged rest of a row is known, from the ids.
    if let Some(segment) = segment.filter(Segment::is_thinned) {
        next = RecordId((last_id.0 + 1).saturating_sub(segment.left()));
    }
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

/// Adds a record to a gap, or all that it stands for.
fn count_record(gap: &mut Gap, StoredRecord { id, record }: &StoredRecord) {
    count(gap, *id, record.payload.len(), record.at_ms);
    let fold = if record.is_folded { Fold::decode(&record.payload) } else { None };
    if let Some(fold) = fold {
        gap.records += fold.records - 1;
        gap.bytes = gap.bytes + fold.bytes - record.payload.len() as u64;
        gap.last_id = gap.last_id.max(RecordId(fold.last_id));
        gap.last_at_ms = gap.last_at_ms.max(fold.to_ms);
    }
}

/// The intact records of a row, each with its size in the row.
fn sized(row: &Bytes, stream: Stream, last_id: RecordId) -> impl Iterator<Item = (Entry, u64)> {
    let mut segment = Segment::decode(row, stream, last_id).ok();
    std::iter::from_fn(move || {
        let segment = segment.as_mut()?;
        loop {
            let start = segment.at();
            if let Ok(entry) = segment.next()? {
                return Some((entry, (segment.at() - start) as u64));
            }
        }
    })
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
