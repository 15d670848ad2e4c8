//! The message ids that publishers set themselves, remembered as 64-bit hashes for a while.
//!
//! Two lists of the same thing: on disk, rows of hashes with a time, and [`MessageIds`] in memory, which the pipeline
//! asks before it runs a message. The hash is keyed with the store's random id, so that nobody can choose two ids
//! that look like one.

use std::collections::{HashSet, VecDeque};

use rusqlite::Connection;
use siphasher::sip::SipHasher13;

/// The most ids that are remembered, however long they should be: about 3 MB of memory when all are in use.
const IDS: usize = 65_536;

/// As in the window: few enough that rewriting the newest row costs nothing beside its page.
const ROW_IDS: usize = 64;

/// Which message ids were seen lately.
#[derive(Debug, Default)]
pub struct MessageIds {
    key: [u8; 16],
    retention_secs: u64,
    known: HashSet<u64>,
    /// Oldest first, with the Unix time in seconds.
    order: VecDeque<(u64, u64)>,
}

impl MessageIds {
    pub(super) fn new(store_id: &str, retention_secs: u64) -> Self {
        Self { key: key(store_id), retention_secs, ..Self::default() }
    }

    /// Whether the id was seen before. If not, it has been now; the store is told by `Commit::message_id`.
    pub fn insert(&mut self, id: &str, now_secs: u64) -> bool {
        !self.insert_hash(hash(&self.key, id), now_secs)
    }

    pub fn contains(&self, id: &str) -> bool {
        self.known.contains(&hash(&self.key, id))
    }

    fn insert_hash(&mut self, hash: u64, now_secs: u64) -> bool {
        let new = self.known.insert(hash);
        if new {
            self.order.push_back((now_secs, hash));
        }
        let oldest = now_secs.saturating_sub(self.retention_secs);
        while let Some((at_secs, hash)) = self.order.front()
            && (*at_secs < oldest || self.order.len() > IDS)
        {
            self.known.remove(hash);
            self.order.pop_front();
        }
        new
    }
}

fn key(store_id: &str) -> [u8; 16] {
    let mut key = [0; 16];
    key.iter_mut().zip(store_id.bytes()).for_each(|(key, byte)| *key = byte);
    key
}

fn hash(key: &[u8; 16], id: &str) -> u64 {
    SipHasher13::new_with_key(key).hash(id.as_bytes())
}

/// The writer's side: the rows on disk.
#[derive(Debug)]
pub(super) struct MessageIdRows {
    key: [u8; 16],
    retention_secs: u64,
    /// Not on disk yet.
    fresh: Vec<u64>,
    newest: Vec<u64>,
    newest_id: i64,
    /// Rows there may be at most.
    oldest_id: i64,
    stored: usize,
}

impl MessageIdRows {
    pub(super) fn load(
        connection: &Connection,
        store_id: &str,
        retention_secs: u64,
    ) -> rusqlite::Result<(Self, MessageIds)> {
        let mut rows_side = Self {
            key: key(store_id),
            retention_secs,
            fresh: Vec::new(),
            newest: Vec::new(),
            newest_id: 0,
            oldest_id: 1,
            stored: 0,
        };
        let mut ids = MessageIds::new(store_id, retention_secs);
        let mut statement = connection.prepare("SELECT id, at_secs, body FROM message_id ORDER BY id")?;
        let mut rows = statement.query(())?;
        while let Some(row) = rows.next()? {
            let at_secs = row.get(1)?;
            let (hashes, _) = row.get_ref(2)?.as_blob()?.as_chunks();
            rows_side.newest = hashes.iter().map(|hash| u64::from_le_bytes(*hash)).collect();
            for hash in &rows_side.newest {
                ids.insert_hash(*hash, at_secs);
            }
            if rows_side.newest_id == 0 {
                rows_side.oldest_id = row.get(0)?;
            }
            rows_side.newest_id = row.get(0)?;
            rows_side.stored += rows_side.newest.len();
        }
        Ok((rows_side, ids))
    }

    pub(super) fn push(&mut self, id: &str) {
        self.fresh.push(hash(&self.key, id));
        if self.fresh.len() >= 2 * IDS {
            self.fresh.drain(..IDS);
        }
    }

    /// Part of every transaction.
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

    /// A row goes when its newest id is too old, or when newer rows hold all that is remembered.
    fn trim(&mut self, connection: &Connection, now_secs: u64) -> rusqlite::Result<()> {
        let too_old = now_secs.saturating_sub(self.retention_secs);
        while self.oldest_id < self.newest_id {
            let row = connection
                .prepare_cached("SELECT at_secs, length(body) FROM message_id WHERE id = ?1")?
                .query_row((self.oldest_id,), |row| Ok((row.get::<_, u64>(0)?, row.get::<_, usize>(1)? / 8)));
            let (at_secs, count) = rusqlite::OptionalExtension::optional(row)?.unwrap_or((0, 0));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_known_until_it_is_too_old() {
        let mut ids = MessageIds::new("0123456789abcdef", 10);
        assert!(!ids.insert("a", 100));
        assert!(ids.insert("a", 105));
        assert!(!ids.insert("b", 105));
        assert!(!ids.insert("c", 111));
        assert!(!ids.insert("a", 111), "10 s are over");
        assert!(ids.insert("b", 111));
    }

    #[test]
    fn only_so_many_are_remembered() {
        let mut ids = MessageIds::new("0123456789abcdef", 10);
        for n in 0..=IDS {
            ids.insert(&n.to_string(), 100);
        }
        assert_eq!(ids.known.len(), IDS);
        assert!(ids.insert("1", 100));
        assert!(!ids.insert("0", 100));
    }
}
