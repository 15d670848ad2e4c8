//! Traces as they must be: every message of a recorded trace that is on disk has a complete set of spans.
//!
//! ```text
//! commit asked for ─▶ told: its runs and its ending are due ─▶ spans ended: no longer due
//!        │ the disk fails, the power is cut
//!        └─▶ lost: what is on disk of it may be sent
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use sedge_core::store::{BatchNo, Commit};
use sedge_core::trace::span::attribute::RESULT;
use sedge_core::trace::{Span, SpanId, SpanKind, Step, TraceId};

/// What is due of a commit.
#[derive(Debug, Default)]
struct Due {
    runs: Vec<SpanId>,
    endings: Vec<(TraceId, &'static str)>,
}

#[derive(Debug, Default)]
pub struct SpanModel {
    /// Commits that the store has not confirmed.
    asked: VecDeque<(BatchNo, Due)>,
    runs: BTreeSet<SpanId>,
    endings: BTreeMap<(TraceId, &'static str), u32>,
    seen: BTreeSet<SpanId>,
    lost: BTreeSet<SpanId>,
    /// Runs whose records were sent.
    sent: BTreeSet<SpanId>,
    pub messages: u64,
    pub was_resumed: bool,
    pub was_sent: bool,
}

impl SpanModel {
    pub fn asked(&mut self, batch: BatchNo, commits: &[Commit]) {
        let mut due = Due::default();
        for commit in commits {
            let traces = commit.records.iter().filter_map(|record| record.trace.as_deref());
            due.runs.extend(traces.filter(|trace| trace.is_recorded()).map(|trace| trace.span_id));
            let letters = commit.dead_letters.iter().find_map(|letter| letter.message.trace.as_deref());
            let parked = commit.park.iter().find_map(|parked| parked.message.trace.as_deref());
            let ending = letters.map(|trace| (trace.trace_id, "dead-letter"));
            due.endings.extend(ending.or(parked.map(|trace| (trace.trace_id, "waiting"))));
        }
        self.asked.push_back((batch, due));
    }

    pub fn told(&mut self, batch: BatchNo) {
        while self.asked.front().is_some_and(|(number, _)| *number <= batch) {
            let (_, due) = self.asked.pop_front().expect("a commit was seen at the front");
            self.runs.extend(due.runs);
            for ending in due.endings {
                *self.endings.entry(ending).or_default() += 1;
            }
        }
    }

    /// What was asked of the disk is on it or not.
    pub fn failed(&mut self) {
        self.lost.extend(self.asked.drain(..).flat_map(|(_, due)| due.runs));
    }

    pub fn cut_power(&mut self) {
        self.failed();
        self.lost.append(&mut self.runs);
        self.endings.clear();
    }

    /// `Err`: what is missing.
    pub fn ended(&mut self, spans: &[Span]) -> Result<(), String> {
        let all = |why: &str| Err(format!("{why}: {spans:?}"));
        let Some((root, steps)) = spans.split_first() else { return all("no spans") };
        if root.step == Step::Sent {
            self.was_sent = true;
            self.sent.extend(root.parent);
            let is_right = steps.is_empty() && root.kind == SpanKind::Producer && root.parent.is_some();
            return if is_right { Ok(()) } else { all("a record is sent alone") };
        }
        let count = |step: Step| steps.iter().filter(|span| span.step == step).count();
        let [routed, runs, committed, acknowledged] =
            [Step::Routed, Step::Invoked, Step::Committed, Step::Acknowledged].map(count);
        if steps.len() != routed + runs + committed + acknowledged || (routed, committed) != (1, 1) {
            return all("each message is routed once and committed once");
        }
        let is_owed = match (root.step, root.kind) {
            (Step::Received, SpanKind::Server) => acknowledged == 1,
            // QoS 0 is not acknowledged.
            (Step::Received, SpanKind::Consumer) => acknowledged <= 1,
            (Step::Received | Step::Resumed, SpanKind::Internal) => acknowledged == 0,
            _ => false,
        };
        if !is_owed {
            return all("an acknowledgement is missing, or one too many");
        }
        let is_below = |span: &Span| {
            span.trace_id == root.trace_id
                && span.parent == Some(root.span_id)
                && root.start_ns <= span.start_ns
                && span.start_ns <= span.end_ns
                && span.end_ns <= root.end_ns
        };
        if !steps.iter().all(is_below) {
            return all("a step is not within its message");
        }
        let result = root.text_of(RESULT).unwrap_or_default();
        let ending = ["done", "waiting", "dead-letter"].into_iter().find(|it| *it == result);
        match ending {
            Some("done") if runs > 0 || root.kind == SpanKind::Server => {}
            Some(ending @ ("waiting" | "dead-letter")) => {
                if let Some(count) = self.endings.get_mut(&(root.trace_id, ending)) {
                    *count = count.saturating_sub(1);
                }
            }
            _ => return all("it ended in no known way"),
        }
        if (ending == Some("dead-letter")) != root.error.is_some() {
            return all("a dead letter is an error, and nothing else is");
        }
        self.messages += 1;
        self.was_resumed |= root.step == Step::Resumed;
        self.seen.extend(steps.iter().filter(|span| span.step == Step::Invoked).map(|span| span.span_id));
        Ok(())
    }

    /// What is still due when everything has come to an end.
    pub fn missing(&self) -> Option<String> {
        let is_seen = |run: &&SpanId| self.seen.contains(run);
        let run = self.runs.iter().find(|run| !is_seen(run));
        let orphan = self.sent.iter().find(|run| !is_seen(run) && !self.lost.contains(run));
        let ending = self.endings.iter().find(|(_, count)| **count > 0);
        run.map(|run| format!("the run {run} is on disk and has no span"))
            .or(orphan.map(|run| format!("a record of the run {run} was sent, which has no span")))
            .or(ending.map(|((trace, ending), _)| format!("the trace {trace} does not say that it is {ending}")))
    }
}
