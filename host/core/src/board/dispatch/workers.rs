//! The board's view of its workers: which versions they have, which jobs, and what happens when one dies.
//!
//! A worker that dies takes nothing along: its unfinished jobs had no effect. They run again in its replacement, one at a
//! time, so that a poison message is known when it kills again; that one is returned as crashed.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::slot::{Process, Slot};
use crate::board::Weight;
use crate::board::ids::{FunctionNo, JobId, JobNo, Life, WorkerNo};
use crate::board::input::{Job, Load, StateEntries, WorkerCommand, WorkerEvent};
use crate::board::version::Version;
use crate::bounds;
use crate::manifest::StateScope;
use crate::message::{LogLine, Outcome};

/// A worker that answers nothing for this long beyond ten times the longest deadline is stuck outside the guest's code. Ten
/// times, because it may wait for a processor.
const STUCK_AFTER: Duration = Duration::from_secs(5);
/// A job over which a worker died this often, as the only one, is at fault.
const DEATHS_ALONE: u32 = 2;

#[derive(Clone, Debug)]
pub struct WorkerConfig {
    pub count: usize,
    /// The longest deadline that a function may have.
    pub max_timeout: Duration,
}

pub(crate) struct Workers {
    config: WorkerConfig,
    slots: Vec<Slot>,
    loads: Vec<Load>,
    loading: Vec<Loading>,
    events: VecDeque<Event>,
    commands: VecDeque<(WorkerNo, Command)>,
    /// What the budget leaves for jobs at the workers.
    room: usize,
    /// One job may be handed out without room: nothing else makes any.
    may_exceed: bool,
    /// Counts the workers that were offered to hand out a job.
    turn: usize,
    now: Instant,
}

/// What became of jobs, as the message path handles it.
#[derive(Debug)]
pub(crate) enum Event {
    Done {
        id: JobId,
        edition: u32,
        outcome: Outcome,
        log: Vec<LogLine>,
        log_lines_dropped: u32,
    },
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
            Self::Loaded { .. } | Self::Died { .. } => None,
        }
    }
}

impl Workers {
    pub(crate) fn new(config: WorkerConfig, now: Instant) -> Self {
        let slots = (0..config.count).map(|_| Slot::new(now)).collect();
        let (loads, loading) = (Vec::new(), Vec::new());
        let mut workers = Self {
            config,
            slots,
            loads,
            loading,
            events: VecDeque::new(),
            commands: VecDeque::new(),
            room: 0,
            may_exceed: true,
            turn: 0,
            now,
        };
        workers.handle_timeout(now);
        workers
    }

    pub(crate) fn count(&self) -> usize {
        self.slots.len()
    }

    /// Gives a version to every worker. [`Event::Loaded`] follows; jobs for it may be submitted before. `expendable`: given
    /// up if workers die over it.
    pub(crate) fn load(&mut self, function: FunctionNo, version: Arc<Version>, expendable: bool) {
        self.loading.push(Loading {
            function,
            edition: version.edition,
            waiting_for: self.numbers().collect(),
            error: None,
            deaths: expendable.then_some(0),
        });
        let load = Load { function: function.0, version };
        for worker in self.numbers() {
            self.command(worker, WorkerCommand::Load(load.clone()));
        }
        self.loads.push(load);
    }

    /// No job for the version is under way or will come.
    pub(crate) fn unload(&mut self, function: FunctionNo, edition: u32) {
        self.loads.retain(|it| (it.function, it.version.edition) != (function.0, edition));
        self.loading.retain(|it| (it.function, it.edition) != (function, edition));
        for worker in self.numbers() {
            self.command(worker, WorkerCommand::Unload { function: function.0, edition });
        }
    }

    fn numbers(&self) -> impl Iterator<Item = WorkerNo> + use<> {
        (0..self.slots.len() as u32).map(WorkerNo)
    }

    /// A worker that is not running is given everything when it has started.
    fn command(&mut self, worker: WorkerNo, command: WorkerCommand) {
        let slot = &self.slots[worker.index()];
        if slot.is_running() {
            self.commands.push_back((worker, Command { life: slot.life, command }));
        }
    }

