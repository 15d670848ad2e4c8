//! The way of a message: delivered, routed, invoked, recorded.
//!
//! ```text
//! delivery ─▶ seen before? ─▶ route ─▶ jobs ─▶ outcomes ─▶ one commit ─▶ acknowledge, forward
//!                 │ yes          │ nobody          │ `settle`: the one match of failure policy
//!                 └──────────────┴─────────────────┴─▶ acknowledge in turn
//! ```

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::caution::fingerprint;
use super::dispatch::{Event, Excessive, Key, Measured};
use super::ids::{FunctionNo, JobId, UnitId, WorkerNo};
use super::input::{Delivery, Effect, Job};
use super::intake::Admission;
use super::ledger::{Carried, Compared, Recorded, Unit};
use super::receipt::Receipt;
use super::rollout::{Edition, Observed, Role};
use super::size;
use super::{Board, Weight};
use crate::forward::{FAN_OUT, HOPS};
use crate::manifest::StateScope;
use crate::message::{Failure, FailureCode, LogLine, Message, Outcome, StateWrite, Usage, Verdict};
use crate::metrics::OutputKind;
use crate::mistakes::{Mistake, is_made};
use crate::request::Response;
use crate::router::BadTopic;
use crate::store::{Commit, DeadLetter, Parked, ParkedId};

/// Target of the lines that functions log.
pub const GUEST_LOG: &str = "sedge::function";
/// One function has at most this part of what may be parked.
pub const PARTS_OF_PARKED: usize = 4;

impl Board {
    // ---- delivered ----

    pub fn deliver(&mut self, delivery: Delivery) {
        self.metrics.received.inc();
        let (receipt, message_id) = match self.intake.receive(&delivery) {
            Admission::New { receipt, message_id } => (receipt, message_id),
            Admission::InFlight { unit, receipt } => {
                self.metrics.redelivered.inc();
                return match self.ledger.contains(unit) {
                    true => self.ledger.add_receipt(unit, receipt),
                    false => self.broken("a message in flight has a unit"),
                };
            }
            Admission::Known { receipt, .. } => {
                self.metrics.redelivered.inc();
                return self.ledger.settle_without_effect(receipt, Vec::new());
            }
            Admission::Committed => return self.metrics.redelivered.inc(),
        };
        let refusal = size::refuse(&delivery, self.config.max_payload_bytes);
        let route = self.router.route(&delivery.topic);
        if route == Err(BadTopic) {
            tracing::warn!("a message came with an invalid topic; it was acknowledged and dropped");
        }
        let route = route.ok();
        let numbers = route.iter().flat_map(|route| route.functions(&delivery.subscriptions));
        let mut functions: Vec<FunctionNo> = numbers.map(|number| FunctionNo(number as u32)).collect();
        functions.retain(|number| self.rollout.function(*number).serving().is_some());
        let Some(route) = route.filter(|_| !functions.is_empty()) else {
            self.metrics.unrouted.inc();
            return self.ledger.settle_without_effect(receipt, Vec::new());
        };
        let fingerprint = match receipt {
            Receipt::Mqtt { fingerprint, .. } => Some(fingerprint),
            _ => None,
        };
        let commit = Commit { delivery: fingerprint, message_id: message_id.clone(), ..Commit::default() };
        let limits = self.limits(&delivery.properties);
        let topic = Arc::clone(&route.topic);
        let message = Arc::new(self.message(delivery, topic));
        let unit = self.add_unit(message, limits, receipt.clone(), &mut functions, commit);
        self.intake.admit(&receipt, message_id.as_deref(), unit);
        self.hear(unit, &functions);
        if self.caution.is_on() && self.is_guilty(unit) {
            return self.refuse_guilty(unit, &functions);
        }
        for function in functions {
            match &refusal {
                Some(failure) => self.turn_away(unit, function, failure.clone()),
                None => self.start(unit, function),
            }
        }
    }

    pub(super) fn message(&mut self, delivery: Delivery, topic: Arc<str>) -> Message {
        let Delivery { payload, content_type, properties, retained, response_topic, correlation_data, .. } = delivery;
        let trace = self.traces.admit(&properties, self.now);
        Message {
            topic: size::bounded_topic(&topic),
            payload: size::detached(payload),
            content_type: content_type.map(Into::into),
            // A dead letter of a message with more keeps these.
            properties: properties
                .into_iter()
                .take(size::MAX_PROPERTIES)
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
            received_at_ms: self.now.unix_ms,
            clock_synced: self.now.synced,
            attempt: 1,
            retained,
            response_topic: response_topic.map(Into::into),
            correlation_data: correlation_data.map(|data| (&*data).into()),
            trace,
        }
    }

    /// Notes that a message is alone under way. `true`: the daemon ended over it again and again.
    pub(super) fn is_guilty(&mut self, unit: UnitId) -> bool {
        let message = fingerprint(&self.ledger.unit(unit).message);
        if self.caution.is_guilty(message) {
            return true;
        }
        if self.caution.set_alone(Some(message)) {
            self.effects.push_back(Effect::Alone(Some(message)));
        }
        false
    }

