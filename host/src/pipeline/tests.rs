//! The spine with real workers, and a broker and a store that are lists.

mod deployment;
mod model;

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use tokio::task::LocalSet;

use super::*;
use crate::config::Isolate;
use crate::forward::HOPS;
use crate::manifest::{Allow, Limits, Manifest, StateScope, Trial};
use crate::message::Digest;
use crate::router::Interest;
use crate::sandbox::testing::{INCREMENT, LIMITS, NOTHING, OPEN, code};
use crate::store::{DeadLetter, Fingerprint, LoadId, Parked, ParkedId, Record, Stream};
use crate::worker::permits::Permits;
use crate::worker::pool::Loadable;

/// The first letter of the payload says what the function does. What it publishes is the payload.
fn function() -> Bytes {
    version("derived/x", "")
}

/// The same with another topic, of nine bytes, and one letter at which it traps.
fn version(topic: &str, traps_at: &str) -> Bytes {
    let items = format!(
        r#"{OPEN} {INCREMENT}
        (data (i32.const 900) "n")
        (data (i32.const 2000) "{topic}")
        (data (i32.const 2016) "derived/#")
        (data (i32.const 2032) "elsewhere")
        (func $publish (param $topic i32) (param $payload i32) (param $length i32) (result i32)
            (i32.store (i32.const 49152) (i32.const 2))
            (i32.store (i32.const 49160) (local.get $topic)) (i32.store (i32.const 49164) (i32.const 9))
            (i32.store (i32.const 49168) (local.get $payload)) (i32.store (i32.const 49172) (local.get $length))
            (i32.store (i32.const 24) (i32.const 49152)) (i32.store (i32.const 28) (i32.const 1))
            (i32.const 16))
        (func $alert (result i32)
            (i32.store (i32.const 49160) (i32.const 900)) (i32.store (i32.const 49164) (i32.const 1))
            (i32.store (i32.const 24) (i32.const 49152)) (i32.store (i32.const 28) (i32.const 1))
            (i32.const 16))
        (func $count (call $open (i32.const 0) (i32.const 0) (i32.const 1000))
            (call $increment (i32.load (i32.const 1004)) (i32.const 900) (i32.const 1) (i64.const 1) (i32.const 1000)))
        (func $retry (result i32)
            (i32.store (i32.const 16) (i32.const 1)) (i32.store (i32.const 24) (i32.const 1))
            (i64.store (i32.const 32) (i64.const 1000)) (i32.const 16))
        (func $reject (result i32) (i32.store (i32.const 16) (i32.const 1)) (i32.const 16))"#
    );
    let does = |letter: char, what: &str| {
        format!("(if (i32.eq (local.get $n) (i32.const {})) (then {what} (return)))", letter as u32)
    };
    let publish =
        |topic: u32| format!("(call $publish (i32.const {topic}) (local.get $payload) (local.get $payload-len))");
    let branches = [
        traps_at.chars().map(|letter| does(letter, "unreachable")).collect(),
        does('o', &publish(2000)),
        does('#', &publish(2016)),
        does('e', &publish(2032)),
        does('c', &format!("(call $count) {}", publish(2000))),
        does('E', &format!("(call $count) {}", publish(2032))),
        does('a', "(call $alert)"),
        does('r', "(call $reject)"),
        does('x', "unreachable"),
        does(
            't',
            &format!(
                "(if (i32.eq (local.get $attempt) (i32.const 1)) (then (return (call $retry)))) {}",
                publish(2000)
            ),
        ),
        does('T', "(call $retry)"),
    ];
    code(&items, &format!("(local.set $n (i32.load8_u (local.get $payload))) {} {NOTHING}", branches.concat()))
}

fn manifest(name: &str, subscribe: &str, state: StateScope) -> Manifest {
    Manifest {
        name: name.into(),
        version: "1.0.0".into(),
        serial: 1,
        subscribe: vec![subscribe.parse().unwrap()],
        state,
        every: None,
        component: None,
        allow: Allow { publish: vec!["derived/#".parse().unwrap()], ..Allow::default() },
        limits: Limits::default(),
        trial: Trial::default(),
        config: BTreeMap::new(),
    }
}

const RECEIVE_MAXIMUM: u16 = 20;

