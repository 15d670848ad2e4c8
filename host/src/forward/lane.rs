//! One receiver and the streams that go to it, as a state machine without I/O: what happened goes in, what to do comes out.
//!
//! Streams are in order of precedence. While one has anything to send, in memory or on disk, none behind it sends. Gaps
//! are reported after alerts and before data.
//!
//! A record that the receiver declines holds its stream: nothing new of that stream is sent before it, it is tried with
//! growing pauses and nothing else under way, and between tries the other streams go on. What was under way with it at
//! first may still be taken. When the lane's patience is over, the record becomes a gap. Its topic is remembered: later
//! records there that are declined too are given up at once, if the receiver has taken anything since. Without that proof
//! each has the full patience, so that a receiver that declines everything for a while costs one record of a stream in
//! that time, and not all of them.
//!
//! Some brokers decline by closing the connection; networks break young connections, too. After a connection that broke
//! before anything was taken, the lane is careful until something is: it waits until the next one has stood for a while,
//! and sends one envelope at a time. A record over which such a connection breaks is declined.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::envelope::{Envelope, EnvelopeBuilder};
use super::tail::{Tail, TailLimits};
use crate::store::{Gap, GapId, RecordId, Recovered, StoreRequest, Stream};
use crate::stream::PerStream;
use crate::time::Backoff;

/// Half a megabyte is about two seconds of work for the fastest receiver, and six windows fit a small board.
const WINDOW: TailLimits = TailLimits { records: 2048, bytes: 512 << 10 };

/// The first pause after a receiver asked to be left alone for a while.
pub const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// A record is given up after this many tries at least, however long ago the first was.
const LEAST_TRIES: u32 = 3;

/// A connection that has stood for so long does not break by itself the moment that something is sent.
const STEADY: Duration = Duration::from_secs(2);

/// Topics that are remembered as given up. One that is forgotten gets the full patience again.
const GIVEN_UP_TOPICS: usize = 64;

/// What a receiver said about one envelope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Accepted,
    /// It will never take this one. The reason is short and without figures of its own: gaps are folded by it.
    Refused(Box<str>),
    /// It does not take this one, now or for ever, and may well take others: a topic that it does not allow. The reason is
    /// as short.
    Declined(Box<str>),
    /// Not now, whatever is sent; the pause is at least `after`.
    Retry {
        reason: String,
        after: Option<Duration>,
    },
}

/// What the caller has to do, in this order.
#[derive(Debug)]
pub enum Step {
    Send { token: u64, envelope: Envelope },
    Store(StoreRequest),
}

#[derive(Debug)]
pub struct Lane {
    builder: EnvelopeBuilder,
    streams: Vec<LaneStream>,
    gaps: Vec<PendingGap>,
    /// All gaps in `gaps` are reported when this number may be told to the store.
    gaps_through: GapId,
    /// What was sent and not answered. Tokens are never used twice, so an answer from an old connection finds nothing.
    in_flight: HashMap<u64, InFlight>,
    in_flight_limit: usize,
    next_token: u64,
    connected: bool,
    /// A careful lane has waited on this connection.
    waited: bool,
    /// `taken` when the connection began.
    taken_before: u64,
    /// The last connection broke before anything was taken.
    careful: bool,
    /// The channel to the receiver had no room.
    full: bool,
    paused_until: Option<Instant>,
    /// The first token that was not under way when the receiver last asked for a pause. Success before it proves nothing.
    resumed: u64,
    backoff: Backoff,
    /// How long a declined record is tried. `None`: until it is taken or the store drops it.
    patience: Option<Duration>,
    /// Topics whose records were given up, with `taken` at that time.
    given_up: VecDeque<(Box<str>, u64)>,
    /// How many envelopes the receiver has taken.
    taken: u64,
    /// Refusals, then at most one watermark a stream.
    requests: Vec<StoreRequest>,
    watermarks: PerStream<Option<RecordId>>,
}

/// A stream on its way to the receiver.
#[derive(Debug)]
struct LaneStream {
    stream: Stream,
    tail: Tail,
    hold: Option<Hold>,
    backoff: Backoff,
}

