//! The spine: what happens to a message, from delivery to acknowledgement.
//!
//! ```text
//! delivery ─▶ seen before? ─▶ route ─▶ jobs ─▶ outcomes ─▶ one commit ─▶ acknowledge, forward
//!                 │ yes          │ nobody          │ the one match of failure policy
//!                 └──────────────┴─────────────────┴─▶ acknowledge in turn
//! ```
//!
//! This file is the way of a message. What stands beside it: [`Unit`] is a message on its way, [`window`] what is not
//! acknowledged, [`recording`] the commit, [`waiting`] retries and timers, [`deployment`] how versions of a function change.
//!
//! One thread, no locks: broker, workers and store each queue events, the loop takes them in turn, and everything that
//! came of one turn is sent in one batch. Nothing here waits for a disk, a socket or a function.

mod deployment;
mod function;
mod parking;
mod quarantine;
mod recall;
mod record;
mod recording;
mod remembered;
mod shadow;
mod trial;
mod unit;
mod waiting;
mod window;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::message::{Failure, FailureCode, LogLine, Message, Outcome, Scope, Usage, Verdict};
use crate::mqtt::{AckToken, Delivery};
use crate::router::{self, BadTopic, Route, Router};
use crate::store::{self, BatchNo, Commit, LoadId};
use crate::telemetry::Metrics;
use crate::worker::pool::{self, Pool, StateRequest};
use crate::worker::protocol::{Job, JobScope};
pub use deployment::{Deployment, Event as Deployed};
use function::Edition;
pub use function::Function;
use parking::{Key, Parking};
use quarantine::Change;
pub use quarantine::Settings as QuarantineSettings;
use recall::Recall;
use record::Folding;
pub use record::Origin;
use trial::Said;
pub use trial::{Difference, Tally};
use unit::{From, Unit, fingerprint, hops, key_of, message_id, token, untoken};
pub use window::memory as window_memory;
use window::{Seen, UnitId, Window};

/// A publisher's own message id, honoured across reconnections and restarts.
pub const ID_PROPERTY: &str = "id";

/// What the configuration decides here.
#[derive(Clone, Debug)]
pub struct Settings {
    pub origin: Origin,
    pub receive_maximum: u16,
    pub max_payload_bytes: usize,
    pub max_hops: u32,
    pub retry_attempts: u32,
    pub retry_max_delay: Duration,
    pub parked_max_bytes: usize,
    pub quarantine: quarantine::Settings,
}

/// What a turn of the loop wants done by those who may do it.
#[derive(Debug, Default)]
pub struct Turn {
    pub acknowledge: Vec<AckToken>,
    pub requests: Vec<store::StoreRequest>,
    /// Functions that were paused because they kept failing, or work again.
    pub changed: Vec<usize>,
    /// What became of versions that were put into service.
    pub deployed: Vec<(Arc<str>, u32, Deployed)>,
    /// Other topics are wanted than before: the router must be made anew.
    pub routes_changed: bool,
}

/// Payload bytes under way above which nothing more is taken from the broker.
const MAX_BYTES_IN_FLIGHT: usize = 16 << 20;
/// Numbers of functions fit into a job's id.
pub const MAX_FUNCTIONS: usize = 1 << 16;

pub struct Pipeline {
    settings: Settings,
    functions: Vec<Function>,
    /// Functions with a timer or a version on trial, and some that had one: most boards have few of them, and every turn
    /// of the loop asks what is due.
    timed: BTreeSet<usize>,
    /// Versions that the workers are loading.
    pending: Vec<deployment::Pending>,
    recalls: HashMap<Key, Recall>,
    router: Router,
    pool: Pool,
    metrics: Arc<Metrics>,
    units: Vec<Option<Unit>>,
    free: Vec<UnitId>,
    arrivals: u64,
    window: Window,
    parking: Parking,
    folding: Folding,
    message_ids: store::MessageIds,
    message_ids_under_way: HashMap<Box<str>, UnitId>,
    /// Committed with the next batch.
    batch: Vec<Commit>,
    /// Deliveries in `batch`, and those whose commits are under way, by the number of their batch.
    batch_units: Vec<UnitId>,
    committing: VecDeque<(BatchNo, Vec<UnitId>)>,
    sequence: BatchNo,
    /// Units whose writes to a scope wait for another job of the same message, in the order of the runs. The store must
    /// get them in this order, and must not be asked for the scope before.
    unsent_writes: HashMap<Scope, VecDeque<UnitId>>,
    /// Units of several functions, and those behind them, in the order of delivery: one that is done sooner must not be
    /// committed before one of its topic that still waits for another function.
    unsent_of_topic: HashMap<Arc<str>, VecDeque<UnitId>>,
    postponed_loads: Vec<(StateRequest, Scope)>,
    /// With the scope to read instead if there is nothing: a shadow begins with the state of the version that it is held
    /// against.
    loads: HashMap<LoadId, (StateRequest, Option<Scope>)>,
    next_load: LoadId,
    bytes_in_flight: usize,
    full: bool,
    turn: Turn,
    clock_synced: bool,
}

