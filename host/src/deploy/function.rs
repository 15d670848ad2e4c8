//! One function as the board sees it: what is kept, what is under way, and what is reported of both.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::reason::{Reason, Refusal};
use super::record::{Candidate, CandidateKind, OrderOutcome, Record};
use super::report::{Active, DeployState, Difference, Progress, Report};
use super::staging::Transfer;
use super::topics::Target;
use crate::manifest::Trial;
use crate::message::Digest;
use crate::time::Now;

/// A function is reported at most this often, unless an order of a trusted key changes its state.
const REPORT_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct TrackedFunction {
    pub name: Arc<str>,
    pub record: Record,
    /// What the disk holds. Other than `record` only while the disk fails, or a folder holds a newer version.
    pub stored: Option<Record>,
    /// The folder's component, when the active version is not among the modules.
    pub folder: Option<std::path::PathBuf>,
    /// What becomes of the candidate.
    pub work: Option<Work>,
    /// The edition that was handed to the pipeline as the active one.
    pub serving: Option<u32>,
    /// Why the active version does not serve.
    pub load_error: Option<Refusal>,
    pub is_quarantined: bool,
    /// Why the latest order was not accepted.
    pub refused: Option<OrderOutcome>,
    /// An order that was refused for its serial, which the broker hands over again at every connection.
    pub stale: Vec<(Target, Digest)>,
    /// Why the record could not be written.
    pub unsaved: Option<Refusal>,
    refused_at: Option<Instant>,
    reported_at: Option<Instant>,
    is_due: bool,
    /// Report the refusal even though another order is under way.
    shows_refusal: bool,
}

#[derive(Debug)]
pub struct Work {
    pub stage: Stage,
    /// 0 until the module is there.
    pub edition: u32,
    /// Why it does not get on.
    pub cause: Option<Cause>,
    /// How often the compiler could not be run.
    pub attempts: u32,
}

#[derive(Debug)]
pub struct Cause {
    pub refusal: Refusal,
    /// The chunk that it was about.
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
    pub transfer: Transfer,
    /// The last time that a chunk came, or the disk had no room for one.
    pub moved_at: Instant,
    pub fetch_at: Instant,
    pub fetch_after: Duration,
}

#[derive(Debug, Default)]
pub struct TrialProgress {
    pub messages: u32,
    pub run: u32,
    pub failed: u32,
    pub different: u32,
    pub samples: Vec<Difference>,
}

impl TrackedFunction {
    pub fn new(name: Arc<str>) -> Self {
        Self::of(Record::new(&name), name)
    }

    pub fn of(record: Record, name: Arc<str>) -> Self {
        Self {
            name,
            record,
            stored: None,
            folder: None,
            work: None,
            serving: None,
            load_error: None,
            is_quarantined: false,
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

    /// Something about it is to be reported, when it may be.
    pub fn mark_due(&mut self) {
        self.is_due = true;
    }

    /// Returns whether it is worth a line in the log.
    pub fn refuse(&mut self, outcome: OrderOutcome, shows_now: bool, now: Now) -> bool {
        let is_news = self.refused.as_ref() != Some(&outcome);
        self.refused = Some(outcome);
        self.shows_refusal = shows_now;
        self.mark_due();
        if !is_news || self.refused_at.is_some_and(|at| now.monotonic.saturating_duration_since(at) < REPORT_EVERY) {
            return false;
        }
        self.refused_at = Some(now.monotonic);
        true
    }

    pub fn may_report(&self, now: Now) -> bool {
        self.is_due && self.reported_at.is_none_or(|at| now.monotonic.saturating_duration_since(at) >= REPORT_EVERY)
    }

    /// The report, as of now. It counts as made.
    pub fn report(&mut self, now: Now) -> Report {
        let Latest { outcome, progress, differences } = self.latest();
        // What is under way is shown again after the refusal of another order.
        self.is_due = std::mem::take(&mut self.shows_refusal) && self.work.is_some();
        self.reported_at = Some(now.monotonic);
        let serving = self.serving.and(self.record.active.as_ref());
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
                .map(|stored| Active { version: stored.reported(), manifest: stored.manifest.as_value().clone() }),
            previous: self.record.previous.as_ref().map(|stored| stored.reported()),
            differences,
            keys: None,
            at_ms: now.unix_ms,
            clock_synced: now.synced,
        }
    }

    fn latest(&self) -> Latest {
        if let (Some(work), Some(candidate), false) = (&self.work, self.candidate(), self.shows_refusal) {
            return work.latest(candidate);
        }
        let outcome = match (&self.refused, &self.load_error, &self.record.outcome) {
            (Some(refused), _, _) => refused.clone(),
            (None, Some(error), _) => self.of_active(DeployState::Rejected, Some(error)),
            (None, None, outcome) if self.is_quarantined && self.record.active.is_some() => {
                let detail = "it failed too often in a row and is paused; see the dead letters for why";
                let why = Refusal::new(Reason::Quarantined, detail);
                let active = self.of_active(DeployState::Quarantined, Some(&why));
                OrderOutcome { serial: outcome.as_ref().map_or(active.serial, |outcome| outcome.serial), ..active }
            }
            (None, None, Some(outcome)) => outcome.clone(),
            (None, None, None) => self.of_active(DeployState::Active, None),
        };
        Latest { outcome, progress: None, differences: Vec::new() }
    }

    fn of_active(&self, state: DeployState, why: Option<&Refusal>) -> OrderOutcome {
        OrderOutcome::new(
            state,
            why,
            self.record.active.as_ref().map(|stored| (stored.version(), stored.serial(), stored.digest)),
        )
    }
}

struct Latest {
    outcome: OrderOutcome,
    progress: Option<Progress>,
    differences: Vec<Difference>,
}

impl Work {
    pub fn new() -> Self {
        Self { stage: Stage::Queued, edition: 0, cause: None, attempts: 0 }
    }

