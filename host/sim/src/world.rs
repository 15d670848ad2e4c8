//! One run: a board, everything around it, and faults, from one seed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::broker::{Broker, PacketIds, Publication};
use crate::clients::{Clients, is_turned_away};
use crate::faults::Fault;
use crate::random::Random;
use crate::reference::{self, Reference, Violation};
use crate::rig::{config, forward_config, lane, manifest, overlay, recorder, with_requests};
use crate::schedules::with_schedules;
use crate::silences::AFTER;
use crate::spans::SpanModel;
use crate::store::Store;
use crate::worker::{Ran, Worker};
use sedge_core::board::{
    Board, BoardConfig, BrokerEvent, Budget, Effect, Input, SinkEvent, WorkerConfig, WorkerEvent, WorkerNo,
};
use sedge_core::deploy::TrialEvent;
use sedge_core::forward::{Answer, Destination, ForwardConfig};
use sedge_core::manifest::{Limits, Manifest, Silence, StateFull, StateScope, Trial, TrialMode};
use sedge_core::message::{Digest, FailureCode, PublishToken};
use sedge_core::metrics::Metrics;
use sedge_core::store::{BatchNo, Record, Recovered, StoreEvent, StoreRequest};
use sedge_core::stream::{SinkId, Stream};
use sedge_core::time::Now;
use sedge_core::version::Version;

const WORKERS: usize = 2;
const RECEIVE_MAXIMUM: u16 = 20;
/// Envelopes that may be on their way to a receiver.
pub const IN_FLIGHT: usize = 8;
/// After this long without faults everything must be settled.
const PATIENCE: Duration = Duration::from_secs(6 * 3600);

/// How long one run is and how much goes wrong in it.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub steps: u32,
    /// Multiplies the rates of all faults, in tenths.
    pub faults: u64,
    /// Only this fault, for finding out what a failure needs.
    pub only: Option<Fault>,
}

impl Default for Plan {
    fn default() -> Self {
        Self { steps: 600, faults: 10, only: None }
    }
}

#[derive(Debug, Default)]
pub struct Outcome {
    pub violations: Vec<Violation>,
    pub messages: u64,
    pub faults: BTreeMap<Fault, u64>,
    pub reached: BTreeSet<&'static str>,
    /// Of everything that the board was told and wanted.
    pub trace: u64,
}

struct Sink {
    destination: Destination,
    is_connected: bool,
    in_flight: VecDeque<(PublishToken, Envelope)>,
    /// On this connection.
    has_accepted: bool,
}

#[derive(Clone, Debug)]
enum Envelope {
    Record(Stream, u64),
    /// Of a stream, from this record on, so many.
    Gap(Stream, u64, u64),
}

pub struct World {
    random: Random,
    plan: Plan,
    board: Board,
    start: Instant,
    elapsed: Duration,
    unix_ms: u64,
    synced: bool,
    broker: Broker,
    workers: Vec<Worker>,
    /// What each run takes, as the workers tell.
    run_time: Duration,
    hung: Vec<bool>,
    store: Store,
    reopen_in: u32,
    /// The local broker first.
    sinks: Vec<Sink>,
    /// The last sink is away until the end.
    has_absent_sink: bool,
    clients: Clients,
    spans: SpanModel,
    reference: Reference,
    published: u64,
    edition: u32,
    /// Versions that serve or are on trial, as the deployer would know: by function, the edition on trial.
    on_trial: BTreeMap<&'static str, (u32, bool)>,
    /// Versions that trap on most messages.
    failing: BTreeSet<u32>,
    /// The last change of settings.
    change: u64,
    /// Changes of each function's settings: the last one asked for, and the last one reported as in force.
    settings: BTreeMap<&'static str, (u64, u64)>,
    faults: BTreeMap<Fault, u64>,
    reached: BTreeSet<&'static str>,
    trace: u64,
    /// Records that the receivers will never accept.
    refused: BTreeSet<(Stream, u64)>,
    keep_trace: bool,
    text: Vec<String>,
    quiet: bool,
    budget: Budget,
    /// Nearly every output is large, so that those on their way to the disk fill the budget.
    has_large_outputs: bool,
    /// Functions fail over nearly every message, so that they count as paused. The last topic is seldom published to: its
    /// first message comes when the others are paused.
    has_failing_topics: bool,
    /// Functions set wakes.
    has_wakes: bool,
    /// Functions have schedules.
    has_schedules: bool,
    /// A part of the messages are requests over HTTP.
    has_requests: bool,
    /// The broker often forgets the session, and many messages are alike.
    has_short_sessions: bool,
    /// Every message has a trace that the board records.
    has_traces: bool,
    /// `f` watches its topics for silence.
    has_silences: bool,
    /// What is delivered is not heard.
    is_deaf: bool,
    /// The board had an input since it was last asked what it wants.
    has_changed: bool,
    /// How much state there may be, and how much of `f`: with little, functions change the size of their state.
    state: StateLimits,
    /// Sizes of the records in commits that the store has not confirmed.
    committing: VecDeque<(BatchNo, usize)>,
    reconnect: bool,
    /// Sinks whose connection the board wants broken.
    broken_sinks: BTreeSet<usize>,
}

/// Runs one seed. A panic of the core is a violation like any other.
pub fn run(seed: u64, plan: Plan, keep_trace: bool) -> (Outcome, Vec<String>) {
    let ran = std::panic::catch_unwind(|| run_to_the_end(seed, plan, keep_trace));
    ran.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        let what = text.unwrap_or_default();
        let violations = vec![Violation { rule: reference::INVARIANT, what }];
        (Outcome { violations, ..Outcome::default() }, Vec::new())
    })
}

fn run_to_the_end(seed: u64, plan: Plan, keep_trace: bool) -> (Outcome, Vec<String>) {
    let mut world = World::new(seed, plan, keep_trace);
    for _ in 0..plan.steps {
        world.step();
        if !world.reference.violations.is_empty() {
            break;
        }
    }
    if world.reference.violations.is_empty() {
        world.settle();
    }
    let text = std::mem::take(&mut world.text);
    (world.outcome(), text)
}

