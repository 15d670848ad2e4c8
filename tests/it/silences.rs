//! Calls about silent topics: over the death of the daemon, once for each; and the example.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::harness::daemon::{NODE, SEDGE};
use crate::harness::guest::root;
use crate::harness::wire::Publish;
use crate::harness::{Site, eventually};

const PATIENCE: Duration = Duration::from_secs(30);

const MANIFEST: &str = "name = \"watchdog\"\nversion = \"1.0.0\"\nsubscribe = [\"sensors/#\"]\nstate = \"topic\"\n\
                        [silence]\nafter = \"4s\"\nback = true\n";

/// Of the example, with a shorter silence.
const FUNCTION: &str = include_str!("../../examples/javascript/silent-sensors/function.js");

#[test]
fn of_many_sensors_those_that_fall_silent_are_told_once_although_the_daemon_is_killed_meanwhile() {
    let folder = tempfile::tempdir().expect("make a folder");
    let dir = folder.path().join("watchdog");
    fs::create_dir(&dir).expect("make a folder");
    fs::write(dir.join("function.toml"), MANIFEST).expect("write function.toml");
    fs::write(dir.join("function.js"), FUNCTION).expect("write function.js");
    let mut site = Site::start_with(|setup| setup.function(&dir));
    let mut listener = site.broker.client("listener");
    listener.subscribe(&[&format!("sedge/{NODE}/alerts/watchdog")]).expect("subscribe to alerts");
    let mut sensors = site.broker.client("sensors");
    // Compiling the engine of scripts may take longer than a silence. What takes long is done beside the others.
    let is_ready = || {
        let log = site.daemon.log();
        ["function installed", "version deployed"].iter().any(|it| log.contains(&format!("{it} function=\"watchdog\"")))
    };
    assert!(eventually(4 * PATIENCE, is_ready), "the function never starts; log:\n{}", site.daemon.log());
    let mut speak = |numbers: std::ops::Range<u32>| {
        sensors
            .publish_all(numbers.map(|number| Publish::new(&format!("sensors/s{number}/temperature"), "21.5")))
            .expect("publish");
    };
    speak(0..200);
    let watched = || site.daemon.metric("sedge_watched_topics");
    assert!(eventually(PATIENCE, || watched() == 200.0), "{} topics are watched", watched());
    site.daemon.kill();
    site.daemon.resume();
    site.broker.await_daemon();
    // 20 of them say nothing any more.
    let mut told: BTreeMap<String, u32> = BTreeMap::new();
    let (begun, mut enough) = (Instant::now(), None);
    loop {
        speak(20..200);
        while let Some(alert) = listener.receive(Duration::from_millis(300)).expect("read from the broker") {
            let json: serde_json::Value = serde_json::from_str(&alert.text()).expect("an alert is JSON");
            assert_eq!(json["status"], "firing", "{json}");
            *told.entry(json["key"].as_str().expect("a key").to_owned()).or_default() += 1;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{} of 20 are told", told.len());
        // No further one within as much time as made the first ones silent.
        let since = *enough.get_or_insert(Instant::now());
        if told.len() < 20 {
            enough = None;
        } else if since.elapsed() > Duration::from_secs(6) {
            break;
        }
    }
    let expected: BTreeMap<String, u32> = (0..20).map(|number| (format!("s{number}"), 1)).collect();
    assert_eq!(told, expected);
    speak(0..1);
    let back = listener.receive(PATIENCE).expect("read from the broker").expect("it speaks again");
    assert!(
        back.text().contains("\"status\":\"resolved\"") && back.text().contains("s0 speaks again"),
        "{}",
        back.text()
    );
}

#[test]
fn the_cases_of_the_example_pass() {
    let example = root().join("examples/javascript/silent-sensors");
    let output =
        Command::new(SEDGE).arg("test").arg(example).env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR")).output();
    let output = output.expect("run sedge test");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
}
