//! The composition root: builds every part, connects them, runs the loop that carries events between them, and drains.
//!
//! All waiting happens in one place, [`Daemon::serve`]. Broker, workers, store and sinks queue events; each iteration feeds
//! them to the board, which decides, and carries out the effects.

mod board_key;
mod broker;
mod exits;
mod home;
mod orders;
mod pace;
mod parts;
mod requests;
mod sink_figures;
mod status;
mod store_figures;

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

#[cfg(feature = "page")]
pub(crate) use parts::worker_count;

use crate::footprint;
use crate::home_assistant::HomeAssistant;
use crate::page::Shown;
use crate::sinks::{self, Happened, Receivers};
use crate::sources::http::HttpTrigger;
use crate::telemetry::{self, ConnectionLog, Health};
use crate::traces::Exporter;
use crate::worker::processes::Processes;
use broker::Subscribing;
use orders::Orders;
use pace::Pace;
use requests::Requests;
use sedge_core::board::{Board, Effect, Input, SinkEvent};
use sedge_core::config::Config;
use sedge_core::forward::{Answer, Destination, Envelope};
use sedge_core::manifest::Manifest;
use sedge_core::message::PublishToken;
use sedge_core::request::Request;
use sedge_core::time::Now;
use sedge_core::{deploy, store};
use sedge_mqtt::{Link, PublishResult};
use status::Status;

/// The loop iterates at least this often, to feed the watchdog.
const TURN: Duration = Duration::from_secs(5);
/// Interval of the checks whether the clock is synchronised, while messages come. Without any, once per turn.
const CHECK_CLOCK_EVERY: Duration = Duration::from_secs(1);
/// After that long it is connected, if it can be, and starting up is over.
const STARTED: Duration = Duration::from_secs(2);
/// After that long an attempt to connect that has failed is over.
const FAILED: Duration = Duration::from_millis(200);
/// How long the daemon may take to end after it was asked to.
const DRAIN: Duration = Duration::from_millis(4000);
/// Where Mosquitto says who it is.
const BROKER_VERSION_TOPIC: &str = "$SYS/broker/version";

/// Runs until SIGTERM or SIGINT.
pub fn run(config_file: &Path, config: Config, functions: Vec<(PathBuf, Manifest)>) -> anyhow::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("failed to start the event loop")?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        // Before anything that takes time: a daemon that is told to end while it compiles ends in order, right after.
        let shutdown = shutdown_signal()?;
        let reload = signal(SignalKind::hangup()).context("failed to listen for SIGHUP")?;
        let daemon = Daemon::build(config_file, config, functions)?;
        Box::pin(daemon.serve(shutdown, reload)).await
    })
}

struct Daemon {
    board: Board,
    workers: Processes,
    store: sedge_store::StoreHandle,
    store_events: sedge_store::StoreEvents,
    broker: Link,
    broker_events: sedge_mqtt::Events,
    broker_log: ConnectionLog,
    http_trigger: Option<HttpTrigger>,
    sinks: Receivers,
    status: Status,
    /// What Home Assistant is told. `None`: nothing.
    home: Option<HomeAssistant>,
    health: Arc<Health>,
    notify: telemetry::Notifier,
    watchdog_fed: Instant,
    /// Held for as long as the daemon runs: it answers on a thread of its own.
    _http: Option<telemetry::Http>,
    shown: Shown,
    /// `None`: no collector is configured.
    exporter: Option<Exporter>,
    store_failed: bool,
    is_worker_silent: bool,
    exits: exits::Exits,
    orders: Orders,
    requests: Requests,
    /// Subscriptions that the broker refuses on this connection, with its reasons.
    refused: BTreeMap<String, String>,
    /// A new connection whose subscriptions are not all answered: the board is not online before.
    subscribing: Option<Subscribing>,
    decisions: mpsc::Receiver<deploy::Action>,
    clock_checked: Instant,
    clock_synced: bool,
    /// When what only starting up, or an attempt to connect, needed is given back.
    give_back_at: Option<Instant>,
}

