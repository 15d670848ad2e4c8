//! The spans of one message, from its receipt to its acknowledgement.

use std::sync::Arc;

use super::TracedRun;
use crate::board::intake::MAX_ID_BYTES;
use crate::board::ledger::Unit;
use crate::board::receipt::Receipt;
use crate::message::{Failure, ID_PROPERTY, Message};
use crate::time::Now;
use crate::trace::span::attribute as name;
use crate::trace::{Span, SpanId, SpanKind, Step, TraceContext};

/// Runs of one message with a span of their own.
const MAX_RUNS: usize = 16;

/// What the source of a message is owed after its commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owed {
    Acknowledgement,
    Answer,
    Nothing,
}

/// How a message ended, as far as this board has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Done,
    /// In the store, for another run.
    Waiting,
    DeadLetter,
}

#[derive(Debug)]
pub(super) struct Open {
    /// Its span is the root.
    pub(super) context: TraceContext,
    pub(super) owed: Owed,
    begun: Now,
    root: Span,
    steps: Vec<Span>,
    runs: usize,
    /// End of the latest step.
    last_ns: u64,
    ending: Ending,
}

impl Open {
    /// `context`: of the message, recorded. `resumed`: the root, should the message have waited in the store.
    pub(super) fn new(context: &TraceContext, message: &Message, receipt: &Receipt, resumed: SpanId, now: Now) -> Self {
        if let Receipt::Parked(_) = receipt {
            return Self::resumed(context, message, resumed, now);
        }
        let parent = TraceContext::of(&message.properties).map(|upstream| upstream.span_id);
        let mut open = Self::begin(context.clone(), Step::Received, parent, message, now);
        (open.root.kind, open.owed) = match receipt {
            Receipt::Mqtt { .. } => (SpanKind::Consumer, Owed::Acknowledgement),
            Receipt::None => (SpanKind::Consumer, Owed::Nothing),
            Receipt::Request(_) => (SpanKind::Server, Owed::Answer),
            _ => (SpanKind::Internal, Owed::Nothing),
        };
        if open.root.kind == SpanKind::Consumer {
            open.root.text(name::SYSTEM, "mqtt");
        }
        open
    }

    /// A message that waited in the store. Its own root is below that of its receipt.
    pub(super) fn resumed(context: &TraceContext, message: &Message, root: SpanId, now: Now) -> Self {
        Self::begin(context.recorded(root), Step::Resumed, Some(context.span_id), message, now)
    }

    fn begin(context: TraceContext, step: Step, parent: Option<SpanId>, message: &Message, now: Now) -> Self {
        let start_ns = now.unix_ms.saturating_mul(1_000_000);
        let mut root = child(&context, context.span_id, step, start_ns, start_ns);
        root.parent = parent;
        root.text(name::TOPIC, &*message.topic);
        root.number(name::BODY_BYTES, message.payload.len() as u64);
        if let Some(id) = message.property(ID_PROPERTY) {
            root.text(name::MESSAGE_ID, &id[..id.floor_char_boundary(MAX_ID_BYTES)]);
        }
        Self {
            context,
            owed: Owed::Nothing,
            begun: now,
            root,
            steps: Vec::new(),
            runs: 0,
            last_ns: start_ns,
            ending: Ending::Done,
        }
    }

    /// The wall clock of the beginning and the time that passed since, so that setting the clock moves no span.
    fn at(&self, now: Now) -> u64 {
        let passed = now.monotonic.saturating_duration_since(self.begun.monotonic);
        let start_ns = self.begun.unix_ms.saturating_mul(1_000_000);
        start_ns.saturating_add(u64::try_from(passed.as_nanos()).unwrap_or(u64::MAX))
    }

    /// It was received before it was known that it would be recorded.
    pub(super) fn received_at(&mut self, unix_ms: u64) {
        let start_ns = unix_ms.saturating_mul(1_000_000);
        if start_ns < self.root.start_ns {
            self.root.start_ns = start_ns;
        }
    }

    /// Adds a step that lasted from the end of the one before until now.
    fn step(&mut self, span_id: SpanId, step: Step, now: Now) -> &mut Span {
        let (start_ns, end_ns) = (self.last_ns, self.at(now).max(self.last_ns));
        self.last_ns = end_ns;
        self.steps.push(child(&self.context, span_id, step, start_ns, end_ns));
        self.steps.last_mut().expect("a step was added")
    }

    pub(super) fn routed(&mut self, span_id: SpanId, unit: &Unit, now: Now) {
        let (functions, hops) = (unit.jobs_left() as u64, unit.hops);
        let span = self.step(span_id, Step::Routed, now);
        span.number(name::FUNCTIONS, functions);
        span.number(name::HOPS, hops.into());
    }

    pub(super) fn ran(
        &mut self,
        span_id: SpanId,
        (function, version): (&Arc<str>, &str),
        run: &TracedRun,
        failure: Option<&Failure>,
        now: Now,
    ) {
        self.runs += 1;
        if self.runs > MAX_RUNS {
            return;
        }
        // It ran for this long, and waited for its turn before.
        let end_ns = self.at(now).max(self.root.start_ns);
        let start_ns = end_ns.saturating_sub(run.usage.elapsed_us.saturating_mul(1000)).max(self.root.start_ns);
        self.last_ns = self.last_ns.max(end_ns);
        let mut span = child(&self.context, span_id, Step::Invoked, start_ns, end_ns);
        span.text(name::FUNCTION, &**function);
        span.text(name::VERSION, version);
        span.number(name::FUEL, run.usage.fuel);
        span.number(name::MEMORY_BYTES, run.usage.memory_bytes);
        span.number(name::ATTEMPT, run.attempt.into());
        let result = match failure {
            Some(_) => "failed",
            None if run.is_retry => "retry",
            None => "done",
        };
        span.text(name::RESULT, result);
        span.error = failure.map(|failure| failure.code.as_str().into());
        self.steps.push(span);
    }

    pub(super) fn failed(&mut self, failure: &Failure) {
        self.ending = Ending::DeadLetter;
        self.root.error.get_or_insert_with(|| failure.code.as_str().into());
    }

    pub(super) fn waits(&mut self) {
        if self.ending == Ending::Done {
            self.ending = Ending::Waiting;
        }
    }

    pub(super) fn committed(&mut self, span_id: SpanId, now: Now) {
        self.step(span_id, Step::Committed, now);
    }

    /// `error`: why it will not be.
    pub(super) fn acknowledged(&mut self, span_id: SpanId, error: Option<&str>, now: Now) {
        self.step(span_id, Step::Acknowledged, now).error = error.map(Into::into);
    }

    /// All spans, the root first.
    pub(super) fn end(self) -> Vec<Span> {
        let Self { mut root, steps, runs, last_ns, ending, .. } = self;
        root.end_ns = last_ns;
        let result = match ending {
            Ending::Done => "done",
            Ending::Waiting => "waiting",
            Ending::DeadLetter => "dead-letter",
        };
        root.text(name::RESULT, result);
        if runs > MAX_RUNS {
            root.number(name::RUNS_LEFT_OUT, (runs - MAX_RUNS) as u64);
        }
        let mut spans = vec![root];
        spans.extend(steps);
        spans
    }
}

/// A span below that of a context.
pub(super) fn child(context: &TraceContext, span_id: SpanId, step: Step, start_ns: u64, end_ns: u64) -> Span {
    Span {
        trace_id: context.trace_id,
        span_id,
        parent: Some(context.span_id),
        state: context.state.clone(),
        step,
        kind: SpanKind::Internal,
        start_ns,
        end_ns,
        attributes: Vec::new(),
        error: None,
    }
}
