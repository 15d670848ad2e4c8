//! Dead letters: added by the daemon within bounds, and read and replayed by `sedge dead-letters` in another process.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Row, TransactionBehavior};

use super::row::{self, DeadLetterColumns, Encoder};
use super::running_time::Ages;
use super::stats::Stats;
use super::{beside, schema};
use sedge_core::config;
use sedge_core::message::FailureCode;
use sedge_core::store::FULL;
use sedge_core::store::{DeadLetter, DeadLetterId, Parked, ParkedId};

/// Table of dead letters on the daemon's side, bounded by bytes and age.
#[derive(Debug)]
pub(super) struct DeadLetterTable {
    max_bytes: u64,
    ages: Ages<1>,
    last_id: u64,
    count: u64,
    bytes: u64,
}

impl DeadLetterTable {
    pub(super) fn load(connection: &Connection, config: &config::Store, ages: Option<&[u8]>) -> rusqlite::Result<Self> {
        let mut table = Self {
            max_bytes: config.dead_letter_max_bytes.get(),
            ages: Ages::new(config.dead_letter_max_age_secs.map(|secs| Duration::from_secs(secs.get())), ages),
            last_id: 0,
            count: 0,
            bytes: 0,
        };
        table.recount(connection)?;
        Ok(table)
    }

    /// Called when another process may have removed some.
    pub(super) fn recount(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let sql = "SELECT count(*), coalesce(sum(length(body)), 0), coalesce(max(id), 0) FROM dead_letter";
        let last_id: u64;
        (self.count, self.bytes, last_id) =
            connection.query_row(sql, (), |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        self.last_id = self.last_id.max(last_id);
        Ok(())
    }

    pub(super) fn insert(
        &mut self,
        connection: &Connection,
        encoder: &mut Encoder,
        letter: &DeadLetter,
        stats: &Stats,
    ) -> rusqlite::Result<DeadLetterId> {
        let body = encoder.dead_letter(letter);
        connection
            .prepare_cached("INSERT INTO dead_letter (at_ms, function, reason, body) VALUES (?1, ?2, ?3, ?4)")?
            .execute((letter.at_ms, &*letter.function, letter.failure.code.as_str(), body))?;
        self.last_id = connection.last_insert_rowid() as u64;
        self.count += 1;
        self.bytes += body.len() as u64;
        // The newest stays whatever its size, so that there is one to inspect.
        while self.bytes > self.max_bytes && self.count > 1 && self.drop_oldest(connection, FULL, stats)? {}
        Ok(DeadLetterId(self.last_id))
    }

    /// Returns whether there was anything to drop.
    pub(super) fn drop_oldest(
        &mut self,
        connection: &Connection,
        reason: &str,
        stats: &Stats,
    ) -> rusqlite::Result<bool> {
        let oldest: Option<(i64, String, u64)> = connection
            .prepare_cached("SELECT id, function, length(body) FROM dead_letter ORDER BY id LIMIT 1")?
            .query_row((), |row| {
                let function = String::from_utf8_lossy(row.get_ref(1)?.as_bytes()?).into_owned();
                Ok((row.get(0)?, function, row.get(2)?))
            })
            .optional()?;
        let Some((id, function, bytes)) = oldest else { return Ok(false) };
        connection.prepare_cached("DELETE FROM dead_letter WHERE id = ?1")?.execute((id,))?;
        self.count -= 1;
        self.bytes -= bytes;
        stats.dead_letters_dropped.fetch_add(1, Relaxed);
        tracing::error!(id, function, reason, "dropped a dead letter");
        Ok(true)
    }

    /// Remembers, by its last id, how old the table is. Returns the value to store if there is a new one.
    pub(super) fn mark_age(&mut self, now: Duration) -> Option<Vec<u8>> {
        self.ages.mark(now, [self.last_id])
    }

    /// Whether the oldest is older than `store.dead_letter_max_age_secs`, by running time.
    pub(super) fn has_expired(&self, connection: &Connection, now: Duration) -> rusqlite::Result<bool> {
        let [through] = self.ages.expired_through(now);
        if through == 0 {
            return Ok(false);
        }
        let oldest: Option<u64> =
            connection.prepare_cached("SELECT min(id) FROM dead_letter")?.query_row((), |row| row.get(0))?;
        Ok(oldest.is_some_and(|id| id <= through))
    }

    pub(super) fn update_stats(&self, stats: &Stats) {
        stats.dead_letters.store(self.count, Relaxed);
        stats.dead_letter_bytes.store(self.bytes, Relaxed);
    }
}

/// Dead letters of a data folder, whether or not a daemon is using it.
#[derive(Debug)]
pub struct DeadLetters {
    connection: Connection,
}

/// Size of the dead letters that one transaction removes.
const PIECE_BYTES: usize = 1 << 20;

/// Selects dead letters. The default selects all.
#[derive(Clone, Debug, Default)]
pub struct DeadLetterFilter {
    pub ids: Option<Vec<DeadLetterId>>,
    pub function: Option<String>,
    pub reason: Option<FailureCode>,
    /// Of one message, by the topic that it is about and the time when it came in.
    pub message: Option<(String, u64)>,
}

#[derive(Debug, thiserror::Error)]
pub enum DeadLettersError {
    #[error("no database at {0}")]
    Missing(PathBuf),
    #[error("database {path} has layout {found}, this version of sedge reads layout {}", schema::VERSION)]
    Version { path: PathBuf, found: u32 },
    #[error("database: {0}")]
    Database(#[from] rusqlite::Error),
}

const COLUMNS: &str = "SELECT id, at_ms, function, reason, body FROM dead_letter";

impl DeadLetters {
    pub fn open(data_dir: &Path) -> Result<Self, DeadLettersError> {
        Ok(Self { connection: beside::open(data_dir)? })
    }