    pub(super) fn refuse_guilty(&mut self, unit: UnitId, functions: &[FunctionNo]) {
        tracing::error!(
            topic = &*self.ledger.unit(unit).message.topic,
            "the daemon ended again and again while this message was alone under way: it becomes a dead letter"
        );
        for function in functions {
            let detail = "the daemon ended three times while this message was alone under way".to_owned();
            let failure = Failure { code: FailureCode::DaemonCrashed, detail };
            self.fail_and_finish(unit, *function, "", failure);
        }
        self.end_caution();
    }

    /// Functions that a message went through before, and publications that it may cause.
    pub(super) fn limits<T: AsRef<str>>(&self, properties: &[(T, T)]) -> (u32, u32) {
        let most = self.config.max_fan_out;
        let fan_out = property(properties, FAN_OUT).map_or(most, |fan_out| fan_out.min(most));
        (property(properties, HOPS).unwrap_or(0), fan_out)
    }

    /// A message that is not for functions. Acknowledged in its turn.
    pub(super) fn pass_over(&mut self, delivery: &Delivery) {
        self.metrics.received.inc();
        if let Admission::New { receipt, .. } | Admission::Known { receipt, .. } = self.intake.receive(delivery) {
            self.ledger.settle_without_effect(receipt, Vec::new());
        }
    }

    /// Makes a unit of a message for these functions, and adds the shadows that run beside them.
    pub(super) fn add_unit(
        &mut self,
        message: Arc<Message>,
        limits: (u32, u32),
        receipt: Receipt,
        functions: &mut Vec<FunctionNo>,
        commit: Commit,
    ) -> UnitId {
        let compared = self.add_shadows(functions, &message.topic);
        let mut unit = Unit::new(message, limits, receipt, functions.len(), commit);
        unit.settings_changed = self.dispatch.workers.is_setting();
        unit.compared = compared.filter(|_| !unit.settings_changed);
        self.ledger.add(unit)
    }

    /// A version that runs as a shadow gets what the active one gets, after it.
    fn add_shadows(&self, functions: &mut Vec<FunctionNo>, topic: &str) -> Option<Box<Compared>> {
        let shadow_of = |number: &FunctionNo| match self.rollout.function(*number).role {
            Role::Main { shadow } => shadow,
            Role::Shadow { .. } => None,
        };
        let wants = |number: &FunctionNo| self.rollout.function(*number).serving().is_some_and(|it| it.wants(topic));
        let before = functions.len();
        for n in 0..before {
            functions.extend(shadow_of(&functions[n]).filter(wants));
        }
        // With two of them on one message the outcomes of neither are compared.
        (functions.len() == before + 1).then(Box::default)
    }

    // ---- invoked ----

    /// Runs a function on a unit's message, unless something speaks against it beforehand.
    pub fn start(&mut self, id: UnitId, number: FunctionNo) {
        let unit = self.ledger.unit(id);
        let (message, hops) = (Arc::clone(&unit.message), unit.hops);
        let is_parked = matches!(unit.receipt, Receipt::Parked(_));
        if message.trace.is_some() && !self.rollout.function(number).is_shadow() {
            self.open_trace(id);
        }
        if let Some(failure) = self.refuse(&message, hops) {
            return self.turn_away(id, number, failure);
        }
        if self.dispatch.is_draining(number) {
            self.dispatch.wait_for_drain(number, id);
            return;
        }
        let function = self.rollout.function(number);
        let is_shadow = function.is_shadow();
        let Some(edition) = function.serving_for(message.state_topic()).cloned() else {
            return if is_shadow { self.finish_job(id) } else { self.fail_removed(id, number) };
        };
        if is_shadow {
            return self.submit(id, number, &edition, true);
        }
        if !is_parked {
            let key = Key::new(number, edition.scope(), &message);
            if self.dispatch.wait_for_recall(&key, id) {
                return;
            }
            let is_blocked = self.dispatch.parking.is_blocked(&key) && !is_made(Mistake::OvertakeParked);
            // While it runs, or is compiled, nothing behind it would be acknowledged.
            if is_blocked || edition.runs_long() || edition.version.is_awaited {
                self.park_behind(id, number, key);
                return self.finish_job(id);
            }
        }
        let function = self.rollout.function_mut(number);
        if let Err(reason) = function.pauses.admit(message.state_topic(), self.now.monotonic) {
            let detail = format!("{} is paused for this topic because it kept failing, last: {reason}", function.name);
            if self.postpone(id) {
                return;
            }
            let failure = Failure { code: FailureCode::Quarantined, detail };
            return self.fail_and_finish(id, number, &edition.manifest().version, failure);
        }
        self.submit(id, number, &edition, is_parked);
    }

