//! Thinning: the oldest data of a sink is folded into fewer records before anything is dropped.
//!
//! ```text
//! delivered ≤ held < [ rows folded by the hour | by ten minutes | by the minute | as they were committed ] ≤ last
//! ```
//!
//! Rows are rewritten in place: a folded record has the id of the first that it stands for, other records keep theirs. What the
//! daemon may have in memory (up to `held`) stays, since it may be sent at any time: no record counts twice.
//!
//! All data is folded by the minute before any is folded by ten minutes, and so on. Records without numbers stay. The interval
//! that the newest records are in is not complete, and waits. Where it alone is more than there is room for, it is folded as it
//! grows.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use rusqlite::Connection;

use super::fair::Excess;
use super::{Entry, Outbox, Segment, Share, count, empty_gap, key, row_holding, sized, statements};
use crate::gaps::Gaps;
use sedge_core::fold::{Fold, INTERVALS_SECS, THINNED};
use sedge_core::store::{Gap, Record, RecordId, StoredRecord};
use sedge_core::stream::{PerStream, Stream, StreamKind};

/// Rows that are folded together. An interval with more is folded in parts.
const BATCH_BYTES: u64 = 512 << 10;

/// Records that are folded together, which bounds the memory.
const BATCH_RECORDS: usize = 16_384;

/// What is made free beyond the limit: most transactions then have nothing to fold or drop, and none much of it.
pub(super) fn slack(max_bytes: u64) -> u64 {
    (max_bytes / 32).min(1 << 20)
}

/// What may be folded.
#[derive(Debug, Default)]
pub(super) struct Thinning {
    /// The daemon may have records up to these ids in memory. `None`: all of them.
    held: PerStream<Option<RecordId>>,
    /// Rows up to these keys were folded by each interval, by function. A restart looks again.
    folded: PerStream<BTreeMap<Arc<str>, [RecordId; INTERVALS_SECS.len()]>>,
}

impl Thinning {
    /// The daemon has no records behind this one, and reads those before it sends them.
    pub(super) fn holds(&mut self, stream: Stream, through: RecordId) {
        self.held[stream] = Some(through);
    }

    /// It has all, and gets those to come with their commit.
    pub(super) fn holds_all(&mut self, stream: Stream) {
        self.held[stream] = None;
    }

    /// Rows up to this key were folded, of these functions.
    fn set_folded(&mut self, stream: Stream, level: usize, functions: &Excess, through: RecordId) {
        for function in functions.keys() {
            let folded = &mut self.folded[stream].entry(Arc::clone(function)).or_default()[level];
            *folded = through.max(*folded);
        }
    }

    /// It takes dropped records behind held ones for held ones.
    pub(super) fn dropped(&mut self, stream: Stream, after: RecordId, through: RecordId, last: RecordId) {
        if self.held[stream].is_some_and(|held| after <= held && held <= through) {
            self.held[stream] = (through < last).then_some(through);
        }
    }
}

/// Which intervals are folded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    Complete,
    /// The last one, too. What comes of it later is added.
    All,
}

/// Consecutive rows of a stream.
struct Batch {
    rows: Vec<(RecordId, Bytes)>,
    bytes: u64,
    /// Those of the functions whose records are folded.
    foldable_bytes: u64,
    records: Vec<StoredRecord>,
    /// There are no rows behind them.
    is_last: bool,
}

impl Outbox {
    /// The daemon was just told the watermarks, and has no records.
    pub(crate) fn hand_nothing(&mut self) {
        for stream in Stream::all() {
            let (delivered, last) = (self.marks.delivered[stream], self.marks.last[stream]);
            match delivered < last {
                true => self.thinning.holds(stream, delivered),
                false => self.thinning.holds_all(stream),
            }
        }
    }

    /// The daemon has no records after `held`, and reads those before it sends them.
    pub(crate) fn behind(&mut self, stream: Stream, held: RecordId) {
        self.thinning.holds(stream, held);
    }

    /// Folds the data of a share until it fits, or until the functions that have most have nothing more to fold.
    pub(super) fn thin(&mut self, connection: &Connection, share: &Share, gaps: &mut Gaps) -> rusqlite::Result<()> {
        let Some(stream) = share.streams.iter().copied().find(|stream| stream.kind() == StreamKind::Data) else {
            return Ok(());
        };
        let others: Vec<Stream> =
            share.streams.iter().copied().filter(|stream| Some(*stream) != share.alerts).collect();
        let mut before = Excess::new();
        while self.used(share) > share.max_bytes {
            let excess = self.excess(&others, self.used(share) - share.max_bytes);
            if excess.keys().eq(before.keys()) {
                break;
            }
            for reach in [Reach::Complete, Reach::All] {
                for level in 0..INTERVALS_SECS.len() {
                    while self.used(share) > share.max_bytes
                        && self.thin_batch(connection, stream, (level, reach), &excess, gaps)?
                    {}
                }
            }
            before = excess;
        }
        Ok(())
    }