    /// Lists dead letters, newest first. Damaged ones are skipped with a warning.
    pub fn list(
        &self,
        filter: &DeadLetterFilter,
        limit: usize,
    ) -> Result<Vec<(DeadLetterId, DeadLetter)>, DeadLettersError> {
        Ok(self.page(filter, None, limit, usize::MAX)?.0)
    }

    /// [`Self::list`] of those before one of them, up to about `max_bytes`. Also returns whether there may be more.
    pub fn page(
        &self,
        filter: &DeadLetterFilter,
        before: Option<DeadLetterId>,
        limit: usize,
        max_bytes: usize,
    ) -> Result<(Vec<(DeadLetterId, DeadLetter)>, bool), DeadLettersError> {
        let mut statement = self.connection.prepare(&format!("{COLUMNS} WHERE id < ?1 ORDER BY id DESC"))?;
        let mut rows = statement.query((before.map_or(i64::MAX, |id| id.0.cast_signed()),))?;
        let mut letters = Vec::new();
        let mut bytes = 0;
        while let Some(row) = rows.next()? {
            if !filter.matches(row)? {
                continue;
            }
            if letters.len() >= limit || bytes >= max_bytes {
                return Ok((letters, true));
            }
            if let Some((id, letter)) = decode(row)? {
                bytes += letter.message.payload.len();
                letters.push((id, letter));
            }
        }
        Ok((letters, false))
    }

    pub fn show(&self, id: DeadLetterId) -> Result<Option<DeadLetter>, DeadLettersError> {
        let row = self.connection.query_row(&format!("{COLUMNS} WHERE id = ?1"), (id.0,), decode).optional()?;
        Ok(row.flatten().map(|(_, letter)| letter))
    }

    /// Deletes dead letters. Returns how many.
    pub fn drop(&mut self, filter: &DeadLetterFilter) -> Result<u64, DeadLettersError> {
        self.remove(filter, |_, _| Ok(true))
    }