    /// Why a message is not run at all. Parked messages may be older than the limits.
    fn refuse(&self, message: &Message, hops: u32) -> Option<Failure> {
        size::refuse_message(message, self.config.max_payload_bytes).or_else(|| {
            (hops >= self.config.max_hops).then(|| {
                let detail = format!("it went through {hops} functions (functions.max_hops)");
                Failure { code: FailureCode::TooManyHops, detail }
            })
        })
    }

    /// Makes a message a dead letter of this function without running it.
    fn turn_away(&mut self, id: UnitId, number: FunctionNo, failure: Failure) {
        if self.rollout.function(number).is_shadow() {
            return self.finish_job(id);
        }
        self.fail_and_finish(id, number, "", failure);
    }

    /// Hands the job to the worker that owns its key.
    pub fn submit(&mut self, id: UnitId, number: FunctionNo, edition: &Rc<Edition>, resumes: bool) {
        self.rollout.submitted(edition);
        let unit = self.ledger.unit(id);
        let job = Job {
            id: JobId { unit: id, function: number },
            edition: edition.number(),
            scope: edition.scope(),
            resumes,
            on_trial: self.rollout.function(number).can_fall_back(edition),
            keeps_draws: self.taps.is_recording(number)
                && (edition.manifest().allow.clock || edition.manifest().allow.random),
            weight: Weight::new(&unit.message, &edition.version.limits),
            message: Arc::clone(&unit.message),
        };
        let may_wait = matches!(unit.receipt, Receipt::Parked(_) | Receipt::Tick(_));
        self.dispatch.submit(job, may_wait);
    }

    /// Jobs have waited for room at their worker for too long, or too many of a function wait. Their messages are parked, so
    /// that they hold up neither acknowledgements nor the intake.
    fn park_late(&mut self, worker: WorkerNo, number: FunctionNo, all: bool) {
        let late = self.dispatch.workers.take_late(worker, number, all);
        let mut behind: BTreeMap<Key, Vec<UnitId>> = BTreeMap::new();
        // A shadow's jobs wait for no recall, and leave nothing to be kept in order.
        let is_shadow = self.rollout.function(number).is_shadow();
        for job in &late.jobs {
            let (id, key) = (job.id.unit, Key::of(job));
            self.take_back(&[(job.id, job.edition)]);
            if self.dispatch.is_draining(number) {
                self.dispatch.wait_for_drain(number, id);
            } else if late.outstanding.contains_key(&key) && !is_shadow {
                behind.entry(key).or_default().push(id);
            } else {
                self.park_instead(id, number, key);
            }
        }
        for (key, waiting) in behind {
            let outstanding = &late.outstanding[&key];
            self.dispatch.park_after(key, outstanding, waiting);
        }
    }

    /// Parks a message that would otherwise be run.
    pub(super) fn park_instead(&mut self, id: UnitId, number: FunctionNo, key: Key) {
        // A shadow has no effects, not even this one.
        if !self.rollout.function(number).is_shadow() {
            self.park_behind(id, number, key);
        }
        self.finish_job(id);
    }

    /// Figures of the last period, and workers for functions that took more than their share of it.
    fn measured(&mut self, measured: Measured) {
        for (number, share) in measured.shares {
            self.rollout.function(number).metrics.share.set(share.into());
        }
        for Excessive { function: number, mean, share } in measured.excessive {
            if self.rollout.function(number).serving().is_none() {
                continue;
            }
            tracing::warn!(
                function = &*self.rollout.function(number).name,
                mean_ms = mean.as_millis(),
                share = format!("{}.{:03}", share / 1000, share % 1000),
                "the function uses more than its share of the workers: it runs in one of its own from now on"
            );
            self.set_apart(number);
        }
    }

    pub(super) fn handle_worker_events(&mut self) {
        while let Some(event) = self.dispatch.workers.next_event() {
            if let Some((id, edition)) = event.job()
                && !(self.ledger.contains(id.unit) && self.rollout.has_jobs(id.function, edition))
            {
                self.broken("a job that a worker answers belongs to a unit and a version");
                continue;
            }
            match event {
                Event::Done { id, edition, outcome, log, log_lines_dropped, waited } => {
                    if !waited.is_zero() {
                        self.rollout.function(id.function).metrics.waited(waited);
                    }
                    self.write_log(id.function, &log, log_lines_dropped);
                    self.follows.note_log(id, log, log_lines_dropped);
                    self.job_answered(id, edition, Some(outcome));
                }
                Event::Crashed { id, edition } => {
                    let detail = "the worker process died twice while it ran this message".to_owned();
                    let failure = Failure { code: FailureCode::WorkerCrashed, detail };
                    self.job_answered(id, edition, Some(Outcome::failed(failure)));
                }
                Event::Held { id, edition } => self.job_answered(id, edition, None),
                Event::NeedState { request, id, scope, .. } => {
                    let message = &self.ledger.unit(id.unit).message;
                    let function = self.rollout.function(id.function);
                    // A shadow begins with the state of the version that it is compared with.
                    let main = match function.role {
                        Role::Main { .. } => None,
                        Role::Shadow { of } => Some(self.rollout.function(of).state_scope(scope, message)),
                    };
                    let scope = function.state_scope(scope, message);
                    self.ledger.load_state(request, scope, main);
                }
                Event::Late { worker, function, all } => self.park_late(worker, function, all),
                Event::Measured(measured) => self.measured(measured),
                Event::Set { function, change } => self.settings_in_force(function, change),
                Event::Loaded { function, edition, error } => self.version_loaded(function, edition, error),
                Event::Died { worker, status } => {
                    self.metrics.worker_restarts.inc();
                    tracing::warn!(%worker, status, "a worker died; it is replaced and its messages run again");
                }
            }
        }
    }

