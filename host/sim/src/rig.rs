//! A board whose surroundings do only what a test tells them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::disk::Disk;
use crate::worker::Worker;
use bytes::Bytes;
use sedge_core::board::{
    AckToken, Board, BoardConfig, BrokerEvent, Budget, CautionConfig, Crash, Delivery, Effect, FollowedRun, Input,
    PauseConfig, RecordEvent, RecorderConfig, SinkRoute, WorkerConfig,
};
use sedge_core::deploy::TrialEvent;
use sedge_core::forward;
use sedge_core::manifest::{Allow, Build, CatchUp, Limits, Manifest, StateFull, StateScope, Trial};
use sedge_core::message::{Digest, Failure, PublishToken};
use sedge_core::metrics::Metrics;
use sedge_core::request::{Method, Request, RequestId, RequestPath, Response};
use sedge_core::settings::{Given, Layer, Origin, Overlay};
use sedge_core::store::{self, Parked};
use sedge_core::stream::SinkId;
use sedge_core::time::Now;
use sedge_core::trace::Span;
use sedge_core::version::Version;

pub const RECEIVE_MAXIMUM: u16 = 20;
const WORKERS: usize = 2;
/// Room for a dozen jobs at the workers.
const BUDGET: Budget = Budget::new(4 << 20);

pub struct Rig {
    pub board: Board,
    pub disk: Disk,
    pub metrics: Arc<Metrics>,
    pub workers: Vec<Worker>,
    /// Asked of the store and not answered.
    pub requests: VecDeque<store::StoreRequest>,
    pub acknowledged: Vec<AckToken>,
    /// Answers to requests, by their numbers, in order.
    pub responses: Vec<(u64, Response)>,
    /// Functions that were paused or released, in order.
    pub paused: Vec<bool>,
    pub deployed: Vec<(u32, TrialEvent)>,
    /// Changes of settings that were reported as in force.
    pub in_force: Vec<u64>,
    /// What became of recordings.
    pub recorded: Vec<RecordEvent>,
    /// Runs for views.
    pub followed: Vec<FollowedRun>,
    /// What was to be sent.
    pub sends: Vec<(PublishToken, forward::Envelope)>,
    /// Spans that have ended.
    pub spans: Vec<Span>,
    /// The message that the board takes alone.
    pub alone: Option<u64>,
    pub connection: u32,
    edition: u32,
    pub now: Instant,
    /// What the wall clock shows.
    pub unix_ms: u64,
    pub synced: bool,
}

pub fn manifest(name: &str, subscribe: &str, state: StateScope) -> Manifest {
    Manifest {
        name: name.into(),
        version: "1.0.0".into(),
        serial: 1,
        subscribe: vec![subscribe.parse().expect("a filter")],
        except: Vec::new(),
        http: Vec::new(),
        http_headers: Vec::new(),
        sink: None,
        state,
        state_full: StateFull::Fail,
        every: None,
        silence: None,
        at: BTreeMap::new(),
        zone: None,
        catch_up: CatchUp::default(),
        component: None,
        allow: Allow { publish: vec!["derived/#".parse().expect("a filter")], ..Allow::default() },
        limits: Limits::default(),
        trial: Trial::default(),
        config: BTreeMap::from([("n".to_owned(), "0".to_owned())]),
        settings: BTreeMap::new(),
        build: Build::default(),
    }
}

/// Wakes the function by `POST /<name>/{n}` too.
pub fn with_requests(manifest: Manifest) -> Manifest {
    let route = format!("POST /{}/{{n}}", manifest.name).parse().expect("a route");
    Manifest { http: vec![route], ..manifest }
}

/// A request over HTTP. `target`: method and path.
pub fn request(id: u64, target: &str, body: &str, headers: &[(&str, &str)]) -> Request {
    let (method, path) = target.split_once(' ').expect("a method and a path");
    Request {
        id: RequestId(id),
        method: Method::parse(method).expect("a method"),
        path: RequestPath::parse(path).expect("a path"),
        query: Vec::new(),
        headers: headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        body: Bytes::copy_from_slice(body.as_bytes()),
    }
}

/// Lays a value over the setting `n`.
pub fn overlay(number: u64) -> Overlay {
    let given = Given { text: number.to_string().into(), is_secret: false };
    Overlay::new([(Origin::Board, Layer { all: BTreeMap::from([("n".to_owned(), given)]), ..Layer::default() })])
}

/// Sends alerts and forwards to each of these sinks.
pub fn recorder(sinks: &[(SinkId, &str)]) -> RecorderConfig {
    let route =
        |(id, name): &(SinkId, &str)| SinkRoute { id: *id, name: (*name).into(), topic_prefix: "up/board/".into() };
    let all: Vec<SinkId> = sinks.iter().map(|(id, _)| *id).collect();
    RecorderConfig {
        node: "board".into(),
        base_topic: "sedge".into(),
        sinks: sinks.iter().map(route).collect(),
        alerts: all.clone(),
        forwards: all,
        fold: Duration::from_secs(60),
        keeps_history: true,
    }
}