fn settings() -> Settings {
    Settings {
        origin: Origin {
            node: "board".into(),
            base_topic: "sedge".into(),
            has_upstream: true,
            fold: Duration::from_secs(60),
        },
        receive_maximum: RECEIVE_MAXIMUM,
        max_payload_bytes: 1000,
        max_hops: 4,
        retry_attempts: 2,
        retry_max_delay: Duration::from_secs(60),
        parked_max_bytes: 1 << 20,
        quarantine: QuarantineSettings { after: 3, first: Duration::from_secs(10), max: Duration::from_secs(40) },
    }
}

/// What the store holds.
#[derive(Default)]
struct Disk {
    records: Vec<Record>,
    dead_letters: Vec<DeadLetter>,
    state: HashMap<Scope, BTreeMap<Box<str>, Bytes>>,
    parked: BTreeMap<ParkedId, Parked>,
    last_parked: u64,
    window: Vec<Fingerprint>,
}

impl Disk {
    fn commit(&mut self, commit: Commit) -> Vec<Parked> {
        self.window.extend(commit.delivery);
        self.records.extend(commit.records);
        self.dead_letters.extend(commit.dead_letters);
        for (scope, writes) in commit.state {
            let entries = self.state.entry(scope).or_default();
            for write in writes {
                match write.value {
                    Some(value) => drop(entries.insert(write.key, value)),
                    None => drop(entries.remove(&write.key)),
                }
            }
        }
        for id in commit.unpark {
            assert!(self.parked.remove(&id).is_some(), "{id:?} is not parked");
        }
        let numbered = commit.park.into_iter().map(|parked| {
            self.last_parked += u64::from(parked.id == ParkedId::NEW);
            let id = if parked.id == ParkedId::NEW { ParkedId(self.last_parked) } else { parked.id };
            let parked = Parked { id, ..parked };
            self.parked.insert(parked.id, parked.clone());
            parked
        });
        numbered.collect()
    }

    fn entries(&self, scope: &Scope) -> Vec<(Box<str>, Bytes)> {
        let entries = self.state.get(scope).into_iter().flatten();
        entries.map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    fn recovered(&self) -> store::Recovered {
        store::Recovered {
            window: self.window.clone(),
            parked: self.parked.values().cloned().collect(),
            ..store::Recovered::default()
        }
    }

    fn payloads(&self) -> Vec<&str> {
        self.records.iter().map(|record| str::from_utf8(&record.payload).unwrap()).collect()
    }

    fn reasons(&self) -> Vec<&str> {
        self.dead_letters.iter().map(|letter| letter.failure.code.as_str()).collect()
    }

    /// The counter of a function.
    fn count(&self, function: &str, topic: Option<&str>) -> u64 {
        let scope = Scope { function: function.into(), topic: topic.map(Into::into) };
        let value = self.state.get(&scope).and_then(|entries| entries.get("n"));
        value.map_or(0, |value| str::from_utf8(value).unwrap().parse().unwrap())
    }
}

struct Spine {
    pipeline: Pipeline,
    disk: Disk,
    /// Asked of the store, and not answered yet.
    requests: VecDeque<store::StoreRequest>,
    acknowledged: Vec<AckToken>,
    changed: Vec<usize>,
    deployed: Vec<(u32, Deployed)>,
    connection: u32,
    edition: u32,
    now: Instant,
}

impl Spine {
    fn new(manifests: Vec<Manifest>) -> Self {
        Self::over(manifests, Disk::default())
    }

    /// As after a restart.
    fn over(manifests: Vec<Manifest>, disk: Disk) -> Self {
        let now = Instant::now();
        let pool_settings = pool::Settings {
            isolate: Isolate::Thread,
            count: 2,
            state_cache_bytes: 1 << 20,
            memory_bytes: 0,
            max_timeout: Duration::from_secs(60),
        };
        let pool = Pool::start(pool_settings, Vec::new()).unwrap();
        let mut spine = Self {
            pipeline: Pipeline::new(settings(), pool, Arc::new(Metrics::new())),
            disk: Disk::default(),
            requests: VecDeque::new(),
            acknowledged: Vec::new(),
            changed: Vec::new(),
            deployed: Vec::new(),
            connection: 1,
            edition: 0,
            now,
        };
        for manifest in manifests {
            spine.deploy(manifest, function(), None);
        }
        spine.pipeline.restore(disk.recovered(), true, now, 0);
        spine.disk = disk;
        spine.end_turn();
        spine
    }

