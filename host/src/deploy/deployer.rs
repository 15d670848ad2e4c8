//! The board's side of pushing functions: a state machine that is told what happened and says what is to be done.
//!
//! ```text
//! order ─▶ accepted ─▶ receiving ─▶ verifying ─▶ compiling ─▶ trial ─▶ active
//!            │ refused    │ truncated   │ digest    │ refused   │ failed
//!            ▼            ▼             ▼           ▼           ▼
//!          what served before serves, and the reason is reported
//! ```
//!
//! It has no thread, clock or connection of its own, so that a test can lead it through any sequence of events. What it
//! must not forget is on disk before it has an effect: a record changes only by being replaced as a whole.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::acceptance::one_line;
use super::action::Action;
use super::boot;
use super::code::{Code, CodeError};
use super::compiler::CompilerError;
use super::disk::{Disk, FUNCTIONS, MODULES, STAGING};
use super::function::{TrackedFunction, Work};
use super::reason::{Reason, Refusal};
use super::record::{self, Record, SUFFIX, StoredVersion};
use super::report::DeployState;
use super::request::{DeployerConfig, Request};
use super::staging::{module_name, staging_name};
use super::stats::DeployStats;
use super::topics::{KEYS, Topics};
use super::trust::Trust;
use super::unknown::UnknownFunctions;
use crate::manifest::Manifest;
use crate::message::Digest;
use crate::sandbox::Class;
use crate::time::Now;

#[derive(Debug)]
pub struct Deployer {
    pub(super) disk: Disk,
    pub(super) topics: Topics,
    pub(super) settings: DeployerConfig,
    pub(super) trust: Trust,
    pub(super) functions: BTreeMap<Arc<str>, TrackedFunction>,
    /// The changes of keys, which are reported like a function.
    pub(super) keys: TrackedFunction,
    pub(super) unknown: UnknownFunctions,
    /// Orders that could not be kept for want of disk.
    pub(super) retry_orders: BTreeMap<Arc<str>, (Box<str>, Bytes)>,
    /// Functions whose modules are to be compiled, one at a time.
    pub(super) queue: VecDeque<Arc<str>>,
    /// Those for which the compiler could not be run, until the next tick.
    pub(super) retries: Vec<Arc<str>>,
    pub(super) compiling: Option<(Arc<str>, u32)>,
    pub(super) is_connected: bool,
    pub(super) stats: Arc<DeployStats>,
    editions: u32,
    /// Files that nothing needs may be there.
    has_garbage: bool,
    /// Decided before the first request.
    pub(super) boot_actions: Vec<Action>,
}

#[derive(Debug, thiserror::Error)]
#[error("failed to open {path}")]
pub struct OpenError {
    path: PathBuf,
    source: io::Error,
}

impl Deployer {
    /// `dir` is the folder of deploying; `folders` are the functions of the configuration, each with its folder.
    pub fn open(dir: &Path, settings: DeployerConfig, folders: Vec<(PathBuf, Manifest)>) -> Result<Self, OpenError> {
        Self::try_open(dir, settings, folders).map_err(|source| OpenError { path: dir.to_owned(), source })
    }

    fn try_open(dir: &Path, settings: DeployerConfig, folders: Vec<(PathBuf, Manifest)>) -> io::Result<Self> {
        let disk = Disk::open(dir.to_owned())?;
        let trust = Trust::open(&disk, &settings.deploy)?;
        if trust.keys().is_empty() {
            tracing::info!("no key is trusted: nothing can be pushed to this board (deploy.keys)");
        }
        let mut deployer = Self {
            functions: boot::load(&disk)?,
            topics: Topics::new(&settings.base_topic),
            disk,
            settings,
            trust,
            keys: TrackedFunction::new(KEYS.into()),
            unknown: UnknownFunctions::default(),
            retry_orders: BTreeMap::new(),
            queue: VecDeque::new(),
            retries: Vec::new(),
            compiling: None,
            is_connected: false,
            stats: Arc::default(),
            editions: 0,
            has_garbage: true,
            boot_actions: Vec::new(),
        };
        for (dir, manifest) in folders {
            deployer.place_folder(&dir, &manifest);
        }
        Ok(deployer)
    }

