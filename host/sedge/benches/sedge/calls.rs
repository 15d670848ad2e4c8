//! What it costs to watch topics for silence, and how many wakes run per second with many waiting.

use std::io;
use std::time::{Duration, Instant, SystemTime};

use crate::Size;
use crate::durable::reading;
use crate::harness::daemon::{Daemon, Setup};
use crate::harness::eventually;
use crate::harness::guest::{guest, variant};
use crate::harness::mosquitto::Mosquitto;
use crate::harness::process;
use crate::harness::wire::Publish;
use crate::load::Load;
use crate::report::{Goal, Report};

const PATIENCE: Duration = Duration::from_secs(120);
const TOPICS: usize = 1000;
/// Wakes that wait while others run.
const WAITING: usize = 100_000;
/// Wakes that are due at the same time.
const DUE: usize = 20_000;
/// Topics that one publisher has packet ids for.
const TOPICS_OF_LOAD: usize = 50_000;

pub(crate) fn measure(report: &mut Report, size: &Size) -> io::Result<()> {
    let mut ratios = Vec::new();
    for round in 0..size.rounds {
        eprintln!("silence, round {} of {}", round + 1, size.rounds);
        // Each first as often as the other.
        let (off, on) = match round % 2 {
            0 => (cpu_us(size.messages / 2, false)?, cpu_us(size.messages / 2, true)?),
            _ => {
                let on = cpu_us(size.messages / 2, true)?;
                (cpu_us(size.messages / 2, false)?, on)
            }
        };
        ratios.push(on / off);
    }
    let what = "CPU of daemon and workers per message with 1,000 topics watched for silence, over without";
    report.add_median("silence_cpu_ratio", ratios, Goal::AtMost(1.05), what);
    let mut rates = Vec::new();
    for round in 0..size.rounds {
        eprintln!("wakes, round {} of {}", round + 1, size.rounds);
        rates.push(wakes_per_s()?);
    }
    let what = "wakes run per second, 20,000 due at once, with 100,000 others waiting";
    report.add_median("wakes_per_s", rates, Goal::None, what);
    Ok(())
}

/// CPU per message of a function with state.
fn cpu_us(count: usize, watches: bool) -> io::Result<f64> {
    let (broker, folder) = (Mosquitto::start(), tempfile::tempdir()?);
    let silence = if watches { "\n[silence]\nafter = \"10m\"\nback = true\n" } else { "" };
    let function = variant(&guest("count"), folder.path(), "count", "count/#", |manifest| manifest + silence);
    let daemon = Daemon::start(&Setup::new(broker.url()).function(&function));
    broker.await_daemon();
    let messages: Vec<Publish> =
        (0..TOPICS).map(|index| Publish::new(&format!("count/s{index}"), reading(index))).collect();
    let mut load = Load::connect(broker.port, "load", &messages)?;
    let warm = load.flood(count / 10)?;
    wait(&daemon, "sedge_function_invocations_total", warm);
    let watched = if watches { TOPICS as f64 } else { 0.0 };
    assert_eq!(daemon.metric("sedge_watched_topics"), watched, "log:\n{}", daemon.log());
    let cpu = process::cpu_ns(daemon.pid());
    let flooded = load.flood(count)?;
    wait(&daemon, "sedge_function_invocations_total", warm + flooded);
    Ok((process::cpu_ns(daemon.pid()) - cpu) as f64 / 1e3 / flooded as f64)
}

fn wakes_per_s() -> io::Result<f64> {
    let (broker, guest) = (Mosquitto::start(), guest("misbehave"));
    let setup = Setup::new(broker.url()).function(&guest).set("functions", format!("max_wakes = {}", 2 * WAITING));
    let daemon = Daemon::start(&setup);
    broker.await_daemon();
    // In a day.
    let far = unix_ms() + 86_400_000;
    for first in (0..WAITING).step_by(TOPICS_OF_LOAD) {
        set(broker.port, first..first + TOPICS_OF_LOAD, &format!("wake-at far {far}"))?;
        wait(&daemon, "sedge_wakes_waiting", first + TOPICS_OF_LOAD);
    }
    let soon = unix_ms() + 20_000;
    set(broker.port, 0..DUE, &format!("wake-at soon {soon}"))?;
    wait(&daemon, "sedge_wakes_waiting", WAITING + DUE);
    assert!(unix_ms() < soon, "it took too long to set the wakes");
    let run = || daemon.metric("sedge_wakes_total") as usize;
    let from = until(|| run() >= DUE / 10).then_some((Instant::now(), run()));
    let to = until(|| run() >= DUE * 9 / 10).then_some((Instant::now(), run()));
    let ((begun, first), (ended, last)) = from.zip(to).ok_or_else(|| io::Error::other(daemon.log()))?;
    Ok((last - first) as f64 / ended.duration_since(begun).as_secs_f64())
}

/// Has each of these topics set a wake.
fn set(port: u16, topics: std::ops::Range<usize>, payload: &str) -> io::Result<()> {
    let name = format!("load{}", topics.start);
    let messages: Vec<Publish> =
        topics.map(|topic| Publish::new(&format!("misbehave/{topic}"), payload.to_owned())).collect();
    Load::connect(port, &name, &messages)?.flood(messages.len())?;
    Ok(())
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64)
}

fn wait(daemon: &Daemon, metric: &str, count: usize) {
    assert!(
        eventually(PATIENCE, || daemon.metric(metric) >= count as f64),
        "{metric} is {}, log:\n{}",
        daemon.metric(metric),
        daemon.log()
    );
}

/// Asks often, without a pause that grows.
fn until(mut is_so: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if is_so() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}
