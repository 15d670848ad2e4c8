//! The board's side of deployment: a state machine that handles requests and yields actions.
//!
//! ```text
//! order ─▶ accepted ─▶ receiving ─▶ verifying ─▶ compiling ─▶ trial ─▶ active
//!            │ refused    │ truncated   │ digest    │ refused   │ failed
//!            ▼            ▼             ▼           ▼           ▼
//!          the previous version serves, and the reason is reported
//! ```
//!
//! No thread, clock, file or connection, so that a test can lead it through any sequence of events. A decision is on disk
//! before it has an effect: a record is replaced as a whole, and what follows waits for the answer (see [`super::steps`]).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;

use super::acceptance::one_line;
use super::boot::{self, Place};
use super::code::{Capabilities, Code, CodeError};
use super::function::{TrackedFunction, UnknownFunctions};
use super::interface::{Action, Boot, CompilerError, DiskAnswer, DiskRequest, Request, StoredFile};
use super::reason::{Reason, Refusal};
use super::record::{self, StoredVersion};
use super::report::DeployState;
use super::requests::SeenRequests;
use super::settings::LaidOver;
use super::settings_orders::SettingsRecord;
use super::stats::DeployStats;
use super::steps::{AfterSave, Agenda, Step, Wait};
use super::topics::{KEYS, Topics};
use super::trust::Trust;
use crate::config::machine::Machine;
use crate::config::problem::Invalid;
use crate::config::{self, Config};
use crate::isa::Class;
use crate::manifest::Manifest;
use crate::schedule::Zone;
use crate::time::Now;
use crate::version::Version;

/// A function is never forgotten: its record refuses old orders even after it was removed.
pub(super) const KNOWN: &str = "the deployer knows every function that it named";
/// Delay after a flood before orders are fetched again, so as not to feed it.
const FETCH_AFTER_FLOOD: Duration = Duration::from_secs(10);

/// Identity and limits of the board.
#[derive(Clone, Debug)]
pub struct DeployerConfig {
    pub node: String,
    pub groups: Vec<String>,
    pub base_topic: String,
    pub host: Capabilities,
    pub deploy: config::Deploy,
    pub functions: config::Functions,
    pub sinks: config::Sinks,
    /// Where the time zones of functions are.
    pub machine: Machine,
}

impl DeployerConfig {
    pub fn new(config: &Config, host: Capabilities, machine: Machine) -> Self {
        Self {
            node: config.node.name.clone(),
            groups: config.node.groups.clone(),
            base_topic: config.node.base_topic.clone(),
            host,
            deploy: config.deploy.clone(),
            functions: config.functions.clone(),
            sinks: config.sinks.clone(),
            machine,
        }
    }
}

#[derive(Debug)]
pub struct Deployer {
    pub topics: Topics,
    pub config: DeployerConfig,
    pub trust: Trust,
    pub functions: BTreeMap<Arc<str>, TrackedFunction>,
    /// The changes of keys, which are reported like a function.
    pub keys: TrackedFunction,
    pub unknown: UnknownFunctions,
    pub(super) laid_over: LaidOver,
    pub(super) seen_requests: SeenRequests,
    pub(super) settings_orders: BTreeMap<Arc<str>, SettingsRecord>,
    /// Orders that could not be stored because the disk failed.
    pub(super) retry_orders: BTreeMap<Arc<str>, (Box<str>, Bytes)>,
    /// Functions whose modules wait for the compiler.
    pub queue: VecDeque<Arc<str>>,
    /// Functions whose module could not be read, or for which the compiler could not be run. Queued again at the next tick.
    pub(super) retries: Vec<Arc<str>>,
    pub compiling: Option<(Arc<str>, u32)>,
    /// Versions that are compiled beside those that serve, since the start.
    pub(super) postponed: BTreeMap<u32, (Place, Box<Version>)>,
    pub is_connected: bool,
    /// Latest time that a synced clock has shown.
    pub(super) believed_ms: u64,
    pub stats: Arc<DeployStats>,
    editions: u32,
    /// Whether unused files may exist.
    pub(super) has_garbage: bool,
    /// Time to fetch orders again after messages were dropped.
    fetch_orders_at: Option<Instant>,
    pub(super) agenda: Agenda,
    /// Effects that [`Self::poll`] has not returned yet.
    pub actions: VecDeque<Action>,
}

