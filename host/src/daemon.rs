//! The composition root: builds every part, connects them, runs the loop that carries events between them, and drains.
//!
//! All waiting happens in one place, [`Daemon::serve`]. Broker, workers, store and upstream queue what they have to say;
//! each turn of the loop feeds it to the pipeline and the forwarder, which decide, and carries out what they decided.

mod broker;
mod orders;
mod pace;
mod parts;
mod status;
mod store_figures;
mod subscriptions;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::config::Config;
use crate::deploy;
use crate::footprint::Footprint;
use crate::forward::webhook::{self, Webhook};
use crate::forward::{Action, Answer, Envelope, Forwarder, Route};
use crate::manifest::Manifest;
use crate::mqtt::{self, Link, PublishResult};
use crate::pipeline::Pipeline;
use crate::store;
use crate::telemetry::{self, Health, Metrics};
use crate::time;
use orders::Orders;
use pace::Pace;
use status::Status;
use subscriptions::Subscriptions;

/// The loop turns at least this often: it tends the workers, feeds the watchdog and looks at the clock.
const TURN: Duration = Duration::from_secs(1);
/// After that long it is connected, if it can be, and starting up is over.
const STARTED: Duration = Duration::from_secs(2);
/// After that long an attempt to connect that has failed is over.
const FAILED: Duration = Duration::from_millis(200);
/// How long the daemon may take to end after it was asked to.
const DRAIN: Duration = Duration::from_millis(4000);
/// The meta key under which it is kept that the broker counts its packet ids upwards.
const META_COUNTS_UPWARDS: &str = "packet-ids-count-upwards";
/// Where Mosquitto says who it is.
const BROKER_VERSION_TOPIC: &str = "$SYS/broker/version";
/// The meta key under which the subscriptions of the session are kept.
const META_SUBSCRIPTIONS: &str = "subscriptions";

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
        daemon.serve(shutdown, reload).await
    })
}

struct Daemon {
    pipeline: Pipeline,
    forwarder: Forwarder,
    store: store::StoreHandle,
    store_events: store::StoreEvents,
    broker: Link,
    broker_events: mqtt::Events,
    upstream: Upstream,
    status: Status,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    notify: telemetry::Notifier,
    watchdog_fed: Instant,
    /// Held for as long as the daemon runs: it answers on a thread of its own.
    _http: Option<telemetry::Http>,
    store_failed: bool,
    counts_upwards_stored: bool,
    subscriptions: Subscriptions,
    orders: Orders,
    decisions: mpsc::Receiver<deploy::Action>,
    /// What the store has of them.
    subscriptions_saved: Bytes,
    clock_checked: Instant,
    /// When what only starting up, or an attempt to connect, needed is given back.
    give_back_at: Option<Instant>,
    footprint: Option<Footprint>,
}

/// Where the outbox is emptied to.
enum Upstream {
    None,
    Mqtt { link: Link, events: mqtt::Events },
    Webhook { webhook: Webhook, answers: mpsc::Receiver<(u64, Answer)> },
}

/// One thing that happened upstream.
enum UpstreamEvents {
    Mqtt(VecDeque<mqtt::Event>),
    Webhook(u64, Answer),
}

impl Upstream {
    /// What happened already, without waiting.
    fn waiting(&mut self) -> Option<UpstreamEvents> {
        match self {
            Self::None => None,
            Self::Mqtt { events, .. } => {
                let mut received = VecDeque::new();
                events.take(&mut received);
                (!received.is_empty()).then_some(UpstreamEvents::Mqtt(received))
            }
            Self::Webhook { answers, .. } => {
                answers.try_recv().ok().map(|(token, answer)| UpstreamEvents::Webhook(token, answer))
            }
        }
    }

    async fn receive(&mut self) -> UpstreamEvents {
        match self {
            Self::None => std::future::pending().await,
            Self::Mqtt { events, .. } => {
                let mut received = VecDeque::new();
                events.receive(&mut received).await;
                UpstreamEvents::Mqtt(received)
            }
            Self::Webhook { answers, .. } => match answers.recv().await {
                Some((token, answer)) => UpstreamEvents::Webhook(token, answer),
                None => std::future::pending().await,
            },
        }
    }
}

