//! The rates that boards live at: nothing, and 10, 100 and 1,000 messages per second. Each figure stands beside that of the usual
//! durable script (`durable.py`), measured in turn with it.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Size;
use crate::durable::{reading, start};
use crate::harness::client::Client;
use crate::harness::daemon::{Daemon, NODE};
use crate::harness::eventually;
use crate::harness::guest::guest;
use crate::harness::mosquitto::Mosquitto;
use crate::harness::process::{self, Threads};
use crate::harness::wire::{Hello, Publish};
use crate::latency::{ALERT_EVERY, collect};
use crate::load::paced;
use crate::node_red::{self, NodeRed};
use crate::report::{Goal, Report, percentile};

/// An idle board is at rest this long after its last message.
const REST: Duration = Duration::from_secs(35);
const IDLE: Duration = Duration::from_secs(20);

pub(crate) fn measure(report: &mut Report, size: &Size) -> io::Result<()> {
    measure_idle(report)?;
    let (python, node_red) = (python(), node_red::find());
    let mut ratios: [Vec<f64>; 4] = Default::default();
    let mut over_node_red: [Vec<f64>; 2] = Default::default();
    let (mut switches, mut bytes) = (Vec::new(), Vec::new());
    for round in 0..size.rounds {
        eprintln!("trickle, round {} of {}", round + 1, size.rounds);
        let ten = run(&Subject::Sedge, 10, 100)?;
        let hundred = run(&Subject::Sedge, 100, 500)?;
        let thousand = run(&Subject::Sedge, 1000, size.latency_messages / 2)?;
        switches.push(ten.switches);
        bytes.push(ten.bytes);
        if let Some(program) = &node_red {
            let subject = Subject::NodeRed(program.clone());
            over_node_red[0].push(ten.cpu_us / run(&subject, 10, 100)?.cpu_us);
            over_node_red[1].push(hundred.cpu_us / run(&subject, 100, 500)?.cpu_us);
        }
        let Some(python) = &python else { continue };
        let script = Subject::Script(python.clone());
        let beside = [run(&script, 10, 100)?, run(&script, 100, 500)?, run(&script, 1000, size.latency_messages / 2)?];
        ratios[0].push(ten.cpu_us / beside[0].cpu_us);
        ratios[1].push(hundred.cpu_us / beside[1].cpu_us);
        for (index, percent) in [(2, 50.0), (3, 99.0)] {
            ratios[index].push(percentile(&thousand.latencies, percent) / percentile(&beside[2].latencies, percent));
        }
    }
    let what = "context switches of daemon and workers per message, 10 messages/s";
    report.add_median("trickle10_switches_per_msg", switches, Goal::AtMost(10.0), what);
    let what = "written to the block layer per message, 10 messages/s, a 200-byte result per commit";
    report.add_median("trickle10_disk_bytes_per_msg", bytes, Goal::None, what);
    let figures = [
        ("trickle10_cpu_ratio", 0.6, "CPU per message over the durable script's, 10 messages/s"),
        ("trickle100_cpu_ratio", 0.5, "the same, 100 messages/s"),
        ("latency_p50_ratio", 0.9, "publish to local alert over the durable script's, 1,000 messages/s"),
        ("latency_p99_ratio", 1.0, "the same"),
    ];
    for ((key, most, what), runs) in figures.into_iter().zip(ratios) {
        match python {
            Some(_) => report.add_median(key, runs, Goal::AtMost(most), what),
            None => report.add_missing(key, Goal::AtMost(most), "needs a Python with paho-mqtt 2: SEDGE_BENCH_PYTHON"),
        }
    }
    let figures = [
        ("trickle10_node_red_ratio", "CPU per message over Node-RED's, which stores nothing, 10 messages/s"),
        ("trickle100_node_red_ratio", "the same, 100 messages/s"),
    ];
    for ((key, what), runs) in figures.into_iter().zip(over_node_red) {
        match node_red {
            Some(_) => report.add_median(key, runs, Goal::None, what),
            None => report.add_missing(key, Goal::None, node_red::HINT),
        }
    }
    Ok(())
}

fn measure_idle(report: &mut Report) -> io::Result<()> {
    eprintln!("idle");
    let broker = Mosquitto::start();
    let daemon = start(&broker, &[guest("relay")], "process");
    let (mut stream, _) = Client::connect(broker.port, &Hello::new("load"))?.into_parts();
    paced(&mut stream, 100, 100, |index| Publish::new("relay/a", reading(index)))?;
    std::thread::sleep(REST);
    let (threads, cpu) = (Threads::of(daemon.pid()), process::cpu_ns(daemon.pid()));
    std::thread::sleep(IDLE);
    let after = Threads::of(daemon.pid());
    for (name, switches) in after.since(&threads) {
        eprintln!("  {name}: {:.2} wake-ups per second", switches as f64 / IDLE.as_secs_f64());
    }
    let per_second = |count: u64| count as f64 / IDLE.as_secs_f64();
    let switches = after.since(&threads).values().sum();
    report.add("idle_wakeups_per_s", per_second(switches), Goal::AtMost(1.0), "daemon and workers, after load");
    let cpu_us = (process::cpu_ns(daemon.pid()) - cpu) / 1000;
    report.add("idle_cpu_us_per_s", per_second(cpu_us), Goal::AtMost(60.0), "the same");
    Ok(())
}

