//! One function as the board tracks it: its record, the order in progress, and the report about both.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::reason::{Reason, Refusal};
use super::record::{Candidate, OrderOutcome, Record, StoredVersion};
use super::report::{Active, DeployState, Difference, Progress, Report, SettingsReport, TrialTally};
use super::staging::Transfer;
use super::topics::Target;
use crate::manifest::{Trial, TrialMode};
use crate::message::Digest;
use crate::settings::Overlay;
use crate::time::Now;

/// Least time between two reports of a function, except when an order of a trusted key changes its state.
const REPORT_EVERY: Duration = Duration::from_secs(1);
const MAX_UNKNOWN: usize = 32;
/// An unknown function is reported at least this long before another name may replace it.
const UNKNOWN_KEPT: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct TrackedFunction {
    pub name: Arc<str>,
    pub record: Record,
    /// The record on disk. It differs from `record` while the disk fails, or when a folder holds a newer version.
    pub stored: Option<Record>,
    /// The file in the folder, if the active version is not in `modules`.
    pub folder: Option<FolderFile>,
    /// Progress of the candidate.
    pub work: Option<Work>,
    /// The active edition in the pipeline.
    pub serving: Option<u32>,
    /// The edition that takes over if the active one fails before it has proven itself.
    pub(crate) fallback: Option<u32>,
    /// Progress of an active version that has not proven itself.
    pub(crate) guarded: TrialProgress,
    /// A candidate on live trial has taken the place of an active version that has not proven itself.
    pub(crate) is_displaced: bool,
    /// Reason why the active version does not serve.
    pub(crate) load_error: Option<Refusal>,
    pub is_quarantined: bool,
    /// What is laid over its settings, and in force.
    pub(super) overlay: Overlay,
    /// The latest orders of settings.
    pub(super) settings_orders: Vec<SettingsReport>,
    /// Reason why the latest order was refused.
    pub refused: Option<OrderOutcome>,
    /// Orders that were refused for their serial. The broker sends them again at every connection.
    pub(crate) stale: Vec<(Target, Digest)>,
    /// Reason why the record could not be written.
    pub(crate) unsaved: Option<Refusal>,
    refused_at: Option<Instant>,
    reported_at: Option<Instant>,
    is_due: bool,
    /// Report the refusal although another order is in progress.
    shows_refusal: bool,
}

/// The file in a function's folder that it runs from.
#[derive(Debug)]
pub struct FolderFile {
    pub path: PathBuf,
    /// Digest of the component, if the file is native code and the component exists too.
    pub component: Option<Digest>,
}

#[derive(Debug)]
pub struct Work {
    pub stage: Stage,
    /// 0 until the module is complete.
    pub edition: u32,
    /// Reason why it makes no progress.
    pub cause: Option<Cause>,
    /// Failed attempts to run the compiler.
    pub attempts: u32,
}

#[derive(Debug)]
pub struct Cause {
    pub refusal: Refusal,
    /// The chunk that caused it.
    pub index: Option<u32>,
}

#[derive(Debug)]
pub enum Stage {
    Receiving(Receiving),
    Queued,
    Compiling,
    /// The workers are loading it.
    Loading,
    Trial(TrialProgress),
}

#[derive(Debug)]
pub struct Receiving {
    pub(crate) transfer: Transfer,
    /// Last arrival of a chunk.
    pub(crate) moved_at: Instant,
    pub(crate) fetch_at: Instant,
    pub(crate) fetch_after: Duration,
}

#[derive(Debug, Default)]
pub struct TrialProgress {
    pub messages: u32,
    pub tally: TrialTally,
    pub samples: Vec<Difference>,
    /// Its time passed before its messages came.
    pub is_late: bool,
}

/// Functions that the board does not have and that are reported because orders for them were refused. Bounded, since
/// any publisher can make names up.
#[derive(Debug, Default)]
pub struct UnknownFunctions(BTreeMap<Arc<str>, (TrackedFunction, Instant)>);

impl TrackedFunction {
    pub fn new(name: Arc<str>) -> Self {
        Self::with_record(Record::new(&name), name)
    }

