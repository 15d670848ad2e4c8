//! The spine: what happens to a message, from delivery to acknowledgement.
//!
//! ```text
//! delivery ─▶ seen before? ─▶ route ─▶ jobs ─▶ outcomes ─▶ one commit ─▶ acknowledge, forward
//!                 │ yes          │ nobody          │ the one match of failure policy
//!                 └──────────────┴─────────────────┴─▶ acknowledge in turn
//! ```
//!
//! One thread, no locks: broker, workers and store each queue events, the loop takes them in turn, and everything that
//! came of one turn is sent in one batch. Nothing here waits for a disk, a socket or a function.

mod deployment;
mod function;
mod parking;
mod quarantine;
mod recall;
mod record;
mod trial;
mod window;

use std::collections::{HashMap, VecDeque};
use std::hash::{Hash as _, Hasher as _};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use siphasher::sip::SipHasher13;

use crate::forward::HOPS;
use crate::manifest::StateScope;
use crate::message::{Failure, FailureCode, LogLine, Message, Outcome, Scope, StateWrite, Usage, Verdict};
use crate::mqtt::{AckToken, Delivery};
use crate::router::{self, BadTopic, Route, Router};
use crate::store::{self, Commit, DeadLetter, Fingerprint, Parked};
use crate::telemetry::{Metrics, OutputKind};
use crate::worker::pool::{self, Pool, StateRequest};
use crate::worker::protocol::{Job, JobScope};
pub use deployment::{Deployment, Event as Deployed};
use function::Edition;
pub use function::Function;
use parking::{Key, Parking, Ticket};
pub use quarantine::Settings as QuarantineSettings;
use quarantine::{Change, Quarantine};
use recall::Recall;
use record::Folding;
pub use record::Origin;
use trial::Said;
pub use trial::{Difference, Tally};
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

/// A message on its way, until everything it caused is committed.
struct Unit {
    /// Counts up.
    arrival: u64,
    message: Message,
    hops: u32,
    from: From,
    /// The same message once more, by the publisher's id or on another connection: acknowledged together with this one.
    copies: Vec<(u64, Fingerprint)>,
    jobs_left: usize,
    /// It is committed after those of its topic that came before.
    in_line: bool,
    /// What a version and its shadow made of it.
    compared: Option<Box<[Option<Said>; 2]>>,
    commit: Commit,
    /// Jobs that the commit parks.
    tickets: Vec<Ticket>,
    message_id: Option<Box<str>>,
}

#[derive(Clone)]
enum From {
    /// A QoS 1 delivery, with its place in the window.
    Broker {
        place: u64,
        fingerprint: Fingerprint,
    },
    /// A QoS 0 delivery: nothing to acknowledge.
    Unacknowledged,
    Tick {
        function: usize,
    },
    /// It waited in the store under this number.
    Parked {
        key: Key,
    },
}

/// What a turn of the loop wants done by those who may do it.
#[derive(Debug, Default)]
pub struct Turn {
    pub acknowledge: Vec<AckToken>,
    pub requests: Vec<store::Request>,
    /// Functions that were paused because they kept failing, or work again.
    pub changed: Vec<usize>,
    /// What became of versions that were put into service.
    pub deployed: Vec<(Arc<str>, u32, Deployed)>,
    /// Other topics are wanted than before: the router must be made anew.
    pub routes_changed: bool,
}

/// Packed into a job's id: the unit and the function.
fn token(unit: UnitId, function: usize) -> u64 {
    (unit as u64) << 16 | function as u64
}

const fn untoken(token: u64) -> (UnitId, usize) {
    ((token >> 16) as usize, (token & 0xffff) as usize)
}

/// Payload bytes under way above which nothing more is taken from the broker.
const MAX_BYTES_IN_FLIGHT: usize = 16 << 20;
/// Numbers of functions fit into a job's id.
pub const MAX_FUNCTIONS: usize = 1 << 16;

