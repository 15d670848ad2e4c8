//! Histogram of durations with fixed buckets from 1 µs to 10 s, fine enough to estimate percentiles.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Ten buckets per decade. A bucket is at most 33 % wide, which bounds the error of an estimated percentile.
const STEPS: [u64; 10] = [10, 12, 15, 20, 25, 30, 40, 50, 60, 80];
const DECADES: usize = 7;
const LEN: usize = STEPS.len() * DECADES + 1;

/// Upper bounds in nanoseconds, inclusive.
const BOUNDS: [u64; LEN] = bounds();

const fn bounds() -> [u64; LEN] {
    let mut bounds = [0; LEN];
    let mut scale = 100;
    let mut index = 0;
    while index < LEN {
        bounds[index] = STEPS[index % STEPS.len()] * scale;
        index += 1;
        if index.is_multiple_of(STEPS.len()) {
            scale *= 10;
        }
    }
    bounds
}

/// One thread observes, any thread reads. A reader may see an observation in its bucket before it is in the sum.
#[derive(Debug)]
pub struct Histogram {
    counts: [AtomicU64; LEN],
    /// Observations above the last bound.
    over: AtomicU64,
    sum_ns: AtomicU64,
    max_ns: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: [const { AtomicU64::new(0) }; LEN],
            over: AtomicU64::new(0),
            sum_ns: AtomicU64::new(0),
            max_ns: AtomicU64::new(0),
        }
    }
}

impl Histogram {
    pub(crate) fn observe(&self, duration: Duration) {
        let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let bucket = self.counts.get(BOUNDS.partition_point(|bound| *bound < ns)).unwrap_or(&self.over);
        bucket.store(bucket.load(Relaxed) + 1, Relaxed);
        self.sum_ns.store(self.sum_ns.load(Relaxed).saturating_add(ns), Relaxed);
        if ns > self.max_ns.load(Relaxed) {
            self.max_ns.store(ns, Relaxed);
        }
    }

    /// Records an amount that is not a duration, one nanosecond per unit.
    pub(crate) fn observe_amount(&self, amount: u64) {
        self.observe(Duration::from_nanos(amount));
    }

    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum_ns.load(Relaxed))
    }

    fn max(&self) -> Duration {
        Duration::from_nanos(self.max_ns.load(Relaxed))
    }

    /// Estimated quantile: the duration that this share of the observations does not exceed. `None` without observations.
    /// Interpolated within its bucket, and never above the longest observation.
    pub(crate) fn quantile(&self, share: f64) -> Option<Duration> {
        let counts: Vec<u64> = self.counts.iter().map(|count| count.load(Relaxed)).collect();
        let total = counts.iter().sum::<u64>() + self.over.load(Relaxed);
        if total == 0 {
            return None;
        }
        let rank = (share.clamp(0.0, 1.0) * total as f64).max(1.0);
        let mut below = 0;
        for (index, count) in counts.into_iter().enumerate() {
            if count > 0 && (below + count) as f64 >= rank {
                let low = if index == 0 { 0 } else { BOUNDS[index - 1] };
                let within = (rank - below as f64) / count as f64;
                let ns = low as f64 + within * (BOUNDS[index] - low) as f64;
                return Some(Duration::from_nanos(ns as u64).min(self.max()));
            }
            below += count;
        }
        Some(self.max())
    }

    /// Cumulative counts for Prometheus, 5 µs to 10 s in steps of 1, 2 and 5, and the total.
    pub(super) fn exported(&self) -> (Vec<(f64, u64)>, u64) {
        let mut total = 0;
        let mut buckets = Vec::with_capacity(24);
        for (index, count) in self.counts.iter().enumerate() {
            total += count.load(Relaxed);
            if BOUNDS[index] >= 5_000 && matches!(STEPS[index % STEPS.len()], 10 | 20 | 50) {
                buckets.push((BOUNDS[index] as f64 / 1e9, total));
            }
        }
        (buckets, total + self.over.load(Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_grow_from_a_microsecond_to_ten_seconds() {
        assert_eq!(BOUNDS[0], 1_000);
        assert_eq!(BOUNDS[LEN - 1], 10_000_000_000);
        assert!(BOUNDS.is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn exported_buckets_are_cumulative_and_complete() {
        let histogram = Histogram::default();
        for us in [1, 5, 6, 7_000, 20_000_000] {
            histogram.observe(Duration::from_micros(us));
        }
        let (buckets, total) = histogram.exported();
        assert_eq!(total, 5);
        assert_eq!(buckets[0], (0.000_005, 2), "a bound is inclusive");
        assert_eq!(buckets[1], (0.000_01, 3));
        assert_eq!(*buckets.last().unwrap(), (10.0, 4), "20 s is only in +Inf");
        assert_eq!(buckets.len(), 20);
        assert_eq!(histogram.sum(), Duration::from_micros(20_007_012));
    }

    #[test]
    fn percentiles_are_within_a_bucket_of_the_truth() {
        let histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), None);
        for us in 1..=1_000 {
            histogram.observe(Duration::from_micros(us));
        }
        for (share, truth) in [(0.5, 500.0), (0.9, 900.0), (0.99, 990.0), (1.0, 1000.0)] {
            let estimate = histogram.quantile(share).unwrap().as_secs_f64() * 1e6;
            assert!((estimate - truth).abs() / truth < 0.05, "{share}: {estimate} instead of {truth}");
        }
    }

    #[test]
    fn a_percentile_is_never_above_the_longest_observation() {
        let histogram = Histogram::default();
        histogram.observe(Duration::from_secs(90));
        assert_eq!(histogram.quantile(0.99), Some(Duration::from_secs(90)));
        let histogram = Histogram::default();
        histogram.observe(Duration::from_micros(6));
        assert_eq!(histogram.quantile(0.99), Some(Duration::from_micros(6)));
    }
}