pub fn config() -> BoardConfig {
    BoardConfig {
        recorder: recorder(&[(SinkId::UPSTREAM, "upstream")]),
        workers: WorkerConfig { count: WORKERS, one_each: false, max_waiting: 1000 },
        pause: PauseConfig { after: 3, first: Duration::from_secs(10), max: Duration::from_secs(40) },
        caution: CautionConfig::default(),
        receive_maximum: RECEIVE_MAXIMUM,
        share_group: None,
        max_payload_bytes: 2000,
        max_hops: 4,
        max_fan_out: 100,
        max_wakes: 100,
        retry_attempts: 2,
        retry_max_delay: Duration::from_secs(60),
        parked_max_bytes: BUDGET.parked(),
        state_max_bytes: 1 << 20,
        budget: BUDGET,
        trace_sample: 0.0,
        seed: 7,
    }
}

/// A forwarder with an upstream over MQTT.
pub fn forward_config(in_flight: usize) -> forward::ForwardConfig {
    forward::ForwardConfig {
        node: "board".into(),
        local_in_flight: in_flight,
        sinks: vec![lane("upstream", SinkId::UPSTREAM, in_flight)],
        home: Some(SinkId::UPSTREAM),
        window_bytes: BUDGET.window(),
        seed: 7,
    }
}

/// A sink over MQTT.
pub fn lane(name: &str, id: SinkId, in_flight: usize) -> forward::SinkLane {
    forward::SinkLane {
        id,
        name: name.into(),
        topic_prefix: "up/board/".into(),
        in_flight,
        answer_timeout: Some(Duration::from_secs(30)),
        backoff_max: Duration::from_secs(60),
        patience: Some(Duration::from_secs(300)),
        has_connection: true,
    }
}

impl Rig {
    pub fn new(manifests: Vec<Manifest>) -> Self {
        Self::over(manifests, Disk::default())
    }

    /// As after a restart.
    pub fn over(manifests: Vec<Manifest>, disk: Disk) -> Self {
        Self::after(manifests, disk, Vec::new())
    }

    /// With other sinks than `upstream`.
    pub fn with_sinks(manifests: Vec<Manifest>, recorder: RecorderConfig, sinks: Vec<forward::SinkLane>) -> Self {
        let forward = forward::ForwardConfig { sinks, ..forward_config(64) };
        Self::build(manifests, Disk::default(), BoardConfig { recorder, ..config() }, forward, 0)
    }

    /// With a configuration of its own.
    pub fn configured(manifests: Vec<Manifest>, disk: Disk, config: BoardConfig) -> Self {
        Self::build(manifests, disk, config, forward_config(64), 0)
    }

    /// As after these ends.
    pub fn after(manifests: Vec<Manifest>, disk: Disk, crashes: Vec<Crash>) -> Self {
        Self::at(manifests, disk, crashes, 0)
    }

    /// As after these ends, at a time of the wall clock.
    pub fn at(manifests: Vec<Manifest>, disk: Disk, crashes: Vec<Crash>, unix_ms: u64) -> Self {
        let caution = CautionConfig { crashes, uptime_ms: 60_000 };
        Self::build(manifests, disk, BoardConfig { caution, ..config() }, forward_config(64), unix_ms)
    }

    fn build(
        manifests: Vec<Manifest>,
        disk: Disk,
        config: BoardConfig,
        forward: forward::ForwardConfig,
        unix_ms: u64,
    ) -> Self {
        let instant = Instant::now();
        let now = Now { monotonic: instant, unix_ms, synced: true };
        let metrics = Arc::new(Metrics::default());
        let board = Board::new(config, forward, &disk.recovered(), Arc::clone(&metrics), now);
        let mut rig = Self {
            board,
            disk: Disk::default(),
            metrics,
            workers: (0..WORKERS).map(|_| Worker::default()).collect(),
            requests: VecDeque::new(),
            acknowledged: Vec::new(),
            responses: Vec::new(),
            paused: Vec::new(),
            deployed: Vec::new(),
            in_force: Vec::new(),
            recorded: Vec::new(),
            followed: Vec::new(),
            sends: Vec::new(),
            spans: Vec::new(),
            alone: None,
            connection: 1,
            edition: 0,
            now: instant,
            unix_ms,
            synced: true,
        };
        for manifest in manifests {
            rig.deploy(manifest, "derived/x", None);
        }
        rig.board.restore(disk.recovered(), now);
        rig.disk = disk;
        rig.perform();
        rig
    }

