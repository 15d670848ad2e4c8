//! Gaps to report to the sinks that miss records, or get them folded: one row per stream and reason, extended until it is
//! reported. What no sink of the configuration is to know goes to the first one.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use rusqlite::Connection;

use super::stats::Stats;
use sedge_core::fold::THINNED;
use sedge_core::store::{Gap, GapId, RecordId, StoreEvent};
use sedge_core::stream::{SINKS, SinkId, Stream};

#[derive(Debug)]
pub(super) struct Gaps {
    rows: Vec<Row>,
    stats: Arc<Stats>,
    /// Sinks of the configuration. The first is told of the gaps that none of them has.
    sinks: Vec<SinkId>,
    /// By sink: its rows up to this one are not extended any more, since their report may be in flight.
    reporting: [i64; SINKS],
}

#[derive(Debug)]
struct Row {
    id: i64,
    gap: Gap,
    is_written: bool,
}

impl Gaps {
    pub(super) fn load(connection: &Connection, sinks: Vec<SinkId>, stats: Arc<Stats>) -> rusqlite::Result<Self> {
        let mut statement = connection.prepare(
            "SELECT id, stream, reason, first_id, last_id, records, bytes, first_at_ms, last_at_ms FROM gap
             ORDER BY id",
        )?;
        let rows = statement.query_map((), |row| {
            let stream: usize = row.get(1)?;
            let gap = Gap {
                stream: Stream::of_number(stream).unwrap_or(Stream::DATA),
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
        Ok(Self { rows: rows.collect::<rusqlite::Result<_>>()?, stats, sinks, reporting: [0; SINKS] })
    }

    /// Returns the gap that counts these records.
    pub(super) fn add(&mut self, lost: Gap) -> GapId {
        let is_lost = *lost.reason != *THINNED;
        let counter = match is_lost {
            true => self.stats.dropped[lost.stream].of(&lost.reason),
            false => &self.stats.thinned[lost.stream],
        };
        counter.fetch_add(lost.records, Relaxed);
        let reporting = self.reporter(lost.stream).map_or(0, |sink| self.reporting[sink.index()]);
        // A receiver knows a gap by its first id, and may know this one from before a restart.
        let is_of =
            |gap: &Gap| (gap.stream, &gap.reason) == (lost.stream, &lost.reason) && gap.first_id <= lost.first_id;
        let open = self.rows.iter_mut().find(|row| row.id > reporting && is_of(&row.gap));
        let id = match open {
            Some(row) => {
                row.gap.add(&lost);
                row.is_written = false;
                row.id
            }
            // Logged once per gap; the metrics and the report have the final numbers.
            None => {
                let reporting = self.reporting.iter().copied().max().unwrap_or(0);
                let id = self.rows.last().map_or(0, |row| row.id).max(reporting) + 1;
                let (stream, reason, first_id) = (lost.stream, &*lost.reason, lost.first_id.0);
                if is_lost {
                    tracing::error!(?stream, reason, first_id, records = lost.records, "records are lost");
                } else {
                    tracing::warn!(?stream, first_id, "the outbox is full: its oldest data is thinned out");
                }
                self.rows.push(Row { id, gap: lost, is_written: false });
                id
            }
        };
        GapId(id as u64)
    }

    pub(super) fn has_unwritten(&self) -> bool {
        self.rows.iter().any(|row| !row.is_written)
    }

    pub(super) fn write(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        for row in self.rows.iter_mut().filter(|row| !row.is_written) {
            let gap = &row.gap;
            connection.prepare_cached("REPLACE INTO gap VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)")?.execute((
                row.id,
                gap.stream.index(),
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

    /// Returns the gaps that are on disk and not reported, of each sink whose last report is not in flight.
    pub(super) fn next_reports(&mut self) -> Vec<StoreEvent> {
        if self.rows.is_empty() {
            return Vec::new();
        }
        self.sinks.clone().into_iter().filter_map(|sink| self.next_report(sink)).collect()
    }

    fn next_report(&mut self, sink: SinkId) -> Option<StoreEvent> {
        let mut of_sink = self.rows.iter().filter(|row| self.reporter(row.gap.stream) == Some(sink)).peekable();
        let reporting = self.reporting[sink.index()];
        if of_sink.peek().is_some_and(|row| row.id <= reporting) {
            return None;
        }
        let ready: Vec<&Row> = of_sink.take_while(|row| row.is_written).collect();
        let through = ready.last()?.id;
        let gaps = ready.into_iter().map(|row| (GapId(row.id as u64), row.gap.clone())).collect();
        self.reporting[sink.index()] = through;
        Some(StoreEvent::Gaps { sink, gaps })
    }

    /// The sink that gaps of a stream are reported to.
    fn reporter(&self, stream: Stream) -> Option<SinkId> {
        let own = stream.sink().filter(|sink| self.sinks.contains(sink));
        own.or_else(|| self.sinks.first().copied())
    }

    pub(super) fn reported(&mut self, connection: &Connection, sink: SinkId, through: GapId) -> rusqlite::Result<()> {
        let through = i64::try_from(through.0).unwrap_or(i64::MAX).min(self.reporting[sink.index()]);
        let is_done = |gaps: &Self, row: &Row| row.id <= through && gaps.reporter(row.gap.stream) == Some(sink);
        let done: Vec<i64> = self.rows.iter().filter(|row| is_done(self, row)).map(|row| row.id).collect();
        self.rows.retain(|row| !done.contains(&row.id));
        for id in done {
            connection.prepare_cached("DELETE FROM gap WHERE id = ?1")?.execute((id,))?;
        }
        Ok(())
    }
}