impl World {
    fn new(seed: u64, plan: Plan, keep_trace: bool) -> Self {
        let mut random = Random::new(seed);
        let packet_ids = if random.chance(750) { PacketIds::CountUpwards } else { PacketIds::ReuseLowest };
        let first_id = if random.chance(200) { u16::MAX - random.below(60) as u16 } else { 0 };
        let sinks = sinks_of_run(seed);
        let mut store = Store::new(random.chance(500), &sinks);
        // What the board knows of its broker it has to learn.
        store.disk.meta.clear();
        // In most runs the budget is what keeps jobs waiting.
        let budget = Budget::new(*random.pick(&[1 << 20, 4 << 20, 64 << 20]));
        let run_ms = *random.pick(&[0, 0, 0, 20, 60]);
        let state = StateLimits::of_run(seed);
        let (start, unix_ms) = (Instant::now(), 1_700_000_000_000);
        let now = Now { monotonic: start, unix_ms, synced: true };
        let recovered = store.cut_power();
        let mut world = Self {
            board: board(&recovered, random.number(), budget, state, has_traces(seed), now),
            random,
            plan,
            start,
            elapsed: Duration::ZERO,
            unix_ms,
            synced: true,
            broker: Broker::new(packet_ids, RECEIVE_MAXIMUM.into(), first_id),
            workers: Vec::new(),
            run_time: Duration::from_millis(run_ms),
            hung: Vec::new(),
            store,
            reopen_in: 0,
            sinks: [Sink::new(Destination::Local)]
                .into_iter()
                .chain(sinks.iter().map(|(sink, _)| Sink::new(Destination::Sink(*sink))))
                .collect(),
            has_absent_sink: sinks.len() > 2,
            clients: Clients::default(),
            spans: SpanModel::default(),
            reference: Reference::of(sinks.iter().map(|(sink, _)| *sink).collect()),
            published: 0,
            edition: 0,
            on_trial: BTreeMap::new(),
            failing: BTreeSet::new(),
            change: 0,
            settings: BTreeMap::new(),
            faults: BTreeMap::new(),
            reached: BTreeSet::new(),
            trace: 0,
            refused: BTreeSet::new(),
            keep_trace,
            text: Vec::new(),
            quiet: false,
            budget,
            has_large_outputs: seed % 16 == 5,
            has_failing_topics: seed % 16 == 9,
            has_wakes: seed % 4 == 2,
            has_schedules: seed % 8 == 4,
            has_requests: seed % 16 == 13,
            has_short_sessions: seed % 16 == 1,
            has_traces: has_traces(seed),
            has_silences: seed % 8 == 7,
            is_deaf: false,
            has_changed: false,
            state,
            committing: VecDeque::new(),
            reconnect: false,
            broken_sinks: BTreeSet::new(),
        };
        world.boot(recovered);
        world.connect();
        world
    }

    /// Starts the daemon, whose board is new, with what the store has.
    fn boot(&mut self, recovered: Recovered) {
        self.spans.cut_power();
        self.committing.clear();
        self.workers.clear();
        self.hung.clear();
        self.grow(WORKERS);
        self.reopen_in = 0;
        self.on_trial.clear();
        self.reference.alerts_may_wait.clear();
        self.sinks.iter_mut().for_each(Sink::cut);
        // As the deployer, which knows them from the disk.
        for (function, (asked, in_force)) in self.settings.clone() {
            self.settings.insert(function, (asked, asked));
            self.reached_if(in_force < asked, "the power was cut while settings changed");
            self.handle(Input::Settings { function: function.into(), change: asked, overlay: overlay(asked) });
        }
        self.is_deaf = false;
        for manifest in functions(self.state, self.has_silences, self.has_schedules) {
            self.deploy(manifest, "derived/x+", None);
        }
        let now = self.now();
        self.board.restore(recovered, now);
        self.perform();
    }

    fn now(&self) -> Now {
        Now { monotonic: self.start + self.elapsed, unix_ms: self.unix_ms, synced: self.synced }
    }

    fn pass(&mut self, time: Duration) {
        self.elapsed += time;
        self.unix_ms = self.unix_ms.saturating_add(time.as_millis() as u64);
        self.clocks_changed();
        if self.broker.is_connected && !self.is_deaf {
            self.reference.silences.pass(time);
        }
    }

    /// The models see the clocks that the board will see.
    fn clocks_changed(&mut self) {
        self.reference.wakes.pass(self.elapsed, self.unix_ms);
        self.reference.schedules.pass(self.unix_ms, self.synced);
    }

