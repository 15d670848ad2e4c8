//! Traces of messages under way: which the board records, and their spans.
//!
//! ```text
//! message ─▶ recorded? ─▶ open: received, routed ─▶ invoked … ─▶ committed ─▶ acknowledged ─▶ Effect::Traced
//!               │ no                     ▲                          its records: sent ─▶ Effect::Traced
//!               └─▶ becomes a dead letter ┘
//! ```
//!
//! Recorded are messages whose sender samples their trace, a part of the others (`trace.sample`), and all that become dead
//! letters. The part is chosen by the trace id, so that all boards choose the same traces. What senders control, sampled
//! traces and dead letters, has a bound of its own.
//!
//! A message that is not recorded costs a comparison, and no message waits for its trace.

mod open;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::Board;
use super::ids::{FunctionNo, UnitId};
use super::input::{AckToken, Effect};
use super::ledger::Settled;
use super::map::Seeded;
use super::rate::Rate;
use super::receipt::Receipt;
use super::rollout::Edition;
use crate::forward::SentRecord;
use crate::message::{Failure, Message, Outcome, Usage, Verdict};
use crate::metrics::Metrics;
use crate::mistakes::{Mistake, is_made};
use crate::time::Now;
use crate::trace::span::attribute as name;
use crate::trace::{SpanId, SpanKind, Step, TraceContext, TraceId};
use open::{Open, Owed, child};

/// Messages whose spans are gathered at a time. Each takes about 2 KiB.
const MAX_OPEN: usize = 512;
/// One trace in this time is recorded for a sender's sake or for an error, and as many at once as within [`BURST`].
const EVERY: Duration = Duration::from_millis(10);
const BURST: Duration = Duration::from_secs(1);
/// Bits of a trace id that decide whether it is chosen, as OpenTelemetry chooses by them.
const CHOSEN_BITS: u32 = 56;

const CONNECTION_LOST: &str = "connection-lost";
const SESSION_LOST: &str = "session-lost";

pub(crate) struct Traces {
    /// The lower bits of a chosen trace id are below this.
    below: u64,
    seed: Seeded,
    /// Numbers made so far.
    made: u64,
    /// By the arrival of their units.
    open: BTreeMap<u64, Open>,
    /// Committed messages, by packet id.
    unacknowledged: BTreeMap<u16, Open>,
    /// Of what is recorded for senders and errors.
    rate: Rate,
    metrics: Arc<Metrics>,
}

/// A run, for its span.
#[derive(Clone, Copy, Debug)]
pub(super) struct TracedRun {
    /// `None`: its message is not recorded so far.
    span: Option<SpanId>,
    pub(super) usage: Usage,
    attempt: u32,
    is_retry: bool,
}

impl Traces {
    /// `sample`: part of the messages without a trace of which one is begun.
    pub(crate) fn new(sample: f64, seed: Seeded, metrics: Arc<Metrics>, now: Now) -> Self {
        // A factor beyond the range ends at its bounds.
        let below = (sample * (1_u64 << CHOSEN_BITS) as f64) as u64;
        let (open, unacknowledged) = (BTreeMap::new(), BTreeMap::new());
        Self { below, seed, made: 0, open, unacknowledged, rate: Rate::new(now.monotonic), metrics }
    }

    /// The context of a message, if the board records it. Usually it does not, which costs a comparison.
    pub(crate) fn admit<T: AsRef<str>>(&mut self, properties: &[(T, T)], now: Now) -> Option<Arc<TraceContext>> {
        let upstream = if properties.is_empty() { None } else { TraceContext::of(properties) };
        let context = match upstream {
            Some(context) if context.is_sampled() => context,
            Some(_) => return None,
            None if self.below == 0 => return None,
            None => {
                let trace_id = self.trace_id();
                if !self.is_chosen(trace_id) {
                    return None;
                }
                TraceContext::sampled(trace_id, self.span_id())
            }
        };
        if !self.may_record(self.is_chosen(context.trace_id), now) {
            self.metrics.traces_left_out.inc();
            return None;
        }
        self.metrics.traces.inc();
        Some(Arc::new(context.recorded(self.span_id())))
    }

    /// The same for a message that the board makes itself.
    pub(crate) fn admitted(&mut self, message: Message, now: Now) -> Message {
        let trace = self.admit(&message.properties, now);
        Message { trace, ..message }
    }

    /// Whether there is room for one more.
    fn may_record(&mut self, is_chosen: bool, now: Now) -> bool {
        let is_full = self.open.len() + self.unacknowledged.len() >= MAX_OPEN;
        !is_full && (is_chosen || self.rate.admit(EVERY, BURST, now.monotonic))
    }

