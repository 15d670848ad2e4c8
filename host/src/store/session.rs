//! An open database and what is waiting to be written to it. It lives until the first error: nothing in memory is undone
//! after a failed transaction, a new session is loaded instead.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use rusqlite::wal::CheckpointMode;
use rusqlite::{Connection, MAIN_DB};

use super::checkpoint::{Checkpointer, FRAME_BYTES};
use super::dead_letters::DeadLetterTable;
use super::folder::{self, DataFolder};
use super::gaps::Gaps;
use super::message_ids::MessageIdRows;
use super::outbox::Outbox;
use super::parked::ParkedJobs;
use super::row::Encoder;
use super::salvage;
use super::schema::{self, OpenFailure};
use super::state::StateTable;
use super::state_retention::{self, RetentionChange, StateRetention};
use super::stats::Stats;
use super::window::RedeliveryWindow;
use super::{Commit, OpenError, Parked, Recovered, StoreEvent, StoredRecord, Stream};
use crate::config;
use crate::message::Scope;

/// Watermarks alone are written after this long without a commit to ride on. Until then a crash makes upstream see
/// these records once more, under the same ids.
const LONE_WATERMARKS_AFTER: Duration = Duration::from_secs(5);

/// A step of the wall clock larger than this against the monotonic one: it was set.
const CLOCK_STEP_MS: u64 = 60_000;

/// Keys in `meta` that are not the daemon's.
const STORE_ID: &str = "store_id";
const AGELESS: &str = "ageless";

#[derive(Debug)]
pub(super) struct Session {
    connection: Connection,
    checkpointer: Checkpointer,
    outbox: Outbox,
    window: RedeliveryWindow,
    message_ids: MessageIdRows,
    state: StateTable,
    gaps: Gaps,
    dead_letters: DeadLetterTable,
    jobs: ParkedJobs,
    encoder: Encoder,
    stats: Arc<Stats>,
    /// What has an effect and is not in the transaction yet.
    pending: Vec<Commit>,
    /// The newest `Commit` request that was taken.
    seq: Option<u64>,
    in_transaction: bool,
    /// The write-ahead log is longer than at the last [`Self::checkpoint`].
    has_appended: bool,
    /// Added by the transaction under way.
    parked: Vec<Parked>,
    /// Added by another process, and not told to the daemon yet.
    replayed: Vec<Parked>,
    /// Since when there are watermarks in memory that are not on disk.
    behind_since: Option<Instant>,
    data_version: i64,
    clock: (Instant, u64),
}

/// What a transaction put on disk.
pub(super) struct Committed {
    pub(super) seq: u64,
    pub(super) stored: Vec<StoredRecord>,
    pub(super) parked: Vec<Parked>,
}

impl Session {
    /// Opens the database, whatever state it is in. A damaged one is replaced.
    pub(super) fn open(
        place: &DataFolder,
        settings: &config::Store,
        receive_maximum: usize,
        stats: &Arc<Stats>,
    ) -> Result<(Self, Recovered), OpenError> {
        salvage::resume(place)?;
        let path = place.database();
        let reason = match Self::load(place, settings, receive_maximum, stats) {
            Ok(opened) => return Ok(opened),
            Err(OpenFailure::Damaged(reason)) => reason,
            Err(other) => return Err(OpenError::failure(&path, other)),
        };
        let moved_aside = salvage::replace_damaged(place, reason)?;
        let (mut session, recovered) =
            Self::load(place, settings, receive_maximum, stats).map_err(|error| OpenError::failure(&path, error))?;
        session.outbox.skip_ids();
        let super::window::Watermarks { delivered, last } = *session.outbox.marks();
        Ok((session, Recovered { moved_aside: Some(moved_aside), delivered, last, ..recovered }))
    }

