//! Order within a key, and the jobs that the workers have.
//!
//! A key is what runs one after the other: a function, or a function on one topic. Each key belongs to one worker, so a
//! worker's own order is the key's order. Three things interrupt it: a job that asked to run later ([`parking`]), a job
//! that another version runs again ([`recall`]), and a version that orders messages differently (a recall of the whole
//! function, called a drain).

mod costs;
mod parking;
mod recall;
mod slot;
mod turns;
pub mod workers;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::ids::{FunctionNo, JobId, UnitId, WorkerNo};
use super::input::Job;
use crate::manifest::StateScope;
use crate::message::Message;
use crate::mistakes::{Mistake, is_made};
use crate::router;
pub(crate) use costs::{Excessive, Measured};
pub(crate) use parking::{Parking, Ticket};
use recall::{Jobs, Recall};
pub(crate) use workers::Event;
pub use workers::WorkerConfig;
pub(crate) use workers::{StateRequest, Workers};

/// What is run in order: a function, or a function on one topic.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub(crate) function: FunctionNo,
    pub(crate) topic: Option<Arc<str>>,
}

pub(crate) struct Dispatch {
    pub(crate) workers: Workers,
    pub(crate) parking: Parking,
    recalls: BTreeMap<Key, Recall>,
    /// Recalls of whole functions.
    drains: BTreeMap<FunctionNo, Recall>,
    /// Functions that are given a worker of their own once their drain ends.
    moves: BTreeSet<FunctionNo>,
    /// Jobs that worked on state which is not stored: their answers do not count.
    discarded: BTreeSet<JobId>,
}

impl Key {
    pub(crate) fn new(function: FunctionNo, scope: StateScope, message: &Message) -> Self {
        let topic = match scope {
            StateScope::Function => None,
            StateScope::None | StateScope::Topic => Some(message.shared_state_topic()),
        };
        Self { function, topic }
    }

    pub(crate) fn of(job: &Job) -> Self {
        Self::new(job.id.function, job.scope, &job.message)
    }
}

impl Dispatch {
    pub(crate) fn new(workers: Workers) -> Self {
        Self {
            workers,
            parking: Parking::default(),
            recalls: BTreeMap::new(),
            drains: BTreeMap::new(),
            moves: BTreeSet::new(),
            discarded: BTreeSet::new(),
        }
    }

    /// Has the workers forget state of a function on these topics, or all of it if there are none.
    pub(crate) fn forget_state(&mut self, function: FunctionNo, topics: &[Option<Arc<str>>]) {
        if topics.is_empty() {
            return self.workers.of(function).into_iter().for_each(|it| self.workers.forget(it, function, Vec::new()));
        }
        let mut by_worker: BTreeMap<WorkerNo, Vec<Option<Arc<str>>>> = BTreeMap::new();
        for topic in topics {
            let worker = self.owner_of_key(&Key { function, topic: topic.clone() });
            by_worker.entry(worker).or_default().push(topic.clone());
        }
        for (worker, topics) in by_worker {
            self.workers.forget(worker, function, topics);
        }
    }

    /// Whether no worker has a job of the function on this topic.
    pub(crate) fn is_free(&self, function: FunctionNo, topic: &Option<Arc<str>>) -> bool {
        let worker = self.owner_of_key(&Key { function, topic: topic.clone() });
        self.workers.sent(worker, function, topic.as_deref()).next().is_none()
    }

    /// The worker forgets the state of a key, and its answers to jobs that it has of the key do not count.
    pub(crate) fn discard(&mut self, key: &Key) {
        let worker = self.owner_of_key(key);
        self.discarded.extend(self.workers.sent(worker, key.function, key.topic.as_deref()));
        self.workers.forget(worker, key.function, vec![key.topic.clone()]);
    }

    /// Whether the answer of a job does not count.
    pub(crate) fn take_discarded(&mut self, job: JobId) -> bool {
        !self.discarded.is_empty() && self.discarded.remove(&job)
    }

    /// Hands a job to the worker that owns its key. `may_wait`: its message holds up nobody, however long it waits.
    pub(crate) fn submit(&mut self, job: Job, may_wait: bool) {
        let worker = self.owner(job.id.function, job.scope, &job.message);
        self.workers.submit(worker, job, may_wait);
    }

    fn owner(&self, function: FunctionNo, scope: StateScope, message: &Message) -> WorkerNo {
        let is_shared = scope == StateScope::Function && !is_made(Mistake::SplitState);
        self.owner_of(function, (!is_shared).then_some(message.state_topic()))
    }

    fn owner_of_key(&self, key: &Key) -> WorkerNo {
        self.owner_of(key.function, key.topic.as_deref())
    }

    fn owner_of(&self, function: FunctionNo, topic: Option<&str>) -> WorkerNo {
        if let Some(own) = self.workers.own(function) {
            return own;
        }
        let hash = topic.map_or(function.0.into(), router::hash);
        WorkerNo((hash % self.workers.shared() as u64) as u32)
    }

    /// Whether jobs of the function are being called back, one key or all.
    pub(crate) fn is_in_order(&self, function: FunctionNo) -> bool {
        self.recalls.is_empty() && !self.drains.contains_key(&function)
    }

    pub(crate) fn is_draining(&self, function: FunctionNo) -> bool {
        self.drains.contains_key(&function)
    }

    pub(crate) fn is_recalled(&self, key: &Key) -> bool {
        self.recalls.contains_key(key)
    }

