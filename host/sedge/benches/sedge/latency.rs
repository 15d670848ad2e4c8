//! Latency from publishing to the alert on the local broker, in an open loop, compared with the disk's own sync.

use std::io;
use std::time::{Duration, Instant};

use crate::Size;
use crate::disk::Disk;
use crate::durable::{reading, start};
use crate::harness::client::Client;
use crate::harness::daemon::NODE;
use crate::harness::guest::guest;
use crate::harness::mosquitto::Mosquitto;
use crate::harness::wire::{Hello, Publish};
use crate::load::paced;
use crate::report::{Goal, Report, percentile};

const PER_SECOND: u32 = 1000;

/// Every so many messages, one raises an alert. The others leave a result of 200 bytes.
pub(crate) const ALERT_EVERY: usize = 10;

pub(crate) fn measure(report: &mut Report, size: &Size) -> io::Result<()> {
    let mut disk = Disk::open()?;
    let mut latencies = Vec::new();
    for round in 0..size.rounds {
        eprintln!("latency, round {} of {}", round + 1, size.rounds);
        disk.probe(size.syncs)?;
        latencies.extend(run(size.latency_messages)?);
        disk.probe(size.syncs)?;
    }
    let sync = |percent| percentile(&disk.syncs, percent);
    let (p50, p99) = (sync(50.0), sync(99.0));
    let goal = |most| Goal::AtMost(most);
    let latency = |percent| percentile(&latencies, percent);
    report.add(
        "latency_p50_ms",
        latency(50.0),
        goal(1.5 * p50 + 0.3),
        "publish to local alert, 1,000 messages/s, durable",
    );
    report.add("latency_p99_ms", latency(99.0), goal(2.0 * p99 + 1.0), "the same");
    report.add("sync_p50_ms", p50, Goal::None, "4 KiB written over and synced, same disk, same run");
    report.add("sync_p99_ms", p99, Goal::None, "the same");
    Ok(())
}

/// Returns the latency of each alert in milliseconds, from the instant that its message was due.
fn run(count: usize) -> io::Result<Vec<f64>> {
    let broker = Mosquitto::start();
    let _daemon = start(&broker, &[guest("relay")], "process");
    let mut listener = broker.client("listener");
    listener.subscribe(&[&format!("sedge/{NODE}/alerts/relay")])?;
    let alerts = count / ALERT_EVERY;
    let (mut stream, _) = Client::connect(broker.port, &Hello::new("load"))?.into_parts();
    let arrivals = std::thread::spawn(move || collect(&mut listener, alerts));
    let due = paced(&mut stream, PER_SECOND, count, |index| match index % ALERT_EVERY {
        0 => Publish::new(&format!("relay/s{}", index % 16), format!("!{index}")),
        _ => Publish::new(&format!("relay/s{}", index % 16), reading(index)),
    })?;
    let arrivals = arrivals.join().expect("the listener does not panic")?;
    assert_eq!(arrivals.len(), alerts, "alerts that arrived");
    Ok(arrivals.into_iter().map(|(index, at)| at.duration_since(due[index]).as_secs_f64() * 1e3).collect())
}

/// Receives alerts of `relay`, whose keys are numbers of messages.
pub(crate) fn collect(listener: &mut Client, alerts: usize) -> io::Result<Vec<(usize, Instant)>> {
    let mut arrivals = Vec::with_capacity(alerts);
    while arrivals.len() < alerts {
        let Some(message) = listener.receive(Duration::from_secs(20))? else { break };
        let at = Instant::now();
        let alert: serde_json::Value = serde_json::from_slice(&message.payload)?;
        let key = alert["key"].as_str().and_then(|key| key.parse().ok());
        arrivals.push((key.ok_or_else(|| io::Error::other("the key of an alert is not a number"))?, at));
    }
    Ok(arrivals)
}
