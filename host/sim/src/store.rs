//! The store as a model: requests in order, answers in order, one durable state. It can fail before or after a commit is
//! on disk, and it loses what it has not written when the power goes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use sedge_core::fold::THINNED;
use sedge_core::store::{
    Commit, Gap, GapId, Parked, RecordId, Recovered, StoreEvent, StoreRequest, StoredRecord, StoredSink,
};
use sedge_core::stream::{PerStream, SinkId, Stream};

use crate::disk::Disk;

/// Records that a stream may hold before the oldest of the function with most bytes are dropped.
const STREAM_MAX: usize = 12;

#[derive(Debug, Default)]
pub struct Store {
    pub disk: Disk,
    streams: PerStream<Outbox>,
    /// The first is told of what the local broker lost.
    sinks: Vec<StoredSink>,
    gaps: Vec<(GapId, Gap)>,
    reporting: BTreeMap<SinkId, GapId>,
    last_gap: u64,
    /// With the epoch that the sender knew of.
    requests: VecDeque<(u64, StoreRequest)>,
    events: VecDeque<(u64, StoreEvent)>,
    epoch: u64,
    /// The epoch of the last event that the board has heard.
    heard: u64,
    pub has_failed: bool,
    bounded: bool,
    /// Not told yet.
    fresh_drops: Vec<StoreEvent>,
    /// Records that were dropped, by stream: what gaps must add up to.
    pub dropped: PerStream<Vec<u64>>,
    pub commits: u64,
    /// Records that were folded into others.
    pub thinned: u64,
    /// Records that were dropped while an older one of another function was not.
    pub dropped_between: u64,
    /// State of functions and topics that was deleted to make room.
    pub forgotten: Vec<(Arc<str>, Option<Arc<str>>)>,
}

#[derive(Debug, Default)]
struct Outbox {
    records: BTreeMap<u64, StoredRecord>,
    last: u64,
    delivered: u64,
    /// The board has no records after this one in memory. `None`: it may have all.
    held: Option<u64>,
}

impl Outbox {
    /// The oldest record of the function with most bytes.
    fn first_of_the_largest(&self) -> u64 {
        let mut functions: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
        for (id, stored) in self.records.iter().rev() {
            let (bytes, first) = functions.entry(&stored.record.function).or_default();
            (*bytes, *first) = (*bytes + stored.record.payload.len(), *id);
        }
        functions.into_values().max().expect("there are records").1
    }
}

impl Store {
    pub fn new(bounded: bool, sinks: &[(SinkId, &str)]) -> Self {
        let sink = |(id, name): &(SinkId, &str)| StoredSink { id: *id, name: (*name).into(), is_removed: false };
        Self { bounded, sinks: sinks.iter().map(sink).collect(), ..Self::default() }
    }

    pub fn ask(&mut self, request: StoreRequest) {
        self.requests.push_back((self.heard, request));
    }

    /// The next event for the board.
    pub fn next_event(&mut self) -> Option<StoreEvent> {
        let (epoch, event) = self.events.pop_front()?;
        self.heard = epoch;
        Some(event)
    }

    pub fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    pub fn has_requests(&self) -> bool {
        !self.requests.is_empty()
    }

