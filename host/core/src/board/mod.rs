//! The board: everything that Sedge decides, without I/O and without a clock.
//!
//! ```text
//! sources ─input─▶ intake ─▶ dispatch ─▶ worker ─▶ ledger ─commit─▶ store ─▶ forwarder ─▶ sinks
//!    ▲                                               │
//!    └──────── receipt (acknowledge), only after the commit ┘
//! ```
//!
//! The caller feeds [`Input`]s with the time at which they happened, carries out [`Effect`]s in their order, and calls again
//! when [`Board::poll_timeout`] has passed. All inputs that are at hand are fed before effects are polled: what came of them
//! is then one commit. The same seed and inputs give the same effects.
//!
//! Each part owns its fields: [`intake`] admission and redelivery, [`dispatch`] order within keys and the workers' jobs,
//! [`ledger`] units and commits, [`rollout`] functions and versions, `forward` the outbox, [`subscriptions`] the session at the
//! broker. What concerns several of them is here: the way of a message in [`flow`], the way of a version in [`versions`].

mod budget;
pub mod ids;
pub mod input;

pub mod caution;
mod map;
mod mutes;
mod rate;
mod receipt;
mod requests;
mod size;

pub mod dispatch;
mod flow;
mod follow;
pub mod intake;
mod invariants;
pub mod ledger;
pub mod rollout;
mod schedule_flow;
mod schedules;
mod settings;
mod silence_flow;
mod silences;
mod state_flow;
mod states;
mod subscriptions;
mod taps;
mod traces;
mod versions;
mod wake_flow;
mod wakes;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

pub use budget::{Budget, MIN_BUDGET_BYTES, Weight};
use caution::Caution;
pub use caution::{CautionConfig, Crash};
pub use dispatch::WorkerConfig;
use dispatch::{Dispatch, Workers};
pub use flow::{GUEST_LOG, PARTS_OF_PARKED};
use follow::Follows;
pub use follow::{Cut, Follow, FollowedOutput, FollowedRun, MAX_FOLLOWS};
pub use ids::{FunctionNo, JobId, JobNo, Life, WorkerNo};
pub use input::{AckToken, BrokerEvent, Delivery, Effect, Input, Job, Load, SinkEvent, WorkerCommand, WorkerEvent};
use intake::Intake;
pub use intake::window_memory;
use invariants::Invariants;
use ledger::{Ledger, Loaded, Recorder};
pub use ledger::{RecorderConfig, SinkRoute};
use map::Seeded;
pub use mutes::Mute;
use receipt::Receipt;
use requests::Requests;
pub use rollout::PauseConfig;
use rollout::{Report, Rollout};
use schedules::Schedules;
use settings::Overlays;
use silences::Silences;
pub(crate) use size::MAX_TOPIC_BYTES;
use states::States;
use subscriptions::Subscriptions;
use taps::Taps;
pub use taps::{MAX_TAPS, RecordEvent, RecordOrder, TappedRun};
use traces::Traces;
use wakes::Wakes;

use crate::forward::{self, Destination, Forwarder};
use crate::manifest::StateScope;
use crate::metrics::Metrics;
use crate::router::Router;
use crate::store;
use crate::time::Now;

/// Key of the durable note that the broker counts its packet ids upwards.
const META_COUNTS_UPWARDS: &str = "packet-ids-count-upwards";
/// Key of the number of the session at the broker whose deliveries the store knows.
const META_SESSION: &str = "session";
/// Key of the subscriptions that the session at the broker has.
const META_SUBSCRIPTIONS: &str = "subscriptions";
/// Key of the time that counts for silence, in milliseconds.
const META_LISTENED: &str = "listened-ms";
/// How often a subscription that is no longer wanted may be given up.
const TIDY_EVERY: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub struct BoardConfig {
    pub recorder: RecorderConfig,
    pub workers: WorkerConfig,
    pub pause: PauseConfig,
    pub caution: CautionConfig,
    pub receive_maximum: u16,
    pub share_group: Option<String>,
    pub max_payload_bytes: usize,
    pub max_hops: u32,
    /// Publications that one message may cause, directly and through other functions.
    pub max_fan_out: u32,
    /// Wakes of one function that wait.
    pub max_wakes: u32,
    pub retry_attempts: u32,
    pub retry_max_delay: Duration,
    pub parked_max_bytes: usize,
    /// State of all functions.
    pub state_max_bytes: u64,
    pub budget: Budget,
    /// Part of the messages without a trace of which one is begun.
    pub trace_sample: f64,
    /// Random. Decides the order of hash maps and the jitter of pauses.
    pub seed: u64,
}

