//! The board's view of its workers: which versions they have, which jobs, and what happens when one dies.
//!
//! A worker that dies takes nothing along: its unfinished jobs had no effect. They run again in its replacement, one at a
//! time, so that a poison message is known when it kills again; that one is returned as crashed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::costs::{Costs, Measured};
use super::slot::{Finished, Late, Process, Slot};
use super::turns::MAX_WAIT;
use crate::board::Weight;
use crate::board::ids::{FunctionNo, JobId, JobNo, Life, WorkerNo};
use crate::board::input::{Job, Load, StateEntries, WorkerCommand, WorkerEvent};
use crate::bounds;
use crate::manifest::{Manifest, StateScope};
use crate::message::{LogLine, Outcome};
use crate::mistakes::{Mistake, is_made};
use crate::settings::Settings;
use crate::version::Version;

/// A run may take this many times its deadline, because its worker may wait for a processor.
const STRETCH: u32 = 10;
/// A worker that answers nothing for this long beyond the longest run is stuck outside the guest's code.
const STUCK_AFTER: Duration = Duration::from_secs(5);
/// A job over which a worker died this often, as the only one, is at fault.
const DEATHS_ALONE: u32 = 2;
/// Time that the jobs which wait for a function at a worker take, from which on they are parked rather than waited for.
const LONG_BACKLOG: Duration = Duration::from_millis(500);
/// Workers that single functions have. Further functions that want one share them: each costs some megabytes.
const MAX_OWN: usize = 16;

#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Workers that functions have in common.
    pub count: usize,
    /// Each function has a worker of its own.
    pub one_each: bool,
    /// Jobs of one function that may wait for room at a worker. Beyond it they are parked at once, if they take long.
    pub max_waiting: usize,
}

pub(crate) struct Workers {
    config: WorkerConfig,
    /// Those that functions have in common, then those that single functions have.
    slots: Vec<Slot>,
    /// Functions with a worker of their own. They keep it: the state that the others remember of them is old.
    own: BTreeMap<FunctionNo, WorkerNo>,
    costs: Costs,
    loads: Vec<Load>,
    /// The longest that a run of a loaded version may take.
    longest_run: Duration,
    loading: Vec<Loading>,
    setting: Vec<ChangeUnderWay>,
    events: VecDeque<Event>,
    commands: VecDeque<(WorkerNo, Command)>,
    /// What the budget leaves for jobs at the workers.
    room: usize,
    /// One job may be handed out without room: nothing else makes any.
    may_exceed: bool,
    /// Counts the workers that were offered to hand out a job.
    turn: usize,
    now: Instant,
    /// When messages that are late, but not by their function's runs, are looked at again.
    late_again_at: Option<Instant>,
}

/// What became of jobs, as the message path handles it.
pub(crate) enum Event {
    Done {
        id: JobId,
        edition: u32,
        outcome: Outcome,
        log: Vec<LogLine>,
        log_lines_dropped: u32,
        /// How long it waited for room at its worker.
        waited: Duration,
    },
    /// Jobs of the function wait for room for too long, or too many of them: [`Workers::take_late`] should follow.
    Late {
        worker: WorkerNo,
        function: FunctionNo,
        all: bool,
    },
    Measured(Measured),
    /// Answered by [`Workers::provide_state`] from the store, after everything that was committed for the scope.
    NeedState {
        request: StateRequest,
        id: JobId,
        edition: u32,
        scope: StateScope,
    },
    /// The job did not run: one before it in its key is to run again.
    Held {
        id: JobId,
        edition: u32,
    },
    /// The job was running alone when its worker died for the second time.
    Crashed {
        id: JobId,
        edition: u32,
    },
    /// Every worker has the version, or `error` says why one of them has not.
    Loaded {
        function: FunctionNo,
        edition: u32,
        error: Option<String>,
    },
    /// No worker runs jobs with older settings of the function.
    Set {
        function: Arc<str>,
        change: u64,
    },
    /// A worker died and is being replaced.
    Died {
        worker: WorkerNo,
        status: String,
    },
}

