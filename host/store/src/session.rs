//! Open database and everything that waits to be written to it.
//!
//! A session ends with the first error. Nothing in memory is undone after a failed transaction: a new session is loaded.
//! Everything that the tables of the store write is part of the transaction of their session.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rusqlite::config::DbConfig;
use rusqlite::wal::CheckpointMode;
use rusqlite::{Connection, MAIN_DB, TransactionBehavior};

use super::checkpoint::{Checkpointer, FRAME_BYTES};
use super::dead_letters::DeadLetterTable;
use super::folder::{self, DataFolder};
use super::gaps::Gaps;
use super::heard;
use super::history::HistoryTable;
use super::message_id_rows::MessageIdRows;
use super::outbox::{self, Outbox};
use super::parked::ParkedJobs;
use super::responses::ResponseTable;
use super::row::Encoder;
use super::running_time::RunningTime;
use super::salvage;
use super::schedules;
use super::schema::{self, LoadError};
use super::sinks::SinkTable;
use super::state::{self, StateTable};
use super::state_retention::{self, RetentionChange, StateRetention};
use super::stats::Stats;
use super::wakes;
use super::wal::{self, Behind};
use super::window::RedeliveryWindow;
use super::{OpenError, Pauses};
use sedge_core::config;
use sedge_core::message::Scope;
use sedge_core::request::{RequestId, Response};
use sedge_core::store::{
    BatchNo, COMMIT_BYTES, Commit, DeadLetterId, EXPIRED, GapId, Parked, REMOVED, RecordId, Recovered, StoreEvent,
    StoredRecord, StoredSink,
};
use sedge_core::stream::{SinkId, Stream};
use sedge_core::time::Now;

/// Watermarks are written after this long without another commit to join. Until then, a crash makes upstream see these
/// records again, under the same ids.
const LONE_WATERMARKS_AFTER: Duration = Duration::from_secs(5);

/// Rows of a removed sink that one transaction drops: a few megabytes.
const REMOVED_ROWS: usize = 64;

/// Keys in `meta` that are not the daemon's.
const STORE_ID: &str = "store_id";
const OPENED: &str = "opened";
/// See [`super::running_time`].
const RUNNING_SECS: &str = "running-secs";
const OUTBOX_AGES: &str = "stream-ages";
/// Of the three streams there were before sinks had names.
const OUTBOX_AGES_OF_THREE: &str = "outbox-ages";
/// See [`super::sinks`].
const SINKS: &str = "sinks";
const DEAD_LETTER_AGES: &str = "dead-letter-ages";

/// Everything that outlives a session.
#[derive(Debug)]
pub(super) struct StoreContext {
    pub(super) folder: DataFolder,
    pub(super) config: config::Store,
    pub(super) receive_maximum: usize,
    pub(super) pauses: Pauses,
    pub(super) stats: Arc<Stats>,
    /// Numbers of the sinks, as given when the file was first opened.
    pub(super) sinks: OnceLock<Vec<StoredSink>>,
}

/// How often the files were looked at. Damage must be seen twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    First,
    Second,
}

#[derive(Debug)]
pub(super) struct Session {
    /// Before `connection`: the last connection to close empties the log.
    checkpointer: Checkpointer,
    connection: Connection,
    outbox: Outbox,
    sinks: SinkTable,
    window: RedeliveryWindow,
    message_ids: MessageIdRows,
    state: StateTable,
    gaps: Gaps,
    dead_letters: DeadLetterTable,
    jobs: ParkedJobs,
    responses: ResponseTable,
    history: HistoryTable,
    encoder: Encoder,
    stats: Arc<Stats>,
    /// Commits with an effect that are not in the transaction yet.
    pending: Vec<Commit>,
    /// About the size of what waits to be committed.
    waiting_bytes: usize,
    in_transaction: bool,
    /// Newest commit request that is not answered.
    batch: Option<BatchNo>,
    /// Records and jobs that the transaction adds.
    stored: Vec<StoredRecord>,
    parked: Vec<Parked>,
    letters: Vec<(RequestId, DeadLetterId)>,
    /// The transaction forgets the deliveries of a lost session.
    has_forgotten: bool,
    /// Functions whose state was away for too long, of which the daemon was not told yet.
    expired: Vec<Arc<str>>,
    /// Jobs added by another process, of which the daemon was not told yet.
    replayed: Vec<Parked>,
    /// The write-ahead log has grown since the last [`Self::checkpoint`].
    has_appended: bool,
    /// Since when watermarks in memory are ahead of the disk.
    behind_since: Option<Instant>,
    data_version: i64,
    running_time: RunningTime,
    /// Of running time, as of the last tick.
    hour: u64,
}

