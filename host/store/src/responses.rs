//! Answers to requests over HTTP, kept for repeats under the same message id.
//!
//! ```text
//! row   status, dead letter or 0, 1 + length of the content type or 0 (varints), content type, body; CRC-32 of these and the
//!       hash of the message id
//! ```
//!
//! The oldest make room for new ones. The message id is known for longer then, and the repeat is told that it is one.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension};

use super::row::{Decoder, sum_of, write_varint};
use sedge_core::request::Response;
use sedge_core::store::DeadLetterId;
use sedge_core::store::message_ids::{IDS, hash, key};

/// All rows together.
const MAX_BYTES: usize = 16 << 20;
/// What a row counts beside its body: its key and columns.
const ROW_BYTES: usize = 32;

/// Table of the answers. Knows its rows in memory, so that it needs no index.
#[derive(Debug)]
pub(super) struct ResponseTable {
    key: [u8; 16],
    retention_hours: u64,
    max_bytes: usize,
    /// Ids of the rows, by hash of the message id.
    rows: HashMap<u64, i64>,
    /// Oldest first.
    order: VecDeque<Kept>,
    bytes: usize,
    last_id: i64,
}

#[derive(Clone, Copy, Debug)]
struct Kept {
    id: i64,
    hash: u64,
    hour: u64,
    bytes: usize,
}

impl ResponseTable {
    pub(super) fn load(connection: &Connection, store_id: &str, retention_secs: u64) -> rusqlite::Result<Self> {
        let mut table = Self {
            key: key(store_id),
            // Begun hours count, and the ids are kept for at least as long.
            retention_hours: retention_secs / 3600 + 2,
            max_bytes: MAX_BYTES,
            rows: HashMap::new(),
            order: VecDeque::new(),
            bytes: 0,
            last_id: 0,
        };
        let mut statement = connection.prepare("SELECT id, hash, hour, length(body) FROM response ORDER BY id")?;
        let mut rows = statement.query(())?;
        while let Some(row) = rows.next()? {
            let hash = row.get::<_, i64>(1)?.cast_unsigned();
            table.remember(Kept { id: row.get(0)?, hash, hour: row.get(2)?, bytes: row.get(3)? });
        }
        Ok(table)
    }

    fn remember(&mut self, kept: Kept) {
        self.last_id = kept.id;
        self.bytes += kept.bytes + ROW_BYTES;
        self.rows.insert(kept.hash, kept.id);
        self.order.push_back(kept);
    }

    /// `dead_letter`: of the same commit. `hour`: of the running time.
    pub(super) fn insert(
        &mut self,
        connection: &Connection,
        message_id: &str,
        response: &Response,
        dead_letter: Option<DeadLetterId>,
        hour: u64,
    ) -> rusqlite::Result<()> {
        let hash = hash(&self.key, message_id);
        let body = encode(response, dead_letter, hash);
        let kept = Kept { id: self.last_id + 1, hash, hour, bytes: body.len() };
        connection.prepare_cached("INSERT INTO response VALUES (?1, ?2, ?3, ?4)")?.execute((
            kept.id,
            hash.cast_signed(),
            hour,
            body,
        ))?;
        self.remember(kept);
        self.trim(connection, hour)
    }

    /// Deletes rows that are too old, and the oldest of too many. The newest stays.
    fn trim(&mut self, connection: &Connection, hour: u64) -> rusqlite::Result<()> {
        let too_old = hour.saturating_sub(self.retention_hours);
        while let Some(oldest) = self.order.front().copied()
            && self.order.len() > 1
            && (oldest.hour < too_old || self.bytes > self.max_bytes || self.order.len() > IDS)
        {
            connection.prepare_cached("DELETE FROM response WHERE id = ?1")?.execute((oldest.id,))?;
            self.order.pop_front();
            self.bytes -= oldest.bytes + ROW_BYTES;
            if self.rows.get(&oldest.hash) == Some(&oldest.id) {
                self.rows.remove(&oldest.hash);
            }
        }
        Ok(())
    }

    /// `None`: not kept any more, or damaged.
    pub(super) fn read(&self, connection: &Connection, message_id: &str) -> rusqlite::Result<Option<Response>> {
        let hash = hash(&self.key, message_id);
        let Some(id) = self.rows.get(&hash) else { return Ok(None) };
        let mut statement = connection.prepare_cached("SELECT body FROM response WHERE id = ?1")?;
        let body: Option<Vec<u8>> = statement.query_row((id,), |row| row.get(0)).optional()?;
        let response = body.and_then(|body| decode(&body, hash));
        if response.is_none() {
            tracing::error!(row = id, "the answer to a request is damaged");
        }
        Ok(response)
    }
}

