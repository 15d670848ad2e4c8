//! Order within a key, and the jobs that the workers have.
//!
//! A key is what runs one after the other: a function, or a function on one topic. Each key belongs to one worker, so a
//! worker's own order is the key's order. Three things interrupt it: a job that asked to run later ([`parking`]), a job
//! that another version runs again ([`recall`]), and a version that orders messages differently (a recall of the whole
//! function, called a drain).

mod parking;
mod recall;
mod slot;
pub mod workers;

use std::collections::BTreeMap;
use std::sync::Arc;

use super::ids::{FunctionNo, JobId, UnitId, WorkerNo};
use super::input::Job;
use crate::manifest::StateScope;
use crate::message::Message;
use crate::mistakes::{Mistake, is_made};
use crate::router;
pub(crate) use parking::{Parking, Ticket};
use recall::Recall;
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
}

impl Key {
    pub(crate) fn new(function: FunctionNo, scope: StateScope, topic: &Arc<str>) -> Self {
        let topic = match scope {
            StateScope::Function => None,
            StateScope::None | StateScope::Topic => Some(Arc::clone(topic)),
        };
        Self { function, topic }
    }
}

impl Dispatch {
    pub(crate) fn new(workers: Workers) -> Self {
        Self { workers, parking: Parking::default(), recalls: BTreeMap::new(), drains: BTreeMap::new() }
    }

    /// Hands a job to the worker that owns its key.
    pub(crate) fn submit(&mut self, job: Job) {
        let worker = self.owner(job.id.function, job.scope, &job.message);
        self.workers.submit(worker, job);
    }

    fn owner(&self, function: FunctionNo, scope: StateScope, message: &Message) -> WorkerNo {
        let hash = match scope {
            StateScope::Function if !is_made(Mistake::SplitState) => function.0.into(),
            StateScope::Function | StateScope::None | StateScope::Topic => router::hash(&message.topic),
        };
        WorkerNo((hash % self.workers.count() as u64) as u32)
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
        (0..self.workers.count()).map(|n| self.workers.recall(WorkerNo(n as u32), function, None)).collect()
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

    /// Ends a recall that waits for no answer any more. Returns its jobs.
    pub(crate) fn end_recall(&mut self, key: &Key) -> Option<Vec<(UnitId, Option<u32>)>> {
        self.recalls.get(key).filter(|recall| recall.is_answered())?;
        self.recalls.remove(key).map(Recall::into_jobs)
    }

    /// Ends a drain: no job of the function is under way.
    pub(crate) fn end_drain(&mut self, function: FunctionNo) -> Option<Vec<(UnitId, Option<u32>)>> {
        self.drains.remove(&function).map(Recall::into_jobs)
    }

    /// Nothing that was handed out or parked counts any more.
    pub(crate) fn reset(&mut self) {
        self.workers.reset();
        self.parking = Parking::default();
        self.recalls.clear();
        self.drains.clear();
    }
}
