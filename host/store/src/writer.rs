//! Writer thread with group commit: while one sync runs, the next transaction gathers. No timer is involved unless
//! `store.flash_saver_ms` is set.
//!
//! ```text
//!              ┌────────────── gather ◀──────────────┐
//!   requests ──▶ (apply each)                        │
//!              └─▶ commit ──▶ Committed ──▶ answers ─┘
//!                    │ error                    ▲
//!                    ▼                          │
//!                  Failed ──▶ retry to open ──▶ Reopened
//! ```

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use flume::{Receiver, RecvTimeoutError, TryRecvError};
use tokio::sync::mpsc::Sender;

use super::OpenError;
use super::session::{Session, StoreContext};
use super::state_retention::StateRetention;
use sedge_core::store::{RecordId, StoreEvent, StoreRequest};
use sedge_core::stream::Stream;
use sedge_core::time::Now;

/// Interval of checks for expiry and for changes by other processes, while requests come.
const TICK: Duration = Duration::from_secs(1);
/// The same interval without requests, so that an idle board hardly wakes.
const IDLE_TICK: Duration = Duration::from_secs(5);

/// Requests per transaction, although more are waiting. Bounds the WAL and the memory for it, as `COMMIT_BYTES` does.
const TRANSACTION_REQUESTS: usize = 1024;

#[derive(Debug)]
pub(super) struct Writer {
    context: StoreContext,
    /// With the epoch that the sender knew of, see [`super::handle`].
    requests: Receiver<(u64, StoreRequest)>,
    events: Sender<(u64, StoreEvent)>,
    epoch: u64,
    /// Reads of committed rows, answered after the commit in progress.
    reads: Vec<OutboxRead>,
    /// Requests that wait for room in order, with `when_full = "block"` and a full outbox.
    held: VecDeque<StoreRequest>,
    /// Value of the last `Blocked` event.
    is_blocked: bool,
    last_commit: Instant,
    last_tick: Instant,
    closing: bool,
    retention: StateRetention,
}

#[derive(Clone, Copy, Debug)]
struct OutboxRead {
    stream: Stream,
    after: RecordId,
    max_bytes: usize,
}

/// Why a session ends early.
#[derive(Debug)]
enum Stop {
    /// The disk failed.
    Failed(rusqlite::Error),
    /// The receiver of the events is gone.
    Abandoned,
}

impl From<rusqlite::Error> for Stop {
    fn from(error: rusqlite::Error) -> Self {
        Self::Failed(error)
    }
}

/// Whether a time service has set the clock does not matter to the store.
fn read_clock() -> Now {
    Now::at(Instant::now(), std::time::SystemTime::now(), false)
}

impl Writer {
    pub(super) fn new(
        context: StoreContext,
        requests: Receiver<(u64, StoreRequest)>,
        events: Sender<(u64, StoreEvent)>,
        now: Now,
    ) -> Self {
        let retention = context.config.state_retention_secs.map(|secs| Duration::from_secs(secs.get()));
        Self {
            retention: StateRetention::new(retention, now.monotonic),
            context,
            requests,
            events,
            epoch: 0,
            reads: Vec::new(),
            held: VecDeque::new(),
            is_blocked: false,
            last_commit: now.monotonic,
            last_tick: now.monotonic,
            closing: false,
        }
    }

    pub(super) fn run(mut self, session: Session) {
        self.context.stats.writer_bytes.start();
        let mut next = Some(session);
        while let Some(mut session) = next.take() {
            let result = self.run_session(&mut session);
            if matches!(result, Err(Stop::Failed(_))) {
                // Setting it does not fail.
                let _ = session.empties_log_at_end(false);
            }
            drop(session);
            match result {
                Ok(()) => break,
                Err(Stop::Abandoned) => return,
                Err(Stop::Failed(error)) => next = self.reopen(&error),
            }
        }
        let Self { context, events, epoch, .. } = self;
        // The data folder is released before the daemon hears of it.
        drop(context);
        let _ = events.blocking_send((epoch, StoreEvent::Closed));
    }

