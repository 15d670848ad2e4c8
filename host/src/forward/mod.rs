//! The loop that empties the outbox: alerts and data upstream, publications to the local broker.
//!
//! Plain state without I/O and without a clock. The daemon feeds it what the store and the connections say, and carries
//! out what [`Forwarder::poll`] returns. A record is out of the store only after its receiver has taken it, so a receiver
//! may see one again, under the same id, but misses none.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config;
use crate::store::{Gap, GapId, Recovered, StoreRequest, StoredRecord, Stream};
use crate::telemetry::Metrics;
use crate::time::Backoff;

mod envelope;
mod lane;
mod tail;
pub mod webhook;

pub use envelope::{Envelope, EnvelopeBuilder, HOPS};
pub use lane::Answer;
use lane::{FIRST_PAUSE, Lane, Step};

/// How long a publication that the local broker declines holds up those behind it.
const LOCAL_PATIENCE: Option<Duration> = Some(Duration::from_secs(60));

/// A receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    Upstream,
    Local,
}

/// What the caller carries out, in order.
#[derive(Debug)]
pub enum Action {
    /// Send it, at QoS 1, and tell what became of it with [`Forwarder::answered`] or [`Forwarder::returned`].
    Send {
        destination: Destination,
        token: u64,
        envelope: Envelope,
    },
    Store(StoreRequest),
}

/// How the forwarder is set up.
#[derive(Clone, Debug)]
pub struct ForwardConfig {
    pub node: String,
    /// Publications under way to the local broker at once.
    pub local_in_flight: usize,
    /// `None`: nothing is recorded for upstream; what an earlier configuration left stays in the store.
    pub upstream: Option<config::Upstream>,
    /// Random, so that boards that fail together do not come back together.
    pub seed: u64,
}

pub struct Forwarder {
    node: String,
    /// Of upstream.
    topic_prefix: Option<String>,
    calls_webhook: bool,
    metrics: Arc<Metrics>,
    local: Lane,
    upstream: Option<Lane>,
}

impl Forwarder {
    pub fn new(settings: ForwardConfig, recovered: &Recovered, metrics: Arc<Metrics>) -> Self {
        let builder = |prefix| EnvelopeBuilder::new(&recovered.store_id, &settings.node, prefix);
        // The local broker refuses or takes; a pause is for the rare quota. Seconds, for alarms wait here too.
        let backoff = Backoff::new(FIRST_PAUSE, Duration::from_secs(10), settings.seed);
        let local =
            Lane::new(&[Stream::Local], builder(None), recovered, settings.local_in_flight, backoff, LOCAL_PATIENCE);
        let calls_webhook = settings.upstream.as_ref().is_some_and(|upstream| !upstream.connection.url.is_mqtt());
        let upstream = settings.upstream.as_ref().map(|upstream| {
            let backoff_max = Duration::from_secs(upstream.backoff_max_secs.get().into());
            let backoff = Backoff::new(FIRST_PAUSE, backoff_max, settings.seed.rotate_left(32));
            let builder = builder(upstream.topic_prefix.as_deref());
            let streams = [Stream::Alert, Stream::Data];
            let patience = upstream.give_up_secs.map(|secs| Duration::from_secs(secs.get()));
            // One call at a time: a record must not overtake one whose call failed.
            let in_flight = if calls_webhook { 1 } else { upstream.in_flight.get().into() };
            let mut lane = Lane::new(&streams, builder, recovered, in_flight, backoff, patience);
            if calls_webhook {
                // Has no connection of its own: it counts as connected while calls succeed.
                lane.connected();
            }
            lane
        });
        metrics.broker.set(false);
        if upstream.is_some() {
            metrics.upstream.set(false);
        }
        let topic_prefix = settings.upstream.and_then(|upstream| upstream.topic_prefix);
        Self { node: settings.node, topic_prefix, calls_webhook, metrics, local, upstream }
    }

    /// `StoreEvent::Committed`.
    pub fn committed(&mut self, stored: Vec<StoredRecord>) {
        for stored in stored {
            if let Some(tail) = self.lane_of(stored.record.stream).and_then(|lane| lane.tail(stored.record.stream)) {
                tail.committed(stored);
            }
        }
    }

    /// `StoreEvent::Outbox`.
    pub fn loaded(&mut self, stream: Stream, stored: Vec<StoredRecord>, end: bool) {
        if let Some(tail) = self.lane_of(stream).and_then(|lane| lane.tail(stream)) {
            tail.loaded(stored, end);
        }
    }

