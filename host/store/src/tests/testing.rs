//! Rig: a store in a temporary folder, with shorthands for requests.

use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::{OpenError, Pauses, Store, StoreEvents, StoreHandle};
use sedge_core::config::{self, SinkShare, UPSTREAM};
use sedge_core::message::{Failure, FailureCode, Message, Scope, StateWrite, Usage};
use sedge_core::store::{
    BatchNo, Commit, DeadLetter, Fingerprint, LoadId, Record, RecordId, Recovered, StoreEvent, StoreRequest,
    StoredRecord,
};
use sedge_core::stream::Stream;
use sedge_core::time::Now;

/// Time of a store that runs on the real clock.
pub(super) fn now() -> Now {
    Now::at(Instant::now(), std::time::SystemTime::now(), true)
}

pub(super) const RECEIVE_MAXIMUM: u16 = 16;
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSES: Pauses = Pauses {
    second_look: Duration::from_millis(2),
    retry_first: Duration::from_millis(1),
    retry_max: Duration::from_millis(8),
};

pub(super) struct Rig {
    pub(super) handle: StoreHandle,
    pub(super) events: StoreEvents,
    pub(super) recovered: Recovered,
    /// Ranges of ids that the store said it dropped.
    pub(super) dropped: Vec<(u64, u64)>,
    seq: u64,
}

impl Rig {
    pub(super) fn open(dir: &Path) -> Self {
        Self::open_with(dir, &config::Store::default())
    }

    pub(super) fn open_with(dir: &Path, config: &config::Store) -> Self {
        Self::try_open(dir, config).unwrap_or_else(|error| panic!("{error}: {error:?}"))
    }

