//! What a record costs on its way to each kind of sink, and how fast a long backlog is caught up.
//!
//! The sink is away while the records are made, so that only their delivery is measured.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::Size;
use crate::durable::reading;
use crate::harness::daemon::{Daemon, Setup};
use crate::harness::eventually;
use crate::harness::mosquitto::Mosquitto;
use crate::harness::process;
use crate::harness::webhook::Webhook;
use crate::harness::wire::Publish;
use crate::load::Load;
use crate::report::{Goal, Report};

const PATIENCE: Duration = Duration::from_secs(600);
const MANIFEST: &str = "name = \"lake\"\nversion = \"1.0.0\"\nsubscribe = [\"lake/#\"]\nallow.forward = [\"#\"]\n";
/// One record per message, of about 200 bytes.
const SCRIPT: &str = "import { forward } from \"sedge\";\n\
    const text = \"t\".repeat(120);\n\
    export function handle(message) { return forward(\"reading\", { temperature: 21.5, humidity: 40, text }); }\n";

pub(crate) fn measure(report: &mut Report, size: &Size) -> io::Result<()> {
    let what = "CPU of daemon and workers per record delivered from the outbox";
    for (key, kind) in [
        ("sink_mqtt_cpu_us_per_record", "mqtt"),
        ("sink_webhook_cpu_us_per_record", "webhook"),
        ("sink_influx_cpu_us_per_record", "influx"),
        ("sink_file_cpu_us_per_record", "file"),
    ] {
        eprintln!("sinks, {kind}");
        let runs =
            (0..size.rounds).map(|_| Ok(deliver(kind, size.messages / 10)?.cpu_us)).collect::<io::Result<_>>()?;
        report.add_median(key, runs, Goal::None, what);
    }
    let count = size.messages * 5;
    eprintln!("sinks, catching up {count} records");
    let caught_up = deliver("mqtt", count)?;
    report.add("catch_up_records", count as f64, Goal::None, "records that wait when upstream comes back");
    report.add(
        "catch_up_per_s",
        caught_up.per_second,
        Goal::None,
        "of these per second, QoS 1 to a Mosquitto beside it",
    );
    Ok(())
}

struct Delivered {
    cpu_us: f64,
    per_second: f64,
}

fn deliver(kind: &str, count: usize) -> io::Result<Delivered> {
    let broker = Mosquitto::start();
    let mut cloud = Mosquitto::reserve("");
    let is_there = Arc::new(AtomicBool::new(false));
    let there = Arc::clone(&is_there);
    let server = Webhook::start(move |_, _| (!there.load(Ordering::Relaxed)).then_some(503));
    let folder = tempfile::tempdir()?;
    let (function, away, stick) = (folder.path().join("lake"), folder.path().join("away"), folder.path().join("stick"));
    std::fs::create_dir(&function)?;
    std::fs::write(function.join("function.toml"), MANIFEST)?;
    std::fs::write(function.join("function.js"), SCRIPT)?;
    std::fs::create_dir(&away)?;

    let setup = Setup::new(broker.url()).function(&function).set("store", "max_bytes = 8_000_000_000");
    let setup = setup.set("sink.lake", format!("type = {kind:?}")).set("sink.lake", "backoff_max_secs = 1");
    let setup = match kind {
        "mqtt" => setup.set("sink.lake", format!("url = {:?}", cloud.url())),
        "webhook" => setup.set("sink.lake", format!("url = {:?}", server.url)),
        "influx" => {
            setup.set("sink.lake", format!("url = {:?}", origin(&server.url))).set("sink.lake", "database = \"plant\"")
        }
        _ => setup.set("sink.lake", format!("path = {stick:?}")),
    };
    let daemon = Daemon::start(&setup);
    broker.await_daemon();
    let messages: Vec<Publish> =
        (0..1000).map(|index| Publish::new(&format!("lake/s{}", index % 64), reading(index))).collect();
    let records = Load::connect(broker.port, "load", &messages)?.flood(count)? as f64;
    let waits = || daemon.metric_with("sedge_outbox_records", "sink=\"lake\"") >= records;
    assert!(eventually(PATIENCE, waits), "{}\n{}", daemon.counters(), daemon.log());

    let (cpu, start) = (process::cpu_ns(daemon.pid()), Instant::now());
    match kind {
        "mqtt" => cloud.resume(),
        "file" => std::fs::rename(&away, &stick)?,
        _ => is_there.store(true, Ordering::Relaxed),
    }
    let is_done = || daemon.metric_with("sedge_forwarded_total", "sink=\"lake\"") >= records;
    assert!(eventually(PATIENCE, is_done), "{}\n{}", daemon.counters(), daemon.log());
    let seconds = start.elapsed().as_secs_f64();
    let cpu_us = (process::cpu_ns(daemon.pid()) - cpu) as f64 / 1e3 / records;
    assert_eq!(daemon.metric_with("sedge_dropped_total", "sink=\"lake\""), 0.0, "{}", daemon.counters());
    assert!(kind != "file" || holds_lines(&stick)?);
    Ok(Delivered { cpu_us, per_second: records / seconds })
}

/// Without the path.
fn origin(url: &str) -> &str {
    url.strip_suffix("/in").unwrap_or(url)
}

fn holds_lines(folder: &Path) -> io::Result<bool> {
    let first = std::fs::read_dir(folder)?.next().transpose()?;
    Ok(first.is_some_and(|file| file.metadata().is_ok_and(|it| it.len() > 0)))
}
