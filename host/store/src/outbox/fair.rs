//! Fairness: the functions that hold most of a full share lose their oldest records first.
//!
//! ```text
//!                ┌───┐
//! level ─────────┤   ├───────   what is above it is dropped, and the rest fits
//!        ┌───┐   │   │   ┌───┐
//!        │ a │   │ b │   │ c │   bytes of each function
//! ```
//!
//! The level is no lower than an equal division of the share: a function within its part loses nothing while another is beyond its own.
//!
//! The bytes of each function are known while a share is nearly full. They are counted then, row by row, and followed until half of the
//! share is free again. Otherwise a row costs nothing more.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use rusqlite::Connection;

use super::{Entry, Outbox, Segment, Share, count_record, empty_gap, key_before, oldest_row, row_holding, sized, thin};
use crate::gaps::Gaps;
use crate::row;
use sedge_core::config::WhenFull;
use sedge_core::store::{FULL, RecordId};
use sedge_core::stream::Stream;

/// Size of the rows that one transaction reads at most to free more than it must.
const SPARE_READ_BYTES: u64 = 4 << 20;

/// Size of the rows that are counted for each byte that is added, before the share is full.
const COUNTED_PER_BYTE: u64 = 16;

/// What the functions have in one stream.
#[derive(Debug, Default)]
pub(super) struct Holdings {
    /// Rows up to this key are counted.
    counted: RecordId,
    functions: BTreeMap<Arc<str>, Holding>,
}

#[derive(Debug)]
struct Holding {
    bytes: u64,
    /// With those that folds stand for.
    records: u64,
    /// None of its records has an id up to this one.
    absent_through: RecordId,
}

/// Bytes to drop, by function.
pub(super) type Excess = BTreeMap<Arc<str>, u64>;

impl Holdings {
    /// Counts the row behind those that are counted.
    fn count(&mut self, stream: Stream, last_id: RecordId, row: &Bytes) {
        self.counted = last_id;
        self.add(stream, last_id, row);
    }

    /// A row was added. It is counted later if others before it are not counted yet.
    pub(super) fn appended(&mut self, stream: Stream, first_id: RecordId, last_id: RecordId, row: &[u8]) {
        if self.counted.0 + 1 >= first_id.0 {
            self.count(stream, last_id, &Bytes::copy_from_slice(row));
        }
    }

    /// A row is deleted.
    pub(super) fn remove(&mut self, stream: Stream, last_id: RecordId, row: &Bytes) {
        if last_id > self.counted {
            return;
        }
        for (Entry { stored, .. }, bytes) in sized(row, stream, last_id) {
            if let Some(holding) = self.functions.get_mut(&stored.record.function) {
                holding.bytes = holding.bytes.saturating_sub(bytes);
                holding.records = holding.records.saturating_sub(stored.record.stands_for().0);
            }
        }
        self.functions.retain(|_, holding| holding.bytes > 0);
    }

    /// A row takes the place of others, which are removed.
    pub(super) fn put(&mut self, stream: Stream, last_id: RecordId, row: &[u8]) {
        if last_id <= self.counted {
            self.add(stream, last_id, &Bytes::copy_from_slice(row));
        }
    }

    /// Number of records, if all up to this id are counted.
    pub(super) fn records(&self, last: RecordId) -> Option<u64> {
        (self.counted >= last).then(|| self.functions.values().map(|holding| holding.records).sum())
    }

    /// Damaged records are nobody's.
    fn add(&mut self, stream: Stream, last_id: RecordId, row: &Bytes) {
        for (Entry { stored, .. }, bytes) in sized(row, stream, last_id) {
            let before = RecordId(stored.id.0.saturating_sub(1));
            let records = stored.record.stands_for().0;
            match self.functions.get_mut(&stored.record.function) {
                Some(holding) => {
                    holding.bytes += bytes;
                    holding.records += records;
                    holding.absent_through = holding.absent_through.min(before);
                }
                None => {
                    let holding = Holding { bytes, records, absent_through: before };
                    self.functions.insert(stored.record.function, holding);
                }
            }
        }
    }
}

