//! Operation of a running daemon: signals, systemd, metrics, dead letters.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use crate::harness::daemon::{Daemon, SEDGE, Setup};
use crate::harness::guest::guest;
use crate::harness::mosquitto::Mosquitto;
use crate::harness::traffic::Traffic;
use crate::harness::upstream::Upstream;
use crate::harness::wire::Publish;
use crate::harness::{Site, eventually};

#[test]
fn sigterm_under_load_ends_with_0_within_5_seconds_and_loses_nothing() {
    let mut site = Site::start();
    let traffic = Traffic::start(site.broker.port, 10);
    for _ in 0..3 {
        site.progress(200);
        let (status, after) = site.daemon.terminate();
        assert_eq!(status.code(), Some(0), "it ended with {status}");
        assert!(after < Duration::from_secs(5), "it took {after:?}");
        site.daemon.resume();
    }
    let ledger = traffic.stop();
    site.settle(&ledger);
}

#[test]
fn sigterm_ends_it_while_both_brokers_are_away() {
    let broker = Mosquitto::reserve("");
    let setup = Setup::new(broker.url()).upstream("mqtt://127.0.0.1:9".into()).function(&guest("count"));
    let mut daemon = Daemon::prepare(&setup);
    daemon.resume();
    let (status, after) = daemon.terminate();
    assert_eq!(status.code(), Some(0));
    assert!(after < Duration::from_secs(5), "it took {after:?}");
}

#[test]
fn a_port_in_use_ends_it_with_1_and_one_sentence() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("take a port");
    let addr = taken.local_addr().expect("the port that was taken");
    let mut daemon =
        Daemon::prepare(&Setup::new("mqtt://127.0.0.1:9".into()).set("http", format!("listen = \"{addr}\"")));
    daemon.launch();
    assert_eq!(daemon.wait_end(Duration::from_secs(20)).code(), Some(1));
    let says = daemon.log();
    let errors: Vec<&str> = says.lines().filter(|line| line.contains("error")).collect();
    assert_eq!(errors.len(), 1, "{says}");
    assert!(errors[0].contains(&format!("cannot listen on {addr}")) && errors[0].contains("http.listen"), "{says}");
    assert_eq!(errors[0].matches("in use").count(), 1, "{says}");
}

#[test]
fn a_missing_credential_ends_it_with_78_and_names_where_it_belongs() {
    let setup = Setup::new("mqtt://127.0.0.1:9".into())
        .set("mqtt", "username = \"u\"")
        .set("mqtt", "password_file = \"${CREDENTIALS_DIRECTORY}/sedge.mqtt-password\"");
    let mut daemon = Daemon::prepare(&setup);
    let start = |daemon: &mut Daemon, folder: &Path| {
        let mut command = Command::new(SEDGE);
        command.arg("run").arg("--config").arg(daemon.config()).env("CREDENTIALS_DIRECTORY", folder);
        daemon.launch_as(command);
    };
    let folder = daemon.data();
    start(&mut daemon, &folder);
    assert_eq!(daemon.wait_end(Duration::from_secs(20)).code(), Some(78));
    let says = daemon.log();
    assert!(says.contains("mqtt.password_file") && says.contains("/etc/credstore/sedge.mqtt-password"), "{says}");
    fs::write(folder.join("sedge.mqtt-password"), "hush\n").expect("write the credential");
    start(&mut daemon, &folder);
    daemon.wait_ready(Duration::from_secs(30));
}

#[test]
fn systemd_is_notified_of_start_reload_end_and_liveness() {
    let broker = Mosquitto::start();
    let mut daemon = Daemon::prepare(&Setup::new(broker.url()).function(&guest("count")));
    let notify = daemon.data().join("notify");
    let socket = UnixDatagram::bind(&notify).expect("bind the service manager's socket");
    socket.set_read_timeout(Some(Duration::from_secs(30))).expect("set the patience");
    let hear = |word: &str| {
        let mut heard = Vec::new();
        // The heartbeat continues meanwhile.
        while heard.len() < 60 {
            let mut message = [0; 512];
            let len = socket.recv(&mut message).unwrap_or_else(|error| panic!("no {word}: {error}; {heard:?}"));
            let message = String::from_utf8_lossy(&message[..len]).into_owned();
            if message.lines().any(|line| line == word) {
                return message;
            }
            heard.push(message);
        }
        panic!("no {word}: {heard:?}");
    };
    let mut command = Command::new(SEDGE);
    command.arg("run").arg("--config").arg(daemon.config());
    command.env("NOTIFY_SOCKET", &notify).env("WATCHDOG_USEC", "2000000");
    daemon.launch_as(command);
    hear("READY=1");
    hear("STATUS=running");
    hear("WATCHDOG=1");
    daemon.signal(Signal::HUP);
    assert!(hear("RELOADING=1").contains("\nMONOTONIC_USEC="), "systemd 253 asks for the time");
    hear("READY=1");
    hear("WATCHDOG=1");
    daemon.signal(Signal::TERM);
    hear("STOPPING=1");
    assert_eq!(daemon.wait_end(Duration::from_secs(10)).code(), Some(0));
}

