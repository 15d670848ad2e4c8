use alloc::string::String;
use alloc::vec::Vec;

use crate::{Failure, text};

/// Most values that a window keeps.
pub(super) const MAX_VALUES: usize = 1000;

/// The values of a window in figures.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// At least 1.
    pub count: u32,
    pub sum: f64,
    pub min: f64,
    pub max: f64,
    pub first: f64,
    pub last: f64,
    /// Unix time of the last value in milliseconds, by the clock that gave its moment. If the clock was set since: of the call.
    pub to_ms: u64,
    /// Milliseconds from the first value to the last. `None` if the clock was set in between.
    pub span_ms: Option<u64>,
    pub(super) samples: Vec<f64>,
}

impl Summary {
    pub(super) fn of(value: f64, unix_ms: u64) -> Self {
        Self {
            count: 1,
            sum: value,
            min: value,
            max: value,
            first: value,
            last: value,
            to_ms: unix_ms,
            span_ms: Some(0),
            samples: Vec::new(),
        }
    }

    pub(super) fn push(&mut self, value: f64) {
        self.count = self.count.saturating_add(1);
        self.sum += value;
        if value < self.min {
            self.min = value;
        }
        if value > self.max {
            self.max = value;
        }
        self.last = value;
    }

    pub fn mean(&self) -> f64 {
        self.sum / f64::from(self.count)
    }

    /// Change per second from the first value to the last, `None` where no time is known to lie between them.
    pub fn rate(&self) -> Option<f64> {
        self.seconds().map(|seconds| (self.last - self.first) / seconds)
    }

    /// Values per second between the first and the last.
    pub fn frequency(&self) -> Option<f64> {
        self.seconds().map(|seconds| f64::from(self.count - 1) / seconds)
    }

    fn seconds(&self) -> Option<f64> {
        self.span_ms.filter(|ms| *ms > 0).map(|ms| ms as f64 / 1000.0)
    }

    /// The value below which so many percent lie: 50 for the median. Between two values it is interpolated (type 7 of Hyndman and Fan,
    /// "Sample Quantiles in Statistical Packages", 1996, as in spreadsheets). `None` beyond 0 to 100, and where the window keeps no
    /// values (`Tumbling::keep`).
    pub fn percentile(&self, percent: f64) -> Option<f64> {
        if self.samples.is_empty() || !(0.0..=100.0).contains(&percent) {
            return None;
        }
        let mut sorted = self.samples.clone();
        sort(&mut sorted);
        let place = percent / 100.0 * (sorted.len() - 1) as f64;
        let below = place as usize;
        let part = place - below as f64;
        let low = *sorted.get(below)?;
        let high = *sorted.get(below + 1).unwrap_or(&low);
        // The difference of two large values may be infinite.
        Some(if part == 0.0 { low } else { low * (1.0 - part) + high * part })
    }
}

/// Shell sort with the gaps of Ciura ("Best Increments for the Average Case of Shellsort", 2001). The sort of the standard library is
/// faster from some hundred values on, and has 3 KB more.
fn sort(values: &mut [f64]) {
    for gap in [701, 301, 132, 57, 23, 10, 4, 1] {
        for end in gap..values.len() {
            let mut at = end;
            while at >= gap && values[at - gap] > values[at] {
                values.swap(at - gap, at);
                at -= gap;
            }
        }
    }
}

/// A window has finite numbers only: its minimum would otherwise depend on the order.
pub(super) fn require_finite(key: &str, value: f64) -> Result<(), Failure> {
    if value.is_finite() { Ok(()) } else { Err(not_finite(key)) }
}

#[cold]
#[inline(never)]
fn not_finite(key: &str) -> Failure {
    let why: String = text!("the window \"", key, "\" takes numbers only, not NaN or infinity");
    Failure::Reject(why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn summary(values: &[f64], span_ms: u64) -> Summary {
        let mut summary = Summary::of(values[0], 1_000);
        values[1..].iter().for_each(|value| summary.push(*value));
        Summary { samples: values.to_vec(), span_ms: Some(span_ms), ..summary }
    }

    #[test]
    fn figures_of_a_window() {
        let summary = summary(&[3.0, -1.0, 7.0, 5.0], 6_000);
        assert_eq!((summary.count, summary.sum, summary.min, summary.max), (4, 14.0, -1.0, 7.0));
        assert_eq!((summary.first, summary.last, summary.mean()), (3.0, 5.0, 3.5));
        assert_eq!((summary.rate(), summary.frequency()), (Some(2.0 / 6.0), Some(0.5)));
    }

    #[test]
    fn without_time_there_is_no_rate() {
        assert_eq!(summary(&[3.0, 4.0], 0).rate(), None);
        assert_eq!(Summary { span_ms: None, ..summary(&[3.0, 4.0], 0) }.frequency(), None);
    }

    #[test]
    fn percentiles_are_interpolated_as_in_spreadsheets() {
        let summary = summary(&[15.0, 50.0, 40.0, 20.0, 35.0], 0);
        for (percent, expected) in [(0.0, 15.0), (25.0, 20.0), (40.0, 29.0), (50.0, 35.0), (90.0, 46.0), (100.0, 50.0)]
        {
            let got = summary.percentile(percent).unwrap();
            assert!((got - expected).abs() < 1e-9, "{got} is not {expected}");
        }
        for percent in [-1.0, 101.0, f64::NAN] {
            assert_eq!(summary.percentile(percent), None);
        }
        assert_eq!(Summary::of(3.0, 0).percentile(50.0), None);
    }

    proptest! {
        #[test]
        fn what_is_sorted_is_in_order(mut values in prop::collection::vec(-1e9..1e9f64, 0..1000)) {
            let mut expected = values.clone();
            expected.sort_by(f64::total_cmp);
            sort(&mut values);
            prop_assert_eq!(values, expected);
        }
    }
}