    /// A job came back from a worker. Without an outcome it did not run: a job before it in its key runs again first.
    fn job_answered(&mut self, id: JobId, edition: u32, outcome: Option<Outcome>) {
        let JobId { unit, function } = id;
        let (edition, unload) = self.rollout.answered(function, edition);
        if unload {
            self.dispatch.workers.unload(function, edition.number());
        }
        let is_discarded = self.dispatch.take_discarded(id) && outcome.is_some();
        let outcome = outcome.filter(|_| !is_discarded);
        if self.dispatch.is_in_order(function)
            && let Some(outcome) = outcome
        {
            return self.settle(unit, function, &edition, outcome);
        }
        let key = Key::new(function, edition.scope(), &self.ledger.unit(unit).message);
        if is_discarded {
            // It may have been given its state after the worker had forgotten it.
            self.dispatch.forget_state(function, std::slice::from_ref(&key.topic));
        }
        match outcome {
            Some(outcome) => self.settle(unit, function, &edition, outcome),
            None => self.job_returned(unit, function, &key, &edition),
        }
        if self.dispatch.is_draining(function) {
            self.end_drain(function);
        } else if self.dispatch.is_recalled(&key) {
            self.dispatch.recall_answered(&key, unit);
            self.end_recall(&key);
        }
    }

    fn job_returned(&mut self, id: UnitId, number: FunctionNo, key: &Key, edition: &Rc<Edition>) {
        self.rollout.function_mut(number).pauses.undecided(self.ledger.unit(id).message.state_topic());
        if !self.dispatch.returned(key, id) {
            // Only the worker believes that something comes first, for all jobs of the key that it has. This one runs before
            // them: it alone lifts what the worker holds, so that a retry still holds up those behind.
            let message = Arc::clone(&self.ledger.unit(id).message);
            self.recall(key.clone(), edition, &message, Some((id, edition.number())));
            self.end_recall(key);
        }
    }

    /// The one place where an outcome decides what becomes of a message.
    fn settle(&mut self, id: UnitId, number: FunctionNo, edition: &Rc<Edition>, outcome: Outcome) {
        let function = self.rollout.function_mut(number);
        if function.is_shadow() {
            return self.settle_shadow(id, number, edition, outcome);
        }
        function.metrics.ran(&outcome.usage);
        let tapped = self.tapped(id, number, edition, &outcome);
        let function = self.rollout.function(number);
        let unit = self.ledger.unit(id);
        let Outcome { verdict, writes, growth, usage, drawn: _ } = outcome;
        let is_compared = unit.compared.is_some() && matches!(function.role, Role::Main { shadow: Some(_) });
        let observed = is_compared.then(|| Observed::of(&verdict));
        let verdict = match verdict {
            Verdict::Done(outputs) => {
                let permitted = self.recorder.check(&outputs, edition.manifest());
                let fan_out = permitted.and_then(|()| self.ledger.fan_out_mut(id).spend(&outputs));
                let fan_out = fan_out.and_then(|it| self.admit_wakes(id, number, edition, &outputs).map(|()| it));
                let admitted =
                    fan_out.and_then(|fan_out| Ok((fan_out, self.admit_state(id, number, edition, growth)?)));
                admitted.map(|(fan_out, freed)| {
                    let trace = if outputs.is_empty() { None } else { self.carried(id, tapped.run) };
                    let unit = self.ledger.unit(id);
                    let carried = Carried { hops: unit.hops + 1, fan_out, trace };
                    let recorder = &mut self.recorder;
                    (recorder.record(outputs, number, edition.manifest(), &unit.message, &carried, self.now), freed)
                })
            }
            Verdict::Retry { after_ms, reason } => match self.refuse_retry(id, number, &reason) {
                Some(failure) => Err(failure),
                None => {
                    let function = self.rollout.function_mut(number);
                    function.metrics.retries.inc();
                    function.pauses.undecided(self.ledger.unit(id).message.state_topic());
                    let wait = Duration::from_millis(after_ms).min(self.config.retry_max_delay);
                    self.record_run(id, number, edition, tapped, None);
                    let key = self.park_for_retry(id, number, edition, wait);
                    self.compare(id, number, observed);
                    self.finish_job(id);
                    // What was called back and never sent waits for no answer: it is parked behind, after this one.
                    self.end_recall(&key);
                    return self.tried(number, edition.number(), None);
                }
            },
            Verdict::Failed(failure) => Err(failure),
        };
        let misbehaviour = verdict.as_ref().err().filter(|failure| failure.code.is_misbehaviour()).cloned();
        if let Some(failure) = &misbehaviour
            && self.rollout.function(number).can_fall_back(edition)
            && !is_made(Mistake::NoFallback)
        {
            // A version on trial loses no message: the one before runs it.
            if !writes.is_empty() {
                self.discard_writes(id, number, edition);
            }
            self.trace_run(id, number, edition, tapped.run, Some(failure));
            let was_draining = self.dispatch.is_draining(number);
            self.run_again(id, number, edition);
            self.tried(number, edition.number(), Some(failure));
            if !was_draining && self.dispatch.is_draining(number) {
                self.drain(number);
            }
            return;
        }
        self.record_run(id, number, edition, tapped, verdict.as_ref().err());
        let mut undone = None;
        match verdict {
            Ok((recorded, freed)) => self.record(id, number, edition, recorded, writes, freed),
            Err(failure) => {
                if !writes.is_empty() {
                    undone = self.undo_writes(id, number, edition);
                }
                self.fail(id, number, &edition.manifest().version, failure, usage);
            }
        }
        self.count_failure(id, number, misbehaviour.as_ref());
        self.compare(id, number, observed);
        self.finish_job(id);
        if let Some(key) = undone {
            self.end_recall(&key);
        }
        if edition.is_unproven() {
            self.tried(number, edition.number(), misbehaviour.as_ref());
        }
    }