    /// Puts a version into service, and says which edition it is.
    fn deploy(&mut self, manifest: Manifest, code: Bytes, trial: Option<Trial>) -> u32 {
        self.edition += 1;
        let loadable = Loadable {
            number: 0,
            edition: self.edition,
            name: Arc::clone(&manifest.name),
            limits: LIMITS,
            settings: Vec::new(),
            permits: Permits {
                base_topic: "sedge".into(),
                publish: manifest.allow.publish.clone(),
                grants: crate::sandbox::Grants::default(),
            },
            code: code.into(),
        };
        let digest = Digest([self.edition as u8; 32]);
        let deployment = Deployment { digest, loadable, trial, manifest: manifest.into() };
        self.pipeline.deploy(deployment, self.now);
        self.edition
    }

    fn receive(&mut self, topic: &str, payload: &str, packet_id: u16, dup: bool) {
        self.receive_with(topic, payload, packet_id, dup, &[]);
    }

    fn receive_with(&mut self, topic: &str, payload: &str, packet_id: u16, dup: bool, properties: &[(&str, &str)]) {
        let delivery = Delivery {
            topic: Bytes::copy_from_slice(topic.as_bytes()),
            payload: Bytes::copy_from_slice(payload.as_bytes()),
            content_type: None,
            properties: properties.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            subscriptions: Vec::new(),
            dup,
            retained: false,
            ack: (packet_id > 0).then_some(AckToken { packet_id, connection: self.connection }),
        };
        self.pipeline.deliver(delivery, self.now, 0);
    }

    fn end_turn(&mut self) {
        let turn = self.pipeline.end_turn();
        if turn.routes_changed {
            let functions = self.pipeline.functions().iter().enumerate().filter(|(_, it)| it.is_routed());
            let interest =
                |(function, it): (usize, &Function)| Interest { function, wanted: it.wanted(), served_by: it.wanted() };
            let router = Router::new(functions.map(interest).collect());
            self.pipeline.set_router(router);
        }
        self.deployed.extend(turn.deployed.into_iter().map(|(_, edition, event)| (edition, event)));
        self.requests.extend(turn.requests);
        self.acknowledged.extend(turn.acknowledge);
        self.changed.extend(turn.changed);
    }

    /// Takes what the workers say next. `false` if they say nothing for a while.
    async fn hear(&mut self, patience: Duration) -> bool {
        let heard = tokio::time::timeout(patience, self.pipeline.pool().ready()).await.is_ok();
        while let Some(event) = self.pipeline.pool().next_event() {
            self.pipeline.worker_event(event, self.now, 0);
        }
        heard
    }

    /// Lets the store answer the oldest request.
    fn answer(&mut self) {
        match self.requests.pop_front() {
            Some(store::StoreRequest::Commit { batch, commits }) => {
                let parked: Vec<Parked> = commits.into_iter().flat_map(|it| self.disk.commit(it)).collect();
                self.pipeline.committed(batch, &parked, 0);
            }
            Some(store::StoreRequest::LoadState { id, scope }) => {
                self.pipeline.state_loaded(id, self.disk.entries(&scope));
            }
            None => {}
            Some(other) => panic!("{other:?}"),
        }
    }

    fn loads(&self) -> usize {
        self.requests.iter().filter(|it| matches!(it, store::StoreRequest::LoadState { .. })).count()
    }

    /// Until the spine has made these many commits, or loads, that the store has not answered.
    async fn until(&mut self, done: impl Fn(&Self) -> bool) {
        let started = Instant::now();
        self.end_turn();
        while !done(self) {
            assert!(started.elapsed() < Duration::from_secs(60), "it never came to that");
            self.hear(Duration::from_millis(100)).await;
            self.end_turn();
        }
    }