#[test]
fn a_second_daemon_on_one_data_folder_is_refused() {
    let broker = Mosquitto::start();
    let setup = Setup::new(broker.url()).function(&guest("count"));
    let mut first = Daemon::start(&setup);
    broker.await_daemon();
    let data = first.data();
    let mut second =
        Daemon::prepare(&setup.set("node", format!("data_dir = {data:?}")).set("mqtt", "client_id = \"another\""));
    second.launch();
    let status = second.wait_end(Duration::from_secs(20));
    assert!(!status.success(), "it ended with {status}");
    let says = second.log();
    assert!(says.contains(&data.display().to_string()), "it does not name the folder:\n{says}");
    assert!(first.is_running());
    assert_eq!(first.get("/readyz").map(|(status, _)| status), Some(200), "the first is not disturbed");
}

#[test]
fn metrics_have_the_conventional_names_and_no_topics() {
    let site = Site::start();
    site.broker
        .client("sensor")
        .publish_all((0..20).map(|n| Publish::new("count/secret-topic", n.to_string())))
        .unwrap();
    let received = || site.daemon.metric("sedge_messages_received_total");
    assert!(eventually(Duration::from_secs(20), || received() == 20.0), "{} received", received());
    let (status, page) = site.daemon.get("/metrics").unwrap();
    assert_eq!(status, 200);
    for name in [
        "sedge_build_info{",
        "sedge_messages_received_total ",
        "sedge_function_duration_seconds_bucket{",
        "sedge_function_fuel_total{function=\"count\"}",
        "sedge_function_memory_bytes{function=\"count\"}",
        "sedge_outbox_records{",
        "sedge_store_written_bytes_total ",
    ] {
        assert!(page.lines().any(|line| line.starts_with(name)), "no line starts with {name}:\n{page}");
    }
    assert!(!page.contains("secret-topic"), "topics are without number and are no labels");
    for path in ["/healthz", "/readyz"] {
        assert_eq!(site.daemon.get(path).map(|(status, _)| status), Some(200), "{path}");
    }
    assert_eq!(site.daemon.get("/nowhere").map(|(status, _)| status), Some(404));
}

#[test]
fn dead_letters_are_listed_and_replayed_while_the_daemon_runs() {
    let broker = Mosquitto::start();
    let upstream = Upstream::collect_filter(broker.port, "upstream", "up/#");
    let daemon = Daemon::start(
        &Setup::new(broker.url())
            .upstream(broker.url())
            .set("upstream", "topic_prefix = \"up/\"")
            .function(&guest("misbehave")),
    );
    broker.await_daemon();
    broker.client("sensor").publish(Publish::new("misbehave/mended-later", "once again")).unwrap();
    assert!(eventually(Duration::from_secs(20), || daemon.metric("sedge_dead_letters_total") == 1.0));

    let list = daemon.command(&["dead-letters", "list", "--json"]);
    let text = String::from_utf8_lossy(&list.stdout).into_owned();
    assert!(list.status.success(), "{}", String::from_utf8_lossy(&list.stderr));
    for part in ["misbehave/mended-later", "rejected", "not yet"] {
        assert!(text.contains(part), "no {part} in {text}");
    }

    let replay = daemon.command(&["dead-letters", "replay", "--all"]);
    assert!(replay.status.success(), "{}", String::from_utf8_lossy(&replay.stderr));
    let topic = "up/once";
    let arrived = || upstream.received().iter().any(|message| message.topic == topic && message.text() == "again");
    assert!(eventually(Duration::from_secs(20), arrived), "log:\n{}", daemon.log());
    let list = daemon.command(&["dead-letters", "list", "--json"]);
    assert!(!String::from_utf8_lossy(&list.stdout).contains("mended-later"), "it is gone from the list");
}

#[test]
fn results_are_in_the_history_while_the_daemon_runs_and_after_it_was_killed() {
    let broker = Mosquitto::start();
    let setup = Setup::new(broker.url()).set("history", "days = 7").function(&guest("count"));
    let mut daemon = Daemon::start(&setup);
    broker.await_daemon();
    let mut sensor = broker.client("sensor");
    sensor.publish_all((1..=20).map(|n| Publish::new("count/a", n.to_string()))).unwrap();
    let entries = |daemon: &Daemon, arguments: &[&str]| -> Vec<serde_json::Value> {
        let output = daemon.command(&[&["history", "--json"], arguments].concat());
        let answer: serde_json::Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("no JSON: {output:?}"));
        answer["entries"].as_array().expect("a list").clone()
    };
    let payloads = |of: &[serde_json::Value]| of.iter().map(|it| it["payload"].clone()).collect::<Vec<_>>();
    let has_all = || entries(&daemon, &["--kind", "forward"]).len() == 20;
    assert!(eventually(Duration::from_secs(20), has_all), "log:\n{}", daemon.log());
    let forwards = entries(&daemon, &["--topic", "count/+", "--kind", "forward"]);
    assert_eq!(payloads(&forwards), (1..=20).map(|n| format!("{n} {n}")).collect::<Vec<_>>());
    let alerts = entries(&daemon, &["--function", "count", "--kind", "alert", "--since", "1h"]);
    assert_eq!((alerts.len(), &alerts[0]["topic"]), (2, &serde_json::json!("count/a")));
    daemon.kill();
    assert_eq!(entries(&daemon, &["--kind", "forward"]), forwards, "there is no daemon");
    daemon.resume();
    sensor.publish_all((21..=30).map(|n| Publish::new("count/a", n.to_string()))).unwrap();
    let has_all = || entries(&daemon, &["--kind", "forward"]).len() == 30;
    assert!(eventually(Duration::from_secs(20), has_all), "log:\n{}", daemon.log());
    let csv = daemon.command(&["history", "--format", "csv", "--limit", "0"]);
    assert_eq!(String::from_utf8_lossy(&csv.stdout).lines().count(), 1 + 30 + 3);
}