    /// Returns whether there may be more to fold by this interval.
    fn thin_batch(
        &mut self,
        connection: &Connection,
        stream: Stream,
        (level, reach): (usize, Reach),
        functions: &Excess,
        gaps: &mut Gaps,
    ) -> rusqlite::Result<bool> {
        let Some(held) = self.thinning.held[stream] else { return Ok(false) };
        let folded = &self.thinning.folded[stream];
        let folded = functions.keys().map(|function| folded.get(function).map_or(RecordId(0), |by| by[level])).min();
        let start = self.first_foldable(connection, stream, held)?.max(folded.unwrap_or_default());
        let batch = self.read_batch(connection, stream, start, functions, gaps)?;
        let Some(Batch { rows: old, bytes, foldable_bytes, mut records, is_last }) = batch else { return Ok(false) };
        let interval = INTERVALS_SECS[level];
        let complete = match complete(&records, interval) {
            _ if is_last && reach == Reach::All => records.len(),
            0 if is_last => return Ok(false),
            // An interval that is larger than a batch.
            0 => records.len(),
            complete => complete,
        };
        let (last_key, _) = *old.last().expect("a batch has at least one row");
        let rest = records.split_off(complete);
        let end = rest.first().map_or(last_key, |stored| RecordId(stored.id.0 - 1));
        let Folded { records, is_changed, singles } = fold(stream, records, interval, functions);
        let (rows, rest) = (self.rows(stream, &records, end), self.rows(stream, &rest, last_key));
        let (before, after) = (bytes.saturating_sub(size(&rest)), size(&rows));
        // What comes later is added then.
        let goes_on = is_last && reach == Reach::All;
        let saved = before.saturating_sub(after);
        let foldable = before as f64 * (foldable_bytes as f64 / bytes as f64);
        if !is_changed || (saved as f64) < foldable / 4.0 {
            if goes_on {
                return Ok(false);
            }
            // The next batch begins with the interval that is not complete.
            let earlier = old.iter().map(|(key, _)| *key).rfind(|key| *key <= end);
            let folded = earlier.filter(|key| *key > start).unwrap_or(last_key);
            self.thinning.set_folded(stream, level, functions, folded);
            return Ok(!is_last);
        }
        let statements = statements(stream);
        connection.prepare_cached(statements.delete_through)?.execute((key(stream, start), key(stream, last_key)))?;
        for (id, body) in rows.iter().chain(&rest) {
            connection.prepare_cached(statements.append)?.execute((key(stream, *id), body))?;
        }
        if let Some(holdings) = &mut self.holdings[stream] {
            old.iter().for_each(|(id, row)| holdings.remove(stream, *id, row));
            rows.iter().chain(&rest).for_each(|(id, body)| holdings.put(stream, *id, body));
        }
        self.bytes[stream] = self.bytes[stream] - bytes + after + size(&rest);
        if !goes_on {
            self.thinning.set_folded(stream, level, functions, end);
        }
        if singles.records > 0 {
            gaps.add(singles);
        }
        Ok(!goes_on)
    }

    /// Key behind which all rows hold only records that may be folded.
    fn first_foldable(&self, connection: &Connection, stream: Stream, held: RecordId) -> rusqlite::Result<RecordId> {
        let floor = held.max(self.marks.delivered[stream]);
        let next = row_holding(connection, stream, RecordId(floor.0 + 1))?;
        let holds_others = |last_id: RecordId, row: &Bytes| {
            Segment::decode(row, stream, last_id).is_ok_and(|segment| segment.first_id() <= floor)
        };
        Ok(next.filter(|(last_id, row)| holds_others(*last_id, row)).map_or(floor, |(last_id, _)| last_id))
    }

    /// `None`: there are no rows behind `start`.
    fn read_batch(
        &mut self,
        connection: &Connection,
        stream: Stream,
        start: RecordId,
        functions: &Excess,
        gaps: &mut Gaps,
    ) -> rusqlite::Result<Option<Batch>> {
        let mut batch = Batch { rows: Vec::new(), bytes: 0, foldable_bytes: 0, records: Vec::new(), is_last: false };
        while batch.bytes < BATCH_BYTES && batch.records.len() < BATCH_RECORDS {
            let next = RecordId(batch.rows.last().map_or(start, |(key, _)| *key).0 + 1);
            let Some((last_id, row)) = row_holding(connection, stream, next)? else {
                batch.is_last = true;
                break;
            };
            let row = self.without_damage(connection, stream, last_id, row, gaps)?;
            for (Entry { stored, refused }, bytes) in sized(&row, stream, last_id) {
                let is_foldable = functions.contains_key(&stored.record.function);
                batch.foldable_bytes += if is_foldable { bytes } else { 0 };
                // What was refused is part of a gap already.
                batch.records.extend((!refused).then_some(stored));
            }
            batch.bytes += row.len() as u64;
            batch.rows.push((last_id, row));
        }
        Ok((!batch.rows.is_empty()).then_some(batch))
    }