impl Daemon {
    async fn serve(mut self, shutdown: impl Future<Output = ()>, mut reload: Signal) -> anyhow::Result<()> {
        let mut shutdown = std::pin::pin!(shutdown);
        let mut from_broker = VecDeque::new();
        let mut ending: Option<Instant> = None;
        let mut pace = Pace::new(Instant::now());
        // Before the first message: what was queued for this board comes with the connection.
        self.perform()?;
        self.health.ready(parts::STARTING);
        self.notify.ready("waiting for the broker");
        tracing::info!(functions = self.board.function_count(), workers = self.workers.count(), "ready");
        loop {
            let now = Instant::now();
            if let Some(deadline) = ending
                && (now >= deadline || self.board.is_idle())
            {
                break;
            }
            let due = self.board.poll_timeout();
            let wake = self.wake_at(now, due).min(ending.unwrap_or(now + TURN));
            let taking = ending.is_none() && !self.board.is_full();
            self.broker.hold_back(!taking);
            let left_over = from_broker.len();
            tokio::select! {
                biased;
                () = &mut shutdown, if ending.is_none() => {
                    tracing::info!("ending: finishing what is under way");
                    self.notify.stopping();
                    ending = Some(Instant::now() + DRAIN);
                    self.board.handle(Input::Shutdown, self.now());
                }
                Some(()) = reload.recv() => self.reload(),
                event = self.store_events.recv() => match event {
                    Some(event) => self.store_event(event),
                    None => anyhow::bail!("the store's thread ended"),
                },
                () = self.workers.ready() => {}
                () = self.broker_events.receive(&mut from_broker), if taking && from_broker.is_empty() => {}
                // Left over when the board was full.
                () = std::future::ready(()), if taking && !from_broker.is_empty() => {}
                Some(action) = self.decisions.recv() => self.carry_out(action),
                part = self.requests.receive() => self.requests.add(part),
                input = self.shown.asked() => self.board.handle(input, self.now()),
                happened = self.sinks.receive() => self.sink_event(happened),
                request = receive(&mut self.http_trigger) => self.board.handle(Input::Request(request), self.now()),
                () = tokio::time::sleep_until(wake.into()) => {}
            }
            // Whatever else the store has to say belongs to this iteration: fewer, larger iterations cost less.
            while let Some(event) = self.store_events.try_recv() {
                self.store_event(event);
            }
            // Under load there is always a message, and these would never have their turn.
            while let Ok(action) = self.decisions.try_recv() {
                self.carry_out(action);
            }
            for happened in self.sinks.waiting() {
                self.sink_event(happened);
            }
            let now = self.now();
            let came =
                from_broker.range(left_over..).filter(|event| matches!(event, sedge_mqtt::Event::Delivery(_))).count();
            while let Some((worker, life, event)) = self.workers.next_event() {
                self.board.handle(Input::Worker { worker, life, event }, now);
            }
            while !self.board.is_full()
                && let Some(event) = from_broker.pop_front()
            {
                self.broker_event(event, now);
            }
            while let Some(request) = self.http_trigger.as_mut().and_then(HttpTrigger::try_receive) {
                self.board.handle(Input::Request(request), now);
            }
            self.housekeep(now, due);
            self.perform()?;
            if let Some(pause) = pace.pause(came, self.board.awaits_answers(), now.monotonic) {
                // What this iteration had to say to the broker leaves now.
                tokio::task::yield_now().await;
                // Blocking on purpose: the runtime would go on reading from the sockets, a message at a time.
                std::thread::sleep(pause);
                // The runtime polls the sockets in the first of these and reads from them in the second, so that all that
                // came meanwhile is one iteration.
                tokio::task::yield_now().await;
                tokio::task::yield_now().await;
            }
        }
        self.close().await
    }

    fn now(&self) -> Now {
        sedge_sandbox::clock::now(self.clock_synced)
    }

    /// `due`: when the board is to be called again.
    fn wake_at(&self, now: Instant, due: Option<Instant>) -> Instant {
        let home = self.home.as_ref().and_then(HomeAssistant::poll_timeout);
        let wakes = [due, self.give_back_at, home];
        wakes.into_iter().flatten().chain([now + TURN]).min().unwrap_or(now + TURN)
    }

