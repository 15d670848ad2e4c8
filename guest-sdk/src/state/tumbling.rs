//! ```text
//! 1, last: moment (9 bytes), span u64 (u64::MAX if the clock was set), stride u32, count u32,
//! sum, min, max, first, last: f64, then the kept values: f64
//! ```

use alloc::vec::Vec;

use super::Moment;
use super::summary::{MAX_VALUES, Summary, require_finite};
use super::take;
use crate::Failure;

/// One window after the other: figures of each minute, of each hundred values. 66 bytes of state, and 8 for each value that is kept for
/// percentiles.
///
/// A window of time begins at a multiple of its length since 1970 in UTC, and ends with the first message after it: without messages a
/// tick (`every`) or a wake ends it by [`poll`](Self::poll). It also ends where moments cannot be compared.
///
/// ```
/// use sedge_function::prelude::*;
/// use sedge_function::state::Tumbling;
///
/// # fn handle(message: Message) -> Outcome {
/// let power = message.require_number("power")?;
/// let Some(hour) = Tumbling::of_ms(3_600_000).keep(64).add("power", &message, power)? else { return Ok(vec![]) };
/// let object = JsonObject::new().number("mean", hour.mean()).number("max", hour.max);
/// Ok(vec![Output::forward_json("power/hourly", object)])
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tumbling {
    length: Length,
    keep: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Length {
    Ms(u64),
    Count(u32),
}

const VERSION: u8 = 1;
const UNKNOWN: u64 = u64::MAX;

/// A window that has not ended.
struct Open {
    last: Moment,
    /// Every value of so many is kept: twice as many whenever there is no more room.
    stride: u32,
    summary: Summary,
}

impl Tumbling {
    /// Windows of so many values; 0 counts as 1.
    pub fn of_count(count: u32) -> Self {
        Self { length: Length::Count(count.max(1)), keep: 0 }
    }

    /// Windows of so many milliseconds; 0 counts as 1.
    pub fn of_ms(length_ms: u64) -> Self {
        Self { length: Length::Ms(length_ms.max(1)), keep: 0 }
    }

    /// Keeps values for percentiles, 2 to 1,000. Of a window that has more, every second one is dropped, then every second one of the
    /// rest, and so on; count, sum, mean, minimum and maximum are of all.
    pub fn keep(self, values: usize) -> Self {
        Self { keep: values.clamp(2, MAX_VALUES), ..self }
    }

    /// The window that ended: with this value if it is full by count, or before it by time. NaN and infinity reject the message.
    pub fn add(&self, key: &str, at: impl Into<Moment>, value: f64) -> Result<Option<Summary>, Failure> {
        self.add_at(key, at.into(), value)
    }

    fn add_at(self, key: &str, at: Moment, value: f64) -> Result<Option<Summary>, Failure> {
        require_finite(key, value)?;
        let mut ended = None;
        let open = match Open::load(key)? {
            Some(open) if self.is_over(&open, at) => {
                ended = Some(open.summary);
                None
            }
            open => open,
        };
        let open = match open {
            Some(open) => self.pushed(open, at, value),
            None => Open::of(at, value, self.keep > 0),
        };
        match self.length {
            Length::Count(count) if open.summary.count >= count => {
                super::remove(key)?;
                Ok(Some(open.summary))
            }
            _ => {
                super::write(key, &open.encode())?;
                Ok(ended)
            }
        }
    }

    /// The window of time that is over, without a new value.
    pub fn poll(&self, key: &str, at: impl Into<Moment>) -> Result<Option<Summary>, Failure> {
        let at = at.into();
        match Open::load(key)? {
            Some(open) if self.is_over(&open, at) => {
                super::remove(key)?;
                Ok(Some(open.summary))
            }
            _ => Ok(None),
        }
    }

    fn is_over(self, open: &Open, at: Moment) -> bool {
        let Length::Ms(length_ms) = self.length else { return false };
        let (Some(_), Some(span_ms)) = (at.since(open.last), open.summary.span_ms) else { return true };
        let first_ms = open.last.unix_ms.saturating_sub(span_ms);
        first_ms / length_ms != open.last.later(at).unix_ms / length_ms
    }

    fn pushed(self, mut open: Open, at: Moment, value: f64) -> Open {
        let before = open.summary.count;
        let passed = at.since(open.last);
        let span = open.summary.span_ms.zip(passed).map(|(span_ms, passed_ms)| span_ms.saturating_add(passed_ms));
        open.summary.span_ms = span.filter(|ms| *ms != UNKNOWN);
        open.last = if passed.is_some() { open.last.later(at) } else { at };
        open.summary.to_ms = open.last.unix_ms;
        open.summary.push(value);
        let samples = &mut open.summary.samples;
        while self.keep > 0 && samples.len() >= self.keep {
            let mut index = 0;
            samples.retain(|_| {
                index += 1;
                index % 2 == 1
            });
            open.stride = open.stride.saturating_mul(2);
        }
        if self.keep > 0 && before.is_multiple_of(open.stride) {
            samples.push(value);
        }
        open
    }
}

impl Open {
    fn of(at: Moment, value: f64, keeps: bool) -> Self {
        let mut summary = Summary::of(value, at.unix_ms);
        if keeps {
            summary.samples.push(value);
        }
        Self { last: at, stride: 1, summary }
    }

    fn load(key: &str) -> Result<Option<Self>, Failure> {
        Ok(super::read(key)?.and_then(|bytes| Self::decode(&bytes)))
    }

    fn encode(&self) -> Vec<u8> {
        let summary = &self.summary;
        let mut bytes = Vec::with_capacity(66 + 8 * summary.samples.len());
        bytes.push(VERSION);
        bytes.extend_from_slice(&self.last.encode());
        bytes.extend_from_slice(&summary.span_ms.unwrap_or(UNKNOWN).to_le_bytes());
        bytes.extend_from_slice(&self.stride.to_le_bytes());
        bytes.extend_from_slice(&summary.count.to_le_bytes());
        let figures = [summary.sum, summary.min, summary.max, summary.first, summary.last];
        for value in figures.iter().chain(&summary.samples) {
            bytes.extend_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    fn decode(mut bytes: &[u8]) -> Option<Self> {
        let [VERSION] = take(&mut bytes)? else { return None };
        let last = Moment::decode(take(&mut bytes)?)?;
        let span_ms = u64::from_le_bytes(take(&mut bytes)?);
        let stride = u32::from_le_bytes(take(&mut bytes)?);
        let count = u32::from_le_bytes(take(&mut bytes)?);
        let (values, rest) = bytes.as_chunks::<8>();
        let mut values = values.iter().map(|value| f64::from_le_bytes(*value));
        let sum = values.next()?;
        let [min, max, first, last_value] = [values.next()?, values.next()?, values.next()?, values.next()?];
        let samples: Vec<f64> = values.collect();
        // A sum may be infinite.
        let valid = rest.is_empty()
            && stride > 0
            && count > 0
            && !sum.is_nan()
            && [min, max, first, last_value].iter().chain(&samples).all(|value| value.is_finite())
            && min <= max;
        let span_ms = Some(span_ms).filter(|ms| *ms != UNKNOWN);
        let summary = Summary { count, sum, min, max, first, last: last_value, to_ms: last.unix_ms, span_ms, samples };
        valid.then_some(Self { last, stride, summary })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state;
    use crate::testing::Board;
    use proptest::prelude::*;

    #[test]
    fn a_window_by_number_ends_with_its_last_value() {
        let ended = Board::new().with_state(|| {
            let window = Tumbling::of_count(3).keep(10);
            [1.0, 5.0, 3.0, 7.0].map(|value| window.add("k", Moment::at(1_000 * value as u64), value).unwrap())
        });
        assert_eq!(ended.each_ref().map(Option::is_some), [false, false, true, false]);
        let summary = ended[2].as_ref().unwrap();
        assert_eq!((summary.count, summary.mean(), summary.min, summary.max), (3, 3.0, 1.0, 5.0));
        assert_eq!((summary.first, summary.last, summary.percentile(50.0)), (1.0, 3.0, Some(3.0)));
    }

    #[test]
    fn a_window_of_time_ends_with_the_first_value_after_it_or_by_a_tick() {
        Board::new().with_state(|| {
            let window = Tumbling::of_ms(60_000);
            let add = |ms: u64, value: f64| window.add("k", Moment::at(ms), value).unwrap();
            assert_eq!(add(50_000, 1.0), None);
            assert_eq!(add(59_999, 3.0), None);
            let minute = add(60_000, 5.0).unwrap();
            assert_eq!((minute.count, minute.sum, minute.to_ms, minute.span_ms), (2, 4.0, 59_999, Some(9_999)));
            assert_eq!(window.poll("k", Moment::at(119_999)), Ok(None));
            assert_eq!(window.poll("k", Moment::at(120_000)).unwrap().map(|minute| minute.sum), Some(5.0));
            assert_eq!(window.poll("k", Moment::at(180_000)), Ok(None));
            assert_eq!(state::keys(), Ok(Vec::new()));
        });
    }

    #[test]
    fn a_value_that_is_late_by_seconds_belongs_to_the_open_window() {
        Board::new().with_state(|| {
            let window = Tumbling::of_ms(60_000);
            assert_eq!(window.add("k", Moment::at(61_000), 1.0), Ok(None));
            assert_eq!(window.add("k", Moment::at(59_000), 2.0), Ok(None));
            assert_eq!(window.add("k", Moment::at(120_000), 2.0).unwrap().map(|minute| minute.count), Some(2));
        });
    }

    #[test]
    fn a_clock_that_is_set_ends_a_window_of_time_and_takes_the_rate_of_one_by_number() {
        let unsynced = Moment { unix_ms: 1_000, synced: false };
        Board::new().with_state(|| {
            assert_eq!(Tumbling::of_ms(60_000).add("time", unsynced, 1.0), Ok(None));
            let ended = Tumbling::of_ms(60_000).add("time", Moment::at(2_000), 2.0).unwrap().unwrap();
            assert_eq!((ended.count, ended.sum), (1, 1.0));
            assert_eq!(Tumbling::of_count(2).add("count", unsynced, 1.0), Ok(None));
            let ended = Tumbling::of_count(2).add("count", Moment::at(9_000), 2.0).unwrap().unwrap();
            assert_eq!((ended.count, ended.span_ms, ended.rate()), (2, None, None));
        });
    }

    #[test]
    fn percentiles_of_a_window_with_more_values_than_are_kept_are_near() {
        let summary = Board::new().with_state(|| {
            let window = Tumbling::of_count(10_000).keep(100);
            for value in 0..9_999 {
                assert_eq!(window.add("k", Moment::at(value), value as f64), Ok(None));
            }
            assert!(state::get::<Vec<u8>>("k").unwrap().unwrap().len() <= 66 + 8 * 100);
            window.add("k", Moment::at(9_999), 9_999.0).unwrap().unwrap()
        });
        assert_eq!((summary.count, summary.min, summary.max, summary.mean()), (10_000, 0.0, 9_999.0, 4_999.5));
        for percent in [5.0, 50.0, 95.0] {
            let got = summary.percentile(percent).unwrap();
            assert!((got - percent * 100.0).abs() < 200.0, "{got} is not near {percent} %");
        }
    }

    proptest! {
        #[test]
        fn every_value_is_in_one_window_and_that_is_its_own(
            steps in prop::collection::vec((0..40_000u64, -1e6..1e6f64), 1..80),
            length_ms in 1..100_000u64,
        ) {
            let window = Tumbling::of_ms(length_ms);
            let mut board = Board::new();
            let mut expected: Vec<(u64, Vec<f64>)> = Vec::new();
            let mut ended = Vec::new();
            let mut now = 1_767_610_933_000;
            for (step, value) in steps {
                now += step;
                match expected.last_mut() {
                    Some((number, values)) if *number == now / length_ms => values.push(value),
                    _ => expected.push((now / length_ms, Vec::from([value]))),
                }
                ended.extend(board.with_state(|| window.add("k", Moment::at(now), value)).unwrap());
            }
            ended.extend(board.with_state(|| window.poll("k", Moment::at(now + length_ms))).unwrap());
            prop_assert_eq!(ended.len(), expected.len());
            for (got, (number, values)) in ended.iter().zip(&expected) {
                prop_assert_eq!(got.count as usize, values.len());
                prop_assert_eq!(got.sum, values.iter().skip(1).fold(values[0], |sum, value| sum + value));
                prop_assert_eq!(got.to_ms / length_ms, *number);
            }
        }
    }
}