    pub(crate) fn with_record(record: Record, name: Arc<str>) -> Self {
        Self {
            name,
            record,
            stored: None,
            folder: None,
            work: None,
            serving: None,
            fallback: None,
            guarded: TrialProgress::default(),
            is_displaced: false,
            load_error: None,
            is_quarantined: false,
            overlay: Overlay::default(),
            settings_orders: Vec::new(),
            refused: None,
            stale: Vec::new(),
            unsaved: None,
            refused_at: None,
            reported_at: None,
            is_due: true,
            shows_refusal: false,
        }
    }

    pub fn candidate(&self) -> Option<&Candidate> {
        self.record.candidate.as_ref()
    }

    pub(crate) fn active_digest(&self) -> Option<Digest> {
        self.record.active.as_ref().map(|active| active.digest)
    }

    pub(crate) fn start_work(&mut self) -> &mut Work {
        self.work.insert(Work { stage: Stage::Queued, edition: 0, cause: None, attempts: 0 })
    }

    /// Returns the transfer that waits for chunks, and the reason why it makes no progress.
    pub fn receiving(&mut self) -> Option<(&mut Receiving, &mut Option<Cause>)> {
        match &mut self.work {
            Some(Work { stage: Stage::Receiving(receiving), cause, .. }) => Some((receiving, cause)),
            _ => None,
        }
    }

    /// Requests a report as soon as one is allowed.
    pub(crate) fn mark_due(&mut self) {
        self.is_due = true;
    }

    /// Returns whether the refusal deserves a log line.
    pub fn refuse(&mut self, outcome: OrderOutcome, shows_now: bool, now: Now) -> bool {
        let is_new = self.refused.as_ref() != Some(&outcome);
        self.refused = Some(outcome);
        self.shows_refusal = shows_now;
        self.mark_due();
        let logs = is_new && is_over(self.refused_at, now);
        if logs {
            self.refused_at = Some(now.monotonic);
        }
        logs
    }

    pub(crate) fn may_report(&self, now: Now) -> bool {
        self.is_due && is_over(self.reported_at, now)
    }

    /// Returns the current report and counts it as published.
    pub fn report(&mut self, now: Now) -> Report {
        let Latest { outcome, progress, differences } = self.latest();
        // After the refusal of another order the one in progress is reported again.
        self.is_due = std::mem::take(&mut self.shows_refusal) && self.work.is_some();
        self.reported_at = Some(now.monotonic);
        let serving = self.on_live_trial().or(self.serving.and(self.record.active.as_ref()));
        let previous = match self.on_live_trial() {
            Some(_) => self.record.fallback().or(self.record.active.as_ref()),
            None => self.record.returns_to(),
        };
        let proven = self.is_proven(outcome.state);
        let unsaved = self.unsaved.as_ref().filter(|_| outcome.reason.is_none());
        Report {
            function: self.name.to_string(),
            state: outcome.state,
            reason: outcome.reason.or(unsaved.map(|refusal| refusal.reason)),
            error: outcome.error.or(unsaved.map(|refusal| refusal.detail.clone())),
            version: outcome.version,
            serial: outcome.serial,
            digest: outcome.digest,
            progress,
            active: serving
                .map(|stored| Active { version: stored.to_report(), manifest: stored.manifest.as_value().clone() }),
            previous: previous.map(|stored| stored.to_report()),
            proven,
            settings: serving.map(|it| self.reported_settings(&it.manifest.to_json())).unwrap_or_default(),
            settings_orders: self.settings_orders.clone(),
            differences,
            keys: None,
            at_ms: now.unix_ms,
            clock_synced: now.synced,
        }
    }

    /// The candidate, while it serves on trial.
    pub(crate) fn on_live_trial(&self) -> Option<&StoredVersion> {
        let work = self.work.as_ref().filter(|work| matches!(work.stage, Stage::Trial(_)));
        let candidate = work.and(self.candidate())?;
        let is_shadow = candidate.stored.trial().is_some_and(|trial| trial.mode == TrialMode::Shadow);
        // Beside nothing a shadow serves like any other version.
        (!is_shadow || self.record.active.is_none()).then_some(&candidate.stored)
    }

    /// `None`: not decided yet, or not about a version that could be.
    fn is_proven(&self, state: DeployState) -> Option<bool> {
        let is_late = match &self.work {
            Some(Work { stage: Stage::Trial(trial), .. }) => trial.is_late,
            _ => self.record.unproven.is_some(),
        };
        if is_late { Some(false) } else { (state == DeployState::Active).then_some(true) }
    }

