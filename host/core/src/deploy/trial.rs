//! From a complete module to the active version: compile, load, try, activate.

use std::sync::Arc;

use bytes::Bytes;

use super::boot::verify;
use super::decision::Proof;
use super::deployer::{Deployer, KNOWN, compile_refusal, disk_refusal, report, report_now};
use super::function::{Cause, Stage, TrialProgress, Work};
use super::interface::{Action, Compilation, CompilerError, DiskAnswer, DiskRequest, StoredFile, TrialEvent};
use super::reason::{Reason, Refusal};
use super::record::Unproven;
use super::report::{DeployState, Difference, MAX_DIFFERENCES};
use super::steps::{AfterSave, Step, Wait};
use crate::isa::Class;
use crate::manifest::TrialMode;
use crate::message::Failure;
use crate::time::Now;
use crate::version::Version;

/// Attempts to run the compiler: the board may be short of memory for a moment.
const MOST_ATTEMPTS: u32 = 3;

impl Deployer {
    /// Compiles queued modules, one at a time: the compiler needs much of a small board.
    pub(super) fn compile_next(&mut self) {
        if self.compiling.is_some() {
            return;
        }
        let Some(name) = self.queue.pop_front() else { return };
        let candidate = self.functions.get(&name).expect(KNOWN).candidate();
        let stored = &candidate.expect("a queued function has a candidate").stored;
        let (digest, manifest) = (stored.digest, self.manifest(stored));
        self.then(Step::CompileNext);
        match manifest {
            Ok(_) => self.ask(DiskRequest::Read(StoredFile::Module(digest)), Wait::ReadModule(name)),
            Err(refusal) => self.reject(&name, refusal),
        }
    }

    pub(super) fn module_read(&mut self, name: &Arc<str>, answer: DiskAnswer, now: Now) {
        let candidate = self.functions.get(name).expect(KNOWN).candidate();
        let stored = candidate.expect("a queued function has a candidate").stored.clone();
        let digest = stored.digest;
        let wasm = match answer.and_then(|module| verify(module, &digest)) {
            Ok(wasm) => wasm,
            Err(error) => {
                tracing::warn!(function = &**name, module = %digest, %error, "failed to read a module");
                let module = StoredFile::Module(digest);
                return self.ask(DiskRequest::Remove(module), Wait::RemoveModule(Arc::clone(name)));
            }
        };
        let manifest = match self.manifest(&stored) {
            Ok(manifest) => manifest,
            Err(refusal) => return self.reject(name, refusal),
        };
        let edition = self.next_edition();
        let function = self.functions.get_mut(name).expect(KNOWN);
        let work = function.work.as_mut().expect("a queued function has work");
        work.edition = edition;
        work.stage = Stage::Compiling;
        work.cause = None;
        self.actions.push_back(report_now(function, now));
        let class = Class::for_memory(manifest.limits.memory_bytes.get());
        if stored.is_code {
            return match self.unpack(&wasm, class) {
                Ok(code) => self.load(name, code),
                Err(refusal) => self.reject(name, refusal),
            };
        }
        self.compiling = Some((Arc::clone(name), edition));
        let function = Arc::clone(name);
        self.actions.push_back(Action::Compile(Compilation { function, edition, digest, wasm, class }));
    }

    pub(super) fn module_removed(&mut self, name: &Arc<str>, answer: DiskAnswer, now: Now) {
        let Err(error) = answer else {
            // Its chunks are fetched again, or the order ends.
            return self.then(Step::StartCandidate(Arc::clone(name)));
        };
        let refusal = disk_refusal("failed to read and to remove a module, which is tried again", &error);
        let function = self.functions.get_mut(name).expect(KNOWN);
        let work = function.work.as_mut().expect("a queued function has work");
        work.cause = Some(Cause { refusal, index: None });
        self.retries.push(Arc::clone(name));
        self.actions.extend(report(function, now));
    }

    pub fn compiled(&mut self, name: &Arc<str>, edition: u32, result: Result<Bytes, CompilerError>) {
        if self.compiling.as_ref().is_some_and(|(of, number)| of == name && *number == edition) {
            self.compiling = None;
        }
        let function = self.functions.get_mut(name).expect(KNOWN);
        // Otherwise a newer order took its place.
        let Some(work) = function.work.as_mut().filter(|work| work.edition == edition) else { return };
        if !matches!(work.stage, Stage::Compiling) {
            return;
        }
        match result {
            Ok(code) => self.load(name, code),
            Err(CompilerError::Run(error)) if work.attempts + 1 < MOST_ATTEMPTS => {
                tracing::warn!(function = &**name, %error, "failed to run the compiler; trying again");
                work.attempts += 1;
                work.stage = Stage::Queued;
                self.retries.push(Arc::clone(name));
            }
            Err(error) => self.reject(name, compile_refusal(error)),
        }
    }

    /// Hands code to the workers.
    fn load(&mut self, name: &Arc<str>, code: Bytes) {
        let function = self.functions.get(name).expect(KNOWN);
        let candidate = function.candidate().cloned().expect("loaded code belongs to a candidate");
        let version = match self.version(&candidate.stored, code) {
            Ok(version) => version,
            Err(refusal) => return self.reject(name, refusal),
        };
        let trial = candidate.trial(&version.manifest.trial);
        let work = self.functions.get_mut(name).and_then(|function| function.work.as_mut());
        let work = work.expect("a candidate has work");
        work.stage = Stage::Loading;
        self.actions.push_back(Action::Start(Box::new(Version { edition: work.edition, trial, ..version })));
    }