impl Pipeline {
    pub fn new(settings: Settings, pool: Pool, metrics: Arc<Metrics>) -> Self {
        Self {
            window: Window::new(settings.receive_maximum, false, &[]),
            settings,
            functions: Vec::new(),
            timed: BTreeSet::new(),
            pending: Vec::new(),
            recalls: HashMap::new(),
            router: Router::new(Vec::new()),
            pool,
            metrics,
            units: Vec::new(),
            free: Vec::new(),
            arrivals: 0,
            parking: Parking::default(),
            folding: Folding::default(),
            message_ids: store::MessageIds::default(),
            message_ids_under_way: HashMap::new(),
            batch: Vec::new(),
            batch_units: Vec::new(),
            committing: VecDeque::new(),
            sequence: BatchNo::default(),
            unsent_writes: HashMap::new(),
            unsent_of_topic: HashMap::new(),
            postponed_loads: Vec::new(),
            loads: HashMap::new(),
            next_load: LoadId::default(),
            bytes_in_flight: 0,
            full: false,
            turn: Turn::default(),
            clock_synced: false,
        }
    }

    pub fn functions(&self) -> &[Function] {
        &self.functions
    }

    pub fn pool(&mut self) -> &mut Pool {
        &mut self.pool
    }

    pub fn router(&self) -> &Router {
        &self.router
    }

    pub fn set_router(&mut self, router: Router) {
        self.router = router;
    }

    /// Nothing is under way: no job, no commit.
    pub fn is_idle(&self) -> bool {
        self.units.len() == self.free.len() && self.committing.is_empty()
    }

    /// So little is unacknowledged that the broker holds nothing back.
    pub fn is_nearly_idle(&self) -> bool {
        self.window.unacknowledged() < usize::from(self.settings.receive_maximum).div_ceil(4)
    }

    /// Whether no more should be taken from the broker for now. Closes at twice Receive Maximum and opens again at half
    /// of that, so that a broker that keeps to it never notices.
    pub fn is_full(&mut self) -> bool {
        // One slow message holds up the acknowledgements of those behind it, which are done and have no unit any more.
        let count = (self.units.len() - self.free.len()).max(self.window.unacknowledged());
        let most = 2 * usize::from(self.settings.receive_maximum);
        let (bytes, most_bytes) = (self.bytes_in_flight, MAX_BYTES_IN_FLIGHT);
        self.full =
            if self.full { count > most / 2 || bytes > most_bytes / 2 } else { count >= most || bytes >= most_bytes };
        self.full
    }

    /// Proven by the broker, worth remembering: see [`window`].
    pub fn counts_upwards(&self) -> bool {
        self.window.counts_upwards()
    }

    pub fn set_clock_synced(&mut self, synced: bool) {
        self.clock_synced = synced;
    }

    /// The broker is known to count its packet ids upwards.
    pub fn set_counts_upwards(&mut self) {
        self.window.set_counts_upwards();
    }

    /// Takes up what the store found when it was opened again after a failure.
    pub fn reopened(&mut self, recovered: store::Recovered, now: Instant, now_ms: u64) {
        self.window.store_reopened(&recovered.window);
        self.message_ids = recovered.message_ids;
        self.unpark(recovered.parked, now, now_ms);
    }

