//! Parked jobs, added by the daemon or by `sedge dead-letters replay` in another process.

use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension};

use super::row::{self, Encoder};
use super::stats::Stats;
use sedge_core::store::{Parked, ParkedId};

#[derive(Debug, Default)]
pub(super) struct ParkedJobs {
    /// Last id that the daemon knows of. Another process adds above it.
    known: u64,
    count: u64,
    bytes: u64,
}

impl ParkedJobs {
    /// Loads the jobs that the daemon does not know of yet.
    pub(super) fn load_new(&mut self, connection: &Connection, stats: &Stats) -> rusqlite::Result<Vec<Parked>> {
        let mut statement = connection.prepare_cached("SELECT id, body FROM parked WHERE id > ?1 ORDER BY id")?;
        let mut rows = statement.query((self.known,))?;
        let mut jobs = Vec::new();
        while let Some(row) = rows.next()? {
            self.known = row.get(0)?;
            let body = Bytes::copy_from_slice(row.get_ref(1)?.as_blob()?);
            self.count += 1;
            self.bytes += body.len() as u64;
            match row::parked(ParkedId(self.known), &body) {
                Ok(job) => jobs.push(job),
                Err(damage) => {
                    stats.damaged_rows.fetch_add(1, Relaxed);
                    tracing::error!(id = self.known, %damage, "parked message is damaged: it is not run, its row is kept");
                }
            }
        }
        Ok(jobs)
    }

    /// Follows [`Self::load_new`] in the same transaction: jobs of another process would stay
    /// unnoticed below the id given here.
    pub(super) fn park(
        &mut self,
        connection: &Connection,
        encoder: &mut Encoder,
        job: &mut Parked,
    ) -> rusqlite::Result<()> {
        let body = encoder.parked(job);
        let id = (job.id != ParkedId::NEW).then_some(job.id.0);
        connection.prepare_cached("INSERT INTO parked (id, body) VALUES (?1, ?2)")?.execute((id, body))?;
        job.id = ParkedId(connection.last_insert_rowid() as u64);
        self.known = self.known.max(job.id.0);
        self.count += 1;
        self.bytes += body.len() as u64;
        Ok(())
    }

    pub(super) fn unpark(&mut self, connection: &Connection, id: ParkedId) -> rusqlite::Result<()> {
        let bytes: Option<u64> = connection
            .prepare_cached("DELETE FROM parked WHERE id = ?1 RETURNING length(body)")?
            .query_row((id.0,), |row| row.get(0))
            .optional()?;
        if let Some(bytes) = bytes {
            self.count -= 1;
            self.bytes -= bytes;
        }
        Ok(())
    }

    pub(super) fn update_stats(&self, stats: &Stats) {
        stats.parked.store(self.count, Relaxed);
        stats.parked_bytes.store(self.bytes, Relaxed);
    }
}