    fn refuse_retry(&mut self, id: UnitId, number: FunctionNo, reason: &str) -> Option<Failure> {
        let attempt = self.ledger.unit(id).message.attempt;
        let detail = if attempt > self.config.retry_attempts {
            format!("{attempt} attempts; the last asked for another: {reason}")
        } else if self.dispatch.parking.bytes() > self.config.parked_max_bytes {
            format!("too much waits for a retry already (store.parked_max_bytes); {reason}")
        } else {
            return self.refuse_parking(number);
        };
        Some(Failure { code: FailureCode::RetriesExhausted, detail })
    }

    /// Pauses topics over which a function keeps failing, and ends their pauses.
    fn count_failure(&mut self, id: UnitId, number: FunctionNo, failure: Option<&Failure>) {
        let function = self.rollout.function_mut(number);
        let (topic, now) = (self.ledger.unit(id).message.state_topic(), self.now.monotonic);
        let is_change = match failure {
            None if !function.pauses.has_failures() => return,
            None => {
                let is_released = function.pauses.succeeded(topic);
                if is_released {
                    tracing::info!(function = &*function.name, %topic, "the function works again");
                }
                is_released
            }
            Some(failure) => match function.pauses.failed(topic, failure, now) {
                Some(paused) => {
                    function.log_pause(paused, topic, failure, now);
                    true
                }
                None => false,
            },
        };
        if is_change {
            self.rollout.report_pause(number);
        }
    }

    /// What a shadow made of a message has no effect but on its own state, and is compared with the active version's.
    fn settle_shadow(&mut self, id: UnitId, number: FunctionNo, edition: &Edition, outcome: Outcome) {
        let followed = self.followed(id, number, edition, &outcome);
        self.hold_followed(id, followed, None);
        let observed = Observed::of(&outcome.verdict);
        let failure = match &outcome.verdict {
            Verdict::Failed(failure) if failure.code.is_misbehaviour() => Some(failure.clone()),
            _ => None,
        };
        self.write_shadow_state(id, number, edition, outcome.writes, outcome.growth);
        if let Verdict::Done(outputs) = &outcome.verdict {
            self.set_shadow_wakes(id, number, edition, outputs);
        }
        // What cannot be compared brings the end of the trial no nearer.
        let counts = failure.is_some() || !self.ledger.unit(id).settings_changed;
        if counts && let Some(candidate) = self.rollout.function_mut(number).candidate() {
            candidate.ran(failure.as_ref(), true);
        }
        self.compare(id, number, Some(observed));
        self.finish_job(id);
    }

    /// Compares once both a version and its shadow have run a message.
    fn compare(&mut self, id: UnitId, number: FunctionNo, observed: Option<Observed>) {
        let (Some(observed), Some((compared, topic))) = (observed, self.ledger.compared_mut(id)) else { return };
        let shadow = match self.rollout.function(number).role {
            Role::Main { shadow } => {
                compared.active = Some(observed);
                shadow
            }
            Role::Shadow { .. } => {
                compared.shadow = Some(observed);
                Some(number)
            }
        };
        let (Some(active), Some(candidate), Some(shadow)) = (&compared.active, &compared.shadow, shadow) else {
            return;
        };
        if let Some(trial) = self.rollout.function_mut(shadow).candidate() {
            trial.compare(topic, active, candidate);
        }
        self.evaluate(shadow, None);
    }

