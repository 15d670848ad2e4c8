//! Wakes of functions: over the death of the daemon, moved, cancelled, and as figures.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::harness::client::Client;
use crate::harness::daemon::{NODE, SEDGE};
use crate::harness::guest::root;
use crate::harness::wire::Publish;
use crate::harness::{Site, eventually};

const PATIENCE: Duration = Duration::from_secs(30);

fn door() -> PathBuf {
    root().join("examples/javascript/door-left-open")
}

fn publish(site: &Site, door: &str, contact: bool) {
    let payload = format!("{{\"contact\":{contact}}}");
    site.broker.client("sensor").publish(Publish::new(&format!("zigbee2mqtt/{door}"), payload)).expect("publish");
}

fn await_waiting(site: &Site, wakes: f64) {
    let waiting = || site.daemon.metric("sedge_wakes_waiting");
    assert!(eventually(PATIENCE, || waiting() == wakes), "{} wakes wait; log:\n{}", waiting(), site.daemon.log());
}

/// The key and the status of the next alert.
fn alert(listener: &mut Client) -> Option<(String, String)> {
    let alert = listener.receive(PATIENCE).expect("read from the broker")?;
    let json: serde_json::Value = serde_json::from_str(&alert.text()).expect("an alert is JSON");
    assert_eq!(json["topic"], format!("zigbee2mqtt/{}", json["key"].as_str()?), "the topic that set the wake");
    Some((json["key"].as_str()?.to_owned(), json["status"].as_str()?.to_owned()))
}

#[test]
fn a_door_left_open_is_reported_although_the_daemon_is_killed_meanwhile() {
    let mut site =
        Site::start_with(|setup| setup.function(&door()).set("functions.settings.door-left-open", "minutes = 0.1"));
    let mut listener = site.broker.client("listener");
    listener.subscribe(&[&format!("sedge/{NODE}/alerts/door-left-open")]).expect("subscribe to alerts");
    publish(&site, "garage", false);
    publish(&site, "kitchen", false);
    await_waiting(&site, 2.0);
    publish(&site, "kitchen", true);
    await_waiting(&site, 1.0);
    site.daemon.kill();
    site.daemon.resume();
    site.broker.await_daemon();
    assert_eq!(alert(&mut listener), Some(("garage".into(), "firing".into())));
    await_waiting(&site, 0.0);
    assert_eq!(site.daemon.metric("sedge_wakes_total"), 1.0);
    publish(&site, "garage", true);
    assert_eq!(alert(&mut listener), Some(("garage".into(), "resolved".into())));
    assert_eq!(site.daemon.metric("sedge_dead_letters_total"), 0.0);
}

#[test]
fn the_cases_of_the_example_pass() {
    let mut command = Command::new(SEDGE);
    command.arg("test").arg(door()).env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"));
    let output = command.output().expect("run sedge test");
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