    /// Carries out the oldest request. `record`: told of each record and dead letter in the order of the commits.
    pub fn step(&mut self, note: &mut impl FnMut(&Commit)) {
        let Some((epoch, request)) = self.requests.pop_front() else { return };
        if self.has_failed || epoch != self.epoch {
            return;
        }
        match request {
            StoreRequest::Commit { batch, commits } => {
                let (stored, parked) = self.commit(commits, note);
                let letters = self.disk.take_letters();
                self.tell(StoreEvent::Committed { batch, stored, parked, letters });
                let dropped = std::mem::take(&mut self.fresh_drops);
                dropped.into_iter().for_each(|event| self.tell(event));
                self.report_gaps();
            }
            StoreRequest::LoadState { id, scope } => {
                let entries = self.disk.entries(&scope);
                self.tell(StoreEvent::State { id, entries });
            }
            StoreRequest::LoadResponse { request, message_id } => {
                let response = self.disk.response(&message_id);
                self.tell(StoreEvent::Response { request, response });
            }
            StoreRequest::ForgetState { function, topics } => {
                self.disk.forget_state(&function, &topics);
                self.forgotten.extend(topics.into_iter().map(|topic| (Arc::clone(&function), topic)));
            }
            StoreRequest::ReadOutbox { stream, after, .. } => {
                let rest = self.streams[stream].records.range(after.0 + 1..);
                let stored: Vec<StoredRecord> = rest.take(8).map(|(_, it)| it.clone()).collect();
                let through = stored.last().map_or(after.0, |it| it.id.0);
                let end = self.streams[stream].records.range(through + 1..).next().is_none();
                self.streams[stream].held = (!end).then_some(through);
                self.tell(StoreEvent::Outbox { stream, stored, end });
            }
            StoreRequest::Behind { stream, held } => self.streams[stream].held = Some(held.0),
            StoreRequest::Delivered { stream, through } => {
                let outbox = &mut self.streams[stream];
                outbox.delivered = outbox.delivered.max(through.0);
                while let Some(first) = outbox.records.first_entry().filter(|it| *it.key() <= through.0) {
                    first.remove();
                }
            }
            StoreRequest::Refused { stream, id, reason } => {
                if self.streams[stream].records.remove(&id.0).is_some() {
                    self.lose(stream, id.0, &reason);
                    self.report_gaps();
                }
            }
            StoreRequest::GapsReported { sink, through } => {
                let gaps = std::mem::take(&mut self.gaps);
                let is_open = |(id, gap): &(GapId, Gap)| *id > through || self.reporter(gap.stream) != sink;
                self.gaps = gaps.into_iter().filter(is_open).collect();
                self.report_gaps();
            }
            StoreRequest::SetMeta { key, value } => drop(self.disk.meta.insert(key.to_owned(), value)),
            StoreRequest::ForgetDeliveries => {
                self.disk.forget_deliveries();
                self.tell(StoreEvent::DeliveriesForgotten);
            }
            StoreRequest::Reopen => {
                self.fail(false, note);
                self.reopen();
            }
            StoreRequest::Installed(_) | StoreRequest::Close => {}
        }
    }

    fn commit(&mut self, commits: Vec<Commit>, note: &mut impl FnMut(&Commit)) -> (Vec<StoredRecord>, Vec<Parked>) {
        let (mut stored, mut parked) = (Vec::new(), Vec::new());
        self.commits += 1;
        self.thin();
        for mut commit in commits {
            note(&commit);
            for record in std::mem::take(&mut commit.records) {
                let outbox = &mut self.streams[record.stream];
                outbox.last += 1;
                let record = StoredRecord { id: RecordId(outbox.last), record };
                outbox.records.insert(outbox.last, record.clone());
                stored.push(record);
            }
            parked.extend(self.disk.commit(commit));
        }
        let sinks = self.sinks.iter().filter(|_| self.bounded).map(|sink| sink.id);
        let bounded: Vec<Stream> = sinks.flat_map(|sink| [Stream::data(sink), Stream::alerts(sink)]).collect();
        for stream in bounded {
            while self.streams[stream].records.len() > STREAM_MAX {
                let outbox = &mut self.streams[stream];
                let id = outbox.first_of_the_largest();
                let is_oldest = outbox.records.first_key_value().is_some_and(|(first, _)| *first == id);
                outbox.records.remove(&id);
                let after = if is_oldest { outbox.delivered } else { id - 1 };
                match is_oldest {
                    true => outbox.delivered = outbox.delivered.max(id),
                    false => self.dropped_between += 1,
                }
                let outbox = &mut self.streams[stream];
                if outbox.held.is_some_and(|held| after <= held && held <= id) {
                    outbox.held = (id < outbox.last).then_some(id);
                }
                stored.retain(|it| (it.record.stream, it.id.0) != (stream, id));
                let gap = self.lose(stream, id, "full");
                let ranges = vec![(RecordId(after), RecordId(id))];
                self.fresh_drops.push(StoreEvent::Dropped { stream, gap, ranges });
            }
        }
        (stored, parked)
    }

    /// Folds a record of each sink that the board does not have in memory. It is never sent: what it said is said by another.
    fn thin(&mut self) {
        let sinks = self.sinks.iter().filter(|_| self.bounded);
        let streams: Vec<Stream> = sinks.map(|sink| Stream::data(sink.id)).collect();
        for stream in streams {
            let Outbox { records, held, delivered, .. } = &mut self.streams[stream];
            let Some(held) = held.filter(|_| records.len() > STREAM_MAX / 2) else { continue };
            let first = records.range(held.max(*delivered) + 1..).next().map(|(id, _)| *id);
            if let Some(id) = first {
                records.remove(&id);
                self.thinned += 1;
                self.lose(stream, id, THINNED);
            }
        }
    }

