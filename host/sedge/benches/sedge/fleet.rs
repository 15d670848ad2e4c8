//! One push to a group of a thousand simulated boards, over one Mosquitto.
//!
//! The operator is the real program. Each board is a connection of this process. It checks the signature, fetches the chunks,
//! checks their digests, and reports every state. It compiles nothing and runs nothing.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Stdio;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::Size;
use crate::harness::daemon::SEDGE;
use crate::harness::guest::{guest, variant};
use crate::harness::mosquitto::Mosquitto;
use crate::harness::wire::{self, Hello, Packet, Publish};
use crate::report::{Goal, Report, median};
use sedge_core::deploy::envelope::SignedEnvelope;
use sedge_core::deploy::keys::{Keys, PublicKey, TrustedKey};
use sedge_core::deploy::payload::{Install, Module, Order, OrderChange};
use sedge_core::deploy::topics::{Target, Topic, Topics};
use sedge_sandbox::componentize::push_section;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::LocalSet;

const GROUP: &str = "fleet";
const FUNCTION: &str = "warm";

/// Size of the component, as in `push.rs`.
const MODULE_BYTES: usize = 60 * 1024;

const ROUNDS: usize = 3;

/// Time after which Mosquitto's figures are up to date: twice their interval, and some more.
const FIGURES: Duration = Duration::from_millis(2500);

pub(crate) fn measure(report: &mut Report, size: &Size) -> io::Result<()> {
    // The limit of open files of this process, which the broker inherits.
    let mut limits = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limits.current = limits.maximum;
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limits)?;

    let folder = tempfile::tempdir()?;
    let function = component(folder.path())?;
    let key = folder.path().join("ops.pem");
    let made = std::process::Command::new(SEDGE).arg("keygen").arg("--out").arg(&key).stdout(Stdio::null()).status()?;
    assert!(made.success(), "sedge keygen failed");

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut last_active, mut messages, mut bytes) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS.min(size.rounds) {
        let broker = Mosquitto::start_with("sys_interval 1\nmax_connections -1");
        let run = LocalSet::new().block_on(&runtime, run(&broker, size.nodes, &function, &key))?;
        last_active.push(run.last_active.as_secs_f64() * 1e3);
        messages.push(run.messages);
        bytes.push(run.bytes);
    }
    report.add("fleet_nodes", size.nodes as f64, Goal::None, "boards that receive one push to their group");
    let what = "from the start of sedge push until the last of them is active";
    report.add_median("fleet_last_active_ms", last_active, Goal::None, what);
    report.add(
        "fleet_broker_messages",
        median(&messages),
        Goal::None,
        "publishes that the broker received and sent meanwhile",
    );
    report.add("fleet_broker_bytes", median(&bytes), Goal::None, "bytes that it read and wrote meanwhile");
    Ok(())
}

/// Makes a function's folder without a crate, with a component padded to [`MODULE_BYTES`].
fn component(folder: &Path) -> io::Result<std::path::PathBuf> {
    let function = variant(&guest("count"), folder, FUNCTION, "warm/#", |manifest| {
        manifest.lines().filter(|line| !line.starts_with("serial")).collect::<Vec<_>>().join("\n")
    });
    let path = function.join(format!("{FUNCTION}.wasm"));
    let mut wasm = fs::read(&path)?;
    // A custom section: 4 bytes of id and length, a name of one letter, the padding.
    let padding = MODULE_BYTES.saturating_sub(wasm.len() + 6);
    let section = [1, b'x'].into_iter().chain((0..padding).map(|n| (n * 31 % 251) as u8));
    push_section(&mut wasm, 0, &section.collect::<Vec<u8>>());
    fs::write(path, wasm)?;
    Ok(function)
}

struct Run {
    last_active: Duration,
    messages: f64,
    bytes: f64,
}

/// State shared by all boards.
struct Fleet {
    port: u16,
    topics: Topics,
    keys: Keys,
    started: Cell<Option<Instant>>,
    listening: Cell<usize>,
    active: Cell<usize>,
    last_active: Cell<Duration>,
    /// Number of messages that the boards published.
    published: Cell<u64>,
}