    fn load(
        place: &DataFolder,
        settings: &config::Store,
        receive_maximum: usize,
        stats: &Arc<Stats>,
    ) -> Result<(Self, Recovered), OpenFailure> {
        let path = place.database();
        let mut connection = folder::connect(&path)?;
        schema::prepare(&mut connection)?;
        // A process that was killed in the middle of a commit leaves a transaction in the log that was written but
        // perhaps never synced. It counts as committed from here on, so it is made durable before anyone hears of it:
        // the checkpoint syncs the log and copies all of it into the database. This is a real write, too, and fails
        // here if the disk does not take any.
        connection.execute_batch("BEGIN IMMEDIATE; REPLACE INTO meta VALUES ('opened', x''); COMMIT")?;
        connection.wal_checkpoint_v2(Some(MAIN_DB), CheckpointMode::RESTART)?;

        let data_version = connection.query_row("PRAGMA data_version", (), |row| row.get(0))?;
        let mut recovered = Recovered::default();
        let mut ageless = [0; 3];
        {
            let mut statement = connection.prepare("SELECT key, value FROM meta")?;
            let mut rows = statement.query(())?;
            while let Some(row) = rows.next()? {
                let (key, value): (String, Vec<u8>) = (row.get(0)?, row.get(1)?);
                match key.as_str() {
                    STORE_ID => recovered.store_id = String::from_utf8_lossy(&value).into_owned(),
                    AGELESS => {
                        for (id, bytes) in ageless.iter_mut().zip(value.as_chunks().0) {
                            *id = u64::from_le_bytes(*bytes);
                        }
                    }
                    "opened" => {}
                    key if key.starts_with(state_retention::META) => {}
                    _ => recovered.meta.push((key, value.into())),
                }
            }
        }
        let (window, watermarks, fingerprints) = RedeliveryWindow::load(&connection, receive_maximum)?;
        let retention_secs = u64::from(settings.message_id_retention_secs.get());
        let (message_ids, known) = MessageIdRows::load(&connection, &recovered.store_id, retention_secs)?;
        let outbox = Outbox::load(&connection, settings, watermarks, ageless)?;
        let mut jobs = ParkedJobs::default();
        recovered.window = fingerprints;
        recovered.message_ids = known;
        recovered.parked = jobs.new_ones(&connection)?;
        recovered.delivered = outbox.marks().delivered;
        recovered.last = outbox.marks().last;
        let session = Self {
            checkpointer: Checkpointer::start(&path, stats.clone())?,
            outbox,
            window,
            message_ids,
            state: StateTable::default(),
            gaps: Gaps::load(&connection, stats.clone())?,
            dead_letters: DeadLetterTable::load(&connection, settings)?,
            jobs,
            encoder: Encoder::default(),
            stats: stats.clone(),
            pending: Vec::new(),
            seq: None,
            in_transaction: false,
            has_appended: false,
            parked: Vec::new(),
            replayed: Vec::new(),
            behind_since: None,
            data_version,
            clock: (Instant::now(), unix_ms()),
            connection,
        };
        session.count();
        session.outbox.gauge(&session.connection, &session.stats)?;
        Ok((session, recovered))
    }

    /// Whether there is no room in the outbox for this.
    pub(super) fn is_full_for(&self, commits: &[Commit]) -> bool {
        let records = commits.iter().flat_map(|commit| &commit.records);
        self.outbox.is_full_for(records.map(Outbox::weight).sum())
    }

    pub(super) fn enqueue(&mut self, seq: u64, commits: Vec<Commit>) {
        self.seq = Some(seq);
        for mut commit in commits {
            if let Some(fingerprint) = commit.delivery {
                self.window.push(fingerprint);
            }
            if let Some(id) = &commit.message_id {
                self.message_ids.push(id);
            }
            commit.records.drain(..).for_each(|record| self.outbox.push(record));
            if commit.has_effect() {
                self.pending.push(commit);
            }
        }
    }

    /// Whether a `Commit` with an effect is waiting for the disk.
    pub(super) fn must_commit(&self) -> bool {
        self.in_transaction || !self.pending.is_empty() || self.outbox.has_fresh()
    }

    fn begin(&mut self) -> rusqlite::Result<()> {
        if !self.in_transaction {
            self.connection.prepare_cached("BEGIN IMMEDIATE")?.execute(())?;
            self.in_transaction = true;
        }
        Ok(())
    }

    /// Carries out what is pending, without committing it.
    fn perform(&mut self) -> rusqlite::Result<()> {
        self.begin()?;
        for commit in std::mem::take(&mut self.pending) {
            for (scope, writes) in commit.state {
                self.state.write(&self.connection, scope, &writes)?;
            }
            for letter in &commit.dead_letters {
                self.dead_letters.insert(&self.connection, &mut self.encoder, letter, &self.stats)?;
            }
            for id in commit.unpark {
                self.jobs.unpark(&self.connection, id)?;
            }
            for mut job in commit.park {
                self.replayed.extend(self.jobs.new_ones(&self.connection)?);
                self.jobs.park(&self.connection, &mut self.encoder, &mut job)?;
                self.parked.push(job);
            }
        }
        Ok(())
    }

    /// As of everything that was enqueued before.
    pub(super) fn load_state(&mut self, scope: &Scope) -> rusqlite::Result<Vec<(Box<str>, Bytes)>> {
        if !self.pending.is_empty() {
            self.perform()?;
        }
        self.state.load(&self.connection, scope)
    }

    pub(super) fn read_outbox(
        &mut self,
        stream: Stream,
        after: u64,
        max_bytes: usize,
    ) -> rusqlite::Result<(Vec<StoredRecord>, bool)> {
        self.outbox.read(&self.connection, stream, after, max_bytes, &mut self.gaps)
    }

    pub(super) fn delivered(&mut self, stream: Stream, through: u64) {
        if self.outbox.delivered(stream, through) {
            self.behind_since.get_or_insert_with(Instant::now);
        }
    }

    pub(super) fn refuse(&mut self, stream: Stream, id: u64, reason: &str) -> rusqlite::Result<()> {
        self.begin()?;
        self.outbox.refuse(&self.connection, stream, id, reason, &mut self.gaps)
    }