/// What is measured.
enum Subject {
    Sedge,
    /// The durable script, with this interpreter.
    Script(PathBuf),
    /// This program.
    NodeRed(PathBuf),
}

/// As the guest `relay`, without a place to forward to.
const RELAY: &str = r#"
if (!msg.payload.startsWith("!")) return null;
return { topic: "node-red/alerts", payload: JSON.stringify({ key: msg.payload.slice(1) }) };
"#;

struct Run {
    cpu_us: f64,
    switches: f64,
    bytes: f64,
    /// Publish to alert, in milliseconds.
    latencies: Vec<f64>,
}

fn run(subject: &Subject, per_second: u32, count: usize) -> io::Result<Run> {
    let broker = Mosquitto::start();
    let folder = tempfile::tempdir()?;
    // Ended before the broker.
    let running = Running::start(subject, &broker, folder.path())?;
    let mut listener = broker.client("listener");
    let sedge = format!("sedge/{NODE}/alerts/relay");
    listener.subscribe(&[match subject {
        Subject::Sedge => &*sedge,
        Subject::Script(_) => "script/alerts",
        Subject::NodeRed(_) => node_red::ALERTS,
    }])?;
    let message = |index: usize| match index % ALERT_EVERY {
        0 => Publish::new(&format!("relay/s{}", index % 16), format!("!{index}")),
        _ => Publish::new(&format!("relay/s{}", index % 16), reading(index)),
    };
    let (mut stream, _) = Client::connect(broker.port, &Hello::new("load"))?.into_parts();
    // Warm: the first messages load code and state.
    paced(&mut stream, 100, 100, |index| Publish::new(&format!("relay/s{}", index % 16), reading(index)))?;
    std::thread::sleep(Duration::from_secs(1));

    let pid = running.pid();
    let (threads, cpu, written) = (Threads::of(pid), process::cpu_ns(pid), process::written_bytes(pid));
    let (mut stream, _) = Client::connect(broker.port, &Hello::new("load"))?.into_parts();
    let expected = count.div_ceil(ALERT_EVERY);
    let arrivals = std::thread::spawn(move || collect(&mut listener, expected));
    let due = paced(&mut stream, per_second, count, message)?;
    let arrivals: Vec<(usize, Instant)> = arrivals.join().expect("the listener does not panic")?;
    assert_eq!(arrivals.len(), expected, "alerts that arrived");
    let per_message = |figure: u64| figure as f64 / count as f64;
    Ok(Run {
        cpu_us: per_message(process::cpu_ns(pid) - cpu) / 1e3,
        switches: per_message(Threads::of(pid).since(&threads).values().sum()),
        bytes: per_message(process::written_bytes(pid) - written),
        latencies: arrivals.iter().map(|(index, at)| at.duration_since(due[*index]).as_secs_f64() * 1e3).collect(),
    })
}

enum Running {
    Sedge(Daemon),
    Script(Child),
    NodeRed(NodeRed),
}

impl Running {
    fn start(subject: &Subject, broker: &Mosquitto, folder: &Path) -> io::Result<Self> {
        let python = match subject {
            Subject::Sedge => return Ok(Self::Sedge(start(broker, &[guest("relay")], "process"))),
            Subject::NodeRed(program) => {
                return Ok(Self::NodeRed(NodeRed::start(program, broker, "relay/#", "utf8", RELAY)?));
            }
            Subject::Script(python) => python,
        };
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/sedge/durable.py");
        let mut command = Command::new(python);
        command.arg(script).arg(broker.port.to_string()).arg(folder.join("outbox.db")).arg("relay/#");
        let child = command.stdin(Stdio::null()).spawn()?;
        let subscribed = eventually(Duration::from_secs(20), || broker.log().contains(": script 1 relay/#"));
        assert!(subscribed, "the script does not subscribe; the broker's log:\n{}", broker.log());
        Ok(Self::Script(child))
    }

    fn pid(&self) -> u32 {
        match self {
            Self::Sedge(daemon) => daemon.pid(),
            Self::Script(child) => child.id(),
            Self::NodeRed(node_red) => node_red.pid(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Self::Script(child) = self {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// An interpreter with paho-mqtt 2, if there is one.
fn python() -> Option<PathBuf> {
    let python = std::env::var_os("SEDGE_BENCH_PYTHON").map_or_else(|| PathBuf::from("python3"), PathBuf::from);
    let mut probe = Command::new(&python);
    probe.args(["-c", "from paho.mqtt.client import CallbackAPIVersion"]);
    let status = probe.stdin(Stdio::null()).stderr(Stdio::null()).status().ok()?;
    status.success().then_some(python)
}
