//! The board's side of deployment: a state machine that handles requests and yields actions.
//!
//! ```text
//! order ─▶ accepted ─▶ receiving ─▶ verifying ─▶ compiling ─▶ trial ─▶ active
//!            │ refused    │ truncated   │ digest    │ refused   │ failed
//!            ▼            ▼             ▼           ▼           ▼
//!          the previous version serves, and the reason is reported
//! ```
//!
//! No thread, clock or connection, so that a test can lead it through any sequence of events. A decision is on disk before
//! it has an effect: a record is replaced as a whole.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::acceptance::one_line;
use super::boot;
use super::code::{Capabilities, Code, CodeError};
use super::disk::{Disk, FUNCTIONS, MODULES, STAGING};
use super::function::{TrackedFunction, UnknownFunctions};
use super::interface::{Action, CompilerError, Request};
use super::reason::{Reason, Refusal};
use super::record::{self, Record, SUFFIX, StoredVersion};
use super::report::DeployState;
use super::staging::{module_name, staging_name};
use super::stats::DeployStats;
use super::topics::{KEYS, Topics};
use super::trust::Trust;
use crate::config::{self, Config};
use crate::manifest::Manifest;
use crate::message::Digest;
use crate::sandbox::Class;
use crate::time::Now;

/// A function is never forgotten: its record refuses old orders even after it was removed.
pub(super) const KNOWN: &str = "the deployer knows every function that it named";

/// Identity and limits of the board.
#[derive(Clone, Debug)]
pub(crate) struct DeployerConfig {
    pub node: String,
    pub groups: Vec<String>,
    pub base_topic: String,
    pub host: Capabilities,
    pub deploy: config::Deploy,
    pub functions: config::Functions,
}

