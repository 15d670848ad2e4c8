//! From outcomes to commits: what one message caused is gathered, sent to the store as a whole, and done when it is on disk.
//!
//! A *unit* is a message from its admission until everything it caused is committed. Units are committed in the order of
//! their runs where two of them wrote the same state, and in the order of delivery where one of them had several functions.

mod answer;
mod fan_out;
pub mod record;
mod unit;
mod unsent;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::dispatch::{StateRequest, Ticket};
use super::ids::{FunctionNo, UnitId};
use super::input::StateEntries;
use super::map::{Map, Seeded};
use super::receipt::Receipt;
use crate::message::{Scope, StateWrite};
use crate::mistakes::{Mistake, is_made};
use crate::request::Response;
use crate::store::{
    self, BatchNo, Commit, DeadLetter, LoadId, Parked, ParkedId, Record, StoredHeard, StoredWake, WakeId,
};
pub(crate) use record::{Carried, Recorded, Recorder};
pub use record::{RecorderConfig, SinkRoute};
pub(crate) use unit::{Compared, Unit};
use unsent::Unsent;

pub(crate) struct Ledger {
    units: Vec<Option<Unit>>,
    free: Vec<UnitId>,
    /// Empty between calls of [`Ledger::send`], which keeps its memory.
    finished: Vec<UnitId>,
    arrivals: u64,
    /// Memory that the units hold.
    bytes: usize,
    /// Committed with the next batch.
    batch: Vec<Commit>,
    batch_units: Vec<UnitId>,
    batch_bytes: usize,
    /// The batch holds more than fingerprints.
    is_due: bool,
    /// Batches that the store has not confirmed, by their numbers.
    committing: VecDeque<(BatchNo, Vec<UnitId>)>,
    last_batch: BatchNo,
    /// Parked jobs that the store has not numbered, in the order of their commits.
    unnumbered: VecDeque<Ticket>,
    /// Units whose writes to a scope wait for another job of the same message.
    unsent_writes: Unsent,
    /// Units of several functions, and those behind them, in the order of delivery: one that is done sooner must not be
    /// committed before one of its topic that still waits for another function.
    unsent_of_topic: Map<Arc<str>, VecDeque<UnitId>>,
    loads: BTreeMap<LoadId, Load>,
    last_load: LoadId,
    requests: VecDeque<store::StoreRequest>,
    settled: VecDeque<Settled>,
    /// What commits that were sent free of state.
    freed: Vec<(Arc<str>, u64)>,
    /// Wakes whose commits were sent.
    sent_wakes: Vec<WakeId>,
    /// Calls about silence whose commits were sent.
    sent_silences: Vec<(FunctionNo, Arc<str>)>,
    fingerprints_max: usize,
    /// Size above which a batch is divided.
    commit_max_bytes: usize,
}

/// A request for state that the store has not answered.
#[derive(Debug)]
struct Load {
    request: StateRequest,
    /// Writes that the store does not have.
    overlay: Vec<StateWrite>,
    /// The scope to read if there is nothing, and the one that begins with it: a shadow begins with the state of the version
    /// that it is compared with.
    otherwise: Option<(Scope, Scope)>,
    /// The scope that begins with what is read, if that is another's.
    begins: Option<Scope>,
}

/// What a run needs of the store before it can go on.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) request: StateRequest,
    pub(crate) entries: StateEntries,
    /// The scope that begins with these entries, which are another's.
    pub(crate) begins: Option<Scope>,
}

/// A unit that is on disk, or had no effect.
#[derive(Debug)]
pub(crate) struct Settled {
    pub(crate) receipt: Receipt,
    /// Receipts of the same message on other connections.
    pub(crate) copies: Vec<Receipt>,
    pub(crate) message_id: Option<Box<str>>,
    /// What it was, if it ran.
    pub(crate) unit: Option<UnitId>,
    /// That of the unit, which no other has. 0 if it did not run.
    pub(crate) arrival: u64,
    /// What a request is answered.
    pub(crate) response: Option<Response>,
    /// The request was turned away: it may come again under its id.
    pub(crate) is_turned_away: bool,
}