pub struct Pipeline {
    settings: Settings,
    functions: Vec<Function>,
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
    committing: VecDeque<(u64, Vec<UnitId>)>,
    sequence: u64,
    /// Units whose writes to a scope wait for another job of the same message, in the order of the runs. The store must
    /// get them in this order, and must not be asked for the scope before.
    unsent_writes: HashMap<Scope, VecDeque<UnitId>>,
    /// Units of several functions, and those behind them, in the order of delivery: one that is done sooner must not be
    /// committed before one of its topic that still waits for another function.
    unsent_of_topic: HashMap<Arc<str>, VecDeque<UnitId>>,
    postponed_loads: Vec<(StateRequest, Scope)>,
    /// With the scope to read instead if there is nothing: a shadow begins with the state of the version that it is held
    /// against.
    loads: HashMap<u64, (StateRequest, Option<Scope>)>,
    next_load: u64,
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
            sequence: 0,
            unsent_writes: HashMap::new(),
            unsent_of_topic: HashMap::new(),
            postponed_loads: Vec::new(),
            loads: HashMap::new(),
            next_load: 0,
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

    /// Jobs that the store holds: from before a restart, or put back by a person.
    pub fn unpark(&mut self, parked: Vec<Parked>, now: Instant, now_ms: u64) {
        for Parked { id, function, message, due_ms } in parked {
            let found = self.functions.iter().enumerate().find(|(_, it)| it.name == function);
            let Some((number, serving)) = found.and_then(|(number, it)| Some((number, it.serving()?))) else {
                let failure =
                    Failure { code: FailureCode::Removed, detail: format!("{function} is not installed any more") };
                let dead_letter = DeadLetter {
                    function,
                    version: "".into(),
                    message,
                    failure,
                    usage: Usage::default(),
                    at_ms: now_ms,
                };
                self.metrics.dead_letter(None, FailureCode::Removed);
                self.batch.push(Commit { dead_letters: vec![dead_letter], unpark: vec![id], ..Commit::default() });
                continue;
            };
            // The wall clock may have jumped while the board was off: never wait longer than a retry may.
            let wait = Duration::from_millis(due_ms.saturating_sub(now_ms)).min(self.settings.retry_max_delay);
            let key = key_of(number, serving.manifest.state, &message);
            self.parking.restore(key, id, message, now + wait);
        }
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

    /// A version that runs as a shadow gets what the active one gets, after it.
    fn add_shadows(&self, functions: &mut Vec<usize>, topic: &str) -> Option<Box<[Option<Said>; 2]>> {
        let shadows = functions.iter().filter_map(|number| self.functions[*number].shadow);
        let wants = |number: &usize| self.functions[*number].serving().is_some_and(|it| it.wants(topic));
        let shadows: Vec<usize> = shadows.filter(wants).collect();
        functions.extend(&shadows);
        // Two of them on one message: the outcomes of neither are compared.
        (shadows.len() == 1).then(Box::default)
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
        let has_another = function.proven.as_ref().is_some_and(|proven| proven.number != edition.number);
        let job = Job {
            id: token(id, number),
            function: number as u32,
            edition: edition.number,
            scope,
            resumes,
            on_trial: has_another && edition.is_unproven.get(),
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
                    .map_or_else(Err, |recorded| Ok(Some(recorded)))
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
        let has_another = function.proven.as_ref().is_some_and(|proven| proven.number != edition.number);
        if let Some(failure) = failure.as_ref().filter(|_| edition.is_unproven.get() && has_another) {
            // A version on trial loses no message: the one before runs it.
            self.run_again(id, number, edition, now, now_ms);
            self.tried(number, edition.number, Some(failure), now, now_ms);
            return;
        }
        let misbehaved = failure.is_some();
        match verdict {
            Ok(recorded) => {
                if let Some(recorded) = recorded {
                    self.keep(id, number, edition, recorded, writes);
                }
            }
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

    /// What a shadow made of a message has no effect but on its own state, and is held against what the active version did.
    fn settle_shadow(
        &mut self,
        id: UnitId,
        number: usize,
        edition: &Edition,
        outcome: Outcome,
        now: Instant,
        now_ms: u64,
    ) {
        let said = Said::of(&outcome.verdict);
        let failure = match outcome.verdict {
            Verdict::Failed(failure) if failure.code.is_misbehaviour() => Some(failure),
            _ => None,
        };
        self.keep_state(id, number, edition, outcome.writes);
        if let Some(candidate) = &mut self.functions[number].candidate {
            candidate.ran(failure.as_ref(), true);
        }
        self.compare(id, number, Some(said), now, now_ms);
        self.finish_job(id);
    }

    /// Once both a version and its shadow have run a message.
    fn compare(&mut self, id: UnitId, number: usize, said: Option<Said>, now: Instant, now_ms: u64) {
        let (Some(said), Some(Some(unit))) = (said, self.units.get_mut(id)) else { return };
        let Some(compared) = &mut unit.compared else { return };
        let main = self.functions[number].shadow_of;
        compared[usize::from(main.is_some())] = Some(said);
        let [Some(active), Some(shadow)] = &**compared else { return };
        let Some(number) = main.map(|_| number).or(self.functions[number].shadow) else { return };
        if let Some(candidate) = &mut self.functions[number].candidate {
            candidate.compare(&unit.message.topic, active, shadow);
        }
        self.judge(number, None, now, now_ms);
    }

    /// Keeps what a run that succeeded returned.
    fn keep(
        &mut self,
        id: UnitId,
        number: usize,
        edition: &Edition,
        recorded: record::Recorded,
        writes: Vec<StateWrite>,
    ) {
        let Some(Some(unit)) = self.units.get_mut(id) else { return };
        let function = &mut self.functions[number];
        for (kind, count) in [
            (OutputKind::Alert, recorded.alerts),
            (OutputKind::Forward, recorded.forwards),
            (OutputKind::Publish, recorded.publishes),
        ] {
            (0..count).for_each(|_| function.metrics.emitted(kind));
        }
        function.metrics.folded_alerts.add(recorded.folded.into());
        if recorded.without_upstream > 0 {
            self.metrics.dropped("no-upstream", recorded.without_upstream.into());
            if !std::mem::replace(&mut function.warned_without_upstream, true) {
                tracing::warn!(
                    function = &*function.name,
                    "outputs for upstream are dropped: the configuration has no [upstream]"
                );
            }
        }
        unit.commit.records.extend(recorded.records);
        self.keep_state(id, number, edition, writes);
    }

    fn keep_state(&mut self, id: UnitId, number: usize, edition: &Edition, writes: Vec<StateWrite>) {
        let Some(Some(unit)) = self.units.get_mut(id) else { return };
        // A function without state has none to write, whatever a worker says: its runs have no order that writes could have.
        if writes.is_empty() || edition.manifest.state == StateScope::None {
            return;
        }
        let topic = (edition.manifest.state == StateScope::Topic).then(|| Arc::clone(&unit.message.topic));
        let scope = Scope { function: Arc::clone(&self.functions[number].name), topic };
        // Where nobody waits and this is the last job, the unit is sent at once.
        if unit.jobs_left > 1 || unit.in_line || !self.unsent_writes.is_empty() {
            self.unsent_writes.entry(scope.clone()).or_default().push_back(id);
        }
        unit.commit.state.push((scope, writes));
    }

    /// Makes the message a dead letter of this function. `version`: the one that ran it, if any did.
    fn fail(&mut self, id: UnitId, number: usize, version: &str, failure: Failure, usage: Usage, now_ms: u64) {
        let Some(Some(unit)) = self.units.get_mut(id) else { return };
        let function = &self.functions[number];
        self.metrics.dead_letter(Some(&function.metrics), failure.code);
        tracing::debug!(
            function = &*function.name,
            topic = &*unit.message.topic,
            reason = failure.code.as_str(),
            detail = failure.detail,
            "dead letter"
        );
        unit.commit.dead_letters.push(DeadLetter {
            function: Arc::clone(&function.name),
            version: version.into(),
            message: unit.message.clone(),
            failure,
            usage,
            at_ms: now_ms,
        });
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

    // ---- waiting for another run ----

    fn park_for_retry(
        &mut self,
        id: UnitId,
        number: usize,
        edition: &Edition,
        wait: Duration,
        now: Instant,
        now_ms: u64,
    ) {
        let Some(unit) = self.units[id].as_ref() else { return };
        let mut message = unit.message.clone();
        message.attempt += 1;
        let due = now + wait;
        let place = unit.commit.unpark.first().copied().unwrap_or(0);
        let ticket = match &unit.from {
            From::Parked { key, .. } => {
                let key = key.clone();
                self.parking.finished(&key);
                self.parking.park_again(key, place, message.clone(), due)
            }
            _ => {
                let key = key_of(number, edition.manifest.state, &unit.message);
                let ticket = self.parking.park(key.clone(), message.clone(), Some(due));
                self.recall_key(&key, edition, router::hash(&message.topic));
                ticket
            }
        };
        let due_ms = now_ms + u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        self.add_parked(id, number, place, message, due_ms, ticket);
    }

    /// The message waits behind one of its key that is to be run again.
    fn park_behind(&mut self, id: UnitId, function: usize, key: Key, now_ms: u64) {
        let Some(unit) = self.units[id].as_ref() else { return };
        let message = unit.message.clone();
        if self.parking.bytes() > self.settings.parked_max_bytes {
            let detail = "too much waits for a retry already (store.parked_max_bytes)".to_owned();
            let failure = Failure { code: FailureCode::RetriesExhausted, detail };
            self.fail(id, function, "", failure, Usage::default(), now_ms);
            return;
        }
        let ticket = self.parking.park(key, message.clone(), None);
        self.add_parked(id, function, 0, message, 0, ticket);
    }

    fn add_parked(&mut self, id: UnitId, function: usize, place: u64, message: Message, due_ms: u64, ticket: Ticket) {
        let function = Arc::clone(&self.functions[function].name);
        if let Some(Some(unit)) = self.units.get_mut(id) {
            unit.commit.park.push(Parked { id: place, function, message, due_ms });
            unit.tickets.push(ticket);
        }
    }

    /// Starts what is due: parked jobs and timers.
    pub fn start_due(&mut self, now: Instant, now_ms: u64) {
        let mut due = Vec::new();
        self.parking.start_due(now, |key, id, message| due.push((key.clone(), id, message.clone())));
        for (key, parked, message) in due {
            let function = key.0;
            let hops = message.property(HOPS).and_then(|hops| hops.parse().ok()).unwrap_or(0);
            let commit = Commit { unpark: vec![parked], ..Commit::default() };
            let from = From::Parked { key };
            let unit = self.insert(Unit::new(message, hops, from, 1, commit));
            self.start(unit, function, now, now_ms);
        }
        for number in 0..self.functions.len() {
            let function = &mut self.functions[number];
            let every = function.serving().and_then(|edition| edition.manifest.every);
            let (Some(every), Some(at)) = (every, function.next_tick) else { continue };
            if at > now {
                continue;
            }
            // A tick that was missed because the board slept, or the last one is still running, is not made up for.
            function.next_tick = Some(if at + every > now { at + every } else { now + every });
            // A paused function is not woken; when the pause is over, a tick probes it as well as a message.
            if function.quarantine.is_closed(now) || std::mem::replace(&mut function.tick_under_way, true) {
                continue;
            }
            let message = Message {
                topic: format!("$timer/{}", function.name).into(),
                payload: Bytes::new(),
                content_type: None,
                properties: Vec::new(),
                received_at_ms: now_ms,
                clock_synced: self.clock_synced,
                attempt: 1,
            };
            let from = From::Tick { function: number };
            let mut functions = vec![number];
            let compared = self.add_shadows(&mut functions, &message.topic);
            let unit = Unit::new(message, 0, from, functions.len(), Commit::default());
            let unit = self.insert(Unit { compared, ..unit });
            for function in functions {
                self.start(unit, function, now, now_ms);
            }
        }
        self.judge_due(now, now_ms);
    }

    pub fn next_due(&self) -> Option<Instant> {
        let ticks = self.functions.iter().filter_map(|function| function.next_tick);
        let trials = self.functions.iter().filter_map(|function| function.candidate.as_ref()?.until());
        ticks.chain(trials).chain(self.parking.next_due()).min()
    }

    // ---- state ----

    /// Reads a scope's state from the store, once all that is known about it has been sent there.
    fn load_state(&mut self, request: StateRequest, scope: Scope) {
        if self.unsent_writes.contains_key(&scope) {
            self.postponed_loads.push((request, scope));
            return;
        }
        self.read_state(request, scope);
    }

    fn read_state(&mut self, request: StateRequest, scope: Scope) {
        // What this turn has gathered may hold writes to the same scope: it goes first.
        self.send_batch();
        self.next_load += 1;
        self.loads.insert(self.next_load, (request, deployment::state_to_begin_with(&scope)));
        self.turn.requests.push(store::Request::LoadState { token: self.next_load, scope });
    }

    pub fn state_loaded(&mut self, token: u64, entries: Vec<(Box<str>, Bytes)>) {
        match self.loads.remove(&token) {
            // Without what the active version made of the very message that the shadow is to run.
            Some((request, Some(scope))) if entries.is_empty() => self.read_state(request, scope),
            Some((request, _)) => self.pool.provide_state(request, entries),
            None => {}
        }
    }

    // ---- recorded ----

    /// One function is done with the unit; the last one sends it to be committed.
    fn finish_job(&mut self, id: UnitId) {
        let Some(Some(unit)) = self.units.get_mut(id) else { return };
        unit.jobs_left -= 1;
        if unit.jobs_left > 0 {
            return;
        }
        if let From::Parked { key, .. } = &unit.from {
            let key = key.clone();
            // One that asked for another run has taken its own place in front already.
            if unit.commit.park.is_empty() {
                self.parking.finished(&key);
            }
            self.parking.unblock(&key);
        }
        let Some(Some(unit)) = self.units.get_mut(id) else { return };
        if let From::Tick { function } = unit.from {
            self.functions[function].tick_under_way = false;
        }
        let counted = matches!(unit.from, From::Broker { .. } | From::Unacknowledged);
        if !unit.commit.dead_letters.is_empty() {
            self.metrics.dead_lettered.inc();
        } else if counted {
            self.metrics.recorded.inc();
        }
        self.send(id);
        if !self.postponed_loads.is_empty() {
            for (request, scope) in std::mem::take(&mut self.postponed_loads) {
                self.load_state(request, scope);
            }
        }
    }

    /// Sends a finished unit to be committed, and then those that waited for it. It waits itself while an earlier run's
    /// writes to the same state are not sent: the later ones hold them already, and would be overwritten by them.
    fn send(&mut self, id: UnitId) {
        let mut finished = vec![id];
        while let Some(id) = finished.pop() {
            let Some(Some(unit)) = self.units.get_mut(id) else { continue };
            let waits = |(scope, _): &(Scope, _)| self.unsent_writes.get(scope).is_some_and(|it| it[0] != id);
            if unit.jobs_left > 0 || unit.commit.state.iter().any(waits) {
                continue;
            }
            if unit.in_line
                && let Some(line) = self.unsent_of_topic.get_mut(&unit.message.topic)
            {
                if line.front() != Some(&id) {
                    continue;
                }
                line.pop_front();
                match line.front() {
                    Some(next) if finished.contains(next) => {}
                    Some(next) => finished.push(*next),
                    None => drop(self.unsent_of_topic.remove(&unit.message.topic)),
                }
            }
            let commit = std::mem::take(&mut unit.commit);
            self.parking.committing(std::mem::take(&mut unit.tickets));
            for (scope, _) in &commit.state {
                let Some(queue) = self.unsent_writes.get_mut(scope) else { continue };
                queue.pop_front();
                match queue.front() {
                    Some(next) if finished.contains(next) => {}
                    Some(next) => finished.push(*next),
                    None => drop(self.unsent_writes.remove(scope)),
                }
            }
            if has_effect(&commit) {
                self.batch.push(commit);
                self.batch_units.push(id);
            } else if let Some(unit) = self.remove(id) {
                self.settle_without_effect(&unit.from);
                for (place, fingerprint) in unit.copies {
                    self.settle_without_effect(&From::Broker { place, fingerprint });
                }
            }
        }
    }

    /// Nothing came of it, so there is nothing to make durable: it is done. Its fingerprint is written with the next
    /// commit, so that it is not run again after one that came later.
    fn settle_without_effect(&mut self, from: &From) {
        if let From::Broker { place, fingerprint } = *from {
            self.window.done(place, fingerprint);
            self.batch.push(Commit { delivery: Some(fingerprint), ..Commit::default() });
        }
    }

    fn send_batch(&mut self) {
        // Fingerprints alone wait for company; the store's window is as long as ours, so no more are worth keeping.
        if self.batch_units.is_empty() && !self.batch.iter().any(has_effect) {
            let excess = self.batch.len().saturating_sub(self.settings.receive_maximum.into());
            self.batch.drain(..excess);
            return;
        }
        self.sequence += 1;
        let commits = std::mem::take(&mut self.batch);
        self.committing.push_back((self.sequence, std::mem::take(&mut self.batch_units)));
        self.turn.requests.push(store::Request::Commit { seq: self.sequence, commits });
    }

    /// Everything up to this batch is on disk. Returns what was stored, for the forwarders.
    pub fn committed(&mut self, sequence: u64, parked: &[Parked], now_ms: u64) {
        for parked in parked {
            self.parking.numbered(parked.id);
        }
        while self.committing.front().is_some_and(|(number, _)| *number <= sequence) {
            let Some((_, units)) = self.committing.pop_front() else { break };
            for id in units {
                let Some(unit) = self.remove(id) else { continue };
                let first = match unit.from {
                    From::Broker { place, fingerprint } => Some((place, fingerprint)),
                    _ => None,
                };
                for (place, fingerprint) in first.into_iter().chain(unit.copies) {
                    self.window.done(place, fingerprint);
                }
                if let Some(id) = unit.message_id {
                    self.message_ids_under_way.remove(&id);
                    self.message_ids.insert(&id, now_ms / 1000);
                }
            }
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

impl Unit {
    fn new(message: Message, hops: u32, from: From, jobs_left: usize, commit: Commit) -> Self {
        Self {
            arrival: 0,
            message,
            hops,
            from,
            copies: Vec::new(),
            jobs_left,
            in_line: false,
            compared: None,
            commit,
            tickets: Vec::new(),
            message_id: None,
        }
    }
}

/// What is run one after the other.
fn key_of(number: usize, scope: StateScope, message: &Message) -> Key {
    match scope {
        StateScope::Function => (number, None),
        StateScope::None | StateScope::Topic => (number, Some(Arc::clone(&message.topic))),
    }
}

fn has_effect(commit: &Commit) -> bool {
    !commit.records.is_empty()
        || !commit.state.is_empty()
        || !commit.dead_letters.is_empty()
        || !commit.park.is_empty()
        || !commit.unpark.is_empty()
        || commit.message_id.is_some()
}

fn hops(delivery: &Delivery) -> u32 {
    delivery.properties.iter().find(|(name, _)| name == HOPS).and_then(|(_, hops)| hops.parse().ok()).unwrap_or(0)
}

/// The publisher's id together with what it is the id of: a device that sends its own name as `id` with every reading must
/// not lose all but the first.
fn message_id(delivery: &Delivery) -> Option<Box<str>> {
    let (_, id) = delivery.properties.iter().find(|(name, _)| name == ID_PROPERTY)?;
    Some(format!("{id} {:016x}", digest(delivery)).into())
}

fn fingerprint(packet_id: u16, delivery: &Delivery) -> Fingerprint {
    Fingerprint { packet_id, digest: digest(delivery) }
}

fn digest(delivery: &Delivery) -> u64 {
    let mut hasher = SipHasher13::new();
    delivery.topic.hash(&mut hasher);
    delivery.payload.hash(&mut hasher);
    delivery.properties.hash(&mut hasher);
    delivery.content_type.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests;
