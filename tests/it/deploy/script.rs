//! Functions in JavaScript: from a new folder to an alert, without a toolchain.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{PATIENCE, Yard, answer, cached, sedge, text};
use crate::harness::daemon::NODE;
use crate::harness::upstream::Upstream;
use crate::harness::wire::Publish;
use crate::harness::{Site, eventually};
use sedge_core::deploy::reason::Reason;

/// The outputs of one run, as JSON.
#[track_caller]
fn invoke(dir: &Path, topic: &str, payload: &str, more: &[&str]) -> Value {
    let output = sedge(&[&["invoke", text(dir), "--json", "--topic", topic, "--payload", payload], more].concat());
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("no JSON ({error}): {output:?}"))
}

fn example(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("a workspace");
    root.join("examples/javascript").join(name)
}

fn new_script(dir: &Path, function: &str) {
    let made = sedge(&["new", "--lang", "js", "too-warm", "--dir", text(dir)]);
    assert!(made.status.success(), "{made:?}");
    let path = dir.join("function.toml");
    let manifest = fs::read_to_string(&path).expect("read function.toml").replace("sensors/+/temperature", "warm/#");
    fs::write(path, manifest + "\n[trial]\nmessages = 1\nsecs = 1\n").expect("write function.toml");
    if !function.is_empty() {
        fs::write(dir.join("function.js"), function).expect("write function.js");
    }
}

#[test]
fn a_new_script_is_pushed_and_raises_an_alert() {
    let yard = Yard::start();
    let alerts = Upstream::collect_filter(yard.broker.port, "alerts", &format!("sedge/{NODE}/alerts/too-warm"));
    let dir = yard.folder.path().join("too-warm");
    new_script(&dir, "");
    let run = invoke(&dir, "warm/oven", r#"{"temperature":90}"#, &[]);
    assert_eq!((&run["result"], &run["outputs"][0]["key"]), (&json!("done"), &json!("too-warm")), "{run}");

    let push = |dir: &Path| {
        let mut command = yard.command(&["push", text(dir)]);
        command.arg("--json");
        answer(&cached(command))
    };
    let (code, answered) = push(&dir);
    assert_eq!((code, &answered["counts"]), (Some(0), &json!({ "active": 1 })), "{answered}");
    assert!(answered["module"]["size_bytes"].as_u64() < Some(2000), "a push is the script: {answered}");
    let publish = |value: u32| yard.publish(Publish::new("warm/oven", format!("{{\"temperature\":{value}}}")));
    let statuses = || {
        let received = alerts.received();
        received
            .iter()
            .map(|it| serde_json::from_slice::<Value>(&it.payload).expect("an alert is JSON")["status"].clone())
            .collect::<Vec<_>>()
    };
    publish(90);
    publish(91);
    publish(70);
    assert!(eventually(PATIENCE, || statuses().len() == 2), "{:?}\n{}", statuses(), yard.daemon.log());
    assert_eq!(statuses(), ["firing", "resolved"]);
    yard.serves("v1");

    // An exception is a dead letter that names the place.
    let second = yard.folder.path().join("second");
    new_script(&second, "export function handle(message) {\n  return message.json.ok ? [] : message.json.a.b.c;\n}\n");
    let manifest = fs::read_to_string(second.join("function.toml")).expect("read function.toml");
    fs::write(second.join("function.toml"), manifest.replace("\"0.1.0\"", "\"0.2.0\"")).expect("write function.toml");
    let (code, answered) = push(&second);
    assert_eq!(code, Some(0), "{answered}");
    // The first message proves the version; until then a failure would roll it back.
    yard.publish(Publish::new("warm/oven", "{\"ok\":true}"));
    yard.publish(Publish::new("warm/oven", "{}"));
    let letters = || yard.daemon.metric_with("sedge_dead_letters_total", "reason=\"exception\"");
    assert!(eventually(PATIENCE, || letters() == 1.0), "{}", yard.daemon.log());
    let shown = String::from_utf8_lossy(&yard.daemon.command(&["dead-letters", "show", "1"]).stdout).into_owned();
    assert!(shown.contains("cannot read property 'b' of undefined (function.js:2:"), "{shown}");
}

#[test]
fn a_script_with_a_mistake_is_refused_by_every_command_and_by_the_board() {
    let yard = Yard::start();
    let dir = yard.folder.path().join("wrong");
    new_script(&dir, "export function handle(message) {\n  return message.\n}\n");
    for command in ["build", "push"] {
        let output = match command {
            "build" => sedge(&["build", text(&dir)]),
            _ => cached(yard.command(&["push", text(&dir)])),
        };
        let says = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && says.contains("SyntaxError") && says.contains("function.js:3:"), "{says}");
    }
    // The board finds out by itself what a push would have told.
    let archive = |source: &str| {
        let lengths = [11_u32.to_le_bytes(), (source.len() as u32).to_le_bytes()].concat();
        [b"sedge-script 1\n", &lengths[..], b"function.js", source.as_bytes()].concat()
    };
    for (serial, source, reason, says) in [
        (2, "let a = 1;", Reason::NotLoaded, "does not export a function `handle`"),
        (3, "for (;;) {}", Reason::NotLoaded, "units of fuel"),
        (4, "export function handle( {", Reason::NotLoaded, "function.js:1:"),
    ] {
        let archive = archive(source);
        yard.send_chunks(&archive);
        yard.send(&yard.install_of(serial, &archive, |_| {}));
        yard.refused(reason, says);
    }
    let damaged = &archive("let a = 1;")[..30];
    yard.send_chunks(damaged);
    yard.send(&yard.install_of(5, damaged, |_| {}));
    yard.refused(Reason::InvalidModule, "the archive of the script is damaged");
}

