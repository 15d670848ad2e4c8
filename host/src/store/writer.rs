//! The thread that writes. It takes all that is waiting, puts it on disk in one transaction, tells, and begins again:
//! while one sync runs, the next transaction gathers. No timer is involved unless the flash is to be spared.
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
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::Sender;

use super::folder::DataFolder;
use super::session::Session;
use super::state_retention::StateRetention;
use super::stats::{Stats, thread_bytes_written};
use super::{OpenError, Recovered, StoreEvent, StoreRequest, Stream};
use crate::config;
use crate::queue::Receiver;

/// How often the writer looks at the clock and at other processes' changes.
const TICK: Duration = Duration::from_secs(1);

/// A transaction that is this large is committed although more is waiting: it bounds the WAL and the memory for it.
const TRANSACTION_REQUESTS: usize = 1024;

const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// What every session needs.
#[derive(Debug)]
pub(super) struct StoreContext {
    pub(super) place: DataFolder,
    pub(super) settings: config::Store,
    pub(super) receive_maximum: usize,
    pub(super) stats: Arc<Stats>,
}

impl StoreContext {
    pub(super) fn open(&self) -> Result<(Session, Recovered), OpenError> {
        Session::open(&self.place, &self.settings, self.receive_maximum, &self.stats)
    }
}

#[derive(Debug)]
pub(super) struct Writer {
    context: StoreContext,
    /// With the epoch that the sender knew of, see [`super::StoreHandle`].
    requests: Receiver<(u64, StoreRequest)>,
    events: Sender<(u64, StoreEvent)>,
    epoch: u64,
    /// Reads of committed rows, answered after the commit under way.
    reads: Vec<(Stream, u64, usize)>,
    /// With `when_full = "block"` and a full outbox: what waits for room, in order.
    held: VecDeque<StoreRequest>,
    /// What the daemon was told about that.
    blocked: bool,
    committed_at: Instant,
    ticked_at: Instant,
    closing: bool,
    absent: StateRetention,
}

/// Why the loop cannot go on.
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

impl Writer {
    pub(super) fn new(
        context: StoreContext,
        requests: Receiver<(u64, StoreRequest)>,
        events: Sender<(u64, StoreEvent)>,
    ) -> Self {
        let retention = context.settings.state_retention_secs.map(|secs| Duration::from_secs(secs.get()));
        Self {
            absent: StateRetention::new(retention, Instant::now()),
            context,
            requests,
            events,
            epoch: 0,
            reads: Vec::new(),
            held: VecDeque::new(),
            blocked: false,
            committed_at: Instant::now(),
            ticked_at: Instant::now(),
            closing: false,
        }
    }

    pub(super) fn run(mut self, session: Session) {
        let mut session = Some(session);
        while let Some(mut open) = session.take() {
            let stop = self.write(&mut open);
            drop(open);
            match stop {
                Ok(()) => break,
                Err(Stop::Abandoned) => return,
                Err(Stop::Failed(error)) => session = self.reopen(&error),
            }
        }
        let Self { context, events, epoch, .. } = self;
        // The folder is free before anyone hears that it is.
        drop(context);
        let _ = events.blocking_send((epoch, StoreEvent::Closed));
    }

    /// Until closed, or until something fails.
    fn write(&mut self, session: &mut Session) -> Result<(), Stop> {
        let mut flush = false;
        loop {
            self.tell(session.news())?;
            if !flush && !self.closing {
                self.gather(session)?;
            }
            flush = self.settle(session)?;
            if self.closing && !flush {
                return Ok(());
            }
            if self.ticked_at.elapsed() >= TICK {
                self.ticked_at = Instant::now();
                session.tick()?;
                session.age_state(&mut self.absent)?;
                flush |= session.is_behind() || session.must_commit();
                self.context.stats.writer_bytes.store(thread_bytes_written(), Relaxed);
            }
        }
    }

    /// Waits for a request, then takes all that are there.
    fn gather(&mut self, session: &mut Session) -> Result<(), Stop> {
        let idle = TICK.saturating_sub(self.ticked_at.elapsed());
        match self.requests.recv_timeout(idle) {
            Ok(request) => self.admit(session, request)?,
            Err(RecvTimeoutError::Timeout) => return Ok(()),
            Err(RecvTimeoutError::Disconnected) => self.closing = true,
        }
        let spare = Duration::from_millis(self.context.settings.flash_saver_ms.into());
        for _ in 1..TRANSACTION_REQUESTS {
            if self.closing {
                break;
            }
            // Only what must be written has to wait for its turn.
            let wait =
                if session.must_commit() { spare.saturating_sub(self.committed_at.elapsed()) } else { Duration::ZERO };
            let next = if wait.is_zero() {
                self.requests.try_recv()
            } else {
                self.requests.recv_timeout(wait).map_err(|error| match error {
                    RecvTimeoutError::Timeout => TryRecvError::Empty,
                    RecvTimeoutError::Disconnected => TryRecvError::Disconnected,
                })
            };
            match next {
                Ok(request) => self.admit(session, request)?,
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => self.closing = true,
            }
        }
        Ok(())
    }

