//! From a complete module to the active version: compile, load, try, activate.

use std::sync::Arc;

use bytes::Bytes;

use super::boot::verify;
use super::deployer::{Deployer, KNOWN, compile_refusal, disk_refusal, report, report_now};
use super::function::{Cause, Stage, TrialProgress};
use super::interface::{Action, CompilerError, DiskAnswer, DiskRequest, Installed, Start, StoredFile, TrialEvent};
use super::reason::{Reason, Refusal};
use super::report::{DeployState, Difference, MAX_DIFFERENCES};
use super::steps::{AfterSave, Step, Wait};
use crate::isa::Class;
use crate::manifest::TrialMode;
use crate::message::Failure;
use crate::time::Now;

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
        self.actions.push_back(Action::Compile { function: Arc::clone(name), edition, digest, wasm, class });
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
        let manifest = match self.manifest(&candidate.stored) {
            Ok(manifest) => manifest,
            Err(refusal) => return self.reject(name, refusal),
        };
        let trial = candidate.trial(&manifest.trial);
        let work = self.functions.get_mut(name).and_then(|function| function.work.as_mut());
        let work = work.expect("a candidate has work");
        work.stage = Stage::Loading;
        let installed = Installed::new(manifest, candidate.stored.digest, code);
        self.actions.push_back(Action::Start(Start { edition: work.edition, installed, trial }));
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
                None => self.activate(name, AfterSave::Report),
                Some(trial) => {
                    let messages = trial.messages.get();
                    work.stage = Stage::Trial(TrialProgress { messages, ..TrialProgress::default() });
                    self.actions.push_back(report_now(function, now));
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
            TrialEvent::Passed => {
                let is_shadow = candidate.stored.trial().is_some_and(|trial| trial.mode == TrialMode::Shadow);
                // A candidate in a live trial serves already.
                let then = if is_shadow { AfterSave::ReportAndPromote(edition) } else { AfterSave::Report };
                self.activate(name, then);
            }
            TrialEvent::Failed { failure } => {
                // The pipeline has dropped the candidate already.
                work.stage = Stage::Queued;
                let Failure { code, detail } = failure;
                let why = Refusal::new(Reason::FailedTrial, format!("{}: {detail}", code.as_str()));
                self.stats.refused(why.reason);
                self.end(name, DeployState::RolledBack, &why);
            }
        }
    }

    /// Makes the candidate the active version. After a loss of power either version may serve.
    fn activate(&mut self, name: &Arc<str>, then: AfterSave) {
        let function = self.functions.get_mut(name).expect(KNOWN);
        function.record.promote();
        function.serving = function.work.take().map(|work| work.edition);
        function.load_error = None;
        function.is_quarantined = false;
        self.save(name, then);
    }

    /// Handles an event of an edition that is not a candidate: the active one, or one that is gone.
    fn active_event(&mut self, name: &Arc<str>, edition: u32, event: TrialEvent, now: Now) {
        let function = self.functions.get_mut(name).expect(KNOWN);
        if let TrialEvent::NotLoaded { error } = event
            && function.serving == Some(edition)
        {
            tracing::error!(function = &**name, error, "the workers cannot load the active version");
            function.serving = None;
            function.load_error = Some(Refusal::new(Reason::NotLoaded, error));
            self.actions.extend(report(function, now));
        }
    }
}