    /// Until nothing is under way any more.
    async fn settle(&mut self) {
        let started = Instant::now();
        loop {
            self.end_turn();
            while !self.requests.is_empty() {
                self.answer();
                self.end_turn();
            }
            self.pipeline.start_due(self.now, 0);
            self.end_turn();
            if self.pipeline.is_idle() && self.requests.is_empty() {
                return;
            }
            assert!(started.elapsed() < Duration::from_secs(20), "it never comes to an end: {}", self.pipeline.state());
            self.hear(Duration::from_millis(100)).await;
        }
    }

    fn reconnect(&mut self) {
        self.pipeline.disconnected();
        self.acknowledged.clear();
        self.connection += 1;
    }

    fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }

    fn acknowledged(&self) -> Vec<u16> {
        self.acknowledged.iter().map(|token| token.packet_id).collect()
    }
}

fn check<F: Future<Output = ()>>(test: impl FnOnce() -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async { test().await });
}

fn one() -> Vec<Manifest> {
    vec![manifest("f", "t/#", StateScope::None)]
}

fn one_with_state() -> Vec<Manifest> {
    vec![manifest("f", "t/#", StateScope::Topic)]
}

#[test]
fn acknowledgements_follow_the_commit_in_the_order_of_receipt() {
    check(|| async {
        let mut spine = Spine::new(one());
        spine.receive("t/1", "o1", 1, false);
        // Nothing comes of this one, but it is not its turn.
        spine.receive("t/2", "-", 2, false);
        spine.receive("t/3", "o3", 3, false);
        spine
            .until(|it| {
                it.pipeline.batch_units.is_empty() && it.pipeline.committing.iter().flat_map(|it| &it.1).count() == 2
            })
            .await;
        assert_eq!(spine.acknowledged(), [0; 0], "before the commit");
        assert!(spine.disk.records.is_empty());
        spine.settle().await;
        assert_eq!(spine.acknowledged(), [1, 2, 3]);
        let mut payloads = spine.disk.payloads();
        payloads.sort_unstable();
        assert_eq!(payloads, ["o1", "o3"]);
    });
}

#[test]
fn what_has_no_effect_costs_no_commit() {
    check(|| async {
        let mut spine = Spine::new(one());
        spine.receive("t/1", "-", 1, false);
        spine.receive("elsewhere", "o", 2, false);
        spine.receive("t/#", "o", 3, false);
        spine.until(|it| it.pipeline.is_idle()).await;
        assert_eq!(spine.acknowledged(), [1, 2, 3]);
        assert!(spine.requests.is_empty());
        // Their fingerprints go along with the next commit.
        spine.receive("t/1", "o", 4, false);
        spine.settle().await;
        let ids: Vec<u16> = spine.disk.window.iter().map(|it| it.packet_id).collect();
        assert_eq!(ids.len(), 4, "{ids:?}");
    });
}

#[test]
fn qos_0_is_recorded_and_not_acknowledged() {
    check(|| async {
        let mut spine = Spine::new(one());
        spine.receive("t/1", "o", 0, false);
        spine.settle().await;
        assert_eq!((spine.disk.payloads(), spine.acknowledged().len()), (vec!["o"], 0));
    });
}

#[test]
fn a_message_that_comes_again_runs_once() {
    check(|| async {
        let mut spine = Spine::new(one_with_state());
        // The first waits for its state, so the second, which is committed, cannot be acknowledged.
        spine.receive("t/1", "c1", 1, false);
        spine.receive("t/2", "c2", 2, false);
        spine.until(|it| it.loads() == 2).await;
        let first = spine.requests.pop_front().unwrap();
        let second_is_first =
            matches!(&first, store::StoreRequest::LoadState { scope, .. } if scope.topic.as_deref() == Some("t/2"));
        let held = if second_is_first { spine.requests.pop_front().unwrap() } else { first };
        if second_is_first {
            spine.requests.push_front(store::StoreRequest::LoadState {
                id: LoadId(1),
                scope: Scope { function: "f".into(), topic: None },
            });
        }
        spine.answer();
        spine.until(|it| !it.requests.is_empty()).await;
        spine.answer();
        spine.end_turn();
        assert_eq!((spine.disk.payloads(), spine.acknowledged().len()), (vec!["c2"], 0));
        spine.reconnect();
        spine.receive("t/1", "c1", 1, true);
        spine.receive("t/2", "c2", 2, true);
        spine.end_turn();
        assert_eq!(spine.acknowledged(), [0; 0], "the first is still under way");
        spine.requests.push_back(held);
        spine.settle().await;
        assert_eq!(spine.disk.payloads(), ["c2", "c1"]);
        assert_eq!(spine.acknowledged, [1, 2].map(|packet_id| AckToken { packet_id, connection: 2 }));
        assert_eq!((spine.disk.count("f", Some("t/1")), spine.disk.count("f", Some("t/2"))), (1, 1));
    });
}