    pub fn stats(&self) -> &Arc<DeployStats> {
        &self.stats
    }

    pub fn handle(&mut self, request: Request, now: Now, actions: &mut Vec<Action>) {
        actions.append(&mut self.boot_actions);
        match request {
            Request::Message { topic, payload } => self.message(topic, payload, now, actions),
            Request::Compiled { function, edition, result } => self.compiled(&function, edition, result, now, actions),
            Request::Trial { function, edition, event } => self.trial(&function, edition, event, now, actions),
            Request::Quarantined { function, is_quarantined } => {
                if let Some(function) = self.functions.get_mut(&function) {
                    function.is_quarantined = is_quarantined;
                    actions.extend(report(function, now));
                }
            }
            Request::Keys(deploy) => {
                self.trust.configure(&deploy);
                self.settings.deploy = *deploy;
                self.end_orphans(now, actions);
                self.keys.mark_due();
                // An order that no key vouched for may have one now.
                actions.push(Action::FetchOrders);
            }
            Request::Connected => {
                self.is_connected = true;
                self.fetch_all(now, actions);
                self.report_due(now, actions);
            }
            Request::Disconnected => self.is_connected = false,
            Request::Tick => self.tick(now, actions),
        }
        self.compile_next(now, actions);
    }

    fn tick(&mut self, now: Now, actions: &mut Vec<Action>) {
        for (name, (topic, payload)) in std::mem::take(&mut self.retry_orders) {
            tracing::debug!(function = &*name, "trying again to keep an order");
            self.message(topic, payload, now, actions);
        }
        self.check_receiving(now, actions);
        self.queue.extend(std::mem::take(&mut self.retries));
        for function in self.functions.values_mut() {
            if function.unsaved.is_some() {
                save(&self.disk, function);
            }
        }
        self.sweep(actions);
        self.report_due(now, actions);
    }

    fn report_due(&mut self, now: Now, actions: &mut Vec<Action>) {
        let functions = self.functions.values_mut().chain(self.unknown.iter_mut());
        for function in functions.filter(|function| function.may_report(now)) {
            actions.push(report_now(function, now));
        }
        if self.keys.may_report(now) && !(self.trust.keys().is_empty() && self.keys.refused.is_none()) {
            self.report_keys(now, actions);
        }
    }

    /// Files may be there that nothing needs.
    pub(super) fn mark_garbage(&mut self) {
        self.has_garbage = true;
    }

    pub(super) fn next_edition(&mut self) -> u32 {
        self.editions += 1;
        self.editions
    }

    /// Writes what was decided, and reports it. A disk that fails is asked again at every tick.
    pub(super) fn save_and_report(
        &mut self,
        name: &str,
        decide: impl FnOnce(&mut TrackedFunction),
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        let Some(function) = self.functions.get_mut(name) else { return };
        decide(function);
        save(&self.disk, function);
        self.has_garbage = true;
        log(function);
        actions.push(report_now(function, now));
    }

    pub(super) fn manifest(&self, stored: &StoredVersion) -> Result<Manifest, Refusal> {
        Manifest::from_json(&stored.manifest.to_json(), Some(&self.settings.ceilings))
            .map_err(|problems| Refusal::new(Reason::OverLimit, one_line(&problems)))
    }

    /// The code of a module that was compiled elsewhere, if it runs here: it may be of a version of this program that
    /// compiled otherwise.
    pub(super) fn unpack(&self, file: &Bytes, class: Class) -> Result<Bytes, Refusal> {
        let code = Code::parse(file).and_then(|code| code.fitting(self.settings.host.abi(class)));
        code.map_err(|error| {
            let reason = match error {
                CodeError::NotCode { .. } | CodeError::Header(_) => Reason::InvalidModule,
                CodeError::Misfit { .. } | CodeError::NoTarget => Reason::NoCode,
            };
            Refusal::new(reason, format!("{error}, and push it again"))
        })
    }

    /// Only the module that it says it is.
    pub(super) fn read_module(&self, digest: &Digest) -> io::Result<Bytes> {
        let name = module_name(digest);
        let wasm = self.disk.read(MODULES, &name)?;
        if super::digest(&wasm) != *digest {
            self.disk.remove(MODULES, &name)?;
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it was damaged on the disk"));
        }
        Ok(wasm.into())
    }

