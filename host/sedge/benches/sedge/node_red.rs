//! The same threshold in Node-RED, which stores nothing, and in Sedge, which commits every message: as a function in Rust and as one
//! in JavaScript.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::json;

use crate::Size;
use crate::durable::{reading_of, settle, start};
use crate::harness::daemon::Daemon;
use crate::harness::eventually;
use crate::harness::guest::{example, root};
use crate::harness::mosquitto::{Mosquitto, free_port};
use crate::harness::process;
use crate::harness::wire::Publish;
use crate::load::Load;
use crate::noop::Noop;
use crate::report::{Goal, Report};

/// What npm is asked for.
const VERSION: &str = "4.1";
/// Topic of its alerts.
pub(crate) const ALERTS: &str = "node-red/alerts";
pub(crate) const HINT: &str =
    "needs node, and npm to install Node-RED once, or SEDGE_BENCH_NODE_RED=.../node-red/red.js";

const TOPICS: usize = 16;
/// Readings of a topic that are alike: an alert is raised or resolved with one message in so many.
const ALIKE: usize = 10;

/// As `examples/javascript/threshold`.
const THRESHOLD: &str = r#"
const [field, max, hysteresis] = ["temperature", 80, 2];
const value = msg.payload[field];
if (typeof value !== "number") return null;
const key = `${msg.topic}/${field}`;
const labels = { topic: msg.topic };
// Keys of a context have no slash.
const all = context.get("firing") ?? {};
const firing = all[key] ?? false;
const alert = (status, summary) =>
  ({ topic: "node-red/alerts", payload: JSON.stringify({ key, status, severity: "critical", summary, value, labels }) });
if (!firing && value > max) {
  all[key] = true;
  context.set("firing", all);
  return alert("firing", `${field} is ${value}, above ${max}`);
}
if (firing && value <= max - hysteresis) {
  all[key] = false;
  context.set("firing", all);
  return alert("resolved", `${field} is back to ${value}`);
}
return null;
"#;

pub(crate) fn measure(report: &mut Report, size: &Size) -> io::Result<()> {
    let node_red = find();
    let (rust, script) = (example("threshold-alert"), root().join("examples/javascript/threshold"));
    let (mut rust_us, mut script_us, mut node_red_us) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..size.rounds {
        eprintln!("threshold, round {} of {}", round + 1, size.rounds);
        let in_rust = run(&Subject::Sedge(&rust), size.messages)?;
        let in_javascript = run(&Subject::Sedge(&script), size.messages)?;
        assert_eq!(in_rust.alerts, in_javascript.alerts, "the same alerts");
        rust_us.push(in_rust.cpu_us);
        script_us.push(in_javascript.cpu_us);
        if let Some(program) = &node_red {
            let beside = run(&Subject::NodeRed(program), size.messages)?;
            assert_eq!(in_rust.alerts, beside.alerts, "the same alerts");
            node_red_us.push(beside.cpu_us);
        }
    }
    let over = |ours: &[f64]| ours.iter().zip(&node_red_us).map(|(ours, theirs)| ours / theirs).collect::<Vec<f64>>();
    let ratios = [
        ("flood_cpu_ratio", over(&rust_us), 0.4, "CPU per message, the threshold in Rust, committed, over Node-RED's"),
        ("js_cpu_ratio", over(&script_us), 0.8, "the same in JavaScript, in a fresh sandbox for each message"),
    ];
    for (key, runs, most, what) in ratios {
        match node_red {
            Some(_) => report.add_median(key, runs, Goal::AtMost(most), what),
            None => report.add_missing(key, Goal::AtMost(most), HINT),
        }
    }
    let what = "CPU of daemon and workers per message, the example threshold in JavaScript, committed";
    report.add_median("js_cpu_us_per_msg", script_us, Goal::None, what);
    if node_red.is_some() {
        report.add_median("node_red_cpu_us_per_msg", node_red_us, Goal::None, "CPU of Node-RED for the same");
    }
    Ok(())
}

