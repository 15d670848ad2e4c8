extern crate std;

use super::*;
use sedge_function::AlertStatus::{self, Firing, Resolved};
use sedge_function::Severity;
use sedge_function::testing::Board;

fn board() -> Board {
    Board::from_manifest(include_str!("../function.toml"))
}

fn run(board: &mut Board, topic: &str, payload: impl Into<Vec<u8>>) -> Outcome {
    board.run::<ThresholdAlert>(Message::new(topic, payload))
}

/// Key and status of each alert that a message causes.
#[track_caller]
fn alerts(board: &mut Board, topic: &str, payload: impl Into<Vec<u8>>) -> Vec<(String, AlertStatus)> {
    let outputs = run(board, topic, payload).unwrap();
    let alert = |output| match output {
        Output::Alert(alert) => (alert.key, alert.status),
        other => panic!("{other:?} is no alert"),
    };
    outputs.into_iter().map(alert).collect()
}

#[track_caller]
fn send(board: &mut Board, topic: &str, payload: &str) -> Option<AlertStatus> {
    let alerts = alerts(board, topic, payload);
    assert!(alerts.len() <= 1, "{alerts:?}");
    alerts.first().map(|(_, status)| *status)
}

#[test]
fn fires_once_and_resolves_below_the_hysteresis() {
    let mut board = board();
    let mut send = |value| send(&mut board, "sensors/oven/temperature", value);
    assert_eq!(send("80"), None);
    assert_eq!(send("80.5"), Some(Firing));
    assert_eq!(send("95"), None);
    assert_eq!(send("79"), None);
    assert_eq!(send("78"), Some(Resolved));
    assert_eq!(send("78"), None);
    assert_eq!(send("81"), Some(Firing));
}

#[test]
#[should_panic(expected = "would not get it")]
fn zigbee2mqtt_itself_is_not_heard() {
    let _ = run(&mut board(), "zigbee2mqtt/bridge/devices", "[]");
}