pub struct Board {
    config: BoardConfig,
    now: Now,
    intake: Intake,
    router: Router,
    dispatch: Dispatch,
    rollout: Rollout,
    overlays: Overlays,
    recorder: Recorder,
    ledger: Ledger,
    states: States,
    wakes: Wakes,
    silences: Silences,
    schedules: Schedules,
    forwarder: Forwarder,
    taps: Taps,
    follows: Follows,
    traces: Traces,
    requests: Requests,
    subscriptions: Subscriptions,
    /// What the store has of them.
    subscriptions_saved: Bytes,
    tidied_at: Instant,
    /// Nothing was under way when it was last counted what each function holds.
    held_is_of_idle: bool,
    is_connected: bool,
    store_failed: bool,
    is_ending: bool,
    counts_upwards_saved: bool,
    /// Sessions at the broker so far.
    session: u64,
    /// The store is to forget the deliveries of a lost session. The new one is subscribed after that: a message of it could
    /// be taken for one of those by the next process.
    is_forgetting: bool,
    /// The session of this connection had all filters from the beginning.
    hears_all: bool,
    invariants: Invariants,
    caution: Caution,
    effects: VecDeque<Effect>,
    /// There was an input since the last effect.
    has_changed: bool,
    metrics: Arc<Metrics>,
}

impl Board {
    /// `recovered`: what the store found when it was opened. Functions are deployed next, then [`Board::restore`] follows.
    pub fn new(
        config: BoardConfig,
        forward: forward::ForwardConfig,
        recovered: &store::Recovered,
        metrics: Arc<Metrics>,
        now: Now,
    ) -> Self {
        let seed = Seeded::new(config.seed);
        let subscriptions_saved = meta(recovered, META_SUBSCRIPTIONS).cloned().unwrap_or_default();
        Self {
            intake: Intake::new(config.receive_maximum, config.budget.intake(), seed),
            router: Router::new(Vec::new(), Arc::clone(&config.recorder.base_topic)),
            dispatch: Dispatch::new(Workers::new(config.workers.clone(), now.monotonic)),
            rollout: Rollout::new(config.pause, Arc::clone(&metrics)),
            overlays: Overlays::default(),
            recorder: Recorder::new(config.recorder.clone(), seed),
            ledger: Ledger::new(config.receive_maximum.into(), config.budget.commit(), seed),
            states: States::new(config.state_max_bytes, seed),
            taps: Taps::new(seed),
            follows: Follows::default(),
            traces: Traces::new(config.trace_sample, seed, Arc::clone(&metrics), now),
            wakes: Wakes::new(seed),
            silences: Silences::new(seed),
            schedules: Schedules::default(),
            forwarder: Forwarder::new(forward, recovered, Arc::clone(&metrics)),
            requests: Requests::default(),
            subscriptions: Subscriptions::restore(Some(&subscriptions_saved), config.share_group.clone()),
            subscriptions_saved,
            tidied_at: now.monotonic,
            held_is_of_idle: true,
            is_connected: false,
            store_failed: false,
            is_ending: false,
            counts_upwards_saved: false,
            session: 0,
            is_forgetting: false,
            hears_all: false,
            invariants: Invariants::default(),
            caution: Caution::new(&config.caution, now.monotonic),
            effects: VecDeque::new(),
            has_changed: false,
            metrics,
            config,
            now,
        }
    }