    /// Carries out what the board decided.
    fn perform(&mut self) -> anyhow::Result<()> {
        loop {
            let Some(effect) = self.board.poll() else {
                if self.end_broken_recordings() {
                    continue;
                }
                break;
            };
            match effect {
                Effect::Acknowledge(token) => self.broker.acknowledge(token),
                Effect::Respond { id, response } => {
                    if let Some(trigger) = &mut self.http_trigger {
                        trigger.respond(id, response);
                    }
                }
                Effect::Store(request) => self.ask_store(request),
                Effect::Worker { worker, life, command } => self.workers.apply(worker, life, command),
                Effect::Send { destination, token, envelope } => self.send(destination, token, envelope),
                Effect::Subscribe { filter, id } => {
                    self.broker.subscribe(&filter, Some(id));
                    if let Some(subscribing) = &mut self.subscribing {
                        subscribing.asked(filter);
                    }
                }
                Effect::Unsubscribe { filter } => self.broker.unsubscribe(&filter),
                Effect::Reconnect(Destination::Local) => self.broker.reconnect(),
                Effect::Reconnect(Destination::Sink(sink)) => self.sinks.reconnect(sink),
                Effect::Paused { function, is_paused } => {
                    self.orders.handle.send(deploy::Request::Quarantined { function, is_quarantined: is_paused });
                }
                Effect::Deployed { function, edition, event } => {
                    self.orders.handle.send(deploy::Request::Trial { function, edition, event });
                }
                Effect::SettingsInForce { function, change } => {
                    self.orders.handle.send(deploy::Request::SettingsInForce { function, change });
                }
                Effect::Record { id, event } => self.record(id, event),
                Effect::Follow(run) => self.shown.run(*run),
                Effect::Traced(spans) => {
                    if let Some(exporter) = &self.exporter {
                        exporter.send(&spans);
                    }
                    self.shown.traced(spans);
                }
                Effect::Alone(message) => self.exits.set_alone(message),
                Effect::CautionEnded => {
                    self.exits.forget();
                    self.broker.bound_receive_maximum(u16::MAX);
                    self.broker.reconnect();
                }
                Effect::Abort { invariant } => anyhow::bail!("invariants break again and again, last: {invariant}"),
            }
        }
        self.workers.flush();
        self.show_subscribed();
        self.status.flush(&self.broker);
        self.requests.flush(&self.broker);
        self.flush_home();
        Ok(())
    }

    fn ask_store(&mut self, request: store::StoreRequest) {
        if self.store_failed {
            return;
        }
        if let Err(error) = self.store.send(request) {
            // The channel holds more than the window lets be under way; a full one means the writer's thread is gone.
            tracing::error!(%error, "the store takes no requests");
        }
    }

    fn send(&mut self, destination: Destination, token: PublishToken, envelope: Envelope) {
        let sent = match destination {
            Destination::Local => {
                self.show_alert(&envelope).and_then(|()| sinks::publish(&self.broker, &envelope, token))
            }
            Destination::Sink(sink) => self.sinks.send(sink, token, envelope),
        };
        if sent.is_err() {
            self.sink(destination, SinkEvent::Returned { token });
        }
    }

    fn sink(&mut self, destination: Destination, event: SinkEvent) {
        self.board.handle(Input::Sink { destination, event }, self.now());
    }

    /// `due`: when the board was to be called again, as it was before the events of this iteration.
    fn housekeep(&mut self, now: Now, due: Option<Instant>) {
        self.health.beat(now.monotonic);
        if self.notify.watchdog_interval().is_some_and(|every| now.monotonic.duration_since(self.watchdog_fed) >= every)
        {
            self.watchdog_fed = now.monotonic;
            self.notify.watchdog();
        }
        if due.is_some_and(|at| at <= now.monotonic) {
            self.board.handle(Input::Timeout, now);
        }
        if self.broker_log.settle(now.monotonic) {
            tracing::info!("the connection to the broker stands again");
        }
        for sink in self.sinks.settled(now.monotonic) {
            tracing::info!(sink, "the connection to a sink stands again");
        }
        if self.give_back_at.take_if(|at| *at <= now.monotonic).is_some() {
            footprint::release();
        }
        match self.board.silent_worker(now.monotonic) {
            Some(reason) => {
                self.health.missing(parts::SILENT, reason);
                self.is_worker_silent = true;
            }
            None if self.is_worker_silent => {
                self.health.ready(parts::SILENT);
                self.is_worker_silent = false;
            }
            None => {}
        }
        if now.monotonic.duration_since(self.clock_checked) >= CHECK_CLOCK_EVERY {
            self.clock_checked = now.monotonic;
            self.clock_synced = sedge_sandbox::clock::clock_synced();
            self.status.set_without_clock(&self.broker, self.board.schedules_without_clock());
            self.status.update_sinks(&self.broker, now);
            telemetry::log::tell_left_out(now.monotonic);
        }
    }