    fn write_log(&self, function: FunctionNo, log: &[LogLine], dropped: u32) {
        let name = &*self.rollout.function(function).name;
        for LogLine { level, text } in log {
            match *level {
                tracing::Level::ERROR => tracing::error!(target: GUEST_LOG, function = name, "{text}"),
                tracing::Level::WARN => tracing::warn!(target: GUEST_LOG, function = name, "{text}"),
                tracing::Level::INFO => tracing::info!(target: GUEST_LOG, function = name, "{text}"),
                _ => tracing::debug!(target: GUEST_LOG, function = name, "{text}"),
            }
        }
        if dropped > 0 {
            self.metrics.dropped("log-lines", dropped.into());
        }
    }

    // ---- recorded ----

    fn record(
        &mut self,
        id: UnitId,
        number: FunctionNo,
        edition: &Edition,
        mut recorded: Recorded,
        writes: Vec<StateWrite>,
        freed: u64,
    ) {
        let function = self.rollout.function_mut(number);
        for (kind, count) in [
            (OutputKind::Alert, recorded.alerts),
            (OutputKind::Forward, recorded.forwards),
            (OutputKind::Publish, recorded.publishes),
        ] {
            (0..count).for_each(|_| function.metrics.emitted(kind));
        }
        function.metrics.folded_alerts.add(recorded.folded.into());
        function.metrics.muted_alerts.add(recorded.muted.into());
        if recorded.without_upstream > 0 {
            self.metrics.dropped("no-upstream", recorded.without_upstream.into());
            if !std::mem::replace(&mut function.warned_without_upstream, true) {
                let function = &*function.name;
                tracing::warn!(function, "outputs for upstream are dropped: the configuration has no [upstream]");
            }
        }
        let (wakes, trace) = (std::mem::take(&mut recorded.wakes), recorded.trace.take());
        self.ledger.record(id, recorded);
        self.write_state(id, number, edition, writes, freed);
        self.set_wakes(id, number, edition, &wakes, trace.as_ref());
    }

    pub(super) fn write_state(
        &mut self,
        id: UnitId,
        number: FunctionNo,
        edition: &Edition,
        writes: Vec<StateWrite>,
        freed: u64,
    ) {
        // A function without state has none to write, whatever a worker says: its runs have no order that writes could have.
        if edition.scope() == StateScope::None || writes.is_empty() && !self.ledger.has_unsent_writes() {
            return;
        }
        let scope = self.rollout.function(number).state_scope(edition.scope(), &self.ledger.unit(id).message);
        // A run without writes is not committed before an earlier one of its key.
        if writes.is_empty() && !self.ledger.has_unsent_writes_to(&scope) {
            return;
        }
        self.ledger.write_state(id, scope, writes, freed);
    }

    fn fail_and_finish(&mut self, id: UnitId, number: FunctionNo, version: &str, failure: Failure) {
        self.follow_failure(id, number, version, &failure);
        self.fail(id, number, version, failure, Usage::default());
        self.finish_job(id);
    }

    /// A message that waited for a function which was removed meanwhile.
    fn fail_removed(&mut self, id: UnitId, number: FunctionNo) {
        let detail = format!("{} is not installed any more", self.rollout.function(number).name);
        self.fail_and_finish(id, number, "", Failure { code: FailureCode::Removed, detail });
    }

    /// Makes the message a dead letter of this function. `version`: the one that ran it, if any did.
    fn fail(&mut self, id: UnitId, number: FunctionNo, version: &str, failure: Failure, usage: Usage) {
        if self.ledger.unit(id).is_request() {
            let (response, is_dead_letter) = Response::failure(&failure);
            if !is_dead_letter {
                return self.ledger.turn_away(id, response);
            }
            self.ledger.answer(id, response);
        }
        self.trace_failure(id, &failure);
        let message = &self.ledger.unit(id).message;
        let function = self.rollout.function(number);
        self.metrics.dead_letter(Some(&function.metrics), failure.code);
        tracing::warn!(
            function = &*function.name,
            reason = failure.code.as_str(),
            topic = &*message.topic,
            detail = failure.detail,
            count = function.metrics.failures(failure.code),
            "dead letter"
        );
        let dead_letter = DeadLetter {
            function: Arc::clone(&function.name),
            version: version.into(),
            message: Arc::clone(message),
            failure,
            usage,
            at_ms: self.now.unix_ms,
        };
        self.ledger.dead_letter(id, dead_letter);
    }