impl Outbox {
    /// Makes room in a share that is nearly full. `added`: size of what this transaction adds to it.
    pub(super) fn make_room(
        &mut self,
        connection: &Connection,
        mut share: Share,
        added: u64,
        gaps: &mut Gaps,
    ) -> rusqlite::Result<()> {
        let is_full = self.used(&share) > share.max_bytes;
        self.count(connection, &share.streams, if is_full { u64::MAX } else { added * COUNTED_PER_BYTE })?;
        if !is_full {
            return Ok(());
        }
        // Some more at once: the next transaction need not look again.
        let target = share.max_bytes - thin::slack(share.max_bytes);
        if share.when_full == WhenFull::Thin {
            share.max_bytes = target;
            self.thin(connection, &share, gaps)?;
        }
        while self.used(&share) > share.max_bytes {
            let used = self.used(&share);
            let streams = self.dropped_next(&share);
            if self.functions(&streams) > 1 {
                self.drop_excess(connection, &share, &streams, target, gaps)?;
            }
            // Of one function, or damaged.
            if self.used(&share) == used && !self.drop_oldest_of(connection, &streams, gaps)? {
                break;
            }
        }
        Ok(())
    }

    /// Data and local publications are dropped before alerts.
    fn dropped_next(&self, share: &Share) -> Vec<Stream> {
        let (alerts, others): (Vec<Stream>, Vec<Stream>) =
            share.streams.iter().partition(|stream| Some(**stream) == share.alerts);
        if others.iter().any(|stream| self.bytes[*stream] > 0) { others } else { alerts }
    }

    /// Counts rows of about this size.
    fn count(&mut self, connection: &Connection, streams: &[Stream], mut bytes: u64) -> rusqlite::Result<()> {
        for stream in streams.iter().copied() {
            let last = self.marks.last[stream];
            let holdings = self.holdings[stream].get_or_insert_default();
            while holdings.counted < last && bytes > 0 {
                let Some((id, row)) = row_holding(connection, stream, RecordId(holdings.counted.0 + 1))? else {
                    holdings.counted = last;
                    break;
                };
                bytes = bytes.saturating_sub(row.len() as u64);
                holdings.count(stream, id, &row);
            }
        }
        Ok(())
    }

    fn held_by_function(&self, streams: &[Stream]) -> BTreeMap<&Arc<str>, u64> {
        let mut held = BTreeMap::new();
        for holdings in streams.iter().filter_map(|stream| self.holdings[*stream].as_ref()) {
            for (function, holding) in &holdings.functions {
                *held.entry(function).or_default() += holding.bytes;
            }
        }
        held
    }

    fn functions(&self, streams: &[Stream]) -> usize {
        self.held_by_function(streams).len()
    }

    /// What the functions have above the level at which this many bytes are free.
    pub(super) fn excess(&self, streams: &[Stream], bytes: u64) -> Excess {
        let held = self.held_by_function(streams);
        let mut sizes: Vec<u64> = held.values().copied().collect();
        sizes.sort_unstable_by(|a, b| b.cmp(a));
        let (mut level, mut left) = (sizes.first().copied().unwrap_or(0), bytes);
        for above in 1..=sizes.len() {
            let next = sizes.get(above).copied().unwrap_or(0);
            let freed = (level - next).saturating_mul(above as u64);
            if freed >= left {
                level -= left.div_ceil(above as u64);
                break;
            }
            (level, left) = (next, left - freed);
        }
        let excess = |(function, bytes): (&Arc<str>, u64)| (Arc::clone(function), bytes.saturating_sub(level));
        held.into_iter().map(excess).filter(|(_, bytes)| *bytes > 0).collect()
    }

    /// Drops the oldest records of the functions that have most, until the share has `target` bytes.
    fn drop_excess(
        &mut self,
        connection: &Connection,
        share: &Share,
        streams: &[Stream],
        target: u64,
        gaps: &mut Gaps,
    ) -> rusqlite::Result<()> {
        let mut excess = self.excess(streams, self.used(share).saturating_sub(target));
        let mut places: Vec<(Stream, RecordId)> =
            streams.iter().filter_map(|stream| Some((*stream, self.absent_through(*stream, &excess)?))).collect();
        let mut read = 0;
        while excess.values().any(|left| *left > 0) && (read < SPARE_READ_BYTES || self.used(share) > share.max_bytes) {
            let mut oldest: Option<(u64, usize, (RecordId, Bytes))> = None;
            for (place, (stream, after)) in places.iter().enumerate() {
                let Some(row) = row_holding(connection, *stream, RecordId(after.0 + 1))? else { continue };
                let at_ms = row::segment_at_ms(&row.1);
                if oldest.as_ref().is_none_or(|(other, ..)| at_ms < *other) {
                    oldest = Some((at_ms, place, row));
                }
            }
            let Some((_, place, (last_id, row))) = oldest else { break };
            read += row.len() as u64;
            places[place].1 = last_id;
            self.drop_from_row(connection, places[place].0, (last_id, row), &mut excess, gaps)?;
        }
        streams.iter().try_for_each(|stream| self.pass_dropped(connection, *stream))
    }

