//! The way of a version: loaded by every worker, then serving, on trial or beside as a shadow.
//!
//! Messages that come after a version begins go to it; those handed out before are finished by the one before. Order
//! holds because all versions of a function share its keys, its state and its workers. Only where a version orders
//! messages differently, the function's jobs are called back first.

use std::collections::BTreeSet;

use super::Board;
use super::dispatch::Key;
use super::ids::{FunctionNo, JobId, UnitId};
use super::receipt::Receipt;
use super::rollout::{Edition, Loaded, Placed, TrialEnd};
use crate::deploy::TrialEvent;
use crate::message::{Failure, Message};
use crate::version::Version;

impl Board {
    /// Loads a version. It serves, or its trial begins, when all workers have it.
    pub fn deploy(&mut self, version: Version) {
        self.place_version(version, false);
    }

    fn place_version(&mut self, version: Version, has_run: bool) {
        let (name, edition) = (version.manifest.name.clone(), version.edition);
        // A shadow of the same function gives way to another; a version that serves at once leaves it running.
        if let Some(trial) = &version.trial
            && trial.mode == crate::manifest::TrialMode::Shadow
        {
            self.end_shadow_of(&name);
        }
        let placed = match self.rollout.place(version, has_run, self.now) {
            Ok(placed) => placed,
            Err(error) => {
                let event = TrialEvent::NotLoaded { error };
                return self.effects.push_back(super::Effect::Deployed { function: name, edition, event });
            }
        };
        let Placed { function, edition, serves_at_once, superseded } = placed;
        if !self.rollout.function(function).is_shadow() {
            self.wakes.adopt(&name, function);
        }
        self.unload(superseded);
        if edition.version.is_awaited {
            let unload = self.rollout.begin_awaited(function, edition.number(), self.now);
            return self.unload(unload);
        }
        if edition.wants_own_worker() || self.dispatch.workers.one_each() {
            self.set_apart(function);
        }
        let settings = self.overlays.settings(edition.manifest());
        self.dispatch.workers.load(function, edition.version.clone(), settings);
        if serves_at_once {
            let unload = self.rollout.begin_at_once(function, edition.number(), self.now);
            self.unload(unload);
        }
    }

    /// Gives a function a worker of its own, so that no other waits behind it.
    pub(super) fn set_apart(&mut self, number: FunctionNo) {
        let under_way = self.rollout.function(number).jobs_under_way();
        if self.dispatch.set_apart(number, under_way) {
            self.drain(number);
        }
    }

    pub(super) fn version_loaded(&mut self, number: FunctionNo, edition: u32, error: Option<String>) {
        match self.rollout.loaded(number, edition, error) {
            Loaded::Failed { unload: true } => self.dispatch.workers.unload(number, edition),
            Loaded::Ready => self.begin_pending(number),
            Loaded::Failed { unload: false } | Loaded::Confirmed | Loaded::Unknown => {}
        }
    }

    /// Begins a version that is loaded. Calls the function's jobs back first where the version orders them differently.
    fn begin_pending(&mut self, number: FunctionNo) {
        let Some(edition) = self.rollout.next_pending(number) else { return };
        let keeps_keys = self.rollout.keeps_keys(number, edition);
        if !keeps_keys && self.dispatch.is_draining(number) {
            // The end of the drain comes back here.
            return;
        }
        if !keeps_keys && self.rollout.function(number).jobs_under_way() > 0 {
            return self.drain(number);
        }
        let unload = self.rollout.begin_pending(number, self.now);
        self.unload(unload);
        // Messages may have waited for it.
        self.dispatch.parking.wake();
        if !keeps_keys {
            self.rekey(number);
        }
    }

    /// Puts jobs that wait in the store under the keys of the version that serves now. No job of the function is running.
    fn rekey(&mut self, number: FunctionNo) {
        if let Some(scope) = self.rollout.function(number).serving().map(|serving| serving.scope()) {
            self.dispatch.parking.rekey(number, |message| Key::new(number, scope, message));
        }
    }

    pub fn unload(&mut self, versions: impl IntoIterator<Item = (FunctionNo, u32)>) {
        for (function, edition) in versions {
            self.dispatch.workers.unload(function, edition);
        }
    }

