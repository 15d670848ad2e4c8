//! Settings of functions by the board's file and by signed orders: at the start, under load, and wrong ones.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::harness::client::Client;
use crate::harness::daemon::{Daemon, NODE, SEDGE, Setup};
use crate::harness::eventually;
use crate::harness::guest::{example, variant};
use crate::harness::mosquitto::Mosquitto;
use crate::harness::wire::Publish;

const PATIENCE: Duration = Duration::from_secs(20);

struct Plant {
    daemon: Daemon,
    broker: Mosquitto,
    /// Hears alerts.
    listener: Client,
    folder: tempfile::TempDir,
}

impl Plant {
    /// A board with the example `threshold-alert`, which alerts above `max`, once for each topic.
    fn with(line: &str) -> Self {
        let folder = tempfile::tempdir().expect("make a folder");
        let declare =
            |manifest: String| format!("{manifest}\n[settings.max]\ntype = \"number\"\nmin = -40\nmax = 200\n");
        let warm = variant(&example("threshold-alert"), folder.path(), "warm", "sensors/#", declare);
        let broker = Mosquitto::start();
        let key = folder.path().join("ops.pem");
        let made = Command::new(SEDGE).args(["keygen", "--out"]).arg(&key).output().expect("run sedge keygen");
        assert!(made.status.success(), "{made:?}");
        let setup = Setup::new(broker.url()).function(&warm).set("functions.settings.warm", line);
        let setup = setup.set("deploy.keys.ops", format!("file = {:?}", key.with_extension("pub.pem")));
        let daemon = Daemon::start(&setup);
        broker.await_daemon();
        let mut listener = broker.client("listener");
        listener.subscribe(&[&format!("sedge/{NODE}/alerts/warm")]).expect("subscribe to alerts");
        Self { daemon, broker, listener, folder }
    }

    fn publish(&self, topic: &str, value: u32) {
        self.broker.client("sensor").publish(Publish::new(topic, value.to_string())).expect("publish");
    }

    /// The sensor of the next alert.
    fn alert(&mut self) -> Option<String> {
        let alert = self.listener.receive(PATIENCE).expect("read from the broker")?;
        let json: serde_json::Value = serde_json::from_str(&alert.text()).expect("an alert is JSON");
        Some(json["topic"].as_str().expect("an alert names its topic").to_owned())
    }

    fn reload(&self, before: &str, after: &str) {
        let config = fs::read_to_string(self.daemon.config()).expect("read the configuration");
        assert!(config.contains(before), "{config}");
        fs::write(self.daemon.config(), config.replace(before, after)).expect("write the configuration");
        self.daemon.signal(Signal::HUP);
    }

    /// Exit code and JSON of `sedge settings` about the board.
    fn settings(&self, arguments: &[&str]) -> (Option<i32>, serde_json::Value) {
        let mut command = Command::new(SEDGE);
        command.arg("settings").args(arguments).args(["--node", NODE, "--json", "--broker", &self.broker.url()]);
        if arguments[0] != "show" {
            command.args(["--timeout", "30", "--key"]).arg(self.folder.path().join("ops.pem"));
        }
        let output = command.env("XDG_CONFIG_HOME", "/dev/null").output().expect("run sedge settings");
        let answer = serde_json::from_slice(&output.stdout);
        (output.status.code(), answer.unwrap_or_else(|error| panic!("no JSON ({error}): {output:?}")))
    }

    #[track_caller]
    fn logs(&self, text: &str) {
        assert!(eventually(PATIENCE, || self.daemon.log().contains(text)), "{text}:\n{}", self.daemon.log());
    }
}

#[test]
fn the_boards_file_sets_a_function_and_a_reload_changes_it_under_load_without_loss() {
    let mut plant = Plant::with("max = 40");
    // Below the limit of function.toml, above the one of this board.
    plant.publish("sensors/first/temperature", 50);
    assert_eq!(plant.alert().as_deref(), Some("sensors/first/temperature"));
    let topics: Vec<String> = (0..2000).map(|number| format!("sensors/s{number}/temperature")).collect();
    let (broker, load) = (plant.broker.client("load"), topics.clone());
    let load = std::thread::spawn(move || {
        let mut client = broker;
        client.publish_all(load.iter().map(|topic| Publish::new(topic, "35"))).unwrap();
    });
    plant.reload("max = 40", "max = 30");
    load.join().unwrap();
    plant.logs("new settings are in force");
    // Each topic once more: those that ran before the change alert now, the others did already.
    plant.broker.client("again").publish_all(topics.iter().map(|topic| Publish::new(topic, "36"))).unwrap();
    let mut alerted = BTreeSet::new();
    while alerted.len() < topics.len() {
        let topic = plant.alert().unwrap_or_else(|| panic!("{} of {} alerts", alerted.len(), topics.len()));
        assert!(alerted.insert(topic), "an alert came twice");
    }
    assert_eq!(plant.daemon.metric("sedge_dead_letters_total"), 0.0);
}

