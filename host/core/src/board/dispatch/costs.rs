//! What the runs of each function take, and what part of its share each function uses.
//!
//! The share of a function is an equal part of the time of the workers that functions have in common, among those that ran.

use std::time::{Duration, Instant};

use crate::board::ids::FunctionNo;

/// Expected time of a run before any was measured.
const FIRST_US: u32 = 1_000;
/// The last run counts one part in this many.
const WEIGHT: u32 = 8;
/// Shares are measured over this time.
const PERIOD: Duration = Duration::from_secs(10);
/// A function whose runs are shorter than this on average disturbs nobody by more than its turn.
const LONG_US: u32 = 10_000;

pub(crate) struct Costs {
    functions: Vec<Cost>,
    since: Instant,
}

#[derive(Clone, Copy)]
struct Cost {
    mean_us: u32,
    has_run: bool,
    /// In this period.
    used_us: u64,
    /// In the period before, in thousandths of its share.
    share: u32,
}

/// A period that is over.
pub(crate) struct Measured {
    /// Functions that ran in it or in the one before, with the part of their share that they used, in thousandths.
    pub(crate) shares: Vec<(FunctionNo, u32)>,
    /// Functions that used more than their share in long runs, while others ran.
    pub(crate) excessive: Vec<Excessive>,
}

pub(crate) struct Excessive {
    pub(crate) function: FunctionNo,
    pub(crate) mean: Duration,
    pub(crate) share: u32,
}

impl Costs {
    pub(crate) fn new(now: Instant) -> Self {
        Self { functions: Vec::new(), since: now }
    }

    pub(crate) fn of(&self, function: FunctionNo) -> u32 {
        self.functions.get(function.index()).map_or(FIRST_US, |it| it.mean_us)
    }

    /// What a run takes, as far as it was measured.
    pub(crate) fn measured(&self, function: FunctionNo) -> Option<Duration> {
        let cost = self.functions.get(function.index()).filter(|it| it.has_run)?;
        Some(Duration::from_micros(cost.mean_us.into()))
    }

    /// Whether runs take so long that others wait for more than their turn.
    pub(crate) fn are_long(&self, function: FunctionNo) -> bool {
        self.measured(function).is_some_and(|mean| mean > Duration::from_micros(LONG_US.into()))
    }

    pub(crate) fn ran(&mut self, function: FunctionNo, took_us: u32) {
        if self.functions.len() <= function.index() {
            self.functions
                .resize(function.index() + 1, Cost { mean_us: FIRST_US, has_run: false, used_us: 0, share: 0 });
        }
        let it = &mut self.functions[function.index()];
        it.mean_us = it.mean_us - it.mean_us / WEIGHT + took_us / WEIGHT;
        it.has_run = true;
        it.used_us += u64::from(took_us);
    }

    pub(crate) fn is_due(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= PERIOD
    }

    /// Ends the period. `own`: functions with a worker of their own, whose share is that worker. `shared`: number of the
    /// other workers.
    pub(crate) fn measure(&mut self, now: Instant, shared: usize, own: impl Fn(FunctionNo) -> bool) -> Measured {
        let period = now.saturating_duration_since(self.since);
        self.since = now;
        let numbers = (0..self.functions.len() as u32).map(FunctionNo);
        let active = numbers.clone().filter(|it| self.functions[it.index()].used_us > 0 && !own(*it)).count();
        let period_us = period.as_micros().max(1) as u64;
        let common_us = (period_us * shared as u64 / active.max(1) as u64).max(1);
        let mut measured = Measured { shares: Vec::new(), excessive: Vec::new() };
        for function in numbers {
            let it = &mut self.functions[function.index()];
            let is_own = own(function);
            let used_us = std::mem::take(&mut it.used_us);
            let share = u32::try_from(used_us * 1000 / if is_own { period_us } else { common_us }).unwrap_or(u32::MAX);
            if share > 0 || it.share > 0 {
                measured.shares.push((function, share));
            }
            it.share = share;
            if !is_own && active > 1 && share > 1000 && it.mean_us > LONG_US {
                let mean = Duration::from_micros(it.mean_us.into());
                measured.excessive.push(Excessive { function, mean, share });
            }
        }
        measured
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test may read clocks and files")]
mod tests {
    use super::*;

    const A: FunctionNo = FunctionNo(0);
    const B: FunctionNo = FunctionNo(1);

    fn measure(runs: &[(FunctionNo, u32, u32)]) -> (Vec<(FunctionNo, u32)>, Vec<FunctionNo>) {
        let now = Instant::now();
        let mut costs = Costs::new(now);
        for (function, times, took_us) in runs {
            (0..*times).for_each(|_| costs.ran(*function, *took_us));
        }
        assert!(!costs.is_due(now + Duration::from_secs(9)) && costs.is_due(now + Duration::from_secs(10)));
        let measured = costs.measure(now + Duration::from_secs(10), 2, |_| false);
        (measured.shares, measured.excessive.iter().map(|it| it.function).collect())
    }

    #[test]
    fn what_a_run_takes_is_learnt() {
        let mut costs = Costs::new(Instant::now());
        assert_eq!(costs.of(A), FIRST_US);
        (0..100).for_each(|_| costs.ran(B, 20));
        assert!((8..40).contains(&costs.of(B)), "{}", costs.of(B));
        assert_eq!((costs.of(A), costs.measured(A), costs.are_long(B)), (FIRST_US, None, false));
        (0..100).for_each(|_| costs.ran(B, 50_000));
        assert!(costs.are_long(B));
        assert!((45_000..=50_000).contains(&costs.of(B)), "{}", costs.of(B));
    }

    #[test]
    fn only_long_runs_beyond_the_share_are_excessive() {
        // Two workers for 10 s: the share of each of two functions is 10 s.
        assert_eq!(measure(&[(A, 300, 50_000), (B, 10, 1_000)]), (vec![(A, 1500), (B, 1)], vec![A]));
        assert_eq!(measure(&[(A, 150, 50_000), (B, 10, 1_000)]).1, [], "within its share");
        assert_eq!(measure(&[(A, 15_000, 1_000), (B, 10, 1_000)]).1, [], "others wait for no more than a turn");
        assert_eq!(measure(&[(A, 300, 50_000)]), (vec![(A, 750)], vec![]), "nobody else ran");
    }
}