    /// The function runs no more. What it still has under way is finished.
    pub(super) fn remove_function(&mut self, name: &str) {
        self.end_shadow_of(name);
        if let Some(number) = self.rollout.find(name) {
            let unload = self.rollout.remove(number, self.now);
            self.unload(unload);
            self.end_recording_of(number);
        }
    }

    /// The version on trial, or about to be, is given up; the one before serves.
    pub(super) fn drop_candidate(&mut self, name: &str, edition: u32) {
        let Some(number) = self.rollout.find(name) else { return };
        if let Some(shadow) = self.rollout.find_shadow(number)
            && (self.rollout.is_candidate(shadow, edition) || self.rollout.is_pending(shadow, edition))
        {
            return self.end_shadow(shadow);
        }
        if self.rollout.is_pending(number, edition) {
            let unload = self.rollout.forget_pending(number);
            self.unload(unload);
        }
        if self.rollout.is_candidate(number, edition) {
            self.roll_back(number);
        }
    }

    /// A shadow takes the active version's place; a version on trial passes.
    pub fn promote(&mut self, name: &str, edition: u32) {
        let Some(number) = self.rollout.find(name) else { return };
        let shadow = self.rollout.find_shadow(number);
        if let Some(shadow) = shadow.filter(|shadow| self.rollout.is_candidate(*shadow, edition)) {
            // It is loaded anew under the function's own number.
            let serving = self.rollout.function(shadow).serving().expect("a candidate serves");
            let version = Version { trial: None, is_resumed: false, ..Version::clone(&serving.version) };
            self.end_shadow(shadow);
            self.place_version(version, true);
        } else if self.rollout.is_candidate(number, edition) {
            self.pass(number);
        }
    }

    /// The version on trial has proven itself.
    fn pass(&mut self, number: FunctionNo) {
        let unload = self.rollout.promote(number);
        self.unload(unload);
    }

    fn end_shadow_of(&mut self, name: &str) {
        let shadow = self.rollout.find(name).and_then(|number| self.rollout.find_shadow(number));
        if let Some(shadow) = shadow {
            self.end_shadow(shadow);
        }
    }

    fn end_shadow(&mut self, number: FunctionNo) {
        let unload = self.rollout.end_shadow(number);
        self.unload(unload);
        self.wakes.forget(Some(number), "");
    }

    // ---- trials ----

    /// Counts a run of the version on trial, which may end the trial.
    pub(super) fn tried(&mut self, number: FunctionNo, edition: u32, failure: Option<&Failure>) {
        if self.rollout.is_candidate(number, edition) {
            let end = self.rollout.tried(number, edition, failure);
            self.evaluate(number, end);
        }
    }

    /// Ends the trial if it is over, and reports its progress.
    pub fn evaluate(&mut self, number: FunctionNo, end: Option<TrialEnd>) {
        let Some(edition) = self.rollout.function(number).serving().map(|edition| edition.number()) else { return };
        let is_shadow = self.rollout.function(number).is_shadow();
        match self.rollout.evaluate(number, end, self.now) {
            None => {}
            Some(TrialEnd::Late) => {
                self.rollout.counts_as_active();
                self.rollout.report(number, edition, TrialEvent::Late);
            }
            Some(TrialEnd::Passed) => {
                // A shadow goes on until it is promoted.
                if !is_shadow {
                    self.pass(number);
                }
                self.rollout.report(number, edition, TrialEvent::Passed);
            }
            Some(TrialEnd::Failed(failure)) => {
                if is_shadow {
                    self.end_shadow(number);
                } else {
                    self.roll_back(number);
                }
                self.rollout.report(number, edition, TrialEvent::Failed { failure });
            }
        }
    }

    fn roll_back(&mut self, number: FunctionNo) {
        let (unload, keeps_keys) = self.rollout.roll_back(number, self.now);
        self.unload(unload);
        if !keeps_keys {
            self.drain(number);
        }
    }

    // ---- jobs that run again ----

    /// Runs a message again with another version: the one on trial misbehaved over it.
    pub(super) fn run_again(&mut self, id: UnitId, number: FunctionNo, failed: &Edition) {
        let other = self.rollout.function(number).fallback().expect("a version on trial has a fallback");
        let (edition, keeps_keys) = (other.number(), other.has_keys_of(failed));
        let message = self.ledger.unit(id).message.clone();
        let key = Key::new(number, failed.scope(), &message);
        if self.dispatch.run_again(&key, id, edition) {
            return;
        }
        if keeps_keys {
            self.recall(key.clone(), failed, &message, Some((id, edition)));
            self.end_recall(&key);
        } else {
            // Messages of other keys that came before must not be overtaken either: all jobs are called back first.
            self.dispatch.begin_drain(number, Vec::new());
            self.dispatch.run_again(&key, id, edition);
        }
    }

