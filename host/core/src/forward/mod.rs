//! Delivery of the outbox: alerts and data to sinks, publications to the local broker. Each receiver has a lane of its own:
//! one that is away holds up no other.
//!
//! State without I/O and without a clock. The daemon feeds it events of the store and the connections, and carries out
//! the actions of [`Forwarder::poll`]. A record leaves the store only after its receiver has accepted it. A receiver may
//! therefore see a record twice, under the same id, but misses none.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config;
use crate::message::PublishToken;
use crate::metrics::Metrics;
use crate::mistakes::{Mistake, is_made};
use crate::store::{Gap, GapId, RecordId, Recovered, StoreRequest, StoredRecord};
use crate::stream::{SinkId, Stream};
use crate::time::Backoff;

pub mod envelope;
pub mod lane;
mod tail;
mod watched;

pub(crate) use envelope::EnvelopeBuilder;
pub use envelope::{Envelope, FAN_OUT, HOPS};
pub use lane::Answer;
pub(crate) use lane::SentRecord;
use lane::{FIRST_PAUSE, Lane, LaneLimits};
use watched::Watched;

/// How long the local broker may take to answer a publication.
const LOCAL_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a publication that the local broker declines holds up later ones.
const LOCAL_PATIENCE: Option<Duration> = Some(Duration::from_secs(60));

/// Key of the topics that the local broker does not accept, such as that of the alert echo.
const META_GIVEN_UP: &str = "given-up-topics";

/// Reasons of retries that are remembered, so that each is logged once.
const MAX_RETRY_REASONS: usize = 16;

/// Receiver of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Destination {
    Local,
    Sink(SinkId),
}

impl Destination {
    pub const UPSTREAM: Self = Self::Sink(SinkId::UPSTREAM);
}

/// What the caller carries out, in order.
#[derive(Debug)]
pub(crate) enum Action {
    /// Sends at QoS 1. The outcome goes to [`Forwarder::answered`] or [`Forwarder::returned`].
    Send {
        destination: Destination,
        token: PublishToken,
        envelope: Envelope,
    },
    Store(StoreRequest),
    /// Breaks the connection, which then is made anew: [`Forwarder::disconnected`] follows.
    Reconnect {
        destination: Destination,
    },
}

#[derive(Clone, Debug)]
pub struct ForwardConfig {
    pub node: String,
    /// Unanswered publications to the local broker.
    pub local_in_flight: usize,
    /// Records of other sinks stay in the store.
    pub sinks: Vec<SinkLane>,
    /// The sink that gaps of the local broker are reported to.
    pub home: Option<SinkId>,
    /// Bytes of one stream's records in memory.
    pub window_bytes: usize,
    /// Seed of the backoff jitter, so that boards that fail together do not retry together.
    pub seed: u64,
}

/// How one sink is sent to.
#[derive(Clone, Debug)]
pub struct SinkLane {
    pub id: SinkId,
    pub name: Arc<str>,
    /// Of every topic.
    pub topic_prefix: String,
    /// Records without an answer. Where a later record must not overtake one that failed, it is 1.
    pub in_flight: usize,
    /// How long an answer may take. `None`: the sender itself ends what takes too long.
    pub answer_timeout: Option<Duration>,
    pub backoff_max: Duration,
    /// How long a declined record is retried. `None`: until it is accepted or the store drops it.
    pub patience: Option<Duration>,
    /// Without one, it counts as connected while records are accepted.
    pub has_connection: bool,
}

impl SinkLane {
    /// `id`: as the store gave it.
    pub fn new(sink: &config::Sink, id: SinkId, node: &str) -> Self {
        let secs = |secs: u64| Duration::from_secs(secs);
        let lane = Self {
            id,
            name: sink.name.as_str().into(),
            topic_prefix: sink.prefix(node),
            in_flight: 1,
            answer_timeout: None,
            backoff_max: secs(sink.backoff_max_secs().get().into()),
            patience: sink.give_up_secs().map(|limit| secs(limit.get())),
            has_connection: false,
        };
        match &sink.target {
            config::Target::Mqtt(receiver) => Self {
                in_flight: receiver.in_flight.get().into(),
                answer_timeout: Some(secs(receiver.timeout_secs.get().into())),
                has_connection: true,
                ..lane
            },
            // One call at a time: a record must not overtake an earlier one whose call failed. It has a timeout of its own.
            config::Target::Webhook(_) => lane,
            // What is in flight is one batch.
            config::Target::Influx(influx) => Self { in_flight: influx.batch_records.get().into(), ..lane },
            config::Target::File(_) => Self { in_flight: config::FileSink::IN_FLIGHT, ..lane },
        }
    }
}

pub(crate) struct Forwarder {
    node: String,
    metrics: Arc<Metrics>,
    local: Watched,
    sinks: Vec<Sink>,
    home: Option<SinkId>,
    /// Reasons of retries that were logged since something was accepted.
    retry_reasons: BTreeSet<(Destination, Box<str>)>,
}

