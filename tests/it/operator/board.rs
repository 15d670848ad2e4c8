//! A simulated board: checks orders with the program's own library, and reports as the test configures.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::harness::client::Client;
use crate::harness::wire::{self, Hello, Publish};
use sedge_core::deploy::envelope::SignedEnvelope;
use sedge_core::deploy::keys::{Keys, PublicKey, TrustedKey};
use sedge_core::deploy::payload::{Install, Module, Order, OrderChange};
use sedge_core::deploy::topics::{Target, Topic, Topics};
use serde_json::{Value, json};

/// Reaction to a trusted order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    Obeys,
    Refuses(&'static str, &'static str),
    /// The same, and carries out later orders.
    RefusesFirst(&'static str, &'static str),
    RollsBack,
    /// Stays in the state `trial`.
    Shadows,
    /// Is online and reports no orders.
    Silent,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// Each once, in order.
    pub(crate) orders: Vec<Order>,
    /// Complete modules.
    pub(crate) modules: Vec<Vec<u8>>,
}

pub(crate) struct Board {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Board {
    /// One of the group `pumps`.
    pub(crate) fn start(port: u16, node: &str, key: &Path, manner: Manner) -> Self {
        Self::start_in(port, node, key, manner, "pumps")
    }

    /// Returns when the board has published that it is online.
    pub(crate) fn start_in(port: u16, node: &str, key: &Path, manner: Manner, group: &str) -> Self {
        let pem = std::fs::read(key).expect("read the board's key");
        let key = TrustedKey {
            name: "ops".into(),
            public_key: PublicKey::from_pem(&pem).expect("a public key"),
            functions: Vec::new(),
            topics: Vec::new(),
            keys: true,
            native_code: false,
            settings_only: false,
            record: false,
            logs: false,
        };
        let (seen, stop) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let mut play = Play {
            node: node.into(),
            group: group.into(),
            manner,
            keys: Keys::new([key]),
            topics: Topics::new("sedge"),
            ear: Client::connect(port, &Hello::new(&format!("{node}-ear"))).expect("connect"),
            mouth: Client::connect(port, &Hello::new(&format!("{node}-mouth"))).expect("connect"),
            seen: Arc::clone(&seen),
            receiving: None,
            active: BTreeMap::new(),
        };
        let (ready, is_ready) = mpsc::sync_channel(1);
        let ended = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            play.say_state("online");
            play.listen();
            ready.send(()).expect("the test waits");
            while !ended.load(Ordering::SeqCst) {
                if let Some(message) = play.ear.receive(Duration::from_millis(20)).expect("listen to the broker") {
                    play.take(&message);
                }
            }
            play.say_state("offline");
        });
        is_ready.recv().expect("the board starts");
        Self { seen, stop, thread: Some(thread) }
    }

    pub(crate) fn seen(&self) -> Seen {
        self.seen.lock().expect("the board has not panicked").clone()
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Play {
    node: String,
    group: String,
    manner: Manner,
    keys: Keys,
    topics: Topics,
    ear: Client,
    /// A separate connection: the client of the harness drops messages while it waits for an acknowledgement.
    mouth: Client,
    seen: Arc<Mutex<Seen>>,
    receiving: Option<(Order, Install, BTreeMap<u32, Vec<u8>>)>,
    active: BTreeMap<String, Value>,
}

impl Play {
    fn say_state(&mut self, state: &str) {
        let status = json!({ "state": state, "version": "0.0.0", "groups": [self.group] });
        self.say(&self.topics.status(&self.node), &status);
    }

    fn say(&mut self, topic: &str, value: &Value) {
        let message = Publish { retain: true, ..Publish::new(topic, value.to_string()) };
        self.mouth.publish(message).expect("publish");
    }

    fn listen(&mut self) {
        let targets = [Target::Node(self.node.as_str().into()), Target::Group(self.group.as_str().into())];
        let filters = targets.map(|target| self.topics.deploys(&target));
        self.ear.send(&wire::subscribe(60_000, &[&filters[0], &filters[1]])).expect("subscribe");
    }

    fn take(&mut self, message: &Publish) {
        match self.topics.parse(&message.topic) {
            Some(Topic::Deploy { function, .. }) => self.order(&function, &message.payload),
            Some(Topic::Blob { index, .. }) => self.chunk(index, &message.payload),
            _ => {}
        }
    }

    fn order(&mut self, function: &str, envelope: &[u8]) {
        let checked = SignedEnvelope::parse(envelope).and_then(|envelope| {
            let (payload, _) = envelope.verify(&self.keys)?;
            Order::parse(payload)
        });
        let order = match checked {
            Ok(order) => order,
            Err(refusal) => {
                let report = json!({ "state": "rejected", "reason": refusal.reason, "error": refusal.detail });
                return self.report(function, report);
            }
        };
        let is_first = {
            let mut seen = self.seen.lock().expect("the test has not panicked");
            if seen.orders.contains(&order) {
                return;
            }
            seen.orders.push(order.clone());
            seen.orders.len() == 1
        };
        match (self.manner, &order.change) {
            (Manner::Silent, _) => {}
            (Manner::Refuses(reason, error), _) => {
                self.progress(&order, json!({ "state": "rejected", "reason": reason, "error": error }));
            }
            (Manner::RefusesFirst(reason, error), _) if is_first => {
                self.progress(&order, json!({ "state": "rejected", "reason": reason, "error": error }));
            }
            (_, OrderChange::Install(install)) => {
                let chunks = module(install).chunks.len();
                let progress = json!({ "chunks": chunks, "received": 0 });
                self.progress(&order, json!({ "state": "receiving", "progress": progress }));
                let filter = self.topics.blobs(&module(install).digest);
                self.ear.send(&wire::subscribe(60_001, &[&filter])).expect("subscribe");
                let install = Install::clone(install);
                self.receiving = Some((order, install, BTreeMap::new()));
            }
            (_, OrderChange::Rollback) => {
                self.progress(&order, json!({ "state": "rolled-back", "reason": "requested" }))
            }
            (_, OrderChange::Remove) => {
                self.active.remove(&*order.function);
                self.progress(&order, json!({ "state": "removed", "reason": "requested" }));
            }
            (_, OrderChange::Promote | OrderChange::Keys(_)) => self.progress(&order, json!({ "state": "active" })),
            // Subscribes to orders of versions and keys only.
            (_, OrderChange::Settings(_)) => {}
        }
    }

    fn chunk(&mut self, index: u32, payload: &[u8]) {
        let Some((order, install, pieces)) = &mut self.receiving else { return };
        if module(install).chunks.get(index as usize) != Some(&sedge_core::deploy::digest(payload)) {
            return;
        }
        pieces.insert(index, payload.to_vec());
        if pieces.len() < module(install).chunks.len() {
            return;
        }
        let whole: Vec<u8> = pieces.values().flatten().copied().collect();
        assert_eq!(sedge_core::deploy::digest(&whole), module(install).digest);
        let (order, install) = (order.clone(), install.clone());
        self.receiving = None;
        self.ear.send(&wire::unsubscribe(60_002, &self.topics.blobs(&module(&install).digest))).expect("unsubscribe");
        self.seen.lock().expect("the test has not panicked").modules.push(whole);
        for state in ["verifying", "compiling"] {
            self.progress(&order, json!({ "state": state }));
        }
        let trial = json!({ "messages": 10, "run": 1, "failed": 0, "different": 0 });
        self.progress(&order, json!({ "state": "trial", "progress": trial }));
        match self.manner {
            Manner::Shadows => {}
            Manner::RollsBack => {
                self.progress(
                    &order,
                    json!({ "state": "rolled-back", "reason": "failed-trial", "error": "it trapped" }),
                );
            }
            _ => {
                let manifest = install.manifest.as_value().clone();
                let active = json!({
                    "version": manifest["version"], "serial": order.serial, "digest": module(&install).digest,
                    "manifest": manifest,
                });
                self.active.insert(order.function.to_string(), active);
                self.progress(&order, json!({ "state": "active" }));
            }
        }
    }

    /// A report that names the order.
    fn progress(&mut self, order: &Order, mut report: Value) {
        report["serial"] = json!(order.serial);
        self.report(&order.function.clone(), report);
    }

    fn report(&mut self, function: &str, mut report: Value) {
        report["function"] = json!(function);
        report["active"] = self.active.get(function).cloned().unwrap_or_default();
        report["previous"] = Value::Null;
        report["at_ms"] = json!(0);
        report["clock_synced"] = json!(true);
        self.say(&self.topics.report(&self.node, function), &report);
    }
}

/// Retained messages that match a filter, in order of topics.
pub(crate) fn retained(port: u16, filter: &str) -> Vec<Publish> {
    let mut client = Client::connect(port, &Hello::new("auditor")).expect("connect");
    client.send(&wire::subscribe(60_000, &[filter])).expect("subscribe");
    // Arrives after all retained messages.
    let end = "auditor/end";
    client.send(&wire::subscribe(60_001, &[end])).expect("subscribe");
    let mut mark = Vec::new();
    Publish { packet_id: 60_002, ..Publish::new(end, "") }.encode(&mut mark);
    client.send(&mark).expect("publish");
    let mut kept = Vec::new();
    loop {
        let message = client.receive(Duration::from_secs(10)).expect("listen").expect("the end of what is kept");
        if message.topic == end {
            break;
        }
        kept.push(Publish { packet_id: 0, ..message });
    }
    kept.sort_by(|a, b| a.topic.cmp(&b.topic));
    kept
}

/// The module of the order, as a board with a compiler uses it.
fn module(install: &Install) -> &Module {
    install.module.as_ref().expect("a push without --code-only brings the module")
}
