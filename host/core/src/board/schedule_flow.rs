//! Runs of schedules. A due time is a message of its own topic, and its commit notes that it has run.

use std::sync::Arc;
use std::time::Instant;

use super::Board;
use super::dispatch::Key;
use super::ids::{FunctionNo, UnitId};
use super::ledger::Unit;
use super::receipt::Receipt;
use super::schedules::{DueRun, Wanted};
use super::wake_flow::LOOK_AGAIN;
use crate::mistakes::{Mistake, is_made};
use crate::schedule::{self, LATE, PREFIX, Times};
use crate::store::Commit;

impl Board {
    /// Takes up the schedules of the versions that serve, or may have to serve again.
    pub(super) fn set_schedules(&mut self) {
        let mut wanted = Vec::new();
        for (number, function) in self.rollout.functions().filter(|(_, it)| !it.is_shadow()) {
            for (edition, name) in function.schedules() {
                let manifest = edition.manifest();
                let Some(zone) = edition.version.zone.clone() else { continue };
                let Ok(times) = Times::new(&manifest.at[name], zone) else { continue };
                wanted.push(Wanted {
                    function: number,
                    state_name: Arc::clone(function.state_name()),
                    name: name.into(),
                    spec: manifest.schedule_spec(name).into(),
                    times,
                    catch_up_ms: u64::try_from(manifest.catch_up.0.as_millis()).unwrap_or(u64::MAX),
                });
            }
        }
        self.schedules.set(wanted, self.now);
    }

    /// Begins runs that are due.
    pub(super) fn start_schedules(&mut self) {
        let schedules = self.schedules.awaiting_clock(self.now);
        self.metrics.schedules_awaiting_clock.set(schedules as u64);
        if self.schedules.is_clock_overdue(self.now) {
            tracing::warn!(
                schedules,
                hint = "start a time service, or set node.clock = \"trusted\" if the board has a real-time clock that is right",
                "schedules have waited for 10 minutes because the clock is not synchronised"
            );
        }
        if !(self.may_start() && self.schedules.is_due(self.now)) {
            return;
        }
        let (numbers, again) = (self.wakeable(), self.now.monotonic + LOOK_AGAIN);
        let due = self.schedules.start_due(self.now, self.most_at_once(), again, |number| numbers.contains(&number));
        if !due.notes.is_empty() {
            self.ledger.commit(Commit { schedules: due.notes, ..Commit::default() });
        }
        for (number, name) in due.skipped {
            let function = self.rollout.function(number);
            function.metrics.schedules_skipped.inc();
            let (function, schedule) = (&*function.name, &*name);
            tracing::info!(function, schedule, "a run was left out: it would begin later than catch_up allows");
        }
        due.runs.into_iter().for_each(|run| self.start_schedule(run));
    }

    fn start_schedule(&mut self, run: DueRun) {
        let DueRun { function: number, name, due_ms, note } = run;
        let function = self.rollout.function(number);
        let topic = format!("{PREFIX}{name}");
        if function.pauses.has_failures() && function.pauses.is_closed(&topic, self.now.monotonic) {
            return self.schedules.postpone(number, &name, self.now.monotonic + LOOK_AGAIN);
        }
        let message = Arc::new(self.traces.admitted(schedule::message(&name, due_ms, self.now), self.now));
        function.metrics.schedules.inc();
        if message.property(LATE).is_some() {
            function.metrics.schedules_late.inc();
        }
        let schedules = if is_made(Mistake::ForgetScheduleRun) { Vec::new() } else { vec![note] };
        let commit = Commit { schedules, ..Commit::default() };
        let receipt = Receipt::Schedule { function: number, name };
        let mut functions = vec![number];
        let unit = self.add_unit(message, (0, self.config.max_fan_out), receipt, &mut functions, commit);
        if self.caution.is_on() && self.is_guilty(unit) {
            return self.refuse_guilty(unit, &functions);
        }
        for function in functions {
            self.start(unit, function);
        }
    }

    /// Has a run wait while its topic is paused. One that a shadow runs too waits in the store.
    pub(super) fn postpone_schedule(
        &mut self,
        id: UnitId,
        number: FunctionNo,
        name: &Arc<str>,
        until: Instant,
    ) -> bool {
        let unit: &Unit = self.ledger.unit(id);
        if unit.jobs_left() == 1 {
            self.schedules.postpone(number, name, until);
            self.forget_trace(id);
            self.ledger.remove(id);
            return true;
        }
        let function = self.rollout.function(number);
        let Some(scope) = function.serving().map(|it| it.scope()) else { return false };
        let key = Key::new(number, scope, &unit.message);
        self.park_instead(id, number, key);
        true
    }
}
