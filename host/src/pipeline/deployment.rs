//! How versions take each other's places while messages flow.
//!
//! A version is loaded by every worker before it serves. From then on new messages go to it; those that were handed out
//! before are finished by the one before, and order holds because all versions of a function share its keys, its state
//! and its places in the workers. Only where a version orders its messages in another way than the one before, the
//! function's jobs are called back first.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::function::{Edition, Function};
use super::parking::Key;
use super::quarantine::Quarantine;
use super::recall::Recall;
use super::trial::{Candidate, Difference, Judgement, Tally};
use super::unit::{From, Unit, key_of, untoken};
use super::window::UnitId;
use super::{MAX_FUNCTIONS, Pipeline};
use crate::manifest::{Manifest, Trial, TrialMode};
use crate::message::{Digest, Failure, FailureCode, Scope, Usage};
use crate::router;
use crate::time;
use crate::worker::pool::Loadable;

/// A version to be put into service.
#[derive(Clone, Debug)]
pub struct Deployment {
    pub manifest: Arc<Manifest>,
    pub digest: Digest,
    /// Its edition was never used before in the life of this process; its number and name are given here.
    pub loadable: Loadable,
    /// `None`: it serves at once.
    pub trial: Option<Trial>,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Every worker has loaded it, and messages go to it.
    Ready,
    NotLoaded {
        error: String,
    },
    Progress {
        tally: Tally,
        samples: Vec<Difference>,
    },
    Passed,
    Failed {
        failure: Failure,
    },
}

/// Loaded, or about to be.
pub(super) struct Pending {
    number: usize,
    edition: Rc<Edition>,
    trial: Option<Trial>,
    /// The workers have it; it waits for jobs to be called back.
    loaded: bool,
}

/// Where a shadow begins if it has no state of its own yet: with that of the function.
pub(super) fn state_to_begin_with(scope: &Scope) -> Option<Scope> {
    let (function, _) = scope.function.split_once(SHADOW)?;
    Some(Scope { function: function.into(), topic: scope.topic.clone() })
}

/// Stands between a function's name and the trial of a version that runs as its shadow, in the name under which that one
/// keeps its state. No function's name holds it.
const SHADOW: char = '~';

impl Pipeline {
    /// Loads a version; it serves, or its trial begins, when all workers have it.
    pub fn deploy(&mut self, deployment: Deployment, now: Instant) {
        self.put(deployment, false, now);
    }

    /// `has_run`: the workers have had it under another number, so that nobody needs to see first whether they can load it.
    fn put(&mut self, deployment: Deployment, has_run: bool, now: Instant) {
        let name = Arc::clone(&deployment.manifest.name);
        let is_first = self.function_named(&name).is_none_or(|number| self.functions[number].serving().is_none());
        let is_shadow = deployment.trial.as_ref().is_some_and(|trial| trial.mode == TrialMode::Shadow) && !is_first;
        let number = if is_shadow {
            self.end_shadow(&name);
            // Of this trial alone: what an earlier one of the same module left must not be taken for its state.
            let trial = format!("{}-{}-{:x}", deployment.digest, deployment.loadable.edition, time::now_ms());
            self.place(&format!("{name}{SHADOW}{trial}").into())
        } else {
            self.place(&name)
        };
        let Some(number) = number else {
            let error = format!("{MAX_FUNCTIONS} functions have run since the start; restart the daemon");
            self.tell(&name, deployment.loadable.edition, Event::NotLoaded { error });
            return;
        };
        // It is loaded anew under the function's own number when it is promoted.
        let kept = is_shadow.then(|| deployment.clone());
        let Deployment { manifest, loadable, trial, .. } = deployment;
        let terms = trial.map(|trial| if is_shadow { trial } else { Trial { mode: TrialMode::Live, ..trial } });
        let name = Arc::clone(&self.functions[number].name);
        self.functions[number].deployment = kept;
        let edition = loadable.edition;
        self.pool.load(Loadable { number: number as u32, name, ..loadable }, terms.is_some());
        let edition = Rc::new(Edition::new(edition, manifest, terms.is_some()));
        // What waits already is older.
        self.forget_pending(number);
        let keeps_keys = self.functions[number].serving().is_none_or(|serving| serving.has_keys_of(&edition));
        if terms.is_none() && (is_first || has_run && keeps_keys) {
            // Jobs reach a worker behind the code that they need.
            self.begin(number, &edition, None, now);
        }
        self.pending.push(Pending { number, edition, trial: terms, loaded: false });
    }

