//! Gaps to report upstream: one row per stream and reason, extended until it is reported.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use rusqlite::Connection;

use super::stats::Stats;
use sedge_core::store::{DAMAGED, EXPIRED, FULL, Gap, GapId, RecordId, StoreEvent};
use sedge_core::stream::Stream;

#[derive(Debug)]
pub(super) struct Gaps {
    rows: Vec<Row>,
    stats: Arc<Stats>,
    /// Rows up to this one are not extended any more: their report may be in flight.
    reporting: i64,
}

#[derive(Debug)]
struct Row {
    id: i64,
    gap: Gap,
    is_written: bool,
}

impl Gaps {
    pub(super) fn load(connection: &Connection, stats: Arc<Stats>) -> rusqlite::Result<Self> {
        let mut statement = connection.prepare(
            "SELECT id, stream, reason, first_id, last_id, records, bytes, first_at_ms, last_at_ms FROM gap
             ORDER BY id",
        )?;
        let rows = statement.query_map((), |row| {
            let stream: usize = row.get(1)?;
            let gap = Gap {
                stream: Stream::ALL.get(stream).copied().unwrap_or(Stream::Data),
                reason: row.get(2)?,
                first_id: RecordId(row.get(3)?),
                last_id: RecordId(row.get(4)?),
                records: row.get(5)?,
                bytes: row.get(6)?,
                first_at_ms: row.get(7)?,
                last_at_ms: row.get(8)?,
            };
            Ok(Row { id: row.get(0)?, gap, is_written: true })
        })?;
        Ok(Self { rows: rows.collect::<rusqlite::Result<_>>()?, stats, reporting: 0 })
    }

    pub(super) fn add(&mut self, lost: Gap) {
        let stats = &self.stats;
        let dropped = match &*lost.reason {
            FULL => &stats.dropped_full,
            EXPIRED => &stats.dropped_expired,
            DAMAGED => &stats.dropped_damaged,
            _ => &stats.dropped_refused,
        };
        dropped.fetch_add(lost.records, Relaxed);
        let open = self
            .rows
            .iter_mut()
            .find(|row| row.id > self.reporting && (row.gap.stream, &row.gap.reason) == (lost.stream, &lost.reason));
        match open {
            Some(row) => {
                let gap = &mut row.gap;
                gap.first_id = gap.first_id.min(lost.first_id);
                gap.last_id = gap.last_id.max(lost.last_id);
                gap.records += lost.records;
                gap.bytes += lost.bytes;
                gap.first_at_ms = gap.first_at_ms.min(lost.first_at_ms);
                gap.last_at_ms = gap.last_at_ms.max(lost.last_at_ms);
                row.is_written = false;
            }
            // Logged once per gap; the metrics and the report have the final numbers.
            None => {
                let id = self.rows.last().map_or(0, |row| row.id).max(self.reporting) + 1;
                tracing::error!(
                    stream = ?lost.stream, reason = &*lost.reason, first_id = lost.first_id.0, records = lost.records,
                    "records are lost"
                );
                self.rows.push(Row { id, gap: lost, is_written: false });
            }
        }
    }

    pub(super) fn has_unwritten(&self) -> bool {
        self.rows.iter().any(|row| !row.is_written)
    }

    pub(super) fn write(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        for row in self.rows.iter_mut().filter(|row| !row.is_written) {
            let gap = &row.gap;
            connection.prepare_cached("REPLACE INTO gap VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)")?.execute((
                row.id,
                gap.stream as u8,
                &gap.reason,
                gap.first_id.0,
                gap.last_id.0,
                gap.records,
                gap.bytes,
                gap.first_at_ms,
                gap.last_at_ms,
            ))?;
            row.is_written = true;
        }
        Ok(())
    }

    /// Returns the gaps that are on disk and not reported, unless a report is in flight.
    pub(super) fn next_report(&mut self) -> Option<StoreEvent> {
        let is_reporting = self.rows.first().is_some_and(|row| row.id <= self.reporting);
        let through = self.rows.iter().take_while(|row| row.is_written).last()?.id;
        if is_reporting {
            return None;
        }
        self.reporting = through;
        let gaps = self.rows.iter().filter(|row| row.id <= through).map(|row| row.gap.clone()).collect();
        Some(StoreEvent::Gaps { through: GapId(through as u64), gaps })
    }

    pub(super) fn reported(&mut self, connection: &Connection, through: GapId) -> rusqlite::Result<()> {
        let through = i64::try_from(through.0).unwrap_or(i64::MAX).min(self.reporting);
        self.rows.retain(|row| row.id > through);
        connection.prepare_cached("DELETE FROM gap WHERE id <= ?1")?.execute((through,))?;
        Ok(())
    }
}
