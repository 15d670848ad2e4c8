//! One worker's slot: the jobs that its process has, and those that wait for one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::Key;
use super::turns::Turns;
use super::workers::Command;
use crate::board::Weight;
use crate::board::ids::{FunctionNo, JobId, JobNo, Life};
use crate::board::input::{Job, WorkerCommand};
use crate::mistakes::{Mistake, is_made};

const RESPAWN_FIRST: Duration = Duration::from_millis(50);
const RESPAWN_MAX: Duration = Duration::from_secs(10);
/// A worker may answer its oldest job this many times later than it may be silent: it runs the jobs of one read by function.
const PATIENCES_FOR_FIRST: u32 = 10;
/// Expected time of the jobs that a worker is given at once. Those beyond it wait for their function's turn.
const ROOM_US: u64 = 50_000;

/// Bytes of messages that one process has at a time. Its memory is for functions.
const MESSAGES_BYTES: usize = 8 << 20;

pub(crate) struct Slot {
    pub(crate) life: Life,
    pub(crate) process: Process,
    /// Jobs sent and not answered. A job's number is `first` plus its place.
    unfinished: VecDeque<Option<Sent>>,
    first: u64,
    /// After a death: these run one at a time, before anything new. With the number of deaths over each.
    suspects: VecDeque<(Job, u32)>,
    /// Of the jobs sent and not answered.
    weight: Weight,
    /// Jobs that wait for room.
    turns: Turns,
    /// What the unfinished jobs are expected to take.
    owed_us: u64,
    /// Jobs whose state was asked for and not given.
    states_asked: BTreeSet<JobNo>,
    /// Versions that the process was given and has not answered for, by function and edition.
    loads_asked: BTreeSet<(u32, u32)>,
    /// Changes of settings that the process was given and has not answered for.
    sets_asked: BTreeSet<u64>,
    /// When a job was last answered, or given what it waited for.
    last_heard: Instant,
    /// When the oldest unanswered job became that, or was given its state.
    first_since: Instant,
    respawn_wait: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Process {
    Running,
    /// Asked for and not confirmed.
    Starting,
    StartsAt(Instant),
    /// No function has this worker.
    Absent,
}

struct Sent {
    job: Job,
    cost_us: u32,
    waited: Duration,
    /// Not to run any more if the worker dies: it would overtake the one that is to run again.
    recalled: bool,
    has_asked_state: bool,
}

/// A job that was answered.
pub(crate) struct Finished {
    pub(crate) job: Job,
    /// How long it waited for room.
    pub(crate) waited: Duration,
}

/// Jobs that are called back from those that wait for room.
#[derive(Default)]
pub(crate) struct Late {
    /// In order.
    pub(crate) jobs: Vec<Job>,
    /// Jobs of the same keys that the worker has.
    pub(crate) outstanding: BTreeMap<Key, Vec<JobId>>,
}

/// How a death is attributed.
#[derive(Default)]
pub(crate) struct Autopsy {
    /// Recalled jobs: they count as held.
    pub(crate) held: Vec<Job>,
    /// The job that ran alone in each of the deaths.
    pub(crate) crashed: Option<Job>,
}

impl Slot {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            life: Life(0),
            process: Process::StartsAt(now),
            unfinished: VecDeque::new(),
            first: 0,
            suspects: VecDeque::new(),
            weight: Weight::default(),
            turns: Turns::default(),
            owed_us: 0,
            states_asked: BTreeSet::new(),
            loads_asked: BTreeSet::new(),
            sets_asked: BTreeSet::new(),
            last_heard: now,
            first_since: now,
            respawn_wait: RESPAWN_FIRST,
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        self.process == Process::Running
    }

    pub(crate) fn start(&mut self) {
        self.life.0 = self.life.0.wrapping_add(1);
        self.process = Process::Starting;
        self.states_asked.clear();
        self.loads_asked.clear();
        self.sets_asked.clear();
    }

    pub(crate) fn started(&mut self, now: Instant) {
        self.process = Process::Running;
        self.last_heard = now;
        self.first_since = now;
    }

    /// The process is given its patience once more.
    pub(crate) fn heard(&mut self, now: Instant) {
        self.last_heard = now;
        self.first_since = now;
    }

