//! Time from an order to the first message that the new version handles, or that is handled with the new setting, and the pause
//! of messages at the swap.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use sedge_core::deploy::envelope::SignedEnvelope;
use sedge_core::deploy::keys::SigningKey;
use sedge_core::deploy::payload::{DEFAULT_CHUNK_BYTES, Install, Module, Order, OrderChange, SettingsUpdate};
use sedge_core::deploy::report::{DeployState, Report as NodeReport};
use sedge_core::deploy::topics::{Target, Topics};
use sedge_core::manifest::Manifest;
use sedge_sandbox::componentize::{push_leb, push_section, sections};
use sedge_sandbox::script::archive;
use serde_json::{Value, json};
use wasmparser::BinaryReader;

use crate::Size;
use crate::harness::client::Client;
use crate::harness::daemon::{Daemon, NODE, Setup};
use crate::harness::guest::guest;
use crate::harness::mosquitto::Mosquitto;
use crate::harness::wire::{Hello, Publish};
use crate::load::paced;
use crate::report::{Goal, Report};

const PATIENCE: Duration = Duration::from_secs(20);
const COMPONENT_BYTES: usize = 60_000;
const PROBES_PER_SECOND: u32 = 1000;
const FLOW_PER_SECOND: u32 = 5000;
const FLOW_SECS: usize = 8;
const SOURCES: usize = 16;
/// Changes of settings, one after the other.
const CHANGES: u64 = 5;

pub(crate) fn measure(report: &mut Report, size: &Size) -> io::Result<()> {
    let mut times = Times::default();
    for round in 0..size.rounds * 3 {
        eprintln!("push, round {} of {}", round + 1, size.rounds * 3);
        let bench = Bench::start(&guest("edition"))?;
        bench.push_times(&mut times, round)?;
    }
    let what = "60 KB component, from publishing chunks and order to the first message that it handles";
    report.add_median("push_to_first_message_ms", times.cold, Goal::AtMost(400.0), what);
    let what = "of that while it is compiled, from the board's report `compiling` to its report `trial`";
    report.add_median("push_compile_ms", times.compile, Goal::None, what);
    let what = "of that before the one report and after the other";
    report.add_median("push_rest_ms", times.rest, Goal::AtMost(50.0), what);
    report.add_median("push_cached_ms", times.cached, Goal::AtMost(20.0), "the same module with another manifest");
    report.add_median("js_push_to_first_message_ms", script_times(size)?, Goal::AtMost(50.0), "a script of 1 KB");

    let mut times = Vec::new();
    for round in 0..size.rounds {
        eprintln!("settings, round {} of {}", round + 1, size.rounds);
        times.extend(Bench::start(&guest("edition"))?.settings_times()?);
    }
    let what = "from publishing an order of settings to the first message that is handled with them, 1,000 messages/s";
    report.add_median("settings_to_effect_ms", times, Goal::None, what);

    let mut gaps = Gaps::default();
    for round in 0..size.rounds {
        eprintln!("swap, round {} of {}", round + 1, size.rounds);
        let bench = Bench::start(&guest("edition"))?;
        bench.swap_gaps(&mut gaps, round)?;
    }
    let ratio = gaps.swap.iter().zip(&gaps.usual).map(|(swap, usual)| swap / usual).collect();
    let what = "longest pause between two results while versions change, 5,000 messages/s, code cached";
    report.add_median("swap_gap_ms", gaps.swap, Goal::AtMost(5.0), what);
    report.add_median("swap_usual_gap_ms", gaps.usual, Goal::None, "the same, as long, just before, with no change");
    report.add_median("swap_gap_ratio", ratio, Goal::None, "the first over the second");
    report.add_median(
        "swap_compiling_gap_ms",
        gaps.compiling,
        Goal::None,
        "the first with compiling on the same cores",
    );
    Ok(())
}

#[derive(Default)]
struct Times {
    cold: Vec<f64>,
    compile: Vec<f64>,
    rest: Vec<f64>,
    cached: Vec<f64>,
}

#[derive(Default)]
struct Gaps {
    swap: Vec<f64>,
    usual: Vec<f64>,
    compiling: Vec<f64>,
}

/// A received result: version, message number and time of arrival.
struct Result {
    version: String,
    number: usize,
    at: Instant,
}

struct Bench {
    _daemon: Daemon,
    broker: Mosquitto,
    key: SigningKey,
    /// Folder of the function that is pushed.
    function: PathBuf,
    _folder: tempfile::TempDir,
}