    fn store_event(&mut self, event: store::StoreEvent) {
        match &event {
            store::StoreEvent::Blocked(blocked) => {
                if *blocked {
                    tracing::warn!("the outbox is full: nothing more is acknowledged until its sinks take some of it");
                } else {
                    tracing::info!("the outbox has room again");
                }
                self.status.set_blocked(&self.broker, *blocked);
            }
            store::StoreEvent::Failed { error } => {
                tracing::error!(error, "the disk failed: nothing is acknowledged until it works again");
                self.store_failed = true;
                self.health.missing("store", error.clone());
                self.status.set_failed(&self.broker, Some(error.clone()));
            }
            store::StoreEvent::Reopened(_) => {
                tracing::info!("the disk works again");
                self.store_failed = false;
                self.health.ready("store");
                self.status.set_failed(&self.broker, None);
            }
            store::StoreEvent::Committed { stored, .. } => self.shown.committed(stored),
            _ => {}
        }
        self.board.handle(Input::Store(event), self.now());
    }

    fn sink_event(&mut self, happened: Happened) {
        let (sink, events) = match happened {
            Happened::Answered(sink, token, answer) => {
                return self.sink(Destination::Sink(sink), SinkEvent::Answered { token, answer });
            }
            Happened::Broker(sink, events) => (sink, events),
        };
        for event in events {
            let Some(broker) = self.sinks.broker(sink) else { return };
            let event = match event {
                sedge_mqtt::Event::Connected { limits, .. } => {
                    for limit in limits.iter().filter(|limit| !broker.limits.contains(limit)) {
                        tracing::warn!(sink = broker.name, limit, "the broker of a sink has a limit");
                    }
                    broker.limits = limits;
                    if broker.log.connected(Instant::now()) {
                        tracing::info!(sink = broker.name, "connected to a sink");
                    }
                    SinkEvent::Connected
                }
                sedge_mqtt::Event::Disconnected { reason } => {
                    if broker.log.disconnected(&reason, Instant::now()) {
                        tracing::warn!(
                            sink = broker.name,
                            reason,
                            "not connected to a sink: what is to be sent there waits in the store"
                        );
                    }
                    self.give_back_at.get_or_insert(Instant::now() + FAILED);
                    SinkEvent::Disconnected
                }
                sedge_mqtt::Event::Published { token, result } => SinkEvent::Answered { token, answer: answer(result) },
                sedge_mqtt::Event::Delivery(_)
                | sedge_mqtt::Event::Subscribed { .. }
                | sedge_mqtt::Event::NotSubscribed { .. }
                | sedge_mqtt::Event::Unsubscribed { .. } => continue,
            };
            self.sink(Destination::Sink(sink), event);
        }
    }

    /// Commits are done; says goodbye to everyone.
    async fn close(mut self) -> anyhow::Result<()> {
        self.perform()?;
        self.status.offline(&self.broker);
        // The broker's last word is read before the connection is closed.
        self.broker.hold_back(false);
        // The goodbye passes through the client's queue, which needs a moment to be written.
        self.broker.close();
        self.sinks.close();
        let goodbye = async {
            let mut events = VecDeque::new();
            loop {
                self.broker_events.receive(&mut events).await;
                if events.drain(..).any(|event| matches!(event, sedge_mqtt::Event::Disconnected { .. })) {
                    break;
                }
            }
        };
        let _ = tokio::time::timeout(Duration::from_millis(300), goodbye).await;
        let _ = self.store.send(store::StoreRequest::Close);
        let closed = async {
            while let Some(event) = self.store_events.recv().await {
                if matches!(event, store::StoreEvent::Closed) {
                    break;
                }
            }
        };
        if tokio::time::timeout(Duration::from_millis(500), closed).await.is_err() {
            tracing::warn!("the store did not close in time; nothing acknowledged is lost");
        }
        if let Some(exporter) = self.exporter.take() {
            exporter.close();
        }
        self.exits.end();
        tracing::info!("ended");
        Ok(())
    }
}

async fn receive(trigger: &mut Option<HttpTrigger>) -> Request {
    match trigger {
        Some(trigger) => trigger.receive().await,
        None => std::future::pending().await,
    }
}

fn answer(result: PublishResult) -> Answer {
    match result {
        PublishResult::Accepted => Answer::Accepted,
        PublishResult::Refused(reason) => Answer::Refused(reason.into()),
        PublishResult::Declined(reason) => Answer::Declined(reason.into()),
        PublishResult::Retry(reason) => Answer::Retry { reason, after: None },
    }
}

/// Completes at the first SIGTERM or SIGINT.
fn shutdown_signal() -> anyhow::Result<impl Future<Output = ()>> {
    let mut term = signal(SignalKind::terminate()).context("failed to listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("failed to listen for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
