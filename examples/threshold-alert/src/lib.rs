//! An alert when a value goes above a limit, and another when it is well back.

#![no_std]

use sedge_function::log;
use sedge_function::prelude::*;
use sedge_function::state::{Edge, Hysteresis};

/// Most alerts for one message, well within the limit of its outputs. What is above the limit beyond them is told by a later message.
const MAX_ALERTS: usize = 32;

struct ThresholdAlert;

impl Function for ThresholdAlert {
    fn handle(message: Message) -> Outcome {
        let field = setting_or("field", String::from("temperature"))?;
        // Devices also send updates without it, a battery level alone for example: not this function's business.
        let mut readings = message.find_numbers(&[&field])?;
        if readings.iter().any(|reading| reading.value.is_err()) {
            let unit = setting_or("unit", String::new())?;
            let format = NumberFormat { decimal_comma: setting_or("decimal_comma", false)?, unit: &unit };
            readings = message.find_numbers_as(format, &[&field])?;
        }
        if readings.is_empty() {
            return Ok(vec![]);
        }
        let max: f64 = setting("max")?;
        let limit = Hysteresis::above(max, setting_or("hysteresis", 0.0)?);
        let mut outputs = vec![];
        let mut unreadable = None;
        for Reading { path, value, .. } in readings {
            let value = match value {
                Ok(value) => value,
                Err(error) => {
                    unreadable = Some(error);
                    continue;
                }
            };
            let key = text!(message.topic, "/", path);
            let alert = match limit.update(&text!("firing/", path), value)? {
                Some(Edge::Rising) => Alert::firing(key, text!(path, " is ", value, ", above ", max)),
                Some(Edge::Falling) => Alert::resolved(key, text!(path, " is back to ", value)),
                None => continue,
            };
            outputs.push(alert.critical().value(value).label("topic", message.topic.as_str()).into());
            if outputs.len() == MAX_ALERTS {
                break;
            }
        }
        match unreadable {
            None => Ok(outputs),
            Some(error) if outputs.is_empty() => Err(error.into()),
            // An alert is worth more than the dead letter.
            Some(ReadError::Unreadable(why) | ReadError::OutOfRange(why)) => {
                log::write(log::Level::Warn, &why);
                Ok(outputs)
            }
        }
    }
}

export!(ThresholdAlert);

#[cfg(test)]
mod tests;