    fn admit(&mut self, session: &mut Session, (epoch, request): (u64, StoreRequest)) -> Result<(), Stop> {
        // Sent before the daemon heard of a failure: built on commits that never happened.
        let stale = epoch != self.epoch && !matches!(request, StoreRequest::Close | StoreRequest::Installed(_));
        if stale { Ok(()) } else { self.apply(session, request) }
    }

    fn apply(&mut self, session: &mut Session, request: StoreRequest) -> Result<(), Stop> {
        match request {
            StoreRequest::Commit { ref commits, .. } if !self.held.is_empty() || session.is_full_for(commits) => {
                self.held.push_back(request);
            }
            // These see or follow what is held.
            StoreRequest::LoadState { .. } | StoreRequest::SetMeta { .. } if !self.held.is_empty() => {
                self.held.push_back(request);
            }
            StoreRequest::Commit { seq, commits } => session.enqueue(seq, commits),
            StoreRequest::LoadState { token, scope } => {
                let entries = session.load_state(&scope)?;
                self.tell([StoreEvent::State { token, entries }])?;
            }
            StoreRequest::ReadOutbox { stream, after, max_bytes } if session.must_commit() => {
                self.reads.push((stream, after, max_bytes));
            }
            StoreRequest::ReadOutbox { stream, after, max_bytes } => self.read(session, stream, after, max_bytes)?,
            StoreRequest::Delivered { stream, through } => session.delivered(stream, through),
            StoreRequest::Refused { stream, id, reason } => session.refuse(stream, id, &reason)?,
            StoreRequest::GapsReported { through } => session.gaps_reported(through)?,
            StoreRequest::SetMeta { key, value } => session.set_meta(key, &value)?,
            StoreRequest::Installed(functions) => self.absent.installed(functions),
            StoreRequest::Close => self.closing = true,
        }
        Ok(())
    }

    /// Commits, answers, and lets in what was held if there is room. Returns whether there is more to commit.
    fn settle(&mut self, session: &mut Session) -> Result<bool, Stop> {
        // While blocked, what upstream takes makes room only when it is deleted.
        let flush = self.closing || !self.held.is_empty() || session.is_behind();
        if session.must_commit() {
            self.committed_at = Instant::now();
        }
        if let Some(committed) = session.commit(flush)? {
            let super::session::Committed { seq, stored, parked } = committed;
            self.tell([StoreEvent::Committed { seq, stored, parked }])?;
        }
        session.checkpoint()?;
        for (stream, after, max_bytes) in std::mem::take(&mut self.reads) {
            self.read(session, stream, after, max_bytes)?;
        }
        let full = match self.held.front() {
            Some(StoreRequest::Commit { commits, .. }) => session.is_full_for(commits),
            _ => false,
        };
        if full != self.blocked {
            self.blocked = full;
            self.tell([StoreEvent::Blocked(full)])?;
        }
        if full || self.held.is_empty() {
            return Ok(false);
        }
        for request in std::mem::take(&mut self.held) {
            self.apply(session, request)?;
        }
        Ok(true)
    }

    fn read(&self, session: &mut Session, stream: Stream, after: u64, max_bytes: usize) -> Result<(), Stop> {
        let (stored, end) = session.read_outbox(stream, after, max_bytes)?;
        self.tell([StoreEvent::Outbox { stream, stored, end }])
    }

    fn tell(&self, events: impl IntoIterator<Item = StoreEvent>) -> Result<(), Stop> {
        for event in events {
            self.events.blocking_send((self.epoch, event)).map_err(|_| Stop::Abandoned)?;
        }
        Ok(())
    }

    /// After a failure: says so, discards what comes in, and tries until the disk works again. `None` when closed.
    fn reopen(&mut self, error: &rusqlite::Error) -> Option<Session> {
        tracing::error!(%error, "the database failed: nothing is acknowledged until it works again");
        self.context.stats.failures.fetch_add(1, Relaxed);
        self.reads.clear();
        self.held.clear();
        self.blocked = false;
        self.epoch += 1;
        self.tell([StoreEvent::Failed { error: error.to_string() }]).ok()?;
        let mut delay = RETRY_FIRST;
        loop {
            let until = Instant::now() + delay;
            while !self.closing {
                match self.requests.recv_timeout(until.saturating_duration_since(Instant::now())) {
                    Ok((_, StoreRequest::Close)) | Err(RecvTimeoutError::Disconnected) => self.closing = true,
                    Ok(_) => {}
                    Err(RecvTimeoutError::Timeout) => break,
                }
            }
            if self.closing {
                return None;
            }
            match self.context.place.probe().and_then(|()| self.context.open()) {
                Ok((session, recovered)) => {
                    tracing::info!("the database works again");
                    self.epoch += 1;
                    self.tell([StoreEvent::Reopened(Box::new(recovered))]).ok()?;
                    return Some(session);
                }
                Err(error) => {
                    delay = (2 * delay).min(RETRY_MAX);
                    tracing::warn!(%error, retry_secs = delay.as_secs(), "the database cannot be opened yet");
                }
            }
        }
    }
}
