//! An alert when a value leaves what is usual for it at this hour.

#![no_std]

mod baseline;

use baseline::{Baseline, Change, Season, Tuning};
use sedge_function::prelude::*;
use sedge_function::{log, time};

/// Most alerts for one message, well within the limit of its outputs.
const MAX_ALERTS: usize = 32;

struct Anomaly;

impl Function for Anomaly {
    fn handle(message: Message) -> Outcome {
        let field = setting_or("field", String::from("temperature"))?;
        let fields = [field.as_str(), "time"];
        let mut readings = message.find_numbers(&fields)?;
        if readings.iter().any(|reading| reading.field == 0 && reading.value.is_err()) {
            let unit = setting_or("unit", String::new())?;
            let format = NumberFormat { decimal_comma: setting_or("decimal_comma", false)?, unit: &unit };
            readings = message.find_numbers_as(format, &fields)?;
        }
        let said = readings.iter().filter(|reading| reading.field == 1).find_map(sensor_time);
        readings.retain(|reading| reading.field == 0);
        if readings.is_empty() {
            return Ok(vec![]);
        }
        let tuning = Tuning {
            fast_ms: setting_or("fast_hours", 3.0)? * 3_600_000.0,
            slow_ms: setting_or("slow_days", 9.0)? * 86_400_000.0,
            threshold: setting_or("threshold", 2.75)?,
        };
        let at_ms = match &said {
            Some((_, at_ms)) => Some(*at_ms),
            None if message.clock_synced && message.received_at_ms > 0 => Some(message.received_at_ms as f64),
            None => None,
        };
        let mut outputs = vec![];
        let mut unreadable = None;
        let mut readable = false;
        for Reading { path, value, .. } in readings {
            match value {
                Ok(value) => {
                    readable = true;
                    let Some((change, summary)) = observe(&path, value, at_ms, &tuning)? else { continue };
                    let key = text!(message.topic, "/", path);
                    let alert = match change {
                        Change::Unusual => Alert::firing(key, summary),
                        Change::Usual => Alert::resolved(key, summary),
                    };
                    // The sensor's own time, where it sends one: a reading may have waited in a queue.
                    let alert = match &said {
                        Some((time, _)) => alert.label("time", time.as_str()),
                        None => alert,
                    };
                    if outputs.len() < MAX_ALERTS {
                        outputs.push(alert.value(value).label("topic", message.topic.as_str()).into());
                    }
                }
                Err(error) => unreadable = Some(error),
            }
        }
        match unreadable {
            None => Ok(outputs),
            Some(error) if !readable => Err(error.into()),
            // What the others say is kept.
            Some(ReadError::Unreadable(why) | ReadError::OutOfRange(why)) => {
                log::write(log::Level::Warn, &why);
                Ok(outputs)
            }
        }
    }
}

/// Learns one reading, and says what has changed and how.
fn observe(path: &str, value: f64, at_ms: Option<f64>, tuning: &Tuning) -> Result<Option<(Change, String)>, Failure> {
    let (baseline_key, season_key) = (text!("baseline/", path), text!("season/", path));
    let mut baseline = Baseline::from_state(state::get(&baseline_key)?.unwrap_or_default());
    let mut season: Season = state::get(&season_key)?.unwrap_or_default();
    let Some(seen) = baseline.observe(at_ms, value, &mut season, tuning) else { return Ok(None) };
    state::set(&baseline_key, baseline.into_state())?;
    if seen.season_changed {
        state::set(&season_key, season)?;
    }
    Ok(seen.change.map(|change| {
        let summary = match change {
            Change::Unusual => {
                text!(path, " averages ", rounded(seen.recent, 2), ", usual is ", rounded(seen.usual, 2))
            }
            Change::Usual => text!(path, " is as usual again"),
        };
        (change, summary)
    }))
}

/// The time that the sensor says at the top of its payload, as it says it and as Unix time in milliseconds. An offset is not
/// needed: the season is of any day.
fn sensor_time(reading: &Reading<'_>) -> Option<(String, f64)> {
    if reading.path.contains('.') {
        return None;
    }
    let said = reading.raw.text().ok().flatten()?;
    let at_ms = time::unix_ms_local(&said, 0).filter(|at_ms| *at_ms > 0)?;
    Some((said, at_ms as f64))
}

export!(Anomaly);

#[cfg(test)]
mod tests;