/// Pushes scripts to a board on which the engine for scripts is loaded.
fn script_times(size: &Size) -> io::Result<Vec<f64>> {
    let mut times = Vec::new();
    for round in 0..size.rounds {
        eprintln!("push of a script, round {} of {}", round + 1, size.rounds);
        let folder = tempfile::tempdir()?;
        let function = folder.path().join("edition");
        fs::create_dir(&function)?;
        fs::copy(guest("edition").join("function.toml"), function.join("function.toml"))?;
        fs::write(function.join(archive::MAIN), script(0))?;
        let bench = Bench::start(&function)?;
        let reports = bench.reports()?;
        let results = bench.listen()?;
        let flow = bench.flow(PROBES_PER_SECOND, PROBES_PER_SECOND as usize * FLOW_SECS)?;
        let mut hand = bench.broker.client("hand");
        wait_for(&results, "v1")?;
        for serial in 2..2 + CHANGES {
            fs::write(function.join(archive::MAIN), script(serial))?;
            let packed = archive::pack(&function.join(archive::MAIN), None).map_err(io::Error::other)?;
            let messages = bench.messages(&packed, serial, 1);
            let begun = Instant::now();
            hand.publish_all(messages)?;
            times.push(milliseconds(begun, wait_for(&results, &format!("v{serial}"))?));
            states(&reports, serial)?;
        }
        drop(flow);
    }
    Ok(times)
}

/// Does as the guest `edition`, in about 1 KB.
fn script(serial: u64) -> String {
    let table: Vec<String> = (0..32).map(|entry| format!("  [{entry}, \"sensor {entry} of {serial}\"],\n")).collect();
    format!(
        "import {{ publish, reject, settings, state }} from \"sedge\";\n\nconst names = new Map([\n{}]);\n\n\
         export function handle(message) {{\n  state.increment(\"count\", 1);\n  if (names.size !== 32) reject(\"no names\");\n  \
         return publish(`said/${{settings.label}}`, message.text);\n}}\n",
        table.concat()
    )
}

impl Bench {
    /// Version 1 runs from a folder.
    fn start(function: &Path) -> io::Result<Self> {
        let broker = Mosquitto::start();
        let folder = tempfile::tempdir()?;
        let key = SigningKey::generate().map_err(io::Error::other)?;
        let file = folder.path().join("ops.pub.pem");
        fs::write(&file, key.public().to_pem())?;
        let setup = Setup::new(broker.url()).function(function).set("deploy.keys.ops", format!("file = {file:?}"));
        let daemon = Daemon::start(&setup);
        broker.await_daemon();
        Ok(Self { _daemon: daemon, broker, key, function: function.to_owned(), _folder: folder })
    }

    fn push_times(&self, times: &mut Times, round: usize) -> io::Result<()> {
        let wasm = component(round)?;
        let reports = self.reports()?;
        let results = self.listen()?;
        // Publishes until the end of this function, when its socket closes.
        let flow = self.flow(PROBES_PER_SECOND, PROBES_PER_SECOND as usize * FLOW_SECS)?;
        let mut hand = self.broker.client("hand");
        wait_for(&results, "v1")?;
        let mut push = |serial| -> io::Result<_> {
            let messages = self.messages(&wasm, serial, 1);
            let begun = Instant::now();
            hand.publish_all(messages)?;
            let first = wait_for(&results, &format!("v{serial}"))?;
            Ok((begun, first, states(&reports, serial)?))
        };
        let (begun, first, states) = push(2)?;
        let [compiling, trial] = [DeployState::Compiling, DeployState::Trial].map(|state| {
            *states.get(state.as_str()).unwrap_or_else(|| panic!("the board does not report {}", state.as_str()))
        });
        times.cold.push(milliseconds(begun, first));
        times.compile.push(milliseconds(compiling, trial));
        times.rest.push(milliseconds(begun, compiling) + milliseconds(trial, first));
        let (begun, first, _) = push(3)?;
        times.cached.push(milliseconds(begun, first));
        drop(flow);
        Ok(())
    }

    fn settings_times(&self) -> io::Result<Vec<f64>> {
        let results = self.listen()?;
        let flow = self.flow(PROBES_PER_SECOND, PROBES_PER_SECOND as usize * FLOW_SECS)?;
        let mut hand = self.broker.client("hand");
        wait_for(&results, "v1")?;
        let mut times = Vec::new();
        for serial in 1..=CHANGES {
            let label = format!("s{serial}");
            let all = BTreeMap::from([("label".to_owned(), label.clone())]);
            let change = OrderChange::Settings(SettingsUpdate { base: serial - 1, all, ..SettingsUpdate::default() });
            let (target, envelope) = self.order(serial, change);
            let begun = Instant::now();
            hand.publish(retained(&Topics::new("sedge").settings(&target, "edition"), envelope))?;
            times.push(wait_for(&results, &label)?.duration_since(begun).as_secs_f64() * 1e3);
            std::thread::sleep(Duration::from_millis(200));
        }
        drop(flow);
        Ok(times)
    }

