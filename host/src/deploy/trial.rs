//! From a module to the active version: compiled, tried, and then in the place of the one before, or not at all.

use std::sync::Arc;

use bytes::Bytes;

use super::action::{Action, Start};
use super::compiler::CompilerError;
use super::deployer::{Deployer, compile_refusal, report, report_now};
use super::function::{Stage, TrackedFunction, TrialProgress};
use super::reason::{Reason, Refusal};
use super::report::{DeployState, MAX_DIFFERENCE_BYTES, MAX_DIFFERENCES};
use super::request::TrialEvent;
use super::{Installed, staging};
use crate::manifest::TrialMode;
use crate::message::Failure;
use crate::sandbox::Class;
use crate::time::Now;

/// How often the compiler is started in vain: the board may be short of memory for a moment.
const MOST_ATTEMPTS: u32 = 3;

impl Deployer {
    /// One at a time: a compiler takes much of a small board.
    pub(super) fn compile_next(&mut self, now: Now, actions: &mut Vec<Action>) {
        while self.compiling.is_none() {
            let Some(name) = self.queue.pop_front() else { return };
            let Some(candidate) = self.functions.get(&name).and_then(TrackedFunction::candidate) else { continue };
            let stored = candidate.stored.clone();
            let manifest = match self.manifest(&stored) {
                Ok(manifest) => manifest,
                Err(refusal) => {
                    self.reject(&name, refusal, now, actions);
                    continue;
                }
            };
            let wasm = match self.read_module(&stored.digest) {
                Ok(wasm) => wasm,
                Err(error) => {
                    tracing::warn!(function = &*name, module = staging::module_name(&stored.digest), %error, "a module is lost");
                    // The chunks are asked for again, or the order ends.
                    let _ = self.disk.remove(super::disk::MODULES, &staging::module_name(&stored.digest));
                    self.start_candidate(&name, now, actions);
                    continue;
                }
            };
            let edition = self.next_edition();
            let Some(function) = self.functions.get_mut(&name) else { continue };
            let Some(work) = &mut function.work else { continue };
            work.edition = edition;
            work.stage = Stage::Compiling;
            actions.push(report_now(function, now));
            let class = Class::for_memory(manifest.limits.memory_bytes.get());
            if stored.is_code {
                match self.unpack(&wasm, class) {
                    Ok(code) => self.load(&name, code, now, actions),
                    Err(refusal) => self.reject(&name, refusal, now, actions),
                }
                continue;
            }
            self.compiling = Some((Arc::clone(&name), edition));
            actions.push(Action::Compile { function: name, edition, digest: stored.digest, wasm, class });
        }
    }

    pub(super) fn compiled(
        &mut self,
        name: &Arc<str>,
        edition: u32,
        result: Result<Bytes, CompilerError>,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        if self.compiling.as_ref().is_some_and(|(of, number)| of == name && *number == edition) {
            self.compiling = None;
        }
        let Some(function) = self.functions.get_mut(name) else { return };
        // Else a newer order came meanwhile.
        let Some(work) = function.work.as_mut().filter(|work| work.edition == edition) else { return };
        if !matches!(work.stage, Stage::Compiling) {
            return;
        }
        match result {
            Ok(code) => self.load(name, code, now, actions),
            Err(CompilerError::Run(error)) if work.attempts + 1 < MOST_ATTEMPTS => {
                tracing::warn!(function = &**name, %error, "the compiler could not be run; trying again");
                work.attempts += 1;
                work.stage = Stage::Queued;
                self.retries.push(Arc::clone(name));
            }
            Err(error) => self.reject(name, compile_refusal(error), now, actions),
        }
    }

