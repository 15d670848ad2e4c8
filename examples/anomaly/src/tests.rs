extern crate std;

use std::vec::Vec;
use std::{eprintln, fs};

use sedge_function::AlertStatus::{self, Firing, Resolved};
use sedge_function::testing::Board;

use super::*;

/// Replays readings and returns the alerts, each with the index of the reading that caused it.
fn replay(readings: impl IntoIterator<Item = f64>) -> Vec<(usize, AlertStatus)> {
    let mut board = Board::new();
    let mut alerts = Vec::new();
    for (index, value) in readings.into_iter().enumerate() {
        let outputs = board.run::<Anomaly>(Message::new("sensors/machine/temperature", text!(value))).unwrap();
        for output in outputs {
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

#[test]
fn stays_silent_on_ordinary_sensors() {
    let count = 20_000;
    let day = |index: usize| (index as f64 * core::f64::consts::TAU / 288.0).sin();
    let with_noise = |seed| noise(seed).take(count).enumerate();
    assert_eq!(replay(with_noise(1).map(|(_, n)| 20.0 + 0.5 * n)), []);
    assert_eq!(replay(with_noise(2).map(|(i, n)| 20.0 + 5.0 * day(i) + 0.5 * n)), []);
    assert_eq!(replay(with_noise(3).map(|(i, n)| 20.0 + 0.002 * i as f64 + 0.5 * n)), []);
    assert_eq!(replay(core::iter::repeat_n(21.0, count)), []);
    assert_eq!(replay((0..count).map(|i| if i % 40 < 10 { 17.0 } else { 5.0 })), []);
}

#[test]
fn reports_a_fault_once_and_its_end() {
    let fault = 9_000..9_400;
    let readings = noise(4).take(20_000).enumerate();
    let alerts = replay(readings.map(|(i, n)| if fault.contains(&i) { 5.0 } else { 20.0 } + n));
    let [(fired, Firing), (resolved, Resolved)] = alerts[..] else { panic!("{alerts:?}") };
    assert!((9_000..9_060).contains(&fired), "{fired}");
    assert!((9_400..9_700).contains(&resolved), "{resolved}");
}

#[test]
fn gets_used_to_a_lasting_change() {
    let alerts = replay(noise(5).take(20_000).enumerate().map(|(i, n)| if i < 6_000 { 20.0 } else { 30.0 } + 0.5 * n));
    let [(_, Firing), (resolved, Resolved)] = alerts[..] else { panic!("{alerts:?}") };
    assert!(resolved < 18_000, "{resolved}");
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
    let fired: Vec<&str> = replay(rows.iter().map(|(_, value)| *value))
        .into_iter()
        .filter(|(_, status)| *status == Firing)
        .map(|(index, _)| rows[index].0)
        .collect();
    // ISO timestamps sort as text.
    let during = |time: &str, (start, end): (&str, &str)| start <= time && time <= end;
    let found = failures.iter().filter(|failure| fired.iter().any(|time| during(time, **failure))).count();
    let false_alarms = fired.iter().filter(|time| !failures.iter().any(|failure| during(time, *failure))).count();
    assert!(found >= 3 && false_alarms <= 8, "{found} of 4 found, {false_alarms} false alarms: {fired:?}");
}