async fn run(broker: &Mosquitto, nodes: usize, function: &Path, key: &Path) -> io::Result<Run> {
    let pem = fs::read(key.with_extension("pub.pem"))?;
    let key_of_boards = TrustedKey {
        name: "ops".into(),
        public_key: PublicKey::from_pem(&pem).map_err(io::Error::other)?,
        functions: Vec::new(),
        topics: Vec::new(),
        keys: false,
        native_code: false,
        settings_only: false,
        record: false,
        logs: false,
    };
    let fleet = Rc::new(Fleet {
        port: broker.port,
        topics: Topics::new("sedge"),
        keys: Keys::new([key_of_boards]),
        started: Cell::new(None),
        listening: Cell::new(0),
        active: Cell::new(0),
        last_active: Cell::new(Duration::ZERO),
        published: Cell::new(0),
    });
    for n in 0..nodes {
        let fleet = Rc::clone(&fleet);
        tokio::task::spawn_local(async move {
            let node = format!("node-{n}");
            Node::new(&fleet, node).await.expect("a board connects").serve().await.expect("a board's connection holds");
        });
    }
    wait(Duration::from_secs(120), || fleet.listening.get() == nodes).await?;
    tokio::time::sleep(FIGURES).await;
    let before = figures(broker)?;
    fleet.published.set(0);

    // A file, because a pipe would be full before it is read.
    let answer = tempfile::NamedTempFile::new()?;
    fleet.started.set(Some(Instant::now()));
    let mut push = std::process::Command::new(SEDGE)
        .args(["push", "--json", "--group", GROUP, "--broker", &broker.url(), "--timeout", "120", "--key"])
        .arg(key)
        .arg(function)
        .stdout(answer.reopen()?)
        .stderr(Stdio::null())
        .spawn()?;
    let mut ended = None;
    wait(Duration::from_secs(150), || {
        ended = push.try_wait().ok().flatten();
        ended.is_some()
    })
    .await?;
    assert!(ended.is_some_and(|status| status.success()), "sedge push: {}", fs::read_to_string(answer.path())?);
    assert_eq!(fleet.active.get(), nodes, "sedge push ended before all boards were active");
    tokio::time::sleep(FIGURES).await;
    let after = figures(broker)?;
    let answer: serde_json::Value = serde_json::from_slice(&fs::read(answer.path())?)?;
    let from_operator = answer["chunks"]["sent"].as_f64().unwrap_or(f64::NAN) + 1.0;
    let received = fleet.published.get() as f64 + from_operator;
    Ok(Run { last_active: fleet.last_active.get(), messages: received + after.0 - before.0, bytes: after.1 - before.1 })
}