struct Sink {
    id: SinkId,
    name: Arc<str>,
    topic_prefix: String,
    has_connection: bool,
    lane: Watched,
}

impl Forwarder {
    pub(crate) fn new(settings: ForwardConfig, recovered: &Recovered, metrics: Arc<Metrics>) -> Self {
        let ForwardConfig { node, local_in_flight, sinks, home, window_bytes, seed } = settings;
        // A pause of the local broker is rare (a quota), and short because local alarms wait here.
        let backoff = Backoff::new(FIRST_PAUSE, Duration::from_secs(10), seed);
        let local = Lane::new(
            Destination::Local,
            &[Stream::LOCAL],
            EnvelopeBuilder::new(recovered, &node, ""),
            recovered,
            LaneLimits {
                in_flight: local_in_flight,
                window_bytes,
                answer_timeout: Some(LOCAL_TIMEOUT),
                backoff,
                patience: LOCAL_PATIENCE,
                given_up_key: Some(META_GIVEN_UP),
            },
        );
        metrics.broker.set(false);
        metrics.name_sinks(sinks.iter().map(|sink| (sink.id, Arc::clone(&sink.name))));
        let sink = |sink: SinkLane| {
            metrics.sink(sink.id).set(false);
            let mut streams = [Stream::alerts(sink.id), Stream::data(sink.id)];
            if is_made(Mistake::DataBeforeAlerts) {
                streams.reverse();
            }
            // Lanes that fail together do not retry together.
            let seed = seed.rotate_left(32) ^ sink.id.index() as u64;
            let limits = LaneLimits {
                window_bytes,
                in_flight: sink.in_flight,
                answer_timeout: sink.answer_timeout,
                backoff: Backoff::new(FIRST_PAUSE, sink.backoff_max, seed),
                patience: sink.patience,
                given_up_key: None,
            };
            let builder = EnvelopeBuilder::new(recovered, &node, &sink.topic_prefix);
            let mut lane = Lane::new(Destination::Sink(sink.id), &streams, builder, recovered, limits);
            if !sink.has_connection {
                lane.connected();
            }
            let SinkLane { id, name, topic_prefix, has_connection, .. } = sink;
            Sink { id, name, topic_prefix, has_connection, lane: Watched::new(lane) }
        };
        let sinks = sinks.into_iter().map(sink).collect();
        Self { node, metrics, local: Watched::new(local), sinks, home, retry_reasons: BTreeSet::new() }
    }

    /// Handles `StoreEvent::Committed`.
    pub(crate) fn committed(&mut self, stored: Vec<StoredRecord>) {
        for stored in stored {
            let stream = stored.record.stream;
            if let Some(lane) = self.lane_of(stream) {
                lane.tail(stream).committed(stored);
            }
        }
    }

    /// Handles `StoreEvent::Outbox`.
    pub(crate) fn loaded(&mut self, stream: Stream, stored: Vec<StoredRecord>, end: bool) {
        if let Some(lane) = self.lane_of(stream) {
            lane.tail(stream).loaded(stored, end);
        }
    }

    /// Handles `StoreEvent::Dropped`.
    pub(crate) fn dropped(&mut self, stream: Stream, gap: GapId, ranges: &[(RecordId, RecordId)]) {
        if is_made(Mistake::CountDelivered) {
            return;
        }
        let delivered = self.lane_of(stream).map(|lane| lane.dropped(stream, gap, ranges));
        if let (Some(late), Some(reporter)) = (delivered, self.reporter_of(stream)) {
            reporter.accepted_late(late);
        }
    }

    /// Handles `StoreEvent::Gaps`.
    pub(crate) fn gaps(&mut self, sink: SinkId, gaps: Vec<(GapId, Gap)>) {
        if let Some(lane) = self.lane(Destination::Sink(sink)) {
            lane.gaps(gaps);
        }
    }

    /// Handles `StoreEvent::Reopened`.
    pub(crate) fn reopened(&mut self, recovered: &Recovered) {
        let builder = |prefix: &str| EnvelopeBuilder::new(recovered, &self.node, prefix);
        self.local.changed().reopened(recovered, builder(""));
        for Sink { topic_prefix, lane, .. } in &mut self.sinks {
            lane.changed().reopened(recovered, builder(topic_prefix));
        }
    }

    pub(crate) fn connected(&mut self, destination: Destination) {
        self.set_connected(destination, true);
        if let Some(lane) = self.lane(destination) {
            lane.connected();
        }
    }

    /// Handles the loss of the connection. Envelopes without an answer are sent again.
    pub(crate) fn disconnected(&mut self, destination: Destination, now: Instant) {
        self.set_connected(destination, false);
        if let Some(lane) = self.lane(destination) {
            lane.disconnected(now);
        }
    }