    /// Takes up what the store found when it was opened. Jobs that wait there belong to the functions deployed before.
    pub fn restore(&mut self, recovered: store::Recovered, now: Now) {
        self.now = now;
        self.dispatch.workers.set_now(now.monotonic);
        let counts_upwards = meta(&recovered, META_COUNTS_UPWARDS).is_some();
        self.counts_upwards_saved = counts_upwards;
        self.session = session(&recovered);
        self.intake.restore(&recovered.window, recovered.message_ids, counts_upwards);
        self.states.restore(recovered.state);
        self.show_all_state();
        self.restore_silences(&recovered.meta, recovered.heard);
        self.restore_wakes(recovered.wakes);
        self.schedules.restore(recovered.schedules);
        self.unpark(recovered.parked);
    }

    pub fn handle(&mut self, input: Input, now: Now) {
        self.now = now;
        self.dispatch.workers.set_now(now.monotonic);
        self.silences.pass(now.monotonic);
        if now.synced {
            self.wakes.clock_synced(now);
        }
        match input {
            Input::Broker(event) => self.handle_broker(event),
            Input::Request(request) => self.handle_request(request),
            Input::Worker { worker, life, event } => {
                self.dispatch.workers.handle(worker, life, event);
                self.handle_worker_events();
            }
            Input::Store(event) => self.handle_store(event),
            Input::Sink { destination, event } => self.handle_sink(destination, event),
            Input::Deploy(version) => self.deploy(*version),
            Input::Remove { function } => self.remove_function(&function),
            Input::DropCandidate { function, edition } => self.drop_candidate(&function, edition),
            Input::Promote { function, edition } => self.promote(&function, edition),
            Input::Settings { function, change, overlay } => self.set_settings(function, change, overlay),
            Input::Record(order) => self.begin_recording(order),
            Input::EndRecording { id, function, why } => self.end_recording(&id, function.as_deref(), why),
            Input::Follow(follows) => self.set_follows(follows),
            Input::Mute(mutes) => self.recorder.set_mutes(mutes),
            Input::Timeout => self.handle_timeout(),
            Input::Shutdown => self.is_ending = true,
        }
        // What workers reported belongs to this input: the next one may end them.
        if self.dispatch.workers.has_events() {
            self.handle_worker_events();
        }
        self.has_changed = true;
    }

    /// Begins what may begin now. Once for all inputs at hand, since it looks at every part of the board.
    fn begin(&mut self) {
        while self.dispatch.parking.may_be_ready() && self.may_start() {
            self.start_parked();
        }
        self.start_wakes();
        self.start_silences();
        self.start_schedules();
        if self.dispatch.workers.has_events() {
            self.handle_worker_events();
        }
        let room = self.config.budget.room(self.held_bytes());
        self.dispatch.workers.hand_out(room, !self.ledger.is_committing());
    }

    /// The next thing to do, until `None`.
    pub fn poll(&mut self) -> Option<Effect> {
        loop {
            let effect = self.next_effect()?;
            // While the disk fails the store discards every request.
            if !(self.store_failed && matches!(effect, Effect::Store(_))) {
                return Some(effect);
            }
        }
    }

    fn next_effect(&mut self) -> Option<Effect> {
        if std::mem::take(&mut self.has_changed) {
            self.begin();
        }
        if let Some(effect) = self.effects.pop_front() {
            return Some(effect);
        }
        if self.rollout.take_routes_changed() {
            self.routes_changed();
        }
        while let Some(settled) = self.ledger.poll_settled() {
            for receipt in std::iter::once(&settled.receipt).chain(&settled.copies) {
                self.intake.committed(receipt);
            }
            if let Receipt::Schedule { function, name } = &settled.receipt {
                self.schedules.finished(*function, name);
            }
            self.requests.settled(&settled);
            self.trace_settled(&settled);
            match settled.message_id {
                Some(id) if settled.is_turned_away => self.intake.id_released(&id),
                Some(id) => self.intake.id_committed(&id, self.now.monotonic),
                None => {}
            }
            self.recorded_unit_settled(settled.unit);
        }
        if self.caution.is_on() && self.ledger.len() == 0 && self.caution.set_alone(None) {
            return Some(Effect::Alone(None));
        }
        if let Some(report) = self.rollout.poll_report() {
            return Some(match report {
                Report::Deployed { function, edition, event } => Effect::Deployed { function, edition, event },
                Report::Paused { function, is_paused } => Effect::Paused { function, is_paused },
            });
        }
        if let Some((worker, command)) = self.dispatch.workers.poll() {
            return Some(Effect::Worker { worker, life: command.life, command: command.command });
        }
        if let Some(request) = self.ledger.poll() {
            return Some(Effect::Store(request));
        }
        if let Some(token) = self.intake.release() {
            self.metrics.acknowledged.inc();
            self.trace_acknowledged(token);
            return Some(Effect::Acknowledge(token));
        }
        if let Some(effect) = self.requests.poll() {
            return Some(effect);
        }
        if let Some(effect) = self.effects.pop_front() {
            return Some(effect);
        }
        self.metrics.in_flight.set(self.ledger.len() as u64);
        // The count of each second may be of a moment before the last job ended.
        if !self.held_is_of_idle && self.ledger.is_idle() {
            self.count_held();
        }
        let action = self.forwarder.poll(self.now.monotonic)?;
        Some(match action {
            forward::Action::Store(request) => Effect::Store(request),
            forward::Action::Reconnect { destination } => Effect::Reconnect(destination),
            forward::Action::Send { destination, token, envelope } => Effect::Send { destination, token, envelope },
        })
    }