    /// The process works: the next death is the first again.
    pub(crate) fn works(&mut self) {
        self.respawn_wait = RESPAWN_FIRST;
    }

    /// The first replacement starts at once: one death is a job's fault, a row of them the machine's.
    pub(crate) fn respawn(&mut self, now: Instant) {
        let is_first = self.respawn_wait == RESPAWN_FIRST;
        self.process = Process::StartsAt(if is_first { now } else { now + self.respawn_wait });
        self.respawn_wait = (self.respawn_wait * 2).min(RESPAWN_MAX);
    }

    pub(crate) fn respawn_later(&mut self, now: Instant) {
        self.process = Process::StartsAt(now + self.respawn_wait);
        self.respawn_wait = (self.respawn_wait * 2).min(RESPAWN_MAX);
    }

    /// When the process counts as stuck, if jobs are unanswered. While it waits for state it owes nothing, but for its
    /// oldest job: answers to later ones must not hide that it keeps one back.
    pub(crate) fn stuck_at(&self, patience: Duration) -> Option<Instant> {
        if !self.is_running() || self.unfinished.is_empty() {
            return None;
        }
        let silent = self.states_asked.is_empty().then(|| self.last_heard + patience);
        let owes_first = !self.states_asked.contains(&JobNo(self.first));
        let kept_back = owes_first.then(|| self.first_since + PATIENCES_FOR_FIRST * patience);
        silent.into_iter().chain(kept_back).min()
    }

    /// What the jobs sent and not answered hold, or may.
    pub(crate) fn handed_out_bytes(&self) -> usize {
        self.weight.total()
    }

    /// Whether the process has memory for one more message.
    pub(crate) fn takes(&self, weight: Weight) -> bool {
        self.weight.message == 0 || self.weight.message + weight.message <= MESSAGES_BYTES
    }

    /// Since when the process has owed an answer without giving any.
    pub(crate) fn silent_since(&self) -> Option<Instant> {
        let owes = self.is_running() && !self.unfinished.is_empty() && self.states_asked.is_empty();
        owes.then_some(self.last_heard)
    }

    /// Returns how many jobs of the function wait for room. `may_wait`: however long. `fits`: it may be sent at
    /// once, if nothing else comes first. `cost_us`: what a run of each function
    /// is expected to take.
    pub(crate) fn submit(
        &mut self,
        job: Job,
        may_wait: bool,
        fits: bool,
        now: Instant,
        cost_us: impl Fn(FunctionNo) -> u32,
        send: &mut impl FnMut(Command),
    ) -> usize {
        if fits && self.is_running() && self.suspects.is_empty() && self.turns.is_empty() && self.has_room() {
            let cost_us = cost_us(job.id.function);
            self.send(job, cost_us, Duration::ZERO, now, send);
            return 0;
        }
        self.turns.push(job, may_wait, now)
    }

    fn has_room(&self) -> bool {
        self.owed_us < ROOM_US
    }

    fn send(&mut self, job: Job, cost_us: u32, waited: Duration, now: Instant, send: &mut impl FnMut(Command)) {
        if self.unfinished.is_empty() {
            self.heard(now);
        }
        let number = JobNo(self.first + self.unfinished.len() as u64);
        self.weight.message += job.weight.message;
        self.weight.answer += job.weight.answer;
        send(Command { life: self.life, command: WorkerCommand::Run { number, job: job.clone() } });
        self.owed_us += u64::from(cost_us);
        self.unfinished.push_back(Some(Sent { job, cost_us, waited, recalled: false, has_asked_state: false }));
    }

    /// What the job holds that may be sent next: a suspect if none is out, others once no suspect is left.
    pub(crate) fn next(&mut self) -> Option<Weight> {
        match self.suspects.front() {
            _ if !self.is_running() => None,
            Some((suspect, _)) => self.unfinished.is_empty().then_some(suspect.weight),
            None if self.has_room() => self.turns.next().map(|job| job.weight),
            None => None,
        }
    }

    /// Sends [`Slot::next`].
    pub(crate) fn send_next(
        &mut self,
        now: Instant,
        cost_us: impl Fn(FunctionNo) -> u32,
        send: &mut impl FnMut(Command),
    ) {
        let suspect = self.suspects.front().map(|(suspect, _)| (suspect.clone(), now));
        if let Some((job, since)) = suspect.or_else(|| self.turns.pop(&cost_us)) {
            let cost_us = cost_us(job.id.function);
            self.send(job, cost_us, now.saturating_duration_since(since), now, send);
        }
    }

