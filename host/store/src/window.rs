//! Redelivery window: the watermarks of each stream and the fingerprints of the last deliveries.
//!
//! A row of `progress` holds the watermarks as of its transaction and some fingerprints. The watermarks of the newest row
//! are valid, and the fingerprints of all rows. The newest row is rewritten until it holds [`ROW_FINGERPRINTS`]. Each
//! transaction writes whole pages: both in one row cost one page instead of two.
//!
//! ```text
//! row    delivered × 3, last × 3 (varints), then packet id (u16) and digest (u64), little-endian, until the end; CRC-32
//! sinks  NULL, or for each further stream with records: number of the stream, delivered, last (varints); CRC-32
//! ```
//!
//! Rows of layout 1 have no CRC: their fingerprints end with the row. The streams of a board with one sink are in the row itself,
//! so that its commits have the size that they had before sinks had names.

use std::collections::VecDeque;

use rusqlite::Connection;

use super::row::{Decoder, write_varint};
use sedge_core::store::{Fingerprint, RecordId};
use sedge_core::stream::{PerStream, Stream};

/// Fingerprints per row: few enough that rewriting the row costs no more than its page.
const ROW_FINGERPRINTS: usize = 32;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Watermarks {
    pub(super) delivered: PerStream<RecordId>,
    pub(super) last: PerStream<RecordId>,
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
    sinks: Vec<u8>,
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
            sinks: Vec::new(),
            damaged: Vec::new(),
        };
        let mut watermarks = Watermarks::default();
        let mut fingerprints = Vec::new();
        let mut statement = connection.prepare("SELECT id, body, sinks FROM progress ORDER BY id")?;
        let mut rows = statement.query(())?;
        while let Some(row) = rows.next()? {
            let id = row.get(0)?;
            let sinks = row.get_ref(2)?.as_blob_or_null()?;
            let Some((as_of, of_row)) = decode(row.get_ref(1)?.as_blob()?, sinks.unwrap_or_default()) else {
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
        encode_sinks(&mut self.sinks, watermarks);
        let sinks = (!self.sinks.is_empty()).then_some(&self.sinks[..]);
        let mut replace = connection.prepare_cached("REPLACE INTO progress VALUES (?1, ?2, ?3)")?;
        replace.execute((id, &self.row[..], sinks))?;
        drop(replace);
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
    for marks in [&watermarks.delivered, &watermarks.last] {
        Stream::FIRST.iter().for_each(|stream| write_varint(row, marks[*stream].0));
    }
    for fingerprint in fingerprints {
        row.extend_from_slice(&fingerprint.packet_id.to_le_bytes());
        row.extend_from_slice(&fingerprint.digest.to_le_bytes());
    }
    let sum = crc32fast::hash(row);
    row.extend_from_slice(&sum.to_le_bytes());
}

/// Leaves `row` empty if no further stream has had records.
fn encode_sinks(row: &mut Vec<u8>, watermarks: &Watermarks) {
    row.clear();
    for stream in Stream::all().skip(Stream::FIRST.len()).filter(|stream| watermarks.last[*stream].0 > 0) {
        for number in [stream.index() as u64, watermarks.delivered[stream].0, watermarks.last[stream].0] {
            write_varint(row, number);
        }
    }
    if !row.is_empty() {
        let sum = crc32fast::hash(row);
        row.extend_from_slice(&sum.to_le_bytes());
    }
}

fn decode(row: &[u8], sinks: &[u8]) -> Option<(Watermarks, Vec<Fingerprint>)> {
    let mut decoder = Decoder { row, at: 0 };
    let mut watermarks = Watermarks::default();
    for marks in [&mut watermarks.delivered, &mut watermarks.last] {
        for stream in Stream::FIRST {
            marks[stream] = RecordId(decoder.varint().ok()?);
        }
    }
    decode_sinks(sinks, &mut watermarks)?;
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

fn decode_sinks(row: &[u8], watermarks: &mut Watermarks) -> Option<()> {
    if row.is_empty() {
        return Some(());
    }
    let (body, sum) = row.split_last_chunk::<4>()?;
    if *sum != crc32fast::hash(body).to_le_bytes() {
        return None;
    }
    let mut decoder = Decoder { row: body, at: 0 };
    while decoder.at < body.len() {
        let stream = Stream::of_number(usize::try_from(decoder.varint().ok()?).ok()?)?;
        watermarks.delivered[stream] = RecordId(decoder.varint().ok()?);
        watermarks.last[stream] = RecordId(decoder.varint().ok()?);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_board_with_one_sink_writes_no_watermarks_of_others() {
        let mut marks = Watermarks::default();
        marks.last[Stream::DATA] = RecordId(7);
        let (mut row, mut sinks) = (Vec::new(), Vec::new());
        encode(&mut row, &marks, &[]);
        encode_sinks(&mut sinks, &marks);
        assert_eq!((row.len(), sinks.len()), (6 + 4, 0));
        assert_eq!(decode(&row, &sinks), Some((marks, Vec::new())));
    }

    #[test]
    fn watermarks_of_named_sinks_are_read_back_and_damage_is_noticed() {
        let mut marks = Watermarks::default();
        for (n, stream) in Stream::all().enumerate().filter(|(n, _)| n % 3 != 1) {
            marks.last[stream] = RecordId(1000 + n as u64);
            marks.delivered[stream] = RecordId(n as u64);
        }
        let (mut row, mut sinks) = (Vec::new(), Vec::new());
        encode(&mut row, &marks, &[Fingerprint { packet_id: 7, digest: 9 }]);
        encode_sinks(&mut sinks, &marks);
        let (read, fingerprints) = decode(&row, &sinks).unwrap();
        assert_eq!((read, fingerprints.len()), (marks, 1));
        for place in 0..sinks.len() {
            let mut damaged = sinks.clone();
            damaged[place] ^= 1;
            assert_eq!(decode(&row, &damaged), None, "byte {place}");
        }
    }
}