    fn note(&mut self, what: impl FnOnce() -> String) {
        if self.keep_trace {
            let line = what();
            for byte in line.bytes() {
                self.trace = (self.trace ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
            }
            self.text.push(line);
        }
    }

    fn handle(&mut self, input: Input) {
        let at = self.elapsed;
        self.note(|| format!("{at:?} < {input:?}"));
        let now = self.now();
        self.has_changed = true;
        self.board.handle(input, now);
    }

    fn deploy(&mut self, manifest: Manifest, script: &str, trial: Option<Trial>) -> u32 {
        self.edition += 1;
        let version = Version::scripted(self.edition, manifest, Digest([self.edition as u8; 32]), script, trial);
        self.handle(Input::Deploy(version.into()));
        self.edition
    }

    fn reached_if(&mut self, is_reached: bool, what: &'static str) {
        if is_reached {
            self.reached.insert(what);
        }
    }

    // ---- one step ----

    fn step(&mut self) {
        let micros = self.random.below(2000);
        self.pass(Duration::from_micros(micros));
        if !self.quiet {
            self.fault();
        }
        match self.random.below(20) {
            0..4 if self.has_requests && self.random.chance(400) => self.request(),
            0..4 => self.publish(),
            4..8 => drop(self.deliver()),
            8..11 => drop(self.work()),
            11..15 => drop(self.serve_store()),
            15..18 => drop(self.answer()),
            18 => drop(self.broker.read_ack()),
            _ => {
                let long = if self.random.chance(300) { 3000 } else { 50 };
                let millis = self.random.below(long);
                self.pass(Duration::from_millis(millis));
                self.timeout();
            }
        }
        self.perform();
        if !self.quiet && !self.broker.is_connected && self.random.chance(100) {
            self.connect();
        }
        let present = self.sinks.len() - usize::from(self.has_absent_sink);
        for n in 1..present {
            if !self.quiet && !self.sinks[n].is_connected && self.random.chance(60) {
                self.sink_connected(n);
            }
        }
        if self.has_absent_sink && !self.quiet && self.random.chance(10) {
            self.reached.insert("a sink was away for days");
            self.pass(Duration::from_secs(6 * 3600));
            self.timeout();
            self.perform();
        }
        if self.store.has_failed && self.reopen_in > 0 {
            self.reopen_in -= 1;
            if self.reopen_in == 0 {
                self.store.reopen();
            }
        }
        self.check_bounds();
    }

    fn publish(&mut self) {
        self.published += 1;
        let letter = self.letter();
        let number = self.published;
        let same = self.random.chance(if self.has_short_sessions { 700 } else { 150 }) && !self.has_failing_topics;
        let payload = if same { "osame".into() } else { format!("{letter}{number}").into() };
        let topics = if self.has_failing_topics && self.random.chance(850) { 3 } else { 4 };
        let topic = format!("t/{}", self.random.below(topics)).into();
        let qos = u8::from(!self.random.chance(60));
        let id = (qos == 1 && !same && self.random.chance(100)).then(|| format!("id{number}").into());
        let publication = Publication { number, topic, payload, id, qos };
        if self.broker.publish(publication.clone()) {
            self.reference.published(&publication);
            // While days pass, the board may forget the id before the repeat comes.
            let is_repeated = publication.id.is_some() && self.random.chance(500) && !self.has_absent_sink;
            if is_repeated && self.broker.publish(publication) {
                self.reference.published_again();
            }
        }
    }

    fn request(&mut self) {
        self.published += 1;
        let letter = if self.random.chance(200) { 'R' } else { self.letter() };
        let (request, sent) = self.clients.send(&mut self.random, letter, self.published);
        self.reference.requested(&sent);
        self.handle(Input::Request(request));
    }

    fn letter(&mut self) -> char {
        if self.has_large_outputs {
            return *self.random.pick(&['b', 'b', 'b', 'b', 'b', 'b', 'b', 'c', 'o']);
        }
        if self.state.is_tight() {
            return *self.random.pick(&['c', 'c', 'c', 'S', 'S', 'S', 'o', 'a', 'f', 'r', 't', 'x', 'x']);
        }
        if self.has_wakes {
            return *self.random.pick(&['w', 'w', 'w', 'w', 'w', 'v', 'c', 'c', 'o', 'f', 't', 'x', 'T', 'r', '-']);
        }
        if self.has_failing_topics && self.random.chance(900) {
            return 'x';
        }
        *self.random.pick(&['c', 'c', 'c', 'o', 'o', 'b', 'a', 'f', 'f', 'r', 't', '-', '-', 'x', 'T'])
    }

    fn deliver(&mut self) -> bool {
        if self.board.is_full() {
            return false;
        }
        // An id above Receive Maximum proves that the broker counts: one that reuses free ids is not to exceed it.
        let may_exceed = self.broker.packet_ids == PacketIds::CountUpwards;
        let more = if !self.quiet && may_exceed && self.rate(Fault::TooManyInFlight) { 10 } else { 0 };
        let Some((delivery, _)) = self.broker.send(more) else { return false };
        if delivery.dup {
            self.reached.insert("a message was delivered again");
        }
        if self.has_silences && !self.is_deaf {
            let topic = String::from_utf8_lossy(&delivery.topic).into_owned();
            // A redelivery, what looks like one, and a message under the id of an earlier one need not count.
            let is_new = !delivery.dup && !delivery.payload.ends_with(b"same") && delivery.properties.is_empty();
            self.reference.silences.heard(&topic, is_new && delivery.ack.is_some());
        }
        self.handle(Input::Broker(BrokerEvent::Delivery(delivery)));
        true
    }

    fn work(&mut self) -> bool {
        let n = self.random.index(self.workers.len());
        self.work_on(n)
    }

    fn grow(&mut self, workers: usize) {
        while self.workers.len() < workers {
            if self.workers.len() >= WORKERS {
                self.reached.insert("a function had a worker of its own");
            }
            self.workers.push(Worker::that_takes(self.run_time));
            self.hung.push(false);
        }
    }

    fn work_on(&mut self, n: usize) -> bool {
        if self.hung[n] {
            return false;
        }
        let steps = 1 + self.random.below(4);
        let mut any = false;
        for _ in 0..steps {
            any |= self.workers[n].step();
        }
        if any {
            self.check_settings(n);
        }
        let life = self.workers[n].life();
        while let Some(event) = self.workers[n].say() {
            any = true;
            if let WorkerEvent::Held { .. } = event {
                self.reached.insert("a worker held back a job");
            }
            self.handle(Input::Worker { worker: WorkerNo(n as u32), life, event });
        }
        any
    }

    /// Each run had settings that somebody had asked for, and none that were older than those in force.
    fn check_settings(&mut self, n: usize) {
        for Ran { function, payload, setting } in self.workers[n].take_ran() {
            self.reference.wakes.ran(&function, &String::from_utf8_lossy(&payload));
            let Some((asked, in_force)) = self.settings.get(&*function).copied() else { continue };
            self.reached_if(
                setting == asked && asked > in_force,
                "a message ran with new settings before they were in force",
            );
            self.reached_if(setting < asked, "a message ran with older settings while they changed");
            if !(in_force..=asked).contains(&setting) {
                let what = format!("{function} ran {payload:?} with {setting}, of {in_force} to {asked}");
                self.reference.broken(reference::SETTINGS, what);
            }
        }
    }

    fn serve_store(&mut self) -> bool {
        if self.store.has_events() && self.random.chance(600) {
            return self.hear_store();
        }
        if self.store.has_requests() {
            self.hear_of_failures();
            let (store, reference) = (&mut self.store, &mut self.reference);
            let reached = &mut self.reached;
            store.step(&mut |commit| {
                if commit.dead_letters.iter().any(|it| it.failure.code == FailureCode::WorkerCrashed) {
                    reached.insert("a message killed its worker twice");
                }
                if commit.park.iter().any(|it| it.message.attempt == 1) {
                    reached.insert("a message was parked before it ran");
                }
                if commit.park.iter().any(|it| sedge_core::made::is_topic(&it.message.topic)) {
                    reached.insert("a wake was parked");
                }
                if commit.park.iter().any(|it| sedge_core::schedule::is_topic(&it.message.topic)) {
                    reached.insert("a schedule was parked");
                }
                if commit.dead_letters.iter().any(|it| it.failure.code == FailureCode::StateFull) {
                    reached.insert("there was no room for state");
                }
                if commit.dead_letters.iter().any(|it| it.failure.code == FailureCode::Quarantined) {
                    reached.insert("a topic was paused");
                }
                reference.committed(commit, true);
            });
            self.check_state();
            return true;
        }
        self.hear_store()
    }

    /// What is on disk is within the bounds at any time.
    fn check_state(&mut self) {
        for (function, topic) in std::mem::take(&mut self.store.forgotten) {
            self.reached.insert("state was forgotten to make room");
            self.reference.state_forgotten(&function, topic.as_deref());
        }
        if !self.state.is_tight() {
            return;
        }
        let bytes = self.store.disk.state_bytes();
        let (all, own) = (bytes.values().sum::<u64>(), bytes.get("f").copied().unwrap_or(0));
        let StateLimits { max_bytes, total_of_f, .. } = self.state;
        if all > max_bytes || total_of_f.is_some_and(|total| own > total.get()) {
            let what = format!("{all} bytes of {max_bytes}, {own} of f, which may have {total_of_f:?}");
            self.reference.broken(reference::STATE_BOUND, what);
        }
    }

    fn hear_of_failures(&mut self) {
        for (function, topic) in self.workers.iter_mut().flat_map(Worker::take_guilty) {
            self.reference.failed_over(function, &topic);
        }
    }

    fn hear_store(&mut self) -> bool {
        let Some(event) = self.store.next_event() else { return false };
        match &event {
            StoreEvent::Committed { batch, stored, .. } => {
                self.reference.told_of(stored);
                self.spans.told(*batch);
                while self.committing.pop_front_if(|(sent, _)| *sent <= *batch).is_some() {}
            }
            StoreEvent::Failed { .. } => {
                self.spans.failed();
                self.committing.clear();
                self.is_deaf = true;
            }
            StoreEvent::Reopened(_) => {
                self.is_deaf = false;
                self.forget_answers();
                self.reference.alerts_may_wait.clear();
            }
            _ => {}
        }
        self.handle(Input::Store(event));
        true
    }

    fn answer(&mut self) -> bool {
        let n = self.random.index(self.sinks.len());
        self.answer_on(n)
    }

    fn answer_on(&mut self, n: usize) -> bool {
        if !self.sinks[n].is_connected || self.sinks[n].in_flight.is_empty() {
            return false;
        }
        if !self.quiet && self.rate(Fault::SinkSilent) {
            self.sinks[n].in_flight.pop_front();
            self.reached.insert("a receiver never answered");
            return true;
        }
        let (token, envelope) = self.sinks[n].in_flight.pop_front().expect("one is in flight");
        let answer = if self.quiet {
            match envelope {
                Envelope::Record(stream, id) if self.refused.contains(&(stream, id)) => {
                    Answer::Refused("too large".into())
                }
                _ => Answer::Accepted,
            }
        } else if self.rate(Fault::SinkDeclines) {
            self.alerts_may_wait(n);
            Answer::Declined("quota".into())
        } else if self.refuses(&envelope) {
            Answer::Refused("too large".into())
        } else if self.rate(Fault::SinkRetries) {
            Answer::Retry { reason: "busy".into(), after: None }
        } else {
            Answer::Accepted
        };
        self.sinks[n].has_accepted |= answer == Answer::Accepted;
        if let (Answer::Accepted, Envelope::Record(stream, id)) = (&answer, &envelope) {
            self.reference.accepted(*stream, *id);
        }
        if let (Envelope::Gap(stream, first, records), false) = (&envelope, matches!(answer, Answer::Retry { .. })) {
            self.reference.gap(*stream, *first, *records);
            self.reached.insert("a gap was reported");
        }
        let destination = self.sinks[n].destination;
        let again = (!self.quiet && self.rate(Fault::SinkAnswersTwice)).then(|| answer.clone());
        self.handle(Input::Sink { destination, event: SinkEvent::Answered { token, answer } });
        if let Some(answer) = again {
            self.handle(Input::Sink { destination, event: SinkEvent::Answered { token, answer } });
        }
        true
    }

    fn alerts_may_wait(&mut self, n: usize) {
        if let Destination::Sink(sink) = self.sinks[n].destination {
            self.reference.alerts_may_wait.insert(sink);
        }
    }

    /// What a receiver refuses it always refuses, and what it accepted once it never does.
    fn refuses(&mut self, envelope: &Envelope) -> bool {
        let Envelope::Record(stream, id) = *envelope else { return false };
        if self.refused.contains(&(stream, id)) {
            return true;
        }
        let refuses = !self.reference.was_accepted(stream, id) && self.rate(Fault::SinkRefuses);
        if refuses {
            self.refused.insert((stream, id));
        }
        refuses
    }

    fn timeout(&mut self) {
        if self.board.poll_timeout().is_some_and(|at| at <= self.now().monotonic) {
            self.handle(Input::Timeout);
        }
    }

    /// Carries out what the board wants. It wants nothing new without an input.
    fn perform(&mut self) {
        if !self.has_changed {
            return;
        }
        while let Some(effect) = self.board.poll() {
            let at = self.elapsed;
            self.note(|| format!("{at:?} > {effect:?}"));
            match effect {
                Effect::Acknowledge(token) => match self.broker.acknowledged(token) {
                    Ok(Some(publication)) => {
                        self.reference.acknowledged(&publication, self.store.disk.parked.values().rev());
                    }
                    Ok(None) => {}
                    Err(what) => self.reference.broken(reference::ACK_ORDER, what),
                },
                Effect::Respond { id, response } => {
                    if let Some((sent, what)) = self.clients.answered(id, &response, &mut self.reference) {
                        self.reached.insert(what);
                        if !is_turned_away(response.status) {
                            self.reference.answered(&sent, response.status, self.store.disk.parked.values().rev());
                        }
                    }
                }
                Effect::Store(request) => {
                    if let StoreRequest::Commit { batch, commits } = &request {
                        self.spans.asked(*batch, commits);
                        // The copies of other sinks share the payload.
                        let records = commits.iter().flat_map(|commit| &commit.records);
                        let records = records.filter(|record| Stream::FIRST.contains(&record.stream));
                        let size = |it: &Record| it.payload.len() + it.content_type.as_ref().map_or(0, |it| it.len());
                        self.committing.push_back((*batch, records.map(size).sum()));
                    }
                    self.store.ask(request);
                }
                Effect::Worker { worker, life, command } => {
                    // Functions may get workers of their own.
                    self.grow(worker.index() + 1);
                    self.workers[worker.index()].apply(life, command);
                }
                Effect::Send { destination, token, envelope } => self.send(destination, token, &envelope),
                Effect::Reconnect(Destination::Local) => self.reconnect = true,
                Effect::Reconnect(destination @ Destination::Sink(_)) => {
                    let place = self.place(destination);
                    self.broken_sinks.insert(place);
                }
                Effect::Paused { is_paused, .. } => {
                    self.reached.insert(if is_paused { "a function was paused" } else { "a function was released" });
                }
                Effect::Deployed { function, edition, event } => self.deployed(&function, edition, &event),
                Effect::Alone(_) | Effect::CautionEnded | Effect::Record { .. } | Effect::Follow(_) => {}
                Effect::Traced(spans) => {
                    if let Err(what) = self.spans.ended(&spans) {
                        self.reference.broken(reference::TRACES, what);
                    }
                }
                Effect::SettingsInForce { function, change } => {
                    self.reached.insert("settings changed");
                    let (_, in_force) = self.settings.get_mut(&*function).expect("it was asked for");
                    *in_force = change.max(*in_force);
                }
                Effect::Abort { invariant } => self.reference.broken(reference::INVARIANT, invariant.to_owned()),
                Effect::Subscribe { .. } => self.broker.is_subscribed = true,
                Effect::Unsubscribe { filter } => self.handle(Input::Broker(BrokerEvent::Unsubscribed { filter })),
            }
        }
        self.has_changed = false;
        if std::mem::take(&mut self.reconnect) {
            self.cut();
        }
        for n in std::mem::take(&mut self.broken_sinks) {
            self.cut_sink(n);
        }
    }

    fn send(&mut self, destination: Destination, token: PublishToken, envelope: &sedge_core::forward::Envelope) {
        let n = self.place(destination);
        let sink = &mut self.sinks[n];
        if !sink.is_connected || sink.in_flight.len() >= IN_FLIGHT {
            return self.handle(Input::Sink { destination, event: SinkEvent::Returned { token } });
        }
        let id = envelope.properties.iter().find(|(name, _)| *name == "id").map_or("", |(_, id)| id.as_ref());
        let mut parts = id.rsplit('-');
        let number = parts.next().and_then(|it| it.parse().ok()).unwrap_or(0);
        let stream = parts.next().filter(|_| !id.contains("-g-")).and_then(stream_of);
        let Some(stream) = stream else {
            sink.in_flight.push_back((token, gap(&envelope.payload)));
            return;
        };
        sink.in_flight.push_back((token, Envelope::Record(stream, number)));
        let of_sink = stream.sink().map_or(destination, Destination::Sink);
        if of_sink != destination {
            let what = format!("{stream:?} {number} is sent to {destination:?}");
            self.reference.broken(reference::OWN_COPY, what);
        }
        let dropped = stream.sink().map_or(&[][..], |sink| &self.store.dropped[Stream::alerts(sink)]);
        self.reference.sent(stream, number, dropped);
    }

    /// Where a receiver stands in `sinks`.
    fn place(&self, destination: Destination) -> usize {
        self.sinks.iter().position(|sink| sink.destination == destination).expect("the board knows its sinks only")
    }

    fn deployed(&mut self, function: &str, edition: u32, event: &TrialEvent) {
        let failing = self.failing.contains(&edition);
        match event {
            TrialEvent::Ready => {
                self.reached.insert("a version was loaded");
            }
            TrialEvent::NotLoaded { .. } => {
                self.reached.insert("a version was not loaded");
            }
            TrialEvent::Progress { tally, .. } if tally.different > 0 => {
                self.reached.insert("a shadow differed");
            }
            TrialEvent::Progress { .. } => {}
            TrialEvent::Late => {
                self.reached.insert("a trial was late");
            }
            TrialEvent::Passed => {
                self.reached.insert("a trial was passed");
                self.reference.may_trap |= failing;
                self.on_trial.retain(|name, _| *name != function);
            }
            TrialEvent::Failed { .. } => {
                self.reached.insert("a trial failed");
                self.on_trial.retain(|name, _| *name != function);
            }
        }
    }

    fn check_bounds(&mut self) {
        let waiting = self.board.in_flight();
        if waiting > 4 * usize::from(RECEIVE_MAXIMUM) {
            self.reference.broken(reference::BOUNDED, format!("{waiting} messages are under way"));
        }
        // What workers may still return, as two records each, and what they returned before.
        let jobs: usize = self.workers.iter().map(Worker::jobs).sum();
        let most = 2 * Limits::default().output_bytes;
        let returned: usize = self.committing.iter().map(|(_, bytes)| bytes).sum();
        if returned + jobs * most > self.budget.bytes() + most {
            let what = format!("{jobs} jobs are at the workers, and {returned} bytes on their way to the disk");
            self.reference.broken(reference::BUDGET, what);
        }
        if jobs > 0 && returned + (jobs + 1) * most > self.budget.bytes() / 2 {
            self.reached.insert("the budget was used up");
        }
    }

    // ---- faults ----

    fn rate(&mut self, fault: Fault) -> bool {
        let rate = Fault::ALL.iter().find(|(it, _)| *it == fault).map_or(0, |(_, rate)| *rate);
        let rate = if self.plan.only.is_some_and(|only| only != fault) { 0 } else { rate };
        // Faults of an answer have a tenth as many chances as steps.
        let happens = self.random.below(1000) < rate * self.plan.faults;
        if happens {
            *self.faults.entry(fault).or_default() += 1;
        }
        happens
    }

    fn fault(&mut self) {
        let (fault, rate) = match self.has_short_sessions && self.random.chance(300) {
            true => *self.random.pick(&[(Fault::SessionForgotten, 4), (Fault::ConnectionCut, 16)]),
            false => *self.random.pick(&Fault::ALL),
        };
        if self.plan.only.is_some_and(|only| only != fault) || !self.random.chance(rate * self.plan.faults * 2) {
            return;
        }
        let n = self.random.index(self.workers.len());
        match fault {
            Fault::ConnectionCut => self.cut(),
            Fault::SessionForgotten => self.forget_session(),
            Fault::WorkerCrash => self.workers[n].die("killed by signal 9"),
            Fault::WorkerHang => self.hung[n] = true,
            Fault::WorkerStartFails => self.workers[n].fail_next_start(),
            Fault::AnswerTwice => self.workers[n].answer_twice(),
            Fault::AnswerWrong => self.workers[n].answer_wrongly(),
            Fault::DiskFails | Fault::DiskFailsAfterWrite => {
                self.forget_answers();
                self.hear_of_failures();
                let (store, reference) = (&mut self.store, &mut self.reference);
                // Where the store held such a message before, it is no evidence.
                if self.broker.packet_ids == PacketIds::ReuseLowest {
                    self.broker.in_flight().for_each(|it| reference.may_repeat(it));
                }
                let after_write = fault == Fault::DiskFailsAfterWrite;
                if store.fail(after_write, &mut |commit| reference.committed(commit, true)) {
                    self.reached.insert("a commit was on disk although it was reported as failed");
                }
                self.reopen_in = 1 + self.random.below(20) as u32;
            }
            Fault::PowerCut => self.cut_power(),
            Fault::ClockJump => {
                let jump = self.random.below(20 * 365 * 86_400_000);
                self.unix_ms = if self.random.chance(500) {
                    self.unix_ms.saturating_add(jump)
                } else {
                    self.unix_ms.saturating_sub(jump)
                };
                self.clocks_changed();
            }
            Fault::ClockUnsynced => {
                self.synced = !self.synced;
                self.clocks_changed();
            }
            Fault::SinkCut => {
                let n = if self.sinks.len() > 2 { 1 + self.random.index(self.sinks.len() - 1) } else { 1 };
                self.cut_sink(n);
            }
            Fault::Deploy | Fault::DeployFailing | Fault::DeployShadow => self.push(fault),
            Fault::Promote | Fault::Drop => self.end_trial(fault),
            Fault::Settings => {
                self.change += 1;
                let (function, change) = (*self.random.pick(&reference::FUNCTIONS), self.change);
                self.settings.entry(function).or_default().0 = change;
                self.handle(Input::Settings { function: function.into(), change, overlay: overlay(change) });
            }
            // In the places where they happen.
            Fault::TooManyInFlight
            | Fault::SinkSilent
            | Fault::SinkDeclines
            | Fault::SinkRefuses
            | Fault::SinkRetries
            | Fault::SinkAnswersTwice => return,
        }
        *self.faults.entry(fault).or_default() += 1;
    }

    fn push(&mut self, kind: Fault) {
        let mut manifest = self.random.pick(&functions(self.state, self.has_silences, self.has_schedules)).clone();
        if &*manifest.name == "g" {
            let timeouts = [100, 100, 100, 500, 2000];
            manifest.limits.timeout_ms = (*self.random.pick(&timeouts)).try_into().expect("not zero");
            manifest.state = *self.random.pick(&[StateScope::None, StateScope::Topic, StateScope::Function]);
        }
        let name = reference::FUNCTIONS.into_iter().find(|it| **it == *manifest.name).expect("a known function");
        let messages = (1 + self.random.below(9) as u32).try_into().expect("at least one");
        let trial = Trial { messages, failures: self.random.below(2) as u32, ..Trial::default() };
        let (script, trial) = match kind {
            Fault::DeployFailing => ("derived/x+ coafWY", Some(Trial { mode: TrialMode::Live, ..trial })),
            Fault::DeployShadow => {
                let differences = self.random.chance(500).then_some(1);
                ("derived/y+ c", Some(Trial { mode: TrialMode::Shadow, differences, ..trial }))
            }
            _ if self.random.chance(500) => ("derived/x+", None),
            _ => ("derived/x+", Some(Trial { mode: TrialMode::Live, ..trial })),
        };
        let is_trial = trial.is_some();
        let edition = self.deploy(manifest, script, trial);
        if script.contains(' ') {
            self.failing.insert(edition);
        }
        if is_trial {
            self.on_trial.insert(name, (edition, kind == Fault::DeployFailing || kind == Fault::DeployShadow));
        }
    }

    fn end_trial(&mut self, how: Fault) {
        let Some((name, (edition, fails))) = self.on_trial.iter().next().map(|(name, it)| (*name, *it)) else { return };
        self.on_trial.remove(name);
        let function = name.into();
        if how == Fault::Drop {
            self.handle(Input::DropCandidate { function, edition });
        } else if !fails {
            self.handle(Input::Promote { function, edition });
        }
    }

    fn cut(&mut self) {
        if self.broker.is_connected {
            self.lose_sent();
            self.lose_acks();
            self.broker.disconnect();
            self.sinks[0].cut();
            self.handle(Input::Broker(BrokerEvent::Disconnected));
        }
    }

    /// Messages that were sent and not read before the connection broke. Those of QoS 1 come again, marked as duplicates that
    /// the board has never seen.
    fn lose_sent(&mut self) {
        for _ in 0..self.random.below(3) {
            let Some((delivery, publication)) = self.broker.send(0) else { return };
            self.reached.insert("a message was lost with its connection");
            if delivery.ack.is_none() {
                self.reference.forgotten(&publication);
                self.reference.silences.lost(&publication.topic);
            }
        }
    }

    /// Messages whose acknowledgement is lost come again. Without evidence nothing tells them from new ones.
    fn lose_acks(&mut self) {
        if self.broker.packet_ids == PacketIds::ReuseLowest {
            let unread: Vec<Publication> = self.broker.unread().cloned().collect();
            unread.iter().for_each(|it| self.reference.may_repeat(it));
        }
    }

    fn connect(&mut self) {
        let session_present = self.broker.connect();
        self.store.disk.window_is_stale |= !session_present;
        if self.broker.packet_ids == PacketIds::CountUpwards {
            self.handle(Input::Broker(BrokerEvent::CountsUpwards));
        }
        self.handle(Input::Broker(BrokerEvent::Connected { session_present }));
        self.sinks[0].is_connected = true;
        self.perform();
    }

    fn forget_session(&mut self) {
        let was_connected = self.broker.is_connected;
        for (publication, _) in self.broker.forget_session() {
            self.reference.forgotten(&publication);
            self.reference.silences.lost(&publication.topic);
        }
        self.sinks[0].cut();
        if was_connected {
            self.handle(Input::Broker(BrokerEvent::Disconnected));
        }
        self.reached.insert("the broker forgot the session");
    }

    /// The board forgets which records were accepted since the watermarks of the store.
    fn forget_answers(&mut self) {
        for stream in Stream::all() {
            let dropped = &self.store.dropped[stream];
            // What is on its way may be accepted without being known to be.
            for (_, envelope) in self.sinks.iter().flat_map(|sink| &sink.in_flight) {
                if let Envelope::Record(of, id) = *envelope
                    && of == stream
                {
                    self.reference.answer_may_be_lost(stream, id);
                }
            }
            self.reference.forget_answers(stream, self.store.watermark(stream), dropped);
        }
    }

    fn cut_power(&mut self) {
        self.forget_answers();
        // A session that is lost while the disk fails is subscribed at once, so that the broker queues. Until the disk works
        // its messages can be taken for those of the lost one.
        if self.store.disk.window_is_stale {
            let in_flight: Vec<Publication> = self.broker.in_flight().cloned().collect();
            for it in &in_flight {
                self.reference.forgotten(it);
                self.reference.silences.lost(&it.topic);
            }
        }
        // The next process cannot know which acknowledgements of this one were written.
        if self.broker.packet_ids == PacketIds::ReuseLowest {
            let in_flight: Vec<Publication> = self.broker.in_flight().cloned().collect();
            in_flight.iter().for_each(|it| self.reference.may_repeat(it));
        }
        self.broker.disconnect();
        self.clients.cut();
        let off = self.random.below(20);
        self.pass(Duration::from_secs(off));
        if self.random.chance(300) {
            // A board without an RTC boots in the past.
            self.unix_ms = 0;
            self.synced = false;
        }
        if !self.store.disk.wakes.is_empty() {
            self.reached.insert("a wake waited over a power cut");
        }
        if !self.store.disk.parked.is_empty() {
            self.reached.insert("jobs waited over a power cut");
        }
        let recovered = self.store.cut_power();
        let seed = self.random.number();
        self.board = board(&recovered, seed, self.budget, self.state, self.has_traces, self.now());
        self.boot(recovered);
    }

    fn cut_sink(&mut self, n: usize) {
        if self.sinks[n].is_connected {
            // Two such connections in a row count as declining what was sent.
            if !self.sinks[n].has_accepted {
                self.alerts_may_wait(n);
            }
            self.sinks[n].cut();
            let destination = self.sinks[n].destination;
            self.handle(Input::Sink { destination, event: SinkEvent::Disconnected });
        }
    }

    fn sink_connected(&mut self, n: usize) {
        self.sinks[n].is_connected = true;
        let destination = self.sinks[n].destination;
        self.handle(Input::Sink { destination, event: SinkEvent::Connected });
    }

    // ---- the end ----

    /// Everybody does what is to be done now. `false`: there was nothing.
    fn turn(&mut self) -> bool {
        let mut any = self.deliver();
        self.perform();
        for n in 0..self.workers.len() {
            any |= self.work_on(n);
            self.perform();
        }
        any |= self.serve_store();
        self.perform();
        for n in 0..self.sinks.len() {
            any |= self.answer_on(n);
            self.perform();
        }
        any | self.broker.read_ack()
    }

    /// Whoever lost its connection, as the board that breaks one on purpose, has it again.
    fn connect_all(&mut self) {
        if !self.broker.is_connected {
            self.connect();
        }
        for n in 1..self.sinks.len() {
            if !self.sinks[n].is_connected {
                self.sink_connected(n);
            }
        }
    }

    /// Faults stop. Everything that was promised must come true.
    fn settle(&mut self) {
        self.quiet = true;
        self.store.reopen();
        self.hung.fill(false);
        let begun = self.elapsed;
        let mut was_late = false;
        loop {
            self.connect_all();
            let mut any = false;
            for _ in 0..10_000 {
                if !self.turn() {
                    break;
                }
                any = true;
            }
            if self.is_settled() {
                break;
            }
            if self.elapsed - begun > PATIENCE {
                let what = self.what_waits();
                self.reference.broken(reference::PROGRESS, what);
                return;
            }
            let next = self.board.poll_timeout().map(|at| at.saturating_duration_since(self.now().monotonic));
            if !any && next.is_none() {
                let what = self.what_waits();
                self.reference.broken(reference::PROGRESS, format!("nothing is due: {what}"));
                return;
            }
            // It was called again, did nothing, and wants to be called again at once.
            let is_late = !any && next == Some(Duration::ZERO);
            if is_late && was_late {
                let what = self.what_waits();
                self.reference.broken(reference::NOT_BUSY, what);
                return;
            }
            was_late = is_late;
            self.pass(next.unwrap_or_default().max(Duration::from_millis(1)).min(Duration::from_secs(600)));
            self.timeout();
            self.perform();
        }
        if self.has_schedules && !self.keep_schedules() {
            let what = self.what_waits();
            self.reference.broken(reference::PROGRESS, format!("schedules: {what}"));
            return;
        }
        self.judge();
    }

    /// For a minute the clock is right and nothing goes wrong: every due time runs. `false`: something is not settled then.
    fn keep_schedules(&mut self) -> bool {
        self.synced = true;
        self.clocks_changed();
        let mut seconds = 0;
        // To the end of the last attempt.
        while seconds < 100 || seconds < 130 && !self.is_settled() {
            seconds += 1;
            self.connect_all();
            self.pass(Duration::from_secs(1));
            self.timeout();
            self.perform();
            while self.turn() {}
        }
        // A version that fails over its schedules has them paused.
        if !self.reference.may_trap {
            let lost = self.reference.schedules.lost(self.unix_ms - 60_000, self.unix_ms - 10_000);
            lost.into_iter().for_each(|what| self.reference.broken(reference::SCHEDULES, what));
        }
        self.is_settled()
    }

    fn is_settled(&self) -> bool {
        self.broker.is_idle()
            && self.board.is_idle()
            && self.store.disk.parked.is_empty()
            && self.store.disk.wakes.is_empty()
            && self.clients.waiting() == 0
            && self.reference.silences.untold() == 0
            && Stream::all().all(|stream| self.store.waiting(stream) == 0)
            && self.store.unreported_gaps() == 0
            && !self.store.has_events()
            && !self.store.has_requests()
    }

    fn what_waits(&self) -> String {
        let outbox: Vec<usize> = Stream::all().map(|stream| self.store.waiting(stream)).collect();
        format!(
            "broker idle {}, board idle {}, parked {}, wakes {}, requests {}, untold {}, outbox {outbox:?}, gaps {}, {}",
            self.broker.is_idle(),
            self.board.is_idle(),
            self.store.disk.parked.len(),
            self.store.disk.wakes.len(),
            self.clients.waiting(),
            self.reference.silences.untold(),
            self.store.unreported_gaps(),
            self.board.describe(),
        )
    }

    fn judge(&mut self) {
        for (function, (asked, in_force)) in &self.settings {
            if asked != in_force {
                let what = format!("the settings of {function} are {in_force}, and not {asked}");
                self.reference.broken(reference::PROGRESS, what);
            }
        }
        if !self.broker.is_subscribed {
            self.reference.broken(reference::PROGRESS, "the board has not subscribed".to_owned());
        }
        self.reference.finish();
        for topic in 0..4 {
            let topic = format!("t/{topic}");
            let stored = self.store.disk.count("f", Some(&topic));
            self.reference.count_is("f", Some(&topic), stored);
        }
        for n in 0..3 {
            let topic = format!("$http/f/{n}");
            let stored = self.store.disk.count("f", Some(&topic));
            self.reference.count_is("f", Some(&topic), stored);
        }
        let stored = self.store.disk.count("sum", None);
        self.reference.count_is("sum", None, stored);
        for stream in Stream::all() {
            let (last, dropped) = (self.store.last(stream), self.store.dropped[stream].clone());
            self.reference.stream_is_accounted_for(stream, last, &dropped);
        }
        if let Some(what) = self.spans.missing() {
            self.reference.broken(reference::TRACES, what);
        }
    }

    fn outcome(mut self) -> Outcome {
        self.reached_if(self.spans.was_resumed, "the trace of a parked message went on");
        self.reached_if(self.spans.was_sent, "a record of a trace was sent");
        self.reached_if(self.store.thinned > 0, "data was thinned out");
        self.reached_if(self.store.dropped_between > 0, "a record was dropped from between others");
        self.reached_if(self.reference.silences.was_told, "a silent topic was told");
        self.reached_if(self.reference.silences.spoke_again, "a silent topic spoke again");
        self.reached_if(self.reference.wakes.was_superseded, "a wake was moved or cancelled");
        self.reached_if(self.reference.schedules.ran_late, "a schedule ran late");
        self.reached_if(self.reference.schedules.was_set_back, "the clock was set back over a schedule");
        let ran_late = "a wake ran although it was moved or cancelled when it was due";
        self.reached_if(self.reference.wakes.ran_late, ran_late);
        Outcome {
            violations: self.reference.violations,
            messages: self.reference.messages,
            faults: self.faults,
            reached: self.reached,
            trace: self.trace,
        }
    }
}

impl Sink {
    fn new(destination: Destination) -> Self {
        Self { destination, is_connected: false, in_flight: VecDeque::new(), has_accepted: false }
    }