impl Session {
    /// Opens the database, and replaces a damaged one.
    pub(super) fn open(context: &StoreContext, now: Now) -> Result<(Self, Recovered), OpenError> {
        let StoreContext { folder, stats, pauses, .. } = context;
        salvage::resume(folder)?;
        if wal::keep_orphan(folder, now)?.is_some() {
            stats.damaged_logs.fetch_add(1, Relaxed);
        }
        let path = folder.database();
        let seen = match Self::load(context, Look::First, now) {
            Err(LoadError::Damaged(reason)) => reason,
            loaded => return loaded.map_err(|error| error.at(&path)),
        };
        // The files may be good and reading them have gone wrong. What is damaged stays so.
        tracing::debug!(reason = seen, "the database looks damaged: looking again");
        std::thread::sleep(pauses.second_look);
        folder.forget_cached();
        let reason = match Self::load(context, Look::Second, now) {
            Err(LoadError::Damaged(reason)) => reason,
            loaded => return loaded.map_err(|error| error.at(&path)),
        };
        let moved_aside = salvage::replace_damaged(folder, reason, now)?;
        stats.damaged_databases.fetch_add(1, Relaxed);
        let (session, recovered) = Self::load(context, Look::Second, now).map_err(|error| error.at(&path))?;
        Ok((session, Recovered { moved_aside: Some(moved_aside), ..recovered }))
    }