    /// Calls back the jobs of one key. `again`: the unit that runs before them.
    pub(super) fn recall(&mut self, key: Key, edition: &Edition, message: &Message, again: Option<(UnitId, u32)>) {
        let recalled = self.dispatch.call_back(&key, edition.scope(), message);
        let waiting = self.take_back(&recalled.unsent);
        self.dispatch.begin_recall(key, &recalled.outstanding, waiting, again);
    }

    /// Calls back all jobs of a function.
    pub fn drain(&mut self, number: FunctionNo) {
        let mut waiting = Vec::new();
        for recalled in self.dispatch.call_back_all(number) {
            waiting.extend(self.take_back(&recalled.unsent));
        }
        self.dispatch.begin_drain(number, waiting);
        self.end_drain(number);
    }

    /// Jobs that come back unsent.
    pub(super) fn take_back(&mut self, jobs: &[(JobId, u32)]) -> Vec<UnitId> {
        let mut units = Vec::with_capacity(jobs.len());
        for (id, edition) in jobs {
            let (_, unload) = self.rollout.answered(id.function, *edition);
            if unload {
                self.dispatch.workers.unload(id.function, *edition);
            }
            units.push(id.unit);
        }
        units
    }

    pub(super) fn end_recall(&mut self, key: &Key) {
        let serving = self.rollout.function(key.function).serving().map(|edition| edition.number());
        let Self { dispatch, ledger, .. } = self;
        if let Some((jobs, parks)) = dispatch.end_recall(key, serving, |unit| ledger.arrival(unit)) {
            self.resume(key.function, jobs, parks);
        }
    }

    pub(super) fn end_drain(&mut self, number: FunctionNo) {
        if self.rollout.function(number).jobs_under_way() > 0 {
            return;
        }
        let Some(mut jobs) = self.dispatch.end_drain(number) else { return };
        // Parked jobs go back to their place in the store, to be started under the keys of the version that serves.
        jobs.retain(|(id, _)| {
            let Receipt::Parked(key) = &self.ledger.unit(*id).receipt else { return true };
            self.dispatch.parking.not_run(key);
            self.forget_trace(*id);
            self.ledger.remove(*id);
            false
        });
        self.begin_pending(number);
        self.rekey(number);
        self.resume(number, jobs, false);
    }

    fn may_be_parked(&self, id: UnitId) -> bool {
        matches!(
            self.ledger.unit(id).receipt,
            Receipt::Mqtt { .. }
                | Receipt::Request(_)
                | Receipt::Wake { .. }
                | Receipt::Silence { .. }
                | Receipt::Schedule { .. }
                | Receipt::None
        )
    }

    /// Starts everything in the order of arrival. A job keeps the version that is to run it again only if that orders messages
    /// as the one that serves: two orders at once would overtake each other. `parks`: parks what it would start.
    fn resume(&mut self, number: FunctionNo, mut jobs: Vec<(UnitId, Option<u32>)>, parks: bool) {
        jobs.sort_by_key(|(id, _)| self.ledger.arrival(*id));
        let mut begun = BTreeSet::new();
        for (id, edition) in jobs {
            let function = self.rollout.function(number);
            let serving = function.serving();
            let edition = edition.and_then(|edition| function.edition(edition).or(serving));
            let edition = edition.filter(|it| serving.is_none_or(|serving| serving.has_keys_of(it))).cloned();
            let scope = edition.as_ref().or(function.serving()).map(|it| it.scope());
            // One that resumes a key ends its wait for an earlier one: only the first may.
            let is_first =
                scope.is_some_and(|scope| begun.insert(Key::new(number, scope, &self.ledger.unit(id).message)));
            match edition {
                Some(edition) => self.submit(id, number, &edition, is_first),
                None => match scope.filter(|_| parks && self.may_be_parked(id)) {
                    Some(scope) => {
                        let key = Key::new(number, scope, &self.ledger.unit(id).message);
                        self.park_instead(id, number, key);
                    }
                    None => self.start(id, number),
                },
            }
        }
    }
}
