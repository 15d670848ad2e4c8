//! Due times that have run.

/// Ranges that are kept. A clock that is set ahead and back leaves one more.
const MAX_RANGES: usize = 8;

/// Due times that have run, as ranges of Unix time in milliseconds, in ascending order: within one, all of them have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ran(Vec<(u64, u64)>);

impl Ran {
    pub(super) fn new(ranges: &[(u64, u64)]) -> Self {
        Self(ranges.to_vec())
    }

    pub(super) fn ranges(&self) -> &[(u64, u64)] {
        &self.0
    }

    /// The last time of the range that has this one.
    pub(super) fn end_around(&self, due_ms: u64) -> Option<u64> {
        self.0.iter().find(|(first, last)| (*first..=*last).contains(&due_ms)).map(|(_, last)| *last)
    }

    /// Adds a time that has not run. `next`: the due time after another.
    pub(super) fn add(&mut self, due_ms: u64, next: impl Fn(u64) -> Option<u64>) {
        let place = self.0.iter().take_while(|(first, _)| *first < due_ms).count();
        self.0.insert(place, (due_ms, due_ms));
        self.join(place, &next);
        if place > 0 {
            self.join(place - 1, &next);
        }
        if self.0.len() > MAX_RANGES {
            // Rather leave out what lies between than run anything twice.
            let (_, last) = self.0.remove(1);
            self.0[0].1 = last;
        }
    }

    /// Makes a range and the one behind it one if no due time lies between.
    fn join(&mut self, place: usize, next: impl Fn(u64) -> Option<u64>) {
        if let (Some((_, last)), Some((first, end))) = (self.0.get(place), self.0.get(place + 1))
            && next(*last) == Some(*first)
        {
            self.0[place].1 = *end;
            self.0.remove(place + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Due every 10.
    fn ran(times: &[u64]) -> Ran {
        let mut ran = Ran::default();
        times.iter().for_each(|time| ran.add(*time, |after| Some(after - after % 10 + 10)));
        ran
    }

    #[test]
    fn times_in_a_row_are_one_range() {
        assert_eq!(ran(&[10, 20, 30]).ranges(), [(10, 30)]);
        assert_eq!(ran(&[10, 30, 20]).ranges(), [(10, 30)]);
        assert_eq!(ran(&[30, 10, 500, 490]).ranges(), [(10, 10), (30, 30), (490, 500)]);
        let ran = ran(&[10, 20, 500]);
        assert_eq!((ran.end_around(10), ran.end_around(20), ran.end_around(30)), (Some(20), Some(20), None));
    }

    #[test]
    fn there_are_few_ranges_and_no_time_is_forgotten() {
        let times: Vec<u64> = (0..20).map(|n| 100 * (n * 7 % 20)).collect();
        for many in 1..times.len() {
            let mut ran = Ran::default();
            for time in &times[..many] {
                if ran.end_around(*time).is_none() {
                    ran.add(*time, |after| Some(after + 10));
                }
            }
            assert!(ran.ranges().len() <= MAX_RANGES && ran.ranges().is_sorted(), "{ran:?}");
            assert!(times[..many].iter().all(|time| ran.end_around(*time).is_some()), "{ran:?}");
        }
    }
}
