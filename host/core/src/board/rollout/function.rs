//! A function: its place in the order of things, which stays, and its versions, which come and go.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::pause::{PauseConfig, Paused, Pauses};
use super::trial::Candidate;
use crate::board::ids::FunctionNo;
use crate::manifest::{Manifest, StateScope};
use crate::message::{Failure, Message, Scope};
use crate::metrics::FunctionMetrics;
use crate::request::HttpRoute;
use crate::router::Heard;
use crate::topic::TopicFilter;
use crate::version::Version;

/// A function whose runs may take longer has a worker of its own.
const LONG_RUN_MS: u32 = 100;
/// A function whose runs may take longer gets its messages from the store, where they are parked first.
const VERY_LONG_RUN_MS: u32 = 1_000;
/// Shortest time between two lines about paused topics of one function.
const LOG_PAUSES_EVERY: Duration = Duration::from_secs(10);

/// A version that workers have loaded or are loading.
#[derive(Debug)]
pub struct Edition {
    pub version: Arc<Version>,
    /// Jobs that the workers have not answered.
    jobs: Cell<u32>,
    /// On trial, or has failed it: if it misbehaves, another version runs the message.
    is_unproven: Cell<bool>,
}

/// What runs under one name.
pub(crate) struct Function {
    /// The name that people know.
    pub(crate) name: Arc<str>,
    /// The name under which its state is stored. A shadow has its own.
    state_name: Arc<str>,
    pub(crate) role: Role,
    pub(crate) metrics: Arc<FunctionMetrics>,
    pub(crate) pauses: Pauses,
    /// When a pause was last logged, and pauses since that were not.
    pub(crate) pause_logged: Option<Instant>,
    pub(crate) pauses_unlogged: u32,
    over_share_logged: Option<Instant>,
    over_share_unlogged: u64,
    pub(crate) versions: Versions,
    /// Replaced, with jobs that the workers have not answered.
    retired: Vec<Rc<Edition>>,
    pub(crate) next_tick: Option<Instant>,
    pub(crate) is_ticking: bool,
    /// There was no room for the state of this shadow.
    pub(crate) is_state_refused: bool,
    /// Logged once, not for every message.
    pub(crate) warned_without_upstream: bool,
}

/// Which versions there are, and which of them serves.
#[derive(Debug, Default)]
pub(crate) enum Versions {
    /// Not installed: not loaded yet, or removed.
    #[default]
    None,
    Active(Rc<Edition>),
    /// The candidate serves. The fallback stays loaded and runs what the candidate misbehaves over.
    Trial {
        candidate: Box<Candidate>,
        fallback: Option<Rc<Edition>>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Messages come from the router. `shadow`: a version that runs beside on the same messages, without effect.
    Main { shadow: Option<FunctionNo> },
    /// Runs beside another function; its outputs are only compared.
    Shadow { of: FunctionNo },
}

impl Edition {
    pub fn new(version: Version) -> Self {
        let is_unproven = Cell::new(version.trial.is_some());
        Self { version: version.into(), jobs: Cell::new(0), is_unproven }
    }

    pub fn number(&self) -> u32 {
        self.version.edition
    }

    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.version.manifest
    }

    pub fn scope(&self) -> StateScope {
        self.version.manifest.state
    }

    pub(crate) fn is_unproven(&self) -> bool {
        self.is_unproven.get()
    }

    pub(super) fn set_proven(&self) {
        self.is_unproven.set(false);
    }

    pub(super) fn submitted(&self) {
        self.jobs.set(self.jobs.get() + 1);
    }

    pub(super) fn has_jobs(&self) -> bool {
        self.jobs.get() > 0
    }

    fn answered(&self) -> u32 {
        let left = self.jobs.get().checked_sub(1).expect("a job is answered once");
        self.jobs.set(left);
        left
    }

    /// Whether a run may take so long that messages of other functions must not wait for it.
    pub(crate) fn wants_own_worker(&self) -> bool {
        self.version.limits.timeout_ms > LONG_RUN_MS
    }

    /// Whether a run may take so long that acknowledgements must not wait for it.
    pub(crate) fn runs_long(&self) -> bool {
        self.version.limits.timeout_ms > VERY_LONG_RUN_MS
    }

    /// How many topics it hears. `None`: that depends on who publishes.
    fn heard(&self) -> Option<usize> {
        let Manifest { subscribe, http, every, at, .. } = &**self.manifest();
        let has_wildcard = subscribe.iter().any(|filter| filter.as_str().contains(['+', '#']));
        let is_open = has_wildcard || http.iter().any(HttpRoute::has_parameters);
        (!is_open).then(|| subscribe.len() + http.len() + usize::from(every.is_some()) + at.len())
    }