    /// Takes up what the store found when it was opened.
    pub fn restore(&mut self, recovered: store::Recovered, counts_upwards: bool, now: Instant, now_ms: u64) {
        self.window = Window::new(self.settings.receive_maximum, counts_upwards, &recovered.window);
        self.message_ids = recovered.message_ids;
        self.unpark(recovered.parked, now, now_ms);
    }

    // ---- delivered ----

    pub fn deliver(&mut self, delivery: Delivery, now: Instant, now_ms: u64) {
        self.metrics.received.inc();
        let fingerprint = delivery.ack.map(|ack| fingerprint(ack.packet_id, &delivery));
        let mut from = From::Unacknowledged;
        if let (Some(ack), Some(fingerprint)) = (delivery.ack, fingerprint) {
            match self.window.receive(ack, fingerprint, delivery.dup) {
                Seen::New { place } => from = From::Broker { place, fingerprint },
                Seen::Done => {
                    self.metrics.redelivered.inc();
                    return;
                }
                Seen::UnderWay { unit, place } => {
                    self.metrics.redelivered.inc();
                    if let Some(Some(unit)) = self.units.get_mut(unit) {
                        unit.copies.push((place, fingerprint));
                    }
                    return;
                }
            }
        }
        let route = self.router.route(&delivery.topic);
        let mut functions: Vec<usize> =
            route.as_ref().map_or_else(|_| Vec::new(), |route| route.functions(&delivery.subscriptions).collect());
        functions.retain(|number| self.functions.get(*number).is_some_and(|it| it.serving().is_some()));
        let hops = hops(&delivery);
        let message_id = message_id(&delivery);
        if let Some(&id) = message_id.as_deref().and_then(|id| self.message_ids_under_way.get(id)) {
            self.metrics.redelivered.inc();
            if let (From::Broker { place, fingerprint }, Some(Some(unit))) = (from, self.units.get_mut(id)) {
                unit.copies.push((place, fingerprint));
                self.window.assign(fingerprint.packet_id, id);
            }
            return;
        }
        let known = message_id.as_deref().is_some_and(|id| self.message_ids.contains(id));
        let route = match route {
            Ok(route) if !functions.is_empty() && !known => route,
            other => {
                if known {
                    self.metrics.redelivered.inc();
                } else {
                    self.metrics.unrouted.inc();
                }
                if other == Err(BadTopic) {
                    tracing::warn!("a message came with a topic that is none; it was acknowledged and dropped");
                }
                self.settle_without_effect(&from);
                return;
            }
        };
        let commit = Commit { delivery: fingerprint, message_id: message_id.clone(), ..Commit::default() };
        let message = self.message(delivery, &route, now_ms);
        let compared = self.add_shadows(&mut functions, &message.topic);
        let in_line = functions.len() > 1
            || (!self.unsent_of_topic.is_empty() && self.unsent_of_topic.contains_key(&message.topic));
        let topic = Arc::clone(&message.topic);
        let unit = Unit::new(message, hops, from, functions.len(), commit);
        let unit = self.insert(Unit { message_id: message_id.clone(), in_line, compared, ..unit });
        if in_line {
            self.unsent_of_topic.entry(topic).or_default().push_back(unit);
        }
        if let Some(id) = message_id {
            self.message_ids_under_way.insert(id, unit);
        }
        if let Some(fingerprint) = fingerprint {
            self.window.assign(fingerprint.packet_id, unit);
        }
        for function in functions {
            self.start(unit, function, now, now_ms);
        }
    }

    /// A message that is not for functions: it is acknowledged in its turn.
    pub fn pass_over(&mut self, delivery: &Delivery) {
        self.metrics.received.inc();
        if let Some(ack) = delivery.ack {
            let fingerprint = fingerprint(ack.packet_id, delivery);
            if let Seen::New { place } = self.window.receive(ack, fingerprint, delivery.dup) {
                self.settle_without_effect(&From::Broker { place, fingerprint });
            }
        }
    }

    fn message(&self, delivery: Delivery, route: &Route, now_ms: u64) -> Message {
        let Delivery { payload, content_type, properties, .. } = delivery;
        Message {
            topic: Arc::clone(&route.topic),
            payload,
            content_type: content_type.map(Into::into),
            properties: properties.into_iter().map(|(name, value)| (name.into(), value.into())).collect(),
            received_at_ms: now_ms,
            clock_synced: self.clock_synced,
            attempt: 1,
        }
    }