    /// Deletes what no record names, on disk or in memory.
    fn sweep(&mut self, actions: &mut Vec<Action>) {
        if !self.has_garbage || self.functions.values().any(|function| function.unsaved.is_some()) {
            return;
        }
        self.has_garbage = false;
        let (mut modules, mut staging, mut digests) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for function in self.functions.values() {
            for record in [Some(&function.record), function.stored.as_ref()].into_iter().flatten() {
                digests.extend(record.digests());
                modules.extend(record.digests().map(|digest| module_name(&digest)));
                if let Some(candidate) = &record.candidate {
                    staging.insert(staging_name(&function.name, &candidate.stored.digest));
                }
            }
        }
        for (folder, needed) in [(MODULES, modules), (STAGING, staging)] {
            let swept = self.disk.list(folder).and_then(|names| {
                names.iter().filter(|name| !needed.contains(*name)).try_for_each(|name| self.disk.remove(folder, name))
            });
            if let Err(error) = swept {
                tracing::warn!(folder, %error, "what no function needs could not be deleted");
            }
        }
        actions.push(Action::RetainCode { digests });
    }
}

pub(super) fn write(disk: &Disk, record: &Record) -> io::Result<()> {
    disk.replace(FUNCTIONS, &format!("{}{SUFFIX}", record.function), &record::encode(record))
}

/// Brings the disk up to what is decided.
fn save(disk: &Disk, function: &mut TrackedFunction) {
    match write(disk, &function.record) {
        Ok(()) => {
            function.stored = Some(function.record.clone());
            if function.unsaved.take().is_some() {
                function.mark_due();
            }
        }
        Err(error) => {
            let refusal = disk_refusal("what was decided cannot be written", &error);
            if function.unsaved.is_none() {
                tracing::error!(function = &*function.name, %refusal, "trying again every second");
                function.mark_due();
            }
            function.unsaved = Some(refusal);
        }
    }
}

pub(super) fn disk_refusal(what: &str, error: &io::Error) -> Refusal {
    Refusal::new(super::disk::reason(error), format!("{what}: {error}"))
}

pub(super) fn compile_refusal(error: CompilerError) -> Refusal {
    let reason = match error {
        CompilerError::Refused(_) => Reason::InvalidModule,
        CompilerError::Time | CompilerError::Memory => Reason::OverLimit,
        CompilerError::Killed | CompilerError::Ended(_) | CompilerError::Run(_) | CompilerError::NoCompiler => {
            Reason::CompilerFailed
        }
    };
    let mut detail = error.to_string();
    if let CompilerError::Run(source) = &error {
        detail = format!("{detail}: {source}");
    }
    Refusal::new(reason, detail.replace('\n', "; "))
}

/// At once, if it was not reported just now; otherwise with the next tick.
pub(super) fn report(function: &mut TrackedFunction, now: Now) -> Option<Action> {
    function.mark_due();
    function.may_report(now).then(|| report_now(function, now))
}

pub(super) fn report_now(function: &mut TrackedFunction, now: Now) -> Action {
    let payload = function.report(now).to_json().into();
    Action::Report { function: Arc::clone(&function.name), payload }
}

pub(super) fn log(function: &TrackedFunction) {
    let Some(outcome) = &function.record.outcome else { return };
    let (version, serial) = (outcome.version.as_deref().unwrap_or_default(), outcome.serial.unwrap_or_default());
    let (name, state) = (&*function.name, outcome.state.as_str());
    match (outcome.reason, &outcome.error) {
        (Some(reason), error) if outcome.state == DeployState::Rejected || reason == Reason::FailedTrial => {
            let error = error.as_deref().unwrap_or_default();
            tracing::warn!(function = name, version, serial, state, reason = reason.as_str(), error, "order ended");
        }
        _ => tracing::info!(function = name, version, serial, state, "order ended"),
    }
}

impl TrackedFunction {
    pub(super) fn start_work(&mut self) -> &mut Work {
        self.work.insert(Work::new())
    }
}
