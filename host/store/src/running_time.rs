//! Running time: how long daemons have run on this database. Ages are counted in it, as the wall clock may be wrong: a
//! board without an RTC boots in the past, and one step of the clock must not make everything too old.
//!
//! The time is written to `meta` every hour and at the end of an orderly run; a crash loses what was not written. Time
//! in which the board is off does not count.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::row::{Decoder, write_varint};

/// Interval of writing the time, which costs a commit.
const WRITE_EVERY: Duration = Duration::from_secs(3600);

/// Marks within the maximum age: how precise an age is.
const MARKS: u32 = 16;

#[derive(Debug)]
pub(super) struct RunningTime {
    /// As of `since`.
    before: Duration,
    since: Instant,
    written: Duration,
}

impl RunningTime {
    /// `stored`: what [`Self::write`] returned last.
    pub(super) fn new(stored: Option<&[u8]>, now: Instant) -> Self {
        let secs = stored.and_then(|bytes| Some(u64::from_le_bytes(bytes.try_into().ok()?))).unwrap_or(0);
        let before = Duration::from_secs(secs);
        Self { before, since: now, written: before }
    }

    pub(super) fn at(&self, now: Instant) -> Duration {
        self.before.saturating_add(now.saturating_duration_since(self.since))
    }

    /// Returns the value to store if it is time. `closing`: the run ends.
    pub(super) fn write(&mut self, now: Instant, closing: bool) -> Option<[u8; 8]> {
        let at = self.at(now);
        let passed = at.saturating_sub(self.written);
        if passed < WRITE_EVERY && !(closing && passed >= Duration::from_secs(1)) {
            return None;
        }
        self.written = at;
        Some(at.as_secs().to_le_bytes())
    }
}

/// Ages of rows by their ids, which only grow: the last ids as of some moments of the running time.
#[derive(Debug)]
pub(super) struct Ages<const N: usize> {
    max_age: Option<Duration>,
    /// Oldest first. The first may be older than the maximum age.
    marks: VecDeque<(Duration, [u64; N])>,
}

impl<const N: usize> Ages<N> {
    /// `stored`: what [`Self::mark`] returned last. Without it, all rows are new.
    pub(super) fn new(max_age: Option<Duration>, stored: Option<&[u8]>) -> Self {
        let mut decoder = Decoder { row: stored.unwrap_or_default(), at: 0 };
        let mut marks = VecDeque::new();
        while let Ok(secs) = decoder.varint() {
            let Some(ids) = (0..N).map(|_| decoder.varint().ok()).collect::<Option<Vec<u64>>>() else { break };
            let ids = ids.try_into().expect("as many as were read");
            marks.push_back((Duration::from_secs(secs), ids));
        }
        Self { max_age, marks }
    }

    /// With places for further rows, which are all new.
    pub(super) fn widen<const M: usize>(self) -> Ages<M> {
        let wide = |ids: [u64; N]| std::array::from_fn(|n| ids.get(n).copied().unwrap_or(0));
        Ages { max_age: self.max_age, marks: self.marks.into_iter().map(|(at, ids)| (at, wide(ids))).collect() }
    }

    /// Remembers the last ids if it is time. Returns the value to store.
    pub(super) fn mark(&mut self, now: Duration, last: [u64; N]) -> Option<Vec<u8>> {
        let max_age = self.max_age?;
        if last == [0; N] {
            return None;
        }
        if let Some((at, ids)) = self.marks.back()
            && (*ids == last || now.saturating_sub(*at) < max_age / MARKS)
        {
            return None;
        }
        // The time is stored in seconds: no row may seem older than it is.
        self.marks.push_back((Duration::from_secs(now.as_secs() + 1), last));
        // Of those that are too old, the newest knows more than the others.
        while self.marks.get(1).is_some_and(|(at, _)| *at + max_age < now) {
            self.marks.pop_front();
        }
        let mut row = Vec::new();
        for (at, ids) in &self.marks {
            [at.as_secs()].iter().chain(ids).for_each(|number| write_varint(&mut row, *number));
        }
        Some(row)
    }

    /// Rows up to these ids are too old.
    pub(super) fn expired_through(&self, now: Duration) -> [u64; N] {
        let Some(max_age) = self.max_age else { return [0; N] };
        let too_old = self.marks.iter().take_while(|(at, _)| *at + max_age < now);
        too_old.last().map_or([0; N], |(_, ids)| *ids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn running_time_continues_from_where_it_was_written() {
        let start = Instant::now();
        let mut time = RunningTime::new(None, start);
        assert_eq!(time.write(start + HOUR / 2, false), None);
        let stored = time.write(start + HOUR, false).unwrap();
        assert_eq!(time.write(start + HOUR, true), None);
        let mut time = RunningTime::new(Some(&stored), start);
        assert_eq!(time.at(start + HOUR), 2 * HOUR);
        let stored = time.write(start + HOUR / 2, true).unwrap();
        assert_eq!(RunningTime::new(Some(&stored), start).at(start), 3 * HOUR / 2);
    }

    #[test]
    fn rows_are_too_old_once_they_have_waited_for_the_maximum_age() {
        let mut ages = Ages::<1>::new(Some(16 * HOUR), None);
        let mut stored = None;
        for hour in 0..100 {
            let now = hour * HOUR;
            stored = ages.mark(now, [u64::from(hour)]).or(stored);
            // A restart in between changes nothing.
            ages = Ages::new(Some(16 * HOUR), stored.as_deref());
            let [through] = ages.expired_through(now);
            let oldest_kept = hour.saturating_sub(u32::try_from(through).unwrap());
            assert!(hour < 18 || (16..=18).contains(&oldest_kept), "{oldest_kept} hours are kept at {hour}");
            assert!(ages.marks.len() < 20, "{} marks", ages.marks.len());
        }
    }

    #[test]
    fn marks_of_three_streams_keep_their_ages_when_there_are_more() {
        let mut ages = Ages::<3>::new(Some(HOUR), None);
        let stored = ages.mark(HOUR, [5, 6, 7]).unwrap();
        let ages: Ages<5> = Ages::<3>::new(Some(HOUR), Some(&stored)).widen();
        assert_eq!(ages.expired_through(3 * HOUR), [5, 6, 7, 0, 0]);
    }

    #[test]
    fn a_database_without_marks_has_only_new_rows() {
        let mut ages = Ages::<3>::new(Some(HOUR), None);
        assert_eq!(ages.expired_through(1000 * HOUR), [0; 3]);
        ages.mark(1000 * HOUR, [5, 6, 7]).unwrap();
        assert_eq!(ages.expired_through(1001 * HOUR), [0; 3]);
        assert_eq!(ages.expired_through(1002 * HOUR), [5, 6, 7]);
    }
}