#[test]
fn a_publishers_copy_is_acknowledged_with_the_first_and_not_before() {
    check(|| async {
        let mut spine = Spine::new(one_with_state());
        let id = [("id", "7")];
        spine.receive_with("t/1", "c", 1, false, &id);
        spine.receive_with("t/1", "c", 2, false, &id);
        spine.until(|it| it.loads() == 1).await;
        // The connection breaks, and both come again while the first is still under way.
        spine.reconnect();
        spine.receive_with("t/1", "c", 1, true, &id);
        spine.receive_with("t/1", "c", 2, true, &id);
        spine.end_turn();
        assert_eq!(spine.acknowledged(), [0; 0]);
        spine.settle().await;
        assert_eq!(spine.acknowledged, [1, 2].map(|packet_id| AckToken { packet_id, connection: 2 }));
        assert_eq!(spine.disk.count("f", Some("t/1")), 1);
        // A third, long after.
        spine.receive_with("t/1", "c", 3, false, &id);
        spine.settle().await;
        assert_eq!((spine.acknowledged(), spine.disk.count("f", Some("t/1"))), (vec![1, 2, 3], 1));
    });
}

/// The first came at QoS 0, so that nothing in front of the copy holds up its acknowledgement.
#[test]
fn a_copy_of_what_is_under_way_is_not_acknowledged_when_it_comes_again() {
    check(|| async {
        let mut spine = Spine::new(one_with_state());
        let id = [("id", "7")];
        spine.receive_with("t/1", "c", 0, false, &id);
        spine.receive_with("t/1", "c", 1, false, &id);
        spine.until(|it| it.loads() == 1).await;
        spine.reconnect();
        spine.receive_with("t/1", "c", 1, true, &id);
        spine.end_turn();
        assert_eq!(spine.acknowledged(), [0; 0], "before the commit");
        spine.settle().await;
        assert_eq!((spine.acknowledged(), spine.disk.count("f", Some("t/1"))), (vec![1], 1));
    });
}

#[test]
fn two_functions_share_one_commit_and_one_acknowledgement() {
    check(|| async {
        let mut spine =
            Spine::new(vec![manifest("f", "t/#", StateScope::None), manifest("g", "t/1", StateScope::Topic)]);
        spine.receive("t/1", "o", 1, false);
        spine.until(|it| it.loads() == 1).await;
        while spine.hear(Duration::from_millis(300)).await {}
        spine.end_turn();
        assert_eq!(spine.requests.len(), 1, "one function alone is no reason to commit");
        assert_eq!(spine.acknowledged(), [0; 0]);
        spine.settle().await;
        let functions: Vec<&str> = spine.disk.records.iter().map(|it| &*it.function).collect();
        assert_eq!((functions, spine.acknowledged()), (vec!["f", "g"], vec![1]));
        spine.receive("t/1", "x", 2, false);
        spine.settle().await;
        assert_eq!(spine.disk.reasons(), ["trap", "trap"]);
        assert_eq!(spine.acknowledged(), [1, 2]);
    });
}

/// One function of a message is done, the other is not; meanwhile the first runs on the next message. Whatever it wrote
/// last must be what is stored last.
#[test]
fn state_is_stored_in_the_order_of_the_runs() {
    check(|| async {
        let mut spine =
            Spine::new(vec![manifest("sum", "t/#", StateScope::Function), manifest("slow", "t/1", StateScope::Topic)]);
        spine.receive("t/1", "c1", 1, false);
        spine.receive("t/2", "c2", 2, false);
        spine.receive("t/3", "c3", 3, false);
        spine.until(|it| it.loads() == 2).await;
        // `sum` gets its state, `slow` does not.
        let slow = spine
            .requests
            .iter()
            .position(|it| matches!(it, store::StoreRequest::LoadState { scope, .. } if &*scope.function == "slow"));
        let slow = spine.requests.remove(slow.unwrap()).unwrap();
        spine.answer();
        while spine.hear(Duration::from_millis(300)).await {}
        spine.end_turn();
        assert!(spine.requests.is_empty(), "{:?}", spine.requests);
        spine.requests.push_back(slow);
        spine.settle().await;
        assert_eq!(spine.disk.count("sum", None), 3);
        assert_eq!(spine.acknowledged(), [1, 2, 3]);
    });
}