    /// Changes nothing where damage is found. On the second look, only damage of the database itself counts.
    fn load(context: &StoreContext, look: Look, now: Now) -> Result<(Self, Recovered), LoadError> {
        let StoreContext { folder, config, receive_maximum, stats, sinks: given, .. } = context;
        let path = folder.database();
        let mut connection = folder::connect(&path)?;
        // Until the database has proved to be good, nothing is copied into it.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        let (used_frames, _) = connection.wal_checkpoint_v2(Some(MAIN_DB), CheckpointMode::NOOP)?;
        let used_frames = u64::try_from(used_frames).unwrap_or(0);
        let behind = wal::behind_the_end(&folder::sibling(&path, "-wal"), used_frames).map_err(LoadError::Io)?;
        schema::check(&connection)?;
        match behind {
            Behind::Nothing => {}
            _ if look == Look::First => return Err(LoadError::Damaged("the write-ahead log ends early".into())),
            Behind::OneCommit => {
                tracing::warn!(
                    "the last commit in the write-ahead log is incomplete, as after a power cut: skipping ids"
                );
            }
            Behind::Commits(commits) => {
                let copy = wal::keep_copy(folder, now).map_err(LoadError::Io)?;
                stats.damaged_logs.fetch_add(1, Relaxed);
                tracing::error!(
                    copy = %copy.display(), commits,
                    "the write-ahead log is damaged: the commits behind the damage are lost, and with them messages that were acknowledged"
                );
            }
        }
        schema::create(&mut connection)?;

        let data_version = connection.query_row("PRAGMA data_version", (), |row| row.get(0))?;
        let mut recovered = Recovered::default();
        let (mut running_secs, mut outbox_ages, mut ages_of_three, mut dead_letter_ages) = (None, None, None, None);
        let mut sinks = None;
        let mut skips_ids = behind != Behind::Nothing;
        {
            let mut statement = connection.prepare("SELECT key, value FROM meta")?;
            let mut rows = statement.query(())?;
            while let Some(row) = rows.next()? {
                let (key, value): (String, Vec<u8>) = (row.get(0)?, row.get(1)?);
                match key.as_str() {
                    STORE_ID => recovered.store_id = String::from_utf8_lossy(&value).into_owned(),
                    RUNNING_SECS => running_secs = Some(value),
                    OUTBOX_AGES => outbox_ages = Some(value),
                    OUTBOX_AGES_OF_THREE => ages_of_three = Some(value),
                    SINKS => sinks = Some(value),
                    DEAD_LETTER_AGES => dead_letter_ages = Some(value),
                    salvage::SALVAGED => skips_ids = true,
                    OPENED => {}
                    key if key.starts_with(state_retention::META) => {}
                    _ => recovered.meta.push((key, value.into())),
                }
            }
        }
        let (mut window, watermarks, fingerprints) = RedeliveryWindow::load(&connection, *receive_maximum)?;
        let retention_secs = u64::from(config.message_id_retention_secs.get());
        let (message_ids, known) =
            MessageIdRows::load(&connection, &recovered.store_id, retention_secs, now.monotonic)?;
        let responses = ResponseTable::load(&connection, &recovered.store_id, retention_secs)?;
        let (ages, of_three) = (outbox_ages.as_deref(), ages_of_three.as_deref());
        let mut outbox = Outbox::load(&connection, config, watermarks, ages, of_three)?;
        let running_time = RunningTime::new(running_secs.as_deref(), now.monotonic);
        let (mut sinks, evicted) = SinkTable::load(
            sinks.as_deref(),
            &config.sinks,
            given.get().map_or(&[], Vec::as_slice),
            |sink| outbox.has_records(sink),
            running_time.at(now.monotonic),
        );
        let configured = sinks.configured(&config.sinks);
        outbox.set_shares(config, &configured);
        let reporters = configured.into_iter().map(|(sink, _)| sink).collect();
        let mut gaps = Gaps::load(&connection, reporters, stats.clone())?;
        let mut jobs = ParkedJobs::default();
        recovered.window = fingerprints;
        recovered.message_ids = known;
        recovered.parked = jobs.load_new(&connection, stats)?;
        recovered.wakes = wakes::load(&connection, stats)?;
        recovered.heard = heard::load(&connection, stats)?;
        recovered.schedules = schedules::load(&connection, stats)?;
        recovered.state = state::measure(&connection)?;

        // A process that was killed within a commit leaves a transaction in the log that was perhaps never synced. It
        // counts as committed from here on, so this checkpoint makes it durable before anyone hears of it. As a real
        // write, it also fails here if the disk refuses writes.
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute("REPLACE INTO meta VALUES (?1, x'')", (OPENED,))?;
        let damaged_rows = window.delete_damaged(&transaction)?;
        if skips_ids || damaged_rows > 0 {
            // With the end of what told to skip them: a crash must not give them after all.
            outbox.skip_ids();
            window.write(&transaction, outbox.marks())?;
            schema::skip_row_ids(&transaction, outbox::SKIPPED_IDS)?;
            transaction.execute("DELETE FROM meta WHERE key = ?1", (salvage::SALVAGED,))?;
        }
        for stream in evicted.into_iter().flat_map(|sink| [Stream::alerts(sink), Stream::data(sink)]) {
            while outbox.drop_oldest(&transaction, stream, REMOVED, &mut gaps)? {}
            gaps.write(&transaction)?;
            window.write(&transaction, outbox.marks())?;
        }
        if let Some(table) = sinks.take_changed() {
            transaction.execute("REPLACE INTO meta VALUES (?1, ?2)", (SINKS, table))?;
        }
        transaction.commit()?;
        stats.damaged_rows.fetch_add(damaged_rows as u64, Relaxed);
        connection.wal_checkpoint_v2(Some(MAIN_DB), CheckpointMode::RESTART)?;
        outbox.hand_nothing();
        recovered.delivered = outbox.marks().delivered;
        recovered.last = outbox.marks().last;
        recovered.sinks = sinks.stored();
        given.get_or_init(|| sinks.stored());
        let session = Self {
            checkpointer: Checkpointer::start(&path, stats.clone())?,
            outbox,
            sinks,
            window,
            message_ids,
            state: StateTable::default(),
            gaps,
            dead_letters: DeadLetterTable::load(&connection, config, dead_letter_ages.as_deref())?,
            jobs,
            responses,
            history: HistoryTable::load(&connection, config.history.clone())?,
            encoder: Encoder::default(),
            stats: stats.clone(),
            pending: Vec::new(),
            waiting_bytes: 0,
            in_transaction: false,
            batch: None,
            stored: Vec::new(),
            parked: Vec::new(),
            letters: Vec::new(),
            has_forgotten: false,
            expired: Vec::new(),
            replayed: Vec::new(),
            has_appended: false,
            behind_since: None,
            data_version,
            hour: running_time.at(now.monotonic).as_secs() / 3600,
            running_time,
            connection,
        };
        session.empties_log_at_end(true)?;
        session.update_stats();
        session.outbox.update_ages(&session.connection, &session.stats)?;
        Ok((session, recovered))
    }