impl Deployer {
    /// Starts from the contents of the disk. The active versions serve once [`Self::is_idle`].
    pub fn new(config: DeployerConfig, boot: Boot, now: Now) -> Self {
        let Boot { keys, records, settings, folders } = boot;
        let (functions, damaged) = boot::load(records);
        let changes = keys.as_deref().map(record::decode);
        let are_keys_damaged = matches!(changes, Some(None));
        let mut deployer = Self {
            functions,
            topics: Topics::new(&config.base_topic),
            trust: Trust::new(changes.flatten(), &config.deploy),
            config,
            keys: TrackedFunction::new(KEYS.into()),
            unknown: UnknownFunctions::default(),
            laid_over: LaidOver::default(),
            seen_requests: SeenRequests::default(),
            settings_orders: BTreeMap::new(),
            retry_orders: BTreeMap::new(),
            queue: VecDeque::new(),
            retries: Vec::new(),
            compiling: None,
            postponed: BTreeMap::new(),
            is_connected: false,
            believed_ms: 0,
            stats: Arc::default(),
            editions: 0,
            has_garbage: true,
            fetch_orders_at: None,
            agenda: Agenda::default(),
            actions: VecDeque::new(),
        };
        if are_keys_damaged {
            tracing::error!(
                "the changes of the trusted keys are damaged: the keys of the configuration apply, also revoked ones; \
                 check them"
            );
            deployer.then(Step::SetAside(StoredFile::Keys));
        }
        if deployer.trust.keys().is_empty() {
            tracing::info!("no trusted keys: nothing can be pushed to this board (deploy.keys)");
        }
        damaged.into_iter().for_each(|name| deployer.then(Step::SetAside(StoredFile::Record(name))));
        let damaged = deployer.load_settings(settings);
        damaged.into_iter().for_each(|name| deployer.then(Step::SetAside(StoredFile::Settings(name))));
        folders.into_iter().for_each(|folder| deployer.place_folder(folder));
        deployer.boot_settings();
        deployer.boot();
        deployer.run(now);
        deployer
    }

    pub fn stats(&self) -> &Arc<DeployStats> {
        &self.stats
    }

    /// Whether nothing is left to do before the next request.
    pub fn is_idle(&self) -> bool {
        self.agenda.is_idle()
    }

