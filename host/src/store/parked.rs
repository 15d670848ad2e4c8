//! ParkedJobs that wait in the store: put there by the daemon, or by `sedge dead-letters replay` in another process.

use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension};

use super::Parked;
use super::row::{self, Encoder};
use super::stats::Stats;

#[derive(Debug, Default)]
pub(super) struct ParkedJobs {
    /// The last id that the daemon knows of. Another process adds above it.
    known: u64,
    count: u64,
    bytes: u64,
}

impl ParkedJobs {
    /// The jobs that the daemon does not know of yet.
    pub(super) fn new_ones(&mut self, connection: &Connection) -> rusqlite::Result<Vec<Parked>> {
        let mut statement = connection.prepare_cached("SELECT id, body FROM parked WHERE id > ?1 ORDER BY id")?;
        let mut rows = statement.query((self.known,))?;
        let mut jobs = Vec::new();
        while let Some(row) = rows.next()? {
            self.known = row.get(0)?;
            let body = Bytes::copy_from_slice(row.get_ref(1)?.as_blob()?);
            self.count += 1;
            self.bytes += body.len() as u64;
            match row::parked(self.known, &body) {
                Ok(job) => jobs.push(job),
                Err(damage) => {
                    tracing::error!(id = self.known, %damage, "a parked message cannot be read: it is lost");
                }
            }
        }
        Ok(jobs)
    }

    /// Part of a transaction, and after [`Self::new_ones`] in the same: otherwise those of another process would hide
    /// below the id given here.
    pub(super) fn park(
        &mut self,
        connection: &Connection,
        encoder: &mut Encoder,
        job: &mut Parked,
    ) -> rusqlite::Result<()> {
        let body = encoder.parked(job);
        let place = (job.id != 0).then_some(job.id);
        connection.prepare_cached("INSERT INTO parked (id, body) VALUES (?1, ?2)")?.execute((place, body))?;
        job.id = connection.last_insert_rowid() as u64;
        self.known = self.known.max(job.id);
        self.count += 1;
        self.bytes += body.len() as u64;
        Ok(())
    }

    /// Part of a transaction.
    pub(super) fn unpark(&mut self, connection: &Connection, id: u64) -> rusqlite::Result<()> {
        let bytes: Option<u64> = connection
            .prepare_cached("DELETE FROM parked WHERE id = ?1 RETURNING length(body)")?
            .query_row((id,), |row| row.get(0))
            .optional()?;
        if let Some(bytes) = bytes {
            self.count -= 1;
            self.bytes -= bytes;
        }
        Ok(())
    }

    pub(super) fn count(&self, stats: &Stats) {
        stats.parked.store(self.count, Relaxed);
        stats.parked_bytes.store(self.bytes, Relaxed);
    }
}