enum Subject<'a> {
    /// With this function.
    Sedge(&'a Path),
    NodeRed(&'a Path),
}

enum Running {
    Sedge(Daemon),
    NodeRed(NodeRed),
}

struct Run {
    cpu_us: f64,
    alerts: u64,
}

fn run(subject: &Subject<'_>, count: usize) -> io::Result<Run> {
    let broker = Mosquitto::start();
    // Ended before the broker.
    let running = match subject {
        Subject::Sedge(function) => Running::Sedge(start(&broker, &[function.to_path_buf()], "process")),
        Subject::NodeRed(program) => {
            Running::NodeRed(NodeRed::start(program, &broker, "sensors/+/temperature", "json", THRESHOLD)?)
        }
    };
    let (pid, filter) = match &running {
        Running::Sedge(daemon) => (daemon.pid(), "sedge/board/alerts/#"),
        Running::NodeRed(node_red) => (node_red.pid(), ALERTS),
    };
    let alerts = Noop::start(broker.port, filter);
    let messages: Vec<Publish> = (0..2 * TOPICS * ALIKE * TOPICS)
        .map(|index| {
            let value = if (index / TOPICS / ALIKE).is_multiple_of(2) { 70.5 } else { 81.5 };
            Publish::new(&format!("sensors/s{}/temperature", index % TOPICS), reading_of(value))
        })
        .collect();
    let mut load = Load::connect(broker.port, "load", &messages)?;
    load.flood(2048)?;
    let received = || alerts.received() as f64;
    let before = settle(received, None);
    let cpu = process::cpu_ns(pid);
    let sent = load.flood(count)?;
    let after = settle(received, None);
    Ok(Run { cpu_us: (process::cpu_ns(pid) - cpu) as f64 / 1e3 / sent as f64, alerts: (after - before) as u64 })
}

/// A Node-RED with one flow: messages, one function, alerts.
pub(crate) struct NodeRed {
    child: Child,
    _folder: tempfile::TempDir,
}

impl NodeRed {
    /// `datatype`: what its MQTT node makes of a payload.
    pub(crate) fn start(
        program: &Path,
        broker: &Mosquitto,
        filter: &str,
        datatype: &str,
        function: &str,
    ) -> io::Result<Self> {
        let folder = tempfile::tempdir()?;
        // A node without a place is taken for the configuration of others.
        let flow = json!([
            { "id": "tab", "type": "tab", "label": "bench" },
            { "id": "broker", "type": "mqtt-broker", "broker": "127.0.0.1", "port": broker.port.to_string(),
              "clientid": "node-red", "autoConnect": true, "usetls": false, "protocolVersion": "5",
              "keepalive": "60", "cleansession": true },
            { "id": "in", "x": 0, "y": 0, "type": "mqtt in", "z": "tab", "topic": filter, "qos": "1", "datatype": datatype,
              "broker": "broker", "nl": false, "rap": true, "rh": 0, "inputs": 0, "wires": [["function"]] },
            { "id": "function", "x": 0, "y": 0, "type": "function", "z": "tab", "func": function, "outputs": 1, "timeout": 0,
              "noerr": 0, "initialize": "", "finalize": "", "libs": [], "wires": [["out"]] },
            { "id": "out", "x": 0, "y": 0, "type": "mqtt out", "z": "tab", "topic": "", "qos": "1", "retain": "false",
              "broker": "broker", "wires": [] },
        ]);
        fs::write(folder.path().join("flows.json"), flow.to_string())?;
        let settings = json!({
            "flowFile": "flows.json", "uiHost": "127.0.0.1", "uiPort": free_port(), "disableEditor": true,
            "logging": { "console": { "level": "error", "metrics": false, "audit": false } },
        });
        let file = folder.path().join("settings.js");
        fs::write(&file, format!("module.exports = {settings};\n"))?;
        let mut command = Command::new("node");
        command.arg(program).arg("--userDir").arg(folder.path()).arg("--settings").arg(file);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        let node_red = Self { child, _folder: folder };
        let subscription = format!(": node-red 1 {filter}");
        let is_subscribed = eventually(Duration::from_secs(60), || broker.log().contains(&subscription));
        assert!(is_subscribed, "Node-RED does not subscribe; the broker's log:\n{}", broker.log());
        Ok(node_red)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for NodeRed {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The program of Node-RED, installed into the cache for tools the first time.
pub(crate) fn find() -> Option<PathBuf> {
    if let Some(program) = std::env::var_os("SEDGE_BENCH_NODE_RED") {
        return Some(program.into());
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    let folder = cache.join("sedge/tools").join(format!("node-red-{VERSION}"));
    let program = folder.join("node_modules/node-red/red.js");
    if !program.exists() {
        eprintln!("installing Node-RED {VERSION} into {}, once", folder.display());
        fs::create_dir_all(&folder).ok()?;
        let mut npm = Command::new("npm");
        npm.args(["install", "--no-audit", "--no-fund", "--loglevel=error", "--prefix"]).arg(&folder);
        npm.arg(format!("node-red@{VERSION}")).stdout(Stdio::null());
        npm.status().ok().filter(std::process::ExitStatus::success)?;
    }
    program.exists().then_some(program)
}