/// The first of a stream's declined records.
#[derive(Debug)]
struct Hold {
    id: RecordId,
    since: Instant,
    tries: u32,
    /// `None`: it may be sent.
    until: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InFlight {
    Record(Stream, RecordId),
    /// Its place in `gaps`.
    Gap(usize),
}

#[derive(Debug)]
struct PendingGap {
    gap: Gap,
    state: GapState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum GapState {
    Waiting,
    Sent,
    Done,
}

impl Lane {
    pub fn new(
        streams: &[Stream],
        builder: EnvelopeBuilder,
        recovered: &Recovered,
        in_flight_limit: usize,
        backoff: Backoff,
        patience: Option<Duration>,
    ) -> Self {
        let line = |stream: &Stream| {
            let tail = Tail::new(WINDOW, recovered.delivered[*stream], recovered.last[*stream]);
            LaneStream { stream: *stream, tail, hold: None, backoff: backoff.clone() }
        };
        let streams = streams.iter().map(line).collect();
        Self {
            builder,
            streams,
            gaps: Vec::new(),
            gaps_through: GapId::default(),
            in_flight: HashMap::new(),
            in_flight_limit,
            next_token: 1,
            connected: false,
            waited: false,
            taken_before: 0,
            careful: false,
            full: false,
            paused_until: None,
            resumed: 0,
            backoff,
            patience,
            given_up: VecDeque::new(),
            taken: 0,
            requests: Vec::new(),
            watermarks: PerStream::default(),
        }
    }

    pub fn tail(&mut self, stream: Stream) -> Option<&mut Tail> {
        self.line(stream).map(|line| &mut line.tail)
    }

    fn line(&mut self, stream: Stream) -> Option<&mut LaneStream> {
        self.streams.iter_mut().find(|line| line.stream == stream)
    }

    /// The store hands out the next gaps only when it was told that the ones before are reported.
    pub fn gaps(&mut self, through: GapId, gaps: Vec<Gap>) {
        self.gaps_through = self.gaps_through.max(through);
        self.gaps.extend(gaps.into_iter().map(|gap| PendingGap { gap, state: GapState::Waiting }));
    }

    pub fn connected(&mut self) {
        self.connected = true;
        self.waited = false;
        self.taken_before = self.taken;
        self.full = false;
        self.paused_until = None;
    }

    /// Everything without an answer is sent again on the next connection.
    pub fn disconnected(&mut self, now: Instant) {
        self.connected = false;
        let broke: Vec<InFlight> = self.in_flight.drain().map(|(_, item)| item).collect();
        if let [InFlight::Record(stream, id)] = broke[..]
            && self.careful
        {
            self.declined(stream, id, "connection-broken".into(), now);
        }
        self.careful |= !broke.is_empty() && self.taken == self.taken_before;
        for line in &mut self.streams {
            line.tail.rewind();
        }
        for gap in &mut self.gaps {
            if gap.state == GapState::Sent {
                gap.state = GapState::Waiting;
            }
        }
    }

    /// Returns the stream of a record that the receiver has taken now, for the counters.
    pub fn answered(&mut self, token: u64, answer: Answer, now: Instant) -> Option<Stream> {
        self.full = false;
        let item = self.in_flight.remove(&token)?;
        let taken = answer == Answer::Accepted;
        if taken {
            self.taken += 1;
            self.careful = false;
        }
        if (taken || matches!(answer, Answer::Refused(_))) && token >= self.resumed {
            self.backoff.succeeded();
        }
        match (item, answer) {
            (InFlight::Record(stream, id), Answer::Accepted) => {
                self.reinstate_topic(stream, id);
                self.done(stream, id);
                return Some(stream);
            }
            (InFlight::Record(stream, id), Answer::Refused(reason)) => self.drop_record(stream, id, reason),
            (InFlight::Record(stream, id), Answer::Declined(reason)) => self.declined(stream, id, reason, now),
            (InFlight::Gap(place), Answer::Accepted | Answer::Refused(_) | Answer::Declined(_)) => {
                // A receiver that refuses to hear of gaps must not stop the data behind them.
                self.gaps[place].state = GapState::Done;
                if self.gaps.iter().all(|gap| gap.state == GapState::Done) {
                    self.gaps.clear();
                    self.requests.push(StoreRequest::GapsReported { through: self.gaps_through });
                }
            }
            (item, Answer::Retry { after, .. }) => {
                self.requeue(item);
                // Envelopes that were under way together fail together: one pause for all of them.
                if !self.paused(now) {
                    let pause = self.backoff.failed().max(after.unwrap_or_default()).min(self.backoff.max());
                    self.paused_until = Some(now + pause);
                    self.resumed = self.next_token;
                }
            }
        }
        None
    }