    fn insert(&mut self, mut unit: Unit) -> UnitId {
        self.arrivals += 1;
        unit.arrival = self.arrivals;
        self.bytes_in_flight += unit.message.payload.len();
        match self.free.pop() {
            Some(id) => {
                self.units[id] = Some(unit);
                id
            }
            None => {
                self.units.push(Some(unit));
                self.units.len() - 1
            }
        }
    }

    fn remove(&mut self, id: UnitId) -> Option<Unit> {
        let unit = self.units.get_mut(id)?.take()?;
        self.free.push(id);
        self.bytes_in_flight -= unit.message.payload.len();
        Some(unit)
    }

    // ---- invoked ----

    /// Runs a function on a unit's message, unless something speaks against it beforehand.
    fn start(&mut self, id: UnitId, number: usize, now: Instant, now_ms: u64) {
        let Some(unit) = self.units[id].as_ref() else { return };
        let refused = if unit.message.payload.len() > self.settings.max_payload_bytes {
            let detail = format!(
                "{} bytes, the limit is {} (mqtt.max_payload_bytes)",
                unit.message.payload.len(),
                self.settings.max_payload_bytes
            );
            Some(Failure { code: FailureCode::PayloadTooLarge, detail })
        } else if unit.hops >= self.settings.max_hops {
            let detail = format!("it went through {} functions (functions.max_hops)", unit.hops);
            Some(Failure { code: FailureCode::TooManyHops, detail })
        } else {
            None
        };
        if let Some(failure) = refused {
            self.fail(id, number, "", failure, Usage::default(), now_ms);
            self.finish_job(id);
            return;
        }
        let function = &mut self.functions[number];
        if let Some(drain) = &mut function.drain {
            drain.waiting.push(id);
            return;
        }
        let is_shadow = function.is_shadow;
        let Some(edition) = function.serving_for(&unit.message.topic).cloned() else {
            if is_shadow {
                self.finish_job(id);
            } else {
                self.fail_removed(id, number, now_ms);
            }
            return;
        };
        if is_shadow {
            self.submit(id, number, &edition, true);
            return;
        }
        let key = key_of(number, edition.manifest.state, &unit.message);
        let is_parked = matches!(unit.from, From::Parked { .. });
        if !is_parked {
            if !self.recalls.is_empty()
                && let Some(recall) = self.recalls.get_mut(&key)
            {
                recall.waiting.push(id);
                return;
            }
            if self.parking.is_blocked(&key) {
                self.park_behind(id, number, key, now_ms);
                self.finish_job(id);
                return;
            }
        }
        if !self.functions[number].quarantine.admits(now) {
            let detail = format!("{} is paused because it kept failing", self.functions[number].name);
            let failure = Failure { code: FailureCode::Quarantined, detail };
            self.fail(id, number, &edition.manifest.version, failure, Usage::default(), now_ms);
            self.finish_job(id);
            return;
        }
        self.submit(id, number, &edition, is_parked);
    }

    /// Hands the job to the worker that owns its key.
    fn submit(&mut self, id: UnitId, number: usize, edition: &Rc<Edition>, resumes: bool) {
        let Some(unit) = self.units[id].as_ref() else { return };
        let scope = edition.scope();
        let function = &self.functions[number];
        let job = Job {
            id: token(id, number),
            function: number as u32,
            edition: edition.number,
            scope,
            resumes,
            on_trial: function.can_fall_back(edition),
            message: unit.message.clone(),
        };
        let worker = self.place_of(number, scope, router::hash(&unit.message.topic));
        edition.jobs.set(edition.jobs.get() + 1);
        self.pool.submit(worker, job);
    }

    /// The worker that runs a function's jobs on a topic.
    fn place_of(&self, number: usize, scope: JobScope, topic_hash: u64) -> usize {
        match scope {
            JobScope::Function => number % self.pool.len(),
            JobScope::None | JobScope::Topic => (topic_hash % self.pool.len() as u64) as usize,
        }
    }