#[test]
fn scripts_in_folders_run_from_the_start_and_after_a_restart() {
    let mut site = Site::start_with(|setup| setup.function(&example("threshold")).function(&example("door-open")));
    let fired = |site: &Site, at_least: usize| {
        let count = || site.upstream.received().iter().filter(|it| it.topic.ends_with("alerts/js-threshold")).count();
        assert!(eventually(PATIENCE, || count() >= at_least), "{} alerts; log:\n{}", count(), site.daemon.log());
    };
    let mut sensors = site.broker.client("sensors");
    sensors.publish(Publish::new("sensors/oven/temperature", "90.5")).unwrap();
    fired(&site, 1);
    let (status, _) = site.daemon.terminate();
    assert!(status.success());
    site.daemon.resume();
    site.broker.await_daemon();
    sensors.publish(Publish::new("sensors/oven/temperature", "20")).unwrap();
    fired(&site, 2);
}

#[test]
fn decoders_run_unchanged_on_what_network_servers_send() {
    let folder = tempfile::tempdir().expect("make a folder");
    let decoded = |dir: &Path, topic: &str, payload: &str| {
        let run = invoke(dir, topic, payload, &[]);
        assert_eq!(run["result"], "done", "{run}");
        let output = &run["outputs"][0];
        (output["topic"].as_str().unwrap().to_owned(), output["payload"].as_str().unwrap().to_owned())
    };
    // 21.5 degrees, 45 percent: 08 66 01 c2 64.
    let tts = r#"{"end_device_ids":{"device_id":"hall"},"uplink_message":{"f_port":2,"frm_payload":"CGYBwmQ="}}"#;
    let chirpstack = r#"{"deviceInfo":{"deviceName":"hall"},"fPort":2,"data":"CGYBwmQ="}"#;
    for (topic, payload) in [("v3/app@t/devices/hall/up", tts), ("application/1/device/00/event/up", chirpstack)] {
        let (topic, payload) = decoded(&example("lorawan"), topic, payload);
        assert_eq!(topic, "decoded/hall");
        assert!(payload.starts_with(r#"{"temperature":21.5,"humidity":45,"battery":3,"#), "{payload}");
    }
    let wrong = invoke(&example("lorawan"), "v3/a/devices/b/up", &tts.replace("\"f_port\":2", "\"f_port\":9"), &[]);
    assert_eq!(wrong["failure"]["detail"], "the decoder reports: port 9 is not one of this device", "{wrong}");

    for (name, source) in [
        ("older", "function Decoder(bytes, port) { return { first: bytes[0], port: port }; }"),
        ("chirpstack", "function Decode(fPort, bytes, variables) { return { first: bytes[0], port: fPort }; }"),
    ] {
        let decoder = folder.path().join(format!("{name}.js"));
        fs::write(&decoder, source).expect("write the decoder");
        let dir = folder.path().join(name);
        let made = sedge(&["new", "--lang", "js", "--decoder", text(&decoder), "meter", "--dir", text(&dir)]);
        assert!(made.status.success(), "{made:?}");
        assert_eq!(
            decoded(&dir, "v3/app@t/devices/hall/up", tts),
            ("decoded/hall".into(), r#"{"first":8,"port":2}"#.into())
        );
        // A raw payload, with the port of the settings.
        assert_eq!(decoded(&dir, "raw/hall", "Hello"), ("decoded/hall".into(), r#"{"first":72,"port":1}"#.into()));
    }
}

#[test]
fn a_door_left_open_is_reported_once() {
    let opened = |since: u64, told: bool| format!("garage={{\"since\":{since},\"told\":{told}}}");
    let run = invoke(&example("door-open"), "zigbee2mqtt/garage", r#"{"contact":false}"#, &[]);
    assert_eq!((&run["outputs"], &run["state"][0]["key"]), (&json!([]), &json!("garage")), "{run}");
    let run = invoke(&example("door-open"), "$timer/door-open", "", &["--state", &opened(0, false)]);
    assert_eq!(
        (&run["outputs"][0]["key"], &run["outputs"][0]["status"]),
        (&json!("garage"), &json!("firing")),
        "{run}"
    );
    let run = invoke(&example("door-open"), "$timer/door-open", "", &["--state", &opened(0, true)]);
    assert_eq!(run["outputs"], json!([]), "{run}");
    let closed =
        invoke(&example("door-open"), "zigbee2mqtt/garage", r#"{"contact":true}"#, &["--state", &opened(0, true)]);
    assert_eq!(closed["outputs"][0]["status"], "resolved", "{closed}");
}

#[test]
fn a_function_node_of_node_red_does_here_what_it_did_there() {
    let dir = example("from-node-red");
    let run = |temperature: u32, history: &str, warm: bool| {
        let (history, warm) = (format!("history={history}"), format!("warm={warm}"));
        let payload = format!("{{\"temperature\":{temperature}}}");
        invoke(&dir, "sensors/hall/climate", &payload, &["--state", &history, "--state", &warm])
    };
    let warm = run(90, "[70,80,80,80,90]", false);
    let written = json!([{ "key": "history", "value": "[80,80,80,90,90]" }, { "key": "warm", "value": "true" }]);
    assert_eq!(warm["state"], written, "{warm}");
    let [mean, alert] = [&warm["outputs"][0], &warm["outputs"][1]];
    assert_eq!((&mean["topic"], &mean["payload"]), (&json!("mean/sensors/hall/climate"), &json!("84")), "{warm}");
    assert_eq!((&alert["status"], &alert["summary"]), (&json!("firing"), &json!("mean 84")), "{warm}");
    assert_eq!(warm["log"][0], json!({ "level": "WARN", "text": "sensors/hall/climate is warm" }), "{warm}");
    let still = run(90, "[90]", true);
    assert_eq!(still["outputs"].as_array().map(Vec::len), Some(1), "{still}");
    let cool = run(20, "[]", true);
    let [mean, alert] = [&cool["outputs"][0], &cool["outputs"][1]];
    assert_eq!((&mean["payload"], &alert["status"]), (&json!("20"), &json!("resolved")), "{cool}");
}

#[test]
fn a_flow_of_thin_edge_does_here_what_it_did_there() {
    let dir = example("from-thin-edge");
    let topic = "te/device/main///m/environment";
    let state = |sum: u32, count: u32, high: bool| {
        ["--state".to_owned(), format!("te/device/main//={{\"sum\":{sum},\"count\":{count},\"high\":{high}}}")]
    };
    let run = |temperature: u32, state: [String; 2]| {
        invoke(&dir, topic, &format!("{{\"temperature\":{temperature}}}"), &[&state[0], &state[1]])
    };
    let high = run(75, state(60, 1, false));
    let output = &high["outputs"][0];
    assert_eq!(
        (&output["topic"], &output["payload"], &output["retain"]),
        (
            &json!("te/device/main///a/temperature_high"),
            &json!("{\"severity\":\"major\",\"text\":\"75 °C\"}"),
            &json!(true)
        ),
        "{high}"
    );
    assert_eq!(high["state"][0]["value"], "{\"sum\":135,\"count\":2,\"high\":true}", "{high}");
    // Within the hysteresis nothing changes; below it the retained alarm is cleared.
    let held = run(66, state(0, 0, true));
    assert_eq!((&held["result"], &held["outputs"]), (&json!("done"), &json!([])), "{held}");
    let cleared = run(64, state(0, 0, true));
    assert_eq!(cleared["outputs"][0]["payload"], "", "{cleared}");
    let tick = |state: [String; 2]| invoke(&dir, "$timer/from-thin-edge", "", &[&state[0], &state[1]]);
    let mean = tick(state(135, 2, true));
    let output = &mean["outputs"][0];
    assert_eq!(output["topic"], "te/device/main///m/environment_mean", "{mean}");
    assert!(
        output["payload"].as_str().is_some_and(|it| it.starts_with("{\"temperature\":67.5,\"time\":\"20")),
        "{mean}"
    );
    assert_eq!(mean["state"][0]["value"], "{\"sum\":0,\"count\":0,\"high\":true}", "{mean}");
    assert_eq!(tick(state(0, 0, true))["outputs"], json!([]));
}
