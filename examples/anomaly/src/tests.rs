extern crate std;

use std::vec::Vec;
use std::{eprintln, fs};

use sedge_function::AlertStatus::{self, Firing, Resolved};
use sedge_function::testing::Board;

use super::*;

const TOPIC: &str = "sensors/machine/temperature";
const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
/// When the made series begin.
const START: u64 = 1_767_571_200_000;

fn board() -> Board {
    Board::from_manifest(include_str!("../function.toml"))
}

/// Replays readings, each with its time, and returns the alerts, each with the index of the reading that caused it.
fn replay(readings: impl IntoIterator<Item = (u64, f64)>) -> Vec<(usize, AlertStatus)> {
    let mut board = board();
    let mut alerts = Vec::new();
    for (index, (at, value)) in readings.into_iter().enumerate() {
        let message = Message { received_at_ms: at, ..Message::new(TOPIC, text!(value)) };
        for output in board.run::<Anomaly>(message).unwrap() {
            let Output::Alert(alert) = output else { panic!("{output:?} is no alert") };
            alerts.push((index, alert.status));
        }
    }
    alerts
}

/// About normally distributed around 0 with deviation 1, the same on every run.
fn noise(seed: u64) -> impl Iterator<Item = f64> {
    let mut state = seed;
    core::iter::repeat_with(move || {
        let sum: f64 = (0..12)
            .map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 33) as f64 / (1u64 << 31) as f64
            })
            .sum();
        sum - 6.0
    })
}

/// A made series: its value on a day, without noise, and an offset that is a fault for it.
struct Kind {
    name: &'static str,
    value: fn(f64) -> f64,
    fault: f64,
}

fn daily(day: f64) -> f64 {
    (day * core::f64::consts::TAU).sin()
}

const KINDS: [Kind; 6] = [
    Kind { name: "steady", value: |_| 20.0, fault: 5.0 },
    Kind { name: "drifting", value: |day| 20.0 + 0.5 * day, fault: 8.0 },
    Kind { name: "daily", value: |day| 20.0 + 5.0 * daily(day), fault: 4.0 },
    Kind { name: "daily and drifting", value: |day| 20.0 + 0.3 * day + 3.0 * daily(day), fault: 8.0 },
    Kind { name: "daily, slightly", value: |day| 20.0 + daily(day), fault: -4.0 },
    Kind { name: "cold", value: |day| -18.0 + 0.5 * daily(day), fault: 6.0 },
];

/// Half a day of a fault in each series, by the minute, by five minutes and by the hour, with gaps and without.
fn series(kind: &Kind, step: u64, days: u64, gaps: bool, fault: bool) -> Vec<(u64, f64)> {
    let count = days * DAY / step;
    let is_faulty = |at: u64| fault && during_fault(at, days);
    let reading = |(index, noise): (u64, f64)| {
        let at = index * step;
        let offset = if is_faulty(at) { kind.fault } else { 0.0 };
        (START + at, (kind.value)(at as f64 / DAY as f64) + 0.5 * noise + offset)
    };
    let is_there = |(index, _): &(u64, f64)| !gaps || (index % 7 != 3 && index * step / DAY % 10 != 5);
    (0..count).zip(noise(7)).filter(is_there).map(reading).collect()
}

fn during_fault(at: u64, days: u64) -> bool {
    (days * 2 / 3 * DAY..days * 2 / 3 * DAY + DAY / 2).contains(&at)
}

#[test]
fn finds_faults_of_series_of_every_kind_and_is_silent_over_the_rest() {
    for (step, days) in [(MINUTE, 21), (5 * MINUTE, 60), (HOUR, 300)] {
        for kind in &KINDS {
            for gaps in [false, true] {
                let label = std::format!("{}, by {} minutes, gaps: {gaps}", kind.name, step / MINUTE);
                assert_eq!(replay(series(kind, step, days, gaps, false)), [], "{label}");
                let readings = series(kind, step, days, gaps, true);
                let alerts = replay(readings.iter().copied());
                let [(fired, Firing), (_, Resolved)] = alerts[..] else { panic!("{label}: {alerts:?}") };
                assert!(during_fault(readings[fired].0 - START, days), "{label}: {alerts:?}");
            }
        }
    }
}