    fn is_chosen(&self, trace_id: TraceId) -> bool {
        (trace_id.number() as u64) & ((1 << CHOSEN_BITS) - 1) < self.below
    }

    fn number(&mut self) -> u128 {
        self.made += 1;
        self.seed.hash128(&("trace", self.made))
    }

    fn trace_id(&mut self) -> TraceId {
        TraceId::new(self.number())
    }

    fn span_id(&mut self) -> SpanId {
        SpanId::new(self.number() as u64)
    }

    /// Nothing that is not committed counts.
    pub(crate) fn reset(&mut self) {
        self.open.clear();
    }
}

impl Board {
    // ---- begun ----

    /// Begins the spans of a message that is recorded, with its first job.
    pub(super) fn open_trace(&mut self, id: UnitId) {
        let unit = self.ledger.unit(id);
        let arrival = self.ledger.arrival(id);
        if let Some(context) = unit.message.trace.clone().filter(|_| !self.traces.open.contains_key(&arrival)) {
            self.open_under(id, &context);
        }
    }

    /// Begins the spans of a message that fails.
    fn open_late(&mut self, id: UnitId) {
        let unit = self.ledger.unit(id);
        if unit.message.trace.is_some() {
            return self.open_trace(id);
        }
        let arrival = self.ledger.arrival(id);
        if self.traces.open.contains_key(&arrival) || !self.traces.may_record(false, self.now) {
            return;
        }
        self.metrics.traces.inc();
        let context = TraceContext::of(&unit.message.properties);
        let context = context.unwrap_or_else(|| TraceContext::sampled(self.traces.trace_id(), self.traces.span_id()));
        let context = context.recorded(self.traces.span_id());
        let received_at_ms = unit.message.received_at_ms;
        self.open_under(id, &context).received_at(received_at_ms);
    }

    fn open_under(&mut self, id: UnitId, context: &TraceContext) -> &mut Open {
        let (root, routed) = (self.traces.span_id(), self.traces.span_id());
        let unit = self.ledger.unit(id);
        let mut open = Open::new(context, &unit.message, &unit.receipt, root, self.now);
        open.routed(routed, unit, self.now);
        self.traces.open.entry(self.ledger.arrival(id)).insert_entry(open).into_mut()
    }

    fn trace_of(&mut self, id: UnitId) -> Option<&mut Open> {
        if self.traces.open.is_empty() {
            return None;
        }
        self.traces.open.get_mut(&self.ledger.arrival(id))
    }

    /// The message is back where it came from.
    pub(super) fn forget_trace(&mut self, id: UnitId) {
        if !self.traces.open.is_empty() {
            self.traces.open.remove(&self.ledger.arrival(id));
        }
    }

    // ---- runs ----

    /// What is to be known of a run before settling takes its outcome apart.
    pub(super) fn traced_run(&mut self, id: UnitId, outcome: &Outcome) -> TracedRun {
        let span = self.trace_of(id).is_some().then(|| self.traces.span_id());
        TracedRun {
            span,
            usage: outcome.usage,
            attempt: self.ledger.unit(id).message.attempt,
            is_retry: matches!(outcome.verdict, Verdict::Retry { .. }),
        }
    }

    /// The trace that the outputs of a run carry on.
    pub(super) fn carried(&mut self, id: UnitId, run: TracedRun) -> Option<Arc<TraceContext>> {
        if let Some(span) = run.span
            && let Some(open) = self.trace_of(id)
        {
            return Some(Arc::new(open.context.recorded(span)));
        }
        TraceContext::of(&self.ledger.unit(id).message.properties).map(Arc::new)
    }

    /// Adds a run to the spans of its message.
    pub(super) fn trace_run(
        &mut self,
        id: UnitId,
        number: FunctionNo,
        edition: &Edition,
        run: TracedRun,
        failure: Option<&Failure>,
    ) {
        if self.trace_of(id).is_none() {
            return;
        }
        let span = run.span.unwrap_or_else(|| self.traces.span_id());
        let (function, now) = (Arc::clone(&self.rollout.function(number).name), self.now);
        if let Some(open) = self.trace_of(id) {
            open.ran(span, (&function, &edition.manifest().version), &run, failure, now);
        }
    }