#[test]
#[should_panic(expected = "would not get it")]
fn what_a_device_is_told_is_not_a_reading() {
    let _ = run(&mut board(), "zigbee2mqtt/kitchen/thermostat/set", r#"{"temperature":95}"#);
}

#[test]
fn keeps_topics_apart() {
    let mut board = board();
    assert_eq!(send(&mut board, "sensors/a/temperature", "90"), Some(Firing));
    assert_eq!(send(&mut board, "sensors/b/temperature", "70"), None);
    assert_eq!(send(&mut board, "sensors/b/temperature", "90"), Some(Firing));
}

#[test]
fn reads_what_devices_send() {
    for (topic, payload) in [
        ("zigbee2mqtt/kitchen/oven", r#"{"temperature":81.25}"#),
        ("zigbee2mqtt/oven", r#"{"battery":100,"linkquality":91,"temperature":81.25}"#),
        (
            "tele/oven/SENSOR",
            r#"{"Time":"2026-01-05T11:02:13","DS18B20":{"Id":"0316A2","Temperature":81.3},"TempUnit":"C"}"#,
        ),
        ("oven/sensor/temperature/state", "81.2"),
        ("sensors/oven/temperature", "81.2\n"),
        ("derived/lpp/oven", r#"{"temperature":81.2,"humidity":48.5}"#),
    ] {
        assert_eq!(send(&mut board(), topic, payload), Some(Firing), "{payload}");
    }
    assert_eq!(send(&mut board(), "zigbee2mqtt/oven", r#"{"battery":99}"#), None);
}

#[test]
fn a_plain_number_of_another_quantity_is_no_temperature() {
    for (topic, payload) in [
        ("kitchen/sensor/uptime/state", "86400"),
        ("kitchen/sensor/humidity/state", "95"),
        ("kitchen/sensor/wifi/state", "unknown"),
        ("zigbee2mqtt/oven", "95"),
    ] {
        assert_eq!(send(&mut board(), topic, payload), None, "{topic}");
    }
}

#[test]
fn the_second_of_two_sensors_is_watched_too() {
    let mut board = board();
    let mut tell = |first: &str, second: &str| {
        let payload = text!(r#"{"DS18B20-1":{"Temperature":"#, first, r#"},"DS18B20-2":{"Temperature":"#, second, "}}");
        alerts(&mut board, "tele/x/SENSOR", payload.as_str())
    };
    let first = || String::from("tele/x/SENSOR/DS18B20-1.Temperature");
    let second = || String::from("tele/x/SENSOR/DS18B20-2.Temperature");
    assert_eq!(tell("21.4", "95.1"), [(second(), Firing)]);
    assert_eq!(tell("96", "95.1"), [(first(), Firing)]);
    assert_eq!(tell("null", "20"), [(second(), Resolved)]);
    assert_eq!(tell("20", "96"), [(first(), Resolved), (second(), Firing)]);
}

#[test]
fn what_cannot_be_read_is_rejected_with_the_reason() {
    let gzip: &[u8] = b"\x1f\x8b\x08\x00\x00";
    let utf16: Vec<u8> = r#"{"temperature":95}"#.encode_utf16().flat_map(u16::to_le_bytes).collect();
    for (topic, payload, reason) in [
        ("sensors/a/temperature", &b"81,5"[..], "decimal comma"),
        ("sensors/a/temperature", "81.5 °C".as_bytes(), "text behind"),
        ("sensors/a/temperature", b"hot", "not a number"),
        ("sensors/a/temperature", b"1e999", "out of range"),
        ("zigbee2mqtt/oven", gzip, "gzip"),
        ("zigbee2mqtt/oven", &utf16, "UTF-16"),
        ("zigbee2mqtt/oven", br#"{"temperature":"81,5"}"#, "decimal comma"),
        ("zigbee2mqtt/oven", br#"{"temperature":81,5}"#, "not JSON"),
        ("zigbee2mqtt/oven", br#"{"temperature":1e999}"#, "out of range"),
        ("zigbee2mqtt/oven", br#"{"temperature":95"#, "cut off"),
        ("zigbee2mqtt/oven", br#"{"battery":95,"#, "cut off"),
    ] {
        match run(&mut board(), topic, payload) {
            Err(Failure::Reject(why)) => assert!(why.contains(reason), "{why}"),
            other => panic!("{other:?} for {payload:?}"),
        }
    }
}

#[test]
fn a_byte_order_mark_or_a_nul_does_not_hide_an_oven() {
    assert_eq!(send(&mut board(), "zigbee2mqtt/oven", "\u{feff}{\"temperature\":95}"), Some(Firing));
    assert_eq!(send(&mut board(), "sensors/oven/temperature", "95\0"), Some(Firing));
}

#[test]
fn units_and_commas_are_read_where_a_setting_says_so() {
    let mut board = board().setting("unit", "°C").setting("decimal_comma", "true");
    assert_eq!(send(&mut board, "sensors/oven/temperature", "81,5 °C"), Some(Firing));
    assert_eq!(send(&mut board, "sensors/oven/temperature", "20"), Some(Resolved));
}

#[test]
fn one_unreadable_sensor_does_not_hide_an_alert_of_another() {
    let mut board = board();
    let payload = r#"{"a":{"temperature":"broken"},"b":{"temperature":95}}"#;
    assert_eq!(alerts(&mut board, "zigbee2mqtt/x", payload), [(String::from("zigbee2mqtt/x/b.temperature"), Firing)]);
    assert!(board.log()[0].1.contains("a.temperature is \"broken\""), "{:?}", board.log());
    // Without an alert the message is a dead letter.
    assert!(run(&mut board, "zigbee2mqtt/x", payload).is_err());
}

#[test]
fn infinity_beside_a_number_does_not_hide_it() {
    let payload = r#"{"a":{"temperature":Infinity},"b":{"temperature":95},"c":{"temperature":NaN}}"#;
    let key = String::from("zigbee2mqtt/x/b.temperature");
    assert_eq!(alerts(&mut board(), "zigbee2mqtt/x", payload), [(key, Firing)]);
}

#[test]
fn more_sensors_than_outputs_are_reported_over_several_messages() {
    let mut board = board();
    let sensors: Vec<String> = (0..80).map(|_| String::from(r#"{"temperature":95}"#)).collect();
    let payload = text!("[", sensors.join(","), "]");
    let mut counts = vec![];
    for _ in 0..4 {
        counts.push(alerts(&mut board, "zigbee2mqtt/x", payload.as_str()).len());
    }
    assert_eq!(counts, [32, 32, 16, 0]);
}

#[test]
fn says_what_it_saw() {
    let outputs = run(&mut board(), "sensors/oven/temperature", "81.5").unwrap();
    let Output::Alert(alert) = &outputs[0] else { panic!("no alert") };
    assert_eq!(alert.key, "sensors/oven/temperature/temperature");
    assert_eq!(alert.summary, "temperature is 81.5, above 80");
    assert_eq!((alert.severity, alert.value), (Severity::Critical, Some(81.5)));
}

#[test]
fn names_a_bad_setting() {
    let run = |mut board: Board| run(&mut board, "a/temperature", "1").unwrap_err();
    assert_eq!(run(Board::new()), Failure::reject("setting \"max\" is missing: add it to [config]"));
    assert_eq!(run(Board::new().setting("max", "hot")), Failure::reject("setting \"max\" is not a number"));
}