#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) life: Life,
    pub(crate) command: WorkerCommand,
}

/// Which worker asked, in which of its lives, for which of its jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StateRequest {
    worker: WorkerNo,
    life: Life,
    job: JobNo,
}

/// A version that not every worker has answered for.
struct Loading {
    function: FunctionNo,
    edition: u32,
    waiting_for: BTreeSet<WorkerNo>,
    error: Option<String>,
    /// How often a worker died before it answered. `None`: loaded however often that is.
    deaths: Option<u32>,
}

/// New settings that not every worker has answered for.
struct ChangeUnderWay {
    function: Arc<str>,
    change: u64,
    waiting_for: BTreeSet<WorkerNo>,
}

/// The jobs of a key that were handed out and have not been answered.
pub(crate) struct Recalled {
    /// Each of these is still answered, in order: as held, or as done if it was too late.
    pub(crate) outstanding: Vec<JobId>,
    /// Never sent, with their editions. They come after those.
    pub(crate) unsent: Vec<(JobId, u32)>,
}

impl Event {
    /// The job that the event is about, with its edition.
    pub(crate) fn job(&self) -> Option<(JobId, u32)> {
        match *self {
            Self::Done { id, edition, .. }
            | Self::NeedState { id, edition, .. }
            | Self::Held { id, edition }
            | Self::Crashed { id, edition } => Some((id, edition)),
            Self::Loaded { .. } | Self::Set { .. } | Self::Died { .. } | Self::Late { .. } | Self::Measured(_) => None,
        }
    }
}

impl Workers {
    pub(crate) fn new(config: WorkerConfig, now: Instant) -> Self {
        let slots = (0..config.count).map(|_| Slot::new(now)).collect();
        let mut workers = Self {
            config,
            slots,
            own: BTreeMap::new(),
            costs: Costs::new(now),
            loads: Vec::new(),
            longest_run: Duration::ZERO,
            loading: Vec::new(),
            setting: Vec::new(),
            events: VecDeque::new(),
            commands: VecDeque::new(),
            room: 0,
            may_exceed: true,
            turn: 0,
            late_again_at: None,
            now,
        };
        workers.handle_timeout();
        workers
    }

    /// The time of everything that follows.
    pub(crate) fn set_now(&mut self, now: Instant) {
        self.now = now;
    }

    /// Number of the workers that functions have in common.
    pub(crate) fn shared(&self) -> usize {
        self.config.count
    }

    /// The worker that a function has for itself.
    pub(crate) fn own(&self, function: FunctionNo) -> Option<WorkerNo> {
        if self.own.is_empty() { None } else { self.own.get(&function).copied() }
    }

    /// Whether each function is to have a worker of its own.
    pub(crate) fn one_each(&self) -> bool {
        self.config.one_each
    }

    /// The workers that a function's jobs may go to.
    pub(crate) fn of(&self, function: FunctionNo) -> Vec<WorkerNo> {
        match self.own(function) {
            Some(own) => vec![own],
            None => self.numbers().take(self.config.count).collect(),
        }
    }

    /// Gives a function a worker of its own. None of its jobs is under way.
    pub(crate) fn set_apart(&mut self, function: FunctionNo) {
        if self.own.contains_key(&function) {
            return;
        }
        let before = self.of(function);
        let own = self.choose_own();
        self.own.insert(function, own);
        for load in self.loads.iter().filter(|it| it.function == function.0).cloned().collect::<Vec<_>>() {
            let edition = load.version.edition;
            for worker in &before {
                self.command(*worker, WorkerCommand::Unload { function: function.0, edition });
            }
            self.command(own, WorkerCommand::Load(load));
        }
        for loading in self.loading.iter_mut().filter(|it| it.function == function) {
            loading.waiting_for = [own].into();
        }
        self.handle_timeout();
    }