    pub fn loaded(&mut self, number: u32, edition: u32, error: Option<String>, now: Instant, now_ms: u64) {
        let number = number as usize;
        let is_it = |it: &Pending| it.number == number && it.edition.number == edition;
        let Some(place) = self.pending.iter().position(is_it) else { return };
        let name = self.reported_name(number);
        let serves = self.functions[number].edition(edition).is_some();
        match error {
            Some(error) => {
                self.pending.remove(place);
                if serves {
                    tracing::error!(
                        function = &*name,
                        error,
                        "a worker could not load a function: its messages become dead letters"
                    );
                } else {
                    self.pool.unload(number as u32, edition);
                }
                self.tell(&name, edition, Event::NotLoaded { error });
            }
            None if serves => {
                self.pending.remove(place);
                self.tell(&name, edition, Event::Ready);
            }
            None => {
                self.pending[place].loaded = true;
                self.begin_pending(number, now, now_ms);
            }
        }
    }

    /// Begins what is loaded, calling the function's jobs back first where their order is another.
    fn begin_pending(&mut self, number: usize, now: Instant, now_ms: u64) {
        let Some(place) = self.pending.iter().position(|it| it.number == number && it.loaded) else { return };
        let edition = &self.pending[place].edition;
        let function = &self.functions[number];
        let keeps_keys = function.serving().is_none_or(|serving| serving.has_keys_of(edition));
        if !keeps_keys && function.drain.is_some() {
            // Its end comes back here.
            return;
        }
        if !keeps_keys && function.jobs_under_way() > 0 {
            self.drain(number, now, now_ms);
            return;
        }
        let Pending { edition, trial, .. } = self.pending.remove(place);
        self.begin(number, &edition, trial, now);
        if !keeps_keys {
            self.rekey(number);
        }
        let name = self.reported_name(number);
        self.tell(&name, edition.number, Event::Ready);
    }

    /// What waits in the store is put under the keys of the version that serves now. No job of the function is running.
    fn rekey(&mut self, number: usize) {
        if let Some(serving) = self.functions[number].serving() {
            let scope = serving.manifest.state;
            self.parking.rekey(number, |message| key_of(number, scope, message));
        }
    }

    fn begin(&mut self, number: usize, edition: &Rc<Edition>, trial: Option<Trial>, now: Instant) {
        let is_shadow = self.functions[number].is_shadow;
        if let Some(older) = self.functions[number].candidate.take() {
            self.retire(number, older.edition);
        }
        let function = &mut self.functions[number];
        match trial {
            Some(terms) => {
                function.candidate = Some(Candidate::new(Rc::clone(edition), terms, now));
                self.timed.insert(number);
            }
            None => {
                if let Some(older) = function.proven.replace(Rc::clone(edition)) {
                    self.retire(number, older);
                }
            }
        }
        if is_shadow {
            let main = self.reported_name(number);
            if let Some(main) = self.function_named(&main) {
                self.functions[main].shadow = Some(number);
                self.functions[number].shadow_of = Some(main);
            }
        } else {
            self.serves_anew(number, now);
        }
    }

    /// Another version serves than a moment ago.
    fn serves_anew(&mut self, number: usize, now: Instant) {
        let function = &mut self.functions[number];
        let older = std::mem::replace(&mut function.quarantine, Quarantine::new(self.settings.quarantine));
        if older.is_paused() {
            function.metrics.quarantined.set(0);
            self.turn.changed.push(number);
        }
        function.warned_without_upstream = false;
        let every = function.serving().and_then(|edition| edition.manifest.every);
        function.next_tick = every.map(|every| now + every);
        self.timed.insert(number);
        self.turn.routes_changed = true;
    }

    /// The function runs no more. What it still has under way is finished.
    pub fn remove_function(&mut self, name: &str, now: Instant) {
        self.end_shadow(name);
        let Some(number) = self.function_named(name) else { return };
        self.forget_pending(number);
        let function = &mut self.functions[number];
        let editions = function.candidate.take().map(|it| it.edition).into_iter().chain(function.proven.take());
        for edition in editions.collect::<Vec<_>>() {
            self.retire(number, edition);
        }
        self.serves_anew(number, now);
    }

    /// The version on trial, or about to be, is given up; the one before serves.
    pub fn drop_candidate(&mut self, name: &str, edition: u32, now: Instant, now_ms: u64) {
        if self.shadow_named(name).is_some_and(|number| self.has_candidate(number, edition)) {
            self.end_shadow(name);
            return;
        }
        let Some(number) = self.function_named(name) else { return };
        if self.pending.iter().any(|it| it.number == number && it.edition.number == edition) {
            self.forget_pending(number);
        }
        if self.has_candidate(number, edition) {
            self.roll_back(number, now, now_ms);
        }
    }