    /// Waits for the lock, which the thread of a store that was just dropped may still hold.
    pub(super) fn try_open(dir: &Path, config: &config::Store) -> Result<Self, OpenError> {
        let mut config = config.clone();
        if config.sinks.is_empty() {
            let (max_bytes, when_full) = (config.max_bytes.get(), config.when_full);
            config.sinks.push(SinkShare { name: UPSTREAM.into(), max_bytes, when_full });
        }
        let started = Instant::now();
        loop {
            match Store::open_with(&config, dir, RECEIVE_MAXIMUM, PAUSES, now()) {
                Ok((handle, events, recovered)) => {
                    return Ok(Self { handle, events, recovered, dropped: Vec::new(), seq: 0 });
                }
                Err(OpenError::Held { .. }) if started.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_micros(100));
                }
                Err(error) => return Err(error),
            }
        }
    }

    pub(super) fn send(&self, request: StoreRequest) {
        self.handle.send(request).unwrap();
    }

    /// Waits for the next event.
    pub(super) fn event(&mut self) -> StoreEvent {
        let started = Instant::now();
        loop {
            if let Some(event) = self.events.try_recv() {
                return event;
            }
            let waited = started.elapsed();
            assert!(waited < PATIENCE, "no event came");
            // Most events come at once.
            if waited < Duration::from_micros(300) {
                std::thread::yield_now();
            } else {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
    }

    /// Sends a commit request without waiting. Returns its number.
    pub(super) fn start(&mut self, commits: Vec<Commit>) -> u64 {
        self.seq += 1;
        self.send(StoreRequest::Commit { batch: BatchNo(self.seq), commits });
        self.seq
    }

    /// Commits and waits until it is on disk. Returns the records stored since the last event read.
    pub(super) fn commit(&mut self, commits: Vec<Commit>) -> Vec<StoredRecord> {
        let sent = self.start(commits);
        let mut all = Vec::new();
        loop {
            match self.event() {
                StoreEvent::Committed { batch: BatchNo(seq), stored, .. } => {
                    all.extend(stored);
                    if seq == sent {
                        return all;
                    }
                }
                StoreEvent::Dropped { ranges, .. } => self.dropped.extend(ranges.iter().map(|(a, b)| (a.0, b.0))),
                StoreEvent::Gaps { .. } | StoreEvent::Blocked(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Lost records by reason, of all streams.
    pub(super) fn lost(&self, reason: &str) -> u64 {
        let counts = Stream::all().flat_map(|stream| self.handle.stats().dropped[stream].counts());
        counts.filter(|(of, _)| *of == reason).map(|(_, count)| count).sum()
    }

    pub(super) fn state(&mut self, scope: &Scope) -> Vec<(String, Bytes)> {
        self.send(StoreRequest::LoadState { id: LoadId(9), scope: scope.clone() });
        loop {
            match self.event() {
                StoreEvent::State { id: LoadId(9), entries } => {
                    return entries.into_iter().map(|(key, value)| (key.into(), value)).collect();
                }
                StoreEvent::Committed { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    pub(super) fn read(&mut self, stream: Stream, after: RecordId, max_bytes: usize) -> (Vec<StoredRecord>, bool) {
        self.send(StoreRequest::ReadOutbox { stream, after, max_bytes });
        loop {
            match self.event() {
                StoreEvent::Outbox { stream: of, stored, end } if of == stream => return (stored, end),
                StoreEvent::Dropped { ranges, .. } => self.dropped.extend(ranges.iter().map(|(a, b)| (a.0, b.0))),
                StoreEvent::Committed { .. } | StoreEvent::Gaps { .. } | StoreEvent::Blocked(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    pub(super) fn read_all(&mut self, stream: Stream) -> Vec<StoredRecord> {
        let mut all: Vec<StoredRecord> = Vec::new();
        loop {
            let (stored, end) = self.read(stream, all.last().map_or(RecordId(0), |stored| stored.id), 300);
            all.extend(stored);
            if end {
                return all;
            }
        }
    }

    /// Waits until the store has looked for what is too old, this many times.
    pub(super) fn after_ticks(&self, ticks: u64) {
        let started = Instant::now();
        while self.handle.stats().ticks.load(Relaxed) < ticks {
            assert!(started.elapsed() < PATIENCE, "the store does not tick");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(super) fn close(mut self) {
        self.send(StoreRequest::Close);
        while !matches!(self.event(), StoreEvent::Closed) {}
    }
}

pub(super) fn record(stream: Stream, payload: impl Into<Bytes>) -> Record {
    Record {
        stream,
        function: "threshold".into(),
        topic: "sensors/cellar".into(),
        payload: payload.into(),
        content_type: None,
        retain: false,
        hops: 1,
        fan_out: 9,
        clock_synced: true,
        at_ms: 1_800_000_000_000,
        trace: None,
        is_folded: false,
    }
}

pub(super) fn records(records: Vec<Record>) -> Commit {
    Commit { records, ..Commit::default() }
}

pub(super) fn delivery(n: u64) -> Commit {
    Commit { delivery: Some(Fingerprint { packet_id: n as u16, digest: n }), ..Commit::default() }
}

pub(super) fn scope(topic: Option<&str>) -> Scope {
    Scope { function: "anomaly".into(), topic: topic.map(Into::into) }
}

pub(super) fn write(key: &str, value: Option<&'static str>) -> StateWrite {
    StateWrite { key: key.into(), value: value.map(Bytes::from) }
}

pub(super) fn message(topic: &str, payload: impl Into<Bytes>) -> Message {
    Message {
        topic: topic.into(),
        payload: payload.into(),
        content_type: Some("application/json".into()),
        properties: vec![("id".into(), "7".into())],
        received_at_ms: 1_800_000_000_000,
        clock_synced: true,
        attempt: 1,
        retained: true,
        response_topic: Some("answers/7".into()),
        correlation_data: Some([0, 255].into()),
        trace: None,
    }
}

pub(super) fn dead_letter(function: &str, code: FailureCode, payload: impl Into<Bytes>) -> DeadLetter {
    DeadLetter {
        function: function.into(),
        version: "1.2.0".into(),
        message: message("sensors/cellar", payload).into(),
        failure: Failure { code, detail: "because".into() },
        usage: Usage { fuel: 10, elapsed_us: 20, memory_bytes: 30, output_bytes: 40 },
        at_ms: 1_800_000_000_000,
    }
}
