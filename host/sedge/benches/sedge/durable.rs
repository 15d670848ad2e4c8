//! Sustained QoS 1 load: every message routed, run, committed, then acknowledged. Compared with the no-op subscriber, and
//! functions in processes with functions on threads.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::Size;
use crate::harness::daemon::{Daemon, Setup};
use crate::harness::guest::{guest, variant};
use crate::harness::mosquitto::Mosquitto;
use crate::harness::process;
use crate::harness::wire::Publish;
use crate::load::Load;
use crate::noop::Noop;
use crate::report::{Goal, Report};

/// A device's reading of 200 bytes, which the function forwards unchanged.
pub(crate) fn reading(index: usize) -> String {
    reading_of(20.0 + (index % 10) as f64 * 1.1)
}

pub(crate) fn reading_of(temperature: f64) -> String {
    let value =
        format!("{{\"temperature\":{temperature:.1},\"humidity\":48.2,\"battery\":97,\"linkquality\":120,\"pad\":\"");
    let pad = 198 - value.len();
    format!("{value}{}\"}}", "x".repeat(pad))
}

fn messages(topics: usize, topic: impl Fn(usize) -> String) -> Vec<Publish> {
    (0..topics.max(1024)).map(|index| Publish::new(&topic(index % topics), reading(index))).collect()
}

/// Figures of one run of the daemon or of the no-op subscriber.
#[derive(Clone, Copy, Debug)]
struct Run {
    per_second: f64,
    cpu_us: f64,
    /// Bytes written to the block layer.
    bytes: f64,
    /// Bytes written by the store's own count.
    store_bytes: f64,
    most_pss_kb: f64,
}

pub(crate) fn measure(report: &mut Report, size: &Size) -> io::Result<()> {
    let relay = guest("relay");
    let (mut noop, mut process, mut thread) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..size.rounds {
        eprintln!("durable load, round {} of {}", round + 1, size.rounds);
        let sixteen = messages(16, |topic| format!("relay/s{topic}"));
        noop.push(run_noop(size.messages, &sixteen)?);
        process.push(run_daemon(size.messages, &sixteen, std::slice::from_ref(&relay), "process")?);
        thread.push(run_daemon(size.messages, &sixteen, std::slice::from_ref(&relay), "thread")?);
    }
    let each = |runs: &[Run], figure: fn(&Run) -> f64| runs.iter().map(figure).collect::<Vec<f64>>();
    let pairs = |a: &[Run], b: &[Run], figure: fn(&Run) -> f64| {
        a.iter().zip(b).map(|(a, b)| figure(a) / figure(b)).collect::<Vec<f64>>()
    };
    report.add_median(
        "qos1_durable_ratio",
        pairs(&process, &noop, |run| run.per_second),
        Goal::AtLeast(0.85),
        "rate with everything committed over a no-op subscriber's",
    );
    report.add_median("qos1_noop_per_s", each(&noop, |run| run.per_second), Goal::None, "no-op subscriber, messages/s");
    report.add_median("qos1_durable_per_s", each(&process, |run| run.per_second), Goal::None, "the daemon, messages/s");
    report.add_median("noop_cpu_us_per_msg", each(&noop, |run| run.cpu_us), Goal::None, "CPU of the no-op subscriber");
    report.add_median(
        "cpu_us_per_msg",
        each(&process, |run| run.cpu_us),
        Goal::AtMost(15.0),
        "CPU of daemon and workers, per message",
    );
    report.add_median(
        "bytes_per_msg",
        each(&process, |run| run.store_bytes),
        Goal::AtMost(600.0),
        "written to the database files, a 200-byte result, by the store's count",
    );
    report.add_median(
        "bytes_per_msg_blocks",
        each(&process, |run| run.bytes),
        Goal::None,
        "the same, as written to the block layer",
    );
    report.add_median(
        "isolation_ratio",
        pairs(&process, &thread, |run| run.cpu_us),
        Goal::AtMost(1.3),
        "CPU per message, process workers over thread workers",
    );
    Ok(())
}

/// One function on one topic, and a hundred functions on ten thousand topics. Each message is for one function in both.
pub(crate) fn measure_growth(report: &mut Report, size: &Size) -> io::Result<()> {
    let relay = guest("relay");
    let folder = tempfile::tempdir()?;
    let hundred: Vec<PathBuf> = (0..100)
        .map(|index| {
            let (name, filter) = (format!("relay-{index}"), format!("relay/{index}/#"));
            variant(&relay, folder.path(), &name, &filter, |manifest| manifest)
        })
        .collect();
    let (mut ratios, mut cpu) = (Vec::new(), Vec::new());
    for round in 0..size.rounds {
        eprintln!("growth, round {} of {}", round + 1, size.rounds);
        let one = messages(1, |_| "relay/0/s0".into());
        let small = run_daemon(size.messages, &one, std::slice::from_ref(&relay), "process")?;
        let many = messages(10_000, |topic| format!("relay/{}/s{topic}", topic % 100));
        let large = run_daemon(size.messages, &many, &hundred, "process")?;
        ratios.push(large.cpu_us / small.cpu_us);
        cpu.push(small.cpu_us);
    }
    let what = "CPU per message, 100 functions and 10,000 topics over 1 and 1";
    report.add_median("growth_ratio", ratios, Goal::AtMost(1.2), what);
    report.add_median("cpu_us_per_msg_1_topic", cpu, Goal::None, "with one function and one topic");
    Ok(())
}