    /// A shadow takes the active version's place; a version on trial is believed.
    pub fn promote(&mut self, name: &str, edition: u32, now: Instant) {
        if let Some(number) = self.shadow_named(name).filter(|number| self.has_candidate(*number, edition)) {
            let deployment = self.functions[number].deployment.take();
            self.end_shadow(name);
            if let Some(deployment) = deployment {
                self.put(Deployment { trial: None, ..deployment }, true, now);
            }
        } else if let Some(number) = self.function_named(name).filter(|number| self.has_candidate(*number, edition)) {
            self.believe(number);
        }
    }

    /// The version on trial has proven itself.
    fn believe(&mut self, number: usize) {
        let function = &mut self.functions[number];
        let Some(candidate) = function.candidate.take() else { return };
        candidate.edition.is_unproven.set(false);
        if let Some(older) = function.proven.replace(candidate.edition) {
            self.retire(number, older);
        }
        self.turn.routes_changed = true;
    }

    fn has_candidate(&self, number: usize, edition: u32) -> bool {
        let candidate = self.functions[number].candidate.as_ref();
        candidate.is_some_and(|it| it.edition.number == edition)
            || self.pending.iter().any(|it| it.number == number && it.edition.number == edition)
    }

    fn forget_pending(&mut self, number: usize) {
        let Self { pending, pool, functions, .. } = self;
        pending.retain(|it| {
            let gone = it.number == number && functions[number].edition(it.edition.number).is_none();
            if gone {
                pool.unload(number as u32, it.edition.number);
            }
            !gone
        });
    }

    /// Ends a version's running beside the active one.
    pub fn end_shadow(&mut self, name: &str) {
        let Some(number) = self.shadow_named(name) else { return };
        self.forget_pending(number);
        self.functions[number].deployment = None;
        if let Some(main) = self.functions[number].shadow_of.take() {
            self.functions[main].shadow = None;
        }
        if let Some(candidate) = self.functions[number].candidate.take() {
            self.retire(number, candidate.edition);
        }
    }

    // ---- trials ----

    /// Counts a run of the version on trial, which may end it.
    pub(super) fn tried(&mut self, number: usize, edition: u32, failure: Option<&Failure>, now: Instant, now_ms: u64) {
        let function = &mut self.functions[number];
        let tolerant = match (&function.proven, &function.candidate) {
            (Some(proven), Some(candidate)) => proven.has_keys_of(&candidate.edition),
            _ => true,
        };
        let Some(candidate) = function.candidate.as_mut().filter(|it| it.edition.number == edition) else { return };
        let judgement = candidate.ran(failure, tolerant);
        self.judge(number, judgement, now, now_ms);
    }

    /// Ends the trial if it is over, one way or the other, and tells how it goes.
    pub(super) fn judge(&mut self, number: usize, judgement: Option<Judgement>, now: Instant, now_ms: u64) {
        let name = self.reported_name(number);
        let Some(candidate) = self.functions[number].candidate.as_mut() else { return };
        let edition = candidate.edition.number;
        let judgement = judgement.or_else(|| candidate.judge(now));
        if let Some((tally, samples)) = candidate.progress(now) {
            self.tell(&name, edition, Event::Progress { tally, samples });
        }
        let is_shadow = self.functions[number].is_shadow;
        match judgement {
            None => {}
            // It goes on until it is promoted.
            Some(Judgement::Passed) if is_shadow => self.tell(&name, edition, Event::Passed),
            Some(Judgement::Passed) => {
                self.believe(number);
                self.tell(&name, edition, Event::Passed);
            }
            Some(Judgement::Failed(failure)) => {
                if is_shadow {
                    self.end_shadow(&name);
                } else {
                    self.roll_back(number, now, now_ms);
                }
                self.tell(&name, edition, Event::Failed { failure });
            }
        }
    }

    fn roll_back(&mut self, number: usize, now: Instant, now_ms: u64) {
        let Some(candidate) = self.functions[number].candidate.take() else { return };
        let keeps_keys =
            self.functions[number].proven.as_ref().is_none_or(|proven| proven.has_keys_of(&candidate.edition));
        self.retire(number, candidate.edition);
        self.serves_anew(number, now);
        if !keeps_keys {
            self.drain(number, now, now_ms);
        }
    }