    pub(super) fn gaps_reported(&mut self, through: u64) -> rusqlite::Result<()> {
        self.begin()?;
        self.gaps.reported(&self.connection, through)
    }

    pub(super) fn set_meta(&mut self, key: &str, value: &[u8]) -> rusqlite::Result<()> {
        self.begin()?;
        self.connection.prepare_cached("REPLACE INTO meta VALUES (?1, ?2)")?.execute((key, value))?;
        Ok(())
    }

    /// Puts everything on disk, if there is anything that must be there. `flush`: watermarks alone are enough.
    pub(super) fn commit(&mut self, flush: bool) -> rusqlite::Result<Option<Committed>> {
        if !self.must_commit() && !(flush && (self.behind_since.is_some() || self.gaps.unwritten())) {
            // Messages without effect: run again after a crash, they have none again.
            let committed = |seq| Committed { seq, stored: Vec::new(), parked: Vec::new() };
            return Ok(self.seq.take().map(committed));
        }
        self.perform()?;
        let stored = self.outbox.write(&self.connection, &mut self.gaps, &self.stats)?;
        self.gaps.write(&self.connection)?;
        self.message_ids.write(&self.connection, unix_ms() / 1000)?;
        self.window.write(&self.connection, self.outbox.marks())?;
        let started = Instant::now();
        self.connection.prepare_cached("COMMIT")?.execute(())?;
        self.stats.committed(started.elapsed());
        self.in_transaction = false;
        self.behind_since = None;
        self.has_appended = true;
        self.count();
        let parked = std::mem::take(&mut self.parked);
        // Without a `Commit` request nothing was stored or parked.
        Ok(self.seq.take().map(|seq| Committed { seq, stored, parked }))
    }

    /// Keeps the write-ahead log short. After the last commit was told of: who waits for that need not wait for this.
    pub(super) fn checkpoint(&mut self) -> rusqlite::Result<()> {
        if std::mem::take(&mut self.has_appended) {
            let frames = self.checkpointer.after_commit(&self.connection)?;
            self.stats.wal_bytes.store(frames * FRAME_BYTES, Relaxed);
        }
        Ok(())
    }

    /// What the last commit makes known, beside `Committed`.
    pub(super) fn news(&mut self) -> impl Iterator<Item = StoreEvent> {
        let replayed = std::mem::take(&mut self.replayed);
        let parked = (!replayed.is_empty()).then_some(StoreEvent::Parked(replayed));
        parked.into_iter().chain(self.gaps.hand_out())
    }

    /// Once a second: what time and other processes bring about. Not within a transaction.
    pub(super) fn tick(&mut self) -> rusqlite::Result<()> {
        let data_version = self.connection.prepare_cached("PRAGMA data_version")?.query_row((), |row| row.get(0))?;
        if self.data_version != data_version {
            self.data_version = data_version;
            self.replayed.extend(self.jobs.new_ones(&self.connection)?);
            self.dead_letters.recount(&self.connection)?;
        }
        let now = (Instant::now(), unix_ms());
        let elapsed_ms = now.0.duration_since(self.clock.0).as_millis() as u64;
        if now.1 > self.clock.1 + elapsed_ms + CLOCK_STEP_MS {
            let ageless: Vec<u8> = self.outbox.clock_was_set().into_iter().flat_map(u64::to_le_bytes).collect();
            self.set_meta(AGELESS, &ageless)?;
        }
        self.clock = now;
        if self.outbox.has_expired(&self.connection, now.1)? {
            self.begin()?;
            self.outbox.expire(&self.connection, now.1, &mut self.gaps)?;
        }
        if self.dead_letters.has_expired(&self.connection, now.1)? {
            self.begin()?;
            self.dead_letters.expire(&self.connection, now.1, &self.stats)?;
        }
        self.outbox.gauge(&self.connection, &self.stats)
    }

    /// State of functions that are not installed.
    pub(super) fn age_state(&mut self, absent: &mut StateRetention) -> rusqlite::Result<()> {
        for change in absent.changes(&self.connection, Instant::now())? {
            self.begin()?;
            change.write(&self.connection)?;
            if let RetentionChange::Forget { function } = &change {
                self.state.forget(function);
            }
        }
        Ok(())
    }

    /// Whether watermarks have waited long enough for a commit to ride on.
    pub(super) fn is_behind(&self) -> bool {
        self.gaps.unwritten() || self.behind_since.is_some_and(|since| since.elapsed() >= LONE_WATERMARKS_AFTER)
    }

    fn count(&self) {
        self.outbox.count(&self.stats);
        self.dead_letters.count(&self.stats);
        self.jobs.count(&self.stats);
    }
}

impl Commit {
    /// Whether anything but its fingerprints and records (which the outbox has by now) must be on disk.
    fn has_effect(&self) -> bool {
        !(self.state.is_empty() && self.dead_letters.is_empty() && self.park.is_empty() && self.unpark.is_empty())
    }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
