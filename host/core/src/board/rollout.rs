//! Functions and their versions: what serves, what is on trial, what runs as a shadow, what is paused.
//!
//! ```text
//! deploy ─▶ pending (workers load it) ─▶ active
//!                                     └▶ trial: candidate serves, fallback ready ─▶ active, or rolled back
//!                                     └▶ shadow: a function of its own beside the main one ─▶ promoted, or ended
//! ```
//!
//! This part decides who serves. Calling jobs back where a version orders messages differently is the board's, in
//! `versions.rs`, since it concerns jobs.

pub mod function;
pub mod pause;
pub mod trial;

use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::ids::FunctionNo;
use crate::deploy::TrialEvent;
use crate::manifest::TrialMode;
use crate::metrics::{FunctionMetrics, Metrics};
use crate::time::Now;
use crate::version::Version;
pub use function::Edition;
pub(crate) use function::{Function, Role, Versions};
pub use pause::PauseConfig;
pub use trial::TrialEnd;
pub(crate) use trial::{Candidate, Observed};

/// Functions that one daemon may run over its life, removed ones included.
const MAX_FUNCTIONS: usize = 1 << 16;

pub(crate) struct Rollout {
    functions: Vec<Function>,
    /// Functions with a timer or a trial, and some that had one. Most boards have few.
    timed: BTreeSet<FunctionNo>,
    pending: Vec<Pending>,
    pause: PauseConfig,
    metrics: Arc<Metrics>,
    reports: VecDeque<Report>,
    routes_changed: bool,
}

/// A version that the workers are loading, or that waits for jobs to be called back.
#[derive(Clone)]
struct Pending {
    function: FunctionNo,
    edition: Rc<Edition>,
    is_loaded: bool,
}

/// Something that the rest of the daemon is told.
pub(crate) enum Report {
    Deployed { function: Arc<str>, edition: u32, event: TrialEvent },
    Paused { function: Arc<str>, is_paused: bool },
}

/// A version that has been given a place. The workers are to load it.
pub(crate) struct Placed {
    pub(crate) function: FunctionNo,
    pub(crate) edition: Rc<Edition>,
    /// Serves before the workers have confirmed it: jobs reach a worker behind the code that they need.
    pub(crate) serves_at_once: bool,
    /// Versions that waited to be loaded and are given up.
    pub(crate) superseded: Vec<(FunctionNo, u32)>,
}

/// What a worker's answer about a version means.
pub(crate) enum Loaded {
    /// The version is not awaited any more.
    Unknown,
    /// Given up. `unload`: the workers that have it need not keep it.
    Failed { unload: bool },
    /// Serves already.
    Confirmed,
    /// Can begin.
    Ready,
}

impl Rollout {
    pub(crate) fn new(pause: PauseConfig, metrics: Arc<Metrics>) -> Self {
        Self {
            functions: Vec::new(),
            timed: BTreeSet::new(),
            pending: Vec::new(),
            pause,
            metrics,
            reports: VecDeque::new(),
            routes_changed: false,
        }
    }

    pub(crate) fn functions(&self) -> impl Iterator<Item = (FunctionNo, &Function)> {
        self.functions.iter().enumerate().map(|(number, function)| (FunctionNo(number as u32), function))
    }

    pub(crate) fn numbers(&self) -> impl Iterator<Item = FunctionNo> + use<> {
        (0..self.functions.len() as u32).map(FunctionNo)
    }

    pub(crate) fn function(&self, number: FunctionNo) -> &Function {
        &self.functions[number.index()]
    }

    pub(crate) fn function_mut(&mut self, number: FunctionNo) -> &mut Function {
        &mut self.functions[number.index()]
    }

    pub(crate) fn find(&self, name: &str) -> Option<FunctionNo> {
        self.functions().find(|(_, it)| !it.is_shadow() && *it.name == *name).map(|(number, _)| number)
    }

    /// The shadow of a function that runs or is being loaded.
    pub(crate) fn find_shadow(&self, of: FunctionNo) -> Option<FunctionNo> {
        let is_alive = |number: FunctionNo, it: &Function| {
            it.is_on_trial() || self.pending.iter().any(|pending| pending.function == number)
        };
        let shadows = self.functions().filter(|(_, it)| it.role == Role::Shadow { of });
        shadows.filter(|(number, it)| is_alive(*number, it)).map(|(number, _)| number).next()
    }