    /// Trials that end by the clock.
    pub(super) fn judge_due(&mut self, now: Instant, now_ms: u64) {
        for number in self.timed.iter().copied().collect::<Vec<_>>() {
            if self.functions[number].candidate.is_some() {
                self.judge(number, None, now, now_ms);
            }
        }
    }

    // ---- what is run again ----

    /// Runs a message again with another version: the one on trial has misbehaved over it.
    pub(super) fn run_again(&mut self, id: UnitId, number: usize, failed: &Edition, now: Instant, now_ms: u64) {
        let Some(Some(unit)) = self.units.get(id) else { return };
        let function = &self.functions[number];
        let Some(other) = function.proven.as_ref().map(|edition| edition.number) else { return };
        let key = key_of(number, failed.manifest.state, &unit.message);
        if let Some(drain) = &mut self.functions[number].drain {
            drain.again.push((id, other));
            return;
        }
        if let Some(recall) = self.recalls.get_mut(&key) {
            recall.again.push((id, other));
            return;
        }
        let recall = self.recall(&key, failed, router::hash(&unit.message.topic));
        self.recalls.insert(key.clone(), Recall { again: vec![(id, other)], ..recall });
        self.end_recall(&key, now, now_ms);
    }

    /// The first of a key asked for another run, and is parked: what was sent behind it comes back first, so that nothing
    /// newer is put between.
    pub(super) fn recall_key(&mut self, key: &Key, edition: &Edition, topic_hash: u64) {
        if self.functions[key.0].drain.is_some() || self.recalls.contains_key(key) {
            return;
        }
        let recall = self.recall(key, edition, topic_hash);
        if recall.outstanding > 0 || !recall.waiting.is_empty() {
            self.recalls.insert(key.clone(), recall);
        }
    }

    /// Calls back the jobs of one key.
    fn recall(&mut self, key: &Key, edition: &Edition, topic_hash: u64) -> Recall {
        let worker = self.place_of(key.0, edition.scope(), topic_hash);
        let recalled = self.pool.recall(worker, key.0 as u32, key.1.as_deref());
        let waiting = self.take_back(key.0, &recalled.tokens);
        Recall { outstanding: recalled.outstanding, waiting, ..Recall::default() }
    }

    /// Calls back all jobs of a function.
    fn drain(&mut self, number: usize, now: Instant, now_ms: u64) {
        let mut drain = self.functions[number].drain.take().unwrap_or_default();
        let keys: Vec<Key> = self.recalls.keys().filter(|key| key.0 == number).cloned().collect();
        for key in keys {
            drain.absorb(self.recalls.remove(&key).unwrap_or_default());
        }
        for worker in 0..self.pool.len() {
            let recalled = self.pool.recall(worker, number as u32, None);
            drain.waiting.extend(self.take_back(number, &recalled.tokens));
        }
        self.functions[number].drain = Some(drain);
        self.end_drain(number, now, now_ms);
    }

    /// Jobs that the pool gives back unsent.
    fn take_back(&mut self, number: usize, tokens: &[(u64, u32)]) -> Vec<UnitId> {
        let mut units = Vec::with_capacity(tokens.len());
        for (token, edition) in tokens {
            self.answered(number, *edition);
            units.push(untoken(*token).0);
        }
        units
    }

    /// One job of the version is under way no more.
    pub(super) fn answered(&mut self, number: usize, edition: u32) -> Option<Rc<Edition>> {
        let function = &mut self.functions[number];
        let edition = Rc::clone(function.edition(edition)?);
        let left = edition.jobs.get().saturating_sub(1);
        edition.jobs.set(left);
        if left == 0
            && let Some(place) = function.retired.iter().position(|it| it.number == edition.number)
        {
            function.retired.remove(place);
            self.pool.unload(number as u32, edition.number);
        }
        Some(edition)
    }

    /// A job has been answered. `was_recalled`: its key had been called back before that.
    pub(super) fn recall_answered(&mut self, key: &Key, was_recalled: bool, now: Instant, now_ms: u64) {
        if self.functions[key.0].drain.is_some() {
            self.end_drain(key.0, now, now_ms);
        } else if let Some(recall) = self.recalls.get_mut(key).filter(|_| was_recalled) {
            recall.outstanding = recall.outstanding.saturating_sub(1);
            self.end_recall(key, now, now_ms);
        }
    }

    fn end_recall(&mut self, key: &Key, now: Instant, now_ms: u64) {
        if self.recalls.get(key).is_some_and(|recall| recall.outstanding == 0)
            && let Some(recall) = self.recalls.remove(key)
        {
            self.resume(key.0, recall, now, now_ms);
        }
    }

