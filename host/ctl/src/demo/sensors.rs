//! Messages of the demo: from simulated devices with real payload formats, or from a recording.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::json;

/// One message of a sensor.
pub(crate) struct Reading {
    pub(crate) topic: String,
    pub(crate) payload: Vec<u8>,
    /// Time since the previous reading of a recording.
    pub(crate) after: Duration,
}

/// Xorshift generator, with the same numbers in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Approximately normal, with mean 0 and deviation 1.
    fn normal(&mut self) -> f64 {
        let uniform: f64 = (0..12).map(|_| (self.next() >> 11) as f64 / (1_u64 << 53) as f64).sum();
        uniform - 6.0
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// Greenhouses (Zigbee2MQTT), pumps (Tasmota), cold rooms (ESPHome) and field probes (Cayenne LPP over LoRaWAN).
pub(crate) struct Simulated {
    random: Random,
    left: u64,
    sent: u64,
}

const DEVICES: u64 = 8;
/// Interval of damaged messages, which become dead letters.
const GARBLED_EVERY: u64 = 500;

impl Simulated {
    pub(crate) fn new(messages: u64) -> Self {
        Self { random: Random(0x5ED6_E001), left: messages, sent: 0 }
    }
}

impl Iterator for Simulated {
    type Item = Reading;

    fn next(&mut self) -> Option<Reading> {
        self.left = self.left.checked_sub(1)?;
        self.sent += 1;
        let device = self.random.below(DEVICES);
        let kind = self.random.below(4);
        // Every device is hot for some time, so that alerts fire and are resolved.
        let hot = (self.sent / 400 + device).is_multiple_of(11);
        let degrees = 61.0 + self.random.normal() * 0.3 + if hot { 22.0 } else { 0.0 };
        let degrees = (degrees * 100.0).round() / 100.0;
        let (topic, payload) = match kind {
            0 => {
                let payload = json!({
                    "battery": 97,
                    "humidity": (550.0 + self.random.normal() * 10.0).round() / 10.0,
                    "linkquality": 120,
                    "temperature": degrees,
                });
                (format!("zigbee2mqtt/greenhouse-{device}"), payload.to_string().into_bytes())
            }
            1 => {
                let payload = json!({
                    "Time": "2026-03-01T12:00:00",
                    "DS18B20": { "Id": format!("01131B{device:06X}"), "Temperature": degrees },
                    "TempUnit": "C",
                });
                (format!("tele/pump-{device}/SENSOR"), payload.to_string().into_bytes())
            }
            2 => (format!("coldroom-{device}/sensor/temperature/state"), degrees.to_string().into_bytes()),
            _ if self.sent.is_multiple_of(GARBLED_EVERY / 4) => (format!("lpp/field-{device}"), vec![0x01, 0xEE, 0x00]),
            _ => (format!("lpp/field-{device}"), cayenne(degrees, &mut self.random)),
        };
        Some(Reading { topic, payload, after: Duration::ZERO })
    }
}

/// Channel 1 temperature in 0.1 °C, channel 2 humidity in 0.5 %.
fn cayenne(degrees: f64, random: &mut Random) -> Vec<u8> {
    let [high, low] = ((degrees * 10.0).round() as i16).to_be_bytes();
    vec![1, 103, high, low, 2, 104, (110.0 + random.normal() * 4.0) as u8]
}

/// A recording as CSV with the columns `timestamp,value`, on one topic.
pub(crate) struct Recording {
    rows: VecDeque<(String, f64)>,
    last_secs: Option<i64>,
    limit: Option<u64>,
}

pub(crate) const RECORDING_TOPIC: &str = "sensors/recorded/temperature";

impl Recording {
    pub(crate) fn open(path: &Path, limit: Option<u64>) -> anyhow::Result<Self> {
        let file = File::open(path).with_context(|| format!("failed to open the recording {}", path.display()))?;
        let mut rows = VecDeque::new();
        for (number, line) in BufReader::new(file).lines().enumerate() {
            let line = line.with_context(|| format!("failed to read {}", path.display()))?;
            let line = line.trim();
            if line.is_empty() || number == 0 && line.starts_with("timestamp") {
                continue;
            }
            let row = line.split_once(',').and_then(|(time, value)| Some((time.to_owned(), value.parse().ok()?)));
            rows.push_back(row.with_context(|| {
                format!("{}:{}: expected `timestamp,value`, found {line:?}", path.display(), number + 1)
            })?);
        }
        anyhow::ensure!(!rows.is_empty(), "{} has no readings: expected lines `timestamp,value`", path.display());
        Ok(Self { rows, last_secs: None, limit })
    }

    pub(crate) fn len(&self) -> u64 {
        (self.rows.len() as u64).min(self.limit.unwrap_or(u64::MAX))
    }
}

impl Iterator for Recording {
    type Item = Reading;

    fn next(&mut self) -> Option<Reading> {
        if let Some(limit) = &mut self.limit {
            *limit = limit.checked_sub(1)?;
        }
        let (timestamp, value) = self.rows.pop_front()?;
        let secs = seconds(&timestamp);
        let after = match (self.last_secs, secs) {
            (Some(last), Some(now)) if now > last => Duration::from_secs((now - last).unsigned_abs()),
            _ => Duration::ZERO,
        };
        self.last_secs = secs.or(self.last_secs);
        let payload = json!({ "time": timestamp, "temperature": value }).to_string().into_bytes();
        Some(Reading { topic: RECORDING_TOPIC.to_owned(), payload, after })
    }
}

/// Seconds of `YYYY-MM-DD HH:MM:SS` since an arbitrary start.
fn seconds(timestamp: &str) -> Option<i64> {
    let number = |range: std::ops::Range<usize>| timestamp.get(range)?.parse::<i64>().ok();
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19).unwrap_or(0));
    // March is the first month, so that the leap day is the last of a year.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn simulated_sensors_are_the_same_in_every_run() {
        let topics = |n| Simulated::new(n).map(|it| (it.topic, it.payload)).collect::<Vec<_>>();
        assert_eq!(topics(1000), topics(1000));
        assert_eq!(topics(1000).len(), 1000);
    }

    #[test]
    fn a_recording_keeps_its_pace() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(
            &mut file,
            b"timestamp,value\n2014-02-28 23:55:00,1.5\n2014-03-01 00:00:00,2\n2014-03-01 01:00:00,-3\n",
        )
        .unwrap();
        let readings: Vec<_> = Recording::open(file.path(), None).unwrap().collect();
        let secs: Vec<_> = readings.iter().map(|it| it.after.as_secs()).collect();
        assert_eq!(secs, [0, 300, 3600]);
        assert_eq!(readings[2].payload, br#"{"temperature":-3.0,"time":"2014-03-01 01:00:00"}"#);
        assert_eq!(Recording::open(file.path(), Some(2)).unwrap().count(), 2);
    }

    #[test]
    fn a_wrong_recording_is_named_with_its_line() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut file, b"timestamp,value\n2014-02-28 23:55:00,warm\n").unwrap();
        let error = Recording::open(file.path(), None).err().unwrap().to_string();
        assert!(error.contains(":2: expected `timestamp,value`"), "{error}");
    }
}