#[test]
fn a_retry_keeps_its_place_in_its_key() {
    check(|| async {
        let mut spine = Spine::new(one_with_state());
        // All are sent to the worker at once, before it is known that the first asks for another run.
        for (id, payload) in (1..).zip(["t1", "o2", "o3"]) {
            spine.receive("t/1", payload, id, false);
        }
        spine.receive("t/2", "o4", 4, false);
        spine.settle().await;
        assert_eq!(spine.disk.payloads(), ["o4"]);
        assert_eq!(spine.disk.parked.len(), 3);
        assert_eq!(spine.acknowledged(), [1, 2, 3, 4], "the store has them");
        spine.receive("t/1", "o5", 5, false);
        spine.settle().await;
        assert_eq!(spine.disk.parked.len(), 4);
        assert_eq!(spine.pipeline.next_due(), Some(spine.now + Duration::from_secs(1)));
        spine.pass(1);
        spine.settle().await;
        assert_eq!(spine.disk.payloads(), ["o4", "t1", "o2", "o3", "o5"]);
        assert!(spine.disk.parked.is_empty() && spine.pipeline.next_due().is_none());
        spine.receive("t/1", "o6", 6, false);
        spine.settle().await;
        assert_eq!(spine.disk.payloads().last(), Some(&"o6"));
    });
}

#[test]
fn retries_end() {
    check(|| async {
        let mut spine = Spine::new(one());
        spine.receive("t/1", "T", 1, false);
        spine.receive("t/1", "o", 2, false);
        for attempt in 1..=3 {
            spine.settle().await;
            assert_eq!(spine.disk.dead_letters.len(), usize::from(attempt > 2));
            spine.pass(1);
        }
        assert_eq!(spine.disk.reasons(), ["retries-exhausted"]);
        assert_eq!(spine.disk.dead_letters[0].message.attempt, 3);
        spine.settle().await;
        assert_eq!((spine.disk.payloads(), spine.disk.parked.len()), (vec!["o"], 0));
    });
}

#[test]
fn what_waits_survives_a_restart_in_its_order() {
    check(|| async {
        let mut spine = Spine::new(one());
        for (id, payload) in (1..).zip(["t1", "o2", "t3", "o4"]) {
            spine.receive("t/1", payload, id, false);
        }
        spine.settle().await;
        let mut spine = Spine::over(one(), spine.disk);
        spine.pass(100);
        spine.settle().await;
        spine.pass(100);
        spine.settle().await;
        assert_eq!(spine.disk.payloads(), ["t1", "o2", "t3", "o4"]);
        // One that asks for a third run keeps its place, too.
        for (id, payload) in (5..).zip(["T1", "o2"]) {
            spine.receive("t/3", payload, id, false);
        }
        spine.settle().await;
        spine.pass(1);
        spine.settle().await;
        let waiting =
            |spine: &Spine| spine.disk.parked.values().map(|it| it.message.payload.clone()).collect::<Vec<_>>();
        assert_eq!(waiting(&spine), ["T1", "o2"]);
        let mut spine = Spine::over(one(), spine.disk);
        spine.pass(100);
        spine.settle().await;
        assert_eq!((spine.disk.reasons(), spine.disk.payloads().last()), (vec!["retries-exhausted"], Some(&"o2")));
        spine.disk.dead_letters.clear();
        // A function that is gone leaves its messages to the dead letters.
        spine.receive("t/1", "t", 7, false);
        spine.settle().await;
        let mut spine = Spine::over(vec![manifest("other", "t/#", StateScope::None)], spine.disk);
        spine.settle().await;
        assert_eq!((spine.disk.reasons(), spine.disk.parked.len()), (vec!["removed"], 0));
    });
}