async fn wait(patience: Duration, mut condition: impl FnMut() -> bool) -> io::Result<()> {
    let deadline = Instant::now() + patience;
    while !condition() {
        if Instant::now() >= deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// Returns the number of publishes that the broker sent, and bytes in both directions. Its count of received publishes is
/// always 0 (Mosquitto 2.0.11).
fn figures(broker: &Mosquitto) -> io::Result<(f64, f64)> {
    const NAMES: [&str; 3] = ["publish/messages/sent", "bytes/received", "bytes/sent"];
    let topics = NAMES.map(|name| format!("$SYS/broker/{name}"));
    let mut client = broker.client("figures");
    client.send(&wire::subscribe(1, &topics.each_ref().map(|topic| &**topic)))?;
    let mut found: BTreeMap<String, f64> = BTreeMap::new();
    while found.len() < topics.len() {
        let Some(message) = client.receive(Duration::from_secs(10))? else {
            return Err(io::Error::other("the broker does not publish its figures"));
        };
        found.insert(message.topic.clone(), message.text().parse().unwrap_or(f64::NAN));
    }
    let [sent, bytes_in, bytes_out] = topics.map(|topic| found[&topic]);
    Ok((sent, bytes_in + bytes_out))
}

struct Node<'f> {
    fleet: &'f Fleet,
    name: String,
    stream: TcpStream,
    next_packet_id: u16,
    out: Vec<u8>,
    receiving: Option<(Order, Install, BTreeMap<u32, Vec<u8>>)>,
}

impl<'f> Node<'f> {
    async fn new(fleet: &'f Fleet, name: String) -> io::Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, fleet.port)).await?;
        stream.set_nodelay(true)?;
        let out = Hello::new(&name).encode();
        Ok(Self { fleet, name, stream, next_packet_id: 0, out, receiving: None })
    }

    async fn serve(mut self) -> io::Result<()> {
        let (mut read, mut chunk) = (Vec::new(), vec![0; 16 << 10]);
        loop {
            self.stream.write_all(&self.out).await?;
            self.out.clear();
            match self.stream.read(&mut chunk).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => read.extend(&chunk[..count]),
            }
            let mut start = 0;
            while let Some((packet, length)) = wire::decode(&read[start..])? {
                start += length;
                self.handle_packet(packet);
            }
            read.drain(..start);
        }
    }

    fn handle_packet(&mut self, packet: Packet) {
        match packet {
            Packet::ConnAck { .. } => {
                let status = json!({ "state": "online", "groups": [GROUP] });
                self.publish(&self.fleet.topics.status(&self.name), &status);
                let targets = [Target::Node(self.name.as_str().into()), Target::Group(GROUP.into())];
                let filters = targets.map(|target| self.fleet.topics.deploys(&target));
                let packet_id = self.packet_id();
                self.out.extend(wire::subscribe(packet_id, &[&filters[0], &filters[1]]));
            }
            // The subscription to orders; later ones are to chunks.
            Packet::SubAck { .. } if self.receiving.is_none() => {
                self.fleet.listening.set(self.fleet.listening.get() + 1);
            }
            Packet::Publish(message) => {
                if message.qos > 0 {
                    wire::puback(message.packet_id, &mut self.out);
                }
                match self.fleet.topics.parse(&message.topic) {
                    Some(Topic::Deploy { .. }) => self.order(&message.payload),
                    Some(Topic::Blob { index, .. }) => self.chunk(index, message.payload),
                    _ => {}
                }
            }
            _ => {}
        }
    }

    fn order(&mut self, envelope: &[u8]) {
        let envelope = SignedEnvelope::parse(envelope).expect("an envelope");
        let (payload, _) = envelope.verify(&self.fleet.keys).expect("a signature of the key");
        let order = Order::parse(payload).expect("an order");
        let OrderChange::Install(install) = &order.change else { return };
        let install = Install::clone(install);
        let filter = self.fleet.topics.blobs(&module(&install).digest);
        let packet_id = self.packet_id();
        self.out.extend(wire::subscribe(packet_id, &[&filter]));
        self.report(&order, &install, "receiving");
        self.receiving = Some((order, install, BTreeMap::new()));
    }

    fn chunk(&mut self, index: u32, payload: Vec<u8>) {
        let Some((order, install, mut chunks)) = self.receiving.take() else { return };
        assert_eq!(sedge_core::deploy::digest(&payload), module(&install).chunks[index as usize]);
        chunks.insert(index, payload);
        if chunks.len() < module(&install).chunks.len() {
            self.receiving = Some((order, install, chunks));
            return;
        }
        let whole: Vec<u8> = chunks.into_values().flatten().collect();
        assert_eq!(sedge_core::deploy::digest(&whole), module(&install).digest);
        let packet_id = self.packet_id();
        self.out.extend(wire::unsubscribe(packet_id, &self.fleet.topics.blobs(&module(&install).digest)));
        for state in ["verifying", "compiling", "trial", "active"] {
            self.report(&order, &install, state);
        }
        self.fleet.active.set(self.fleet.active.get() + 1);
        self.fleet.last_active.set(self.fleet.started.get().map_or(Duration::ZERO, |started| started.elapsed()));
    }

    fn report(&mut self, order: &Order, install: &Install, state: &str) {
        let manifest = install.manifest.as_value();
        let active = (state == "active").then(|| {
            json!({ "version": manifest["version"], "serial": order.serial, "digest": module(install).digest, "manifest": manifest })
        });
        let report = json!({
            "function": &*order.function, "state": state, "version": manifest["version"], "serial": order.serial,
            "digest": module(install).digest, "active": active, "previous": null, "at_ms": 0, "clock_synced": true,
        });
        self.publish(&self.fleet.topics.report(&self.name, &order.function), &report);
    }

    fn publish(&mut self, topic: &str, value: &serde_json::Value) {
        self.fleet.published.set(self.fleet.published.get() + 1);
        let packet_id = self.packet_id();
        Publish { retain: true, packet_id, ..Publish::new(topic, value.to_string()) }.encode(&mut self.out);
    }

    fn packet_id(&mut self) -> u16 {
        self.next_packet_id = self.next_packet_id.checked_add(1).unwrap_or(1);
        self.next_packet_id
    }
}

/// Returns the module, which boards with a compiler install.
fn module(install: &Install) -> &Module {
    install.module.as_ref().expect("a push without --code-only brings the module")
}
