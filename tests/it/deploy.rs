//! Pushes to the real program, with valid and invalid orders made by its own library and by its command line.

mod bad_input;
mod code;
mod keys;
mod program;
mod push;
mod recovery;
mod script;
mod swap;
mod trial;
mod typescript;

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use sedge_core::deploy::envelope::SignedEnvelope;
use sedge_core::deploy::keys::SigningKey;
use sedge_core::deploy::payload::{Install, Module, Order, OrderChange};
use sedge_core::deploy::reason::Reason;
use sedge_core::deploy::report::{DeployState, Report};
use sedge_core::deploy::topics::{Target, Topics};
use sedge_core::manifest::Manifest;
use serde_json::{Value, json};

use crate::harness::client::Client;
use crate::harness::daemon::{Daemon, NODE, SEDGE, Setup};
use crate::harness::eventually;
use crate::harness::guest::guest;
use crate::harness::mosquitto::Mosquitto;
use crate::harness::upstream::Upstream;
use crate::harness::wire::{Hello, Publish};

/// The function that is pushed. Publishes under `said/<label>` which version handled a message.
const FUNCTION: &str = "edition";
const PATIENCE: Duration = Duration::from_secs(30);
/// Small, so that a module has several chunks.
const CHUNK: u32 = 4096;

/// Runs a command. The engine for scripts is compiled once for all of them.
fn cached(mut command: Command) -> Output {
    command.env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR")).output().expect("run sedge")
}