    /// Returns the gap that counts the record.
    fn lose(&mut self, stream: Stream, id: u64, reason: &str) -> GapId {
        self.dropped[stream].push(id);
        let reporting = self.reporting.get(&self.reporter(stream)).copied().unwrap_or_default();
        let is_of = |gap: &Gap| gap.stream == stream && &*gap.reason == reason && gap.first_id.0 <= id;
        let open = self.gaps.iter_mut().find(|(number, gap)| *number > reporting && is_of(gap));
        if let Some((number, gap)) = open {
            gap.last_id = gap.last_id.max(RecordId(id));
            gap.records += 1;
            return *number;
        }
        self.last_gap += 1;
        let gap = Gap {
            stream,
            reason: reason.into(),
            first_id: RecordId(id),
            last_id: RecordId(id),
            records: 1,
            bytes: 0,
            first_at_ms: 0,
            last_at_ms: 0,
        };
        self.gaps.push((GapId(self.last_gap), gap));
        GapId(self.last_gap)
    }

    fn reporter(&self, stream: Stream) -> SinkId {
        stream.sink().unwrap_or(self.sinks.first().map_or(SinkId::UPSTREAM, |sink| sink.id))
    }

    fn report_gaps(&mut self) {
        if self.gaps.is_empty() {
            return;
        }
        for sink in self.sinks.iter().map(|sink| sink.id).collect::<Vec<_>>() {
            let of_sink = || self.gaps.iter().filter(|(_, gap)| self.reporter(gap.stream) == sink);
            let reporting = self.reporting.get(&sink).copied().unwrap_or_default();
            let is_reporting = of_sink().next().is_some_and(|(id, _)| *id <= reporting);
            let Some((through, _)) = of_sink().next_back().filter(|_| !is_reporting) else { continue };
            let (through, gaps) = (*through, of_sink().cloned().collect());
            self.reporting.insert(sink, through);
            self.tell(StoreEvent::Gaps { sink, gaps });
        }
    }

    fn tell(&mut self, event: StoreEvent) {
        self.events.push_back((self.epoch, event));
    }

    /// The disk fails. `after_write`: with the next commit, if that is what comes next, on disk although it is reported as
    /// failed. Returns whether one was.
    pub fn fail(&mut self, after_write: bool, note: &mut impl FnMut(&Commit)) -> bool {
        if self.has_failed {
            return false;
        }
        let mut is_written = false;
        if after_write
            && let Some((epoch, StoreRequest::Commit { commits, .. })) = self.requests.pop_front()
            && epoch == self.epoch
        {
            self.commit(commits, note);
            self.disk.take_letters();
            is_written = true;
        }
        self.fresh_drops.clear();
        self.has_failed = true;
        self.epoch += 1;
        self.tell(StoreEvent::Failed { error: "the disk failed".into() });
        is_written
    }

    pub fn reopen(&mut self) {
        if self.has_failed {
            self.has_failed = false;
            self.epoch += 1;
            self.reporting.clear();
            let recovered = Box::new(self.recovered());
            self.tell(StoreEvent::Reopened(recovered));
            self.report_gaps();
        }
    }

    /// The power goes: what is not on disk is gone.
    pub fn cut_power(&mut self) -> Recovered {
        self.requests.clear();
        self.events.clear();
        self.fresh_drops.clear();
        self.has_failed = false;
        self.heard = self.epoch;
        self.reporting.clear();
        let recovered = self.recovered();
        self.report_gaps();
        recovered
    }

    fn recovered(&mut self) -> Recovered {
        for outbox in self.streams.iter_mut() {
            outbox.held = (outbox.delivered < outbox.last).then_some(outbox.delivered);
        }
        let mut recovered = self.disk.recovered();
        recovered.store_id = "0000000000000001".into();
        recovered.sinks.clone_from(&self.sinks);
        for stream in Stream::all() {
            let outbox = &self.streams[stream];
            set(&mut recovered, stream, outbox.delivered, outbox.last);
        }
        recovered
    }

    /// Records that wait to be sent, by stream.
    pub fn waiting(&self, stream: Stream) -> usize {
        self.streams[stream].records.len()
    }

    /// Records up to here were delivered, as far as the store knows, or dropped.
    pub fn watermark(&self, stream: Stream) -> u64 {
        self.streams[stream].delivered
    }

    pub fn last(&self, stream: Stream) -> u64 {
        self.streams[stream].last
    }

    pub fn unreported_gaps(&self) -> usize {
        self.gaps.len()
    }
}

fn set(recovered: &mut Recovered, stream: Stream, delivered: u64, last: u64) {
    recovered.delivered[stream] = RecordId(delivered);
    recovered.last[stream] = RecordId(last);
}