    /// A worker that no function has, a new one, or the one that the fewest have.
    fn choose_own(&mut self) -> WorkerNo {
        let first = self.config.count as u32;
        let last = self.slots.len() as u32;
        let absent = (first..last).find(|n| self.slots[*n as usize].process == Process::Absent);
        if let Some(n) = absent {
            self.slots[n as usize].process = Process::StartsAt(self.now);
            return WorkerNo(n);
        }
        if self.config.one_each || ((last - first) as usize) < MAX_OWN {
            self.slots.push(Slot::new(self.now));
            return WorkerNo(last);
        }
        let users = |n: &u32| self.own.values().filter(|it| it.0 == *n).count();
        WorkerNo((first..last).min_by_key(users).expect("there are some"))
    }

    /// Ends a worker whose functions have no version any more. They get it, or another, back with their next version.
    fn end_unused(&mut self, worker: WorkerNo) {
        let is_used = self.loads.iter().any(|it| self.own(FunctionNo(it.function)) == Some(worker));
        if is_used || worker.index() < self.config.count || !self.slots[worker.index()].is_idle() {
            return;
        }
        self.kill(worker);
        self.slots[worker.index()].process = Process::Absent;
        self.has_set(worker, u64::MAX);
    }

    /// Gives a version to every worker. [`Event::Loaded`] follows; jobs for it may be submitted before. A version on trial is
    /// given up if workers die over it.
    pub(crate) fn load(&mut self, function: FunctionNo, version: Arc<Version>, settings: Settings) {
        if let Some(own) = self.own(function)
            && self.slots[own.index()].process == Process::Absent
        {
            // It was ended when the function had no version any more.
            let own = self.choose_own();
            self.own.insert(function, own);
        }
        let workers = self.of(function);
        self.loading.push(Loading {
            function,
            edition: version.edition,
            waiting_for: workers.iter().copied().collect(),
            error: None,
            deaths: version.trial.is_some().then_some(0),
        });
        let load = Load { function: function.0, version, settings: settings.into() };
        for worker in workers {
            self.command(worker, WorkerCommand::Load(load.clone()));
        }
        self.loads.push(load);
        self.measure_longest_run();
        self.handle_timeout();
    }

    /// Gives the versions of a function other settings, for all jobs that are sent from now on. [`Event::Set`] follows when
    /// no job runs with the older ones.
    pub(crate) fn set(&mut self, function: &Arc<str>, change: u64, settings: impl Fn(&Manifest) -> Settings) {
        let mut by_worker: BTreeMap<WorkerNo, Vec<Load>> = BTreeMap::new();
        for place in 0..self.loads.len() {
            let load = &mut self.loads[place];
            if load.version.manifest.name != *function {
                continue;
            }
            load.settings = settings(&load.version.manifest).into();
            let load = load.clone();
            for worker in self.of(FunctionNo(load.function)) {
                by_worker.entry(worker).or_default().push(load.clone());
            }
        }
        let mut waiting_for = BTreeSet::new();
        // One that is not running is given the newest with its versions.
        for (worker, loads) in by_worker {
            if self.slots[worker.index()].is_running() {
                self.slots[worker.index()].asked_to_set(change);
                self.command(worker, WorkerCommand::Set { change, loads });
                waiting_for.insert(worker);
            }
        }
        if is_made(Mistake::ReportSettingsEarly) {
            waiting_for.clear();
        }
        self.setting.push(ChangeUnderWay { function: Arc::clone(function), change, waiting_for });
        self.tell_set();
    }

    /// Whether a change of settings is under way.
    pub(crate) fn is_setting(&self) -> bool {
        !self.setting.is_empty()
    }

    /// A worker runs nothing with older settings than those of this change, or runs nothing at all.
    fn has_set(&mut self, worker: WorkerNo, change: u64) {
        for it in self.setting.iter_mut().filter(|it| it.change <= change) {
            it.waiting_for.remove(&worker);
        }
        self.tell_set();
    }

