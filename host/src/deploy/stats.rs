//! What is counted, for the metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::reason::Reason;
use crate::telemetry::{Metrics, Sample, Value};

#[derive(Debug, Default)]
pub struct DeployStats {
    accepted: AtomicU64,
    refused: Refused,
    chunks_taken: AtomicU64,
    chunks_refused: AtomicU64,
    /// Messages that came faster than they were looked at.
    flooded: AtomicU64,
}

#[derive(Debug)]
struct Refused([AtomicU64; Reason::ALL.len()]);

impl Default for Refused {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl DeployStats {
    pub(super) fn accepted(&self) {
        self.accepted.fetch_add(1, Relaxed);
    }

    pub(super) fn refused(&self, reason: Reason) {
        self.refused.0[reason as usize].fetch_add(1, Relaxed);
    }

    pub(super) fn chunk(&self, is_good: bool) {
        if is_good { &self.chunks_taken } else { &self.chunks_refused }.fetch_add(1, Relaxed);
    }

    pub(super) fn flooded(&self) {
        self.flooded.fetch_add(1, Relaxed);
    }

    pub fn join(self: &Arc<Self>, metrics: &Metrics) {
        let stats = Arc::clone(self);
        metrics.source(move |add| {
            let mut integer = |family, labels: &[(&str, &str)], value| {
                add(&Sample { family, labels, value: Value::Integer(value) });
            };
            // Thirty reasons would be mostly zeros: only those that happened.
            for reason in Reason::ALL {
                match stats.orders_refused(reason) {
                    0 => {}
                    count => integer("sedge_deploy_orders_refused_total", &[("reason", reason.as_str())], count),
                }
            }
            for (family, value) in [
                ("sedge_deploy_orders_accepted_total", stats.orders_accepted()),
                ("sedge_deploy_chunks_total", stats.chunks_taken()),
                ("sedge_deploy_chunks_refused_total", stats.chunks_refused()),
                ("sedge_deploy_messages_dropped_total", stats.messages_flooded()),
            ] {
                integer(family, &[], value);
            }
        });
    }

    pub fn orders_accepted(&self) -> u64 {
        self.accepted.load(Relaxed)
    }

    pub fn orders_refused(&self, reason: Reason) -> u64 {
        self.refused.0[reason as usize].load(Relaxed)
    }

    pub fn chunks_taken(&self) -> u64 {
        self.chunks_taken.load(Relaxed)
    }

    pub fn chunks_refused(&self) -> u64 {
        self.chunks_refused.load(Relaxed)
    }

    pub fn messages_flooded(&self) -> u64 {
        self.flooded.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_on_the_page() {
        let (stats, metrics) = (Arc::<DeployStats>::default(), Metrics::new());
        stats.join(&metrics);
        stats.accepted();
        stats.refused(Reason::Unsigned);
        stats.chunk(false);
        let page = metrics.render();
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