    /// None of these functions has a record up to this id. `None`: they have none at all.
    fn absent_through(&self, stream: Stream, excess: &Excess) -> Option<RecordId> {
        let functions = &self.holdings[stream].as_ref()?.functions;
        excess.keys().filter_map(|function| Some(functions.get(function)?.absent_through)).min()
    }

    /// Drops the records of a row that are of functions with an excess.
    fn drop_from_row(
        &mut self,
        connection: &Connection,
        stream: Stream,
        (last_id, row): (RecordId, Bytes),
        excess: &mut Excess,
        gaps: &mut Gaps,
    ) -> rusqlite::Result<()> {
        let row = self.without_damage(connection, stream, last_id, row, gaps)?;
        let mut gap = empty_gap(stream, FULL);
        let (mut kept, mut dropped) = (Vec::new(), Vec::new());
        let mut is_changed = false;
        for (Entry { stored, refused }, bytes) in sized(&row, stream, last_id) {
            let is_gone = refused || stored.id <= self.marks.delivered[stream];
            match excess.get_mut(&stored.record.function).filter(|left| **left > 0) {
                Some(left) => {
                    *left = left.saturating_sub(bytes);
                    is_changed = true;
                    if !is_gone {
                        count_record(&mut gap, &stored);
                        dropped.push(stored.id);
                    }
                }
                None if is_gone => {}
                None => kept.push(stored),
            }
        }
        if is_changed {
            match &kept[..] {
                [] => self.empty_row(connection, stream, last_id, &row)?,
                _ => {
                    let body = self.encoder.thinned_segment(&kept, |_| false).to_vec();
                    self.replace_row(connection, stream, last_id, &row, Some(body))?;
                }
            }
        }
        if let Some(holdings) = &mut self.holdings[stream] {
            for function in excess.iter().filter(|(_, left)| **left > 0).map(|(function, _)| function) {
                if let Some(holding) = holdings.functions.get_mut(function) {
                    holding.absent_through = holding.absent_through.max(last_id);
                }
            }
        }
        if !dropped.is_empty() {
            let gap = gaps.add(gap);
            for id in dropped {
                self.tell_dropped(stream, gap, RecordId(id.0 - 1), id);
                self.dropped_between.push((stream, id));
            }
        }
        Ok(())
    }

    /// Takes all records out of a row. Its key stays behind those of earlier rows: where a later row is damaged, the ids between that
    /// key and its own tell which records it had.
    fn empty_row(
        &mut self,
        connection: &Connection,
        stream: Stream,
        last_id: RecordId,
        row: &Bytes,
    ) -> rusqlite::Result<()> {
        let Some(before) = key_before(connection, stream, last_id)? else {
            return self.replace_row(connection, stream, last_id, row, None);
        };
        if let Some((_, row)) = row_holding(connection, stream, before)?
            && Segment::decode(&row, stream, before).is_ok_and(|segment| segment.left() == 0)
        {
            self.replace_row(connection, stream, before, &row, None)?;
        }
        let body = self.encoder.segment_without_records(row::segment_at_ms(row), last_id).to_vec();
        self.replace_row(connection, stream, last_id, row, Some(body))
    }

    /// Moves the watermark to the first record that is left: all before it are dropped.
    fn pass_dropped(&mut self, connection: &Connection, stream: Stream) -> rusqlite::Result<()> {
        let first = match oldest_row(connection, stream)? {
            Some((last_id, row)) => Segment::decode(&row, stream, last_id).map_or(RecordId(0), |it| it.first_id()),
            None => RecordId(self.marks.last[stream].0 + 1),
        };
        let before = RecordId(first.0.saturating_sub(1));
        self.marks.delivered[stream] = self.marks.delivered[stream].max(before);
        Ok(())
    }
}