    fn tell_set(&mut self) {
        let Self { setting, events, .. } = self;
        let done = setting.extract_if(.., |it| it.waiting_for.is_empty());
        events.extend(done.map(|ChangeUnderWay { function, change, .. }| Event::Set { function, change }));
    }

    /// No job for the version is under way or will come.
    pub(crate) fn unload(&mut self, function: FunctionNo, edition: u32) {
        self.loads.retain(|it| (it.function, it.version.edition) != (function.0, edition));
        self.measure_longest_run();
        self.loading.retain(|it| (it.function, it.edition) != (function, edition));
        for worker in self.of(function) {
            self.command(worker, WorkerCommand::Unload { function: function.0, edition });
            self.end_unused(worker);
        }
    }

    fn measure_longest_run(&mut self) {
        let longest = self.loads.iter().map(|it| it.version.limits.timeout_ms).max().unwrap_or(0);
        self.longest_run = STRETCH * Duration::from_millis(longest.into());
    }

    fn numbers(&self) -> impl Iterator<Item = WorkerNo> + use<> {
        (0..self.slots.len() as u32).map(WorkerNo)
    }

    /// A worker that is not running is given everything when it has started.
    fn command(&mut self, worker: WorkerNo, command: WorkerCommand) {
        let slot = &mut self.slots[worker.index()];
        if slot.is_running() {
            if let WorkerCommand::Load(load) = &command {
                slot.asked_to_load(load.function, load.version.edition);
            }
            self.commands.push_back((worker, Command { life: slot.life, command }));
        }
    }

    /// Adds a job, which is sent at once if nothing comes before it and it fits. `may_wait`: its message holds up nobody.
    pub(crate) fn submit(&mut self, worker: WorkerNo, job: Job, may_wait: bool) {
        let fits = self.fits(worker, job.weight);
        let Self { slots, commands, now, costs, .. } = self;
        let function = job.id.function;
        let mut send = |command| commands.push_back((worker, command));
        let waiting = slots[worker.index()].submit(job, may_wait, fits, *now, |function| costs.of(function), &mut send);
        if waiting > self.config.max_waiting && !may_wait && self.is_slow(worker, function) {
            self.events.push_back(Event::Late { worker, function, all: true });
        }
    }

    /// Whether what waits for a function at a worker would wait for long on an idle machine too. Where the machine is what is
    /// slow, nobody else is served sooner because messages are written down, and they wait at the broker.
    fn is_slow(&self, worker: WorkerNo, function: FunctionNo) -> bool {
        let waiting = u32::try_from(self.slots[worker.index()].waiting(function)).unwrap_or(u32::MAX);
        self.costs.measured(function).is_some_and(|mean| mean.saturating_mul(waiting) >= LONG_BACKLOG)
    }

    /// Whether others wait for more than their turn for a run of the function.
    pub(crate) fn has_long_runs(&self, function: FunctionNo) -> bool {
        self.costs.are_long(function)
    }

    fn fits(&self, worker: WorkerNo, weight: Weight) -> bool {
        let out = self.handed_out_bytes();
        (out == 0 && self.may_exceed || out.saturating_add(weight.total()) <= self.room)
            && self.slots[worker.index()].takes(weight)
    }

    /// Bytes of each function's jobs at the workers, with the room for their answers, and of those that wait for room.
    pub(crate) fn held(&self) -> impl Iterator<Item = (FunctionNo, usize)> {
        self.slots.iter().flat_map(Slot::held)
    }

    /// What the jobs at the workers hold, or may.
    pub(crate) fn handed_out_bytes(&self) -> usize {
        self.slots.iter().map(Slot::handed_out_bytes).sum()
    }