    fn end_drain(&mut self, number: usize, now: Instant, now_ms: u64) {
        if self.functions[number].jobs_under_way() > 0 {
            return;
        }
        let Some(mut drain) = self.functions[number].drain.take() else { return };
        // What came from the store goes back to its place there, to be started under the keys of the version that serves.
        let mut unstart = |id: UnitId| match self.units.get(id) {
            Some(Some(Unit { from: From::Parked { key }, .. })) => {
                self.parking.stopped(key);
                true
            }
            _ => false,
        };
        let mut parked: Vec<UnitId> = drain.again.extract_if(.., |(id, _)| unstart(*id)).map(|(id, _)| id).collect();
        for list in [&mut drain.returned, &mut drain.waiting] {
            parked.extend(list.extract_if(.., |id| unstart(*id)));
        }
        for id in parked {
            self.remove(id);
        }
        self.begin_pending(number, now, now_ms);
        self.rekey(number);
        self.resume(number, drain, now, now_ms);
    }

    /// Starts everything in the order in which it came. Other functions have the same messages in that order; if one had
    /// them in another, two messages could wait for each other to be committed.
    fn resume(&mut self, number: usize, recall: Recall, now: Instant, now_ms: u64) {
        let mut jobs = recall.into_jobs();
        jobs.sort_by_key(|(id, _)| self.units[*id].as_ref().map(|unit| unit.arrival));
        for (id, edition) in jobs {
            let function = &self.functions[number];
            let edition = edition.and_then(|edition| function.edition(edition).or(function.serving()).cloned());
            match edition {
                Some(edition) => self.submit(id, number, &edition, true),
                None => self.start(id, number, now, now_ms),
            }
        }
    }

    /// The store failed: no job that was under way is any more.
    pub(super) fn forget_jobs(&mut self) {
        for number in 0..self.functions.len() {
            let function = &mut self.functions[number];
            let retired = std::mem::take(&mut function.retired);
            function.drain = None;
            for edition in function.current() {
                edition.jobs.set(0);
            }
            for edition in retired {
                self.pool.unload(number as u32, edition.number);
            }
        }
    }

    // ---- places ----

    fn retire(&mut self, number: usize, edition: Rc<Edition>) {
        if edition.jobs.get() == 0 {
            self.pool.unload(number as u32, edition.number);
        } else {
            self.functions[number].retired.push(edition);
        }
    }

    fn place(&mut self, name: &Arc<str>) -> Option<usize> {
        if let Some(number) = self.function_named(name) {
            return Some(number);
        }
        if self.functions.len() >= MAX_FUNCTIONS {
            return None;
        }
        // The figures of a shadow are not those of the function that serves.
        let is_shadow = name.contains(SHADOW);
        let metrics = if is_shadow { Arc::default() } else { self.metrics.function(name) };
        let function = Function::new(Arc::clone(name), metrics, self.settings.quarantine);
        self.functions.push(Function { is_shadow, ..function });
        Some(self.functions.len() - 1)
    }

    fn function_named(&self, name: &str) -> Option<usize> {
        self.functions.iter().position(|it| *it.name == *name)
    }

    fn shadow_named(&self, name: &str) -> Option<usize> {
        let is_it = |it: &Function| it.name.split_once(SHADOW).is_some_and(|(main, _)| main == name);
        let is_alive = |(number, it): &(usize, &Function)| {
            it.candidate.is_some() || self.pending.iter().any(|pending| pending.number == *number)
        };
        self.functions.iter().enumerate().filter(|(_, it)| is_it(it)).find(is_alive).map(|(number, _)| number)
    }

    /// The name that a version was pushed under.
    fn reported_name(&self, number: usize) -> Arc<str> {
        let name = &self.functions[number].name;
        name.split_once(SHADOW).map_or_else(|| Arc::clone(name), |(main, _)| main.into())
    }

    fn tell(&mut self, name: &Arc<str>, edition: u32, event: Event) {
        self.turn.deployed.push((Arc::clone(name), edition, event));
    }

    /// A message that waited for a function which is removed meanwhile.
    pub(super) fn fail_removed(&mut self, id: UnitId, number: usize, now_ms: u64) {
        let detail = format!("{} is not installed any more", self.functions[number].name);
        let failure = Failure { code: FailureCode::Removed, detail };
        self.fail(id, number, "", failure, Usage::default(), now_ms);
        self.finish_job(id);
    }
}
