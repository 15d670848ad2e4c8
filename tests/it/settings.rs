//! Settings of functions by the board's file: at the start, by a reload under load, and wrong ones.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::harness::client::Client;
use crate::harness::daemon::{Daemon, NODE, Setup};
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
    _folder: tempfile::TempDir,
}

impl Plant {
    /// A board with the example `threshold-alert`, which alerts above `max`, once for each topic.
    fn with(line: &str) -> Self {
        let folder = tempfile::tempdir().expect("make a folder");
        let declare =
            |manifest: String| format!("{manifest}\n[settings.max]\ntype = \"number\"\nmin = -40\nmax = 200\n");
        let warm = variant(&example("threshold-alert"), folder.path(), "warm", "sensors/#", declare);
        let broker = Mosquitto::start();
        let setup = Setup::new(broker.url()).function(&warm).set("functions.settings.warm", line);
        let daemon = Daemon::start(&setup);
        broker.await_daemon();
        let mut listener = broker.client("listener");
        listener.subscribe(&[&format!("sedge/{NODE}/alerts/warm")]).expect("subscribe to alerts");
        Self { daemon, broker, listener, _folder: folder }
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
