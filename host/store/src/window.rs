//! Redelivery window: the watermarks of each stream and the fingerprints of the last deliveries.
//!
//! A row of `progress` holds the watermarks as of its transaction and some fingerprints. The watermarks of the newest row
//! are valid, and the fingerprints of all rows. The newest row is rewritten until it holds [`ROW_FINGERPRINTS`]. Each
//! transaction writes whole pages: both in one row cost one page instead of two.
//!
//! ```text
//! row   delivered × 3, last × 3 (varints), then packet id (u16) and digest (u64), little-endian, until the end; CRC-32
//! ```
//!
//! Rows of layout 1 have no CRC: their fingerprints end with the row.

use std::collections::VecDeque;

use rusqlite::Connection;

use super::row::{Decoder, write_varint};
use sedge_core::store::{Fingerprint, RecordId};

/// Fingerprints per row: few enough that rewriting the row costs no more than its page.
const ROW_FINGERPRINTS: usize = 32;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Watermarks {
    pub(super) delivered: [RecordId; 3],
    pub(super) last: [RecordId; 3],
}

#[derive(Debug)]
pub(super) struct RedeliveryWindow {
    /// Deliveries that the broker may have in flight: Receive Maximum.
    limit: usize,
    /// Not on disk yet.
    fresh: Vec<Fingerprint>,
    /// Content of the newest row.
    newest: Vec<Fingerprint>,
    /// Key and number of fingerprints of each row, oldest first.
    rows: VecDeque<(i64, usize)>,
    /// Sum of `rows`.
    stored: usize,
    row: Vec<u8>,
    /// Keys of rows that cannot be read.
    damaged: Vec<i64>,
}

impl RedeliveryWindow {
    /// Returns the window, the watermarks, and the last `limit` fingerprints, oldest first.
    pub(super) fn load(
        connection: &Connection,
        limit: usize,
    ) -> rusqlite::Result<(Self, Watermarks, Vec<Fingerprint>)> {
        let mut window = Self {
            limit,
            fresh: Vec::new(),
            newest: Vec::new(),
            rows: VecDeque::new(),
            stored: 0,
            row: Vec::new(),
            damaged: Vec::new(),
        };
        let mut watermarks = Watermarks::default();
        let mut fingerprints = Vec::new();
        let mut statement = connection.prepare("SELECT id, body FROM progress ORDER BY id")?;
        let mut rows = statement.query(())?;
        while let Some(row) = rows.next()? {
            let id = row.get(0)?;
            let Some((as_of, of_row)) = decode(row.get_ref(1)?.as_blob()?) else {
                tracing::error!(row = id, "skipped a damaged row of the redelivery window");
                window.damaged.push(id);
                continue;
            };
            watermarks = as_of;
            window.rows.push_back((id, of_row.len()));
            window.stored += of_row.len();
            fingerprints.extend_from_slice(&of_row);
            window.newest = of_row;
        }
        fingerprints.drain(..fingerprints.len().saturating_sub(limit));
        Ok((window, watermarks, fingerprints))
    }

    /// Deletes the damaged rows. Returns how many there were: the newest of them may have had the last ids.
    pub(super) fn delete_damaged(&mut self, connection: &Connection) -> rusqlite::Result<usize> {
        let damaged = std::mem::take(&mut self.damaged);
        for id in &damaged {
            connection.execute("DELETE FROM progress WHERE id = ?1", (id,))?;
        }
        Ok(damaged.len())
    }

    pub(super) fn push(&mut self, fingerprint: Fingerprint) {
        self.fresh.push(fingerprint);
        // Any number of messages without effect can come between two transactions.
        if self.fresh.len() >= 2 * self.limit {
            self.fresh.drain(..self.fresh.len() - self.limit);
        }
    }

    /// Forgets all fingerprints. The next [`RedeliveryWindow::write`] of the transaction writes the watermarks again.
    pub(super) fn clear(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        connection.prepare_cached("DELETE FROM progress")?.execute(())?;
        self.fresh.clear();
        self.newest.clear();
        self.rows.clear();
        self.stored = 0;
        Ok(())
    }

    pub(super) fn write(&mut self, connection: &Connection, watermarks: &Watermarks) -> rusqlite::Result<()> {
        let id = match self.rows.back() {
            Some((id, count)) if *count < ROW_FINGERPRINTS => *id,
            newest => {
                let id = newest.map_or(1, |(id, _)| id + 1);
                self.newest.clear();
                self.rows.push_back((id, 0));
                id
            }
        };
        self.stored += self.fresh.len();
        self.newest.append(&mut self.fresh);
        if let Some((_, count)) = self.rows.back_mut() {
            *count = self.newest.len();
        }
        encode(&mut self.row, watermarks, &self.newest);
        connection.prepare_cached("REPLACE INTO progress VALUES (?1, ?2)")?.execute((id, &self.row[..]))?;
        // Deleted many at a time, because the oldest rows lie on another page.
        if self.stored >= 2 * self.limit {
            let mut through = None;
            while let Some((id, count)) = self.rows.front().copied()
                && self.stored - count >= self.limit
                && self.rows.len() > 1
            {
                self.rows.pop_front();
                self.stored -= count;
                through = Some(id);
            }
            if let Some(through) = through {
                connection.prepare_cached("DELETE FROM progress WHERE id <= ?1")?.execute((through,))?;
            }
        }
        Ok(())
    }
}

fn encode(row: &mut Vec<u8>, watermarks: &Watermarks, fingerprints: &[Fingerprint]) {
    row.clear();
    for RecordId(id) in watermarks.delivered.into_iter().chain(watermarks.last) {
        write_varint(row, id);
    }
    for fingerprint in fingerprints {
        row.extend_from_slice(&fingerprint.packet_id.to_le_bytes());
        row.extend_from_slice(&fingerprint.digest.to_le_bytes());
    }
    let sum = crc32fast::hash(row);
    row.extend_from_slice(&sum.to_le_bytes());
}

fn decode(row: &[u8]) -> Option<(Watermarks, Vec<Fingerprint>)> {
    let mut decoder = Decoder { row, at: 0 };
    let mut watermarks = Watermarks::default();
    for RecordId(id) in watermarks.delivered.iter_mut().chain(&mut watermarks.last) {
        *id = decoder.varint().ok()?;
    }
    let (fingerprints, sum) = decoder.rest().as_chunks::<10>();
    let body = &row[..row.len() - sum.len()];
    if !(sum.is_empty() || *sum == crc32fast::hash(body).to_le_bytes()) {
        return None;
    }
    let fingerprints = fingerprints
        .iter()
        .map(|&[p0, p1, ref digest @ ..]| Fingerprint {
            packet_id: u16::from_le_bytes([p0, p1]),
            digest: u64::from_le_bytes(*digest),
        })
        .collect();
    Some((watermarks, fingerprints))
}