    /// Top loop of the thread: runs until the store is closed or fails. The only place that reads the clock, beside
    /// [`Self::reopen`].
    fn run_session(&mut self, session: &mut Session) -> Result<(), Stop> {
        let mut has_more = false;
        loop {
            self.notify(session.take_events())?;
            if !has_more
                && !self.closing
                && let Some(first) = self.receive(Some(self.last_tick + IDLE_TICK))
            {
                self.gather(session, first, read_clock())?;
            }
            let now = read_clock();
            // While the outbox is full, delivered records make room only when they are deleted.
            let flush = self.closing || !self.held.is_empty() || session.is_behind(now);
            if self.closing {
                session.write_running_time(now, true)?;
            }
            if session.must_commit() {
                self.last_commit = now.monotonic;
            }
            if session.write(flush, now)? {
                let started = read_clock().monotonic;
                session.commit()?;
                self.context.stats.committed(read_clock().monotonic - started);
            }
            has_more = self.answer(session, now)?;
            if self.closing && !has_more {
                return Ok(());
            }
            if now.monotonic.duration_since(self.last_tick) >= TICK {
                self.last_tick = now.monotonic;
                session.tick(now)?;
                self.context.stats.ticks.fetch_add(1, Relaxed);
                session.expire_state(&mut self.retention, now)?;
                has_more |= session.is_behind(now) || session.must_commit();
            }
        }
    }

    /// Waits for a request until `deadline`; `None`: does not wait. Without senders the store closes.
    fn receive(&mut self, deadline: Option<Instant>) -> Option<(u64, StoreRequest)> {
        let received = match deadline {
            Some(deadline) => self.requests.recv_deadline(deadline).map_err(|it| it == RecvTimeoutError::Disconnected),
            None => self.requests.try_recv().map_err(|it| it == TryRecvError::Disconnected),
        };
        self.closing |= matches!(received, Err(true));
        received.ok()
    }

    /// Applies the first request and all others that are waiting.
    fn gather(&mut self, session: &mut Session, first: (u64, StoreRequest), now: Now) -> Result<(), Stop> {
        self.handle_request(session, first, now)?;
        let interval = Duration::from_millis(self.context.config.flash_saver_ms.into());
        for _ in 1..TRANSACTION_REQUESTS {
            if self.closing || session.has_enough() {
                break;
            }
            // Requests that need no write do not wait to spare the flash.
            let deadline = (!interval.is_zero() && session.must_commit()).then(|| self.last_commit + interval);
            let Some(request) = self.receive(deadline) else { break };
            self.handle_request(session, request, now)?;
        }
        Ok(())
    }

    fn handle_request(
        &mut self,
        session: &mut Session,
        (epoch, request): (u64, StoreRequest),
        now: Now,
    ) -> Result<(), Stop> {
        // Sent before the daemon heard of a failure, on top of commits that never happened.
        let is_stale = epoch != self.epoch && !matches!(request, StoreRequest::Close | StoreRequest::Installed(_));
        if is_stale { Ok(()) } else { self.apply(session, request, now) }
    }

