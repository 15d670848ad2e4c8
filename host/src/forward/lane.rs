//! One receiver and the streams that go to it, as a state machine without I/O: what happened goes in, what to do comes out.
//!
//! Streams are in order of precedence. While one has anything to send, in memory or on disk, none behind it sends. Gaps
//! are reported after alerts and before data.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::envelope::{Envelope, Origin};
use super::tail::{Tail, Window};
use crate::store::{Gap, Recovered, Request, Stream};
use crate::time::Backoff;

/// Half a megabyte is about two seconds of work for the fastest receiver, and six windows fit a small board.
const WINDOW: Window = Window { records: 2048, bytes: 512 << 10 };

/// The first pause after a receiver asked to be left alone for a while.
pub const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// What a receiver said about one envelope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Taken,
    /// It will never take this one. The reason is short and without figures of its own: gaps are folded by it.
    Refused(Box<str>),
    /// Not now; the pause is at least `after`.
    Again {
        reason: String,
        after: Option<Duration>,
    },
}

/// What the caller has to do, in this order.
#[derive(Debug)]
pub enum Step {
    Send { token: u64, envelope: Envelope },
    Store(Request),
}

#[derive(Debug)]
pub struct Lane {
    origin: Origin,
    tails: Vec<(Stream, Tail)>,
    gaps: Vec<PendingGap>,
    /// All gaps in `gaps` are reported when this number may be told to the store.
    gaps_through: u64,
    /// What was sent and not answered. Tokens are never used twice, so an answer from an old connection finds nothing.
    in_flight: HashMap<u64, Item>,
    in_flight_limit: usize,
    next_token: u64,
    connected: bool,
    /// The channel to the receiver had no room.
    full: bool,
    paused_until: Option<Instant>,
    backoff: Backoff,
    /// Refusals, then at most one watermark a stream.
    requests: Vec<Request>,
    watermarks: [Option<u64>; 3],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Item {
    Record(Stream, u64),
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
        origin: Origin,
        recovered: &Recovered,
        in_flight_limit: usize,
        backoff: Backoff,
    ) -> Self {
        let tail = |stream: &Stream| {
            let n = *stream as usize;
            (*stream, Tail::new(WINDOW, recovered.delivered[n], recovered.last[n]))
        };
        let tails = streams.iter().map(tail).collect();
        Self {
            origin,
            tails,
            gaps: Vec::new(),
            gaps_through: 0,
            in_flight: HashMap::new(),
            in_flight_limit,
            next_token: 1,
            connected: false,
            full: false,
            paused_until: None,
            backoff,
            requests: Vec::new(),
            watermarks: [None; 3],
        }
    }

    pub fn tail(&mut self, stream: Stream) -> Option<&mut Tail> {
        self.tails.iter_mut().find(|(of, _)| *of == stream).map(|(_, tail)| tail)
    }

    /// The store hands out the next gaps only when it was told that the ones before are reported.
    pub fn gaps(&mut self, through: u64, gaps: Vec<Gap>) {
        self.gaps_through = self.gaps_through.max(through);
        self.gaps.extend(gaps.into_iter().map(|gap| PendingGap { gap, state: GapState::Waiting }));
    }

    pub fn connected(&mut self) {
        self.connected = true;
        self.full = false;
        self.paused_until = None;
    }