    pub(crate) fn wants(&self, topic: &str) -> bool {
        let is_timer = || self.manifest().every.is_some() && topic.starts_with("$timer/");
        self.manifest().hears(topic) || is_timer() || self.manifest().has_schedule(topic)
    }

    /// Whether both versions order messages, choose workers and wait for state in the same way. Between versions with state
    /// and without, a job that need not wait would overtake one that does; so would one that is parked before it runs.
    pub(crate) fn has_keys_of(&self, other: &Self) -> bool {
        self.scope() == other.scope() && self.runs_long() == other.runs_long()
    }
}

impl Function {
    pub(crate) fn new(
        name: Arc<str>,
        state_name: Arc<str>,
        role: Role,
        metrics: Arc<FunctionMetrics>,
        pause: PauseConfig,
    ) -> Self {
        Self {
            name,
            state_name,
            role,
            metrics,
            pauses: Pauses::new(pause, None),
            pause_logged: None,
            pauses_unlogged: 0,
            over_share_logged: None,
            over_share_unlogged: 0,
            versions: Versions::None,
            retired: Vec::new(),
            next_tick: None,
            is_ticking: false,
            is_state_refused: false,
            warned_without_upstream: false,
        }
    }

    /// Whether its code is still being compiled.
    pub(crate) fn is_awaited(&self) -> bool {
        self.serving().is_some_and(|edition| edition.version.is_awaited)
    }

    pub(crate) fn is_shadow(&self) -> bool {
        matches!(self.role, Role::Shadow { .. })
    }

    pub(crate) fn state_name(&self) -> &Arc<str> {
        &self.state_name
    }

    /// Another version serves: what the one before failed over says nothing about it.
    pub(super) fn forget_pauses(&mut self, config: PauseConfig) {
        let heard = self.serving().and_then(|edition| edition.heard());
        self.pauses = Pauses::new(config, heard);
    }

    /// Logs that a topic is paused, or the function with it: once in a while, since whoever publishes decides how often.
    pub(crate) fn log_pause(&mut self, paused: Paused, topic: &str, failure: &Failure, now: Instant) {
        let Paused { length, is_function } = paused;
        let (reason, detail) = (failure.code.as_str(), &*failure.detail);
        let (function, pause_secs) = (&*self.name, length.as_secs());
        if is_function {
            tracing::error!(function, topic, pause_secs, reason, detail, "the function keeps failing and is paused");
        } else if self.pause_logged.is_none_or(|at| now.saturating_duration_since(at) >= LOG_PAUSES_EVERY) {
            self.pause_logged = Some(now);
            let others = std::mem::take(&mut self.pauses_unlogged);
            tracing::error!(
                function,
                topic,
                pause_secs,
                reason,
                detail,
                others,
                "the function keeps failing over a topic, which is paused for it"
            );
        } else {
            self.pauses_unlogged = self.pauses_unlogged.saturating_add(1);
        }
    }

    /// Logs that messages of the function become dead letters because too many wait: once in a while.
    pub(crate) fn log_over_share(&mut self, share: usize, now: Instant) {
        if self.over_share_logged.is_some_and(|at| now.saturating_duration_since(at) < LOG_PAUSES_EVERY) {
            self.over_share_unlogged += 1;
            return;
        }
        self.over_share_logged = Some(now);
        tracing::warn!(
            function = &*self.name,
            share,
            others = std::mem::take(&mut self.over_share_unlogged),
            "more messages wait for the function than its share: further ones become dead letters (over-share)"
        );
    }

    /// Where the state of a run on this message is stored.
    pub(crate) fn state_scope(&self, scope: StateScope, message: &Message) -> Scope {
        let topic = (scope == StateScope::Topic).then(|| message.shared_state_topic());
        Scope { function: Arc::clone(&self.state_name), topic }
    }

    /// The version that messages go to.
    pub(crate) fn serving(&self) -> Option<&Rc<Edition>> {
        self.current().next()
    }

    /// The version that a message of this topic goes to. Topics that a candidate no longer wants go to the fallback, which
    /// may have to serve again.
    pub(crate) fn serving_for(&self, topic: &str) -> Option<&Rc<Edition>> {
        match &self.versions {
            Versions::None => None,
            Versions::Active(edition) => Some(edition),
            Versions::Trial { candidate, .. } if candidate.counts_as_active() || candidate.edition.wants(topic) => {
                Some(&candidate.edition)
            }
            Versions::Trial { candidate, fallback } => {
                fallback.as_ref().filter(|it| it.wants(topic)).or(Some(&candidate.edition))
            }
        }
    }

