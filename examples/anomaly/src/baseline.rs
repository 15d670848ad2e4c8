//! What is usual for one sensor at this hour of the day, learnt from its readings.
//!
//! The forecast is that of Holt and Winters without a trend: a level and a season, both averages with exponential weights. What differs
//! from it by more than [`CLIP`] deviations is pulled in before it is learnt, as in Gelper, Fried and Croux, "Robust forecasting with
//! exponential and Holt-Winters smoothing", Journal of Forecasting 29 (2010), 285-300. An alert is raised by a control chart of moving
//! averages (Roberts, "Control chart tests based on geometric moving averages", Technometrics 1 (1959), 239-250) over the
//! errors of the forecast; Brutlag, "Aberrant behavior detection in time series for network monitoring", LISA 2000, does
//! the same with a window of errors.

use sedge_function::math::sqrt;

/// Errors count as at most this many standard deviations in what is learnt: k of Gelper, Fried and Croux. A fault does not become the
/// new usual, nor does it hide itself by widening the variance; a lasting change does become usual.
const CLIP: f64 = 2.0;

/// The standard deviation is taken to be at least this part of the level, so that the last digit of a very steady sensor
/// is no anomaly.
const FLOOR: f64 = 0.01;

/// Closer than this to the forecast, in standard deviations, the recent average is calm.
const CALM: f64 = 1.5;

/// The season begins to count, and alerts are raised, after this many days.
const DAYS_TO_LEARN: f64 = 3.0;

/// Days that the season's averages span.
const SEASON_DAYS: f64 = 7.0;

/// Readings that the averages span: few enough for an hourly sensor to notice, and as many as a sensor by the minute needs.
const MIN_FAST: f64 = 4.0;
const MAX_FAST: f64 = 36.0;
const MIN_SLOW: f64 = 100.0;
const MAX_SLOW: f64 = 13_000.0;
/// The same where the time is not known.
const UNTIMED_SLOW: f64 = 2_500.0;

const HOUR_MS: f64 = 3_600_000.0;
const DAY_MS: f64 = 24.0 * HOUR_MS;

pub struct Tuning {
    /// Time that counts as now.
    pub fast_ms: f64,
    /// Time that counts as usual.
    pub slow_ms: f64,
    /// Standard deviations between the two that are an anomaly.
    pub threshold: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Unusual,
    Usual,
}

/// How much each hour of the day differs from the level. It changes once an hour.
pub type Season = [f64; 24];

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Baseline {
    count: f64,
    /// Unix time in milliseconds of the first reading whose time is known, and of the last one.
    first_ms: f64,
    last_ms: f64,
    /// Average time between two readings.
    interval_ms: f64,
    /// Average of the recent errors, and their number since the last gap.
    fast: f64,
    fast_count: f64,
    pub level: f64,
    variance: f64,
    /// One more than the number of calm readings in a row while unusual, and 0 otherwise.
    unusual: f64,
    /// The hour that the last reading belongs to, and sum and number of its errors.
    hour: f64,
    hour_sum: f64,
    hour_count: f64,
}

/// What a reading said.
pub struct Observation {
    pub change: Option<Change>,
    /// The value that was forecast for it.
    pub usual: f64,
    /// The recent average, as a value at this hour.
    pub recent: f64,
    /// Whether the season has changed.
    pub season_changed: bool,
}

impl Baseline {
    pub fn from_state(state: [f64; 12]) -> Self {
        let [
            count,
            first_ms,
            last_ms,
            interval_ms,
            fast,
            fast_count,
            level,
            variance,
            unusual,
            hour,
            hour_sum,
            hour_count,
        ] = state;
        Self {
            count,
            first_ms,
            last_ms,
            interval_ms,
            fast,
            fast_count,
            level,
            variance,
            unusual,
            hour,
            hour_sum,
            hour_count,
        }
    }

    pub fn into_state(self) -> [f64; 12] {
        [
            self.count,
            self.first_ms,
            self.last_ms,
            self.interval_ms,
            self.fast,
            self.fast_count,
            self.level,
            self.variance,
            self.unusual,
            self.hour,
            self.hour_sum,
            self.hour_count,
        ]
    }