    /// One function is done with the unit; the last one sends it to be committed.
    fn finish_job(&mut self, id: UnitId) {
        if !self.ledger.finish_job(id) {
            return;
        }
        let unit = self.ledger.unit(id);
        match &unit.receipt {
            Receipt::Parked(key) => {
                // A job that is parked again has taken its own place in front already.
                if unit.commit.park.is_empty() {
                    self.dispatch.parking.finished(key);
                }
                self.dispatch.parking.unblock(key);
            }
            Receipt::Tick(function) => self.rollout.function_mut(*function).is_ticking = false,
            Receipt::Wake { function, id: wake } => {
                let (function, wake) = (*function, *wake);
                self.wake_finished(function, wake);
            }
            // The next run of a schedule begins once this one is committed.
            Receipt::Schedule { .. }
            | Receipt::Silence { .. }
            | Receipt::Mqtt { .. }
            | Receipt::Request(_)
            | Receipt::None => {}
        }
        let unit = self.ledger.unit(id);
        // A message is counted once, with its first commit. What becomes of its parked jobs is counted by function.
        if unit.is_counted() {
            match unit.commit.dead_letters.is_empty() {
                true => self.metrics.recorded.inc(),
                false => self.metrics.dead_lettered.inc(),
            }
        }
        if let Receipt::Request(request) = unit.receipt
            && is_made(Mistake::AnswerBeforeCommit)
        {
            self.requests.close(request, Response::DONE);
        }
        self.ledger.send(id);
        self.wakes_sent();
        self.silences_sent();
        for (function, bytes) in self.ledger.take_freed() {
            self.states.freed(&function, bytes);
            self.show_state(&function);
        }
    }

    // ---- waiting for another run ----

    /// Jobs that the store holds: from before a restart, or put back by a person.
    pub fn unpark(&mut self, parked: Vec<Parked>) {
        for Parked { id, function, message, due_ms, wait_ms } in parked {
            let number = self.rollout.find(&function);
            let scope = number.and_then(|number| Some((number, self.rollout.function(number).serving()?.scope())));
            let Some((number, scope)) = scope else {
                let detail = format!("{function} is not installed any more");
                let failure = Failure { code: FailureCode::Removed, detail };
                self.metrics.dead_letter(None, failure.code);
                self.trace_removed(&message, &failure);
                let (usage, at_ms) = (Usage::default(), self.now.unix_ms);
                let dead_letter = DeadLetter { function, version: "".into(), message, failure, usage, at_ms };
                self.ledger.commit(Commit { dead_letters: vec![dead_letter], unpark: vec![id], ..Commit::default() });
                continue;
            };
            // The wall clock may have jumped while the board was off, or not be set yet.
            let wait_ms = due_ms.saturating_sub(self.now.unix_ms).min(wait_ms);
            let wait = Duration::from_millis(wait_ms).min(self.config.retry_max_delay);
            let key = Key::new(number, scope, &message);
            self.dispatch.parking.restore(key, id, message, self.now.monotonic + wait);
        }
    }

    /// Returns the key in whose order the message waits.
    fn park_for_retry(&mut self, id: UnitId, number: FunctionNo, edition: &Edition, wait: Duration) -> Key {
        let unit = self.ledger.unit(id);
        let message = Arc::new(Message { attempt: unit.message.attempt + 1, ..Message::clone(&unit.message) });
        let due = self.now.monotonic + wait;
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        let due_ms = self.now.unix_ms.saturating_add(wait_ms);
        let place = unit.commit.unpark.first().copied().unwrap_or(ParkedId::NEW);
        let function = self.function_name(number);
        let parked = Parked { id: place, function, message: Arc::clone(&message), due_ms, wait_ms };
        let (key, ticket) = match &self.ledger.unit(id).receipt {
            Receipt::Parked(key) => {
                self.dispatch.parking.finished(key);
                (key.clone(), self.dispatch.parking.park_again(key.clone(), place, message, due))
            }
            _ => {
                let key = Key::new(number, edition.scope(), &message);
                let arrival = self.ledger.arrival(id);
                let ticket = self.dispatch.parking.park(key.clone(), Arc::clone(&message), arrival, Some(due));
                // What was sent behind it comes back first, so that nothing newer is put between.
                if !self.dispatch.is_draining(number) && !self.dispatch.is_recalled(&key) {
                    self.recall(key.clone(), edition, &message, None);
                }
                (key, ticket)
            }
        };
        self.ledger.park(id, parked, ticket);
        self.trace_waits(id);
        key
    }

    /// The message waits in the store, behind those of its key that do.
    fn park_behind(&mut self, id: UnitId, number: FunctionNo, key: Key) {
        let message = Arc::clone(&self.ledger.unit(id).message);
        if let Some(failure) = self.refuse_parking(number) {
            return self.fail(id, number, "", failure, Usage::default());
        }
        if self.dispatch.parking.bytes() > self.config.parked_max_bytes {
            let detail = "too much waits for a retry already (store.parked_max_bytes)".to_owned();
            let failure = Failure { code: FailureCode::RetriesExhausted, detail };
            return self.fail(id, number, "", failure, Usage::default());
        }
        let ticket = self.dispatch.parking.park(key, Arc::clone(&message), self.ledger.arrival(id), None);
        let function = self.function_name(number);
        let parked = Parked { id: ParkedId::NEW, function, message, due_ms: 0, wait_ms: 0 };
        self.ledger.park(id, parked, ticket);
        self.trace_waits(id);
    }