    pub(crate) fn timed(&self) -> impl Iterator<Item = FunctionNo> + '_ {
        self.timed.iter().copied()
    }

    pub(crate) fn poll_report(&mut self) -> Option<Report> {
        self.reports.pop_front()
    }

    /// Whether other topics are wanted than when this was last asked.
    pub(crate) fn take_routes_changed(&mut self) -> bool {
        std::mem::take(&mut self.routes_changed)
    }

    pub(crate) fn report(&mut self, function: FunctionNo, edition: u32, event: TrialEvent) {
        let function = Arc::clone(&self.function(function).name);
        self.reports.push_back(Report::Deployed { function, edition, event });
    }

    /// Tells what is paused: topics in the figures, and the function as a whole where that has changed.
    pub(crate) fn report_pause(&mut self, number: FunctionNo) {
        let function = self.function(number);
        let (name, is_paused) = (Arc::clone(&function.name), function.pauses.is_paused());
        function.metrics.paused_topics.set(function.pauses.paused_topics() as u64);
        function.metrics.set_pauses(function.pauses.shown());
        let was_paused = function.metrics.quarantined.get() != 0;
        if is_paused != was_paused {
            function.metrics.quarantined.set(is_paused.into());
            self.reports.push_back(Report::Paused { function: name, is_paused });
        }
    }

    // ---- versions ----

    /// Gives a version its place. `has_run`: workers have run it under another number, so it is known to load. A shadow
    /// that runs already must have been ended. `Err`: all numbers are used up.
    pub(crate) fn place(&mut self, mut version: Version, has_run: bool, now: Now) -> Result<Placed, String> {
        let name = Arc::clone(&version.manifest.name);
        let main = self.find(&name);
        let is_first = main.is_none_or(|number| self.function(number).serving().is_none());
        let is_shadow = version.trial.as_ref().is_some_and(|trial| trial.mode == TrialMode::Shadow) && !is_first;
        let number = match (main, is_shadow) {
            (Some(main), true) => {
                // Of this trial alone: what an earlier trial of the same module left must not be taken for its state.
                let state = format!("{name}~{}-{}-{:x}", version.digest, version.edition, now.unix_ms);
                self.add(name, state.into(), Role::Shadow { of: main })
            }
            (Some(main), false) => {
                // A function that was removed and is installed again begins with new series.
                self.function_mut(main).metrics = self.metrics.function(&name);
                Some(main)
            }
            (None, _) => self.add(Arc::clone(&name), name, Role::Main { shadow: None }),
        };
        let Some(number) = number else {
            return Err(format!("{MAX_FUNCTIONS} functions have run since the start; restart the daemon"));
        };
        if let Some(trial) = version.trial.as_mut().filter(|_| !is_shadow) {
            trial.mode = TrialMode::Live;
        }
        let edition = Rc::new(Edition::new(version));
        // Whatever waits already is older.
        let superseded = self.forget_pending(number);
        let keeps_keys = self.keeps_keys(number, &edition);
        let placed = Placed {
            function: number,
            edition: Rc::clone(&edition),
            // A version that is resumed has been loaded before.
            serves_at_once: match edition.version.trial {
                None => is_first || has_run && keeps_keys,
                Some(_) => edition.version.is_resumed && (keeps_keys || self.function(number).jobs_under_way() == 0),
            },
            superseded,
        };
        self.pending.push(Pending { function: number, edition, is_loaded: false });
        Ok(placed)
    }

    fn add(&mut self, name: Arc<str>, state_name: Arc<str>, role: Role) -> Option<FunctionNo> {
        if self.functions.len() >= MAX_FUNCTIONS {
            return None;
        }
        // The figures of a shadow are not those of the function that serves.
        let metrics = match role {
            Role::Main { .. } => self.metrics.function(&name),
            Role::Shadow { .. } => Arc::new(FunctionMetrics::default()),
        };
        self.functions.push(Function::new(name, state_name, role, metrics, self.pause));
        Some(FunctionNo(self.functions.len() as u32 - 1))
    }

    pub(crate) fn loaded(&mut self, number: FunctionNo, edition: u32, error: Option<String>) -> Loaded {
        let is_it = |it: &Pending| it.function == number && it.edition.number() == edition;
        let Some(place) = self.pending.iter().position(is_it) else { return Loaded::Unknown };
        let serves = self.function(number).edition(edition).is_some();
        match error {
            Some(error) => {
                self.pending.remove(place);
                if serves {
                    let function = &*self.function(number).name;
                    tracing::error!(
                        function,
                        error,
                        "a worker could not load a function: its messages become dead letters"
                    );
                }
                self.report(number, edition, TrialEvent::NotLoaded { error });
                Loaded::Failed { unload: !serves }
            }
            None if serves => {
                self.pending.remove(place);
                self.report(number, edition, TrialEvent::Ready);
                Loaded::Confirmed
            }
            None => {
                self.pending[place].is_loaded = true;
                Loaded::Ready
            }
        }
    }

    /// The version of a function that is loaded and waits to begin.
    pub(crate) fn next_pending(&self, number: FunctionNo) -> Option<&Rc<Edition>> {
        let pending = self.pending.iter().find(|it| it.function == number && it.is_loaded)?;
        Some(&pending.edition)
    }

    /// Whether the function's messages keep their order when this version serves.
    pub(crate) fn keeps_keys(&self, number: FunctionNo, edition: &Edition) -> bool {
        self.function(number).serving().is_none_or(|serving| serving.has_keys_of(edition))
    }

    /// Begins the loaded version of a function. Returns versions that the workers can unload.
    pub(crate) fn begin_pending(&mut self, number: FunctionNo, now: Now) -> Vec<(FunctionNo, u32)> {
        let place = self.pending.iter().position(|it| it.function == number && it.is_loaded);
        let pending = self.pending.remove(place.expect("a loaded version waits"));
        let unload = self.begin(&pending, now);
        self.report(number, pending.edition.number(), TrialEvent::Ready);
        unload
    }

    /// Begins a version that workers are still loading: jobs reach a worker behind the code that they need.
    pub(crate) fn begin_at_once(&mut self, number: FunctionNo, edition: u32, now: Now) -> Vec<(FunctionNo, u32)> {
        let is_it = |it: &Pending| it.function == number && it.edition.number() == edition;
        let place = self.pending.iter().position(is_it).expect("a version is loaded before it begins");
        // It stays, to be confirmed by the workers.
        let pending = self.pending[place].clone();
        self.begin(&pending, now)
    }

    /// Gives a version its place before its code is there.
    pub(crate) fn begin_awaited(&mut self, number: FunctionNo, edition: u32, now: Now) -> Vec<(FunctionNo, u32)> {
        let is_it = |it: &Pending| it.function == number && it.edition.number() == edition;
        let place = self.pending.iter().position(is_it).expect("a version has its place before it begins");
        let pending = self.pending.remove(place);
        self.begin(&pending, now)
    }

    /// Makes a version serve, or begins its trial. Returns versions that the workers can unload.
    fn begin(&mut self, pending: &Pending, now: Now) -> Vec<(FunctionNo, u32)> {
        let (number, edition) = (pending.function, Rc::clone(&pending.edition));
        let function = self.function_mut(number);
        let (older, proven) = match std::mem::take(&mut function.versions) {
            Versions::None => (None, None),
            // It never ran, and cannot run anything in place of its own code.
            Versions::Active(edition) if edition.version.is_awaited => (Some(edition), None),
            Versions::Active(edition) => (None, Some(edition)),
            // With nothing proven behind it, what counts as active is what there is to return to.
            Versions::Trial { candidate, fallback: None } if candidate.counts_as_active() => {
                candidate.edition.set_proven();
                (None, Some(candidate.edition))
            }
            Versions::Trial { candidate, fallback } => (Some(candidate.edition), fallback),
        };
        let replaced = match edition.version.trial.clone() {
            Some(trial) => {
                let candidate = Box::new(Candidate::new(edition, trial, now.monotonic));
                function.versions = Versions::Trial { candidate, fallback: proven };
                self.timed.insert(number);
                None
            }
            None => {
                function.versions = Versions::Active(edition);
                proven
            }
        };
        let unload = self.retire(number, older.into_iter().chain(replaced));
        match self.function(number).role {
            Role::Shadow { of } => self.function_mut(of).role = Role::Main { shadow: Some(number) },
            Role::Main { .. } => self.serving_changed(number, now.monotonic),
        }
        unload
    }

    fn retire(
        &mut self,
        number: FunctionNo,
        editions: impl IntoIterator<Item = Rc<Edition>>,
    ) -> Vec<(FunctionNo, u32)> {
        let function = self.function_mut(number);
        editions.into_iter().filter_map(|edition| function.retire(edition)).map(|edition| (number, edition)).collect()
    }

    /// Another version serves than a moment ago.
    fn serving_changed(&mut self, number: FunctionNo, now: Instant) {
        let pause = self.pause;
        let function = self.function_mut(number);
        let had_failures = function.pauses.has_failures();
        function.forget_pauses(pause);
        function.warned_without_upstream = false;
        let every = function.serving().and_then(|edition| edition.manifest().every);
        function.next_tick = every.map(|every| now + every);
        self.timed.insert(number);
        self.routes_changed = true;
        if had_failures {
            self.report_pause(number);
        }
    }

    /// The function runs no more. Its shadow must have been ended.
    pub(crate) fn remove(&mut self, number: FunctionNo, now: Now) -> Vec<(FunctionNo, u32)> {
        let mut unload = self.forget_pending(number);
        let function = self.function_mut(number);
        let editions: Vec<Rc<Edition>> = function.current().cloned().collect();
        function.versions = Versions::None;
        unload.extend(self.retire(number, editions));
        self.metrics.forget_function(&self.function(number).name);
        self.serving_changed(number, now.monotonic);
        unload
    }

    /// Ends a version's running beside the active one.
    pub(crate) fn end_shadow(&mut self, number: FunctionNo) -> Vec<(FunctionNo, u32)> {
        let mut unload = self.forget_pending(number);
        let Role::Shadow { of } = self.function(number).role else { panic!("only a shadow is ended as one") };
        if let Role::Main { shadow } = &mut self.function_mut(of).role {
            shadow.take_if(|shadow| *shadow == number);
        }
        let candidate: Vec<Rc<Edition>> = self.function(number).current().cloned().collect();
        self.function_mut(number).versions = Versions::None;
        unload.extend(self.retire(number, candidate));
        unload
    }

    /// The version on trial has proven itself.
    pub(crate) fn promote(&mut self, number: FunctionNo) -> Vec<(FunctionNo, u32)> {
        let function = self.function_mut(number);
        let Versions::Trial { candidate, fallback } = std::mem::take(&mut function.versions) else {
            panic!("only a version on trial is promoted")
        };
        candidate.edition.set_proven();
        function.versions = Versions::Active(candidate.edition);
        self.routes_changed = true;
        self.retire(number, fallback)
    }

    /// The version on trial counts as active from now on: only its own topics are wanted.
    pub(crate) fn counts_as_active(&mut self) {
        self.routes_changed = true;
    }

    /// The version before the one on trial serves again. Returns versions to unload, and whether the keys stay the same.
    pub(crate) fn roll_back(&mut self, number: FunctionNo, now: Now) -> (Vec<(FunctionNo, u32)>, bool) {
        let function = self.function_mut(number);
        let Versions::Trial { candidate, fallback } = std::mem::take(&mut function.versions) else {
            panic!("only a version on trial is rolled back")
        };
        let keeps_keys = fallback.as_ref().is_none_or(|proven| proven.has_keys_of(&candidate.edition));
        function.versions = fallback.map_or(Versions::None, Versions::Active);
        let unload = self.retire(number, [candidate.edition]);
        self.serving_changed(number, now.monotonic);
        (unload, keeps_keys)
    }

    pub(crate) fn is_candidate(&self, number: FunctionNo, edition: u32) -> bool {
        let versions = &self.function(number).versions;
        matches!(versions, Versions::Trial { candidate, .. } if candidate.edition.number() == edition)
    }

    pub(crate) fn is_pending(&self, number: FunctionNo, edition: u32) -> bool {
        self.pending.iter().any(|it| it.function == number && it.edition.number() == edition)
    }

    /// Gives up versions of a function that wait to be loaded. Returns them, to be unloaded.
    pub(crate) fn forget_pending(&mut self, number: FunctionNo) -> Vec<(FunctionNo, u32)> {
        let Self { pending, functions, .. } = self;
        let function = &functions[number.index()];
        let is_gone = |it: &mut Pending| it.function == number && function.edition(it.edition.number()).is_none();
        pending.extract_if(.., is_gone).map(|it| (number, it.edition.number())).collect()
    }

    // ---- trials ----

    /// Counts a run of the version on trial. Returns how the trial ends, if it does.
    pub(crate) fn tried(
        &mut self,
        number: FunctionNo,
        edition: u32,
        failure: Option<&crate::message::Failure>,
    ) -> Option<TrialEnd> {
        let Versions::Trial { candidate, fallback } = &mut self.function_mut(number).versions else { return None };
        if candidate.edition.number() != edition {
            return None;
        }
        let tolerant = fallback.as_ref().is_none_or(|proven| proven.has_keys_of(&candidate.edition));
        candidate.ran(failure, tolerant)
    }

    /// Reports the progress of a trial and returns how it ends, if it does.
    pub(crate) fn evaluate(&mut self, number: FunctionNo, end: Option<TrialEnd>, now: Now) -> Option<TrialEnd> {
        let candidate = self.function_mut(number).candidate()?;
        let edition = candidate.edition.number();
        let end = end.or_else(|| candidate.evaluate(now.monotonic));
        if let Some((tally, samples)) = candidate.progress(now.monotonic) {
            self.report(number, edition, TrialEvent::Progress { tally, samples });
        }
        end
    }

    // ---- jobs ----

    pub(crate) fn submitted(&self, edition: &Edition) {
        edition.submitted();
    }

    /// Whether jobs of this edition are not answered.
    pub(crate) fn has_jobs(&self, number: FunctionNo, edition: u32) -> bool {
        self.functions.get(number.index()).and_then(|it| it.edition(edition)).is_some_and(|it| it.has_jobs())
    }

    /// One job of an edition is answered. With the edition, whether the workers can unload it now.
    pub(crate) fn answered(&mut self, number: FunctionNo, edition: u32) -> (Rc<Edition>, bool) {
        self.function_mut(number).answered(edition)
    }

    /// No job counts any more. Returns versions that the workers can unload.
    pub(crate) fn forget_jobs(&mut self) -> Vec<(FunctionNo, u32)> {
        let unload = self.functions.iter_mut().enumerate().flat_map(|(number, function)| {
            let number = FunctionNo(number as u32);
            function.forget_jobs().into_iter().map(move |edition| (number, edition))
        });
        unload.collect()
    }

    // ---- timers ----

    /// Functions whose timer fires now. A tick that was missed, because the board slept or the last tick still runs, is not
    /// made up for. A function that keeps failing over its ticks is
    /// not woken; after the pause a tick is a probe like a message.
    pub(crate) fn ticks_due(&mut self, now: Instant) -> Vec<FunctionNo> {
        let Self { functions, timed, .. } = self;
        timed.retain(|number| {
            let function = &functions[number.index()];
            function.next_tick.is_some() || function.is_on_trial()
        });
        let mut due = Vec::new();
        for number in timed.iter() {
            let function = &mut functions[number.index()];
            let every = function.serving().and_then(|edition| edition.manifest().every);
            let (Some(every), Some(at)) = (every, function.next_tick) else { continue };
            if at > now {
                continue;
            }
            function.next_tick = Some(if at + every > now { at + every } else { now + every });
            if function.is_awaited() {
                continue;
            }
            let is_closed =
                function.pauses.has_failures() && function.pauses.is_closed(&format!("$timer/{}", function.name), now);
            if !is_closed && !std::mem::replace(&mut function.is_ticking, true) {
                due.push(*number);
            }
        }
        due
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let timed = || self.timed.iter().map(|number| self.function(*number));
        timed().filter_map(|it| it.next_tick).chain(timed().filter_map(Function::trial_due)).min()
    }
}