#[test]
fn a_reload_with_a_wrong_setting_names_the_fix_and_keeps_the_old_one() {
    let mut plant = Plant::with("max = 40");
    plant.reload("max = 40", "max = 300");
    plant.logs("is above 200; use a number from -40 to 200");
    plant.publish("sensors/a/temperature", 50);
    assert_eq!(plant.alert().as_deref(), Some("sensors/a/temperature"));
    // A single topic has its own, and a restart has what the file says.
    plant.reload("max = 300", "max = 60\n[functions.settings.warm.topics.\"sensors/b/temperature\"]\nmax = 20");
    plant.logs("new settings are in force");
    plant.daemon.terminate();
    plant.daemon.resume();
    plant.broker.await_daemon();
    plant.publish("sensors/c/temperature", 50);
    plant.publish("sensors/b/temperature", 25);
    assert_eq!(plant.alert().as_deref(), Some("sensors/b/temperature"));
    plant.publish("sensors/c/temperature", 61);
    assert_eq!(plant.alert().as_deref(), Some("sensors/c/temperature"));
    let checked = plant.daemon.command(&["check"]);
    let says = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(says.contains("setting  max = 60, from the board's file"), "{says}");
    assert!(says.contains("setting  max = 20, from the board's file, for sensors/b/temperature"), "{says}");
}

/// From the signal to the first message that has the new setting.
#[test]
fn a_change_of_the_file_takes_effect_while_messages_come() {
    let mut plant = Plant::with("max = 199");
    let begun = Instant::now();
    plant.reload("max = 199", "max = 30");
    for number in 0.. {
        plant.publish(&format!("sensors/t{number}/temperature"), 100);
        if plant.daemon.metric_with("sedge_function_outputs_total", "alert") > 0.0 {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "the setting never took effect:\n{}", plant.daemon.log());
    }
    println!("settings_to_effect_ms {} (by reload, polled)", begun.elapsed().as_millis());
    assert!(plant.alert().is_some());
}

#[test]
fn signed_settings_take_effect_are_shown_and_survive_a_restart() {
    let mut plant = Plant::with("max = 60");
    let begun = Instant::now();
    let (code, answer) = plant.settings(&["set", "warm", "max=30"]);
    println!("settings_to_effect_ms {} (the whole command)", begun.elapsed().as_millis());
    assert_eq!((code, &answer["nodes"][0]["state"]), (Some(0), &"in-force".into()), "{answer}");
    plant.publish("sensors/a/temperature", 35);
    assert_eq!(plant.alert().as_deref(), Some("sensors/a/temperature"));
    // The next order builds on the one before, and a topic has its own.
    let (code, answer) = plant.settings(&["set", "warm", "max=20", "--topic", "sensors/b/+"]);
    assert_eq!(code, Some(0), "{answer}");
    plant.daemon.terminate();
    plant.daemon.resume();
    plant.broker.await_daemon();
    plant.publish("sensors/c/temperature", 29);
    plant.publish("sensors/b/temperature", 25);
    assert_eq!(plant.alert().as_deref(), Some("sensors/b/temperature"));
    plant.publish("sensors/c/temperature", 36);
    assert_eq!(plant.alert().as_deref(), Some("sensors/c/temperature"));
    let (_, shown) = plant.settings(&["show", "warm"]);
    let value = |topic: serde_json::Value| {
        let settings = shown["nodes"][0]["settings"].as_array().unwrap();
        let found = settings.iter().find(|it| it["name"] == "max" && it["topic"] == topic).unwrap();
        (found["value"].clone(), found["from"].clone())
    };
    assert_eq!(value(serde_json::Value::Null), ("30".into(), "node".into()), "{shown}");
    assert_eq!(value("sensors/b/+".into()), ("20".into(), "node".into()), "{shown}");
    let (code, answer) = plant.settings(&["unset", "warm", "max"]);
    assert_eq!(code, Some(0), "{answer}");
    let (_, shown) = plant.settings(&["show", "warm"]);
    assert!(shown.to_string().contains(r#""from":"board","name":"max","value":"60""#), "{shown}");
}

#[test]
fn settings_that_a_board_would_refuse_are_not_sent() {
    let plant = Plant::with("max = 60");
    let refused = |arguments: &[&str], says: &str| {
        let (code, answer) = plant.settings(arguments);
        assert_eq!(code, Some(1), "{answer}");
        assert!(answer["error"].as_str().unwrap().contains(says), "{answer}");
    };
    refused(&["set", "warm", "max=300"], "\"300\" is above 200; use a number from -40 to 200. Nothing was sent");
    refused(&["set", "warm", "maxx=3"], "did you mean max?");
    refused(&["unset", "warm", "max"], "max is not set by an order");
    refused(&["show", "cold"], "reports cold");
    let (code, answer) = plant.settings(&["set", "cold", "max=3"]);
    assert_eq!((code, &answer["nodes"][0]["state"]), (Some(0), &"kept".into()), "{answer}");
}