    /// Jobs of a function, or of one of its topics, that are sent and not answered.
    pub(crate) fn sent(&self, function: FunctionNo, topic: Option<&str>) -> impl Iterator<Item = JobId> {
        let jobs =
            self.unfinished.iter().flatten().map(|sent| &sent.job).filter(move |job| job.id.function == function);
        jobs.filter(move |job| topic.is_none_or(|topic| job.message.state_topic() == topic)).map(|job| job.id)
    }

    /// Bytes of the jobs that the process has, with the room for their answers, and of those that wait for one.
    pub(crate) fn held(&self) -> impl Iterator<Item = (FunctionNo, usize)> {
        let sent = self.unfinished.iter().flatten().map(|sent| (sent.job.id.function, sent.job.weight.total()));
        let suspects = self.suspects.iter().map(|(job, _)| job);
        let waiting = suspects.chain(self.turns.jobs()).map(|job| (job.id.function, job.weight.message));
        sent.chain(waiting)
    }

    pub(crate) fn job(&self, number: JobNo) -> Option<&Job> {
        self.unfinished.get(self.place(number)?)?.as_ref().map(|sent| &sent.job)
    }

    fn place(&self, number: JobNo) -> Option<usize> {
        usize::try_from(number.0.checked_sub(self.first)?).ok()
    }

    /// Takes an answered job out. `took_us`: the time of its run.
    pub(crate) fn finish(&mut self, number: JobNo, took_us: u32, now: Instant) -> Option<Finished> {
        let place = self.place(number)?;
        let done = self.unfinished.get_mut(place)?.take()?;
        self.states_asked.remove(&number);
        self.last_heard = now;
        if place == 0 {
            self.first_since = now;
        }
        while self.unfinished.front().is_some_and(Option::is_none) {
            self.unfinished.pop_front();
            self.first += 1;
        }
        self.suspects.pop_front();
        let Sent { job, cost_us, waited, .. } = done;
        self.weight.message -= job.weight.message;
        self.weight.answer -= job.weight.answer;
        self.owed_us -= u64::from(cost_us);
        self.turns.correct(job.id.function, cost_us, took_us);
        Some(Finished { job, waited })
    }

    /// Notes that a job asked for its state. `false`: it did so before, and no worker of ours asks twice.
    pub(crate) fn asks_state(&mut self, job: JobNo) -> bool {
        let sent = self.place(job).and_then(|place| self.unfinished.get_mut(place)?.as_mut());
        let is_first_time = sent.is_some_and(|sent| !std::mem::replace(&mut sent.has_asked_state, true));
        if is_first_time {
            self.states_asked.insert(job);
        }
        is_first_time
    }

    pub(crate) fn has_state(&mut self, job: JobNo, now: Instant) {
        self.states_asked.remove(&job);
        self.last_heard = now;
        if job.0 == self.first {
            self.first_since = now;
        }
    }

    pub(crate) fn asked_to_load(&mut self, function: u32, edition: u32) {
        self.loads_asked.insert((function, edition));
    }

    /// An answer about a version. `false`: the process was not given it, or has answered before.
    pub(crate) fn has_loaded(&mut self, function: u32, edition: u32) -> bool {
        self.loads_asked.remove(&(function, edition))
    }

    pub(crate) fn asked_to_set(&mut self, change: u64) {
        self.sets_asked.insert(change);
    }

    /// An answer about settings. `false`: the process was not given them, or has answered before.
    pub(crate) fn has_set(&mut self, change: u64) -> bool {
        self.sets_asked.remove(&change)
    }