    /// What may wait in the store for one function, where the broker does not wait for it.
    fn parked_share(&self) -> usize {
        self.config.parked_max_bytes / PARTS_OF_PARKED
    }

    /// Whether a message of the function could be parked.
    pub(super) fn has_room_to_park(&self, number: FunctionNo) -> bool {
        let is_within_share = self.dispatch.parking.bytes_of(number) <= self.parked_share();
        self.dispatch.parking.bytes() <= self.config.parked_max_bytes && (is_within_share || self.is_alone(number))
    }

    /// Why nothing more may wait for a function.
    fn refuse_parking(&mut self, number: FunctionNo) -> Option<Failure> {
        let share = self.parked_share();
        // What comes waits at the broker then ([`Board::is_full`]).
        if self.dispatch.parking.bytes_of(number) <= share || self.may_hold_up(number, share) {
            return None;
        }
        let now = self.now.monotonic;
        let function = self.rollout.function_mut(number);
        function.log_over_share(share, now);
        let detail = format!("more than {share} bytes wait for {}, a quarter of store.parked_max_bytes", function.name);
        Some(Failure { code: FailureCode::OverShare, detail })
    }

    /// Whether more waits in the store than its share for a function for which the broker may wait.
    pub(super) fn has_backlog(&self) -> bool {
        let share = self.parked_share();
        self.dispatch.parking.bytes() > share
            && self
                .rollout
                .numbers()
                .any(|it| self.dispatch.parking.bytes_of(it) > share && self.may_hold_up(it, share))
    }

    /// Whether the board may stop reading until less waits for a function: it is the only one, or its runs are short and what
    /// waits runs now, so that this ends soon. A function with long runs, or that asked for a pause, would hold up the others.
    fn may_hold_up(&self, number: FunctionNo, share: usize) -> bool {
        let is_working = || {
            !self.dispatch.workers.has_long_runs(number)
                && self.dispatch.parking.ready_bytes_of(number, self.now.monotonic) > share
        };
        self.is_alone(number) || is_working()
    }

    /// Whether no other function gets messages.
    fn is_alone(&self, number: FunctionNo) -> bool {
        let gets_messages = |it: &FunctionNo| {
            let function = self.rollout.function(*it);
            function.serving().is_some() && !function.is_shadow()
        };
        self.rollout.numbers().filter(gets_messages).all(|it| it == number)
    }

    fn function_name(&self, number: FunctionNo) -> Arc<str> {
        Arc::clone(&self.rollout.function(number).name)
    }

    /// Starts what is due: parked jobs, timers, trials that end by the clock.
    pub(super) fn start_due(&mut self) {
        self.start_parked();
        self.start_ticks();
        for number in self.rollout.timed().collect::<Vec<_>>() {
            if self.rollout.function(number).is_on_trial() {
                self.evaluate(number, None);
            }
        }
    }

    /// Starts jobs from the store that are first of their key and due.
    pub(super) fn start_parked(&mut self) {
        let now = self.now.monotonic;
        let mut due = Vec::new();
        let rollout = &self.rollout;
        self.dispatch.parking.start_due(
            now,
            if self.caution.is_on() { 1 } else { usize::MAX },
            |number| !rollout.function(number).is_awaited(),
            |key, id, message| due.push((key.clone(), id, Arc::clone(message))),
        );
        for (key, parked, message) in due {
            let function = key.function;
            let limits = self.limits(&message.properties);
            let unpark = if is_made(Mistake::KeepParked) { Vec::new() } else { vec![parked] };
            let commit = Commit { unpark, ..Commit::default() };
            let unit = self.ledger.add(Unit::new(message, limits, Receipt::Parked(key), 1, commit));
            if self.caution.is_on() && self.is_guilty(unit) {
                self.refuse_guilty(unit, &[function]);
                continue;
            }
            self.start(unit, function);
        }
    }

    fn start_ticks(&mut self) {
        for number in self.rollout.ticks_due(self.now.monotonic) {
            let topic = format!("$timer/{}", self.rollout.function(number).name);
            let message = Message::new(topic, Bytes::new(), self.now.unix_ms, self.now.synced);
            let message = Arc::new(self.traces.admitted(message, self.now));
            let mut functions = vec![number];
            let unit = self.add_unit(
                message,
                (0, self.config.max_fan_out),
                Receipt::Tick(number),
                &mut functions,
                Commit::default(),
            );
            for function in functions {
                self.start(unit, function);
            }
        }
    }
}

/// A user property with a number.
fn property<T: AsRef<str>>(properties: &[(T, T)], name: &str) -> Option<u32> {
    let value = properties.iter().find(|(key, _)| key.as_ref() == name).map(|(_, value)| value.as_ref());
    value.and_then(|value| value.parse().ok())
}