    /// Takes in one reading. `at_ms` is its Unix time, if that is known; after a season was learnt, readings without a time say
    /// nothing.
    pub fn observe(
        &mut self,
        at_ms: Option<f64>,
        value: f64,
        season: &mut Season,
        tuning: &Tuning,
    ) -> Option<Observation> {
        if self.count == 0.0 {
            self.level = value;
        }
        let at_ms = match at_ms {
            None if self.first_ms > 0.0 => return None,
            at_ms => at_ms.unwrap_or(0.0),
        };
        self.count += 1.0;
        let gap = self.pass_time(at_ms, tuning);
        if gap {
            (self.fast, self.fast_count) = (0.0, 0.0);
        }
        // Where recordings are replayed, or the sensor's own clock stands still, times say nothing.
        let timed = self.interval_ms >= 1000.0;
        let span = |span_ms: f64| span_ms / self.interval_ms;
        let (fast, slow) = match timed {
            true => (span(tuning.fast_ms).clamp(MIN_FAST, MAX_FAST), span(tuning.slow_ms).clamp(MIN_SLOW, MAX_SLOW)),
            false => (MAX_FAST, UNTIMED_SLOW),
        };
        let days = (self.last_ms - self.first_ms) / DAY_MS;
        let season_changed = timed && self.pass_hour(days, season);
        let usual = self.level + if timed { at_hour(season, at_ms) } else { 0.0 };
        let error = value - usual;

        let deviation = sqrt(self.variance).max(FLOOR * self.level.abs()).max(1e-9);
        let learnt = self.count > slow / 5.0 && (!timed || days > DAYS_TO_LEARN);
        self.fast_count += 1.0;
        // While there are fewer readings than an average spans, it is the plain average of what there is.
        self.fast += (error - self.fast) / fast.min(self.fast_count);
        let enough = self.fast_count >= (fast / 3.0).max(2.0);
        let distance = self.fast.abs() / deviation;
        let change = if learnt && enough { self.judge(distance, tuning.threshold, fast / 3.0) } else { None };

        let error = if learnt { error.clamp(-CLIP * deviation, CLIP * deviation) } else { error };
        let weight = 1.0 / slow.min(self.count);
        self.level += weight * error;
        // West 1979, for exponential weights.
        self.variance = (1.0 - weight) * (self.variance + weight * error * error);
        self.hour_sum += error;
        self.hour_count += 1.0;
        Some(Observation { change, usual, recent: usual + self.fast, season_changed })
    }

    /// Returns whether readings were missing for so long that the recent ones do not belong together.
    fn pass_time(&mut self, at_ms: f64, tuning: &Tuning) -> bool {
        if self.first_ms == 0.0 {
            (self.first_ms, self.last_ms) = (at_ms, at_ms);
            return false;
        }
        let step = at_ms - self.last_ms;
        self.last_ms = at_ms;
        if step <= 0.0 {
            return false;
        }
        let gap = step > tuning.fast_ms.max(4.0 * self.interval_ms);
        // One gap is not the new interval.
        let step = if self.interval_ms > 0.0 { step.min(3.0 * self.interval_ms) } else { step };
        self.interval_ms += (step - self.interval_ms) / (self.count - 1.0).min(50.0);
        gap && self.interval_ms >= 1000.0
    }

    /// Learns the season from the hour that is over, if one is.
    fn pass_hour(&mut self, days: f64, season: &mut Season) -> bool {
        let hour = whole(self.last_ms / HOUR_MS + 0.5);
        if hour == self.hour {
            return false;
        }
        let learns = self.hour > 0.0 && self.hour_count > 0.0;
        if learns {
            let weight = 1.0 / (days + 1.0).min(SEASON_DAYS);
            *part(season, self.hour) += weight * self.hour_sum / self.hour_count;
        }
        (self.hour, self.hour_sum, self.hour_count) = (hour, 0.0, 0.0);
        learns
    }

    fn judge(&mut self, distance: f64, threshold: f64, calm_readings: f64) -> Option<Change> {
        if self.unusual == 0.0 {
            if distance < threshold {
                return None;
            }
            self.unusual = 1.0;
            return Some(Change::Unusual);
        }
        self.unusual = if distance <= CALM.min(threshold) { self.unusual + 1.0 } else { 1.0 };
        if self.unusual <= calm_readings {
            return None;
        }
        self.unusual = 0.0;
        Some(Change::Usual)
    }
}

/// The season at a time: each value is that of a full hour, and between two of them lies a line.
fn at_hour(season: &mut Season, at_ms: f64) -> f64 {
    let hours = at_ms / HOUR_MS;
    let hour = whole(hours);
    let after = hours - hour;
    *part(season, hour) * (1.0 - after) + *part(season, hour + 1.0) * after
}

fn part(season: &mut Season, hour: f64) -> &mut f64 {
    &mut season[(hour as u64 % 24) as usize]
}

fn whole(value: f64) -> f64 {
    value as u64 as f64
}
