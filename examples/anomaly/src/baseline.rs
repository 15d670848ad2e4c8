//! What is usual for one sensor, learnt from its readings. Nothing here knows units, topics or the clock: all times are
//! counted in readings.

/// Outliers count as at most this many standard deviations in the slow average. Much larger, and a fault hides itself by
/// widening the variance; below 1 the variance could only shrink.
const CLIP: f64 = 1.75;

/// The standard deviation is taken to be at least this part of the level, so that the last digit of a very steady sensor
/// is no anomaly.
const FLOOR: f64 = 0.01;

/// Closer than this to usual, in standard deviations, a reading is calm...
const CALM: f64 = 1.5;

/// ...and after this many calm readings the anomaly is over.
const CALM_READINGS: f64 = 12.0;

pub struct Tuning {
    /// Readings that the fast average spans.
    pub fast: f64,
    /// Readings that the slow average spans.
    pub slow: f64,
    /// Standard deviations between the two that are an anomaly.
    pub threshold: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Unusual,
    Usual,
}

#[derive(Clone, Copy)]
pub struct Baseline {
    count: f64,
    /// Average of the recent readings.
    pub fast: f64,
    /// Average of all readings, outliers pulled in.
    pub mean: f64,
    variance: f64,
    unusual: bool,
    /// Calm readings in a row, while unusual.
    calm: f64,
}

impl Baseline {
    pub fn from_state([count, fast, mean, variance, unusual, calm]: [f64; 6]) -> Self {
        Self { count, fast, mean, variance, unusual: unusual != 0.0, calm }
    }

    pub fn into_state(self) -> [f64; 6] {
        [self.count, self.fast, self.mean, self.variance, f64::from(u8::from(self.unusual)), self.calm]
    }

    /// Takes in one reading. Says when the sensor becomes unusual and when it is usual again.
    pub fn observe(&mut self, value: f64, tuning: &Tuning) -> Option<Change> {
        if self.count == 0.0 {
            (self.fast, self.mean) = (value, value);
        }
        self.count += 1.0;
        let learnt = self.count > tuning.slow / 5.0;

        // While there are fewer readings than an average spans, it is the plain average of what there is.
        self.fast += (value - self.fast) / tuning.fast.min(self.count);
        let deviation = square_root(self.variance).max(FLOOR * self.mean.abs()).max(1e-9);
        let distance = (self.fast - self.mean).abs() / deviation;
        let change = if learnt { self.judge(distance, tuning.threshold) } else { None };

        let mut step = value - self.mean;
        if learnt {
            step = step.clamp(-CLIP * deviation, CLIP * deviation);
        }
        let weight = 1.0 / tuning.slow.min(self.count);
        self.mean += weight * step;
        // West 1979, for exponential weights.
        self.variance = (1.0 - weight) * (self.variance + weight * step * step);
        change
    }

    fn judge(&mut self, distance: f64, threshold: f64) -> Option<Change> {
        if !self.unusual {
            if distance < threshold {
                return None;
            }
            self.unusual = true;
            self.calm = 0.0;
            return Some(Change::Unusual);
        }
        self.calm = if distance <= CALM.min(threshold) { self.calm + 1.0 } else { 0.0 };
        if self.calm < CALM_READINGS {
            return None;
        }
        self.unusual = false;
        Some(Change::Usual)
    }
}

/// Newton's method: `core` has no square root. Halving the exponent gives a first guess within 6 %, and every step
/// doubles the number of right digits.
fn square_root(value: f64) -> f64 {
    if value <= 0.0 {
        return 0.0;
    }
    let mut root = f64::from_bits((value.to_bits() >> 1) + (1023 << 51));
    for _ in 0..4 {
        root = 0.5 * (root + value / root);
    }
    root
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::square_root;

    #[test]
    fn square_roots_are_right() {
        for value in [1e-18, 0.25, 2.0, 3.0, 10.0, 81.0, 1e9, 1.5e17] {
            assert!((square_root(value) / value.sqrt() - 1.0).abs() < 1e-15, "{value}");
        }
        assert_eq!(square_root(0.0), 0.0);
    }
}