    /// Whether the pipeline has been given the edition.
    pub fn is_started(&self) -> bool {
        matches!(self.stage, Stage::Loading | Stage::Trial(_))
    }

    pub fn receiving(&mut self) -> Option<&mut Receiving> {
        match &mut self.stage {
            Stage::Receiving(receiving) => Some(receiving),
            _ => None,
        }
    }

    pub fn receives(&self, digest: &Digest) -> bool {
        matches!(&self.stage, Stage::Receiving(receiving) if receiving.transfer.digest() == *digest)
    }

    fn latest(&self, candidate: &Candidate) -> Latest {
        let (state, progress) = match &self.stage {
            Stage::Receiving(Receiving { transfer, .. }) => {
                let progress = Progress::Chunks { chunks: transfer.chunks(), received: transfer.received() };
                let state = if transfer.is_complete() { DeployState::Verifying } else { DeployState::Receiving };
                (state, Some(progress))
            }
            Stage::Queued | Stage::Compiling | Stage::Loading => (DeployState::Compiling, None),
            Stage::Trial(TrialProgress { messages, run, failed, different, .. }) => {
                let progress =
                    Progress::Trial { messages: *messages, run: *run, failed: *failed, different: *different };
                (DeployState::Trial, Some(progress))
            }
        };
        let differences = match &self.stage {
            Stage::Trial(trial) => trial.samples.clone(),
            _ => Vec::new(),
        };
        let outcome = OrderOutcome::of(state, self.cause.as_ref().map(|cause| &cause.refusal), candidate);
        Latest { outcome, progress, differences }
    }
}

impl OrderOutcome {
    pub fn new(state: DeployState, why: Option<&Refusal>, of: Option<(String, u64, Digest)>) -> Self {
        let (version, serial, digest) =
            of.map_or((None, None, None), |(version, serial, digest)| (Some(version), Some(serial), Some(digest)));
        Self {
            state,
            reason: why.map(|refusal| refusal.reason),
            error: why.map(|refusal| refusal.detail.clone()),
            version,
            serial,
            digest,
        }
    }

    /// Of the order that brought the candidate.
    pub fn of(state: DeployState, why: Option<&Refusal>, candidate: &Candidate) -> Self {
        let stored = &candidate.stored;
        Self::new(state, why, Some((stored.version(), candidate.serial, stored.digest)))
    }
}

impl Candidate {
    /// A version that has proved itself before does not have to again.
    pub fn trial(&self, trial: &Trial) -> Option<Trial> {
        match self.kind {
            CandidateKind::Install(_) => Some(trial.clone()),
            CandidateKind::Rollback => None,
        }
    }
}
