//! ```text
//! 1, newest: moment (9 bytes), then for each value, oldest first:
//!     age u32     milliseconds before the newest, u32::MAX if the clock was set in between
//!     value f64
//! ```

use alloc::vec::Vec;

use super::Moment;
use super::summary::{MAX_VALUES, Summary, require_finite};
use super::take;
use crate::Failure;

/// The last values, by number or by time, with their figures at every message. 10 bytes of state, and 12 for each value, of which
/// there are at most 1,000. Every value changes the state and thus costs a write; a [`Tumbling`](super::Tumbling) window without values
/// is smaller.
///
/// ```
/// use sedge_function::prelude::*;
/// use sedge_function::state::Sliding;
///
/// # fn handle(message: Message) -> Outcome {
/// let level = message.require_number("level")?;
/// // The last ten minutes, at most 120 values.
/// let window = Sliding::of_ms(600_000, 120).add("level", &message, level)?;
/// if window.rate().is_some_and(|per_second| per_second > 0.5) {
///     return Ok(vec![Alert::firing(message.topic, text!("rises, mean ", rounded(window.mean(), 1))).into()]);
/// }
/// # Ok(vec![])
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sliding {
    length_ms: Option<u32>,
    capacity: usize,
}

const VERSION: u8 = 1;
const UNKNOWN: u32 = u32::MAX;

struct Entry {
    age_ms: u32,
    value: f64,
}

struct Values {
    newest: Moment,
    entries: Vec<Entry>,
}

impl Sliding {
    /// The last values, so many of them, from 1 to 1,000.
    pub fn of_count(count: usize) -> Self {
        Self { length_ms: None, capacity: count.clamp(1, MAX_VALUES) }
    }

    /// The values of the last milliseconds, at most 49 days; and of more than `capacity` (1 to 1,000) the newest. Where moments cannot
    /// be compared the window begins anew.
    pub fn of_ms(length_ms: u64, capacity: usize) -> Self {
        let length_ms = u32::try_from(length_ms).unwrap_or(UNKNOWN).min(UNKNOWN - 1);
        Self { length_ms: Some(length_ms), capacity: capacity.clamp(1, MAX_VALUES) }
    }

    /// The figures with this value. NaN and infinity reject the message.
    pub fn add(&self, key: &str, at: impl Into<Moment>, value: f64) -> Result<Summary, Failure> {
        self.add_at(key, at.into(), value)
    }

    fn add_at(self, key: &str, at: Moment, value: f64) -> Result<Summary, Failure> {
        require_finite(key, value)?;
        let mut values = match Values::load(key)? {
            Some(values) => values.aged(at),
            None => Values { newest: at, entries: Vec::new() },
        };
        values.entries.push(Entry { age_ms: 0, value });
        self.evict(&mut values.entries);
        super::write(key, &values.encode())?;
        // The value that was added is there.
        Ok(values.summary().unwrap_or_else(|| Summary::of(value, at.unix_ms)))
    }

    /// The figures at this time without a new value, in a tick for example; `None` if the window is empty.
    pub fn summary(&self, key: &str, at: impl Into<Moment>) -> Result<Option<Summary>, Failure> {
        let Some(values) = Values::load(key)? else { return Ok(None) };
        let mut values = values.aged(at.into());
        self.evict(&mut values.entries);
        Ok(values.summary())
    }

    fn evict(self, entries: &mut Vec<Entry>) {
        if let Some(length_ms) = self.length_ms {
            entries.retain(|entry| entry.age_ms <= length_ms);
        }
        entries.drain(..entries.len().saturating_sub(self.capacity));
    }
}

impl Values {
    fn load(key: &str) -> Result<Option<Self>, Failure> {
        Ok(super::read(key)?.and_then(|bytes| Self::decode(&bytes)))
    }

    fn decode(mut bytes: &[u8]) -> Option<Self> {
        let [VERSION] = take(&mut bytes)? else { return None };
        let newest = Moment::decode(take(&mut bytes)?)?;
        let (entries, rest) = bytes.as_chunks::<12>();
        let entries: Option<Vec<Entry>> = entries.iter().map(|entry| Entry::decode(entry)).collect();
        entries.filter(|_| rest.is_empty()).map(|entries| Self { newest, entries })
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(10 + 12 * self.entries.len());
        bytes.push(VERSION);
        bytes.extend_from_slice(&self.newest.encode());
        for entry in &self.entries {
            bytes.extend_from_slice(&entry.age_ms.to_le_bytes());
            bytes.extend_from_slice(&entry.value.to_le_bytes());
        }
        bytes
    }

    /// The same values at another moment.
    fn aged(mut self, at: Moment) -> Self {
        let passed = at.since(self.newest);
        let passed_ms = passed.map_or(UNKNOWN, |ms| u32::try_from(ms).unwrap_or(UNKNOWN));
        self.newest = if passed.is_some() { self.newest.later(at) } else { at };
        for entry in &mut self.entries {
            entry.age_ms = entry.age_ms.saturating_add(passed_ms);
        }
        self
    }

    fn summary(&self) -> Option<Summary> {
        let (first, others) = self.entries.split_first()?;
        let mut summary = Summary::of(first.value, self.newest.unix_ms);
        let newest_age = others.last().unwrap_or(first).age_ms;
        if newest_age != UNKNOWN {
            summary.to_ms = summary.to_ms.saturating_sub(u64::from(newest_age));
        }
        summary.span_ms = (first.age_ms != UNKNOWN).then(|| u64::from(first.age_ms.saturating_sub(newest_age)));
        others.iter().for_each(|entry| summary.push(entry.value));
        summary.samples = self.entries.iter().map(|entry| entry.value).collect();
        Some(summary)
    }
}