    /// When to call again although nothing happened.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let caution = self.caution.until();
        let taps = self.taps.poll_timeout();
        let mut due = [
            self.dispatch.workers.poll_timeout(),
            self.forwarder.wake_at(),
            caution,
            taps,
            None,
            None,
            None,
            None,
            None,
            None,
        ];
        if self.may_start() {
            due[4] = self.dispatch.parking.next_due(|number| !self.rollout.function(number).is_awaited());
            due[5] = self.rollout.poll_timeout();
            due[7] = self.next_wake();
            due[8] = self.silences.next_due(|number| self.can_wake(number));
            due[9] = self.schedules.poll_timeout(self.now);
        }
        if self.is_connected && self.subscriptions.has_unwanted() {
            due[6] = Some(self.tidied_at + TIDY_EVERY);
        }
        due.into_iter().flatten().min()
    }

    fn handle_timeout(&mut self) {
        if self.caution.until().is_some_and(|until| until <= self.now.monotonic) {
            self.end_caution();
        }
        if self.taps.poll_timeout().is_some_and(|until| until <= self.now.monotonic) {
            self.end_late_recordings();
        }
        self.dispatch.workers.handle_timeout();
        self.handle_worker_events();
        if self.may_start() {
            self.start_due();
        }
        if self.now.monotonic >= self.tidied_at + TIDY_EVERY {
            self.tidied_at = self.now.monotonic;
            self.tidy_subscriptions();
            self.count_held();
        }
    }

    /// Whether anything that waits in the board or the store may begin.
    fn may_start(&self) -> bool {
        !self.store_failed && !self.is_ending && (!self.caution.is_on() || self.ledger.len() == 0)
    }

    /// Whether messages are taken one at a time, because the daemon was ended again and again.
    pub fn is_cautious(&self) -> bool {
        self.caution.is_on()
    }

    /// Messages are taken as usual again. What the broker may have in flight is announced with a new connection.
    fn end_caution(&mut self) {
        self.caution.end();
        tracing::info!("messages are taken as usual again");
        self.effects.push_back(Effect::CautionEnded);
        self.dispatch.parking.wake();
    }

    // ---- what the caller asks ----

    /// Whether nothing more should be taken from the broker for now.
    pub fn is_full(&mut self) -> bool {
        if self.caution.is_on() && self.ledger.len() > 0 || self.has_backlog() {
            self.silences.behind(self.now.monotonic);
            return true;
        }
        let is_full = self.intake.update_full(self.ledger.len(), self.ledger.bytes());
        if is_full {
            self.silences.behind(self.now.monotonic);
        }
        is_full
    }

    /// Bytes of messages and of everything that came of them, without what workers may answer.
    fn held_bytes(&self) -> usize {
        self.ledger.bytes() + self.dispatch.parking.bytes() + self.forwarder.bytes()
    }

    /// Everything that counts against the budget.
    pub fn budget_used(&self) -> usize {
        self.held_bytes() + self.dispatch.workers.handed_out_bytes()
    }

    /// Counts what each function holds.
    fn count_held(&mut self) {
        self.held_is_of_idle = self.ledger.is_idle();
        let numbers = self.rollout.numbers();
        let mut held: Vec<usize> = numbers.map(|number| self.dispatch.parking.bytes_of(number)).collect();
        self.dispatch.workers.held().for_each(|(number, bytes)| held[number.index()] += bytes);
        for (number, bytes) in self.rollout.numbers().zip(held) {
            self.rollout.function(number).metrics.held_bytes.set(bytes as u64);
        }
    }

    /// Messages that are not on disk.
    pub fn in_flight(&self) -> usize {
        self.ledger.len()
    }

    /// Nothing is under way: no job, no commit.
    pub fn is_idle(&self) -> bool {
        self.ledger.is_idle()
    }

    /// What is under way, for a test that waits in vain.
    pub fn describe(&self) -> String {
        self.ledger.describe()
    }

    /// A worker that answers nothing for longer than any of its runs may take, in words.
    pub fn silent_worker(&self, now: Instant) -> Option<String> {
        let (worker, silence, patience) = self.dispatch.workers.silent(now)?;
        let (silence, patience) = (silence.as_secs(), patience.as_secs());
        Some(format!("worker {worker} has answered nothing for {silence} s; it is ended after {patience} s"))
    }

    /// More waits to be sent than may be under way: the outbox empties as fast as answers are read.
    pub fn awaits_answers(&self) -> bool {
        self.forwarder.awaits_answers()
    }

    /// Schedules that have waited for the clock for so long that a person is to do something.
    pub fn schedules_without_clock(&self) -> usize {
        self.schedules.overdue(self.now)
    }

    /// Whether the session brought everything that functions want to hear: nothing is lost before the broker has answered.
    pub fn hears_all(&self) -> bool {
        self.is_connected && self.hears_all
    }

    /// Whether the broker was asked for everything that functions want to hear on this connection.
    pub fn has_subscribed(&self) -> bool {
        self.is_connected && !self.is_forgetting
    }

    pub fn function_count(&self) -> usize {
        self.rollout.numbers().count()
    }

    // ---- store and sinks ----

    fn handle_store(&mut self, event: store::StoreEvent) {
        match event {
            store::StoreEvent::Committed { batch, stored, parked, letters } => {
                self.requests.numbered(letters);
                match self.ledger.committed(batch, &parked) {
                    Some(numbered) => {
                        numbered.into_iter().for_each(|(ticket, id)| self.dispatch.parking.numbered(ticket, id));
                    }
                    None => self.broken("the store numbers as many jobs as it was asked to park"),
                }
                self.forwarder.committed(stored);
            }
            store::StoreEvent::State { id, entries } => {
                if let Some(Loaded { request, entries, begins }) = self.ledger.state_loaded(id, entries) {
                    if let Some(scope) = begins {
                        self.states.begin(&scope, &entries);
                    }
                    if let Some(job) = self.dispatch.workers.asking(request) {
                        let topic = (job.scope == StateScope::Topic).then(|| job.message.shared_state_topic());
                        self.taps.state_loaded(job.id.function, topic.as_ref(), &entries);
                    }
                    self.dispatch.workers.provide_state(request, entries);
                }
            }
            store::StoreEvent::Outbox { stream, stored, end } => self.forwarder.loaded(stream, stored, end),
            store::StoreEvent::Response { request, response } => self.response_loaded(request, response),
            store::StoreEvent::DeliveriesForgotten => self.subscribe_after_all(),
            store::StoreEvent::Dropped { stream, gap, ranges } => self.forwarder.dropped(stream, gap, &ranges),
            store::StoreEvent::Gaps { sink, gaps } => self.forwarder.gaps(sink, gaps),
            store::StoreEvent::Parked(parked) => self.unpark(parked),
            store::StoreEvent::StateExpired { function } => self.state_expired(&function),
            store::StoreEvent::Failed { .. } => self.store_failed(),
            store::StoreEvent::Reopened(recovered) => self.store_reopened(*recovered),
            store::StoreEvent::Blocked(_) | store::StoreEvent::Closed => {}
        }
    }

    /// Nothing that is not committed counts. The broker delivers it again.
    fn store_failed(&mut self) {
        self.store_failed = true;
        self.silences.disconnected();
        self.ledger.reset();
        self.taps.reset();
        self.follows.reset();
        self.traces.reset();
        self.trace_disconnected();
        self.dispatch.reset();
        self.recorder.forget();
        self.intake.store_failed();
        self.requests.store_failed();
        self.effects.retain(|effect| !matches!(effect, Effect::Store(_)));
        // The broker is to queue what comes meanwhile.
        self.subscribe_after_all();
        let unload = self.rollout.forget_jobs();
        self.unload(unload);
    }

    fn store_reopened(&mut self, recovered: store::Recovered) {
        self.store_failed = false;
        self.forwarder.reopened(&recovered);
        self.counts_upwards_saved = meta(&recovered, META_COUNTS_UPWARDS).is_some();
        let is_of_session = session(&recovered) == self.session;
        self.intake.reopened(if is_of_session { &recovered.window } else { &[] }, recovered.message_ids);
        if !is_of_session {
            self.forget_deliveries();
        }
        self.states.restore(recovered.state);
        self.show_all_state();
        self.restore_silences(&recovered.meta, recovered.heard);
        self.restore_wakes(recovered.wakes);
        self.schedules.restore(recovered.schedules);
        self.unpark(recovered.parked);
        // What was delivered meanwhile was dropped unacknowledged: a new connection makes the broker send it again.
        self.effects.push_back(Effect::Reconnect(Destination::Local));
    }

    fn handle_sink(&mut self, destination: Destination, event: SinkEvent) {
        let now = self.now.monotonic;
        match event {
            SinkEvent::Connected => self.forwarder.connected(destination),
            SinkEvent::Disconnected => self.forwarder.disconnected(destination, now),
            SinkEvent::Answered { token, answer } => self.forwarder.answered(destination, token, answer, now),
            SinkEvent::Returned { token } => self.forwarder.returned(destination, token),
        }
        self.trace_sent();
    }

    // ---- the session at the broker ----

    fn handle_broker(&mut self, event: BrokerEvent) {
        match event {
            // Unacknowledged, it comes again: when the disk works, or to the next daemon.
            BrokerEvent::Delivery(_) | BrokerEvent::Other(_) if self.store_failed || self.is_ending => {}
            BrokerEvent::Delivery(delivery) => self.deliver(delivery),
            BrokerEvent::Other(delivery) => self.pass_over(&delivery),
            BrokerEvent::CountsUpwards => self.intake.set_counts_upwards(),
            BrokerEvent::Connected { session_present } => self.connected(session_present),
            BrokerEvent::Disconnected => {
                self.is_connected = false;
                self.silences.disconnected();
                self.subscriptions.disconnected();
                self.intake.disconnected();
                self.trace_disconnected();
                self.forwarder.disconnected(Destination::Local, self.now.monotonic);
            }
            BrokerEvent::Unsubscribed { filter } => {
                if self.subscriptions.unsubscribed(&filter) {
                    self.make_router();
                }
                self.save_subscriptions();
            }
        }
        if self.intake.counts_upwards() && !self.counts_upwards_saved {
            self.counts_upwards_saved = true;
            self.ledger.request(store::StoreRequest::SetMeta { key: META_COUNTS_UPWARDS, value: "1".into() });
        }
    }

    fn connected(&mut self, session_present: bool) {
        self.is_connected = true;
        // While the disk fails nobody listens. A new connection follows when it works.
        if !self.store_failed {
            self.silences.connected(self.now.monotonic);
        }
        if !session_present {
            if self.subscriptions.has_held() {
                self.metrics.sessions_lost.inc();
                tracing::warn!("the broker has forgotten the session of this board: what it had queued is lost");
            }
            self.intake.session_lost();
            self.session += 1;
            self.forget_deliveries();
            self.is_forgetting = !self.store_failed;
            self.subscriptions.session_lost();
            self.make_router();
        }
        for filter in self.subscriptions.left() {
            self.effects.push_back(Effect::Unsubscribe { filter: self.subscriptions.at_broker(filter) });
        }
        self.hears_all = !self.subscriptions.has_new();
        let all = self.subscriptions.all();
        self.save_subscriptions();
        self.subscribe(&all);
        self.forwarder.connected(Destination::Local);
    }

    /// What the store holds of earlier sessions is evidence of nothing. The number says later that it was done.
    fn forget_deliveries(&mut self) {
        self.ledger.session_lost();
        let value = self.session.to_string().into();
        self.ledger.request(store::StoreRequest::SetMeta { key: META_SESSION, value });
    }

    /// Functions want other topics than before.
    fn routes_changed(&mut self) {
        let wanted = self.rollout.functions().filter(|(_, it)| it.is_routed());
        let changes = self.subscriptions.set_wanted(wanted.map(|(_, it)| (Arc::clone(&it.name), it.wanted())));
        self.make_router();
        self.show_all_state();
        self.show_all_wakes();
        self.watch_silences();
        self.set_schedules();
        let installed = self.rollout.functions().filter(|(_, it)| it.serving().is_some());
        let installed = installed.map(|(_, it)| Arc::clone(it.state_name())).collect();
        self.ledger.request(store::StoreRequest::Installed(installed));
        if changes.subscribe.is_empty() && changes.unsubscribe.is_empty() {
            return;
        }
        self.save_subscriptions();
        // Not connected, all of it follows at the next connection.
        self.subscribe(&changes.subscribe);
        for filter in &changes.unsubscribe {
            self.effects.push_back(Effect::Unsubscribe { filter: self.subscriptions.at_broker(filter) });
        }
    }

    fn subscribe_after_all(&mut self) {
        if std::mem::take(&mut self.is_forgetting) && self.is_connected {
            let all = self.subscriptions.all();
            self.subscribe(&all);
        }
    }

    fn subscribe(&mut self, filters: &[crate::topic::TopicFilter]) {
        if self.is_forgetting {
            return;
        }
        for (filter, id) in self.router.subscriptions().filter(|(filter, _)| filters.contains(filter)) {
            self.effects.push_back(Effect::Subscribe { filter: self.subscriptions.at_broker(filter), id });
        }
    }

    fn make_router(&mut self) {
        let rollout = &self.rollout;
        let function = |name: &str| rollout.find(name).map(|number| (number.index(), rollout.function(number).heard()));
        let interests = self.subscriptions.interests(function);
        self.router = Router::new(interests, Arc::clone(&self.config.recorder.base_topic));
    }

    fn save_subscriptions(&mut self) {
        let value = self.subscriptions.save();
        if self.subscriptions_saved != value {
            self.subscriptions_saved = value.clone();
            self.ledger.request(store::StoreRequest::SetMeta { key: META_SUBSCRIPTIONS, value });
        }
    }

    /// Gives up a filter that is no longer wanted, when so little is on the way that the broker holds nothing back: its
    /// answer then stands where the last copy for that filter has passed.
    fn tidy_subscriptions(&mut self) {
        if self.is_connected
            && self.intake.is_nearly_idle()
            && let Some(filter) = self.subscriptions.next_to_unsubscribe()
        {
            self.effects.push_back(Effect::Unsubscribe { filter: self.subscriptions.at_broker(&filter) });
        }
    }

    /// A condition that must hold does not. The store is opened anew and nothing that is not committed counts, as after a
    /// failure of the disk: everything unacknowledged is delivered again on a new connection.
    fn broken(&mut self, invariant: &'static str) {
        self.metrics.invariants_broken.inc();
        tracing::error!(invariant, "an invariant is broken: the store is opened anew and the broker delivers again");
        self.ledger.request(store::StoreRequest::Reopen);
        if self.invariants.broken(self.now.monotonic) {
            self.effects.push_back(Effect::Abort { invariant });
        }
    }
}

fn session(recovered: &store::Recovered) -> u64 {
    meta(recovered, META_SESSION).and_then(|value| str::from_utf8(value).ok()?.parse().ok()).unwrap_or(0)
}

fn meta<'a>(recovered: &'a store::Recovered, key: &str) -> Option<&'a Bytes> {
    recovered.meta.iter().find(|(name, _)| name == key).map(|(_, value)| value)
}