    /// The candidate, then the version that has proven itself.
    pub(crate) fn current(&self) -> impl Iterator<Item = &Rc<Edition>> {
        let (candidate, proven) = match &self.versions {
            Versions::None => (None, None),
            Versions::Active(edition) => (None, Some(edition)),
            Versions::Trial { candidate, fallback } => (Some(&candidate.edition), fallback.as_ref()),
        };
        candidate.into_iter().chain(proven)
    }

    pub(crate) fn candidate(&mut self) -> Option<&mut Candidate> {
        match &mut self.versions {
            Versions::Trial { candidate, .. } => Some(candidate),
            _ => None,
        }
    }

    /// When the trial must be evaluated although nothing happened.
    pub(crate) fn trial_due(&self) -> Option<Instant> {
        match &self.versions {
            Versions::Trial { candidate, .. } => candidate.until().into_iter().chain(candidate.next_report()).min(),
            _ => None,
        }
    }

    pub(crate) fn is_on_trial(&self) -> bool {
        matches!(self.versions, Versions::Trial { .. })
    }

    /// The version that takes over what the one on trial misbehaves over.
    pub(crate) fn fallback(&self) -> Option<&Rc<Edition>> {
        match &self.versions {
            Versions::Trial { fallback, .. } => fallback.as_ref(),
            Versions::Active(edition) => Some(edition),
            Versions::None => None,
        }
    }

    pub(crate) fn edition(&self, number: u32) -> Option<&Rc<Edition>> {
        self.current().chain(&self.retired).find(|edition| edition.number() == number)
    }

    /// Whether another version runs what this one misbehaves over.
    pub(crate) fn can_fall_back(&self, edition: &Edition) -> bool {
        edition.is_unproven() && self.fallback().is_some_and(|proven| proven.number() != edition.number())
    }

    /// Versions that serve or may have to serve again. One that counts as active decides alone which topics are heard.
    fn listening(&self) -> impl Iterator<Item = &Rc<Edition>> {
        let versions = match &self.versions {
            Versions::Trial { candidate, .. } if candidate.counts_as_active() => 1,
            _ => 2,
        };
        self.current().take(versions)
    }

    /// Filters of all versions that serve or may have to serve again, with those that exclude.
    pub(crate) fn heard(&self) -> Vec<Heard> {
        let heard = |edition: &Rc<Edition>| {
            let manifest = edition.manifest();
            Heard { subscribe: manifest.subscribe.clone(), except: manifest.except.clone() }
        };
        self.listening().map(heard).collect()
    }

    /// Filters to subscribe to: those of all versions that serve or may have to serve again.
    pub(crate) fn wanted(&self) -> Vec<TopicFilter> {
        let mut wanted: Vec<TopicFilter> = Vec::new();
        for filter in self.listening().flat_map(|edition| &edition.manifest().subscribe) {
            if !wanted.contains(filter) {
                wanted.push(filter.clone());
            }
        }
        wanted
    }

    /// The versions with schedules, and the names of those that are theirs: the candidate's before those of the other.
    pub(crate) fn schedules(&self) -> Vec<(&Rc<Edition>, &str)> {
        let mut schedules: Vec<(&Rc<Edition>, &str)> = Vec::new();
        for edition in self.listening() {
            for name in edition.manifest().at.keys() {
                if !schedules.iter().any(|(_, known)| known == name) {
                    schedules.push((edition, name));
                }
            }
        }
        schedules
    }

    pub(crate) fn is_routed(&self) -> bool {
        !self.is_shadow() && self.serving().is_some()
    }

    pub(crate) fn jobs_under_way(&self) -> usize {
        self.current().chain(&self.retired).map(|edition| edition.jobs.get() as usize).sum()
    }

    /// Returns the edition if the workers can unload it now; otherwise it stays until its jobs are answered.
    pub(super) fn retire(&mut self, edition: Rc<Edition>) -> Option<u32> {
        if edition.jobs.get() == 0 {
            return Some(edition.number());
        }
        self.retired.push(edition);
        None
    }

    /// One job of an edition is answered. With the edition, whether the workers can unload it now.
    pub(super) fn answered(&mut self, number: u32) -> (Rc<Edition>, bool) {
        let edition = Rc::clone(self.edition(number).expect("an edition stays while it has jobs"));
        let is_last = edition.answered() == 0;
        let place = self.retired.iter().position(|it| is_last && it.number() == number);
        if let Some(place) = place {
            self.retired.remove(place);
        }
        (edition, place.is_some())
    }

    /// No job counts any more. Returns editions that the workers can unload.
    pub(super) fn forget_jobs(&mut self) -> Vec<u32> {
        for edition in self.current() {
            edition.jobs.set(0);
        }
        self.is_ticking = false;
        self.pauses.all_undecided();
        std::mem::take(&mut self.retired).iter().map(|edition| edition.number()).collect()
    }
}
