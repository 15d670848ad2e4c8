//! `make bench`: the figures that Sedge promises, each beside its baseline, in one run on one machine.
//!
//! Measured with a real Mosquitto, the real program and a publisher of negligible cost. Compared runs are interleaved, and the
//! figure is the median of their ratios. Figures of a busy machine are worthless, so the report includes the load.

mod calls;
mod disk;
mod durable;
mod fleet;
#[allow(dead_code, reason = "shared with the tests; each of the two uses a part")]
#[path = "../../../../tests/it/harness/mod.rs"]
mod harness;
mod http;
mod invoke;
mod latency;
mod load;
mod node_red;
mod noop;
mod pulley;
mod push;
mod recordings;
mod report;
mod schedules;
mod scripts;
mod shipped;
mod sinks;
mod trickle;

use std::path::Path;
use std::process::ExitCode;

use report::Report;

/// Amounts to measure.
pub(crate) struct Size {
    rounds: usize,
    /// Messages of one run under load.
    messages: usize,
    latency_messages: usize,
    /// Syncs of the disk before and after each latency run.
    syncs: usize,
    /// Number of boards in the fleet.
    nodes: usize,
}

const FULL: Size = Size { rounds: 5, messages: 200_000, latency_messages: 10_000, syncs: 300, nodes: 1000 };
const QUICK: Size = Size { rounds: 1, messages: 50_000, latency_messages: 3_000, syncs: 200, nodes: 1000 };

type Measure = fn(&mut Report, &Size) -> std::io::Result<()>;

const PARTS: [(&str, Measure); 17] = [
    ("invoke", invoke::measure),
    ("pulley", pulley::measure),
    ("durable", durable::measure),
    ("latency", latency::measure),
    ("http", http::measure),
    ("sinks", sinks::measure),
    ("trickle", trickle::measure),
    ("threshold", node_red::measure),
    ("scripts", scripts::measure),
    ("memory", durable::measure_memory),
    ("growth", durable::measure_growth),
    ("push", push::measure),
    ("recordings", recordings::measure),
    ("calls", calls::measure),
    ("schedules", schedules::measure),
    ("fleet", fleet::measure),
    ("shipped", shipped::measure),
];

fn main() -> std::io::Result<ExitCode> {
    // Cargo adds `--bench`.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let quick = arguments.iter().any(|argument| argument == "--quick");
    let wanted: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with("--")).collect();
    let names: Vec<&str> = PARTS.iter().map(|(name, _)| *name).collect();
    if arguments.iter().any(|argument| argument.starts_with("--") && argument != "--quick")
        || wanted.iter().any(|name| !names.contains(&name.as_str()))
    {
        eprintln!("usage: make bench ARGS=\"[--quick] [{}]\"", names.join("|"));
        return Ok(ExitCode::from(2));
    }

    let machine = machine();
    eprintln!("{machine}");
    let mut report = Report::default();
    for (name, measure) in PARTS {
        if wanted.is_empty() || wanted.iter().any(|wanted| *wanted == name) {
            measure(&mut report, if quick { &QUICK } else { &FULL })?;
        }
    }
    report.print();
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target");
    std::fs::create_dir_all(&target)?;
    report.write(&target.join("bench.json"), &machine)?;
    println!("\nwritten to target/bench.json");
    Ok(ExitCode::SUCCESS)
}

/// Describes the machine of the figures.
fn machine() -> serde_json::Value {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    serde_json::json!({
        "cpu": model.trim_start_matches([' ', '\t', ':']),
        "cores": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "load_at_start": read("/proc/loadavg").split(' ').next(),
        "version": env!("CARGO_PKG_VERSION"),
    })
}
