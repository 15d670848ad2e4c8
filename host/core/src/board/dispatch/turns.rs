//! Jobs that wait for room at their worker: each function in turn, by the time that its runs take.
//!
//! Deficit round robin. A function whose turn it is gets a quantum of time; it pays for its jobs with what they are expected
//! to take, and later with what they took. Within a function jobs keep their order.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::Key;
use crate::board::ids::FunctionNo;
use crate::board::input::Job;

/// Time that a function gets in its turn.
const QUANTUM_US: i64 = 5_000;
/// A function never owes more than this, so that it is not shut out for a misjudged run.
const MAX_DEBT_US: i64 = 1_000_000;
/// A message that waits longer than this for its worker is parked: it must not hold up the acknowledgements of others.
pub(crate) const MAX_WAIT: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(crate) struct Turns {
    flows: BTreeMap<FunctionNo, Flow>,
    /// Functions with jobs, the next one in front.
    order: VecDeque<FunctionNo>,
}

#[derive(Default)]
struct Flow {
    jobs: VecDeque<Waiting>,
    /// Negative: it used more than it was given.
    credit_us: i64,
}

struct Waiting {
    job: Job,
    since: Instant,
    /// Of a message that is acknowledged and in the store: it may wait.
    may_wait: bool,
}

impl Turns {
    pub(crate) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Adds a job. Returns how many of its function wait.
    pub(crate) fn push(&mut self, job: Job, may_wait: bool, since: Instant) -> usize {
        let function = job.id.function;
        let flow = self.flows.entry(function).or_default();
        if flow.jobs.is_empty() {
            self.order.push_back(function);
        }
        flow.jobs.push_back(Waiting { job, since, may_wait });
        flow.jobs.len()
    }