    /// The channel to the receiver had no room for this envelope. Sending goes on after the next answer, or
    /// [`Self::writable`].
    pub fn returned(&mut self, token: u64) {
        if let Some(item) = self.in_flight.remove(&token) {
            self.requeue(item);
            self.full = true;
        }
    }

    pub fn writable(&mut self) {
        self.full = false;
    }

    /// The store is back, with the file it had or a new one. What it said and was told in between is void.
    pub fn reopened(&mut self, recovered: &Recovered, builder: EnvelopeBuilder) {
        self.builder = builder;
        self.requests.clear();
        self.watermarks = PerStream::default();
        self.in_flight.clear();
        // It hands out unreported gaps anew, perhaps grown.
        self.gaps.clear();
        for line in &mut self.streams {
            line.tail.reopened(recovered.delivered[line.stream], recovered.last[line.stream]);
            // Its ids may be those of another file.
            line.hold = None;
        }
    }

    /// The next thing to do, until `None`. Take in all events at hand before: watermarks are told once for all of them.
    pub fn poll(&mut self, now: Instant) -> Option<Step> {
        if !self.requests.is_empty() {
            return Some(Step::Store(self.requests.remove(0)));
        }
        for stream in Stream::ALL {
            if let Some(through) = self.watermarks[stream].take() {
                return Some(Step::Store(StoreRequest::Delivered { stream, through }));
            }
        }
        for line in &mut self.streams {
            if let Some(load) = line.tail.load() {
                let (stream, after, max_bytes) = (line.stream, load.after, load.max_bytes);
                return Some(Step::Store(StoreRequest::ReadOutbox { stream, after, max_bytes }));
            }
        }
        self.end_pauses(now);
        if self.connected && self.careful && !self.waited {
            self.waited = true;
            self.paused_until = Some(now + STEADY);
        }
        if !self.connected || self.full || self.paused_until.is_some() || self.awaits_answers() {
            return None;
        }
        let (item, envelope) = self.next_envelope()?;
        let token = self.next_token;
        self.next_token += 1;
        self.in_flight.insert(token, item);
        Some(Step::Send { token, envelope })
    }

    /// So much is under way that nothing more is sent before the receiver answers.
    pub fn awaits_answers(&self) -> bool {
        self.in_flight.len() >= if self.careful { 1 } else { self.in_flight_limit }
    }

    /// Whether the receiver asked to be left alone.
    pub fn paused(&self, now: Instant) -> bool {
        self.paused_until.is_some_and(|until| until > now)
    }

    /// When to poll again although nothing happened.
    pub fn wake_at(&self) -> Option<Instant> {
        let holds = self.streams.iter().filter_map(|line| line.hold.as_ref()?.until);
        self.paused_until.into_iter().chain(holds).min().filter(|_| self.connected)
    }

    /// Whether everything that was committed is delivered.
    pub fn is_empty(&self) -> bool {
        self.gaps.is_empty() && self.streams.iter().all(|line| line.tail.is_empty())
    }

    fn end_pauses(&mut self, now: Instant) {
        let over = |until: &mut Option<Instant>| {
            until.take_if(|until| *until <= now);
        };
        over(&mut self.paused_until);
        self.streams.iter_mut().filter_map(|line| line.hold.as_mut()).for_each(|hold| over(&mut hold.until));
    }