    /// Hands code to the workers, wherever it was compiled.
    fn load(&mut self, name: &Arc<str>, code: Bytes, now: Now, actions: &mut Vec<Action>) {
        let Some(function) = self.functions.get(name) else { return };
        let (Some(work), Some(candidate)) = (&function.work, function.record.candidate.clone()) else { return };
        let edition = work.edition;
        let manifest = match self.manifest(&candidate.stored) {
            Ok(manifest) => manifest,
            Err(refusal) => return self.reject(name, refusal, now, actions),
        };
        let trial = candidate.trial(&manifest.trial);
        if let Some(work) = self.functions.get_mut(name).and_then(|function| function.work.as_mut()) {
            work.stage = Stage::Loading;
        }
        let installed =
            Installed { manifest: manifest.into(), digest: candidate.stored.digest, code, from_cache: false };
        actions.push(Action::Start(Start { edition, installed, trial }));
    }

    pub(super) fn trial(
        &mut self,
        name: &Arc<str>,
        edition: u32,
        event: TrialEvent,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        let Some(function) = self.functions.get_mut(name) else { return };
        let is_candidate = function.work.as_ref().is_some_and(|work| work.edition == edition && work.is_started());
        if !is_candidate {
            return self.active_event(name, edition, event, now, actions);
        }
        let (Some(work), Some(candidate)) = (&mut function.work, &function.record.candidate) else { return };
        match event {
            TrialEvent::Ready => match candidate.stored.trial().and_then(|trial| candidate.trial(&trial)) {
                None => self.activate(name, now, actions),
                Some(trial) => {
                    let progress = TrialProgress { messages: trial.messages.get(), ..TrialProgress::default() };
                    work.stage = Stage::Trial(progress);
                    actions.push(report_now(function, now));
                }
            },
            TrialEvent::NotLoaded { error } => {
                self.reject(name, Refusal::new(Reason::NotLoaded, error), now, actions);
            }
            TrialEvent::Progress { run, failed, different, samples } => {
                let Stage::Trial(trial) = &mut work.stage else { return };
                (trial.run, trial.failed, trial.different) = (run, failed, different);
                trial.samples = samples;
                trial.samples.truncate(MAX_DIFFERENCES);
                for sample in &mut trial.samples {
                    for text in [&mut sample.topic, &mut sample.active, &mut sample.candidate] {
                        text.truncate(text.floor_char_boundary(MAX_DIFFERENCE_BYTES));
                    }
                }
                actions.extend(report(function, now));
            }
            TrialEvent::Passed => {
                let is_shadow = candidate.stored.trial().is_some_and(|trial| trial.mode == TrialMode::Shadow);
                self.activate(name, now, actions);
                // A live one serves already.
                if is_shadow {
                    actions.push(Action::Promote { function: Arc::clone(name), edition });
                }
            }
            TrialEvent::Failed { failure } => {
                // The pipeline has dropped it: that could not wait.
                work.stage = Stage::Queued;
                let Failure { code, detail } = failure;
                let why = Refusal::new(Reason::FailedTrial, format!("{}: {detail}", code.as_str()));
                self.stats.refused(why.reason);
                self.end(name, DeployState::RolledBack, &why, now, actions);
            }
        }
    }

    /// Record first: a power cut must find either the version before or this one, and both are right.
    fn activate(&mut self, name: &Arc<str>, now: Now, actions: &mut Vec<Action>) {
        let decide = |function: &mut TrackedFunction| {
            function.record.promote();
            function.serving = function.work.take().map(|work| work.edition);
            function.load_error = None;
            function.is_quarantined = false;
        };
        self.save_and_report(name, decide, now, actions);
    }

    fn active_event(&mut self, name: &Arc<str>, edition: u32, event: TrialEvent, now: Now, actions: &mut Vec<Action>) {
        let Some(function) = self.functions.get_mut(name).filter(|function| function.serving == Some(edition)) else {
            return;
        };
        if let TrialEvent::NotLoaded { error } = event {
            tracing::error!(function = &**name, error, "the workers cannot load it");
            function.serving = None;
            function.load_error = Some(Refusal::new(Reason::NotLoaded, error));
            actions.extend(report(function, now));
        }
    }
}