/// Three functions, idle and under load.
pub(crate) fn measure_memory(report: &mut Report, size: &Size) -> io::Result<()> {
    eprintln!("memory");
    let broker = Mosquitto::start();
    let functions = [guest("relay"), guest("count"), guest("misbehave")];
    let daemon = start(&broker, &functions, "process");
    // A ready daemon releases the memory that starting needed a little later.
    std::thread::sleep(Duration::from_secs(3));
    let idle = process::pss_kb(daemon.pid()) as f64;
    let topics = messages(256, |topic| match topic % 2 {
        0 => format!("relay/s{topic}"),
        _ => format!("count/s{topic}"),
    });
    let run = load(&broker, &daemon, size.messages, &topics)?;
    report.add("rss_idle_kb", idle, Goal::AtMost(12_000.0), "PSS of daemon and workers, three functions, idle");
    report.add("rss_load_kb", run.most_pss_kb, Goal::AtMost(32_000.0), "the most of it under load");
    Ok(())
}

fn run_noop(count: usize, messages: &[Publish]) -> io::Result<Run> {
    let broker = Mosquitto::start();
    let noop = Noop::start(broker.port, "relay/#");
    let mut load = Load::connect(broker.port, "load", messages)?;
    // The subscription is in place once a message has come through.
    load.flood(1024)?;
    let warm = settle(|| noop.received() as f64, None);
    let thread = noop.thread_id.to_string();
    let cpu = process::thread_cpu_ns(std::process::id(), &thread);
    let start = Instant::now();
    let sent = load.flood(count)? as f64;
    settle(|| noop.received() as f64, Some(warm + sent));
    let seconds = start.elapsed().as_secs_f64();
    let cpu = process::thread_cpu_ns(std::process::id(), &thread) - cpu;
    let cpu_us = cpu as f64 / 1e3 / sent;
    Ok(Run { per_second: sent / seconds, cpu_us, bytes: 0.0, store_bytes: 0.0, most_pss_kb: 0.0 })
}

fn run_daemon(count: usize, messages: &[Publish], functions: &[PathBuf], isolate: &str) -> io::Result<Run> {
    let broker = Mosquitto::start();
    let daemon = start(&broker, functions, isolate);
    load(&broker, &daemon, count, messages)
}

/// Starts a daemon whose upstream is unreachable, so that every result is committed and stays in the outbox.
pub(crate) fn start(broker: &Mosquitto, functions: &[PathBuf], isolate: &str) -> Daemon {
    let mut setup = Setup::new(broker.url())
        .upstream("mqtt://127.0.0.1:9".into())
        .set("upstream", "backoff_max_secs = 60")
        .set("store", "max_bytes = 4_000_000_000")
        .set("worker", format!("isolate = {isolate:?}"));
    setup.functions = functions.to_vec();
    let daemon = Daemon::start(&setup);
    broker.await_daemon();
    daemon
}

fn load(broker: &Mosquitto, daemon: &Daemon, count: usize, messages: &[Publish]) -> io::Result<Run> {
    let mut load = Load::connect(broker.port, "load", messages)?;
    let acknowledged = || daemon.metric("sedge_messages_acknowledged_total");
    load.flood(1024)?;
    let warm = settle(acknowledged, Some(1024.0));
    let written = process::written_bytes(daemon.pid());
    let store_written = daemon.metric("sedge_store_written_bytes_total");
    let cpu = process::cpu_ns(daemon.pid());
    let start = Instant::now();
    let flood = std::thread::scope(|scope| {
        let flood = scope.spawn(|| load.flood(count));
        let mut most_pss = 0;
        while !flood.is_finished() {
            most_pss = most_pss.max(process::pss_kb(daemon.pid()));
            std::thread::sleep(Duration::from_millis(200));
        }
        flood.join().expect("the publisher does not panic").map(|sent| (sent as f64, most_pss as f64))
    });
    let (sent, most_pss_kb) = flood?;
    settle(acknowledged, Some(warm + sent));
    let seconds = start.elapsed().as_secs_f64();
    let cpu = process::cpu_ns(daemon.pid()) - cpu;
    let per_message = |total: f64| total / sent;
    Ok(Run {
        per_second: sent / seconds,
        cpu_us: per_message(cpu as f64 / 1e3),
        bytes: per_message((process::written_bytes(daemon.pid()) - written) as f64),
        store_bytes: per_message(daemon.metric("sedge_store_written_bytes_total") - store_written),
        most_pss_kb,
    })
}

/// Waits until the count reaches the goal or, without a goal, until it stops growing. Returns the count.
pub(crate) fn settle(count: impl Fn() -> f64, goal: Option<f64>) -> f64 {
    let mut last = (count(), Instant::now());
    loop {
        let now = count();
        if now != last.0 {
            last = (now, Instant::now());
        }
        let still = last.1.elapsed();
        match goal {
            Some(goal) if now >= goal => return now,
            None if still > Duration::from_secs(2) => return now,
            Some(goal) => assert!(still < Duration::from_secs(60), "{now} of {goal} messages, and no more arrive"),
            None => {}
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