impl Entry {
    fn decode(mut bytes: &[u8]) -> Option<Self> {
        let age_ms = u32::from_le_bytes(take(&mut bytes)?);
        let value = f64::from_le_bytes(take(&mut bytes)?);
        value.is_finite().then_some(Self { age_ms, value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state;
    use crate::testing::Board;
    use proptest::prelude::*;

    fn unsynced(unix_ms: u64) -> Moment {
        Moment { unix_ms, synced: false }
    }

    #[test]
    fn a_window_by_number_has_the_last_values() {
        let summaries = Board::new().with_state(|| {
            [1.0, 2.0, 3.0, 4.0]
                .map(|value| Sliding::of_count(3).add("k", Moment::at(1_000 * value as u64), value).unwrap())
        });
        assert_eq!(summaries.each_ref().map(|summary| summary.count), [1, 2, 3, 3]);
        let last = &summaries[3];
        assert_eq!((last.min, last.max, last.sum, last.first, last.last), (2.0, 4.0, 9.0, 2.0, 4.0));
        assert_eq!((last.to_ms, last.span_ms, last.rate()), (4_000, Some(2_000), Some(1.0)));
        assert_eq!(last.percentile(50.0), Some(3.0));
    }

    #[test]
    fn a_window_of_time_forgets_what_is_older_also_without_a_new_value() {
        let window = Sliding::of_ms(10_000, 100);
        Board::new().with_state(|| {
            assert_eq!(window.summary("k", Moment::at(0)), Ok(None));
            for second in [0, 5, 10, 15] {
                window.add("k", Moment::at(second * 1000), second as f64).unwrap();
            }
            let at = |seconds: u64| window.summary("k", Moment::at(seconds * 1000)).unwrap();
            assert_eq!(at(15).map(|summary| (summary.count, summary.first)), Some((3, 5.0)));
            let later = at(21).unwrap();
            assert_eq!((later.count, later.to_ms, later.span_ms), (1, 15_000, Some(0)));
            assert_eq!(at(26), None);
        });
    }

    #[test]
    fn a_clock_that_is_set_empties_a_window_of_time_and_leaves_one_by_number_without_a_rate() {
        Board::new().with_state(|| {
            for (key, window, counts) in
                [("time", Sliding::of_ms(10_000, 100), [1, 2, 1]), ("count", Sliding::of_count(9), [1, 2, 3])]
            {
                let mut summaries = Vec::new();
                for at in [unsynced(1_000), unsynced(2_000), Moment::at(1_767_610_933_000)] {
                    summaries.push(window.add(key, at, 1.0).unwrap());
                }
                let expected = summaries.iter().map(|summary| summary.count).collect::<Vec<_>>();
                assert_eq!(expected, counts, "{key}");
                assert_eq!(summaries[2].rate(), None);
            }
        });
    }

    #[test]
    fn readings_out_of_order_are_taken_as_they_come() {
        Board::new().with_state(|| {
            let window = Sliding::of_ms(10_000, 100);
            window.add("k", Moment::at(9_000), 1.0).unwrap();
            let summary = window.add("k", Moment::at(8_000), 2.0).unwrap();
            assert_eq!((summary.count, summary.to_ms, summary.span_ms), (2, 9_000, Some(0)));
        });
    }

    #[test]
    fn what_is_no_number_is_rejected_and_the_window_stays() {
        Board::new().with_state(|| {
            let window = Sliding::of_count(3);
            window.add("level", Moment::at(0), 1.0).unwrap();
            let why = "the window \"level\" takes numbers only, not NaN or infinity";
            assert_eq!(window.add("level", Moment::at(1), f64::NAN), Err(Failure::reject(why)));
            assert_eq!(window.summary("level", Moment::at(1)).unwrap().unwrap().count, 1);
        });
    }

    #[test]
    fn state_is_bounded() {
        let bytes = Board::new().with_state(|| {
            for index in 0..3000 {
                Sliding::of_ms(u64::MAX, usize::MAX).add("k", Moment::at(index), 1.0).unwrap();
            }
            state::get::<Vec<u8>>("k").unwrap().unwrap().len()
        });
        assert_eq!(bytes, 10 + 12 * 1000);
    }

    proptest! {
        #[test]
        fn has_what_a_list_of_all_values_has(
            steps in prop::collection::vec((0..5_000u64, -1e6..1e6f64), 1..60),
            length_ms in 1..20_000u64,
            capacity in 1..12usize,
        ) {
            let mut board = Board::new();
            let mut all: Vec<(u64, f64)> = Vec::new();
            let mut now = 1_767_610_933_000;
            for (step, value) in steps {
                now += step;
                all.push((now, value));
                let got = board.with_state(|| Sliding::of_ms(length_ms, capacity).add("k", Moment::at(now), value)).unwrap();
                let young: Vec<(u64, f64)> = all.iter().copied().filter(|(at, _)| now - at <= length_ms).collect();
                let window = &young[young.len().saturating_sub(capacity)..];
                let values = || window.iter().map(|(_, value)| *value);
                prop_assert_eq!(got.count as usize, window.len());
                prop_assert_eq!(got.sum, values().skip(1).fold(window[0].1, |sum, value| sum + value));
                prop_assert_eq!(got.min, values().fold(f64::INFINITY, f64::min));
                prop_assert_eq!(got.max, values().fold(f64::NEG_INFINITY, f64::max));
                prop_assert_eq!(got.span_ms, Some(now - window[0].0));
            }
        }
    }
}