fn encode(response: &Response, dead_letter: Option<DeadLetterId>, hash: u64) -> Vec<u8> {
    let mut row = Vec::with_capacity(response.bytes());
    write_varint(&mut row, response.status.into());
    write_varint(&mut row, dead_letter.map_or(0, |id| id.0));
    let content_type = response.content_type.as_deref();
    write_varint(&mut row, content_type.map_or(0, |text| 1 + text.len() as u64));
    row.extend_from_slice(content_type.unwrap_or_default().as_bytes());
    row.extend_from_slice(&response.body);
    let sum = sum_of(&[&row, &hash.to_le_bytes()]);
    row.extend_from_slice(&sum.to_le_bytes());
    row
}

fn decode(row: &[u8], hash: u64) -> Option<Response> {
    let (row, sum) = row.split_last_chunk()?;
    if u32::from_le_bytes(*sum) != sum_of(&[row, &hash.to_le_bytes()]) {
        return None;
    }
    let mut decoder = Decoder { row, at: 0 };
    let status = decoder.varint().ok()?.try_into().ok()?;
    let dead_letter = Some(decoder.varint().ok()?).filter(|id| *id > 0).map(DeadLetterId);
    let length = usize::try_from(decoder.varint().ok()?).ok()?;
    let rest = decoder.rest();
    let (content_type, body) = rest.split_at_checked(length.saturating_sub(1))?;
    let content_type = match length {
        0 => None,
        _ => Some(str::from_utf8(content_type).ok()?.into()),
    };
    let body = Bytes::copy_from_slice(body);
    Some(Response { status, content_type, body, dead_letter, retry_after_secs: None, allow: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::CREATE;

    const STORE_ID: &str = "0123456789abcdef";

    fn database() -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(CREATE).unwrap();
        connection
    }

    fn table(connection: &Connection) -> ResponseTable {
        ResponseTable::load(connection, STORE_ID, 3600).unwrap()
    }

    #[test]
    fn an_answer_reads_back_after_a_restart() {
        let connection = database();
        let mut before = table(&connection);
        let plain = Response::text(422, "too warm");
        let letter = Some(DeadLetterId(7));
        before.insert(&connection, "a", &Response::DONE, None, 5).unwrap();
        before.insert(&connection, "b", &plain, letter, 5).unwrap();
        let after = table(&connection);
        assert_eq!(after.read(&connection, "a").unwrap(), Some(Response::DONE));
        assert_eq!(after.read(&connection, "b").unwrap(), Some(Response { dead_letter: letter, ..plain }));
        assert_eq!(after.read(&connection, "c").unwrap(), None);
        assert_eq!((after.bytes, after.last_id), (before.bytes, 2));
    }

    #[test]
    fn old_answers_and_the_oldest_of_too_many_bytes_go() {
        let connection = database();
        let mut table = table(&connection);
        let large = Response::text(200, "x".repeat(1000));
        table.max_bytes = 3500;
        for (n, name) in ["a", "b", "c", "d"].into_iter().enumerate() {
            table.insert(&connection, name, &large, None, n as u64).unwrap();
        }
        assert_eq!(table.read(&connection, "a").unwrap(), None);
        assert!(table.read(&connection, "b").unwrap().is_some() && table.bytes <= 3500);
        table.insert(&connection, "e", &Response::DONE, None, 6).unwrap();
        assert!(table.read(&connection, "c").unwrap().is_none(), "kept for an hour and those that have begun");
        assert!(table.read(&connection, "d").unwrap().is_some());
        let rows: u32 = connection.query_row("SELECT count(*) FROM response", (), |row| row.get(0)).unwrap();
        assert_eq!(rows as usize, table.order.len());
    }

    #[test]
    fn an_id_that_is_used_again_has_its_latest_answer() {
        let connection = database();
        let mut table = table(&connection);
        table.insert(&connection, "a", &Response::text(422, "no"), None, 0).unwrap();
        table.insert(&connection, "a", &Response::DONE, None, 9).unwrap();
        assert_eq!(table.order.len(), 1);
        assert_eq!(table.read(&connection, "a").unwrap(), Some(Response::DONE));
    }

    #[test]
    fn a_damaged_answer_is_none() {
        let connection = database();
        let mut table = table(&connection);
        table.insert(&connection, "a", &Response::text(200, "body"), None, 0).unwrap();
        for at in 0..table.order[0].bytes {
            let row: Vec<u8> = connection.query_row("SELECT body FROM response", (), |row| row.get(0)).unwrap();
            let mut damaged = row.clone();
            damaged[at] ^= 4;
            connection.execute("UPDATE response SET body = ?1", (damaged,)).unwrap();
            assert_eq!(table.read(&connection, "a").unwrap(), None, "byte {at}");
            connection.execute("UPDATE response SET body = ?1", (row,)).unwrap();
        }
        assert!(table.read(&connection, "a").unwrap().is_some());
    }
}