    /// `StoreEvent::Gaps`. Without an upstream they stay in the store until there is one.
    pub fn gaps(&mut self, through: GapId, gaps: Vec<Gap>) {
        if let Some(upstream) = &mut self.upstream {
            upstream.gaps(through, gaps);
        }
    }

    /// `StoreEvent::Reopened`.
    pub fn reopened(&mut self, recovered: &Recovered) {
        let builder = |prefix| EnvelopeBuilder::new(&recovered.store_id, &self.node, prefix);
        self.local.reopened(recovered, builder(None));
        if let Some(lane) = &mut self.upstream {
            lane.reopened(recovered, builder(self.topic_prefix.as_deref()));
        }
    }

    pub fn connected(&mut self, destination: Destination) {
        self.link(destination, true);
        if let Some(lane) = self.lane(destination) {
            lane.connected();
        }
    }

    /// The connection is gone and will not deliver anything more: what has no answer is sent again.
    pub fn disconnected(&mut self, destination: Destination, now: Instant) {
        self.link(destination, false);
        if let Some(lane) = self.lane(destination) {
            lane.disconnected(now);
        }
    }

    /// What became of an envelope. An answer to one of an earlier connection is ignored.
    pub fn answered(&mut self, destination: Destination, token: u64, answer: Answer, now: Instant) {
        match &answer {
            Answer::Accepted => {}
            // The store logs and counts the loss when it makes the gap.
            Answer::Refused(reason) => tracing::debug!(?destination, reason, "a record was refused"),
            // The lane says what waits behind it.
            Answer::Declined(_) => self.metrics.forward_errors.inc(),
            Answer::Retry { reason, .. } => {
                self.metrics.forward_errors.inc();
                // All that was under way fails together; one line is enough.
                if self.lane(destination).is_some_and(|lane| !lane.paused(now)) {
                    tracing::warn!(?destination, reason, "a record was not taken and is sent again");
                }
            }
        }
        if destination == Destination::Upstream && self.calls_webhook {
            self.link(destination, !matches!(answer, Answer::Retry { .. }));
        }
        if let Some(stream) = self.lane(destination).and_then(|lane| lane.answered(token, answer, now)) {
            self.metrics.forwarded[stream].inc();
        }
    }

    /// The connection had no room for the envelope. It is sent again after the next answer on that destination, or
    /// [`Self::writable`].
    pub fn returned(&mut self, destination: Destination, token: u64) {
        if let Some(lane) = self.lane(destination) {
            lane.returned(token);
        }
    }

    pub fn writable(&mut self, destination: Destination) {
        if let Some(lane) = self.lane(destination) {
            lane.writable();
        }
    }

    /// The next thing to do, until `None`. Feed all events at hand first: that makes fewer requests to the store.
    pub fn poll(&mut self, now: Instant) -> Option<Action> {
        let step = |destination, step| match step {
            Step::Send { token, envelope } => Action::Send { destination, token, envelope },
            Step::Store(request) => Action::Store(request),
        };
        if let Some(local) = self.local.poll(now) {
            return Some(step(Destination::Local, local));
        }
        self.upstream.as_mut()?.poll(now).map(|upstream| step(Destination::Upstream, upstream))
    }

    /// More may be waiting to be sent than may be under way: it leaves as fast as answers are read.
    pub fn awaits_answers(&self) -> bool {
        self.local.awaits_answers() || self.upstream.as_ref().is_some_and(Lane::awaits_answers)
    }

    /// When to poll again although nothing happened.
    pub fn wake_at(&self) -> Option<Instant> {
        [self.local.wake_at(), self.upstream.as_ref().and_then(Lane::wake_at)].into_iter().flatten().min()
    }

    /// Whether everything that was committed has been taken by its receiver.
    pub fn is_empty(&self) -> bool {
        self.local.is_empty() && self.upstream.as_ref().is_none_or(Lane::is_empty)
    }

    fn link(&self, destination: Destination, connected: bool) {
        match destination {
            Destination::Local => self.metrics.broker.set(connected),
            Destination::Upstream => self.metrics.upstream.set(connected),
        }
    }

    fn lane(&mut self, destination: Destination) -> Option<&mut Lane> {
        match destination {
            Destination::Local => Some(&mut self.local),
            Destination::Upstream => self.upstream.as_mut(),
        }
    }

    fn lane_of(&mut self, stream: Stream) -> Option<&mut Lane> {
        match stream {
            Stream::Local => Some(&mut self.local),
            Stream::Alert | Stream::Data => self.upstream.as_mut(),
        }
    }
}

#[cfg(test)]
mod tests;