    /// Keeps a unit until its function's drain ends. `false`: there is none.
    pub(crate) fn wait_for_drain(&mut self, function: FunctionNo, unit: UnitId) -> bool {
        self.drains.get_mut(&function).map(|drain| drain.wait([unit])).is_some()
    }

    /// Keeps a unit until its key's recall ends. `false`: there is none.
    pub(crate) fn wait_for_recall(&mut self, key: &Key, unit: UnitId) -> bool {
        !self.recalls.is_empty() && self.recalls.get_mut(key).map(|recall| recall.wait([unit])).is_some()
    }

    /// A job came back without having run. `false`: nothing is being called back that explains it.
    pub(crate) fn returned(&mut self, key: &Key, unit: UnitId) -> bool {
        let recall = self.drains.get_mut(&key.function).or_else(|| self.recalls.get_mut(key));
        recall.map(|recall| recall.returned(unit)).is_some()
    }

    /// Has a unit run again, by another edition and before the others of its key, if its key or function is being called
    /// back already.
    pub(crate) fn run_again(&mut self, key: &Key, unit: UnitId, edition: u32) -> bool {
        let recall = self.drains.get_mut(&key.function).or_else(|| self.recalls.get_mut(key));
        recall.map(|recall| recall.run_again(unit, edition)).is_some()
    }

    /// Calls back the jobs of one key. Returns those that were never sent; [`Dispatch::begin_recall`] must follow.
    pub(crate) fn call_back(&mut self, key: &Key, scope: StateScope, message: &Message) -> workers::Recalled {
        let worker = self.owner(key.function, scope, message);
        self.workers.recall(worker, key.function, key.topic.as_deref())
    }

    /// Calls back the jobs of a whole function on one worker.
    pub(crate) fn call_back_all(&mut self, function: FunctionNo) -> Vec<workers::Recalled> {
        let workers = self.workers.of(function);
        workers.into_iter().map(|worker| self.workers.recall(worker, function, None)).collect()
    }

    /// Jobs that have waited for too long are parked once those before them in their key are answered.
    pub(crate) fn park_after(&mut self, key: Key, outstanding: &[JobId], waiting: Vec<UnitId>) {
        if let Some(recall) = self.recalls.get_mut(&key) {
            return recall.wait(waiting);
        }
        let recall = Recall::to_park(outstanding.iter().map(|job| job.unit), waiting);
        self.recalls.insert(key, recall);
    }

    /// `again`: a unit that runs before the others, and its edition.
    pub(crate) fn begin_recall(
        &mut self,
        key: Key,
        outstanding: &[JobId],
        waiting: Vec<UnitId>,
        again: Option<(UnitId, u32)>,
    ) {
        let mut recall = Recall::new(outstanding.iter().map(|job| job.unit), waiting);
        if let Some((unit, edition)) = again {
            recall.run_again(unit, edition);
        } else if recall.is_void() {
            return;
        }
        self.recalls.insert(key, recall);
    }

    /// Recalls of the function's keys become part of the drain.
    pub(crate) fn begin_drain(&mut self, function: FunctionNo, waiting: Vec<UnitId>) {
        let mut drain = self.drains.remove(&function).unwrap_or_default();
        for (_, recall) in self.recalls.extract_if(.., |key, _| key.function == function) {
            drain.absorb(recall);
        }
        drain.wait(waiting);
        self.drains.insert(function, drain);
    }

    /// A job of a key that is being called back was answered.
    pub(crate) fn recall_answered(&mut self, key: &Key, unit: UnitId) {
        if let Some(recall) = self.recalls.get_mut(key) {
            recall.answered(unit);
        }
    }

    /// Ends a recall that waits for no answer any more. Returns its jobs, and whether they are to be parked. `serving`: runs
    /// those at once that were handed out before all that is parked for this key came: they would wait behind it.
    pub(crate) fn end_recall(
        &mut self,
        key: &Key,
        serving: Option<u32>,
        arrival: impl Fn(UnitId) -> u64,
    ) -> Option<(Jobs, bool)> {
        self.recalls.get(key).filter(|recall| recall.is_answered())?;
        let mut recall = self.recalls.remove(key)?;
        if let Some(edition) = serving.filter(|_| !recall.parks()) {
            recall.run_returned(edition, |unit| self.parking.is_behind(key, arrival(unit)));
        }
        // Behind one that another version runs again they keep their place with it.
        let parks = recall.parks() && !recall.runs_again();
        Some((recall.into_jobs(), parks))
    }

    /// Ends a drain: no job of the function is under way. It gets the worker that it waits for.
    pub(crate) fn end_drain(&mut self, function: FunctionNo) -> Option<Jobs> {
        let drain = self.drains.remove(&function)?;
        if self.moves.remove(&function) {
            self.workers.set_apart(function);
        }
        Some(drain.into_jobs())
    }

    /// Gives a function a worker of its own: at once if it has no jobs under way, otherwise at the end of a drain, which
    /// must follow. `false`: it has one, or will.
    pub(crate) fn set_apart(&mut self, function: FunctionNo, jobs_under_way: usize) -> bool {
        if self.workers.own(function).is_some() || self.moves.contains(&function) {
            return false;
        }
        if jobs_under_way == 0 && !self.is_draining(function) {
            self.workers.set_apart(function);
            return false;
        }
        self.moves.insert(function);
        !self.is_draining(function)
    }

    /// Nothing that was handed out or parked counts any more.
    pub(crate) fn reset(&mut self) {
        self.workers.reset();
        self.parking = Parking::default();
        self.recalls.clear();
        self.drains.clear();
        self.discarded.clear();
        for function in std::mem::take(&mut self.moves) {
            self.workers.set_apart(function);
        }
    }
}