    fn cut(&mut self) {
        self.is_connected = false;
        self.in_flight.clear();
        self.has_accepted = false;
    }
}

/// The bounds of state in one run.
#[derive(Clone, Copy, Debug)]
struct StateLimits {
    max_bytes: u64,
    total_of_f: Option<NonZeroU64>,
    forgets: bool,
}

impl StateLimits {
    fn of_run(seed: u64) -> Self {
        if seed % 8 != 3 {
            return Self { max_bytes: 1 << 20, total_of_f: None, forgets: false };
        }
        let choice = seed / 8;
        Self {
            max_bytes: [3_500, 6_000][(choice % 2) as usize],
            total_of_f: (!choice.is_multiple_of(3)).then(|| NonZeroU64::new(2_500).expect("not zero")),
            forgets: choice % 5 > 1,
        }
    }

    fn is_tight(self) -> bool {
        self.max_bytes < 1 << 20
    }
}

fn functions(state: StateLimits, has_silences: bool, has_schedules: bool) -> [Manifest; 3] {
    let mut f = manifest("f", "t/#", StateScope::Topic);
    f.silence = has_silences.then(|| Silence { back: true, ..Silence::after(AFTER) });
    f.limits.state_total_bytes = state.total_of_f;
    f.state_full = if state.forgets { StateFull::ForgetOldest } else { StateFull::Fail };
    let all =
        [f, manifest("sum", "t/#", StateScope::Function), manifest("g", "t/#", StateScope::None)].map(with_requests);
    if has_schedules { all.map(with_schedules) } else { all }
}

/// Among others in runs with requests, short sessions, failing topics and wakes.
fn has_traces(seed: u64) -> bool {
    matches!(seed % 8, 1 | 5 | 6)
}

/// Memory of about five records.
const SMALL_WINDOW_BYTES: usize = 1200;

/// Most runs have one sink, as most boards do.
fn sinks_of_run(seed: u64) -> Vec<(SinkId, &'static str)> {
    let names = ["upstream", "lake", "stick"];
    let sinks = if seed % 8 == 7 { names.len() } else { 1 };
    SinkId::all().zip(names).take(sinks).collect()
}

fn board(recovered: &Recovered, seed: u64, budget: Budget, state: StateLimits, has_traces: bool, now: Now) -> Board {
    let sinks: Vec<(SinkId, &str)> = recovered.sinks.iter().map(|sink| (sink.id, &*sink.name)).collect();
    let workers = WorkerConfig { count: WORKERS, one_each: false, max_waiting: usize::from(RECEIVE_MAXIMUM) / 4 };
    let parked_max_bytes = budget.parked();
    let state_max_bytes = state.max_bytes;
    let receive_maximum = RECEIVE_MAXIMUM;
    let recorder = recorder(&sinks);
    let trace_sample = if has_traces { 1.0 } else { 0.0 };
    let config = BoardConfig {
        recorder,
        seed,
        receive_maximum,
        budget,
        parked_max_bytes,
        state_max_bytes,
        workers,
        trace_sample,
        ..config()
    };
    let lanes = sinks.iter().map(|(id, name)| lane(name, *id, IN_FLIGHT)).collect();
    // In some runs so few records that streams fall behind.
    let window_bytes = if seed.is_multiple_of(2) { budget.window() } else { SMALL_WINDOW_BYTES };
    let forward = ForwardConfig { window_bytes, sinks: lanes, ..forward_config(IN_FLIGHT) };
    Board::new(config, forward, recovered, Arc::new(Metrics::default()), now)
}

/// Reads a gap report.
fn gap(payload: &[u8]) -> Envelope {
    let report: serde_json::Value = serde_json::from_slice(payload).expect("a gap report is JSON");
    let id = report["first_id"].as_str().expect("a gap report names its first record");
    let mut parts = id.rsplit('-');
    let first = parts.next().and_then(|number| number.parse().ok());
    let (stream, first) = parts.next().and_then(stream_of).zip(first).expect("an id has a stream and a number");
    Envelope::Gap(stream, first, report["records"].as_u64().expect("it counts the records"))
}

/// Reads the part of an id that names the stream.
fn stream_of(part: &str) -> Option<Stream> {
    let sink = match &part[1..] {
        "" => SinkId::UPSTREAM,
        number => SinkId::new(number.parse().ok()?)?,
    };
    match &part[..1] {
        "a" => Some(Stream::alerts(sink)),
        "d" => Some(Stream::data(sink)),
        "l" => Some(Stream::LOCAL),
        _ => None,
    }
}