    pub fn worker_event(&mut self, event: pool::Event, now: Instant, now_ms: u64) {
        match event {
            pool::Event::Done { token, edition, outcome, log, log_lines_dropped } => {
                let (unit, number) = untoken(token);
                self.write_log(number, &log, log_lines_dropped);
                self.job_answered(unit, number, edition, Some(outcome), now, now_ms);
            }
            pool::Event::Crashed { token, edition } => {
                let (unit, number) = untoken(token);
                let detail = "the worker process died twice while it ran this message".to_owned();
                let outcome = Outcome {
                    verdict: Verdict::Failed(Failure { code: FailureCode::WorkerCrashed, detail }),
                    writes: Vec::new(),
                    usage: Usage::default(),
                };
                self.job_answered(unit, number, edition, Some(outcome), now, now_ms);
            }
            pool::Event::Held { token, edition } => {
                let (unit, number) = untoken(token);
                self.job_answered(unit, number, edition, None, now, now_ms);
            }
            pool::Event::NeedState { request, scope } => self.load_state(request, scope),
            pool::Event::Loaded { function, edition, error } => self.loaded(function, edition, error, now, now_ms),
            pool::Event::Died { worker, status } => {
                self.metrics.worker_restarts.inc();
                tracing::warn!(worker, status, "a worker died; it is replaced and its messages run again");
            }
        }
    }

    /// A job came back from a worker; without an outcome it was not run, because one before it in its key is to be run
    /// again first.
    fn job_answered(
        &mut self,
        id: UnitId,
        number: usize,
        edition: u32,
        outcome: Option<Outcome>,
        now: Instant,
        now_ms: u64,
    ) {
        let Some(edition) = self.answered(number, edition) else { return };
        let Some(Some(unit)) = self.units.get(id) else { return };
        let in_order = self.recalls.is_empty() && self.functions[number].drain.is_none();
        if in_order && let Some(outcome) = outcome {
            self.settle(id, number, &edition, outcome, now, now_ms);
            return;
        }
        let key = key_of(number, edition.manifest.state, &unit.message);
        let was_recalled = self.recalls.contains_key(&key);
        match outcome {
            Some(outcome) => self.settle(id, number, &edition, outcome, now, now_ms),
            None => self.take_returned(id, number, &key, &edition),
        }
        self.recall_answered(&key, was_recalled, now, now_ms);
    }

    fn take_returned(&mut self, id: UnitId, number: usize, key: &Key, edition: &Rc<Edition>) {
        self.functions[number].quarantine.undecided();
        if let Some(drain) = &mut self.functions[number].drain {
            drain.returned.push(id);
        } else if let Some(recall) = self.recalls.get_mut(key) {
            recall.returned.push(id);
        } else {
            // The worker alone thinks that something is to come first.
            self.submit(id, number, edition, true);
        }
    }

    /// The one place where an outcome decides what becomes of a message.
    fn settle(
        &mut self,
        id: UnitId,
        number: usize,
        edition: &Rc<Edition>,
        outcome: Outcome,
        now: Instant,
        now_ms: u64,
    ) {
        if self.functions[number].is_shadow {
            self.settle_shadow(id, number, edition, outcome, now, now_ms);
            return;
        }
        let Some(Some(unit)) = self.units.get_mut(id) else { return };
        let function = &mut self.functions[number];
        let Outcome { verdict, writes, usage } = outcome;
        function.metrics.ran(&usage);
        let is_compared = unit.compared.is_some() && function.shadow.is_some();
        let said = is_compared.then(|| Said::of(&verdict));
        let verdict = match verdict {
            Verdict::Done(outputs) => {
                let hops = unit.hops + 1;
                let (manifest, origin) = (&edition.manifest, &self.settings.origin);
                record::record(outputs, number, manifest, &unit.message, hops, origin, &mut self.folding, now, now_ms)
            }
            Verdict::Retry { after_ms, reason } => {
                if unit.message.attempt > self.settings.retry_attempts {
                    let detail = format!("{} attempts; the last asked for another: {reason}", unit.message.attempt);
                    Err(Failure { code: FailureCode::RetriesExhausted, detail })
                } else if self.parking.bytes() > self.settings.parked_max_bytes {
                    let detail = format!("too much waits for a retry already (store.parked_max_bytes); {reason}");
                    Err(Failure { code: FailureCode::RetriesExhausted, detail })
                } else {
                    function.metrics.retries.inc();
                    function.quarantine.undecided();
                    let wait = Duration::from_millis(after_ms).min(self.settings.retry_max_delay);
                    self.park_for_retry(id, number, edition, wait, now, now_ms);
                    self.compare(id, number, said, now, now_ms);
                    self.finish_job(id);
                    self.tried(number, edition.number, None, now, now_ms);
                    return;
                }
            }
            Verdict::Failed(failure) => Err(failure),
        };
        let failure = verdict.as_ref().err().filter(|failure| failure.code.is_misbehaviour()).cloned();
        if let Some(failure) = failure.as_ref().filter(|_| function.can_fall_back(edition)) {
            // A version on trial loses no message: the one before runs it.
            self.run_again(id, number, edition, now, now_ms);
            self.tried(number, edition.number, Some(failure), now, now_ms);
            return;
        }
        let misbehaved = failure.is_some();
        match verdict {
            Ok(recorded) => self.keep(id, number, edition, recorded, writes),
            Err(failure) => self.fail(id, number, &edition.manifest.version, failure, usage, now_ms),
        }
        let quarantine = &mut self.functions[number].quarantine;
        let change = if misbehaved { quarantine.failed(now) } else { quarantine.succeeded() };
        if let Some(change) = change {
            self.quarantine_changed(number, change);
        }
        self.compare(id, number, said, now, now_ms);
        self.finish_job(id);
        if edition.is_unproven.get() {
            self.tried(number, edition.number, failure.as_ref(), now, now_ms);
        }
    }

