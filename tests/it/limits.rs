//! A function that misbehaves costs its message and nothing else.

use std::time::Duration;

use crate::harness::Site;
use crate::harness::daemon::{Daemon, NODE, Setup};
use crate::harness::eventually;
use crate::harness::guest::{guest, variant};
use crate::harness::ledger::Ledger;
use crate::harness::mosquitto::Mosquitto;
use crate::harness::upstream::Upstream;
use crate::harness::wire::Publish;

/// Payloads, and the reasons that their dead letter may have.
const MISBEHAVIOUR: [(&str, &[&str]); 13] = [
    ("loop", &["fuel"]),
    ("trap", &["trap"]),
    ("memory", &["memory", "trap"]),
    ("recurse", &["trap"]),
    ("output", &["output"]),
    ("outputs", &["output"]),
    // A gigabyte of log: any of several limits may come first.
    ("log", &["fuel", "deadline", "output"]),
    ("reject because", &["rejected"]),
    ("retry 1000", &["retries-exhausted"]),
    ("publish elsewhere/a", &["not-allowed"]),
    ("publish allowed/+", &["invalid-topic"]),
    ("wake a+", &["invalid-wake"]),
    ("sink mail", &["not-available"]),
];

#[test]
fn whatever_a_function_does_its_message_becomes_a_dead_letter_and_others_continue() {
    let folder = tempfile::tempdir().unwrap();
    // Fuel must end it, not the deadline of an emulated board.
    let misbehave = variant(&guest("misbehave"), folder.path(), "misbehave", "misbehave/#", |manifest| {
        manifest.replace("timeout_ms = 1_000", "timeout_ms = 20_000")
    });
    let site = Site::start_with(|setup| {
        setup
            .function(&misbehave)
            .set("functions", "max_timeout_ms = 20_000")
            .set("functions", "retry_attempts = 2")
            .set("functions", "quarantine_after = 100")
    });
    let mut sensors = site.broker.client("sensors");
    let mut ledger = Ledger::default();
    let letters = |reason: &str| site.daemon.metric_with("sedge_dead_letters_total", &format!("reason=\"{reason}\""));
    for (payload, reasons) in MISBEHAVIOUR {
        let count = || reasons.iter().map(|reason| letters(reason)).sum::<f64>();
        let (before, all) = (count(), site.daemon.metric("sedge_dead_letters_total"));
        sensors.publish_all(ledger.batch(5, 50)).unwrap();
        sensors.publish(Publish::new("misbehave/a", payload)).unwrap();
        sensors.publish_all(ledger.batch(5, 50)).unwrap();
        let found = eventually(Duration::from_secs(30), || count() > before);
        assert!(found, "{payload:?} gave no dead letter with one of {reasons:?}; log:\n{}", site.daemon.log());
        let now = site.daemon.metric("sedge_dead_letters_total");
        assert_eq!(now, all + 1.0, "{payload:?} costs one dead letter; all counters:\n{}", site.daemon.counters());
    }
    // The function itself still works.
    sensors.publish(Publish::new("misbehave/a", "ok")).unwrap();
    let topic = format!("up/{NODE}/ok");
    assert!(eventually(Duration::from_secs(20), || site.upstream.received().iter().any(|m| m.topic == topic)));
    site.settle(&ledger);
    assert!(
        site.daemon.log().len() < 2_000_000,
        "a function filled the daemon's log: {} bytes",
        site.daemon.log().len()
    );
}

#[test]
fn a_dead_letter_is_logged_with_its_reason_and_many_give_few_lines() {
    let site = Site::start_with(|setup| setup.function(&guest("misbehave")).set("functions", "quarantine_after = 100"));
    let mut sensors = site.broker.client("sensors");
    for payload in ["trap", "stack", "recurse", "reject for a reason"] {
        sensors.publish(Publish::new("misbehave/a", payload)).unwrap();
    }
    let letters = || site.daemon.metric("sedge_dead_letters_total");
    assert!(eventually(Duration::from_secs(30), || letters() == 4.0), "{} dead letters", letters());
    let log = site.daemon.log();
    for expected in [
        // Place and text of the panic.
        "panicked at misbehave/src/lib.rs:",
        ": told to (wasm trap",
        "stack overflow: the function has 16384 bytes of stack",
        "reason=\"rejected\"",
        "for a reason",
    ] {
        assert!(log.contains(expected), "{expected:?} is not in the log:\n{log}");
    }
    for n in 0..500 {
        sensors.publish(Publish::new(&format!("misbehave/{n}"), format!("reject {n}"))).unwrap();
    }
    assert!(eventually(Duration::from_secs(60), || letters() == 504.0), "{} dead letters", letters());
    let lines = |text: &str| site.daemon.log().lines().filter(|line| line.contains(text)).count();
    assert!(lines("dead letter") < 40, "{} lines", lines("dead letter"));
    let told = eventually(Duration::from_secs(60), || lines("log lines were left out") > 0);
    assert!(told, "nothing tells what was left out:\n{}", site.daemon.log());
}

