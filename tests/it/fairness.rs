//! A function or a sender that takes what it can get leaves the others their part.

use std::time::{Duration, Instant};

use crate::harness::client::Client;
use crate::harness::daemon::NODE;
use crate::harness::guest::{guest, variant};
use crate::harness::mosquitto::Mosquitto;
use crate::harness::wire::{Hello, Publish};
use crate::harness::{Site, eventually};

const PER_SECOND: u32 = 20;
const MESSAGES: usize = 160;

/// Time from each message of a victim to its record upstream, in order of size. `attack` is called before each message.
fn latencies(site: &Site, cloud: &Mosquitto, mut attack: impl FnMut(usize)) -> Vec<Duration> {
    let mut collector = Client::connect(cloud.port, &Hello::new("clock")).expect("connect the collector");
    collector.subscribe(&[&format!("up/{NODE}/count/#")]).expect("subscribe the collector");
    let receiver = std::thread::spawn(move || {
        let mut arrived: Vec<(usize, Instant)> = Vec::new();
        while arrived.len() < MESSAGES {
            let message = collector.receive(Duration::from_secs(60)).expect("receive").expect("a record of the victim");
            let number = message.text().split(' ').next().and_then(|number| number.parse().ok());
            arrived.push((number.expect("a record has the number of its message"), Instant::now()));
        }
        arrived
    });
    let mut sensors = site.broker.client("victim");
    let mut sent = Vec::new();
    for n in 0..MESSAGES {
        attack(n);
        sent.push(Instant::now());
        sensors.publish(Publish::new(&format!("count/v{}", n % 4), n.to_string())).expect("publish");
        std::thread::sleep(Duration::from_secs(1) / PER_SECOND);
    }
    let arrived = receiver.join().expect("the collector does not fail");
    let mut latencies: Vec<Duration> = arrived.iter().map(|(n, at)| at.duration_since(sent[*n])).collect();
    latencies.sort_unstable();
    println!("p50 {:?}, p99 {:?}", latencies[MESSAGES / 2], latencies[MESSAGES * 99 / 100]);
    latencies
}

fn p99(latencies: &[Duration]) -> Duration {
    latencies[latencies.len() * 99 / 100]
}

/// Two workers ran what came first, so that the neighbours of a function that spins waited for 5 s.
#[test]
fn a_function_that_spins_delays_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let hog = variant(&guest("misbehave"), folder.path(), "hog", "hog/#", |manifest| {
        manifest
            .replace("fuel = 20_000_000", "fuel = 10_000_000_000")
            .replace("timeout_ms = 1_000", "timeout_ms = 1_400")
    });
    let site = Site::start_with(|setup| {
        setup
            .function(&hog)
            .set("functions", "max_timeout_ms = 10_000")
            .set("functions", "quarantine_after = 1_000")
            .set("worker", "count = 2")
    });
    let mut attacker = site.broker.client("attacker");
    let latencies = latencies(&site, &site.cloud, |n| {
        if n.is_multiple_of(5) {
            attacker.publish(Publish::new(&format!("hog/{}", n / 5 % 8), "loop")).unwrap();
        }
    });
    assert!(p99(&latencies) < Duration::from_secs(1), "p99 {:?}", p99(&latencies));
    // What the hog has not got to waits in the store and holds up nobody.
    let is_acknowledged =
        || site.daemon.metric("sedge_messages_acknowledged_total") >= (MESSAGES + MESSAGES / 5) as f64;
    assert!(eventually(Duration::from_secs(20), is_acknowledged), "{}", site.daemon.counters());
}

/// Messages over which every function fails, because of what their sender put into them, paused the function for all.
#[test]
fn a_sender_cannot_pause_a_function_for_others() {
    let site = Site::start();
    let mut attacker = site.broker.client("attacker");
    let mut poison = Publish::new("count/evil", "x");
    for _ in 0..120_000 {
        poison = poison.with_property("", "");
    }
    let latencies = latencies(&site, &site.cloud, |n| {
        if n < 25 {
            attacker.publish(poison.clone()).unwrap();
        }
    });
    assert_eq!(latencies.len(), MESSAGES, "each message of the others has its result");
    assert_eq!(site.daemon.metric("sedge_function_quarantined"), 0.0);
}