impl Ledger {
    /// `fingerprints_max`: how many fingerprints without effect are kept at least, and half of how many may wait, for a commit to be
    /// written with.
    pub(crate) fn new(fingerprints_max: usize, commit_max_bytes: usize, seed: Seeded) -> Self {
        Self {
            units: Vec::new(),
            free: Vec::new(),
            finished: Vec::new(),
            arrivals: 0,
            bytes: 0,
            batch: Vec::new(),
            batch_units: Vec::new(),
            batch_bytes: 0,
            is_due: false,
            committing: VecDeque::new(),
            last_batch: BatchNo::default(),
            unnumbered: VecDeque::new(),
            unsent_writes: Unsent::new(seed),
            unsent_of_topic: seed.map(),
            loads: BTreeMap::new(),
            last_load: LoadId::default(),
            requests: VecDeque::new(),
            settled: VecDeque::new(),
            freed: Vec::new(),
            sent_wakes: Vec::new(),
            sent_silences: Vec::new(),
            fingerprints_max,
            commit_max_bytes,
        }
    }

    /// Units that are not on disk.
    pub(crate) fn len(&self) -> usize {
        self.units.len() - self.free.len()
    }

    /// No job and no commit is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.len() == 0 && self.committing.is_empty()
    }

    /// Whether the store will confirm something, and what it holds is free then.
    pub(crate) fn is_committing(&self) -> bool {
        !self.committing.is_empty() || !self.batch_units.is_empty()
    }

    /// What is under way, for a test that waits in vain.
    pub(crate) fn describe(&self) -> String {
        let unit = |unit: &Unit| format!("{:?} jobs {}", unit.message.payload, unit.jobs_left);
        let units: Vec<String> = self.units.iter().flatten().map(unit).collect();
        let Self { unsent_writes, unsent_of_topic, committing, loads, .. } = self;
        format!(
            "units {units:?}, writes {unsent_writes:?}, lines {unsent_of_topic:?}, commits {committing:?}, loads {loads:?}"
        )
    }

    /// Memory that the units hold: their messages and everything that came of them.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn contains(&self, id: UnitId) -> bool {
        self.units.get(id.index()).is_some_and(Option::is_some)
    }

    pub(crate) fn unit(&self, id: UnitId) -> &Unit {
        self.units[id.index()].as_ref().expect("a unit stays while it has jobs")
    }

    fn unit_mut(&mut self, id: UnitId) -> &mut Unit {
        self.units[id.index()].as_mut().expect("a unit stays while it has jobs")
    }

    pub(crate) fn add(&mut self, mut unit: Unit) -> UnitId {
        self.arrivals += 1;
        unit.arrival = self.arrivals;
        self.bytes += unit.bytes;
        unit.is_in_line = unit.jobs_left > 1
            || (!self.unsent_of_topic.is_empty() && self.unsent_of_topic.contains_key(&unit.message.topic));
        let line = (unit.is_in_line && unit.takes_part_in_line()).then(|| Arc::clone(&unit.message.topic));
        unit.is_in_line = line.is_some();
        let id = match self.free.pop() {
            Some(id) => {
                self.units[id.index()] = Some(unit);
                id
            }
            None => {
                self.units.push(Some(unit));
                UnitId(self.units.len() as u32 - 1)
            }
        };
        if let Some(topic) = line {
            self.unsent_of_topic.entry(topic).or_default().push_back(id);
        }
        id
    }

    /// Forgets a unit that had no effect: its message is back where it came from.
    pub(crate) fn remove(&mut self, id: UnitId) -> Unit {
        let unit = self.units[id.index()].take().expect("a unit is removed once");
        self.free.push(id);
        self.bytes -= unit.bytes;
        unit
    }

    /// The same message came once more: its receipt is due together with the unit's.
    pub(crate) fn add_receipt(&mut self, id: UnitId, receipt: Receipt) {
        if !matches!(receipt, Receipt::None) {
            self.unit_mut(id).copies.push(receipt);
        }
    }

    /// Sorts units by arrival. Other functions have the same messages in that order; with another one, two messages could
    /// wait for each other to be committed.
    pub(crate) fn arrival(&self, id: UnitId) -> u64 {
        self.unit(id).arrival
    }

    /// That of the latest unit.
    pub(crate) fn last_arrival(&self) -> u64 {
        self.arrivals
    }

    pub(crate) fn fan_out_mut(&mut self, id: UnitId) -> &mut fan_out::FanOut {
        &mut self.unit_mut(id).fan_out
    }

    /// The messages that are under way may be run with different settings.
    pub(crate) fn settings_change(&mut self) {
        for unit in self.units.iter_mut().flatten() {
            (unit.compared, unit.settings_changed) = (None, true);
        }
    }

    pub(crate) fn compared_mut(&mut self, id: UnitId) -> Option<(&mut Compared, &str)> {
        let unit = self.units[id.index()].as_mut().expect("a unit stays while it has jobs");
        Some((unit.compared.as_deref_mut()?, &unit.message.topic))
    }

    // ---- what a run leaves ----

    pub(crate) fn record(&mut self, id: UnitId, recorded: Recorded) {
        self.hold(id, recorded.records.iter().chain(&recorded.history).map(Record::bytes).sum());
        let commit = &mut self.unit_mut(id).commit;
        commit.records.extend(recorded.records);
        commit.history.extend(recorded.history);
        if let Some(reply) = recorded.reply {
            self.answer(id, Response::reply(reply));
        }
    }

    /// Counts what a run left to its unit.
    fn hold(&mut self, id: UnitId, bytes: usize) {
        if is_made(Mistake::ForgetOutputs) {
            return;
        }
        self.unit_mut(id).bytes += bytes;
        self.bytes += bytes;
    }

    /// `freed`: bytes of state that are free once this is sent.
    pub(crate) fn write_state(&mut self, id: UnitId, scope: Scope, writes: Vec<StateWrite>, freed: u64) {
        self.hold(id, writes.iter().map(StateWrite::bytes).sum());
        let unit = self.units[id.index()].as_mut().expect("a unit stays while it has jobs");
        // Where nobody waits and this is the last job, the unit is sent at once.
        if unit.jobs_left > 1 || unit.is_in_line || !self.unsent_writes.is_empty() {
            unit.unsent.extend(self.unsent_writes.push(scope.clone(), id));
        }
        if freed > 0 {
            unit.freed.push((Arc::clone(&scope.function), freed));
        }
        unit.commit.state.push((scope, writes));
    }

    /// Sets and deletes wakes of a scope, in the order of the runs as its state is written.
    pub(crate) fn change_wakes(&mut self, id: UnitId, scope: Scope, set: Vec<StoredWake>, delete: Vec<WakeId>) {
        self.hold(id, set.iter().map(StoredWake::bytes).sum());
        let unit = self.units[id.index()].as_mut().expect("a unit stays while it has jobs");
        unit.commit.wakes.extend(set);
        unit.commit.unwake.extend(delete);
        if unit.jobs_left > 1 || unit.is_in_line || !self.unsent_writes.is_empty() {
            unit.unsent.extend(self.unsent_writes.push(scope, id));
        }
    }

    /// A topic was heard with this message.
    pub(crate) fn heard(&mut self, id: UnitId, row: StoredHeard) {
        self.hold(id, row.bytes());
        self.unit_mut(id).commit.heard.push(row);
    }

    /// Replaces the row of a call about silence that is not sent.
    pub(crate) fn replace_heard(&mut self, id: UnitId, row: StoredHeard) {
        if let Some(heard) = self.unit_mut(id).commit.heard.first_mut() {
            *heard = row;
        }
    }

    /// Calls about silence whose commits were sent since this was last asked.
    pub(crate) fn take_sent_silences(&mut self) -> Vec<(FunctionNo, Arc<str>)> {
        std::mem::take(&mut self.sent_silences)
    }

    /// Wakes whose commits were sent since this was last asked.
    pub(crate) fn take_sent_wakes(&mut self) -> Vec<WakeId> {
        std::mem::take(&mut self.sent_wakes)
    }

    /// Bytes of state that are free since this was last asked.
    pub(crate) fn take_freed(&mut self) -> Vec<(Arc<str>, u64)> {
        std::mem::take(&mut self.freed)
    }

    /// Deletes state, after everything that was gathered.
    pub(crate) fn forget_state(&mut self, function: Arc<str>, topics: Vec<Option<Arc<str>>>) {
        self.send_batch();
        self.requests.push_back(store::StoreRequest::ForgetState { function, topics });
    }

    pub(crate) fn has_unsent_writes(&self) -> bool {
        !self.unsent_writes.is_empty()
    }

    pub(crate) fn has_unsent_writes_to(&self, scope: &Scope) -> bool {
        self.unsent_writes.contains(scope)
    }

    pub(crate) fn has_unsent_writes_of(&self, function: &str) -> bool {
        self.unsent_writes.scopes().any(|scope| *scope.function == *function)
    }

    pub(crate) fn dead_letter(&mut self, id: UnitId, dead_letter: DeadLetter) {
        self.hold(id, dead_letter.bytes());
        self.unit_mut(id).commit.dead_letters.push(dead_letter);
    }

    pub(crate) fn park(&mut self, id: UnitId, parked: Parked, ticket: Ticket) {
        self.hold(id, parked.message.bytes());
        self.answer(id, Response::LATER);
        let unit = self.unit_mut(id);
        unit.commit.park.push(parked);
        unit.tickets.push(ticket);
    }

    /// One function is done with the unit. `true`: it was the last; [`Ledger::send`] must follow.
    pub(crate) fn finish_job(&mut self, id: UnitId) -> bool {
        let unit = self.unit_mut(id);
        unit.jobs_left = unit.jobs_left.checked_sub(1).expect("each job of a unit finishes once");
        unit.jobs_left == 0
    }

    // ---- state ----

    /// Reads a scope's state from the store. Writes that wait for another function of their message are laid over the
    /// answer: to wait for them could be to wait for a job behind this one. `otherwise`: the scope to read if there is
    /// nothing.
    pub(crate) fn load_state(&mut self, request: StateRequest, scope: Scope, otherwise: Option<Scope>) {
        let unsent = self.unsent_writes.units(&scope).filter(|_| !is_made(Mistake::LoseUnsentWrites));
        let states = unsent.flat_map(|id| &self.unit(id).commit.state).filter(|(of, _)| *of == scope);
        let overlay: Vec<StateWrite> = states.flat_map(|(_, writes)| writes.iter().cloned()).collect();
        let otherwise = otherwise.filter(|_| overlay.is_empty()).map(|other| (other, scope.clone()));
        self.read_state(Load { request, overlay, otherwise, begins: None }, scope);
    }

    fn read_state(&mut self, load: Load, scope: Scope) {
        // What was gathered may hold writes to the same scope: it goes first.
        self.send_batch();
        self.last_load.0 += 1;
        self.loads.insert(self.last_load, load);
        self.requests.push_back(store::StoreRequest::LoadState { id: self.last_load, scope });
    }

    /// The store's answer. `None`: another scope is read instead, or nobody waits any more.
    pub(crate) fn state_loaded(&mut self, load: LoadId, mut entries: StateEntries) -> Option<Loaded> {
        let Load { request, overlay, otherwise, begins } = self.loads.remove(&load)?;
        if let Some((scope, own)) = otherwise.filter(|_| entries.is_empty()) {
            // Without what the active version made of the very message that the shadow is to run.
            self.read_state(Load { request, overlay, otherwise: None, begins: Some(own) }, scope);
            return None;
        }
        for StateWrite { key, value } in overlay {
            entries.retain(|(name, _)| *name != key);
            entries.extend(value.map(|value| (key, value)));
        }
        Some(Loaded { request, entries, begins })
    }

    // ---- committed ----

    /// A commit of the board itself, for no unit.
    pub(crate) fn commit(&mut self, commit: Commit) {
        self.gather(commit.bytes());
        self.is_due |= has_effect(&commit);
        self.batch.push(commit);
    }

    /// Makes room in the batch. One transaction is to stay small, however much waits.
    fn gather(&mut self, bytes: usize) {
        if self.batch_bytes + bytes > self.commit_max_bytes && self.batch_bytes > 0 {
            self.send_batch();
        }
        self.batch_bytes += bytes;
    }

    /// Nothing came of the message, so there is nothing to make durable. Its fingerprint is written with the next commit, so
    /// that it does not run again after one that came later.
    pub(crate) fn settle_without_effect(&mut self, receipt: Receipt, copies: Vec<Receipt>) {
        for receipt in std::iter::once(&receipt).chain(&copies) {
            if let Receipt::Mqtt { fingerprint, .. } = *receipt {
                self.batch.push(Commit { delivery: Some(fingerprint), ..Commit::default() });
            }
        }
        self.settled.push_back(Settled {
            receipt,
            copies,
            message_id: None,
            unit: None,
            arrival: 0,
            response: None,
            is_turned_away: false,
        });
    }

    /// Sends a finished unit to be committed, and then those that waited for it. A unit waits while an earlier run's writes to
    /// the same state are not sent: the later ones hold them already, and would be overwritten by them.
    pub(crate) fn send(&mut self, id: UnitId) {
        let mut finished = std::mem::take(&mut self.finished);
        finished.push(id);
        while let Some(id) = finished.pop() {
            let unit = self.units[id.index()].as_mut().expect("a unit that waits to be sent stays");
            if unit.jobs_left > 0 || unit.unsent.iter().any(|place| !self.unsent_writes.is_first(*place, id)) {
                continue;
            }
            let mut wake = |next: Option<UnitId>| finished.extend(next.filter(|it| !finished.contains(it)));
            if unit.is_in_line {
                let line = self.unsent_of_topic.get_mut(&unit.message.topic).expect("a unit in line stays in it");
                if line.front() != Some(&id) {
                    continue;
                }
                line.pop_front();
                wake(line.front().copied());
                if line.is_empty() {
                    self.unsent_of_topic.remove(&unit.message.topic);
                }
            }
            unit.keep_answer();
            let commit = std::mem::take(&mut unit.commit);
            self.unnumbered.extend(unit.tickets.drain(..));
            self.freed.append(&mut unit.freed);
            self.sent_wakes.extend(commit.wakes.iter().map(|wake| wake.id));
            if let Receipt::Silence { function, topic } = &unit.receipt {
                self.sent_silences.push((*function, Arc::clone(topic)));
            }
            unit.unsent.drain(..).for_each(|place| wake(self.unsent_writes.pop(place)));
            let bytes = unit.bytes;
            if has_effect(&commit) {
                self.gather(bytes);
                self.is_due = true;
                self.batch.push(commit);
                self.batch_units.push(id);
            } else {
                let unit = self.remove(id);
                if unit.is_request() {
                    self.settled.push_back(unit.settled(id));
                    continue;
                }
                let Unit { receipt, copies, arrival, .. } = unit;
                self.settle_without_effect(receipt, copies);
                if let Some(settled) = self.settled.back_mut() {
                    (settled.unit, settled.arrival) = (Some(id), arrival);
                }
            }
        }
        self.finished = finished;
    }

    /// Requests for the store, in order. What was gathered is one batch.
    pub(crate) fn poll(&mut self) -> Option<store::StoreRequest> {
        if self.requests.is_empty() {
            self.send_batch();
        }
        self.requests.pop_front()
    }

    pub(crate) fn request(&mut self, request: store::StoreRequest) {
        self.requests.push_back(request);
    }

    /// The broker has lost the session: deliveries of it are evidence of nothing.
    pub(crate) fn session_lost(&mut self) {
        for unit in self.units.iter_mut().flatten() {
            unit.commit.delivery = None;
            unit.copies.retain(|copy| !matches!(copy, Receipt::Mqtt { .. }));
            if let Receipt::Mqtt { .. } = unit.receipt {
                unit.receipt = Receipt::None;
            }
        }
        for commit in &mut self.batch {
            commit.delivery = None;
        }
        self.request(store::StoreRequest::ForgetDeliveries);
    }

    fn send_batch(&mut self) {
        // Fingerprints alone are not worth a commit. The oldest of too many go, many at a time: the others move up.
        if !std::mem::take(&mut self.is_due) {
            if self.batch.len() >= 2 * self.fingerprints_max {
                self.batch.drain(..self.batch.len() - self.fingerprints_max);
            }
            return;
        }
        self.last_batch.0 += 1;
        // Batches are about as large as the one before: under load this one does not grow step by step.
        let next = Vec::with_capacity(self.batch.len());
        let commits = std::mem::replace(&mut self.batch, next);
        self.batch_bytes = 0;
        self.committing.push_back((self.last_batch, std::mem::take(&mut self.batch_units)));
        self.requests.push_back(store::StoreRequest::Commit { batch: self.last_batch, commits });
        if is_made(Mistake::AcknowledgeBeforeCommit) {
            self.committed(self.last_batch, &[]);
        }
    }

    /// Everything up to this batch is on disk. Returns the numbers that the store gave to parked jobs. `None`: it gave
    /// numbers to jobs that it was not asked to park.
    pub(crate) fn committed(&mut self, batch: BatchNo, parked: &[Parked]) -> Option<Vec<(Ticket, ParkedId)>> {
        while self.committing.front().is_some_and(|(number, _)| *number <= batch) {
            let (_, units) = self.committing.pop_front().expect("a batch was seen at the front");
            for id in units {
                let settled = self.remove(id).settled(id);
                self.settled.push_back(settled);
            }
        }
        parked.iter().map(|parked| Some((self.unnumbered.pop_front()?, parked.id))).collect()
    }

    pub(crate) fn poll_settled(&mut self) -> Option<Settled> {
        self.settled.pop_front()
    }

    /// Nothing that is not committed counts.
    pub(crate) fn reset(&mut self) {
        self.units.clear();
        self.free.clear();
        self.bytes = 0;
        self.batch.clear();
        self.batch_units.clear();
        self.batch_bytes = 0;
        self.is_due = false;
        self.committing.clear();
        self.unnumbered.clear();
        self.unsent_writes.clear();
        self.unsent_of_topic.clear();
        self.loads.clear();
        self.requests.clear();
        self.settled.clear();
        self.freed.clear();
        self.sent_wakes.clear();
        self.sent_silences.clear();
    }
}

fn has_effect(commit: &Commit) -> bool {
    commit.has_effect() || !commit.records.is_empty() || commit.message_id.is_some()
}