#[test]
fn a_function_that_keeps_failing_is_paused_until_it_works() {
    check(|| async {
        let mut spine = Spine::new(one());
        for id in 1..=3 {
            spine.receive("t/1", "x", id, false);
            spine.settle().await;
        }
        assert!(spine.pipeline.functions()[0].is_quarantined());
        assert_eq!(spine.changed, [0]);
        spine.receive("t/1", "o4", 4, false);
        spine.settle().await;
        assert_eq!(spine.disk.reasons(), ["trap", "trap", "trap", "quarantined"]);
        // The first message after the pause is the probe. It asks for another run, which is a probe as well.
        spine.pass(11);
        spine.receive("t/1", "t5", 5, false);
        spine.settle().await;
        assert!(spine.pipeline.functions()[0].is_quarantined());
        spine.pass(1);
        spine.settle().await;
        assert!(!spine.pipeline.functions()[0].is_quarantined());
        assert_eq!((spine.disk.payloads(), spine.changed.len()), (vec!["t5"], 2));
        assert_eq!(spine.acknowledged(), [1, 2, 3, 4, 5]);
    });
}

#[test]
fn saying_no_is_no_misbehaviour() {
    check(|| async {
        let mut spine = Spine::new(one());
        for id in 1..=10 {
            spine.receive("t/1", "r", id, false);
        }
        spine.settle().await;
        assert_eq!(spine.disk.reasons(), ["rejected"; 10]);
        assert!(!spine.pipeline.functions()[0].is_quarantined());
    });
}

/// The disk fails while the one message that may show that a function works again is under way.
#[test]
fn a_probe_that_is_lost_does_not_close_the_function_for_ever() {
    check(|| async {
        let mut spine = Spine::new(one());
        for id in 1..=3 {
            spine.receive("t/1", "x", id, false);
        }
        spine.settle().await;
        spine.pass(11);
        spine.receive("t/1", "o", 4, false);
        spine.pipeline.store_failed();
        spine.pipeline.reopened(spine.disk.recovered(), spine.now, 0);
        spine.reconnect();
        spine.receive("t/1", "o", 4, true);
        spine.settle().await;
        assert_eq!(spine.disk.payloads(), ["o"]);
        assert!(!spine.pipeline.functions()[0].is_quarantined());
    });
}

#[test]
fn timers_call_their_function_also_to_see_whether_it_works_again() {
    check(|| async {
        let every = |manifest: Manifest| Manifest { every: Some(Duration::from_secs(5)), ..manifest };
        let mut spine = Spine::new(vec![every(manifest("clock", "t/#", StateScope::Topic))]);
        let ran = |spine: &Spine| spine.pipeline.functions()[0].metrics.invocations.get();
        spine.settle().await;
        assert_eq!(ran(&spine), 0);
        spine.pass(5);
        spine.settle().await;
        assert_eq!(ran(&spine), 1);
        // What was missed is not made up for.
        spine.pass(50);
        spine.settle().await;
        assert_eq!(ran(&spine), 2);
        for id in 1..=3 {
            spine.receive("t/1", "x", id, false);
        }
        spine.settle().await;
        assert!(spine.pipeline.functions()[0].is_quarantined());
        spine.pass(5);
        spine.settle().await;
        assert_eq!(ran(&spine), 5, "it is paused");
        spine.pass(6);
        spine.settle().await;
        assert_eq!(ran(&spine), 6);
        assert!(!spine.pipeline.functions()[0].is_quarantined());
    });
}

#[test]
fn what_is_too_large_or_goes_round_in_circles_is_not_run() {
    check(|| async {
        let mut spine = Spine::new(one());
        spine.receive("t/1", &"o".repeat(1000), 1, false);
        spine.receive("t/1", &"o".repeat(1001), 2, false);
        spine.receive_with("t/1", "o", 3, false, &[(HOPS, "3")]);
        spine.receive_with("t/1", "o", 4, false, &[(HOPS, "4")]);
        spine.receive_with("t/1", "o", 5, false, &[(HOPS, "4294967295")]);
        spine.settle().await;
        let mut reasons = spine.disk.reasons();
        reasons.sort_unstable();
        assert_eq!(reasons, ["payload-too-large", "too-many-hops", "too-many-hops"]);
        let details: Vec<&str> = spine.disk.dead_letters.iter().map(|it| it.failure.detail.as_str()).collect();
        assert!(details.contains(&"1001 bytes, the limit is 1000 (mqtt.max_payload_bytes)"), "{details:?}");
        let mut hops: Vec<u32> = spine.disk.records.iter().map(|it| it.hops).collect();
        hops.sort_unstable();
        assert_eq!((hops, spine.acknowledged()), (vec![1, 4], vec![1, 2, 3, 4, 5]));
    });
}