    fn swap_gaps(&self, gaps: &mut Gaps, round: usize) -> io::Result<()> {
        let wasm = component(100 + round)?;
        let reports = self.reports()?;
        let results = self.listen()?;
        let count = FLOW_PER_SECOND as usize * FLOW_SECS;
        let flow = self.flow(FLOW_PER_SECOND, count)?;
        let mut hand = self.broker.client("hand");
        let mut windows = Vec::new();
        for serial in [2, 3] {
            std::thread::sleep(Duration::from_millis(1500));
            let begun = Instant::now();
            hand.publish_all(self.messages(&wasm, serial, 200))?;
            states(&reports, serial)?;
            windows.push((begun, Instant::now()));
        }
        flow.join().expect("the publisher does not panic")?;
        let mut all = Vec::with_capacity(count);
        while all.len() < count {
            all.push(results.recv_timeout(PATIENCE).map_err(|_| lost(all.len(), count))?);
        }
        check(&all, count);
        let longest = |from: Instant, until: Instant| {
            let within = all.windows(2).filter(|pair| pair[1].at >= from && pair[0].at <= until);
            let pauses = within.map(|pair| pair[1].at.duration_since(pair[0].at).as_secs_f64() * 1e3);
            pauses.fold(0.0, f64::max)
        };
        let [(from, until), (cached_from, cached_until)] = windows[..] else { panic!("two versions were pushed") };
        gaps.compiling.push(longest(from, until));
        gaps.swap.push(longest(cached_from, cached_until));
        gaps.usual.push(longest(cached_from - cached_until.duration_since(cached_from), cached_from));
        Ok(())
    }

    /// Returns the chunks, and the order for them.
    fn messages(&self, wasm: &[u8], serial: u64, trial: u32) -> Vec<Publish> {
        let topics = Topics::new("sedge");
        let manifest =
            Manifest::load(&self.function, &sedge_sandbox::machine::MACHINE).expect("the function has a manifest");
        let mut manifest: Value = serde_json::from_slice(&manifest.to_json()).expect("a manifest is JSON");
        manifest["serial"] = json!(serial);
        manifest["config"]["label"] = json!(format!("v{serial}"));
        manifest["trial"] = json!({ "messages": trial, "secs": 60 });
        let module = Module::of(wasm, DEFAULT_CHUNK_BYTES);
        let (digest, manifest) = (module.digest, serde_json::from_value(manifest).expect("a manifest is a document"));
        let install = Install { manifest, module: Some(module), code: Vec::new() };
        let (target, envelope) = self.order(serial, OrderChange::Install(Box::new(install)));
        let chunks = wasm.chunks(DEFAULT_CHUNK_BYTES as usize).enumerate();
        let mut messages: Vec<Publish> =
            chunks.map(|(index, chunk)| retained(&topics.blob(&digest, index as u32), chunk.to_vec())).collect();
        messages.push(retained(&topics.deploy(&target, "edition"), envelope));
        messages
    }

    /// An order that is signed, and whom it is for.
    fn order(&self, serial: u64, change: OrderChange) -> (Target, Vec<u8>) {
        let now_ms = sedge_sandbox::clock::now_ms();
        let target = Target::Node(NODE.into());
        let order = Order {
            function: "edition".into(),
            serial,
            target: target.clone(),
            issued_at_ms: now_ms,
            expires_at_ms: now_ms + 3_600_000,
            change,
        };
        (target, SignedEnvelope::sign(&order.to_json(), &[&self.key]).to_json())
    }

    /// Returns a queue of the board's reports. Their reader ends when it is dropped.
    fn reports(&self) -> io::Result<Receiver<(NodeReport, Instant)>> {
        let mut client = self.broker.client("reports");
        client.subscribe(&[&Topics::new("sedge").reports(Some(NODE))])?;
        let (sender, reports) = sync_channel(1024);
        std::thread::spawn(move || {
            while let Ok(message) = client.receive(PATIENCE) {
                let Some(message) = message else { continue };
                let report = NodeReport::parse(&message.payload).expect("the board sends reports");
                if sender.send((report, Instant::now())).is_err() {
                    break;
                }
            }
        });
        Ok(reports)
    }

    /// Returns a queue of the results. The listener ends when it is dropped.
    fn listen(&self) -> io::Result<Receiver<Result>> {
        let mut client = self.broker.client("listener");
        client.subscribe(&["said/#"])?;
        // Holds all results of a run, so that the listener never waits.
        let (sender, results) = sync_channel(FLOW_PER_SECOND as usize * FLOW_SECS);
        std::thread::spawn(move || {
            while let Ok(message) = client.receive(PATIENCE) {
                let Some(message) = message else { continue };
                let (version, number) = (message.topic.strip_prefix("said/"), message.text().parse());
                let (Some(version), Ok(number)) = (version, number) else { continue };
                if sender.send(Result { version: version.to_owned(), number, at: Instant::now() }).is_err() {
                    break;
                }
            }
        });
        Ok(results)
    }