    fn apply(&mut self, session: &mut Session, request: StoreRequest, now: Now) -> Result<(), Stop> {
        match request {
            StoreRequest::Commit { ref commits, .. } if !self.held.is_empty() || session.is_full_for(commits) => {
                self.held.push_back(request);
            }
            // Must stay behind the held commits.
            StoreRequest::LoadState { .. } | StoreRequest::SetMeta { .. } | StoreRequest::ForgetState { .. }
                if !self.held.is_empty() =>
            {
                self.held.push_back(request);
            }
            StoreRequest::Commit { batch, commits } => session.enqueue(batch, commits),
            StoreRequest::ForgetState { function, topics } => session.forget_state(&function, topics)?,
            StoreRequest::LoadState { id, scope } => {
                let entries = session.load_state(&scope)?;
                self.notify([StoreEvent::State { id, entries }])?;
            }
            StoreRequest::LoadResponse { request, message_id } => {
                let response = session.load_response(&message_id)?;
                self.notify([StoreEvent::Response { request, response }])?;
            }
            StoreRequest::ReadOutbox { stream, after, max_bytes } => {
                let read = OutboxRead { stream, after, max_bytes };
                if session.must_commit() {
                    self.reads.push(read);
                } else {
                    self.read_outbox(session, read)?;
                }
            }
            StoreRequest::Behind { stream, held } => session.behind(stream, held),
            StoreRequest::Delivered { stream, through } => session.delivered(stream, through, now),
            StoreRequest::Refused { stream, id, reason } => session.refuse(stream, id, &reason)?,
            StoreRequest::GapsReported { sink, through } => session.gaps_reported(sink, through)?,
            StoreRequest::ForgetDeliveries => {
                for request in &mut self.held {
                    if let StoreRequest::Commit { commits, .. } = request {
                        commits.iter_mut().for_each(|commit| commit.delivery = None);
                    }
                }
                session.forget_deliveries()?;
            }
            StoreRequest::SetMeta { key, value } => session.set_meta(key, &value)?,
            StoreRequest::Installed(functions) => self.retention.set_installed(functions),
            StoreRequest::Reopen => {
                let aborted = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_ABORT);
                let error = rusqlite::Error::SqliteFailure(aborted, Some("the daemon asked to open it again".into()));
                return Err(Stop::Failed(error));
            }
            StoreRequest::Close => self.closing = true,
        }
        Ok(())
    }

    /// Sends the answers to what was committed, and applies held requests if there is room. Returns whether there is
    /// more to commit.
    fn answer(&mut self, session: &mut Session, now: Now) -> Result<bool, Stop> {
        self.notify(session.take_committed())?;
        session.checkpoint()?;
        for read in std::mem::take(&mut self.reads) {
            self.read_outbox(session, read)?;
        }
        let is_full = match self.held.front() {
            Some(StoreRequest::Commit { commits, .. }) => session.is_full_for(commits),
            _ => false,
        };
        if is_full != self.is_blocked {
            self.is_blocked = is_full;
            self.notify([StoreEvent::Blocked(is_full)])?;
        }
        if is_full || self.held.is_empty() {
            return Ok(false);
        }
        let mut waiting = std::mem::take(&mut self.held);
        while self.held.is_empty()
            && !session.has_enough()
            && let Some(request) = waiting.pop_front()
        {
            self.apply(session, request, now)?;
        }
        self.held.append(&mut waiting);
        Ok(true)
    }

    fn read_outbox(&self, session: &mut Session, read: OutboxRead) -> Result<(), Stop> {
        let OutboxRead { stream, after, max_bytes } = read;
        let (stored, end) = session.read_outbox(stream, after, max_bytes)?;
        self.notify([StoreEvent::Outbox { stream, stored, end }])
    }

    fn notify(&self, events: impl IntoIterator<Item = StoreEvent>) -> Result<(), Stop> {
        for event in events {
            self.events.blocking_send((self.epoch, event)).map_err(|_| Stop::Abandoned)?;
        }
        Ok(())
    }

    /// Discards requests and retries until the database can be opened. `None` when closed.
    fn reopen(&mut self, error: &rusqlite::Error) -> Option<Session> {
        tracing::error!(%error, "the database failed: no message is acknowledged until it works again");
        self.context.stats.failures.fetch_add(1, Relaxed);
        self.reads.clear();
        self.held.clear();
        self.is_blocked = false;
        self.epoch += 1;
        self.notify([StoreEvent::Failed { error: error.to_string() }]).ok()?;
        let mut delay = self.context.pauses.retry_first;
        loop {
            let retry_at = read_clock().monotonic + delay;
            while !self.closing
                && let Some((_, request)) = self.receive(Some(retry_at))
            {
                self.closing = matches!(request, StoreRequest::Close);
            }
            if self.closing {
                return None;
            }
            let opened: Result<_, OpenError> =
                self.context.folder.probe().and_then(|()| Session::open(&self.context, read_clock()));
            match opened {
                Ok((session, recovered)) => {
                    tracing::info!("the database works again");
                    self.epoch += 1;
                    self.notify([StoreEvent::Reopened(Box::new(recovered))]).ok()?;
                    return Some(session);
                }
                Err(error) => {
                    delay = (2 * delay).min(self.context.pauses.retry_max);
                    tracing::warn!(%error, retry_secs = delay.as_secs(), "cannot open the database yet");
                }
            }
        }
    }
}