    /// Everything without an answer is sent again on the next connection.
    pub fn disconnected(&mut self) {
        self.connected = false;
        self.in_flight.clear();
        for (_, tail) in &mut self.tails {
            tail.rewind();
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
        match (item, answer) {
            (Item::Record(stream, id), Answer::Taken) => {
                self.backoff.succeeded();
                self.done(stream, id);
                return Some(stream);
            }
            (Item::Record(stream, id), Answer::Refused(reason)) => {
                self.backoff.succeeded();
                // Before the watermark: afterwards the store no longer has the record and could not account for it.
                self.requests.push(Request::Refused { stream, id, reason });
                self.done(stream, id);
            }
            (Item::Gap(place), Answer::Taken | Answer::Refused(_)) => {
                // A receiver that refuses to hear of gaps must not stop the data behind them.
                self.backoff.succeeded();
                self.gaps[place].state = GapState::Done;
                if self.gaps.iter().all(|gap| gap.state == GapState::Done) {
                    self.gaps.clear();
                    self.requests.push(Request::GapsReported { through: self.gaps_through });
                }
            }
            (item, Answer::Again { after, .. }) => {
                self.put_back(item);
                // Envelopes that were under way together fail together: one pause for all of them.
                if !self.paused(now) {
                    let pause = self.backoff.failed().max(after.unwrap_or_default()).min(self.backoff.max());
                    self.paused_until = Some(now + pause);
                }
            }
        }
        None
    }

    /// The channel to the receiver had no room for this envelope. Sending goes on after the next answer, or
    /// [`Self::writable`].
    pub fn returned(&mut self, token: u64) {
        if let Some(item) = self.in_flight.remove(&token) {
            self.put_back(item);
            self.full = true;
        }
    }

    pub fn writable(&mut self) {
        self.full = false;
    }

    /// The store is back, with the file it had or a new one. What it said and was told in between is void.
    pub fn reopened(&mut self, recovered: &Recovered, origin: Origin) {
        self.origin = origin;
        self.requests.clear();
        self.watermarks = [None; 3];
        self.in_flight.clear();
        // It hands out unreported gaps anew, perhaps grown.
        self.gaps.clear();
        for (stream, tail) in &mut self.tails {
            let n = *stream as usize;
            tail.reopened(recovered.delivered[n], recovered.last[n]);
        }
    }

    /// The next thing to do, until `None`. Take in all events at hand before: watermarks are told once for all of them.
    pub fn poll(&mut self, now: Instant) -> Option<Step> {
        if !self.requests.is_empty() {
            return Some(Step::Store(self.requests.remove(0)));
        }
        for stream in Stream::ALL {
            if let Some(through) = self.watermarks[stream as usize].take() {
                return Some(Step::Store(Request::Delivered { stream, through }));
            }
        }
        for (stream, tail) in &mut self.tails {
            if let Some(load) = tail.load() {
                let (stream, after, max_bytes) = (*stream, load.after, load.max_bytes);
                return Some(Step::Store(Request::ReadOutbox { stream, after, max_bytes }));
            }
        }
        if !self.connected || self.full || self.paused(now) || self.in_flight.len() >= self.in_flight_limit {
            return None;
        }
        self.paused_until = None;
        let (item, envelope) = self.next_envelope()?;
        let token = self.next_token;
        self.next_token += 1;
        self.in_flight.insert(token, item);
        Some(Step::Send { token, envelope })
    }

    /// Whether the receiver asked to be left alone.
    pub fn paused(&self, now: Instant) -> bool {
        self.paused_until.is_some_and(|until| until > now)
    }

    /// When to poll again although nothing happened.
    pub fn wake_at(&self) -> Option<Instant> {
        self.paused_until.filter(|_| self.connected)
    }

    /// Whether everything that was committed is delivered.
    pub fn is_empty(&self) -> bool {
        self.gaps.is_empty() && self.tails.iter().all(|(_, tail)| tail.is_empty())
    }

    fn next_envelope(&mut self) -> Option<(Item, Envelope)> {
        for (stream, tail) in &mut self.tails {
            if *stream != Stream::Alert
                && let Some(place) = self.gaps.iter().position(|gap| gap.state == GapState::Waiting)
            {
                let gap = &mut self.gaps[place];
                gap.state = GapState::Sent;
                return Some((Item::Gap(place), self.origin.gap(&gap.gap)));
            }
            if let Some(stored) = tail.next() {
                return Some((Item::Record(*stream, stored.id), self.origin.record(stored)));
            }
            if tail.waits() {
                return None;
            }
        }
        None
    }

    fn done(&mut self, stream: Stream, id: u64) {
        if let Some(through) = self.tail(stream).and_then(|tail| tail.done(id)) {
            self.watermarks[stream as usize] = Some(through);
        }
    }

    fn put_back(&mut self, item: Item) {
        match item {
            Item::Record(stream, id) => {
                if let Some(tail) = self.tail(stream) {
                    tail.again(id);
                }
            }
            Item::Gap(place) => self.gaps[place].state = GapState::Waiting,
        }
    }
}

#[cfg(test)]
#[path = "lane_tests.rs"]
mod tests;