    /// Sends jobs that wait for their worker or for room, a job of each worker in turn. Must follow everything that may end such a wait.
    pub(crate) fn hand_out(&mut self, room: usize, may_exceed: bool) {
        (self.room, self.may_exceed) = (room, may_exceed);
        let mut idle = 0;
        while idle < self.slots.len() {
            let worker = WorkerNo((self.turn % self.slots.len()) as u32);
            let next = self.slots[worker.index()].next();
            if next.is_some_and(|weight| self.fits(worker, weight)) {
                let Self { slots, commands, now, costs, .. } = self;
                let mut send = |command| commands.push_back((worker, command));
                slots[worker.index()].send_next(*now, |function| costs.of(function), &mut send);
                idle = 0;
            } else {
                idle += 1;
            }
            self.turn += 1;
        }
    }

    /// Takes back the jobs of a function that have waited for room for too long. `all`: and those that have not.
    pub(crate) fn take_late(&mut self, worker: WorkerNo, function: FunctionNo, all: bool) -> Late {
        self.slots[worker.index()].take_late(function, all, self.now)
    }

    pub(crate) fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// Takes back what was submitted to a worker for one key, because a job before it is to run again.
    pub(crate) fn recall(&mut self, worker: WorkerNo, function: FunctionNo, topic: Option<&str>) -> Recalled {
        let is_of_key = |job: &Job| topic.is_none_or(|topic| job.message.state_topic() == topic);
        let (outstanding, unsent) = self.slots[worker.index()].recall(function, is_of_key);
        Recalled { outstanding, unsent: unsent.into_iter().map(|job| (job.id, job.edition)).collect() }
    }

    /// Has a worker forget state of a function on these topics, or all of it if there are none.
    pub(crate) fn forget(&mut self, worker: WorkerNo, function: FunctionNo, topics: Vec<Option<Arc<str>>>) {
        self.command(worker, WorkerCommand::Forget { function: function.0, topics });
    }

    /// Jobs of a function, or of one of its topics, that the worker has not answered.
    pub(crate) fn sent(
        &self,
        worker: WorkerNo,
        function: FunctionNo,
        topic: Option<&str>,
    ) -> impl Iterator<Item = JobId> {
        self.slots[worker.index()].sent(function, topic)
    }

    /// The job that waits for state.
    pub(crate) fn asking(&self, request: StateRequest) -> Option<&Job> {
        let slot = &self.slots[request.worker.index()];
        slot.job(request.job).filter(|_| slot.life == request.life)
    }

    pub(crate) fn provide_state(&mut self, request: StateRequest, entries: StateEntries) {
        let slot = &mut self.slots[request.worker.index()];
        if slot.life == request.life {
            slot.has_state(request.job, self.now);
            self.command(request.worker, WorkerCommand::State { job: request.job, entries });
        }
    }

    /// Drops every job and all state in the workers' memory, which is no longer what is stored. A worker may be in the
    /// middle of a job whose answer must not count: a new life ensures that.
    pub(crate) fn reset(&mut self) {
        self.events.clear();
        self.commands.retain(|(_, command)| matches!(command.command, WorkerCommand::Start | WorkerCommand::Kill));
        for worker in self.numbers() {
            self.kill(worker);
            self.slots[worker.index()].clear(self.now);
            self.has_set(worker, u64::MAX);
        }
        self.handle_timeout();
    }

    fn kill(&mut self, worker: WorkerNo) {
        let slot = &self.slots[worker.index()];
        if matches!(slot.process, Process::Running | Process::Starting) {
            self.commands.push_back((worker, Command { life: slot.life, command: WorkerCommand::Kill }));
        }
    }

