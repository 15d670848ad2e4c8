//! Delivery of the outbox: alerts and data upstream, publications to the local broker.
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
use crate::stream::Stream;
use crate::time::Backoff;

pub mod envelope;
pub mod lane;
mod tail;

pub(crate) use envelope::EnvelopeBuilder;
pub use envelope::{Envelope, FAN_OUT, HOPS};
pub use lane::Answer;
use lane::{FIRST_PAUSE, Lane, LaneLimits};

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
    Upstream,
    Local,
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
    /// `None`: no upstream. Records of an earlier configuration stay in the store.
    pub upstream: Option<config::Upstream>,
    /// Bytes of one stream's records in memory.
    pub window_bytes: usize,
    /// Seed of the backoff jitter, so that boards that fail together do not retry together.
    pub seed: u64,
}

pub(crate) struct Forwarder {
    node: String,
    /// Topic prefix of upstream.
    topic_prefix: String,
    calls_webhook: bool,
    metrics: Arc<Metrics>,
    local: Lane,
    upstream: Option<Lane>,
    /// Reasons of retries that were logged since something was accepted.
    retry_reasons: BTreeSet<(Destination, Box<str>)>,
}

impl Forwarder {
    pub(crate) fn new(settings: ForwardConfig, recovered: &Recovered, metrics: Arc<Metrics>) -> Self {
        let builder = |prefix: &str| EnvelopeBuilder::new(&recovered.store_id, &settings.node, prefix);
        // A pause of the local broker is rare (a quota), and short because local alarms wait here.
        let backoff = Backoff::new(FIRST_PAUSE, Duration::from_secs(10), settings.seed);
        let local = Lane::new(
            Destination::Local,
            &[Stream::Local],
            builder(""),
            recovered,
            LaneLimits {
                in_flight: settings.local_in_flight,
                window_bytes: settings.window_bytes,
                answer_timeout: Some(LOCAL_TIMEOUT),
                backoff,
                patience: LOCAL_PATIENCE,
                given_up_key: Some(META_GIVEN_UP),
            },
        );
        let topic_prefix =
            settings.upstream.as_ref().map(|upstream| upstream.prefix(&settings.node)).unwrap_or_default();
        let calls_webhook = settings.upstream.as_ref().is_some_and(|upstream| !upstream.connection.url.is_mqtt());
        let upstream = settings.upstream.as_ref().map(|upstream| {
            let backoff_max = Duration::from_secs(upstream.backoff_max_secs.get().into());
            let backoff = Backoff::new(FIRST_PAUSE, backoff_max, settings.seed.rotate_left(32));
            let builder = builder(&topic_prefix);
            let mut streams = [Stream::Alert, Stream::Data];
            if is_made(Mistake::DataBeforeAlerts) {
                streams.reverse();
            }
            let limits = LaneLimits {
                // One call at a time: a record must not overtake an earlier one whose call failed.
                window_bytes: settings.window_bytes,
                in_flight: if calls_webhook { 1 } else { upstream.in_flight.get().into() },
                // A call has a timeout of its own.
                answer_timeout: (!calls_webhook).then(|| Duration::from_secs(upstream.timeout_secs.get().into())),
                backoff,
                patience: upstream.give_up_secs.map(|secs| Duration::from_secs(secs.get())),
                given_up_key: None,
            };
            let mut lane = Lane::new(Destination::Upstream, &streams, builder, recovered, limits);
            if calls_webhook {
                // A webhook has no connection: it counts as connected while calls succeed.
                lane.connected();
            }
            lane
        });
        metrics.broker.set(false);
        if upstream.is_some() {
            metrics.upstream.set(false);
        }
        Self {
            node: settings.node,
            topic_prefix,
            calls_webhook,
            metrics,
            local,
            upstream,
            retry_reasons: BTreeSet::new(),
        }
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
    pub(crate) fn dropped(&mut self, stream: Stream, after: RecordId, through: RecordId) {
        if is_made(Mistake::CountDelivered) {
            return;
        }
        let delivered = self.lane_of(stream).map(|lane| lane.dropped(stream, after, through));
        if let (Some(delivered), Some(upstream)) = (delivered, &mut self.upstream) {
            delivered.into_iter().for_each(|late| upstream.accepted_late(late));
        }
    }

    /// Handles `StoreEvent::Gaps`. Without an upstream the gaps stay in the store.
    pub(crate) fn gaps(&mut self, through: GapId, gaps: Vec<Gap>) {
        if let Some(upstream) = &mut self.upstream {
            upstream.gaps(through, gaps);
        }
    }

    /// Handles `StoreEvent::Reopened`.
    pub(crate) fn reopened(&mut self, recovered: &Recovered) {
        let builder = |prefix: &str| EnvelopeBuilder::new(&recovered.store_id, &self.node, prefix);
        self.local.reopened(recovered, builder(""));
        if let Some(lane) = &mut self.upstream {
            lane.reopened(recovered, builder(&self.topic_prefix));
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
            Answer::Refused(reason) => tracing::debug!(?destination, reason, "the receiver refused a record"),
            // The lane logs it.
            Answer::Declined(_) => self.metrics.forward_errors.inc(),
            Answer::Retry { reason, .. } => {
                self.metrics.forward_errors.inc();
                if self.retry_reasons.insert((destination, reason.as_str().into())) {
                    tracing::warn!(?destination, reason, "failed to send a record; it is sent again");
                }
                if self.retry_reasons.len() > MAX_RETRY_REASONS {
                    self.retry_reasons.clear();
                }
            }
        }
        if destination == Destination::Upstream && self.calls_webhook {
            self.set_connected(destination, !matches!(answer, Answer::Retry { .. }));
        }
        if let Some((stream, late)) = self.lane(destination).and_then(|lane| lane.answered(token, answer, now)) {
            self.metrics.forwarded[stream].inc();
            if let (Some(late), Some(upstream)) = (late, &mut self.upstream) {
                upstream.accepted_late(late);
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
        let action = self.local.poll(now).or_else(|| {
            let upstream = self.upstream.as_mut()?;
            upstream.set_local_dropped(self.local.oldest_dropped(Stream::Local));
            upstream.poll(now)
        });
        action.filter(|it| !(is_made(Mistake::NeverReconnect) && matches!(it, Action::Reconnect { .. })))
    }

    /// Whether a lane sends nothing more before an answer: records leave as fast as answers are read.
    pub(crate) fn awaits_answers(&self) -> bool {
        self.local.awaits_answers() || self.upstream.as_ref().is_some_and(Lane::awaits_answers)
    }

    /// Memory of the records that wait here to be sent, or for their answers.
    pub(crate) fn bytes(&self) -> usize {
        self.local.bytes() + self.upstream.as_ref().map_or(0, Lane::bytes)
    }

    /// Time of the next poll if nothing happens before.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        [self.local.wake_at(), self.upstream.as_ref().and_then(Lane::wake_at)].into_iter().flatten().min()
    }

    fn set_connected(&self, destination: Destination, connected: bool) {
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
#[allow(clippy::disallowed_methods, reason = "a test may read clocks and files")]
mod tests;
