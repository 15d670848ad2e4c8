//! Behaviour that is the same on every processor. `scripts/foreign.sh` runs these tests with programs for other processors,
//! named by SEDGE_BINARY; otherwise this machine's program is compared with itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::harness::daemon::{Daemon, SEDGE, Setup, board_program};
use crate::harness::guest::{example, guest, variant};
use crate::harness::mosquitto::Mosquitto;
use crate::harness::traffic::Traffic;
use crate::harness::upstream::Upstream;
use crate::harness::wire::Publish;
use crate::harness::{Site, eventually};

const EXAMPLES: [&str; 3] = ["threshold-alert", "anomaly", "decode"];

#[test]
fn the_demo_accounts_for_every_message() {
    let examples = example("threshold-alert").parent().expect("examples are in a folder").to_owned();
    for name in EXAMPLES {
        example(name);
    }
    let mut demo = Command::new(board_program());
    demo.args(["demo", "--messages", "400", "--json", "--functions"]).arg(examples);
    let output = demo.output().expect("run sedge demo");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}: {said}{}", output.status, String::from_utf8_lossy(&output.stderr));
    let account: Value = serde_json::from_str(&said).expect("the account is JSON");
    assert_eq!(account["unaccounted"], 0, "{account}");
    assert_eq!(account["sent"], 400, "{account}");
}

#[test]
fn nothing_is_lost_or_doubled_when_daemon_and_worker_are_killed() {
    let mut site = Site::start();
    let traffic = Traffic::start_at(site.broker.port, 5, 200);
    for _ in 0..2 {
        site.progress(50);
        site.daemon.kill();
        site.daemon.resume();
        site.progress(50);
        let worker = rustix::process::Pid::from_raw(site.daemon.workers()[0].cast_signed());
        rustix::process::kill_process(worker.expect("a worker is not process 0"), rustix::process::Signal::KILL)
            .unwrap();
    }
    site.progress(50);
    let ledger = traffic.stop();
    site.settle(&ledger);
    assert_eq!(site.daemon.metric("sedge_dead_letters_total"), 0.0);
}

/// Result of one function on one message, without the duration.
fn invoke(program: &Path, function: &Path, topic: &str, payload: &[u8], state: &[(&str, &str)]) -> Value {
    let folder = tempfile::tempdir().expect("make a folder");
    let file = folder.path().join("payload");
    std::fs::write(&file, payload).expect("write the payload");
    let mut invoke = Command::new(program);
    invoke.arg("invoke").arg(function).args(["--json", "--topic", topic, "--payload"]);
    invoke.arg(format!("@{}", file.display()));
    for (key, value) in state {
        invoke.args(["--state", &format!("{key}={value}")]);
    }
    let output = invoke.output().expect("run sedge invoke");
    let said = String::from_utf8_lossy(&output.stdout);
    let mut run: Value = serde_json::from_str(&said).unwrap_or_else(|error| {
        panic!("{error}: {}: {said}{}", output.status, String::from_utf8_lossy(&output.stderr))
    });
    run.as_object_mut().expect("a run is an object").remove("elapsed_us").expect("it takes time");
    run
}

/// Limits, errors, fuel, memory: all of them are counted by the sandbox, not measured.
#[test]
fn whatever_a_function_does_ends_the_same_with_the_same_figures() {
    let folder = tempfile::tempdir().unwrap();
    // Fuel must end it, not the deadline of an emulated board.
    let function = variant(&guest("misbehave"), folder.path(), "everywhere", "misbehave/#", |manifest| {
        manifest.replace("timeout_ms = 1_000", "timeout_ms = 120_000")
    });
    let expected = [
        ("loop", "fuel"),
        ("trap", "trap"),
        ("memory", "memory"),
        ("recurse", "trap"),
        ("output", "output"),
        ("outputs", "output"),
        ("log", "fuel"),
        ("reject because", "rejected"),
        ("publish elsewhere/a", "not-allowed"),
        ("publish allowed/+", "invalid-topic"),
        ("wake a+", "invalid-wake"),
    ];
    for (payload, reason) in expected {
        let here = invoke(Path::new(SEDGE), &function, "misbehave/a", payload.as_bytes(), &[]);
        let there = invoke(&board_program(), &function, "misbehave/a", payload.as_bytes(), &[]);
        assert_eq!(there["failure"]["reason"], reason, "{payload:?}: {there}");
        assert_eq!(there, here, "{payload:?}");
        assert!(there["fuel"].as_u64().is_some_and(|fuel| fuel > 0), "{payload:?}: {there}");
    }
}

#[test]
fn floating_point_rounds_the_same() {
    let anomaly = example("anomaly");
    // With the sensor's time: the function stores when a reading was taken.
    let reading = |value: &str| format!("{{\"time\":\"2026-01-05T11:02:13Z\",\"temperature\":{value}}}");
    let payloads = ["20.1", "1e308", "-0.0", "4.9e-324", "3.3333333333333335", "NaN", "[]"].map(reading);
    for payload in payloads {
        let here = invoke(Path::new(SEDGE), &anomaly, "sensors/a/temperature", payload.as_bytes(), &[]);
        let there = invoke(&board_program(), &anomaly, "sensors/a/temperature", payload.as_bytes(), &[]);
        assert_eq!(there, here, "{payload:?}");
    }
}

