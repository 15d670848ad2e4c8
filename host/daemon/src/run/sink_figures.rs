//! Sinks in the status of the board: whether each is connected, and how many records wait for it.
//!
//! The status is retained and goes to everybody who watches the boards. It is published again when a sink comes or goes, and
//! with other numbers at most once per minute.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sedge_core::deploy::report::SinkReport;
use sedge_core::metrics::Metrics;
use sedge_core::time::Now;

/// A connection that breaks again and again is not reported each time.
const LINKS_EVERY: Duration = Duration::from_secs(5);
const RECORDS_EVERY: Duration = Duration::from_secs(60);
/// Fewer records are on their way to a connected sink at any time.
const BACKLOG: u64 = 1000;

pub(super) struct SinkFigures {
    metrics: Arc<Metrics>,
    shown: Vec<SinkReport>,
    at: Option<Instant>,
}

impl SinkFigures {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, shown: Vec::new(), at: None }
    }

    pub(super) fn shown(&self) -> &[SinkReport] {
        &self.shown
    }

    /// Takes the figures of now.
    pub(super) fn take(&mut self, now: Now) {
        let report = |(name, connected): (&str, bool)| SinkReport {
            name: name.to_owned(),
            connected,
            records: self.metrics.sum_of("sedge_outbox_records", ("sink", name), now),
        };
        self.shown = self.metrics.connected_sinks().map(report).collect();
        self.at = Some(now.monotonic);
    }

    /// Takes them if it is time and they tell anything new. Returns whether they do.
    pub(super) fn take_new(&mut self, now: Now) -> bool {
        let Some(since) = self.at.map(|at| now.monotonic.saturating_duration_since(at)) else { return false };
        if since < LINKS_EVERY {
            return false;
        }
        let links = self.metrics.connected_sinks().map(|(_, connected)| connected);
        if links.eq(self.shown.iter().map(|sink| sink.connected)) && since < RECORDS_EVERY {
            return false;
        }
        let before = std::mem::take(&mut self.shown);
        self.take(now);
        before.len() != self.shown.len() || before.iter().zip(&self.shown).any(|(before, sink)| tells_new(before, sink))
    }
}

fn tells_new(before: &SinkReport, sink: &SinkReport) -> bool {
    before.connected != sink.connected
        || sink.records < before.records
        || sink.records > before.records && (!sink.connected || sink.records - before.records > BACKLOG)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sink(connected: bool, records: u64) -> SinkReport {
        SinkReport { name: "lake".into(), connected, records }
    }

    #[test]
    fn a_status_is_worth_publishing_when_a_sink_comes_goes_or_falls_behind() {
        for (before, now, expected) in [
            (sink(true, 0), sink(true, 0), false),
            (sink(true, 0), sink(false, 0), true),
            (sink(false, 7), sink(true, 7), true),
            // On its way.
            (sink(true, 0), sink(true, 400), false),
            (sink(true, 0), sink(true, 4000), true),
            (sink(true, 400), sink(true, 3), true),
            (sink(false, 400), sink(false, 401), true),
            (sink(false, 400), sink(false, 400), false),
        ] {
            assert_eq!(tells_new(&before, &now), expected, "{before:?} {now:?}");
        }
    }

    #[test]
    fn without_a_sink_and_before_the_first_status_nothing_is_new() {
        let mut figures = SinkFigures::new(Arc::default());
        let now = sedge_sandbox::clock::now(true);
        assert!(!figures.take_new(now));
        figures.take(now);
        let later = Now { monotonic: now.monotonic + 2 * RECORDS_EVERY, ..now };
        assert!(!figures.take_new(later) && figures.shown().is_empty());
    }
}