#[test]
fn stays_silent_on_sensors_that_switch() {
    let count = 20_000;
    let times = |step: u64| (0..count as u64).map(move |index| START + index * step);
    assert_eq!(replay(times(5 * MINUTE).zip(core::iter::repeat_n(21.0, count))), []);
    let compressor = (0..count).map(|i| if i % 40 < 10 { 17.0 } else { 5.0 });
    assert_eq!(replay(times(5 * MINUTE).zip(compressor.clone())), []);
    assert_eq!(replay(times(MINUTE).zip(compressor)), []);
}

#[test]
fn without_a_clock_it_counts_readings() {
    let untimed = |values: Vec<f64>| replay(values.into_iter().map(|value| (0, value)));
    assert_eq!(untimed(noise(1).take(20_000).map(|n| 20.0 + 0.5 * n).collect()), []);
    let day = |index: usize| daily(index as f64 / 288.0);
    assert_eq!(untimed(noise(2).take(20_000).enumerate().map(|(i, n)| 20.0 + 5.0 * day(i) + 0.5 * n).collect()), []);
    let fault = 9_000..9_400;
    let readings = noise(4).take(20_000).enumerate();
    let alerts = untimed(readings.map(|(i, n)| if fault.contains(&i) { 5.0 } else { 20.0 } + n).collect());
    let [(fired, Firing), (resolved, Resolved)] = alerts[..] else { panic!("{alerts:?}") };
    assert!((9_000..9_060).contains(&fired), "{fired}");
    assert!((9_400..9_700).contains(&resolved), "{resolved}");
}

#[test]
fn gets_used_to_a_lasting_change() {
    let values = noise(5).take(20_000).enumerate().map(|(i, n)| if i < 6_000 { 20.0 } else { 30.0 } + 0.5 * n);
    let alerts = replay((0..).map(|index: u64| START + index * 5 * MINUTE).zip(values));
    let [(_, Firing), (resolved, Resolved)] = alerts[..] else { panic!("{alerts:?}") };
    assert!(resolved < 18_000, "{resolved}");
}

#[test]
fn a_board_that_does_not_know_the_time_waits_once_it_has_learnt_a_season() {
    let mut board = board();
    let mut alerts = 0;
    for (index, (at, value)) in series(&KINDS[2], 5 * MINUTE, 20, false, false).into_iter().enumerate() {
        // For two hours a day the board thinks that it is in 1970.
        let clock_synced = index % 288 > 24;
        let received_at_ms = if clock_synced { at } else { at % DAY };
        let message = Message { received_at_ms, clock_synced, ..Message::new(TOPIC, text!(value)) };
        alerts += board.run::<Anomaly>(message).unwrap().len();
    }
    assert_eq!(alerts, 0);
}

/// Readings near 20, and then one that is far from it often enough.
fn provoke(board: &mut Board, payload: impl Fn(f64, usize) -> Message) -> Alert {
    for (index, noise) in noise(6).take(1_000).enumerate() {
        assert_eq!(board.run::<Anomaly>(payload(20.0 + 0.1 * noise, index)), Ok(vec![]));
    }
    for index in 1_000..1_100 {
        if let Some(Output::Alert(alert)) = board.run::<Anomaly>(payload(35.5, index)).unwrap().pop() {
            return alert;
        }
    }
    panic!("no alert");
}

#[test]
fn a_plain_reading_is_not_labelled_with_its_own_value_as_time() {
    let alert = provoke(&mut board(), |value, _| Message::new(TOPIC, text!(value)));
    assert_eq!(alert.labels, [(String::from("topic"), String::from(TOPIC))]);
    assert_eq!(alert.key, "sensors/machine/temperature/temperature");
}