    pub(crate) fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.flows.values().flat_map(|flow| &flow.jobs).map(|waiting| &waiting.job)
    }

    /// Jobs of a function.
    pub(crate) fn count(&self, function: FunctionNo) -> usize {
        self.flows.get(&function).map_or(0, |flow| flow.jobs.len())
    }

    /// The next job, of the function whose turn it is.
    pub(crate) fn next(&mut self) -> Option<&Job> {
        loop {
            let function = *self.order.front()?;
            let flow = self.flows.get_mut(&function).expect("a function with a turn has jobs");
            if flow.credit_us > 0 {
                break;
            }
            flow.credit_us += QUANTUM_US;
            self.order.rotate_left(1);
        }
        let function = self.order.front()?;
        self.flows.get(function)?.jobs.front().map(|waiting| &waiting.job)
    }

    /// Takes the next job, with the time since which it waits. `cost_us`: what a run of the function is expected to take.
    pub(crate) fn pop(&mut self, cost_us: impl Fn(FunctionNo) -> u32) -> Option<(Job, Instant)> {
        let function = self.next()?.id.function;
        let flow = self.flows.get_mut(&function).expect("a function with a turn has jobs");
        flow.credit_us -= i64::from(cost_us(function));
        let Waiting { job, since, .. } = flow.jobs.pop_front().expect("a function with a turn has jobs");
        if flow.jobs.is_empty() {
            self.order.pop_front();
            self.end_turn(function);
        }
        Some((job, since))
    }

    /// Unused credit ends with the jobs, a debt with the contention.
    fn end_turn(&mut self, function: FunctionNo) {
        if self.order.is_empty() {
            self.flows.clear();
        } else if let Some(flow) = self.flows.get_mut(&function) {
            flow.credit_us = flow.credit_us.min(0);
        }
    }

    /// A run took another time than was expected.
    pub(crate) fn correct(&mut self, function: FunctionNo, expected_us: u32, took_us: u32) {
        if let Some(flow) = self.flows.get_mut(&function) {
            flow.credit_us = (flow.credit_us + i64::from(expected_us) - i64::from(took_us)).max(-MAX_DEBT_US);
        }
    }

    /// Takes out the jobs of a function that match.
    pub(crate) fn extract(&mut self, function: FunctionNo, matches: impl Fn(&Job) -> bool) -> Vec<Job> {
        self.extract_waiting(function, |waiting| matches(&waiting.job))
    }

    fn extract_waiting(&mut self, function: FunctionNo, matches: impl Fn(&Waiting) -> bool) -> Vec<Job> {
        let Some(flow) = self.flows.get_mut(&function) else { return Vec::new() };
        let (taken, kept): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut flow.jobs).into_iter().partition(matches);
        flow.jobs = kept;
        if flow.jobs.is_empty() && !taken.is_empty() {
            self.order.retain(|it| *it != function);
            self.end_turn(function);
        }
        taken.into_iter().map(|waiting| waiting.job).collect()
    }

    /// Takes out the jobs of a function that have waited for too long, or all that may be parked, with those behind them in
    /// their keys.
    pub(crate) fn take_late(&mut self, function: FunctionNo, all: bool, now: Instant) -> Vec<Job> {
        let Some(flow) = self.flows.get(&function) else { return Vec::new() };
        let is_late = |it: &&Waiting| !it.may_wait && (all || it.since + MAX_WAIT <= now);
        let keys: BTreeSet<Key> = flow.jobs.iter().filter(is_late).map(|it| Key::of(&it.job)).collect();
        if keys.is_empty() {
            return Vec::new();
        }
        self.extract_waiting(function, |it| !it.may_wait && keys.contains(&Key::of(&it.job)))
    }

    /// When a message of each function has waited for too long.
    pub(crate) fn late_at(&self) -> impl Iterator<Item = (FunctionNo, Instant)> {
        let oldest = |flow: &Flow| flow.jobs.iter().find(|it| !it.may_wait).map(|it| it.since + MAX_WAIT);
        self.flows.iter().filter_map(move |(function, flow)| Some((*function, oldest(flow)?)))
    }

    pub(crate) fn clear(&mut self) {
        self.flows.clear();
        self.order.clear();
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test may read clocks and files")]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::board::ids::{JobId, UnitId};
    use crate::manifest::StateScope;
    use crate::message::Message;

    fn job(function: u32, unit: u32, topic: &str) -> Job {
        Job {
            id: JobId { unit: UnitId(unit), function: FunctionNo(function) },
            edition: 1,
            scope: StateScope::Topic,
            resumes: false,
            on_trial: false,
            keeps_draws: false,
            weight: crate::board::Weight::default(),
            message: Arc::new(Message::new(topic, Bytes::new(), 0, true)),
        }
    }

    fn units(jobs: &[Job]) -> Vec<u32> {
        jobs.iter().map(|job| job.id.unit.0).collect()
    }

    /// Jobs that are taken until one of the functions has none, by function.
    fn take(costs: [u32; 2]) -> [u32; 2] {
        let now = Instant::now();
        let mut turns = Turns::default();
        for unit in 0..1000 {
            turns.push(job(unit % 2, unit, "t"), false, now);
        }
        let mut taken = [0, 0];
        while taken.iter().all(|it| *it < 500) {
            let (job, _) = turns.pop(|function| costs[function.index()]).unwrap();
            taken[job.id.function.index()] += 1;
        }
        taken
    }

    #[test]
    fn functions_get_equal_time_and_not_equal_jobs() {
        let [a, b] = take([1_000, 1_000]);
        assert!(a.abs_diff(b) <= 5, "{a} {b}");
        let [a, b] = take([100, 10_000]);
        assert!(a == 500 && (4..=7).contains(&b), "{a} {b}");
    }

    #[test]
    fn a_run_that_took_longer_than_expected_is_paid_later() {
        let now = Instant::now();
        let mut turns = Turns::default();
        for unit in 0..100 {
            turns.push(job(unit % 2, unit, "t"), false, now);
        }
        let (first, _) = turns.pop(|_| 100).unwrap();
        turns.correct(first.id.function, 100, 50_100);
        let next: Vec<u32> = (0..40).map(|_| turns.pop(|_| 100).unwrap().0.id.function.0).collect();
        assert!(next.iter().all(|it| *it != first.id.function.0), "{next:?}");
    }

    #[test]
    fn late_jobs_are_taken_with_those_behind_them_in_their_keys() {
        let now = Instant::now();
        let at = |ms| now + Duration::from_millis(ms);
        let mut turns = Turns::default();
        for (unit, topic, ms) in [(1, "a", 0), (2, "b", 500), (3, "a", 900), (4, "c", 1000)] {
            turns.push(job(0, unit, topic), false, at(ms));
        }
        turns.push(job(0, 5, "d"), true, at(0));
        turns.push(job(1, 6, "a"), false, at(800));
        assert_eq!(turns.late_at().collect::<Vec<_>>(), [(FunctionNo(0), at(1000)), (FunctionNo(1), at(1800))]);
        assert!(turns.take_late(FunctionNo(0), false, at(999)).is_empty());
        assert_eq!(units(&turns.take_late(FunctionNo(0), false, at(1000))), [1, 3]);
        assert_eq!(units(&turns.take_late(FunctionNo(0), true, at(1000))), [2, 4]);
        assert_eq!(turns.late_at().collect::<Vec<_>>(), [(FunctionNo(1), at(1800))], "what is in the store may wait");
        let rest: Vec<Job> = std::iter::from_fn(|| turns.pop(|_| 100)).map(|(job, _)| job).collect();
        let mut rest = units(&rest);
        rest.sort_unstable();
        assert_eq!(rest, [5, 6]);
        assert!(turns.is_empty());
    }
}