    /// `false` after a failure: what a disk that fails reads from the log must not get into the database.
    pub(super) fn empties_log_at_end(&self, empties: bool) -> rusqlite::Result<()> {
        self.connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, !empties).map(drop)
    }

    /// Whether the outbox has no room for these commits.
    pub(super) fn is_full_for(&self, commits: &[Commit]) -> bool {
        self.outbox.is_full_for(commits.iter().flat_map(|commit| &commit.records))
    }

    pub(super) fn enqueue(&mut self, batch: BatchNo, commits: Vec<Commit>) {
        self.batch = Some(batch);
        for mut commit in commits {
            self.waiting_bytes += commit.bytes();
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

    /// Whether so much waits for the disk that more belongs into another transaction.
    pub(super) fn has_enough(&self) -> bool {
        self.waiting_bytes >= COMMIT_BYTES
    }

    /// Whether a commit with an effect waits for the disk.
    pub(super) fn must_commit(&self) -> bool {
        self.in_transaction || !self.pending.is_empty() || self.outbox.has_fresh()
    }

    fn begin_transaction(&mut self) -> rusqlite::Result<()> {
        if !self.in_transaction {
            self.connection.prepare_cached("BEGIN IMMEDIATE")?.execute(())?;
            self.in_transaction = true;
        }
        Ok(())
    }

    fn write_pending(&mut self) -> rusqlite::Result<()> {
        self.begin_transaction()?;
        for commit in std::mem::take(&mut self.pending) {
            for (scope, writes) in commit.state {
                self.state.write(&self.connection, scope, &writes, self.hour)?;
            }
            let mut dead_letter = None;
            for letter in &commit.dead_letters {
                let id = self.dead_letters.insert(&self.connection, &mut self.encoder, letter, &self.stats)?;
                dead_letter = commit.request.map(|request| (request, id));
            }
            self.letters.extend(dead_letter);
            if let (Some(id), Some(response)) = (&commit.message_id, &commit.response) {
                let dead_letter = dead_letter.map(|(_, id)| id);
                self.responses.insert(&self.connection, id, response, dead_letter, self.hour)?;
            }
            self.history.push(commit.history);
            for wake in &commit.wakes {
                wakes::set(&self.connection, &mut self.encoder, wake)?;
            }
            for schedule in &commit.schedules {
                schedules::set(&self.connection, &mut self.encoder, schedule)?;
            }
            for id in commit.unwake {
                wakes::delete(&self.connection, id)?;
            }
            for heard in &commit.heard {
                heard::set(&self.connection, &mut self.encoder, heard)?;
            }
            for id in commit.unheard {
                heard::delete(&self.connection, id)?;
            }
            for id in commit.unpark {
                self.jobs.unpark(&self.connection, id)?;
            }
            for mut job in commit.park {
                self.replayed.extend(self.jobs.load_new(&self.connection, &self.stats)?);
                self.jobs.park(&self.connection, &mut self.encoder, &mut job)?;
                self.parked.push(job);
            }
        }
        Ok(())
    }

    /// Returns the state of a scope as of everything that was enqueued before.
    pub(super) fn load_state(&mut self, scope: &Scope) -> rusqlite::Result<Vec<(Box<str>, Bytes)>> {
        if !self.pending.is_empty() {
            self.write_pending()?;
        }
        let (entries, damaged) = self.state.load(&self.connection, scope)?;
        if !damaged.is_empty() {
            self.begin_transaction()?;
            self.state.delete_damaged(&self.connection, scope, &damaged, &self.stats)?;
        }
        Ok(entries)
    }

    /// Deletes state, after everything that was enqueued before.
    pub(super) fn forget_state(&mut self, function: &Arc<str>, topics: Vec<Option<Arc<str>>>) -> rusqlite::Result<()> {
        if !self.pending.is_empty() {
            self.write_pending()?;
        }
        self.begin_transaction()?;
        self.state.forget_state(&self.connection, function, topics)
    }

    pub(super) fn load_response(&self, message_id: &str) -> rusqlite::Result<Option<Response>> {
        self.responses.read(&self.connection, message_id)
    }

    pub(super) fn read_outbox(
        &mut self,
        stream: Stream,
        after: RecordId,
        max_bytes: usize,
    ) -> rusqlite::Result<(Vec<StoredRecord>, bool)> {
        let read = self.outbox.read(&self.connection, stream, after, max_bytes)?;
        if self.outbox.has_damaged() {
            self.begin_transaction()?;
            self.outbox.rewrite_damaged(&self.connection, &mut self.gaps, None)?;
        }
        Ok(read)
    }

    pub(super) fn delivered(&mut self, stream: Stream, through: RecordId, now: Now) {
        if self.outbox.delivered(stream, through) {
            self.behind_since.get_or_insert(now.monotonic);
        }
    }

    pub(super) fn behind(&mut self, stream: Stream, held: RecordId) {
        self.outbox.behind(stream, held);
    }

    pub(super) fn refuse(&mut self, stream: Stream, id: RecordId, reason: &str) -> rusqlite::Result<()> {
        self.begin_transaction()?;
        self.outbox.refuse(&self.connection, stream, id, reason, &mut self.gaps)
    }

    pub(super) fn gaps_reported(&mut self, sink: SinkId, through: GapId) -> rusqlite::Result<()> {
        self.begin_transaction()?;
        self.gaps.reported(&self.connection, sink, through)
    }

    pub(super) fn forget_deliveries(&mut self) -> rusqlite::Result<()> {
        self.begin_transaction()?;
        self.has_forgotten = true;
        self.window.clear(&self.connection)
    }

    pub(super) fn set_meta(&mut self, key: &str, value: &[u8]) -> rusqlite::Result<()> {
        self.begin_transaction()?;
        self.connection.prepare_cached("REPLACE INTO meta VALUES (?1, ?2)")?.execute((key, value))?;
        Ok(())
    }

    /// Writes everything that waits into the transaction. Returns whether there is one to commit.
    /// `flush`: watermarks alone are reason enough.
    pub(super) fn write(&mut self, flush: bool, now: Now) -> rusqlite::Result<bool> {
        if !self.must_commit() && !(flush && (self.behind_since.is_some() || self.gaps.has_unwritten())) {
            return Ok(false);
        }
        self.write_pending()?;
        self.stored = self.outbox.write(&self.connection, &mut self.gaps)?;
        self.gaps.write(&self.connection)?;
        self.history.write(&self.connection, self.hour)?;
        self.message_ids.write(&self.connection, self.running_time.at(now.monotonic).as_secs())?;
        self.window.write(&self.connection, self.outbox.marks())?;
        Ok(true)
    }

    /// Commits the transaction, which syncs it to disk.
    pub(super) fn commit(&mut self) -> rusqlite::Result<()> {
        self.connection.prepare_cached("COMMIT")?.execute(())?;
        self.in_transaction = false;
        self.waiting_bytes = 0;
        self.behind_since = None;
        self.has_appended = true;
        self.update_stats();
        Ok(())
    }

    /// Returns the answer to all commit requests so far. Commits without an effect are answered without a transaction:
    /// if they run again after a crash, they have no effect again.
    pub(super) fn take_committed(&mut self) -> Option<StoreEvent> {
        let (stored, parked) = (std::mem::take(&mut self.stored), std::mem::take(&mut self.parked));
        debug_assert!(self.batch.is_some() || stored.is_empty() && parked.is_empty(), "only commit requests add rows");
        let letters = std::mem::take(&mut self.letters);
        self.batch.take().map(|batch| StoreEvent::Committed { batch, stored, parked, letters })
    }

    /// Keeps the write-ahead log short. Called after the commit was answered, which need not wait for it.
    pub(super) fn checkpoint(&mut self) -> rusqlite::Result<()> {
        if std::mem::take(&mut self.has_appended) {
            let frames = self.checkpointer.after_commit(&self.connection)?;
            self.stats.wal_bytes.store(frames * FRAME_BYTES, Relaxed);
        }
        Ok(())
    }

    /// Returns what the last commit makes known, beside `Committed`.
    pub(super) fn take_events(&mut self) -> impl Iterator<Item = StoreEvent> {
        let replayed = std::mem::take(&mut self.replayed);
        let parked = (!replayed.is_empty()).then_some(StoreEvent::Parked(replayed));
        let forgotten = std::mem::take(&mut self.has_forgotten).then_some(StoreEvent::DeliveriesForgotten);
        let expired = std::mem::take(&mut self.expired);
        let expired = expired.into_iter().map(|function| StoreEvent::StateExpired { function });
        self.outbox
            .take_dropped()
            .into_iter()
            .chain(forgotten)
            .chain(expired)
            .chain(parked)
            .chain(self.gaps.next_reports())
    }

    /// Handles expiry, and changes by other processes.
    pub(super) fn tick(&mut self, now: Now) -> rusqlite::Result<()> {
        let data_version = self.connection.prepare_cached("PRAGMA data_version")?.query_row((), |row| row.get(0))?;
        if self.data_version != data_version {
            self.data_version = data_version;
            self.replayed.extend(self.jobs.load_new(&self.connection, &self.stats)?);
            self.dead_letters.recount(&self.connection)?;
        }
        self.write_running_time(now, false)?;
        let time = self.running_time.at(now.monotonic);
        self.hour = time.as_secs() / 3600;
        loop {
            let expired = self.outbox.expired(&self.connection, time)?;
            if expired.is_empty() {
                break;
            }
            self.begin_transaction()?;
            for stream in expired {
                self.outbox.drop_oldest(&self.connection, stream, EXPIRED, &mut self.gaps)?;
            }
        }
        self.drop_removed(time)?;
        while self.dead_letters.has_expired(&self.connection, time)? {
            self.begin_transaction()?;
            self.dead_letters.drop_oldest(&self.connection, EXPIRED, &self.stats)?;
        }
        if self.history.has_expired(&self.connection, self.hour)? {
            self.begin_transaction()?;
            self.history.drop_expired(&self.connection, self.hour)?;
        }
        self.outbox.update_ages(&self.connection, &self.stats)
    }

    /// Drops some of the records of sinks that were removed long ago. They are reported as gaps.
    fn drop_removed(&mut self, time: Duration) -> rusqlite::Result<()> {
        for sink in self.sinks.expired(time) {
            self.begin_transaction()?;
            for stream in [Stream::alerts(sink), Stream::data(sink)] {
                for _ in 0..REMOVED_ROWS {
                    if !self.outbox.drop_oldest(&self.connection, stream, REMOVED, &mut self.gaps)? {
                        break;
                    }
                }
            }
            if !self.outbox.has_records(sink) {
                self.sinks.forget(sink);
            }
        }
        match self.sinks.take_changed() {
            Some(table) => self.set_meta(SINKS, &table),
            None => Ok(()),
        }
    }

    /// Writes the running time and the ages of rows if it is time.
    pub(super) fn write_running_time(&mut self, now: Now, closing: bool) -> rusqlite::Result<()> {
        let time = self.running_time.at(now.monotonic);
        let ages = [(OUTBOX_AGES, self.outbox.mark_age(time)), (DEAD_LETTER_AGES, self.dead_letters.mark_age(time))];
        let mut is_marked = false;
        for (key, marks) in ages {
            if let Some(marks) = marks {
                is_marked = true;
                self.set_meta(key, &marks)?;
            }
        }
        if let Some(secs) = self.running_time.write(now.monotonic, is_marked || closing) {
            self.set_meta(RUNNING_SECS, &secs)?;
        }
        Ok(())
    }

    /// Deletes state of functions that have been away for too long.
    pub(super) fn expire_state(&mut self, retention: &mut StateRetention, now: Now) -> rusqlite::Result<()> {
        for change in retention.changes(&self.connection, now.monotonic)? {
            self.begin_transaction()?;
            change.write(&self.connection)?;
            if let RetentionChange::DeleteState(function) = &change {
                self.state.forget(function);
                self.expired.push(function.as_str().into());
            }
        }
        Ok(())
    }

    /// Whether watermarks or gaps have waited long enough for a commit to join.
    pub(super) fn is_behind(&self, now: Now) -> bool {
        let waited = |since| now.monotonic.saturating_duration_since(since);
        self.gaps.has_unwritten() || self.behind_since.is_some_and(|since| waited(since) >= LONE_WATERMARKS_AFTER)
    }

    fn update_stats(&self) {
        self.outbox.update_stats(&self.stats);
        self.dead_letters.update_stats(&self.stats);
        self.jobs.update_stats(&self.stats);
        self.stats.history_bytes.store(self.history.bytes(), Relaxed);
    }
}