impl Daemon {
    async fn serve(mut self, shutdown: impl Future<Output = ()>, mut reload: Signal) -> anyhow::Result<()> {
        let mut shutdown = std::pin::pin!(shutdown);
        let mut from_broker = VecDeque::new();
        let mut ending: Option<Instant> = None;
        let mut pace = Pace::new(Instant::now());
        // Before the first message: what was queued for this board comes with the connection.
        self.end_turn(Instant::now());
        self.health.ready(parts::STARTING);
        self.notify.ready("waiting for the broker");
        tracing::info!(functions = self.pipeline.functions().len(), workers = self.pipeline.pool().len(), "ready");
        loop {
            let now = Instant::now();
            if let Some(deadline) = ending
                && (now >= deadline || self.pipeline.is_idle())
            {
                break;
            }
            let wake = self.wake_at(now).min(ending.unwrap_or(now + TURN));
            let taking = ending.is_none() && !self.pipeline.is_full();
            self.broker.hold_back(!taking);
            let left_over = from_broker.len();
            tokio::select! {
                biased;
                () = &mut shutdown, if ending.is_none() => {
                    tracing::info!("ending: finishing what is under way");
                    self.notify.stopping();
                    ending = Some(Instant::now() + DRAIN);
                }
                Some(()) = reload.recv() => self.reload(),
                event = self.store_events.recv() => match event {
                    Some(event) => self.store_event(event),
                    None => anyhow::bail!("the store's thread ended"),
                },
                () = self.pipeline.pool().ready() => {}
                () = self.broker_events.receive(&mut from_broker), if taking && from_broker.is_empty() => {}
                // What was left over when the pipeline was full.
                () = std::future::ready(()), if taking && !from_broker.is_empty() => {}
                Some(action) = self.decisions.recv() => self.carry_out(action, now, time::now_ms()),
                events = self.upstream.receive() => self.upstream_events(events),
                () = tokio::time::sleep_until(wake.into()) => {}
            }
            // Whatever else the store has to say belongs to this turn: fewer, larger turns cost less.
            while let Some(event) = self.store_events.try_recv() {
                self.store_event(event);
            }
            let now = Instant::now();
            let now_ms = time::now_ms();
            // Under load there is always a message, and these would never have their turn.
            while let Ok(action) = self.decisions.try_recv() {
                self.carry_out(action, now, now_ms);
            }
            if let Some(events) = self.upstream.waiting() {
                self.upstream_events(events);
            }
            let came = from_broker.range(left_over..).filter(|event| matches!(event, mqtt::Event::Delivery(_))).count();
            while let Some(event) = self.pipeline.pool().next_event() {
                self.pipeline.worker_event(event, now, now_ms);
            }
            while !self.pipeline.is_full()
                && let Some(event) = from_broker.pop_front()
            {
                self.broker_event(event, ending.is_some(), now, now_ms);
            }
            self.housekeep(now, now_ms, ending.is_some());
            self.end_turn(now);
            if let Some(pause) = pace.pause(came, self.forwarder.awaits_answers(), now) {
                // What this turn had to say to the broker leaves now.
                tokio::task::yield_now().await;
                // Blocking on purpose: the runtime would go on reading from the sockets, a message at a time.
                std::thread::sleep(pause);
                // The runtime looks at the sockets in the first of these and reads from them in the second, so that all that
                // came meanwhile is one turn, and not one for each that has something to say.
                tokio::task::yield_now().await;
                tokio::task::yield_now().await;
            }
        }
        self.close().await
    }

    fn wake_at(&self, now: Instant) -> Instant {
        let wakes = [self.pipeline.next_due(), self.forwarder.wake_at(), self.give_back_at];
        wakes.into_iter().flatten().chain([now + TURN]).min().unwrap_or(now + TURN)
    }