    /// Adds a run whose outcome stands. `refused`: it makes the message a dead letter.
    pub(super) fn trace_outcome(
        &mut self,
        id: UnitId,
        number: FunctionNo,
        edition: &Edition,
        run: TracedRun,
        refused: Option<&Failure>,
    ) {
        if refused.is_some() {
            self.open_late(id);
        }
        self.trace_run(id, number, edition, run, refused);
    }

    /// The message becomes a dead letter.
    pub(super) fn trace_failure(&mut self, id: UnitId, failure: &Failure) {
        self.open_late(id);
        match self.trace_of(id) {
            Some(open) => open.failed(failure),
            None => self.metrics.traces_left_out.inc(),
        }
    }

    /// The message waits in the store.
    pub(super) fn trace_waits(&mut self, id: UnitId) {
        if let Some(open) = self.trace_of(id) {
            open.waits();
        }
    }

    /// A message that waited in the store becomes a dead letter, without a unit.
    pub(super) fn trace_removed(&mut self, message: &Message, failure: &Failure) {
        let Some(context) = &message.trace else { return };
        let (root, committed, now) = (self.traces.span_id(), self.traces.span_id(), self.now);
        let mut open = Open::resumed(context, message, root, now);
        open.failed(failure);
        open.committed(committed, now);
        self.effects.push_back(Effect::Traced(open.end()));
    }

    // ---- ended ----

    /// Everything that came of a message is on disk, or nothing came of it.
    pub(super) fn trace_settled(&mut self, settled: &Settled) {
        if self.traces.open.is_empty() {
            return;
        }
        let Some(mut open) = self.traces.open.remove(&settled.arrival) else { return };
        let (committed, acknowledged, now) = (self.traces.span_id(), self.traces.span_id(), self.now);
        open.committed(committed, now);
        match (open.owed, &settled.receipt) {
            (Owed::Nothing, _) => {}
            (Owed::Acknowledgement, Receipt::Mqtt { .. }) if !self.is_connected => {
                open.acknowledged(acknowledged, Some(CONNECTION_LOST), now);
            }
            (Owed::Acknowledgement, Receipt::Mqtt { fingerprint, .. }) => {
                let earlier = self.traces.unacknowledged.insert(fingerprint.packet_id, open);
                earlier.into_iter().for_each(|earlier| self.end_unacknowledged(earlier, SESSION_LOST));
                return;
            }
            (Owed::Acknowledgement, _) => open.acknowledged(acknowledged, Some(SESSION_LOST), now),
            (Owed::Answer, _) => open.acknowledged(acknowledged, None, now),
        }
        self.effects.push_back(Effect::Traced(open.end()));
    }

    pub(super) fn trace_acknowledged(&mut self, token: AckToken) {
        if self.traces.unacknowledged.is_empty() {
            return;
        }
        if let Some(mut open) = self.traces.unacknowledged.remove(&token.packet_id) {
            open.acknowledged(self.traces.span_id(), None, self.now);
            self.effects.push_back(Effect::Traced(open.end()));
        }
    }

    /// The connection broke: what is committed is acknowledged when the broker delivers it again, which no trace waits for.
    pub(super) fn trace_disconnected(&mut self) {
        let unacknowledged = std::mem::take(&mut self.traces.unacknowledged);
        for open in unacknowledged.into_values().filter(|_| !is_made(Mistake::ForgetTraces)) {
            self.end_unacknowledged(open, CONNECTION_LOST);
        }
    }

    fn end_unacknowledged(&mut self, mut open: Open, why: &str) {
        open.acknowledged(self.traces.span_id(), Some(why), self.now);
        self.effects.push_back(Effect::Traced(open.end()));
    }

    /// Records that their receivers have, or will never have.
    pub(super) fn trace_sent(&mut self) {
        for sent in self.forwarder.take_sent() {
            let SentRecord { trace, destination, stream, id, message_id, topic, since, error } = sent;
            let end_ns = self.now.unix_ms.saturating_mul(1_000_000);
            let took = since.map_or(Duration::ZERO, |since| self.now.monotonic.saturating_duration_since(since));
            let start_ns = end_ns.saturating_sub(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
            let span_id = SpanId::of_sending(trace.span_id, stream, id);
            let mut span = child(&trace, span_id, Step::Sent, start_ns, end_ns);
            span.kind = SpanKind::Producer;
            span.text(name::TOPIC, topic);
            span.text(name::SINK, self.forwarder.name(destination));
            span.text(name::STREAM, stream.as_str());
            span.text(name::MESSAGE_ID, message_id);
            span.error = error;
            self.effects.push_back(Effect::Traced(vec![span]));
        }
    }
}