impl DeployerConfig {
    pub(crate) fn new(config: &Config, host: Capabilities) -> Self {
        Self {
            node: config.node.name.clone(),
            groups: config.node.groups.clone(),
            base_topic: config.node.base_topic.clone(),
            host,
            deploy: config.deploy.clone(),
            functions: config.functions.clone(),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Deployer {
    pub(super) disk: Disk,
    pub(super) topics: Topics,
    pub(super) config: DeployerConfig,
    pub(super) trust: Trust,
    pub(super) functions: BTreeMap<Arc<str>, TrackedFunction>,
    /// The changes of keys, which are reported like a function.
    pub(super) keys: TrackedFunction,
    pub(super) unknown: UnknownFunctions,
    /// Orders that could not be stored because the disk failed.
    pub(super) retry_orders: BTreeMap<Arc<str>, (Box<str>, Bytes)>,
    /// Functions whose modules wait for the compiler.
    pub(super) queue: VecDeque<Arc<str>>,
    /// Functions for which the compiler could not be run. Queued again at the next tick.
    pub(super) retries: Vec<Arc<str>>,
    pub(super) compiling: Option<(Arc<str>, u32)>,
    pub(super) is_connected: bool,
    pub(super) stats: Arc<DeployStats>,
    editions: u32,
    /// Whether unused files may exist.
    pub(super) has_garbage: bool,
    /// Effects that [`Self::poll`] has not returned yet.
    pub(super) actions: VecDeque<Action>,
}

#[derive(Debug, thiserror::Error)]
#[error("failed to open {path}")]
pub(crate) struct OpenError {
    path: PathBuf,
    source: io::Error,
}

impl Deployer {
    /// Opens the deploy folder `dir`. `folders` are the functions of the configuration, each with its folder.
    pub(crate) fn open(
        dir: &Path,
        config: DeployerConfig,
        folders: Vec<(PathBuf, Manifest)>,
    ) -> Result<Self, OpenError> {
        Self::try_open(dir, config, folders).map_err(|source| OpenError { path: dir.to_owned(), source })
    }

    fn try_open(dir: &Path, config: DeployerConfig, folders: Vec<(PathBuf, Manifest)>) -> io::Result<Self> {
        let disk = Disk::open(dir.to_owned())?;
        let trust = Trust::open(&disk, &config.deploy)?;
        if trust.keys().is_empty() {
            tracing::info!("no trusted keys: nothing can be pushed to this board (deploy.keys)");
        }
        let mut deployer = Self {
            functions: boot::load(&disk)?,
            topics: Topics::new(&config.base_topic),
            disk,
            config,
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
            actions: VecDeque::new(),
        };
        for (dir, manifest) in folders {
            deployer.place_folder(&dir, &manifest);
        }
        Ok(deployer)
    }

    pub(crate) fn stats(&self) -> &Arc<DeployStats> {
        &self.stats
    }

    pub(crate) fn handle(&mut self, request: Request, now: Now) {
        match request {
            Request::Message { topic, payload } => self.message(topic, payload, now),
            Request::Compiled { function, edition, result } => self.compiled(&function, edition, result, now),
            Request::Trial { function, edition, event } => self.trial(&function, edition, event, now),
            Request::Quarantined { function, is_quarantined } => {
                if let Some(function) = self.functions.get_mut(&function) {
                    function.is_quarantined = is_quarantined;
                    self.actions.extend(report(function, now));
                }
            }
            Request::Keys(deploy) => {
                self.trust.configure(&deploy);
                self.config.deploy = *deploy;
                self.end_orphans(now);
                self.keys.mark_due();
                // Orders of keys that were unknown may be accepted now.
                self.actions.push_back(Action::FetchOrders);
            }
            Request::Connected => {
                self.is_connected = true;
                self.fetch_all(now);
                self.report_due(now);
            }
            Request::Disconnected => self.is_connected = false,
            Request::Tick => self.tick(now),
        }
        self.compile_next(now);
    }

    /// Returns the next effect to carry out, in order.
    pub(crate) fn poll(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    fn tick(&mut self, now: Now) {
        for (name, (topic, payload)) in std::mem::take(&mut self.retry_orders) {
            tracing::debug!(function = &*name, "trying again to store an order");
            self.message(topic, payload, now);
        }
        self.check_receiving(now);
        self.queue.extend(std::mem::take(&mut self.retries));
        for function in self.functions.values_mut() {
            if function.unsaved.is_some() {
                save(&self.disk, function);
            }
        }
        self.sweep();
        self.report_due(now);
    }

    fn report_due(&mut self, now: Now) {
        let functions = self.functions.values_mut().chain(self.unknown.iter_mut());
        for function in functions.filter(|function| function.may_report(now)) {
            self.actions.push_back(report_now(function, now));
        }
        if self.keys.may_report(now) && !(self.trust.keys().is_empty() && self.keys.refused.is_none()) {
            self.report_keys(now);
        }
    }

    pub(super) fn next_edition(&mut self) -> u32 {
        self.editions += 1;
        self.editions
    }

    /// Applies a decision to a function, writes its record and reports it. A failed write is tried again at every tick.
    pub(super) fn save_and_report(&mut self, name: &str, decide: impl FnOnce(&mut TrackedFunction), now: Now) {
        let function = self.functions.get_mut(name).expect(KNOWN);
        decide(function);
        save(&self.disk, function);
        self.has_garbage = true;
        log(function);
        self.actions.push_back(report_now(function, now));
    }

    pub(super) fn manifest(&self, stored: &StoredVersion) -> Result<Manifest, Refusal> {
        Manifest::from_json(&stored.manifest.to_json(), Some(&self.config.functions.ceilings))
            .map_err(|problems| Refusal::new(Reason::OverLimit, one_line(&problems)))
    }

    /// Returns the native code in a file, if it runs on this host. After an upgrade it may be for another engine.
    pub(super) fn unpack(&self, file: &Bytes, class: Class) -> Result<Bytes, Refusal> {
        let code = Code::parse(file).and_then(|code| code.fitting(self.config.host.abi(class)));
        code.map_err(|error| {
            let reason = match error {
                CodeError::NotCode { .. } | CodeError::Header(_) => Reason::InvalidModule,
                CodeError::Misfit { .. } | CodeError::NoTarget => Reason::NoCode,
            };
            Refusal::new(reason, format!("{error}, and push it again"))
        })
    }

    /// Reads a module and verifies its digest.
    pub(super) fn read_module(&self, digest: &Digest) -> io::Result<Bytes> {
        let name = module_name(digest);
        let wasm = self.disk.read(MODULES, &name)?;
        if super::digest(&wasm) != *digest {
            self.disk.remove(MODULES, &name)?;
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it was damaged on the disk"));
        }
        Ok(wasm.into())
    }

    /// Deletes files that no record, on disk or in memory, names.
    fn sweep(&mut self) {
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
                tracing::warn!(folder, %error, "failed to delete unused files");
            }
        }
        self.actions.push_back(Action::RetainCode { digests });
    }
}

pub(super) fn write(disk: &Disk, record: &Record) -> io::Result<()> {
    disk.replace(FUNCTIONS, &format!("{}{SUFFIX}", record.function), &record::encode(record))
}

fn save(disk: &Disk, function: &mut TrackedFunction) {
    match write(disk, &function.record) {
        Ok(()) => {
            function.stored = Some(function.record.clone());
            if function.unsaved.take().is_some() {
                function.mark_due();
            }
        }
        Err(error) => {
            let refusal = disk_refusal("failed to write the record", &error);
            if function.unsaved.is_none() {
                tracing::error!(function = &*function.name, %refusal, "trying again every second");
                function.mark_due();
            }
            function.unsaved = Some(refusal);
        }
    }
}

pub(super) fn disk_refusal(what: &str, error: &io::Error) -> Refusal {
    let reason = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Reason::DiskFull,
        _ => Reason::DiskFailed,
    };
    Refusal::new(reason, format!("{what}: {error}"))
}

pub(super) fn compile_refusal(error: CompilerError) -> Refusal {
    let reason = match error {
        CompilerError::Refused(_) => Reason::InvalidModule,
        CompilerError::Time | CompilerError::Memory => Reason::OverLimit,
        CompilerError::Killed | CompilerError::Ended(_) | CompilerError::Run(_) | CompilerError::NoCompiler => {
            Reason::CompilerFailed
        }
    };
    let detail = format!("{:#}", anyhow::Error::from(error));
    Refusal::new(reason, detail.replace('\n', "; "))
}

/// Reports the function now if the last report is old enough, otherwise at a later tick.
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