    /// Rows of these records, the last of which has the key `end`.
    fn rows(&mut self, stream: Stream, records: &[StoredRecord], end: RecordId) -> Vec<(RecordId, Vec<u8>)> {
        let mut rows = Vec::new();
        let mut rest = records;
        while !rest.is_empty() {
            let (segment, after) = self.split_segment(stream, rest);
            let last = if after.is_empty() { end } else { segment.last().expect("it has at least one").id };
            rows.push((last, self.encoder.thinned_segment(segment, |_| false).to_vec()));
            rest = after;
        }
        rows
    }
}

fn size(rows: &[(RecordId, Vec<u8>)]) -> u64 {
    rows.iter().map(|(_, body)| body.len() as u64).sum()
}

fn interval_of(record: &Record, secs: u64) -> u64 {
    record.at_ms / (secs * 1000)
}

/// Number of the records before the interval that the last ones are in.
fn complete(records: &[StoredRecord], secs: u64) -> usize {
    let last = records.last().map(|stored| interval_of(&stored.record, secs));
    records.iter().rposition(|stored| Some(interval_of(&stored.record, secs)) != last).map_or(0, |at| at + 1)
}

/// Function, topic, labels, whether the clock was right, and interval.
type Series = (Arc<str>, Box<str>, Box<str>, bool, u64);

/// A record, or a fold of several.
struct Place {
    stored: StoredRecord,
    /// `None`: it has no number.
    fold: Option<Fold>,
    is_changed: bool,
    /// Those of it that were not folded before.
    singles: Gap,
}

struct Folded {
    records: Vec<StoredRecord>,
    is_changed: bool,
    /// Records that were not folded before.
    singles: Gap,
}

/// Folds what belongs together, of these functions. Each fold has the place of its first record.
fn fold(stream: Stream, records: Vec<StoredRecord>, secs: u64, functions: &Excess) -> Folded {
    let mut places: Vec<Place> = Vec::new();
    let mut series: HashMap<Series, usize> = HashMap::new();
    for stored in records {
        let fold = functions.contains_key(&stored.record.function).then(|| Fold::of(&stored)).flatten();
        let record = &stored.record;
        let mut singles = empty_gap(stream, THINNED);
        if !record.is_folded {
            count(&mut singles, stored.id, record.payload.len(), record.at_ms);
        }
        let known = fold.as_ref().and_then(|fold| {
            let (function, topic) = (Arc::clone(&record.function), record.topic.clone());
            let of = (function, topic, fold.labels().into(), record.clock_synced, interval_of(record, secs));
            let next = places.len();
            Some(*series.entry(of).or_insert(next)).filter(|at| *at < next)
        });
        match (known, fold) {
            (Some(at), Some(fold)) => places[at].add(fold, &singles, secs, record),
            (_, fold) => places.push(Place { stored, fold, is_changed: false, singles }),
        }
    }
    let mut folded = Folded { records: Vec::new(), is_changed: false, singles: empty_gap(stream, THINNED) };
    for place in places {
        if place.is_changed {
            folded.is_changed = true;
            folded.singles.add(&place.singles);
        }
        folded.records.push(place.into_record());
    }
    folded
}

impl Place {
    fn add(&mut self, later: Fold, singles: &Gap, secs: u64, record: &Record) {
        let Some(fold) = &mut self.fold else { return };
        fold.add(later);
        fold.interval_secs = fold.interval_secs.max(secs);
        self.is_changed = true;
        self.singles.add(singles);
        let first = &mut self.stored.record;
        (first.hops, first.fan_out) = (first.hops.max(record.hops), first.fan_out.min(record.fan_out));
    }

    fn into_record(self) -> StoredRecord {
        let Self { mut stored, fold, is_changed, .. } = self;
        if let Some(fold) = fold.filter(|_| is_changed) {
            let record = &mut stored.record;
            (record.payload, record.content_type) = (fold.encode().into(), None);
            (record.is_folded, record.retain, record.at_ms) = (true, false, fold.from_ms);
            // It is of several.
            record.trace = None;
        }
        stored
    }
}
