//! Sinks with names, each with a copy of its own.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::harness::daemon::{Daemon, SEDGE, Setup};
use crate::harness::eventually;
use crate::harness::guest::guest;
use crate::harness::mosquitto::Mosquitto;
use crate::harness::upstream::Upstream;
use crate::harness::webhook::Webhook;
use crate::harness::wire::Publish;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);

/// A webhook that refuses all requests until it is there.
fn absent() -> (Webhook, Arc<AtomicBool>) {
    let is_there = Arc::new(AtomicBool::new(false));
    let there = Arc::clone(&is_there);
    (Webhook::start(move |_, _| (!there.load(Ordering::Relaxed)).then_some(503)), is_there)
}

/// A board that runs `count`, with a broker and a webhook as its sinks.
fn setup(broker: &Mosquitto, cloud: &Mosquitto, hook: &Webhook) -> Setup {
    Setup::new(broker.url())
        .upstream(cloud.url())
        .set("sink.hook", "type = \"webhook\"")
        .set("sink.hook", format!("url = {:?}", hook.url))
        .set("sink.hook", "backoff_max_secs = 1")
        .function(&guest("count"))
}

#[test]
fn each_sink_gets_everything_and_one_that_is_away_holds_up_no_other() {
    let (broker, cloud) = (Mosquitto::start(), Mosquitto::start());
    let upstream = Upstream::collect(cloud.port);
    let (hook, is_there) = absent();
    let setup = setup(&broker, &cloud, &hook)
        .set("sinks", "alerts = [\"upstream\", \"hook\"]")
        .set("sinks", "forwards = [\"hook\", \"upstream\"]");
    let mut daemon = Daemon::start(&setup);
    broker.await_daemon();
    broker.client("sensor").publish_all((1..=100).map(|n| Publish::new("count/a", n.to_string()))).unwrap();
    assert!(eventually(PATIENCE, || upstream.count() == 110), "{} of 110", upstream.count());
    let waiting = |daemon: &Daemon, sink: &str| daemon.metric_with("sedge_outbox_records", &format!("sink=\"{sink}\""));
    assert!(eventually(PATIENCE, || waiting(&daemon, "upstream") == 0.0), "{}", daemon.counters());
    assert_eq!(waiting(&daemon, "hook"), 110.0);
    let (_, ready) = daemon.get("/readyz").unwrap();
    assert!(ready.contains(r#""hook":"away""#) && ready.contains(r#""upstream":"connected""#), "{ready}");
    let sinks = || {
        let output =
            Command::new(SEDGE).args(["status", "--json", "--broker", &broker.url()]).output().expect("run sedge");
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("no JSON: {output:?}"));
        answer["nodes"][0]["sinks"].clone()
    };
    let hook_is_away = json!({ "name": "hook", "connected": false, "records": 110 });
    let expected = json!([{ "name": "upstream", "connected": true, "records": 0 }, hook_is_away]);
    assert!(eventually(2 * PATIENCE, || sinks() == expected), "{}", sinks());

    daemon.kill();
    is_there.store(true, Ordering::Relaxed);
    daemon.resume();
    assert!(eventually(PATIENCE, || hook.taken().len() == 110), "{} of 110", hook.taken().len());
    let forwards: Vec<_> =
        hook.taken().into_iter().filter(|call| call.header("ce-type") == Some("io.sedge.data")).collect();
    let payloads: Vec<String> = forwards.iter().map(|call| call.body.clone()).collect();
    assert_eq!(payloads, (1..=100).map(|n| format!("{n} {n}")).collect::<Vec<_>>());
    assert!(forwards.iter().all(|call| call.header("ce-id").is_some_and(|id| id.contains("-d1-"))));
    assert_eq!(upstream.count(), 110, "upstream had all of it before");
}

#[test]
fn a_stick_that_is_pulled_out_while_records_come_has_all_of_them_once_it_is_back() {
    let broker = Mosquitto::start();
    let media = tempfile::tempdir().unwrap();
    let (stick, pocket) = (media.path().join("stick"), media.path().join("pocket"));
    let folder = stick.join("sedge");
    std::fs::create_dir_all(&folder).unwrap();
    let setup = Setup::new(broker.url())
        .set("sink.stick", "type = \"file\"")
        .set("sink.stick", format!("path = {folder:?}"))
        .set("sink.stick", "max_file_bytes = 4096")
        .set("sink.stick", "backoff_max_secs = 1")
        .function(&guest("count"));
    let daemon = Daemon::start(&setup);
    broker.await_daemon();
    let mut sensor = broker.client("sensor");
    let lines = || -> Vec<String> {
        let mut names: Vec<_> =
            std::fs::read_dir(&folder).into_iter().flatten().flatten().map(|it| it.path()).collect();
        names.sort();
        let texts = names.iter().map(|path| std::fs::read_to_string(path).unwrap());
        texts.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()).collect()
    };
    sensor.publish_all((1..=50).map(|n| Publish::new("count/a", n.to_string()))).unwrap();
    assert!(eventually(PATIENCE, || lines().len() == 55), "{} lines; log:\n{}", lines().len(), daemon.log());
    std::fs::rename(&stick, &pocket).unwrap();
    sensor.publish_all((51..=100).map(|n| Publish::new("count/a", n.to_string()))).unwrap();
    let waits = || daemon.metric_with("sedge_outbox_records", "sink=\"stick\"") == 55.0;
    assert!(eventually(PATIENCE, waits), "{}", daemon.counters());
    assert!(eventually(PATIENCE, || daemon.log().contains("put the stick in")), "{}", daemon.log());
    assert!(!stick.exists(), "nothing is written below the mount point");
    std::fs::rename(&pocket, &stick).unwrap();
    assert!(eventually(PATIENCE, || lines().len() == 110), "{} lines; log:\n{}", lines().len(), daemon.log());
    let data = lines().into_iter().filter(|line| line.contains("io.sedge.data"));
    let texts: Vec<String> =
        data.filter_map(|line| Some(line.split_once("\"data\":\"")?.1.split('"').next()?.to_owned())).collect();
    assert_eq!(texts, (1..=100).map(|n| format!("{n} {n}")).collect::<Vec<_>>());
}