    /// Takes back the jobs of a function that match. Returns those that will still be answered, and those that were never
    /// sent.
    pub(crate) fn recall(&mut self, function: FunctionNo, matches: impl Fn(&Job) -> bool) -> (Vec<JobId>, Vec<Job>) {
        let matches = |job: &Job| job.id.function == function && matches(job);
        let mut outstanding = Vec::new();
        for sent in self.unfinished.iter_mut().flatten().filter(|sent| matches(&sent.job)) {
            sent.recalled = true;
            outstanding.push(sent.job.id);
        }
        let mut unsent = Vec::new();
        // The first suspect is one of the unfinished when it was sent.
        let first = usize::from(!self.unfinished.is_empty()).min(self.suspects.len());
        let mut suspects = self.suspects.split_off(first);
        unsent.extend(extract(&mut suspects, |(job, _)| matches(job)).map(|(job, _)| job));
        self.suspects.append(&mut suspects);
        unsent.extend(self.turns.extract(function, matches));
        (outstanding, unsent)
    }

    /// Jobs of a function that wait for room.
    pub(crate) fn waiting(&self, function: FunctionNo) -> usize {
        self.turns.count(function)
    }

    /// When a message of each function has waited for room for too long. While suspects run one at a time all wait for them.
    pub(crate) fn late_at(&self) -> impl Iterator<Item = (FunctionNo, Instant)> {
        self.turns.late_at().filter(|_| self.suspects.is_empty())
    }

    /// Takes back the jobs of a function that have waited for room for too long, or all of them.
    pub(crate) fn take_late(&mut self, function: FunctionNo, all: bool, now: Instant) -> Late {
        if !self.suspects.is_empty() {
            return Late::default();
        }
        let jobs = self.turns.take_late(function, all, now);
        let mut late = Late { outstanding: jobs.iter().map(|job| (Key::of(job), Vec::new())).collect(), jobs };
        if !late.jobs.is_empty() {
            for sent in self.unfinished.iter_mut().flatten().filter(|sent| sent.job.id.function == function) {
                if let Some(outstanding) = late.outstanding.get_mut(&Key::of(&sent.job)) {
                    sent.recalled = true;
                    outstanding.push(sent.job.id);
                }
            }
        }
        late.outstanding.retain(|_, jobs| !jobs.is_empty());
        late
    }

    /// Whether a process may be ended without harm to any job.
    pub(crate) fn is_idle(&self) -> bool {
        self.unfinished.is_empty() && self.suspects.is_empty() && self.turns.is_empty()
    }

    /// Sorts a dead process's jobs: one that ran alone twice is at fault, several become suspects.
    pub(crate) fn attribute_crash(&mut self, deaths_alone: u32) -> Autopsy {
        let mut autopsy = Autopsy::default();
        self.owed_us = 0;
        let mut unfinished = Vec::new();
        self.weight = Weight::default();
        for sent in std::mem::take(&mut self.unfinished).into_iter().flatten() {
            if sent.recalled {
                self.suspects.retain(|(job, _)| job.id != sent.job.id);
                autopsy.held.push(sent.job);
            } else {
                unfinished.push(sent.job);
            }
        }
        let was_alone = !self.suspects.is_empty();
        if is_made(Mistake::LoseCrashedJobs) {
            self.suspects.clear();
        } else if !was_alone {
            self.suspects = unfinished.into_iter().map(|job| (job, 0)).collect();
        } else if !unfinished.is_empty() {
            // One death may be somebody else's doing: the kernel's when memory is short, or a person's.
            let (job, deaths) = self.suspects.pop_front().expect("a suspect ran alone");
            match deaths + 1 >= deaths_alone {
                true => autopsy.crashed = Some(job),
                false => self.suspects.push_front((job, deaths + 1)),
            }
        }
        autopsy
    }

    pub(crate) fn clear(&mut self, now: Instant) {
        self.unfinished.clear();
        self.weight = Weight::default();
        self.suspects.clear();
        self.turns.clear();
        self.owed_us = 0;
        self.states_asked.clear();
        self.loads_asked.clear();
        self.sets_asked.clear();
        self.respawn_wait = RESPAWN_FIRST;
        if self.process != Process::Absent {
            self.process = Process::StartsAt(now);
        }
    }
}

/// Takes out the elements that match and keeps the order of the rest.
fn extract<T>(queue: &mut VecDeque<T>, matches: impl Fn(&T) -> bool) -> impl Iterator<Item = T> {
    let (taken, kept): (VecDeque<T>, VecDeque<T>) = std::mem::take(queue).into_iter().partition(matches);
    *queue = kept;
    taken.into_iter()
}