    pub fn trial(&mut self, name: &Arc<str>, edition: u32, event: TrialEvent, now: Now) {
        let Some(function) = self.functions.get_mut(name) else {
            debug_assert!(false, "{KNOWN}");
            tracing::error!(invariant = "deployed_function_known", function = &**name, edition, "{KNOWN}");
            return;
        };
        let is_candidate = function.work.as_ref().is_some_and(|work| work.edition == edition && work.is_started());
        if !is_candidate {
            return self.active_event(name, edition, event, now);
        }
        let work = function.work.as_mut().expect("a candidate has work");
        let candidate = function.record.candidate.as_ref().expect("work belongs to a candidate");
        match event {
            TrialEvent::Ready => match candidate.stored.trial().and_then(|trial| candidate.trial(&trial)) {
                None => self.activate(name, Proof::Given, AfterSave::Report),
                Some(trial) => {
                    work.stage = Stage::Trial(TrialProgress::of(&trial));
                    self.displace(name);
                    self.actions.push_back(report_now(self.functions.get_mut(name).expect(KNOWN), now));
                }
            },
            TrialEvent::NotLoaded { error } => {
                self.reject(name, Refusal::new(Reason::NotLoaded, error));
            }
            TrialEvent::Progress { tally, mut samples } => {
                let Stage::Trial(trial) = &mut work.stage else { return };
                samples.truncate(MAX_DIFFERENCES);
                samples.iter_mut().for_each(Difference::truncate);
                (trial.tally, trial.samples) = (tally, samples);
                self.actions.extend(report(function, now));
            }
            TrialEvent::Late => {
                let Stage::Trial(trial) = &mut work.stage else { return };
                trial.is_late = true;
                if function.on_live_trial().is_some() {
                    return self.activate(name, Proof::Pending, AfterSave::Report);
                }
                self.actions.push_back(report_now(function, now));
            }
            TrialEvent::Passed => {
                let is_shadow = candidate.stored.trial().is_some_and(|trial| trial.mode == TrialMode::Shadow);
                // A candidate in a live trial serves already.
                let then = if is_shadow { AfterSave::ReportAndPromote(edition) } else { AfterSave::Report };
                self.activate(name, Proof::Given, then);
            }
            TrialEvent::Failed { failure } => {
                // The pipeline has dropped the candidate already.
                work.stage = Stage::Queued;
                let why = failed_trial(failure);
                self.stats.refused(why.reason);
                self.end(name, DeployState::RolledBack, &why);
            }
        }
    }

    /// Makes the candidate the active version. After a loss of power either version may serve.
    fn activate(&mut self, name: &Arc<str>, proof: Proof, then: AfterSave) {
        let function = self.functions.get_mut(name).expect(KNOWN);
        // A version that was displaced is not what stands behind the candidate.
        let behind = if function.is_displaced { function.fallback } else { function.serving };
        function.record.promote(proof);
        let work = function.work.take();
        function.fallback = behind.filter(|_| proof == Proof::Pending);
        function.is_displaced = false;
        function.serving = work.as_ref().map(|work| work.edition);
        if let Some(Work { stage: Stage::Trial(trial), .. }) = work {
            function.guarded = trial;
        }
        function.load_error = None;
        function.is_quarantined = false;
        self.save(name, then);
    }

    /// A candidate on live trial takes the place of an active version that has not proven itself.
    fn displace(&mut self, name: &Arc<str>) {
        let function = self.functions.get_mut(name).expect(KNOWN);
        if function.on_live_trial().is_none() {
            return;
        }
        match &function.record.unproven {
            Some(Unproven { fallback: Some(_) }) => function.is_displaced = true,
            // Nothing else is there to return to.
            Some(Unproven { fallback: None }) => function.record.prove(),
            None => {}
        }
    }

    /// Handles an event of an edition that is not a candidate: the active one, or one that is gone.
    fn active_event(&mut self, name: &Arc<str>, edition: u32, event: TrialEvent, now: Now) {
        let function = self.functions.get_mut(name).expect(KNOWN);
        if function.serving != Some(edition) {
            return;
        }
        let is_unproven = function.record.unproven.is_some();
        match event {
            TrialEvent::NotLoaded { error } if function.record.fallback().is_some() => {
                self.actions.push_back(Action::DropCandidate { function: Arc::clone(name), edition });
                self.fall_back(name, &Refusal::new(Reason::NotLoaded, error));
            }
            TrialEvent::NotLoaded { error } => {
                tracing::error!(function = &**name, error, "the workers cannot load the active version");
                function.serving = None;
                function.load_error = Some(Refusal::new(Reason::NotLoaded, error));
                self.actions.extend(report(function, now));
            }
            TrialEvent::Progress { tally, .. } if is_unproven => {
                function.guarded.tally = tally;
                self.actions.extend(report(function, now));
            }
            TrialEvent::Passed if is_unproven => {
                function.record.prove();
                function.fallback = None;
                self.save(name, AfterSave::Report);
            }
            TrialEvent::Failed { failure } if is_unproven => {
                let why = failed_trial(failure);
                self.stats.refused(why.reason);
                self.fall_back(name, &why);
            }
            _ => {}
        }
    }

    /// The fallback serves again, since the active version failed before it had proven itself.
    pub(super) fn fall_back(&mut self, name: &Arc<str>, why: &Refusal) {
        let function = self.functions.get_mut(name).expect(KNOWN);
        function.record.fall_back(why);
        function.serving = function.fallback.take();
        self.save(name, AfterSave::Report);
    }
}

fn failed_trial(Failure { code, detail }: Failure) -> Refusal {
    Refusal::new(Reason::FailedTrial, format!("{}: {detail}", code.as_str()))
}