#[test]
fn an_endless_loop_ends_at_its_deadline_while_health_answers_and_other_functions_run() {
    let folder = tempfile::tempdir().unwrap();
    let slow = variant(&guest("misbehave"), folder.path(), "slow", "slow/#", |manifest| {
        manifest.replace("fuel = 20_000_000", "fuel = 10_000_000_000").replace("timeout_ms = 1_000", "timeout_ms = 300")
    });
    let site = Site::start_with(|setup| setup.function(&slow));
    let mut sensors = site.broker.client("sensors");
    for _ in 0..5 {
        sensors.publish(Publish::new("slow/a", "loop")).unwrap();
    }
    let mut ledger = Ledger::default();
    sensors.publish_all(ledger.batch(5, 200)).unwrap();
    let letters = || site.daemon.metric_with("sedge_dead_letters_total", "reason=\"deadline\"");
    let all = eventually(Duration::from_secs(30), || {
        let (status, _) = site.daemon.get("/healthz").expect("health answers while functions spin");
        assert_eq!(status, 200);
        letters() == 5.0
    });
    assert!(all, "{} dead letters", letters());
    site.settle(&ledger);
}

/// The function `misbehave` with its results on the same broker, below `up/`.
fn misbehaving(broker: &Mosquitto) -> (Setup, Upstream) {
    let upstream = Upstream::collect_filter(broker.port, "upstream", "up/#");
    let setup = Setup::new(broker.url()).upstream(broker.url()).set("upstream", "topic_prefix = \"up/\"");
    (setup.function(&guest("misbehave")), upstream)
}

#[test]
fn a_retry_runs_again_and_then_succeeds() {
    let broker = Mosquitto::start();
    let (setup, upstream) = misbehaving(&broker);
    let daemon = Daemon::start(&setup);
    broker.await_daemon();
    broker.client("sensor").publish(Publish::new("misbehave/a", "retry 2")).unwrap();
    let topic = "up/retried";
    let third = || upstream.received().iter().any(|m| m.topic == topic && m.text() == "3");
    assert!(eventually(Duration::from_secs(20), third), "{:?}", upstream.received());
    assert_eq!(daemon.metric("sedge_dead_letters_total"), 0.0);
}

#[test]
fn what_a_message_says_of_its_delivery_survives_a_retry_and_a_restart() {
    let broker = Mosquitto::start();
    let (setup, upstream) = misbehaving(&broker);
    let message = Publish {
        retain: true,
        response_topic: Some("answers/7".into()),
        correlation_data: Some("request 7".into()),
        ..Publish::new("misbehave/a", "fields 2000")
    };
    broker.client("sensor").publish(message).unwrap();
    let mut daemon = Daemon::start(&setup);
    let parked = || daemon.metric("sedge_messages_acknowledged_total") == 1.0;
    assert!(eventually(Duration::from_secs(20), parked), "{}", daemon.counters());
    daemon.kill();
    daemon.resume();
    let said = || upstream.received().iter().find(|m| m.topic == "up/fields").map(Publish::text);
    assert!(eventually(Duration::from_secs(20), || said().is_some()), "{}", daemon.log());
    assert_eq!(said().unwrap(), "retained answers/7 request 7");
    broker.client("sensor").publish(Publish::new("misbehave/b", "fields 1")).unwrap();
    let plain = || upstream.received().iter().any(|m| m.text() == "new none ");
    assert!(eventually(Duration::from_secs(20), plain), "{:?}", upstream.received());
}

#[test]
fn a_function_publishes_on_the_local_broker_where_its_manifest_allows() {
    let broker = Mosquitto::start();
    let _daemon = Daemon::start(&Setup::new(broker.url()).function(&guest("misbehave")));
    broker.await_daemon();
    let mut listener = broker.client("listener");
    listener.subscribe(&["allowed/#", "elsewhere/#"]).unwrap();
    let mut sensor = broker.client("sensor");
    sensor.publish(Publish::new("misbehave/a", "publish elsewhere/a")).unwrap();
    sensor.publish(Publish::new("misbehave/a", "publish allowed/a")).unwrap();
    let message = listener.receive(Duration::from_secs(20)).unwrap().expect("a publication");
    assert_eq!((message.topic.as_str(), message.text().as_str()), ("allowed/a", "from misbehave"));
}
