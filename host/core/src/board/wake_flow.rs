//! Wakes of functions: set with the outcome of a run, and run when they are due.
//!
//! A due wake is a message of its key. It is started behind what the key has at a worker, waits for recalls and drains, and is
//! parked like a delivery. Its commit deletes the wake, together with everything that came of the run.

use std::sync::Arc;
use std::time::Duration;

use super::Board;
use super::ids::{FunctionNo, UnitId};
use super::ledger::Unit;
use super::receipt::Receipt;
use super::rollout::Edition;
use super::wakes::{Change, Due, Setter};
use crate::made;
use crate::manifest::StateScope;
use crate::message::{Failure, FailureCode, Output, Scope, Wake};
use crate::mistakes::{Mistake, is_made};
use crate::schedule;
use crate::store::{Commit, StoredWake, WakeId};
use crate::trace::TraceContext;
use crate::wake;

/// After this long, it is looked again whether a paused topic may run.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(1);

impl Board {
    // ---- set ----

    fn setter<'a>(
        &self,
        number: FunctionNo,
        edition: &Edition,
        topic: &'a Arc<str>,
        name: &'a Arc<str>,
        id: UnitId,
    ) -> Setter<'a> {
        let unit = self.ledger.unit(id);
        Setter {
            function: number,
            state_name: name,
            topic,
            is_shared: edition.scope() == StateScope::Function,
            hops: unit.hops,
            fan_out: unit.fan_out.budget(),
            is_shadow: self.rollout.function(number).is_shadow(),
        }
    }

    /// Whether a function may have the wakes that a run asks for.
    pub(super) fn admit_wakes(
        &self,
        id: UnitId,
        number: FunctionNo,
        edition: &Edition,
        outputs: &[Output],
    ) -> Result<(), Failure> {
        let wakes = outputs.iter().filter_map(|output| match output {
            Output::Wake(wake) => Some(wake),
            _ => None,
        });
        if wakes.clone().all(|wake| wake.after_ms.is_none()) {
            return Ok(());
        }
        let most = self.config.max_wakes;
        let (topic, name) = self.wake_names(id, number);
        let count = self.wakes.count_with(&self.setter(number, edition, &topic, &name, id), wakes);
        if count <= most as usize {
            return Ok(());
        }
        let detail = format!("{count} wakes would wait for {name}, the limit is {most} (functions.max_wakes)");
        Err(Failure { code: FailureCode::TooManyWakes, detail })
    }

    fn wake_names(&self, id: UnitId, number: FunctionNo) -> (Arc<str>, Arc<str>) {
        let topic = self.ledger.unit(id).message.shared_state_topic();
        (topic, Arc::clone(self.rollout.function(number).state_name()))
    }

    /// Sets, moves and cancels wakes, as part of what the unit commits.
    /// `trace`: what they carry on.
    pub(super) fn set_wakes(
        &mut self,
        id: UnitId,
        number: FunctionNo,
        edition: &Edition,
        wakes: &[Wake],
        trace: Option<&Arc<TraceContext>>,
    ) {
        if wakes.is_empty() {
            return;
        }
        let (topic, name) = self.wake_names(id, number);
        let setter = self.setter(number, edition, &topic, &name, id);
        let is_shared = setter.is_shared;
        let (mut set, mut delete) = (Vec::new(), Vec::new());
        for wake in wakes {
            let change = self.wakes.set(&setter, wake, self.now);
            // One that the same run sets twice was never stored.
            set.retain(|it: &StoredWake| Some(it.id) != change.delete);
            let Change { set: mut stored, delete: deleted } = change;
            if let (Some(stored), Some(trace)) = (&mut stored, trace) {
                self.wakes.carry(stored, trace);
            }
            set.extend(stored);
            delete.extend(deleted);
        }
        if !(set.is_empty() && delete.is_empty()) {
            let scope = Scope { function: name, topic: (!is_shared).then_some(topic) };
            self.ledger.change_wakes(id, scope, set, delete);
        }
        self.show_wakes(number);
    }

    /// The wakes of a shadow live in memory alone, and end with it.
    pub(super) fn set_shadow_wakes(&mut self, id: UnitId, number: FunctionNo, edition: &Edition, outputs: &[Output]) {
        let wakes = outputs.iter().filter_map(|output| match output {
            Output::Wake(wake) => Some(wake.clone()),
            _ => None,
        });
        let wakes: Vec<Wake> = wakes.filter(|wake| wake::check(wake).is_ok()).collect();
        if self.admit_wakes(id, number, edition, outputs).is_ok() {
            self.set_wakes(id, number, edition, &wakes, None);
        }
    }

    /// Takes up the wakes that the store has.
    pub(super) fn restore_wakes(&mut self, stored: Vec<StoredWake>) {
        let rollout = &self.rollout;
        self.wakes.restore(stored, |name| rollout.find(name), self.now);
        self.show_all_wakes();
    }

    /// What was set is on its way to the store.
    pub(super) fn wakes_sent(&mut self) {
        for id in self.ledger.take_sent_wakes() {
            self.wakes.sent(id);
        }
    }

    // ---- due ----

    /// Whether a due wake of this function may be started.
    pub(super) fn can_wake(&self, number: FunctionNo) -> bool {
        let function = self.rollout.function(number);
        function.serving().is_some()
            && !function.is_awaited()
            && (function.is_shadow() || self.has_room_to_park(number))
    }

    /// The functions of which messages that the board makes may be started.
    pub(super) fn wakeable(&self) -> Vec<FunctionNo> {
        self.rollout.numbers().filter(|number| self.can_wake(*number)).collect()
    }

    /// How many messages that the board makes may begin together.
    pub(super) fn most_at_once(&self) -> usize {
        if self.caution.is_on() { 1 } else { usize::MAX }
    }

    /// When the next wake is due that could run.
    pub(super) fn next_wake(&self) -> Option<std::time::Instant> {
        self.wakes.next_due(|number| self.can_wake(number))
    }

    /// Starts wakes that are due.
    pub(super) fn start_wakes(&mut self) {
        let most = self.most_at_once();
        while self.may_start() && self.next_wake().is_some_and(|due| due <= self.now.monotonic) {
            let (numbers, now) = (self.wakeable(), self.now.monotonic);
            let due = self.wakes.start_due(now, most, |number| numbers.contains(&number));
            due.into_iter().for_each(|due| self.start_wake(&due));
        }
    }

    fn start_wake(&mut self, due: &Due) {
        let Due { id, function: number, is_shared, hops, fan_out, .. } = *due;
        let function = self.rollout.function(number);
        let scope = function.serving().map(|it| it.scope());
        if scope.is_none_or(|scope| (scope == StateScope::Function) != is_shared) {
            return self.drop_wake(due);
        }
        if function.pauses.has_failures() && function.pauses.is_closed(&due.topic, self.now.monotonic) {
            return self.wakes.postpone(number, id, self.now.monotonic + LOOK_AGAIN);
        }
        function.metrics.wakes.inc();
        let carried = (fan_out < self.config.max_fan_out).then_some(fan_out);
        let mut message = wake::message(&due.name, &due.topic, hops, carried, self.now);
        message.properties.extend(due.trace.iter().flat_map(|trace| trace.properties()));
        let message = Arc::new(self.traces.admitted(message, self.now));
        let limits = (hops, fan_out.min(self.config.max_fan_out));
        let mut commit = Commit { unwake: Vec::from_iter(due.is_stored.then_some(id)), ..Commit::default() };
        if is_made(Mistake::DeleteWakeEarly) {
            self.ledger.commit(std::mem::take(&mut commit));
        }
        let unit = self.ledger.add(Unit::new(message, limits, Receipt::Wake { function: number, id }, 1, commit));
        if self.caution.is_on() && self.is_guilty(unit) {
            return self.refuse_guilty(unit, &[number]);
        }
        self.start(unit, number);
    }

    /// A version with another scope of state knows nothing of what the wake is about.
    fn drop_wake(&mut self, due: &Due) {
        let function = self.rollout.function(due.function);
        tracing::warn!(
            function = &*function.name,
            wake = &*due.name,
            topic = &*due.topic,
            "a wake is dropped: it was set by a version with another scope of state"
        );
        self.metrics.dropped("wake-of-another-scope", 1);
        if due.is_stored {
            self.ledger.commit(Commit { unwake: vec![due.id], ..Commit::default() });
        }
        self.wakes.finished(due.function, due.id);
        self.show_wakes(due.function);
    }

    /// Has a message that the board made wait while its topic is paused: nobody sent it, and it is not at fault.
    /// `false`: it is an ordinary one.
    pub(super) fn postpone(&mut self, id: UnitId) -> bool {
        let unit = self.ledger.unit(id);
        let topic = &*unit.message.topic;
        let until = self.now.monotonic + LOOK_AGAIN;
        match &unit.receipt {
            Receipt::Wake { function, id: wake } => {
                self.wakes.postpone(*function, *wake, until);
            }
            Receipt::Silence { function, topic } => self.silences.postpone(*function, topic, LOOK_AGAIN),
            Receipt::Schedule { function, name } => {
                let (function, name) = (*function, Arc::clone(name));
                return self.postpone_schedule(id, function, &name, until);
            }
            Receipt::Parked(key) if made::is_topic(topic) || schedule::is_topic(topic) => {
                self.dispatch.parking.postpone(key, until);
            }
            _ => return false,
        }
        self.forget_trace(id);
        self.ledger.remove(id);
        true
    }

    /// The run of a wake is over.
    pub(super) fn wake_finished(&mut self, number: FunctionNo, id: WakeId) {
        self.wakes.finished(number, id);
        self.show_wakes(number);
    }

    // ---- shown ----

    pub(super) fn show_wakes(&self, number: FunctionNo) {
        self.rollout.function(number).metrics.wakes_waiting.set(self.wakes.count(number) as u64);
    }

    pub(super) fn show_all_wakes(&self) {
        self.rollout.numbers().for_each(|number| self.show_wakes(number));
    }
}