    pub fn handle(&mut self, input: Input) {
        let now = Now { monotonic: self.now, unix_ms: self.unix_ms, synced: self.synced };
        self.board.handle(input, now);
    }

    /// Puts a version into service. Returns its edition. `script`: see [`crate::worker`].
    pub fn deploy(&mut self, manifest: Manifest, script: &str, trial: Option<Trial>) -> u32 {
        self.edition += 1;
        let version = Version::scripted(self.edition, manifest, Digest([self.edition as u8; 32]), script, trial);
        self.handle(Input::Deploy(version.into()));
        self.edition
    }

    /// Puts a version into service that has served before without having run the messages of its trial.
    pub fn resume(&mut self, manifest: Manifest, script: &str, trial: Trial) -> u32 {
        self.edition += 1;
        let digest = Digest([self.edition as u8; 32]);
        let version = Version::scripted(self.edition, manifest, digest, script, Some(trial));
        self.handle(Input::Deploy(Version { is_resumed: true, ..version }.into()));
        self.edition
    }

    /// Lays the number of the change over the setting `n`.
    pub fn set(&mut self, function: &str, change: u64) {
        self.handle(Input::Settings { function: function.into(), change, overlay: overlay(change) });
    }

    pub fn receive(&mut self, topic: &str, payload: &str, packet_id: u16, dup: bool) {
        self.receive_with(topic, payload, packet_id, dup, &[]);
    }

    pub fn receive_with(&mut self, topic: &str, payload: &str, packet_id: u16, dup: bool, properties: &[(&str, &str)]) {
        let delivery = Delivery {
            topic: Bytes::copy_from_slice(topic.as_bytes()),
            payload: Bytes::copy_from_slice(payload.as_bytes()),
            content_type: None,
            properties: properties.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            response_topic: None,
            correlation_data: None,
            subscriptions: Vec::new(),
            dup,
            retained: false,
            ack: (packet_id > 0).then_some(AckToken { packet_id, connection: self.connection }),
        };
        self.handle(Input::Broker(BrokerEvent::Delivery(delivery)));
    }

    /// A request over HTTP: `POST /f/1`.
    pub fn request(&mut self, id: u64, target: &str, body: &str, headers: &[(&str, &str)]) {
        self.handle(Input::Request(request(id, target, body, headers)));
    }

    /// Carries out what the board decided.
    pub fn perform(&mut self) {
        while let Some(effect) = self.board.poll() {
            match effect {
                Effect::Acknowledge(token) => self.acknowledged.push(token),
                Effect::Respond { id, response } => self.responses.push((id.0, response)),
                Effect::Store(
                    store::StoreRequest::Commit { .. }
                    | store::StoreRequest::LoadState { .. }
                    | store::StoreRequest::LoadResponse { .. }
                    | store::StoreRequest::ForgetState { .. },
                ) => {
                    let Effect::Store(request) = effect else { unreachable!("matched above") };
                    self.requests.push_back(request);
                }
                Effect::Worker { worker, life, command } => {
                    // Functions may get workers of their own.
                    if self.workers.len() <= worker.index() {
                        self.workers.resize_with(worker.index() + 1, Worker::default);
                    }
                    self.workers[worker.index()].apply(life, command);
                }
                Effect::Paused { is_paused, .. } => self.paused.push(is_paused),
                Effect::Deployed { edition, event, .. } => self.deployed.push((edition, event)),
                Effect::Abort { invariant } => panic!("{invariant}"),
                Effect::Alone(message) => self.alone = message,
                Effect::SettingsInForce { change, .. } => self.in_force.push(change),
                Effect::Record { event, .. } => self.recorded.push(event),
                Effect::Follow(run) => self.followed.push(*run),
                Effect::Traced(spans) => self.spans.extend(spans),
                Effect::CautionEnded => {}
                Effect::Send { token, envelope, .. } => self.sends.push((token, envelope)),
                Effect::Store(_) | Effect::Subscribe { .. } | Effect::Unsubscribe { .. } | Effect::Reconnect(_) => {}
            }
        }
    }

    /// Lets the workers do everything that they were given, and tells the board. `false`: there was nothing.
    pub fn work(&mut self) -> bool {
        let mut any = false;
        for number in 0..self.workers.len() {
            while self.workers[number].step() {}
            let life = self.workers[number].life();
            while let Some(event) = self.workers[number].say() {
                any = true;
                self.handle(Input::Worker { worker: sedge_core::board::WorkerNo(number as u32), life, event });
            }
        }
        self.perform();
        any
    }