fn sedge(arguments: &[&str]) -> Output {
    let mut command = Command::new(SEDGE);
    command.args(arguments);
    cached(command)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// A broker, a board that runs version 1 of the function from a folder, and the key that it trusts.
struct Yard {
    // Dropped before its broker.
    daemon: Daemon,
    reports: Upstream,
    said: Upstream,
    hand: RefCell<Client>,
    broker: Mosquitto,
    folder: tempfile::TempDir,
    key: SigningKey,
    asked: Cell<u64>,
}

impl Yard {
    fn start() -> Self {
        Self::start_with(|setup| setup)
    }

    fn start_with(change: impl FnOnce(Setup) -> Setup) -> Self {
        let mut yard = Self::prepare(change);
        yard.daemon.resume();
        yard.await_board();
        yard
    }

    /// The board is not started yet.
    fn prepare(change: impl FnOnce(Setup) -> Setup) -> Self {
        let broker = Mosquitto::start();
        let folder = tempfile::tempdir().expect("make a folder");
        let key = new_key(folder.path(), "ops");
        let setup = Setup::new(broker.url())
            .function(&guest(FUNCTION))
            .set("node", "groups = [\"pumps\"]")
            .set("deploy.keys.ops", format!("file = {:?}", public(folder.path(), "ops")));
        let daemon = Daemon::prepare(&change(setup));
        Self {
            reports: Upstream::collect_filter(broker.port, "reports", &Topics::new("sedge").reports(Some(NODE))),
            said: Upstream::collect_filter(broker.port, "said", "said/#"),
            hand: RefCell::new(broker.client("hand")),
            daemon,
            broker,
            folder,
            key,
            asked: Cell::new(0),
        }
    }

    #[track_caller]
    fn await_board(&self) {
        self.await_report(|report| report.active.is_some());
        self.broker.await_daemon();
    }

    /// An order for the next version, with the label `v<serial>`.
    fn install(&self, serial: u64) -> Order {
        self.install_of(serial, &self.module(), |_| {})
    }

    fn install_of(&self, serial: u64, wasm: &[u8], change: impl FnOnce(&mut Value)) -> Order {
        let manifest =
            Manifest::load(&guest(FUNCTION), &sedge_sandbox::machine::MACHINE).expect("the function has a manifest");
        let mut manifest = serde_json::from_slice(&manifest.to_json()).expect("a manifest is JSON");
        let base: &mut Value = &mut manifest;
        base["version"] = json!(format!("1.0.{serial}"));
        base["serial"] = json!(serial);
        base["config"]["label"] = json!(format!("v{serial}"));
        base["trial"] = json!({ "messages": 1, "secs": 1 });
        change(base);
        let manifest = serde_json::from_value(manifest).expect("a manifest is a document");
        let module = Some(Module::of(wasm, CHUNK));
        self.order(serial, OrderChange::Install(Box::new(Install { manifest, module, code: Vec::new() })))
    }

    fn order(&self, serial: u64, change: OrderChange) -> Order {
        let now_ms = sedge_sandbox::clock::now_ms();
        Order {
            function: FUNCTION.into(),
            serial,
            target: Target::Node(NODE.into()),
            issued_at_ms: now_ms,
            expires_at_ms: now_ms + 3_600_000,
            change,
        }
    }

    fn module(&self) -> Vec<u8> {
        std::fs::read(guest(FUNCTION).join("edition.wasm")).expect("read the component")
    }

    /// Another module with the same behaviour, distinguished by a custom section.
    fn other_module(&self, tag: u8) -> Vec<u8> {
        let mut wasm = self.module();
        wasm.extend([0, 5, 3, b't', b'a', b'g', tag]);
        wasm
    }

    fn sign(&self, order: &Order) -> Vec<u8> {
        SignedEnvelope::sign(&order.to_json(), &[&self.key]).to_json()
    }

    fn send(&self, order: &Order) {
        self.send_bytes(order, self.sign(order));
    }

    /// Publishes to the target of the order.
    fn send_bytes(&self, order: &Order, envelope: impl Into<Vec<u8>>) {
        self.retain(&Topics::new("sedge").deploy(&order.target, &order.function), envelope);
    }

    fn send_chunks(&self, wasm: &[u8]) {
        for index in 0..Module::of(wasm, CHUNK).chunks.len() as u32 {
            self.send_chunk(wasm, index, &chunk(wasm, index));
        }
    }

    fn send_chunk(&self, wasm: &[u8], index: u32, bytes: &[u8]) {
        self.retain(&Topics::new("sedge").blob(&sedge_core::deploy::digest(wasm), index), bytes);
    }

    fn retain(&self, topic: &str, payload: impl Into<Vec<u8>>) {
        self.publish(Publish { retain: true, ..Publish::new(topic, payload) });
    }

    fn publish(&self, message: Publish) {
        let mut hand = self.hand.borrow_mut();
        if hand.publish(message.clone()).is_err() {
            // The broker was restarted.
            *hand = Client::connect(self.broker.port, &Hello::new("hand")).expect("connect to mosquitto");
            hand.publish(message).expect("publish");
        }
    }

    /// Reports of the function, in order.
    fn history(&self) -> Vec<Report> {
        self.history_of(FUNCTION)
    }

    fn history_of(&self, function: &str) -> Vec<Report> {
        let topic = Topics::new("sedge").report(NODE, function);
        let received = self.reports.received();
        let of_it = received.iter().filter(|message| message.topic == topic && !message.payload.is_empty());
        of_it.map(|message| Report::parse(&message.payload).expect("a report can be read")).collect()
    }

    /// Waits until the latest report meets a condition.
    #[track_caller]
    fn await_report(&self, wanted: impl Fn(&Report) -> bool) -> Report {
        self.await_report_of(FUNCTION, wanted)
    }

    #[track_caller]
    fn await_report_of(&self, function: &str, wanted: impl Fn(&Report) -> bool) -> Report {
        let mut last = None;
        let came = eventually(PATIENCE, || {
            last = self.history_of(function).pop();
            last.as_ref().is_some_and(&wanted)
        });
        assert!(came, "the last report is {last:#?}\nlog:\n{}", self.daemon.log());
        last.expect("it came")
    }

    #[track_caller]
    fn await_state(&self, serial: u64, state: DeployState) -> Report {
        self.await_report(|report| report.serial == Some(serial) && report.state == state)
    }

    /// Waits until it is active, and checks that it serves.
    #[track_caller]
    fn await_active(&self, serial: u64) {
        let serves =
            |it: &Report| it.serial == Some(serial) && [DeployState::Trial, DeployState::Active].contains(&it.state);
        self.await_report(serves);
        // This also ends the trial.
        self.serves(&format!("v{serial}"));
        let report = self.await_state(serial, DeployState::Active);
        assert_eq!(report.active.map(|active| active.version.serial), Some(serial));
    }

    /// Checks that one message is handled by this version and no other.
    #[track_caller]
    fn serves(&self, label: &str) {
        self.asked.set(self.asked.get() + 1);
        let number = self.asked.get().to_string();
        self.publish(Publish::new("count/probe", number.as_str()));
        let answers = || {
            let said = self.said.received();
            said.into_iter().filter(|it| it.text() == number).map(|it| it.topic).collect::<Vec<_>>()
        };
        let answered = eventually(PATIENCE, || !answers().is_empty());
        assert!(answered, "message {number} is not handled; log:\n{}", self.daemon.log());
        assert_eq!(answers(), [format!("said/{label}")]);
    }

    /// Checks that the order was refused for this reason, with an error that contains `says`, and that version 1 still serves.
    #[track_caller]
    fn refused(&self, reason: Reason, says: &str) {
        self.refused_beside(reason, says, 1);
    }

    #[track_caller]
    fn refused_beside(&self, reason: Reason, says: &str, serving: u64) {
        let report = self.await_report(|it| {
            let says_so = it.error.as_ref().is_some_and(|error| error.contains(says));
            it.state == DeployState::Rejected && it.reason == Some(reason) && says_so
        });
        assert_eq!(report.active.map(|active| active.version.serial), Some(serving), "what serves");
        self.serves(&format!("v{serving}"));
    }

    fn key_file(&self) -> PathBuf {
        self.folder.path().join("ops.pem")
    }

    /// A copy of the function's folder with another label and changes to its manifest.
    fn source(&self, label: &str, change: impl FnOnce(String) -> String) -> PathBuf {
        let dir = self.folder.path().join(label);
        std::fs::create_dir_all(&dir).expect("make a folder for the function");
        let original = guest(FUNCTION);
        let manifest = std::fs::read_to_string(original.join("function.toml")).expect("read function.toml");
        let manifest = manifest.replace("serial = 1\n", "").replace("\"v1\"", &format!("{label:?}"));
        let manifest = format!("{manifest}\n[trial]\nmessages = 1\nsecs = 1\n");
        std::fs::write(dir.join("function.toml"), change(manifest)).expect("write function.toml");
        std::fs::copy(original.join("edition.wasm"), dir.join("edition.wasm")).expect("copy the component");
        dir
    }

    /// A command of the program for this board.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(SEDGE);
        command.args(arguments).args(["--broker", &self.broker.url()]).stdin(Stdio::null());
        command.env_remove("SEDGE_KEY").env_remove("SEDGE_BROKER").env("XDG_CONFIG_HOME", self.folder.path());
        if arguments[0] != "status" {
            command.arg("--key").arg(self.key_file()).args(["--timeout", "30"]);
        }
        if !arguments.contains(&"--group") {
            command.args(["--node", NODE]);
        }
        command
    }

    /// Exit code and JSON output of a command.
    #[track_caller]
    fn ask(&self, arguments: &[&str]) -> (Option<i32>, Value) {
        let output = self.command(arguments).arg("--json").output().expect("run sedge");
        answer(&output)
    }

    fn push(&self, source: &Path) -> (Option<i32>, Value) {
        self.ask(&["push", source.to_str().expect("a path in UTF-8")])
    }

    fn begin_push(&self, source: &Path) -> Child {
        let mut command = self.command(&["push", source.to_str().expect("a path in UTF-8")]);
        command.arg("--json").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("run sedge")
    }
}

#[track_caller]
fn answer(output: &Output) -> (Option<i32>, Value) {
    let answer = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("the command printed no JSON ({error}): {output:?}"));
    (output.status.code(), answer)
}

fn chunk(wasm: &[u8], index: u32) -> Vec<u8> {
    wasm.chunks(CHUNK as usize).nth(index as usize).expect("there is such a piece").to_vec()
}

/// Writes `<name>.pem` and `<name>.pub.pem`.
fn new_key(dir: &Path, name: &str) -> SigningKey {
    let key = SigningKey::generate().expect("draw a key");
    std::fs::write(dir.join(format!("{name}.pem")), key.to_pem()).expect("write the key");
    std::fs::write(public(dir, name), key.public().to_pem()).expect("write the public key");
    key
}

fn public(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.pub.pem"))
}