    fn latest(&self) -> Latest {
        if let (Some(work), Some(candidate), false) = (&self.work, self.candidate(), self.shows_refusal) {
            return work.latest(candidate);
        }
        let outcome = match (&self.refused, &self.load_error, &self.record.outcome) {
            (Some(refused), _, _) => refused.clone(),
            (None, Some(error), _) => self.active_outcome(DeployState::Rejected, Some(error)),
            (None, None, outcome) if self.is_quarantined && self.record.active.is_some() => {
                let detail = "it failed too often in a row and is paused; see the dead letters for why";
                let why = Refusal::new(Reason::Quarantined, detail);
                let active = self.active_outcome(DeployState::Quarantined, Some(&why));
                OrderOutcome { serial: outcome.as_ref().map_or(active.serial, |outcome| outcome.serial), ..active }
            }
            (None, None, Some(outcome)) => outcome.clone(),
            (None, None, None) => self.active_outcome(DeployState::Active, None),
        };
        let progress = self.record.unproven.as_ref().map(|_| self.guarded.progress());
        Latest { outcome, progress, differences: Vec::new() }
    }

    fn active_outcome(&self, state: DeployState, why: Option<&Refusal>) -> OrderOutcome {
        match &self.record.active {
            Some(active) => OrderOutcome::of_version(state, why, active),
            None => OrderOutcome::new(state, why),
        }
    }
}

fn is_over(since: Option<Instant>, now: Now) -> bool {
    since.is_none_or(|at| now.monotonic.saturating_duration_since(at) >= REPORT_EVERY)
}

struct Latest {
    outcome: OrderOutcome,
    progress: Option<Progress>,
    differences: Vec<Difference>,
}

impl TrialProgress {
    pub(crate) fn of(trial: &Trial) -> Self {
        Self { messages: trial.messages.get(), ..Self::default() }
    }

    fn progress(&self) -> Progress {
        let TrialTally { run, failed, different } = self.tally;
        Progress::Trial { messages: self.messages, run, failed, different }
    }
}

impl Work {
    /// Whether the edition was handed to the pipeline.
    pub(crate) fn is_started(&self) -> bool {
        matches!(self.stage, Stage::Loading | Stage::Trial(_))
    }

    pub(crate) fn receives(&self, digest: &Digest) -> bool {
        matches!(&self.stage, Stage::Receiving(receiving) if receiving.transfer.digest() == *digest)
    }

    fn latest(&self, candidate: &Candidate) -> Latest {
        let mut differences = Vec::new();
        let (state, progress) = match &self.stage {
            Stage::Receiving(Receiving { transfer, .. }) => {
                let progress = Progress::Chunks { chunks: transfer.chunks(), received: transfer.received() };
                let state = if transfer.is_complete() { DeployState::Verifying } else { DeployState::Receiving };
                (state, Some(progress))
            }
            Stage::Queued | Stage::Compiling | Stage::Loading => (DeployState::Compiling, None),
            Stage::Trial(trial) => {
                differences.clone_from(&trial.samples);
                (DeployState::Trial, Some(trial.progress()))
            }
        };
        let outcome = OrderOutcome::of_candidate(state, self.cause.as_ref().map(|cause| &cause.refusal), candidate);
        Latest { outcome, progress, differences }
    }
}

impl UnknownFunctions {
    /// Returns the entry of the name, or `None` if there are too many, and the name whose entry it replaces.
    pub fn entry(&mut self, name: &str, now: Now) -> (Option<&mut TrackedFunction>, Option<Arc<str>>) {
        let mut replaced = None;
        if !self.0.contains_key(name) && self.0.len() >= MAX_UNKNOWN {
            let oldest = self.0.iter().min_by_key(|(_, (_, since))| *since);
            let is_old = |since: Instant| now.monotonic.saturating_duration_since(since) >= UNKNOWN_KEPT;
            replaced = oldest.filter(|(_, (_, since))| is_old(*since)).map(|(name, _)| Arc::clone(name));
            match &replaced {
                Some(oldest) => self.0.remove(oldest),
                None => return (None, None),
            };
        }
        let name: Arc<str> = name.into();
        let (function, _) =
            self.0.entry(Arc::clone(&name)).or_insert_with(|| (TrackedFunction::new(name), now.monotonic));
        (Some(function), replaced)
    }

    pub fn remove(&mut self, name: &str) {
        self.0.remove(name);
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut TrackedFunction> {
        self.0.values_mut().map(|(function, _)| function)
    }
}
