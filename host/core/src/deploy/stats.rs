//! Counters of deployment, for the metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::reason::Reason;
use crate::metrics::{Metrics, Sample, Value};

#[derive(Debug)]
pub struct DeployStats {
    accepted: AtomicU64,
    refused: [AtomicU64; Reason::ALL.len()],
    chunks_stored: AtomicU64,
    chunks_refused: AtomicU64,
    /// Messages dropped because too many were waiting.
    dropped: AtomicU64,
}

impl Default for DeployStats {
    fn default() -> Self {
        Self {
            accepted: AtomicU64::new(0),
            refused: std::array::from_fn(|_| AtomicU64::new(0)),
            chunks_stored: AtomicU64::new(0),
            chunks_refused: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        }
    }
}

impl DeployStats {
    pub fn accepted(&self) {
        self.accepted.fetch_add(1, Relaxed);
    }

    pub fn refused(&self, reason: Reason) {
        self.refused[reason as usize].fetch_add(1, Relaxed);
    }

    pub fn chunk(&self, is_good: bool) {
        if is_good { &self.chunks_stored } else { &self.chunks_refused }.fetch_add(1, Relaxed);
    }

    pub fn dropped(&self) {
        self.dropped.fetch_add(1, Relaxed);
    }

    /// Adds the counters to the metrics.
    pub fn register(self: &Arc<Self>, metrics: &Metrics) {
        let stats = Arc::clone(self);
        metrics.source(move |_, add| {
            let mut integer = |family, labels: &[(&str, &str)], value| {
                add(&Sample { family, labels, value: Value::Integer(value) });
            };
            // Most of the reasons never occur: only the others get a series.
            for reason in Reason::ALL {
                match stats.orders_refused(*reason) {
                    0 => {}
                    count => integer("sedge_deploy_orders_refused_total", &[("reason", reason.as_str())], count),
                }
            }
            for (family, counter) in [
                ("sedge_deploy_orders_accepted_total", &stats.accepted),
                ("sedge_deploy_chunks_total", &stats.chunks_stored),
                ("sedge_deploy_chunks_refused_total", &stats.chunks_refused),
                ("sedge_deploy_messages_dropped_total", &stats.dropped),
            ] {
                integer(family, &[], counter.load(Relaxed));
            }
        });
    }

    pub fn orders_refused(&self, reason: Reason) -> u64 {
        self.refused[reason as usize].load(Relaxed)
    }

    #[cfg(any(test, feature = "testing"))]
    pub fn messages_dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test may read clocks and files")]
mod tests {
    use super::*;

    #[test]
    fn counters_are_rendered() {
        let (stats, metrics) = (Arc::<DeployStats>::default(), Metrics::default());
        stats.register(&metrics);
        stats.accepted();
        stats.refused(Reason::Unsigned);
        stats.chunk(false);
        let page = metrics.render(crate::time::Now::at(std::time::Instant::now(), std::time::SystemTime::now(), true));
        for line in [
            "sedge_deploy_orders_accepted_total 1\n",
            "sedge_deploy_orders_refused_total{reason=\"unsigned\"} 1\n",
            "sedge_deploy_chunks_refused_total 1\n",
            "sedge_deploy_chunks_total 0\n",
        ] {
            assert!(page.contains(line), "{line}");
        }
        assert!(!page.contains("unknown-key"));
    }
}