    /// Starts to handle a request.
    pub fn start(&mut self, request: Request, now: Now) {
        if now.synced {
            self.believed_ms = self.believed_ms.max(now.unix_ms);
        }
        match request {
            Request::Message { topic, payload } => self.message(topic, payload, now),
            Request::Compiled { function, edition, result } => {
                if let Some(result) = self.postponed_compiled(edition, result) {
                    self.compiled(&function, edition, result);
                }
            }
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
                self.end_orphans();
                self.keys.mark_due();
                // Orders of keys that were unknown may be accepted now.
                self.actions.push_back(Action::FetchOrders);
            }
            Request::Settings(settings) => self.configure_settings(*settings),
            Request::SettingsInForce { function, change } => self.settings_in_force(&function, change, now),
            Request::Connected => {
                self.is_connected = true;
                self.fetch_all(now);
                self.report_due(now);
            }
            Request::Disconnected => self.is_connected = false,
            Request::Tick => self.tick(now),
            Request::Disk(_) | Request::Dropped | Request::Postponed => debug_assert!(false, "these never wait"),
        }
    }

    /// Returns the next effect to carry out, in order.
    pub fn poll(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    fn tick(&mut self, now: Now) {
        if self.fetch_orders_at.take_if(|at| now.monotonic >= *at).is_some() {
            self.actions.push_back(Action::FetchOrders);
        }
        for (name, (topic, payload)) in std::mem::take(&mut self.retry_orders) {
            tracing::debug!(function = &*name, "trying again to store an order");
            self.then(Step::Message { topic, payload });
        }
        self.queue.extend(std::mem::take(&mut self.retries));
        self.then(Step::CheckReceiving);
        self.then(Step::SaveUnsaved);
        self.then(Step::Sweep);
        self.then(Step::ReportDue);
    }

    /// Fetches orders again some time after messages were dropped. Dropped chunks are missed by the transfer that waits for
    /// them, dropped orders by nobody.
    pub fn messages_dropped(&mut self, now: Now) {
        if self.fetch_orders_at.is_none() {
            tracing::warn!("deploy messages arrive faster than they are handled; the dropped ones are fetched again");
            self.fetch_orders_at = Some(now.monotonic + FETCH_AFTER_FLOOD);
        }
    }

    pub(super) fn report_due(&mut self, now: Now) {
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

    /// Writes the record of a function. A failed write is tried again at every tick.
    pub fn save(&mut self, name: &Arc<str>, then: AfterSave) {
        let function = self.functions.get(name).expect(KNOWN);
        let request = replace(StoredFile::Record(Arc::clone(name)), &function.record);
        self.ask(request, Wait::Save { function: Arc::clone(name), then });
    }

    pub fn saved(&mut self, name: &Arc<str>, then: AfterSave, answer: DiskAnswer, now: Now) {
        let function = self.functions.get_mut(name).expect(KNOWN);
        match answer {
            Ok(_) => {
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
        if matches!(then, AfterSave::Nothing) {
            return;
        }
        self.has_garbage = true;
        log(function);
        self.actions.push_back(report_now(function, now));
        if let AfterSave::ReportAndPromote(edition) = then {
            self.actions.push_back(Action::Promote { function: Arc::clone(name), edition });
        }
    }

    pub(super) fn save_unsaved(&mut self) {
        let unsaved = self.functions.values().filter(|function| function.unsaved.is_some());
        let names: Vec<Arc<str>> = unsaved.map(|function| Arc::clone(&function.name)).collect();
        names.into_iter().for_each(|name| self.then(Step::Save(name)));
    }

    /// Reports a function if an order for it is in progress.
    pub(super) fn report_work(&mut self, name: &Arc<str>, now: Now) {
        let function = self.functions.get_mut(name).expect(KNOWN);
        if function.work.is_some() {
            self.actions.push_back(report_now(function, now));
        }
    }

    pub fn manifest(&self, stored: &StoredVersion) -> Result<Manifest, Refusal> {
        let ceilings = self.config.functions.ceilings.for_installed();
        let mut manifest = Manifest::from_json(&stored.manifest.to_json(), Some(&ceilings))
            .map_err(|problems| Refusal::new(Reason::OverLimit, one_line(&problems)))?;
        if manifest.allow.forward.is_none() && !stored.confined_to.is_empty() {
            manifest.allow.forward = Some(stored.confined_to.clone());
        }
        Ok(manifest)
    }

    /// Returns the version without its edition.
    pub(super) fn version(&self, stored: &StoredVersion, code: Bytes) -> Result<Version, Refusal> {
        let manifest = self.manifest(stored)?;
        let zone = self.zone(&manifest);
        Ok(Version { zone, ..Version::new(manifest, stored.digest, code, &self.config.base_topic) })
    }

    /// The zone of a function's schedules. A board that does not know it runs the function on everything else.
    fn zone(&self, manifest: &Manifest) -> Option<Zone> {
        if manifest.at.is_empty() {
            return None;
        }
        let log = |problem: &Invalid| {
            let function = &*manifest.name;
            tracing::error!(function, "the schedules of the function do not run: {problem}");
        };
        self.config.machine.zone(manifest.zone.as_deref()).inspect_err(log).ok()
    }

    /// Returns the native code in a file, if it runs on this host. After an upgrade it may be for another engine.
    pub fn unpack(&self, file: &Bytes, class: Class) -> Result<Bytes, Refusal> {
        let code = Code::parse(file).and_then(|code| code.fitting(self.config.host.abi(class)));
        code.map_err(|error| {
            let reason = match error {
                CodeError::NotCode { .. } | CodeError::Header(_) => Reason::InvalidModule,
                CodeError::Misfit { .. } | CodeError::NoTarget => Reason::NoCode,
            };
            Refusal::new(reason, format!("{error}, and push it again"))
        })
    }

    /// Deletes files that no record, on disk or in memory, names.
    pub(super) fn sweep(&mut self) {
        if !self.has_garbage || self.functions.values().any(|function| function.unsaved.is_some()) {
            return;
        }
        self.has_garbage = false;
        let (mut modules, mut staging) = (BTreeSet::new(), BTreeSet::new());
        for function in self.functions.values() {
            for record in [Some(&function.record), function.stored.as_ref()].into_iter().flatten() {
                modules.extend(record.digests());
                if let Some(candidate) = &record.candidate {
                    staging.insert((Arc::clone(&function.name), candidate.stored.digest));
                }
            }
        }
        self.actions.push_back(Action::RetainCode { digests: modules.clone() });
        self.ask(DiskRequest::Retain { modules, staging }, Wait::Retain);
    }

    pub(super) fn swept(&mut self, answer: DiskAnswer) {
        if let Err(error) = answer {
            tracing::warn!(%error, "failed to delete unused files of the deploy folder");
        }
    }
}

/// Request to write a record as a whole.
pub(super) fn replace<T: Serialize>(file: StoredFile, record: &T) -> DiskRequest {
    DiskRequest::Replace(file, record::encode(record).into())
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