#[test]
fn a_sink_that_was_away_for_long_gets_thinned_data_and_every_sum() {
    const READINGS: u64 = 20_000;
    let (broker, cloud) = (Mosquitto::start(), Mosquitto::start());
    let upstream = Upstream::collect(cloud.port);
    let (hook, is_there) = absent();
    let setup = setup(&broker, &cloud, &hook)
        .set("sink.hook", "max_bytes = 100_000")
        .set("sink.hook", "when_full = \"thin\"")
        .set("sinks", "alerts = [\"upstream\"]")
        .set("sinks", "forwards = [\"hook\"]");
    let daemon = Daemon::start(&setup);
    broker.await_daemon();
    // What the function forwards of an empty payload is a number: how many there were.
    broker.client("sensor").publish_all((0..READINGS).map(|_| Publish::new("count/a", ""))).unwrap();
    let committed = || daemon.metric("sedge_messages_acknowledged_total") == READINGS as f64;
    assert!(eventually(2 * PATIENCE, committed), "{}", daemon.counters());
    assert!(daemon.metric_with("sedge_outbox_bytes", "sink=\"hook\"") <= 100_000.0, "{}", daemon.counters());
    is_there.store(true, Ordering::Relaxed);
    let is_empty = || daemon.metric_with("sedge_outbox_records", "sink=\"hook\"") == 0.0;
    assert!(eventually(2 * PATIENCE, is_empty), "{}", daemon.counters());

    let (mut records, mut sum, mut folded, mut reported) = (0, 0.0, 0, 0);
    for call in hook.taken() {
        let body: Value = serde_json::from_str(&call.body).unwrap();
        match call.header("ce-type") {
            Some("io.sedge.data") => {
                records += 1;
                sum += body.as_f64().unwrap();
            }
            Some("io.sedge.fold") => {
                folded += body["records"].as_u64().unwrap();
                sum += body["fields"]["value"]["sum"].as_f64().unwrap();
            }
            Some("io.sedge.gap") => {
                assert_eq!(body["reason"], "thinned");
                reported += body["records"].as_u64().unwrap();
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((records + folded, sum), (READINGS, (READINGS * (READINGS + 1) / 2) as f64));
    assert!(records > 100 && folded > READINGS / 20, "{records} records, {folded} folded");
    assert_eq!(reported, folded);
    assert_eq!(daemon.metric_with("sedge_thinned_total", "sink=\"hook\""), folded as f64);
    let alerts = || upstream.count() == READINGS as usize / 10;
    assert!(eventually(PATIENCE, alerts), "{} alerts", upstream.count());
}