    /// Lets the store answer the oldest request.
    pub fn answer(&mut self) {
        match self.requests.pop_front() {
            Some(store::StoreRequest::Commit { batch, commits }) => {
                let parked: Vec<Parked> = commits.into_iter().flat_map(|it| self.disk.commit(it)).collect();
                let letters = self.disk.take_letters();
                let stored = Vec::new();
                self.handle(Input::Store(store::StoreEvent::Committed { batch, stored, parked, letters }));
            }
            Some(store::StoreRequest::LoadState { id, scope }) => {
                let entries = self.disk.entries(&scope);
                self.handle(Input::Store(store::StoreEvent::State { id, entries }));
            }
            Some(store::StoreRequest::LoadResponse { request, message_id }) => {
                let response = self.disk.response(&message_id);
                self.handle(Input::Store(store::StoreEvent::Response { request, response }));
            }
            Some(store::StoreRequest::ForgetState { function, topics }) => self.disk.forget_state(&function, &topics),
            None => {}
            Some(other) => panic!("{other:?}"),
        }
    }

    /// The disk fails, works again with what it has, and the broker makes a new connection.
    pub fn fail_disk(&mut self) {
        self.handle(Input::Store(store::StoreEvent::Failed { error: "test".into() }));
        self.requests.clear();
        self.perform();
        let recovered = Box::new(self.disk.recovered());
        self.handle(Input::Store(store::StoreEvent::Reopened(recovered)));
        self.reconnect();
    }

    pub fn loads(&self) -> usize {
        self.requests.iter().filter(|it| matches!(it, store::StoreRequest::LoadState { .. })).count()
    }

    /// Messages with an effect whose commit was asked for.
    pub fn commits(&self) -> usize {
        let count = |it: &store::StoreRequest| match it {
            store::StoreRequest::Commit { commits, .. } => {
                commits.iter().filter(|it| !it.records.is_empty() || !it.park.is_empty()).count()
            }
            _ => 0,
        };
        self.requests.iter().map(count).sum()
    }

    /// Lets the workers work, but not the store.
    pub fn work_until(&mut self, done: impl Fn(&Self) -> bool) {
        self.perform();
        while !done(self) {
            assert!(self.work(), "it never came to that");
        }
    }

    /// Until nothing is under way.
    pub fn settle(&mut self) {
        for _ in 0..1000 {
            self.perform();
            while !self.requests.is_empty() {
                self.answer();
                self.perform();
            }
            self.handle(Input::Timeout);
            self.perform();
            let worked = self.work();
            if !worked && self.board.is_idle() && self.requests.is_empty() {
                return;
            }
        }
        panic!("it never comes to an end: {:?} {}", self.requests, self.board.describe());
    }

    pub fn reconnect(&mut self) {
        self.handle(Input::Broker(BrokerEvent::Disconnected));
        self.acknowledged.clear();
        self.connection += 1;
        self.handle(Input::Broker(BrokerEvent::Connected { session_present: true }));
        self.perform();
    }

    pub fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }

    /// Time passes on both clocks.
    pub fn pass_by_the_clock(&mut self, seconds: u64) {
        self.pass(seconds);
        self.unix_ms += seconds * 1000;
    }

    pub fn acknowledged(&self) -> Vec<u16> {
        self.acknowledged.iter().map(|token| token.packet_id).collect()
    }

    pub fn is_paused(&self) -> bool {
        self.paused.last().copied().unwrap_or(false)
    }

    /// Topics that are paused for a function.
    pub fn paused_topics(&self, function: &str) -> u64 {
        self.metrics.function(&function.into()).paused_topics.get()
    }

    pub fn held_bytes(&self, function: &str) -> u64 {
        self.metrics.function(&function.into()).held_bytes.get()
    }

    pub fn next_due(&self) -> Option<Instant> {
        self.board.poll_timeout()
    }

    pub fn has_said(&self, edition: u32, event: &TrialEvent) -> bool {
        self.deployed.iter().any(|(number, said)| *number == edition && said == event)
    }

    pub fn until_ready(&mut self, edition: u32) {
        self.until_said(edition, |event| *event == TrialEvent::Ready);
    }

    pub fn until_said(&mut self, edition: u32, event: impl Fn(&TrialEvent) -> bool) {
        for _ in 0..1000 {
            self.perform();
            if self.deployed.iter().any(|(number, said)| *number == edition && event(said)) {
                return;
            }
            self.answer();
            self.work();
        }
        panic!("it never came to that");
    }

    pub fn failure(&self, edition: u32) -> Option<&Failure> {
        self.deployed.iter().find_map(|(number, said)| match said {
            TrialEvent::Failed { failure } if *number == edition => Some(failure),
            _ => None,
        })
    }

    /// What was recorded, as the version that did it and the payload.
    pub fn ran(&self) -> Vec<(char, &str)> {
        let version = |topic: &str| topic.chars().last().expect("a topic");
        self.disk.records.iter().map(|it| (version(&it.topic), text(&it.payload))).collect()
    }
}

fn text(payload: &[u8]) -> &str {
    str::from_utf8(payload).expect("payloads are text")
}