    /// What follows is read with [`Workers::next_event`], one at a time: what is done about one decides what a recall finds
    /// of the others.
    pub(crate) fn handle(&mut self, worker: WorkerNo, life: Life, event: WorkerEvent) {
        let now = self.now;
        let slot = &mut self.slots[worker.index()];
        if slot.life != life || matches!(slot.process, Process::StartsAt(_) | Process::Absent) {
            return;
        }
        match event {
            WorkerEvent::Started => {
                slot.started(now);
                for load in self.loads.clone() {
                    if self.of(FunctionNo(load.function)).contains(&worker) {
                        self.command(worker, WorkerCommand::Load(load));
                    }
                }
            }
            WorkerEvent::NotStarted { error } => {
                tracing::error!(%worker, error, "failed to start a worker");
                slot.respawn_later(now);
            }
            WorkerEvent::Done { job, outcome, log, log_lines_dropped } => {
                let Some(asked) = slot.job(job) else { return self.unexpected(worker, "an answer to no job") };
                let limits = load(&self.loads, asked.id.function, asked.edition).map(|it| &it.version.limits);
                if let Some(Err(excess)) = limits.map(|limits| bounds::check(&outcome, &log, limits)) {
                    return self.unexpected(worker, &excess.to_string());
                }
                // Bounded, since a captured worker may say anything.
                let took = Duration::from_micros(outcome.usage.elapsed_us).min(self.longest_run);
                let took_us = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
                let finished = slot.finish(job, took_us, now);
                let Finished { job: Job { id, edition, .. }, waited } = finished.expect("the job was looked up above");
                slot.works();
                self.costs.ran(id.function, took_us);
                self.events.push_back(Event::Done { id, edition, outcome, log, log_lines_dropped, waited });
                if self.costs.is_due(now) {
                    let Self { costs, own, config, .. } = self;
                    let measured = costs.measure(now, config.count, |function| own.contains_key(&function));
                    self.events.push_back(Event::Measured(measured));
                }
            }
            WorkerEvent::Held { job } => {
                let Some(held) = slot.finish(job, 0, now) else {
                    return self.unexpected(worker, "an answer to no job");
                };
                self.events.push_back(Event::Held { id: held.job.id, edition: held.job.edition });
            }
            WorkerEvent::NeedState { job } => {
                let Some(asking) = slot.job(job) else { return self.unexpected(worker, "a question for no job") };
                let (id, edition, scope) = (asking.id, asking.edition, asking.scope);
                // A captured worker must not keep the store busy, nor be waited for because it waits itself.
                if !slot.asks_state(job) {
                    return self.unexpected(worker, "a question that was answered before");
                }
                let request = StateRequest { worker, life, job };
                self.events.push_back(Event::NeedState { request, id, edition, scope });
            }
            WorkerEvent::Loaded { function, edition, error } => {
                if !slot.has_loaded(function, edition) {
                    return self.unexpected(worker, "an answer about a version that it was not given");
                }
                self.loaded(worker, FunctionNo(function), edition, error);
            }
            WorkerEvent::Set { change } => {
                if !slot.has_set(change) {
                    return self.unexpected(worker, "an answer about settings that it was not given");
                }
                self.has_set(worker, change);
            }
            WorkerEvent::Ended { status } => self.died(worker, status),
        }
    }

    pub(crate) fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    pub(crate) fn poll(&mut self) -> Option<(WorkerNo, Command)> {
        self.commands.pop_front()
    }

    fn loaded(&mut self, worker: WorkerNo, function: FunctionNo, edition: u32, error: Option<String>) {
        let is_it = |it: &Loading| (it.function, it.edition) == (function, edition);
        // A worker that was replaced loads again what all of them had.
        let Some(place) = self.loading.iter().position(is_it) else { return };
        let loading = &mut self.loading[place];
        loading.waiting_for.remove(&worker);
        loading.error = loading.error.take().or(error);
        if loading.waiting_for.is_empty() {
            let Loading { error, .. } = self.loading.swap_remove(place);
            self.events.push_back(Event::Loaded { function, edition, error });
        }
    }

    /// Ends a worker whose answer no worker of ours gives: it was captured by what runs in it.
    fn unexpected(&mut self, worker: WorkerNo, reason: &str) {
        tracing::error!(%worker, reason, "a worker is out of bounds and is ended");
        self.kill(worker);
        self.died(worker, reason.to_owned());
    }