    /// Parks dead letters as jobs of their functions, due now, as one more attempt. A running daemon notices them within
    /// about a second, otherwise they run at its next start. Returns how many. Those whose topic is cut stay.
    pub fn replay(&mut self, filter: &DeadLetterFilter, now_ms: u64) -> Result<u64, DeadLettersError> {
        let mut encoder = Encoder::default();
        self.remove(filter, |connection, row| {
            let Some((DeadLetterId(id), DeadLetter { function, failure, message, .. })) = decode(row)? else {
                return Ok(false);
            };
            if failure.code == FailureCode::TopicTooLong {
                tracing::warn!(id, "not replayed: the dead letter has only the beginning of its topic");
                return Ok(false);
            }
            let mut message = Arc::unwrap_or_clone(message);
            message.attempt = message.attempt.saturating_add(1);
            let message = Arc::new(message);
            let parked = Parked { id: ParkedId::NEW, function, message, due_ms: now_ms, wait_ms: 0 };
            let body = encoder.parked(&parked);
            connection.prepare_cached("INSERT INTO parked (body) VALUES (?1)")?.execute((body,))?;
            Ok(true)
        })
    }

    /// Deletes the dead letters for which `each` returns true, in transactions of [`PIECE_BYTES`] with its effects: a daemon
    /// that runs commits between them, and the log in front of the database does not grow by all of them at once.
    pub(super) fn remove(
        &mut self,
        filter: &DeadLetterFilter,
        mut each: impl FnMut(&Connection, &Row<'_>) -> rusqlite::Result<bool>,
    ) -> Result<u64, DeadLettersError> {
        let (mut after, mut count) = (Some(0), 0);
        while let Some(from) = after.take() {
            let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let mut removed: Vec<u64> = Vec::new();
            {
                let mut statement = transaction.prepare(&format!("{COLUMNS} WHERE id > ?1 ORDER BY id"))?;
                let mut rows = statement.query((from,))?;
                let mut bytes = 0;
                while let Some(row) = rows.next()? {
                    let id = row.get(0)?;
                    if filter.matches(row)? && each(&transaction, row)? {
                        removed.push(id);
                        bytes += row.get_ref(4)?.as_bytes().map_err(rusqlite::Error::from)?.len();
                    }
                    if bytes >= PIECE_BYTES {
                        after = Some(id);
                        break;
                    }
                }
            }
            for id in &removed {
                transaction.prepare_cached("DELETE FROM dead_letter WHERE id = ?1")?.execute((id,))?;
            }
            transaction.commit()?;
            count += removed.len() as u64;
        }
        Ok(count)
    }
}

impl DeadLetterFilter {
    fn matches(&self, row: &Row<'_>) -> rusqlite::Result<bool> {
        let id = DeadLetterId(row.get(0)?);
        Ok(self.ids.as_ref().is_none_or(|ids| ids.contains(&id))
            && match &self.function {
                Some(function) => row.get_ref(2)?.as_bytes()? == function.as_bytes(),
                None => true,
            }
            && match self.reason {
                Some(reason) => row.get_ref(3)?.as_bytes()? == reason.as_str().as_bytes(),
                None => true,
            }
            && match &self.message {
                Some((topic, at_ms)) => decode(row)?.is_some_and(|(_, DeadLetter { message, .. })| {
                    message.received_at_ms == *at_ms && message.state_topic() == topic
                }),
                None => true,
            })
    }
}

/// `None` for a damaged dead letter.
fn decode(row: &Row<'_>) -> rusqlite::Result<Option<(DeadLetterId, DeadLetter)>> {
    let id = row.get(0)?;
    let text = |column| row.get_ref(column)?.as_bytes().map(String::from_utf8_lossy).map_err(rusqlite::Error::from);
    let reason = text(3)?;
    let Some(code) = FailureCode::from_name(&reason) else {
        tracing::warn!(id, %reason, "skipped a dead letter with an unknown reason");
        return Ok(None);
    };
    let at_ms = row.get::<_, i64>(1)?.cast_unsigned();
    let columns = DeadLetterColumns { at_ms, function: Arc::from(text(2)?), code };
    let body = Bytes::copy_from_slice(row.get_ref(4)?.as_blob()?);
    match row::dead_letter(columns, &body) {
        Ok(letter) => Ok(Some((DeadLetterId(id), letter))),
        Err(damage) => {
            tracing::warn!(id, %damage, "skipped a damaged dead letter");
            Ok(None)
        }
    }
}