    fn flow(&self, per_second: u32, count: usize) -> io::Result<std::thread::JoinHandle<io::Result<()>>> {
        let (mut stream, _) = Client::connect(self.broker.port, &Hello::new("load"))?.into_parts();
        Ok(std::thread::spawn(move || {
            let message = |index: usize| Publish::new(&format!("count/s{}", index % SOURCES), index.to_string());
            paced(&mut stream, per_second, count, message).map(drop)
        }))
    }
}

/// Checks that every message was handled once, and those of each topic in order.
fn check(all: &[Result], count: usize) {
    let mut times = vec![0; count];
    let mut last: HashMap<usize, (usize, &str)> = HashMap::new();
    for result in all {
        times[result.number] += 1;
        let now = (result.number, &*result.version);
        if let Some(before) = last.insert(result.number % SOURCES, now) {
            assert!(before.0 < now.0 && before.1 <= now.1, "{before:?} before {now:?}");
        }
    }
    assert!(times.iter().all(|times| *times == 1), "each message is handled once, by one version");
}

/// Returns the time of the first result of this version.
fn wait_for(results: &Receiver<Result>, version: &str) -> io::Result<Instant> {
    loop {
        let result =
            results.recv_timeout(PATIENCE).map_err(|_| io::Error::other(format!("{version} sends no result")))?;
        if result.version == version {
            return Ok(result.at);
        }
    }
}

/// When each state of this version was reported, until it is active.
fn states(reports: &Receiver<(NodeReport, Instant)>, serial: u64) -> io::Result<BTreeMap<&'static str, Instant>> {
    let mut states = BTreeMap::new();
    loop {
        let late = |_| io::Error::other(format!("version {serial} does not become active"));
        let (report, at) = reports.recv_timeout(PATIENCE).map_err(late)?;
        if report.serial != Some(serial) {
            continue;
        }
        states.insert(report.state.as_str(), at);
        if report.state == DeployState::Active {
            return Ok(states);
        }
        assert!(!report.state.is_final(), "{report:?}");
    }
}

fn milliseconds(from: Instant, until: Instant) -> f64 {
    until.duration_since(from).as_secs_f64() * 1e3
}

/// Makes a component of 60 KB by repeating the function's own code. Each tag gives another digest.
fn component(tag: usize) -> io::Result<Vec<u8>> {
    let wasm = fs::read(guest("edition").join("edition.wasm"))?;
    let parts = sections(&wasm).map_err(io::Error::other)?;
    let code = parts.iter().filter(|(id, _)| *id == CORE_MODULE).map(|(_, module)| module.len()).max().unwrap_or(0);
    let times = (COMPONENT_BYTES - wasm.len()) / code + 1;
    let mut grown = wasm[..8].to_vec();
    for (id, contents) in parts {
        if id == CORE_MODULE && contents.len() == code {
            push_section(&mut grown, id, &with_functions(contents, times)?);
        } else {
            push_section(&mut grown, id, contents);
        }
    }
    // A custom section.
    push_section(&mut grown, 0, &[&b"\x03tag"[..], &(tag as u16).to_le_bytes()].concat());
    Ok(grown)
}

const CORE_MODULE: u8 = 1;
const FUNCTION: u8 = 3;
const CODE: u8 = 10;

/// Repeats all functions of a core module. The copies follow the originals, are never called, and are compiled nevertheless.
fn with_functions(module: &[u8], times: usize) -> io::Result<Vec<u8>> {
    let mut grown = module[..8].to_vec();
    for (id, contents) in sections(module).map_err(io::Error::other)? {
        if id != FUNCTION && id != CODE {
            push_section(&mut grown, id, contents);
            continue;
        }
        let mut reader = BinaryReader::new(contents, 0);
        let count = reader.read_var_u32().map_err(io::Error::other)? as usize;
        let mut repeated = Vec::new();
        push_leb(&mut repeated, count * times);
        repeated.extend(contents[reader.original_position()..].repeat(times));
        push_section(&mut grown, id, &repeated);
    }
    Ok(grown)
}

fn retained(topic: &str, payload: Vec<u8>) -> Publish {
    Publish { retain: true, ..Publish::new(topic, payload) }
}

fn lost(received: usize, count: usize) -> io::Error {
    io::Error::other(format!("{received} of {count} messages were handled"))
}