    /// Adds a job, which is sent at once if nothing comes before it and it fits.
    pub(crate) fn submit(&mut self, worker: WorkerNo, job: Job) {
        let fits = self.fits(worker, job.weight);
        let Self { slots, commands, now, .. } = self;
        slots[worker.index()].submit(job, fits, *now, &mut |command| commands.push_back((worker, command)));
    }

    fn fits(&self, worker: WorkerNo, weight: Weight) -> bool {
        let out = self.handed_out_bytes();
        (out == 0 && self.may_exceed || out.saturating_add(weight.total()) <= self.room)
            && self.slots[worker.index()].takes(weight)
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
            let next = self.slots[worker.index()].next().map(|job| job.weight);
            if next.is_some_and(|weight| self.fits(worker, weight)) {
                let Self { slots, commands, now, .. } = self;
                slots[worker.index()].send_next(*now, &mut |command| commands.push_back((worker, command)));
                idle = 0;
            } else {
                idle += 1;
            }
            self.turn += 1;
        }
    }

    /// Takes back what was submitted to a worker for one key, because a job before it is to run again.
    pub(crate) fn recall(&mut self, worker: WorkerNo, function: FunctionNo, topic: Option<&str>) -> Recalled {
        let is_of_key =
            |job: &Job| job.id.function == function && topic.is_none_or(|topic| *job.message.topic == *topic);
        let (outstanding, unsent) = self.slots[worker.index()].recall(is_of_key);
        Recalled { outstanding, unsent: unsent.into_iter().map(|job| (job.id, job.edition)).collect() }
    }

    pub(crate) fn provide_state(&mut self, request: StateRequest, entries: StateEntries) {
        let slot = &mut self.slots[request.worker.index()];
        if slot.life == request.life {
            slot.has_state(request.job);
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
        }
        self.handle_timeout(self.now);
    }

    fn kill(&mut self, worker: WorkerNo) {
        let slot = &self.slots[worker.index()];
        if matches!(slot.process, Process::Running | Process::Starting) {
            self.commands.push_back((worker, Command { life: slot.life, command: WorkerCommand::Kill }));
        }
    }

    /// What follows is read with [`Workers::next_event`], one at a time: what is done about one decides what a recall finds
    /// of the others.
    pub(crate) fn handle(&mut self, worker: WorkerNo, life: Life, event: WorkerEvent, now: Instant) {
        self.now = now;
        let slot = &mut self.slots[worker.index()];
        if slot.life != life || matches!(slot.process, Process::StartsAt(_)) {
            return;
        }
        slot.heard(now);
        match event {
            WorkerEvent::Started => {
                slot.started(now);
                for load in self.loads.clone() {
                    self.command(worker, WorkerCommand::Load(load));
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
                let done = slot.finish(job).expect("the job was looked up above");
                slot.works();
                let (id, edition) = (done.id, done.edition);
                self.events.push_back(Event::Done { id, edition, outcome, log, log_lines_dropped });
            }
            WorkerEvent::Held { job } => {
                let Some(held) = slot.finish(job) else { return self.unexpected(worker, "an answer to no job") };
                self.events.push_back(Event::Held { id: held.id, edition: held.edition });
            }
            WorkerEvent::NeedState { job } => {
                let Some(asking) = slot.job(job) else { return self.unexpected(worker, "a question for no job") };
                let (id, edition, scope) = (asking.id, asking.edition, asking.scope);
                // Once is enough: a captured worker must not keep the store busy.
                if slot.asks_state(job) {
                    let request = StateRequest { worker, life, job };
                    self.events.push_back(Event::NeedState { request, id, edition, scope });
                }
            }
            WorkerEvent::Loaded { function, edition, error } => {
                self.loaded(worker, FunctionNo(function), edition, error);
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
        self.handle_timeout(self.now);
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
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        self.now = now;
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
        }
    }

    fn patience(&self) -> Duration {
        10 * self.config.max_timeout + STUCK_AFTER
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let due = |slot: &Slot| match slot.process {
            Process::StartsAt(at) => Some(at),
            _ => slot.stuck_at(self.patience()),
        };
        self.slots.iter().filter_map(due).min()
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