    fn died(&mut self, worker: WorkerNo, status: String) {
        self.attribute_load_crash(worker);
        let slot = &mut self.slots[worker.index()];
        let autopsy = slot.attribute_crash(DEATHS_ALONE);
        slot.respawn(self.now);
        let held = autopsy.held.into_iter().map(|job| Event::Held { id: job.id, edition: job.edition });
        self.events.extend(held);
        self.events.extend(autopsy.crashed.map(|job| Event::Crashed { id: job.id, edition: job.edition }));
        self.events.push_back(Event::Died { worker, status });
        // Its jobs run again with the newest.
        self.has_set(worker, u64::MAX);
        self.handle_timeout();
    }

    /// A worker died before it answered for a version. Once may be bad luck, but a version that kills every worker that
    /// loads it must not be given to the next.
    fn attribute_load_crash(&mut self, worker: WorkerNo) {
        let mut deadly = Vec::new();
        for loading in self.loading.iter_mut().filter(|it| it.waiting_for.contains(&worker)) {
            let Some(deaths) = &mut loading.deaths else { continue };
            *deaths += 1;
            if *deaths >= DEATHS_ALONE {
                deadly.push((loading.function, loading.edition));
            }
        }
        for (function, edition) in deadly {
            self.unload(function, edition);
            let error = Some("the worker died twice while it loaded this".to_owned());
            self.events.push_back(Event::Loaded { function, edition, error });
        }
    }

    /// Starts workers whose pause is over, and ends those that are stuck.
    pub(crate) fn handle_timeout(&mut self) {
        let now = self.now;
        self.late_again_at.take_if(|at| *at <= now);
        for worker in self.numbers() {
            let patience = self.patience();
            let slot = &mut self.slots[worker.index()];
            if slot.stuck_at(patience).is_some_and(|at| at <= now) {
                tracing::error!(%worker, "a worker does not answer and is ended");
                slot.heard(now);
                self.kill(worker);
            }
            let slot = &mut self.slots[worker.index()];
            if matches!(slot.process, Process::StartsAt(at) if at <= now) {
                slot.start();
                self.commands.push_back((worker, Command { life: slot.life, command: WorkerCommand::Start }));
            }
            let late = slot.late_at().filter(|(_, at)| *at <= now).map(|(function, _)| function);
            for function in late.collect::<Vec<_>>() {
                match self.is_slow(worker, function) {
                    true => self.events.push_back(Event::Late { worker, function, all: false }),
                    false => drop(self.late_again_at.get_or_insert(now + MAX_WAIT)),
                }
            }
        }
    }

    fn patience(&self) -> Duration {
        self.longest_run + STUCK_AFTER
    }

    /// A worker that has owed an answer for longer than any of its runs may take: for how long, and after how long it is
    /// ended.
    pub(crate) fn silent(&self, now: Instant) -> Option<(WorkerNo, Duration, Duration)> {
        let silences = self.numbers().filter_map(|worker| {
            let since = self.slots[worker.index()].silent_since()?;
            Some((worker, now.saturating_duration_since(since)))
        });
        let longest = silences.max_by_key(|(_, silence)| *silence)?;
        (longest.1 > self.longest_run).then(|| (longest.0, longest.1, self.patience()))
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let due = |slot: &Slot| {
            let next = match slot.process {
                Process::StartsAt(at) => Some(at),
                _ => slot.stuck_at(self.patience()),
            };
            // Health tells of it then.
            let silent = slot.silent_since().map(|since| since + self.longest_run).filter(|at| *at > self.now);
            let late = slot.late_at().map(|(_, at)| at).filter(|at| *at > self.now || self.late_again_at.is_none());
            next.into_iter().chain(silent).chain(late).min()
        };
        // Those that are late already were looked at.
        self.slots.iter().filter_map(due).chain(self.late_again_at).min()
    }
}

/// Where no function was ever replaced, its number is its place.
fn load(loads: &[Load], function: FunctionNo, edition: u32) -> Option<&Load> {
    let is_it = |it: &&Load| it.function == function.0 && it.version.edition == edition;
    loads.get(function.index()).filter(is_it).or_else(|| loads.iter().find(is_it))
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test may read clocks and files")]
mod tests;