    fn next_envelope(&mut self) -> Option<(InFlight, Envelope)> {
        // Some stream's held record is due: it is sent when nothing else is under way, and nothing is until its answer.
        let due = self
            .streams
            .iter()
            .find_map(|line| line.hold.as_ref().filter(|hold| hold.until.is_none()).map(|_| line.stream));
        if due.is_some() && !self.in_flight.is_empty() {
            return None;
        }
        for LaneStream { stream, tail, hold, .. } in &mut self.streams {
            if due.is_some_and(|due| due != *stream) {
                continue;
            }
            if hold.as_ref().is_some_and(|hold| hold.until.is_some()) {
                continue;
            }
            if due.is_none()
                && *stream != Stream::Alert
                && let Some(place) = self.gaps.iter().position(|gap| gap.state == GapState::Waiting)
            {
                let gap = &mut self.gaps[place];
                gap.state = GapState::Sent;
                return Some((InFlight::Gap(place), self.builder.gap(&gap.gap)));
            }
            if let Some(stored) = tail.next() {
                return Some((InFlight::Record(*stream, stored.id), self.builder.record(stored)));
            }
            if tail.has_waiting() {
                return None;
            }
        }
        None
    }

    fn declined(&mut self, stream: Stream, id: RecordId, reason: Box<str>, now: Instant) {
        let (patience, taken) = (self.patience, self.taken);
        let Some(line) = self.streams.iter_mut().find(|line| line.stream == stream) else { return };
        let Some(topic) = line.tail.sent(id).map(|stored| stored.record.topic.clone()) else { return };
        let hopeless = self.given_up.iter().any(|(other, then)| **other == *topic && taken > *then);
        if patience.is_some() && hopeless {
            return self.drop_record(stream, id, reason);
        }
        match &mut line.hold {
            Some(hold) if hold.id == id => {
                hold.tries += 1;
                let over = patience.is_some_and(|patience| now.duration_since(hold.since) >= patience);
                if over && hold.tries >= LEAST_TRIES {
                    self.given_up.retain(|(other, _)| **other != *topic);
                    self.given_up.truncate(GIVEN_UP_TOPICS - 1);
                    self.given_up.push_front((topic, taken));
                    return self.drop_record(stream, id, reason);
                }
                hold.until = Some(now + line.backoff.failed());
            }
            // One before it is with the receiver, or waits already.
            Some(hold) if hold.id < id => {}
            hold => {
                tracing::warn!(
                    ?stream,
                    id = id.0,
                    topic = &*topic,
                    reason = &*reason,
                    "a record is declined: its stream waits"
                );
                line.backoff.succeeded();
                *hold = Some(Hold { id, since: now, tries: 1, until: Some(now + line.backoff.failed()) });
            }
        }
        line.tail.requeue(id);
    }

    /// The record will not be delivered.
    fn drop_record(&mut self, stream: Stream, id: RecordId, reason: Box<str>) {
        // Before the watermark: afterwards the store no longer has the record and could not account for it.
        self.requests.push(StoreRequest::Refused { stream, id, reason });
        self.done(stream, id);
    }

    /// The receiver has taken a record of this topic: it is no longer given up.
    fn reinstate_topic(&mut self, stream: Stream, id: RecordId) {
        if self.given_up.is_empty() {
            return;
        }
        let Some(line) = self.streams.iter().find(|line| line.stream == stream) else { return };
        if let Some(stored) = line.tail.sent(id) {
            self.given_up.retain(|(topic, _)| **topic != *stored.record.topic);
        }
    }

    fn done(&mut self, stream: Stream, id: RecordId) {
        let Some(line) = self.line(stream) else { return };
        line.hold.take_if(|hold| hold.id == id);
        if let Some(through) = line.tail.done(id) {
            self.watermarks[stream] = Some(through);
        }
    }

    fn requeue(&mut self, item: InFlight) {
        match item {
            InFlight::Record(stream, id) => {
                if let Some(tail) = self.tail(stream) {
                    tail.requeue(id);
                }
            }
            InFlight::Gap(place) => self.gaps[place].state = GapState::Waiting,
        }
    }
}

#[cfg(test)]
mod tests;