#[test]
fn a_function_publishes_only_where_it_may() {
    check(|| async {
        let mut spine = Spine::new(one_with_state());
        for (id, payload) in (1..).zip(["#1", "e2", "c3", "E4", "c5"]) {
            spine.receive("t/1", payload, id, false);
        }
        spine.settle().await;
        assert_eq!(spine.disk.reasons(), ["invalid-topic", "not-allowed", "not-allowed"]);
        assert!(spine.disk.dead_letters[2].failure.detail.contains("\"elsewhere\""));
        assert_eq!(spine.disk.payloads(), ["c3", "c5"]);
        // What the run that failed had counted is forgotten, by the disk and by the worker.
        assert_eq!(spine.disk.count("f", Some("t/1")), 2);
    });
}

#[test]
fn repeated_alerts_are_folded() {
    check(|| async {
        let mut spine = Spine::new(one());
        for id in 1..=3 {
            spine.receive("t/1", "a", id, false);
        }
        spine.settle().await;
        let streams: Vec<Stream> = spine.disk.records.iter().map(|it| it.stream).collect();
        assert_eq!(streams, [Stream::Local, Stream::Alert]);
        assert_eq!(
            (&*spine.disk.records[0].topic, &*spine.disk.records[1].topic),
            ("sedge/board/alerts/f", "alerts/f")
        );
        spine.pass(60);
        spine.receive("t/1", "a", 4, false);
        spine.settle().await;
        assert_eq!(spine.disk.records.len(), 4);
        assert!(spine.disk.payloads()[3].contains("\"folded\":2"), "{:?}", spine.disk.payloads());
        assert_eq!(spine.acknowledged(), [1, 2, 3, 4]);
    });
}

#[test]
fn after_a_disk_failure_nothing_uncommitted_counts() {
    check(|| async {
        let mut spine = Spine::new(one_with_state());
        spine.receive("t/1", "c1", 1, false);
        spine.settle().await;
        spine.receive("t/1", "c2", 2, false);
        spine.receive("t/1", "t3", 3, false);
        spine.until(|it| it.pipeline.committing.iter().flat_map(|it| &it.1).count() == 2).await;
        assert_eq!(spine.acknowledged(), [1]);
        spine.pipeline.store_failed();
        spine.requests.clear();
        assert!(spine.pipeline.is_idle() && spine.pipeline.end_turn().acknowledge.is_empty());
        spine.pipeline.reopened(spine.disk.recovered(), spine.now, 0);
        spine.reconnect();
        spine.receive("t/1", "c2", 2, true);
        spine.receive("t/1", "t3", 3, true);
        spine.settle().await;
        spine.pass(1);
        spine.settle().await;
        assert_eq!(spine.disk.payloads(), ["c1", "c2", "t3"]);
        assert_eq!((spine.disk.count("f", Some("t/1")), spine.acknowledged()), (2, vec![2, 3]));
    });
}

impl Pipeline {
    /// What is under way, for a test that waits in vain.
    fn state(&self) -> String {
        use std::fmt::Write as _;
        let mut text = String::new();
        for unit in self.units.iter().flatten() {
            let _ = write!(text, "{:?} jobs {}; ", unit.message.payload, unit.jobs_left);
        }
        for function in &self.functions {
            let _ =
                write!(text, "{} under way {}, drain {:?}; ", function.name, function.jobs_under_way(), function.drain);
        }
        let _ =
            write!(text, "recalls {:?}, pending {}, loads {}, ", self.recalls, self.pending.len(), self.loads.len());
        let _ = write!(text, "postponed {}, unsent {:?}", self.postponed_loads.len(), self.unsent_writes);
        text
    }
}