    /// Handles the answer to an envelope. An answer from an earlier connection is ignored.
    pub(crate) fn answered(&mut self, destination: Destination, token: PublishToken, answer: Answer, now: Instant) {
        let is_retry = matches!(answer, Answer::Retry { .. });
        let answer = if is_retry && is_made(Mistake::AcceptRetry) { Answer::Accepted } else { answer };
        match &answer {
            Answer::Accepted if self.retry_reasons.is_empty() => {}
            Answer::Accepted => self.retry_reasons.retain(|(of, _)| *of != destination),
            // The store counts and logs the loss when it records the gap.
            Answer::Refused(reason) => {
                tracing::debug!(sink = self.name(destination), reason, "the receiver refused a record");
            }
            // The lane logs it.
            Answer::Declined(_) => self.metrics.forward_errors(destination).inc(),
            Answer::Retry { reason, .. } => {
                self.metrics.forward_errors(destination).inc();
                if self.retry_reasons.insert((destination, reason.as_str().into())) {
                    tracing::warn!(sink = self.name(destination), reason, "failed to send a record; it is sent again");
                }
                if self.retry_reasons.len() > MAX_RETRY_REASONS {
                    self.retry_reasons.clear();
                }
            }
        }
        if self.sinks.iter().any(|sink| Destination::Sink(sink.id) == destination && !sink.has_connection) {
            self.set_connected(destination, !matches!(answer, Answer::Retry { .. }));
        }
        if let Some((stream, late)) = self.lane(destination).and_then(|lane| lane.answered(token, answer, now)) {
            self.metrics.forwarded[stream].inc();
            if let (Some(late), Some(reporter)) = (late, self.reporter_of(stream)) {
                reporter.accepted_late(late);
            }
        }
    }

    /// Requeues an envelope for which the connection had no room, until the next answer of that destination.
    pub(crate) fn returned(&mut self, destination: Destination, token: PublishToken) {
        if let Some(lane) = self.lane(destination) {
            lane.returned(token);
        }
    }

    /// Next action, until `None`. Callers feed all events at hand first, which saves requests to the store.
    pub(crate) fn poll(&mut self, now: Instant) -> Option<Action> {
        let Self { local, sinks, home, .. } = self;
        let action = local.poll(now).or_else(|| {
            sinks.iter_mut().find_map(|sink| {
                if Some(sink.id) == *home {
                    let oldest = local.lane().oldest_dropped(Stream::LOCAL);
                    if sink.lane.lane().local_dropped() != oldest {
                        sink.lane.changed().set_local_dropped(oldest);
                    }
                }
                sink.lane.poll(now)
            })
        });
        action.filter(|it| !(is_made(Mistake::NeverReconnect) && matches!(it, Action::Reconnect { .. })))
    }

    /// Whether a lane sends nothing more before an answer: records leave as fast as answers are read.
    pub(crate) fn awaits_answers(&self) -> bool {
        self.lanes().any(|it| it.lane().awaits_answers())
    }

    /// Memory of the records that wait here to be sent, or for their answers.
    pub(crate) fn bytes(&self) -> usize {
        self.lanes().map(|it| it.lane().bytes()).sum()
    }

    /// Time of the next poll if nothing happens before.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        self.lanes().filter_map(Watched::wake_at).min()
    }

    /// Records of recorded traces that were accepted or given up since this was last called.
    pub(crate) fn take_sent(&mut self) -> Vec<SentRecord> {
        let sinks = self.sinks.iter_mut().map(|sink| &mut sink.lane);
        std::iter::once(&mut self.local).chain(sinks).flat_map(Watched::take_sent).collect()
    }

    fn lanes(&self) -> impl Iterator<Item = &Watched> {
        std::iter::once(&self.local).chain(self.sinks.iter().map(|sink| &sink.lane))
    }

    pub(crate) fn name(&self, destination: Destination) -> &str {
        let sink = self.sinks.iter().find(|sink| Destination::Sink(sink.id) == destination);
        sink.map_or("local", |sink| &*sink.name)
    }

    fn set_connected(&self, destination: Destination, connected: bool) {
        match destination {
            Destination::Local => self.metrics.broker.set(connected),
            Destination::Sink(sink) => self.metrics.sink(sink).set(connected),
        }
    }

    fn lane(&mut self, destination: Destination) -> Option<&mut Lane> {
        match destination {
            Destination::Local => Some(self.local.changed()),
            Destination::Sink(id) => self.sinks.iter_mut().find(|sink| sink.id == id).map(|sink| sink.lane.changed()),
        }
    }

    /// The lane that sends a stream, to be told something.
    fn lane_of(&mut self, stream: Stream) -> Option<&mut Lane> {
        self.lane(stream.sink().map_or(Destination::Local, Destination::Sink))
    }

    /// The lane that reports gaps of a stream.
    fn reporter_of(&mut self, stream: Stream) -> Option<&mut Lane> {
        let sink = stream.sink().or(self.home)?;
        self.lane(Destination::Sink(sink))
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test may read clocks and files")]
mod tests;
