//! An alert when a value leaves what is usual for it.

#![no_std]

mod baseline;

use baseline::{Baseline, Change, Tuning};
use sedge_function::prelude::*;

struct Anomaly;

impl Function for Anomaly {
    fn handle(message: Message) -> Outcome {
        let field = setting_or("field", String::from("temperature"))?;
        let Some(value) = message.number(&field).filter(|value| value.is_finite()) else { return Ok(vec![]) };
        let tuning = Tuning {
            fast: setting_or("fast", 36.0)?,
            slow: setting_or("slow", 2500.0)?,
            threshold: setting_or("threshold", 3.5)?,
        };
        let mut baseline = Baseline::from_state(state::get("baseline")?.unwrap_or_default());
        let change = baseline.observe(value, &tuning);
        state::set("baseline", baseline.into_state())?;

        let key = || text!(message.topic, "/", field);
        let alert = match change {
            None => return Ok(vec![]),
            Some(Change::Unusual) => Alert::firing(
                key(),
                text!(field, " averages ", rounded(baseline.fast, 2), ", usual is ", rounded(baseline.mean, 2)),
            ),
            Some(Change::Usual) => Alert::resolved(key(), text!(field, " is as usual again")),
        };
        // The sensor's own time, where it sends one: a reading may have waited in a queue.
        let alert = match message.text("time").or_else(|| message.text("Time")) {
            Some(time) => alert.label("time", time),
            None => alert,
        };
        Ok(vec![alert.value(value).label("topic", message.topic).into()])
    }
}

export!(Anomaly);

#[cfg(test)]
mod tests;