    fn quarantine_changed(&mut self, number: usize, change: Change) {
        let function = &self.functions[number];
        let name = &*function.name;
        function.metrics.quarantined.set(matches!(change, Change::Paused(_)).into());
        match change {
            Change::Paused(pause) => {
                tracing::error!(
                    function = name,
                    pause_secs = pause.as_secs(),
                    "the function keeps failing and is paused"
                );
            }
            Change::Released => tracing::info!(function = name, "the function works again"),
        }
        self.turn.changed.push(number);
    }

    fn write_log(&self, function: usize, log: &[LogLine], dropped: u32) {
        if log.is_empty() && dropped == 0 {
            return;
        }
        let name = self.functions.get(function).map_or("?", |it| &*it.name);
        for LogLine { level, text } in log {
            match *level {
                tracing::Level::ERROR => tracing::error!(function = name, "{text}"),
                tracing::Level::WARN => tracing::warn!(function = name, "{text}"),
                tracing::Level::INFO => tracing::info!(function = name, "{text}"),
                _ => tracing::debug!(function = name, "{text}"),
            }
        }
        if dropped > 0 {
            self.metrics.dropped("log-lines", dropped.into());
        }
    }

    // ---- acknowledged ----

    /// Ends a turn of the loop: everything that came of it, to be carried out in this order.
    pub fn end_turn(&mut self) -> Turn {
        self.send_batch();
        self.pool.flush();
        while let Some(token) = self.window.release() {
            self.metrics.acknowledged.inc();
            self.turn.acknowledge.push(token);
        }
        self.metrics.in_flight.set((self.units.len() - self.free.len()) as u64);
        std::mem::take(&mut self.turn)
    }

    // ---- when things break ----

    pub fn disconnected(&mut self) {
        self.window.disconnected();
    }

    pub fn session_lost(&mut self) {
        self.window.session_lost();
    }

    /// The store failed: nothing that is not committed counts. The broker will send it again.
    pub fn store_failed(&mut self) {
        self.units.clear();
        self.free.clear();
        self.bytes_in_flight = 0;
        self.batch.clear();
        self.batch_units.clear();
        self.committing.clear();
        self.unsent_writes.clear();
        self.unsent_of_topic.clear();
        self.postponed_loads.clear();
        self.loads.clear();
        self.recalls.clear();
        self.message_ids_under_way.clear();
        self.parking = Parking::default();
        self.folding.forget();
        self.window.store_failed();
        self.pool.reset();
        self.turn = Turn::default();
        for function in &mut self.functions {
            function.tick_under_way = false;
            function.quarantine.undecided();
        }
        self.forget_jobs();
    }
}

#[cfg(test)]
#[cfg(feature = "compiler")]
mod tests;