#[test]
fn a_nan_has_the_same_bits() {
    let function = guest("misbehave");
    let here = invoke(Path::new(SEDGE), &function, "misbehave/a", b"nan", &[]);
    assert_eq!(here["outputs"][0]["payload"], [f64::NAN.to_bits(); 3].map(|bits| bits.to_string()).join(" "), "{here}");
    assert_eq!(invoke(&board_program(), &function, "misbehave/a", b"nan", &[]), here);
}

/// Messages of a small house's sensors in a day: some too hot, some binary, some invalid.
fn day() -> Vec<Publish> {
    let mut said = Vec::new();
    for minute in 0..400_i32 {
        let swing = f64::from(minute % 60 - 30) / 10.0;
        said.push(Publish::new("sensors/attic/temperature", format!("{:.2}", 78.0 + swing)));
        said.push(Publish::new("zigbee2mqtt/oven", format!("{{\"temperature\":{:.3},\"battery\":97}}", 81.5 - swing)));
        if minute % 5 == 0 {
            let tenths = (270 + minute).to_be_bytes();
            let mut frame = vec![1, 0x67];
            frame.extend(&tenths[2..]);
            said.push(Publish { payload: frame, ..Publish::new("lpp/cellar", "") });
        }
        if minute % 50 == 7 {
            said.push(Publish::new("tele/plug/SENSOR", "{\"DS18B20\":{\"Temperature\":99.5}}"));
            said.push(Publish::new("zigbee2mqtt/oven", "{\"temperature\":"));
            said.push(Publish { payload: vec![1, 0x67, 1], ..Publish::new("lpp/cellar", "") });
        }
    }
    said
}

/// Payloads sent upstream and to the local broker, by topic, in order.
fn live(program: PathBuf) -> BTreeMap<String, Vec<String>> {
    let broker = Mosquitto::start();
    let upstream = Upstream::collect_filter(broker.port, "upstream", "up/#");
    let published = Upstream::collect_filter(broker.port, "neighbour", "derived/#");
    let setup = Setup::new(broker.url()).upstream(broker.url()).set("upstream", "topic_prefix = \"up/\"");
    // Folding depends on the clock.
    let setup = setup.set("upstream", "fold_secs = 0");
    let setup = EXAMPLES.iter().fold(setup, |setup, name| setup.function(&example(name)));
    let mut daemon = Daemon::prepare_program(program, &setup);
    daemon.resume();
    broker.await_daemon();
    let day = day();
    let count = day.len() as f64;
    broker.client("house").publish_all(day).expect("publish");
    // The daemon also receives the publications of `decode`.
    let done = eventually(Duration::from_secs(30), || {
        let derived = daemon.metric_with("sedge_function_outputs_total", "kind=\"publish\"");
        let acknowledged = daemon.metric("sedge_messages_acknowledged_total") >= count + derived && derived >= 80.0;
        // What waits long is acknowledged before its run.
        acknowledged && daemon.metric("sedge_parked_messages") == 0.0
    });
    assert!(done, "not all of it is processed:\n{}", daemon.counters());
    let sent = eventually(Duration::from_secs(30), || daemon.metric("sedge_outbox_records") == 0.0);
    assert!(sent, "not all of it is upstream:\n{}", daemon.counters());
    assert!(daemon.metric("sedge_dead_letters_total") > 0.0, "what makes no sense is a dead letter");
    // After all others.
    broker.client("hand").publish(Publish::new("up/end", "")).expect("publish");
    let ended = || upstream.received().iter().any(|message| message.topic == "up/end");
    assert!(eventually(Duration::from_secs(10), ended), "the broker keeps something back");
    assert!(eventually(Duration::from_secs(10), || published.count() >= 80), "{} published", published.count());
    let mut by_topic: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for message in upstream.received().into_iter().chain(published.received()) {
        let (topic, payload) = match message.topic.starts_with("up/alerts/") {
            true => alert(&message),
            false => (message.topic.clone(), message.text()),
        };
        by_topic.entry(topic).or_default().push(payload);
    }
    by_topic
}

/// An alert with its topic, since order holds per topic, and without its times.
fn alert(message: &Publish) -> (String, String) {
    let mut alert: Value = serde_json::from_slice(&message.payload).expect("an alert is JSON");
    for time in ["at_ms", "received_at_ms"] {
        alert.as_object_mut().expect("an alert is an object").remove(time).expect("it says when it was");
    }
    (format!("{} {}", message.topic, alert["topic"]), alert.to_string())
}

#[test]
fn the_same_day_has_the_same_outputs_to_the_byte() {
    let here = live(SEDGE.into());
    assert!(here.values().map(Vec::len).sum::<usize>() > 10, "{here:?}");
    assert_eq!(live(board_program()), here);
}