#[test]
fn the_sensors_own_time_is_a_label() {
    let payload = |value: f64, _: usize| {
        let object = JsonObject::new().text("Time", "2026-01-05T11:02:13").number("Temperature", value);
        Message::new("tele/x/SENSOR", object)
    };
    let alert = provoke(&mut board(), payload);
    let label = |name: &str, value: &str| (String::from(name), String::from(value));
    assert_eq!(alert.labels, [label("time", "2026-01-05T11:02:13"), label("topic", "tele/x/SENSOR")]);
    assert_eq!(alert.key, "tele/x/SENSOR/Temperature");
}

#[test]
fn each_of_several_sensors_has_its_own_baseline() {
    let payload = |value: f64, _: usize| {
        let sensor = |value| JsonObject::new().number("temperature", value);
        Message::new("zigbee2mqtt/x", JsonObject::new().object("a", sensor(-18.0)).object("b", sensor(value)))
    };
    let alert = provoke(&mut board(), payload);
    assert_eq!(alert.key, "zigbee2mqtt/x/b.temperature");
}

#[test]
fn what_cannot_be_read_is_rejected() {
    let run = |payload: &str| board().run::<Anomaly>(Message::new(TOPIC, payload));
    for payload in ["81,5", "hot", "1e999", "{\"temperature\":1", "{\"temperature\":\"hot\"}"] {
        assert!(matches!(run(payload), Err(Failure::Reject(_))), "{payload}");
    }
    for payload in ["", "NaN", "unavailable", "{\"battery\":5}", "{\"temperature\":null}"] {
        assert_eq!(run(payload), Ok(vec![]), "{payload}");
    }
    let mixed = r#"{"a":{"temperature":"hot"},"b":{"temperature":20}}"#;
    let mut board = board();
    assert_eq!(board.run::<Anomaly>(Message::new("zigbee2mqtt/x", mixed)), Ok(vec![]));
    assert_eq!(board.log().len(), 1);
}

/// The recording is not part of this repository: `make test` names it.
#[test]
fn finds_the_failures_of_a_real_machine() {
    let Some(path) = std::env::var_os("SEDGE_RECORDING") else {
        eprintln!("not run: SEDGE_RECORDING names no recording");
        return;
    };
    let text = fs::read_to_string(&path).expect("SEDGE_RECORDING names a file that can be read");
    let rows: Vec<(&str, f64)> = text
        .lines()
        .skip(1)
        .map(|line| line.split_once(',').expect("lines are `timestamp,value`"))
        .map(|(time, value)| (time, value.parse().expect("values are numbers")))
        .collect();
    assert!(rows.len() > 20_000, "{} readings", rows.len());
    let failures = [
        ("2013-12-10 06:25", "2013-12-12 05:35"),
        ("2013-12-15 17:50", "2013-12-17 17:00"),
        ("2014-01-27 14:20", "2014-01-29 13:30"),
        ("2014-02-07 14:55", "2014-02-09 14:05"),
    ];
    let timed = rows.iter().map(|(time, value)| {
        let at = time::unix_ms_local(time, 0).expect("times are dates");
        (at.unsigned_abs(), *value)
    });
    let fired: Vec<&str> =
        replay(timed).into_iter().filter(|(_, status)| *status == Firing).map(|(index, _)| rows[index].0).collect();
    // ISO timestamps sort as text.
    let during = |time: &str, (start, end): (&str, &str)| start <= time && time <= end;
    let found = failures.iter().filter(|failure| fired.iter().any(|time| during(time, **failure))).count();
    let false_alarms = fired.iter().filter(|time| !failures.iter().any(|failure| during(time, *failure))).count();
    assert!(found == 4 && false_alarms <= 5, "{found} of 4 found, {false_alarms} false alarms: {fired:?}");
}