    /// Carries out what this turn decided. Commits go to the store before acknowledgements to the broker, but that is
    /// not what makes them safe: an acknowledgement is released by a commit that came back.
    fn end_turn(&mut self, now: Instant) {
        let turn = self.pipeline.end_turn();
        if turn.routes_changed {
            self.routes_changed();
        }
        for request in turn.requests {
            self.ask_store(request);
        }
        for token in turn.acknowledge {
            self.broker.acknowledge(token);
        }
        for number in turn.changed {
            let function = &self.pipeline.functions()[number];
            let (function, is_quarantined) = (Arc::clone(&function.name), function.is_quarantined());
            self.orders.handle.send(deploy::Request::Quarantined { function, is_quarantined });
        }
        for (function, edition, event) in turn.deployed {
            self.tell_deployed(function, edition, event);
        }
        self.status.flush(&self.broker);
        while let Some(action) = self.forwarder.poll(now) {
            match action {
                Action::Store(request) => self.ask_store(request),
                Action::Send { route, token, envelope } => self.send(route, token, envelope),
            }
        }
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

    fn send(&mut self, route: Route, token: u64, envelope: Envelope) {
        let sent = match (route, &self.upstream) {
            (Route::Local, _) => publish(&self.broker, &envelope, token),
            (Route::Upstream, Upstream::Mqtt { link, .. }) => publish(link, &envelope, token),
            (Route::Upstream, Upstream::Webhook { webhook, .. }) => {
                webhook.post(token, envelope).map_err(|webhook::Full| mqtt::Full)
            }
            (Route::Upstream, Upstream::None) => Err(mqtt::Full),
        };
        if sent.is_err() {
            self.forwarder.returned(route, token);
        }
    }

    fn housekeep(&mut self, now: Instant, now_ms: u64, ending: bool) {
        self.health.beat(now);
        if self.notify.watchdog_interval().is_some_and(|every| now.duration_since(self.watchdog_fed) >= every) {
            self.watchdog_fed = now;
            self.notify.watchdog();
        }
        if !self.store_failed && !ending {
            self.pipeline.start_due(now, now_ms);
        }
        if self.pipeline.counts_upwards() && !self.counts_upwards_stored {
            self.counts_upwards_stored = true;
            self.ask_store(store::StoreRequest::SetMeta { key: META_COUNTS_UPWARDS, value: "1".into() });
        }
        if self.give_back_at.take_if(|at| *at <= now).is_some()
            && let Some(footprint) = &self.footprint
        {
            footprint.give_back();
        }
        if now.duration_since(self.clock_checked) < TURN {
            return;
        }
        self.clock_checked = now;
        self.pipeline.set_clock_synced(time::clock_synced());
        self.pipeline.pool().tend();
        self.tidy_subscriptions();
    }

    fn store_event(&mut self, event: store::StoreEvent) {
        let now = Instant::now();
        match event {
            store::StoreEvent::Committed { batch, stored, parked } => {
                self.pipeline.committed(batch, &parked, time::now_ms());
                self.forwarder.committed(stored);
            }
            store::StoreEvent::State { id, entries } => self.pipeline.state_loaded(id, entries),
            store::StoreEvent::Outbox { stream, stored, end } => self.forwarder.loaded(stream, stored, end),
            store::StoreEvent::Gaps { through, gaps } => self.forwarder.gaps(through, gaps),
            store::StoreEvent::Parked(parked) => self.pipeline.unpark(parked, now, time::now_ms()),
            store::StoreEvent::Blocked(blocked) => {
                if blocked {
                    tracing::warn!("the outbox is full: nothing more is acknowledged until upstream takes some of it");
                } else {
                    tracing::info!("the outbox has room again");
                }
                self.status.set_blocked(&self.broker, blocked);
            }
            store::StoreEvent::Failed { error } => {
                tracing::error!(error, "the disk failed: nothing is acknowledged until it works again");
                self.store_failed = true;
                self.health.missing("store", error.clone());
                self.pipeline.store_failed();
                self.status.set_failed(&self.broker, Some(error));
            }
            store::StoreEvent::Reopened(recovered) => {
                tracing::info!("the disk works again");
                self.store_failed = false;
                self.health.ready("store");
                self.forwarder.reopened(&recovered);
                self.counts_upwards_stored = parts::meta(&recovered, META_COUNTS_UPWARDS).is_some();
                self.pipeline.reopened(*recovered, now, time::now_ms());
                self.status.set_failed(&self.broker, None);
                // What was delivered meanwhile was dropped unacknowledged; a new connection makes the broker send it again.
                self.broker.reconnect();
            }
            store::StoreEvent::Closed => {}
        }
    }

    fn upstream_events(&mut self, events: UpstreamEvents) {
        let now = Instant::now();
        match events {
            UpstreamEvents::Webhook(token, result) => {
                self.forwarder.answered(Route::Upstream, token, result, now);
            }
            UpstreamEvents::Mqtt(events) => {
                for event in events {
                    match event {
                        mqtt::Event::Connected { .. } => {
                            tracing::info!("connected upstream");
                            self.forwarder.connected(Route::Upstream);
                        }
                        mqtt::Event::Disconnected { reason } => {
                            tracing::warn!(reason, "not connected upstream: what is to be sent waits in the store");
                            self.forwarder.disconnected(Route::Upstream, now);
                            self.give_back_at.get_or_insert(now + FAILED);
                        }
                        mqtt::Event::Published { token, result } => {
                            self.forwarder.answered(Route::Upstream, token, answer(result), now);
                        }
                        mqtt::Event::Delivery(_)
                        | mqtt::Event::Subscribed { .. }
                        | mqtt::Event::NotSubscribed { .. }
                        | mqtt::Event::Unsubscribed { .. } => {}
                    }
                }
            }
        }
    }

    /// Commits are done; says goodbye to everyone.
    async fn close(mut self) -> anyhow::Result<()> {
        self.end_turn(Instant::now());
        self.status.offline(&self.broker);
        // The broker's last word is read before the connection is closed.
        self.broker.hold_back(false);
        // The goodbye passes through the client's queue, which needs a moment to be written.
        self.broker.close();
        if let Upstream::Mqtt { link, .. } = &self.upstream {
            link.close();
        }
        let goodbye = async {
            let mut events = VecDeque::new();
            loop {
                self.broker_events.receive(&mut events).await;
                if events.drain(..).any(|event| matches!(event, mqtt::Event::Disconnected { .. })) {
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
        tracing::info!("ended");
        Ok(())
    }
}

fn publish(link: &Link, envelope: &Envelope, token: u64) -> Result<(), mqtt::Full> {
    let properties: Vec<(&str, &str)> =
        envelope.properties.iter().map(|(name, value)| (*name, value.as_ref())).collect();
    let publication = mqtt::Publication {
        topic: &envelope.topic,
        payload: envelope.payload.clone(),
        content_type: envelope.content_type.as_deref(),
        properties: &properties,
        retain: envelope.retain,
    };
    link.publish(publication, token)
}

fn answer(result: PublishResult) -> Answer {
    match result {
        PublishResult::Taken => Answer::Taken,
        PublishResult::Refused(reason) => Answer::Refused(reason.into()),
        PublishResult::Declined(reason) => Answer::Declined(reason.into()),
        PublishResult::Retry(reason) => Answer::Again { reason, after: None },
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
