//! One worker's slot: the jobs that its process has, and those that wait for one.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::workers::Command;
use crate::board::Weight;
use crate::board::ids::{JobId, JobNo, Life};
use crate::board::input::{Job, WorkerCommand};
use crate::mistakes::{Mistake, is_made};

const RESPAWN_FIRST: Duration = Duration::from_millis(50);
const RESPAWN_MAX: Duration = Duration::from_secs(10);

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
    backlog: VecDeque<Job>,
    /// Of the jobs sent and not answered.
    weight: Weight,
    /// Jobs whose state was asked for.
    states_asked: BTreeSet<JobNo>,
    last_heard: Instant,
    respawn_wait: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Process {
    Running,
    /// Asked for and not confirmed.
    Starting,
    StartsAt(Instant),
}

struct Sent {
    job: Job,
    /// Not to run any more if the worker dies: it would overtake the one that is to run again.
    recalled: bool,
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
            backlog: VecDeque::new(),
            weight: Weight::default(),
            states_asked: BTreeSet::new(),
            last_heard: now,
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
    }

    pub(crate) fn started(&mut self, now: Instant) {
        self.process = Process::Running;
        self.last_heard = now;
    }

    pub(crate) fn heard(&mut self, now: Instant) {
        self.last_heard = now;
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

    /// When the process counts as stuck, if jobs are unanswered. While it waits for state it owes nothing.
    pub(crate) fn stuck_at(&self, patience: Duration) -> Option<Instant> {
        let busy = self.is_running() && !self.unfinished.is_empty() && self.states_asked.is_empty();
        busy.then(|| self.last_heard + patience)
    }

    /// Adds a job. `fits`: it may be sent at once, if nothing else comes first.
    pub(crate) fn submit(&mut self, job: Job, fits: bool, now: Instant, send: &mut impl FnMut(Command)) {
        if !fits || !self.is_running() || !self.suspects.is_empty() || !self.backlog.is_empty() {
            self.backlog.push_back(job);
        } else {
            self.send(job, now, send);
        }
    }

    /// What the jobs sent and not answered hold, or may.
    pub(crate) fn handed_out_bytes(&self) -> usize {
        self.weight.total()
    }

    /// Whether the process has memory for one more message.
    pub(crate) fn takes(&self, weight: Weight) -> bool {
        self.weight.message == 0 || self.weight.message + weight.message <= MESSAGES_BYTES
    }

    fn send(&mut self, job: Job, now: Instant, send: &mut impl FnMut(Command)) {
        if self.unfinished.is_empty() {
            self.last_heard = now;
        }
        let number = JobNo(self.first + self.unfinished.len() as u64);
        self.weight.message += job.weight.message;
        self.weight.answer += job.weight.answer;
        send(Command { life: self.life, command: WorkerCommand::Run { number, job: job.clone() } });
        self.unfinished.push_back(Some(Sent { job, recalled: false }));
    }

    /// What may be sent next: a suspect if none is out, the backlog once no suspect is left.
    pub(crate) fn next(&self) -> Option<&Job> {
        match self.suspects.front() {
            _ if !self.is_running() => None,
            Some((suspect, _)) => Some(suspect).filter(|_| self.unfinished.is_empty()),
            None => self.backlog.front(),
        }
    }

    /// Sends [`Slot::next`].
    pub(crate) fn send_next(&mut self, now: Instant, send: &mut impl FnMut(Command)) {
        let suspect = self.suspects.front().map(|(suspect, _)| suspect.clone());
        if let Some(job) = suspect.or_else(|| self.backlog.pop_front()) {
            self.send(job, now, send);
        }
    }

    pub(crate) fn job(&self, number: JobNo) -> Option<&Job> {
        self.unfinished.get(self.place(number)?)?.as_ref().map(|sent| &sent.job)
    }

    fn place(&self, number: JobNo) -> Option<usize> {
        usize::try_from(number.0.checked_sub(self.first)?).ok()
    }

    /// Takes an answered job out.
    pub(crate) fn finish(&mut self, number: JobNo) -> Option<Job> {
        let place = self.place(number)?;
        let done = self.unfinished.get_mut(place)?.take()?;
        while self.unfinished.front().is_some_and(Option::is_none) {
            self.unfinished.pop_front();
            self.first += 1;
        }
        self.suspects.pop_front();
        self.weight.message -= done.job.weight.message;
        self.weight.answer -= done.job.weight.answer;
        Some(done.job)
    }

    /// Notes that a job asked for its state. `false`: it did so before.
    pub(crate) fn asks_state(&mut self, job: JobNo) -> bool {
        self.states_asked.insert(job)
    }

    pub(crate) fn has_state(&mut self, job: JobNo) {
        self.states_asked.remove(&job);
    }

    /// Takes back the jobs that match. Returns those that will still be answered, and those that were never sent.
    pub(crate) fn recall(&mut self, matches: impl Fn(&Job) -> bool) -> (Vec<JobId>, Vec<Job>) {
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
        unsent.extend(extract(&mut self.backlog, matches));
        (outstanding, unsent)
    }

    /// Sorts a dead process's jobs: one that ran alone twice is at fault, several become suspects.
    pub(crate) fn attribute_crash(&mut self, deaths_alone: u32) -> Autopsy {
        let mut autopsy = Autopsy::default();
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
        self.backlog.clear();
        self.states_asked.clear();
        self.respawn_wait = RESPAWN_FIRST;
        self.process = Process::StartsAt(now);
    }
}

/// Takes out the elements that match and keeps the order of the rest.
fn extract<T>(queue: &mut VecDeque<T>, matches: impl Fn(&T) -> bool) -> impl Iterator<Item = T> {
    let (taken, kept): (VecDeque<T>, VecDeque<T>) = std::mem::take(queue).into_iter().partition(matches);
    *queue = kept;
    taken.into_iter()
}
