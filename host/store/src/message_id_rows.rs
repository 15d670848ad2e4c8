//! Message ids on disk: rows of hashes with a time.

use std::time::{Duration, Instant};

use rusqlite::{Connection, OptionalExtension};

use sedge_core::store::MessageIds;
use sedge_core::store::message_ids::{IDS, hash, key};

/// Ids per row: few enough that rewriting the newest row costs no more than its page.
const ROW_IDS: usize = 64;

#[derive(Debug)]
pub(super) struct MessageIdRows {
    key: [u8; 16],
    retention_secs: u64,
    /// Not on disk yet.
    fresh: Vec<u64>,
    newest: Vec<u64>,
    /// All rows are within these two ids.
    oldest_id: i64,
    newest_id: i64,
    stored: usize,
}

impl MessageIdRows {
    pub(super) fn load(
        connection: &Connection,
        store_id: &str,
        retention_secs: u64,
        now: Instant,
    ) -> rusqlite::Result<(Self, MessageIds)> {
        let mut message_id_rows = Self {
            key: key(store_id),
            retention_secs,
            fresh: Vec::new(),
            newest: Vec::new(),
            newest_id: 0,
            oldest_id: 1,
            stored: 0,
        };
        let mut ids = MessageIds::new(store_id, Duration::from_secs(retention_secs));
        let mut statement = connection.prepare("SELECT id, at_secs, body FROM message_id ORDER BY id")?;
        let mut rows = statement.query(())?;
        while let Some(row) = rows.next()? {
            let (hashes, _) = row.get_ref(2)?.as_blob()?.as_chunks();
            message_id_rows.newest = hashes.iter().map(|hash| u64::from_le_bytes(*hash)).collect();
            for hash in &message_id_rows.newest {
                ids.insert_hash(*hash, now);
            }
            if message_id_rows.newest_id == 0 {
                message_id_rows.oldest_id = row.get(0)?;
            }
            message_id_rows.newest_id = row.get(0)?;
            message_id_rows.stored += message_id_rows.newest.len();
        }
        Ok((message_id_rows, ids))
    }

    pub(super) fn push(&mut self, id: &str) {
        self.fresh.push(hash(&self.key, id));
        if self.fresh.len() >= 2 * IDS {
            self.fresh.drain(..IDS);
        }
    }

    pub(super) fn write(&mut self, connection: &Connection, now_secs: u64) -> rusqlite::Result<()> {
        if self.fresh.is_empty() {
            return Ok(());
        }
        if self.newest_id == 0 || self.newest.len() >= ROW_IDS {
            self.newest.clear();
            self.newest_id += 1;
            self.trim(connection, now_secs)?;
        }
        self.stored += self.fresh.len();
        self.newest.append(&mut self.fresh);
        let body: Vec<u8> = self.newest.iter().flat_map(|hash| hash.to_le_bytes()).collect();
        connection.prepare_cached("REPLACE INTO message_id VALUES (?1, ?2, ?3)")?.execute((
            self.newest_id,
            now_secs,
            body,
        ))?;
        Ok(())
    }

    /// Deletes rows whose newest id is too old, or that hold none of the [`IDS`] newest ids.
    fn trim(&mut self, connection: &Connection, now_secs: u64) -> rusqlite::Result<()> {
        let too_old = now_secs.saturating_sub(self.retention_secs);
        while self.oldest_id < self.newest_id {
            let row = connection
                .prepare_cached("SELECT at_secs, length(body) FROM message_id WHERE id = ?1")?
                .query_row((self.oldest_id,), |row| Ok((row.get::<_, u64>(0)?, row.get::<_, usize>(1)? / 8)));
            let (at_secs, count) = row.optional()?.unwrap_or((0, 0));
            if at_secs >= too_old && self.stored - count < IDS {
                break;
            }
            connection.prepare_cached("DELETE FROM message_id WHERE id = ?1")?.execute((self.oldest_id,))?;
            self.stored -= count;
            self.oldest_id += 1;
        }
        Ok(())
    }
}
